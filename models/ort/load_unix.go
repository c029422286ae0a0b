//go:build ((linux && !android) || darwin) && (amd64 || arm64) && !noort

package ort

import (
	"runtime"

	"github.com/ebitengine/purego"
)

const supported = true

// libraryNames are the names of the library on this system, the plainest first.
func libraryNames() []string {
	if runtime.GOOS == "darwin" {
		return []string{"libonnxruntime.dylib", "libonnxruntime.1.dylib"}
	}
	return []string{"libonnxruntime.so", "libonnxruntime.so.1"}
}

// entry loads a library and finds its one exported function.
func entry(path string) (uintptr, error) {
	h, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return 0, err
	}
	return purego.Dlsym(h, entryName)
}

// hostPath is a path as the library takes it (ORTCHAR_T).
func hostPath(path string) []byte { return append([]byte(path), 0) }

//go:uintptrescapes
func invoke(fn uintptr, args ...uintptr) uintptr {
	r, _, _ := purego.SyscallN(fn, args...)
	return r
}
