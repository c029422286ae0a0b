package samplers

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/schedules"
)

// method is a solver: it makes one step of a run, from node s to node t, by writing r.y.
type method interface {
	Sampler
	// label names the solver in errors and saved runs.
	label() string
	// step writes the state at t into r.y. r.x is the state at s, and stays as it is.
	step(ctx context.Context, r *run, s, t schedules.Node) error
}

// renoiser marks the methods with a published form for a noise put back that differs from the predicted one
// (models.Pred.Renoise: CFG++, clipping without re-derived noise).
type renoiser interface{ renoises() bool }

// byField is a method that needs nothing of the process but its velocity at (x, t), and so runs on a schedules.Field as
// well as on a Gaussian process.
type byField interface{ byField() bool }

// run is what all solvers share. Everything that belongs to rows lives in its buffers, so that
// Select, Save and Resume work for every solver alike.
type run struct {
	p      *Problem
	m      method
	den    models.Denoiser
	path   schedules.Path     // of the model, and ...
	gau    schedules.Gaussian // ... the same if it is Gaussian, or ...
	bridge *schedules.Bridge  // ... if it is a bridge, or ...
	flow   schedules.Field    // ... if it is a field on another space
	grid   schedules.Grid
	space  Space
	last   int // node to stop at
	i      int // node where x lives
	rows   int
	dim    int // elements per row

	x, y, u    []float64 // state, next state, stage state
	xT, yT, uT *tensor.Dense

	cur    answer // stage 0 at (x, grid[i])
	peeked bool   // cur is made already
	stage  answer // last call at another point
	recent *answer

	hist []entry              // newest first
	vecs map[string][]float64 // named vectors per row that live on between steps
	nums map[string]float64   // named numbers that live on between steps
	opts map[string]float64   // options changed by Set

	free  [][]float64 // recycled vectors
	temps [][]float64 // vectors handed out in this step
	nodes []schedules.Node

	noise Noise
	draw  Draw    // last draw of step noise ...
	std   float64 // ... and what it was multiplied by
	z     []float64
	state State
	query models.Query
	from  []int // where each row's condition stands in the Problem's, nil = in place
}

// answer is a prediction with the place where it was made.
type answer struct {
	pred models.Pred
	x    []float64
	at   schedules.Node
	ok   bool
}

// entry is a vector of the history: a prediction (whatever form the solver keeps) made at a node.
type entry struct {
	At schedules.Node
	V  []float64
}

// begin starts a run of m on p: it checks the problem, draws the start, and makes the buffers.
func begin(_ context.Context, p *Problem, m method) (Run, error) {
	r, err := newRun(p, m)
	if err != nil {
		return nil, err
	}
	shape := append([]int{r.rows}, p.Shape...)
	if p.Start != nil {
		shape = p.Start.Shape()
	}
	r.allot(shape)
	if p.Start != nil {
		copy(r.x, models.Data(p.Start))
	} else {
		for k := range r.rows {
			x := r.x[k*r.dim : (k+1)*r.dim]
			if r.bridge != nil && p.Space == nil {
				if err := r.source(x, k); err != nil {
					return nil, fmt.Errorf("samplers: %s: %w", m.label(), err)
				}
				continue
			}
			r.space.Prior(x, r.grid[r.i], k, p.Rows[k], r.noise)
		}
	}
	return r, nil
}

// source draws row k from the density at the start of a bridge.
func (r *run) source(x []float64, k int) error {
	src, ok := models.As[models.Sourced](r.den)
	if !ok || r.grid[r.i].T > r.grid[r.last].T {
		return errors.New("a run on a bridge needs a start: the model cannot draw one")
	}
	z := make([]float64, len(x)+1)
	r.noise.Normal(z, Draw{Row: r.p.Rows[k], Slot: k, Step: -1, Purpose: DrawStart, From: math.Inf(1), To: r.grid[r.i].Ratio()})
	return src.Source(x, z)
}

