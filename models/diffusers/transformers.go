package diffusers

import "fmt"

// SD3Config is the configuration of SD3Transformer2DModel, the network of
// Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206).
type SD3Config struct {
	SampleSize           int    `key:"sample_size"`
	PatchSize            int    `key:"patch_size"`
	InChannels           int    `key:"in_channels"`
	NumLayers            int    `key:"num_layers"`
	AttentionHeadDim     int    `key:"attention_head_dim"`
	NumAttentionHeads    int    `key:"num_attention_heads"`
	JointAttentionDim    int    `key:"joint_attention_dim"`
	CaptionProjectionDim int    `key:"caption_projection_dim"`
	PooledProjectionDim  int    `key:"pooled_projection_dim"`
	OutChannels          int    `key:"out_channels,null"` // 0: null, InChannels
	PosEmbedMaxSize      int    `key:"pos_embed_max_size"`
	DualAttentionLayers  []int  `key:"dual_attention_layers"`
	QKNorm               string `key:"qk_norm,null"` // "": null; "rms_norm"

	Info `key:"-"`
}

func newSD3() *SD3Config {
	return &SD3Config{
		SampleSize: 128, PatchSize: 2, InChannels: 16, NumLayers: 18, AttentionHeadDim: 64, NumAttentionHeads: 18,
		JointAttentionDim: 4096, CaptionProjectionDim: 1152, PooledProjectionDim: 2048, OutChannels: 16, PosEmbedMaxSize: 96,
	}
}

// ClassName implements Config.
func (c *SD3Config) ClassName() string { return "SD3Transformer2DModel" }

// Width is the width of a token.
func (c *SD3Config) Width() int { return c.NumAttentionHeads * c.AttentionHeadDim }

// Out is the number of output channels.
func (c *SD3Config) Out() int { return orIn(c.OutChannels, c.InChannels) }

func orIn(out, in int) int {
	if out == 0 {
		return in
	}
	return out
}

// heads are the rules of a transformer's width.
func heads(n, dim int) []rule {
	return []rule{
		between("num_attention_heads", n, 1, 1<<10),
		between("attention_head_dim", dim, 1, 1<<10),
		{n*dim <= maxWidth && n*dim%4 == 0, "attention_head_dim", dim, "such that heads times width is a multiple of 4 and not above " + fmt.Sprint(maxWidth)},
	}
}

// Validate implements Config.
func (c *SD3Config) Validate() error {
	return check(append(heads(c.NumAttentionHeads, c.AttentionHeadDim),
		between("sample_size", c.SampleSize, c.PatchSize, 1<<14),
		between("patch_size", c.PatchSize, 1, 64),
		between("in_channels", c.InChannels, 1, maxWidth),
		nullOr("out_channels", c.OutChannels, 1, maxWidth),
		between("num_layers", c.NumLayers, 1, maxDepth),
		between("joint_attention_dim", c.JointAttentionDim, 1, maxWidth),
		between("pooled_projection_dim", c.PooledProjectionDim, 1, maxWidth),
		rule{c.CaptionProjectionDim == c.Width(), "caption_projection_dim", c.CaptionProjectionDim, fmt.Sprintf("the width of a token, %d", c.Width())},
		between("pos_embed_max_size", c.PosEmbedMaxSize, 1, 1<<12),
		eachBetween("dual_attention_layers", c.DualAttentionLayers, 0, c.NumLayers-1),
		oneOf("qk_norm", c.QKNorm, "", "rms_norm"),
	)...)
}

// attn lists q, k, v and the output of an attention layer.
func (l *layout) attn(name string, in, context, inner int, bias bool) {
	l.linear(name+".to_q", in, inner, bias)
	l.linear(name+".to_k", context, inner, bias)
	l.linear(name+".to_v", context, inner, bias)
	l.linear(name+".to_out.0", inner, in, true)
}

// joint is an attention layer of image and text together.
func (l *layout) joint(name string, d, dim int, norms, textOut bool) {
	l.attn(name, d, d, d, true)
	for _, p := range []string{".add_q_proj", ".add_k_proj", ".add_v_proj"} {
		l.linear(name+p, d, d, true)
	}
	if textOut {
		l.linear(name+".to_add_out", d, d, true)
	}
	if norms {
		for _, p := range []string{".norm_q", ".norm_k", ".norm_added_q", ".norm_added_k"} {
			l.add(name+p+".weight", dim)
		}
	}
}

