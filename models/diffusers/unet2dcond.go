package diffusers

import "fmt"

// UNet2DConditionConfig is the configuration of UNet2DConditionModel, the
// network of Stable Diffusion 1, 2 and XL. Zero stands for JSON null where a
// comment says so. Settings of the class that no such model uses are refused
// by name when they differ from their default.
type UNet2DConditionConfig struct {
	SampleSize                       Size     `key:"sample_size,null"` // zero: null, any size
	InChannels                       int      `key:"in_channels"`
	OutChannels                      int      `key:"out_channels"`
	CenterInputSample                bool     `key:"center_input_sample"`
	FlipSinToCos                     bool     `key:"flip_sin_to_cos"`
	FreqShift                        float64  `key:"freq_shift"`
	DownBlockTypes                   []string `key:"down_block_types"`
	MidBlockType                     string   `key:"mid_block_type,null"` // "": null, no middle block
	UpBlockTypes                     []string `key:"up_block_types"`
	OnlyCrossAttention               bool     `key:"only_cross_attention"`
	BlockOutChannels                 []int    `key:"block_out_channels"`
	LayersPerBlock                   PerLevel `key:"layers_per_block"`
	DownsamplePadding                int      `key:"downsample_padding"`
	MidBlockScaleFactor              float64  `key:"mid_block_scale_factor"`
	Dropout                          float64  `key:"dropout"`
	ActFn                            string   `key:"act_fn"`
	NormNumGroups                    int      `key:"norm_num_groups"`
	NormEps                          float64  `key:"norm_eps"`
	CrossAttentionDim                PerLevel `key:"cross_attention_dim"`
	TransformerLayersPerBlock        PerLevel `key:"transformer_layers_per_block"`
	ReverseTransformerLayersPerBlock PerLevel `key:"reverse_transformer_layers_per_block,null"`
	EncoderHidDim                    int      `key:"encoder_hid_dim,null"`
	EncoderHidDimType                string   `key:"encoder_hid_dim_type,null"`
	AttentionHeadDim                 PerLevel `key:"attention_head_dim"` // the number of heads, in spite of its name
	NumAttentionHeads                PerLevel `key:"num_attention_heads,null"`
	DualCrossAttention               bool     `key:"dual_cross_attention"`
	UseLinearProjection              bool     `key:"use_linear_projection"`
	ClassEmbedType                   string   `key:"class_embed_type,null"`        // "": null; "timestep", "identity", "projection", "simple_projection"
	AdditionEmbedType                string   `key:"addition_embed_type,null"`     // "": null; "text_time"
	AdditionTimeEmbedDim             int      `key:"addition_time_embed_dim,null"` // 0: null
	NumClassEmbeds                   int      `key:"num_class_embeds,null"`        // 0: null
	UpcastAttention                  bool     `key:"upcast_attention,null"`
	ResnetTimeScaleShift             string   `key:"resnet_time_scale_shift"` // "default" or "scale_shift"
	ResnetSkipTimeAct                bool     `key:"resnet_skip_time_act"`
	ResnetOutScaleFactor             float64  `key:"resnet_out_scale_factor"`
	TimeEmbeddingType                string   `key:"time_embedding_type"`
	TimeEmbeddingDim                 int      `key:"time_embedding_dim,null"` // 0: null, 4 BlockOutChannels[0]
	TimeEmbeddingActFn               string   `key:"time_embedding_act_fn,null"`
	TimestepPostAct                  string   `key:"timestep_post_act,null"`
	TimeCondProjDim                  int      `key:"time_cond_proj_dim,null"` // 0: null; width of timestep_cond (LCM)
	ConvInKernel                     int      `key:"conv_in_kernel"`
	ConvOutKernel                    int      `key:"conv_out_kernel"`
	ProjectionClassEmbeddingsDim     int      `key:"projection_class_embeddings_input_dim,null"` // 0: null
	AttentionType                    string   `key:"attention_type"`
	ClassEmbeddingsConcat            bool     `key:"class_embeddings_concat"`
	MidBlockOnlyCrossAttention       bool     `key:"mid_block_only_cross_attention,null"`
	CrossAttentionNorm               string   `key:"cross_attention_norm,null"`
	AdditionEmbedTypeNumHeads        int      `key:"addition_embed_type_num_heads"`

	Info `key:"-"`
}

