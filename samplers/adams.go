package samplers

import (
	"context"
	"fmt"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// The solvers of this file integrate d xb/d sb = eps in the scale of the data (xb = x/alpha, sb = sigma/alpha) from the
// last few noise predictions:
//
//	x_t = (alpha_t/alpha_s) x_s + alpha_t SUM_j C_j eps_{-j}

// barStep writes that step into r.y with weights c, e being the newest prediction.
func (r *run) barStep(s, t schedules.Node, e []float64, c []float64) {
	var terms [8]term
	terms[0] = term{t.Alpha / s.Alpha, r.x}
	terms[1] = term{t.Alpha * c[0], e}
	for j := 1; j < len(c); j++ {
		terms[1+j] = term{t.Alpha * c[j], r.hist[j-1].V}
	}
	lin(r.y, terms[:1+len(c)]...)
}

// adams are the Adams-Bashforth weights, newest first, of order 1 to 5.
var adams = [...][]float64{
	{1},
	{3. / 2, -1. / 2},
	{23. / 12, -16. / 12, 5. / 12},
	{55. / 24, -59. / 24, 37. / 24, -9. / 24},
	{1901. / 720, -2774. / 720, 2616. / 720, -1274. / 720, 251. / 720},
}

// PLMS is the Adams-Bashforth method with fixed weights in (xb, sb) (Liu et al. 2022, arXiv 2202.09778; iPNDM of Zhang
// and Chen, arXiv 2204.13902):
//
//	x_t = (alpha_t/alpha_s) x_s + alpha_t (sb_t - sb_s) SUM_i a_i eps_{-i}
//
// with the order rising 1, 2, 3, ... over the first steps. The weights are those of a uniform grid in sb, so on other
// grids the order is 2 at most. One evaluation per step.
type PLMS struct {
	Order int // 1 to 5; 0 = 4
	Lower Lowering
}

func init() {
	register(Info{
		Name: "plms", Order: "2 (k on uniform sb)", NFE: "1", Aliases: []string{"PLMS", "pseudo linear multistep"},
		Summary: "fixed Adams-Bashforth weights in sigma/alpha", Source: "arXiv 2202.09778, eq. 9-12",
		Options: append([]Option{{"order", "4", "1 to 5"}}, lowerOptions...),
		New: func(o *spec.Options) (Sampler, error) {
			return PLMS{Order: o.Int("order", 4, 1, 5), Lower: lowerIfAsked(o)}, nil
		},
	})
	register(Info{
		Name: "ipndm", Order: "2 (k on uniform sb)", NFE: "1",
		Summary: "improved pseudo numerical method: PLMS of order at most 4", Source: "arXiv 2204.13902; diff-sampler",
		Options: append([]Option{{"order", "4", "1 to 4"}}, lowerOptions...),
		New: func(o *spec.Options) (Sampler, error) {
			return PLMS{Order: o.Int("order", 4, 1, 4), Lower: lowerIfAsked(o)}, nil
		},
	})
}

func (m PLMS) step(ctx context.Context, r *run, s, t schedules.Node) error {
	if s.Alpha == 0 {
		return r.firstOrder(ctx, t)
	}
	e, err := r.predict(ctx, schedules.Eps)
	if err != nil {
		return err
	}
	order := m.order()
	a := adams[r.orderNow(order, m.Lower)-1]
	var c [5]float64
	for i, w := range a {
		c[i] = (t.Ratio() - s.Ratio()) * w
	}
	r.barStep(s, t, e, c[:len(a)])
	r.keep(e, s, order-1)
	return nil
}

func (m PLMS) order() int {
	if m.Order == 0 {
		return 4
	}
	return m.Order
}

// Begin implements Sampler.
func (m PLMS) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (PLMS) Needs() Needs { return Needs{} }

func (m PLMS) label() string { return "plms" }

// Basis is the variable in which DEIS's Lagrange polynomials are polynomials.
type Basis int

// The bases: sigma/alpha itself, its logarithm, and the time of a linear VP process fitted to the grid's ends.
const (
	BasisSigma Basis = iota
	BasisLog
	BasisTime
)

// DEIS is the exponential integrator with polynomial extrapolation of eps (Zhang and Chen 2022, arXiv 2204.13902):
//
//	C_j = INT_{sb_s}^{sb_t} l_j d sb
//
// with l_j the Lagrange basis through the last nodes, polynomial in log sb (diffusers), in sb ("rhoAB", which is LMS) or
// in the time of a VP process ("tAB": Basis time; beta fitted to the two ends of the grid as diff-sampler does). The
// integrals are Gauss-Legendre sums: exact in sb, 32 points elsewhere. The order rises over the first steps. One
// evaluation per step.
type DEIS struct {
	Order int // 1 to 4; 0 = 3 (LMS: 4)
	Basis Basis
	Lower Lowering
	lms   bool
}

func init() {
	register(Info{
		Name: "deis", Order: "k", NFE: "1", Aliases: []string{"DEISMultistepScheduler", "deis_multistep"},
		Summary: "exponential integrator with polynomial extrapolation of the noise", Source: "DEIS, arXiv 2204.13902, eq. 15",
		Options: []Option{{"order", "3", "1 to 4"}, {"basis", "log", "log, sigma or time"},
			{"lower-order-final", "true", "lower orders at the end of grids with fewer than lower-below steps; default false in the bases sigma and time"}, {"lower-below", "15", "no bound in the bases sigma and time"}},
		New: func(o *spec.Options) (Sampler, error) {
			m := DEIS{Order: o.Int("order", 3, 1, 4), Lower: lowerIfAsked(o)}
			switch o.Choice("basis", "log", "sigma", "time") {
			case "log":
				m.Basis, m.Lower = BasisLog, lowering(o, true)
			case "time":
				m.Basis = BasisTime
			}
			return m, nil
		},
	})
	for _, name := range []string{"lms", "ipndm-v"} {
		register(Info{
			Name: name, Order: "k", NFE: "1", Aliases: map[string][]string{"lms": {"LMSDiscreteScheduler", "k_lms"}, "ipndm-v": {"ipndm_v"}}[name],
			Summary: "linear multistep with weights for the grid at hand, in sigma/alpha", Source: "k-diffusion sample_lms; DEIS rhoAB",
			Options: append([]Option{{"order", "4", "1 to 4"}}, lowerOptions...),
			New: func(o *spec.Options) (Sampler, error) {
				m := DEIS{Order: o.Int("order", 4, 1, 4), Basis: BasisSigma, lms: true, Lower: lowerIfAsked(o)}
				if name == "ipndm-v" && o.Bool("parity", false) {
					return ipndmV{Order: m.Order, Lower: m.Lower}, nil
				}
				return m, nil
			},
		})
	}
}

func (m DEIS) step(ctx context.Context, r *run, s, t schedules.Node) error {
	order := m.order()
	if s.Alpha == 0 || (t.Sigma == 0 && m.Basis != BasisSigma) {
		return r.firstOrder(ctx, t)
	}
	e, err := r.predict(ctx, schedules.Eps)
	if err != nil {
		return err
	}
	below := 15
	if m.Basis != BasisLog {
		below = 1 // diff-sampler and k-diffusion never lower
	}
	n := min(order, len(r.hist)+1, m.Lower.cap(order, r, below))
	var nodes, c [4]float64
	nodes[0] = s.Ratio()
	for j := 1; j < n; j++ {
		nodes[j] = r.hist[j-1].At.Ratio()
	}
	m.weights(c[:n], nodes[:n], t.Ratio(), r.grid)
	r.barStep(s, t, e, c[:n])
	r.keep(e, s, order-1)
	return nil
}

func (m DEIS) order() int {
	switch {
	case m.Order > 0:
		return m.Order
	case m.lms:
		return 4
	}
	return 3
}

// weights fills c with INT_{nodes[0]}^{to} l_j d sb.
func (m DEIS) weights(c, nodes []float64, to float64, g schedules.Grid) {
	n := len(nodes)
	var w [4]float64 // the nodes in the basis's variable
	points, from, end := 8, nodes[0], to
	value := func(u float64) (weight float64) { return 1 }
	switch m.Basis {
	case BasisSigma:
		copy(w[:], nodes)
	case BasisLog:
		for j, sb := range nodes {
			w[j] = math.Log(sb)
		}
		from, end, points, value = w[0], math.Log(to), 32, math.Exp
	case BasisTime:
		vp := fitVP(g)
		for j, sb := range nodes {
			w[j] = vp.time(sb)
		}
		from, end, points, value = w[0], vp.time(to), 32, vp.rate
	}
	clear(c)
	gaussLegendre(points, from, end, func(u, weight float64) {
		f := weight * value(u)
		for j := range n {
			l := f
			for k := range n {
				if k != j {
					l *= (u - w[k]) / (w[j] - w[k])
				}
			}
			c[j] += l
		}
	})
}

// fittedVP is the linear VP process whose noise level runs over the grid: sb(t) = sqrt(exp(d t^2/2 + b t) - 1), with
// sb(1) = sb_max and sb(1e-3) = sb_min.
type fittedVP struct{ d, b float64 }

func fitVP(g schedules.Grid) fittedVP {
	const eps = 1e-3
	low, high := math.Inf(1), 0.0
	for _, n := range g { // without the ends at 0 and infinity
		if sb := n.Ratio(); sb > 0 && !math.IsInf(sb, 1) {
			low, high = min(low, sb), max(high, sb)
		}
	}
	lo, hi := math.Log1p(sq(low)), math.Log1p(sq(high))
	d := 2 * (lo/eps - hi) / (eps - 1)
	return fittedVP{d, hi - d/2}
}

func (p fittedVP) time(sb float64) float64 {
	return (math.Sqrt(p.b*p.b+2*p.d*math.Log1p(sb*sb)) - p.b) / p.d
}

// rate is d sb/dt.
func (p fittedVP) rate(t float64) float64 {
	e := math.Expm1(p.d*t*t/2 + p.b*t)
	return (p.d*t + p.b) * (e + 1) / (2 * math.Sqrt(e))
}

func sq(x float64) float64 { return x * x }

// gaussLegendre calls f with the n nodes and weights of the Gauss-Legendre rule on [from, to]. The nodes are the roots of
// the Legendre polynomial, by Newton's method.
func gaussLegendre(n int, from, to float64, f func(u, weight float64)) {
	mid, half := (from+to)/2, (to-from)/2
	for i := range n {
		x := math.Cos(math.Pi * (float64(i) + 0.75) / (float64(n) + 0.5))
		var dp float64
		for range 100 {
			p0, p1 := 1.0, x
			for k := 2; k <= n; k++ {
				p0, p1 = p1, (float64(2*k-1)*x*p1-float64(k-1)*p0)/float64(k)
			}
			dp = float64(n) * (x*p1 - p0) / (x*x - 1)
			step := p1 / dp
			x -= step
			if math.Abs(step) < 1e-16 {
				break
			}
		}
		f(mid+half*x, half*2/((1-x*x)*dp*dp))
	}
}

// Begin implements Sampler.
func (m DEIS) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (DEIS) Needs() Needs { return Needs{} }

func (m DEIS) label() string {
	if m.lms {
		return "lms"
	}
	return "deis"
}

// ipndmV is diff-sampler's ipndm_v with that repository's weights, whose orders 3 and 4 are wrong: parity only.
type ipndmV struct {
	Order int
	Lower Lowering
}

func (m ipndmV) step(ctx context.Context, r *run, s, t schedules.Node) error {
	e, err := r.predict(ctx, schedules.Eps)
	if err != nil {
		return err
	}
	h := t.Ratio() - s.Ratio()
	n := r.orderNow(m.Order, m.Lower)
	var g [3]float64 // earlier gaps, newest first
	at := s
	for j := range n - 1 {
		g[j] = at.Ratio() - r.hist[j].At.Ratio()
		at = r.hist[j].At
	}
	c := ipndmVWeights(n, h, g)
	for j := range c {
		c[j] *= h
	}
	r.barStep(s, t, e, c[:n])
	r.keep(e, s, m.Order-1)
	return nil
}

// Begin implements Sampler.
func (m ipndmV) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (ipndmV) Needs() Needs { return Needs{} }

func (m ipndmV) label() string { return fmt.Sprintf("ipndm-v:order=%d,parity=true", m.Order) }

// ipndmVWeights are the repository's weights for the next gap h and the earlier gaps g, newest first. Order 2 is the
// variable-step Adams-Bashforth method; the corrections p (order 3) and q (order 4) are the faulty ones.
func ipndmVWeights(n int, h float64, g [3]float64) [4]float64 {
	if n == 1 {
		return [4]float64{1}
	}
	r := h / g[0]
	c := [4]float64{1 + r/2, -r / 2}
	if n == 2 {
		return c
	}
	r12 := g[0] / g[1]
	third := h / (3 * (h + g[0]))
	p := (1 - third*(h*(h+g[0]))/(g[0]*(g[0]+g[1]))) / 2
	c[0] += p
	c[1] -= (1 + r12) * p
	c[2] += r12 * p
	if n == 3 {
		return c
	}
	sum2, sum3 := h+g[0], h+g[0]+g[1]
	q := ((1-third)/2 + (1-h/(2*sum2))*h/(6*sum3)) * (h * sum2 * sum3) / (g[0] * (g[0] + g[1]) * (g[0] + g[1] + g[2]))
	u := g[0] * (g[0] + g[1]) / (g[1] * (g[1] + g[2]))
	c[0] += q
	c[1] -= (1 + r12 + u) * q
	c[2] += (r12 + u*(1+g[1]/g[2])) * q
	c[3] -= u * r12 * q
	return c
}
