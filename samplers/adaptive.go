package samplers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"gorgonia.org/tensor"

	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// An adaptive method tries a step, estimates its error from two answers of different order, and takes the step or tries
// a shorter one. It uses only the two ends of the grid (see run.ends).
//
// By default every row has its own step sizes, so that an image does not depend on the batch it is made in: in one Next
// all rows that are still under way make one accepted step of their own, trying in lock-step; a row whose step was
// accepted waits for the others, and a row at the end is asked no more. With a joint norm (norm=batch, as the references
// do it) the rows share one error and one step size.

// stepper is the mathematics of an adaptive method. Rows are numbers of rows of the batch; what a stepper reads and
// writes of the run is described at adaptiveRun.
type stepper interface {
	Sampler
	label() string
	settable() []string
	// axis says what the method steps in.
	axis(r *run) (axis, error)
	// first gives a step size to the rows that have none.
	first(ctx context.Context, r *adaptiveRun, rows []int) error
	// try writes, for every row, the state at goal into prop and the estimate of its error into errs.
	try(ctx context.Context, r *adaptiveRun, rows []int) error
	// judge sets the next step size of row k after an estimate e (never NaN), and tells whether the step is taken. again
	// says that the row has been refused in this step before.
	judge(r *adaptiveRun, k int, e float64, again bool) bool
	// taken is called when row k makes its step. It tells whether it put the prediction at prop into q.
	taken(r *adaptiveRun, k int) bool
}

// axis is the variable that an adaptive method steps in and the kind of prediction that it asks for.
type axis struct {
	kind  schedules.Kind
	value func(schedules.Node) float64
	node  func(float64) schedules.Node
	near  float64 // a step that ends this near to the end goes on to it
}

// ownSteps makes a method of a stepper, so that its runs share everything but the steps with all others.
type ownSteps struct{ stepper }

func (ownSteps) step(context.Context, *run, schedules.Node, schedules.Node) error {
	panic("samplers: an adaptive run makes its own steps")
}

// Phases of a row.
const (
	stepping = iota // on the way to adaptiveRun.end
	cleaning        // there, with the first-order step onto sigma = 0 left
	arrived
)

// adaptiveRun is a run of a stepper. What lives on between steps lies in the vectors of run, per row.
type adaptiveRun struct {
	*run
	s      stepper
	ax     axis
	end    schedules.Node // the last node but for a clean end
	clean  bool           // the grid goes on from end to sigma = 0
	to     float64        // the axis at end
	joint  bool           // one error and one step size for all rows
	worst  bool           // the joint error is the largest, not the root of the mean square
	memory bool           // the model remembers its first-stage answers
	single bool           // something between the run and the leaf model may look at Query.Step

	at    []float64 // where the row lives on the axis
	ctl   []float64 // three numbers of the step control, the first of which is the step size (0 = none yet)
	phase []float64
	fresh []float64 // 1: q holds the prediction at x
	q     []float64 // the first-stage prediction, of the axis's kind
	probs []float64 // the same as the model gave it, on a schedules.Field
	x0    []float64 // the last one that a step was made with, as data; made at y
	was   []float64 // the node where that was, three numbers
	prev  []float64 // of the stepper

	// The step under way.
	from, goal []schedules.Node // where the row starts and where it wants to go
	next       []float64        // goal on the axis
	prop       []float64        // the state there
	errs       []float64
	added      []float64 // standard deviation of the noise to add
	k          [7][]float64
	where      []schedules.Node

	pack  []float64
	pred  models.Pred
	peek  models.Pred
	known []int // the rows that cond and names belong to
	cond  *models.Cond
	names []models.Row
}

const control = 3 // width of ctl

// ends returns the last noisy node of a sampler that places its own nodes, and whether the grid goes on from there to a
// clean end. The nodes between the ends of the grid have no say, except that a clean end is stepped onto from the last
// noisy node of the grid or from the process's usual last time (Range), whichever has less noise.
func (r *run) ends() (end schedules.Node, clean bool, err error) {
	fail := func(format string, a ...any) (schedules.Node, bool, error) {
		return schedules.Node{}, false, fmt.Errorf("samplers: %s: "+format, append([]any{r.m.label()}, a...)...)
	}
	g := r.grid[r.p.First : r.last+1]
	for i := range g[1:] {
		if g[i+1].Ratio() > g[i].Ratio() {
			return fail("places its own nodes between the ends of the grid, which rises at node %d", r.p.First+i+1)
		}
	}
	start, end := g[0], g[len(g)-1]
	if end.Ratio() == start.Ratio() {
		return fail("the two ends of the grid are the same, sigma/alpha %g", end.Ratio())
	}
	if end.Sigma > 0 {
		return end, false, nil
	}
	end = start
	for _, n := range g {
		if n.Sigma > 0 {
			end = n
		}
	}
	usual := false
	if p, ok := r.path.(schedules.Ranger); ok {
		_, data := p.Range()
		if n := r.path.At(data); n.Sigma > 0 {
			usual = true
			if n.Ratio() < end.Ratio() {
				end = n
			}
		}
	}
	if !usual && end == start {
		return fail("the grid goes from sigma/alpha %g onto 0, and %s does not say where its noise ends: give the grid a last noisy node", start.Ratio(), r.path.Name())
	}
	return end, true, nil
}

