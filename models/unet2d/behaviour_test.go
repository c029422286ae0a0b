package unet2d

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"drift/internal/kernels"
	"drift/models/diffusers"
)

// tiny is a network with every kind of layer, for 16x16 images.
func tiny() diffusers.UNet2DConfig {
	c := classDefaults()
	c.BlockOutChannels = []int{16, 24, 40}
	c.DownBlockTypes = []string{"DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"}
	c.UpBlockTypes = []string{"AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"}
	c.LayersPerBlock, c.NormNumGroups, c.NumClassEmbeds = 1, 8, 5
	return c
}

func ncsnpp() diffusers.UNet2DConfig {
	c := classDefaults()
	c.BlockOutChannels = []int{32, 32}
	c.DownBlockTypes = []string{"SkipDownBlock2D", "AttnSkipDownBlock2D"}
	c.UpBlockTypes = []string{"AttnSkipUpBlock2D", "SkipUpBlock2D"}
	c.LayersPerBlock, c.NormNumGroups, c.TimeEmbeddingType, c.MidBlockScaleFactor = 1, 0, "fourier", math.Sqrt2
	return c
}

func formulaOf(cfg diffusers.UNet2DConfig) (*diffusers.Formula, error) {
	return diffusers.NewFormula(&cfg)
}

