package samplers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/internal/refuse"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

func gridTimes(g schedules.Grid) []float64 {
	var out []float64
	for _, n := range g {
		out = append(out, n.T)
	}
	return out
}

// unified runs a schedule from the start of p.
func unified(t testing.TB, s samplers.SolverSchedule, p *samplers.Problem) ([]float64, *samplers.Result) {
	t.Helper()
	own := *p
	own.Grid = nil
	res, err := samplers.Sample(context.Background(), samplers.USF{Schedule: s}, &own)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(models.Data(res.X)), res
}

// TestUnifiedIdentities: every method that USF contains equals the solver of that name, on every kind of process.
func TestUnifiedIdentities(t *testing.T) {
	for process, prediction := range map[string]string{`{"type":"vp-linear"}`: "eps", `{"type":"edm"}`: "x0", `{"type":"flow"}`: "velocity", `{"type":"cosine"}`: "v"} {
		d, err := parseTarget(fmt.Sprintf(ring, process, prediction))
		if err != nil {
			t.Fatal(err)
		}
		sb := func(n int) []float64 {
			v := make([]float64, n+1)
			for i := range v {
				v[i] = 40 * math.Pow(0.01/40, float64(i)/float64(n))
			}
			return v
		}
		for _, c := range []struct {
			sampler string
			m       samplers.UnifiedMultistep
		}{
			{"ddim", samplers.UnifiedMultistep{Order: 1, Pred: schedules.X0}},
			{"euler", samplers.UnifiedMultistep{Order: 1, Pred: schedules.Eps}},
			{"dpmpp-2m", samplers.UnifiedMultistep{Order: 2, Pred: schedules.X0, Relax: "bh2", Lower: true}},
			{"dpmpp-2m:lower-order-final=false", samplers.UnifiedMultistep{Order: 2, Pred: schedules.X0, Relax: "bh2"}},
			{"dpmpp-2m:solver=heun", samplers.UnifiedMultistep{Order: 2, Pred: schedules.X0, Lower: true}},
			{"dpm-solver-2m", samplers.UnifiedMultistep{Order: 2, Pred: schedules.Eps, Relax: "bh2", Lower: true}},
			{"dpmpp-3m:lower-order-final=false,solver=heun", samplers.UnifiedMultistep{}},
			{"unipc:order=3,corrector=false", samplers.UnifiedMultistep{Order: 3, Pred: schedules.X0, Relax: "bh2", Lower: true}},
			{"unipc:order=4,corrector=false,variant=bh1,predict=eps", samplers.UnifiedMultistep{Order: 4, Pred: schedules.Eps, Relax: "bh1", Lower: true}},
			{"unipc:order=1", samplers.UnifiedMultistep{Order: 1, Pred: schedules.X0, Relax: "bh2", Corrector: true, Lower: true}},
			{"unipc:order=2", samplers.UnifiedMultistep{Order: 2, Pred: schedules.X0, Relax: "bh2", Corrector: true, Lower: true}},
			{"unipc:order=2,variant=bh1", samplers.UnifiedMultistep{Order: 2, Pred: schedules.X0, Relax: "bh1", Corrector: true, Lower: true}},
			{"unipc:order=3", samplers.UnifiedMultistep{Order: 3, Pred: schedules.X0, Relax: "bh2", Corrector: true, Lower: true}},
			{"unipc:order=3,predict=eps,variant=bh1", samplers.UnifiedMultistep{Order: 3, Pred: schedules.Eps, Relax: "bh1", Corrector: true, Lower: true}},
			{"deis:order=2", samplers.UnifiedMultistep{Order: 2, Pred: schedules.Eps, Lower: true}},
			{"deis:order=3", samplers.UnifiedMultistep{Order: 3, Pred: schedules.Eps, Lower: true}},
			{"deis:order=3,lower-order-final=false", samplers.UnifiedMultistep{Order: 3, Pred: schedules.Eps}},
		} {
			if c.m.Order == 0 { // 3M's first second-order step is the midpoint: UniP-3 without lowering
				c.sampler = "unipc:order=3,corrector=false,lower-order-final=false"
				c.m = samplers.UnifiedMultistep{Order: 3, Pred: schedules.X0, Relax: "bh2"}
			}
			for _, n := range []int{1, 2, 3, 7, 12} {
				p := problem(t, d, n, 2)
				p.Grid = ratios(t, d, sb(n))
				want, _, err := sample(t, c.sampler, p)
				if err != nil {
					t.Fatal(c.sampler, err)
				}
				have, _ := unified(t, c.m.Schedule(gridTimes(p.Grid)), p)
				if g := gap(have, want, 1e-8, 1e-8); g > 1 {
					t.Errorf("%s on %s, %d steps: the unified step differs by %.3g of 1e-8: %v, %v", c.sampler, process, n, g, have, want)
				}
			}
		}
		for _, c := range []struct {
			sampler string
			pred    schedules.Kind
			stages  int
		}{{"dpm-solver-2", schedules.Eps, 2}, {"dpmpp-2s", schedules.X0, 2}, {"dpm-solver-3", schedules.Eps, 3}, {"dpmpp-3s", schedules.X0, 3}} {
			p := problem(t, d, 4, 2)
			p.Grid = ratios(t, d, sb(4))
			want, _, err := sample(t, c.sampler, p)
			if err != nil {
				t.Fatal(c.sampler, err)
			}
			fine := ratios(t, d, sb(4*c.stages)) // uniform in lambda, so the stages are nodes
			have, res := unified(t, samplers.UnifiedSinglestep(c.pred, slices.Repeat([]int{c.stages}, 4), "bh2", 2, gridTimes(fine)), p)
			if g := gap(have, want, 1e-8, 1e-8); g > 1 || res.Stats.Steps != 4*c.stages {
				t.Errorf("%s on %s: the unified steps differ by %.3g of 1e-8: %v, %v", c.sampler, process, g, have, want)
			}
		}
	}
}

