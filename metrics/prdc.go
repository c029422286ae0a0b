package metrics

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
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
	v, err := s.score(ctx, reference, generated, 0)
	if err != nil {
		return Neighbours{}, err
	}
	return v[0], nil
}

// score is Score without each of b blocks of generated rows, and last with all of them.
func (s PRDC) score(ctx context.Context, reference, generated Samples, b int) ([]Neighbours, error) {
	if s.K == 0 {
		s.K = 3
	}
	if s.K < 1 {
		return nil, fmt.Errorf("metrics: precision and recall with k = %d", s.K)
	}
	if err := checkPair(reference, generated, s.K+1); err != nil {
		return nil, err
	}
	n, d := reference.Dims()
	m, _ := generated.Dims()
	if b > 0 && m-(m+b-1)/b < s.K+1 {
		return nil, fmt.Errorf("metrics: precision and recall: jackknife: %w: %d blocks of %d rows, %d neighbours", ErrTooFew, b, m, s.K)
	}
	near, err := radii(ctx, reference, s.K, 0)
	if err != nil {
		return nil, err
	}
	rr := near[0]
	rg, err := radii(ctx, generated, s.K, b)
	if err != nil {
		return nil, err
	}
	at, most := make([]int, m), make([]float64, m) // block of a row, and the largest of its balls
	for i := range at {
		at[i] = i * b / m
		for _, r := range rg {
			most[i] = max(most[i], r[i])
		}
	}
	hits := make([]atomic.Int32, m)                           // reference balls around a generated point
	covered, recalled := make([]uint64, n), make([]uint64, n) // bit q: without block q; bit b: with all
	all := uint64(1)<<(b+1) - 1
	err = sqDists(ctx, reference, generated, false, func(i, j int, v []float64) {
		var x, y []float64
		inside := func(d2, r2 float64, p int) bool {
			if math.Abs(d2-r2) <= 1e-9*r2 { // too close for products of sums
				if x == nil {
					x, y = make([]float64, d), make([]float64, d)
					reference.Row(x, i)
				}
				generated.Row(y, p)
				d2 = sqDist(x, y)
			}
			return d2 < r2 || s.Inclusive && d2 == r2
		}
		for c, d2 := range v {
			p := j + c
			stays := all // where the generated point is in the set
			if b > 0 {
				stays &^= 1 << at[p]
			}
			if inside(d2, rr[i], p) {
				hits[p].Add(1)
				covered[i] |= stays
			}
			if d2 > most[p]*(1+1e-9) {
				continue
			}
			for q := b; q >= 0 && recalled[i]&stays != stays; q-- { // balls without a block are never smaller
				if recalled[i]&stays&(1<<q) == 0 && stays&(1<<q) != 0 && inside(d2, rg[q][p], p) {
					if q == b {
						recalled[i] |= stays
						break
					}
					recalled[i] |= 1 << q
				}
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("metrics: precision and recall: %w", err)
	}
	out := make([]Neighbours, b+1)
	for q := range out {
		in, sum, size := 0, 0, 0
		for p := range hits {
			if q < b && at[p] == q {
				continue
			}
			size++
			h := int(hits[p].Load())
			sum += h
			if h > 0 {
				in++
			}
		}
		share := func(bits []uint64) float64 {
			k := 0
			for _, v := range bits {
				k += int(v >> q & 1)
			}
			return float64(k) / float64(len(bits))
		}
		r := Neighbours{Precision: float64(in) / float64(size), Recall: share(recalled), Density: float64(sum) / float64(s.K*size), Coverage: share(covered)}
		r.F = 2 * r.Precision * r.Recall / max(1e-5, r.Precision+r.Recall)
		out[q] = r
	}
	return out, nil
}

// Compare implements Score; Value is the F score, the others are parts.
func (s PRDC) Compare(ctx context.Context, reference, generated Samples) (Result, error) {
	r, _, err := s.without(ctx, reference, generated, 0)
	return r, err
}

func (s PRDC) without(ctx context.Context, reference, generated Samples, b int) (Result, []Result, error) {
	v, err := s.score(ctx, reference, generated, b)
	if err != nil {
		return Result{}, nil, err
	}
	if s.K == 0 {
		s.K = 3
	}
	out := make([]Result, b+1)
	for q, v := range v {
		out[q] = Result{Value: v.F, Parts: map[string]float64{"precision": v.Precision, "recall": v.Recall, "density": v.Density, "coverage": v.Coverage}}
	}
	r := out[b]
	r.Metric, r.Settings = "prdc", fmt.Sprintf("k=%d inclusive=%t", s.K, s.Inclusive)
	r.N, r.D = generated.Dims()
	r.NRef, _ = reference.Dims()
	if r.N != r.NRef {
		r.warn(WarnSizes, "%d generated and %d reference samples: the values depend on both sizes", r.N, r.NRef)
	}
	return r, out[:b], nil
}

// radii returns the squared distance of every row to its k-th nearest other
// row: without each of b blocks of rows, and last among all.
func radii(ctx context.Context, x Samples, k, b int) ([][]float64, error) {
	n, d := x.Dims()
	type near struct {
		d2 float64
		j  int
	}
	blocks := max(b, 1)
	best := make([][]near, n*blocks) // of the rows of one block, nearest first
	for i := range best {
		best[i] = make([]near, 0, k+1)
	}
	err := sqDists(ctx, x, x, false, func(i, j int, v []float64) {
		for c, d2 := range v {
			at := &best[i*blocks+(j+c)*blocks/n]
			l := *at
			if j+c == i || len(l) == k && d2 >= l[k-1].d2 {
				continue
			}
			l = append(l, near{d2, j + c})
			for p := len(l) - 1; p > 0 && l[p].d2 < l[p-1].d2; p-- {
				l[p], l[p-1] = l[p-1], l[p]
			}
			*at = l[:min(len(l), k)]
		}
	})
	if err != nil {
		return nil, fmt.Errorf("metrics: neighbours: %w", err)
	}
	out := make([][]float64, b+1)
	u, v := make([]float64, d), make([]float64, d)
	var pool []near
	for q := range out {
		out[q] = make([]float64, n)
		for i := range n {
			pool = pool[:0]
			for p, l := range best[i*blocks : (i+1)*blocks] {
				if q == b || p != q {
					pool = append(pool, l...)
				}
			}
			slices.SortStableFunc(pool, func(a, b near) int { return cmp.Compare(a.d2, b.d2) })
			x.Row(u, i)
			x.Row(v, pool[k-1].j)
			out[q][i] = sqDist(u, v)
		}
	}
	return out, nil
}
