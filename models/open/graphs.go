package open

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drift/internal/kernels"
	"drift/internal/refuse"
	"drift/models"
	"drift/models/diffusers"
	"drift/models/engine"
	"drift/models/mmdit"
	"drift/models/native"
	"drift/models/ort"
	"drift/models/pipeline"
	"drift/models/text"
	"drift/schedules"
)

// graphs are the networks of a folder as optimum exports it: unet/model.onnx (or transformer), vae_decoder/model.onnx,
// vae_encoder, text_encoder, text_encoder_2 and _3, each with its config.json, beside scheduler and tokenizers.
type graphs struct {
	dir     string
	ctx     context.Context // of opening
	lib     *ort.Library
	threads int
	hashes  []string
	want    string // arithmetic that was asked for, "" = the graph's
	dtype   string // of the denoiser
}

const graphName = "model.onnx"

// newGraphs loads the library for a folder of graphs.
func newGraphs(ctx context.Context, dir string, opt Options) (*graphs, error) {
	switch {
	case opt.LoRA != "":
		return nil, &AskedError{dir + " holds ONNX graphs, into which no LoRA can be merged"}
	}
	lib, err := opt.library()
	if err != nil {
		return nil, err
	}
	return &graphs{dir: dir, ctx: ctx, lib: lib, threads: opt.Threads, want: opt.DType}, nil
}

// configOf is the configuration of a U-Net whose folder has none, as the first exports of Stable Diffusion did: from the
// names and shapes of its inputs.
func configOf(path string) (diffusers.Config, error) {
	f, err := ort.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c := &diffusers.UNet2DConditionConfig{InChannels: 4, OutChannels: 4, SampleSize: diffusers.Size{H: 64, W: 64}}
	p, ok := f.Input("sample")
	if _, text := f.Input("encoder_hidden_states"); !ok || !text || len(p.Dims) != 4 {
		return nil, refuse.Errorf(path, "there is no config.json beside it, and it is no U-Net of Stable Diffusion: it has %s", f.Ports())
	}
	for i, dst := range []*int{&c.InChannels, &c.SampleSize.H, &c.SampleSize.W} {
		if d := p.Dims[i+1]; d > 0 {
			*dst = d
		}
	}
	if _, ok := f.Input("text_embeds"); ok {
		c.AdditionEmbedType = "text_time"
	}
	if p, ok := f.Input("timestep_cond"); ok && len(p.Dims) == 2 {
		c.TimeCondProjDim = p.Dims[1]
	}
	return c, nil
}

// hash is that of all graphs that were opened.
func (g *graphs) hash() string {
	if len(g.hashes) == 1 {
		return g.hashes[0]
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(g.hashes, " "))))
}

