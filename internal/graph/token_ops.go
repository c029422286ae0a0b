package graph

import (
	"math"

	"drift/internal/kernels"
)

// Attention is softmax(q k^T Scale + bias) v.
type Attention struct {
	Name       string
	Heads, Dim int
	Scale      float32 // 0 means 1/sqrt(Dim)
	Causal     bool    // query t sees keys 0..t
	KeyBias    Value   // (1, keys, 1) per image, added to the scores; -Inf hides a key
}

// Attention appends an attention layer. q, k and v are Heads*Dim channels of
// token values; those of k and v, and those of q and k where the layer is
// causal, must have as many tokens.
func (g *Graph) Attention(a Attention, q, k, v Cols) Value {
	inner := a.Heads * a.Dim
	tq, tk := q.V.Rows(), k.V.Rows()
	out := g.value(q.V.H, q.V.W, inner)
	spec := func(e *Env, n int) kernels.AttentionSpec {
		s := kernels.AttentionSpec{
			Batch: n, Heads: a.Heads, Tq: tq, Tk: tk, D: a.Dim,
			LdQ: q.V.C, LdK: k.V.C, LdV: v.V.C, LdO: inner, Scale: a.Scale, Causal: a.Causal, DType: g.Layers.dtype,
		}
		if e != nil {
			s.KeyBias = e.At(a.KeyBias)
		}
		return s
	}
	if q.C != inner || k.C != inner || v.C != inner || v.V.Rows() != tk {
		g.Fail(failf("%s: attention of %d channels reads %d, %d and %d", a.Name, inner, q.C, k.C, v.C))
		return out
	}
	g.add(node{
		name: a.Name, kind: "attention", out: out, macs: 2 * tq * tk * inner,
		reads: []ref{q.V.r, k.V.r, v.V.r, a.KeyBias.r}, writes: []ref{out.r},
		scratch: func(n int) int { return kernels.AttentionScratch(g.env.Pool, spec(nil, n)) },
		run: func(e *Env) {
			kernels.Attention(e.Pool, e.at(out.r), e.At(q.V)[q.At:], e.At(k.V)[k.At:], e.At(v.V)[v.At:], spec(e, e.N), e.scratch)
		},
	})
	g.record(out, func(dy Value) {
		// One gradient for every value that q, k and v are channels of.
		grads := map[ref]Value{}
		var whole []Value // values whose channels are not all written
		cover := map[ref]int{}
		parts := []Cols{q, k, v}
		for _, p := range parts {
			if _, ok := grads[p.V.r]; !ok {
				grads[p.V.r] = g.value(p.V.H, p.V.W, p.V.C)
			}
			cover[p.V.r] += p.C
		}
		n := node{
			name: a.Name, kind: "attention gradient", macs: 5 * tq * tk * inner,
			reads:   []ref{dy.r, q.V.r, k.V.r, v.V.r, a.KeyBias.r},
			scratch: func(n int) int { return kernels.AttentionVJPScratch(g.env.Pool, spec(nil, n)) },
		}
		var order []Value
		seen := map[ref]bool{}
		for _, p := range parts {
			if !seen[p.V.r] {
				seen[p.V.r] = true
				order = append(order, p.V)
				n.writes = append(n.writes, grads[p.V.r].r)
				if cover[p.V.r] < p.V.C {
					whole = append(whole, grads[p.V.r])
				}
			}
		}
		dq, dk, dv := grads[q.V.r], grads[k.V.r], grads[v.V.r]
		n.out = dq
		n.run = func(e *Env) {
			for _, w := range whole {
				clear(e.At(w))
			}
			kernels.AttentionVJP(e.Pool, e.At(dq)[q.At:], e.At(dk)[k.At:], e.At(dv)[v.At:], e.At(dy),
				e.At(q.V)[q.At:], e.At(k.V)[k.At:], e.At(v.V)[v.At:], spec(e, e.N), e.scratch)
		}
		g.add(n)
		for _, o := range order {
			g.addGrad(o, grads[o.r])
		}
	})
	return out
}

// SelfAttention is Attention unless a hook asks for the identity: then every
// token attends to itself alone, and the result is v.
func (g *Graph) SelfAttention(a Attention, q, k, v Cols) Value {
	if g.Identity(a.Name) {
		return g.Columns(a.Name, v)
	}
	return g.Attention(a, q, k, v)
}

// gateRows is the number of tokens of an item of Gated.
const gateRows = 16

