package diffusers

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// SongUNet and DhariwalUNet of EDM (Karras et al. 2022, arXiv:2206.00364) and
// the U-Net of ADM (Dhariwal and Nichol 2021, arXiv:2105.05233) are made of one
// kind of block. A UNetPlan lists what a network of theirs is made of, in the
// order in which it runs.

// A UNetPlan is a U-Net as a list of steps.
type UNetPlan struct {
	Noise      int // width of the time's code
	Emb        int // width of the embedding
	Eps        float64
	Groups     func(channels int) int
	ScaleShift bool    // the embedding scales and shifts behind the second norm instead of being added before it
	Scale      float64 // of every sum
	Filter     []float64
	QKV        string // order of queries, keys and values: "edm", "split" or "whole"
	Names      BlockNames
	Steps      []UNetStep
}

// BlockNames are the parts of a block.
type BlockNames struct {
	Norm1, Conv1, Emb, Norm2, Conv2, Skip string
	Norm3, QKV, Proj                      string // behind UNetStep.Attn
	OutNorm, OutConv                      string // of a step "out"
}

// A UNetStep is one step of a network.
type UNetStep struct {
	Kind    string // conv, block, down, up, aux-down, aux-skip, aux-residual, aux-up, out
	Name    string
	Attn    string // prefix of a block's attention, with its dot; empty without
	Heads   int
	In, Out int
	// A block that goes up or down resamples its input; Project: its shortcut is
	// a convolution.
	Up, Down, Project, Attention bool
	// Push keeps the result for the way up; Pop takes the last one kept beside the
	// input.
	Push, Pop bool
	Level     int // halvings of the picture behind the step
}

// layout lists the tensors of the steps; flat says that attention's weights
// have one trailing dimension instead of two.
func (p *UNetPlan) layout(l *layout, flat bool) {
	n := p.Names
	one := func(name string, in, out int) {
		if flat {
			l.add(name+".weight", out, in, 1)
			l.add(name+".bias", out)
			return
		}
		l.conv(name, in, out, 1)
	}
	norm := func(name string, c int) {
		l.groupNorm(name, c, p.Groups(c))
	}
	for _, s := range p.Steps {
		if l.full() {
			return
		}
		switch s.Kind {
		case "conv":
			l.conv(s.Name, s.In, s.Out, 3)
		case "down":
			l.conv(s.Name+".op", s.In, s.Out, 3)
		case "up":
			l.conv(s.Name+".conv", s.In, s.Out, 3)
		case "aux-skip":
			l.conv(s.Name, s.In, s.Out, 1)
		case "aux-residual":
			l.conv(s.Name, s.In, s.Out, 3)
		case "out":
			norm(s.Name+n.OutNorm, s.In)
			l.conv(s.Name+n.OutConv, s.In, s.Out, 3)
		case "block":
			norm(s.Name+n.Norm1, s.In)
			l.conv(s.Name+n.Conv1, s.In, s.Out, 3)
			width := s.Out
			if p.ScaleShift {
				width *= 2
			}
			l.linear(s.Name+n.Emb, p.Emb, width, true)
			norm(s.Name+n.Norm2, s.Out)
			l.conv(s.Name+n.Conv2, s.Out, s.Out, 3)
			if s.Project {
				l.conv(s.Name+n.Skip, s.In, s.Out, 1)
			}
			if s.Attention {
				if s.Heads < 1 || s.Out%s.Heads != 0 {
					l.fail("num_heads", "%d heads do not divide the %d channels of %s", s.Heads, s.Out, s.Name)
				}
				norm(s.Attn+n.Norm3, s.Out)
				one(s.Attn+n.QKV, s.Out, 3*s.Out)
				one(s.Attn+n.Proj, s.Out, s.Out)
			}
		}
	}
}

