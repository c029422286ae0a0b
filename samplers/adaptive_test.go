package samplers_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// adaptives are the adaptive samplers with every branch of their own.
var adaptives = []string{"rk45", "rk45:variable=time", "rk45:norm=batch", "dpm-adaptive", "dpm-adaptive:order=2", "dpm-adaptive:form=x0", "dpm-adaptive:controller=dpm-solver",
	"dpm-adaptive:controller=dpm-solver,order=2,form=x0,norm=batch", "dpm-adaptive:pcoeff=0.2,icoeff=0.6,dcoeff=0.1", "dpm-adaptive:eta=1", "dpm-adaptive:eta=0.5,norm=batch"}

// TestAdaptiveTables holds SciPy's results and counts of evaluations on P-VP and P-EDM.
func TestAdaptiveTables(t *testing.T) {
	vp := mustTarget(t, "mix", `{"type":"vp-linear"}`, "eps")
	edm := mustTarget(t, "mix", `{"type":"edm"}`, "x0")
	for _, c := range []struct {
		d       models.Denoiser
		g       schedules.Grid
		x       float64
		sampler string
		want    float64
		nfe     float64
	}{
		{vp, pvp(t, vp, 1), -0.4, "rk45:variable=time", -0.7314088489, 98},
		{vp, pvp(t, vp, 1), -0.4, "rk45:rtol=1e-5,atol=1e-5", -0.7314113445, 182},
		{edm, ratios(t, edm, []float64{80, 0.002}), -32, "rk45", -0.7346709012, 176},
	} {
		have, stats := end(t, mustParse(t, c.sampler), c.d, c.g, c.x)
		if !(math.Abs(have-c.want) < 1e-9) || stats.NFE != c.nfe {
			t.Errorf("%s on %s: %.10f in %g evaluations, want %.10f in %g", c.sampler, c.d.Process().Name(), have, stats.NFE, c.want, c.nfe)
		}
	}
}

// exactGAU is the exact map of the probability-flow ODE of GAU.
func exactGAU(x float64, s, t schedules.Node) float64 {
	return 0.5*t.Alpha + (x-0.5*s.Alpha)*math.Sqrt((sq(0.5*t.Alpha)+sq(t.Sigma))/(sq(0.5*s.Alpha)+sq(s.Sigma)))
}

// TestAdaptiveAccuracy: the distance to the exact solution follows the tolerance, on every process.
func TestAdaptiveAccuracy(t *testing.T) {
	for process, sb := range map[string][]float64{`{"type":"vp-linear"}`: {100, 0.02}, `{"type":"edm"}`: {80, 0.002}, `{"type":"flow"}`: {50, 0.005}} {
		d := mustTarget(t, "gau", process, "x0")
		g := ratios(t, d, sb)
		x := 1.2 * math.Hypot(g[0].Alpha, g[0].Sigma)
		want := exactGAU(x, g[0], g[1])
		for _, s := range adaptives {
			if strings.Contains(s, "eta") {
				continue
			}
			var errs, nfe []float64
			for _, tol := range []float64{1e-3, 1e-5, 1e-7} {
				have, stats := end(t, mustParse(t, s+sep(s)+fmt.Sprintf("rtol=%g,atol=%g", tol, tol)), d, g, x)
				errs, nfe = append(errs, math.Abs(have-want)), append(nfe, stats.NFE)
				// DPM-Solver's controller may take a step much too long after one with next to no error.
				if errs[len(errs)-1] > 100*tol && !(tol > 1e-4 && strings.Contains(s, "controller=dpm-solver")) {
					t.Errorf("%s on %s with tolerance %g: error %.3g", s, process, tol, errs[len(errs)-1])
				}
			}
			if !(errs[2] < errs[1] && errs[1] < errs[0] && nfe[2] > nfe[1] && nfe[1] > nfe[0]) {
				t.Errorf("%s on %s: errors %.3g in %g evaluations do not fall with the tolerance", s, process, errs, nfe)
			}
		}
	}
}

