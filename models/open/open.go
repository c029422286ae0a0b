// Package open turns the name of a model, as a user writes it, into a Denoiser: an embedded model, a folder in the
// diffusers layout, or an analytic target in a JSON file.
package open

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"drift/internal/kernels"
	"drift/internal/safetensors"
	"drift/internal/spec"
	"drift/models"
	"drift/models/analytic"
	"drift/models/diffusers"
	"drift/models/native"
	"drift/models/unet2d"
	"drift/models/zoo"
	"drift/schedules"
)

// Options says how a model is opened. The zero value is float32 on the best tier and all cores.
type Options struct {
	DType   string // f32, bf16 (networks) or f64 (analytic targets); empty = f32 or f64
	Threads int    // 0 = all cores
	Tier    string // kernel tier; empty = the best of this machine
	Hub     string // folder of the Hugging Face cache, for names like org/name; empty = none
}

// Model is an opened model.
type Model struct {
	Denoiser models.Denoiser // counts its evaluations (models.Metered)
	Info     models.Info
	Defaults Defaults
	Net      *unet2d.Net // the network itself, nil for analytic targets
	Notes    []string    // what the user should know of how the files were read
	close    func()
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
	Rounding string   // of pictures to 8 bit; empty = edm
}

// Close gives back the workers of the model.
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
	_, err := os.Stat(name)
	switch {
	case err == nil && strings.EqualFold(filepath.Ext(name), ".json"):
		return target(name, opt)
	case err == nil:
		return nil, fmt.Errorf("models: %s is neither a folder in the diffusers layout nor a .json target", name)
	}
	var names []string
	for _, e := range zoo.Models() {
		names = append(names, e.Name)
	}
	return nil, fmt.Errorf("models: no model %q: not a file or folder%s", name, spec.Suggest(name, names))
}

func target(path string, opt Options) (*Model, error) {
	if opt.DType != "" && opt.DType != "f64" {
		return nil, fmt.Errorf("models: an analytic target computes in f64, not %s", opt.DType)
	}
	m, err := analytic.Open(path)
	if err != nil {
		return nil, err
	}
	info := m.Info()
	info.Name = path
	return &Model{Denoiser: models.Metered(m), Info: info, Defaults: Defaults{
		Sampler: "dpmpp-2m", Schedule: schedules.DefaultGrid(m.Process()), Steps: 20, CFGScale: 1,
	}}, nil
}

// labels is labels.json beside a model: names of the classes, and the label of "no class".
type labels struct {
	Labels    []string
	NullClass *int `json:"null_class"`
}

// parts is what a folder holds once it is read.
type parts struct {
	name    string
	config  diffusers.UNet2DConfig
	weights diffusers.Weights
	sched   schedules.DiffusersConfig
	extra   schedulerExtra
	labels  labels
	hash    string
	notes   []string
	done    func()
}

func embedded(name string, opt Options) (*Model, error) {
	files, err := zoo.Folder(name)
	if err != nil {
		return nil, err
	}
	p := parts{name: name}
	raw, err := fs.ReadFile(files, "unet/diffusion_pytorch_model.safetensors")
	if err != nil {
		return nil, err
	}
	w, err := safetensors.NewReader(name, raw)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	p.weights, p.hash = tensors{w}, hex.EncodeToString(sum[:])
	text, err := fs.ReadFile(files, "unet/config.json")
	if err != nil {
		return nil, err
	}
	cfg, err := diffusers.ParseConfig(name, text)
	if err != nil {
		return nil, err
	}
	p.config = *cfg.(*diffusers.UNet2DConfig)
	if text, err = fs.ReadFile(files, "labels.json"); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &p.labels); err != nil {
		return nil, fmt.Errorf("models: %s: labels.json: %w", name, err)
	}
	if text, err = fs.ReadFile(files, "scheduler/scheduler_config.json"); err != nil {
		return nil, err
	}
	if err := p.scheduler(text); err != nil {
		return nil, err
	}
	m, err := p.open(opt)
	if err != nil {
		return nil, err
	}
	m.Defaults = zooDefaults(m.Defaults, name)
	return m, nil
}

// zooDefaults are the settings that look and score best on the embedded models (see the README).
func zooDefaults(d Defaults, name string) Defaults {
	d.CFGScale, d.Steps = 2, 20
	if name == "fashion-flow" {
		d.Sampler, d.Schedule = "euler", "time"
	}
	return d
}

// tensors adapts a safetensors file.
type tensors struct{ *safetensors.Reader }

func (t tensors) Names() []string {
	var out []string
	for _, x := range t.Tensors() {
		out = append(out, x.Name)
	}
	return out
}

func (t tensors) Shape(name string) ([]int, bool) {
	x, ok := t.Tensor(name)
	return x.Shape, ok
}

// schedulerExtra are the keys of scheduler_config.json that choose a sampler.
type schedulerExtra struct {
	ClipSample      bool    `json:"clip_sample"`
	ClipSampleRange float64 `json:"clip_sample_range"`
	VarianceType    string  `json:"variance_type"`
	AlgorithmType   string  `json:"algorithm_type"`
	SolverType      string  `json:"solver_type"`
	SolverOrder     int     `json:"solver_order"`
	SkipPRKSteps    bool    `json:"skip_prk_steps"`
	LowerOrderFinal *bool   `json:"lower_order_final"`
	EulerAtFinal    bool    `json:"euler_at_final"`
}

