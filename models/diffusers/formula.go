package diffusers

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"strings"

	"drift/internal/half"
	"drift/internal/safetensors"
)

// Formula is a set of weights that follow from the names of the tensors: a
// network of full size without a download, for benchmarks and tests. Value i
// of a tensor is output i+1 of splitmix64 seeded with the FNV-1a hash of its
// name, as u in [-1, 1) of 24 bits, and
//
//	rank 2 and more   u sqrt(3 / fan_in), fan_in the product of all dimensions but the first
//	*.weight          1 + 0.1 u
//	else              0.05 u
//
// A Seed that is not 0 stands, as "#SEED", behind every name that is hashed.
type Formula struct {
	Seed int

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
	v := make([]float32, count(shape))
	f.sequence(name, shape).fill(v)
	return v, nil
}

// sequence is the values of a tensor.
func (f *Formula) sequence(name string, shape []int) *sequence {
	scale, shift := 0.05, 0.0
	switch {
	case len(shape) >= 2:
		scale = math.Sqrt(3 / float64(count(shape[1:])))
	case strings.HasSuffix(name, ".weight"):
		scale, shift = 0.1, 1
	}
	if f.Seed != 0 {
		name = fmt.Sprintf("%s#%d", name, f.Seed)
	}
	return newSequence(name, scale, shift)
}

// Read gives the bytes of a tensor in F32, F16 or BF16, little-endian, a few
// at a time: no tensor is ever in memory as a whole.
func (f *Formula) Read(name string, d safetensors.DType) (io.Reader, error) {
	shape, ok := f.shapes[name]
	if !ok {
		return nil, fmt.Errorf("diffusers: no formula tensor %q", name)
	}
	if d != safetensors.F32 && d != safetensors.F16 && d != safetensors.BF16 {
		return nil, fmt.Errorf("diffusers: formula tensors in F32, F16 or BF16, not %s", d)
	}
	return &formulaReader{seq: f.sequence(name, shape), dtype: d, left: count(shape)}, nil
}

// formulaReader is the bytes of a tensor.
type formulaReader struct {
	seq   *sequence
	dtype safetensors.DType
	left  int64 // elements
	vals  [2048]float32
	buf   [4 * 2048]byte
	text  []byte // of buf, not yet read
}

// Read implements io.Reader.
func (r *formulaReader) Read(p []byte) (int, error) {
	if len(r.text) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		v := r.vals[:min(r.left, int64(len(r.vals)))]
		r.left -= int64(len(v))
		r.seq.fill(v)
		r.text = r.buf[:0]
		for _, x := range v {
			switch r.dtype {
			case safetensors.F16:
				r.text = binary.LittleEndian.AppendUint16(r.text, half.ToFloat16(x))
			case safetensors.BF16:
				r.text = binary.LittleEndian.AppendUint16(r.text, half.ToBFloat16(x))
			default:
				r.text = binary.LittleEndian.AppendUint32(r.text, math.Float32bits(x))
			}
		}
	}
	n := copy(p, r.text)
	r.text = r.text[n:]
	return n, nil
}

// FormulaValues gives n values shift + scale*u of the sequence of a name.
func FormulaValues(name string, n int, scale, shift float64) []float32 {
	v := make([]float32, n)
	newSequence(name, scale, shift).fill(v)
	return v
}

// A sequence is the numbers of a name, one after another.
type sequence struct {
	state        uint64
	scale, shift float64
}

func newSequence(name string, scale, shift float64) *sequence {
	h := fnv.New64a()
	h.Write([]byte(name))
	return &sequence{h.Sum64(), scale, shift}
}

func (s *sequence) fill(v []float32) {
	state := s.state
	for i := range v {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		v[i] = float32(s.shift + float64(s.scale*(float64(z>>40)/(1<<23)-1)))
	}
	s.state = state
}

// WeightsStem is how the file of a network's weights is called in a folder of
// diffusers, without .safetensors.
func WeightsStem(c Config) string {
	if s, ok := c.(stored); ok {
		return s.stem()
	}
	return "diffusion_pytorch_model"
}
