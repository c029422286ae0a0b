package samplers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// USF is the unified sampling framework (Liu et al. 2023, arXiv 2312.07243): an exponential integrator with free choices
// at every step, of which DPM-Solver(++), UniPC, DEIS and DDIM are special cases. A step goes from a start node s (the
// newest or an older one) to t, in the noise or the data form of expint.go, with h = lambda_t - lambda_s:
//
//	noise: x_t = (alpha_t/alpha_s) x_s - sigma_t SUM_{k<n} h^{k+1} phi_{k+1}(h) eps^(k)
//	data:  x_t = (sigma_t/sigma_s) x_s + alpha_t SUM_{k<n} h^{k+1} phi_{k+1}(-h) x0^(k)
//
// The derivatives are differences to other known nodes ("points"): with D_j = lambda_j - lambda_s over m >= k points,
//
//	q^(k) = SUM_j w_j (q_j - q_s),  SUM_j w_j D_j^i/i! = [i == k], i = 1..m
//
// and the first of them may be scaled (Relax). After the model was asked at t, a corrector may redo the step with the
// new node among its points; the prediction is not made again, unless the corrector is implicit. Nodes are counted from
// the newest known one: -1, -2, ...
//
// The schedule holds the nodes of the run, so a Problem leaves its Grid empty, or repeats them.
type USF struct {
	Schedule SolverSchedule
	// Process is what the schedule was made for; other models are refused. nil: any on which the times make sense.
	Process schedules.Gaussian
}

// SolverSchedule says what a USF run does: Steps[i] goes from Times[i] to Times[i+1], in the process's own time, noise
// to data.
type SolverSchedule struct {
	Times []float64
	Steps []SolverStep
	// First says what stands for the first prediction: "" asks the model; "zero" and "mean" save that evaluation
	// (analytic first step) and take the data to be 0 or Mean.
	First string
	Mean  []float64 // one number per element of a row, or one for all
}

// SolverStep is one step.
type SolverStep struct {
	Order int            // n
	Pred  schedules.Kind // X0 or Eps
	Start int            // -1 = the newest node
	// Derivs says how to estimate q^(1) .. q^(n-1).
	Derivs []Derivative
	// Weights, in place of Derivs, are the weights of the last Order predictions, newest first: x_t is the first-order
	// step with SUM_j Weights[j] q_{-1-j} for the prediction (a learned linear multistep method, arXiv 2502.17423).
	Weights   []float64
	Corrector *SolverCorrector
	// Noise, from 0 to 1, is the share of ancestral noise that the step adds; such a step has no corrector and does not end
	// at sigma 0.
	Noise float64
}

// SolverCorrector redoes a step when the prediction at its end is known. It has the step's Pred; -1 is the end of the
// step, -2 usually where it started.
type SolverCorrector struct {
	Order, Start int
	Derivs       []Derivative
	Implicit     bool // ask the model again at the corrected state
}

// Derivative estimates one derivative from differences to points, which are counted as Start is.
type Derivative struct {
	Points []int
	// Relax scales the first derivative: "" or, with z = h (noise) or -h (data), "bh1": z^2/(2 (e^z-1-z)), "bh2": z
	// (e^z-1)/(2 (e^z-1-z)), "0.5exp": 1 + (e^z-1)/2, "-0.5exp": 1 - (e^z-1)/2, and "linear": 1 + Coef h (Coef has no other use).
	Relax string
	Coef  float64
}

// Gridded is a Sampler that brings its own nodes.
type Gridded interface {
	Grid(p schedules.Gaussian) (schedules.Grid, error)
}

// The bounds of a schedule.
const (
	usfOrder   = 6    // of a step; its corrector may have one more
	usfHistory = 16   // nodes back
	usfSteps   = 1000 // steps
)

