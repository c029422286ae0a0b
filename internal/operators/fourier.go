package operators

import (
	"math"
	"math/cmplx"

	"gonum.org/v1/gonum/dsp/fourier"
	"gonum.org/v1/gonum/mat"
)

// fft2 transforms an h x w array in place with the orthonormal discrete Fourier transform, or its inverse.
func fft2(x []complex128, h, w int, inverse bool) {
	norm := complex(1/math.Sqrt(float64(h*w)), 0)
	line := func(f *fourier.CmplxFFT, v []complex128) {
		if inverse {
			f.Sequence(v, v)
		} else {
			f.Coefficients(v, v)
		}
	}
	rows := fourier.NewCmplxFFT(w)
	for i := range h {
		line(rows, x[i*w:(i+1)*w])
	}
	cols, v := fourier.NewCmplxFFT(h), make([]complex128, h)
	for j := range w {
		for i := range v {
			v[i] = x[i*w+j]
		}
		line(cols, v)
		for i := range v {
			x[i*w+j] = v[i] * norm
		}
	}
}

// circulant is a convolution with wrapped ends: diagonal in Fourier space. V is the real Fourier basis: for a pair of
// frequencies k and -k it holds sqrt 2 times the real and the imaginary part, and U is V turned by the phase of the
// kernel's transform.
type circulant struct {
	base
	k []complex128 // transform of the kernel: the eigenvalues
	s []float64
}

// newCirculant takes a kernel as weights of displacements (dy, dx).
func newCirculant(name string, in []int, kernel map[[2]int]float64, cutoff float64) (*circulant, error) {
	c, h, w, err := image(in)
	if err != nil {
		return nil, err
	}
	o := &circulant{base: base{name, in, in}, k: make([]complex128, h*w), s: make([]float64, c*h*w)}
	for d, v := range kernel {
		y, x := ((d[0]%h)+h)%h, ((d[1]%w)+w)%w
		o.k[y*w+x] += complex(v, 0)
	}
	fft2(o.k, h, w, false)
	for i := range o.k {
		o.k[i] *= complex(math.Sqrt(float64(h*w)), 0)
	}
	for i := range o.s {
		o.s[i] = cmplx.Abs(o.k[i%(h*w)])
	}
	cut(o.s, math.Max(cutoff, rounding))
	return o, nil
}

// multiply writes F^-1 f(k) F x for every channel.
func (o *circulant) multiply(dst, x []float64, f func(complex128) complex128) {
	h, w := o.in[1], o.in[2]
	z := make([]complex128, h*w)
	for c := range len(x) / (h * w) {
		part := x[c*h*w : (c+1)*h*w]
		for i, v := range part {
			z[i] = complex(v, 0)
		}
		fft2(z, h, w, false)
		for i := range z {
			z[i] *= f(o.k[i])
		}
		fft2(z, h, w, true)
		for i, v := range z {
			dst[c*h*w+i] = real(v)
		}
	}
}

func (o *circulant) Apply(y, x []float64) {
	o.multiply(y, x, func(k complex128) complex128 { return k })
}
func (o *circulant) Adjoint(x, y []float64) { o.multiply(x, y, cmplx.Conj) }
func (o *circulant) VJP(g, _, u []float64)  { o.Adjoint(g, u) }
func (o *circulant) Singular() []float64    { return o.s }

// opposite is the place of frequency -k.
func opposite(i, h, w int) int { return (h-i/w)%h*w + (w-i%w)%w }

// coefficients writes the real Fourier coefficients of x, turned back by the kernel's phase where turn is set.
func (o *circulant) coefficients(c, x []float64, turn bool) {
	h, w := o.in[1], o.in[2]
	z := make([]complex128, h*w)
	for k := range len(x) / (h * w) {
		for i, v := range x[k*h*w : (k+1)*h*w] {
			z[i] = complex(v, 0)
		}
		fft2(z, h, w, false)
		d := c[k*h*w : (k+1)*h*w]
		for i := range z {
			if turn {
				if o.s[i] == 0 {
					z[i] = 0
				} else {
					z[i] *= cmplx.Conj(o.k[i]) / complex(cmplx.Abs(o.k[i]), 0)
				}
			}
			switch j := opposite(i, h, w); {
			case j == i:
				d[i] = real(z[i])
			case i < j:
				d[i], d[j] = math.Sqrt2*real(z[i]), math.Sqrt2*imag(z[i])
			}
		}
	}
}

