package metrics

import (
	"context"
	"fmt"
	"math"
	"slices"
)

// Wasserstein1D is W_p^p between two weighted point sets on the line, exactly:
// the cost of the monotone coupling
//
//	∫₀¹ |F⁻¹(u) - G⁻¹(u)|^p du.
//
// nil weights are equal weights; weights are scaled to sum to one and must not
// be negative. p is at least 1. Time n log n.
func Wasserstein1D(x, y, wx, wy []float64, p float64) (float64, error) {
	if !(p >= 1) {
		return 0, fmt.Errorf("metrics: Wasserstein distance of order %v", p)
	}
	a, err := newLine(x, wx)
	if err != nil {
		return 0, err
	}
	b, err := newLine(y, wy)
	if err != nil {
		return 0, err
	}
	cost := func(d float64) float64 {
		switch d = math.Abs(d); p {
		case 1:
			return d
		case 2:
			return d * d
		}
		return math.Pow(d, p)
	}
	sum := 0.0
	for i, j, at := 0, 0, 0.0; i < len(a.x) && j < len(b.x); {
		next := min(a.cum[i], b.cum[j])
		sum += (next - at) * cost(a.x[i]-b.x[j])
		at = next
		if a.cum[i] == next {
			i++
		}
		if b.cum[j] == next {
			j++
		}
	}
	return sum, nil
}

// Energy1D is the energy distance on the line,
//
//	2E|X-Y| - E|X-X'| - E|Y-Y'| = 2 ∫ (F-G)² dx,
//
// in time n log n by sorting (V-statistic).
func Energy1D(x, y []float64) (float64, error) {
	a, err := newLine(x, nil)
	if err != nil {
		return 0, err
	}
	b, err := newLine(y, nil)
	if err != nil {
		return 0, err
	}
	n, m := len(a.x), len(b.x)
	sum := 0.0
	for i, j, at := 0, 0, min(a.x[0], b.x[0]); i < n || j < m; {
		next := math.Inf(1)
		if i < n {
			next = a.x[i]
		}
		if j < m {
			next = min(next, b.x[j])
		}
		// i/n - j/m over a common denominator: exact where they are equal.
		f := float64(i*m-j*n) / (float64(n) * float64(m))
		sum += f * f * (next - at)
		at = next
		for i < n && a.x[i] == next {
			i++
		}
		for j < m && b.x[j] == next {
			j++
		}
	}
	return 2 * sum, nil
}

// line is a sorted point set with cumulative weights that end at exactly 1.
type line struct{ x, cum []float64 }

func newLine(x, w []float64) (line, error) {
	n := len(x)
	switch {
	case n == 0:
		return line{}, fmt.Errorf("metrics: points on a line: %w: 0", ErrTooFew)
	case badEntry(x) >= 0:
		return line{}, fmt.Errorf("metrics: points on a line: %w", ErrNaN)
	}
	l := line{slices.Clone(x), make([]float64, n)}
	if w == nil {
		slices.Sort(l.x)
		for i := range l.cum {
			l.cum[i] = float64(i+1) / float64(n)
		}
		return l, nil
	}
	w, err := shares("weights", w, n)
	if err != nil {
		return line{}, err
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		if x[i] < x[j] {
			return -1
		} else if x[i] > x[j] {
			return 1
		}
		return 0
	})
	sum := 0.0
	for k, i := range order {
		sum += w[i]
		l.x[k], l.cum[k] = x[i], sum
	}
	for k := n - 1; k >= 0 && l.cum[k] >= sum; k-- { // rounding must not leave a rest
		l.cum[k] = 1
	}
	return l, nil
}

// shares checks weights and scales them to sum to one; nil means equal ones.
func shares(what string, w []float64, n int) ([]float64, error) {
	if w == nil {
		w = make([]float64, n)
		for i := range w {
			w[i] = 1 / float64(n)
		}
		return w, nil
	}
	if len(w) != n {
		return nil, fmt.Errorf("metrics: %s: %w: %d for %d points", what, ErrDims, len(w), n)
	}
	if badEntry(w) >= 0 {
		return nil, fmt.Errorf("metrics: %s: %w", what, ErrNaN)
	}
	sum := 0.0
	for i, v := range w {
		if v < 0 {
			return nil, fmt.Errorf("metrics: %s: entry %d is %v", what, i, v)
		}
		sum += v
	}
	if sum == 0 {
		return nil, fmt.Errorf("metrics: %s: all zero", what)
	}
	out := make([]float64, n)
	for i, v := range w {
		out[i] = v / sum
	}
	return out, nil
}

// SlicedKind says which distance on the line a Sliced score averages.
type SlicedKind int

// Kinds of sliced distance. With θ uniform on the sphere and W, ED the
// distances between the projections θ·x and θ·y:
const (
	SlicedW2     SlicedKind = iota // (mean W2²)^{1/2}
	SlicedW1                       // mean W1
	SlicedEnergy                   // mean ED; the energy distance in d dimensions is SlicedEnergyFactor(d) times its expectation
	MIND                           // 3 d mean W2² for sets of equal size
)

func (k SlicedKind) String() string {
	return [...]string{"sliced-w2", "sliced-w1", "sliced-energy", "mind"}[k]
}