func sep(s string) string {
	if strings.Contains(s, ":") {
		return ","
	}
	return ":"
}

// TestAdaptiveRows: with steps of its own, a row has the same states, step for step, alone and in a batch, and costs the
// same. With one step size for the batch it has not.
func TestAdaptiveRows(t *testing.T) {
	for name, d := range targets(t) {
		for _, model := range []models.Denoiser{d, late{d}} {
			for _, s := range adaptives {
				if strings.Contains(s, "norm=batch") {
					continue
				}
				record := func(rows int, first int) (xs [][]float64, evals int64, res *samplers.Result) {
					p := problem(t, model, 10, rows)
					for k := range p.Rows {
						p.Rows[k].Seed = uint64(100 + first + k)
					}
					p.Meter = &models.Meter{}
					p.Observe = func(st *samplers.State) error {
						xs = append(xs, slices.Clone(models.Data(st.X)))
						return nil
					}
					_, res, err := sample(t, s, p)
					if refused(err) {
						return nil, 0, nil
					}
					if err != nil {
						t.Fatal(s, err)
					}
					if res.At != p.Grid[10] {
						t.Errorf("%s on %s ends at %+v, want %+v", s, name, res.At, p.Grid[10])
					}
					return xs, p.Meter.Evals(), res
				}
				all, evals, res := record(8, 0)
				if res == nil {
					continue
				}
				var sum int64
				counts := map[int]bool{}
				for k := range 8 {
					one, e, res := record(1, k)
					sum += e
					counts[len(one)] = true
					if float64(e) != res.Stats.NFE || len(one) != res.Stats.Steps+1 {
						t.Errorf("%s: %d evaluations and %d states, says %+v", s, e, len(one), res.Stats)
					}
					for i, x := range all {
						if !slices.Equal(x[3*k:3*k+3], one[min(i, len(one)-1)]) {
							t.Fatalf("%s on %s: state %d of row %d is %v in the batch, %v alone", s, name, i, k, x[3*k:3*k+3], one[min(i, len(one)-1)])
						}
					}
				}
				if sum != evals || res.Stats.NFE != float64(sum)/8 {
					t.Errorf("%s on %s: a batch costs %d evaluations, its rows %d; says %g", s, name, evals, sum, res.Stats.NFE)
				}
				if s == "rk45" && len(counts) == 1 {
					t.Errorf("%s on %s: all rows took the same number of steps: nothing was tested", s, name)
				}
			}
		}
	}
	p := problem(t, targets(t)["edm"], 10, 8)
	x, _, err := sample(t, "rk45:norm=batch", p)
	if err != nil {
		t.Fatal(err)
	}
	p.Rows = p.Rows[:1]
	one, _, err := sample(t, "rk45:norm=batch", p)
	if err != nil || slices.Equal(x[:3], one) {
		t.Errorf("norm=batch: a row alone has the bits of the batch (%v)", err)
	}
}

// late is a guider that acts in the second half of a run only, and so looks at the query's step.
type late struct{ models.Denoiser }

func (l late) Unwrap() models.Denoiser { return l.Denoiser }

func (l late) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if err := l.Denoiser.Predict(ctx, q, p); err != nil {
		return err
	}
	if q.Step.Progress >= 0.5 {
		for i := range models.Data(p.Out) {
			models.Data(p.Out)[i] *= 1.01
		}
	}
	return nil
}

