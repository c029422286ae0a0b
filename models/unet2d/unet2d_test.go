package unet2d

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"drift/internal/kernels"
	"drift/models/diffusers"
)

// relL2 is |a - b| / |b|.
func relL2(a, b []float64) float64 {
	var d, s float64
	for i, v := range b {
		d += (a[i] - v) * (a[i] - v)
		s += v * v
	}
	return math.Sqrt(d / s)
}

// question reads the inputs of a fixture.
func question(io map[string]array) (x []float64, b *Batch) {
	s := io["sample"]
	b = &Batch{H: s.shape[2], W: s.shape[3], T: io["timestep"].data}
	for _, c := range io["class_labels"].data {
		b.Class = append(b.Class, int(c))
	}
	return s.data, b
}

func forwardOf(t testing.TB, n *Net, x []float64, b *Batch) []float64 {
	t.Helper()
	out := make([]float64, len(x)/n.tree.cfg.InChannels*n.tree.cfg.OutChannels)
	if err := n.Forward(context.Background(), out, x, b); err != nil {
		t.Fatal(err)
	}
	return out
}

func newNet(t testing.TB, cfg diffusers.UNet2DConfig, w diffusers.Weights, opt Options) *Net {
	t.Helper()
	n, err := New(cfg, w, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// cases are the fixtures with their tolerances: fp32 is twice what torch
// reaches, bf16 is 1.3 times what torch reaches.
var cases = []struct {
	name      string
	fp32, vjp float64
	bf16      float64 // torch cannot run the case where it is 0
}{
	{name: "unet2d-plain", fp32: 2e-6, vjp: 3e-6, bf16: 1.8e-2},
	{name: "unet2d-modern", fp32: 2e-6, vjp: 5e-6, bf16: 2.0e-2},
	{name: "unet2d-scale-shift", fp32: 2e-6, vjp: 5e-6, bf16: 2.6e-2},
	{name: "unet2d-resample-resnet", fp32: 2e-6, bf16: 1.8e-2},
	{name: "unet2d-no-mid-attention", fp32: 1e-6},
	{name: "unet2d-fourier", fp32: 2e-6, bf16: 2.1e-1},
	{name: "unet2d-ncsnpp", fp32: 2e-6, bf16: 1.7e-1},
	// Files of unet2d-plain and unet2d-modern in other forms.
	{name: "variant-fp16", fp32: 2e-6},
	{name: "variant-bf16", fp32: 2e-6},
	{name: "variant-sharded", fp32: 2e-6},
	{name: "variant-sharded-fp16", fp32: 2e-6},
	{name: "legacy-root", fp32: 2e-6},
	{name: "legacy-ancient", fp32: 2e-6},
	{name: "legacy-absent-head-dim", fp32: 2e-6},
}

func TestFixtures(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := fixture(t, "models", c.name)
			cfg, w := open(t, dir)
			io := readNPZ(t, filepath.Join(dir, "io.npz"))
			x, b := question(io)
			for _, tier := range kernels.Tiers() {
				pool := kernels.NewPool(tier, 2)
				defer pool.Close()
				n := newNet(t, cfg, w, Options{Pool: pool})
				got := relL2(forwardOf(t, n, x, b), io["out"].data)
				t.Logf("%v: %.3g", tier, got)
				if !(got <= c.fp32) {
					t.Errorf("%v: relative error %.3g, want at most %g", tier, got, c.fp32)
				}
				if c.bf16 == 0 {
					continue
				}
				n = newNet(t, cfg, w, Options{Pool: pool, DType: kernels.BF16})
				got = relL2(forwardOf(t, n, x, b), io["out"].data)
				t.Logf("%v bf16: %.3g", tier, got)
				if !(got <= c.bf16) || got < 1e-5 {
					t.Errorf("%v: bf16 relative error %.3g, want at most %g, and more than float32 has", tier, got, c.bf16)
				}
			}
		})
	}
}

func TestTensors(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := fixture(t, "models", c.name)
			cfg, w := open(t, dir)
			want, err := Tensors(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if len(want) != len(w.Names()) {
				t.Errorf("%d tensors, the file has %d", len(want), len(w.Names()))
			}
			if err := checkTensors(want, w); err != nil {
				t.Error(err)
			}
			shapes := map[string][]int{}
			for _, v := range want {
				shapes[v.Name] = v.Shape
			}
			for _, v := range cfg.Tensors() {
				if !slices.Equal(shapes[v.Name], v.Shape) {
					t.Errorf("%s is %v here, %v in the configuration's list", v.Name, shapes[v.Name], v.Shape)
				}
			}
		})
	}
}

