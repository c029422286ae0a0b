package dit

import (
	"fmt"
	"slices"
	"strings"

	"drift/internal/kernels"
)

// buf is a place in the arena, in float32 per image. Buffers are aligned for
// every batch.
type buf struct{ off, size int }

// cut is a part of the buffer, for all images.
func (b buf) cut(from, size int) buf { return buf{b.off + from, size} }

const alignFloats = 16

// node is one kernel call of a plan.
type node struct {
	name, kind string
	tokens, c  int // size of the output per image
	macs       int // multiply-adds per image
	run        func(e *env)
}

// plan is the network for one image size as a list of kernel calls.
type plan struct {
	side     int // tokens on a side
	save     bool
	identity []string
	skip     []string

	nodes    []node
	forward  int // nodes of the forward pass; the rest are its gradient
	perImage int // float32 of the arena per image
	need     []func(n int) int
	needs    map[int]int // float32 of scratch by batch

	in, out   buf // tokens of the image and of the output
	dIn, dOut buf // their gradients, in a plan with save
}

// matches tells whether the plan was made for these questions.
func (p *plan) matches(side int, b *Batch) bool {
	return p.side == side && p.save == b.Save &&
		slices.Equal(p.identity, b.IdentityAttention) && slices.Equal(p.skip, b.SkipLayers)
}

// scratch gives the float32 that the kernels need at most for n images.
func (p *plan) scratch(n int) int {
	if s, ok := p.needs[n]; ok {
		return s
	}
	s := 0
	for _, f := range p.need {
		s = max(s, f(n))
	}
	p.needs[n] = s
	return s
}

// env is what a node runs in.
type env struct {
	pool    *kernels.Pool
	arena   []float32
	scratch []float32
	n       int             // images
	times   []float64       // one per image
	class   []int           // one per image
	norm    kernels.RowNorm // of the layer that runs
}

// at gives the buffer's place for all images of the batch.
func (e *env) at(b buf) []float32 {
	lo, hi := b.off*e.n, (b.off+b.size)*e.n
	return e.arena[lo:hi:hi]
}

// graph writes a network down as a plan.
type graph struct {
	*plan
	net    *Net
	tokens int
	used   map[string]bool // hook names that met a layer
	ways   []wayBack       // what the blocks left for their gradients
	cond   buf             // time plus class embedding, for prompts
}

// modulated is the shift, scale and gate of a layer norm, one vector per
// image each; gamma is 1 + scale.
type modulated struct{ shift, gamma, gate buf }

// branch is one of the two parts of a block, for its gradient.
type branch struct {
	on   bool
	x    buf // what it read
	mod  modulated
	kept buf // q, k and v, or the feed-forward part before its activation
}

type wayBack struct {
	*block
	attn, ff branch
	identity bool
}

func (g *graph) buf(size int) buf {
	b := buf{g.perImage, size}
	g.perImage += (size + alignFloats - 1) / alignFloats * alignFloats
	return b
}

func (g *graph) add(n node) { g.nodes = append(g.nodes, n) }

// rows is a layer over the tokens of all images, or over one row per image.
func (g *graph) rows(l *linear, layer *kernels.Linear, kind string, dst, src buf, perImage int, ep func(e *env) kernels.Epilogue) {
	g.need = append(g.need, func(n int) int { return layer.Scratch(g.net.pool.Workers(), n*perImage) })
	g.add(node{
		name: l.name, kind: kind, tokens: perImage, c: layer.Out(), macs: perImage * l.in * l.out,
		run: func(e *env) {
			var epilogue kernels.Epilogue
			if ep != nil {
				epilogue = ep(e)
			}
			layer.Run(e.pool, e.at(dst), e.at(src), e.n*perImage, e.scratch, epilogue)
		},
	})
}

func activated(act kernels.Activation) func(*env) kernels.Epilogue {
	return func(*env) kernels.Epilogue { return kernels.Epilogue{Act: act} }
}

func (g *graph) linear(l *linear, dst, src buf, act kernels.Activation) {
	g.rows(l, l.layer, "linear", dst, src, g.tokens, activated(act))
}