// TestAdaptiveState: what a run shows of itself is true: progress, the rows' nodes, and the prediction as data.
func TestAdaptiveState(t *testing.T) {
	for name, d := range targets(t) {
		for _, s := range adaptives {
			p := problem(t, d, 10, 5)
			done, step, apart := -1.0, 0, 0
			p.Observe = func(st *samplers.State) error {
				if st.I != step || st.N != 0 || !(st.Done > done) || st.Done > 1 {
					t.Errorf("%s on %s: step %d of %d at progress %g, after step %d at %g", s, name, st.I, st.N, st.Done, step-1, done)
				}
				done, step = st.Done, step+1
				if st.Each != nil {
					apart++
				}
				for _, n := range st.Each {
					if n.Ratio() > st.At.Ratio() {
						t.Errorf("%s: a row is at %g, the state says %g", s, n.Ratio(), st.At.Ratio())
					}
				}
				x0, err := st.X0(nil)
				if err != nil {
					return err
				}
				if (x0 != nil) != (st.I > 0) {
					t.Errorf("%s: prediction %v at step %d", s, x0, st.I)
				}
				if st.I == 1 { // all rows were at the start
					var a models.Pred
					nodes := slices.Repeat([]schedules.Node{st.PredAt}, 5)
					if st.PredAt != p.Grid[0] {
						t.Errorf("%s: the first prediction was made at %+v, says %+v", s, p.Grid[0], st.PredAt)
					}
					if err := d.Predict(context.Background(), &models.Query{X: st.PredX, At: nodes}, &a); err != nil {
						return err
					}
					cx, co, err := schedules.Convert(gauss(d), a.Kind, schedules.X0, st.PredAt)
					if err != nil {
						return err
					}
					for i, v := range models.Data(x0) {
						want := cx*models.Data(st.PredX)[i] + co*models.Data(a.Out)[i]
						if math.Abs(v-want) > 1e-9*(1+math.Abs(want)) {
							t.Errorf("%s on %s: x0[%d] = %g, want %g", s, name, i, v, want)
						}
					}
				}
				return nil
			}
			_, res, err := sample(t, s, p)
			if refused(err) {
				continue
			}
			if err != nil {
				t.Fatal(s, err)
			}
			if done != 1 || res.Stats.Steps != step-1 || res.At != p.Grid[10] {
				t.Errorf("%s on %s: ended at progress %g after %d steps (says %d) at %+v", s, name, done, step-1, res.Stats.Steps, res.At)
			}
			if joint := strings.Contains(s, "norm=batch"); joint != (apart == 0) {
				t.Errorf("%s on %s: rows stood apart after %d steps", s, name, apart)
			}
		}
	}
}

