package search

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"gonum.org/v1/gonum/mat"

	"drift/samplers"
	"drift/schedules"
)

// S4S optimises the nodes and the coefficients of a linear multistep method on the data prediction,
//
//	x_{i+1} = (sigma_{i+1}/sigma_i) x_i + alpha_{i+1} (1 - e^{-h_i}) SUM_{j<p} w_ij x0_{i-j},
//
// together, for a student of few steps to end where its teacher does (Frankel et al. 2025, arXiv 2502.17423). Where the
// Space has noise every step but the last also chooses its share of ancestral noise. It starts
// from DPM-Solver++(2M), or a method of the reverse SDE, on the best of the usual grids and moves without derivatives, by CMA-ES (Hansen 2016, arXiv
// 1604.00772). The paper's relaxed objective, with a ball around every start, is Relaxed.
type S4S struct {
	Space     Space // Order is p, the predictions per step
	Objective Objective
	Seed      uint64
	// Start, where given, is a schedule of an earlier search to go on from, with a third of the usual first step size: found
	// by a cheap objective, for instance, to be refined by a dear one.
	Start    *samplers.SolverSchedule
	Progress Progress
	Ahead    Ahead // told every generation before it is evaluated; nil: nobody
}

// ErrStart is what is wrong with a Start.
var ErrStart = errors.New("start")

// student is a point of S4S: the inner nodes by lambda, what the weights differ from 2M's by (newest first, step after step),
// and the noise of every step but the last, 0 where missing.
type student struct{ lam, delta, noise []float64 }

// multistep writes the method down.
func (s Space) multistep(p student) (samplers.SolverSchedule, error) {
	out := samplers.SolverSchedule{Times: s.times(p.lam)}
	g, err := schedules.FromTimes(s.Process, out.Times)
	if err != nil {
		return out, fmt.Errorf("search: s4s: %w", err)
	}
	k := 0
	for i := range s.Steps {
		st := samplers.SolverStep{Order: s.weights(i), Pred: schedules.X0, Start: -1}
		if i < len(p.noise) {
			st.Noise = p.noise[i]
		}
		if i == s.Steps-1 && s.To.Sigma == 0 {
			out.Steps = append(out.Steps, samplers.SolverStep{Order: 1, Pred: schedules.X0, Start: -1})
			continue
		}
		st.Weights = s.taps(known[0], g, i)
		for j := range st.Weights {
			st.Weights[j] += p.delta[k]
			k++
		}
		out.Steps = append(out.Steps, st)
	}
	return out, nil
}

// known are the multistep methods that S4S may start from, without noise or with all of the ancestral noise (which makes the
// first-order step that of the reverse SDE).
var known = []multistep{
	{"dpmpp-2m", 0, func(h, h1, _ float64) []float64 { return []float64{1 + h/h1/2, -h / h1 / 2} }},
	{"dpmpp-2m-sde", 1, func(h, h1, _ float64) []float64 { return []float64{1 + h/h1/2, -h / h1 / 2} }},
	{"sa:corrector=0", 1, func(h, h1, _ float64) []float64 {
		b := -h / h1 * h / math.Expm1(-2*h)
		return []float64{1 + b, -b}
	}},
	{"dpmpp-3m-sde", 1, func(h, h1, h2 float64) []float64 {
		z := -2 * h
		first := math.Expm1(z)
		second := first/z - 1       // z phi_2
		third := second/z - 1.0/2.0 // z phi_3
		if math.IsInf(h2, 1) {
			b := second / first * h / h1
			return []float64{1 + b, -b}
		}
		u, v := h1/(h1+h2), 2*h/(h1+h2)
		d1 := (second*(1+u) + third*v) / first * h / h1
		d2 := -(second*u + third*v) / first * h / h2
		return []float64{1 + d1, d2 - d1, -d2}
	}},
}

// multistep is a method by what its steps have of their newest predictions, where h is the step in lambda and h1 and h2 the
// ones before it, +Inf where there is none.
type multistep struct {
	name    string
	noise   float64
	weights func(h, h1, h2 float64) []float64
}

