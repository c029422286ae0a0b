package unetcond_test

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"drift/internal/half"
	"drift/internal/kernels"
	"drift/internal/safetensors"
	"drift/models/diffusers"
	"drift/models/engine"
	"drift/models/engine/enginetest"
)

const tinyConfig = `{"_class_name": "UNet2DConditionModel", "block_out_channels": [32, 64], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
	"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "cross_attention_dim": 24, "attention_head_dim": 4, "layers_per_block": 1, "sample_size": 16}`

// write stores the formula weights of the tiny network in a type, or, for a
// type that widens, the same numbers in float32.
func write(t *testing.T, dtype safetensors.DType, wide bool) (diffusers.Config, diffusers.Weights) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(tinyConfig), 0o666); err != nil {
		t.Fatal(err)
	}
	cfg, err := diffusers.ReadConfig(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := diffusers.NewFormula(cfg)
	if err != nil {
		t.Fatal(err)
	}
	stored := dtype
	if wide {
		stored = safetensors.F32
	}
	var list []safetensors.Tensor
	for _, name := range f.Names() {
		shape, _ := f.Shape(name)
		list = append(list, safetensors.Tensor{Name: name, DType: stored, Shape: shape})
	}
	w, err := safetensors.Create(filepath.Join(dir, "diffusion_pytorch_model.safetensors"), nil, list)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		v, err := f.Float32(x.Name)
		if err != nil {
			t.Fatal(err)
		}
		for i, y := range v {
			switch dtype {
			case safetensors.F16:
				v[i] = half.Float16(half.ToFloat16(y))
			case safetensors.BF16:
				v[i] = half.BFloat16(half.ToBFloat16(y))
			}
		}
		if err := w.Float32(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	m, err := diffusers.Open(dir, diffusers.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m.Config, m.Weights
}

// A network on weights that are stored in 16 bits has the bits, forward and
// backward, of the one on the widened weights, and at most half of its memory.
func TestStored(t *testing.T) {
	x := make([]float64, 4*16*16)
	for i := range x {
		x[i] = math.Sin(1.7 * float64(i))
	}
	for _, stored := range []safetensors.DType{safetensors.F16, safetensors.BF16} {
		for _, tier := range kernels.Tiers() {
			if tier == kernels.Portable && len(kernels.Tiers()) > 1 {
				continue // slow; package kernels holds each of its layers to the same
			}
			for _, dtype := range []kernels.DType{kernels.F32, kernels.BF16} {
				var outs, grads [2][]float64
				var bytes [2]int
				for k, wide := range []bool{false, true} {
					pool := kernels.NewPool(tier, 2)
					defer pool.Close()
					cfg, w := write(t, stored, wide)
					n := enginetest.Make(t, open, cfg, w, engine.Options{Pool: pool, DType: dtype})
					b := n.Example(1)
					b.Save = true
					outs[k], grads[k] = make([]float64, len(x)), make([]float64, len(x))
					if err := n.Forward(context.Background(), outs[k], x, b); err != nil {
						t.Fatal(err)
					}
					if err := n.VJP(context.Background(), grads[k], outs[k]); err != nil {
						t.Fatal(err)
					}
					bytes[k] = n.Weights()
				}
				if !slices.Equal(outs[0], outs[1]) || !slices.Equal(grads[0], grads[1]) {
					t.Errorf("%s on %v in %v: relative error %.3g, of the gradient %.3g", stored, tier, dtype,
						enginetest.RelL2(outs[0], outs[1]), enginetest.RelL2(grads[0], grads[1]))
				}
				if dtype == kernels.F32 && 2*bytes[0] > bytes[1] {
					t.Errorf("%s on %v: %d bytes, %d widened", stored, tier, bytes[0], bytes[1])
				}
			}
		}
	}
}

// The UNet of Stable Diffusion 1 at full size, on weights that follow from the
// tensors' names.
func TestFullSize(t *testing.T) {
	if os.Getenv("DRIFT_SLOW") == "" {
		t.Skip("takes long: set DRIFT_SLOW=1")
	}
	dir := enginetest.Dir(t, "models", "formula-sd1-unet")
	cfg, err := diffusers.ReadConfig(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := diffusers.NewFormula(cfg)
	if err != nil {
		t.Fatal(err)
	}
	io := enginetest.Read(t, filepath.Join(dir, "io.npz"))
	x, c := io["sample"], io["encoder_hidden_states"]
	b := &engine.Batch{H: x.Shape[2], W: x.Shape[3], T: io["timestep"].Data,
		Inputs: map[string]engine.Array{"encoder_hidden_states": {Shape: c.Shape, Data: c.F32()}}}
	for dtype, ask := range map[kernels.DType]float64{kernels.F32: 3e-6, kernels.BF16: 2.1e-2} {
		out := make([]float64, len(x.Data))
		n, err := open(cfg, w, engine.Options{DType: dtype})
		if err != nil {
			t.Fatal(err)
		}
		err = n.Forward(context.Background(), out, x.Data, b)
		n.Close()
		if err != nil {
			t.Fatal(err)
		}
		e := enginetest.RelL2(out, io["out"].Data)
		t.Logf("%v: %.3g", dtype, e)
		if !(e <= ask) {
			t.Errorf("%v: relative error %.3g, asked for %.3g", dtype, e, ask)
		}
	}
}
