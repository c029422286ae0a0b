package open_test

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/guidance"
	"drift/internal/refuse"
	"drift/models"
	"drift/models/open"
	"drift/samplers"
)

func fixtures(t *testing.T) string {
	f := os.Getenv("DRIFT_FIXTURES")
	if f == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	return f
}

// TestPipeDDPM runs DDPMPipeline's folder as its scheduler says, on the recorded noise, against a float64 run: relative
// L2 error of every latent at most 5e-6, of the images 5e-6.
func TestPipeDDPM(t *testing.T) {
	folder := filepath.Join(fixtures(t), "models", "pipe-ddpm")
	m, err := open.Open(context.Background(), folder, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	g := arrays(t, filepath.Join(folder, "expected.npz"))
	steps := len(g["timesteps"])
	grid, err := m.Defaults.Grid(steps)
	if err != nil {
		t.Fatal(err)
	}
	for i, ts := range g["timesteps"] {
		if math.Abs(grid[i].T-ts) > 1e-9 {
			t.Fatalf("node %d is at %g, diffusers asks at %g", i, grid[i].T, ts)
		}
	}
	den := m.Denoiser
	for _, s := range m.Defaults.Guiders {
		gd, err := guidance.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		den = gd.Guide(den)
	}
	sampler, err := samplers.Parse(m.Defaults.Sampler)
	if err != nil {
		t.Fatal(err)
	}
	rows := len(g["noise"]) / (m.Info.Shape[0] * m.Info.Shape[1] * m.Info.Shape[2])
	n := len(g["noise"])
	shape := append([]int{rows}, m.Info.Shape...)
	per := len(g["step_noise"]) / n
	noise, err := samplers.NewRecorded(models.Wrap(append(g["step_noise"], make([]float64, (steps-per)*n)...), append([]int{steps}, shape...)...), steps)
	if err != nil {
		t.Fatal(err)
	}
	p := &samplers.Problem{Model: den, Grid: grid, Rows: make([]models.Row, rows), Start: models.Wrap(g["noise"], shape...), Noise: noise}
	p.Observe = func(s *samplers.State) error {
		if d := relL2(models.Data(s.X), g["latents"][s.I*n:(s.I+1)*n]); !(d < 5e-6) {
			t.Errorf("latents after step %d: relative L2 error %.2g", s.I, d)
		}
		return nil
	}
	if _, err := samplers.Sample(context.Background(), sampler, p); err != nil {
		t.Fatal(err)
	}
}

func relL2(a, b []float64) float64 {
	var d, n float64
	for i := range b {
		d += (a[i] - b[i]) * (a[i] - b[i])
		n += b[i] * b[i]
	}
	return math.Sqrt(d / n)
}

// TestPipelines runs whole pipelines as their schedulers say, on the recorded noise, against float64 runs: relative L2
// error of every latent at most what the fixtures ask for, of the pictures 5e-6, and at most one byte of a thousand off
// by one.
func TestPipelines(t *testing.T) {
	for _, c := range []struct {
		name  string
		opt   open.Options
		cfg   string
		cond  models.Cond
		ask   float64
		twice bool // the file holds every row twice, for the condition and for none
	}{
		{"pipe-sd1", open.Options{}, "cfg:w=5", models.Cond{Prompts: []string{"A photograph of an astronaut riding a horse", "a cat's portrait, oil on canvas"}}, 5e-6, false},
		{"pipe-dit", open.Options{}, "cfg:w=4", models.Cond{Classes: []int{3, 9}}, 1e-5, true},
		{"pipe-sd3", open.Options{Pipeline: open.Pipeline{Width: 32, Height: 32, TextTokens: 16}}, "cfg:w=3",
			models.Cond{Prompts: []string{"A red cube on top of a blue sphere", "fog"}, Negative: []string{"rain", ""}}, 5e-6, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			folder := filepath.Join(fixtures(t), "models", c.name)
			m, err := open.Open(context.Background(), folder, c.opt)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			g := arrays(t, filepath.Join(folder, "expected.npz"))
			grid, err := m.Defaults.Grid(len(g["timesteps"]))
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := guidance.Parse(c.cfg)
			if err != nil {
				t.Fatal(err)
			}
			sampler, err := samplers.Parse(m.Defaults.Sampler)
			if err != nil {
				t.Fatal(err)
			}
			n := len(g["noise"])
			p := &samplers.Problem{Model: cfg.Guide(m.Denoiser), Grid: grid, Rows: make([]models.Row, 2), Cond: &c.cond,
				Start: models.Wrap(g["noise"], append([]int{2}, m.Info.Shape...)...), Codec: m.Codec}
			each := n
			if c.twice {
				each = 2 * n
			}
			worst := 0.0
			p.Observe = func(s *samplers.State) error {
				d := relL2(models.Data(s.X), g["latents"][each*s.I:][:n])
				worst = max(worst, d)
				if !(d < c.ask) {
					t.Errorf("latents after step %d: relative L2 error %.2g", s.I, d)
				}
				return nil
			}
			res, err := samplers.Sample(context.Background(), sampler, p)
			if err != nil {
				t.Fatal(err)
			}
			pictures, err := m.Codec.Decode(context.Background(), res.X)
			if err != nil {
				t.Fatal(err)
			}
			s := pictures.Shape()
			if !slices.Equal([]int(s[1:]), m.Info.Image()) {
				t.Errorf("pictures of shape %v, announced %v", s, m.Info.Image())
			}
			out, bytes, off := make([]float64, len(g["images"])), g["images_uint8"], 0
			for i := range s[0] { // to (N, H, W, C) in [0, 1]
				for k := range s[1] {
					for p := range s[2] * s[3] {
						v := min(max(models.Data(pictures)[(i*s[1]+k)*s[2]*s[3]+p]/2+0.5, 0), 1)
						at := (i*s[2]*s[3]+p)*s[1] + k
						out[at] = v
						if d := math.Abs(math.RoundToEven(255*v) - bytes[at]); d > 1 {
							t.Errorf("byte %d is off by %g", at, d)
						} else if d == 1 {
							off++
						}
					}
				}
			}
			if d := relL2(out, g["images"]); !(d < 5e-6) || off > len(out)/1000 {
				t.Errorf("pictures: relative L2 error %.2g, %d bytes of %d off by one", d, off, len(out))
			}
			t.Logf("latents %.2g, pictures %.2g, %d bytes of %d off by one", worst, relL2(out, g["images"]), off, len(out))
		})
	}
}

// TestRefused: what this build cannot run is refused by name, before any weights are read.
func TestRefused(t *testing.T) {
	f := fixtures(t)
	for name, want := range map[string]string{
		"vae-kl": "AutoencoderKL", "unet2dcond-sd1": "scheduler_config.json", "dit": "scheduler_config.json",
	} {
		_, err := open.Open(context.Background(), filepath.Join(f, "models", name), open.Options{})
		var r *refuse.Error
		if !errors.As(err, &r) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want a refusal that names %s", name, err, want)
		}
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]string{"fashion-flo": "fashion-flow", "no/such": "not a file or folder", os.DevNull: "neither"} {
		if _, err := open.Open(context.Background(), name, open.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	for want, opt := range map[string]open.Options{"not f64": {DType: "f64"}, "unknown tier": {Tier: "mmx"}} {
		if _, err := open.Open(context.Background(), "fashion", opt); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", opt, err, want)
		}
	}
}
