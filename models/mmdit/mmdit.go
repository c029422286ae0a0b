// Package mmdit has the transformers in which image and text attend to each
// other as one sequence: SD3Transformer2DModel (Esser et al. 2024,
// arXiv:2403.03206) and FluxTransformer2DModel, on the native engine.
package mmdit

import (
	"fmt"

	"drift/internal/graph"
	"drift/internal/kernels"
	"drift/models/diffusers"
	"drift/models/engine"
)

// Inputs besides the images, by the reference's argument names.
const (
	Context  = "encoder_hidden_states" // (N, tokens, joint_attention_dim): the text
	Pooled   = "pooled_projections"    // (N, pooled_projection_dim): the text in one vector
	Guidance = "guidance"              // (N): the guidance scale that Flux dev was distilled with
)

// sinusoidWidth is the width of the code of a time.
const sinusoidWidth = 256

const normEps = 1e-6

// builder writes down what the two networks have in common.
type builder struct {
	*graph.Graph
	d, heads, dim int
	qkNorm        bool
	emb           graph.Value // SiLU of the condition, a row per image
}

// two is a TimestepEmbedding: two linear layers around a SiLU.
func (b *builder) two(name string, x graph.Value, ep graph.Epilogue) graph.Value {
	h := b.Linear(b.Layers.ExactLinear(name+".linear_1", x.C, b.d), graph.From(x), graph.Epilogue{Act: kernels.SiLU})
	return b.Linear(b.Layers.ExactLinear(name+".linear_2", b.d, b.d), graph.From(h), ep)
}

// condition sums time, text and what else there is, and keeps its SiLU.
func (b *builder) condition(pooled int, more graph.Value) {
	const name = "time_text_embed"
	time := b.two(name+".timestep_embedder", b.Feed("time", 1, 1, sinusoidWidth), graph.Epilogue{Residual: more})
	b.emb = b.two(name+".text_embedder", b.Feed(Pooled, 1, 1, pooled), graph.Epilogue{Residual: time, Act: kernels.SiLU})
}

// vectors are n vectors that modulate a block, side by side.
func (b *builder) vectors(name string, n int) graph.Value {
	return b.Linear(b.Layers.ExactLinear(name, b.d, n*b.d), graph.From(b.emb), graph.Epilogue{})
}

func (b *builder) part(v graph.Value, i int) graph.Cols { return v.Cols(i*b.d, b.d) }

// norm is a layer norm whose scale and shift are parts of vectors.
func (b *builder) norm(name string, x, vectors graph.Value, scale, shift int) graph.Value {
	l := graph.NoNorm(name)
	return b.LayerNorm(l, x, normEps, b.ScaleShift(l, b.part(vectors, scale), b.part(vectors, shift)))
}

// feedForward is two linear layers around a GELU (tanh), gated and added to x.
func (b *builder) feedForward(name string, x, h graph.Value, gate graph.Cols) graph.Value {
	u := b.Linear(b.Layers.Linear(name+".net.0.proj", b.d, 4*b.d), graph.From(h), graph.Epilogue{})
	u = b.Activate(name, u, kernels.GELUTanh)
	return b.Gated(name, x, b.Linear(b.Layers.Linear(name+".net.2", 4*b.d, b.d), graph.From(u), graph.Epilogue{}), gate)
}

// qkv are the projections of one of the two streams, normed where the network
// norms them.
func (b *builder) qkv(h graph.Value, names [3]string, norms [2]string) [3]graph.Value {
	var out [3]graph.Value
	for i, name := range names {
		out[i] = b.Linear(b.Layers.Linear(name, b.d, b.d), graph.From(h), graph.Epilogue{})
		if i < 2 && b.qkNorm {
			out[i] = b.RMSNorm(b.Layers.Norm(norms[i]), out[i], b.dim, normEps)
		}
	}
	return out
}

func (b *builder) ofImage(attn string, h graph.Value) [3]graph.Value {
	return b.qkv(h, [3]string{attn + ".to_q", attn + ".to_k", attn + ".to_v"}, [2]string{attn + ".norm_q", attn + ".norm_k"})
}