// scheduler reads scheduler_config.json.
func (p *parts) scheduler(text []byte) error {
	var class struct {
		Name string `json:"_class_name"`
	}
	if err := json.Unmarshal(text, &class); err != nil {
		return fmt.Errorf("models: %s: scheduler_config.json: %w", p.name, err)
	}
	c, err := schedules.DiffusersDefaults(class.Name)
	if err != nil {
		return fmt.Errorf("models: %s: %w", p.name, err)
	}
	p.extra = schedulerExtra{ClipSample: class.Name == "DDIMScheduler" || class.Name == "DDPMScheduler", ClipSampleRange: 1}
	for _, into := range []any{&c, &p.extra} {
		if err := json.Unmarshal(text, into); err != nil {
			return fmt.Errorf("models: %s: scheduler_config.json: %w", p.name, err)
		}
	}
	p.sched = c
	return nil
}

// open makes the model of the parts.
func (p *parts) open(opt Options) (*Model, error) {
	proc, err := p.sched.Process()
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
	tier := kernels.Detect()
	if opt.Tier != "" {
		if tier, err = kernels.ParseTier(opt.Tier); err != nil {
			return nil, err
		}
		if !tier.Supported() {
			return nil, fmt.Errorf("models: this machine does not run the kernel tier %s; it has %v", tier, kernels.Tiers())
		}
	}
	dtype := kernels.F32
	switch opt.DType {
	case "", "f32":
	case "bf16":
		dtype = kernels.BF16
	default:
		return nil, fmt.Errorf("models: a network computes in f32 or bf16, not %s", opt.DType)
	}
	threads := opt.Threads
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	pool := kernels.NewPool(tier, threads)
	net, err := unet2d.New(p.config, p.weights, unet2d.Options{Pool: pool, DType: dtype})
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("models: %s: %w", p.name, err)
	}
	null := models.NoClass
	classes := net.Classes()
	if p.labels.NullClass != nil {
		null = *p.labels.NullClass
	}
	about := models.Info{Name: p.name, Hash: p.hash, Shape: []int{p.config.InChannels, p.config.SampleSize.H, p.config.SampleSize.W},
		Classes: classes, Labels: p.labels.Labels, DType: map[kernels.DType]string{kernels.F32: "f32", kernels.BF16: "bf16"}[dtype],
		Tier: tier.String(), Params: int64(net.Parameters())}
	if null == classes-1 {
		about.Classes-- // the last label is "no class"
	}
	u := &native.UNet2D{Net: net, Proc: proc, Kind: kind, TimeScale: scale, NullClass: null, About: about, Conditional: classes > 0}
	return &Model{
		Denoiser: models.Metered(u), Info: about, Defaults: p.defaults(), Net: net, Notes: p.notes,
		close: func() {
			net.Close()
			pool.Close()
			if p.done != nil {
				p.done()
			}
		},
	}, nil
}

func orText(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// defaults are the sampler and grid that the scheduler configuration asks for.
func (p *parts) defaults() Defaults {
	c, e := p.sched, p.extra
	d := Defaults{CFGScale: 1, Steps: 50, Grid: func(n int) (schedules.Grid, error) {
		g, _, err := c.Grid(schedules.DiffusersRun{Steps: n})
		return g, err
	}}
	d.Sampler = map[string]string{
		"DDIMScheduler": "ddim", "PNDMScheduler": "pndm", "LMSDiscreteScheduler": "lms", "EulerDiscreteScheduler": "euler",
		"EulerAncestralDiscreteScheduler": "euler-ancestral", "HeunDiscreteScheduler": "heun", "UniPCMultistepScheduler": "unipc",
		"DEISMultistepScheduler": "deis", "SASolverScheduler": "sa", "LCMScheduler": "lcm", "TCDScheduler": "tcd",
		"FlowMatchEulerDiscreteScheduler": "euler", "FlowMatchHeunDiscreteScheduler": "heun", "EDMEulerScheduler": "euler",
		"EDMDPMSolverMultistepScheduler": "dpmpp-2m", "DPMSolverSinglestepScheduler": "dpmpp-2s:grid-points=all",
	}[c.ClassName]
	order := e.SolverOrder
	if order == 0 {
		order = 2
	}
	switch c.ClassName {
	case "DDPMScheduler":
		d.Sampler = "ddpm:variance=" + orText(e.VarianceType, "fixed_small")
	case "PNDMScheduler":
		d.Sampler = fmt.Sprintf("pndm:skip-prk=%v", e.SkipPRKSteps)
	case "DPMSolverMultistepScheduler":
		name := map[string]string{"": "dpmpp-%dm", "dpmsolver++": "dpmpp-%dm", "dpmsolver": "dpm-solver-%dm", "sde-dpmsolver++": "dpmpp-%dm-sde", "sde-dpmsolver": "dpm-solver-%dm-sde"}[e.AlgorithmType]
		if order == 1 {
			d.Sampler = "euler"
		} else {
			d.Sampler = fmt.Sprintf(name, order)
		}
		var options []string
		if e.LowerOrderFinal != nil {
			options = append(options, fmt.Sprintf("lower-order-final=%v", *e.LowerOrderFinal))
		}
		if e.EulerAtFinal {
			options = append(options, "euler-at-final=true")
		}
		if order == 2 && e.SolverType == "heun" {
			options = append(options, "solver=heun")
		}
		if len(options) > 0 && order > 1 {
			d.Sampler += ":" + strings.Join(options, ",")
		}
	case "UniPCMultistepScheduler":
		d.Sampler = fmt.Sprintf("unipc:order=%d,variant=%s", order, orText(e.SolverType, "bh2"))
	}
	if e.ClipSample && p.config.InChannels > 0 {
		d.Guiders = []string{fmt.Sprintf("clip:range=%g", e.ClipSampleRange)}
	}
	return d
}