// Gated is x + gate*y, or gate*y without x; gate is a vector per image.
func (g *Graph) Gated(name string, x, y Value, gate Cols) Value {
	d, tokens := y.C, y.Rows()
	out := g.value(y.H, y.W, d)
	per := (tokens + gateRows - 1) / gateRows
	env := g.env
	item := func(_, i int) {
		n, t0 := i/per, i%per*gateRows
		v := env.At(gate.V)[n*gate.V.C+gate.At:][:d]
		lo, hi := (n*tokens+t0)*d, (n*tokens+min(t0+gateRows, tokens))*d
		dst, in := env.At(out)[lo:hi], env.At(y)[lo:hi]
		if !x.Some() {
			for ; len(dst) > 0; dst, in = dst[d:], in[d:] {
				multiply(dst[:d], in[:d], v)
			}
			return
		}
		for old := env.At(x)[lo:hi]; len(dst) > 0; dst, in, old = dst[d:], in[d:], old[d:] {
			multiplyAdd(dst[:d], old[:d], in[:d], v)
		}
	}
	g.add(node{
		name: name, kind: "gate", out: out, reads: []ref{x.r, y.r, gate.V.r}, writes: []ref{out.r}, over: []ref{x.r, y.r},
		run: func(e *Env) { e.Pool.Do(e.N*per, item) },
	})
	g.record(out, func(dy Value) {
		g.addGrad(x, dy)
		if g.depends[y.r] {
			g.addGrad(y, g.Gated(name, Value{}, dy, gate))
		}
	})
	return out
}

func multiply(dst, y, gate []float32) {
	y, gate = y[:len(dst)], gate[:len(dst)]
	for i, v := range y {
		dst[i] = v * gate[i]
	}
}

func multiplyAdd(dst, x, y, gate []float32) {
	n := len(dst)
	x, y, gate = x[:n], y[:n], gate[:n]
	for i := range dst {
		dst[i] = x[i] + float32(y[i]*gate[i])
	}
}

// Product is a*b, elementwise.
func (g *Graph) Product(name string, a, b Value) Value {
	out := g.value(a.H, a.W, a.C)
	const block = 1 << 14
	env, size := g.env, a.Size()
	per := (size + block - 1) / block
	item := func(_, i int) {
		lo := i/per*size + i%per*block
		hi := min(lo+block, (i/per+1)*size)
		multiply(env.At(out)[lo:hi], env.At(a)[lo:hi], env.At(b)[lo:hi])
	}
	g.add(node{
		name: name, kind: "product", out: out, reads: []ref{a.r, b.r}, writes: []ref{out.r}, over: []ref{a.r, b.r},
		run: func(e *Env) { e.Pool.Do(e.N*per, item) },
	})
	g.record(out, func(dy Value) {
		if g.depends[a.r] {
			g.addGrad(a, g.Product(name, dy, b))
		}
		if g.depends[b.r] {
			g.addGrad(b, g.Product(name, dy, a))
		}
	})
	return out
}

// Join is a sequence of tokens: those of the parts, one after another.
func (g *Graph) Join(name string, parts ...Value) Value {
	tokens, c := 0, parts[0].C
	n := node{name: name, kind: "join"}
	for _, p := range parts {
		tokens += p.Rows()
		n.reads = append(n.reads, p.r)
	}
	out := g.value(1, tokens, c)
	n.out, n.writes = out, []ref{out.r}
	n.run = func(e *Env) {
		dst := e.At(out)
		for i := range e.N {
			for _, p := range parts {
				dst = dst[copy(dst, e.At(p)[i*p.Size():(i+1)*p.Size()]):]
			}
		}
	}
	g.add(n)
	g.record(out, func(dy Value) {
		at := 0
		for _, p := range parts {
			if g.depends[p.r] {
				g.addGrad(p, g.tokens(name, dy, at, p.Rows()).As(p.H, p.W, p.C))
			}
			at += p.Rows()
		}
	})
	return out
}

func (g *Graph) tokens(name string, x Value, at, n int) Value {
	out := g.value(1, n, x.C)
	g.add(node{
		name: name, kind: "copy", out: out, reads: []ref{x.r}, writes: []ref{out.r},
		run: func(e *Env) {
			src, dst := e.At(x), e.At(out)
			for i := range e.N {
				copy(dst[i*out.Size():(i+1)*out.Size()], src[i*x.Size()+at*x.C:])
			}
		},
	})
	return out
}

