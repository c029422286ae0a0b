package metrics

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack"
	"gonum.org/v1/gonum/lapack/lapack64"
)

// Path is a set of trajectories: row i of X[k] is sample i at time T[k]. Times
// are strictly monotone, in either direction.
type Path struct {
	T []float64
	X []Matrix
}

func (p Path) check(points int) error {
	if len(p.T) != len(p.X) || len(p.T) < points {
		return fmt.Errorf("metrics: path: %w: %d times and %d states, needs at least %d", ErrTooFew, len(p.T), len(p.X), points)
	}
	for k, x := range p.X {
		if x.N < 1 || x.D < 1 || len(x.X) != x.N*x.D || x.N != p.X[0].N || x.D != p.X[0].D {
			return fmt.Errorf("metrics: path: state %d: %w: %d x %d", k, ErrDims, x.N, x.D)
		}
		if badEntry(x.X) >= 0 {
			return fmt.Errorf("metrics: path: state %d: %w", k, ErrNaN)
		}
		if k > 0 && !((p.T[k]-p.T[k-1])*(p.T[len(p.T)-1]-p.T[0]) > 0) {
			return fmt.Errorf("metrics: path: times %v and %v are not monotone", p.T[k-1], p.T[k])
		}
	}
	return nil
}

// Straightness describes how far trajectories are from straight lines walked
// at constant speed, where one Euler step would be exact. Per-step quantities
// are indexed [step][sample].
type Straightness struct {
	// S = Σ_k |Δt_k|/T · mean over samples and dimensions of (v_k - v̄)², with
	// v_k = Δx_k/Δt_k, v̄ = (x_end - x_start)/T and T the whole time span: the
	// integral of Lee et al., "Minimizing Trajectory Curvature of ODE-based
	// Generative Models", 2023, per dimension. On unequal times the unweighted
	// mean of that repository is another number.
	S         float64
	PerSample []float64   // the same for every sample
	Cosine    [][]float64 // between consecutive velocities; NaN where one is zero
	Change    [][]float64 // |v_{k+1}-v_k| over the time between the midpoints
	ArcChord  []float64   // path length over distance of the ends, 1 for a straight line; +Inf for a loop
}

// Straight measures a path of at least two points. S depends on the choice of
// time: compare like with like.
func Straight(p Path) (Straightness, error) {
	if err := p.check(2); err != nil {
		return Straightness{}, err
	}
	n, d, last := p.X[0].N, p.X[0].D, len(p.T)-1
	span := p.T[last] - p.T[0]
	s := Straightness{PerSample: make([]float64, n), ArcChord: make([]float64, n)}
	var before Matrix
	for k := range last {
		dt := p.T[k+1] - p.T[k]
		v := Matrix{n, d, make([]float64, n*d)}
		for i := range n {
			sum, length := 0.0, 0.0
			for j := range d {
				dx := p.X[k+1].At(i, j) - p.X[k].At(i, j)
				v.X[i*d+j] = dx / dt
				off := dx/dt - (p.X[last].At(i, j)-p.X[0].At(i, j))/span
				sum += off * off
				length += dx * dx
			}
			s.PerSample[i] += dt / span * sum / float64(d)
			s.ArcChord[i] += math.Sqrt(length)
		}
		if k > 0 {
			gap := math.Abs(p.T[k+1]-p.T[k-1]) / 2
			cos, change := make([]float64, n), make([]float64, n)
			for i := range n {
				a, b := before.row(i), v.row(i)
				cos[i] = dot(a, b) / math.Sqrt(dot(a, a)*dot(b, b))
				change[i] = math.Sqrt(sqDist(a, b)) / gap
			}
			s.Cosine, s.Change = append(s.Cosine, cos), append(s.Change, change)
		}
		before = v
	}
	for i := range n {
		s.ArcChord[i] /= math.Sqrt(sqDist(p.X[last].row(i), p.X[0].row(i)))
	}
	s.S = meanOf(s.PerSample)
	return s, nil
}

// Bend is the geometry of a curve at one of its points.
type Bend struct {
	Arc       float64 // length from the start
	Curvature float64 // |r'×r''|/|r'|³
	Torsion   float64 // (r'×r'')·r'''/|r'×r''|²; its sign means something only in three dimensions
}

