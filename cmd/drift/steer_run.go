package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/gob"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/output"
	"drift/cmd/drift/internal/reward"
	"drift/internal/npz"
	"drift/internal/pixels"
	"drift/internal/pngmeta"
	"drift/internal/script"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
	"drift/smc"
)

func hashText(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

// method is the samplers.Sampler of a steering: what the flags ask for, with a record of every check.
type method struct{ s *steering }

// Needs implements samplers.Sampler.
func (m method) Needs() samplers.Needs {
	n := m.s.base.Needs()
	n.Couples = true
	return n
}

// record is what happened at a check, for all rows of a batch.
type record struct {
	Step                              int
	T, Alpha, Sigma, Progress, Lambda float64
	Rewards, Before, After            []float64
	Parents                           []int // the row each goes on from
	ESS, LogZ, Variance, Diversity    []float64
	Roots, Resampled                  []int
	Terms                             [][]float64
	Columns                           map[string][]float64
	X0                                []float32
	NFE                               float64
	CFG                               float64
}

// steered is a run under way.
type steered struct {
	s     *steering
	p     *samplers.Problem
	run   samplers.Run
	scale *float64 // of classifier-free guidance, for a control script

	log     []record
	scores  *reward.Scores // what the reward said last
	state   script.State
	started bool
	settled int     // step that the control script has seen
	spent   float64 // evaluations per particle before the run was resumed
	x0      *tensor.Dense
}

var (
	_ samplers.Resumer = method{}
	_ samplers.Saver   = (*steered)(nil)
)

// sampler builds the method for one batch.
func (m method) sampler(r *steered) (samplers.Sampler, error) {
	s := m.s
	lambda := 0.0
	if s.conf.Lambda != nil {
		lambda = *s.conf.Lambda
	}
	var score smc.Reward
	if s.reward != nil {
		score = s.score(r, r.p)
	}
	switch s.conf.Method {
	case "svdd":
		t := 0.0
		if lambda != 0 {
			t = 1 / lambda
		}
		return smc.SVDD{Base: s.base, M: s.conf.Particles, Temperature: t, Reward: score, Latent: s.fk.Latent, Observe: r.chosen}, nil
	case "fk", "epf":
		fk := s.fk
		fk.Base, fk.Reward, fk.Lambda, fk.Observe = s.base, score, lambda, r.check
		return fk, nil
	case "fkc":
		return s.corrector(r)
	case "tds":
		return smc.TDS{Twist: s.twist(r, lambda), Straight: s.c.String("through") == "x0", Policy: s.fk.Policy, Latent: true, Observe: r.check}, nil
	case "ppg":
		return smc.PPG{Sweeps: s.c.Int("sweeps"), Reward: score, Lambda: lambda, Latent: s.fk.Latent, Observe: r.check}, nil
	case "dgfs":
		return s.paths(r, lambda)
	}
	panic("steer: method " + s.conf.Method)
}

// twist makes lambda times the reward a twist.
func (s *steering) twist(r *steered, lambda float64) smc.Twist {
	score := s.score(r, r.p)
	return func(ctx context.Context, x0 *tensor.Dense, l *smc.Look, grad *tensor.Dense) ([]float64, error) {
		l.Lambda = lambda
		out, err := score(ctx, x0, l)
		if err != nil {
			return nil, err
		}
		psi := make([]float64, len(out))
		for k, v := range out {
			if psi[k] = lambda * v; lambda == 0 {
				psi[k] = 0
			}
		}
		if grad == nil {
			return psi, nil
		}
		at := reward.Points(l, l.Steps, lambda, r.nfe())
		g := models.Data(grad)
		if err := s.reward.Gradient(ctx, at, models.Data(x0), x0.Shape()[1:], g); err != nil {
			return nil, err
		}
		for j := range g {
			g[j] *= lambda
		}
		return psi, nil
	}
}

// paths samples p exp(lambda r) of an analytic target by controlled Brownian paths, the control being that of p.
func (s *steering) paths(r *steered, lambda float64) (samplers.Sampler, error) {
	m, ok := models.As[*analytic.Mixture](s.model.Denoiser)
	if !ok {
		return nil, fmt.Errorf("--method dgfs needs a density that is known, of a .json target; %s has none", s.desc.Model.Path)
	}
	t := m.Target()
	if t.Vars == nil {
		return nil, errors.New("--method dgfs needs a target with vars, not covs")
	}
	clean := m.Process().(schedules.Gaussian).AtRatio(0)
	b := smc.Bridge{Sigma: s.c.Float64("path-sigma"), T: 1, Steps: s.steps()}
	if b.Sigma == 0 {
		for c, w := range t.Weights {
			for i := range t.Means[c] {
				b.Sigma += w * (t.Means[c][i]*t.Means[c][i] + t.Vars[c][i]) / float64(m.Dim())
			}
		}
		b.Sigma = math.Sqrt(b.Sigma)
	}
	return smc.DGFS{Bridge: b, Observe: r.check, Density: func(class int) (smc.Density, smc.Control, error) {
		w, means, vars := t.Weights, t.Means, t.Vars
		if class >= 0 {
			w, means, vars = nil, nil, nil
			for c, l := range t.Labels {
				if l == class {
					w, means, vars = append(w, t.Weights[c]), append(means, t.Means[c]), append(vars, t.Vars[c])
				}
			}
		}
		var bad error
		d := smc.Density{Dim: m.Dim(), Log: func(x, _ []float64) float64 {
			lp, err := m.LogP(x, clean, class)
			if err == nil && s.reward != nil && lambda != 0 {
				at := reward.Point{Previous: math.NaN(), Last: true}
				at.Steps, at.Step, at.Alpha, at.Progress, at.Class = b.Steps, b.Steps, 1, 1, class
				var out *reward.Scores
				if out, err = s.reward.Score(context.Background(), []reward.Point{at}, x, []int{m.Dim()}, [][2]int{{0, 1}}); err == nil {
					lp += lambda * out.Reward[0]
				}
			}
			if err != nil {
				bad = err
				return math.NaN()
			}
			return lp
		}}
		return d, b.MixtureControl(w, means, vars), bad
	}}, nil
}

// corrector is FKC with the options of --fkc and --power.
func (s *steering) corrector(r *steered) (samplers.Sampler, error) {
	f := smc.FKC{Power: s.c.Float64("power"), Parts: s.parts, Policy: s.fk.Policy, Weighted: true, Observe: r.check}
	if s.c.IsSet("power") && !(f.Power > 0) {
		return nil, usagef("--power %g: want a positive number", f.Power)
	}
	switch mode := s.c.String("fkc"); {
	case mode == "" || mode == "on":
	case mode == "off":
		f.Off = true
	case strings.HasPrefix(mode, "zeta2="):
		var v float64
		if _, err := fmt.Sscanf(mode, "zeta2=%g", &v); err != nil || !(v >= 0) {
			return nil, usagef("--fkc %s: want zeta2= and a number of 0 or more", mode)
		}
		f.Zeta2 = &v
	default:
		return nil, usagef("--fkc %s: want off, on or zeta2=X", mode)
	}
	return f, nil
}

// Begin implements samplers.Sampler.
func (m method) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	r := &steered{s: m.s, p: p, scale: m.s.live}
	inner, err := m.sampler(r)
	if err != nil {
		return nil, err
	}
	if r.run, err = inner.Begin(ctx, p); err != nil {
		return nil, err
	}
	m.s.now = r
	return r, nil
}