func (g *graph) gradient(l *linear, dst, src buf) {
	g.rows(l, l.grad, "linear gradient", dst, src, g.tokens, nil)
}

// norm is LN(x)*gamma + shift.
func (g *graph) norm(name string, dst, x buf, m modulated, eps float64) {
	d := g.net.tree.width
	g.add(node{
		name: name, kind: "norm", tokens: g.tokens, c: d,
		run: func(e *env) {
			kernels.LayerNorm(e.pool, e.at(dst), e.at(x), e.n, g.tokens, d, eps, e.at(m.gamma), e.at(m.shift))
		},
	})
}

// normGradient adds the gradient that dy makes at x to dx; dy is spent.
func (g *graph) normGradient(name string, dx, dy, x buf, m modulated, eps float64) {
	d := g.net.tree.width
	g.add(node{
		name: name, kind: "norm gradient", tokens: g.tokens, c: d,
		run: func(e *env) {
			kernels.LayerNormVJP(e.pool, e.at(dy), e.at(dy), e.at(x), e.n, g.tokens, d, eps, e.at(m.gamma))
			kernels.Add(e.pool, e.at(dx), e.at(dx), e.at(dy), 1)
		},
	})
}

// gated is dst = x + gate*y; without x it is gate*y.
func (g *graph) gated(name string, dst, x, y, gate buf) {
	d := g.net.tree.width
	g.add(node{
		name: name, kind: "gate", tokens: g.tokens, c: d,
		run: func(e *env) {
			var old []float32
			if x.size > 0 {
				old = e.at(x)
			}
			kernels.Gate(e.pool, e.at(dst), old, e.at(y), e.at(gate), e.n, g.tokens, d)
		},
	})
}

// normed is a layer over LN(x)*gamma + shift. h is room for what a gradient
// does not read either.
func (g *graph) normed(l *linear, norm string, dst, x, h buf, m modulated, eps float64) {
	if g.save {
		g.norm(norm, h, x, m, eps)
		g.linear(l, dst, h, kernels.Identity)
		return
	}
	g.need = append(g.need, func(n int) int { return l.layer.ScratchInput(g.net.pool.Workers(), n, g.tokens) })
	g.add(node{
		name: l.name, kind: "linear", tokens: g.tokens, c: l.out, macs: g.tokens * l.in * l.out,
		run: func(e *env) {
			l.layer.RunInput(e.pool, e.at(dst), e.rows(x, m, l.in, eps), e.n, g.tokens, e.scratch, kernels.Epilogue{})
		},
	})
}

// rows reads x through a norm.
func (e *env) rows(x buf, m modulated, c int, eps float64) kernels.Input {
	e.norm = kernels.RowNorm{Eps: eps, Gamma: e.at(m.gamma), Beta: e.at(m.shift)}
	return kernels.Input{X: e.at(x), C: c, Norm: &e.norm}
}

// gatedLinear is dst = x + gate*layer(src); y is room for the product.
func (g *graph) gatedLinear(l *linear, name string, dst, x, src, y, gate buf) {
	if g.save {
		g.linear(l, y, src, kernels.Identity)
		g.gated(name, dst, x, y, gate)
		return
	}
	g.need = append(g.need, func(n int) int { return l.layer.ScratchInput(g.net.pool.Workers(), n, g.tokens) })
	g.add(node{
		name: l.name, kind: "linear", tokens: g.tokens, c: l.out, macs: g.tokens * l.in * l.out,
		run: func(e *env) {
			l.layer.RunInput(e.pool, e.at(dst), kernels.Input{X: e.at(src), C: l.in}, e.n, g.tokens, e.scratch,
				kernels.Epilogue{Residual: e.at(x), Gate: e.at(gate)})
		},
	})
}

