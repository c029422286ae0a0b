package smc

import (
	"bytes"
	"context"
	"encoding/gob"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// FK steers a stochastic sampler by a reward: Feynman-Kac steering (Singhal et al. 2025, arXiv 2501.06848). The rows
// of a Problem are particles, those of one seed a group (see Rows). After the steps that are checked, every
// particle's clean data x0 is estimated at the state just reached (from the same evaluation that the next step starts
// from, so without further cost), scored, and weighted by the Potential; groups resample by the Policy. With K
// particles per group and K to infinity the weighted particles are samples of
//
//	p(x) exp(lambda r(x)) / Z,  p the law of the sampler's own results,
//
// and exp(LogZ) is an unbiased estimate of Z for every K (potential difference: of Z exp(-lambda Init)). Weights that
// no resampling has used are carried on and stand in State.LogWeights at the end: average over particles with softmax
// of them, per group.
//
// Groups of one particle and strength zero are left alone: the samples are the base sampler's own, bit for bit. A base
// without step noise is refused, since copies of a particle would stay equal for ever, except with potential None, which
// weights at the end only.
//
// With Ahead ancestors are drawn from softmax(lw + eta), eta the log weight that a proposed successor of the particle would
// earn (by one DDIM step with eta = 1 and noise of its own), and carry -eta on: an auxiliary particle filter, exact for every
// eta, at one more evaluation and reward per particle and check (look-ahead modulation of entropic particle filtering).
//
// Samplers whose first evaluation of a step is not at the state (churn) pay one more evaluation per check; Lagged
// avoids it.
type FK struct {
	Base   samplers.Sampler
	Reward Reward

	Lambda    float64                        // strength; the target is p exp(Lambda r) when Schedule ends at 1
	Schedule  func(progress float64) float64 // multiplies Lambda during the run; nil = 1 throughout
	Potential Potential
	Init      *float64 // r_{-1}; nil = 0, and -Inf for Max
	Published bool     // Max and Sum tilt by max or sum of the rewards at the end, as the public code does
	Lagged    bool     // score the estimate that the step was made from, in place of one at the state it reached
	Latent    bool     // score the state's own space, without Problem.Codec

	// Samples > 0 scores a state by that many samples x0_j of p(x0 | x) in place of the estimate of their mean, each made
	// by SampleSteps steps (0 = 2) of DDIM with eta = 1 from the state: r = log(mean_j exp(lambda r(x0_j)))/lambda, which
	// tends to the best intermediate reward there is. It costs Samples times SampleSteps evaluations per particle and check.
	Samples     int
	SampleSteps int

	// A check follows step i of the run (from 0) when i is in Checks; or where Checks is nil, when i = From, From +
	// Every, ... up to To. The last step is always checked.
	Checks   []int
	Every    int // 0 = 1
	From, To int // To 0 = no limit

	Policy   Policy
	Ahead    bool // look-ahead: ancestors are drawn by the reward of one proposed successor too; see below
	Weighted bool // leave the weights of the last check on the particles, whatever the policy says
	SkipDead bool // pass over a check that rules out a whole group; else it is ErrDead

	Observe func(*Check) error // called after every check
}

// Check is what happened at a check. Slices and tensors belong to the run.
type Check struct {
	Step     int // steps made
	At       schedules.Node
	Progress float64
	Last     bool
	Lambda   float64
	X0       *tensor.Dense // what the reward saw
	Rewards  []float64     // one per row, before resampling
	Before   []float64     // log weights with this check's, before resampling
	After    []float64     // log weights carried on
	Parents  []int         // the row that each row goes on from; nil: no group resampled
	Temps    []float64     // the temperature of each group's draw
	ESS      []float64     // of each group, before resampling
	Groups   []Group       // after it
}

// Cost counts what steering takes beside the evaluations of the model.
type Cost struct {
	Checks  int
	Rewards int           // rows scored
	Decodes int           // rows decoded
	Outside time.Duration // time spent in reward and codec
}

// Needs implements samplers.Sampler.
func (f FK) Needs() samplers.Needs {
	var n samplers.Needs
	if f.Base != nil {
		n = f.Base.Needs()
	}
	n.Couples = true
	return n
}

// Run is a steered run under way.
type Run struct {
	fk      FK
	p       *samplers.Problem
	base    samplers.Run
	process schedules.Gaussian
	last    int // steps at the end of the run; 0 = not known
	init    float64
	cond    *models.Cond
	x0      *tensor.Dense

	pop     *population
	stat    []float64 // the potential's statistic
	paid    []float64 // sum of all log weights of each path
	rewards []float64 // of the last check, nil before
	lambda  float64
	ess     float64
	pending bool          // a step is made whose check is not
	over    bool          // the last check is made
	force   int           // 1: resample after the next step, -1: do not
	final   *tensor.Dense // of a run that was finished early
	from    []int
	cost    Cost
}

var (
	_ samplers.Run     = (*Run)(nil)
	_ samplers.Saver   = (*Run)(nil)
	_ samplers.Setter  = (*Run)(nil)
	_ samplers.Resumer = FK{}
)

// Begin implements samplers.Sampler. Errors, beside those of Base: options out of range, particles that do not stand
// together, a base sampler that cannot be steered.
func (f FK) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	r, err := f.newRun(p)
	if err != nil {
		return nil, err
	}
	if r.base, err = f.Base.Begin(ctx, p); err != nil {
		return nil, err
	}
	r.bind()
	return r, r.able()
}

