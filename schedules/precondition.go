package schedules

import "math"

// Coefficients turn a network F into a denoiser in the scaled space x/alpha, at ratio sb = sigma/alpha:
//
//	E[x0|x] = Skip x/alpha + Out F(In x/alpha; Noise)
type Coefficients struct{ Skip, Out, In, Noise float64 }

// Precondition gives the coefficients at ratio sb.
type Precondition func(sb float64) Coefficients

// PreconditionEDM is that of Karras et al. 2022, table 1: sigmaData is the standard deviation of the data, 0.5 there.
func PreconditionEDM(sigmaData float64) Precondition {
	return func(sb float64) Coefficients {
		r := math.Hypot(sb, sigmaData)
		return Coefficients{
			Skip:  (sigmaData / r) * (sigmaData / r),
			Out:   sigmaData * (sb / r),
			In:    1 / r,
			Noise: math.Log(sb) / 4,
		}
	}
}

// PreconditionEps is that of a network which predicts noise on a variance preserving process and is told scale times
// the process's own time: VPLinear with 999 gives the VP networks of Song et al. 2021 as EDM wraps them, VPDiscrete
// with 1 those of diffusers.
func PreconditionEps(p Gaussian, scale float64) Precondition {
	return func(sb float64) Coefficients {
		return Coefficients{Skip: 1, Out: -sb, In: 1 / math.Hypot(sb, 1), Noise: scale * p.AtRatio(sb).T}
	}
}

// PreconditionIDDPM is PreconditionEps of a network that knows whole timesteps only (iDDPM, ADM; the first half of its
// output where it also predicts a variance): it is told the timestep whose sigma/alpha is nearest to sb, the noisier
// of two equally near ones, and -1 where the clean end is nearest.
func PreconditionIDDPM(p *VPDiscrete) Precondition {
	return func(sb float64) Coefficients {
		t := p.AtRatio(sb).T
		above, below := math.Ceil(t), math.Floor(t)
		if t == 0 && sb < p.At(0).Ratio() {
			below = -1
		}
		best := above
		if math.Abs(p.At(below).Ratio()-sb) < math.Abs(p.At(above).Ratio()-sb) {
			best = below
		}
		return Coefficients{Skip: 1, Out: -sb, In: 1 / math.Hypot(sb, 1), Noise: best}
	}
}

// PreconditionVE is that of the VE networks of Song et al. 2021 as EDM wraps them: F predicts sb times the score.
func PreconditionVE() Precondition {
	return func(sb float64) Coefficients {
		return Coefficients{Skip: 1, Out: sb, In: 1, Noise: math.Log(sb / 2)}
	}
}

// PreconditionV is that of a network which predicts v = alpha eps - sigma x0 on a variance preserving process and is
// told scale times the process's own time. It is PreconditionEDM(1) but for the sign of F and its time.
func PreconditionV(p Gaussian, scale float64) Precondition {
	return func(sb float64) Coefficients {
		r := math.Hypot(sb, 1)
		return Coefficients{Skip: 1 / r / r, Out: -sb / r, In: 1 / r, Noise: scale * p.AtRatio(sb).T}
	}
}

// PreconditionFlow is that of a network which predicts the velocity eps - x0 of Flow and is told scale times its time.
func PreconditionFlow(scale float64) Precondition {
	return func(sb float64) Coefficients {
		t := Flow{}.AtRatio(sb).T
		return Coefficients{Skip: 1 / (1 + sb), Out: -t, In: 1 / (1 + sb), Noise: scale * t}
	}
}
