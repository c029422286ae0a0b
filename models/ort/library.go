// Package ort runs networks in ONNX files by ONNX Runtime, a C library that is loaded while the program runs: no C
// compiler is needed to build, and a program without the library works but for these files.
//
// File reads a file's inputs and outputs without the library; Library opens Sessions; Net is what a file and the
// description beside it (Sidecar) make together, and Denoiser answers a sampler's questions with it. ONNX Runtime computes
// no gradients, so a Denoiser is no models.VJP.
package ort

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	entryName = "OrtGetApiBase"
	// apiVersion is the version of the function table that is asked for: all that is used has been there since 1.17.
	apiVersion    = 17
	oldestLibrary = "1.17"
)

// Release is the version of the library that drift is tested with.
const Release = "1.30.0"

// Library is a loaded ONNX Runtime. It stays loaded until the program ends; Sessions of it are safe to use from several
// goroutines.
type Library struct {
	path, version string
	table         *[1 << 10]uintptr // only the places that table.go names exist
	env, memory   unsafe.Pointer
	allocator     unsafe.Pointer
	live          atomic.Int64
}

// MissingError says that the library was not found or cannot be used, and how to get it.
type MissingError struct {
	Tried  []string // places that were looked at
	Reason string   // of the last one, "" where there was nothing
}

func (e *MissingError) Error() string {
	if !supported {
		return "ort: ONNX files cannot run in this build: ONNX Runtime is loaded on Linux, macOS and Windows on amd64 and arm64, and not with the tag noort"
	}
	s := "ort: ONNX Runtime's library is not found"
	if e.Reason != "" {
		s = "ort: ONNX Runtime's library cannot be used: " + e.Reason
	}
	return s + "; " + HowTo()
}

// HowTo is a line that says how to get the library.
func HowTo() string {
	folder := map[string]string{"linux": "linux", "darwin": "darwin", "windows": "win32"}[runtime.GOOS]
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	where := ""
	if folder != "" && arch != "" {
		where = fmt.Sprintf(" (in package/bin/napi-v6/%s/%s)", folder, arch)
	}
	return "get it with `npm pack onnxruntime-node@" + Release + "`" + where + " or from Python's package onnxruntime (its folder capi), and name it by --ort-lib or DRIFT_ORT_LIB, or put it beside this program"
}

// Places are where to look for the library.
type Places struct {
	// Named is a file, or a folder that holds it; where it is set nothing else is tried.
	Named string
	// Beside is a folder to try first, that of the program; the system's own path comes after it.
	Beside string
}

// candidates lists what to load, in order.
func (p Places) candidates() ([]string, error) {
	if p.Named != "" {
		info, err := os.Stat(p.Named)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			abs, err := filepath.Abs(p.Named)
			return []string{abs}, err
		}
		found := inFolder(p.Named)
		if len(found) == 0 {
			return nil, &MissingError{Tried: []string{p.Named}, Reason: fmt.Sprintf("%s holds no %s", p.Named, strings.Join(libraryNames(), " or "))}
		}
		return found[:1], nil
	}
	var out []string
	if p.Beside != "" {
		out = inFolder(p.Beside)
	}
	return append(out, libraryNames()...), nil
}

// inFolder lists the files of a folder that are the library by their names, versioned ones last.
func inFolder(dir string) []string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range libraryNames() {
		found, _ := filepath.Glob(filepath.Join(globQuote(dir), n+"*")) // the pattern is sound
		if runtime.GOOS == "darwin" {
			more, _ := filepath.Glob(filepath.Join(globQuote(dir), strings.TrimSuffix(n, "dylib")+"*.dylib"))
			found = append(found, more...)
		}
		for _, f := range found {
			if info, err := os.Stat(f); err == nil && info.Mode().IsRegular() && !slices.Contains(out, f) {
				out = append(out, f)
			}
		}
	}
	return out
}

func globQuote(s string) string {
	return strings.NewReplacer(`*`, `[*]`, `?`, `[?]`, `[`, `[[]`).Replace(s)
}

var (
	loadMu sync.Mutex
	loaded = map[string]*Library{} // by path; a library cannot be loaded twice
)

