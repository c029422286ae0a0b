package unet2d

import (
	"fmt"
	"slices"
	"strings"

	"drift/internal/kernels"
)

// graph writes a network down as a plan, the forward pass first. With save it
// notes for every node how its gradient is found and appends those nodes.
type graph struct {
	*plan
	net  *Net
	tape []func()
	// grads holds the gradient of a buffer as far as its readers have been
	// passed on the way back.
	grads map[ref]tensor
	used  map[string]bool // hook names that met a layer
	err   error
}

// env is what a node runs in.
type env struct {
	pool    *kernels.Pool
	plan    *plan
	arena   []float32
	scratch []float32
	n       int // images
}

// at gives the buffer's place for all images of the batch, nil for none.
func (e *env) at(r ref) []float32 {
	if r == 0 {
		return nil
	}
	off, size := e.plan.off[r]*e.n, e.plan.size[r]*e.n
	return e.arena[off : off+size : off+size]
}

// source is what a layer reads: one tensor, or two side by side, seen through
// a norm, an activation and an upsampling.
type source struct {
	x, x2 tensor
	norm  *normed
	act   kernels.Activation
	up    bool
}

func (s source) channels() int { return s.x.c + s.x2.c }

func (s source) size() (h, w int) {
	if s.up {
		return 2 * s.x.h, 2 * s.x.w
	}
	return s.x.h, s.x.w
}

func (s source) refs() []ref {
	r := []ref{s.x.r, s.x2.r}
	if s.norm != nil {
		r = append(r, s.norm.scale, s.norm.shift)
	}
	return r
}

func (s source) input(e *env) kernels.Input {
	in := kernels.Input{X: e.at(s.x.r), C: s.x.c, X2: e.at(s.x2.r), C2: s.x2.c, Act: s.act, Upsample: s.up}
	if s.norm != nil {
		in.Scale, in.Shift = e.at(s.norm.scale), e.at(s.norm.shift)
	}
	return in
}

// normed is a group norm of a source: the scale and shift of its channels.
type normed struct {
	*norm
	scale, shift ref
	gamma, beta  ref // per image, 0 for the layer's own
}

func (m *normed) params(e *env) (gamma, beta []float32) {
	if m.gamma != 0 {
		return e.at(m.gamma), e.at(m.beta)
	}
	return m.norm.gamma, m.norm.beta
}

// epilogue: y = act((conv + bias + time + residual) * scale)
type epilogue struct {
	residual tensor
	time     ref
	scale    float64 // 0 means 1
	act      kernels.Activation
}

func (g *graph) conv(l *conv, in source, ep epilogue) tensor {
	h, w := in.size()
	ho, wo := l.spec.OutSize(h, w)
	out := g.tensor(ho, wo, l.spec.Cout)
	n := node{
		name: l.name, kind: "conv", out: out,
		macs:   l.layer.MACs(1, h, w),
		reads:  append(in.refs(), ep.residual.r, ep.time),
		writes: []ref{out.r},
		scratch: func(n int) int {
			return l.layer.Scratch(g.net.pool.Workers(), n, in.x.h, in.x.w, in.up)
		},
		run: func(e *env) {
			l.layer.Run(e.pool, e.at(out.r), in.input(e), e.n, in.x.h, in.x.w, e.scratch, kernels.Epilogue{
				Residual: e.at(ep.residual.r), RowBias: e.at(ep.time), Scale: float32(ep.scale), Act: ep.act,
			})
		},
	}
	if l.token {
		n.kind = "linear"
	}
	if r := ep.residual.r; r != 0 && r != in.x.r && r != in.x2.r {
		n.over = []ref{r}
	}
	g.add(n)
	g.record(func() {
		dy, ok := g.takeGrad(out)
		if !ok {
			return
		}
		if ep.scale != 0 && ep.scale != 1 {
			dy = g.scaled(dy, ep.scale)
		}
		g.addGrad(ep.residual, dy)
		g.inputGrad(in, func(into tensor) (tensor, bool) { return g.convGrad(l, dy, h, w, into), true })
	})
	return out
}

// convGrad is the gradient of the layer's input, of h by w pixels, plus into
// where that is a tensor.
func (g *graph) convGrad(l *conv, dy tensor, h, w int, into tensor) tensor {
	dx := g.tensor(h, w, l.spec.Cin)
	n := node{
		name: l.name, kind: "conv gradient", out: dx, macs: l.layer.MACs(1, h, w),
		reads: []ref{dy.r, into.r}, writes: []ref{dx.r},
		scratch: func(n int) int { return l.grad.Scratch(g.net.pool.Workers(), n, h, w) },
		run: func(e *env) {
			l.grad.Run(e.pool, e.at(dx.r), e.at(dy.r), e.n, h, w, e.scratch, kernels.Epilogue{Residual: e.at(into.r)})
		},
	}
	if into.r != dy.r {
		n.over = []ref{into.r}
	}
	g.add(n)
	return dx
}

