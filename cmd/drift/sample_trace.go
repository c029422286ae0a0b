package main

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/output"
	"drift/internal/npz"
	"drift/internal/spec"
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

func (r *trajectory) done(b job.Batch, _ samplers.Stats) error {
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
var logColumns = []string{"seed", "set", "class", "step", "t", "alpha", "sigma", "ratio", "x_mean", "x_std", "x0_mean", "x0_std"}

// stepLog writes one row per (seed, step).
type stepLog struct {
	s        *sampling
	name     string
	columns  []string
	rows     [][]map[string]any // per image of the batch under way, per step
	finished []map[string]any
}

func newStepLog(name, columns string, s *sampling) (*stepLog, error) {
	if ext := strings.ToLower(filepath.Ext(name)); ext != ".csv" && ext != ".jsonl" {
		return nil, usagef("--log %s: want a name that ends in .csv or .jsonl", name)
	}
	l := &stepLog{s: s, name: name, columns: logColumns}
	if columns != "" {
		l.columns = nil
		for c := range strings.SplitSeq(columns, ",") {
			c = strings.TrimSpace(c)
			if !slices.Contains(logColumns, c) {
				return nil, usagef("--columns: unknown column %q%s", c, spec.Suggest(c, logColumns))
			}
			l.columns = append(l.columns, c)
		}
	}
	return l, output.Check(name)
}

func (l *stepLog) whole() bool { return true }

func (l *stepLog) step(b job.Batch, st *samplers.State) error {
	if st.Pred == nil && len(l.rows) == 0 {
		l.rows = make([][]map[string]any, len(b.Items))
	}
	x := models.Data(st.X)
	w := len(x) / len(b.Items)
	var d []float64
	if st.Pred != nil {
		if x0, err := st.X0(nil); err == nil && x0 != nil {
			d = models.Data(x0)
		}
	}
	for k, it := range b.Items {
		set := l.s.desc.Sets[it.Set]
		mean, std := moments(x[k*w : (k+1)*w])
		row := map[string]any{
			"seed": it.Seed, "set": it.Set, "class": set.Class(it.Place - l.s.plan.Offset), "step": st.I,
			"t": finite(st.At.T), "alpha": finite(st.At.Alpha), "sigma": finite(st.At.Sigma), "ratio": finite(st.At.Ratio()),
			"x_mean": finite(mean), "x_std": finite(std),
		}
		if d != nil {
			mean, std = moments(d[k*w : (k+1)*w])
			row["x0_mean"], row["x0_std"] = finite(mean), finite(std)
		}
		l.rows[k] = append(l.rows[k], row)
	}
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

func (l *stepLog) done(job.Batch, samplers.Stats) error {
	for _, image := range l.rows {
		l.finished = append(l.finished, image...)
	}
	l.rows = nil
	return nil
}

// close writes the log, of what was done when the run was stopped.
func (l *stepLog) close(bool) error {
	for _, image := range l.rows {
		l.finished = append(l.finished, image...)
	}
	return output.Write(l.name, func(w io.Writer) error {
		if strings.EqualFold(filepath.Ext(l.name), ".jsonl") {
			b := bufio.NewWriter(w)
			e := json.NewEncoder(b)
			for _, row := range l.finished {
				kept := make(map[string]any, len(l.columns))
				for _, c := range l.columns {
					if v, ok := row[c]; ok {
						kept[c] = v
					}
				}
				if err := e.Encode(kept); err != nil {
					return err
				}
			}
			return b.Flush()
		}
		c := csv.NewWriter(w)
		record := make([]string, len(l.columns))
		copy(record, l.columns)
		for i := -1; i < len(l.finished); i++ {
			if i >= 0 {
				for j, name := range l.columns {
					record[j] = cell(l.finished[i][name])
				}
			}
			if err := c.Write(record); err != nil {
				return err
			}
		}
		c.Flush()
		return c.Error()
	})
}

func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	return fmt.Sprint(v)
}
