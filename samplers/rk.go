package samplers

import (
	"context"
	"errors"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// Variable is what an ODE solver integrates over.
type Variable int

// BySigma integrates d xb/d sb = eps (xb = x/alpha, sb = sigma/alpha), ByTime dx/dt = velocity in the process's own time.
// Auto takes time where the grid starts without signal (sb is infinite there) and sigma elsewhere.
const (
	Auto Variable = iota
	BySigma
	ByTime
)

func readVariable(o *spec.Options) Variable {
	return map[string]Variable{"auto": Auto, "sigma": BySigma, "time": ByTime}[o.Choice("variable", "auto", "sigma", "time")]
}

func (v Variable) on(g schedules.Grid) Variable {
	if v == Auto {
		if g[0].Alpha == 0 {
			return ByTime
		}
		return BySigma
	}
	return v
}

// RK is an explicit Runge-Kutta method of the probability-flow ODE, over sigma or over time (see Variable):
//
//	k_i = f(t + c_i h, x + h SUM_j a_ij k_j),  x' = x + h SUM_i b_i k_i
//
// midpoint (order 2), heun (order 2), rk4 (order 4, the classical tableau) and rk4-38 (order 4, the 3/8 rule, which is
// torchdiffeq's "rk4"). Every stage is one evaluation. A step onto sigma = 0 is first order where the last stage would
// have to ask the model there.
type RK struct {
	Tableau  *Tableau // nil = Midpoint
	Variable Variable
}

// Tableau is a Butcher tableau of an explicit method.
type Tableau struct {
	Name string
	A    [][]float64
	B, C []float64
}

// The tableaux.
var (
	Midpoint = &Tableau{"midpoint", [][]float64{{}, {0.5}}, []float64{0, 1}, []float64{0, 0.5}}
	HeunRK   = &Tableau{"heun", [][]float64{{}, {1}}, []float64{0.5, 0.5}, []float64{0, 1}}
	RK4      = &Tableau{"rk4", [][]float64{{}, {0.5}, {0, 0.5}, {0, 0, 1}}, []float64{1. / 6, 1. / 3, 1. / 3, 1. / 6}, []float64{0, 0.5, 0.5, 1}}
	RK438    = &Tableau{"rk4-38", [][]float64{{}, {1. / 3}, {-1. / 3, 1}, {1, -1, 1}}, []float64{1. / 8, 3. / 8, 3. / 8, 1. / 8}, []float64{0, 1. / 3, 2. / 3, 1}}
)

func init() {
	for _, row := range []struct {
		t       *Tableau
		order   string
		summary string
	}{
		{Midpoint, "2", "explicit midpoint rule"},
		{RK4, "4", "classical Runge-Kutta; an accuracy reference"},
		{RK438, "4", "Kutta's 3/8 rule"},
	} {
		register(Info{Name: row.t.Name, Order: row.order, NFE: string(rune('0' + len(row.t.B))), Summary: row.summary, Source: "Hairer, Norsett, Wanner, Solving ODEs I, II.1",
			Options: []Option{{"variable", "auto", "sigma: d xb/d sb = eps; time: dx/dt = velocity; auto: time from a node without signal, else sigma"}},
			New:     func(o *spec.Options) (Sampler, error) { return RK{row.t, readVariable(o)}, nil }})
	}
}

// asksAtEnd tells whether a stage asks the model at the end of the step.
func (t *Tableau) asksAtEnd() bool { return t.C[len(t.C)-1] == 1 }

// over is on for a run: on a schedules.Field or a bridge there is nothing but time.
func (v Variable) over(r *run, g schedules.Grid) Variable {
	if r.gau == nil {
		return ByTime
	}
	return v.on(g)
}

func (m RK) byField() bool { return m.Variable != BySigma }

func (m RK) tableau() *Tableau {
	if m.Tableau == nil {
		return Midpoint
	}
	return m.Tableau
}

func (m RK) step(ctx context.Context, r *run, s, t schedules.Node) error {
	v := m.Variable.over(r, r.grid)
	if v == BySigma && s.Alpha == 0 {
		return errNoiseForm
	}
	tab := m.tableau()
	if tab.asksAtEnd() && t.Sigma == 0 && r.bridge == nil {
		return r.firstOrder(ctx, t)
	}
	f, from, to := v.field(r, s, t)
	h := to - from
	var k [8][]float64
	for i := range tab.B {
		at := f.node(from + tab.C[i]*h)
		if tab.C[i] == 1 {
			at = t
		}
		var err error
		if i == 0 {
			k[i], err = r.predict(ctx, f.kind)
		} else {
			var terms [8]term
			terms[0] = term{f.into(at) * f.out(s), r.x}
			for j, a := range tab.A[i] {
				terms[1+j] = term{f.into(at) * h * a, k[j]}
			}
			lin(r.u, terms[:1+len(tab.A[i])]...)
			k[i], err = r.predictAt(ctx, at, i, f.kind)
		}
		if err != nil {
			return err
		}
	}
	var terms [8]term
	terms[0] = term{f.into(t) * f.out(s), r.x}
	for i, b := range tab.B {
		terms[1+i] = term{f.into(t) * h * b, k[i]}
	}
	lin(r.y, terms[:1+len(tab.B)]...)
	return nil
}

// field is the ODE over one of the variables: what the model is asked for, and how the integrated state (xb or x) comes
// from the state x and goes back.
type field struct {
	kind schedules.Kind
	r    *run
}

func (v Variable) field(r *run, s, t schedules.Node) (f field, from, to float64) {
	if v == ByTime {
		return field{schedules.Velocity, r}, s.T, t.T
	}
	return field{schedules.Eps, r}, s.Ratio(), t.Ratio()
}

// node returns the node at value v of the variable.
func (f field) node(v float64) schedules.Node {
	if f.kind == schedules.Velocity {
		return f.r.path.At(v)
	}
	return f.r.path.AtRatio(v)
}

// out is what multiplies x at n to give the integrated state, into its inverse.
func (f field) out(n schedules.Node) float64 {
	if f.kind == schedules.Velocity {
		return 1
	}
	return 1 / n.Alpha
}

func (f field) into(n schedules.Node) float64 {
	if f.kind == schedules.Velocity {
		return 1
	}
	return n.Alpha
}

// Begin implements Sampler.
func (m RK) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (RK) Needs() Needs { return Needs{} }

// Cost implements Counter.
func (m RK) Cost(g schedules.Grid, i int) int {
	if tab := m.tableau(); !tab.asksAtEnd() || g[i+1].Sigma > 0 {
		return len(tab.B)
	}
	return 1
}

func (m RK) label() string { return m.tableau().Name }

// Heun is EDM's second-order sampler (Karras et al. 2022, arXiv 2206.00364, algorithm 2): a churned Euler step corrected
// by the trapezoidal rule in (xb, sb), without the correction on a step onto sigma = 0. With Churn 0 it is k-diffusion's
// sample_heun. 2N - 1 evaluations where the grid ends at 0, else 2N. A grid that starts
// without signal (a flow at t = 1) is integrated over the process's own time, as diffusers' FlowMatchHeun does.
type Heun struct{ Churn Churn }

func init() {
	for _, name := range []string{"heun", "edm"} {
		options := churnOptions()
		if name == "heun" {
			options = append(options, Option{"variable", "", "sigma or time: the plain Runge-Kutta method, two evaluations on every step"})
		}
		register(Info{Name: name, Order: "2", NFE: "2", Source: "EDM, arXiv 2206.00364, algorithm 2", Options: options,
			Summary: map[string]string{"heun": "Heun's second-order method", "edm": "EDM's stochastic Heun sampler (churn)"}[name],
			Aliases: map[string][]string{"heun": {"HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "k_heun"}, "edm": {"EDMEulerScheduler"}}[name],
			New: func(o *spec.Options) (Sampler, error) {
				if name == "heun" && o.Has("variable") {
					v := readVariable(o)
					if c := readChurn(o); c.Churn > 0 {
						return nil, errors.New("heun: churn belongs to the form without variable")
					}
					return RK{HeunRK, v}, nil
				}
				return Heun{readChurn(o)}, nil
			}})
	}
}

func (m Heun) step(ctx context.Context, r *run, s, t schedules.Node) error {
	if Auto.over(r, r.grid) == ByTime && m.Churn.Churn == 0 && (t.Sigma > 0 || r.bridge != nil) {
		return RK{HeunRK, ByTime}.step(ctx, r, s, t)
	}
	if r.gau == nil || s.Alpha == 0 || t.Sigma == 0 && m.Churn.Churn == 0 {
		return r.firstOrder(ctx, t)
	}
	x, n, e, err := m.Churn.start(ctx, r, s, schedules.Eps)
	if err != nil {
		return err
	}
	if t.Sigma == 0 {
		x0, err := r.convert(schedules.X0)
		if err != nil {
			return err
		}
		lin(r.y, term{t.Alpha, x0})
		return nil
	}
	d := t.Alpha * (t.Ratio() - n.Ratio())
	lin(r.u, term{t.Alpha / n.Alpha, x}, term{d, e})
	e1, err := r.predictAt(ctx, t, 1, schedules.Eps)
	if err != nil {
		return err
	}
	lin(r.y, term{t.Alpha / n.Alpha, x}, term{d / 2, e}, term{d / 2, e1})
	return nil
}

func (m Heun) byField() bool { return m.Churn.Churn == 0 }

// Begin implements Sampler.
func (m Heun) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (m Heun) Needs() Needs { return Needs{Noise: m.Churn.Churn > 0} }

// Cost implements Counter.
func (m Heun) Cost(g schedules.Grid, i int) int {
	if Auto.on(g) == ByTime && m.Churn.Churn == 0 && g[i+1].Sigma > 0 {
		return 2
	}
	return inner(g, i, 2)
}

// inner is the cost of a step that asks at inner nodes too: one onto sigma = 0 or from alpha = 0 is first order.
func inner(g schedules.Grid, i, calls int) int {
	if g[i+1].Sigma == 0 || g[i].Alpha == 0 {
		return 1
	}
	return calls
}

func (Heun) label() string { return "heun" }

// DPM2 is k-diffusion's sample_dpm_2: the midpoint rule in (xb, sb) with the inner node in the middle of log sigma, and a
// churn. A step onto sigma = 0 is first order. Its ancestral form takes the deterministic step down to
// sqrt(sigma_t^2 - up^2) and adds fresh noise (see DDIM). Order 2, two evaluations per step.
type DPM2 struct {
	Churn     Churn
	Ancestral bool
	Eta       float64 // of the ancestral form
}

func init() {
	register(Info{Name: "dpm-2", Order: "2", NFE: "2", Summary: "midpoint in log sigma", Source: "k-diffusion sample_dpm_2; EDM, arXiv 2206.00364, algorithm 3",
		Aliases: []string{"DPM2", "KDPM2DiscreteScheduler", "dpm_2", "k_dpm_2"}, Options: churnOptions(),
		New: func(o *spec.Options) (Sampler, error) { return DPM2{Churn: readChurn(o)}, nil }})
	register(Info{Name: "dpm-2-ancestral", Order: "2", NFE: "2", Summary: "midpoint in log sigma with fresh noise at every step", Source: "k-diffusion sample_dpm_2_ancestral",
		Aliases: []string{"DPM2 a", "KDPM2AncestralDiscreteScheduler", "dpm_2_ancestral"}, Options: []Option{{"eta", "1", ""}, {"s-noise", "1", "multiplies the noise"}},
		New: func(o *spec.Options) (Sampler, error) {
			return DPM2{Ancestral: true, Eta: o.FloatIn("eta", 1, 0, math.MaxFloat64), Churn: Churn{SNoise: o.FloatIn("s-noise", 1, 0, math.MaxFloat64)}}, nil
		}})
}

func (m DPM2) step(ctx context.Context, r *run, s, t schedules.Node) error {
	if s.Alpha == 0 {
		return r.firstOrder(ctx, t)
	}
	x, n, e, err := m.Churn.start(ctx, r, s, schedules.Eps)
	if err != nil {
		return err
	}
	down, up := t.Sigma, 0.0
	if m.Ancestral {
		down, up = ancestral(s, t, r.opt("eta", m.Eta))
	}
	to := down / t.Alpha // the deterministic part ends at this ratio
	if to == 0 {
		x0, err := r.convert(schedules.X0)
		if err != nil {
			return err
		}
		lin(r.y, term{t.Alpha, x0})
	} else {
		mid := r.gau.AtRatio(math.Sqrt(n.Ratio() * to))
		lin(r.u, term{mid.Alpha / n.Alpha, x}, term{mid.Alpha * (mid.Ratio() - n.Ratio()), e})
		e1, err := r.predictAt(ctx, mid, 1, schedules.Eps)
		if err != nil {
			return err
		}
		lin(r.y, term{t.Alpha / n.Alpha, x}, term{t.Alpha * (to - n.Ratio()), e1})
	}
	r.addNoise(up*orOne(m.Churn.SNoise), DrawStep, s.Ratio(), t.Ratio())
	return nil
}

func (m DPM2) settable() []string {
	if m.Ancestral {
		return []string{"eta"}
	}
	return nil
}

// Begin implements Sampler.
func (m DPM2) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (m DPM2) Needs() Needs { return Needs{Noise: m.Ancestral || m.Churn.Churn > 0} }

// Cost implements Counter.
func (DPM2) Cost(g schedules.Grid, i int) int { return inner(g, i, 2) }

func (m DPM2) label() string {
	if m.Ancestral {
		return "dpm-2-ancestral"
	}
	return "dpm-2"
}
