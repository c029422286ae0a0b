//go:build unix

package main

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// ignoreSizeLimit makes a limit on the size of files (ulimit -f) an error of the write, not the end of the process.
func ignoreSizeLimit() { signal.Ignore(syscall.SIGXFSZ) }

// ownGroup gives a child a process group of its own: the terminal's signals do not reach it.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// interruptProcess asks a process to end as Ctrl-C does.
func interruptProcess(p *os.Process) error { return p.Signal(os.Interrupt) }
