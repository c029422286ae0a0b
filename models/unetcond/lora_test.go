package unetcond_test

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/models/diffusers"
	"drift/models/engine"
	"drift/models/engine/enginetest"
)

// TestLoRA merges the same changes under peft's names and under kohya's, and compares with a float64 run of the merged
// network. diffusers' own merge in float32 is at 1.2e-6; twice that, rounded up, is asked for.
func TestLoRA(t *testing.T) {
	dir := enginetest.Dir(t, "models", "unet2dcond-sd1")
	cfg, w := enginetest.Open(t, dir)
	io := enginetest.Read(t, filepath.Join(dir, "io.npz"))
	want := enginetest.Read(t, "../diffusers/testdata/lora/io.npz")["out"]
	x := io["sample"]
	b := &engine.Batch{H: x.Shape[2], W: x.Shape[3], T: io["timestep"].Data, Inputs: map[string]engine.Array{}}
	for len(b.T) < x.Shape[0] {
		b.T = append(b.T, b.T[0])
	}
	c := io["encoder_hidden_states"]
	b.Inputs["encoder_hidden_states"] = engine.Array{Shape: c.Shape, Data: c.F32()}
	for _, name := range []string{"peft", "kohya"} {
		l, err := diffusers.OpenLoRA("../diffusers/testdata/lora/" + name + ".safetensors")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if !slices.Equal(l.Components(), []string{"unet"}) {
			t.Errorf("%s changes %v", name, l.Components())
		}
		for _, scale := range []float64{0.8, 0} {
			m, err := l.Merge("unet", cfg, w, scale)
			if err != nil {
				t.Fatal(err)
			}
			golden := want.Data
			if scale == 0 {
				golden = io["out"].Data
			}
			out := make([]float64, len(golden))
			if err := enginetest.Make(t, open, cfg, m, engine.Options{}).Forward(context.Background(), out, x.Data, b); err != nil {
				t.Fatal(err)
			}
			if e := enginetest.RelL2(out, golden); !(e <= 3e-6) {
				t.Errorf("%s at %g: relative error %.3g", name, scale, e)
			}
		}
		if _, err := l.Merge("unet", cfg, lacking{w}, 1); err == nil || !strings.Contains(err.Error(), "does not have") {
			t.Errorf("%s: a module that is not there: %v", name, err)
		}
	}
	if _, err := diffusers.OpenLoRA(filepath.Join(dir, "diffusion_pytorch_model.safetensors")); err == nil || !strings.Contains(err.Error(), "no part of a LoRA") {
		t.Errorf("weights were taken for a LoRA: %v", err)
	}
}

// lacking is weights without their middle block.
type lacking struct{ diffusers.Weights }

func (l lacking) Names() []string {
	return slices.DeleteFunc(l.Weights.Names(), func(n string) bool { return strings.HasPrefix(n, "mid_block") })
}

func (l lacking) Shape(name string) ([]int, bool) {
	if strings.HasPrefix(name, "mid_block") {
		return nil, false
	}
	return l.Weights.Shape(name)
}
