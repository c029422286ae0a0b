package samplers

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"drift/models"
	"drift/models/analytic"
	"drift/schedules"
)

func ends(t testing.TB, kind, gamma string, first, second schedules.Kind) *analytic.Ends {
	t.Helper()
	b, err := schedules.NewBridge(kind, gamma, 1)
	if err != nil {
		t.Fatal(err)
	}
	side := func(m, v float64) analytic.Side {
		return analytic.Side{Weights: []float64{1}, Means: [][]float64{{m}}, Vars: [][]float64{{v}}}
	}
	e, err := analytic.NewEnds(analytic.Ends{From: side(-1, 0.5), To: side(2, 0.25), Bridge: b, First: first, Second: second})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// evenly is a grid of n equal steps of time.
func evenly(at func(float64) schedules.Node, from, to float64, n int) schedules.Grid {
	g := make(schedules.Grid, n+1)
	for i := range g {
		g[i] = at(from + (to-from)*float64(i)/float64(n))
	}
	return g
}

// affine runs m on a problem in one dimension whose drift is affine, and returns the map x -> a x + c of its means and the
// variance of what the noise adds: exactly, by a run without noise from 0, one from 1, and with draws = 1 (noise is drawn) one per unit of noise.
func affine(t testing.TB, m Sampler, model models.Denoiser, g schedules.Grid, draws int) (a, c, variance float64) {
	t.Helper()
	n := len(g) - 1
	batch := 2 + n*draws
	start, noise := models.New(batch, 1), models.New(n, batch, 1)
	models.Data(start)[1] = 1
	for k := range n * draws {
		models.Data(noise)[k*batch+2+k] = 1
	}
	rec, err := NewRecorded(noise, n)
	if err != nil {
		t.Fatal(err)
	}
	p := &Problem{Model: model, Grid: g, Start: start, Noise: rec}
	for k := range batch {
		p.Rows = append(p.Rows, models.Row{Seed: uint64(k)})
	}
	res, err := Sample(context.Background(), m, p)
	if err != nil {
		t.Fatal(err)
	}
	x := models.Data(res.X)
	for _, v := range x[2:] {
		variance += (v - x[0]) * (v - x[0])
	}
	return x[1] - x[0], x[0], variance
}

// TestGaussianBridge holds runs between two Gaussians to the specification's values and to the exact moment recursion of
// their drift, and their limit to the exact map X_1 = m1 + sqrt(C1/C0)(X_0 - m0) and the variance C1, both ways.
func TestGaussianBridge(t *testing.T) {
	const m0, c0, m1, c1 = -1, 0.5, 2, 0.25
	for _, c := range []struct {
		epsilon float64
		n       int
		want    float64
	}{{0, 100, 0.252037}, {0, 1000, 0.250203}, {0.5, 100, 0.253978}, {0.5, 1000, 0.250394}, {2, 100, 0.261800}, {2, 1000, 0.251137}} {
		e := ends(t, "linear", "brownian", schedules.Velocity, schedules.Score)
		draws := 1
		if c.epsilon == 0 {
			draws = 0
		}
		a, _, v := affine(t, Interpolant{Epsilon: c.epsilon, Rule: EulerMaruyama}, e, evenly(e.Bridge.At, 0, 1, c.n), draws)
		if got := a*a*c0 + v; math.Abs(got-c.want) > 5.1e-7 {
			t.Errorf("epsilon %g, %d steps: variance %.6f at the end, want %.6f", c.epsilon, c.n, got, c.want)
		}
	}
	for _, pair := range [][2]schedules.Kind{{schedules.Velocity, schedules.Score}, {schedules.Transport, schedules.Score}, {schedules.X0, schedules.Score}, {schedules.Source, schedules.X0}} {
		for _, kind := range []string{"linear", "trig", "encoding-decoding"} {
			for _, gamma := range []string{"brownian", "bsquared", "sigmoid"} {
				e := ends(t, kind, gamma, pair[0], pair[1])
				lo, hi := 0.0, 1.0
				if pair[0] == schedules.Source || pair[0] == schedules.X0 { // what an end lacks, cut it off
					lo, hi = 0.01, 0.95
					if kind == "encoding-decoding" {
						continue // one of the sides is not in the state
					}
				}
				// the recursion of Euler and Maruyama with the field's slope and offset taken from the closed form
				const n, eps = 40, 0.3
				a, c, v := 1.0, 0.0, 0.0
				h := (hi - lo) / n
				for i := range n {
					m := e.Bridge.Mix(lo + h*float64(i))
					C := m.A*m.A*c0 + m.B*m.B*c1 + m.Gamma*m.Gamma
					slope := (m.A*m.DA*c0+m.B*m.DB*c1+m.GammaGamma)/C - eps/C
					mean, rate := m.A*m0+m.B*m1, m.DA*m0+m.DB*m1
					a *= 1 + h*slope
					c += h * (rate + slope*(c-mean))
					v = v*(1+h*slope)*(1+h*slope) + 2*h*eps
				}
				ga, gc, gv := affine(t, Interpolant{Epsilon: eps, Rule: EulerMaruyama}, e, evenly(e.Bridge.At, lo, hi, n), 1)
				for i, d := range []float64{ga - a, gc - c, gv - v} {
					if math.Abs(d) > 1e-10*(1+math.Abs(c)) {
						t.Errorf("%s %s from %v: moment %d of the recursion is off by %g", kind, gamma, pair, i, d)
					}
				}
			}
		}
	}
	// limits: Heun's error falls by 4 when the steps are halved; one extrapolation shows the exact map
	for _, kind := range []string{"linear", "trig"} {
		for _, gamma := range []string{"brownian", "bsquared", "zero"} {
			for _, eps := range []float64{0, 0.5} {
				for _, back := range []bool{false, true} {
					e := ends(t, kind, gamma, schedules.Velocity, schedules.Score)
					from, to, vFrom, vTo, mFrom, mTo := 0.0, 1.0, c0, c1, float64(m0), float64(m1)
					if back {
						from, to, vFrom, vTo, mFrom, mTo = 1, 0, c1, c0, m1, m0
					}
					var mean, variance [2]float64
					var a [2]float64
					for i, n := range []int{80, 160} {
						ai, ci, vi := affine(t, Interpolant{Epsilon: eps, Rule: StochasticHeun}, e, evenly(e.Bridge.At, from, to, n), 1)
						a[i], mean[i], variance[i] = ai, ai*mFrom+ci, ai*ai*vFrom+vi
					}
					name := fmt.Sprintf("%s %s epsilon %g back %v", kind, gamma, eps, back)
					for _, q := range []struct {
						what string
						v    [2]float64
						want float64
					}{{"mean", mean, mTo}, {"variance", variance, vTo}, {"slope", a, math.Sqrt(vTo / vFrom)}} {
						if q.what == "slope" && eps > 0 {
							continue
						}
						e0, e1 := q.v[0]-q.want, q.v[1]-q.want
						if ext := (4*q.v[1] - q.v[0]) / 3; math.Abs(ext-q.want) > 1e-6 {
							t.Errorf("%s: %s %.10f, want %.10f", name, q.what, ext, q.want)
						}
						if math.Abs(e0) > 1e-10 && !(e0/e1 > 3.6 && e0/e1 < 4.4) {
							t.Errorf("%s: error of the %s falls from %g to %g only", name, q.what, e0, e1)
						}
					}
				}
			}
		}
	}
}

// TestBridgeMap holds the flow between two Gaussians, X_1 = m1 + sqrt(C1/C0)(X_0 - m0), to 1e-10, by solvers of an order,
// from any two fields that an end does not lack; from 0.3 it must reach 2.9192388155.
func TestBridgeMap(t *testing.T) {
	for _, c := range []struct {
		kind, gamma   string
		first, second schedules.Kind
	}{
		{"linear", "brownian", schedules.Velocity, schedules.Score}, {"linear", "bsquared", schedules.Transport, schedules.Score}, {"trig", "bsquared", schedules.Velocity, schedules.Eps},
		{"trig", "sigmoid", schedules.Velocity, schedules.X0}, {"linear", "zero", schedules.Velocity, schedules.Score}, {"encoding-decoding", "sinesquared", schedules.Velocity, schedules.Score},
	} {
		e := ends(t, c.kind, c.gamma, c.first, c.second)
		m, err := Parse("rk4")
		if err != nil {
			t.Fatal(err)
		}
		const want = 2.9192388155425117
		res, err := Sample(context.Background(), m, &Problem{Model: e, Grid: evenly(e.Bridge.At, 0, 1, 2000), Rows: []models.Row{{}}, Start: models.Wrap([]float64{0.3}, 1, 1)})
		if err != nil {
			t.Fatal(err)
		}
		if got := models.Data(res.X)[0]; math.Abs(got-want) > 1e-10 {
			t.Errorf("%s %s: %.12f, want %.12f", c.kind, c.gamma, got, want)
		}
		for _, s := range []struct {
			name  string
			order float64
		}{{"euler", 1}, {"heun", 2}, {"midpoint", 2}, {"rk4", 4}, {"interpolant:rule=heun", 2}} {
			m, err := Parse(s.name)
			if err != nil {
				t.Fatal(err)
			}
			if c.kind == "encoding-decoding" {
				continue // the data come in at t = 1/2, where the second derivative jumps
			}
			var errs [2]float64
			for i, n := range []int{60, 120} {
				a, off, _ := affine(t, m, e, evenly(e.Bridge.At, 0, 1, n), 0)
				errs[i] = a*0.3 + off - 2.9192388155425117
			}
			if order := math.Log2(math.Abs(errs[0] / errs[1])); !(order > s.order-0.4) && math.Abs(errs[1]) > 1e-12 {
				t.Errorf("%s on %s %s: order %.2f, want %g (errors %g)", s.name, c.kind, c.gamma, order, s.order, errs)
			}
		}
	}
}

// TestInterpolantIsOthers holds the special cases: euler, ddim with eta 1, the SA-Solver of order 1, flow-stochastic, Heun
// in time, on flows and elsewhere, with noise.
func TestInterpolantIsOthers(t *testing.T) {
	for _, p := range []schedules.Gaussian{schedules.Flow{}, schedules.VPLinear{}, schedules.EDM{}, schedules.Trig{}, schedules.Cosine{}, oddInterpolant} {
		target, err := analytic.New(analytic.Target{Weights: []float64{0.4, 0.6}, Means: [][]float64{{-1, 0}, {1.5, 1}}, Vars: [][]float64{{0.06, 0.1}, {0.25, 0.2}}, Process: p, Prediction: schedules.Velocity})
		if err != nil {
			t.Fatal(err)
		}
		g, err := schedules.NewGrid(p, "time", 12, schedules.Ends{})
		if err != nil {
			t.Fatal(err)
		}
		if g[0].Alpha == 0 && p.Name() != "flow" && p.Name() != "trig" {
			g = g[1:]
		}
		if _, ds := p.Rates(g[len(g)-1].T); ds-ds != 0 { // no velocity at the clean end
			g = g[:len(g)-1]
		}
		rows := []models.Row{{Seed: 1}, {Seed: 2}, {Seed: 3, Particle: 2}}
		run := func(s string) []float64 {
			m, err := Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			res, err := Sample(context.Background(), m, &Problem{Model: target, Grid: g, Rows: rows, Shape: []int{2}})
			if err != nil {
				t.Fatal(p.Name(), s, err)
			}
			return slices.Clone(models.Data(res.X))
		}
		pairs := [][2]string{
			{"interpolant", "euler"}, {"interpolant:epsilon=1,relative=true", "ddim:eta=1"}, {"interpolant:epsilon=inf,relative=true", "flow-stochastic"},
			{"interpolant:epsilon=0.25,relative=true", "sa:predictor=1,corrector=0,tau=0.5"},
			// expressions of the same, by quadrature
			{"interpolant:epsilon=1+0*sigma,relative=true", "ddim:eta=1"}, {"interpolant:epsilon=0*t", "euler"},
		}
		if p.Name() == "flow" {
			// g^2/2 = t/(1-t) = sigma; with an end at t = 1, where it is infinite, it cannot be asked for
			pairs = append(pairs, [2]string{"interpolant:rule=heun", "heun"}, [2]string{"interpolant:rule=euler", "euler"})
		}
		for _, pair := range pairs {
			if strings.Contains(pair[1], "sa:") && g[0].Alpha == 0 {
				continue // the reference form has no step from a node without signal
			}
			if strings.Contains(pair[0], "1+0*sigma") && g[0].Alpha == 0 {
				continue // g^2/2 is infinite there
			}
			a, b := run(pair[0]), run(pair[1])
			for i := range a {
				if math.Abs(a[i]-b[i]) > 1e-9*(1+math.Abs(b[i])) {
					t.Errorf("%s: %s gives %v, %s gives %v", p.Name(), pair[0], a, pair[1], b)
					break
				}
			}
		}
	}
}

// oddInterpolant is a process that is neither variance preserving nor a flow.
var oddInterpolant = schedules.Interpolant{Alpha: func(t float64) float64 { return 1 - t*t }, Sigma: func(t float64) float64 { return t * (2 - t) },
	Slope: func(t float64) (float64, float64) { return -2 * t, 2 - 2*t }, Label: "odd"}

// TestOneSidedGaussian holds, for a Gaussian target on one-sided interpolants and any epsilon(t), that mean and variance
// at the end are the target's in the limit of small steps.
func TestOneSidedGaussian(t *testing.T) {
	const mu, v = 0.7, 0.3
	for _, p := range []schedules.Gaussian{schedules.Flow{}, schedules.Trig{}, oddInterpolant} {
		target, err := analytic.New(analytic.Target{Weights: []float64{1}, Means: [][]float64{{mu}}, Vars: [][]float64{{v}}, Process: p, Prediction: schedules.Velocity})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"interpolant", "interpolant:epsilon=0.4*t", "interpolant:epsilon=t*(1-t)", "interpolant:epsilon=1,relative=true", "interpolant:epsilon=0.4*t*t,rule=heun", "interpolant:epsilon=0.3*t,rule=heun",
			"interpolant:epsilon=0.2*t,rule=euler"} {
			m, err := Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			var got [3][2]float64
			for i, n := range []int{50, 100, 200} {
				g := evenly(p.At, 0.98, 0.02, n)
				a, c, add := affine(t, m, target, g, 1)
				s := g[0]
				got[i] = [2]float64{a*s.Alpha*mu + c, a*a*(s.Alpha*s.Alpha*v+s.Sigma*s.Sigma) + add}
			}
			e := p.At(0.02)
			want := [2]float64{e.Alpha * mu, e.Alpha*e.Alpha*v + e.Sigma*e.Sigma}
			for j, w := range want {
				// first order or better: errors fall by about 2 or more per halving, and the limit is right
				e0, e1, e2 := got[0][j]-w, got[1][j]-w, got[2][j]-w
				if math.Abs(e2) > 0.02 || math.Abs(e0) > 1e-9 && !(e0/e1 > 1.7 && e1/e2 > 1.8) {
					t.Errorf("%s, %s: moment %d errs by %g, %g, %g", p.Name(), s, j, e0, e1, e2)
				}
			}
		}
	}
}

