package smc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"drift/internal/rng"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

func TestPotentialGoldens(t *testing.T) {
	for _, g := range goldens(t, "fk.json") {
		if g.Method != "fk-potential" {
			continue
		}
		o := decode[struct{ Potential, Terminal string }](t, g.Options)
		in := decode[struct {
			Rewards   [][]float64
			Ancestors [][]int `json:"ancestors_after_check"`
			Lambda    float64
			Init      float64 `json:"reward_init"`
		}](t, g.Inputs)
		want := decode[struct {
			Inc [][]float64 `json:"log_increment"`
			Sum []float64   `json:"log_product_after"`
		}](t, g.Expected)
		p, err := ParsePotential(o.Potential)
		if err != nil {
			t.Fatal(err)
		}
		k := len(in.Rewards[0])
		stat, paid := slices.Repeat([]float64{in.Init}, k), make([]float64, k)
		for c, rewards := range in.Rewards {
			inc := make([]float64, k)
			for i, r := range rewards {
				inc[i], stat[i] = p.pay(r, in.Lambda, stat[i], in.Init, paid[i], c == len(in.Rewards)-1, o.Terminal == "code")
				paid[i] += inc[i]
			}
			g.close(t, "increment", inc, want.Inc[c])
			if c < len(in.Ancestors) {
				stat, paid = gather(stat, in.Ancestors[c]), gather(paid, in.Ancestors[c])
			}
		}
		g.close(t, "product", paid, want.Sum)
	}
}

func TestPotentialEdges(t *testing.T) {
	dead, big := math.Inf(-1), 1e300
	for p := Difference; p <= None; p++ {
		// A path that was ruled out stays so, whatever it is worth later.
		if d, _ := p.pay(5, 2, dead, 0, dead, true, false); !math.IsInf(d, -1) {
			t.Errorf("%s: a dead path gains %g", p, d)
		}
		if d, _ := p.pay(dead, 2, 0, 0, 1, true, false); !math.IsInf(d, -1) {
			t.Errorf("%s: reward -Inf gives %g", p, d)
		}
		if d, _ := p.pay(dead, 0, 0, 0, 0, true, false); d != 0 {
			t.Errorf("%s: strength zero with reward -Inf gives %g", p, d)
		}
		if d, _ := p.pay(big, 2, p.start(), 0, 0, true, false); d != 2*big {
			t.Errorf("%s: a huge reward gives %g", p, d)
		}
	}
}

func TestRunGoldens(t *testing.T) {
	n := 0
	for _, g := range goldens(t, "fk.json") {
		if g.Method != "steer" || g.Kind != "golden" {
			continue
		}
		n++
		o := decode[struct {
			Policy, Wiring string
		}](t, g.Options)
		in := decode[struct {
			Alphas, Sigmas []float64
			X              [][]float64   `json:"x_init"`
			Noise          [][][]float64 `json:"noise"`
			U              []float64     `json:"systematic_U"`
			Reward         struct {
				Type string
				A    []float64
			}
			Lambda float64
			Checks []int
		}](t, g.Inputs)
		want := decode[struct {
			Steps []struct {
				Reward    []float64
				LW        []float64 `json:"log_weights"`
				ESS       float64
				Ancestors []int
				After     [][]float64 `json:"x_after"`
			}
			X     [][]float64
			LW    []float64 `json:"log_weights"`
			LogZ  float64   `json:"log_Z"`
			Roots []int
		}](t, g.Expected)
		mix, err := analytic.Parse(g.Target)
		if err != nil {
			t.Fatal(err)
		}
		k, d := len(in.X), mix.Dim()
		grid := make(schedules.Grid, len(in.Alphas))
		for i := range grid {
			grid[i] = schedules.Node{T: 500, Alpha: in.Alphas[i], Sigma: in.Sigmas[i]}
		}
		var flat []float64
		for _, step := range in.Noise {
			for _, row := range step {
				flat = append(flat, row...)
			}
		}
		noise, err := samplers.NewRecorded(models.Wrap(flat, len(in.Noise), k, d), len(in.Noise))
		if err != nil {
			t.Fatal(err)
		}
		reward := linear(in.Reward.A...)
		if in.Reward.Type == "quadratic" {
			reward = quadratic(in.Reward.A...)
		}
		seen := 0
		fk := FK{Base: samplers.DDIM{Eta: 1}, Reward: reward, Lambda: in.Lambda, Checks: in.Checks, Lagged: o.Wiring == "lagged"}
		if o.Policy == "every" {
			fk.Policy.When = Always
		}
		fk.Policy.uniforms = func(key rng.Key) Uniforms { return given(in.U[key.Step : key.Step+1]) }
		fk.Observe = func(c *Check) error {
			w := want.Steps[c.Step-1]
			seen++
			g.close(t, "reward", c.Rewards, w.Reward)
			g.close(t, "weights", c.Before, w.LW)
			g.close(t, "ESS", c.ESS, []float64{w.ESS})
			parents := c.Parents
			if parents == nil && w.Ancestors != nil { // equal weights are left alone
				parents = identity(k)
			}
			if !slices.Equal(parents, w.Ancestors) {
				t.Errorf("%s: step %d: ancestors %v, want %v", g.Name, c.Step, c.Parents, w.Ancestors)
			}
			return nil
		}
		res := sample(t, fk, &samplers.Problem{Model: mix, Grid: grid, Rows: Rows([]uint64{0}, k), Start: models.Wrap(slices.Concat(in.X...), k, d), Noise: noise})
		run := res.Run.(*Run)
		g.close(t, "x", models.Data(res.X), slices.Concat(want.X...))
		g.close(t, "final weights", res.LogWeights, want.LW)
		g.close(t, "log Z", []float64{run.Groups()[0].LogZ}, []float64{want.LogZ})
		if !slices.Equal(run.Roots(), want.Roots) || seen != len(in.Checks) {
			t.Errorf("%s: roots %v, want %v; %d checks", g.Name, run.Roots(), want.Roots, seen)
		}
	}
	if n < 4 {
		t.Errorf("only %d cases", n)
	}
}

