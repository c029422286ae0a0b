// Package autoencoder is the part of a latent model between pictures and
// latents, on the native engine: AutoencoderKL, AutoencoderTiny and VQModel.
//
// Encode and Decode are the bare networks: neither applies the scaling_factor
// or shift_factor of the configuration (Scaling does).
package autoencoder

import (
	"context"
	"fmt"
	"math"
	"strings"

	"drift/internal/graph"
	"drift/internal/kernels"
	"drift/models/diffusers"
	"drift/models/engine"
)

// Autoencoder is an encoder and a decoder with packed weights.
type Autoencoder struct {
	Encoder *engine.Net // (N, 3, H, W) to moments or latents (N, C, H/f, W/f)
	Decoder *engine.Net // latents to pictures

	cfg      diffusers.Config
	latent   int
	factor   int
	moments  bool // the encoder gives mean and log variance
	codebook [][]float32
}

// New checks the configuration and packs the weights of the decoder; those of
// the encoder are packed when it is first used. w must stay usable.
func New(cfg diffusers.Config, w diffusers.Weights, opt engine.Options) (*Autoencoder, error) {
	a := &Autoencoder{cfg: cfg}
	var enc, dec coder
	size := diffusers.Size{H: 512, W: 512}
	levels := 1
	switch c := cfg.(type) {
	case *diffusers.AutoencoderKLConfig:
		a.latent, a.moments, levels, size = c.LatentChannels, true, len(c.BlockOutChannels), c.SampleSize
		k := kl{c, c.UseQuantConv, c.UsePostQuantConv, c.LatentChannels, 2 * c.LatentChannels}
		enc, dec = coder{cfg: cfg, in: c.InChannels, out: k.moments, build: k.encode}, coder{cfg: cfg, in: c.LatentChannels, out: c.OutChannels, build: k.decode}
	case *diffusers.VQConfig:
		a.latent, levels, size = c.Width(), len(c.BlockOutChannels), c.SampleSize
		k := kl{c.Coder(), true, true, c.Width(), c.Width()}
		enc, dec = coder{cfg: cfg, in: c.InChannels, out: c.Width(), build: k.encode}, coder{cfg: cfg, in: c.Width(), out: c.OutChannels, build: k.decode}
		table, err := w.Float32("quantize.embedding.weight")
		if err != nil {
			return nil, fmt.Errorf("autoencoder: %w", err)
		}
		for ; len(table) > 0; table = table[c.Width():] {
			a.codebook = append(a.codebook, table[:c.Width():c.Width()])
		}
	case *diffusers.AutoencoderTinyConfig:
		a.latent, levels = c.LatentChannels, len(c.EncoderBlockOutChannels)
		n := tiny{c}
		enc, dec = coder{cfg: cfg, in: c.InChannels, out: c.LatentChannels, build: n.encode}, coder{cfg: cfg, in: c.LatentChannels, out: c.OutChannels, build: n.decode}
	default:
		return nil, fmt.Errorf("autoencoder: a %s is no autoencoder of this engine", cfg.ClassName())
	}
	if _, ok := activations[strings.ToLower(actOf(cfg))]; !ok {
		return nil, fmt.Errorf("autoencoder: config act_fn = %q is not supported: only silu, swish, gelu, relu", actOf(cfg))
	}
	a.factor = 1 << (levels - 1)
	enc.down, dec.up = a.factor, a.factor
	h, width := max(size.H, a.factor), max(size.W, a.factor)
	h, width = h/a.factor*a.factor, width/a.factor*a.factor
	enc.h, enc.w, dec.h, dec.w = h, width, h, width
	own := opt.Pool == nil
	if own {
		opt.Pool = kernels.NewPool(kernels.Detect(), opt.Threads)
	}
	var err error
	lazy := opt
	lazy.Lazy = true // most runs only decode
	if a.Encoder, err = engine.New(&enc, w, lazy); err == nil {
		a.Decoder, err = engine.New(&dec, w, opt)
	}
	if err != nil {
		if own {
			opt.Pool.Close()
		}
		return nil, err
	}
	if own {
		a.Decoder.Own()
	}
	return a, nil
}

