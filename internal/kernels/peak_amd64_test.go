//go:build amd64 && !noasm

package kernels

import "testing"

func peakRate(t Tier) float64 { return PeakRate(t, F32) }

func BenchmarkPeak(b *testing.B) {
	for range b.N {
		b.ReportMetric(PeakRate(Detect(), F32), "GFLOP/s")
		if AVX512BF16.Supported() {
			b.ReportMetric(PeakRate(AVX512BF16, BF16), "bf16-GFLOP/s")
		}
	}
}