// on puts the process into r, if m can run on it.
func (r *run) on(p schedules.Process, m method) error {
	if gau, ok := p.(schedules.Gaussian); ok {
		r.path, r.gau = gau, gau
		return nil
	}
	if b := bridgeOf(p); b != nil {
		_, able := m.(bridger)
		if f, free := m.(byField); able || free && f.byField() {
			r.path, r.bridge = b, b
			return nil
		}
		return fmt.Errorf("needs a Gaussian process, the model's is %s; on a bridge run interpolant, or euler, heun, midpoint, rk4", p.Name())
	}
	flow, ok := p.(schedules.Field)
	var s any = m
	if own, is := m.(ownSteps); is {
		s = own.stepper
	}
	if f, free := s.(byField); !ok || !free || !f.byField() {
		return fmt.Errorf("needs a Gaussian process, the model's is %s", p.Name())
	}
	r.path, r.flow = flow, flow
	return nil
}

// onSimplex tells what is wrong with a problem on a simplex.
func onSimplex(p *Problem, flow schedules.Field, last int) error {
	shape := tensor.Shape(p.Shape)
	if p.Start != nil {
		shape = p.Start.Shape()
	}
	if k := flow.Categories(); len(shape) == 0 || shape[len(shape)-1] != k {
		return fmt.Errorf("the path %s is one of %d categories, and the rows have shape %v", flow.Name(), k, shape)
	}
	for i := p.First; i < last; i++ {
		if p.Grid[i+1].Ratio() > p.Grid[i].Ratio() {
			return fmt.Errorf("the grid rises at node %d, and the path %s has no forward noise", i+1, flow.Name())
		}
	}
	return nil
}

func newRun(p *Problem, m method) (*run, error) {
	fail := func(format string, a ...any) (*run, error) {
		return nil, fmt.Errorf("samplers: %s: "+format, append([]any{m.label()}, a...)...)
	}
	den, ok := p.Model.(models.Denoiser)
	if !ok {
		return fail("needs a model that denoises, have %T", p.Model)
	}
	r := &run{}
	if err := r.on(den.Process(), m); err != nil {
		return fail("%w", err)
	}
	if len(p.Grid) < 2 {
		return fail("needs a grid of at least one step, have %d nodes", len(p.Grid))
	}
	for i, n := range p.Grid {
		if math.IsNaN(n.Ratio()) || n.Ratio() < 0 {
			return fail("node %d of the grid has sigma/alpha = %g", i, n.Ratio())
		}
	}
	last := p.Last
	if last == 0 {
		last = len(p.Grid) - 1
	}
	if p.First < 0 || last >= len(p.Grid) || p.First >= last {
		return fail("cannot run from step %d to %d of %d", p.First, last, len(p.Grid)-1)
	}
	if len(p.Rows) == 0 {
		return fail("no rows to sample")
	}
	if p.Start != nil {
		if p.Start.Dtype() != tensor.Float64 || p.Start.Shape().Dims() < 2 || p.Start.Shape()[0] != len(p.Rows) {
			return fail("the start has type %v and shape %v, want float64 and %d rows", p.Start.Dtype(), p.Start.Shape(), len(p.Rows))
		}
	} else if len(p.Shape) == 0 || tensor.Shape(p.Shape).TotalSize() <= 0 {
		return fail("the shape of a row is not known")
	}
	space := p.Space
	if r.flow == nil && space == nil {
		space = Euclid{}
	}
	if r.flow != nil {
		if err := onSimplex(p, r.flow, last); err != nil {
			return fail("%w", err)
		}
		if space == nil {
			space = Simplex{r.flow.Categories()}
		}
	}
	if _, ok := models.As[models.VJP](den); m.Needs().VJP && !ok {
		return fail("needs a model with gradients")
	}
	if p.Known != nil {
		if err := p.Known.check(len(p.Rows), m, r.gau != nil); err != nil {
			return fail("%w", err)
		}
	}
	meter := p.Meter
	if meter == nil {
		meter = &models.Meter{}
	}
	noise := p.Noise
	if noise == nil {
		noise = Streams{}
	}
	r.p, r.m, r.den, r.space, r.grid, r.last, r.i, r.rows, r.noise = p, m, den, space, p.Grid, last, p.First, len(p.Rows), noise
	r.vecs, r.nums, r.opts = map[string][]float64{}, map[string]float64{}, map[string]float64{}
	r.query = models.Query{Cond: p.Cond, Rows: slices.Clone(p.Rows), Meter: meter}
	return r, nil
}

