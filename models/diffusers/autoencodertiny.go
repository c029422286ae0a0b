package diffusers

import "fmt"

// AutoencoderTinyConfig is the configuration of AutoencoderTiny (TAESD), a
// small autoencoder without norms. Its latents need no scaling.
type AutoencoderTinyConfig struct {
	InChannels              int     `key:"in_channels"`
	OutChannels             int     `key:"out_channels"`
	EncoderBlockOutChannels []int   `key:"encoder_block_out_channels"`
	DecoderBlockOutChannels []int   `key:"decoder_block_out_channels"`
	BlockOutChannels        []int   `key:"block_out_channels,null"` // a copy that diffusers writes
	ActFn                   string  `key:"act_fn"`
	UpsampleFn              string  `key:"upsample_fn"`
	LatentChannels          int     `key:"latent_channels"`
	UpsamplingScalingFactor int     `key:"upsampling_scaling_factor"`
	NumEncoderBlocks        []int   `key:"num_encoder_blocks"`
	NumDecoderBlocks        []int   `key:"num_decoder_blocks"`
	LatentMagnitude         float64 `key:"latent_magnitude"`
	LatentShift             float64 `key:"latent_shift"`
	ForceUpcast             bool    `key:"force_upcast"`
	ScalingFactor           float64 `key:"scaling_factor"`
	ShiftFactor             float64 `key:"shift_factor"`

	Info `key:"-"`
}

func newAutoencoderTiny() *AutoencoderTinyConfig {
	return &AutoencoderTinyConfig{
		InChannels:              3,
		OutChannels:             3,
		EncoderBlockOutChannels: []int{64, 64, 64, 64},
		DecoderBlockOutChannels: []int{64, 64, 64, 64},
		ActFn:                   "relu",
		UpsampleFn:              "nearest",
		LatentChannels:          4,
		UpsamplingScalingFactor: 2,
		NumEncoderBlocks:        []int{1, 3, 3, 3},
		NumDecoderBlocks:        []int{3, 3, 3, 1},
		LatentMagnitude:         3,
		LatentShift:             0.5,
		ScalingFactor:           1,
	}
}

// ClassName implements Config.
func (c *AutoencoderTinyConfig) ClassName() string { return "AutoencoderTiny" }

// Validate implements Config.
func (c *AutoencoderTinyConfig) Validate() error {
	levels := func(key string, list []int, other []int) rule {
		return rule{len(list) == len(other), key, fmt.Sprintf("a list of %d", len(list)), fmt.Sprintf("as long as the widths, %d", len(other))}
	}
	same := func(key string, list []int) rule {
		for _, w := range list {
			if w != list[0] {
				return rule{false, key, list, "one width for all levels"}
			}
		}
		return rule{ok: true}
	}
	return check(
		between("in_channels", c.InChannels, 1, maxWidth),
		between("out_channels", c.OutChannels, 1, maxWidth),
		between("latent_channels", c.LatentChannels, 1, maxWidth),
		widths("encoder_block_out_channels", c.EncoderBlockOutChannels),
		widths("decoder_block_out_channels", c.DecoderBlockOutChannels),
		levels("num_encoder_blocks", c.NumEncoderBlocks, c.EncoderBlockOutChannels),
		levels("num_decoder_blocks", c.NumDecoderBlocks, c.DecoderBlockOutChannels),
		levels("decoder_block_out_channels", c.DecoderBlockOutChannels, c.EncoderBlockOutChannels),
		same("encoder_block_out_channels", c.EncoderBlockOutChannels),
		same("decoder_block_out_channels", c.DecoderBlockOutChannels),
		eachBetween("num_encoder_blocks", c.NumEncoderBlocks, 1, maxDepth),
		eachBetween("num_decoder_blocks", c.NumDecoderBlocks, 1, maxDepth),
		oneOf("act_fn", c.ActFn, activations...),
		oneOf("upsample_fn", c.UpsampleFn, "nearest"),
		rule{c.UpsamplingScalingFactor == 2, "upsampling_scaling_factor", c.UpsamplingScalingFactor, "2"},
		positive("scaling_factor", c.ScalingFactor),
		positive("latent_magnitude", c.LatentMagnitude),
	)
}

// Tensors implements Config. Layers are numbered as in a sequence in which
// activations and upsamplings count.
func (c *AutoencoderTinyConfig) Tensors() []Tensor {
	l := &layout{}
	conv := func(name string, in, out int, bias bool) {
		l.add(name+".weight", out, in, 3, 3)
		if bias {
			l.add(name+".bias", out)
		}
	}
	block := func(name string, width int) {
		for _, part := range []string{".conv.0", ".conv.2", ".conv.4"} {
			conv(name+part, width, width, true)
		}
	}
	n := 0
	layer := func(side string) string {
		n++
		return fmt.Sprintf("%s.layers.%d", side, n-1)
	}
	for i, w := range c.EncoderBlockOutChannels {
		if i == 0 {
			conv(layer("encoder"), c.InChannels, w, true)
		} else {
			conv(layer("encoder"), w, w, false)
		}
		for range c.NumEncoderBlocks[i] {
			block(layer("encoder"), w)
		}
	}
	conv(layer("encoder"), c.EncoderBlockOutChannels[len(c.EncoderBlockOutChannels)-1], c.LatentChannels, true)

	n = 0
	last := len(c.DecoderBlockOutChannels) - 1
	conv(layer("decoder"), c.LatentChannels, c.DecoderBlockOutChannels[0], true)
	n++ // activation
	for i, w := range c.DecoderBlockOutChannels {
		for range c.NumDecoderBlocks[i] {
			block(layer("decoder"), w)
		}
		if i < last {
			n++ // upsampling
			conv(layer("decoder"), w, w, false)
		} else {
			conv(layer("decoder"), w, c.OutChannels, true)
		}
	}
	return l.tensors
}