// savedSteered is the form of a run on disk.
type savedSteered struct {
	Log     []record
	State   string
	Started bool
	Settled int
	Scale   float64
	Spent   float64
	Scores  *reward.Scores
	Inner   []byte
}

// Save implements samplers.Saver.
func (r *steered) Save(w io.Writer) error {
	inner, ok := r.run.(samplers.Saver)
	if !ok {
		return fmt.Errorf("runs of --method %s cannot be saved", r.s.conf.Method)
	}
	v := savedSteered{Log: r.log, Started: r.started, Settled: r.settled, Scores: r.scores, Scale: math.NaN(), Spent: r.nfe()}
	if r.scale != nil {
		v.Scale = *r.scale
	}
	var err error
	if r.s.control != nil {
		if v.State, err = r.s.control.Save(r.state); err != nil {
			return err
		}
	}
	var b bytes.Buffer
	if err := inner.Save(&b); err != nil {
		return err
	}
	v.Inner = b.Bytes()
	return gob.NewEncoder(w).Encode(&v)
}

// Resume implements samplers.Resumer.
func (m method) Resume(ctx context.Context, p *samplers.Problem, rd io.Reader) (samplers.Run, error) {
	var v savedSteered
	if err := gob.NewDecoder(rd).Decode(&v); err != nil {
		return nil, fmt.Errorf("reading a saved run: %w", err)
	}
	r := &steered{s: m.s, p: p, scale: m.s.live, log: v.Log, started: v.Started, settled: v.Settled, scores: v.Scores, spent: v.Spent}
	if r.scale != nil {
		*r.scale = v.Scale
	}
	inner, err := m.sampler(r)
	if err != nil {
		return nil, err
	}
	if m.s.control != nil {
		if r.state, err = m.s.control.Load(v.State); err != nil {
			return nil, err
		}
	}
	if r.run, err = samplers.Resume(ctx, inner, p, bytes.NewReader(v.Inner)); err != nil {
		return nil, err
	}
	m.s.now = r
	return r, nil
}