func beginAdaptive(ctx context.Context, p *Problem, s stepper, joint, worst bool) (Run, error) {
	base, err := begin(ctx, p, ownSteps{s})
	if err != nil {
		return nil, err
	}
	r, err := newAdaptive(base.(*run), s, joint, worst)
	if err != nil {
		return nil, err
	}
	n := r.rows
	for name, width := range r.widths() {
		r.vecs[name] = make([]float64, n*width)
	}
	start := r.ax.value(r.grid[r.i])
	for k := range n {
		r.vecs["at"][k] = start
		if start == r.to {
			r.vecs["phase"][k] = cleaning
		}
	}
	r.bind()
	return r, nil
}

func resumeAdaptive(p *Problem, s stepper, joint, worst bool, rd io.Reader) (Run, error) {
	base, err := resume(p, ownSteps{s}, rd)
	if err != nil {
		return nil, err
	}
	r, err := newAdaptive(base.(*run), s, joint, worst)
	if err != nil {
		return nil, err
	}
	for name, width := range r.widths() {
		if len(r.vecs[name]) != r.rows*width {
			return nil, fmt.Errorf("samplers: the saved run does not fit the problem")
		}
	}
	r.bind()
	return r, nil
}

func newAdaptive(base *run, s stepper, joint, worst bool) (*adaptiveRun, error) {
	r := &adaptiveRun{run: base, s: s, joint: joint, worst: worst}
	var err error
	if r.end, r.clean, err = r.ends(); err != nil {
		return nil, err
	}
	if r.ax, err = s.axis(base); err != nil {
		return nil, fmt.Errorf("samplers: %s: %w", s.label(), err)
	}
	r.to = r.ax.value(r.end)
	if _, r.memory = models.As[models.Selector](r.den); r.memory && !joint {
		return nil, fmt.Errorf("samplers: %s: the model remembers earlier answers of the batch, and its rows cannot go their own ways: use norm=batch", s.label())
	}
	if w, ok := r.den.(models.Wrapper); ok { // models.Metered is one wrapper; what is below it may be a guider
		_, r.single = w.Unwrap().(models.Wrapper)
	}
	return r, nil
}

// widths names the vectors of the run with their width per row.
func (r *adaptiveRun) widths() map[string]int {
	w := map[string]int{"at": 1, "ctl": control, "phase": 1, "fresh": 1, "q": r.dim, "x0": r.dim, "was": 3, "prev": r.dim}
	if r.flow != nil {
		w["probs"] = r.dim
	}
	return w
}

// bind takes the vectors out of the map and makes the buffers of a step.
func (r *adaptiveRun) bind() {
	v := r.vecs
	r.at, r.ctl, r.phase, r.fresh, r.q, r.x0, r.was, r.prev = v["at"], v["ctl"], v["phase"], v["fresh"], v["q"], v["x0"], v["was"], v["prev"]
	r.probs = v["probs"]
	r.from, r.goal, r.where = make([]schedules.Node, r.rows), make([]schedules.Node, r.rows), make([]schedules.Node, r.rows)
	r.next, r.errs, r.added = make([]float64, r.rows), make([]float64, r.rows), make([]float64, r.rows)
	r.prop, r.pack = make([]float64, len(r.x)), make([]float64, len(r.x))
	r.k = [7][]float64{}
	r.known = nil
}

// answers returns the i-th buffer for predictions (or whatever else a stepper keeps of a step).
func (r *adaptiveRun) answers(i int) []float64 {
	if r.k[i] == nil {
		r.k[i] = make([]float64, len(r.x))
	}
	return r.k[i]
}

// row is row k of a vector of the state's size.
func (r *adaptiveRun) row(v []float64, k int) []float64 { return v[k*r.dim : (k+1)*r.dim] }

// steps counts the accepted steps of the row that has made most.
func (r *adaptiveRun) steps() int { return int(r.nums["steps"]) }

// node returns where row k lives.
func (r *adaptiveRun) node(k int) schedules.Node {
	start := r.grid[r.p.First]
	switch v := r.at[k]; {
	case r.phase[k] == arrived:
		return r.grid[r.last]
	case v == r.to:
		return r.end
	case v == r.ax.value(start):
		return start
	default:
		return r.ax.node(v)
	}
}

// under returns the rows that are still under way.
func (r *adaptiveRun) under() []int {
	var rows []int
	for k, p := range r.phase {
		if p != arrived {
			rows = append(rows, k)
		}
	}
	return rows
}

// Next implements Run: one accepted step for every row that is still under way. After an error the run stands where it
// stood before.
func (r *adaptiveRun) Next(ctx context.Context) (bool, error) {
	rows := r.under()
	if len(rows) == 0 {
		return true, nil
	}
	ctl := slices.Clone(r.ctl)
	err := r.attempt(ctx, rows)
	if err == nil {
		err = r.commit(rows)
	}
	if err != nil {
		copy(r.ctl, ctl)
		at := r.State().At
		var nan *NotFinite
		if errors.As(err, &nan) {
			return false, err
		}
		return false, fmt.Errorf("samplers: %s: step %d at sigma/alpha %.4g: %w", r.s.label(), r.steps(), at.Ratio(), err)
	}
	return false, nil
}

