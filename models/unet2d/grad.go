package unet2d

import (
	"math"

	"drift/internal/kernels"
)

// The gradients of group norm with SiLU and of attention, built from the
// kernels of the forward pass.

// normGradBlock is the number of pixels whose sums are kept in float32.
const normGradBlock = 32

// normGradNodes writes down the gradient of x in act(norm(x)) for SiLU or no
// activation. With xh = (x - mean) rstd, z = gamma xh + beta, dz = dy act'(z)
// and means over the group
//
//	dx = rstd (gamma dz - mean(gamma dz) - xh mean(gamma dz xh))
func (g *graph) normGradNodes(m *normed, x, dy tensor, act kernels.Activation) tensor {
	c, hw := x.c, x.h*x.w
	blocks := (hw + normGradBlock - 1) / normGradBlock
	// rstd and -mean rstd of every channel: xh = a x + b.
	plain := &norm{name: m.name, c: c, groups: m.groups, eps: m.eps}
	stat := g.groupNorm(plain, x, tensor{}, 0, 0)
	var z tensor
	if act != kernels.Identity {
		z = g.tensor(x.h, x.w, c)
		in := source{x: x, norm: m}
		g.add(node{
			name: m.name, kind: "apply", out: z, reads: in.refs(), writes: []ref{z.r},
			run: func(e *env) { kernels.Apply(e.pool, e.at(z.r), in.input(e), e.n, x.h, x.w) },
		})
	}
	dz, part, coef := g.tensor(x.h, x.w, c), g.buf(blocks*2*c), g.buf(3*c)
	dx := g.tensor(x.h, x.w, c)
	e := &g.net.env

	sums := func(_, item int) {
		n, b := item/blocks, item%blocks
		p0 := n*hw + b*normGradBlock
		p1 := min(p0+normGradBlock, (n+1)*hw)
		s := e.at(part)[item*2*c : (item+1)*2*c]
		sum, sumX := s[:c], s[c:]
		clear(s)
		xs, d, out := e.at(x.r), e.at(dy.r), e.at(dz.r)
		if act == kernels.Identity {
			for p := p0; p < p1; p++ {
				g.addSums(sum, sumX, xs[p*c:(p+1)*c], d[p*c:(p+1)*c])
			}
			return
		}
		zs := e.at(z.r)
		for p := p0; p < p1; p++ {
			row := out[p*c : (p+1)*c]
			g.net.pool.ActivateVJPRow(row, d[p*c:(p+1)*c], zs[p*c:(p+1)*c], act)
			g.addSums(sum, sumX, xs[p*c:(p+1)*c], row)
		}
	}
	per := c / m.groups
	count := float64(hw * per)
	coefs := func(_, item int) {
		n, grp := item/m.groups, item%m.groups
		gamma, _ := m.params(e)
		if len(gamma) > c {
			gamma = gamma[n*c:]
		}
		a, b := float64(e.at(stat.scale)[n*c+grp*per]), float64(e.at(stat.shift)[n*c+grp*per])
		parts := e.at(part)[n*blocks*2*c : (n+1)*blocks*2*c]
		var s, sx float64
		for ch := grp * per; ch < (grp+1)*per; ch++ {
			var u, v float64
			for i := range blocks {
				u += float64(parts[i*2*c+ch])
				v += float64(parts[i*2*c+c+ch])
			}
			s += float64(gamma[ch]) * u
			sx += float64(gamma[ch]) * (a*v + b*u)
		}
		s, sx = s/count, sx/count
		k := e.at(coef)[n*3*c : (n+1)*3*c]
		for ch := grp * per; ch < (grp+1)*per; ch++ {
			k[ch] = float32(a * float64(gamma[ch]))
			k[c+ch] = float32(-a * a * sx)
			k[2*c+ch] = float32(-a * (s + b*sx))
		}
	}
	from := dz
	if act == kernels.Identity {
		from = dy
	}
	apply := func(_, item int) {
		n, b := item/blocks, item%blocks
		p0 := n*hw + b*normGradBlock
		p1 := min(p0+normGradBlock, (n+1)*hw)
		k := e.at(coef)[n*3*c : (n+1)*3*c]
		xs, d, out := e.at(x.r), e.at(from.r), e.at(dx.r)
		for p := p0; p < p1; p++ {
			row := out[p*c : (p+1)*c]
			g.net.pool.MulAddRow(row, k[2*c:], d[p*c:(p+1)*c], k[:c])
			g.net.pool.MulAddRow(row, row, xs[p*c:(p+1)*c], k[c:2*c])
		}
	}
	first := node{
		name: m.name, kind: "norm gradient", out: dz,
		reads:  []ref{x.r, dy.r, z.r},
		writes: []ref{dz.r, part}, over: []ref{dy.r},
		run: func(e *env) { e.pool.Do(e.n*blocks, sums) },
	}
	if act == kernels.Identity {
		first.writes, first.over = []ref{part}, nil
	}
	g.add(first)
	g.add(node{
		name: m.name, kind: "norm gradient", out: dx,
		reads:  []ref{x.r, from.r, part, stat.scale, stat.shift, m.gamma},
		writes: []ref{dx.r, coef}, over: []ref{from.r},
		run: func(e *env) {
			e.pool.Do(e.n*m.groups, coefs)
			e.pool.Do(e.n*blocks, apply)
		},
	})
	return dx
}

