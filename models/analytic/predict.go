package analytic

import (
	"context"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/schedules"
)

// work is the memory of one evaluation, with the tables of the last node: they stay good for as long as rows share it.
type work struct {
	node schedules.Node
	kind schedules.Kind
	have bool // the tables are those of (node, kind)

	// A prediction is sum_k r_k (shift m_k + G_k (x - a m_k)), G_k having the values gain along component k's axes.
	shift float64
	gain  [][]float64
	inv   [][]float64 // 1/V_k along the axes
	norm  []float64   // log w_k - log det(2 pi V_k)/2

	// Of one row.
	y    [][]float64 // x - a m_k along the axes
	post []float64   // r_k
	z    [][]float64 // the cotangent along the axes
	dot  []float64   // <cotangent, answer of component k>
	diff []float64
	back []float64
}

func newWork(k, dim int) *work {
	table := func() [][]float64 {
		rows, flat := make([][]float64, k), make([]float64, k*dim)
		for i := range rows {
			rows[i] = flat[i*dim : (i+1)*dim : (i+1)*dim]
		}
		return rows
	}
	return &work{
		gain: table(), inv: table(), norm: make([]float64, k),
		y: table(), post: make([]float64, k), z: table(), dot: make([]float64, k),
		diff: make([]float64, dim), back: make([]float64, dim),
	}
}

// prepare makes the tables of a node and a kind of prediction.
func (m *Mixture) prepare(w *work, n schedules.Node, kind schedules.Kind) error {
	if w.have && w.node == n && w.kind == kind {
		return nil
	}
	w.have = false
	a, s := n.Alpha, n.Sigma
	if !(a >= 0 && s >= 0 && a+s > 0 && a <= mostMean && s <= mostMean) {
		return fmt.Errorf("t=%g has alpha=%g and sigma=%g; want numbers from 0 to %g, not both 0", n.T, a, s, mostMean)
	}
	// gain = (fromC C + fromI)/V with C the variance along the axis.
	var fromC, fromI float64
	switch kind {
	case schedules.Eps:
		w.shift, fromC, fromI = 0, 0, s
	case schedules.X0:
		w.shift, fromC, fromI = 1, a, 0
	case schedules.V: // a eps - s x0
		w.shift, fromC, fromI = -s, -s*a, a*s
	case schedules.Velocity:
		da, ds := m.target.Process.Rates(n.T)
		sds := s * ds
		if s == 0 && math.IsInf(ds, 0) && m.vp { // s s' = -a a' where a^2 + s^2 = 1
			sds = -a * da
		}
		if math.IsNaN(da+sds) || math.IsInf(da+sds, 0) {
			return fmt.Errorf("the velocity at t=%g is not finite (alpha'=%g, sigma'=%g)", n.T, da, ds)
		}
		w.shift, fromC, fromI = da, da*a, sds
	case schedules.Score:
		w.shift, fromC, fromI = 0, 0, -1
	default:
		return fmt.Errorf("unknown prediction %v", kind)
	}
	for k, vars := range m.vars {
		logDet := float64(m.dim) * math.Log(2*math.Pi)
		inv, gain := w.inv[k], w.gain[k]
		for i, c := range vars {
			v := a*a*c + s*s
			inv[i] = 1 / v
			gain[i] = (fromC*c + fromI) / v
			logDet += math.Log(v)
			if !(v >= 1e-250) {
				return fmt.Errorf("t=%g has alpha=%g and sigma=%g; the variance %g of component %d is too small there", n.T, a, s, c, k)
			}
		}
		w.norm[k] = m.logW[k] - logDet/2
	}
	w.node, w.kind, w.have = n, kind, true
	return nil
}

// forward sets y = Q^T d, Q row-major.
func forward(y, q, d []float64) {
	clear(y)
	for i, di := range d {
		row := q[i*len(y):][:len(y)]
		for j, qij := range row {
			y[j] += qij * di
		}
	}
}

// backward adds r Q g to out.
func backward(out []float64, r float64, q, g []float64) {
	for i := range out {
		row, sum := q[i*len(g):][:len(g)], 0.0
		for j, qij := range row {
			sum += qij * g[j]
		}
		out[i] += r * sum
	}
}

// locate sets y and post of the given components for one row, and returns log sum_k w_k N(x; a m_k, V_k).
func (m *Mixture) locate(w *work, x []float64, members []int) float64 {
	a, most := w.node.Alpha, math.Inf(-1)
	for _, k := range members {
		y, mean := w.y[k], m.target.Means[k]
		d := y
		if m.axes[k] != nil {
			d = w.diff
		}
		for i, xi := range x {
			d[i] = xi - a*mean[i]
		}
		if m.axes[k] != nil {
			forward(y, m.axes[k], d)
		}
		quad := 0.0
		for i, inv := range w.inv[k] {
			quad += y[i] * y[i] * inv
		}
		w.post[k] = w.norm[k] - quad/2
		if !(w.post[k] <= most) { // NaN goes on
			most = w.post[k]
		}
	}
	if math.IsInf(most, -1) { // so far out that squares overflow: there is no answer
		for _, k := range members {
			w.post[k] = math.NaN()
		}
		return most
	}
	sum := 0.0
	for _, k := range members {
		w.post[k] = math.Exp(w.post[k] - most)
		sum += w.post[k]
	}
	for _, k := range members {
		w.post[k] /= sum
	}
	return most + math.Log(sum)
}