// hasGraphs tells whether a folder holds its denoiser as an ONNX graph, and no weights for it.
func hasGraphs(dir string) bool {
	for _, part := range []string{"unet", "transformer"} {
		if exists(filepath.Join(dir, part, graphName)) {
			stray, _ := filepath.Glob(filepath.Join(dir, part, "*.safetensors")) // the pattern is sound
			return len(stray) == 0
		}
	}
	return false
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// path is the graph of a component, "" where it has none.
func (g *graphs) path(component string) string {
	if path := filepath.Join(g.dir, component, graphName); exists(path) {
		return path
	}
	return ""
}

// open opens the graph of a component, which must have the inputs and outputs.
func (g *graphs) open(component string, inputs []string, outputs ...string) (*ort.Session, error) {
	path := filepath.Join(g.dir, component, graphName)
	f, err := ort.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for _, name := range inputs {
		if !slices.ContainsFunc(f.Inputs, func(p ort.Port) bool { return p.Name == name }) {
			return nil, refuse.Errorf(path, "has no input %s; it has %s", name, f.Ports())
		}
	}
	if len(outputs) > 0 && !slices.ContainsFunc(outputs, func(name string) bool {
		return slices.ContainsFunc(f.Outputs, func(p ort.Port) bool { return p.Name == name })
	}) {
		return nil, refuse.Errorf(path, "has no output %s; it has %s", strings.Join(outputs, " or "), f.Ports())
	}
	hash, err := f.Hash()
	if err != nil && !errors.Is(err, os.ErrNotExist) { // Open says what is missing
		return nil, err
	}
	g.hashes = append(g.hashes, hash)
	return g.lib.Open(g.ctx, path, ort.Options{Threads: g.threads})
}

// graphNet is the denoiser of a folder as the engine's interface of networks has it. It has no gradients, and its caller
// hides that it offers them.
type graphNet struct {
	s         *ort.Session
	cfg       diffusers.Config
	out       string
	in, outs  int // channels
	h, w      int
	classes   int
	noClass   int
	transform string // the name of the images: sample or hidden_states
}

// network opens the denoiser.
func (g *graphs) network(component string, cfg diffusers.Config) (*graphNet, error) {
	n := &graphNet{cfg: cfg, noClass: models.NoClass, transform: "sample"}
	switch c := cfg.(type) {
	case *diffusers.UNet2DConfig:
		n.in, n.outs, n.h, n.w, n.classes = c.InChannels, c.OutChannels, c.SampleSize.H, c.SampleSize.W, c.NumClassEmbeds
	case *diffusers.UNet2DConditionConfig:
		n.in, n.outs, n.h, n.w = c.InChannels, c.OutChannels, c.SampleSize.H, c.SampleSize.W
	case *diffusers.SD3Config:
		n.in, n.outs, n.h, n.w = c.InChannels, c.Out(), c.SampleSize, c.SampleSize
		n.transform = "hidden_states"
	case *diffusers.DiTConfig:
		n.in, n.outs, n.h, n.w, n.classes = c.InChannels, c.OutChannels, c.SampleSize, c.SampleSize, c.NumEmbedsAdaNorm+1
		n.noClass, n.transform = n.classes-1, "hidden_states"
		if n.outs == 0 {
			n.outs = n.in
		}
	case *diffusers.FluxConfig:
		n.in, n.outs, n.h, n.w = c.InChannels/4, c.InChannels/4, 128, 128
		n.transform = "hidden_states"
	default:
		return nil, refuse.Errorf(filepath.Join(g.dir, component), "a %s in ONNX is not known here: give its %s a sidecar, and it opens as a single file", cfg.ClassName(), graphName)
	}
	var err error
	if n.s, err = g.open(component, []string{n.transform, "timestep"}, "out_sample", "out_hidden_states"); err != nil {
		return nil, err
	}
	p, _ := n.s.File.Input(n.transform)
	g.dtype = map[ort.Type]string{ort.Float16: "f16", ort.Float64: "f64"}[p.Type]
	if g.dtype == "" {
		g.dtype = "f32"
	}
	if g.want != "" && g.want != g.dtype {
		n.Close()
		return nil, &AskedError{fmt.Sprintf("%s computes in %s: the arithmetic of an ONNX graph is inside, not %s", g.dir, g.dtype, g.want)}
	}
	n.out = "out_sample"
	if !slices.ContainsFunc(n.s.File.Outputs, func(p ort.Port) bool { return p.Name == n.out }) {
		n.out = "out_hidden_states"
	}
	return n, nil
}

func (n *graphNet) Channels() (in, out int)                           { return n.in, n.outs }
func (n *graphNet) SampleSize() (h, w int)                            { return n.h, n.w }
func (n *graphNet) Classes() int                                      { return n.classes }
func (n *graphNet) NoClass() int                                      { return n.noClass }
func (n *graphNet) Parameters() int                                   { return int(n.s.File.Params) }
func (n *graphNet) Example(int) map[string]engine.Array               { return nil }
func (n *graphNet) Memory() native.Memory                             { return native.Memory{} }
func (n *graphNet) Tier() kernels.Tier                                { return 0 }
func (n *graphNet) DType() kernels.DType                              { return kernels.F32 }
func (n *graphNet) Close()                                            { n.s.Close() }
func (n *graphNet) MACs(int, int) (int, error)                        { return 0, errGraph }
func (n *graphNet) VJP(context.Context, []float64, []float64) error   { return errGraph }
func (n *graphNet) VJP32(context.Context, []float32, []float32) error { return errGraph }

func (n *graphNet) Need(int, int, int) (native.Memory, error) { return native.Memory{}, errGraph }

var errGraph = errors.New("models: ONNX Runtime does not tell, and has no gradients")

// Forward32 implements native.Network.
func (n *graphNet) Forward32(ctx context.Context, dst, x []float32, b *native.Batch) error {
	wide, out := make([]float64, len(x)), make([]float64, len(dst))
	for i, v := range x {
		wide[i] = float64(v)
	}
	if err := n.Forward(ctx, out, wide, b); err != nil {
		return err
	}
	for i, v := range out {
		dst[i] = float32(v)
	}
	return nil
}

// onnxNames are the names of an export for inputs that the reference keeps in a dictionary.
var onnxNames = map[string]string{"added_text_embeds": "text_embeds", "added_time_ids": "time_ids"}

// Forward implements native.Network: one call for all images, or one per image where the graph takes one time for all and
// these have several.
func (n *graphNet) Forward(ctx context.Context, dst, x []float64, b *native.Batch) error {
	if len(b.IdentityAttention) > 0 || len(b.SkipLayers) > 0 {
		return fmt.Errorf("models: %s: the layers of an ONNX network cannot be changed (perturbed attention, skipped layers)", n.s.File.Path)
	}
	rows := len(b.T)
	if t, _ := n.s.File.Input("timestep"); t.Ranks && len(t.Dims) == 0 && slices.ContainsFunc(b.T, func(t float64) bool { return t != b.T[0] }) {
		for i := range rows {
			one := *b
			one.T, one.Inputs = b.T[i:i+1], map[string]engine.Array{}
			if b.Class != nil {
				one.Class = b.Class[i : i+1]
			}
			for name, a := range b.Inputs {
				one.Inputs[name] = engine.Array{Shape: append([]int{1}, a.Shape[1:]...), Data: a.Row(i)}
			}
			if err := n.Forward(ctx, dst[i*len(dst)/rows:(i+1)*len(dst)/rows], x[i*len(x)/rows:(i+1)*len(x)/rows], &one); err != nil {
				return err
			}
		}
		return nil
	}
	_, flux := n.cfg.(*diffusers.FluxConfig)
	feed := map[string]ort.Tensor{}
	give := func(name string, shape []int, values []float64) error {
		p, ok := n.s.File.Input(name)
		if !ok {
			return fmt.Errorf("models: %s has no input %s; it has %s", n.s.File.Path, name, n.s.File.Ports())
		}
		if p.Ranks && len(p.Dims) == 0 {
			shape, values = nil, values[:1]
		}
		t, err := ort.NewTensor(p.Type, shape, values)
		feed[name] = t
		return err
	}
	shape := []int{rows, n.in, b.H, b.W}
	if flux {
		shape, x = []int{rows, b.H / 2 * (b.W / 2), 4 * n.in}, mmdit.Pack(x, rows, b.H/2, b.W/2, n.in)
		ids := make([]float64, 0, 3*shape[1])
		for i := range b.H / 2 {
			for j := range b.W / 2 {
				ids = append(ids, 0, float64(i), float64(j))
			}
		}
		if err := give("img_ids", []int{shape[1], 3}, ids); err != nil {
			return err
		}
		if err := give("txt_ids", []int{b.Inputs["encoder_hidden_states"].Shape[1], 3}, make([]float64, 3*b.Inputs["encoder_hidden_states"].Shape[1])); err != nil {
			return err
		}
	}
	if err := errors.Join(give(n.transform, shape, x), give("timestep", []int{rows}, b.T)); err != nil {
		return err
	}
	if n.classes > 0 {
		labels := make([]float64, rows)
		for i, k := range b.Class {
			labels[i] = float64(k)
		}
		if err := give("class_labels", []int{rows}, labels); err != nil {
			return err
		}
	}
	for name, a := range b.Inputs {
		if other, ok := onnxNames[name]; ok {
			name = other
		}
		wide := make([]float64, len(a.Data))
		for i, v := range a.Data {
			wide[i] = float64(v)
		}
		if err := give(name, a.Shape, wide); err != nil {
			return err
		}
	}
	out, err := n.s.Run(ctx, feed, n.out)
	if err != nil {
		return err
	}
	v := out[0].Float64()
	if len(v) != len(dst) {
		return fmt.Errorf("models: %s gives an output of shape %v for images of shape %v", n.s.File.Path, out[0].Shape, shape)
	}
	if flux {
		v = mmdit.Unpack(v, rows, b.H/2, b.W/2, n.outs)
	}
	copy(dst, v)
	return nil
}

// forwardOnly is a denoiser without gradients.
type forwardOnly struct{ d *native.Denoiser }

func (f forwardOnly) Process() schedules.Process { return f.d.Process() }
func (f forwardOnly) Info() models.Info          { return f.d.Info() }
func (f forwardOnly) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	return f.d.Predict(ctx, q, p)
}

