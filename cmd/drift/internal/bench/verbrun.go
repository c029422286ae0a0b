package bench

import (
	"encoding/csv"
	"io"
	"math"
	"strconv"

	"drift/metrics"
)

// description is what the file beside a cell's results says about it.
func (c *Cell) description() any {
	if c.open == nil {
		return c.Run
	}
	return c.facts.Settings
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
