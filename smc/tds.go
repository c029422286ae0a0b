package smc

import (
	"bytes"
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

// Twist is the logarithm of a likelihood of clean data, or of lambda times a reward. x0 holds one row per particle: the
// estimate of the clean data, the sample itself where at.Last. With grad, which has x0's shape, it also writes the gradient
// of every row's number by its x0. Where it knows how far the estimate may be off (its variance at at.At) it should be as
// much flatter: a twist that is too sure of the estimate is worse than none.
type Twist func(ctx context.Context, x0 *tensor.Dense, at *Look, grad *tensor.Dense) ([]float64, error)

// TDS is the twisted diffusion sampler (Wu et al. 2023, arXiv 2306.17775): particles are proposed by the model's own step
// with its clean-data estimate moved by the gradient of the twist psi, and weighted for the difference, so the weighted
// particles sample p(x) psi(x)/Z whatever the twist and its gradient. From node t to s, with z unit noise,
//
//	x0'  = x0(x_t) + sigma_t^2/alpha_t grad_x log psi(x0(x_t))
//	x_s  = m(x0', x_t) + v z,   m(x0, x) = alpha_s (1-rho) x0 + (alpha_t/alpha_s) (sigma_s/sigma_t)^2 x,
//	rho  = (alpha_t sigma_s / (alpha_s sigma_t))^2
//	lw  += log psi(x_s) - log psi(x_t) + log N(x_s; m(x0), v^2) - log N(x_s; m(x0'), v^2)
//
// where v^2 = sigma_s^2 (1-rho), or sigma_t^2 (1-rho) with Large (the choice that samples N(0, 1) exactly). The last step is
// proposed without the twist. The gradient goes through the model by a vector-Jacobian product, or with Straight only
// through what the estimate of unit Gaussian data does (dx0/dx = alpha/(alpha^2+sigma^2)), which needs no gradient of the
// model and is as exact, with more variance.
// One evaluation per step, and one with a vector-Jacobian product (not with Straight).
type TDS struct {
	Twist    Twist
	Straight bool
	Large    bool
	MaxShift float64 // bound of every element of the moved estimate, 0 = none
	Policy   Policy
	Latent   bool // twists see the state's own space, without Problem.Codec; the other way is refused where there is a codec
	Observe  func(*Check) error
}

// Needs implements samplers.Sampler.
func (t TDS) Needs() samplers.Needs {
	return samplers.Needs{Noise: true, Couples: true, VJP: !t.Straight}
}

// TDSRun is a run of TDS under way.
type TDSRun struct {
	t       TDS
	p       *samplers.Problem
	den     models.Denoiser
	vjp     models.VJP
	process schedules.Gaussian
	noise   samplers.Noise
	last    int

	i      int
	x      *tensor.Dense
	x0     *tensor.Dense // estimate at x
	psi    []float64     // log psi at x, nil before the first
	grad   *tensor.Dense // of log psi by x0 at x
	pred   models.Pred
	query  models.Query
	pop    *population
	from   []int
	cost   Cost
	opened bool // psi of the state is in the weights
}

var (
	_ samplers.Saver   = (*TDSRun)(nil)
	_ samplers.Resumer = TDS{}
)

// Begin implements samplers.Sampler.
func (t TDS) Begin(_ context.Context, p *samplers.Problem) (samplers.Run, error) {
	r, err := t.newRun(p)
	if err != nil {
		return nil, err
	}
	d := models.Data(r.x)
	if p.Start != nil {
		copy(d, models.Data(p.Start))
		return r, nil
	}
	w := len(d) / len(p.Rows)
	for k, row := range p.Rows {
		samplers.Euclid{}.Prior(d[k*w:(k+1)*w], p.Grid[r.i], k, row, r.noise)
	}
	return r, nil
}

func (t TDS) newRun(p *samplers.Problem) (*TDSRun, error) {
	fail := func(format string, a ...any) (*TDSRun, error) { return nil, fmt.Errorf("smc: tds: "+format, a...) }
	if t.Twist == nil {
		return fail("no twist")
	}
	if p.Known != nil {
		return fail("keeps no part of the state as it is given (Problem.Known)")
	}
	if !(t.MaxShift >= 0) {
		return fail("a bound of %g", t.MaxShift)
	}
	if err := t.Policy.check(); err != nil {
		return nil, err
	}
	if p.Codec != nil && !t.Latent {
		return fail("a twist of decoded images needs the gradient of the decoder, which is not there: twist the latent")
	}
	den, ok := p.Model.(models.Denoiser)
	if !ok {
		return fail("needs a model that denoises, have %T", p.Model)
	}
	process, ok := den.Process().(schedules.Gaussian)
	if !ok {
		return fail("needs a Gaussian process, the model's is %s", den.Process().Name())
	}
	vjp, ok := models.As[models.VJP](den)
	if !ok && !t.Straight {
		return fail("needs a model with gradients; Straight does without")
	}
	if !t.Straight {
		if own, is := den.(models.VJP); is {
			vjp = own
		} else {
			return fail("guidance without a gradient stands around the model; Straight does without")
		}
	}
	last := p.Last
	if last == 0 {
		last = len(p.Grid) - 1
	}
	if p.First < 0 || last >= len(p.Grid) || p.First >= last {
		return fail("cannot run from step %d to %d of %d", p.First, last, len(p.Grid)-1)
	}
	for i := p.First; i <= last; i++ {
		n := p.Grid[i]
		if !(n.Alpha > 0) || !(n.Sigma >= 0) || i > p.First && n.Ratio() >= p.Grid[i-1].Ratio() {
			return fail("node %d has alpha %g and sigma %g: the grid must fall from a node with signal (alpha > 0)", i, n.Alpha, n.Sigma)
		}
	}
	if len(p.Rows) == 0 {
		return fail("no rows to sample")
	}
	shape := append([]int{len(p.Rows)}, p.Shape...)
	if p.Start != nil {
		if shape = p.Start.Shape(); p.Start.Dtype() != tensor.Float64 || len(shape) < 2 || shape[0] != len(p.Rows) {
			return fail("the start has type %v and shape %v, want float64 and %d rows", p.Start.Dtype(), shape, len(p.Rows))
		}
	} else if len(p.Shape) == 0 || tensor.Shape(p.Shape).TotalSize() <= 0 {
		return fail("the shape of a row is not known")
	}
	pop, err := newPopulation(p.Rows)
	if err != nil {
		return nil, err
	}
	r := &TDSRun{t: t, p: p, den: den, vjp: vjp, process: process, noise: p.Noise, last: last, i: p.First, x: models.New(shape...), pop: pop, from: identity(len(p.Rows))}
	r.x0, r.grad = models.New(shape...), models.New(shape...)
	if r.noise == nil {
		r.noise = samplers.Streams{}
	}
	meter := p.Meter
	if meter == nil {
		meter = &models.Meter{}
	}
	r.query = models.Query{Cond: p.Cond, Rows: p.Rows, Meter: meter, At: make([]schedules.Node, len(p.Rows))}
	return r, nil
}

// State implements samplers.Run.
func (r *TDSRun) State() *samplers.State {
	n := len(r.p.Grid) - 1
	return &samplers.State{X: r.x, At: r.p.Grid[r.i], I: r.i, N: n, Done: float64(r.i) / float64(n), LogWeights: r.pop.LW}
}

// Groups reports on every group.
func (r *TDSRun) Groups() []Group { return r.pop.all() }

// Roots returns the start particle that each row descends from, counted within its group.
func (r *TDSRun) Roots() []int { return slices.Clone(r.pop.Roots) }

// Rewards returns log psi of every row where it stands, nil before the first step.
func (r *TDSRun) Rewards() []float64 { return slices.Clone(r.psi) }

// Cost returns what twisting took so far.
func (r *TDSRun) Cost() Cost { return r.cost }

// ask fills the query for the state.
func (r *TDSRun) ask() *models.Query {
	q := &r.query
	n := r.p.Grid[r.i]
	q.X = r.x
	for k := range q.At {
		q.At[k] = n
	}
	q.Step = models.Step{I: r.i, N: len(r.p.Grid) - 1, From: n, To: r.p.Grid[min(r.i+1, len(r.p.Grid)-1)], Progress: float64(r.i) / float64(len(r.p.Grid)-1)}
	return q
}

// look evaluates the model and the twist at the state.
func (r *TDSRun) look(ctx context.Context) error {
	n := r.p.Grid[r.i]
	last := r.i == r.last
	if last || n.Sigma == 0 {
		copy(models.Data(r.x0), models.Data(r.x))
	} else {
		if err := r.den.Predict(ctx, r.ask(), &r.pred); err != nil {
			return err
		}
		cx, co, err := schedules.Convert(r.process, r.pred.Kind, schedules.X0, n)
		if err != nil {
			return err
		}
		combine(models.Data(r.x0), cx, models.Data(r.x), co, models.Data(r.pred.Out))
	}
	l := &Look{Rows: r.p.Rows, Groups: r.pop.all(), Cond: r.query.Cond, At: n, Step: r.i, Steps: r.last, Progress: float64(r.i) / float64(r.last), Lambda: 1, Last: last, Previous: r.psi}
	grad := r.grad
	if last {
		grad = nil
	}
	psi, err := r.t.Twist(ctx, r.x0, l, grad)
	if err != nil {
		return fmt.Errorf("twist: %w", err)
	}
	if len(psi) != len(r.p.Rows) {
		return fmt.Errorf("twist: %d numbers for %d particles", len(psi), len(r.p.Rows))
	}
	for i, v := range psi {
		if math.IsNaN(v) || math.IsInf(v, 1) {
			return &RewardError{Row: r.p.Rows[i], Step: r.i, Value: v}
		}
	}
	r.psi = slices.Clone(psi)
	r.cost.Checks++
	r.cost.Rewards += len(psi)
	return nil
}

// slope writes the gradient of log psi by the state into g.
func (r *TDSRun) slope(ctx context.Context, g []float64) error {
	n := r.p.Grid[r.i]
	by0 := models.Data(r.grad)
	if r.t.Straight {
		for j, v := range by0 {
			g[j] = v * n.Alpha / (n.Alpha*n.Alpha + n.Sigma*n.Sigma)
		}
		return nil
	}
	cx, co, err := schedules.Convert(r.process, r.pred.Kind, schedules.X0, n)
	if err != nil {
		return err
	}
	out := models.New(r.x.Shape()...)
	var pred models.Pred
	if err := r.vjp.VJP(ctx, r.ask(), &pred, r.grad, out); err != nil {
		return err
	}
	combine(g, cx, by0, co, models.Data(out))
	return nil
}

// Next implements samplers.Run.
func (r *TDSRun) Next(ctx context.Context) (bool, error) {
	if r.i >= r.last {
		return true, nil
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := r.step(ctx); err != nil {
		return false, fmt.Errorf("smc: tds: step %d at sigma/alpha %.4g: %w", r.i, r.p.Grid[r.i].Ratio(), err)
	}
	return false, nil
}

func (r *TDSRun) step(ctx context.Context) error {
	if !r.opened {
		if err := r.look(ctx); err != nil {
			return err
		}
		for k, v := range r.psi {
			r.pop.LW[k] += v
		}
		r.opened = true
		if err := r.resample(0); err != nil {
			return err
		}
	}
	s, t := r.p.Grid[r.i], r.p.Grid[r.i+1]
	x, x0 := models.Data(r.x), models.Data(r.x0)
	rows := len(r.p.Rows)
	w := len(x) / rows
	untwisted := r.i+1 == r.last
	g := make([]float64, len(x))
	if !untwisted {
		if err := r.slope(ctx, g); err != nil {
			return err
		}
	}
	rho := s.Alpha * t.Sigma / (t.Alpha * s.Sigma)
	rho *= rho
	c0, cx := t.Alpha*(1-rho), s.Alpha/t.Alpha*t.Sigma*t.Sigma/(s.Sigma*s.Sigma)
	v := t.Sigma * math.Sqrt(1-rho)
	if r.t.Large {
		v = s.Sigma * math.Sqrt(1-rho)
	}
	old := struct {
		x, x0 []float64
		psi   []float64
		lw    []float64
	}{slices.Clone(x), slices.Clone(x0), r.psi, slices.Clone(r.pop.LW)}
	shift := s.Sigma * s.Sigma / s.Alpha
	z := make([]float64, w)
	back := make([]float64, rows) // log N(x_s; m(x0)) - log N(x_s; m(x0'))
	for k, row := range r.p.Rows {
		clear(z)
		if v > 0 {
			r.noise.Normal(z, samplers.Draw{Row: row, Slot: k, Step: r.i, Purpose: samplers.DrawStep, From: s.Ratio(), To: t.Ratio()})
		}
		for j := range w {
			i := k*w + j
			moved := x0[i] + float64(shift*g[i])
			if m := r.t.MaxShift; m > 0 && !untwisted {
				moved = min(m, max(-m, moved))
			}
			plain := float64(c0*x0[i]) + float64(cx*x[i])
			mean := float64(c0*moved) + float64(cx*x[i])
			y := mean + float64(v*z[j])
			if v > 0 && !untwisted {
				d := (mean - plain) / v // log N(z) with the means exchanged: exactly 0 where they agree
				back[k] -= float64(d*z[j]) + 0.5*float64(d*d)
			}
			x[i] = y
		}
	}
	if v == 0 && !untwisted {
		return errors.New("a step without noise in the middle of the run")
	}
	r.i++
	if err := r.look(ctx); err != nil { // nothing happened: the step may be made again
		r.i--
		copy(x, old.x)
		copy(x0, old.x0)
		r.psi = old.psi
		return err
	}
	for k := range rows {
		r.pop.LW[k] += r.psi[k] - old.psi[k] + back[k]
		if math.IsNaN(r.pop.LW[k]) { // a path of weight zero stays so
			r.pop.LW[k] = math.Inf(-1)
		}
	}
	return r.resample(r.i)
}

// resample lets groups resample after step i of the run; after the last, weights stay.
func (r *TDSRun) resample(i int) error {
	c := Check{Step: r.i, At: r.p.Grid[r.i], Progress: float64(r.i) / float64(r.last), Last: r.i == r.last, Lambda: 1, X0: r.x0, Rewards: r.psi}
	c.Before = slices.Clone(r.pop.LW)
	for g := range r.pop.Seeds {
		c.ESS = append(c.ESS, r.pop.group(g).ESS)
	}
	policy := r.t.Policy
	if c.Last {
		policy.When = Never
	}
	var err error
	if c.Parents, c.Temps, err = r.pop.resample(policy, i, c.Progress, false); err != nil {
		return err
	}
	seen := r.psi
	if c.Parents != nil {
		if s, ok := models.As[models.Selector](r.den); ok {
			if err := s.Select(c.Parents); err != nil {
				return err
			}
		}
		for _, t := range []*tensor.Dense{r.x, r.x0, r.grad, r.pred.Out} {
			gatherRows(models.Data(t), c.Parents)
		}
		r.psi = gather(r.psi, c.Parents)
		from := slices.Clone(r.from)
		for j, k := range c.Parents {
			from[j] = r.from[k]
		}
		r.from, r.query.Cond = from, r.p.Cond.Select(from)
	}
	if r.t.Observe != nil && i > 0 {
		c.Rewards, c.After, c.Groups = seen, r.pop.LW, r.pop.all()
		return r.t.Observe(&c)
	}
	return nil
}

type savedTDS struct {
	I         int
	Shape     []int
	X         []float64
	Psi, Grad []float64
	X0, Out   []float64
	Kind      schedules.Kind
	Opened    bool
	Pop       *population
	From      []int
	Cost      Cost
}

// Save implements samplers.Saver.
func (r *TDSRun) Save(w io.Writer) error {
	if _, ok := models.As[models.Keeper](r.den); ok {
		return errors.New("smc: tds: runs around guidance that remembers cannot be saved")
	}
	v := savedTDS{I: r.i, Shape: r.x.Shape(), X: models.Data(r.x), Psi: r.psi, Grad: models.Data(r.grad), X0: models.Data(r.x0), Kind: r.pred.Kind, Opened: r.opened, Pop: r.pop, From: r.from, Cost: r.cost}
	if r.pred.Out != nil {
		v.Out = models.Data(r.pred.Out)
	}
	if err := gob.NewEncoder(w).Encode(&v); err != nil {
		return fmt.Errorf("smc: saving a run: %w", err)
	}
	return nil
}

// Resume implements samplers.Resumer: p must be the problem that the run was begun on.
func (t TDS) Resume(_ context.Context, p *samplers.Problem, rd io.Reader) (samplers.Run, error) {
	r, err := t.newRun(p)
	if err != nil {
		return nil, err
	}
	var v savedTDS
	var b bytes.Buffer
	if _, err := io.Copy(&b, rd); err != nil {
		return nil, err
	}
	if err := gob.NewDecoder(&b).Decode(&v); err != nil {
		return nil, fmt.Errorf("smc: reading a saved run: %w", err)
	}
	n := len(models.Data(r.x))
	bad := errors.New("smc: the saved run does not fit the problem")
	if v.I < p.First || v.I > r.last || !slices.Equal(v.Shape, r.x.Shape()) || len(v.X) != n || len(v.X0) != n || len(v.Grad) != n || v.Out != nil && len(v.Out) != n ||
		v.Pop == nil || !v.Pop.fits(r.pop) || len(v.From) != len(p.Rows) || v.Opened && len(v.Psi) != len(p.Rows) {
		return nil, bad
	}
	for _, k := range v.From {
		if k < 0 || k >= len(p.Rows) {
			return nil, bad
		}
	}
	copy(models.Data(r.x), v.X)
	copy(models.Data(r.x0), v.X0)
	copy(models.Data(r.grad), v.Grad)
	if v.Out != nil {
		r.pred = models.Pred{Out: models.Wrap(v.Out, v.Shape...), Kind: v.Kind}
	}
	r.i, r.psi, r.opened, r.pop, r.from, r.cost = v.I, v.Psi, v.Opened, v.Pop, v.From, v.Cost
	r.query.Cond = p.Cond.Select(v.From)
	return r, nil
}
