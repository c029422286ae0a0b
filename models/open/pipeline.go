package open

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"drift/internal/kernels"
	"drift/internal/refuse"
	"drift/models/autoencoder"
	"drift/models/diffusers"
	"drift/models/engine"
	"drift/models/pipeline"
	"drift/models/text"
)

// Pipeline says how the parts around a denoiser are opened. The zero value takes what the folder has.
type Pipeline struct {
	VAE        string  `json:"vae,omitempty"`         // folder of another autoencoder
	Width      int     `json:"width,omitempty"`       // of the pictures, 0 = what the network was made for
	Height     int     `json:"height,omitempty"`      //
	ClipSkip   int     `json:"clip_skip,omitempty"`   // layers of the text encoder left out at the end
	TextTokens int     `json:"text_tokens,omitempty"` // tokens that T5 sees, 0 = the pipeline's own number
	Guidance   float64 `json:"guidance,omitempty"`    // the scale that a distilled network takes as an input (Flux dev, LCM), 0 = 3.5 and 7.5
	LoRA       string  `json:"lora,omitempty"`        // files merged into the weights, with their scales: "a.safetensors:0.8,b.safetensors"
	Tile       int     `json:"tile,omitempty"`        // side of the latents that are decoded at once, 0 = 128
	Config     string  `json:"config,omitempty"`      // of a pipeline in one file: folder whose configurations are taken
	Tokenizer  string  `json:"tokenizer,omitempty"`   // of a pipeline in one file: folder of its tokenizers
	Prediction string  `json:"prediction,omitempty"`  // of a pipeline in one file: eps or v, where the file does not say it
}

// AskedError says that what was asked of a model's parts does not fit a model that is sound.
type AskedError struct{ Reason string }

func (e *AskedError) Error() string { return "models: " + e.Reason }

// frame is what stands around a denoiser: the text and the autoencoder.
type frame struct {
	text   *pipeline.Conditioner
	codec  *pipeline.Codec
	scale  float64 // default of classifier-free guidance
	steps  int     // default, 0 = the scheduler's
	notes  []string
	closes []func()
}

func (f *frame) close() {
	for _, c := range f.closes {
		c()
	}
}

// frames opens the parts of a pipeline around its denoiser. Without any, nil.
func frames(r *diffusers.Repository, cfg diffusers.Config, g *graphs, changes loras, pool *kernels.Pool, dtype kernels.DType, opt Pipeline) (f *frame, err error) {
	o := opener{r: r, graphs: g, loras: changes, opt: engine.Options{Pool: pool, DType: dtype}, frame: &frame{scale: 1}}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	if err := o.autoencoder(opt); err != nil {
		return nil, err
	}
	if err := o.prompts(cfg, opt); err != nil {
		return nil, err
	}
	if c := o.codec; c == nil && o.text == nil {
		if opt.LoRA, opt.Config = "", ""; opt != (Pipeline{}) {
			return nil, &AskedError{r.Dir + " has neither an autoencoder nor a text encoder: sizes, clip skip and the like are not for it"}
		}
		return nil, nil
	}
	return o.frame, nil
}

// factor is how many pixels of a picture's side one of a latent's stands for.
func (f *frame) factor() int {
	if f.codec == nil {
		return 1
	}
	return f.codec.Factor()
}

// supported reads the configurations of a folder, and says by name what is not supported in them, before any weights are
// read.
func (p *parts) supported(opt Pipeline) error {
	r := p.repo
	if _, own := p.config.(*diffusers.ADMConfig); !own && edmOf(p.config) == nil { // these may come without a scheduler
		sched, err := r.Scheduler()
		if err != nil {
			return needs(err)
		}
		if _, err := gridConfig(sched); err != nil {
			return refuse.Errorf(p.name, "%v", err)
		}
	}
	if _, ok := p.config.(*diffusers.SanaConfig); ok {
		return refuse.Errorf(p.name, "Sana's pipelines need a Gemma text encoder and an AutoencoderDC, which this engine does not run; `drift model run` runs the network")
	}
	if r.Index == nil {
		return nil
	}
	unet, attends := p.config.(*diffusers.UNet2DConditionConfig)
	if _, ok := r.Index.Component("text_encoder"); attends && !ok {
		return refuse.Errorf(p.name, "its network attends to a text, and there is no text_encoder")
	}
	for _, name := range []string{"text_encoder", "text_encoder_2", "text_encoder_3", "vae", "vqvae"} {
		if _, ok := r.Index.Component(name); !ok || name == "vae" && opt.VAE != "" {
			continue
		}
		cfg, _, err := r.Config(name)
		if err != nil {
			return err
		}
		if vae, ok := cfg.(*diffusers.AutoencoderKLConfig); ok && attends {
			switch latent := vae.LatentChannels; unet.InChannels {
			case latent, 2*latent + 1:
			default:
				return refuse.Errorf(p.name, "its network reads %d channels and its latents have %d: what goes beside them is known for masks alone, %d channels in all", unet.InChannels, latent, 2*latent+1)
			}
		}
	}
	return nil
}