func formulaNet(t testing.TB, cfg diffusers.UNet2DConfig, opt Options) *Net {
	t.Helper()
	f, err := diffusers.NewFormula(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	return newNet(t, cfg, f, opt)
}

// images is a batch of n different images of h by w.
func images(n *Net, count, h, w int) (x []float64, b *Batch) {
	for _, u := range diffusers.FormulaValues("sample", count*n.tree.cfg.InChannels*h*w, math.Sqrt(3), 0) {
		x = append(x, float64(u))
	}
	b = &Batch{H: h, W: w}
	for i := range count {
		b.T = append(b.T, float64(1+7*i%10*100))
		if n.Classes() > 0 {
			b.Class = append(b.Class, i%n.Classes())
		}
	}
	return x, b
}

func one(b *Batch, i int) *Batch {
	c := *b
	c.T = b.T[i : i+1]
	if len(b.Class) > 0 {
		c.Class = b.Class[i : i+1]
	}
	return &c
}

// Neither the batch nor the number of threads changes a bit, of outputs or of
// gradients.
func TestBatchAndThreads(t *testing.T) {
	scaleShift := tiny()
	scaleShift.ResnetTimeScaleShift, scaleShift.DownsampleType, scaleShift.UpsampleType = "scale_shift", "resnet", "resnet"
	scaleShift.DownsamplePadding = 0
	for name, cfg := range map[string]diffusers.UNet2DConfig{"tiny": tiny(), "scale_shift": scaleShift, "ncsnpp": ncsnpp()} {
		for _, tier := range kernels.Tiers() {
			for _, dtype := range []kernels.DType{kernels.F32, kernels.BF16} {
				t.Run(fmt.Sprintf("%s/%v/%v", name, tier, dtype), func(t *testing.T) {
					count := 8
					if tier == kernels.Portable {
						count = 3
					}
					single := kernels.NewPool(tier, 1)
					defer single.Close()
					several := kernels.NewPool(tier, 3)
					defer several.Close()
					n1 := formulaNet(t, cfg, Options{Pool: single, DType: dtype})
					n3 := formulaNet(t, cfg, Options{Pool: several, DType: dtype})
					x, b := images(n1, count, 16, 12)
					cot := make([]float64, len(x))
					for i := range cot {
						cot[i] = math.Sin(float64(i))
					}
					want, wantGrad := gradOf(t, n1, x, cot, b)
					if norm := relL2(make([]float64, len(want)), want); norm != 1 || want[0] != want[0] {
						t.Fatal("no output")
					}
					got, grad := gradOf(t, n3, x, cot, b)
					if !slices.Equal(got, want) {
						t.Errorf("3 threads differ from 1: %.3g", relL2(got, want))
					}
					if !slices.Equal(grad, wantGrad) {
						t.Errorf("gradient: 3 threads differ from 1: %.3g", relL2(grad, wantGrad))
					}
					size := len(x) / count
					for i := range count {
						lo, hi := i*size, (i+1)*size
						got, grad := gradOf(t, n3, x[lo:hi], cot[lo:hi], one(b, i))
						if !slices.Equal(got, want[lo:hi]) {
							t.Errorf("image %d alone differs: %.3g", i, relL2(got, want[lo:hi]))
						}
						if !slices.Equal(grad, wantGrad[lo:hi]) {
							t.Errorf("gradient of image %d alone differs: %.3g", i, relL2(grad, wantGrad[lo:hi]))
						}
					}
				})
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	for name, cfg := range map[string]diffusers.UNet2DConfig{"tiny": tiny(), "ncsnpp": ncsnpp()} {
		t.Run(name, func(t *testing.T) {
			n := formulaNet(t, cfg, Options{Threads: 2})
			x, b := images(n, 3, 16, 16)
			small, sb := images(n, 2, 8, 16)
			sb.IdentityAttention = []string{"mid_block"}
			out := make([]float64, len(x))
			ctx := context.Background()
			if got := testing.AllocsPerRun(10, func() {
				if err := n.Forward(ctx, out, x, b); err != nil {
					t.Fatal(err)
				}
				if err := n.Forward(ctx, out[:len(small)], small, sb); err != nil {
					t.Fatal(err)
				}
			}); got != 0 {
				t.Errorf("%v allocations per Forward", got)
			}
			b.Save = true
			grad := make([]float64, len(x))
			if got := testing.AllocsPerRun(10, func() {
				if err := n.Forward(ctx, out, x, b); err != nil {
					t.Fatal(err)
				}
				if err := n.VJP(ctx, grad, out); err != nil {
					t.Fatal(err)
				}
			}); got != 0 {
				t.Errorf("%v allocations per Forward and VJP", got)
			}
		})
	}
}

// Memory grows linearly with the batch and stops growing where groups of
// images begin to follow each other.
func TestMemory(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 1})
	x, b := images(n, 64, 16, 16)
	whole := forwardOf(t, n, x, b)
	grouped := n.Memory().Activations
	n.chunk = 64
	if !slices.Equal(whole, forwardOf(t, n, x, b)) {
		t.Error("groups change the output")
	}
	if all := n.Memory().Activations; 2*all < 3*grouped {
		t.Errorf("64 images take %d bytes in groups, %d at once", grouped, all)
	}
	n = formulaNet(t, tiny(), Options{Threads: 1})
	n.chunk = 16
	var use []float64
	for _, count := range []int{1, 8, 16} {
		x, b := images(n, count, 16, 16)
		forwardOf(t, n, x, b)
		use = append(use, float64(n.Memory().Activations))
	}
	if use[2] > 2*use[1] || use[1] > 8*use[0] {
		t.Errorf("batch 1, 8, 16 take %v bytes", use)
	}
	if got := n.Memory().Weights; got < 4*n.Parameters() {
		t.Errorf("%d bytes of weights for %d parameters", got, n.Parameters())
	}
}

func TestFloat32(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 1})
	x, b := images(n, 2, 16, 16)
	want := forwardOf(t, n, x, b)
	x32, got := make([]float32, len(x)), make([]float32, len(x))
	for i, v := range x {
		x32[i] = float32(v)
	}
	b.Save = true
	if err := n.Forward32(context.Background(), got, x32, b); err != nil {
		t.Fatal(err)
	}
	for i, v := range want {
		if float64(got[i]) != v {
			t.Fatalf("value %d is %v in float32, %v in float64", i, got[i], v)
		}
	}
	grad := make([]float32, len(x))
	if err := n.VJP32(context.Background(), grad, got); err != nil {
		t.Fatal(err)
	}
	_, grad64 := gradOf(t, n, x, want, b)
	for i, v := range grad64 {
		if float64(grad[i]) != v {
			t.Fatalf("gradient %d is %v in float32, %v in float64", i, grad[i], v)
		}
	}
}

