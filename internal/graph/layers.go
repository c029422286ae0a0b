package graph

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"drift/internal/kernels"
)

// Weights gives tensors by name.
type Weights interface {
	Shape(name string) ([]int, bool)
	// Float32 reads one tensor, row-major. The slice belongs to the caller.
	Float32(name string) ([]float32, error)
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
	dtype kernels.DType
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

func (s *Layers) kind(opts []Option) kernels.DType {
	if len(opts) > 0 {
		return kernels.F32
	}
	return s.dtype
}

// Conv is the convolution whose weights stand under name.
func (s *Layers) Conv(name string, spec kernels.ConvSpec, opts ...Option) *Layer {
	if l, ok := s.layers[name]; ok {
		return l
	}
	l := &Layer{name: name, parts: []string{name}, spec: spec, dtype: s.kind(opts)}
	s.layers[name] = l
	s.load(l, func(w, b []float32) { l.conv = kernels.NewConv(s.pool.Tier(), l.dtype, spec, w, b) })
	return l
}

// Linear is the linear layer whose weights stand under the names parts, side
// by side, or under name itself without parts. out is the width of all.
func (s *Layers) Linear(name string, in, out int, parts ...string) *Layer {
	return s.linear(name, in, out, s.dtype, parts)
}

// ExactLinear is a Linear that stays in float32.
func (s *Layers) ExactLinear(name string, in, out int, parts ...string) *Layer {
	return s.linear(name, in, out, kernels.F32, parts)
}

func (s *Layers) linear(name string, in, out int, dtype kernels.DType, parts []string) *Layer {
	if l, ok := s.layers[name]; ok {
		return l
	}
	if len(parts) == 0 {
		parts = []string{name}
	}
	l := &Layer{
		name: name, parts: parts, token: true, dtype: dtype,
		spec: kernels.ConvSpec{Cin: in, Cout: out, KH: 1, KW: 1, Stride: 1},
	}
	s.layers[name] = l
	s.load(l, func(w, b []float32) { l.lin = kernels.NewLinear(s.pool.Tier(), l.dtype, in, out, w, b) })
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

// load reads a layer and packs it beside others, at most one per worker.
func (s *Layers) load(l *Layer, pack func(w, b []float32)) {
	s.slots <- struct{}{} // before reading: no more tensors in memory than workers
	s.work.Go(func() {
		defer func() { <-s.slots }()
		w, err := s.join(l, ".weight", false)
		if err != nil {
			s.fail(err)
			return
		}
		b, err := s.join(l, ".bias", true)
		if err != nil {
			s.fail(err)
			return
		}
		sp := l.spec
		if len(w) != sp.Cout*sp.Cin*sp.KH*sp.KW || (b != nil && len(b) != sp.Cout) {
			s.fail(fmt.Errorf("%s has %d weights and %d biases, a layer from %d to %d channels with a %dx%d kernel is asked for",
				l.name, len(w), len(b), sp.Cin, sp.Cout, sp.KH, sp.KW))
			return
		}
		pack(w, b)
	})
}

// loadGrad packs what the way back of a layer needs.
func (s *Layers) loadGrad(l *Layer) {
	if l.asked {
		return
	}
	l.asked = true
	s.load(l, func(w, _ []float32) {
		if l.token {
			l.linGrad = kernels.NewLinearGrad(s.pool.Tier(), l.dtype, l.spec.Cin, l.spec.Cout, w)
		} else {
			l.convGrad = kernels.NewConvGrad(s.pool.Tier(), l.dtype, l.spec, w)
		}
	})
}

// Wait waits for the layers that were asked for, and says what failed.
func (s *Layers) Wait() error {
	s.work.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.errs...)
}
