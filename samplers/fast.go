package samplers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// Skip is how a method spreads its nodes between two others.
type Skip int

// Uniformly in lambda (log of the signal-to-noise ratio), in the process's own time, or in its square root.
const (
	SkipLambda Skip = iota
	SkipTime
	SkipQuadratic
)

// between returns the node at the fraction u of the way from s to t.
func (k Skip) between(p schedules.Gaussian, s, t schedules.Node, u float64) schedules.Node {
	mix := func(a, b float64) float64 { return a + u*(b-a) }
	switch k {
	case SkipTime:
		return p.At(mix(s.T, t.T))
	case SkipQuadratic:
		return p.At(sq(mix(math.Sqrt(s.T), math.Sqrt(t.T))))
	}
	return p.AtRatio(math.Exp(-mix(s.Lambda(), t.Lambda())))
}

// Fast is "DPM-Solver-fast" (arXiv 2206.00927, section 3.4; k-diffusion's sample_dpm_fast): singlesteps of the given
// order (see Singlestep), as many as fit into a budget of NFE evaluations, and one or two of lower order for the rest.
// For order 3 and K = NFE/3 + 1 (rounded down) steps the orders are
//
//	NFE = 3K-3: 3, ..., 3, 2, 1    3K-2: 3, ..., 3, 1    3K-1: 3, ..., 3, 2
//
// and for order 2 a step of order 1 ends an odd budget. It places its own nodes between the two ends of the grid: in
// lambda, the outer nodes uniformly and the inner ones in each step; in time (SkipTime, SkipQuadratic), NFE nodes of which
// the steps take groups. Onto a clean end the last evaluation makes a first-order step from the last noisy node (see
// Needs.OwnGrid). From a node without signal, which lambda cannot leave, the first evaluation of a grid in time makes a
// first-order step, too.
//
// With Eta a step goes down to less noise than its end and fresh noise is added (see DDIM).
type Fast struct {
	Budget int            // evaluations per image; 0 = the number of steps of the grid; two ends alone are refused then
	Order  int            // 1 to 3; 0 = 3
	Kind   schedules.Kind // Eps (DPM-Solver) or X0 (DPM-Solver++)
	Heun   bool           // see Singlestep
	Skip   Skip
	Eta    float64
	SNoise float64 // 0 = 1
	solver bool    // named dpm-solver-fast
}

func init() {
	register(Info{Name: "dpm-fast", Order: "2 to 3", NFE: "1 per step of the grid", Summary: "singlestep DPM-Solver with a budget of evaluations", Source: "DPM-Solver, arXiv 2206.00927, section 3.4; k-diffusion sample_dpm_fast",
		Aliases: []string{"DPM fast", "dpm_fast"},
		Options: []Option{{"nfe", "", "evaluations; default: the number of steps"}, {"eta", "0", "share of fresh noise"}, {"s-noise", "1", "multiplies the noise"}},
		New: func(o *spec.Options) (Sampler, error) {
			return Fast{Budget: readBudget(o), Eta: o.FloatIn("eta", 0, 0, math.MaxFloat64), SNoise: o.FloatIn("s-noise", 1, 0, math.MaxFloat64)}, nil
		}})
	register(Info{Name: "dpm-solver-fast", Order: "2 to 3", NFE: "1 per step of the grid", Summary: "singlestep DPM-Solver with a budget of evaluations, nodes by skip", Source: "DPM-Solver, arXiv 2206.00927, section 3.4",
		Options: []Option{{"nfe", "", "evaluations; default: the number of steps"}, {"order", "3", "1 to 3"}, {"skip", "logSNR", "logSNR, time_uniform or time_quadratic"},
			{"form", "eps", "eps or x0"}, {"solver", "midpoint", "midpoint or heun"}},
		New: func(o *spec.Options) (Sampler, error) {
			skip := map[string]Skip{"logSNR": SkipLambda, "time_uniform": SkipTime, "time_quadratic": SkipQuadratic}[o.Choice("skip", "logSNR", "time_uniform", "time_quadratic")]
			return Fast{Budget: readBudget(o), Order: o.Int("order", 3, 1, 3), Kind: readForm(o), Heun: o.Choice("solver", "midpoint", "heun") == "heun", Skip: skip, solver: true}, nil
		}})
}

func readBudget(o *spec.Options) int {
	if !o.Has("nfe") {
		return 0
	}
	return o.Int("nfe", 1, 1, 1<<20)
}

// orders returns the orders of the steps that n evaluations pay for.
func (m Fast) orders(n int) []int {
	k := m.Order
	if k == 0 {
		k = 3
	}
	var out []int
	for range n / k {
		out = append(out, k)
	}
	switch rest := n % k; {
	case rest > 0:
		out = append(out, rest)
	case k == 3 && n > 0:
		out = append(out[:len(out)-1], 2, 1)
	}
	return out
}

