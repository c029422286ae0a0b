package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/guidance"
	"drift/internal/kernels"
	"drift/internal/npz"
	"drift/internal/operators"
	"drift/internal/pixels"
	"drift/internal/refuse"
	"drift/metrics"
	"drift/metrics/features"
	"drift/models"
	"drift/models/analytic"
	"drift/models/zoo"
	"drift/samplers"
	"drift/samplers/inverse"
)

func restoreVerb(a *app) *cli.Command {
	return &cli.Command{
		Name: "restore", Usage: "inverse problems: draw what a degraded picture may have been",
		Description: "Every input is degraded once, y = A(x) + noise, and all methods draw samples from that one measurement: one per seed, from the seed's streams. --out is a folder: measurement.npz, a folder of pictures per method, " +
			"spread pictures (standard deviation of every pixel over the seeds), sheet.png (a line per method, a column per seed; left what is true and what was measured, right the spread), results.json and results.csv. " +
			"The same line again makes what is missing, and more methods can be added to a folder. Tasks: drift list tasks; methods: drift list restorers.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "task", Usage: "how pictures are degraded, name:key=value,... (`TASK`); see drift list tasks"},
			&cli.StringFlag{Name: "mask", Usage: "of --task inpaint: a picture, white is filled in and black is known (`M.png`), or a .npz with array mask (H, W), not 0 is filled in"},
			&cli.BoolFlag{Name: "mask-invert", Usage: "white is known"},
			&cli.StringSliceFlag{Name: "input", Usage: "picture, .npz with images or x, or test:0-9, embedded test pictures of clothes (`IMG`); repeatable. Default test:0, or a draw from an analytic target"},
			&cli.BoolFlag{Name: "degraded", Usage: "the inputs are measurements already (pictures of the measurement's size, or .npz with y): nothing is degraded, and the truth is not known"},
			&cli.Float64Flag{Name: "noise-sigma", Usage: "standard deviation of the measurement's noise, for pictures in [-1, 1] (`S`)"},
			&cli.Uint64Flag{Name: "noise-seed", Usage: "stream of that noise; the inputs' noises are apart (`N`)"},
			&cli.StringFlag{Name: "methods", Aliases: []string{"method"}, Usage: "`A,B`: name:key=value,... each; see drift list restorers", Value: "pigdm"},
			&cli.StringFlag{Name: "model", Usage: "name from drift list models, a diffusers folder, a .onnx file, or a .json analytic target (`X`)"},
			&cli.StringFlag{Name: "out", Usage: "folder (`DIR`); default restored"},
			&cli.Uint64Flag{Name: "seed", Usage: "stream of the first sample (`N`)"},
			&cli.StringFlag{Name: "seeds", Usage: "streams, such as 0-3 (`LIST`); default 0-3"},
			&cli.IntFlag{Name: "count", Usage: "samples of every picture (`N`)"},
			&cli.IntFlag{Name: "batch", Usage: "samples at a time (`B`); never changes a result"},
			&cli.StringFlag{Name: "dtype", Usage: "arithmetic of the network: f32, bf16, f64 (`T`)"},
			&cli.StringFlag{Name: "tier", Usage: "kernel tier (`TIER`)"},
			&cli.StringFlag{Name: "schedule", Usage: "name:key=value,... (`G`); see drift list schedules"},
			&cli.IntFlag{Name: "steps", Usage: "number of steps (`N`); default 100"},
			&cli.Float64Flag{Name: "rho", Usage: "option rho of the schedule (`X`)"},
			&cli.Float64Flag{Name: "t-start", Usage: "noise end of the grid, in the process's own time (`T`)"},
			&cli.Float64Flag{Name: "t-end", Usage: "data end (`T`)"},
			&cli.Float64Flag{Name: "sigma-max", Usage: "noise end as sigma/alpha (`S`)"},
			&cli.Float64Flag{Name: "sigma-min", Usage: "data end as sigma/alpha (`S`)"},
			&cli.StringFlag{Name: "final", Usage: "zero: go on to the clean end; min: stop at the last noise level (`WHERE`)"},
			&cli.StringFlag{Name: "grid", Usage: "explicit nodes, {\"sigmas\":[...]} or {\"times\":[...]} (`FILE.json`)"},
			&cli.StringFlag{Name: "sigmas", Usage: "explicit sigma/alpha, noise to data (`a,b,c`)"},
			&cli.StringFlag{Name: "timesteps", Usage: "explicit times of the process (`a,b,c`)"},
			&cli.StringFlag{Name: "class", Usage: "class of what is in the pictures, by number or name (`K`); default none"},
			&cli.StringFlag{Name: "classes", Usage: "classes of the inputs in turn (`0,3,5`)"},
			&cli.StringSliceFlag{Name: "guider", Usage: "name:key=value,... (`SPEC`), around the model before the method; repeatable. Default clip for networks of pictures (none drops that)"},
			&cli.StringFlag{Name: "guide-model", Usage: "second network of autoguidance (`M`)"},
			&cli.StringFlag{Name: "rounding", Usage: "to 8 bit: floor or diffusers (`RULE`)"},
			&cli.BoolFlag{Name: "resume", Usage: "go on with the run in --out (what happens anyway)"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print what every method would cost, and stop"},
		},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			r := &restoring{sampling: sampling{app: a, c: c}}
			defer r.close()
			if err := r.resolve(c.Context); err != nil {
				return err
			}
			if c.Bool("dry-run") {
				return r.dryRun(c.Context)
			}
			return r.run(c.Context)
		},
	}
}