// The gradient agrees with central differences along a direction.
func TestVJPDifferences(t *testing.T) {
	resampling := tiny()
	resampling.ResnetTimeScaleShift, resampling.DownsampleType, resampling.UpsampleType = "scale_shift", "resnet", "resnet"
	resampling.CenterInputSample, resampling.ActFn, resampling.MidBlockScaleFactor = true, "gelu", 1.5
	for name, c := range map[string]struct {
		cfg            diffusers.UNet2DConfig
		identity, skip []string
	}{
		"tiny":              {cfg: tiny()},
		"resampling":        {cfg: resampling},
		"ncsnpp":            {cfg: ncsnpp()},
		"identityAttention": {cfg: tiny(), identity: []string{"mid_block", "up_blocks.0.attentions.1"}},
		"skipLayers":        {cfg: tiny(), skip: []string{"mid_block.attentions.0", "mid_block.resnets.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := formulaNet(t, c.cfg, Options{Threads: 2})
			x, b := images(n, 2, 16, 16)
			b.IdentityAttention, b.SkipLayers = c.identity, c.skip
			dir, cot := make([]float64, len(x)), make([]float64, len(x))
			for i := range x {
				dir[i], cot[i] = math.Cos(float64(3*i)), math.Sin(float64(i))
			}
			_, grad := gradOf(t, n, x, cot, b)
			const eps = 4e-3
			at := func(s float64) []float64 {
				y := slices.Clone(x)
				for i := range y {
					y[i] += s * dir[i]
				}
				return forwardOf(t, n, y, b)
			}
			// A fourth-order difference: (8 (f(e) - f(-e)) - (f(2e) - f(-2e))) / 12 e
			p1, m1, p2, m2 := at(eps), at(-eps), at(2*eps), at(-2*eps)
			var got, want, scale float64
			for i := range x {
				d := (8*(p1[i]-m1[i]) - (p2[i] - m2[i])) / (12 * eps)
				want += cot[i] * d
				scale += math.Abs(cot[i] * d)
				got += grad[i] * dir[i]
			}
			if math.Abs(got-want) > 2e-4*scale {
				t.Errorf("derivative %v, differences give %v (terms of %v)", got, want, scale)
			}
		})
	}
}

func TestVJPErrors(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 1})
	x, b := images(n, 1, 16, 16)
	ctx := context.Background()
	g := make([]float64, len(x))
	if err := n.VJP(ctx, g, x); !errors.Is(err, ErrNotSaved) {
		t.Errorf("VJP without Forward: %v", err)
	}
	forwardOf(t, n, x, b)
	if err := n.VJP(ctx, g, x); !errors.Is(err, ErrNotSaved) {
		t.Errorf("VJP after a Forward without Save: %v", err)
	}
	b.Save = true
	forwardOf(t, n, x, b)
	if err := n.VJP(ctx, g, x[1:]); err == nil {
		t.Error("short cotangent accepted")
	}
	if err := n.VJP(ctx, g[1:], x); err == nil {
		t.Error("short gradient accepted")
	}
	if err := n.VJP(ctx, g, x); err != nil {
		t.Error(err)
	}
	other := make([]float64, len(x))
	if err := n.VJP(ctx, other, make([]float64, len(x))); err != nil {
		t.Error(err)
	}
	if slices.ContainsFunc(other, func(v float64) bool { return v != 0 }) {
		t.Error("the gradient of a zero cotangent is not zero")
	}
	again := make([]float64, len(x))
	if err := n.VJP(ctx, again, x); err != nil {
		t.Error(err)
	}
	if !slices.Equal(g, again) {
		t.Error("a repeated VJP differs")
	}
}