// EDMConfig is what the networks of EDM have in common, by the names of their
// constructor's arguments, and how EDM's programs precondition them.
type EDMConfig struct {
	ImgResolution  int   `key:"img_resolution"`
	InChannels     int   `key:"in_channels"`
	OutChannels    int   `key:"out_channels"`
	LabelDim       int   `key:"label_dim"`   // 0: no classes
	AugmentDim     int   `key:"augment_dim"` // inputs of the augmentation, which are zero when sampling
	ModelChannels  int   `key:"model_channels"`
	ChannelMult    []int `key:"channel_mult"`
	ChannelMultEmb int   `key:"channel_mult_emb"`
	NumBlocks      int   `key:"num_blocks"`
	AttnResolution []int `key:"attn_resolutions"`

	Precond   string  `key:"precond"`    // edm, vp or ve
	SigmaData float64 `key:"sigma_data"` // of the preconditioning edm
	SigmaMin  float64 `key:"sigma_min"`
	SigmaMax  float64 `key:"sigma_max"`
}

func (c *EDMConfig) check() error {
	levels := len(c.ChannelMult)
	return check(
		between("img_resolution", c.ImgResolution, 1<<max(levels-1, 0), maxWidth),
		between("in_channels", c.InChannels, 1, maxWidth),
		rule{c.OutChannels == c.InChannels, "out_channels", c.OutChannels, "as many as in_channels"},
		between("label_dim", c.LabelDim, 0, maxWidth),
		between("augment_dim", c.AugmentDim, 0, maxWidth),
		between("model_channels", c.ModelChannels, 4, maxWidth),
		widths("channel_mult", c.ChannelMult),
		between("channel_mult_emb", c.ChannelMultEmb, 1, 64),
		between("num_blocks", c.NumBlocks, 1, maxDepth),
		oneOf("precond", c.Precond, "edm", "vp", "ve"),
		positive("sigma_data", c.SigmaData),
		positive("sigma_min", c.SigmaMin),
		rule{c.SigmaMax > c.SigmaMin && !math.IsInf(c.SigmaMax, 0), "sigma_max", c.SigmaMax, "above sigma_min"},
	)
}

// stored, since state dictionaries of the preconditioned network have a prefix
// and buffers.

func (*EDMConfig) stem() string { return "diffusion_pytorch_model" }

func (*EDMConfig) aliases(name string) []string { return []string{edmPrefix + name} }

func (c *EDMConfig) ignores(name string) bool {
	name = strings.TrimPrefix(name, edmPrefix)
	return name == "map_augment.weight" || strings.HasSuffix(name, ".resample_filter")
}

const edmPrefix = "model."

var edmNames = BlockNames{".norm0", ".conv0", ".affine", ".norm1", ".conv1", ".skip", "norm2", "qkv", "proj", "norm", "conv"}

// smallGroups are the groups of EDM's norms: at most 32, of 4 channels or more.
func smallGroups(c int) int { return max(min(32, c/4), 1) }

// edmHalves makes the steps of both halves. heads gives those of a block of so
// many channels; everywhere tells whether all decoder blocks of a resolution
// attend or the last one only.
func (c *EDMConfig) edmHalves(first int, project bool, heads func(channels int) int, everywhere bool, aux func(level int, down, decoder bool, width int) []UNetStep) []UNetStep {
	var steps []UNetStep
	var kept []int
	in, last, blocks := c.InChannels, len(c.ChannelMult)-1, c.NumBlocks
	attends := func(level int) bool { return slices.Contains(c.AttnResolution, c.ImgResolution>>level) }
	block := func(name string, in, out, level int, attention bool) UNetStep {
		s := UNetStep{Kind: "block", Name: name, In: in, Out: out, Level: level, Project: in != out}
		if attention {
			s.Attention, s.Attn, s.Heads = true, name+".", heads(out)
		}
		return s
	}
	name := func(half string, level int, part string) string {
		return fmt.Sprintf("%s.%dx%d_%s", half, c.ImgResolution>>level, c.ImgResolution>>level, part)
	}
	push := func(s UNetStep) {
		s.Push = true
		steps, kept = append(steps, s), append(kept, s.Out)
	}
	for level, mult := range c.ChannelMult {
		if level == 0 {
			push(UNetStep{Kind: "conv", Name: name("enc", 0, "conv"), In: in, Out: first})
			in = first
		} else {
			s := block(name("enc", level, "down"), in, in, level, false)
			s.Down, s.Project = true, project
			push(s)
			steps = append(steps, aux(level, true, false, in)...)
		}
		for i := range blocks {
			s := block(name("enc", level, fmt.Sprintf("block%d", i)), in, c.ModelChannels*mult, level, attends(level))
			push(s)
			in = s.Out
		}
	}
	for level := last; level >= 0; level-- {
		if level == last {
			steps = append(steps, block(name("dec", level, "in0"), in, in, level, true), block(name("dec", level, "in1"), in, in, level, false))
		} else {
			s := block(name("dec", level, "up"), in, in, level, false)
			s.Up, s.Project = true, project
			steps = append(steps, s)
		}
		for i := range blocks + 1 {
			skip := kept[len(kept)-1]
			kept = kept[:len(kept)-1]
			s := block(name("dec", level, fmt.Sprintf("block%d", i)), in+skip, c.ModelChannels*c.ChannelMult[level], level, attends(level) && (everywhere || i == blocks))
			s.Pop = true
			steps = append(steps, s)
			in = s.Out
		}
		steps = append(steps, aux(level, false, true, in)...)
	}
	return steps
}