// restoring is one run of the verb. Of sampling it uses the model, the grid and the second network.
type restoring struct {
	sampling
	about   restoration
	inputs  []*subject
	op      operators.Operator
	methods []*restorer
	wrap    job.Wrap
	picture bool
	judge   features.Extractor // nil where there is none for these pictures
	many    bool               // the default input is all there is, as a bench wants it
}

// restoration is what decides the results of a run, but for the methods: folders can be given more of them.
type restoration struct {
	Format     int             `json:"format"`
	Version    string          `json:"version"`
	Verb       string          `json:"verb"`
	Model      manifest.Model  `json:"model"`
	Guide      *manifest.Model `json:"guide_model,omitempty"`
	Guiders    []string        `json:"guiders,omitempty"`
	Task       string          `json:"task"`
	Mask       string          `json:"mask_hash,omitempty"`
	NoiseSigma float64         `json:"noise_sigma"`
	Degraded   bool            `json:"degraded,omitempty"`
	Inputs     []string        `json:"input_hashes"`
	Classes    []int           `json:"classes,omitempty"`
	Schedule   string          `json:"schedule,omitempty"`
	Grid       manifest.Grid   `json:"grid"`
	Seeds      string          `json:"seeds"`
	Rounding   string          `json:"rounding,omitempty"`
}

// Canonical is the JSON that is hashed: without the model's path.
func (r restoration) Canonical() []byte {
	r.Model.Path = ""
	if r.Guide != nil {
		g := *r.Guide
		g.Path = ""
		r.Guide = &g
	}
	b, err := json.Marshal(r)
	if err != nil {
		panic("restore: " + err.Error()) // grids are checked
	}
	return b
}

func (r restoration) hash() string {
	s := sha256.Sum256(r.Canonical())
	return hex.EncodeToString(s[:])
}

// subject is one input.
type subject struct {
	name     string
	place    int
	truth    []float64 // nil: not known
	y        operators.Measurement
	features []float64 // of the truth
}

// restorer is one method.
type restorer struct {
	text, slug string
	info       inverse.Info
	make       inverse.Method
	group      int          // rows per seed
	way        guidance.Way // of gradients; of no meaning where info.VJP is false
	cost       job.Cost     // per row
}

// gradient says which gradient runs.
func (m *restorer) gradient() string {
	if !m.info.VJP {
		return "none"
	}
	return m.way.String()
}

const (
	restoreSteps = 100
	mostInputs   = 1 << 16
)

func (r *restoring) close() {
	if r.judge != nil {
		r.judge.Close()
	}
	r.sampling.close()
}

