package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/output"
	"drift/guidance"
	"drift/internal/kernels"
	"drift/internal/pixels"
	"drift/internal/pngmeta"
	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/models"
	"drift/models/open"
	"drift/samplers"
	"drift/schedules"
)

const (
	defaultStrength = 0.75
	mostSteps       = 1 << 20
)

// resolve turns the flags, and the earlier run that --from or --resume names, into a plan and its description. Nothing
// is written.
func (s *sampling) resolve(ctx context.Context) error {
	base, err := s.base()
	if err != nil {
		return err
	}
	s.before = base
	s.desc = manifest.Run{Format: manifest.Format, Version: release, Verb: cmp.Or(s.verb, "sample")}
	s.plan = &job.Plan{}
	for _, step := range []func(context.Context, *manifest.Run) error{
		s.resolveModel, s.resolveSeeds, s.resolveOut, s.resolveSets, s.resolveGuiders, s.resolveGrid, s.resolveSwitch, s.resolveStart, s.resolveNoise, s.count, s.resolveControl,
	} {
		if err := step(ctx, base); err != nil {
			return err
		}
	}
	return nil
}

// exclude refuses flags that cannot stand together.
func (s *sampling) exclude(flags ...string) error {
	var set []string
	for _, f := range flags {
		if s.c.IsSet(f) {
			set = append(set, "--"+f)
		}
	}
	if len(set) > 1 {
		return usagef("%s exclude each other", strings.Join(set, " and "))
	}
	return nil
}

// base is the earlier run to start from, or nil.
func (s *sampling) base() (*manifest.Run, error) {
	for _, group := range [][]string{
		{"seed", "seeds"}, {"count", "seeds"}, {"steps", "nfe"}, {"steps", "grid", "sigmas", "timesteps"}, {"nfe", "grid", "sigmas", "timesteps"},
		{"schedule", "grid", "sigmas", "timesteps"}, {"class", "classes", "prompts"}, {"cfg-scale", "guider"}, {"init", "init-image"}, {"init", "mask"},
		{"t-start", "sigma-max", "grid", "sigmas", "timesteps"}, {"t-end", "sigma-min", "grid", "sigmas", "timesteps"},
		{"final", "grid", "sigmas", "timesteps"}, {"prompt", "prompts"}, {"strength", "start-step"}, {"from", "resume"},
	} {
		if err := s.exclude(group...); err != nil {
			return nil, err
		}
	}
	for _, in := range []string{"init", "init-image", "mask", "noise", "grid", "from", "prompts", "model"} {
		for _, out := range []string{"out", "trajectory", "log"} {
			if s.c.IsSet(in) && s.c.IsSet(out) && sameFile(s.c.String(out), s.c.String(in)) {
				return nil, usagef("--%s %s is the input of --%s: it would be overwritten", out, s.c.String(out), in)
			}
		}
	}
	if name := s.c.String("from"); s.c.IsSet("from") {
		texts, err := readTexts(name)
		if err != nil {
			return nil, err
		}
		text, ok := pngmeta.Find(texts, ownKeyword)
		if !ok {
			return nil, refuse.Errorf(name, "has no description by drift to rerun")
		}
		r, err := manifest.Parse(name, []byte(text))
		if err == nil && r.Steer != nil && s.verb != "steer" {
			return nil, usagef("--from %s: the picture was made by drift steer, which %s cannot rerun: its folder's %s has the settings", name, cmp.Or(s.verb, "sample"), manifest.Name)
		}
		return &r, err
	}
	if !s.c.Bool("resume") {
		return nil, nil
	}
	if !s.c.IsSet("out") {
		return nil, usagef("--resume needs --out, the run to go on with")
	}
	dir := s.c.String("out")
	if output.Kind(dir) != "folder" {
		dir += ".part"
	}
	r, err := manifest.Load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		s.say("drift: nothing to go on with in %s: starting", s.c.String("out"))
		return nil, nil
	}
	return &r, err
}

