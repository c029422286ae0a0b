// Package inversion follows the probability-flow ODE of a model from data to noise and back: the noise that a deterministic
// sampler would have made a sample from, and the exact log density of a sample under the model's flow (Song et al. 2021,
// arXiv 2011.13456, section 4.3 and appendix D).
//
// The flow is integrated along the nodes of a grid. On processes that end at a finite noise level it runs in
//
//	y = x/alpha,  dy/dsb = eps(x),      sb = sigma/alpha
//
// and on those that end without signal (flows) in x itself, dx/dt = velocity(x). Along it
//
//	d log p(y)/du = -div dy/du
//
// so log p of the sample is that of the noise, a Gaussian, plus the integrated divergence.
package inversion

import (
	"context"
	"errors"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/internal/rng"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// Method is how the flow is integrated.
type Method string

// The methods. Exact inverts the sampler euler (DDIM) on the same grid: every step solves for the state from which the
// sampler's step ends here, by fixed-point iteration, so that sampling gives the picture back; it costs an evaluation per
// iteration. The others are Runge-Kutta methods of order 1, 2 and 4, with 1, 2 and 4 evaluations per step.
const (
	Euler Method = "euler"
	Heun  Method = "heun"
	RK4   Method = "rk4"
	Exact Method = "exact"
)

// Methods lists the methods.
func Methods() []Method { return []Method{RK4, Heun, Euler, Exact} }

func (m Method) tableau() *samplers.Tableau {
	switch m {
	case Euler:
		return &samplers.Tableau{A: [][]float64{{}}, B: []float64{1}, C: []float64{0}}
	case Heun:
		return samplers.HeunRK
	}
	return samplers.RK4
}

// Flow is the probability flow of a model along a grid. The zero Method is RK4.
type Flow struct {
	Model  models.Denoiser
	Grid   schedules.Grid // noise to data; a last node at sigma = 0 is the data itself
	Cond   *models.Cond
	Rows   []models.Row // one per row of x; nil = none
	Meter  *models.Meter
	Method Method
	// Iterations and Tolerance end the fixed-point iteration of Exact: at most so many (0 = 50), or once the largest change
	// is below Tolerance times the largest number of the state (0 = 1e-12).
	Iterations int
	Tolerance  float64
	// Observe is told after every step how many of how many are done; may be nil.
	Observe func(done, steps int)
}

// Divergence says how the divergence is found.
type Divergence struct {
	// Probes is the number of Rademacher vectors of Hutchinson's estimate v^T J v, drawn once for the whole path by the
	// row's seed (Grathwohl et al. 2019, arXiv 1810.01367): unbiased for log p on average over seeds. 0 is exact: the trace of the
	// second derivatives of analytic targets, or one vector-Jacobian product per dimension.
	Probes int
	Seed   uint64
}

// Invert returns the noise, at the first node of the grid, that the flow carries to the data x, which it leaves alone.
func (f Flow) Invert(ctx context.Context, x *tensor.Dense) (*tensor.Dense, error) {
	z, _, err := f.follow(ctx, x, nil)
	return z, err
}

// Generate returns the data that the flow carries the noise z to: the way back of Invert, up to the error of the steps
// (Exact goes back as the sampler euler does, and meets the picture again).
func (f Flow) Generate(ctx context.Context, z *tensor.Dense) (*tensor.Dense, error) {
	r, err := f.start(z)
	if err != nil {
		return nil, err
	}
	if r.method == Exact {
		r.method = Euler
	}
	for i := range len(f.Grid) - 1 {
		if err := r.step(ctx, i, i+1); err != nil {
			return nil, err
		}
	}
	return r.x, nil
}

// LogP writes log p(x) in nats of every row under the flow, and returns the noise it was carried to, which is scored as a
// Gaussian of the start's variance (samplers.PriorScale).
func (f Flow) LogP(ctx context.Context, x *tensor.Dense, d Divergence, logp []float64) (*tensor.Dense, error) {
	if f.Method == Exact {
		return nil, errors.New("inversion: the likelihood needs a Runge-Kutta method, not exact")
	}
	z, div, err := f.follow(ctx, x, &d)
	if err != nil {
		return nil, err
	}
	n := f.Grid[0]
	s := samplers.PriorScale(n)
	v := models.Data(z)
	w := len(v) / len(div)
	for i, add := range div {
		sq := 0.0
		for _, c := range v[i*w : (i+1)*w] {
			sq += float64(c / s * (c / s))
		}
		logp[i] = -0.5*sq - float64(w)*(0.5*math.Log(2*math.Pi)+math.Log(s)) + add
		if f.inSigma() { // the density of y = x/alpha at the noise end, which is the data at the other
			logp[i] += float64(w) * math.Log(n.Alpha)
		} else {
			logp[i] += float64(w) * math.Log(f.Grid[len(f.Grid)-1].Alpha)
		}
	}
	return z, nil
}

// inSigma tells whether the flow runs in x/alpha along sigma/alpha.
func (f Flow) inSigma() bool {
	return !math.IsInf(f.Grid[0].Ratio(), 1) && f.Model.Process().Name() != "flow"
}

// run is a path under way.
type run struct {
	Flow
	gau    schedules.Gaussian
	method Method
	x      *tensor.Dense
	rows   int
	width  int

	query  models.Query
	pred   models.Pred
	slopes [][]float64 // dy/du of every stage
	divs   [][]float64 // and their divergences
	probes []*tensor.Dense
	grad   *tensor.Dense
	exact  *analytic.Mixture
	div    *Divergence
	total  []float64
	near   bool // the noise cannot be had from the answer at sigma = 0: it is asked for just beside
}

func (f Flow) start(x *tensor.Dense) (*run, error) {
	fail := func(format string, a ...any) (*run, error) { return nil, fmt.Errorf("inversion: "+format, a...) }
	if f.Method == "" {
		f.Method = RK4
	}
	switch f.Method {
	case Euler, Heun, RK4, Exact:
	default:
		return fail("unknown method %q: want one of %v", f.Method, Methods())
	}
	gau, ok := f.Model.Process().(schedules.Gaussian)
	if !ok {
		return fail("needs a Gaussian process, the model's is %s", f.Model.Process().Name())
	}
	if len(f.Grid) < 2 {
		return fail("a grid of %d nodes", len(f.Grid))
	}
	for i := 1; i < len(f.Grid); i++ {
		if !(f.Grid[i].Ratio() < f.Grid[i-1].Ratio()) {
			return fail("node %d does not lie below node %d: the grid must fall", i, i-1)
		}
	}
	shape := x.Shape()
	if x.Dtype() != tensor.Float64 || len(shape) < 2 {
		return fail("the state has type %v and shape %v, want float64 and rows", x.Dtype(), shape)
	}
	r := &run{Flow: f, gau: gau, method: f.Method, x: models.New(shape...), rows: shape[0], total: make([]float64, shape[0])}
	copy(models.Data(r.x), models.Data(x))
	r.width = x.Size() / r.rows
	if f.Rows != nil && len(f.Rows) != r.rows {
		return fail("%d rows are named for %d", len(f.Rows), r.rows)
	}
	r.query = models.Query{X: models.New(shape...), At: make([]schedules.Node, r.rows), Cond: f.Cond, Rows: f.Rows, Meter: f.Meter}
	return r, nil
}

// follow goes from data to noise.
func (f Flow) follow(ctx context.Context, x *tensor.Dense, d *Divergence) (*tensor.Dense, []float64, error) {
	r, err := f.start(x)
	if err != nil {
		return nil, nil, err
	}
	if r.div = d; d != nil {
		if err := r.prepare(); err != nil {
			return nil, nil, err
		}
	}
	n := len(f.Grid) - 1
	if last := f.Grid[n]; last.Alpha != 1 { // the data stands at the last node without its noise
		for j := range models.Data(r.x) {
			models.Data(r.x)[j] *= last.Alpha
		}
	}
	for i := n; i > 0; i-- {
		if err := r.step(ctx, i, i-1); err != nil {
			return nil, nil, err
		}
		if f.Observe != nil {
			f.Observe(n-i+1, n)
		}
	}
	return r.x, r.total, nil
}

// prepare chooses how divergences are found.
func (r *run) prepare() error {
	if r.div.Probes < 0 {
		return fmt.Errorf("inversion: %d probes", r.div.Probes)
	}
	if r.div.Probes == 0 && r.inSigma() {
		if m, ok := r.Model.(interface{ Unwrap() models.Denoiser }); ok {
			r.exact, _ = m.Unwrap().(*analytic.Mixture)
		} else {
			r.exact, _ = r.Model.(*analytic.Mixture)
		}
		if r.exact != nil {
			return nil
		}
	}
	if _, ok := models.As[models.VJP](r.Model); !ok {
		return errors.New("inversion: the divergence needs a model with gradients")
	}
	r.grad = models.New(r.x.Shape()...)
	n := r.div.Probes
	if n == 0 {
		n = r.width
	}
	for k := range n {
		v := models.New(r.x.Shape()...)
		d := models.Data(v)
		for i := range r.rows {
			row := d[i*r.width : (i+1)*r.width]
			if r.div.Probes == 0 {
				row[k] = 1
				continue
			}
			key := rng.Key{Seed: r.div.Seed, Image: uint64(i), Step: k, Purpose: rng.PurposeProbe}
			if r.Rows != nil {
				key.Seed, key.Image = r.Rows[i].Seed^r.div.Seed, uint64(r.Rows[i].Particle)
			}
			rng.Uniform(row, key)
			for j, u := range row {
				row[j] = 1
				if u < 0.5 {
					row[j] = -1
				}
			}
		}
		r.probes = append(r.probes, v)
	}
	return nil
}

// at is the place of a node on the path: sigma/alpha or t.
func (r *run) at(n schedules.Node) float64 {
	if r.inSigma() {
		return n.Ratio()
	}
	return n.T
}

// scale is alpha where the path is that of x/alpha, else 1.
func (r *run) scale(n schedules.Node) float64 {
	if r.inSigma() {
		return n.Alpha
	}
	return 1
}

// node is the node at a place; ends are kept as they are.
func (r *run) node(u float64, from, to schedules.Node) schedules.Node {
	switch u {
	case r.at(from):
		return from
	case r.at(to):
		return to
	}
	if r.inSigma() {
		return r.gau.AtRatio(u)
	}
	return r.gau.At(u)
}

// slope writes dy/du at x = alpha y, and its divergence where that is wanted.
func (r *run) slope(ctx context.Context, y []float64, n schedules.Node, i, stage int, dst, div []float64) error {
	if n.Sigma == 0 && r.near {
		n = r.beside(i)
	}
	x := models.Data(r.query.X)
	a := r.scale(n)
	for j, v := range y {
		x[j] = a * v
	}
	for k := range r.query.At {
		r.query.At[k] = n
	}
	steps := len(r.Grid) - 1
	r.query.Step = models.Step{I: i, N: steps, Stage: stage, From: r.Grid[i], To: r.Grid[i+1], Progress: float64(i) / float64(steps)}
	kind := schedules.Velocity
	if r.inSigma() {
		kind = schedules.Eps
	}
	convert := func() (cx, co float64, err error) {
		if r.pred.Renoise != nil {
			return 0, 0, errors.New("the model's answer has a separate noise to put back (cfg++, clipping): its flow is not that of one score")
		}
		return schedules.Convert(r.gau, r.pred.Kind, kind, n)
	}
	if len(r.probes) == 0 || div == nil {
		if err := r.Model.Predict(ctx, &r.query, &r.pred); err != nil {
			return err
		}
		if _, _, err := convert(); err != nil && n.Sigma == 0 && !r.near && r.inSigma() {
			r.near = true
			return r.slope(ctx, y, n, i, stage, dst, div)
		}
	}
	if div != nil {
		clear(div)
		if r.exact != nil {
			if err := r.trace(n, div); err != nil {
				return err
			}
		}
		for _, v := range r.probes {
			if err := models.VJP.VJP(mustVJP(r.Model), ctx, &r.query, &r.pred, v, r.grad); err != nil {
				return err
			}
			cx, co, err := convert()
			if err != nil && n.Sigma == 0 && !r.near && r.inSigma() {
				r.near = true
				return r.slope(ctx, y, n, i, stage, dst, div)
			}
			if err != nil {
				return err
			}
			share := 1.0
			if r.div.Probes > 0 {
				share = 1 / float64(r.div.Probes)
			}
			g, p := models.Data(r.grad), models.Data(v)
			for k := range r.rows {
				sum := 0.0
				for j := k * r.width; j < (k+1)*r.width; j++ {
					sum += p[j] * (co*g[j] + cx*p[j])
				}
				div[k] += share * a * sum
			}
		}
	}
	cx, co, err := convert()
	if err != nil {
		return err
	}
	for j, v := range models.Data(r.pred.Out) {
		dst[j] = float64(co*v) + float64(cx*x[j])
	}
	return nil
}

// beside is a node next to the clean end of step i.
func (r *run) beside(i int) schedules.Node { return r.gau.AtRatio(1e-4 * r.Grid[i].Ratio()) }

func mustVJP(d models.Denoiser) models.VJP {
	v, ok := models.As[models.VJP](d)
	if !ok {
		panic("inversion: the model's gradient is gone")
	}
	return v
}

// trace is the exact divergence on a mixture: d eps/dx = -sigma H, H the second derivatives of log p.
func (r *run) trace(n schedules.Node, div []float64) error {
	h := make([]float64, r.width*r.width)
	x := models.Data(r.query.X)
	for k := range r.rows {
		if err := r.exact.Hessian(h, x[k*r.width:(k+1)*r.width], n, r.Cond.Class(k)); err != nil {
			return err
		}
		tr := 0.0
		for j := range r.width {
			tr += h[j*r.width+j]
		}
		div[k] = -n.Alpha * n.Sigma * tr
	}
	return nil
}

// step goes from node i to node j of the grid, its neighbour.
func (r *run) step(ctx context.Context, i, j int) error {
	from, to := r.Grid[i], r.Grid[j]
	fail := func(err error) error {
		return fmt.Errorf("inversion: between sigma/alpha %.4g and %.4g: %w", from.Ratio(), to.Ratio(), err)
	}
	if r.method == Exact {
		if err := r.solve(ctx, j); err != nil {
			return fail(err)
		}
		return r.finite(to)
	}
	t := r.method.tableau()
	x := models.Data(r.x)
	h := r.at(to) - r.at(from)
	a := r.scale(from)
	y, point := make([]float64, len(x)), make([]float64, len(x))
	for k, v := range x {
		y[k] = v / a
	}
	for len(r.slopes) < len(t.B) {
		r.slopes, r.divs = append(r.slopes, make([]float64, len(x))), append(r.divs, make([]float64, r.rows))
	}
	for s := range t.B {
		copy(point, y)
		for l, c := range t.A[s] {
			if c != 0 {
				for k, v := range r.slopes[l] {
					point[k] += h * c * v
				}
			}
		}
		var div []float64
		if r.div != nil {
			div = r.divs[s]
		}
		if err := r.slope(ctx, point, r.node(r.at(from)+h*t.C[s], from, to), min(i, j), s, r.slopes[s], div); err != nil {
			return fail(err)
		}
	}
	for s, b := range t.B {
		for k, v := range r.slopes[s] {
			y[k] += h * b * v
		}
		if r.div != nil {
			for k, v := range r.divs[s] {
				r.total[k] += h * b * v
			}
		}
	}
	a = r.scale(to)
	for k, v := range y {
		x[k] = a * v
	}
	return r.finite(to)
}

// solve finds the state at node j (towards noise) from which the step of the sampler euler ends at the state that stands at
// node j+1: y = y' - h f(y), y the unknown one.
func (r *run) solve(ctx context.Context, j int) error {
	from, to := r.Grid[j+1], r.Grid[j]
	x := models.Data(r.x)
	a, b := r.scale(from), r.scale(to)
	h := r.at(from) - r.at(to)
	y, f := make([]float64, len(x)), make([]float64, len(x))
	for k, v := range x {
		y[k] = v / a
	}
	end := append([]float64(nil), y...)
	most, tol := r.Iterations, r.Tolerance
	if most == 0 {
		most = 50
	}
	if tol == 0 {
		tol = 1e-12
	}
	gap, there := make([]float64, r.rows), 0 // a row that is there moves no more, whatever stands beside it
	done := make([]bool, r.rows)
	for i := 0; i < most && there < r.rows; i++ {
		if err := r.slope(ctx, y, to, j, 0, f, nil); err != nil {
			return err
		}
		for row := range r.rows {
			if done[row] {
				continue
			}
			gap[row] = 0
			size := 1.0
			for k := row * r.width; k < (row+1)*r.width; k++ {
				next := end[k] - float64(h*f[k])
				gap[row], size = max(gap[row], math.Abs(next-y[k])), max(size, math.Abs(next))
				y[k] = next
			}
			if done[row] = gap[row] <= tol*size; done[row] {
				there++
			}
		}
	}
	for row, g := range gap {
		if !(g < 1e-3*(1+norm(y[row*r.width:(row+1)*r.width]))) {
			return fmt.Errorf("the fixed point of row %d was not found in %d iterations (last change %.3g): take more steps", row, most, g)
		}
	}
	for k, v := range y {
		x[k] = b * v
	}
	return nil
}

func norm(v []float64) float64 {
	most := 0.0
	for _, x := range v {
		most = max(most, math.Abs(x))
	}
	return most
}

func (r *run) finite(n schedules.Node) error {
	for k, v := range models.Data(r.x) {
		if v-v != 0 {
			return &samplers.NotFinite{At: n, Row: k / r.width}
		}
	}
	return nil
}
