package samplers

import "math"

// Recurrent is a Sampler whose step on the test equation d xb/d sb = L xb is a linear recurrence. With z = (sb_{n+1} -
// sb_n) L, its growth factors per step are the roots of rho(zeta) = z tau(zeta); Characteristic returns the
// coefficients of both polynomials, highest power first and of equal length.
type Recurrent interface {
	Characteristic() (rho, tau []float64)
}

// Stability returns the largest |z| on the stable side (z < 0) at which no solution of the test equation grows. Of the
// methods here that is where the root -1 appears: |rho(-1)/tau(-1)|.
func Stability(m Recurrent) float64 {
	rho, tau := m.Characteristic()
	at := func(p []float64) (v float64) {
		for _, c := range p {
			v = c - v // Horner at -1
		}
		return v
	}
	return math.Abs(at(rho) / at(tau))
}

// Characteristic implements Recurrent: zeta^(k-1) (zeta - 1) = z SUM_i a_i zeta^(k-1-i).
func (m PLMS) Characteristic() (rho, tau []float64) {
	return HeavyBall{Order: m.order(), Beta: 1}.Characteristic()
}

// Characteristic implements Recurrent: zeta^2 - (2 - beta) zeta + (1 - beta) = z SUM_i b_i zeta^(1-i), times a power of
// zeta.
func (m GHVB) Characteristic() (rho, tau []float64) {
	k, beta := m.values()
	b := ghvbWeights(k, beta)
	return padded([]float64{1, beta - 2, 1 - beta}, append([]float64{0}, b[:k]...))
}

// Characteristic implements Recurrent: as GHVB's with beta a_i for b_i; Nesterov's right side has the factor (2 - beta) -
// (1 - beta)/zeta besides.
func (m HeavyBall) Characteristic() (rho, tau []float64) {
	k, beta := GHVB{Order: m.Order, Beta: m.Beta}.values()
	tau = []float64{0}
	for _, a := range adams[k-1] {
		tau = append(tau, beta*a)
	}
	if m.Nesterov {
		last := 0.0
		for i, c := range tau {
			tau[i] = (2-beta)*c - (1-beta)*last
			last = c
		}
		tau = append(tau, -(1-beta)*last)
	}
	return padded([]float64{1, beta - 2, 1 - beta}, tau)
}

// padded makes two polynomials equally long by multiplying with a power of zeta.
func padded(a, b []float64) (x, y []float64) {
	n := max(len(a), len(b))
	x, y = make([]float64, n), make([]float64, n)
	copy(x, a)
	copy(y, b)
	return x, y
}
