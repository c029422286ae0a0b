package dit

import (
	"fmt"
	"hash/fnv"
	"math"
	"strings"

	"drift/models/diffusers"
)

// Formula is the weights that follow from the tensors' names, by the same rule
// as unet2d.Formula: a network of full size without a download.
type Formula struct {
	names  []string
	shapes map[string][]int
}

// NewFormula gives the formula weights of a configuration.
func NewFormula(cfg diffusers.DiTConfig) (*Formula, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("dit: %w", err)
	}
	f := &Formula{shapes: map[string][]int{}}
	for _, t := range cfg.Tensors() {
		f.names = append(f.names, t.Name)
		f.shapes[t.Name] = t.Shape
	}
	return f, nil
}

// Names implements diffusers.Weights.
func (f *Formula) Names() []string { return f.names }

// Shape implements diffusers.Weights.
func (f *Formula) Shape(name string) ([]int, bool) {
	s, ok := f.shapes[name]
	return s, ok
}

// Float32 implements diffusers.Weights.
func (f *Formula) Float32(name string) ([]float32, error) {
	shape, ok := f.shapes[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("dit: no formula tensor %q", name)
	case len(shape) > 1:
		return formulaValues(name, product(shape), math.Sqrt(3/float64(product(shape[1:]))), 0), nil
	case strings.HasSuffix(name, ".weight"):
		return formulaValues(name, shape[0], 0.1, 1), nil
	}
	return formulaValues(name, shape[0], 0.05, 0), nil
}

// formulaValues gives shift + scale u, u in [-1, 1) being the upper 24 bits of
// the splitmix64 sequence that starts from the name's FNV-1a hash.
func formulaValues(name string, n int, scale, shift float64) []float32 {
	hash := fnv.New64a()
	hash.Write([]byte(name))
	v, state := make([]float32, n), hash.Sum64()
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
