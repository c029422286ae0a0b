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

// FKC samples a product of powers of what experts model, p ∝ prod_i q_i^{b_i}, by Feynman-Kac correctors (Skreta et
// al. 2025, arXiv 2503.02819). The experts are the parts of the model's answers (models.Pred.Parts: guidance,
// Experts), b_i their weights times Power; an answer without parts is one expert of weight 1. So it corrects
// annealing (Power), classifier-free guidance (weights w and 1-w: the geometric average), and products. Scores added
// up do not sample p; with the weights of this sampler they do, for exact scores and small steps.
//
// In xb = x/alpha, sb = sigma/alpha, with expert scores s_i there, S = sum_i b_i s_i and D = sb^2 - sb'^2, a step is
//
//	lw  += D/2 (|S|^2 - sum_i b_i |s_i|^2)      at the old point
//	xb' = xb + (1 + zeta^2)/2 D S + zeta sqrt(D) z
//
// for any zeta >= 0 (the step onto sigma = 0 takes zeta = 0). The change of variables to xb is exact and carries the
// term of the process's drift, (B-1) d int f, B = sum b_i. Larger zeta makes weights lighter and steps stiffer: take
// Zeta2 >= 1 for B > 1. Weak order 1.
//
// Rows are particles, those of one seed a group (see Rows). exp(LogZ) estimates int prod q_i^{b_i} up to the error of
// the steps. The run starts from the prior with its variance divided by B, which is right when the start is noisy
// enough to forget the data, unless the Problem has a Start, drawn from p at the first node, whose log normaliser in
// xb is LogZ. (Without a Start, B other than 1 takes one more evaluation: B is known after the first.)
//
// Refused: B <= 0, a start without signal, weights b_i that change during the run (an interval, or a scale that
// moves: the target would move too), answers with a separate noise to put back (CFG++, clipping), answers that their
// parts do not add up to. An edit of the score that leaves no parts (rescale, thresholding) cannot be told from one
// expert; Parts refuses it.
type FKC struct {
	Power  float64  // 0 = 1
	Zeta2  *float64 // zeta^2; nil = 1
	Parts  int      // experts that every answer must have; 0 = as they come
	LogZ   float64  // of Problem.Start
	Off    bool     // no weights: the naive sum of scores
	Policy Policy

	// Tilt multiplies the law by exp(beta r(xb)), beta depending on the noise level; nil: none. It goes with one expert of
	// power 1.
	Tilt *Tilt

	Weighted bool // leave the weights of the last step on the particles
	Observe  func(*Check) error
}

// Tilt is a reward with a strength that grows as noise falls. The step of FKC becomes, with zeta = 1,
//
//	lw  += (beta' - beta) r(xb) + beta grad r . D/2 s      at the old point
//	xb' = xb + D (s + beta/2 grad r) + sqrt(D) z
//
// which is the derivative of beta r along the probability flow. Beta at sb = 0 is the tilt of the result.
type Tilt struct {
	// Reward returns r of every row of xb = x/alpha and writes its gradients.
	Reward func(ctx context.Context, xb, grad *tensor.Dense) ([]float64, error)
	Beta   func(sb float64) float64
}

// Needs implements samplers.Sampler.
func (f FKC) Needs() samplers.Needs {
	return samplers.Needs{Noise: true, Couples: true, Parts: f.Parts > 0}
}

// FKCRun is a run of FKC under way.
type FKCRun struct {
	f       FKC
	p       *samplers.Problem
	den     models.Denoiser
	process schedules.Gaussian
	noise   samplers.Noise
	last    int
	zeta2   float64

	i     int
	x     *tensor.Dense
	z     []float64
	sum   []float64
	score []float64
	pred  models.Pred
	query models.Query
	exps  []float64
	pop   *population
	from  []int
}

var (
	_ samplers.Saver   = (*FKCRun)(nil)
	_ samplers.Resumer = FKC{}
)

// Begin implements samplers.Sampler.
func (f FKC) Begin(_ context.Context, p *samplers.Problem) (samplers.Run, error) {
	r, err := f.newRun(p)
	if err != nil {
		return nil, err
	}
	if p.Start == nil {
		d := models.Data(r.x)
		width := len(d) / len(p.Rows)
		for k, row := range p.Rows {
			samplers.Euclid{}.Prior(d[k*width:(k+1)*width], p.Grid[r.i], k, row, r.noise)
		}
	} else {
		copy(models.Data(r.x), models.Data(p.Start))
		for g := range r.pop.Banked {
			r.pop.Banked[g] = f.LogZ
		}
	}
	return r, nil
}

