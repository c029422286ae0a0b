package smc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"drift/internal/rng"
)

// Chain is a Feynman-Kac model with Gaussian transitions, over states x_0 ... x_{T-1} of Dim numbers: x_0 from Start,
// x_{t+1} ~ N(mean_t(x_t), std_t^2), every state weighted by
//
//	G_t = g_t(x_t) exp(V_t(x_t) - V_{t-1}(x_{t-1})),  V_{-1} = 0.
//
// A state-space model has the likelihood of its observations for g; steering has V_t = lambda r(x0(x_t)), of which only the
// last remains over a path.
type Chain interface {
	Dim() int
	Len() int // T
	// Start turns n rows of unit noise into states, in place; particle k has the noise of row k.
	Start(ctx context.Context, x []float64, n int) error
	// Move writes the means of x_{t+1} given n rows of x_t, and returns the standard deviation.
	Move(ctx context.Context, t int, mean, x []float64, n int) (std float64, err error)
	// Weigh writes log g_t and V_t of n rows.
	Weigh(ctx context.Context, t int, logG, v, x []float64, n int) error
}

// Statistic is one term of a sum over a path, of x_t and x_{t+1}.
type Statistic func(t int, x, next []float64) float64

// Smoother estimates E[sum_t h(x_t, x_{t+1})] under the law of whole paths, online and without the collapse of genealogies:
// PaRIS (Olsson and Westerborn 2017, arXiv 1412.7550). Every particle carries the statistic beta; at a step it draws M
// ancestors J from the backward kernel, softmax of lw_t^j + log m_t(x_t^j, x_{t+1}) - V_t(x_t^j) over j, and takes the mean
// of beta^J + h(x^J, x_{t+1}). Resampling is multinomial at every step.
type Smoother struct {
	Particles int
	Draws     int // M; 0 = 2 (1 degenerates as genealogies do)
	H         Statistic
	Observe   func(t int, lw []float64) error // called with the log weights of every step; may be nil
}

// Smoothed is what a pass of a Smoother found.
type Smoothed struct {
	Estimate  float64 // PaRIS
	Genealogy float64 // by tracing ancestors: the same mean, more variance
	LogZ      float64 // exp of it is unbiased in a pass without a frozen path
	X         []float64
	LW        []float64   // of the last states
	Paths     [][]float64 // a path to every last state, T x Dim, along backward draws
	Roots     []int       // start particle of every last state, by ancestors
	ESS       []float64   // of every step
	V         []float64   // V of the last states
}

// Filter makes a pass. Its random numbers belong to (seed, pass).
func (s Smoother) Filter(ctx context.Context, c Chain, seed uint64, pass int) (*Smoothed, error) {
	return s.pass(ctx, c, seed, pass, nil)
}

// Gibbs makes n passes in which the last particle is held on a path that the pass before drew from its result: the
// Parisian particle Gibbs sampler (Cardoso et al. 2023, arXiv 2301.00900), whose estimates lose their bias geometrically in
// the number of passes; the first is a plain Filter. f is told every pass; the frozen paths themselves are a Markov chain
// that leaves the law of paths invariant.
func (s Smoother) Gibbs(ctx context.Context, c Chain, seed uint64, n int, f func(pass int, r *Smoothed, frozen []float64) error) error {
	if s.Particles < 2 {
		return errors.New("smc: particle Gibbs needs two particles or more")
	}
	var frozen []float64
	for pass := range n {
		r, err := s.pass(ctx, c, seed, pass, frozen)
		if err != nil {
			return err
		}
		if frozen, err = r.draw(seed, pass, c.Len()); err != nil {
			return err
		}
		if err := f(pass, r, frozen); err != nil {
			return err
		}
	}
	return nil
}

// purposePath separates the draws of whole paths, purposeBack those of the backward kernel.
const (
	purposePath rng.Purpose = 1<<16 + 3
	purposeBack rng.Purpose = 1<<16 + 4
)

// draw takes one of the paths by weight.
func (r *Smoothed) draw(seed uint64, pass, t int) ([]float64, error) {
	w, err := Weigh(r.LW)
	if err != nil {
		return nil, err
	}
	u := uniforms(rng.Key{Seed: seed, Image: uint64(pass), Step: t, Purpose: purposePath})(1)
	return slices.Clone(r.Paths[invert(w.W, u)[0]]), nil
}

// backward is the backward kernel to x: the log of w_j m(x_j, x) exp(-V_j), normalised. A transition without noise is its own
// kernel, from the ancestor.
func backward(dst, lw, v, mean []float64, std float64, x []float64) error {
	d := len(x)
	for j := range dst {
		sq := 0.0
		for i := range d {
			e := (x[i] - mean[j*d+i]) / std
			sq += float64(e * e)
		}
		dst[j] = lw[j] - 0.5*sq
		if v != nil {
			dst[j] -= v[j]
		}
	}
	w, err := Weigh(dst)
	if err != nil {
		return err
	}
	copy(dst, w.W)
	return nil
}

// step is the part of PaRIS that has nothing to do with filtering: the new statistics, given backward weights and the
// ancestors drawn from them.
func (s Smoother) step(t int, beta, x []float64, draws []int, next []float64) float64 {
	d := len(next)
	sum := 0.0
	for _, j := range draws {
		sum += beta[j]
		if s.H != nil {
			sum += s.H(t, x[j*d:(j+1)*d], next)
		}
	}
	return sum / float64(len(draws))
}