func init() {
	register(Info{
		Name: "usf", Order: "by schedule", NFE: "1 (+1 implicit corrector)",
		Summary: "unified step with order, prediction, derivatives, corrector and noise chosen step by step, from a file (drift search)",
		Source:  "USF, arXiv 2312.07243, section 3",
		Options: []Option{{"schedule", "", "file with the schedule; it holds the nodes too"}},
		New: func(o *spec.Options) (Sampler, error) {
			path := o.Text("schedule", "")
			if path == "" {
				return nil, errors.New("usf: want schedule=FILE")
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return nil, fmt.Errorf("usf: %w", err)
			}
			return ParseUSF(path, text)
		},
	})
}

// scheduleError says which step of a schedule is at fault.
type scheduleError struct {
	step, time int // -1 = none
	what       string
}

func (e *scheduleError) Error() string {
	switch {
	case e.step >= 0:
		return fmt.Sprintf("step %d: %s", e.step, e.what)
	case e.time >= 0:
		return fmt.Sprintf("timestep %d: %s", e.time, e.what)
	}
	return e.what
}

func faultf(step int, format string, args ...any) *scheduleError {
	return &scheduleError{step, -1, fmt.Sprintf(format, args...)}
}

// Check tells what is wrong with the schedule itself, whatever the process.
func (s *SolverSchedule) Check() error {
	if e := s.check(); e != nil {
		return fmt.Errorf("samplers: usf: %w", e)
	}
	return nil
}

func (s *SolverSchedule) check() *scheduleError {
	switch n := len(s.Steps); {
	case n < 1 || n > usfSteps:
		return faultf(-1, "%d steps, want 1 to %d", n, usfSteps)
	case len(s.Times) != n+1:
		return faultf(-1, "%d timesteps for %d steps, want %d", len(s.Times), n, n+1)
	}
	switch s.First {
	case "", "zero":
		if len(s.Mean) > 0 {
			return faultf(-1, "a mean without afs mean")
		}
	case "mean":
		if len(s.Mean) == 0 {
			return faultf(-1, "afs mean without a mean")
		}
	default:
		return faultf(-1, "unknown afs %q: want none, zero or mean", s.First)
	}
	for _, v := range s.Mean {
		if !isFinite(v) {
			return faultf(-1, "the mean is not finite")
		}
	}
	for i, t := range s.Times {
		if !isFinite(t) {
			return &scheduleError{-1, i, fmt.Sprintf("%g is not finite", t)}
		}
		if i > 0 && !(t < s.Times[i-1]) {
			return &scheduleError{-1, i, fmt.Sprintf("%g after %g: they must decrease", t, s.Times[i-1])}
		}
	}
	for i := range s.Steps {
		if e := s.Steps[i].check(i, i == len(s.Steps)-1); e != nil {
			return e
		}
	}
	return nil
}

func isFinite(v float64) bool { return v-v == 0 }

// check checks step i.
func (s *SolverStep) check(i int, last bool) *scheduleError {
	known := i + 1 // nodes where the model was asked
	if s.Pred != schedules.X0 && s.Pred != schedules.Eps {
		return faultf(i, "prediction %v, want x0 or eps", s.Pred)
	}
	if e := checkUpdate(i, "", s.Order, usfOrder, known, s.Start, -1, s.Derivs, len(s.Weights)); e != nil {
		return e
	}
	if len(s.Weights) > 0 {
		if len(s.Weights) != s.Order || s.Start != -1 {
			return faultf(i, "%d weights for order %d from node %d, want one per order from node -1", len(s.Weights), s.Order, s.Start)
		}
		for _, w := range s.Weights {
			if !isFinite(w) {
				return faultf(i, "weight %g is not finite", w)
			}
		}
	}
	if !(s.Noise >= 0 && s.Noise <= 1) {
		return faultf(i, "noise %g, want 0 to 1", s.Noise)
	}
	if c := s.Corrector; c != nil {
		if s.Noise > 0 {
			return faultf(i, "noise and a corrector exclude each other")
		}
		if last {
			return faultf(i, "the last step has a corrector: nothing is known at its end")
		}
		return checkUpdate(i, "corrector: ", c.Order, usfOrder+1, known+1, c.Start, -2, c.Derivs, 0)
	}
	return nil
}

