package schedules

import (
	"errors"
	"fmt"
	"math"
)

// Ends says where a grid starts and stops; a nil end is the process's own (Range). Times are in the process's own
// time, sigmas are ratios sigma/alpha; one of the two may be given for each end.
type Ends struct {
	TStart, TEnd       *float64
	SigmaMin, SigmaMax *float64
	// Final is "zero" (the run goes on to the clean end), "min" (it stops at the last noise level), or "" (the
	// schedule's own habit).
	Final string
}

// Ranger is a Process that says where a run usually starts and which noisy time is usually its last.
type Ranger interface {
	Range() (noise, data float64)
}

// FromRatios returns the grid with the given values of sigma/alpha, noise to data. They may repeat and rise.
func FromRatios(p Path, sb []float64) (Grid, error) { return prefixed(fromRatios(p, sb)) }

// FromTimes returns the grid with the given times of p, noise to data. They may repeat and rise.
func FromTimes(p Path, t []float64) (Grid, error) { return prefixed(fromTimes(p, t)) }

// prefixed adds the name of the package to an error; inside the package errors go without it.
func prefixed[T any](v T, err error) (T, error) {
	if err != nil {
		var none T
		return none, fmt.Errorf("schedules: %w", err)
	}
	return v, nil
}

func fromRatios(p Path, sb []float64) (Grid, error) {
	g := make(Grid, len(sb))
	for i, v := range sb {
		if math.IsNaN(v) || v < 0 {
			return nil, fmt.Errorf("sigma %d is %g; want 0 or more", i, v)
		}
		g[i] = p.AtRatio(v)
	}
	return g, g.check()
}

func fromTimes(p Path, t []float64) (Grid, error) {
	g := make(Grid, len(t))
	for i, v := range t {
		n, err := nodeAt(p, v)
		if err != nil {
			return nil, fmt.Errorf("time %d: %w", i, err)
		}
		g[i] = n
	}
	return g, g.check()
}

// nodeAt is p.At with a refusal of times that p does not have.
func nodeAt(p Path, t float64) (Node, error) {
	noise, data := p.Ends()
	lo, hi := min(noise, data), max(noise, data)
	switch p.(type) {
	case VE, EDM: // the time is sigma; the noise end is where runs start, not a limit
		hi = math.Inf(1)
	case GeometricVE:
		lo, hi = math.Inf(-1), math.Inf(1)
	case Dirichlet: // as far as anyone likes
		hi = math.MaxFloat64
	}
	n := p.At(t)
	if !(t >= lo && t <= hi) || n.T != t || !n.valid() {
		return n, fmt.Errorf("%g is not a time of %s, which runs from %g (noise) to %g (data)", t, p.Name(), noise, data)
	}
	return n, nil
}

// valid tells whether n can stand in a grid: a finite time, finite coefficients of 0 or more, not both 0.
func (n Node) valid() bool {
	return !math.IsNaN(n.T) && !math.IsInf(n.T, 0) && n.Alpha >= 0 && n.Sigma >= 0 && n.Alpha+n.Sigma > 0 && !math.IsInf(n.Alpha+n.Sigma, 1)
}

// Check returns an error unless g has at least two nodes, each with a finite time and finite coefficients alpha and
// sigma of 0 or more that are not both 0. Repeated and rising nodes are legal.
func (g Grid) Check() error {
	_, err := prefixed(g, g.check())
	return err
}

func (g Grid) check() error {
	if len(g) < 2 {
		return fmt.Errorf("a grid of %d nodes; want at least 2", len(g))
	}
	for i, n := range g {
		if !n.valid() {
			return fmt.Errorf("node %d is not usable: t=%g alpha=%g sigma=%g", i, n.T, n.Alpha, n.Sigma)
		}
	}
	return nil
}

// Steps returns the number of steps, one less than the nodes.
func (g Grid) Steps() int { return len(g) - 1 }

// span is what the constructors of grids share: n steps between two ends of a process.
type span struct {
	p           Path
	n           int
	noise, last Node // the first node and the last noisy one
	zero        bool // the grid goes on from last to the clean end
	startGiven  bool // the caller named the noise end
	endGiven    bool // the caller named the data end
}

func newSpan(p Path, n int, e Ends, habit func(endGiven bool) (final string)) (span, error) {
	s := span{p: p, n: n, startGiven: e.TStart != nil || e.SigmaMax != nil, endGiven: e.TEnd != nil || e.SigmaMin != nil}
	noise, data := usualRange(p)
	var err error
	if s.noise, err = endNode(p, e.TStart, e.SigmaMax, noise); err != nil {
		return s, fmt.Errorf("start: %w", err)
	}
	if s.last, err = endNode(p, e.TEnd, e.SigmaMin, data); err != nil {
		return s, fmt.Errorf("end: %w", err)
	}
	final := e.Final
	if final == "" {
		final = habit(s.endGiven)
	}
	if final != "zero" && final != "min" {
		return s, fmt.Errorf("final %q; want zero or min", final)
	}
	s.zero = final == "zero"
	if s.zero && p.AtRatio(0).Sigma > 0 { // a path that stops short of clean data
		if e.Final == "zero" {
			return s, fmt.Errorf("final zero: %s has no clean end", p.Name())
		}
		s.zero = false
	}
	if s.zero && !s.endGiven && !(s.noise.Ratio() > s.last.Ratio()) {
		s.last = p.AtRatio(0) // a start below the usual last noisy node
	}
	if !(s.noise.Ratio() > s.last.Ratio()) {
		return s, fmt.Errorf("the start (t=%g, sigma %g) must be noisier than the end (t=%g, sigma %g)", s.noise.T, s.noise.Ratio(), s.last.T, s.last.Ratio())
	}
	return s, nil
}

