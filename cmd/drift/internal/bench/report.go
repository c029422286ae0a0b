package bench

import (
	"cmp"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drift/cmd/drift/internal/manifest"
	"drift/internal/refuse"
	"drift/metrics"
)

// Report is what results.json holds. It has no times and no dates: equal benches have equal reports.
type Report struct {
	Format  int          `json:"format"`
	Version string       `json:"version"`
	Matrix  Matrix       `json:"matrix"`
	Cells   []ReportCell `json:"cells"`
	Limits  []ReportCell `json:"limits,omitempty"` // of Matrix.Limit: one per model and chain of guiders
}

// ReportCell is a cell of a Report.
type ReportCell struct {
	Model    string  `json:"model"`
	Sampler  string  `json:"sampler"`
	Schedule string  `json:"schedule"`
	Guiders  string  `json:"guiders,omitempty"`
	Budget   int     `json:"budget,omitempty"` // asked for
	Steps    int     `json:"steps,omitempty"`
	NFE      float64 `json:"nfe,omitempty"` // true evaluations per picture, guidance counted
	N        int     `json:"n,omitempty"`
	Seeds    string  `json:"seeds,omitempty"`
	Status   string  `json:"status"` // done, or why not
	Note     string  `json:"note,omitempty"`
	Key      string  `json:"key,omitempty"`
	Scores   []Score `json:"scores,omitempty"`

	Run *manifest.Run `json:"run,omitempty"`

	// Of benches of a verb: values of the axes that have no field above, cost per seed, all that decides a result, and
	// the baseline of this cell.
	Settings Args        `json:"settings,omitempty"`
	VJPs     float64     `json:"vjps,omitempty"`
	Rewards  float64     `json:"rewards,omitempty"`
	Verb     any         `json:"verb,omitempty"`
	Baseline *ReportCell `json:"baseline,omitempty"`
}

// Name is the cell's name in tables.
func (c ReportCell) Name() string {
	return (&Cell{Model: c.Model, Sampler: c.Sampler, Schedule: c.Schedule, Guiders: c.Guiders, Settings: c.Settings}).Name()
}

// At is the budget or number of steps.
func (c ReportCell) At() string {
	return (&Cell{Budget: c.Budget, Steps: c.Steps}).At()
}

// Score finds the score that has a column.
func (c ReportCell) Score(column string) (Score, bool) {
	for _, s := range c.Scores {
		if slices.Contains(s.Columns(), column) {
			return s, true
		}
	}
	return Score{}, false
}

const reportFormat = 1

// statusDone is the status of a cell with scores.
const statusDone = "done"

// NewReport makes the report of finished rows.
func NewReport(version string, m Matrix, rows []Row) Report {
	r := Report{Format: reportFormat, Version: version, Matrix: m}
	for _, row := range rows {
		c := ReportCell{
			Model: row.Model, Sampler: row.Sampler, Schedule: row.Schedule, Guiders: row.Guiders, Budget: row.Budget,
			Steps: row.Steps, NFE: row.NFE, N: row.N, Status: statusDone, Note: row.Note, Key: row.Key, Scores: row.Scores,
		}
		if row.Reason != "" {
			c.Status, c.Scores, c.N, c.NFE = row.Reason, nil, 0, row.Cell.NFE
		} else {
			c.Seeds = fmt.Sprintf("%d-%d", m.Seed, m.Seed+uint64(row.N-1))
			if row.Cell.open == nil {
				run := row.Run
				run.Seeds = c.Seeds
				c.Run = &run
			} else {
				c.Verb, c.VJPs, c.Rewards = row.facts.Settings, row.VJPs, row.Rewards
			}
		}
		c.Settings = row.Cell.Settings
		if row.Cell.Baseline != "" {
			r.Cells[len(r.Cells)-1].Baseline = &c
			continue
		}
		if row.Cell.Limit {
			r.Limits = append(r.Limits, c)
			continue
		}
		r.Cells = append(r.Cells, c)
	}
	return r
}