// bind looks at the base's run.
func (r *Run) bind() {
	if st := r.base.State(); r.last == 0 {
		r.last = st.N
	}
}

func (f FK) newRun(p *samplers.Problem) (*Run, error) {
	fail := func(format string, a ...any) (*Run, error) {
		return nil, fmt.Errorf("smc: steering: "+format, a...)
	}
	switch {
	case f.Base == nil:
		return fail("no base sampler")
	case f.Potential < Difference || f.Potential > None:
		return fail("unknown potential %d", int(f.Potential))
	case math.IsNaN(f.Lambda) || math.IsInf(f.Lambda, 0):
		return fail("lambda = %g is not finite", f.Lambda)
	case f.Reward == nil && f.Lambda != 0:
		return fail("no reward")
	case f.Ahead && (f.Potential == Max || f.Potential == Sum || f.Potential == None):
		return fail("look-ahead goes with the potentials difference and immediate")
	case f.Samples < 0 || f.SampleSteps < 0:
		return fail("%d samples of %d steps at a check: want no negative numbers", f.Samples, f.SampleSteps)
	case f.Every < 0 || f.From < 0 || f.To < 0:
		return fail("checks every %d steps from %d to %d: want no negative numbers", f.Every, f.From, f.To)
	case f.Init != nil && (math.IsNaN(*f.Init) || math.IsInf(*f.Init, 1) || (math.IsInf(*f.Init, -1) && f.Potential != Max)):
		return fail("the reward before the first check is %g", *f.Init)
	}
	if err := f.Policy.check(); err != nil {
		return nil, err
	}
	den, ok := p.Model.(models.Denoiser)
	if !ok {
		return fail("needs a model that denoises, have %T", p.Model)
	}
	process, ok := den.Process().(schedules.Gaussian)
	if !ok {
		return fail("needs a Gaussian process, the model's is %s", den.Process().Name())
	}
	pop, err := newPopulation(p.Rows)
	if err != nil {
		return nil, err
	}
	n := len(p.Rows)
	r := &Run{fk: f, p: p, process: process, last: p.Last, cond: p.Cond, pop: pop, lambda: f.Lambda, ess: f.Policy.ESS,
		stat: make([]float64, n), paid: make([]float64, n), from: identity(n), init: f.Potential.start()}
	if r.last == 0 && !f.Base.Needs().OwnGrid {
		r.last = len(p.Grid) - 1
	}
	if f.Init != nil {
		r.init = *f.Init
	}
	for i := range r.stat {
		r.stat[i] = r.init
	}
	return r, nil
}

// able refuses a base run that cannot be steered the way it is asked.
func (r *Run) able() error {
	if r.pop.single() || r.lambda == 0 {
		return nil
	}
	needs := r.fk.Base.Needs()
	fail := func(what string) error { return fmt.Errorf("smc: %T cannot be steered: %s", r.fk.Base, what) }
	if r.last == 0 {
		return fail("it places its steps as it goes, image by image")
	}
	if !needs.Noise && r.fk.Potential != None && !rises(r.p) {
		return fail("it draws no step noise, so copies of a particle would stay equal for ever; " +
			"use its stochastic form (ddim:eta=1, ddpm, dpmpp-2m-sde ...), churn, one particle, lambda 0, or potential none")
	}
	if _, ok := r.base.(samplers.Selector); !ok && r.fk.Policy.When != Never {
		return fail("its runs cannot be re-indexed")
	}
	if _, ok := r.base.(samplers.Peeker); !ok && !r.fk.Lagged && r.fk.Potential != None {
		return fail("its runs cannot be asked for the next prediction; use lagged checks")
	}
	return nil
}

