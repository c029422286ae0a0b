package search

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"drift/samplers"
	"drift/schedules"
)

// Space is the solver schedules that a search chooses from: a fixed number of steps, one evaluation each, between two
// fixed nodes.
type Space struct {
	Process  schedules.Gaussian
	From, To schedules.Node // To may be clean (sigma 0), From without signal (alpha 0)
	Steps    int
	Order    int // highest order of a step, 1 to 4; 0 = 3
	// Noise lets S4S choose how much ancestral noise every step adds (samplers.SolverStep.Noise). Nearness to a teacher
	// without noise would never ask for any: it is for objectives that measure sets of samples.
	Noise bool
}

// check completes and checks the space.
func (s Space) check() (Space, error) {
	if s.Order == 0 {
		s.Order = 3
	}
	switch {
	case s.Process == nil:
		return s, fmt.Errorf("search: the space has no process")
	case s.Steps < 1 || s.Steps > 100:
		return s, fmt.Errorf("search: %d steps, want 1 to 100", s.Steps)
	case s.Order < 1 || s.Order > 4:
		return s, fmt.Errorf("search: order %d, want 1 to 4", s.Order)
	case !(s.From.Ratio() > s.To.Ratio()):
		return s, fmt.Errorf("search: the noise must fall from %g to %g", s.From.Ratio(), s.To.Ratio())
	}
	return s, nil
}

// span is the range of lambda in which nodes may lie: from 7 units below lambda 0 to 7 above it at ends where lambda is
// infinite, but not beyond the noise that the process has.
func (s Space) span() (lo, hi float64) {
	lo, hi = s.From.Lambda(), s.To.Lambda()
	reach := func(l float64) float64 {
		r := s.Process.At(s.Process.AtRatio(math.Exp(-l)).T).Lambda()
		if math.Abs(r-l) < 1e-6 { // rounding
			return l
		}
		return r
	}
	const far = 7
	if math.IsInf(lo, -1) {
		lo = max(-far, reach(-far))
	}
	if math.IsInf(hi, 1) {
		hi = min(far, reach(far))
	}
	return lo, hi
}

// plan is a point of the space: the inner nodes by lambda, and the choices of every step.
type plan struct {
	lam   []float64
	steps []choice
}

// choice is what one step does; what the history does not allow is lowered when the plan is written down.
type choice struct {
	order     int
	eps       bool
	low       bool // third order with a first derivative from one difference
	relax     int  // index into relaxes
	coef      float64
	corrector bool
}

var relaxes = []string{"", "bh2", "linear"}

func (p plan) clone() plan { return plan{slices.Clone(p.lam), slices.Clone(p.steps)} }

// repair sorts the inner nodes and keeps them apart.
func (s Space) repair(p plan) {
	lo, hi := s.span()
	gap := (hi - lo) / float64(50*s.Steps)
	slices.Sort(p.lam)
	last := lo
	for i := range p.lam {
		p.lam[i] = max(p.lam[i], last+gap)
		last = p.lam[i]
	}
	next := hi
	for i := len(p.lam) - 1; i >= 0; i-- {
		p.lam[i] = min(p.lam[i], next-gap)
		next = p.lam[i]
	}
}

// nodes are the times of the plan.
func (s Space) times(lam []float64) []float64 {
	ts := []float64{s.From.T}
	for _, l := range lam {
		ts = append(ts, s.Process.AtRatio(math.Exp(-l)).T)
	}
	return append(ts, s.To.T)
}

// schedule writes the plan down.
func (s Space) schedule(p plan) samplers.SolverSchedule {
	out := samplers.SolverSchedule{Times: s.times(p.lam)}
	skip := 0
	if s.From.Alpha == 0 {
		skip = 1 // the first node is no point
	}
	for i, c := range p.steps {
		most := min(c.order, i+1-skip)
		if i == s.Steps-1 && s.To.Sigma == 0 {
			most = 1
		}
		st := samplers.SolverStep{Order: max(1, most), Pred: schedules.X0, Start: -1}
		blind := i < skip
		if c.eps && !blind {
			st.Pred = schedules.Eps
		}
		var points []int
		for k := 2; k <= st.Order; k++ {
			points = append(points, -k)
		}
		for k := 1; k < st.Order; k++ {
			d := samplers.Derivative{Points: slices.Clone(points)}
			if k == 1 {
				if c.low {
					d.Points = d.Points[:1]
				}
				if d.Relax = relaxes[c.relax]; d.Relax == "linear" {
					d.Coef = c.coef
				}
			}
			st.Derivs = append(st.Derivs, d)
		}
		if c.corrector && i < s.Steps-1 && !blind {
			st.Corrector = samplers.Correct(st)
		}
		out.Steps = append(out.Steps, st)
	}
	return out
}

// features describe a plan by numbers of comparable size.
func (s Space) features(p plan) []float64 {
	lo, hi := s.span()
	var f []float64
	last := lo
	scale := float64(s.Steps) / (hi - lo)
	bit := func(b bool) float64 {
		if b {
			return 0.5
		}
		return 0
	}
	for i, c := range p.steps {
		next := hi
		if i < len(p.lam) {
			next = p.lam[i]
			f = append(f, 2*(next-lo)*scale-2*float64(i+1))
		}
		f = append(f, (next-last)*scale, float64(c.order)/2, bit(c.eps), bit(c.low && c.order > 2), bit(c.relax == 1 && c.order > 1), bit(c.relax == 2 && c.order > 1), bit(c.corrector))
		if c.relax == 2 && c.order > 1 {
			f[len(f)-2] += 4 * c.coef
		}
		last = next
	}
	return f
}

