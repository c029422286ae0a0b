package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/output"
	"drift/cmd/drift/internal/runlog"
	"drift/internal/npz"
	"drift/models"
	"drift/samplers"
)

// trajectory keeps every step of every image: x (steps+1, batch, ...), t, sigma, alpha (steps+1), and x0 (steps,
// batch, ...), the data predicted at the state that a step starts from.
type trajectory struct {
	name            string
	shape           []int
	t, sigma, alpha []float64
	x, x0           [][]float64 // per step, all images one after another
	rows            int
	start           int // first step of the batch under way
}

func newTrajectory(name string) *trajectory { return &trajectory{name: name} }

func (r *trajectory) whole() bool { return true }

func (r *trajectory) step(b job.Batch, st *samplers.State) error {
	if r.shape == nil {
		r.shape = st.X.Shape()[1:].Clone()
	}
	first := st.Pred == nil && (len(r.t) == 0 || b.Index > 0 && st.I == r.start)
	if len(r.t) == 0 {
		r.start = st.I
	}
	k := st.I - r.start
	if first {
		k = 0
	}
	if b.Index == 0 {
		r.t, r.sigma, r.alpha = append(r.t, st.At.T), append(r.sigma, st.At.Sigma), append(r.alpha, st.At.Alpha)
	} else if k >= len(r.t) || r.t[k] != st.At.T && !(math.IsNaN(r.t[k]) && math.IsNaN(st.At.T)) {
		return usagef("--trajectory: the sampler took other steps in another batch: make all images in one with --batch %d", r.rows+len(b.Items))
	}
	r.x = add(r.x, k, models.Data(st.X))
	if k == 0 {
		return nil
	}
	x0, err := st.X0(nil)
	if err != nil {
		return fmt.Errorf("--trajectory: step %d: %w", st.I-1, err)
	}
	if x0 == nil {
		return fmt.Errorf("--trajectory: the sampler shows no prediction at step %d", st.I-1)
	}
	r.x0 = add(r.x0, k-1, models.Data(x0))
	return nil
}

func add(to [][]float64, k int, v []float64) [][]float64 {
	if k == len(to) {
		to = append(to, nil)
	}
	to[k] = append(to[k], v...)
	return to
}

func (r *trajectory) done(b job.Batch, _ []float64, _ samplers.Stats) error {
	r.rows += len(b.Items)
	return nil
}

func (r *trajectory) close(ok bool) error {
	if !ok || r.rows == 0 {
		return nil
	}
	for _, v := range r.x {
		if len(v) != len(r.x[0]) {
			return usagef("--trajectory: the sampler took other steps in another batch: make all images in one with --batch %d", r.rows)
		}
	}
	w, err := npz.Create(r.name)
	if err != nil {
		return err
	}
	defer w.Discard()
	for _, a := range []struct {
		name string
		v    [][]float64
	}{{"x", r.x}, {"x0", r.x0}} {
		m, err := w.Array(npz.Info{Name: a.name, DType: npz.F8, Shape: append([]int{len(a.v), r.rows}, r.shape...)})
		for i := 0; err == nil && i < len(a.v); i++ {
			err = m.Write(a.v[i])
		}
		if err != nil {
			return err
		}
	}
	n := []int{len(r.t)}
	for _, a := range []npz.Array{{Name: "t", Shape: n, Data: r.t}, {Name: "sigma", Shape: n, Data: r.sigma}, {Name: "alpha", Shape: n, Data: r.alpha}} {
		if err := w.Add(a); err != nil {
			return err
		}
	}
	return w.Commit()
}

// logColumns are the columns of --log, in order.
var logColumns = []runlog.Column{
	{Name: "seed", Unit: true}, {Name: "set", Unit: true}, {Name: "class", Unit: true},
	{Name: "step"}, {Name: "t"}, {Name: "alpha"}, {Name: "sigma"}, {Name: "ratio"}, {Name: "x_mean"}, {Name: "x_std"}, {Name: "x0_mean"}, {Name: "x0_std"},
	{Name: "nfe", Unit: true, Hide: true}, {Name: "avg_knn", Unit: true, Hide: true}, {Name: "plain_knn", Unit: true, Hide: true}, {Name: "logp", Unit: true, Hide: true},
	{Name: "energy", Hide: true}, {Name: "grad_norm", Hide: true}, {Name: "minority", Hide: true},
}

// stepLog writes a row per (seed, step), or per seed, and draws columns.
type stepLog struct {
	ctx   context.Context
	s     *sampling
	said  map[string][]float64 // by guiders in the step under way
	x     []float64            // the finished samples, where they are wanted
	log   *runlog.Log
	plots []string
	path  string // of the plot
}

// logFlags are the flags of newLog, for every verb that makes samples.
func logFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "log", Usage: "one row per image and step, or per image where only columns of images are asked for: .csv or .jsonl (`FILE`)"},
		&cli.StringFlag{Name: "columns", Usage: "columns of --log (`a,b,c`)"},
		&cli.StringFlag{Name: "sort", Usage: "column that rows are sorted by, -COLUMN downwards (`COLUMN`)"},
		&cli.StringFlag{Name: "plot", Usage: "draw columns by step into a picture beside --log, or beside --out (`a,b`)"},
	}
}

