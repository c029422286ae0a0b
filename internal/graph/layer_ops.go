package graph

import (
	"math"

	"drift/internal/kernels"
)

// Source is what a layer reads: one value, or two side by side, seen through a
// norm, an activation and an upsampling.
type Source struct {
	X, X2 Value
	Norm  *Normed
	Act   kernels.Activation
	Up    bool // nearest, factor 2
}

// From reads a value as it is.
func From(v Value) Source { return Source{X: v} }

func (s Source) channels() int { return s.X.C + s.X2.C }

func (s Source) size() (h, w int) {
	if s.Up {
		return 2 * s.X.H, 2 * s.X.W
	}
	return s.X.H, s.X.W
}

func (s Source) refs() []ref {
	r := []ref{s.X.r, s.X2.r}
	if s.Norm != nil {
		r = append(r, s.Norm.scale, s.Norm.shift)
	}
	return r
}

func (s Source) plain() bool {
	return s.Norm == nil && s.Act == kernels.Identity && !s.Up && !s.X2.Some()
}

func (s Source) input(e *Env) kernels.Input {
	in := kernels.Input{X: e.at(s.X.r), C: s.X.C, X2: e.at(s.X2.r), C2: s.X2.C, Act: s.Act, Upsample: s.Up}
	if s.Norm != nil {
		in.Scale, in.Shift = e.at(s.Norm.scale), e.at(s.Norm.shift)
	}
	return in
}

// Epilogue is what happens to a layer's output before it is stored:
//
//	y = Act((layer(x) + bias + PerImage + Residual) * Scale)
type Epilogue struct {
	Residual Value
	PerImage Value   // one vector per image
	Scale    float64 // 0 means 1
	Act      kernels.Activation
}

func (ep Epilogue) kernel(e *Env) kernels.Epilogue {
	return kernels.Epilogue{
		Residual: e.at(ep.Residual.r), RowBias: e.at(ep.PerImage.r), Scale: float32(ep.Scale), Act: ep.Act,
	}
}

// Conv is a convolution.
func (g *Graph) Conv(l *Layer, in Source, ep Epilogue) Value {
	h, w := in.size()
	ho, wo := l.spec.OutSize(h, w)
	out := g.value(ho, wo, l.spec.Cout)
	g.layer(l, "conv", in, ep, out, node{
		scratch: func(n int) int { return l.conv.Scratch(g.env.Pool.Workers(), n, in.X.H, in.X.W, in.Up) },
		run: func(e *Env) {
			l.conv.Run(e.Pool, e.at(out.r), in.input(e), e.N, in.X.H, in.X.W, e.scratch, ep.kernel(e))
		},
	})
	return out
}

// Linear is a linear layer over the pixels or tokens of a source.
func (g *Graph) Linear(l *Layer, in Source, ep Epilogue) Value {
	h, w := in.size()
	rows := h * w
	out := g.value(h, w, l.spec.Cout)
	n := node{
		scratch: func(n int) int { return l.lin.ScratchInput(g.env.Pool.Workers(), n, rows) },
		run: func(e *Env) {
			l.lin.RunInput(e.Pool, e.at(out.r), in.input(e), e.N, rows, e.scratch, ep.kernel(e))
		},
	}
	if in.plain() && !ep.PerImage.Some() { // the rows of all images are one product
		n.scratch = func(n int) int { return l.lin.Scratch(g.env.Pool.Workers(), n*rows) }
		n.run = func(e *Env) {
			l.lin.Run(e.Pool, e.at(out.r), e.at(in.X.r), e.N*rows, e.scratch, ep.kernel(e))
		}
	}
	g.layer(l, "linear", in, ep, out, n)
	return out
}

