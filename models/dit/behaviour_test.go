package dit

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

// wave is a vector to multiply with.
func wave(n int, f float64) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = math.Sin(f * float64(i+1))
	}
	return v
}

func one(b *Batch, i int) *Batch {
	c := *b
	c.T, c.Class = b.T[i:i+1], b.Class[i:i+1]
	return &c
}

// Neither the batch nor the number of threads changes a bit, of outputs or of
// gradients.
func TestBatchAndThreads(t *testing.T) {
	for _, tier := range kernels.Tiers() {
		for _, dtype := range []kernels.DType{kernels.F32, kernels.BF16} {
			t.Run(fmt.Sprintf("%v/%v", tier, dtype), func(t *testing.T) {
				const count = 5
				single := kernels.NewPool(tier, 1)
				defer single.Close()
				several := kernels.NewPool(tier, 3)
				defer several.Close()
				n1 := formulaNet(t, tiny(), Options{Pool: single, DType: dtype})
				n3 := formulaNet(t, tiny(), Options{Pool: several, DType: dtype})
				for _, size := range []int{2, 8, 14} {
					x, b := images(n1, count, size)
					cot := wave(2*len(x), 1)
					want, wantGrad := gradOf(t, n1, x, cot, b)
					if norm := relL2(make([]float64, len(want)), want); norm != 1 {
						t.Fatal("no output")
					}
					for _, chunk := range []int{0, 2} {
						n3.chunk = chunk
						if got := forwardOf(t, n3, x, b); !slices.Equal(got, want) {
							t.Errorf("3 threads differ from 1: %.3g", relL2(got, want))
						}
					}
					if _, grad := gradOf(t, n3, x, cot, b); !slices.Equal(grad, wantGrad) {
						t.Errorf("gradient: 3 threads differ from 1: %.3g", relL2(grad, wantGrad))
					}
					for i := range count {
						lo, hi := i*len(x)/count, (i+1)*len(x)/count
						got, grad := gradOf(t, n3, x[lo:hi], cot[2*lo:2*hi], one(b, i))
						if !slices.Equal(got, want[2*lo:2*hi]) {
							t.Errorf("image %d alone differs: %.3g", i, relL2(got, want[2*lo:2*hi]))
						}
						if !slices.Equal(grad, wantGrad[lo:hi]) {
							t.Errorf("gradient of image %d alone differs: %.3g", i, relL2(grad, wantGrad[lo:hi]))
						}
					}
				}
			})
		}
	}
}

func TestNoAllocations(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 2})
	x, b := images(n, 3, 8)
	small, sb := images(n, 2, 6)
	sb.IdentityAttention = []string{"transformer_blocks.1"}
	out, grad := make([]float64, 2*len(x)), make([]float64, len(x))
	ctx := context.Background()
	if got := testing.AllocsPerRun(10, func() {
		if err := n.Forward(ctx, out, x, b); err != nil {
			t.Fatal(err)
		}
		if err := n.Forward(ctx, out[:2*len(small)], small, sb); err != nil {
			t.Fatal(err)
		}
	}); got != 0 {
		t.Errorf("%v allocations per Forward", got)
	}
	b.Save = true
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
}

// Memory stops growing where groups of images begin to follow each other.
func TestMemory(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 1})
	// Panels are filled up to whole ones, and tables are not packed.
	if got := n.Memory(); got.Weights < 2*n.Parameters() || got.Weights > 40*n.Parameters() || got.Activations != 0 {
		t.Errorf("a new network holds %+v", got)
	}
	n.chunk = 4
	use := map[int]int{}
	for _, count := range []int{1, 4, 64} {
		x, b := images(n, count, 8)
		forwardOf(t, n, x, b)
		use[count] = n.Memory().Activations
		if need, err := n.Need(8, 8, count); err != nil || need.Activations > use[count] || need.Weights != n.Memory().Weights {
			t.Errorf("%d images need %+v (%v), took %+v", count, need, err, n.Memory())
		}
	}
	if use[64] != use[4] || use[4] > 4*use[1] || use[1] == 0 {
		t.Errorf("bytes by batch: %v", use)
	}
}

