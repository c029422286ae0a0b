package bench

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"

	"drift/metrics"
)

// Change is a number of one cell in two reports.
type Change struct {
	Cell   string  `json:"cell"`
	At     string  `json:"at"`
	Metric string  `json:"metric"`
	Old    float64 `json:"old"`
	New    float64 `json:"new"`
	OldErr float64 `json:"old_stderr,omitempty"`
	NewErr float64 `json:"new_stderr,omitempty"`
	Paired bool    `json:"paired"`          // same seeds: the error of the difference is of pairs
	Err    float64 `json:"stderr"`          // of the difference, 0 = unknown
	P      float64 `json:"p"`               // two-sided, normal; 1 where the error is unknown
	Better int     `json:"better"`          // -1 smaller, 1 larger
	Refuse string  `json:"error,omitempty"` // why the two cannot be compared
}

// Significant tells whether the change is more than noise at 5 %.
func (c Change) Significant() bool { return c.Refuse == "" && c.P < 0.05 && c.New != c.Old }

// Compare lines up the cells that two reports have in common. Scores of different extractors, references or numbers
// of samples are not compared.
func Compare(old, now Report) ([]Change, error) {
	type id struct{ name, at string }
	before := map[id]ReportCell{}
	for _, c := range old.Cells {
		if c.Status == statusDone {
			before[id{c.Name(), c.At()}] = c
		}
	}
	var out []Change
	for _, c := range now.Cells {
		o, ok := before[id{c.Name(), c.At()}]
		if !ok || c.Status != statusDone {
			continue
		}
		for _, col := range now.Columns() {
			a, has := o.Score(col)
			b, hasToo := c.Score(col)
			if has && hasToo {
				out = append(out, change(o, c, col, a, b))
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("bench: the two benches have no finished cell and score in common")
	}
	return out, nil
}

func change(oc, nc ReportCell, col string, a, b Score) Change {
	c := Change{Cell: nc.Name(), At: nc.At(), Metric: col, Old: a.Number(col), New: b.Number(col), P: 1, Better: b.direction(col)}
	switch {
	case a.Extractor != b.Extractor || a.Resize != b.Resize:
		c.Refuse = "other extractor or resize rule"
	case a.RefHash != b.RefHash:
		c.Refuse = "other reference"
	case oc.N != nc.N:
		c.Refuse = fmt.Sprintf("%d and %d samples", oc.N, nc.N)
	case a.Settings != b.Settings:
		c.Refuse = "other settings"
	case oc.Run != nil && nc.Run != nil && oc.Run.Rounding != nc.Run.Rounding:
		c.Refuse = "other rounding"
	}
	if c.Refuse != "" {
		return c
	}
	c.OldErr, c.NewErr = a.Error(col), b.Error(col)
	c.Paired = col == b.Metric && oc.Seeds == nc.Seeds && len(a.Jackknife) == len(b.Jackknife) && len(a.Jackknife) > 0
	if c.Paired {
		d := make([]float64, len(a.Jackknife))
		for k := range d {
			d[k] = b.Jackknife[k] - a.Jackknife[k]
		}
		c.Err = metrics.JackknifeError(d)
	} else if c.OldErr > 0 && c.NewErr > 0 {
		c.Err = math.Hypot(c.OldErr, c.NewErr)
	}
	switch {
	case c.New == c.Old:
	case c.Err > 0:
		c.P = math.Erfc(math.Abs(c.New-c.Old) / c.Err / math.Sqrt2)
	}
	return c
}

// WriteComparison writes changes as benchstat does: old, new, and the difference in percent where it is more than noise.
func WriteComparison(w io.Writer, lines []Change) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	last := ""
	for _, c := range lines {
		if c.Metric != last {
			last = c.Metric
			fmt.Fprintf(t, "%s\told\tnew\tdelta\n", c.Metric)
		}
		delta := "~"
		switch {
		case c.Refuse != "":
			delta = "not comparable: " + c.Refuse
		case c.New == c.Old:
			delta = "equal"
		case c.Err == 0:
			delta = fmt.Sprintf("%s (error unknown)", percent(c))
		case c.Significant():
			word := "worse"
			if (c.New > c.Old) == (c.Better > 0) {
				word = "better"
			}
			delta = fmt.Sprintf("%s (p=%.3f%s) %s", percent(c), c.P, pairs(c), word)
		default:
			delta = fmt.Sprintf("~ (p=%.3f%s)", c.P, pairs(c))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", strings.TrimSpace(c.Cell+" "+c.At), withErr(c.Old, c.OldErr), withErr(c.New, c.NewErr), delta)
	}
	return t.Flush()
}

func percent(c Change) string {
	if c.Old == 0 {
		return fmt.Sprintf("%+.3g", c.New-c.Old)
	}
	return fmt.Sprintf("%+.2f%%", 100*(c.New-c.Old)/math.Abs(c.Old))
}

func pairs(c Change) string {
	if c.Paired {
		return " paired"
	}
	return ""
}

func withErr(v, e float64) string {
	if e == 0 || v == 0 {
		return short(v)
	}
	return fmt.Sprintf("%s ± %.0f%%", short(v), 100*e/math.Abs(v))
}