// taps are the weights of step i of a method on the nodes g, as many as the space has: first order at both ends.
func (s Space) taps(m multistep, g schedules.Grid, i int) []float64 {
	out := make([]float64, s.weights(i))
	out[0] = 1
	gap := func(k int) float64 {
		if k < 0 || g[k].Alpha == 0 {
			return math.Inf(1)
		}
		return g[k+1].Lambda() - g[k].Lambda()
	}
	if h1, h2 := gap(i-1), gap(i-2); len(out) > 1 && i < s.Steps-1 && !math.IsInf(h1, 1) {
		if len(out) == 2 {
			h2 = math.Inf(1)
		}
		copy(out, m.weights(gap(i), h1, h2))
	}
	return out
}

// parameters reads a schedule that multistep could have written.
func (s Space) parameters(from samplers.SolverSchedule) (student, error) {
	var p student
	fault := func(format string, args ...any) (student, error) {
		return p, fmt.Errorf("search: s4s: %w: %w", ErrStart, fmt.Errorf(format, args...))
	}
	if err := from.Check(); err != nil {
		return fault("%w", err)
	}
	if len(from.Steps) != s.Steps {
		return fault("it has %d steps, want %d", len(from.Steps), s.Steps)
	}
	n := len(from.Times)
	for i, t := range from.Times[1 : n-1] {
		l := s.Process.At(t).Lambda()
		if lo, hi := s.span(); !(l > lo && l < hi) {
			return fault("time %g of node %d is not between the ends of this search", t, i+1)
		}
		p.lam = append(p.lam, l)
	}
	if a, b := s.From.T, s.To.T; math.Abs(from.Times[0]-a) > 1e-9 || math.Abs(from.Times[n-1]-b) > 1e-9 {
		return fault("it goes from time %g to %g, want %g to %g", from.Times[0], from.Times[n-1], a, b)
	}
	plain, err := s.multistep(student{lam: p.lam, delta: make([]float64, s.parts())})
	if err != nil {
		return p, err
	}
	for i, st := range plain.Steps {
		switch own := from.Steps[i]; {
		case len(own.Weights) == 0 && (own.Order > 1 || st.Weights != nil), own.Pred != schedules.X0, own.Start != -1, own.Corrector != nil, len(own.Weights) > len(st.Weights):
			return fault("step %d is not a combination of at most %d data predictions", i, max(1, len(st.Weights)))
		case own.Noise > 0 && (!s.Noise || i == s.Steps-1):
			return fault("step %d adds noise, which this search does not", i)
		default:
			for j, w := range st.Weights {
				d := -w
				if j < len(own.Weights) {
					d += own.Weights[j]
				}
				p.delta = append(p.delta, d)
			}
			if s.Noise && i < s.Steps-1 {
				p.noise = append(p.noise, own.Noise)
			}
		}
	}
	return p, nil
}

// Known is the schedule of a method that S4S may start from by itself, such as "dpmpp-2m-sde" on "quadratic".
func (s Space) Known(method, grid string) (samplers.SolverSchedule, error) {
	s, err := s.check()
	if err != nil {
		return samplers.SolverSchedule{}, err
	}
	names, all, err := s.students()
	if err != nil {
		return samplers.SolverSchedule{}, err
	}
	i := slices.Index(names, method+" on "+grid)
	if i < 0 {
		return samplers.SolverSchedule{}, fmt.Errorf("search: s4s: %w: %s on %s is none of: %s", ErrStart, method, grid, strings.Join(names, ", "))
	}
	return s.multistep(all[i])
}

// parts is the number of weights of all steps.
func (s Space) parts() int {
	count := 0
	for i := range s.Steps {
		if i < s.Steps-1 || s.To.Sigma > 0 {
			count += s.weights(i)
		}
	}
	return count
}

// weights is the number of predictions that step i combines.
func (s Space) weights(i int) int { return min(s.Order, i+1) }