// Slice copies the tokens at to at+n of every image.
func (g *Graph) Slice(name string, x Value, at, n int) Value {
	out := g.tokens(name, x, at, n)
	g.record(out, func(dy Value) {
		d := g.value(x.H, x.W, x.C)
		g.add(node{
			name: name, kind: "copy", out: d, reads: []ref{dy.r}, writes: []ref{d.r},
			run: func(e *Env) {
				src, dst := e.At(dy), e.At(d)
				clear(dst)
				for i := range e.N {
					copy(dst[i*x.Size()+at*x.C:], src[i*dy.Size():(i+1)*dy.Size()])
				}
			},
		})
		g.addGrad(x, d)
	})
	return out
}

// AddTable adds a table of (rows, c) values, the same for every image.
func (g *Graph) AddTable(name string, x Value, table []float32) Value {
	if len(table) != x.Size() {
		g.Fail(failf("%s: a table of %d values for %d", name, len(table), x.Size()))
		return x
	}
	out := g.value(x.H, x.W, x.C)
	g.add(node{
		name: name, kind: "add", out: out, reads: []ref{x.r}, writes: []ref{out.r}, over: []ref{x.r},
		run: func(e *Env) {
			for i := range e.N {
				lo, hi := i*x.Size(), (i+1)*x.Size()
				kernels.Add(e.Pool, e.At(out)[lo:hi], e.At(x)[lo:hi], table, 1)
			}
		},
	})
	g.record(out, func(dy Value) { g.addGrad(x, dy) })
	return out
}

// Rotary turns neighbouring channels (2i, 2i+1) of every head of every token
// by the token's angle for i (Su et al. 2021, arXiv:2104.09864, eq. 34):
// (a, b) becomes (a cos - b sin, a sin + b cos). cos and sin are (tokens,
// dim/2).
func (g *Graph) Rotary(name string, x Value, heads, dim int, cos, sin []float32) Value {
	out := g.value(x.H, x.W, x.C)
	env, tokens, half := g.env, x.Rows(), dim/2
	turn := func(dst, src []float32, t int, sign float32) {
		c, s := cos[t*half:(t+1)*half], sin[t*half:(t+1)*half]
		for h := range heads {
			d, v := dst[h*dim:(h+1)*dim], src[h*dim:(h+1)*dim]
			for i := range half {
				a, b, u, w := v[2*i], v[2*i+1], c[i], sign*s[i]
				d[2*i] = float32(a*u) - float32(b*w)
				d[2*i+1] = float32(a*w) + float32(b*u)
			}
		}
	}
	rows := func(out, x Value, sign float32) func(worker, i int) {
		return func(_, i int) { turn(env.At(out)[i*x.C:], env.At(x)[i*x.C:], i%tokens, sign) }
	}
	forward := rows(out, x, 1)
	g.add(node{
		name: name, kind: "rotary", out: out, reads: []ref{x.r}, writes: []ref{out.r}, over: []ref{x.r},
		run: func(e *Env) { e.Pool.Do(e.N*tokens, forward) },
	})
	g.record(out, func(dy Value) {
		dx := g.value(x.H, x.W, x.C)
		back := rows(dx, dy, -1)
		g.add(node{
			name: name, kind: "rotary gradient", out: dx, reads: []ref{dy.r}, writes: []ref{dx.r}, over: []ref{dy.r},
			run: func(e *Env) { e.Pool.Do(e.N*tokens, back) },
		})
		g.addGrad(x, dx)
	})
	return out
}

// Unpatch turns tokens of p by p pixels of c channels, those of a pixel side
// by side, into an image of h by w patches. With first the channels come
// before the pixels of a token.
func (g *Graph) Unpatch(name string, x Value, h, w, p, c int, first bool) Value {
	out := g.value(h*p, w*p, c)
	place := func(i, j, k int) int { // of row i, column j, channel k in a token
		if first {
			return (k*p+i)*p + j
		}
		return (i*p+j)*c + k
	}
	env := g.env
	each := func(image func(n, pixel, token int)) func(worker, n int) {
		return func(_, n int) {
			for y := range h * p {
				for z := range w * p {
					token := ((n*h+y/p)*w + z/p) * p * p * c
					for k := range c {
						image(n, ((n*h*p+y)*w*p+z)*c+k, token+place(y%p, z%p, k))
					}
				}
			}
		}
	}
	forward := each(func(_, pixel, token int) { env.At(out)[pixel] = env.At(x)[token] })
	g.add(node{
		name: name, kind: "unpatch", out: out, reads: []ref{x.r}, writes: []ref{out.r},
		run: func(e *Env) { e.Pool.Do(e.N, forward) },
	})
	g.record(out, func(dy Value) {
		dx := g.value(x.H, x.W, x.C)
		back := each(func(_, pixel, token int) { env.At(dx)[token] = env.At(dy)[pixel] })
		g.add(node{
			name: name, kind: "unpatch gradient", out: dx, reads: []ref{dy.r}, writes: []ref{dx.r},
			run: func(e *Env) { e.Pool.Do(e.N, back) },
		})
		g.addGrad(x, dx)
	})
	return out
}

