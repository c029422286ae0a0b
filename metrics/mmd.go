package metrics

import (
	"context"
	"fmt"
	"math"
	"slices"
)

// Kernel is a positive definite function of two feature vectors, known up to
// an additive constant (which cancels in every MMD).
type Kernel interface {
	pairs(ctx context.Context, x, y Samples, upper bool, visit visitor) error
	String() string
}

// Polynomial is (γ u·v + c)^Degree with γ = 1/d and c = 1 where zero. The zero
// value, with Degree 0 meaning 3, is KID's kernel.
type Polynomial struct {
	Degree int
	Gamma  float64
	Coef   float64
}

func (p Polynomial) String() string {
	return fmt.Sprintf("poly degree=%d gamma=%g coef=%g", p.degree(), p.Gamma, p.coef())
}

func (p Polynomial) degree() int {
	if p.Degree == 0 {
		return 3
	}
	return p.Degree
}

func (p Polynomial) coef() float64 {
	if p.Coef == 0 {
		return 1
	}
	return p.Coef
}

func (p Polynomial) pairs(ctx context.Context, x, y Samples, upper bool, visit visitor) error {
	_, d := x.Dims()
	gamma, coef, degree := p.Gamma, p.coef(), p.degree()
	if gamma == 0 {
		gamma = 1 / float64(d)
	}
	return dots(ctx, x, y, upper, func(i, j int, v []float64) {
		for c, dot := range v {
			base := gamma*dot + coef
			k := base
			for range degree - 1 {
				k *= base
			}
			v[c] = k
		}
		visit(i, j, v)
	})
}

// Gaussian is exp(-|u-v|²/(2σ²)). It is evaluated as that minus one, so the
// small MMDs of wide kernels keep their digits.
type Gaussian struct{ Sigma float64 }

func (g Gaussian) String() string { return fmt.Sprintf("gaussian sigma=%g", g.Sigma) }

func (g Gaussian) pairs(ctx context.Context, x, y Samples, upper bool, visit visitor) error {
	if !(g.Sigma > 0) {
		return fmt.Errorf("metrics: Gaussian kernel of width %v", g.Sigma)
	}
	w := -1 / (2 * g.Sigma * g.Sigma)
	return sqDists(ctx, x, y, upper, func(i, j int, v []float64) {
		for c, d2 := range v {
			v[c] = math.Expm1(w * d2)
		}
		visit(i, j, v)
	})
}

// Estimator of MMD² from n samples x and m samples y.
type Estimator int

// Estimators. Unbiased is what KID uses, Biased (never negative) what CMMD
// uses; Paired needs n = m and leaves out k(x_i,y_i) too, the U-statistic of
// Gretton et al. (2012).
const (
	Unbiased Estimator = iota
	Biased
	Paired
)

func (e Estimator) String() string {
	switch e {
	case Unbiased:
		return "unbiased"
	case Biased:
		return "biased"
	}
	return "paired"
}

// MMD is the squared maximum mean discrepancy (Gretton et al., "A Kernel
// Two-Sample Test", 2012)
//
//	mean k(x,x') + mean k(y,y') - 2 mean k(x,y)
//
// where Unbiased leaves the pairs i = j out of the first two means; it may be
// negative. The standard error is a delete-one jackknife over both sets, exact
// from the row sums of the kernel. Time n² + m² + 2nm kernels, memory n + m.
type MMD struct {
	Kernel    Kernel // Polynomial{} if nil
	Estimator Estimator
	Scale     float64 // factor on the value, 1 if zero
}

// Compare implements Score.
func (s MMD) Compare(ctx context.Context, reference, generated Samples) (Result, error) {
	s = s.filled()
	if err := checkPair(reference, generated, 2); err != nil {
		return Result{}, err
	}
	k, err := kernelSums(ctx, s.Kernel, reference, generated, true, true)
	if err != nil {
		return Result{}, fmt.Errorf("metrics: mmd: %w", err)
	}
	r, err := s.result(k, reference, generated)
	if err == nil && s.Estimator == Unbiased && min(r.N, r.NRef) > 2 {
		r.StdErr = s.Scale * k.jackknife()
	}
	return r, err
}

// filled has the defaults in place of zeros.
func (s MMD) filled() MMD {
	if s.Kernel == nil {
		s.Kernel = Polynomial{}
	}
	if s.Scale == 0 {
		s.Scale = 1
	}
	return s
}

