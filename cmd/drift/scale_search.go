package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"
	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/queue"
	"drift/cmd/drift/internal/shard"
	"drift/metrics"
	"drift/models"
	"drift/samplers"
	"drift/samplers/search"
	"drift/schedules"
)

// searchWork runs solvers over blocks of the starts of a search.
type searchWork struct {
	*searching
	teacher samplers.Sampler
	measure bench.Measurer // of objectives by pictures, or nil
}

// searchShard is a run of a solver over some starts: its end points, or features of its pictures; or, with no solver, the
// costs of the fine trajectory there.
type searchShard struct {
	shard.Range
	What     string                   `json:"what"` // ends, features, costs
	Solver   string                   `json:"solver,omitempty"`
	Schedule *samplers.SolverSchedule `json:"schedule,omitempty"` // in place of Solver
	Grid     *manifest.Grid           `json:"grid,omitempty"`     // absent: the solver's own
}

func openSearchWork(a *app, c *cli.Context) (queue.Doer, error) {
	s := &searching{sampling: sampling{app: a, c: c}}
	err := s.resolve(c.Context)
	if err == nil {
		var w *searchWork
		if w, err = s.work(c.Context); err == nil {
			return w, nil
		}
	}
	s.close()
	return nil, err
}

func (s *searching) work(ctx context.Context) (w *searchWork, err error) {
	w = &searchWork{searching: s}
	if s.size = s.c.Int("batch"); !s.grids() {
		if s.size, err = shardSize(s.c, 64); err != nil {
			return nil, err
		}
		if w.teacher, err = samplers.Parse(s.c.String("teacher")); err != nil {
			return nil, badUse("teacher", err)
		}
	}
	if s.size < 1 {
		return nil, usagef("--batch %d: want 1 or more", s.size)
	}
	o := s.c.String("objective")
	if o == "fid" {
		if err := s.fidStarts(map[string]any{}); err != nil {
			return nil, err
		}
	}
	if o == "fid" || o == "features" {
		w.measure, err = s.measurer(ctx, map[string]any{})
	}
	return w, err
}

// grids tells whether the search is for a grid.
func (s *searching) grids() bool {
	return s.c.Command.Name == "boss" || s.c.Command.Name == "gits"
}

// Close implements queue.Doer.
func (w *searchWork) Close() {
	if w.ex != nil {
		w.ex.Close()
		w.ex = nil
	}
	w.close()
}

// Config implements queue.Doer.
func (w *searchWork) Config() string {
	text, err := json.Marshal(w.origin(w.c.Command.Name))
	if err != nil {
		panic("search: " + err.Error()) // numbers of a grid that was checked
	}
	id := metrics.Identity{}
	if w.measure != nil {
		id = w.measure.Identity()
	}
	return configOf("search", string(text), tierOf(w.c), w.seeds, w.size, w.c.String("teacher"), w.c.String("objective"), w.c.String("reference"), id.Extractor, id.Resize, w.c.String("final"))
}

