package graph

import (
	"math"

	"drift/internal/kernels"
)

// Attention is softmax(q k^T Scale + bias) v.
type Attention struct {
	Name       string
	Heads, Dim int
	Scale      float32   // 0 means 1/sqrt(Dim)
	Causal     bool      // query t sees keys 0..t
	KeyBias    Value     // (1, keys, 1) per image, added to the scores; -Inf hides a key
	Bias       []float32 // (Heads, queries, keys), added to the scores of every image; nil for none
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
			LdQ: q.V.C, LdK: k.V.C, LdV: v.V.C, LdO: inner, Scale: a.Scale, Causal: a.Causal, Bias: a.Bias, DType: g.Layers.dtype,
		}
		switch {
		case e != nil:
			s.KeyBias = e.At(a.KeyBias)
		case a.KeyBias.Some(): // only the need of scratch is asked
			s.KeyBias = []float32{}
		}
		return s
	}
	if a.Bias != nil && len(a.Bias) != a.Heads*tq*tk {
		g.Fail(failf("%s: a bias of %d values for %d scores", a.Name, len(a.Bias), a.Heads*tq*tk))
		return out
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
		g.colsGrads([]Cols{q, k, v}, node{
			name: a.Name, kind: "attention gradient", macs: 5 * tq * tk * inner,
			reads:   []ref{dy.r, q.V.r, k.V.r, v.V.r, a.KeyBias.r},
			scratch: func(n int) int { return kernels.AttentionVJPScratch(g.env.Pool, spec(nil, n)) },
		}, func(e *Env, d []Value) {
			kernels.AttentionVJP(e.Pool, e.At(d[0])[q.At:], e.At(d[1])[k.At:], e.At(d[2])[v.At:], e.At(dy),
				e.At(q.V)[q.At:], e.At(k.V)[k.At:], e.At(v.V)[v.At:], spec(e, e.N), e.scratch)
		})
	})
	return out
}

// colsGrads adds n, the gradient of an operation on channels of values: one
// gradient for every value that the parts are channels of. write writes the
// channels of part i into d[i]; channels of no part are zero.
func (g *Graph) colsGrads(parts []Cols, n node, write func(e *Env, d []Value)) {
	grads := map[ref]Value{}
	cover := map[ref]int{}
	var order, whole, d []Value // whole: values whose channels are not all written
	for _, p := range parts {
		if _, ok := grads[p.V.r]; !ok {
			grads[p.V.r] = g.value(p.V.H, p.V.W, p.V.C)
			order = append(order, p.V)
			n.writes = append(n.writes, grads[p.V.r].r)
		}
		cover[p.V.r] += p.C
		d = append(d, grads[p.V.r])
	}
	for _, v := range order {
		if cover[v.r] < v.C {
			whole = append(whole, grads[v.r])
		}
	}
	n.out = d[0]
	n.run = func(e *Env) {
		for _, w := range whole {
			clear(e.At(w))
		}
		write(e, d)
	}
	g.add(n)
	for _, o := range order {
		g.addGrad(o, grads[o.r])
	}
}

// SelfAttention is Attention unless a hook asks for the identity: then every
// token attends to itself alone, and the result is v.
func (g *Graph) SelfAttention(a Attention, q, k, v Cols) Value {
	if g.Identity(a.Name) {
		return g.Columns(a.Name, v)
	}
	return g.Attention(a, q, k, v)
}

// Gated is x + gate*y, or gate*y without x; gate is a vector per image.
func (g *Graph) Gated(name string, x, y Value, gate Cols) Value {
	v := gate.V
	if gate.C != v.C {
		v = g.columns(name, v, gate.At, gate.C)
	}
	return g.gated(name, x, y, v)
}

