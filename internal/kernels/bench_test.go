package kernels

import (
	"fmt"
	"testing"
	"time"
)

// best gives the shortest of many runs of f: the machine may be shared.
func best(b *testing.B, f func()) time.Duration {
	f()
	m := time.Duration(1 << 62)
	for range b.N {
		t := time.Now()
		f()
		m = min(m, time.Since(t))
	}
	return m
}

// BenchmarkConv times whole layers; run it with -benchtime 30x or so. The
// figures are GFLOP/s by definition (2 per multiply-add, whatever the method)
// at the shortest of the runs, and the same over workers times the peak.
func BenchmarkConv(b *testing.B) {
	shapes := []struct{ n, cin, cout, h, k, stride int }{
		{1, 128, 128, 32, 3, 1}, {16, 128, 128, 32, 3, 1},
		{1, 256, 256, 16, 3, 1}, {16, 256, 256, 16, 3, 1},
		{1, 256, 256, 8, 3, 1}, {16, 256, 256, 8, 3, 1},
		{1, 256, 256, 4, 3, 1}, {16, 256, 256, 4, 3, 1},
		{16, 512, 256, 8, 3, 1}, {16, 384, 128, 32, 3, 1},
		{16, 256, 128, 32, 1, 1}, {16, 128, 128, 32, 3, 2}, {16, 3, 128, 32, 3, 1}, {16, 128, 3, 32, 3, 1},
		{64, 32, 32, 28, 3, 1}, {64, 64, 64, 14, 3, 1}, {64, 96, 96, 7, 3, 1}, {64, 1, 32, 28, 3, 1},
		{1, 320, 320, 64, 3, 1}, {1, 640, 640, 32, 3, 1}, {1, 1280, 1280, 16, 3, 1},
	}
	tier := Detect()
	peak := peakRate(tier)
	for _, workers := range []int{1, 2} {
		p := NewPool(tier, workers)
		defer p.Close()
		for _, s := range shapes {
			b.Run(fmt.Sprintf("w%d/n%d_%dx%d_%d_k%ds%d", workers, s.n, s.cin, s.cout, s.h, s.k, s.stride), func(b *testing.B) {
				r := rng(1)
				spec := ConvSpec{Cin: s.cin, Cout: s.cout, KH: s.k, KW: s.k, Stride: s.stride, Pad: Same(s.k / 2), H: s.h, W: s.h}
				c := NewConv(tier, F32, spec, randoms(r, s.cin*s.cout*s.k*s.k), randoms(r, s.cout))
				x := randoms(r, s.n*s.h*s.h*s.cin)
				ho, wo := spec.OutSize(s.h, s.h)
				dst := make([]float32, s.n*ho*wo*s.cout)
				scratch := make([]float32, c.Scratch(workers, s.n, s.h, s.h, false))
				d := best(b, func() {
					c.Run(p, dst, Input{X: x, C: s.cin}, s.n, s.h, s.h, scratch, Epilogue{})
				})
				report(b, 2*float64(c.MACs(s.n, s.h, s.h)), d, workers, peak)
			})
		}
	}
}

func report(b *testing.B, flops float64, d time.Duration, workers int, peak float64) {
	rate := flops / float64(d.Nanoseconds())
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate, "GFLOP/s")
	b.ReportMetric(float64(d.Nanoseconds())/1e6, "ms")
	if peak > 0 {
		b.ReportMetric(rate/peak/float64(workers), "of-peak")
	}
}

func BenchmarkAttention(b *testing.B) {
	tier := Detect()
	peak := peakRate(tier)
	for _, s := range []AttentionSpec{
		{Batch: 16, Heads: 1, Tq: 256, Tk: 256, D: 256},
		{Batch: 1, Heads: 1, Tq: 256, Tk: 256, D: 256},
		{Batch: 64, Heads: 12, Tq: 49, Tk: 49, D: 8},
		{Batch: 1, Heads: 8, Tq: 4096, Tk: 4096, D: 40},
		{Batch: 2, Heads: 32, Tq: 1024, Tk: 1024, D: 32},
		{Batch: 8, Heads: 6, Tq: 256, Tk: 256, D: 64},
		{Batch: 1, Heads: 1, Tq: 4096, Tk: 4096, D: 512},
		{Batch: 1, Heads: 8, Tq: 4096, Tk: 77, D: 40},
	} {
		for i, workers := range []int{1, 2, 1, 2} {
			s.DType = DType(i / 2)
			b.Run(fmt.Sprintf("%v/w%d/b%dh%d_%dx%d_d%d", s.DType, workers, s.Batch, s.Heads, s.Tq, s.Tk, s.D), func(b *testing.B) {
				p := NewPool(tier, workers)
				defer p.Close()
				r := rng(2)
				row := s.Heads * s.D
				q, k, v := randoms(r, s.Batch*s.Tq*row), randoms(r, s.Batch*s.Tk*row), randoms(r, s.Batch*s.Tk*row)
				dst, scratch := make([]float32, len(q)), make([]float32, AttentionScratch(p, s))
				d := best(b, func() { Attention(p, dst, q, k, v, s, scratch) })
				report(b, 4*float64(s.Batch*s.Heads)*float64(s.Tq)*float64(s.Tk)*float64(s.D), d, workers, peak)
			})
		}
	}
}

