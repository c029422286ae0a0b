package operators

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/mat"
)

// factor is a matrix with its singular value decomposition, B = U S V^T, with V square.
type factor struct{ b, u, v, bt, ut, vt *mat.Dense }

func newFactor(b *mat.Dense) (f factor, s []float64, err error) {
	var svd mat.SVD
	if !svd.Factorize(b, mat.SVDFull) {
		return f, nil, fmt.Errorf("the singular value decomposition of a %v matrix failed", b)
	}
	f = factor{b: b, u: &mat.Dense{}, v: &mat.Dense{}}
	svd.UTo(f.u)
	svd.VTo(f.v)
	f.bt, f.ut, f.vt = mat.DenseCopyOf(f.b.T()), mat.DenseCopyOf(f.u.T()), mat.DenseCopyOf(f.v.T())
	_, n := b.Dims()
	s = make([]float64, n)
	for i, v := range svd.Values(nil) {
		s[i] = v
	}
	return f, s, nil
}

// separable acts on the rows and on the columns of every channel: Y = B_h X B_w^T. The singular values are the products
// of those of the two, and V is the Kronecker product.
type separable struct {
	base
	h, w factor
	s    []float64
}

// newSeparable makes an operator of two matrices with at most as many rows as columns. cutoff is a share of the largest
// singular value below which they count as zero.
func newSeparable(name string, in []int, bh, bw *mat.Dense, cutoff float64) (*separable, error) {
	c, h, w, err := image(in)
	if err != nil {
		return nil, err
	}
	fh, sh, err := newFactor(bh)
	if err != nil {
		return nil, err
	}
	fw, sw, err := newFactor(bw)
	if err != nil {
		return nil, err
	}
	mh, _ := bh.Dims()
	mw, _ := bw.Dims()
	o := &separable{base: base{name, in, []int{c, mh, mw}}, h: fh, w: fw, s: make([]float64, c*h*w)}
	for i := range o.s {
		o.s[i] = sh[i/w%h] * sw[i%w]
	}
	cut(o.s, math.Max(cutoff, rounding))
	return o, nil
}

// both writes L X R into the top left corner of every channel of dst, whose channels have size height x width.
func both(dst []float64, height, width int, l *mat.Dense, x []float64, r *mat.Dense) {
	lh, h := l.Dims()
	w, rw := r.Dims()
	var half, whole mat.Dense
	for k := range len(x) / (h * w) {
		half.Mul(l, mat.NewDense(h, w, x[k*h*w:(k+1)*h*w]))
		whole.Mul(&half, r)
		for i := range lh {
			copy(dst[(k*height+i)*width:(k*height+i)*width+rw], whole.RawRowView(i))
		}
	}
}

func (o *separable) Apply(y, x []float64)   { both(y, o.out[1], o.out[2], o.h.b, x, o.w.bt) }
func (o *separable) Adjoint(x, y []float64) { both(x, o.in[1], o.in[2], o.h.bt, y, o.w.b) }
func (o *separable) VJP(g, _, u []float64)  { o.Adjoint(g, u) }
func (o *separable) Singular() []float64    { return o.s }
func (o *separable) ToV(c, x []float64)     { both(c, o.in[1], o.in[2], o.h.vt, x, o.w.v) }
func (o *separable) FromV(x, c []float64)   { both(x, o.in[1], o.in[2], o.h.v, c, o.w.vt) }

func (o *separable) ToU(c, y []float64) {
	clear(c)
	both(c, o.in[1], o.in[2], o.h.ut, y, o.w.u)
	for i, s := range o.s {
		if s == 0 {
			c[i] = 0
		}
	}
}

// average is the n/f x n matrix of means over f neighbours.
func average(n, f int) *mat.Dense {
	b := mat.NewDense(n/f, n, nil)
	for i := range n {
		b.Set(i/f, i, 1/float64(f))
	}
	return b
}

// bicubic is the n/f x n matrix of Keys' cubic convolution kernel with a = -1/2 (1981, IEEE ASSP 29), stretched by f
// against aliasing; weights that fall outside are dropped and the rest made to sum to 1.
func bicubic(n, f int) *mat.Dense {
	b := mat.NewDense(n/f, n, nil)
	for i := range n / f {
		centre, sum := (float64(i)+0.5)*float64(f)-0.5, 0.0
		row := b.RawRowView(i)
		for j := range row {
			row[j] = cubic((float64(j) - centre) / float64(f))
			sum += row[j]
		}
		for j := range row {
			row[j] /= sum
		}
	}
	return b
}

func cubic(x float64) float64 {
	const a = -0.5
	switch x = math.Abs(x); {
	case x < 1:
		return (a+2)*x*x*x - (a+3)*x*x + 1
	case x < 2:
		return a * (x*x*x - 5*x*x + 8*x - 4)
	}
	return 0
}

// gaussian is the n x n matrix of a blur with standard deviation std, cut at four of them, with mirrored ends
// (the pixel at the end is repeated).
func gaussian(n int, std float64) *mat.Dense {
	b := mat.NewDense(n, n, nil)
	r := int(math.Ceil(4 * std))
	sum := 0.0
	for d := -r; d <= r; d++ {
		sum += bell(d, std)
	}
	for i := range n {
		for d := -r; d <= r; d++ {
			j := mirror(i+d, n)
			b.Set(i, j, b.At(i, j)+bell(d, std)/sum)
		}
	}
	return b
}

func bell(d int, std float64) float64 {
	z := float64(d) / std
	return math.Exp(-z * z / 2)
}

// mirror folds an index back into [0, n), ends repeated: -1 is 0, n is n-1.
func mirror(i, n int) int {
	i = ((i % (2 * n)) + 2*n) % (2 * n)
	if i >= n {
		i = 2*n - 1 - i
	}
	return i
}
