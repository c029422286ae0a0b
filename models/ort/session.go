package ort

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"drift/internal/refuse"
)

// Options says how a session computes.
type Options struct {
	Threads int // workers of one call, 0 = GOMAXPROCS
	// NoArena gives memory back after every call in place of keeping it for the next, at a cost in time.
	NoArena bool
}

// Session is an opened network. Run may be called from several goroutines.
type Session struct {
	File *File // what the file says

	lib    *Library
	path   string
	handle unsafe.Pointer
	names  map[string][]byte // with the final zero that C wants
	closed bool
	mu     sync.RWMutex // Close waits for Run
}

// Port is an input or output of a graph.
type Port struct {
	Name string
	Type Type
	// Dims is the shape; a size that is free is -1, with its name (which may be empty) in Free. nil is no shape at all.
	Dims  []int
	Free  []string
	Ranks bool // Dims says something: a scalar has none of them
}

// String is the port as people read it: name type [batch, 3, 32, 32].
func (p Port) String() string {
	s := p.Name + " " + p.Type.String()
	if !p.Ranks {
		return s + " of any shape"
	}
	var dims []string
	for i, d := range p.Dims {
		switch {
		case d >= 0:
			dims = append(dims, fmt.Sprint(d))
		case p.Free[i] != "":
			dims = append(dims, p.Free[i])
		default:
			dims = append(dims, "?")
		}
	}
	return s + " [" + strings.Join(dims, ", ") + "]"
}

// fits tells whether a shape can stand at the port, and what is wrong otherwise.
func (p Port) fits(shape []int) error {
	if !p.Ranks {
		return nil
	}
	if len(shape) != len(p.Dims) {
		return fmt.Errorf("%s: a tensor of shape %v for %s", p.Name, shape, p)
	}
	for i, d := range p.Dims {
		if d >= 0 && shape[i] != d {
			return fmt.Errorf("%s: a tensor of shape %v for %s", p.Name, shape, p)
		}
	}
	return nil
}

// Open reads an ONNX file and prepares it to run. What is wrong with the file is a *refuse.Error.
func (l *Library) Open(ctx context.Context, path string, o Options) (*Session, error) {
	f, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := f.CheckExternal(); err != nil {
		return nil, err
	}
	s := &Session{File: f, lib: l, path: path, names: map[string][]byte{}}
	for _, p := range slices.Concat(f.Inputs, f.Outputs) {
		s.names[p.Name] = append([]byte(p.Name), 0)
	}
	var opt unsafe.Pointer
	if err := l.make(apiCreateSessionOptions, uintptr(unsafe.Pointer(&opt))); err != nil {
		return nil, err
	}
	defer l.release(apiReleaseSessionOptions, opt)
	threads := o.Threads
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	const fatal, sequential, all = 4, 0, 99
	for _, c := range [][2]int{
		{apiSetIntraOpNumThreads, threads}, {apiSetInterOpNumThreads, 1}, {apiSetSessionExecutionMode, sequential},
		{apiSetSessionGraphOptimizationLevel, all}, {apiSetSessionLogSeverityLevel, fatal},
	} {
		if err := l.call(c[0], uintptr(opt), uintptr(c[1])); err != nil {
			return nil, err
		}
	}
	arena := apiEnableCpuMemArena
	if o.NoArena {
		arena = apiDisableCpuMemArena
	}
	if err := l.call(arena, uintptr(opt)); err != nil {
		return nil, err
	}
	// Workers that wait do not turn: the solver between two calls wants the cores.
	key, no := append([]byte("session.intra_op.allow_spinning"), 0), append([]byte("0"), 0)
	if err := l.call(apiAddSessionConfigEntry, uintptr(opt), uintptr(unsafe.Pointer(&key[0])), uintptr(unsafe.Pointer(&no[0]))); err != nil {
		return nil, err
	}
	host := hostPath(path)
	if err := l.make(apiCreateSession, uintptr(l.env), uintptr(unsafe.Pointer(&host[0])), uintptr(opt), uintptr(unsafe.Pointer(&s.handle))); err != nil {
		return nil, refuse.Errorf(path, "ONNX Runtime %s refuses it: %s", l.version, brief(err))
	}
	if err := s.check(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// brief is the library's message without its own repetitions.
func brief(err error) string {
	s := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "onnxruntime: ")), " ")
	if len(s) > 400 {
		s = s[:400] + " ..."
	}
	return s
}