// Run optimises until the budget is spent, into log.
func (s S4S) Run(ctx context.Context, log *Log, limit Budget) error {
	space, err := s.Space.check()
	if err != nil {
		return err
	}
	if len(log.Records) > 0 {
		return errors.New("search: the log has records of a search that is over")
	}
	b, err := limit.begin()
	if err != nil {
		return err
	}
	best := Record{Score: math.Inf(1)}
	score := func(origin string, p student) (float64, error) {
		schedule, err := space.multistep(p)
		if err != nil {
			return 0, err
		}
		v, err := log.evaluate(ctx, s.Objective, origin, schedule)
		if err != nil {
			return 0, err
		}
		if v < best.Score {
			best = log.Records[len(log.Records)-1]
		}
		if s.Progress != nil {
			s.Progress(len(log.Records), best)
		}
		return v, nil
	}
	ahead := func(all []student) error {
		var next []samplers.SolverSchedule
		for _, p := range all {
			schedule, err := space.multistep(p)
			if err != nil {
				return err
			}
			next = append(next, schedule)
		}
		return log.ahead(s.Ahead, b, next)
	}
	least, sigma := math.Inf(1), 0.1
	var start student
	if s.Start != nil {
		if start, err = space.parameters(*s.Start); err != nil {
			return err
		}
		sigma /= 3
		if _, err := score("start", start); err != nil {
			return err
		}
	}
	names, first, err := space.students()
	if err != nil {
		return err
	}
	if err := ahead(first); err != nil {
		return err
	}
	for i, p := range first {
		if b.spent(log) {
			return nil
		}
		v, err := score(names[i], p)
		if err != nil {
			return err
		}
		if s.Start == nil && (v < least || start.lam == nil) {
			least, start = v, p
		}
	}
	// A point of the optimiser: nodes move by half a mean gap where weights and noise move by 1/2.
	lo, hi := space.span()
	unit := 0.5 * (hi - lo) / float64(space.Steps)
	nodes := len(start.lam)
	x := append(make([]float64, nodes), start.delta...)
	weights := len(x)
	x = append(x, start.noise...)
	at := func(x []float64) student {
		p := student{lam: make([]float64, nodes), delta: x[nodes:weights]}
		for i, l := range start.lam {
			p.lam[i] = l + 2*unit*x[i]
		}
		for _, v := range x[weights:] {
			p.noise = append(p.noise, min(1, max(0, v)))
		}
		space.repair(plan{lam: p.lam})
		return p
	}
	return minimise(ctx, x, sigma, s.Seed, func() bool { return b.spent(log) }, func(xs [][]float64) error {
		var all []student
		for _, x := range xs {
			all = append(all, at(x))
		}
		return ahead(all)
	}, func(x []float64) (float64, error) { return score("s4s", at(x)) })
}

// students are the known methods on the usual grids: without noise, and with it where the space has it.
func (s Space) students() (names []string, all []student, err error) {
	for _, name := range gridNames {
		lam, err := s.grid(name)
		if err != nil {
			return nil, nil, err
		}
		g, err := schedules.FromTimes(s.Process, s.times(lam))
		if err != nil {
			return nil, nil, fmt.Errorf("search: s4s: %w", err)
		}
		for _, m := range known {
			p := student{lam: lam}
			if s.Noise {
				p.noise = slices.Repeat([]float64{m.noise}, s.Steps-1)
			} else if m.noise > 0 {
				continue
			}
			for i := range s.Steps {
				if i == s.Steps-1 && s.To.Sigma == 0 {
					break
				}
				plain := s.taps(known[0], g, i)
				for j, w := range s.taps(m, g, i) {
					p.delta = append(p.delta, w-plain[j])
				}
			}
			names, all = append(names, m.name+" on "+name), append(all, p)
		}
	}
	return names, all, nil
}

