package graph

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"unsafe"

	"drift/internal/kernels"
	"drift/internal/safetensors"
)

// Weights gives tensors by name.
type Weights interface {
	Shape(name string) ([]int, bool)
	// Float32 reads one tensor, row-major. The slice belongs to the caller.
	Float32(name string) ([]float32, error)
}

// Stored is what Weights may have besides: a tensor as it lies in a file,
// row-major and little-endian. Where they have it, layers are packed a panel at
// a time, and values of 16 bits stay in 16 bits. nil stands for a tensor that
// has to be read as a whole.
type Stored interface {
	Stored(name string) (io.ReaderAt, safetensors.DType)
}

// Layers are the packed layers of a network by name. Asking for one for the
// first time begins to read and pack it on another goroutine; Wait waits for
// all that was asked for. A Layers is for one goroutine.
type Layers struct {
	pool    *kernels.Pool
	dtype   kernels.DType
	weights Weights

	layers map[string]*Layer
	norms  map[string]*Norm
	plain  map[string][]float32

	slots chan struct{}
	work  sync.WaitGroup
	mu    sync.Mutex
	errs  []error
}

// NewLayers makes an empty store over weights. dtype is the type of the
// layers that do not ask to stay exact.
func NewLayers(pool *kernels.Pool, dtype kernels.DType, w Weights) *Layers {
	return &Layers{
		pool: pool, dtype: dtype, weights: w,
		layers: map[string]*Layer{}, norms: map[string]*Norm{}, plain: map[string][]float32{},
		slots: make(chan struct{}, pool.Workers()),
	}
}

// Layer is a convolution or a linear layer with packed weights. Several
// tensors stand for layers that read the same input and run as one, their
// outputs side by side (to_q, to_k, to_v).
type Layer struct {
	name  string
	parts []string // names of the tensors without .weight and .bias
	spec  kernels.ConvSpec
	exact bool // stays in float32 whatever the network's data type
	token bool // a linear layer: weights are (out, in)

	conv     *kernels.Conv
	convGrad *kernels.ConvGrad
	lin      *kernels.Linear
	linGrad  *kernels.Linear
	asked    bool // a gradient is packed or being packed
}

// Bytes is the size of the packed weights, gradients included.
func (s *Layers) Bytes() int {
	n := 0
	for _, l := range s.layers {
		if l.conv != nil {
			n += l.conv.Bytes()
		}
		if l.convGrad != nil {
			n += l.convGrad.Bytes()
		}
		if l.lin != nil {
			n += l.lin.Bytes()
		}
		if l.linGrad != nil {
			n += l.linGrad.Bytes()
		}
	}
	return n
}

// Out is the number of output channels.
func (l *Layer) Out() int { return l.spec.Cout }

// Norm is the gamma and beta of a norm; nil where it has none.
type Norm struct {
	name        string
	gamma, beta []float32
}

// Option changes a layer.
type Option uint8

// Exact keeps a layer in float32 whatever the network's data type.
const Exact Option = 1

// Conv is the convolution whose weights stand under name.
func (s *Layers) Conv(name string, spec kernels.ConvSpec, opts ...Option) *Layer {
	if l, ok := s.layers[name]; ok {
		return l
	}
	l := &Layer{name: name, parts: []string{name}, spec: spec, exact: len(opts) > 0}
	s.layers[name] = l
	s.load(l)
	return l
}

// Linear is the linear layer whose weights stand under the names parts, side
// by side, or under name itself without parts. out is the width of all.
func (s *Layers) Linear(name string, in, out int, parts ...string) *Layer {
	return s.linear(name, in, out, false, parts)
}

// ExactLinear is a Linear that stays in float32.
func (s *Layers) ExactLinear(name string, in, out int, parts ...string) *Layer {
	return s.linear(name, in, out, true, parts)
}

