// Package dna brings networks for sequences over A, C, G, T: the convolutional denoiser of Dirichlet flow matching (Stark et
// al. 2024, arXiv 2402.05841, appendix) on drift's own engine, for sampling, for classifier guidance and for training; a
// grammar that draws promoter-like sequences of four classes; and small networks trained on it, which drift carries with it.
//
// The layout is that of the reference's CNNModel, so that its weights are read as they are (Read). With x of K numbers per
// position, alpha = 1 + t and w = c/(alpha + c - 1), c = 2,
//
//	in   = (1-w) x, w x (2K channels); or x; or, for clean tokens, an embedding
//	f    = ReLU(conv9(in))
//	e    = ReLU(linear(sin(2 pi W alpha), cos(2 pi W alpha)))
//	f   += ReLU(conv9_i(LayerNorm(f + linear_i(e) + linear_i(class)))),  dilations 1, 1, 4, 16, 64 (each Stacks times)
//	out  = conv1(ReLU(conv1(f))): logits of the categories per position
//
// A classifier takes the mean of out over the positions through linear, ReLU, linear; what the first of them gives is the
// embedding of the Frechet biological distance.
package dna

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"sync"

	"drift/internal/kernels"
)

const normEps = 1e-5

// Net is a network on the engine. Rows do not depend on what else is in a batch. One call runs at a time.
type Net struct {
	Shape
	w    Weights
	pool *kernels.Pool

	first *kernels.Conv // nil for tokens
	convs []*kernels.Conv
	final [2]*kernels.Conv

	once   sync.Once // for what gradients need
	firstT *kernels.ConvGrad
	convsT []*kernels.ConvGrad
	finalT [2]*kernels.ConvGrad

	mu      sync.Mutex
	tape    tape
	ones    []float32
	scratch []float32
	spare   [3][]float32
}

// Input is what a network is asked: rows of L positions.
type Input struct {
	Rows, L int
	X       []float32 // (Rows, L, Inputs), where the network takes numbers ...
	Tokens  []int     // ... or (Rows, L)
	Alpha   []float64 // 1 + t of every row; not with tokens
	Class   []int     // of every row where the network takes one; Shape.Classes = none
}

// tape is what a pass keeps for its gradient. Without a gradient the layers share their buffers.
type tape struct {
	in            Input
	feat          [][]float32 // layer's input, and the last output
	norm          [][]float32 // after the norm
	relu          [][]float32 // what a layer adds
	hidden, out   []float32   // of the final convolutions
	four, emb     []float32   // (Rows, H): features of the time, and e
	shift         []float32   // (layer, Rows, H)
	mean, mid, to []float32   // of the head
}

func convSpec(in, out, dilation int) kernels.ConvSpec {
	return kernels.ConvSpec{Cin: in, Cout: out, KH: 1, KW: kernel, Dilation: dilation, Pad: kernels.Pad{Left: dilation * (kernel / 2), Right: dilation * (kernel / 2)}}
}

// NewNet packs the weights for a pool of workers. It keeps them.
func NewNet(s Shape, w Weights, pool *kernels.Pool) *Net {
	n := &Net{Shape: s, w: w, pool: pool}
	conv := func(name string, spec kernels.ConvSpec) *kernels.Conv {
		return kernels.NewConv(pool.Tier(), kernels.F32, spec, w[name+".weight"], w[name+".bias"])
	}
	if s.Inputs > 0 {
		n.first = conv("linear", convSpec(s.Inputs, s.Hidden, 1))
	}
	for i := range s.layers() {
		n.convs = append(n.convs, conv("convs."+strconv.Itoa(i), convSpec(s.Hidden, s.Hidden, s.dilation(i))))
	}
	n.final = [2]*kernels.Conv{
		conv("final_conv.0", kernels.ConvSpec{Cin: s.Hidden, Cout: s.Hidden, KH: 1, KW: 1}),
		conv("final_conv.2", kernels.ConvSpec{Cin: s.Hidden, Cout: s.outputs(), KH: 1, KW: 1}),
	}
	n.ones = make([]float32, 0)
	return n
}

// Parameters counts the numbers of the network.
func (n *Net) Parameters() int {
	sum := 0
	for _, v := range n.w {
		sum += len(v)
	}
	return sum
}

// grow returns a slice of n values, b's memory if it is large enough.
func grow(b *[]float32, n int) []float32 {
	if cap(*b) < n {
		*b = make([]float32, n)
	}
	*b = (*b)[:n]
	return *b
}