func BenchmarkElementwise(b *testing.B) {
	tier := Detect()
	const n, h, c = 16, 32, 128
	r := rng(3)
	x := randoms(r, n*h*h*c)
	dst := make([]float32, len(x))
	scale, shift := make([]float32, n*c), make([]float32, n*c)
	gamma := randoms(r, c)
	scratch := make([]float32, GroupNormScratch(n, h*h, c))
	for _, workers := range []int{1, 2} {
		p := NewPool(tier, workers)
		defer p.Close()
		for _, f := range []struct {
			name string
			run  func()
		}{
			{"silu", func() { Activate(p, dst, x, SiLU) }},
			{"gelu", func() { Activate(p, dst, x, GELU) }},
			{"add", func() { Add(p, dst, x, dst, 0) }},
			{"groupnorm", func() { GroupNorm(p, scale, shift, Input{X: x, C: c}, n, h*h, 32, 1e-5, gamma, gamma, scratch) }},
			{"apply-silu", func() { Apply(p, dst, Input{X: x, C: c, Scale: scale, Shift: shift, Act: SiLU}, n, h, h) }},
			{"layernorm", func() { LayerNorm(p, dst, x, n, h*h, c, 1e-5, gamma, gamma) }},
			{"softmax1024", func() { Softmax(p, dst, x, n*c, h*h, 1) }},
		} {
			b.Run(fmt.Sprintf("w%d/%s", workers, f.name), func(b *testing.B) {
				d := best(b, f.run)
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(float64(d.Nanoseconds())/1e6, "ms")
				b.ReportMetric(float64(len(x)*4)/float64(d.Nanoseconds()), "GB/s-read")
			})
		}
	}
}

func BenchmarkSyrk(b *testing.B) {
	p := NewPool(Detect(), 2)
	defer p.Close()
	const m, n = 256, 1024
	r := rng(4)
	x, c := make([]float64, m*n), make([]float64, n*n)
	for i := range x {
		x[i] = r.NormFloat64()
	}
	scratch := make([]float64, SyrkScratch(p))
	d := best(b, func() { Syrk(p, c, x, m, n, scratch) })
	report(b, float64(m)*n*n, d, 2, 0)
}

// BenchmarkMethods compares the ways to compute one 3 by 3 layer.
func BenchmarkMethods(b *testing.B) {
	tier := Detect()
	peak := peakRate(tier)
	for _, workers := range []int{1, 2} {
		p := NewPool(tier, workers)
		defer p.Close()
		for _, s := range []struct{ n, cin, cout, h int }{
			{1, 128, 128, 32}, {16, 128, 128, 32}, {16, 384, 128, 32}, {1, 256, 256, 16}, {16, 256, 256, 16}, {16, 512, 256, 16},
			{1, 256, 256, 8}, {16, 256, 256, 8}, {16, 512, 256, 8}, {1, 256, 256, 4}, {16, 256, 256, 4},
			{16, 32, 32, 28}, {16, 64, 64, 14}, {16, 96, 96, 7}, {1, 320, 320, 64}, {1, 640, 640, 32}, {1, 1280, 1280, 16}, {1, 1280, 1280, 8},
		} {
			for how, name := range []string{"direct", "F2", "F4"} {
				b.Run(fmt.Sprintf("w%d/n%d_%dx%d_%d/%s", workers, s.n, s.cin, s.cout, s.h, name), func(b *testing.B) {
					r := rng(1)
					spec := ConvSpec{Cin: s.cin, Cout: s.cout, KH: 3, KW: 3, Pad: Same(1)}
					c := newConv(tier, F32, spec.normal(), randoms(r, s.cin*s.cout*9), randoms(r, s.cout), method(how))
					x := randoms(r, s.n*s.h*s.h*s.cin)
					dst := make([]float32, s.n*s.h*s.h*s.cout)
					scratch := make([]float32, c.Scratch(workers, s.n, s.h, s.h, false))
					d := best(b, func() {
						c.Run(p, dst, Input{X: x, C: s.cin}, s.n, s.h, s.h, scratch, Epilogue{})
					})
					report(b, 2*float64(c.MACs(s.n, s.h, s.h)), d, workers, peak)
				})
			}
		}
	}
}

