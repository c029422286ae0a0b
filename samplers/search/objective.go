package search

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// Objective scores a solver schedule; lower is better. A schedule that blows up scores +Inf; an error ends the search.
type Objective func(ctx context.Context, s samplers.SolverSchedule) (float64, error)

// Distance scores by the mean squared difference, over rows and dimensions, from a teacher's end points on the same
// starts.
type Distance struct {
	Problem samplers.Problem // with the starts; without a grid
	Target  []float64
	// NewModel, where given, makes the model of every run anew: guiders may remember their last run.
	NewModel func() (samplers.Model, error)
	// Ends, where given, runs a solver from the starts over a grid (nil: its own) somewhere else and returns the end points
	// of all rows, in their order; a run that stops being finite is a *samplers.NotFinite. Problem then needs its Rows only.
	Ends func(ctx context.Context, s samplers.Sampler, g schedules.Grid) ([]float64, error)
}

// NewDistance runs the teacher over a fine grid from the start of p, drawn where p has none. Schedules to be scored start
// and end where the grid does.
func NewDistance(ctx context.Context, p *samplers.Problem, teacher samplers.Sampler, fine schedules.Grid) (*Distance, error) {
	d := &Distance{Problem: *p}
	own := *p
	own.Grid = fine
	own.Observe = func(s *samplers.State) error {
		if s.I == 0 {
			d.Problem.Start = models.Wrap(slices.Clone(models.Data(s.X)), s.X.Shape()...)
		}
		return nil
	}
	res, err := samplers.Sample(ctx, teacher, &own)
	if err != nil {
		return nil, fmt.Errorf("search: teacher: %w", err)
	}
	d.Target = slices.Clone(models.Data(res.X))
	d.Problem.Observe, d.Problem.Grid = nil, nil
	return d, nil
}

// Rows returns the mean squared difference of every row of a run of s over g (nil: the sampler's own grid). A run that
// stops being finite gives +Inf in all rows.
func (d *Distance) Rows(ctx context.Context, s samplers.Sampler, g schedules.Grid) ([]float64, error) {
	out := make([]float64, len(d.Problem.Rows))
	x, err := d.run(ctx, s, g)
	var blown *samplers.NotFinite
	switch {
	case errors.As(err, &blown):
		for i := range out {
			out[i] = math.Inf(1)
		}
		return out, nil
	case err != nil:
		return nil, err
	}
	w := len(d.Target) / len(out)
	for i, v := range x {
		out[i/w] += sq(v-d.Target[i]) / float64(w)
	}
	return out, nil
}

// run returns the end points of a run of s.
func (d *Distance) run(ctx context.Context, s samplers.Sampler, g schedules.Grid) ([]float64, error) {
	if d.Ends != nil {
		x, err := d.Ends(ctx, s, g)
		if err == nil && len(x) != len(d.Target) {
			err = fmt.Errorf("search: %d numbers of end points, want %d", len(x), len(d.Target))
		}
		return x, err
	}
	p := d.Problem
	p.Grid = g
	if d.NewModel != nil {
		var err error
		if p.Model, err = d.NewModel(); err != nil {
			return nil, fmt.Errorf("search: %w", err)
		}
	}
	res, err := samplers.Sample(ctx, s, &p)
	if err != nil {
		return nil, err
	}
	return models.Data(res.X), nil
}

// Score is the Objective.
func (d *Distance) Score(ctx context.Context, s samplers.SolverSchedule) (float64, error) {
	rows, err := d.Rows(ctx, samplers.USF{Schedule: s}, nil)
	if err != nil {
		return 0, err
	}
	return mean(rows), nil
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// Record is one evaluation.
type Record struct {
	Score    float64
	Origin   string // where the schedule came from: a baseline's name, random, evolved, ...
	Schedule samplers.SolverSchedule
}

// Log is the evaluations of a search, one JSON object per line, in a file that is written and synced after every one of
// them: a search that was killed goes on where the file ends. Because searches are deterministic they repeat their
// proposals, and take the scores of those that the log holds. The zero Log keeps records in memory only.
type Log struct {
	Records []Record
	known   []logged // read from the file
	file    *os.File
}

type logged struct {
	Score    *float64        `json:"score"` // null = not finite
	Origin   string          `json:"origin"`
	Schedule json.RawMessage `json:"schedule"`
}

type logHead struct {
	Search string `json:"search"`
}

// OpenLog opens or makes the log at path for a search that settings describe in full (model, objective, space, seed, on
// one line). A log of another search is refused; a last line that was cut short is dropped.
func OpenLog(path, settings string) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, fmt.Errorf("search: log: %w", err)
	}
	l := &Log{file: f}
	fail := func(err error) (*Log, error) { f.Close(); return nil, fmt.Errorf("search: log %s: %w", path, err) }
	rd := bufio.NewReader(f)
	end := int64(0)
	for n := 0; ; n++ {
		line, err := rd.ReadBytes('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return fail(err)
		}
		if n == 0 {
			var h logHead
			if err := json.Unmarshal(line, &h); err != nil || h.Search != settings {
				return fail(fmt.Errorf("is of another search: it was made with %q", h.Search))
			}
		} else {
			var r logged
			if err := json.Unmarshal(line, &r); err != nil {
				return fail(fmt.Errorf("line %d: %w", n+1, err))
			}
			l.known = append(l.known, r)
		}
		end += int64(len(line))
	}
	if err := f.Truncate(end); err != nil {
		return fail(err)
	}
	if _, err := f.Seek(end, io.SeekStart); err != nil {
		return fail(err)
	}
	if end == 0 {
		if err := l.write(logHead{settings}); err != nil {
			return fail(err)
		}
	}
	return l, nil
}

