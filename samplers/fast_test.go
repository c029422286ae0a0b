package samplers_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// counting counts the calls of every step.
type counting struct {
	models.Denoiser
	calls *[]int
}

func (c counting) Unwrap() models.Denoiser { return c.Denoiser }

func (c counting) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	for len(*c.calls) <= q.Step.I {
		*c.calls = append(*c.calls, 0)
	}
	(*c.calls)[q.Step.I]++
	return c.Denoiser.Predict(ctx, q, p)
}

// TestFastOrders holds the orders of the steps against the references'.
func TestFastOrders(t *testing.T) {
	folder, runs := goldenFolder(), 0
	for _, g := range readRuns(t, folder) {
		if g.Name != "dpm-fast" && g.Name != "dpm-solver-fast" {
			continue
		}
		runs++
		target, err := analytic.Open(filepath.Join(folder, g.Target))
		if err != nil {
			t.Fatal(err)
		}
		var calls []int
		p := &samplers.Problem{Model: counting{target, &calls}, Grid: ratios(t, target, floats(g.Grid.Sigmas)), Shape: []int{g.Dim}, Rows: make([]models.Row, 1)}
		if _, _, err := sample(t, g.Sampler, p); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(calls, g.Orders) {
			t.Errorf("%s: calls %v, the reference's orders %v", g.ID, calls, g.Orders)
		}
	}
	if runs == 0 {
		t.Fatal("no runs")
	}
}

// fasts are the samplers with a budget, with every branch of their own; start without signal where they can.
var fasts = []string{"dpm-fast", "dpm-fast:eta=1", "dpm-solver-fast", "dpm-solver-fast:order=1", "dpm-solver-fast:order=2,form=x0", "dpm-solver-fast:form=x0,solver=heun",
	"dpm-solver-fast:skip=time_uniform", "dpm-solver-fast:skip=time_quadratic,order=2", "dpm-solver-fast:skip=time_uniform,form=x0"}

// TestFastBudget: a run takes exactly its budget, whatever the ends of the grid, and ends exactly there.
func TestFastBudget(t *testing.T) {
	for name, d := range targets(t) {
		for _, s := range fasts {
			for n := 1; n <= 13; n++ {
				for _, clean := range []bool{true, false} {
					p := problem(t, d, 20, 2)
					if !clean {
						p.Last = 19
					}
					x, res, err := sample(t, fmt.Sprintf("%s%snfe=%d", s, sep(s), n), p)
					if refused(err) {
						if !strings.HasPrefix(s, "dpm-fast") && strings.Contains(s, "time") {
							t.Errorf("%s on %s: %v", s, name, err)
						}
						continue
					}
					if err != nil {
						t.Fatal(s, name, err)
					}
					want := p.Grid[20]
					if !clean {
						want = p.Grid[19]
					}
					if res.Stats.NFE != float64(n) || res.At != want || slices.ContainsFunc(x, func(v float64) bool { return v-v != 0 }) {
						t.Errorf("%s on %s: a budget of %d took %g and ended at %+v (want %+v) with %v", s, name, n, res.Stats.NFE, res.At, want, x)
					}
				}
			}
			p := problem(t, d, 11, 2)
			if _, res, err := sample(t, s, p); !refused(err) && (err != nil || res.Stats.NFE != 11) {
				t.Errorf("%s on %s: a grid of 11 steps took %v (%v)", s, name, res, err)
			}
		}
	}
	d := targets(t)["edm"]
	p := problem(t, d, 11, 2)
	for s, want := range map[string]int{"dpm-fast": 11, "dpm-fast:nfe=20": 20, "dpm-solver-fast:nfe=3": 3} {
		if n := samplers.NFE(mustParse(t, s), p.Grid); n != want {
			t.Errorf("%s on 11 steps announces %d evaluations, want %d", s, n, want)
		}
	}
	p.Grid = schedules.Grid{p.Grid[0], p.Grid[11]}
	if _, _, err := sample(t, "dpm-fast", p); err == nil || !strings.Contains(err.Error(), "set nfe") {
		t.Errorf("two ends without a budget: %v", err)
	}
	ve := schedules.GeometricVE{}
	p.Model, p.Grid = wide{ve}, schedules.Grid{ve.At(1), ve.At(-0.2)}
	if _, _, err := sample(t, "dpm-solver-fast:nfe=5,skip=time_quadratic", p); err == nil || !strings.Contains(err.Error(), "0 or more") {
		t.Errorf("square roots of negative times: %v", err)
	}
}

