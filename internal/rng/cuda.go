package rng

import "math"

// TorchCUDA follows the layout of torch.randn on a CUDA device. With T the
// threads that the device has in flight (at least as many as elements where it
// has so many), element i of a call is normal number (i/T) mod 4 of Philox
// subsequence i mod T at the offset k + i/(4T), k the blocks that earlier calls
// took; of the four normals of a block x the first two are
//
//	sqrt(-2 log u) sin v, sqrt(-2 log u) cos v,
//	u = x0 2^-32 + 2^-33, v = 2 pi (x1 2^-32 + 2^-33), x = Philox(counter (offset, 0, subsequence, 0), key seed),
//
// the others the same of x2 and x3. The layout was never compared with a device;
// for tensors of no more elements than threads it agrees to 2e-6 with numbers
// that other tools print. The zero value has seed 0.
type TorchCUDA struct {
	seed    uint64
	threads int
	call    uint32
}

// NewTorchCUDA returns a generator with the given seed, all 64 bits of it.
// threads is how many the device has in flight, such as 108*2048 = 221184 for
// an A100; 0 = more than any tensor has elements, which is what tools that
// imitate a device take.
func NewTorchCUDA(seed uint64, threads int) *TorchCUDA {
	return &TorchCUDA{seed: seed, threads: threads}
}

// Randn32 fills dst with the standard normals of one call of torch.randn.
func (g *TorchCUDA) Randn32(dst []float32) {
	g.each(len(dst), func(i int, v float64) { dst[i] = float32(v) })
}

// NormalF64From32 is Randn32 with results in float64.
func (g *TorchCUDA) NormalF64From32(dst []float64) {
	g.each(len(dst), func(i int, v float64) { dst[i] = float64(float32(v)) })
}

func (g *TorchCUDA) each(n int, set func(i int, v float64)) {
	const turn = float64(float32(2 * math.Pi / (1 << 32)))
	if n == 0 {
		return
	}
	t := g.threads
	if t <= 0 || n < t {
		t = max(n, 1)
	}
	for i := range n {
		at := i % t
		x := philox(block{g.call + uint32(i/(4*t)), 0, uint32(at), uint32(uint64(at) >> 32)}, g.seed)
		a, b, which := x.w0, x.w1, i/t%4
		if which > 1 {
			a, b = x.w2, x.w3
		}
		u := float64(a)*(1.0/(1<<32)) + 1.0/(1<<33) // exact
		sin, cos := sincos64(float64(float64(b)*turn) + turn/2)
		if which%2 == 1 {
			sin = cos
		}
		set(i, math.Sqrt(-2*log64(u))*sin)
	}
	g.call += uint32((n-1)/(4*t) + 1)
}
