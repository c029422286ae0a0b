package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/shard"
	"drift/internal/atomicfile"
	"drift/metrics"
	"drift/samplers"
)

// Bench runs a matrix in a folder.
type Bench struct {
	Version  string // of the tool
	Dir      string
	Matrix   Matrix
	Subjects []*Subject
	Cells    []*Cell // of Matrix.Cells
	Options  Options // of the scores
	Pictures int     // kept per cell for the sheets
	Batch    int     // pictures at a time, 0 = what suits the model; changes no result

	// Observe is told how much of the work of this run is done, in [0, 1]; may be nil.
	Observe func(done float64, where string)
	// Finished is told about every cell as soon as it is scored; may be nil.
	Finished func(Row)

	// Remote makes the pictures elsewhere, in blocks of Block of them (rounded up to whole batches); nil: here.
	Remote Remote
	Block  int

	lock *lock
	rate map[string]*rate  // by model
	left map[*Cell]float64 // evaluations that this run has to make
	from time.Time
}

// Row is a finished cell.
type Row struct {
	*Cell
	N      int
	NFE    float64 // measured for samplers that place their own steps
	Scores []Score
	Sheet  []byte // bytes of the first pictures, (n, H, W, C)
	Time   Times

	// Of cells of a verb: what came of every seed, and its mean cost.
	Seeds         []SeedRow
	VJPs, Rewards float64
}

// Times is what a cell's pictures took. It is not a result: it differs from run to run.
type Times struct {
	Images  int     `json:"images"`
	Seconds float64 `json:"seconds"`
	Model   float64 `json:"model_seconds"`
}

// rate is the time per evaluation of a model, as seen so far.
type rate struct{ evals, seconds, params float64 }

// storing is an error of the disk, which ends a bench; errors of a cell do not.
type storing struct{ error }

func (s storing) Unwrap() error { return s.error }

// Half-written files have names that end so; those of the folder of a bench begin so, others are the user's.
var (
	half = regexp.MustCompile(`\.tmp[0-9]+$`)
	ours = regexp.MustCompile(`^(results|plot|report|times)[-.]`)
)

// Run makes what is missing, cell by cell, and returns the rows. Closing stop ends it after the step under way with
// job.ErrStopped; everything before the batch under way is kept.
func (b *Bench) Run(ctx context.Context, stop <-chan struct{}) ([]Row, error) {
	if err := os.MkdirAll(filepath.Join(b.Dir, "cells"), 0o777); err != nil {
		return nil, err
	}
	var err error
	if b.lock, err = lockDir(b.Dir); err != nil {
		return nil, err
	}
	defer b.lock.release()
	for _, dir := range []string{b.Dir, filepath.Join(b.Dir, "cells")} { // what a killed process was writing
		list, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if half.MatchString(e.Name()) && (dir != b.Dir || ours.MatchString(e.Name())) {
				if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
					return nil, err
				}
			}
		}
	}
	b.plan()
	if b.Remote != nil {
		wants, err := b.lacking()
		if err == nil {
			err = b.Remote.Submit(wants)
		}
		if err != nil {
			return nil, err
		}
	}
	done := map[string]Row{}
	var rows []Row
	for k, c := range b.Cells {
		row, ok := done[c.Key]
		if !ok || c.Key == "" {
			if row, err = b.cell(ctx, stop, c, fmt.Sprintf("cell %d/%d, %s %s", k+1, len(b.Cells), c.Name(), c.At())); err != nil {
				return rows, err
			}
			if c.Key != "" {
				done[c.Key] = row
			}
		}
		c.Reason = row.Cell.Reason
		row.Cell = c
		rows = append(rows, row)
		if b.Finished != nil {
			b.Finished(row)
		}
	}
	return rows, nil
}

// plan counts the evaluations to come.
func (b *Bench) plan() {
	b.rate, b.left, b.from = map[string]*rate{}, map[*Cell]float64{}, time.Now()
	seen := map[string]bool{}
	for _, c := range b.Cells {
		if c.subject != nil && b.rate[c.Model] == nil {
			b.rate[c.Model] = &rate{params: max(1, float64(c.subject.Model.Info.Params))}
		}
		if c.Reason == "" && !seen[c.Key] {
			seen[c.Key] = true
			b.left[c] = b.missing(c) * c.evals()
		}
	}
}

// evals is the cost of a picture, guessed where only the run tells.
func (c *Cell) evals() float64 {
	if c.NFE > 0 {
		return c.NFE
	}
	return 50
}