func (b *builder) ofText(attn string, h graph.Value) [3]graph.Value {
	return b.qkv(h, [3]string{attn + ".add_q_proj", attn + ".add_k_proj", attn + ".add_v_proj"}, [2]string{attn + ".norm_added_q", attn + ".norm_added_k"})
}

func (b *builder) attend(name string, qkv [3]graph.Value) graph.Value {
	a := graph.Attention{Name: name, Heads: b.heads, Dim: b.dim}
	return b.SelfAttention(a, qkv[0].All(), qkv[1].All(), qkv[2].All())
}

func (b *builder) project(name string, x graph.Value) graph.Value {
	return b.Linear(b.Layers.Linear(name, x.C, b.d), graph.From(x), graph.Epilogue{})
}

// head is the last norm and projection.
func (b *builder) head(x graph.Value, out int) graph.Value {
	h := b.norm("norm_out", x, b.vectors("norm_out.linear", 2), 0, 1)
	return b.Linear(b.Layers.ExactLinear("proj_out", b.d, out), graph.From(h), graph.Epilogue{})
}

// sd3 is Stable Diffusion 3's network.
type sd3 struct{ *diffusers.SD3Config }

// NewSD3 checks the configuration and packs the weights.
func NewSD3(cfg *diffusers.SD3Config, w diffusers.Weights, opt engine.Options) (*engine.Net, error) {
	return engine.New(sd3{cfg}, w, opt)
}

// Usual implements engine.Network.
func (s sd3) Usual() (h, w int, inputs map[string][]int) {
	side := min(s.SampleSize, s.PosEmbedMaxSize*s.PatchSize) / s.PatchSize * s.PatchSize
	return side, side, usual(s.JointAttentionDim, s.PooledProjectionDim)
}

func usual(context, pooled int) map[string][]int {
	return map[string][]int{Context: {77, context}, Pooled: {pooled}}
}

// Config implements engine.Network.
func (s sd3) Config() diffusers.Config { return s.SD3Config }

// Channels implements engine.Network.
func (s sd3) Channels() (in, out int) { return s.InChannels, s.Out() }

// Output implements engine.Network.
func (s sd3) Output(h, w int) (int, int, error) {
	p, most := s.PatchSize, s.PosEmbedMaxSize*s.PatchSize
	if h%p != 0 || w%p != 0 || h < p || w < p || h > most || w > most {
		return 0, 0, engine.BadInput("images of %dx%d: the size must be a multiple of the patches' %d and at most %d", h, w, p, most)
	}
	return h, w, nil
}

// Check implements engine.Network.
func (s sd3) Check(b *engine.Batch) error {
	return checkText(b, s.JointAttentionDim, s.PooledProjectionDim, Context, Pooled)
}

func checkText(b *engine.Batch, context, pooled int, known ...string) error {
	for _, err := range []error{b.Want(Context, 0, context), b.Want(Pooled, pooled), b.Refuse(known...)} {
		if err != nil {
			return err
		}
	}
	if len(b.Class) > 0 {
		return engine.BadInput("class labels given, the network takes a text")
	}
	return nil
}

// Key implements engine.Network.
func (s sd3) Key(b *engine.Batch) string { return fmt.Sprint(tokens(b)) }

func tokens(b *engine.Batch) int {
	if c, ok := b.Inputs[Context]; ok && len(c.Shape) > 1 {
		return c.Shape[1]
	}
	return 0
}

// Fill implements engine.Network.
func (s sd3) Fill(e *graph.Env, b *engine.Batch, lo, hi int) { fill(e, b, lo, hi, 1) }

func fill(e *graph.Env, b *engine.Batch, lo, hi int, scale float64) {
	times := e.Fed("time")
	for i, t := range b.T[lo:hi] {
		graph.Sinusoid(times[i*sinusoidWidth:(i+1)*sinusoidWidth], scale*t, 0, true)
	}
	b.Fill(e, Context, lo, hi)
	b.Fill(e, Pooled, lo, hi)
}

