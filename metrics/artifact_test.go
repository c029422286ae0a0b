package metrics

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// TestMagnitude: by hand, and by the definition written the slow way.
func TestMagnitude(t *testing.T) {
	x := make([]float64, 2*8*8)
	if s, err := (Magnitude{}).Score(x, []int{2, 8, 8}); err != nil || s != 0 {
		t.Errorf("zeros score %g, %v", s, err)
	}
	x[8*8+3*8+2] = -5 // channel 1, window (0, 0)
	x[7*8+7] = 4      // window (1, 1)
	x[7*8+1] = 2.9    // below the threshold
	if s, err := (Magnitude{}).Score(x, []int{2, 8, 8}); err != nil || math.Abs(s-(5+4)/4.) > 1e-15 {
		t.Errorf("score %g, %v; want 9/4", s, err)
	}
	m := Magnitude{Mean: []float64{1, 0}, Std: []float64{0.5, 2}, Pool: 2, Threshold: 2.25}
	r := rand.New(rand.NewPCG(1, 2))
	for trial := range 50 {
		h, w := 2+trial%5, 2+trial%7
		x := make([]float64, 2*h*w)
		for i := range x {
			x[i] = 2 * r.NormFloat64()
		}
		want := 0.0
		for i := range h / 2 {
			for j := range w / 2 {
				p := 0.0
				for k := range 2 {
					for di := range 2 {
						for dj := range 2 {
							p = max(p, math.Abs(x[k*h*w+(2*i+di)*w+2*j+dj]-m.Mean[k])/m.Std[k])
						}
					}
				}
				if p >= 2.25 {
					want += p
				}
			}
		}
		want /= float64(h / 2 * (w / 2))
		if s, err := m.Score(x, []int{2, h, w}); err != nil || math.Abs(s-want) > 1e-12 {
			t.Errorf("%dx%d: %g, %v; want %g", h, w, s, err, want)
		}
	}
	if s, err := LatentMagnitude().Score(make([]float64, 4*8*8), []int{4, 8, 8}); err != nil || s != 0 {
		t.Errorf("a latent of zeros scores %g, %v", s, err)
	}
	x[5] = math.NaN()
	if _, err := (Magnitude{}).Score(x, []int{2, 8, 8}); !errors.Is(err, ErrNaN) {
		t.Error(err)
	}
	for _, c := range []struct {
		m     Magnitude
		shape []int
	}{{Magnitude{}, []int{2, 8, 7}}, {Magnitude{}, []int{128}}, {Magnitude{Pool: 9}, []int{2, 8, 8}}, {Magnitude{Mean: []float64{1, 2, 3}}, []int{2, 8, 8}}, {LatentMagnitude(), []int{2, 8, 8}}} {
		if _, err := c.m.Score(make([]float64, 128), c.shape); !errors.Is(err, ErrDims) {
			t.Errorf("%+v %v: %v", c.m, c.shape, err)
		}
	}
	if _, err := (Magnitude{Std: []float64{0}}).Score(make([]float64, 128), []int{2, 8, 8}); err == nil {
		t.Error("a deviation of zero was accepted")
	}
}

// TestWilson: values of Brown, Cai and DasGupta (2001)'s formula by hand, and the interval's ends solve
// |p - k/n| = z sqrt(p(1-p)/n).
func TestWilson(t *testing.T) {
	for _, c := range [][2]int{{0, 10}, {1, 10}, {5, 10}, {10, 10}, {37, 1000}} {
		k, n := c[0], c[1]
		lo, hi := Wilson(k, n)
		p := float64(k) / float64(n)
		for _, e := range []float64{lo, hi} {
			if e == 0 || e == 1 {
				continue
			}
			if d := math.Abs(e-p) - 1.959963984540054*math.Sqrt(e*(1-e)/float64(n)); math.Abs(d) > 1e-12 {
				t.Errorf("%d of %d: %g to %g", k, n, lo, hi)
			}
		}
		if !(lo <= p && p <= hi) || lo < 0 || hi > 1 {
			t.Errorf("%d of %d: %g to %g", k, n, lo, hi)
		}
	}
	if lo, hi := Wilson(0, 0); lo != 0 || hi != 1 {
		t.Error(lo, hi)
	}
}

// A sample of four windows, one of which holds a value of five standard deviations.
func ExampleMagnitude() {
	x := make([]float64, 8*8)
	x[9] = 5
	s, err := (Magnitude{}).Score(x, []int{1, 8, 8})
	fmt.Println(s, err)
	// Output: 1.25 <nil>
}
