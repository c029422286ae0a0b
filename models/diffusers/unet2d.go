package diffusers

import "fmt"

// UNet2DConfig is the configuration of UNet2DModel. Absent keys have the
// defaults of diffusers 0.42. Zero stands for JSON null where a comment says
// so; a 0 written in the file is refused there.
type UNet2DConfig struct {
	SampleSize           Size     `key:"sample_size,null"` // zero: null, any size
	InChannels           int      `key:"in_channels"`
	OutChannels          int      `key:"out_channels"`
	CenterInputSample    bool     `key:"center_input_sample"`
	TimeEmbeddingType    string   `key:"time_embedding_type"`     // "positional", "fourier" or "learned"
	TimeEmbeddingDim     int      `key:"time_embedding_dim,null"` // 0: null, 4 BlockOutChannels[0]
	FreqShift            float64  `key:"freq_shift"`
	FlipSinToCos         bool     `key:"flip_sin_to_cos"`
	DownBlockTypes       []string `key:"down_block_types"`
	MidBlockType         string   `key:"mid_block_type,null"` // "": null, no middle block
	UpBlockTypes         []string `key:"up_block_types"`
	BlockOutChannels     []int    `key:"block_out_channels"`
	LayersPerBlock       int      `key:"layers_per_block"`
	MidBlockScaleFactor  float64  `key:"mid_block_scale_factor"`
	DownsamplePadding    int      `key:"downsample_padding"`
	DownsampleType       string   `key:"downsample_type"` // "conv" or "resnet", Attn blocks only
	UpsampleType         string   `key:"upsample_type"`   // "conv" or "resnet", Attn blocks only
	Dropout              float64  `key:"dropout"`
	ActFn                string   `key:"act_fn"`
	AttentionHeadDim     int      `key:"attention_head_dim,null"` // 0: null, one head as wide as the block
	NormNumGroups        int      `key:"norm_num_groups,null"`    // 0: null, only for Skip blocks (NCSN++)
	AttnNormNumGroups    int      `key:"attn_norm_num_groups,null"`
	NormEps              float64  `key:"norm_eps"`
	ResnetTimeScaleShift string   `key:"resnet_time_scale_shift"` // "default" or "scale_shift"
	AddAttention         bool     `key:"add_attention"`
	ClassEmbedType       string   `key:"class_embed_type,null"`    // "": null; "timestep" or "identity"
	NumClassEmbeds       int      `key:"num_class_embeds,null"`    // 0: null
	NumTrainTimesteps    int      `key:"num_train_timesteps,null"` // 0: null; rows of the learned time embedding

	Info `key:"-"`
}

func newUNet2D() *UNet2DConfig {
	return &UNet2DConfig{
		InChannels:           3,
		OutChannels:          3,
		TimeEmbeddingType:    "positional",
		FlipSinToCos:         true,
		DownBlockTypes:       []string{"DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"},
		MidBlockType:         "UNetMidBlock2D",
		UpBlockTypes:         []string{"AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"},
		BlockOutChannels:     []int{224, 448, 672, 896},
		LayersPerBlock:       2,
		MidBlockScaleFactor:  1,
		DownsamplePadding:    1,
		DownsampleType:       "conv",
		UpsampleType:         "conv",
		ActFn:                "silu",
		AttentionHeadDim:     8,
		NormNumGroups:        32,
		NormEps:              1e-5,
		ResnetTimeScaleShift: "default",
		AddAttention:         true,
	}
}

// legacyUNet2D maps keys of the first releases to today's.
var legacyUNet2D = map[string]string{
	"block_channels":       "block_out_channels",
	"resnet_eps":           "norm_eps",
	"downscale_freq_shift": "freq_shift",
	"image_size":           "sample_size",
	"num_head_channels":    "attention_head_dim",
	"resnet_num_groups":    "norm_num_groups",
}

// ClassName implements Config.
func (c *UNet2DConfig) ClassName() string { return "UNet2DModel" }

func (c *UNet2DConfig) finish() {
	renameBlocks(&c.Info, c.DownBlockTypes)
	renameBlocks(&c.Info, c.UpBlockTypes)
	for _, key := range c.Defaulted {
		if key == "attention_head_dim" && c.Class == "UNet2DModel" {
			c.Warnings = append(c.Warnings, "attention_head_dim is absent: read as 8, today's default; some copies of old repositories lost an explicit null, which means one head")
		}
	}
}