// allot makes the state's buffers for the given shape.
func (r *run) allot(shape tensor.Shape) {
	r.rows = shape[0]
	r.dim = shape.TotalSize() / shape[0]
	n := shape.TotalSize()
	mk := func() ([]float64, *tensor.Dense) {
		v := make([]float64, n)
		return v, models.Wrap(v, shape...)
	}
	r.x, r.xT = mk()
	r.y, r.yT = mk()
	r.u, r.uT = mk()
	r.z = make([]float64, n)
	r.nodes = make([]schedules.Node, r.rows)
	r.free, r.temps = nil, nil
}

// Next implements Run.
func (r *run) Next(ctx context.Context) (bool, error) {
	if r.i >= r.last {
		return true, nil
	}
	s, t := r.grid[r.i], r.grid[r.i+1]
	r.std = 0
	var err error
	switch {
	case t.Ratio() > s.Ratio() && !r.reverses():
		r.hop(s, t)
	case t.Ratio() == s.Ratio() && !r.corrects():
		copy(r.y, r.x)
	default:
		err = r.m.step(ctx, r, s, t)
	}
	if err != nil {
		return false, fmt.Errorf("samplers: %s: step %d at sigma/alpha %.4g: %w", r.m.label(), r.i, s.Ratio(), err)
	}
	r.project(r.y)
	r.keepKnown(r.y, t)
	r.advance()
	return false, nil
}

// project puts the rows of x back onto the space.
func (r *run) project(x []float64) {
	if _, flat := r.space.(Euclid); flat {
		return
	}
	for k := range r.rows {
		r.space.Project(x[k*r.dim : (k+1)*r.dim])
	}
}

// corrects tells whether the method corrects its states one step late, and so has work to do on a repeated node.
func (r *run) corrects() bool {
	_, ok := r.m.(corrector)
	return ok
}

// reverses tells whether the method goes up in noise by itself.
func (r *run) reverses() bool {
	_, ok := r.m.(reverser)
	return ok
}

// reverser marks the methods that integrate a rising hop of the grid, in place of the forward noise that it stands for
// elsewhere.
type reverser interface{ reverses() }

// bridgeOf returns p if it is a bridge, else nil.
func bridgeOf(p schedules.Process) *schedules.Bridge {
	if b, ok := p.(schedules.Bridge); ok {
		return &b
	}
	return nil
}

// bridger marks the methods that run on a schedules.Bridge too.
type bridger interface{ bridges() }

// corrector marks the predictor-corrector methods.
type corrector interface{ corrects() }

// advance makes y the state and recycles the vectors of the step. The old state, where the prediction was made, stays
// in y until the next step writes there.
func (r *run) advance() {
	r.x, r.y = r.y, r.x
	r.xT, r.yT = r.yT, r.xT
	r.i++
	r.peeked = false
	r.free = append(r.free, r.temps...)
	r.temps = r.temps[:0]
}

// hop goes up in noise: x_t = (alpha_t/alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t sigma_s/alpha_s)^2) z, the forward
// process. History belongs to the old path and is dropped.
func (r *run) hop(s, t schedules.Node) {
	c := t.Alpha / s.Alpha
	lin(r.y, term{c, r.x})
	r.addNoise(math.Sqrt(max(0, t.Sigma*t.Sigma-c*c*s.Sigma*s.Sigma)), DrawForward, s.Ratio(), t.Ratio())
	r.forget()
	r.cur.ok = false
}

// forget drops everything a method remembers of earlier steps.
func (r *run) forget() {
	for _, e := range r.hist {
		r.free = append(r.free, e.V)
	}
	r.hist = r.hist[:0]
	clear(r.vecs)
	clear(r.nums)
}

// State implements Run.
func (r *run) State() *State {
	r.state = State{X: r.xT, At: r.grid[r.i], I: r.i, N: len(r.grid) - 1, Done: float64(r.i) / float64(len(r.grid)-1), Process: r.den.Process()}
	if r.cur.ok {
		r.state.Pred, r.state.PredAt = &r.cur.pred, r.cur.at
		switch &r.cur.x[0] {
		case &r.x[0]:
			r.state.PredX = r.xT
		case &r.y[0]:
			r.state.PredX = r.yT
		default: // a churned state
			r.state.PredX = models.Wrap(r.cur.x, r.xT.Shape()...)
		}
	}
	return &r.state
}

