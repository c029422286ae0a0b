package dna

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"drift/internal/refuse"
	"drift/internal/safetensors"
)

// Shape is the structure of a network in the reference's layout (class CNNModel; see the package comment). It is read off
// the weights.
type Shape struct {
	Categories int
	Inputs     int // channels of the first convolution: Categories, or twice that for the expanded input; 0 = tokens through an embedding, without time
	Hidden     int
	Stacks     int  // 5 convolutions each
	Classes    int  // classes of the condition or of the classifier's head
	Head       bool // a classifier: the mean over the positions, through two linear layers
}

const kernel = 9

// dilations of the five convolutions; with more stacks each is repeated.
var dilations = []int{1, 1, 4, 16, 64}

func (s Shape) layers() int { return len(dilations) * s.Stacks }

func (s Shape) dilation(layer int) int { return dilations[layer/s.Stacks] }

// conditional tells whether the network takes a class (one more than Classes is "no class").
func (s Shape) conditional() bool { return !s.Head && s.Classes > 0 }

// outputs is the width of the last convolution.
func (s Shape) outputs() int {
	if s.Head {
		return s.Hidden
	}
	return s.Categories
}

// param is a tensor of the layout.
type param struct {
	name  string
	shape []int
	fan   int // inputs of an output, for the start of training; 0 = a table of its own
}

func (s Shape) params() []param {
	h := s.Hidden
	linear := func(name string, out, in int) []param {
		return []param{{name + ".weight", []int{out, in}, in}, {name + ".bias", []int{out}, in}}
	}
	conv := func(name string, out, in, k int) []param {
		return []param{{name + ".weight", []int{out, in, k}, in * k}, {name + ".bias", []int{out}, in * k}}
	}
	var p []param
	if s.Inputs == 0 {
		p = append(p, param{"linear.weight", []int{s.Categories, h}, 0})
	} else {
		p = append(p, conv("linear", h, s.Inputs, kernel)...)
		p = append(p, param{"time_embedder.0.W", []int{h / 2}, 0})
		p = append(p, linear("time_embedder.1", h, h)...)
	}
	if s.conditional() {
		p = append(p, param{"cls_embedder.weight", []int{s.Classes + 1, h}, 0})
	}
	for i := range s.layers() {
		n := strconv.Itoa(i)
		p = append(p, conv("convs."+n, h, h, kernel)...)
		p = append(p, param{"norms." + n + ".weight", []int{h}, 0}, param{"norms." + n + ".bias", []int{h}, 0})
		if s.Inputs > 0 {
			p = append(p, linear("time_layers."+n+".dense", h, h)...)
		} else { // made by the reference, and never used
			p = append(p, optional(linear("time_layers."+n+".dense", h, h))...)
		}
		if s.conditional() {
			p = append(p, linear("cls_layers."+n+".dense", h, h)...)
		}
	}
	p = append(p, conv("final_conv.0", h, h, 1)...)
	p = append(p, conv("final_conv.2", s.outputs(), h, 1)...)
	if s.Head {
		p = append(p, linear("cls_head.0", h, h)...)
		p = append(p, linear("cls_head.2", s.Classes, h)...)
	}
	return p
}

// optional marks tensors that a file may hold and that are not read.
func optional(p []param) []param {
	for i := range p {
		p[i].fan = -1
	}
	return p
}

func (p param) size() int {
	n := 1
	for _, d := range p.shape {
		n *= d
	}
	return n
}

// Weights are a network's tensors by the reference's names.
type Weights map[string][]float32

// NewWeights draws the start of a training, as torch starts these layers: uniform in +-1/sqrt(fan-in), embeddings N(0, 1),
// norms 1 and 0. The frequencies of the time are N(0, scale^2); the reference has 30.
func NewWeights(s Shape, seed uint64, scale float64) Weights {
	w := Weights{}
	for i, p := range s.params() {
		if p.fan < 0 {
			continue
		}
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		v := make([]float32, p.size())
		for j := range v {
			switch {
			case p.fan > 0:
				v[j] = float32((2*r.Float64() - 1) / math.Sqrt(float64(p.fan)))
			case p.name == "time_embedder.0.W":
				v[j] = float32(scale * r.NormFloat64())
			case strings.HasPrefix(p.name, "norms."):
				if strings.HasSuffix(p.name, "weight") {
					v[j] = 1
				}
			default:
				v[j] = float32(r.NormFloat64())
			}
		}
		w[p.name] = v
	}
	return w
}