// Validate implements Config.
func (c *UNet2DConfig) Validate() error {
	levels := len(c.BlockOutChannels)
	first := 1
	if levels > 0 {
		first = c.BlockOutChannels[0]
	}
	err := check(
		between("in_channels", c.InChannels, 1, maxWidth),
		between("out_channels", c.OutChannels, 1, maxWidth),
		widths("block_out_channels", c.BlockOutChannels),
		sameLength("down_block_types", c.DownBlockTypes, levels),
		sameLength("up_block_types", c.UpBlockTypes, levels),
		eachOf("down_block_types", c.DownBlockTypes, "DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D"),
		eachOf("up_block_types", c.UpBlockTypes, "UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D"),
		oneOf("mid_block_type", c.MidBlockType, "UNetMidBlock2D", ""),
		between("layers_per_block", c.LayersPerBlock, 1, maxDepth),
		oneOf("time_embedding_type", c.TimeEmbeddingType, "positional", "fourier", "learned"),
		nullOr("time_embedding_dim", c.TimeEmbeddingDim, 1, maxWidth),
		rule{c.TimeEmbeddingType != "positional" || c.FreqShift < float64(first/2), "freq_shift", c.FreqShift, "below half of block_out_channels[0]"},
		rule{c.TimeEmbeddingType != "learned" || c.NumTrainTimesteps > 0, "num_train_timesteps", "null", "a number when the time embedding is learned"},
		nullOr("num_train_timesteps", c.NumTrainTimesteps, 1, 1<<20),
		between("downsample_padding", c.DownsamplePadding, 0, 1),
		oneOf("downsample_type", c.DownsampleType, "conv", "resnet"),
		oneOf("upsample_type", c.UpsampleType, "conv", "resnet"),
		positive("mid_block_scale_factor", c.MidBlockScaleFactor),
		positive("norm_eps", c.NormEps),
		oneOf("act_fn", c.ActFn, activations...),
		nullOr("attention_head_dim", c.AttentionHeadDim, 1, maxWidth),
		nullOr("norm_num_groups", c.NormNumGroups, 1, maxWidth),
		nullOr("attn_norm_num_groups", c.AttnNormNumGroups, 1, maxWidth),
		oneOf("resnet_time_scale_shift", c.ResnetTimeScaleShift, "default", "scale_shift"),
		oneOf("class_embed_type", c.ClassEmbedType, "", "timestep", "identity"),
		nullOr("num_class_embeds", c.NumClassEmbeds, 1, 1<<20),
	)
	if err != nil {
		return err
	}
	return c.layout().err
}

// Tensors implements Config.
func (c *UNet2DConfig) Tensors() []Tensor { return c.layout().tensors }

