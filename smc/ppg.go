package smc

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// PPG steers by Parisian particle Gibbs: Sweeps passes of the particles of a group through the whole run, each but the first
// with one particle held on a path drawn from the pass before (see Smoother.Gibbs). The steps are DDPM's with the small
// variance, x_s ~ N(m(x0, x_t), v^2) of TDS, and V_t = Lambda r of the clean-data estimate at x_t, so paths have the weight
// exp(Lambda r(x_0)) of FK's difference potential. The result is the last pass, particles with log weights; what one pass
// is biased for few particles, many sweeps are not. A Next is a sweep.
type PPG struct {
	Sweeps  int // 0 = 4
	Reward  Reward
	Lambda  float64
	Latent  bool
	Observe func(*Check) error // called after every sweep
}

// Needs implements samplers.Sampler.
func (g PPG) Needs() samplers.Needs { return samplers.Needs{Noise: true, Couples: true} }

// PPGRun is a run of PPG under way.
type PPGRun struct {
	g       PPG
	p       *samplers.Problem
	pop     *population
	x       *tensor.Dense
	sweep   int
	frozen  [][]float64 // per group
	logZ    []float64   // of the first pass of every group, unbiased
	rewards []float64
	ess     []float64
}

var (
	_ samplers.Saver   = (*PPGRun)(nil)
	_ samplers.Resumer = PPG{}
)

// Begin implements samplers.Sampler.
func (g PPG) Begin(_ context.Context, p *samplers.Problem) (samplers.Run, error) { return g.newRun(p) }

func (g PPG) newRun(p *samplers.Problem) (*PPGRun, error) {
	fail := func(format string, a ...any) (*PPGRun, error) { return nil, fmt.Errorf("smc: ppg: "+format, a...) }
	if p.Known != nil {
		return fail("keeps no part of the state as it is given (Problem.Known)")
	}
	if g.Sweeps == 0 {
		g.Sweeps = 4
	}
	den, ok := p.Model.(models.Denoiser)
	if !ok {
		return fail("needs a model that denoises, have %T", p.Model)
	}
	if _, ok := den.Process().(schedules.Gaussian); !ok {
		return fail("needs a Gaussian process, the model's is %s", den.Process().Name())
	}
	if _, ok := models.As[models.Keeper](den); ok {
		return fail("guidance that remembers cannot be asked along several paths")
	}
	switch {
	case g.Sweeps < 1 || g.Reward == nil || math.IsNaN(g.Lambda) || math.IsInf(g.Lambda, 0):
		return fail("%d sweeps at strength %g: want sweeps, a reward and a finite strength", g.Sweeps, g.Lambda)
	case p.First != 0 || p.Last != 0 && p.Last != len(p.Grid)-1 || p.Start != nil:
		return fail("paths go from the prior to the end of the grid")
	case len(p.Shape) == 0:
		return fail("the shape of a row is not known")
	}
	if rises(p) {
		return fail("the grid goes up in noise")
	}
	for i, n := range p.Grid {
		if !(n.Alpha > 0) {
			return fail("node %d has no signal (alpha %g)", i, n.Alpha)
		}
	}
	pop, err := newPopulation(p.Rows)
	if err != nil {
		return nil, err
	}
	for k := range pop.Seeds {
		if from, to := pop.span(k); to-from < 2 {
			return fail("needs two particles or more in every group")
		}
	}
	r := &PPGRun{g: g, p: p, pop: pop, x: models.New(append([]int{len(p.Rows)}, p.Shape...)...), frozen: make([][]float64, len(pop.Seeds)), logZ: make([]float64, len(pop.Seeds)), ess: make([]float64, len(pop.Seeds))}
	return r, nil
}

// State implements samplers.Run. I counts sweeps.
func (r *PPGRun) State() *samplers.State {
	at := r.p.Grid[0]
	if r.sweep > 0 {
		at = r.p.Grid[len(r.p.Grid)-1]
	}
	return &samplers.State{X: r.x, At: at, I: r.sweep, N: r.g.Sweeps, Done: float64(r.sweep) / float64(r.g.Sweeps), LogWeights: r.pop.LW}
}

