//go:build amd64 && !noasm

package kernels

import "time"

// PeakRate measures the register-only multiply-add rate of one core on a tier
// in GFLOP/s, a multiply-add counting 2: what no kernel of that tier can beat
// without doing fewer multiplications. It takes some tens of milliseconds. It
// is 0 where the tier has no such loop.
func PeakRate(t Tier, dtype DType) float64 {
	switch {
	case dtype == BF16 && t == AVX512BF16:
		return loopRate(fmaPeakBF16, 12*4*16)
	case t >= AVX512:
		return loopRate(fmaPeakAVX512, 12*2*16)
	case t == AVX2:
		return loopRate(fmaPeakAVX2, 12*2*8)
	}
	return 0
}

// loopRate gives floating-point operations per nanosecond of a loop.
func loopRate(loop func(n int), flops int) float64 {
	const n = 200000
	m := time.Duration(1 << 62)
	for range 50 {
		s := time.Now()
		loop(n)
		m = min(m, time.Since(s))
	}
	return float64(n*flops) / float64(m.Nanoseconds())
}
