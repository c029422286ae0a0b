package main

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/reward"
	"drift/guidance"
	"drift/internal/script"
	"drift/internal/spec"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
	"drift/smc"
)

// steerMethods are the names of --method.
var steerMethods = []string{"fk", "fkc", "svdd", "epf", "tds", "ppg", "dgfs"}

// keeps are the names of --keep.
var keeps = []string{"best", "resampled", "weighted"}

func steerVerb(a *app) *cli.Command {
	own := []cli.Flag{
		&cli.StringFlag{Name: "method", Usage: "how: " + strings.Join(steerMethods, ", ") + " (`M`, default fk)"},
		&cli.StringFlag{Name: "reward", Usage: "expression of im and ctx, FILE.star, classifier:NET:CLASS or exec:COMMAND (`R`); see drift list rewards"},
		&cli.DurationFlag{Name: "reward-timeout", Usage: "longest wait for an answer of an exec: reward (`D`)", Value: time.Minute},
		&cli.IntFlag{Name: "reward-retries", Usage: "times that an exec: reward is started again after a crash, timeout or bad answer (`N`)", Value: 2},
		&cli.BoolFlag{Name: "sealed", Usage: "take only rewards that read no files and run no programs"},
		&cli.IntFlag{Name: "particles", Usage: "particles of every group; of svdd, candidates of every step (`K`)", Value: 4},
		&cli.StringFlag{Name: "lambda", Usage: "strength: the target is p exp(lambda reward); a number, an expression of progress, or auto: what gives the rewards a fifth into the run an ESS of K/2 (`X`, default 1; svdd: the temperature is 1/X, by default 0)"},
		&cli.StringFlag{Name: "potential", Usage: "difference, max, sum, immediate or none (`P`)", Value: "difference"},
		&cli.StringFlag{Name: "reward-init", Usage: "reward before the first check, r_-1 (`X`)"},
		&cli.StringFlag{Name: "terminal", Usage: "paper: the tilt is exact; code: as the public code, for max and sum (`T`)", Value: "paper"},
		&cli.StringFlag{Name: "wiring", Usage: "fresh: score the estimate at the state reached; lagged: the one the step was made from (`W`)", Value: "fresh"},
		&cli.IntFlag{Name: "samples", Usage: "score by that many samples of p(x0 | x) in place of the mean, each of --sample-steps steps (`N`)"},
		&cli.IntFlag{Name: "sample-steps", Usage: "steps of each such sample (`N`)", Value: 2},
		&cli.IntFlag{Name: "resample-every", Usage: "check and resample every so many steps (`N`)"},
		&cli.IntFlag{Name: "check-every", Usage: "check every so many steps (`N`)"},
		&cli.StringFlag{Name: "checks", Usage: "steps that are checked, from 0; the last always is (`a,b,c`)"},
		&cli.Float64Flag{Name: "ess", Usage: "resample where the effective sample size is below this part of the particles (`X`, default 0.5; with --checks or --resample-every: at every check)"},
		&cli.StringFlag{Name: "resampler", Usage: "see drift list resamplers (`R`)", Value: "systematic"},
		&cli.StringFlag{Name: "temper", Usage: "flatten early draws: off, ess, entropy or base (`RULE`); epf: ess"},
		&cli.BoolFlag{Name: "temper-drop", Usage: "lose what a flattened draw did not use, as published"},
		&cli.BoolFlag{Name: "skip-dead", Usage: "pass over a check that rules out a whole group"},
		&cli.StringFlag{Name: "keep", Usage: "best: the particle of the largest lambda x reward; resampled: all, drawn by weight; weighted: all, with their weights (`K`)", Value: "best"},
		&cli.Float64Flag{Name: "churn", Usage: "go up in noise by this part after every step, so that samplers without noise can be steered (`X`)"},
		&cli.StringFlag{Name: "control", Usage: "script called after every step: may set lambda, cfg_scale, eta, ess, resample, stop; groups run one at a time (`FILE.star`)"},
		&cli.BoolFlag{Name: "ahead", Usage: "epf and fk: draw by the reward of one proposed successor too (look-ahead modulation); one more evaluation per particle and check"},
		&cli.StringFlag{Name: "through", Usage: "tds: gradient of the reward through the model, or x0: without it (`WHAT`)", Value: "model"},
		&cli.IntFlag{Name: "sweeps", Usage: "ppg: passes over the whole run (`N`)", Value: 4},
		&cli.Float64Flag{Name: "path-sigma", Usage: "dgfs: standard deviation of the Brownian paths at their end (`X`); default: that of the target"},
		&cli.Float64Flag{Name: "power", Usage: "fkc: sample p to this power (`B`)"},
		&cli.StringFlag{Name: "fkc", Usage: "fkc: off: the naive sum; on; zeta2=X (`MODE`)"},
		&cli.StringFlag{Name: "log", Usage: "one row per (seed, check), .csv or .jsonl (`FILE`)"},
		&cli.StringFlag{Name: "columns", Usage: "columns of --log (`a,b,c`)"},
		&cli.StringFlag{Name: "plot", Usage: "ess, reward, ancestry, weights, log_z, genealogy (`a,b`); in a folder ess, reward, ancestry and genealogy are drawn anyway"},
		&cli.StringFlag{Name: "trace", Usage: "everything that happened, for drift inspect (`FILE.npz`)"},
		&cli.StringFlag{Name: "report", Usage: "what the summary is about: winner, all (`a,b`)", Value: "winner,all"},
	}
	have := map[string]bool{}
	for _, f := range own {
		have[f.Names()[0]] = true
	}
	for _, f := range sampleVerb(a).Flags {
		if n := f.Names()[0]; !have[n] && n != "trajectory" && n != "prompts" && n != "from" && n != "switch" {
			own = append(own, f)
		}
	}
	return &cli.Command{
		Name: "steer", Usage: "draw images towards a reward, by sequential Monte Carlo",
		Description: "Every seed is a group of particles: --seeds 0-15 makes 16 independent ones, each with its own weights, resampling and normaliser. Particle j of group s uses stream (s, j); particle 0 of a group that is not steered is the image that drift sample draws. " +
			"A folder gets the chosen images, weights.npz, trace.csv, plots and manifest.json; a file NAME.npz or NAME.png gets NAME-weights.npz beside it.",
		Flags: own,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			s := &steering{sampling: &sampling{app: a, c: c, verb: "steer", sampler: "ddim:eta=1", targetSteps: 100}}
			defer s.close()
			if err := s.resolve(c.Context); err != nil {
				return err
			}
			switch {
			case c.Bool("print-schedule"):
				s.printSchedule()
				return nil
			case c.Bool("dry-run"):
				return s.dryRun(c.Context)
			}
			return s.run(c.Context)
		},
	}
}