// text is a flag's value, or else that of the earlier run, or else a default.
func (s *sampling) text(flag string, base *manifest.Run, of func(*manifest.Run) string, def string) string {
	if s.c.IsSet(flag) {
		return s.c.String(flag)
	}
	if base != nil {
		if v := of(base); v != "" {
			return v
		}
	}
	return def
}

func (s *sampling) resolveModel(ctx context.Context, base *manifest.Run) error {
	name := s.text("model", base, func(r *manifest.Run) string { return r.Model.Path }, defaultModel())
	comp, err := composition(s.c, base)
	if err != nil {
		return err
	}
	other := base == nil || s.c.IsSet("model") || comp != nil && (s.c.IsSet("compose") || s.c.IsSet("rule") || s.c.IsSet("weights") || s.c.IsSet("classifier"))
	dtype, tier := s.c.String("dtype"), s.c.String("tier")
	if !other && dtype == "" && tier == "" {
		dtype, tier = base.Model.DType, base.Model.Tier
		if t, err := kernels.ParseTier(tier); s.c.IsSet("from") && err == nil && !t.Supported() {
			s.warn("the picture was made on tier %s, which this machine does not have: the result may differ in the last bits", t)
			tier = ""
		}
	}
	for _, f := range []string{"width", "height"} {
		if s.c.IsSet(f) && s.c.Int(f) < 1 {
			return usagef("--%s %d: want a number of pixels", f, s.c.Int(f))
		}
	}
	var m *open.Model
	if comp != nil {
		m, s.closeAll, err = s.openComposition(ctx, comp, dtype, tier)
		name = strings.Join(comp.Models, ";")
	} else {
		around, set := s.around(base, other)
		if set {
			s.desc.Pipeline = &around
		}
		m, err = s.openPipeline(ctx, name, dtype, tier, around)
	}
	if err != nil {
		return err
	}
	s.desc.Compose = comp
	if !other && base.Model.Hash != m.Info.Hash {
		s.warn("the model %s is not the one of that run any more", name)
	}
	if m.Net == nil && m.Info.Runtime == "" && s.targetSteps > 0 {
		m.Defaults.Steps = s.targetSteps
	}
	s.model, s.info = m, m.Info
	if err := s.resolveLength(other, base); err != nil {
		return err
	}
	s.plan.Model, s.plan.Shape, s.plan.Text = m.Denoiser, s.info.Shape, m.Info.Text
	if m.Codec != nil {
		s.plan.Codec = m.Codec
	}
	s.desc.Model = manifest.Model{Path: name, Hash: m.Info.Hash, DType: m.Info.DType, Tier: m.Info.Tier, Runtime: m.Info.Runtime, Shape: s.info.Shape}
	return nil
}

// longest is the longest sequence that is made.
const longest = 1 << 20

// resolveLength sets the length of sequences.
func (s *sampling) resolveLength(other bool, base *manifest.Run) error {
	n := 0
	switch {
	case s.c.IsSet("length") && !s.model.AnyLength:
		return usagef("--length: the model gives rows of shape %v and no others", s.info.Shape)
	case s.c.IsSet("length"):
		if n = s.c.Int("length"); n < 1 || n > longest {
			return usagef("--length %d: want 1 to %d", n, longest)
		}
	case !other && s.model.AnyLength && len(base.Model.Shape) == len(s.info.Shape):
		n = base.Model.Shape[0]
	default:
		return nil
	}
	s.info.Shape = append([]int{n}, s.info.Shape[1:]...)
	return nil
}

// around reads the flags for the parts around a network, or takes them from the earlier run; set tells that there are any.
func (s *sampling) around(base *manifest.Run, other bool) (p open.Pipeline, set bool) {
	if base != nil && base.Pipeline != nil && !other {
		p, set = *base.Pipeline, true
	}
	ints := map[string]*int{"width": &p.Width, "height": &p.Height, "clip-skip": &p.ClipSkip, "text-tokens": &p.TextTokens, "tile": &p.Tile}
	for flag, dst := range ints {
		if s.c.IsSet(flag) {
			*dst, set = s.c.Int(flag), true
		}
	}
	texts := map[string]*string{"vae": &p.VAE, "tokenizer": &p.Tokenizer, "config": &p.Config, "prediction": &p.Prediction}
	for flag, dst := range texts {
		if s.c.IsSet(flag) {
			*dst, set = s.c.String(flag), true
		}
	}
	if s.c.IsSet("lora") {
		p.LoRA, set = strings.Join(s.c.StringSlice("lora"), ","), true
	}
	if s.c.IsSet("guidance") {
		p.Guidance, set = s.c.Float64("guidance"), true
	}
	return p, set
}