// feedForward is x += gate*outer(act(inner(LN(x)*gamma + shift))).
func (g *graph) feedForward(b *block, x buf, m modulated) {
	in, out, t := b.inner, b.outer, g.net.tree
	g.need = append(g.need, func(n int) int {
		return kernels.FeedForwardScratch(g.net.pool.Workers(), g.tokens, in.layer, out.layer)
	})
	g.add(node{
		name: b.forward, kind: "feed forward", tokens: g.tokens, c: out.out, macs: 2 * g.tokens * in.in * in.out,
		run: func(e *env) {
			kernels.FeedForward(e.pool, e.at(x), e.rows(x, m, in.in, t.cfg.NormEps), e.n, g.tokens, in.layer, out.layer, t.act, e.scratch,
				kernels.Epilogue{Residual: e.at(x), Gate: e.at(m.gate)})
		},
	})
}

// named tells whether the list names the layer or a block around it.
func (g *graph) named(layer string, list []string) bool {
	hit := false
	for _, s := range list {
		if layer == s || strings.HasPrefix(layer, s+".") {
			g.used[s] = true
			hit = true
		}
	}
	return hit
}

// conditions makes the modulation vectors of all norms from times and classes.
func (g *graph) conditions() (blocks [][2]modulated, last modulated) {
	t := g.net.tree
	d := t.width
	code, hidden, emb, flat := g.buf(sinusoidWidth), g.buf(d), g.buf(d), g.buf(6*d)
	g.add(node{name: "time_proj", kind: "sinusoid", tokens: 1, c: sinusoidWidth, run: func(e *env) {
		rows := e.at(code)
		for i, t := range e.times {
			row := rows[i*sinusoidWidth : (i+1)*sinusoidWidth]
			if i > 0 && t == e.times[i-1] {
				copy(row, rows[(i-1)*sinusoidWidth:])
				continue
			}
			sinusoid(row, t)
		}
	}})
	vectors := func(count int) []buf {
		v := make([]buf, count)
		for i := range v {
			v[i] = g.buf(d)
		}
		return v
	}
	// split brings the vectors that lie side by side for an image together
	// for all images.
	split := func(l *linear, v []buf, scale ...int) {
		g.add(node{name: l.name, kind: "modulation", tokens: 1, c: l.out, run: func(e *env) {
			src := e.at(flat)
			for k, b := range v {
				dst := e.at(b)
				for i := range e.n {
					copy(dst[i*d:(i+1)*d], src[(i*len(v)+k)*d:])
				}
				if slices.Contains(scale, k) {
					for i := range dst {
						dst[i]++
					}
				}
			}
		}})
	}
	for i, b := range t.blocks {
		embedding := func(into buf) {
			g.add(node{name: b.class, kind: "embedding", tokens: 1, c: d, run: func(e *env) {
				dst := e.at(into)
				for i, c := range e.class {
					copy(dst[i*d:(i+1)*d], b.table[c*d:])
				}
			}})
		}
		g.rows(b.time[0], b.time[0].layer, "linear", hidden, code, 1, activated(kernels.SiLU))
		if i == 0 && g.net.prompts != nil {
			g.cond = g.buf(d)
			embedding(g.cond)
			g.rows(b.time[1], b.time[1].layer, "linear", g.cond, hidden, 1, func(e *env) kernels.Epilogue {
				return kernels.Epilogue{Residual: e.at(g.cond)}
			})
		}
		embedding(emb)
		g.rows(b.time[1], b.time[1].layer, "linear", emb, hidden, 1, func(e *env) kernels.Epilogue {
			return kernels.Epilogue{Residual: e.at(emb), Act: kernels.SiLU}
		})
		if i == 0 { // the head reads the first block's embedding
			v := vectors(2)
			g.rows(t.modulationOut, t.modulationOut.layer, "linear", flat.cut(0, 2*d), emb, 1, nil)
			split(t.modulationOut, v, 1)
			last = modulated{shift: v[0], gamma: v[1]}
		}
		v := vectors(6)
		g.rows(b.modulation, b.modulation.layer, "linear", flat, emb, 1, nil)
		split(b.modulation, v, 1, 4)
		blocks = append(blocks, [2]modulated{{v[0], v[1], v[2]}, {v[3], v[4], v[5]}})
	}
	return blocks, last
}

func (g *graph) attentionSpec(n int) kernels.AttentionSpec {
	t := g.net.tree
	return kernels.AttentionSpec{
		Batch: n, Heads: t.cfg.NumAttentionHeads, Tq: g.tokens, Tk: g.tokens, D: t.cfg.AttentionHeadDim,
		LdQ: 3 * t.width, LdK: 3 * t.width, LdV: 3 * t.width, LdO: t.width, DType: g.net.dtype,
	}
}

