//go:build amd64 && !noasm

package kernels

import "golang.org/x/sys/cpu"

func tierSupported(t Tier) bool {
	switch t {
	case AVX2:
		return cpu.X86.HasAVX2 && cpu.X86.HasFMA
	}
	return false
}

// gemmTiles runs a tier's kernel for tiles of m rows. A switch and not a table
// of functions: the arguments then stay on the stack.
func gemmTiles(t Tier, m int, g *gemmArgs) {
	switch t {
	case AVX2:
		gemmAVX2(m, g)
	default:
		gemmPortable(g, m, portableNR)
	}
}

func tierOps(t Tier) *ops {
	return &avx2Ops
}

// spinPause tells the processor that this is a waiting loop.
//
//go:noescape
func spinPause()
