package smc

import (
	"context"
	"errors"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/internal/rng"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// purposeLook separates the noise of samples that are only looked at from the run's own.
const purposeLook rng.Purpose = 1<<16 + 2

// aside is noise of samples made at a step of another run.
type aside struct{ step int }

// Normal implements samplers.Noise.
func (a aside) Normal(dst []float64, d samplers.Draw) {
	rng.Normal(dst, rng.Key{Seed: d.Row.Seed, Image: uint64(d.Row.Particle), Step: a.step<<12 + d.Step, Purpose: purposeLook})
}

// draws makes m samples of p(x0 | x) for every row of x at node i of the problem's grid, row by row.
func (f *FK) draws(ctx context.Context, p *samplers.Problem, cond *models.Cond, x *tensor.Dense, at schedules.Node, i, last int) (*tensor.Dense, *models.Cond, []models.Row, error) {
	if _, ok := models.As[models.Keeper](p.Model.(models.Denoiser)); ok {
		return nil, nil, nil, errors.New("guidance that remembers cannot be asked aside: no samples of p(x0 | x) with it")
	}
	steps := f.SampleSteps
	if steps == 0 {
		steps = 2
	}
	var falling schedules.Grid // what is left of the grid, without the hops
	for _, n := range p.Grid[i+1 : last+1] {
		for len(falling) > 0 && n.Ratio() >= falling[len(falling)-1].Ratio() {
			falling = falling[:len(falling)-1]
		}
		if n.Ratio() < at.Ratio() {
			falling = append(falling, n)
		}
	}
	grid := schedules.Grid{at}
	for j := range min(steps, len(falling)) {
		grid = append(grid, falling[(j+1)*len(falling)/min(steps, len(falling))-1])
	}
	parents := make([]int, 0, f.Samples*len(p.Rows))
	rows := make([]models.Row, 0, cap(parents))
	for k, row := range p.Rows {
		for j := range f.Samples {
			parents = append(parents, k)
			rows = append(rows, models.Row{Seed: row.Seed, Particle: row.Particle*f.Samples + j})
		}
	}
	shape := x.Shape().Clone()
	shape[0] = len(rows)
	start := models.New(shape...)
	w := len(models.Data(x)) / len(p.Rows)
	for j, k := range parents {
		copy(models.Data(start)[j*w:(j+1)*w], models.Data(x)[k*w:(k+1)*w])
	}
	many := cond.Select(parents)
	if len(grid) < 2 {
		return start, many, rows, nil
	}
	res, err := samplers.Sample(ctx, samplers.DDIM{Eta: 1}, &samplers.Problem{Model: p.Model, Grid: grid, Rows: rows, Start: start, Cond: many, Noise: aside{i}, Meter: p.Meter})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("samples of p(x0 | x): %w", err)
	}
	return res.X, many, rows, nil
}

// pool turns the rewards of m samples per row into one: log(mean exp(lambda r))/lambda, the mean at lambda = 0.
func pool(v []float64, m int, lambda float64) []float64 {
	out := make([]float64, len(v)/m)
	lw := make([]float64, m)
	for k := range out {
		if lambda == 0 {
			for _, x := range v[k*m : (k+1)*m] {
				out[k] += x / float64(m)
			}
			continue
		}
		for j, x := range v[k*m : (k+1)*m] {
			lw[j] = lambda * x
		}
		w, err := Weigh(lw)
		out[k] = w.LogMean / lambda
		if err != nil { // all ruled out
			out[k] = math.Inf(-1)
		}
	}
	return out
}

// ahead is eta of every particle: lambda times what the reward of a proposed successor gains over its own (difference), or
// is (immediate).
func (r *Run) ahead(ctx context.Context, st *samplers.State, c *Check) ([]float64, error) {
	den := r.p.Model.(models.Denoiser)
	if _, ok := models.As[models.Keeper](den); ok {
		return nil, errors.New("guidance that remembers cannot be asked aside")
	}
	peek, ok := r.base.(samplers.Peeker)
	if !ok || st.I+1 >= len(r.p.Grid) {
		return nil, errors.New("the base's run cannot be asked for the next prediction")
	}
	pred, err := peek.Peek(ctx)
	if err != nil {
		return nil, err
	}
	s, t := st.At, r.p.Grid[st.I+1]
	for i := st.I + 2; t.Ratio() >= s.Ratio() && i < len(r.p.Grid); i++ { // beyond hops
		t = r.p.Grid[i]
	}
	x := models.New(st.X.Shape()...)
	n := len(r.p.Rows)
	in, out := models.Data(st.X), models.Data(x)
	w := len(in) / n
	ax, ao, err := schedules.Convert(r.process, pred.Kind, schedules.X0, s)
	if err != nil {
		return nil, err
	}
	ex, eo, err := schedules.Convert(r.process, pred.Kind, schedules.Eps, s)
	if err != nil {
		return nil, err
	}
	q := t.Ratio() / s.Ratio()
	c1 := t.Sigma * math.Sqrt(max(0, 1-q*q)) // of DDIM with eta = 1
	c2 := math.Sqrt(max(0, t.Sigma*t.Sigma-c1*c1))
	p := models.Data(pred.Out)
	z := make([]float64, w)
	noise := aside{st.I}
	for k, row := range r.p.Rows {
		noise.Normal(z, samplers.Draw{Row: row, Step: 1<<12 - 1})
		for j := range w {
			i := k*w + j
			x0, eps := float64(ax*in[i])+float64(ao*p[i]), float64(ex*in[i])+float64(eo*p[i])
			out[i] = float64(t.Alpha*x0) + float64(c2*eps) + float64(c1*z[j])
		}
	}
	x0 := x
	if t.Sigma > 0 {
		at := make([]schedules.Node, n)
		for k := range at {
			at[k] = t
		}
		var next models.Pred
		query := &models.Query{X: x, At: at, Cond: r.cond, Rows: r.p.Rows, Meter: r.p.Meter, Step: models.Step{I: st.I + 1, N: len(r.p.Grid) - 1, From: t, To: r.p.Grid[min(st.I+2, len(r.p.Grid)-1)], Progress: c.Progress}}
		if err := den.Predict(ctx, query, &next); err != nil {
			return nil, err
		}
		cx, co, err := schedules.Convert(r.process, next.Kind, schedules.X0, t)
		if err != nil {
			return nil, err
		}
		x0 = models.New(x.Shape()...)
		combine(models.Data(x0), cx, out, co, models.Data(next.Out))
	}
	if r.p.Codec != nil && !r.fk.Latent {
		if x0, err = r.p.Codec.Decode(ctx, x0); err != nil {
			return nil, fmt.Errorf("decoding: %w", err)
		}
	}
	rewards, err := ask(ctx, r.fk.Reward, x0, &Look{Rows: r.p.Rows, Groups: r.pop.all(), Cond: r.cond, At: t, Step: st.I, Steps: r.last, Progress: c.Progress, Lambda: c.Lambda, Previous: c.Rewards})
	if err != nil {
		return nil, err
	}
	r.cost.Rewards += len(rewards)
	for k := range rewards {
		if r.fk.Potential == Difference {
			rewards[k] -= c.Rewards[k]
		}
		rewards[k] *= c.Lambda
		if math.IsNaN(rewards[k]) || math.IsInf(rewards[k], 0) { // nothing can be said
			rewards[k] = 0
		}
	}
	return rewards, nil
}