// State implements samplers.Run.
func (r *steered) State() *samplers.State { return r.run.State() }

// Next implements samplers.Run: a step, and what the control script makes of it.
func (r *steered) Next(ctx context.Context) (bool, error) {
	if r.s.control != nil && !r.started {
		var err error
		if r.state, err = r.s.control.Start(ctx, r.view()); err != nil {
			return false, err
		}
		r.started = true
	}
	done, err := r.run.Next(ctx)
	if err != nil || done || r.s.control == nil {
		return done, err
	}
	st := r.run.State()
	if st.I == r.settled || st.Done >= 1 {
		return done, nil
	}
	r.settled = st.I
	out, err := r.s.control.Step(ctx, r.state, r.view())
	if err != nil {
		return false, err
	}
	if n := len(r.log); n > 0 && len(out.Columns) > 0 {
		c := &r.log[n-1]
		if c.Columns == nil {
			c.Columns = map[string][]float64{}
		}
		for name, v := range out.Columns {
			c.Columns[name] = slices.Repeat([]float64{v}, len(r.p.Rows))
		}
	}
	return false, r.settle(ctx, out.Values)
}

// settle does what the control script asks for.
func (r *steered) settle(ctx context.Context, values map[string]float64) error {
	for _, name := range script.ControlNames {
		v, ok := values[name]
		if !ok {
			continue
		}
		switch name {
		case "stop":
			if v != 0 {
				if f, ok := r.run.(*smc.Run); ok {
					return f.Finish(ctx)
				}
				return errors.New("--control: this method cannot be stopped early")
			}
		case "cfg_scale":
			if r.scale == nil {
				return errors.New("--control sets cfg_scale, but the run has no cfg guider: add --cfg-scale")
			}
			*r.scale = v
		default:
			if err := r.run.(samplers.Setter).Set(name, v); err != nil {
				return fmt.Errorf("--control sets %s: %w", name, err)
			}
		}
	}
	return nil
}

// view is what the control script sees.
func (r *steered) view() script.View {
	st := r.run.State()
	nan := math.NaN()
	v := script.View{RewardMean: nan, RewardMax: nan, RewardStd: nan, ESS: nan, LogZ: nan, X0Mean: nan, X0Std: nan}
	look := &smc.Look{Rows: r.p.Rows[:1], Cond: r.p.Cond, At: st.At, Step: st.I, Progress: st.Done}
	v.Point = reward.Points(look, st.N, *r.s.conf.Lambda, r.nfe())[0]
	v.Roots = len(r.p.Rows)
	if n := len(r.log); n > 0 {
		c := &r.log[n-1]
		v.Lambda, v.ESS, v.LogZ, v.Roots = c.Lambda, c.ESS[0], c.LogZ[0], c.Roots[0]
		if c.Rewards != nil {
			v.RewardMean, v.RewardStd = moments(c.Rewards)
			v.RewardMax = slices.Max(c.Rewards)
		}
	}
	if st.Pred != nil {
		if x0, err := st.X0(r.x0); err == nil {
			r.x0 = x0
			v.X0Mean, v.X0Std = moments(models.Data(x0))
		}
	}
	return v
}

func (r *steered) nfe() float64 {
	return r.spent + float64(r.p.Meter.Evals())/float64(len(r.p.Rows))
}

