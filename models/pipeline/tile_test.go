package pipeline

import (
	"context"
	"math"
	"testing"

	"drift/models"
)

// local is an autoencoder whose pixels depend on their own place in the latent and the places beside it: f pixels a side.
type local struct{ f int }

func (l local) Latent() int                        { return 2 }
func (l local) Pictures() int                      { return 1 }
func (l local) Factor() int                        { return l.f }
func (l local) Moments() bool                      { return true }
func (l local) Encoded(h, w int) (int, int, error) { return h / l.f, w / l.f, nil }

func (l local) Encode(_ context.Context, dst, pictures []float64, n, h, w int) error {
	lh, lw := h/l.f, w/l.f
	for i := range n {
		for k := range 4 { // mean and log variance of two channels
			for p := range lh * lw {
				v := pictures[(i*h+p/lw*l.f)*w+p%lw*l.f]
				dst[(i*4+k)*lh*lw+p] = []float64{v, 2 * v, math.Log(0.25), 40}[k]
			}
		}
	}
	return nil
}

func (l local) Decode(_ context.Context, dst, z []float64, n, h, w int) error {
	at := func(i, k, y, x int) float64 {
		return z[((i*2+k)*h+min(max(y, 0), h-1))*w+min(max(x, 0), w-1)]
	}
	for i := range n {
		for y := range h * l.f {
			for x := range w * l.f {
				r, c := y/l.f, x/l.f
				sum := 0.1 * float64(y%l.f-x%l.f)
				for d := -1; d <= 1; d++ {
					sum += at(i, 0, r+d, c) - 0.5*at(i, 1, r, c+d)
				}
				dst[(i*h*l.f+y)*w*l.f+x] = sum
			}
		}
	}
	return nil
}

// TestTiles: a decoder that looks one place aside gives the same picture in tiles, but near their edges, where a tile has no
// neighbours: there it is as near as the weights make it.
func TestTiles(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		h, w, tile int
		least      float64 // share of the pixels that stay the same
	}{{24, 24, 16, 0.6}, {16, 40, 16, 0.6}, {40, 7, 16, 0.6}, {16, 16, 16, 1}, {17, 33, 8, 0.5}} {
		z := models.New(2, 2, c.h, c.w)
		for i := range models.Data(z) {
			models.Data(z)[i] = math.Sin(0.7*float64(i)) + 0.01*float64(i%37)
		}
		whole := &Codec{Autoencoder: local{3}, Scale: 0.5, Shift: 0.25}
		tiled := &Codec{Autoencoder: local{3}, Scale: 0.5, Shift: 0.25, Tile: c.tile}
		a, err := whole.Decode(ctx, z)
		if err != nil {
			t.Fatal(err)
		}
		b, err := tiled.Decode(ctx, z)
		if err != nil {
			t.Fatal(err)
		}
		same, worst := 0, 0.0
		x, y := models.Data(a), models.Data(b)
		for i := range x {
			d := math.Abs(x[i] - y[i])
			worst = max(worst, d)
			if d < 1e-12 {
				same++
			}
		}
		// an edge place errs by a neighbour's difference, under the smallest weight of the ramp
		if share := float64(same) / float64(len(x)); share < c.least || worst > 2 {
			t.Errorf("%v: %.2f of the pixels are the same, worst %g", c, share, worst)
		}
	}
}

// TestPosterior: mean and spread of the latents in the network's own scale; the log variance is cut at 20.
func TestPosterior(t *testing.T) {
	c := &Codec{Autoencoder: local{2}, Scale: 0.5, Shift: 1}
	x := models.New(1, 1, 4, 4)
	for i := range models.Data(x) {
		models.Data(x)[i] = float64(i)
	}
	mean, std, err := c.Posterior(context.Background(), x)
	if err != nil {
		t.Fatal(err)
	}
	for p, v := range []float64{0, 2, 8, 10} {
		for k, want := range []float64{(v - 1) * 0.5, (2*v - 1) * 0.5} {
			if got := models.Data(mean)[k*4+p]; got != want {
				t.Errorf("mean %d,%d is %g, want %g", k, p, got, want)
			}
		}
		for k, want := range []float64{0.25, math.Exp(10) * 0.5} {
			if got := models.Data(std)[k*4+p]; math.Abs(got-want) > 1e-12*want {
				t.Errorf("standard deviation %d,%d is %g, want %g", k, p, got, want)
			}
		}
	}
	if z, err := c.Encode(context.Background(), x); err != nil || models.Data(z)[1] != 0.5 {
		t.Errorf("%v %v", z, err)
	}
	if err := c.DecodeLate(context.Background(), mean, nil, std); err == nil {
		t.Error("a gradient through an autoencoder that has none")
	}
}
