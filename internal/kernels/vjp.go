package kernels

import (
	"fmt"
	"math"
)

// ConvGrad is the vector-Jacobian product of a convolution with respect to
// its input: a convolution of the output's gradient with the flipped kernel,
// input and output channels exchanged. A stride puts zeros between the
// gradient's pixels.
type ConvGrad struct {
	spec ConvSpec // of the forward layer
	conv *Conv
}

// NewConvGrad packs the gradient of NewConv(tier, dtype, spec, weight, ...).
// It panics for a padding of more than Dilation*(K-1) in front.
func NewConvGrad(tier Tier, dtype DType, spec ConvSpec, weight []float32) *ConvGrad {
	s := spec.normal()
	taps := s.KH * s.KW
	if len(weight) != s.Cout*s.Cin*taps {
		panic(fmt.Sprintf("kernels: convolution weight has %d values, %+v needs %d", len(weight), s, s.Cout*s.Cin*taps))
	}
	g := ConvSpec{Cin: s.Cout, Cout: s.Cin, KH: s.KH, KW: s.KW, Dilation: s.Dilation, H: s.H, W: s.W,
		Pad: Pad{Top: s.Dilation*(s.KH-1) - s.Pad.Top, Left: s.Dilation*(s.KW-1) - s.Pad.Left}}
	g.Pad.Bottom, g.Pad.Right = g.Pad.Top, g.Pad.Left
	if g.Pad.Top < 0 || g.Pad.Left < 0 {
		panic(fmt.Sprintf("kernels: gradient of a convolution padded by more than its kernel: %+v", s))
	}
	t := make([]float32, len(weight))
	for o := range s.Cout {
		for i := range s.Cin {
			for k := range taps {
				t[(i*s.Cout+o)*taps+taps-1-k] = weight[(o*s.Cin+i)*taps+k]
			}
		}
	}
	return &ConvGrad{spec: s, conv: NewConv(tier, dtype, g, t, nil)}
}

// Bytes gives the size of the packed weights.
func (g *ConvGrad) Bytes() int { return g.conv.Bytes() }

// pads gives the gradient's padding for a forward input of h by w.
func (g *ConvGrad) pads(h, w int) (pad Pad, ho, wo int) {
	s := g.spec
	ho, wo = s.OutSize(h, w)
	pad = g.conv.spec.Pad
	pad.Bottom = h - (ho-1)*s.Stride - 1 - pad.Top + s.Dilation*(s.KH-1)
	pad.Right = w - (wo-1)*s.Stride - 1 - pad.Left + s.Dilation*(s.KW-1)
	return pad, ho, wo
}

// cropped tells whether the forward layer ignored some of its padding at the
// far edges, so that the gradient convolution would need a negative padding.
func cropped(p Pad) bool { return p.Bottom < 0 || p.Right < 0 }

// Scratch gives the float32 that Run needs for n images of h by w, the size
// of the forward input after any upsampling.
func (g *ConvGrad) Scratch(workers, n, h, w int) int {
	pad, ho, wo := g.pads(h, w)
	if cropped(pad) {
		pad.Bottom, pad.Right = max(pad.Bottom, 0), max(pad.Right, 0)
	}
	return g.conv.scratch(workers, n, ho, wo, pad, Input{stuff: g.spec.Stride})
}

// Run computes dx (N, H, W, Cin) from dy (N, Ho, Wo, Cout). ep.Residual adds
// another gradient that arrives at the same tensor.
func (g *ConvGrad) Run(p *Pool, dx, dy []float32, n, h, w int, scratch []float32, ep Epilogue) {
	pad, ho, wo := g.pads(h, w)
	if cropped(pad) {
		panic(fmt.Sprintf("kernels: gradient of %+v at %dx%d: padding behind exceeds the kernel", g.spec, h, w))
	}
	g.conv.run(p, dx, Input{X: dy, C: g.spec.Cout, stuff: g.spec.Stride}, n, ho, wo, pad, scratch, ep)
}

// LayerNormVJP is the gradient of LayerNorm's src; dx may be dy.
func LayerNormVJP(p *Pool, dx, dy, src []float32, n, m, c int, eps float64, gamma []float32) {
	need("dx", dx, n*m*c)
	need("dy", dy, n*m*c)
	need("src", src, n*m*c)
	p.byRows(rowJob{kind: rowLayerNormVJP, dst: dx, a: dy, b: src, h: m, eps: eps, gamma: vector("gamma", gamma, n, c)}, n*m, c)
}

// RMSNormVJP is the gradient of RMSNorm's src; dx may be dy.
func RMSNormVJP(p *Pool, dx, dy, src []float32, n, m, c int, eps float64, gamma []float32) {
	need("dx", dx, n*m*c)
	need("dy", dy, n*m*c)
	need("src", src, n*m*c)
	p.byRows(rowJob{kind: rowRMSNormVJP, dst: dx, a: dy, b: src, h: m, eps: eps, gamma: vector("gamma", gamma, n, c)}, n*m, c)
}