// SongUNetConfig is EDM's SongUNet: DDPM++ and NCSN++ (Song et al. 2021,
// arXiv:2011.13456).
type SongUNetConfig struct {
	EDMConfig        `key:"-"`
	EmbeddingType    string    `key:"embedding_type"` // positional or fourier
	ChannelMultNoise int       `key:"channel_mult_noise"`
	EncoderType      string    `key:"encoder_type"` // standard, skip or residual
	DecoderType      string    `key:"decoder_type"` // standard or skip
	ResampleFilter   []float64 `key:"resample_filter"`

	Info `key:"-"`
}

func newSongUNet() *SongUNetConfig {
	return &SongUNetConfig{
		EDMConfig: EDMConfig{ImgResolution: 32, InChannels: 3, OutChannels: 3, ModelChannels: 128, ChannelMult: []int{1, 2, 2, 2}, ChannelMultEmb: 4, NumBlocks: 4,
			AttnResolution: []int{16}, Precond: "edm", SigmaData: 0.5},
		EmbeddingType: "positional", ChannelMultNoise: 1, EncoderType: "standard", DecoderType: "standard", ResampleFilter: []float64{1, 1},
	}
}

// ClassName implements Config.
func (c *SongUNetConfig) ClassName() string { return "SongUNet" }

// Validate implements Config.
func (c *SongUNetConfig) Validate() error {
	if err := c.check(); err != nil {
		return err
	}
	err := check(
		oneOf("embedding_type", c.EmbeddingType, "positional", "fourier"),
		between("channel_mult_noise", c.ChannelMultNoise, 1, 64),
		oneOf("encoder_type", c.EncoderType, "standard", "skip", "residual"),
		oneOf("decoder_type", c.DecoderType, "standard", "skip"),
		rule{slices.Contains([]int{2, 4}, len(c.ResampleFilter)) && sumOf(c.ResampleFilter) != 0, "resample_filter", c.ResampleFilter, "2 or 4 numbers whose sum is not 0"},
	)
	if err != nil {
		return err
	}
	l, _ := c.layout()
	return l.err
}

func sumOf(list []float64) (sum float64) {
	for _, v := range list {
		sum += v
	}
	return sum
}

// Plan lists the network's steps.
func (c *SongUNetConfig) Plan() *UNetPlan {
	p := &UNetPlan{
		Noise: c.ModelChannels * c.ChannelMultNoise, Emb: c.ModelChannels * c.ChannelMultEmb, Eps: 1e-6, Groups: smallGroups, Scale: math.Sqrt(0.5),
		Filter: c.ResampleFilter, QKV: "edm", Names: edmNames,
	}
	side := c.InChannels // of the picture that runs beside the encoder
	p.Steps = c.edmHalves(c.ModelChannels, true, func(int) int { return 1 }, false, func(level int, down, decoder bool, width int) []UNetStep {
		at := c.ImgResolution >> level
		name := fmt.Sprintf("%s.%dx%d_aux_", map[bool]string{true: "dec", false: "enc"}[decoder], at, at)
		var steps []UNetStep
		switch {
		case down && c.EncoderType == "skip":
			steps = append(steps, UNetStep{Kind: "aux-down", Name: name + "down", In: side, Out: side, Level: level},
				UNetStep{Kind: "aux-skip", Name: name + "skip", In: side, Out: width, Level: level})
		case down && c.EncoderType == "residual":
			steps = append(steps, UNetStep{Kind: "aux-residual", Name: name + "residual", In: side, Out: width, Level: level})
			side = width
		case decoder && (c.DecoderType == "skip" || level == 0):
			if c.DecoderType == "skip" && level < len(c.ChannelMult)-1 {
				steps = append(steps, UNetStep{Kind: "aux-up", Name: name + "up", In: c.OutChannels, Out: c.OutChannels, Level: level})
			}
			steps = append(steps, UNetStep{Kind: "out", Name: name, In: width, Out: c.OutChannels, Level: level})
		}
		return steps
	})
	return p
}