// attempt finds an accepted step for every row and leaves its end in prop, next and goal.
func (r *adaptiveRun) attempt(ctx context.Context, rows []int) error {
	if err := r.look(ctx, rows); err != nil {
		return err
	}
	clear(r.added)
	var open []int
	for _, k := range rows {
		for _, v := range r.row(r.q, k) {
			if v-v != 0 {
				return &NotFinite{Step: r.steps(), At: r.node(k), Row: k, Answer: true}
			}
		}
		if r.phase[k] == stepping {
			open = append(open, k)
			continue
		}
		p := r.row(r.prop, k) // x_t = alpha_t x0
		if err := r.data(k, p); err != nil {
			return err
		}
		lin(p, term{r.grid[r.last].Alpha, p})
	}
	if len(open) == 0 {
		return nil
	}
	if err := r.s.first(ctx, r, open); err != nil {
		return err
	}
	for again := false; len(open) > 0; again = true {
		for _, k := range open {
			if err := r.aim(k, again); err != nil {
				return err
			}
		}
		if err := r.s.try(ctx, r, open); err != nil {
			return err
		}
		r.agree(r.errs, open)
		var refused []int
		for _, k := range open {
			e := r.errs[k]
			if math.IsNaN(e) { // a step so long that something overflowed
				e = math.Inf(1)
			}
			if !r.s.judge(r, k, e, again) {
				refused = append(refused, k)
			}
		}
		open = refused
	}
	return nil
}

// aim sets the goal of row k from its step size, the end of the axis at most.
func (r *adaptiveRun) aim(k int, again bool) error {
	h := &r.ctl[k*control]
	least := 10 * ulp(max(math.Abs(r.at[k]), math.Abs(r.to)))
	if !(*h >= least) {
		if e := r.errs[k]; again && e-e != 0 {
			return &NotFinite{Step: r.steps(), At: r.node(k), Row: k, Answer: true}
		} else if again {
			return fmt.Errorf("row %d: no step is short enough for the tolerances (the last was %.3g)", k, *h)
		}
		*h = least
	}
	dir := 1.0
	if r.to < r.at[k] {
		dir = -1
	}
	v := r.at[k] + dir*(*h)
	if dir*(r.to-v) <= max(r.ax.near, least) {
		r.next[k], r.goal[k] = r.to, r.end
	} else {
		r.next[k], r.goal[k] = v, r.ax.node(v)
	}
	return nil
}

func ulp(x float64) float64 { return math.Nextafter(x, math.Inf(1)) - x }

// agree gives all rows one value where they have a joint norm.
func (r *adaptiveRun) agree(v []float64, rows []int) {
	if !r.joint {
		return
	}
	c := 0.0
	for _, k := range rows {
		if r.worst {
			c = max(c, v[k])
		} else {
			c += float64(v[k] * v[k])
		}
	}
	if !r.worst {
		c = math.Sqrt(c / float64(len(rows)))
	}
	for _, k := range rows {
		v[k] = c
	}
}

// commit makes the steps that were found.
func (r *adaptiveRun) commit(rows []int) error {
	if n, ok := r.noise.(*Recorded); ok && r.steps() >= n.steps && slices.ContainsFunc(r.added, func(s float64) bool { return s != 0 }) {
		return fmt.Errorf("the recorded noise ends after %d steps", n.steps)
	}
	for _, k := range rows {
		if err := r.data(k, r.row(r.x0, k)); err != nil {
			return err
		}
	}
	_, flat := r.space.(Euclid)
	for _, k := range rows {
		x, n := r.row(r.x, k), r.from[k]
		copy(r.row(r.y, k), x)
		copy(r.was[3*k:], []float64{n.T, n.Alpha, n.Sigma})
		copy(x, r.row(r.prop, k))
		r.fresh[k] = 0
		if r.phase[k] == cleaning {
			r.phase[k] = arrived
		} else {
			if r.s.taken(r, k) && flat && !r.memory {
				r.fresh[k] = 1
			}
			if r.added[k] != 0 {
				z := r.row(r.z, k)
				r.noise.Normal(z, Draw{Row: r.query.Rows[k], Slot: k, Step: r.steps(), Purpose: DrawStep, From: r.from[k].Ratio(), To: r.goal[k].Ratio()})
				lin(x, term{1, x}, term{r.added[k], z})
			}
			r.at[k] = r.next[k]
			if r.at[k] == r.to {
				r.phase[k] = arrived
				if r.clean {
					r.phase[k] = cleaning
				}
			}
		}
		if !flat {
			r.space.Project(x)
		}
	}
	r.nums["steps"]++
	if len(r.under()) == 0 {
		r.i = r.last
	}
	return nil
}

// data writes the first-stage prediction of row k as data into dst.
func (r *adaptiveRun) data(k int, dst []float64) error {
	if r.flow != nil {
		copy(dst, r.row(r.probs, k))
		return nil
	}
	cx, co, err := schedules.Convert(r.gau, r.ax.kind, schedules.X0, r.node(k))
	if err != nil {
		return err
	}
	lin(dst, term{cx, r.row(r.x, k)}, term{co, r.row(r.q, k)})
	return nil
}

// look makes the first call of a step for the rows that do not have its answer yet.
func (r *adaptiveRun) look(ctx context.Context, rows []int) error {
	var ask []int
	for _, k := range rows {
		r.from[k], r.goal[k] = r.node(k), r.grid[r.last]
		r.where[k] = r.from[k]
		if r.fresh[k] == 0 {
			ask = append(ask, k)
		}
	}
	if len(ask) == 0 {
		return nil
	}
	if err := r.ask(ctx, ask, r.x, 0, r.q); err != nil {
		return err
	}
	for _, k := range ask {
		r.fresh[k] = 1
	}
	return nil
}