// GroupNormVJP is the gradient of x in y = act(groupnorm(x)*gamma + beta) for
// one tensor x (N, HW, C), gamma and beta as in [GroupNorm]; dx may be dy.
// A concatenated input is joined first with [Apply].
func GroupNormVJP(p *Pool, dx, dy, x []float32, n, hw, c, groups int, eps float64, gamma, beta []float32, act Activation) {
	if groups < 1 || c%groups != 0 {
		panic(fmt.Sprintf("kernels: %d channels in %d groups", c, groups))
	}
	need("dx", dx, n*hw*c)
	need("dy", dy, n*hw*c)
	need("x", x, n*hw*c)
	p.rows(rowJob{kind: rowGroupNormVJP, dst: dx, a: dy, b: x, n: n, h: hw, c: c, groups: groups, eps: eps,
		gamma: vector("gamma", gamma, n, c), beta: vector("beta", beta, n, c), act: act, per: 1, total: n * groups}, n*groups)
}

func (j *rowJob) groupNormVJP(worker, item int) {
	n, g := item/j.groups, item%j.groups
	c, per := j.c, j.c/j.groups
	base := n*j.h*c + g*per
	count := float64(j.h * per)
	ga, be := vectorRow(j.gamma, n, c), vectorRow(j.beta, n, c)
	var sum, sq float64
	for y := range j.h {
		for _, v := range j.b[base+y*c : base+y*c+per] {
			sum += float64(v)
		}
	}
	mean := sum / count
	for y := range j.h {
		for _, v := range j.b[base+y*c : base+y*c+per] {
			d := float64(v) - mean
			sq += d * d
		}
	}
	rstd := 1 / math.Sqrt(sq/count+j.eps)
	// dx holds the gradient of the normalised value times gamma until the end.
	// The activation's gradient is taken for many values at a time.
	var s, sx float64
	zs, gs := &j.values[worker][0], &j.values[worker][1]
	step := max(1, len(zs)/per)
	for y0 := 0; y0 < j.h; y0 += step {
		y1 := min(y0+step, j.h)
		for q0 := 0; q0 < per; q0 += len(zs) { // once, unless a group is very wide
			wide := min(len(zs), per-q0)
			k := 0
			for y := y0; y < y1; y++ {
				at := base + y*c + q0
				for q, x := range j.b[at : at+wide] {
					ch := g*per + q0 + q
					z := (float64(x) - mean) * rstd
					if ga != nil {
						z *= float64(ga[ch])
					}
					if be != nil {
						z += float64(be[ch])
					}
					zs[k], gs[k] = float32(z), j.a[at+q]
					k++
				}
			}
			if j.act != Identity {
				j.o.actVJP(gs[:k], gs[:k], zs[:k], j.act)
			}
			k = 0
			for y := y0; y < y1; y++ {
				at := base + y*c + q0
				for q, x := range j.b[at : at+wide] {
					gr := gs[k]
					if ga != nil {
						gr *= ga[g*per+q0+q]
					}
					s += float64(gr)
					sx += float64(gr) * (float64(x) - mean) * rstd
					j.dst[at+q] = gr
					k++
				}
			}
		}
	}
	s, sx = s/count, sx/count
	for y := range j.h {
		at := base + y*c
		for i, gr := range j.dst[at : at+per] {
			xh := (float64(j.b[at+i]) - mean) * rstd
			j.dst[at+i] = float32(rstd * (float64(gr) - s - xh*sx))
		}
	}
}

// attnVJPScores is about how many scores of all heads AttentionVJP holds.
const attnVJPScores = 4 << 20

func attnVJPRows(s *AttentionSpec) int {
	return min(s.Tq, max(attnVJPScores/(s.Heads*s.Tk), 24))
}

// attnVJPProducts are the five products over m queries of one batch row:
// scores, their gradient, and the gradients of v, k and q.
func attnVJPProducts(s *AttentionSpec, m int, add bool) [5]MatMulSpec {
	scores := MatMulSpec{Batch: s.Heads, M: m, N: s.Tk, K: s.D, TransB: true,
		LdA: s.LdQ, LdB: s.LdK, LdC: s.Tk, StepA: s.D, StepB: s.D, StepC: m * s.Tk}
	grads := scores
	grads.LdA, grads.LdB = s.LdO, s.LdV
	scores.Scale = s.Scale
	dv := MatMulSpec{Batch: s.Heads, M: s.Tk, N: s.D, K: m, TransA: true,
		LdA: s.Tk, LdB: s.LdO, LdC: s.LdV, StepA: m * s.Tk, StepB: s.D, StepC: s.D, Add: add}
	dk := dv
	dk.LdB, dk.LdC = s.LdQ, s.LdK
	dq := MatMulSpec{Batch: s.Heads, M: m, N: s.D, K: s.Tk,
		LdA: s.Tk, LdB: s.LdK, LdC: s.LdQ, StepA: m * s.Tk, StepB: s.D, StepC: s.D}
	return [5]MatMulSpec{scores, grads, dv, dk, dq}
}