func (s MMD) result(k sums, reference, generated Samples) (Result, error) {
	v, err := k.mmd(s.Estimator)
	if err != nil {
		return Result{}, err
	}
	n, d := generated.Dims()
	r := Result{Metric: "mmd", Value: s.Scale * v, N: n, D: d, Settings: fmt.Sprintf("kernel=%v estimator=%v scale=%g", s.Kernel, s.Estimator, s.Scale)}
	r.NRef, _ = reference.Dims()
	return r, nil
}

func (s MMD) without(ctx context.Context, reference, generated Samples, b int) (Result, []Result, error) {
	s = s.filled()
	if err := checkPair(reference, generated, 2); err != nil {
		return Result{}, nil, err
	}
	k, err := kernelSums(ctx, s.Kernel, generated, reference, true, false)
	if err != nil {
		return Result{}, nil, fmt.Errorf("metrics: mmd: %w", err)
	}
	r, err := s.result(k, reference, generated)
	if err != nil {
		return Result{}, nil, err
	}
	left, err := k.blocks(ctx, s.Kernel, generated, s.Estimator, b, s.Scale)
	return r, left, err
}

// sums holds row sums of the kernel. Diagonals are kept apart.
type sums struct {
	xx, yy []float64 // Σ_{j≠i} k(x_i,x_j); only their totals hold where the rows were not wanted
	xy, yx []float64 // Σ_j k(x_i,y_j) and Σ_j k(y_i,x_j), all j; yx only where the rows of y were wanted
	dx, dy float64   // Σ k(x_i,x_i), Σ k(y_i,y_i)
	dxy    float64   // Σ_{i<min(n,m)} k(x_i,y_i)
}

// kernelSums evaluates the kernel on all pairs, on half of those within a set
// whose row sums are not wanted.
func kernelSums(ctx context.Context, k Kernel, x, y Samples, rowsX, rowsY bool) (s sums, err error) {
	var own []float64
	if s.xx, own, err = rowSums(ctx, k, x, x, !rowsX); err != nil {
		return s, err
	}
	s.dx = total(own)
	if s.yy, own, err = rowSums(ctx, k, y, y, !rowsY); err != nil {
		return s, err
	}
	s.dy = total(own)
	if s.xy, s.dxy, err = crossSums(ctx, k, x, y); err != nil {
		return s, err
	}
	if rowsY {
		s.yx, _, err = crossSums(ctx, k, y, x)
	}
	return s, err
}

// crossSums returns Σ_j k(x_i,y_j) for every i, and Σ_i k(x_i,y_i).
func crossSums(ctx context.Context, k Kernel, x, y Samples) (rows []float64, diagonal float64, err error) {
	rows, own, err := rowSums(ctx, k, x, y, false)
	for i, v := range own {
		rows[i] += v
	}
	return rows, total(own), err
}

// rowSums returns Σ_{j≠i} k(x_i,y_j) and k(x_i,y_i) for every i (zero where
// there is no y_i). With upper the sums are 2 Σ_{j>i}: equal to the others in
// total for a symmetric kernel.
func rowSums(ctx context.Context, k Kernel, x, y Samples, upper bool) (rows, own []float64, err error) {
	n, _ := x.Dims()
	rows, own = make([]float64, n), make([]float64, n)
	err = k.pairs(ctx, x, y, upper, func(i, j int, v []float64) {
		sum := 0.0
		for c, kv := range v {
			switch {
			case j+c == i:
				own[i] = kv
			case !upper:
				sum += kv
			case j+c > i:
				sum += 2 * kv
			}
		}
		rows[i] += sum
	})
	return rows, own, err
}

func (s sums) mmd(e Estimator) (float64, error) {
	n, m := float64(len(s.xx)), float64(len(s.yy))
	a, b, c := total(s.xx), total(s.yy), total(s.xy)
	switch e {
	case Unbiased:
		return a/(n*(n-1)) + b/(m*(m-1)) - 2*c/(n*m), nil
	case Biased:
		return (a+s.dx)/(n*n) + (b+s.dy)/(m*m) - 2*c/(n*m), nil
	case Paired:
		if n != m {
			return 0, fmt.Errorf("metrics: paired estimator: %w: %v and %v samples", ErrDims, n, m)
		}
		return (a + b - 2*(c-s.dxy)) / (n * (n - 1)), nil
	}
	return 0, fmt.Errorf("metrics: unknown estimator %d", e)
}