// ask makes the stage-th call of a step: row k is asked at the state in u and at where, and its answer is written into
// out as the axis's kind. One call serves all the rows, but where something between here and the leaf model may look at
// the step, which a query has one of, rows at different places are asked one after the other.
func (r *adaptiveRun) ask(ctx context.Context, rows []int, u []float64, stage int, out []float64) error {
	for len(rows) > 0 {
		part, rest := rows, []int(nil)
		if r.single {
			v := r.at[rows[0]]
			part = nil
			for _, k := range rows {
				if r.at[k] == v {
					part = append(part, k)
				} else {
					rest = append(rest, k)
				}
			}
		}
		if err := r.call(ctx, part, u, stage, out); err != nil {
			return err
		}
		rows = rest
	}
	return nil
}

func (r *adaptiveRun) call(ctx context.Context, rows []int, u []float64, stage int, out []float64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !slices.Equal(rows, r.known) {
		r.known, r.cond, r.names = slices.Clone(rows), r.query.Cond, r.query.Rows
		if len(rows) < r.rows {
			r.cond, r.names = r.query.Cond.Select(rows), nil
			for _, k := range rows {
				r.names = append(r.names, r.query.Rows[k])
			}
		}
	}
	shape := r.xT.Shape().Clone()
	shape[0] = len(rows)
	q := r.query
	q.At, q.Cond, q.Rows = nil, r.cond, r.names
	for j, k := range rows {
		if r.flow != nil && stage > 0 {
			r.space.Project(r.row(u, k))
		}
		copy(r.pack[j*r.dim:], r.row(u, k))
		q.At = append(q.At, r.where[k])
	}
	q.X = models.Wrap(r.pack[:len(rows)*r.dim], shape...)
	k := rows[0]
	q.Step = models.Step{I: r.steps(), Stage: stage, From: r.from[k], To: r.goal[k], Progress: r.progress(k)}
	if err := r.den.Predict(ctx, &q, &r.pred); err != nil {
		return err
	}
	if r.pred.Renoise != nil {
		return fmt.Errorf("%s has no form for a separate noise put back (cfg++, clipping without re-derived noise)", r.s.label())
	}
	got := models.Data(r.pred.Out)
	for j, k := range rows {
		if p := got[j*r.dim : (j+1)*r.dim]; r.flow != nil {
			if stage == 0 {
				copy(r.row(r.probs, k), p)
			}
			if err := r.flowing(r.row(out, k), r.row(u, k), p, r.pred.Kind, r.ax.kind, r.where[k]); err != nil {
				return err
			}
			continue
		}
		cx, co, err := schedules.Convert(r.gau, r.pred.Kind, r.ax.kind, r.where[k])
		if err != nil {
			return err
		}
		lin(r.row(out, k), term{cx, r.row(u, k)}, term{co, got[j*r.dim : (j+1)*r.dim]})
	}
	return nil
}

// progress returns how far row k is, in the logarithm of the noise (in time where the grid starts without signal).
func (r *adaptiveRun) progress(k int) float64 {
	n, start, end := r.node(k), r.grid[r.p.First], r.grid[r.last]
	if r.phase[k] == arrived {
		return 1
	}
	if start.Alpha == 0 {
		return (n.T - start.T) / (end.T - start.T)
	}
	far := func(n schedules.Node) float64 { return math.Log1p(n.Ratio() / r.end.Ratio()) }
	return (far(start) - far(n)) / (far(start) - far(end))
}

// State implements Run. N is 0: the number of steps is not known.
func (r *adaptiveRun) State() *State {
	s := &r.state
	*s = State{X: r.xT, At: r.node(0), I: r.steps(), Done: 1, Process: r.path}
	same := true
	for k := range r.rows {
		n := r.node(k)
		same = same && n == s.At
		if n.Ratio() > s.At.Ratio() {
			s.At = n
		}
		s.Done = min(s.Done, r.progress(k))
	}
	if !same {
		for k := range r.rows {
			s.Each = append(s.Each, r.node(k))
		}
	}
	if s.I > 0 {
		s.Pred, s.PredX = &models.Pred{Out: models.Wrap(r.x0, r.xT.Shape()...), Kind: schedules.X0}, r.yT
		for k := range r.rows {
			w := r.was[3*k:]
			if n := (schedules.Node{T: w[0], Alpha: w[1], Sigma: w[2]}); k == 0 || n.Ratio() > s.PredAt.Ratio() {
				s.PredAt = n
			}
		}
	}
	return s
}

// Peek implements Peeker. The answer is the data, whatever the model predicts: rows stand at different nodes.
func (r *adaptiveRun) Peek(ctx context.Context) (*models.Pred, error) {
	var rows []int
	for k := range r.rows {
		if r.node(k).Sigma > 0 {
			rows = append(rows, k)
		}
	}
	if len(rows) == 0 {
		return nil, fmt.Errorf("samplers: %s: no prediction to peek at: the run is done at sigma 0", r.s.label())
	}
	if err := r.look(ctx, rows); err != nil {
		return nil, err
	}
	_, out := r.peek.Fit(r.xT, schedules.X0)
	copy(out, r.x) // a clean state is its own data
	for _, k := range rows {
		if err := r.data(k, r.row(out, k)); err != nil {
			return nil, err
		}
	}
	return &r.peek, nil
}

// Transition implements Transitioner.
func (r *adaptiveRun) Transition() (*tensor.Dense, float64, error) {
	for _, s := range r.added {
		if s != r.added[0] {
			return nil, 0, fmt.Errorf("samplers: %s: the last steps of the rows had different noise (%g and %g): use norm=batch", r.s.label(), r.added[0], s)
		}
	}
	r.std = r.added[0]
	return r.run.Transition()
}

