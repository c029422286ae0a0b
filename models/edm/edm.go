// Package edm is the U-Nets of score networks on the native engine: SongUNet
// (DDPM++ and NCSN++) and DhariwalUNet of EDM (Karras et al. 2022,
// arXiv:2206.00364), and the U-Net of ADM (Dhariwal and Nichol 2021,
// arXiv:2105.05233). They are made of one kind of block; what differs stands in
// diffusers.UNetPlan.
package edm

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"drift/internal/graph"
	"drift/internal/kernels"
	"drift/models/diffusers"
	"drift/models/engine"
)

// unet is a network of one of the three classes.
type unet struct {
	cfg     diffusers.Config
	plan    *diffusers.UNetPlan
	in, out int
	size    int // of the pictures that it was made for
	labels  int // width of the one-hot labels, or rows of their table; 0: none
	table   bool
	code    func(dst []float32, t float64)
	embed   func(n *builder) graph.Value
}

// New checks the configuration and packs the weights. A network of EDM takes
// labels from 0 to label_dim, the last one for "no class"; one of ADM has none
// for that.
func New(cfg diffusers.Config, w diffusers.Weights, opt engine.Options) (*engine.Net, error) {
	u := &unet{cfg: cfg}
	switch c := cfg.(type) {
	case *diffusers.SongUNetConfig:
		u.plan, u.in, u.out, u.size, u.labels = c.Plan(), c.InChannels, c.OutChannels, c.ImgResolution, c.LabelDim
		u.code, u.embed = sineFirst, (*builder).song
		if c.EmbeddingType == "fourier" {
			freqs, err := w.Float32("map_noise.freqs")
			if err != nil {
				return nil, fmt.Errorf("edm: %w", err)
			}
			u.code = func(dst []float32, t float64) { fourier(dst, t, freqs) }
		}
	case *diffusers.DhariwalUNetConfig:
		u.plan, u.in, u.out, u.size, u.labels = c.Plan(), c.InChannels, c.OutChannels, c.ImgResolution, c.LabelDim
		u.code, u.embed = cosineFirst, (*builder).dhariwal
	case *diffusers.ADMConfig:
		u.plan, u.in, u.out, u.size, u.labels, u.table = c.Plan(), c.InChannels, c.OutChannels, c.ImageSize, c.NumClasses, true
		u.code, u.embed = cosineFirst, (*builder).adm
	default:
		return nil, fmt.Errorf("edm: a %s is no network of this package", cfg.ClassName())
	}
	return engine.New(u, order(w, u.plan), opt)
}

// Labels is the number of labels that a network takes, and the one of "no
// class", -1 for none.
func Labels(cfg diffusers.Config) (n, none int) {
	switch c := cfg.(type) {
	case *diffusers.SongUNetConfig:
		n = c.LabelDim
	case *diffusers.DhariwalUNetConfig:
		n = c.LabelDim
	case *diffusers.ADMConfig:
		return c.NumClasses, -1
	}
	if n == 0 {
		return 0, -1
	}
	return n + 1, n
}

// The codes of a time. EDM's SongUNet ends its frequencies at 1/10000 and has
// the sine first, the others are as in Transformers with the cosine first.
func sineFirst(dst []float32, t float64)   { graph.Sinusoid(dst, t, 1, false) }
func cosineFirst(dst []float32, t float64) { graph.Sinusoid(dst, t, 0, true) }

func fourier(dst []float32, t float64, freqs []float32) {
	for i, f := range freqs {
		s, c := math.Sincos(2 * math.Pi * float64(f) * t)
		dst[i], dst[len(freqs)+i] = float32(s), float32(c)
	}
}

// Config implements engine.Network.
func (u *unet) Config() diffusers.Config { return u.cfg }

// Channels implements engine.Network.
func (u *unet) Channels() (in, out int) { return u.in, u.out }

// Usual implements engine.Network.
func (u *unet) Usual() (h, w int, inputs map[string][]int) { return u.size, u.size, nil }

// Output implements engine.Network.
func (u *unet) Output(h, w int) (int, int, error) {
	levels := 0
	for _, s := range u.plan.Steps {
		levels = max(levels, s.Level)
	}
	if unit := 1 << levels; h%unit != 0 || w%unit != 0 {
		return 0, 0, engine.BadInput("images of %dx%d: the network halves them %d times, so sides must be multiples of %d", h, w, levels, unit)
	}
	return h, w, nil
}