// blocks is the estimate, times the scale, without each of b blocks of the rows of x. Those of Paired, which wants equal
// sizes, are Unbiased's.
func (s sums) blocks(ctx context.Context, k Kernel, x Samples, e Estimator, b int, scale float64) ([]Result, error) {
	n, m := len(s.xx), float64(len(s.yy))
	own, cross, other := total(s.xx), total(s.xy), total(s.yy)
	left := make([]Result, b)
	for q := range left {
		lo, hi := block(q, n, b)
		idx := make([]int, hi-lo)
		for i := range idx {
			idx[i] = lo + i
		}
		rows, diag, err := rowSums(ctx, k, Pick(x, idx), Pick(x, idx), true)
		if err != nil {
			return nil, fmt.Errorf("metrics: jackknife: %w", err)
		}
		rest := float64(n - len(idx))
		if rest < 2 {
			return nil, fmt.Errorf("metrics: jackknife: %w: %d blocks of %d rows", ErrTooFew, b, n)
		}
		a, c := own-2*total(s.xx[lo:hi])+total(rows), cross-total(s.xy[lo:hi])
		v := a/(rest*(rest-1)) + other/(m*(m-1)) - 2*c/(rest*m)
		if e == Biased {
			v = (a+s.dx-total(diag))/(rest*rest) + (other+s.dy)/(m*m) - 2*c/(rest*m)
		}
		left[q].Value = scale * v
	}
	return left, nil
}

// jackknife is the standard error of the unbiased estimate: the delete-one
// jackknife over x and the one over y, variances added.
func (s sums) jackknife() float64 {
	half := func(own, cross []float64, a, b, c float64, m float64) float64 {
		n := float64(len(own))
		left := make([]float64, len(own))
		for i := range left {
			left[i] = (a-2*own[i])/((n-1)*(n-2)) + b/(m*(m-1)) - 2*(c-cross[i])/((n-1)*m)
		}
		mean, v := meanOf(left), 0.0
		for _, l := range left {
			v += (l - mean) * (l - mean)
		}
		return (n - 1) / n * v
	}
	a, b, c := total(s.xx), total(s.yy), total(s.xy)
	n, m := float64(len(s.xx)), float64(len(s.yy))
	return math.Sqrt(half(s.xx, s.xy, a, b, c, m) + half(s.yy, s.yx, b, a, c, n))
}

// KID is the kernel inception distance (Bińkowski et al., "Demystifying MMD
// GANs", 2018): the unbiased MMD² with the kernel (u·v/d + 1)³, averaged over
// random subsets of both sets. Unlike FID it has no bias at small n.
//
// For every subset the generated rows are drawn first, then the reference rows,
// without replacement. With NewSource(2020) that is torch-fidelity's choice
// (its input 1 being the generated set).
//
// Std is the population standard deviation over the subsets, as torch-fidelity
// prints it. Part "monte_carlo" is the error of the average over subsets, Std of
// the sample divided by √Subsets: it says how well the subsets stand for these
// two sets, not how well the sets stand for their sources. That is StdErr of
// Jackknifed, which leaves blocks out of the estimate over all rows (its mean
// over the choice of subsets); beyond 10,000 rows a side, out of the estimate
// over 10,000 of them, scaled by the root of their share. With Full it is Compare's
// too.
type KID struct {
	Subsets int    // 100 if zero
	Size    int    // rows per subset; 0 means min(1000, n, m) as in clean-fid; more than n or m is refused
	Source  Source // draws the subsets
	Full    bool   // use all rows once instead of subsets
}

// Compare implements Score.
func (s KID) Compare(ctx context.Context, reference, generated Samples) (Result, error) {
	if s.Full {
		r, err := MMD{}.Compare(ctx, reference, generated)
		r.Metric = "kid"
		return r, err
	}
	vals, err := s.subsets(ctx, reference, generated)
	if err != nil {
		return Result{}, err
	}
	n, d := generated.Dims()
	r := Result{Metric: "kid", Value: meanOf(vals), Std: math.Sqrt(variance(vals, 0)), N: n, D: d, Settings: fmt.Sprintf("subsets=%d size=%d", len(vals), s.Size)}
	r.NRef, _ = reference.Dims()
	if s.Size == 0 {
		r.Settings = fmt.Sprintf("subsets=%d size=%d", len(vals), min(1000, r.N, r.NRef))
	}
	if len(vals) > 1 {
		r.Parts = map[string]float64{monteCarlo: math.Sqrt(variance(vals, 1) / float64(len(vals)))}
		r.warn(WarnOverlap, "subsets overlap: the spread over them is no standard error of the distance between the sources")
	}
	return r, nil
}

