package graph_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"drift/internal/graph"
	"drift/internal/kernels"
)

// made is weights that follow from the names of the tensors.
type made map[string][]int

func (m made) Shape(name string) ([]int, bool) {
	s, ok := m[name]
	return s, ok
}

func (m made) Float32(name string) ([]float32, error) {
	n, seed := 1, 0.0
	for _, d := range m[name] {
		n *= d
	}
	for _, c := range name {
		seed += float64(c)
	}
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(0.4 * math.Sin(seed+1.7*float64(i)))
	}
	return v, nil
}

// network goes through every operation that has a gradient, on an image of 4 by 4 pixels of 3 channels.
func network(g *graph.Graph) {
	const c = 8
	l := g.Layers
	x := g.Input(4, 4, 3)
	spec := func(in, out, k int) kernels.ConvSpec {
		return kernels.ConvSpec{Cin: in, Cout: out, KH: k, KW: k, Stride: 1, Pad: kernels.Same(k / 2)}
	}
	h := g.Conv(l.Conv("in", spec(3, c, 3)), graph.From(x), graph.Epilogue{})
	vector := g.Feed("vector", 1, 1, 2*c)
	own := g.ScaleShift(graph.NoNorm("mod"), vector.Cols(0, c), vector.Cols(c, c))
	normed := graph.Source{X: h, X2: h, Norm: g.GroupNorm(graph.NoNorm("group"), h, h, 4, 1e-5, graph.Modulation{}), Act: kernels.SiLU}
	h = g.Conv(l.Conv("two", spec(2*c, c, 3)), normed, graph.Epilogue{Residual: h, Scale: 0.5})
	t := g.LayerNorm(graph.NoNorm("layer"), h.Tokens(), 1e-5, own)
	qkv := g.Linear(l.Linear("qkv", c, 3*c), graph.From(t), graph.Epilogue{})
	q := g.RMSNorm(graph.NoNorm("rms"), g.Columns("q", qkv.Cols(0, c)), 4, 1e-5)
	cos, sin := make([]float32, 16*2), make([]float32, 16*2)
	for i := range cos {
		s, c := math.Sincos(float64(i))
		cos[i], sin[i] = float32(c), float32(s)
	}
	q = g.Rotary("rotary", q, 2, 4, cos, sin)
	a := g.SelfAttention(graph.Attention{Name: "attention", Heads: 2, Dim: 4}, q.All(), qkv.Cols(c, c), qkv.Cols(2*c, c))
	t = g.Gated("gate", h.Tokens(), a, vector.Cols(c, c))
	both := g.Join("join", t, a)
	t = g.Sum("sum", g.Slice("slice", both, 0, 16), g.Product("product", g.Slice("slice", both, 16, 16), t))
	u := g.GLU("glu", g.Linear(l.Linear("wide", c, 4*c), graph.From(t), graph.Epilogue{}), kernels.GELU)
	t = g.Linear(l.Linear("back", 2*c, c), graph.From(g.Activate("act", u, kernels.GELUTanh)), graph.Epilogue{Residual: t})
	image := g.Depthwise("depth", t.As(4, 4, c), 3, kernels.Identity)
	image = g.Resize("resize", g.Apply("up", graph.Source{X: image, Up: true}), 6, 5)
	image = g.Unpatch("unpatch", g.Patch("patch", g.Resize("even", image, 6, 6), 2, true), 3, 3, 2, c, false)
	g.Output(g.Clamp("clamp", g.Affine("affine", image, 0.5, 0.1), 3))
}

var weights = made{
	"in.weight": {8, 3, 3, 3}, "in.bias": {8}, "two.weight": {8, 16, 3, 3}, "two.bias": {8}, "qkv.weight": {24, 8}, "wide.weight": {32, 8}, "wide.bias": {32},
	"back.weight": {8, 16}, "back.bias": {8}, "depth.weight": {8, 1, 3, 3}, "depth.bias": {8},
}