// Do implements queue.Doer.
func (w *searchWork) Do(ctx context.Context, sp shard.Spec, step func(float64)) (*shard.Result, error) {
	var r searchShard
	if err := json.Unmarshal(sp.Text, &r); err != nil || !r.In(len(w.items)) {
		return nil, fmt.Errorf("a shard that is not of this search: %.200s", sp.Text)
	}
	items := w.items[r.From : r.From+r.N]
	if r.What == "costs" {
		p, err := w.plan.Problem(items)
		if err != nil {
			return nil, err
		}
		c := search.CostMatrix{Grid: w.fine, Metric: w.metric()}
		if err := c.Add(ctx, p); err != nil {
			return nil, err
		}
		return &shard.Result{Arrays: []shard.Array{{Name: "sum", Floats: c.Sum}}}, nil
	}
	var solver samplers.Sampler = samplers.USF{}
	if r.Schedule != nil {
		solver = samplers.USF{Schedule: *r.Schedule}
	} else {
		var err error
		if solver, err = samplers.Parse(r.Solver); err != nil {
			return nil, err
		}
	}
	var g schedules.Grid
	if r.Grid != nil {
		g = r.Grid.Nodes()
		if err := g.Check(); err != nil {
			return nil, err
		}
	}
	res := &shard.Result{}
	var x []float64
	size := w.plan.Batch()
	if r.What == "ends" {
		size = r.N
	}
	for from := 0; from < r.N; from += size {
		p, err := w.plan.Problem(items[from:min(from+size, r.N)])
		if err != nil {
			return nil, err
		}
		if r.What == "ends" {
			if p.Start, err = w.start(ctx, p); err != nil {
				return nil, err
			}
		}
		p.Grid = g
		p.Observe = func(s *samplers.State) error {
			step((float64(from) + s.Done*float64(len(p.Rows))) / float64(r.N))
			return nil
		}
		out, err := samplers.Sample(ctx, solver, p)
		var blown *samplers.NotFinite
		if errors.As(err, &blown) {
			res.Arrays = []shard.Array{{Name: "blown", Bytes: []byte{1}}}
			return res, nil
		}
		if err != nil {
			return nil, err
		}
		if r.What == "ends" {
			x = models.Data(out.X)
			continue
		}
		f, err := w.measured(ctx, w.measure, out.X)
		if err != nil {
			return nil, err
		}
		x = append(x, f.X...)
	}
	res.Arrays = []shard.Array{{Name: "x", Floats: x}}
	return res, nil
}

// start is the state at the first node of the fine grid, as the teacher draws it.
func (w *searchWork) start(ctx context.Context, p *samplers.Problem) (*tensor.Dense, error) {
	own := *p
	own.Grid = w.fine
	run, err := w.teacher.Begin(ctx, &own)
	if err != nil {
		return nil, fmt.Errorf("search: teacher: %w", err)
	}
	x := run.State().X
	return models.Wrap(slices.Clone(models.Data(x)), x.Shape()...), nil
}

// named is a solver with the text that it was made of.
type named struct {
	samplers.Sampler
	text string
}

// plain is the solver itself where it runs here.
func plain(s samplers.Sampler, here bool) samplers.Sampler {
	if n, ok := s.(named); ok && here {
		return n.Sampler
	}
	return s
}

// submitEntries submits all runs of compare, the teacher's first.
func (s *searching) submitEntries(entries []entrant) error {
	r, err := describe("ends", named{nil, s.c.String("teacher")}, s.fine)
	if err != nil {
		return err
	}
	specs := s.blocks(r)
	for _, e := range entries {
		if e.err != nil {
			continue
		}
		if r, err = describe("ends", e.solver, e.grid); err != nil {
			return err
		}
		specs = append(specs, s.blocks(r)...)
	}
	return s.crew.submit(specs)
}

// call hires who makes the runs, where the line wants that.
func (s *searching) call(ctx context.Context) error {
	if !s.wantsCrew(s.c) {
		return nil
	}
	w, err := s.work(ctx)
	if err != nil {
		return err
	}
	s.crew, err = s.hire(ctx, s.c, w)
	return err
}

// blocks are the shards of a run over all starts.
func (s *searching) blocks(r searchShard) []shard.Spec {
	var out []shard.Spec
	for _, r.Range = range shard.Cut(len(s.items), s.size) {
		out = append(out, shard.New(s.ids, r))
		s.ids++
	}
	return out
}

// describe says what a shard runs.
func describe(what string, solver samplers.Sampler, g schedules.Grid) (searchShard, error) {
	r := searchShard{What: what}
	switch v := solver.(type) {
	case named:
		r.Solver = v.text
	case samplers.USF:
		r.Schedule = &v.Schedule
	default:
		return r, fmt.Errorf("search: %T cannot be described to a worker", solver)
	}
	if g != nil {
		m := manifest.NewGrid(g)
		r.Grid = &m
	}
	return r, nil
}