// worldRun runs groups of k particles of the one-Gaussian world, and tallies per group.
func worldRun(t *testing.T, fk FK, steps, groups, k int, batch int) tally {
	t.Helper()
	mix := normal01(t)
	a := tally{}
	all := seeds(groups)
	for len(all) > 0 {
		now := all[:min(batch, len(all))]
		all = all[len(now):]
		res := sample(t, fk, &samplers.Problem{Model: mix, Grid: world(steps), Rows: Rows(now, k), Shape: []int{1}, Noise: samplers.Streams{}})
		x := models.Data(res.X)
		for _, g := range res.Run.(*Run).Groups() {
			w, err := Weigh(res.LogWeights[g.From:g.To])
			if err != nil {
				t.Fatal(err)
			}
			mean, square := 0.0, 0.0
			for i, v := range w.W {
				mean += v * x[g.From+i]
				square += v * x[g.From+i] * x[g.From+i]
			}
			a.add("mean", mean)
			a.add("variance", square-mean*mean)
			a.add("roots", float64(g.Roots))
			a.add("log Z", g.LogZ)
			a.add("Z", math.Exp(g.LogZ))
			a.add("z2v", math.Exp(2*g.LogZ)*g.Variance)
		}
	}
	return a
}

// TestTiltFixtures repeats the runs of the fixtures, fewer of them without DRIFT_SLOW.
func TestTiltFixtures(t *testing.T) {
	budget := 250_000.
	if isSlow() {
		budget = 1e7
	}
	n := 0
	for _, g := range slices.Concat(goldens(t, "fk.json"), goldens(t, "epf.json")) {
		if g.Method != "steer" || g.Kind != "statistical" {
			continue
		}
		o := decode[struct {
			Steps, Particles                                              int
			Kernel, Potential, Policy, Resampler, Terminal, Wiring, Early string
			Lambda                                                        float64
			Checks                                                        []int
			Carry                                                         *bool
		}](t, g.Options)
		if o.Kernel == "" || o.Wiring == "lagged" { // dropped weights: see TestDroppedWeights; lagged here scores an estimate at the end
			continue
		}
		runs := min(g.Runs, int(budget/float64(o.Steps*o.Particles)))
		if runs < 10 {
			continue
		}
		n++
		t.Run(g.Name, func(t *testing.T) {
			pot, err := ParsePotential(o.Potential)
			if err != nil {
				t.Fatal(err)
			}
			zero := 0.0
			fk := FK{Base: samplers.DDPM{Variance: samplers.FixedLarge}, Reward: linear(1), Lambda: o.Lambda, Potential: pot, Init: &zero, Checks: o.Checks, Published: o.Terminal == "code"}
			if strings.Contains(g.Name, "quadratic") {
				fk.Reward = quadratic(0)
			}
			if o.Kernel == "ddim1" {
				fk.Base = samplers.DDIM{Eta: 1}
			}
			if fk.Policy.When, err = ParseWhen(o.Policy); err != nil {
				t.Fatal(err)
			}
			if fk.Policy.Resampler, err = ParseResampler(o.Resampler); err != nil {
				t.Fatal(err)
			}
			if o.Early != "" {
				if fk.Policy.Temper.Rule, err = ParseTemperRule(o.Early); err != nil {
					t.Fatal(err)
				}
				fk.Policy.Temper.Drop = !*o.Carry
			}
			a := worldRun(t, fk, o.Steps, runs, o.Particles, max(1, 8192/o.Particles))
			for _, s := range g.Stats {
				var got float64
				switch {
				case strings.Contains(s.Stat, "particle mean"):
					got, _ = a.mean("mean")
				case strings.Contains(s.Stat, "particle variance"):
					got, _ = a.mean("variance")
				case strings.Contains(s.Stat, "roots"):
					got, _ = a.mean("roots")
				case strings.HasPrefix(s.Stat, "mean of exp(log_Z"):
					z := s.LogZ
					if strings.Contains(s.Stat, "- 2)") {
						z = 2
					}
					m, _ := a.mean("Z")
					got = m * math.Exp(-z)
				default:
					t.Fatalf("unknown statistic %q", s.Stat)
				}
				s.hold(t, got, runs)
			}
		})
	}
	if n < 10 {
		t.Errorf("only %d cases", n)
	}
}

