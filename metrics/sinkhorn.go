package metrics

import (
	"context"
	"fmt"
	"math"
)

// Sinkhorn solves the entropic transport problem
//
//	min_P Σ_ij P_ij C_ij + (1/η) Σ_ij P_ij log P_ij,  rows of P summing to r, columns to c
//
// by alternating updates of the dual potentials (Cuturi 2013), in logarithms:
//
//	x_i = (log r_i - log Σ_j exp(η(y_j - C_ij)) + 1)/η    and the same for y.
//
// P = exp(η(x_i + y_j - C_ij) - 1). Other libraries' reg is 1/η.
type Sinkhorn struct {
	Eta     float64
	Tol     float64 // on Σ|P1-r| + Σ|Pᵀ1-c|, 1e-9 if zero
	MaxIter int     // 100000 if zero
	Observe func(Dual)
}

// Dual is one iterate of an entropic solver.
type Dual struct {
	Newton   bool    // a Newton step, else a Sinkhorn iteration
	F        float64 // dual objective -(1/η) Σ P + r·x + c·y, which rises to the optimum
	Residual float64 // Σ|P1-r| + Σ|Pᵀ1-c|
	Step     float64 // length of a Newton step after the line search
	Kept     int     // entries of P in the Newton matrix
}

// Plan is the answer of an entropic solver.
type Plan struct {
	P                          Matrix
	X, Y                       []float64 // dual potentials, in units of the cost
	Cost                       float64   // Σ P C: above the unregularised optimum
	F                          float64   // dual objective; at the optimum Σ P C + (1/η) Σ P log P
	Residual                   float64
	SinkhornSteps, NewtonSteps int
	Converged                  bool // Residual below the tolerance
	FellBack                   bool // Newton stalled and plain Sinkhorn took over
}

// Solve runs from zero potentials. nil weights are equal; weights are scaled
// to sum to one and must be positive. A plan that missed the tolerance within
// MaxIter is returned with Converged false, without an error.
func (s Sinkhorn) Solve(ctx context.Context, cost Matrix, r, c []float64) (*Plan, error) {
	e, err := newEntropic(cost, r, c, s.Eta)
	if err != nil {
		return nil, err
	}
	if s.Tol == 0 {
		s.Tol = 1e-9
	}
	if s.MaxIter == 0 {
		s.MaxIter = 100000
	}
	if err := e.sinkhorn(ctx, s.MaxIter, s.Tol, s.Observe); err != nil {
		return nil, err
	}
	return e.plan(s.Tol), nil
}

// entropic is the state of a solver.
type entropic struct {
	c          Matrix
	ct         Matrix // transposed cost
	r, q       []float64
	eta        float64
	x, y       []float64
	p          []float64 // plan of the potentials
	rows, cols []float64 // its sums
	nSink      int
	nNewton    int
}

func newEntropic(cost Matrix, r, c []float64, eta float64) (*entropic, error) {
	if err := checkCost(cost); err != nil {
		return nil, err
	}
	if !(eta > 0) || math.IsInf(eta, 0) {
		return nil, fmt.Errorf("metrics: entropic transport with eta = %v", eta)
	}
	e := &entropic{c: cost, eta: eta, ct: Matrix{cost.D, cost.N, make([]float64, len(cost.X))}}
	var err error
	if e.r, err = shares("row weights", r, cost.N); err != nil {
		return nil, err
	}
	if e.q, err = shares("column weights", c, cost.D); err != nil {
		return nil, err
	}
	for _, w := range [][]float64{e.r, e.q} {
		for i, v := range w {
			if v == 0 {
				return nil, fmt.Errorf("metrics: entropic transport: weight %d is zero: leave that point out", i)
			}
		}
	}
	for i := range cost.N {
		for j := range cost.D {
			e.ct.X[j*cost.N+i] = cost.At(i, j)
		}
	}
	e.x, e.y = make([]float64, cost.N), make([]float64, cost.D)
	e.p = make([]float64, len(cost.X))
	e.rows, e.cols = make([]float64, cost.N), make([]float64, cost.D)
	return e, nil
}