// predict asks the model at (x, s), once per step however often it is called, and returns the answer as the given kind.
func (r *run) predict(ctx context.Context, kind schedules.Kind) ([]float64, error) {
	if err := r.evaluate(ctx); err != nil {
		return nil, err
	}
	r.recent = &r.cur
	return r.convert(kind)
}

// evaluate makes the first call of a step, unless Peek has made it.
func (r *run) evaluate(ctx context.Context) error {
	if r.peeked {
		return nil
	}
	if err := r.ask(ctx, &r.cur, r.xT, r.x, r.grid[r.i], 0); err != nil {
		return err
	}
	r.peeked = true
	return nil
}

// predictAt asks the model at (u, n), the stage-th call of this step (stage > 0).
func (r *run) predictAt(ctx context.Context, n schedules.Node, stage int, kind schedules.Kind) ([]float64, error) {
	if r.flow != nil {
		r.project(r.u)
	}
	if err := r.ask(ctx, &r.stage, r.uT, r.u, n, stage); err != nil {
		return nil, err
	}
	r.recent = &r.stage
	return r.convert(kind)
}

func (r *run) ask(ctx context.Context, a *answer, xT *tensor.Dense, x []float64, n schedules.Node, stage int) error {
	for k := range r.nodes {
		r.nodes[k] = n
	}
	return r.askEach(ctx, a, xT, x, r.nodes, stage)
}

// askEach is ask with a node for every row.
func (r *run) askEach(ctx context.Context, a *answer, xT *tensor.Dense, x []float64, nodes []schedules.Node, stage int) error {
	return r.askWith(ctx, a, xT, x, nodes, stage, func(d models.Denoiser, q *models.Query, p *models.Pred) error { return d.Predict(ctx, q, p) })
}

// askWith is askEach with a function in place of Predict.
func (r *run) askWith(ctx context.Context, a *answer, xT *tensor.Dense, x []float64, nodes []schedules.Node, stage int, f func(models.Denoiser, *models.Query, *models.Pred) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	q := &r.query
	q.X, q.At = xT, nodes
	q.Step = models.Step{I: r.i, N: len(r.grid) - 1, Stage: stage, From: r.grid[r.i], To: r.grid[min(r.i+1, len(r.grid)-1)],
		Progress: float64(r.i) / float64(len(r.grid)-1)}
	if err := f(r.den, q, &a.pred); err != nil {
		return err
	}
	if a.pred.Renoise != nil {
		if m, ok := r.m.(renoiser); !ok || !m.renoises() {
			return fmt.Errorf("%s has no form for a separate noise put back (cfg++, clipping without re-derived noise)", r.m.label())
		}
	}
	a.x, a.at, a.ok = x, nodes[0], true
	return nil
}

// convert returns the most recent answer of this step as the given kind. The vector lives until the end of the
// step, unless it is kept.
func (r *run) convert(kind schedules.Kind) ([]float64, error) {
	a := r.recent
	if r.flow != nil {
		v := r.temp()
		return v, r.flowing(v, a.x, models.Data(a.pred.Out), a.pred.Kind, kind, a.at)
	}
	if r.bridge != nil {
		v := r.temp()
		return v, onBridge(*r.bridge, v, a.x, &a.pred, kind, a.at)
	}
	cx, co, err := schedules.Convert(r.gau, a.pred.Kind, kind, a.at)
	if err != nil {
		return nil, err
	}
	v := r.temp()
	lin(v, term{cx, a.x}, term{co, models.Data(a.pred.Out)})
	return v, nil
}

// flowing writes a prediction at (x, n) on a schedules.Field as the given kind.
func (r *run) flowing(dst, x, out []float64, from, to schedules.Kind, n schedules.Node) error {
	switch {
	case from == to:
		copy(dst, out)
		return nil
	case from == schedules.X0 && to == schedules.Velocity:
		return r.flow.Velocity(dst, x, out, n)
	}
	return fmt.Errorf("on the path %s there is no %v to be had from %v", r.flow.Name(), to, from)
}

// renoise returns the noise to put back at the end of a first-order step: the model's own eps, unless a guider asked
// for another one.
func (r *run) renoise() ([]float64, error) {
	if r.recent.pred.Renoise != nil {
		return models.Data(r.recent.pred.Renoise), nil
	}
	return r.convert(schedules.Eps)
}