func newUNet2DCondition() *UNet2DConditionConfig {
	return &UNet2DConditionConfig{
		InChannels:                4,
		OutChannels:               4,
		FlipSinToCos:              true,
		DownBlockTypes:            []string{"CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"},
		MidBlockType:              "UNetMidBlock2DCrossAttn",
		UpBlockTypes:              []string{"UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"},
		BlockOutChannels:          []int{320, 640, 1280, 1280},
		LayersPerBlock:            PerLevel{2},
		DownsamplePadding:         1,
		MidBlockScaleFactor:       1,
		ActFn:                     "silu",
		NormNumGroups:             32,
		NormEps:                   1e-5,
		CrossAttentionDim:         PerLevel{1280},
		TransformerLayersPerBlock: PerLevel{1},
		AttentionHeadDim:          PerLevel{8},
		ResnetTimeScaleShift:      "default",
		ResnetOutScaleFactor:      1,
		TimeEmbeddingType:         "positional",
		ConvInKernel:              3,
		ConvOutKernel:             3,
		AttentionType:             "default",
		AdditionEmbedTypeNumHeads: 64,
	}
}

// ClassName implements Config.
func (c *UNet2DConditionConfig) ClassName() string { return "UNet2DConditionModel" }

func (c *UNet2DConditionConfig) finish() {
	renameBlocks(&c.Info, c.DownBlockTypes)
	renameBlocks(&c.Info, c.UpBlockTypes)
	for _, p := range []*PerLevel{&c.LayersPerBlock, &c.CrossAttentionDim, &c.TransformerLayersPerBlock, &c.AttentionHeadDim} {
		p.expand(min(len(c.BlockOutChannels), maxLevels))
	}
}

