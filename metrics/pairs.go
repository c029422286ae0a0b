package metrics

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
)

// Blocks of the pairwise products. A value is a sum over the features in
// chunks of chunkDims, whatever the block it falls in: thread count and set
// sizes do not change its bits.
const (
	pairRows  = 64
	pairCols  = 64
	chunkDims = 512
	directMax = 16   // up to this dimension distances are sums of squared differences
	cancelled = 1e-4 // |x-y|² below this share of |x|²+|y|² is recomputed directly
)

// visitor gets v[c], the value of the pair (i, j+c), for consecutive blocks of
// columns, j ascending for every i. Calls for one i come from one goroutine;
// different i may run at once. v may be overwritten.
type visitor func(i, j int, v []float64)

// dots visits v[c] = x_i · y_{j+c}. With upper, blocks of columns that lie
// wholly before row i are left out. Memory is a few blocks, not n·m.
func dots(ctx context.Context, x, y Samples, upper bool, visit visitor) error {
	return eachBlock(ctx, x, y, upper, nil, func(out []float64, a, b Matrix, _, _ int) { gram(out, a, b) }, visit)
}

// sqDists is dots with v[c] = |x_i - y_{j+c}|². Equal rows give exact zeros,
// and small distances between far rows keep their digits.
func sqDists(ctx context.Context, x, y Samples, upper bool, visit visitor) error {
	n, d := x.Dims()
	if d <= directMax {
		return eachBlock(ctx, x, y, upper, nil, func(out []float64, a, b Matrix, _, _ int) {
			for p := range a.N {
				for q := range b.N {
					out[p*pairCols+q] = sqDist(a.row(p), b.row(q))
				}
			}
		}, visit)
	}
	centre, row := make([]float64, d), make([]float64, d)
	for i := range n {
		x.Row(row, i)
		for k, v := range row {
			centre[k] += v / float64(n)
		}
	}
	nx, ny := sqNorms(x, centre), sqNorms(y, centre)
	return eachBlock(ctx, x, y, upper, centre, func(out []float64, a, b Matrix, i, j int) {
		gram(out, a, b)
		for p := range a.N {
			row := out[p*pairCols:]
			for q := range b.N {
				scale := nx[i+p] + ny[j+q]
				if row[q] = scale - 2*row[q]; row[q] < cancelled*scale {
					row[q] = sqDist(a.row(p), b.row(q))
				}
			}
		}
	}, visit)
}

// eachBlock fills blocks of out (stride pairCols) from blocks of rows of x and
// y, minus the centre if there is one, starting at i and j, and visits them.
func eachBlock(ctx context.Context, x, y Samples, upper bool, centre []float64, fill func(out []float64, a, b Matrix, i, j int), visit visitor) error {
	n, _ := x.Dims()
	m, _ := y.Dims()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), (n+pairRows-1)/pairRows) {
		wg.Go(func() {
			out := make([]float64, pairRows*pairCols)
			var buf []float64
			for ctx.Err() == nil {
				lo := int(next.Add(1)-1) * pairRows
				if lo >= n {
					return
				}
				a := moved(x, lo, min(lo+pairRows, n), centre, nil)
				first := 0
				if upper {
					first = lo / pairCols * pairCols
				}
				for j := first; j < m && ctx.Err() == nil; j += pairCols {
					b := moved(y, j, min(j+pairCols, m), centre, buf)
					if centre != nil {
						buf = b.X
					}
					fill(out, a, b, lo, j)
					for p := range a.N {
						visit(lo+p, j, out[p*pairCols:p*pairCols+b.N])
					}
				}
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// moved is dense minus the centre.
func moved(s Samples, lo, hi int, centre, buf []float64) Matrix {
	if centre == nil {
		return dense(s, lo, hi)
	}
	d := len(centre)
	if cap(buf) < (hi-lo)*d {
		buf = make([]float64, (hi-lo)*d)
	}
	m := Matrix{hi - lo, d, buf[:(hi-lo)*d]}
	for i := range m.N {
		r := m.row(i)
		s.Row(r, lo+i)
		for k := range r {
			r[k] -= centre[k]
		}
	}
	return m
}

// gram writes a·bᵀ into out (stride pairCols).
func gram(out []float64, a, b Matrix) {
	c := blas64.General{Rows: a.N, Cols: b.N, Stride: pairCols, Data: out}
	beta := 0.0
	for k := 0; k < a.D; k += chunkDims {
		w := min(chunkDims, a.D-k)
		blas64.Gemm(blas.NoTrans, blas.Trans, 1,
			blas64.General{Rows: a.N, Cols: w, Stride: a.D, Data: a.X[k:]},
			blas64.General{Rows: b.N, Cols: w, Stride: b.D, Data: b.X[k:]}, beta, c)
		beta = 1
	}
}

// sqNorms are |x_i - centre|²; a nil centre is zero.
func sqNorms(x Samples, centre []float64) []float64 {
	n, d := x.Dims()
	out, row := make([]float64, n), make([]float64, d)
	if centre == nil {
		centre = make([]float64, d)
	}
	for i := range out {
		x.Row(row, i)
		out[i] = sqDist(row, centre)
	}
	return out
}

func sqDist(a, b []float64) float64 {
	s := 0.0
	for k, v := range a {
		s += (v - b[k]) * (v - b[k])
	}
	return s
}
