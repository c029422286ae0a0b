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
	"time"

	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// every lists one string per registered sampler, and variants that have code of their own.
func every() []string {
	var out []string
	for _, i := range samplers.List() {
		if i.Name == "usf" || i.Name == "ltsp-ghvb" { // need a file or a guided model: their tests are their own
			continue
		}
		out = append(out, i.Name)
	}
	return append(out, "unipc:order=3", "unipc:predict=eps", "heun:churn=10", "dpmpp-3s:grid-points=all", "dpmpp-3m-sde:variant=diffusers",
		"sa:predictor=3,corrector=3", "deis:basis=time", "rk4:variable=time", "dpm-2:churn=5", "hb:beta=0.7",
		"hb:base=dpmpp-2m", "hb:base=dpmpp-2m,init=model", "hb:base=unipc3-bh1,beta=0.5", "hb:base=unipc2,variant=parity")
}

// exists tells whether s can be parsed (variants of samplers that this build may lack are left out of every).
func known(s string) bool { _, err := samplers.Parse(s); return err == nil }

var ring = `{"type":"mixture","weights":[0.25,0.25,0.25,0.25],"means":[[1,0,0.5],[0,1,-0.5],[-1,0,0],[0,-1,1]],"vars":[[0.05,0.1,0.2],[0.05,0.1,0.1],[0.1,0.1,0.1],[0.2,0.05,0.1]],"process":%s,"prediction":%q}`

func problem(t testing.TB, d models.Denoiser, steps, rows int) *samplers.Problem {
	t.Helper()
	name := schedules.DefaultGrid(d.Process())
	g, err := schedules.NewGrid(gauss(d), name, steps, schedules.Ends{Final: "zero"})
	if err != nil {
		t.Fatal(err)
	}
	p := &samplers.Problem{Model: d, Grid: g, Shape: []int{3}}
	for k := range rows {
		p.Rows = append(p.Rows, models.Row{Seed: uint64(100 + k)})
	}
	return p
}

func targets(t testing.TB) map[string]models.Denoiser {
	out := map[string]models.Denoiser{}
	for process, prediction := range map[string]string{`{"type":"vp-linear"}`: "eps", `{"type":"edm"}`: "x0", `{"type":"flow"}`: "velocity", `{"type":"vp-discrete"}`: "v"} {
		m, err := parseTarget(fmt.Sprintf(ring, process, prediction))
		if err != nil {
			t.Fatal(err)
		}
		out[m.Process().Name()] = models.Metered(m)
	}
	return out
}

func sample(t testing.TB, s string, p *samplers.Problem) ([]float64, *samplers.Result, error) {
	t.Helper()
	m, err := samplers.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	res, err := samplers.Sample(context.Background(), m, p)
	if err != nil {
		return nil, res, err
	}
	return slices.Clone(models.Data(res.X)), res, nil
}

// refused tells whether a sampler may refuse a process by name: the noise forms cannot start from a node without signal.
func refused(err error) bool { return err != nil && strings.Contains(err.Error(), "alpha = 0") }

// TestEverySamplerEverywhere runs every sampler on every process in 1, 2, 3 and 7 steps: the result is finite, the count
// of evaluations is the announced one, two runs of one sampler value agree, and rows do not know of each other: a batch
// of four gives the bits of four batches of one.
func TestEverySamplerEverywhere(t *testing.T) {
	for process, d := range targets(t) {
		for _, s := range every() {
			if !known(s) {
				continue
			}
			for _, steps := range []int{1, 2, 3, 7} {
				p := problem(t, d, steps, 4)
				x, res, err := sample(t, s, p)
				if refused(err) {
					break
				}
				if steps == 1 && err != nil && strings.Contains(err.Error(), "set nfe") {
					continue // two ends do not say how many evaluations to make
				}
				if err != nil {
					t.Errorf("%s on %s, %d steps: %v", s, process, steps, err)
					continue
				}
				m := mustParse(t, s)
				if !m.Needs().OwnGrid {
					if want := samplers.NFE(m, p.Grid); res.Stats.NFE != float64(want) {
						t.Errorf("%s on %s, %d steps: %g evaluations, announced %d", s, process, steps, res.Stats.NFE, want)
					}
				}
				again, _, err := sample(t, s, p)
				if err != nil || !slices.Equal(x, again) {
					t.Errorf("%s on %s, %d steps: a second run differs", s, process, steps)
				}
				for k := range 4 {
					one := *p
					one.Rows = p.Rows[k : k+1]
					xk, _, err := sample(t, s, &one)
					if err != nil || !slices.Equal(xk, x[3*k:3*k+3]) {
						t.Errorf("%s on %s, %d steps: row %d alone gives %v, in the batch %v (%v)", s, process, steps, k, xk, x[3*k:3*k+3], err)
					}
				}
			}
		}
	}
}