// resolve turns the flags into a plan. Nothing is written.
func (r *restoring) resolve(ctx context.Context) error {
	c := r.c
	r.desc = manifest.Run{Format: manifest.Format, Version: release, Verb: "restore"}
	r.plan = &job.Plan{}
	for _, group := range [][]string{{"seed", "seeds"}, {"count", "seeds"}, {"class", "classes"}, {"steps", "grid", "sigmas", "timesteps"}, {"schedule", "grid", "sigmas", "timesteps"},
		{"t-start", "sigma-max", "grid", "sigmas", "timesteps"}, {"t-end", "sigma-min", "grid", "sigmas", "timesteps"}, {"final", "grid", "sigmas", "timesteps"}} {
		if err := r.exclude(group...); err != nil {
			return err
		}
	}
	if !c.IsSet("task") && !c.IsSet("mask") {
		return &hint{usagef("--task is missing: how are the pictures degraded?"), "for example --task superres:factor=4, --task inpaint:box=centre, or --task inpaint --mask m.png; drift list tasks tells them all"}
	}
	if err := r.resolveModel(ctx, nil); err != nil {
		return err
	}
	r.model.Defaults.Steps = restoreSteps
	r.picture = pixels.Picture(r.info.Shape)
	for _, step := range []func(context.Context) error{r.resolveStreams, r.resolveTask, r.resolveInputs, r.resolveConditions, r.resolveWrap} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := r.resolveGrid(ctx, nil); err != nil {
		return err
	}
	if err := r.resolveMethods(ctx); err != nil {
		return err
	}
	r.about = restoration{Format: 1, Version: release, Verb: "restore", Model: r.desc.Model, Guide: r.desc.Guide, Guiders: r.desc.Guiders, Task: r.op.Name(), Mask: r.about.Mask,
		NoiseSigma: c.Float64("noise-sigma"), Degraded: c.Bool("degraded"), Classes: r.about.Classes, Schedule: r.desc.Schedule, Grid: r.desc.Grid, Seeds: r.desc.Seeds, Rounding: r.desc.Rounding}
	for _, in := range r.inputs {
		h := sha256.New()
		fmt.Fprintln(h, in.truth, in.y.Y)
		r.about.Inputs = append(r.about.Inputs, hex.EncodeToString(h.Sum(nil))[:16])
	}
	r.path = r.text("out", nil, nil, "restored")
	if r.path == "" {
		return usagef("--out needs a name")
	}
	return nil
}

func (r *restoring) resolveStreams(context.Context) error {
	c := r.c
	if c.IsSet("batch") && c.Int("batch") < 1 {
		return usagef("--batch %d: want 1 or more", c.Int("batch"))
	}
	if c.IsSet("seeds") {
		seeds, err := manifest.ParseSeeds(c.String("seeds"))
		if err != nil {
			return badUse("seeds", err)
		}
		r.seeds = seeds
	} else {
		n := 4
		if c.IsSet("seed") {
			n = 1
		}
		if c.IsSet("count") {
			if n = c.Int("count"); n < 1 || n > manifest.MaxImages {
				return usagef("--count %d: want 1 to %d", n, manifest.MaxImages)
			}
		}
		first := c.Uint64("seed")
		if first > math.MaxUint64-uint64(n-1) {
			return usagef("--seed %d: %d samples need streams beyond the last", first, n)
		}
		for k := range n {
			r.seeds = append(r.seeds, first+uint64(k))
		}
	}
	r.desc.Seeds = manifest.FormatSeeds(r.seeds)
	if !r.picture {
		return nil
	}
	rule, err := pixels.ParseRounding(r.text("rounding", nil, nil, r.model.Defaults.Rounding))
	r.desc.Rounding = string(rule)
	return badUse("rounding", err)
}

// resolveTask makes the operator.
func (r *restoring) resolveTask(context.Context) error {
	c := r.c
	shape := r.info.Shape
	var known []bool
	if c.IsSet("mask") {
		m, hash, err := r.readMask(c.String("mask"))
		if err != nil {
			return err
		}
		known, r.about.Mask = m, hash
	} else if c.IsSet("mask-invert") {
		return usagef("--mask-invert needs --mask")
	}
	op, err := operators.Parse(r.text("task", nil, nil, "inpaint"), shape, known)
	if err != nil {
		return &usage{"--task: " + strings.TrimPrefix(err.Error(), "task: "), err}
	}
	r.op = op
	if s := c.Float64("noise-sigma"); !(s >= 0) || math.IsInf(s, 0) {
		return usagef("--noise-sigma %g: want 0 or more", s)
	}
	return nil
}