// Tensors implements Config.
func (c *SongUNetConfig) Tensors() []Tensor {
	l, _ := c.layout()
	return l.tensors
}

func (c *SongUNetConfig) layout() (*layout, *UNetPlan) {
	l, p := &layout{}, c.Plan()
	if c.EmbeddingType == "fourier" {
		l.add("map_noise.freqs", p.Noise/2)
	}
	if c.LabelDim > 0 {
		l.linear("map_label", c.LabelDim, p.Noise, true)
	}
	l.linear("map_layer0", p.Noise, p.Emb, true)
	l.linear("map_layer1", p.Emb, p.Emb, true)
	p.layout(l, false)
	return l, p
}

// DhariwalUNetConfig is EDM's DhariwalUNet, its form of ADM.
type DhariwalUNetConfig struct {
	EDMConfig `key:"-"`

	Info `key:"-"`
}

func newDhariwalUNet() *DhariwalUNetConfig {
	return &DhariwalUNetConfig{EDMConfig: EDMConfig{ImgResolution: 64, InChannels: 3, OutChannels: 3, ModelChannels: 192, ChannelMult: []int{1, 2, 3, 4}, ChannelMultEmb: 4,
		NumBlocks: 3, AttnResolution: []int{32, 16, 8}, Precond: "edm", SigmaData: 0.5}}
}

// ClassName implements Config.
func (c *DhariwalUNetConfig) ClassName() string { return "DhariwalUNet" }

// Validate implements Config.
func (c *DhariwalUNetConfig) Validate() error {
	if err := c.check(); err != nil {
		return err
	}
	l, _ := c.layout()
	return l.err
}

// Plan lists the network's steps.
func (c *DhariwalUNetConfig) Plan() *UNetPlan {
	p := &UNetPlan{Noise: c.ModelChannels, Emb: c.ModelChannels * c.ChannelMultEmb, Eps: 1e-5, Groups: smallGroups, ScaleShift: true, Scale: 1,
		Filter: []float64{1, 1}, QKV: "edm", Names: edmNames}
	p.Steps = c.edmHalves(c.ModelChannels*c.ChannelMult[0], false, func(channels int) int { return max(channels/headWidth, 1) }, true,
		func(int, bool, bool, int) []UNetStep { return nil })
	p.Steps = append(p.Steps, UNetStep{Kind: "out", Name: "out_", In: c.ModelChannels * c.ChannelMult[0], Out: c.OutChannels})
	return p
}

// Tensors implements Config.
func (c *DhariwalUNetConfig) Tensors() []Tensor {
	l, _ := c.layout()
	return l.tensors
}

func (c *DhariwalUNetConfig) layout() (*layout, *UNetPlan) {
	l, p := &layout{}, c.Plan()
	if c.LabelDim > 0 {
		l.linear("map_label", c.LabelDim, p.Emb, false)
	}
	l.linear("map_layer0", p.Noise, p.Emb, true)
	l.linear("map_layer1", p.Emb, p.Emb, true)
	p.layout(l, false)
	return l, p
}