// edited is a set of weights with some tensors replaced by zeros.
type edited struct {
	diffusers.Weights
	zero []string
}

func (e edited) Float32(name string) ([]float32, error) {
	v, err := e.Weights.Float32(name)
	for _, z := range e.zero {
		if strings.HasPrefix(name, z+".") {
			clear(v)
		}
	}
	return v, err
}

func TestHooks(t *testing.T) {
	f, err := formulaOf(tiny())
	if err != nil {
		t.Fatal(err)
	}
	n := newNet(t, tiny(), f, Options{Threads: 1})
	x, b := images(n, 2, 16, 16)
	plain := forwardOf(t, n, x, b)

	// Attention whose last layer is zero, or a residual block whose last
	// convolution is, passes its input through.
	skip := *b
	skip.SkipLayers = []string{"mid_block.attentions.0", "down_blocks.1.attentions", "mid_block.resnets.1"}
	silent := newNet(t, tiny(), edited{f, []string{"mid_block.attentions.0.to_out", "down_blocks.1.attentions.0.to_out", "mid_block.resnets.1.conv2"}}, Options{Threads: 1})
	want := forwardOf(t, silent, x, b)
	got := forwardOf(t, n, x, &skip)
	if e := relL2(got, want); e > 1e-6 {
		t.Errorf("skipping differs from zero weights by %.3g", e)
	}
	if e := relL2(got, plain); e < 1e-3 {
		t.Errorf("skipping changes the output by %.3g only", e)
	}

	// With equal keys every weight is 1/T, with the identity it is one pixel:
	// these differ, but over a single pixel they are the same.
	if got := n.AttentionLayers(); len(got) != 7 || got[0] != "down_blocks.1.attentions.0" || got[2] != "mid_block.attentions.0" {
		t.Errorf("attention layers %v", got)
	}
	id := *b
	id.IdentityAttention = []string{"mid_block.attentions.0"}
	if e := relL2(forwardOf(t, n, x, &id), plain); e < 1e-4 {
		t.Errorf("identity attention changes the output by %.3g only", e)
	}
	x, b = images(n, 2, 4, 4)
	id = *b
	id.IdentityAttention = []string{"mid_block"}
	if e := relL2(forwardOf(t, n, x, &id), forwardOf(t, n, x, b)); e > 1e-6 {
		t.Errorf("identity attention over one pixel differs by %.3g", e)
	}

	out := make([]float64, len(x))
	for _, bad := range []Batch{
		{IdentityAttention: []string{"mid"}}, {SkipLayers: []string{"nowhere"}}, {SkipLayers: []string{"up_blocks.0.resnets.0"}},
	} {
		q := *b
		q.IdentityAttention, q.SkipLayers = bad.IdentityAttention, bad.SkipLayers
		if err := n.Forward(context.Background(), out, x, &q); err == nil {
			t.Errorf("hooks %v %v accepted", bad.IdentityAttention, bad.SkipLayers)
		}
	}
}

// A learned time embedding whose rows are the sinusoids, and class vectors
// taken from a table, are the same network.
func TestEmbeddingsAgree(t *testing.T) {
	f, err := formulaOf(tiny())
	if err != nil {
		t.Fatal(err)
	}
	n := newNet(t, tiny(), f, Options{Threads: 1})
	x, b := images(n, 3, 16, 16)
	b.T = []float64{0, 3, 7}
	want := forwardOf(t, n, x, b)

	cfg := tiny()
	cfg.TimeEmbeddingType, cfg.NumTrainTimesteps, cfg.ClassEmbedType, cfg.NumClassEmbeds = "learned", 8, "identity", 0
	w := &memory{}
	for _, name := range f.Names() {
		v, err := f.Float32(name)
		if err != nil {
			t.Fatal(err)
		}
		shape, _ := f.Shape(name)
		if name == "class_embedding.weight" {
			for _, c := range b.Class {
				b.ClassVector = append(b.ClassVector, v[c*64:(c+1)*64]...)
			}
			continue
		}
		w.put(name, shape, v)
	}
	table := make([]float32, 8*16)
	for i := range 8 {
		n.times.put(table[16*i:16*i+16], float64(i))
	}
	w.put("time_proj.weight", []int{8, 16}, table)
	b.Class = nil
	n2 := newNet(t, cfg, w, Options{Threads: 1})
	if got := forwardOf(t, n2, x, b); !slices.Equal(got, want) {
		t.Errorf("differ by %.3g", relL2(got, want))
	}
}

