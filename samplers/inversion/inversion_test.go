package inversion_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"drift/guidance"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/samplers/inversion"
	"drift/schedules"
)

func mixture(t testing.TB, process, kind string) *analytic.Mixture {
	t.Helper()
	m, err := analytic.Parse(fmt.Appendf(nil, `{"type":"mixture","weights":[0.4,0.6],"means":[[-1,0.5],[1.2,-0.3]],"covs":[[[0.3,0.1],[0.1,0.2]],[[0.15,-0.05],[-0.05,0.4]]],"labels":[0,1],"process":{"type":%q},"prediction":%q}`, process, kind))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func grid(t testing.TB, p schedules.Process, n int) schedules.Grid {
	t.Helper()
	name := map[string]string{"flow": "time"}[p.Name()]
	if name == "" {
		name = "karras:rho=7"
	}
	g, err := schedules.NewGrid(p.(schedules.Gaussian), name, n, schedules.Ends{Final: "zero"})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func points(rows int) *models.Cond {
	c := &models.Cond{}
	for k := range rows {
		c.Classes = append(c.Classes, []int{models.NoClass, 0, 1}[k%3])
	}
	return c
}

var data = []float64{0.3, -0.2, -0.7, 0.9, 1.1, 0.4, -1, 0.5, 2.5, -1}

// TestLogP: the flow's density is the target's, exactly but for the steps and for the noise end, where the noised target is
// not quite Gaussian (its log density is known, so that part is taken out).
func TestLogP(t *testing.T) {
	for _, process := range []string{"vp-linear", "vp-discrete", "cosine", "ve", "edm", "flow"} {
		for _, kind := range []string{"eps", "x0", "velocity", "score"} {
			if process != "vp-linear" && kind != "eps" {
				continue
			}
			if process == "flow" { // at its noise end nothing else turns into a velocity
				kind = "velocity"
			}
			m := mixture(t, process, kind)
			x := models.Wrap(slices.Clone(data), 5, 2)
			cond := points(5)
			f := inversion.Flow{Model: models.Metered(m), Grid: grid(t, m.Process(), 200), Cond: cond, Meter: &models.Meter{}}
			logp := make([]float64, 5)
			z, err := f.LogP(context.Background(), x, inversion.Divergence{}, logp)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(models.Data(x), data) {
				t.Error("the data was changed")
			}
			n := f.Grid[0]
			s := samplers.PriorScale(n)
			for k := range 5 {
				row := models.Data(z)[2*k : 2*k+2]
				prior := -(row[0]*row[0]+row[1]*row[1])/(2*s*s) - math.Log(2*math.Pi*s*s)
				true0, err := m.LogP(row, n, cond.Classes[k])
				if err != nil {
					t.Fatal(err)
				}
				want, err := m.LogP(data[2*k:2*k+2], schedules.Node{Alpha: 1}, cond.Classes[k])
				if err != nil {
					t.Fatal(err)
				}
				if have := logp[k] + true0 - prior; math.Abs(have-want) > 2e-4*(1+math.Abs(want)) {
					t.Errorf("%s, %s, row %d: log p %.6f, want %.6f", process, kind, k, have, want)
				}
			}
			if process == "flow" && f.Meter.VJPs() == 0 {
				t.Error("no gradients were counted")
			}
		}
	}
}

// TestHutchinson: the estimate with random probes is that of the exact divergence on average, and exact for a target whose
// flow has a diagonal Jacobian.
func TestHutchinson(t *testing.T) {
	m := mixture(t, "vp-linear", "eps")
	const rows = 400
	x, r := make([]float64, 0, 2*rows), make([]models.Row, rows)
	for k := range rows {
		x = append(x, 0.3, -0.2)
		r[k].Seed = uint64(k)
	}
	f := inversion.Flow{Model: models.Metered(m), Grid: grid(t, m.Process(), 40), Rows: r}
	exact, probed := make([]float64, rows), make([]float64, rows)
	if _, err := f.LogP(context.Background(), models.Wrap(x, rows, 2), inversion.Divergence{}, exact); err != nil {
		t.Fatal(err)
	}
	if _, err := f.LogP(context.Background(), models.Wrap(x, rows, 2), inversion.Divergence{Probes: 1, Seed: 9}, probed); err != nil {
		t.Fatal(err)
	}
	mean, sq := 0.0, 0.0
	for k, v := range probed {
		d := v - exact[k]
		mean, sq = mean+d/rows, sq+d*d/rows
	}
	if se := math.Sqrt(sq / rows); math.Abs(mean) > 4*se || !(se > 1e-4) {
		t.Errorf("Hutchinson's estimate is off by %.4f, standard error %.4f", mean, se)
	}
	diagonal, err := analytic.Parse([]byte(`{"type":"mixture","weights":[1],"means":[[1,2]],"vars":[[0.3,0.7]],"process":{"type":"vp-linear"},"prediction":"eps"}`))
	if err != nil {
		t.Fatal(err)
	}
	f = inversion.Flow{Model: models.Metered(diagonal), Grid: grid(t, m.Process(), 20)}
	a, b := make([]float64, 1), make([]float64, 1)
	one := models.Wrap([]float64{0.4, 1.1}, 1, 2)
	if _, err := f.LogP(context.Background(), one, inversion.Divergence{}, a); err != nil {
		t.Fatal(err)
	}
	if _, err := f.LogP(context.Background(), one, inversion.Divergence{Probes: 3}, b); err != nil {
		t.Fatal(err)
	}
	if math.Abs(a[0]-b[0]) > 1e-9 {
		t.Errorf("probes of a diagonal Jacobian: %g, exact %g", b[0], a[0])
	}
}

// TestRoundTrip: there and back. Exact meets the picture again under the sampler euler itself; the Runge-Kutta methods by
// their order; the noise is the one that a fine sampler makes the picture from.
func TestRoundTrip(t *testing.T) {
	for _, process := range []string{"vp-linear", "flow", "edm"} {
		m := mixture(t, process, "eps")
		if process == "flow" {
			m = mixture(t, process, "velocity")
		}
		cond := points(5)
		back := func(method inversion.Method, steps int) float64 {
			f := inversion.Flow{Model: models.Metered(m), Grid: grid(t, m.Process(), steps), Cond: cond, Method: method, Iterations: 500}
			z, err := f.Invert(context.Background(), models.Wrap(slices.Clone(data), 5, 2))
			if err != nil {
				t.Fatalf("%s, %s: %v", process, method, err)
			}
			var x []float64
			if method == inversion.Exact {
				s, err := samplers.Parse("euler")
				if err != nil {
					t.Fatal(err)
				}
				res, err := samplers.Sample(context.Background(), s, &samplers.Problem{Model: models.Metered(m), Grid: f.Grid, Start: z, Rows: make([]models.Row, 5), Cond: cond})
				if err != nil {
					t.Fatal(err)
				}
				x = models.Data(res.X)
			} else {
				g, err := f.Generate(context.Background(), z)
				if err != nil {
					t.Fatal(err)
				}
				x = models.Data(g)
			}
			gap := 0.0
			for j, v := range x {
				gap = max(gap, math.Abs(v-data[j]))
			}
			return gap
		}
		if gap := back(inversion.Exact, 60); gap > 1e-9 {
			t.Errorf("%s: exact comes back %g off", process, gap)
		}
		for method, order := range map[inversion.Method]float64{inversion.Euler: 1, inversion.Heun: 2, inversion.RK4: 4} {
			a, b := back(method, 100), back(method, 200)
			if have := math.Log2(a / b); have < order-0.5 && b > 1e-12 {
				t.Errorf("%s, %s: order %.2f (%.3g, %.3g)", process, method, have, a, b)
			}
		}
	}
}

// TestGuided: the flow of a guided model has its own density, which classifier-free guidance of a Gaussian pair makes
// sharper; a guider with a separate noise is refused, and so is a grid that rises.
func TestRefused(t *testing.T) {
	m := mixture(t, "vp-linear", "eps")
	x := models.Wrap(slices.Clone(data), 5, 2)
	g := grid(t, m.Process(), 5)
	cond := &models.Cond{Classes: []int{0, 1, 0, 1, 0}}
	logp := make([]float64, 5)
	f := inversion.Flow{Model: guidance.CFG{W: 2}.Guide(models.Metered(m)), Grid: g, Cond: cond}
	if _, err := f.LogP(context.Background(), x, inversion.Divergence{}, logp); err != nil {
		t.Errorf("cfg: %v", err)
	}
	for want, f := range map[string]inversion.Flow{
		"no gradient":     {Model: guidance.CFGPP{Lambda: 0.5}.Guide(models.Metered(m)), Grid: g, Cond: cond},
		"does not lie":    {Model: m, Grid: schedules.Grid{g[1], g[0]}},
		"unknown method":  {Model: m, Grid: g, Method: "rk9"},
		"a grid of":       {Model: m, Grid: g[:1]},
		"rows are named":  {Model: m, Grid: g, Rows: make([]models.Row, 2)},
		"Runge-Kutta":     {Model: m, Grid: g, Method: inversion.Exact},
		"no gradient thr": {Model: guidance.Threshold{}.Guide(models.Metered(m)), Grid: g},
	} {
		_, err := f.LogP(context.Background(), x, inversion.Divergence{}, logp)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "inversion: ") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := (inversion.Flow{Model: guidance.CFGPP{Lambda: 0.5}.Guide(models.Metered(m)), Grid: g, Cond: cond}).Invert(context.Background(), x); err == nil || !strings.Contains(err.Error(), "separate noise") {
		t.Errorf("cfg++: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f = inversion.Flow{Model: m, Grid: grid(t, m.Process(), 50), Observe: func(done, _ int) {
		if done == 3 {
			cancel()
		}
	}}
	if _, err := f.Invert(ctx, x); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled in the middle: %v", err)
	}
	if _, err := (inversion.Flow{Model: m, Grid: schedules.Grid{g[0], g[len(g)-1]}, Method: inversion.Exact, Iterations: 2}).Invert(context.Background(), x); err == nil || !strings.Contains(err.Error(), "take more steps") {
		t.Errorf("a step too large: %v", err)
	}
}

// The log density of two points under the flow of a mixture, and the noise that they come from.
func ExampleFlow_LogP() {
	m, err := analytic.Parse([]byte(`{"type":"mixture","weights":[0.5,0.5],"means":[[-1],[1]],"vars":[[0.1],[0.1]],"process":{"type":"vp-linear"},"prediction":"eps"}`))
	if err != nil {
		panic(err)
	}
	g, err := schedules.NewGrid(schedules.VPLinear{}, "karras", 100, schedules.Ends{Final: "zero"})
	if err != nil {
		panic(err)
	}
	logp := make([]float64, 2)
	z, err := inversion.Flow{Model: m, Grid: g}.LogP(context.Background(), models.Wrap([]float64{1, 0}, 2, 1), inversion.Divergence{}, logp)
	if err != nil {
		panic(err)
	}
	for k, x := range []float64{1, 0} {
		exact, err := m.LogP([]float64{x}, schedules.Node{Alpha: 1}, models.NoClass)
		if err != nil {
			panic(err)
		}
		fmt.Printf("x %g: log p %.3f (exact %.3f), noise %.3f\n", x, logp[k], exact, models.Data(z)[k])
	}
	// Output:
	// x 1: log p -0.461 (exact -0.461), noise 0.674
	// x 0: log p -4.768 (exact -4.768), noise 0.000
}