func (l *layout) feedForward(name string, d, inner int) {
	l.linear(name+".net.0.proj", d, inner, true)
	l.linear(name+".net.2", inner, d, true)
}

// sinusoidWidth is the width of the code of a time in these transformers.
const sinusoidWidth = 256

// Tensors implements Config.
func (c *SD3Config) Tensors() []Tensor {
	l := &layout{}
	d := c.Width()
	l.add("pos_embed.pos_embed", 1, c.PosEmbedMaxSize*c.PosEmbedMaxSize, d)
	l.conv("pos_embed.proj", c.InChannels, d, c.PatchSize)
	l.embedding("time_text_embed.timestep_embedder", sinusoidWidth, d, 0)
	l.embedding("time_text_embed.text_embedder", c.PooledProjectionDim, d, 0)
	l.linear("context_embedder", c.JointAttentionDim, d, true)
	for i := range c.NumLayers {
		name, last := fmt.Sprintf("transformer_blocks.%d", i), i == c.NumLayers-1
		dual := c.Dual(i)
		vectors, context := 6, 6
		if dual {
			vectors = 9
		}
		if last {
			context = 2
		}
		l.linear(name+".norm1.linear", d, vectors*d, true)
		l.linear(name+".norm1_context.linear", d, context*d, true)
		l.joint(name+".attn", d, c.AttentionHeadDim, c.QKNorm != "", !last)
		if dual {
			l.attn(name+".attn2", d, d, d, true)
			if c.QKNorm != "" {
				l.add(name+".attn2.norm_q.weight", c.AttentionHeadDim)
				l.add(name+".attn2.norm_k.weight", c.AttentionHeadDim)
			}
		}
		l.feedForward(name+".ff", d, 4*d)
		if !last {
			l.feedForward(name+".ff_context", d, 4*d)
		}
	}
	l.linear("norm_out.linear", d, 2*d, true)
	l.linear("proj_out", d, c.PatchSize*c.PatchSize*c.Out(), true)
	return l.tensors
}

// Dual tells whether block i has a second attention layer of the image alone.
func (c *SD3Config) Dual(i int) bool {
	for _, k := range c.DualAttentionLayers {
		if k == i {
			return true
		}
	}
	return false
}

// FluxConfig is the configuration of FluxTransformer2DModel.
type FluxConfig struct {
	PatchSize           int   `key:"patch_size"`
	InChannels          int   `key:"in_channels"` // of a token: four pixels of a latent
	OutChannels         int   `key:"out_channels,null"`
	NumLayers           int   `key:"num_layers"`
	NumSingleLayers     int   `key:"num_single_layers"`
	AttentionHeadDim    int   `key:"attention_head_dim"`
	NumAttentionHeads   int   `key:"num_attention_heads"`
	JointAttentionDim   int   `key:"joint_attention_dim"`
	PooledProjectionDim int   `key:"pooled_projection_dim"`
	GuidanceEmbeds      bool  `key:"guidance_embeds"`
	AxesDimsRope        []int `key:"axes_dims_rope"`

	Info `key:"-"`
}

func newFlux() *FluxConfig {
	return &FluxConfig{
		PatchSize: 1, InChannels: 64, NumLayers: 19, NumSingleLayers: 38, AttentionHeadDim: 128, NumAttentionHeads: 24,
		JointAttentionDim: 4096, PooledProjectionDim: 768, AxesDimsRope: []int{16, 56, 56},
	}
}

// ClassName implements Config.
func (c *FluxConfig) ClassName() string { return "FluxTransformer2DModel" }

// Width is the width of a token.
func (c *FluxConfig) Width() int { return c.NumAttentionHeads * c.AttentionHeadDim }

// Validate implements Config.
func (c *FluxConfig) Validate() error {
	sum, even := 0, true
	for _, n := range c.AxesDimsRope {
		sum, even = sum+n, even && n > 0 && n%2 == 0
	}
	return check(append(heads(c.NumAttentionHeads, c.AttentionHeadDim),
		rule{c.PatchSize == 1, "patch_size", c.PatchSize, "1"},
		rule{c.InChannels > 0 && c.InChannels%4 == 0 && c.InChannels <= maxWidth, "in_channels", c.InChannels, "a multiple of 4"},
		rule{c.OutChannels == 0 || c.OutChannels == c.InChannels, "out_channels", c.OutChannels, "null or in_channels"},
		between("num_layers", c.NumLayers, 1, maxDepth),
		between("num_single_layers", c.NumSingleLayers, 0, maxDepth),
		between("joint_attention_dim", c.JointAttentionDim, 1, maxWidth),
		between("pooled_projection_dim", c.PooledProjectionDim, 1, maxWidth),
		rule{len(c.AxesDimsRope) == 3 && even && sum == c.AttentionHeadDim, "axes_dims_rope", fmt.Sprint(c.AxesDimsRope), "three even numbers whose sum is attention_head_dim"},
	)...)
}