// Sinusoid writes the sinusoidal code of t, with the sine first or, flipped,
// the cosine (Vaswani et al. 2017, arXiv:1706.03762, section 3.5):
// frequencies exp(-ln(10000) i / (half - shift)), everything in float64 and
// rounded once.
func Sinusoid(dst []float32, t, shift float64, flip bool) {
	half := len(dst) / 2
	if len(dst)%2 == 1 {
		dst[len(dst)-1] = 0
	}
	for i := range half {
		s, c := math.Sincos(t * math.Exp(-math.Log(10000)*float64(i)/(float64(half)-shift)))
		if flip {
			s, c = c, s
		}
		dst[i], dst[half+i] = float32(s), float32(c)
	}
}

// Rows looks rows of width values up in a table: index holds their numbers,
// one per token.
func (g *Graph) Rows(name string, index Value, table []float32, width int) Value {
	out := g.value(index.H, index.W, width)
	g.add(node{
		name: name, kind: "embedding", out: out, reads: []ref{index.r}, writes: []ref{out.r},
		run: func(e *Env) {
			dst := e.At(out)
			for i, v := range e.At(index) {
				copy(dst[i*width:(i+1)*width], table[int(v)*width:])
			}
		},
	})
	return out
}

// BiasedAttention is Attention with a bias (heads, queries, keys) added to the
// scaled scores, the same for every image. It keeps all scores of an image and
// has no gradient: it is for the short sequences of text encoders.
func (g *Graph) BiasedAttention(a Attention, q, k, v Cols, bias []float32) Value {
	inner, tq, tk := a.Heads*a.Dim, q.V.Rows(), k.V.Rows()
	out := g.value(q.V.H, q.V.W, inner)
	scores := a.Heads * tq * tk
	if len(bias) != scores {
		g.Fail(failf("%s: a bias of %d values for %d scores", a.Name, len(bias), scores))
		return out
	}
	scale := a.Scale
	if scale == 0 {
		scale = float32(1 / math.Sqrt(float64(a.Dim)))
	}
	byKeys := kernels.MatMulSpec{Batch: a.Heads, M: tq, N: tk, K: a.Dim, TransB: true,
		LdA: q.V.C, LdB: k.V.C, StepA: a.Dim, StepB: a.Dim, StepC: tq * tk, Scale: scale}
	byScores := kernels.MatMulSpec{Batch: a.Heads, M: tq, N: a.Dim, K: tk,
		LdB: v.V.C, LdC: inner, StepA: tq * tk, StepB: a.Dim, StepC: a.Dim}
	size := roundUp(scores, alignFloats)
	g.add(node{
		name: a.Name, kind: "attention", out: out, macs: 2 * tq * tk * inner,
		reads: []ref{q.V.r, k.V.r, v.V.r, a.KeyBias.r}, writes: []ref{out.r},
		scratch: func(int) int {
			return size + max(kernels.MatMulScratch(g.env.Pool, byKeys), kernels.MatMulScratch(g.env.Pool, byScores))
		},
		run: func(e *Env) {
			p, rest := e.scratch[:scores], e.scratch[size:]
			for i := range e.N {
				kernels.MatMul(e.Pool, p, e.At(q.V)[i*q.V.Size()+q.At:], e.At(k.V)[i*k.V.Size()+k.At:], byKeys, rest)
				kernels.Add(e.Pool, p, p, bias, 1)
				if keys := e.At(a.KeyBias); keys != nil {
					for r := range a.Heads * tq {
						for j, b := range keys[i*tk : (i+1)*tk] {
							p[r*tk+j] += b
						}
					}
				}
				kernels.Softmax(e.Pool, p, p, a.Heads*tq, tk, 1)
				kernels.MatMul(e.Pool, e.At(out)[i*out.Size():], p, e.At(v.V)[i*v.V.Size()+v.At:], byScores, rest)
			}
		},
	})
	g.record(out, func(Value) { g.Fail(failf("%s has a bias and no gradient", a.Name)) })
	return out
}
