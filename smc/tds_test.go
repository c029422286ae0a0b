package smc

import (
	"bytes"
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// likelihood is the twist log N(y; x0, v + Var) of one coordinate, Var the variance of the estimate under N(0, 1), or 0.
func likelihood(y, v float64, post bool) Twist {
	return func(_ context.Context, x0 *tensor.Dense, at *Look, grad *tensor.Dense) ([]float64, error) {
		s := v
		if n := at.At; post && !at.Last {
			s += n.Sigma * n.Sigma / (n.Alpha*n.Alpha + n.Sigma*n.Sigma)
		}
		out := make([]float64, len(at.Rows))
		for k, x := range models.Data(x0) {
			out[k] = -0.5*math.Log(2*math.Pi*s) - 0.5*(y-x)*(y-x)/s
			if grad != nil {
				models.Data(grad)[k] = (y - x) / s
			}
		}
		return out, nil
	}
}

// listed is step noise from a list, one number per row.
type listed []float64

func (l listed) Normal(dst []float64, d samplers.Draw) { dst[0] = l[d.Slot] }

func TestTDSGoldens(t *testing.T) {
	n := 0
	for _, g := range goldens(t, "fk.json") {
		if g.Kind != "golden" || g.Method != "tds" {
			continue
		}
		n++
		in := decode[struct {
			AlphaT float64 `json:"alpha_t"`
			AlphaS float64 `json:"alpha_s"`
			X      []float64
			Noise  []float64
			Y      float64
			VarY   float64 `json:"var_y"`
		}](t, g.Inputs)
		want := decode[struct {
			LogTwist []float64 `json:"log_twist"`
			X        []float64 `json:"x_next"`
			Inc      []float64 `json:"log_increment"`
		}](t, g.Expected)
		opt := decode[struct {
			V string `json:"twist_variance"`
		}](t, g.Options)
		node := func(a float64) schedules.Node {
			return schedules.Node{T: 500 * (1 - a), Alpha: a, Sigma: math.Sqrt(1 - a*a)}
		}
		p := &samplers.Problem{Model: normal01(t), Grid: schedules.Grid{node(in.AlphaT), node(in.AlphaS), {Alpha: 1}}, Rows: Rows(seeds(1), len(in.X)), Start: models.Wrap(in.X, len(in.X), 1), Noise: listed(in.Noise)}
		run, err := TDS{Twist: likelihood(in.Y, in.VarY, opt.V != "var_y"), Large: true, Policy: Policy{When: Never}}.Begin(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := run.Next(context.Background()); err != nil {
			t.Fatal(err)
		}
		r := run.(*TDSRun)
		g.close(t, "x_next", models.Data(r.x), want.X)
		lw := make([]float64, len(want.Inc))
		for k := range lw {
			lw[k] = want.LogTwist[k] + want.Inc[k]
		}
		g.close(t, "log_weights", r.pop.LW, lw)
	}
	if n != 2 {
		t.Errorf("%d cases, want 2", n)
	}
}

func TestTDSFixtures(t *testing.T) {
	n := 0
	for _, g := range goldens(t, "fk.json") {
		if g.Kind != "statistical" || g.Method != "tds" {
			continue
		}
		n++
		opt := decode[struct {
			Steps, Particles int
			Policy           string
			Y                float64
			VarY             float64 `json:"var_y"`
			V                string  `json:"twist_variance"`
		}](t, g.Options)
		runs := max(8, min(g.Runs, 20_000/opt.Particles/10))
		if isSlow() {
			runs = g.Runs
		}
		when := Adaptive
		if opt.Policy == "every" {
			when = Always
		}
		res := sample(t, TDS{Twist: likelihood(opt.Y, opt.VarY, opt.V != "var_y"), Large: true, Policy: Policy{When: when}},
			&samplers.Problem{Model: normal01(t), Grid: world(opt.Steps), Rows: Rows(seeds(runs), opt.Particles), Shape: []int{1}})
		got := tally{}
		for _, group := range res.Run.(*TDSRun).Groups() {
			w, err := Weigh(res.LogWeights[group.From:group.To])
			if err != nil {
				t.Fatal(err)
			}
			mean := 0.0
			for i, v := range w.W {
				mean += v * models.Data(res.X)[group.From+i]
			}
			got.add("mean", mean)
			got.add("log_Z", group.LogZ)
			got.add("Z", math.Exp(group.LogZ+2.6305103088617776))
		}
		t.Run(g.Name, func(t *testing.T) {
			for _, s := range g.Stats {
				m, sd := 0.0, 0.0
				switch {
				case strings.Contains(s.Stat, "particle mean"):
					m, _ = got.mean("mean")
				case strings.Contains(s.Stat, "exp(log_Z"):
					m, _ = got.mean("Z")
				case strings.HasPrefix(s.Stat, "standard deviation"):
					_, sd = got.mean("log_Z")
					m = sd
				default:
					m, _ = got.mean("log_Z")
				}
				s.hold(t, m, runs)
			}
		})
	}
	if n != 5 {
		t.Errorf("%d cases, want 5", n)
	}
}

// TestTDS: a twist by a reward samples the tilt in several dimensions with either gradient; no twist at all is the plain
// step; groups may be split over batches; saved runs go on.
func TestTDS(t *testing.T) {
	ctx := context.Background()
	mix := mixture(t, analytic.Target{Weights: []float64{0.4, 0.6}, Means: [][]float64{{-1, 0.5}, {1.5, -0.5}}, Vars: [][]float64{{0.25, 0.3}, {0.25, 0.2}}})
	a := []float64{1, -0.5}
	twist := func(_ context.Context, x0 *tensor.Dense, at *Look, grad *tensor.Dense) ([]float64, error) {
		out := make([]float64, len(at.Rows))
		for i, v := range models.Data(x0) {
			out[i/2] += a[i%2] * v
			if grad != nil {
				models.Data(grad)[i] = a[i%2]
			}
		}
		return out, nil
	}
	logZ, mean, _ := tilted(mix, 1, a, false)
	for _, straight := range []bool{false, true} {
		tds := TDS{Twist: twist, Straight: straight}
		groups := 60
		p := &samplers.Problem{Model: mix, Grid: world(120), Rows: Rows(seeds(groups), 64), Shape: []int{2}}
		res := sample(t, tds, p)
		got := tally{}
		for _, g := range res.Run.(*TDSRun).Groups() {
			got.add("Z", math.Exp(g.LogZ-logZ))
			w, err := Weigh(res.LogWeights[g.From:g.To])
			if err != nil {
				t.Fatal(err)
			}
			m := 0.0
			for i, v := range w.W {
				m += v * models.Data(res.X)[2*(g.From+i)]
			}
			got.add("mean", m)
		}
		for name, want := range map[string]float64{"Z": 1, "mean": mean[0]} { // steps of 1/120 leave some per cent
			m, sd := got.mean(name)
			if slack := 0.05 + 4.5*sd/math.Sqrt(float64(groups)); math.Abs(m-want) > slack {
				t.Errorf("straight %v: %s %.4f, want %.4f within %.3f", straight, name, m, want, slack)
			}
			t.Logf("straight %v: %s %.4f, exact %.4f", straight, name, m, want)
		}
		// A batch of one group, saved in the middle.
		own := &samplers.Problem{Model: mix, Grid: p.Grid, Rows: Rows([]uint64{7}, 64), Shape: []int{2}}
		for _, at := range []int{0, 1, 60} {
			run, err := tds.Begin(ctx, own)
			if err != nil {
				t.Fatal(err)
			}
			for range at {
				if _, err := run.Next(ctx); err != nil {
					t.Fatal(err)
				}
			}
			var b bytes.Buffer
			if err := run.(samplers.Saver).Save(&b); err != nil {
				t.Fatal(err)
			}
			if run, err = samplers.Resume(ctx, tds, own, &b); err != nil {
				t.Fatal(err)
			}
			rest, err := samplers.Drive(ctx, run, own)
			if err != nil {
				t.Fatal(err)
			}
			g := groupOf(t, res.Run.(*TDSRun).Groups(), 7)
			for i, v := range models.Data(rest.X) {
				if v != models.Data(res.X)[2*g.From+i] {
					t.Fatalf("saved at %d: element %d is %g, in one go %g", at, i, v, models.Data(res.X)[2*g.From+i])
				}
			}
			if last := run.(*TDSRun).Groups()[0]; last.LogZ != g.LogZ {
				t.Errorf("saved at %d: log Z %g, in one go %g", at, last.LogZ, g.LogZ)
			}
		}
	}
	none := func(_ context.Context, _ *tensor.Dense, at *Look, grad *tensor.Dense) ([]float64, error) {
		if grad != nil {
			clear(models.Data(grad))
		}
		return make([]float64, len(at.Rows)), nil
	}
	res := sample(t, TDS{Twist: none, Policy: Policy{When: Always}}, &samplers.Problem{Model: mix, Grid: world(20), Rows: Rows(seeds(3), 5), Shape: []int{2}})
	for _, g := range res.Run.(*TDSRun).Groups() {
		if g.LogZ != 0 || g.Resampled != 0 {
			t.Errorf("no twist: %+v", g)
		}
	}
	bad := errors.New("gone")
	calls := 0
	flaky := func(ctx context.Context, x0 *tensor.Dense, at *Look, grad *tensor.Dense) ([]float64, error) {
		if calls++; calls == 5 {
			return nil, bad
		}
		return twist(ctx, x0, at, grad)
	}
	p := &samplers.Problem{Model: mix, Grid: world(12), Rows: Rows(seeds(2), 8), Shape: []int{2}}
	whole := sample(t, TDS{Twist: twist}, p)
	run, err := TDS{Twist: flaky}.Begin(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := samplers.Drive(ctx, run, p); !errors.Is(err, bad) {
		t.Fatalf("a failing twist: %v", err)
	}
	again, err := samplers.Drive(ctx, run, p)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range models.Data(again.X) {
		if v != models.Data(whole.X)[i] {
			t.Fatal("a step was made twice after the twist failed")
		}
	}
	if _, err := (TDS{Twist: twist}).Begin(ctx, &samplers.Problem{Model: plain{mix}, Grid: world(5), Rows: Rows(seeds(1), 2), Shape: []int{2}}); err == nil || !strings.Contains(err.Error(), "gradients") {
		t.Errorf("a model without gradients: %v", err)
	}
}

// plain hides what a model can beyond Predict.
type plain struct{ m models.Denoiser }

func (p plain) Process() schedules.Process { return p.m.Process() }
func (p plain) Predict(ctx context.Context, q *models.Query, a *models.Pred) error {
	return p.m.Predict(ctx, q, a)
}

func groupOf(t *testing.T, all []Group, seed uint64) Group {
	t.Helper()
	for _, g := range all {
		if g.Seed == seed {
			return g
		}
	}
	t.Fatalf("no group of seed %d", seed)
	return Group{}
}

// TestGradientAlone: without weights the twisted proposal is diffusion posterior sampling, which misses: with a twist that
// trusts the estimate the mean of N(0, 1) observed as 2 with variance 0.25 is about 1.967 with variance 0.127, not 1.6 and 0.2;
// the weights make it right.
func TestGradientAlone(t *testing.T) {
	groups := 4000
	res := sample(t, TDS{Twist: likelihood(2, 0.25, false), Large: true, Policy: Policy{When: Never}},
		&samplers.Problem{Model: normal01(t), Grid: world(100), Rows: Rows(seeds(groups), 1), Shape: []int{1}})
	got := tally{}
	for _, v := range models.Data(res.X) {
		got.add("x", v)
	}
	m, sd := got.mean("x")
	if math.Abs(m-1.967) > 0.03 || math.Abs(sd*sd-0.127) > 0.015 {
		t.Errorf("mean %.4f and variance %.4f, want 1.967 and 0.127", m, sd*sd)
	}
}
