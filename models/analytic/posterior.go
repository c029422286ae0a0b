package analytic

import (
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/mat"

	"drift/internal/operators"
)

// Posterior is the law of the data given a linear measurement: again a mixture. Its covariances may be singular.
type Posterior struct {
	Weights     []float64
	Means       [][]float64
	Covs        [][][]float64
	LogEvidence float64 // log p(y)
}

// Given returns the posterior of the data x0 given y = A x0 + sigma n. With S_k = A C_k A^T + sigma^2 I and K_k = C_k A^T
// S_k^-1,
//
//	w_k ∝ w_k N(y; A m_k, S_k),  m_k + K_k (y - A m_k),  C_k - K_k A C_k
//
// It fails where A is not linear, and where a S_k is singular (a measurement without noise of what has no spread).
func (m *Mixture) Given(y operators.Measurement) (*Posterior, error) {
	a, ok := y.A.(operators.Linear)
	if !ok {
		return nil, fmt.Errorf("analytic: the posterior has a closed form for linear operators; %s is not linear", y.A.Name())
	}
	n, out := operators.Size(a.In()), operators.Size(a.Out())
	if n != m.dim {
		return nil, fmt.Errorf("analytic: %s takes %d elements, the target has %d", y.A.Name(), n, m.dim)
	}
	am := mat.NewDense(out, n, nil)
	unit, col := make([]float64, n), make([]float64, out)
	for j := range n {
		unit[j] = 1
		a.Apply(col, unit)
		am.SetCol(j, col)
		unit[j] = 0
	}
	p := &Posterior{}
	for k, mean := range m.target.Means {
		c := mat.NewSymDense(n, nil)
		for i := range n {
			if m.target.Covs == nil {
				c.SetSym(i, i, m.target.Vars[k][i])
				continue
			}
			for j := i; j < n; j++ {
				c.SetSym(i, j, m.target.Covs[k][i][j])
			}
		}
		var ca, s mat.Dense
		ca.Mul(c, am.T())
		s.Mul(am, &ca)
		sym := mat.NewSymDense(out, nil)
		for i := range out {
			for j := i; j < out; j++ {
				v := (s.At(i, j) + s.At(j, i)) / 2
				if i == j {
					v += y.Sigma * y.Sigma
				}
				sym.SetSym(i, j, v)
			}
		}
		var chol mat.Cholesky
		if !chol.Factorize(sym) {
			return nil, fmt.Errorf("analytic: component %d: the measurement's covariance is singular", k)
		}
		r := mat.NewVecDense(out, slices.Clone(y.Y))
		var predicted, solved, shift mat.VecDense
		predicted.MulVec(am, mat.NewVecDense(n, mean))
		r.SubVec(r, &predicted)
		if err := chol.SolveVecTo(&solved, r); err != nil {
			return nil, fmt.Errorf("analytic: component %d: %w", k, err)
		}
		shift.MulVec(&ca, &solved)
		var gain, drop mat.Dense
		if err := chol.SolveTo(&gain, ca.T()); err != nil {
			return nil, fmt.Errorf("analytic: component %d: %w", k, err)
		}
		drop.Mul(&ca, &gain)
		post, cov := slices.Clone(mean), make([][]float64, n)
		for i := range n {
			post[i] += shift.AtVec(i)
			cov[i] = make([]float64, n)
			for j := range n {
				cov[i][j] = c.At(i, j) - drop.At(i, j)
			}
		}
		p.Means, p.Covs = append(p.Means, post), append(p.Covs, cov)
		p.Weights = append(p.Weights, m.logW[k]-(mat.Dot(r, &solved)+chol.LogDet()+float64(out)*math.Log(2*math.Pi))/2)
	}
	top := slices.Max(p.Weights)
	sum := 0.0
	for _, l := range p.Weights {
		sum += math.Exp(l - top)
	}
	p.LogEvidence = top + math.Log(sum)
	for k, l := range p.Weights {
		p.Weights[k] = math.Exp(l - p.LogEvidence)
	}
	return p, nil
}

// Moments gives the mean and the variance of every element.
func (p *Posterior) Moments() (mean, variance []float64) {
	n := len(p.Means[0])
	mean, variance = make([]float64, n), make([]float64, n)
	for k, w := range p.Weights {
		for i, v := range p.Means[k] {
			mean[i] += float64(w * v)
		}
	}
	for k, w := range p.Weights {
		for i, v := range p.Means[k] {
			d := v - mean[i]
			variance[i] += float64(w * (p.Covs[k][i][i] + float64(d*d)))
		}
	}
	return mean, variance
}
