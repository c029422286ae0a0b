package guidance

import (
	"context"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/internal/operators"
	"drift/models"
	"drift/schedules"
)

// Model of the measurement's likelihood in Measured.
type Likelihood int

// The likelihoods: Q in Measured. LikelihoodPlain takes the predicted data for the truth (diffusion posterior sampling,
// arXiv 2209.14687, with the Gaussian form of its eq. 11); LikelihoodPiGDM gives it the variance r^2 = sigma^2/(alpha^2 +
// sigma^2) (pseudoinverse guidance, ICLR 2023, eq. 8); LikelihoodCovariance the covariance that Tweedie's second
// formula says, sigma^2/alpha J (arXiv 2310.06721).
const (
	LikelihoodPlain Likelihood = iota
	LikelihoodPiGDM
	LikelihoodCovariance
)

// Measured guides towards data x0 of which y = A(x0) + sigma_y n is known: it adds to the model's score
//
//	W g,  g = J^T A^T Q^-1 (y - A(x0)),  J = d x0/d x
//	Q = sigma_y^2 I                          LikelihoodPlain
//	Q = r^2 A A^T + sigma_y^2 I              LikelihoodPiGDM, linear A
//	Q = sigma^2/alpha A J A^T + sigma_y^2 I  LikelihoodCovariance, linear A
//
// W = 1 is the method; W = 0, infinite noise and rows of pure noise (alpha = 0) are off. The posterior of Gaussian data under a linear A is exact with
// LikelihoodCovariance, up to the solver's step size. One evaluation with one vector-Jacobian product (WayExact), or two
// evaluations (WayDifferences), or one (WayScalar); LikelihoodCovariance solves by conjugate gradients, one further product
// for each iteration.
type Measured struct {
	Of      operators.Measurement
	Form    Likelihood
	Way     Way
	H       float64 // see Jacobian
	W       float64
	MaxNorm float64 // largest norm of a row's gradient; 0 = no limit
	Most    int     // iterations of conjugate gradients; 0 = 20
	Span    Span
}

// Guide implements Guider.
func (g Measured) Guide(d models.Denoiser) models.Denoiser {
	return &measured{link: link{d, "measurement"}, g: g, j: Jacobian{Way: g.Way, H: g.H}}
}

type measured struct {
	link
	g      Measured
	j      Jacobian
	scales []float64
}

// Predict implements models.Denoiser.
func (m *measured) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	var on bool
	var err error
	carries := func(row int) bool { return q.At[row].Alpha > 0 } // pure noise says nothing of the data
	if m.scales, on, err = weights(m.scales, m.name, q, m.g.W, nil, m.g.Span, 0, carries); err != nil {
		return err
	}
	if !on || math.IsInf(m.g.Of.Sigma, 1) {
		return m.Denoiser.Predict(ctx, q, p)
	}
	if m.g.Form == LikelihoodPlain && m.g.Of.Sigma == 0 {
		return fmt.Errorf("guidance: measurement: the plain likelihood divides by the noise of the measurement, which is 0")
	}
	if _, ok := m.g.Of.A.(operators.Linear); !ok && m.g.Form != LikelihoodPlain {
		return fmt.Errorf("guidance: measurement: %s is not linear: only the plain likelihood takes it", m.g.Of.A.Name())
	}
	var r []float64
	_, grad, err := m.j.Pull(ctx, m.Denoiser, q, p, func(x0, u []float64) error {
		n := len(x0) / len(q.At)
		for i, node := range q.At {
			r = m.g.Of.Residual(x0[i*n : (i+1)*n])
			m.weigh(u[i*n:(i+1)*n], x0[i*n:(i+1)*n], r, node)
		}
		return nil
	})
	if err == nil && m.g.Form == LikelihoodCovariance {
		grad, err = m.solve(ctx, q)
	}
	if err != nil {
		return fmt.Errorf("guidance: measurement: step %d, sigma/alpha %.4g: %w", q.Step.I, q.At[0].Ratio(), err)
	}
	if err := m.own(p); err != nil {
		return err
	}
	return m.shift(q, p, grad, m.scales, m.g.MaxNorm)
}