// BenchmarkCold runs layers of one image in turn, together larger than any
// cache, as a network does: weights come from memory.
func BenchmarkCold(b *testing.B) {
	tier := Detect()
	p := NewPool(tier, 2)
	defer p.Close()
	for _, s := range []struct{ n, cin, cout, h int }{
		{1, 128, 128, 32}, {16, 128, 128, 32}, {1, 256, 256, 16}, {16, 256, 256, 16}, {1, 256, 256, 8}, {16, 256, 256, 8}, {1, 256, 256, 4}, {16, 256, 256, 4},
		{1, 320, 320, 64}, {1, 640, 320, 64}, {1, 640, 640, 32}, {1, 1280, 640, 32}, {1, 1280, 1280, 32}, {1, 640, 1280, 16}, {1, 1280, 1280, 16}, {1, 2560, 1280, 16},
		{1, 1280, 1280, 8}, {2, 1280, 1280, 8}, {1, 2560, 1280, 8}, {1, 512, 512, 64},
	} {
		for _, dt := range []DType{F32, BF16} {
			for how, name := range []string{"direct", "F2", "F4"} {
				b.Run(fmt.Sprintf("n%d_%dx%d_%d/%v/%s", s.n, s.cin, s.cout, s.h, dt, name), func(b *testing.B) {
					r := rng(1)
					spec := ConvSpec{Cin: s.cin, Cout: s.cout, KH: 3, KW: 3, Pad: Same(1)}
					weight := randoms(r, s.cin*s.cout*9)
					layers := make([]*Conv, max(24*256*256/s.cin/s.cout, 2))
					for i := range layers {
						layers[i] = newConv(tier, dt, spec.normal(), weight, nil, method(how))
					}
					x := randoms(r, s.n*s.h*s.h*s.cin)
					dst := make([]float32, s.n*s.h*s.h*s.cout)
					scratch := make([]float32, layers[0].Scratch(2, s.n, s.h, s.h, false))
					d := best(b, func() {
						for _, c := range layers {
							c.Run(p, dst, Input{X: x, C: s.cin}, s.n, s.h, s.h, scratch, Epilogue{})
						}
					})
					report(b, 2*float64(layers[0].MACs(s.n, s.h, s.h)), d/time.Duration(len(layers)), 2, 0)
				})
			}
		}
	}
}

// BenchmarkFeedForward is the feed-forward part of a block of DiT-S, fused and
// layer by layer.
func BenchmarkFeedForward(b *testing.B) {
	const n, m, c, h = 8, 256, 384, 1536
	tier := Detect()
	p := NewPool(tier, 2)
	defer p.Close()
	r := rng(1)
	x, gate := randoms(r, n*m*c), randoms(r, n*c)
	y, mid := make([]float32, len(x)), make([]float32, n*m*h)
	for _, dt := range []DType{F32, BF16} {
		first, second := NewLinear(tier, dt, c, h, randoms(r, c*h), randoms(r, h)), NewLinear(tier, dt, h, c, randoms(r, c*h), randoms(r, c))
		in := Input{X: x, C: c, Norm: &RowNorm{Eps: 1e-5}}
		ep := Epilogue{Residual: x, Gate: gate}
		scratch := make([]float32, max(FeedForwardScratch(2, m, first, second), first.ScratchInput(2, n, m), second.ScratchInput(2, n, m)))
		for _, f := range []struct {
			name string
			run  func()
		}{
			{"fused", func() { FeedForward(p, y, in, n, m, first, second, GELUTanh, scratch, ep) }},
			{"layers", func() {
				first.RunInput(p, mid, in, n, m, scratch, Epilogue{Act: GELUTanh})
				second.RunInput(p, y, Input{X: mid, C: h}, n, m, scratch, ep)
			}},
		} {
			b.Run(fmt.Sprintf("%v/%s", dt, f.name), func(b *testing.B) {
				report(b, 4*float64(n*m)*c*h, best(b, f.run), 2, PeakRate(tier, dt))
			})
		}
	}
}