// Tensors implements Config.
func (c *FluxConfig) Tensors() []Tensor {
	l := &layout{}
	d := c.Width()
	l.embedding("time_text_embed.timestep_embedder", sinusoidWidth, d, 0)
	if c.GuidanceEmbeds {
		l.embedding("time_text_embed.guidance_embedder", sinusoidWidth, d, 0)
	}
	l.embedding("time_text_embed.text_embedder", c.PooledProjectionDim, d, 0)
	l.linear("context_embedder", c.JointAttentionDim, d, true)
	l.linear("x_embedder", c.InChannels, d, true)
	for i := range c.NumLayers {
		name := fmt.Sprintf("transformer_blocks.%d", i)
		l.linear(name+".norm1.linear", d, 6*d, true)
		l.linear(name+".norm1_context.linear", d, 6*d, true)
		l.joint(name+".attn", d, c.AttentionHeadDim, true, true)
		l.feedForward(name+".ff", d, 4*d)
		l.feedForward(name+".ff_context", d, 4*d)
	}
	for i := range c.NumSingleLayers {
		name := fmt.Sprintf("single_transformer_blocks.%d", i)
		l.linear(name+".norm.linear", d, 3*d, true)
		l.linear(name+".proj_mlp", d, 4*d, true)
		l.linear(name+".proj_out", 5*d, d, true)
		for _, p := range []string{".attn.to_q", ".attn.to_k", ".attn.to_v"} {
			l.linear(name+p, d, d, true)
		}
		l.add(name+".attn.norm_q.weight", c.AttentionHeadDim)
		l.add(name+".attn.norm_k.weight", c.AttentionHeadDim)
	}
	l.linear("norm_out.linear", d, 2*d, true)
	l.linear("proj_out", d, c.InChannels, true)
	return l.tensors
}

// PixArtConfig is the configuration of PixArtTransformer2DModel (Chen et al.
// 2023, arXiv:2310.00426).
type PixArtConfig struct {
	NumAttentionHeads       int     `key:"num_attention_heads"`
	AttentionHeadDim        int     `key:"attention_head_dim"`
	InChannels              int     `key:"in_channels"`
	OutChannels             int     `key:"out_channels,null"`
	NumLayers               int     `key:"num_layers"`
	Dropout                 float64 `key:"dropout"`
	NormNumGroups           int     `key:"norm_num_groups"`
	CrossAttentionDim       int     `key:"cross_attention_dim"`
	AttentionBias           bool    `key:"attention_bias"`
	SampleSize              int     `key:"sample_size"`
	PatchSize               int     `key:"patch_size"`
	ActivationFn            string  `key:"activation_fn"`
	NumEmbedsAdaNorm        int     `key:"num_embeds_ada_norm"`
	UpcastAttention         bool    `key:"upcast_attention"`
	NormType                string  `key:"norm_type"`
	NormElementwiseAffine   bool    `key:"norm_elementwise_affine"`
	NormEps                 float64 `key:"norm_eps"`
	InterpolationScale      float64 `key:"interpolation_scale,null"`       // 0: null, max(SampleSize/64, 1)
	UseAdditionalConditions *bool   `key:"use_additional_conditions,null"` // nil: null, SampleSize == 128
	CaptionChannels         int     `key:"caption_channels,null"`          // 0: null, no projection
	AttentionType           string  `key:"attention_type"`

	Info `key:"-"`
}

func newPixArt() *PixArtConfig {
	return &PixArtConfig{
		NumAttentionHeads: 16, AttentionHeadDim: 72, InChannels: 4, OutChannels: 8, NumLayers: 28, NormNumGroups: 32,
		CrossAttentionDim: 1152, AttentionBias: true, SampleSize: 128, PatchSize: 2, ActivationFn: "gelu-approximate",
		NumEmbedsAdaNorm: 1000, NormType: "ada_norm_single", NormEps: 1e-6, AttentionType: "default",
	}
}

