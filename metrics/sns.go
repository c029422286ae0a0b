package metrics

import (
	"context"
	"fmt"
	"math"
)

// SparseNewton solves the same problem as Sinkhorn with a few Newton steps
// after a short warm-up (Tang, Shavlovsky, Rahmanian et al., "Accelerating
// Sinkhorn Algorithm with Sparse Newton Iterations", 2024). The dual
//
//	F(x,y) = -(1/η) Σ_ij P_ij + r·x + c·y,   P = exp(η(x_i + y_j - C_ij) - 1)
//
// is concave with gradient g = (r-P1, c-Pᵀ1) and Hessian -ηH,
//
//	H = [diag(P1)  P; Pᵀ  diag(Pᵀ1)].
//
// A step solves H̃ dz = g/η by conjugate gradients, H̃ being H with only the
// largest entries of P kept beside its diagonal, and halves dz until F rises
// or the residual falls (F stops resolving progress near the optimum). Where no
// length of step helps, another warm-up follows.
//
// Cost per step: n² for P, and the kept entries times the inner steps. The
// method can stall where P is not sparse or H̃ nearly singular; then plain
// Sinkhorn goes on from the best potentials, and the Plan says so.
type SparseNewton struct {
	Eta       float64
	Tol       float64 // 1e-9 if zero
	WarmUp    int     // Sinkhorn iterations first, 20 if zero
	Keep      int     // entries of P in H̃; 0 starts at 5 max(n,m) and doubles whenever the residual falls by less than 0.3
	MaxNewton int     // Newton steps before falling back, 100 if zero
	MaxIter   int     // Sinkhorn iterations after falling back, 100000 if zero; below 0 never falls back
	Observe   func(Dual)
}

// Solve runs from zero potentials; weights as in Sinkhorn.Solve.
func (s SparseNewton) Solve(ctx context.Context, cost Matrix, r, c []float64) (*Plan, error) {
	e, err := newEntropic(cost, r, c, s.Eta)
	if err != nil {
		return nil, err
	}
	if s.Tol == 0 {
		s.Tol = 1e-9
	}
	if s.WarmUp == 0 {
		s.WarmUp = 20
	}
	if s.MaxNewton == 0 {
		s.MaxNewton = 100
	}
	if s.MaxIter == 0 {
		s.MaxIter = 100000
	}
	if err := e.sinkhorn(ctx, s.WarmUp, s.Tol, s.Observe); err != nil {
		return nil, err
	}
	e.rebuild()
	n, m := cost.N, cost.D
	keep, adapt := s.Keep, s.Keep == 0
	if adapt {
		keep = 5 * max(n, m)
	}
	bestX, bestY, best, since := clone(e.x), clone(e.y), e.residual(), 0
	for e.nNewton < s.MaxNewton && e.residual() >= s.Tol && since < 15 {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("metrics: sparse Newton step %d: %w", e.nNewton, err)
		}
		before, f := e.residual(), e.dual()
		h := e.hessian(min(keep, n*m))
		g := make([]float64, n+m)
		for i, v := range e.rows {
			g[i] = (e.r[i] - v) / e.eta
		}
		for j, v := range e.cols {
			g[n+j] = (e.q[j] - v) / e.eta
		}
		dz := h.solve(g)
		x, y, step, better := clone(e.x), clone(e.y), 1.0, false
		for ; !better && step > 1e-10 && badEntry(dz) < 0; step /= 2 {
			for i := range e.x {
				e.x[i] = x[i] + step*dz[i]
			}
			for j := range e.y {
				e.y[j] = y[j] + step*dz[n+j]
			}
			e.rebuild()
			better = e.dual() > f || e.residual() < before
		}
		step *= 2
		e.nNewton++
		if !better { // no step helps: more Sinkhorn iterations from where it stood
			copy(e.x, x)
			copy(e.y, y)
			e.rebuild()
			since++
			if adapt {
				keep = min(2*keep, n*m)
			}
			if err := e.sinkhorn(ctx, s.WarmUp, s.Tol, s.Observe); err != nil {
				return nil, err
			}
			e.rebuild()
			continue
		}
		now := e.residual()
		if s.Observe != nil {
			s.Observe(Dual{Newton: true, F: e.dual(), Residual: now, Step: step, Kept: h.kept()})
		}
		if now < best {
			if now < 0.9*best {
				since = 0
			}
			copy(bestX, e.x)
			copy(bestY, e.y)
			best = now
		}
		if e.dual() > f+1e-5*math.Abs(f) { // still climbing
			since = 0
		}
		since++
		if adapt && now > 0.3*before {
			keep = min(2*keep, n*m)
		}
	}
	fell := e.residual() >= s.Tol && s.MaxIter > 0
	if fell {
		copy(e.x, bestX)
		copy(e.y, bestY)
		e.rebuild()
		if err := e.sinkhorn(ctx, s.MaxIter, s.Tol, s.Observe); err != nil {
			return nil, err
		}
	}
	p := e.plan(s.Tol)
	p.FellBack = fell
	return p, nil
}