// score makes the reward of a batch; what it says beside numbers goes to r, unless that is nil.
func (s *steering) score(r *steered, p *samplers.Problem) smc.Reward {
	return func(ctx context.Context, x0 *tensor.Dense, l *smc.Look) ([]float64, error) {
		groups := make([][2]int, 0, len(l.Groups))
		for _, g := range l.Groups {
			groups = append(groups, [2]int{g.From, g.To})
		}
		if len(groups) == 0 { // candidates of svdd
			per := len(l.Rows) / len(p.Rows)
			for k := range p.Rows {
				groups = append(groups, [2]int{k * per, (k + 1) * per})
			}
		}
		at := reward.Points(l, l.Steps, l.Lambda, float64(p.Meter.Evals())/float64(len(p.Rows)))
		out, err := s.reward.Score(ctx, at, models.Data(x0), x0.Shape()[1:], groups)
		if err != nil {
			return nil, err
		}
		if r != nil {
			r.scores = out
		}
		return out.Reward, nil
	}
}

// check records a check of a population.
func (r *steered) check(c *smc.Check) error {
	rec := record{Step: c.Step, T: c.At.T, Alpha: c.At.Alpha, Sigma: c.At.Ratio(), Progress: c.Progress, Lambda: c.Lambda, Rewards: slices.Clone(c.Rewards),
		Before: slices.Clone(c.Before), After: slices.Clone(c.After), Parents: slices.Clone(c.Parents), ESS: slices.Clone(c.ESS), NFE: r.nfe(), CFG: math.NaN()}
	if r.scale != nil {
		rec.CFG = *r.scale
	}
	before := make([]int, len(c.Groups))
	if n := len(r.log); n > 0 {
		copy(before, r.log[n-1].Resampled)
	}
	for _, g := range c.Groups {
		rec.LogZ, rec.Variance, rec.Diversity = append(rec.LogZ, g.LogZ), append(rec.Variance, g.Variance), append(rec.Diversity, g.Diversity)
		rec.Roots, rec.Resampled = append(rec.Roots, g.Roots), append(rec.Resampled, g.Resampled)
	}
	if rec.Rewards != nil && r.scores != nil && r.s.conf.Method == "tds" {
		rec.Rewards = slices.Clone(r.scores.Reward) // the check has log psi
	}
	r.note(&rec, c.X0)
	r.log = append(r.log, rec)
	r.announce(&rec)
	return nil
}

// announce tells of a check as it happens: means over the groups of the batch.
func (r *steered) announce(c *record) {
	if !r.s.json {
		return
	}
	ess, _ := moments(c.ESS)
	roots := 0.0
	for _, n := range c.Roots {
		roots += float64(n) / float64(len(c.Roots))
	}
	event := map[string]any{"event": "check", "step": c.Step, "sigma": finite(c.Sigma), "ess": finite(ess), "roots": roots, "lambda": finite(c.Lambda), "nfe": c.NFE}
	if c.Rewards != nil {
		mean, _ := moments(c.Rewards)
		event["reward_mean"], event["reward_max"] = finite(mean), finite(slices.Max(c.Rewards))
	}
	r.s.emit(event)
}

// note adds what the reward said, and pictures for a trace.
func (r *steered) note(rec *record, x0 *tensor.Dense) {
	if rec.Rewards != nil && r.scores != nil {
		rec.Terms, rec.Columns = r.scores.Terms, r.scores.Columns
	}
	if x0 != nil && r.s.keepsPictures() {
		d := models.Data(x0)
		rec.X0 = make([]float32, len(d))
		for i, v := range d {
			rec.X0[i] = float32(v)
		}
	}
}