// sinkhorn runs up to iters iterations, stopping at the tolerance. The plain
// form scales rows and columns of exp(η(x+y-C)-1) around the current
// potentials; it is exact while the scalings stay near one, and the
// logarithmic update takes over where they do not or every 50 iterations.
func (e *entropic) sinkhorn(ctx context.Context, iters int, tol float64, observe func(Dual)) error {
	for k := range iters {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("metrics: sinkhorn iteration %d: %w", e.nSink, err)
		}
		if k%50 != 0 && e.scale() {
			// p and its row sums are those of the new potentials
		} else {
			e.update(e.x, e.y, e.c, e.r)
			e.update(e.y, e.x, e.ct, e.q)
			e.rebuild()
		}
		e.nSink++
		if e.residual() < tol {
			e.rebuild() // the potentials have the last word
		}
		if observe != nil {
			observe(Dual{F: e.dual(), Residual: e.residual()})
		}
		if e.residual() < tol {
			return nil
		}
	}
	return nil
}

// update is x_i = (log w_i - LSE_j η(y_j - C_ij) + 1)/η.
func (e *entropic) update(x, y []float64, c Matrix, w []float64) {
	buf := make([]float64, c.D)
	for i := range x {
		row := c.row(i)
		for j := range buf {
			buf[j] = e.eta * (y[j] - row[j])
		}
		x[i] = (math.Log(w[i]) - logSumExp(buf) + 1) / e.eta
	}
}

// scale is one iteration on the plan itself: rows to r, then columns to c. It
// reports false, changing nothing, when a sum is out of range.
func (e *entropic) scale() bool {
	m := e.c.D
	next := make([]float64, m)
	factor := make([]float64, len(e.rows))
	for i, s := range e.rows {
		if !(s > 1e-150 && s < 1e150) {
			return false
		}
		factor[i] = e.r[i] / s
		for j, p := range e.p[i*m : (i+1)*m] {
			next[j] += factor[i] * p
		}
	}
	for _, s := range next {
		if !(s > 1e-150 && s < 1e150) {
			return false
		}
	}
	for j := range next {
		next[j] = e.q[j] / next[j]
		e.y[j] += math.Log(next[j]) / e.eta
	}
	clear(e.cols)
	for i, f := range factor {
		e.x[i] += math.Log(f) / e.eta
		row, sum := e.p[i*m:(i+1)*m], 0.0
		for j := range row {
			row[j] *= f * next[j]
			sum += row[j]
			e.cols[j] += row[j]
		}
		e.rows[i] = sum
	}
	return true
}

// rebuild computes the plan and its sums from the potentials.
func (e *entropic) rebuild() {
	m := e.c.D
	clear(e.cols)
	for i, x := range e.x {
		row, cost, sum := e.p[i*m:(i+1)*m], e.c.row(i), 0.0
		for j := range row {
			row[j] = math.Exp(e.eta*(x+e.y[j]-cost[j]) - 1)
			sum += row[j]
			e.cols[j] += row[j]
		}
		e.rows[i] = sum
	}
}

func (e *entropic) dual() float64 {
	f := 0.0
	for i, x := range e.x {
		f += e.r[i]*x - e.rows[i]/e.eta
	}
	for j, y := range e.y {
		f += e.q[j] * y
	}
	return f
}

func (e *entropic) residual() float64 {
	s := 0.0
	for i, v := range e.rows {
		s += math.Abs(v - e.r[i])
	}
	for j, v := range e.cols {
		s += math.Abs(v - e.q[j])
	}
	return s
}

// plan reports the current state.
func (e *entropic) plan(tol float64) *Plan {
	e.rebuild()
	p := &Plan{P: Matrix{e.c.N, e.c.D, e.p}, X: e.x, Y: e.y, F: e.dual(), Residual: e.residual(), SinkhornSteps: e.nSink, NewtonSteps: e.nNewton}
	p.Converged = p.Residual < tol
	for k, v := range e.p {
		p.Cost += v * e.c.X[k]
	}
	return p
}

// Divergence is the debiased entropic cost of two weighted sets,
//
//	OT(a,b) - (OT(a,a) + OT(b,b))/2   (Genevay et al. 2018; Feydy et al. 2019)
//
// with OT the optimal dual value F and costs |x-y|^p: zero for equal sets.
func (s Sinkhorn) Divergence(ctx context.Context, x, y Samples, p int) (float64, error) {
	v, _, err := s.divergence(ctx, x, y, p)
	return v, err
}