// Set implements Setter.
func (r *adaptiveRun) Set(name string, value float64) error {
	least := 0.0
	if name != "eta" {
		least = leastTol
	}
	if value < least {
		return fmt.Errorf("samplers: %s: %s = %g: want %g or more", r.s.label(), name, value, least)
	}
	return r.run.Set(name, value)
}

// Select implements Selector.
func (r *adaptiveRun) Select(parents []int, rows []models.Row) error {
	y := r.y
	if err := r.run.Select(parents, rows); err != nil {
		return err
	}
	r.bind()
	for j, k := range parents {
		copy(r.row(r.y, j), r.row(y, k))
	}
	return nil
}

// RK45 is the method of Dormand and Prince (1980): an explicit Runge-Kutta pair of orders 5 and 4 of the probability-flow
// ODE, over sigma or over time (see Variable), with SciPy's step control:
//
//	e = RMS( h SUM_i (b_i - b*_i) k_i / (Atol + Rtol max(|x|, |x'|)) )
//
// A step is taken when e < 1, and h is multiplied by 0.9 e^(-1/5), kept in [0.2, 10] (in [0.2, 1] after a refusal). The
// first step is that of Hairer, Norsett and Wanner, II.4, and takes one evaluation; every try takes 6, for the last one is
// the first of the next step. The error is that of a row, or with Joint of the batch. A clean end is stepped onto from the
// last noisy node with x = x0 (see Needs.OwnGrid).
type RK45 struct {
	Rtol, Atol float64 // 0 = 1e-5
	Variable   Variable
	Joint      bool // one step size for the batch, as SciPy does
}

// The tableau of Dormand and Prince, and the difference of its two rows of weights.
var (
	dormandPrince = &Tableau{"rk45", [][]float64{
		{},
		{1. / 5},
		{3. / 40, 9. / 40},
		{44. / 45, -56. / 15, 32. / 9},
		{19372. / 6561, -25360. / 2187, 64448. / 6561, -212. / 729},
		{9017. / 3168, -355. / 33, 46732. / 5247, 49. / 176, -5103. / 18656},
		{35. / 384, 0, 500. / 1113, 125. / 192, -2187. / 6784, 11. / 84},
	}, []float64{35. / 384, 0, 500. / 1113, 125. / 192, -2187. / 6784, 11. / 84, 0}, []float64{0, 1. / 5, 3. / 10, 4. / 5, 8. / 9, 1, 1}}
	dormandPrinceError = []float64{-71. / 57600, 0, 71. / 16695, -71. / 1920, 17253. / 339200, -22. / 525, 1. / 40}
)

// leastTol is the smallest tolerance that float64 can meet.
const leastTol = 1e-13

func init() {
	register(Info{Name: "rk45", Order: "5", NFE: "6 per try", Summary: "adaptive Runge-Kutta pair 5(4); an accuracy reference", Source: "Dormand and Prince 1980; SciPy solve_ivp RK45",
		Aliases: []string{"dopri5"},
		Options: []Option{{"rtol", "1e-5", "relative tolerance"}, {"atol", "1e-5", "absolute tolerance"},
			{"variable", "auto", "sigma: d xb/d sb = eps; time: dx/dt = velocity; auto: time from a node without signal, else sigma"},
			{"norm", "image", "image: every image has its own steps; batch: one error and one step size for the batch"}},
		New: func(o *spec.Options) (Sampler, error) {
			return RK45{Rtol: o.FloatIn("rtol", 1e-5, leastTol, 1), Atol: o.FloatIn("atol", 1e-5, leastTol, math.MaxFloat64), Variable: readVariable(o), Joint: readNorm(o)}, nil
		}})
}

func readNorm(o *spec.Options) (joint bool) { return o.Choice("norm", "image", "batch") == "batch" }

func (m RK45) axis(r *run) (axis, error) {
	start := r.grid[r.p.First]
	v := m.Variable.over(r, schedules.Grid{start})
	if v == BySigma && start.Alpha == 0 {
		return axis{}, errors.New("sigma is infinite at a node without signal (alpha = 0): use variable=time, or start later (--t-start)")
	}
	f, _, _ := v.field(r, start, start)
	value := schedules.Node.Ratio
	if v == ByTime {
		value = func(n schedules.Node) float64 { return n.T }
	}
	return axis{kind: f.kind, value: value, node: f.node}, nil
}

// tol returns the two tolerances, changed by Set or not.
func (r *adaptiveRun) tol(rtol, atol float64) (float64, float64) {
	return r.opt("rtol", rtol), r.opt("atol", atol)
}

func (m RK45) tolerances(r *adaptiveRun) (rtol, atol float64) {
	return r.tol(cmpOr(m.Rtol, 1e-5), cmpOr(m.Atol, 1e-5))
}

func cmpOr(v, def float64) float64 {
	if v == 0 {
		return def
	}
	return v
}

