package samplers

import (
	"context"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// SA is the stochastic Adams solver (Xue et al. 2023, arXiv 2309.05019, eq. 14-17) of the data form with constant tau:
// with k = 1 + tau^2, h = lambda_t - lambda_s and l_j the Lagrange basis through the last Predictor predictions,
//
//	x_t = (sigma_t/sigma_s) e^(-tau^2 h) x_s + k alpha_t SUM_j W_j x0_j + sigma_t sqrt(1 - e^(-2 tau^2 h)) z
//	W_j = INT_0^h e^(-k (h-u)) l_j(u) du
//
// The corrector repeats the step from the corrected state before, with the new prediction and the last Corrector - 1
// ones and the same z, before the next step is made; the prediction is not made again. Orders rise over the first steps
// and fall at the end. Order 2 replaces the first moment of the weight by h^2/2 in both, as the authors' code does. One
// evaluation per step. State X between steps is the predictor's output, where the model is asked.
type SA struct {
	Predictor int     // 1 to 4; 0 = 2
	Corrector int     // 1 to 4; 0 = 2, -1 = none
	Tau       float64 // 0 = the ODE, 1 = the reverse SDE
	// Tau holds for steps from times From to To of the process, outside it is 0; From = To: everywhere. diffusers takes 200
	// to 800.
	From, To float64
	Lower    Lowering
}

func init() {
	register(Info{Name: "sa", Order: "max(p, c)", NFE: "1", Summary: "stochastic Adams predictor-corrector", Source: "SA-Solver, arXiv 2309.05019, eq. 14-17",
		Aliases: []string{"SASolverScheduler", "sa_solver"},
		Options: []Option{{"predictor", "2", "order, 1 to 4"}, {"corrector", "2", "order, 1 to 4; 0 = none"}, {"tau", "1", "0 = the ODE, 1 = the reverse SDE"}, {"tau-from", "0", "tau is 0 for steps from times below this ..."}, {"tau-to", "0", "... or above this; 0 = everywhere"},
			{"lower-order-final", "true", ""}, {"lower-below", "", "only on grids with fewer steps"}},
		New: func(o *spec.Options) (Sampler, error) {
			m := SA{Predictor: o.Int("predictor", 2, 1, 4), Corrector: o.Int("corrector", 2, 0, 4), Tau: o.FloatIn("tau", 1, 0, 100), From: o.FloatIn("tau-from", 0, 0, 1e9), To: o.FloatIn("tau-to", 0, 0, 1e9), Lower: lowering(o, true)}
			if m.Corrector == 0 {
				m.Corrector = -1
			}
			return m, nil
		}})
}

func (m SA) step(ctx context.Context, r *run, s, t schedules.Node) error {
	p, c := m.Predictor, m.Corrector
	if p == 0 {
		p = 2
	}
	if c == 0 {
		c = 2
	}
	q, err := r.predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	x := r.x
	last, old := r.vec("corrected")
	if old && c > 0 && r.hist[0].At.Alpha > 0 {
		from := r.hist[0].At
		var v [4][]float64
		var at [4]schedules.Node
		v[0], at[0] = q, s
		n := min(c, len(r.hist)+1, m.Lower.cap(c, r, always)+2)
		for j := 1; j < n; j++ {
			v[j], at[j] = r.hist[j-1].V, r.hist[j-1].At
		}
		n = finite(at[:n])
		x = r.temp()
		xi, _ := r.vec("noise")
		m.combine(x, last, from, s, v[:n], at[:n], xi, m.tau(r, from))
	}
	copy(last, x)
	r.keep(q, s, max(p, c))
	switch {
	case t.Sigma == 0:
		lin(r.y, term{t.Alpha, q})
		return nil
	case t.Ratio() == s.Ratio(): // a repeated node: only the correction
		copy(r.y, x)
		r.forget()
		return nil
	}
	var v [4][]float64
	var at [4]schedules.Node
	n := min(p, len(r.hist), m.Lower.cap(p, r, always))
	for j := range n {
		v[j], at[j] = r.hist[j].V, r.hist[j].At
	}
	n = finite(at[:n])
	tau := m.tau(r, s)
	xi, _ := r.vec("noise")
	if tau > 0 || m.From != m.To && m.Tau > 0 { // drawn all the same, so that a stream stays in step
		r.normal(xi, DrawStep, s.Ratio(), t.Ratio())
		copy(r.z, xi)
	}
	m.combine(r.y, x, s, t, v[:n], at[:n], xi, tau)
	r.std = t.Sigma * math.Sqrt(-math.Expm1(-2*tau*tau*(t.Lambda()-s.Lambda())))
	return nil
}

// tau is that of a step from node s.
func (m SA) tau(r *run, s schedules.Node) float64 {
	if m.From != m.To && (s.T < m.From || s.T > m.To) {
		return 0
	}
	return r.opt("tau", m.Tau)
}

// finite counts the points, newest first, before one at alpha = 0 (lambda = -Inf); the newest always counts.
func finite(at []schedules.Node) int {
	for n := 1; n < len(at); n++ {
		if at[n].Alpha == 0 {
			return n
		}
	}
	return len(at)
}

// combine writes the step from x at s to t with predictions v made at the given nodes.
func (m SA) combine(dst, x []float64, s, t schedules.Node, v [][]float64, at []schedules.Node, xi []float64, tau float64) {
	h := t.Lambda() - s.Lambda()
	k := 1 + tau*tau
	n := len(v)
	var w [4]float64
	if n == 1 {
		w[0] = -t.Alpha * math.Expm1(-k*h)
	} else {
		var u [4]float64
		fact := 1.0
		for j := range n {
			u[j] = (at[j].Lambda() - s.Lambda()) / h
			w[j] = fact * phi(j+1, -k*h) // moment j of the weight over h^(j+1)
			fact *= float64(j + 1)
		}
		if n == 2 {
			w[1] = 0.5
		}
		vandermonde(u[:n], w[:n])
		for j := range n {
			w[j] *= k * t.Alpha * h
		}
	}
	ratio, std := t.Sigma/s.Sigma, 0.0
	if tau > 0 {
		ratio *= math.Exp(-tau * tau * h)
		std = t.Sigma * math.Sqrt(-math.Expm1(-2*tau*tau*h))
	}
	var terms [6]term
	terms[0], terms[1] = term{ratio, x}, term{std, xi}
	for j := range n {
		terms[2+j] = term{w[j], v[j]}
	}
	lin(dst, terms[:2+n]...)
}

func (SA) corrects() {}

func (SA) settable() []string { return []string{"tau"} }

// Begin implements Sampler.
func (m SA) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (m SA) Needs() Needs { return Needs{Noise: m.Tau > 0} }

func (SA) label() string { return "sa" }