// TestDroppedWeights: with adaptive resampling and weights carried on, the tilt of N(0,1) by exp(2x) has mean 2. Dropping
// the weights of a check that did not resample, as the public reference does, hardly steers at all: the same test on
// such runs must fail.
func TestDroppedWeights(t *testing.T) {
	const steps, groups, k = 40, 24, 256
	mix := normal01(t)
	mean := func(drop bool) (tally, int) {
		a := tally{}
		kept := 0
		p := &samplers.Problem{Model: mix, Grid: world(steps), Rows: Rows(seeds(groups), k), Shape: []int{1}}
		fk := FK{Base: samplers.DDPM{Variance: samplers.FixedLarge}, Reward: linear(1), Lambda: 2, Every: 4, From: 3, Weighted: !drop}
		parents := []int(nil)
		fk.Observe = func(c *Check) error {
			parents = c.Parents
			if c.Parents == nil {
				kept++
			}
			return nil
		}
		r, err := fk.Begin(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		run := r.(*Run)
		for {
			done, err := run.Next(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if done {
				break
			}
			if drop {
				for g := range run.pop.Seeds {
					if from, to := run.pop.span(g); parents == nil || slices.Equal(parents[from:to], identity(groups * k)[from:to]) {
						clear(run.pop.LW[from:to])
					}
				}
			}
		}
		x := models.Data(run.State().X)
		for _, g := range run.Groups() {
			w, err := Weigh(run.State().LogWeights[g.From:g.To])
			if err != nil {
				t.Fatal(err)
			}
			m := 0.0
			for i, v := range w.W {
				m += v * x[g.From+i]
			}
			a.add("mean", m)
		}
		return a, kept
	}
	right, kept := mean(false)
	if m, sd := right.mean("mean"); math.Abs(m-2) > 0.03+4.5*sd/math.Sqrt(groups) || kept == 0 {
		t.Errorf("mean %g, want 2; %d checks carried all weights on", m, kept)
	}
	wrong, _ := mean(true)
	if m, sd := wrong.mean("mean"); m > 1 || math.Abs(m-2) < 10*sd/math.Sqrt(groups) {
		t.Errorf("dropping weights gives mean %g: the test has no power", m)
	}
}

// targets are mixtures in 1, 2 and 5 dimensions.
func targets(t testing.TB) []*analytic.Mixture {
	return []*analytic.Mixture{
		mixture(t, analytic.Target{Weights: []float64{0.7, 0.3}, Means: [][]float64{{-1}, {1.5}}, Vars: [][]float64{{0.25}, {0.5}}}),
		mixture(t, analytic.Target{Weights: []float64{0.3, 0.5, 0.2}, Means: [][]float64{{-1, 0.5}, {1, -1}, {0, 2}}, Vars: [][]float64{{0.3, 0.1}, {0.2, 0.4}, {0.5, 0.5}}}),
		mixture(t, analytic.Target{Weights: []float64{0.5, 0.5}, Means: [][]float64{{1, 0, -1, 0.5, 0}, {-1, 0.5, 1, 0, -0.5}},
			Vars: [][]float64{{0.2, 0.3, 0.4, 0.5, 0.6}, {0.6, 0.5, 0.4, 0.3, 0.2}}}),
	}
}

// tilted is the closed form of a mixture times exp(lambda a.x), or exp(-lambda |x-c|^2/2): the log of the normaliser,
// the mean, and the weights of the components.
func tilted(m *analytic.Mixture, lambda float64, a []float64, square bool) (logZ float64, mean, w []float64) {
	target := m.Target()
	lw := make([]float64, len(target.Weights))
	means := make([][]float64, len(lw))
	for k := range lw {
		lw[k] = math.Log(target.Weights[k])
		for j, mu := range target.Means[k] {
			v := target.Vars[k][j]
			if square {
				s := 1 / (1 + lambda*v)
				lw[k] += 0.5*math.Log(s) - 0.5*lambda*s*(mu-a[j])*(mu-a[j])
				means[k] = append(means[k], s*(mu+lambda*v*a[j]))
			} else {
				lw[k] += lambda*a[j]*mu + 0.5*lambda*lambda*a[j]*a[j]*v
				means[k] = append(means[k], mu+lambda*a[j]*v)
			}
		}
	}
	ws, _ := Weigh(lw)
	mean = make([]float64, m.Dim())
	for k, v := range ws.W {
		for j := range mean {
			mean[j] += v * means[k][j]
		}
	}
	return ws.LogMean + math.Log(float64(len(lw))), mean, ws.W
}

// component is the probability that x is of component 0 of the tilted mixture, which is that of the mixture itself.
func component(m *analytic.Mixture, x []float64) float64 {
	target := m.Target()
	lw := make([]float64, len(target.Weights))
	for k := range lw {
		lw[k] = math.Log(target.Weights[k])
		for j, mu := range target.Means[k] {
			v := target.Vars[k][j]
			lw[k] -= 0.5*math.Log(v) + 0.5*(x[j]-mu)*(x[j]-mu)/v
		}
	}
	w, _ := Weigh(lw)
	return w.W[0]
}

// unbiased holds exp(log Z) sum W phi / Z, whose expectation is exactly the tilted mean of phi for every number of
// particles, to the closed form: for 1, every coordinate, and the probability of a component.
func unbiased(t *testing.T, fk FK, m *analytic.Mixture, a []float64, square bool, lambda float64, groups, k, steps int) {
	t.Helper()
	logZ, mean, w := tilted(m, lambda, a, square)
	shift := 0.0 // log of the normaliser that the potential leaves out
	if fk.Potential == Difference && fk.Init != nil {
		shift = lambda * *fk.Init
	}
	res := sample(t, fk, &samplers.Problem{Model: m, Grid: world(steps), Rows: Rows(seeds(groups), k), Shape: []int{m.Dim()}})
	x := models.Data(res.X)
	d := m.Dim()
	tl := tally{}
	for _, g := range res.Run.(*Run).Groups() {
		ws, err := Weigh(res.LogWeights[g.From:g.To])
		if err != nil {
			t.Fatal(err)
		}
		z := math.Exp(g.LogZ + shift - logZ)
		tl.add("Z/exact", z)
		sums := make([]float64, d+1)
		for i, v := range ws.W {
			row := x[(g.From+i)*d : (g.From+i+1)*d]
			for j := range d {
				sums[j] += v * row[j]
			}
			sums[d] += v * component(m, row)
		}
		for j := range d {
			tl.add(fmt.Sprint("mean ", j), z*sums[j])
		}
		tl.add("component", z*sums[d])
	}
	tl.near(t, "Z/exact", 1)
	for j := range d {
		tl.near(t, fmt.Sprint("mean ", j), mean[j])
	}
	tl.near(t, "component", w[0])
	// Power: the standard error of Z tells a steered run from an unsteered one.
	if _, sd := tl.mean("Z/exact"); sd/math.Sqrt(float64(groups)) > 0.1 {
		t.Errorf("the standard error of Z/exact is %g: the test has no power", sd/math.Sqrt(float64(groups)))
	}
}

// TestTilts: every potential, in 1, 2 and 5 dimensions, is unbiased for the closed form of the tilt, from an exact
// sampler.
func TestTilts(t *testing.T) {
	groups := 200
	if isSlow() {
		groups = 4000
	}
	for _, m := range targets(t) {
		a := make([]float64, m.Dim())
		for j := range a {
			a[j] = 0.8 - 0.5*float64(j%3)
		}
		for p := Difference; p <= None; p++ {
			for _, square := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %dd square=%v", p, m.Dim(), square), func(t *testing.T) {
					fk := FK{Base: oracle{m}, Lambda: 0.8, Potential: p, Reward: linear(a...), Checks: []int{2, 4, 6}}
					if square {
						fk.Reward = quadratic(a...)
					}
					if p == Sum || p == Immediate { // they overspend: a check or two is enough
						fk.Checks = []int{5}
					}
					if p%2 == 1 {
						fk.Policy.Resampler = Resampler(int(p)+m.Dim()) % 6
					}
					unbiased(t, fk, m, a, square, 0.8, groups, 16, 8)
				})
			}
		}
	}
}