func (m RK45) first(ctx context.Context, r *adaptiveRun, rows []int) error {
	var ask []int
	for _, k := range rows {
		if r.ctl[k*control] == 0 {
			ask = append(ask, k)
		}
	}
	if len(ask) == 0 {
		return nil
	}
	rtol, atol := m.tolerances(r)
	f := field{r.ax.kind, r.run}
	size, slope, curve := make([]float64, r.rows), make([]float64, r.rows), make([]float64, r.rows)
	norm := func(k int, of func(j int) float64) float64 {
		sum, out := 0.0, f.out(r.from[k])
		for j, v := range r.row(r.x, k) {
			d := of(j) / (atol + float64(rtol*math.Abs(out*v)))
			sum += float64(d * d)
		}
		return math.Sqrt(sum / float64(r.dim))
	}
	for _, k := range ask {
		x, q, out := r.row(r.x, k), r.row(r.q, k), f.out(r.from[k])
		size[k] = norm(k, func(j int) float64 { return out * x[j] })
		slope[k] = norm(k, func(j int) float64 { return q[j] })
	}
	r.agree(size, ask)
	r.agree(slope, ask)
	h0 := make([]float64, r.rows)
	for _, k := range ask {
		way := r.to - r.at[k]
		h0[k] = 1e-6
		if size[k] >= 1e-5 && slope[k] >= 1e-5 {
			h0[k] = 0.01 * size[k] / slope[k]
		}
		h0[k] = min(h0[k], math.Abs(way))
		n := r.end
		if h0[k] < math.Abs(way) {
			n = r.ax.node(r.at[k] + math.Copysign(h0[k], way))
		}
		r.where[k] = n
		lin(r.row(r.u, k), term{f.into(n) * f.out(r.from[k]), r.row(r.x, k)}, term{f.into(n) * math.Copysign(h0[k], way), r.row(r.q, k)})
	}
	f1 := r.answers(1)
	if err := r.ask(ctx, ask, r.u, 1, f1); err != nil {
		return err
	}
	for _, k := range ask {
		a, b := r.row(r.q, k), r.row(f1, k)
		curve[k] = norm(k, func(j int) float64 { return b[j] - a[j] }) / h0[k]
	}
	r.agree(curve, ask)
	for _, k := range ask {
		h := max(1e-6, h0[k]*1e-3)
		if d := max(slope[k], curve[k]); d > 1e-15 {
			h = math.Pow(0.01/d, 1./5)
		}
		r.ctl[k*control] = min(100*h0[k], h, math.Abs(r.to-r.at[k]))
	}
	return nil
}

func (m RK45) try(ctx context.Context, r *adaptiveRun, rows []int) error {
	f := field{r.ax.kind, r.run}
	tab := dormandPrince
	stages := len(tab.C)
	r.k[0] = r.q
	for i := 1; i < stages; i++ {
		for _, k := range rows {
			h := r.next[k] - r.at[k]
			n := r.goal[k]
			if tab.C[i] != 1 {
				n = r.ax.node(r.at[k] + tab.C[i]*h)
			}
			r.where[k] = n
			var terms [8]term
			terms[0] = term{f.into(n) * f.out(r.from[k]), r.row(r.x, k)}
			for j, a := range tab.A[i] {
				terms[1+j] = term{f.into(n) * h * a, r.row(r.k[j], k)}
			}
			lin(r.row(r.u, k), terms[:1+len(tab.A[i])]...)
		}
		if err := r.ask(ctx, rows, r.u, i, r.answers(i)); err != nil {
			return err
		}
	}
	rtol, atol := m.tolerances(r)
	for _, k := range rows {
		h := r.next[k] - r.at[k]
		before, after := r.row(r.x, k), r.row(r.u, k) // the last stage was asked at the end of the step
		a, b := f.out(r.from[k]), f.out(r.goal[k])
		sum := 0.0
		for j := range after {
			d := 0.0
			for i, w := range dormandPrinceError {
				d += float64(w * r.k[i][k*r.dim+j])
			}
			d = h * d / (atol + float64(rtol*max(math.Abs(a*before[j]), math.Abs(b*after[j]))))
			sum += float64(d * d)
		}
		r.errs[k] = math.Sqrt(sum / float64(r.dim))
		copy(r.row(r.prop, k), after)
	}
	return nil
}

func (m RK45) judge(r *adaptiveRun, k int, e float64, again bool) bool {
	h := math.Abs(r.next[k] - r.at[k])
	factor := 0.9 * math.Pow(e, -1./5)
	switch {
	case e >= 1:
		factor = max(0.2, factor)
	case again:
		factor = min(1, factor)
	default:
		factor = min(10, factor)
	}
	r.ctl[k*control] = h * factor
	return e < 1
}

func (RK45) taken(r *adaptiveRun, k int) bool {
	copy(r.row(r.q, k), r.row(r.k[len(dormandPrince.C)-1], k))
	return true
}

func (m RK45) byField() bool { return m.Variable != BySigma }

func (RK45) settable() []string { return []string{"rtol", "atol"} }

// Begin implements Sampler.
func (m RK45) Begin(ctx context.Context, p *Problem) (Run, error) {
	return beginAdaptive(ctx, p, m, m.Joint, false)
}

// Resume implements Resumer.
func (m RK45) Resume(_ context.Context, p *Problem, rd io.Reader) (Run, error) {
	return resumeAdaptive(p, m, m.Joint, false, rd)
}

// Needs implements Sampler.
func (RK45) Needs() Needs { return Needs{OwnGrid: true} }

func (RK45) label() string { return "rk45" }

