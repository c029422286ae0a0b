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