// steering is one run of the verb.
type steering struct {
	*sampling
	conf    manifest.Steer
	reward  *reward.Reward
	control *script.Control
	base    samplers.Sampler
	fk      smc.FK // options of the steered methods
	groups  []job.Item
	now     *steered // the batch under way

	parts  int // experts that fkc corrects
	points int // checks that have rewards
}

func (s *steering) close() {
	if s.reward != nil {
		s.reward.Close()
	}
	s.sampling.close()
}

// resolve turns the flags into a plan.
func (s *steering) resolve(ctx context.Context) error {
	if err := s.options(); err != nil {
		return err
	}
	s.bare = s.conf.Method == "fkc" // clipping has no corrector
	if err := s.sampling.resolve(ctx); err != nil {
		return err
	}
	if err := s.experts(); err != nil {
		return err
	}
	if err := s.openReward(ctx); err != nil {
		return err
	}
	if err := s.openControl(); err != nil {
		return err
	}
	if s.control != nil {
		var second models.Denoiser
		if s.second != nil {
			second = s.second.Denoiser
		}
		specs := s.desc.Guiders
		s.plan.Wrap = func(d models.Denoiser) (out models.Denoiser, err error) {
			out, s.live, err = guideLive(d, second, specs, s.plan.Grid, nil)
			return out, err
		}
	}
	s.groups = s.items
	s.base = s.plan.Sampler
	if c := s.conf.Churn; c > 0 {
		p := s.model.Denoiser.Process().(schedules.Gaussian)
		s.plan.Grid = smc.Churned(p, s.plan.Grid, c)
		s.desc.Grid = manifest.NewGrid(s.plan.Grid)
		if err := s.count(ctx, nil); err != nil {
			return err
		}
	}
	if err := s.schedule(); err != nil {
		return err
	}
	s.plan.Particles = s.conf.Particles
	if s.conf.Method == "svdd" {
		s.plan.Particles = 1
	}
	if s.conf.Keep != "best" {
		s.items = nil
		for _, it := range s.groups {
			for j := range s.plan.Particles {
				it.Part = j + 1
				s.items = append(s.items, it)
			}
		}
		s.cols, s.rows = s.plan.Particles, len(s.groups)
	}
	s.plan.Sampler = method{s}
	if s.conf.Lambda == nil && s.conf.Schedule == "" {
		if err := s.auto(ctx); err != nil {
			return err
		}
	}
	s.desc.Steer = &s.conf
	return s.try(ctx)
}

