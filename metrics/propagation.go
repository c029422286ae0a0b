package metrics

import (
	"context"
	"fmt"
	"math"
)

// Propagation splits the error of a chain of denoising steps into what single
// steps add and what earlier steps handed down (after Li and van der Schaar,
// "On Error Propagation of Diffusion Models", 2024). With x_t the generated
// states, y_t data noised to the same level, and z_t one model step taken from
// y_{t+1}, all as samples,
//
//	cumulative_t = D(x_t, y_t)     modular_t = D(z_t, y_t)
//
// D being the unbiased MMD² with a Gaussian kernel or the sliced energy
// distance. In pixels of thousands of dimensions both are weak: use features.
type Propagation struct {
	Sliced     bool      // sliced energy distance instead of MMD²
	Directions int       // of the sliced distance, 200 if zero
	Scales     []float64 // of the kernel width per time, e.g. √(α_t² s² + σ_t²); nil keeps one width
	Resamples  int       // bootstrap resamples, 100 if zero, none if negative
	Level      float64   // of the intervals, 0.95 if zero
	Source     Source    // draws directions and resamples
}

// PropagationRow is the state of affairs at one time.
type PropagationRow struct {
	T                   float64
	Cumulative, Modular float64
	CumulativeCI        Interval
	ModularCI           Interval
	Ratio               float64 // cumulative_t / cumulative_{t+1}; NaN in the first row
	Amplification       float64 // (cumulative_t - modular_t)/cumulative_{t+1}; noisy where cumulative is near its null value
	Bandwidth           float64 // of the kernel
}

// Run compares the sets at every time. Times go from noise to data, as the
// chain runs: row k+1 comes one step after row k. The kernel width is the
// median distance within forward[0] and generated[0], scaled by Scales.
func (p Propagation) Run(ctx context.Context, times []float64, generated, forward, oneStep []Samples) ([]PropagationRow, error) {
	n := len(times)
	if n == 0 || len(generated) != n || len(forward) != n || len(oneStep) != n || p.Scales != nil && len(p.Scales) != n {
		return nil, fmt.Errorf("metrics: propagation: %w: %d times, %d generated, %d forward, %d one-step sets, %d scales", ErrDims, n, len(generated), len(forward), len(oneStep), len(p.Scales))
	}
	if p.Directions == 0 {
		p.Directions = 200
	}
	if p.Resamples == 0 {
		p.Resamples = 100
	}
	if p.Level == 0 {
		p.Level = 0.95
	}
	if p.Source == nil && (p.Sliced || p.Resamples > 0) {
		return nil, fmt.Errorf("metrics: propagation: %w", errNoSource)
	}
	for k := range n {
		for _, s := range []Samples{generated[k], oneStep[k]} {
			if err := checkPair(forward[k], s, 2); err != nil {
				return nil, fmt.Errorf("at time %v: %w", times[k], err)
			}
			if err := sameDims(forward[0], s); err != nil {
				return nil, fmt.Errorf("at time %v: %w", times[k], err)
			}
		}
	}
	var theta Matrix
	width := 1.0
	if p.Sliced {
		_, d := forward[0].Dims()
		theta = Directions(p.Source, p.Directions, d, false)
	} else {
		var err error
		if width, err = MedianDistance(ctx, forward[0], generated[0]); err != nil {
			return nil, err
		}
		if p.Scales != nil {
			width /= p.Scales[0]
		}
	}
	rows := make([]PropagationRow, n)
	for k := range rows {
		h := width
		if p.Scales != nil {
			h *= p.Scales[k]
		}
		r := PropagationRow{T: times[k], Bandwidth: h, Ratio: math.NaN(), Amplification: math.NaN()}
		var err error
		if r.Cumulative, r.CumulativeCI, err = p.distance(ctx, generated[k], forward[k], theta, h); err != nil {
			return nil, fmt.Errorf("metrics: propagation at time %v: %w", times[k], err)
		}
		if r.Modular, r.ModularCI, err = p.distance(ctx, oneStep[k], forward[k], theta, h); err != nil {
			return nil, fmt.Errorf("metrics: propagation at time %v: %w", times[k], err)
		}
		if k > 0 {
			r.Ratio = r.Cumulative / rows[k-1].Cumulative
			r.Amplification = (r.Cumulative - r.Modular) / rows[k-1].Cumulative
		}
		rows[k] = r
	}
	return rows, nil
}

// distance returns D and its bootstrap interval.
func (p Propagation) distance(ctx context.Context, x, y Samples, theta Matrix, h float64) (float64, Interval, error) {
	n, _ := x.Dims()
	m, _ := y.Dims()
	var of func(i, j []int) (float64, error)
	if p.Sliced {
		px, err := project(ctx, theta, x)
		if err != nil {
			return 0, Interval{}, err
		}
		py, err := project(ctx, theta, y)
		if err != nil {
			return 0, Interval{}, err
		}
		of = func(i, j []int) (float64, error) {
			sum := 0.0
			a, b := make([]float64, n), make([]float64, m)
			for k := range theta.N {
				for q, r := range i {
					a[q] = px.At(k, r)
				}
				for q, r := range j {
					b[q] = py.At(k, r)
				}
				e, err := Energy1D(a, b)
				if err != nil {
					return 0, err
				}
				sum += e
			}
			return sum / float64(theta.N), nil
		}
	} else {
		g, err := newGram(ctx, Gaussian{h}, x, y)
		if err != nil {
			return 0, Interval{}, err
		}
		of = func(i, j []int) (float64, error) { return g.mmd(i, j), nil }
	}
	v, err := of(count(n), count(m))
	if err != nil || p.Resamples < 0 {
		return v, Interval{v, v}, err
	}
	vals := make([]float64, p.Resamples)
	for k := range vals {
		if err := ctx.Err(); err != nil {
			return 0, Interval{}, err
		}
		if vals[k], err = of(resample(p.Source, n), resample(p.Source, m)); err != nil {
			return 0, Interval{}, err
		}
	}
	return v, percentiles(vals, p.Level, v), nil
}