// TestAdaptiveEnds: the run ends exactly on the end of the grid, by way of the last noisy node; the prior's end and
// grids without one are refused by name.
func TestAdaptiveEnds(t *testing.T) {
	edm, flow := targets(t)["edm"], targets(t)["flow"]
	nodes := func(d models.Denoiser, s string, g schedules.Grid, first, last int) ([]schedules.Node, error) {
		p := &samplers.Problem{Model: d, Grid: g, First: first, Last: last, Shape: []int{3}, Rows: []models.Row{{Seed: 4}}}
		var out []schedules.Node
		p.Observe = func(st *samplers.State) error {
			out = append(out, st.At)
			return nil
		}
		_, _, err := sample(t, s, p)
		return out, err
	}
	for _, s := range []string{"rk45", "dpm-adaptive", "dpm-fast:nfe=9", "dpm-solver-fast:nfe=9"} {
		for _, c := range []struct {
			sb          []float64
			first, last int
			before, end float64 // the last two nodes
		}{
			{[]float64{80, 0.5}, 0, 0, -1, 0.5},
			{[]float64{80, 3, 1, 0.5}, 0, 0, -1, 0.5},      // the nodes between have no say
			{[]float64{80, 0.5, 0}, 0, 0, 0.002, 0},        // EDM's usual last sigma
			{[]float64{80, 0.5, 0.0005, 0}, 0, 0, 5e-4, 0}, // the grid's own, which has less noise
			{[]float64{80, 0}, 0, 0, 0.002, 0},
			{[]float64{80, 7, 3, 1, 0}, 1, 3, -1, 1},
		} {
			at, err := nodes(edm, s, ratios(t, edm, c.sb), c.first, c.last)
			if err != nil {
				t.Errorf("%s on %g: %v", s, c.sb, err)
				continue
			}
			n := len(at)
			if at[0].Ratio() != c.sb[c.first] || at[n-1].Ratio() != c.end || (c.before >= 0 && at[n-2].Ratio() != c.before) {
				t.Errorf("%s on %g: from %g by %g to %g", s, c.sb, at[0].Ratio(), at[n-2].Ratio(), at[n-1].Ratio())
			}
		}
		at, err := nodes(edm, s, ratios(t, edm, []float64{0.001, 0}), 0, 0) // nothing but the clean step is left
		if err != nil || len(at) != 2 {
			t.Errorf("%s from below the usual end: %v, %v", s, at, err)
		}
		for want, sb := range map[string][]float64{"rises": {80, 5, 10, 0.1}, "the same": {5, 5}} {
			if _, err := nodes(edm, s, ratios(t, edm, sb), 0, 0); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s on %g: %v, want %q", s, sb, err, want)
			}
		}
		if _, err := nodes(noRange{edm}, s, ratios(t, edm, []float64{80, 0}), 0, 0); err == nil || !strings.Contains(err.Error(), "last noisy node") {
			t.Errorf("%s on a process without a usual end: %v", s, err)
		}
		if at, err := nodes(noRange{edm}, s, ratios(t, edm, []float64{80, 0.3, 0}), 0, 0); err != nil || at[len(at)-2].Ratio() != 0.3 {
			t.Errorf("%s on a process without a usual end: %v, %v", s, at, err)
		}
	}
	p := &samplers.Problem{Model: edm, Grid: ratios(t, edm, []float64{1, math.Exp(-0.050005)}), Shape: []int{3}, Rows: make([]models.Row, 1)}
	if _, res, err := sample(t, "dpm-adaptive", p); err != nil || res.Stats.Steps != 1 || res.At != p.Grid[1] {
		t.Errorf("a first step that nearly reaches the end: %+v, %v; want one step", res, err)
	}
	start := times(t, flow, []float64{1, 0})
	for _, s := range []string{"rk45:variable=sigma", "dpm-adaptive", "dpm-adaptive:form=x0", "dpm-fast:nfe=5", "dpm-solver-fast:nfe=5"} {
		if _, err := nodes(flow, s, start, 0, 0); !refused(err) {
			t.Errorf("%s from alpha = 0: %v", s, err)
		}
	}
	if at, err := nodes(flow, "rk45", start, 0, 0); err != nil || at[len(at)-2].T != 1e-3 || at[len(at)-1] != start[1] {
		t.Errorf("rk45 on a flow: %v, %v", at, err)
	}
}

// noRange hides the process's usual range.
type noRange struct{ models.Denoiser }

func (n noRange) Process() schedules.Process {
	return struct{ schedules.Gaussian }{n.Denoiser.Process().(schedules.Gaussian)}
}