// graphCoder is an autoencoder of two graphs.
type graphCoder struct {
	encoder, decoder         *ort.Session // encoder may be nil
	latent, pictures, factor int
}

// graphAutoencoder opens vae_decoder and, where it is there, vae_encoder.
func (o *opener) graphAutoencoder(opt Pipeline) error {
	g := o.graphs
	if g.path("vae_decoder") == "" {
		return nil
	}
	path := filepath.Join(g.dir, "vae_decoder", "config.json")
	c := &graphCoder{latent: 4, pictures: 3, factor: 8}
	var cfg diffusers.Config
	if exists(path) {
		var err error
		if cfg, err = diffusers.ReadConfig(path); err != nil {
			return err
		}
		kl, ok := cfg.(*diffusers.AutoencoderKLConfig)
		if !ok {
			return refuse.Errorf(path, "is a %s; an AutoencoderKL is known here", cfg.ClassName())
		}
		c.latent, c.pictures, c.factor = kl.LatentChannels, kl.OutChannels, 1<<(len(kl.BlockOutChannels)-1)
	} else {
		cfg = &diffusers.AutoencoderKLConfig{ScalingFactor: 0.18215}
		o.notes = append(o.notes, "vae_decoder has no config.json: taken as that of Stable Diffusion 1 (scaling factor 0.18215)")
	}
	var err error
	if c.decoder, err = g.open("vae_decoder", []string{"latent_sample"}, "sample"); err != nil {
		return err
	}
	o.closes = append(o.closes, c.decoder.Close)
	if g.path("vae_encoder") != "" {
		if c.encoder, err = g.open("vae_encoder", []string{"sample"}, "latent_parameters", "latent_sample"); err != nil {
			return err
		}
		o.closes = append(o.closes, c.encoder.Close)
	}
	if o.codec, err = pipeline.NewCodec(c, cfg); err != nil {
		return fmt.Errorf("models: %w", err)
	}
	o.tile(opt)
	return nil
}

