package schedules

import "math"

// VPLinear is the variance preserving process with beta(t) linear in t, t in [0, 1] (Song et al. 2021, "Score-Based
// Generative Modeling through Stochastic Differential Equations", eq. 32-33):
//
//	alpha(t) = exp(-t^2 (BetaMax - BetaMin)/4 - t BetaMin/2),  sigma(t)^2 = 1 - alpha(t)^2
//
// The zero value has the paper's BetaMin 0.1 and BetaMax 20. Times beyond 1 follow the formula.
type VPLinear struct{ BetaMin, BetaMax float64 }

func (p VPLinear) betas() (lo, hi float64) {
	if p == (VPLinear{}) {
		return 0.1, 20
	}
	return p.BetaMin, p.BetaMax
}

// logAlpha returns log alpha(t), minus half the integral of beta.
func (p VPLinear) logAlpha(t float64) float64 {
	lo, hi := p.betas()
	return -0.25*t*t*(hi-lo) - 0.5*t*lo
}

// dLogAlpha returns -beta(t)/2.
func (p VPLinear) dLogAlpha(t float64) float64 {
	lo, hi := p.betas()
	return -0.5*t*(hi-lo) - 0.5*lo
}

// time inverts logAlpha.
func (p VPLinear) time(logAlpha float64) float64 {
	if logAlpha == 0 {
		return 0
	}
	lo, hi := p.betas()
	b := -2 * logAlpha // the integral of beta
	return 2 * b / (lo + math.Sqrt(lo*lo+2*(hi-lo)*b))
}

// Name returns "vp-linear".
func (VPLinear) Name() string { return "vp-linear" }

// Ends returns 1 and 0.
func (VPLinear) Ends() (noise, data float64) { return 1, 0 }

// Range returns 1 and 0.001.
func (VPLinear) Range() (noise, data float64) { return 1, 1e-3 }

// At returns the node at time t.
func (p VPLinear) At(t float64) Node {
	la := p.logAlpha(t)
	return Node{t, math.Exp(la), math.Sqrt(-math.Expm1(2 * la))}
}

// AtRatio returns the node whose sigma/alpha is sb.
func (p VPLinear) AtRatio(sb float64) Node { return vpNode(p.time(vpLogAlpha(sb)), sb) }

// Rates returns d alpha/dt and d sigma/dt; the latter is infinite at t = 0 unless BetaMin is 0.
func (p VPLinear) Rates(t float64) (dAlpha, dSigma float64) {
	n, r := p.At(t), p.dLogAlpha(t)
	if n.Sigma == 0 { // sigma ~ sqrt(BetaMin t + (BetaMax-BetaMin) t^2/2)
		if lo, hi := p.betas(); lo == 0 {
			return 0, math.Sqrt(hi / 2)
		}
		return n.Alpha * r, math.Inf(1)
	}
	return n.Alpha * r, -n.Alpha * n.Alpha * r / n.Sigma
}

// vpNode is the node of a variance preserving process with ratio sb, alpha^2 + sigma^2 = 1.
func vpNode(t, sb float64) Node {
	if math.IsInf(sb, 1) {
		return Node{t, 0, 1}
	}
	r := math.Hypot(1, sb)
	return Node{t, 1 / r, sb / r}
}

// vpLogAlpha is log alpha of the node with ratio sb.
func vpLogAlpha(sb float64) float64 {
	if sb > 1e8 {
		return -math.Log(sb)
	}
	return -0.5 * math.Log1p(sb*sb)
}

// SubVP is the sub-VP process (Song et al. 2021, eq. 29): alpha as in VPLinear and sigma = 1 - alpha^2, so that
// alpha^2 + sigma^2 < 1 inside. The zero value has BetaMin 0.1 and BetaMax 20.
type SubVP struct{ BetaMin, BetaMax float64 }

// Name returns "sub-vp".
func (SubVP) Name() string { return "sub-vp" }

// Ends returns 1 and 0.
func (SubVP) Ends() (noise, data float64) { return 1, 0 }

// Range returns 1 and 0.001.
func (SubVP) Range() (noise, data float64) { return 1, 1e-3 }

// At returns the node at time t.
func (p SubVP) At(t float64) Node {
	la := VPLinear(p).logAlpha(t)
	return Node{t, math.Exp(la), -math.Expm1(2 * la)}
}

// AtRatio returns the node whose sigma/alpha is sb: 1/alpha - alpha = sb, so log alpha = -asinh(sb/2).
func (p SubVP) AtRatio(sb float64) Node {
	la := -math.Asinh(sb / 2)
	return Node{VPLinear(p).time(la), math.Exp(la), -math.Expm1(2 * la)}
}

// Rates returns d alpha/dt and d sigma/dt.
func (p SubVP) Rates(t float64) (dAlpha, dSigma float64) {
	a, r := math.Exp(VPLinear(p).logAlpha(t)), VPLinear(p).dLogAlpha(t)
	return a * r, -2 * a * a * r
}

// Cosine is the variance preserving process of Nichol and Dhariwal 2021 ("Improved DDPM", eq. 17) in continuous time,
// t in [0, 1], without the clipping of its discrete form (that one is VPDiscrete):
//
//	alpha(t) = cos((t+s)/(1+s) pi/2) / cos(s/(1+s) pi/2),  s = 0.008,  sigma^2 = 1 - alpha^2
//
// At t = 1 there is no signal left.
type Cosine struct{}

const (
	cosineRate  = math.Pi / 2 / 1.008 // d angle/dt
	cosineAngle = 0.008 * cosineRate  // the angle at t = 0
)

// Name returns "cosine".
func (Cosine) Name() string { return "cosine" }

// Ends returns 1 and 0.
func (Cosine) Ends() (noise, data float64) { return 1, 0 }

// Range returns 0.9946, where the ratio is still moderate (the start that DPM-Solver takes), and 0.001.
func (Cosine) Range() (noise, data float64) { return 0.9946, 1e-3 }

// At returns the node at time t. alpha is written as a sine of 1-t and sigma as a product of sines, so that both keep
// their relative accuracy at the two ends.
func (Cosine) At(t float64) Node {
	c := math.Cos(cosineAngle)
	up := math.Sin(t*cosineRate) * math.Sin(t*cosineRate+2*cosineAngle)
	return Node{t, math.Sin((1-t)*cosineRate) / c, math.Sqrt(max(up, 0)) / c}
}

// AtRatio returns the node whose sigma/alpha is sb.
func (Cosine) AtRatio(sb float64) Node {
	n := vpNode(0, sb)
	s, c := math.Sincos(cosineAngle)
	angle := math.Atan2(math.Hypot(s, n.Sigma*c), n.Alpha*c)
	d := angle - cosineAngle
	if d < 0.5 { // the difference of close angles: sin(angle-a0) sin(angle+a0) = sigma^2 cos^2 a0
		d = math.Asin(n.Sigma * n.Sigma * c * c / math.Sin(angle+cosineAngle))
	}
	n.T = min(d/cosineRate, 1)
	return n
}

// Rates returns d alpha/dt and d sigma/dt; the latter is infinite at t = 0.
func (p Cosine) Rates(t float64) (dAlpha, dSigma float64) {
	n := p.At(t)
	dAlpha = -cosineRate * math.Cos((1-t)*cosineRate) / math.Cos(cosineAngle)
	return dAlpha, -n.Alpha * dAlpha / n.Sigma
}
