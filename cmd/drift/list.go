package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/reward"
	"drift/guidance"
	"drift/internal/spec"
	"drift/samplers"
	"drift/schedules"
	"drift/smc"
)

// entry is one registered name.
type entry struct {
	Name    string        `json:"name"`
	Summary string        `json:"summary"`
	Source  string        `json:"source,omitempty"`
	Order   string        `json:"order,omitempty"`
	NFE     string        `json:"nfe_per_step,omitempty"`
	VJP     *bool         `json:"vjp,omitempty"`
	Noise   *bool         `json:"noise,omitempty"`
	Stable  float64       `json:"stable_to,omitempty"` // |z| on the real axis, exact
	Aliases []string      `json:"aliases,omitempty"`
	Options []entryOption `json:"options,omitempty"`
}

type entryOption struct {
	Name    string `json:"name"`
	Default string `json:"default"`
	Help    string `json:"help"`
}

// lists are what drift list knows; each gives its entries in order.
var lists = []struct {
	name    string
	entries func(a *app) []entry
}{
	{"samplers", func(*app) []entry {
		var out []entry
		for _, i := range samplers.List() {
			e := entry{Name: i.Name, Summary: i.Summary, Source: i.Source, Order: i.Order, NFE: i.NFE, Aliases: i.Aliases}
			for _, o := range i.Options {
				e.Options = append(e.Options, entryOption(o))
			}
			if s, err := samplers.Parse(i.Name); err == nil {
				n := s.Needs()
				e.VJP, e.Noise = &n.VJP, &n.Noise
				if r, ok := s.(samplers.Recurrent); ok {
					e.Stable = samplers.Stability(r)
				}
			}
			out = append(out, e)
		}
		return out
	}},
	{"schedules", func(*app) []entry {
		var out []entry
		for _, i := range schedules.Schedules() {
			e := entry{Name: i.Name, Summary: i.Doc, Source: i.Source, Aliases: i.Aliases}
			for _, o := range i.Options {
				e.Options = append(e.Options, entryOption{o.Name, o.Default, o.Doc})
			}
			out = append(out, e)
		}
		return out
	}},
	{"models", (*app).modelEntries},
	{"metrics", metricEntries},
	{"rewards", func(*app) []entry {
		var out []entry
		for _, f := range reward.Forms() {
			out = append(out, entry{Name: f.Name, Summary: f.Summary})
		}
		for _, name := range reward.Networks() {
			out = append(out, entry{Name: name, Summary: "a network for logp, prob and feat"})
		}
		return out
	}},
	{"resamplers", func(*app) []entry {
		var out []entry
		for _, r := range smc.Resamplers() {
			out = append(out, entry{Name: r.String(), Summary: r.Summary()})
		}
		return out
	}},
	{"guiders", func(*app) []entry {
		var out []entry
		for _, i := range guidance.List() {
			e := entry{Name: i.Name, Summary: i.Summary, Source: i.Source, NFE: i.NFE, VJP: &i.VJP}
			for _, o := range i.Options {
				e.Options = append(e.Options, entryOption(o))
			}
			out = append(out, e)
		}
		return out
	}},
	{"tasks", taskEntries},
	{"restorers", restorerEntries},
}

func listVerb(a *app) *cli.Command {
	var names []string
	for _, l := range lists {
		names = append(names, l.name)
	}
	return &cli.Command{
		Name: "list", Usage: "list what is registered: " + strings.Join(names, ", "), UsageText: strings.Join(names, "|"),
		Description: "--json prints one object per name, with options, defaults, evaluations per step and whether a gradient is needed.",
		Action: func(c *cli.Context) error {
			what, err := oneArg(c, "one of "+strings.Join(names, ", "))
			if err != nil {
				return err
			}
			for _, l := range lists {
				if l.name == what || l.name == what+"s" {
					for _, e := range l.entries(a) {
						a.printEntry(e)
					}
					return nil
				}
			}
			return usagef("list: unknown list %q%s", what, spec.Suggest(what, names))
		},
	}
}

func (a *app) printEntry(e entry) {
	if a.json {
		a.emit(e)
		return
	}
	fmt.Fprintf(a.out, "%-20s %s\n", e.Name, e.Summary)
	var facts []string
	if e.Order != "" {
		facts = append(facts, "order "+e.Order)
	}
	if e.NFE != "" {
		facts = append(facts, e.NFE+" NFE per step")
	}
	if e.Stable != 0 {
		facts = append(facts, fmt.Sprintf("stable to |z| = %.4f", e.Stable))
	}
	if e.Source != "" {
		facts = append(facts, e.Source)
	}
	if len(facts) > 0 {
		fmt.Fprintf(a.out, "%-20s   %s\n", "", strings.Join(facts, "; "))
	}
	if len(e.Aliases) > 0 {
		fmt.Fprintf(a.out, "%-20s   also: %s\n", "", strings.Join(e.Aliases, ", "))
	}
	for _, o := range e.Options {
		fmt.Fprintf(a.out, "%-20s   %-26s %s\n", "", o.Name+"="+o.Default, o.Help)
	}
}