// TestFastOrder measures the order of convergence on P-ORD: that of the steps where no lower one ends the budget.
func TestFastOrder(t *testing.T) {
	ve := mustTarget(t, "mix", `{"type":"ve"}`, "x0")
	const exact = 1.467467064724
	for _, c := range []struct {
		sampler string
		n       func(k int) int // budget of k steps of full order
		want    float64
	}{
		{"dpm-fast", func(k int) int { return 3*k + 2 }, 3},
		{"dpm-fast", func(k int) int { return 3*k + 1 }, 2},
		{"dpm-solver-fast:form=x0", func(k int) int { return 3*k + 2 }, 3},
		{"dpm-solver-fast:solver=heun", func(k int) int { return 3*k + 2 }, 3},
		{"dpm-solver-fast:order=2", func(k int) int { return 2 * k }, 2},
		{"dpm-solver-fast:order=2,form=x0,solver=heun", func(k int) int { return 2 * k }, 2},
		{"dpm-solver-fast:skip=time_uniform", func(k int) int { return 3*k + 2 }, 3},
		{"dpm-solver-fast:skip=time_quadratic", func(k int) int { return 3*k + 2 }, 3},
		{"dpm-solver-fast:order=1", func(k int) int { return k }, 1},
	} {
		var errs []float64
		for _, k := range []int{80, 160, 320} {
			x, stats := end(t, mustParse(t, fmt.Sprintf("%s%snfe=%d", c.sampler, sep(c.sampler), c.n(k))), ve, ratios(t, ve, []float64{5, 0.2}), 3)
			errs = append(errs, math.Abs(x-exact))
			if stats.NFE != float64(c.n(k)) {
				t.Errorf("%s: %g evaluations, want %d", c.sampler, stats.NFE, c.n(k))
			}
		}
		if order := (math.Log2(errs[0]/errs[1]) + math.Log2(errs[1]/errs[2])) / 2; math.Abs(order-c.want) > 0.15 {
			t.Errorf("%s: order %.2f, want %g (errors %.3g)", c.sampler, order, c.want, errs)
		}
	}
}

// TestFastRun: rows do not know of each other, runs can be peeked at, saved, resumed, re-indexed and set like any other.
func TestFastRun(t *testing.T) {
	ctx := context.Background()
	d := targets(t)["vp-linear"]
	for _, s := range fasts {
		s += sep(s) + "nfe=12"
		m := mustParse(t, s)
		p := problem(t, d, 8, 3)
		want, res, err := sample(t, s, p)
		if err != nil {
			t.Fatal(s, err)
		}
		for k := range 3 {
			one := *p
			one.Rows = p.Rows[k : k+1]
			if x, _, err := sample(t, s, &one); err != nil || !slices.Equal(x, want[3*k:3*k+3]) {
				t.Errorf("%s: row %d alone is %v, in the batch %v (%v)", s, k, x, want[3*k:3*k+3], err)
			}
		}
		p.Meter = &models.Meter{}
		run, err := m.Begin(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		for i := range res.Stats.Steps {
			if st := run.State(); st.I != i || st.N != res.Stats.Steps || st.Done != float64(i)/float64(st.N) {
				t.Errorf("%s: step %d of %d at %g", s, st.I, st.N, st.Done)
			}
			if _, err := run.(samplers.Peeker).Peek(ctx); err != nil {
				t.Fatal(err)
			}
			var buf bytes.Buffer
			if err := run.(samplers.Saver).Save(&buf); err != nil {
				t.Fatal(err)
			}
			if run, err = samplers.Resume(ctx, m, p, &buf); err != nil {
				t.Fatal(err)
			}
			drive(t, run, 1)
		}
		if have := models.Data(run.State().X); !slices.Equal(have, want) || p.Meter.Evals() != 3*12 {
			t.Errorf("%s: peeked at, saved and resumed at every step: %v in %d evaluations, want %v in 36", s, have, p.Meter.Evals(), want)
		}
		p.Noise = noNoise{}
		want, _, err = sample(t, s, p)
		if err != nil {
			t.Fatal(err)
		}
		if run, err = m.Begin(ctx, p); err != nil {
			t.Fatal(err)
		}
		drive(t, run, 2)
		if err := run.(samplers.Selector).Select([]int{2, 2, 0, 1}, make([]models.Row, 4)); err != nil {
			t.Fatal(err)
		}
		drive(t, run, res.Stats.Steps)
		for j, k := range []int{2, 2, 0, 1} {
			if have := models.Data(run.State().X)[3*j : 3*j+3]; !slices.Equal(have, want[3*k:3*k+3]) {
				t.Errorf("%s: row %d after Select ends at %v, its parent at %v", s, j, have, want[3*k:3*k+3])
			}
		}
	}
	p := problem(t, d, 8, 2)
	want, _, _ := sample(t, "dpm-fast:nfe=9", p)
	run, err := mustParse(t, "dpm-fast:nfe=9,eta=1").Begin(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	if err := run.(samplers.Setter).Set("eta", 0); err != nil {
		t.Fatal(err)
	}
	drive(t, run, 9)
	if have := models.Data(run.State().X); !slices.Equal(have, want) {
		t.Errorf("eta set to 0: %v, want %v", have, want)
	}
}

func ExampleFast() {
	target, err := analytic.Parse([]byte(`{"type":"mixture","weights":[0.4,0.6],"means":[[-1],[1.5]],"vars":[[0.0625],[0.25]],"process":{"type":"edm"},"prediction":"x0"}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	edm := schedules.EDM{}
	_, err = samplers.Sample(context.Background(), samplers.Fast{Budget: 10}, &samplers.Problem{
		Model: models.Metered(target),
		Grid:  schedules.Grid{edm.AtRatio(80), edm.AtRatio(0.008)}, // the two ends
		Rows:  make([]models.Row, 1),
		Shape: []int{1},
		Observe: func(s *samplers.State) error {
			fmt.Printf("sigma %.3f\n", s.At.Sigma)
			return nil
		},
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// sigma 80.000
	// sigma 8.000
	// sigma 0.800
	// sigma 0.080
	// sigma 0.008
}