// Groups reports on every group; LogZ is that of its first pass.
func (r *PPGRun) Groups() []Group {
	out := r.pop.all()
	for k := range out {
		out[k].LogZ, out[k].Variance = r.logZ[k], math.NaN()
		out[k].Resampled = r.sweep * (len(r.p.Grid) - 1)
	}
	return out
}

// Roots returns the start particle that each row descends from in the last sweep.
func (r *PPGRun) Roots() []int { return slices.Clone(r.pop.Roots) }

// Rewards returns each row's reward, nil before the first sweep.
func (r *PPGRun) Rewards() []float64 { return slices.Clone(r.rewards) }

// Next implements samplers.Run: one sweep of every group.
func (r *PPGRun) Next(ctx context.Context) (bool, error) {
	if r.sweep >= r.g.Sweeps {
		return true, nil
	}
	next := slices.Clone(r.frozen)
	pop := r.pop.clone()
	rewards := make([]float64, len(r.p.Rows))
	d := models.Data(r.x)
	w := len(d) / len(r.p.Rows)
	x := make([]float64, len(d))
	logZ, ess := slices.Clone(r.logZ), slices.Clone(r.ess)
	for k, seed := range pop.Seeds {
		from, to := pop.span(k)
		c := &steps{r: r, rows: r.p.Rows[from:to], dim: w}
		parents := identity(len(r.p.Rows))[from:to]
		c.cond = r.p.Cond.Select(parents)
		s := Smoother{Particles: to - from}
		out, err := s.pass(ctx, c, seed, r.sweep, r.frozen[k])
		if err != nil {
			return false, fmt.Errorf("smc: ppg: sweep %d: %w", r.sweep, err)
		}
		if next[k], err = out.draw(seed, r.sweep, c.Len()); err != nil {
			return false, err
		}
		copy(x[from*w:], out.X)
		copy(pop.LW[from:to], out.LW)
		copy(pop.Roots[from:to], out.Roots)
		copy(rewards[from:to], c.rewards)
		ess[k] = out.ESS[len(out.ESS)-1]
		if r.sweep == 0 {
			logZ[k] = out.LogZ
		}
	}
	copy(d, x)
	r.pop, r.frozen, r.rewards, r.logZ, r.ess = pop, next, rewards, logZ, ess
	r.sweep++
	if r.g.Observe != nil {
		c := Check{Step: r.sweep, At: r.p.Grid[len(r.p.Grid)-1], Progress: float64(r.sweep) / float64(r.g.Sweeps), Last: r.sweep == r.g.Sweeps, Lambda: r.g.Lambda, X0: r.x,
			Rewards: rewards, Before: pop.LW, After: pop.LW, ESS: ess, Groups: r.Groups()}
		return false, r.g.Observe(&c)
	}
	return false, nil
}

// steps is a diffusion run of one group as a Chain.
type steps struct {
	r       *PPGRun
	rows    []models.Row
	cond    *models.Cond
	dim     int
	pred    models.Pred
	x0      *tensor.Dense // estimates at the states weighed last
	rewards []float64
}

// Dim implements Chain.
func (c *steps) Dim() int { return c.dim }

// Len implements Chain.
func (c *steps) Len() int { return len(c.r.p.Grid) }

// Start implements Chain.
func (c *steps) Start(_ context.Context, x []float64, _ int) error {
	if s := samplers.PriorScale(c.r.p.Grid[0]); s != 1 {
		for i := range x {
			x[i] *= s
		}
	}
	return nil
}

