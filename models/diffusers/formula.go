package diffusers

import (
	"fmt"
	"hash/fnv"
	"math"
	"strings"
)

// Formula is a set of weights that follow from the names of the tensors: a
// network of full size without a download, for benchmarks and tests. Value i
// of a tensor is output i+1 of splitmix64 seeded with the FNV-1a hash of its
// name, as u in [-1, 1) of 24 bits, and
//
//	rank 2 and more   u sqrt(3 / fan_in), fan_in the product of all dimensions but the first
//	*.weight          1 + 0.1 u
//	else              0.05 u
type Formula struct {
	names  []string
	shapes map[string][]int
}

// NewFormula gives the formula weights of a configuration, or says what is
// wrong with it.
func NewFormula(c Config) (*Formula, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("diffusers: %s: %w", c.ClassName(), err)
	}
	f := &Formula{shapes: map[string][]int{}}
	for _, t := range c.Tensors() {
		f.names = append(f.names, t.Name)
		f.shapes[t.Name] = t.Shape
	}
	return f, nil
}

// Names implements Weights.
func (f *Formula) Names() []string { return f.names }

// Shape implements Weights.
func (f *Formula) Shape(name string) ([]int, bool) {
	s, ok := f.shapes[name]
	return s, ok
}

// Float32 implements Weights.
func (f *Formula) Float32(name string) ([]float32, error) {
	shape, ok := f.shapes[name]
	if !ok {
		return nil, fmt.Errorf("diffusers: no formula tensor %q", name)
	}
	scale, shift := 0.05, 0.0
	switch {
	case len(shape) >= 2:
		scale = math.Sqrt(3 / float64(count(shape[1:])))
	case strings.HasSuffix(name, ".weight"):
		scale, shift = 0.1, 1
	}
	return FormulaValues(name, int(count(shape)), scale, shift), nil
}

// FormulaValues gives n values shift + scale*u of the sequence of a name.
func FormulaValues(name string, n int, scale, shift float64) []float32 {
	h := fnv.New64a()
	h.Write([]byte(name))
	v, state := make([]float32, n), h.Sum64()
	for i := range v {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		v[i] = float32(shift + float64(scale*(float64(z>>40)/(1<<23)-1)))
	}
	return v
}