// ADMConfig is the U-Net of guided diffusion (Dhariwal and Nichol 2021,
// arXiv:2105.05233), by the names of its program's flags, in images of
// ImageSize pixels and under one of its noise schedules.
type ADMConfig struct {
	ImageSize            int       `key:"image_size"`
	InChannels           int       `key:"in_channels"`
	OutChannels          int       `key:"out_channels"` // twice InChannels with learn_sigma
	ModelChannels        int       `key:"num_channels"`
	NumResBlocks         int       `key:"num_res_blocks"`
	ChannelMult          []float64 `key:"channel_mult"`
	AttentionResolutions []int     `key:"attention_resolutions"` // sides of the pictures in whose blocks pixels attend
	NumClasses           int       `key:"num_classes"`           // 0: none
	NumHeads             int       `key:"num_heads"`             // where NumHeadChannels is -1
	NumHeadChannels      int       `key:"num_head_channels"`
	UseScaleShiftNorm    bool      `key:"use_scale_shift_norm"`
	ResblockUpdown       bool      `key:"resblock_updown"`
	NewAttentionOrder    bool      `key:"use_new_attention_order"`
	NoiseSchedule        string    `key:"noise_schedule"` // linear or cosine
	DiffusionSteps       int       `key:"diffusion_steps"`

	Info `key:"-"`
}

func newADM() *ADMConfig {
	return &ADMConfig{ImageSize: 64, InChannels: 3, OutChannels: 6, ModelChannels: 128, NumResBlocks: 2, ChannelMult: []float64{1, 2, 3, 4}, AttentionResolutions: []int{16, 8},
		NumHeads: 4, NumHeadChannels: -1, UseScaleShiftNorm: true, NoiseSchedule: "linear", DiffusionSteps: 1000}
}

// ClassName implements Config.
func (c *ADMConfig) ClassName() string { return "ADMUNet" }

func (c *ADMConfig) width(level int) int { return int(c.ChannelMult[level] * float64(c.ModelChannels)) }

// Validate implements Config.
func (c *ADMConfig) Validate() error {
	levels := len(c.ChannelMult)
	mult := rule{levels > 0 && levels <= maxLevels, "channel_mult", fmt.Sprintf("%.60v", c.ChannelMult), fmt.Sprintf("1 to %d positive numbers", maxLevels)}
	for _, m := range c.ChannelMult {
		mult.ok = mult.ok && m > 0 && m < 1024 && m*float64(c.ModelChannels) >= 1
	}
	err := check(
		mult,
		between("image_size", c.ImageSize, 1<<max(levels-1, 0), maxWidth),
		between("in_channels", c.InChannels, 1, maxWidth),
		rule{c.OutChannels == c.InChannels || c.OutChannels == 2*c.InChannels, "out_channels", c.OutChannels, "once or twice in_channels"},
		between("num_channels", c.ModelChannels, 1, maxWidth),
		between("num_res_blocks", c.NumResBlocks, 1, maxDepth),
		between("num_classes", c.NumClasses, 0, 1<<20),
		rule{c.NumHeadChannels == -1 || c.NumHeadChannels > 0, "num_head_channels", c.NumHeadChannels, "positive, or -1"},
		between("num_heads", c.NumHeads, 1, maxWidth),
		oneOf("noise_schedule", c.NoiseSchedule, "linear", "cosine"),
		between("diffusion_steps", c.DiffusionSteps, 2, 100_000),
	)
	if err != nil {
		return err
	}
	return c.layout().err
}

func (*ADMConfig) stem() string             { return "diffusion_pytorch_model" }
func (*ADMConfig) aliases(string) []string  { return nil }
func (*ADMConfig) ignores(name string) bool { return false }