// groupNorm finds the scale and shift that normalise x and x2 side by side.
// gamma and beta are per image, or 0 for the layer's own.
func (g *graph) groupNorm(l *norm, x, x2 tensor, gamma, beta ref) *normed {
	m := &normed{norm: l, scale: g.buf(l.c), shift: g.buf(l.c), gamma: gamma, beta: beta}
	in := source{x: x, x2: x2}
	g.add(node{
		name: l.name, kind: "norm", out: tensor{m.scale, x.h, x.w, l.c},
		reads: []ref{x.r, x2.r, gamma, beta}, writes: []ref{m.scale, m.shift},
		scratch: func(n int) int { return kernels.GroupNormScratch(n, x.h*x.w, l.c) },
		run: func(e *env) {
			ga, be := m.params(e)
			kernels.GroupNorm(e.pool, e.at(m.scale), e.at(m.shift), in.input(e), e.n, x.h*x.w, l.groups, l.eps, ga, be, e.scratch)
		},
	})
	return m
}

// modulate makes a norm's gamma (1 + s) and beta (1 + s) + b of every image
// from its vector [s | b].
func (g *graph) modulate(l *norm, time tensor) (gamma, beta ref) {
	gamma, beta = g.buf(l.c), g.buf(l.c)
	g.add(node{
		name: l.name, kind: "modulate", out: tensor{gamma, 1, 1, l.c},
		reads: []ref{time.r}, writes: []ref{gamma, beta},
		run: func(e *env) {
			ga, be, t := e.at(gamma), e.at(beta), e.at(time.r)
			for i := range e.n {
				s, b := t[2*i*l.c:(2*i+1)*l.c], t[(2*i+1)*l.c:(2*i+2)*l.c]
				for j, v := range s {
					ga[i*l.c+j] = l.gamma[j] * (1 + v)
					be[i*l.c+j] = float32(l.beta[j]*(1+v)) + b[j]
				}
			}
		},
	})
	return gamma, beta
}

// apply writes down the tensor that a source stands for.
func (g *graph) apply(name string, in source) tensor {
	h, w := in.size()
	out := g.tensor(h, w, in.channels())
	g.add(node{
		name: name, kind: "apply", out: out, reads: in.refs(), writes: []ref{out.r},
		run: func(e *env) { kernels.Apply(e.pool, e.at(out.r), in.input(e), e.n, in.x.h, in.x.w) },
	})
	g.record(func() {
		if dy, ok := g.takeGrad(out); ok {
			g.inputGrad(in, func(tensor) (tensor, bool) { return dy, false })
		}
	})
	return out
}

// resampled is x at another size.
func (g *graph) resampled(name string, x tensor, r resample) tensor {
	if r == up {
		return g.apply(name, source{x: x, up: true})
	}
	out := g.resampleNode(name, x, r, 1)
	g.record(func() {
		dy, ok := g.takeGrad(out)
		if !ok {
			return
		}
		switch r {
		case down: // every pixel of a block got a quarter
			g.addGrad(x, g.resampleNode(name, dy, up, 0.25))
		case firDown:
			g.addGrad(x, g.resampleNode(name, dy, firUp, 0.25))
		case firUp:
			g.addGrad(x, g.resampleNode(name, dy, firDown, 4))
		}
	})
	return out
}

func (g *graph) resampleNode(name string, x tensor, r resample, scale float32) tensor {
	ho, wo := r.size(x.h, x.w)
	out := g.tensor(ho, wo, x.c)
	e := &g.net.env
	row := func(_, i int) {
		n, y := i/ho, i%ho
		src, dst := e.at(x.r), e.at(out.r)
		resampleRow(dst[(n*ho+y)*wo*x.c:][:wo*x.c], src[n*x.size():(n+1)*x.size()], y, x.h, x.w, x.c, r, scale)
	}
	g.add(node{
		name: name, kind: "resample", out: out, reads: []ref{x.r}, writes: []ref{out.r},
		run: func(e *env) {
			if r == down {
				kernels.Down2(e.pool, e.at(out.r), e.at(x.r), e.n, x.h, x.w, x.c, 0.25*scale)
				return
			}
			e.pool.Do(e.n*ho, row)
		},
	})
	return out
}