// TestAdaptiveSelect re-indexes runs in their middle, with and without a Peek before: rows go on as their parents would
// have, and Peek costs nothing.
func TestAdaptiveSelect(t *testing.T) {
	ctx := context.Background()
	d := targets(t)["vp-linear"]
	for _, s := range adaptives {
		p := problem(t, d, 8, 3)
		p.Noise = noNoise{}
		joint := strings.Contains(s, "norm=batch")
		want, res, err := sample(t, s, p)
		if err != nil {
			t.Fatal(s, err)
		}
		for at := 0; at <= res.Stats.Steps; at++ {
			run, err := mustParse(t, s).Begin(ctx, p)
			if err != nil {
				t.Fatal(err)
			}
			drive(t, run, at)
			if at%2 == 0 && at < res.Stats.Steps {
				if _, err := run.(samplers.Peeker).Peek(ctx); err != nil {
					t.Fatal(err)
				}
			}
			before := run.State()
			y := slices.Clone(models.Data(before.X))
			var px []float64
			if before.PredX != nil {
				px = slices.Clone(models.Data(before.PredX))
			}
			parents := []int{2, 0, 0, 1, 2}
			if joint { // the batch is one system
				parents = []int{0, 1, 2}
			}
			if err := run.(samplers.Selector).Select(parents, make([]models.Row, len(parents))); err != nil {
				t.Fatal(err)
			}
			st := run.State()
			for j, k := range parents {
				if !slices.Equal(models.Data(st.X)[3*j:3*j+3], y[3*k:3*k+3]) || (px != nil && !slices.Equal(models.Data(st.PredX)[3*j:3*j+3], px[3*k:3*k+3])) {
					t.Errorf("%s: row %d after Select at step %d is not its parent", s, j, at)
				}
			}
			for done := false; !done; {
				if done, err = run.Next(ctx); err != nil {
					t.Fatal(s, err)
				}
			}
			have := models.Data(run.State().X)
			for j, k := range parents {
				if !slices.Equal(have[3*j:3*j+3], want[3*k:3*k+3]) {
					t.Errorf("%s: after Select at step %d row %d is %v, its parent ends at %v", s, at, j, have[3*j:3*j+3], want[3*k:3*k+3])
				}
			}
		}
		p.Meter = &models.Meter{}
		run, err := mustParse(t, s).Begin(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		for done := false; !done; {
			if run.State().Done < 1 {
				a, err := run.(samplers.Peeker).Peek(ctx)
				if err != nil {
					t.Fatal(err)
				}
				peeked := slices.Clone(models.Data(a.Out))
				drive(t, run, 1)
				x0, err := run.State().X0(nil)
				if err != nil {
					t.Fatal(err)
				}
				if run.State().Each == nil && !slices.Equal(peeked, models.Data(x0)) {
					t.Errorf("%s: Peek gave %v, the step was made with %v", s, peeked, models.Data(x0))
				}
				continue
			}
			if done, err = run.Next(ctx); err != nil {
				t.Fatal(err)
			}
		}
		// Rows at the clean end are not asked: every row's evaluations are its own.
		if have := models.Data(run.State().X); !slices.Equal(have, want) || float64(p.Meter.Evals())/3 != res.Stats.NFE {
			t.Errorf("%s: with Peek %v in %g evaluations, without %v in %g", s, have, float64(p.Meter.Evals())/3, want, res.Stats.NFE)
		}
		if _, err := run.(samplers.Peeker).Peek(ctx); err == nil {
			t.Errorf("%s: peeked at a run that is done at sigma 0", s)
		}
	}
}

// stopping cancels the context in its n-th call.
type stopping struct {
	models.Denoiser
	n      *int
	cancel func()
}

func (s stopping) Unwrap() models.Denoiser { return s.Denoiser }

func (s stopping) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if *s.n--; *s.n == 0 {
		s.cancel()
	}
	return s.Denoiser.Predict(ctx, q, p)
}

// TestAdaptiveCancel interrupts runs at every call, in the middle of tries too: the state is that of the last accepted
// step, and going on from it, saved and read again, ends on the bits of an undisturbed run.
func TestAdaptiveCancel(t *testing.T) {
	d := targets(t)["vp-discrete"]
	for _, s := range adaptives {
		s += sep(s) + "rtol=0.01,atol=0.01"
		p := problem(t, d, 6, 3)
		calls := 0
		var states [][]float64
		p.Model = stopping{d, &calls, func() {}}
		p.Observe = func(st *samplers.State) error {
			states = append(states, slices.Clone(models.Data(st.X)))
			return nil
		}
		want, _, err := sample(t, s, p)
		if err != nil {
			t.Fatal(s, err)
		}
		p.Observe = nil
		for n := 1; n < -calls; n += 3 {
			ctx, cancel := context.WithCancel(context.Background())
			left := n
			q := *p
			q.Model, q.Meter = stopping{d, &left, cancel}, &models.Meter{}
			m := mustParse(t, s)
			res, err := samplers.Sample(ctx, m, &q)
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("%s: cancelled in call %d: %v", s, n, err)
			}
			if !slices.Equal(models.Data(res.X), states[res.Stats.Steps]) {
				t.Errorf("%s: cancelled in call %d: the state is not that of step %d", s, n, res.Stats.Steps)
			}
			var buf bytes.Buffer
			if err := res.Run.(samplers.Saver).Save(&buf); err != nil {
				t.Fatal(err)
			}
			run, err := samplers.Resume(context.Background(), m, &q, &buf)
			if err != nil {
				t.Fatal(err)
			}
			if st, old := run.State(), res.Run.State(); st.I != old.I || st.At != old.At || st.PredAt != old.PredAt || st.Done != old.Done {
				t.Errorf("%s: saved at %+v, read %+v", s, old, st)
			}
			res, err = samplers.Drive(context.Background(), run, &q)
			if err != nil || !slices.Equal(models.Data(res.X), want) {
				t.Errorf("%s: interrupted in call %d and resumed: %v, want %v (%v)", s, n, models.Data(res.X), want, err)
			}
			cancel()
		}
	}
	var buf bytes.Buffer
	p := problem(t, d, 6, 3)
	run, err := mustParse(t, "rk45").Begin(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	if err := run.(samplers.Saver).Save(&buf); err != nil {
		t.Fatal(err)
	}
	if _, err := samplers.Resume(context.Background(), mustParse(t, "dpm-adaptive"), p, &buf); err == nil {
		t.Error("dpm-adaptive went on from a run of rk45")
	}
}

