// Package spec reads the "name:key=value,key=value" strings that name samplers, schedules and guiders on the
// command line, and hands out their options with types, ranges and helpful errors.
package spec

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Spec is a name with options, as in "unipc:order=3,variant=bh2".
type Spec struct {
	Name string
	Args []Arg
}

// Arg is one key=value option. A bare key stands for key=true.
type Arg struct{ Key, Value string }

// Parse splits s into its name and options. It checks the form only; the meaning of the options is checked by
// whoever reads them through Options.
func Parse(s string) (Spec, error) {
	name, rest, more := strings.Cut(strings.TrimSpace(s), ":")
	out := Spec{Name: strings.TrimSpace(name)}
	if out.Name == "" {
		return Spec{}, fmt.Errorf("empty name in %q", s)
	}
	if !more {
		return out, nil
	}
	for _, part := range Split(rest) {
		key, value, has := strings.Cut(part, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if key == "" {
			return Spec{}, fmt.Errorf("empty option in %q", s)
		}
		if !has {
			value = "true"
		}
		if slices.ContainsFunc(out.Args, func(a Arg) bool { return a.Key == key }) {
			return Spec{}, fmt.Errorf("option %q is given twice in %q", key, s)
		}
		out.Args = append(out.Args, Arg{key, value})
	}
	return out, nil
}

// Split cuts s at its commas, except those inside parentheses.
func Split(s string) []string {
	var out []string
	depth, from := 0, 0
	for i, c := range []byte(s) {
		switch {
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == ',' && depth <= 0:
			out, from = append(out, s[from:i]), i+1
		}
	}
	return append(out, s[from:])
}

// String writes the spec back in the form Parse reads.
func (s Spec) String() string {
	var b strings.Builder
	b.WriteString(s.Name)
	for i, a := range s.Args {
		b.WriteByte(",:"[b2i(i == 0)])
		b.WriteString(a.Key + "=" + a.Value)
	}
	return b.String()
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Options reads the options of a Spec one by one and remembers what was asked, so that Err can name the options
// nobody asked for. The first error wins; later reads return the default.
type Options struct {
	spec  Spec
	asked []string
	err   error
}

// Options starts reading the options of s.
func (s Spec) Options() *Options { return &Options{spec: s} }

func (o *Options) lookup(key string) (string, bool) {
	o.asked = append(o.asked, key)
	for _, a := range o.spec.Args {
		if a.Key == key {
			return a.Value, true
		}
	}
	return "", false
}

func (o *Options) fail(key, value, want string) {
	if o.err == nil {
		o.err = fmt.Errorf("%s: option %s=%s: want %s", o.spec.Name, key, value, want)
	}
}

// Has tells whether the option was given.
func (o *Options) Has(key string) bool { _, ok := o.lookup(key); return ok }

// Float returns a finite number, or def when the option is absent.
func (o *Options) Float(key string, def float64) float64 {
	return o.FloatIn(key, def, math.Inf(-1), math.Inf(1))
}

// FloatIn is Float with a closed range.
func (o *Options) FloatIn(key string, def, lo, hi float64) float64 {
	s, ok := o.lookup(key)
	if !ok {
		return def
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		o.fail(key, s, "a finite number")
		return def
	}
	if v < lo || v > hi {
		o.fail(key, s, fmt.Sprintf("a number from %g to %g", lo, hi))
		return def
	}
	return v
}

// Int returns an integer in [lo, hi], or def when the option is absent.
func (o *Options) Int(key string, def, lo, hi int) int {
	s, ok := o.lookup(key)
	if !ok {
		return def
	}
	v, err := strconv.Atoi(s)
	if err != nil || v < lo || v > hi {
		o.fail(key, s, fmt.Sprintf("an integer from %d to %d", lo, hi))
		return def
	}
	return v
}

// Bool returns true or false, or def when the option is absent.
func (o *Options) Bool(key string, def bool) bool {
	s, ok := o.lookup(key)
	if !ok {
		return def
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		o.fail(key, s, "true or false")
		return def
	}
	return v
}

// Choice returns one of the allowed words, or the first of them when the option is absent.
func (o *Options) Choice(key string, allowed ...string) string {
	s, ok := o.lookup(key)
	if !ok {
		return allowed[0]
	}
	if !slices.Contains(allowed, s) {
		o.fail(key, s, "one of "+strings.Join(allowed, ", "))
		return allowed[0]
	}
	return s
}

// Text returns the option as it stands, or def when it is absent.
func (o *Options) Text(key, def string) string {
	if s, ok := o.lookup(key); ok {
		return s
	}
	return def
}

// Err returns the first bad value, or an error that names an option nobody asked for.
func (o *Options) Err() error {
	if o.err != nil {
		return o.err
	}
	for _, a := range o.spec.Args {
		if !slices.Contains(o.asked, a.Key) {
			return fmt.Errorf("%s: unknown option %q%s", o.spec.Name, a.Key, Suggest(a.Key, o.asked))
		}
	}
	return nil
}

// Suggest returns "; did you mean ...?" with the names nearest to name, or the whole list when none is near and the
// list is short, or nothing.
func Suggest(name string, names []string) string {
	near := Nearest(name, names, 3)
	switch {
	case len(near) > 0:
		return "; did you mean " + strings.Join(near, ", ") + "?"
	case len(names) > 0 && len(names) <= 12:
		sorted := slices.Compact(slices.Sorted(slices.Values(names)))
		return "; known: " + strings.Join(sorted, ", ")
	}
	return ""
}

// Nearest returns at most max of the names that lie within an edit distance of a third of their length (at least 2)
// from name, or contain it, nearest first.
func Nearest(name string, names []string, max int) []string {
	type hit struct {
		name string
		d    int
	}
	var hits []hit
	low := strings.ToLower(name)
	for _, n := range names {
		l := strings.ToLower(n)
		d := distance(low, l)
		if len(low) >= 3 && strings.Contains(l, low) {
			d = min(d, 1)
		}
		if d <= len(n)/3 || (d <= 2 && d < len(n)) {
			hits = append(hits, hit{n, d})
		}
	}
	slices.SortStableFunc(hits, func(a, b hit) int {
		if a.d != b.d {
			return a.d - b.d
		}
		return strings.Compare(a.name, b.name)
	})
	var out []string
	for _, h := range hits {
		if len(out) < max && !slices.Contains(out, h.name) {
			out = append(out, h.name)
		}
	}
	return out
}

// distance is the Levenshtein distance of two byte strings.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag + b2i(a[i] != b[j])
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, diag+1)
		}
	}
	return row[len(b)]
}
