//go:build amd64 && !noasm

package kernels

import (
	"testing"
	"time"
)

// peakRate measures the register-only multiply-add rate of one core in
// GFLOP/s.
func peakRate(t Tier) float64 {
	if t == Portable {
		return 0
	}
	const n = 200000
	m := time.Duration(1 << 62)
	for range 50 {
		s := time.Now()
		fmaPeakAVX2(n)
		m = min(m, time.Since(s))
	}
	return n * 12 * 16 / float64(m.Nanoseconds())
}

func BenchmarkPeak(b *testing.B) {
	for range b.N {
		b.ReportMetric(peakRate(AVX2), "GFLOP/s")
	}
}
