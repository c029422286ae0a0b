package samplers

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// RK45 is the method of Dormand and Prince (1980): an explicit Runge-Kutta pair of orders 5 and 4 of the probability-flow
// ODE, over sigma or over time (see Variable), with SciPy's step control:
//
//	e = RMS( h SUM_i (b_i - b*_i) k_i / (Atol + Rtol max(|x|, |x'|)) )
//
// A step is taken when e < 1, and h is multiplied by 0.9 e^(-1/5), kept in [0.2, 10] (in [0.2, 1] after a refusal). The
// first step is that of Hairer, Norsett and Wanner, II.4, and takes one evaluation; every try takes 6, for the last one is
// the first of the next step. The error is that of a row, or with Joint of the batch. A clean end is stepped onto from the
// last noisy node with x = x0 (see Needs.OwnGrid).
type RK45 struct {
	Rtol, Atol float64 // 0 = 1e-5
	Variable   Variable
	Joint      bool // one step size for the batch, as SciPy does
}

// The tableau of Dormand and Prince, and the difference of its two rows of weights.
var (
	dormandPrince = &Tableau{"rk45", [][]float64{
		{},
		{1. / 5},
		{3. / 40, 9. / 40},
		{44. / 45, -56. / 15, 32. / 9},
		{19372. / 6561, -25360. / 2187, 64448. / 6561, -212. / 729},
		{9017. / 3168, -355. / 33, 46732. / 5247, 49. / 176, -5103. / 18656},
		{35. / 384, 0, 500. / 1113, 125. / 192, -2187. / 6784, 11. / 84},
	}, []float64{35. / 384, 0, 500. / 1113, 125. / 192, -2187. / 6784, 11. / 84, 0}, []float64{0, 1. / 5, 3. / 10, 4. / 5, 8. / 9, 1, 1}}
	dormandPrinceError = []float64{-71. / 57600, 0, 71. / 16695, -71. / 1920, 17253. / 339200, -22. / 525, 1. / 40}
)

func init() {
	register(Info{Name: "rk45", Order: "5", NFE: "6 per try", Summary: "adaptive Runge-Kutta pair 5(4); an accuracy reference", Source: "Dormand and Prince 1980; SciPy solve_ivp RK45",
		Aliases: []string{"dopri5"},
		Options: []Option{{"rtol", "1e-5", "relative tolerance"}, {"atol", "1e-5", "absolute tolerance"},
			{"variable", "auto", "sigma: d xb/d sb = eps; time: dx/dt = velocity; auto: time from a node without signal, else sigma"},
			{"norm", "image", "image: every image has its own steps; batch: one error and one step size for the batch"}},
		New: func(o *spec.Options) (Sampler, error) {
			return RK45{Rtol: o.FloatIn("rtol", 1e-5, leastTol, 1), Atol: o.FloatIn("atol", 1e-5, leastTol, math.MaxFloat64), Variable: readVariable(o), Joint: readNorm(o)}, nil
		}})
}

func (m RK45) axis(r *run) (axis, error) {
	start := r.grid[r.p.First]
	v := m.Variable.over(r, schedules.Grid{start})
	if v == BySigma && start.Alpha == 0 {
		return axis{}, errors.New("sigma is infinite at a node without signal (alpha = 0): use variable=time, or start later (--t-start)")
	}
	f, _, _ := v.field(r, start, start)
	value := schedules.Node.Ratio
	if v == ByTime {
		value = func(n schedules.Node) float64 { return n.T }
	}
	return axis{kind: f.kind, value: value, node: f.node}, nil
}

func (m RK45) tolerances(r *adaptiveRun) (rtol, atol float64) {
	return r.tol(cmp.Or(m.Rtol, 1e-5), cmp.Or(m.Atol, 1e-5))
}

