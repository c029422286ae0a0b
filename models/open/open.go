// Package open turns the name of a model, as a user writes it, into a Denoiser: an embedded model, a folder in the
// diffusers layout, an ONNX file, or an analytic target in a JSON file.
package open

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"gorgonia.org/tensor"

	"drift/internal/kernels"
	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/internal/spec"
	"drift/models"
	"drift/models/analytic"
	"drift/models/diffusers"
	"drift/models/dna"
	"drift/models/native"
	"drift/models/ort"
	"drift/models/pipeline"
	"drift/models/zoo"
	"drift/schedules"
)

// Options says how a model is opened. The zero value is float32 on the best tier and all cores.
type Options struct {
	DType   string // f32, bf16 (networks) or f64 (analytic targets); empty = f32 or f64
	Threads int    // 0 = all cores
	Tier    string // kernel tier; empty = the best of this machine
	Hub     string // folder of the Hugging Face cache, for names like org/name; empty = none
	Variant string // of the weights in a folder, such as fp16; empty = the plain files, or the only variant
	// ORT loads ONNX Runtime for .onnx files; nil looks for it in the system's path.
	ORT func() (*ort.Library, error)
	Pipeline
}

// TakesClasses tells whether a row of the model wants a class where it has classes: a row of an analytic target without one is
// the whole mixture.
func (m *Model) TakesClasses() bool { return m.Net != nil || m.Info.Runtime != "" || m.AnyLength }

// Model is an opened model.
type Model struct {
	Denoiser models.Denoiser // counts its evaluations (models.Metered)
	Info     models.Info
	Defaults Defaults
	Net      native.Network // the network itself, nil for analytic targets
	Codec    samplersCodec  // makes pictures of the states; nil: they are the pictures
	// Paint tells a network that paints into a picture what goes beside the state of a row: the mask and the latents of
	// the masked picture. nil: it is no such network.
	Paint func(beside func(models.Row) []float64)
	Notes []string // what the user should know of how the files were read
	// Cut tells how many tokens a prompt has, and how many of them the text encoder reads; nil without one.
	Cut func(prompt string) (tokens, read int)
	// Letters are the categories of a model on sequences, where they have letters; AnyLength says that its rows may have
	// other lengths than Info.Shape says.
	Letters   string
	AnyLength bool
	close     func()
}

// samplersCodec is samplers.Codec, which lies above this package.
type samplersCodec interface {
	Decode(ctx context.Context, z *tensor.Dense) (*tensor.Dense, error)
	Encode(ctx context.Context, x *tensor.Dense) (*tensor.Dense, error)
}

// Defaults is how a model wants to be sampled.
type Defaults struct {
	Sampler  string
	Schedule string // a schedule name, or empty: Grid
	// Grid makes the grid that the model's own scheduler configuration asks for; nil without one.
	Grid     func(steps int) (schedules.Grid, error)
	Steps    int
	CFGScale float64
	Guiders  []string // applied before those the user names
	// OwnGuiders are Guiders in the form of Sampler; nil: the same. Other samplers may have no such form.
	OwnGuiders []string
	Rounding   string // of pictures to 8 bit; empty = edm
	PartStep   bool   // a part of a step that --strength asks for is run, not left out
	// Part makes the grid of an image-to-image run whose steps all lie in the part that a strength leaves; nil: the
	// last steps of Grid.
	Part func(steps int, strength float64) (schedules.Grid, error)
	// SigmaStart says that runs by Sampler on Grid start from noise of the first sigma (samplers.Euclid.Sigma).
	SigmaStart bool
}

// Close gives back the workers and files of the model.
func (m *Model) Close() {
	if m.close != nil {
		m.close()
	}
}