// try begins a run of one group, so that what cannot be steered is refused before anything is written.
func (s *steering) try(ctx context.Context) error {
	p, err := s.plan.Problem(s.groups[:1])
	if err != nil {
		return err
	}
	_, err = s.plan.Sampler.Begin(ctx, p)
	return badUse("method "+s.conf.Method, err)
}

// options reads the flags that need no model.
func (s *steering) options() error {
	c, m := s.c, &s.conf
	m.Method = c.String("method")
	if m.Method == "" {
		m.Method = "fk"
		if c.IsSet("compose") && !c.IsSet("reward") || c.IsSet("power") || c.IsSet("fkc") {
			m.Method = "fkc"
		}
	}
	if !slices.Contains(steerMethods, m.Method) {
		return usagef("--method: unknown method %q%s; known: %s", m.Method, spec.Suggest(m.Method, steerMethods), strings.Join(steerMethods, ", "))
	}
	m.Particles = c.Int("particles")
	if m.Particles < 1 || m.Particles > 1<<20 {
		return usagef("--particles %d: want 1 to %d", m.Particles, 1<<20)
	}
	m.Keep = c.String("keep")
	if !slices.Contains(keeps, m.Keep) {
		return usagef("--keep %s%s: want %s", m.Keep, spec.Suggest(m.Keep, keeps), strings.Join(keeps, ", "))
	}
	if m.Method == "svdd" && m.Keep != "best" {
		return usagef("--keep %s: svdd keeps one sample of every group", m.Keep)
	}
	for _, group := range [][]string{{"resample-every", "check-every", "checks"}, {"resample-every", "ess"}} {
		if err := s.exclude(group...); err != nil {
			return err
		}
	}
	needsReward := m.Method != "fkc" && m.Method != "dgfs"
	if needsReward && !c.IsSet("reward") {
		return usagef("--method %s needs a --reward; see drift list rewards", m.Method)
	}
	if m.Method == "fkc" && c.IsSet("reward") {
		return usagef("--method fkc takes no --reward: use --method fk on the composed model")
	}
	if m.Method == "fkc" {
		if c.IsSet("sampler") || c.IsSet("churn") {
			return usagef("--method fkc makes its own steps: leave --sampler and --churn out")
		}
	} else if c.IsSet("fkc") || c.IsSet("power") {
		return usagef("--fkc and --power are for --method fkc")
	}
	var err error
	f := &s.fk
	if f.Potential, err = smc.ParsePotential(c.String("potential")); err != nil {
		return badUse("potential", err)
	}
	if f.Policy.Resampler, err = smc.ParseResampler(c.String("resampler")); err != nil {
		return badUse("resampler", err)
	}
	m.Potential, m.Resampler = f.Potential.String(), f.Policy.Resampler.String()
	if c.IsSet("reward-init") {
		v, err := strconv.ParseFloat(c.String("reward-init"), 64)
		if err != nil {
			return usagef("--reward-init %s: want a number", c.String("reward-init"))
		}
		f.Init = &v
		if !math.IsInf(v, 0) {
			m.Init = &v
		}
	}
	switch t := c.String("terminal"); t {
	case "paper":
	case "code":
		f.Published = true
	default:
		return usagef("--terminal %s: want paper or code", t)
	}
	switch t := c.String("wiring"); t {
	case "fresh":
	case "lagged":
		f.Lagged = true
	default:
		return usagef("--wiring %s: want fresh or lagged", t)
	}
	if f.Samples, f.SampleSteps = c.Int("samples"), c.Int("sample-steps"); f.Samples < 0 || f.SampleSteps < 1 {
		return usagef("--samples %d of --sample-steps %d: want 0 or more, of 1 or more", f.Samples, f.SampleSteps)
	}
	if t := c.String("through"); t != "model" && t != "x0" {
		return usagef("--through %s: want model or x0", t)
	}
	if n := c.Int("sweeps"); n < 1 || n > 1<<16 {
		return usagef("--sweeps %d: want 1 to %d", n, 1<<16)
	}
	if f.Ahead = c.Bool("ahead"); f.Ahead && m.Method != "fk" && m.Method != "epf" {
		return usagef("--ahead is for --method fk and epf")
	}
	switch m.Method {
	case "tds", "ppg", "dgfs":
		for _, name := range []string{"sampler", "churn", "potential", "checks", "check-every", "resample-every", "samples", "control"} {
			if c.IsSet(name) {
				return usagef("--method %s makes its own steps and checks them all: leave --%s out", m.Method, name)
			}
		}
	}
	f.SkipDead = c.Bool("skip-dead")
	f.Weighted = true
	rule := c.String("temper")
	if rule == "" {
		if rule = "off"; m.Method == "epf" {
			rule = "ess"
		}
	}
	if f.Policy.Temper.Rule, err = smc.ParseTemperRule(rule); err != nil {
		return badUse("temper", err)
	}
	f.Policy.Temper.Drop = c.Bool("temper-drop")
	if v := c.Float64("ess"); c.IsSet("ess") && !(v > 0 && v <= 1) {
		return usagef("--ess %g: want more than 0, at most 1", v)
	}
	f.Policy.ESS = c.Float64("ess")
	if f.Policy.ESS == 0 {
		f.Policy.ESS = 0.5
	}
	for _, flag := range []string{"resample-every", "check-every"} {
		if c.IsSet(flag) {
			if f.Every = c.Int(flag); f.Every < 1 {
				return usagef("--%s %d: want 1 or more", flag, f.Every)
			}
			f.From = f.Every - 1
		}
	}
	if c.IsSet("checks") {
		f.Checks = []int{}
		for part := range strings.SplitSeq(c.String("checks"), ",") {
			k, err := strconv.Atoi(strings.TrimSpace(part))
			if err != nil || k < 0 {
				return usagef("--checks: %q is no step", part)
			}
			f.Checks = append(f.Checks, k)
		}
	}
	if (c.IsSet("resample-every") || c.IsSet("checks")) && !c.IsSet("ess") {
		f.Policy.When, f.Policy.ESS = smc.Always, 0
	}
	m.When, m.ESS, m.Checks, m.Every = f.Policy.When.String(), f.Policy.ESS, f.Checks, f.Every
	var more []string
	for _, name := range []string{"terminal", "wiring", "temper", "temper-drop", "skip-dead", "samples", "sample-steps", "power", "fkc", "ahead", "through", "sweeps", "path-sigma"} {
		if c.IsSet(name) {
			more = append(more, name+"="+fmt.Sprint(c.Value(name)))
		}
	}
	m.Options = strings.Join(more, ",")
	if m.Churn = c.Float64("churn"); !(m.Churn >= 0 && m.Churn <= 10) {
		return usagef("--churn %g: want 0 to 10", m.Churn)
	}
	return s.strength()
}