func (o *circulant) ToV(c, x []float64) { o.coefficients(c, x, false) }
func (o *circulant) ToU(c, y []float64) { o.coefficients(c, y, true) }

func (o *circulant) FromV(x, c []float64) {
	h, w := o.in[1], o.in[2]
	z := make([]complex128, h*w)
	for k := range len(x) / (h * w) {
		d := c[k*h*w : (k+1)*h*w]
		for i := range z {
			switch j := opposite(i, h, w); {
			case j == i:
				z[i] = complex(d[i], 0)
			case i < j:
				z[i] = complex(d[i]/math.Sqrt2, d[j]/math.Sqrt2)
				z[j] = cmplx.Conj(z[i])
			}
		}
		fft2(z, h, w, true)
		for i, v := range z {
			x[k*h*w+i] = real(v)
		}
	}
}

// line is the kernel of a motion by length pixels at an angle (degrees, anticlockwise from the x axis), centred, each
// point of the path shared by its four neighbours.
func line(length, angle float64) map[[2]int]float64 {
	const points = 64 // per pixel
	n := max(1, int(math.Ceil(length*points)))
	sin, cos := math.Sincos(angle * math.Pi / 180)
	out := map[[2]int]float64{}
	for i := range n {
		t := ((float64(i)+0.5)/float64(n) - 0.5) * length
		x, y := t*cos, -t*sin
		x0, y0 := math.Floor(x), math.Floor(y)
		fx, fy := x-x0, y-y0
		for k, f := range [4]float64{(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx} {
			if f > 0 {
				out[[2]int{int(y0) + k/2, int(x0) + k%2}] += f / float64(n)
			}
		}
	}
	return out
}

// sensing keeps some coefficients of a random orthogonal transform: signs, then a two-dimensional cosine transform of
// every channel, then a random choice. S is 0 or 1.
type sensing struct {
	mask   // of the coefficients
	signs  []float64
	dh, dw *mat.Dense // cosine transforms, row k is the k-th basis vector
}

func newSensing(name string, in []int, ratio float64, seed uint64) (*sensing, error) {
	c, h, w, err := image(in)
	if err != nil {
		return nil, err
	}
	n := c * h * w
	o := &sensing{mask: mask{base: base{name: name, in: in}, s: make([]float64, n)}, signs: make([]float64, n), dh: cosines(h), dw: cosines(w)}
	for i := range o.signs {
		o.signs[i] = -1
	}
	for _, i := range choose(n, n/2, seed, 0) {
		o.signs[i] = 1
	}
	o.at = choose(n, max(1, int(math.Round(ratio*float64(n)))), seed, 1)
	for _, i := range o.at {
		o.s[i] = 1
	}
	o.out = []int{len(o.at)}
	return o, nil
}

// cosines is the orthonormal DCT-II of length n.
func cosines(n int) *mat.Dense {
	d := mat.NewDense(n, n, nil)
	for k := range n {
		for i := range n {
			v := math.Sqrt(2 / float64(n))
			if k == 0 {
				v = math.Sqrt(1 / float64(n))
			}
			d.Set(k, i, v*math.Cos(math.Pi*float64(k)*(float64(i)+0.5)/float64(n)))
		}
	}
	return d
}

func (o *sensing) ToV(c, x []float64) {
	v := make([]float64, len(x))
	for i := range x {
		v[i] = o.signs[i] * x[i]
	}
	both(c, o.in[1], o.in[2], o.dh, v, mat.DenseCopyOf(o.dw.T()))
}

func (o *sensing) FromV(x, c []float64) {
	both(x, o.in[1], o.in[2], mat.DenseCopyOf(o.dh.T()), c, o.dw)
	for i := range x {
		x[i] *= o.signs[i]
	}
}

func (o *sensing) Apply(y, x []float64) {
	c := make([]float64, len(x))
	o.ToV(c, x)
	o.mask.Apply(y, c)
}

func (o *sensing) Adjoint(x, y []float64) {
	c := make([]float64, len(x))
	o.mask.Adjoint(c, y)
	o.FromV(x, c)
}

func (o *sensing) VJP(g, _, u []float64) { o.Adjoint(g, u) }

// Picture shows A^T y.
func (o *sensing) Picture(y []float64) ([]float64, []int) {
	x := make([]float64, len(o.s))
	o.Adjoint(x, y)
	return x, o.in
}
