package metrics

import (
	"fmt"
	"math"
)

// The resize in front of the extractor moves FID by more than most methods do,
// so the rules of the reference tools are repeated to the last bit. Their names
// for Identity.Resize:
const (
	ResizeTF1   = "tf1-bilinear"   // torch-fidelity, EDM, ADM: no half pixel, no antialias
	ResizeTorch = "torch-bilinear" // pytorch-fid: half pixel, no antialias
	ResizePIL   = "pil-float"      // clean-fid: antialiased when shrinking, float planes, clipped
)

// TF1Bilinear resizes as TensorFlow 1 did without align_corners: output
// position p reads input position p·(in/out), without a half-pixel offset and
// without a low-pass filter. All arithmetic is float32, positions included,
// first along x, then along y.
func TF1Bilinear(src Image[uint8], h, w int) (Image[float32], error) {
	return bilinear(src, h, w, func(in, out int) []tap32 {
		scale := float32(in) / float32(out)
		t := make([]tap32, out)
		for p := range t {
			at := float32(float32(p) * scale)
			lo := int(at)
			t[p] = tap32{lo, min(lo+1, in-1), float32(at - float32(lo))}
		}
		return t
	}, func(a, b, c, d, fx, fy float32) float32 {
		top, bottom := a+float32((b-a)*fx), c+float32((d-c)*fx)
		return top + float32((bottom-top)*fy)
	})
}

// TorchBilinear resizes as torch's interpolate(mode="bilinear",
// align_corners=False, antialias=False): output position p reads input
// position (p+½)·(in/out) - ½, clipped at zero. The float32 operations and
// their fusion are those of torch's kernel for interleaved channels on AVX2;
// its other kernels differ in the last bit.
func TorchBilinear(src Image[uint8], h, w int) (Image[float32], error) {
	return bilinear(src, h, w, func(in, out int) []tap32 {
		scale := float32(in) / float32(out)
		t := make([]tap32, out)
		for p := range t {
			at := max(0, fma32(scale, float32(p)+0.5, -0.5))
			lo := min(int(at), in-1)
			t[p] = tap32{lo, min(lo+1, in-1), min(max(float32(at-float32(lo)), 0), 1)}
		}
		return t
	}, func(a, b, c, d, fx, fy float32) float32 {
		gx, gy := 1-fx, 1-fy
		return fma32(float32(fy*fx), d, fma32(float32(fy*gx), c, fma32(float32(gy*gx), a, float32(float32(gy*fx)*b))))
	})
}

// fma32 is a·b + c with one rounding: the float64 product is exact.
func fma32(a, b, c float32) float32 { return float32(float64(float64(a)*float64(b)) + float64(c)) }

// tap32 mixes entries lo and hi with weight f on hi.
type tap32 struct {
	lo, hi int
	f      float32
}

// bilinear mixes the four neighbours a b / c d with the fractions fx and fy.
func bilinear(src Image[uint8], h, w int, taps func(in, out int) []tap32, mix func(a, b, c, d, fx, fy float32) float32) (Image[float32], error) {
	if err := src.check(); err != nil {
		return Image[float32]{}, err
	}
	if h < 1 || w < 1 {
		return Image[float32]{}, fmt.Errorf("metrics: resize to %d x %d", h, w)
	}
	ys, xs := taps(src.H, h), taps(src.W, w)
	out := Image[float32]{h, w, src.C, make([]float32, h*w*src.C)}
	at := func(y, x, c int) float32 { return float32(src.Pix[(y*src.W+x)*src.C+c]) }
	for y, ty := range ys {
		for x, tx := range xs {
			for c := range src.C {
				out.Pix[(y*w+x)*src.C+c] = mix(at(ty.lo, tx.lo, c), at(ty.lo, tx.hi, c), at(ty.hi, tx.lo, c), at(ty.hi, tx.hi, c), tx.f, ty.f)
			}
		}
	}
	return out, nil
}

// Filter is a resampling kernel of Pillow.
type Filter int

// Filters, with their support in input pixels (when enlarging).
const (
	Bicubic  Filter = iota // 2; a = -1/2; clean-fid's default
	Box                    // 1/2
	Bilinear               // 1
	Lanczos                // 3
)

func (f Filter) support() float64 { return [...]float64{2, 0.5, 1, 3}[f] }

// weight is the kernel; conversions keep products and sums from fusing.
func (f Filter) weight(x float64) float64 {
	switch f {
	case Bicubic:
		const a = -0.5
		switch x = math.Abs(x); {
		case x < 1:
			p := float64((a+2)*x) - (a + 3)
			p = float64(p * x)
			return float64(p*x) + 1
		case x < 2:
			p := float64((x-5)*x) + 8
			p = float64(p*x) - 4
			return p * a
		}
		return 0
	case Box:
		if x > -0.5 && x <= 0.5 {
			return 1
		}
		return 0
	case Bilinear:
		if x = math.Abs(x); x < 1 {
			return 1 - x
		}
		return 0
	}
	if -3 <= x && x < 3 {
		return sinc(x) * sinc(x/3)
	}
	return 0
}

