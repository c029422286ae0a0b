package unet2d

import (
	"context"
	"testing"

	"drift/internal/kernels"
)

// Whole networks. GMAC/s counts multiply-adds by definition, whatever method
// the convolutions take.
func bench(b *testing.B, open func(testing.TB, Options) *Net, count, size int) {
	for _, dtype := range []kernels.DType{kernels.F32, kernels.BF16} {
		b.Run(dtype.String(), func(b *testing.B) {
			n := open(b, Options{DType: dtype})
			x, q := images(n, count, size, size)
			out := make([]float64, len(x))
			ctx := context.Background()
			if err := n.Forward(ctx, out, x, q); err != nil {
				b.Fatal(err)
			}
			macs, err := n.MACs(size, size)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := n.Forward(ctx, out, x, q); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(macs)*float64(count)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GMAC/s")
			b.ReportMetric(float64(n.Memory().Activations)/1e6, "MB")
		})
	}
}

func fashion(t testing.TB, opt Options) *Net { return zoo(t, "fashion", opt) }

func BenchmarkZoo1(b *testing.B)           { bench(b, fashion, 1, 28) }
func BenchmarkZoo64(b *testing.B)          { bench(b, fashion, 64, 28) }
func BenchmarkDDPMCIFAR10x1(b *testing.B)  { bench(b, cifar, 1, 32) }
func BenchmarkDDPMCIFAR10x16(b *testing.B) { bench(b, cifar, 16, 32) }

// BenchmarkVJP is a Forward with Save and its VJP.
func BenchmarkVJP(b *testing.B) {
	n := cifar(b, Options{})
	x, q := images(n, 1, 32, 32)
	q.Save = true
	out := make([]float64, len(x))
	ctx := context.Background()
	both := func() {
		if err := n.Forward(ctx, out, x, q); err != nil {
			b.Fatal(err)
		}
		if err := n.VJP(ctx, out, x); err != nil {
			b.Fatal(err)
		}
	}
	both()
	b.ReportAllocs()
	for b.Loop() {
		both()
	}
}
