package kernels

import "fmt"

const (
	syrkTile = 96  // a multiple of dgemmMR and dgemmNR
	syrkK    = 128 // rows of x per pass
)

// SyrkScratch gives the float64 that Syrk needs.
func SyrkScratch(p *Pool) int { return p.workers * (2*syrkTile*syrkK + syrkTile*syrkTile) }

// Syrk adds X^T X to the upper triangle of the n-by-n matrix c, X being m rows
// of n values: the sums of a covariance.
func Syrk(p *Pool, c, x []float64, m, n int, scratch []float64) {
	if len(c) < n*n || len(x) < m*n || len(scratch) < SyrkScratch(p) {
		panic(fmt.Sprintf("kernels: syrk of %d rows of %d: slices of %d, %d and %d values", m, n, len(c), len(x), len(scratch)))
	}
	if m < 1 || n < 1 {
		return
	}
	tiles := ceilDiv(n, syrkTile)
	p.Do(tiles*(tiles+1)/2, func(worker, item int) {
		i := 0
		for item >= tiles-i {
			item -= tiles - i
			i++
		}
		size := SyrkScratch(p) / p.workers
		syrkBlock(p.ops, c, x, m, n, i*syrkTile, (i+item)*syrkTile, scratch[worker*size:(worker+1)*size])
	})
}

func syrkBlock(o *ops, c, x []float64, m, n, i0, j0 int, work []float64) {
	a, b, s := work[:syrkTile*syrkK], work[syrkTile*syrkK:2*syrkTile*syrkK], work[2*syrkTile*syrkK:]
	clear(s)
	in, jn := min(syrkTile, n-i0), min(syrkTile, n-j0)
	for k0 := 0; k0 < m; k0 += syrkK {
		k := min(syrkK, m-k0)
		packColumns(a, x[k0*n:], k, n, i0, in, dgemmMR)
		packColumns(b, x[k0*n:], k, n, j0, jn, dgemmNR)
		for j := 0; j < jn; j += dgemmNR {
			for i := 0; i < in; i += dgemmMR {
				o.dgemm(&s[i*syrkTile+j], syrkTile, &a[i*k], dgemmMR, &b[j*k], k)
			}
		}
	}
	for i := range in {
		r := i0 + i
		lo := max(j0, r) // of the upper triangle
		if lo >= j0+jn {
			continue
		}
		row := c[r*n+lo : r*n+j0+jn]
		for j, v := range s[i*syrkTile+lo-j0 : i*syrkTile+jn] {
			row[j] += v
		}
	}
}

// packColumns packs cols columns of k rows in strips of width w.
func packColumns(dst, x []float64, k, n, first, cols, w int) {
	for s := 0; s < cols; s += w {
		have := min(w, cols-s)
		for p := range k {
			d := dst[s*k+p*w : s*k+(p+1)*w]
			clear(d[copy(d[:have], x[p*n+first+s:]):])
		}
	}
}