// Check implements engine.Network.
func (u *unet) Check(b *engine.Batch) error {
	if err := b.Refuse(); err != nil {
		return err
	}
	most, _ := Labels(u.cfg)
	switch {
	case u.labels == 0 && len(b.Class) > 0:
		return engine.BadInput("class labels given, the network has no classes")
	case u.labels > 0 && len(b.Class) != len(b.T):
		return engine.BadInput("%d class labels for %d images", len(b.Class), len(b.T))
	}
	for _, c := range b.Class {
		if c < 0 || c >= most {
			return engine.BadInput("class %d is not in [0, %d)", c, most)
		}
	}
	return nil
}

// Key implements engine.Network.
func (u *unet) Key(*engine.Batch) string { return "" }

// Fill implements engine.Network.
func (u *unet) Fill(e *graph.Env, b *engine.Batch, lo, hi int) {
	times := e.Fed("time")
	for i, t := range b.T[lo:hi] {
		u.code(times[i*u.plan.Noise:(i+1)*u.plan.Noise], t)
	}
	rows := e.Fed("label")
	if rows == nil {
		return
	}
	if u.table {
		for i, c := range b.Class[lo:hi] {
			rows[i] = float32(c)
		}
		return
	}
	clear(rows)
	value := float32(1)
	if _, ok := u.cfg.(*diffusers.SongUNetConfig); ok {
		value = float32(math.Sqrt(float64(u.labels)))
	}
	for i, c := range b.Class[lo:hi] {
		if c < u.labels { // "no class" is all zeros
			rows[i*u.labels+c] = value
		}
	}
}

// builder writes the network down.
type builder struct {
	*unet
	engine.Blocks
	emb graph.Value // SiLU(embedding), a row per image
}

func (n *builder) exact(name string, in graph.Value, out int, ep graph.Epilogue) graph.Value {
	return n.Linear(n.Layers.ExactLinear(name, in.C, out), graph.From(in), ep)
}

// song: SiLU(layer1 SiLU(layer0 (code + map_label(label)))).
func (n *builder) song() graph.Value {
	time := n.Feed("time", 1, 1, n.plan.Noise)
	if n.labels > 0 {
		time = n.exact("map_label", n.Feed("label", 1, 1, n.labels), n.plan.Noise, graph.Epilogue{Residual: time})
	}
	h := n.exact("map_layer0", time, n.plan.Emb, graph.Epilogue{Act: kernels.SiLU})
	return n.exact("map_layer1", h, n.plan.Emb, graph.Epilogue{Act: kernels.SiLU})
}

// dhariwal: SiLU(layer1 SiLU(layer0 code) + map_label label).
func (n *builder) dhariwal() graph.Value {
	h := n.exact("map_layer0", n.Feed("time", 1, 1, n.plan.Noise), n.plan.Emb, graph.Epilogue{Act: kernels.SiLU})
	ep := graph.Epilogue{Act: kernels.SiLU}
	if n.labels > 0 {
		ep.Residual = n.exact("map_label", n.Feed("label", 1, 1, n.labels), n.plan.Emb, graph.Epilogue{})
	}
	return n.exact("map_layer1", h, n.plan.Emb, ep)
}

// adm: SiLU(embed2 SiLU(embed0 code) + label_emb[label]).
func (n *builder) adm() graph.Value {
	h := n.exact("time_embed.0", n.Feed("time", 1, 1, n.plan.Noise), n.plan.Emb, graph.Epilogue{Act: kernels.SiLU})
	ep := graph.Epilogue{Act: kernels.SiLU}
	if n.labels > 0 {
		ep.Residual = n.Rows("label_emb", n.Feed("label", 1, 1, 1), n.Layers.Tensor("label_emb.weight"), n.plan.Emb)
	}
	return n.exact("time_embed.2", h, n.plan.Emb, ep)
}

