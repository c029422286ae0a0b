package main

import (
	"context"

	"github.com/urfave/cli/v2"
	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/job"
	"drift/models"
	"drift/samplers"
)

// distillBench is drift distill as a verb of bench: a seed is a set of particles, all of them pictures of its cell.
func (a *app) distillBench() bench.Verb {
	return bench.Verb{Command: func() *cli.Command { return distillVerb(a) }, Open: a.openDistilling, Count: 16}
}

func (a *app) openDistilling(c *cli.Context) (bench.Runner, error) {
	s := newDistilling(a, c)
	if err := s.resolve(c.Context); err != nil {
		s.close()
		return nil, err
	}
	if len(s.desc.Sets) > 1 {
		s.close()
		return nil, usagef("a bench of distill has one list of classes or one prompt")
	}
	return &distillRunner{s}, nil
}

type distillRunner struct{ *distilling }

// Close implements bench.Runner.
func (r *distillRunner) Close() error { r.distilling.close(); return nil }

// Facts implements bench.Runner.
func (r *distillRunner) Facts() bench.Facts {
	desc := r.desc
	desc.Seeds = ""
	set := desc.Sets[0]
	return bench.Facts{
		Settings: desc, Columns: []bench.Column{{Name: "apart", Better: 1}}, Shape: r.info.Image(), Pictures: r.n, Rounding: desc.Rounding,
		Batch: max(1, r.plan.Batch()), Class: func(place, _ int) int { return set.Class(place) },
		Cost: bench.Cost{NFE: float64(desc.NFE * r.n)},
	}
}

// Run implements bench.Runner.
func (r *distillRunner) Run(ctx context.Context, t bench.Task) error {
	var items []job.Item
	for i, seed := range t.Seeds {
		items = append(items, job.Item{Place: t.First + i, Seed: seed})
	}
	_, err := r.plan.Run(ctx, t.Stop, items, len(items), job.Hooks{
		Step: func(_ job.Batch, s *samplers.State) error { t.Step(s.Done); return nil },
		Done: func(_ job.Batch, _, pictures *tensor.Dense, st samplers.Stats) error {
			x := models.Data(pictures)
			size := len(x) / len(t.Seeds)
			for i := range t.Seeds {
				own := x[i*size : (i+1)*size]
				if err := t.Done(bench.Result{Cost: bench.Cost{NFE: st.NFE * float64(r.n), VJPs: st.VJPs * float64(r.n)}, Values: []float64{apart(own, r.n)}, X: own}); err != nil {
					return err
				}
			}
			return nil
		},
	})
	return err
}
