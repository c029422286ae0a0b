//go:build amd64 && !noasm

package kernels

import (
	"syscall"
	"unsafe"
)

// Of arch/x86/include/uapi/asm/prctl.h.
const (
	archGetXCompPerm = 0x1022
	archReqXCompPerm = 0x1023
	xfeatureTileData = 18
)

// amxPermission asks Linux to let this process use tile registers. The answer
// holds for all its threads. Any error means no AMX.
func amxPermission() bool {
	if _, _, e := syscall.RawSyscall(syscall.SYS_ARCH_PRCTL, archReqXCompPerm, xfeatureTileData, 0); e != 0 {
		return false
	}
	var mask uint64
	_, _, e := syscall.RawSyscall(syscall.SYS_ARCH_PRCTL, archGetXCompPerm, uintptr(unsafe.Pointer(&mask)), 0)
	return e == 0 && mask>>xfeatureTileData&1 == 1
}