// TestTiltOptions: options that change the way but not the target.
func TestTiltOptions(t *testing.T) {
	groups := 300
	if isSlow() {
		groups = 4000
	}
	m := targets(t)[0]
	init := 0.5
	for name, f := range map[string]func(*FK){
		"every step":     func(f *FK) {},
		"every third":    func(f *FK) { f.Every, f.From, f.To = 3, 1, 6 },
		"always":         func(f *FK) { f.Policy.When = Always },
		"never":          func(f *FK) { f.Policy.When = Never },
		"ess 0.9":        func(f *FK) { f.Policy.ESS = 0.9 },
		"weighted":       func(f *FK) { f.Policy.When, f.Weighted = Always, true },
		"rising lambda":  func(f *FK) { f.Schedule = func(u float64) float64 { return u * u } },
		"falling lambda": func(f *FK) { f.Schedule = func(u float64) float64 { return 2 - u } },
		"init":           func(f *FK) { f.Init = &init },
		"tempered ess":   func(f *FK) { f.Policy = Policy{When: Always, Temper: Temper{Rule: TemperESS, Threshold: 1, Phase: 1}} },
		"tempered base":  func(f *FK) { f.Policy.Temper = Temper{Rule: TemperProgress} },
		"ssp":            func(f *FK) { f.Policy.Resampler = SSP },
		"samples":        func(f *FK) { f.Samples, f.Checks = 4, []int{2, 5} },
		"look-ahead":     func(f *FK) { f.Ahead, f.Policy.When = true, Always },
		"ahead, tempered": func(f *FK) {
			f.Ahead, f.Policy = true, Policy{When: Always, Temper: Temper{Rule: TemperESS, Threshold: 1, Phase: 1}}
		},
		"killing":    func(f *FK) { f.Policy.Resampler = Killing },
		"max rising": func(f *FK) { f.Potential, f.Checks, f.Schedule = Max, []int{7}, func(u float64) float64 { return u } },
	} {
		t.Run(name, func(t *testing.T) {
			fk := FK{Base: oracle{m}, Lambda: 1.2, Reward: linear(1)}
			f(&fk)
			unbiased(t, fk, m, []float64{1}, false, 1.2, groups, 16, 10)
		})
	}
}

// TestAside: samples of p(x0 | x) tighten the weights where the mean of the data misleads, and draws aside leave the run's own
// noise alone: at strength 0 nothing changes.
func TestAside(t *testing.T) {
	m := targets(t)[0]
	p := &samplers.Problem{Model: m, Grid: world(8), Rows: Rows(seeds(4), 6), Shape: []int{1}}
	plain := sample(t, FK{Base: oracle{m}, Reward: quadratic(1), Policy: Policy{When: Never}}, p)
	for _, f := range []FK{{Samples: 3}, {Ahead: true}} {
		f.Base, f.Reward, f.Lambda, f.Policy = oracle{m}, quadratic(1), 1e-300, Policy{When: Never}
		res := sample(t, f, p)
		if !slices.Equal(models.Data(res.X), models.Data(plain.X)) {
			t.Errorf("%+v changes the run's own noise", f)
		}
	}
	mem := FK{Base: samplers.DDIM{Eta: 1}, Reward: linear(1), Lambda: 1, Samples: 2}
	got := sample(t, mem, &samplers.Problem{Model: models.Metered(m), Grid: world(6), Rows: Rows(seeds(1), 2), Shape: []int{1}, Meter: &models.Meter{}})
	if want := 6 + 5*2.*2 - 2; got.Stats.NFE != want { // the last check but one looks over one step only
		t.Errorf("%g evaluations, want %g", got.Stats.NFE, want)
	}
	ahead := sample(t, FK{Base: samplers.DDIM{Eta: 1}, Reward: linear(1), Lambda: 1, Ahead: true}, &samplers.Problem{Model: models.Metered(m), Grid: world(6), Rows: Rows(seeds(1), 2), Shape: []int{1}, Meter: &models.Meter{}})
	if want := 6 + 4.; ahead.Stats.NFE != want { // the last successor is the sample
		t.Errorf("look-ahead: %g evaluations, want %g", ahead.Stats.NFE, want)
	}
}

// TestChurned: on a grid that goes up in between, samplers without step noise are steered to the tilt.
func TestChurned(t *testing.T) {
	m := targets(t)[0]
	process := m.Process().(schedules.Gaussian)
	base, err := schedules.NewGrid(process, "lambda", 80, schedules.Ends{})
	if err != nil {
		t.Fatal(err)
	}
	if g := Churned(process, base, 0); len(g) != len(base) {
		t.Fatal("no churn is another grid")
	}
	logZ, mean, _ := tilted(m, 1, []float64{1}, false)
	for name, s := range map[string]samplers.Sampler{"heun": samplers.Heun{}} {
		groups := 100
		res := sample(t, FK{Base: s, Reward: linear(1), Lambda: 1}, &samplers.Problem{Model: m, Grid: Churned(process, base, 0.3), Rows: Rows(seeds(groups), 64), Shape: []int{1}})
		got := tally{}
		for _, g := range res.Run.(*Run).Groups() {
			w, err := Weigh(res.LogWeights[g.From:g.To])
			if err != nil {
				t.Fatal(err)
			}
			z, x := math.Exp(g.LogZ-logZ), 0.0
			for i, v := range w.W {
				x += v * models.Data(res.X)[g.From+i]
			}
			got.add("Z", z)
			got.add("mean", z*x)
		}
		for what, want := range map[string]float64{"Z": 1, "mean": mean[0]} {
			v, sd := got.mean(what)
			if math.Abs(v-want) > 0.03+4.5*sd/math.Sqrt(float64(groups)) {
				t.Errorf("%s: %s %.4f, want %.4f (standard error %.3f)", name, what, v, want, sd/math.Sqrt(float64(groups)))
			}
			t.Logf("%s: %s %.4f, exact %.4f", name, what, v, want)
		}
	}
	if _, err := (FK{Base: samplers.Heun{}, Reward: linear(1), Lambda: 1}).Begin(context.Background(), &samplers.Problem{Model: m, Grid: base, Rows: Rows(seeds(1), 2), Shape: []int{1}}); err == nil {
		t.Error("heun without churn is steered")
	}
}

