package unet2d

import (
	"fmt"
	"hash/fnv"
	"math"
	"strings"

	"drift/models/diffusers"
)

// Formula is a set of weights that follow from the names of the tensors: a
// network of full size without a download, for benchmarks and tests. Value i
// of a tensor is output i+1 of splitmix64 seeded with the FNV-1a hash of its
// name, as u in [-1, 1) of 24 bits, and
//
//	rank 2 and more   u sqrt(3 / fan_in), fan_in the product of all dimensions but the first
//	*.weight          1 + 0.1 u
//	else              0.05 u
type Formula struct{ tensors []diffusers.Tensor }

// NewFormula gives the formula weights of a configuration.
func NewFormula(cfg diffusers.UNet2DConfig) (*Formula, error) {
	t, err := Tensors(cfg)
	if err != nil {
		return nil, err
	}
	return &Formula{t}, nil
}

// Names implements diffusers.Weights.
func (f *Formula) Names() []string {
	names := make([]string, len(f.tensors))
	for i, t := range f.tensors {
		names[i] = t.Name
	}
	return names
}

// Shape implements diffusers.Weights.
func (f *Formula) Shape(name string) ([]int, bool) {
	for _, t := range f.tensors {
		if t.Name == name {
			return t.Shape, true
		}
	}
	return nil, false
}

// Float32 implements diffusers.Weights.
func (f *Formula) Float32(name string) ([]float32, error) {
	shape, ok := f.Shape(name)
	if !ok {
		return nil, fmt.Errorf("unet2d: no formula tensor %q", name)
	}
	v := make([]float32, product(shape))
	scale, shift := 0.05, 0.0
	switch {
	case len(shape) >= 2:
		scale = math.Sqrt(3 / float64(product(shape[1:])))
	case strings.HasSuffix(name, ".weight"):
		scale, shift = 0.1, 1
	}
	formulaValues(v, name, scale, shift)
	return v, nil
}

// formulaValues fills v with shift + scale*u.
func formulaValues(v []float32, name string, scale, shift float64) {
	h := fnv.New64a()
	h.Write([]byte(name))
	state := h.Sum64()
	for i := range v {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		u := float64(z>>40)/(1<<23) - 1
		v[i] = float32(shift + float64(scale*u))
	}
}
