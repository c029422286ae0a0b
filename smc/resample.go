package smc

import (
	"fmt"
	"math"
	"strings"
)

// Resampler is a way to draw ancestors from normalised weights W. All are unbiased: the expected number of offspring of
// particle i is M W_i. They differ in variance and in the uniforms they take.
//
//	systematic   points (k + U)/M, one U: offspring floor or ceil of M W; depends on the order of the particles
//	stratified   points (k + U_k)/M
//	ssp          pairwise pivoting of the fractional parts: offspring as systematic, consistent in any order
//	residual     floor(M W) copies, the rest multinomial
//	multinomial  M independent draws, in ascending order (the largest variance)
//	killing      particle i stays in its slot with probability W_i/max W, else a multinomial draw replaces it; M = K
//
// (Douc, Cappe and Moulines 2005; Gerber, Chopin and Whiteley 2019, for ssp.) The zero value is systematic.
type Resampler int

// The resamplers.
const (
	Systematic Resampler = iota
	Stratified
	SSP
	Residual
	Multinomial
	Killing
)

var resamplerNames = []string{"systematic", "stratified", "ssp", "residual", "multinomial", "killing"}

func (r Resampler) String() string { return nameOf(resamplerNames, int(r)) }

// Resamplers lists all of them.
func Resamplers() []Resampler {
	return []Resampler{Systematic, Stratified, SSP, Residual, Multinomial, Killing}
}

var resamplerSummaries = []string{
	"one uniform, points (k + U)/K: offspring floor or ceil of K W; depends on the order of the particles (default)",
	"K uniforms, points (k + U_k)/K",
	"pairwise pivoting of the fractional parts: offspring as systematic, consistent in any order",
	"floor(K W) copies, the rest multinomial",
	"K independent draws: the largest variance",
	"a particle stays in its slot with probability W/max W, else a multinomial draw replaces it",
}

// Summary says how it draws.
func (r Resampler) Summary() string { return resamplerSummaries[r] }

// ParseResampler reads a resampler's name.
func ParseResampler(s string) (Resampler, error) {
	i, err := find("resampler", resamplerNames, s)
	return Resampler(i), err
}

// Uniforms hands out n uniforms on [0, 1) that were not handed out before.
type Uniforms func(n int) []float64

// Ancestors draws m ancestors of particles with weights w. The weights need not be normalised; they must be finite,
// none negative, with a positive sum. A particle of weight zero is never drawn.
func (r Resampler) Ancestors(w []float64, m int, u Uniforms) ([]int, error) {
	sum := 0.0
	for i, v := range w {
		if !(v >= 0) || math.IsInf(v, 1) {
			return nil, fmt.Errorf("smc: resampling: weight %d is %g", i, v)
		}
		sum += v
	}
	if !(sum > 0) || math.IsInf(sum, 1) {
		return nil, fmt.Errorf("smc: resampling: the weights sum to %g", sum)
	}
	if m < 1 {
		return nil, fmt.Errorf("smc: resampling: %d ancestors asked for", m)
	}
	points := make([]float64, 0, m)
	switch r {
	case Systematic:
		v := u(1)[0]
		for k := range m {
			points = append(points, (float64(k)+v)/float64(m))
		}
		return invert(w, points), nil
	case Stratified:
		for k, v := range u(m) {
			points = append(points, (float64(k)+v)/float64(m))
		}
		return invert(w, points), nil
	case Multinomial:
		return multinomial(w, m, u), nil
	case Residual:
		return residual(w, sum, m, func(rest []float64, n int) []int { return multinomial(rest, n, u) }), nil
	case SSP:
		return ssp(w, sum, m, u), nil
	case Killing:
		if m != len(w) {
			return nil, fmt.Errorf("smc: resampling by killing keeps the number of particles: cannot go from %d to %d", len(w), m)
		}
		return killing(w, u(m), func(n int) []int { return multinomial(w, n, u) }), nil
	}
	return nil, fmt.Errorf("smc: unknown resampler %d", int(r))
}