// Curvature estimates curvature and torsion along one trajectory: the points
// (rows, in order) are projected on their three principal directions and a
// cubic in arc length is fitted around every point, with tricube weights over
// a window of that many points, cut at the ends. Window 0 means 101 points or
// as many as there are; it must be at least 5. Three-dimensional points are
// used as they are.
//
// Derivatives are accurate to the square of the window in the interior, and to
// less within half a window of the ends.
func Curvature(points Matrix, window int) ([]Bend, error) {
	if err := check("trajectory", points, 5); err != nil {
		return nil, err
	}
	if window == 0 {
		window = 101
	}
	if window < 5 {
		return nil, fmt.Errorf("metrics: curvature: window of %d points, needs at least 5", window)
	}
	n := points.N
	window = min(window, n)
	r, err := principal3(points)
	if err != nil {
		return nil, err
	}
	out := make([]Bend, n)
	for i := 1; i < n; i++ {
		step := math.Sqrt(sqDist(points.row(i), points.row(i-1)))
		if step == 0 {
			return nil, fmt.Errorf("metrics: curvature: points %d and %d are equal", i-1, i)
		}
		out[i].Arc = out[i-1].Arc + step
	}
	for i := range out {
		lo := min(max(i-window/2, 0), n-window)
		reach := 0.0
		for k := lo; k < lo+window; k++ {
			reach = max(reach, math.Abs(out[k].Arc-out[i].Arc))
		}
		reach *= 1 + 1/float64(window) // no point has weight zero
		// Least squares on the basis 1, u, u², u³ with u = (s-s_i)/reach.
		a := blas64.General{Rows: window, Cols: 4, Stride: 4, Data: make([]float64, window*4)}
		b := blas64.General{Rows: window, Cols: 3, Stride: 3, Data: make([]float64, window*3)}
		for k := range window {
			u := (out[lo+k].Arc - out[i].Arc) / reach
			t := 1 - math.Abs(u*u*u)
			w := math.Sqrt(t * t * t)
			copy(a.Data[k*4:], []float64{w, w * u, w * u * u, w * u * u * u})
			for c := range 3 {
				b.Data[k*3+c] = w * r[lo+k][c]
			}
		}
		work := make([]float64, 1)
		lapack64.Gels(blas.NoTrans, a, b, work, -1)
		work = make([]float64, int(work[0]))
		if !lapack64.Gels(blas.NoTrans, a, b, work, len(work)) {
			return nil, fmt.Errorf("metrics: curvature: the fit at point %d is singular", i)
		}
		var d1, d2, d3 [3]float64
		for c := range 3 {
			d1[c] = b.Data[3+c] / reach
			d2[c] = 2 * b.Data[6+c] / (reach * reach)
			d3[c] = 6 * b.Data[9+c] / (reach * reach * reach)
		}
		x := [3]float64{d1[1]*d2[2] - d1[2]*d2[1], d1[2]*d2[0] - d1[0]*d2[2], d1[0]*d2[1] - d1[1]*d2[0]}
		speed, area := math.Sqrt(dot(d1[:], d1[:])), dot(x[:], x[:])
		out[i].Curvature = math.Sqrt(area) / (speed * speed * speed)
		if area > 0 {
			out[i].Torsion = dot(x[:], d3[:]) / area
		}
	}
	return out, nil
}

// principal3 projects centred points on their first three principal
// directions.
func principal3(m Matrix) ([][3]float64, error) {
	out := make([][3]float64, m.N)
	if m.D <= 3 {
		for i := range out {
			copy(out[i][:], m.row(i))
		}
		return out, nil
	}
	mean := make([]float64, m.D)
	for i := range m.N {
		for j, v := range m.row(i) {
			mean[j] += v / float64(m.N)
		}
	}
	c := blas64.General{Rows: m.N, Cols: m.D, Stride: m.D, Data: clone(m.X)}
	for i := range m.N {
		for j := range m.D {
			c.Data[i*m.D+j] -= mean[j]
		}
	}
	k := min(m.N, m.D)
	s := make([]float64, k)
	u := blas64.General{Rows: m.N, Cols: k, Stride: k, Data: make([]float64, m.N*k)}
	none := blas64.General{Stride: 1}
	work := make([]float64, 1)
	lapack64.Gesvd(lapack.SVDStore, lapack.SVDNone, c, u, none, s, work, -1)
	work = make([]float64, int(work[0]))
	if !lapack64.Gesvd(lapack.SVDStore, lapack.SVDNone, c, u, none, s, work, len(work)) {
		return nil, fmt.Errorf("metrics: curvature: principal directions did not converge")
	}
	for i := range out {
		for j := range min(3, k) {
			out[i][j] = s[j] * u.Data[i*k+j]
		}
	}
	return out, nil
}