func ddpmCIFAR10() diffusers.UNet2DConfig {
	c := classDefaults()
	c.SampleSize = diffusers.Size{H: 32, W: 32}
	c.BlockOutChannels = []int{128, 256, 256, 256}
	c.DownBlockTypes = []string{"DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"}
	c.UpBlockTypes = []string{"UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"}
	c.DownsamplePadding, c.FlipSinToCos, c.FreqShift, c.NormEps, c.AttentionHeadDim = 0, false, 1, 1e-6, 0
	return c
}

// ddpm256 is the shape of google/ddpm-celebahq-256 and its like.
func ddpm256() diffusers.UNet2DConfig {
	c := ddpmCIFAR10()
	c.SampleSize = diffusers.Size{H: 256, W: 256}
	c.BlockOutChannels = []int{128, 128, 256, 256, 512, 512}
	c.DownBlockTypes = []string{"DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"}
	c.UpBlockTypes = []string{"UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"}
	return c
}

func TestParameterCounts(t *testing.T) {
	for name, c := range map[string]struct {
		cfg             diffusers.UNet2DConfig
		tensors, values int
	}{
		"ddpm-cifar10": {ddpmCIFAR10(), 328, 35746307},
		"ddpm-256":     {ddpm256(), 0, 113673219},
	} {
		want, err := Tensors(c.cfg)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0
		for _, v := range want {
			sum += product(v.Shape)
		}
		if c.tensors != 0 && len(want) != c.tensors || sum != c.values {
			t.Errorf("%s: %d tensors of %d values, want %d of %d", name, len(want), sum, c.tensors, c.values)
		}
	}
}

func TestSinusoid(t *testing.T) {
	cfg := classDefaults()
	for _, c := range []struct {
		flip  bool
		shift float64
		want  []float64
	}{
		{false, 1, []float64{-.54402111, .44767083, .02154268, .001, -.83907153, .89419843, .99976793, .9999995}},
		{true, 0, []float64{-.83907153, .54030231, .99500417, .99995, -.54402111, .84147098, .09983342, .00999983}},
	} {
		cfg.FlipSinToCos, cfg.FreqShift = c.flip, c.shift
		got := make([]float32, 8)
		newTimeEncoding(&cfg, 8, nil).put(got, 10)
		for i, v := range c.want {
			if math.Abs(float64(got[i])-v) > 6e-9+6e-8*math.Abs(v) {
				t.Errorf("flip %v, shift %v: value %d is %v, want %v", c.flip, c.shift, i, got[i], v)
			}
		}
	}
}

func TestFormula(t *testing.T) {
	f, err := formulaOf(ddpmCIFAR10())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]float32{
		"conv_in.weight":                 {0.047500014305114746, 0.25550970435142517, -0.2733139991760254, -0.1317918300628662},
		"conv_in.bias":                   {-0.025798136368393898, 0.04260673373937607, -0.028899192810058594, -0.003634887980297208},
		"time_embedding.linear_1.weight": {-0.07996077090501785, 0.059433672577142715, 0.10556866228580475, -0.1210891529917717},
	} {
		got, err := f.Float32(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range want {
			if got[i] != v {
				t.Errorf("%s[%d] is %v, want %v", name, i, got[i], v)
			}
		}
	}
}

// cifar is the formula network of google/ddpm-cifar10-32's shape.
func cifar(t testing.TB, opt Options) *Net {
	f, err := formulaOf(ddpmCIFAR10())
	if err != nil {
		t.Fatal(err)
	}
	return newNet(t, ddpmCIFAR10(), f, opt)
}