// check compares the names that the library sees with those that were read, so that a place in the function table that is
// not what it should be ends here.
func (s *Session) check() error {
	for _, side := range []struct {
		count, name int
		ports       []Port
	}{{apiSessionGetInputCount, apiSessionGetInputName, s.File.Inputs}, {apiSessionGetOutputCount, apiSessionGetOutputName, s.File.Outputs}} {
		var n uintptr
		if err := s.lib.call(side.count, uintptr(s.handle), uintptr(unsafe.Pointer(&n))); err != nil {
			return err
		}
		if int(n) != len(side.ports) {
			return refuse.Errorf(s.path, "ONNX Runtime sees %d inputs or outputs where the file has %d", n, len(side.ports))
		}
		for i := range side.ports {
			var p unsafe.Pointer
			if err := s.lib.call(side.name, uintptr(s.handle), uintptr(i), uintptr(s.lib.allocator), uintptr(unsafe.Pointer(&p))); err != nil {
				return err
			}
			name := goString(p)
			if err := s.lib.call(apiAllocatorFree, uintptr(s.lib.allocator), uintptr(p)); err != nil {
				return err
			}
			if name != side.ports[i].Name {
				return refuse.Errorf(s.path, "ONNX Runtime calls %q what the file calls %q", name, side.ports[i].Name)
			}
		}
	}
	return nil
}

// Close gives the session's memory back, once no Run needs it.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.lib.release(apiReleaseSession, s.handle)
	}
}

// Run evaluates the graph. in has a tensor for every input, want names the outputs to compute. Names, types and shapes are
// looked at before the library sees them. A context that ends stops the computation between two nodes of the graph.
func (s *Session) Run(ctx context.Context, in map[string]Tensor, want ...string) (out []Tensor, err error) {
	if err := s.checkRun(in, want); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, fmt.Errorf("ort: %s is closed", s.path)
	}
	l := s.lib
	var pin runtime.Pinner
	defer pin.Unpin()
	inNames, outNames := make([]*byte, 0, len(in)), make([]*byte, 0, len(want))
	inValues, outValues := make([]unsafe.Pointer, len(in)), make([]unsafe.Pointer, len(want))
	defer func() {
		for _, v := range slices.Concat(inValues, outValues) {
			l.release(apiReleaseValue, v)
		}
	}()
	for _, p := range s.File.Inputs {
		x := in[p.Name]
		name := &s.names[p.Name][0]
		pin.Pin(name)
		dims := make([]int64, len(x.Shape)+1) // one more, so that a scalar's have an address
		for i, d := range x.Shape {
			dims[i] = int64(d)
		}
		data := x.bytes
		if len(data) == 0 {
			data = make([]byte, 8)
		}
		pin.Pin(&data[0]) // the value refers to it until it is released
		if err := l.make(apiCreateTensorWithDataAsOrtValue, uintptr(l.memory), uintptr(unsafe.Pointer(&data[0])), uintptr(len(x.bytes)),
			uintptr(unsafe.Pointer(&dims[0])), uintptr(len(x.Shape)), uintptr(x.Type), uintptr(unsafe.Pointer(&inValues[len(inNames)]))); err != nil {
			return nil, fmt.Errorf("ort: %s: input %s: %w", s.path, p.Name, err)
		}
		inNames = append(inNames, name)
	}
	for _, n := range want {
		name := &s.names[n][0]
		pin.Pin(name)
		outNames = append(outNames, name)
	}
	var opt unsafe.Pointer
	if err := l.make(apiCreateRunOptions, uintptr(unsafe.Pointer(&opt))); err != nil {
		return nil, err
	}
	defer l.release(apiReleaseRunOptions, opt)
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = l.call(apiRunOptionsSetTerminate, uintptr(opt)) // it cannot fail
		close(done)
	})
	err = l.call(apiRun, uintptr(s.handle), uintptr(opt), uintptr(unsafe.Pointer(unsafe.SliceData(inNames))), uintptr(unsafe.Pointer(unsafe.SliceData(inValues))),
		uintptr(len(inNames)), uintptr(unsafe.Pointer(unsafe.SliceData(outNames))), uintptr(len(outNames)), uintptr(unsafe.Pointer(unsafe.SliceData(outValues))))
	if !stop() {
		<-done // it looks at opt
	}
	for _, v := range outValues {
		if v != nil {
			l.live.Add(1) // made by the call, given back above
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("ort: running %s: %s", s.path, brief(err))
	}
	for i, v := range outValues {
		x, err := s.read(v)
		if err != nil {
			return nil, fmt.Errorf("ort: %s: output %s: %w", s.path, want[i], err)
		}
		out = append(out, x)
	}
	return out, nil
}

