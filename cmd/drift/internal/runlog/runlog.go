// Package runlog is the log of a run, for every verb: values of units (pictures, or groups of particles) and of their
// steps, written as one table (.csv or .jsonl) with chosen columns and order, and drawn.
//
// A verb says which columns it knows, puts values in as they come, in any order, and closes:
//
//	l, err := runlog.New(path, known, runlog.Choice{Columns: "seed,reward", Sort: "-reward"})
//	l.Put(unit, step, map[string]any{"reward": 0.3})
//	l.Put(unit, runlog.Whole, map[string]any{"seed": 7})
//	err = l.Close()
//
// There is one row per unit and step, in which the unit's own values are repeated; where only values of whole units are
// chosen, one row per unit. Scripts may add columns under their own names.
package runlog

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drift/cmd/drift/internal/output"
	"drift/internal/spec"
)

// Column is a column that a verb knows.
type Column struct {
	Name string
	Unit bool // one value per unit, none per step
	Hide bool // only where it is asked for
}

// Choice is what the user asks of the log.
type Choice struct {
	Columns string // names in order, separated by commas; "" = all
	Sort    string // a column, ascending, or -column, descending; "" = by unit and step
	Free    bool   // there are scripts, which may add columns
}

// Whole is the step of values that belong to a unit as a whole.
const Whole = -1

// Log is a log under way.
type Log struct {
	path    string
	known   []Column
	columns []string // chosen, or nil
	sort    string
	down    bool
	units   map[int]*unit
	extra   []string // names beyond the known, in the order of their first value
}

type unit struct {
	whole map[string]any
	steps map[int]map[string]any
}

// New starts a log. path is a .csv or .jsonl file, or empty: values are only kept, for drawing.
func New(path string, known []Column, c Choice) (*Log, error) {
	l := &Log{path: path, known: known, units: map[int]*unit{}}
	if ext := strings.ToLower(filepath.Ext(path)); path != "" && ext != ".csv" && ext != ".jsonl" {
		return nil, fmt.Errorf("%s: want a name that ends in .csv or .jsonl", path)
	}
	if c.Columns != "" {
		for name := range strings.SplitSeq(c.Columns, ",") {
			name = strings.TrimSpace(name)
			if err := l.check(name, c.Free); err != nil {
				return nil, err
			}
			l.columns = append(l.columns, name)
		}
	}
	if l.sort, l.down = strings.CutPrefix(c.Sort, "-"); l.sort != "" {
		if err := l.check(l.sort, c.Free); err != nil {
			return nil, err
		}
	}
	if path != "" {
		return l, output.Check(path)
	}
	return l, nil
}

// check refuses a column that nobody will fill.
func (l *Log) check(name string, free bool) error {
	if name == "" {
		return fmt.Errorf("a column without a name")
	}
	if _, ok := l.find(name); ok || free {
		return nil
	}
	var names []string
	for _, c := range l.known {
		names = append(names, c.Name)
	}
	return fmt.Errorf("unknown column %q%s; known: %s", name, spec.Suggest(name, names), strings.Join(names, ", "))
}

func (l *Log) find(name string) (Column, bool) {
	i := slices.IndexFunc(l.known, func(c Column) bool { return c.Name == name })
	if i < 0 {
		return Column{}, false
	}
	return l.known[i], true
}

// Wants tells whether a column is written or sorted by: what is costly to find may be left out otherwise.
func (l *Log) Wants(name string) bool {
	c, known := l.find(name)
	return slices.Contains(l.columns, name) || l.sort == name || l.columns == nil && !(known && c.Hide)
}

// Put adds values of a unit at a step, or at Whole. Values that are there already are replaced. Numbers that are not
// finite are written as inf, -inf and nan.
func (l *Log) Put(u, step int, values map[string]any) {
	un := l.units[u]
	if un == nil {
		un = &unit{whole: map[string]any{}, steps: map[int]map[string]any{}}
		l.units[u] = un
	}
	dst := un.whole
	if step != Whole {
		if un.steps[step] == nil {
			un.steps[step] = map[string]any{}
		}
		dst = un.steps[step]
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if _, known := l.find(name); !known && !slices.Contains(l.extra, name) {
			l.extra = append(l.extra, name)
		}
		dst[name] = values[name]
	}
}