// missing is the number of pictures that a cell has to make, about.
func (b *Bench) missing(c *Cell) float64 {
	rows := func(ext string, width int) int {
		info, err := os.Stat(b.path(c, ext))
		if err != nil {
			return 0
		}
		return max(0, int((info.Size()-recordHeader)/int64(width+4)))
	}
	size, _ := c.picture()
	first, last := b.span(c, rows(".rec", 8*c.width()), rows(".pix", size)/max(1, c.pictures()))
	return float64(last - first)
}

func (b *Bench) path(c *Cell, ext string) string {
	return filepath.Join(b.Dir, "cells", c.Key+ext)
}

// progress tells how far all is: time gone by against time to come, each model at its own speed.
func (b *Bench) progress(c *Cell, inCell float64, where string) {
	if b.Observe == nil {
		return
	}
	known := 0.0 // seconds per evaluation and parameter
	for _, r := range b.rate {
		if r.evals > 0 {
			known = max(known, r.seconds/r.evals/r.params)
		}
	}
	togo := 0.0
	for other, evals := range b.left {
		r := b.rate[other.Model]
		per := known * r.params
		if r.evals > 0 {
			per = r.seconds / r.evals
		}
		if other == c {
			evals -= inCell
		}
		togo += max(0, evals) * per
	}
	gone := time.Since(b.from).Seconds()
	if known == 0 {
		b.Observe(0, where)
		return
	}
	b.Observe(gone/(gone+togo), where)
}

// cell draws what a cell lacks and scores it.
func (b *Bench) cell(ctx context.Context, stop <-chan struct{}, c *Cell, where string) (Row, error) {
	row := Row{Cell: c}
	if c.Reason != "" {
		return row, nil
	}
	n := b.Matrix.Count
	rec, pix, err := b.records(c)
	if err != nil {
		return row, err
	}
	defer rec.close()
	if pix != nil {
		defer pix.close()
	}
	if err := b.draw(ctx, stop, c, rec, pix, where); err != nil {
		var s storing
		switch {
		case errors.As(err, &s), errors.Is(err, job.ErrStopped), ctx.Err() != nil:
			return row, err
		}
		delete(b.left, c)
		var bad *samplers.NotFinite
		var far *shard.Failure
		if errors.As(err, &bad) || errors.As(err, &far) && far.Kind == shard.NotFinite {
			c.Reason = "failed: " + err.Error()
		} else {
			c.Reason = "cannot run: " + err.Error()
		}
		return row, nil
	}
	row.N = n
	if row.Time, err = b.times(c); err != nil {
		return row, err
	}
	row.NFE = c.NFE
	if row.NFE == 0 || c.open != nil {
		nfe, v := rec.columns(n, 0, 1), []float64{0}
		sum := 0.0
		for i := range n {
			nfe.Row(v, i)
			sum += v[0]
		}
		row.NFE = sum / float64(n)
	}
	if c.open != nil {
		row.seeds(rec, b.Matrix.Seed, n)
	}
	if pix != nil {
		for i := range min(b.Pictures, n, pix.n) {
			p, err := pix.at(i)
			if err != nil {
				return row, err
			}
			row.Sheet = append(row.Sheet, p...)
		}
	}
	b.progress(c, 0, where+", scores")
	row.Scores, err = b.scores(ctx, c, rec, row.Seeds)
	if err != nil && ctx.Err() == nil {
		c.Reason = "failed: " + err.Error()
		return row, nil
	}
	return row, err
}

// picture is the number of bytes of a picture.
func (c *Cell) picture() (int, bool) {
	shape := c.facts.Shape
	if c.open == nil {
		shape = c.subject.Model.Info.Image()
	}
	if c.subject.Measure.Rounding("") == "" || c.pictures() == 0 {
		return 0, false
	}
	return tensor.Shape(shape).TotalSize(), true
}

// pictures is the number of pictures of a seed.
func (c *Cell) pictures() int {
	if c.open == nil {
		return 1
	}
	return c.facts.Pictures
}

// head is the number of a record's values before its features: evaluations; of verbs also VJPs, evaluations of
// rewards, and the columns.
func (c *Cell) head() int {
	if c.open == nil {
		return 1
	}
	return 3 + len(c.facts.Columns)
}

// width is the number of a record's values: the head, then features and logits of every picture.
func (c *Cell) width() int {
	d, k := c.subject.Measure.Dims()
	return c.head() + c.pictures()*(d+k)
}

