package job

import (
	"drift/models"
	"drift/samplers"
)

// Image is the picture that an image-to-image run starts from, as states.
type Image struct {
	Mean []float64 // the picture, or the mean of its latents
	Std  []float64 // standard deviation of the latents; nil: there is none
	// Sample draws the latents from their distribution, as diffusers does; else they are the mean.
	Sample bool
	// Pure starts from noise alone.
	Pure bool
	// Mask is 1 where a state is drawn and 0 where it is kept, one number per place (height, width); nil: all is drawn.
	// What is kept is blended in after every step, unless Paint is there.
	Mask []float64
	// Paint gives a network that was made for it the mask and the latents of the picture without what is drawn, for every
	// row: Masked, MaskedStd.
	Paint             func(func(models.Row) []float64)
	Masked, MaskedStd []float64
}

// start puts start, and what stays of the picture, into the problem. The draws come in diffusers' order: latents of the
// picture where they are needed, start, latents of the masked picture.
func (p *Plan) start(problem *samplers.Problem) {
	im, n := p.Image, p.Grid[p.First]
	w := len(im.Mean)
	rows := func() []float64 { return make([]float64, w*len(problem.Rows)) }
	start, x0, z := rows(), rows(), rows()
	latents := func(dst, mean, std []float64, d samplers.Draw) {
		if im.Sample && std != nil {
			d.Purpose = samplers.DrawEncode
			problem.Noise.Normal(dst, d)
		}
		for j, m := range mean {
			if im.Sample && std != nil {
				m += float64(std[j] * dst[j])
			}
			dst[j] = m
		}
	}
	beside := map[models.Row][]float64{}
	for k, row := range problem.Rows {
		d := samplers.Draw{Row: row, Slot: k, Step: -1, To: n.Ratio()}
		start, x0, z := start[k*w:(k+1)*w], x0[k*w:(k+1)*w], z[k*w:(k+1)*w]
		if !(im.Pure && im.Paint != nil) {
			latents(x0, im.Mean, im.Std, d)
		}
		noise := d
		noise.Purpose = samplers.DrawStart
		problem.Noise.Normal(z, noise)
		space, _ := p.Space.(samplers.Euclid)
		scale := space.Scale(n)
		for j := range start {
			if im.Pure {
				start[j] = scale * z[j]
			} else { // SDEdit (Meng et al. 2022)
				start[j] = float64(n.Alpha*x0[j]) + float64(n.Sigma*z[j])
			}
		}
		if im.Masked != nil {
			masked := make([]float64, len(im.Mask)+w)
			latents(masked[copy(masked, im.Mask):], im.Masked, im.MaskedStd, d)
			beside[row] = masked
		}
	}
	shape := append([]int{len(problem.Rows)}, p.Shape...)
	problem.Start = models.Wrap(start, shape...)
	switch {
	case im.Paint != nil:
		first := beside[problem.Rows[0]]
		im.Paint(func(r models.Row) []float64 {
			if v, ok := beside[r]; ok {
				return v
			}
			return first
		})
	case im.Mask != nil:
		mask := make([]float64, 0, w)
		for len(mask) < w {
			mask = append(mask, im.Mask...)
		}
		problem.Known = &samplers.Known{X0: models.Wrap(x0, shape...), Z: models.Wrap(z, shape...), Mask: mask}
	}
}

// StartAt returns the first step of an image-to-image run of n steps: strength 1 runs them all, 0 none. A part of a step
// is left out, or with up added, as diffusers' pipelines of flows do.
func StartAt(n int, strength float64, up bool) int {
	if up {
		return int(float64(n) - min(float64(n)*strength, float64(n)))
	}
	return n - min(int(float64(n)*strength), n)
}
