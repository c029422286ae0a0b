package open

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/models/diffusers"
	"drift/samplers"
)

// TestSchedulers: every scheduler class that can be read names its sampler and makes a grid, or is refused by name.
func TestSchedulers(t *testing.T) {
	refused := []string{"CMStochasticIterativeScheduler", "DDIMInverseScheduler", "IPNDMScheduler", "ScoreSdeVeScheduler"}
	for _, name := range diffusers.Schedulers() {
		c, err := diffusers.ParseScheduler(name, []byte(`{"_class_name": "`+name+`"}`))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		grid, err := gridConfig(c)
		if slices.Contains(refused, name) {
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v, want a refusal by name", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := samplers.Parse(samplerOf(c)); samplerOf(c) == "" || err != nil {
			t.Errorf("%s: sampler %q: %v", name, samplerOf(c), err)
		}
		g, err := (&parts{sched: c}).defaults(grid, 0).Grid(4)
		if err != nil || g.Check() != nil || len(g) < 5 {
			t.Errorf("%s: %d nodes: %v", name, len(g), err)
		}
	}
}

// TestSupported: what is not supported is refused by its configurations alone: the folders have no weights.
func TestSupported(t *testing.T) {
	const models = "../../cmd/drift/testdata/pipelines/models/"
	for _, c := range []struct{ base, file, old, new, want string }{
		{"sd1", "unet/config.json", `"in_channels": 4`, `"in_channels": 8`, "reads 8 channels and its latents have 4"},
		{"sd1", "unet/config.json", "CrossAttnDownBlock2D", "WarpedDownBlock2D", "WarpedDownBlock2D"},
		{"sd1", "vae/config.json", "AutoencoderKL", "AutoencoderOobleck", "AutoencoderOobleck"},
		{"sd1", "scheduler/scheduler_config.json", "DDIMScheduler", "IPNDMScheduler", "IPNDMScheduler"},
		{"sd1", "scheduler/scheduler_config.json", `"prediction_type": "epsilon"`, `"prediction_type": "vibes"`, "vibes"},
		{"sd1", "text_encoder/config.json", "CLIPTextModel", "ChineseCLIPTextModel", "ChineseCLIPTextModel"},
		{"pixart", "transformer/config.json", "PixArtTransformer2DModel", "SanaTransformer2DModel", ""},
		{"sd1", "model_index.json", `"text_encoder": [`, `"other_encoder": [`, "there is no text_encoder"},
	} {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(models+c.base)); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(c.file))
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), c.old) {
			t.Fatalf("%s has no %s", c.file, c.old)
		}
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), c.old, c.new)), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err = Open(t.Context(), dir, Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "safetensors") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s %s: %v, want a refusal that says %q", c.base, c.new, err, c.want)
		}
	}
	if _, err := Open(t.Context(), models+"sd1", Options{}); err == nil || !strings.Contains(err.Error(), "diffusion_pytorch_model") {
		t.Errorf("a folder without weights: %v", err)
	}
}
