package graph

import (
	"fmt"

	"drift/internal/kernels"
)

func failf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// Normed is a group norm of a source: the scale and shift of its channels.
type Normed struct {
	*Norm
	c, groups    int
	eps          float64
	scale, shift ref
	own          Modulation // per image, none for the layer's own
}

// Modulation is a gamma and a beta of every image, in place of a norm's own.
type Modulation struct{ Gamma, Beta Value }

func (m *Normed) params(e *Env) (gamma, beta []float32) {
	if m.own.Gamma.Some() {
		return e.At(m.own.Gamma), e.At(m.own.Beta)
	}
	return m.gamma, m.beta
}

// GroupNorm finds the scale and shift that normalise x and x2 side by side.
func (g *Graph) GroupNorm(l *Norm, x, x2 Value, groups int, eps float64, own Modulation) *Normed {
	c := x.C + x2.C
	m := &Normed{Norm: l, c: c, groups: groups, eps: eps, scale: g.buf(c), shift: g.buf(c), own: own}
	if groups < 1 || c%groups != 0 {
		g.Fail(failf("%s: %d groups do not divide %d channels", l.name, groups, c))
		return m
	}
	in := Source{X: x, X2: x2}
	g.add(node{
		name: l.name, kind: "norm", out: Value{m.scale, x.H, x.W, c},
		reads: []ref{x.r, x2.r, own.Gamma.r, own.Beta.r}, writes: []ref{m.scale, m.shift},
		scratch: func(n int) int { return kernels.GroupNormScratch(n, x.Rows(), c) },
		run: func(e *Env) {
			ga, be := m.params(e)
			kernels.GroupNorm(e.Pool, e.at(m.scale), e.at(m.shift), in.input(e), e.N, x.Rows(), groups, eps, ga, be, e.scratch)
		},
	})
	return m
}

// LayerNorm normalises every row of x; with own, the gamma and beta are per
// image.
func (g *Graph) LayerNorm(l *Norm, x Value, eps float64, own Modulation) Value {
	out := g.value(x.H, x.W, x.C)
	params := func(e *Env) (gamma, beta []float32) {
		if own.Gamma.Some() {
			return e.At(own.Gamma), e.At(own.Beta)
		}
		return l.gamma, l.beta
	}
	g.add(node{
		name: l.name, kind: "norm", out: out, reads: []ref{x.r, own.Gamma.r, own.Beta.r}, writes: []ref{out.r},
		run: func(e *Env) {
			ga, be := params(e)
			kernels.LayerNorm(e.Pool, e.at(out.r), e.at(x.r), e.N, x.Rows(), x.C, eps, ga, be)
		},
	})
	g.record(out, func(dy Value) {
		dx := g.value(x.H, x.W, x.C)
		g.add(node{
			name: l.name, kind: "norm gradient", out: dx, reads: []ref{dy.r, x.r, own.Gamma.r}, writes: []ref{dx.r}, over: []ref{dy.r},
			run: func(e *Env) {
				ga, _ := params(e)
				kernels.LayerNormVJP(e.Pool, e.at(dx.r), e.at(dy.r), e.at(x.r), e.N, x.Rows(), x.C, eps, ga)
			},
		})
		g.addGrad(x, dx)
	})
	return out
}

// RMSNorm divides every run of width channels (all of a row for 0) by its root
// mean square, times gamma (width).
func (g *Graph) RMSNorm(l *Norm, x Value, width int, eps float64) Value {
	if width == 0 {
		width = x.C
	}
	rows := x.Size() / width
	out := g.value(x.H, x.W, x.C)
	g.add(node{
		name: l.name, kind: "norm", out: out, reads: []ref{x.r}, writes: []ref{out.r},
		run: func(e *Env) {
			kernels.RMSNorm(e.Pool, e.at(out.r), e.at(x.r), e.N, rows, width, eps, l.gamma)
		},
	})
	g.record(out, func(dy Value) {
		dx := g.value(x.H, x.W, x.C)
		g.add(node{
			name: l.name, kind: "norm gradient", out: dx, reads: []ref{dy.r, x.r}, writes: []ref{dx.r}, over: []ref{dy.r},
			run: func(e *Env) {
				kernels.RMSNormVJP(e.Pool, e.at(dx.r), e.at(dy.r), e.at(x.r), e.N, rows, width, eps, l.gamma)
			},
		})
		g.addGrad(x, dx)
	})
	return out
}

// ScaleShift makes gamma (1 + s) and beta (1 + s) + b of every image, from the
// vectors s and b among the channels of a row per image and a norm's own gamma
// and beta (1 and 0 without).
func (g *Graph) ScaleShift(l *Norm, s, b Cols) Modulation {
	c := s.C
	m := Modulation{g.value(1, 1, c), g.value(1, 1, c)}
	g.add(node{
		name: l.name, kind: "modulation", out: m.Gamma, reads: []ref{s.V.r, b.V.r}, writes: []ref{m.Gamma.r, m.Beta.r},
		run: func(e *Env) {
			ga, be := e.At(m.Gamma), e.At(m.Beta)
			scales, shifts := e.At(s.V), e.At(b.V)
			for i := range e.N {
				sc, sh := scales[i*s.V.C+s.At:][:c], shifts[i*b.V.C+b.At:][:c]
				for j, v := range sc {
					own, off := float32(1), float32(0)
					if l.gamma != nil {
						own, off = l.gamma[j], l.beta[j]
					}
					ga[i*c+j] = own * (1 + v)
					be[i*c+j] = float32(off*(1+v)) + sh[j]
				}
			}
		},
	})
	return m
}

// normGrad is the gradient of x in act(norm(x)).
func (g *Graph) normGrad(in Source, dy Value) Value {
	x, m := in.X, in.Norm
	if in.X2.Some() {
		both := Source{X: in.X, X2: in.X2}
		joined := g.value(x.H, x.W, in.channels())
		g.add(node{
			name: m.name, kind: "join", out: joined, reads: both.refs(), writes: []ref{joined.r},
			run: func(e *Env) { kernels.Apply(e.Pool, e.at(joined.r), both.input(e), e.N, x.H, x.W) },
		})
		x = joined
	}
	dx := g.value(x.H, x.W, x.C)
	g.add(node{
		name: m.name, kind: "norm gradient", out: dx,
		reads: []ref{dy.r, x.r, m.own.Gamma.r, m.own.Beta.r}, writes: []ref{dx.r}, over: []ref{dy.r},
		run: func(e *Env) {
			ga, be := m.params(e)
			kernels.GroupNormVJP(e.Pool, e.at(dx.r), e.at(dy.r), e.at(x.r), e.N, x.Rows(), x.C, m.groups, m.eps, ga, be, in.Act)
		},
	})
	return dx
}