func (s KID) without(ctx context.Context, reference, generated Samples, b int) (Result, []Result, error) {
	if s.Full {
		r, left, err := MMD{}.without(ctx, reference, generated, b)
		r.Metric = "kid"
		return r, left, err
	}
	r, err := s.Compare(ctx, reference, generated)
	if err != nil {
		return r, nil, err
	}
	const most = 10000
	generated, reference = thin(generated, most), thin(reference, most)
	n, _ := generated.Dims()
	m, _ := reference.Dims()
	k := sums{yy: make([]float64, m)} // pairs of the reference are the same in all blocks
	if k.xx, _, err = rowSums(ctx, Polynomial{}, generated, generated, false); err != nil {
		return r, nil, fmt.Errorf("metrics: kid: jackknife: %w", err)
	}
	if k.xy, _, err = crossSums(ctx, Polynomial{}, generated, reference); err != nil {
		return r, nil, fmt.Errorf("metrics: kid: jackknife: %w", err)
	}
	left, err := k.blocks(ctx, Polynomial{}, generated, Unbiased, b, 1)
	if err != nil {
		return r, nil, err
	}
	mean := 0.0
	for _, v := range left {
		mean += v.Value / float64(b)
	}
	for k := range left {
		left[k].Value = r.Value + (left[k].Value-mean)*math.Sqrt(float64(n)/float64(r.N))
	}
	return r, left, nil
}

// thin keeps at most k rows, evenly spread.
func thin(s Samples, k int) Samples {
	n, _ := s.Dims()
	if n <= k {
		return s
	}
	idx := make([]int, k)
	for i := range idx {
		idx[i] = i * n / k
	}
	return Pick(s, idx)
}

// subsets returns the estimate of every subset.
func (s KID) subsets(ctx context.Context, reference, generated Samples) ([]float64, error) {
	if err := checkPair(reference, generated, 2); err != nil {
		return nil, err
	}
	if s.Source == nil {
		return nil, fmt.Errorf("metrics: kid: %w", errNoSource)
	}
	n, _ := generated.Dims()
	m, _ := reference.Dims()
	if s.Size == 0 {
		s.Size = min(1000, n, m)
	}
	if s.Size < 2 || s.Size > min(n, m) {
		return nil, fmt.Errorf("metrics: kid: %w: subsets of %d out of %d generated and %d reference samples", ErrTooFew, s.Size, n, m)
	}
	if s.Subsets == 0 {
		s.Subsets = 100
	}
	src := fresh(s.Source)
	vals := make([]float64, s.Subsets)
	for k := range vals {
		y := Pick(generated, src.Choice(n, s.Size))
		x := Pick(reference, src.Choice(m, s.Size))
		sums, err := kernelSums(ctx, Polynomial{}, x, y, false, false)
		if err != nil {
			return nil, fmt.Errorf("metrics: kid: subset %d: %w", k, err)
		}
		if vals[k], err = sums.mmd(Unbiased); err != nil {
			return nil, err
		}
	}
	return vals, nil
}

// CMMD is the CLIP maximum mean discrepancy (Jayasumana et al., "Rethinking
// FID", 2024): rows scaled to unit length, biased MMD² with a Gaussian kernel
// of width 10, times 1000. For unit rows the kernel is nearly linear, so the
// value is close to 10 |difference of means|².
type CMMD struct {
	Sigma float64 // 10 if zero
	Scale float64 // 1000 if zero
}

// Compare implements Score.
func (s CMMD) Compare(ctx context.Context, reference, generated Samples) (Result, error) {
	if err := checkPair(reference, generated, 2); err != nil {
		return Result{}, err
	}
	r, err := s.mmd().Compare(ctx, unit{reference}, unit{generated})
	r.Metric = "cmmd"
	return r, err
}

func (s CMMD) mmd() MMD {
	if s.Sigma == 0 {
		s.Sigma = 10
	}
	if s.Scale == 0 {
		s.Scale = 1000
	}
	return MMD{Kernel: Gaussian{s.Sigma}, Estimator: Biased, Scale: s.Scale}
}