// addSums adds a row of dz and of dz x.
func (g *graph) addSums(sum, sumX, x, dz []float32) {
	g.net.pool.AddRow(sum, sum, dz)
	g.net.pool.MulAddRow(sumX, sumX, dz, x)
}

// fullScores is the number of scores of an image up to which the gradient of
// attention keeps all of them.
const fullScores = 1 << 22

// attentionGrad is the gradient of the joined q, k and v from that of the
// layer's output: with S = Q K^T / sqrt(d), P = softmax(S)
//
//	dV = P^T dO,  dP = dO V^T,  dS = P (dP - rowsum(P dP)) / sqrt(d),  dQ = dS K,  dK = dS^T Q
func (g *graph) attentionGrad(l *attention, qkv, dy tensor, spec func(n int) kernels.AttentionSpec) tensor {
	inner, tokens := l.heads*l.dim, qkv.h*qkv.w
	d := g.tensor(qkv.h, qkv.w, 3*inner)
	n := node{
		name: l.name, kind: "attention gradient", out: d, macs: 5 * tokens * tokens * inner,
		reads: []ref{dy.r, qkv.r}, writes: []ref{d.r},
	}
	scores := l.heads * tokens * tokens
	if scores > fullScores {
		n.scratch = func(n int) int { return kernels.AttentionVJPScratch(g.net.pool, spec(n)) }
		n.run = func(e *env) {
			b, db := e.at(qkv.r), e.at(d.r)
			kernels.AttentionVJP(e.pool, db, db[inner:], db[2*inner:], e.at(dy.r), b, b[inner:], b[2*inner:], spec(e.n), e.scratch)
		}
		g.add(n)
		return d
	}
	scale := float32(1 / math.Sqrt(float64(l.dim)))
	// Images go one by one, so that the scores of one are enough.
	byKeys := kernels.MatMulSpec{Batch: l.heads, M: tokens, N: tokens, K: l.dim, TransB: true,
		LdA: 3 * inner, LdB: 3 * inner, StepA: l.dim, StepB: l.dim, StepC: tokens * tokens}
	byOut := byKeys // dP: A is dO
	byOut.LdA = inner
	byScores := kernels.MatMulSpec{Batch: l.heads, M: tokens, N: l.dim, K: tokens,
		LdB: 3 * inner, LdC: 3 * inner, StepA: tokens * tokens, StepB: l.dim, StepC: l.dim}
	byScoresT := byScores
	byScoresT.TransA = true
	byScoresOut := byScoresT // dV: B is dO
	byScoresOut.LdB = inner
	e := &g.net.env
	var p, dp []float32
	rows := func(_, i int) {
		softmaxGrad(dp[i*tokens:(i+1)*tokens], p[i*tokens:(i+1)*tokens], scale)
	}
	products := func() int {
		most := 0
		for _, s := range []kernels.MatMulSpec{byKeys, byOut, byScores, byScoresT, byScoresOut} {
			most = max(most, kernels.MatMulScratch(g.net.pool, s))
		}
		return most
	}
	n.scratch = func(int) int { return 2*roundUp(scores, alignFloats) + products() }
	n.run = func(*env) {
		size := roundUp(scores, alignFloats)
		p, dp = e.scratch[:scores], e.scratch[size:size+scores]
		scratch := e.scratch[2*size:]
		for i := range e.n {
			q := e.at(qkv.r)[i*tokens*3*inner : (i+1)*tokens*3*inner]
			dq := e.at(d.r)[i*tokens*3*inner : (i+1)*tokens*3*inner]
			do := e.at(dy.r)[i*tokens*inner : (i+1)*tokens*inner]
			kernels.MatMul(e.pool, p, q, q[inner:], byKeys, scratch)
			kernels.Softmax(e.pool, p, p, l.heads*tokens, tokens, scale)
			kernels.MatMul(e.pool, dp, do, q[2*inner:], byOut, scratch)
			kernels.MatMul(e.pool, dq[2*inner:], p, do, byScoresOut, scratch)
			e.pool.Do(l.heads*tokens, rows)
			kernels.MatMul(e.pool, dq, dp, q[inner:], byScores, scratch)
			kernels.MatMul(e.pool, dq[inner:], dp, q, byScoresT, scratch)
		}
	}
	g.add(n)
	return d
}

// softmaxGrad turns a row of dP into dS.
func softmaxGrad(dp, p []float32, scale float32) {
	p = p[:len(dp)]
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(dp); i += 4 {
		s0 += float32(dp[i] * p[i])
		s1 += float32(dp[i+1] * p[i+1])
		s2 += float32(dp[i+2] * p[i+2])
		s3 += float32(dp[i+3] * p[i+3])
	}
	for ; i < len(dp); i++ {
		s0 += float32(dp[i] * p[i])
	}
	sum := (s0 + s1) + (s2 + s3)
	for i, v := range dp {
		dp[i] = p[i] * (v - sum) * scale
	}
}
