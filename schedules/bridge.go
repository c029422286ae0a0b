package schedules

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"drift/internal/spec"
)

// Bridge is a stochastic interpolant between two densities (Albergo, Boffi and Vanden-Eijnden 2023, arXiv 2303.08797),
//
//	x_t = A(t) x0 + B(t) x1 + gamma(t) z,  z ~ N(0, I),
//
// from x0 ~ rho_0 at time 0, where a run starts, to x1 ~ rho_1, the data, at time 1. x0 and x1 are independent of z. With
// rho_0 = N(0, I) and gamma = 0 it is one-sided, a Gaussian process in reversed time (OneSided); with A = 0 and B = 1 it
// is a mirror, data to itself through noise.
//
// Four fields of (x, t) describe it, each a conditional mean given x_t = x: of the source x0, of the data x1, of the
// noise z, and of A' x0 + B' x1, the transport; from them
//
//	score     s = grad log p_t(x) = -E[z|x]/gamma
//	velocity  b = transport + gamma' E[z|x] = transport - gamma gamma' s
//
// and x_1 is had from x_0 by dx/dt = b, or by dx = (b + epsilon s) dt + sqrt(2 epsilon) dW for any epsilon(t) >= 0 chosen
// at sampling time. Since A E[x0|x] + B E[x1|x] + gamma E[z|x] = x, any two of the fields give all (Convert).
//
// Its nodes are places on the way: alpha = t and sigma = 1 - t, whatever A, B and gamma are, so that sigma/alpha falls
// from +Inf to 0.
type Bridge struct {
	Label string // as Name gives it, "bridge" when empty
	// A, B and Square = gamma^2 give value and rate. Gamma goes by its square because gamma' of a Brownian bridge is
	// infinite at both ends, while (gamma^2)' = 2 gamma gamma' is not.
	A, B, Square func(t float64) (value, rate float64)
	// text is how MarshalProcess writes it, empty for one that is made of a caller's functions.
	kind, gamma string
	scale       float64
}

// Mix is what a Bridge is at one time.
type Mix struct{ A, B, Gamma, DA, DB, GammaGamma float64 } // GammaGamma = gamma gamma'

// At returns the node at time t.
func (b Bridge) At(t float64) Node { return Node{t, t, 1 - t} }

// AtRatio returns the node with (1-t)/t = sb.
func (b Bridge) AtRatio(sb float64) Node { return b.At(1 / (1 + sb)) }

// Ends returns 0 and 1.
func (b Bridge) Ends() (noise, data float64) { return 0, 1 }

// Name returns Label.
func (b Bridge) Name() string {
	if b.Label == "" {
		return "bridge"
	}
	return b.Label
}

// Mix returns the coefficients and rates at t.
func (b Bridge) Mix(t float64) Mix {
	var m Mix
	var square, rate float64
	m.A, m.DA = b.A(t)
	m.B, m.DB = b.B(t)
	square, rate = b.Square(t)
	m.Gamma, m.GammaGamma = math.Sqrt(max(0, square)), rate/2
	return m
}

// fields writes a field as a combination of E[x0|x], E[x1|x] and the score.
func (m Mix) field(k Kind) ([3]float64, bool) {
	switch k {
	case Source:
		return [3]float64{1, 0, 0}, true
	case X0:
		return [3]float64{0, 1, 0}, true
	case Score:
		return [3]float64{0, 0, 1}, true
	case Eps:
		return [3]float64{0, 0, -m.Gamma}, true
	case Transport:
		return [3]float64{m.DA, m.DB, 0}, true
	case Velocity:
		return [3]float64{m.DA, m.DB, -m.GammaGamma}, true
	}
	return [3]float64{}, false
}