// newLog makes the log that the flags of logFlags ask for; nil where they ask for none. out is the run's output, free that
// scripts may add columns.
func newLog(c *cli.Context, out string, known []runlog.Column, free bool) (l *runlog.Log, plots []string, plot string, err error) {
	name := c.String("log")
	if name == "" && c.IsSet("columns") {
		return nil, nil, "", usagef("--columns needs --log")
	}
	if name == "" && c.IsSet("sort") {
		return nil, nil, "", usagef("--sort needs --log")
	}
	if c.IsSet("plot") {
		for p := range strings.SplitSeq(c.String("plot"), ",") {
			if p = strings.TrimSpace(p); p == "" {
				return nil, nil, "", usagef("--plot %s: a column without a name", c.String("plot"))
			}
			plots = append(plots, p)
		}
		switch base := name; {
		case base != "":
			plot = strings.TrimSuffix(base, filepath.Ext(base)) + ".png"
		case output.Kind(out) == "folder":
			plot = filepath.Join(out, "plot.png")
		default:
			plot = strings.TrimSuffix(out, filepath.Ext(out)) + "-plot.png"
		}
	}
	if name == "" && plots == nil {
		return nil, nil, "", nil
	}
	l, err = runlog.New(name, known, runlog.Choice{Columns: c.String("columns"), Sort: c.String("sort"), Free: free})
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			return nil, nil, "", err
		}
		return nil, nil, "", badUse("log", err)
	}
	return l, plots, plot, nil
}

func newStepLog(ctx context.Context, s *sampling) (*stepLog, error) {
	known := slices.Clone(logColumns)
	for i, c := range known { // what the guiders will say is shown
		known[i].Hide = c.Hide && !slices.ContainsFunc(s.desc.Guiders, func(g string) bool {
			return (strings.HasPrefix(g, "energy") || strings.HasPrefix(g, "contrastive")) && (c.Name == "energy" || c.Name == "grad_norm") || strings.HasPrefix(g, "minority") && c.Name == "minority"
		})
	}
	l, plots, path, err := newLog(s.c, s.path, known, len(s.desc.Guiders) > 0)
	if err != nil || l == nil {
		return nil, err
	}
	out := &stepLog{ctx: ctx, s: s, log: l, plots: plots, path: path, said: map[string][]float64{}}
	s.tell = func(q *models.Query, column string, v []float64) {
		if q.Step.Stage == 0 {
			out.said[column] = append(out.said[column][:0], v...)
		}
	}
	return out, nil
}

// measured tells whether the finished samples are to be looked at.
func (l *stepLog) measured() bool {
	return l.log.Wants("avg_knn") || l.log.Wants("plain_knn") || l.log.Wants("logp")
}

func (l *stepLog) whole() bool { return true }

func (l *stepLog) step(b job.Batch, st *samplers.State) error {
	x := models.Data(st.X)
	w := len(x) / len(b.Items)
	var d []float64
	if st.Pred != nil {
		if x0, err := st.X0(nil); err == nil && x0 != nil {
			d = models.Data(x0)
		}
	}
	for k, it := range b.Items {
		mean, std := moments(x[k*w : (k+1)*w])
		row := map[string]any{
			"step": st.I, "t": st.At.T, "alpha": st.At.Alpha, "sigma": st.At.Sigma, "ratio": st.At.Ratio(), "x_mean": mean, "x_std": std,
		}
		if d != nil {
			row["x0_mean"], row["x0_std"] = moments(d[k*w : (k+1)*w])
		}
		for column, v := range l.said {
			if k < len(v) {
				row[column] = v[k]
			}
		}
		l.log.Put(b.Index+k, st.I, row)
		set := l.s.desc.Sets[it.Set]
		l.log.Put(b.Index+k, runlog.Whole, map[string]any{"seed": it.Seed, "set": it.Set, "class": set.Class(it.Place - l.s.plan.Offset)})
	}
	clear(l.said)
	return nil
}

// moments are for reading, not for computing with.
func moments(v []float64) (mean, std float64) {
	for _, x := range v {
		mean += x / float64(len(v))
	}
	for _, x := range v {
		std += (x - mean) * (x - mean) / float64(len(v))
	}
	return mean, math.Sqrt(std)
}

func (l *stepLog) done(b job.Batch, x []float64, stats samplers.Stats) error {
	clear(l.said)
	if l.measured() {
		l.x = append(l.x, x...)
	}
	for k := range b.Items {
		l.log.Put(b.Index+k, runlog.Whole, map[string]any{"nfe": stats.NFE})
	}
	return nil
}

// close writes the log, of what was done when the run was stopped.
func (l *stepLog) close(ok bool) error {
	var err error
	if ok && l.measured() {
		err = l.measure()
	}
	err = errors.Join(err, l.log.Close())
	if err == nil && ok && l.plots != nil {
		if err = l.log.Draw(l.path, l.plots); err == nil {
			l.s.stored([]string{l.path})
		}
	}
	return err
}
