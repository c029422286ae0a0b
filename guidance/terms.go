package guidance

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"drift/internal/spec"
)

// Term is one model of a composition as a user writes it.
type Term struct {
	Name   string  // of the term, or the model's with its class
	Model  string  // a name or a file
	Class  string  // class to ask with, by number or name; empty = that of the row
	Weight float64 // 1 where nothing is said
}

// ParseTerms reads compositions:
//
//	a:fashion:sneaker,b:fashion:bag       names, models and classes, separated by commas; or a model alone
//	0.7*a + 0.3*b                         a weighted sum of names, or of models
//	fashion:sneaker - 0.5*fashion:bag
//
// Several texts belong together: names given in one may be used in the sum of another. weights is a list like "1,1" for
// models that stand in no sum. A term is NAME, or MODEL, or MODEL:CLASS; a model whose own name has a colon, a comma, a star
// or a plus in it cannot be written. A minus with no blank around it belongs to the name (fashion-flow).
func ParseTerms(texts []string, weights string) ([]Term, error) {
	var named, sum []Term
	for _, text := range texts {
		if strings.TrimSpace(text) == "" {
			return nil, fmt.Errorf("guidance: compose: an empty text: want a:MODEL[:CLASS],b:... or 0.7*a + 0.3*b")
		}
		if isSum(text) {
			if sum != nil {
				return nil, fmt.Errorf("guidance: compose: %q is a second sum", text)
			}
			var err error
			if sum, err = parseSum(text); err != nil {
				return nil, fmt.Errorf("guidance: compose: %q: %w", text, err)
			}
			continue
		}
		for part := range strings.SplitSeq(text, ",") {
			t, err := parseDefinition(part)
			if err != nil {
				return nil, fmt.Errorf("guidance: compose: %w", err)
			}
			if slices.ContainsFunc(named, func(o Term) bool { return o.Name == t.Name }) {
				return nil, fmt.Errorf("guidance: compose: the name %s is given twice", t.Name)
			}
			named = append(named, t)
		}
	}
	out := named
	if sum != nil {
		if weights != "" {
			return nil, fmt.Errorf("guidance: compose: weights %s beside a sum that has its own", weights)
		}
		var err error
		if out, err = lookUp(sum, named); err != nil {
			return nil, fmt.Errorf("guidance: compose: %w", err)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("guidance: compose: there is no model")
	}
	if weights != "" {
		list := strings.Split(weights, ",")
		if len(list) != len(out) {
			return nil, fmt.Errorf("guidance: compose: %d weights for %d models", len(list), len(out))
		}
		for i, w := range list {
			v, err := strconv.ParseFloat(strings.TrimSpace(w), 64)
			if err != nil || v-v != 0 {
				return nil, fmt.Errorf("guidance: compose: weight %q is not a finite number", w)
			}
			out[i].Weight = v
		}
	}
	return out, nil
}

// isSum tells a sum from a list of definitions: it has a star, or a sign that stands apart.
func isSum(text string) bool {
	t := strings.TrimSpace(text)
	return strings.ContainsAny(t, "*+") || strings.HasPrefix(t, "-") || strings.Contains(t, " - ")
}

// parseDefinition reads NAME:MODEL or NAME:MODEL:CLASS, or MODEL alone.
func parseDefinition(text string) (Term, error) {
	parts := strings.Split(strings.TrimSpace(text), ":")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	if len(parts) == 1 {
		parts = append(parts, parts[0])
	}
	if len(parts) > 3 || slices.Contains(parts, "") {
		return Term{}, fmt.Errorf("%q: want NAME:MODEL or NAME:MODEL:CLASS", text)
	}
	t := Term{Name: parts[0], Model: parts[1], Weight: 1}
	if len(parts) == 3 {
		t.Class = parts[2]
	}
	return t, nil
}

// parseSum reads terms like 0.7*a, -b or fashion:bag with signs between them. What stands in Name is to be looked up.
func parseSum(text string) ([]Term, error) {
	var out []Term
	sign, from := 1.0, 0
	open := false // a term has begun
	finish := func(to int) error {
		t, err := parseTerm(text[from:to])
		t.Weight *= sign
		out = append(out, t)
		return err
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		blank := func(j int) bool { return j < 0 || j >= len(text) || text[j] == ' ' || text[j] == '\t' }
		plus := c == '+' && !exponent(text, i)
		minus := c == '-' && !exponent(text, i) && (!open || blank(i-1))
		switch {
		case blank(i):
		case !plus && !minus:
			if !open {
				open, from = true, i
			}
		case open:
			if err := finish(i); err != nil {
				return nil, err
			}
			sign, open = 1, false
			if minus {
				sign = -1
			}
		case strings.TrimSpace(text[:i]) != "":
			return nil, fmt.Errorf("a sign without a term before place %d", i+1)
		case minus: // at the start
			sign = -1
		}
	}
	if !open {
		return nil, fmt.Errorf("a sign without a term at the end")
	}
	return out, finish(len(text))
}

// exponent tells whether the sign at i belongs to a number like 1e-3.
func exponent(s string, i int) bool {
	if i < 2 || s[i-1] != 'e' && s[i-1] != 'E' || i+1 >= len(s) || s[i+1] < '0' || s[i+1] > '9' {
		return false
	}
	j := i - 2
	for j >= 0 && (s[j] >= '0' && s[j] <= '9' || s[j] == '.') {
		j--
	}
	return j < i-2 && (j < 0 || s[j] == ' ' || s[j] == '+' || s[j] == '-')
}

func parseTerm(text string) (Term, error) {
	text = strings.TrimSpace(text)
	t := Term{Weight: 1, Name: text}
	if w, name, ok := strings.Cut(text, "*"); ok {
		v, err := strconv.ParseFloat(strings.TrimSpace(w), 64)
		if err != nil || v-v != 0 {
			return t, fmt.Errorf("%q is not a finite number", strings.TrimSpace(w))
		}
		t.Weight, t.Name = v, strings.TrimSpace(name)
	}
	if t.Name == "" || strings.Contains(t.Name, "*") || strings.ContainsAny(t.Name, " \t,") {
		return t, fmt.Errorf("%q: want WEIGHT*NAME", text)
	}
	return t, nil
}

// lookUp replaces names by what they stand for. One that was not given is a model itself, unless some were given.
func lookUp(sum, named []Term) ([]Term, error) {
	var out []Term
	used := map[string]bool{}
	for _, t := range sum {
		i := slices.IndexFunc(named, func(o Term) bool { return o.Name == t.Name })
		switch {
		case i >= 0:
			d := named[i]
			d.Weight = t.Weight
			t = d
		case len(named) > 0:
			var names []string
			for _, o := range named {
				names = append(names, o.Name)
			}
			return nil, fmt.Errorf("no model has the name %s%s", t.Name, spec.Suggest(t.Name, names))
		default:
			model, class, has := strings.Cut(t.Name, ":")
			if model == "" || has && (class == "" || strings.Contains(class, ":")) {
				return nil, fmt.Errorf("%q: want MODEL or MODEL:CLASS", t.Name)
			}
			t.Model, t.Class = model, class
		}
		if used[t.Name] {
			return nil, fmt.Errorf("%s stands in the sum twice", t.Name)
		}
		used[t.Name] = true
		out = append(out, t)
	}
	for _, d := range named {
		if !used[d.Name] {
			return nil, fmt.Errorf("%s is given a model and does not stand in the sum", d.Name)
		}
	}
	return out, nil
}