// Build implements engine.Network.
func (u *unet) Build(g *graph.Graph, b *engine.Batch) {
	n := &builder{unet: u, Blocks: engine.Blocks{Graph: g, Eps: u.plan.Eps, Act: kernels.SiLU, H: u.size, W: u.size}}
	h := g.Input(b.H, b.W, u.in)
	side := h              // the picture beside the encoder
	var out graph.Value    // the picture beside the decoder
	var kept []graph.Value // for the way up
	n.emb = u.embed(n)
	for i, s := range u.plan.Steps {
		n.Level = s.Level
		switch s.Kind {
		case "conv":
			h = n.Conv(s.Name, graph.From(h), s.Out, 3, graph.Exact)
		case "down":
			n.Level-- // it reads the level before
			h = n.Down(s.Name+".op", h, s.Out, 1)
		case "up":
			h = n.Conv(s.Name+".conv", graph.Source{X: h, Up: true}, s.Out, 3)
		case "block":
			var skip graph.Value
			if s.Pop {
				skip, kept = kept[len(kept)-1], kept[:len(kept)-1]
			}
			h = n.block(s, h, skip)
		case "aux-down":
			side = g.Filter(s.Name, side, u.plan.Filter, false)
		case "aux-up":
			out = g.Filter(s.Name, out, u.plan.Filter, true)
		case "aux-skip":
			h = g.Conv(g.Layers.Conv(s.Name, n.Spec(s.In, s.Out, 1)), graph.From(side), graph.Epilogue{Residual: h})
			kept[len(kept)-1] = h
		case "aux-residual":
			spec := n.Spec(s.In, s.Out, 2+len(u.plan.Filter))
			spec.Stride, spec.Pad = 2, kernels.Same(len(u.plan.Filter)/2)
			spec.H, spec.W = 2*spec.H, 2*spec.W
			h = g.Conv(g.Layers.Conv(s.Name+fused, spec), graph.From(side), graph.Epilogue{Residual: h, Scale: u.plan.Scale})
			side, kept[len(kept)-1] = h, h
		case "out":
			norm := n.norm(s.Name+u.plan.Names.OutNorm, h, graph.Value{})
			layer := g.Layers.Conv(s.Name+u.plan.Names.OutConv, n.Spec(s.In, s.Out, 3), graph.Exact)
			out = g.Conv(layer, graph.Source{X: h, Norm: norm, Act: kernels.SiLU}, graph.Epilogue{Residual: out})
		default:
			g.Fail(fmt.Errorf("step %d is a %q", i, s.Kind))
		}
		if s.Push {
			kept = append(kept, h)
		}
	}
	g.Output(out)
}

func (n *builder) norm(name string, x, x2 graph.Value) *graph.Normed {
	return n.GroupNorm(n.Layers.Norm(name), x, x2, n.plan.Groups(x.C+x2.C), n.plan.Eps, graph.Modulation{})
}

// nearest tells whether doubling repeats pixels, which layers do as they read.
func (n *builder) nearest() bool {
	f := n.plan.Filter
	return len(f) == 2 && f[0] == f[1]
}

// resampled is a source at the size behind a step.
func (n *builder) resampled(name string, s diffusers.UNetStep, in graph.Source) graph.Source {
	switch {
	case s.Up && n.nearest():
		in.Up = true
	case s.Up || s.Down:
		x := in.X
		if in.Norm != nil || in.X2.Some() {
			x = n.Apply(name, in)
		}
		in = graph.From(n.Filter(name, x, n.plan.Filter, s.Up))
	}
	return in
}

// block is a residual block, with attention among the pixels where the step has it:
//
//	h = conv1(resampled SiLU(norm1 x));  h = conv2(SiLU(norm2(h + emb))), or SiLU(norm2 h (1 + scale) + shift)
//	h = (skip(resampled x) + h) Scale;   out = (h + proj(attention(norm3 h))) Scale
func (n *builder) block(s diffusers.UNetStep, x, skip graph.Value) graph.Value {
	p, l := n.plan.Names, n.Layers
	if n.Skips(s.Name) {
		if s.In == s.Out && !s.Up && !s.Down && !s.Pop {
			return x
		}
		n.Fail(fmt.Errorf("layer %s cannot be skipped: its output has another shape than its input", s.Name))
	}
	first := graph.Source{X: x, X2: skip, Norm: n.norm(s.Name+p.Norm1, x, skip), Act: kernels.SiLU}
	first = n.resampled(s.Name+p.Conv1, s, first)
	residual := n.resampled(s.Name+p.Skip, s, graph.Source{X: x, X2: skip})
	norm2 := l.Norm(s.Name + p.Norm2)
	var ep graph.Epilogue
	var own graph.Modulation
	if n.plan.ScaleShift {
		time := n.exact(s.Name+p.Emb, n.emb, 2*s.Out, graph.Epilogue{})
		own = n.ScaleShift(norm2, time.Cols(0, s.Out), time.Cols(s.Out, s.Out))
	} else {
		ep.PerImage = n.exact(s.Name+p.Emb, n.emb, s.Out, graph.Epilogue{})
	}
	h := n.Graph.Conv(l.Conv(s.Name+p.Conv1, n.Spec(s.In, s.Out, 3)), first, ep)
	ep = graph.Epilogue{Scale: n.plan.Scale}
	switch {
	case s.Project:
		ep.Residual = n.Conv(s.Name+p.Skip, residual, s.Out, 1)
	case residual.Up || residual.X2.Some():
		ep.Residual = n.Apply(s.Name+p.Skip, residual)
	default:
		ep.Residual = residual.X
	}
	second := graph.Source{X: h, Norm: n.GroupNorm(norm2, h, graph.Value{}, n.plan.Groups(s.Out), n.plan.Eps, own), Act: kernels.SiLU}
	h = n.Graph.Conv(l.Conv(s.Name+p.Conv2, n.Spec(s.Out, s.Out, 3)), second, ep)
	attn := s.Attn + p.QKV
	if !s.Attention || n.Skips(attn) {
		return h
	}
	c := s.Out
	qkv := n.Linear(l.Linear(attn, c, 3*c), graph.Source{X: h, Norm: n.norm(s.Attn+p.Norm3, h, graph.Value{})}, graph.Epilogue{})
	a := n.SelfAttention(graph.Attention{Name: attn, Heads: s.Heads, Dim: c / s.Heads}, qkv.Cols(0, c), qkv.Cols(c, c), qkv.Cols(2*c, c))
	return n.Linear(l.Linear(s.Attn+p.Proj, c, c), graph.From(a), graph.Epilogue{Residual: h, Scale: n.plan.Scale})
}