// attention reads the joined q, k and v.
func (g *graph) attention(b *block, dst, qkv buf, identity bool) {
	d := g.net.tree.width
	if identity { // every token attends to itself
		g.add(node{name: b.attn, kind: "copy", tokens: g.tokens, c: d, run: func(e *env) {
			out, v := e.at(dst), e.at(qkv)
			for i := range e.n * g.tokens {
				copy(out[i*d:(i+1)*d], v[(3*i+2)*d:])
			}
		}})
		return
	}
	g.need = append(g.need, func(n int) int { return kernels.AttentionScratch(g.net.pool, g.attentionSpec(n)) })
	g.add(node{
		name: b.attn, kind: "attention", tokens: g.tokens, c: d, macs: 2 * g.tokens * g.tokens * d,
		run: func(e *env) {
			v := e.at(qkv)
			kernels.Attention(e.pool, e.at(dst), v, v[d:], v[2*d:], g.attentionSpec(e.n), e.scratch)
		},
	})
}

// attentionGradient is that of the joined q, k and v from that of the output.
func (g *graph) attentionGradient(b *block, dst, dy, qkv buf, identity bool) {
	d := g.net.tree.width
	if identity {
		g.add(node{name: b.attn, kind: "copy", tokens: g.tokens, c: 3 * d, run: func(e *env) {
			out, v := e.at(dst), e.at(dy)
			clear(out)
			for i := range e.n * g.tokens {
				copy(out[(3*i+2)*d:(3*i+3)*d], v[i*d:])
			}
		}})
		return
	}
	g.need = append(g.need, func(n int) int { return kernels.AttentionVJPScratch(g.net.pool, g.attentionSpec(n)) })
	g.add(node{
		name: b.attn, kind: "attention gradient", tokens: g.tokens, c: 3 * d, macs: 5 * g.tokens * g.tokens * d,
		run: func(e *env) {
			o, v := e.at(dst), e.at(qkv)
			kernels.AttentionVJP(e.pool, o, o[d:], o[2*d:], e.at(dy), v, v[d:], v[2*d:], g.attentionSpec(e.n), e.scratch)
		},
	})
}

// normEps is the epsilon of a block's first norm and of the last norm,
// whatever the configuration says.
const normEps = 1e-6

// build writes the whole network down.
func (n *Net) build(side int, b *Batch) (*plan, error) {
	t := n.tree
	d, tokens := t.width, side*side
	p := &plan{side: side, save: b.Save, identity: slices.Clone(b.IdentityAttention), skip: slices.Clone(b.SkipLayers), needs: map[int]int{}}
	g := &graph{plan: p, net: n, tokens: tokens, used: map[string]bool{}}

	conds, last := g.conditions()
	x, h := g.buf(tokens*d), g.buf(tokens*d)
	most := 3 * d // q, k and v
	if p.save {
		most = 4 * d
	}
	wide := g.buf(tokens * max(most, t.patch.in, t.proj.out))
	kept := func(size int, or buf) buf { // a gradient needs the tensor
		if p.save {
			return g.buf(size)
		}
		return or
	}

	p.in = wide.cut(0, tokens*t.patch.in)
	g.patches(x, p.in)
	for i, blk := range t.blocks {
		g.prompts(i, x)
		back := wayBack{block: blk, identity: g.named(blk.attn, p.identity)}
		if a := (branch{x: x, mod: conds[i][0]}); !g.named(blk.attn, p.skip) {
			a.on, a.kept, x = true, kept(3*tokens*d, wide.cut(0, 3*tokens*d)), kept(tokens*d, x)
			g.normed(blk.qkv, blk.name+".norm1", a.kept, a.x, h, a.mod, normEps)
			g.attention(blk, h, a.kept, back.identity)
			g.gatedLinear(blk.out, blk.attn, x, a.x, h, wide.cut(0, tokens*d), a.mod.gate)
			back.attn = a
		}
		if f := (branch{x: x, mod: conds[i][1]}); !g.named(blk.forward, p.skip) {
			f.on, f.kept, x = true, kept(4*tokens*d, buf{}), kept(tokens*d, x)
			if p.save {
				u := wide.cut(0, 4*tokens*d)
				g.norm(blk.name+".norm3", h, f.x, f.mod, t.cfg.NormEps)
				g.linear(blk.inner, f.kept, h, kernels.Identity)
				g.add(node{name: blk.inner.name, kind: "activation", tokens: tokens, c: 4 * d, run: func(e *env) {
					kernels.Activate(e.pool, e.at(u), e.at(f.kept), t.act)
				}})
				g.linear(blk.outer, h, u, kernels.Identity)
				g.gated(blk.forward, x, f.x, h, f.mod.gate)
			} else {
				g.feedForward(blk, x, f.mod)
			}
			back.ff = f
		}
		g.ways = append(g.ways, back)
	}
	g.norm("norm_out", h, x, last, normEps)
	p.out = wide.cut(0, tokens*t.proj.out)
	g.linear(t.proj, p.out, h, kernels.Identity)
	p.forward = len(p.nodes)
	if p.save {
		g.gradients(x, h, wide, last)
	}
	for _, s := range slices.Concat(p.identity, p.skip) {
		if !g.used[s] {
			return nil, fmt.Errorf("dit: there is no layer %q to hook into", s)
		}
	}
	return p, nil
}

