package autoencoder_test

import (
	"context"
	"path/filepath"
	"slices"
	"testing"

	"drift/internal/kernels"
	"drift/models/autoencoder"
	"drift/models/engine"
	"drift/models/engine/enginetest"
)

// asks are relative L2 errors in float32; in bfloat16 1.3 times torch's.
var asks = []struct {
	name           string
	f32            float64
	bf16E, bf16D   float64
	encoded, input string
}{
	{"vae-kl", 2e-6, 1.3 * 1.3e-2, 1.3 * 1.4e-2, "moments", "sample"},
	{"vae-kl-no-quant", 2e-6, 1.3 * 1.9e-2, 1.3 * 1.3e-2, "moments", "sample"},
	{"vae-kl-no-attention", 1e-6, 1.3 * 9.8e-3, 1.3 * 1.1e-2, "moments", "sample"},
	{"vae-tiny", 1e-6, 1.3 * 6.9e-3, 1.3 * 4.9e-3, "latents", "sample"},
	{"vq", 2e-6, 1.3 * 1.1e-2, 1.3 * 2.1e-2, "latents", "sample"},
	{"legacy-vae", 2e-6, 0, 0, "moments", "sample"},
}

func TestFixtures(t *testing.T) {
	for _, c := range asks {
		t.Run(c.name, func(t *testing.T) {
			dir := enginetest.Dir(t, "models", c.name)
			cfg, w := enginetest.Open(t, dir)
			io := enginetest.Read(t, filepath.Join(dir, "io.npz"))
			for _, tier := range kernels.Tiers() {
				pool := kernels.NewPool(tier, 2)
				defer pool.Close()
				for _, dtype := range []kernels.DType{kernels.F32, kernels.BF16} {
					askE, askD := c.f32, c.f32
					if dtype == kernels.BF16 {
						if askE, askD = c.bf16E, c.bf16D; askE == 0 {
							continue
						}
					}
					a, err := autoencoder.New(cfg, w, engine.Options{Pool: pool, DType: dtype})
					if err != nil {
						t.Fatal(err)
					}
					x, want := io[c.input], io[c.encoded]
					got := make([]float64, len(want.Data))
					if err := a.Encode(context.Background(), got, x.Data, x.Shape[0], x.Shape[2], x.Shape[3]); err != nil {
						t.Fatal(err)
					}
					if e := enginetest.RelL2(got, want.Data); !(e <= askE) {
						t.Errorf("%v %v encode: %.3g, want at most %g", tier, dtype, e, askE)
					}
					z, pictures := io["latent"], io["decoded"]
					got = make([]float64, len(pictures.Data))
					decode := func(dst, latents []float64, n int) {
						if err := a.Decode(context.Background(), dst, latents, n, z.Shape[2], z.Shape[3]); err != nil {
							t.Fatal(err)
						}
					}
					decode(got, z.Data, z.Shape[0])
					if e := enginetest.RelL2(got, pictures.Data); !(e <= askD) {
						t.Errorf("%v %v decode: %.3g, want at most %g", tier, dtype, e, askD)
					}
					per := len(got) / z.Shape[0]
					one := make([]float64, per)
					decode(one, z.Data[:len(z.Data)/z.Shape[0]], 1)
					if !slices.Equal(one, got[:per]) {
						t.Errorf("%v %v: a picture alone has other bits than in the batch", tier, dtype)
					}
				}
			}
		})
	}
}

// TestDecodeVJP holds the decoder's gradient to finite differences.
func TestDecodeVJP(t *testing.T) {
	for _, name := range []string{"vae-kl", "vae-tiny"} {
		dir := enginetest.Dir(t, "models", name)
		cfg, w := enginetest.Open(t, dir)
		io := enginetest.Read(t, filepath.Join(dir, "io.npz"))
		pool := kernels.NewPool(kernels.Detect(), 2)
		defer pool.Close()
		a, err := autoencoder.New(cfg, w, engine.Options{Pool: pool})
		if err != nil {
			t.Fatal(err)
		}
		z := io["latent"]
		n, h, wd := z.Shape[0], z.Shape[2], z.Shape[3]
		out := make([]float64, len(io["decoded"].Data))
		co := make([]float64, len(out))
		for i := range co {
			co[i] = float64((i*7919)%13-6) / 13
		}
		grad := make([]float64, len(z.Data))
		ctx := context.Background()
		if err := a.DecodeVJP(ctx, grad, out, co, z.Data, n, h, wd); err != nil {
			t.Fatal(err)
		}
		// Along many directions: one alone may cross a kink of a ReLU.
		const eps, directions = 3e-3, 24
		got, want := make([]float64, directions), make([]float64, directions)
		for k := range directions {
			along := make([]float64, len(z.Data))
			for i := range along {
				along[i] = float64((i*104729+k*7331)%17-8) / 17
				got[k] += grad[i] * along[i]
			}
			for _, s := range []float64{eps, -eps} {
				x := slices.Clone(z.Data)
				for i := range x {
					x[i] += s * along[i]
				}
				if err := a.Decode(ctx, out, x, n, h, wd); err != nil {
					t.Fatal(err)
				}
				for i, v := range out {
					want[k] += v * co[i] / (2 * s)
				}
			}
		}
		if e := enginetest.RelL2(got, want); e > 2e-2 {
			t.Errorf("%s: relative error %.3g against differences", name, e)
		} else {
			t.Logf("%s: %.3g", name, e)
		}
	}
}
