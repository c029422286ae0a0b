package schedules

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestBridgeRates compares every rate with differences, and every bridge's ends with what it should join.
func TestBridgeRates(t *testing.T) {
	for _, kind := range BridgeKinds() {
		for _, gamma := range BridgeNoises() {
			b, err := NewBridge(kind, gamma, 0.9)
			if err != nil {
				if gamma == "zero" && (kind == "mirror" || kind == "encoding-decoding") {
					continue
				}
				t.Fatal(err)
			}
			for _, at := range []float64{0.1, 0.25, 0.45, 0.6, 0.9} {
				const h = 1e-6
				m, lo, hi := b.Mix(at), b.Mix(at-h), b.Mix(at+h)
				for _, c := range []struct {
					name      string
					got, want float64
				}{
					{"A'", m.DA, (hi.A - lo.A) / (2 * h)}, {"B'", m.DB, (hi.B - lo.B) / (2 * h)},
					{"gamma gamma'", m.GammaGamma, (hi.Gamma*hi.Gamma - lo.Gamma*lo.Gamma) / (4 * h)},
				} {
					if math.Abs(c.got-c.want) > 1e-8 {
						t.Errorf("%s %s at %g: %s = %g, differences give %g", kind, gamma, at, c.name, c.got, c.want)
					}
				}
				if kind == "trig" && math.Abs(m.A*m.A+m.B*m.B+m.Gamma*m.Gamma-1) > 1e-14 {
					t.Errorf("trig %s at %g: variance %g", gamma, at, m.A*m.A+m.B*m.B+m.Gamma*m.Gamma)
				}
			}
			from, to := b.Mix(0), b.Mix(1)
			wantFrom := [3]float64{1, 0, 0}
			if kind == "mirror" {
				wantFrom = [3]float64{0, 1, 0}
			}
			for i, v := range [3]float64{from.A, from.B, from.Gamma} {
				if math.Abs(v-wantFrom[i]) > 1e-15 {
					t.Errorf("%s %s starts at %+v", kind, gamma, from)
				}
			}
			for i, v := range [3]float64{to.A, to.B, to.Gamma} {
				if math.Abs(v-[3]float64{0, 1, 0}[i]) > 1e-15 {
					t.Errorf("%s %s ends at %+v", kind, gamma, to)
				}
			}
		}
	}
}

// TestBridgeConvert holds every conversion from every pair of fields, made of random x0, x1 and z, to 1e-10.
func TestBridgeConvert(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	kinds := []Kind{X0, Source, Eps, Score, Transport, Velocity}
	made := 0
	for _, kind := range []string{"linear", "trig", "encoding-decoding"} {
		for _, gamma := range []string{"brownian", "bsquared", "sinesquared", "sigmoid"} {
			b, err := NewBridge(kind, gamma, 0.7)
			if err != nil {
				t.Fatal(err)
			}
			for range 50 {
				at := 0.02 + 0.96*r.Float64()
				m := b.Mix(at)
				x0, x1, z := r.NormFloat64(), r.NormFloat64(), r.NormFloat64()
				x := m.A*x0 + m.B*x1 + m.Gamma*z
				fields := map[Kind]float64{X0: x1, Source: x0, Eps: z, Score: -z / m.Gamma, Transport: m.DA*x0 + m.DB*x1}
				fields[Velocity] = fields[Transport] + m.GammaGamma/m.Gamma*z
				for _, first := range kinds {
					for _, second := range kinds {
						for _, to := range kinds {
							cx, c1, c2, err := b.Convert(first, second, to, at)
							if err != nil {
								continue
							}
							got := cx*x + c1*fields[first] + c2*fields[second]
							scale := math.Abs(cx*x) + math.Abs(c1*fields[first]) + math.Abs(c2*fields[second]) + 1
							if first == second && to != first && kind != "encoding-decoding" && !(first == Eps && to == Score || first == Score && to == Eps) {
								t.Fatalf("%s %s: %v from %v alone", kind, gamma, to, first)
							}
							if math.Abs(got-fields[to]) > 1e-10*scale {
								t.Fatalf("%s %s at %g: %v from %v and %v = %.12g, want %.12g", kind, gamma, at, to, first, second, got, fields[to])
							}
							made++
						}
					}
				}
			}
		}
	}
	if made < 40000 {
		t.Errorf("%d conversions made", made)
	}
	b, err := NewBridge("linear", "brownian", 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		first, second, to Kind
		at                float64
	}{{Velocity, Eps, Score, 0}, {Source, X0, Score, 1}, {Velocity, Velocity, Score, 0.5}, {V, Score, Velocity, 0.5}, {Velocity, Score, V, 0.5}} {
		if _, _, _, err := b.Convert(c.first, c.second, c.to, c.at); err == nil {
			t.Errorf("%+v: converted", c)
		}
	}
	for _, at := range []float64{0, 1} { // both ends are exact for fields that have no gamma in them
		for _, to := range []Kind{Velocity, Transport, Score, Eps} {
			if _, _, _, err := b.Convert(Velocity, Score, to, at); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestOneSided holds that a bridge from plain noise without gamma is the flow, and trig the trigonometric process.
func TestOneSided(t *testing.T) {
	for _, c := range []struct {
		kind string
		want Gaussian
	}{{"linear", Flow{}}, {"trig", Trig{}}} {
		b, err := NewBridge(c.kind, "zero", 1)
		if err != nil {
			t.Fatal(err)
		}
		p := b.OneSided()
		for _, at := range []float64{0, 0.2, 0.7, 1} {
			n, w := p.At(at), c.want.At(at)
			da, ds := p.Rates(at)
			wa, ws := c.want.Rates(at)
			for i, d := range []float64{n.Alpha - w.Alpha, n.Sigma - w.Sigma, da - wa, ds - ws, p.AtRatio(0.7).T - c.want.AtRatio(0.7).T} {
				if math.Abs(d) > 1e-14 {
					t.Errorf("%s at %g: number %d is off by %g", c.kind, at, i, d)
				}
			}
		}
	}
}

// TestNewBridgeRefuses holds the errors.
func TestNewBridgeRefuses(t *testing.T) {
	for _, c := range []struct {
		kind, gamma string
		scale       float64
		want        string
	}{
		{"linaer", "zero", 1, `unknown bridge "linaer"; did you mean linear?`}, {"linear", "brown", 1, "did you mean brownian?"}, {"linear", "brownian", 0, "want a positive number"},
		{"trig", "sinesquared", 1, "gamma below 1"}, {"mirror", "zero", 1, "needs noise"}, {"encoding-decoding", "zero", 1, "needs noise"}, {"trig", "brownian", 4, "reaches 1"},
	} {
		if _, err := NewBridge(c.kind, c.gamma, c.scale); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, _, _, err := (Bridge{}).Text(); err == nil {
		t.Error("a bridge of functions is written down")
	}
}
