package schedules

import (
	"errors"
	"fmt"
	"math"

	"gonum.org/v1/gonum/mathext"

	"drift/internal/spec"
)

// NewGrid returns the grid of n steps (n+1 nodes) that a named schedule makes for process p. name is a name or alias
// from Schedules with its options, as in "karras:rho=5" or "flow:shift=3". Errors name the schedule and the option.
func NewGrid(p Path, name string, n int, e Ends) (Grid, error) {
	return prefixed(newGrid(p, name, n, e))
}

func newGrid(p Path, name string, n int, e Ends) (Grid, error) {
	in, err := spec.Parse(name)
	if err != nil {
		return nil, err
	}
	s, err := lookup(in.Name)
	if err != nil {
		return nil, err
	}
	if n < 1 || n > MaxSteps {
		return nil, fmt.Errorf("%s: %d steps; want 1 to %d", s.Name, n, MaxSteps)
	}
	span, err := newSpan(p, n, e, s.final)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	in.Name = s.Name
	o := in.Options()
	g, err := s.build(span, o)
	if bad := o.Err(); bad != nil {
		return nil, bad
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	return g, nil
}

// MaxSteps is the largest number of steps that NewGrid makes.
const MaxSteps = 1 << 20

// toZero ends at the clean end.
func toZero(bool) string { return "zero" }

// toGivenEnd stops at an end that was asked for, and goes on to the clean end otherwise.
func toGivenEnd(endGiven bool) string {
	if endGiven {
		return "min"
	}
	return "zero"
}

func mix(u, a, b float64) float64 { return a + u*(b-a) }

// karras: sigma^(1/rho) linear.
func karras(s span, o *spec.Options) (Grid, error) {
	q := 1 / o.FloatIn("rho", 7, 0.01, 1000)
	return s.ratios(func(u, hi, lo float64) float64 {
		return math.Pow(mix(u, math.Pow(hi, q), math.Pow(lo, q)), 1/q)
	})
}

// edm: karras between sigma 80 and 0.002, as far as the process reaches.
func edm(s span, o *spec.Options) (Grid, error) {
	if !s.startGiven {
		s.noise = s.p.AtRatio(min(80, s.noise.Ratio()))
	}
	if !s.endGiven {
		s.last = s.p.AtRatio(max(0.002, s.last.Ratio()))
	}
	return karras(s, o)
}

// lambda: log sigma linear.
func lambda(s span, _ *spec.Options) (Grid, error) { return polyexp(s, 1) }

// polyexponential: log sigma follows (1-u)^rho.
func polyexponential(s span, o *spec.Options) (Grid, error) {
	return polyexp(s, o.FloatIn("rho", 1, 0.01, 1000))
}

func polyexp(s span, rho float64) (Grid, error) {
	if s.last.Sigma == 0 {
		return nil, errors.New("the end must have sigma > 0")
	}
	return s.ratios(func(u, hi, lo float64) float64 {
		return math.Exp(mix(math.Pow(1-u, rho), math.Log(lo), math.Log(hi)))
	})
}

// uniformTime: own time linear.
func uniformTime(s span, _ *spec.Options) (Grid, error) {
	return s.times(func(u, hi, lo float64) float64 { return mix(u, hi, lo) })
}

// quadratic: (time from the clean end)^(1/power) linear.
func quadratic(s span, o *spec.Options) (Grid, error) {
	q := 1 / o.FloatIn("power", 2, 0.01, 1000)
	noise, clean := s.p.Ends()
	way := math.Copysign(1, noise-clean) // of a process's time from data to noise
	return s.times(func(u, hi, lo float64) float64 {
		return clean + way*math.Pow(mix(u, math.Pow(way*(hi-clean), q), math.Pow(max(way*(lo-clean), 0), q)), 1/q)
	})
}

// linearQuadratic: the first half of the steps goes down linearly to 1-threshold, the rest along the parabola that
// joins it with equal slope and ends at 0.
func linearQuadratic(s span, o *spec.Options) (Grid, error) {
	threshold := o.FloatIn("threshold", 0.025, 1e-6, 1)
	s.runThrough()
	n := s.nodes() - 1
	half := o.Int("linear-steps", n/2, 0, max(n-1, 0))
	slope := 0.0
	if half > 0 {
		slope = threshold / float64(half)
	} else {
		threshold = 0
	}
	rest := float64(n - half)
	bend := (1 - threshold - slope*rest) / (rest * rest)
	return s.times(func(u, hi, lo float64) float64 {
		i := u * float64(n)
		x := slope * i
		if j := i - float64(half); j > 0 {
			x += bend * j * j
		}
		return mix(x, hi, lo)
	})
}

// evenTimesteps: whole timesteps, both ends included.
func evenTimesteps(s span, _ *spec.Options) (Grid, error) {
	return s.timesteps(s.nodes(), true, func(i, m, T int) (float64, error) {
		if m == 1 {
			return float64(T - 1), nil
		}
		return math.RoundToEven(float64((T-1)*(m-1-i)) / float64(m-1)), nil
	})
}

// leading: whole timesteps counted up from the data end in equal strides.
func leading(s span, o *spec.Options) (Grid, error) {
	offset := o.Int("offset", 0, 0, 1<<20)
	return s.timesteps(s.nodes(), true, func(i, m, T int) (float64, error) {
		k := T/m*(m-1-i) + offset
		if k > T-1 {
			return 0, fmt.Errorf("offset %d leads beyond the last of %d timesteps", offset, T)
		}
		return float64(k), nil
	})
}

// trailing: whole timesteps counted down from the noise end in equal strides.
func trailing(s span, _ *spec.Options) (Grid, error) {
	return s.timesteps(s.n, true, func(i, m, T int) (float64, error) {
		return math.RoundToEven(float64(T*(m-i))/float64(m)) - 1, nil
	})
}

// distillation: n of the timesteps counted down in so many equal strides.
func distillation(s span, o *spec.Options) (Grid, error) {
	original := o.Int("original", 50, 1, 1<<20)
	return s.timesteps(s.n, true, func(i, m, T int) (float64, error) {
		if m > original || original > T {
			return 0, fmt.Errorf("%d steps of original=%d of %d timesteps", m, original, T)
		}
		return float64(T - 1 - i*original/m*(T/original)), nil
	})
}

// simple: whole timesteps, the noise end included, strides cut to whole numbers.
func simple(s span, _ *spec.Options) (Grid, error) {
	return s.timesteps(s.n, true, func(i, m, T int) (float64, error) { return float64(T - 1 - i*T/m), nil })
}

// sgmUniform: timesteps linear, without the last one.
func sgmUniform(s span, _ *spec.Options) (Grid, error) {
	return s.timesteps(s.n, false, func(i, m, T int) (float64, error) {
		return mix(float64(i)/float64(m), float64(T-1), 0), nil
	})
}

// betaQuantiles: sigma, or the timestep, follows the quantiles of a Beta distribution.
func betaQuantiles(s span, o *spec.Options) (Grid, error) {
	a, b := o.FloatIn("alpha", 0.6, 0.05, 50), o.FloatIn("beta", 0.6, 0.05, 50)
	if o.Choice("in", "sigma", "time") == "time" {
		return s.timesteps(s.n, false, func(i, m, T int) (float64, error) {
			return float64(T-1) * betaQuantile(1-float64(i)/float64(m), a, b), nil
		})
	}
	return s.ratios(func(u, hi, lo float64) float64 { return mix(betaQuantile(1-u, a, b), lo, hi) })
}

// betaQuantile inverts the regularised incomplete beta function: a rough inverse, then Newton steps.
func betaQuantile(p, a, b float64) float64 {
	if p <= 0 || p >= 1 {
		return min(max(p, 0), 1)
	}
	x := mathext.InvRegIncBeta(a, b, p)
	for range 4 {
		if x <= 0 || x >= 1 {
			break
		}
		density := math.Exp((a-1)*math.Log(x) + (b-1)*math.Log1p(-x) - mathext.Lbeta(a, b))
		next := x - (mathext.RegIncBeta(a, b, x)-p)/density
		if !(next > 0 && next < 1) {
			break
		}
		x = next
	}
	return x
}

// alignYourSteps resamples a table of eleven sigmas log-linearly to n+1 nodes; the last becomes clean.
func alignYourSteps(table [11]float64) func(span, *spec.Options) (Grid, error) {
	return func(s span, _ *spec.Options) (Grid, error) {
		if s.startGiven || s.endGiven {
			return nil, errors.New("its sigmas are a fixed table: give no start or end")
		}
		sb := make([]float64, s.n+1)
		for i := range sb {
			u := 10 * unit(i, s.n+1)
			k := min(int(u), 9)
			f := u - float64(k)
			sb[i] = math.Exp(mix(f, math.Log(table[k]), math.Log(table[k+1])))
			if f == 0 {
				sb[i] = table[k]
			}
		}
		sb[s.n] = table[10]
		if s.zero {
			sb[s.n] = 0
		}
		return fromRatios(s.p, sb)
	}
}

// flow: flow time linear, then shifted towards noise.
func flow(s span, o *spec.Options) (Grid, error) {
	return s.shifted(o.FloatIn("shift", 1, 1e-6, 1e6), o.FloatIn("terminal", 0, 0, 0.999))
}

// flowDynamic: flow with shift = exp(mu).
func flowDynamic(s span, o *spec.Options) (Grid, error) {
	mu := o.FloatIn("mu", 1.15, -20, 20)
	if tokens := o.Int("tokens", 0, 1, 1<<24); tokens > 0 {
		if o.Has("mu") {
			return nil, errors.New("give mu or tokens, not both")
		}
		mu = FluxMu(tokens)
	}
	shift := math.Exp(mu)
	if o.Choice("kind", "exponential", "linear") == "linear" {
		if shift = mu; mu <= 0 {
			return nil, errors.New("kind=linear wants mu > 0")
		}
	}
	return s.shifted(shift, o.FloatIn("terminal", 0, 0, 0.999))
}

// FluxMu is the shift exponent for an image of that many tokens: linear from 0.5 at 256 to 1.15 at 4096 (FLUX.1).
func FluxMu(tokens int) float64 { return mix((float64(tokens)-256)/(4096-256), 0.5, 1.15) }

// shifted returns the grid that is linear in u between its ends, where the flow time sigma/(alpha+sigma) is
// shift u/(1 + (shift-1) u). A terminal above 0 then stretches the noisy nodes, the first one fixed, so that the last
// of them has that flow time.
func (s span) shifted(shift, terminal float64) (Grid, error) {
	s.runThrough()
	unshift := func(n Node) float64 { return n.Sigma / (n.Sigma + shift*n.Alpha) }
	hi, lo := unshift(s.noise), unshift(s.last)
	g, err := s.between(func(u float64) Node {
		v := mix(u, hi, lo)
		return s.p.AtRatio(shift * v / (1 - v))
	})
	if terminal == 0 || err != nil {
		return g, err
	}
	noisy := g
	if g[len(g)-1].Sigma == 0 {
		noisy = g[:len(g)-1]
	}
	flowTime := func(n Node) float64 { return n.Sigma / (n.Sigma + n.Alpha) }
	first, last := flowTime(noisy[0]), flowTime(noisy[len(noisy)-1])
	if terminal >= first {
		return nil, fmt.Errorf("terminal=%g is not below the start, flow time %g", terminal, first)
	}
	for i := 1; i < len(noisy); i++ {
		t := first - (first-flowTime(noisy[i]))*(first-terminal)/(first-last)
		noisy[i] = s.p.AtRatio(t / (1 - t))
	}
	return g, g.check()
}