var activations = map[string]kernels.Activation{
	"silu": kernels.SiLU, "swish": kernels.SiLU, "gelu": kernels.GELU, "relu": kernels.ReLU,
}

func actOf(cfg diffusers.Config) string {
	switch c := cfg.(type) {
	case *diffusers.AutoencoderKLConfig:
		return c.ActFn
	case *diffusers.VQConfig:
		return c.ActFn
	case *diffusers.AutoencoderTinyConfig:
		return c.ActFn
	}
	return ""
}

func batch(n, h, w int) *engine.Batch { return &engine.Batch{H: h, W: w, T: make([]float64, n)} }

// Close stops the workers of an own pool.
func (a *Autoencoder) Close() {
	a.Encoder.Close()
	a.Decoder.Close()
}

// ReleaseOver gives the activation memory of a network back that holds more
// than so many bytes.
func (a *Autoencoder) ReleaseOver(bytes int) {
	a.Encoder.ReleaseOver(bytes)
	a.Decoder.ReleaseOver(bytes)
}

// Latent is the number of channels of a latent.
func (a *Autoencoder) Latent() int { return a.latent }

// Factor is how many pixels of a picture's side one of a latent's stands for.
func (a *Autoencoder) Factor() int { return a.factor }

// Pictures is the number of channels of a picture.
func (a *Autoencoder) Pictures() int {
	n, _ := a.Encoder.Channels()
	return n
}

// Encoded is the size of the latents of pictures of h by w, or why those are
// not taken.
func (a *Autoencoder) Encoded(h, w int) (lh, lw int, err error) { return a.Encoder.Output(h, w) }

// Config gives the configuration that the autoencoder was made from.
func (a *Autoencoder) Config() diffusers.Config { return a.cfg }

// Moments tells whether Encode gives the mean and the log variance of a
// Gaussian, unclamped, side by side, instead of the latent itself.
func (a *Autoencoder) Moments() bool { return a.moments }

// Encode computes the latents, or their moments, of n pictures of h by w in
// [-1, 1].
func (a *Autoencoder) Encode(ctx context.Context, dst, pictures []float64, n, h, w int) error {
	if err := a.Encoder.Forward(ctx, dst, pictures, batch(n, h, w)); err != nil {
		return fmt.Errorf("autoencoder: encoding: %w", err)
	}
	return nil
}

// Decode computes the pictures of n latents of h by w. A codebook's rows
// nearest to the latents take their place first.
func (a *Autoencoder) Decode(ctx context.Context, dst, latents []float64, n, h, w int) error {
	if a.codebook != nil {
		latents = a.quantize(latents, n, h*w)
	}
	if err := a.Decoder.Forward(ctx, dst, latents, batch(n, h, w)); err != nil {
		return fmt.Errorf("autoencoder: decoding: %w", err)
	}
	return nil
}

// DecodeVJP multiplies a cotangent of the pictures with the Jacobian of the
// decoder at latents, and gives the pictures.
func (a *Autoencoder) DecodeVJP(ctx context.Context, grad, pictures, cotangent, latents []float64, n, h, w int) error {
	return a.DecodeLate(ctx, grad, pictures, latents, n, h, w, func() ([]float64, error) { return cotangent, nil })
}

// DecodeLate is DecodeVJP with a cotangent that depends on the pictures: it is
// asked for when they are there.
func (a *Autoencoder) DecodeLate(ctx context.Context, grad, pictures, latents []float64, n, h, w int, cotangent func() ([]float64, error)) error {
	if a.codebook != nil {
		return fmt.Errorf("autoencoder: a VQModel chooses rows of a codebook, which has no gradient")
	}
	b := batch(n, h, w)
	b.Save = true
	if err := a.Decoder.Forward(ctx, pictures, latents, b); err != nil {
		return fmt.Errorf("autoencoder: decoding: %w", err)
	}
	c, err := cotangent()
	if err != nil {
		return err
	}
	return a.Decoder.VJP(ctx, grad, c)
}

