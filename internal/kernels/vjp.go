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

func (j *rowJob) groupNormVJP(item int) {
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
	grad := func(i, ch int) (xh, gr float64) {
		xh = (float64(j.b[i]) - mean) * rstd
		z, gm := xh, 1.0
		if ga != nil {
			gm = float64(ga[ch])
			z *= gm
		}
		if be != nil {
			z += float64(be[ch])
		}
		gr = float64(j.a[i]) * gm
		if j.act != Identity {
			gr *= float64(j.act.derive(float32(z)))
		}
		return xh, gr
	}
	var s, sx float64
	for y := range j.h {
		for q := range per {
			xh, gr := grad(base+y*c+q, g*per+q)
			s += gr
			sx += gr * xh
		}
	}
	s, sx = s/count, sx/count
	for y := range j.h {
		for q := range per {
			i := base + y*c + q
			xh, gr := grad(i, g*per+q)
			j.dst[i] = float32(rstd * (gr - s - xh*sx))
		}
	}
}

// AttentionVJPScratch gives the float32 that AttentionVJP needs.
func AttentionVJPScratch(p *Pool, s AttentionSpec) int {
	return alignSlack + p.workers*(2*roundUp(s.Tk, 16)+roundUp(s.Tk*s.D, 16)*2)
}

// AttentionVJP computes the gradients of q, k and v of [Attention] from the
// gradient dout of its output. dq, dk, dv and dout are laid out like q, k, v
// and the output.
func AttentionVJP(p *Pool, dq, dk, dv, dout, q, k, v []float32, spec AttentionSpec, scratch []float32) {
	s := spec.normal()
	if s.Batch < 1 || s.Heads < 1 || s.Tq < 1 {
		return
	}
	s.check(dout, q, k, v)
	s.check(dout, dq, dk, dv)
	need("scratch", scratch, AttentionVJPScratch(p, spec))
	cv := carve(scratch)
	size := 2*roundUp(s.Tk, 16) + 2*roundUp(s.Tk*s.D, 16)
	work := cv.take(p.workers * size)
	p.Do(s.Batch*s.Heads, func(worker, item int) {
		w := carver{s: work[worker*size : (worker+1)*size]}
		attentionVJP(p.ops, &s, item, dq, dk, dv, dout, q, k, v,
			w.take(s.Tk), w.take(s.Tk), w.take(s.Tk*s.D), w.take(s.Tk*s.D))
	})
}

func attentionVJP(o *ops, s *AttentionSpec, bh int, dq, dk, dv, dout, q, k, v, pr, dp, gk, gv []float32) {
	b, h := bh/s.Heads, bh%s.Heads
	d := s.D
	clear(gk)
	clear(gv)
	for t := range s.Tq {
		qr := q[(b*s.Tq+t)*s.LdQ+h*d:][:d]
		do := dout[(b*s.Tq+t)*s.LdO+h*d:][:d]
		dqr := dq[(b*s.Tq+t)*s.LdQ+h*d:][:d]
		for i := range pr {
			if s.Causal && i > t {
				pr[i] = float32(math.Inf(-1))
				continue
			}
			pr[i] = dot(qr, k[(b*s.Tk+i)*s.LdK+h*d:][:d]) * s.Scale
			if s.KeyBias != nil {
				pr[i] += s.KeyBias[b*s.Tk+i]
			}
		}
		top := o.maxRow(pr)
		if math.IsInf(float64(top), -1) {
			clear(dqr)
			continue
		}
		sum := o.expRow(pr, 1, top)
		o.scale(pr, 1/sum)
		var mean float64
		for i, w := range pr {
			dp[i] = dot(do, v[(b*s.Tk+i)*s.LdV+h*d:][:d])
			mean += float64(w) * float64(dp[i])
		}
		clear(dqr)
		for i, w := range pr {
			if w == 0 {
				continue
			}
			axpy(gv[i*d:(i+1)*d], do, w)
			ds := w * (dp[i] - float32(mean)) * s.Scale
			axpy(dqr, k[(b*s.Tk+i)*s.LdK+h*d:][:d], ds)
			axpy(gk[i*d:(i+1)*d], qr, ds)
		}
	}
	for i := range s.Tk {
		copy(dk[(b*s.Tk+i)*s.LdK+h*d:][:d], gk[i*d:])
		copy(dv[(b*s.Tk+i)*s.LdV+h*d:][:d], gv[i*d:])
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

func axpy(dst, x []float32, a float32) {
	x = x[:len(dst)]
	for i := range dst {
		dst[i] += a * x[i]
	}
}