// answer writes the prediction of a located row.
func (m *Mixture) answer(w *work, out []float64, members []int) {
	clear(out)
	for _, k := range members {
		r := w.post[k]
		if r == 0 {
			continue
		}
		y, gain := w.y[k], w.gain[k]
		if q := m.axes[k]; q != nil {
			for j, g := range gain {
				w.back[j] = g * y[j]
			}
			backward(out, r, q, w.back)
			if w.shift != 0 {
				rs := r * w.shift
				for i, v := range m.target.Means[k] {
					out[i] += rs * v
				}
			}
			continue
		}
		mean := m.target.Means[k]
		for i, g := range gain {
			out[i] += r * (w.shift*mean[i] + g*y[i])
		}
	}
}

// pullback writes J^T cot of a located row, J the Jacobian of its prediction by x:
//
//	J^T c = sum_k r_k (G_k c - e_k <c, f_k - f>),  f_k the answer of component k, f = sum_k r_k f_k
func (m *Mixture) pullback(w *work, grad, cot []float64, members []int) {
	mixed := 0.0
	for _, k := range members {
		z := w.z[k]
		if q := m.axes[k]; q != nil {
			forward(z, q, cot)
		} else {
			copy(z, cot)
		}
		dot := 0.0
		for i, v := range m.target.Means[k] {
			dot += v * cot[i]
		}
		dot *= w.shift
		y := w.y[k]
		for i, g := range w.gain[k] {
			dot += g * y[i] * z[i]
		}
		w.dot[k] = dot
		mixed += w.post[k] * dot
	}
	clear(grad)
	for _, k := range members {
		r := w.post[k]
		if r == 0 {
			continue
		}
		y, z, inv, over := w.y[k], w.z[k], w.inv[k], w.dot[k]-mixed
		for i, g := range w.gain[k] {
			w.back[i] = g*z[i] - inv[i]*y[i]*over
		}
		if q := m.axes[k]; q != nil {
			backward(grad, r, q, w.back)
		} else {
			for i, v := range w.back {
				grad[i] += r * v
			}
		}
	}
}

// check refuses a query that a mixture cannot answer, and returns the number of rows.
func (m *Mixture) check(q *models.Query) (rows int, err error) {
	shape := q.X.Shape()
	rows = len(q.At)
	if q.X.Dtype() != tensor.Float64 || len(shape) == 0 || shape[0] != rows || shape.TotalSize() != rows*m.dim {
		return 0, fmt.Errorf("a state of %v and shape %v with %d nodes; want float64 of shape (%d, %d)", q.X.Dtype(), shape, rows, rows, m.dim)
	}
	if h := q.Hooks; h != nil && len(h.IdentityAttention)+len(h.SkipLayers) > 0 {
		return 0, fmt.Errorf("an analytic target has no layers to change")
	}
	if c := q.Cond; c != nil {
		if k := len(c.Classes); k != 0 && k != rows {
			return 0, fmt.Errorf("%d rows but %d classes", rows, k)
		}
		if len(c.Tensors) > 0 {
			return 0, fmt.Errorf("an analytic target takes no prepared inputs")
		}
		for _, p := range c.Prompts {
			if p != "" {
				return 0, fmt.Errorf("an analytic target takes classes, no prompts")
			}
		}
	}
	return rows, nil
}

// Predict answers with the target's prediction, one row at a time: X has the shape (rows, D) (or any other that starts
// with rows and has D numbers per row), every row its own node and class; models.NoClass asks the whole mixture. Rows
// that share a node with the row before share its tables. Errors: another shape, an unknown class, prompts or prepared
// inputs, a node where alpha and sigma are both 0, negative or not finite, an infinite velocity. A row that is not
// finite, or beyond about 1e150 standard deviations, is answered with NaN.
func (m *Mixture) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	return m.rows(ctx, q, p, nil, nil)
}

// VJP answers like Predict and writes grad = d sum(Out * cotangent) / dX, exactly. cotangent and grad are float64 of
// X's shape.
func (m *Mixture) VJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	for _, t := range []*tensor.Dense{cotangent, grad} {
		if t.Dtype() != tensor.Float64 || !t.Shape().Eq(q.X.Shape()) {
			return fmt.Errorf("analytic: cotangent and gradient want float64 of shape %v, not %v of shape %v", q.X.Shape(), t.Dtype(), t.Shape())
		}
	}
	return m.rows(ctx, q, p, models.Data(cotangent), models.Data(grad))
}

func (m *Mixture) rows(ctx context.Context, q *models.Query, p *models.Pred, cot, grad []float64) error {
	rows, err := m.check(q)
	if err != nil {
		return fmt.Errorf("analytic: %w", err)
	}
	in, out := p.Fit(q.X, m.target.Prediction)
	w := m.works.Get().(*work)
	defer m.works.Put(w)
	for i := range rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		members, _, err := m.of(q.Cond.Class(i))
		if err == nil {
			err = m.prepare(w, q.At[i], m.target.Prediction)
		}
		if err != nil {
			return fmt.Errorf("analytic: row %d: %w", i, err)
		}
		lo, hi := i*m.dim, (i+1)*m.dim
		m.locate(w, in[lo:hi], members)
		m.answer(w, out[lo:hi], members)
		if cot != nil {
			m.pullback(w, grad[lo:hi], cot[lo:hi], members)
		}
	}
	return nil
}
