package unet2d

import (
	"context"
	"math"
	"path/filepath"
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
// reaches, bf16 is 1.3 times what torch reaches, 0 where torch cannot run.
var cases = []struct {
	name      string
	fp32, vjp float64
	bf16      float64
}{
	{name: "unet2d-plain", fp32: 2e-6, vjp: 3e-6, bf16: 1.8e-2},
	{name: "unet2d-modern", fp32: 2e-6, vjp: 5e-6, bf16: 2.0e-2},
	{name: "unet2d-scale-shift", fp32: 2e-6, vjp: 5e-6, bf16: 2.6e-2},
	{name: "unet2d-resample-resnet", fp32: 2e-6, bf16: 1.8e-2},
	{name: "unet2d-no-mid-attention", fp32: 1e-6},
	{name: "unet2d-fourier", fp32: 2e-6, bf16: 2.1e-1},
	{name: "unet2d-ncsnpp", fp32: 2e-6, bf16: 1.7e-1},
}

func TestFixtures(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := fixture(t, "models", c.name)
			cfg := readConfig(t, filepath.Join(dir, "config.json"))
			w := readSafetensors(t, filepath.Join(dir, "diffusion_pytorch_model.safetensors"))
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
			}
		})
	}
}

func TestTensors(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := fixture(t, "models", c.name)
			cfg := readConfig(t, filepath.Join(dir, "config.json"))
			w := readSafetensors(t, filepath.Join(dir, "diffusion_pytorch_model.safetensors"))
			want, err := Tensors(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if len(want) != len(w.names) {
				t.Errorf("%d tensors, the file has %d", len(want), len(w.names))
			}
			if err := checkTensors(want, w); err != nil {
				t.Error(err)
			}
		})
	}
}

func ddpmCIFAR10() diffusers.UNet2DConfig {
	c := classDefaults()
	c.BlockOutChannels = []int{128, 256, 256, 256}
	c.DownBlockTypes = []string{"DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"}
	c.UpBlockTypes = []string{"UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"}
	c.DownsamplePadding, c.FlipSinToCos, c.FreqShift, c.NormEps, c.AttentionHeadDim = 0, false, 1, 1e-6, 0
	return c
}

func TestDDPMCIFAR10Tensors(t *testing.T) {
	want, err := Tensors(ddpmCIFAR10())
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, v := range want {
		sum += product(v.Shape)
	}
	if len(want) != 328 || sum != 35746307 {
		t.Errorf("%d tensors of %d values, want 328 of 35746307", len(want), sum)
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

