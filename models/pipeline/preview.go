package pipeline

import (
	"context"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/mat"
	"gorgonia.org/tensor"

	"drift/internal/rng"
	"drift/models"
	"drift/models/diffusers"
)

// Linear is the cheapest picture of a latent: a pixel for each of its places, every colour a linear function of the
// channels there,
//
//	rgb_k = Bias_k + SUM_c Factors[c][k] z_c
//
// in [-1, 1], of latents as the network denoises them. A network looks at much more than one place to make a pixel, yet
// most of what colour and light a place gets is in its own channels.
type Linear struct {
	Factors [][]float64 // by channel
	Bias    []float64   // by colour
}

// Preview makes pictures (N, colours, h, w) of latents (N, C, h, w).
func (l *Linear) Preview(z *tensor.Dense) (*tensor.Dense, error) {
	s := z.Shape()
	if len(s) != 4 || s[1] != len(l.Factors) {
		return nil, fmt.Errorf("pipeline: latents of shape %v for a preview of %d channels", s, len(l.Factors))
	}
	n, pixels, colours := s[0], s[2]*s[3], len(l.Bias)
	out := models.New(n, colours, s[2], s[3])
	for i := range n {
		for k, b := range l.Bias {
			dst := models.Data(out)[(i*colours+k)*pixels:][:pixels]
			for j := range dst {
				dst[j] = b
			}
			for c, f := range l.Factors {
				for j, v := range models.Data(z)[(i*s[1]+c)*pixels:][:pixels] {
					dst[j] += f[k] * v
				}
			}
		}
	}
	return out, nil
}

// KnownLinear gives the published factors of an autoencoder's family, or nil: they are those of Stable Diffusion 1, XL, 3
// and Flux in ComfyUI (comfy/latent_formats.py, latent_rgb_factors), which fitted them to pictures.
func KnownLinear(cfg diffusers.Config) *Linear {
	c, ok := cfg.(*diffusers.AutoencoderKLConfig)
	if !ok || !slices.Equal(c.BlockOutChannels, []int{128, 256, 512, 512}) || c.OutChannels != 3 {
		return nil
	}
	for _, f := range families {
		if len(f.Factors) == c.LatentChannels && math.Abs(f.scale-c.ScalingFactor) < 1e-4 {
			return &f.Linear
		}
	}
	return nil
}

// families are told apart by the number of channels and the scaling factor.
var families = []struct {
	scale float64
	Linear
}{
	{0.18215, Linear{Bias: []float64{0, 0, 0}, Factors: [][]float64{
		{0.3512, 0.2297, 0.3227}, {0.3250, 0.4974, 0.2350}, {-0.2829, 0.1762, 0.2721}, {-0.2120, -0.2616, -0.7177}}}},
	{0.13025, Linear{Bias: []float64{0.1084, -0.0175, -0.0011}, Factors: [][]float64{
		{0.3651, 0.4232, 0.4341}, {-0.2533, -0.0042, 0.1068}, {0.1076, 0.1111, -0.0362}, {-0.3165, -0.2492, -0.2188}}}},
	{1.5305, Linear{Bias: []float64{0.2394, 0.2135, 0.1925}, Factors: [][]float64{
		{-0.0922, -0.0175, 0.0749}, {0.0311, 0.0633, 0.0954}, {0.1994, 0.0927, 0.0458}, {0.0856, 0.0339, 0.0902},
		{0.0587, 0.0272, -0.0496}, {-0.0006, 0.1104, 0.0309}, {0.0978, 0.0306, 0.0427}, {-0.0042, 0.1038, 0.1358},
		{-0.0194, 0.0020, 0.0669}, {-0.0488, 0.0130, -0.0268}, {0.0922, 0.0988, 0.0951}, {-0.0278, 0.0524, -0.0542},
		{0.0332, 0.0456, 0.0895}, {-0.0069, -0.0030, -0.0810}, {-0.0596, -0.0465, -0.0293}, {-0.1448, -0.1463, -0.1189}}}},
	{0.3611, Linear{Bias: []float64{-0.0329, -0.0718, -0.0851}, Factors: [][]float64{
		{-0.0346, 0.0244, 0.0681}, {0.0034, 0.0210, 0.0687}, {0.0275, -0.0668, -0.0433}, {-0.0174, 0.0160, 0.0617},
		{0.0859, 0.0721, 0.0329}, {0.0004, 0.0383, 0.0115}, {0.0405, 0.0861, 0.0915}, {-0.0236, -0.0185, -0.0259},
		{-0.0245, 0.0250, 0.1180}, {0.1008, 0.0755, -0.0421}, {-0.0515, 0.0201, 0.0011}, {0.0428, -0.0012, -0.0036},
		{0.0817, 0.0765, 0.0749}, {-0.1264, -0.0522, -0.1103}, {-0.0280, -0.0881, -0.0499}, {-0.1262, -0.0982, -0.0778}}}},
}