// temp hands out a vector of the state's size until the end of the step.
func (r *run) temp() []float64 {
	var v []float64
	if n := len(r.free); n > 0 {
		v, r.free = r.free[n-1], r.free[:n-1]
	} else {
		v = make([]float64, len(r.x))
	}
	r.temps = append(r.temps, v)
	return v
}

// keep puts a vector that temp (or predict) handed out at the front of the history, made at node n, and drops what is
// older than depth entries.
func (r *run) keep(v []float64, n schedules.Node, depth int) {
	if k := slices.IndexFunc(r.temps, func(w []float64) bool { return &w[0] == &v[0] }); k >= 0 {
		r.temps = slices.Delete(r.temps, k, k+1)
	} else {
		panic("samplers: keep of a vector that is not a temporary of this step")
	}
	r.hist = append(r.hist, entry{})
	copy(r.hist[1:], r.hist)
	r.hist[0] = entry{n, v}
	for len(r.hist) > depth {
		r.free = append(r.free, r.hist[len(r.hist)-1].V)
		r.hist = r.hist[:len(r.hist)-1]
	}
}

// vec returns the named vector that lives on between steps, and whether it was there; a new one is zero.
func (r *run) vec(name string) (v []float64, old bool) {
	v, old = r.vecs[name]
	if !old {
		v = make([]float64, len(r.x))
		r.vecs[name] = v
	}
	return v, old
}

// opt returns option name as changed by Set, or def.
func (r *run) opt(name string, def float64) float64 {
	if v, ok := r.opts[name]; ok {
		return v
	}
	return def
}

// stepsLeft counts the steps to the end of the grid, the current one included.
func (r *run) stepsLeft() int { return len(r.grid) - 1 - r.i }

// normal draws unit step noise for every row into dst (nil: the run's own buffer) and returns it. from and to are the
// ratios of the interval that the noise belongs to.
func (r *run) normal(dst []float64, purpose Purpose, from, to float64) []float64 {
	if dst == nil {
		dst = r.z
	}
	r.draw = Draw{Step: r.i, Purpose: purpose, From: from, To: to}
	for k := range r.rows {
		d := r.draw
		d.Row, d.Slot = r.query.Rows[k], k
		r.noise.Normal(dst[k*r.dim:(k+1)*r.dim], d)
	}
	return dst
}

// addNoise adds std times unit noise to y.
func (r *run) addNoise(std float64, purpose Purpose, from, to float64) {
	if std == 0 {
		return
	}
	z := r.normal(nil, purpose, from, to)
	for j, v := range z {
		r.y[j] += std * v
	}
	r.std = std
}

// Transition implements Transitioner: the last step was N(mean, std^2), with the noise that addNoise added.
func (r *run) Transition() (*tensor.Dense, float64, error) {
	mean := models.New(r.xT.Shape()...)
	m := models.Data(mean)
	copy(m, r.x)
	if r.std != 0 {
		for j, v := range r.z {
			m[j] -= r.std * v
		}
	}
	return mean, r.std, nil
}

// Peek implements Peeker.
func (r *run) Peek(ctx context.Context) (*models.Pred, error) {
	if r.i >= r.last && r.grid[r.i].Sigma == 0 {
		return nil, fmt.Errorf("samplers: %s: no prediction to peek at: the run is done at sigma 0", r.m.label())
	}
	if err := r.evaluate(ctx); err != nil {
		return nil, err
	}
	return &r.cur.pred, nil
}

// Set implements Setter for the options that the method names.
func (r *run) Set(name string, value float64) error {
	s, ok := r.m.(interface{ settable() []string })
	if !ok || !slices.Contains(s.settable(), name) {
		return fmt.Errorf("samplers: %s has no option %q to set during a run", r.m.label(), name)
	}
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return fmt.Errorf("samplers: %s: %s = %g is not finite", r.m.label(), name, value)
	}
	r.opts[name] = value
	return nil
}