// Open opens the model that name stands for.
func Open(ctx context.Context, name string, opt Options) (*Model, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(zoo.Models(), func(e zoo.Entry) bool { return e.Name == name }) {
		return embedded(name, opt)
	}
	if slices.ContainsFunc(dna.Embedded(), func(e [2]string) bool { return e[0] == name }) {
		return sequences(name, opt, dna.Open)
	}
	info, err := os.Stat(name)
	switch {
	case err == nil && info.IsDir():
		return folder(ctx, name, opt)
	case err == nil && strings.EqualFold(filepath.Ext(name), ".json"):
		return target(name, opt)
	case err == nil && diffusers.SingleFile(name):
		known, err := diffusers.Holds(name)
		if err != nil {
			return nil, err
		}
		if !known && strings.EqualFold(filepath.Ext(name), ".safetensors") {
			return sequences(name, opt, dna.OpenFile)
		}
		return folder(ctx, name, opt)
	case err == nil && strings.EqualFold(filepath.Ext(name), ".onnx"):
		return onnx(ctx, name, opt)
	case err == nil && strings.EqualFold(filepath.Ext(name), ".pkl"):
		return nil, refuse.Errorf(name, "a pickle, which is never loaded: `drift model convert` makes safetensors of torch's own files")
	case err == nil:
		return nil, fmt.Errorf("models: %s is neither a folder in the diffusers layout, a .json target, a .onnx file nor a file of weights (%s)", name, strings.Join(diffusers.SourceFormats, ", "))
	case opt.Hub != "" && strings.Count(name, "/") == 1 && !strings.HasPrefix(name, "."):
		return folder(ctx, name, opt)
	}
	var names []string
	for _, e := range Embedded() {
		names = append(names, e.Name)
	}
	return nil, fmt.Errorf("models: no model %q: not a file or folder%s", name, spec.Suggest(name, names))
}

func target(path string, opt Options) (*Model, error) {
	if opt.DType != "" && opt.DType != "f64" {
		return nil, fmt.Errorf("models: an analytic target computes in f64, not %s", opt.DType)
	}
	m, err := analytic.OpenTarget(path)
	if err != nil {
		return nil, err
	}
	info := m.Info()
	info.Name = path
	solver, letters := "dpmpp-2m", ""
	switch p := m.Process().(type) {
	case schedules.Field:
		solver = "euler"
		if p.Categories() == len(dna.Letters) {
			letters = dna.Letters
		}
	case schedules.Bridge:
		solver = "interpolant"
	}
	return &Model{Letters: letters, Denoiser: models.Metered(m), Info: info, Defaults: Defaults{
		Sampler: solver, Schedule: schedules.DefaultGrid(m.Process()), Steps: 20, CFGScale: 1,
	}}, nil
}

// Embedded lists the models that drift carries with it; the first is the default.
func Embedded() []zoo.Entry {
	out := zoo.Models()
	for _, e := range dna.Embedded() {
		out = append(out, zoo.Entry{Name: e[0], Summary: e[1]})
	}
	return out
}

// sequences opens a network on sequences.
func sequences(name string, opt Options, load func(string, *kernels.Pool) (*dna.Denoiser, error)) (*Model, error) {
	if opt.DType != "" && opt.DType != "f32" {
		return nil, fmt.Errorf("models: networks on sequences compute in f32, not %s", opt.DType)
	}
	if len(opt.LoRA) > 0 || opt.Pipeline != (Pipeline{}) {
		return nil, &AskedError{name + " makes sequences: LoRAs, sizes, clip skip and the like are not for it"}
	}
	pool, err := newPool(opt)
	if err != nil {
		return nil, err
	}
	d, err := load(name, pool)
	if err != nil {
		pool.Close()
		return nil, err
	}
	m := &Model{Denoiser: models.Metered(d), Info: d.About, AnyLength: true, close: pool.Close,
		Defaults: Defaults{Sampler: "euler", Schedule: schedules.DefaultGrid(d.Path), Steps: 20, CFGScale: 1}}
	if d.Net.Categories == len(dna.Letters) {
		m.Letters = dna.Letters
	}
	if d.Net.Inputs == d.Net.Categories { // a student of one evaluation
		m.Defaults.Steps = 1
	}
	return m, nil
}

// newPool makes the workers for a network.
func newPool(opt Options) (*kernels.Pool, error) {
	tier := kernels.Detect()
	if opt.Tier != "" {
		var err error
		if tier, err = kernels.ParseTier(opt.Tier); err != nil {
			return nil, err
		}
		if !tier.Supported() {
			return nil, fmt.Errorf("models: this machine does not run the kernel tier %s; it has %v", tier, kernels.Tiers())
		}
	}
	threads := opt.Threads
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	return kernels.NewPool(tier, threads), nil
}