// strength reads --lambda.
func (s *steering) strength() error {
	text := s.c.String("lambda")
	one, zero := 1.0, 0.0
	switch v, err := strconv.ParseFloat(text, 64); {
	case text == "" && s.conf.Method == "svdd":
		s.conf.Lambda = &zero
	case text == "":
		s.conf.Lambda = &one
	case err == nil:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return usagef("--lambda %s: want a finite number", text)
		}
		s.conf.Lambda = &v
	case text == "auto":
		if s.conf.Particles < 2 || s.conf.Method == "svdd" || s.conf.Method == "fkc" || s.conf.Method == "dgfs" {
			return usagef("--lambda auto needs two particles or more, and a method that weights by the reward at checks")
		}
	default:
		f, err := guidance.ParseScale(text)
		if err != nil {
			return usagef("--lambda %s: want a number, auto, or an expression of progress: %s", text, trimPackage(err.Error()))
		}
		if s.conf.Method != "fk" && s.conf.Method != "epf" {
			return usagef("--lambda %s: only fk and epf take an expression", text)
		}
		s.conf.Schedule = text
		s.fk.Schedule = func(progress float64) float64 { return f(schedules.Node{}, models.Step{Progress: progress}) }
		s.conf.Lambda = &one
		if v := s.fk.Schedule(1); v-v != 0 {
			return usagef("--lambda %s is %g at the end of the run", text, v)
		}
	}
	return nil
}

