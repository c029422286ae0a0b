package metrics

import (
	"cmp"
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
// MIND picks a random subset of the larger one. Part "monte_carlo" is the error
// of the average over the directions. Memory grows with n + m.
type Sliced struct {
	Kind       SlicedKind
	Directions int    // random unit directions, 1000 if zero
	Orthogonal bool   // make every block of d directions orthogonal, which lowers the variance
	Theta      Matrix // use these rows instead of random directions
	Source     Source // draws directions and subsets
}

// Compare implements Score.
func (s Sliced) Compare(ctx context.Context, reference, generated Samples) (Result, error) {
	r, _, err := s.without(ctx, reference, generated, 0)
	return r, err
}

func (s Sliced) without(ctx context.Context, reference, generated Samples, b int) (Result, []Result, error) {
	if err := checkPair(reference, generated, 2); err != nil {
		return Result{}, nil, err
	}
	n, d := generated.Dims()
	m, _ := reference.Dims()
	r := Result{Metric: s.Kind.String(), N: n, NRef: m, D: d}
	var src Source
	if s.Source != nil {
		src = fresh(s.Source)
	}
	if s.Theta.N == 0 {
		if src == nil {
			return Result{}, nil, fmt.Errorf("metrics: %v: %w", s.Kind, errNoSource)
		}
		if s.Directions == 0 {
			s.Directions = 1000
		}
		s.Theta = Directions(src, s.Directions, d, s.Orthogonal)
		r.Settings = fmt.Sprintf("directions=%d orthogonal=%t", s.Directions, s.Orthogonal)
	} else {
		r.Settings = fmt.Sprintf("directions=%d given", s.Theta.N)
	}
	if s.Kind == MIND && n != m {
		if src == nil {
			return Result{}, nil, fmt.Errorf("metrics: mind of %d and %d samples: %w", n, m, errNoSource)
		}
		if n > m {
			generated = Pick(generated, src.Choice(n, m))
		} else {
			reference = Pick(reference, src.Choice(m, n))
		}
	}
	all, left, err := s.each(ctx, reference, generated, b)
	if err != nil {
		return Result{}, nil, err
	}
	spread := 0.0
	if len(all) > 1 {
		spread = math.Sqrt(variance(all, 1) / float64(len(all)))
	}
	switch r.Value = s.value(meanOf(all), d); s.Kind {
	case SlicedW2:
		if spread /= 2 * r.Value; r.Value == 0 {
			spread = 0
		}
	case MIND:
		spread *= 3 * float64(d)
	}
	r.Parts = map[string]float64{monteCarlo: spread}
	out := make([]Result, b)
	for k := range out {
		out[k].Value = s.value(left[k], d)
	}
	return r, out, nil
}

// value is the score of a mean over directions.
func (s Sliced) value(mean float64, d int) float64 {
	switch s.Kind {
	case SlicedW2:
		return math.Sqrt(mean)
	case MIND:
		return 3 * float64(d) * mean
	}
	return mean
}

// each is the distance along every direction (W2² for SlicedW2 and MIND), and its mean over them without each of b blocks
// of generated rows.
func (s Sliced) each(ctx context.Context, reference, generated Samples, b int) (vals, left []float64, err error) {
	n, d := generated.Dims()
	if s.Theta.D != d {
		return nil, nil, fmt.Errorf("metrics: %v: directions: %w: %d and %d", s.Kind, ErrDims, s.Theta.D, d)
	}
	along := func(x, y []float64) (float64, error) {
		switch s.Kind {
		case SlicedEnergy:
			return Energy1D(x, y)
		case SlicedW1:
			return Wasserstein1D(x, y, nil, nil, 1)
		}
		return Wasserstein1D(x, y, nil, nil, 2)
	}
	vals, left = make([]float64, s.Theta.N), make([]float64, b)
	rest, order := make([]float64, 0, n), count(n)
	const some = 32 // directions at a time
	for from := 0; from < len(vals); from += some {
		part := Matrix{min(some, len(vals)-from), d, s.Theta.X[from*d:]}
		px, err := project(ctx, part, reference)
		if err != nil {
			return nil, nil, err
		}
		py, err := project(ctx, part, generated)
		if err != nil {
			return nil, nil, err
		}
		for k := range part.N {
			if err := ctx.Err(); err != nil {
				return nil, nil, err
			}
			x, y := px.row(k), py.row(k)
			if vals[from+k], err = along(x, y); err != nil {
				return nil, nil, err
			}
			if b == 0 {
				continue
			}
			slices.Sort(x) // once for all blocks
			slices.SortFunc(order, func(i, j int) int { return cmp.Compare(y[i], y[j]) })
			for q := range left {
				rest = rest[:0]
				lo, hi := block(q, n, b)
				for _, i := range order {
					if i < lo || i >= hi {
						rest = append(rest, y[i])
					}
				}
				v, err := along(x, rest)
				if err != nil {
					return nil, nil, err
				}
				left[q] += v / float64(len(vals))
			}
		}
	}
	return vals, left, nil
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
