package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	_ "image/jpeg" // for --init-image
	_ "image/png"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/output"
	"drift/guidance"
	"drift/internal/kernels"
	"drift/internal/npz"
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
		s.resolveModel, s.resolveSeeds, s.resolveOut, s.resolveSets, s.resolveGuiders, s.resolveGrid, s.resolveSwitch, s.resolveStart, s.resolveNoise, s.count,
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
		{"schedule", "grid", "sigmas", "timesteps"}, {"class", "classes", "prompts"}, {"cfg-scale", "guider"}, {"init", "init-image"},
		{"t-start", "sigma-max", "grid", "sigmas", "timesteps"}, {"t-end", "sigma-min", "grid", "sigmas", "timesteps"},
		{"final", "grid", "sigmas", "timesteps"}, {"prompt", "prompts"}, {"strength", "start-step"}, {"from", "resume"},
	} {
		if err := s.exclude(group...); err != nil {
			return nil, err
		}
	}
	for _, in := range []string{"init", "init-image", "noise", "grid", "from", "prompts", "model"} {
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
	if m.Net == nil && s.targetSteps > 0 {
		m.Defaults.Steps = s.targetSteps
	}
	s.model, s.info = m, m.Info
	s.plan.Model, s.plan.Shape, s.plan.Text = m.Denoiser, m.Info.Shape, m.Info.Text
	if m.Codec != nil {
		s.plan.Codec = m.Codec
	}
	s.desc.Model = manifest.Model{Path: name, Hash: m.Info.Hash, DType: m.Info.DType, Tier: m.Info.Tier, Shape: m.Info.Shape}
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
	if s.c.IsSet("vae") {
		p.VAE, set = s.c.String("vae"), true
	}
	if s.c.IsSet("lora") {
		p.LoRA, set = strings.Join(s.c.StringSlice("lora"), ","), true
	}
	if s.c.IsSet("guidance") {
		p.Guidance, set = s.c.Float64("guidance"), true
	}
	return p, set
}

func (s *sampling) resolveSeeds(_ context.Context, base *manifest.Run) error {
	if s.c.IsSet("batch") && s.c.Int("batch") < 1 {
		return usagef("--batch %d: want 1 or more", s.c.Int("batch"))
	}
	count := s.c.Int("count")
	if s.c.IsSet("count") && (count < 1 || count > manifest.MaxImages) {
		return usagef("--count %d: want 1 to %d", count, manifest.MaxImages)
	}
	switch {
	case s.c.IsSet("seeds"):
		seeds, err := manifest.ParseSeeds(s.c.String("seeds"))
		if err != nil {
			return badUse("seeds", err)
		}
		s.seeds = seeds
	case base != nil && !s.c.IsSet("seed") && !s.c.IsSet("count"):
		seeds, err := manifest.ParseSeeds(base.Seeds)
		if err != nil {
			return refuse.Errorf("the earlier run", "%v", err)
		}
		s.seeds, s.plan.Offset = seeds, base.Offset
	default:
		first := s.c.Uint64("seed")
		if base != nil && !s.c.IsSet("seed") {
			old, err := manifest.ParseSeeds(base.Seeds)
			if err != nil {
				return refuse.Errorf("the earlier run", "%v", err)
			}
			first = old[0]
		}
		if count == 0 {
			n, err := s.defaultCount(base)
			if err != nil {
				return err
			}
			count = n
		}
		if first > math.MaxUint64-uint64(count-1) {
			return usagef("--seed %d: %d images need streams beyond the last", first, count)
		}
		for k := range count {
			s.seeds = append(s.seeds, first+uint64(k))
		}
	}
	s.desc.Seeds, s.desc.Offset = manifest.FormatSeeds(s.seeds), s.plan.Offset
	return nil
}

