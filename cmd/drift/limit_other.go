//go:build !unix

package main

import (
	"os"
	"os/exec"
)

// ignoreSizeLimit has nothing to do: there is no such signal here.
func ignoreSizeLimit() {}

// ownGroup has nothing to do: processes have no groups here.
func ownGroup(*exec.Cmd) {}

// interruptProcess ends a process: it cannot be asked here. What is finished is stored already.
func interruptProcess(p *os.Process) error { return p.Kill() }
