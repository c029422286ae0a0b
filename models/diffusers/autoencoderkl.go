package diffusers

import "fmt"

// AutoencoderKLConfig is the configuration of AutoencoderKL, the image
// autoencoder of Stable Diffusion. Its encoder gives mean and log variance;
// pipelines scale latents z = (mean - ShiftFactor) ScalingFactor.
type AutoencoderKLConfig struct {
	InChannels           int       `key:"in_channels"`
	OutChannels          int       `key:"out_channels"`
	DownBlockTypes       []string  `key:"down_block_types"`
	UpBlockTypes         []string  `key:"up_block_types"`
	BlockOutChannels     []int     `key:"block_out_channels"`
	LayersPerBlock       int       `key:"layers_per_block"`
	ActFn                string    `key:"act_fn"`
	LatentChannels       int       `key:"latent_channels"`
	NormNumGroups        int       `key:"norm_num_groups"`
	SampleSize           Size      `key:"sample_size"`
	ScalingFactor        float64   `key:"scaling_factor"`
	ShiftFactor          float64   `key:"shift_factor,null"` // null is 0
	LatentsMean          []float64 `key:"latents_mean,null"` // nil: null
	LatentsStd           []float64 `key:"latents_std,null"`  // nil: null
	ForceUpcast          bool      `key:"force_upcast"`
	UseQuantConv         bool      `key:"use_quant_conv"`
	UsePostQuantConv     bool      `key:"use_post_quant_conv"`
	MidBlockAddAttention bool      `key:"mid_block_add_attention"`

	Info `key:"-"`
}

func newAutoencoderKL() *AutoencoderKLConfig {
	return &AutoencoderKLConfig{
		InChannels:           3,
		OutChannels:          3,
		DownBlockTypes:       []string{"DownEncoderBlock2D"},
		UpBlockTypes:         []string{"UpDecoderBlock2D"},
		BlockOutChannels:     []int{64},
		LayersPerBlock:       1,
		ActFn:                "silu",
		LatentChannels:       4,
		NormNumGroups:        32,
		SampleSize:           Size{32, 32},
		ScalingFactor:        0.18215,
		ForceUpcast:          true,
		UseQuantConv:         true,
		UsePostQuantConv:     true,
		MidBlockAddAttention: true,
	}
}

// ClassName implements Config.
func (c *AutoencoderKLConfig) ClassName() string { return "AutoencoderKL" }

// Validate implements Config.
func (c *AutoencoderKLConfig) Validate() error {
	levels := len(c.BlockOutChannels)
	perLatent := func(key string, list []float64) rule {
		return rule{list == nil || len(list) == c.LatentChannels, key, fmt.Sprintf("a list of %d", len(list)), "null or one number for each latent channel"}
	}
	err := check(
		between("in_channels", c.InChannels, 1, maxWidth),
		between("out_channels", c.OutChannels, 1, maxWidth),
		between("latent_channels", c.LatentChannels, 1, maxWidth),
		widths("block_out_channels", c.BlockOutChannels),
		sameLength("down_block_types", c.DownBlockTypes, levels),
		sameLength("up_block_types", c.UpBlockTypes, levels),
		eachOf("down_block_types", c.DownBlockTypes, "DownEncoderBlock2D"),
		eachOf("up_block_types", c.UpBlockTypes, "UpDecoderBlock2D"),
		between("layers_per_block", c.LayersPerBlock, 1, maxDepth),
		oneOf("act_fn", c.ActFn, activations...),
		between("norm_num_groups", c.NormNumGroups, 1, maxWidth),
		positive("scaling_factor", c.ScalingFactor),
		perLatent("latents_mean", c.LatentsMean),
		perLatent("latents_std", c.LatentsStd),
	)
	if err != nil {
		return err
	}
	return c.layout().err
}

// Tensors implements Config.
func (c *AutoencoderKLConfig) Tensors() []Tensor { return c.layout().tensors }

func (c *AutoencoderKLConfig) layout() *layout {
	l := &layout{}
	width := c.BlockOutChannels
	last := len(width) - 1
	make := func(in, out int) resnet { return resnet{in: in, out: out, groups: c.NormNumGroups} }

	l.conv("encoder.conv_in", c.InChannels, width[0], 3)
	in := width[0]
	for i, w := range width {
		name := fmt.Sprintf("encoder.down_blocks.%d", i)
		for j := range c.LayersPerBlock {
			if l.full() {
				return l
			}
			l.resnet(fmt.Sprintf("%s.resnets.%d", name, j), make(in, w))
			in = w
		}
		if i < last {
			l.conv(name+".downsamplers.0.conv", w, w, 3)
		}
	}
	l.midBlock("encoder.mid_block", make(in, in), c.MidBlockAddAttention, c.NormNumGroups, 0)
	l.groupNorm("encoder.conv_norm_out", in, c.NormNumGroups)
	l.conv("encoder.conv_out", in, 2*c.LatentChannels, 3)

	l.conv("decoder.conv_in", c.LatentChannels, in, 3)
	for i := range width {
		name, w := fmt.Sprintf("decoder.up_blocks.%d", i), width[last-i]
		for j := range c.LayersPerBlock + 1 {
			if l.full() {
				return l
			}
			l.resnet(fmt.Sprintf("%s.resnets.%d", name, j), make(in, w))
			in = w
		}
		if i < last {
			l.conv(name+".upsamplers.0.conv", w, w, 3)
		}
	}
	l.midBlock("decoder.mid_block", make(width[last], width[last]), c.MidBlockAddAttention, c.NormNumGroups, 0)
	l.groupNorm("decoder.conv_norm_out", width[0], c.NormNumGroups)
	l.conv("decoder.conv_out", width[0], c.OutChannels, 3)

	if c.UseQuantConv {
		l.conv("quant_conv", 2*c.LatentChannels, 2*c.LatentChannels, 1)
	}
	if c.UsePostQuantConv {
		l.conv("post_quant_conv", c.LatentChannels, c.LatentChannels, 1)
	}
	return l
}