// Columns are the columns of scores, in the order of the metrics.
func (r Report) Columns() []string {
	var out []string
	for _, name := range r.Matrix.Metrics {
		out = append(out, Score{Metric: name}.Columns()...)
	}
	return out
}

// maxReport bounds what LoadReport reads.
const maxReport = 256 << 20

// ParseReport reads results.json; name is the file for errors.
func ParseReport(name string, text []byte) (Report, error) {
	var r Report
	if len(text) > maxReport {
		return r, refuse.Errorf(name, "more than %d bytes", maxReport)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, refuse.Errorf(name, "not the results of a bench: %v", err)
	}
	if r.Format != reportFormat {
		return r, refuse.Errorf(name, "the results have format %d, this version knows %d", r.Format, reportFormat)
	}
	return r, nil
}

// Write writes results.json, .csv, .md and .bench (benchstat's form), the plots and the page into dir, and times.csv.
func Write(dir string, r Report, rows []Row) error {
	for _, f := range []struct {
		name string
		fill func(io.Writer) error
	}{
		{"results.csv", r.csv},
		{"results.md", r.Markdown},
		{"results.bench", r.benchstat},
		{"times.csv", func(w io.Writer) error { return times(w, rows) }},
		{"report.html", func(w io.Writer) error { return page(w, r, rows) }},
	} {
		if err := write(filepath.Join(dir, f.name), f.fill); err != nil {
			return err
		}
	}
	if err := plots(dir, r); err != nil {
		return err
	}
	if r.Matrix.Verb != "" {
		if err := write(filepath.Join(dir, "seeds.csv"), func(w io.Writer) error { return seedsCSV(w, r.Matrix, rows) }); err != nil {
			return err
		}
		if err := sweepPlots(dir, r); err != nil {
			return err
		}
	}
	return writeJSON(filepath.Join(dir, "results.json"), r)
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

func (r Report) csv(w io.Writer) error {
	out := csv.NewWriter(w)
	head := []string{"model", "sampler", "schedule", "guiders", "budget", "steps", "nfe", "n", "seeds", "status"}
	settings, verb := r.settings(), r.Matrix.Verb != ""
	head = append(head, settings...)
	if verb {
		head = append(head, "vjps", "rewards")
	}
	for _, c := range r.Columns() {
		head = append(head, c, c+"_stderr")
		if r.Matrix.Baseline != "" {
			head = append(head, c+"_"+r.Matrix.Baseline, c+"_"+r.Matrix.Baseline+"_stderr")
		}
	}
	_ = out.Write(append(head, "key")) // sticky: Error tells
	for _, c := range r.Cells {
		line := []string{c.Model, c.Sampler, c.Schedule, c.Guiders, positive(c.Budget), positive(c.Steps), number(c.NFE), strconv.Itoa(c.N), c.Seeds, c.Status}
		for _, flag := range settings {
			v, _ := c.Settings.Get(flag)
			line = append(line, v)
		}
		if verb {
			line = append(line, number(c.VJPs), number(c.Rewards))
		}
		for _, col := range r.Columns() {
			of := []ReportCell{c}
			if r.Matrix.Baseline != "" {
				of = append(of, c.base())
			}
			for _, x := range of {
				if s, ok := x.Score(col); ok {
					line = append(line, number(s.Number(col)), stderrOf(s, col, number))
				} else {
					line = append(line, "", "")
				}
			}
		}
		_ = out.Write(append(line, c.Key))
	}
	out.Flush()
	return out.Error()
}

func positive(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// stderrOf writes the standard error of a column, empty where there is none.
func stderrOf(s Score, column string, form func(float64) string) string {
	if e := s.Error(column); e != 0 {
		return form(e)
	}
	return ""
}

// short writes a number for eyes: four digits.
func short(v float64) string {
	switch a := math.Abs(v); {
	case v == 0:
		return "0"
	case a >= 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 0.1:
		return strconv.FormatFloat(v, 'f', max(0, 3-int(math.Floor(math.Log10(a)))), 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// lane is the cells of one name, by budget.
type lane struct {
	name  string
	cells map[string]ReportCell
}

// lanes groups the cells by name, and lists the budgets in the order of the matrix.
func (r Report) lanes(model string) (lanes []lane, at []string) {
	for _, n := range r.Matrix.NFE {
		at = append(at, "nfe="+strconv.Itoa(n))
	}
	for _, n := range r.Matrix.Steps {
		at = append(at, "steps="+strconv.Itoa(n))
	}
	adaptive := false
	for _, c := range r.Cells {
		if c.Model != model {
			continue
		}
		k := slices.IndexFunc(lanes, func(l lane) bool { return l.name == c.Name() })
		if k < 0 {
			k = len(lanes)
			lanes = append(lanes, lane{c.Name(), map[string]ReportCell{}})
		}
		a := c.At()
		adaptive = adaptive || a == "adaptive"
		if a != "adaptive" && !slices.Contains(at, a) { // from a swept flag
			at = append(at, a)
		}
		lanes[k].cells[a] = c
	}
	if adaptive {
		at = append(at, "adaptive")
	}
	return lanes, at
}

// Markdown writes one table per model and column of scores: a line per sampler, a column per budget.
func (r Report) Markdown(w io.Writer) error {
	var b strings.Builder
	if r.Matrix.Verb != "" {
		r.verbTables(&b)
		b.WriteString(r.notes())
		_, err := io.WriteString(w, b.String())
		return err
	}
	for _, model := range r.Matrix.Models {
		lanes, at := r.lanes(model)
		for _, col := range r.Columns() {
			fmt.Fprintf(&b, "## %s: %s (%s is better)\n\n", model, col, map[int]string{-1: "smaller", 1: "larger"}[r.better(col)])
			b.WriteString("| sampler / schedule / guiders |")
			for _, a := range at {
				fmt.Fprintf(&b, " %s |", strings.Replace(a, "=", " ", 1))
			}
			b.WriteString("\n|---|" + strings.Repeat("---|", len(at)) + "\n")
			for _, l := range lanes {
				fmt.Fprintf(&b, "| %s |", strings.TrimPrefix(l.name, model+"/"))
				for _, a := range at {
					b.WriteString(" " + cellText(l.cells[a], col, a) + " |")
				}
				b.WriteString("\n")
			}
			b.WriteString("\n")
			b.WriteString(differences(model, col, lanes, at))
			if r.better(col) < 0 {
				b.WriteString(r.excess(model, col, lanes, at))
			}
		}
	}
	b.WriteString(r.notes())
	_, err := io.WriteString(w, b.String())
	return err
}

// differences is a table of a score less that of the first lane at the same budget, with the error of pairs: the seeds
// are the same, so it is far smaller than that of either score. Empty where the score has no jackknife.
func differences(model, col string, lanes []lane, at []string) string {
	var b strings.Builder
	some := false
	for _, l := range lanes[min(1, len(lanes)):] {
		fmt.Fprintf(&b, "| %s |", strings.TrimPrefix(l.name, model+"/"))
		for _, a := range at {
			was, ok := lanes[0].cells[a].Score(col)
			now, too := l.cells[a].Score(col)
			if c := change(lanes[0].cells[a], l.cells[a], col, was, now); ok && too && c.Paired {
				some = true
				fmt.Fprintf(&b, " %+.3g ± %.2g |", c.New-c.Old, c.Err)
			} else {
				b.WriteString(" - |")
			}
		}
		b.WriteString("\n")
	}
	if !some {
		return ""
	}
	head := fmt.Sprintf("%s less that of %s, in pairs of seeds:\n\n| sampler / schedule / guiders |", col, strings.TrimPrefix(lanes[0].name, model+"/"))
	for _, a := range at {
		head += " " + strings.Replace(a, "=", " ", 1) + " |"
	}
	return head + "\n|---|" + strings.Repeat("---|", len(at)) + "\n" + b.String() + "\n"
}

// excess is a table of a score less that of the limit, what all samplers come to with many steps, and of its ratio to
// that of the best fixed solver of the budget (the smallest score among samplers and schedules that no file describes),
// with 95 % intervals from the jackknife over blocks of seeds, which are the same everywhere.
func (r Report) excess(model, col string, lanes []lane, at []string) string {
	var b strings.Builder
	limit := func(c ReportCell) (Score, bool) {
		for _, l := range r.Limits {
			if l.Model == c.Model && l.Guiders == c.Guiders {
				return l.Score(col)
			}
		}
		return Score{}, false
	}
	known := func(c ReportCell) (s, l Score, ok bool) {
		s, ok = c.Score(col)
		l, has := limit(c)
		return s, l, ok && has && col == s.Metric && len(s.Jackknife) > 0 && len(s.Jackknife) == len(l.Jackknife)
	}
	for _, a := range at {
		type line struct {
			name  string
			s, l  Score
			fixed bool
		}
		var lines []line
		for _, l := range lanes {
			s, lim, ok := known(l.cells[a])
			if !ok {
				continue
			}
			c := l.cells[a]
			lines = append(lines, line{name: strings.TrimPrefix(l.name, model+"/"), s: s, l: lim, fixed: c.Schedule != ownNodes && !strings.HasPrefix(c.Schedule, "@")})
		}
		if len(lines) == 0 {
			continue
		}
		slices.SortStableFunc(lines, func(x, y line) int { return cmp.Compare(x.s.Value, y.s.Value) })
		best := slices.IndexFunc(lines, func(l line) bool { return l.fixed })
		fmt.Fprintf(&b, "%s at %s less that of %s (%s), and its ratio to that of the best fixed solver, with 95 %% intervals in pairs of seeds:\n\n| sampler / schedule / guiders | excess %s | interval | ratio | interval |\n|---|---|---|---|---|\n",
			col, strings.Replace(a, "=", " ", 1), r.Matrix.Limit, short(lines[0].l.Value), col)
		for _, l := range lines {
			d := func(k int) float64 { return l.s.Jackknife[k] - l.l.Jackknife[k] }
			e := l.s.Value - l.l.Value
			err := spread(len(l.s.Jackknife), d)
			fmt.Fprintf(&b, "| %s | %s | [%s, %s] |", l.name, short(e), short(e-1.96*err), short(e+1.96*err))
			if best < 0 || len(lines[best].s.Jackknife) != len(l.s.Jackknife) {
				b.WriteString(" - | - |\n")
				continue
			}
			f := lines[best]
			base := f.s.Value - f.l.Value
			q := spread(len(l.s.Jackknife), func(k int) float64 { return d(k) / (f.s.Jackknife[k] - f.l.Jackknife[k]) })
			if !(base > 1.96*spread(len(f.s.Jackknife), func(k int) float64 { return f.s.Jackknife[k] - f.l.Jackknife[k] })) {
				b.WriteString(" - | the best fixed solver has no excess to speak of |\n")
				continue
			}
			fmt.Fprintf(&b, " %s | [%s, %s] |\n", short(e/base), short(e/base-1.96*q), short(e/base+1.96*q))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// spread is the jackknife's standard error of a function of the values without block k.
func spread(n int, of func(k int) float64) float64 {
	v := make([]float64, n)
	for k := range v {
		v[k] = of(k)
	}
	return metrics.JackknifeError(v)
}

// cellText is a number with its standard error, and the true evaluations where they are not the budget.
func cellText(c ReportCell, col, at string) string {
	s, ok := c.Score(col)
	if !ok {
		return "-"
	}
	text := short(s.Number(col))
	if e := stderrOf(s, col, func(v float64) string { return strconv.FormatFloat(v, 'g', 2, 64) }); e != "" {
		text += " ± " + e
	}
	var more []string
	if at != "nfe="+number(c.NFE) {
		more = append(more, strconv.FormatFloat(c.NFE, 'f', -1, 64))
	}
	if c.Steps > 0 && float64(c.Steps) != c.NFE && at != "steps="+strconv.Itoa(c.Steps) {
		more = append(more, strconv.Itoa(c.Steps)+" steps")
	}
	if len(more) > 0 {
		text += " (" + strings.Join(more, ", ") + ")"
	}
	return text
}

// notes say how the tables are to be read.
func (r Report) notes() string {
	var b strings.Builder
	last := r.Matrix.Seed + uint64(max(1, r.Matrix.Count)-1)
	if r.Matrix.Verb != "" {
		fmt.Fprintf(&b, "%d seeds per cell, %d to %d in every cell. NFE, VJPs and rewards are what a seed cost: evaluations of the model by one row, products with its Jacobian, evaluations of the reward; ± is one standard error over seeds (of a difference: over pairs), [a, b] a 95 %% interval. A dash: no result, see below.\n\n", r.Matrix.Count, r.Matrix.Seed, last)
	} else {
		fmt.Fprintf(&b, "%d samples per cell, seeds %d to %d in every cell. In brackets stand the true count of evaluations per sample where it is not the budget itself, and the number of steps where that is another; ± is one standard error over samples. A dash: no result, see below.\n\n", r.Matrix.Count, r.Matrix.Seed, last)
	}
	var about []string
	warned := map[string]int{}
	for _, c := range slices.Concat(r.Limits, r.Cells) {
		for _, s := range c.Scores {
			if line := "- " + s.About(); !slices.Contains(about, line) {
				about = append(about, line)
			}
			for _, w := range s.Warnings {
				warned[s.Metric+": "+w]++
			}
		}
	}
	slices.Sort(about)
	b.WriteString(strings.Join(about, "\n") + "\n")
	var lines []string
	for w, n := range warned {
		lines = append(lines, fmt.Sprintf("- warning in %d cells: %s", n, w))
	}
	for _, c := range r.Cells {
		if c.Status != statusDone {
			lines = append(lines, fmt.Sprintf("- %s %s: %s", c.Name(), c.At(), c.Status))
		} else if c.Note != "" {
			lines = append(lines, fmt.Sprintf("- %s %s: %s", c.Name(), c.At(), c.Note))
		}
	}
	slices.Sort(lines)
	if len(lines) > 0 {
		b.WriteString(strings.Join(lines, "\n") + "\n")
	}
	return b.String()
}

// benchstat writes the format of Go benchmarks, which benchstat reads.
func (r Report) benchstat(w io.Writer) error {
	var b strings.Builder
	for _, c := range r.Cells {
		if c.Status != statusDone {
			continue
		}
		name := strings.Map(func(x rune) rune {
			if x == ' ' || x == '\t' {
				return '_'
			}
			return x
		}, c.Name()+"/"+c.At())
		fmt.Fprintf(&b, "Benchmark%s %d %s evals/sample", strings.ToUpper(name[:1])+name[1:], c.N, number(c.NFE))
		for _, col := range r.Columns() {
			if s, ok := c.Score(col); ok {
				fmt.Fprintf(&b, " %s %s", number(s.Number(col)), col)
			}
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// times writes what the cells took.
func times(w io.Writer, rows []Row) error {
	out := csv.NewWriter(w)
	_ = out.Write([]string{"model", "sampler", "schedule", "guiders", "budget", "nfe", "images", "seconds", "model_seconds", "ms_per_image"}) // sticky
	seen := map[string]bool{}
	for _, r := range rows {
		if r.Time.Images == 0 || seen[r.Key] {
			continue
		}
		seen[r.Key] = true
		_ = out.Write([]string{r.Model, r.Sampler, r.Schedule, r.Guiders, positive(r.Budget), number(r.NFE), strconv.Itoa(r.Time.Images),
			fmt.Sprintf("%.3f", r.Time.Seconds), fmt.Sprintf("%.3f", r.Time.Model), fmt.Sprintf("%.3f", 1000*r.Time.Seconds/float64(r.Time.Images))})
	}
	out.Flush()
	return out.Error()
}
