package open_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"drift/internal/npz"
	"drift/internal/safetensors"
	"drift/models"
	"drift/models/diffusers"
	"drift/models/open"
	"drift/samplers"
	"drift/schedules"
)

// scoreFile writes the formula weights of a configuration under a prefix, as a state dictionary has them: with the
// buffers of EDM's filters and the weights of augmentation.
func scoreFile(t *testing.T, path, prefix string, cfg diffusers.Config, more ...safetensors.Tensor) {
	t.Helper()
	f, err := diffusers.NewFormula(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var list []safetensors.Tensor
	values := map[string][]float32{}
	for _, x := range cfg.Tensors() {
		v, err := f.Float32(x.Name)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, safetensors.Tensor{Name: prefix + x.Name, DType: safetensors.F32, Shape: x.Shape})
		values[prefix+x.Name] = v
	}
	for _, x := range more {
		x.Name = prefix + x.Name
		list = append(list, x)
		n := x.Len()
		values[x.Name] = slices.Repeat([]float32{1 / float32(n)}, n)
		if n == 16 { // [1, 3, 3, 1] along both axes
			for i := range n {
				taps := []float32{1, 3, 3, 1}
				values[x.Name][i] = taps[i/4] * taps[i%4] / 64
			}
		}
	}
	safetensors.Sort(list)
	w, err := safetensors.Create(path, nil, list)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		if err := w.Float32(values[x.Name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// scoreCases are the configurations of the goldens of models/edm.
func scoreCases(t *testing.T) map[string]diffusers.Config {
	t.Helper()
	text, err := os.ReadFile("../edm/testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases map[string]struct{ Config json.RawMessage }
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	out := map[string]diffusers.Config{}
	for name, c := range cases {
		if out[name], err = diffusers.ParseConfig(name, c.Config); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// The networks of EDM and ADM are told from their tensors, and drawing with them follows the reference's loop: Heun's
// method on 4 levels, and for all of EDM's three kinds of preconditioning.
func TestScoreFiles(t *testing.T) {
	golden, err := npz.ReadAll("../edm/testdata/golden.npz")
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range scoreCases(t) {
		path := filepath.Join(t.TempDir(), name+".safetensors")
		var more []safetensors.Tensor
		beside := `{}`
		prefix := ""
		switch c := cfg.(type) {
		case *diffusers.SongUNetConfig:
			prefix, beside = "model.", `{"precond": "`+c.Precond+`"}`
			n := len(c.ResampleFilter)
			more = []safetensors.Tensor{{Name: "enc.8x8_down.conv0.resample_filter", DType: safetensors.F32, Shape: []int{1, 1, n, n}}, {Name: "map_augment.weight", DType: safetensors.F32, Shape: []int{16, 9}}}
			c.AugmentDim = 9
			for i := range c.ResampleFilter { // as the file has it, with the sum 1
				c.ResampleFilter[i] /= map[int]float64{2: 2, 4: 8}[n]
			}
		case *diffusers.ADMConfig:
			text, err := json.Marshal(map[string]any{"image_size": c.ImageSize, "num_heads": c.NumHeads, "num_head_channels": c.NumHeadChannels, "use_new_attention_order": c.NewAttentionOrder,
				"noise_schedule": c.NoiseSchedule})
			if err != nil {
				t.Fatal(err)
			}
			beside = string(text)
		}
		scoreFile(t, path, prefix, cfg, more...)
		if _, ok := cfg.(*diffusers.ADMConfig); ok { // what no tensor says is asked for
			if _, err := open.Open(context.Background(), path, open.Options{}); err == nil || !strings.Contains(err.Error(), name+".drift.json beside it must say") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := os.WriteFile(strings.TrimSuffix(path, ".safetensors")+".drift.json", []byte(beside), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := diffusers.OpenRepository(path, diffusers.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, _, err := r.Config("")
		if err != nil {
			t.Fatal(err)
		}
		*got.FileInfo(), *cfg.FileInfo() = diffusers.Info{}, diffusers.Info{}
		if !reflect.DeepEqual(got, cfg) {
			t.Errorf("%s:\n%+v\nwant\n%+v", name, got, cfg)
		}
		m, err := open.Open(context.Background(), path, open.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		defer m.Close()
		a := golden[name+".heun"]
		if a == nil { // ADM: any of its grids runs
			if m.Defaults.Sampler != "ddim" || len(m.Defaults.Guiders) != 1 {
				t.Errorf("%s: sampler %s, guiders %q", name, m.Defaults.Sampler, m.Defaults.Guiders)
			}
			continue
		}
		want, err := a.Float64()
		if err != nil {
			t.Fatal(err)
		}
		ends := m.Denoiser.Process().(schedules.EDM)
		noise, data := ends.Range()
		var times []float64
		for i := range 4 {
			times = append(times, math.Pow(math.Pow(noise, 1./7)+float64(i)/3*(math.Pow(data, 1./7)-math.Pow(noise, 1./7)), 7))
		}
		grid, err := schedules.FromTimes(ends, append(times, 0))
		if err != nil {
			t.Fatal(err)
		}
		sampler, err := samplers.Parse("heun")
		if err != nil {
			t.Fatal(err)
		}
		start := make([]float64, len(want))
		for i, v := range diffusers.FormulaValues(name+".start", len(want), math.Sqrt(3), 0) {
			start[i] = float64(v) * noise
		}
		p := &samplers.Problem{Model: m.Denoiser, Grid: grid, Rows: make([]models.Row, a.Shape[0]), Start: models.Wrap(start, a.Shape...)}
		if c := golden[name+".class"]; c != nil {
			labels, err := c.Int64()
			if err != nil {
				t.Fatal(err)
			}
			p.Cond = &models.Cond{}
			for _, k := range labels {
				if k < 0 {
					k = int64(models.NoClass)
				}
				p.Cond.Classes = append(p.Cond.Classes, int(k))
			}
		}
		res, err := samplers.Sample(context.Background(), sampler, p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if e := relL2(models.Data(res.X), want); !(e < 5e-6) {
			t.Errorf("%s: relative L2 error %.2g", name, e)
		} else {
			t.Logf("%s: %.2g", name, e)
		}
	}
}

// The gradient of a preconditioned network against central differences.
func TestScoreGradient(t *testing.T) {
	cfg := scoreCases(t)["ddpmpp-classes"]
	path := filepath.Join(t.TempDir(), "x.safetensors")
	scoreFile(t, path, "", cfg)
	m, err := open.Open(context.Background(), path, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	v, ok := models.As[models.VJP](m.Denoiser)
	if !ok {
		t.Fatal("no gradient")
	}
	const n = 3 * 16 * 16
	x, cot, grad := models.New(1, 3, 16, 16), models.New(1, 3, 16, 16), models.New(1, 3, 16, 16)
	for i := range n {
		models.Data(x)[i], models.Data(cot)[i] = 2*math.Sin(float64(i)), math.Cos(float64(3*i))
	}
	node := schedules.EDM{}.At(1.7)
	q := &models.Query{X: x, At: []schedules.Node{node}, Rows: make([]models.Row, 1), Cond: &models.Cond{Classes: []int{2}}}
	var p models.Pred
	if err := v.VJP(context.Background(), q, &p, cot, grad); err != nil {
		t.Fatal(err)
	}
	// along one direction, all pixels together
	value := func(h float64) (sum float64) {
		moved := models.New(1, 3, 16, 16)
		for i := range n {
			models.Data(moved)[i] = models.Data(x)[i] + h*math.Sin(float64(7*i))
		}
		q := *q
		q.X = moved
		var p models.Pred
		if err := m.Denoiser.Predict(context.Background(), &q, &p); err != nil {
			t.Fatal(err)
		}
		for i, y := range models.Data(p.Out) {
			sum += y * models.Data(cot)[i]
		}
		return sum
	}
	want, got := (value(1e-2)-value(-1e-2))/2e-2, 0.0
	for i := range n {
		got += models.Data(grad)[i] * math.Sin(float64(7*i))
	}
	if math.Abs(got-want) > 2e-3*math.Abs(want)+2e-3 {
		t.Errorf("gradient %g, differences %g", got, want)
	}
}

func TestScoreRefusals(t *testing.T) {
	cases := scoreCases(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "x.safetensors")
	scoreFile(t, path, "model.", cases["ddpmpp"])
	for text, want := range map[string]string{
		`{"precond": "ddim"}`:                "precond",
		`{"predcond": "vp"}`:                 `unknown key "predcond"`,
		`{"_class_name": "ADMUNet"}`:         "those of a SongUNet",
		`{"num_blocks": 3}`:                  "missing",
		`{"sigma_min": 1, "sigma_max": 0.5}`: "sigma_max",
		`[]`:                                 "x.drift.json",
	} {
		if err := os.WriteFile(filepath.Join(dir, "x.drift.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := open.Open(context.Background(), path, open.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if err := os.Remove(filepath.Join(dir, "x.drift.json")); err != nil {
		t.Fatal(err)
	}
	var asked *open.AskedError
	if _, err := open.Open(context.Background(), path, open.Options{Pipeline: open.Pipeline{Width: 32}}); !errors.As(err, &asked) {
		t.Errorf("a size: %v", err)
	}
	m, err := open.Open(context.Background(), path, open.Options{DType: "bf16"})
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	if !slices.ContainsFunc(m.Notes, func(n string) bool { return strings.Contains(n, "taken as preconditioned by EDM") }) {
		t.Errorf("notes %q", m.Notes)
	}
	if err := os.WriteFile(filepath.Join(dir, "x.pkl"), bytes.Repeat([]byte{0x80}, 8), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := open.Open(context.Background(), filepath.Join(dir, "x.pkl"), open.Options{}); err == nil || !strings.Contains(err.Error(), "never loaded") {
		t.Error(err)
	}
}
