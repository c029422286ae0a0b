package unet2d

import (
	"fmt"
	"math"
	"strings"

	"drift/internal/kernels"
	"drift/models/diffusers"
)

// The tree below is the network as its configuration describes it: what is
// connected to what, under which names. Layers get their packed weights later.

// conv is a convolution, or a linear layer as a 1x1 convolution over tokens.
// Several tensors stand for layers that read the same input and are run as
// one, their outputs side by side (to_q, to_k, to_v).
type conv struct {
	name  string
	parts []string // names of the tensors without .weight and .bias
	spec  kernels.ConvSpec
	token bool // weights are (out, in), a linear layer
	exact bool // stays in float32 whatever the data type

	layer *kernels.Conv
	grad  *kernels.ConvGrad // packed when a gradient is first asked for
}

type norm struct {
	name   string
	c      int
	groups int
	eps    float64

	gamma, beta []float32
}

// resample is what a residual block does to its image size.
type resample uint8

const (
	keep    resample = iota
	up               // nearest, factor 2
	down             // mean of 2x2
	firUp            // filter [1,3,3,1], factor 2
	firDown          // filter [1,3,3,1], factor 1/2
)

func (r resample) size(h, w int) (int, int) {
	switch r {
	case up, firUp:
		return 2 * h, 2 * w
	case down, firDown:
		return h / 2, w / 2
	}
	return h, w
}

// resnet is ResnetBlock2D:
//
//	h = conv1(R(act(norm1 x))) + time;  h = conv2(act(norm2 h))
//	out = (shortcut(R(x)) + h) / outScale
//
// with R the resampling, or with the time as scale and shift after norm2.
type resnet struct {
	name       string
	in, out    int
	norm1      *norm
	conv1      *conv
	timeAt     int // first channel of its part of the time projection
	scaleShift bool
	norm2      *norm
	conv2      *conv
	shortcut   *conv // nil: the identity
	resample   resample
	outScale   float64
}

// attention is softmax(q k^T / sqrt(dim)) v over the pixels of an image:
//
//	out = (x + to_out(attention(norm x))) / outScale
type attention struct {
	name       string
	c          int
	heads, dim int
	norm       *norm // nil: none
	qkv, out   *conv
	outScale   float64
}

type downBlock struct {
	name    string
	resnets []*resnet
	attns   []*attention // none, or one per resnet
	conv    *conv        // strided convolution
	resnet  *resnet      // or a resampling block
	skip    *conv        // NCSN++: 1x1 of the downsampled input image
}

type upBlock struct {
	name     string
	resnets  []*resnet
	attns    []*attention // none, one per resnet, or one after all (NCSN++)
	conv     *conv        // convolution of the upsampled image
	resnet   *resnet      // or a resampling block
	ncsn     bool
	skipNorm *norm
	skip     *conv
}

type tree struct {
	cfg       diffusers.UNet2DConfig
	levels    int
	act       kernels.Activation
	timeDim   int    // width of the time embedding
	timeIn    int    // width of the sinusoid
	timeTable string // learned or Fourier: a tensor of its own
	time      [2]*conv
	classes   string   // embedding table
	class     [2]*conv // or the layers of class_embed_type timestep
	timeProj  *conv    // the time_emb_proj of every residual block
	convIn    *conv
	downs     []*downBlock
	mid       []*resnet
	midAttn   *attention
	ups       []*upBlock
	normOut   *norm
	convOut   *conv

	convs   []*conv
	norms   []*norm
	tensors []diffusers.Tensor
}

// Tensors lists the tensors that a network of this configuration is made of,
// or says which value of the configuration is not supported.
func Tensors(cfg diffusers.UNet2DConfig) ([]diffusers.Tensor, error) {
	t, err := newTree(cfg)
	if err != nil {
		return nil, err
	}
	return t.tensors, nil
}

func unsupported(key string, value any, why string) error {
	return fmt.Errorf("unet2d: config %s = %v is not supported: %s", key, value, why)
}

