//go:build amd64 && !linux && !noasm

package kernels

// amxPermission is known for Linux only.
func amxPermission() bool { return false }