// labels is labels.json beside a model: names of the classes, and the label of "no class".
type labels struct {
	Labels    []string
	NullClass *int `json:"null_class"`
}

// parts is what a folder holds once it is read.
type parts struct {
	name    string
	repo    *diffusers.Repository // nil for an embedded model
	config  diffusers.Config
	weights diffusers.Weights
	sched   *diffusers.SchedulerConfig
	labels  labels
	graphs  *graphs                // in place of weights
	hash    func() (string, error) // of the weights; nil for graphs, which have their own
	notes   []string
	done    func() error
}

func embedded(name string, opt Options) (*Model, error) {
	files, err := zoo.Folder(name)
	if err != nil {
		return nil, err
	}
	var read error
	text := func(path string) []byte {
		b, err := fs.ReadFile(files, path)
		if err != nil && read == nil {
			read = err
		}
		return b
	}
	raw, config, sched, label := text("unet/diffusion_pytorch_model.safetensors"), text("unet/config.json"), text("scheduler/scheduler_config.json"), text("labels.json")
	if read != nil {
		return nil, read
	}
	sum := sha256.Sum256(raw)
	p := parts{name: name, hash: func() (string, error) { return hex.EncodeToString(sum[:]), nil }}
	cfg, err := diffusers.ParseConfig(name, config)
	if err != nil {
		return nil, err
	}
	p.config = cfg
	w, err := safetensors.NewReader(name, raw)
	if err != nil {
		return nil, err
	}
	if p.weights, err = diffusers.NewCheckpoint(cfg, w); err != nil {
		return nil, err
	}
	if p.sched, err = diffusers.ParseScheduler(name, sched); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(label, &p.labels); err != nil {
		return nil, fmt.Errorf("models: %s: labels.json: %w", name, err)
	}
	m, err := p.open(opt)
	if err != nil {
		return nil, err
	}
	m.Defaults = zooDefaults(m.Defaults, name)
	return m, nil
}

// folder opens a folder in the diffusers layout, or a repository of the Hugging Face cache.
func folder(ctx context.Context, name string, opt Options) (m *Model, err error) {
	r, err := diffusers.OpenRepository(name, diffusers.Options{CacheDir: opt.Hub, Variant: opt.Variant, Config: opt.Config, Tokenizer: opt.Tokenizer, Prediction: opt.Prediction})
	if err != nil {
		return nil, needs(err)
	}
	cfg, _, err := r.Config("")
	notes := r.Notes()
	if bare := filepath.Join(r.Dir, "unet"); err != nil && hasGraphs(r.Dir) && exists(bare) && !exists(filepath.Join(bare, "config.json")) {
		notes = append(notes, "its unet has no config.json: taken as that of a Stable Diffusion, from the names of its inputs")
		cfg, err = configOf(filepath.Join(bare, graphName))
	}
	if err != nil {
		return nil, err
	}
	p := parts{name: name, repo: r, config: cfg, notes: notes}
	if hasGraphs(r.Dir) {
		if p.graphs, err = newGraphs(ctx, r.Dir, opt); err != nil {
			return nil, err
		}
	} else {
		if err := native.Runs(cfg); err != nil {
			return nil, refuse.Errorf(name, "its network is %s", err)
		}
		if err := p.supported(opt.Pipeline); err != nil {
			return nil, err
		}
		net, err := r.Network("")
		if err != nil {
			return nil, err
		}
		p.weights, p.notes, p.done = net.Weights, append(p.notes, net.Notes...), net.Close
		p.hash = hashBeside(net.Weights.Files())
	}
	defer func() {
		if err != nil && p.done != nil {
			err = errors.Join(err, p.done())
		}
	}()
	adm, isADM := cfg.(*diffusers.ADMConfig)
	switch p.sched, err = r.Scheduler(); {
	case edmOf(cfg) != nil:
		return p.openEDM(edmOf(cfg), opt)
	case err != nil && isADM: // a folder without a scheduler
		if p.sched, err = adm.Scheduler(name); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, needs(err)
	}
	p.amend(r)
	if len(p.sched.Ignored) > 0 {
		p.notes = append(p.notes, p.sched.ClassName+" does not know the keys "+strings.Join(p.sched.Ignored, ", "))
	}
	if len(p.sched.Renamed) > 0 {
		p.notes = append(p.notes, "read as: "+strings.Join(p.sched.Renamed, ", "))
	}
	p.notes = append(append(p.notes, p.sched.Warnings...), unheeded(p.sched)...)
	if text, err := os.ReadFile(filepath.Join(r.Dir, "labels.json")); err == nil {
		if err := json.Unmarshal(text, &p.labels); err != nil {
			return nil, refuse.Errorf(filepath.Join(r.Dir, "labels.json"), "%v", err)
		}
	} else if r.Index != nil && len(r.Index.Labels) > 0 {
		for k := range len(r.Index.Labels) {
			p.labels.Labels = append(p.labels.Labels, r.Index.Labels[k])
		}
	}
	return p.open(opt)
}