// run computes n images, and the gradient of the sum of outputs weighted by cos(index) where grad is not nil.
func run(t *testing.T, e *graph.Engine, x []float32, n int, grad []float32) []float32 {
	t.Helper()
	p, err := e.Plan(graph.Setting{Key: "test", Grad: grad != nil}, network)
	if err != nil {
		t.Fatal(err)
	}
	var out []float32
	err = e.Run(context.Background(), p, n, func(v *graph.Env, lo, hi int) {
		copy(v.At(p.In()), x[lo*p.In().Size():hi*p.In().Size()])
		for i := range v.Fed("vector") {
			v.Fed("vector")[i] = float32(math.Cos(float64(i % 16)))
		}
	}, func(v *graph.Env, _, _ int) { out = append(out, v.At(p.Out())...) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	if grad != nil {
		err = e.Back(context.Background(), func(v *graph.Env, p *graph.Plan) {
			_, d := p.Grad()
			for i := range v.At(d) {
				v.At(d)[i] = float32(math.Cos(float64(i)))
			}
		}, func(v *graph.Env, p *graph.Plan) {
			d, _ := p.Grad()
			copy(grad, v.At(d))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestGradient holds the gradient of all operations together to central differences, on every tier, and the batch to its
// images bit for bit.
func TestGradient(t *testing.T) {
	for _, tier := range kernels.Tiers() {
		pool := kernels.NewPool(tier, 2)
		defer pool.Close()
		e := graph.NewEngine(pool, kernels.F32, weights)
		const n, size = 3, 4 * 4 * 3
		x := make([]float32, n*size)
		for i := range x {
			x[i] = float32(math.Sin(2.3 * float64(i)))
		}
		grad := make([]float32, len(x))
		kept := run(t, e, x, n, grad)
		out := run(t, e, x, n, nil)
		if !slices.Equal(kept, out) {
			t.Errorf("%v: a pass that keeps its activations gives other bits", tier)
		}
		per := len(out) / n
		for i := range n {
			if !slices.Equal(run(t, e, x[i*size:(i+1)*size], 1, nil), out[i*per:(i+1)*per]) {
				t.Errorf("%v: image %d alone has other bits", tier, i)
			}
		}
		var diff, norm float64
		for k := range 40 {
			i := k * 7 % len(x)
			side := func(s float32) (sum float64) {
				y := slices.Clone(x)
				y[i] += s
				for j, v := range run(t, e, y, n, nil) {
					sum += float64(v) * math.Cos(float64(j))
				}
				return sum
			}
			const step = 1e-2
			want := (side(step) - side(-step)) / (2 * step)
			diff += (float64(grad[i]) - want) * (float64(grad[i]) - want)
			norm += want * want
		}
		if e := math.Sqrt(diff / norm); !(e < 5e-3) {
			t.Errorf("%v: the gradient is off by %.2g", tier, e)
		} else {
			t.Logf("%v: %.2g", tier, e)
		}
	}
}

func TestRefusals(t *testing.T) {
	pool := kernels.NewPool(kernels.Detect(), 1)
	defer pool.Close()
	for want, build := range map[string]func(g *graph.Graph){
		"tensor none.weight is missing": func(g *graph.Graph) {
			g.Output(g.Linear(g.Layers.Linear("none", 3, 3), graph.From(g.Input(1, 1, 3)), graph.Epilogue{}))
		},
		"reads 4 channels, it takes 8": func(g *graph.Graph) {
			g.Output(g.Linear(g.Layers.Linear("qkv", 8, 24), graph.From(g.Input(1, 1, 4)), graph.Epilogue{}))
		},
		"do not divide": func(g *graph.Graph) {
			x := g.Input(2, 2, 8)
			g.Output(g.Apply("a", graph.Source{X: x, Norm: g.GroupNorm(graph.NoNorm("n"), x, graph.Value{}, 3, 1e-5, graph.Modulation{})}))
		},
		`no layer "nowhere"`: network,
	} {
		s := graph.Setting{Key: want}
		if strings.Contains(want, "nowhere") {
			s.Hooks.SkipLayers = []string{"nowhere"}
		}
		if _, err := graph.NewEngine(pool, kernels.F32, weights).Plan(s, build); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// Example writes a network of one layer down and runs it.
func Example() {
	pool := kernels.NewPool(kernels.Portable, 1)
	defer pool.Close()
	e := graph.NewEngine(pool, kernels.F32, made{"half.weight": {1, 2}})
	p, err := e.Plan(graph.Setting{}, func(g *graph.Graph) {
		x := g.Input(1, 1, 2)
		g.Output(g.Affine("add", g.Linear(g.Layers.Linear("half", 2, 1), graph.From(x), graph.Epilogue{}), 0, 5))
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = e.Run(context.Background(), p, 1, func(v *graph.Env, _, _ int) { copy(v.At(p.In()), []float32{1, 2}) },
		func(v *graph.Env, _, _ int) { fmt.Println(v.At(p.Out())) }, nil)
	if err != nil {
		fmt.Println(err)
	}
	// Output: [5]
}
