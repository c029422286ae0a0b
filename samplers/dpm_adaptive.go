package samplers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// DPMAdaptive is DPM-Solver-12 or -23 (arXiv 2206.00927, algorithm 3 and appendix C): the singlestep solvers of two
// neighbouring orders, which share their evaluations, and whose difference is the error of a step in lambda:
//
//	e = RMS( (high - low) / max(Atol, Rtol max(|low|, |low of the step before|)) )
//
// The step is made with the higher order. With k-diffusion's controller states are compared in the scale of the data
// (x/alpha), and h is multiplied by f = 1 + atan(u - 1), u = e^(-(P+I+D)/k) e1^((P+2D)/k) e2^(-D/k), with e1
// and e2 of the two accepted steps before and k the order (1.5 with Eta); a step with f >= Safety is taken. With DPM-Solver's
// own controller states are compared as they are, a step with e <= 1 is taken, and h is multiplied by Safety e^(-1/k): nothing
// limits its growth, so that a step with next to no error (as the first ones from much noise are) can be followed by one
// that is too long to notice what it misses. Prefer the other.
//
// Order evaluations per try; a try after a refusal keeps the first of them. (The references ask it again.) With Eta the
// step goes down to less noise than the goal's and fresh noise is added (see DDIM). A clean end is stepped onto from the
// last noisy node with x = x0 (see Needs.OwnGrid). The start must have signal.
type DPMAdaptive struct {
	Order      int            // 2 or 3; 0 = 3
	Kind       schedules.Kind // Eps (DPM-Solver) or X0 (DPM-Solver++)
	Rtol, Atol float64        // 0 = 0.05, 0.0078
	HInit      float64        // first step in lambda; 0 = 0.05
	Safety     float64        // 0 = 0.81 (0.9 with DPM-Solver's controller)
	P, I, D    float64        // all 0 = 0, 1, 0
	Plain      bool           // DPM-Solver's controller
	Eta        float64
	SNoise     float64 // 0 = 1
	Joint      bool    // one step size for the batch, as the references do: the error is the RMS (Plain: the largest) of the rows
}

func init() {
	register(Info{Name: "dpm-adaptive", Order: "k", NFE: "k per try", Summary: "adaptive DPM-Solver-12 or -23", Source: "DPM-Solver, arXiv 2206.00927, appendix C; k-diffusion sample_dpm_adaptive",
		Aliases: []string{"DPM adaptive", "dpm_adaptive", "k_dpm_ad"},
		Options: []Option{{"order", "3", "2 or 3"}, {"rtol", "0.05", "relative tolerance"}, {"atol", "0.0078", "absolute tolerance"},
			{"form", "eps", "eps or x0"}, {"h-init", "0.05", "first step in lambda"},
			{"controller", "pid", "pid (k-diffusion) or dpm-solver"}, {"accept-safety", "0.81", "of pid: a step is taken when its factor is at least this"},
			{"pcoeff", "0", "of pid"}, {"icoeff", "1", "of pid"}, {"dcoeff", "0", "of pid"}, {"theta", "0.9", "of dpm-solver: safety factor"},
			{"eta", "0", "share of fresh noise (pid)"}, {"s-noise", "1", "multiplies the noise"},
			{"norm", "image", "image: every image has its own steps; batch: one error and one step size for the batch"}},
		New: func(o *spec.Options) (Sampler, error) {
			m := DPMAdaptive{Order: o.Int("order", 3, 2, 3), Rtol: o.FloatIn("rtol", 0.05, leastTol, 1), Atol: o.FloatIn("atol", 0.0078, leastTol, math.MaxFloat64),
				HInit: o.FloatIn("h-init", 0.05, 1e-9, 1e9), Kind: readForm(o), Joint: readNorm(o),
				Plain: o.Choice("controller", "pid", "dpm-solver") == "dpm-solver"}
			if m.Plain {
				m.Safety = o.FloatIn("theta", 0.9, 1e-3, 1)
				return m, nil
			}
			m.Safety = o.FloatIn("accept-safety", 0.81, 1e-3, 1)
			m.P, m.I, m.D = o.FloatIn("pcoeff", 0, -10, 10), o.FloatIn("icoeff", 1, -10, 10), o.FloatIn("dcoeff", 0, -10, 10)
			m.Eta, m.SNoise = o.FloatIn("eta", 0, 0, math.MaxFloat64), o.FloatIn("s-noise", 1, 0, math.MaxFloat64)
			if m.P+m.I+m.D <= 0 {
				return nil, fmt.Errorf("dpm-adaptive: pcoeff+icoeff+dcoeff is %g: want more than 0, for a larger error must shorten the step", m.P+m.I+m.D)
			}
			return m, nil
		}})
}