// Decoder is what FitLinear needs of a codec.
type Decoder interface {
	Decode(ctx context.Context, z *tensor.Dense) (*tensor.Dense, error)
}

// Latents of a fit: so many of so many places a side, and the side of the noise that they are smooth between.
const fitLatents, fitSide, fitNodes = 4, 16, 4

// FitLinear fits a Linear to a decoder by least squares: to the mean colour of the pixels that a place stands for, in
// pictures of latents of unit variance, smooth over a few places. The latents are always the same ones.
func FitLinear(ctx context.Context, d Decoder, channels int) (*Linear, error) {
	z := smooth(fitLatents, channels, fitSide, fitNodes)
	x, err := d.Decode(ctx, z)
	if err != nil {
		return nil, fmt.Errorf("pipeline: fitting a preview: %w", err)
	}
	s := x.Shape()
	colours, f := s[1], s[2]/fitSide
	if f < 1 || s[3] != f*fitSide || s[2] != f*fitSide {
		return nil, fmt.Errorf("pipeline: fitting a preview: pictures of %dx%d of latents of %dx%d", s[2], s[3], fitSide, fitSide)
	}
	places := fitSide * fitSide
	rows := fitLatents * places
	left, right := mat.NewDense(rows, channels+1, nil), mat.NewDense(rows, colours, nil)
	for i := range fitLatents {
		for p := range places {
			r := i*places + p
			for c := range channels {
				left.Set(r, c, models.Data(z)[(i*channels+c)*places+p])
			}
			left.Set(r, channels, 1)
			for k := range colours {
				sum := 0.0
				for y := range f {
					for _, v := range models.Data(x)[((i*colours+k)*s[2]+p/fitSide*f+y)*s[3]+p%fitSide*f:][:f] {
						sum += v
					}
				}
				right.Set(r, k, sum/float64(f*f))
			}
		}
	}
	var fit mat.Dense
	if err := fit.Solve(left, right); err != nil {
		return nil, fmt.Errorf("pipeline: fitting a preview: %w", err)
	}
	l := &Linear{Bias: slices.Clone(fit.RawRowView(channels))}
	for c := range channels {
		l.Factors = append(l.Factors, slices.Clone(fit.RawRowView(c)))
	}
	return l, nil
}

// smooth is n random arrays (channels, side, side), linear between noise at nodes x nodes points, of unit variance.
func smooth(n, channels, side, nodes int) *tensor.Dense {
	out := models.New(n, channels, side, side)
	d := models.Data(out)
	noise := make([]float64, nodes*nodes)
	for m := range n * channels {
		rng.Normal(noise, rng.Key{Image: uint64(m), Purpose: rng.PurposeProbe})
		for y := range side {
			for x := range side {
				u, v := float64(x*(nodes-1))/float64(side-1), float64(y*(nodes-1))/float64(side-1)
				i, j := min(int(u), nodes-2), min(int(v), nodes-2)
				u, v = u-float64(i), v-float64(j)
				sum, square := 0.0, 0.0
				for a, wa := range [2]float64{1 - v, v} {
					for b, wb := range [2]float64{1 - u, u} {
						sum += wa * wb * noise[(j+a)*nodes+i+b]
						square += wa * wb * wa * wb
					}
				}
				d[(m*side+y)*side+x] = sum / math.Sqrt(square)
			}
		}
	}
	return out
}
