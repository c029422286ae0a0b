package graph

import (
	"fmt"
	"slices"
	"strings"

	"drift/internal/kernels"
)

// Graph writes a network down as a plan, the forward pass first. With
// gradients it notes for every operation how its gradient is found and appends
// those calls.
type Graph struct {
	*Plan
	Layers *Layers

	env   *Env // of the engine that will run the plan
	save  bool
	hooks Hooks
	used  map[string]bool // hook names that met a layer
	err   error

	tape    []func()
	depends map[ref]bool  // on the input
	grads   map[ref]Value // as far as the readers have been passed on the way back
}

// Hooks asks for changes of some layers.
type Hooks struct {
	IdentityAttention []string // attention layers whose map becomes the identity
	SkipLayers        []string // layers that pass their input through
}

// Input makes the value that gradients are with respect to. The caller of the
// engine fills it.
func (g *Graph) Input(h, w, c int) Value {
	g.in = g.Feed("", h, w, c)
	g.depends[g.in.r] = true
	return g.in
}

// Feed makes a value that the caller of the engine fills, found again by its
// name in the Env.
func (g *Graph) Feed(name string, h, w, c int) Value {
	v := g.value(h, w, c)
	g.fed[name] = v
	return v
}

// Output names the result.
func (g *Graph) Output(v Value) { g.out = v }

// Keep lets the caller of the engine read a value after the forward pass.
func (g *Graph) Keep(name string, v Value) Value {
	g.kept[name] = v
	return v
}

// Fail stops the building of the plan with an error; the first one stays.
func (g *Graph) Fail(err error) {
	if g.err == nil {
		g.err = err
	}
}

func (g *Graph) value(h, w, c int) Value { return Value{g.buf(h * w * c), h, w, c} }

// add appends a node. Its outputs depend on the input if what it reads does.
func (g *Graph) add(n node) {
	for _, r := range n.reads {
		if g.depends[r] {
			for _, w := range n.writes {
				g.depends[w] = true
			}
			break
		}
	}
	g.nodes = append(g.nodes, n)
}

// Custom appends a call that writes out from what it reads. It has no
// gradient: a network that needs one where the input passes refuses.
func (g *Graph) Custom(name, kind string, out Value, run func(e *Env), reads ...Value) Value {
	n := node{name: name, kind: kind, out: out, writes: []ref{out.r}, run: run}
	for _, v := range reads {
		n.reads = append(n.reads, v.r)
	}
	g.add(n)
	g.record(out, func(Value) { g.Fail(fmt.Errorf("%s (%s) has no gradient", name, kind)) })
	return out
}

// New makes a value for a Custom call to write.
func (g *Graph) New(h, w, c int) Value { return g.value(h, w, c) }

// The way back.

// record notes how the gradient of the operation that made out goes on to
// what it read. It is called with that of out, once it is whole.
func (g *Graph) record(out Value, f func(dy Value)) {
	if !g.save || !g.depends[out.r] {
		return
	}
	g.tape = append(g.tape, func() {
		dy, ok := g.grads[out.r]
		if !ok {
			return
		}
		delete(g.grads, out.r)
		f(dy.As(out.H, out.W, out.C))
	})
}

// addGrad adds a contribution to the gradient of v.
func (g *Graph) addGrad(v, d Value) {
	if !g.depends[v.r] {
		return
	}
	old, ok := g.grads[v.r]
	if !ok {
		g.grads[v.r] = d
		return
	}
	g.grads[v.r] = g.sum(old, d)
}

func (g *Graph) sum(a, b Value) Value {
	sum := g.value(a.H, a.W, a.C)
	g.add(node{
		name: "gradient", kind: "add", out: sum, reads: []ref{a.r, b.r}, writes: []ref{sum.r}, over: []ref{a.r, b.r},
		run: func(e *Env) { kernels.Add(e.Pool, e.at(sum.r), e.at(a.r), e.at(b.r), 1) },
	})
	return sum
}

func (g *Graph) scaled(d Value, s float64) Value {
	out := g.value(d.H, d.W, d.C)
	g.add(node{
		name: "gradient", kind: "scale", out: out, reads: []ref{d.r}, writes: []ref{out.r}, over: []ref{d.r},
		// (d + d) s/2: the doubling is exact.
		run: func(e *Env) { kernels.Add(e.Pool, e.at(out.r), e.at(d.r), e.at(d.r), float32(s/2)) },
	})
	return out
}

// Hooks.

func (g *Graph) named(layer string, list []string) bool {
	hit := false
	for _, s := range list {
		if layer == s || strings.HasPrefix(layer, s+".") {
			g.used[s] = true
			hit = true
		}
	}
	return hit
}

// Skips tells whether a hook asks for a layer, or a block around it, to be
// left out.
func (g *Graph) Skips(layer string) bool { return g.named(layer, g.hooks.SkipLayers) }

// Identity tells whether a hook asks for an attention layer, or a block around
// it, to attend only to itself.
func (g *Graph) Identity(layer string) bool { return g.named(layer, g.hooks.IdentityAttention) }

// finish appends the gradients and lays the plan out.
func (g *Graph) finish() error {
	g.forward = len(g.nodes)
	if g.save && g.err == nil {
		g.dOut = g.value(g.out.H, g.out.W, g.out.C)
		g.grads[g.out.r] = g.dOut
		for _, f := range slices.Backward(g.tape) {
			f()
		}
		d, ok := g.grads[g.in.r]
		if !ok {
			g.Fail(fmt.Errorf("the output does not depend on the input"))
		}
		g.dIn = d
	}
	for _, s := range slices.Concat(g.hooks.IdentityAttention, g.hooks.SkipLayers) {
		if !g.used[s] {
			g.Fail(fmt.Errorf("there is no layer %q to hook into", s))
		}
	}
	if err := g.Layers.Wait(); err != nil {
		return err
	}
	if g.err != nil {
		return g.err
	}
	g.layout()
	return nil
}