// Columns lists the names that are written, in order.
func (l *Log) Columns() []string {
	if l.columns != nil {
		return l.columns
	}
	var out []string
	for _, c := range l.known {
		if !c.Hide {
			out = append(out, c.Name)
		}
	}
	return append(out, l.extra...)
}

// perStep tells whether a name has values at steps.
func (l *Log) perStep(name string) bool {
	if c, ok := l.find(name); ok {
		return !c.Unit
	}
	for _, u := range l.units {
		for _, s := range u.steps {
			if _, ok := s[name]; ok {
				return true
			}
		}
	}
	return false
}

// Rows returns the table.
func (l *Log) Rows() []map[string]any {
	steps := slices.ContainsFunc(append(slices.Clone(l.Columns()), l.sort), l.perStep)
	var out []map[string]any
	for _, k := range slices.Sorted(maps.Keys(l.units)) {
		u := l.units[k]
		if !steps || len(u.steps) == 0 {
			out = append(out, maps.Clone(u.whole))
			continue
		}
		for _, s := range slices.Sorted(maps.Keys(u.steps)) {
			row := maps.Clone(u.whole)
			maps.Copy(row, u.steps[s])
			out = append(out, row)
		}
	}
	if l.sort != "" {
		slices.SortStableFunc(out, func(a, b map[string]any) int {
			c := compare(a[l.sort], b[l.sort])
			if l.down {
				c = -c
			}
			if x, y := a[l.sort] == nil, b[l.sort] == nil; x || y { // what is missing comes last, either way
				c = compareBool(x, y)
			}
			return c
		})
	}
	return out
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// compare orders numbers, NaN last, and texts.
func compare(a, b any) int {
	x, ok1 := number(a)
	y, ok2 := number(b)
	switch {
	case ok1 && ok2 && (math.IsNaN(x) || math.IsNaN(y)):
		return compareBool(math.IsNaN(x), math.IsNaN(y))
	case ok1 && ok2 && x < y:
		return -1
	case ok1 && ok2 && x > y:
		return 1
	case ok1 && ok2:
		return 0
	}
	return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
}

// number reads a value as a number.
func number(v any) (float64, bool) {
	switch v := v.(type) {
	case float64:
		return v, true
	case int:
		return float64(v), true
	case uint64:
		return float64(v), true
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	}
	return 0, false
}

// Close writes the log, where it has a file. A chosen column that got no value at all is an error: its name is a mistake.
func (l *Log) Close() error {
	if l.path == "" {
		return nil
	}
	rows, columns := l.Rows(), l.Columns()
	for _, name := range columns {
		if _, known := l.find(name); !known && len(rows) > 0 && !slices.Contains(l.extra, name) {
			return fmt.Errorf("%s: no script logged a column %q%s", l.path, name, spec.Suggest(name, l.extra))
		}
	}
	return output.Write(l.path, func(w io.Writer) error {
		if strings.EqualFold(filepath.Ext(l.path), ".jsonl") {
			return writeJSON(w, columns, rows)
		}
		return writeCSV(w, columns, rows)
	})
}

func writeJSON(w io.Writer, columns []string, rows []map[string]any) error {
	b := bufio.NewWriter(w)
	e := json.NewEncoder(b)
	for _, row := range rows {
		kept := make(map[string]any, len(columns))
		for _, c := range columns {
			if v, ok := row[c]; ok && v != nil {
				kept[c] = plain(v)
			}
		}
		if err := e.Encode(kept); err != nil {
			return err
		}
	}
	return b.Flush()
}

func writeCSV(w io.Writer, columns []string, rows []map[string]any) error {
	c := csv.NewWriter(w)
	if err := c.Write(columns); err != nil {
		return err
	}
	record := make([]string, len(columns))
	for _, row := range rows {
		for j, name := range columns {
			record[j] = cell(row[name])
		}
		if err := c.Write(record); err != nil {
			return err
		}
	}
	c.Flush()
	return c.Error()
}

// plain makes a value that JSON can hold.
func plain(v any) any {
	if f, ok := v.(float64); ok && f-f != 0 {
		return cell(f)
	}
	return v
}

func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case float64:
		switch {
		case math.IsNaN(v):
			return "nan"
		case math.IsInf(v, 1):
			return "inf"
		case math.IsInf(v, -1):
			return "-inf"
		}
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	return fmt.Sprint(v)
}
