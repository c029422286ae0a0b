package metrics

import (
	"fmt"
	"math"
)

// Pixel is the type of an image sample.
type Pixel interface{ ~uint8 | ~float32 | ~float64 }

// Image is an h x w picture with interleaved channels: sample (y, x, c) is
// Pix[(y*W+x)*C+c].
type Image[T Pixel] struct {
	H, W, C int
	Pix     []T
}

func (m Image[T]) check() error {
	if m.H < 1 || m.W < 1 || m.C < 1 || len(m.Pix) != m.H*m.W*m.C {
		return fmt.Errorf("metrics: image: %w: %d samples for %d x %d x %d", ErrDims, len(m.Pix), m.H, m.W, m.C)
	}
	return nil
}

// plane is one channel as float64.
func (m Image[T]) plane(c int) plane {
	p := plane{m.H, m.W, make([]float64, m.H*m.W)}
	for i := range p.v {
		p.v[i] = float64(m.Pix[i*m.C+c])
	}
	return p
}

type plane struct {
	h, w int
	v    []float64
}

func checkImages[T Pixel](a, b Image[T], peak float64) error {
	if err := a.check(); err != nil {
		return err
	}
	if err := b.check(); err != nil {
		return err
	}
	if a.H != b.H || a.W != b.W || a.C != b.C {
		return fmt.Errorf("metrics: images: %w: %d x %d x %d and %d x %d x %d", ErrDims, a.H, a.W, a.C, b.H, b.W, b.C)
	}
	if !(peak > 0) {
		return fmt.Errorf("metrics: images: peak value %v", peak)
	}
	for i := range a.Pix {
		if d := float64(a.Pix[i]) - float64(b.Pix[i]); math.IsNaN(d) || math.IsInf(d, 0) {
			return fmt.Errorf("metrics: images: sample %d: %w", i, ErrNaN)
		}
	}
	return nil
}

// PSNR is the peak signal-to-noise ratio 10 log10(peak²/MSE) in dB; +Inf for
// equal images. peak is the range of the samples: 255 for bytes, 2 for [-1,1].
func PSNR[T Pixel](a, b Image[T], peak float64) (float64, error) {
	if err := checkImages(a, b, peak); err != nil {
		return 0, err
	}
	sum := 0.0
	for i, v := range a.Pix {
		d := float64(v) - float64(b.Pix[i])
		sum += d * d
	}
	return 10 * math.Log10(peak*peak/(sum/float64(len(a.Pix)))), nil
}

// SSIM is the structural similarity of Wang et al. (2004) in its original
// form: Gaussian window 11 x 11 with σ = 1.5, K1 = 0.01, K2 = 0.03, biased
// local moments,
//
//	(2 μx μy + C1)(2 σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2))
//
// averaged over the positions where the window fits and over channels. Images
// must be at least 11 x 11.
func SSIM[T Pixel](a, b Image[T], peak float64) (float64, error) {
	if err := checkImages(a, b, peak); err != nil {
		return 0, err
	}
	if min(a.H, a.W) < ssimWindow {
		return 0, fmt.Errorf("metrics: SSIM of %d x %d images: the window is %d x %d", a.H, a.W, ssimWindow, ssimWindow)
	}
	sum := 0.0
	for c := range a.C {
		s, _ := ssim(a.plane(c), b.plane(c), peak)
		sum += s
	}
	return sum / float64(a.C), nil
}