func (c *graphCoder) Latent() int   { return c.latent }
func (c *graphCoder) Pictures() int { return c.pictures }
func (c *graphCoder) Factor() int   { return c.factor }

// Moments implements pipeline.Autoencoder: old exports drew a sample, new ones give mean and log variance.
func (c *graphCoder) Moments() bool {
	if c.encoder == nil {
		return false
	}
	_, ok := c.encoder.File.Output("latent_parameters")
	return ok
}

func (c *graphCoder) Encoded(h, w int) (lh, lw int, err error) {
	if c.encoder == nil {
		return 0, 0, errors.New("the folder has no vae_encoder: pictures cannot be encoded")
	}
	if h%c.factor != 0 || w%c.factor != 0 {
		return 0, 0, fmt.Errorf("pictures of %dx%d: want multiples of %d", w, h, c.factor)
	}
	return h / c.factor, w / c.factor, nil
}

func (c *graphCoder) Encode(ctx context.Context, dst, pictures []float64, n, h, w int) error {
	out := "latent_sample"
	if c.Moments() {
		out = "latent_parameters"
	}
	return runGraph(ctx, c.encoder, "sample", []int{n, c.pictures, h, w}, pictures, out, dst)
}

func (c *graphCoder) Decode(ctx context.Context, dst, latents []float64, n, h, w int) error {
	return runGraph(ctx, c.decoder, "latent_sample", []int{n, c.latent, h, w}, latents, "sample", dst)
}