// Validate implements Config.
func (c *UNet2DConditionConfig) Validate() error {
	levels := len(c.BlockOutChannels)
	first := 1
	if levels > 0 {
		first = c.BlockOutChannels[0]
	}
	projected := c.ClassEmbedType == "projection" || c.ClassEmbedType == "simple_projection" || c.AdditionEmbedType == "text_time"
	err := check(
		between("in_channels", c.InChannels, 1, maxWidth),
		between("out_channels", c.OutChannels, 1, maxWidth),
		widths("block_out_channels", c.BlockOutChannels),
		sameLength("down_block_types", c.DownBlockTypes, levels),
		sameLength("up_block_types", c.UpBlockTypes, levels),
		sameLength("layers_per_block", c.LayersPerBlock, levels),
		sameLength("cross_attention_dim", c.CrossAttentionDim, levels),
		sameLength("transformer_layers_per_block", c.TransformerLayersPerBlock, levels),
		sameLength("attention_head_dim", c.AttentionHeadDim, levels),
		eachBetween("layers_per_block", c.LayersPerBlock, 1, maxDepth),
		eachBetween("cross_attention_dim", c.CrossAttentionDim, 1, maxWidth),
		eachBetween("transformer_layers_per_block", c.TransformerLayersPerBlock, 1, maxDepth),
		eachBetween("attention_head_dim", c.AttentionHeadDim, 1, maxWidth),
		eachOf("down_block_types", c.DownBlockTypes, "DownBlock2D", "CrossAttnDownBlock2D"),
		eachOf("up_block_types", c.UpBlockTypes, "UpBlock2D", "CrossAttnUpBlock2D"),
		oneOf("mid_block_type", c.MidBlockType, "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", ""),
		between("downsample_padding", c.DownsamplePadding, 0, 1),
		positive("mid_block_scale_factor", c.MidBlockScaleFactor),
		oneOf("act_fn", c.ActFn, activations...),
		between("norm_num_groups", c.NormNumGroups, 1, maxWidth),
		positive("norm_eps", c.NormEps),
		nullOr("time_embedding_dim", c.TimeEmbeddingDim, 1, maxWidth),
		rule{c.FreqShift < float64(first/2), "freq_shift", c.FreqShift, "below half of block_out_channels[0]"},
		nullOr("time_cond_proj_dim", c.TimeCondProjDim, 1, maxWidth),
		nullOr("num_class_embeds", c.NumClassEmbeds, 1, 1<<20),
		oneOf("resnet_time_scale_shift", c.ResnetTimeScaleShift, "default", "scale_shift"),
		oneOf("class_embed_type", c.ClassEmbedType, "", "timestep", "identity", "projection", "simple_projection"),
		oneOf("addition_embed_type", c.AdditionEmbedType, "", "text_time"),
		rule{c.AdditionEmbedType == "" || c.AdditionTimeEmbedDim > 0, "addition_time_embed_dim", c.AdditionTimeEmbedDim, "positive with addition_embed_type text_time"},
		nullOr("addition_time_embed_dim", c.AdditionTimeEmbedDim, 1, maxWidth),
		nullOr("projection_class_embeddings_input_dim", c.ProjectionClassEmbeddingsDim, 1, maxWidth),
		rule{!projected || c.ProjectionClassEmbeddingsDim > 0, "projection_class_embeddings_input_dim", "null", "a number with these embedding types"},
		rule{c.ConvInKernel%2 == 1 && c.ConvInKernel > 0 && c.ConvInKernel < 64, "conv_in_kernel", c.ConvInKernel, "odd and below 64"},
		rule{c.ConvOutKernel%2 == 1 && c.ConvOutKernel > 0 && c.ConvOutKernel < 64, "conv_out_kernel", c.ConvOutKernel, "odd and below 64"},
		rule{len(c.NumAttentionHeads) == 0, "num_attention_heads", c.NumAttentionHeads, "null: the number of heads stands in attention_head_dim"},
		unset("only_cross_attention", !c.OnlyCrossAttention, c.OnlyCrossAttention),
		unset("reverse_transformer_layers_per_block", len(c.ReverseTransformerLayersPerBlock) == 0, c.ReverseTransformerLayersPerBlock),
		unset("encoder_hid_dim", c.EncoderHidDim == 0, c.EncoderHidDim),
		unset("encoder_hid_dim_type", c.EncoderHidDimType == "", c.EncoderHidDimType),
		unset("dual_cross_attention", !c.DualCrossAttention, c.DualCrossAttention),
		unset("resnet_skip_time_act", !c.ResnetSkipTimeAct, c.ResnetSkipTimeAct),
		unset("resnet_out_scale_factor", c.ResnetOutScaleFactor == 1, c.ResnetOutScaleFactor),
		unset("time_embedding_type", c.TimeEmbeddingType == "positional", c.TimeEmbeddingType),
		unset("time_embedding_act_fn", c.TimeEmbeddingActFn == "", c.TimeEmbeddingActFn),
		unset("timestep_post_act", c.TimestepPostAct == "", c.TimestepPostAct),
		unset("attention_type", c.AttentionType == "default", c.AttentionType),
		unset("class_embeddings_concat", !c.ClassEmbeddingsConcat, c.ClassEmbeddingsConcat),
		unset("mid_block_only_cross_attention", !c.MidBlockOnlyCrossAttention, c.MidBlockOnlyCrossAttention),
		unset("cross_attention_norm", c.CrossAttentionNorm == "", c.CrossAttentionNorm),
	)
	if err != nil {
		return err
	}
	return c.layout().err
}

// Tensors implements Config.
func (c *UNet2DConditionConfig) Tensors() []Tensor { return c.layout().tensors }

