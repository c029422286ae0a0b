package schedules

import "math"

// VE is the variance exploding process in the time t = sigma: alpha = 1, sigma = t. SigmaMax is where a run starts
// and SigmaMin its last noise level unless the grid says otherwise; the zero value has 50 and 0.01 (Song et al. 2021,
// CIFAR-10).
type VE struct{ SigmaMin, SigmaMax float64 }

func (p VE) sigmas() (lo, hi float64) {
	if p == (VE{}) {
		return 0.01, 50
	}
	return p.SigmaMin, p.SigmaMax
}

// Name returns "ve".
func (VE) Name() string { return "ve" }

// Ends returns SigmaMax and 0.
func (p VE) Ends() (noise, data float64) { _, hi := p.sigmas(); return hi, 0 }

// Range returns SigmaMax and SigmaMin.
func (p VE) Range() (noise, data float64) { lo, hi := p.sigmas(); return hi, lo }

// At returns the node at sigma = t.
func (VE) At(t float64) Node { return Node{t, 1, t} }

// AtRatio returns the node at sigma = sb.
func (VE) AtRatio(sb float64) Node { return Node{sb, 1, sb} }

// Rates returns 0 and 1.
func (VE) Rates(float64) (dAlpha, dSigma float64) { return 0, 1 }

// EDM is the process of Karras et al. 2022 ("Elucidating the Design Space of Diffusion-Based Generative Models"):
// alpha = 1, sigma = t. It differs from VE in its usual range alone; the zero value has SigmaMin 0.002, SigmaMax 80.
type EDM struct{ SigmaMin, SigmaMax float64 }

func (p EDM) sigmas() (lo, hi float64) {
	if p == (EDM{}) {
		return 0.002, 80
	}
	return p.SigmaMin, p.SigmaMax
}

// Name returns "edm".
func (EDM) Name() string { return "edm" }

// Ends returns SigmaMax and 0.
func (p EDM) Ends() (noise, data float64) { _, hi := p.sigmas(); return hi, 0 }

// Range returns SigmaMax and SigmaMin.
func (p EDM) Range() (noise, data float64) { lo, hi := p.sigmas(); return hi, lo }

// At returns the node at sigma = t.
func (EDM) At(t float64) Node { return Node{t, 1, t} }

// AtRatio returns the node at sigma = sb.
func (EDM) AtRatio(sb float64) Node { return Node{sb, 1, sb} }

// Rates returns 0 and 1.
func (EDM) Rates(float64) (dAlpha, dSigma float64) { return 0, 1 }

// GeometricVE is the variance exploding process in the time of Song et al. 2021 (eq. 30-31), t in [0, 1]:
// alpha = 1, sigma = SigmaMin (SigmaMax/SigmaMin)^t. The zero value has 0.01 and 50. Its clean end, sigma = 0, lies at
// t = -Inf; a node there has T = 0.
type GeometricVE struct{ SigmaMin, SigmaMax float64 }

// Name returns "ve-geometric".
func (GeometricVE) Name() string { return "ve-geometric" }

// Ends returns 1 and 0.
func (GeometricVE) Ends() (noise, data float64) { return 1, 0 }

// Range returns 1 and 0.
func (GeometricVE) Range() (noise, data float64) { return 1, 0 }

// At returns the node at time t.
func (p GeometricVE) At(t float64) Node {
	lo, hi := VE(p).sigmas()
	return Node{t, 1, lo * math.Pow(hi/lo, t)}
}

// AtRatio returns the node at sigma = sb.
func (p GeometricVE) AtRatio(sb float64) Node {
	if sb == 0 {
		return Node{0, 1, 0}
	}
	lo, hi := VE(p).sigmas()
	return Node{math.Log(sb/lo) / math.Log(hi/lo), 1, sb}
}

// Rates returns 0 and sigma log(SigmaMax/SigmaMin).
func (p GeometricVE) Rates(t float64) (dAlpha, dSigma float64) {
	lo, hi := VE(p).sigmas()
	return 0, p.At(t).Sigma * math.Log(hi/lo)
}
