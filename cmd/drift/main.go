// Command drift draws samples from diffusion and flow models. See drift --help, and drift VERB --help.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ignoreSizeLimit()
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv, stop: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 3)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // once: finish the step and save; twice: stop at once
		<-signals
		close(a.stop)
		<-signals
		cancel()
		<-signals
		os.Exit(exitInterrupted)
	}()
	os.Exit(a.main(ctx, os.Args[1:]))
}
