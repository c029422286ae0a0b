package samplers

import (
	"fmt"
	"slices"
	"strings"

	"drift/internal/spec"
)

// Info is one row of the table of samplers.
type Info struct {
	Name    string
	Summary string // one line
	Source  string // paper and equation, or reference
	Order   string // order of convergence
	NFE     string // evaluations per step
	Aliases []string
	Options []Option
	// New makes the sampler from its options.
	New func(o *spec.Options) (Sampler, error)
}

// Option describes one option of a sampler.
type Option struct{ Name, Default, Help string }

var table = map[string]Info{} // written by register in init functions only

// register adds a row; every solver file does it once, in init.
func register(i Info) {
	if _, twice := table[i.Name]; twice {
		panic("samplers: registered twice: " + i.Name)
	}
	table[i.Name] = i
}

// List returns the table, sorted by name.
func List() []Info {
	out := make([]Info, 0, len(table))
	for _, i := range table {
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Parse makes the sampler that a string like "unipc:order=3" names. Peers' names are accepted (see Resolve).
func Parse(s string) (Sampler, error) {
	canonical, _, err := Resolve(s)
	if err != nil {
		return nil, err
	}
	sp, err := spec.Parse(canonical)
	if err != nil {
		return nil, fmt.Errorf("samplers: %w", err)
	}
	o := sp.Options()
	made, err := table[sp.Name].New(o)
	if e := o.Err(); e != nil { // a bad option says more than what came of it
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("samplers: %w", err)
	}
	return made, nil
}

// Resolve turns a name as users of other tools write it ("DPM++ 2M Karras", "dpmpp_2m", "euler_a",
// "DPMSolverMultistepScheduler") into this table's spelling, and the schedule that the name implies, if any. "@FILE" is a
// solver schedule that drift search wrote.
func Resolve(s string) (sampler, schedule string, err error) {
	if path, ok := strings.CutPrefix(strings.TrimSpace(s), "@"); ok {
		return "usf:schedule=" + path, "", nil
	}
	name, rest, more := strings.Cut(strings.TrimSpace(s), ":")
	name = strings.TrimSpace(name)
	if more {
		rest = ":" + rest
	}
	if _, ok := table[name]; ok {
		return name + rest, "", nil
	}
	if name == "" {
		return "", "", fmt.Errorf("samplers: empty sampler name in %q", s)
	}
	key := plain(name)
	for _, suffix := range []string{"karras", "polyexponential", "exponential", "beta", "simple", "sgmuniform", "trailing"} {
		if cut, ok := strings.CutSuffix(key, suffix); ok && cut != "" {
			key, schedule = cut, strings.Replace(suffix, "sgmuniform", "sgm-uniform", 1)
			break
		}
	}
	var names []string
	for _, i := range List() {
		for _, a := range append([]string{i.Name}, i.Aliases...) {
			alias, options, _ := strings.Cut(a, ":") // an alias may stand for a name with options
			if plain(alias) == key {
				if options != "" && rest == "" {
					rest = ":" + options
				}
				return i.Name + rest, schedule, nil
			}
		}
		names = append(names, i.Name)
	}
	return "", "", fmt.Errorf("samplers: unknown sampler %q%s", name, spec.Suggest(name, names))
}

// plain is a name without case, spaces and punctuation: "DPM++ 2M" and "dpmpp_2m" are the same.
func plain(s string) string {
	s = strings.ToLower(strings.ReplaceAll(s, "++", "pp"))
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '_' || r == '-' || r == '.' {
			return -1
		}
		return r
	}, s)
}