// Next implements samplers.Run: a step of the base, and its check. After an error of the check (a reward that failed)
// the run may be saved, or Next called again: the step is not made twice.
func (r *Run) Next(ctx context.Context) (bool, error) {
	done := false
	if r.final != nil {
		return true, nil
	}
	if !r.pending {
		var err error
		if done, err = r.base.Next(ctx); err != nil || (done && r.over) {
			return done, err
		}
		r.pending = true
	}
	if err := r.check(ctx, done); err != nil {
		return false, err
	}
	r.pending = false
	return done, nil
}

// due tells whether a check follows step i.
func (f *FK) due(i int) bool {
	if f.Checks != nil {
		return slices.Contains(f.Checks, i)
	}
	return i >= f.From && (f.To == 0 || i <= f.To) && (i-f.From)%max(1, f.Every) == 0
}

// strength is lambda at a progress.
func (r *Run) strength(progress float64) (float64, error) {
	l := r.lambda
	if r.fk.Schedule != nil && l != 0 {
		l *= r.fk.Schedule(progress)
	}
	if math.IsNaN(l) || math.IsInf(l, 0) {
		return 0, fmt.Errorf("smc: lambda is %g at progress %g", l, progress)
	}
	return l, nil
}

// check weights and resamples after a step.
func (r *Run) check(ctx context.Context, ended bool) error {
	st := r.base.State()
	c := Check{Step: st.I, At: st.At, Progress: 1, Last: ended || st.I == r.last}
	if !c.Last {
		c.Progress = st.Done
		if r.last > 0 {
			c.Progress = float64(st.I) / float64(r.last)
		}
	}
	var err error
	if c.Lambda, err = r.strength(c.Progress); err != nil {
		return err
	}
	idle := r.fk.Reward == nil || r.pop.single() || r.fk.Potential == None || c.Lambda == 0 && (r.fk.Potential != Difference || !slices.ContainsFunc(r.paid, func(v float64) bool { return v != 0 }))
	hop := st.I > r.p.First && st.I < len(r.p.Grid) && !r.fk.Base.Needs().OwnGrid && r.p.Grid[st.I].Ratio() > r.p.Grid[st.I-1].Ratio()
	due := !hop && r.fk.due(st.I-1)
	if r.force != 0 {
		due = r.force > 0
	}
	if !c.Last && (idle || !due) {
		return nil
	}
	next := slices.Clone(r.stat)
	if c.Rewards, err = r.score(ctx, st, &c); err != nil {
		return fmt.Errorf("smc: step %d at sigma/alpha %.4g: reward: %w", st.I-1, st.At.Ratio(), err)
	}
	lw, paid := slices.Clone(r.pop.LW), slices.Clone(r.paid)
	if c.Rewards != nil {
		for i, v := range c.Rewards {
			var d float64
			d, next[i] = r.fk.Potential.pay(v, c.Lambda, r.stat[i], r.init, paid[i], c.Last, r.fk.Published)
			lw[i] += d
			paid[i] += d
		}
		if r.fk.SkipDead {
			for g := range r.pop.Seeds {
				from, to := r.pop.span(g)
				if slices.Max(lw[from:to]) == math.Inf(-1) && !c.Last {
					copy(lw[from:to], r.pop.LW[from:to])
					copy(paid[from:to], r.paid[from:to])
					copy(next[from:to], r.stat[from:to])
				}
			}
		}
	}
	pop := r.pop.clone()
	pop.LW = lw
	c.Before = slices.Clone(lw)
	for g := range pop.Seeds {
		c.ESS = append(c.ESS, pop.group(g).ESS)
	}
	policy := r.fk.Policy
	policy.ESS = r.ess
	switch {
	case r.force > 0:
		policy.When = Always
	case r.force < 0:
		policy.When = Never
	}
	if c.Last && r.fk.Weighted {
		policy.When = Never
	}
	var eta []float64
	if r.fk.Ahead && !c.Last && c.Rewards != nil {
		if eta, err = r.ahead(ctx, st, &c); err != nil {
			return fmt.Errorf("smc: step %d at sigma/alpha %.4g: look-ahead: %w", st.I-1, st.At.Ratio(), err)
		}
	}
	if c.Parents, c.Temps, err = pop.ahead(policy, st.I-1, c.Progress, c.Last && r.fk.SkipDead, eta); err != nil {
		return err
	}
	if c.Parents != nil {
		if err := r.base.(samplers.Selector).Select(c.Parents, nil); err != nil {
			return fmt.Errorf("smc: step %d: %w", st.I-1, err)
		}
		if r.final != nil {
			gatherRows(models.Data(r.final), c.Parents)
		}
		next, paid = gather(next, c.Parents), gather(paid, c.Parents)
	}
	r.pop, r.stat, r.paid, r.over, r.force = pop, next, paid, c.Last, 0
	if c.Rewards != nil {
		r.rewards = c.Rewards
		if c.Parents != nil {
			r.rewards = gather(c.Rewards, c.Parents)
		}
	}
	if c.Parents != nil {
		from := slices.Clone(r.from)
		for j, i := range c.Parents {
			from[j] = r.from[i]
		}
		r.from, r.cond = from, r.p.Cond.Select(from)
	}
	r.cost.Checks++
	if r.fk.Observe != nil {
		c.After, c.Groups = pop.LW, pop.all()
		return r.fk.Observe(&c)
	}
	return nil
}