// fused marks a convolution that a filter of stride 2 follows, as one.
const fused = ".fused"

// ordered gives the weights as the graph wants them: rows of queries, keys and
// values in that order, and convolutions with the filter behind them in one.
type ordered struct {
	diffusers.Weights
	plan  *diffusers.UNetPlan
	heads map[string]int // of the attention whose qkv stands under a name
}

func order(w diffusers.Weights, p *diffusers.UNetPlan) diffusers.Weights {
	o := &ordered{w, p, map[string]int{}}
	for _, s := range p.Steps {
		if s.Attention {
			o.heads[s.Attn+p.Names.QKV] = s.Heads
		}
	}
	return o
}

// unfused is the name in the file.
func unfused(name string) (string, bool) {
	i := strings.LastIndex(name, fused+".")
	if i < 0 {
		return name, false
	}
	return name[:i] + name[i+len(fused):], true
}

// Shape implements diffusers.Weights.
func (o *ordered) Shape(name string) ([]int, bool) {
	plain, is := unfused(name)
	s, ok := o.Weights.Shape(plain)
	if is && len(s) == 4 {
		s = slices.Clone(s)
		s[2], s[3] = s[2]+len(o.plan.Filter)-1, s[3]+len(o.plan.Filter)-1
	}
	return s, ok
}

// Float32 implements diffusers.Weights.
func (o *ordered) Float32(name string) ([]float32, error) {
	plain, is := unfused(name)
	v, err := o.Weights.Float32(plain)
	if err != nil {
		return nil, err
	}
	if is && strings.HasSuffix(name, ".weight") {
		s, _ := o.Weights.Shape(plain)
		return withFilter(v, s[2], o.plan.Filter), nil
	}
	if heads := o.heads[strings.TrimSuffix(strings.TrimSuffix(name, ".weight"), ".bias")]; heads > 0 && o.plan.QKV != "whole" {
		s, _ := o.Weights.Shape(name)
		return rows(v, s[0]/3, heads, o.plan.QKV), nil
	}
	return v, nil
}

// rows brings the rows of queries, keys and values of c channels each into the
// order (queries, keys, values). They stand as (head, channel, part), or
// "split" as (head, part, channel).
func rows(v []float32, c, heads int, how string) []float32 {
	width, d := len(v)/(3*c), c/heads
	out := make([]float32, len(v))
	for part := range 3 {
		for i := range c {
			from := 3*i + part
			if how == "split" {
				from = i/d*3*d + part*d + i%d
			}
			copy(out[(part*c+i)*width:][:width], v[from*width:])
		}
	}
	return out
}

// withFilter convolves k by k kernels with a filter, scaled to the sum 1, along
// both axes.
func withFilter(v []float32, k int, taps []float64) []float32 {
	sum := 0.0
	for _, t := range taps {
		sum += t
	}
	side := k + len(taps) - 1
	out := make([]float64, len(v)/(k*k)*side*side)
	for i, x := range v {
		at, y, z := i/(k*k)*side*side, i%(k*k)/k, i%k
		for a, p := range taps {
			for b, q := range taps {
				out[at+(y+a)*side+z+b] += float64(x) * (p / sum) * (q / sum)
			}
		}
	}
	single := make([]float32, len(out))
	for i, x := range out {
		single[i] = float32(x)
	}
	return single
}
