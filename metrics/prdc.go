package metrics

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
)

// Neighbours holds the nearest-neighbour scores of a generated set against a
// reference set. With B(z) the ball around z that reaches its k-th nearest
// neighbour within z's own set:
//
//	precision  share of generated points inside any reference ball
//	recall     share of reference points inside any generated ball
//	density    (1/(k m)) Σ over generated points of the reference balls around it; may exceed 1
//	coverage   share of reference balls that hold a generated point
//
// Precision and recall: Kynkäänniemi et al., "Improved Precision and Recall
// Metric", 2019. Density and coverage: Naeem et al., "Reliable Fidelity and
// Diversity Metrics", 2020. Equal distributions give E density = 1 and, for
// continuous ones, E coverage = 1 - Π_{i=1..k} (N-i)/(M+N-i) with N reference
// and M generated points.
type Neighbours struct {
	Precision, Recall, Density, Coverage float64
	F                                    float64 // 2PR/max(1e-5, P+R)
}

// PRDC computes Neighbours.
type PRDC struct {
	K         int  // neighbours, 3 if zero
	Inclusive bool // count points on the surface of a ball: torch-fidelity and the ADM evaluator do, prdc does not
}

// Score returns all scores at once. Distances are float64; decisions closer
// than rounding are settled by summing the squared differences directly. Time
// (n+m)² d, memory n + m.
func (s PRDC) Score(ctx context.Context, reference, generated Samples) (Neighbours, error) {
	if s.K == 0 {
		s.K = 3
	}
	if s.K < 1 {
		return Neighbours{}, fmt.Errorf("metrics: precision and recall with k = %d", s.K)
	}
	if err := checkPair(reference, generated, s.K+1); err != nil {
		return Neighbours{}, err
	}
	rr, err := radii(ctx, reference, s.K)
	if err != nil {
		return Neighbours{}, err
	}
	rg, err := radii(ctx, generated, s.K)
	if err != nil {
		return Neighbours{}, err
	}
	n, d := reference.Dims()
	m, _ := generated.Dims()
	hits := make([]atomic.Int32, m) // reference balls around a generated point
	covered, recalled := make([]bool, n), make([]bool, n)
	err = sqDists(ctx, reference, generated, false, func(i, j int, v []float64) {
		var a, b []float64
		inside := func(d2, r2 float64, p int) bool {
			if math.Abs(d2-r2) <= 1e-9*r2 { // too close for products of sums
				if a == nil {
					a, b = make([]float64, d), make([]float64, d)
					reference.Row(a, i)
				}
				generated.Row(b, p)
				d2 = sqDist(a, b)
			}
			return d2 < r2 || s.Inclusive && d2 == r2
		}
		for c, d2 := range v {
			if inside(d2, rr[i], j+c) {
				hits[j+c].Add(1)
				covered[i] = true
			}
			if !recalled[i] && inside(d2, rg[j+c], j+c) {
				recalled[i] = true
			}
		}
	})
	if err != nil {
		return Neighbours{}, fmt.Errorf("metrics: precision and recall: %w", err)
	}
	in, sum := 0, 0
	for j := range hits {
		h := int(hits[j].Load())
		sum += h
		if h > 0 {
			in++
		}
	}
	count := func(b []bool) float64 {
		k := 0
		for _, v := range b {
			if v {
				k++
			}
		}
		return float64(k) / float64(len(b))
	}
	r := Neighbours{Precision: float64(in) / float64(m), Recall: count(recalled), Density: float64(sum) / float64(s.K*m), Coverage: count(covered)}
	r.F = 2 * r.Precision * r.Recall / max(1e-5, r.Precision+r.Recall)
	return r, nil
}

// Compare implements Score; Value is the F score, the others are parts.
func (s PRDC) Compare(ctx context.Context, reference, generated Samples) (Result, error) {
	v, err := s.Score(ctx, reference, generated)
	if err != nil {
		return Result{}, err
	}
	if s.K == 0 {
		s.K = 3
	}
	n, d := generated.Dims()
	r := Result{Metric: "prdc", Value: v.F, N: n, D: d, Settings: fmt.Sprintf("k=%d inclusive=%t", s.K, s.Inclusive),
		Parts: map[string]float64{"precision": v.Precision, "recall": v.Recall, "density": v.Density, "coverage": v.Coverage}}
	r.NRef, _ = reference.Dims()
	if r.N != r.NRef {
		r.warn(WarnSizes, "%d generated and %d reference samples: the values depend on both sizes", r.N, r.NRef)
	}
	return r, nil
}

// radii returns the squared distance of every row to its k-th nearest other
// row.
func radii(ctx context.Context, x Samples, k int) ([]float64, error) {
	n, d := x.Dims()
	type near struct {
		d2 float64
		j  int
	}
	best := make([][]near, n)
	for i := range best {
		best[i] = make([]near, 0, k+1)
	}
	err := sqDists(ctx, x, x, false, func(i, j int, v []float64) {
		b := best[i]
		for c, d2 := range v {
			if j+c == i || len(b) == k && d2 >= b[k-1].d2 {
				continue
			}
			b = append(b, near{d2, j + c})
			for p := len(b) - 1; p > 0 && b[p].d2 < b[p-1].d2; p-- {
				b[p], b[p-1] = b[p-1], b[p]
			}
			b = b[:min(len(b), k)]
		}
		best[i] = b
	})
	if err != nil {
		return nil, fmt.Errorf("metrics: neighbours: %w", err)
	}
	out := make([]float64, n)
	a, b := make([]float64, d), make([]float64, d)
	for i := range out {
		x.Row(a, i)
		x.Row(b, best[i][k-1].j)
		out[i] = sqDist(a, b)
	}
	return out, nil
}