func readForm(o *spec.Options) schedules.Kind {
	if o.Choice("form", "eps", "x0") == "x0" {
		return schedules.X0
	}
	return schedules.Eps
}

// errNoSignal refuses to step in lambda from where it is infinite.
var errNoSignal = errors.New("lambda is infinite at a node without signal (alpha = 0): start later (--t-start)")

func (m DPMAdaptive) axis(r *run) (axis, error) {
	if m.Kind != schedules.Eps && m.Kind != schedules.X0 {
		return axis{}, fmt.Errorf("has forms for eps and x0, not for %v", m.Kind)
	}
	if m.Order != 0 && m.Order != 2 && m.Order != 3 {
		return axis{}, fmt.Errorf("has orders 2 and 3, not %d", m.Order)
	}
	if r.grid[r.p.First].Alpha == 0 {
		return axis{}, errNoSignal
	}
	return axis{kind: m.Kind, value: schedules.Node.Lambda, near: 1e-5, node: func(l float64) schedules.Node { return r.gau.AtRatio(math.Exp(-l)) }}, nil
}

func (m DPMAdaptive) order() int {
	if m.Order == 0 {
		return 3
	}
	return m.Order
}

func (m DPMAdaptive) first(_ context.Context, r *adaptiveRun, rows []int) error {
	for _, k := range rows {
		if r.ctl[k*control] == 0 {
			r.ctl[k*control] = cmp.Or(m.HInit, 0.05)
			lin(r.row(r.prev, k), term{m.scale(r.from[k]), r.row(r.x, k)})
		}
	}
	return nil
}

// scale is what multiplies a state at n before it is compared.
func (m DPMAdaptive) scale(n schedules.Node) float64 {
	if m.Plain {
		return 1
	}
	return 1 / n.Alpha
}

func (m DPMAdaptive) try(ctx context.Context, r *adaptiveRun, rows []int) error {
	order := m.order()
	rk := [3]float64{0, 0.5}
	if order == 3 {
		rk = [3]float64{0, 1. / 3, 2. / 3}
	}
	one := Singlestep{Kind: m.Kind}
	down := make([]schedules.Node, r.rows) // where the deterministic part ends
	eta := r.opt("eta", m.Eta)
	for _, k := range rows {
		down[k], r.added[k] = stepDown(r.run, r.from[k], r.goal[k], r.end, eta)
		r.added[k] *= orOne(m.SNoise)
	}
	q := func(k, n int) [][]float64 {
		v := [3][]float64{r.row(r.q, k)}
		for i := 1; i < n; i++ {
			v[i] = r.row(r.k[i], k)
		}
		return v[:n]
	}
	for i := 1; i < order; i++ {
		for _, k := range rows {
			n := at(r.run, r.from[k], rk[i]*(down[k].Lambda()-r.from[k].Lambda()))
			part := rk
			for j := range i {
				part[j] /= rk[i]
			}
			one.combine(r.row(r.u, k), r.row(r.x, k), r.from[k], n, q(k, i), part[:i], true)
			r.where[k] = n
		}
		if err := r.ask(ctx, rows, r.u, i, r.answers(i)); err != nil {
			return err
		}
	}
	rtol, atol := r.tol(cmp.Or(m.Rtol, 0.05), cmp.Or(m.Atol, 0.0078))
	lows := r.answers(order)
	for _, k := range rows {
		x, low, high, prev := r.row(r.x, k), r.row(lows, k), r.row(r.prop, k), r.row(r.prev, k)
		one.combine(low, x, r.from[k], down[k], q(k, order-1), rk[:order-1], false)
		one.combine(high, x, r.from[k], down[k], q(k, order), rk[:order], false)
		c := m.scale(down[k])
		sum := 0.0
		for j := range low {
			l := c * low[j]
			d := (l - float64(c*high[j])) / max(atol, rtol*max(math.Abs(l), math.Abs(prev[j])))
			sum += float64(d * d)
			low[j] = l
		}
		r.errs[k] = math.Sqrt(sum / float64(r.dim))
		if down[k] != r.goal[k] {
			lin(high, term{r.goal[k].Alpha / down[k].Alpha, high})
		}
	}
	return nil
}