// resolveOut finds where results go: samples.png, or samples.npz where the model gives no pictures, when not said.
func (s *sampling) resolveOut(_ context.Context, base *manifest.Run) error {
	picture := pixels.Picture(s.info.Image())
	s.path = s.c.String("out")
	if s.c.IsSet("out") && s.path == "" {
		return usagef("--out needs a name")
	}
	letters := s.model.Letters != ""
	if s.path == "" {
		ext := ".npz"
		if letters {
			ext = ".fasta"
		}
		if picture {
			ext = ".png"
		}
		s.path = "samples" + ext
		for k := 2; exists(s.path); k++ {
			s.path = fmt.Sprintf("samples-%d%s", k, ext)
		}
	}
	kind := output.Kind(s.path)
	if kind == "fasta" && !letters {
		return usagef("--out %s: the model gives no sequences of letters", s.path)
	}
	if !picture && kind != "npz" && !(letters && kind != "folder") && !s.c.Bool("print-schedule") && !s.c.Bool("dry-run") {
		return usagef("--out %s: the model gives arrays of shape %v, not pictures: use a name that ends in .npz%s", s.path, s.info.Shape, map[bool]string{true: ", .fasta or .png (logos)"}[letters])
	}
	if s.c.IsSet("sheet") {
		if kind != "png" {
			return usagef("--sheet is for an --out that ends in .png")
		}
		var err error
		if s.cols, s.rows, err = parseSheet(s.c.String("sheet")); err != nil {
			return err
		}
	}
	if picture {
		r, err := pixels.ParseRounding(s.text("rounding", base, func(r *manifest.Run) string { return r.Rounding }, s.model.Defaults.Rounding))
		if err != nil {
			return badUse("rounding", err)
		}
		s.desc.Rounding = string(r)
	} else if s.c.IsSet("rounding") {
		return usagef("--rounding is for pictures")
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

func sameFile(a, b string) bool {
	x, e1 := os.Stat(a)
	y, e2 := os.Stat(b)
	return e1 == nil && e2 == nil && os.SameFile(x, y)
}

// resolveGrid finds the sampler and the nodes.
func (s *sampling) resolveGrid(ctx context.Context, base *manifest.Run) error {
	name := s.text("sampler", base, func(r *manifest.Run) string { return r.Sampler }, cmp.Or(s.sampler, s.model.Defaults.Sampler))
	if s.standIn != "" {
		name = s.standIn
	}
	canonical, implied, err := samplers.Resolve(name)
	if err != nil {
		return badUse("sampler", err)
	}
	for _, o := range []struct{ flag, option string }{{"eta", "eta"}, {"s-churn", "churn"}, {"s-min", "s-tmin"}, {"s-max", "s-tmax"}, {"s-noise", "s-noise"}} {
		if s.c.IsSet(o.flag) {
			if canonical, err = withOption(canonical, o.option, s.c.Float64(o.flag)); err != nil {
				return badUse(o.flag, err)
			}
		}
	}
	p, ok := s.model.Denoiser.Process().(schedules.Path)
	if !ok {
		return fmt.Errorf("%s: no solver here runs on the process %s", s.desc.Model.Path, s.model.Denoiser.Process().Name())
	}
	if n := s.c.Int("nfe"); s.c.IsSet("nfe") && (n < 1 || n > mostSteps) {
		return usagef("--nfe %d: want 1 to %d", n, mostSteps)
	}
	if n := s.c.Int("steps"); s.c.IsSet("steps") && (n < 1 || n > mostSteps) {
		return usagef("--steps %d: want 1 to %d", n, mostSteps)
	}
	smp, err := samplers.Parse(canonical)
	if err != nil {
		return badUse("sampler", err)
	}
	own := smp.Needs().OwnGrid
	if own && s.c.IsSet("nfe") { // such a sampler takes a budget itself, or none
		if canonical, err = withOption(canonical, "nfe", float64(s.c.Int("nfe"))); err == nil {
			smp, err = samplers.Parse(canonical)
		}
		if err != nil {
			return usagef("--nfe: %s places its own steps and takes no budget: %w", canonical, err)
		}
	}
	s.plan.Sampler, s.desc.Sampler = smp, canonical
	if h, ok := smp.(interface{ Hash() string }); ok {
		s.desc.SamplerID = h.Hash()
	}

	given := false // does a flag ask for another grid than the earlier run had?
	for _, f := range []string{"schedule", "steps", "nfe", "rho", "t-start", "t-end", "sigma-min", "sigma-max", "final", "grid", "sigmas", "timesteps", "model"} {
		given = given || s.c.IsSet(f)
	}
	given = given || implied != ""
	g, err := s.explicit(p)
	if err == nil && g != nil {
		k, e := s.recurrences()
		if e != nil {
			return e
		}
		g = guidance.Recur(g, k)
	}
	if own, ok := smp.(samplers.Gridded); ok && err == nil {
		if s.c.IsSet("steps") || s.c.IsSet("nfe") || given && !s.c.IsSet("model") {
			return usagef("--sampler %s brings its own nodes: leave the flags of the grid out", name)
		}
		gau, ok := p.(schedules.Gaussian)
		if !ok {
			return usagef("--sampler %s needs a Gaussian process, the model's is %s", name, p.Name())
		}
		if g, err = own.Grid(gau); err != nil {
			return badUse("sampler", err)
		}
	}
	switch {
	case err != nil:
		return err
	case g != nil:
	case base != nil && !given:
		g = base.Grid.Nodes()
		s.desc.Schedule, s.desc.Ends = base.Schedule, base.Ends
	default:
		if g, err = s.named(ctx, p, base, smp, implied, own); err != nil {
			return err
		}
	}
	if own && len(g) > 2 {
		// A sampler with a budget of its own takes the steps for it.
		if text, err := withOption(canonical, "nfe", float64(len(g)-1)); err == nil && !strings.Contains(canonical, "nfe=") {
			if budgeted, err := samplers.Parse(text); err == nil {
				s.plan.Sampler, s.desc.Sampler = budgeted, text
			}
		}
		g = schedules.Grid{g[0], g[len(g)-1]}
	}
	if err := g.Check(); err != nil {
		return badUse("schedule", err)
	}
	s.plan.Grid, s.desc.Grid = g, manifest.NewGrid(g)
	return nil
}

// withOption adds an option to a sampler's or schedule's string.
func withOption(text, key string, value float64) (string, error) {
	sp, err := spec.Parse(text)
	if err != nil {
		return "", err
	}
	v := strconv.FormatFloat(value, 'g', -1, 64)
	for _, a := range sp.Args {
		if a.Key == key && a.Value != v {
			return "", fmt.Errorf("%s is given in %q already", key, text)
		} else if a.Key == key {
			return text, nil
		}
	}
	sp.Args = append(sp.Args, spec.Arg{Key: key, Value: v})
	return sp.String(), nil
}

// explicit returns the nodes that flags spell out, or nil.
func (s *sampling) explicit(p schedules.Path) (schedules.Grid, error) {
	switch {
	case s.c.IsSet("grid"):
		name := s.c.String("grid")
		text, err := job.ReadSmall(name)
		if err != nil {
			return nil, err
		}
		g, err := job.ParseGrid(p, text)
		if err != nil {
			return nil, refuse.Errorf(name, "%s", trimPackage(err.Error()))
		}
		return g, nil
	case s.c.IsSet("sigmas"), s.c.IsSet("timesteps"):
		flag, make := "sigmas", schedules.FromRatios
		if s.c.IsSet("timesteps") {
			flag, make = "timesteps", schedules.FromTimes
		}
		var v []float64
		for part := range strings.SplitSeq(s.c.String(flag), ",") {
			x, err := strconv.ParseFloat(strings.TrimSpace(part), 64)
			if err != nil {
				return nil, usagef("--%s: %q is not a number", flag, part)
			}
			v = append(v, x)
		}
		g, err := make(p, v)
		return g, badUse(flag, err)
	}
	return nil, nil
}

// named makes the grid of a named schedule.
func (s *sampling) named(ctx context.Context, p schedules.Path, base *manifest.Run, smp samplers.Sampler, implied string, own bool) (schedules.Grid, error) {
	def := implied
	if def == "" {
		def = s.defaultSchedule(p)
	}
	name := s.text("schedule", base, func(r *manifest.Run) string {
		if s.c.IsSet("model") || implied != "" {
			return ""
		}
		return r.Schedule
	}, def)
	if path, ok := strings.CutPrefix(name, "@"); ok {
		return s.fileGrid(p, path)
	}
	if s.c.IsSet("rho") {
		var err error
		if name, err = withOption(name, "rho", s.c.Float64("rho")); err != nil {
			return nil, badUse("rho", err)
		}
	}
	ends, asked := s.ends(base)
	if s.usual != nil && asked == nil {
		ends = s.usual.ends(p)
	}
	if own && ends.Final == "" {
		ends.Final = "min"
	}
	steps := s.model.Defaults.Steps
	if s.usual != nil {
		steps = s.usual.steps
	}
	if base != nil && !own {
		steps = len(base.Grid.T) - 1
	}
	if s.c.IsSet("steps") {
		steps = s.c.Int("steps")
	}
	if name == modelSchedule {
		return s.modelGrid(ctx, smp, asked, steps, own)
	}
	sp, err := spec.Parse(name)
	if err != nil {
		return nil, badUse("schedule", err)
	}
	info, err := schedules.Lookup(sp.Name)
	if err != nil {
		if _, _, e := samplers.Resolve(sp.Name); e == nil {
			return nil, &hint{badUse("schedule", err), sp.Name + " is a sampler here: what diffusers calls a scheduler goes to --sampler"}
		}
		return nil, badUse("schedule", err)
	}
	sp.Name = info.Name
	name = sp.String()
	make := func(n int) (schedules.Grid, error) { return schedules.NewGrid(p, name, n, ends) }
	s.desc.Schedule, s.desc.Ends = name, asked
	return s.fit(ctx, smp, make, steps, own)
}

// fit makes the grid of that many steps, or of as many as --nfe pays for.
func (s *sampling) fit(ctx context.Context, smp samplers.Sampler, plain func(int) (schedules.Grid, error), steps int, own bool) (schedules.Grid, error) {
	k, err := s.recurrences()
	if err != nil {
		return nil, err
	}
	if k > 1 && own {
		return nil, usagef("--guider: recur needs a sampler on given nodes: this one places its own")
	}
	make := func(n int) (schedules.Grid, error) {
		g, err := plain(n)
		return guidance.Recur(g, k), err
	}
	if !s.c.IsSet("nfe") || own {
		g, err := make(steps)
		return g, badUse("schedule", err)
	}
	g, err := job.Fit(s.c.Int("nfe"), make, func(g schedules.Grid) (float64, error) {
		if s.plan.Wrap == nil && s.desc.Compose == nil {
			return float64(samplers.NFE(smp, g)), nil
		}
		c, err := s.costOf(ctx, smp, g)
		return c.NFE, err
	})
	return g, badUse("nfe", err)
}

// usualGrid is the grid of a verb that has other habits than the model: from and to are shares of the way from clean data
// to noise.
type usualGrid struct {
	schedule string
	steps    int
	from, to float64
}

func (u *usualGrid) ends(p schedules.Process) schedules.Ends {
	noise, data := p.Ends()
	from, to := data+u.from*(noise-data), data+u.to*(noise-data)
	return schedules.Ends{TStart: &from, TEnd: &to, Final: "zero"}
}

// modelSchedule names the grid that a model's own scheduler configuration asks for.
const modelSchedule = job.ModelSchedule

func (s *sampling) defaultSchedule(p schedules.Path) string {
	d := s.model.Defaults
	switch {
	case s.ownGrid: // not the model's, which may end far from the data
		return schedules.DefaultGrid(p)
	case s.usual != nil:
		return s.usual.schedule
	case d.Schedule != "":
		return d.Schedule
	case d.Grid != nil:
		return modelSchedule
	}
	return schedules.DefaultGrid(p)
}

func (s *sampling) modelGrid(ctx context.Context, smp samplers.Sampler, asked *manifest.Ends, steps int, own bool) (schedules.Grid, error) {
	if s.model.Defaults.Grid == nil {
		return nil, usagef("--schedule model: %s has no scheduler configuration", s.desc.Model.Path)
	}
	if asked != nil {
		return nil, usagef("the ends of the grid are the model's own: name a --schedule to move them")
	}
	s.desc.Schedule = modelSchedule
	return s.fit(ctx, smp, s.model.Defaults.Grid, steps, own)
}

// fileGrid reads a grid that drift search wrote.
func (s *sampling) fileGrid(p schedules.Path, path string) (schedules.Grid, error) {
	for _, f := range []string{"steps", "nfe", "rho", "t-start", "t-end", "sigma-min", "sigma-max", "final"} {
		if s.c.IsSet(f) {
			return nil, usagef("--schedule @%s and --%s exclude each other: the file has the nodes", path, f)
		}
	}
	text, err := job.ReadSmall(path)
	if err != nil {
		return nil, err
	}
	g, err := job.ParseGrid(p, text)
	if err != nil {
		return nil, refuse.Errorf(path, "%s", trimPackage(err.Error()))
	}
	return g, nil
}

// ends are the ends of the grid that flags ask for, or else the earlier run.
func (s *sampling) ends(base *manifest.Run) (schedules.Ends, *manifest.Ends) {
	var m manifest.Ends
	if base != nil && base.Ends != nil && !s.c.IsSet("model") && !s.c.IsSet("schedule") {
		m = *base.Ends
	}
	set := func(flag string, dst, other **float64) {
		if s.c.IsSet(flag) {
			v := s.c.Float64(flag)
			*dst, *other = &v, nil
		}
	}
	set("t-start", &m.TStart, &m.SigmaMax)
	set("sigma-max", &m.SigmaMax, &m.TStart)
	set("t-end", &m.TEnd, &m.SigmaMin)
	set("sigma-min", &m.SigmaMin, &m.TEnd)
	if s.c.IsSet("final") {
		m.Final = s.c.String("final")
	}
	e := schedules.Ends{TStart: m.TStart, TEnd: m.TEnd, SigmaMin: m.SigmaMin, SigmaMax: m.SigmaMax, Final: m.Final}
	if m == (manifest.Ends{}) {
		return e, nil
	}
	return e, &m
}

// costOf counts the evaluations of a run on this plan's model, guidance included.
func (s *sampling) costOf(ctx context.Context, smp samplers.Sampler, g schedules.Grid) (job.Cost, error) {
	first, last := s.plan.First, s.plan.Last
	classed := s.info.Text || slices.ContainsFunc(s.desc.Sets, func(set manifest.Set) bool {
		return slices.ContainsFunc(set.Classes, func(k int) bool { return k != models.NoClass })
	})
	return job.CountNFE(ctx, smp, s.plan.Wrap, s.model.Denoiser, s.info.Shape, classed, g, first, last)
}

// count finds the evaluations per image, where they can be known before the run.
func (s *sampling) count(ctx context.Context, _ *manifest.Run) error {
	if s.plan.Sampler.Needs().OwnGrid { // it decides on its way; whether it can begin is known now
		problem, err := s.plan.Problem(s.items[:1])
		if err == nil {
			_, err = s.plan.Sampler.Begin(ctx, problem)
		}
		return badUse("sampler", err)
	}
	cost, err := s.costOf(ctx, s.plan.Sampler, s.plan.Grid)
	if err != nil { // what a blank model cannot show, the run itself will
		if strings.Contains(err.Error(), "guidance: ") {
			return badUse("guider", err)
		}
		return badUse("sampler", err)
	}
	s.cost, s.desc.NFE = cost, int(math.Round(cost.NFE))
	return nil
}