// minimise runs CMA-ES with the default parameters of arXiv 1604.00772, table 1, from x with the given step size until
// stop says so, or until the step size has shrunk to nothing; then it starts over with twice the population around the
// best point.
func minimise(ctx context.Context, x []float64, sigma float64, seed uint64, stop func() bool, ahead func([][]float64) error, f func([]float64) (float64, error)) error {
	n := len(x)
	if n == 0 {
		return nil
	}
	r := rand.New(rand.NewPCG(seed, 0))
	bestX, best := slices.Clone(x), math.Inf(1)
	for lambda := 4 + int(3*math.Log(float64(n))); ; lambda *= 2 {
		m := slices.Clone(bestX)
		step := sigma
		mu := lambda / 2
		w := make([]float64, mu)
		sum, squares := 0.0, 0.0
		for i := range w {
			w[i] = math.Log(float64(lambda+1)/2) - math.Log(float64(i+1))
			sum += w[i]
		}
		for i := range w {
			w[i] /= sum
			squares += sq(w[i])
		}
		dim, muEff := float64(n), 1/squares
		cSigma := (muEff + 2) / (dim + muEff + 5)
		damp := 1 + 2*max(0, math.Sqrt((muEff-1)/(dim+1))-1) + cSigma
		cc := (4 + muEff/dim) / (dim + 4 + 2*muEff/dim)
		c1 := 2 / (sq(dim+1.3) + muEff)
		cmu := min(1-c1, 2*(muEff-2+1/muEff)/(sq(dim+2)+muEff))
		chi := math.Sqrt(dim) * (1 - 1/(4*dim) + 1/(21*dim*dim))
		ps, pc := make([]float64, n), make([]float64, n)
		cov := mat.NewSymDense(n, nil)
		for i := range n {
			cov.SetSym(i, i, 1)
		}
		type child struct {
			y, z []float64
			v    float64
		}
		for gen := 1; ; gen++ {
			var eig mat.EigenSym
			if !eig.Factorize(cov, true) {
				return errors.New("search: the covariance of CMA-ES has no eigenvalues")
			}
			var basis mat.Dense
			eig.VectorsTo(&basis)
			roots := eig.Values(nil)
			for i, v := range roots {
				roots[i] = math.Sqrt(max(v, 1e-20))
			}
			rotate := func(z []float64, scale bool) []float64 { // B D z or B z
				y := make([]float64, n)
				for i := range n {
					for j := range n {
						v := basis.At(i, j) * z[j]
						if scale {
							v *= roots[j]
						}
						y[i] += v
					}
				}
				return y
			}
			if stop() {
				return nil
			}
			var cs []child
			var points [][]float64
			for range lambda {
				z := make([]float64, n)
				for i := range z {
					z[i] = r.NormFloat64()
				}
				y := rotate(z, true)
				at := make([]float64, n)
				for i := range at {
					at[i] = m[i] + step*y[i]
				}
				cs, points = append(cs, child{y: y, z: z}), append(points, at)
			}
			if err := ahead(points); err != nil {
				return err
			}
			for i, at := range points {
				if err := ctx.Err(); err != nil {
					return err
				}
				if stop() {
					return nil
				}
				v, err := f(at)
				if err != nil {
					return err
				}
				if v < best {
					best, bestX = v, at
				}
				cs[i].v = v
			}
			slices.SortStableFunc(cs, func(a, b child) int { return cmp(a.v, b.v) })
			yw, zw := make([]float64, n), make([]float64, n)
			for k, weight := range w {
				for i := range n {
					yw[i] += weight * cs[k].y[i]
					zw[i] += weight * cs[k].z[i]
				}
			}
			norm := 0.0
			for i, v := range rotate(zw, false) { // C^(-1/2) yw = B zw
				m[i] += step * yw[i]
				ps[i] = (1-cSigma)*ps[i] + math.Sqrt(cSigma*(2-cSigma)*muEff)*v
				norm += sq(ps[i])
			}
			norm = math.Sqrt(norm)
			h := 0.0
			if norm/math.Sqrt(1-math.Pow(1-cSigma, 2*float64(gen))) < (1.4+2/(dim+1))*chi {
				h = 1
			}
			for i := range n {
				pc[i] = (1-cc)*pc[i] + h*math.Sqrt(cc*(2-cc)*muEff)*yw[i]
			}
			for i := range n {
				for j := range i + 1 {
					v := (1-c1-cmu+(1-h)*c1*cc*(2-cc))*cov.At(i, j) + c1*pc[i]*pc[j]
					for k, weight := range w {
						v += cmu * weight * cs[k].y[i] * cs[k].y[j]
					}
					cov.SetSym(i, j, v)
				}
			}
			step *= math.Exp(cSigma / damp * (norm/chi - 1))
			if step*roots[n-1] < 1e-5 || math.IsNaN(step) || cs[0].v == cs[mu].v {
				break
			}
		}
	}
}
