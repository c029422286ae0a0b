package diffusers

import "fmt"

// DiTConfig is the configuration of DiTTransformer2DModel (Peebles and Xie,
// "Scalable Diffusion Models with Transformers"). Old files call the class
// Transformer2DModel, with norm_type ada_norm_zero.
type DiTConfig struct {
	NumAttentionHeads     int     `key:"num_attention_heads"`
	AttentionHeadDim      int     `key:"attention_head_dim"`
	InChannels            int     `key:"in_channels"`
	OutChannels           int     `key:"out_channels,null"` // 0: null, InChannels
	NumLayers             int     `key:"num_layers"`
	Dropout               float64 `key:"dropout"`
	NormNumGroups         int     `key:"norm_num_groups"`
	AttentionBias         bool    `key:"attention_bias"`
	SampleSize            int     `key:"sample_size"`
	PatchSize             int     `key:"patch_size"`
	ActivationFn          string  `key:"activation_fn"` // "gelu-approximate" (tanh) or "gelu"
	NumEmbedsAdaNorm      int     `key:"num_embeds_ada_norm"`
	UpcastAttention       bool    `key:"upcast_attention"`
	NormType              string  `key:"norm_type"`
	NormElementwiseAffine bool    `key:"norm_elementwise_affine"`
	NormEps               float64 `key:"norm_eps"`

	Info `key:"-"`
}

func newDiT() *DiTConfig {
	return &DiTConfig{
		NumAttentionHeads: 16,
		AttentionHeadDim:  72,
		InChannels:        4,
		NumLayers:         28,
		NormNumGroups:     32,
		AttentionBias:     true,
		SampleSize:        32,
		PatchSize:         2,
		ActivationFn:      "gelu-approximate",
		NumEmbedsAdaNorm:  1000,
		NormType:          "ada_norm_zero",
		NormEps:           1e-5,
	}
}

// ClassName implements Config.
func (c *DiTConfig) ClassName() string { return "DiTTransformer2DModel" }

// Validate implements Config.
func (c *DiTConfig) Validate() error {
	return check(
		between("num_attention_heads", c.NumAttentionHeads, 1, 1<<10),
		between("attention_head_dim", c.AttentionHeadDim, 1, 1<<10),
		rule{c.NumAttentionHeads*c.AttentionHeadDim <= maxWidth && c.NumAttentionHeads*c.AttentionHeadDim%4 == 0, "attention_head_dim",
			c.AttentionHeadDim, "such that heads times width is a multiple of 4 and not above " + fmt.Sprint(maxWidth)},
		between("in_channels", c.InChannels, 1, maxWidth),
		nullOr("out_channels", c.OutChannels, 1, maxWidth),
		between("num_layers", c.NumLayers, 1, maxDepth),
		between("patch_size", c.PatchSize, 1, 64),
		between("sample_size", c.SampleSize, c.PatchSize, 1<<14),
		rule{c.PatchSize > 0 && c.SampleSize%c.PatchSize == 0, "sample_size", c.SampleSize, "a multiple of patch_size"},
		oneOf("activation_fn", c.ActivationFn, "gelu-approximate", "gelu"),
		between("num_embeds_ada_norm", c.NumEmbedsAdaNorm, 1, 1<<20),
		oneOf("norm_type", c.NormType, "ada_norm_zero"),
		unset("norm_elementwise_affine", !c.NormElementwiseAffine, c.NormElementwiseAffine),
		positive("norm_eps", c.NormEps),
	)
}

// Tensors implements Config. Each block holds its own copy of the embedders
// of time (256 wide) and class (one row more than classes, for none).
func (c *DiTConfig) Tensors() []Tensor {
	l := &layout{}
	width := c.NumAttentionHeads * c.AttentionHeadDim
	out := c.OutChannels
	if out == 0 {
		out = c.InChannels
	}
	l.conv("pos_embed.proj", c.InChannels, width, c.PatchSize)
	for i := range c.NumLayers {
		b := fmt.Sprintf("transformer_blocks.%d", i)
		l.embedding(b+".norm1.emb.timestep_embedder", 256, width, 0)
		l.add(b+".norm1.emb.class_embedder.embedding_table.weight", c.NumEmbedsAdaNorm+1, width)
		l.linear(b+".norm1.linear", width, 6*width, true)
		for _, part := range []string{".attn1.to_q", ".attn1.to_k", ".attn1.to_v"} {
			l.linear(b+part, width, width, c.AttentionBias)
		}
		l.linear(b+".attn1.to_out.0", width, width, true)
		l.linear(b+".ff.net.0.proj", width, 4*width, true)
		l.linear(b+".ff.net.2", 4*width, width, true)
	}
	l.linear("proj_out_1", width, 2*width, true)
	l.linear("proj_out_2", width, c.PatchSize*c.PatchSize*out, true)
	return l.tensors
}

// DiTPrompts names the learned prompts of a patched DiT, (blocks, tokens,
// width); see package dit.
const DiTPrompts = "prompt_embeddings"

// Prompts lists the tensors that a patched DiT has beside those of its
// configuration, from the shape of its prompts.
func (c *DiTConfig) Prompts(shape []int) ([]Tensor, error) {
	width := c.NumAttentionHeads * c.AttentionHeadDim
	if len(shape) != 3 || shape[0] < 1 || shape[0] > c.NumLayers || shape[2] != width {
		return nil, fmt.Errorf("%s is %v, want (at most %d blocks, tokens, %d)", DiTPrompts, shape, c.NumLayers, width)
	}
	if side := c.SampleSize / c.PatchSize; shape[1] != side*side {
		return nil, fmt.Errorf("%s is %v: a picture has %d tokens", DiTPrompts, shape, side*side)
	}
	return []Tensor{{Name: DiTPrompts, Shape: shape}, {Name: "gate.weight", Shape: []int{shape[1], width + 1}}, {Name: "gate.bias", Shape: []int{shape[1]}}}, nil
}