// defaultCount is the number of images when nothing says it: the rows of --init, the cells of a sheet, 1 with a seed.
func (s *sampling) defaultCount(base *manifest.Run) (int, error) {
	if name := s.c.String("init"); s.c.IsSet("init") {
		a, err := npz.Read(name)
		if err != nil {
			return 0, err
		}
		defer a.Close()
		if x, ok := a.Info("x"); ok && len(x.Shape) > 0 && x.Shape[0] > 0 {
			return x.Shape[0], nil
		}
		return 0, refuse.Errorf(name, "has no array x with rows")
	}
	if s.c.IsSet("sheet") {
		cols, rows, err := parseSheet(s.c.String("sheet"))
		return cols * rows, err
	}
	kind := "png"
	if s.c.IsSet("out") {
		kind = output.Kind(s.c.String("out"))
	}
	if s.info.Text || s.info.Picture != nil {
		return 1, nil
	}
	if kind == "png" && !s.c.IsSet("seed") && base == nil && pixels.Picture(s.info.Shape) {
		return 64, nil
	}
	if kind == "folder" {
		return 16, nil
	}
	return 1, nil
}

func parseSheet(v string) (cols, rows int, err error) {
	a, b, ok := strings.Cut(strings.ToLower(v), "x")
	cols, e1 := strconv.Atoi(a)
	rows, e2 := strconv.Atoi(b)
	if !ok || e1 != nil || e2 != nil || cols < 1 || rows < 1 || cols > 1000 || rows > 1000 {
		return 0, 0, usagef("--sheet %s: want columns x rows, such as 8x8", v)
	}
	return cols, rows, nil
}

// resolveOut finds where results go: samples.png, or samples.npz where the model gives no pictures, when not said.
func (s *sampling) resolveOut(_ context.Context, base *manifest.Run) error {
	picture := pixels.Picture(s.info.Image())
	s.path = s.c.String("out")
	if s.c.IsSet("out") && s.path == "" {
		return usagef("--out needs a name")
	}
	if s.path == "" {
		ext := ".npz"
		if picture {
			ext = ".png"
		}
		s.path = "samples" + ext
		for k := 2; exists(s.path); k++ {
			s.path = fmt.Sprintf("samples-%d%s", k, ext)
		}
	}
	kind := output.Kind(s.path)
	if !picture && kind != "npz" && !s.c.Bool("print-schedule") && !s.c.Bool("dry-run") {
		return usagef("--out %s: the model gives arrays of shape %v, not pictures: use a name that ends in .npz", s.path, s.info.Shape)
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

// resolveSets finds the condition of every image.
func (s *sampling) resolveSets(_ context.Context, base *manifest.Run) error {
	var sets []manifest.Set
	switch {
	case s.c.IsSet("prompts"):
		lines, err := readLines(s.c.String("prompts"))
		if err != nil {
			return err
		}
		for i, line := range lines {
			set, err := s.set(line)
			if err != nil {
				return usagef("--prompts: line %d of %s: %w", i+1, s.c.String("prompts"), err)
			}
			sets = append(sets, set)
		}
	case s.c.IsSet("class"), s.c.IsSet("classes"):
		var set manifest.Set
		flag := "class"
		if s.c.IsSet("classes") {
			flag = "classes"
		}
		for part := range strings.SplitSeq(s.c.String(flag), ",") {
			k, err := s.class(part)
			if err != nil {
				return badUse(flag, err)
			}
			set.Classes = append(set.Classes, k)
		}
		if flag == "class" && len(set.Classes) > 1 {
			return usagef("--class takes one class; --classes takes a list")
		}
		sets = append(sets, set)
	case s.c.IsSet("prompt"):
		set, err := s.set(s.c.String("prompt"))
		if err != nil {
			return badUse("prompt", err)
		}
		sets = append(sets, set)
	case base != nil && !(s.c.IsSet("model") && base.Model.Hash != s.info.Hash):
		sets = base.Sets
	default:
		var set manifest.Set
		if s.info.Classes > 0 && (s.model.Net != nil || s.desc.Compose != nil) { // a row of an analytic target without a class is the whole mixture
			for k := range s.info.Classes {
				set.Classes = append(set.Classes, k)
			}
		}
		sets = append(sets, set)
	}
	if s.c.IsSet("negative-prompt") {
		if !s.info.Text {
			return usagef("--negative-prompt: %s takes no text", s.desc.Model.Path)
		}
		for i := range sets {
			sets[i].Negative = s.c.String("negative-prompt")
		}
	}
	s.desc.Sets, s.plan.Sets = sets, sets
	s.items = job.Items(len(sets), s.seeds, s.plan.Offset)
	if len(s.items) > manifest.MaxImages {
		return usagef("%d sets of %d images are more than %d", len(sets), len(s.seeds), manifest.MaxImages)
	}
	if output.Kind(s.path) == "png" && s.cols == 0 {
		n := len(s.items)
		s.cols = int(math.Ceil(math.Sqrt(float64(n))))
		s.rows = (n + s.cols - 1) / s.cols
	}
	if output.Kind(s.path) == "png" && s.cols*s.rows < len(s.items) {
		return usagef("%d images do not fit on a sheet of %dx%d", len(s.items), s.cols, s.rows)
	}
	return nil
}

// set is the condition that a word names: for class models a class.
func (s *sampling) set(word string) (manifest.Set, error) {
	if s.info.Text {
		return manifest.Set{Prompt: word}, nil
	}
	if s.info.Classes == 0 {
		return manifest.Set{}, fmt.Errorf("%s has no classes and takes no text", s.desc.Model.Path)
	}
	k, err := s.class(word)
	return manifest.Set{Classes: []int{k}}, err
}

// class reads a class by number or name.
func (s *sampling) class(word string) (int, error) {
	return classOf(s.info, s.desc.Model.Path, word)
}

// classOf reads a class of a model by number or name.
func classOf(info modelInfo, model, word string) (int, error) {
	word = strings.TrimSpace(word)
	if word == "none" {
		return models.NoClass, nil
	}
	if info.Classes == 0 {
		return 0, fmt.Errorf("%s has no classes", model)
	}
	if k, err := strconv.Atoi(word); err == nil {
		if k < 0 || k >= info.Classes {
			return 0, fmt.Errorf("class %d: the model has 0 to %d", k, info.Classes-1)
		}
		return k, nil
	}
	for k, label := range info.Labels {
		if strings.EqualFold(label, word) {
			return k, nil
		}
	}
	return 0, fmt.Errorf("unknown class %q%s", word, spec.Suggest(word, info.Labels))
}

// readLines reads the lines of a text file that are not blank.
func readLines(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if t := strings.TrimSpace(sc.Text()); t != "" {
			out = append(out, t)
		}
	}
	if err := sc.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, refuse.Errorf(name, "a line of more than 1 MiB")
	} else if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, refuse.Errorf(name, "has no line")
	}
	return out, nil
}

