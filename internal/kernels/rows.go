package kernels

import (
	"fmt"
	"math"
)

type rowKind uint8

const (
	rowApply rowKind = iota
	rowAct
	rowActVJP
	rowAdd
	rowGLU
	rowGLUVJP
	rowGate
	rowRotary
	rowSoftmax
	rowLayerNorm
	rowRMSNorm
	rowLayerNormVJP
	rowRMSNormVJP
	rowDown2
	rowGroupNormVJP
	rowAttentionVJP
)

// rowJob is every kernel whose items are independent runs of rows.
type rowJob struct {
	kind       rowKind
	o          *ops
	dst, a, b  []float32
	in         Input
	n, h, w, c int
	per        int // rows (or values) per item
	total      int
	rowNorm    RowNorm
	gamma      []float32
	beta       []float32
	eps        float64
	scale      float32
	act        Activation
	groups     int
	heads, ld  int // of HeadSpec; one head of tight rows elsewhere
	causal     bool
	values     []vjpValues // of groupNormVJP, by worker
}

// vjpValues are values that an activation's gradient is taken of together.
type vjpValues [2][1024]float32

// chunk is the number of values of an item of elementwise work.
const chunk = 1 << 14

// flat runs an elementwise job over total values.
func (p *Pool) flat(j rowJob, total int) {
	j.per, j.total = chunk, total
	p.rows(j, ceilDiv(total, chunk))
}

// byRows runs a job over m rows of c values.
func (p *Pool) byRows(j rowJob, m, c int) {
	j.per, j.total, j.c = max(1, chunk/max(c, 1)), m, c
	if j.heads == 0 {
		j.heads, j.ld = 1, c
	}
	p.rows(j, ceilDiv(m, j.per))
}

func (p *Pool) rows(j rowJob, items int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	j.o = p.ops
	if j.kind == rowGroupNormVJP {
		if p.values == nil {
			p.values = make([]vjpValues, p.workers)
		}
		j.values = p.values
	}
	p.row = j
	p.run(items, &p.row)
	p.row = rowJob{}
}

// Activate is dst[i] = act(src[i]); dst may be src.
func Activate(p *Pool, dst, src []float32, act Activation) {
	need("dst", dst, len(src))
	p.flat(rowJob{kind: rowAct, dst: dst, a: src, act: act}, len(src))
}

// ActivateVJP is dx[i] = dy[i] * act'(x[i]); dx may be dy.
func ActivateVJP(p *Pool, dx, dy, x []float32, act Activation) {
	need("dx", dx, len(x))
	need("dy", dy, len(x))
	p.flat(rowJob{kind: rowActVJP, dst: dx, a: dy, b: x, act: act}, len(x))
}

// Add is dst = (a + b) * scale; dst may be a or b. scale 0 means 1.
func Add(p *Pool, dst, a, b []float32, scale float32) {
	need("dst", dst, len(a))
	need("second summand", b, len(a))
	if scale == 0 {
		scale = 1
	}
	p.flat(rowJob{kind: rowAdd, dst: dst, a: a, b: b, scale: scale}, len(a))
}

// GLU is a gated linear unit's gate: it maps m rows of 2d values to rows of d,
// dst = src[:d] * act(src[d:]) (Shazeer 2020, arXiv:2002.05202, with the halves
// as diffusers has them). GELU makes it the GEGLU of Stable Diffusion, SiLU the
// gate of Sana's GLUMBConv; a T5 layer, which multiplies gelu(wi_0 x) by wi_1 x,
// is this over a [Linear] that holds wi_1 above wi_0. dst may not overlap src.
func GLU(p *Pool, dst, src []float32, m, d int, act Activation) {
	need("dst", dst, m*d)
	need("src", src, 2*m*d)
	p.byRows(rowJob{kind: rowGLU, dst: dst, a: src, act: act}, m, d)
}

// GLUVJP is the gradient of GLU's src (m, 2d) from dy (m, d).
func GLUVJP(p *Pool, dx, dy, src []float32, m, d int, act Activation) {
	need("dx", dx, 2*m*d)
	need("dy", dy, m*d)
	need("src", src, 2*m*d)
	p.byRows(rowJob{kind: rowGLUVJP, dst: dx, a: dy, b: src, act: act}, m, d)
}

