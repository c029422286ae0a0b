package inverse_test

import (
	"strings"
	"testing"

	"drift/samplers/inverse"
)

// TestMeasurement: what is measured without noise is what the operator sees, a seed repeats its noise, and what has a
// picture shows it.
func TestMeasurement(t *testing.T) {
	x := make([]float64, 64)
	for i := range x {
		x[i] = float64(i)/32 - 1
	}
	for _, c := range []struct {
		text  string
		shape []int // of the picture, nil: none
	}{
		{"superres:factor=4", []int{1, 2, 2}},
		{"inpaint:box=centre", []int{1, 8, 8}},
		{"denoise", []int{1, 8, 8}},
	} {
		a, err := inverse.Degradation(c.text, []int{1, 8, 8}, nil)
		if err != nil {
			t.Fatal(err)
		}
		exact := inverse.Measure(a, x, 0, 1, 0)
		for _, v := range exact.Residual(x) {
			if v != 0 {
				t.Errorf("%s: y - A(x) = %g without noise", c.text, v)
			}
		}
		y, again, other := inverse.Measure(a, x, 0.1, 1, 0), inverse.Measure(a, x, 0.1, 1, 0), inverse.Measure(a, x, 0.1, 2, 0)
		if y.Y[0] != again.Y[0] || y.Y[0] == other.Y[0] || y.Y[0] == exact.Y[0] {
			t.Errorf("%s: noise %g, again %g, of another seed %g", c.text, y.Y[0], again.Y[0], other.Y[0])
		}
		p, shape, ok := inverse.Picture(y)
		if n := c.shape[1] * c.shape[2]; !ok || len(p) != n || len(shape) != 3 || shape[1] != c.shape[1] {
			t.Errorf("%s: a picture of shape %v with %d values (%v), want %v", c.text, shape, len(p), ok, c.shape)
		}
	}
	a, err := inverse.Degradation("matrix:rows=1 0", []int{2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inverse.Degradation("superes", []int{1, 8, 8}, nil); err == nil || !strings.Contains(err.Error(), "superres") {
		t.Errorf("no suggestion: %v", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("an image of another size was taken")
		}
	}()
	inverse.Measure(a, x, 0, 1, 0)
}
