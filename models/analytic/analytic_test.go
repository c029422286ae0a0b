package analytic

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"drift/internal/refuse"
	"drift/models"
	"drift/schedules"
)

var allKinds = []schedules.Kind{schedules.Eps, schedules.X0, schedules.V, schedules.Velocity, schedules.Score}

func near(t *testing.T, what string, got, want, tol float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tol) {
		t.Errorf("%s is %.13g, want %.13g (off by %.2g, allowed %.2g)", what, got, want, got-want, tol)
	}
}

// mix is the one-dimensional mixture of the test problems.
func mix(t testing.TB, p schedules.Gaussian, kind schedules.Kind) *Mixture {
	t.Helper()
	m, err := New(Target{
		Weights: []float64{0.4, 0.6}, Means: [][]float64{{-1}, {1.5}}, Vars: [][]float64{{0.0625}, {0.25}},
		Process: p, Prediction: kind,
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestModelValues(t *testing.T) {
	for _, c := range []struct {
		p            schedules.Gaussian
		t, x         float64
		a, s, lambda float64
		eps, x0      float64
	}{
		{schedules.VPLinear{}, 0.5, -0.4, 0.281182880797, 0.959654202068, -1.227567734411, -0.489000886817, 0.246358368803},
		{schedules.VE{}, 2, 1, 1, 2, -math.Ln2, 0.131062361613, 0.737875276774},
	} {
		m, n := mix(t, c.p, schedules.Eps), c.p.At(c.t)
		near(t, "alpha", n.Alpha, c.a, 1e-12)
		near(t, "sigma", n.Sigma, c.s, 1e-12)
		near(t, "lambda", n.Lambda(), c.lambda, 1e-12)
		var got [1]float64
		for kind, want := range map[schedules.Kind]float64{schedules.Eps: c.eps, schedules.X0: c.x0} {
			if err := m.Evaluate(got[:], []float64{c.x}, n, models.NoClass, kind); err != nil {
				t.Fatal(err)
			}
			near(t, kind.String(), got[0], want, 1e-12)
		}
	}
}

// TestExactFlow holds the exact flow to the printed ends of the test problems.
func TestExactFlow(t *testing.T) {
	gau, err := New(Target{
		Weights: []float64{1}, Means: [][]float64{{0.5}}, Vars: [][]float64{{0.25}},
		Process: schedules.VPLinear{}, Prediction: schedules.Eps,
	})
	if err != nil {
		t.Fatal(err)
	}
	vp, edm, ve, flow := schedules.VPLinear{}, schedules.EDM{}, schedules.VE{}, schedules.Flow{}
	for _, c := range []struct {
		name        string
		m           *Mixture
		from, to    schedules.Node
		x, want     float64
		tol, margin float64
	}{
		{"P-VP", mix(t, vp, schedules.Eps), vp.At(1), vp.At(0.001), -0.4, -0.7314099575, 6e-11, 0},
		{"P-VP Gaussian", gau, vp.At(1), vp.At(0.001), 1.2, 1.0984379791, 6e-11, 0},
		{"P-EDM", mix(t, edm, schedules.X0), edm.At(80), edm.At(0), -32, -0.7346548909, 6e-11, 0},
		{"P-ORD", mix(t, ve, schedules.Eps), ve.At(5), ve.At(0.2), 3, 1.467467064724, 6e-13, 0},
		{"P-FLOW", mix(t, flow, schedules.Velocity), flow.At(1), flow.At(0), -0.4, -0.7282977327, 6e-11, 0},
	} {
		var got, back [1]float64
		if err := c.m.Transport(got[:], []float64{c.x}, c.from, c.to, models.NoClass); err != nil {
			t.Fatal(err)
		}
		near(t, c.name, got[0], c.want, c.tol)
		if err := c.m.Transport(back[:], got[:], c.to, c.from, models.NoClass); err != nil {
			t.Fatal(err)
		}
		near(t, c.name+" and back", back[0], c.x, 1e-12*max(1, math.Abs(c.x)))
	}
}

// TestFlowFollowsVelocity integrates the velocity with small classical Runge-Kutta steps.
func TestFlowFollowsVelocity(t *testing.T) {
	g16 := target(t, "gmm16").Target()
	full, err := New(Target{Weights: []float64{1}, Means: g16.Means[:1], Covs: g16.Covs[:1], Process: schedules.Trig{}})
	if err != nil {
		t.Fatal(err)
	}
	diag, err := New(Target{Weights: []float64{1}, Means: [][]float64{{1, -2}}, Vars: [][]float64{{0.1, 3}}, Process: schedules.Flow{}})
	if err != nil {
		t.Fatal(err)
	}
	lab, err := New(Target{
		Weights: []float64{0.2, 0.5, 0.3}, Means: [][]float64{{-1}, {0.3}, {1.2}}, Vars: [][]float64{{0.3}, {0.2}, {0.4}},
		Labels: []int{0, 1, 1}, Process: schedules.VPLinear{},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		m        *Mixture
		from, to float64
		class    int
		tol      float64
	}{
		{"full", full, 0.99, 0.02, models.NoClass, 1e-10},
		{"diagonal", diag, 1, 0, models.NoClass, 1e-10},
		{"one dimension", lab, 1, 0.05, models.NoClass, 1e-9},
		{"two of three", lab, 1, 0.05, 1, 1e-9},
		{"towards noise", lab, 0.05, 1, 1, 1e-9},
	} {
		m, d := c.m, c.m.Dim()
		x := make([]float64, d)
		for i := range x {
			x[i] = 1.7 * math.Sin(float64(i+1))
		}
		want := make([]float64, d)
		p := m.target.Process
		if err := m.Transport(want, x, p.At(c.from), p.At(c.to), c.class); err != nil {
			t.Fatal(err)
		}
		const steps = 4000
		h := (c.to - c.from) / steps
		k, at := make([][]float64, 4), make([]float64, d)
		for i := range k {
			k[i] = make([]float64, d)
		}
		for step := range steps {
			for i, f := range []float64{0, 0.5, 0.5, 1} {
				for j := range at {
					at[j] = x[j]
					if i > 0 {
						at[j] += f * h * k[i-1][j]
					}
				}
				if err := m.Evaluate(k[i], at, p.At(c.from+(c.to-c.from)*((float64(step)+f)/steps)), c.class, schedules.Velocity); err != nil {
					t.Fatal(err)
				}
			}
			for j := range x {
				x[j] += h / 6 * (k[0][j] + 2*k[1][j] + 2*k[2][j] + k[3][j])
			}
		}
		if g := gap(x, want); g > c.tol {
			t.Errorf("%s: the integrated flow is %.2g away from the exact one", c.name, g)
		}
	}
}

// TestFlowFarOut checks that the flow is a monotone bijection deep in both tails, where distribution functions
// underflow.
func TestFlowFarOut(t *testing.T) {
	m := mix(t, schedules.EDM{}, schedules.X0)
	from, to := schedules.EDM{}.At(80), schedules.EDM{}.At(0.01)
	last := math.Inf(-1)
	for _, x := range []float64{-1e5, -8000, -3000, -1600, -400, 0, 7, 400, 1600, 3000, 8000, 1e5} {
		var y, back [1]float64
		if err := m.Transport(y[:], []float64{x}, from, to, models.NoClass); err != nil {
			t.Fatal(err)
		}
		if y[0] <= last {
			t.Errorf("the flow sends %g to %g, behind its neighbour at %g", x, y[0], last)
		}
		last = y[0]
		if err := m.Transport(back[:], y[:], to, from, models.NoClass); err != nil {
			t.Fatal(err)
		}
		near(t, "there and back", back[0], x, 1e-10*max(80, math.Abs(x)))
	}
	for z := -60.0; z < 9; z += 0.37 { // the branches of logPhi meet: its slope is phi/Phi
		h := 1e-4
		slope := (logPhi(z+h) - logPhi(z-h)) / (2 * h)
		near(t, "slope of logPhi", slope, math.Exp(-z*z/2-0.5*math.Log(2*math.Pi)-logPhi(z)), 1e-6*max(1, -z))
	}
	near(t, "logPhi across -20", logPhi(math.Nextafter(-20, 0)), logPhi(math.Nextafter(-20, -30)), 1e-11)
	m2 := target(t, "ring8")
	if err := m2.Transport(make([]float64, 2), []float64{1, 1}, from, to, models.NoClass); err == nil {
		t.Error("the flow of eight components in two dimensions has no closed form")
	}
}

// cases are mixtures of every form: diagonal, full, with classes, one component, one dimension.
func cases(t testing.TB) map[string]*Mixture {
	out := map[string]*Mixture{}
	for _, name := range []string{"mix1d", "gau1d-ve", "ring8-cosine", "gmm16", "gmm16-ve", "lab4-flow", "lab4-sd", "gmm64"} {
		out[name] = target(t, name)
	}
	return out
}

// nodesOf are a few nodes of a process, its own ends among them.
func nodesOf(p schedules.Gaussian) []schedules.Node {
	noise, data := p.Ends()
	var out []schedules.Node
	for _, f := range []float64{0, 0.1, 0.5, 0.9, 0.99} {
		out = append(out, p.At(noise+f*(data-noise)))
	}
	return out
}

// draw puts a noisy row at node n, one in four far out.
func draw(t testing.TB, m *Mixture, n schedules.Node, class int, r *rand.Rand) []float64 {
	t.Helper()
	x := make([]float64, m.Dim())
	if err := m.Sample(x, class, r.Uint64()); err != nil {
		t.Fatal(err)
	}
	far := 0.0
	if r.IntN(4) == 0 {
		far = 3 * (n.Sigma + 0.3)
	}
	for i := range x {
		x[i] = n.Alpha*x[i] + n.Sigma*r.NormFloat64() + far
	}
	return x
}

// slope is the directional derivative of f at x along u by the five-point formula, error O(h^4).
func slope(f func(x []float64) float64, x, u []float64, h float64) float64 {
	at := func(k float64) float64 {
		y := make([]float64, len(x))
		for i := range y {
			y[i] = x[i] + k*h*u[i]
		}
		return f(y)
	}
	return (8*(at(1)-at(-1)) - (at(2) - at(-2))) / (12 * h)
}

func direction(d int, r *rand.Rand) []float64 {
	u, norm := make([]float64, d), 0.0
	for i := range u {
		u[i] = r.NormFloat64()
		norm += u[i] * u[i]
	}
	for i := range u {
		u[i] /= math.Sqrt(norm)
	}
	return u
}

func inner(a, b []float64) float64 {
	sum := 0.0
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}

func TestScoreIsTheSlope(t *testing.T) {
	for name, m := range cases(t) {
		r := rand.New(rand.NewPCG(1, 2))
		for class := models.NoClass; class < m.Classes(); class++ {
			for _, n := range nodesOf(m.target.Process) {
				x, u, score := draw(t, m, n, class, r), direction(m.Dim(), r), make([]float64, m.Dim())
				if err := m.Score(score, x, n, class); err != nil {
					t.Fatal(err)
				}
				got := slope(func(x []float64) float64 {
					v, err := m.LogP(x, n, class)
					if err != nil {
						t.Fatal(err)
					}
					return v
				}, x, u, 2e-3*(n.Sigma+0.1*n.Alpha))
				want := inner(score, u)
				near(t, name+" slope of log p", got, want, 2e-7*math.Sqrt(inner(score, score))+1e-7)
			}
		}
	}
}

func TestVJP(t *testing.T) {
	ctx := context.Background()
	for name, base := range cases(t) {
		r := rand.New(rand.NewPCG(3, 4))
		for _, kind := range allKinds {
			m := predicting(t, base, kind)
			nodes := nodesOf(m.target.Process)
			rows, d := len(nodes), m.Dim()
			cond := &models.Cond{}
			var x, cot []float64
			for i, n := range nodes {
				class := models.NoClass
				if m.Classes() > 0 && i%2 == 1 {
					class = i % m.Classes()
				}
				cond.Classes = append(cond.Classes, class)
				x = append(x, draw(t, m, n, class, r)...)
				cot = append(cot, direction(d, r)...)
			}
			var p, plain models.Pred
			q := &models.Query{X: models.Wrap(x, rows, d), At: nodes, Cond: cond, Meter: &models.Meter{}}
			grad := models.New(rows, d)
			meteredVJP, ok := models.As[models.VJP](models.Metered(m))
			if !ok {
				t.Fatal("no VJP behind the meter")
			}
			if err := meteredVJP.VJP(ctx, q, &p, models.Wrap(cot, rows, d), grad); err != nil {
				t.Fatal(err)
			}
			if q.Meter.VJPs() != int64(rows) {
				t.Errorf("%d VJPs counted, want %d", q.Meter.VJPs(), rows)
			}
			if err := m.Predict(ctx, q, &plain); err != nil {
				t.Fatal(err)
			}
			if gap(models.Data(p.Out), models.Data(plain.Out)) != 0 {
				t.Errorf("%s %v: VJP and Predict answer differently", name, kind)
			}
			for i, n := range nodes {
				row, c, u := x[i*d:][:d], cot[i*d:][:d], direction(d, r)
				out := make([]float64, d)
				got := slope(func(x []float64) float64 {
					if err := m.Evaluate(out, x, n, cond.Classes[i], kind); err != nil {
						t.Fatal(err)
					}
					return inner(out, c)
				}, row, u, 2e-3*(n.Sigma+0.1*n.Alpha))
				g := models.Data(grad)[i*d:][:d]
				near(t, name+" "+kind.String()+" VJP", inner(g, u), got, 3e-7*math.Sqrt(inner(g, g))+1e-8)
			}
		}
	}
}

func TestHessian(t *testing.T) {
	for name, m := range cases(t) {
		r := rand.New(rand.NewPCG(5, 6))
		d := m.Dim()
		class := m.Classes() - 1 // the last class, or none
		score := predicting(t, m, schedules.Score)
		for _, n := range nodesOf(m.target.Process) {
			x, u, h := draw(t, m, n, class, r), direction(d, r), make([]float64, d*d)
			if err := m.Hessian(h, x, n, class); err != nil {
				t.Fatal(err)
			}
			product := make([]float64, d)
			for i := range d {
				product[i] = inner(h[i*d:][:d], u)
				for j := range i {
					near(t, name+" symmetry", h[i*d+j], h[j*d+i], 1e-13*math.Abs(h[i*d+i]*h[j*d+j]))
				}
			}
			var p models.Pred
			grad := models.New(1, d)
			q := &models.Query{X: models.Wrap(x, 1, d), At: []schedules.Node{n}, Cond: &models.Cond{Classes: []int{class}}}
			if err := score.VJP(context.Background(), q, &p, models.Wrap(u, 1, d), grad); err != nil {
				t.Fatal(err)
			}
			if g := gap(product, models.Data(grad)); g > 1e-12 {
				t.Errorf("%s: Hessian u and the VJP of the score differ by %.2g", name, g)
			}
		}
	}
}

func TestLogPosterior(t *testing.T) {
	m := target(t, "lab4")
	r := rand.New(rand.NewPCG(7, 8))
	prior := map[int]float64{0: 0.4, 1: 0.15, 2: 0.25, 3: 0.2}
	for _, n := range append(nodesOf(m.target.Process), schedules.Node{T: 1, Alpha: 0, Sigma: 1}, schedules.Node{Alpha: 1}) {
		x := draw(t, m, n, models.NoClass, r)
		post, sum := make([]float64, m.Classes()), 0.0
		if err := m.LogPosterior(post, x, n); err != nil {
			t.Fatal(err)
		}
		all, err := m.LogP(x, n, models.NoClass)
		if err != nil {
			t.Fatal(err)
		}
		for c, lp := range post {
			one, err := m.LogP(x, n, c)
			if err != nil {
				t.Fatal(err)
			}
			sum += math.Exp(lp)
			near(t, "Bayes", lp, math.Log(prior[c])+one-all, 1e-12*(1+math.Abs(one)))
			if n.Alpha == 0 {
				near(t, "the posterior without signal", math.Exp(lp), prior[c], 1e-14)
			}
		}
		near(t, "sum of the posterior", sum, 1, 1e-13)
		// The classifier's gradient is the difference of scores.
		u := direction(m.Dim(), r)
		s, sc := make([]float64, m.Dim()), make([]float64, m.Dim())
		if err := errors.Join(m.Score(s, x, n, models.NoClass), m.Score(sc, x, n, 2)); err != nil {
			t.Fatal(err)
		}
		got := slope(func(x []float64) float64 {
			if err := m.LogPosterior(post, x, n); err != nil {
				t.Fatal(err)
			}
			return post[2]
		}, x, u, 2e-3*(n.Sigma+0.1*n.Alpha))
		near(t, "slope of the posterior", got, inner(sc, u)-inner(s, u), 2e-7*(1+math.Sqrt(inner(sc, sc))))
	}
	if err := target(t, "mix1d").LogPosterior(nil, []float64{0}, schedules.Node{Alpha: 1}); err == nil {
		t.Error("a target without classes has no class posterior")
	}
}

// TestEnds checks the limits at sigma = 0 and alpha = 0.
func TestEnds(t *testing.T) {
	for name, m := range cases(t) {
		r := rand.New(rand.NewPCG(9, 10))
		d := m.Dim()
		eval := func(x []float64, n schedules.Node, kind schedules.Kind) []float64 {
			t.Helper()
			out := make([]float64, d)
			if err := m.Evaluate(out, x, n, models.NoClass, kind); err != nil {
				t.Fatal(err)
			}
			return out
		}
		x := draw(t, m, schedules.Node{Alpha: 1}, models.NoClass, r)
		clean, almost := schedules.Node{Alpha: 1}, schedules.Node{Alpha: 1, Sigma: 1e-9}
		if g := gap(eval(x, clean, schedules.X0), x); g > 1e-14 {
			t.Errorf("%s: x0 at sigma 0 is off by %.2g", name, g)
		}
		if g := gap(eval(x, clean, schedules.Eps), make([]float64, d)); g != 0 {
			t.Errorf("%s: eps at sigma 0 is not 0", name)
		}
		if g := gap(eval(x, clean, schedules.Score), eval(x, almost, schedules.Score)); g > 1e-12 {
			t.Errorf("%s: the score jumps by %.2g at sigma 0", name, g)
		}
		// x0 and eps at a very small sigma keep their digits: (x - x0)/s is eps, small against x.
		e, s := eval(x, almost, schedules.Eps), eval(x, clean, schedules.Score)
		for i := range s {
			s[i] *= -1e-9
		}
		if worst := maxGap(e, s); worst > 1e-12*maxAbs(s) {
			t.Errorf("%s: eps at sigma 1e-9 is off by %.2g", name, worst/maxAbs(s))
		}
		noise := schedules.Node{T: 1, Sigma: 0.7}
		mean := make([]float64, d)
		for k, w := range m.target.Weights {
			for i, v := range m.target.Means[k] {
				mean[i] += w * v
			}
		}
		// (Log densities of 64 dimensions are around 60, where float64 has steps of 7e-15.)
		if g := gap(eval(x, noise, schedules.X0), mean); g > 3e-14 {
			t.Errorf("%s: x0 at alpha 0 is off the mean by %.2g", name, g)
		}
		want := make([]float64, d)
		for i := range want {
			want[i] = x[i] / 0.7
		}
		if g := gap(eval(x, noise, schedules.Eps), want); g > 1e-14 {
			t.Errorf("%s: eps at alpha 0 is off by %.2g", name, g)
		}
	}
	// The velocity of variance preserving processes is finite at t = 0 though sigma' is not.
	for _, p := range []schedules.Gaussian{schedules.VPLinear{}, schedules.Cosine{}} {
		m := mix(t, p, schedules.Velocity)
		var at0, near0 [1]float64
		if err := errors.Join(m.Evaluate(at0[:], []float64{0.3}, p.At(0), models.NoClass, schedules.Velocity),
			m.Evaluate(near0[:], []float64{0.3}, p.At(1e-7), models.NoClass, schedules.Velocity)); err != nil {
			t.Fatal(err)
		}
		near(t, p.Name()+" velocity at 0", at0[0], near0[0], 1e-4*math.Abs(near0[0]))
	}
}

func maxGap(a, b []float64) float64 {
	worst := 0.0
	for i := range a {
		worst = max(worst, math.Abs(a[i]-b[i]))
	}
	return worst
}

func maxAbs(a []float64) float64 { return maxGap(a, make([]float64, len(a))) }

// TestFarOut has rows so far away that every component's density underflows.
func TestFarOut(t *testing.T) {
	m := target(t, "gmm16-ve")
	x := make([]float64, m.Dim())
	for i := range x {
		x[i] = 1e6
	}
	n := schedules.Node{Alpha: 1, Sigma: 0.01}
	lp, err := m.LogP(x, n, models.NoClass)
	if err != nil {
		t.Fatal(err)
	}
	if !(lp < -1e12) || math.IsInf(lp, 0) {
		t.Errorf("log p far out is %g", lp)
	}
	out := make([]float64, m.Dim())
	for _, kind := range allKinds {
		if err := m.Evaluate(out, x, n, models.NoClass, kind); err != nil {
			t.Fatal(err)
		}
		if bad := inner(out, out); math.IsNaN(bad) || math.IsInf(bad, 0) {
			t.Errorf("%v far out is not finite", kind)
		}
	}
	x[0] = 1e200
	if err := m.Evaluate(out, x, n, models.NoClass, schedules.Eps); err != nil || !math.IsNaN(out[0]) {
		t.Errorf("beyond float64: %v, %v; want NaN", out[0], err)
	}
}

// TestFullIsDiagonal gives one mixture in three forms: variances, diagonal matrices and rotated ones.
func TestFullIsDiagonal(t *testing.T) {
	lab := target(t, "lab4").Target()
	diag, rot := lab, lab
	c, s := math.Cos(0.7), math.Sin(0.7)
	turn := func(x []float64) []float64 { return []float64{c*x[0] - s*x[1], s*x[0] + c*x[1]} }
	diag.Vars, rot.Vars, rot.Means = nil, nil, nil
	for k, v := range lab.Vars {
		diag.Covs = append(diag.Covs, [][]float64{{v[0], 0}, {0, v[1]}})
		off := c * s * (v[0] - v[1])
		rot.Covs = append(rot.Covs, [][]float64{{c*c*v[0] + s*s*v[1], off}, {off, s*s*v[0] + c*c*v[1]}})
		rot.Means = append(rot.Means, turn(lab.Means[k]))
	}
	var ms []*Mixture
	for _, target := range []Target{lab, diag, rot} {
		m, err := New(target)
		if err != nil {
			t.Fatal(err)
		}
		ms = append(ms, m)
	}
	r := rand.New(rand.NewPCG(11, 12))
	for _, n := range nodesOf(lab.Process) {
		x := draw(t, ms[0], n, 1, r)
		for _, kind := range allKinds {
			a, b, c := make([]float64, 2), make([]float64, 2), make([]float64, 2)
			if err := errors.Join(ms[0].Evaluate(a, x, n, 1, kind), ms[1].Evaluate(b, x, n, 1, kind), ms[2].Evaluate(c, turn(x), n, 1, kind)); err != nil {
				t.Fatal(err)
			}
			if a[0] != b[0] || a[1] != b[1] {
				t.Errorf("%v: diagonal matrices answer %v, variances %v", kind, b, a)
			}
			if g := gap(c, turn(a)); g > 1e-12 {
				t.Errorf("%v: the rotated mixture is %.2g away", kind, g)
			}
		}
	}
}

func TestSample(t *testing.T) {
	for _, name := range []string{"lab4", "gmm16", "mix1d"} {
		m := target(t, name)
		d := m.Dim()
		for class := models.NoClass; class < m.Classes(); class++ {
			members, logC, err := m.of(class)
			if err != nil {
				t.Fatal(err)
			}
			const rows = 20000
			x := make([]float64, rows*d)
			if err := m.Sample(x, class, 77); err != nil {
				t.Fatal(err)
			}
			// First and second moments against the mixture's, within 5 standard errors.
			for i := range d {
				for j := range i + 1 {
					mi, mj, mij := 0.0, 0.0, 0.0
					for _, k := range members {
						w := math.Exp(m.logW[k] - logC)
						cov := 0.0
						if m.target.Covs != nil {
							cov = m.target.Covs[k][i][j]
						} else if i == j {
							cov = m.target.Vars[k][i]
						}
						mi += w * m.target.Means[k][i]
						mj += w * m.target.Means[k][j]
						mij += w * (cov + m.target.Means[k][i]*m.target.Means[k][j])
					}
					var s, ss, first float64
					for row := range rows {
						v := x[row*d+i] * x[row*d+j]
						s, ss, first = s+v, ss+v*v, first+x[row*d+i]
					}
					mean := s / rows
					near(t, name+" second moment", mean, mij, 5*math.Sqrt((ss/rows-mean*mean)/rows))
					if i == j {
						near(t, name+" mean", first/rows, mi, 5*math.Sqrt((mij-mi*mi)/rows))
					}
				}
			}
			if again := make([]float64, 3*d); m.Sample(again, class, 77) != nil || maxGap(again, x) != 0 {
				t.Errorf("%s: the first rows depend on how many are drawn", name)
			}
		}
	}
	m := target(t, "lab4")
	if m.Sample(make([]float64, 3), models.NoClass, 1) == nil || m.Sample(make([]float64, 2), 4, 1) == nil {
		t.Error("half a row and an unknown class must be errors")
	}
}

func TestBatchIsRows(t *testing.T) {
	ctx := context.Background()
	for name, m := range cases(t) {
		r := rand.New(rand.NewPCG(13, 14))
		for _, rows := range []int{1, 2, 3, 17} {
			d := m.Dim()
			nodes, x := make([]schedules.Node, rows), []float64(nil)
			some := nodesOf(m.target.Process)
			for i := range nodes {
				nodes[i] = some[r.IntN(len(some))]
				x = append(x, draw(t, m, nodes[i], models.NoClass, r)...)
			}
			keep := append([]float64(nil), x...)
			var all, one models.Pred
			if err := m.Predict(ctx, &models.Query{X: models.Wrap(x, rows, d), At: nodes}, &all); err != nil {
				t.Fatal(err)
			}
			if maxGap(x, keep) != 0 {
				t.Fatal("Predict changed the state")
			}
			for i := range nodes {
				q := &models.Query{X: models.Wrap(x[i*d:][:d], 1, d), At: nodes[i : i+1]}
				if err := m.Predict(ctx, q, &one); err != nil {
					t.Fatal(err)
				}
				for j, v := range models.Data(one.Out) {
					if math.Float64bits(v) != math.Float64bits(models.Data(all.Out)[i*d+j]) {
						t.Fatalf("%s: row %d of %d differs from the row alone", name, i, rows)
					}
				}
			}
		}
	}
}

func TestConcurrent(t *testing.T) {
	m := target(t, "gmm16")
	n := m.target.Process.At(0.3)
	x := draw(t, m, n, models.NoClass, rand.New(rand.NewPCG(15, 16)))
	want := make([]float64, m.Dim())
	if err := m.Score(want, x, n, models.NoClass); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 200 {
				got := make([]float64, m.Dim())
				if i%2 == g%2 { // another node in between
					if err := m.Score(got, x, m.target.Process.At(0.7), models.NoClass); err != nil {
						t.Error(err)
					}
				}
				if err := m.Score(got, x, n, models.NoClass); err != nil || maxGap(got, want) != 0 {
					t.Errorf("%v, off by %g", err, maxGap(got, want))
				}
			}
		})
	}
	wg.Wait()
}

func TestQueryRefused(t *testing.T) {
	m, lab := target(t, "mix1d"), target(t, "lab4")
	one := func(class int) *models.Cond { return &models.Cond{Classes: []int{class}} }
	good := m.target.Process.At(0.5)
	for name, c := range map[string]struct {
		m    *Mixture
		q    *models.Query
		want string
	}{
		"class of none":  {m, &models.Query{X: models.New(1, 1), At: []schedules.Node{good}, Cond: one(0)}, "no classes"},
		"class too high": {lab, &models.Query{X: models.New(1, 2), At: []schedules.Node{good}, Cond: one(4)}, "unknown class 4"},
		"class negative": {lab, &models.Query{X: models.New(1, 2), At: []schedules.Node{good}, Cond: one(-2)}, "unknown class -2"},
		"classes count":  {lab, &models.Query{X: models.New(1, 2), At: []schedules.Node{good}, Cond: &models.Cond{Classes: []int{0, 1}}}, "1 rows but 2 classes"},
		"width":          {lab, &models.Query{X: models.New(1, 3), At: []schedules.Node{good}}, "shape (1, 2)"},
		"nodes":          {lab, &models.Query{X: models.New(2, 2), At: []schedules.Node{good}}, "1 nodes"},
		"no node":        {m, &models.Query{X: models.New(1, 1), At: []schedules.Node{{}}}, "not both 0"},
		"node NaN":       {m, &models.Query{X: models.New(1, 1), At: []schedules.Node{{Alpha: math.NaN(), Sigma: 1}}}, "not both 0"},
		"node infinite":  {m, &models.Query{X: models.New(1, 1), At: []schedules.Node{{Alpha: 1, Sigma: math.Inf(1)}}}, "not both 0"},
		"prompt":         {m, &models.Query{X: models.New(1, 1), At: []schedules.Node{good}, Cond: &models.Cond{Prompts: []string{"a cat"}}}, "no prompts"},
		"layers":         {m, &models.Query{X: models.New(1, 1), At: []schedules.Node{good}, Hooks: &models.Hooks{SkipLayers: []string{"mid"}}}, "no layers"},
	} {
		var p models.Pred
		if err := c.m.Predict(context.Background(), c.q, &p); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q in it", name, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var p models.Pred
	if err := m.Predict(ctx, &models.Query{X: models.New(1, 1), At: []schedules.Node{good}}, &p); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call answered %v", err)
	}
	// Any shape with D numbers per row will do.
	if err := lab.Predict(context.Background(), &models.Query{X: models.New(1, 1, 1, 2), At: []schedules.Node{good}}, &p); err != nil || len(p.Out.Shape()) != 4 {
		t.Errorf("an image of two pixels: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	const tail = `, "process": {"type": "flow"}, "prediction": "eps"}`
	for name, c := range map[string]struct{ text, want string }{
		"empty":              {``, "ends early"},
		"array":              {`[]`, "an object"},
		"nan":                {`{"type": "mixture", "weights": [NaN]` + tail, "NaN"},
		"type":               {`{"type": "gauss", "weights": [1], "means": [[0]], "vars": [[1]]` + tail, `type: want "mixture"`},
		"type missing":       {`{"weights": [1], "means": [[0]], "vars": [[1]]` + tail, "type is missing"},
		"unknown key":        {`{"type": "mixture", "weights": [1], "means": [[0]], "var": [[1]]` + tail, `no key "var"; did you mean`},
		"key twice":          {`{"type": "mixture", "weights": [1], "weights": [1], "means": [[0]], "vars": [[1]]` + tail, "twice"},
		"weights missing":    {`{"type": "mixture", "means": [[0]], "vars": [[1]]` + tail, "weights is missing"},
		"weights empty":      {`{"type": "mixture", "weights": [], "means": [], "vars": []` + tail, "no component"},
		"weight zero":        {`{"type": "mixture", "weights": [0, 1], "means": [[0], [1]], "vars": [[1], [1]]` + tail, "weights[0] is 0"},
		"weight negative":    {`{"type": "mixture", "weights": [1.5, -0.5], "means": [[0], [1]], "vars": [[1], [1]]` + tail, "weights[0] is 1.5"},
		"weights sum":        {`{"type": "mixture", "weights": [0.5, 0.5001], "means": [[0], [1]], "vars": [[1], [1]]` + tail, "sum to 1.0001"},
		"weights text":       {`{"type": "mixture", "weights": ["1"], "means": [[0]], "vars": [[1]]` + tail, "weights[0]: want a number"},
		"weights number":     {`{"type": "mixture", "weights": 1, "means": [[0]], "vars": [[1]]` + tail, "weights: want a list"},
		"means count":        {`{"type": "mixture", "weights": [1], "means": [[0], [1]], "vars": [[1]]` + tail, "1 weights but 2 means"},
		"means flat":         {`{"type": "mixture", "weights": [1], "means": [0], "vars": [[1]]` + tail, "means[0]: want a list"},
		"means ragged":       {`{"type": "mixture", "weights": [0.5, 0.5], "means": [[0, 1], [1]], "vars": [[1, 1], [1, 1]]` + tail, "means[1] has 1 numbers, means[0] has 2"},
		"means empty":        {`{"type": "mixture", "weights": [1], "means": [[]], "vars": [[]]` + tail, "means[0] is empty"},
		"mean huge":          {`{"type": "mixture", "weights": [1], "means": [[1e999]], "vars": [[1]]` + tail, "beyond float64"},
		"mean large":         {`{"type": "mixture", "weights": [1], "means": [[1e101]], "vars": [[1]]` + tail, "within 1e+100"},
		"vars count":         {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": []` + tail, "1 weights but 0 vars"},
		"vars width":         {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1, 1]]` + tail, "vars[0] has 2 numbers"},
		"var zero":           {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[0]]` + tail, "vars[0][0] is 0"},
		"var negative":       {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[-1]]` + tail, "vars[0][0] is -1"},
		"no spread":          {`{"type": "mixture", "weights": [1], "means": [[0]]` + tail, "neither vars nor covs"},
		"two spreads":        {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "covs": [[[1]]]` + tail, "both given"},
		"covs rows":          {`{"type": "mixture", "weights": [1], "means": [[0, 0]], "covs": [[[1, 0]]]` + tail, "covs[0] has 1 rows"},
		"covs columns":       {`{"type": "mixture", "weights": [1], "means": [[0, 0]], "covs": [[[1, 0], [0]]]` + tail, "covs[0][1] has 1 numbers"},
		"covs diagonal":      {`{"type": "mixture", "weights": [1], "means": [[0, 0]], "covs": [[[1, 0], [0, -1]]]` + tail, "covs[0][1][1] is -1"},
		"covs asymmetric":    {`{"type": "mixture", "weights": [1], "means": [[0, 0]], "covs": [[[1, 0.1], [0.2, 1]]]` + tail, "not symmetric"},
		"covs indefinite":    {`{"type": "mixture", "weights": [1], "means": [[0, 0]], "covs": [[[1, 2], [2, 1]]]` + tail, "not positive definite"},
		"covs singular":      {`{"type": "mixture", "weights": [1], "means": [[0, 0]], "covs": [[[1, 1], [1, 1]]]` + tail, "not positive definite"},
		"labels count":       {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "labels": [0, 1]` + tail, "1 weights but 2 labels"},
		"labels empty":       {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "labels": []` + tail, "1 weights but 0 labels"},
		"label negative":     {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "labels": [-1]` + tail, "labels[0] is -1"},
		"label fraction":     {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "labels": [0.5]` + tail, "labels[0]: want a whole number"},
		"label gap":          {`{"type": "mixture", "weights": [0.5, 0.5], "means": [[0], [1]], "vars": [[1], [1]], "labels": [1, 1]` + tail, "no component has class 0"},
		"label high":         {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "labels": [1]` + tail, "labels[0] is 1"},
		"process missing":    {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "prediction": "eps"}`, "process is missing"},
		"process text":       {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "process": "flow", "prediction": "eps"}`, "process: want an object"},
		"process unknown":    {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "process": {"type": "vp"}, "prediction": "eps"}`, "unknown process"},
		"process key":        {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "process": {"type": "flow", "shift": 3}, "prediction": "eps"}`, "no parameter"},
		"process range":      {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "process": {"type": "vp-linear", "beta_min": -1}, "prediction": "eps"}`, "beta_min"},
		"prediction missing": {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "process": {"type": "flow"}}`, "prediction is missing"},
		"prediction unknown": {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "process": {"type": "flow"}, "prediction": "noise"}`, "unknown prediction"},
		"after the end":      {`{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]]` + tail + `{}`, "line 1"},
	} {
		_, err := Parse([]byte(c.text))
		var refused *refuse.Error
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want one refused line with %q", name, err, c.want)
		}
		path := filepath.Join(t.TempDir(), "target.json")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.As(err, &refused) || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%s: Open says %v; want the path first", name, err)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := New(Target{Weights: []float64{math.NaN()}, Means: [][]float64{{0}}, Vars: [][]float64{{1}}, Process: schedules.Flow{}}); err == nil {
		t.Error("a weight that is not a number was taken")
	}
}

