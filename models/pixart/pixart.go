// Package pixart has the transformers whose blocks share one modulation by the
// time and attend to a text: PixArtTransformer2DModel (Chen et al. 2023,
// arXiv:2310.00426) and SanaTransformer2DModel (Xie et al. 2024,
// arXiv:2410.10629), on the native engine.
package pixart

import (
	"fmt"
	"math"

	"drift/internal/graph"
	"drift/internal/kernels"
	"drift/models/diffusers"
	"drift/models/engine"
)

// Inputs besides the images, by the reference's argument names.
const (
	Context     = "encoder_hidden_states"  // (N, tokens, caption_channels): the text
	ContextMask = "encoder_attention_mask" // (N, tokens): 1 for tokens to attend to
	Resolution  = "resolution"             // (N, 2): height and width of the picture (PixArt at 1024 pixels)
	AspectRatio = "aspect_ratio"           // (N): height by width
)

const sinusoidWidth = 256

// builder writes down what the two networks have in common.
type builder struct {
	*graph.Graph
	d       int
	eps     float64
	six     graph.Value // six vectors of every image, shared by all blocks
	time    graph.Value // the embedded time
	context graph.Value
	mask    graph.Value
}

func (b *builder) two(name string, x graph.Value, width int, act kernels.Activation) graph.Value {
	h := b.Linear(b.Layers.ExactLinear(name+".linear_1", x.C, width), graph.From(x), graph.Epilogue{Act: act})
	return b.Linear(b.Layers.ExactLinear(name+".linear_2", width, width), graph.From(h), graph.Epilogue{})
}

// caption projects the text.
func (b *builder) caption(tokens, channels int, masked bool) {
	in := b.Feed(Context, 1, tokens, channels)
	b.context = b.two("caption_projection", in, b.d, kernels.GELUTanh)
	if masked {
		b.mask = b.Feed(ContextMask, 1, tokens, 1)
	}
}

// modulation makes the six vectors from the embedded time.
func (b *builder) modulation(name string) {
	act := b.Activate(name, b.time, kernels.SiLU)
	b.six = b.Linear(b.Layers.ExactLinear(name+".linear", b.d, 6*b.d), graph.From(act), graph.Epilogue{})
}

// shifted adds a block's own table to vectors of every image.
func (b *builder) shifted(table string, vectors graph.Value) graph.Value {
	return b.AddTable(table, vectors, b.Layers.Tensor(table))
}

func (b *builder) norm(name string, x, vectors graph.Value, scale, shift int) graph.Value {
	l := graph.NoNorm(name)
	return b.LayerNorm(l, x, b.eps, b.ScaleShift(l, vectors.Cols(scale*b.d, b.d), vectors.Cols(shift*b.d, b.d)))
}

// toText is attention to the text, added to x.
func (b *builder) toText(name string, x graph.Value, heads, dim int) graph.Value {
	l, inner := b.Layers, heads*dim
	if b.Skips(name) {
		return x
	}
	q := b.Linear(l.Linear(name+".to_q", b.d, inner), graph.From(x), graph.Epilogue{})
	kv := b.Linear(l.Linear(name+".to_kv", b.context.C, 2*inner, name+".to_k", name+".to_v"), graph.From(b.context), graph.Epilogue{})
	a := b.Attention(graph.Attention{Name: name, Heads: heads, Dim: dim, KeyBias: b.mask}, q.All(), kv.Cols(0, inner), kv.Cols(inner, inner))
	return b.Linear(l.Linear(name+".to_out.0", inner, b.d), graph.From(a), graph.Epilogue{Residual: x})
}

// head is the last norm, modulated by the embedded time alone, and projection.
func (b *builder) head(x graph.Value, out int) graph.Value {
	pair := b.Join("scale_shift_table", b.time, b.time)
	pair = b.shifted("scale_shift_table", pair).As(1, 1, 2*b.d) // shift, scale
	l := graph.NoNorm("norm_out")
	h := b.LayerNorm(l, x, 1e-6, b.ScaleShift(l, pair.Cols(b.d, b.d), pair.Cols(0, b.d)))
	return b.Linear(b.Layers.ExactLinear("proj_out", b.d, out), graph.From(h), graph.Epilogue{})
}

func tokens(b *engine.Batch) int {
	if c, ok := b.Inputs[Context]; ok && len(c.Shape) > 1 {
		return c.Shape[1]
	}
	return 0
}