// score asks for the reward of every particle, nil where there is none to ask for.
func (r *Run) score(ctx context.Context, st *samplers.State, c *Check) ([]float64, error) {
	if r.fk.Reward == nil {
		return nil, nil
	}
	x0, err := r.final, error(nil)
	look := &Look{Rows: r.p.Rows, Groups: r.pop.all(), Cond: r.cond, At: st.At, Step: st.I, Steps: r.last, Progress: c.Progress, Lambda: c.Lambda, Last: c.Last, Previous: r.rewards}
	many := r.fk.Samples
	if c.Last {
		many = 0
	}
	switch {
	case x0 != nil:
	case many > 0:
		x0, look.Cond, look.Rows, err = r.fk.draws(ctx, r.p, r.cond, st.X, st.At, st.I, r.last)
		look.Groups = append([]Group(nil), look.Groups...)
		for i := range look.Groups {
			look.Groups[i].From *= many
			look.Groups[i].To *= many
		}
		look.Previous = nil
	default:
		x0, err = cleanData(ctx, r.base, r.process, c.Last, r.fk.Lagged, &r.x0)
	}
	if err != nil {
		return nil, err
	}
	start := time.Now()
	defer func() { r.cost.Outside += time.Since(start) }()
	if r.p.Codec != nil && !r.fk.Latent {
		if x0, err = r.p.Codec.Decode(ctx, x0); err != nil {
			return nil, fmt.Errorf("decoding: %w", err)
		}
		r.cost.Decodes += len(look.Rows)
	}
	c.X0 = x0
	out, err := ask(ctx, r.fk.Reward, x0, look)
	if err != nil {
		return nil, err
	}
	r.cost.Rewards += len(out)
	if many > 0 {
		out = pool(out, many, c.Lambda)
	}
	return out, nil
}

// ask calls a reward and checks what it says.
func ask(ctx context.Context, reward Reward, x0 *tensor.Dense, l *Look) ([]float64, error) {
	out, err := reward(ctx, x0, l)
	if err != nil {
		return nil, err
	}
	if len(out) != len(l.Rows) {
		return nil, fmt.Errorf("%d rewards for %d particles", len(out), len(l.Rows))
	}
	for i, v := range out {
		if math.IsNaN(v) || math.IsInf(v, 1) {
			return nil, &RewardError{Row: l.Rows[i], Step: l.Step, Value: v}
		}
	}
	return slices.Clone(out), nil
}