// runGraph runs a graph of one input.
func runGraph(ctx context.Context, s *ort.Session, in string, shape []int, x []float64, out string, dst []float64) error {
	p, _ := s.File.Input(in) // open saw it
	t, err := ort.NewTensor(p.Type, shape, x)
	if err != nil {
		return err
	}
	y, err := s.Run(ctx, map[string]ort.Tensor{in: t}, out)
	if err != nil {
		return err
	}
	v := y[0].Float64()
	if len(v) != len(dst) {
		return fmt.Errorf("models: %s gives an output of shape %v for an input of shape %v", s.File.Path, y[0].Shape, shape)
	}
	copy(dst, v)
	return nil
}

// graphText is a text encoder in a graph.
type graphText struct {
	s      *ort.Session
	hidden []string // outputs hidden_states.0, .1, ...
}

// graphEncoder opens a text encoder.
func (o *opener) graphEncoder(component string) (*graphText, error) {
	s, err := o.graphs.open(component, []string{"input_ids"}, "last_hidden_state", "text_embeds")
	if err != nil {
		return nil, err
	}
	o.closes = append(o.closes, s.Close)
	e := &graphText{s: s}
	for i := 0; ; i++ {
		name := "hidden_states." + strconv.Itoa(i)
		if _, ok := s.File.Output(name); !ok {
			return e, nil
		}
		e.hidden = append(e.hidden, name)
	}
}

// Close implements pipeline.Encoder.
func (e *graphText) Close() { e.s.Close() }

// EncodeSkip implements pipeline.Encoder.
func (e *graphText) EncodeSkip(ctx context.Context, ids, mask [][]int, skip int) (*text.Output, error) {
	if skip != 0 {
		return nil, &AskedError{"clip skip: the graph " + e.s.File.Path + " gives its last layer only"}
	}
	feed := map[string]ort.Tensor{}
	for _, in := range []struct {
		name string
		rows [][]int
	}{{"input_ids", ids}, {"attention_mask", mask}} {
		p, ok := e.s.File.Input(in.name)
		switch {
		case !ok && in.rows == nil, !ok && in.name == "attention_mask":
			continue
		case in.rows == nil: // a graph that wants a mask sees all tokens
			in.rows = slices.Clone(ids)
			for i, row := range in.rows {
				in.rows[i] = slices.Repeat([]int{1}, len(row))
			}
		}
		var values []float64
		for _, row := range in.rows {
			for _, v := range row {
				values = append(values, float64(v))
			}
		}
		t, err := ort.NewTensor(p.Type, []int{len(ids), len(ids[0])}, values)
		if err != nil {
			return nil, err
		}
		feed[in.name] = t
	}
	out := &text.Output{N: len(ids), Tokens: len(ids[0])}
	var names []string
	take := func(t ort.Tensor) []float32 {
		v := make([]float32, 0, len(t.Float64()))
		for _, x := range t.Float64() {
			v = append(v, float32(x))
		}
		return v
	}
	for _, name := range slices.Concat([]string{"last_hidden_state", "pooler_output", "text_embeds"}, e.hidden) {
		if _, ok := e.s.File.Output(name); ok {
			names = append(names, name)
		}
	}
	results, err := e.s.Run(ctx, feed, names...)
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		v, s := take(results[i]), results[i].Shape
		switch name {
		case "last_hidden_state":
			out.Last, out.Width = v, s[len(s)-1]
		case "pooler_output":
			out.Pooled = v
		case "text_embeds":
			out.Projected = v
		default:
			out.Hidden, out.Width = append(out.Hidden, v), s[len(s)-1]
		}
	}
	return out, nil
}
