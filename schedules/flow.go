package schedules

import "math"

// Flow is the straight path of rectified flow and flow matching (Liu et al. 2022, Lipman et al. 2022), noise at t = 1:
// alpha = 1 - t, sigma = t. Networks that want 1000 t are told so where they are opened.
type Flow struct{}

// Name returns "flow".
func (Flow) Name() string { return "flow" }

// Ends returns 1 and 0.
func (Flow) Ends() (noise, data float64) { return 1, 0 }

// Range returns 1 and 0.001.
func (Flow) Range() (noise, data float64) { return 1, 1e-3 }

// At returns the node at time t.
func (Flow) At(t float64) Node { return Node{t, 1 - t, t} }

// AtRatio returns the node whose sigma/alpha is sb, at t = sb/(1 + sb).
func (Flow) AtRatio(sb float64) Node {
	if math.IsInf(sb, 1) {
		return Node{1, 0, 1}
	}
	t := sb / (1 + sb)
	return Node{t, 1 / (1 + sb), t}
}

// Rates returns -1 and 1.
func (Flow) Rates(float64) (dAlpha, dSigma float64) { return -1, 1 }

// Trig is the trigonometric path (Albergo and Vanden-Eijnden 2022; "GVP" in SiT), t in [0, 1]:
// alpha = cos(pi t/2), sigma = sin(pi t/2).
type Trig struct{}

// Name returns "trig".
func (Trig) Name() string { return "trig" }

// Ends returns 1 and 0.
func (Trig) Ends() (noise, data float64) { return 1, 0 }

// Range returns 1 and 0.001.
func (Trig) Range() (noise, data float64) { return 1, 1e-3 }

// At returns the node at time t.
func (Trig) At(t float64) Node {
	return Node{t, math.Sin(math.Pi / 2 * (1 - t)), math.Sin(math.Pi / 2 * t)}
}

// AtRatio returns the node whose sigma/alpha is sb.
func (Trig) AtRatio(sb float64) Node { return vpNode(math.Atan(sb)*(2/math.Pi), sb) }

// Rates returns d alpha/dt and d sigma/dt.
func (p Trig) Rates(t float64) (dAlpha, dSigma float64) {
	n := p.At(t)
	return -math.Pi / 2 * n.Sigma, math.Pi / 2 * n.Alpha
}