func (s *Layers) linear(name string, in, out int, exact bool, parts []string) *Layer {
	if l, ok := s.layers[name]; ok {
		return l
	}
	if len(parts) == 0 {
		parts = []string{name}
	}
	l := &Layer{
		name: name, parts: parts, token: true, exact: exact,
		spec: kernels.ConvSpec{Cin: in, Cout: out, KH: 1, KW: 1, Stride: 1},
	}
	s.layers[name] = l
	s.load(l)
	return l
}

// Norm is the gamma (NAME.weight) and beta (NAME.bias) of a norm, as far as
// the weights have them.
func (s *Layers) Norm(name string) *Norm {
	n, ok := s.norms[name]
	if !ok {
		n = &Norm{name: name, gamma: s.optional(name + ".weight"), beta: s.optional(name + ".bias")}
		s.norms[name] = n
	}
	return n
}

// NoNorm is a norm without parameters, named for the profile.
func NoNorm(name string) *Norm { return &Norm{name: name} }

func (s *Layers) optional(name string) []float32 {
	if _, ok := s.weights.Shape(name); !ok {
		return nil
	}
	return s.Tensor(name)
}

// Has tells whether the weights have a tensor.
func (s *Layers) Has(name string) bool {
	_, ok := s.weights.Shape(name)
	return ok
}

// Tensor is a tensor as it is, row-major.
func (s *Layers) Tensor(name string) []float32 {
	if t, ok := s.plain[name]; ok {
		return t
	}
	t, err := s.read(name)
	if err != nil {
		s.fail(err)
	}
	s.plain[name] = t
	return t
}

func (s *Layers) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

func (s *Layers) read(name string) ([]float32, error) {
	shape, ok := s.weights.Shape(name)
	if !ok {
		return nil, fmt.Errorf("tensor %s is missing", name)
	}
	v, err := s.weights.Float32(name)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	n := 1
	for _, d := range shape {
		n *= d
	}
	if len(v) != n {
		return nil, fmt.Errorf("reading %s: %d values for shape %v", name, len(v), shape)
	}
	return v, nil
}

// join reads the tensors that a layer stands for, one behind the other; all
// or none must be there where none is allowed.
func (s *Layers) join(l *Layer, suffix string, optional bool) ([]float32, error) {
	var all []float32
	for i, p := range l.parts {
		if !s.Has(p+suffix) && optional {
			if i > 0 && all != nil {
				return nil, fmt.Errorf("%s has a bias and %s has none", strings.Join(l.parts[:i], ", "), p)
			}
			continue
		}
		v, err := s.read(p + suffix)
		if err != nil {
			return nil, err
		}
		if len(l.parts) == 1 {
			return v, nil
		}
		all = append(all, v...)
	}
	return all, nil
}

// beside does work on another goroutine, one at a time per worker.
func (s *Layers) beside(work func() error) {
	s.slots <- struct{}{} // before reading: no more tensors in memory than workers
	s.work.Go(func() {
		defer func() { <-s.slots }()
		if err := work(); err != nil {
			s.fail(err)
		}
	})
}

