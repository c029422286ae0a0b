package inverse

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"drift/guidance"
	"drift/internal/operators"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

type golden struct {
	Name, Kind, Method string
	Target             json.RawMessage
	Options            struct {
		Method  string
		Eta     float64
		Steps   int
		Zeta    float64
		A       json.RawMessage
		Y       []float64
		Sigma_y float64
	}
	Inputs, Expected map[string]json.RawMessage
	Tol              struct{ Abs, Rel float64 }
	Stats            []struct {
		Stat                         string
		Value, Value_se, Run_sd, Tol float64
		N_se                         float64
	}
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

func (c *golden) rows(t *testing.T, what string, have []float64, want [][]float64) {
	t.Helper()
	flat := slices.Concat(want...)
	if len(have) != len(flat) {
		t.Fatalf("%s: %s has %d numbers, want %d", c.Name, what, len(have), len(flat))
	}
	for i := range have {
		c.near(t, fmt.Sprintf("%s[%d]", what, i), have[i], flat[i])
	}
}

// mixture is the target, which counts its evaluations.
func (c *golden) mixture(t *testing.T) (*analytic.Mixture, models.Denoiser) {
	t.Helper()
	m, err := analytic.Parse(c.Target)
	if err != nil {
		t.Fatal(err)
	}
	return m, models.Metered(m)
}

// numbers reads a vector or a matrix of one row.
func numbers(t *testing.T, raw json.RawMessage) [][]float64 {
	t.Helper()
	var m [][]float64
	if json.Unmarshal(raw, &m) == nil {
		return m
	}
	var v []float64
	if json.Unmarshal(raw, &v) == nil {
		return [][]float64{v}
	}
	var x float64
	if err := json.Unmarshal(raw, &x); err != nil {
		t.Fatal(err)
	}
	return [][]float64{{x}}
}

func measurement(t *testing.T, a [][]float64, y []float64, sigma float64) operators.Measurement {
	t.Helper()
	var rows []string
	for _, r := range a {
		rows = append(rows, strings.Trim(fmt.Sprint(r), "[]"))
	}
	op, err := operators.Parse("matrix:rows="+strings.Join(rows, ";"), []int{len(a[0])}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return operators.Measurement{A: op, Y: y, Sigma: sigma}
}

func (c *golden) measured(t *testing.T) operators.Measurement {
	t.Helper()
	var y []float64
	if json.Unmarshal(c.Inputs["y"], &y) != nil {
		y = []float64{get[float64](t, c.Inputs, "y")}
	}
	return measurement(t, numbers(t, c.Inputs["A"]), y, get[float64](t, c.Inputs, "sigma_y"))
}

// method makes the sampler that a text names.
func method(t *testing.T, text string, m operators.Measurement) samplers.Sampler {
	t.Helper()
	f, _, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	s, err := f(m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// grid is that of the fixtures: S times, then clean data.
func grid(p schedules.Process, steps int) schedules.Grid {
	var g schedules.Grid
	for i := steps; i > 0; i-- {
		g = append(g, p.(schedules.Gaussian).At(math.RoundToEven(999*float64(i)/float64(steps))))
	}
	return append(g, schedules.Node{T: -1, Alpha: 1})
}

// impulse is noise of which row 0 has none, and every other row has one element that is 1: the start's or one step's.
type impulse struct{ dim int }

func (n impulse) Normal(dst []float64, d samplers.Draw) {
	clear(dst)
	if k := (d.Step+1)*n.dim + 1; d.Slot >= k && d.Slot < k+n.dim {
		dst[d.Slot-k] = 1
	}
}

// moments runs an affine method on its impulses: mean and covariance of its result, exactly.
func moments(t *testing.T, s samplers.Sampler, d models.Denoiser, g schedules.Grid, dim int) (mean []float64, cov [][]float64) {
	t.Helper()
	rows := 1 + dim*len(g)
	res, err := samplers.Sample(context.Background(), s, &samplers.Problem{Model: d, Grid: g, Rows: make([]models.Row, rows), Shape: []int{dim}, Noise: impulse{dim}})
	if err != nil {
		t.Fatal(err)
	}
	x := models.Data(res.X)
	mean = x[:dim]
	cov = make([][]float64, dim)
	for i := range dim {
		cov[i] = make([]float64, dim)
		for j := range dim {
			for k := 1; k < rows; k++ {
				cov[i][j] += (x[k*dim+i] - mean[i]) * (x[k*dim+j] - mean[j])
			}
		}
	}
	return mean, cov
}

// spelled is our text for a fixture's method.
func (c *golden) spelled() string {
	eta := fmt.Sprintf("eta=%g", c.Options.Eta)
	switch c.Options.Method {
	case "dps:form=gaussian", "dps-gaussian":
		return "dps:form=gaussian," + eta
	case "pigdm":
		return "pigdm:" + eta
	case "exact-covariance":
		return "tmpd:" + eta
	case "ddnm":
		return "ddnm:eta=0.85"
	case "ddnm-ddim":
		return "ddnm:noise=ddim," + eta
	case "ddrm":
		return "ddrm:eta=0.85,eta-b=1"
	case "dps":
		return fmt.Sprintf("dps:zeta=%g,%s", c.Options.Zeta, eta)
	case "pigdm with J = alpha/(alpha^2+sigma^2) I":
		return "pigdm:grad=scalar," + eta
	case "x0hat + A^T(y - A x0hat) (c = 1/2 on the square), eps recomputed":
		return "mpgd:c=1," + eta
	}
	return ""
}

func cases(t *testing.T) []golden {
	t.Helper()
	raw, err := os.ReadFile("testdata/inverse.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []golden
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGolden(t *testing.T) {
	ran := map[string]int{}
	for _, c := range cases(t) {
		kind, _, _ := strings.Cut(c.Name, "-")
		switch {
		case c.Kind == "statistical":
			kind = "chains"
			c.chains(t)
		case kind == "t1" && c.Options.Steps > 100 && os.Getenv("DRIFT_SLOW") == "" && !strings.HasPrefix(c.Name, "t1-v0.25"):
			// a thousand steps of a thousand rows: one prior of the four is enough for every day
		case kind == "t1":
			c.line(t)
		case kind == "t2":
			c.plane(t)
		case kind == "updates":
			c.updates(t)
		case c.Name == "t3-posterior":
			kind = "posterior"
			c.posterior(t)
		case strings.HasPrefix(c.Name, "stsl-trace"):
			kind = "trace"
			c.trace(t)
		case strings.HasPrefix(c.Name, "stsl-gradient"):
			c.second(t)
		default:
			t.Errorf("no test for %s", c.Name)
		}
		ran[kind]++
	}
	for kind, n := range map[string]int{"t1": 19, "t2": 9, "chains": 7, "updates": 4, "posterior": 1, "trace": 2, "stsl": 2} {
		if ran[kind] != n {
			t.Errorf("%d cases of %s, want %d", ran[kind], kind, n)
		}
	}
}

// line is T1: mean and variance in one dimension.
func (c *golden) line(t *testing.T) {
	m, d := c.mixture(t)
	y := c.measured(t)
	var s samplers.Sampler = samplers.DDIM{Eta: c.Options.Eta}
	if c.Options.Method != "none" {
		s = method(t, c.spelled(), y)
	}
	mean, cov := moments(t, s, d, grid(m.Process(), c.Options.Steps), 1)
	c.near(t, "mean", mean[0], get[float64](t, c.Expected, "mean"))
	c.near(t, "variance", cov[0][0], get[float64](t, c.Expected, "variance"))
	post, err := m.Given(y)
	if err != nil {
		t.Fatal(err)
	}
	a, v := post.Moments()
	c.near(t, "posterior mean", a[0], get[float64](t, c.Expected, "posterior_mean"))
	c.near(t, "posterior variance", v[0], get[float64](t, c.Expected, "posterior_variance"))
}

// plane is T2: two correlated dimensions, of which the first is measured.
func (c *golden) plane(t *testing.T) {
	m, d := c.mixture(t)
	y := c.measured(t)
	mean, cov := moments(t, method(t, c.spelled(), y), d, grid(m.Process(), c.Options.Steps), 2)
	c.rows(t, "mean", mean, [][]float64{get[[]float64](t, c.Expected, "mean")})
	c.rows(t, "covariance", slices.Concat(cov...), get[[][]float64](t, c.Expected, "covariance"))
	post, err := m.Given(y)
	if err != nil {
		t.Fatal(err)
	}
	c.rows(t, "posterior mean", post.Means[0], [][]float64{get[[]float64](t, c.Expected, "posterior_mean")})
	c.rows(t, "posterior covariance", slices.Concat(post.Covs[0]...), get[[][]float64](t, c.Expected, "posterior_covariance"))
}

// given is step noise that is written out.
type given []float64

func (n given) Normal(dst []float64, d samplers.Draw) { copy(dst, n[d.Slot*len(dst):]) }

// updates makes one step of every method.
func (c *golden) updates(t *testing.T) {
	m, d := c.mixture(t)
	y := c.measured(t)
	x := get[[][]float64](t, c.Inputs, "x")
	dim := len(x[0])
	from := m.Process().(schedules.Gaussian).At(get[float64](t, c.Inputs, "t"))
	to := m.Process().(schedules.Gaussian).AtRatio(get[float64](t, c.Inputs, "sigma_u") / get[float64](t, c.Inputs, "alpha_u"))
	to.Alpha, to.Sigma = get[float64](t, c.Inputs, "alpha_u"), get[float64](t, c.Inputs, "sigma_u")
	c.near(t, "alpha_t", from.Alpha, get[float64](t, c.Inputs, "alpha_t"))
	p := samplers.Problem{Model: d, Grid: schedules.Grid{from, to}, Rows: make([]models.Row, len(x)), Shape: []int{dim},
		Start: models.Wrap(slices.Concat(x...), len(x), dim), Noise: given(slices.Concat(get[[][]float64](t, c.Inputs, "noise")...))}
	want := func(key string) [][]float64 { return get[[][]float64](t, c.Expected, key) }
	for key, text := range map[string]string{
		"dps_zeta0.5": "dps:zeta=0.5", "x_pigdm": "pigdm", "x_exact_covariance": "tmpd:iterations=5", "x_dps_gaussian": "dps:form=gaussian", "x_ddnm": "ddnm",
		"x_mpgd_c0.5": "mpgd:c=1", "x_ddrm": "ddrm", "x_ddnm_plus": "ddnm+", "x_diffpir": "diffpir:lambda=7,zeta=0.3", "plain": "dps:zeta=0",
	} {
		own := p
		res, err := samplers.Sample(context.Background(), method(t, text, y), &own)
		if err != nil {
			t.Fatalf("%s: %s: %v", c.Name, text, err)
		}
		c.rows(t, text, models.Data(res.X), want(key))
	}
	// The gradients themselves.
	q := &models.Query{X: p.Start, At: slices.Repeat([]schedules.Node{from}, len(x)), Rows: p.Rows}
	var pred models.Pred
	ask := func(way guidance.Way, h float64, u func(x0, u []float64)) []float64 {
		j := &guidance.Jacobian{Way: way, H: h}
		x0, g, err := j.Pull(context.Background(), d, q, &pred, func(x0, c []float64) error {
			for i := range x {
				u(x0[i*dim:(i+1)*dim], c[i*dim:(i+1)*dim])
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		c.rows(t, "x0", x0, want("x0"))
		return g
	}
	c.rows(t, "gradient of the square", ask(guidance.WayExact, 0, func(x0, u []float64) {
		y.A.VJP(u, x0, y.Residual(x0))
		for i := range u {
			u[i] *= -2
		}
	}), want("grad_square"))
	jac := get[[][][]float64](t, c.Expected, "jacobian")
	for k := range dim {
		g := ask(guidance.WayAuto, 0, func(_, u []float64) { clear(u); u[k] = 1 })
		var row [][]float64
		for i := range x {
			row = append(row, jac[i][k])
		}
		c.rows(t, "row of the Jacobian", g, row)
	}
	pi := func(x0, u []float64) {
		r2 := from.Sigma * from.Sigma / (from.Alpha*from.Alpha + from.Sigma*from.Sigma)
		operators.Filter(y.A.(operators.Linear), func(s float64) float64 { return s / (r2*s*s + y.Sigma*y.Sigma) }, u, y.Residual(x0))
	}
	c.rows(t, "g of pigdm", ask(guidance.WayExact, 0, pi), want("g_pigdm"))
	c.rows(t, "g of pigdm, scalar", ask(guidance.WayScalar, 0, pi), want("g_scalar_jacobian_pigdm"))
	loose := *c
	loose.Tol.Abs, loose.Tol.Rel = 1e-5, 1e-5 // as the fixture says: O(h)
	loose.rows(t, "g of pigdm, differences", ask(guidance.WayDifferences, 1e-6, pi), want("fd_jvp_h1e-5_of_pigdm_cotangent"))
}

func (c *golden) posterior(t *testing.T) {
	m, _ := c.mixture(t)
	p, err := m.Given(c.measured(t))
	if err != nil {
		t.Fatal(err)
	}
	c.rows(t, "weights", p.Weights, [][]float64{get[[]float64](t, c.Expected, "weights")})
	c.rows(t, "means", slices.Concat(p.Means...), get[[][]float64](t, c.Expected, "means"))
	for k, cov := range get[[][][]float64](t, c.Expected, "covs") {
		c.rows(t, "covariance", slices.Concat(p.Covs[k]...), cov)
	}
	c.near(t, "log evidence", p.LogEvidence, get[float64](t, c.Expected, "log_evidence"))
}

// chains compares what independent chains come to with the fixture's statistics.
func (c *golden) chains(t *testing.T) {
	m, d := c.mixture(t)
	var a [][]float64 = numbers(t, c.Options.A)
	runs := 3000
	if os.Getenv("DRIFT_SLOW") != "" {
		runs = 20000
	}
	rows := make([]models.Row, runs)
	for i := range rows {
		rows[i].Seed = uint64(i + 1)
	}
	s := method(t, c.spelled(), measurement(t, a, c.Options.Y, c.Options.Sigma_y))
	res, err := samplers.Sample(context.Background(), s, &samplers.Problem{Model: d, Grid: grid(m.Process(), c.Options.Steps), Rows: rows, Shape: []int{2}})
	if err != nil {
		t.Fatal(err)
	}
	x := models.Data(res.X)
	centre := [][]float64{{-1, 1}, {1, -1}} // of T3
	sd := math.Sqrt(0.05)
	column := func(i int) (v []float64) {
		for k := range runs {
			v = append(v, x[2*k+i])
		}
		return v
	}
	var mode, far, of1 []float64
	for k := range runs {
		p := x[2*k : 2*k+2]
		d0, d1 := math.Hypot(p[0]-centre[0][0], p[1]-centre[0][1]), math.Hypot(p[0]-centre[1][0], p[1]-centre[1][1])
		mode = append(mode, b2f(d1 < d0))
		far = append(far, b2f(min(d0, d1) > 3*sd))
		if d1 < d0 {
			of1 = append(of1, p[0])
		}
	}
	for _, st := range c.Stats {
		var v []float64
		variance := false
		switch st.Stat {
		case "mean x1", "variance x1":
			v, variance = column(0), strings.HasPrefix(st.Stat, "var")
		case "mean x2", "variance x2":
			v, variance = column(1), strings.HasPrefix(st.Stat, "var")
		case "fraction of chains nearest mode 1":
			v = mode
		case "fraction farther than 3 sd from every mode":
			v = far
		case "mean of x[0] of chains nearest mode 1":
			v = of1
		default:
			t.Fatalf("no statistic %q", st.Stat)
		}
		mean, vr := meanVar(v)
		got := mean
		if variance {
			got = vr
		}
		if slack := st.Tol + st.N_se*math.Sqrt(st.Run_sd*st.Run_sd/float64(len(v))+st.Value_se*st.Value_se); !(math.Abs(got-st.Value) <= slack) {
			t.Errorf("%s: %s is %g, want %g to %g", c.Name, st.Stat, got, st.Value, slack)
		}
	}
}

func b2f(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func meanVar(v []float64) (mean, variance float64) {
	for _, x := range v {
		mean += x / float64(len(v))
	}
	for _, x := range v {
		variance += (x - mean) * (x - mean) / float64(len(v))
	}
	return mean, variance
}

// probe asks for what STSL's second term is made of: e.(score(z + delta e) - score(z))/delta of every row, and its
// gradient.
func probe(t *testing.T, d models.Denoiser, n schedules.Node, z, e []float64, rows int, delta float64) (value, gradient []float64) {
	t.Helper()
	dim := len(z) / rows
	at := slices.Repeat([]schedules.Node{n}, rows)
	score := func(x []float64) (s, g []float64) {
		var p models.Pred
		q := &models.Query{X: models.Wrap(slices.Clone(x), rows, dim), At: at}
		x0, g, err := (&guidance.Jacobian{}).Pull(context.Background(), d, q, &p, func(_, u []float64) error { copy(u, e); return nil })
		if err != nil {
			t.Fatal(err)
		}
		s = make([]float64, len(x))
		for i := range x {
			s[i] = (n.Alpha*x0[i] - x[i]) / (n.Sigma * n.Sigma)
		}
		return s, slices.Clone(g)
	}
	moved := slices.Clone(z)
	for i := range moved {
		moved[i] += delta * e[i]
	}
	s1, g1 := score(moved)
	s0, g0 := score(z)
	value, gradient = make([]float64, rows), make([]float64, len(z))
	for i := range z {
		value[i/dim] += e[i] * (s1[i] - s0[i]) / delta
		gradient[i] = n.Alpha / (n.Sigma * n.Sigma) * (g1[i] - g0[i]) / delta
	}
	return value, gradient
}

// trace: the expectation of STSL's probe over e ~ N(0, 1), by quadrature.
func (c *golden) trace(t *testing.T) {
	m, d := c.mixture(t)
	n := m.Process().(schedules.Gaussian).At(get[float64](t, c.Inputs, "t"))
	z := get[[]float64](t, c.Inputs, "x")[0]
	want := get[[]float64](t, c.Expected, "expected_estimate")
	const points = 4001
	var e, w []float64
	for i := range points {
		v := -9 + 18*float64(i)/(points-1)
		e, w = append(e, v), append(w, math.Exp(-v*v/2)/math.Sqrt(2*math.Pi)*18/(points-1))
	}
	for k, delta := range get[[]float64](t, c.Inputs, "deltas") {
		v, _ := probe(t, d, n, slices.Repeat([]float64{z}, points), e, points, delta)
		sum := 0.0
		for i := range v {
			sum += w[i] * v[i]
		}
		c.near(t, fmt.Sprintf("trace with delta %g", delta), sum, want[k])
	}
	var h [1]float64
	if err := m.Hessian(h[:], []float64{z}, n, models.NoClass); err != nil {
		t.Fatal(err)
	}
	c.near(t, "trace of the Hessian", h[0], get[float64](t, c.Expected, "trace_hessian"))
}

// second: the gradient of STSL's second term, and that the stepper goes down it.
func (c *golden) second(t *testing.T) {
	m, d := c.mixture(t)
	n := m.Process().(schedules.Gaussian).AtRatio(get[float64](t, c.Inputs, "sigma") / get[float64](t, c.Inputs, "alpha"))
	n.Alpha, n.Sigma = get[float64](t, c.Inputs, "alpha"), get[float64](t, c.Inputs, "sigma")
	z, e := get[[][]float64](t, c.Inputs, "z"), get[[][]float64](t, c.Inputs, "eps")
	rows, dim := len(z), len(z[0])
	value, grad := probe(t, d, n, slices.Concat(z...), slices.Concat(e...), rows, 1)
	c.rows(t, "second-order term", value, [][]float64{get[[]float64](t, c.Expected, "second_order_term")})
	want := get[[][]float64](t, c.Expected, "gradient")
	c.rows(t, "gradient", grad, want)
	// One inner turn with no misfit moves x by -Second/d times the gradient; a step of length nearly zero shows x.
	y := measurement(t, [][]float64{make([]float64, dim)}, []float64{0}, 1)
	to := n
	to.Sigma *= 1 - 1e-15
	s := STSL{Of: y, Second: 0.02, Inner: 1, FromNoise: true}
	res, err := samplers.Sample(context.Background(), s, &samplers.Problem{Model: d, Grid: schedules.Grid{n, to}, Rows: make([]models.Row, rows), Shape: []int{dim},
		Start: models.Wrap(slices.Concat(z...), rows, dim), Noise: given(slices.Concat(e...))})
	if err != nil {
		t.Fatal(err)
	}
	flat, x := slices.Concat(z...), models.Data(res.X)
	moved := make([]float64, len(x))
	for i := range x {
		moved[i] = (flat[i] - x[i]) * float64(dim) / 0.02
	}
	loose := *c
	loose.Tol.Abs += 1e-11
	loose.rows(t, "step down the second term", moved, want)
}
