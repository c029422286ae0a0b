//go:build amd64 && !noasm

package kernels

import (
	"testing"
	"time"
)

// peakRate measures the register-only float32 multiply-add rate of one core
// in GFLOP/s.
func peakRate(t Tier) float64 {
	switch {
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

func BenchmarkPeak(b *testing.B) {
	for range b.N {
		b.ReportMetric(peakRate(Detect()), "GFLOP/s")
		if AVX512BF16.Supported() {
			b.ReportMetric(loopRate(fmaPeakBF16, 12*4*16), "bf16-GFLOP/s")
		}
	}
}
