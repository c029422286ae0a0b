package rng

import "math"

// TorchCUDA follows the layout of torch.randn on a CUDA device as other tools
// imitate it: element i of the k-th call is the first normal of Philox
// subsequence i at offset k, sqrt(-2 log u) sin v with
//
//	u = x0 2^-32 + 2^-33, v = 2 pi (x1 2^-32 + 2^-33), x = Philox(counter (k, 0, i, 0), key seed).
//
// A device lays out tensors like this while they have no more elements than it
// has resident threads. The layout was never compared with a device; against
// numbers that those tools print it agrees to 2e-6. The zero value has seed 0.
type TorchCUDA struct {
	seed uint64
	call uint32
}

// NewTorchCUDA returns a generator with the given seed, all 64 bits of it.
func NewTorchCUDA(seed uint64) *TorchCUDA { return &TorchCUDA{seed: seed} }

// Randn32 fills dst with the standard normals of one call of torch.randn.
func (g *TorchCUDA) Randn32(dst []float32) {
	const turn = float64(float32(2 * math.Pi / (1 << 32)))
	for i := range dst {
		x := philox(block{g.call, 0, uint32(i), uint32(uint64(i) >> 32)}, g.seed)
		u := float64(x.w0)*(1.0/(1<<32)) + 1.0/(1<<33) // exact
		sin, _ := sincos64(float64(float64(x.w1)*turn) + turn/2)
		dst[i] = float32(math.Sqrt(-2*log64(u)) * sin)
	}
	g.call++
}
