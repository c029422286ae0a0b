package metrics

import (
	"context"
	"fmt"
	"math"
)

// A blockwise Score knows what it would be without blocks of generated rows for less than comparing again.
type blockwise interface {
	// without is Compare, and the same result without each of b blocks. Only Value and Parts are read of the latter.
	without(ctx context.Context, reference, generated Samples, b int) (Result, []Result, error)
}

// Jackknifed compares two sets, and returns the score without each of b blocks of consecutive generated rows as well (row
// i of n lies in block i·b/n, rounded down). StdErr of the result, and PartErr of its parts, are the jackknife over the
// blocks (Tukey 1958),
//
//	((b-1)/b Σ_k (θ_(k) - mean θ)²)^{1/2},
//
// the error that comes of the generated samples; the reference is taken as it is. What the score says of its own
// randomness (part "monte_carlo") is added to it in squares. Differences of the values without block k serve for scores
// of two sets that share their random numbers row by row.
func Jackknifed(ctx context.Context, s Score, reference, generated Samples, b int) (Result, []float64, error) {
	if n, _ := generated.Dims(); b < 2 || b > min(n, maxBlocks) {
		return Result{}, nil, fmt.Errorf("metrics: jackknife: %w: %d blocks of %d rows, want 2 to %d", ErrTooFew, b, n, maxBlocks)
	}
	var r Result
	var left []Result
	var err error
	if w, ok := s.(blockwise); ok {
		r, left, err = w.without(ctx, reference, generated, b)
	} else {
		r, left, err = again(ctx, s, reference, generated, b)
	}
	if err != nil {
		return Result{}, nil, err
	}
	vals := make([]float64, b)
	for k := range vals {
		vals[k] = left[k].Value
	}
	r.StdErr = math.Hypot(JackknifeError(vals), r.Parts[monteCarlo])
	for name := range left[0].Parts {
		part := make([]float64, b)
		for k := range part {
			part[k] = left[k].Parts[name]
		}
		if r.PartErr == nil {
			r.PartErr = map[string]float64{}
		}
		r.PartErr[name] = JackknifeError(part)
	}
	return r, vals, nil
}

const (
	maxBlocks  = 63            // of a jackknife
	monteCarlo = "monte_carlo" // the part that is the error of a score's own random choices
)

// JackknifeError is the standard error of a number from its values without one block each, 0 where they differ by rounding
// only.
func JackknifeError(without []float64) float64 {
	b, mean, sum := float64(len(without)), meanOf(without), 0.0
	for _, v := range without {
		sum += (v - mean) * (v - mean)
	}
	if sum <= 1e-24*mean*mean {
		return 0
	}
	return math.Sqrt((b - 1) / b * sum)
}

// again compares once for every block, leaving it out.
func again(ctx context.Context, s Score, reference, generated Samples, b int) (Result, []Result, error) {
	r, err := s.Compare(ctx, reference, generated)
	if err != nil {
		return r, nil, err
	}
	n, _ := generated.Dims()
	left := make([]Result, b)
	for k := range left {
		lo, hi := block(k, n, b)
		rest := append(count(lo), make([]int, n-hi)...)
		for i := hi; i < n; i++ {
			rest[lo+i-hi] = i
		}
		if left[k], err = s.Compare(ctx, reference, Pick(generated, rest)); err != nil {
			return r, nil, fmt.Errorf("metrics: jackknife without block %d: %w", k, err)
		}
	}
	return r, left, nil
}

// block k of b holds rows lo to hi-1 of n: those with i·b/n = k.
func block(k, n, b int) (lo, hi int) { return (k*n + b - 1) / b, ((k+1)*n + b - 1) / b }

// linear is the result of a score that is, to first order, a mean of influences over the generated rows, without each
// block: value changes with the mean of the influences of the rows that stay.
func linear(influence []float64, b int, value func(change float64) Result) []Result {
	n, sum := len(influence), total(influence)
	out := make([]Result, b)
	for k := range out {
		lo, hi := block(k, n, b)
		out[k] = value((sum-total(influence[lo:hi]))/float64(n-hi+lo) - sum/float64(n))
	}
	return out
}
