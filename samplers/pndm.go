package samplers

import (
	"context"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// PNDM is the pseudo numerical method of Liu et al. 2022 (arXiv 2202.09778): PLMS (the Adams-Bashforth method of order 4 in
// (xb, sb)) with a better start. By default the first step is made again as the trapezoid rule, and the order then rises
// 2, 3, 4 (diffusers' skip_prk_steps): N + 1 evaluations, the two of the first step in one Next.
// With PRK the first three steps are the classical Runge-Kutta method with the inner node in the middle of the process's
// own time (at a whole timestep of a discrete process): N + 9 evaluations.
//
// A start needs the noise prediction at its end, so none is made on a step onto sigma = 0; a step from a node without
// signal is first order. The weights are those of a uniform grid in sb: the order is 3 there (4 with PRK), on others 2.
type PNDM struct {
	PRK   bool
	Lower Lowering
}

func init() {
	register(Info{Name: "pndm", Order: "2 (3 or 4 on uniform sb)", NFE: "1", Summary: "PLMS with a Runge-Kutta start", Source: "PNDM, arXiv 2202.09778, eq. 9-14; diffusers PNDMScheduler",
		Aliases: []string{"PNDMScheduler"},
		Options: append([]Option{{"skip-prk", "true", "true: the first step is made twice; false: three Runge-Kutta steps of four evaluations"}}, lowerOptions...),
		New: func(o *spec.Options) (Sampler, error) {
			return PNDM{PRK: !o.Bool("skip-prk", true), Lower: lowerIfAsked(o)}, nil
		}})
}

func (m PNDM) step(ctx context.Context, r *run, s, t schedules.Node) error {
	if s.Alpha == 0 {
		return r.firstOrder(ctx, t)
	}
	e, err := r.predict(ctx, schedules.Eps)
	if err != nil {
		return err
	}
	d := t.Ratio() - s.Ratio()
	switch n := len(r.hist); {
	case m.PRK && n < 3 && t.Sigma > 0:
		err = m.rungeKutta(ctx, r, s, t, e)
	case !m.PRK && n == 0 && t.Sigma > 0:
		lin(r.u, term{t.Alpha / s.Alpha, r.x}, term{t.Alpha * d, e})
		var e1 []float64
		if e1, err = r.predictAt(ctx, t, 1, schedules.Eps); err == nil {
			lin(r.y, term{t.Alpha / s.Alpha, r.x}, term{t.Alpha * d / 2, e}, term{t.Alpha * d / 2, e1})
		}
	default:
		a := adams[r.orderNow(4, m.Lower)-1]
		var c [4]float64
		for i, w := range a {
			c[i] = d * w
		}
		r.barStep(s, t, e, c[:len(a)])
	}
	if err != nil {
		return err
	}
	r.keep(e, s, 3)
	return nil
}

// rungeKutta is a step of the classical method, e being the prediction at s.
func (m PNDM) rungeKutta(ctx context.Context, r *run, s, t schedules.Node, e []float64) error {
	mid := halfway(r.gau, s, t)
	k := [4][]float64{e}
	for i, n := range []schedules.Node{mid, mid, t} {
		lin(r.u, term{n.Alpha / s.Alpha, r.x}, term{n.Alpha * (n.Ratio() - s.Ratio()), k[i]})
		var err error
		if k[i+1], err = r.predictAt(ctx, n, i+1, schedules.Eps); err != nil {
			return err
		}
	}
	c := t.Alpha * (t.Ratio() - s.Ratio()) / 6
	lin(r.y, term{t.Alpha / s.Alpha, r.x}, term{c, k[0]}, term{2 * c, k[1]}, term{2 * c, k[2]}, term{c, k[3]})
	return nil
}

// halfway is the node in the middle of the time from s to t. Between two timesteps of a discrete process it is a timestep,
// the earlier one of an odd interval, where there is one.
func halfway(p schedules.Gaussian, s, t schedules.Node) schedules.Node {
	half := (s.T - t.T) / 2
	if _, discrete := p.(*schedules.VPDiscrete); discrete && s.T == math.Trunc(s.T) && t.T == math.Trunc(t.T) && half >= 1 {
		half = math.Trunc(half)
	}
	return p.At(s.T - half)
}

// Begin implements Sampler.
func (m PNDM) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (PNDM) Needs() Needs { return Needs{} }

// Cost implements Counter.
func (m PNDM) Cost(g schedules.Grid, i int) int {
	n := 0 // predictions in the history
	for j := i; j > 0 && g[j].Ratio() <= g[j-1].Ratio(); j-- {
		if g[j-1].Alpha > 0 && g[j].Ratio() < g[j-1].Ratio() {
			n++
		}
	}
	switch {
	case g[i].Alpha == 0 || g[i+1].Sigma == 0:
	case m.PRK && n < 3:
		return 4
	case !m.PRK && n == 0:
		return 2
	}
	return 1
}

func (PNDM) label() string { return "pndm" }