func TestFloat32(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 1})
	x, b := images(n, 2, 8)
	want, grad := gradOf(t, n, x, wave(2*len(x), 2), b)
	x32, out, g32, cot := make([]float32, len(x)), make([]float32, len(want)), make([]float32, len(x)), make([]float32, len(want))
	for i, v := range x {
		x32[i] = float32(v)
	}
	for i, v := range wave(2*len(x), 2) {
		cot[i] = float32(v)
	}
	b.Save = true
	if err := n.Forward32(context.Background(), out, x32, b); err != nil {
		t.Fatal(err)
	}
	if err := n.VJP32(context.Background(), g32, cot); err != nil {
		t.Fatal(err)
	}
	for i, v := range want {
		if float64(out[i]) != v {
			t.Fatalf("value %d is %v in float32, %v in float64", i, out[i], v)
		}
	}
	for i, v := range grad {
		if float64(g32[i]) != v {
			t.Fatalf("gradient %d is %v in float32, %v in float64", i, g32[i], v)
		}
	}
}

// The gradient agrees with central differences of fourth order along a
// direction, with and without hooks.
func TestVJPDifferences(t *testing.T) {
	exact, unbiased := tiny(), tiny()
	exact.ActivationFn, exact.OutChannels, exact.PatchSize, exact.SampleSize = "gelu", 0, 1, 4
	unbiased.AttentionBias, unbiased.PatchSize = false, 4
	for name, c := range map[string]struct {
		cfg            diffusers.DiTConfig
		identity, skip []string
	}{
		"tiny":              {cfg: tiny()},
		"gelu":              {cfg: exact},
		"patches of 4":      {cfg: unbiased},
		"identityAttention": {cfg: tiny(), identity: []string{"transformer_blocks.1"}},
		"skipLayers":        {cfg: tiny(), skip: []string{"transformer_blocks.0.ff", "transformer_blocks.1.attn1", "transformer_blocks.2"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := formulaNet(t, c.cfg, Options{Threads: 2})
			x, b := images(n, 2, 8)
			b.IdentityAttention, b.SkipLayers = c.identity, c.skip
			dir, cot := wave(len(x), 3), wave(len(x)/c.cfg.InChannels*n.OutChannels(), 1)
			_, grad := gradOf(t, n, x, cot, b)
			const eps = 8e-3
			at := func(s float64) []float64 {
				y := slices.Clone(x)
				for i := range y {
					y[i] += s * dir[i]
				}
				return forwardOf(t, n, y, b)
			}
			p1, m1, p2, m2 := at(eps), at(-eps), at(2*eps), at(-2*eps)
			var got, want, scale float64
			for i, c := range cot {
				d := c * (8*(p1[i]-m1[i]) - (p2[i] - m2[i])) / (12 * eps)
				want += d
				scale += math.Abs(d)
			}
			for i, g := range grad {
				got += g * dir[i]
			}
			if math.Abs(got-want) > 1e-5*scale {
				t.Errorf("derivative %v, differences give %v (terms of %v)", got, want, scale)
			}
		})
	}
}

func TestVJPErrors(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 1})
	x, b := images(n, 1, 8)
	cot, g := wave(2*len(x), 1), make([]float64, len(x))
	ctx := context.Background()
	if err := n.VJP(ctx, g, cot); !errors.Is(err, ErrNotSaved) {
		t.Errorf("VJP without Forward: %v", err)
	}
	forwardOf(t, n, x, b)
	if err := n.VJP(ctx, g, cot); !errors.Is(err, ErrNotSaved) {
		t.Errorf("VJP after a Forward without Save: %v", err)
	}
	b.Save = true
	forwardOf(t, n, x, b)
	if err := n.VJP(ctx, g, cot[1:]); err == nil {
		t.Error("short cotangent accepted")
	}
	if err := n.VJP(ctx, g[1:], cot); err == nil {
		t.Error("short gradient accepted")
	}
	if err := n.VJP(ctx, g, cot); err != nil {
		t.Fatal(err)
	}
	other := wave(len(x), 1)
	if err := n.VJP(ctx, other, make([]float64, len(cot))); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(other, func(v float64) bool { return v != 0 }) {
		t.Error("the gradient of a zero cotangent is not zero")
	}
	again := make([]float64, len(x))
	if err := n.VJP(ctx, again, cot); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(g, again) {
		t.Error("a repeated VJP differs")
	}
}