// stepDown splits a step with fresh noise: it goes down to the node that is returned, at end at most, and noise of the
// returned standard deviation, in the scale of t, brings it back to t.
func stepDown(r *run, s, t, end schedules.Node, eta float64) (schedules.Node, float64) {
	if eta == 0 {
		return t, 0
	}
	down, _ := ancestral(s, t, eta)
	sb := max(down/t.Alpha, end.Ratio())
	if sb >= t.Ratio() {
		return t, 0
	}
	d := end
	if sb > end.Ratio() {
		d = r.gau.AtRatio(sb)
	}
	return d, t.Alpha * math.Sqrt((t.Ratio()-sb)*(t.Ratio()+sb))
}

func (m DPMAdaptive) judge(r *adaptiveRun, k int, e float64, _ bool) bool {
	h := r.ctl[k*control : (k+1)*control]
	if m.Plain {
		factor := 0.2 // of a step that overflowed
		if !math.IsInf(e, 1) {
			factor = cmp.Or(m.Safety, 0.9) * math.Pow(e, -1/float64(m.order()))
		}
		h[0] = math.Abs(r.next[k]-r.at[k]) * factor
		return e <= 1
	}
	order := float64(m.order())
	if r.opt("eta", m.Eta) != 0 {
		order = 1.5
	}
	p, i, d := m.P, m.I, m.D
	if p == 0 && i == 0 && d == 0 {
		i = 1
	}
	if math.IsInf(e, 1) { // a step that overflowed
		h[0] *= 1 + math.Atan(-1)
		return false
	}
	inv := 1 / (e + 1e-8) // errors may be 0
	if h[1] == 0 {
		h[1], h[2] = inv, inv
	}
	factor := 1 + math.Atan(math.Pow(inv, (p+i+d)/order)*math.Pow(h[1], -(p+2*d)/order)*math.Pow(h[2], d/order)-1)
	h[0] *= factor
	if factor < cmp.Or(m.Safety, 0.81) {
		return false
	}
	h[1], h[2] = inv, h[1]
	return true
}

func (m DPMAdaptive) taken(r *adaptiveRun, k int) bool {
	copy(r.row(r.prev, k), r.row(r.k[m.order()], k))
	return false
}

func (m DPMAdaptive) settable() []string {
	if m.Plain {
		return []string{"rtol", "atol"}
	}
	return []string{"rtol", "atol", "eta"}
}

// Begin implements Sampler.
func (m DPMAdaptive) Begin(ctx context.Context, p *Problem) (Run, error) {
	return beginAdaptive(ctx, p, m, m.Joint, m.Plain)
}

// Resume implements Resumer.
func (m DPMAdaptive) Resume(_ context.Context, p *Problem, rd io.Reader) (Run, error) {
	return resumeAdaptive(p, m, m.Joint, m.Plain, rd)
}

// Needs implements Sampler.
func (m DPMAdaptive) Needs() Needs { return Needs{OwnGrid: true, Noise: m.Eta > 0} }

func (DPMAdaptive) label() string { return "dpm-adaptive" }
