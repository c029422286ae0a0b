package bench

import (
	"context"
	"encoding/binary"
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"

	"gorgonia.org/tensor"

	"drift/metrics"
	"drift/samplers"
)

// description is what the file beside a cell's results says about it.
func (c *Cell) description() any {
	if c.open == nil {
		return c.Run
	}
	return c.facts.Settings
}

// drawVerb makes the results of the seeds that are missing.
func (b *Bench) drawVerb(ctx context.Context, stop <-chan struct{}, c *Cell, rec, pix *records, where string) (err error) {
	n, m := b.Matrix.Count, c.pictures()
	shown := 0 // seeds whose pictures are kept
	if pix != nil {
		shown = min(n, (b.Pictures+m-1)/m)
	}
	first, last := min(rec.n, n), n
	if pix != nil && pix.n < min(shown, first)*m { // pictures that an earlier bench did not keep
		if first == n {
			last = shown
		}
		first = pix.n / m
	}
	if first >= last {
		return nil
	}
	if err := b.writeRun(c); err != nil {
		return storing{err}
	}
	spent, err := b.times(c)
	if err != nil {
		return storing{err}
	}
	run, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if e := run.Close(); e != nil && err == nil {
			err = e
		}
	}()
	size := b.Batch
	if size <= 0 {
		size = max(1, c.facts.Batch)
	}
	r := b.rate[c.Model]
	for at := first; at < last; {
		t := Task{First: at, Stop: stop}
		for k := at; k < min(at+size, last); k++ {
			t.Seeds = append(t.Seeds, b.Matrix.Seed+uint64(k))
		}
		rows, place := len(t.Seeds), at
		t.Step = func(done float64) {
			b.progress(c, done*float64(rows)*c.evals(), fmt.Sprintf("%s, seed %d/%d", where, t.First, n))
		}
		began := time.Now()
		t.Done = func(res Result) error {
			if err := b.take(ctx, c, rec, pix, shown, place, res); err != nil {
				return err
			}
			r.evals += max(1, res.NFE)
			place++
			return nil
		}
		t.Step(0)
		if err := run.Run(ctx, t); err != nil {
			return err
		}
		if place != at+rows {
			return fmt.Errorf("bench: %s gave %d results for %d seeds", b.Matrix.Verb, place-at, rows)
		}
		took := time.Since(began).Seconds()
		spent.Images += rows
		spent.Seconds += took
		spent.Model += took
		if err := b.writeTimes(c, spent); err != nil {
			return storing{err}
		}
		r.seconds += took
		b.left[c.Model] = max(0, b.left[c.Model]-c.evals()*float64(rows))
		at = place
	}
	return nil
}

// take measures the pictures of a seed and stores its record.
func (b *Bench) take(ctx context.Context, c *Cell, rec, pix *records, shown, place int, res Result) error {
	m, dim := c.pictures(), tensor.Shape(c.facts.Shape).TotalSize()
	if len(res.Values) != len(c.facts.Columns) || len(res.X) != m*dim {
		return fmt.Errorf("bench: %s gave %d values and %d numbers of pictures, want %d and %d", b.Matrix.Verb, len(res.Values), len(res.X), len(c.facts.Columns), m*dim)
	}
	for i, v := range res.X {
		if v-v != 0 {
			return &samplers.NotFinite{Row: i / max(1, dim)}
		}
	}
	line := make([]byte, 0, 8*c.width())
	put := func(v float64) { line = binary.LittleEndian.AppendUint64(line, math.Float64bits(v)) }
	for _, v := range append([]float64{res.NFE, res.VJPs, res.Rewards}, res.Values...) {
		put(v)
	}
	if m > 0 {
		v, bytes, err := c.subject.Measure.Measure(ctx, res.X, m, c.rounding())
		if err != nil {
			return storing{err}
		}
		if pix != nil && place < shown && pix.n == place*m {
			if err := pix.add(bytes); err != nil {
				return storing{err}
			}
		}
		for i := range m {
			for j := range v.Features.D {
				put(v.Features.X[i*v.Features.D+j])
			}
			for j := range v.Logits.D {
				put(v.Logits.X[i*v.Logits.D+j])
			}
		}
	}
	if rec.n == place {
		if err := rec.add(line); err != nil {
			return storing{err}
		}
	}
	return nil
}