// Build implements engine.Network.
func (s sd3) Build(g *graph.Graph, batch *engine.Batch) {
	b := &builder{Graph: g, d: s.Width(), heads: s.NumAttentionHeads, dim: s.AttentionHeadDim, qkNorm: s.QKNorm != ""}
	l, d, p := g.Layers, b.d, s.PatchSize
	in := g.Input(batch.H, batch.W, s.InChannels)
	spec := kernels.ConvSpec{Cin: s.InChannels, Cout: d, KH: p, KW: p, Stride: p, H: s.SampleSize, W: s.SampleSize}
	patches := g.Conv(l.Conv("pos_embed.proj", spec, graph.Exact), graph.From(in), graph.Epilogue{})
	h, w := patches.H, patches.W
	x := g.AddTable("pos_embed", patches.Tokens(), s.positions(l.Tensor("pos_embed.pos_embed"), h, w))
	b.condition(s.PooledProjectionDim, graph.Value{})
	text := b.project("context_embedder", g.Feed(Context, 1, tokens(batch), s.JointAttentionDim))
	for i := range s.NumLayers {
		if name := fmt.Sprintf("transformer_blocks.%d", i); !g.Skips(name) {
			x, text = s.block(b, name, x, text, s.Dual(i), i == s.NumLayers-1)
		}
	}
	g.Output(g.Unpatch("proj_out", b.head(x, p*p*s.Out()), h, w, p, s.Out(), false))
}

// positions cuts the table of an h by w grid from the middle of the stored one.
func (s sd3) positions(table []float32, h, w int) []float32 {
	n, d := s.PosEmbedMaxSize, s.Width()
	if len(table) != n*n*d {
		return nil
	}
	out := make([]float32, 0, h*w*d)
	top, left := (n-h)/2, (n-w)/2
	for y := range h {
		out = append(out, table[((top+y)*n+left)*d:((top+y)*n+left+w)*d]...)
	}
	return out
}

// block is JointTransformerBlock. The last one has no text to hand on.
func (s sd3) block(b *builder, name string, x, text graph.Value, dual, last bool) (graph.Value, graph.Value) {
	count := 6
	if dual {
		count = 9
	}
	// shift, scale, gate of the attention and of the feed-forward part, and of
	// the image's own attention.
	ofImage := b.vectors(name+".norm1.linear", count)
	attn := name + ".attn"
	image := b.ofImage(attn, b.norm(name+".norm1", x, ofImage, 1, 0))
	var ofText graph.Value
	var words [3]graph.Value
	if last {
		ofText = b.vectors(name+".norm1_context.linear", 2)
		words = b.ofText(attn, b.norm(name+".norm1_context", text, ofText, 0, 1))
	} else {
		ofText = b.vectors(name+".norm1_context.linear", 6)
		words = b.ofText(attn, b.norm(name+".norm1_context", text, ofText, 1, 0))
	}
	var joint [3]graph.Value
	for i := range joint {
		joint[i] = b.Join(attn, image[i], words[i])
	}
	out := b.attend(attn, joint)
	before := x
	x = b.Gated(attn, x, b.project(attn+".to_out.0", b.Slice(attn, out, 0, x.Rows())), b.part(ofImage, 2))
	if dual {
		attn2 := name + ".attn2"
		y := b.attend(attn2, b.ofImage(attn2, b.norm(name+".norm1", before, ofImage, 7, 6)))
		x = b.Gated(attn2, x, b.project(attn2+".to_out.0", y), b.part(ofImage, 8))
	}
	x = b.feedForward(name+".ff", x, b.norm(name+".norm2", x, ofImage, 4, 3), b.part(ofImage, 5))
	if last {
		return x, text
	}
	text = b.Gated(attn, text, b.project(attn+".to_add_out", b.Slice(attn, out, x.Rows(), text.Rows())), b.part(ofText, 2))
	text = b.feedForward(name+".ff_context", text, b.norm(name+".norm2_context", text, ofText, 4, 3), b.part(ofText, 5))
	return x, text
}
