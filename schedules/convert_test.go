package schedules

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

var kinds = []Kind{Eps, X0, V, Velocity, Score}

// says returns what a prediction of that kind says when the data is x0 and the noise eps.
func says(p Gaussian, n Node, k Kind, x0, eps float64) float64 {
	da, ds := p.Rates(n.T)
	switch k {
	case Eps:
		return eps
	case X0:
		return x0
	case V:
		return n.Alpha*eps - n.Sigma*x0
	case Velocity:
		return da*x0 + ds*eps
	}
	return -eps / n.Sigma
}

func TestConvertAll(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for _, p := range []Gaussian{Flow{}, Trig{}, EDM{}, VPLinear{}, SubVP{}, Cosine{}, mustDiscrete(t, sd)} {
		noise, data := p.Ends()
		for range 2000 {
			n := p.At(data + (noise-data)*(0.02+0.96*rng.Float64()))
			if n.Sigma == 0 || n.T != math.Max(n.T, 0) {
				continue
			}
			x0, eps := rng.NormFloat64(), rng.NormFloat64()
			x := n.Alpha*x0 + n.Sigma*eps
			for _, from := range kinds {
				for _, to := range kinds {
					have, want := says(p, n, from, x0, eps), says(p, n, to, x0, eps)
					cx, co, err := Convert(p, from, to, n)
					if err != nil {
						t.Fatalf("%s at %v: %v to %v: %v", p.Name(), n, from, to, err)
					}
					bx, bo, err := Convert(p, to, from, n)
					if err != nil {
						t.Fatal(err)
					}
					// 1e-10 of the terms that are added, since they may cancel
					got := cx*x + co*have
					if math.Abs(got-want) > 1e-10*(1e-3+math.Abs(cx*x)+math.Abs(co*have)) {
						t.Fatalf("%s at %v: %v to %v gives %v, want %v", p.Name(), n, from, to, got, want)
					}
					if back := bx*x + bo*got; math.Abs(back-have) > 1e-10*(1e-3+math.Abs(bx*x)+math.Abs(bo)*(math.Abs(cx*x)+math.Abs(co*have))) {
						t.Fatalf("%s at %v: %v to %v and back gives %v, want %v", p.Name(), n, from, to, back, have)
					}
				}
			}
		}
	}
}

// The rows of the conversion table in the literature's closed forms.
func TestConvertClosedForms(t *testing.T) {
	check := func(p Gaussian, from, to Kind, n Node, wx, wo float64) {
		t.Helper()
		cx, co, err := Convert(p, from, to, n)
		if err != nil || math.Abs(cx-wx) > 1e-14*(1+math.Abs(wx)) || math.Abs(co-wo) > 1e-14*(1+math.Abs(wo)) {
			t.Errorf("%s: %v to %v: %v %v %v, want %v %v", p.Name(), from, to, cx, co, err, wx, wo)
		}
	}
	for _, at := range []float64{0.1, 0.5, 0.9} {
		n := Flow{}.At(at)
		check(Flow{}, Velocity, X0, n, 1, -at)
		check(Flow{}, Velocity, Eps, n, 1, 1-at)
		check(Flow{}, Velocity, Score, n, -1/at, -(1-at)/at)
		for _, p := range []Gaussian{Trig{}, VPLinear{}, Cosine{}} { // velocity = phi' v, v to x0 without division
			n := p.At(at)
			_, ds := p.Rates(at)
			check(p, V, Velocity, n, 0, ds/n.Alpha)
			check(p, V, X0, n, n.Alpha, -n.Sigma)
			check(p, V, Eps, n, n.Sigma, n.Alpha)
		}
		check(Trig{}, V, Velocity, Trig{}.At(at), 0, math.Pi/2)
		check(EDM{}, Velocity, Eps, EDM{}.At(at), 0, 1)
		check(EDM{}, Score, X0, EDM{}.At(at), 1, at*at)
	}
}

// The checked values of the mixture 0.4 N(-1, 0.25^2) + 0.6 N(1.5, 0.5^2).
func TestConvertModelValues(t *testing.T) {
	for _, c := range []struct {
		p              Gaussian
		t, x, eps, x0  float64
		alpha, sigma   float64
		lambda, digits float64
	}{
		{VPLinear{}, 0.5, -0.4, -0.489000886817, 0.246358368803, 0.281182880797, 0.959654202068, -1.227567734411, 1e-11},
		{EDM{}, 2, 1, 0.131062361613, 0.737875276774, 1, 2, -math.Ln2, 1e-12},
	} {
		n := c.p.At(c.t)
		if math.Abs(n.Alpha-c.alpha) > 1e-12 || math.Abs(n.Sigma-c.sigma) > 1e-12 || math.Abs(n.Lambda()-c.lambda) > 1e-12 {
			t.Errorf("%s: %v", c.p.Name(), n)
		}
		cx, co, err := Convert(c.p, Eps, X0, n)
		if got := cx*c.x + co*c.eps; err != nil || math.Abs(got-c.x0) > c.digits {
			t.Errorf("%s: x0 = %v, want %v (%v)", c.p.Name(), got, c.x0, err)
		}
	}
}

