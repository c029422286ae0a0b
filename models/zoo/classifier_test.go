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