// checkUpdate checks one update of step i that knows that many nodes.
func checkUpdate(i int, who string, order, most, known, start, newest int, derivs []Derivative, weights int) *scheduleError {
	inHistory := func(p, from int) bool { return p <= from && p >= -min(known, usfHistory) }
	switch {
	case order < 1 || order > most:
		return faultf(i, "%sorder %d, want 1 to %d", who, order, most)
	case order > known:
		return faultf(i, "%sorder %d is above the history: %d nodes are known", who, order, known)
	case !inHistory(start, newest):
		return faultf(i, "%sstart %d, want %d to %d", who, start, newest, -min(known, usfHistory))
	case weights > 0:
		if len(derivs) > 0 {
			return faultf(i, "%sderivs and weights exclude each other", who)
		}
		return nil
	case len(derivs) != order-1:
		return faultf(i, "%s%d derivatives for order %d, want %d", who, len(derivs), order, order-1)
	}
	for k, d := range derivs {
		if len(d.Points) < k+1 || len(d.Points) > usfOrder {
			return faultf(i, "%sderivative %d from %d points, want %d to %d", who, k+1, len(d.Points), k+1, usfOrder)
		}
		for j, p := range d.Points {
			switch {
			case !inHistory(p, -1):
				return faultf(i, "%spoint %d is outside the history: want -1 to %d", who, p, -min(known, usfHistory))
			case p == start:
				return faultf(i, "%spoint %d is the start", who, p)
			case slices.Contains(d.Points[:j], p):
				return faultf(i, "%spoint %d stands twice", who, p)
			}
		}
		switch d.Relax {
		case "":
		case "bh1", "bh2", "0.5exp", "-0.5exp", "linear":
			if k > 0 {
				return faultf(i, "%sderivative %d is relaxed: only the first one may be", who, k+1)
			}
		default:
			return faultf(i, "%sunknown relaxation %q", who, d.Relax)
		}
		if !isFinite(d.Coef) {
			return faultf(i, "%scoefficient %g is not finite", who, d.Coef)
		}
	}
	return nil
}

// Grid implements Gridded: the nodes of the schedule on p.
func (m USF) Grid(p schedules.Gaussian) (schedules.Grid, error) {
	if m.Process != nil && !schedules.Same(m.Process, p) {
		return nil, fmt.Errorf("samplers: usf: the schedule was made for process %s, the model's is %s", describe(m.Process), describe(p))
	}
	if err := m.Schedule.Check(); err != nil {
		return nil, err
	}
	g, err := schedules.FromTimes(p, m.Schedule.Times)
	if err != nil {
		return nil, fmt.Errorf("samplers: usf: %w", err)
	}
	if e := m.Schedule.checkOn(g); e != nil {
		return nil, fmt.Errorf("samplers: usf: %w", e)
	}
	return g, nil
}

func describe(p schedules.Process) string {
	if text, err := schedules.MarshalProcess(p); err == nil {
		return string(text)
	}
	return p.Name()
}