var activations = map[string]kernels.Activation{
	"silu": kernels.SiLU, "swish": kernels.SiLU, "gelu": kernels.GELU, "relu": kernels.ReLU,
}

var downKinds = map[string]blockKind{
	"DownBlock2D":             {},
	"AttnDownBlock2D":         {attn: true},
	"ResnetDownsampleBlock2D": {resnet: true},
	"SkipDownBlock2D":         {skip: true},
	"AttnSkipDownBlock2D":     {skip: true, attn: true},
}

var upKinds = map[string]blockKind{
	"UpBlock2D":             {},
	"AttnUpBlock2D":         {attn: true},
	"ResnetUpsampleBlock2D": {resnet: true},
	"SkipUpBlock2D":         {skip: true},
	"AttnSkipUpBlock2D":     {skip: true, attn: true},
}

type blockKind struct{ attn, resnet, skip bool }

// checkConfig refuses by name what the tree cannot express.
func checkConfig(c *diffusers.UNet2DConfig) error {
	for _, v := range []struct {
		key string
		n   int
	}{{"in_channels", c.InChannels}, {"out_channels", c.OutChannels}, {"layers_per_block", c.LayersPerBlock}} {
		if v.n < 1 {
			return unsupported(v.key, v.n, "must be positive")
		}
	}
	if len(c.BlockOutChannels) == 0 {
		return unsupported("block_out_channels", c.BlockOutChannels, "no levels")
	}
	for _, n := range c.BlockOutChannels {
		if n < 1 {
			return unsupported("block_out_channels", c.BlockOutChannels, "must be positive")
		}
	}
	levels := len(c.BlockOutChannels)
	if levels > 16 {
		return unsupported("block_out_channels", c.BlockOutChannels, "more than 16 levels")
	}
	if len(c.DownBlockTypes) != levels {
		return unsupported("down_block_types", c.DownBlockTypes, fmt.Sprintf("%d levels in block_out_channels", levels))
	}
	if len(c.UpBlockTypes) != levels {
		return unsupported("up_block_types", c.UpBlockTypes, fmt.Sprintf("%d levels in block_out_channels", levels))
	}
	for _, s := range c.DownBlockTypes {
		if _, ok := downKinds[s]; !ok {
			return unsupported("down_block_types", s, "not a block of this engine")
		}
	}
	for _, s := range c.UpBlockTypes {
		if _, ok := upKinds[s]; !ok {
			return unsupported("up_block_types", s, "not a block of this engine")
		}
	}
	if c.MidBlockType != "" && c.MidBlockType != "UNetMidBlock2D" {
		return unsupported("mid_block_type", c.MidBlockType, "only UNetMidBlock2D or null")
	}
	if _, ok := activations[strings.ToLower(c.ActFn)]; !ok {
		return unsupported("act_fn", c.ActFn, "only silu, swish, gelu, relu")
	}
	switch c.TimeEmbeddingType {
	case "positional":
		half := c.BlockOutChannels[0] / 2
		if float64(half) == c.FreqShift {
			return unsupported("freq_shift", c.FreqShift, "it equals half the width of the sinusoid")
		}
	case "fourier":
	case "learned":
		if c.NumTrainTimesteps < 1 {
			return unsupported("num_train_timesteps", c.NumTrainTimesteps, "a learned time embedding needs its number of rows")
		}
	default:
		return unsupported("time_embedding_type", c.TimeEmbeddingType, "only positional, fourier, learned")
	}
	if c.ResnetTimeScaleShift != "default" && c.ResnetTimeScaleShift != "scale_shift" {
		return unsupported("resnet_time_scale_shift", c.ResnetTimeScaleShift, "only default, scale_shift")
	}
	if c.DownsamplePadding != 0 && c.DownsamplePadding != 1 {
		return unsupported("downsample_padding", c.DownsamplePadding, "only 0 and 1 keep the levels' sizes")
	}
	for _, v := range []struct{ key, s string }{{"downsample_type", c.DownsampleType}, {"upsample_type", c.UpsampleType}} {
		if v.s != "conv" && v.s != "resnet" {
			return unsupported(v.key, v.s, "only conv, resnet")
		}
	}
	switch c.ClassEmbedType {
	case "", "timestep", "identity":
	default:
		return unsupported("class_embed_type", c.ClassEmbedType, "only null, timestep, identity")
	}
	if !(c.NormEps > 0) || math.IsInf(c.NormEps, 0) {
		return unsupported("norm_eps", c.NormEps, "must be positive")
	}
	if c.MidBlockScaleFactor == 0 || math.IsNaN(c.MidBlockScaleFactor) || math.IsInf(c.MidBlockScaleFactor, 0) {
		return unsupported("mid_block_scale_factor", c.MidBlockScaleFactor, "must be a finite number other than 0")
	}
	for _, v := range []struct {
		key string
		n   int
	}{
		{"attention_head_dim", c.AttentionHeadDim}, {"norm_num_groups", c.NormNumGroups}, {"attn_norm_num_groups", c.AttnNormNumGroups},
		{"time_embedding_dim", c.TimeEmbeddingDim}, {"num_class_embeds", c.NumClassEmbeds},
	} {
		if v.n < 0 {
			return unsupported(v.key, v.n, "must not be negative")
		}
	}
	if c.NormNumGroups == 0 {
		for i, s := range append(append([]string{}, c.DownBlockTypes...), c.UpBlockTypes...) {
			key := "down_block_types"
			if i >= levels {
				key = "up_block_types"
			}
			if !downKinds[s].skip && !upKinds[s].skip {
				return unsupported("norm_num_groups", "null", "block "+s+" of "+key+" needs a number of groups")
			}
		}
	}
	return nil
}

