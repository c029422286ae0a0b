//go:build unix

package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lock keeps a second process out of a folder; the system gives it back when the process dies, however that happens.
type lock struct{ f *os.File }

func lockDir(dir string) (*lock, error) {
	f, err := os.OpenFile(filepath.Join(dir, "cells", "lock"), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, errors.Join(fmt.Errorf("bench: another process works in %s", dir), f.Close())
	case err != nil: // a file system without locks
		return &lock{f}, nil
	}
	return &lock{f}, nil
}

func (l *lock) release() { _ = l.f.Close() }
