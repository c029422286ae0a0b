package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/job"
	"drift/models"
	"drift/samplers"
)

// openRestoring is drift restore as a bench's verb: seed k restores input k, counted round, by one method. Without
// --input these are the embedded test pictures.
func (a *app) openRestoring(c *cli.Context) (bench.Runner, error) {
	r := &restoringRunner{restoring{sampling: sampling{app: a, c: c}, many: true}}
	err := r.resolve(c.Context)
	if err == nil && len(r.methods) > 1 {
		err = usagef("--methods: a bench has one method in a cell: --sweep \"methods=a;b\"")
	}
	if err != nil {
		r.restoring.close()
		return nil, err
	}
	return r, nil
}

type restoringRunner struct{ restoring }

// Close implements bench.Runner.
func (r *restoringRunner) Close() error { r.restoring.close(); return nil }

// Facts implements bench.Runner.
func (r *restoringRunner) Facts() bench.Facts {
	m := r.methods[0]
	about := r.about
	about.Seeds = ""
	f := bench.Facts{
		Settings: struct {
			Run    restoration `json:"run"`
			Method string      `json:"method"`
		}{about, m.text},
		Columns: []bench.Column{{Name: "misfit", Better: -1}}, Shape: r.info.Shape, Pictures: m.group, Rounding: about.Rounding, Batch: 1,
		Cost: bench.Cost{NFE: m.cost.NFE, VJPs: m.cost.VJPs},
	}
	if r.picture && r.inputs[0].truth != nil {
		f.Columns = []bench.Column{{Name: "psnr", Better: 1}, {Name: "ssim", Better: 1}, {Name: "features", Better: -1}, {Name: "misfit", Better: -1}}
	}
	if f.Cost.NFE != f.Cost.NFE { // not known before the run
		f.Cost = bench.Cost{}
	}
	return f
}

// Run implements bench.Runner.
func (r *restoringRunner) Run(ctx context.Context, t bench.Task) error {
	m := r.methods[0]
	for i, seed := range t.Seeds {
		in := r.inputs[(t.First+i)%len(r.inputs)]
		s, err := m.make(in.y)
		if err != nil {
			return err
		}
		p, err := r.problem(in, rowsOf([]uint64{seed}, m.group))
		if err != nil {
			return err
		}
		p.Observe = func(st *samplers.State) error {
			t.Step((float64(i) + st.Done) / float64(len(t.Seeds)))
			select {
			case <-t.Stop:
				return job.ErrStopped
			default:
				return nil
			}
		}
		res, err := samplers.Sample(ctx, s, p)
		if err != nil {
			return err
		}
		x := models.Data(res.X)
		scores, err := r.scores(ctx, in, x)
		if err != nil {
			return err
		}
		out := bench.Result{X: x, Cost: bench.Cost{NFE: res.Stats.NFE * float64(m.group), VJPs: res.Stats.VJPs * float64(m.group)}}
		mean := func(of func(score) float64) float64 {
			sum := 0.0
			for _, s := range scores {
				sum += of(s) / float64(len(scores))
			}
			return sum
		}
		if r.picture && in.truth != nil {
			out.Values = []float64{mean(func(s score) float64 { return s.PSNR }), mean(func(s score) float64 { return s.SSIM }), mean(func(s score) float64 { return s.Features })}
		}
		out.Values = append(out.Values, mean(func(s score) float64 { return s.Misfit }))
		if err := t.Done(out); err != nil {
			return err
		}
	}
	return nil
}
