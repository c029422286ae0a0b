// Package enginetest holds networks to the outputs of their reference
// implementations. Only tests import it.
package enginetest

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"drift/internal/kernels"
	"drift/internal/npz"
	"drift/models/diffusers"
	"drift/models/engine"
)

// Ask is the largest relative L2 error of a fixture, 0 for none asked.
type Ask struct {
	Name           string
	F32, BF16, VJP float64
	// Prepare changes the arrays of the file into what the network takes.
	Prepare func(t *testing.T, io map[string]Array)
}

// Opener makes the network of a folder.
type Opener func(cfg diffusers.Config, w diffusers.Weights, opt engine.Options) (*engine.Net, error)

// Dir finds a folder of the fixtures, under testdata or where DRIFT_FIXTURES
// says.
func Dir(t testing.TB, elem ...string) string {
	t.Helper()
	if p := filepath.Join("testdata", elem[len(elem)-1]); exists(p) {
		return p
	}
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	return filepath.Join(append([]string{root}, elem...)...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Array is a member of an npz file, widened.
type Array struct {
	Shape []int
	Data  []float64
}

// F32 narrows the values.
func (a Array) F32() []float32 {
	out := make([]float32, len(a.Data))
	for i, v := range a.Data {
		out[i] = float32(v)
	}
	return out
}

// Read reads an npz file.
func Read(t testing.TB, path string) map[string]Array {
	t.Helper()
	all, err := npz.ReadAll(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Array{}
	for name, a := range all {
		v, err := a.Float64()
		if err != nil {
			t.Fatal(err)
		}
		out[name] = Array{a.Shape, v}
	}
	return out
}

// Open opens a folder with a network.
func Open(t testing.TB, dir string) (diffusers.Config, diffusers.Weights) {
	t.Helper()
	m, err := diffusers.Open(dir, diffusers.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m.Config, m.Weights
}

// RelL2 is |a - b| / |b|.
func RelL2(a, b []float64) float64 {
	if len(a) != len(b) {
		return math.Inf(1)
	}
	var d, s float64
	for i, v := range b {
		d += (a[i] - v) * (a[i] - v)
		s += v * v
	}
	return math.Sqrt(d / s)
}

// question makes a batch of a fixture's arrays. images names the array of the
// images.
func question(io map[string]Array, images string) (x []float64, b *engine.Batch) {
	s := io[images]
	b = &engine.Batch{H: s.Shape[2], W: s.Shape[3], T: io["timestep"].Data, Inputs: map[string]engine.Array{}}
	for len(b.T) < s.Shape[0] {
		b.T = append(slices.Clone(b.T), append(b.T, 0)[0])
	}
	for name, a := range io {
		switch name {
		case images, "timestep", "out", "vjp", "cotangent":
		case "class_labels":
			for _, c := range a.Data {
				b.Class = append(b.Class, int(c))
			}
		default:
			b.Inputs[name] = engine.Array{Shape: a.Shape, Data: a.F32()}
		}
	}
	return s.Data, b
}

// Check holds a network to its fixtures on every tier of this machine: the
// output in both types, the gradient, and that the batch size and the number
// of threads change no bit.
func Check(t *testing.T, open Opener, images string, asks []Ask) {
	for _, c := range asks {
		t.Run(c.Name, func(t *testing.T) {
			dir := Dir(t, "models", c.Name)
			cfg, w := Open(t, dir)
			io := Read(t, filepath.Join(dir, "io.npz"))
			if c.Prepare != nil {
				c.Prepare(t, io)
			}
			x, b := question(io, images)
			for _, tier := range kernels.Tiers() {
				check(t, open, cfg, w, c, io, x, b, tier)
			}
		})
	}
}

func check(t *testing.T, open Opener, cfg diffusers.Config, w diffusers.Weights, c Ask, io map[string]Array, x []float64, b *engine.Batch, tier kernels.Tier) {
	pool := kernels.NewPool(tier, 2)
	defer pool.Close()
	n := Make(t, open, cfg, w, engine.Options{Pool: pool})
	want := io["out"].Data
	out := make([]float64, len(want))
	forward := func(n *engine.Net, dst, x []float64, b *engine.Batch) {
		t.Helper()
		if err := n.Forward(context.Background(), dst, x, b); err != nil {
			t.Fatal(err)
		}
	}
	forward(n, out, x, b)
	if e := RelL2(out, want); !(e <= c.F32) {
		t.Errorf("%v: relative error %.3g, want at most %g", tier, e, c.F32)
	} else {
		t.Logf("%v: %.3g", tier, e)
	}
	single(t, n, forward, out, x, b)
	one := kernels.NewPool(tier, 1)
	defer one.Close()
	again := make([]float64, len(out))
	forward(Make(t, open, cfg, w, engine.Options{Pool: one}), again, x, b)
	if !slices.Equal(again, out) {
		t.Errorf("%v: one thread gives other bits than two", tier)
	}
	if c.BF16 > 0 {
		m := Make(t, open, cfg, w, engine.Options{Pool: pool, DType: kernels.BF16})
		forward(m, again, x, b)
		if e := RelL2(again, want); !(e <= c.BF16) {
			t.Errorf("%v bf16: relative error %.3g, want at most %g", tier, e, c.BF16)
		} else {
			t.Logf("%v bf16: %.3g", tier, e)
		}
	}
	if c.VJP > 0 {
		saving := *b
		saving.Save = true
		forward(n, again, x, &saving)
		if !slices.Equal(again, out) {
			t.Errorf("%v: a forward pass that keeps its activations gives other bits", tier)
		}
		grad := make([]float64, len(x))
		for range 2 { // it can be asked again
			if err := n.VJP(context.Background(), grad, io["cotangent"].Data); err != nil {
				t.Fatal(err)
			}
			if e := RelL2(grad, io["vjp"].Data); !(e <= c.VJP) {
				t.Errorf("%v vjp: relative error %.3g, want at most %g", tier, e, c.VJP)
			} else {
				t.Logf("%v vjp: %.3g", tier, e)
			}
		}
	}
}

// Make opens a network for the length of a test.
func Make(t testing.TB, open Opener, cfg diffusers.Config, w diffusers.Weights, opt engine.Options) *engine.Net {
	t.Helper()
	n, err := open(cfg, w, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// single holds every image alone to the same bits as in the batch.
func single(t *testing.T, n *engine.Net, forward func(n *engine.Net, dst, x []float64, b *engine.Batch), out, x []float64, b *engine.Batch) {
	count := len(b.T)
	ins, outs := len(x)/count, len(out)/count
	for i := range count {
		one := &engine.Batch{H: b.H, W: b.W, T: b.T[i : i+1], Inputs: map[string]engine.Array{}}
		if b.Class != nil {
			one.Class = b.Class[i : i+1]
		}
		for name, a := range b.Inputs {
			shape := append([]int{1}, a.Shape[1:]...)
			if a.Shape[0] != count { // shared by all images
				one.Inputs[name] = a
				continue
			}
			one.Inputs[name] = engine.Array{Shape: shape, Data: a.Row(i)}
		}
		got := make([]float64, outs)
		forward(n, got, x[i*ins:(i+1)*ins], one)
		if !slices.Equal(got, out[i*outs:(i+1)*outs]) {
			t.Errorf("image %d alone has other bits than in the batch", i)
		}
	}
}