func (f FKC) newRun(p *samplers.Problem) (*FKCRun, error) {
	fail := func(format string, a ...any) (*FKCRun, error) { return nil, fmt.Errorf("smc: fkc: "+format, a...) }
	if p.Known != nil {
		return fail("keeps no part of the state as it is given (Problem.Known)")
	}
	if f.Power == 0 {
		f.Power = 1
	}
	zeta2 := 1.0
	if f.Zeta2 != nil {
		zeta2 = *f.Zeta2
	}
	if !(f.Power > 0) || math.IsInf(f.Power, 1) || !(zeta2 >= 0) || math.IsInf(zeta2, 1) {
		return fail("power %g and zeta2 %g: want a positive and a non-negative number", f.Power, zeta2)
	}
	if err := f.Policy.check(); err != nil {
		return nil, err
	}
	if t := f.Tilt; t != nil {
		switch {
		case t.Reward == nil || t.Beta == nil:
			return fail("a tilt wants a reward and a strength")
		case f.Power != 1 || f.Parts > 1 || f.Off:
			return fail("a tilt goes with one expert of power 1 and its weights")
		case zeta2 != 1:
			return fail("a tilt has a corrector for zeta2 = 1 only")
		case p.Start == nil:
			return fail("a tilt needs a start that is drawn from the tilted law at the first node")
		}
	}
	den, ok := p.Model.(models.Denoiser)
	if !ok {
		return fail("needs a model that denoises, have %T", p.Model)
	}
	process, ok := den.Process().(schedules.Gaussian)
	if !ok {
		return fail("needs a Gaussian process, the model's is %s", den.Process().Name())
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
		if !(n.Alpha > 0) || !(n.Sigma >= 0) || (i > p.First && n.Ratio() > p.Grid[i-1].Ratio()) {
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
	r := &FKCRun{f: f, p: p, den: den, process: process, noise: p.Noise, last: last, zeta2: zeta2, i: p.First, x: models.New(shape...), pop: pop, from: identity(len(p.Rows))}
	if r.noise == nil {
		r.noise = samplers.Streams{}
	}
	n := len(models.Data(r.x))
	r.z, r.sum, r.score = make([]float64, n), make([]float64, n), make([]float64, n)
	meter := p.Meter
	if meter == nil {
		meter = &models.Meter{}
	}
	r.query = models.Query{Cond: p.Cond, Rows: p.Rows, Meter: meter, At: make([]schedules.Node, len(p.Rows))}
	return r, nil
}

// State implements samplers.Run.
func (r *FKCRun) State() *samplers.State {
	n := len(r.p.Grid) - 1
	return &samplers.State{X: r.x, At: r.p.Grid[r.i], I: r.i, N: n, Done: float64(r.i) / float64(n), LogWeights: r.pop.LW}
}

// Groups reports on every group.
func (r *FKCRun) Groups() []Group { return r.pop.all() }

// Roots returns the start particle that each row descends from, counted within its group.
func (r *FKCRun) Roots() []int { return slices.Clone(r.pop.Roots) }

// experts returns the parts of the last answer and their exponents.
func (r *FKCRun) experts() ([]models.Part, []float64, error) {
	parts := r.pred.Parts
	if r.pred.Renoise != nil {
		return nil, nil, errors.New("the model's answer has a separate noise to put back (cfg++, clipping), for which there is no corrector")
	}
	if r.f.Parts != 0 && len(parts) != r.f.Parts {
		return nil, nil, fmt.Errorf("the model's answer has %d parts, want %d experts (rescale, thresholding and switched-off guidance leave none)", len(parts), r.f.Parts)
	}
	if len(parts) == 0 {
		parts = []models.Part{{Weight: 1, Out: r.pred.Out, Kind: r.pred.Kind}}
	}
	exps := make([]float64, len(parts))
	total := 0.0
	for i, p := range parts {
		exps[i] = r.f.Power * p.Weight
		total += exps[i]
	}
	if r.exps != nil && !slices.Equal(exps, r.exps) {
		return nil, nil, fmt.Errorf("the experts' exponents changed from %v to %v: guidance must not change during the run", r.exps, exps)
	}
	if !(total > 0) {
		return nil, nil, fmt.Errorf("the exponents %v sum to %g: their product has no normaliser", exps, total)
	}
	return parts, exps, nil
}

// begin rescales the start to the variance of the product, once the exponents are known.
func (r *FKCRun) begin() {
	if r.exps == nil || r.p.Start != nil {
		return
	}
	total := 0.0
	for _, b := range r.exps {
		total += b
	}
	n := r.p.Grid[r.i]
	d := models.Data(r.x)
	width := float64(len(d) / len(r.p.Rows))
	if total != 1 {
		for j := range d {
			d[j] /= math.Sqrt(total)
		}
	}
	v := samplers.PriorScale(n) / n.Alpha
	for g := range r.pop.Banked { // log int N(0, v^2)^B
		r.pop.Banked[g] = width * ((1-total)/2*math.Log(2*math.Pi*v*v) - 0.5*math.Log(total))
	}
}

func (r *FKCRun) predict(ctx context.Context) ([]models.Part, []float64, error) {
	q := &r.query
	s := r.p.Grid[r.i]
	q.X = r.x
	for k := range q.At {
		q.At[k] = s
	}
	q.Step = models.Step{I: r.i, N: len(r.p.Grid) - 1, From: s, To: r.p.Grid[r.i+1], Progress: float64(r.i) / float64(len(r.p.Grid)-1)}
	if err := r.den.Predict(ctx, q, &r.pred); err != nil {
		return nil, nil, err
	}
	return r.experts()
}

// Next implements samplers.Run.
func (r *FKCRun) Next(ctx context.Context) (bool, error) {
	if r.i >= r.last {
		return true, nil
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := r.step(ctx); err != nil {
		return false, fmt.Errorf("smc: fkc: step %d at sigma/alpha %.4g: %w", r.i, r.p.Grid[r.i].Ratio(), err)
	}
	return false, nil
}

func (r *FKCRun) step(ctx context.Context) error {
	s, t := r.p.Grid[r.i], r.p.Grid[r.i+1]
	x := models.Data(r.x)
	rows := len(r.p.Rows)
	width := len(x) / rows
	lw := make([]float64, rows)
	if s.Ratio() > t.Ratio() {
		parts, exps, err := r.predict(ctx)
		if err != nil {
			return err
		}
		if r.exps == nil { // the start was drawn for B = 1: with another one the question is asked again where the run starts
			total := 0.0
			for _, b := range exps {
				total += b
			}
			if r.exps = exps; r.p.Start == nil {
				r.begin()
				if total != 1 {
					if parts, exps, err = r.predict(ctx); err != nil {
						return err
					}
				}
			}
		}
		delta := s.Ratio()*s.Ratio() - t.Ratio()*t.Ratio()
		clear(r.sum)
		for e, p := range parts {
			cx, co, err := schedules.Convert(r.process, p.Kind, schedules.Score, s)
			if err != nil {
				return err
			}
			out := models.Data(p.Out)
			for k := range rows {
				sq := 0.0
				for j := k * width; j < (k+1)*width; j++ {
					v := float64(co * out[j])
					if cx != 0 {
						v += float64(cx * x[j])
					}
					v *= s.Alpha // the score in xb
					r.sum[j] += float64(exps[e] * v)
					sq += float64(v * v)
				}
				lw[k] -= exps[e] * sq
			}
		}
		if err := r.adds(s); err != nil {
			return err
		}
		zeta2 := r.zeta2
		if t.Sigma == 0 {
			zeta2 = 0
		}
		if zeta2 > 0 {
			for k, row := range r.p.Rows {
				r.noise.Normal(r.z[k*width:(k+1)*width], samplers.Draw{Row: row, Slot: k, Step: r.i, Purpose: samplers.DrawStep, From: s.Ratio(), To: t.Ratio()})
			}
		}
		var push []float64 // beta/2 grad r
		var pay []float64
		if r.f.Tilt != nil {
			if len(exps) != 1 || exps[0] != 1 {
				return fmt.Errorf("a tilt goes with one expert of weight 1, the model has %d", len(exps))
			}
			if push, pay, err = r.tilt(ctx, s, t, delta); err != nil {
				return err
			}
		}
		drift, std := (1+zeta2)/2*delta, math.Sqrt(zeta2*delta)
		for k := range rows {
			sq := 0.0
			for j := k * width; j < (k+1)*width; j++ {
				v := r.sum[j]
				sq += float64(v * v)
				xb := x[j]/s.Alpha + float64(drift*v)
				if push != nil {
					xb += float64(delta * push[j])
				}
				if zeta2 > 0 {
					xb += float64(std * r.z[j])
				}
				x[j] = t.Alpha * xb
			}
			lw[k] = delta / 2 * (sq + lw[k])
		}
		if len(exps) == 1 && exps[0] == 1 || r.f.Off { // exactly nothing
			clear(lw)
		}
		if pay != nil {
			copy(lw, pay)
		}
	} else {
		for j := range x { // the same noise level
			x[j] *= t.Alpha / s.Alpha
		}
	}
	c := Check{Step: r.i + 1, At: t, Progress: float64(r.i+1) / float64(r.last), Last: r.i+1 == r.last, Lambda: 1}
	for k, v := range lw {
		r.pop.LW[k] += v
	}
	if r.f.Observe != nil {
		c.Before = slices.Clone(r.pop.LW)
		for g := range r.pop.Seeds {
			c.ESS = append(c.ESS, r.pop.group(g).ESS)
		}
	}
	policy := r.f.Policy
	if c.Last && r.f.Weighted {
		policy.When = Never
	}
	var err error
	if c.Parents, c.Temps, err = r.pop.resample(policy, r.i, c.Progress, false); err != nil {
		return err
	}
	if c.Parents != nil {
		if s, ok := models.As[models.Selector](r.den); ok {
			if err := s.Select(c.Parents); err != nil {
				return err
			}
		}
		old := slices.Clone(x)
		from := slices.Clone(r.from)
		for j, k := range c.Parents {
			copy(x[j*width:(j+1)*width], old[k*width:(k+1)*width])
			from[j] = r.from[k]
		}
		r.from, r.query.Cond = from, r.p.Cond.Select(from)
	}
	r.i++
	if r.f.Observe != nil {
		c.After, c.Groups = r.pop.LW, r.pop.all()
		return r.f.Observe(&c)
	}
	return nil
}

// tilt returns beta/2 grad r at the state, and the log weights of a step.
func (r *FKCRun) tilt(ctx context.Context, s, t schedules.Node, delta float64) (push, lw []float64, err error) {
	x := models.Data(r.x)
	xb, grad := models.New(r.x.Shape()...), models.New(r.x.Shape()...)
	for j, v := range x {
		models.Data(xb)[j] = v / s.Alpha
	}
	v, err := r.f.Tilt.Reward(ctx, xb, grad)
	if err != nil {
		return nil, nil, fmt.Errorf("reward: %w", err)
	}
	if len(v) != len(r.p.Rows) {
		return nil, nil, fmt.Errorf("reward: %d numbers for %d particles", len(v), len(r.p.Rows))
	}
	b0, b1 := r.f.Tilt.Beta(s.Ratio()), r.f.Tilt.Beta(t.Ratio())
	push = models.Data(grad)
	w := len(x) / len(v)
	lw = make([]float64, len(v))
	for k := range v {
		if math.IsNaN(v[k]) || math.IsInf(v[k], 0) {
			return nil, nil, &RewardError{Row: r.p.Rows[k], Step: r.i, Value: v[k]}
		}
		dot := 0.0
		for j := k * w; j < (k+1)*w; j++ {
			dot += float64(push[j] * r.sum[j])
			push[j] *= b0 / 2
		}
		lw[k] = (b1-b0)*v[k] + b0*delta/2*dot
	}
	return push, lw, nil
}

// adds checks that the answer is the weighted sum of its parts: else it was edited, and the weights would be wrong.
func (r *FKCRun) adds(s schedules.Node) error {
	if len(r.pred.Parts) == 0 {
		return nil
	}
	cx, co, err := schedules.Convert(r.process, r.pred.Kind, schedules.Score, s)
	if err != nil {
		return err
	}
	combine(r.score, cx, models.Data(r.x), co, models.Data(r.pred.Out))
	gap, size := 0.0, 0.0
	for j, v := range r.sum {
		v /= r.f.Power * s.Alpha
		gap = max(gap, math.Abs(v-r.score[j]))
		size = max(size, math.Abs(v))
	}
	for _, b := range r.exps { // parts may cancel
		size = max(size, size*math.Abs(b))
	}
	if gap > 1e-6*size {
		return fmt.Errorf("the model's answer is not the sum of its parts (off by %.3g of %.3g): it was edited after they were combined", gap, size)
	}
	return nil
}

type savedFKC struct {
	I      int
	Shape  []int
	X      []float64
	Exps   []float64
	Pop    *population
	From   []int
	Memory []byte
}

// Save implements samplers.Saver.
func (r *FKCRun) Save(w io.Writer) error {
	v := savedFKC{I: r.i, Shape: r.x.Shape(), X: models.Data(r.x), Exps: r.exps, Pop: r.pop, From: r.from}
	if k, ok := models.As[models.Keeper](r.den); ok {
		var buf bytes.Buffer
		if err := k.Save(&buf); err != nil {
			return err
		}
		v.Memory = buf.Bytes()
	}
	if err := gob.NewEncoder(w).Encode(&v); err != nil {
		return fmt.Errorf("smc: saving a run: %w", err)
	}
	return nil
}

// Resume implements samplers.Resumer: p must be the problem that the run was begun on.
func (f FKC) Resume(_ context.Context, p *samplers.Problem, rd io.Reader) (samplers.Run, error) {
	r, err := f.newRun(p)
	if err != nil {
		return nil, err
	}
	var v savedFKC
	if err := gob.NewDecoder(rd).Decode(&v); err != nil {
		return nil, fmt.Errorf("smc: reading a saved run: %w", err)
	}
	bad := errors.New("smc: the saved run does not fit the problem")
	if v.I < p.First || v.I > r.last || !slices.Equal(v.Shape, r.x.Shape()) || len(v.X) != len(models.Data(r.x)) || v.Pop == nil || !v.Pop.fits(r.pop) || len(v.From) != len(p.Rows) {
		return nil, bad
	}
	for _, k := range v.From {
		if k < 0 || k >= len(p.Rows) {
			return nil, bad
		}
	}
	copy(models.Data(r.x), v.X)
	r.i, r.exps, r.pop, r.from = v.I, v.Exps, v.Pop, v.From
	r.query.Cond = p.Cond.Select(v.From)
	if k, ok := models.As[models.Keeper](r.den); ok {
		if err := k.Load(bytes.NewReader(v.Memory)); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Experts is the model of a product of powers of models: its answer is the noise sum_i w_i eps_i, so its score is
// sum_i w_i s_i, and its parts are the experts. It is what FKC corrects; other samplers take it as the naive sum. The
// experts must share one process.
type Experts struct {
	Models  []models.Denoiser
	Weights []float64 // nil = 1 each

	preds []models.Pred
	parts []models.Part
}

// Process implements models.Denoiser.
func (e *Experts) Process() schedules.Process { return e.Models[0].Process() }

// Predict implements models.Denoiser. It is for one caller at a time.
func (e *Experts) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if len(e.Models) == 0 || (e.Weights != nil && len(e.Weights) != len(e.Models)) {
		return fmt.Errorf("smc: experts: %d models with %d weights", len(e.Models), len(e.Weights))
	}
	process, ok := e.Process().(schedules.Gaussian)
	if !ok {
		return fmt.Errorf("smc: experts: need a Gaussian process, have %s", e.Process().Name())
	}
	if len(e.preds) != len(e.Models) {
		e.preds, e.parts = make([]models.Pred, len(e.Models)), make([]models.Part, len(e.Models))
	}
	x, out := p.Fit(q.X, schedules.Eps)
	clear(out)
	width := len(x) / len(q.At)
	for i, m := range e.Models {
		if err := same(process, m, q.At); err != nil {
			return fmt.Errorf("smc: expert %d: %w", i, err)
		}
		if err := m.Predict(ctx, q, &e.preds[i]); err != nil {
			return fmt.Errorf("smc: expert %d: %w", i, err)
		}
		w := 1.0
		if e.Weights != nil {
			w = e.Weights[i]
		}
		answer := &e.preds[i]
		if answer.Renoise != nil {
			return fmt.Errorf("smc: expert %d has a separate noise to put back", i)
		}
		e.parts[i] = models.Part{Name: fmt.Sprintf("expert %d", i), Weight: w, Out: answer.Out, Kind: answer.Kind}
		for k, n := range q.At {
			cx, co, err := schedules.Convert(process, answer.Kind, schedules.Eps, n)
			if err != nil {
				return err
			}
			for j := k * width; j < (k+1)*width; j++ {
				if cx != 0 {
					out[j] += float64(w * cx * x[j])
				}
				out[j] += float64(w * co * models.Data(answer.Out)[j])
			}
		}
	}
	p.Parts = e.parts
	return nil
}

// same refuses an expert of another process: its signal and noise at the nodes must be those of the question.
func same(process schedules.Gaussian, m models.Denoiser, at []schedules.Node) error {
	g, ok := m.Process().(schedules.Gaussian)
	if !ok {
		return fmt.Errorf("its process is %s, not Gaussian", m.Process().Name())
	}
	if g.Name() != process.Name() {
		return fmt.Errorf("its process is %s, that of the first %s", g.Name(), process.Name())
	}
	n := at[0]
	if o := g.AtRatio(n.Ratio()); math.Abs(o.Alpha-process.AtRatio(n.Ratio()).Alpha) > 1e-9 {
		return fmt.Errorf("its process %s has other parameters than that of the first", g.Name())
	}
	return nil
}