// MongeGap is how much a map loses against the best pairing of its outputs with
// its inputs (Uscidu and Cuturi, "The Monge Gap", 2023) with the cost
// c(z,x) = |z-x|²/2:
//
//	mean_i c(z_i, T(z_i)) - min_π mean_i c(z_i, T(z_π(i)))
//
// It is zero iff the pairing is optimal on this batch (a batch gap of zero does
// not make the map optimal).
type MongeGap struct {
	Gap       float64
	MeanCost  float64 // of the map
	Transport float64 // of the optimal or entropic plan
}

// ExactMongeGap solves the assignment problem: time n³, at most about 2000
// rows.
func ExactMongeGap(ctx context.Context, z, image Samples) (MongeGap, error) {
	c, g, err := mongeCost(ctx, z, image)
	if err != nil {
		return g, err
	}
	_, cost, err := Assignment(ctx, c)
	if err != nil {
		return g, err
	}
	g.Transport = cost / float64(c.N)
	g.Gap = max(0, g.MeanCost-g.Transport) // the best is never above the identity
	return g, nil
}

// EntropicMongeGap uses the cost <C,P> of the entropic plan. That is above the
// optimum, so the gap is understated and can be negative.
func EntropicMongeGap(ctx context.Context, z, image Samples, solver SparseNewton) (MongeGap, error) {
	c, g, err := mongeCost(ctx, z, image)
	if err != nil {
		return g, err
	}
	p, err := solver.Solve(ctx, c, nil, nil)
	if err != nil {
		return g, err
	}
	if !p.Converged {
		return g, fmt.Errorf("metrics: Monge gap: the plan misses its marginals by %.3g", p.Residual)
	}
	g.Transport = p.Cost
	g.Gap = g.MeanCost - g.Transport
	return g, nil
}

func mongeCost(ctx context.Context, z, image Samples) (Matrix, MongeGap, error) {
	n, _ := z.Dims()
	if m, _ := image.Dims(); n != m {
		return Matrix{}, MongeGap{}, fmt.Errorf("metrics: Monge gap: %w: %d inputs and %d outputs", ErrDims, n, m)
	}
	for what, s := range map[string]Samples{"inputs": z, "outputs": image} {
		if err := check(what, s, 1); err != nil {
			return Matrix{}, MongeGap{}, err
		}
	}
	c, err := CostMatrix(ctx, z, image, 2)
	if err != nil {
		return c, MongeGap{}, err
	}
	var g MongeGap
	for i := range c.X {
		c.X[i] /= 2
	}
	for i := range n {
		g.MeanCost += c.At(i, i) / float64(n)
	}
	return c, g, nil
}

// LinearMongeGap is the gap of z -> A z in the population of z ~ N(0,I): the
// sum of the singular values of A minus its trace. It is zero iff A is
// symmetric positive semi-definite.
func LinearMongeGap(a Matrix) (float64, error) {
	if a.N != a.D || a.N < 1 || len(a.X) != a.N*a.D {
		return 0, fmt.Errorf("metrics: Monge gap: %w: %d x %d", ErrDims, a.N, a.D)
	}
	if badEntry(a.X) >= 0 {
		return 0, fmt.Errorf("metrics: Monge gap: %w", ErrNaN)
	}
	trace := 0.0
	for i := range a.N {
		trace += a.At(i, i)
	}
	return nuclear(blas64.General{Rows: a.N, Cols: a.D, Stride: a.D, Data: clone(a.X)}) - trace, nil
}