// chosen records a choice of svdd: every candidate is a particle.
func (r *steered) chosen(c *smc.Check) error {
	rec := record{Step: c.Step, T: c.At.T, Alpha: c.At.Alpha, Sigma: c.At.Ratio(), Progress: c.Progress, Lambda: *r.s.conf.Lambda, Rewards: slices.Clone(c.Rewards), NFE: r.nfe(), CFG: math.NaN()}
	m := r.s.conf.Particles
	rec.Before = make([]float64, len(c.Rewards))
	for k := range r.p.Rows {
		v := c.Rewards[k*m : (k+1)*m]
		lw := rec.Before[k*m : (k+1)*m]
		for i := range lw {
			lw[i] = rec.Lambda * v[i]
		}
		w, _ := smc.Weigh(lw)
		rec.ESS, rec.LogZ, rec.Variance, rec.Diversity = append(rec.ESS, w.ESS), append(rec.LogZ, math.NaN()), append(rec.Variance, math.NaN()), append(rec.Diversity, 1)
		rec.Roots, rec.Resampled = append(rec.Roots, 1), append(rec.Resampled, c.Step)
		for range m {
			rec.Parents = append(rec.Parents, c.Parents[k])
		}
	}
	rec.After = make([]float64, len(c.Rewards))
	r.note(&rec, c.X0)
	r.log = append(r.log, rec)
	r.announce(&rec)
	return nil
}

// outcome is what is kept of a group.
type outcome struct {
	Seed       uint64
	Set        int
	Class      int
	Log        []record  // of this group's rows alone
	LogWeights []float64 // at the end
	Rewards    []float64 // of the last check, nil without one
	Roots      []int
	LogZ       float64
	Variance   float64
	ESS        float64
	Diversity  float64
	Chosen     []int     // particles that are the result
	Mean       []float64 // by weight, of states of few numbers
	NFE        float64
}

// width is the number of particles that a record has per group.
func (s *steering) width() int { return s.conf.Particles }

// outcomes splits a batch.
func (s *steering) outcomes(b job.Batch, st *samplers.State) ([]outcome, error) {
	r := s.now
	k := s.plan.Particles
	out := make([]outcome, len(b.Items))
	for g, it := range b.Items {
		o := outcome{Seed: it.Seed, Set: it.Set, Class: s.desc.Sets[it.Set].Class(it.Place - s.plan.Offset), LogWeights: make([]float64, k), Roots: make([]int, k),
			LogZ: math.NaN(), Variance: math.NaN(), ESS: float64(k), Diversity: float64(k), NFE: r.nfe()}
		if st.LogWeights != nil {
			copy(o.LogWeights, st.LogWeights[g*k:(g+1)*k])
		}
		if v, ok := r.run.(interface{ Groups() []smc.Group }); ok {
			group := v.Groups()[g]
			o.LogZ, o.Variance, o.ESS, o.Diversity = group.LogZ, group.Variance, group.ESS, group.Diversity
		}
		if v, ok := r.run.(interface{ Roots() []int }); ok {
			copy(o.Roots, v.Roots()[g*k:(g+1)*k])
		}
		if v, ok := r.run.(interface{ Rewards() []float64 }); ok && v.Rewards() != nil {
			o.Rewards = slices.Clone(v.Rewards()[g*k : (g+1)*k])
			if l := *s.conf.Lambda; s.conf.Method == "tds" {
				for i := range o.Rewards {
					o.Rewards[i] /= l
				}
				if l == 0 {
					o.Rewards = nil
				}
			}
		}
		if x := models.Data(st.X); len(x)/(len(b.Items)*k) <= 16 {
			w := len(x) / (len(b.Items) * k)
			column := make([]float64, k)
			for d := range w {
				for j := range k {
					column[j] = x[(g*k+j)*w+d]
				}
				o.Mean = append(o.Mean, weightedMean(column, o.LogWeights))
			}
		}
		for _, c := range r.log {
			o.Log = append(o.Log, c.of(g, s.width(), len(b.Items)))
		}
		switch s.conf.Keep {
		case "best":
			o.Chosen = []int{best(o, *s.conf.Lambda, s.conf.Method)}
		case "weighted":
			for j := range k {
				o.Chosen = append(o.Chosen, j)
			}
		case "resampled":
			a, err := smc.Resample(o.LogWeights, s.fk.Policy.Resampler, it.Seed, st.I)
			if err != nil {
				return nil, fmt.Errorf("group of seed %d: %w", it.Seed, err)
			}
			o.Chosen = a
		}
		out[g] = o
	}
	return out, nil
}

// best is the particle of the largest lambda times reward, the first of equals; without rewards, of the largest weight.
func best(o outcome, lambda float64, method string) int {
	v := o.Rewards
	if method == "svdd" {
		lambda = 1
	}
	if v == nil {
		v, lambda = o.LogWeights, 1
	}
	k := 0
	for j := range v {
		if lambda*v[j] > lambda*v[k] {
			k = j
		}
	}
	return k
}