func masked(b *engine.Batch) bool {
	_, ok := b.Inputs[ContextMask]
	return ok
}

func key(b *engine.Batch) string { return fmt.Sprint(tokens(b), masked(b)) }

func patched(h, w, p int) (int, int, error) {
	if h%p != 0 || w%p != 0 || h < p || w < p {
		return 0, 0, engine.BadInput("images of %dx%d: the size must be a multiple of the patches' %d", h, w, p)
	}
	return h, w, nil
}

func check(b *engine.Batch, channels int, known ...string) error {
	known = append(known, Context, ContextMask)
	for _, err := range []error{b.Want(Context, 0, channels), b.Refuse(known...)} {
		if err != nil {
			return err
		}
	}
	if masked(b) {
		return b.Want(ContextMask, tokens(b))
	}
	if len(b.Class) > 0 {
		return engine.BadInput("class labels given, the network takes a text")
	}
	return nil
}

// fill puts times, text and mask into the feeds. hidden is the score of a
// token that is not to be attended to.
func fill(e *graph.Env, b *engine.Batch, lo, hi int, scale float64) {
	times := e.Fed("time")
	for i, t := range b.T[lo:hi] {
		graph.Sinusoid(times[i*sinusoidWidth:(i+1)*sinusoidWidth], scale*t, 0, true)
	}
	b.Fill(e, Context, lo, hi)
	if bias := e.Fed(ContextMask); bias != nil {
		n := len(bias) / (hi - lo)
		for i := lo; i < hi; i++ {
			for j, m := range b.Inputs[ContextMask].Row(i) {
				bias[(i-lo)*n+j] = (1 - m) * -10000
			}
		}
	}
}

// pixart is PixArt's network.
type pixart struct{ *diffusers.PixArtConfig }

// NewPixArt checks the configuration and packs the weights.
func NewPixArt(cfg *diffusers.PixArtConfig, w diffusers.Weights, opt engine.Options) (*engine.Net, error) {
	if cfg.CaptionChannels == 0 {
		return nil, fmt.Errorf("pixart: config caption_channels = null is not supported: the text is projected")
	}
	return engine.New(pixart{cfg}, w, opt)
}

// Usual implements engine.Network.
func (n pixart) Usual() (h, w int, inputs map[string][]int) {
	inputs = map[string][]int{Context: {usualTokens, n.CaptionChannels}}
	if n.Additional() {
		inputs[Resolution], inputs[AspectRatio] = []int{2}, []int{1}
	}
	side := n.SampleSize / n.PatchSize * n.PatchSize
	return side, side, inputs
}

// usualTokens is the number of tokens of a text.
const usualTokens = 120

// Config implements engine.Network.
func (n pixart) Config() diffusers.Config { return n.PixArtConfig }

// Channels implements engine.Network.
func (n pixart) Channels() (in, out int) {
	if n.OutChannels == 0 {
		return n.InChannels, n.InChannels
	}
	return n.InChannels, n.OutChannels
}

// Output implements engine.Network.
func (n pixart) Output(h, w int) (int, int, error) { return patched(h, w, n.PatchSize) }

// Check implements engine.Network.
func (n pixart) Check(b *engine.Batch) error {
	if n.Additional() {
		for _, err := range []error{b.Want(Resolution, 2), b.Want(AspectRatio, 1)} {
			if err != nil {
				return err
			}
		}
		return check(b, n.CaptionChannels, Resolution, AspectRatio)
	}
	return check(b, n.CaptionChannels)
}

// Key implements engine.Network.
func (n pixart) Key(b *engine.Batch) string { return key(b) }

// Fill implements engine.Network.
func (n pixart) Fill(e *graph.Env, b *engine.Batch, lo, hi int) {
	fill(e, b, lo, hi, 1)
	for _, name := range []string{Resolution, AspectRatio} {
		rows := e.Fed(name)
		for i := lo; rows != nil && i < hi; i++ {
			for _, v := range b.Inputs[name].Row(i) {
				graph.Sinusoid(rows[:sinusoidWidth], float64(v), 0, true)
				rows = rows[sinusoidWidth:]
			}
		}
	}
}