func (s *sampling) resolveGuiders(ctx context.Context, base *manifest.Run) error {
	if err := s.resolveGuide(ctx, base); err != nil {
		return err
	}
	var specs []string
	own := s.model.Defaults.Guiders // clipping, as its scheduler asks: around the guided model
	if s.bare {
		own = nil
	}
	switch {
	case s.c.IsSet("guider"):
		for _, g := range s.c.StringSlice("guider") {
			if g == "none" {
				own = nil
				continue
			}
			specs = append(specs, g)
		}
	case s.c.IsSet("cfg-scale"):
		w := s.c.Float64("cfg-scale")
		if math.IsNaN(w) || math.IsInf(w, 0) {
			return usagef("--cfg-scale %g: want a finite number", w)
		}
		specs = cfgSpec(w)
	case base != nil:
		specs, own = base.Guiders, nil
	case !s.c.IsSet("model") && s.desc.Compose == nil:
		specs = cfgSpec(s.model.Defaults.CFGScale)
	}
	specs = slices.Concat(specs, own)
	if s.c.IsSet("guide-model") && !slices.ContainsFunc(specs, needsSecond) {
		return &hint{usagef("--guide-model %s: no guider here works with a second network", s.c.String("guide-model")), "add --guider auto:w=2"}
	}
	if len(specs) == 0 {
		return nil
	}
	var second models.Denoiser
	if s.second != nil {
		second = s.second.Denoiser
	}
	if _, err := guide(s.model.Denoiser, second, specs, nil, nil); err != nil {
		return badUse("guider", err)
	}
	s.desc.Guiders = specs
	if err := s.readScripts(base); err != nil {
		return err
	}
	s.plan.Wrap = func(d models.Denoiser) (models.Denoiser, error) {
		return guide(d, second, specs, s.plan.Grid, s.tell)
	}
	if !slices.ContainsFunc(s.desc.Sets, func(set manifest.Set) bool {
		return set.Prompt != "" || slices.ContainsFunc(set.Classes, func(k int) bool { return k != models.NoClass })
	}) && slices.ContainsFunc(specs, func(g string) bool { return strings.HasPrefix(g, "cfg") }) {
		s.warn("classifier-free guidance does nothing without a class")
	}
	return nil
}