// resnet reads x and, in the upward half, skip beside it.
func (g *graph) resnet(l *resnet, x, skip, times tensor) tensor {
	if g.skips(l.name) {
		if l.in == l.out && l.resample == keep && skip.r == 0 {
			return x
		}
		g.fail(fmt.Errorf("unet2d: layer %s cannot be skipped: its output has another shape than its input", l.name))
	}
	width := l.out
	if l.scaleShift {
		width = 2 * l.out
	}
	time := g.columnsNode(l.name+".time_emb_proj", times, l.timeAt, width)
	in := source{x: x, x2: skip, norm: g.groupNorm(l.norm1, x, skip, 0, 0), act: g.net.tree.act}
	raw := source{x: x, x2: skip}
	switch l.resample {
	case up:
		in.up = true
		raw = source{x: g.resampled(l.name+".upsample", x, up)}
	case down, firUp, firDown:
		a := g.apply(l.norm1.name, in)
		in = source{x: g.resampled(l.name+".resample", a, l.resample)}
		raw = source{x: g.resampled(l.name+".resample", x, l.resample)}
	}
	ep := epilogue{time: time.r}
	var gamma, beta ref
	if l.scaleShift {
		ep.time = 0
		gamma, beta = g.modulate(l.norm2, time)
	}
	h := g.conv(l.conv1, in, ep)
	residual := raw.x
	if l.shortcut != nil {
		residual = g.conv(l.shortcut, raw, epilogue{})
	}
	in = source{x: h, norm: g.groupNorm(l.norm2, h, tensor{}, gamma, beta), act: g.net.tree.act}
	return g.conv(l.conv2, in, epilogue{residual: residual, scale: 1 / l.outScale})
}

func (g *graph) attention(l *attention, x tensor) tensor {
	if g.skips(l.name) {
		return x
	}
	in := source{x: x}
	if l.norm != nil {
		in.norm = g.groupNorm(l.norm, x, tensor{}, 0, 0)
	}
	qkv := g.conv(l.qkv, in, epilogue{})
	var a tensor
	if g.named(l.name, g.identity) {
		a = g.columns(l.name, qkv, 2*l.heads*l.dim, l.heads*l.dim)
	} else {
		a = g.softmaxAttention(l, qkv)
	}
	return g.conv(l.out, source{x: a}, epilogue{residual: x, scale: 1 / l.outScale})
}

func (g *graph) softmaxAttention(l *attention, qkv tensor) tensor {
	inner, tokens := l.heads*l.dim, qkv.h*qkv.w
	out := g.tensor(qkv.h, qkv.w, inner)
	spec := func(n int) kernels.AttentionSpec {
		return kernels.AttentionSpec{
			Batch: n, Heads: l.heads, Tq: tokens, Tk: tokens, D: l.dim,
			LdQ: 3 * inner, LdK: 3 * inner, LdV: 3 * inner, LdO: inner, DType: g.net.dtype,
		}
	}
	g.add(node{
		name: l.name, kind: "attention", out: out, macs: 2 * tokens * tokens * inner,
		reads: []ref{qkv.r}, writes: []ref{out.r},
		scratch: func(n int) int { return kernels.AttentionScratch(g.net.pool, spec(n)) },
		run: func(e *env) {
			b := e.at(qkv.r)
			kernels.Attention(e.pool, e.at(out.r), b, b[inner:], b[2*inner:], spec(e.n), e.scratch)
		},
	})
	g.record(func() {
		dy, ok := g.takeGrad(out)
		if !ok {
			return
		}
		g.addGrad(qkv, g.attentionGrad(l, qkv, dy, spec))
	})
	return out
}

// columns copies the channels c0 to c0+c of x.
func (g *graph) columns(name string, x tensor, c0, c int) tensor {
	out := g.columnsNode(name, x, c0, c)
	g.record(func() {
		dy, ok := g.takeGrad(out)
		if !ok {
			return
		}
		d := g.tensor(x.h, x.w, x.c)
		g.add(node{
			name: name, kind: "copy", out: d, reads: []ref{dy.r}, writes: []ref{d.r},
			run: func(e *env) {
				src, dst := e.at(dy.r), e.at(d.r)
				clear(dst)
				for i := range e.n * x.h * x.w {
					copy(dst[i*x.c+c0:], src[i*c:(i+1)*c])
				}
			},
		})
		g.addGrad(x, d)
	})
	return out
}