// Weigh implements Chain: V = lambda r.
func (c *steps) Weigh(ctx context.Context, t int, logG, v, x []float64, n int) error {
	p := c.r.p
	den := p.Model.(models.Denoiser)
	node, last := p.Grid[t], t == len(p.Grid)-1
	shape := append([]int{n}, p.Shape...)
	xt := models.Wrap(x, shape...)
	c.x0 = models.Reuse(c.x0, xt.Shape())
	if last || node.Sigma == 0 {
		copy(models.Data(c.x0), x)
	} else {
		at := slices.Repeat([]schedules.Node{node}, n)
		q := &models.Query{X: xt, At: at, Cond: c.cond, Rows: c.rows, Meter: p.Meter,
			Step: models.Step{I: t, N: len(p.Grid) - 1, From: node, To: p.Grid[t+1], Progress: float64(t) / float64(len(p.Grid)-1)}}
		if err := den.Predict(ctx, q, &c.pred); err != nil {
			return err
		}
		cx, co, err := schedules.Convert(den.Process().(schedules.Gaussian), c.pred.Kind, schedules.X0, node)
		if err != nil {
			return err
		}
		combine(models.Data(c.x0), cx, x, co, models.Data(c.pred.Out))
	}
	seen := c.x0
	if p.Codec != nil && !c.r.g.Latent {
		var err error
		if seen, err = p.Codec.Decode(ctx, seen); err != nil {
			return fmt.Errorf("decoding: %w", err)
		}
	}
	look := &Look{Rows: c.rows, Groups: []Group{{Seed: c.rows[0].Seed, To: n}}, Cond: c.cond, At: node, Step: t, Steps: len(p.Grid) - 1, Progress: float64(t) / float64(len(p.Grid)-1), Lambda: c.r.g.Lambda, Last: last}
	out, err := ask(ctx, c.r.g.Reward, seen, look)
	if err != nil {
		return err
	}
	c.rewards = out
	clear(logG)
	for k, r := range out {
		v[k] = times(c.r.g.Lambda, r)
	}
	return nil
}

// Move implements Chain: DDPM's step from the estimates that Weigh has just made.
func (c *steps) Move(_ context.Context, t int, mean, x []float64, _ int) (float64, error) {
	a, b := c.r.p.Grid[t], c.r.p.Grid[t+1]
	rho := a.Alpha * b.Sigma / (b.Alpha * a.Sigma)
	rho *= rho
	combine(mean, b.Alpha*(1-rho), models.Data(c.x0), a.Alpha/b.Alpha*b.Sigma*b.Sigma/(a.Sigma*a.Sigma), x)
	return b.Sigma * math.Sqrt(1-rho), nil
}

type savedPPG struct {
	Sweep         int
	X             []float64
	Pop           *population
	Frozen        [][]float64
	LogZ, Rewards []float64
	ESS           []float64
}

// Save implements samplers.Saver.
func (r *PPGRun) Save(w io.Writer) error {
	if err := gob.NewEncoder(w).Encode(&savedPPG{r.sweep, models.Data(r.x), r.pop, r.frozen, r.logZ, r.rewards, r.ess}); err != nil {
		return fmt.Errorf("smc: saving a run: %w", err)
	}
	return nil
}

// Resume implements samplers.Resumer: p must be the problem that the run was begun on.
func (g PPG) Resume(_ context.Context, p *samplers.Problem, rd io.Reader) (samplers.Run, error) {
	r, err := g.newRun(p)
	if err != nil {
		return nil, err
	}
	var v savedPPG
	if err := gob.NewDecoder(rd).Decode(&v); err != nil {
		return nil, fmt.Errorf("smc: reading a saved run: %w", err)
	}
	n := len(r.pop.Seeds)
	path := len(models.Data(r.x)) / len(p.Rows) * len(p.Grid)
	if v.Sweep < 0 || v.Sweep > r.g.Sweeps || len(v.X) != len(models.Data(r.x)) || v.Pop == nil || !v.Pop.fits(r.pop) || len(v.Frozen) != n || len(v.LogZ) != n || len(v.ESS) != n ||
		v.Sweep > 0 && (len(v.Rewards) != len(p.Rows) || slices.ContainsFunc(v.Frozen, func(f []float64) bool { return len(f) != path })) {
		return nil, errors.New("smc: the saved run does not fit the problem")
	}
	copy(models.Data(r.x), v.X)
	r.sweep, r.pop, r.frozen, r.logZ, r.rewards, r.ess = v.Sweep, v.Pop, v.Frozen, v.LogZ, v.Rewards, v.ESS
	if v.Sweep == 0 {
		r.frozen = make([][]float64, n)
	}
	return r, nil
}

