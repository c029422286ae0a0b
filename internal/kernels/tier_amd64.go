//go:build amd64 && !noasm

package kernels

//go:noescape
func cpuid(leaf, sub uint32) (eax, ebx, ecx, edx uint32)

// xgetbv gives the low half of XCR0: the register state the kernel saves.
func xgetbv() uint32

// spinPause tells the processor that this is a waiting loop.
//
//go:noescape
func spinPause()

// supported is what the processor and the operating system allow.
var supported = detect(cpuid, xgetbv, amxPermission)

// detect follows the Intel and AMD manuals: CPUID tells what the processor
// has, XCR0 what the operating system saves, and AMX wants permission of the
// process on top.
func detect(cpuid func(leaf, sub uint32) (a, b, c, d uint32), xgetbv func() uint32, amxAllowed func() bool) [numTiers]bool {
	var s [numTiers]bool
	s[Portable] = true
	top, _, _, _ := cpuid(0, 0)
	if top < 7 {
		return s
	}
	_, _, c1, _ := cpuid(1, 0)
	const fma, osxsave, avx, f16c = 1 << 12, 1 << 27, 1 << 28, 1 << 29
	if c1&(fma|osxsave|avx|f16c) != fma|osxsave|avx|f16c {
		return s
	}
	xcr := xgetbv()
	const ymm, zmm, tiles = 0x6, 0xe6, 0x60000
	if xcr&ymm != ymm {
		return s
	}
	sub, b7, _, d7 := cpuid(7, 0)
	const avx2 = 1 << 5
	s[AVX2] = b7&avx2 != 0
	const f, dq, bw, vl = 1 << 16, 1 << 17, 1 << 30, 1 << 31
	s[AVX512] = s[AVX2] && b7&(f|dq|bw|vl) == f|dq|bw|vl && xcr&zmm == zmm
	if !s[AVX512] || sub < 1 {
		return s
	}
	a71, _, _, _ := cpuid(7, 1)
	s[AVX512BF16] = a71&(1<<5) != 0
	const amxBF16, amxTile = 1 << 22, 1 << 24
	s[AMX] = s[AVX512BF16] && d7&(amxBF16|amxTile) == amxBF16|amxTile && xcr&tiles == tiles && amxAllowed()
	return s
}

func tierSupported(t Tier) bool { return supported[t] }

// gemmTiles runs a tier's kernel for tiles of m rows. A switch and not a table
// of functions: the arguments then stay on the stack.
func gemmTiles(t Tier, m int, g *gemmArgs) {
	switch t {
	case AVX2:
		gemmAVX2(m, g)
	case narrow:
		gemmNarrow(m, g)
	case AVX512:
		gemmAVX512(m, g)
	case AVX512BF16:
		gemmBF16(m, g)
	case twinBF16:
		gemmPairsGo(g, m, 32)
	default:
		gemmPortable(g, m, portableNR)
	}
}

func amxTiles(t Tier, g *amxArgs) {
	if t == AMX {
		gemmAMX(g)
		return
	}
	gemmAMXGo(g)
}

func fewOps() *ops { return &narrowOps }

func bf16Ops(t Tier) *ops {
	if t == AMX {
		return &amxOps
	}
	return &avx512BF16Ops
}

func pairOps() *ops { return &avx512BF16Ops }

func tierOps(t Tier) *ops {
	if t == AVX2 {
		return &avx2Ops
	}
	return &avx512Ops
}