// TestAdaptiveSet changes the tolerances of a run under way.
func TestAdaptiveSet(t *testing.T) {
	d := targets(t)["edm"]
	for _, s := range []string{"rk45", "dpm-adaptive", "dpm-adaptive:controller=dpm-solver", "dpm-adaptive:eta=1"} {
		p := problem(t, d, 6, 2)
		want, _, err := sample(t, strings.TrimSuffix(s, ":eta=1")+sep(strings.TrimSuffix(s, ":eta=1"))+"rtol=0.003,atol=0.004", p)
		if err != nil {
			t.Fatal(err)
		}
		run, err := mustParse(t, s).Begin(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		set := run.(samplers.Setter)
		for name, v := range map[string]float64{"rtol": 0.003, "atol": 0.004, "eta": 0} {
			if err := set.Set(name, v); err != nil && !(name == "eta" && !strings.HasSuffix(s, "eta=1")) {
				t.Fatal(s, err)
			}
		}
		for done := false; !done; {
			if done, err = run.Next(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		if have := models.Data(run.State().X); !slices.Equal(have, want) {
			t.Errorf("%s: with set tolerances %v, with given ones %v", s, have, want)
		}
		for name, v := range map[string]float64{"rtol": 0, "atol": -1, "steps": 3, "eta": -1} {
			if set.Set(name, v) == nil {
				t.Errorf("%s: %s was set to %g", s, name, v)
			}
		}
	}
}

// remembering is a guider with memory per row.
type remembering struct {
	models.Denoiser
	last []float64
	seen *[]int // stages
}

func (r *remembering) Unwrap() models.Denoiser    { return r.Denoiser }
func (r *remembering) Select(parents []int) error { return nil }
func (r *remembering) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	*r.seen = append(*r.seen, q.Step.Stage)
	return r.Denoiser.Predict(ctx, q, p)
}

// TestAdaptiveRefusals: what cannot be is refused by name.
func TestAdaptiveRefusals(t *testing.T) {
	d := targets(t)["edm"]
	var stages []int
	p := problem(t, &remembering{d, nil, &stages}, 6, 2)
	for _, s := range []string{"rk45", "dpm-adaptive"} {
		if _, _, err := sample(t, s, p); err == nil || !strings.Contains(err.Error(), "norm=batch") {
			t.Errorf("%s with a model that remembers: %v", s, err)
		}
		stages = nil
		_, res, err := sample(t, s+":norm=batch", p)
		if err != nil {
			t.Fatal(err)
		}
		first := 0
		for _, k := range stages {
			if k == 0 {
				first++
			}
		}
		if first != res.Stats.Steps {
			t.Errorf("%s: %d first-stage calls in %d steps: the memory is out of step", s, first, res.Stats.Steps)
		}
	}
	p = problem(t, renewing{d}, 6, 2)
	for _, s := range []string{"rk45", "dpm-adaptive", "dpm-fast", "pndm"} {
		if _, _, err := sample(t, s, p); err == nil || !strings.Contains(err.Error(), "separate noise") {
			t.Errorf("%s with a noise to put back: %v", s, err)
		}
	}
	p = problem(t, bad{d, 0}, 6, 2)
	for _, s := range []string{"rk45", "dpm-adaptive"} {
		if _, _, err := sample(t, s, p); !answeredNaN(err, 1) {
			t.Errorf("%s with an answer that is not finite: %v", s, err)
		}
	}
	p = problem(t, rough{d}, 6, 2)
	for _, s := range []string{"rk45", "dpm-adaptive", "dpm-adaptive:controller=dpm-solver"} {
		if _, _, err := sample(t, s, p); !answeredNaN(err, 0) {
			t.Errorf("%s with stages that are not finite: %v", s, err)
		}
	}
	p = problem(t, d, 6, 2)
	noise, err := samplers.NewRecorded(models.New(3, 2, 3), 3)
	if err != nil {
		t.Fatal(err)
	}
	p.Noise = noise
	if _, _, err := sample(t, "dpm-adaptive:eta=1", p); err == nil || !strings.Contains(err.Error(), "ends after 3 steps") {
		t.Errorf("recorded noise of three steps: %v", err)
	}
	for s, want := range map[string]string{"rk45:rtol=0": "rtol", "rk45:norm=max": "norm", "dpm-adaptive:order=4": "order", "dpm-adaptive:controller=dpm-solver,eta=1": "eta",
		"dpm-adaptive:icoeff=0": "pcoeff", "dpm-adaptive:form=v": "form", "dpm-fast:nfe=0": "nfe", "dpm-solver-fast:skip=karras": "skip", "pndm:skip-prk=maybe": "skip-prk"} {
		if _, err := samplers.Parse(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): %v, want %q", s, err, want)
		}
	}
	for _, m := range []samplers.Sampler{samplers.DPMAdaptive{Order: 1}, samplers.DPMAdaptive{Kind: schedules.V}, samplers.Fast{Budget: 4, Order: 4}, samplers.Fast{Budget: 4, Kind: schedules.V}} {
		if _, err := m.Begin(context.Background(), problem(t, d, 6, 2)); err == nil {
			t.Errorf("%+v began a run", m)
		}
	}
	for _, m := range []samplers.Sampler{samplers.RK45{}, samplers.DPMAdaptive{}, samplers.DPMAdaptive{Plain: true}, samplers.Fast{}, samplers.PNDM{}} {
		if _, err := samplers.Sample(context.Background(), m, problem(t, d, 6, 2)); err != nil {
			t.Errorf("the zero value %#v: %v", m, err)
		}
	}
}

// renewing asks for another noise to be put back.
type renewing struct{ models.Denoiser }

func (r renewing) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	err := r.Denoiser.Predict(ctx, q, p)
	p.Renoise = q.X
	return err
}