// checkOn tells what is wrong with the schedule on the nodes g: a difference of predictions needs a finite lambda on both
// sides, and the step onto clean data is first order.
func (s *SolverSchedule) checkOn(g schedules.Grid) *scheduleError {
	for i := range s.Steps {
		if !(g[i+1].Ratio() < g[i].Ratio()) {
			return faultf(i, "the noise does not fall from %g to %g", g[i].Ratio(), g[i+1].Ratio())
		}
	}
	// The node that index p means once the model was asked at node `newest`.
	update := func(i, newest int, who string, pred schedules.Kind, order, start int, derivs []Derivative, weights []float64, to schedules.Node) *scheduleError {
		from := g[newest+1+start]
		if from.Alpha == 0 && (order > 1 || pred == schedules.Eps) {
			return faultf(i, "%sstarts at a node without signal (alpha = 0): only order 1 with x0 can", who)
		}
		if to.Sigma == 0 && order > 1 {
			return faultf(i, "%sgoes to sigma 0: only order 1 can", who)
		}
		for _, d := range derivs {
			for _, p := range d.Points {
				if g[newest+1+p].Alpha == 0 {
					return faultf(i, "%spoint %d is a node without signal (alpha = 0)", who, p)
				}
			}
		}
		if pred == schedules.Eps && to.Sigma == 0 && len(weights) > 0 {
			return faultf(i, "%sgoes to sigma 0 with weights: only x0 can", who)
		}
		return nil
	}
	for i := range s.Steps {
		st := &s.Steps[i]
		if e := update(i, i, "", st.Pred, st.Order, st.Start, st.Derivs, st.Weights, g[i+1]); e != nil {
			return e
		}
		if st.Noise > 0 && g[i+1].Sigma == 0 {
			return faultf(i, "adds noise at sigma 0")
		}
		if c := st.Corrector; c != nil {
			if e := update(i, i+1, "corrector: ", st.Pred, c.Order, c.Start, c.Derivs, nil, g[i+1]); e != nil {
				return e
			}
		}
	}
	if s.First != "" && g[0].Sigma == 0 {
		return faultf(0, "afs at sigma 0")
	}
	return nil
}

// kinds are the predictions that the schedule keeps, and depth the nodes back that it needs.
func (s *SolverSchedule) kinds() (eps, x0 bool, depth int) {
	look := func(start int, derivs []Derivative) {
		depth = max(depth, -start)
		for _, d := range derivs {
			for _, p := range d.Points {
				depth = max(depth, -p)
			}
		}
	}
	for i := range s.Steps {
		st := &s.Steps[i]
		eps = eps || st.Pred == schedules.Eps
		x0 = x0 || st.Pred == schedules.X0
		look(st.Start, st.Derivs)
		depth = max(depth, len(st.Weights))
		if c := st.Corrector; c != nil {
			look(c.Start, c.Derivs)
		}
	}
	return eps, x0, depth
}

// The history of a run holds for every node, newest first, the state, and the predictions that the schedule uses: noise,
// then data.
type usfHist struct {
	r        *run
	eps, x0  bool
	stride   int
	distance int // nodes kept
}

func (m USF) hist(r *run) usfHist {
	h := usfHist{r: r, stride: 1}
	h.eps, h.x0, h.distance = m.Schedule.kinds()
	for _, use := range []bool{h.eps, h.x0} {
		if use {
			h.stride++
		}
	}
	return h
}

func (h usfHist) state(p int) entry { return h.r.hist[(-p-1)*h.stride] }

func (h usfHist) pred(p int, kind schedules.Kind) []float64 {
	k := 1
	if kind == schedules.X0 && h.eps {
		k = 2
	}
	return h.r.hist[(-p-1)*h.stride+k].V
}

