package features_test

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"drift/internal/kernels"
	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/metrics"
	"drift/metrics/features"
	"drift/metrics/inception"
)

// inceptionFile writes a network of made-up weights in 16 bits.
func inceptionFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "inception.safetensors")
	var list []safetensors.Tensor
	for _, x := range inception.Tensors() {
		list = append(list, safetensors.Tensor{Name: x.Name, DType: safetensors.BF16, Shape: x.Shape})
	}
	w, err := safetensors.Create(path, nil, list)
	if err != nil {
		t.Fatal(err)
	}
	state := uint32(1)
	for _, x := range list {
		v, scale, shift := make([]float32, x.Len()), 0.05, 0.0
		switch {
		case len(x.Shape) > 1:
			scale = math.Sqrt(6 * float64(x.Shape[0]) / float64(x.Len()))
		case strings.HasSuffix(x.Name, "bn.weight"), strings.HasSuffix(x.Name, "running_var"):
			shift = 1
		}
		for i := range v {
			state = state*1664525 + 1013904223
			v[i] = float32(shift + scale*(float64(state>>8)/(1<<23)-1))
		}
		if err := w.Float32(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestInception: the extractors of FID and sFID give what the network gives, picture by picture, and say what they are.
// The network itself is held to torch's numbers in its package.
func TestInception(t *testing.T) {
	if kernels.Detect() == kernels.Portable && os.Getenv("DRIFT_SLOW") == "" {
		t.Skip("many passes of portable kernels; set DRIFT_SLOW=1")
	}
	ctx := context.Background()
	file := inceptionFile(t)
	ex, spatial := open(t, "inception:"+file, metrics.ResizeTF1), open(t, "inception-spatial:"+file, metrics.ResizeTF1)
	im := features.Images{N: 2, H: 20, W: 32, C: 3, Pix: make([]uint8, 2*20*32*3)}
	for i := range im.Pix {
		im.Pix[i] = uint8(i * i / 7)
	}
	v, err := ex.Extract(ctx, im)
	if err != nil {
		t.Fatal(err)
	}
	s, err := spatial.Extract(ctx, im)
	if err != nil {
		t.Fatal(err)
	}
	if d, k := ex.Dims(); d != 2048 || k != 1008 || v.Features.N != 2 || v.Features.D != d || v.Logits.N != 2 || v.Logits.D != k {
		t.Errorf("%d features, %d classes, %+v", d, k, v.Features.N)
	}
	if d, k := spatial.Dims(); d != 2023 || k != 0 || s.Features.N != 2 || s.Features.D != d || s.Logits.N != 0 {
		t.Errorf("%d spatial features, %d classes, %d rows, %d logits", d, k, s.Features.N, s.Logits.N)
	}
	pool := kernels.NewPool(kernels.Detect(), 2)
	defer pool.Close()
	net, err := inception.Open(file, pool)
	if err != nil {
		t.Fatal(err)
	}
	x := make([]float32, inception.Side*inception.Side*3)
	if err := inception.Prepare(x, im.At(1), metrics.ResizeTF1); err != nil {
		t.Fatal(err)
	}
	want := inception.Taps{Features: make([]float32, 2048), Logits: make([]float32, 1008), Spatial: make([]float32, 2023)}
	if err := net.Run(ctx, x, want); err != nil {
		t.Fatal(err)
	}
	different := 0
	for _, c := range []struct {
		have metrics.Matrix
		want []float32
	}{{v.Features, want.Features}, {v.Logits, want.Logits}, {s.Features, want.Spatial}} {
		for j, w := range c.want {
			if c.have.At(1, j) != float64(w) {
				t.Fatalf("value %d of the second picture is %v, want %v", j, c.have.At(1, j), w)
			}
			if c.have.At(0, j) != c.have.At(1, j) {
				different++
			}
		}
	}
	if different < 3000 {
		t.Errorf("the pictures differ in %d values only", different)
	}
	for e, want := range map[features.Extractor]metrics.Identity{
		ex:      {Extractor: "inception/sha256:" + net.Hash[:16] + "/pool3", Resize: "tf1-bilinear-299 (v-128)/128"},
		spatial: {Extractor: "inception/sha256:" + net.Hash[:16] + "/mixed_6-conv-7", Resize: "tf1-bilinear-299 (v-128)/128"},
	} {
		if e.Identity() != want {
			t.Errorf("identity %+v, want %+v", e.Identity(), want)
		}
	}
	if id := open(t, "inception:"+file, metrics.ResizeTorch).Identity().Resize; id != "torch-bilinear-299 v/127.5-1" {
		t.Errorf("resize %q", id)
	}
	plain := open(t, "inception:"+file, "")
	if _, err := plain.Extract(ctx, im); err == nil || !strings.Contains(err.Error(), "takes 299x299") || plain.Identity().Resize != "none (v-128)/128" {
		t.Errorf("another size without a rule: %v, %+v", err, plain.Identity())
	}
	if v, err := plain.Extract(ctx, features.Images{N: 1, H: 299, W: 299, C: 1, Pix: make([]uint8, 299*299)}); err != nil || v.Features.N != 1 {
		t.Error(err)
	}
	stopped, stop := context.WithCancel(ctx)
	stop()
	if _, err := ex.Extract(stopped, im); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestInceptionRefused(t *testing.T) {
	if _, err := features.Open("inception", features.Options{}); err == nil || !strings.Contains(err.Error(), "needs its weights") {
		t.Error(err)
	}
	other := filepath.Join(t.TempDir(), "x.safetensors")
	w, err := safetensors.Create(other, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	var r *refuse.Error
	if _, err := features.Open("inception:"+other, features.Options{}); !errors.As(err, &r) || !strings.Contains(r.Reason, "and 462 more") {
		t.Error(err)
	}
	if _, err := features.Open("inception-spatial:"+filepath.Join(t.TempDir(), "gone"), features.Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