// Gate is dst = x + gate*y for n*m rows of c values, or gate*y where x is nil:
// the gated residual of adaptive layer norms. gate is (c), or (n, c) for one
// vector per image; dst may be x or y.
func Gate(p *Pool, dst, x, y, gate []float32, n, m, c int) {
	need("dst", dst, n*m*c)
	need("y", y, n*m*c)
	if x != nil {
		need("x", x, n*m*c)
	}
	if gate == nil {
		panic("kernels: no gate")
	}
	p.byRows(rowJob{kind: rowGate, dst: dst, a: y, b: x, h: m, gamma: vector("gate", gate, n, c)}, n*m, c)
}

// MulAddRow is dst = x + y*g, or y*g where x is nil, on the calling goroutine:
// for functions that run in [Pool.Do]. dst may be x or y.
func (p *Pool) MulAddRow(dst, x, y, g []float32) { p.ops.mulAdd(dst, x, y, g) }

// Widen is dst[i] = src[i], of IEEE half precision (f16) or bfloat16, on the
// calling goroutine. src may be the back half of dst's memory.
func (p *Pool) Widen(dst []float32, src []uint16, f16 bool) {
	n := len(src) &^ 7
	if f16 {
		p.ops.widenF16(dst[:n], src[:n])
		widenF16Go(dst[n:], src[n:])
		return
	}
	p.ops.widenBF16(dst[:n], src[:n])
	widenBF16Go(dst[n:], src[n:])
}

// AddRow is dst = a + b on the calling goroutine; dst may be a or b.
func (p *Pool) AddRow(dst, a, b []float32) { p.ops.add(dst[:len(a)], a, b, 1) }

// ActivateVJPRow is dx[i] = dy[i] * act'(x[i]) on the calling goroutine; dx may
// be dy.
func (p *Pool) ActivateVJPRow(dx, dy, x []float32, act Activation) {
	p.ops.actVJP(dx[:len(x)], dy[:len(x)], x, act)
}

// Softmax is exp(scale*x) normalised over each of m rows of c values; dst may
// be src. scale 0 means 1.
func Softmax(p *Pool, dst, src []float32, m, c int, scale float32) {
	need("dst", dst, m*c)
	need("src", src, m*c)
	if scale == 0 {
		scale = 1
	}
	if scale < 0 {
		panic("kernels: negative softmax scale")
	}
	p.byRows(rowJob{kind: rowSoftmax, dst: dst, a: src, scale: scale}, m, c)
}

// RowNorm is a norm of rows of c values that is applied where an [Input] is
// read. Gamma and Beta are (c), or (n, c) for a norm modulated per image, or
// nil for 1 and 0.
type RowNorm struct {
	RMS         bool // see [RMSNorm]; else [LayerNorm]
	Eps         float64
	Gamma, Beta []float32 // Beta of a layer norm only
}

func (r *RowNorm) check(n, c int) {
	vector("gamma", r.Gamma, n, c)
	if vector("beta", r.Beta, n, c) != nil && r.RMS {
		panic("kernels: an RMS norm has no beta")
	}
}

func (r *RowNorm) perImage(c int) bool { return len(r.Gamma) > c || len(r.Beta) > c }

// row normalises a row of image n.
func (r *RowNorm) row(o *ops, dst, x []float32, n int) {
	c := len(x)
	gamma, beta := vectorRow(r.Gamma, n, c), vectorRow(r.Beta, n, c)
	if r.RMS {
		o.normRow(dst, x, 0, float32(1/math.Sqrt(float64(o.sumSq(x))/float64(c)+r.Eps)), gamma, beta)
		return
	}
	mean, m2 := o.moments(x)
	o.normRow(dst, x, mean, float32(1/math.Sqrt(float64(m2)/float64(c)+r.Eps)), gamma, beta)
}