// Convert returns the coefficients of any field by the state and two others,
//
//	to = cx x + c1 first + c2 second
//
// Fields are X0 (the data x1), Source (x0), Eps (the noise z), Score, Transport and Velocity. It fails where two fields
// do not tell the third: at an end where gamma = 0 the noise says nothing of the score, and two fields of x0 and x1 alone
// say nothing of it anywhere on a bridge without noise.
func (b Bridge) Convert(first, second, to Kind, t float64) (cx, c1, c2 float64, err error) {
	switch to {
	case first:
		return 0, 1, 0, nil
	case second:
		return 0, 0, 1, nil
	}
	m := b.Mix(t)
	x := [3]float64{m.A, m.B, -m.Gamma * m.Gamma}
	f, ok1 := m.field(first)
	g, ok2 := m.field(second)
	want, ok3 := m.field(to)
	if !ok1 || !ok2 || !ok3 {
		return 0, 0, 0, fmt.Errorf("schedules: no conversion from %v and %v to %v on a bridge", first, second, to)
	}
	// A field that needs the score alone, or x0 and x1 alone, is had without the third.
	if c, ok := multiple(g, want); ok {
		return 0, 0, c, nil
	}
	if c, ok := multiple(f, want); ok {
		return 0, c, 0, nil
	}
	if c, d, ok := plane(f, g, want); ok {
		return 0, c, d, nil
	}
	det := triple(x, f, g)
	cx, c1, c2 = triple(want, f, g)/det, triple(x, want, g)/det, triple(x, f, want)/det
	if bad := cx + c1 + c2; bad-bad != 0 || math.Abs(det) < 1e-300 {
		return 0, 0, 0, fmt.Errorf("schedules: %v cannot be had from %v and %v at t=%g of %s (a=%g, b=%g, gamma=%g)", to, first, second, t, b.Name(), m.A, m.B, m.Gamma)
	}
	return cx, c1, c2, nil
}

// triple is the determinant of three vectors.
func triple(a, b, c [3]float64) float64 {
	return a[0]*(b[1]*c[2]-b[2]*c[1]) - a[1]*(b[0]*c[2]-b[2]*c[0]) + a[2]*(b[0]*c[1]-b[1]*c[0])
}

// multiple tells whether want = c f.
func multiple(f, want [3]float64) (c float64, ok bool) {
	pivot := -1
	for i, v := range f {
		if v != 0 {
			pivot, c = i, want[i]/v
			break
		}
	}
	for i, v := range f {
		if i != pivot && want[i] != c*v {
			return 0, false
		}
	}
	return c, c != 0
}

// plane tells whether want = c f + d g where that is plain: the first two numbers of f and want are equal, and g is the
// score's alone.
func plane(f, g, want [3]float64) (c, d float64, ok bool) {
	if g[0] != 0 || g[1] != 0 || g[2] == 0 || f[0] != want[0] || f[1] != want[1] {
		return 0, 0, false
	}
	return 1, (want[2] - f[2]) / g[2], true
}

// OneSided returns the Gaussian process, in reversed time, of a bridge from rho_0 = N(0, I) without further noise: alpha =
// B and sigma = A at time 1 - t, so that its noise end is 1 as elsewhere.
func (b Bridge) OneSided() Interpolant {
	return Interpolant{
		Alpha: func(t float64) float64 { v, _ := b.B(1 - t); return v },
		Sigma: func(t float64) float64 { v, _ := b.A(1 - t); return v },
		Slope: func(t float64) (dAlpha, dSigma float64) {
			_, da := b.B(1 - t)
			_, ds := b.A(1 - t)
			return -da, -ds
		},
		Label: b.Name(),
	}
}

// BridgeKinds and BridgeNoises are the names that NewBridge knows.
func BridgeKinds() []string { return []string{"linear", "trig", "encoding-decoding", "mirror"} }

// BridgeNoises names the choices of gamma.
func BridgeNoises() []string {
	return []string{"brownian", "bsquared", "sinesquared", "sigmoid", "zero"}
}

