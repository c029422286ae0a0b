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

// leastTol is the smallest tolerance that float64 can meet.
const leastTol = 1e-13

func readNorm(o *spec.Options) (joint bool) { return o.Choice("norm", "image", "batch") == "batch" }

// tol returns the two tolerances, changed by Set or not.
func (r *adaptiveRun) tol(rtol, atol float64) (float64, float64) {
	return r.opt("rtol", rtol), r.opt("atol", atol)
}