// checkRun compares tensors with the ports.
func (s *Session) checkRun(in map[string]Tensor, want []string) error {
	free := map[string]int{}
	for _, p := range s.File.Inputs {
		x, ok := in[p.Name]
		switch {
		case !ok:
			return fmt.Errorf("ort: %s: no value for its input %s", s.path, p)
		case x.Type != p.Type:
			return fmt.Errorf("ort: %s: input %s: a tensor of %v for %v", s.path, p.Name, x.Type, p.Type)
		case len(x.bytes) != x.Type.size()*elements(x.Shape):
			return fmt.Errorf("ort: %s: input %s: %d bytes for shape %v", s.path, p.Name, len(x.bytes), x.Shape)
		}
		if err := p.fits(x.Shape); err != nil {
			return fmt.Errorf("ort: %s: input %w", s.path, err)
		}
		for i, name := range p.Free {
			if p.Dims[i] >= 0 || name == "" {
				continue
			}
			if n, ok := free[name]; ok && n != x.Shape[i] {
				return fmt.Errorf("ort: %s: input %s: a tensor of shape %v makes %s %d, it is %d in another input", s.path, p, x.Shape, name, x.Shape[i], n)
			}
			free[name] = x.Shape[i]
		}
	}
	for name := range in {
		if !slices.ContainsFunc(s.File.Inputs, func(p Port) bool { return p.Name == name }) {
			return fmt.Errorf("ort: %s has no input %q; it has %s", s.path, name, portList(s.File.Inputs))
		}
	}
	for _, name := range want {
		if _, ok := s.names[name]; !ok || !slices.ContainsFunc(s.File.Outputs, func(p Port) bool { return p.Name == name }) {
			return fmt.Errorf("ort: %s has no output %q; it has %s", s.path, name, portList(s.File.Outputs))
		}
	}
	if len(want) == 0 {
		return fmt.Errorf("ort: %s: no output is wanted", s.path)
	}
	return nil
}

func portList(ports []Port) string {
	var out []string
	for _, p := range ports {
		out = append(out, p.String())
	}
	return strings.Join(out, "; ")
}

// read copies a value of the library.
func (s *Session) read(v unsafe.Pointer) (x Tensor, err error) {
	l := s.lib
	var info unsafe.Pointer
	var tensor int32
	if err := l.call(apiIsTensor, uintptr(v), uintptr(unsafe.Pointer(&tensor))); err != nil {
		return x, err
	}
	if tensor == 0 {
		return x, fmt.Errorf("not a tensor")
	}
	if err := l.make(apiGetTensorTypeAndShape, uintptr(v), uintptr(unsafe.Pointer(&info))); err != nil {
		return x, err
	}
	defer l.release(apiReleaseTensorTypeAndShapeInfo, info)
	var kind int32
	var rank uintptr
	if err := l.call(apiGetTensorElementType, uintptr(info), uintptr(unsafe.Pointer(&kind))); err != nil {
		return x, err
	}
	if err := l.call(apiGetDimensionsCount, uintptr(info), uintptr(unsafe.Pointer(&rank))); err != nil {
		return x, err
	}
	if rank > 64 {
		return x, fmt.Errorf("%d dimensions", rank)
	}
	dims := make([]int64, rank+1)
	if err := l.call(apiGetDimensions, uintptr(info), uintptr(unsafe.Pointer(&dims[0])), rank); err != nil {
		return x, err
	}
	x.Type = Type(kind)
	for _, d := range dims[:rank] {
		x.Shape = append(x.Shape, int(d))
	}
	if x.Type.size() == 0 {
		return x, fmt.Errorf("is of %v, which is not supported", x.Type)
	}
	n := elements(x.Shape) * x.Type.size()
	x.bytes = make([]byte, n)
	if n == 0 {
		return x, nil
	}
	var data unsafe.Pointer
	if err := l.call(apiGetTensorMutableData, uintptr(v), uintptr(unsafe.Pointer(&data))); err != nil {
		return x, err
	}
	copy(x.bytes, unsafe.Slice((*byte)(data), n))
	return x, nil
}

// view reads bytes as elements of another type. Slices of a make of bytes are aligned for all of them.
func view[T any](b []byte) []T {
	var t T
	if len(b) == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&b[0])), len(b)/int(unsafe.Sizeof(t)))
}

// Example makes up inputs: free sizes are batch where they come first, then those of shape (of one row) where the number of
// dimensions fits, then 8.
func (s *Session) Example(batch int, shape []int) (map[string]Tensor, error) {
	out := map[string]Tensor{}
	for _, p := range s.File.Inputs {
		if !p.Ranks {
			return nil, fmt.Errorf("ort: the input %s has no shape", p)
		}
		dims := slices.Clone(p.Dims)
		for i, d := range dims {
			switch {
			case i == 0 && d >= 0 && d != batch:
				return nil, fmt.Errorf("ort: the input %s takes %d rows at a time", p, d)
			case i == 0:
				dims[i] = batch
			case d < 0 && len(shape) == len(dims)-1:
				dims[i] = shape[i-1]
			case d < 0:
				dims[i] = 8
			}
		}
		values := make([]float64, elements(dims))
		for i := range values {
			if values[i] = float64(i%17)/8 - 1; len(dims) < 2 || p.Type.whole() {
				values[i] = 1
			}
		}
		var err error
		if out[p.Name], err = NewTensor(p.Type, dims, values); err != nil {
			return nil, err
		}
	}
	return out, nil
}
