package smc

import (
	"context"
	"errors"
	"fmt"
	"math"

	"drift/internal/rng"
)

// Density is an unnormalised density on R^d. Log returns log gamma(x), and writes its gradient where grad is not nil.
type Density struct {
	Dim int
	Log func(x, grad []float64) float64
}

// Control is a drift u(t, x) that turns Brownian motion towards a density; nil is none.
type Control func(t float64, x, u []float64)

// Bridge samples an unnormalised density gamma by a controlled Brownian motion from 0 (the path integral sampler of Zhang
// and Chen 2022, arXiv 2111.15141, in the kernel form of diffusion generative flow samplers, Zhang et al. 2024, arXiv
// 2310.02679): with h = T/Steps, t' = t + h,
//
//	P_F(x' | x) = N(x + Sigma u(t, x) h, Sigma^2 h),  P_B(x | x') = N(x' t/t', Sigma^2 h t/t'),
//	lw = log gamma(x_N) + sum log P_B - sum log P_F
//
// where the first P_B is 1. exp(lw) has mean Z = int gamma for every control; the better the control the lighter the weights,
// and GaussianControl and MixtureControl make them constant as steps get small.
type Bridge struct {
	Sigma, T float64
	Steps    int
	Control  Control
}

// Paths are samples of whole paths with their weights.
type Paths struct {
	X          []float64 // ends, row by row
	LogWeights []float64
	LogPF      []float64 // sums of log P_F and log P_B
	LogPB      []float64
	Girsanov   []float64 // log P_B - log P_F against Brownian motion without control, in the other form: -sum u z sqrt(h) - sum u^2 h/2
	LogZ       float64   // log mean weight; exp of it is unbiased
	ELBO       float64   // mean log weight, at most log Z
	ESS        float64
}

// finish sums the weights up.
func (p *Paths) finish() error {
	w, err := Weigh(p.LogWeights)
	if err != nil {
		return err
	}
	if w.NaN > 0 {
		return fmt.Errorf("smc: %d log weights of paths are NaN", w.NaN)
	}
	p.LogZ, p.ESS = w.LogMean, w.ESS
	p.ELBO = 0
	for _, v := range p.LogWeights {
		p.ELBO += v / float64(len(p.LogWeights))
	}
	return nil
}

// noise fills z with the unit noise of step k of particle j.
type noiseOf func(z []float64, j, k int)

func streams(seed uint64) noiseOf {
	return func(z []float64, j, k int) {
		rng.Normal(z, rng.Key{Seed: seed, Image: uint64(j), Step: k, Purpose: rng.PurposeStep})
	}
}

// Sample draws n paths of the streams of seed.
func (b Bridge) Sample(ctx context.Context, g Density, seed uint64, n int) (*Paths, error) {
	return b.sample(ctx, g, n, streams(seed))
}

func (b Bridge) sample(ctx context.Context, g Density, n int, noise noiseOf) (*Paths, error) {
	if !(b.Sigma > 0) || !(b.T > 0) || b.Steps < 1 || n < 1 || g.Dim < 1 || g.Log == nil {
		return nil, fmt.Errorf("smc: bridge: %d paths of %d steps to time %g with sigma %g: want positive numbers and a density", n, b.Steps, b.T, b.Sigma)
	}
	d := g.Dim
	out := &Paths{X: make([]float64, n*d), LogWeights: make([]float64, n), LogPF: make([]float64, n), LogPB: make([]float64, n), Girsanov: make([]float64, n)}
	h := b.T / float64(b.Steps)
	vf := b.Sigma * b.Sigma * h
	u, z := make([]float64, d), make([]float64, d)
	for j := range n {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		x := out.X[j*d : (j+1)*d]
		for k := range b.Steps {
			t := float64(k) * h
			clear(u)
			if b.Control != nil {
				b.Control(t, x, u)
			}
			noise(z, j, k)
			share := float64(k) / float64(k+1) // t/t'
			vb := vf * share
			for i := range d {
				next := x[i] + float64(b.Sigma*u[i]*h) + float64(math.Sqrt(vf)*z[i])
				out.LogPF[j] -= 0.5*math.Log(2*math.Pi*vf) + 0.5*float64(z[i]*z[i])
				if k > 0 {
					e := x[i] - float64(next*share)
					out.LogPB[j] -= 0.5*math.Log(2*math.Pi*vb) + 0.5*float64(e*e)/vb
				}
				out.Girsanov[j] -= float64(u[i]*z[i])*math.Sqrt(h) + 0.5*float64(u[i]*u[i])*h
				x[i] = next
			}
		}
		out.LogWeights[j] = g.Log(x, nil) + out.LogPB[j] - out.LogPF[j]
	}
	return out, out.finish()
}