func (s Smoother) pass(ctx context.Context, c Chain, seed uint64, pass int, frozen []float64) (*Smoothed, error) {
	k, d, n := s.Particles, c.Dim(), c.Len()
	m := s.Draws
	if m == 0 {
		m = 2
	}
	if k < 1 || d < 1 || n < 1 || m < 1 {
		return nil, fmt.Errorf("smc: smoothing: %d particles of %d numbers over %d states, %d draws: want 1 or more of each", k, d, n, m)
	}
	fail := func(t int, err error) (*Smoothed, error) {
		return nil, fmt.Errorf("smc: smoothing: state %d of %d: %w", t, n, err)
	}
	key := func(j, t int, p rng.Purpose) rng.Key { // passes and particles have streams of their own
		return rng.Key{Seed: seed, Image: uint64(pass)<<32 | uint64(j), Step: t, Purpose: p}
	}
	x := make([]float64, k*d)
	for j := range k {
		rng.Normal(x[j*d:(j+1)*d], key(j, 0, rng.PurposeStart))
	}
	if err := c.Start(ctx, x, k); err != nil {
		return fail(0, err)
	}
	pin := func(x []float64, t int) {
		if frozen != nil {
			copy(x[(k-1)*d:], frozen[t*d:(t+1)*d])
		}
	}
	pin(x, 0)
	out := &Smoothed{Roots: identity(k)}
	beta, traced := make([]float64, k), make([]float64, k)
	lw, v, before := make([]float64, k), make([]float64, k), make([]float64, k)
	paths := make([][]float64, k)
	for j := range paths {
		paths[j] = slices.Clone(x[j*d : (j+1)*d])
	}
	weigh := func(t int, ancestors []int) error {
		before, v = v, before
		if err := c.Weigh(ctx, t, lw, v, x, k); err != nil {
			return err
		}
		for j := range lw {
			lw[j] += v[j]
			if ancestors != nil {
				lw[j] -= before[ancestors[j]]
			}
			if math.IsNaN(lw[j]) {
				return fmt.Errorf("the log weight of particle %d is NaN", j)
			}
		}
		w, err := Weigh(lw)
		if err != nil {
			return err
		}
		out.LogZ += w.LogMean
		out.ESS = append(out.ESS, w.ESS)
		if s.Observe != nil {
			return s.Observe(t, lw)
		}
		return nil
	}
	if err := weigh(0, nil); err != nil {
		return fail(0, err)
	}
	mean, next, kernel := make([]float64, k*d), make([]float64, k*d), make([]float64, k)
	for t := range n - 1 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		w, err := Weigh(lw)
		if err != nil {
			return fail(t, err)
		}
		u := make([]float64, k)
		rng.Uniform(u, key(0, t, rng.PurposeResample))
		ancestors := invert(w.W, u) // unsorted, so that ancestors are independent
		std, err := c.Move(ctx, t, mean, x, k)
		if err != nil {
			return fail(t, err)
		}
		if frozen != nil {
			ancestors[k-1] = k - 1 // where the frozen path is
		}
		for j := range k {
			row := next[j*d : (j+1)*d]
			if std > 0 {
				rng.Normal(row, key(j, t, rng.PurposeStep))
			} else {
				clear(row)
			}
			for i := range row {
				row[i] = mean[ancestors[j]*d+i] + float64(std*row[i])
			}
		}
		pin(next, t+1)
		betas, traces := make([]float64, k), make([]float64, k)
		longer := make([][]float64, k)
		draws, us := make([]int, m), make([]float64, m)
		for j := range k {
			row := next[j*d : (j+1)*d]
			if std > 0 {
				if err := backward(kernel, lw, v, mean, std, row); err != nil {
					return fail(t, err)
				}
				rng.Uniform(us, key(j, t, purposeBack))
				copy(draws, invert(kernel, us))
			} else {
				for i := range draws {
					draws[i] = ancestors[j]
				}
			}
			betas[j] = s.step(t, beta, x, draws, row)
			a := ancestors[j]
			traces[j] = traced[a]
			if s.H != nil {
				traces[j] += s.H(t, x[a*d:(a+1)*d], row)
			}
			longer[j] = append(slices.Clone(paths[draws[0]]), row...)
		}
		beta, traced, paths = betas, traces, longer
		x, next = next, x
		out.Roots = gatherInts(out.Roots, ancestors)
		if err := weigh(t+1, ancestors); err != nil {
			return fail(t+1, err)
		}
	}
	w, err := Weigh(lw)
	if err != nil {
		return fail(n-1, err)
	}
	for j, p := range w.W {
		if p > 0 {
			out.Estimate += float64(p * beta[j])
			out.Genealogy += float64(p * traced[j])
		}
	}
	out.X, out.LW, out.Paths, out.V = x, slices.Clone(lw), paths, slices.Clone(v)
	return out, nil
}

func gatherInts(v []int, parents []int) []int {
	out := make([]int, len(parents))
	for j, i := range parents {
		out[j] = v[i]
	}
	return out
}