// experts counts what fkc corrects: the models of a composition, or the two sides of classifier-free guidance.
func (s *steering) experts() error {
	if s.conf.Method != "fkc" {
		return nil
	}
	for _, g := range s.desc.Guiders {
		if !strings.HasPrefix(g, "cfg:") && g != "cfg" {
			return usagef("--method fkc: the guider %s has no corrector; only cfg and --compose have", g)
		}
		s.parts = 2
	}
	if len(s.desc.Guiders) > 1 {
		return usagef("--method fkc corrects one cfg guider, not %d guiders", len(s.desc.Guiders))
	}
	if c := s.desc.Compose; c != nil {
		if s.parts > 0 {
			return usagef("--method fkc corrects a composition or guidance, not both")
		}
		t, err := guidance.ParseTerms(c.Models, c.Weights)
		if err != nil {
			return badUse("compose", err)
		}
		s.parts = len(t)
		if strings.HasPrefix(c.Rule, "mixture") {
			return usagef("--rule mixture is exact as it is: there is nothing for fkc to correct; sample it")
		}
	}
	if s.parts == 0 && (!s.c.IsSet("power") || s.c.Float64("power") == 1) {
		return usagef("--method fkc corrects --compose, --cfg-scale or --power: none is given")
	}
	return nil
}

// openReward opens the reward and runs it once.
func (s *steering) openReward(ctx context.Context) error {
	text := s.c.String("reward")
	if text == "" {
		return nil
	}
	timeout := s.c.Duration("reward-timeout")
	if timeout <= 0 || s.c.Int("reward-retries") < 0 {
		return usagef("--reward-timeout %v and --reward-retries %d: want a time and 0 or more", timeout, s.c.Int("reward-retries"))
	}
	r, err := reward.Open(text, reward.Options{Timeout: timeout, Retries: s.c.Int("reward-retries"), Stderr: s.err, Sealed: s.c.Bool("sealed"), ORT: s.ort,
		Print: func(t string) { s.say("drift: reward: %s", t) }, Gone: func(why error) { s.warn("%v", why) }})
	if e := onnxError(err); e != nil {
		return e
	} else if err != nil {
		return badUse("reward", err)
	}
	s.reward = r
	if r.Latent() {
		s.fk.Latent = true
	}
	if s.conf.Method == "tds" && s.plan.Codec != nil && !r.Latent() {
		return usagef("--method tds needs the gradient of the decoder for a reward of pictures, which is not there: define reward_latent(z, ctx)")
	}
	shape := s.seen()
	if err := r.Check(ctx, shape, s.conf.Particles); err != nil {
		return badUse("reward", err)
	}
	if s.conf.Method == "tds" { // its gradient too
		n := 1
		for _, d := range shape {
			n *= d
		}
		at := []reward.Point{{Previous: math.NaN()}}
		at[0].Steps, at[0].Sigma, at[0].Alpha, at[0].Progress, at[0].Class = 1, 0.5, 0.9, 0.5, models.NoClass
		if err := r.Gradient(ctx, at, make([]float64, n), shape, make([]float64, n)); err != nil {
			return badUse("reward", err)
		}
	}
	s.conf.Reward, s.conf.Script, s.conf.Files = text, r.Script, r.Files
	if strings.EqualFold(filepath.Ext(text), ".star") {
		s.conf.Reward = filepath.Base(text)
	}
	if r.Script != "" {
		s.conf.ScriptID = hashText(r.Script)
	}
	return nil
}