// rough answers no stage but the first with a number.
type rough struct{ models.Denoiser }

func (r rough) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	err := r.Denoiser.Predict(ctx, q, p)
	for i := range models.Data(p.Out) {
		if q.Step.Stage > 0 {
			models.Data(p.Out)[i] = math.NaN()
		}
	}
	return err
}

// wide is GAU in every element of a state of any shape.
type wide struct{ p schedules.Gaussian }

func (w wide) Process() schedules.Process { return w.p }
func (w wide) Predict(_ context.Context, q *models.Query, p *models.Pred) error {
	x, out := p.Fit(q.X, schedules.X0)
	d := len(x) / len(q.At)
	for i, v := range x {
		n := q.At[i/d]
		out[i] = 0.5 + n.Alpha*0.25*(v-0.5*n.Alpha)/(sq(0.5*n.Alpha)+sq(n.Sigma))
	}
	return nil
}

// TestAdaptiveNoise: with eta = 1 the samples of GAU keep its mean 0.5 and variance 0.25, and the last step is mean +
// std z.
func TestAdaptiveNoise(t *testing.T) {
	for _, process := range []schedules.Gaussian{schedules.EDM{}, schedules.VPLinear{}} {
		for _, s := range []string{"dpm-adaptive:eta=1,rtol=0.002,atol=0.002", "dpm-fast:eta=1,nfe=300"} {
			const dim = 20000
			p := problem(t, models.Metered(wide{process}), 6, 1)
			p.Shape = []int{dim}
			x, _, err := sample(t, s, p)
			if err != nil {
				t.Fatal(err)
			}
			mean, sum := 0.0, 0.0
			for _, v := range x {
				mean += v / dim
			}
			for _, v := range x {
				sum += sq(v-mean) / dim
			}
			// Four standard errors, and the discretisation, which is below them.
			if math.Abs(mean-0.5) > 4*0.5/math.Sqrt(dim) || math.Abs(sum-0.25) > 4*0.25*math.Sqrt(2./dim)+0.002 {
				t.Errorf("%s on %s: mean %.4f and variance %.4f, want 0.5 and 0.25", s, process.Name(), mean, sum)
			}
		}
	}
	d := targets(t)["edm"]
	p := problem(t, d, 6, 2)
	run, err := mustParse(t, "dpm-adaptive:eta=1,norm=batch").Begin(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	drive(t, run, 2)
	from := run.State().At
	drive(t, run, 1)
	to := run.State().At
	mean, std, err := run.(samplers.Transitioner).Transition()
	if err != nil || std == 0 {
		t.Fatal(std, err)
	}
	if want := to.Sigma * math.Sqrt(1-sq(to.Ratio()/from.Ratio())); math.Abs(std-want) > 1e-12*want {
		t.Errorf("std %g, want %g", std, want)
	}
	z := make([]float64, 3)
	for k := range 2 {
		samplers.Streams{}.Normal(z, samplers.Draw{Row: p.Rows[k], Slot: k, Step: 2, Purpose: samplers.DrawStep, From: from.Ratio(), To: to.Ratio()})
		for j := range 3 {
			if d := math.Abs(models.Data(mean)[3*k+j] + std*z[j] - models.Data(run.State().X)[3*k+j]); d > 1e-12 {
				t.Errorf("row %d: mean + std z misses x by %g", k, d)
			}
		}
	}
	run, err = mustParse(t, "dpm-adaptive:eta=1").Begin(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	drive(t, run, 4)
	if _, _, err := run.(samplers.Transitioner).Transition(); err == nil || !strings.Contains(err.Error(), "norm=batch") {
		t.Errorf("the rows' steps had different noise: %v", err)
	}
}

func ExampleRK45() {
	target, err := analytic.Parse([]byte(`{"type":"mixture","weights":[0.4,0.6],"means":[[-1],[1.5]],"vars":[[0.0625],[0.25]],"process":{"type":"edm"},"prediction":"x0"}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	edm := schedules.EDM{}
	res, err := samplers.Sample(context.Background(), samplers.RK45{}, &samplers.Problem{
		Model: models.Metered(target),
		Grid:  schedules.Grid{edm.AtRatio(80), edm.AtRatio(0.002)}, // the two ends
		Rows:  make([]models.Row, 1),
		Start: models.Wrap([]float64{-32}, 1, 1),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("x = %.5f after %d steps and %g evaluations\n", models.Data(res.X)[0], res.Stats.Steps, res.Stats.NFE)
	// Output: x = -0.73467 after 20 steps and 176 evaluations
}

// answeredNaN tells whether an error says that the model's answer for a row is not finite.
func answeredNaN(err error, row int) bool {
	var n *samplers.NotFinite
	return errors.As(err, &n) && n.Answer && n.Row == row && strings.Contains(err.Error(), fmt.Sprintf("at step 0, sigma/alpha 80 (t=80), row %d", row))
}
