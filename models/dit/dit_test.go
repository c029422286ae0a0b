package dit

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"drift/internal/kernels"
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
	s := io["hidden_states"]
	b = &Batch{H: s.shape[2], W: s.shape[3], T: io["timestep"].data}
	for _, c := range io["class_labels"].data {
		b.Class = append(b.Class, int(c))
	}
	return s.data, b
}

func forwardOf(t testing.TB, n *Net, x []float64, b *Batch) []float64 {
	t.Helper()
	out := make([]float64, len(x)/n.tree.cfg.InChannels*n.OutChannels())
	if err := n.Forward(context.Background(), out, x, b); err != nil {
		t.Fatal(err)
	}
	return out
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

// The expected outputs are float64 runs of diffusers. The limits are twice
// what torch's float32 reaches with an exact sinusoid, and 1.3 times what its
// bfloat16 reaches.
func TestFixtures(t *testing.T) {
	for _, c := range []struct {
		name            string
		fp32, vjp, bf16 float64
	}{
		{name: "dit", fp32: 1e-6, vjp: 1e-6, bf16: 1.1e-2},
		{name: "dit-other-size", fp32: 1e-6, bf16: 9.9e-3},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := fixture(t, c.name)
			cfg, w := open(t, dir)
			io := readNPZ(t, filepath.Join(dir, "io.npz"))
			x, b := question(io)
			for _, tier := range kernels.Tiers() {
				pool := kernels.NewPool(tier, 2)
				defer pool.Close()
				n := newNet(t, cfg, w, Options{Pool: pool})
				out := forwardOf(t, n, x, b)
				got := relL2(out, io["out"].data)
				t.Logf("%v: %.3g", tier, got)
				if !(got <= c.fp32) {
					t.Errorf("%v: relative error %.3g, want at most %g", tier, got, c.fp32)
				}
				if want, ok := io["vjp"]; ok {
					saved, grad := gradOf(t, n, x, io["cotangent"].data, b)
					got := relL2(grad, want.data)
					t.Logf("%v gradient: %.3g", tier, got)
					if !(got <= c.vjp) {
						t.Errorf("%v: relative error of the gradient %.3g, want at most %g", tier, got, c.vjp)
					}
					if !slices.Equal(saved, out) {
						t.Errorf("%v: Save changes the output by %.3g", tier, relL2(saved, out))
					}
				} else if c.vjp != 0 {
					t.Error("no gradient in the fixture")
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

func TestFormulaDiTS2(t *testing.T) {
	dir := fixture(t, "formula-dit-s2")
	if kernels.Detect() == kernels.Portable && os.Getenv("DRIFT_SLOW") == "" {
		t.Skip("12 GMAC take too long without SIMD: DRIFT_SLOW is not set")
	}
	cfg, err := readConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	io := readNPZ(t, filepath.Join(dir, "io.npz"))
	x, b := question(io)
	for _, c := range []struct {
		dtype kernels.DType
		limit float64
	}{{kernels.F32, 1e-6}, {kernels.BF16, 1.3e-2}} {
		n := formulaNet(t, cfg, Options{DType: c.dtype})
		if n.Parameters() != 39805088 {
			t.Errorf("%d parameters", n.Parameters())
		}
		got := relL2(forwardOf(t, n, x, b), io["out"].data)
		t.Logf("%v %v: %.3g", n.Tier(), c.dtype, got)
		if !(got <= c.limit) {
			t.Errorf("%v: relative error %.3g, want at most %g", c.dtype, got, c.limit)
		}
	}
}

// The counts of the published networks; XL/2 is 118.7 GMAC at 256x256.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		keys        string
		values, mac float64
	}{
		{`"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12, "out_channels": 8`, 39805088, 0},
		{`"out_channels": 8`, 749826464, 118.7e9},
	} {
		cfg := config(c.keys)
		tree, err := newTree(cfg)
		if err != nil {
			t.Fatal(err)
		}
		values, macs := 0, 0
		for _, v := range tree.tensors {
			values += product(v.Shape)
		}
		if float64(values) != c.values {
			t.Errorf("%s: %d values, want %v", c.keys, values, c.values)
		}
		tokens := tree.base * tree.base
		for _, l := range tree.linears {
			if l.image {
				macs += tokens * l.in * l.out
			} else {
				macs += l.in * l.out
			}
		}
		macs += len(tree.blocks) * 2 * tokens * tokens * tree.width
		if c.mac != 0 && math.Abs(float64(macs)/c.mac-1) > 5e-4 {
			t.Errorf("%s: %d multiply-adds, want %g", c.keys, macs, c.mac)
		}
	}
}

func TestFormula(t *testing.T) {
	f := formula(t, ditS2())
	for name, want := range map[string][]float32{
		"pos_embed.proj.weight": {-0.22079378366470337, -0.28135883808135986, 0.41542476415634155, -0.2651180624961853},
		"pos_embed.proj.bias":   {0.01233300007879734, 0.03475494310259819, 0.036781150847673416, 0.03714513033628464},
		"transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight": {-0.08506286889314651, 0.040496256202459335, -0.09762821346521378, -0.03982781618833542},
	} {
		got, err := f.Float32(name)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got[:4], want) {
			t.Errorf("%s begins with %v, want %v", name, got[:4], want)
		}
	}
	if _, err := f.Float32("no.such"); err == nil {
		t.Error("a tensor that does not exist has values")
	}
}

// A grid of 2 by 2 tokens of 8 channels at its own resolution, and the same
// extent on 4 by 4 tokens.
func TestPositions(t *testing.T) {
	sin, cos := math.Sincos(1)
	sin2, cos2 := math.Sincos(0.01)
	one, zero := []float64{sin, sin2, cos, cos2}, []float64{0, 0, 1, 1}
	table := positions(2, 2, 8)
	for i, want := range [][]float64{
		append(slices.Clone(zero), zero...), append(slices.Clone(one), zero...), // the column comes first
		append(slices.Clone(zero), one...), append(slices.Clone(one), one...),
	} {
		for k, v := range want {
			if table[8*i+k] != float32(v) {
				t.Errorf("token %d channel %d: %v, want %v", i, k, table[8*i+k], v)
			}
		}
	}
	fine := positions(4, 2, 8)
	for y := range 2 {
		for x := range 2 {
			if a, b := fine[(8*y+2*x)*8:][:8], table[(2*y+x)*8:][:8]; !slices.Equal(a, b) {
				t.Errorf("token %d,%d of the finer grid: %v, want %v", y, x, a, b)
			}
		}
	}
}

func TestPatches(t *testing.T) {
	const n, c, side, p = 2, 3, 2, 2
	x := make([]float64, n*c*side*p*side*p)
	for i := range x {
		x[i] = float64(i)
	}
	tokens, back := make([]float32, len(x)), make([]float64, len(x))
	for name, want := range map[string]struct {
		o    patchOrder
		head []float32
	}{
		"channels": {channelsFirst(c, side, p), []float32{0, 1, 4, 5, 16, 17, 20, 21, 32, 33, 36, 37, 2, 3}},
		"pixels":   {pixelsFirst(c, side, p), []float32{0, 16, 32, 1, 17, 33, 4, 20, 36, 5, 21, 37, 2, 18}},
	} {
		patchify(tokens, x, want.o)
		if !slices.Equal(tokens[:len(want.head)], want.head) {
			t.Errorf("%s: %v", name, tokens)
		}
		unpatchify(back, tokens, want.o)
		if !slices.Equal(back, x) {
			t.Errorf("%s: the way back gives %v", name, back)
		}
	}
}