// layer appends a layer and its gradient.
func (g *Graph) layer(l *Layer, kind string, in Source, ep Epilogue, out Value, n node) {
	if in.channels() != l.spec.Cin {
		g.Fail(failf("%s reads %d channels, it takes %d", l.name, in.channels(), l.spec.Cin))
	}
	n.name, n.kind, n.out = l.name, kind, out
	n.macs = out.Rows() * l.spec.Cin * l.spec.Cout * l.spec.KH * l.spec.KW
	n.reads = append(in.refs(), ep.Residual.r, ep.PerImage.r)
	n.writes = []ref{out.r}
	if r := ep.Residual.r; r != 0 && r != in.X.r && r != in.X2.r {
		n.over = []ref{r}
	}
	g.add(n)
	g.record(out, func(dy Value) {
		if ep.Act != kernels.Identity {
			g.Fail(failf("%s has an activation after it, which has no gradient: Activate has one", l.name))
		}
		if ep.Scale != 0 && ep.Scale != 1 {
			dy = g.scaled(dy, ep.Scale)
		}
		g.addGrad(ep.Residual, dy)
		if !g.depends[in.X.r] && !g.depends[in.X2.r] {
			return
		}
		g.Layers.loadGrad(l)
		h, w := in.size()
		g.inputGrad(in, func(into Value) (Value, bool) { return g.layerGrad(l, dy, h, w, into), true })
	})
}

// layerGrad is the gradient of the layer's input, of h by w pixels, plus into
// where that is a value.
func (g *Graph) layerGrad(l *Layer, dy Value, h, w int, into Value) Value {
	dx := g.value(h, w, l.spec.Cin)
	n := node{
		name: l.name, kind: "layer gradient", out: dx, macs: dy.Rows() * l.spec.Cin * l.spec.Cout * l.spec.KH * l.spec.KW,
		reads: []ref{dy.r, into.r}, writes: []ref{dx.r},
	}
	if l.token {
		n.scratch = func(n int) int { return l.linGrad.Scratch(g.env.Pool.Workers(), n*h*w) }
		n.run = func(e *Env) {
			l.linGrad.Run(e.Pool, e.at(dx.r), e.at(dy.r), e.N*h*w, e.scratch, kernels.Epilogue{Residual: e.at(into.r)})
		}
	} else {
		n.scratch = func(n int) int { return l.convGrad.Scratch(g.env.Pool.Workers(), n, h, w) }
		n.run = func(e *Env) {
			l.convGrad.Run(e.Pool, e.at(dx.r), e.at(dy.r), e.N, h, w, e.scratch, kernels.Epilogue{Residual: e.at(into.r)})
		}
	}
	if into.r != dy.r {
		n.over = []ref{into.r}
	}
	g.add(n)
	return dx
}

// inputGrad passes the gradient of what a layer read on to the values behind
// it. of makes that gradient; it is given a value that it may add to it and
// says whether it did.
func (g *Graph) inputGrad(in Source, of func(into Value) (d Value, added bool)) {
	if in.plain() {
		old := g.grads[in.X.r] // zero for none
		d, added := of(old)
		if added {
			delete(g.grads, in.X.r)
		}
		g.addGrad(in.X, d)
		return
	}
	d, _ := of(Value{})
	if in.Up {
		big, small := d, g.value(in.X.H, in.X.W, d.C)
		g.add(node{
			name: "gradient", kind: "resample", out: small, reads: []ref{big.r}, writes: []ref{small.r},
			run: func(e *Env) { kernels.Down2(e.Pool, e.at(small.r), e.at(big.r), e.N, big.H, big.W, big.C, 1) },
		})
		d = small
	}
	switch {
	case in.Norm != nil:
		d = g.normGrad(in, d)
	case in.Act != kernels.Identity && in.X2.Some():
		g.Fail(failf("an activation of two values side by side has no gradient without a norm"))
	case in.Act != kernels.Identity:
		d = g.activationGrad("gradient", d, in.X, in.Act)
	}
	if !in.X2.Some() {
		g.addGrad(in.X, d)
		return
	}
	g.addGrad(in.X, g.columns("gradient", d, 0, in.X.C))
	g.addGrad(in.X2, g.columns("gradient", d, in.X.C, in.X2.C))
}

// Apply writes down the tensor that a source stands for.
func (g *Graph) Apply(name string, in Source) Value {
	h, w := in.size()
	out := g.value(h, w, in.channels())
	g.add(node{
		name: name, kind: "apply", out: out, reads: in.refs(), writes: []ref{out.r},
		run: func(e *Env) { kernels.Apply(e.Pool, e.at(out.r), in.input(e), e.N, in.X.H, in.X.W) },
	})
	g.record(out, func(dy Value) {
		g.inputGrad(in, func(Value) (Value, bool) { return dy, false })
	})
	return out
}