// invert returns for each point p in [0, 1) the particle i with C_{i-1} <= p C < C_i, C_i the running sums of w and C the
// last. Ascending points take one pass.
func invert(w, points []float64) []int {
	cum := make([]float64, len(w))
	sum, last := 0.0, 0
	for i, v := range w {
		sum += v
		cum[i] = sum
		if v > 0 {
			last = i
		}
	}
	out := make([]int, len(points))
	i, before := 0, 0.0
	for k, p := range points {
		if p < before {
			i = 0
		}
		before = p
		for p*sum >= cum[i] && i < last {
			i++
		}
		out[k] = i
	}
	return out
}

// multinomial draws n particles in ascending order: the points are cumulative sums of exponentials over their total.
func multinomial(w []float64, n int, u Uniforms) []int {
	points := make([]float64, n)
	sum := 0.0
	for k, v := range u(n + 1) {
		sum -= math.Log(max(v, 0x1p-54))
		if k < n {
			points[k] = sum
		}
	}
	for k := range points {
		points[k] /= sum
	}
	return invert(w, points)
}

// slack is the rounding that a whole number of offspring may lose.
const slack = 1e-12

func residual(w []float64, sum float64, m int, draw func(rest []float64, n int) []int) []int {
	out := make([]int, 0, m)
	rest := make([]float64, len(w))
	for i, v := range w {
		v *= float64(m) / sum
		n := math.Floor(v + slack)
		rest[i] = max(0, v-n)
		for range int(n) {
			out = append(out, i)
		}
	}
	if n := m - len(out); n > 0 {
		out = append(out, draw(rest, n)...)
	}
	return out
}

func killing(w, keep []float64, draw func(n int) []int) []int {
	top := 0.0
	for _, v := range w {
		top = max(top, v)
	}
	out := make([]int, len(w))
	var killed []int
	for i, v := range w {
		out[i] = i
		if keep[i]*top >= v {
			killed = append(killed, i)
		}
	}
	if len(killed) > 0 {
		for k, a := range draw(len(killed)) {
			out[killed[k]] = a
		}
	}
	return out
}

// ssp plays the fractional parts x of the expected offspring against each other, two at a time: with p and q in play,
// probability moves from one to the other without changing either's mean, until one of them is whole.
func ssp(w []float64, sum float64, m int, u Uniforms) []int {
	n := make([]int, len(w))
	x := make([]float64, len(w))
	total := 0
	for i, v := range w {
		v *= float64(m) / sum
		n[i] = int(math.Floor(v + slack))
		x[i] = max(0, v-float64(n[i]))
		total += n[i]
	}
	p, q := 0, 1
	if len(w) > 1 {
		for k, v := range u(len(w) - 1) {
			up, down := min(1-x[p], x[q]), min(x[p], 1-x[q])
			move := up
			if up+down > 0 && v < up/(up+down) {
				p, q, move = q, p, down
			}
			if x[q] < 1-x[p] {
				x[p] += move
				q = k + 2
			} else {
				x[q] -= move
				n[p]++
				total++
				p = k + 2
			}
		}
	}
	left := p
	if p == len(w) {
		left = q
	}
	if total == m-1 && left < len(w) && w[left] > 0 { // the last unit, short of 1 by rounding
		n[left]++
		total++
	}
	for total != m { // rounding of many particles: give to (take from) the heaviest that can
		best := -1
		for i := range w {
			if (total < m || n[i] > 0) && (best < 0 || w[i] > w[best]) {
				best = i
			}
		}
		if total < m {
			n[best]++
			total++
		} else {
			n[best]--
			total--
		}
	}
	out := make([]int, 0, m)
	for i, c := range n {
		for range c {
			out = append(out, i)
		}
	}
	return out
}

func nameOf(names []string, i int) string {
	if i < 0 || i >= len(names) {
		return fmt.Sprint(i)
	}
	return names[i]
}

func find(what string, names []string, s string) (int, error) {
	for i, n := range names {
		if n == s {
			return i, nil
		}
	}
	return 0, fmt.Errorf("smc: unknown %s %q (have %s)", what, s, strings.Join(names, ", "))
}