func (g *graph) columnsNode(name string, x tensor, c0, c int) tensor {
	out := g.tensor(x.h, x.w, c)
	g.add(node{
		name: name, kind: "copy", out: out, reads: []ref{x.r}, writes: []ref{out.r},
		run: func(e *env) {
			src, dst := e.at(x.r), e.at(out.r)
			for i := range e.n * x.h * x.w {
				copy(dst[i*c:(i+1)*c], src[i*x.c+c0:])
			}
		},
	})
	return out
}

// The way back.

func (g *graph) record(f func()) {
	if g.save {
		g.tape = append(g.tape, f)
	}
}

// takeGrad gives the gradient of a tensor whose readers have all been passed.
func (g *graph) takeGrad(t tensor) (tensor, bool) {
	d, ok := g.grads[t.r]
	delete(g.grads, t.r)
	return d, ok
}

// addGrad adds a contribution to the gradient of t.
func (g *graph) addGrad(t, d tensor) {
	if t.r == 0 {
		return
	}
	old, ok := g.grads[t.r]
	if !ok {
		g.grads[t.r] = d
		return
	}
	sum := g.tensor(t.h, t.w, t.c)
	g.add(node{
		name: "gradient", kind: "add", out: sum, reads: []ref{old.r, d.r}, writes: []ref{sum.r}, over: []ref{old.r, d.r},
		run: func(e *env) { kernels.Add(e.pool, e.at(sum.r), e.at(old.r), e.at(d.r), 1) },
	})
	g.grads[t.r] = sum
}

func (g *graph) scaled(d tensor, s float64) tensor {
	out := g.tensor(d.h, d.w, d.c)
	g.add(node{
		name: "gradient", kind: "scale", out: out, reads: []ref{d.r}, writes: []ref{out.r}, over: []ref{d.r},
		// (d + d) s/2: the doubling is exact.
		run: func(e *env) { kernels.Add(e.pool, e.at(out.r), e.at(d.r), e.at(d.r), float32(s/2)) },
	})
	return out
}

// inputGrad passes the gradient of what a layer read on to the tensors behind
// it. of makes that gradient; it is given a tensor that it may add to it and
// says whether it did.
func (g *graph) inputGrad(in source, of func(into tensor) (d tensor, added bool)) {
	if in.norm == nil && in.act == kernels.Identity && !in.up && in.x2.r == 0 {
		old := g.grads[in.x.r] // zero for none
		d, added := of(old)
		if added {
			delete(g.grads, in.x.r)
		}
		g.addGrad(in.x, d)
		return
	}
	d, _ := of(tensor{})
	if in.up {
		small := g.tensor(in.x.h, in.x.w, d.c)
		big := d
		g.add(node{
			name: "gradient", kind: "resample", out: small, reads: []ref{big.r}, writes: []ref{small.r},
			run: func(e *env) { kernels.Down2(e.pool, e.at(small.r), e.at(big.r), e.n, big.h, big.w, big.c, 1) },
		})
		d = small
	}
	if in.norm != nil {
		d = g.normGrad(in, d)
	}
	if in.x2.r == 0 {
		g.addGrad(in.x, d)
		return
	}
	g.addGrad(in.x, g.columnsNode("gradient", d, 0, in.x.c))
	g.addGrad(in.x2, g.columnsNode("gradient", d, in.x.c, in.x2.c))
}

// normGrad is the gradient of x in act(norm(x)).
func (g *graph) normGrad(in source, dy tensor) tensor {
	x, m := in.x, in.norm
	if in.x2.r != 0 {
		joined := g.tensor(x.h, x.w, in.channels())
		both := source{x: in.x, x2: in.x2}
		g.add(node{
			name: m.name, kind: "join", out: joined, reads: both.refs(), writes: []ref{joined.r},
			run: func(e *env) { kernels.Apply(e.pool, e.at(joined.r), both.input(e), e.n, x.h, x.w) },
		})
		x = joined
	}
	if in.act == kernels.Identity || in.act == kernels.SiLU {
		return g.normGradNodes(m, x, dy, in.act)
	}
	dx := g.tensor(x.h, x.w, x.c)
	g.add(node{
		name: m.name, kind: "norm gradient", out: dx,
		reads: []ref{dy.r, x.r, m.gamma, m.beta}, writes: []ref{dx.r}, over: []ref{dy.r},
		run: func(e *env) {
			ga, be := m.params(e)
			kernels.GroupNormVJP(e.pool, e.at(dx.r), e.at(dy.r), e.at(x.r), e.n, x.h*x.w, x.c, m.groups, m.eps, ga, be, in.act)
		},
	})
	return dx
}

// Hooks.

