package operators

import (
	"math"
	"math/cmplx"

	"gonum.org/v1/gonum/mat"
)

// phase gives the moduli of the orthonormal Fourier transform of every channel, padded with zeros to a larger size
// (sides of one pixel are not).
type phase struct {
	base
	h, w int // padded
}

func newPhase(name string, in []int, oversample float64) (*phase, error) {
	c, h, w, err := image(in)
	if err != nil {
		return nil, err
	}
	grow := func(n int) int {
		if n == 1 {
			return 1
		}
		return int(math.Round(oversample * float64(n)))
	}
	o := &phase{h: grow(h), w: grow(w)}
	o.base = base{name, in, []int{c, o.h, o.w}}
	return o, nil
}

// transform gives the Fourier transform of channel k.
func (o *phase) transform(x []float64, k int) []complex128 {
	h, w := o.in[1], o.in[2]
	z := make([]complex128, o.h*o.w)
	for i := range h {
		for j := range w {
			z[i*o.w+j] = complex(x[(k*h+i)*w+j], 0)
		}
	}
	fft2(z, o.h, o.w, false)
	return z
}

func (o *phase) Apply(y, x []float64) {
	for k := range o.in[0] {
		for i, z := range o.transform(x, k) {
			y[k*o.h*o.w+i] = cmplx.Abs(z)
		}
	}
}

// VJP: |z| has the gradient z/|z|, taken as 0 at 0.
func (o *phase) VJP(g, x, u []float64) {
	h, w := o.in[1], o.in[2]
	for k := range o.in[0] {
		z := o.transform(x, k)
		for i, v := range z {
			if a := cmplx.Abs(v); a > 0 {
				z[i] = v * complex(u[k*o.h*o.w+i]/a, 0)
			}
		}
		fft2(z, o.h, o.w, true)
		for i := range h {
			for j := range w {
				g[(k*h+i)*w+j] = real(z[i*o.w+j])
			}
		}
	}
}

// Picture shows the logarithm of the moduli, frequency zero in the middle, black the smallest and white the largest.
func (o *phase) Picture(y []float64) ([]float64, []int) {
	out := make([]float64, len(y))
	lo, hi := math.Inf(1), math.Inf(-1)
	for i := range y {
		v := math.Log(math.Max(math.Abs(y[i]), 1e-3))
		lo, hi = math.Min(lo, v), math.Max(hi, v)
		k, r, c := i/(o.h*o.w), i/o.w%o.h, i%o.w
		out[(k*o.h+(r+o.h/2)%o.h)*o.w+(c+o.w/2)%o.w] = v
	}
	for i, v := range out {
		out[i] = 2*(v-lo)/math.Max(hi-lo, 1e-12) - 1
	}
	return out, o.out
}

// lightBlur blurs light and not pixel values, y = 1/g log(K exp(g x)): as if pixels were the logarithm of light, so that
// what is bright spreads over what is dark. For g -> 0 it is the linear blur K.
type lightBlur struct {
	base
	gain   float64
	kh, kw *mat.Dense
}

func (o *lightBlur) light(x []float64) (light, blurred []float64) {
	light, blurred = make([]float64, len(x)), make([]float64, len(x))
	for i, v := range x {
		light[i] = math.Exp(o.gain * v)
	}
	both(blurred, o.in[1], o.in[2], o.kh, light, mat.DenseCopyOf(o.kw.T()))
	return light, blurred
}

func (o *lightBlur) Apply(y, x []float64) {
	_, b := o.light(x)
	for i, v := range b {
		y[i] = math.Log(v) / o.gain
	}
}

func (o *lightBlur) VJP(g, x, u []float64) {
	l, b := o.light(x)
	for i := range b {
		b[i] = u[i] / b[i]
	}
	both(g, o.in[1], o.in[2], mat.DenseCopyOf(o.kh.T()), b, o.kw)
	for i := range g {
		g[i] *= l[i]
	}
}

// clip is a camera that saturates: y = min(max(f x, -1), 1). At the two corners the derivative is taken as 0.
type clip struct {
	base
	f float64
}

func (o *clip) Apply(y, x []float64) {
	for i, v := range x {
		y[i] = min(max(o.f*v, -1), 1)
	}
}

func (o *clip) VJP(g, x, u []float64) {
	for i, v := range x {
		g[i] = 0
		if math.Abs(o.f*v) < 1 {
			g[i] = o.f * u[i]
		}
	}
}

// jpeg rounds the cosine coefficients of 8 x 8 blocks as a baseline JPEG file does (the luminance table of its annex K
// for every channel, no subsampling of colours), and turns them back. Sides are padded to a multiple of 8 with their last
// pixel. The derivative of rounding is zero almost everywhere, so the VJP takes the rounding for the identity
// (straight-through), which leaves the adjoint of the padding and the cut.
type jpeg struct {
	base
	table [64]float64
	dct   *mat.Dense
}

// luminance is the table K.1 of ITU-T T.81.
var luminance = [64]float64{
	16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
	18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99}

func newJPEG(name string, in []int, quality int) (*jpeg, error) {
	if _, _, _, err := image(in); err != nil {
		return nil, err
	}
	o := &jpeg{base: base{name, in, in}, dct: cosines(8)}
	scale := 5000 / quality // the rule of libjpeg, in its integers
	if quality >= 50 {
		scale = 200 - 2*quality
	}
	for i, v := range luminance {
		o.table[i] = min(max(math.Floor((v*float64(scale)+50)/100), 1), 255)
	}
	return o, nil
}

func (o *jpeg) Apply(y, x []float64) {
	c, h, w := o.in[0], o.in[1], o.in[2]
	block, back := mat.NewDense(8, 8, nil), mat.NewDense(8, 8, nil)
	var half, coef mat.Dense
	for k := range c {
		for top := 0; top < h; top += 8 {
			for left := 0; left < w; left += 8 {
				for i := range 8 {
					for j := range 8 {
						block.Set(i, j, 127.5*x[(k*h+min(top+i, h-1))*w+min(left+j, w-1)])
					}
				}
				half.Mul(o.dct, block)
				coef.Mul(&half, o.dct.T())
				for i, q := range o.table {
					coef.Set(i/8, i%8, q*math.Round(coef.At(i/8, i%8)/q))
				}
				half.Mul(o.dct.T(), &coef)
				back.Mul(&half, o.dct)
				for i := range min(8, h-top) {
					for j := range min(8, w-left) {
						y[(k*h+top+i)*w+left+j] = back.At(i, j) / 127.5
					}
				}
			}
		}
	}
}

func (o *jpeg) VJP(g, _, u []float64) { copy(g, u) }
