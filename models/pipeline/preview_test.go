package pipeline

import (
	"context"
	"fmt"
	"math"
	"testing"

	"gorgonia.org/tensor"

	"drift/models"
)

// blocks is a decoder whose pictures are a Linear, every place a square of pixels that differ around its colour.
type blocks struct {
	Linear
	f int
}

func (b blocks) Decode(_ context.Context, z *tensor.Dense) (*tensor.Dense, error) {
	small, err := b.Preview(z)
	if err != nil {
		return nil, err
	}
	s := small.Shape()
	out := models.New(s[0], s[1], s[2]*b.f, s[3]*b.f)
	for i := range models.Data(out) {
		w := s[3] * b.f
		y, x := i/w%(s[2]*b.f), i%w
		m := i / (w * s[2] * b.f)
		around := 0.0
		if b.f > 1 {
			around = float64((x+y)%2)*2 - 1
		}
		models.Data(out)[i] = models.Data(small)[(m*s[2]+y/b.f)*s[3]+x/b.f] + around
	}
	return out, nil
}

// TestFitLinear: a decoder that is linear is found exactly, whatever the number of channels, colours and pixels.
func TestFitLinear(t *testing.T) {
	for _, c := range []struct{ channels, colours, f int }{{4, 3, 8}, {16, 3, 2}, {3, 1, 1}, {1, 1, 4}} {
		want := blocks{f: c.f}
		for k := range c.channels {
			row := make([]float64, c.colours)
			for j := range row {
				row[j] = math.Sin(float64(3*k + 5*j + 1))
			}
			want.Factors = append(want.Factors, row)
		}
		for j := range c.colours {
			want.Bias = append(want.Bias, 0.1*float64(j)-0.2)
		}
		got, err := FitLinear(context.Background(), want, c.channels)
		if err != nil {
			t.Fatal(err)
		}
		for k, row := range append(got.Factors, got.Bias) {
			for j, v := range row {
				w := append(want.Factors, want.Bias)[k][j]
				if math.Abs(v-w) > 1e-12 {
					t.Errorf("%v: factor %d,%d is %g, want %g", c, k, j, v, w)
				}
			}
		}
	}
	if _, err := FitLinear(context.Background(), blocks{Linear: Linear{Factors: [][]float64{{1}}, Bias: []float64{0}}, f: 1}, 2); err == nil {
		t.Error("a decoder of other channels was fitted")
	}
}

func TestSmooth(t *testing.T) {
	z := models.Data(smooth(8, 16, 16, 4))
	var mean, square float64
	for _, v := range z {
		mean, square = mean+v, square+v*v
	}
	n := float64(len(z))
	if mean, square = mean/n, square/n; math.Abs(mean) > 0.1 || math.Abs(square-1) > 0.1 {
		t.Errorf("mean %g, mean square %g", mean, square)
	}
}

func TestFamilies(t *testing.T) {
	for i, f := range families {
		if len(f.Bias) != 3 || len(f.Factors) != []int{4, 4, 16, 16}[i] {
			t.Errorf("family %d has %d channels", i, len(f.Factors))
		}
		for _, row := range f.Factors {
			if len(row) != 3 {
				t.Errorf("family %d: a row of %d", i, len(row))
			}
		}
	}
}

// A preview needs no network: four channels at a place make one pixel.
func ExampleLinear() {
	l := families[0].Linear // Stable Diffusion 1
	z := models.Wrap([]float64{1, 0, 0, 0}, 1, 4, 1, 1)
	x, err := l.Preview(z)
	fmt.Println(models.Data(x), err)
	// Output: [0.3512 0.2297 0.3227] <nil>
}