// divergence has the influences of the rows of y too: their mean changes as the divergence does, to first order.
func (s Sinkhorn) divergence(ctx context.Context, x, y Samples, p int) (float64, []float64, error) {
	if err := small(x, y); err != nil {
		return 0, nil, err
	}
	c, err := CostMatrix(ctx, x, y, p)
	if err != nil {
		return 0, nil, err
	}
	ab, err := s.Solve(ctx, c, nil, nil)
	if err != nil {
		return 0, nil, err
	}
	if !ab.Converged {
		return 0, nil, fmt.Errorf("metrics: sinkhorn divergence: residual %.3g after %d iterations", ab.Residual, ab.SinkhornSteps)
	}
	self := func(a Samples) (*entropic, error) {
		c, err := CostMatrix(ctx, a, a, p)
		if err != nil {
			return nil, err
		}
		return s.symmetric(ctx, c)
	}
	aa, err := self(x)
	if err != nil {
		return 0, nil, err
	}
	bb, err := self(y)
	if err != nil {
		return 0, nil, err
	}
	influence := make([]float64, len(ab.Y))
	for j := range influence {
		influence[j] = ab.Y[j] - bb.x[j] // the same potential stands on both sides of OT(b,b)
	}
	return ab.F - (aa.dual()+bb.dual())/2, influence, nil // the entropy of the weights cancels
}

// SinkhornDivergence is Sinkhorn's Divergence with costs |x-y|² as a Score.
type SinkhornDivergence struct {
	Eta float64 // 20 over the squared median distance of all rows if zero
}

// Compare implements Score.
func (s SinkhornDivergence) Compare(ctx context.Context, reference, generated Samples) (Result, error) {
	r, _, err := s.without(ctx, reference, generated, 0)
	return r, err
}

func (s SinkhornDivergence) without(ctx context.Context, reference, generated Samples, b int) (Result, []Result, error) {
	if err := checkPair(reference, generated, 2); err != nil {
		return Result{}, nil, err
	}
	if err := small(reference, generated); err != nil {
		return Result{}, nil, err
	}
	if s.Eta == 0 {
		median, err := MedianDistance(ctx, reference, generated)
		if err != nil {
			return Result{}, nil, err
		}
		s.Eta = 20 / (median * median)
	}
	v, influence, err := Sinkhorn{Eta: s.Eta}.divergence(ctx, reference, generated, 2)
	if err != nil {
		return Result{}, nil, err
	}
	r := Result{Metric: "sinkhorn", Value: v, Settings: fmt.Sprintf("cost=|x-y|^2 eta=%.6g", s.Eta)}
	r.N, r.D = generated.Dims()
	r.NRef, _ = reference.Dims()
	return r, linear(influence, b, func(change float64) Result { return Result{Value: v + change} }), nil
}

// symmetric is the optimum of a set against itself with equal weights. Both potentials are equal there, and
// the mean of a potential and its update converges in tens of iterations (Feydy et al. 2019, section 3.2) where
// alternating updates, which turn around that point, may take thousands.
func (s Sinkhorn) symmetric(ctx context.Context, cost Matrix) (*entropic, error) {
	e, err := newEntropic(cost, nil, nil, s.Eta)
	if err != nil {
		return nil, err
	}
	tol, most := s.Tol, s.MaxIter
	if tol == 0 {
		tol = 1e-9
	}
	if most == 0 {
		most = 100000
	}
	next := make([]float64, len(e.x))
	for k := range most {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("metrics: sinkhorn iteration %d: %w", k, err)
		}
		e.update(next, e.x, e.c, e.r)
		residual := 0.0
		for i, v := range next { // the sum of row i is r_i exp(eta (x_i - next_i))
			residual += 2 * e.r[i] * math.Abs(math.Expm1(s.Eta*(e.x[i]-v)))
			e.x[i] = (e.x[i] + v) / 2
		}
		if residual < tol {
			copy(e.x, next)
			copy(e.y, next)
			e.rebuild()
			return e, nil
		}
	}
	return nil, fmt.Errorf("metrics: sinkhorn divergence of a set and itself: above the tolerance after %d iterations", most)
}
