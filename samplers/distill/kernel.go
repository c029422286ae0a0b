package distill

import (
	"math"
	"slices"
)

// Kernel is the Gaussian kernel of the repulsion, k_ij = exp(-d_ij^2/h_i) with d_ij the distance of the features of two
// particles and the bandwidth
//
//	h_i = (median_{j != i} d_ij)^2 / log(max(n-1, 2))
//
// (an even count takes the lower of the two middle values), at least 1e-12, so that particles at one place do not divide
// by zero.
//
// The published code divides by log(n-1), which is 0 for two particles: their bandwidth is infinite and their repulsion
// vanishes. Parity reproduces that; it refuses n = 1, where the published code fails.
type Kernel struct {
	Global    bool    // all h_i become their (lower) median: a symmetric kernel
	Bandwidth float64 // h itself, in place of the median's; 0 = the median's
	Parity    bool
}

// Repel writes the repulsion of n particles with features of length len(f)/n into R (of f's size),
//
//	R_i = sum_{j != i} 2 k_ij (f_i - f_j)/h_i / sum_{j != i} k_ij = -grad_{f_i} log sum_{j != i} k_ij at fixed h_i
//
// and returns the bandwidths. One particle is left alone: R = 0.
func (k Kernel) Repel(R, f []float64, n int) (h []float64) {
	clear(R)
	h = make([]float64, n)
	if n < 2 {
		return h
	}
	d := len(f) / n
	sq := make([]float64, n*n)
	for i := range n {
		for j := range i {
			sum := 0.0
			for c, v := range f[i*d : (i+1)*d] {
				e := v - f[j*d+c]
				sum += e * e
			}
			sq[i*n+j], sq[j*n+i] = sum, sum
		}
	}
	spread := math.Log(float64(max(n-1, 2)))
	if k.Parity {
		spread = math.Log(float64(n - 1))
	}
	others := make([]float64, 0, n-1)
	for i := range h {
		others = append(append(others[:0], sq[i*n:i*n+i]...), sq[i*n+i+1:(i+1)*n]...)
		if h[i] = max(median(others)/spread, 1e-12); h[i] != h[i] {
			h[i] = math.Inf(1) // parity, two particles at one place: 0/0
		}
		if k.Bandwidth > 0 {
			h[i] = k.Bandwidth
		}
	}
	if k.Global {
		all := median(slices.Clone(h))
		for i := range h {
			h[i] = all
		}
	}
	for i := range n {
		// exp(-d^2/h) relative to its largest: the ratio is safe where every kernel underflows.
		near := math.Inf(1)
		for j := range n {
			if j != i {
				near = min(near, sq[i*n+j])
			}
		}
		sum, r := 0.0, R[i*d:(i+1)*d]
		for j := range n {
			if j == i {
				continue
			}
			w := math.Exp((near - sq[i*n+j]) / h[i])
			sum += w
			for c, v := range f[i*d : (i+1)*d] {
				r[c] += w * (v - f[j*d+c])
			}
		}
		for c := range r {
			r[c] *= 2 / (h[i] * sum)
		}
	}
	return h
}

// median sorts v and returns the lower of its middle values.
func median(v []float64) float64 {
	slices.Sort(v)
	return v[(len(v)-1)/2]
}