// TestFinish: a run ended early gives its estimate as the sample, with a last check on it, and can be saved then.
func TestFinish(t *testing.T) {
	ctx := context.Background()
	m := targets(t)[0]
	fk := FK{Base: samplers.DDIM{Eta: 1}, Reward: linear(1), Lambda: 1}
	p := &samplers.Problem{Model: m, Grid: world(10), Rows: Rows(seeds(2), 4), Shape: []int{1}}
	run, err := fk.Begin(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	for range 6 {
		if _, err := run.Next(ctx); err != nil {
			t.Fatal(err)
		}
	}
	r := run.(*Run)
	if err := r.Set("resample", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Next(ctx); err != nil {
		t.Fatal(err)
	}
	if g := r.Groups()[0]; g.Resampled == 0 || g.ESS != 4 {
		t.Errorf("asked to resample: %+v", g)
	}
	if err := r.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := r.Save(&b); err != nil {
		t.Fatal(err)
	}
	again, err := fk.Resume(ctx, p, &b)
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range []samplers.Run{r, again} {
		done, err := run.Next(ctx)
		if !done || err != nil || run.State().Done != 1 {
			t.Errorf("not done: %v, %v", done, err)
		}
		x := models.Data(run.State().X)
		for i, v := range run.(*Run).Rewards() {
			if x[i] != v {
				t.Errorf("sample %d is %g, its reward %g", i, x[i], v)
			}
		}
	}
	if err := r.Set("resample", 2); err == nil {
		t.Error("resample = 2")
	}
}

// TestSmallGroups: 2 and 3 particles, at every check, are unbiased too.
func TestSmallGroups(t *testing.T) {
	m := targets(t)[0]
	for _, k := range []int{1, 2, 3} {
		for _, p := range []Potential{Difference, Max} {
			fk := FK{Base: oracle{m}, Lambda: 0.7, Reward: linear(1), Potential: p, Policy: Policy{When: Always}, Checks: []int{3}}
			unbiased(t, fk, m, []float64{1}, false, 0.7, 4000, k, 5)
		}
	}
}

// TestSetLambda: the strength may change between steps and the weights stay exact.
func TestSetLambda(t *testing.T) {
	m := targets(t)[0]
	for _, p := range []Potential{Difference, Max, Immediate} {
		fk := FK{Base: oracle{m}, Lambda: 0.3, Reward: linear(1), Potential: p, Every: 3}
		a := tally{}
		logZ, _, _ := tilted(m, 0.9, []float64{1}, false)
		problem := &samplers.Problem{Model: m, Grid: world(9), Rows: Rows(seeds(1500), 8), Shape: []int{1}}
		// Control runs after a step's check: settle the last check at its final value.
		problem.Control = func(_ context.Context, s *samplers.State, set samplers.Setter) error {
			if err := set.Set("ess", 0.4+0.1*s.Done); err != nil {
				return err
			}
			return set.Set("lambda", 0.3+0.6*min(1, float64(s.I+1)/float64(s.N)))
		}
		res := sample(t, fk, problem)
		for _, g := range res.Run.(*Run).Groups() {
			a.add("Z/exact", math.Exp(g.LogZ-logZ))
		}
		a.near(t, "Z/exact", 1)
	}
}

// TestSteerSolvers: E[Z] is the mean of exp(lambda r) over the base sampler's own samples, for every stochastic
// solver; with their history, cached predictions and inner stages steered along.
func TestSteerSolvers(t *testing.T) {
	m := targets(t)[1]
	grid, err := schedules.NewGrid(m.Process().(schedules.Gaussian), "lambda", 16, schedules.Ends{})
	if err != nil {
		t.Fatal(err)
	}
	reward := linear(1.2, 0.6)
	groups := 300
	if isSlow() {
		groups = 8000
	}
	const k = 8
	for _, name := range []string{"ddim:eta=1", "ddim:eta=0.5", "ddpm", "dpmpp-2m-sde", "dpmpp-3m-sde", "dpmpp-sde", "dpmpp-2s-a", "sa", "euler:churn=4", "heun:churn=4", "dpm2-ancestral", "lcm"} {
		t.Run(name, func(t *testing.T) {
			s, err := samplers.Parse(name)
			if err != nil {
				t.Fatal(err)
			}
			plain := sample(t, s, &samplers.Problem{Model: m, Grid: grid, Rows: Rows(seeds(groups*2), k), Shape: []int{2}})
			r, _ := reward(context.Background(), plain.X, nil)
			a := tally{}
			for i := 0; i < len(r); i += k {
				z := 0.0
				for _, v := range r[i : i+k] {
					z += math.Exp(v) / k
				}
				a.add("plain", z)
			}
			rows := Rows(seeds(groups), k)
			for i := range rows {
				rows[i].Seed += 1 << 20
			}
			res := sample(t, FK{Base: s, Reward: reward, Lambda: 1, Policy: Policy{ESS: 0.8}}, &samplers.Problem{Model: m, Grid: grid, Rows: rows, Shape: []int{2}})
			times := 0
			for _, g := range res.Run.(*Run).Groups() {
				a.add("steered", math.Exp(g.LogZ))
				times += g.Resampled
			}
			p, psd := a.mean("plain")
			q, qsd := a.mean("steered")
			se := math.Sqrt(psd*psd/float64(2*groups) + qsd*qsd/float64(groups))
			t.Logf("plain %.4g, steered %.4g, standard error %.2g, %.2g resamplings", p, q, se, float64(times)/float64(groups))
			if math.Abs(p-q) > 4.5*se || times < groups/4 {
				t.Errorf("E[Z] %g steered, %g plain, standard error %g; %d resamplings", q, p, se, times)
			}
		})
	}
}

// TestVariance: with multinomial resampling at fixed checks Z^2 times the estimate is unbiased for Var(Z).
func TestVariance(t *testing.T) {
	groups := 4000
	if isSlow() {
		groups = 60000
	}
	m := targets(t)[0]
	res := sample(t, FK{Base: oracle{m}, Lambda: 1, Reward: linear(1), Policy: Policy{When: Always, Resampler: Multinomial}, Checks: []int{2, 4}, Weighted: true},
		&samplers.Problem{Model: m, Grid: world(6), Rows: Rows(seeds(groups), 12), Shape: []int{1}})
	logZ, _, _ := tilted(m, 1, []float64{1}, false)
	a := tally{}
	roots := res.Run.(*Run).Roots()
	raw := func(g Group) float64 { // without the floor at zero
		w, _ := Weigh(res.LogWeights[g.From:g.To])
		shares := map[int]float64{}
		for i, v := range w.W {
			shares[roots[g.From+i]] += v
		}
		sq := 0.0
		for _, s := range shares {
			sq += s * s
		}
		return 1 - math.Pow(12./11, 3)*(1-sq)
	}
	for _, g := range res.Run.(*Run).Groups() {
		z := math.Exp(g.LogZ - logZ)
		a.add("Var - estimate", (z-1)*(z-1)-z*z*raw(g))
		if v := raw(g); math.Abs(max(0, v)-g.Variance) > 1e-12 {
			t.Fatalf("variance %g, want %g", g.Variance, v)
		}
		a.add("Var", (z-1)*(z-1))
	}
	a.near(t, "Var - estimate", 0)
	v, _ := a.mean("Var")
	if _, sd := a.mean("Var - estimate"); 4.5*sd/math.Sqrt(float64(groups)) > 0.5*v {
		t.Errorf("no power: Var %g", v)
	}
}

// TestOffIsOff: one particle, strength zero, and a constant reward leave the samples bit for bit as they are without
// steering.
func TestOffIsOff(t *testing.T) {
	m := targets(t)[1]
	flat := func(_ context.Context, x *tensor.Dense, _ *Look) ([]float64, error) {
		return slices.Repeat([]float64{3}, x.Shape()[0]), nil
	}
	for _, name := range []string{"ddim:eta=1", "dpmpp-2m-sde", "euler:churn=9", "unipc"} {
		base, err := samplers.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		for what, c := range map[string]struct {
			fk FK
			k  int
		}{
			"one particle":  {FK{Base: base, Reward: linear(1, 1), Lambda: 5, Policy: Policy{When: Always}}, 1},
			"lambda 0":      {FK{Base: base, Reward: linear(1, 1), Policy: Policy{When: Always, Resampler: Multinomial}}, 4},
			"no reward":     {FK{Base: base}, 4},
			"zero schedule": {FK{Base: base, Lambda: 3, Reward: linear(1, 1), Schedule: func(float64) float64 { return 0 }, Policy: Policy{When: Always}}, 4},
			"flat reward":   {FK{Base: base, Lambda: 3, Reward: flat, Policy: Policy{When: Always, Resampler: Multinomial}}, 4},
			"none, never":   {FK{Base: base, Lambda: 3, Reward: linear(1, 1), Potential: None, Policy: Policy{When: Never}}, 4},
		} {
			if name == "unipc" && (what == "flat reward" || what == "zero schedule") {
				continue // refused: no noise
			}
			if name == "euler:churn=9" && what == "flat reward" {
				continue // pays for its checks
			}
			p := &samplers.Problem{Model: models.Metered(m), Grid: world(12), Rows: Rows([]uint64{4, 5}, c.k), Shape: []int{2}}
			want := sample(t, base, p)
			got := sample(t, c.fk, p)
			if !slices.Equal(models.Data(got.X), models.Data(want.X)) {
				t.Errorf("%s, %s: the samples changed", name, what)
			}
			if got.Stats.NFE != want.Stats.NFE {
				t.Errorf("%s, %s: %g evaluations, %g without steering", name, what, got.Stats.NFE, want.Stats.NFE)
			}
			if what == "one particle" {
				if len(got.LogWeights) != 2 || got.LogWeights[0] != 5*(models.Data(got.X)[0]+models.Data(got.X)[1]) {
					t.Errorf("%s: weights %v of %v", name, got.LogWeights, got.X)
				}
			}
		}
	}
}

// TestNoExtraEvaluations: a check reuses the evaluation of the next step.
func TestNoExtraEvaluations(t *testing.T) {
	m := targets(t)[1]
	for name, want := range map[string]float64{"ddim:eta=1": 12, "dpmpp-2m-sde": 12, "ddpm": 12, "euler:churn=2": 12 + 11, "euler:churn=2 lagged": 12} {
		base, err := samplers.Parse(strings.TrimSuffix(name, " lagged"))
		if err != nil {
			t.Fatal(err)
		}
		res := sample(t, FK{Base: base, Reward: linear(1, 1), Lambda: 1, Lagged: strings.HasSuffix(name, "lagged")},
			&samplers.Problem{Model: models.Metered(m), Grid: world(12), Rows: Rows(seeds(3), 8), Shape: []int{2}})
		if res.Stats.NFE != want {
			t.Errorf("%s: %g evaluations, want %g", name, res.Stats.NFE, want)
		}
		if c := res.Run.(*Run).Cost(); c.Checks != 12 || c.Rewards != 12*24 {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// TestBatches: groups do not know of each other.
func TestBatches(t *testing.T) {
	m := targets(t)[1]
	fk := FK{Base: samplers.DDIM{Eta: 1}, Reward: linear(1, 1), Lambda: 2, Policy: Policy{Temper: Temper{Rule: TemperESS}}}
	problem := func(s ...uint64) *samplers.Problem {
		return &samplers.Problem{Model: m, Grid: world(20), Rows: Rows(s, 6), Shape: []int{2}}
	}
	all := sample(t, fk, problem(1, 2, 3, 4, 5))
	x, lw, groups := models.Data(all.X), all.LogWeights, all.Run.(*Run).Groups()
	for i, part := range [][]uint64{{1}, {2, 3}, {4, 5}} {
		one := sample(t, fk, problem(part...))
		at := []int{0, 1, 3}[i]
		if n := len(part) * 6; !slices.Equal(models.Data(one.X), x[at*12:at*12+2*n]) || !slices.Equal(one.LogWeights, lw[at*6:at*6+n]) {
			t.Errorf("batch %v differs", part)
		}
		for j, g := range one.Run.(*Run).Groups() {
			if w := groups[at+j]; g.LogZ != w.LogZ || g.Roots != w.Roots || g.Resampled != w.Resampled || g.Variance != w.Variance {
				t.Errorf("group %d: %+v, want %+v", g.Seed, g, w)
			}
		}
	}
	if groups[0].Resampled == 0 {
		t.Error("nothing was resampled")
	}
	swapped := sample(t, fk, problem(4, 2))
	if !slices.Equal(models.Data(swapped.X)[:12], x[36:48]) || !slices.Equal(models.Data(swapped.X)[12:], x[12:24]) {
		t.Error("the order of groups matters")
	}
}

// TestSaveResume: a run that is saved at every step, or that stops at a reward that failed, ends with the same bits.
func TestSaveResume(t *testing.T) {
	m := targets(t)[1]
	ctx := context.Background()
	broken := errors.New("no answer")
	for _, name := range []string{"ddim:eta=1", "dpmpp-2m-sde", "euler:churn=3"} {
		base, err := samplers.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		good := FK{Base: base, Reward: linear(1, 1), Lambda: 2, Every: 2, Potential: Max, Policy: Policy{Temper: Temper{Rule: TemperProgress}}}
		p := &samplers.Problem{Model: m, Grid: world(10), Rows: Rows([]uint64{8, 9}, 5), Shape: []int{2}, Cond: nil}
		want := sample(t, good, p)
		for stop := 0; stop <= 10; stop++ {
			for _, fails := range []bool{false, true} {
				calls := 0
				fk := good
				fk.Reward = func(ctx context.Context, x *tensor.Dense, at *Look) ([]float64, error) {
					if calls++; fails && calls == stop+1 {
						return nil, broken
					}
					return good.Reward(ctx, x, at)
				}
				run, err := fk.Begin(ctx, p)
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; fails || i < stop; i++ {
					done, err := run.Next(ctx)
					if err != nil && !(fails && errors.Is(err, broken)) {
						t.Fatal(err)
					}
					if done || err != nil {
						break
					}
				}
				var buf bytes.Buffer
				if err := run.(samplers.Saver).Save(&buf); err != nil {
					t.Fatal(err)
				}
				again, err := samplers.Resume(ctx, good, p, &buf)
				if err != nil {
					t.Fatal(err)
				}
				got, err := samplers.Drive(ctx, again, p)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(models.Data(got.X), models.Data(want.X)) || !slices.Equal(got.LogWeights, want.LogWeights) ||
					!slices.Equal(again.(*Run).Roots(), want.Run.(*Run).Roots()) || again.(*Run).Groups()[0].LogZ != want.Run.(*Run).Groups()[0].LogZ ||
					!slices.Equal(again.(*Run).Best(), want.Run.(*Run).Best()) {
					t.Errorf("%s: stopped after %d steps (failing reward: %v), the end differs", name, stop, fails)
				}
			}
		}
	}
	run, err := FK{Base: samplers.DDIM{Eta: 1}, Reward: linear(1, 1), Lambda: 1}.Begin(ctx, &samplers.Problem{Model: m, Grid: world(4), Rows: Rows([]uint64{1}, 3), Shape: []int{2}})
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := run.(samplers.Saver).Save(&buf); err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]struct {
		fk   FK
		rows []models.Row
		data []byte
	}{
		"other rows":      {FK{Base: samplers.DDIM{Eta: 1}, Reward: linear(1, 1), Lambda: 1}, Rows([]uint64{2}, 3), buf.Bytes()},
		"other number":    {FK{Base: samplers.DDIM{Eta: 1}, Reward: linear(1, 1), Lambda: 1}, Rows([]uint64{1}, 4), buf.Bytes()},
		"other potential": {FK{Base: samplers.DDIM{Eta: 1}, Reward: linear(1, 1), Lambda: 1, Potential: Sum}, Rows([]uint64{1}, 3), buf.Bytes()},
		"other base":      {FK{Base: samplers.DDPM{}, Reward: linear(1, 1), Lambda: 1}, Rows([]uint64{1}, 3), buf.Bytes()},
		"cut":             {FK{Base: samplers.DDIM{Eta: 1}, Reward: linear(1, 1), Lambda: 1}, Rows([]uint64{1}, 3), buf.Bytes()[:buf.Len()/2]},
	} {
		if _, err := try.fk.Resume(ctx, &samplers.Problem{Model: m, Grid: world(4), Rows: try.rows, Shape: []int{2}}, bytes.NewReader(try.data)); err == nil {
			t.Errorf("resumed with %s", what)
		}
	}
}

func TestRefused(t *testing.T) {
	m := targets(t)[1]
	nan, inf := math.NaN(), math.Inf(1)
	good := samplers.DDIM{Eta: 1}
	for want, fk := range map[string]FK{
		"no step noise":     {Base: samplers.UniPC{}, Reward: linear(1, 1), Lambda: 1},
		"no base":           {Reward: linear(1, 1), Lambda: 1},
		"no reward":         {Base: good, Lambda: 1},
		"not finite":        {Base: good, Reward: linear(1, 1), Lambda: nan},
		"unknown potential": {Base: good, Reward: linear(1, 1), Lambda: 1, Potential: 8},
		"before the first":  {Base: good, Reward: linear(1, 1), Lambda: 1, Init: &inf},
		"negative":          {Base: good, Reward: linear(1, 1), Lambda: 1, Every: -1},
		"image by image":    {Base: samplers.DPMAdaptive{Eta: 1}, Reward: linear(1, 1), Lambda: 1},
		"policy":            {Base: good, Reward: linear(1, 1), Lambda: 1, Policy: Policy{When: 5}},
	} {
		_, err := fk.Begin(context.Background(), &samplers.Problem{Model: m, Grid: world(4), Rows: Rows(seeds(2), 2), Shape: []int{2}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	run, err := FK{Base: samplers.UniPC{}, Reward: linear(1, 1)}.Begin(context.Background(), &samplers.Problem{Model: m, Grid: world(4), Rows: Rows(seeds(2), 2), Shape: []int{2}})
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]float64{"lambda": 1, "ess": 2, "nothing": 1} {
		if err := run.(samplers.Setter).Set(name, v); err == nil {
			t.Errorf("%s = %g can be set", name, v)
		}
	}
	if n := (FK{Base: good}).Needs(); !n.Couples || !n.Noise {
		t.Errorf("needs %+v", n)
	}
}

// TestBadRewards: what a reward may do wrong has a name, a step and a particle.
func TestBadRewards(t *testing.T) {
	m := targets(t)[1]
	at := func(step, row int, v float64) Reward {
		return func(_ context.Context, x *tensor.Dense, l *Look) ([]float64, error) {
			out := make([]float64, x.Shape()[0])
			if l.Step == step {
				if row < 0 {
					for i := range out[:3] {
						out[i] = v
					}
				} else {
					out[row] = v
				}
			}
			return out, nil
		}
	}
	run := func(fk FK) (*samplers.Result, error) {
		fk.Base, fk.Lambda = samplers.DDIM{Eta: 1}, 10
		return samplers.Sample(context.Background(), fk, &samplers.Problem{Model: m, Grid: world(6), Rows: Rows([]uint64{20, 21}, 3), Shape: []int{2}})
	}
	for _, v := range []float64{math.NaN(), math.Inf(1)} {
		_, err := run(FK{Reward: at(4, 4, v)})
		var re *RewardError
		if !errors.As(err, &re) || re.Step != 4 || re.Row != (models.Row{Seed: 21, Particle: 1}) {
			t.Errorf("reward %g: %v", v, err)
		}
	}
	_, err := run(FK{Reward: at(3, -1, math.Inf(-1))})
	var we *WeightError
	if !errors.As(err, &we) || !errors.Is(err, ErrDead) || we.Seed != 20 || we.Step != 3 {
		t.Errorf("dead group: %v", err)
	}
	res, err := run(FK{Reward: at(3, -1, math.Inf(-1)), SkipDead: true})
	if err != nil || math.IsInf(res.Run.(*Run).Groups()[0].LogZ, 0) || res.LogWeights[0] != 0 {
		t.Errorf("a check that rules out a group is not passed over: %v %v", res.LogWeights, err)
	}
	res, err = run(FK{Reward: at(6, -1, math.Inf(-1)), SkipDead: true})
	if err != nil || !math.IsInf(res.Run.(*Run).Groups()[0].LogZ, -1) || res.Run.(*Run).Groups()[1].LogZ != 0 {
		t.Errorf("a group ruled out at the end: %v", err)
	}
	if _, err = run(FK{Reward: at(2, 1, 1e308)}); !errors.Is(err, ErrInfinite) {
		t.Errorf("lambda r overflows: %v", err)
	}
	res, err = run(FK{Reward: at(2, 1, 1e306), Every: 1})
	if err != nil || res.Run.(*Run).Groups()[0].Roots != 1 {
		t.Errorf("huge reward: %v", err)
	}
	res, err = run(FK{Reward: at(2, 1, math.Inf(-1)), Policy: Policy{When: Never}})
	if err != nil || !math.IsInf(res.LogWeights[1], -1) || res.LogWeights[0] != 0 {
		t.Errorf("a dead particle that is not resampled: %v, %v", res.LogWeights, err)
	}
	if _, err = run(FK{Reward: func(_ context.Context, x *tensor.Dense, _ *Look) ([]float64, error) { return make([]float64, 5), nil }}); err == nil || !strings.Contains(err.Error(), "5 rewards for 6 particles") {
		t.Errorf("wrong length: %v", err)
	}
}

// recorder remembers which images are asked, and doubles them.
type doubler struct{ n int }

func (d *doubler) Decode(_ context.Context, z *tensor.Dense) (*tensor.Dense, error) {
	d.n++
	out := models.New(z.Shape()...)
	for i, v := range models.Data(z) {
		models.Data(out)[i] = 2 * v
	}
	return out, nil
}

func (d *doubler) Encode(context.Context, *tensor.Dense) (*tensor.Dense, error) { panic("not asked") }

// TestLook: a reward sees decoded images, each row's own condition and past, and the place in the run.
func TestLook(t *testing.T) {
	m := mixture(t, analytic.Target{Weights: []float64{0.5, 0.5}, Means: [][]float64{{-1}, {1}}, Vars: [][]float64{{0.3}, {0.3}}, Labels: []int{0, 1}})
	for _, latent := range []bool{false, true} {
		codec := &doubler{}
		var last *Look
		var before []float64
		n := 0
		fk := FK{Base: samplers.DDIM{Eta: 1}, Lambda: 3, Latent: latent, Checks: []int{1, 3}}
		fk.Reward = func(_ context.Context, x *tensor.Dense, l *Look) ([]float64, error) {
			n++
			want := []int{2, 4, 6}[n-1]
			if l.Step != want || l.Progress != float64(want)/6 || l.Last != (n == 3) || l.At != world(6)[want] || len(l.Groups) != 2 || l.Groups[1].From != 4 {
				t.Errorf("look %+v", l)
			}
			if (n == 1) != (l.Previous == nil) || !slices.Equal(l.Previous, before) {
				t.Errorf("past rewards %v, want %v", l.Previous, before)
			}
			for i := range l.Rows {
				if l.Cond.Class(i) != i/4 || l.Rows[i] != (models.Row{Seed: uint64(i/4 + 1), Particle: i % 4}) {
					t.Errorf("row %d: %v of class %d", i, l.Rows[i], l.Cond.Class(i))
				}
			}
			last = l
			return slices.Clone(models.Data(x)), nil
		}
		var final *Check
		fk.Observe = func(c *Check) error {
			before = c.Rewards
			if c.Parents != nil {
				before = gather(c.Rewards, c.Parents)
			}
			final = c
			return nil
		}
		res := sample(t, fk, &samplers.Problem{Model: m, Grid: world(6), Rows: Rows(seeds(2), 4), Shape: []int{1}, Codec: codec,
			Cond: Repeat(&models.Cond{Classes: []int{0, 1}}, 2, 4)})
		scale := 2.0
		if latent {
			scale = 1
		}
		run := res.Run.(*Run)
		for i, r := range run.Rewards() {
			if r != scale*models.Data(res.X)[i] {
				t.Errorf("latent %v: reward %g of %g", latent, r, models.Data(res.X)[i])
			}
		}
		if (codec.n == 3) == latent || n != 3 || last == nil || final == nil || !final.Last || final.Groups[0].LogZ != run.Groups()[0].LogZ {
			t.Errorf("latent %v: %d decodes, %d rewards", latent, codec.n, n)
		}
		for g, i := range run.Best() {
			if group := run.Groups()[g]; i < group.From || i >= group.To || run.Rewards()[i] != slices.Max(run.Rewards()[group.From:group.To]) {
				t.Errorf("best of group %d is row %d", g, i)
			}
		}
	}
}

// TestBestOfN: the mean of the largest of N normals.
func TestBestOfN(t *testing.T) {
	for _, g := range goldens(t, "fk.json") {
		if g.Method != "best-of-n" {
			continue
		}
		in := decode[struct{ N []int }](t, g.Inputs)
		want := decode[struct {
			Max []float64 `json:"expected_max_of_normals"`
		}](t, g.Expected).Max
		for i, n := range in.N {
			m := normal01(t)
			res := sample(t, FK{Base: samplers.DDPM{Variance: samplers.FixedLarge}, Reward: linear(1), Lambda: 1, Potential: None, Policy: Policy{When: Never}},
				&samplers.Problem{Model: m, Grid: world(4), Rows: Rows(seeds(4000), n), Shape: []int{1}})
			a := tally{}
			for _, row := range res.Run.(*Run).Best() {
				a.add(fmt.Sprint("best of ", n), models.Data(res.X)[row])
			}
			a.near(t, fmt.Sprint("best of ", n), want[i])
		}
	}
}