// MSSSIM is the multi-scale SSIM (Wang, Simoncelli and Bovik, "Multiscale
// structural similarity", 2003): the contrast-structure means of all scales
// but the last and the SSIM of the last, raised to the weights and multiplied,
// per channel, then averaged. Scales are 2 x 2 means; where a side is odd the
// first row and column are repeated before. Negative means count as zero. nil
// weights are the paper's 0.0448, 0.2856, 0.3001, 0.2363, 0.1333. The smaller
// side must be at least 11·2^(scales-1), 176 for five.
func MSSSIM[T Pixel](a, b Image[T], peak float64, weights []float64) (float64, error) {
	if err := checkImages(a, b, peak); err != nil {
		return 0, err
	}
	if weights == nil {
		weights = []float64{0.0448, 0.2856, 0.3001, 0.2363, 0.1333}
	}
	if need := ssimWindow << (len(weights) - 1); len(weights) == 0 || min(a.H, a.W) < need {
		return 0, fmt.Errorf("metrics: MS-SSIM with %d scales of %d x %d images", len(weights), a.H, a.W)
	}
	sum := 0.0
	for c := range a.C {
		x, y := a.plane(c), b.plane(c)
		product := 1.0
		for k, w := range weights {
			if k > 0 {
				x, y = x.half(), y.half()
			}
			s, cs := ssim(x, y, peak)
			if k < len(weights)-1 {
				s = cs
			}
			product *= math.Pow(max(s, 0), w)
		}
		sum += product
	}
	return sum / float64(a.C), nil
}

const ssimWindow = 11

// ssim returns the mean SSIM and the mean of its contrast-structure factor.
func ssim(x, y plane, peak float64) (s, cs float64) {
	var win [ssimWindow]float64
	sum := 0.0
	for i := range win {
		d := float64(i - ssimWindow/2)
		win[i] = math.Exp(-d * d / (2 * 1.5 * 1.5))
		sum += win[i]
	}
	for i := range win {
		win[i] /= sum
	}
	c1, c2 := 0.01*peak, 0.03*peak
	c1, c2 = c1*c1, c2*c2
	mul := func(a, b plane) plane {
		out := plane{a.h, a.w, make([]float64, len(a.v))}
		for i, v := range a.v {
			out.v[i] = v * b.v[i]
		}
		return out
	}
	mx, my := x.blur(win[:]), y.blur(win[:])
	xx, yy, xy := mul(x, x).blur(win[:]), mul(y, y).blur(win[:]), mul(x, y).blur(win[:])
	for i, ux := range mx.v {
		uy := my.v[i]
		structure := (2*(xy.v[i]-ux*uy) + c2) / ((xx.v[i] - ux*ux) + (yy.v[i] - uy*uy) + c2)
		cs += structure
		s += structure * (2*ux*uy + c1) / (ux*ux + uy*uy + c1)
	}
	n := float64(len(mx.v))
	return s / n, cs / n
}

// blur is the separable correlation with win where it fits.
func (p plane) blur(win []float64) plane {
	k := len(win)
	mid := plane{p.h, p.w - k + 1, make([]float64, p.h*(p.w-k+1))}
	for y := range mid.h {
		for x := range mid.w {
			s := 0.0
			for i, w := range win {
				s += w * p.v[y*p.w+x+i]
			}
			mid.v[y*mid.w+x] = s
		}
	}
	out := plane{p.h - k + 1, mid.w, make([]float64, (p.h-k+1)*mid.w)}
	for y := range out.h {
		for x := range out.w {
			s := 0.0
			for i, w := range win {
				s += w * mid.v[(y+i)*mid.w+x]
			}
			out.v[y*out.w+x] = s
		}
	}
	return out
}

// half is the 2 x 2 mean; a plane with an odd side first gets its first row
// and column repeated (both, and what does not fill a block is left out).
func (p plane) half() plane {
	off := 0
	if p.h%2 == 1 || p.w%2 == 1 {
		off = 1
	}
	out := plane{(p.h + off) / 2, (p.w + off) / 2, nil}
	out.v = make([]float64, out.h*out.w)
	at := func(y, x int) float64 { return p.v[max(0, y-off)*p.w+max(0, x-off)] }
	for y := range out.h {
		for x := range out.w {
			out.v[y*out.w+x] = (at(2*y, 2*x) + at(2*y, 2*x+1) + at(2*y+1, 2*x) + at(2*y+1, 2*x+1)) / 4
		}
	}
	return out
}