// opener opens components of a repository.
type opener struct {
	*frame
	encoders []*text.Encoder
	graphs   *graphs // of a folder of ONNX networks, nil for one of weights
	r        *diffusers.Repository
	opt      engine.Options
	loras    loras
}

// loras are opened LoRA files and their scales.
type loras []struct {
	*diffusers.LoRA
	scale float64
}

// openLoRAs opens the files of a list such as "a.safetensors:0.8,b.safetensors".
func openLoRAs(list string) (out loras, err error) {
	defer func() {
		if err != nil {
			out.close()
		}
	}()
	for part := range strings.SplitSeq(list, ",") {
		if list == "" {
			break
		}
		path, scale := part, 1.0
		if i := strings.LastIndexByte(part, ':'); i > 0 {
			if v, err := strconv.ParseFloat(part[i+1:], 64); err == nil {
				path, scale = part[:i], v
			}
		}
		l, err := diffusers.OpenLoRA(path)
		if err != nil {
			return out, err
		}
		out = append(out, struct {
			*diffusers.LoRA
			scale float64
		}{l, scale})
		for _, c := range l.Components() {
			if !slices.Contains([]string{"unet", "transformer", "text_encoder", "text_encoder_2"}, c) {
				return out, refuse.Errorf(path, "changes a %s", c)
			}
		}
	}
	return out, nil
}

func (l loras) close() {
	for _, x := range l {
		_ = x.Close() // files that were only read
	}
}

