package samplers

import (
	"context"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// UniPC is the unified predictor-corrector of order p (Zhao et al. 2023, arXiv 2302.04867). In either form of
// expint.go, with B = z (bh1) or e^z - 1 (bh2), rk_i = (lambda_{-i} - lambda_s)/h, the predictor is
//
//	x_t = ratio x_s - a [ (e^z-1) q_0 + B SUM_i rho_i (q_i - q_0)/rk_i ]
//	SUM_i rho_i rk_i^(j-1) = b_j,  b_j = j! z phi_{j+1}(z)/B
//
// over the last p-1 predictions. The corrector repeats the step with the prediction at x_t as one more point (rk = 1)
// and replaces x_t; the prediction is not made again, so an evaluation per step is all. Published cases: the predictor's
// rho is 1/2 for p = 2, the corrector's 1/2 for p = 1. Order p+1 with exact starts.
//
// A step from alpha = 0 is first order without a corrector (lambda = -inf there), a step onto sigma = 0 gives the data
// prediction. State X between steps is the predictor's output, where the model is asked.
type UniPC struct {
	Order       int            // 1..; 0 = 2
	BH1         bool           // B = z instead of e^z - 1
	Kind        schedules.Kind // X0 or Eps
	NoCorrector bool
	Lower       Lowering

	momentum momentum // of hb:base=unipc
}

func init() {
	register(Info{
		Name: "unipc", Order: "p+1", NFE: "1",
		Summary: "unified predictor-corrector; strong from 5 to 20 steps",
		Source:  "UniPC, arXiv 2302.04867",
		Aliases: []string{"uni_pc", "uni_pc_bh2", "uni_pc_bh1:variant=bh1", "UniPCMultistepScheduler"},
		Options: []Option{
			{"order", "2", "1 to 6"},
			{"variant", "bh2", "bh1 or bh2"},
			{"predict", "x0", "x0 or eps: the form"},
			{"corrector", "true", ""},
			{"lower-order-final", "true", "order at most the steps left"},
			{"lower-below", "", "only on grids with fewer steps"},
		},
		New: func(o *spec.Options) (Sampler, error) {
			m := UniPC{Order: o.Int("order", 2, 1, 6), BH1: o.Choice("variant", "bh2", "bh1") == "bh1", Kind: schedules.X0,
				NoCorrector: !o.Bool("corrector", true), Lower: lowering(o, true)}
			if o.Choice("predict", "x0", "eps") == "eps" {
				m.Kind = schedules.Eps
			}
			return m, nil
		},
	})
}

func (m UniPC) step(ctx context.Context, r *run, s, t schedules.Node) error {
	order := max(m.Order, 1)
	if m.Order == 0 {
		order = 2
	}
	if m.Kind == schedules.Eps && s.Alpha == 0 {
		return errNoiseForm
	}
	q, err := r.predict(ctx, m.Kind)
	if err != nil {
		return err
	}
	x := r.x
	last, old := r.vec("corrected")
	if old && !m.NoCorrector && r.hist[0].At.Alpha > 0 {
		from := r.hist[0].At
		f := newForm(m.Kind, from, s)
		x = r.temp()
		m.combine(r, x, last, f, from, r.hist, int(r.nums["order"]), q)
	}
	copy(last, x)
	r.keep(q, s, order)

	if t.Ratio() == s.Ratio() { // a repeated node: only the correction
		copy(r.y, x)
		r.forget()
		return nil
	}
	n := min(order, len(r.hist), m.Lower.cap(order, r, always))
	for n > 1 && r.hist[n-1].At.Alpha == 0 {
		n--
	}
	r.nums["order"] = float64(n)
	if t.Sigma == 0 {
		m0, err := r.convert(schedules.X0)
		if err != nil {
			return err
		}
		lin(r.y, term{t.Alpha, m0})
		return nil
	}
	m.combine(r, r.y, x, newForm(m.Kind, s, t), s, r.hist, n, nil)
	return nil
}

// combine writes the step of order p from x at node s into dst: hist[0] is the prediction at s, hist[1:p] the points of
// the predictor, and next, where given, the prediction at the step's end (the corrector).
func (m UniPC) combine(r *run, dst, x []float64, f form, s schedules.Node, hist []entry, p int, next []float64) {
	k := math.Expm1(f.z)
	b := k
	if m.BH1 {
		b = f.z
	}
	var rk, rhs [8]float64
	n := 0
	for i := 1; i < p; i++ {
		rk[n] = (hist[i].At.Lambda() - s.Lambda()) / f.h
		n++
	}
	if next != nil {
		rk[n] = 1
		n++
	}
	fact := 1.0
	for j := range n {
		fact *= float64(j + 1)
		rhs[j] = fact * f.z * phi(j+2, f.z) / b
	}
	rho := rhs
	switch {
	case n == 1 && (next == nil || p == 1): // published as 1/2
		rho[0] = 0.5
	default:
		vandermonde(rk[:n], rho[:n])
	}
	var terms [9]term // the bracket, divided by e^z - 1
	c0 := 1.0
	for i := range n {
		w := b / k * rho[i] / rk[i]
		c0 -= w
		v := next
		if i < p-1 {
			v = hist[i+1].V
		}
		terms[1+i] = term{w, v}
	}
	terms[0] = term{c0, hist[0].V}
	if m.momentum.on() {
		v := m.momentum.unipc(r, terms[:1+n], next != nil)
		lin(dst, term{f.ratio, x}, term{-f.a * k, v})
		return
	}
	for i := range terms[:1+n] {
		terms[i].c *= -f.a * k
	}
	terms[1+n] = term{f.ratio, x}
	lin(dst, terms[:2+n]...)
}

// vandermonde solves SUM_i y_i x_i^j = b_j, j = 0..n-1, in place of b, by elimination with partial pivoting (n is at
// most 7).
func vandermonde(x, b []float64) {
	n := len(x)
	var a [8][8]float64
	for j := range n {
		for i := range n {
			a[j][i] = math.Pow(x[i], float64(j))
		}
	}
	for c := range n {
		pivot := c
		for j := c + 1; j < n; j++ {
			if math.Abs(a[j][c]) > math.Abs(a[pivot][c]) {
				pivot = j
			}
		}
		a[c], a[pivot] = a[pivot], a[c]
		b[c], b[pivot] = b[pivot], b[c]
		for j := c + 1; j < n; j++ {
			w := a[j][c] / a[c][c]
			for i := c; i < n; i++ {
				a[j][i] -= w * a[c][i]
			}
			b[j] -= w * b[c]
		}
	}
	for c := n - 1; c >= 0; c-- {
		for i := c + 1; i < n; i++ {
			b[c] -= a[c][i] * b[i]
		}
		b[c] /= a[c][c]
	}
}

// Begin implements Sampler.
func (m UniPC) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (UniPC) Needs() Needs { return Needs{} }

func (UniPC) corrects() {}

func (m UniPC) label() string {
	if m.momentum.on() {
		return "hb:base=unipc"
	}
	return "unipc"
}
