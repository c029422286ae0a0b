package analytic

import (
	"fmt"
	"math"

	"drift/internal/rng"
	"drift/models"
	"drift/schedules"
)

// The methods below are about one row x of D numbers at node n, for the components of one class (models.NoClass: the
// whole mixture; p(x | class) is normalised within the class).

// one locates x and calls f with the tables of kind.
func (m *Mixture) one(x []float64, n schedules.Node, class int, kind schedules.Kind, f func(w *work, members []int, logP float64)) error {
	members, logC, err := m.of(class)
	if err == nil && len(x) != m.dim {
		err = fmt.Errorf("a row of %d numbers; the target has %d dimensions", len(x), m.dim)
	}
	if err != nil {
		return fmt.Errorf("analytic: %w", err)
	}
	w := m.works.Get().(*work)
	defer m.works.Put(w)
	if err := m.prepare(w, n, kind); err != nil {
		return fmt.Errorf("analytic: %w", err)
	}
	f(w, members, m.locate(w, x, members)-logC)
	return nil
}

// LogP returns log p(x | class) at node n, in nats. The node of clean data (alpha 1, sigma 0) gives the data's density.
func (m *Mixture) LogP(x []float64, n schedules.Node, class int) (float64, error) {
	var out float64
	err := m.one(x, n, class, m.target.Prediction, func(_ *work, _ []int, logP float64) { out = logP })
	return out, err
}

// Evaluate writes any kind of prediction for x into dst, which has D numbers.
func (m *Mixture) Evaluate(dst, x []float64, n schedules.Node, class int, kind schedules.Kind) error {
	if len(dst) != m.dim {
		return fmt.Errorf("analytic: room for %d numbers; the target has %d dimensions", len(dst), m.dim)
	}
	return m.one(x, n, class, kind, func(w *work, members []int, _ float64) { m.answer(w, dst, members) })
}

// Score writes the gradient of LogP into dst.
func (m *Mixture) Score(dst, x []float64, n schedules.Node, class int) error {
	return m.Evaluate(dst, x, n, class, schedules.Score)
}

// Hessian writes the second derivatives of LogP into dst, D x D row-major:
//
//	sum_k r_k ((e_k - e)(e_k - e)^T - V_k^-1),  e = sum_k r_k e_k
//
// With it the covariance of the data given x is Cov[x0|x] = (s^2/a^2)(I + s^2 Hessian).
func (m *Mixture) Hessian(dst, x []float64, n schedules.Node, class int) error {
	d := m.dim
	if len(dst) != d*d {
		return fmt.Errorf("analytic: room for %d numbers; the Hessian has %d x %d", len(dst), d, d)
	}
	return m.one(x, n, class, schedules.Score, func(w *work, members []int, _ float64) {
		clear(dst)
		mean := w.diff
		m.answer(w, mean, members) // -e
		e := w.back
		for _, k := range members {
			r := w.post[k]
			if r == 0 {
				continue
			}
			q, y, inv := m.axes[k], w.y[k], w.inv[k]
			for i := range e {
				if q == nil {
					e[i] = inv[i]*y[i] + mean[i]
					dst[i*d+i] -= r * inv[i]
					continue
				}
				row := q[i*d:][:d]
				e[i] = mean[i]
				for j, qij := range row {
					e[i] += qij * inv[j] * y[j]
				}
				for l := range i + 1 { // the lower triangle of -r V^-1, twice
					sum := 0.0
					for j, qij := range row {
						sum += qij * inv[j] * q[l*d+j]
					}
					dst[i*d+l] -= r * sum
					if l != i {
						dst[l*d+i] -= r * sum
					}
				}
			}
			for i, ei := range e {
				for j, ej := range e {
					dst[i*d+j] += r * ei * ej
				}
			}
		}
	})
}

// LogPosterior writes log p(c | x) of every class c into dst: what the perfect noise-aware classifier says. Its
// gradient is the difference of the scores of class c and of the whole mixture.
func (m *Mixture) LogPosterior(dst, x []float64, n schedules.Node) error {
	if len(m.members) == 0 || len(dst) != len(m.members) {
		return fmt.Errorf("analytic: room for %d classes; the target has %d", len(dst), len(m.members))
	}
	return m.one(x, n, models.NoClass, m.target.Prediction, func(w *work, _ []int, total float64) {
		for c, members := range m.members {
			dst[c] = m.locate(w, x, members) - total
		}
	})
}

// purposeData is the purpose of Sample's draws.
const purposeData rng.Purpose = 1<<16 + 'a'

// Sample fills dst with rows of exact data of a class, D numbers each. Row i is a function of (seed, i) and the target
// alone, and independent of the noise of runs with the same seed.
func (m *Mixture) Sample(dst []float64, class int, seed uint64) error {
	members, logC, err := m.of(class)
	if err == nil && len(dst)%m.dim != 0 {
		err = fmt.Errorf("room for %d numbers; rows have %d", len(dst), m.dim)
	}
	if err != nil {
		return fmt.Errorf("analytic: %w", err)
	}
	z := make([]float64, m.dim)
	var u [1]float64
	for row := range len(dst) / m.dim {
		key := rng.Key{Seed: seed, Image: uint64(row), Purpose: purposeData}
		rng.Uniform(u[:], key)
		rng.Normal(z, key)
		left, k := u[0], 0
		for _, k = range members { // the last one takes what rounding leaves
			if left -= math.Exp(m.logW[k] - logC); left < 0 {
				break
			}
		}
		for i, c := range m.vars[k] {
			z[i] *= math.Sqrt(c)
		}
		x := dst[row*m.dim:][:m.dim]
		copy(x, m.target.Means[k])
		if q := m.axes[k]; q != nil {
			backward(x, 1, q, z)
			continue
		}
		for i, zi := range z {
			x[i] += zi
		}
	}
	return nil
}

// Mahalanobis returns (x - m_k)^T C_k^-1 (x - m_k) of clean data x to component k: chi-squared with D degrees of freedom for
// samples of that component.
func (m *Mixture) Mahalanobis(x []float64, k int) float64 {
	if len(x) != m.dim || k < 0 || k >= len(m.all) {
		panic("analytic: Mahalanobis of a row or component that the target does not have")
	}
	mean, sum := m.target.Means[k], 0.0
	for j, v := range m.vars[k] {
		d := x[j] - mean[j]
		if q := m.axes[k]; q != nil { // along axis j
			d = 0
			for i := range m.dim {
				d += q[i*m.dim+j] * (x[i] - mean[i])
			}
		}
		sum += d * d / v
	}
	return sum
}