// sparseHessian is H̃: the diagonal and, row by row, the kept entries of P.
type sparseHessian struct {
	n    int
	diag []float64 // row and column sums of P
	drop []float64 // their parts that were not kept
	at   []int     // first entry of every row, and the end
	col  []int
	val  []float64
}

func (h *sparseHessian) kept() int { return len(h.val) }

// hessian keeps the entries of P that are at least the keep-th largest.
func (e *entropic) hessian(keep int) *sparseHessian {
	n, m := e.c.N, e.c.D
	limit := 0.0
	if keep < len(e.p) {
		limit = kthLargest(clone(e.p), keep)
	}
	h := &sparseHessian{n: n, diag: append(clone(e.rows), e.cols...), drop: make([]float64, n+m), at: make([]int, 0, n+1)}
	for i := range n {
		h.at = append(h.at, len(h.val))
		for j, p := range e.p[i*m : (i+1)*m] {
			if p >= limit && p > 0 {
				h.col = append(h.col, j)
				h.val = append(h.val, p)
			} else {
				h.drop[i] += p
				h.drop[n+j] += p
			}
		}
	}
	h.at = append(h.at, len(h.val))
	return h
}

// mul is out = D^{-1/2} H̃ D^{-1/2} v, the matrix with unit diagonal, and
// returns vᵀ out. With u = D^{-1/2} v it sums P_ij (u_i + u_j) and the dropped
// mass times u_i: terms that stay exact for the nearly null vectors of a plan
// that nearly falls apart, where D u + P u would cancel.
func (h *sparseHessian) mul(out, v, root []float64) float64 {
	curve := 0.0
	for i := range v {
		u := v[i] / root[i]
		out[i] = h.drop[i] * u
		curve += out[i] * u
	}
	for i := range h.n {
		ui := v[i] / root[i]
		for k := h.at[i]; k < h.at[i+1]; k++ {
			j := h.n + h.col[k]
			s := ui + v[j]/root[j]
			f := h.val[k] * s
			out[i] += f
			out[j] += f
			curve += f * s
		}
	}
	for i := range out {
		out[i] /= root[i]
	}
	return curve
}

// solve runs conjugate gradients on the matrix scaled to unit diagonal
// (Jacobi preconditioning) until the residual is at rounding. F does not change
// along (1,-1), a null vector of H that H̃ nearly has: the search stays
// orthogonal to it. The kept entries leave H̃ positive semi-definite.
func (h *sparseHessian) solve(g []float64) []float64 {
	n := len(g)
	root, flat := make([]float64, n), make([]float64, n)
	for i, d := range h.diag {
		root[i] = math.Sqrt(max(d, math.SmallestNonzeroFloat64))
		flat[i] = root[i]
		if i >= h.n {
			flat[i] = -root[i]
		}
	}
	norm := dot(flat, flat)
	project := func(v []float64) {
		f := dot(v, flat) / norm
		for i := range v {
			v[i] -= f * flat[i]
		}
	}
	x, r, ap := make([]float64, n), make([]float64, n), make([]float64, n)
	for i := range r {
		r[i] = g[i] / root[i]
	}
	project(r)
	p := clone(r)
	rr := dot(r, r)
	stop := 1e-26 * rr
	for range 20 * n {
		if rr <= stop {
			break
		}
		curve := h.mul(ap, p, root)
		if curve <= 1e-14*dot(p, p) { // flat to rounding: nothing to gain
			break
		}
		project(ap)
		a := rr / curve
		for i := range x {
			x[i] += a * p[i]
			r[i] -= a * ap[i]
		}
		next := dot(r, r)
		for i := range p {
			p[i] = r[i] + next/rr*p[i]
		}
		rr = next
	}
	for i := range x {
		x[i] /= root[i]
	}
	return x
}

// kthLargest returns the k-th largest entry, reordering x (Hoare's selection,
// median of three).
func kthLargest(x []float64, k int) float64 {
	lo, hi := 0, len(x)-1
	for lo < hi {
		mid := lo + (hi-lo)/2
		a, b, c := x[lo], x[mid], x[hi]
		pivot := max(min(a, b), min(max(a, b), c))
		i, j := lo, hi
		for i <= j {
			for x[i] > pivot {
				i++
			}
			for x[j] < pivot {
				j--
			}
			if i <= j {
				x[i], x[j] = x[j], x[i]
				i++
				j--
			}
		}
		switch {
		case k-1 <= j:
			hi = j
		case k-1 >= i:
			lo = i
		default:
			return x[k-1]
		}
	}
	return x[k-1]
}

func clone(x []float64) []float64 { return append([]float64(nil), x...) }

func dot(a, b []float64) float64 {
	s := 0.0
	for i, v := range a {
		s += v * b[i]
	}
	return s
}