// TestCancel stops a run in the middle: the state after the step under way comes back with the context's error.
func TestCancel(t *testing.T) {
	d := targets(t)["vp-linear"]
	for _, s := range every() {
		if !known(s) {
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		p := problem(t, d, 12, 2)
		p.Observe = func(st *samplers.State) error {
			if st.I == 2 {
				cancel()
			}
			return nil
		}
		res, err := samplers.Sample(ctx, mustParse(t, s), p)
		if refused(err) {
			continue
		}
		if !errors.Is(err, context.Canceled) || res == nil || res.Stats.Steps != 2 {
			t.Errorf("%s: cancelled after step 2: %v, %+v", s, err, res)
		}
		cancel()
	}
}

// frozen hides the abilities that a resumed or selected run must not need: it counts as any other Denoiser.
func drive(t *testing.T, run samplers.Run, upTo int) {
	t.Helper()
	for range upTo {
		if _, err := run.Next(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSaveResume saves every run in its middle, goes on from the bytes, and gets the bits of an undisturbed run.
func TestSaveResume(t *testing.T) {
	d := targets(t)["vp-discrete"]
	for _, s := range every() {
		if !known(s) {
			continue
		}
		m := mustParse(t, s)
		p := problem(t, d, 9, 3)
		want, _, err := sample(t, s, p)
		if refused(err) {
			continue
		}
		if err != nil {
			t.Fatal(s, err)
		}
		run, err := m.Begin(context.Background(), p)
		if err != nil {
			t.Fatal(s, err)
		}
		for k := range 9 {
			saver, ok := run.(samplers.Saver)
			if !ok {
				break
			}
			var buf bytes.Buffer
			if k == 5 { // with a prediction made ahead
				if pk, ok := run.(samplers.Peeker); ok {
					if _, err := pk.Peek(context.Background()); err != nil {
						t.Fatal(s, err)
					}
				}
			}
			if err := saver.Save(&buf); err != nil {
				t.Fatal(s, err)
			}
			again, err := samplers.Resume(context.Background(), m, p, &buf)
			if err != nil {
				t.Errorf("%s: resume at step %d: %v", s, k, err)
				break
			}
			for done := false; !done; {
				if done, err = again.Next(context.Background()); err != nil {
					t.Fatal(s, err)
				}
			}
			if have := models.Data(again.State().X); !slices.Equal(have, want) {
				t.Errorf("%s: resumed at step %d: %v, want %v", s, k, have, want)
				break
			}
			if done, err := run.Next(context.Background()); err != nil || done {
				break
			}
		}
	}
	if _, err := samplers.Resume(context.Background(), mustParse(t, "euler"), problem(t, d, 3, 1), strings.NewReader("not a run")); err == nil {
		t.Error("resumed from rubbish")
	}
}

// TestSelect re-indexes runs in their middle, history and all: without noise, row j goes on bit for bit as its parent
// would have; the batch may grow and shrink.
func TestSelect(t *testing.T) {
	d := targets(t)["vp-linear"]
	for _, s := range every() {
		if !known(s) || mustParse(t, s).Needs().OwnGrid {
			continue
		}
		p := problem(t, d, 8, 3)
		p.Noise = noNoise{}
		want, _, err := sample(t, s, p)
		if refused(err) {
			continue
		}
		if err != nil {
			t.Fatal(s, err)
		}
		for at := 1; at < 8; at++ {
			run, err := mustParse(t, s).Begin(context.Background(), p)
			if err != nil {
				t.Fatal(err)
			}
			drive(t, run, at)
			sel, ok := run.(samplers.Selector)
			if !ok {
				t.Errorf("%s cannot select", s)
				break
			}
			if at%2 == 0 {
				if _, err := run.(samplers.Peeker).Peek(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			parents := []int{2, 0, 0, 1, 2}
			if err := sel.Select(parents, make([]models.Row, 5)); err != nil {
				t.Fatal(err)
			}
			if err := sel.Select([]int{0, 1, 3}, make([]models.Row, 3)); err != nil {
				t.Fatal(err)
			}
			for done := false; !done; {
				if done, err = run.Next(context.Background()); err != nil {
					t.Fatal(s, err)
				}
			}
			have := models.Data(run.State().X)
			for j, k := range []int{2, 0, 1} {
				if !slices.Equal(have[3*j:3*j+3], want[3*k:3*k+3]) {
					t.Errorf("%s: after Select at step %d row %d is %v, its parent ends at %v", s, at, j, have[3*j:3*j+3], want[3*k:3*k+3])
				}
			}
		}
	}
	run, _ := mustParse(t, "euler").Begin(context.Background(), problem(t, d, 4, 3))
	for _, bad := range [][]int{{0, 1}, {0, 1, 3}, {-1, 0, 1}, {}} {
		if err := run.(samplers.Selector).Select(bad, nil); err == nil {
			t.Errorf("Select(%v) of three rows went through", bad)
		}
	}
}

// noNoise draws the start from the streams and no step noise.
type noNoise struct{}

func (noNoise) Normal(dst []float64, d samplers.Draw) {
	clear(dst)
	if d.Purpose == samplers.DrawStart {
		samplers.Streams{}.Normal(dst, d)
	}
}

// TestPeek asks ahead before every step: the result and the count of evaluations stay the same.
func TestPeek(t *testing.T) {
	d := targets(t)["flow"]
	for _, s := range every() {
		if !known(s) || mustParse(t, s).Needs().OwnGrid || strings.Contains(s, "churn") {
			continue
		}
		p := problem(t, d, 6, 2)
		want, res, err := sample(t, s, p)
		if refused(err) {
			continue
		}
		if err != nil {
			t.Fatal(s, err)
		}
		p.Meter = &models.Meter{}
		run, err := mustParse(t, s).Begin(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		for done := false; !done; {
			if run.State().At.Sigma > 0 {
				a, err := run.(samplers.Peeker).Peek(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if b, _ := run.(samplers.Peeker).Peek(context.Background()); a != b {
					t.Errorf("%s: a second Peek is another prediction", s)
				}
			}
			if done, err = run.Next(context.Background()); err != nil {
				t.Fatal(s, err)
			}
		}
		if have := models.Data(run.State().X); !slices.Equal(have, want) {
			t.Errorf("%s: with Peek %v, without %v", s, have, want)
		}
		if have := float64(p.Meter.Evals()) / 2; have != res.Stats.NFE {
			t.Errorf("%s: with Peek %g evaluations, without %g", s, have, res.Stats.NFE)
		}
	}
}

// TestSet changes eta in a run: eta = 0 from the first step on is the run without noise.
func TestSet(t *testing.T) {
	d := targets(t)["edm"]
	for _, s := range []string{"euler-ancestral", "ddim:eta=1", "dpm-2-ancestral", "dpmpp-2s-ancestral", "dpmpp-sde", "dpmpp-2m-sde", "dpmpp-3m-sde"} {
		p := problem(t, d, 6, 2)
		name, _, _ := strings.Cut(s, ":")
		want, _, err := sample(t, name+":eta=0", p)
		if err != nil {
			t.Fatal(err)
		}
		run, err := mustParse(t, s).Begin(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		set := run.(samplers.Setter)
		if err := set.Set("eta", 0); err != nil {
			t.Fatal(err)
		}
		drive(t, run, 6)
		if have := models.Data(run.State().X); !slices.Equal(have, want) {
			t.Errorf("%s set to eta 0: %v, want %v", s, have, want)
		}
		if err := set.Set("no-such-option", 1); err == nil {
			t.Errorf("%s: an unknown option was set", s)
		}
		if err := set.Set("eta", math.NaN()); err == nil {
			t.Errorf("%s: eta NaN was set", s)
		}
	}
}

// TestTransition: the last step is mean + std z with the row's own noise.
func TestTransition(t *testing.T) {
	d := targets(t)["edm"]
	p := problem(t, d, 6, 2)
	run, err := mustParse(t, "euler-ancestral").Begin(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	drive(t, run, 3)
	mean, std, err := run.(samplers.Transitioner).Transition()
	if err != nil {
		t.Fatal(err)
	}
	s, to := p.Grid[2], p.Grid[3]
	if want := to.Sigma * math.Sqrt(1-sq(to.Ratio()/s.Ratio())); math.Abs(std-want) > 1e-12*want {
		t.Errorf("std %g, want %g", std, want)
	}
	z := make([]float64, 3)
	for k := range 2 {
		samplers.Streams{}.Normal(z, samplers.Draw{Row: p.Rows[k], Slot: k, Step: 2, Purpose: samplers.DrawStep, From: s.Ratio(), To: to.Ratio()})
		for j := range 3 {
			x := models.Data(run.State().X)[3*k+j]
			if d := math.Abs(models.Data(mean)[3*k+j] + std*z[j] - x); d > 1e-12 {
				t.Errorf("row %d: mean + std z misses x by %g", k, d)
			}
		}
	}
}

// TestRisingGrid goes up in noise in the middle of a run: the hop is the forward process, costs nothing, and the
// history of before is dropped.
func TestRisingGrid(t *testing.T) {
	d := targets(t)["vp-linear"]
	sb := []float64{80, 20, 5, 2, 0.5, 3, 1, 0.2, 0.2, 0}
	g := ratios(t, d, sb)
	for _, s := range every() {
		if !known(s) || mustParse(t, s).Needs().OwnGrid {
			continue
		}
		p := problem(t, d, 3, 2)
		p.Grid = g
		if _, _, err := sample(t, s, p); err != nil && !refused(err) {
			t.Errorf("%s on a rising grid: %v", s, err)
		}
	}
	// After the hop a multistep solver starts over: the rest of the run equals a run begun there.
	p := problem(t, d, 3, 2)
	p.Grid = g
	var at []float64
	p.Observe = func(st *samplers.State) error {
		if st.I == 5 {
			at = slices.Clone(models.Data(st.X))
		}
		return nil
	}
	want, res, err := sample(t, "dpmpp-2m:lower-order-final=false", p)
	if err != nil {
		t.Fatal(err)
	}
	if res.Stats.NFE != 7 { // nine steps, one of them up and one of length zero
		t.Errorf("%g evaluations, want 7", res.Stats.NFE)
	}
	rest := problem(t, d, 3, 2)
	rest.Grid, rest.Start = g[5:], models.Wrap(at, 2, 3)
	have, _, err := sample(t, "dpmpp-2m:lower-order-final=false", rest)
	if err != nil || !slices.Equal(have, want) {
		t.Errorf("the run after the hop gives %v, a new run from there %v (%v)", want, have, err)
	}
}

// TestMiddle stops a run in the middle and starts another one from there: the first-order result is that of one run.
func TestMiddle(t *testing.T) {
	d := targets(t)["edm"]
	p := problem(t, d, 10, 2)
	want, _, err := sample(t, "euler-ancestral", p)
	if err != nil {
		t.Fatal(err)
	}
	a := *p
	a.Last = 4
	half, res, err := sample(t, "euler-ancestral", &a)
	if err != nil || res.At != p.Grid[4] {
		t.Fatal(err, res.At)
	}
	b := *p
	b.First, b.Start = 4, models.Wrap(half, 2, 3)
	have, _, err := sample(t, "euler-ancestral", &b)
	if err != nil || !slices.Equal(have, want) {
		t.Errorf("two halves give %v, one run %v (%v)", have, want, err)
	}
}

// TestNotFinite: a model that answers NaN stops the run with the step and the noise level.
func TestNotFinite(t *testing.T) {
	d := bad{targets(t)["edm"], 3}
	_, res, err := sample(t, "dpmpp-2m", problem(t, d, 8, 2))
	var nan *samplers.NotFinite
	if !errors.As(err, &nan) || nan.Step != 4 || nan.Row != 1 {
		t.Fatalf("error %v", err)
	}
	if res == nil || res.Stats.Steps != 4 {
		t.Errorf("what there is so far: %+v", res)
	}
}

type bad struct {
	models.Denoiser
	step int
}

func (b bad) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	err := b.Denoiser.Predict(ctx, q, p)
	if q.Step.I == b.step {
		models.Data(p.Out)[4] = math.NaN()
	}
	return err
}

// TestRefusals: a problem that cannot be is refused by name at Begin.
func TestRefusals(t *testing.T) {
	d := targets(t)["edm"]
	for name, spoil := range map[string]func(p *samplers.Problem){
		"a model that denoises": func(p *samplers.Problem) { p.Model = 7 },
		"at least one step":     func(p *samplers.Problem) { p.Grid = p.Grid[:1] },
		"no rows":               func(p *samplers.Problem) { p.Rows = nil },
		"shape of a row":        func(p *samplers.Problem) { p.Shape = nil },
		"from step 5 to 3":      func(p *samplers.Problem) { p.First, p.Last = 5, 3 },
		"the start has":         func(p *samplers.Problem) { p.Start = models.New(5, 3) },
		"sigma/alpha = -1":      func(p *samplers.Problem) { p.Grid = schedules.Grid{{Alpha: 1, Sigma: -1}, {Alpha: 1}} },
	} {
		p := problem(t, d, 6, 2)
		spoil(p)
		if _, _, err := sample(t, "euler", p); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want %q", err, name)
		}
	}
	p := problem(t, targets(t)["flow"], 6, 2)
	if _, _, err := sample(t, "dpm-solver-2m", p); !refused(err) {
		t.Errorf("the noise form started at alpha = 0: %v", err)
	}
}

// TestNames: peers' names find our samplers, with the schedule they imply; typing errors get suggestions.
func TestNames(t *testing.T) {
	for in, want := range map[string][2]string{
		"DPM++ 2M Karras": {"dpmpp-2m", "karras"}, "dpmpp_2m": {"dpmpp-2m", ""}, "DPMSolverMultistepScheduler": {"dpmpp-2m", ""}, "euler_a": {"euler-ancestral", ""},
		"Euler a": {"euler-ancestral", ""}, "DPM++ 3M SDE Exponential": {"dpmpp-3m-sde", "exponential"}, "uni_pc": {"unipc", ""}, "uni_pc_bh1": {"unipc:variant=bh1", ""},
		"DPM++ 2M SDE Heun Karras": {"dpmpp-2m-sde:solver=heun", "karras"}, "DPM++ 2M Polyexponential": {"dpmpp-2m", "polyexponential"}, "ddim_trailing": {"ddim", "trailing"},
		"DPM2 a Karras": {"dpm-2-ancestral", "karras"}, "dpm++2m_sde": {"dpmpp-2m-sde", ""}, "unipc:order=3": {"unipc:order=3", ""},
	} {
		s, g, err := samplers.Resolve(in)
		if err != nil || s != want[0] || g != want[1] {
			t.Errorf("Resolve(%q) = %q, %q, %v; want %q", in, s, g, err, want)
		}
	}
	for in, want := range map[string]string{"eular": "euler", "dpmpp-2mm": "dpmpp-2m", "unipc:ordre=3": "order", "unipc:order=99": "from 1 to 6", "": "empty"} {
		if _, err := samplers.Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): %v, want %q", in, err, want)
		}
	}
	for _, i := range samplers.List() {
		if i.Summary == "" || i.Source == "" || i.Order == "" || i.NFE == "" {
			t.Errorf("%s: the table says too little: %+v", i.Name, i)
		}
	}
}

// TestBrownian: with a Brownian path, refining the grid converges to one solution per seed (strong convergence); with
// independent draws it does not.
func TestBrownian(t *testing.T) {
	d := targets(t)["edm"]
	gap := func(noise samplers.Noise, n int) float64 {
		run := func(n int) []float64 {
			p := problem(t, d, n, 64)
			p.Noise = noise
			sb := make([]float64, n+1)
			for i := range sb {
				sb[i] = 10 * math.Pow(0.05/10, float64(i)/float64(n))
			}
			p.Grid = ratios(t, d, sb)
			x, _, err := sample(t, "dpmpp-2m-sde", p)
			if err != nil {
				t.Fatal(err)
			}
			return x
		}
		a, b := run(n), run(2*n)
		var s float64
		for i := range a {
			s += sq(a[i] - b[i])
		}
		return math.Sqrt(s / float64(len(a)))
	}
	path := samplers.Streams{Brownian: true}
	coarse, fine := gap(path, 20), gap(path, 160)
	if !(fine < coarse/2) || !(fine < 0.15) {
		t.Errorf("with a path the results of n and 2n steps differ by %.3g at n = 20 and %.3g at n = 160", coarse, fine)
	}
	if free := gap(samplers.Streams{}, 160); !(free > 3*fine) {
		t.Errorf("independent draws differ by %.3g, a path by %.3g: no difference seen", free, fine)
	}
}

// free is a model without cost or memory of its own.
type freeModel struct{ p schedules.Gaussian }

func (f freeModel) Process() schedules.Process { return f.p }
func (f freeModel) Predict(_ context.Context, q *models.Query, p *models.Pred) error {
	x, out := p.Fit(q.X, schedules.X0)
	for i, v := range x {
		out[i] = 0.5 * v
	}
	return nil
}

// TestNoAllocations: after the first steps a solver allocates nothing.
func TestNoAllocations(t *testing.T) {
	for _, s := range every() {
		if !known(s) || mustParse(t, s).Needs().OwnGrid {
			continue
		}
		m := freeModel{schedules.VPLinear{}}
		p := problem(t, m, 120, 2)
		p.Shape = []int{3, 8, 8}
		run, err := mustParse(t, s).Begin(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		drive(t, run, 10)
		if n := testing.AllocsPerRun(50, func() {
			if _, err := run.Next(context.Background()); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("%s: %g allocations per step", s, n)
		}
	}
}

// BenchmarkOverhead reports, for a batch of CIFAR size, the time that a step takes outside the model.
func BenchmarkOverhead(b *testing.B) {
	for _, s := range []string{"euler", "dpmpp-2m", "unipc:order=3", "dpmpp-2m-sde", "heun", "deis", "sa"} {
		b.Run(s, func(b *testing.B) {
			p := problem(b, freeModel{schedules.VPLinear{}}, 20, 16)
			p.Shape = []int{3, 32, 32}
			for b.Loop() {
				res, err := samplers.Sample(context.Background(), mustParse(b, s), p)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64((res.Stats.Wall-res.Stats.Model)/20)/float64(time.Microsecond), "us/step-outside")
			}
		})
	}
}

// TestResumeAfterSelect: a run saved after a Select goes on with the conditions of its rows' ancestors.
func TestResumeAfterSelect(t *testing.T) {
	m, err := parseTarget(`{"type":"mixture","weights":[0.5,0.5],"means":[[-1],[1]],"vars":[[0.01],[0.01]],"labels":[0,1],"process":{"type":"edm"},"prediction":"x0"}`)
	if err != nil {
		t.Fatal(err)
	}
	p := problem(t, models.Metered(m), 8, 2)
	p.Shape, p.Cond = []int{1}, &models.Cond{Classes: []int{0, 1}}
	run, err := mustParse(t, "dpmpp-2m").Begin(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	drive(t, run, 2)
	for range 2 { // twice: the second selection is of the first one's rows
		if err := run.(samplers.Selector).Select([]int{1, 1, 0}[:2], nil); err != nil {
			t.Fatal(err)
		}
	}
	var buf bytes.Buffer
	if err := run.(samplers.Saver).Save(&buf); err != nil {
		t.Fatal(err)
	}
	again, err := samplers.Resume(context.Background(), mustParse(t, "dpmpp-2m"), p, &buf)
	if err != nil {
		t.Fatal(err)
	}
	q := *p
	q.Meter = nil
	res, err := samplers.Drive(context.Background(), again, &q)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range models.Data(res.X) {
		if math.Abs(x-1) > 0.5 {
			t.Errorf("a row of class 1 ended at %g", x)
		}
	}
}