// GaussianControl is the control of Bridge that is exact in the limit of small steps for exp(logZ) N(mu, v): the drift to
// the mean of x_T given x_t,
//
//	u = (m_t(x) - x)/(T - t)/Sigma, m_t(x) = (x/(Sigma^2 (T-t)) + mu/v)/(1/(Sigma^2 (T-t)) + 1/v - 1/(Sigma^2 T)).
func (b Bridge) GaussianControl(mu, v []float64) Control {
	return func(t float64, x, u []float64) {
		left := b.Sigma * b.Sigma * (b.T - t)
		for i := range x {
			p := 1/left + 1/v[i] - 1/(b.Sigma*b.Sigma*b.T)
			u[i] = ((x[i]/left+mu[i]/v[i])/p - x[i]) / (b.T - t) / b.Sigma
		}
	}
}

// MixtureControl is GaussianControl for a mixture of Gaussians with diagonal variances: the mean of x_T given x_t under the
// law whose density is proportional to gamma(x_T) times that of Brownian motion from x_t, over that from 0. Every
// component needs more precision than the reference, 1/v > 1/(Sigma^2 T) - 1/(Sigma^2 (T-t)), which all have.
func (b Bridge) MixtureControl(weights []float64, means, vars [][]float64) Control {
	return func(t float64, x, u []float64) {
		left, all := b.Sigma*b.Sigma*(b.T-t), b.Sigma*b.Sigma*b.T
		lw := make([]float64, len(weights))
		end := make([][]float64, len(weights))
		for c := range weights {
			lw[c] = math.Log(weights[c])
			end[c] = make([]float64, len(x))
			for i := range x {
				// gamma_c(y) N(y; x, left)/N(y; 0, all) as a function of y: precision p, mean q/p
				m, v := means[c][i], vars[c][i]
				p := 1/left + 1/v - 1/all
				q := x[i]/left + m/v
				end[c][i] = q / p
				lw[c] += 0.5*float64(q*q)/p - 0.5*math.Log(p) - 0.5*float64(m*m)/v - 0.5*math.Log(v)
			}
		}
		w, err := Weigh(lw)
		if err != nil {
			return
		}
		for i := range x {
			y := 0.0
			for c, p := range w.W {
				y += float64(p * end[c][i])
			}
			u[i] = (y - x[i]) / (b.T - t) / b.Sigma
		}
	}
}

// Denoising samples an unnormalised density by the discrete-time denoising diffusion sampler (Vargas et al. 2023, arXiv
// 2302.13834): from x_0 ~ N(0, Sigma^2), with c = 1 - sqrt(1-A) and f the control,
//
//	x' = sqrt(1-A) x + 2 Sigma^2 c f(x) + Sigma sqrt(A) z
//	lw = log gamma(x_N) - log N(x_N; 0, Sigma^2) - sum (2 Sigma^2 c^2 f^2/A + 2 Sigma c/sqrt(A) f z)
//
// Control's t is the number of the step.
type Denoising struct {
	Sigma   float64
	A       float64 // share of noise in a step, in (0, 1)
	Steps   int
	Control Control
}

// Sample draws n paths of the streams of seed.
func (s Denoising) Sample(ctx context.Context, g Density, seed uint64, n int) (*Paths, error) {
	start := func(x []float64, j int) {
		rng.Normal(x, rng.Key{Seed: seed, Image: uint64(j), Purpose: rng.PurposeStart})
		for i := range x {
			x[i] *= s.Sigma
		}
	}
	return s.sample(ctx, g, n, start, streams(seed))
}

func (s Denoising) sample(ctx context.Context, g Density, n int, start func(x []float64, j int), noise noiseOf) (*Paths, error) {
	if !(s.Sigma > 0) || !(s.A > 0 && s.A < 1) || s.Steps < 1 || n < 1 || g.Dim < 1 || g.Log == nil {
		return nil, errors.New("smc: denoising sampler: want positive numbers of paths, steps and sigma, a between 0 and 1, and a density")
	}
	d := g.Dim
	out := &Paths{X: make([]float64, n*d), LogWeights: make([]float64, n)}
	c := 1 - math.Sqrt(1-s.A)
	f, z := make([]float64, d), make([]float64, d)
	for j := range n {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		x := out.X[j*d : (j+1)*d]
		start(x, j)
		sum := 0.0
		for k := range s.Steps {
			clear(f)
			if s.Control != nil {
				s.Control(float64(k), x, f)
			}
			noise(z, j, k)
			for i := range d {
				sum += 2*s.Sigma*s.Sigma*c*c*float64(f[i]*f[i])/s.A + 2*s.Sigma*c/math.Sqrt(s.A)*float64(f[i]*z[i])
				x[i] = math.Sqrt(1-s.A)*x[i] + 2*s.Sigma*s.Sigma*c*f[i] + s.Sigma*math.Sqrt(s.A)*z[i]
			}
		}
		lw := g.Log(x, nil) - sum
		for _, v := range x {
			lw += 0.5*math.Log(2*math.Pi*s.Sigma*s.Sigma) + 0.5*v*v/(s.Sigma*s.Sigma)
		}
		out.LogWeights[j] = lw
	}
	return out, out.finish()
}