func sinc(x float64) float64 {
	if x == 0 {
		return 1
	}
	x *= math.Pi
	return math.Sin(x) / x
}

// window is the filter for one output position: taps of input entries from lo.
type window struct {
	lo int
	w  []float64
}

// windows follows Pillow's precompute_coeffs: the filter is widened by in/out
// when shrinking, centred on (p+½)·in/out and normalised.
func (f Filter) windows(in, out int) []window {
	scale := float64(in) / float64(out)
	stretch := max(scale, 1)
	support := float64(f.support() * stretch)
	inv := 1 / stretch
	all := make([]window, out)
	for p := range all {
		centre := float64((float64(p) + 0.5) * scale)
		lo := max(int(centre-support+0.5), 0)
		hi := min(int(centre+support+0.5), in)
		w := make([]float64, hi-lo)
		sum := 0.0
		for k := range w {
			w[k] = f.weight(float64((float64(k+lo) - centre + 0.5) * inv))
			sum += w[k]
		}
		if sum != 0 {
			for k := range w {
				w[k] /= sum
			}
		}
		all[p] = window{lo, w}
	}
	return all
}

// Pillow resizes as Image.resize does, one axis after the other, skipping an
// axis that keeps its size.
//
// Since Pillow 13 y goes first where the height shrinks by more than twice as
// many rows as the width loses columns; before, x always went first. The order
// moves floats by a last bit, and bytes by several levels where the first pass
// overshoots [0,255].
type Pillow struct {
	Filter   Filter
	Before13 bool // x first always
}

// order returns the two passes as (size, down).
func (p Pillow) order(srcH, srcW, h, w int) [2]struct {
	n    int
	down bool
} {
	o := [2]struct {
		n    int
		down bool
	}{{w, false}, {h, true}}
	if !p.Before13 && srcH > h && srcH-h > 2*(srcW-w) {
		o[0], o[1] = o[1], o[0]
	}
	return o
}

func (p Pillow) check(src Image[uint8], h, w int) error {
	if err := src.check(); err != nil {
		return err
	}
	if h < 1 || w < 1 || p.Filter < Bicubic || p.Filter > Lanczos {
		return fmt.Errorf("metrics: resize to %d x %d with filter %d", h, w, p.Filter)
	}
	return nil
}

// Float resizes every channel as an 'F' plane: float32 between the passes, sums
// in float64. With clip, results are limited to [0,255]: clean-fid's clean
// mode, which does not round to bytes.
func (p Pillow) Float(src Image[uint8], h, w int, clip bool) (Image[float32], error) {
	if err := p.check(src, h, w); err != nil {
		return Image[float32]{}, err
	}
	out := Image[float32]{src.H, src.W, src.C, make([]float32, len(src.Pix))}
	for i, v := range src.Pix {
		out.Pix[i] = float32(v)
	}
	for _, o := range p.order(src.H, src.W, h, w) {
		out = pass(out, o.n, o.down, p.Filter, func(win window, at func(k int) float32) float32 {
			s := 0.0
			for k, wk := range win.w {
				s += float64(float64(at(k)) * wk)
			}
			return float32(s)
		})
	}
	if clip {
		for i, v := range out.Pix {
			out.Pix[i] = min(max(v, 0), 255)
		}
	}
	return out, nil
}

// Byte resizes bytes: weights in 22-bit fixed point, rounded to bytes after
// each pass.
func (p Pillow) Byte(src Image[uint8], h, w int) (Image[uint8], error) {
	if err := p.check(src, h, w); err != nil {
		return Image[uint8]{}, err
	}
	out := src
	for _, o := range p.order(src.H, src.W, h, w) {
		out = pass(out, o.n, o.down, p.Filter, func(win window, at func(k int) uint8) uint8 {
			s := int32(1 << 21)
			for k, wk := range win.w { // weights round half away from zero
				s += int32(at(k)) * int32(math.Copysign(math.Trunc(math.Abs(wk)*(1<<22)+0.5), wk))
			}
			return uint8(min(max(s>>22, 0), 255))
		})
	}
	return out, nil
}

// pass resizes one axis (y if down) to n entries.
func pass[T Pixel](in Image[T], n int, down bool, f Filter, sum func(win window, at func(k int) T) T) Image[T] {
	size, out := in.W, Image[T]{in.H, n, in.C, nil}
	if down {
		size, out = in.H, Image[T]{n, in.W, in.C, nil}
	}
	if size == n {
		return in
	}
	out.Pix = make([]T, out.H*out.W*out.C)
	wins := f.windows(size, n)
	for y := range out.H {
		for x := range out.W {
			p, step, from := x, in.C, y*in.W*in.C
			if down {
				p, step, from = y, in.W*in.C, x*in.C
			}
			win := wins[p]
			for c := range in.C {
				base := from + win.lo*step + c
				out.Pix[(y*out.W+x)*in.C+c] = sum(win, func(k int) T { return in.Pix[base+k*step] })
			}
		}
	}
	return out
}