func (c *UNet2DConfig) layout() *layout {
	l := &layout{}
	width := c.BlockOutChannels
	last := len(width) - 1
	temb := c.TimeEmbeddingDim
	if temb == 0 {
		temb = 4 * width[0]
	}
	scaleShift := c.ResnetTimeScaleShift == "scale_shift"

	l.conv("conv_in", c.InChannels, width[0], 3)
	sinusoid := width[0]
	switch c.TimeEmbeddingType {
	case "fourier":
		l.add("time_proj.weight", width[0])
		sinusoid *= 2
	case "learned":
		l.add("time_proj.weight", c.NumTrainTimesteps, width[0])
	}
	l.embedding("time_embedding", sinusoid, temb, 0)
	switch {
	case c.ClassEmbedType == "timestep":
		l.embedding("class_embedding", sinusoid, temb, 0)
	case c.ClassEmbedType == "" && c.NumClassEmbeds > 0:
		l.add("class_embedding.weight", c.NumClassEmbeds, temb)
	}

	in := width[0]
	for i, kind := range c.DownBlockTypes {
		c.block(l, fmt.Sprintf("down_blocks.%d", i), block{kind: kind, width: width[i], temb: temb, layers: c.LayersPerBlock, resample: i < last,
			in: func(j int) (int, int) {
				if j == 0 {
					return in, 0
				}
				return width[i], 0
			}})
		in = width[i]
	}

	if c.MidBlockType != "" {
		w, groups := width[last], c.NormNumGroups
		if groups == 0 {
			groups = min(w/4, 32)
		}
		attnGroups := c.AttnNormNumGroups
		if attnGroups == 0 && !scaleShift {
			attnGroups = groups
		}
		l.midBlock("mid_block", resnet{in: w, out: w, temb: temb, groups: groups, scaleShift: scaleShift}, c.AddAttention, attnGroups, c.AttentionHeadDim)
	}

	before := width[last]
	for i, kind := range c.UpBlockTypes {
		w, next := width[last-i], width[max(last-i-1, 0)]
		c.block(l, fmt.Sprintf("up_blocks.%d", i), block{kind: kind, up: true, width: w, temb: temb, layers: c.LayersPerBlock + 1, resample: i < last,
			in: func(j int) (int, int) { // what comes, and the skip that joins it
				h, skip := w, w
				if j == 0 {
					h = before
				}
				if j == c.LayersPerBlock {
					skip = next
				}
				return h, skip
			}})
		before = w
	}

	groups := c.NormNumGroups
	if groups == 0 {
		groups = min(width[0]/4, 32)
	}
	l.groupNorm("conv_norm_out", width[0], groups)
	l.conv("conv_out", width[0], c.OutChannels, 3)
	return l
}

// A block is one entry of down_block_types or up_block_types.
type block struct {
	kind        string
	up          bool
	width, temb int
	layers      int
	resample    bool
	in          func(layer int) (h, skip int)
}

func (c *UNet2DConfig) block(l *layout, name string, b block) {
	scaleShift := c.ResnetTimeScaleShift == "scale_shift"
	attn, ncsn, resnets := false, false, false
	switch b.kind {
	case "AttnDownBlock2D", "AttnUpBlock2D":
		attn = true
		resnets = b.up && c.UpsampleType == "resnet" || !b.up && c.DownsampleType == "resnet"
	case "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D":
		resnets = true
	case "SkipDownBlock2D", "SkipUpBlock2D":
		ncsn = true
	case "AttnSkipDownBlock2D", "AttnSkipUpBlock2D":
		attn, ncsn = true, true
	}
	own := c.NormNumGroups
	if ncsn {
		own = min(b.width/4, 32)
	}
	for j := range b.layers {
		if l.full() {
			return
		}
		if attn && (j == 0 || !(ncsn && b.up)) { // AttnSkipUp has one attention
			groups := own
			if ncsn {
				groups = 32
			}
			l.attention(fmt.Sprintf("%s.attentions.%d", name, j), b.width, groups, c.AttentionHeadDim)
		}
		h, skip := b.in(j)
		groups := own
		if ncsn {
			groups = min((h+skip)/4, 32)
			if attn && b.up { // sic, in the reference: only the skip is divided
				groups = min(h+skip/4, 32)
			}
		}
		l.resnet(fmt.Sprintf("%s.resnets.%d", name, j), resnet{in: h + skip, out: b.width, temb: b.temb, groups: groups, groupsOut: own, scaleShift: scaleShift})
	}
	if !b.resample {
		return
	}
	same := resnet{in: b.width, out: b.width, temb: b.temb, groups: own, scaleShift: scaleShift}
	sampler, way := ".downsamplers.0", ".resnet_down"
	if b.up {
		sampler, way = ".upsamplers.0", ".resnet_up"
	}
	switch {
	case resnets:
		l.resnet(name+sampler, same)
	case !ncsn:
		l.conv(name+sampler+".conv", b.width, b.width, 3)
	default: // the NCSN++ blocks carry the picture itself beside the features
		same.shortcut = true
		l.resnet(name+way, same)
		if c.InChannels != 3 || c.OutChannels != 3 {
			l.fail("in_channels", "%s needs pictures of 3 channels", b.kind)
		}
		if b.up {
			l.conv(name+".skip_conv", b.width, 3, 3)
			l.groupNorm(name+".skip_norm", b.width, own)
		} else {
			l.conv(name+".skip_conv", 3, b.width, 1)
		}
	}
}