// quantize gives the row of the codebook nearest to every pixel of a latent.
func (a *Autoencoder) quantize(latents []float64, n, pixels int) []float64 {
	out := make([]float64, len(latents))
	for i := range n {
		z, q := latents[i*a.latent*pixels:], out[i*a.latent*pixels:]
		for p := range pixels {
			for c, v := range a.codebook[a.nearest(z[p:], pixels)] {
				q[c*pixels+p] = float64(v)
			}
		}
	}
	return out
}

func (a *Autoencoder) nearest(z []float64, stride int) int {
	best, least := 0, math.Inf(1)
	for k, row := range a.codebook {
		d := 0.0
		for c, v := range row {
			u := z[c*stride] - float64(v)
			d += u * u
		}
		if d < least {
			best, least = k, d
		}
	}
	return best
}

// coder is one of the two networks.
type coder struct {
	cfg      diffusers.Config
	in, out  int
	up, down int // factor, 0 for the other way
	h, w     int // usual size of a picture
	build    func(b *engine.Blocks, x graph.Value) graph.Value
}

// Config implements engine.Network.
func (c *coder) Config() diffusers.Config { return c.cfg }

// Channels implements engine.Network.
func (c *coder) Channels() (in, out int) { return c.in, c.out }

// Output implements engine.Network.
func (c *coder) Output(h, w int) (int, int, error) {
	if c.up > 0 {
		return h * c.up, w * c.up, nil
	}
	if h < c.down || w < c.down || h%c.down != 0 || w%c.down != 0 {
		return 0, 0, engine.BadInput("pictures of %dx%d: the size must be a multiple of %d", h, w, c.down)
	}
	return h / c.down, w / c.down, nil
}

// Usual implements engine.Network.
func (c *coder) Usual() (h, w int, inputs map[string][]int) {
	if c.up > 0 {
		return c.h / c.up, c.w / c.up, nil
	}
	return c.h, c.w, nil
}

// Check implements engine.Network.
func (c *coder) Check(b *engine.Batch) error { return b.Refuse() }

// Key implements engine.Network.
func (c *coder) Key(*engine.Batch) string { return "" }

// Fill implements engine.Network.
func (c *coder) Fill(*graph.Env, *engine.Batch, int, int) {}

// Build implements engine.Network.
func (c *coder) Build(g *graph.Graph, b *engine.Batch) {
	blocks := &engine.Blocks{Graph: g, H: c.h, W: c.w, Act: activations[strings.ToLower(actOf(c.cfg))]}
	g.Output(c.build(blocks, g.Input(b.H, b.W, c.in)))
}

// kl is AutoencoderKL's pair of networks, and VQModel's.
type kl struct {
	*diffusers.AutoencoderKLConfig
	quant, postQuant bool // 1x1 convolutions at the latents
	latent, moments  int  // channels there
}

// normEps is the epsilon of an autoencoder's norms.
const normEps = 1e-6

func (k kl) setup(b *engine.Blocks) { b.Groups, b.Eps = k.NormNumGroups, normEps }

func (k kl) middle(b *engine.Blocks, name string, h graph.Value) graph.Value {
	h = b.Resnet(name+".resnets.0", h, h.C, engine.Resnet{})
	if k.MidBlockAddAttention {
		h = b.PixelAttention(name+".attentions.0", h, 1)
	}
	return b.Resnet(name+".resnets.1", h, h.C, engine.Resnet{})
}

func (k kl) encode(b *engine.Blocks, x graph.Value) graph.Value {
	k.setup(b)
	width, last := k.BlockOutChannels, len(k.BlockOutChannels)-1
	h := b.Conv("encoder.conv_in", graph.From(x), width[0], 3, graph.Exact)
	for i, w := range width {
		b.Level = i
		name := fmt.Sprintf("encoder.down_blocks.%d", i)
		for j := range k.LayersPerBlock {
			h = b.Resnet(fmt.Sprintf("%s.resnets.%d", name, j), h, w, engine.Resnet{})
		}
		if i < last {
			h = b.Down(name+".downsamplers.0.conv", h, w, 0)
		}
	}
	h = k.middle(b, "encoder.mid_block", h)
	out := k.moments
	if k.quant && k.moments == k.latent { // VQModel: quant_conv changes the width
		out = k.LatentChannels
	}
	h = b.Conv("encoder.conv_out", graph.Source{X: h, Norm: b.Norm("encoder.conv_norm_out", h, graph.Value{}), Act: b.Act}, out, 3, graph.Exact)
	if k.quant {
		h = b.Conv("quant_conv", graph.From(h), k.moments, 1, graph.Exact)
	}
	return h
}

