//go:build unix

package kernels

import (
	"os"
	"os/signal"
	"syscall"
	"time"
)

// A signal every millisecond interrupts whatever instruction is running.
func init() {
	signals = func(end time.Time) (count int) {
		ch := make(chan os.Signal, 16)
		signal.Notify(ch, syscall.SIGUSR1)
		defer signal.Stop(ch)
		for time.Now().Before(end) {
			if syscall.Kill(os.Getpid(), syscall.SIGUSR1) == nil {
				count++
			}
			time.Sleep(time.Millisecond)
		}
		return count
	}
}