// Build implements engine.Network.
func (n pixart) Build(g *graph.Graph, batch *engine.Batch) {
	b := &builder{Graph: g, d: n.Width(), eps: n.NormEps}
	p, d, l := n.PatchSize, b.d, g.Layers
	in := g.Input(batch.H, batch.W, n.InChannels)
	spec := kernels.ConvSpec{Cin: n.InChannels, Cout: d, KH: p, KW: p, Stride: p, H: n.SampleSize, W: n.SampleSize}
	patches := g.Conv(l.Conv("pos_embed.proj", spec, graph.Exact), graph.From(in), graph.Epilogue{})
	h, w := patches.H, patches.W
	scale := n.InterpolationScale
	if scale == 0 {
		scale = max(float64(n.SampleSize/64), 1)
	}
	x := g.AddTable("pos_embed", patches.Tokens(), positions(h, w, n.SampleSize/p, d, scale))

	const name = "adaln_single.emb"
	b.time = b.two(name+".timestep_embedder", g.Feed("time", 1, 1, sinusoidWidth), d, kernels.SiLU)
	if n.Additional() {
		size := b.two(name+".resolution_embedder", g.Feed(Resolution, 1, 2, sinusoidWidth), d/3, kernels.SiLU)
		ratio := b.two(name+".aspect_ratio_embedder", g.Feed(AspectRatio, 1, 1, sinusoidWidth), d/3, kernels.SiLU)
		b.time = g.Sum(name, b.time, g.Join(name, size, ratio).As(1, 1, d))
	}
	b.modulation("adaln_single")
	b.caption(tokens(batch), n.CaptionChannels, masked(batch))
	act := kernels.GELUTanh
	if n.ActivationFn == "gelu" {
		act = kernels.GELU
	}
	heads, dim := n.NumAttentionHeads, n.AttentionHeadDim
	for i := range n.NumLayers {
		name := fmt.Sprintf("transformer_blocks.%d", i)
		if g.Skips(name) {
			continue
		}
		v := b.shifted(name+".scale_shift_table", b.six) // shift, scale, gate of attention and feed-forward part
		attn := name + ".attn1"
		qkv := g.Linear(l.Linear(attn+".to_qkv", d, 3*d, attn+".to_q", attn+".to_k", attn+".to_v"), graph.From(b.norm(name+".norm1", x, v, 1, 0)), graph.Epilogue{})
		a := g.SelfAttention(graph.Attention{Name: attn, Heads: heads, Dim: dim}, qkv.Cols(0, d), qkv.Cols(d, d), qkv.Cols(2*d, d))
		x = g.Gated(attn, x, g.Linear(l.Linear(attn+".to_out.0", d, d), graph.From(a), graph.Epilogue{}), v.Cols(2*d, d))
		x = b.toText(name+".attn2", x, heads, dim)
		ff := name + ".ff"
		u := g.Linear(l.Linear(ff+".net.0.proj", d, 4*d), graph.From(b.norm(name+".norm2", x, v, 4, 3)), graph.Epilogue{})
		u = g.Linear(l.Linear(ff+".net.2", 4*d, d), graph.From(g.Activate(ff, u, act)), graph.Epilogue{})
		x = g.Gated(ff, x, u, v.Cols(5*d, d))
	}
	_, out := n.Channels()
	g.Output(g.Unpatch("proj_out", b.head(x, p*p*out), h, w, p, out, false))
}

// positions is the fixed position table (h*w, width) of a grid that spans base
// patches at every size, its coordinates divided by scale. The first half of a
// row belongs to the column, the second to the row, each half as
// [sin(u w) | cos(u w)] with w_k = 10000^(-k/(width/4)).
func positions(h, w, base, width int, scale float64) []float32 {
	quarter := width / 4
	table := make([]float32, h*w*width)
	axis := func(dst []float32, i, n int) {
		u := float64(i) / (float64(n) / float64(base)) / scale
		for k := range quarter {
			s, c := math.Sincos(u * math.Pow(10000, -float64(k)/float64(quarter)))
			dst[k], dst[quarter+k] = float32(s), float32(c)
		}
	}
	for y := range h {
		for x := range w {
			row := table[(y*w+x)*width:][:width]
			axis(row, x, w)
			axis(row[2*quarter:], y, h)
		}
	}
	return table
}

// sana is Sana's network.
type sana struct{ *diffusers.SanaConfig }

// NewSana checks the configuration and packs the weights.
func NewSana(cfg *diffusers.SanaConfig, w diffusers.Weights, opt engine.Options) (*engine.Net, error) {
	return engine.New(sana{cfg}, w, opt)
}