// Known returns the number of evaluations that the file held.
func (l *Log) Known() int { return len(l.known) }

func (l *Log) write(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := l.file.Write(append(line, '\n')); err != nil {
		return err
	}
	return l.file.Sync()
}

// Close closes the file.
func (l *Log) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// evaluate scores a schedule, or takes the score that the log has for it.
func (l *Log) evaluate(ctx context.Context, f Objective, origin string, s samplers.SolverSchedule) (float64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n := len(l.Records)
	text, err := json.Marshal(s)
	if err != nil {
		return 0, fmt.Errorf("search: evaluation %d: %w", n, err)
	}
	if n < len(l.known) {
		k := l.known[n]
		if k.Origin != origin || !bytes.Equal(k.Schedule, text) {
			return 0, fmt.Errorf("search: evaluation %d of the log is of another schedule than this search proposes: it was made by another version", n)
		}
		score := math.Inf(1)
		if k.Score != nil {
			score = *k.Score
		}
		l.Records = append(l.Records, Record{score, origin, s})
		return score, nil
	}
	score, err := f(ctx, s)
	if err != nil {
		return 0, fmt.Errorf("search: evaluation %d (%s): %w", n, origin, err)
	}
	if math.IsNaN(score) {
		score = math.Inf(1)
	}
	if l.file != nil {
		r := logged{Origin: origin, Schedule: text}
		if !math.IsInf(score, 0) {
			r.Score = &score
		}
		if err := l.write(r); err != nil {
			return 0, fmt.Errorf("search: evaluation %d: %w", n, err)
		}
	}
	l.Records = append(l.Records, Record{score, origin, s})
	return score, nil
}

// Ahead is told the schedules that an Objective will be asked about next, in that order, as far as they are known: proposals
// come from finished generations only, so a whole generation can be scored at the same time. Those that the log has
// already, and those beyond the budget, are left out.
type Ahead func([]samplers.SolverSchedule) error

// ahead tells f what is about to be evaluated: schedules that begin at the log's next record.
func (l *Log) ahead(f Ahead, b budget, next []samplers.SolverSchedule) error {
	if f == nil {
		return nil
	}
	if b.Evaluations > 0 {
		next = next[:max(0, min(len(next), b.Evaluations-len(l.Records)))]
	}
	next = next[min(len(next), max(0, len(l.known)-len(l.Records))):]
	if len(next) == 0 {
		return nil
	}
	return f(next)
}

// Best returns the n best records, best first, each schedule once.
func (l *Log) Best(n int) []Record {
	rs := slices.Clone(l.Records)
	slices.SortStableFunc(rs, func(a, b Record) int { return cmp(a.Score, b.Score) })
	var out []Record
	seen := map[string]bool{}
	for _, r := range rs {
		text, err := json.Marshal(r.Schedule)
		if err != nil || seen[string(text)] {
			continue
		}
		seen[string(text)] = true
		if out = append(out, r); len(out) == n {
			break
		}
	}
	return out
}

func cmp(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Budget ends a search: after that many evaluations (those of the log included) or that much time, whichever comes first;
// 0 = no such bound.
type Budget struct {
	Evaluations int
	Time        time.Duration
}

// Progress tells how far a search is. It is called after every evaluation.
type Progress func(evaluations int, best Record)

// budget holds a search to its Budget.
type budget struct {
	Budget
	start time.Time
}

func (b budget) spent(l *Log) bool {
	return b.Evaluations > 0 && len(l.Records) >= b.Evaluations || b.Time > 0 && time.Since(b.start) >= b.Time && len(l.Records) >= len(l.known)
}

func (b Budget) begin() (budget, error) {
	if b.Evaluations <= 0 && b.Time <= 0 {
		return budget{}, errors.New("search: a search needs a budget of evaluations or time")
	}
	return budget{b, time.Now()}, nil
}
