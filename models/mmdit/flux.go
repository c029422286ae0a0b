package mmdit

import (
	"fmt"
	"math"

	"drift/internal/graph"
	"drift/internal/kernels"
	"drift/models/diffusers"
	"drift/models/engine"
)

// pack is the side of the squares of latent pixels that become one token.
const pack = 2

// flux is Flux's network over latents: it cuts them into tokens of two by two
// pixels itself, and takes times from 0 to 1.
type flux struct{ *diffusers.FluxConfig }

// NewFlux checks the configuration and packs the weights.
func NewFlux(cfg *diffusers.FluxConfig, w diffusers.Weights, opt engine.Options) (*engine.Net, error) {
	return engine.New(flux{cfg}, w, opt)
}

// Usual implements engine.Network.
func (f flux) Usual() (h, w int, inputs map[string][]int) {
	inputs = usual(f.JointAttentionDim, f.PooledProjectionDim)
	if f.GuidanceEmbeds {
		inputs[Guidance] = nil
	}
	return 128, 128, inputs
}

// Config implements engine.Network.
func (f flux) Config() diffusers.Config { return f.FluxConfig }

// Channels implements engine.Network.
func (f flux) Channels() (in, out int) {
	return f.InChannels / (pack * pack), f.InChannels / (pack * pack)
}

// Output implements engine.Network.
func (f flux) Output(h, w int) (int, int, error) {
	if h%pack != 0 || w%pack != 0 || h < pack || w < pack {
		return 0, 0, engine.BadInput("latents of %dx%d: the size must be even", h, w)
	}
	return h, w, nil
}

// Check implements engine.Network.
func (f flux) Check(b *engine.Batch) error {
	if f.GuidanceEmbeds {
		if err := b.Want(Guidance); err != nil {
			return err
		}
		return checkText(b, f.JointAttentionDim, f.PooledProjectionDim, Context, Pooled, Guidance)
	}
	return checkText(b, f.JointAttentionDim, f.PooledProjectionDim, Context, Pooled)
}

// Key implements engine.Network.
func (f flux) Key(b *engine.Batch) string { return fmt.Sprint(tokens(b)) }

// timeScale is what times and guidance are multiplied with in the network.
const timeScale = 1000

// Fill implements engine.Network.
func (f flux) Fill(e *graph.Env, b *engine.Batch, lo, hi int) {
	fill(e, b, lo, hi, timeScale)
	if rows := e.Fed(Guidance); rows != nil {
		for i, v := range b.Inputs[Guidance].Data[lo:hi] {
			graph.Sinusoid(rows[i*sinusoidWidth:(i+1)*sinusoidWidth], timeScale*float64(v), 0, true)
		}
	}
}

// Build implements engine.Network.
func (f flux) Build(g *graph.Graph, batch *engine.Batch) {
	b := &builder{Graph: g, d: f.Width(), heads: f.NumAttentionHeads, dim: f.AttentionHeadDim, qkNorm: true}
	latent := g.Input(batch.H, batch.W, f.InChannels/(pack*pack))
	h, w := batch.H/pack, batch.W/pack
	in := g.Patch("pack", latent, pack, true)
	x := g.Linear(g.Layers.ExactLinear("x_embedder", in.C, b.d), graph.From(in), graph.Epilogue{})
	var guided graph.Value
	if f.GuidanceEmbeds {
		guided = b.two("time_text_embed.guidance_embedder", g.Feed(Guidance, 1, 1, sinusoidWidth), graph.Epilogue{})
	}
	b.condition(f.PooledProjectionDim, guided)
	text := b.project("context_embedder", g.Feed(Context, 1, tokens(batch), f.JointAttentionDim))
	cos, sin := f.angles(text.Rows(), h, w)
	for i := range f.NumLayers {
		if name := fmt.Sprintf("transformer_blocks.%d", i); !g.Skips(name) {
			x, text = f.block(b, name, x, text, cos, sin)
		}
	}
	all := b.Join("single_transformer_blocks", text, x)
	for i := range f.NumSingleLayers {
		if name := fmt.Sprintf("single_transformer_blocks.%d", i); !g.Skips(name) {
			all = f.single(b, name, all, cos, sin)
		}
	}
	x = b.Slice("single_transformer_blocks", all, text.Rows(), x.Rows())
	g.Output(g.Unpatch("unpack", b.head(x, f.InChannels), h, w, pack, f.InChannels/(pack*pack), true))
}