// ClassName implements Config.
func (c *PixArtConfig) ClassName() string { return "PixArtTransformer2DModel" }

// Width is the width of a token.
func (c *PixArtConfig) Width() int { return c.NumAttentionHeads * c.AttentionHeadDim }

// Additional tells whether resolution and aspect ratio are conditions.
func (c *PixArtConfig) Additional() bool {
	if c.UseAdditionalConditions != nil {
		return *c.UseAdditionalConditions
	}
	return c.SampleSize == 128
}

// Validate implements Config.
func (c *PixArtConfig) Validate() error {
	return check(append(heads(c.NumAttentionHeads, c.AttentionHeadDim),
		between("in_channels", c.InChannels, 1, maxWidth),
		nullOr("out_channels", c.OutChannels, 1, maxWidth),
		between("num_layers", c.NumLayers, 1, maxDepth),
		between("sample_size", c.SampleSize, c.PatchSize, 1<<14),
		between("patch_size", c.PatchSize, 1, 64),
		rule{c.CaptionChannels == 0 || c.CrossAttentionDim == c.Width(), "cross_attention_dim", c.CrossAttentionDim, fmt.Sprintf("the width of a token, %d, with caption_channels", c.Width())},
		nullOr("caption_channels", c.CaptionChannels, 1, maxWidth),
		between("cross_attention_dim", c.CrossAttentionDim, 1, maxWidth),
		oneOf("activation_fn", c.ActivationFn, "gelu-approximate", "gelu"),
		oneOf("norm_type", c.NormType, "ada_norm_single"),
		unset("norm_elementwise_affine", !c.NormElementwiseAffine, c.NormElementwiseAffine),
		unset("attention_type", c.AttentionType == "default", c.AttentionType),
		positive("norm_eps", c.NormEps),
		rule{c.InterpolationScale >= 0, "interpolation_scale", c.InterpolationScale, "positive or null"},
	)...)
}

// Tensors implements Config.
func (c *PixArtConfig) Tensors() []Tensor {
	l := &layout{}
	d := c.Width()
	l.add("scale_shift_table", 2, d)
	l.conv("pos_embed.proj", c.InChannels, d, c.PatchSize)
	for i := range c.NumLayers {
		name := fmt.Sprintf("transformer_blocks.%d", i)
		l.add(name+".scale_shift_table", 6, d)
		l.attn(name+".attn1", d, d, d, c.AttentionBias)
		l.attn(name+".attn2", d, c.CrossAttentionDim, d, c.AttentionBias)
		l.feedForward(name+".ff", d, 4*d)
	}
	l.linear("proj_out", d, c.PatchSize*c.PatchSize*orIn(c.OutChannels, c.InChannels), true)
	l.embedding("adaln_single.emb.timestep_embedder", sinusoidWidth, d, 0)
	if c.Additional() {
		l.embedding("adaln_single.emb.resolution_embedder", sinusoidWidth, d/3, 0)
		l.embedding("adaln_single.emb.aspect_ratio_embedder", sinusoidWidth, d/3, 0)
	}
	l.linear("adaln_single.linear", d, 6*d, true)
	if c.CaptionChannels > 0 {
		l.embedding("caption_projection", c.CaptionChannels, d, 0)
	}
	return l.tensors
}

// SanaConfig is the configuration of SanaTransformer2DModel (Xie et al. 2024,
// arXiv:2410.10629).
type SanaConfig struct {
	InChannels             int      `key:"in_channels"`
	OutChannels            int      `key:"out_channels,null"`
	NumAttentionHeads      int      `key:"num_attention_heads"`
	AttentionHeadDim       int      `key:"attention_head_dim"`
	NumLayers              int      `key:"num_layers"`
	NumCrossAttentionHeads int      `key:"num_cross_attention_heads"`
	CrossAttentionHeadDim  int      `key:"cross_attention_head_dim"`
	CrossAttentionDim      int      `key:"cross_attention_dim"`
	CaptionChannels        int      `key:"caption_channels"`
	MLPRatio               float64  `key:"mlp_ratio"`
	Dropout                float64  `key:"dropout"`
	AttentionBias          bool     `key:"attention_bias"`
	SampleSize             int      `key:"sample_size"`
	PatchSize              int      `key:"patch_size"`
	NormElementwiseAffine  bool     `key:"norm_elementwise_affine"`
	NormEps                float64  `key:"norm_eps"`
	InterpolationScale     *float64 `key:"interpolation_scale,null"`
	GuidanceEmbeds         bool     `key:"guidance_embeds"`
	GuidanceEmbedsScale    float64  `key:"guidance_embeds_scale"`
	QKNorm                 string   `key:"qk_norm,null"`
	TimestepScale          float64  `key:"timestep_scale"`

	Info `key:"-"`
}