// builder grows the tree and notes every tensor; the first fault stays.
type builder struct {
	*tree
	level int // of the layers being added: their images are sample_size / 2^level large
	err   error
}

func (b *builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

func (b *builder) tensor(name string, shape ...int) {
	b.tensors = append(b.tensors, diffusers.Tensor{Name: name, Shape: shape})
}

func (b *builder) conv(name string, in, out, k, stride int, pad kernels.Pad) *conv {
	b.tensor(name+".weight", out, in, k, k)
	b.tensor(name+".bias", out)
	c := &conv{
		name: name, parts: []string{name},
		spec: kernels.ConvSpec{Cin: in, Cout: out, KH: k, KW: k, Stride: stride, Pad: pad,
			H: b.cfg.SampleSize.H >> b.level, W: b.cfg.SampleSize.W >> b.level},
	}
	b.convs = append(b.convs, c)
	return c
}

func (b *builder) conv3(name string, in, out int) *conv {
	return b.conv(name, in, out, 3, 1, kernels.Same(1))
}

// tokens is a linear layer over the pixels, of one or several tensors.
func (b *builder) tokens(name string, in, out int, parts ...string) *conv {
	for _, p := range parts {
		b.tensor(p+".weight", out, in)
		b.tensor(p+".bias", out)
	}
	c := &conv{
		name: name, parts: parts, token: true,
		spec: kernels.ConvSpec{Cin: in, Cout: out * len(parts), KH: 1, KW: 1, Stride: 1},
	}
	b.convs = append(b.convs, c)
	return c
}

func (b *builder) norm(name string, c, groups int) *norm {
	if groups < 1 || c%groups != 0 {
		b.fail(fmt.Errorf("unet2d: %s has %d channels, which %d groups (norm_num_groups) do not divide", name, c, groups))
	}
	b.tensor(name+".weight", c)
	b.tensor(name+".bias", c)
	n := &norm{name: name, c: c, groups: groups, eps: b.cfg.NormEps}
	b.norms = append(b.norms, n)
	return n
}

// linear is a layer of the time embedding: one row per image.
func (b *builder) linear(name string, in, out int, parts ...string) *conv {
	c := b.tokens(name, in, out, parts...)
	c.exact = true
	return c
}

type resnetOpts struct {
	groups1, groups2 int
	resample         resample
	shortcut         bool
	outScale         float64
}

func (b *builder) resnet(name string, in, out int, o resnetOpts) *resnet {
	r := &resnet{
		name: name, in: in, out: out, resample: o.resample, outScale: o.outScale,
		scaleShift: b.cfg.ResnetTimeScaleShift == "scale_shift",
	}
	r.norm1 = b.norm(name+".norm1", in, o.groups1)
	r.conv1 = b.conv3(name+".conv1", in, out)
	width := out
	if r.scaleShift {
		width = 2 * out
	}
	proj := name + ".time_emb_proj"
	b.tensor(proj+".weight", width, b.timeDim)
	b.tensor(proj+".bias", width)
	r.timeAt = b.timeProj.spec.Cout
	b.timeProj.parts = append(b.timeProj.parts, proj)
	b.timeProj.spec.Cout += width
	r.norm2 = b.norm(name+".norm2", out, o.groups2)
	r.conv2 = b.conv3(name+".conv2", out, out)
	if o.shortcut || in != out {
		r.shortcut = b.conv(name+".conv_shortcut", in, out, 1, 1, kernels.Pad{})
	}
	return r
}

// attention: groups 0 means no norm.
func (b *builder) attention(name string, c, groups int, outScale float64) *attention {
	dim := b.cfg.AttentionHeadDim
	if dim == 0 {
		dim = c
	}
	a := &attention{name: name, c: c, heads: c / dim, dim: dim, outScale: outScale}
	if a.heads < 1 {
		b.fail(unsupported("attention_head_dim", dim, fmt.Sprintf("%s is only %d wide", name, c)))
	}
	if groups > 0 {
		a.norm = b.norm(name+".group_norm", c, groups)
	}
	inner := a.heads * dim
	a.qkv = b.tokens(name+".to_qkv", c, inner, name+".to_q", name+".to_k", name+".to_v")
	a.out = b.tokens(name+".to_out", inner, c, name+".to_out.0")
	return a
}

// ncsnGroups is the number of groups of an NCSN++ block's norm.
func ncsnGroups(c int) int { return min(c/4, 32) }

const ncsnAttnGroups = 32

// imageChannels is fixed in NCSN++ blocks: their skip path is an RGB image.
const imageChannels = 3

func newTree(cfg diffusers.UNet2DConfig) (*tree, error) {
	if err := checkConfig(&cfg); err != nil {
		return nil, err
	}
	t := &tree{cfg: cfg, act: activations[strings.ToLower(cfg.ActFn)], levels: len(cfg.BlockOutChannels)}
	b := &builder{tree: t}
	widths := cfg.BlockOutChannels
	groups := cfg.NormNumGroups

	t.convIn = b.conv3("conv_in", cfg.InChannels, widths[0])
	t.convIn.exact = true
	t.timeDim = cfg.TimeEmbeddingDim
	if t.timeDim == 0 {
		t.timeDim = 4 * widths[0]
	}
	t.timeIn = widths[0]
	switch cfg.TimeEmbeddingType {
	case "fourier":
		t.timeIn = 2 * widths[0]
		t.timeTable = "time_proj.weight"
		b.tensor(t.timeTable, widths[0])
	case "learned":
		t.timeTable = "time_proj.weight"
		b.tensor(t.timeTable, cfg.NumTrainTimesteps, widths[0])
	}
	t.time[0] = b.linear("time_embedding.linear_1", t.timeIn, t.timeDim, "time_embedding.linear_1")
	t.time[1] = b.linear("time_embedding.linear_2", t.timeDim, t.timeDim, "time_embedding.linear_2")
	switch {
	case cfg.ClassEmbedType == "" && cfg.NumClassEmbeds > 0:
		t.classes = "class_embedding.weight"
		b.tensor(t.classes, cfg.NumClassEmbeds, t.timeDim)
	case cfg.ClassEmbedType == "timestep":
		t.class[0] = b.linear("class_embedding.linear_1", t.timeIn, t.timeDim, "class_embedding.linear_1")
		t.class[1] = b.linear("class_embedding.linear_2", t.timeDim, t.timeDim, "class_embedding.linear_2")
	}

	t.timeProj = b.linear("time_emb_proj", t.timeDim, 0)

	pushed := []int{widths[0]}
	skipLevel := 0 // the level that the NCSN++ image path has reached
	prev := widths[0]
	for i, kind := range cfg.DownBlockTypes {
		b.downBlock(i, downKinds[kind], prev, &pushed, &skipLevel)
		prev = widths[i]
	}
	if cfg.MidBlockType != "" {
		b.midBlock()
	}
	h := widths[t.levels-1]
	skipLevel = -1
	for i, kind := range cfg.UpBlockTypes {
		b.upBlock(i, upKinds[kind], &h, &pushed, &skipLevel)
	}
	if skipLevel >= 0 && cfg.OutChannels != imageChannels {
		b.fail(unsupported("out_channels", cfg.OutChannels, "the skip path of NCSN++ blocks has 3"))
	}
	outGroups := groups
	if outGroups == 0 {
		outGroups = ncsnGroups(widths[0])
	}
	t.normOut = b.norm("conv_norm_out", widths[0], outGroups)
	t.convOut = b.conv3("conv_out", widths[0], cfg.OutChannels)
	t.convOut.exact = true
	if b.err != nil {
		return nil, b.err
	}
	return t, nil
}

func (b *builder) downBlock(i int, kind blockKind, in int, pushed *[]int, skipLevel *int) {
	cfg := &b.cfg
	b.level = i
	out, last := cfg.BlockOutChannels[i], i == b.levels-1
	blk := &downBlock{name: fmt.Sprintf("down_blocks.%d", i)}
	groups, attnGroups, scale := cfg.NormNumGroups, cfg.NormNumGroups, 1.0
	if kind.skip {
		scale, attnGroups = math.Sqrt2, ncsnAttnGroups
	}
	for j := range cfg.LayersPerBlock {
		o := resnetOpts{groups1: groups, groups2: groups, outScale: scale}
		if kind.skip {
			o.groups1, o.groups2 = ncsnGroups(in), ncsnGroups(out)
		}
		blk.resnets = append(blk.resnets, b.resnet(fmt.Sprintf("%s.resnets.%d", blk.name, j), in, out, o))
		if kind.attn {
			blk.attns = append(blk.attns, b.attention(fmt.Sprintf("%s.attentions.%d", blk.name, j), out, attnGroups, scale))
		}
		*pushed = append(*pushed, out)
		in = out
	}
	if !last {
		switch {
		case kind.skip:
			b.level++
			g := ncsnGroups(out)
			blk.resnet = b.resnet(blk.name+".resnet_down", out, out,
				resnetOpts{groups1: g, groups2: g, resample: firDown, shortcut: true, outScale: scale})
			if *skipLevel != i {
				b.fail(unsupported("down_block_types", cfg.DownBlockTypes, "a Skip block follows a block that does not carry the image on"))
			}
			*skipLevel = i + 1
			if cfg.InChannels != imageChannels {
				b.fail(unsupported("in_channels", cfg.InChannels, "the skip path of NCSN++ blocks has 3"))
			}
			blk.skip = b.conv(blk.name+".skip_conv", imageChannels, out, 1, 1, kernels.Pad{})
			blk.skip.exact = true
		case kind.resnet || kind.attn && cfg.DownsampleType == "resnet":
			b.level++
			blk.resnet = b.resnet(blk.name+".downsamplers.0", out, out,
				resnetOpts{groups1: groups, groups2: groups, resample: down, outScale: 1})
		default:
			pad := kernels.Same(1)
			if cfg.DownsamplePadding == 0 {
				pad = kernels.Pad{Bottom: 1, Right: 1}
			}
			blk.conv = b.conv(blk.name+".downsamplers.0.conv", out, out, 3, 2, pad)
		}
		*pushed = append(*pushed, out)
	}
	b.downs = append(b.downs, blk)
}

func (b *builder) midBlock() {
	cfg := &b.cfg
	b.level = b.levels - 1
	c := cfg.BlockOutChannels[b.levels-1]
	groups := cfg.NormNumGroups
	if groups == 0 {
		groups = ncsnGroups(c)
	}
	attnGroups := cfg.AttnNormNumGroups
	if attnGroups == 0 && cfg.ResnetTimeScaleShift == "default" {
		attnGroups = groups
	}
	o := resnetOpts{groups1: groups, groups2: groups, outScale: cfg.MidBlockScaleFactor}
	b.mid = append(b.mid, b.resnet("mid_block.resnets.0", c, c, o))
	if cfg.AddAttention {
		b.midAttn = b.attention("mid_block.attentions.0", c, attnGroups, cfg.MidBlockScaleFactor)
	}
	b.mid = append(b.mid, b.resnet("mid_block.resnets.1", c, c, o))
}

func (b *builder) upBlock(i int, kind blockKind, h *int, pushed *[]int, skipLevel *int) {
	cfg := &b.cfg
	level := b.levels - 1 - i
	b.level = level
	out, last := cfg.BlockOutChannels[level], level == 0
	blk := &upBlock{name: fmt.Sprintf("up_blocks.%d", i), ncsn: kind.skip}
	groups, scale := cfg.NormNumGroups, 1.0
	if kind.skip {
		scale = math.Sqrt2
	}
	for j := range cfg.LayersPerBlock + 1 {
		skip := (*pushed)[len(*pushed)-1]
		*pushed = (*pushed)[:len(*pushed)-1]
		o := resnetOpts{groups1: groups, groups2: groups, outScale: scale}
		if kind.skip {
			o.groups1, o.groups2 = ncsnGroups(*h+skip), ncsnGroups(out)
			if kind.attn {
				// The reference divides the skip only.
				o.groups1 = min(*h+skip/4, 32)
			}
		}
		blk.resnets = append(blk.resnets, b.resnet(fmt.Sprintf("%s.resnets.%d", blk.name, j), *h+skip, out, o))
		*h = out
		if kind.attn && !kind.skip {
			blk.attns = append(blk.attns, b.attention(fmt.Sprintf("%s.attentions.%d", blk.name, j), out, groups, scale))
		}
	}
	if kind.attn && kind.skip {
		blk.attns = append(blk.attns, b.attention(blk.name+".attentions.0", out, ncsnAttnGroups, scale))
	}
	if kind.skip {
		if *skipLevel >= 0 && *skipLevel != level+1 {
			b.fail(unsupported("up_block_types", cfg.UpBlockTypes, "a Skip block follows a block that does not carry the image on"))
		}
		if *skipLevel >= 0 || !last {
			*skipLevel = level
		}
	} else if *skipLevel >= 0 {
		b.fail(unsupported("up_block_types", cfg.UpBlockTypes, "a Skip block is followed by a block that does not carry the image on"))
	}
	if !last {
		b.level-- // what follows works on the enlarged images
		switch {
		case kind.skip:
			g := ncsnGroups(out)
			blk.resnet = b.resnet(blk.name+".resnet_up", out, out,
				resnetOpts{groups1: g, groups2: g, resample: firUp, shortcut: true, outScale: scale})
			blk.skip = b.conv3(blk.name+".skip_conv", out, imageChannels)
			blk.skip.exact = true
			blk.skipNorm = b.norm(blk.name+".skip_norm", out, g)
		case kind.resnet || kind.attn && cfg.UpsampleType == "resnet":
			blk.resnet = b.resnet(blk.name+".upsamplers.0", out, out,
				resnetOpts{groups1: groups, groups2: groups, resample: up, outScale: 1})
		default:
			blk.conv = b.conv3(blk.name+".upsamplers.0.conv", out, out)
		}
	}
	b.ups = append(b.ups, blk)
}