// patches is the first layer plus the position table, image by image.
func (g *graph) patches(x, in buf) {
	l, pos := g.net.tree.patch, g.net.position(g.side)
	g.need = append(g.need, func(int) int { return l.layer.Scratch(g.net.pool.Workers(), g.tokens) })
	g.add(node{
		name: l.name, kind: "linear", tokens: g.tokens, c: l.out, macs: g.tokens * l.in * l.out,
		run: func(e *env) {
			dst, src := e.at(x), e.at(in)
			for i := range e.n {
				l.layer.Run(e.pool, dst[i*x.size:(i+1)*x.size], src[i*in.size:(i+1)*in.size], g.tokens, e.scratch, kernels.Epilogue{Residual: pos})
			}
		},
	})
}

// gradients writes down the way back from the output's gradient to the
// image's. The forward pass's temporary tensors are free by then.
func (g *graph) gradients(x, h, wide buf, last modulated) {
	t := g.net.tree
	d, tokens := t.width, g.tokens
	dx := g.buf(tokens * d)
	g.dOut = wide.cut(0, tokens*t.proj.out)
	g.gradient(t.proj, h, g.dOut)
	g.add(node{name: "gradient", kind: "clear", tokens: tokens, c: d, run: func(e *env) { clear(e.at(dx)) }})
	g.normGradient("norm_out", dx, h, x, last, normEps)
	for _, b := range slices.Backward(g.ways) {
		if f := b.ff; f.on {
			du := wide.cut(0, 4*tokens*d)
			g.gated(b.forward, h, buf{}, dx, f.mod.gate)
			g.gradient(b.outer, du, h)
			g.add(node{name: b.inner.name, kind: "activation gradient", tokens: tokens, c: 4 * d, run: func(e *env) {
				kernels.ActivateVJP(e.pool, e.at(du), e.at(du), e.at(f.kept), t.act)
			}})
			g.gradient(b.inner, h, du)
			g.normGradient(b.name+".norm3", dx, h, f.x, f.mod, t.cfg.NormEps)
		}
		if a := b.attn; a.on {
			dqkv, da := wide.cut(0, 3*tokens*d), wide.cut(3*tokens*d, tokens*d)
			g.gated(b.block.attn, h, buf{}, dx, a.mod.gate)
			g.gradient(b.out, da, h)
			g.attentionGradient(b.block, dqkv, da, a.kept, b.identity)
			g.gradient(b.qkv, h, dqkv)
			g.normGradient(b.name+".norm1", dx, h, a.x, a.mod, normEps)
		}
	}
	g.dIn = wide.cut(0, tokens*t.patch.in)
	g.gradient(t.patch, g.dIn, dx)
}