// angles are cosine and sine of every token's rotation: the position of a
// text token is 0, that of a patch (0, row, column), each coordinate with its
// own part of a head.
func (f flux) angles(text, h, w int) (cos, sin []float32) {
	half := f.AttentionHeadDim / 2
	cos, sin = make([]float32, (text+h*w)*half), make([]float32, (text+h*w)*half)
	for i := range cos[:text*half] {
		cos[i] = 1
	}
	for y := range h {
		for x := range w {
			at := (text + y*w + x) * half
			for axis, dim := range f.AxesDimsRope {
				for k := range dim / 2 {
					s, c := math.Sincos(float64([]int{0, y, x}[axis]) * math.Pow(10000, -2*float64(k)/float64(dim)))
					cos[at], sin[at] = float32(c), float32(s)
					at++
				}
			}
		}
	}
	return cos, sin
}

// turned is the joint attention after the rotation of queries and keys.
func (f flux) turned(b *builder, name string, qkv [3]graph.Value, cos, sin []float32) graph.Value {
	for i := range 2 {
		qkv[i] = b.Rotary(name, qkv[i], b.heads, b.dim, cos, sin)
	}
	return b.attend(name, qkv)
}

// block is FluxTransformerBlock: image and text keep weights of their own.
func (f flux) block(b *builder, name string, x, text graph.Value, cos, sin []float32) (graph.Value, graph.Value) {
	attn := name + ".attn"
	ofImage, ofText := b.vectors(name+".norm1.linear", 6), b.vectors(name+".norm1_context.linear", 6)
	image := b.ofImage(attn, b.norm(name+".norm1", x, ofImage, 1, 0))
	words := b.ofText(attn, b.norm(name+".norm1_context", text, ofText, 1, 0))
	var joint [3]graph.Value
	for i := range joint {
		joint[i] = b.Join(attn, words[i], image[i])
	}
	out := f.turned(b, attn, joint, cos, sin)
	x = b.Gated(attn, x, b.project(attn+".to_out.0", b.Slice(attn, out, text.Rows(), x.Rows())), b.part(ofImage, 2))
	x = b.feedForward(name+".ff", x, b.norm(name+".norm2", x, ofImage, 4, 3), b.part(ofImage, 5))
	text = b.Gated(attn, text, b.project(attn+".to_add_out", b.Slice(attn, out, 0, text.Rows())), b.part(ofText, 2))
	text = b.feedForward(name+".ff_context", text, b.norm(name+".norm2_context", text, ofText, 4, 3), b.part(ofText, 5))
	return x, text
}

// single is FluxSingleTransformerBlock: attention and feed-forward part side
// by side, over text and image as one sequence.
func (f flux) single(b *builder, name string, x graph.Value, cos, sin []float32) graph.Value {
	vectors := b.vectors(name+".norm.linear", 3)
	h := b.norm(name+".norm", x, vectors, 1, 0)
	a := f.turned(b, name+".attn", b.ofImage(name+".attn", h), cos, sin)
	m := b.Linear(b.Layers.Linear(name+".proj_mlp", b.d, 4*b.d), graph.From(h), graph.Epilogue{})
	m = b.Activate(name+".proj_mlp", m, kernels.GELUTanh)
	y := b.Linear(b.Layers.Linear(name+".proj_out", 5*b.d, b.d), graph.Source{X: a, X2: m}, graph.Epilogue{})
	return b.Gated(name, x, y, b.part(vectors, 2))
}
