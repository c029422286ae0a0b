// Package distill draws samples by score distillation: a set of images is optimised so that, noised to any level, the
// model has nothing to correct in them. A repulsion between the images of a set keeps them apart (repulsive score
// distillation), so that the set shows what the model knows and not one mode of it over and over. It needs no gradient
// of the model, works on whatever an image is made from (Scene), and solves inverse problems (Measure).
package distill

import (
	"context"
	"fmt"
	"io"
	"math"

	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// RSD is repulsive score distillation (Zilberstein, Mardani and Segarra 2024, arXiv 2406.16683). The rows of one seed are
// the particles z_1 ... z_n of a set (see Rows); sets do not see each other. One iteration at a node (alpha, sigma):
//
//	x_i = alpha z_i + sigma eps_i,  eps_i ~ N(0, I)
//	q_i = eps_hat(x_i) - eps_i - Gamma sigma R_i
//	z_i moves against w(node) q_i by the Optimizer
//
// R_i pushes z_i away from the others, uphill of minus the log of a kernel density of the particles' features (see
// Kernel). The residual is detached: no gradient of the model is taken. With Gamma = 0 this is score distillation (SDS,
// Poole et al. 2022, arXiv 2209.14988), particle by particle; so it is for n = 1 whatever Gamma is.
//
// Iteration k asks the model at node k of the grid (see Spread), one evaluation per particle; the last node of the grid
// is where the results live and is not asked, so a grid of K steps makes K iterations. Sigma = 0 is no level to distil at;
// alpha = 0 is none either, and leaves the particles as they are.
// The particles start from the prior of a clean image, N(0, I).
//
// The zero value is SDS with weight 1 and Adam. Distillation follows modes: it does not keep their weights (a small mode
// is drawn as often as a large one when Gamma is large), and without repulsion it is narrower than the target. Leave the
// repulsion on to the end (Off = 0) for the target's own spread within a mode, or end it early (Off = 0.3) for cleaner,
// more concentrated samples.
type RSD struct {
	Gamma float64 // strength of the repulsion
	// Relative makes Gamma the size of the repulsion as a share of the residual's, |Gamma sigma R_i| -> Gamma |eps_hat -
	// eps|, whatever the dimension and the features: without it useful values go from 5 in two dimensions to hundreds.
	Relative bool
	// Limit is the largest such share: a longer repulsion is cut to it, so that it can turn the residual but not drown it,
	// as an early one with SGD would. 0 = no limit.
	Limit    float64
	Off      float64  // last fraction of the run without repulsion
	Decay    bool     // Gamma falls linearly to 0 where Off begins
	Break    float64  // no repulsion at sigma/alpha <= Break
	Features Features // what the kernel compares; nil = the particles as they are
	Noisy    bool     // features of the noised x_i, as published, in place of the clean z_i
	Kernel   Kernel

	Residual Residual
	Weight   Weight // nil = 1
	// Spread is how far the levels stray from the order of the grid: iteration k of K takes a node drawn from those
	// within Spread K of the k-th, one for the whole set. 0 = in order (annealed), 1 = any node at any time.
	Spread float64
	Scene  Scene // nil = the pixels themselves
	Optimizer

	Measure *Measure // an inverse problem; nil = none
}

// Residual is what the model is compared with.
type Residual int

const (
	// SDS subtracts the noise that was put in: eps_hat - eps.
	SDS Residual = iota
	// VSD subtracts the noise prediction of the particles' own distribution, as variational score distillation does (Wang
	// et al. 2023, arXiv 2305.16213). There a copy of the network is trained on the particles; here stands what that
	// training aims at, the exact prediction for the set of particles (a mixture of n points),
	//
	//	eps_phi(x) = (x - alpha sum_j r_j z_j)/sigma,  r = softmax_j(-|x - alpha z_j|^2/(2 sigma^2))
	//
	// which pushes particles apart at high noise and is SDS for n = 1.
	VSD
)

// Begin implements samplers.Sampler. Errors, beside those of a problem that does not fit: options out of range, particles
// of a set that do not stand together, features, a scene or a measurement of another shape.
func (m RSD) Begin(_ context.Context, p *samplers.Problem) (samplers.Run, error) {
	r, err := newRun(m, p)
	if err != nil {
		return nil, err
	}
	return r, r.start()
}

// Resume implements samplers.Resumer.
func (m RSD) Resume(_ context.Context, p *samplers.Problem, rd io.Reader) (samplers.Run, error) {
	r, err := newRun(m, p)
	if err != nil {
		return nil, err
	}
	return r, r.load(rd)
}

// Needs implements samplers.Sampler.
func (RSD) Needs() samplers.Needs { return samplers.Needs{Noise: true, Couples: true} }

// Cost implements samplers.Counter: one evaluation per particle and iteration.
func (RSD) Cost(schedules.Grid, int) int { return 1 }

var (
	_ samplers.Resumer = RSD{}
	_ samplers.Counter = RSD{}
)

func (m RSD) check() error {
	for _, f := range []struct {
		name   string
		v      float64
		lo, hi float64
	}{
		{"gamma", m.Gamma, -math.MaxFloat64, math.MaxFloat64}, {"off", m.Off, 0, 1}, {"limit", m.Limit, 0, math.MaxFloat64}, {"break", m.Break, 0, math.MaxFloat64}, {"spread", m.Spread, 0, 1},
		{"bandwidth", m.Kernel.Bandwidth, 0, math.MaxFloat64},
	} {
		if !(f.v >= f.lo && f.v <= f.hi) {
			return fmt.Errorf("%s = %g: want a number from %g to %g", f.name, f.v, f.lo, f.hi)
		}
	}
	if m.Residual != SDS && m.Residual != VSD {
		return fmt.Errorf("unknown residual %d", int(m.Residual))
	}
	return m.Optimizer.check()
}

// gamma is the strength of the repulsion in iteration k of total at a node.
func (m RSD) gamma(strength float64, k, total int, n schedules.Node) float64 {
	on := (1 - m.Off) * float64(total)
	if float64(k) >= on || n.Ratio() <= m.Break && m.Break > 0 {
		return 0
	}
	if m.Decay {
		return strength * (1 - float64(k)/on)
	}
	return strength
}

// Rows makes the rows of one set of n particles per seed. Particle 0 starts from torch's stream of the seed, the others
// from streams of their own.
func Rows(seeds []uint64, n int) []models.Row {
	rows := make([]models.Row, 0, len(seeds)*n)
	for _, s := range seeds {
		for j := range n {
			rows = append(rows, models.Row{Seed: s, Particle: j})
		}
	}
	return rows
}