func (k kl) decode(b *engine.Blocks, z graph.Value) graph.Value {
	k.setup(b)
	width, last := k.BlockOutChannels, len(k.BlockOutChannels)-1
	b.Level = last
	if k.postQuant {
		z = b.Conv("post_quant_conv", graph.From(z), k.LatentChannels, 1, graph.Exact)
	}
	h := b.Conv("decoder.conv_in", graph.From(z), width[last], 3, graph.Exact)
	h = k.middle(b, "decoder.mid_block", h)
	for i := range width {
		name, w := fmt.Sprintf("decoder.up_blocks.%d", i), width[last-i]
		for j := range k.LayersPerBlock + 1 {
			h = b.Resnet(fmt.Sprintf("%s.resnets.%d", name, j), h, w, engine.Resnet{})
		}
		if i < last {
			b.Level--
			h = b.Conv(name+".upsamplers.0.conv", graph.Source{X: h, Up: true}, w, 3)
		}
	}
	return b.Conv("decoder.conv_out", graph.Source{X: h, Norm: b.Norm("decoder.conv_norm_out", h, graph.Value{}), Act: b.Act}, k.OutChannels, 3, graph.Exact)
}

// tiny is AutoencoderTiny's pair of networks. Layers are numbered as in a
// sequence in which activations and upsamplings count.
type tiny struct {
	*diffusers.AutoencoderTinyConfig
}

// block is relu(conv act conv act conv (x) + x).
func (t tiny) block(b *engine.Blocks, name string, x graph.Value) graph.Value {
	h := x
	for _, part := range []string{".conv.0", ".conv.2"} {
		h = b.Activate(name+part, b.Conv(name+part, graph.From(h), x.C, 3), b.Act)
	}
	h = b.Graph.Conv(b.Layers.Conv(name+".conv.4", b.Spec(x.C, x.C, 3)), graph.From(h), graph.Epilogue{Residual: x})
	return b.Activate(name, h, kernels.ReLU)
}

func (t tiny) encode(b *engine.Blocks, x graph.Value) graph.Value {
	h := b.Affine("encoder.range", x, 0.5, 0.5)
	n := 0
	layer := func() string {
		n++
		return fmt.Sprintf("encoder.layers.%d", n-1)
	}
	for i, w := range t.EncoderBlockOutChannels {
		if i == 0 {
			h = b.Conv(layer(), graph.From(h), w, 3)
		} else {
			h = b.Down(layer(), h, w, 1)
			b.Level++
		}
		for range t.NumEncoderBlocks[i] {
			h = t.block(b, layer(), h)
		}
	}
	return b.Conv(layer(), graph.From(h), t.LatentChannels, 3)
}

func (t tiny) decode(b *engine.Blocks, z graph.Value) graph.Value {
	last := len(t.DecoderBlockOutChannels) - 1
	b.Level = last
	n := 0
	layer := func() string {
		n++
		return fmt.Sprintf("decoder.layers.%d", n-1)
	}
	h := b.Clamp("decoder.clamp", z, t.LatentMagnitude)
	h = b.Conv(layer(), graph.From(h), t.DecoderBlockOutChannels[0], 3)
	h = b.Activate(layer(), h, b.Act)
	for i, w := range t.DecoderBlockOutChannels {
		for range t.NumDecoderBlocks[i] {
			h = t.block(b, layer(), h)
		}
		if i < last {
			layer() // upsampling
			b.Level--
			h = b.Conv(layer(), graph.Source{X: h, Up: true}, w, 3)
		} else {
			h = b.Conv(layer(), graph.From(h), t.OutChannels, 3)
		}
	}
	return b.Affine("decoder.range", h, 2, -1)
}
