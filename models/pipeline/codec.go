package pipeline

import (
	"context"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/models/diffusers"
)

// Codec turns the latents that a network denoises into pictures and back
// (samplers.Codec). The network's latents are
//
//	z = (mean - Shift) Scale
//
// of the autoencoder's.
type Codec struct {
	Autoencoder
	Config       diffusers.Config // of the autoencoder
	Scale, Shift float64
	// Tile is the side of the squares of a latent that are decoded one by one
	// where a latent is larger, so that memory does not grow with the picture;
	// 0 decodes everything at once. Neighbours overlap by a quarter and are
	// blended there.
	Tile int
	// Before is called before Decode, to make room for it; may be nil.
	Before func()
}

// Autoencoder makes latents (N, C, h, w) of pictures and pictures of latents:
// autoencoder.Autoencoder, or the networks of an ONNX folder.
type Autoencoder interface {
	Latent() int   // channels of a latent
	Pictures() int // channels of a picture
	Factor() int   // pixels of a picture's side for one of a latent's
	// Moments tells whether Encode gives mean and log variance, 2 Latent
	// channels.
	Moments() bool
	// Encoded gives the size of the latents of pictures of h by w, or why it
	// does not take those.
	Encoded(h, w int) (lh, lw int, err error)
	Encode(ctx context.Context, dst, pictures []float64, n, h, w int) error
	Decode(ctx context.Context, dst, latents []float64, n, h, w int) error
}

// NewCodec reads scale and shift from the configuration of an autoencoder.
func NewCodec(a Autoencoder, cfg diffusers.Config) (*Codec, error) {
	c := &Codec{Autoencoder: a, Config: cfg, Scale: 1}
	switch cfg := cfg.(type) {
	case *diffusers.AutoencoderKLConfig:
		c.Scale, c.Shift = cfg.ScalingFactor, cfg.ShiftFactor
		if cfg.LatentsMean != nil || cfg.LatentsStd != nil {
			return nil, fmt.Errorf("pipeline: latents_mean and latents_std of the autoencoder are not supported")
		}
	case *diffusers.AutoencoderTinyConfig:
		c.Scale, c.Shift = cfg.ScalingFactor, cfg.ShiftFactor
	case *diffusers.VQConfig:
		c.Scale = cfg.ScalingFactor
	}
	return c, nil
}

// DecodeLate implements models.Decoder, without tiles.
func (c *Codec) DecodeLate(ctx context.Context, z *tensor.Dense, cotangent func(x *tensor.Dense) (*tensor.Dense, error), grad *tensor.Dense) error {
	in, err := c.latents(z)
	if err != nil {
		return err
	}
	s := z.Shape()
	n, h, w := s[0], s[2], s[3]
	d, ok := c.Autoencoder.(interface {
		DecodeLate(ctx context.Context, grad, pictures, latents []float64, n, h, w int, cotangent func() ([]float64, error)) error
	})
	if !ok {
		return fmt.Errorf("pipeline: the autoencoder runs forward only: there is no gradient through its pictures")
	}
	x := models.New(n, c.Pictures(), h*c.Factor(), w*c.Factor())
	g := models.Data(grad)
	err = d.DecodeLate(ctx, g, models.Data(x), in, n, h, w, func() ([]float64, error) {
		t, err := cotangent(x)
		if err != nil {
			return nil, err
		}
		return models.Data(t), nil
	})
	if err != nil {
		return fmt.Errorf("pipeline: %w", err)
	}
	for i := range g {
		g[i] /= c.Scale
	}
	return nil
}

// latents are the autoencoder's own.
func (c *Codec) latents(z *tensor.Dense) ([]float64, error) {
	s := z.Shape()
	if len(s) != 4 || s[1] != c.Latent() {
		return nil, fmt.Errorf("pipeline: latents of shape %v, the autoencoder takes (batch, %d, height, width)", s, c.Latent())
	}
	in := make([]float64, len(models.Data(z)))
	for i, v := range models.Data(z) {
		in[i] = v/c.Scale + c.Shift
	}
	return in, nil
}

// large is how much activation memory an autoencoder keeps from one call to
// the next.
const large = 256 << 20

