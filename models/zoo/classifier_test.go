package zoo

import (
	"context"
	"math"
	"testing"

	"drift/internal/kernels"
	"drift/internal/npz"
)

func golden(t *testing.T, path string) map[string][]float64 {
	all, err := npz.ReadAll(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]float64{}
	for name, a := range all {
		if out[name], err = a.Float64(); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func relL2(a, b []float64) float64 {
	var d, n float64
	for i := range b {
		d += (a[i] - b[i]) * (a[i] - b[i])
		n += b[i] * b[i]
	}
	return math.Sqrt(d / n)
}

func TestClassifier(t *testing.T) {
	pool := kernels.NewPool(kernels.Detect(), 2)
	defer pool.Close()
	c, err := OpenClassifier(pool)
	if err != nil {
		t.Fatal(err)
	}
	g := golden(t, "testdata/classifier-io.npz")
	n := len(g["sample"]) / (28 * 28)
	features, logits := make([]float64, n*Features), make([]float64, n*10)
	if err := c.Run(context.Background(), g["sample"], features, logits); err != nil {
		t.Fatal(err)
	}
	for name, have := range map[string][]float64{"features": features, "logits": logits} {
		if d := relL2(have, g[name]); !(d < 2e-6) {
			t.Errorf("%s: relative L2 error %.2g against torch", name, d)
		}
	}
	// One image at a time gives the same bits.
	one := make([]float64, Features)
	for i := range n {
		if err := c.Run(context.Background(), g["sample"][i*784:(i+1)*784], one, nil); err != nil {
			t.Fatal(err)
		}
		for j, v := range one {
			if v != features[i*Features+j] {
				t.Fatalf("image %d alone has other features", i)
			}
		}
	}
	if err := c.Run(context.Background(), make([]float64, 100), nil, nil); err == nil {
		t.Error("100 values went through as images")
	}
}

// TestClassifierVJP holds the gradients of features and logits to finite differences of the float32 network, along random
// directions, alone and in a batch.
func TestClassifierVJP(t *testing.T) {
	pool := kernels.NewPool(kernels.Detect(), 2)
	defer pool.Close()
	c, err := OpenClassifier(pool)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	x := golden(t, "testdata/classifier-io.npz")["sample"][:3*784]
	for j := range x { // flat backgrounds tie in the pools, where there is no derivative
		x[j] += 0.1 * math.Sin(float64(j*j%1009))
	}
	u, v := make([]float64, 3*Features), make([]float64, 3*10)
	for j := range u {
		u[j] = math.Sin(float64(3 * j))
	}
	for j := range v {
		v[j] = math.Cos(float64(2 * j))
	}
	value := func(x []float64, k int) float64 {
		f, l := make([]float64, Features), make([]float64, 10)
		if err := c.Run(ctx, x[k*784:(k+1)*784], f, l); err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for j, a := range f {
			sum += a * u[k*Features+j]
		}
		for j, a := range l {
			sum += a * v[k*10+j]
		}
		return sum
	}
	grad := make([]float64, len(x))
	if err := c.VJP(ctx, x, u, v, grad); err != nil {
		t.Fatal(err)
	}
	one := make([]float64, 784)
	for k := range 3 {
		if err := c.VJP(ctx, x[k*784:(k+1)*784], u[k*Features:(k+1)*Features], v[k*10:(k+1)*10], one); err != nil {
			t.Fatal(err)
		}
		if d := relL2(one, grad[k*784:(k+1)*784]); d != 0 {
			t.Errorf("image %d alone has another gradient (%g)", k, d)
		}
		var steps, slopes []float64
		for r := range 12 {
			y, dir := append([]float64(nil), x...), make([]float64, 784)
			slope, norm := 0.0, 0.0
			for j := range dir {
				dir[j] = math.Sin(1.7 * float64((j*j*(r+3)+r*j)%997))
				norm += dir[j] * dir[j]
			}
			const h = 2e-3
			side := [2]float64{}
			for s, sign := range []float64{1, -1} {
				for j, d := range dir {
					y[k*784+j] = x[k*784+j] + sign*h*d/math.Sqrt(norm)
				}
				side[s] = value(y, k)
			}
			for j, d := range dir {
				slope += grad[k*784+j] * d / math.Sqrt(norm)
			}
			steps, slopes = append(steps, (side[0]-side[1])/(2*h)), append(slopes, slope)
		}
		if d := relL2(slopes, steps); !(d < 0.04) { // float32, and kinks within the step
			t.Errorf("image %d: the gradient is off finite differences by %.3g", k, d)
		}
	}
	if err := c.VJP(ctx, x, nil, v, grad); err != nil {
		t.Error(err)
	}
	if err := c.VJP(ctx, x, u[1:], v, grad); err == nil {
		t.Error("a cotangent of the wrong length is taken")
	}
}