func TestWeightsRounded(t *testing.T) {
	m, err := Parse([]byte(`{"type": "mixture", "weights": [0.3333333, 0.3333333, 0.3333333], "means": [[0], [1], [2]],
		"vars": [[1], [1], [1]], "process": {"type": "flow"}, "prediction": "x0"}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range m.logW {
		near(t, "weight", math.Exp(w), 1.0/3, 1e-15)
	}
}

func TestInfoAndJSON(t *testing.T) {
	// One target in two spellings.
	a, err := Parse([]byte(`{"type": "mixture", "weights": [0.4, 0.6], "means": [[-1, 0], [1.5, 2]], "vars": [[0.0625, 1], [0.25, 1]],
		"labels": [1, 0], "process": {"type": "vp-linear"}, "prediction": "eps"}`))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse([]byte(`{"prediction": "epsilon", "process": {"beta_max": 20.0, "type": "vp-linear", "beta_min": 1e-1}, "labels": [1, 0.0],
		"vars": [[6.25e-2, 1.0], [0.25, 1]], "weights": [4e-1, 0.60], "type": "mixture", "means": [[-1.0, 0], [1.5, 2]]}`))
	if err != nil {
		t.Fatal(err)
	}
	info := a.Info()
	if info.Hash != b.Info().Hash || len(info.Hash) != 64 {
		t.Errorf("hashes %q and %q", info.Hash, b.Info().Hash)
	}
	if info.Classes != 2 || strings.Join(info.Labels, " ") != "0 1" || len(info.Shape) != 1 || info.Shape[0] != 2 || info.DType != "f64" || info.Params != 10 {
		t.Errorf("info %+v", info)
	}
	seen := map[string]string{}
	for _, file := range targetFiles(t) {
		m := openFile(t, file)
		text, err := m.JSON()
		if err != nil {
			t.Fatal(err)
		}
		back, err := Parse(text)
		if err != nil {
			t.Fatalf("%s: its canonical text is refused: %v", file, err)
		}
		if back.Info().Hash != m.Info().Hash {
			t.Errorf("%s: the canonical text has another hash", file)
		}
		if other, twice := seen[m.Info().Hash]; twice {
			t.Errorf("%s and %s have one hash", file, other)
		}
		seen[m.Info().Hash] = file
		if m.Info().Name != file {
			t.Errorf("name %q, want %q", m.Info().Name, file)
		}
	}
	if d, ok := models.As[models.Described](models.Metered(a)); !ok || d.Info().Hash != info.Hash {
		t.Error("no description behind the meter")
	}
}

func TestAllocations(t *testing.T) {
	ctx := context.Background()
	for _, name := range []string{"lab4", "gmm16"} {
		m := target(t, name)
		rows := 8
		nodes := make([]schedules.Node, rows)
		for i := range nodes {
			nodes[i] = m.target.Process.At(0.5)
		}
		q := &models.Query{X: models.New(rows, m.Dim()), At: nodes}
		var p models.Pred
		predict := testing.AllocsPerRun(200, func() {
			if err := m.Predict(ctx, q, &p); err != nil {
				t.Fatal(err)
			}
		})
		tensors := testing.AllocsPerRun(200, func() { p.Fit(q.X, schedules.Eps) })
		t.Logf("%s: %v allocations, of which %v to reach the tensors' slices", name, predict, tensors)
		if predict > tensors {
			t.Errorf("%s: %v allocations per call, %v in Fit", name, predict, tensors)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"mix1d", "lab4-sd", "gau1d-ve"} {
		text, err := os.ReadFile(filepath.Join("testdata", "targets", name+".json"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"type": "mixture", "weights": [1], "means": [[1, 2]], "covs": [[[1, 0.5], [0.5, 1]]], "process": {"type": "edm"}, "prediction": "v"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Parse(text)
		if err != nil {
			var refused *refuse.Error
			if !errors.As(err, &refused) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("refused with %q", err)
			}
			return
		}
		canonical, err := m.JSON()
		if err != nil {
			t.Fatal(err)
		}
		back, err := Parse(canonical)
		if err != nil {
			t.Fatalf("%s: %v", canonical, err)
		}
		if back.Info().Hash != m.Info().Hash {
			t.Fatalf("%s: the hash changed", canonical)
		}
		// Whatever was taken can be asked: finite answers at a mild node.
		x, out := make([]float64, m.Dim()), make([]float64, m.Dim())
		for _, kind := range allKinds[:3] {
			if err := m.Evaluate(out, x, schedules.Node{T: 0.5, Alpha: 0.6, Sigma: 0.8}, models.NoClass, kind); err != nil {
				t.Fatalf("%s: %v", canonical, err)
			}
			for _, v := range out {
				if math.IsNaN(v) || math.IsInf(v, 0) {
					t.Fatalf("%s: %v is %v", canonical, kind, out)
				}
			}
		}
	})
}

func BenchmarkPredict(b *testing.B) {
	for _, name := range []string{"mix1d", "lab4", "gmm16", "gmm64"} {
		b.Run(name, func(b *testing.B) {
			m := target(b, name)
			const rows = 64
			x, nodes := make([]float64, rows*m.Dim()), make([]schedules.Node, rows)
			if err := m.Sample(x, models.NoClass, 1); err != nil {
				b.Fatal(err)
			}
			for i := range nodes {
				nodes[i] = m.target.Process.At(0.5)
			}
			q := &models.Query{X: models.Wrap(x, rows, m.Dim()), At: nodes}
			var p models.Pred
			b.ReportAllocs()
			for b.Loop() {
				if err := m.Predict(context.Background(), q, &p); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/rows, "ns/row")
		})
	}
}

// TestMahalanobis: on full covariances too it is the exponent of the component's density.
func TestMahalanobis(t *testing.T) {
	m, err := Parse([]byte(`{"type":"mixture","weights":[1],"means":[[1,-2]],"covs":[[[0.5,0.2],[0.2,0.3]]],"process":{"type":"vp-linear"},"prediction":"eps"}`))
	if err != nil {
		t.Fatal(err)
	}
	clean := schedules.Node{Alpha: 1}
	x, mean := []float64{0.3, 0.9}, []float64{1, -2}
	a, err := m.LogP(mean, clean, models.NoClass)
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.LogP(x, clean, models.NoClass)
	if err != nil {
		t.Fatal(err)
	}
	if have, want := m.Mahalanobis(x, 0), 2*(a-b); math.Abs(have-want) > 1e-12*want {
		t.Errorf("%g, want %g", have, want)
	}
}