// cleanData estimates clean data from where a run stands: the state itself where it is the sample or free of noise,
// else the data of the prediction at it, or with lagged that of the prediction that the last step was made from. buf
// is reused.
func cleanData(ctx context.Context, base samplers.Run, process schedules.Gaussian, last, lagged bool, buf **tensor.Dense) (*tensor.Dense, error) {
	st := base.State()
	if last || st.At.Sigma == 0 {
		return st.X, nil
	}
	pred, x, at := st.Pred, st.PredX, st.PredAt
	if !lagged {
		p, err := base.(samplers.Peeker).Peek(ctx)
		if err != nil {
			return nil, err
		}
		pred, x, at = p, st.X, st.At
	}
	if pred == nil {
		return nil, fmt.Errorf("the run of %T shows no prediction to score", base)
	}
	cx, co, err := schedules.Convert(process, pred.Kind, schedules.X0, at)
	if err != nil {
		return nil, err
	}
	*buf = models.Reuse(*buf, x.Shape())
	combine(models.Data(*buf), cx, models.Data(x), co, models.Data(pred.Out))
	return *buf, nil
}

// combine writes a x + b y. A term with coefficient zero is left out, so that what stands behind it need not be finite.
func combine(dst []float64, a float64, x []float64, b float64, y []float64) {
	switch {
	case a == 0:
		for i := range dst {
			dst[i] = b * y[i]
		}
	case b == 0:
		for i := range dst {
			dst[i] = a * x[i]
		}
	default:
		for i := range dst {
			dst[i] = float64(a*x[i]) + float64(b*y[i])
		}
	}
}

// Groups reports on every group.
func (r *Run) Groups() []Group { return r.pop.all() }

// Roots returns the start particle that each row descends from, counted within its group.
func (r *Run) Roots() []int { return slices.Clone(r.pop.Roots) }

// Rewards returns each row's reward at the last check that was made, nil before.
func (r *Run) Rewards() []float64 { return slices.Clone(r.rewards) }

// Cost returns what steering took so far.
func (r *Run) Cost() Cost { return r.cost }

// Best returns for every group the row with the largest reward (best-of-N).
func (r *Run) Best() []int {
	if r.rewards == nil {
		return nil
	}
	var out []int
	for g := range r.pop.Seeds {
		from, to := r.pop.span(g)
		best := from
		for i := from; i < to; i++ {
			if r.rewards[i] > r.rewards[best] {
				best = i
			}
		}
		out = append(out, best)
	}
	return out
}

// Set implements samplers.Setter: "lambda" is the strength, "ess" the threshold of adaptive resampling, "resample" makes
// (1) or forbids (0) resampling after the next step, where that is checked or made so; other names are options of the base. Weights stay exact: what was paid at the old strength is settled at the next check.
func (r *Run) Set(name string, value float64) error {
	switch name {
	case "lambda":
		if math.IsNaN(value) || math.IsInf(value, 0) || (value != 0 && r.fk.Reward == nil) {
			return fmt.Errorf("smc: lambda = %g cannot be set", value)
		}
		old := r.lambda
		r.lambda = value
		if err := r.able(); err != nil {
			r.lambda = old
			return err
		}
		return nil
	case "ess":
		if !(value > 0 && value <= 1) {
			return fmt.Errorf("smc: ess = %g: want a number in (0, 1]", value)
		}
		r.ess = value
		return nil
	case "resample":
		switch value {
		case 0:
			r.force = -1
		case 1:
			r.force = 1
		default:
			return fmt.Errorf("smc: resample = %g: want 0 or 1", value)
		}
		return nil
	}
	s, ok := r.base.(samplers.Setter)
	if !ok {
		return fmt.Errorf("smc: %T has no option %q to set during a run", r.fk.Base, name)
	}
	return s.Set(name, value)
}

// savedRun is the form of a run on disk.
type savedRun struct {
	Potential string
	Pop       *population
	Stat      []float64
	Paid      []float64
	Rewards   []float64
	From      []int
	Lambda    float64
	ESS       float64
	Pending   bool
	Over      bool
	Force     int
	Final     []float64
	Cost      Cost
	Base      []byte
}

// Save implements samplers.Saver.
func (r *Run) Save(w io.Writer) error {
	base, ok := r.base.(samplers.Saver)
	if !ok {
		return fmt.Errorf("smc: runs of %T cannot be saved", r.fk.Base)
	}
	var buf bytes.Buffer
	if err := base.Save(&buf); err != nil {
		return err
	}
	err := gob.NewEncoder(w).Encode(&savedRun{Potential: r.fk.Potential.String(), Pop: r.pop, Stat: r.stat, Paid: r.paid, Rewards: r.rewards, From: r.from,
		Lambda: r.lambda, ESS: r.ess, Pending: r.pending, Over: r.over, Force: r.force, Final: final(r.final), Cost: r.cost, Base: buf.Bytes()})
	if err != nil {
		return fmt.Errorf("smc: saving a run: %w", err)
	}
	return nil
}