func TestRefusedConfigs(t *testing.T) {
	for _, c := range []struct {
		key  string
		edit func(*diffusers.UNet2DConfig)
	}{
		{"in_channels", func(c *diffusers.UNet2DConfig) { c.InChannels = 0 }},
		{"out_channels", func(c *diffusers.UNet2DConfig) { c.OutChannels = -1 }},
		{"layers_per_block", func(c *diffusers.UNet2DConfig) { c.LayersPerBlock = 0 }},
		{"block_out_channels", func(c *diffusers.UNet2DConfig) { c.BlockOutChannels = nil }},
		{"block_out_channels", func(c *diffusers.UNet2DConfig) { c.BlockOutChannels = []int{16, 0, 40} }},
		{"down_block_types", func(c *diffusers.UNet2DConfig) { c.DownBlockTypes = c.DownBlockTypes[1:] }},
		{"down_block_types", func(c *diffusers.UNet2DConfig) {
			c.DownBlockTypes = []string{"DownBlock2D", "KDownBlock2D", "DownBlock2D"}
		}},
		{"up_block_types", func(c *diffusers.UNet2DConfig) { c.UpBlockTypes = append(c.UpBlockTypes, "UpBlock2D") }},
		{"up_block_types", func(c *diffusers.UNet2DConfig) {
			c.UpBlockTypes = []string{"UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
		}},
		{"mid_block_type", func(c *diffusers.UNet2DConfig) { c.MidBlockType = "UnCLIPUNetMidBlock2D" }},
		{"act_fn", func(c *diffusers.UNet2DConfig) { c.ActFn = "mish" }},
		{"time_embedding_type", func(c *diffusers.UNet2DConfig) { c.TimeEmbeddingType = "adm" }},
		{"num_train_timesteps", func(c *diffusers.UNet2DConfig) { c.TimeEmbeddingType = "learned" }},
		{"freq_shift", func(c *diffusers.UNet2DConfig) { c.FreqShift = 8 }},
		{"resnet_time_scale_shift", func(c *diffusers.UNet2DConfig) { c.ResnetTimeScaleShift = "spatial" }},
		{"downsample_padding", func(c *diffusers.UNet2DConfig) { c.DownsamplePadding = 2 }},
		{"downsample_type", func(c *diffusers.UNet2DConfig) { c.DownsampleType = "fir" }},
		{"upsample_type", func(c *diffusers.UNet2DConfig) { c.UpsampleType = "" }},
		{"class_embed_type", func(c *diffusers.UNet2DConfig) { c.ClassEmbedType = "projection" }},
		{"norm_eps", func(c *diffusers.UNet2DConfig) { c.NormEps = 0 }},
		{"norm_eps", func(c *diffusers.UNet2DConfig) { c.NormEps = math.NaN() }},
		{"mid_block_scale_factor", func(c *diffusers.UNet2DConfig) { c.MidBlockScaleFactor = 0 }},
		{"norm_num_groups", func(c *diffusers.UNet2DConfig) { c.NormNumGroups = 0 }},
		{"norm_num_groups", func(c *diffusers.UNet2DConfig) { c.NormNumGroups = 7 }},
		{"attention_head_dim", func(c *diffusers.UNet2DConfig) { c.AttentionHeadDim = 64 }},
		{"attention_head_dim", func(c *diffusers.UNet2DConfig) { c.AttentionHeadDim = -1 }},
		{"down_block_types", func(c *diffusers.UNet2DConfig) {
			c.DownBlockTypes = []string{"DownBlock2D", "SkipDownBlock2D", "DownBlock2D"}
		}},
		{"up_block_types", func(c *diffusers.UNet2DConfig) { c.UpBlockTypes = []string{"SkipUpBlock2D", "UpBlock2D", "UpBlock2D"} }},
		{"in_channels", func(c *diffusers.UNet2DConfig) { *c = ncsnpp(); c.InChannels = 1 }},
		{"out_channels", func(c *diffusers.UNet2DConfig) { *c = ncsnpp(); c.OutChannels = 1 }},
	} {
		cfg := tiny()
		c.edit(&cfg)
		_, err := New(cfg, panicky{}, Options{Threads: 1})
		if err == nil || !strings.Contains(err.Error(), c.key) {
			t.Errorf("%s: error %v", c.key, err)
		}
	}
}

// panicky is weights that nobody may read.
type panicky struct{ diffusers.Weights }

func TestWrongTensors(t *testing.T) {
	f, err := formulaOf(tiny())
	if err != nil {
		t.Fatal(err)
	}
	w := &memory{}
	for _, name := range f.Names() {
		v, _ := f.Float32(name)
		shape, _ := f.Shape(name)
		switch name {
		case "conv_in.weight", "mid_block.resnets.0.norm1.bias":
			continue
		case "conv_out.weight":
			shape = []int{3, 3, 3, 16}
		}
		w.put(name, shape, v)
	}
	w.put("stranger.weight", []int{1}, []float32{1})
	_, err = New(tiny(), w, Options{Threads: 1})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"2 tensors are missing: conv_in.weight, mid_block.resnets.0.norm1.bias", "1 tensors have a wrong shape: conv_out.weight", "1 tensors are unknown: stranger.weight"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %q", err, want)
		}
	}
}

