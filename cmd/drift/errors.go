package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/shard"
	"drift/guidance"
	"drift/internal/refuse"
	"drift/samplers"
	"drift/smc"
)

// The exit codes.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRefused     = 3
	exitNotFinite   = 4
	exitInterrupted = 130
)

const exitCodes = `EXIT CODES:
   0    done
   1    failed
   2    wrong usage
   3    an input file was refused (hostile or malformed)
   4    a result is not finite
   130  interrupted; what is finished is saved, and the message says how to go on
`

// usage is an error of the command line.
type usage struct {
	text string
	err  error // may be nil
}

func (u *usage) Error() string { return u.text }
func (u *usage) Unwrap() error { return u.err }

func usagef(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &usage{err.Error(), errors.Unwrap(err)}
}

// badUse makes a usage error of an error about a flag's value, unless it is about a file.
func badUse(flag string, err error) error {
	var path *fs.PathError
	var refused *refuse.Error
	if err == nil || errors.As(err, &path) || errors.As(err, &refused) {
		return err
	}
	return &usage{"--" + flag + ": " + trimPackage(err.Error()), err}
}

// trimPackage removes the package that an error begins with: users know flags, not packages.
func trimPackage(s string) string {
	for _, p := range []string{"samplers: ", "schedules: ", "models: ", "guidance: ", "analytic: ", "open: ", "kernels: ", "native: ", "unet2d: ", "dit: ", "smc: ", "script: ", "inverse: ", "ort: "} {
		s = strings.TrimPrefix(s, p)
	}
	return s
}

// hint is a line that says what to do about an error.
type hint struct {
	error
	hint string
}

func (h *hint) Unwrap() error { return h.error }

// exitCode sorts errors.
func exitCode(err error) int {
	var (
		u *usage
		r *refuse.Error
		n *samplers.NotFinite
		g *guidance.NotFinite
		d *manifest.Different
		w *smc.RewardError
		x *smc.WeightError
		b *bench.NotFinite
		f *shard.Failure
	)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, job.ErrStopped), errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &n), errors.As(err, &g), errors.As(err, &w), errors.As(err, &x), errors.As(err, &b):
		return exitNotFinite
	case errors.As(err, &f) && f.Kind == shard.NotFinite:
		return exitNotFinite
	case errors.As(err, &f) && f.Kind == shard.Refused:
		return exitRefused
	case errors.As(err, &r):
		return exitRefused
	case errors.As(err, &u), errors.As(err, &d):
		return exitUsage
	}
	return exitFailed
}