// of is the part of a record that belongs to group g.
func (c record) of(g, k, groups int) record {
	cut := func(v []float64) []float64 {
		if v == nil {
			return nil
		}
		return slices.Clone(v[g*k : (g+1)*k])
	}
	one := func(v []float64) []float64 { return []float64{v[g]} }
	out := c
	out.Rewards, out.Before, out.After = cut(c.Rewards), cut(c.Before), cut(c.After)
	out.ESS, out.LogZ, out.Variance, out.Diversity = one(c.ESS), one(c.LogZ), one(c.Variance), one(c.Diversity)
	out.Roots, out.Resampled = []int{c.Roots[g]}, []int{c.Resampled[g]}
	out.Parents = make([]int, k)
	for j := range k {
		out.Parents[j] = j
		if c.Parents != nil {
			out.Parents[j] = c.Parents[g*k+j] - g*k
		}
	}
	if c.Terms != nil {
		out.Terms = slices.Clone(c.Terms[g*k : (g+1)*k])
	}
	out.Columns = nil
	for name, v := range c.Columns {
		if out.Columns == nil {
			out.Columns = map[string][]float64{}
		}
		out.Columns[name] = cut(v)
	}
	if c.X0 != nil {
		w := len(c.X0) / groups
		out.X0 = slices.Clone(c.X0[g*w : (g+1)*w])
	}
	return out
}

// outcomeFile is where the outcome of a group waits for the others.
func (s *steering) outcomeFile(t output.Target, it job.Item) string {
	return filepath.Join(t.Room(), ".groups", fmt.Sprintf("%d-%d-%d.gob", it.Set, it.Place, it.Seed))
}

func (s *steering) keepOutcome(t output.Target, it job.Item, o outcome) error {
	name := s.outcomeFile(t, it)
	if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return err
	}
	if _, err := manifest.Claim(t.Room(), s.desc); err != nil {
		return err
	}
	return output.Write(name, func(w io.Writer) error { return gob.NewEncoder(w).Encode(&o) })
}

