package graph_test

import (
	"context"
	"math"
	"strings"
	"testing"

	"drift/internal/graph"
	"drift/internal/kernels"
)

// TestFilter compares with the sum over all pairs of pixels, and the gradient with its transpose.
func TestFilter(t *testing.T) {
	pool := kernels.NewPool(kernels.Detect(), 2)
	defer pool.Close()
	const h, w, c, n = 6, 4, 2, 2
	for _, taps := range [][]float64{{1, 1}, {1, 3, 3, 1}, {0.5, 2, -1, 0.25}} {
		sum := 0.0
		for _, v := range taps {
			sum += v
		}
		pad := (len(taps) - 2) / 2
		for _, up := range []bool{false, true} {
			ho, wo := h/2, w/2
			if up {
				ho, wo = 2*h, 2*w
			}
			// weight of pixel i of the input in pixel j of the output, along one axis
			weight := func(j, i int) float64 {
				k := i - 2*j + pad
				if up {
					k = j + pad - 2*i
				}
				if k < 0 || k >= len(taps) {
					return 0
				}
				if up {
					return 2 * taps[k] / sum
				}
				return taps[k] / sum
			}
			e := graph.NewEngine(pool, kernels.F32, made{})
			p, err := e.Plan(graph.Setting{Key: "f", Grad: true}, func(g *graph.Graph) { g.Output(g.Filter("f", g.Input(h, w, c), taps, up)) })
			if err != nil {
				t.Fatal(err)
			}
			x, out, grad := make([]float32, n*h*w*c), []float32{}, make([]float32, n*h*w*c)
			for i := range x {
				x[i] = float32(math.Sin(float64(3 * i)))
			}
			cot := func(i int) float32 { return float32(math.Cos(float64(i))) }
			err = e.Run(context.Background(), p, n, func(v *graph.Env, lo, hi int) { copy(v.At(p.In()), x[lo*h*w*c:hi*h*w*c]) },
				func(v *graph.Env, _, _ int) { out = append(out, v.At(p.Out())...) }, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = e.Back(context.Background(), func(v *graph.Env, p *graph.Plan) {
				_, d := p.Grad()
				for i := range v.At(d) {
					v.At(d)[i] = cot(i)
				}
			}, func(v *graph.Env, p *graph.Plan) {
				d, _ := p.Grad()
				copy(grad, v.At(d))
			})
			if err != nil {
				t.Fatal(err)
			}
			want, back := make([]float64, n*ho*wo*c), make([]float64, len(x))
			for m := range n {
				for a := range ho * wo {
					for b := range h * w {
						f := weight(a/wo, b/w) * weight(a%wo, b%w)
						for k := range c {
							i, j := (m*h*w+b)*c+k, (m*ho*wo+a)*c+k
							want[j] += f * float64(x[i])
							back[i] += f * float64(cot(j))
						}
					}
				}
			}
			for i, v := range want {
				if math.Abs(v-float64(out[i])) > 1e-5 {
					t.Fatalf("%v up %v: output %d is %g, want %g", taps, up, i, out[i], v)
				}
			}
			for i, v := range back {
				if math.Abs(v-float64(grad[i])) > 1e-5 {
					t.Fatalf("%v up %v: gradient %d is %g, want %g", taps, up, i, grad[i], v)
				}
			}
		}
	}
	for want, f := range map[string]func(g *graph.Graph){
		"a filter of":      func(g *graph.Graph) { g.Output(g.Filter("f", g.Input(4, 4, 1), []float64{1, 2, 1}, false)) },
		"whose sum":        func(g *graph.Graph) { g.Output(g.Filter("f", g.Input(4, 4, 1), []float64{1, -1}, false)) },
		"cannot be halved": func(g *graph.Graph) { g.Output(g.Filter("f", g.Input(5, 4, 1), []float64{1, 1}, false)) },
	} {
		e := graph.NewEngine(pool, kernels.F32, made{})
		if _, err := e.Plan(graph.Setting{Key: want}, f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