// TestRoundTrip holds that a run to noise and back along the ODE returns, on a flow and on a bridge, and that a run from
// data to noise under one class and back under another moves one class onto the other.
func TestRoundTrip(t *testing.T) {
	target, err := analytic.New(analytic.Target{Weights: []float64{0.5, 0.5}, Means: [][]float64{{-2}, {2}}, Vars: [][]float64{{0.25}, {1}}, Labels: []int{0, 1}, Process: schedules.Flow{}, Prediction: schedules.Velocity})
	if err != nil {
		t.Fatal(err)
	}
	p := schedules.Flow{}
	up, down := evenly(p.At, 0, 1, 200), evenly(p.At, 1, 0, 200)
	start := models.Wrap([]float64{-2.5, -1.7}, 2, 1)
	m := Interpolant{Rule: StochasticHeun}
	go1 := func(model models.Denoiser, g schedules.Grid, x []float64, class int) []float64 {
		res, err := Sample(context.Background(), m, &Problem{Model: model, Grid: g, Rows: []models.Row{{Seed: 1}, {Seed: 2}}, Start: models.Wrap(slices.Clone(x), 2, 1), Cond: &models.Cond{Classes: []int{class, class}}})
		if err != nil {
			t.Fatal(err)
		}
		return models.Data(res.X)
	}
	z := go1(target, up, models.Data(start), 0)
	same, other := go1(target, down, z, 0), go1(target, down, z, 1)
	for i, x := range models.Data(start) {
		if math.Abs(same[i]-x) > 1e-4 {
			t.Errorf("there and back: %g, want %g", same[i], x)
		}
		// class 0 is N(-2, 1/4), class 1 N(2, 1): x -> 2 + 2 (x + 2)
		if want := 2 + 2*(x+2); math.Abs(other[i]-want) > 1e-3 {
			t.Errorf("from class 0 to class 1: %g -> %g, want %g", x, other[i], want)
		}
	}
	// the same in one run over a grid that rises and falls
	whole := append(slices.Clone(up), down[1:]...)
	once := go1(target, whole, models.Data(start), 0)
	for i, x := range models.Data(start) {
		if math.Abs(once[i]-x) > 1e-4 {
			t.Errorf("there and back at once: %g, want %g", once[i], x)
		}
	}
	if n := NFE(m, whole); n != 799 { // 2 a step, 1 onto clean data
		t.Errorf("%d evaluations, want 799", n)
	}
	if n := NFE(Euler{}, whole); n != 200 {
		t.Errorf("euler counts a rising hop: %d", n)
	}
}