// AttentionVJPScratch gives the float32 that AttentionVJP needs.
func AttentionVJPScratch(p *Pool, spec AttentionSpec) int {
	s := spec.normal()
	m := attnVJPRows(&s)
	most := 0
	for _, q := range attnVJPProducts(&s, m, false) {
		most = max(most, MatMulScratch(p, q))
	}
	return alignSlack + 2*roundUp(s.Heads*m*s.Tk, 16) + most
}

// AttentionVJP computes the gradients of q, k and v of [Attention] from the
// gradient dout of its output. dq, dk, dv and dout are laid out like q, k, v
// and the output and may not overlap them. With P the softmax and dP = dO V^T
//
//	dV = P^T dO, dS = P (dP - sum(P dP)) Scale, dQ = dS K, dK = dS^T Q
func AttentionVJP(p *Pool, dq, dk, dv, dout, q, k, v []float32, spec AttentionSpec, scratch []float32) {
	s := spec.normal()
	if s.Batch < 1 || s.Heads < 1 || s.Tq < 1 {
		return
	}
	s.check(dout, q, k, v)
	s.check(dout, dq, dk, dv)
	need("scratch", scratch, AttentionVJPScratch(p, spec))
	attentionVJP(p, dq, dk, dv, dout, q, k, v, &s, attnVJPRows(&s), scratch)
}

// attentionVJP treats most queries at a time.
func attentionVJP(p *Pool, dq, dk, dv, dout, q, k, v []float32, s *AttentionSpec, most int, scratch []float32) {
	cv := carve(scratch)
	pr, ds := cv.take(s.Heads*most*s.Tk), cv.take(s.Heads*most*s.Tk)
	rest := cv.s[cv.n:]
	for b := range s.Batch {
		bk, bv := b*s.Tk*s.LdK, b*s.Tk*s.LdV
		for t0 := 0; t0 < s.Tq; t0 += most {
			m := min(most, s.Tq-t0)
			bq, bo := (b*s.Tq+t0)*s.LdQ, (b*s.Tq+t0)*s.LdO
			prod := attnVJPProducts(s, m, t0 > 0)
			MatMul(p, pr, q[bq:], k[bk:], prod[0], rest)
			MatMul(p, ds, dout[bo:], v[bv:], prod[1], rest)
			j := rowJob{kind: rowAttentionVJP, dst: ds, a: pr, h: m, w: t0, scale: s.Scale, causal: s.Causal}
			if s.KeyBias != nil {
				j.beta = s.KeyBias[b*s.Tk : (b+1)*s.Tk]
			}
			j.gamma, j.n = s.Bias, s.Tq
			p.byRows(j, s.Heads*m, s.Tk)
			MatMul(p, dv[bv:], pr, dout[bo:], prod[2], rest)
			MatMul(p, dk[bk:], ds, q[bq:], prod[3], rest)
			MatMul(p, dq[bq:], ds, k[bk:], prod[4], rest)
		}
	}
}

var negInf = float32(math.Inf(-1))

// attentionVJP turns a row of scaled scores into P and a row of dP into dS.
func (j *rowJob) attentionVJP(row int) {
	o, c := j.o, j.c
	pr, ds := j.a[row*c:(row+1)*c], j.dst[row*c:(row+1)*c]
	if j.beta != nil {
		o.add(pr, pr, j.beta, 1)
	}
	if j.gamma != nil {
		o.add(pr, pr, j.gamma[(row/j.h*j.n+j.w+row%j.h)*c:][:c], 1)
	}
	if j.causal {
		for i := j.w + row%j.h + 1; i < c; i++ {
			pr[i] = negInf
		}
	}
	top := o.maxRow(pr)
	if math.IsInf(float64(top), -1) {
		clear(pr)
		clear(ds)
		return
	}
	o.scale(pr, 1/o.expRow(pr, 1, top))
	mean := dot(pr, ds)
	for i, w := range pr {
		ds[i] = w * (ds[i] - mean) * j.scale
	}
}

func dot(a, b []float32) float32 {
	var s0, s1, s2, s3 float32
	b = b[:len(a)]
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s0 += a[i] * b[i]
		s1 += a[i+1] * b[i+1]
		s2 += a[i+2] * b[i+2]
		s3 += a[i+3] * b[i+3]
	}
	for ; i < len(a); i++ {
		s0 += a[i] * b[i]
	}
	return s0 + s1 + s2 + s3
}
