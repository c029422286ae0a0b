package open_test

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
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

// TestPipeDiT runs DiTPipeline's folder without its autoencoder, as a model of pictures of four channels, on the recorded
// noise, against a float64 run of the latents: relative L2 error of every latent at most 1e-5.
func TestPipeDiT(t *testing.T) {
	source := filepath.Join(fixtures(t), "models", "pipe-dit")
	folder := t.TempDir()
	for _, part := range []string{"transformer", "scheduler"} {
		if err := os.CopyFS(filepath.Join(folder, part), os.DirFS(filepath.Join(source, part))); err != nil {
			t.Fatal(err)
		}
	}
	index := `{"_class_name": "DiTPipeline", "id2label": {"0": "tench"}, "scheduler": ["diffusers", "DDIMScheduler"], "transformer": ["diffusers", "DiTTransformer2DModel"]}`
	if err := os.WriteFile(filepath.Join(folder, "model_index.json"), []byte(index), 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := open.Open(context.Background(), folder, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Info.Classes != 1000 || m.Net.Classes() != 1001 || m.Net.NoClass() != 1000 || m.Info.Labels[0] != "tench" {
		t.Errorf("%+v", m.Info)
	}
	g := arrays(t, filepath.Join(source, "expected.npz"))
	grid, err := m.Defaults.Grid(len(g["timesteps"]))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := guidance.Parse("cfg:w=4")
	if err != nil {
		t.Fatal(err)
	}
	sampler, err := samplers.Parse(m.Defaults.Sampler)
	if err != nil {
		t.Fatal(err)
	}
	n := len(g["noise"])
	p := &samplers.Problem{Model: cfg.Guide(m.Denoiser), Grid: grid, Rows: make([]models.Row, 2), Cond: &models.Cond{Classes: []int{3, 9}},
		Start: models.Wrap(g["noise"], append([]int{2}, m.Info.Shape...)...)}
	last := 0
	p.Observe = func(s *samplers.State) error {
		// DiTPipeline carries every row twice, for the class and for none.
		if d := relL2(models.Data(s.X), g["latents"][2*s.I*n:][:n]); !(d < 1e-5) {
			t.Errorf("latents after step %d: relative L2 error %.2g", s.I, d)
		}
		last = s.I
		return nil
	}
	if _, err := samplers.Sample(context.Background(), sampler, p); err != nil {
		t.Fatal(err)
	}
	if last != len(g["timesteps"]) {
		t.Errorf("the run ended after step %d", last)
	}
}

// TestRefused: what this build cannot run is refused by name, before any weights are read.
func TestRefused(t *testing.T) {
	f := fixtures(t)
	for name, want := range map[string]string{
		"pipe-sd1": "UNet2DConditionModel", "pipe-dit": "DiTTransformer2DModel works on the latents of a AutoencoderKL", "dit": "scheduler_config.json",
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