// Activate is act(x).
func (g *Graph) Activate(name string, x Value, act kernels.Activation) Value {
	out := g.value(x.H, x.W, x.C)
	g.add(node{
		name: name, kind: "activation", out: out, reads: []ref{x.r}, writes: []ref{out.r}, over: []ref{x.r},
		run: func(e *Env) { kernels.Activate(e.Pool, e.at(out.r), e.at(x.r), act) },
	})
	g.record(out, func(dy Value) { g.addGrad(x, g.activationGrad(name, dy, x, act)) })
	return out
}

func (g *Graph) activationGrad(name string, dy, x Value, act kernels.Activation) Value {
	dx := g.value(x.H, x.W, x.C)
	g.add(node{
		name: name, kind: "activation gradient", out: dx, reads: []ref{dy.r, x.r}, writes: []ref{dx.r}, over: []ref{dy.r},
		run: func(e *Env) { kernels.ActivateVJP(e.Pool, e.at(dx.r), e.at(dy.r), e.at(x.r), act) },
	})
	return dx
}

// Sum is a + b.
func (g *Graph) Sum(name string, a, b Value) Value {
	out := g.value(a.H, a.W, a.C)
	g.add(node{
		name: name, kind: "add", out: out, reads: []ref{a.r, b.r}, writes: []ref{out.r}, over: []ref{a.r, b.r},
		run: func(e *Env) { kernels.Add(e.Pool, e.at(out.r), e.at(a.r), e.at(b.r), 1) },
	})
	g.record(out, func(dy Value) {
		g.addGrad(a, dy)
		g.addGrad(b, dy)
	})
	return out
}

// GLU is x[:c] * act(x[c:]) of the two halves of the channels.
func (g *Graph) GLU(name string, x Value, act kernels.Activation) Value {
	d := x.C / 2
	out := g.value(x.H, x.W, d)
	g.add(node{
		name: name, kind: "glu", out: out, reads: []ref{x.r}, writes: []ref{out.r},
		run: func(e *Env) { kernels.GLU(e.Pool, e.at(out.r), e.at(x.r), e.N*x.Rows(), d, act) },
	})
	g.record(out, func(dy Value) {
		dx := g.value(x.H, x.W, x.C)
		g.add(node{
			name: name, kind: "glu gradient", out: dx, reads: []ref{dy.r, x.r}, writes: []ref{dx.r},
			run: func(e *Env) { kernels.GLUVJP(e.Pool, e.at(dx.r), e.at(dy.r), e.at(x.r), e.N*x.Rows(), d, act) },
		})
		g.addGrad(x, dx)
	})
	return out
}

// Depthwise convolves every channel by itself: weights (C, 1, k, k) and a bias
// stand under name.
func (g *Graph) Depthwise(name string, x Value, k int, act kernels.Activation) Value {
	l := g.Layers
	w, b := l.Tensor(name+".weight"), l.optional(name+".bias")
	if len(w) != x.C*k*k {
		g.Fail(failf("%s has %d weights for %d channels", name, len(w), x.C))
		return x
	}
	pad := kernels.Same(k / 2)
	layer := kernels.NewDepthwise(x.C, k, k, pad, w, b)
	out := g.value(x.H, x.W, x.C)
	g.add(node{
		name: name, kind: "depthwise", out: out, reads: []ref{x.r}, writes: []ref{out.r}, macs: layer.MACs(1, x.H, x.W),
		run: func(e *Env) { layer.Run(e.Pool, e.At(out), e.At(x), e.N, x.H, x.W, act) },
	})
	g.record(out, func(dy Value) {
		if act != kernels.Identity {
			g.Fail(failf("%s has an activation after it, which has no gradient: Activate has one", name))
		}
		back := kernels.NewDepthwiseGrad(x.C, k, k, pad, w)
		dx := g.value(x.H, x.W, x.C)
		g.add(node{
			name: name, kind: "depthwise gradient", out: dx, reads: []ref{dy.r}, writes: []ref{dx.r},
			run: func(e *Env) { back.Run(e.Pool, e.At(dx), e.At(dy), e.N, x.H, x.W, kernels.Identity) },
		})
		g.addGrad(x, dx)
	})
	return out
}

