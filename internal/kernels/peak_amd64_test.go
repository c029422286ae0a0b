//go:build amd64 && !noasm

package kernels

import (
	"testing"
	"time"
)

// peakRate measures the register-only float32 multiply-add rate of one core
// in GFLOP/s.
func peakRate(t Tier) float64 {
	if t == Portable {
		return 0
	}
	const n = 200000
	loop, lanes := fmaPeakAVX2, 8
	if t >= AVX512 {
		loop, lanes = fmaPeakAVX512, 16
	}
	m := time.Duration(1 << 62)
	for range 50 {
		s := time.Now()
		loop(n)
		m = min(m, time.Since(s))
	}
	return float64(n*12*2*lanes) / float64(m.Nanoseconds())
}

func BenchmarkPeak(b *testing.B) {
	for range b.N {
		b.ReportMetric(peakRate(Detect()), "GFLOP/s")
	}
}