// NewBridge returns a bridge of a known kind,
//
//	linear             A = 1-t, B = t
//	trig               A = sqrt(1-gamma^2) cos(pi t/2), B = sqrt(1-gamma^2) sin(pi t/2): keeps unit variance
//	encoding-decoding  A = cos^2(pi t) up to t = 1/2, then 0; B = the same after t = 1/2: through pure noise
//	mirror             A = 0, B = 1: data to itself
//
// with gamma one of
//
//	brownian     sqrt(scale t (1-t))
//	bsquared     scale t (1-t)
//	sinesquared  scale sin^2(pi t)
//	sigmoid      scale (sig(10(t-1/2)+1) - sig(10(t-1/2)-1) - sig(-4) + sig(-6)), sig the logistic function
//	zero         0
//
// (arXiv 2303.08797, table 1 and section 4). Errors: unknown names, a scale that is not positive, a gamma that reaches 1
// on trig, a mirror or an encoding-decoding bridge without noise.
func NewBridge(kind, gamma string, scale float64) (Bridge, error) {
	if !slices.Contains(BridgeKinds(), kind) {
		return Bridge{}, fmt.Errorf("schedules: unknown bridge %q%s", kind, spec.Suggest(kind, BridgeKinds()))
	}
	square, top, err := bridgeNoise(gamma, scale)
	if err != nil {
		return Bridge{}, fmt.Errorf("schedules: %w", err)
	}
	b := Bridge{Label: "bridge-" + kind, Square: square, kind: kind, gamma: gamma, scale: scale}
	switch kind {
	case "linear":
		b.A = func(t float64) (float64, float64) { return 1 - t, -1 }
		b.B = func(t float64) (float64, float64) { return t, 1 }
	case "trig":
		if top >= 1 {
			return Bridge{}, fmt.Errorf("schedules: trig needs a gamma below 1, %s of scale %g reaches %g", gamma, scale, top)
		}
		along := func(f func(float64) (s, c float64), sign float64) func(t float64) (float64, float64) {
			return func(t float64) (float64, float64) {
				g2, rate := square(t)
				root := math.Sqrt(1 - g2)
				s, c := f(math.Pi / 2 * t)
				return root * s, sign*math.Pi/2*root*c - rate/(2*root)*s
			}
		}
		b.A = along(func(v float64) (float64, float64) { return math.Cos(v), math.Sin(v) }, -1)
		b.B = along(func(v float64) (float64, float64) { return math.Sin(v), math.Cos(v) }, 1)
	case "encoding-decoding":
		half := func(on func(t float64) bool) func(t float64) (float64, float64) {
			return func(t float64) (float64, float64) {
				if !on(t) {
					return 0, 0
				}
				c := math.Cos(math.Pi * t)
				return c * c, -math.Pi * math.Sin(2*math.Pi*t)
			}
		}
		b.A, b.B = half(func(t float64) bool { return t <= 0.5 }), half(func(t float64) bool { return t > 0.5 })
	default:
		b.A = func(float64) (float64, float64) { return 0, 0 }
		b.B = func(float64) (float64, float64) { return 1, 0 }
	}
	if gamma == "zero" && (kind == "mirror" || kind == "encoding-decoding") {
		return Bridge{}, fmt.Errorf("schedules: a bridge of kind %s needs noise, gamma is zero", kind)
	}
	return b, nil
}

// bridgeNoise returns gamma^2 with its rate, and the largest gamma.
func bridgeNoise(name string, scale float64) (square func(t float64) (float64, float64), top float64, err error) {
	if !(scale > 0 && scale <= 1e6) {
		return nil, 0, fmt.Errorf("gamma %s: scale %g; want a positive number", name, scale)
	}
	of := func(f func(t float64) (g, dg float64)) func(t float64) (float64, float64) {
		return func(t float64) (float64, float64) {
			g, dg := f(t)
			return scale * scale * g * g, 2 * scale * scale * g * dg
		}
	}
	switch name {
	case "brownian":
		return func(t float64) (float64, float64) { return scale * t * (1 - t), scale * (1 - 2*t) }, math.Sqrt(scale) / 2, nil
	case "bsquared":
		return of(func(t float64) (float64, float64) { return t * (1 - t), 1 - 2*t }), scale / 4, nil
	case "sinesquared":
		return of(func(t float64) (float64, float64) {
			s := math.Sin(math.Pi * t)
			return s * s, math.Pi * math.Sin(2*math.Pi*t)
		}), scale, nil
	case "sigmoid":
		sig := func(v float64) float64 { return 1 / (1 + math.Exp(-v)) }
		slope := func(v float64) float64 { s := sig(v); return s * (1 - s) }
		f := func(t float64) (float64, float64) {
			v := 10 * (t - 0.5)
			return sig(v+1) - sig(v-1) - sig(-4) + sig(-6), 10 * (slope(v+1) - slope(v-1))
		}
		most, _ := f(0.5)
		return of(f), scale * most, nil
	case "zero":
		return func(float64) (float64, float64) { return 0, 0 }, 0, nil
	}
	return nil, 0, fmt.Errorf("unknown gamma %q%s", name, spec.Suggest(name, BridgeNoises()))
}

// errNoText says that a process made of functions cannot be written down.
var errNoText = errors.New("made of functions")

// Text returns the names that NewBridge takes for b; it fails for one made of a caller's functions.
func (b Bridge) Text() (kind, gamma string, scale float64, err error) {
	if b.kind == "" {
		return "", "", 0, fmt.Errorf("schedules: process %s cannot be written down: %w", b.Name(), errNoText)
	}
	return b.kind, b.gamma, b.scale, nil
}
