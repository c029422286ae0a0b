//go:build windows && (amd64 || arm64) && !noort

package ort

import (
	"path/filepath"
	"unicode/utf16"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/windows"
)

const supported = true

// libraryNames are the names of the library on this system. Windows carries a very old one of the same name in its system
// folder, which the version check of Load refuses.
func libraryNames() []string { return []string{"onnxruntime.dll"} }

// entry loads a library and finds its one exported function.
func entry(path string) (uintptr, error) {
	flags := uintptr(windows.LOAD_LIBRARY_SEARCH_DEFAULT_DIRS)
	if filepath.IsAbs(path) {
		flags |= windows.LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR // what it needs lies beside it
	}
	h, err := windows.LoadLibraryEx(path, 0, flags)
	if err != nil {
		return 0, err
	}
	return windows.GetProcAddress(h, entryName)
}

// hostPath is a path as the library takes it (ORTCHAR_T, UTF-16 here).
func hostPath(path string) []byte {
	var out []byte
	for _, u := range append(utf16.Encode([]rune(path)), 0) {
		out = append(out, byte(u), byte(u>>8))
	}
	return out
}

//go:uintptrescapes
func invoke(fn uintptr, args ...uintptr) uintptr {
	r, _, _ := purego.SyscallN(fn, args...)
	return r
}
