package samplers

import (
	"context"
	"errors"
	"fmt"
	"math"

	"drift/models"
	"drift/schedules"
)

// Switch runs another model for the first steps and hands its state over (Gandikota and Bau 2025, arXiv 2503.10637): few-step
// distilled models lose variety, and letting their base model decide the first step brings it back at nearly the same cost.
// The base runs its own sampler over its own grid up to the node whose time is nearest to that of node K of the main grid
// (SwitchAt), and what stands there goes unchanged into the main sampler from node K on. Histories of multistep methods
// start anew at the switch. K = 0 is the main run alone.
//
// Both models must have arrays of one shape. Where their processes differ, the state is brought to the main one's scale,
// x alpha_main/alpha_base (a variance-preserving state is never handed to a variance-exploding model as it is).
type Switch struct {
	Base    models.Denoiser // guided as it should be
	First   Sampler         // of the base; nil = Main
	Grid    schedules.Grid  // of the base; nil = that of the problem, so the base makes K steps
	K       int             // node of the main grid at which it takes over
	Main    Sampler
	Handing func(x []float64, from, to schedules.Node) // is told what is handed over; may be nil
}

// SwitchAt returns how many steps the base makes: the node of its grid whose time is nearest to t; of two the earlier.
func SwitchAt(base schedules.Grid, t float64) int {
	best := 0
	for j, n := range base {
		if math.Abs(n.T-t) < math.Abs(base[best].T-t) {
			best = j
		}
	}
	return best
}

// Needs implements Sampler.
func (s Switch) Needs() Needs {
	n := s.Main.Needs()
	if s.First != nil {
		f := s.First.Needs()
		n.Noise, n.VJP, n.Parts, n.Couples = n.Noise || f.Noise, n.VJP || f.VJP, n.Parts || f.Parts, n.Couples || f.Couples
	}
	return n
}

// Begin implements Sampler.
func (s Switch) Begin(ctx context.Context, p *Problem) (Run, error) {
	last := p.Last
	if last == 0 {
		last = len(p.Grid) - 1
	}
	switch {
	case s.Main == nil || s.Base == nil:
		return nil, errors.New("samplers: switch: wants a base model and a main sampler")
	case s.Main.Needs().OwnGrid || s.First != nil && s.First.Needs().OwnGrid:
		return nil, errors.New("samplers: switch: a sampler that places its own steps has no node to take over at")
	case s.K < 0 || s.K >= last:
		return nil, fmt.Errorf("samplers: switch: cannot take over at node %d of %d", s.K, last)
	case p.First != 0:
		return nil, errors.New("samplers: switch: starts at the first node only")
	}
	if s.K == 0 {
		return s.Main.Begin(ctx, p)
	}
	first := *p
	first.Model, first.Last = s.Base, s.K
	d, ok := p.Model.(models.Denoiser)
	if !ok {
		return nil, fmt.Errorf("samplers: switch: needs a model that denoises, have %T", p.Model)
	}
	base, main := s.Base.Process(), d.Process()
	r := &switched{s: s, p: p, main: last}
	if s.Grid == nil && !schedules.Same(base, main) { // the same noise levels, where the base has them
		gau, ok := base.(schedules.Gaussian)
		if !ok {
			return nil, fmt.Errorf("samplers: switch: the base's process %s is not Gaussian", base.Name())
		}
		for _, n := range p.Grid[:s.K+1] {
			s.Grid = append(s.Grid, gau.AtRatio(n.Ratio()))
		}
	}
	if s.Grid != nil {
		first.Grid = s.Grid
		if first.Last = SwitchAt(s.Grid, p.Grid[s.K].T); !schedules.Same(base, main) { // times mean other things there: the noise level counts
			first.Last = nearestLevel(s.Grid, p.Grid[s.K])
		}
	}
	if r.steps = first.Last; r.steps == 0 {
		return nil, fmt.Errorf("samplers: switch: the base makes no step: its grid begins below node %d of the main one", s.K)
	}
	from := first.Grid[first.Last]
	if r.scale = 1; !schedules.Same(base, main) {
		r.scale = p.Grid[s.K].Alpha / from.Alpha
	}
	r.from = from
	begin := s.First
	if begin == nil {
		begin = s.Main
	}
	var err error
	if r.Run, err = begin.Begin(ctx, &first); err != nil {
		return nil, fmt.Errorf("samplers: switch: the base: %w", err)
	}
	return r, nil
}

// nearestLevel is the node of a grid whose noise level is nearest, in logarithms.
func nearestLevel(g schedules.Grid, n schedules.Node) int {
	best, gap := 0, math.Inf(1)
	for j, m := range g {
		if d := math.Abs(m.Lambda() - n.Lambda()); d < gap {
			best, gap = j, d
		}
	}
	return best
}

// switched is a run of Switch under way: first the base's, then the main one.
type switched struct {
	Run
	s      Switch
	p      *Problem
	steps  int // of the base
	main   int // last node of the main run
	from   schedules.Node
	scale  float64
	second bool
}

// Next implements Run.
func (r *switched) Next(ctx context.Context) (bool, error) {
	if r.second {
		return r.Run.Next(ctx)
	}
	done, err := r.Run.Next(ctx)
	if err != nil || !done {
		return false, err
	}
	next := *r.p
	x := r.Run.State().X
	next.Start, next.First = models.New(x.Shape()...), r.s.K
	for j, v := range models.Data(x) {
		if r.scale != 1 {
			v *= r.scale
		}
		models.Data(next.Start)[j] = v
	}
	if r.s.Handing != nil {
		r.s.Handing(models.Data(next.Start), r.from, r.p.Grid[r.s.K])
	}
	if r.Run, err = r.s.Main.Begin(ctx, &next); err != nil {
		return false, fmt.Errorf("samplers: switch: %w", err)
	}
	r.second = true
	return r.Run.Next(ctx)
}

// State implements Run: steps are counted through both.
func (r *switched) State() *State {
	s := *r.Run.State()
	s.N = r.steps + r.main - r.s.K
	if r.second {
		s.I += r.steps - r.s.K
	}
	s.Done = float64(s.I) / float64(s.N)
	return &s
}
