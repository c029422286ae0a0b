package dit

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"drift/internal/npz"
	"drift/models/diffusers"
)

// array is a member of an npz file, widened to float64.
type array struct {
	shape []int
	data  []float64
}

func readNPZ(t testing.TB, path string) map[string]array {
	t.Helper()
	all, err := npz.ReadAll(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]array{}
	for name, a := range all {
		v, err := a.Float64()
		if err != nil {
			t.Fatal(err)
		}
		out[name] = array{a.Shape, v}
	}
	return out
}

// open opens a folder with a network.
func open(t testing.TB, dir string) (diffusers.DiTConfig, diffusers.Weights) {
	t.Helper()
	m, err := diffusers.Open(dir, diffusers.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return *m.Config.(*diffusers.DiTConfig), m.Weights
}

// fixture finds a folder of models: under testdata, or where DRIFT_FIXTURES
// says.
func fixture(t testing.TB, name string) string {
	t.Helper()
	if p := filepath.Join("testdata", name); exists(p) {
		return p
	}
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	return filepath.Join(root, "models", name)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// config is the class's defaults with the keys of a JSON object.
func config(keys string) diffusers.DiTConfig {
	c, err := diffusers.ParseConfig("test", fmt.Appendf(nil, `{"_class_name": "DiTTransformer2DModel", %s}`, keys))
	if err != nil {
		panic(err)
	}
	return *c.(*diffusers.DiTConfig)
}

// tiny is a network for 8x8 images of 3 channels, whose widths are no
// multiples of a vector.
func tiny() diffusers.DiTConfig {
	return config(`"num_attention_heads": 3, "attention_head_dim": 12, "in_channels": 3, "out_channels": 6, "num_layers": 3, "sample_size": 8, "num_embeds_ada_norm": 5`)
}

// ditS2 is DiT-S/2 for 256x256 pictures.
func ditS2() diffusers.DiTConfig {
	return config(`"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12, "out_channels": 8`)
}

func newNet(t testing.TB, cfg diffusers.DiTConfig, w diffusers.Weights, opt Options) *Net {
	t.Helper()
	n, err := New(cfg, w, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func formula(t testing.TB, cfg diffusers.DiTConfig) *diffusers.Formula {
	t.Helper()
	f, err := diffusers.NewFormula(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func formulaNet(t testing.TB, cfg diffusers.DiTConfig, opt Options) *Net {
	t.Helper()
	return newNet(t, cfg, formula(t, cfg), opt)
}

// images is a batch of different images.
func images(n *Net, count, size int) (x []float64, b *Batch) {
	for _, u := range diffusers.FormulaValues("hidden_states", count*n.tree.cfg.InChannels*size*size, math.Sqrt(3), 0) {
		x = append(x, float64(u))
	}
	b = &Batch{H: size, W: size}
	for i := range count {
		b.T = append(b.T, float64(1+7*i%10*100))
		b.Class = append(b.Class, (n.Classes()-1+i)%n.Classes())
	}
	return x, b
}

// readConfig reads a folder that holds no weights.
func readConfig(dir string) (diffusers.DiTConfig, error) {
	c, err := diffusers.ReadConfig(filepath.Join(dir, "config.json"))
	if err != nil {
		return diffusers.DiTConfig{}, err
	}
	return *c.(*diffusers.DiTConfig), nil
}