func (c *UNet2DConditionConfig) layout() *layout {
	l := &layout{}
	width := c.BlockOutChannels
	last := len(width) - 1
	temb := c.TimeEmbeddingDim
	if temb == 0 {
		temb = 4 * width[0]
	}
	l.conv("conv_in", c.InChannels, width[0], c.ConvInKernel)
	l.embedding("time_embedding", width[0], temb, c.TimeCondProjDim)
	switch {
	case c.ClassEmbedType == "timestep":
		l.embedding("class_embedding", width[0], temb, 0)
	case c.ClassEmbedType == "projection":
		l.embedding("class_embedding", c.ProjectionClassEmbeddingsDim, temb, 0)
	case c.ClassEmbedType == "simple_projection":
		l.linear("class_embedding", c.ProjectionClassEmbeddingsDim, temb, true)
	case c.ClassEmbedType == "" && c.NumClassEmbeds > 0:
		l.add("class_embedding.weight", c.NumClassEmbeds, temb)
	}
	if c.AdditionEmbedType == "text_time" {
		l.embedding("add_embedding", c.ProjectionClassEmbeddingsDim, temb, 0)
	}

	block := func(name string, in, out, level, layer int, cross bool) {
		if l.full() {
			return
		}
		if cross {
			c.transformer(l, fmt.Sprintf("%s.attentions.%d", name, layer), out, level)
		}
		l.resnet(fmt.Sprintf("%s.resnets.%d", name, layer), c.resnet(in, out, temb))
	}
	in := width[0]
	for i, kind := range c.DownBlockTypes {
		name := fmt.Sprintf("down_blocks.%d", i)
		for j := range c.LayersPerBlock[i] {
			block(name, in, width[i], i, j, kind == "CrossAttnDownBlock2D")
			in = width[i]
		}
		if i < last {
			l.conv(name+".downsamplers.0.conv", width[i], width[i], 3)
		}
	}

	r := c.resnet(width[last], width[last], temb)
	switch c.MidBlockType {
	case "UNetMidBlock2DCrossAttn":
		c.transformer(l, "mid_block.attentions.0", width[last], last)
		l.resnet("mid_block.resnets.0", r)
		l.resnet("mid_block.resnets.1", r)
	case "UNetMidBlock2D":
		l.resnet("mid_block.resnets.0", r)
	}

	before := width[last]
	for i, kind := range c.UpBlockTypes {
		name, level := fmt.Sprintf("up_blocks.%d", i), last-i
		layers := c.LayersPerBlock[level]
		for j := range layers + 1 {
			h, skip := width[level], width[level]
			if j == 0 {
				h = before
			}
			if j == layers {
				skip = width[max(level-1, 0)]
			}
			block(name, h+skip, width[level], level, j, kind == "CrossAttnUpBlock2D")
		}
		if i < last {
			l.conv(name+".upsamplers.0.conv", width[level], width[level], 3)
		}
		before = width[level]
	}
	l.groupNorm("conv_norm_out", width[0], c.NormNumGroups)
	l.conv("conv_out", width[0], c.OutChannels, c.ConvOutKernel)
	return l
}

func (c *UNet2DConditionConfig) resnet(in, out, temb int) resnet {
	return resnet{in: in, out: out, temb: temb, groups: c.NormNumGroups, scaleShift: c.ResnetTimeScaleShift == "scale_shift"}
}

// transformer is Transformer2DModel: a norm, a projection, blocks of
// self-attention, cross-attention and feed-forward (GEGLU), a projection.
func (c *UNet2DConditionConfig) transformer(l *layout, name string, width, level int) {
	if heads := c.AttentionHeadDim[level]; width%heads != 0 {
		l.fail("attention_head_dim", "%d heads do not divide the %d channels of %s", heads, width, name)
	}
	proj := func(part string) {
		if c.UseLinearProjection {
			l.linear(name+part, width, width, true)
		} else {
			l.conv(name+part, width, width, 1)
		}
	}
	l.groupNorm(name+".norm", width, c.NormNumGroups)
	proj(".proj_in")
	for i := range c.TransformerLayersPerBlock[level] {
		if l.full() {
			return
		}
		b := fmt.Sprintf("%s.transformer_blocks.%d", name, i)
		for j, context := range []int{width, c.CrossAttentionDim[level]} {
			l.norm(fmt.Sprintf("%s.norm%d", b, j+1), width)
			attn := fmt.Sprintf("%s.attn%d", b, j+1)
			l.linear(attn+".to_q", width, width, false)
			l.linear(attn+".to_k", context, width, false)
			l.linear(attn+".to_v", context, width, false)
			l.linear(attn+".to_out.0", width, width, true)
		}
		l.norm(b+".norm3", width)
		l.linear(b+".ff.net.0.proj", width, 8*width, true)
		l.linear(b+".ff.net.2", 4*width, width, true)
	}
	proj(".proj_out")
}