// needs makes an AskedError of what only the user can say.
func needs(err error) error {
	var p *diffusers.PredictionError
	if errors.As(err, &p) {
		return &AskedError{err.Error()}
	}
	return err
}

// amend changes a scheduler's settings as the pipelines of Stable Diffusion 1 and 2 do, whose first files were wrong.
func (p *parts) amend(r *diffusers.Repository) {
	if r.Index == nil || !slices.Contains([]string{"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"}, r.Index.Class) {
		return
	}
	c := p.sched
	if c.Has("steps_offset") && c.StepsOffset != 1 {
		p.notes = append(p.notes, fmt.Sprintf("steps_offset %d taken for 1, as its pipeline does", c.StepsOffset))
		c.StepsOffset = 1
	}
	painting := r.Index.Class == "StableDiffusionInpaintPipeline"
	if c.Has("clip_sample") && c.ClipSample && !painting {
		p.notes = append(p.notes, "clip_sample is left out, as its pipeline does: latents are not between -1 and 1")
		c.ClipSample = false
	}
	if painting && c.Has("skip_prk_steps") {
		c.SkipPRKSteps = true
	}
}

// hashBeside is hashFiles on another goroutine, while the weights are packed; the function waits for it.
func hashBeside(paths []string) func() (string, error) {
	var sum string
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		sum, err = hashFiles(paths)
	}()
	return func() (string, error) {
		<-done
		return sum, err
	}
}

