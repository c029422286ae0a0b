package bench

import (
	"context"
	"fmt"

	"drift/internal/pixels"
	"drift/metrics"
	"drift/metrics/features"
)

// Measurer turns the samples of a batch into vectors.
type Measurer interface {
	Identity() metrics.Identity
	Dims() (features, classes int)
	// Rounding spells out the rule to bytes that a name stands for, empty for samples that are not rounded.
	Rounding(name string) string
	// Measure takes n samples in [-1, 1]; pix are their bytes, nil for samples that are no pictures.
	Measure(ctx context.Context, x []float64, n int, rounding string) (v features.Vectors, pix []byte, err error)
}

// PictureMeasurer measures pictures of one shape by an extractor.
func PictureMeasurer(ctx context.Context, ex features.Extractor, shape []int) (Measurer, error) {
	if !pixels.Picture(shape) {
		return nil, fmt.Errorf("bench: rows of shape %v are no pictures", shape)
	}
	c, h, w := shape[0], shape[1], shape[2]
	v, err := ex.Extract(ctx, features.Images{N: 1, H: h, W: w, C: c, Pix: make([]uint8, c*h*w)})
	if err != nil {
		return nil, err
	}
	return &pictures{ex: ex, shape: shape, d: v.Features.D, k: v.Logits.D}, nil
}

type pictures struct {
	ex    features.Extractor
	shape []int
	d, k  int
}

func (p *pictures) Identity() metrics.Identity { return p.ex.Identity() }
func (p *pictures) Dims() (int, int)           { return p.d, p.k }

func (p *pictures) Rounding(name string) string {
	if name == "" || name == "edm" {
		return string(pixels.Floor)
	}
	return name
}

func (p *pictures) Measure(ctx context.Context, x []float64, n int, rounding string) (features.Vectors, []byte, error) {
	c, h, w := p.shape[0], p.shape[1], p.shape[2]
	size := c * h * w
	pix := make([]byte, n*size)
	for i := range n {
		pixels.Bytes(pix[i*size:(i+1)*size], x[i*size:(i+1)*size], p.shape, pixels.Rounding(rounding))
	}
	v, err := p.ex.Extract(ctx, features.Images{N: n, H: h, W: w, C: c, Pix: pix})
	return v, pix, err
}

// States measures samples that are no pictures: the features are the state.
type States struct{ Dim int }

// Identity implements Measurer.
func (States) Identity() metrics.Identity {
	return metrics.Identity{Extractor: "state", Resize: "none"}
}

// Dims implements Measurer.
func (s States) Dims() (int, int) { return s.Dim, 0 }

// Rounding implements Measurer.
func (States) Rounding(string) string { return "" }

// Measure implements Measurer.
func (s States) Measure(_ context.Context, x []float64, n int, _ string) (features.Vectors, []byte, error) {
	return features.Vectors{Features: metrics.Matrix{N: n, D: s.Dim, X: x}}, nil, nil
}

// Sequences measures sequences of letters: the largest of the K probabilities at every position, by an extractor of
// sequences.
type Sequences struct {
	Ex   features.Extractor
	L, K int
}

// Identity implements Measurer.
func (s Sequences) Identity() metrics.Identity { return s.Ex.Identity() }

// Dims implements Measurer.
func (s Sequences) Dims() (int, int) { return s.Ex.Dims() }

// Rounding implements Measurer.
func (Sequences) Rounding(string) string { return "" }

// Measure implements Measurer.
func (s Sequences) Measure(ctx context.Context, x []float64, n int, _ string) (features.Vectors, []byte, error) {
	tokens := make([]byte, n*s.L)
	for l := range tokens {
		p := x[l*s.K : (l+1)*s.K]
		for k, v := range p {
			if v > p[tokens[l]] {
				tokens[l] = byte(k)
			}
		}
	}
	v, err := s.Ex.Extract(ctx, features.Images{N: n, H: 1, W: s.L, C: 1, Pix: tokens})
	return v, nil, err
}
