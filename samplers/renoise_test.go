package samplers_test

import (
	"context"
	"math"
	"strings"
	"testing"

	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// putBack asks for the model's own noise plus an amount to be put back, as CFG++ does with the unconditional noise.
type putBack struct {
	models.Denoiser
	by float64
}

func (r putBack) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if err := r.Denoiser.Predict(ctx, q, p); err != nil {
		return err
	}
	x, out := models.Data(q.X), models.Data(p.Out)
	e := make([]float64, len(x))
	cx, co, err := schedules.Convert(gauss(r.Denoiser), p.Kind, schedules.Eps, q.At[0])
	if err != nil {
		return err
	}
	for i := range e {
		e[i] = cx*x[i] + co*out[i] + r.by
	}
	p.Renoise = models.Wrap(e, q.X.Shape()...)
	return nil
}

// TestRenoise holds DPM-Solver++(2M) with another noise put back to the recursion written out in (x/alpha, sigma/alpha):
//
//	x' = D + e^-h (x - u) + (1 - e^-h) h/(2 h_last) (u - u_last),  u = x - sb e
//
// and, with the model's own noise, to the plain method.
func TestRenoise(t *testing.T) {
	for _, process := range []string{`{"type":"vp-linear"}`, `{"type":"edm"}`, `{"type":"flow"}`} {
		kind := map[bool]string{true: "velocity", false: "eps"}[strings.Contains(process, "flow")]
		d := mustTarget(t, "mix", process, kind)
		g, err := schedules.NewGrid(gauss(d), "time", 8, schedules.Ends{Final: "zero"})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(process, "edm") {
			g = ratios(t, d, []float64{10, 5, 3, 2, 1.2, 0.6, 0.3, 0.1, 0})
		}
		s := mustParse(t, "dpmpp-2m:lower-order-final=false")
		want, _ := end(t, s, d, g, 0.7*g[0].Sigma)
		if got, _ := end(t, s, putBack{d, 0}, g, 0.7*g[0].Sigma); math.Abs(got-want) > 1e-12 {
			t.Errorf("%s: own noise put back ends at %.15g, plain at %.15g", process, got, want)
		}
		// One denoiser call by hand at a node.
		ask := func(n schedules.Node, x float64) (x0, eps float64) {
			q := &models.Query{X: models.Wrap([]float64{x}, 1, 1), At: []schedules.Node{n}}
			var p models.Pred
			if err := d.Predict(context.Background(), q, &p); err != nil {
				t.Fatal(err)
			}
			at := func(k schedules.Kind) float64 {
				cx, co, err := schedules.Convert(gauss(d), p.Kind, k, n)
				if err != nil {
					t.Fatal(err)
				}
				return cx*x + co*models.Data(p.Out)[0]
			}
			return at(schedules.X0), at(schedules.Eps)
		}
		const by = 0.05
		x := 0.7 * g[0].Sigma
		var last, gap float64
		for i := range len(g) - 1 {
			a, b := g[i], g[i+1]
			x0, e := ask(a, x)
			e += by
			if b.Sigma == 0 {
				x = x0 * b.Alpha
				continue
			}
			if a.Alpha == 0 { // x is noise: the first-order step
				x = b.Alpha*x0 + b.Sigma*e
				last, gap = x0, math.Inf(1)
				continue
			}
			h := b.Lambda() - a.Lambda()
			u := x/a.Alpha - a.Ratio()*e
			y := x0 + math.Exp(-h)*(x/a.Alpha-u)
			if i > 0 {
				y += (1 - math.Exp(-h)) * h / (2 * gap) * (u - last)
			}
			x, last, gap = y*b.Alpha, u, h
		}
		if got, _ := end(t, s, putBack{d, by}, g, 0.7*g[0].Sigma); math.Abs(got-x) > 1e-12 {
			t.Errorf("%s: ends at %.15g, by hand at %.15g", process, got, x)
		}
	}
	d := putBack{mustTarget(t, "mix", `{"type":"vp-linear"}`, "eps"), 0.1}
	p := problem(t, d, 6, 2)
	p.Shape = []int{1}
	for _, name := range []string{"dpmpp-3m", "dpm-solver-2m", "dpmpp-2m-sde", "hb:base=dpmpp-2m,beta=0.8"} {
		if _, err := samplers.Sample(context.Background(), mustParse(t, name), p); err == nil || !strings.Contains(err.Error(), "no form for a separate noise") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