// hashFiles is the SHA-256 of the files one after another.
func hashFiles(paths []string) (string, error) {
	h := sha256.New()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// zooDefaults are the settings that look and score best on the embedded models (see the README).
func zooDefaults(d Defaults, name string) Defaults {
	d.CFGScale, d.Steps = 2, 20
	if name == "fashion-flow" {
		d.Sampler, d.Schedule = "unipc", "time"
	}
	return d
}

// likeClass are classes whose process and grid are those of another one.
var likeClass = map[string]string{
	"KDPM2DiscreteScheduler": "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler": "HeunDiscreteScheduler",
	"DPMSolverSDEScheduler": "HeunDiscreteScheduler", "RePaintScheduler": "DDIMScheduler",
}

// gridConfig is the part of the scheduler configuration that makes process and grid. Keys that the class does not have
// keep what the class means without them.
func gridConfig(c *diffusers.SchedulerConfig) (schedules.DiffusersConfig, error) {
	class := c.ClassName
	if known, ok := likeClass[class]; ok {
		class = known
	}
	out, err := schedules.DiffusersDefaults(class)
	if err != nil {
		return out, fmt.Errorf("its scheduler is a %s, which no sampler here stands for", c.ClassName)
	}
	take(c, "num_train_timesteps", &out.NumTrainTimesteps, c.NumTrainTimesteps)
	take(c, "beta_start", &out.BetaStart, c.BetaStart)
	take(c, "beta_end", &out.BetaEnd, c.BetaEnd)
	take(c, "beta_schedule", &out.BetaSchedule, c.BetaSchedule)
	take(c, "trained_betas", &out.TrainedBetas, c.TrainedBetas)
	take(c, "rescale_betas_zero_snr", &out.RescaleBetasZeroSNR, c.RescaleBetasZeroSNR)
	take(c, "prediction_type", &out.PredictionType, c.PredictionType)
	take(c, "timestep_spacing", &out.TimestepSpacing, c.TimestepSpacing)
	take(c, "timestep_type", &out.TimestepType, c.TimestepType)
	take(c, "interpolation_type", &out.InterpolationType, c.InterpolationType)
	take(c, "steps_offset", &out.StepsOffset, c.StepsOffset)
	take(c, "set_alpha_to_one", &out.SetAlphaToOne, c.SetAlphaToOne)
	take(c, "use_karras_sigmas", &out.UseKarrasSigmas, c.UseKarrasSigmas)
	take(c, "use_exponential_sigmas", &out.UseExponentialSigmas, c.UseExponentialSigmas)
	take(c, "use_beta_sigmas", &out.UseBetaSigmas, c.UseBetaSigmas)
	take(c, "use_lu_lambdas", &out.UseLuLambdas, c.UseLuLambdas)
	take(c, "use_flow_sigmas", &out.UseFlowSigmas, c.UseFlowSigmas)
	take(c, "flow_shift", &out.FlowShift, c.FlowShift)
	take(c, "final_sigmas_type", &out.FinalSigmasType, c.FinalSigmasType)
	take(c, "lambda_min_clipped", &out.LambdaMinClipped, c.LambdaMinClipped)
	take(c, "sigma_min", &out.SigmaMin, c.SigmaMin)
	take(c, "sigma_max", &out.SigmaMax, c.SigmaMax)
	take(c, "sigma_schedule", &out.SigmaSchedule, c.SigmaSchedule)
	take(c, "rho", &out.Rho, c.Rho)
	take(c, "shift", &out.Shift, c.Shift)
	take(c, "use_dynamic_shifting", &out.UseDynamicShifting, c.UseDynamicShifting)
	take(c, "time_shift_type", &out.TimeShiftType, c.TimeShiftType)
	take(c, "invert_sigmas", &out.InvertSigmas, c.InvertSigmas)
	take(c, "original_inference_steps", &out.OriginalInferenceSteps, c.OriginalInferenceSteps)
	if c.ShiftTerminal != nil {
		out.ShiftTerminal = *c.ShiftTerminal
	}
	return out, nil
}

// take sets dst to the value of a key that the class has.
func take[T any](c *diffusers.SchedulerConfig, key string, dst *T, value T) {
	if c.Has(key) {
		*dst = value
	}
}

// network makes the network of the weights, or opens its graph.
func (p *parts) network(opt native.Options) (native.Network, error) {
	if p.graphs == nil {
		return native.New(p.config, p.weights, opt)
	}
	return p.graphs.network(p.repo.Denoiser(), p.config)
}

// identity is the hash of the weights, with the changes merged into them.
func (p *parts) identity(changes loras) (hash string, err error) {
	if p.hash != nil {
		hash, err = p.hash()
	}
	for _, l := range changes {
		if err != nil {
			break
		}
		var sum string
		sum, err = hashFiles([]string{l.Path()})
		hash = fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%s %s %g", hash, sum, l.scale)))
	}
	return hash, err
}

// open makes the model of the parts.
func (p *parts) open(opt Options) (*Model, error) {
	grid, err := gridConfig(p.sched)
	if err != nil {
		return nil, fmt.Errorf("models: %s: %w", p.name, err)
	}
	proc, err := grid.Process()
	if err != nil {
		return nil, fmt.Errorf("models: %s: %w", p.name, err)
	}
	kind, scale := schedules.Velocity, 0.0
	if proc.Name() != "flow" {
		if kind, err = schedules.ParseKind(orText(p.sched.PredictionType, "epsilon")); err != nil {
			return nil, fmt.Errorf("models: %s: scheduler_config.json: %w", p.name, err)
		}
	} else {
		scale = float64(p.sched.NumTrainTimesteps)
	}
	dtype := kernels.F32
	switch opt.DType {
	case "", "f32":
	case "bf16":
		dtype = kernels.BF16
	default:
		if p.graphs == nil { // whose arithmetic is compared below
			return nil, fmt.Errorf("models: a network computes in f32 or bf16, not %s", opt.DType)
		}
	}
	pool, err := newPool(opt)
	if err != nil {
		return nil, err
	}
	changes, err := openLoRAs(opt.LoRA)
	if err != nil {
		pool.Close()
		return nil, err
	}
	if p.repo != nil && p.graphs == nil {
		if p.weights, err = changes.merge(p.repo.Denoiser(), p.config, p.weights); err != nil {
			changes.close()
			pool.Close()
			return nil, err
		}
	}
	net, err := p.network(native.Options{Pool: pool, DType: dtype})
	if err != nil {
		changes.close()
		pool.Close()
		return nil, fmt.Errorf("models: %s: %w", p.name, err)
	}
	around := &frame{scale: 1}
	if p.repo != nil {
		f, err := frames(p.repo, p.config, p.graphs, changes, pool, dtype, opt.Pipeline)
		if err != nil {
			net.Close()
			pool.Close()
			return nil, err
		}
		if f != nil {
			around = f
		}
	} else if opt.Pipeline != (Pipeline{}) {
		net.Close()
		pool.Close()
		return nil, &AskedError{p.name + " has one size and no text: sizes, clip skip and the like are not for it"}
	}
	null := net.NoClass()
	classes := net.Classes()
	if p.labels.NullClass != nil {
		null = *p.labels.NullClass
	}
	channels, _ := net.Channels()
	h, w := net.SampleSize()
	h, w, err = around.size(opt.Pipeline, h, w)
	if n, ok := net.(interface {
		Output(h, w int) (oh, ow int, err error)
	}); ok && err == nil {
		if _, _, e := n.Output(h, w); e != nil && (opt.Width != 0 || opt.Height != 0) {
			err = &AskedError{fmt.Sprintf("a width of %d and a height of %d: %v", w*around.factor(), h*around.factor(), e)}
		}
	}
	if err != nil {
		around.close()
		net.Close()
		pool.Close()
		return nil, err
	}
	hash, err := p.identity(changes)
	if err != nil {
		around.close()
		net.Close()
		pool.Close()
		return nil, err
	}
	if _, ok := p.config.(*diffusers.FluxConfig); ok {
		scale = 0 // the network takes times from 0 to 1
	}
	state := channels
	if c, ok := p.config.(*diffusers.UNet2DConditionConfig); ok && around.codec != nil && c.InChannels == 2*around.codec.Latent()+1 {
		state = around.codec.Latent() // beside it the mask and the masked picture
	}
	about := models.Info{Name: p.name, Hash: hash, Shape: []int{state, h, w},
		Classes: classes, Labels: p.labels.Labels, DType: map[kernels.DType]string{kernels.F32: "f32", kernels.BF16: "bf16"}[dtype],
		Tier: pool.Tier().String(), Params: int64(net.Parameters())}
	if classes > 0 && null == classes-1 {
		about.Classes-- // the last label is "no class"
	}
	if p.graphs != nil {
		about.Hash, about.DType, about.Tier, about.Runtime = p.graphs.hash(), p.graphs.dtype, "", "onnxruntime "+p.graphs.lib.Version()
	}
	u := &native.Denoiser{Net: net, Proc: proc, Kind: kind, TimeScale: scale, NullClass: null, About: about, Conditional: classes > 0, State: state}
	m := &Model{
		Net: net, Notes: append(p.notes, around.notes...),
		close: func() {
			around.close()
			net.Close()
			changes.close()
			pool.Close()
			if p.done != nil {
				_ = p.done() // files that were only read
			}
		},
	}
	if state != channels {
		m.Paint = func(beside func(models.Row) []float64) { u.Beside = beside }
	}
	if around.text != nil {
		u.Inputs, u.About.Text = around.text.Inputs, true
		if c, ok := around.text.Text.(interface {
			Cut(prompt string) (tokens, read int)
		}); ok {
			m.Cut = c.Cut
		}
	}
	if c := around.codec; c != nil {
		c.Before = func() { // the network's activations make room for the decoder's
			if n, ok := net.(interface{ ReleaseOver(bytes int) }); ok {
				n.ReleaseOver(large)
			}
		}
		m.Codec, u.About.Picture = c, []int{c.Pictures(), h * c.Factor(), w * c.Factor()}
		if c.Latent() != state {
			m.Close()
			return nil, refuse.Errorf(p.name, "the network works on %d channels, the autoencoder on %d", channels, c.Latent())
		}
	}
	m.Denoiser = models.Metered(u)
	if around.codec != nil {
		m.Denoiser = models.Metered(latent{u, around.codec})
	}
	if p.graphs != nil {
		m.Net, m.Denoiser = nil, models.Metered(forwardOnly{u})
		if around.codec != nil {
			m.Denoiser = models.Metered(latentForward{forwardOnly{u}, around.codec})
		}
	}
	m.Info, m.Defaults = u.About, p.defaults(grid, dynamicShift(p.sched, h*w/4))
	if c, ok := p.config.(*diffusers.UNet2DConditionConfig); !ok || c.TimeCondProjDim == 0 {
		m.Defaults.Part = nil // only pipelines of such networks do so
	}
	if around.text != nil || around.codec != nil {
		m.Defaults.Rounding = "diffusers"
	}
	m.Defaults.PartStep = around.text != nil && proc.Name() == "flow"
	m.Defaults.CFGScale, m.Defaults.Steps = around.scale, orInt(around.steps, m.Defaults.Steps)
	return m, nil
}

// latent is a network on latents, with what makes pictures of them (models.Decoder).
type latent struct {
	*native.Denoiser
	codec *pipeline.Codec
}

// DecodeLate implements models.Decoder.
func (l latent) DecodeLate(ctx context.Context, z *tensor.Dense, cotangent func(x *tensor.Dense) (*tensor.Dense, error), grad *tensor.Dense) error {
	return l.codec.DecodeLate(ctx, z, cotangent, grad)
}

// latentForward is latent without gradients of the network.
type latentForward struct {
	forwardOnly
	codec *pipeline.Codec
}

// DecodeLate implements models.Decoder.
func (l latentForward) DecodeLate(ctx context.Context, z *tensor.Dense, cotangent func(x *tensor.Dense) (*tensor.Dense, error), grad *tensor.Dense) error {
	return l.codec.DecodeLate(ctx, z, cotangent, grad)
}

func orText(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// defaults are the sampler and grid that the scheduler configuration asks for. With mu times are shifted by it. Flux, and
// whatever is shifted by mu, goes from uniform noise levels.
func (p *parts) defaults(grid schedules.DiffusersConfig, mu float64) Defaults {
	c := p.sched
	d := Defaults{CFGScale: 1, Steps: 50, Sampler: samplerOf(c), Grid: func(n int) (schedules.Grid, error) {
		run := schedules.DiffusersRun{Steps: n}
		_, even := p.config.(*diffusers.FluxConfig)
		if mu != 0 {
			run.Mu = &mu
		}
		if mu != 0 || even {
			for i := range n {
				run.Sigmas = append(run.Sigmas, 1-float64(i)/float64(n))
			}
		}
		g, _, err := grid.Grid(run)
		return g, err
	}}
	if c.ClassName == "LCMScheduler" {
		d.Part = func(n int, strength float64) (schedules.Grid, error) {
			g, _, err := grid.Grid(schedules.DiffusersRun{Steps: n, Strength: strength})
			return g, err
		}
	}
	switch c.ClassName {
	case "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
		"KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler":
		d.SigmaStart = grid.TimestepSpacing != "leading"
	}
	switch {
	case c.Thresholding:
		d.Guiders = []string{fmt.Sprintf("threshold:quantile=%g,max=%g", c.DynamicThresholdingRatio, max(c.SampleMaxValue, 1))}
	case c.ClipSample:
		d.Guiders = []string{fmt.Sprintf("clip:range=%g", c.ClipSampleRange)}
	}
	if d.Guiders != nil {
		if c.ClassName == "DDIMScheduler" { // the noise stays that of the network
			d.OwnGuiders = []string{d.Guiders[0] + ",rederive=false"}
		}
	}
	return d
}

// unheeded tells what a scheduler's settings ask of its solver that the one here does not do.
func unheeded(c *diffusers.SchedulerConfig) (notes []string) {
	if c.AlgorithmType == "noise_prediction" {
		notes = append(notes, "algorithm_type noise_prediction: sa runs in the form of data here")
	}
	if len(c.DisableCorrector) > 0 {
		notes = append(notes, fmt.Sprintf("disable_corrector %v: unipc corrects every step here (corrector=false: none)", c.DisableCorrector))
	}
	if c.ClassName == "DPMSolverSinglestepScheduler" && c.FinalSigmasType == "sigma_min" && !c.LowerOrderFinal {
		notes = append(notes, "lower_order_final false: the last steps are of lower order here")
	}
	return notes
}

// samplerOf is the solver that a scheduler class means.
func samplerOf(c *diffusers.SchedulerConfig) string {
	switch c.ClassName {
	case "DDPMScheduler":
		return "ddpm:variance=" + orText(c.VarianceType, "fixed_small")
	case "PNDMScheduler":
		return fmt.Sprintf("pndm:skip-prk=%v", c.SkipPRKSteps)
	case "UniPCMultistepScheduler":
		predict := map[bool]string{true: "x0", false: "eps"}[c.PredictX0]
		return fmt.Sprintf("unipc:order=%d,variant=%s,predict=%s,lower-order-final=%v", max(c.SolverOrder, 1), orText(c.SolverType, "bh2"), predict, c.LowerOrderFinal)
	case "LCMScheduler":
		return fmt.Sprintf("lcm:timestep-scaling=%g", c.TimestepScaling)
	case "FlowMatchEulerDiscreteScheduler":
		if c.StochasticSampling {
			return "flow-stochastic"
		}
	case "DPMSolverSinglestepScheduler":
		family := map[string]string{"dpmsolver++": "dpmpp-%ds", "dpmsolver": "dpm-solver-%d", "sde-dpmsolver++": "dpmpp-%ds-sde"}
		if c.SolverOrder == 1 {
			return "euler"
		}
		name := fmt.Sprintf(family[orText(c.AlgorithmType, "dpmsolver++")], c.SolverOrder)
		return name + ":grid-points=all,solver=" + orText(c.SolverType, "midpoint")
	case "EDMDPMSolverMultistepScheduler":
		family := map[string]string{"dpmsolver++": "dpmpp-%dm", "sde-dpmsolver++": "dpmpp-%dm-sde"}
		if c.SolverOrder == 1 {
			return "euler"
		}
		return fmt.Sprintf(family[orText(c.AlgorithmType, "dpmsolver++")], c.SolverOrder) + fmt.Sprintf(":lower-order-final=%v,euler-at-final=%v", c.LowerOrderFinal, c.EulerAtFinal)
	case "DEISMultistepScheduler":
		return fmt.Sprintf("deis:order=%d,lower-order-final=%v", max(c.SolverOrder, 1), c.LowerOrderFinal)
	case "SASolverScheduler":
		return fmt.Sprintf("sa:predictor=%d,corrector=%d,tau-from=200,tau-to=800", max(c.PredictorOrder, 1), c.CorrectorOrder)
	case "DPMSolverMultistepScheduler":
		if c.SolverOrder == 1 {
			return "euler"
		}
		family := map[string]string{"dpmsolver++": "dpmpp-%dm", "dpmsolver": "dpm-solver-%dm", "sde-dpmsolver++": "dpmpp-%dm-sde", "sde-dpmsolver": "dpm-solver-%dm-sde"}
		name := fmt.Sprintf(family[orText(c.AlgorithmType, "dpmsolver++")], max(c.SolverOrder, 2))
		name += fmt.Sprintf(":lower-order-final=%v,euler-at-final=%v", c.LowerOrderFinal, c.EulerAtFinal)
		switch {
		case c.SolverOrder == 2:
			name += ",solver=" + orText(c.SolverType, "midpoint")
		case c.SolverOrder == 3 && c.AlgorithmType == "dpmsolver++":
			name += ",kappa=1" // the second difference as diffusers weighs it
		}
		return name
	}
	return map[string]string{
		"DDIMScheduler": "ddim", "LMSDiscreteScheduler": "lms", "EulerDiscreteScheduler": "euler", "EulerAncestralDiscreteScheduler": "euler-ancestral",
		"HeunDiscreteScheduler": "heun", "TCDScheduler": "tcd", "FlowMatchEulerDiscreteScheduler": "euler",
		"FlowMatchHeunDiscreteScheduler": "heun", "EDMEulerScheduler": "euler", "KDPM2DiscreteScheduler": "dpm-2", "KDPM2AncestralDiscreteScheduler": "dpm-2-ancestral",
		"DPMSolverSDEScheduler": "dpmpp-sde", "RePaintScheduler": fmt.Sprintf("ddim:eta=%g", c.Eta),
	}[c.ClassName]
}