// writeRun stores what the cell is, once.
func (b *Bench) writeRun(c *Cell) error {
	path := b.path(c, ".run.json")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	id := c.subject.Measure.Identity()
	return writeJSON(path, struct {
		Key       string `json:"key"`
		Extractor string `json:"extractor"`
		Resize    string `json:"resize"`
		Run       any    `json:"run"`
	}{c.Key, id.Extractor, id.Resize, c.description()})
}

func (b *Bench) times(c *Cell) (Times, error) {
	var t Times
	text, err := os.ReadFile(b.path(c, ".time.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err == nil && json.Unmarshal(text, &t) != nil {
		t = Times{} // half written by a process that was killed: the times before are lost, no result
	}
	return t, err
}

func (b *Bench) writeTimes(c *Cell, t Times) error {
	text, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return os.WriteFile(b.path(c, ".time.json"), text, 0o666)
}

// writeJSON writes a file under its name only when it is whole.
func writeJSON(path string, v any) error {
	return write(path, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", " ")
		return e.Encode(v)
	})
}

func write(path string, fill func(io.Writer) error) error {
	f, err := atomicfile.Create(path)
	if err != nil {
		return err
	}
	defer f.Discard()
	if err := fill(f); err != nil {
		return err
	}
	return f.Commit()
}

// scores computes the scores of a cell, or takes them from the file where they were kept.
func (b *Bench) scores(ctx context.Context, c *Cell, rec *records, seeds []SeedRow) ([]Score, error) {
	n, m, from := b.Matrix.Count, c.pictures(), c.head()
	d, k := c.subject.Measure.Dims()
	gen := &Side{Name: c.Name() + " " + c.At(), ID: c.subject.Measure.Identity(), N: n * m}
	gen.Rows = func(context.Context) (metrics.Samples, metrics.Samples, error) {
		if k == 0 {
			return rec.every(n, from, from+d, m, d), nil, nil
		}
		return rec.every(n, from, from+d, m, d+k), rec.every(n, from+d, from+d+k, m, d+k), nil
	}
	gen.Blocks = func(ctx context.Context) (*metrics.Moments, []*metrics.Moments, error) {
		rows, _, err := gen.Rows(ctx)
		if err != nil {
			return nil, nil, err
		}
		return blocksOf(ctx, rows, gen.ID)
	}
	if c.open != nil {
		if c.facts.Class != nil {
			gen.Class = func(i int) int { return c.facts.Class(i/m, i%m) }
		}
	} else if set := c.Run.Sets[0]; len(set.Classes) > 0 {
		gen.Class = set.Class
	}
	path := b.path(c, ".scores.json")
	kept := map[string]Score{}
	if text, err := os.ReadFile(path); err == nil {
		if json.Unmarshal(text, &kept) != nil {
			clear(kept) // made again below
		}
	}
	var out []Score
	changed := false
	for _, name := range b.Matrix.Metrics {
		if i := slices.IndexFunc(c.facts.Columns, func(col Column) bool { return col.Name == name }); i >= 0 {
			if s, ok := columnScore(c.facts.Columns[i], i, seeds); ok {
				out = append(out, s)
			}
			continue
		}
		s, err := FindScorer(name)
		if err != nil {
			if c.open != nil {
				continue // a column of other cells
			}
			return nil, err
		}
		if c.open != nil && m == 0 {
			return out, fmt.Errorf("%s needs pictures, and %s gives none", name, b.Matrix.Verb)
		}
		ref := c.subject.Reference
		var digest []string
		for _, side := range []*Side{ref.Moments, ref.Rows} {
			if side != nil {
				digest = append(digest, side.Digest)
			}
		}
		// The number counts the meanings of a Score: 2 has the jackknife of every score.
		key := fmt.Sprintf("2 %s n=%d %+v ref=%s %s", name, n, b.Options, strings.Join(digest, ","), b.Version)
		score, ok := kept[key]
		if !ok {
			o := b.Options
			if o.Seed == 0 {
				o.Seed = DefaultSeed
			}
			if score, err = s.Compute(ctx, ref, gen, o); err != nil {
				return out, err
			}
			kept[key], changed = score, true
		}
		out = append(out, score)
	}
	if changed {
		if err := writeJSON(path, kept); err != nil {
			return out, err
		}
	}
	return slices.Clip(out), nil
}
