package metrics

import (
	"fmt"
	"math"
)

// Magnitude is the score of divergence artifacts of Wizadwongsa et al. (2024, arXiv 2307.11118): how far the largest
// values of a latent lie beyond what data have. A sample (C, H, W) is standardised by channel, z = (x - Mean)/Std; then
//
//	u = max over channels |z|,  p = maximum of u over windows of Pool x Pool,  score = mean of p [p >= Threshold]
//
// so that it is 0 for a sample without any value beyond the threshold. Windows do not overlap; rows and columns that
// fill no window are left out, as in the field's pooling. Mean and Std have one number per channel, or one for all.
type Magnitude struct {
	Mean, Std []float64
	Pool      int     // 0 = 4
	Threshold float64 // 0 = 3
}

// LatentMagnitude has the moments of Stable Diffusion's latents that the paper uses.
func LatentMagnitude() Magnitude {
	return Magnitude{
		Mean: []float64{.1455953, -.10772908, .023680864, .045954444},
		Std:  []float64{.9220753, 1.0913924, .73026365, .72270846},
	}
}

// Score is the score of one sample of shape (C, H, W). A value that is not finite is an error.
func (m Magnitude) Score(x []float64, shape []int) (float64, error) {
	pool, limit := m.Pool, m.Threshold
	if pool == 0 {
		pool = 4
	}
	if limit == 0 {
		limit = 3
	}
	if len(shape) != 3 || shape[0] < 1 || shape[0]*shape[1]*shape[2] != len(x) || len(x) == 0 {
		return 0, fmt.Errorf("metrics: magnitude: %w: %d values for shape %v", ErrDims, len(x), shape)
	}
	c, h, w := shape[0], shape[1], shape[2]
	if pool < 1 || pool > h || pool > w {
		return 0, fmt.Errorf("metrics: magnitude: %w: windows of %d in %d x %d", ErrDims, pool, h, w)
	}
	of := func(v []float64, k int, def float64) float64 {
		switch {
		case len(v) == 0:
			return def
		case len(v) == 1:
			return v[0]
		}
		return v[k]
	}
	for _, v := range [][]float64{m.Mean, m.Std} {
		if len(v) > 1 && len(v) != c {
			return 0, fmt.Errorf("metrics: magnitude: %w: moments of %d channels for %d", ErrDims, len(v), c)
		}
	}
	rows, cols := h/pool, w/pool
	peak := make([]float64, rows*cols)
	for k := range c {
		mean, std := of(m.Mean, k, 0), of(m.Std, k, 1)
		if !(std > 0) {
			return 0, fmt.Errorf("metrics: magnitude: standard deviation %g of channel %d", std, k)
		}
		for i := range rows * pool {
			for j := range cols * pool {
				v := x[(k*h+i)*w+j]
				if v-v != 0 {
					return 0, fmt.Errorf("metrics: magnitude: channel %d, row %d, column %d: %w", k, i, j, ErrNaN)
				}
				at := i/pool*cols + j/pool
				peak[at] = max(peak[at], math.Abs(v-mean)/std)
			}
		}
	}
	sum := 0.0
	for _, p := range peak {
		if p >= limit {
			sum += p
		}
	}
	return sum / float64(len(peak)), nil
}

// Wilson is the 95 % interval of a share of k in n (Wilson 1927), which is honest at 0 and 1 too.
func Wilson(k, n int) (lo, hi float64) {
	if n == 0 {
		return 0, 1
	}
	const z = 1.959963984540054
	p, m := float64(k)/float64(n), float64(n)
	mid := (p + z*z/(2*m)) / (1 + z*z/m)
	half := z / (1 + z*z/m) * math.Sqrt(p*(1-p)/m+z*z/(4*m*m))
	lo, hi = max(0, mid-half), min(1, mid+half)
	if k == 0 {
		lo = 0
	}
	if k == n {
		hi = 1
	}
	return lo, hi
}