// edited is a set of weights with some layers replaced by zeros.
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
	f := formula(t, tiny())
	n := newNet(t, tiny(), f, Options{Threads: 1})
	x, b := images(n, 2, 8)
	plain := forwardOf(t, n, x, b)

	// A branch whose last layer is zero passes its input through.
	const b0, b1 = "transformer_blocks.0", "transformer_blocks.1"
	silent := newNet(t, tiny(), edited{f, []string{b0 + ".attn1.to_out.0", b1 + ".attn1.to_out.0", b1 + ".ff.net.2"}}, Options{Threads: 1})
	want := forwardOf(t, silent, x, b)
	skip := *b
	skip.SkipLayers = []string{b0 + ".attn1", b1}
	got := forwardOf(t, n, x, &skip)
	if !slices.Equal(got, want) {
		t.Errorf("skipping differs from zero weights by %.3g", relL2(got, want))
	}
	if e := relL2(got, plain); e < 1e-3 {
		t.Errorf("skipping changes the output by %.3g only", e)
	}

	if got, want := n.AttentionLayers(), []string{b0 + ".attn1", b1 + ".attn1", "transformer_blocks.2.attn1"}; !slices.Equal(got, want) {
		t.Errorf("attention layers %v", got)
	}
	id := *b
	id.IdentityAttention = []string{b1}
	if e := relL2(forwardOf(t, n, x, &id), plain); e < 1e-4 {
		t.Errorf("identity attention changes the output by %.3g only", e)
	}
	x, b = images(n, 2, 2) // over one token it changes nothing
	id = *b
	id.IdentityAttention = []string{b0, b1 + ".attn1"}
	if e := relL2(forwardOf(t, n, x, &id), forwardOf(t, n, x, b)); e > 1e-6 {
		t.Errorf("identity attention over one token differs by %.3g", e)
	}

	out := make([]float64, 2*len(x))
	for _, bad := range []Batch{
		{IdentityAttention: []string{"transformer_blocks"}}, {IdentityAttention: []string{b0 + ".ff"}}, {SkipLayers: []string{"transformer_blocks.3"}},
	} {
		q := *b
		q.IdentityAttention, q.SkipLayers = bad.IdentityAttention, bad.SkipLayers
		if err := n.Forward(context.Background(), out, x, &q); (err == nil) != (bad.SkipLayers == nil && bad.IdentityAttention[0] == "transformer_blocks") {
			t.Errorf("hooks %v %v: %v", bad.IdentityAttention, bad.SkipLayers, err)
		}
	}
}

// Every block has embedders of its own, and the head those of the first one.
func TestEmbedders(t *testing.T) {
	f := formula(t, tiny())
	n := newNet(t, tiny(), f, Options{Threads: 1})
	x, b := images(n, 1, 8)
	plain := forwardOf(t, n, x, b)
	skip := *b
	skip.SkipLayers = []string{"transformer_blocks.0", "transformer_blocks.1", "transformer_blocks.2"}
	head := forwardOf(t, n, x, &skip)
	for i := range 3 {
		w := edited{f, []string{fmt.Sprintf("transformer_blocks.%d.norm1.emb.class_embedder.embedding_table", i)}}
		e := newNet(t, tiny(), w, Options{Threads: 1})
		if d := relL2(forwardOf(t, e, x, b), plain); d < 1e-3 {
			t.Errorf("the class of block %d changes the output by %.3g only", i, d)
		}
		if d := relL2(forwardOf(t, e, x, &skip), head); (d > 1e-3) != (i == 0) {
			t.Errorf("the class of block %d changes the head by %.3g", i, d)
		}
	}
}

