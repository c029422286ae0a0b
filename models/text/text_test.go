package text_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"drift/internal/kernels"
	"drift/models/engine"
	"drift/models/engine/enginetest"
	"drift/models/text"
)

func rows(a enginetest.Array) [][]int {
	if a.Shape == nil {
		return nil
	}
	out := make([][]int, a.Shape[0])
	for i := range out {
		for _, v := range a.Data[i*a.Shape[1] : (i+1)*a.Shape[1]] {
			out[i] = append(out[i], int(v))
		}
	}
	return out
}

func wide(a []float32) []float64 {
	out := make([]float64, len(a))
	for i, v := range a {
		out[i] = float64(v)
	}
	return out
}

func TestFixtures(t *testing.T) {
	for _, c := range []struct {
		name      string
		f32, bf16 float64
	}{
		{"clip-text-quick", 1e-6, 1.3 * 9.1e-3},
		{"clip-text-gelu", 1e-6, 1.3 * 1.1e-2},
		{"clip-text-projection", 1e-6, 1.3 * 1.0e-2},
		{"t5-encoder", 2e-6, 1.3 * 2.3e-2},
		{"t5-encoder-relu-mask", 1e-6, 1.3 * 1.7e-2},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := enginetest.Dir(t, "models", c.name)
			cfg, w := enginetest.Open(t, dir)
			io := enginetest.Read(t, filepath.Join(dir, "io.npz"))
			for _, tier := range kernels.Tiers() {
				for _, dtype := range []kernels.DType{kernels.F32, kernels.BF16} {
					ask := c.f32
					if dtype == kernels.BF16 {
						ask = c.bf16
					}
					pool := kernels.NewPool(tier, 2)
					defer pool.Close()
					e, err := text.New(cfg, w, engine.Options{Pool: pool, DType: dtype})
					if err != nil {
						t.Fatal(err)
					}
					out, err := e.Encode(context.Background(), rows(io["input_ids"]), rows(io["attention_mask"]))
					if err != nil {
						t.Fatal(err)
					}
					check := func(name string, got []float32) {
						want, ok := io[name]
						if !ok {
							return
						}
						if e := enginetest.RelL2(wide(got), want.Data); !(e <= ask) {
							t.Errorf("%v %v %s: relative error %.3g, want at most %g", tier, dtype, name, e, ask)
						}
					}
					check("last_hidden_state", out.Last)
					check("pooler_output", out.Pooled)
					check("text_embeds", out.Projected)
					for i, h := range out.Hidden {
						check(fmt.Sprintf("hidden_states.%d", i), h)
					}
				}
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	dir := enginetest.Dir(t, "models", "clip-text-quick")
	cfg, w := enginetest.Open(t, dir)
	e, err := text.New(cfg, w, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, ids := range [][][]int{nil, {{}}, {{1, 2}, {3}}, {{60}}, {{-1}}, {make([]int, 13)}} {
		if _, err := e.Encode(context.Background(), ids, nil); err == nil {
			t.Errorf("%v was encoded", ids)
		}
	}
}