// Resize is x at another size by nearest neighbours: pixel (i, j) reads
// (floor(i H/h), floor(j W/w)).
func (g *Graph) Resize(name string, x Value, h, w int) Value {
	out := g.value(h, w, x.C)
	env := g.env
	row := func(_, i int) {
		n, y := i/h, i%h
		src := env.at(x.r)[(n*x.H+y*x.H/h)*x.W*x.C:]
		dst := env.at(out.r)[i*w*x.C:]
		for j := range w {
			copy(dst[j*x.C:(j+1)*x.C], src[j*x.W/w*x.C:])
		}
	}
	g.add(node{
		name: name, kind: "resample", out: out, reads: []ref{x.r}, writes: []ref{out.r},
		run: func(e *Env) { e.Pool.Do(e.N*h, row) },
	})
	g.record(out, func(dy Value) {
		dx := g.value(x.H, x.W, x.C)
		image := func(_, n int) {
			src, dst := env.at(dy.r)[n*dy.Size():][:dy.Size()], env.at(dx.r)[n*dx.Size():][:dx.Size()]
			clear(dst)
			for y := range h {
				for j := range w {
					to := dst[(y*x.H/h*x.W+j*x.W/w)*x.C:][:x.C]
					for c, v := range src[(y*w+j)*x.C:][:x.C] {
						to[c] += v
					}
				}
			}
		}
		g.add(node{
			name: name, kind: "resample gradient", out: dx, reads: []ref{dy.r}, writes: []ref{dx.r},
			run: func(e *Env) { e.Pool.Do(e.N, image) },
		})
		g.addGrad(x, dx)
	})
	return out
}

// columns copies the channels c0 to c0+c of x.
func (g *Graph) columns(name string, x Value, c0, c int) Value {
	out := g.value(x.H, x.W, c)
	g.add(node{
		name: name, kind: "copy", out: out, reads: []ref{x.r}, writes: []ref{out.r},
		run: func(e *Env) {
			src, dst := e.at(x.r), e.at(out.r)
			for i := range e.N * x.Rows() {
				copy(dst[i*c:(i+1)*c], src[i*x.C+c0:])
			}
		},
	})
	return out
}

// Columns copies channels into a value of their own.
func (g *Graph) Columns(name string, x Cols) Value {
	v := x.V
	out := g.columns(name, v, x.At, x.C)
	g.record(out, func(dy Value) {
		d := g.value(v.H, v.W, v.C)
		g.add(node{
			name: name, kind: "copy", out: d, reads: []ref{dy.r}, writes: []ref{d.r},
			run: func(e *Env) {
				src, dst := e.at(dy.r), e.at(d.r)
				clear(dst)
				for i := range e.N * v.Rows() {
					copy(dst[i*v.C+x.At:], src[i*x.C:(i+1)*x.C])
				}
			},
		})
		g.addGrad(v, d)
	})
	return out
}

// Affine is scale*x + shift.
func (g *Graph) Affine(name string, x Value, scale, shift float32) Value {
	return g.each(name, x,
		func(v float32) float32 { return float32(scale*v) + shift },
		func(dy, _ float32) float32 { return scale * dy })
}

// Clamp is tanh(x/m) m: the identity near 0, and never beyond m.
func (g *Graph) Clamp(name string, x Value, m float64) Value {
	return g.each(name, x,
		func(v float32) float32 { return float32(math.Tanh(float64(v)/m) * m) },
		func(dy, v float32) float32 {
			u := math.Tanh(float64(v) / m)
			return float32(float64(dy) * (1 - u*u))
		})
}

// each is a function of every value by itself, for the small ends of a
// network; back gives its gradient from that of the output and the input.
func (g *Graph) each(name string, x Value, f func(v float32) float32, back func(dy, v float32) float32) Value {
	out := g.value(x.H, x.W, x.C)
	g.add(node{
		name: name, kind: "function", out: out, reads: []ref{x.r}, writes: []ref{out.r}, over: []ref{x.r},
		run: func(e *Env) {
			dst := e.At(out)
			for i, v := range e.At(x) {
				dst[i] = f(v)
			}
		},
	})
	g.record(out, func(dy Value) {
		dx := g.value(x.H, x.W, x.C)
		g.add(node{
			name: name, kind: "function gradient", out: dx, reads: []ref{dy.r, x.r}, writes: []ref{dx.r}, over: []ref{dy.r},
			run: func(e *Env) {
				dst, d := e.At(dx), e.At(dy)
				for i, v := range e.At(x) {
					dst[i] = back(d[i], v)
				}
			},
		})
		g.addGrad(x, dx)
	})
	return out
}