// Plan lists the network's steps.
func (c *ADMConfig) Plan() *UNetPlan {
	p := &UNetPlan{
		Noise: c.ModelChannels, Emb: 4 * c.ModelChannels, Eps: 1e-5, Groups: func(int) int { return 32 }, ScaleShift: c.UseScaleShiftNorm, Scale: 1,
		Filter: []float64{1, 1}, QKV: "split",
		Names: BlockNames{".in_layers.0", ".in_layers.2", ".emb_layers.1", ".out_layers.0", ".out_layers.3", ".skip_connection", "norm", "qkv", "proj_out", "0", "2"},
	}
	if c.NewAttentionOrder {
		p.QKV = "whole"
	}
	heads := func(channels int) int {
		if c.NumHeadChannels > 0 {
			return channels / c.NumHeadChannels
		}
		return c.NumHeads
	}
	block := func(at string, in, out, level int, attention bool) UNetStep {
		s := UNetStep{Kind: "block", Name: at + ".0", In: in, Out: out, Level: level, Project: in != out}
		if attention {
			s.Attention, s.Attn, s.Heads = true, at+".1.", heads(out)
		}
		return s
	}
	attends := func(level int) bool { return slices.Contains(c.AttentionResolutions, c.ImageSize>>level) }
	var kept []int
	push := func(s UNetStep) {
		s.Push = true
		p.Steps, kept = append(p.Steps, s), append(kept, s.Out)
	}
	last := len(c.ChannelMult) - 1
	push(UNetStep{Kind: "conv", Name: "input_blocks.0.0", In: c.InChannels, Out: c.width(0)})
	in, at := c.width(0), 1
	input := func() string { at++; return fmt.Sprintf("input_blocks.%d", at-1) }
	for level := range c.ChannelMult {
		for range c.NumResBlocks {
			push(block(input(), in, c.width(level), level, attends(level)))
			in = c.width(level)
		}
		switch {
		case level == last:
		case c.ResblockUpdown:
			s := block(input(), in, in, level+1, false)
			s.Down = true
			push(s)
		default:
			push(UNetStep{Kind: "down", Name: input() + ".0", In: in, Out: in, Level: level + 1})
		}
	}
	middle := UNetStep{Kind: "block", Name: "middle_block.0", In: in, Out: in, Level: last, Attention: true, Attn: "middle_block.1.", Heads: heads(in)}
	end := middle
	end.Name, end.Attention, end.Attn = "middle_block.2", false, ""
	p.Steps = append(p.Steps, middle, end)
	at = 0
	for level := last; level >= 0; level-- {
		for i := range c.NumResBlocks + 1 {
			name := fmt.Sprintf("output_blocks.%d", at)
			at++
			skip := kept[len(kept)-1]
			kept = kept[:len(kept)-1]
			s := block(name, in+skip, c.width(level), level, attends(level))
			s.Pop, in = true, s.Out
			p.Steps = append(p.Steps, s)
			if level == 0 || i < c.NumResBlocks {
				continue
			}
			behind := name + ".1"
			if s.Attention {
				behind = name + ".2"
			}
			if c.ResblockUpdown {
				p.Steps = append(p.Steps, UNetStep{Kind: "block", Name: behind, In: in, Out: in, Up: true, Level: level - 1})
			} else {
				p.Steps = append(p.Steps, UNetStep{Kind: "up", Name: behind, In: in, Out: in, Level: level - 1})
			}
		}
	}
	p.Steps = append(p.Steps, UNetStep{Kind: "out", Name: "out.", In: in, Out: c.OutChannels})
	return p
}

// Tensors implements Config.
func (c *ADMConfig) Tensors() []Tensor { return c.layout().tensors }

func (c *ADMConfig) layout() *layout {
	l, p := &layout{}, c.Plan()
	l.linear("time_embed.0", p.Noise, p.Emb, true)
	l.linear("time_embed.2", p.Emb, p.Emb, true)
	if c.NumClasses > 0 {
		l.add("label_emb.weight", c.NumClasses, p.Emb)
	}
	p.layout(l, true)
	return l
}

// Scheduler is the process of guided diffusion that the network was trained
// for.
func (c *ADMConfig) Scheduler(path string) (*SchedulerConfig, error) {
	betas := fmt.Sprintf(`"beta_schedule": "linear", "beta_start": %g, "beta_end": %g`, 0.1/float64(c.DiffusionSteps), min(20/float64(c.DiffusionSteps), 0.999))
	if c.NoiseSchedule == "cosine" {
		betas = `"beta_schedule": "squaredcos_cap_v2"`
	}
	return ParseScheduler(path, []byte(fmt.Sprintf(`{"_class_name": "DDIMScheduler", "num_train_timesteps": %d, %s, "clip_sample": true, "set_alpha_to_one": true, "timestep_spacing": "linspace"}`,
		c.DiffusionSteps, betas)))
}