func (n *Net) check(in *Input) error {
	m := in.Rows * in.L
	switch {
	case in.Rows < 1 || in.L < 1:
		return fmt.Errorf("dna: %d rows of %d positions", in.Rows, in.L)
	case n.Inputs == 0 && len(in.Tokens) != m:
		return fmt.Errorf("dna: %d tokens for %d rows of %d positions", len(in.Tokens), in.Rows, in.L)
	case n.Inputs > 0 && (len(in.X) != m*n.Inputs || len(in.Alpha) != in.Rows):
		return fmt.Errorf("dna: %d numbers and %d times for %d rows of %d positions with %d channels", len(in.X), len(in.Alpha), in.Rows, in.L, n.Inputs)
	case n.conditional() && len(in.Class) != in.Rows:
		return fmt.Errorf("dna: %d classes for %d rows", len(in.Class), in.Rows)
	}
	for _, k := range in.Tokens {
		if k < 0 || k >= n.Categories {
			return fmt.Errorf("dna: token %d of an alphabet of %d", k, n.Categories)
		}
	}
	for _, k := range in.Class {
		if n.conditional() && (k < 0 || k > n.Classes) {
			return fmt.Errorf("dna: no class %d; the network has %d", k, n.Classes)
		}
	}
	return nil
}

// run makes a pass; keep says that a gradient follows. The result lies in the tape.
func (n *Net) run(in Input, keep bool) {
	t := &n.tape
	t.in = in
	h, m := n.Hidden, in.Rows*in.L
	layers := n.layers()
	if t.feat == nil {
		t.feat, t.norm, t.relu = make([][]float32, layers+1), make([][]float32, layers), make([][]float32, layers)
	}
	at := func(list [][]float32, i, size int) []float32 {
		if !keep {
			return grow(&n.spare[size], m*h)
		}
		return grow(&list[i], m*h)
	}
	feat := grow(&t.feat[0], m*h)
	if n.first == nil {
		e := n.w["linear.weight"]
		for i, k := range in.Tokens {
			copy(feat[i*h:(i+1)*h], e[k*h:(k+1)*h])
		}
	} else {
		n.conv(n.first, feat, in.X, in.Rows, in.L, kernels.ReLU)
	}
	n.embed(in)
	if len(n.ones) < in.Rows*h {
		n.ones = make([]float32, in.Rows*h)
		for i := range n.ones {
			n.ones[i] = 1
		}
	}
	for i, c := range n.convs {
		name := "norms." + strconv.Itoa(i)
		norm, relu := at(t.norm, i, 0), at(t.relu, i, 1)
		src := feat
		if n.Inputs > 0 || n.conditional() {
			kernels.Apply(n.pool, norm, kernels.Input{X: feat, C: h, Scale: n.ones[:in.Rows*h], Shift: t.shift[i*in.Rows*h : (i+1)*in.Rows*h]}, in.Rows, 1, in.L)
			src = norm
		}
		kernels.LayerNorm(n.pool, norm, src, in.Rows, in.L, h, normEps, n.w[name+".weight"], n.w[name+".bias"])
		n.conv(c, relu, norm, in.Rows, in.L, kernels.ReLU)
		next := feat
		if keep {
			next = grow(&t.feat[i+1], m*h)
		}
		kernels.Add(n.pool, next, feat, relu, 1)
		feat = next
	}
	n.conv(n.final[0], grow(&t.hidden, m*h), feat, in.Rows, in.L, kernels.ReLU)
	n.conv(n.final[1], grow(&t.out, m*n.outputs()), t.hidden, in.Rows, in.L, kernels.Identity)
	if n.Head {
		n.head()
	}
}

func (n *Net) conv(c *kernels.Conv, dst, x []float32, rows, l int, act kernels.Activation) {
	s := grow(&n.scratch, c.Scratch(n.pool.Workers(), rows, 1, l, false))
	c.Run(n.pool, dst, kernels.Input{X: x, C: c.Spec().Cin}, rows, 1, l, s, kernels.Epilogue{Act: act})
}

// dense is dst = W x + b for one vector, or dst += W x without b.
func dense(dst, w, b, x []float32) {
	in := len(x)
	for o := range dst {
		sum := float32(0)
		if b != nil {
			sum = b[o]
		}
		for i, v := range w[o*in : (o+1)*in] {
			sum += float32(v * x[i])
		}
		dst[o] = sum
	}
}