// panicky is weights that nobody may read.
type panicky struct{ diffusers.Weights }

func TestRefusedConfigs(t *testing.T) {
	for key, edit := range map[string]func(*diffusers.DiTConfig){
		"num_layers":                func(c *diffusers.DiTConfig) { c.NumLayers = 0 },
		"patch_size":                func(c *diffusers.DiTConfig) { c.PatchSize = 0 },
		"sample_size":               func(c *diffusers.DiTConfig) { c.SampleSize = 7 },
		"attention_head_dim":        func(c *diffusers.DiTConfig) { c.AttentionHeadDim = 7 },
		"activation_fn":             func(c *diffusers.DiTConfig) { c.ActivationFn = "geglu" },
		"norm_type":                 func(c *diffusers.DiTConfig) { c.NormType = "layer_norm" },
		"norm_eps":                  func(c *diffusers.DiTConfig) { c.NormEps = math.NaN() },
		"norm_elementwise_affine":   func(c *diffusers.DiTConfig) { c.NormElementwiseAffine = true },
		"num_embeds_ada_norm":       func(c *diffusers.DiTConfig) { c.NumEmbedsAdaNorm = 0 },
		"in_channels":               func(c *diffusers.DiTConfig) { c.InChannels = -1 },
		"dit: out_channels":         func(c *diffusers.DiTConfig) { c.OutChannels = -1 },
		"dit: num_attention_heads ": func(c *diffusers.DiTConfig) { c.NumAttentionHeads = 0 },
	} {
		cfg := tiny()
		edit(&cfg)
		if _, err := New(cfg, panicky{}, Options{Threads: 1}); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(strings.TrimPrefix(key, "dit: "))) {
			t.Errorf("%s: error %v", key, err)
		}
	}
}

// lacking is a set of weights without one tensor, with another misshapen and
// with a stranger.
type lacking struct{ *diffusers.Formula }

func (l lacking) Names() []string { return append(slices.Clone(l.Formula.Names()), "stranger.weight") }

func (l lacking) Shape(name string) ([]int, bool) {
	switch name {
	case "pos_embed.proj.bias":
		return nil, false
	case "proj_out_2.weight":
		return []int{36, 24}, true
	}
	return l.Formula.Shape(name)
}

func TestWrongTensors(t *testing.T) {
	_, err := New(tiny(), lacking{formula(t, tiny())}, Options{Threads: 1})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"missing: 1: pos_embed.proj.bias", "of a wrong shape: 1: proj_out_2.weight is [36 24], the configuration asks for [24 36]", "unknown: 1: stranger.weight"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %q", err, want)
		}
	}
}

func TestRefusedInputs(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 1})
	for name, edit := range map[string]func(x *[]float64, b *Batch){
		"empty":         func(x *[]float64, b *Batch) { *x, b.T, b.Class = nil, nil, nil },
		"odd size":      func(x *[]float64, b *Batch) { b.H, b.W = 7, 7 },
		"no square":     func(x *[]float64, b *Batch) { b.H, b.W = 4, 16 },
		"negative size": func(x *[]float64, b *Batch) { b.H, b.W = -8, -8 },
		"no size":       func(x *[]float64, b *Batch) { b.H, b.W = 0, 0 },
		"huge":          func(x *[]float64, b *Batch) { b.H, b.W = 1<<40, 1<<40 },
		"short":         func(x *[]float64, b *Batch) { *x = (*x)[1:] },
		"times":         func(x *[]float64, b *Batch) { b.T = b.T[1:] },
		"time":          func(x *[]float64, b *Batch) { b.T[1] = math.NaN() },
		"no class":      func(x *[]float64, b *Batch) { b.Class = nil },
		"class":         func(x *[]float64, b *Batch) { b.Class[0] = 6 },
		"minus class":   func(x *[]float64, b *Batch) { b.Class[0] = -1 },
	} {
		x, b := images(n, 2, 8)
		out := make([]float64, 2*len(x))
		edit(&x, b)
		var input *InputError
		if err := n.Forward(context.Background(), out, x, b); !errors.As(err, &input) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if _, err := n.MACs(8, 10); err == nil {
		t.Error("multiply-adds of a rectangle")
	}
}