// merge puts the changes of a component into its weights.
func (l loras) merge(component string, cfg diffusers.Config, w diffusers.Weights) (diffusers.Weights, error) {
	for _, x := range l {
		var err error
		if w, err = x.Merge(component, cfg, w, x.scale); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// has tells whether the repository has a component.
func (o *opener) has(name string) bool {
	if o.graphs != nil {
		return o.graphs.path(name) != ""
	}
	if o.r.Index != nil {
		_, ok := o.r.Index.Component(name)
		return ok
	}
	info, err := os.Stat(filepath.Join(o.r.Dir, name))
	return err == nil && info.IsDir()
}

// Codec opens an autoencoder alone, such as one that makes previews. release gives it back.
func Codec(path string, opt Options) (c *pipeline.Codec, release func(), err error) {
	dtype := kernels.F32
	if opt.DType == "bf16" {
		dtype = kernels.BF16
	}
	pool, err := newPool(opt)
	if err != nil {
		return nil, nil, err
	}
	o := opener{opt: engine.Options{Pool: pool, DType: dtype}, frame: &frame{}}
	release = func() {
		o.close()
		pool.Close()
	}
	if err := o.autoencoder(Pipeline{VAE: path}); err != nil {
		release()
		return nil, nil, err
	}
	return o.codec, release, nil
}

func (o *opener) autoencoder(opt Pipeline) error {
	if o.graphs != nil && opt.VAE == "" {
		return o.graphAutoencoder(opt)
	}
	var m *diffusers.Model
	var err error
	switch {
	case opt.VAE != "":
		m, err = o.otherVAE(opt.VAE)
	case o.has("vae"):
		m, err = o.r.Network("vae")
	case o.has("vqvae"):
		m, err = o.r.Network("vqvae")
	default:
		return nil
	}
	if err != nil {
		return err
	}
	o.closes = append(o.closes, func() { _ = m.Close() }) // files that were only read
	a, err := autoencoder.New(m.Config, m.Weights, o.opt)
	if err != nil {
		return fmt.Errorf("models: %w", err)
	}
	o.closes = append(o.closes, a.Close)
	if o.codec, err = pipeline.NewCodec(a, m.Config); err != nil {
		return fmt.Errorf("models: %w", err)
	}
	o.tile(opt)
	return nil
}

// tile sets the side of the latents that are decoded at once.
func (o *opener) tile(opt Pipeline) {
	if o.codec.Tile = opt.Tile; opt.Tile == 0 {
		o.codec.Tile = 128
	}
}

// otherVAE opens an autoencoder in place of the model's own. A file does not say how latents are scaled: as the model's are.
func (o *opener) otherVAE(path string) (*diffusers.Model, error) {
	r, err := diffusers.OpenRepository(path, diffusers.Options{})
	if err != nil {
		return nil, err
	}
	component := ""
	if diffusers.SingleFile(path) {
		component = "vae"
	}
	m, err := r.Network(component)
	if err != nil || component == "" || o.r == nil || !o.has("vae") {
		return m, err
	}
	own, _, err := o.r.Config("vae")
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	a, isKL := own.(*diffusers.AutoencoderKLConfig)
	if b, ok := m.Config.(*diffusers.AutoencoderKLConfig); ok && isKL {
		b.ScalingFactor, b.ShiftFactor, b.SampleSize = a.ScalingFactor, a.ShiftFactor, a.SampleSize
	}
	return m, nil
}

func (o *opener) encoder(name string) (*text.Encoder, error) {
	m, err := o.r.Network(name)
	if err != nil {
		return nil, err
	}
	o.closes = append(o.closes, func() { _ = m.Close() }) // files that were only read
	w, err := o.loras.merge(name, m.Config, m.Weights)
	if err != nil {
		return nil, err
	}
	lazy := o.opt
	lazy.Lazy = true // packed for the first prompt
	e, err := text.New(m.Config, w, lazy)
	if err != nil {
		return nil, fmt.Errorf("models: %w", err)
	}
	o.encoders = append(o.encoders, e)
	o.closes = append(o.closes, e.Close)
	return e, nil
}

func (o *opener) clip(suffix string) (c pipeline.Clip, err error) {
	act, vocabulary := "", 0 // of the encoder
	if o.graphs != nil {
		if c.Encoder, err = o.graphEncoder("text_encoder" + suffix); err != nil {
			return c, err
		}
	} else {
		e, err := o.encoder("text_encoder" + suffix)
		if err != nil {
			return c, err
		}
		cfg, ok := e.Config().(*diffusers.CLIPTextConfig)
		if !ok {
			return c, refuse.Errorf(o.r.Dir, "text_encoder%s is a %s, a CLIP text model is needed there", suffix, e.Config().ClassName())
		}
		c.Encoder, act, vocabulary = e, cfg.HiddenAct, cfg.VocabSize
	}
	dir, own, err := o.r.Tokenizer("tokenizer" + suffix)
	switch {
	case err != nil:
		return c, err
	case dir != "":
		c.Tokenizer, err = text.OpenCLIPTokenizer(dir)
	case vocabulary == text.CLIPVocabulary:
		c.Tokenizer, err = text.NewCLIPTokenizer()
	default:
		return c, &AskedError{fmt.Sprintf("%s has a text encoder of %d tokens, not CLIP's %d, and no tokenizer: add --tokenizer FOLDER, one with vocab.json and merges.txt", o.r.Dir, vocabulary, text.CLIPVocabulary)}
	}
	if err == nil && !own && act == "gelu" {
		err = c.Tokenizer.PadWith("!") // number 0: OpenCLIP's encoders were trained with zeros behind the text
	}
	return c, err
}

// t5 opens the long encoder; without one its states are zeros where the pipeline allows that.
func (o *opener) t5(suffix string, length int) (t pipeline.T5, err error) {
	t.Length = length
	if !o.has("text_encoder" + suffix) {
		return t, nil
	}
	if o.graphs != nil {
		t.Encoder, err = o.graphEncoder("text_encoder" + suffix)
	} else {
		t.Encoder, err = o.encoder("text_encoder" + suffix)
	}
	if err != nil {
		return t, err
	}
	tok, err := text.OpenT5Tokenizer(filepath.Join(o.r.Dir, "tokenizer"+suffix))
	if err != nil {
		return t, err
	}
	t.Tokenize = tok.Padded
	return t, nil
}

// The usual numbers of tokens, and the usual scales of distilled networks.
const (
	sd3Tokens, fluxTokens, pixartTokens, sigmaTokens = 256, 512, 120, 300
	fluxGuidance, lcmGuidance                        = 3.5, 7.5
)

func orInt(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}

// prompts opens what turns a prompt into the denoiser's inputs.
func (o *opener) prompts(cfg diffusers.Config, opt Pipeline) error {
	c := &pipeline.Conditioner{}
	switch cfg := cfg.(type) {
	case *diffusers.UNet2DConditionConfig:
		if !o.has("text_encoder") { // files without an index
			return refuse.Errorf(o.r.Dir, "its network attends to a text, and there is no text_encoder")
		}
		first, err := o.clip("")
		if err != nil {
			return err
		}
		c.Text, o.scale = pipeline.SD{Clip: first, Skip: opt.ClipSkip}, 7.5
		if cfg.AdditionEmbedType == "text_time" {
			second, err := o.clip("_2")
			if err != nil {
				return err
			}
			zero := o.r.Index != nil && o.r.Index.Flag("force_zeros_for_empty_prompt")
			c.Text, o.scale = pipeline.SDXL{First: first, Second: second, Skip: opt.ClipSkip, ZeroEmpty: zero}, 5
			c.More = pipeline.Size(o.factor())
		}
		if cfg.TimeCondProjDim > 0 {
			w := opt.Guidance
			if w == 0 {
				w = lcmGuidance
			}
			c.More = pipeline.Both(c.More, pipeline.Constant("timestep_cond", pipeline.GuidanceCode(w-1, cfg.TimeCondProjDim)...))
			o.scale, o.steps = 1, 4
		}
	case *diffusers.SD3Config:
		first, err := o.clip("")
		if err != nil {
			return err
		}
		second, err := o.clip("_2")
		if err != nil {
			return err
		}
		long, err := o.t5("_3", orInt(opt.TextTokens, sd3Tokens))
		if err != nil {
			return err
		}
		c.Text = pipeline.SD3{First: first, Second: second, T5: long, Skip: opt.ClipSkip, Width: cfg.JointAttentionDim}
		o.scale, o.steps = 7, 28
	case *diffusers.FluxConfig:
		first, err := o.clip("")
		if err != nil {
			return err
		}
		long, err := o.t5("_2", orInt(opt.TextTokens, fluxTokens))
		if err != nil {
			return err
		}
		c.Text = pipeline.Flux{Clip: first, T5: long, Width: cfg.JointAttentionDim}
		o.steps = 4
		if cfg.GuidanceEmbeds {
			w := opt.Guidance
			if w == 0 {
				w = fluxGuidance
			}
			c.More, o.steps = pipeline.Constant("guidance", float32(w)), 28
		}
	case *diffusers.PixArtConfig:
		if cfg.Additional() {
			c.More = pipeline.PixArtSize(o.factor())
		}
		tokens := pixartTokens
		if o.r.Index != nil && o.r.Index.Class == "PixArtSigmaPipeline" {
			tokens = sigmaTokens
		}
		long, err := o.t5("", orInt(opt.TextTokens, tokens))
		if err != nil {
			return err
		}
		c.Text, o.scale, o.steps = pipeline.PixArt{T5: long, Width: cfg.CaptionChannels}, 4.5, 20
	default:
		return nil
	}
	c.Encoded = o.forget
	o.text = c
	return nil
}

// large is how much memory a part may keep while another one works.
const large = 64 << 20

// forget gives the memory of large text encoders back. Prompts are remembered, and new ones read the weights again.
func (o *opener) forget() {
	for _, e := range o.encoders {
		if e.Weights() > large {
			e.Forget()
		}
	}
}

// factor is how many pixels of a picture's side one of a latent's stands for.
func (o *opener) factor() int {
	if o.codec == nil {
		return 8
	}
	return o.codec.Factor()
}

// size is the size of the latents: what was asked for, or the network's own.
func (f *frame) size(opt Pipeline, h, w int) (int, int, error) {
	factor := f.factor()
	for _, s := range []struct {
		name string
		want int
		dst  *int
	}{{"height", opt.Height, &h}, {"width", opt.Width, &w}} {
		if s.want == 0 {
			continue
		}
		if s.want < factor || s.want%factor != 0 || s.want > 1<<14 {
			return 0, 0, &AskedError{fmt.Sprintf("a %s of %d: want a multiple of %d up to %d", s.name, s.want, factor, 1<<14)}
		}
		*s.dst = s.want / factor
	}
	return h, w, nil
}

// dynamicShift is mu of FlowMatchEulerDiscreteScheduler for a number of image tokens: linear between two sizes.
func dynamicShift(s *diffusers.SchedulerConfig, tokens int) float64 {
	if !s.UseDynamicShifting {
		return 0
	}
	lo, hi := float64(s.BaseImageSeqLen), float64(s.MaxImageSeqLen)
	if !(hi > lo) {
		lo, hi = 256, 4096
	}
	m := (s.MaxShift - s.BaseShift) / (hi - lo)
	mu := m*float64(tokens) + s.BaseShift - m*lo
	if math.IsNaN(mu) {
		return 0
	}
	return mu
}