// needsSecond tells whether a guider works with a second network.
func needsSecond(text string) bool {
	g, err := guidance.Parse(text)
	_, ok := g.(guidance.Needer)
	return err == nil && ok
}

// cfgSpec is the guider of --cfg-scale; 1 is off.
func cfgSpec(w float64) []string {
	if w == 1 {
		return nil
	}
	return []string{"cfg:w=" + strconv.FormatFloat(w, 'g', -1, 64)}
}

// resolveGuide opens the second network.
func (s *sampling) resolveGuide(ctx context.Context, base *manifest.Run) error {
	name := s.text("guide-model", base, func(r *manifest.Run) string {
		if r.Guide == nil || s.c.IsSet("guider") || s.c.IsSet("cfg-scale") {
			return ""
		}
		return r.Guide.Path
	}, "")
	if name == "" {
		return nil
	}
	m, err := s.openModel(ctx, name, s.c.String("dtype"), s.c.String("tier"))
	if err != nil {
		return err
	}
	s.second = m
	i := m.Info
	if !slices.Equal(i.Shape, s.info.Shape) {
		return usagef("--guide-model %s gives arrays of shape %v, the model of shape %v", name, i.Shape, s.info.Shape)
	}
	s.desc.Guide = &manifest.Model{Path: name, Hash: i.Hash, DType: i.DType, Tier: i.Tier, Shape: i.Shape}
	return nil
}

// readScripts keeps the text of the files that guiders name: it decides the result.
func (s *sampling) readScripts(base *manifest.Run) error {
	for _, g := range s.desc.Guiders {
		sp, err := spec.Parse(g)
		if err != nil {
			return badUse("guider", err)
		}
		for _, a := range sp.Args {
			if a.Key != "file" {
				continue
			}
			text, err := job.ReadSmall(a.Value)
			if err != nil {
				return err
			}
			s.desc.Scripts = append(s.desc.Scripts, manifest.Script{Name: filepath.Base(a.Value), Text: string(text)})
		}
	}
	if base != nil && !s.c.IsSet("guider") && !slices.Equal(base.Scripts, s.desc.Scripts) {
		s.warn("the guiders' files are not those of that run any more")
	}
	return nil
}

// recurrences is how often guiders want every step of the grid made.
func (s *sampling) recurrences() (int, error) {
	k := 1
	for _, text := range s.desc.Guiders {
		g, err := guidance.Parse(text)
		if err != nil {
			return 0, badUse("guider", err)
		}
		if m, ok := g.(guidance.Gradient); ok && m.Recur > 1 {
			if k > 1 {
				return 0, usagef("--guider: two guiders with recur")
			}
			k = m.Recur
		}
	}
	return k, nil
}

// tell takes what a guider says of the rows of a step: a column of the log.
type tell func(q *models.Query, column string, v []float64)

