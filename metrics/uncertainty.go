package metrics

import (
	"context"
	"fmt"
	"math"
	"slices"
)

// Interval is a confidence interval.
type Interval struct{ Low, High float64 }

// Estimate is a value with its uncertainty.
type Estimate struct {
	Value  float64
	StdErr float64
	CI     Interval
}

// Bootstrap resamples n rows with replacement (Efron 1979) and returns the
// statistic of the original rows, the standard deviation over the resamples
// and the percentile interval at the level (0.95 if zero), moved so that the
// mean over the resamples lies at the statistic: rows that repeat shift most
// distances between sets. stat gets row indices.
func Bootstrap(ctx context.Context, n, resamples int, level float64, src Source, stat func(idx []int) (float64, error)) (Estimate, error) {
	if level == 0 {
		level = 0.95
	}
	if n < 1 || resamples < 2 || !(level > 0 && level < 1) {
		return Estimate{}, fmt.Errorf("metrics: bootstrap of %d rows, %d resamples, level %v", n, resamples, level)
	}
	if src == nil {
		return Estimate{}, fmt.Errorf("metrics: bootstrap: %w", errNoSource)
	}
	v, err := stat(count(n))
	if err != nil {
		return Estimate{}, fmt.Errorf("metrics: bootstrap: %w", err)
	}
	vals := make([]float64, resamples)
	for k := range vals {
		if err := ctx.Err(); err != nil {
			return Estimate{}, fmt.Errorf("metrics: bootstrap: %w", err)
		}
		if vals[k], err = stat(resample(src, n)); err != nil {
			return Estimate{}, fmt.Errorf("metrics: bootstrap resample %d: %w", k, err)
		}
	}
	return Estimate{v, math.Sqrt(variance(vals, 1)), percentiles(vals, level, v)}, nil
}

// Jackknife leaves out one of n rows (or shards) at a time (Tukey 1958). Value
// is the bias-corrected estimate n θ - (n-1) mean θ_(i), StdErr is
// ((n-1)/n Σ (θ_(i) - mean)²)^{1/2}, CI the normal interval of 95 %.
func Jackknife(ctx context.Context, n int, stat func(idx []int) (float64, error)) (Estimate, error) {
	if n < 2 {
		return Estimate{}, fmt.Errorf("metrics: jackknife: %w: %d, needs at least 2", ErrTooFew, n)
	}
	v, err := stat(count(n))
	if err != nil {
		return Estimate{}, fmt.Errorf("metrics: jackknife: %w", err)
	}
	vals := make([]float64, n)
	for i := range vals {
		if err := ctx.Err(); err != nil {
			return Estimate{}, fmt.Errorf("metrics: jackknife: %w", err)
		}
		if vals[i], err = stat(slices.Delete(count(n), i, i+1)); err != nil {
			return Estimate{}, fmt.Errorf("metrics: jackknife without %d: %w", i, err)
		}
	}
	f := float64(n)
	e := Estimate{Value: f*v - (f-1)*meanOf(vals), StdErr: math.Sqrt((f - 1) * variance(vals, 0))}
	const z = 1.959963984540054 // 97.5 % of the standard normal
	e.CI = Interval{e.Value - z*e.StdErr, e.Value + z*e.StdErr}
	return e, nil
}

// ShardFID is the FID of merged shards for the index lists of Bootstrap and
// Jackknife: resampling shards of moments costs no features. Shards of another
// extractor than the reference's are refused.
func ShardFID(reference Stats, shards []*Moments) func(idx []int) (float64, error) {
	return func(idx []int) (float64, error) {
		pick := make([]*Moments, len(idx))
		for k, i := range idx {
			pick[k] = shards[i]
		}
		m, err := MergeAll(pick)
		if err != nil {
			return 0, err
		}
		s, err := m.Stats()
		if err != nil {
			return 0, err
		}
		r, err := CompareStats(reference, s, false)
		return r.Value, err
	}
}

// FIDInf is the extrapolation of FID to infinitely many samples.
type FIDInf struct {
	Estimate           // Value is the intercept; its error comes from the fit and is correlated, read it as a lower bound
	Slope    float64   // of FID_n against 1/n
	N        []int     // subset sizes
	FID      []float64 // of the subsets
	Warnings []Warning // named reasons to distrust Value
}