// SeedRow is what one seed of a verb's cell gave.
type SeedRow struct {
	Seed uint64
	Cost
	Values []float64
}

// seeds reads the rows of the first n seeds, and their mean cost.
func (r *Row) seeds(rec *records, first uint64, n int) {
	head := r.head()
	view := rec.columns(n, 0, head)
	for i := range n {
		v := make([]float64, head)
		view.Row(v, i)
		r.Seeds = append(r.Seeds, SeedRow{first + uint64(i), Cost{v[0], v[1], v[2]}, v[3:]})
		r.VJPs += v[1]
		r.Rewards += v[2]
	}
	r.VJPs /= float64(n)
	r.Rewards /= float64(n)
}

// columnScore is the mean of a column with its standard error over seeds. Seeds that gave none are left out; false
// says that all did.
func columnScore(col Column, k int, seeds []SeedRow) (Score, bool) {
	var v []float64
	for _, s := range seeds {
		if x := s.Values[k]; !math.IsNaN(x) {
			v = append(v, x)
		}
	}
	s := Score{Metric: col.Name, N: []int{len(v)}, Better: col.Better}
	if len(v) == 0 {
		return s, false
	}
	n := float64(len(v))
	for _, x := range v {
		s.Value += x / n
	}
	sum := 0.0
	for _, x := range v {
		sum += (x - s.Value) * (x - s.Value)
	}
	if len(v) > 1 {
		s.Std = math.Sqrt(sum / (n - 1))
		s.StdErr = s.Std / math.Sqrt(n)
		if col.Share {
			lo, hi := metrics.Wilson(int(math.Round(n*s.Value)), len(v))
			s.Interval = []float64{lo, hi}
		}
		if len(v) == len(seeds) && len(v) <= 1000 { // for differences in pairs of seeds
			for _, x := range v {
				s.Jackknife = append(s.Jackknife, (n*s.Value-x)/(n-1))
			}
		}
	}
	return s, true
}

// seedsCSV writes one row per cell and seed.
func seedsCSV(w io.Writer, m Matrix, rows []Row) error {
	out := csv.NewWriter(w)
	head := []string{"model"}
	for _, a := range m.Axes {
		if a.Flag != "model" {
			head = append(head, a.Flag)
		}
	}
	head = append(head, "baseline", "seed", "nfe", "vjps", "rewards")
	var columns []string
	at := map[string]int{}
	for _, r := range rows {
		for _, c := range r.facts.Columns {
			if _, ok := at[c.Name]; !ok {
				at[c.Name] = len(columns)
				columns = append(columns, c.Name)
			}
		}
	}
	_ = out.Write(append(head, columns...)) // sticky: Error tells
	for _, r := range rows {
		line := []string{r.Model}
		for _, a := range m.Axes {
			if a.Flag != "model" {
				line = append(line, r.setting(a.Flag))
			}
		}
		line = append(line, r.Baseline)
		for _, s := range r.Seeds {
			full := append(append([]string(nil), line...), strconv.FormatUint(s.Seed, 10), number(s.NFE), number(s.VJPs), number(s.Rewards))
			values := make([]string, len(columns))
			for i, c := range r.facts.Columns {
				if !math.IsNaN(s.Values[i]) {
					values[at[c.Name]] = number(s.Values[i])
				}
			}
			_ = out.Write(append(full, values...))
		}
	}
	out.Flush()
	return out.Error()
}

// setting is the value of an axis in this cell.
func (c *Cell) setting(flag string) string {
	v, _ := c.pick.Get(flag)
	return v
}