// embed fills four, emb and shift. Rows of one time and class share the work.
func (n *Net) embed(in Input) {
	if n.Inputs == 0 && !n.conditional() {
		return
	}
	t, h := &n.tape, n.Hidden
	four, emb, shift := grow(&t.four, in.Rows*h), grow(&t.emb, in.Rows*h), grow(&t.shift, n.layers()*in.Rows*h)
	tmp := make([]float32, h)
	for r := range in.Rows {
		like := -1
		for q := range r {
			if (n.Inputs == 0 || in.Alpha[q] == in.Alpha[r]) && (!n.conditional() || in.Class[q] == in.Class[r]) {
				like = q
				break
			}
		}
		if like >= 0 {
			copy(four[r*h:(r+1)*h], four[like*h:])
			copy(emb[r*h:(r+1)*h], emb[like*h:])
			for i := range n.layers() {
				copy(shift[(i*in.Rows+r)*h:(i*in.Rows+r+1)*h], shift[(i*in.Rows+like)*h:])
			}
			continue
		}
		f, e := four[r*h:(r+1)*h], emb[r*h:(r+1)*h]
		if n.Inputs > 0 {
			for j, w := range n.w["time_embedder.0.W"] {
				s, c := math.Sincos(2 * math.Pi * float64(w) * in.Alpha[r])
				f[j], f[h/2+j] = float32(s), float32(c)
			}
			dense(e, n.w["time_embedder.1.weight"], n.w["time_embedder.1.bias"], f)
			for j := range e {
				e[j] = max(e[j], 0)
			}
		}
		for i := range n.layers() {
			v, name := shift[(i*in.Rows+r)*h:(i*in.Rows+r+1)*h], strconv.Itoa(i)
			clear(v)
			if n.Inputs > 0 {
				dense(v, n.w["time_layers."+name+".dense.weight"], n.w["time_layers."+name+".dense.bias"], e)
			}
			if n.conditional() {
				dense(tmp, n.w["cls_layers."+name+".dense.weight"], n.w["cls_layers."+name+".dense.bias"], n.w["cls_embedder.weight"][in.Class[r]*h:(in.Class[r]+1)*h])
				for j := range v {
					v[j] += tmp[j]
				}
			}
		}
	}
}

// head is the classifier's: mean, linear (the embedding), ReLU, linear.
func (n *Net) head() {
	t, h := &n.tape, n.Hidden
	mean, mid, to := grow(&t.mean, t.in.Rows*h), grow(&t.mid, t.in.Rows*h), grow(&t.to, t.in.Rows*n.Classes)
	act := make([]float32, h)
	for r := range t.in.Rows {
		sum := make([]float64, h)
		for l := range t.in.L {
			for j, v := range t.out[(r*t.in.L+l)*h : (r*t.in.L+l+1)*h] {
				sum[j] += float64(v)
			}
		}
		for j, v := range sum {
			mean[r*h+j] = float32(v / float64(t.in.L))
		}
		dense(mid[r*h:(r+1)*h], n.w["cls_head.0.weight"], n.w["cls_head.0.bias"], mean[r*h:(r+1)*h])
		for j := range act {
			act[j] = max(mid[r*h+j], 0)
		}
		dense(to[r*n.Classes:(r+1)*n.Classes], n.w["cls_head.2.weight"], n.w["cls_head.2.bias"], act)
	}
}

// positions is how many positions a pass takes at a time.
const positions = 1 << 13

// chunks calls f for parts of the rows that fit the caches.
func (n *Net) chunks(ctx context.Context, in Input, f func(part Input, from int)) error {
	if err := n.check(&in); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	step := max(1, positions/in.L)
	for from := 0; from < in.Rows; from += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		to := min(from+step, in.Rows)
		part := Input{Rows: to - from, L: in.L}
		if n.Inputs == 0 {
			part.Tokens = in.Tokens[from*in.L : to*in.L]
		} else {
			part.X, part.Alpha = in.X[from*in.L*n.Inputs:to*in.L*n.Inputs], in.Alpha[from:to]
		}
		if n.conditional() {
			part.Class = in.Class[from:to]
		}
		f(part, from)
	}
	return nil
}

// Logits writes the logits of the categories at every position (Rows, L, Categories).
func (n *Net) Logits(ctx context.Context, dst []float64, in Input) error {
	if n.Head || len(dst) != in.Rows*in.L*n.Categories {
		return fmt.Errorf("dna: a network of shape %+v has no %d logits of categories", n.Shape, len(dst))
	}
	return n.chunks(ctx, in, func(part Input, from int) {
		n.run(part, false)
		for i, v := range n.tape.out {
			dst[from*in.L*n.Categories+i] = float64(v)
		}
	})
}

// Classify writes the embeddings (Rows, Hidden) and the logits of the classes (Rows, Classes); either may be nil.
func (n *Net) Classify(ctx context.Context, embedding, logits []float64, in Input) error {
	if !n.Head || (embedding != nil && len(embedding) != in.Rows*n.Hidden) || (logits != nil && len(logits) != in.Rows*n.Classes) {
		return fmt.Errorf("dna: a network of shape %+v classifies no %d rows", n.Shape, in.Rows)
	}
	return n.chunks(ctx, in, func(part Input, from int) {
		n.run(part, false)
		for i, v := range n.tape.mid {
			if embedding != nil {
				embedding[from*n.Hidden+i] = float64(v)
			}
		}
		for i, v := range n.tape.to {
			if logits != nil {
				logits[from*n.Classes+i] = float64(v)
			}
		}
	})
}