// usualRange is p's Range, or its ends.
func usualRange(p Process) (noise, data float64) {
	if r, ok := p.(Ranger); ok {
		return r.Range()
	}
	return p.Ends()
}

// endNode is the node at time t, or at ratio sb, or at the process's own time.
func endNode(p Path, t, sb *float64, own float64) (Node, error) {
	switch {
	case t != nil && sb != nil:
		return Node{}, errors.New("give a time or a sigma, not both")
	case t != nil:
		return nodeAt(p, *t)
	case sb == nil:
		return p.At(own), nil
	case math.IsNaN(*sb) || *sb < 0:
		return Node{}, fmt.Errorf("sigma is %g; want 0 or more", *sb)
	}
	n := p.AtRatio(*sb)
	if !n.valid() {
		return n, fmt.Errorf("%s has no node at sigma %g", p.Name(), *sb)
	}
	return n, nil
}

// nodes returns how many nodes stand from noise to last: n, and one more where last is the end of the grid.
func (s span) nodes() int {
	if s.zero && s.last.Sigma > 0 {
		return s.n
	}
	return s.n + 1
}

// close appends the clean end where the grid goes on to it.
func (s span) close(g Grid) (Grid, error) {
	if s.zero && g[len(g)-1].Sigma > 0 {
		g = append(g, s.p.AtRatio(0))
	}
	return g, g.check()
}

// unit returns i/(m-1), 0 when m is 1.
func unit(i, m int) float64 {
	if m == 1 {
		return 0
	}
	return float64(i) / float64(m-1)
}

// between returns the grid with the nodes at(u), u from 0 to 1, its two ends taken as they are.
func (s span) between(at func(u float64) Node) (Grid, error) {
	g := make(Grid, s.nodes())
	for i := range g {
		g[i] = at(unit(i, len(g)))
	}
	g[len(g)-1] = s.last
	g[0] = s.noise
	return s.close(g)
}

// ratios returns the grid with nodes at sigma/alpha = f(u, hi, lo); f must give hi at u = 0 and lo at 1. Both ends
// must have a finite ratio: a process whose own noise end has none starts a thousandth of the way in.
func (s span) ratios(f func(u, hi, lo float64) float64) (Grid, error) {
	if s.noise.Alpha == 0 {
		if s.startGiven {
			return nil, fmt.Errorf("a start without signal (t=%g) has no finite sigma: use a schedule in time", s.noise.T)
		}
		noise, data := s.p.Ends()
		s.noise = s.p.At(noise + 1e-3*(data-noise))
	}
	hi, lo := s.noise.Ratio(), s.last.Ratio()
	return s.between(func(u float64) Node { return s.p.AtRatio(f(u, hi, lo)) })
}

// times is ratios for schedules in the process's own time, which run through to the clean end.
func (s span) times(f func(u, hi, lo float64) float64) (Grid, error) {
	s.runThrough()
	return s.between(func(u float64) Node { return s.p.At(f(u, s.noise.T, s.last.T)) })
}

// runThrough makes the clean end the last node of a grid that ends clean, unless the caller named an end.
func (s *span) runThrough() {
	if s.zero && !s.endGiven {
		s.last = s.p.AtRatio(0)
	}
}

// timesteps returns the grid with m nodes at the timesteps f(i, m, T), where T whole timesteps lie between the ends:
// 0 is the last noisy node and T-1 the first. A table of a discrete process has its own T, every other process 1000.
// A grid with fewer than m = n+1 nodes then goes on to the clean end or to timestep 0. whole says that f gives whole
// numbers, of which there are only T.
func (s span) timesteps(m int, whole bool, f func(i, m, T int) (float64, error)) (Grid, error) {
	if s.last.Sigma == 0 { // a named clean end: timestep 0 is the usual last noisy node
		_, data := usualRange(s.p)
		s.last, s.zero, m = s.p.At(data), true, s.n
		if s.last.Ratio() > s.noise.Ratio() {
			return nil, fmt.Errorf("the start (t=%g) lies below timestep 0 (t=%g)", s.noise.T, s.last.T)
		}
	}
	T := 1000
	if _, ok := s.p.(*VPDiscrete); ok {
		T = int(math.Round(s.noise.T-s.last.T)) + 1
	}
	if whole && m > T {
		return nil, fmt.Errorf("%d whole timesteps where there are only %d", m, T)
	}
	g := make(Grid, m, s.n+1)
	for i := range g {
		k, err := f(i, m, T)
		if err != nil {
			return nil, err
		}
		t := s.last.T
		if T > 1 {
			t += (s.noise.T - s.last.T) * k / float64(T-1)
		}
		g[i] = s.p.At(t)
	}
	if m == s.n && !s.zero {
		g = append(g, s.last)
	}
	return s.close(g)
}
