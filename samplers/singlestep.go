package samplers

import (
	"context"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// Singlestep is the family DPM-Solver-k (noise form) and DPM-Solver++(kS) (data form), k = 2 or 3 (arXiv 2206.00927,
// algorithms 1 and 2; arXiv 2211.01095): a step of h in lambda asks the model at s and at inner nodes lambda_s + r_i h.
// In the form of expint.go, with q, q1, q2 the predictions there and e1(z) = e^z - 1,
//
//	u1 = ratio x_s - a e1(r1 z) q
//	order 2: x_t = ratio x_s - a [ e1(z) q + e1(z)/(2 r1) (q1 - q) ]                        (heun: z phi_2(z)/r1 for the last weight)
//	order 3: u2 = ratio x_s - a [ e1(r2 z) q + (r2/r1) (e1(r2 z)/(r2 z) - 1) (q1 - q) ]
//	         x_t = ratio x_s - a [ e1(z) q + (e1(z)/z - 1)/r2 (q2 - q) ]                    (heun: both differences, orders 1 and 2)
//
// with r1 = 1/2 for order 2, r1 = 1/3 and r2 = 2/3 for order 3. k evaluations per step; a step from alpha = 0 or onto
// sigma = 0 is first order and takes one.
//
// With AllNodes every node of the grid is one evaluation (diffusers): the nodes form groups of orders 1, 2 (, 3), each
// starting from the group's first state with the group's evaluations so far, and the inner r are those of the nodes.
type Singlestep struct {
	Order    int // 2 or 3; 0 = 2
	Kind     schedules.Kind
	Heun     bool
	AllNodes bool
	SDE      bool // with AllNodes and the data form: the reverse SDE
}

func init() {
	for _, row := range []struct {
		name, summary string
		m             Singlestep
		aliases       []string
	}{
		{"dpm-solver-2", "second-order singlestep on the noise prediction", Singlestep{Order: 2, Kind: schedules.Eps}, nil},
		{"dpm-solver-3", "third-order singlestep on the noise prediction", Singlestep{Order: 3, Kind: schedules.Eps}, nil},
		{"dpmpp-2s", "second-order singlestep on the data prediction", Singlestep{Order: 2, Kind: schedules.X0}, []string{"DPM++ 2S", "DPMSolverSinglestepScheduler"}},
		{"dpmpp-3s", "third-order singlestep on the data prediction", Singlestep{Order: 3, Kind: schedules.X0}, []string{"DPM++ 3S"}},
		{"dpmpp-2s-sde", "second-order singlestep of the reverse SDE, every node one evaluation", Singlestep{Order: 2, Kind: schedules.X0, SDE: true, AllNodes: true}, nil},
	} {
		register(Info{Name: row.name, Summary: row.summary, Order: string(rune('0' + row.m.Order)), NFE: string(rune('0' + row.m.Order)), Aliases: row.aliases,
			Source:  "DPM-Solver, arXiv 2206.00927; DPM-Solver++, arXiv 2211.01095",
			Options: []Option{{"solver", "midpoint", "midpoint or heun"}, {"grid-points", "steps", "steps, or all: every node is one evaluation"}},
			New: func(o *spec.Options) (Sampler, error) {
				m := row.m
				m.Heun = o.Choice("solver", "midpoint", "heun") == "heun"
				m.AllNodes = o.Choice("grid-points", "steps", "all") == "all" || m.SDE
				return m, nil
			}})
	}
}

func (m Singlestep) order() int { return max(m.Order, 2) }

func (m Singlestep) step(ctx context.Context, r *run, s, t schedules.Node) error {
	if m.AllNodes {
		return m.stepNode(ctx, r, s, t)
	}
	if s.Alpha == 0 || t.Sigma == 0 {
		return r.firstOrder(ctx, t)
	}
	inner := [2]float64{0.5}
	if m.order() == 3 {
		inner = [2]float64{1. / 3, 2. / 3}
	}
	h := t.Lambda() - s.Lambda()
	return m.stepThrough(ctx, r, s, t, [2]schedules.Node{at(r, s, inner[0]*h), at(r, s, inner[1]*h)}, m.order(), r.y)
}

// at returns the node h later than s in lambda.
func at(r *run, s schedules.Node, h float64) schedules.Node {
	return r.gau.AtRatio(s.Ratio() * math.Exp(-h))
}

// stepThrough makes a step from s to t of the given order by way of the inner nodes, into dst.
func (m Singlestep) stepThrough(ctx context.Context, r *run, s, t schedules.Node, inner [2]schedules.Node, order int, dst []float64) error {
	var q [3][]float64
	var rk [3]float64
	var err error
	if q[0], err = r.predict(ctx, m.Kind); err != nil {
		return err
	}
	h := t.Lambda() - s.Lambda()
	for i := 1; i < order; i++ {
		n := inner[i-1]
		rk[i] = (n.Lambda() - s.Lambda()) / h
		part := rk // fractions of the way to n
		for j := range i {
			part[j] /= rk[i]
		}
		m.combine(r.u, r.x, s, n, q[:i], part[:i], true)
		if q[i], err = r.predictAt(ctx, n, i, m.Kind); err != nil {
			return err
		}
	}
	m.combine(dst, r.x, s, t, q[:order], rk[:order], m.Heun)
	return nil
}

// combine writes the step from x at s to t with predictions q[i] at the fraction rk[i] of the way (in lambda) into dst.
func (m Singlestep) combine(dst, x []float64, s, t schedules.Node, q [][]float64, rk []float64, heun bool) {
	f := newForm(m.Kind, s, t)
	e1 := math.Expm1(f.z)
	w2, w3 := f.z*phi(2, f.z), f.z*phi(3, f.z)
	switch len(q) {
	case 1:
		lin(dst, term{f.ratio, x}, term{-f.a * e1, q[0]})
	case 2:
		w := e1 / (2 * rk[1])
		if heun {
			w = w2 / rk[1]
		}
		lin(dst, term{f.ratio, x}, term{-f.a * (e1 - w), q[0]}, term{-f.a * w, q[1]})
	case 3:
		v1, v2 := 0.0, w2/rk[2]
		if heun { // first and second divided differences
			r1, r2 := rk[1], rk[2]
			v1 = (w2*r2 - 2*w3) / (r1 * (r2 - r1))
			v2 = (2*w3 - w2*r1) / (r2 * (r2 - r1))
		}
		lin(dst, term{f.ratio, x}, term{-f.a * (e1 - v1 - v2), q[0]}, term{-f.a * v1, q[1]}, term{-f.a * v2, q[2]})
	}
}

// stepNode is a step with AllNodes: the group's first state lies in the vector "start", its evaluations in the history.
func (m Singlestep) stepNode(ctx context.Context, r *run, s, t schedules.Node) error {
	order := m.orderAt(r.i, len(r.grid)-1)
	if t.Sigma == 0 || order > len(r.hist)+1 { // at a run's start in the middle of a group, too
		order = 1
	}
	kind := m.Kind
	if s.Alpha == 0 {
		return r.firstOrder(ctx, t)
	}
	q, err := r.predict(ctx, kind)
	if err != nil {
		return err
	}
	start, _ := r.vec("start")
	if order == 1 {
		copy(start, r.x)
	}
	if t.Sigma == 0 {
		x0, err := r.convert(schedules.X0)
		if err != nil {
			return err
		}
		lin(r.y, term{t.Alpha, x0})
		r.keep(q, s, 2)
		return nil
	}
	qs := [3][]float64{q}
	nodes := [3]schedules.Node{s}
	for i := range order - 1 { // oldest first
		e := r.hist[order-2-i]
		qs[i], nodes[i] = e.V, e.At
	}
	qs[order-1], nodes[order-1] = q, s
	from := nodes[0]
	h := t.Lambda() - from.Lambda()
	var rk [3]float64
	for i := 1; i < order; i++ {
		rk[i] = (nodes[i].Lambda() - from.Lambda()) / h
	}
	if m.SDE {
		m.combineSDE(r, start, from, t, qs[:order], rk[:order])
	} else {
		m.combine(r.y, start, from, t, qs[:order], rk[:order], m.Heun)
	}
	r.keep(q, s, 2)
	return nil
}

// combineSDE is combine for the reverse SDE in the data form: z = -2h, ratio times e^-h, and fresh noise.
func (m Singlestep) combineSDE(r *run, x []float64, s, t schedules.Node, q [][]float64, rk []float64) {
	f := newForm(schedules.X0, s, t)
	f.ratio *= math.Exp(-f.h)
	f.z *= 2
	e1 := math.Expm1(f.z)
	if len(q) == 1 {
		lin(r.y, term{f.ratio, x}, term{-f.a * e1, q[0]})
	} else {
		w := e1 / (2 * rk[1])
		if m.Heun {
			w = f.z * phi(2, f.z) / rk[1]
		}
		lin(r.y, term{f.ratio, x}, term{-f.a * (e1 - w), q[0]}, term{-f.a * w, q[1]})
	}
	r.addNoise(t.Sigma*math.Sqrt(-math.Expm1(-2*f.h)), DrawStep, s.Ratio(), t.Ratio())
}

// orderAt is diffusers' order list: groups 1 2 (3), the last ones shortened so that a run ends at order 1 or, for three
// nodes too few, 2.
func (m Singlestep) orderAt(i, n int) int {
	k := m.order()
	if k == 2 {
		if n%2 == 0 && i == n-1 {
			return 1
		}
		return i%2 + 1
	}
	if n%3 == 0 && i == n-1 {
		return 1
	}
	return i%3 + 1
}

// Begin implements Sampler.
func (m Singlestep) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (m Singlestep) Needs() Needs { return Needs{Noise: m.SDE} }

// Cost implements Counter.
func (m Singlestep) Cost(g schedules.Grid, i int) int {
	if m.AllNodes {
		return 1
	}
	return inner(g, i, m.order())
}

func (m Singlestep) label() string {
	if m.Kind == schedules.Eps {
		return "dpm-solver-" + string(rune('0'+m.order()))
	}
	if m.SDE {
		return "dpmpp-2s-sde"
	}
	return "dpmpp-" + string(rune('0'+m.order())) + "s"
}

// Ancestral2S is k-diffusion's sample_dpmpp_2s_ancestral: a DPM-Solver++(2S) step down to sqrt(sigma_t^2 - up^2), then
// fresh noise (see DDIM for the split). Two evaluations per step, one onto sigma = 0.
type Ancestral2S struct {
	Eta    float64
	SNoise float64 // 0 = 1
}

func init() {
	register(Info{Name: "dpmpp-2s-ancestral", Order: "2", NFE: "2", Summary: "DPM++ 2S with fresh noise at every step", Source: "k-diffusion sample_dpmpp_2s_ancestral",
		Aliases: []string{"DPM++ 2S a", "dpmpp_2s_ancestral", "dpm++2s_a"}, Options: []Option{{"eta", "1", ""}, {"s-noise", "1", "multiplies the noise"}},
		New: func(o *spec.Options) (Sampler, error) {
			return Ancestral2S{Eta: o.FloatIn("eta", 1, 0, math.MaxFloat64), SNoise: o.FloatIn("s-noise", 1, 0, math.MaxFloat64)}, nil
		}})
}

func (m Ancestral2S) step(ctx context.Context, r *run, s, t schedules.Node) error {
	down, up := ancestral(s, t, r.opt("eta", m.Eta))
	if s.Alpha == 0 || down == 0 {
		x0, err := r.predict(ctx, schedules.X0)
		if err != nil {
			return err
		}
		if err := r.finishFirst(t, x0, down); err != nil {
			return err
		}
	} else {
		d := r.gau.AtRatio(down / t.Alpha)
		mid := at(r, s, (d.Lambda()-s.Lambda())/2)
		if err := (Singlestep{Kind: schedules.X0}).stepThrough(ctx, r, s, d, [2]schedules.Node{mid}, 2, r.y); err != nil {
			return err
		}
		lin(r.y, term{t.Alpha / d.Alpha, r.y})
	}
	r.addNoise(up*orOne(m.SNoise), DrawStep, s.Ratio(), t.Ratio())
	return nil
}

func (Ancestral2S) settable() []string { return []string{"eta"} }

// Begin implements Sampler.
func (m Ancestral2S) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (Ancestral2S) Needs() Needs { return Needs{Noise: true} }

// Cost implements Counter.
func (Ancestral2S) Cost(g schedules.Grid, i int) int { return inner(g, i, 2) }

func (Ancestral2S) label() string { return "dpmpp-2s-ancestral" }

// DPMppSDE is k-diffusion's sample_dpmpp_sde: a singlestep of the reverse SDE by way of the inner node lambda_s + r h.
// Both the way to the inner node and the whole step are ancestral (see DDIM), with noises of one Brownian path (in the
// time sigma/alpha), and the step uses (1 - 1/(2r)) x0 + 1/(2r) x0_inner. Two evaluations per step, one onto sigma = 0.
type DPMppSDE struct {
	Eta    float64
	R      float64 // 0 = 1/2
	SNoise float64 // 0 = 1
}

func init() {
	register(Info{Name: "dpmpp-sde", Order: "2", NFE: "2", Summary: "singlestep of the reverse SDE on the data prediction", Source: "k-diffusion sample_dpmpp_sde",
		Aliases: []string{"DPM++ SDE", "dpmpp_sde_gpu", "DPMSolverSDEScheduler"}, Options: []Option{{"eta", "1", ""}, {"r", "0.5", "place of the inner node"}, {"s-noise", "1", "multiplies the noise"}},
		New: func(o *spec.Options) (Sampler, error) {
			return DPMppSDE{Eta: o.FloatIn("eta", 1, 0, math.MaxFloat64), R: o.FloatIn("r", 0.5, 0.01, 1), SNoise: o.FloatIn("s-noise", 1, 0, math.MaxFloat64)}, nil
		}})
}

func (m DPMppSDE) step(ctx context.Context, r *run, s, t schedules.Node) error {
	x0, err := r.predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	if s.Alpha == 0 || t.Sigma == 0 {
		return r.finishFirst(t, x0, t.Sigma)
	}
	c := m.R
	if c == 0 {
		c = 0.5
	}
	eta := r.opt("eta", m.Eta)
	mid := at(r, s, c*(t.Lambda()-s.Lambda()))
	z1 := r.temp()
	r.normal(z1, DrawStep, s.Ratio(), mid.Ratio())
	z2 := r.temp()
	r.normal(z2, DrawStage, mid.Ratio(), t.Ratio())

	down, up := ancestral(s, mid, eta)
	k := down / s.Sigma
	lin(r.u, term{k, r.x}, term{mid.Alpha - k*s.Alpha, x0}, term{up * orOne(m.SNoise), z1})
	x1, err := r.predictAt(ctx, mid, 1, schedules.X0)
	if err != nil {
		return err
	}
	down, up = ancestral(s, t, eta)
	k = down / s.Sigma
	f := 1 / (2 * c)
	b := t.Alpha - k*s.Alpha
	lin(r.y, term{k, r.x}, term{b * (1 - f), x0}, term{b * f, x1})
	// The noise of the whole step is that of its two pieces.
	whole := s.Ratio() - t.Ratio()
	w1, w2 := math.Sqrt((s.Ratio()-mid.Ratio())/whole), math.Sqrt((mid.Ratio()-t.Ratio())/whole)
	lin(r.z, term{w1, z1}, term{w2, z2})
	r.std = up * orOne(m.SNoise)
	lin(r.y, term{1, r.y}, term{r.std, r.z})
	return nil
}

func (DPMppSDE) settable() []string { return []string{"eta"} }

// Begin implements Sampler.
func (m DPMppSDE) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (DPMppSDE) Needs() Needs { return Needs{Noise: true} }

// Cost implements Counter.
func (DPMppSDE) Cost(g schedules.Grid, i int) int { return inner(g, i, 2) }

func (DPMppSDE) label() string { return "dpmpp-sde" }