func TestRefusedInputs(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 1})
	fourier := formulaNet(t, ncsnpp(), Options{Threads: 1})
	for name, c := range map[string]struct {
		net  *Net
		edit func(x *[]float64, b *Batch)
	}{
		"empty":         {n, func(x *[]float64, b *Batch) { *x, b.T, b.Class = nil, nil, nil }},
		"odd size":      {n, func(x *[]float64, b *Batch) { b.H = 15 }},
		"negative size": {n, func(x *[]float64, b *Batch) { b.H, b.W = -16, -16 }},
		"no size":       {n, func(x *[]float64, b *Batch) { b.H = 0 }},
		"short":         {n, func(x *[]float64, b *Batch) { *x = (*x)[1:] }},
		"times":         {n, func(x *[]float64, b *Batch) { b.T = b.T[1:] }},
		"time":          {n, func(x *[]float64, b *Batch) { b.T[1] = math.NaN() }},
		"no class":      {n, func(x *[]float64, b *Batch) { b.Class = nil }},
		"class":         {n, func(x *[]float64, b *Batch) { b.Class[0] = 5 }},
		"minus class":   {n, func(x *[]float64, b *Batch) { b.Class[0] = -1 }},
		"vector":        {n, func(x *[]float64, b *Batch) { b.ClassVector = make([]float32, 2*64) }},
		"time 0":        {fourier, func(x *[]float64, b *Batch) { b.T[0] = 0 }},
		"any class":     {fourier, func(x *[]float64, b *Batch) { b.Class = []int{0, 0} }},
	} {
		x, b := images(c.net, 2, 16, 16)
		out := make([]float64, len(x))
		c.edit(&x, b)
		var input *InputError
		if err := c.net.Forward(context.Background(), out, x, b); !errors.As(err, &input) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestCancel(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 1})
	x, b := images(n, 1, 16, 16)
	ctx, cancel := context.WithCancel(context.Background())
	layers := 0
	b.Trace = func(l Layer) {
		if layers++; layers == 5 {
			cancel()
		}
	}
	out := make([]float64, len(x))
	if err := n.Forward(ctx, out, x, b); !errors.Is(err, context.Canceled) || layers != 5 {
		t.Errorf("error %v after %d layers", err, layers)
	}
	b.Trace = nil
	first := forwardOf(t, n, x, b)
	if !slices.Equal(first, forwardOf(t, n, x, b)) {
		t.Error("a stopped Forward left traces")
	}
}