func newSana() *SanaConfig {
	return &SanaConfig{
		InChannels: 32, OutChannels: 32, NumAttentionHeads: 70, AttentionHeadDim: 32, NumLayers: 20, NumCrossAttentionHeads: 20,
		CrossAttentionHeadDim: 112, CrossAttentionDim: 2240, CaptionChannels: 2304, MLPRatio: 2.5, SampleSize: 32, PatchSize: 1,
		NormEps: 1e-6, GuidanceEmbedsScale: 0.1, TimestepScale: 1,
	}
}

// ClassName implements Config.
func (c *SanaConfig) ClassName() string { return "SanaTransformer2DModel" }

// Width is the width of a token.
func (c *SanaConfig) Width() int { return c.NumAttentionHeads * c.AttentionHeadDim }

// Hidden is half the width inside a feed-forward part.
func (c *SanaConfig) Hidden() int { return int(c.MLPRatio * float64(c.Width())) }

// Validate implements Config.
func (c *SanaConfig) Validate() error {
	return check(append(heads(c.NumAttentionHeads, c.AttentionHeadDim),
		between("in_channels", c.InChannels, 1, maxWidth),
		nullOr("out_channels", c.OutChannels, 1, maxWidth),
		between("num_layers", c.NumLayers, 1, maxDepth),
		between("num_cross_attention_heads", c.NumCrossAttentionHeads, 1, 1<<10),
		between("cross_attention_head_dim", c.CrossAttentionHeadDim, 1, 1<<10),
		rule{c.CrossAttentionDim == c.Width(), "cross_attention_dim", c.CrossAttentionDim, fmt.Sprintf("the width of a token, %d", c.Width())},
		between("caption_channels", c.CaptionChannels, 1, maxWidth),
		rule{c.MLPRatio > 0 && c.Hidden() >= 1 && c.Hidden() <= maxWidth, "mlp_ratio", c.MLPRatio, "positive"},
		between("sample_size", c.SampleSize, c.PatchSize, 1<<14),
		between("patch_size", c.PatchSize, 1, 64),
		unset("norm_elementwise_affine", !c.NormElementwiseAffine, c.NormElementwiseAffine),
		unset("guidance_embeds", !c.GuidanceEmbeds, c.GuidanceEmbeds),
		unset("qk_norm", c.QKNorm == "", c.QKNorm),
		positive("norm_eps", c.NormEps),
		positive("timestep_scale", c.TimestepScale),
	)...)
}

// Tensors implements Config.
func (c *SanaConfig) Tensors() []Tensor {
	l := &layout{}
	d, hidden, cross := c.Width(), c.Hidden(), c.NumCrossAttentionHeads*c.CrossAttentionHeadDim
	l.add("scale_shift_table", 2, d)
	l.conv("patch_embed.proj", c.InChannels, d, c.PatchSize)
	l.embedding("time_embed.emb.timestep_embedder", sinusoidWidth, d, 0)
	l.linear("time_embed.linear", d, 6*d, true)
	l.embedding("caption_projection", c.CaptionChannels, d, 0)
	l.add("caption_norm.weight", d)
	for i := range c.NumLayers {
		name := fmt.Sprintf("transformer_blocks.%d", i)
		l.add(name+".scale_shift_table", 6, d)
		l.attn(name+".attn1", d, d, d, c.AttentionBias)
		l.attn(name+".attn2", d, d, cross, true)
		l.conv(name+".ff.conv_inverted", d, 2*hidden, 1)
		l.add(name+".ff.conv_depth.weight", 2*hidden, 1, 3, 3)
		l.add(name+".ff.conv_depth.bias", 2*hidden)
		l.add(name+".ff.conv_point.weight", d, hidden, 1, 1)
	}
	l.linear("proj_out", d, c.PatchSize*c.PatchSize*orIn(c.OutChannels, c.InChannels), true)
	return l.tensors
}