func TestCancel(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 1})
	x, b := images(n, 1, 8)
	ctx, cancel := context.WithCancel(context.Background())
	layers := 0
	b.Trace = func(l Layer) {
		if layers++; layers == 5 {
			cancel()
		}
	}
	if err := n.Forward(ctx, make([]float64, 2*len(x)), x, b); !errors.Is(err, context.Canceled) || layers != 5 {
		t.Errorf("error %v after %d layers", err, layers)
	}
	b.Trace = nil
	if first := forwardOf(t, n, x, b); !slices.Equal(first, forwardOf(t, n, x, b)) {
		t.Error("a stopped Forward left traces")
	}
}

func TestTrace(t *testing.T) {
	n := formulaNet(t, tiny(), Options{Threads: 1})
	x, b := images(n, 3, 8)
	sum, kinds := 0, map[string]int{}
	b.Trace = func(l Layer) {
		sum += l.MACs
		kinds[l.Kind]++
		if l.N != 3 || l.Tokens < 1 || l.C < 1 || l.Duration < 0 || l.Name == "" {
			t.Errorf("layer %+v", l)
		}
	}
	forwardOf(t, n, x, b)
	macs, err := n.MACs(8, 8)
	if err != nil || sum != 3*macs || macs == 0 {
		t.Errorf("layers add up to %d multiply-adds, 3 images have %d (%v)", sum, 3*macs, err)
	}
	if kinds["attention"] != 3 || kinds["norm"] != 1 || kinds["feed forward"] != 3 {
		t.Errorf("layers %v", kinds)
	}
}

// small is a network for the examples.
func small() (*Net, error) {
	cfg := diffusers.DiTConfig{
		NumAttentionHeads: 2, AttentionHeadDim: 8, InChannels: 1, NumLayers: 2, AttentionBias: true, SampleSize: 8, PatchSize: 2,
		ActivationFn: "gelu-approximate", NumEmbedsAdaNorm: 10, NormType: "ada_norm_zero", NormEps: 1e-5,
	}
	weights, err := diffusers.NewFormula(&cfg) // a checkpoint in earnest
	if err != nil {
		return nil, err
	}
	return New(cfg, weights, Options{})
}

// Classifier-free guidance asks for the class and, in the last row of the
// table, for no class.
func ExampleNet_Forward() {
	net, err := small()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer net.Close()
	x := make([]float64, 2*8*8) // two images of 8 by 8
	out := make([]float64, len(x))
	err = net.Forward(context.Background(), out, x, &Batch{H: 8, W: 8, T: []float64{999, 999}, Class: []int{3, net.Classes() - 1}})
	macs, _ := net.MACs(8, 8)
	fmt.Println(err, net.Parameters(), "parameters,", macs, "multiply-adds per image")
	// Output: <nil> 19508 parameters, 129024 multiply-adds per image
}

func ExampleNet_VJP() {
	net, err := small()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer net.Close()
	ctx := context.Background()
	x, out, grad := wave(8*8, 1), make([]float64, 8*8), make([]float64, 8*8)
	b := &Batch{H: 8, W: 8, T: []float64{500}, Class: []int{0}, Save: true}
	if err := net.Forward(ctx, out, x, b); err != nil {
		fmt.Println(err)
		return
	}
	half := func(v []float64) (e float64) { // half the squared norm, whose gradient is v itself
		for _, u := range v {
			e += u * u / 2
		}
		return e
	}
	before := half(out)
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
	fmt.Println("the energy falls:", half(out) < before)
	// Output: the energy falls: true
}