// load reads and packs a layer.
func (s *Layers) load(l *Layer) {
	s.beside(func() error {
		dtype := s.dtypeOf(l)
		b, err := s.join(l, ".bias", true)
		if err != nil {
			return err
		}
		rows, err := s.rows(l, b)
		if err != nil {
			return err
		}
		if l.token {
			l.lin, err = kernels.PackLinear(s.pool.Tier(), dtype, l.spec.Cin, l.spec.Cout, rows, b)
		} else {
			l.conv, err = kernels.PackConv(s.pool.Tier(), dtype, l.spec, rows, b)
		}
		return err
	})
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// stored gives the tensor of a part as it lies in its file.
func (s *Layers) stored(part string) (io.ReaderAt, safetensors.DType) {
	if w, ok := s.weights.(Stored); ok && littleEndian {
		return w.Stored(part + ".weight")
	}
	return nil, ""
}

// dtypeOf gives the data type of a layer: that of the network, and for float32
// the one that keeps the values as they are stored.
func (s *Layers) dtypeOf(l *Layer) kernels.DType {
	if s.dtype != kernels.F32 && !l.exact {
		return s.dtype
	}
	types := map[safetensors.DType]kernels.DType{safetensors.F16: kernels.F32OnF16, safetensors.BF16: kernels.F32OnBF16}
	_, first := s.stored(l.parts[0])
	for _, p := range l.parts[1:] {
		if _, t := s.stored(p); t != first {
			return kernels.F32
		}
	}
	return types[first] // F32 for all others
}

// rows reads the rows of a layer's weight.
func (s *Layers) rows(l *Layer, bias []float32) (kernels.Rows, error) {
	sp := l.spec
	width := sp.Cin * sp.KH * sp.KW
	var parts []kernels.Rows
	var ends []int
	total := 0
	for _, p := range l.parts {
		name := p + ".weight"
		shape, ok := s.weights.Shape(name)
		if !ok {
			return nil, fmt.Errorf("tensor %s is missing", name)
		}
		n := 1
		for _, d := range shape {
			n *= d
		}
		var read kernels.Rows
		if at, dtype := s.stored(p); at != nil {
			read = func(dst []float32, first int) error {
				if err := s.widen(dst, at, dtype, first*width); err != nil {
					return fmt.Errorf("reading %s: %w", name, err)
				}
				return nil
			}
		} else {
			v, err := s.read(name)
			if err != nil {
				return nil, err
			}
			read = func(dst []float32, first int) error {
				copy(dst, v[first*width:])
				return nil
			}
		}
		total += n
		parts, ends = append(parts, read), append(ends, total/width)
		if len(l.parts) > 1 && n%width != 0 {
			total = -1
			break
		}
	}
	if total != sp.Cout*width || bias != nil && len(bias) != sp.Cout {
		return nil, fmt.Errorf("%s has %d weights and %d biases, a layer from %d to %d channels with a %dx%d kernel is asked for",
			l.name, total, len(bias), sp.Cin, sp.Cout, sp.KH, sp.KW)
	}
	return func(dst []float32, first int) error {
		begin := 0
		for i, end := range ends {
			if n := min(end-first, len(dst)/width); n > 0 {
				if err := parts[i](dst[:n*width], first-begin); err != nil {
					return err
				}
				dst, first = dst[n*width:], first+n
			}
			begin = end
		}
		return nil
	}, nil
}

// widen reads values from number first on.
func (s *Layers) widen(dst []float32, at io.ReaderAt, dtype safetensors.DType, first int) error {
	n := len(dst)
	all := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(dst))), 4*n)
	if dtype == safetensors.F32 {
		_, err := at.ReadAt(all, int64(first)*4)
		return err
	}
	// The narrow values lie in the back half and are widened from the front on:
	// what is written never reaches what is still to be read.
	half := all[2*n:]
	if _, err := at.ReadAt(half, int64(first)*2); err != nil {
		return err
	}
	s.pool.Widen(dst, unsafe.Slice((*uint16)(unsafe.Pointer(unsafe.SliceData(half))), n), dtype == safetensors.F16)
	return nil
}

// loadGrad packs what the way back of a layer needs.
func (s *Layers) loadGrad(l *Layer) {
	if l.asked {
		return
	}
	l.asked = true
	s.beside(func() error {
		dtype := s.dtypeOf(l)
		w, err := s.join(l, ".weight", false)
		if err != nil {
			return err
		}
		if l.token {
			l.linGrad = kernels.NewLinearGrad(s.pool.Tier(), dtype, l.spec.Cin, l.spec.Cout, w)
		} else {
			l.convGrad = kernels.NewConvGrad(s.pool.Tier(), dtype, l.spec, w)
		}
		return nil
	})
}

// Wait waits for the layers that were asked for, and says what failed.
func (s *Layers) Wait() error {
	s.work.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.errs...)
}