// LayerNorm normalises each of n*m rows of c values:
// dst = (x - mean)/sqrt(var + eps)*gamma + beta. gamma and beta are (c), or
// (n, c) for a norm modulated per image, or nil for 1 and 0. dst may be src.
func LayerNorm(p *Pool, dst, src []float32, n, m, c int, eps float64, gamma, beta []float32) {
	need("dst", dst, n*m*c)
	need("src", src, n*m*c)
	r := RowNorm{Eps: eps, Gamma: gamma, Beta: beta}
	r.check(n, c)
	p.byRows(rowJob{kind: rowLayerNorm, dst: dst, a: src, h: m, rowNorm: r}, n*m, c)
}

// RMSNorm is dst = x/sqrt(mean(x^2) + eps)*gamma for each of n*m rows of c
// values (Zhang and Sennrich 2019, arXiv:1910.07467), gamma as in LayerNorm.
func RMSNorm(p *Pool, dst, src []float32, n, m, c int, eps float64, gamma []float32) {
	need("dst", dst, n*m*c)
	need("src", src, n*m*c)
	r := RowNorm{RMS: true, Eps: eps, Gamma: gamma}
	r.check(n, c)
	p.byRows(rowJob{kind: rowRMSNorm, dst: dst, a: src, h: m, rowNorm: r}, n*m, c)
}

func vector(what string, v []float32, n, c int) []float32 {
	if v != nil && len(v) != c && len(v) != n*c {
		panic(fmt.Sprintf("kernels: %s has %d values, needs %d or %d", what, len(v), c, n*c))
	}
	return v
}

// vectorRow gives the row of a (c) or (n, c) parameter that belongs to image n.
func vectorRow(v []float32, n, c int) []float32 {
	if len(v) > c {
		return v[n*c : (n+1)*c]
	}
	return v
}

// Apply writes the tensor that in stands for, of n images of h by w (before
// upsampling), to dst: concatenation, norm, activation and upsampling.
func Apply(p *Pool, dst []float32, in Input, n, h, w int) {
	c := in.channels()
	in.check(n, h, w, c)
	ho, wo := in.size(h, w)
	need("dst", dst, n*ho*wo*c)
	per := max(1, chunk/max(wo*c, 1))
	p.rows(rowJob{kind: rowApply, dst: dst, in: in, n: n, h: ho, w: wo, c: c, per: per, total: ho}, n*ceilDiv(ho, per))
}

// Down2 sums 2 by 2 blocks of n images of h by w (even) and multiplies by
// scale: 1/4 gives the mean, 1 the gradient of a nearest upsampling.
func Down2(p *Pool, dst, src []float32, n, h, w, c int, scale float32) {
	if h%2 != 0 || w%2 != 0 {
		panic(fmt.Sprintf("kernels: image %dx%d has no 2x2 blocks", h, w))
	}
	need("dst", dst, n*h*w*c/4)
	need("src", src, n*h*w*c)
	p.rows(rowJob{kind: rowDown2, dst: dst, a: src, w: w / 2, c: c, scale: scale, per: 1, total: n * h / 2}, n*h/2)
}

