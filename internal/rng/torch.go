package rng

import (
	"fmt"
	"math"
)

// Torch is torch's CPU generator, torch.Generator("cpu").manual_seed(seed):
// the same calls in the same order give the same values, bit for bit for
// integers, uniforms, Bernoulli draws, half types and float32 normals of 16 or
// more, and within 2 units in the last place for float64 normals and for fewer
// than 16, which follow the C library's log, sin and cos there.
//
// The float32 normals are those of an x86-64 machine with AVX2 or AVX-512; builds
// of torch for other machines differ from them by about 1e-6. The half types are
// those of torch 2.15; older releases draw other values.
//
// No method allocates except Perm. The zero value is NewTorch(0). A Torch must
// not be used by two goroutines at once.
type Torch struct {
	mt     mt19937
	spare  float64 // second normal of a pair of the short path
	spared bool
}

// NewTorch returns a generator with the given seed. As in torch only its low 32
// bits count.
func NewTorch(seed uint64) *Torch {
	g := new(Torch)
	g.Seed(seed)
	return g
}

// Seed starts the generator anew (manual_seed); a spare normal is forgotten.
func (g *Torch) Seed(seed uint64) {
	g.mt.seed(uint32(seed))
	g.spared = false
}

// uniform32 is uniform on the multiples of 2^-24 in [0, 1).
func (g *Torch) uniform32() float32 { return float32(g.mt.u32()&(1<<24-1)) * (1.0 / (1 << 24)) }

// uniform64 is uniform on the multiples of 2^-53 in [0, 1).
func (g *Torch) uniform64() float64 { return float64(g.mt.u64()&(1<<53-1)) * (1.0 / (1 << 53)) }

// Rand32 fills dst with uniforms on [0, 1): torch.rand(n).
func (g *Torch) Rand32(dst []float32) {
	for i := range dst {
		dst[i] = g.uniform32()
	}
}

// Rand64 fills dst with uniforms on [0, 1): torch.rand(n, dtype=float64).
func (g *Torch) Rand64(dst []float64) {
	for i := range dst {
		dst[i] = g.uniform64()
	}
}

// RandF16 fills dst with the bit patterns of torch.rand(n, dtype=float16).
func (g *Torch) RandF16(dst []uint16) {
	for i := range dst {
		if dst[i] = f16bits(g.uniform32()); dst[i] == 0x3c00 { // rounded up to 1
			dst[i] = 0
		}
	}
}

// RandBF16 fills dst with the bit patterns of torch.rand(n, dtype=bfloat16).
func (g *Torch) RandBF16(dst []uint16) {
	for i := range dst {
		if dst[i] = bf16bits(g.uniform32()); dst[i] == 0x3f80 { // rounded up to 1
			dst[i] = 0
		}
	}
}

// RandInt fills dst with integers lo <= k < hi: torch.randint(lo, hi, (n,)).
// It panics unless lo < hi.
func (g *Torch) RandInt(dst []int64, lo, hi int64) {
	if lo >= hi {
		panic(fmt.Sprintf("rng: RandInt on the empty range [%d, %d)", lo, hi))
	}
	span := uint64(hi) - uint64(lo)
	for i := range dst {
		var u uint64
		if span < 1<<28 {
			u = uint64(g.mt.u32())
		} else {
			u = g.mt.u64()
		}
		dst[i] = int64(uint64(lo) + u%span)
	}
}

// Perm returns a permutation of 0, ..., n-1: torch.randperm(n). It panics where
// n is negative or at least 2^32/20, from where torch draws otherwise.
func (g *Torch) Perm(n int) []int {
	if n < 0 || uint64(n) >= 1<<32/20 {
		panic(fmt.Sprintf("rng: Perm of %d elements", n))
	}
	p := make([]int, n)
	for i := range p {
		p[i] = i
	}
	for i := 0; i < n-1; i++ {
		j := i + int(g.mt.u32()%uint32(n-i))
		p[i], p[j] = p[j], p[i]
	}
	return p
}

// Bernoulli32 sets dst[i] to 1 with probability p[i], else to 0:
// torch.bernoulli(p). The lengths must agree; dst may be p.
func (g *Torch) Bernoulli32(dst, p []float32) {
	sameLen(len(dst), len(p))
	for i := range dst {
		dst[i] = indicator[float32](g.uniform32() < p[i])
	}
}

// Bernoulli64 is Bernoulli32 for float64 tensors, which draw 53-bit uniforms.
func (g *Torch) Bernoulli64(dst, p []float64) {
	sameLen(len(dst), len(p))
	for i := range dst {
		dst[i] = indicator[float64](g.uniform64() < p[i])
	}
}

// BernoulliScalar sets every dst[i] to 1 with probability p, else to 0:
// tensor.bernoulli_(p). On processors made by Intel torch may hand this form to
// another library's stream; elsewhere the values agree.
func (g *Torch) BernoulliScalar(dst []float32, p float64) {
	for i := range dst {
		dst[i] = indicator[float32](g.uniform64() < p)
	}
}

func sameLen(a, b int) {
	if a != b {
		panic(fmt.Sprintf("rng: %d values for %d probabilities", a, b))
	}
}

func indicator[T float32 | float64](b bool) T {
	if b {
		return 1
	}
	return 0
}

// Randn32 fills dst with standard normals: torch.randn(n). Fewer than 16 values
// are drawn otherwise than 16 or more, and 17 are not 16 and one more: see
// Randn32Strided and NormalF64From32.
func (g *Torch) Randn32(dst []float32) { randn32(g, dst) }