// gridNames are the grids that baselines stand on.
var gridNames = []string{"karras", "lambda", "time", "quadratic"}

// baseline is a fixed solver on a named grid.
type baseline struct {
	name string
	plan plan
}

// baselines are the multistep solvers that the space contains, on the usual grids.
func (s Space) baselines() ([]baseline, error) {
	var out []baseline
	for _, grid := range gridNames {
		lam, err := s.grid(grid)
		if err != nil {
			return nil, err
		}
		for _, m := range []struct {
			name string
			c    choice
		}{
			{"ddim", choice{order: 1}},
			{"dpmpp-2m", choice{order: 2, relax: 1}},
			{"dpmpp-2m:solver=heun", choice{order: 2}},
			{"dpmpp-3m", choice{order: 3}},
			{"unipc:order=1", choice{order: 1, corrector: true}},
			{"unipc:order=2", choice{order: 2, relax: 1, corrector: true}},
			{"unipc:order=3", choice{order: 3, corrector: true}},
			{"deis:order=2", choice{order: 2, eps: true}},
			{"deis:order=3", choice{order: 3, eps: true}},
		} {
			p := plan{lam: slices.Clone(lam)}
			for i := range s.Steps {
				c := m.c
				if full := c.order; full > 1 {
					c.order = min(full, s.Steps-i)
					if c.order == 2 && full == 3 && !c.eps {
						c.relax = 1
					}
				}
				if full := min(m.c.order, i+1); full == 2 && m.c.order == 3 && !c.eps {
					c.relax = 1
				}
				p.steps = append(p.steps, c)
			}
			out = append(out, baseline{m.name + " on " + grid, p})
		}
	}
	return out, nil
}

// grid returns the inner nodes of a named grid between the ends of the space, by lambda.
func (s Space) grid(name string) ([]float64, error) {
	a, b := s.From.Ratio(), s.To.Ratio()
	e := schedules.Ends{Final: "min"}
	n := s.Steps
	if !math.IsInf(a, 1) {
		e.SigmaMax = &a
	}
	if b > 0 {
		e.SigmaMin = &b
	} else {
		e.Final = "zero"
	}
	g, err := schedules.NewGrid(s.Process, name, n, e)
	if err != nil {
		return nil, fmt.Errorf("search: %w", err)
	}
	var lam []float64
	for _, node := range g[1:n] {
		lam = append(lam, node.Lambda())
	}
	p := plan{lam: lam}
	s.repair(p)
	return p.lam, nil
}

// random draws a plan.
func (s Space) random(r *rand.Rand) plan {
	lo, hi := s.span()
	p := plan{}
	for range s.Steps - 1 {
		p.lam = append(p.lam, lo+(hi-lo)*r.Float64())
	}
	for range s.Steps {
		var c choice
		s.redraw(&c, r, 1)
		p.steps = append(p.steps, c)
	}
	s.repair(p)
	return p
}

// redraw draws each part of a choice anew with the given probability.
func (s Space) redraw(c *choice, r *rand.Rand, prob float64) {
	hit := func() bool { return r.Float64() < prob }
	if hit() {
		c.order = 1
		for u := r.Float64(); c.order < s.Order && u > 0.2; u -= 0.4 {
			c.order++
		}
	}
	if hit() {
		c.eps = r.Float64() < 0.4
	}
	if hit() {
		c.low = r.Float64() < 0.5
	}
	if hit() {
		c.relax = r.IntN(len(relaxes))
	}
	if hit() {
		c.coef += 0.05 * r.NormFloat64()
	}
	if hit() {
		c.corrector = r.Float64() < 0.5
	}
}

// mutate changes a plan: nodes move by a part of their gaps, choices are drawn anew.
func (s Space) mutate(p plan, r *rand.Rand) plan {
	p = p.clone()
	lo, hi := s.span()
	strength := math.Exp(math.Log(0.02) + r.Float64()*(math.Log(0.4)-math.Log(0.02)))
	for i := range p.lam {
		a, b := lo, hi
		if i > 0 {
			a = p.lam[i-1]
		}
		if i+1 < len(p.lam) {
			b = p.lam[i+1]
		}
		if r.Float64() < 0.5 {
			p.lam[i] += strength * r.NormFloat64() * (b - a) / 2
		}
	}
	prob := 0.0
	if r.Float64() < 0.6 {
		prob = 0.15
	}
	for i := range p.steps {
		s.redraw(&p.steps[i], r, prob)
		if p.steps[i].relax == 2 && r.Float64() < 0.5 {
			p.steps[i].coef += 0.2 * strength * r.NormFloat64()
		}
	}
	s.repair(p)
	return p
}

// cross mixes two plans: nodes of one, or of both in turn, choices from either.
func (s Space) cross(a, b plan, r *rand.Rand) plan {
	p := a.clone()
	if r.Float64() < 0.5 {
		u := r.Float64()
		for i := range p.lam {
			p.lam[i] = (1-u)*a.lam[i] + u*b.lam[i]
		}
	}
	for i := range p.steps {
		if r.Float64() < 0.5 {
			p.steps[i] = b.steps[i]
		}
	}
	s.repair(p)
	return p
}