// DPMAdaptive is DPM-Solver-12 or -23 (arXiv 2206.00927, algorithm 3 and appendix C): the singlestep solvers of two
// neighbouring orders, which share their evaluations, and whose difference is the error of a step in lambda:
//
//	e = RMS( (high - low) / max(Atol, Rtol max(|low|, |low of the step before|)) )
//
// The step is made with the higher order. With k-diffusion's controller states are compared in the scale of the data
// (x/alpha), and h is multiplied by f = 1 + atan(u - 1), u = e^(-(P+I+D)/k) e1^((P+2D)/k) e2^(-D/k), with e1
// and e2 of the two accepted steps before and k the order (1.5 with Eta); a step with f >= Safety is taken. With DPM-Solver's
// own controller states are compared as they are, a step with e <= 1 is taken, and h is multiplied by Safety e^(-1/k): nothing
// limits its growth, so that a step with next to no error (as the first ones from much noise are) can be followed by one
// that is too long to notice what it misses. Prefer the other.
//
// Order evaluations per try; a try after a refusal keeps the first of them. (The references ask it again.) With Eta the
// step goes down to less noise than the goal's and fresh noise is added (see DDIM). A clean end is stepped onto from the
// last noisy node with x = x0 (see Needs.OwnGrid). The start must have signal.
type DPMAdaptive struct {
	Order      int            // 2 or 3; 0 = 3
	Kind       schedules.Kind // Eps (DPM-Solver) or X0 (DPM-Solver++)
	Rtol, Atol float64        // 0 = 0.05, 0.0078
	HInit      float64        // first step in lambda; 0 = 0.05
	Safety     float64        // 0 = 0.81 (0.9 with DPM-Solver's controller)
	P, I, D    float64        // all 0 = 0, 1, 0
	Plain      bool           // DPM-Solver's controller
	Eta        float64
	SNoise     float64 // 0 = 1
	Joint      bool    // one step size for the batch, as the references do: the error is the RMS (Plain: the largest) of the rows
}

func init() {
	register(Info{Name: "dpm-adaptive", Order: "k", NFE: "k per try", Summary: "adaptive DPM-Solver-12 or -23", Source: "DPM-Solver, arXiv 2206.00927, appendix C; k-diffusion sample_dpm_adaptive",
		Aliases: []string{"DPM adaptive", "dpm_adaptive", "k_dpm_ad"},
		Options: []Option{{"order", "3", "2 or 3"}, {"rtol", "0.05", "relative tolerance"}, {"atol", "0.0078", "absolute tolerance"},
			{"form", "eps", "eps or x0"}, {"h-init", "0.05", "first step in lambda"},
			{"controller", "pid", "pid (k-diffusion) or dpm-solver"}, {"accept-safety", "0.81", "of pid: a step is taken when its factor is at least this"},
			{"pcoeff", "0", "of pid"}, {"icoeff", "1", "of pid"}, {"dcoeff", "0", "of pid"}, {"theta", "0.9", "of dpm-solver: safety factor"},
			{"eta", "0", "share of fresh noise (pid)"}, {"s-noise", "1", "multiplies the noise"},
			{"norm", "image", "image: every image has its own steps; batch: one error and one step size for the batch"}},
		New: func(o *spec.Options) (Sampler, error) {
			m := DPMAdaptive{Order: o.Int("order", 3, 2, 3), Rtol: o.FloatIn("rtol", 0.05, leastTol, 1), Atol: o.FloatIn("atol", 0.0078, leastTol, math.MaxFloat64),
				HInit: o.FloatIn("h-init", 0.05, 1e-9, 1e9), Kind: readForm(o), Joint: readNorm(o),
				Plain: o.Choice("controller", "pid", "dpm-solver") == "dpm-solver"}
			if m.Plain {
				m.Safety = o.FloatIn("theta", 0.9, 1e-3, 1)
				return m, nil
			}
			m.Safety = o.FloatIn("accept-safety", 0.81, 1e-3, 1)
			m.P, m.I, m.D = o.FloatIn("pcoeff", 0, -10, 10), o.FloatIn("icoeff", 1, -10, 10), o.FloatIn("dcoeff", 0, -10, 10)
			m.Eta, m.SNoise = o.FloatIn("eta", 0, 0, math.MaxFloat64), o.FloatIn("s-noise", 1, 0, math.MaxFloat64)
			if m.P+m.I+m.D <= 0 {
				return nil, fmt.Errorf("dpm-adaptive: pcoeff+icoeff+dcoeff is %g: want more than 0, for a larger error must shorten the step", m.P+m.I+m.D)
			}
			return m, nil
		}})
}

func readForm(o *spec.Options) schedules.Kind {
	if o.Choice("form", "eps", "x0") == "x0" {
		return schedules.X0
	}
	return schedules.Eps
}

// errNoSignal refuses to step in lambda from where it is infinite.
var errNoSignal = errors.New("lambda is infinite at a node without signal (alpha = 0): start later (--t-start)")

func (m DPMAdaptive) axis(r *run) (axis, error) {
	if m.Kind != schedules.Eps && m.Kind != schedules.X0 {
		return axis{}, fmt.Errorf("has forms for eps and x0, not for %v", m.Kind)
	}
	if m.Order != 0 && m.Order != 2 && m.Order != 3 {
		return axis{}, fmt.Errorf("has orders 2 and 3, not %d", m.Order)
	}
	if r.grid[r.p.First].Alpha == 0 {
		return axis{}, errNoSignal
	}
	return axis{kind: m.Kind, value: schedules.Node.Lambda, near: 1e-5, node: func(l float64) schedules.Node { return r.gau.AtRatio(math.Exp(-l)) }}, nil
}

func (m DPMAdaptive) order() int {
	if m.Order == 0 {
		return 3
	}
	return m.Order
}

func (m DPMAdaptive) first(_ context.Context, r *adaptiveRun, rows []int) error {
	for _, k := range rows {
		if r.ctl[k*control] == 0 {
			r.ctl[k*control] = cmpOr(m.HInit, 0.05)
			lin(r.row(r.prev, k), term{m.scale(r.from[k]), r.row(r.x, k)})
		}
	}
	return nil
}

