package guidance_test

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"drift/guidance"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

type golden struct {
	Name, Method string
	Target       json.RawMessage
	Options      struct {
		Sampler     string
		Steps       int
		CFGScale    float64   `json:"cfg_scale"`
		IntervalRho []float64 `json:"interval_rho"`
	}
	Inputs, Expected map[string]json.RawMessage
	Tol              struct{ Abs, Rel float64 }
}

func get[T any](t *testing.T, m map[string]json.RawMessage, key string) (v T) {
	t.Helper()
	if err := json.Unmarshal(m[key], &v); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return v
}

func (c *golden) near(t *testing.T, what string, have, want float64) {
	t.Helper()
	if !(math.Abs(have-want) <= c.Tol.Abs+c.Tol.Rel*math.Abs(want)) {
		t.Errorf("%s: %s is %.17g, want %.17g", c.Name, what, have, want)
	}
}

func (c *golden) all(t *testing.T, what string, have, want []float64) {
	t.Helper()
	if len(have) != len(want) {
		t.Fatalf("%s: %s has %d numbers, want %d", c.Name, what, len(have), len(want))
	}
	for i := range have {
		c.near(t, what, have[i], want[i])
	}
}

func (c *golden) mixture(t *testing.T) *analytic.Mixture {
	t.Helper()
	m, err := analytic.Parse(c.Target)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// stub answers fixed vectors: one with a class, one without, one with layers disturbed.
type stub struct {
	c, u, bad []float64
	kind      schedules.Kind
	process   schedules.Gaussian
}

func (s *stub) Process() schedules.Process {
	if s.process == nil {
		return schedules.VPLinear{}
	}
	return s.process
}

func (s *stub) Predict(_ context.Context, q *models.Query, p *models.Pred) error {
	_, out := p.Fit(q.X, s.kind)
	n := len(out) / len(q.At)
	for i := range q.At {
		v := s.c
		switch {
		case q.Hooks != nil:
			v = s.bad
		case q.Cond.Class(i) == models.NoClass:
			v = s.u
		}
		copy(out[i*n:(i+1)*n], v)
	}
	return nil
}

func guided(t *testing.T, d models.Denoiser, s models.Step, x []float64, n schedules.Node) ([]float64, models.Pred) {
	t.Helper()
	var p models.Pred
	q := &models.Query{X: models.Wrap(x, 1, len(x)), At: []schedules.Node{n}, Cond: &models.Cond{Classes: []int{0}}, Step: s}
	if err := d.Predict(context.Background(), q, &p); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(models.Data(p.Out)), p
}

// two answers from one target with a class and from another one without.
type two struct{ cond, uncond *analytic.Mixture }

func (m two) Process() schedules.Process { return m.cond.Process() }

func (m two) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	plain := *q
	plain.Cond = nil
	if q.Cond.Class(0) == models.NoClass {
		return m.uncond.Predict(ctx, &plain, p)
	}
	return m.cond.Predict(ctx, &plain, p)
}

// recorded plays noise back.
type recorded [][][]float64

func (r recorded) Normal(dst []float64, d samplers.Draw) { copy(dst, r[d.Step][d.Slot]) }

func nodes(t *testing.T, p schedules.Process, times []float64) schedules.Grid {
	t.Helper()
	g := schedules.Grid{}
	for _, at := range times {
		g = append(g, p.(schedules.Gaussian).At(at))
	}
	return append(g, schedules.Node{T: -1, Alpha: 1})
}