// guide chains guiders around a model, left to right. second is the other model of those that need one, g the grid of those
// that want it (nil while it is not known), say what they report to (may be nil).
func guide(d, second models.Denoiser, specs []string, g schedules.Grid, say tell) (models.Denoiser, error) {
	energies := 0
	for _, text := range specs {
		made, err := guidance.Parse(text)
		if err != nil {
			return nil, err
		}
		if n, ok := made.(guidance.Needer); ok {
			if second == nil {
				return nil, fmt.Errorf("%s needs a second network: --guide-model", text)
			}
			made = n.With(second)
		}
		if n, ok := made.(guidance.Gridder); ok && g != nil {
			made = n.On(g)
		}
		switch m := made.(type) {
		case guidance.Gradient:
			energies++
			tail := ""
			if energies > 1 {
				tail = "_" + strconv.Itoa(energies)
			}
			if say != nil {
				m.Report = func(q *models.Query, e, norm []float64, logged []map[string]float64) {
					say(q, "energy"+tail, e)
					say(q, "grad_norm"+tail, norm)
					names := map[string]bool{}
					for _, row := range logged {
						for name := range row {
							names[name] = true
						}
					}
					for name := range names {
						v := make([]float64, len(logged))
						for i, row := range logged {
							v[i] = math.NaN()
							if x, ok := row[name]; ok {
								v[i] = x
							}
						}
						say(q, name, v)
					}
				}
				made = m
			}
		case guidance.Minority:
			if say != nil {
				m.Measure = func(q *models.Query, dist []float64) { say(q, "minority", dist) }
				made = m
			}
		}
		d = made.Guide(d)
	}
	return d, nil
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
	p, ok := s.model.Denoiser.Process().(schedules.Gaussian)
	if !ok {
		return fmt.Errorf("%s: the process %s is not Gaussian: no solver here runs on it", s.desc.Model.Path, s.model.Denoiser.Process().Name())
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
		if g, err = own.Grid(p); err != nil {
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
func (s *sampling) explicit(p schedules.Gaussian) (schedules.Grid, error) {
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
func (s *sampling) named(ctx context.Context, p schedules.Gaussian, base *manifest.Run, smp samplers.Sampler, implied string, own bool) (schedules.Grid, error) {
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
const modelSchedule = "model"

func (s *sampling) defaultSchedule(p schedules.Gaussian) string {
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
func (s *sampling) fileGrid(p schedules.Gaussian, path string) (schedules.Grid, error) {
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

// resolveStart finds where the run starts and ends, and from what.
func (s *sampling) resolveStart(_ context.Context, base *manifest.Run) error {
	n := len(s.plan.Grid) - 1
	own := s.plan.Sampler.Needs().OwnGrid
	first, last := s.c.Int("start-step"), s.c.Int("end-step")
	initFile, initImage, strength := s.c.String("init"), s.c.String("init-image"), defaultStrength
	if base != nil {
		if !s.c.IsSet("start-step") && !s.c.IsSet("strength") {
			first = min(base.First, n-1)
		}
		if !s.c.IsSet("end-step") {
			last = base.Last
		}
		if initFile == "" && initImage == "" {
			initFile, initImage = base.Init, base.InitImage
			if base.Strength > 0 {
				strength = base.Strength
			}
		}
	}
	if s.c.IsSet("strength") {
		if initImage == "" {
			return usagef("--strength needs --init-image")
		}
		strength = s.c.Float64("strength")
		if !(strength > 0 && strength <= 1) {
			return usagef("--strength %g: want more than 0, at most 1", strength)
		}
	}
	if initImage != "" && !s.c.IsSet("start-step") {
		if own {
			return usagef("--strength: %s places its own steps: name a start by --sigma-max or --t-start and use --start-step 0", s.desc.Sampler)
		}
		first = job.StartAt(n, strength)
		if first >= n {
			return usagef("--strength %g leaves no step of %d", strength, n)
		}
		s.desc.Strength = strength
	}
	if s.c.IsSet("start-step") && (first < 0 || first >= n) {
		return usagef("--start-step %d: want 0 to %d", first, n-1)
	}
	if s.c.IsSet("end-step") && (last <= first || last > n) {
		return usagef("--end-step %d: want %d to %d", last, first+1, n)
	}
	if last == n {
		last = 0
	}
	s.plan.First, s.plan.Last = first, last
	s.desc.First, s.desc.Last = first, last
	if initFile != "" {
		if err := s.readInit(initFile); err != nil {
			return err
		}
	}
	if initImage != "" {
		if err := s.readImage(initImage); err != nil {
			return err
		}
	}
	return nil
}

// hashFile is the SHA-256 of a file, hex.
func hashFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (s *sampling) readInit(name string) error {
	arrays, err := npz.ReadAll(name, "x")
	if err != nil {
		return err
	}
	x := arrays["x"]
	d, err := x.Float64()
	if err != nil {
		return refuse.Errorf(name, "%v", err)
	}
	if len(x.Shape) != len(s.info.Shape)+1 || !slices.Equal(x.Shape[1:], s.info.Shape) {
		return refuse.Errorf(name, "x has shape %v, the model wants rows of shape %v", x.Shape, s.info.Shape)
	}
	if have, want := x.Shape[0], s.plan.Offset+len(s.seeds); have < want {
		return usagef("--init %s has %d rows for %d images", name, have, want)
	}
	for i, v := range d {
		if v-v != 0 {
			return refuse.Errorf(name, "x is not finite at element %d", i)
		}
	}
	s.plan.Start = models.Wrap(d, x.Shape...)
	s.desc.Init = name
	s.desc.InitID, err = hashFile(name)
	return err
}

func (s *sampling) readImage(name string) error {
	if !pixels.Picture(s.info.Image()) {
		return usagef("--init-image: the model gives arrays of shape %v, not pictures", s.info.Shape)
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	cfg, _, err := image.DecodeConfig(bufio.NewReader(f))
	if err != nil {
		return refuse.Errorf(name, "not a picture that can be read: %v", err)
	}
	if cfg.Width > 1<<14 || cfg.Height > 1<<14 {
		return refuse.Errorf(name, "%dx%d pixels are more than are read", cfg.Width, cfg.Height)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	m, _, err := image.Decode(bufio.NewReader(f))
	if err != nil {
		return refuse.Errorf(name, "not a picture that can be read: %v", err)
	}
	shape := s.info.Image()
	x, resized := pixels.Array(m, shape)
	if resized {
		s.say("drift: %s is resized to %dx%d", name, shape[2], shape[1])
	}
	if s.plan.Codec != nil {
		z, err := s.plan.Codec.Encode(s.c.Context, models.Wrap(x, append([]int{1}, shape...)...))
		if err != nil {
			return refuse.Errorf(name, "encoding: %v", err)
		}
		x = models.Data(z)
	}
	s.plan.Image, s.desc.InitImage = x, name
	s.desc.InitID, err = hashFile(name)
	return err
}

func (s *sampling) resolveNoise(_ context.Context, base *manifest.Run) error {
	name := s.text("noise", base, func(r *manifest.Run) string { return r.Noise }, "")
	switch name {
	case "", "philox":
		return nil
	case "torch":
		s.plan.NewNoise = func() samplers.Noise { return &samplers.Torch{} }
	case "brownian":
		s.plan.NewNoise = func() samplers.Noise { return samplers.Streams{Brownian: true} }
	case "zero":
		s.plan.NewNoise = func() samplers.Noise { return job.StepsZero{} }
	default:
		if !strings.EqualFold(filepath.Ext(name), ".npz") {
			return usagef("--noise %s: want zero, torch, philox, brownian or a .npz file", name)
		}
		arrays, err := npz.ReadAll(name, "noise")
		if err != nil {
			return err
		}
		d, err := arrays["noise"].Float64()
		if err != nil {
			return refuse.Errorf(name, "%v", err)
		}
		shape := arrays["noise"].Shape
		n := len(s.plan.Grid) - 1
		if s.plan.Sampler.Needs().OwnGrid && len(shape) > 0 {
			n = shape[0]
		}
		dim := 1
		for _, k := range s.info.Shape {
			dim *= k
		}
		if len(shape) < 2 || slices.Min(shape) < 1 {
			return refuse.Errorf(name, "noise has shape %v, want (steps, batch, ...)", shape)
		}
		rec, err := samplers.NewRecorded(models.Wrap(d, shape...), n)
		if err != nil {
			return refuse.Errorf(name, "%s", trimPackage(err.Error()))
		}
		if !rec.Fits(s.plan.Offset+len(s.seeds), dim) {
			return refuse.Errorf(name, "noise of shape %v does not fit %d images of shape %v", shape, s.plan.Offset+len(s.seeds), s.info.Shape)
		}
		s.plan.NewNoise = func() samplers.Noise { return rec }
		if s.desc.NoiseID, err = hashFile(name); err != nil {
			return err
		}
	}
	s.desc.Noise = name
	return nil
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