func (s *steering) readOutcome(t output.Target, it job.Item) (o outcome, err error) {
	f, err := os.Open(s.outcomeFile(t, it))
	if err != nil {
		return o, err
	}
	defer f.Close()
	if err := gob.NewDecoder(f).Decode(&o); err != nil {
		return o, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return o, nil
}

// checkpoint is how often the state of a batch under way is kept.
const checkpoint = 20 * time.Second

// run makes the groups and stores what comes of them.
func (s *steering) run(ctx context.Context) error {
	files, err := s.outputs()
	if err != nil {
		return err
	}
	if err := s.enough(); err != nil {
		return err
	}
	hash := s.desc.Hash()
	var all []outcome
	o := output.Options{
		Path: s.path, Run: s.desc, Items: s.items, Shape: s.info.Shape, Rounding: pixels.Rounding(s.desc.Rounding),
		KeepX: s.c.Bool("float") || s.plan.Last != 0, Cols: s.cols, Rows: s.rows,
		Extra: func() []npz.Array { return s.extra(all) },
	}
	o.Picture = s.picture()
	if !s.c.Bool("no-metadata") {
		o.Texts = func(it *job.Item) []pngmeta.Text { return s.texts(it, hash) }
	}
	target, err := output.Open(o)
	var d *manifest.Different
	if errors.As(err, &d) {
		return &hint{err, "choose another --out, or remove " + d.Dir}
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(files.weights); err == nil && len(target.Missing()) == 0 {
		s.say("drift: nothing to do, %s is complete", s.path)
		return nil
	}
	todo, stored := s.missing(target)
	if s.json {
		s.emit(map[string]any{"event": "start", "hash": hash, "model": s.desc.Model.Path, "method": s.conf.Method, "particles": s.conf.Particles, "lambda": s.conf.Lambda, "sampler": s.desc.Sampler,
			"steps": s.steps(), "nfe": s.desc.NFE, "groups": len(s.groups), "stored": stored, "out": s.path})
	}
	if stored > 0 {
		s.say("drift: %d of %d groups are there already", stored, len(s.groups))
	}
	size := s.c.Int("batch")
	if size < 1 {
		size = s.plan.Batch()
	} else {
		size = max(1, size/s.plan.Particles)
	}
	if s.control != nil {
		size = 1 // what a script sets is for its group alone
	}
	began := time.Now()
	bar := s.start("drift")
	var observers []observer
	if s.c.IsSet("preview") {
		o, err := s.preview()
		if err != nil {
			return err
		}
		if o != nil {
			observers = append(observers, o)
		}
	}
	hooks := s.sampling.hooks(target, observers, len(todo), stored, false)
	step := hooks.Step
	kept := time.Now()
	hooks.Step = func(b job.Batch, st *samplers.State) error {
		if time.Since(kept) > checkpoint && hooks.Save != nil && st.Done < 1 {
			if err := output.SaveState(target, s.desc, b.Items, s.now.Save); err != nil {
				return err
			}
			kept = time.Now()
		}
		return step(b, st)
	}
	hooks.Done = func(b job.Batch, x, pictures *tensor.Dense, stats samplers.Stats) error {
		return s.put(target, b, x, pictures)
	}
	stats, err := s.plan.Run(ctx, s.stop, todo, size, hooks)
	var failed error
	if err != nil && s.now != nil && !errors.Is(err, job.ErrStopped) && hooks.Save != nil && ctx.Err() == nil {
		failed = s.keepState(target, todo, size)
	}
	bar.Close()
	s.bar = nil
	if err == nil {
		for _, it := range s.groups {
			var one outcome
			if one, err = s.readOutcome(target, it); err != nil {
				break
			}
			all = append(all, one)
		}
	}
	if err == nil {
		err = s.write(files, all)
	}
	if err == nil {
		if err = os.RemoveAll(filepath.Join(target.Room(), ".groups")); err == nil {
			err = s.finish(target)
		}
		if err == nil && output.Kind(s.path) != "folder" {
			err = os.RemoveAll(target.Room())
		}
	}
	if err != nil {
		return errors.Join(s.ended(err, target, len(todo)), failed)
	}
	s.tell(ctx, all, stats, len(todo), time.Since(began))
	return nil
}

// preview draws the first particles of a batch while they are made; arrays are told in a line.
func (s *steering) preview() (observer, error) {
	if pixels.Picture(s.info.Image()) {
		d, err := s.newPreview()
		if d == nil || err != nil {
			return nil, err
		}
		return d, nil
	}
	n, err := strconv.Atoi(s.c.String("preview"))
	if err != nil || n < 0 {
		return nil, usagef("--preview %s: want a number of steps for arrays of shape %v", s.c.String("preview"), s.info.Shape)
	}
	if n == 0 {
		return nil, nil
	}
	return &telling{s: s, every: n}, nil
}

// telling is --preview of arrays.
type telling struct {
	s     *steering
	every int
}

func (t *telling) step(_ job.Batch, st *samplers.State) error {
	if st.I == 0 || st.I%t.every != 0 && st.I != st.N || len(t.s.now.log) == 0 {
		return nil
	}
	c := &t.s.now.log[len(t.s.now.log)-1]
	line := fmt.Sprintf("step %d: sigma/alpha %.4g, ESS %.4g, roots %d", st.I, st.At.Ratio(), c.ESS[0], c.Roots[0])
	if c.Rewards != nil {
		mean, _ := moments(c.Rewards)
		line += fmt.Sprintf(", reward mean %.4g, largest %.4g", mean, slices.Max(c.Rewards))
	}
	t.s.say("drift: %s", line)
	return nil
}

func (t *telling) done(job.Batch, []float64, samplers.Stats) error { return nil }
func (t *telling) whole() bool                                     { return false }
func (t *telling) close(bool) error                                { return nil }

// keepState saves the batch that a failed reward stopped.
func (s *steering) keepState(t output.Target, todo []job.Item, size int) error {
	rows := s.now.p.Rows
	for from := 0; from < len(todo); from += size {
		items := todo[from:min(from+size, len(todo))]
		if items[0].Seed == rows[0].Seed && len(items)*s.plan.Particles == len(rows) {
			if err := output.SaveState(t, s.desc, items, s.now.Save); err != nil {
				return err
			}
			s.saved = ", the batch under way is saved"
			return nil
		}
	}
	return nil
}

// ended words an error of the run.
func (s *steering) ended(err error, t output.Target, todo int) error {
	if !s.unstored {
		if e := t.Keep(); e != nil {
			err = errors.Join(err, e)
		}
	}
	missing, _ := s.missing(t)
	kept := len(s.groups) - len(missing)
	if exitCode(err) == exitInterrupted {
		err = job.ErrStopped
	}
	err = fmt.Errorf("%w: %d of %d groups are finished and kept%s", err, kept, len(s.groups), s.saved)
	if kept > 0 || s.saved != "" {
		return &hint{err, "go on with: " + s.again()}
	}
	return err
}

// missing lists the groups of which something is not stored.
func (s *steering) missing(t output.Target) (todo []job.Item, stored int) {
	open := map[[2]int]bool{}
	for _, it := range t.Missing() {
		open[[2]int{it.Set, it.Place}] = true
	}
	for _, it := range s.groups {
		if _, err := os.Stat(s.outcomeFile(t, it)); err != nil || open[[2]int{it.Set, it.Place}] {
			todo = append(todo, it)
		}
	}
	return todo, len(s.groups) - len(todo)
}

// put stores a finished batch: first what happened, then the pictures, which tell that it is finished.
func (s *steering) put(t output.Target, b job.Batch, x, pictures *tensor.Dense) error {
	st := s.now.run.State()
	all, err := s.outcomes(b, st)
	if err != nil {
		return err
	}
	k := s.plan.Particles
	xs, ps := models.Data(x), models.Data(pictures)
	w, pw := len(xs)/(len(b.Items)*k), len(ps)/(len(b.Items)*k)
	var items []job.Item
	var px, pp []float64
	for g, it := range b.Items {
		if err := s.keepOutcome(t, it, all[g]); err != nil {
			return err
		}
		for n, j := range all[g].Chosen {
			one := it
			if s.conf.Keep != "best" {
				one.Part = n + 1
			}
			items = append(items, one)
			i := g*k + j
			px, pp = append(px, xs[i*w:(i+1)*w]...), append(pp, ps[i*pw:(i+1)*pw]...)
		}
		if dir := s.particleDir(); dir != "" {
			if err := s.sheet(dir, it, ps[g*k*pw:(g+1)*k*pw]); err != nil {
				return err
			}
		}
	}
	files, err := t.Put(items, px, pp)
	s.stored(files)
	if err != nil {
		s.unstored = true
	}
	return err
}

// particleDir is where sheets of all particles go: beside the chosen ones in a folder of pictures.
func (s *steering) particleDir() string {
	if output.Kind(s.path) != "folder" || s.conf.Keep != "best" || s.plan.Particles == 1 {
		return ""
	}
	return filepath.Join(s.path, "particles")
}

// sheet stores all particles of a group in one picture.
func (s *steering) sheet(dir string, it job.Item, p []float64) error {
	shape := s.info.Image()
	k := s.plan.Particles
	w := len(p) / k
	pictures := make([][]byte, k)
	for j := range pictures {
		pictures[j] = make([]byte, w)
		pixels.Bytes(pictures[j], p[j*w:(j+1)*w], shape, pixels.Rounding(s.desc.Rounding))
	}
	cols := int(math.Ceil(math.Sqrt(float64(k))))
	set := ""
	if len(s.desc.Sets) > 1 {
		set = fmt.Sprintf("set-%04d", it.Set)
	}
	dir = filepath.Join(dir, set)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	return output.Write(filepath.Join(dir, fmt.Sprintf("%06d.png", it.Seed)), func(w io.Writer) error {
		return encodePNG(w, pixels.Sheet(pictures, shape, cols, (k+cols-1)/cols))
	})
}

// dryRun prints what the run would cost.
func (s *steering) dryRun(ctx context.Context) error {
	c, n := s.perGroup(), float64(len(s.groups))
	s.rewards, s.whole = int(n*c.Rewards), job.Cost{NFE: n * c.NFE, VJPs: n * c.VJPs}
	if s.conf.Method == "svdd" { // every candidate is looked at
		s.plan.Particles = s.conf.Particles
	}
	s.plan.Sampler, s.items = s.base, s.groups
	return s.sampling.dryRun(ctx)
}