// TestBridgeRuns holds what the driver is promised on a bridge: a start of its own, predictions to look at, resuming,
// selecting, and refusals.
func TestBridgeRuns(t *testing.T) {
	ctx := context.Background()
	e := ends(t, "linear", "brownian", schedules.Transport, schedules.Score)
	g := evenly(e.Bridge.At, 0, 1, 10)
	rows := []models.Row{{Seed: 1}, {Seed: 2}, {Seed: 5}}
	m := Interpolant{Epsilon: 0.4, Rule: StochasticHeun}
	problem := func() *Problem { return &Problem{Model: models.Metered(e), Grid: g, Rows: rows, Shape: []int{1}} }
	p := problem()
	p.Observe = func(s *State) error {
		x0, err := s.X0(nil)
		if err != nil {
			return err
		}
		if s.I == 10 { // asked at t = 0.9
			f := []float64{0}
			if _, err := e.Fields([][]float64{f}, models.Data(s.PredX)[:1], 0.9, schedules.X0); err != nil {
				return err
			}
			if math.Abs(f[0]-models.Data(x0)[0]) > 1e-9 {
				t.Errorf("data %g, want %g", models.Data(x0)[0], f[0])
			}
		}
		return nil
	}
	res, err := Sample(ctx, m, p)
	if err != nil {
		t.Fatal(err)
	}
	if res.Stats.NFE != 20 {
		t.Errorf("%g evaluations, want 20", res.Stats.NFE)
	}
	want := slices.Clone(models.Data(res.X))
	run, err := m.Begin(ctx, problem())
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		var b bytes.Buffer
		if _, err := run.(Peeker).Peek(ctx); err != nil {
			t.Fatal(err)
		}
		if err := run.(Saver).Save(&b); err != nil {
			t.Fatal(err)
		}
		if run, err = Resume(ctx, m, problem(), &b); err != nil {
			t.Fatal(err)
		}
		if err := run.(Selector).Select([]int{0, 1, 2}, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := run.Next(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(want, models.Data(run.State().X)) {
		t.Errorf("resumed: %v, want %v", models.Data(run.State().X), want)
	}
	one, err := Sample(ctx, m, &Problem{Model: e, Grid: g, Rows: rows[2:], Shape: []int{1}})
	if err != nil || models.Data(one.X)[0] != want[2] {
		t.Errorf("alone: %v, %v, want %v", models.Data(one.X), err, want[2])
	}
	for _, c := range []struct {
		m    Sampler
		edit func(p *Problem)
		want string
	}{
		{DPMpp2M(t), nil, "needs a Gaussian process"},
		{Interpolant{Relative: true}, nil, "for Gaussian processes"}, {Interpolant{Rule: Exact}, nil, "for Gaussian processes"},
		{Interpolant{Epsilon: -1}, nil, "want 0 or more"}, {Interpolant{Epsilon: math.Inf(1)}, nil, "needs relative"},
		{m, func(p *Problem) { slices.Reverse(p.Grid) }, "needs a start"},
		{m, func(p *Problem) { p.Model = bare{e} }, "velocity alone"},
	} {
		p := problem()
		p.Grid = slices.Clone(g)
		if c.edit != nil {
			c.edit(p)
		}
		if _, err := Sample(ctx, c.m, p); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.m, err, c.want)
		}
	}
	if _, err := Parse("interpolant:epsilon=sigam"); err == nil {
		t.Error("an expression of nothing is read")
	}
}

// DPMpp2M is a solver that knows Gaussian processes only.
func DPMpp2M(t *testing.T) Sampler {
	m, err := Parse("dpmpp-2m")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// bare is an estimator of the velocity alone.
type bare struct{ *analytic.Ends }

func (b bare) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if err := b.Ends.Predict(ctx, q, p); err != nil {
		return err
	}
	p.Kind, p.Extra = schedules.Velocity, nil
	return nil
}