// Resume implements samplers.Resumer: p must be the problem that the run was begun on.
func (f FK) Resume(ctx context.Context, p *samplers.Problem, rd io.Reader) (samplers.Run, error) {
	r, err := f.newRun(p)
	if err != nil {
		return nil, err
	}
	var s savedRun
	if err := gob.NewDecoder(rd).Decode(&s); err != nil {
		return nil, fmt.Errorf("smc: reading a saved run: %w", err)
	}
	n := len(p.Rows)
	if s.Pop == nil || !s.Pop.fits(r.pop) || len(s.Stat) != n || len(s.Paid) != n || len(s.From) != n || (s.Rewards != nil && len(s.Rewards) != n) {
		return nil, fmt.Errorf("smc: the saved run does not fit the problem")
	}
	for _, k := range s.From {
		if k < 0 || k >= n {
			return nil, fmt.Errorf("smc: the saved run does not fit the problem")
		}
	}
	if s.Potential != f.Potential.String() {
		return nil, fmt.Errorf("smc: the saved run was steered by potential %s, not %s", s.Potential, f.Potential)
	}
	if r.base, err = samplers.Resume(ctx, f.Base, p, bytes.NewReader(s.Base)); err != nil {
		return nil, err
	}
	r.pop, r.stat, r.paid, r.rewards, r.from = s.Pop, s.Stat, s.Paid, s.Rewards, s.From
	r.lambda, r.ess, r.pending, r.over, r.cost = s.Lambda, s.ESS, s.Pending, s.Over, s.Cost
	r.force = s.Force
	if x := r.base.State().X; s.Final != nil {
		if len(s.Final) != len(models.Data(x)) {
			return nil, fmt.Errorf("smc: the saved run does not fit the problem")
		}
		r.final = models.Wrap(s.Final, x.Shape()...)
	}
	r.cond = p.Cond.Select(r.from)
	r.bind()
	return r, r.able()
}

// State implements samplers.Run.
func (r *Run) State() *samplers.State {
	st := r.base.State()
	st.LogWeights = r.pop.LW
	if r.final != nil {
		st.X, st.Done = r.final, 1
	}
	return st
}

// Finish ends the run where it stands: the estimate of the clean data becomes the sample, and the last check is made on
// it. The weights are those of the sampler that jumps there.
func (r *Run) Finish(ctx context.Context) error {
	if r.over || r.final != nil {
		return nil
	}
	x0, err := cleanData(ctx, r.base, r.process, false, false, &r.x0)
	if err != nil {
		return err
	}
	r.final = x0.Clone().(*tensor.Dense)
	if err := r.check(ctx, true); err != nil {
		r.final = nil
		return err
	}
	return nil
}

func final(x *tensor.Dense) []float64 {
	if x == nil {
		return nil
	}
	return models.Data(x)
}

// rises tells whether the grid goes up in noise somewhere.
func rises(p *samplers.Problem) bool {
	for i := p.First + 1; i < len(p.Grid) && (p.Last == 0 || i <= p.Last); i++ {
		if p.Grid[i].Ratio() > p.Grid[i-1].Ratio() {
			return true
		}
	}
	return false
}

// Churned returns a grid on which any sampler draws noise: behind every inner node of noise level sb (sigma/alpha) the
// state goes up to (1 + gamma) sb, at most to the first node, by forward noise, and the next step starts there, as the
// churn of EDM does (Karras et al. 2022, arXiv 2206.00364, algorithm 2). Multistep samplers forget their history at such
// hops. gamma = 0 returns the grid itself.
func Churned(process schedules.Gaussian, g schedules.Grid, gamma float64) schedules.Grid {
	if gamma == 0 {
		return g
	}
	var out schedules.Grid
	for i, n := range g {
		out = append(out, n)
		up := n.Ratio() * (1 + gamma)
		if i > 0 && i < len(g)-1 && n.Sigma > 0 && up < g[0].Ratio() {
			out = append(out, process.AtRatio(up))
		}
	}
	return out
}
