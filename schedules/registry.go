package schedules

import (
	"fmt"
	"strings"

	"drift/internal/spec"
)

// Option is one option of a named schedule.
type Option struct{ Name, Default, Doc string }

// Schedule is one entry of the list of named schedules.
type Schedule struct {
	Name    string
	Doc     string // one line
	Source  string // where the rule comes from
	Aliases []string
	Options []Option

	final func(endGiven bool) string
	build func(s span, o *spec.Options) (Grid, error)
}

var registry = []Schedule{
	{
		Name: "karras", Doc: "sigma^(1/rho) linear, then 0", Source: "Karras et al. 2022, eq. 5",
		Aliases: []string{"use-karras-sigmas", "polynomial"},
		Options: []Option{{"rho", "7", "larger puts more nodes at small sigma"}},
		final:   toZero, build: karras,
	},
	{
		Name: "lambda", Doc: "log(alpha/sigma) linear", Source: "Lu et al. 2022, DPM-Solver",
		Aliases: []string{"logsnr", "use-lu-lambdas"},
		final:   toGivenEnd, build: lambda,
	},
	{
		Name: "exponential", Doc: "log sigma linear, then 0", Source: "k-diffusion",
		Aliases: []string{"use-exponential-sigmas"},
		final:   toZero, build: lambda,
	},
	{
		Name: "time", Doc: "the process's own time linear", Source: "Song et al. 2021",
		Aliases: []string{"time-uniform", "uniform"},
		final:   toGivenEnd, build: ownTime,
	},
	{
		Name: "flow", Doc: "flow time sigma/(alpha+sigma) linear, then shifted towards noise: shift u/(1+(shift-1)u)", Source: "Esser et al. 2024, Stable Diffusion 3, eq. 23",
		Options: []Option{{"shift", "1", "3 in Stable Diffusion 3"}},
		final:   toGivenEnd, build: flow,
	},
}

// Schedules returns the named schedules in the order in which they are listed.
func Schedules() []Schedule { return append([]Schedule(nil), registry...) }

// Lookup returns the schedule with the given name or alias; case, spaces and underscores do not matter. The error
// names the nearest ones.
func Lookup(name string) (Schedule, error) {
	want := canonical(name)
	var names []string
	for _, s := range registry {
		names = append(names, s.Name)
		if s.Name == want {
			return s, nil
		}
		for _, a := range s.Aliases {
			if a == want {
				return s, nil
			}
		}
	}
	return Schedule{}, fmt.Errorf("schedules: unknown schedule %q%s", name, spec.Suggest(want, names))
}

func canonical(name string) string {
	return strings.NewReplacer("_", "-", " ", "-").Replace(strings.ToLower(strings.TrimSpace(name)))
}

// DefaultGrid returns the name of the schedule that suits p when nothing is asked for.
func DefaultGrid(p Process) string {
	switch p := p.(type) {
	case Flow, Trig:
		return "flow"
	case *VPDiscrete:
		if p.betas.ZeroSNR {
			return "trailing"
		}
	case Interpolant, *Interpolant:
		return "time"
	}
	return "karras"
}