// gram holds the kernel of all pairs, for resampling.
type gramMatrix struct{ xx, yy, xy Matrix }

func newGram(ctx context.Context, k Kernel, x, y Samples) (*gramMatrix, error) {
	fill := func(a, b Samples) (Matrix, error) {
		n, _ := a.Dims()
		m, _ := b.Dims()
		out := Matrix{n, m, make([]float64, n*m)}
		err := k.pairs(ctx, a, b, false, func(i, j int, v []float64) { copy(out.row(i)[j:], v) })
		return out, err
	}
	var g gramMatrix
	var err error
	if g.xx, err = fill(x, x); err != nil {
		return nil, err
	}
	if g.yy, err = fill(y, y); err != nil {
		return nil, err
	}
	g.xy, err = fill(x, y)
	return &g, err
}

// mmd is the unbiased MMD² of the rows i of x and j of y, which may repeat.
func (g *gramMatrix) mmd(i, j []int) float64 {
	inner := func(k Matrix, idx []int) float64 {
		sum := 0.0
		for p, a := range idx {
			row := k.row(a)
			for q, b := range idx {
				if p != q {
					sum += row[b]
				}
			}
		}
		n := float64(len(idx))
		return sum / (n * (n - 1))
	}
	cross := 0.0
	for _, a := range i {
		row := g.xy.row(a)
		for _, b := range j {
			cross += row[b]
		}
	}
	return inner(g.xx, i) + inner(g.yy, j) - 2*cross/(float64(len(i))*float64(len(j)))
}

// GaussianChain is a chain whose error propagation is known in closed form:
// data N(0,1), exact steps x_{t-1} = √α x_t + √(1-α) ε that keep N(0,1), and a
// model that adds Bias to every step and has (1+Excess)(1-α) instead of 1-α as
// noise variance.
type GaussianChain struct {
	Alpha, Bias, Excess float64
	T                   int
}

// ChainRow is a chain at one time. Divergences are Kullback-Leibler from the
// model to the exact chain.
type ChainRow struct {
	T             int
	Mean, Var     float64 // of the model's x_t; exact are 0 and 1
	Cumulative    float64 // KL of the marginals at t
	Modular       float64 // KL of one step
	MMD2          float64 // squared MMD of the marginals, Gaussian kernel of width 1
	Ratio         float64 // Cumulative / that of t+1; NaN where that is zero
	Amplification float64 // (Cumulative - Modular)/that of t+1: never above 1
}

// Rows returns the chain at t = T-1, ..., 0.
func (c GaussianChain) Rows() ([]ChainRow, error) {
	q := 1 - c.Alpha
	if !(c.Alpha >= 0 && q > 0) || !(c.Excess > -1) || math.IsInf(c.Excess, 0) || math.IsNaN(c.Bias) || c.T < 1 {
		return nil, fmt.Errorf("metrics: Gaussian chain %+v", c)
	}
	rows := make([]ChainRow, c.T)
	// e is the variance minus one: kept apart, small divergences keep their
	// digits.
	m, e, before := 0.0, 0.0, 0.0
	for k := range rows {
		m, e = math.Sqrt(c.Alpha)*m+c.Bias, c.Alpha*e+q*c.Excess
		r := ChainRow{T: c.T - 1 - k, Mean: m, Var: 1 + e, Ratio: math.NaN(), Amplification: math.NaN()}
		r.Cumulative = (minusLog1p(e) + m*m) / 2
		r.Modular = (minusLog1p(c.Excess) + c.Bias*c.Bias/q) / 2
		r.MMD2 = normalMMD(m, e)
		if before > 0 {
			r.Ratio, r.Amplification = r.Cumulative/before, (r.Cumulative-r.Modular)/before
		}
		before = r.Cumulative
		rows[k] = r
	}
	return rows, nil
}

// minusLog1p is x - log(1+x), accurate for small x.
func minusLog1p(x float64) float64 {
	if math.Abs(x) > 0.01 {
		return x - math.Log1p(x)
	}
	sum, pow := 0.0, x
	for k := 2; k < 12; k++ {
		pow *= -x
		sum -= pow / float64(k)
	}
	return sum
}

// normalMMD is the squared MMD of N(m,1+e) and N(0,1) for the Gaussian kernel
// of width one,
//
//	(3+2e)^{-1/2} + 3^{-1/2} - 2 (3+e)^{-1/2} exp(-m²/(2(3+e))),
//
// with its differences taken analytically.
func normalMMD(m, e float64) float64 {
	t, r, s := math.Sqrt(3), math.Sqrt(3+e), math.Sqrt(3+2*e)
	shape := e * e * (2 + 2*r/(s+t)) / (r * t * s * (t + r) * (s + r))
	return shape - 2/r*math.Expm1(-m*m/(2*(3+e)))
}