// scale is what multiplies a state at n before it is compared.
func (m DPMAdaptive) scale(n schedules.Node) float64 {
	if m.Plain {
		return 1
	}
	return 1 / n.Alpha
}

func (m DPMAdaptive) try(ctx context.Context, r *adaptiveRun, rows []int) error {
	order := m.order()
	rk := [3]float64{0, 0.5}
	if order == 3 {
		rk = [3]float64{0, 1. / 3, 2. / 3}
	}
	one := Singlestep{Kind: m.Kind}
	down := make([]schedules.Node, r.rows) // where the deterministic part ends
	eta := r.opt("eta", m.Eta)
	for _, k := range rows {
		down[k], r.added[k] = stepDown(r.run, r.from[k], r.goal[k], r.end, eta)
		r.added[k] *= orOne(m.SNoise)
	}
	q := func(k, n int) [][]float64 {
		v := [3][]float64{r.row(r.q, k)}
		for i := 1; i < n; i++ {
			v[i] = r.row(r.k[i], k)
		}
		return v[:n]
	}
	for i := 1; i < order; i++ {
		for _, k := range rows {
			n := at(r.run, r.from[k], rk[i]*(down[k].Lambda()-r.from[k].Lambda()))
			part := rk
			for j := range i {
				part[j] /= rk[i]
			}
			one.combine(r.row(r.u, k), r.row(r.x, k), r.from[k], n, q(k, i), part[:i], true)
			r.where[k] = n
		}
		if err := r.ask(ctx, rows, r.u, i, r.answers(i)); err != nil {
			return err
		}
	}
	rtol, atol := r.tol(cmpOr(m.Rtol, 0.05), cmpOr(m.Atol, 0.0078))
	lows := r.answers(order)
	for _, k := range rows {
		x, low, high, prev := r.row(r.x, k), r.row(lows, k), r.row(r.prop, k), r.row(r.prev, k)
		one.combine(low, x, r.from[k], down[k], q(k, order-1), rk[:order-1], false)
		one.combine(high, x, r.from[k], down[k], q(k, order), rk[:order], false)
		c := m.scale(down[k])
		sum := 0.0
		for j := range low {
			l := c * low[j]
			d := (l - float64(c*high[j])) / max(atol, rtol*max(math.Abs(l), math.Abs(prev[j])))
			sum += float64(d * d)
			low[j] = l
		}
		r.errs[k] = math.Sqrt(sum / float64(r.dim))
		if down[k] != r.goal[k] {
			lin(high, term{r.goal[k].Alpha / down[k].Alpha, high})
		}
	}
	return nil
}

// stepDown splits a step with fresh noise: it goes down to the node that is returned, at end at most, and noise of the
// returned standard deviation, in the scale of t, brings it back to t.
func stepDown(r *run, s, t, end schedules.Node, eta float64) (schedules.Node, float64) {
	if eta == 0 {
		return t, 0
	}
	down, _ := ancestral(s, t, eta)
	sb := max(down/t.Alpha, end.Ratio())
	if sb >= t.Ratio() {
		return t, 0
	}
	d := end
	if sb > end.Ratio() {
		d = r.gau.AtRatio(sb)
	}
	return d, t.Alpha * math.Sqrt((t.Ratio()-sb)*(t.Ratio()+sb))
}

func (m DPMAdaptive) judge(r *adaptiveRun, k int, e float64, _ bool) bool {
	h := r.ctl[k*control : (k+1)*control]
	if m.Plain {
		factor := 0.2 // of a step that overflowed
		if !math.IsInf(e, 1) {
			factor = cmpOr(m.Safety, 0.9) * math.Pow(e, -1/float64(m.order()))
		}
		h[0] = math.Abs(r.next[k]-r.at[k]) * factor
		return e <= 1
	}
	order := float64(m.order())
	if r.opt("eta", m.Eta) != 0 {
		order = 1.5
	}
	p, i, d := m.P, m.I, m.D
	if p == 0 && i == 0 && d == 0 {
		i = 1
	}
	if math.IsInf(e, 1) { // a step that overflowed
		h[0] *= 1 + math.Atan(-1)
		return false
	}
	inv := 1 / (e + 1e-8) // errors may be 0
	if h[1] == 0 {
		h[1], h[2] = inv, inv
	}
	factor := 1 + math.Atan(math.Pow(inv, (p+i+d)/order)*math.Pow(h[1], -(p+2*d)/order)*math.Pow(h[2], d/order)-1)
	h[0] *= factor
	if factor < cmpOr(m.Safety, 0.81) {
		return false
	}
	h[1], h[2] = inv, h[1]
	return true
}

func (m DPMAdaptive) taken(r *adaptiveRun, k int) bool {
	copy(r.row(r.prev, k), r.row(r.k[m.order()], k))
	return false
}

func (m DPMAdaptive) settable() []string {
	if m.Plain {
		return []string{"rtol", "atol"}
	}
	return []string{"rtol", "atol", "eta"}
}

// Begin implements Sampler.
func (m DPMAdaptive) Begin(ctx context.Context, p *Problem) (Run, error) {
	return beginAdaptive(ctx, p, m, m.Joint, m.Plain)
}

// Resume implements Resumer.
func (m DPMAdaptive) Resume(_ context.Context, p *Problem, rd io.Reader) (Run, error) {
	return resumeAdaptive(p, m, m.Joint, m.Plain, rd)
}

// Needs implements Sampler.
func (m DPMAdaptive) Needs() Needs { return Needs{OwnGrid: true, Noise: m.Eta > 0} }

func (DPMAdaptive) label() string { return "dpm-adaptive" }