func (m RK45) first(ctx context.Context, r *adaptiveRun, rows []int) error {
	var ask []int
	for _, k := range rows {
		if r.ctl[k*control] == 0 {
			ask = append(ask, k)
		}
	}
	if len(ask) == 0 {
		return nil
	}
	rtol, atol := m.tolerances(r)
	f := field{r.ax.kind, r.run}
	size, slope, curve := make([]float64, r.rows), make([]float64, r.rows), make([]float64, r.rows)
	norm := func(k int, of func(j int) float64) float64 {
		sum, out := 0.0, f.out(r.from[k])
		for j, v := range r.row(r.x, k) {
			d := of(j) / (atol + float64(rtol*math.Abs(out*v)))
			sum += float64(d * d)
		}
		return math.Sqrt(sum / float64(r.dim))
	}
	for _, k := range ask {
		x, q, out := r.row(r.x, k), r.row(r.q, k), f.out(r.from[k])
		size[k] = norm(k, func(j int) float64 { return out * x[j] })
		slope[k] = norm(k, func(j int) float64 { return q[j] })
	}
	r.agree(size, ask)
	r.agree(slope, ask)
	h0 := make([]float64, r.rows)
	for _, k := range ask {
		way := r.to - r.at[k]
		h0[k] = 1e-6
		if size[k] >= 1e-5 && slope[k] >= 1e-5 {
			h0[k] = 0.01 * size[k] / slope[k]
		}
		h0[k] = min(h0[k], math.Abs(way))
		n := r.end
		if h0[k] < math.Abs(way) {
			n = r.ax.node(r.at[k] + math.Copysign(h0[k], way))
		}
		r.where[k] = n
		lin(r.row(r.u, k), term{f.into(n) * f.out(r.from[k]), r.row(r.x, k)}, term{f.into(n) * math.Copysign(h0[k], way), r.row(r.q, k)})
	}
	f1 := r.answers(1)
	if err := r.ask(ctx, ask, r.u, 1, f1); err != nil {
		return err
	}
	for _, k := range ask {
		a, b := r.row(r.q, k), r.row(f1, k)
		curve[k] = norm(k, func(j int) float64 { return b[j] - a[j] }) / h0[k]
	}
	r.agree(curve, ask)
	for _, k := range ask {
		h := max(1e-6, h0[k]*1e-3)
		if d := max(slope[k], curve[k]); d > 1e-15 {
			h = math.Pow(0.01/d, 1./5)
		}
		r.ctl[k*control] = min(100*h0[k], h, math.Abs(r.to-r.at[k]))
	}
	return nil
}

func (m RK45) try(ctx context.Context, r *adaptiveRun, rows []int) error {
	f := field{r.ax.kind, r.run}
	tab := dormandPrince
	stages := len(tab.C)
	r.k[0] = r.q
	for i := 1; i < stages; i++ {
		for _, k := range rows {
			h := r.next[k] - r.at[k]
			n := r.goal[k]
			if tab.C[i] != 1 {
				n = r.ax.node(r.at[k] + tab.C[i]*h)
			}
			r.where[k] = n
			var terms [8]term
			terms[0] = term{f.into(n) * f.out(r.from[k]), r.row(r.x, k)}
			for j, a := range tab.A[i] {
				terms[1+j] = term{f.into(n) * h * a, r.row(r.k[j], k)}
			}
			lin(r.row(r.u, k), terms[:1+len(tab.A[i])]...)
		}
		if err := r.ask(ctx, rows, r.u, i, r.answers(i)); err != nil {
			return err
		}
	}
	rtol, atol := m.tolerances(r)
	for _, k := range rows {
		h := r.next[k] - r.at[k]
		before, after := r.row(r.x, k), r.row(r.u, k) // the last stage was asked at the end of the step
		a, b := f.out(r.from[k]), f.out(r.goal[k])
		sum := 0.0
		for j := range after {
			d := 0.0
			for i, w := range dormandPrinceError {
				d += float64(w * r.k[i][k*r.dim+j])
			}
			d = h * d / (atol + float64(rtol*max(math.Abs(a*before[j]), math.Abs(b*after[j]))))
			sum += float64(d * d)
		}
		r.errs[k] = math.Sqrt(sum / float64(r.dim))
		copy(r.row(r.prop, k), after)
	}
	return nil
}

func (m RK45) judge(r *adaptiveRun, k int, e float64, again bool) bool {
	h := math.Abs(r.next[k] - r.at[k])
	factor := 0.9 * math.Pow(e, -1./5)
	switch {
	case e >= 1:
		factor = max(0.2, factor)
	case again:
		factor = min(1, factor)
	default:
		factor = min(10, factor)
	}
	r.ctl[k*control] = h * factor
	return e < 1
}

func (RK45) taken(r *adaptiveRun, k int) bool {
	copy(r.row(r.q, k), r.row(r.k[len(dormandPrince.C)-1], k))
	return true
}

func (m RK45) byField() bool { return m.Variable != BySigma }

func (RK45) settable() []string { return []string{"rtol", "atol"} }

// Begin implements Sampler.
func (m RK45) Begin(ctx context.Context, p *Problem) (Run, error) {
	return beginAdaptive(ctx, p, m, m.Joint, false)
}

// Resume implements Resumer.
func (m RK45) Resume(_ context.Context, p *Problem, rd io.Reader) (Run, error) {
	return resumeAdaptive(p, m, m.Joint, false, rd)
}

// Needs implements Sampler.
func (RK45) Needs() Needs { return Needs{OwnGrid: true} }

func (RK45) label() string { return "rk45" }