// FIDInfinity fits FID_n = a + b/n over random subsets of the generated rows at
// sizes equally spaced from min(5000, N/10) to N and returns a (Chong and
// Forsyth, "Effectively Unbiased FID", 2020). points is 15 if zero. Only the
// bias of the generated set is removed, not that of the reference. A smallest
// subset of no more rows than features is a warning: the law a + b/n does not
// hold there.
func FIDInfinity(ctx context.Context, reference Stats, generated Samples, points int, src Source) (FIDInf, error) {
	if points == 0 {
		points = 15
	}
	n, _ := generated.Dims()
	least := max(min(5000, n/10), 2)
	if points < 3 || n-least < points-1 {
		return FIDInf{}, fmt.Errorf("metrics: FID at infinity: %w: %d samples for %d sizes from %d", ErrTooFew, n, points, least)
	}
	if src == nil {
		return FIDInf{}, fmt.Errorf("metrics: FID at infinity: %w", errNoSource)
	}
	if err := checkStats("reference statistics", reference); err != nil {
		return FIDInf{}, err
	}
	if _, d := generated.Dims(); d != len(reference.Mean) {
		return FIDInf{}, fmt.Errorf("metrics: FID at infinity: %w: %d and %d", ErrDims, len(reference.Mean), d)
	}
	root, err := factor(reference.Cov)
	if err != nil {
		return FIDInf{}, fmt.Errorf("metrics: FID at infinity: %w", err)
	}
	var f FIDInf
	if d := len(reference.Mean); least <= d {
		f.Warnings = append(f.Warnings, Warning{WarnFewSamples, fmt.Sprintf("subsets from %d rows for %d features: FID does not follow a + b/n there, more than %d rows are needed", least, d, 10*d)})
	}
	inv := make([]float64, points)
	for k := range points {
		if err := ctx.Err(); err != nil {
			return FIDInf{}, fmt.Errorf("metrics: FID at infinity: %w", err)
		}
		size := least + k*(n-least)/(points-1)
		s, err := StatsOf(Pick(generated, src.Choice(n, size)), Identity{})
		if err != nil {
			return FIDInf{}, fmt.Errorf("metrics: FID at infinity, %d samples: %w", size, err)
		}
		d, err := frechet(reference, root, s)
		if err != nil {
			return FIDInf{}, fmt.Errorf("metrics: FID at infinity, %d samples: %w", size, err)
		}
		f.N, f.FID = append(f.N, size), append(f.FID, d.Distance)
		inv[k] = 1 / float64(size)
	}
	mx, my := meanOf(inv), meanOf(f.FID)
	sxx, sxy := 0.0, 0.0
	for k, x := range inv {
		sxx += (x - mx) * (x - mx)
		sxy += (x - mx) * (f.FID[k] - my)
	}
	f.Slope = sxy / sxx
	f.Value = my - f.Slope*mx
	rss := 0.0
	for k, x := range inv {
		r := f.FID[k] - f.Value - f.Slope*x
		rss += r * r
	}
	f.StdErr = math.Sqrt(rss / float64(points-2) * (1/float64(points) + mx*mx/sxx))
	const z = 1.959963984540054
	f.CI = Interval{f.Value - z*f.StdErr, f.Value + z*f.StdErr}
	return f, nil
}

func count(n int) []int {
	idx := make([]int, n)
	for i := range idx {
		idx[i] = i
	}
	return idx
}

// resample draws n of 0..n-1 with replacement.
func resample(src Source, n int) []int {
	draw := make([]int64, n)
	src.RandInt(draw, 0, int64(n))
	idx := make([]int, n)
	for i, v := range draw {
		idx[i] = int(v)
	}
	return idx
}

// percentiles is the interval that holds the level's share of the values,
// interpolated between order statistics and moved by what their mean lacks to
// the centre. It sorts them.
func percentiles(vals []float64, level, centre float64) Interval {
	move := centre - meanOf(vals)
	slices.Sort(vals)
	at := func(q float64) float64 {
		p := q * float64(len(vals)-1)
		k := min(int(p), len(vals)-2)
		if k < 0 {
			return vals[0] + move
		}
		return vals[k] + (p-float64(k))*(vals[k+1]-vals[k]) + move
	}
	return Interval{at((1 - level) / 2), at((1 + level) / 2)}
}