// Select implements Selector.
func (r *run) Select(parents []int, rows []models.Row) error {
	for _, k := range parents {
		if k < 0 || k >= r.rows {
			return fmt.Errorf("samplers: %s: select: no row %d in a batch of %d", r.m.label(), k, r.rows)
		}
	}
	if len(parents) == 0 || (rows == nil && len(parents) != r.rows) || (rows != nil && len(rows) != len(parents)) {
		return fmt.Errorf("samplers: %s: select: %d parents with %d rows named, batch of %d", r.m.label(), len(parents), len(rows), r.rows)
	}
	if s, ok := models.As[models.Selector](r.den); ok {
		if err := s.Select(parents); err != nil {
			return err
		}
	}
	old := *r
	shape := r.xT.Shape().Clone()
	shape[0] = len(parents)
	r.allot(shape)
	gather := func(src []float64) []float64 {
		w := len(src) / old.rows
		dst := make([]float64, w*len(parents))
		for j, k := range parents {
			copy(dst[j*w:(j+1)*w], src[k*w:(k+1)*w])
		}
		return dst
	}
	gatherT := func(t *tensor.Dense) *tensor.Dense {
		if t == nil {
			return nil
		}
		s := t.Shape().Clone()
		s[0] = len(parents)
		return models.Wrap(gather(models.Data(t)), s...)
	}
	copy(r.x, gather(old.x))
	if old.cur.ok {
		copy(r.y, gather(old.cur.x)) // the state that the last prediction was made at
		p := &r.cur.pred
		p.Out, p.Renoise, p.Extra = gatherT(p.Out), gatherT(p.Renoise), gatherT(p.Extra)
		p.Parts = slices.Clone(p.Parts)
		for i := range p.Parts {
			p.Parts[i].Out = gatherT(p.Parts[i].Out)
		}
		r.cur.x = r.y
		if r.peeked {
			r.cur.x = r.x
		}
	}
	r.stage = answer{}
	r.hist = slices.Clone(old.hist)
	for i := range r.hist {
		r.hist[i].V = gather(old.hist[i].V)
	}
	r.vecs = map[string][]float64{}
	for name, v := range old.vecs {
		r.vecs[name] = gather(v)
	}
	if rows != nil {
		r.query.Rows = slices.Clone(rows)
	}
	r.query.Cond = r.query.Cond.Select(parents)
	from := slices.Clone(parents)
	for j, k := range parents {
		if old.from != nil {
			from[j] = old.from[k]
		}
	}
	r.from = from
	r.std = 0
	return nil
}

// saved is the form of a run on disk.
type saved struct {
	Label  string
	I      int
	Shape  []int
	X, Y   []float64
	Rows   []models.Row
	From   []int
	Hist   []entry
	Vecs   map[string][]float64
	Nums   map[string]float64
	Opts   map[string]float64
	Peeked bool
	Cur    []float64
	Renew  []float64
	Extra  []float64
	ExtraS []int
	ExtraK schedules.Kind
	Kind   schedules.Kind
	CurAt  schedules.Node
	HasCur bool
	Parts  []savedPart
}

type savedPart struct {
	Name   string
	Weight float64
	Kind   schedules.Kind
	Out    []float64
}

// Save implements Saver.
func (r *run) Save(w io.Writer) error {
	s := saved{Label: r.m.label(), I: r.i, Shape: r.xT.Shape(), X: r.x, Y: r.y, Rows: r.query.Rows, From: r.from, Hist: r.hist, Vecs: r.vecs,
		Nums: r.nums, Opts: r.opts, Peeked: r.peeked, HasCur: r.cur.ok}
	if r.cur.ok {
		s.Y = r.cur.x
		s.Cur, s.Kind, s.CurAt = models.Data(r.cur.pred.Out), r.cur.pred.Kind, r.cur.at
		if t := r.cur.pred.Renoise; t != nil {
			s.Renew = models.Data(t)
		}
		if t := r.cur.pred.Extra; t != nil {
			s.Extra, s.ExtraS, s.ExtraK = models.Data(t), t.Shape(), r.cur.pred.ExtraKind
		}
		for _, p := range r.cur.pred.Parts {
			s.Parts = append(s.Parts, savedPart{p.Name, p.Weight, p.Kind, models.Data(p.Out)})
		}
	}
	if err := gob.NewEncoder(w).Encode(&s); err != nil {
		return fmt.Errorf("samplers: saving a run: %w", err)
	}
	if k, ok := models.As[models.Keeper](r.den); ok {
		return k.Save(w)
	}
	return nil
}