// Decode turns latents (N, C, h, w) into pictures in about [-1, 1].
func (c *Codec) Decode(ctx context.Context, z *tensor.Dense) (*tensor.Dense, error) {
	in, err := c.latents(z)
	if err != nil {
		return nil, err
	}
	if c.Before != nil {
		c.Before()
	}
	if a, ok := c.Autoencoder.(interface{ ReleaseOver(bytes int) }); ok {
		defer a.ReleaseOver(large)
	}
	s := z.Shape()
	n, h, w := s[0], s[2], s[3]
	f := c.Factor()
	channels := c.Pictures()
	out := models.New(n, channels, h*f, w*f)
	if c.Tile == 0 || (h <= c.Tile && w <= c.Tile) {
		if err := c.Autoencoder.Decode(ctx, models.Data(out), in, n, h, w); err != nil {
			return nil, err
		}
		return out, nil
	}
	return out, c.tiles(ctx, models.Data(out), in, n, channels, h, w)
}

// tiles decodes square by square and blends them with weights that rise from
// the edge over the overlap.
func (c *Codec) tiles(ctx context.Context, dst, z []float64, n, channels, h, w int) error {
	f, latent := c.Factor(), c.Latent()
	th, tw := min(c.Tile, h), min(c.Tile, w)
	weight := make([]float64, h*f*w*f)
	part, picture := make([]float64, latent*th*tw), make([]float64, channels*th*f*tw*f)
	for i := range n {
		clear(weight)
		for _, y := range starts(h, th) {
			for _, x := range starts(w, tw) {
				for k := range latent {
					for r := range th {
						copy(part[(k*th+r)*tw:][:tw], z[((i*latent+k)*h+y+r)*w+x:])
					}
				}
				if err := c.Autoencoder.Decode(ctx, picture, part, 1, th, tw); err != nil {
					return err
				}
				for r := range th * f {
					wy := ramp(r, th*f, y > 0, y+th < h)
					for s := range tw * f {
						g := wy * ramp(s, tw*f, x > 0, x+tw < w)
						weight[(y*f+r)*w*f+x*f+s] += g
						for k := range channels {
							dst[((i*channels+k)*h*f+y*f+r)*w*f+x*f+s] += g * picture[(k*th*f+r)*tw*f+s]
						}
					}
				}
			}
		}
		for k := range channels {
			for p, g := range weight {
				dst[(i*channels+k)*len(weight)+p] /= g
			}
		}
	}
	return nil
}

// starts are the first rows of tiles that cover n rows, a quarter of a tile
// shared with the next.
func starts(n, tile int) []int {
	var out []int
	for at := 0; at+tile < n; at += tile - tile/4 {
		out = append(out, at)
	}
	return append(out, n-tile)
}

// ramp is the weight of row i of n: it rises over a quarter of the tile where
// another one lies before, and falls where one lies behind.
func ramp(i, n int, before, behind bool) float64 {
	g, over := 1.0, float64(n/4)
	if before {
		g = min(g, (float64(i)+0.5)/over)
	}
	if behind {
		g = min(g, (float64(n-i)-0.5)/over)
	}
	return g
}

// Encode turns pictures in [-1, 1] into latents: the mean where the
// autoencoder gives a distribution.
func (c *Codec) Encode(ctx context.Context, x *tensor.Dense) (*tensor.Dense, error) {
	mean, _, err := c.Posterior(ctx, x)
	return mean, err
}

// Posterior is the Gaussian of the latents of pictures in [-1, 1], mean and
// standard deviation; std is nil where the autoencoder gives one answer.
func (c *Codec) Posterior(ctx context.Context, x *tensor.Dense) (mean, std *tensor.Dense, err error) {
	s := x.Shape()
	channels, outs := c.Pictures(), c.Latent()
	if c.Moments() {
		outs *= 2
	}
	if len(s) != 4 || s[1] != channels {
		return nil, nil, fmt.Errorf("pipeline: pictures of shape %v, the autoencoder takes (batch, %d, height, width)", s, channels)
	}
	h, w, err := c.Encoded(s[2], s[3])
	if err != nil {
		return nil, nil, fmt.Errorf("pipeline: %w", err)
	}
	n := s[0]
	moments := make([]float64, n*outs*h*w)
	if err := c.Autoencoder.Encode(ctx, moments, models.Data(x), n, s[2], s[3]); err != nil {
		return nil, nil, err
	}
	mean = models.New(n, c.Latent(), h, w)
	d, size := models.Data(mean), c.Latent()*h*w
	for i := range n {
		for j, v := range moments[i*outs*h*w:][:size] {
			d[i*size+j] = (v - c.Shift) * c.Scale
		}
	}
	if outs == c.Latent() {
		return mean, nil, nil
	}
	std = models.New(n, c.Latent(), h, w)
	d = models.Data(std)
	for i := range n {
		for j, v := range moments[i*outs*h*w:][size : 2*size] {
			d[i*size+j] = math.Exp(0.5*min(max(v, -30), 20)) * c.Scale
		}
	}
	return mean, std, nil
}