// NormalF64From32 fills dst with the values of Randn32, widened to float64: a
// run in float64 then starts where a float32 pipeline starts.
func (g *Torch) NormalF64From32(dst []float64) { randn32(g, dst) }

// Randn32Strided fills dst, which lies in memory order, with what torch draws
// for a tensor of any size that is not contiguous, such as channels-last (whose
// memory order is N, H, W, C), or that has fewer than 16 elements: Box-Muller in
// float64, pairs (r cos a, r sin a) of which the second waits in the generator
// for the next such draw, whatever is called in between.
func (g *Torch) Randn32Strided(dst []float32) {
	for i := range dst {
		dst[i] = float32(g.normal())
	}
}

// Randn64Strided is Randn32Strided for float64 tensors.
func (g *Torch) Randn64Strided(dst []float64) {
	for i := range dst {
		dst[i] = g.normal()
	}
}

// normal is one normal of the short path.
func (g *Torch) normal() float64 {
	if g.spared {
		g.spared = false
		return g.spare
	}
	u1 := g.uniform64()
	u2 := g.uniform64()
	x, y := boxMuller(1-u2, u1) // 1-u2 is exact
	g.spare, g.spared = y, true
	return x
}

// boxMuller turns 0 < u <= 1 and 0 <= v < 1, uniform, into two independent
// standard normals, sqrt(-2 log u) times cosine and sine of 2 pi v.
func boxMuller(u, v float64) (x, y float64) {
	r := math.Sqrt(-2 * log64(u))
	s, c := sincos64(float64(2 * math.Pi * v))
	return float64(r * c), float64(r * s)
}

// randn32 writes float32 normals to dst of either width. 16 or more values come
// in blocks of 16 from 16 uniforms each; where n is no multiple of 16 the
// uniforms of the ragged end are drawn and lost, and 16 new ones make the last
// 16 values, over those already there.
func randn32[T float32 | float64](g *Torch, dst []T) {
	if len(dst) < 16 {
		for i := range dst {
			dst[i] = T(float32(g.normal()))
		}
		return
	}
	var b [16]float32
	full := len(dst) &^ 15
	for i := 0; i < full; i += 16 {
		g.block32(&b)
		for j, v := range b {
			dst[i+j] = T(v)
		}
	}
	if full == len(dst) {
		return
	}
	for range len(dst) - full {
		g.mt.u32()
	}
	g.block32(&b)
	for j, v := range b {
		dst[len(dst)-16+j] = T(v)
	}
}

// block32 draws 16 uniforms and makes 16 float32 normals of them.
func (g *Torch) block32(b *[16]float32) {
	g.Rand32(b[:])
	for j := range 8 {
		r := float32(math.Sqrt(float64(-2 * log32(1-b[j]))))
		s, c := sincos32(float32(2 * math.Pi * b[j+8]))
		b[j], b[j+8] = float32(r*c), float32(r*s)
	}
}

// Randn64 fills dst with standard normals: torch.randn(n, dtype=float64).
func (g *Torch) Randn64(dst []float64) {
	n := len(dst)
	if n < 16 {
		g.Randn64Strided(dst)
		return
	}
	g.Rand64(dst)
	for i := 0; i+16 <= n; i += 16 {
		block64(dst[i : i+16])
	}
	if n%16 != 0 {
		tail := dst[n-16:]
		g.Rand64(tail)
		block64(tail)
	}
}

// block64 makes 16 normals of 16 uniforms.
func block64(b []float64) {
	_ = b[15]
	for j := range 8 {
		b[j], b[j+8] = boxMuller(1-b[j], b[j+8])
	}
}

// RandnF16 fills dst with the bit patterns of torch.randn(n, dtype=float16).
func (g *Torch) RandnF16(dst []uint16) { g.randnHalf(dst, f16bits) }

// RandnBF16 fills dst with the bit patterns of torch.randn(n, dtype=bfloat16).
func (g *Torch) RandnBF16(dst []uint16) { g.randnHalf(dst, bf16bits) }

// randnHalf is randn32 rounded at the end, but for the uniforms of a ragged end,
// which are not drawn.
func (g *Torch) randnHalf(dst []uint16, bits func(float32) uint16) {
	n := len(dst)
	if n < 16 {
		for i := range dst {
			dst[i] = bits(float32(g.normal()))
		}
		return
	}
	var b [16]float32
	for i := 0; i+16 <= n; i += 16 {
		g.block32(&b)
		for j, v := range b {
			dst[i+j] = bits(v)
		}
	}
	if n%16 != 0 {
		g.block32(&b)
		for j, v := range b {
			dst[n-16+j] = bits(v)
		}
	}
}

// bf16bits rounds a finite v to bfloat16, to nearest even.
func bf16bits(v float32) uint16 {
	b := math.Float32bits(v)
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// f16bits rounds a v of magnitude below 65520 to IEEE half precision, to nearest
// even.
func f16bits(v float32) uint16 {
	b := math.Float32bits(v)
	sign := uint16(b >> 16 & 0x8000)
	b &= 1<<31 - 1
	if b < (127-14)<<23 { // subnormal or zero: adding 1/2 rounds to multiples of 2^-24
		m := math.Float32bits(math.Float32frombits(b) + 0.5)
		return sign | uint16(m-0x3f000000)
	}
	b += 0xfff + b>>13&1
	return sign | uint16(b>>13-(127-15)<<10)
}