func TestTrace(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 1})
	x, b := images(n, 3, 16, 16)
	sum := 0
	kinds := map[string]int{}
	b.Trace = func(l Layer) {
		sum += l.MACs
		kinds[l.Kind]++
		if l.N != 3 || l.H < 1 || l.W < 1 || l.C < 1 || l.Duration < 0 || l.Name == "" {
			t.Errorf("layer %+v", l)
		}
	}
	forwardOf(t, n, x, b)
	macs, err := n.MACs(16, 16)
	if err != nil || sum != 3*macs || macs == 0 {
		t.Errorf("layers add up to %d multiply-adds, 3 images have %d (%v)", sum, 3*macs, err)
	}
	if kinds["attention"] != 7 || kinds["conv"] == 0 || kinds["norm"] == 0 {
		t.Errorf("layers %v", kinds)
	}
}

// small is a network for the examples.
func small() (*Net, error) {
	cfg := diffusers.UNet2DConfig{
		InChannels: 1, OutChannels: 1, TimeEmbeddingType: "positional", FlipSinToCos: true,
		DownBlockTypes: []string{"DownBlock2D", "AttnDownBlock2D"}, MidBlockType: "UNetMidBlock2D",
		UpBlockTypes: []string{"AttnUpBlock2D", "UpBlock2D"}, BlockOutChannels: []int{8, 16}, LayersPerBlock: 1,
		MidBlockScaleFactor: 1, DownsamplePadding: 1, DownsampleType: "conv", UpsampleType: "conv", ActFn: "silu",
		AttentionHeadDim: 8, NormNumGroups: 4, NormEps: 1e-5, ResnetTimeScaleShift: "default", AddAttention: true,
	}
	weights, err := diffusers.NewFormula(&cfg) // a checkpoint in earnest
	if err != nil {
		return nil, err
	}
	return New(cfg, weights, Options{})
}

func ExampleNet_Forward() {
	net, err := small()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer net.Close()
	x := make([]float64, 2*8*8) // two images of 8 by 8
	out := make([]float64, len(x))
	err = net.Forward(context.Background(), out, x, &Batch{H: 8, W: 8, T: []float64{999, 500}})
	macs, _ := net.MACs(8, 8)
	fmt.Println(err, net.Parameters(), "parameters,", macs, "multiply-adds per image")
	// Output: <nil> 44969 parameters, 1042944 multiply-adds per image
}

func ExampleNet_VJP() {
	net, err := small()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer net.Close()
	ctx := context.Background()
	energy := func(out []float64) (e float64) { // half the squared norm, whose gradient is out itself
		for _, v := range out {
			e += v * v / 2
		}
		return e
	}
	x := make([]float64, 8*8)
	for i := range x {
		x[i] = math.Sin(float64(i))
	}
	out, grad := make([]float64, len(x)), make([]float64, len(x))
	b := &Batch{H: 8, W: 8, T: []float64{500}, Save: true}
	if err := net.Forward(ctx, out, x, b); err != nil {
		fmt.Println(err)
		return
	}
	before := energy(out)
	if err := net.VJP(ctx, grad, out); err != nil {
		fmt.Println(err)
		return
	}
	for i, g := range grad { // a step downhill
		x[i] -= 0.01 * g
	}
	if err := net.Forward(ctx, out, x, b); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("the energy falls:", energy(out) < before)
	// Output: the energy falls: true
}