// Sliced averages a distance over directions (Rabin et al. 2011; Bonneel et
// al. 2015). Sets of different size are compared by their quantile functions;
// MIND picks a random subset of the larger one. StdErr is the Monte-Carlo
// error over the directions.
type Sliced struct {
	Kind       SlicedKind
	Directions int    // random unit directions, 1000 if zero
	Orthogonal bool   // make every block of d directions orthogonal, which lowers the variance
	Theta      Matrix // use these rows instead of random directions
	Source     Source // draws directions and subsets
}

// Compare implements Score.
func (s Sliced) Compare(ctx context.Context, reference, generated Samples) (Result, error) {
	if err := checkPair(reference, generated, 2); err != nil {
		return Result{}, err
	}
	n, d := generated.Dims()
	m, _ := reference.Dims()
	r := Result{Metric: s.Kind.String(), N: n, NRef: m, D: d}
	if s.Theta.N == 0 {
		if s.Source == nil {
			return Result{}, fmt.Errorf("metrics: %v: %w", s.Kind, errNoSource)
		}
		if s.Directions == 0 {
			s.Directions = 1000
		}
		s.Theta = Directions(s.Source, s.Directions, d, s.Orthogonal)
		r.Settings = fmt.Sprintf("directions=%d orthogonal=%t", s.Directions, s.Orthogonal)
	} else {
		r.Settings = fmt.Sprintf("directions=%d given", s.Theta.N)
	}
	if s.Kind == MIND && n != m {
		if s.Source == nil {
			return Result{}, fmt.Errorf("metrics: mind of %d and %d samples: %w", n, m, errNoSource)
		}
		if n > m {
			generated = Pick(generated, s.Source.Choice(n, m))
		} else {
			reference = Pick(reference, s.Source.Choice(m, n))
		}
	}
	vals, err := s.each(ctx, reference, generated)
	if err != nil {
		return Result{}, err
	}
	mean := meanOf(vals)
	if len(vals) > 1 {
		r.StdErr = math.Sqrt(variance(vals, 1) / float64(len(vals)))
	}
	switch r.Value = mean; s.Kind {
	case SlicedW2:
		r.Value = math.Sqrt(mean)
		if r.StdErr /= 2 * r.Value; r.Value == 0 {
			r.StdErr = 0
		}
	case MIND:
		r.Value *= 3 * float64(d)
		r.StdErr *= 3 * float64(d)
	}
	return r, nil
}

// each is the distance along every direction: W2² for SlicedW2 and MIND.
func (s Sliced) each(ctx context.Context, reference, generated Samples) ([]float64, error) {
	if _, d := generated.Dims(); s.Theta.D != d {
		return nil, fmt.Errorf("metrics: %v: directions: %w: %d and %d", s.Kind, ErrDims, s.Theta.D, d)
	}
	x, err := project(ctx, s.Theta, reference)
	if err != nil {
		return nil, err
	}
	y, err := project(ctx, s.Theta, generated)
	if err != nil {
		return nil, err
	}
	vals := make([]float64, s.Theta.N)
	for k := range vals {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		switch s.Kind {
		case SlicedEnergy:
			vals[k], err = Energy1D(x.row(k), y.row(k))
		case SlicedW1:
			vals[k], err = Wasserstein1D(x.row(k), y.row(k), nil, nil, 1)
		default:
			vals[k], err = Wasserstein1D(x.row(k), y.row(k), nil, nil, 2)
		}
		if err != nil {
			return nil, err
		}
	}
	return vals, nil
}

// project returns θ_k · x_i as row k, column i.
func project(ctx context.Context, theta Matrix, x Samples) (Matrix, error) {
	n, _ := x.Dims()
	out := Matrix{theta.N, n, make([]float64, theta.N*n)}
	err := dots(ctx, theta, x, false, func(k, i int, v []float64) { copy(out.row(k)[i:], v) })
	if err != nil {
		return out, fmt.Errorf("metrics: projections: %w", err)
	}
	return out, nil
}

// Directions draws k unit vectors of d entries: normal vectors, scaled. With
// orthogonal, every block of d of them is first made orthogonal.
func Directions(src Source, k, d int, orthogonal bool) Matrix {
	m := Matrix{k, d, make([]float64, k*d)}
	for i := range k {
		for again := true; again; {
			src.Randn(m.row(i))
			if orthogonal {
				for range 2 { // twice is enough
					for j := i - i%d; j < i; j++ {
						dot := 0.0
						for c, v := range m.row(j) {
							dot += v * m.row(i)[c]
						}
						for c, v := range m.row(j) {
							m.row(i)[c] -= dot * v
						}
					}
				}
			}
			again = !(dot(m.row(i), m.row(i)) > 1e-20)
		}
		unit{m}.Row(m.row(i), i)
	}
	return m
}

// SlicedEnergyFactor is c_d with E|θ·z| = |z|/c_d for a unit direction θ:
//
//	c_d = √π Γ((d+1)/2)/Γ(d/2)
func SlicedEnergyFactor(d int) float64 {
	a, _ := math.Lgamma(float64(d+1) / 2)
	b, _ := math.Lgamma(float64(d) / 2)
	return math.Sqrt(math.Pi) * math.Exp(a-b)
}