func TestConvertSingularEnds(t *testing.T) {
	zero := sd
	zero.ZeroSNR = true
	z := mustDiscrete(t, zero)
	for _, c := range []struct {
		p        Gaussian
		n        Node
		from, to Kind
		ok       bool
	}{
		{Flow{}, Flow{}.At(1), Eps, X0, false},
		{Flow{}, Flow{}.At(1), Score, X0, false},
		{Flow{}, Flow{}.At(1), Eps, Velocity, false},
		{Flow{}, Flow{}.At(1), Eps, V, false},
		{Flow{}, Flow{}.At(1), Velocity, X0, true},
		{Flow{}, Flow{}.At(1), Velocity, Eps, true},
		{Flow{}, Flow{}.At(1), X0, Eps, true},
		{Flow{}, Flow{}.At(1), X0, Velocity, true},
		{Flow{}, Flow{}.At(0), X0, Eps, false},
		{Flow{}, Flow{}.At(0), X0, Score, false},
		{Flow{}, Flow{}.At(0), Eps, Score, false},
		{Flow{}, Flow{}.At(0), X0, Velocity, false},
		{Flow{}, Flow{}.At(0), Velocity, X0, true},
		{Flow{}, Flow{}.At(0), Velocity, Eps, true},
		{Flow{}, Flow{}.At(0), Eps, X0, true},
		{z, z.At(999), Eps, X0, false},
		{z, z.At(999), V, X0, true},
		{z, z.At(999), V, Eps, true},
		{z, z.At(-1), V, X0, true},
		{z, z.At(-1), Velocity, X0, false}, // the table has no rates there
		{VPLinear{}, VPLinear{}.At(0), Velocity, X0, false},
		{Trig{}, Trig{}.At(0), Velocity, X0, true},
		{Trig{}, Trig{}.At(1), Velocity, X0, true},
		{Trig{}, Trig{}.At(1), Velocity, Eps, true},
		{Flow{}, Flow{}.At(0.5), Kind(9), X0, false},
		{Flow{}, Flow{}.At(0.5), X0, Kind(9), false},
		{Flow{}, Flow{}.At(0.5), Kind(9), Kind(9), false},
	} {
		cx, co, err := Convert(c.p, c.from, c.to, c.n)
		if (err == nil) != c.ok {
			t.Errorf("%s at t=%g: %v to %v: %v %v %v", c.p.Name(), c.n.T, c.from, c.to, cx, co, err)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("error of several lines: %v", err)
		}
	}
}

// A mix of two predictions with weights that add up to 1 does not depend on the kind in which it is done.
func TestConvertMix(t *testing.T) {
	p, w, x, a, b := VPLinear{}, 3.5, 0.7, 0.3, -1.1
	n := p.At(0.4)
	for _, from := range kinds {
		for _, to := range kinds {
			cx, co, err := Convert(p, from, to, n)
			if err != nil {
				t.Fatal(err)
			}
			first := cx*x + co*(w*a+(1-w)*b)
			then := w*(cx*x+co*a) + (1-w)*(cx*x+co*b)
			if math.Abs(first-then) > 1e-12*(1+math.Abs(first)) {
				t.Errorf("%v to %v: %v and %v", from, to, first, then)
			}
		}
	}
}

func TestParseKind(t *testing.T) {
	for _, k := range kinds {
		if got, err := ParseKind(k.String()); err != nil || got != k {
			t.Errorf("ParseKind(%v) = %v, %v", k, got, err)
		}
	}
	for in, want := range map[string]Kind{"epsilon": Eps, "sample": X0, "v_prediction": V, "flow_prediction": Velocity} {
		if got, err := ParseKind(in); err != nil || got != want {
			t.Errorf("ParseKind(%q) = %v, %v", in, got, err)
		}
	}
	if _, err := ParseKind("noise"); err == nil {
		t.Error("ParseKind(noise) succeeded")
	}
	if s := Kind(9).String(); s != "Kind(9)" {
		t.Error(s)
	}
}
