package metrics

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/lapack"
	"gonum.org/v1/gonum/lapack/lapack64"
	"gonum.org/v1/gonum/mat"
)

// Vendi is the Vendi score of a set (Friedman and Dieng 2023; orders: Pasarkar
// and Dieng 2024): the effective number of different samples, between 1 and n.
// With w the eigenvalues of K/n for a kernel matrix K with unit diagonal,
//
//	q = 1: exp(-Σ w log w)    q = ∞: 1/max w    else: (Σ w^q)^{1/(1-q)}
//
// Compare uses the cosine kernel of the generated rows (scaled to unit
// length); it works on whichever of the n x n and d x d matrices is smaller.
// It says nothing about being on the data: read it next to precision.
type Vendi struct {
	Q float64 // order, 1 if zero; math.Inf(1) for the largest eigenvalue
}

// Compare implements Score; the reference is not used and may be nil.
func (s Vendi) Compare(ctx context.Context, _, generated Samples) (Result, error) {
	if err := check("generated set", generated, 1); err != nil {
		return Result{}, err
	}
	n, d := generated.Dims()
	row := make([]float64, d)
	for i := range n {
		generated.Row(row, i)
		if dot(row, row) == 0 {
			return Result{}, fmt.Errorf("metrics: vendi: row %d is zero and has no direction", i)
		}
	}
	var k *mat.SymDense
	if n <= d {
		k = mat.NewSymDense(n, nil)
		err := dots(ctx, unit{generated}, unit{generated}, true, func(i, j int, v []float64) {
			for c, dot := range v {
				if j+c >= i {
					k.SetSym(i, j+c, dot)
				}
			}
		})
		if err != nil {
			return Result{}, fmt.Errorf("metrics: vendi: %w", err)
		}
	} else {
		k = mat.NewSymDense(d, nil)
		for lo := 0; lo < n; lo += blockRows {
			if err := ctx.Err(); err != nil {
				return Result{}, err
			}
			b := dense(unit{generated}, lo, min(lo+blockRows, n))
			k.SymRankK(k, 1, mat.NewDense(b.N, b.D, b.X).T())
		}
	}
	k.ScaleSym(1/float64(n), k)
	v, err := s.Kernel(k, 1)
	if err != nil {
		return Result{}, err
	}
	return Result{Metric: "vendi", Value: v, N: n, D: d, Settings: fmt.Sprintf("kernel=cosine q=%g", s.order())}, nil
}

func (s Vendi) order() float64 {
	if s.Q == 0 {
		return 1
	}
	return s.Q
}

// Kernel is the score of a kernel matrix K of n samples, K/n having trace one.
// It overwrites k.
func (s Vendi) Kernel(k *mat.SymDense, n int) (float64, error) {
	q := s.order()
	if q < 0 || math.IsNaN(q) || n < 1 {
		return 0, fmt.Errorf("metrics: vendi of order %v over %d samples", q, n)
	}
	raw := k.RawSymmetric()
	for i := range raw.N {
		if badEntry(raw.Data[i*raw.Stride+i:i*raw.Stride+raw.N]) >= 0 {
			return 0, fmt.Errorf("metrics: vendi: kernel row %d: %w", i, ErrNaN)
		}
	}
	w, err := eigenvalues(k)
	if err != nil {
		return 0, fmt.Errorf("metrics: vendi: %w", err)
	}
	// Below this an eigenvalue is rounding: small orders would count it.
	floor := 0x1p-52 * float64(raw.N) * w[raw.N-1]
	top, sum := 0.0, 0.0
	for _, v := range w {
		if v > floor {
			v /= float64(n)
			top = max(top, v)
			if q == 1 {
				sum -= v * math.Log(v)
			} else {
				sum += math.Pow(v, q)
			}
		}
	}
	switch {
	case math.IsInf(q, 1):
		return 1 / top, nil
	case q == 1:
		return math.Exp(sum), nil
	}
	return math.Pow(sum, 1/(1-q)), nil
}

// eigenvalues returns the eigenvalues of s, ascending, and overwrites s.
func eigenvalues(s *mat.SymDense) ([]float64, error) {
	raw := s.RawSymmetric()
	w, work := make([]float64, raw.N), make([]float64, 1)
	lapack64.Syev(lapack.EVNone, raw, w, work, -1)
	work = make([]float64, int(work[0]))
	if !lapack64.Syev(lapack.EVNone, raw, w, work, len(work)) {
		return nil, fmt.Errorf("eigenvalues of a %d x %d matrix did not converge", raw.N, raw.N)
	}
	return w, nil
}