// planned is the method that a Fast comes down to: the order of each step of its own grid.
type planned struct {
	Fast
	orders []int
	end    schedules.Node // the last noisy node
}

// plan makes the steps and the problem on their grid.
func (m Fast) plan(p *Problem) (planned, *Problem, error) {
	r, err := newRun(p, planned{Fast: m})
	if err != nil {
		return planned{}, nil, err
	}
	fail := func(err error) (planned, *Problem, error) {
		return planned{}, nil, fmt.Errorf("samplers: %s: %w", m.label(), err)
	}
	if m.Order < 0 || m.Order > 3 || (m.Kind != schedules.Eps && m.Kind != schedules.X0) {
		return fail(fmt.Errorf("has orders 1 to 3 in the forms eps and x0, not order %d in %v", m.Order, m.Kind))
	}
	start, final := r.grid[r.i], r.grid[r.last]
	end, clean, err := r.ends()
	if err != nil {
		return planned{}, nil, err
	}
	n := m.Budget
	if n == 0 {
		if n = r.last - r.i; len(r.grid) == 2 {
			return fail(errors.New("the two ends of a grid do not say how many evaluations to make: set nfe"))
		}
	}
	out := planned{Fast: m, end: end}
	own := *p
	own.First, own.Last, own.Grid = 0, 0, schedules.Grid{start}
	if clean && end == start {
		n = 1
	}
	if clean {
		n--
	}
	switch {
	case n == 0:
	case start.Alpha == 0 && m.Skip == SkipLambda:
		return fail(errNoSignal)
	case m.Skip == SkipQuadratic && (start.T < 0 || end.T < 0):
		return fail(fmt.Errorf("time_quadratic needs times of 0 or more, the grid goes from %g to %g", start.T, end.T))
	default:
		out.orders = m.orders(n)
		g, done := out.orders, 0
		for i, k := range g {
			done += k
			u := float64(done) / float64(n)
			if m.Skip == SkipLambda {
				u = float64(i+1) / float64(len(g))
			}
			t := end
			if i+1 < len(g) {
				t = m.Skip.between(r.gau, start, end, u)
			}
			own.Grid = append(own.Grid, t)
		}
		if start.Alpha == 0 && g[0] > 1 { // a first-order step to the first inner node, and the rest from there
			inner := m.Skip.between(r.gau, start, own.Grid[1], 1/float64(g[0]))
			own.Grid = append(schedules.Grid{start, inner}, own.Grid[1:]...)
			out.orders = append([]int{1, g[0] - 1}, g[1:]...)
		}
	}
	if clean {
		own.Grid, out.orders = append(own.Grid, final), append(out.orders, 1)
	}
	return out, &own, nil
}

func (m planned) step(ctx context.Context, r *run, s, t schedules.Node) error {
	order := m.orders[r.i]
	if s.Alpha == 0 || t.Sigma == 0 {
		return r.firstOrder(ctx, t)
	}
	d, std := stepDown(r, s, t, m.end, r.opt("eta", m.Eta))
	var inner [2]schedules.Node
	for i := range order - 1 {
		inner[i] = m.Skip.between(r.gau, s, d, float64(i+1)/float64(order))
	}
	if err := (Singlestep{Kind: m.Kind, Heun: m.Heun}).stepThrough(ctx, r, s, d, inner, order, r.y); err != nil {
		return err
	}
	if d != t {
		lin(r.y, term{t.Alpha / d.Alpha, r.y})
	}
	r.addNoise(std*orOne(m.SNoise), DrawStep, s.Ratio(), t.Ratio())
	return nil
}

func (planned) settable() []string { return []string{"eta"} }

// Begin implements Sampler.
func (m Fast) Begin(ctx context.Context, p *Problem) (Run, error) {
	s, own, err := m.plan(p)
	if err != nil {
		return nil, err
	}
	return begin(ctx, own, s)
}

// Resume implements Resumer.
func (m Fast) Resume(_ context.Context, p *Problem, rd io.Reader) (Run, error) {
	s, own, err := m.plan(p)
	if err != nil {
		return nil, err
	}
	return resume(own, s, rd)
}

// Needs implements Sampler.
func (m Fast) Needs() Needs { return Needs{OwnGrid: true, Noise: m.Eta > 0} }

// Cost implements Counter. A budget is spread over the steps of the given grid, which have no evaluations of their own.
func (m Fast) Cost(g schedules.Grid, i int) int {
	if m.Budget == 0 {
		return 1
	}
	n := len(g) - 1
	return (i+1)*m.Budget/n - i*m.Budget/n
}

func (m Fast) label() string {
	if m.solver {
		return "dpm-solver-fast"
	}
	return "dpm-fast"
}
