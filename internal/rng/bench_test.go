package rng

import "testing"

// perNormal reports the time for each of n values.
func perNormal(b *testing.B, n int, draw func()) {
	b.ReportAllocs()
	for b.Loop() {
		draw()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/value")
}

const benchN = 3072 // a picture of 3x32x32

func BenchmarkTorchRandn32(b *testing.B) {
	g, d := NewTorch(0), make([]float32, benchN)
	perNormal(b, len(d), func() { g.Randn32(d) })
}

func BenchmarkTorchNormalF64From32(b *testing.B) {
	g, d := NewTorch(0), make([]float64, benchN)
	perNormal(b, len(d), func() { g.NormalF64From32(d) })
}

func BenchmarkTorchRandn64(b *testing.B) {
	g, d := NewTorch(0), make([]float64, benchN)
	perNormal(b, len(d), func() { g.Randn64(d) })
}

func BenchmarkNormal(b *testing.B) {
	d := make([]float64, benchN)
	perNormal(b, len(d), func() { Normal(d, Key{Seed: 1}) })
}

func BenchmarkUniform(b *testing.B) {
	d := make([]float64, benchN)
	perNormal(b, len(d), func() { Uniform(d, Key{Seed: 1}) })
}

func BenchmarkBrownian(b *testing.B) {
	d := make([]float64, benchN)
	perNormal(b, len(d), func() { Brownian{}.Normal(d, 0.731, 0.6991) })
}

func BenchmarkRandomState(b *testing.B) {
	g, d := NewRandomState(0), make([]float64, benchN)
	perNormal(b, len(d), func() { g.Randn(d) })
}
