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
		Name: "exponential", Doc: "log sigma linear, then 0", Source: "k-diffusion, get_sigmas_exponential",
		Aliases: []string{"use-exponential-sigmas"},
		final:   toZero, build: lambda,
	},
	{
		Name: "polyexponential", Doc: "log sigma along (1-u)^rho, then 0", Source: "k-diffusion, get_sigmas_polyexponential",
		Options: []Option{{"rho", "1", "1 is exponential, larger puts more nodes at small sigma"}},
		final:   toZero, build: polyexponential,
	},
	{
		Name: "lambda", Doc: "log(alpha/sigma) linear; stops at a given end, without one goes on to 0", Source: "Lu et al. 2022, DPM-Solver, section 3.4",
		Aliases: []string{"logsnr", "use-lu-lambdas"},
		final:   toGivenEnd, build: lambda,
	},
	{
		Name: "time", Doc: "the process's own time linear; stops at a given end, without one runs to the clean end", Source: "Song et al. 2021",
		Aliases: []string{"time-uniform", "uniform"},
		final:   toGivenEnd, build: uniformTime,
	},
	{
		Name: "quadratic", Doc: "the root of the time from the clean end linear; stops at a given end, without one runs to the clean end", Source: "Song et al. 2020, DDIM, appendix D.2",
		Aliases: []string{"time-quadratic"},
		Options: []Option{{"power", "2", "time grows with this power"}},
		final:   toGivenEnd, build: quadratic,
	},
	{
		Name: "linspace", Doc: "whole timesteps, both ends included, then 0", Source: "Lin et al. 2024, table 2",
		final: toZero, build: evenTimesteps,
	},
	{
		Name: "leading", Doc: "whole timesteps counted up from the data end, then 0", Source: "Lin et al. 2024, table 2",
		Aliases: []string{"ddim-uniform"},
		Options: []Option{{"offset", "0", "added to every timestep; 1 in Stable Diffusion 1 and 2"}},
		final:   toZero, build: leading,
	},
	{
		Name: "trailing", Doc: "whole timesteps counted down from the noise end, then 0", Source: "Lin et al. 2024, table 2",
		final: toZero, build: trailing,
	},
	{
		Name: "lcm", Doc: "timesteps of a consistency distillation, counted down in equal strides, then 0: lcm and tcd with a LoRA", Source: "Luo et al. 2023, Latent Consistency Models; diffusers LCMScheduler",
		Options: []Option{{"original", "50", "timesteps of the distillation"}},
		final:   toZero, build: distillation,
	},
	{
		Name: "beta", Doc: "sigma (or the timestep) at quantiles of a Beta distribution, then 0", Source: "Lee et al. 2024, Beta Sampling is All You Need",
		Aliases: []string{"use-beta-sigmas"},
		Options: []Option{
			{"alpha", "0.6", "first parameter of the distribution"},
			{"beta", "0.6", "second parameter of the distribution"},
			{"in", "sigma", "sigma as diffusers does, or time as ComfyUI does (without its rounding to whole timesteps)"},
		},
		final: toZero, build: betaQuantiles,
	},
	{
		Name: "ays-sd15", Doc: "sigmas optimised for Stable Diffusion 1.5 at 10 steps, resampled log-linearly, then 0", Source: "Sabour et al. 2024, Align Your Steps",
		Aliases: []string{"ays", "align-your-steps"},
		final:   toZero, build: alignYourSteps([11]float64{14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0291671582}),
	},
	{
		Name: "ays-sdxl", Doc: "sigmas optimised for Stable Diffusion XL at 10 steps, resampled log-linearly, then 0", Source: "Sabour et al. 2024, Align Your Steps",
		final: toZero, build: alignYourSteps([11]float64{14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0291671582}),
	},
	{
		Name: "ays-svd", Doc: "sigmas optimised for Stable Video Diffusion at 10 steps, resampled log-linearly, then 0", Source: "Sabour et al. 2024, Align Your Steps",
		final: toZero, build: alignYourSteps([11]float64{700, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002}),
	},
	{
		Name: "sgm-uniform", Doc: "timesteps linear from the first, without the last, then 0", Source: "stable-diffusion.cpp, after Stability's generative-models",
		final: toZero, build: sgmUniform,
	},
	{
		Name: "simple", Doc: "whole timesteps from the first in strides cut to whole numbers, then 0", Source: "stable-diffusion.cpp, after ComfyUI",
		final: toZero, build: simple,
	},
	{
		Name: "flow", Doc: "flow time sigma/(alpha+sigma) linear in u, shifted towards noise: shift u/(1+(shift-1)u); stops at a given end, without one runs to the clean end", Source: "Esser et al. 2024, Stable Diffusion 3, eq. 23",
		Aliases: []string{"flow-shift", "use-flow-sigmas"},
		Options: []Option{
			{"shift", "1", "3 in Stable Diffusion 3"},
			{"terminal", "0", "above 0: stretch the noisy nodes so that the last has this flow time (LTX-Video 0.1)"},
		},
		final: toGivenEnd, build: flow,
	},
	{
		Name: "flow-dynamic", Doc: "flow with shift exp(mu), mu growing with the size of the image", Source: "Black Forest Labs 2024, FLUX.1",
		Aliases: []string{"use-dynamic-shifting"},
		Options: []Option{
			{"mu", "1.15", "the shift exponent"},
			{"tokens", "", "instead of mu: the number of image tokens, mu = 0.5 at 256 and 1.15 at 4096"},
			{"kind", "exponential", "exponential: shift = exp(mu); linear: shift = mu"},
			{"terminal", "0", "as in flow"},
		},
		final: toGivenEnd, build: flowDynamic,
	},
	{
		Name: "linear-quadratic", Doc: "time: half of the steps linear down to 1-threshold, then a parabola; stops at a given end, without one runs to the clean end", Source: "Genmo 2024, Mochi 1",
		Options: []Option{
			{"threshold", "0.025", "how far the linear part goes"},
			{"linear-steps", "n/2", "how many steps are linear"},
		},
		final: toGivenEnd, build: linearQuadratic,
	},
	{
		Name: "edm", Doc: "karras between sigma 80 and 0.002, as far as the process reaches, then 0", Source: "Karras et al. 2022, table 1",
		Options: []Option{{"rho", "7", "as in karras"}},
		final:   toZero, build: edm,
	},
}

// Schedules returns the named schedules in the order in which they are listed.
func Schedules() []Schedule { return append([]Schedule(nil), registry...) }

// Lookup returns the schedule with the given name or alias; case, spaces and underscores do not matter. The error
// names the nearest ones.
func Lookup(name string) (Schedule, error) { return prefixed(lookup(name)) }

func lookup(name string) (Schedule, error) {
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
	return Schedule{}, fmt.Errorf("unknown schedule %q%s", name, spec.Suggest(want, names))
}

func canonical(name string) string {
	return strings.NewReplacer("_", "-", " ", "-").Replace(strings.ToLower(strings.TrimSpace(name)))
}

// DefaultGrid returns the name of the schedule that suits p when nothing is asked for.
func DefaultGrid(p Process) string {
	switch p := p.(type) {
	case Flow:
		return "flow"
	case *VPDiscrete:
		if p.betas.ZeroSNR {
			return "trailing"
		}
	case Trig, Interpolant, *Interpolant, Dirichlet, SimplexLinear, Bridge:
		return "time"
	}
	return "karras"
}