// weigh writes A^T Q^-1 r into u (of LikelihoodCovariance A^T r).
func (m *measured) weigh(u, x0, r []float64, n schedules.Node) {
	v := m.g.Of.Sigma * m.g.Of.Sigma
	switch m.g.Form {
	case LikelihoodPlain:
		m.g.Of.A.VJP(u, x0, r)
		for i := range u {
			u[i] /= v
		}
	case LikelihoodPiGDM:
		r2 := n.Sigma * n.Sigma / (n.Alpha*n.Alpha + n.Sigma*n.Sigma)
		operators.Filter(m.g.Of.A.(operators.Linear), func(s float64) float64 { return s / (r2*s*s + v) }, u, r)
	default:
		m.g.Of.A.(operators.Linear).Adjoint(u, r)
	}
}

// solve finds g = J^T A^T z with (sigma^2/alpha A J A^T + sigma_y^2 I) z = r for every row, by conjugate gradients on all
// rows at once: products with J are made for the batch. It ends at a residual of 1e-12, or when what is left is rounding.
func (m *measured) solve(ctx context.Context, q *models.Query) ([]float64, error) {
	a := m.g.Of.A.(operators.Linear)
	rows, out := len(q.At), operators.Size(a.Out())
	n := q.X.Size() / rows
	x0 := models.Data(m.j.x0)
	z, r, p := make([]float64, rows*out), make([]float64, rows*out), make([]float64, rows*out)
	for i := range rows {
		copy(r[i*out:], m.g.Of.Residual(x0[i*n:(i+1)*n]))
	}
	copy(p, r)
	rr, first := make([]float64, rows), make([]float64, rows)
	for i := range rows {
		rr[i] = dot(r[i*out:(i+1)*out], r[i*out:(i+1)*out])
		first[i] = rr[i]
	}
	up, down := make([]float64, rows*n), make([]float64, out)
	sum := make([]float64, rows*n) // J^T A^T z
	most := m.g.Most
	if most == 0 {
		most = 20
	}
	for range min(most, out) {
		for i := range rows {
			a.Adjoint(up[i*n:(i+1)*n], p[i*out:(i+1)*out])
		}
		jp, err := m.j.Times(ctx, m.Denoiser, q, up)
		if err != nil {
			return nil, err
		}
		left := false
		for i, node := range q.At {
			if !(rr[i] > 1e-24*first[i]) {
				continue
			}
			pi, ri, zi := p[i*out:(i+1)*out], r[i*out:(i+1)*out], z[i*out:(i+1)*out]
			a.Apply(down, jp[i*n:(i+1)*n])
			c := node.Sigma * node.Sigma / node.Alpha
			for k := range down {
				down[k] = float64(c*down[k]) + float64(m.g.Of.Sigma*m.g.Of.Sigma*pi[k])
			}
			curve := dot(pi, down)
			if !(curve > 0) { // not positive along p: a network's J, or rounding
				rr[i] = 0
				continue
			}
			step := rr[i] / curve
			for k := range pi {
				zi[k] += float64(step * pi[k])
				ri[k] -= float64(step * down[k])
			}
			for k := i * n; k < (i+1)*n; k++ {
				sum[k] += float64(step * jp[k])
			}
			next := dot(ri, ri)
			for k := range pi {
				pi[k] = ri[k] + float64(next/rr[i]*pi[k])
			}
			rr[i] = next
			left = left || next > 1e-24*first[i]
		}
		if !left {
			break
		}
	}
	return sum, nil
}

// Misfit is the energy 1/2 |y - A(x0)|^2 of a measurement, for Gradient: with ThroughX0 and W = 1 the predicted data are
// moved by A^T (y - A x0).
type Misfit struct{ Of operators.Measurement }

// Energy implements the interface Energy.
func (m Misfit) Energy(ctx context.Context, _ *models.Query, x0 *tensor.Dense, e []float64, grad *tensor.Dense) error {
	x, g := models.Data(x0), models.Data(grad)
	n := len(x) / len(e)
	for i := range e {
		if err := ctx.Err(); err != nil {
			return err
		}
		r := m.Of.Residual(x[i*n : (i+1)*n])
		e[i] = dot(r, r) / 2
		m.Of.A.VJP(g[i*n:(i+1)*n], x[i*n:(i+1)*n], r)
		for k := i * n; k < (i+1)*n; k++ {
			g[k] = -g[k]
		}
	}
	return nil
}
