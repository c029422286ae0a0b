package schedules

import (
	"fmt"
	"math"

	"drift/internal/spec"
)

// NewGrid returns the grid of n steps (n+1 nodes) that a named schedule makes for process p. name is a name or alias
// of Schedules with its options, as in "karras:rho=5" or "flow:shift=3". Errors name the schedule and the option.
func NewGrid(p Gaussian, name string, n int, e Ends) (Grid, error) {
	in, err := spec.Parse(name)
	if err != nil {
		return nil, fmt.Errorf("schedules: %w", err)
	}
	s, err := Lookup(in.Name)
	if err != nil {
		return nil, err
	}
	if n < 1 {
		return nil, fmt.Errorf("schedules: %s: %d steps; want at least 1", s.Name, n)
	}
	o := in.Options()
	span, err := newSpan(p, n, e, s.final)
	if err != nil {
		return nil, fmt.Errorf("schedules: %s: %w", s.Name, err)
	}
	g, err := s.build(span, o)
	if bad := o.Err(); bad != nil {
		return nil, fmt.Errorf("schedules: %w", bad)
	}
	if err != nil {
		return nil, fmt.Errorf("schedules: %s: %w", s.Name, err)
	}
	return g, nil
}

func toZero(bool) string { return "zero" }

// toGivenEnd stops at an end that was asked for, and goes on to the clean end otherwise.
func toGivenEnd(endGiven bool) string {
	if endGiven {
		return "min"
	}
	return "zero"
}

// karras: sigma^(1/rho) linear (Karras et al. 2022, eq. 5).
func karras(s span, o *spec.Options) (Grid, error) {
	rho := o.FloatIn("rho", 7, 1e-3, 1e3)
	return s.ratios(func(u, hi, lo float64) float64 {
		h, l := math.Pow(hi, 1/rho), math.Pow(lo, 1/rho)
		return math.Pow(h+u*(l-h), rho)
	})
}

// lambda: log sigma linear.
func lambda(s span, _ *spec.Options) (Grid, error) {
	if s.last.Sigma == 0 {
		return nil, fmt.Errorf("the end must have sigma > 0")
	}
	return s.ratios(func(u, hi, lo float64) float64 { return math.Exp(math.Log(hi) + u*math.Log(lo/hi)) })
}

// time: own time linear.
func ownTime(s span, _ *spec.Options) (Grid, error) {
	return s.times(func(u, hi, lo float64) float64 { return hi + u*(lo-hi) })
}

// flow: sigma/(alpha+sigma) linear, then shifted towards noise.
func flow(s span, o *spec.Options) (Grid, error) {
	return shifted(s, o.FloatIn("shift", 1, 1e-6, 1e6))
}

func shifted(s span, shift float64) (Grid, error) {
	if s.zero && !s.endGiven {
		s.last = s.p.AtRatio(0)
	}
	// u/(1-u) is sigma/alpha before the shift, shift times that after it.
	before := func(n Node) float64 { return n.Sigma / (n.Sigma + shift*n.Alpha) }
	hi, lo := before(s.noise), before(s.last)
	m := s.nodes()
	g := make(Grid, m)
	for i := range g {
		u := hi + unit(i, m)*(lo-hi)
		g[i] = s.p.AtRatio(shift * u / (1 - u))
	}
	g[0], g[m-1] = s.noise, s.last
	if m == 1 {
		g[0] = s.noise
	}
	return s.close(g)
}
