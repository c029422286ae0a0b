package diffusers

// VQConfig is the configuration of VQModel: an AutoencoderKL whose latents are
// rows of a codebook (van den Oord et al. 2017, arXiv:1711.00937).
type VQConfig struct {
	InChannels           int      `key:"in_channels"`
	OutChannels          int      `key:"out_channels"`
	DownBlockTypes       []string `key:"down_block_types"`
	UpBlockTypes         []string `key:"up_block_types"`
	BlockOutChannels     []int    `key:"block_out_channels"`
	LayersPerBlock       int      `key:"layers_per_block"`
	ActFn                string   `key:"act_fn"`
	LatentChannels       int      `key:"latent_channels"`
	SampleSize           Size     `key:"sample_size"`
	NumVQEmbeddings      int      `key:"num_vq_embeddings"`
	NormNumGroups        int      `key:"norm_num_groups"`
	VQEmbedDim           int      `key:"vq_embed_dim,null"` // 0: null, as many as latent channels
	ScalingFactor        float64  `key:"scaling_factor"`
	NormType             string   `key:"norm_type"`
	MidBlockAddAttention bool     `key:"mid_block_add_attention"`
	LookupFromCodebook   bool     `key:"lookup_from_codebook"`
	ForceUpcast          bool     `key:"force_upcast"`

	Info `key:"-"`
}

func newVQ() *VQConfig {
	return &VQConfig{
		InChannels:           3,
		OutChannels:          3,
		DownBlockTypes:       []string{"DownEncoderBlock2D"},
		UpBlockTypes:         []string{"UpDecoderBlock2D"},
		BlockOutChannels:     []int{64},
		LayersPerBlock:       1,
		ActFn:                "silu",
		LatentChannels:       3,
		SampleSize:           Size{32, 32},
		NumVQEmbeddings:      256,
		NormNumGroups:        32,
		ScalingFactor:        0.18215,
		NormType:             "group",
		MidBlockAddAttention: true,
	}
}

// ClassName implements Config.
func (c *VQConfig) ClassName() string { return "VQModel" }

// Width is the width of a row of the codebook.
func (c *VQConfig) Width() int {
	if c.VQEmbedDim > 0 {
		return c.VQEmbedDim
	}
	return c.LatentChannels
}

// Validate implements Config.
func (c *VQConfig) Validate() error {
	err := check(
		between("num_vq_embeddings", c.NumVQEmbeddings, 1, 1<<20),
		nullOr("vq_embed_dim", c.VQEmbedDim, 1, maxWidth),
		oneOf("norm_type", c.NormType, "group"),
		unset("lookup_from_codebook", !c.LookupFromCodebook, c.LookupFromCodebook),
	)
	if err != nil {
		return err
	}
	return c.Coder().Validate()
}

// Coder is the encoder and decoder around the codebook, without the
// convolutions beside it.
func (c *VQConfig) Coder() *AutoencoderKLConfig {
	kl := newAutoencoderKL()
	kl.InChannels, kl.OutChannels, kl.LatentChannels = c.InChannels, c.OutChannels, c.LatentChannels
	kl.DownBlockTypes, kl.UpBlockTypes, kl.BlockOutChannels = c.DownBlockTypes, c.UpBlockTypes, c.BlockOutChannels
	kl.LayersPerBlock, kl.ActFn, kl.NormNumGroups, kl.SampleSize = c.LayersPerBlock, c.ActFn, c.NormNumGroups, c.SampleSize
	kl.ScalingFactor, kl.MidBlockAddAttention = c.ScalingFactor, c.MidBlockAddAttention
	kl.UseQuantConv, kl.UsePostQuantConv = false, false
	return kl
}

// Tensors implements Config.
func (c *VQConfig) Tensors() []Tensor {
	l := &layout{tensors: c.Coder().Tensors()}
	for i := range l.tensors { // one output per latent channel: no variance
		if t := &l.tensors[i]; t.Name == "encoder.conv_out.weight" || t.Name == "encoder.conv_out.bias" {
			t.Shape[0] = c.LatentChannels
		}
	}
	l.conv("quant_conv", c.LatentChannels, c.Width(), 1)
	l.add("quantize.embedding.weight", c.NumVQEmbeddings, c.Width())
	l.conv("post_quant_conv", c.Width(), c.LatentChannels, 1)
	return l.tensors
}