// DGFS samples unnormalised densities by controlled Brownian paths, one batch in one Next: the samples are the ends of the
// paths, with their log weights, and exp(LogZ) of a group estimates the integral of its density. It asks no model.
type DGFS struct {
	Bridge  Bridge
	Density func(class int) (Density, Control, error) // of the rows of a class
	Observe func(*Check) error
}

// Needs implements samplers.Sampler.
func (g DGFS) Needs() samplers.Needs {
	return samplers.Needs{OwnGrid: true, Noise: true, Couples: true}
}

// DGFSRun is a run of DGFS.
type DGFSRun struct {
	g    DGFS
	p    *samplers.Problem
	pop  *population
	x    *tensor.Dense
	done bool
	elbo []float64
}

// Begin implements samplers.Sampler.
func (g DGFS) Begin(_ context.Context, p *samplers.Problem) (samplers.Run, error) {
	if g.Density == nil || len(p.Shape) == 0 || len(p.Grid) == 0 {
		return nil, errors.New("smc: dgfs: want a density, the shape of a row and a grid")
	}
	if p.Known != nil {
		return nil, errors.New("smc: dgfs: keeps no part of the state as it is given (Problem.Known)")
	}
	pop, err := newPopulation(p.Rows)
	if err != nil {
		return nil, err
	}
	return &DGFSRun{g: g, p: p, pop: pop, x: models.New(append([]int{len(p.Rows)}, p.Shape...)...), elbo: make([]float64, len(pop.Seeds))}, nil
}

// State implements samplers.Run.
func (r *DGFSRun) State() *samplers.State {
	s := &samplers.State{X: r.x, At: r.p.Grid[0], N: 1, LogWeights: r.pop.LW}
	if r.done {
		s.I, s.Done, s.At = 1, 1, r.p.Grid[len(r.p.Grid)-1]
	}
	return s
}

// Groups reports on every group.
func (r *DGFSRun) Groups() []Group { return r.pop.all() }

// Roots returns the particles themselves.
func (r *DGFSRun) Roots() []int { return slices.Clone(r.pop.Roots) }

// ELBO returns the mean log weight of every group, at most its log Z.
func (r *DGFSRun) ELBO() []float64 { return slices.Clone(r.elbo) }

// Next implements samplers.Run.
func (r *DGFSRun) Next(ctx context.Context) (bool, error) {
	if r.done {
		return true, nil
	}
	d := models.Data(r.x)
	w := len(d) / len(r.p.Rows)
	for k, seed := range r.pop.Seeds {
		from, to := r.pop.span(k)
		g, control, err := r.g.Density(r.p.Cond.Class(from))
		if err != nil {
			return false, fmt.Errorf("smc: dgfs: %w", err)
		}
		b := r.g.Bridge
		b.Control = control
		out, err := b.Sample(ctx, g, seed, to-from)
		if err != nil {
			return false, err
		}
		copy(d[from*w:to*w], out.X)
		copy(r.pop.LW[from:to], out.LogWeights)
		r.elbo[k] = out.ELBO
	}
	r.done = true
	if r.g.Observe != nil {
		c := Check{Step: 1, At: r.State().At, Progress: 1, Last: true, Lambda: 1, X0: r.x, Before: slices.Clone(r.pop.LW), After: r.pop.LW, Groups: r.pop.all()}
		for k := range r.pop.Seeds {
			c.ESS = append(c.ESS, r.pop.group(k).ESS)
		}
		return false, r.g.Observe(&c)
	}
	return false, nil
}
