package guidance

import (
	"context"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/schedules"
)

// Way says how a product J^T u with the Jacobian J = d x0/d x of a model's data prediction is made.
type Way int

// The ways.
const (
	// WayAuto is WayExact where the model offers it, else WayDifferences.
	WayAuto Way = iota
	// WayExact is the model's own vector-Jacobian product.
	WayExact
	// WayDifferences is (x0(x + h u) - x0(x))/h, one more evaluation: the Jacobian of an ideal denoiser,
	// (I + sigma^2 hess log p)/alpha, is symmetric, so that J^T u = J u. A trained network is one only nearly.
	WayDifferences
	// WayScalar is alpha/(alpha^2 + sigma^2) u, the Jacobian for data N(0, I). No evaluation, and biased.
	WayScalar
)

// Ways are the words of the ways, in their order.
var Ways = []string{"auto", "exact", "fd", "scalar"}

// String is the word of a way.
func (w Way) String() string { return Ways[w] }

// For is the way that is taken with model d.
func (w Way) For(d models.Denoiser) Way {
	if w != WayAuto {
		return w
	}
	if _, ok := models.As[models.VJP](d); ok {
		return WayExact
	}
	return WayDifferences
}

// Jacobian makes products with the Jacobian of a model's data prediction. The zero value is ready; it keeps
// memory between calls and serves one caller at a time.
type Jacobian struct {
	Way Way
	H   float64 // step of WayDifferences in units of |x|/|u|; 0 = 1e-3, which suits float32 networks

	x0, grad, probe, cot *tensor.Dense
	again                models.Pred
}

// Pull asks d at q, which answers p, and gives the predicted data x0 and g = J^T u, rows one after another. u is
// called once with x0 and writes the cotangent. What it returns holds until the next call.
func (j *Jacobian) Pull(ctx context.Context, d models.Denoiser, q *models.Query, p *models.Pred, u func(x0, u []float64) error) (x0, g []float64, err error) {
	gau, ok := d.Process().(schedules.Gaussian)
	if !ok {
		return nil, nil, fmt.Errorf("guidance: the gradient of the predicted data needs a Gaussian process, the model's is %s", d.Process().Name())
	}
	j.cot = models.Reuse(j.cot, q.X.Shape())
	cot := models.Data(j.cot)
	data := func() error {
		if err := j.data(gau, q, p); err != nil {
			return err
		}
		x0 = models.Data(j.x0)
		return u(x0, cot)
	}
	if j.Way.For(d) == WayExact {
		g, err = j.exact(ctx, d, gau, q, p, data)
		return x0, g, err
	}
	if err := d.Predict(ctx, q, p); err != nil {
		return nil, nil, err
	}
	if err := data(); err != nil {
		return nil, nil, err
	}
	g, err = j.rest(ctx, d, gau, q)
	return x0, g, err
}

// Times gives J^T u at the point of q, where x0 (of an earlier Pull) was predicted.
func (j *Jacobian) Times(ctx context.Context, d models.Denoiser, q *models.Query, u []float64) ([]float64, error) {
	gau, ok := d.Process().(schedules.Gaussian)
	if !ok || j.x0 == nil {
		return nil, fmt.Errorf("guidance: no prediction was made of which to take the gradient")
	}
	j.cot = models.Reuse(j.cot, q.X.Shape())
	copy(models.Data(j.cot), u)
	if j.Way.For(d) != WayExact {
		return j.rest(ctx, d, gau, q)
	}
	return j.exact(ctx, d, gau, q, &j.again, func() error { return nil })
}

// data writes p as clean data into j.x0.
func (j *Jacobian) data(gau schedules.Gaussian, q *models.Query, p *models.Pred) error {
	j.x0 = clone(j.x0, p.Out)
	x, x0 := models.Data(q.X), models.Data(j.x0)
	n := len(x) / len(q.At)
	for i, node := range q.At {
		if err := convert(gau, p.Kind, schedules.X0, node, x[i*n:(i+1)*n], x0[i*n:(i+1)*n]); err != nil {
			return fmt.Errorf("guidance: %s: %w", where(q, i), err)
		}
	}
	return nil
}

// exact: with x0 = cx x + co out, J^T u = cx u + co J_out^T u. filled is called when p is answered and fills the cotangent.
func (j *Jacobian) exact(ctx context.Context, d models.Denoiser, gau schedules.Gaussian, q *models.Query, p *models.Pred, filled func() error) ([]float64, error) {
	j.grad = models.Reuse(j.grad, q.X.Shape())
	var straight []float64
	err := models.Late(ctx, d, q, p, func(*models.Pred) (*tensor.Dense, error) {
		if err := filled(); err != nil {
			return nil, err
		}
		cot := models.Data(j.cot)
		straight = make([]float64, len(cot))
		n := len(cot) / len(q.At)
		for i, node := range q.At {
			cx, co, err := schedules.Convert(gau, p.Kind, schedules.X0, node)
			if err != nil {
				return nil, fmt.Errorf("guidance: %s: %w", where(q, i), err)
			}
			for k := i * n; k < (i+1)*n; k++ {
				straight[k], cot[k] = cx*cot[k], co*cot[k]
			}
		}
		return j.cot, nil
	}, j.grad)
	if err != nil {
		return nil, err
	}
	g := models.Data(j.grad)
	for k, v := range straight {
		g[k] += v
	}
	return g, finite("gradient", "the gradient through the model", q, g)
}

// rest makes the products that need no gradients of the model.
func (j *Jacobian) rest(ctx context.Context, d models.Denoiser, gau schedules.Gaussian, q *models.Query) ([]float64, error) {
	j.grad = models.Reuse(j.grad, q.X.Shape())
	cot, g := models.Data(j.cot), models.Data(j.grad)
	n := len(g) / len(q.At)
	if j.Way == WayScalar {
		for i, node := range q.At {
			f := node.Alpha / (node.Alpha*node.Alpha + node.Sigma*node.Sigma)
			for k := i * n; k < (i+1)*n; k++ {
				g[k] = f * cot[k]
			}
		}
		return g, nil
	}
	c := j.H
	if c == 0 {
		c = 1e-3
	}
	j.probe = clone(j.probe, q.X)
	x, at := models.Data(q.X), models.Data(j.probe)
	h := make([]float64, len(q.At))
	for i := range q.At {
		lo, hi := i*n, (i+1)*n
		if size := norm(cot[lo:hi]); size > 0 {
			h[i] = c * math.Max(norm(x[lo:hi]), 1e-12) / size
		}
		for k := lo; k < hi; k++ {
			at[k] += float64(h[i] * cot[k])
		}
	}
	ask := *q
	ask.X = j.probe
	if err := d.Predict(ctx, &ask, &j.again); err != nil {
		return nil, err
	}
	moved := models.Data(j.again.Out)
	for i, node := range q.At {
		lo, hi := i*n, (i+1)*n
		if err := convert(gau, j.again.Kind, schedules.X0, node, at[lo:hi], moved[lo:hi]); err != nil {
			return nil, fmt.Errorf("guidance: %s: %w", where(q, i), err)
		}
		for k := lo; k < hi; k++ {
			g[k] = 0
			if h[i] > 0 {
				g[k] = (moved[k] - models.Data(j.x0)[k]) / h[i]
			}
		}
	}
	return g, finite("gradient", "the difference quotient", q, g)
}
