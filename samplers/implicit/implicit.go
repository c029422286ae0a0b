// Package implicit tunes the parameters of a sampler through its samples (implicit diffusion, Marion et al. 2024, arXiv
// 2402.05468): one step of sampling for every step of optimisation, in place of sampling to the end inside a loop.
//
// For Langevin sampling of pi ∝ exp(-V(x; theta)) and a loss E_pi f, the gradient needs no derivative through the sampler,
//
//	d/dtheta E_pi f = -Cov_pi(f, dV/dtheta)
//
// and is estimated over the particles. Where there is no V to differentiate (a guidance scale), SPSA takes differences with
// common random numbers.
package implicit

import (
	"context"
	"errors"
	"fmt"
	"math"

	"drift/internal/rng"
)

// Langevin is the single loop: particles X move by the unadjusted Langevin step and theta by gradient descent,
//
//	X_i   <- X_i - Step grad_x V(X_i) + sqrt(2 Step) z_i
//	theta <- theta - Rate Gamma,  Gamma = -cov_i(f(X_i), dV/dtheta(X_i))
//
// The covariance divides by the number of particles. Step leaves a bias: for V = x^2/2 the stationary variance is
// 1/(1 - Step/2).
type Langevin struct {
	Dim  int // numbers per particle
	Step float64
	Rate float64 // of theta; let it fall for a fixed point without jitter
	// GradX writes grad_x V at one particle, GradTheta its derivative by every parameter; Loss is f.
	GradX     func(x, theta, dst []float64)
	GradTheta func(x, theta, dst []float64)
	Loss      func(x []float64) float64
	// Noise draws z of particle i in an iteration; nil = by Seed.
	Noise func(dst []float64, iteration, i int)
	Seed  uint64
}

// Gradient returns Gamma of the particles x, one number per parameter.
func (l Langevin) Gradient(x, theta []float64) []float64 {
	k := len(x) / l.Dim
	losses, slopes := make([]float64, k), make([]float64, k*len(theta))
	mean := 0.0
	for i := range k {
		p := x[i*l.Dim : (i+1)*l.Dim]
		losses[i] = l.Loss(p)
		mean += losses[i] / float64(k)
		l.GradTheta(p, theta, slopes[i*len(theta):(i+1)*len(theta)])
	}
	gamma := make([]float64, len(theta))
	for i := range k {
		for j := range gamma { // the mean of the slopes drops out
			gamma[j] -= (losses[i] - mean) * slopes[i*len(theta)+j] / float64(k)
		}
	}
	return gamma
}

// Run makes that many iterations on x (particles one after another) and theta, both in place. theta moves first, on the
// particles as they stand. Observe may be nil.
func (l Langevin) Run(ctx context.Context, x, theta []float64, iterations int, observe func(iteration int, gamma []float64)) error {
	if l.Dim < 1 || len(x)%l.Dim != 0 || len(x) < 2*l.Dim || len(theta) == 0 {
		return fmt.Errorf("implicit: %d numbers for particles of %d and %d parameters: want two particles or more", len(x), l.Dim, len(theta))
	}
	if !(l.Step > 0) || l.GradX == nil || l.GradTheta == nil || l.Loss == nil {
		return errors.New("implicit: wants a step above 0, both gradients and the loss")
	}
	grad, z := make([]float64, l.Dim), make([]float64, l.Dim)
	for it := range iterations {
		if err := ctx.Err(); err != nil {
			return err
		}
		gamma := l.Gradient(x, theta)
		old := append([]float64(nil), theta...)
		for j, g := range gamma {
			theta[j] -= l.Rate * g
		}
		for i := range len(x) / l.Dim {
			p := x[i*l.Dim : (i+1)*l.Dim]
			l.GradX(p, old, grad)
			if l.Noise != nil {
				l.Noise(z, it, i)
			} else {
				rng.Normal(z, rng.Key{Seed: l.Seed, Image: uint64(i), Step: it, Purpose: rng.PurposeStep})
			}
			for j := range p {
				p[j] += -l.Step*grad[j] + math.Sqrt(2*l.Step)*z[j]
				if p[j]-p[j] != 0 {
					return fmt.Errorf("implicit: particle %d is %g in iteration %d: take a smaller step", i, p[j], it)
				}
			}
		}
		if observe != nil {
			observe(it, gamma)
		}
	}
	return nil
}

// SPSA minimises a loss that can only be evaluated, by simultaneous perturbation (Spall 1992): both sides of a random
// direction with the same seed, so that the noise of sampling drops out of the difference,
//
//	theta <- theta - a_k (f(theta + c_k d) - f(theta - c_k d))/(2 c_k) d,  d_j = ±1,  a_k = Rate/(k+1+n/10)^0.602,  c_k = Width/(k+1)^0.101
//
// It costs two evaluations of the loss per iteration.
type SPSA struct {
	Rate, Width float64
	Seed        uint64
	First       int // first iteration, to go on with a run that was stopped
	// Observe is told theta after every iteration, and the losses at its two sides; may be nil.
	Observe func(iteration int, theta []float64, losses [2]float64) error
}

// Run makes the iterations First to n - 1 on theta, in place. loss is told the seed of the iteration's random numbers.
func (s SPSA) Run(ctx context.Context, theta []float64, n int, loss func(ctx context.Context, theta []float64, seed uint64) (float64, error)) error {
	if !(s.Rate > 0) || !(s.Width > 0) {
		return fmt.Errorf("implicit: spsa with rate %g and width %g: want numbers above 0", s.Rate, s.Width)
	}
	d, side := make([]float64, len(theta)), make([]float64, len(theta))
	for k := s.First; k < n; k++ {
		a, c := s.Rate/math.Pow(float64(k+1)+float64(n)/10, 0.602), s.Width/math.Pow(float64(k+1), 0.101)
		rng.Uniform(d, rng.Key{Seed: s.Seed, Step: k, Purpose: rng.PurposeProbe})
		for j, u := range d {
			d[j] = 1
			if u < 0.5 {
				d[j] = -1
			}
		}
		var f [2]float64
		for i, sign := range []float64{1, -1} {
			for j := range theta {
				side[j] = theta[j] + sign*c*d[j]
			}
			var err error
			if f[i], err = loss(ctx, side, s.Seed+uint64(k)); err != nil {
				return fmt.Errorf("implicit: spsa: iteration %d: %w", k, err)
			}
		}
		for j := range theta {
			theta[j] -= a * (f[0] - f[1]) / (2 * c) * d[j]
		}
		if s.Observe != nil {
			if err := s.Observe(k, theta, f); err != nil {
				return err
			}
		}
	}
	return nil
}