func (g *Graph) gated(name string, x, y, gate Value) Value {
	out := g.value(y.H, y.W, y.C)
	g.add(node{
		name: name, kind: "gate", out: out, reads: []ref{x.r, y.r, gate.r}, writes: []ref{out.r}, over: []ref{x.r, y.r},
		run: func(e *Env) { kernels.Gate(e.Pool, e.At(out), e.At(x), e.At(y), e.At(gate), e.N, y.Rows(), y.C) },
	})
	g.record(out, func(dy Value) {
		g.addGrad(x, dy)
		if g.depends[y.r] {
			g.addGrad(y, g.gated(name, Value{}, dy, gate))
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
	back := make([]float32, len(sin))
	for i, v := range sin {
		back[i] = -v
	}
	turn := func(kind string, x Value, sin []float32) Value {
		return g.inPlace(name, kind, x, func(e *Env, v []float32) {
			kernels.Rotary(e.Pool, v, kernels.HeadSpec{N: e.N, Tokens: x.Rows(), Heads: heads, D: dim}, cos, sin, kernels.Neighbours)
		})
	}
	out := turn("rotary", x, sin)
	g.record(out, func(dy Value) { g.addGrad(x, turn("rotary gradient", dy, back)) })
	return out
}

// inPlace is a function that changes a copy of x, or x itself where nothing
// reads it any more.
func (g *Graph) inPlace(name, kind string, x Value, f func(e *Env, v []float32)) Value {
	out := g.value(x.H, x.W, x.C)
	g.add(node{
		name: name, kind: kind, out: out, reads: []ref{x.r}, writes: []ref{out.r}, over: []ref{x.r},
		run: func(e *Env) {
			dst, src := e.At(out), e.At(x)
			if &dst[0] != &src[0] {
				copy(dst, src)
			}
			f(e, dst)
		},
	})
	return out
}

// Patch cuts an image into tokens of p by p pixels: the inverse of Unpatch.
func (g *Graph) Patch(name string, x Value, p int, first bool) Value {
	h, w := x.H/p, x.W/p
	out := g.value(1, h*w, p*p*x.C)
	g.patches(name, "patch", x, out, p, first, func(image, token *float32) { *token = *image })
	g.record(out, func(dy Value) { g.addGrad(x, g.Unpatch(name, dy, h, w, p, x.C, first)) })
	return out
}

// Unpatch turns tokens of p by p pixels of c channels into an image of h by w
// patches. The channels of a pixel lie side by side in a token, or, with first,
// the pixels of a channel.
func (g *Graph) Unpatch(name string, x Value, h, w, p, c int, first bool) Value {
	out := g.value(h*p, w*p, c)
	g.patches(name, "unpatch", out, x, p, first, func(image, token *float32) { *image = *token })
	g.record(out, func(dy Value) { g.addGrad(x, g.Patch(name, dy, p, first).As(x.H, x.W, x.C)) })
	return out
}

// patches moves the values of an image to those of its tokens, or back.
func (g *Graph) patches(name, kind string, image, tokens Value, p int, first bool, move func(image, token *float32)) {
	h, w, c := image.H/p, image.W/p, image.C
	env := g.env
	one := func(_, n int) {
		pixels, values := env.At(image)[n*image.Size():(n+1)*image.Size()], env.At(tokens)[n*tokens.Size():(n+1)*tokens.Size()]
		for y := range h * p {
			for x := range w * p {
				token := values[(y/p*w+x/p)*p*p*c:][:p*p*c]
				for k := range c {
					at := (y%p*p+x%p)*c + k
					if first {
						at = (k*p+y%p)*p + x%p
					}
					move(&pixels[(y*w*p+x)*c+k], &token[at])
				}
			}
		}
	}
	n := node{name: name, kind: kind, out: tokens, reads: []ref{image.r}, writes: []ref{tokens.r}, run: func(e *Env) { e.Pool.Do(e.N, one) }}
	if kind == "unpatch" {
		n.out, n.reads, n.writes = image, []ref{tokens.r}, []ref{image.r}
	}
	g.add(n)
}

// LinearAttention is relu(q) (relu(k)^T v), divided by the sum of the weights
// relu(q) . relu(k) of all keys (Katharopoulos et al. 2020, arXiv:2006.16236,
// eq. 5): linear in the tokens.
func (g *Graph) LinearAttention(name string, heads, dim int, q, k, v Cols) Value {
	inner, tq, tk := heads*dim, q.V.Rows(), k.V.Rows()
	out := g.value(q.V.H, q.V.W, inner)
	env := g.env
	memory := make([][]float32, env.Pool.Workers())
	for i := range memory {
		memory[i] = make([]float32, dim*dim+dim)
	}
	head := func(worker, item int) {
		n, h := item/heads, item%heads
		row := func(c Cols, t int) []float32 {
			return env.At(c.V)[n*c.V.Size()+t*c.V.C+c.At+h*dim:][:dim]
		}
		clear(memory[worker])
		kv, sum := memory[worker][:dim*dim], memory[worker][dim*dim:] // kv[j][i] = sum over tokens of relu(k_j) v_i
		for t := range tk {
			values := row(v, t)
			for j, a := range row(k, t) {
				if a <= 0 {
					continue
				}
				sum[j] += a
				dst := kv[j*dim : (j+1)*dim]
				for i, b := range values {
					dst[i] += float32(a * b)
				}
			}
		}
		for t := range tq {
			dst := env.At(out)[n*out.Size()+t*inner+h*dim:][:dim]
			clear(dst)
			var weight float32
			for j, a := range row(q, t) {
				if a <= 0 {
					continue
				}
				weight += float32(a * sum[j])
				for i, b := range kv[j*dim : (j+1)*dim] {
					dst[i] += float32(a * b)
				}
			}
			for i := range dst {
				dst[i] /= weight + 1e-15
			}
		}
	}
	g.add(node{
		name: name, kind: "attention", out: out, macs: (tq + tk) * inner * dim,
		reads: []ref{q.V.r, k.V.r, v.V.r}, writes: []ref{out.r},
		run: func(e *Env) { e.Pool.Do(e.N*heads, head) },
	})
	g.record(out, func(dy Value) {
		g.colsGrads([]Cols{q, k, v}, node{
			name: name, kind: "attention gradient", macs: 3 * (tq + tk) * inner * dim, reads: []ref{dy.r, q.V.r, k.V.r, v.V.r},
		}, func(e *Env, d []Value) {
			e.Pool.Do(e.N*heads, func(_, item int) {
				linearAttentionVJP(e, item/heads, item%heads*dim, dim, tq, tk, dy, [3]Cols{q, k, v}, d)
			})
		})
	})
	return out
}

// linearAttentionVJP is the gradient of the channels at to at+dim of linear
// attention in image n. With A = relu(q), B = relu(k), M = B^T v, s = B^T 1 and
// w = A s, y = A M / w gives, u = dy / w and c = -(dy . y) / w,
//
//	dA = u M^T + c s^T   dM = A^T u   ds = A^T c
//	dB = v dM^T + 1 ds^T   dv = B dM
func linearAttentionVJP(e *Env, n, at, dim, tq, tk int, dy Value, parts [3]Cols, d []Value) {
	row := func(c Cols, t int) []float32 { return e.At(c.V)[n*c.V.Size()+t*c.V.C+c.At+at:][:dim] }
	grad := func(i, t int) []float32 {
		return e.At(d[i])[n*d[i].Size()+t*d[i].C+parts[i].At+at:][:dim]
	}
	q, k, v := parts[0], parts[1], parts[2]
	m, s := make([]float32, dim*dim), make([]float32, dim)
	dm, ds := make([]float32, dim*dim), make([]float32, dim)
	for t := range tk {
		for j, b := range row(k, t) {
			if b > 0 {
				s[j] += b
				for i, x := range row(v, t) {
					m[j*dim+i] += float32(b * x)
				}
			}
		}
	}
	y, u := make([]float32, dim), make([]float32, dim)
	for t := range tq {
		clear(y)
		w := float32(1e-15)
		for j, a := range row(q, t) {
			if a > 0 {
				w += float32(a * s[j])
				for i, x := range m[j*dim : (j+1)*dim] {
					y[i] += float32(a * x)
				}
			}
		}
		var c float32
		for i, g := range e.At(dy)[n*dy.Size()+t*dy.C+at:][:dim] {
			u[i] = g / w
			c -= float32(u[i] * y[i] / w)
		}
		dst := grad(0, t)
		for j, a := range row(q, t) {
			dst[j] = 0
			if a > 0 {
				sum := float32(c * s[j])
				for i, x := range u {
					sum += float32(x * m[j*dim+i])
					dm[j*dim+i] += float32(a * x)
				}
				dst[j] = sum
				ds[j] += float32(a * c)
			}
		}
	}
	for t := range tk {
		dk, dv := grad(1, t), grad(2, t)
		clear(dv)
		values := row(v, t)
		for j, b := range row(k, t) {
			dk[j] = 0
			if b > 0 {
				sum := ds[j]
				for i, x := range dm[j*dim : (j+1)*dim] {
					sum += float32(x * values[i])
					dv[i] += float32(b * x)
				}
				dk[j] = sum
			}
		}
	}
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