func (g *graph) fail(err error) {
	if g.err == nil {
		g.err = err
	}
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

func (g *graph) skips(layer string) bool { return g.named(layer, g.skip) }

// build writes the whole network down.
func (n *Net) build(b *Batch) (*plan, error) {
	t := n.tree
	p := &plan{h: b.H, w: b.W, save: b.Save, identity: slices.Clone(b.IdentityAttention), skip: slices.Clone(b.SkipLayers)}
	g := &graph{plan: p, net: n, grads: map[ref]tensor{}, used: map[string]bool{}}

	p.in = p.tensor(b.H, b.W, t.cfg.InChannels)
	times := g.times()

	// Only what follows depends on the image.
	g.tape = nil
	image := p.in // NCSN++: the image on its way down
	h := g.conv(t.convIn, source{x: p.in}, epilogue{})
	pushed := []tensor{h}
	for _, blk := range t.downs {
		for j, r := range blk.resnets {
			h = g.resnet(r, h, tensor{}, times)
			if len(blk.attns) > 0 {
				h = g.attention(blk.attns[j], h)
			}
			pushed = append(pushed, h)
		}
		if blk.conv != nil {
			h = g.conv(blk.conv, source{x: h}, epilogue{})
		}
		if blk.resnet != nil {
			h = g.resnet(blk.resnet, h, tensor{}, times)
		}
		if blk.skip != nil {
			image = g.resampled(blk.name+".downsamplers.0", image, firDown)
			h = g.conv(blk.skip, source{x: image}, epilogue{residual: h})
		}
		if blk.conv != nil || blk.resnet != nil {
			pushed = append(pushed, h)
		}
	}
	for j, r := range t.mid {
		h = g.resnet(r, h, tensor{}, times)
		if j == 0 && t.midAttn != nil {
			h = g.attention(t.midAttn, h)
		}
	}
	image = tensor{} // NCSN++: the image on its way up
	for _, blk := range t.ups {
		for j, r := range blk.resnets {
			skip := pushed[len(pushed)-1]
			pushed = pushed[:len(pushed)-1]
			h = g.resnet(r, h, skip, times)
			if len(blk.attns) > 0 && !blk.ncsn {
				h = g.attention(blk.attns[j], h)
			}
		}
		if blk.ncsn {
			if len(blk.attns) > 0 {
				h = g.attention(blk.attns[0], h)
			}
			if image.r != 0 {
				image = g.resampled(blk.name+".upsampler", image, firUp)
			}
			if blk.skip != nil {
				in := source{x: h, norm: g.groupNorm(blk.skipNorm, h, tensor{}, 0, 0), act: kernels.SiLU}
				image = g.conv(blk.skip, in, epilogue{residual: image})
			}
		}
		if blk.conv != nil {
			h = g.conv(blk.conv, source{x: h, up: true}, epilogue{})
		}
		if blk.resnet != nil {
			h = g.resnet(blk.resnet, h, tensor{}, times)
		}
	}
	in := source{x: h, norm: g.groupNorm(t.normOut, h, tensor{}, 0, 0), act: kernels.SiLU}
	p.out = g.conv(t.convOut, in, epilogue{residual: image})
	p.forward = len(p.nodes)

	if p.save {
		p.dOut = p.tensor(p.out.h, p.out.w, p.out.c)
		g.grads[p.out.r] = p.dOut
		for _, f := range slices.Backward(g.tape) {
			f()
		}
		p.dIn = g.grads[p.in.r]
	}
	for _, s := range slices.Concat(p.identity, p.skip) {
		if !g.used[s] {
			g.fail(fmt.Errorf("unet2d: there is no layer %q to hook into", s))
		}
	}
	if g.err != nil {
		return nil, g.err
	}
	p.layout()
	return p, nil
}

// times is what the residual blocks add for the time and the class, side by
// side, one row per image.
func (g *graph) times() tensor {
	t := g.net.tree
	row := func(c int) tensor { return g.tensor(1, 1, c) }
	enc := row(t.timeIn)
	g.time = enc.r
	class := tensor{}
	switch {
	case t.class[0] != nil:
		c := row(t.timeIn)
		g.class = c.r
		c = g.conv(t.class[0], source{x: c}, epilogue{act: kernels.SiLU})
		class = g.conv(t.class[1], source{x: c}, epilogue{})
	case t.takesClass():
		class = row(t.timeDim)
		g.class = class.r
	}
	h := g.conv(t.time[0], source{x: enc}, epilogue{act: kernels.SiLU})
	h = g.conv(t.time[1], source{x: h}, epilogue{residual: class, act: t.act})
	return g.conv(t.timeProj, source{x: h}, epilogue{})
}