func (j *rowJob) do(worker, item int) {
	lo := item * j.per
	hi := min(lo+j.per, j.total)
	o, c := j.o, j.c
	switch j.kind {
	case rowApply:
		per := ceilDiv(j.h, j.per)
		n, y := item/per, item%per*j.per
		fillInput(o, j.dst[(n*j.h+y)*j.w*c:], &j.in, n, j.h, j.w, Pad{}, c, y, min(y+j.per, j.h), 0, j.w, j.w, F32)
	case rowAct:
		o.act(j.dst[lo:hi], j.a[lo:hi], j.act)
	case rowActVJP:
		o.actVJP(j.dst[lo:hi], j.a[lo:hi], j.b[lo:hi], j.act)
	case rowAdd:
		o.add(j.dst[lo:hi], j.a[lo:hi], j.b[lo:hi], j.scale)
	case rowGLU:
		s, d := &j.a[2*lo*c], &j.dst[lo*c]
		o.affineRows(d, &j.a[2*lo*c+c], c, 2*c, hi-lo, c, nil, nil, j.act)
		o.mulAddRows(d, nil, s, d, c*4, 0, 2*c*4, c*4, hi-lo, c)
	case rowGLUVJP:
		for m := lo; m < hi; m++ {
			dy, s, d := j.a[m*c:(m+1)*c], j.b[2*m*c:2*(m+1)*c], j.dst[2*m*c:2*(m+1)*c]
			o.act(d[:c], s[c:], j.act)
			o.mulAdd(d[:c], nil, dy, d[:c])
			o.mulAdd(d[c:], nil, dy, s[:c])
			o.actVJP(d[c:], d[c:], s[c:], j.act)
		}
	case rowGate:
		for m := lo; m < hi; m++ {
			var x []float32
			if j.b != nil {
				x = j.b[m*c : (m+1)*c]
			}
			o.mulAdd(j.dst[m*c:(m+1)*c], x, j.a[m*c:(m+1)*c], vectorRow(j.gamma, m/j.h, c))
		}
	case rowRotary:
		for m := lo; m < hi; m++ {
			j.rotary(m)
		}
	case rowSoftmax:
		for m := lo; m < hi; m++ {
			d := j.dst[m*c : (m+1)*c]
			if &d[0] != &j.a[m*c] {
				copy(d, j.a[m*c:])
			}
			sum := o.expRow(d, j.scale, o.maxRow(d)*j.scale)
			o.scale(d, 1/sum)
		}
	case rowLayerNorm:
		for m := lo; m < hi; m++ {
			j.rowNorm.row(o, j.dst[m*c:(m+1)*c], j.a[m*c:(m+1)*c], m/j.h)
		}
	case rowRMSNorm:
		for m := lo; m < hi; m++ {
			at := j.vector(m)
			j.rowNorm.row(o, j.dst[at:at+c], j.a[at:at+c], m/j.heads/j.h)
		}
	case rowLayerNormVJP:
		for m := lo; m < hi; m++ {
			x, dy, dx := j.b[m*c:(m+1)*c], j.a[m*c:(m+1)*c], j.dst[m*c:(m+1)*c]
			mean, m2 := o.moments(x)
			rstd := 1 / math.Sqrt(float64(m2)/float64(c)+j.eps)
			normVJP(dx, dy, x, float64(mean), rstd, vectorRow(j.gamma, m/j.h, c), true)
		}
	case rowRMSNormVJP:
		for m := lo; m < hi; m++ {
			at := j.vector(m)
			x, dy, dx := j.b[at:at+c], j.a[at:at+c], j.dst[at:at+c]
			rms := 1 / math.Sqrt(float64(o.sumSq(x))/float64(c)+j.eps)
			normVJP(dx, dy, x, 0, rms, vectorRow(j.gamma, m/j.heads/j.h, c), false)
		}
	case rowDown2:
		for r := lo; r < hi; r++ {
			top := j.a[2*r*2*j.w*c : (2*r+1)*2*j.w*c]
			bot := j.a[(2*r+1)*2*j.w*c : (2*r+2)*2*j.w*c]
			d := j.dst[r*j.w*c : (r+1)*j.w*c]
			for x := range j.w {
				for ch := range c {
					i := 2*x*c + ch
					d[x*c+ch] = (top[i] + top[i+c] + bot[i] + bot[i+c]) * j.scale
				}
			}
		}
	case rowAttentionVJP:
		for m := lo; m < hi; m++ {
			j.attentionVJP(m)
		}
	case rowGroupNormVJP:
		j.groupNormVJP(worker, item)
	}
}

// normVJP is the gradient of y = (x - mean)*rstd*gamma over one row. centred
// tells whether the mean is a function of x.
func normVJP(dx, dy, x []float32, mean, rstd float64, gamma []float32, centred bool) {
	var s, sx float64
	at := func(i int) float64 {
		if gamma != nil {
			return float64(dy[i]) * float64(gamma[i])
		}
		return float64(dy[i])
	}
	for i, v := range x {
		g := at(i)
		s += g
		sx += g * (float64(v) - mean) * rstd
	}
	n := float64(len(x))
	s, sx = s/n, sx/n
	if !centred {
		s = 0
	}
	for i, v := range x {
		dx[i] = float32(rstd * (at(i) - s - (float64(v)-mean)*rstd*sx))
	}
}