// Usual implements engine.Network.
func (n sana) Usual() (h, w int, inputs map[string][]int) {
	side := n.SampleSize / n.PatchSize * n.PatchSize
	return side, side, map[string][]int{Context: {usualTokens, n.CaptionChannels}}
}

// Config implements engine.Network.
func (n sana) Config() diffusers.Config { return n.SanaConfig }

// Channels implements engine.Network.
func (n sana) Channels() (in, out int) {
	if n.OutChannels == 0 {
		return n.InChannels, n.InChannels
	}
	return n.InChannels, n.OutChannels
}

// Output implements engine.Network.
func (n sana) Output(h, w int) (int, int, error) { return patched(h, w, n.PatchSize) }

// Check implements engine.Network.
func (n sana) Check(b *engine.Batch) error { return check(b, n.CaptionChannels) }

// Key implements engine.Network.
func (n sana) Key(b *engine.Batch) string { return key(b) }

// Fill implements engine.Network.
func (n sana) Fill(e *graph.Env, b *engine.Batch, lo, hi int) { fill(e, b, lo, hi, 1) }

// captionEps is the epsilon of Sana's norm of the projected text.
const captionEps = 1e-5

// Build implements engine.Network.
func (n sana) Build(g *graph.Graph, batch *engine.Batch) {
	b := &builder{Graph: g, d: n.Width(), eps: n.NormEps}
	p, d, l := n.PatchSize, b.d, g.Layers
	in := g.Input(batch.H, batch.W, n.InChannels)
	spec := kernels.ConvSpec{Cin: n.InChannels, Cout: d, KH: p, KW: p, Stride: p, H: n.SampleSize, W: n.SampleSize}
	patches := g.Conv(l.Conv("patch_embed.proj", spec, graph.Exact), graph.From(in), graph.Epilogue{})
	h, w := patches.H, patches.W
	x := patches.Tokens()
	if n.InterpolationScale != nil {
		x = g.AddTable("patch_embed", x, positions(h, w, n.SampleSize/p, d, *n.InterpolationScale))
	}
	b.time = b.two("time_embed.emb.timestep_embedder", g.Feed("time", 1, 1, sinusoidWidth), d, kernels.SiLU)
	b.modulation("time_embed")
	b.caption(tokens(batch), n.CaptionChannels, masked(batch))
	b.context = g.RMSNorm(l.Norm("caption_norm"), b.context, 0, captionEps)
	heads, dim, hidden := n.NumAttentionHeads, n.AttentionHeadDim, n.Hidden()
	point := func(in, out int) kernels.ConvSpec {
		return kernels.ConvSpec{Cin: in, Cout: out, KH: 1, KW: 1, Stride: 1, H: n.SampleSize / p, W: n.SampleSize / p}
	}
	for i := range n.NumLayers {
		name := fmt.Sprintf("transformer_blocks.%d", i)
		if g.Skips(name) {
			continue
		}
		v := b.shifted(name+".scale_shift_table", b.six)
		attn := name + ".attn1"
		qkv := g.Linear(l.Linear(attn+".to_qkv", d, 3*d, attn+".to_q", attn+".to_k", attn+".to_v"), graph.From(b.norm(name+".norm1", x, v, 1, 0)), graph.Epilogue{})
		a := g.LinearAttention(attn, heads, dim, qkv.Cols(0, d), qkv.Cols(d, d), qkv.Cols(2*d, d))
		x = g.Gated(attn, x, g.Linear(l.Linear(attn+".to_out.0", d, d), graph.From(a), graph.Epilogue{}), v.Cols(2*d, d))
		x = b.toText(name+".attn2", x, n.NumCrossAttentionHeads, n.CrossAttentionHeadDim)
		ff := name + ".ff"
		u := b.norm(name+".norm2", x, v, 4, 3).As(h, w, d)
		u = g.Conv(l.Conv(ff+".conv_inverted", point(d, 2*hidden)), graph.From(u), graph.Epilogue{})
		u = g.Depthwise(ff+".conv_depth", g.Activate(ff, u, kernels.SiLU), 3, kernels.Identity)
		u = g.Conv(l.Conv(ff+".conv_point", point(hidden, d)), graph.From(g.GLU(ff, u, kernels.SiLU)), graph.Epilogue{})
		x = g.Gated(ff, x, u.Tokens(), v.Cols(5*d, d))
	}
	_, out := n.Channels()
	g.Output(g.Unpatch("proj_out", b.head(x, p*p*out), h, w, p, out, false))
}