// resume reads a saved run of m.
func resume(p *Problem, m method, rd io.Reader) (Run, error) {
	r, err := newRun(p, m)
	if err != nil {
		return nil, err
	}
	var s saved
	if err := gob.NewDecoder(rd).Decode(&s); err != nil {
		return nil, fmt.Errorf("samplers: reading a saved run: %w", err)
	}
	if s.Label != m.label() {
		return nil, fmt.Errorf("samplers: the saved run is of %s, not of %s", s.Label, m.label())
	}
	n := tensor.Shape(s.Shape).TotalSize()
	if s.I < r.i || s.I > r.last || len(s.Shape) < 2 || len(s.X) != n || len(s.Y) != n || len(s.Rows) != s.Shape[0] || (s.HasCur && len(s.Cur) != n) {
		return nil, fmt.Errorf("samplers: the saved run does not fit the problem")
	}
	r.allot(s.Shape)
	r.i, r.peeked = s.I, s.Peeked
	copy(r.x, s.X)
	copy(r.y, s.Y)
	r.query.Rows = s.Rows
	if s.From != nil {
		for _, k := range s.From {
			if k < 0 || k >= len(p.Rows) {
				return nil, fmt.Errorf("samplers: the saved run does not fit the problem")
			}
		}
		r.from = s.From
		r.query.Cond = r.query.Cond.Select(s.From)
	}
	r.hist = s.Hist
	for name, v := range s.Vecs {
		r.vecs[name] = v
	}
	for name, v := range s.Nums {
		r.nums[name] = v
	}
	for name, v := range s.Opts {
		r.opts[name] = v
	}
	if s.HasCur {
		r.cur = answer{pred: models.Pred{Out: models.Wrap(s.Cur, s.Shape...), Kind: s.Kind}, at: s.CurAt, ok: true, x: r.y}
		if s.Peeked {
			r.cur.x = r.x
		}
		if s.Renew != nil {
			r.cur.pred.Renoise = models.Wrap(s.Renew, s.Shape...)
		}
		if s.Extra != nil {
			r.cur.pred.Extra, r.cur.pred.ExtraKind = models.Wrap(s.Extra, s.ExtraS...), s.ExtraK
		}
		for _, q := range s.Parts {
			if len(q.Out) != n {
				return nil, fmt.Errorf("samplers: the saved run does not fit the problem")
			}
			r.cur.pred.Parts = append(r.cur.pred.Parts, models.Part{Name: q.Name, Weight: q.Weight, Kind: q.Kind, Out: models.Wrap(q.Out, s.Shape...)})
		}
	}
	if k, ok := models.As[models.Keeper](r.den); ok {
		if err := k.Load(rd); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// term is a multiple of a vector.
type term struct {
	c float64
	v []float64
}

// lin writes the sum of the terms into dst in one pass. Terms with coefficient zero are left out, so that a vector
// that is not finite may stand behind a zero. dst may be one of the vectors.
func lin(dst []float64, terms ...term) {
	var buf [8]term
	ts := buf[:0]
	for _, t := range terms {
		if t.c != 0 {
			ts = append(ts, t)
		}
	}
	n := len(dst)
	switch len(ts) {
	case 0:
		clear(dst)
	case 1:
		c0, v0 := ts[0].c, ts[0].v[:n]
		for j := range dst {
			dst[j] = c0 * v0[j]
		}
	case 2:
		c0, v0, c1, v1 := ts[0].c, ts[0].v[:n], ts[1].c, ts[1].v[:n]
		for j := range dst {
			dst[j] = float64(c0*v0[j]) + float64(c1*v1[j])
		}
	case 3:
		c0, v0, c1, v1, c2, v2 := ts[0].c, ts[0].v[:n], ts[1].c, ts[1].v[:n], ts[2].c, ts[2].v[:n]
		for j := range dst {
			dst[j] = float64(c0*v0[j]) + float64(c1*v1[j]) + float64(c2*v2[j])
		}
	case 4:
		c0, v0, c1, v1 := ts[0].c, ts[0].v[:n], ts[1].c, ts[1].v[:n]
		c2, v2, c3, v3 := ts[2].c, ts[2].v[:n], ts[3].c, ts[3].v[:n]
		for j := range dst {
			dst[j] = float64(c0*v0[j]) + float64(c1*v1[j]) + float64(c2*v2[j]) + float64(c3*v3[j])
		}
	default:
		for j := range dst {
			sum := 0.0
			for _, t := range ts {
				sum += float64(t.c * t.v[j])
			}
			dst[j] = sum
		}
	}
}
