package distill

import (
	"fmt"

	"drift/internal/operators"
	"drift/models"
)

// Measure makes the particles of RSD solutions of y = A(x) + noise, in the published augmented form: next to every
// particle z stands an image x, tied to it and to y,
//
//	z descends |x - z|^2/2 + (Strength/Tie) w <q, z>   (q detached; w the weight of RSD)
//	x descends |y - A(x)|^2/2 + Tie |x - z|^2/2
//
// one step of the Optimizer each and in this order, every square and product a mean over its elements, so that neither
// term grows with the size of the image (with SGD all gradients are multiplied by the number of elements of z, so that a
// rate means what it means without a measurement). The weight is rho = sigma/alpha where RSD.Weight is nil. State.X is x.
//
// Direct leaves x out: z descends |y - A(z)|^2/2 + Strength w <q, z>, which with Gamma = 0 is RED-diff (Mardani et al.
// 2023, arXiv 2305.04391).
type Measure struct {
	Op       operators.Operator
	Y        []float64 // one measurement for all sets, or one per row after another
	Strength float64   // of the model; 0 = 0.15
	Tie      float64   // rho of the paper; 0 = 0.07
	RateX    float64   // rate of x; 0 = the Optimizer's
	Direct   bool
	// Start moves the start of image x of a row (with Direct, of the particle itself) from where its particle starts; nil
	// leaves it there. Images of one set should not start at one place.
	Start func(row int, x []float64)
}

// each returns row i of v, which has one entry for all of rows or one per row.
func each(v []float64, i, rows, width int) []float64 {
	if len(v) == width {
		return v
	}
	return v[i*width : (i+1)*width]
}

func (m *Measure) check(rows, dim int) (width int, err error) {
	switch {
	case m.Op == nil:
		return 0, fmt.Errorf("a measurement without an operator")
	case len(m.Y) == 0:
		return 0, fmt.Errorf("a measurement without values")
	case !(m.Strength >= 0 && m.Tie >= 0 && m.RateX >= 0):
		return 0, fmt.Errorf("strength = %g, tie = %g, rate = %g of a measurement: want positive numbers", m.Strength, m.Tie, m.RateX)
	}
	if have := operators.Size(m.Op.In()); have != dim {
		return 0, fmt.Errorf("the operator takes images of shape %v, of %d values; the rows have %d", m.Op.In(), have, dim)
	}
	if width = operators.Size(m.Op.Out()); len(m.Y) != width && len(m.Y) != rows*width {
		return 0, fmt.Errorf("%d measured values for %d images; the operator gives %d each", len(m.Y), rows, width)
	}
	return width, nil
}

// misfit writes scale times the gradient of |y - A(x)|^2/2, a mean over y, of row i into grad.
func (r *run) misfit(grad, x []float64, i int, scale float64) {
	m := r.m.Measure
	got, y := r.y[:r.width], each(m.Y, i, r.rows, r.width)
	m.Op.Apply(got, x)
	for j, v := range y {
		got[j] = scale * (got[j] - v) / float64(r.width)
	}
	m.Op.VJP(grad, x, got)
}

// measured makes the two gradient steps of iteration k on the set lo..hi, where grad holds w q of its particles.
func (r *run) measured(grad []float64, lo, hi, k int) {
	m := r.m.Measure
	scale := 1 / float64(hi-lo) // of a mean over an image
	if r.m.SGD {
		scale = float64(r.dim)
	}
	each := scale / float64(r.dim)
	strength, tie := or(m.Strength, 0.15), or(m.Tie, 0.07)
	z, x := models.Data(r.z), r.X
	for i := lo; i < hi; i++ {
		g := grad[i*r.dim : (i+1)*r.dim]
		if m.Direct {
			r.misfit(r.tmp, z[i*r.dim:(i+1)*r.dim], i, scale)
			for j, v := range r.tmp {
				g[j] = v + each*strength*g[j]
			}
			continue
		}
		for j, v := range g {
			e := i*r.dim + j
			g[j] = each * (z[e] - x[e] + strength/tie*v)
		}
	}
	r.move(lo, hi, k)
	if m.Direct {
		return
	}
	r.render(lo, hi)
	for i := lo; i < hi; i++ {
		g, xi := r.tmp, x[i*r.dim:(i+1)*r.dim]
		r.misfit(g, xi, i, scale)
		for j := range g {
			g[j] += each * tie * (xi[j] - z[i*r.dim+j])
		}
		r.m.step(xi, g, r.MX.row(i, r.dim), or(m.RateX, r.Rate), k+1, r.total)
	}
}
