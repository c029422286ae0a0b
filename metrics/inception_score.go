package metrics

import (
	"context"
	"fmt"
	"math"
)

// InceptionScore is exp(mean_x KL(p(y|x) ‖ mean_x p(y|x))) (Salimans et al.,
// "Improved Techniques for Training GANs", 2016), averaged over splits. It
// takes logits, one row per image; the field uses pool3·Wᵀ without the bias
// over all 1008 outputs. Value lies between 1 and the number of classes.
//
// Split k holds the rows from k·n/Splits to (k+1)·n/Splits, rounded down, as in
// torch-fidelity; with Splits = n/5000 and no Source, to the ADM evaluator's
// consecutive blocks. It ignores the reference data: never use it alone.
type InceptionScore struct {
	Splits int    // 10 if zero
	Source Source // shuffles the rows first; torch-fidelity's is NewSource(2020), nil keeps their order
}

// Compare implements Score; the reference is not used and may be nil.
func (s InceptionScore) Compare(ctx context.Context, _, generated Samples) (Result, error) {
	if s.Splits == 0 {
		s.Splits = 10
	}
	if err := check("logits", generated, max(1, s.Splits)); err != nil {
		return Result{}, err
	}
	if s.Splits < 0 {
		return Result{}, fmt.Errorf("metrics: inception score over %d splits", s.Splits)
	}
	n, d := generated.Dims()
	var logits Samples = generated
	if s.Source != nil {
		logits = Pick(generated, fresh(s.Source).Choice(n, n))
	}
	scores := make([]float64, s.Splits)
	row, mean := make([]float64, d), make([]float64, d)
	for k := range scores {
		if err := ctx.Err(); err != nil {
			return Result{}, err
		}
		clear(mean)
		lo, hi := k*n/s.Splits, (k+1)*n/s.Splits
		negEntropy := 0.0 // mean over rows of Σ p log p
		for i := lo; i < hi; i++ {
			logits.Row(row, i)
			z := logSumExp(row)
			for j, l := range row {
				p := math.Exp(l - z)
				mean[j] += p
				negEntropy += p * (l - z)
			}
		}
		kl := negEntropy / float64(hi-lo)
		for _, m := range mean {
			if m > 0 {
				m /= float64(hi - lo)
				kl -= m * math.Log(m)
			}
		}
		scores[k] = math.Exp(kl)
	}
	return Result{Metric: "is", Value: meanOf(scores), Std: math.Sqrt(variance(scores, 0)), N: n, D: d,
		Settings: fmt.Sprintf("splits=%d shuffle=%t", s.Splits, s.Source != nil)}, nil
}

// logSumExp is log Σ exp(x), safe for large entries.
func logSumExp(x []float64) float64 {
	top := math.Inf(-1)
	for _, v := range x {
		top = max(top, v)
	}
	if math.IsInf(top, -1) {
		return top
	}
	s := 0.0
	for _, v := range x {
		s += math.Exp(v - top)
	}
	return top + math.Log(s)
}
