package samplers

import (
	"context"
	"fmt"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// GHVB is the generalized heavy-ball method of real order q (Wizadwongsa et al. 2023, "Diffusion Sampling with Momentum
// for Mitigating Divergence Artifacts", arXiv 2307.11118): with k = ceil(q) and beta = q - k + 1, in (xb, sb),
//
//	v_n = (1 - beta) v_{n-1} + beta eps_n,  xb_{n+1} = xb_n + (sb_{n+1} - sb_n) SUM_{i<k} (b_i/beta) v_{n-i}
//	b = beta a^(k) + (1 - beta) [a^(k-1) - a^(k-1) shifted by one],  a^(k) the Adams-Bashforth weights
//
// starting from v_{-1} = eps_0, the order rising over the first steps. It interpolates between the orders: beta = 1 is
// PLMS-k, beta -> 0 PLMS-(k-1). A larger stability region than PLMS's keeps pictures clean at few steps and high
// guidance, for some accuracy. One evaluation per step; order 2 (k with exact starts on a uniform sb grid).
type GHVB struct {
	Order int     // k, 1 to 5; 0 = 4
	Beta  float64 // in (0, 1]; 0 = 0.8
}

func init() {
	register(Info{
		Name: "ghvb", Order: "2", NFE: "1",
		Summary: "generalized heavy ball: momentum that trades accuracy for fewer divergence artifacts at high guidance",
		Source:  "arXiv 2307.11118, section 4.2",
		Options: []Option{{"order", "3.8", "real, in (0, 5]: q = 3.8 is k = 4, beta = 0.8; or an integer k with beta"}, {"beta", "", "in (0, 1], with an integer order"}},
		New: func(o *spec.Options) (Sampler, error) {
			q := o.FloatIn("order", 3.8, 1e-3, 5)
			k := math.Ceil(q - 1e-9)
			beta := q - k + 1
			if o.Has("beta") {
				if q != k {
					return nil, fmt.Errorf("ghvb: give a real order or an integer order with beta, not order=%g with beta", q)
				}
				beta = o.FloatIn("beta", 1, 1e-6, 1)
			}
			return GHVB{Order: int(k), Beta: beta}, nil
		},
	})
}

// ghvbWeights returns b of the doc comment.
func ghvbWeights(k int, beta float64) (b [5]float64) {
	for i, a := range adams[k-1] {
		b[i] = beta * a
	}
	if k > 1 {
		for i, a := range adams[k-2] {
			b[i] += (1 - beta) * a
			b[i+1] -= (1 - beta) * a
		}
	}
	return b
}

func (m GHVB) step(ctx context.Context, r *run, s, t schedules.Node) error {
	if s.Alpha == 0 {
		return r.firstOrder(ctx, t)
	}
	order, beta := m.Order, m.Beta
	if order == 0 {
		order = 4
	}
	if beta == 0 {
		beta = 0.8
	}
	v, err := r.predict(ctx, schedules.Eps)
	if err != nil {
		return err
	}
	last, old := r.vec("v")
	if !old {
		copy(last, v)
	}
	lin(v, term{1 - beta, last}, term{beta, v})
	copy(last, v)
	k := min(order, len(r.hist)+1)
	c := ghvbWeights(k, beta)
	for i := range k {
		c[i] *= (t.Ratio() - s.Ratio()) / beta
	}
	r.barStep(s, t, v, c[:k])
	r.keep(v, s, order-1)
	return nil
}

// Begin implements Sampler.
func (m GHVB) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (GHVB) Needs() Needs { return Needs{} }

func (GHVB) label() string { return "ghvb" }

// HeavyBall adds Polyak's momentum to PLMS-k (arXiv 2307.11118, section 4.1): with p_n = SUM_i a_i eps_{n-i},
//
//	v_n = (1 - beta) v_{n-1} + beta p_n,  v_{-1} = eps_0
//	heavy ball: xb_{n+1} = xb_n + (sb_{n+1} - sb_n) v_n
//	Nesterov:   xb_{n+1} = xb_n + (sb_{n+1} - sb_n) [(1 - beta) v_n + beta p_n]
//
// beta = 1 is PLMS-k. Order 1; the stability region grows without bound as beta -> 0.
type HeavyBall struct {
	Order    int     // of the base, 1 to 5; 0 = 4
	Beta     float64 // in (0, 1]; 0 = 0.8
	Nesterov bool
}

func init() {
	register(Info{
		Name: "nesterov", Order: "1", NFE: "1", Summary: "PLMS with Nesterov's momentum", Source: "arXiv 2307.11118, appendix",
		Options: []Option{{"order", "4", "of the base, 1 to 5"}, {"beta", "0.8", "in (0, 1]"}},
		New: func(o *spec.Options) (Sampler, error) {
			return HeavyBall{Order: o.Int("order", 4, 1, 5), Beta: o.FloatIn("beta", 0.8, 1e-6, 1), Nesterov: true}, nil
		},
	})
}

func (m HeavyBall) step(ctx context.Context, r *run, s, t schedules.Node) error {
	if s.Alpha == 0 {
		return r.firstOrder(ctx, t)
	}
	order, beta := m.Order, m.Beta
	if order == 0 {
		order = 4
	}
	if beta == 0 {
		beta = 0.8
	}
	e, err := r.predict(ctx, schedules.Eps)
	if err != nil {
		return err
	}
	v, old := r.vec("v")
	if !old {
		copy(v, e)
	}
	p := r.temp()
	a := adams[min(order, len(r.hist)+1)-1]
	var terms [5]term
	terms[0] = term{a[0], e}
	for i := 1; i < len(a); i++ {
		terms[i] = term{a[i], r.hist[i-1].V}
	}
	lin(p, terms[:len(a)]...)
	lin(v, term{1 - beta, v}, term{beta, p})
	d := t.Alpha * (t.Ratio() - s.Ratio())
	if m.Nesterov {
		lin(r.y, term{t.Alpha / s.Alpha, r.x}, term{d * (1 - beta), v}, term{d * beta, p})
	} else {
		lin(r.y, term{t.Alpha / s.Alpha, r.x}, term{d, v})
	}
	r.keep(e, s, order-1)
	return nil
}

// Begin implements Sampler.
func (m HeavyBall) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (HeavyBall) Needs() Needs { return Needs{} }

func (m HeavyBall) label() string {
	if m.Nesterov {
		return "nesterov"
	}
	return "hb"
}