func TestFormulaDDPMCIFAR10(t *testing.T) {
	dir := fixture(t, "models", "formula-ddpm-cifar10")
	if kernels.Detect() == kernels.Portable && os.Getenv("DRIFT_SLOW") == "" {
		t.Skip("12 GMAC take too long without SIMD: DRIFT_SLOW is not set")
	}
	n := cifar(t, Options{})
	if got, err := n.MACs(32, 32); err != nil || math.Abs(float64(got)/1e9-6.222) > 0.0005 {
		t.Errorf("%d multiply-adds, want 6.222e9 (%v)", got, err)
	}
	io := readNPZ(t, filepath.Join(dir, "io.npz"))
	x, b := question(io)
	got := relL2(forwardOf(t, n, x, b), io["out"].data)
	t.Logf("%v: %.3g", n.Tier(), got)
	if !(got <= 3e-6) {
		t.Errorf("relative error %.3g, want at most 3e-6", got)
	}
	if os.Getenv("DRIFT_SLOW") == "" {
		return
	}
	n = cifar(t, Options{DType: kernels.BF16})
	got = relL2(forwardOf(t, n, x, b), io["out"].data)
	t.Logf("%v bf16: %.3g", n.Tier(), got)
	if !(got <= 1.5e-2) {
		t.Errorf("bf16 relative error %.3g, want at most 1.5e-2", got)
	}
}

// The published CIFAR-10 network stays below 700 MB at batch 16.
func TestMemoryDDPMCIFAR10(t *testing.T) {
	if os.Getenv("DRIFT_SLOW") == "" {
		t.Skip("DRIFT_SLOW is not set")
	}
	live := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := live()
	n := cifar(t, Options{})
	need, err := n.Need(32, 32, 16)
	if err != nil {
		t.Fatal(err)
	}
	x, b := images(n, 16, 32, 32)
	forwardOf(t, n, x, b)
	used := live() - before
	m := n.Memory()
	t.Logf("%.0f MB live, of which packed weights %.0f MB and activations %.0f MB", float64(used)/1e6, float64(m.Weights)/1e6, float64(m.Activations)/1e6)
	if used > 700e6 {
		t.Errorf("%d bytes", used)
	}
	if m != need || used < m.Weights+m.Activations || float64(used) > 1.1*float64(m.Weights+m.Activations)+20e6 {
		t.Errorf("%d bytes live, %+v foretold, %+v reported", used, need, m)
	}
	// Winograd copies included.
	if m.Weights > 2*4*n.Parameters() {
		t.Errorf("packed weights of %d bytes for %d parameters", m.Weights, n.Parameters())
	}
	runtime.KeepAlive(n)
}

func TestZoo(t *testing.T) {
	for _, name := range []string{"fashion", "fashion-flow"} {
		t.Run(name, func(t *testing.T) {
			n := zoo(t, name, Options{})
			io := readNPZ(t, fixture(t, "..", "zoo", name, "io.npz"))
			x, b := question(io)
			got := relL2(forwardOf(t, n, x, b), io["out"].data)
			t.Logf("%v: %.3g", n.Tier(), got)
			if !(got <= 3e-6) { // against torch float32, which errs by about 1e-6 itself
				t.Errorf("relative error %.3g, want at most 3e-6", got)
			}
		})
	}
}

func zoo(t testing.TB, name string, opt Options) *Net {
	cfg, w := open(t, fixture(t, "..", "zoo", name))
	return newNet(t, cfg, w, opt)
}

func gradOf(t testing.TB, n *Net, x, cotangent []float64, b *Batch) (out, grad []float64) {
	t.Helper()
	q := *b
	q.Save = true
	out = forwardOf(t, n, x, &q)
	grad = make([]float64, len(x))
	if err := n.VJP(context.Background(), grad, cotangent); err != nil {
		t.Fatal(err)
	}
	return out, grad
}

func TestVJPFixtures(t *testing.T) {
	for _, c := range cases {
		if c.vjp == 0 {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			dir := fixture(t, "models", c.name)
			io := readNPZ(t, filepath.Join(dir, "io.npz"))
			x, b := question(io)
			for _, tier := range kernels.Tiers() {
				pool := kernels.NewPool(tier, 2)
				defer pool.Close()
				cfg, w := open(t, dir)
				n := newNet(t, cfg, w, Options{Pool: pool})
				out, grad := gradOf(t, n, x, io["cotangent"].data, b)
				got := relL2(grad, io["vjp"].data)
				t.Logf("%v: %.3g", tier, got)
				if !(got <= c.vjp) {
					t.Errorf("%v: relative error %.3g, want at most %g", tier, got, c.vjp)
				}
				for i, v := range forwardOf(t, n, x, b) {
					if out[i] != v {
						t.Fatalf("%v: output %d is %v with Save, %v without", tier, i, out[i], v)
					}
				}
			}
		})
	}
}
