package native_test

import (
	"context"
	"math"
	"os"
	"testing"

	"drift/internal/rng"
	"drift/models/diffusers"
	"drift/models/native"
)

// TestGradients holds the gradient of every class of networks to central differences along random directions, with weights
// that follow from the tensors' names.
func TestGradients(t *testing.T) {
	const models = "../../cmd/drift/testdata/pipelines/models/"
	for _, c := range []struct{ name, file, text string }{
		{"sd1", models + "sd1/unet/config.json", ""},
		{"paint", models + "sd1-paint/unet/config.json", ""},
		{"lcm", models + "lcm/unet/config.json", ""},
		{"sdxl", models + "sdxl/unet/config.json", ""},
		{"sd3", models + "sd3/transformer/config.json", ""},
		{"sd35", "", `{"_class_name": "SD3Transformer2DModel", "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16,
			"caption_projection_dim": 16, "pooled_projection_dim": 12, "pos_embed_max_size": 8, "qk_norm": "rms_norm", "dual_attention_layers": [0]}`},
		{"flux", models + "flux/transformer/config.json", ""},
		{"schnell", models + "schnell/transformer/config.json", ""},
		{"pixart", models + "pixart/transformer/config.json", ""},
		{"pixart-1024", "", `{"_class_name": "PixArtTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 8, "num_layers": 2, "cross_attention_dim": 24, "sample_size": 8,
			"caption_channels": 16, "use_additional_conditions": true}`},
		{"sana", "", `{"_class_name": "SanaTransformer2DModel", "sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8,
			"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 12, "mlp_ratio": 2.0}`},
		{"dit", "", `{"_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2,
			"num_embeds_ada_norm": 10, "activation_fn": "gelu-approximate", "norm_elementwise_affine": false}`},
		{"unet2d", models + "ldm/unet/config.json", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := []byte(c.text)
			if c.file != "" {
				var err error
				if text, err = os.ReadFile(c.file); err != nil {
					t.Fatal(err)
				}
			}
			cfg, err := diffusers.ParseConfig(c.name, text)
			if err != nil {
				t.Fatal(err)
			}
			net, err := native.New(cfg, nil, native.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer net.Close()
			const side, images = 8, 2
			in, outs := net.Channels()
			x, cot := make([]float64, images*in*side*side), make([]float64, images*outs*side*side)
			draw := func(dst []float64, k int) { rng.Normal(dst, rng.Key{Seed: 4, Step: k}) }
			draw(x, 0)
			draw(cot, 1)
			b := &native.Batch{H: side, W: side, T: []float64{0.3, 0.7}, Inputs: net.Example(images), Save: true}
			if _, flow := cfg.(*diffusers.FluxConfig); !flow {
				b.T = []float64{300, 700}
			}
			if net.Classes() > 0 {
				b.Class = []int{1, 2}
			}
			ctx := context.Background()
			out, grad := make([]float64, len(cot)), make([]float64, len(x))
			if err := net.Forward(ctx, out, x, b); err != nil {
				t.Fatal(err)
			}
			if err := net.VJP(ctx, grad, cot); err != nil {
				t.Fatal(err)
			}
			b.Save = false
			v, at := make([]float64, len(x)), make([]float64, len(x))
			side1, side2 := make([]float64, len(out)), make([]float64, len(out))
			var norm float64
			for _, g := range grad {
				norm += g * g
			}
			for k := range 4 {
				draw(v, 2+k)
				difference := func(h float64) (d float64) {
					for i, dst := range [][]float64{side1, side2} {
						for j := range at {
							at[j] = x[j] + h*v[j]*float64(1-2*i)
						}
						if err := net.Forward(ctx, dst, at, b); err != nil {
							t.Fatal(err)
						}
					}
					for j, w := range cot {
						d += w * (side1[j] - side2[j]) / (2 * h)
					}
					return d
				}
				const h = 1e-3
				want, slope := (4*difference(h)-difference(2*h))/3, 0.0 // of fourth order
				for j, g := range grad {
					slope += g * v[j]
				}
				// the slope along a random direction is of the size of the gradient's norm
				if e := math.Abs(slope-want) / math.Sqrt(norm); !(e <= 2e-3) || norm == 0 {
					t.Errorf("direction %d: slope %g, by differences %g (%.2g of the norm)", k, slope, want, e)
				} else {
					t.Logf("direction %d: %.2g", k, e)
				}
			}
		})
	}
}
