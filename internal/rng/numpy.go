package rng

import (
	"fmt"
	"math"
	"math/bits"
)

// RandomState is the part of numpy.random.RandomState(seed) that published code
// draws subsets and test data with. The zero value has seed 0.
type RandomState struct {
	mt     mt19937
	spare  float64
	spared bool
}

// NewRandomState returns a generator with the given seed.
func NewRandomState(seed uint32) *RandomState {
	g := new(RandomState)
	g.mt.seed(seed)
	return g
}

// Clone returns a generator that draws what g will, and leaves g as it is.
func (g *RandomState) Clone() *RandomState {
	c := *g
	return &c
}

func (g *RandomState) uniform() float64 {
	a, b := uint64(g.mt.u32()>>5), uint64(g.mt.u32()>>6)
	return float64(a<<26|b) * (1.0 / (1 << 53))
}

// Rand fills dst with uniforms on [0, 1): rand(n).
func (g *RandomState) Rand(dst []float64) {
	for i := range dst {
		dst[i] = g.uniform()
	}
}

// Randn fills dst with standard normals by Marsaglia's polar method: randn(n).
// The second normal of a pair waits for the next call.
func (g *RandomState) Randn(dst []float64) {
	for i := range dst {
		if g.spared {
			dst[i], g.spared = g.spare, false
			continue
		}
		var x, y, r2 float64
		for r2 == 0 || r2 >= 1 {
			x = 2*g.uniform() - 1 // exact
			y = 2*g.uniform() - 1
			r2 = float64(x*x) + float64(y*y)
		}
		f := math.Sqrt(-2 * log64(r2) / r2)
		g.spare, g.spared = float64(f*x), true
		dst[i] = float64(f * y)
	}
}

// interval is uniform on 0, ..., top: bits above top's are masked off, values
// above top drawn again.
func (g *RandomState) interval(top uint32) uint32 {
	if top == 0 {
		return 0
	}
	mask := uint32(1)<<bits.Len32(top) - 1
	for {
		if v := g.mt.u32() & mask; v <= top {
			return v
		}
	}
}

// RandInt fills dst with integers lo <= k < hi: randint(lo, hi, n). It panics
// unless 0 < hi-lo <= 2^32.
func (g *RandomState) RandInt(dst []int64, lo, hi int64) {
	span := uint64(hi) - uint64(lo)
	if lo >= hi || span > 1<<32 {
		panic(fmt.Sprintf("rng: RandInt on the range [%d, %d)", lo, hi))
	}
	for i := range dst {
		dst[i] = lo + int64(g.interval(uint32(span-1)))
	}
}

// Permutation returns a permutation of 0, ..., n-1: permutation(n). It panics
// where n is negative or above 2^32.
func (g *RandomState) Permutation(n int) []int {
	if n < 0 || uint64(n) > 1<<32 {
		panic(fmt.Sprintf("rng: Permutation of %d elements", n))
	}
	p := make([]int, n)
	for i := range p {
		p[i] = i
	}
	for i := n - 1; i > 0; i-- {
		j := g.interval(uint32(i))
		p[i], p[j] = p[j], p[i]
	}
	return p
}

// Choice returns k different elements of 0, ..., n-1:
// choice(n, k, replace=False). It panics unless 0 <= k <= n.
func (g *RandomState) Choice(n, k int) []int {
	if k < 0 || k > n {
		panic(fmt.Sprintf("rng: Choice of %d out of %d", k, n))
	}
	return g.Permutation(n)[:k:k]
}