// readMask reads which pixels are known.
func (r *restoring) readMask(name string) (known []bool, hash string, err error) {
	shape := r.info.Shape
	if len(shape) == 1 {
		shape = []int{1, 1, shape[0]}
	}
	h, w := shape[1], shape[2]
	known = make([]bool, h*w)
	invert := r.c.Bool("mask-invert")
	if strings.EqualFold(filepath.Ext(name), ".npz") {
		arrays, err := npz.ReadAll(name, "mask")
		if err != nil {
			return nil, "", err
		}
		v, err := arrays["mask"].Float64()
		if err != nil {
			return nil, "", refuse.Errorf(name, "%v", err)
		}
		if len(v) != h*w {
			return nil, "", usagef("--mask %s has shape %v, the pictures have %d x %d pixels", name, arrays["mask"].Shape, w, h)
		}
		for i, x := range v {
			known[i] = (x == 0) != invert
		}
	} else {
		m, err := readPicture(name)
		if err != nil {
			return nil, "", err
		}
		b := m.Bounds()
		if b.Dx() != w || b.Dy() != h {
			return nil, "", &hint{usagef("--mask %s has %d x %d pixels, the pictures have %d x %d", name, b.Dx(), b.Dy(), w, h), "a mask is not resized: its pixels are the picture's"}
		}
		x, _ := pixels.Array(m, []int{1, h, w})
		for i, v := range x {
			known[i] = (v < 0) != invert
		}
	}
	sum := sha256.New()
	n := 0
	for _, k := range known {
		b := byte(0)
		if k {
			b = 1
			n++
		}
		sum.Write([]byte{b})
	}
	r.say("drift: %s: %d of %d pixels are known", name, n, h*w)
	return known, hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// resolveInputs reads and degrades the inputs.
func (r *restoring) resolveInputs(context.Context) error {
	names := r.c.StringSlice("input")
	degraded := r.c.Bool("degraded")
	if len(names) == 0 {
		switch _, exact := models.As[*analytic.Mixture](r.model.Denoiser); {
		case degraded:
			return usagef("--degraded needs --input, the measurement")
		case exact:
			if names = []string{"draw:0"}; r.many {
				names = []string{"draw:0-99"}
			}
		case slices.Equal(r.info.Shape, []int{1, 28, 28}):
			if names = []string{"test:0"}; r.many {
				names = []string{"test:0-99"}
			}
		default:
			return usagef("--input is missing: a picture to degrade and restore")
		}
	}
	shape := r.info.Shape
	if degraded {
		shape = r.op.Out()
	}
	for _, name := range names {
		rows, labels, err := r.readInput(name, shape, degraded)
		if err != nil {
			return err
		}
		for k, x := range rows {
			for _, v := range x {
				if v-v != 0 {
					return refuse.Errorf(name, "not finite")
				}
			}
			in := &subject{name: labels[k], place: len(r.inputs)}
			if degraded {
				in.y = operators.Measurement{A: r.op, Y: x, Sigma: r.c.Float64("noise-sigma")}
			} else {
				in.truth = x
				in.y = operators.Measure(r.op, x, r.c.Float64("noise-sigma"), r.c.Uint64("noise-seed"), uint64(in.place))
			}
			r.inputs = append(r.inputs, in)
		}
	}
	if len(r.inputs) > mostInputs {
		return usagef("--input: %d pictures are more than %d", len(r.inputs), mostInputs)
	}
	if slices.Equal(r.info.Shape, []int{1, 28, 28}) {
		tier, err := kernels.ParseTier(r.info.Tier)
		if err != nil {
			tier = 0
		}
		if r.judge, err = features.Open("fashion", features.Options{Threads: runtime.GOMAXPROCS(0), Tier: tier}); err != nil {
			return err
		}
	}
	return nil
}

// readInput reads rows of the given shape.
func (r *restoring) readInput(name string, shape []int, degraded bool) (rows [][]float64, labels []string, err error) {
	size := operators.Size(shape)
	kind, list, special := strings.Cut(name, ":")
	if _, e := os.Stat(name); special && errors.Is(e, fs.ErrNotExist) && (kind == "test" || kind == "draw") {
		at, err := manifest.ParseSeeds(list)
		if err != nil {
			return nil, nil, badUse("input", fmt.Errorf("%s: %w", name, err))
		}
		if degraded {
			return nil, nil, usagef("--input %s is no measurement", name)
		}
		var test [][]float64
		m, exact := models.As[*analytic.Mixture](r.model.Denoiser)
		switch {
		case kind == "draw" && !exact:
			return nil, nil, usagef("--input %s: only analytic targets can be drawn from exactly", name)
		case kind == "test" && !slices.Equal(shape, []int{1, 28, 28}):
			return nil, nil, usagef("--input %s: the embedded test pictures have shape (1, 28, 28), the model's have %v", name, shape)
		case kind == "test":
			if test, err = testPictures(); err != nil {
				return nil, nil, err
			}
		}
		for _, k := range at {
			x := make([]float64, size)
			if exact && kind == "draw" {
				if err := m.Sample(x, models.NoClass, k); err != nil {
					return nil, nil, err
				}
			} else if k >= uint64(len(test)) {
				return nil, nil, usagef("--input %s: there are %d test pictures", name, len(test))
			} else {
				x = test[k]
			}
			rows, labels = append(rows, x), append(labels, fmt.Sprintf("%s:%d", kind, k))
		}
		return rows, labels, nil
	}
	if strings.EqualFold(filepath.Ext(name), ".npz") {
		rows, err = readRows(name, shape, degraded)
		for k := range rows {
			labels = append(labels, fmt.Sprintf("%s[%d]", filepath.Base(name), k))
		}
		return rows, labels, err
	}
	if !pixels.Picture(shape) {
		return nil, nil, usagef("--input %s: arrays of shape %v are read from a .npz", name, shape)
	}
	m, err := readPicture(name)
	if err != nil {
		return nil, nil, err
	}
	if b := m.Bounds(); degraded && (b.Dx() != shape[2] || b.Dy() != shape[1]) {
		return nil, nil, usagef("--input %s has %d x %d pixels, the measurement of %s has %d x %d", name, b.Dx(), b.Dy(), r.op.Name(), shape[2], shape[1])
	}
	x, resized := pixels.Array(m, shape)
	if resized {
		r.say("drift: %s is resized to %dx%d", name, shape[2], shape[1])
	}
	return [][]float64{x}, []string{filepath.Base(name)}, nil
}

// readRows reads rows of an array file: images (bytes N, H, W, C), or x (y of measurements) of any number of rows.
func readRows(name string, shape []int, degraded bool) ([][]float64, error) {
	a, err := npz.Read(name)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	key := "x"
	if degraded {
		key = "y"
	} else if _, ok := a.Info("x"); !ok {
		key = "images"
	}
	info, ok := a.Info(key)
	if !ok {
		return nil, refuse.Errorf(name, "has no array %s", key)
	}
	arrays, err := npz.ReadAll(name, key)
	if err != nil {
		return nil, err
	}
	v, err := arrays[key].Float64()
	if err != nil {
		return nil, refuse.Errorf(name, "%v", err)
	}
	size := operators.Size(shape)
	want := shape
	if key == "images" && len(shape) == 3 {
		want = []int{shape[1], shape[2], shape[0]}
	}
	if !slices.Equal(info.Shape, want) && (len(info.Shape) == 0 || !slices.Equal(info.Shape[1:], want)) || len(v) == 0 {
		return nil, usagef("--input %s: %s has shape %v, want rows of shape %v", name, key, info.Shape, want)
	}
	var out [][]float64
	for k := range len(v) / size {
		row := v[k*size : (k+1)*size]
		if key == "images" {
			x := make([]float64, size)
			for i, b := range row {
				x[i%shape[0]*shape[1]*shape[2]+i/shape[0]] = b/127.5 - 1
			}
			row = x
		}
		out = append(out, row)
	}
	return out, nil
}

// testPictures are the embedded test pictures of clothes.
func testPictures() ([][]float64, error) {
	images, err := zoo.TestImages()
	if err != nil {
		return nil, err
	}
	var out [][]float64
	for _, b := range images {
		x := make([]float64, len(b))
		for i, v := range b {
			x[i] = float64(v)/127.5 - 1
		}
		out = append(out, x)
	}
	return out, nil
}

func (r *restoring) resolveConditions(context.Context) error {
	flag := "class"
	if r.c.IsSet("classes") {
		flag = "classes"
	}
	if r.c.IsSet(flag) {
		for part := range strings.SplitSeq(r.c.String(flag), ",") {
			k, err := r.class(part)
			if err != nil {
				return badUse(flag, err)
			}
			r.about.Classes = append(r.about.Classes, k)
		}
		if flag == "class" && len(r.about.Classes) > 1 {
			return usagef("--class takes one class; --classes takes a list")
		}
	}
	return nil
}

// classOf is the class of an input.
func (r *restoring) classOf(place int) int {
	return manifest.Set{Classes: r.about.Classes}.Class(place)
}

// resolveWrap chains the guiders around the model.
func (r *restoring) resolveWrap(ctx context.Context) error {
	if err := r.resolveGuide(ctx, nil); err != nil {
		return err
	}
	own := r.model.Defaults.Guiders
	if r.picture && (r.model.Net != nil || r.info.Runtime != "") && len(own) == 0 {
		own = []string{"clip"}
	}
	var specs []string
	for _, g := range r.c.StringSlice("guider") {
		if g == "none" {
			own = nil
			continue
		}
		specs = append(specs, g)
	}
	specs = append(specs, own...)
	var second models.Denoiser
	if r.second != nil {
		second = r.second.Denoiser
	}
	if _, err := guide(r.model.Denoiser, second, specs, nil, nil); err != nil {
		return badUse("guider", err)
	}
	r.desc.Guiders = specs
	r.wrap = func(d models.Denoiser) (models.Denoiser, error) { return guide(d, second, specs, r.plan.Grid, nil) }
	return nil
}

// resolveMethods reads the methods and counts what they cost.
func (r *restoring) resolveMethods(ctx context.Context) error {
	for _, text := range bench.Split(r.c.String("methods")) {
		mk, info, err := inverse.Parse(text)
		if err != nil {
			return &usage{"--methods: " + strings.TrimPrefix(err.Error(), "inverse: "), err}
		}
		m := &restorer{text: text, slug: slug(text), info: info, make: mk, group: 1}
		if slices.ContainsFunc(r.methods, func(o *restorer) bool { return o.slug == m.slug }) {
			return usagef("--methods: %s stands there twice", text)
		}
		s, err := mk(r.inputs[0].y)
		if err != nil {
			return &usage{"--methods: " + strings.TrimPrefix(err.Error(), "inverse: "), err}
		}
		if g, ok := s.(interface{ Particles() int }); ok {
			m.group = g.Particles()
		}
		d, err := r.wrap(r.model.Denoiser)
		if err != nil {
			return err
		}
		if g, ok := s.(interface{ Gradient() guidance.Way }); ok {
			m.way = g.Gradient().For(d)
		}
		if _, ok := models.As[models.VJP](d); s.Needs().VJP && !ok {
			return usagef("--methods: %s: %s has no gradients: use grad=fd", text, r.desc.Model.Path)
		}
		if m.group == 1 { // groups belong together: the run tells
			// What a blank model cannot show, the run itself will.
			if m.cost, err = job.CountNFE(ctx, s, r.wrap, r.model.Denoiser, r.info.Shape, len(r.about.Classes) > 0, r.plan.Grid, 0, 0); err != nil {
				m.cost = job.Cost{NFE: math.NaN(), VJPs: math.NaN()}
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		r.methods = append(r.methods, m)
	}
	return nil
}

// slug is a method's text as the name of a folder.
func slug(text string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("+=.,-_", c) {
			return c
		}
		return '_'
	}, text)
}

// problem is the restoration of one input by rows.
func (r *restoring) problem(in *subject, rows []models.Row) (*samplers.Problem, error) {
	d, err := r.wrap(r.model.Denoiser)
	if err != nil {
		return nil, err
	}
	p := &samplers.Problem{Model: d, Grid: r.plan.Grid, Rows: rows, Shape: r.info.Shape, Meter: &models.Meter{}}
	if len(r.about.Classes) > 0 {
		p.Cond = &models.Cond{Classes: slices.Repeat([]int{r.classOf(in.place)}, len(rows))}
	}
	return p, nil
}

// score is what is measured of one sample. What is not known is NaN.
type score struct {
	Misfit   float64 // |y - A(x)|
	PSNR     float64 // dB, x clipped to [-1, 1]
	SSIM     float64
	Features float64 // Euclidean distance of the classifier's features
}

// scores measures rows.
func (r *restoring) scores(ctx context.Context, in *subject, x []float64) ([]score, error) {
	n := operators.Size(r.info.Shape)
	out := make([]score, len(x)/n)
	nan := math.NaN()
	for k := range out {
		row := x[k*n : (k+1)*n]
		res := in.y.Residual(row)
		sum := 0.0
		for _, v := range res {
			sum += float64(v * v)
		}
		out[k] = score{Misfit: math.Sqrt(sum), PSNR: nan, SSIM: nan, Features: nan}
		if in.truth == nil || !r.picture {
			continue
		}
		a, b := interleave(row, r.info.Shape), interleave(in.truth, r.info.Shape)
		var err error
		if out[k].PSNR, err = metrics.PSNR(a, b, 2); err != nil {
			return nil, err
		}
		if min(a.H, a.W) >= 11 {
			if out[k].SSIM, err = metrics.SSIM(a, b, 2); err != nil {
				return nil, err
			}
		}
	}
	if r.judge == nil || in.truth == nil {
		return out, nil
	}
	f, err := r.featuresOf(ctx, x)
	if err != nil {
		return nil, err
	}
	if in.features == nil {
		if in.features, err = r.featuresOf(ctx, in.truth); err != nil {
			return nil, err
		}
	}
	w := len(in.features)
	for k := range out {
		sum := 0.0
		for i, v := range f[k*w : (k+1)*w] {
			d := v - in.features[i]
			sum += float64(d * d)
		}
		out[k].Features = math.Sqrt(sum)
	}
	return out, nil
}

// featuresOf are the features of rows of pictures.
func (r *restoring) featuresOf(ctx context.Context, x []float64) ([]float64, error) {
	shape := r.info.Shape
	n := operators.Size(shape)
	im := features.Images{N: len(x) / n, H: shape[1], W: shape[2], C: shape[0], Pix: make([]byte, len(x))}
	for k := range im.N {
		pixels.Bytes(im.Pix[k*n:(k+1)*n], x[k*n:(k+1)*n], shape, pixels.Rounding(r.desc.Rounding))
	}
	v, err := r.judge.Extract(ctx, im)
	return v.Features.X, err
}

// interleave is a picture for package metrics, clipped to [-1, 1].
func interleave(x []float64, shape []int) metrics.Image[float64] {
	c, n := shape[0], shape[1]*shape[2]
	m := metrics.Image[float64]{H: shape[1], W: shape[2], C: c, Pix: make([]float64, len(x))}
	for i, v := range x {
		m.Pix[i%n*c+i/n] = min(max(v, -1), 1)
	}
	return m
}

// taskEntries and restorerEntries are what drift list shows.
func taskEntries(*app) []entry {
	var out []entry
	for _, i := range operators.List() {
		e := entry{Name: i.Name, Summary: i.Summary, Aliases: i.Aliases}
		if !i.Linear {
			e.Summary += " (not linear)"
		}
		for _, o := range i.Options {
			e.Options = append(e.Options, entryOption(o))
		}
		out = append(out, e)
	}
	return out
}

func restorerEntries(*app) []entry {
	var out []entry
	for _, i := range inverse.List() {
		e := entry{Name: i.Name, Summary: i.Summary, Source: i.Source, NFE: i.NFE, VJP: &i.VJP}
		if i.Linear {
			e.Summary += " (linear tasks)"
		}
		for _, o := range i.Options {
			e.Options = append(e.Options, entryOption(o))
		}
		out = append(out, e)
	}
	return out
}