func (m USF) step(ctx context.Context, r *run, s, t schedules.Node) error {
	h := m.hist(r)
	cfg := &m.Schedule.Steps[r.i]
	if err := m.ask(ctx, r, h, s); err != nil {
		return err
	}
	known := len(r.hist) / h.stride
	if r.i > 0 {
		if before := &m.Schedule.Steps[r.i-1]; before.Corrector != nil && known > 1 {
			c := before.Corrector
			if need := lookback(c.Start, c.Derivs, 0); need > known {
				return fmt.Errorf("the corrector of step %d needs %d earlier nodes, %d are known: the run started in the middle", r.i-1, need-1, known-1)
			}
			h.update(h.state(-1).V, before.Pred, c.Order, c.Start, c.Derivs, nil, s)
			if c.Implicit {
				copy(r.u, h.state(-1).V)
				if err := r.ask(ctx, &r.stage, r.uT, r.u, s, 1); err != nil {
					return err
				}
				r.recent = &r.stage
				for _, kind := range []schedules.Kind{schedules.Eps, schedules.X0} {
					if kind == schedules.Eps && h.eps || kind == schedules.X0 && h.x0 {
						q, err := r.convert(kind)
						if err != nil {
							return err
						}
						copy(h.pred(-1, kind), q)
					}
				}
			}
		}
	}
	if need := lookback(cfg.Start, cfg.Derivs, len(cfg.Weights)); need > known {
		return fmt.Errorf("needs %d earlier nodes, %d are known: the run started in the middle", need-1, known-1)
	}
	down, up := ancestral(s, t, cfg.Noise)
	h.update(r.y, cfg.Pred, cfg.Order, cfg.Start, cfg.Derivs, cfg.Weights, schedules.Node{T: t.T, Alpha: t.Alpha, Sigma: down})
	r.addNoise(up, DrawStep, s.Ratio(), t.Ratio())
	return nil
}

func lookback(start int, derivs []Derivative, weights int) int {
	need := max(-start, weights)
	for _, d := range derivs {
		for _, p := range d.Points {
			need = max(need, -p)
		}
	}
	return need
}

// ask puts the state and its predictions at the front of the history.
func (m USF) ask(ctx context.Context, r *run, h usfHist, s schedules.Node) error {
	var eps, x0 []float64
	if r.i == 0 && m.Schedule.First != "" {
		if n := len(m.Schedule.Mean); n > 1 && n != r.dim {
			return fmt.Errorf("the mean has %d numbers, a row has %d", n, r.dim)
		}
		eps, x0 = r.temp(), r.temp()
		for j := range x0 {
			x0[j] = 0
			if n := len(m.Schedule.Mean); n > 0 {
				x0[j] = m.Schedule.Mean[j%r.dim%n]
			}
		}
		lin(eps, term{1 / s.Sigma, r.x}, term{-s.Alpha / s.Sigma, x0})
		if !r.peeked {
			_, out := r.cur.pred.Fit(r.xT, schedules.X0)
			copy(out, x0)
			r.cur.x, r.cur.at, r.cur.ok = r.x, s, true
		}
	} else {
		if err := r.evaluate(ctx); err != nil {
			return err
		}
		r.recent = &r.cur
		var err error
		if h.eps {
			if eps, err = r.convert(schedules.Eps); err != nil {
				return err
			}
		}
		if h.x0 {
			if x0, err = r.convert(schedules.X0); err != nil {
				return err
			}
		}
	}
	x := r.temp()
	copy(x, r.x)
	most := h.stride * h.distance
	if h.x0 {
		r.keep(x0, s, most+2)
	}
	if h.eps {
		r.keep(eps, s, most+1)
	}
	r.keep(x, s, most)
	return nil
}

// update writes one update to node t into dst.
func (h usfHist) update(dst []float64, kind schedules.Kind, order, start int, derivs []Derivative, weights []float64, t schedules.Node) {
	e := h.state(start)
	s := e.At
	if t.Sigma == 0 && kind == schedules.Eps { // sigma_t (e^h - 1) -> alpha_t sigma_s/alpha_s
		c := t.Alpha / s.Alpha
		lin(dst, term{c, e.V}, term{-c * s.Sigma, h.pred(start, kind)})
		return
	}
	f := newForm(kind, s, t)
	first := math.Expm1(f.z)
	var c [usfHistory]float64 // what the bracket has of the prediction at node -1-j
	if weights != nil {
		for j, w := range weights {
			c[j] = first * w
		}
	} else {
		c[-start-1] = first
	}
	for k := 1; k < order && weights == nil; k++ {
		d := &derivs[k-1]
		scale := f.z * phi(k+1, f.z) * relaxation(d, f)
		// With D_j = h r_j: SUM_j y_j r_j^i = [i == k], and h^k q^(k) = k! SUM_j y_j (q_j - q_s).
		var rk, y [usfOrder]float64
		n := len(d.Points)
		for j, p := range d.Points {
			rk[j] = (h.state(p).At.Lambda() - s.Lambda()) / f.h
		}
		y[k-1] = 1
		vandermonde(rk[:n], y[:n])
		for i := 2; i <= k; i++ {
			scale *= float64(i)
		}
		for j, p := range d.Points {
			w := scale * y[j] / rk[j]
			c[-p-1] += w
			c[-start-1] -= w
		}
	}
	terms := [usfHistory + 1]term{{f.ratio, e.V}}
	n := 1
	for j, w := range c {
		if w != 0 {
			terms[n] = term{-f.a * w, h.pred(-1-j, kind)}
			n++
		}
	}
	lin(dst, terms[:n]...)
}

