package features

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"drift/metrics"
	"drift/models/ort"
)

// The features of a picture are those of the network at v/127.5 - 1, for any batch, and in the middle of more than are
// measured at once.
func TestONNX(t *testing.T) {
	ctx := context.Background()
	load := func() (*ort.Library, error) { return ort.Load(ort.Places{Named: os.Getenv("DRIFT_ORT_LIB")}) }
	lib, err := load()
	var missing *ort.MissingError
	if errors.As(err, &missing) && os.Getenv("DRIFT_ORT_LIB") == "" {
		t.Skip("no ONNX Runtime (DRIFT_ORT_LIB): skipped")
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("..", "..", "models", "ort", "testdata", "classifier.onnx")
	ex, err := Open(path, Options{ORT: load})
	if err != nil {
		t.Fatal(err)
	}
	defer ex.Close()
	if d, k := ex.Dims(); d != 5 || k != 3 {
		t.Fatalf("%d features, %d classes", d, k)
	}
	im := Images{N: 37, H: 4, W: 4, C: 1, Pix: make([]uint8, 37*16)}
	for i := range im.Pix {
		im.Pix[i] = uint8(i * 37)
	}
	v, err := ex.Extract(ctx, im)
	if err != nil {
		t.Fatal(err)
	}
	net, err := lib.OpenNet(ctx, path, nil, ort.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer net.Close()
	j, err := net.Judge(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 15, 16, 36} {
		x, f, l := make([]float64, 16), make([]float64, 5), make([]float64, 3)
		for k := range x {
			x[k] = float64(im.At(i).Pix[k])/127.5 - 1
		}
		if err := j.Run(ctx, x, f, l); err != nil {
			t.Fatal(err)
		}
		for k := range f {
			if math.Abs(f[k]-v.Features.X[5*i+k]) > 1e-6 {
				t.Errorf("picture %d: feature %d is %g, want %g", i, k, v.Features.X[5*i+k], f[k])
			}
		}
		if math.Abs(l[2]-v.Logits.X[3*i+2]) > 1e-6 {
			t.Errorf("picture %d: %g, want %g", i, v.Logits.X[3*i+2], l[2])
		}
	}
	// the grey picture in colours is the same, true colours are refused
	rgb := Images{N: 1, H: 4, W: 4, C: 3, Pix: make([]uint8, 48)}
	for i := range rgb.Pix {
		rgb.Pix[i] = im.Pix[i/3]
	}
	w, err := ex.Extract(ctx, rgb)
	if err != nil || w.Features.X[1] != v.Features.X[1] {
		t.Error(w, err)
	}
	rgb.Pix[4]++
	if _, err := ex.Extract(ctx, rgb); err == nil {
		t.Error("colours")
	}
	if _, err := ex.Extract(ctx, Images{N: 1, H: 5, W: 4, C: 1, Pix: make([]uint8, 20)}); err == nil {
		t.Error("another size without a rule")
	}
	small, err := Open(path, Options{ORT: load, Resize: metrics.ResizePIL})
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	if _, err := small.Extract(ctx, Images{N: 1, H: 8, W: 8, C: 1, Pix: make([]uint8, 64)}); err != nil {
		t.Error(err)
	}
}