func TestGolden(t *testing.T) {
	raw, err := os.ReadFile("testdata/guidance.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []golden
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	ran := map[string]int{}
	for _, c := range cases {
		kind, _, _ := strings.Cut(c.Name, "-")
		switch {
		case strings.HasPrefix(c.Name, "cfg-w"):
			kind = "moments"
			c.moments(t)
		case strings.HasPrefix(c.Name, "cfg-run"), c.Method == "sample":
			kind = "run"
			c.run(t)
		case c.Method == "cfg++":
			kind = "scale"
			c.scales(t)
		case kind == "family":
			c.family(t)
		case kind == "apg":
			c.momentum(t)
		case kind == "points":
			c.points(t)
		case kind == "dynamic":
			c.threshold(t)
		default:
			t.Errorf("no test for %s", c.Name)
		}
		ran[kind]++
	}
	for kind, n := range map[string]int{"moments": 14, "run": 5, "scale": 3, "family": 3, "apg": 1, "points": 2, "dynamic": 2} {
		if ran[kind] != n {
			t.Errorf("%d cases of %s, want %d", ran[kind], kind, n)
		}
	}
}

// moments follows mean and variance through a DDIM run of the guided model, which is affine on a Gaussian.
func (c *golden) moments(t *testing.T) {
	var targets []json.RawMessage
	if err := json.Unmarshal(c.Target, &targets); err != nil {
		t.Fatal(err)
	}
	var m two
	for i, d := range []**analytic.Mixture{&m.cond, &m.uncond} {
		var err error
		if *d, err = analytic.Parse(targets[i]); err != nil {
			t.Fatal(err)
		}
	}
	g := guidance.CFG{W: c.Options.CFGScale}
	if r := c.Options.IntervalRho; r != nil {
		g.Span.Lo, g.Span.Hi = r[0], r[1]
	}
	d := g.Guide(m)
	var times []float64
	for i := c.Options.Steps; i > 0; i-- {
		times = append(times, math.RoundToEven(999*float64(i)/float64(c.Options.Steps)))
	}
	grid := nodes(t, m.Process(), times)
	eta := 0.0
	if c.Options.Sampler == "ddim:eta=1" {
		eta = 1
	}
	mean, variance := 0.0, 1.0
	var p models.Pred
	q := &models.Query{X: models.Wrap([]float64{0, 1}, 2, 1), Cond: &models.Cond{Classes: []int{0, 0}}}
	for k, s := range grid[:len(grid)-1] {
		q.At = []schedules.Node{s, s}
		if err := d.Predict(context.Background(), q, &p); err != nil {
			t.Fatal(err)
		}
		e0 := models.Data(p.Out)[0]
		slope := models.Data(p.Out)[1] - e0
		to := grid[k+1]
		c1 := eta * to.Sigma / s.Sigma * math.Sqrt(1-s.Alpha*s.Alpha/(to.Alpha*to.Alpha))
		e := math.Sqrt(to.Sigma*to.Sigma-c1*c1) - to.Alpha*s.Sigma/s.Alpha
		a := to.Alpha/s.Alpha + e*slope
		mean, variance = a*mean+e*e0, a*a*variance+c1*c1
	}
	c.near(t, "mean", mean, get[float64](t, c.Expected, "mean"))
	c.near(t, "variance", variance, get[float64](t, c.Expected, "variance"))
}

func (c *golden) run(t *testing.T) {
	m := c.mixture(t)
	var g guidance.Guider = guidance.CFG{W: c.Options.CFGScale}
	if r := c.Options.IntervalRho; r != nil {
		g = guidance.CFG{W: c.Options.CFGScale, Span: guidance.Span{Lo: r[0], Hi: r[1]}}
	}
	if c.Inputs["lambda"] != nil {
		g = guidance.CFGPP{Lambda: get[float64](t, c.Inputs, "lambda")}
	}
	name := c.Options.Sampler
	if name == "" {
		name = "ddim"
	}
	s, err := samplers.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	grid := nodes(t, m.Process(), get[[]float64](t, c.Inputs, "times"))
	init := get[[][]float64](t, c.Inputs, "x_init")
	p := &samplers.Problem{Model: g.Guide(models.Metered(m)), Grid: grid, Start: models.Wrap(slices.Concat(init...), len(init), m.Dim()), Cond: &models.Cond{}, Rows: make([]models.Row, len(init))}
	if c.Inputs["noise"] != nil {
		p.Noise = recorded(get[[][][]float64](t, c.Inputs, "noise"))
	}
	for range init {
		p.Cond.Classes = append(p.Cond.Classes, get[int](t, c.Inputs, "label"))
	}
	want := get[[][][]float64](t, c.Expected, "x")
	p.Observe = func(s *samplers.State) error {
		if s.I > 0 {
			c.all(t, "x", models.Data(s.X), slices.Concat(want[s.I-1]...))
		}
		return nil
	}
	res, err := samplers.Sample(context.Background(), s, p)
	if err != nil {
		t.Fatal(err)
	}
	if c.Expected["nfe_per_image"] != nil {
		c.near(t, "NFE", res.Stats.NFE, get[float64](t, c.Expected, "nfe_per_image"))
	}
	if pp, ok := g.(guidance.CFGPP); ok {
		for i, w := range get[[]float64](t, c.Expected, "equivalent_cfg_scale") {
			c.near(t, "equivalent scale", pp.Equivalent(grid[i], grid[i+1]), w)
		}
	}
}

func (c *golden) scales(t *testing.T) {
	steps := get[int](t, c.Inputs, "steps")
	p, err := schedules.NewVPDiscrete(schedules.Betas{})
	if err != nil {
		t.Fatal(err)
	}
	var times []float64
	for i := steps; i > 0; i-- {
		times = append(times, math.RoundToEven(999*float64(i)/float64(steps)))
	}
	g := nodes(t, p, times)
	var have []float64
	for i := range steps {
		have = append(have, guidance.CFGPP{Lambda: get[float64](t, c.Inputs, "lambda")}.Equivalent(g[i], g[i+1]))
	}
	c.all(t, "scales", have, get[[]float64](t, c.Expected, "scales"))
}

func (c *golden) family(t *testing.T) {
	m := &stub{c: get[[]float64](t, c.Inputs, "cond"), u: get[[]float64](t, c.Inputs, "uncond"), kind: schedules.X0}
	num := func(key string) float64 { return get[float64](t, c.Inputs, key) }
	w, tau, eta, n := num("w"), num("tau"), num("eta"), schedules.VPLinear{}.At(0.5)
	x := make([]float64, len(m.c))
	for key, g := range map[string]guidance.Guider{
		"cfg":                        guidance.CFG{W: w},
		"cfg_paper_form_w-1":         guidance.CFG{W: w},
		"rescale":                    guidance.CFG{W: w, Rescale: num("phi")},
		"apg_no_threshold_paper":     guidance.APG{W: w, Eta: eta},
		"apg_no_threshold_diffusers": guidance.APG{W: w, Eta: eta, FromUncond: true},
		"apg_tau_paper":              guidance.APG{W: w, Eta: eta, Tau: tau, Space: guidance.Raw},
		"apg_tau_diffusers":          guidance.APG{W: w, Eta: eta, Tau: tau, FromUncond: true},
		"apg_eta1_no_threshold":      guidance.APG{W: w, Eta: 1},
		"cfg_zero_star":              guidance.CFGZero{W: w, Space: guidance.Raw},
		"tcfg":                       guidance.TCFG{W: w},
		"mambo":                      guidance.MAMBO{W: w},
		"cfgpp_x0_prediction":        guidance.CFGPP{Lambda: num("lambda")},
	} {
		have, p := guided(t, g.Guide(m), models.Step{}, x, n)
		c.all(t, key, have, get[[]float64](t, c.Expected, key))
		if key == "cfgpp_x0_prediction" { // the noise put back is the unconditional one's
			for i, e := range models.Data(p.Renoise) {
				c.near(t, "noise put back", e, -n.Alpha*m.u[i]/n.Sigma)
			}
		}
	}
	still, _ := guided(t, guidance.CFGZero{W: w, Space: guidance.Raw, Zero: 1}.Guide(m), models.Step{}, x, n)
	c.all(t, "first step of CFG-Zero*", still, x)
}

func (c *golden) momentum(t *testing.T) {
	cond, uncond, want := get[[][]float64](t, c.Inputs, "cond"), get[[][]float64](t, c.Inputs, "uncond"), get[[][]float64](t, c.Expected, "guided")
	num := func(key string) float64 { return get[float64](t, c.Inputs, key) }
	m := &stub{kind: schedules.X0}
	d := guidance.APG{W: num("w"), Beta: num("beta"), Tau: num("tau"), Eta: num("eta")}.Guide(m)
	for range 2 { // a second run starts afresh
		for i := range cond {
			m.c, m.u = cond[i], uncond[i]
			for stage := range 3 { // the later calls of a step, and the first asked again, see the same past
				have, _ := guided(t, d, models.Step{I: i, Stage: stage % 2}, make([]float64, len(m.c)), schedules.VPLinear{}.At(0.5))
				c.all(t, "guided", have, want[i])
			}
		}
	}
}

func (c *golden) points(t *testing.T) {
	m := c.mixture(t)
	x := get[[][]float64](t, c.Inputs, "x")
	label, w, node := get[int](t, c.Inputs, "label"), get[float64](t, c.Inputs, "w"), m.Process().(schedules.Gaussian).At(get[float64](t, c.Inputs, "t"))
	q := &models.Query{X: models.Wrap(slices.Concat(x...), len(x), m.Dim()), Cond: &models.Cond{}}
	for range x {
		q.At, q.Cond.Classes = append(q.At, node), append(q.Cond.Classes, label)
	}
	flat := func(key string) []float64 { return slices.Concat(get[[][]float64](t, c.Expected, key)...) }
	var p models.Pred
	for key, g := range map[string]guidance.Guider{
		"eps_cfg":                 guidance.CFG{W: w},
		"eps_classifier_guidance": guidance.Classifier{W: w, Uncond: true},
	} {
		if err := g.Guide(m).Predict(context.Background(), q, &p); err != nil {
			t.Fatal(err)
		}
		c.all(t, key, models.Data(p.Out), flat(key))
		for kind, name := range map[schedules.Kind]string{schedules.X0: "x0_cfg", schedules.V: "v_cfg", schedules.Score: "score_cfg"} {
			// The same guidance on a model that answers in another kind.
			target := m.Target()
			target.Prediction = kind
			other, err := analytic.New(target)
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Guide(models.Metered(other)).Predict(context.Background(), q, &p); err != nil {
				t.Fatal(err)
			}
			c.all(t, name, models.Data(p.Out), flat(name))
		}
	}
	logp, grad := make([]float64, len(x)), models.New(len(x), m.Dim())
	if err := (guidance.Posterior{Target: m}).LogProb(context.Background(), q.X, q.At, q.Cond.Classes, logp, grad); err != nil {
		t.Fatal(err)
	}
	c.all(t, "log p(class | x)", logp, get[[]float64](t, c.Expected, "log_p_label_given_x"))
	c.all(t, "gradient", models.Data(grad), flat("classifier_gradient"))
}

func (c *golden) threshold(t *testing.T) {
	g := guidance.Threshold{Quantile: get[float64](t, c.Inputs, "quantile"), Max: get[float64](t, c.Inputs, "max")}
	want := get[[][]float64](t, c.Expected, "x0")
	for i, x0 := range get[[][]float64](t, c.Inputs, "x0") {
		have, p := guided(t, g.Guide(&stub{c: x0, kind: schedules.X0}), models.Step{}, make([]float64, len(x0)), schedules.VPLinear{}.At(0.5))
		c.all(t, "x0", have, want[i])
		if p.Kind != schedules.X0 {
			t.Errorf("%s: a prediction of kind %v", c.Name, p.Kind)
		}
	}
}