// relaxation is what multiplies the first derivative (see Derivative).
func relaxation(d *Derivative, f form) float64 {
	switch d.Relax {
	case "bh1":
		return 0.5 / phi(2, f.z)
	case "bh2":
		return 0.5 * phi(1, f.z) / phi(2, f.z)
	case "0.5exp":
		return 1 + 0.5*math.Expm1(f.z)
	case "-0.5exp":
		return 1 - 0.5*math.Expm1(f.z)
	case "linear":
		return 1 + d.Coef*f.h
	}
	return 1
}

// Begin implements Sampler.
func (m USF) Begin(ctx context.Context, p *Problem) (Run, error) {
	own, err := m.placed(p)
	if err != nil {
		return nil, err
	}
	return begin(ctx, own, m)
}

// Resume implements Resumer.
func (m USF) Resume(_ context.Context, p *Problem, rd io.Reader) (Run, error) {
	own, err := m.placed(p)
	if err != nil {
		return nil, err
	}
	return resume(own, m, rd)
}

// placed returns p with the nodes of the schedule.
func (m USF) placed(p *Problem) (*Problem, error) {
	den, ok := p.Model.(models.Denoiser)
	if !ok {
		return nil, fmt.Errorf("samplers: usf: needs a model that denoises, have %T", p.Model)
	}
	gau, ok := den.Process().(schedules.Gaussian)
	if !ok {
		return nil, fmt.Errorf("samplers: usf: needs a Gaussian process, the model's is %s", den.Process().Name())
	}
	g, err := m.Grid(gau)
	if err != nil {
		return nil, err
	}
	own := *p
	if len(own.Grid) == 0 {
		own.Grid = g
		return &own, nil
	}
	if len(own.Grid) != len(g) {
		return nil, fmt.Errorf("samplers: usf: the grid has %d nodes, the schedule %d", len(own.Grid), len(g))
	}
	for i, n := range own.Grid {
		if a, b := n.Ratio(), g[i].Ratio(); !(a == b || math.Abs(a-b) <= 1e-6*b) {
			return nil, fmt.Errorf("samplers: usf: node %d of the grid has sigma/alpha = %g, the schedule %g", i, a, b)
		}
	}
	return &own, nil
}

// Needs implements Sampler.
func (m USF) Needs() Needs {
	return Needs{Noise: slices.ContainsFunc(m.Schedule.Steps, func(s SolverStep) bool { return s.Noise > 0 })}
}

// Cost implements Counter.
func (m USF) Cost(_ schedules.Grid, i int) int {
	n := 1
	if i == 0 && m.Schedule.First != "" {
		n = 0
	}
	if i > 0 && i <= len(m.Schedule.Steps) {
		if c := m.Schedule.Steps[i-1].Corrector; c != nil && c.Implicit {
			n++
		}
	}
	return n
}

// NFE returns the evaluations of a run.
func (s *SolverSchedule) NFE() int {
	n := 0
	for i := range s.Steps {
		n += USF{Schedule: *s}.Cost(nil, i)
	}
	return n
}

func (USF) label() string { return "usf" }
