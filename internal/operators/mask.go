package operators

import (
	"cmp"
	"fmt"
	"slices"

	"drift/internal/rng"
)

// mask keeps some elements: A is a choice of rows of I, S is 0 or 1, and V = I.
type mask struct {
	base
	at []int // the elements kept, in order
	s  []float64
}

// newMask keeps the pixels that keep names (H*W of them), in every channel.
func newMask(name string, in []int, keep []bool) (*mask, error) {
	c, h, w, err := image(in)
	if err != nil {
		return nil, err
	}
	if len(keep) != h*w {
		return nil, fmt.Errorf("the mask has %d pixels, the images have %d x %d", len(keep), w, h)
	}
	m := &mask{base: base{name: name, in: in}, s: make([]float64, c*h*w)}
	for i := range m.s {
		if keep[i%(h*w)] {
			m.s[i] = 1
			m.at = append(m.at, i)
		}
	}
	if len(m.at) == 0 {
		return nil, fmt.Errorf("the mask leaves no pixel known")
	}
	m.out = []int{len(m.at)}
	if len(m.at) == len(m.s) {
		m.out = in
	}
	return m, nil
}

func (m *mask) Apply(y, x []float64) {
	for j, i := range m.at {
		y[j] = x[i]
	}
}

func (m *mask) Adjoint(x, y []float64) {
	clear(x)
	for j, i := range m.at {
		x[i] = y[j]
	}
}

func (m *mask) VJP(g, _, u []float64) { m.Adjoint(g, u) }
func (m *mask) Singular() []float64   { return m.s }
func (m *mask) ToV(c, x []float64)    { copy(c, x) }
func (m *mask) FromV(x, c []float64)  { copy(x, c) }
func (m *mask) ToU(c, y []float64)    { m.Adjoint(c, y) }

// Picture shows what is not known in grey.
func (m *mask) Picture(y []float64) ([]float64, []int) {
	x := make([]float64, len(m.s))
	m.Adjoint(x, y)
	return x, m.in
}

// box is the mask without a rectangle of pixels.
func box(h, w, x0, y0, bw, bh int) []bool {
	keep := make([]bool, h*w)
	for i := range keep {
		x, y := i%w, i/w
		keep[i] = x < x0 || x >= x0+bw || y < y0 || y >= y0+bh
	}
	return keep
}

// purposeChoice separates the random choices of operators (pixels, signs, rows) from other draws.
const purposeChoice rng.Purpose = 1<<16 + 0x0b6

// choose returns k of n indices in rising order, drawn without replacement from (seed, which).
func choose(n, k int, seed uint64, which int) []int {
	u, at := make([]float64, n), make([]int, n)
	rng.Uniform(u, rng.Key{Seed: seed, Step: which, Purpose: purposeChoice})
	for i := range at {
		at[i] = i
	}
	slices.SortFunc(at, func(i, j int) int { return cmp.Or(cmp.Compare(u[i], u[j]), i-j) })
	at = at[:k]
	slices.Sort(at)
	return at
}