// farRun runs a solver over all starts and hands the blocks over in order, n numbers of each start; false says that it
// blew up.
func (s *searching) farRun(what string, solver samplers.Sampler, g schedules.Grid, n int, take func(rows int, x []float64) error) (bool, error) {
	r, err := describe(what, solver, g)
	if err != nil {
		return false, err
	}
	specs := s.blocks(r)
	if err := s.crew.submit(specs); err != nil {
		return false, err
	}
	fine := true
	for i, c := range shard.Cut(len(s.items), s.size) {
		var x []float64
		if _, err := s.crew.result(specs[i], func(res *shard.Result) (err error) {
			if res.Has("blown") {
				fine = false
				return nil
			}
			x, err = res.Floats("x", c.N*n)
			return err
		}); err != nil {
			return false, err
		}
		if !fine {
			break
		}
		if err := take(c.N, x); err != nil {
			return false, err
		}
	}
	if s.c.Command.Name != "compare" { // which may ask twice
		err = s.crew.forget(specs...)
	}
	return fine, err
}

// farEnds is search.Distance.Ends by the crew.
func (s *searching) farEnds(_ context.Context, solver samplers.Sampler, g schedules.Grid) ([]float64, error) {
	var out []float64
	fine, err := s.farRun("ends", solver, g, tensor.Shape(s.info.Shape).TotalSize(), func(_ int, x []float64) error { out = append(out, x...); return nil })
	if err == nil && !fine {
		err = &samplers.NotFinite{}
	}
	return out, err
}

// farDistance is search.NewDistance by the crew.
func (s *searching) farDistance(ctx context.Context, p *samplers.Problem, teacher samplers.Sampler) (*search.Distance, error) {
	d := &search.Distance{Problem: *p, Ends: s.farEnds}
	var err error
	if d.Target, err = s.farEnds(ctx, named{teacher, s.c.String("teacher")}, s.fine); err != nil {
		return nil, fmt.Errorf("search: teacher: %w", err)
	}
	return d, nil
}

// farPictures is pictures by the crew.
func (s *searching) farPictures(m bench.Measurer, solver samplers.Sampler, g schedules.Grid, take func(metrics.Matrix) error) (bool, error) {
	d, _ := m.Dims()
	return s.farRun("features", solver, g, d, func(rows int, x []float64) error {
		return take(metrics.Matrix{N: rows, D: d, X: x})
	})
}

// ahead submits the runs of schedules that will be asked for; nil without a crew.
func (s *searching) ahead() search.Ahead {
	if s.crew == nil {
		return nil
	}
	what := "ends"
	if s.c.String("objective") != "distance" {
		what = "features"
	}
	return func(list []samplers.SolverSchedule) error {
		var specs []shard.Spec
		for _, sch := range list {
			r, err := describe(what, samplers.USF{Schedule: sch}, nil)
			if err != nil {
				return err
			}
			specs = append(specs, s.blocks(r)...)
		}
		return s.crew.submit(specs)
	}
}

// metric is what boss and gits add up.
func (s *searching) metric() search.Metric {
	switch {
	case s.c.Command.Name == "boss":
		return search.Squared
	case s.fine[0].Alpha == 0:
		return search.Norm
	}
	return search.Deviation
}

// costShards are the trajectories that a cost matrix lacks.
func (s *searching) costShards(c *search.CostMatrix) []shard.Spec {
	var out []shard.Spec
	for at := c.Samples; at < len(s.items); at += s.size {
		out = append(out, shard.New(at/s.size, searchShard{What: "costs", Range: shard.Range{From: at, N: min(s.size, len(s.items)-at)}}))
	}
	return out
}

func (s *searching) submitCosts(c *search.CostMatrix) error {
	return s.crew.submit(s.costShards(c))
}

// addCosts adds a batch of trajectories to a cost matrix.
func (s *searching) addCosts(ctx context.Context, c *search.CostMatrix) error {
	n := c.Samples
	rows := min(len(s.items)-n, s.c.Int("batch"))
	if s.crew == nil {
		p, err := s.plan.Problem(s.items[n : n+rows])
		if err != nil {
			return err
		}
		return c.Add(ctx, p)
	}
	k := len(c.Grid) * len(c.Grid)
	next := s.costShards(c)[0]
	var sum []float64
	if _, err := s.crew.result(next, func(r *shard.Result) (err error) { sum, err = r.Floats("sum", k); return err }); err != nil {
		return err
	}
	if len(c.Sum) != k {
		c.Sum = make([]float64, k)
	}
	for i, v := range sum {
		c.Sum[i] += v
	}
	c.Samples += rows
	return s.crew.forget(next)
}