// seen is the shape of what a reward sees: decoded pictures, or states of the model's own space.
func (s *steering) seen() []int {
	if s.fk.Latent || s.conf.Method == "tds" || s.conf.Method == "fkc" || s.conf.Method == "dgfs" {
		return s.info.Shape
	}
	return s.info.Image()
}

func (s *steering) openControl() error {
	name := s.c.String("control")
	if name == "" {
		return nil
	}
	switch s.conf.Method {
	case "fk", "epf":
	default:
		return usagef("--control is for --method fk and epf")
	}
	c, err := openControl(name, func(t string) { s.say("drift: control: %s", t) })
	if err != nil {
		return err
	}
	s.control = c
	s.conf.Control, s.conf.ControlID = c.Text(), hashText(c.Text())
	return nil
}

// schedule checks --checks and counts them.
func (s *steering) schedule() error {
	n := s.steps()
	for _, k := range s.fk.Checks {
		if k >= s.plan.First+n {
			return usagef("--checks: step %d of a run of %d, counted from 0", k, s.plan.First+n)
		}
	}
	for i := range n {
		i += s.plan.First
		switch {
		case i == s.plan.First+n-1:
			s.points++
		case s.conf.Method == "fkc" || s.conf.Method == "dgfs":
		case s.fk.Potential == smc.None && s.conf.Method == "fk":
		case s.fk.Checks != nil:
			if slices.Contains(s.fk.Checks, i) {
				s.points++
			}
		case i >= s.fk.From && (i-s.fk.From)%max(1, s.fk.Every) == 0:
			s.points++
		}
	}
	return nil
}

// auto sets lambda by the rewards of the first check that is a fifth into the run or later, of the first four groups.
func (s *steering) auto(ctx context.Context) error {
	fk := s.fk
	at := s.plan.First + s.steps()/5
	if fk.Checks != nil {
		for _, k := range fk.Checks {
			if k >= at {
				at = k
				break
			}
		}
	}
	at = min(at, s.plan.First+s.steps()-1)
	one := 1.0
	s.conf.Lambda = &one
	var lambdas []float64
	for _, g := range s.groups[:min(4, len(s.groups))] {
		p, err := s.plan.Problem([]job.Item{g})
		if err != nil {
			return err
		}
		fk.Base, fk.Reward, fk.Lambda = s.base, s.score(nil, p), 1
		fk.Checks, fk.Policy.When = []int{at}, smc.Never
		var rewards []float64
		fk.Observe = func(c *smc.Check) error {
			rewards = slices.Clone(c.Rewards)
			return samplers.ErrStop
		}
		if fk.Potential == smc.None {
			fk.Potential = smc.Immediate
		}
		p.Observe = func(*samplers.State) error { return ctx.Err() }
		if _, err := samplers.Sample(ctx, fk, p); err != nil && rewards == nil {
			return err
		}
		l, err := smc.Strength(rewards, 0.5)
		if err != nil {
			return fmt.Errorf("--lambda auto: group of seed %d after step %d: %w", g.Seed, at+1, err)
		}
		lambdas = append(lambdas, l)
	}
	slices.Sort(lambdas)
	l := lambdas[len(lambdas)/2]
	if n, err := strconv.ParseFloat(strconv.FormatFloat(l, 'g', 3, 64), 64); err == nil {
		l = n
	}
	s.conf.Lambda = &l
	s.say("drift: --lambda auto is %g: the rewards after step %d of %d groups then have an effective sample size near %g of %d", l, at+1, len(lambdas), float64(s.conf.Particles)/2, s.conf.Particles)
	return nil
}