// Load finds and loads the library. Calls with the same places give the same Library. Without one the error is a
// *MissingError.
func Load(p Places) (*Library, error) {
	if !supported {
		return nil, &MissingError{}
	}
	list, err := p.candidates()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &MissingError{Tried: []string{p.Named}, Reason: fmt.Sprintf("there is no file %s", p.Named)}
		}
		return nil, err
	}
	loadMu.Lock()
	defer loadMu.Unlock()
	missing := &MissingError{Tried: list}
	for _, path := range list {
		if l := loaded[path]; l != nil {
			return l, nil
		}
		l, err := load(path)
		if err == nil {
			loaded[path] = l
			return l, nil
		}
		// A bare name that the system does not know is no news; a file that is there and does not work is.
		if filepath.IsAbs(path) {
			missing.Reason = err.Error()
		} else if missing.Reason == "" && !notFound(err) {
			missing.Reason = err.Error()
		}
	}
	return nil, missing
}

// notFound tells whether the system's loader knows no library of a name.
func notFound(err error) bool {
	s := err.Error()
	return strings.Contains(s, "No such file") || strings.Contains(s, "no such file") || strings.Contains(s, "not found") || strings.Contains(s, "could not be found")
}

// load loads one file.
func load(path string) (*Library, error) {
	fn, err := entry(path)
	if err != nil {
		return nil, errors.New(strings.TrimSpace(err.Error()))
	}
	// struct OrtApiBase { const OrtApi* (*GetApi)(uint32_t); const char* (*GetVersionString)(void); }
	base := (*[2]uintptr)(pointer(invoke(fn)))
	if base == nil {
		return nil, fmt.Errorf("%s has no function table", path)
	}
	l := &Library{path: path, version: goString(pointer(invoke(base[1])))}
	l.table = (*[1 << 10]uintptr)(pointer(invoke(base[0], apiVersion)))
	if l.table == nil {
		return nil, fmt.Errorf("%s is version %.20q, %s or later is needed", path, l.version, oldestLibrary)
	}
	const fatal = 4 // the library says nothing by itself; what goes wrong comes back as an error
	id := append([]byte("drift"), 0)
	if err := l.call(apiCreateEnv, fatal, uintptr(unsafe.Pointer(&id[0])), uintptr(unsafe.Pointer(&l.env))); err != nil {
		return nil, err
	}
	if err := l.call(apiDisableTelemetryEvents, uintptr(l.env)); err != nil {
		return nil, err
	}
	const arena, cpu = 1, 0 // OrtArenaAllocator, OrtMemTypeDefault
	if err := l.call(apiCreateCpuMemoryInfo, arena, cpu, uintptr(unsafe.Pointer(&l.memory))); err != nil {
		return nil, err
	}
	return l, l.call(apiGetAllocatorWithDefaultOptions, uintptr(unsafe.Pointer(&l.allocator)))
}

// Path is the file that was loaded, a bare name where the system found it.
func (l *Library) Path() string { return l.path }

// Version is what the library says of itself, such as 1.30.0.
func (l *Library) Version() string { return l.version }

// Live counts what was made in the library and not given back yet: sessions, values, options.
func (l *Library) Live() int { return int(l.live.Load()) }

// Error is what the library says.
type Error struct {
	Code    int // OrtErrorCode
	Message string
}

func (e *Error) Error() string { return "onnxruntime: " + e.Message }

// call calls a function that answers with an OrtStatus.
//
//go:uintptrescapes
func (l *Library) call(fn int, args ...uintptr) error {
	status := invoke(l.table[fn], args...)
	if status == 0 {
		return nil
	}
	e := &Error{Code: int(int32(invoke(l.table[apiGetErrorCode], status))), Message: goString(pointer(invoke(l.table[apiGetErrorMessage], status)))}
	invoke(l.table[apiReleaseStatus], status)
	return e
}

// make is call of a function that makes something, which it writes to the place that is its last argument.
//
//go:uintptrescapes
func (l *Library) make(fn int, args ...uintptr) error {
	err := l.call(fn, args...)
	if err == nil {
		l.live.Add(1)
	}
	return err
}

// release gives back what make made.
func (l *Library) release(fn int, p unsafe.Pointer) {
	if p != nil {
		invoke(l.table[fn], uintptr(p))
		l.live.Add(-1)
	}
}

// pointer is the address that a C function returned. What it points to is not Go's, so the garbage collector has no part
// in it.
func pointer(address uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }

// goString copies a C string of at most a megabyte.
func goString(p unsafe.Pointer) string {
	if p == nil {
		return ""
	}
	n := 0
	for n < 1<<20 && *(*byte)(unsafe.Add(p, n)) != 0 {
		n++
	}
	return strings.ToValidUTF8(string(unsafe.Slice((*byte)(p), n)), "?")
}
