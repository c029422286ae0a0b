package schedules

import (
	"fmt"
	"math"
)

// Kind is what a network predicts.
type Kind int

// The kinds of prediction, all functions of (x, t): the noise E[eps|x], the data E[x0|x], Salimans and Ho's
// v = alpha eps - sigma x0, the velocity E[dx/dt|x] in the process's own time, and the score grad log p_t(x).
const (
	Eps Kind = iota
	X0
	V
	Velocity
	Score
	// Two more on a Bridge, whose data X0 are its x1: the transport E[A' x0 + B' x1|x], and the source E[x0|x].
	Transport
	Source
)

var kindNames = [...]string{"eps", "x0", "v", "velocity", "score", "transport", "source"}

func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return kindNames[k]
}

// ParseKind reads the name of a prediction; diffusers' names (epsilon, sample, v_prediction, flow_prediction) are
// accepted too.
func ParseKind(s string) (Kind, error) {
	switch s {
	case "eps", "epsilon":
		return Eps, nil
	case "x0", "sample":
		return X0, nil
	case "v", "v_prediction":
		return V, nil
	case "velocity", "flow", "flow_prediction":
		return Velocity, nil
	case "score":
		return Score, nil
	case "transport":
		return Transport, nil
	case "source":
		return Source, nil
	}
	return 0, fmt.Errorf("unknown prediction %q; known: eps, x0, v, velocity, score", s)
}

// Convert returns the coefficients of the affine map between two predictions at node n of process p:
//
//	to = cx x + co from
//
// (Every pair of predictions is affine at fixed (x, t), with cx independent of the condition.) It fails where the
// map is singular: data from noise or score at alpha = 0, noise or score from data at sigma = 0.
func Convert(p Gaussian, from, to Kind, n Node) (cx, co float64, err error) {
	if from < Eps || from > Score || to < Eps || to > Score {
		return 0, 0, fmt.Errorf("schedules: no conversion from %v to %v", from, to)
	}
	if from == to {
		return 0, 1, nil
	}
	a, s := n.Alpha, n.Sigma
	var da, ds float64
	if from == Velocity || to == Velocity {
		da, ds = p.Rates(n.T)
	}
	// First from -> (X0 or Eps), whichever is finite here, then on to the target: two affine maps.
	xx, xo := toX0(from, a, s, da, ds)  // x0  = xx x + xo out
	ex, eo := toEps(from, a, s, da, ds) // eps = ex x + eo out
	switch to {
	case X0:
		cx, co = xx, xo
	case Eps:
		cx, co = ex, eo
	case V: // a eps - s x0
		cx, co = zmul(a, ex)-zmul(s, xx), zmul(a, eo)-zmul(s, xo)
	case Velocity: // da x0 + ds eps
		cx, co = zmul(da, xx)+zmul(ds, ex), zmul(da, xo)+zmul(ds, eo)
	case Score: // -eps/s
		cx, co = -ex/s, -eo/s
	}
	if math.IsNaN(cx) || math.IsInf(cx, 0) || math.IsNaN(co) || math.IsInf(co, 0) {
		return 0, 0, fmt.Errorf("schedules: %v cannot be had from %v at t=%g (alpha=%g, sigma=%g)", to, from, n.T, a, s)
	}
	return cx, co, nil
}

// zmul is a product in which 0 wins over an infinity.
func zmul(a, b float64) float64 {
	if a == 0 {
		return 0
	}
	return a * b
}

func toX0(from Kind, a, s, da, ds float64) (cx, co float64) {
	switch from {
	case X0:
		return 0, 1
	case Eps:
		return 1 / a, -s / a
	case Score:
		return 1 / a, s * s / a
	case V:
		r2 := a*a + s*s
		return a / r2, -s / r2
	case Velocity:
		d := a*ds - s*da
		return ds / d, -s / d
	}
	return math.NaN(), math.NaN()
}

func toEps(from Kind, a, s, da, ds float64) (cx, co float64) {
	switch from {
	case Eps:
		return 0, 1
	case X0:
		return 1 / s, -a / s
	case Score:
		return 0, -s
	case V:
		r2 := a*a + s*s
		return s / r2, a / r2
	case Velocity:
		d := a*ds - s*da
		return -da / d, a / d
	}
	return math.NaN(), math.NaN()
}
