package analytic

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"

	"drift/models"
	"drift/schedules"
)

func bridge(t testing.TB, kind, gamma string) schedules.Bridge {
	t.Helper()
	b, err := schedules.NewBridge(kind, gamma, 1)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func side(m, v float64) Side { return Side{[]float64{1}, [][]float64{{m}}, [][]float64{{v}}} }

// TestGaussianEnds holds velocity and score between two Gaussians against the specification's values and the closed form
// s = -(x-m)/C, b = m' + C'(x-m)/(2C), to 1e-10, at both ends too.
func TestGaussianEnds(t *testing.T) {
	const m0, c0, m1, c1 = -1, 0.5, 2, 0.25
	for _, c := range []struct {
		kind, gamma string
		b, s        float64
	}{
		{"linear", "brownian", 2.9685863874, -0.4188481675}, {"trig", "bsquared", 3.4139144528, -0.1764061495}, {"encoding-decoding", "sinesquared", 4.3017023306, -0.9127735348},
		{"linear", "zero", math.NaN(), math.NaN()}, {"trig", "sigmoid", math.NaN(), math.NaN()},
	} {
		e, err := NewEnds(Ends{From: side(m0, c0), To: side(m1, c1), Bridge: bridge(t, c.kind, c.gamma), First: schedules.Velocity, Second: schedules.Score})
		if err != nil {
			t.Fatal(err)
		}
		v, s := []float64{0}, []float64{0}
		if _, err := e.Fields([][]float64{v, s}, []float64{0.1}, 0.3, schedules.Velocity, schedules.Score); err != nil {
			t.Fatal(err)
		}
		if !math.IsNaN(c.b) && (math.Abs(v[0]-c.b) > 1e-10 || math.Abs(s[0]-c.s) > 1e-10) {
			t.Errorf("%s %s: b = %.10f, s = %.10f, want %.10f and %.10f", c.kind, c.gamma, v[0], s[0], c.b, c.s)
		}
		for _, at := range []float64{0, 1e-9, 0.2, 0.8, 1} {
			m := e.Bridge.Mix(at)
			mean, rate := m.A*m0+m.B*m1, m.DA*m0+m.DB*m1
			C := m.A*m.A*c0 + m.B*m.B*c1 + m.Gamma*m.Gamma
			dC := 2 * (m.A*m.DA*c0 + m.B*m.DB*c1 + m.GammaGamma)
			const x = 0.1
			logP, err := e.Fields([][]float64{v, s}, []float64{x}, at, schedules.Velocity, schedules.Score)
			if err != nil {
				t.Fatal(err)
			}
			wantV, wantS, wantP := rate+dC*(x-mean)/(2*C), -(x-mean)/C, -(x-mean)*(x-mean)/(2*C)-math.Log(2*math.Pi*C)/2
			for i, d := range []float64{v[0] - wantV, s[0] - wantS, logP - wantP} {
				if math.Abs(d) > 1e-10*(1+math.Abs(wantV)+math.Abs(wantS)) {
					t.Errorf("%s %s at %g: number %d is off by %g", c.kind, c.gamma, at, i, d)
				}
			}
		}
	}
}

// TestEndsFields holds on mixtures that the fields agree with each other (A x0 + B x1 + gamma z = x, Convert), that the
// score is the gradient of log p, and that the density keeps the continuity equation, dp/dt = -div(b p).
func TestEndsFields(t *testing.T) {
	from := Side{[]float64{0.3, 0.7}, [][]float64{{-1, 0}, {1, 0.5}}, [][]float64{{0.2, 0.3}, {0.1, 0.4}}}
	to := Side{[]float64{0.5, 0.2, 0.3}, [][]float64{{2, 2}, {-2, 1}, {0, -2}}, [][]float64{{0.1, 0.1}, {0.3, 0.1}, {0.2, 0.2}}}
	kinds := []schedules.Kind{schedules.X0, schedules.Source, schedules.Eps, schedules.Score, schedules.Transport, schedules.Velocity}
	for _, kind := range schedules.BridgeKinds() {
		e, err := NewEnds(Ends{From: from, To: to, Bridge: bridge(t, kind, "bsquared"), First: schedules.Transport, Second: schedules.Eps})
		if err != nil {
			t.Fatal(err)
		}
		x := []float64{0.3, -0.4}
		const at, h = 0.37, 1e-5
		f := make([][]float64, len(kinds))
		for i := range f {
			f[i] = make([]float64, 2)
		}
		logP, err := e.Fields(f, x, at, kinds...)
		if err != nil {
			t.Fatal(err)
		}
		m := e.Bridge.Mix(at)
		for j := range 2 {
			if got := m.A*f[1][j] + m.B*f[0][j] + m.Gamma*f[2][j]; math.Abs(got-x[j]) > 1e-12 {
				t.Errorf("%s: the fields make x = %g of %g", kind, got, x[j])
			}
			for i, k := range kinds[3:] {
				cx, c1, c2, err := e.Bridge.Convert(schedules.Transport, schedules.Eps, k, at)
				if err != nil {
					t.Fatal(err)
				}
				if got := cx*x[j] + c1*f[4][j] + c2*f[2][j]; math.Abs(got-f[3+i][j]) > 1e-10 {
					t.Errorf("%s: %v converted is %g, want %g", kind, k, got, f[3+i][j])
				}
			}
		}
		velocity := func(x []float64, at float64) ([]float64, float64) {
			v := []float64{0, 0}
			lp, err := e.Fields([][]float64{v}, x, at, schedules.Velocity)
			if err != nil {
				t.Fatal(err)
			}
			return v, lp
		}
		moved := func(j int, d float64) []float64 {
			y := slices.Clone(x)
			y[j] += d
			return y
		}
		_, later := velocity(x, at+h)
		_, earlier := velocity(x, at-h)
		change := (later - earlier) / (2 * h)
		for j := range 2 {
			up, lpUp := velocity(moved(j, h), at)
			down, lpDown := velocity(moved(j, -h), at)
			if s := (lpUp - lpDown) / (2 * h); math.Abs(s-f[3][j]) > 1e-7 {
				t.Errorf("%s: score %g, differences give %g", kind, f[3][j], s)
			}
			change += (up[j]-down[j])/(2*h) + f[5][j]*f[3][j]
		}
		if math.Abs(change) > 1e-6 {
			t.Errorf("%s: d log p/dt + div b + b.s = %g (log p %g)", kind, change, logP)
		}
	}
}

// TestSource holds that the start of runs has the law of From.
func TestSource(t *testing.T) {
	from := Side{[]float64{0.25, 0.75}, [][]float64{{-4}, {4}}, [][]float64{{0.25}, {1}}}
	e, err := NewEnds(Ends{From: from, To: side(0, 1), Bridge: bridge(t, "linear", "zero"), First: schedules.Velocity, Second: schedules.Score})
	if err != nil {
		t.Fatal(err)
	}
	x := []float64{0}
	for _, c := range []struct{ z, u, want float64 }{{0.5, -1, -4 + 0.25}, {0.5, 0, 4.5}, {-1, -0.67, 3}, {1, -0.68, -3.5}} {
		if err := e.Source(x, []float64{c.z, c.u}); err != nil || math.Abs(x[0]-c.want) > 1e-15 {
			t.Errorf("%+v: %g, %v", c, x[0], err)
		}
	}
	if err := e.Source(x, []float64{0}); err == nil {
		t.Error("a row from too few normals is drawn")
	}
}

func TestEndsRefused(t *testing.T) {
	ok := Ends{From: side(0, 1), To: side(1, 1), Bridge: bridge(t, "linear", "brownian"), First: schedules.Velocity, Second: schedules.Score}
	for _, c := range []struct {
		edit func(e *Ends)
		want string
	}{
		{func(e *Ends) { e.Bridge = schedules.Bridge{} }, "without coefficients"},
		{func(e *Ends) { e.From.Weights = []float64{2} }, "from: weights[0]"},
		{func(e *Ends) { e.To.Vars = nil }, "to: neither"},
		{func(e *Ends) { e.From = Side{[]float64{1}, [][]float64{{1, 2}}, [][]float64{{1, 2}}} }, "from has 2 dimensions"},
		{func(e *Ends) { e.Second = schedules.Velocity }, "are one"},
		{func(e *Ends) { e.Second = schedules.V }, "no conversion"},
	} {
		e := ok
		c.edit(&e)
		if _, err := NewEnds(e); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	e, err := NewEnds(ok)
	if err != nil {
		t.Fatal(err)
	}
	q := &models.Query{X: models.New(2, 1), At: make([]schedules.Node, 1)}
	var p models.Pred
	if err := e.Predict(context.Background(), q, &p); err == nil {
		t.Error("two rows at one node are answered")
	}
	q = &models.Query{X: models.New(1, 1), At: make([]schedules.Node, 1), Cond: &models.Cond{Classes: []int{0}}}
	if err := e.Predict(context.Background(), q, &p); err == nil || !strings.Contains(err.Error(), "no classes") {
		t.Errorf("class: %v", err)
	}
}