// Read reads the weights of a network in the reference's layout: a safetensors file, the names with or without "model." in
// front (as a Lightning checkpoint has them). It refuses tensors that are missing, too many or of other shapes.
func Read(f *safetensors.Reader) (Shape, Weights, error) {
	fail := func(format string, a ...any) (Shape, Weights, error) {
		return Shape{}, nil, refuse.Errorf(f.Path(), "not the layout of the DNA network: "+format, a...)
	}
	prefix := ""
	if _, ok := f.Tensor("model.linear.weight"); ok {
		prefix = "model."
	}
	shape := func(name string) []int {
		t, ok := f.Tensor(prefix + name)
		if !ok {
			return nil
		}
		return t.Shape
	}
	first, last := shape("linear.weight"), shape("final_conv.2.weight")
	if len(last) != 3 || (len(first) != 2 && len(first) != 3) {
		return fail("there is no linear.weight or no final_conv.2.weight")
	}
	for _, d := range append(slices.Clone(first), last...) {
		if d < 1 || d > 1<<14 {
			return fail("a dimension of %d", d)
		}
	}
	s := Shape{Hidden: last[1], Head: shape("cls_head.2.weight") != nil}
	n := 0
	for n <= 1<<10 && shape("convs."+strconv.Itoa(n)+".weight") != nil {
		n++
	}
	if n == 0 || n%len(dilations) != 0 || n > 1<<10 || s.Hidden%2 != 0 {
		return fail("%d convolutions of %d channels", n, s.Hidden)
	}
	s.Stacks = n / len(dilations)
	s.Categories = last[0]
	if len(first) == 3 {
		s.Inputs = first[1]
	}
	if s.Head {
		// The head hides the alphabet; four letters, or what the embedding has.
		s.Categories = len(Letters)
		if len(first) == 2 {
			s.Categories = first[0]
		}
		if h := shape("cls_head.2.weight"); len(h) == 2 && h[0] >= 1 && h[0] <= 1<<14 {
			s.Classes = h[0]
		} else {
			return fail("cls_head.2.weight has shape %v", h)
		}
	} else if e := shape("cls_embedder.weight"); e != nil {
		if len(e) != 2 || e[0] < 2 || e[0] > 1<<14 {
			return fail("cls_embedder.weight has shape %v", e)
		}
		s.Classes = e[0] - 1
	}
	if s.Inputs != 0 && s.Inputs != s.Categories && s.Inputs != 2*s.Categories {
		return fail("%d input channels for %d categories", s.Inputs, s.Categories)
	}
	w, known := Weights{}, map[string]bool{}
	for _, p := range s.params() {
		known[prefix+p.name] = true
		t, ok := f.Tensor(prefix + p.name)
		if !ok && p.fan < 0 {
			continue
		}
		if !ok {
			return fail("%s is missing", p.name)
		}
		if !slices.Equal(t.Shape, p.shape) {
			return fail("%s has shape %v, want %v", p.name, t.Shape, p.shape)
		}
		if p.fan < 0 {
			continue
		}
		v, err := f.Float32(prefix + p.name)
		if err != nil {
			return Shape{}, nil, err
		}
		for i, x := range v {
			if x-x != 0 {
				return fail("%s is not finite at element %d", p.name, i)
			}
		}
		w[p.name] = v
	}
	for _, t := range f.Tensors() {
		if strings.HasPrefix(t.Name, prefix) && !known[t.Name] {
			return fail("unknown tensor %s", t.Name)
		}
	}
	return s, w, nil
}

// Write stores the weights in 16 bits (float16), with the metadata of a model.
func Write(path string, s Shape, w Weights, metadata map[string]string) error {
	var list []safetensors.Tensor
	for _, p := range s.params() {
		if p.fan < 0 {
			continue
		}
		if len(w[p.name]) != p.size() {
			return fmt.Errorf("dna: %s has %d values, want %d", p.name, len(w[p.name]), p.size())
		}
		list = append(list, safetensors.Tensor{Name: p.name, DType: safetensors.F16, Shape: p.shape})
	}
	safetensors.Sort(list)
	f, err := safetensors.Create(path, metadata, list)
	if err != nil {
		return err
	}
	for _, t := range list {
		if err := f.Float32(w[t.Name]); err != nil {
			return errors.Join(err, f.Discard())
		}
	}
	return f.Commit()
}