// TestUnifiedTable holds the reference values of USF on P-VP.
func TestUnifiedTable(t *testing.T) {
	vp := mustTarget(t, "mix", `{"type":"vp-linear"}`, "eps")
	ts := gridTimes(pvp(t, vp, 10))
	reference := func(m samplers.UnifiedMultistep) samplers.SolverSchedule { // the reference's first corrector is not scaled
		s := m.Schedule(ts)
		s.Steps[0].Corrector.Derivs[0].Relax = ""
		return s
	}
	fast := samplers.UnifiedSinglestep(schedules.X0, []int{3, 3, 3, 1}, "bh2", 2, ts)
	for _, c := range []struct {
		name string
		s    samplers.SolverSchedule
		want float64
	}{
		{"2M", samplers.UnifiedMultistep{Order: 2, Pred: schedules.X0, Relax: "bh2", Lower: true}.Schedule(ts), -0.7889163343},
		{"2M taylor", samplers.UnifiedMultistep{Order: 2, Pred: schedules.X0, Lower: true}.Schedule(ts), -0.8035087396},
		{"3M = UniP-3", samplers.UnifiedMultistep{Order: 3, Pred: schedules.X0, Relax: "bh2", Lower: true}.Schedule(ts), -0.8225685134},
		{"UniPC-2 preset", reference(samplers.UnifiedMultistep{Order: 2, Pred: schedules.X0, Relax: "bh2", Corrector: true, Lower: true}), -0.8152112902},
		{"UniPC-3 preset", reference(samplers.UnifiedMultistep{Order: 3, Pred: schedules.X0, Relax: "bh2", Corrector: true, Lower: true}), -0.8319644908},
		{"singlestep-3 fast", fast, -0.8054638280},
		{"mixed", mixed(t).Schedule, -0.9159964204},
	} {
		p := &samplers.Problem{Model: vp, Rows: make([]models.Row, 1), Start: models.Wrap([]float64{-0.4}, 1, 1)}
		have, res := unified(t, c.s, p)
		if !(math.Abs(have[0]-c.want) < 1e-9) || res.Stats.NFE != float64(len(c.s.Steps)) {
			t.Errorf("%s: %.10f in %g evaluations, want %.10f", c.name, have[0], res.Stats.NFE, c.want)
		}
	}
}

