package dit

import (
	"context"
	"fmt"
	"testing"

	"drift/internal/kernels"
)

// BenchmarkDiTS2 is a whole Forward of DiT-S/2 with 256 tokens. GMAC/s counts
// multiply-adds, GFLOP/s two of them.
func BenchmarkDiTS2(b *testing.B) {
	for _, dtype := range []kernels.DType{kernels.F32, kernels.BF16} {
		n := formulaNet(b, ditS2(), Options{DType: dtype})
		for _, count := range []int{1, 8} {
			b.Run(fmt.Sprintf("%v/%d", dtype, count), func(b *testing.B) {
				x, q := images(n, count, 32)
				out := make([]float64, 2*len(x))
				once := func() {
					if err := n.Forward(context.Background(), out, x, q); err != nil {
						b.Fatal(err)
					}
				}
				once()
				macs, err := n.MACs(32, 32)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				for b.Loop() {
					once()
				}
				rate := float64(macs) * float64(count) * float64(b.N) / b.Elapsed().Seconds() / 1e9
				b.ReportMetric(rate, "GMAC/s")
				b.ReportMetric(2*rate, "GFLOP/s")
				b.ReportMetric(float64(n.Memory().Activations)/1e6, "MB")
			})
		}
	}
}

// BenchmarkVJP is a Forward with Save and its VJP.
func BenchmarkVJP(b *testing.B) {
	n := formulaNet(b, ditS2(), Options{})
	x, q := images(n, 1, 32)
	q.Save = true
	out := make([]float64, 2*len(x))
	ctx := context.Background()
	both := func() {
		if err := n.Forward(ctx, out, x, q); err != nil {
			b.Fatal(err)
		}
		if err := n.VJP(ctx, x, out); err != nil {
			b.Fatal(err)
		}
	}
	both()
	b.ReportAllocs()
	for b.Loop() {
		both()
	}
}