func (s CMMD) without(ctx context.Context, reference, generated Samples, b int) (Result, []Result, error) {
	if err := checkPair(reference, generated, 2); err != nil {
		return Result{}, nil, err
	}
	r, left, err := s.mmd().without(ctx, unit{reference}, unit{generated}, b)
	r.Metric = "cmmd"
	return r, left, err
}

// unit is a view with rows of length one; a zero row stays zero.
type unit struct{ Samples }

func (u unit) Row(dst []float64, i int) {
	u.Samples.Row(dst, i)
	if n := math.Sqrt(dot(dst, dst)); n > 0 {
		for k := range dst {
			dst[k] /= n
		}
	}
}

// EnergyDistance is 2 E|X-Y| - E|X-X'| - E|Y-Y'| with Euclidean distances
// (Székely and Rizzo 2013). The V-statistic averages over all pairs and is
// never negative; Unbiased leaves out the pairs i = j. Time (n+m)² d.
type EnergyDistance struct{ Unbiased bool }

// Compare implements Score.
func (s EnergyDistance) Compare(ctx context.Context, reference, generated Samples) (Result, error) {
	r, err := s.mmd().Compare(ctx, reference, generated)
	return s.named(r), err
}

// mmd is the distance as an MMD: its kernel is minus the distance.
func (s EnergyDistance) mmd() MMD {
	if s.Unbiased {
		return MMD{Kernel: negDistance{}}
	}
	return MMD{Kernel: negDistance{}, Estimator: Biased}
}

func (s EnergyDistance) named(r Result) Result {
	if r.Metric, r.Settings = "energy", "v-statistic"; s.Unbiased {
		r.Settings = "u-statistic"
	}
	return r
}

func (s EnergyDistance) without(ctx context.Context, reference, generated Samples, b int) (Result, []Result, error) {
	r, left, err := s.mmd().without(ctx, reference, generated, b)
	return s.named(r), left, err
}

// negDistance is the conditionally positive kernel -|u-v|.
type negDistance struct{}

func (negDistance) String() string { return "-|u-v|" }

func (negDistance) pairs(ctx context.Context, x, y Samples, upper bool, visit visitor) error {
	return sqDists(ctx, x, y, upper, func(i, j int, v []float64) {
		for c, d2 := range v {
			v[c] = -math.Sqrt(d2)
		}
		visit(i, j, v)
	})
}

// MedianDistance is the median of the distances between all pairs i < j of the
// rows of both sets pooled (one set may be nil): the usual kernel width. It
// holds all of them in memory.
func MedianDistance(ctx context.Context, x, y Samples) (float64, error) {
	pool := pooled{x, y}
	if err := check("pooled set", pool, 2); err != nil {
		return 0, err
	}
	n, _ := pool.Dims()
	rows := make([][]float64, n)
	err := sqDists(ctx, pool, pool, true, func(i, j int, v []float64) {
		if j+len(v) > i+1 {
			rows[i] = append(rows[i], v[max(0, i+1-j):]...)
		}
	})
	if err != nil {
		return 0, fmt.Errorf("metrics: median distance: %w", err)
	}
	flat := slices.Concat(rows...)
	slices.Sort(flat)
	k := len(flat) / 2
	if len(flat)%2 == 1 {
		return math.Sqrt(flat[k]), nil
	}
	return (math.Sqrt(flat[k-1]) + math.Sqrt(flat[k])) / 2, nil
}

// pooled is x followed by y.
type pooled struct{ x, y Samples }

func (p pooled) Dims() (n, d int) {
	n, d = p.x.Dims()
	if p.y != nil {
		m, _ := p.y.Dims()
		n += m
	}
	return n, d
}

func (p pooled) Row(dst []float64, i int) {
	if n, _ := p.x.Dims(); i >= n {
		p.y.Row(dst, i-n)
		return
	}
	p.x.Row(dst, i)
}

func total(x []float64) float64 {
	s := 0.0
	for _, v := range x {
		s += v
	}
	return s
}

// variance divides by len(x)-ddof.
func variance(x []float64, ddof int) float64 {
	mean, v := meanOf(x), 0.0
	for _, u := range x {
		v += (u - mean) * (u - mean)
	}
	return v / float64(len(x)-ddof)
}