const mixedFile = `{"schedule": {"timesteps": [1, 0.7, 0.45, 0.25, 0.08, 0.001], "steps": [
 {"order": 1, "pred": "x0", "start": -1, "derivs": [], "corrector": null},
 {"order": 2, "pred": "eps", "derivs": [{"points": [-2]}],
  "corrector": {"order": 3, "start": -2, "derivs": [{"k": 1, "points": [-3, -1]}, {"k": 2, "points": [-3, -1]}]}},
 {"order": 3, "pred": "x0", "start": -1, "derivs": [{"k": 1, "points": [-2], "relax": "linear", "coef": 0.1}, {"k": 2, "points": [-2, -3]}]},
 {"order": 3, "pred": "x0", "start": -1, "derivs": [{"k": 1, "points": [-2, -3]}, {"k": 2, "points": [-2, -3]}]},
 {"order": 2, "pred": "eps", "start": -1, "derivs": [{"k": 1, "points": [-2], "relax": "linear", "coef": -0.05}]}]},
 "process": {"type": "vp-linear"}, "provenance": {"by": "hand", "of": [1, 2, {"three": null}]}}`

func mixed(t testing.TB) samplers.USF {
	t.Helper()
	m, err := samplers.ParseUSF("mixed.json", []byte(mixedFile))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestUnifiedRun holds for USF what every sampler must hold: batches, counts, saving, selecting, peeking, no allocations.
func TestUnifiedRun(t *testing.T) {
	ctx := context.Background()
	d := targets(t)["vp-linear"]
	implicit := mixed(t)
	implicit.Schedule.Steps = slices.Clone(implicit.Schedule.Steps)
	for i := range 4 {
		st := &implicit.Schedule.Steps[i]
		st.Corrector = samplers.Correct(*st)
		st.Corrector.Implicit = i != 2
	}
	saving := mixed(t)
	saving.Schedule.First = "zero"
	weighted := samplers.USF{Schedule: samplers.UnifiedMultistep{Order: 2, Pred: schedules.X0, Corrector: true}.Schedule(mixed(t).Schedule.Times)}
	for i := range weighted.Schedule.Steps {
		if st := &weighted.Schedule.Steps[i]; i >= 2 {
			st.Order, st.Derivs, st.Weights = 3, nil, []float64{1.5, -0.7, 0.2}
		}
	}
	noisy := weighted
	noisy.Schedule.Steps = slices.Clone(weighted.Schedule.Steps)
	for i := range noisy.Schedule.Steps {
		noisy.Schedule.Steps[i].Corrector, noisy.Schedule.Steps[i].Noise = nil, 0.25*float64(i)
	}
	for name, c := range map[string]struct {
		m   samplers.USF
		nfe int
	}{"noise": {noisy, 5}, "mixed": {mixed(t), 5}, "implicit": {implicit, 8}, "afs": {saving, 4}, "weights": {weighted, 5}} {
		fresh := func() *samplers.Problem {
			p := problem(t, d, 5, 3)
			p.Grid = nil
			return p
		}
		run := func(p *samplers.Problem) []float64 {
			res, err := samplers.Sample(ctx, c.m, p)
			if err != nil {
				t.Fatal(name, err)
			}
			if res.Stats.NFE != float64(c.nfe) || c.m.Schedule.NFE() != c.nfe {
				t.Errorf("%s: %g evaluations, announced %d, want %d", name, res.Stats.NFE, c.m.Schedule.NFE(), c.nfe)
			}
			return slices.Clone(models.Data(res.X))
		}
		want := run(fresh())
		g, err := c.m.Grid(gauss(d))
		if err != nil {
			t.Fatal(err)
		}
		if n := samplers.NFE(c.m, g); n != c.nfe {
			t.Errorf("%s: the count over the grid is %d, want %d", name, n, c.nfe)
		}
		given := fresh()
		given.Grid = g
		if x := run(given); !slices.Equal(x, want) {
			t.Errorf("%s: with the nodes given %v, without %v", name, x, want)
		}
		for k := range 3 {
			p := fresh()
			p.Rows = p.Rows[k : k+1]
			if x := run(p); !slices.Equal(x, want[3*k:3*k+3]) {
				t.Errorf("%s: row %d alone gives %v, in the batch %v", name, k, x, want[3*k:3*k+3])
			}
		}
		for at := range 5 {
			for _, peek := range []bool{false, true} {
				r, err := c.m.Begin(ctx, fresh())
				if err != nil {
					t.Fatal(err)
				}
				drive(t, r, at)
				if peek {
					if _, err := r.(samplers.Peeker).Peek(ctx); err != nil {
						t.Fatal(err)
					}
				}
				var buf bytes.Buffer
				if err := r.(samplers.Saver).Save(&buf); err != nil {
					t.Fatal(err)
				}
				again, err := samplers.Resume(ctx, c.m, fresh(), &buf)
				if err != nil {
					t.Fatal(err)
				}
				drive(t, again, 5-at)
				if x := models.Data(again.State().X); !slices.Equal(x, want) {
					t.Errorf("%s: resumed at step %d: %v, want %v", name, at, x, want)
				}
				if err := r.(samplers.Selector).Select([]int{2, 2, 0, 1}, make([]models.Row, 4)); err != nil {
					t.Fatal(err)
				}
				if c.m.Needs().Noise { // the four go different ways
					continue
				}
				drive(t, r, 5-at)
				for j, k := range []int{2, 2, 0, 1} {
					if x := models.Data(r.State().X); !slices.Equal(x[3*j:3*j+3], want[3*k:3*k+3]) {
						t.Errorf("%s: selected at step %d: row %d is %v, its parent ends at %v", name, at, j, x[3*j:3*j+3], want[3*k:3*k+3])
					}
				}
			}
		}
	}
	// A long schedule allocates nothing after its first steps.
	ts := make([]float64, 121)
	for i := range ts {
		ts[i] = 1 - float64(i)/121
	}
	p := problem(t, freeModel{schedules.VPLinear{}}, 120, 2)
	p.Shape, p.Grid = []int{3, 8, 8}, nil
	r, err := samplers.USF{Schedule: samplers.UnifiedMultistep{Order: 3, Pred: schedules.X0, Relax: "bh2", Corrector: true}.Schedule(ts)}.Begin(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	drive(t, r, 10)
	if n := testing.AllocsPerRun(50, func() {
		if _, err := r.Next(ctx); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%g allocations per step", n)
	}
}

// TestUnifiedWeights: the weights of a linear multistep method reproduce the method that they were taken from, and the
// analytic first step on a model whose data are that mean changes nothing.
func TestUnifiedWeights(t *testing.T) {
	vp := mustTarget(t, "mix", `{"type":"vp-linear"}`, "eps")
	g := pvp(t, vp, 6)
	s := samplers.UnifiedMultistep{Order: 2, Pred: schedules.X0, Relax: "bh2"}.Schedule(gridTimes(g))
	w := s
	w.Steps = slices.Clone(s.Steps)
	for i := 1; i < 6; i++ {
		r := (g[i].Lambda() - g[i-1].Lambda()) / (g[i+1].Lambda() - g[i].Lambda())
		w.Steps[i].Derivs, w.Steps[i].Weights = nil, []float64{1 + 0.5/r, -0.5 / r}
	}
	p := &samplers.Problem{Model: vp, Rows: make([]models.Row, 1), Start: models.Wrap([]float64{-0.4}, 1, 1)}
	a, _ := unified(t, s, p)
	b, _ := unified(t, w, p)
	if math.Abs(a[0]-b[0]) > 1e-12 {
		t.Errorf("with weights %.15g, with derivatives %.15g", b[0], a[0])
	}
	point, err := parseTarget(`{"type":"mixture","weights":[1],"means":[[0.5,-2]],"vars":[[1e-12,1e-12]],"process":{"type":"vp-linear"},"prediction":"x0"}`)
	if err != nil {
		t.Fatal(err)
	}
	q := &samplers.Problem{Model: models.Metered(point), Rows: make([]models.Row, 2), Start: models.Wrap([]float64{1, 2, -1, 0.3}, 2, 2)}
	plain, _ := unified(t, s, q)
	s.First, s.Mean = "mean", []float64{0.5, -2}
	first, res := unified(t, s, q)
	if g := gap(first, plain, 1e-6, 0); g > 1 || res.Stats.NFE != 5 {
		t.Errorf("analytic first step: %v in %g evaluations, asked for %v", first, res.Stats.NFE, plain)
	}
}

// TestUnifiedNoise: steps with noise are DDIM of that eta and the SDE form of DPM-Solver++(2M), and on a Gaussian, where
// the first-order step with full noise is known in closed form, the variance of the end follows it.
func TestUnifiedNoise(t *testing.T) {
	for process, prediction := range map[string]string{`{"type":"vp-linear"}`: "eps", `{"type":"edm"}`: "x0", `{"type":"flow"}`: "velocity"} {
		d, err := parseTarget(fmt.Sprintf(ring, process, prediction))
		if err != nil {
			t.Fatal(err)
		}
		p := problem(t, d, 6, 3)
		p.Grid = ratios(t, d, []float64{40, 8, 3, 1, 0.4, 0.1, 0.02})
		for name, spoil := range map[string]func(i int, st *samplers.SolverStep){
			"ddim:eta=0.6": func(_ int, st *samplers.SolverStep) { st.Noise = 0.6 },
			"euler-ancestral": func(i int, st *samplers.SolverStep) {
				st.Noise, st.Pred = 1, []schedules.Kind{schedules.X0, schedules.Eps}[i%2]
			},
			"dpmpp-2m-sde:lower-order-final=false": func(i int, st *samplers.SolverStep) {
				st.Noise, st.Weights = 1, []float64{1}
				if i > 0 {
					half := (p.Grid[i+1].Lambda() - p.Grid[i].Lambda()) / (p.Grid[i].Lambda() - p.Grid[i-1].Lambda()) / 2
					st.Order, st.Weights = 2, []float64{1 + half, -half}
				}
			},
		} {
			want, _, err := sample(t, name, p)
			if err != nil {
				t.Fatal(name, err)
			}
			s := samplers.UnifiedMultistep{Order: 1, Pred: schedules.X0}.Schedule(gridTimes(p.Grid))
			for i := range s.Steps {
				spoil(i, &s.Steps[i])
			}
			have, _ := unified(t, s, p)
			if g := gap(have, want, 1e-9, 1e-9); g > 1 {
				t.Errorf("%s on %s: the unified steps differ by %.3g of 1e-9", name, process, g)
			}
		}
	}
	// Data N(0, v): x0 = v/(v + sb^2) xb is linear, so var' = (v(1-r)/(v+sb^2) + r)^2 var + up^2 with r = (sb'/sb)^2.
	const v, rows = 0.5, 20000
	d, err := parseTarget(`{"type":"mixture","weights":[1],"means":[[0]],"vars":[[0.5]],"process":{"type":"edm"},"prediction":"x0"}`)
	if err != nil {
		t.Fatal(err)
	}
	sb := []float64{10, 3, 1, 0.3}
	want := 100.0
	s := samplers.UnifiedMultistep{Order: 1, Pred: schedules.X0}.Schedule(gridTimes(ratios(t, d, sb)))
	for i := range s.Steps {
		s.Steps[i].Noise = 1
		r := sb[i+1] * sb[i+1] / sb[i] / sb[i]
		c := v*(1-r)/(v+sb[i]*sb[i]) + r
		want = c*c*want + sb[i+1]*sb[i+1]*(1-r)
	}
	p := &samplers.Problem{Model: models.Metered(d), Rows: make([]models.Row, rows), Shape: []int{1}}
	for i := range p.Rows {
		p.Rows[i].Seed = uint64(i)
	}
	x, _ := unified(t, s, p)
	have := 0.0
	for _, xi := range x {
		have += xi * xi / rows
	}
	if math.Abs(have/want-1) > 0.04 { // four standard errors
		t.Errorf("variance %g at the end, want %g", have, want)
	}
}

// TestUnifiedOnto0 goes to sigma 0 and starts at alpha 0.
func TestUnifiedOnto0(t *testing.T) {
	flow := mustTarget(t, "mix", `{"type":"flow"}`, "velocity")
	g := times(t, flow, []float64{1, 0.8, 0.5, 0.2, 0})
	p := &samplers.Problem{Model: flow, Grid: g, Rows: make([]models.Row, 1), Start: models.Wrap([]float64{-0.4}, 1, 1), Noise: samplers.Zero{}}
	want, _, err := sample(t, "ddim", p)
	if err != nil {
		t.Fatal(err)
	}
	s := samplers.UnifiedMultistep{Order: 1, Pred: schedules.X0}.Schedule(gridTimes(g))
	for range 2 {
		have, _ := unified(t, s, p)
		if math.Abs(have[0]-want[0]) > 1e-12 {
			t.Errorf("%v, ddim ends at %v", have, want)
		}
		s.Steps[2].Pred, s.Steps[3].Pred = schedules.Eps, schedules.Eps
	}
	for want, spoil := range map[string]func(s *samplers.SolverSchedule){
		"step 0: starts at a node without signal": func(s *samplers.SolverSchedule) { s.Steps[0].Pred = schedules.Eps },
		"step 1: point -2 is a node without signal": func(s *samplers.SolverSchedule) {
			s.Steps[1] = samplers.SolverStep{Order: 2, Pred: schedules.X0, Start: -1, Derivs: []samplers.Derivative{{Points: []int{-2}}}}
		},
		"step 3: goes to sigma 0": func(s *samplers.SolverSchedule) {
			s.Steps[3] = samplers.SolverStep{Order: 2, Pred: schedules.X0, Start: -1, Derivs: []samplers.Derivative{{Points: []int{-2}}}}
		},
		"step 3: adds noise at sigma 0":                      func(s *samplers.SolverSchedule) { s.Steps[3].Noise = 0.1 },
		"step 0: corrector: starts at a node without signal": func(s *samplers.SolverSchedule) { s.Steps[0].Corrector = samplers.Correct(s.Steps[0]) },
	} {
		bad := samplers.UnifiedMultistep{Order: 1, Pred: schedules.X0}.Schedule(gridTimes(g))
		spoil(&bad)
		if _, err := (samplers.USF{Schedule: bad}).Grid(schedules.Flow{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestUSFFile: a file gives back what was written, and bad files are refused with the line at fault.
func TestUSFFile(t *testing.T) {
	m := mixed(t)
	m.Schedule.First, m.Schedule.Mean = "mean", []float64{0.5}
	m.Schedule.Steps[1].Corrector.Implicit = true
	m.Schedule.Steps[4].Derivs, m.Schedule.Steps[4].Weights, m.Schedule.Steps[4].Noise = nil, []float64{1.2, -0.2}, 0.3
	text, err := m.File(map[string]any{"model": "x", "score": 0.1})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s.json")
	if err := os.WriteFile(path, text, 0o666); err != nil {
		t.Fatal(err)
	}
	again, ok := mustParse(t, "usf:schedule="+path).(samplers.USF)
	if !ok {
		t.Fatal("not a USF")
	}
	if text2, err := again.File(map[string]any{"model": "x", "score": 0.1}); err != nil || !bytes.Equal(text, text2) {
		t.Errorf("written again it differs (%v):\n%s\n%s", err, text, text2)
	}
	if s := mustParse(t, "@"+path); !slices.Equal(s.(samplers.USF).Schedule.Times, m.Schedule.Times) {
		t.Error("@FILE is another schedule")
	}
	var bare samplers.SolverSchedule
	if err := json.Unmarshal([]byte(`{"timesteps":[1,0.5],"steps":[{"order":1,"pred":"eps"}],"afs":"no_afs"}`), &bare); err != nil || len(bare.Steps) != 1 || bare.Steps[0].Start != -1 {
		t.Errorf("a schedule alone: %v, %+v", err, bare)
	}

	for want, edit := range map[string][2]string{
		"line 2: unknown key \"ordr\" in a step; did you mean order":               {`{"order": 1, "pred": "x0", "start": -1, "derivs": []`, `{"ordr": 1, "pred": "x0", "start": -1, "derivs": []`},
		"line 3: step 1: order 3 is above the history: 2 nodes":                    {`{"order": 2, "pred": "eps", "derivs": [{"points": [-2]}]`, `{"order": 3, "pred": "eps", "derivs": [{"points": [-2]},{"points": [-2,-3]}]`},
		"line 5: step 2: point -4 is outside the history":                          {`"coef": 0.1}, {"k": 2, "points": [-2, -3]}`, `"coef": 0.1}, {"k": 2, "points": [-2, -4]}`},
		"line 5: unknown relaxation sometimes":                                     {`"relax": "linear", "coef": 0.1`, `"relax": "sometimes", "coef": 0.1`},
		"line 5: 0.1e999 is not a finite number":                                   {`"coef": 0.1`, `"coef": 0.1e999`},
		"line 4: derivative k = 3 at place 2":                                      {`{"k": 2, "points": [-3, -1]}]}}`, `{"k": 3, "points": [-3, -1]}]}}`},
		"line 3: step 1: corrector: start -1, want -2 to -3":                       {`"order": 3, "start": -2,`, `"order": 3, "start": -1,`},
		"line 4: unknown key \"implicite\" in a corrector; did you mean implicit?": {`"order": 3, "start": -2,`, `"order": 3, "start": -2, "implicite": true,`},
		"line 1: timestep 3: 0.7 after 0.45: they must decrease":                   {`0.45, 0.25,`, `0.45, 0.7,`},
		"6 timesteps for 4 steps":                                                  {" {\"order\": 3, \"pred\": \"x0\", \"start\": -1, \"derivs\": [{\"k\": 1, \"points\": [-2, -3]}, {\"k\": 2, \"points\": [-2, -3]}]},\n", ""},
		"line 6: step 3: point -2 stands twice":                                    {`[{"k": 1, "points": [-2, -3]}, {"k": 2, "points": [-2, -3]}]`, `[{"k": 1, "points": [-2, -2]}, {"k": 2, "points": [-2, -3]}]`},
		"line 6: step 3: derivative 2 from 1 points":                               {`[{"k": 1, "points": [-2, -3]}, {"k": 2, "points": [-2, -3]}]`, `[{"k": 1, "points": [-2, -3]}, {"k": 2, "points": [-2]}]`},
		"line 6: step 3: derivative 2 is relaxed":                                  {`[{"k": 1, "points": [-2, -3]}, {"k": 2, "points": [-2, -3]}]`, `[{"k": 1, "points": [-2, -3]}, {"k": 2, "points": [-2, -3], "relax": "bh1"}]`},
		"line 7: unknown prediction \"v3\"":                                        {`{"order": 2, "pred": "eps", "start": -1`, `{"order": 2, "pred": "v3", "start": -1`},
		"line 7: step 4 has no pred":                                               {`{"order": 2, "pred": "eps", "start": -1`, `{"order": 2, "start": -1`},
		"line 8: unknown key \"proces\"; did you mean process?":                    {`"process"`, `"proces"`},
		"line 8: unknown process \"vp-liner\"":                                     {`"vp-linear"`, `"vp-liner"`},
		"is given twice":                                                           {`"provenance":`, `"process":`},
		"line 2: step 0: order 0, want 1 to 6":                                     {`{"order": 1, "pred": "x0", "start": -1, "derivs": []`, `{"order": 0, "pred": "x0", "start": -1, "derivs": []`},
		"line 2: 1.5 is not an integer":                                            {`{"order": 1, "pred": "x0", "start": -1, "derivs": []`, `{"order": 1.5, "pred": "x0", "start": -1, "derivs": []`},
		"line 7: step 4: the last step has a corrector":                            {`"coef": -0.05}]}`, `"coef": -0.05}], "corrector": {"order": 1}}`},
		"line 7: step 4: derivs and weights exclude":                               {`"coef": -0.05}]}`, `"coef": -0.05}], "weights": [1, 0]}`},
		"line 7: step 4: noise 1.5, want 0 to 1":                                   {`"coef": -0.05}]}`, `"coef": -0.05}], "noise": 1.5}`},
		"line 3: step 1: noise and a corrector":                                    {`{"order": 2, "pred": "eps",`, `{"order": 2, "noise": 0.5, "pred": "eps",`},
		"line 1: unknown key \"time\"":                                             {`"timesteps"`, `"time"`},
		"unknown afs sometimes":                                                    {`{"timesteps"`, `{"afs": "sometimes", "timesteps"`},
		"afs mean without a mean":                                                  {`{"timesteps"`, `{"afs": "mean", "timesteps"`},
	} {
		text := strings.Replace(mixedFile, edit[0], edit[1], 1)
		if text == mixedFile {
			t.Fatalf("the edit for %q changes nothing", want)
		}
		_, err := samplers.ParseUSF("bad.json", []byte(text))
		var refused *refuse.Error
		if want == "is given twice" { // the scanner's own words
			want = "process"
		}
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "bad.json: ") {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	for in, want := range map[string]string{"usf": "want schedule=FILE", "usf:schedule=/no/such/file": "no such file", "usf:schedule=x,steps=3": "unknown option"} {
		if _, err := samplers.Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): %v, want %q", in, err, want)
		}
	}

	// The wrong model, and another grid.
	for name, d := range targets(t) {
		p := problem(t, d, 4, 1)
		p.Grid = nil
		_, err := mixed(t).Begin(context.Background(), p)
		if name == "vp-linear" {
			if err != nil {
				t.Error(err)
			}
			p.Grid = problem(t, d, 5, 1).Grid
			if _, err := mixed(t).Begin(context.Background(), p); err == nil || !strings.Contains(err.Error(), "node 1 of the grid") {
				t.Errorf("on another grid: %v", err)
			}
			p.Grid = p.Grid[:3]
			if _, err := mixed(t).Begin(context.Background(), p); err == nil || !strings.Contains(err.Error(), "3 nodes, the schedule 6") {
				t.Errorf("on a short grid: %v", err)
			}
			p.Grid, p.First, p.Start = nil, 2, models.New(1, 3)
			if _, err := samplers.Sample(context.Background(), mixed(t), p); err == nil || !strings.Contains(err.Error(), "the run started in the middle") {
				t.Errorf("from the middle: %v", err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), "made for process") {
			t.Errorf("on %s: %v", name, err)
		}
	}
}

// FuzzParseUSF: whatever the bytes, the parser refuses or gives a schedule that passes its own check and survives being
// written.
func FuzzParseUSF(f *testing.F) {
	f.Add([]byte(mixedFile))
	f.Add([]byte(`{"timesteps":[1,0.5,0.1],"steps":[{"order":1,"pred":"x0"},{"order":2,"pred":"x0","weights":[1.5,-0.5]}],"afs":"mean","mean":[0]}`))
	f.Add([]byte(`{"schedule":{"timesteps":[],"steps":[]}}`))
	f.Add([]byte(`{"steps":[{"corrector":{"derivs":[{"points":[-99999999999]}]}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := samplers.ParseUSF("f", text)
		if err != nil {
			var refused *refuse.Error
			if !errors.As(err, &refused) {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		if err := m.Schedule.Check(); err != nil {
			t.Fatal(err)
		}
		out, err := m.File(nil)
		if err != nil {
			t.Fatal(err)
		}
		again, err := samplers.ParseUSF("f", out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if out2, err := again.File(nil); err != nil || !bytes.Equal(out, out2) {
			t.Fatalf("%v\n%s\n%s", err, out, out2)
		}
	})
}
