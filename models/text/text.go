// Package text turns prompts into what networks attend to: tokenizers, and the
// text encoders CLIP and T5 on the native engine.
package text

import (
	"context"
	"fmt"
	"math"
	"slices"

	"drift/internal/graph"
	"drift/internal/kernels"
	"drift/models/diffusers"
	"drift/models/engine"
)

// Output is what an encoder makes of n sequences of tokens.
type Output struct {
	N, Tokens, Width int
	Last             []float32   // (N, Tokens, Width): the last hidden state, after the final norm
	Hidden           [][]float32 // (N, Tokens, Width) before the first layer and after every one; T5's last is after the final norm
	Pooled           []float32   // (N, Width) of CLIP: the state of the end token; nil for T5
	Projected        []float32   // (N, projection_dim) of CLIPTextModelWithProjection: text_projection of Pooled
}

// Encoder is a text encoder with packed weights. Calls of several goroutines
// wait for each other.
type Encoder struct {
	cfg     diffusers.Config
	eng     *graph.Engine
	pool    *kernels.Pool
	ownPool bool
	layers  int
	width   int
	most    int // tokens, 0 = any number
	vocab   int
	build   func(g *graph.Graph, tokens int, masked bool, skip int)
}

// New checks the configuration and packs the weights of a CLIPTextConfig or
// T5Config.
func New(cfg diffusers.Config, w diffusers.Weights, opt engine.Options) (*Encoder, error) {
	e := &Encoder{cfg: cfg, pool: opt.Pool}
	first := 77
	switch c := cfg.(type) {
	case *diffusers.CLIPTextConfig:
		e.layers, e.width, e.most, e.vocab = c.NumHiddenLayers, c.HiddenSize, c.MaxPositionEmbeddings, c.VocabSize
		e.build = clip{c}.build
		first = min(first, e.most)
	case *diffusers.T5Config:
		e.layers, e.width, e.vocab = c.NumLayers, c.DModel, c.VocabSize
		e.build = t5{c}.build
	default:
		return nil, fmt.Errorf("text: a %s is no text encoder of this engine", cfg.ClassName())
	}
	if err := engine.CheckTensors(cfg, w); err != nil {
		return nil, fmt.Errorf("text: %w", err)
	}
	if e.pool == nil {
		e.pool = kernels.NewPool(kernels.Detect(), opt.Threads)
		e.ownPool = true
	}
	e.eng = graph.NewEngine(e.pool, opt.DType, w)
	if opt.Lazy {
		return e, nil
	}
	if _, err := e.plan(first, false, 0); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

// Close stops the workers of an own pool.
func (e *Encoder) Close() {
	if e.ownPool {
		e.pool.Close()
	}
}

// Weights is the size of the packed weights in bytes.
func (e *Encoder) Weights() int { return e.eng.Layers.Bytes() }

// Forget gives the packed weights and all activations back; the next Encode
// reads the weights again.
func (e *Encoder) Forget() { e.eng.Forget() }

// Config gives the configuration that the encoder was made from.
func (e *Encoder) Config() diffusers.Config { return e.cfg }

// Width is the width of a hidden state.
func (e *Encoder) Width() int { return e.width }

func (e *Encoder) plan(tokens int, masked bool, skip int) (*graph.Plan, error) {
	p, err := e.eng.Plan(graph.Setting{Key: fmt.Sprint(tokens, masked, skip)}, func(g *graph.Graph) { e.build(g, tokens, masked, skip) })
	if err != nil {
		return nil, fmt.Errorf("text: %s: %w", e.cfg.ClassName(), err)
	}
	return p, nil
}

// Encode encodes sequences of one length. mask, if not nil, is 1 for the
// tokens to attend to and 0 for others.
func (e *Encoder) Encode(ctx context.Context, ids, mask [][]int) (*Output, error) {
	return e.EncodeSkip(ctx, ids, mask, 0)
}

// EncodeSkip is Encode without the last layers: Last, and what is made of it,
// is the final norm of an earlier hidden state.
func (e *Encoder) EncodeSkip(ctx context.Context, ids, mask [][]int, skip int) (*Output, error) {
	if _, clip := e.cfg.(*diffusers.CLIPTextConfig); skip < 0 || skip > e.layers || skip > 0 && !clip {
		return nil, fmt.Errorf("text: %d of %d layers cannot be skipped", skip, e.layers)
	}
	if len(ids) == 0 || len(ids[0]) == 0 {
		return nil, fmt.Errorf("text: no tokens")
	}
	tokens := len(ids[0])
	if e.most > 0 && tokens > e.most {
		return nil, fmt.Errorf("text: %d tokens, the encoder takes at most %d", tokens, e.most)
	}
	for i, row := range ids {
		if len(row) != tokens || mask != nil && (len(mask) != len(ids) || len(mask[i]) != tokens) {
			return nil, fmt.Errorf("text: sequence %d has another length than the first", i)
		}
		for _, id := range row {
			if id < 0 || id >= e.vocab {
				return nil, fmt.Errorf("text: token %d is not in [0, %d)", id, e.vocab)
			}
		}
	}
	p, err := e.plan(tokens, mask != nil, skip)
	if err != nil {
		return nil, err
	}
	out := &Output{N: len(ids), Tokens: tokens, Width: e.width, Hidden: make([][]float32, e.layers+1)}
	err = e.eng.Run(ctx, p, len(ids), func(v *graph.Env, lo, hi int) {
		feed(v.Fed("ids"), ids[lo:hi], func(id int) float32 { return float32(id) })
		if mask != nil {
			feed(v.Fed("mask"), mask[lo:hi], func(m int) float32 {
				if m == 0 {
					return float32(math.Inf(-1))
				}
				return 0
			})
		}
	}, func(v *graph.Env, _, _ int) {
		out.Last = append(out.Last, v.At(p.Out())...)
		for i := range out.Hidden {
			out.Hidden[i] = append(out.Hidden[i], v.Kept(hiddenName(i))...)
		}
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("text: %w", err)
	}
	if c, ok := e.cfg.(*diffusers.CLIPTextConfig); ok {
		e.pooled(c, out, ids)
	}
	return out, nil
}

func feed(dst []float32, rows [][]int, f func(int) float32) {
	for _, row := range rows {
		for i, v := range row {
			dst[i] = f(v)
		}
		dst = dst[len(row):]
	}
}

func hiddenName(i int) string { return fmt.Sprintf("hidden.%d", i) }

// legacyEOS is an eos_token_id that old configurations have by mistake: their
// end token is the largest id of a sequence instead.
const legacyEOS = 2

// pooled takes the state of the end token, and projects it in float64.
func (e *Encoder) pooled(c *diffusers.CLIPTextConfig, out *Output, ids [][]int) {
	for i, row := range ids {
		end := 0
		if c.EOSTokenID != nil && *c.EOSTokenID != legacyEOS {
			end = max(slices.Index(row, *c.EOSTokenID), 0)
		} else {
			end = slices.Index(row, slices.Max(row))
		}
		out.Pooled = append(out.Pooled, out.Last[(i*out.Tokens+end)*e.width:][:e.width]...)
	}
	if !c.Projected {
		return
	}
	w := e.eng.Layers.Tensor("text_projection.weight")
	for i := range ids {
		x := out.Pooled[i*e.width : (i+1)*e.width]
		for k := range c.ProjectionDim {
			sum := 0.0
			for j, v := range w[k*e.width : (k+1)*e.width] {
				sum += float64(v) * float64(x[j])
			}
			out.Projected = append(out.Projected, float32(sum))
		}
	}
}

// clip is CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020): a
// transformer whose tokens see those before them.
type clip struct{ *diffusers.CLIPTextConfig }

func (c clip) build(g *graph.Graph, tokens int, masked bool, skip int) {
	l, d := g.Layers, c.HiddenSize
	act := kernels.GELU
	if c.HiddenAct == "quick_gelu" {
		act = kernels.QuickGELU
	}
	var mask graph.Value
	if masked {
		mask = g.Feed("mask", 1, tokens, 1)
	}
	x := g.Rows("token_embedding", g.Feed("ids", 1, tokens, 1), l.Tensor("embeddings.token_embedding.weight"), d)
	x = g.AddTable("position_embedding", x, l.Tensor("embeddings.position_embedding.weight")[:tokens*d])
	states := []graph.Value{g.Keep(hiddenName(0), x)}
	for i := range c.NumHiddenLayers {
		name := fmt.Sprintf("encoder.layers.%d", i)
		attn := name + ".self_attn"
		h := g.LayerNorm(l.Norm(name+".layer_norm1"), x, c.LayerNormEps, graph.Modulation{})
		qkv := g.Linear(l.Linear(attn+".qkv", d, 3*d, attn+".q_proj", attn+".k_proj", attn+".v_proj"), graph.From(h), graph.Epilogue{})
		h = g.Attention(graph.Attention{Name: attn, Heads: c.NumAttentionHeads, Dim: d / c.NumAttentionHeads, Causal: true, KeyBias: mask},
			qkv.Cols(0, d), qkv.Cols(d, d), qkv.Cols(2*d, d))
		x = g.Linear(l.Linear(attn+".out_proj", d, d), graph.From(h), graph.Epilogue{Residual: x})
		h = g.LayerNorm(l.Norm(name+".layer_norm2"), x, c.LayerNormEps, graph.Modulation{})
		h = g.Linear(l.Linear(name+".mlp.fc1", d, c.IntermediateSize), graph.From(h), graph.Epilogue{Act: act})
		x = g.Linear(l.Linear(name+".mlp.fc2", c.IntermediateSize, d), graph.From(h), graph.Epilogue{Residual: x})
		states = append(states, g.Keep(hiddenName(i+1), x))
	}
	g.Output(g.LayerNorm(l.Norm("final_layer_norm"), states[c.NumHiddenLayers-skip], c.LayerNormEps, graph.Modulation{}))
}

// t5 is the encoder of T5 (Raffel et al. 2020, arXiv:1910.10683): no scale of
// the scores, a learned bias by distance, RMS norms.
type t5 struct{ *diffusers.T5Config }

func (c t5) build(g *graph.Graph, tokens int, masked bool, _ int) {
	l, d, inner := g.Layers, c.DModel, c.NumHeads*c.DKV
	var mask graph.Value
	if masked {
		mask = g.Feed("mask", 1, tokens, 1)
	}
	bias := c.bias(l.Tensor("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"), tokens)
	x := g.Rows("shared", g.Feed("ids", 1, tokens, 1), l.Tensor("shared.weight"), d)
	for i := range c.NumLayers {
		g.Keep(hiddenName(i), x)
		name := fmt.Sprintf("encoder.block.%d.layer.0", i)
		attn := name + ".SelfAttention"
		h := g.RMSNorm(l.Norm(name+".layer_norm"), x, 0, c.LayerNormEpsilon)
		qkv := g.Linear(l.Linear(attn+".qkv", d, 3*inner, attn+".q", attn+".k", attn+".v"), graph.From(h), graph.Epilogue{})
		h = g.Attention(graph.Attention{Name: attn, Heads: c.NumHeads, Dim: c.DKV, Scale: 1, KeyBias: mask, Bias: bias},
			qkv.Cols(0, inner), qkv.Cols(inner, inner), qkv.Cols(2*inner, inner))
		x = g.Linear(l.Linear(attn+".o", inner, d), graph.From(h), graph.Epilogue{Residual: x})

		name = fmt.Sprintf("encoder.block.%d.layer.1", i)
		ff := name + ".DenseReluDense"
		h = g.RMSNorm(l.Norm(name+".layer_norm"), x, 0, c.LayerNormEpsilon)
		if c.Gated() {
			gate := g.Linear(l.Linear(ff+".wi_0", d, c.DFF), graph.From(h), graph.Epilogue{Act: kernels.GELUTanh})
			h = g.Product(ff, gate, g.Linear(l.Linear(ff+".wi_1", d, c.DFF), graph.From(h), graph.Epilogue{}))
		} else {
			h = g.Linear(l.Linear(ff+".wi", d, c.DFF), graph.From(h), graph.Epilogue{Act: kernels.ReLU})
		}
		x = g.Linear(l.Linear(ff+".wo", c.DFF, d), graph.From(h), graph.Epilogue{Residual: x})
	}
	x = g.RMSNorm(l.Norm("encoder.final_layer_norm"), x, 0, c.LayerNormEpsilon)
	g.Keep(hiddenName(c.NumLayers), x)
	g.Output(x)
}

// bias is the bias of every head (heads, tokens, tokens) from the table of the
// buckets (buckets, heads).
func (c t5) bias(table []float32, tokens int) []float32 {
	out := make([]float32, c.NumHeads*tokens*tokens)
	if len(table) != c.RelativeAttentionNumBuckets*c.NumHeads {
		return out // the tensor is missing, which the layers report
	}
	for q := range tokens {
		for k := range tokens {
			b := c.bucket(k - q)
			for h := range c.NumHeads {
				out[(h*tokens+q)*tokens+k] = table[b*c.NumHeads+h]
			}
		}
	}
	return out
}

// bucket is the bucket of a key that lies distance behind the query: half of
// the buckets for each direction, of those half one distance each and the
// rest logarithmic up to the largest distance.
func (c t5) bucket(distance int) int {
	half := c.RelativeAttentionNumBuckets / 2
	start := 0
	if distance > 0 {
		start = half
	} else {
		distance = -distance
	}
	exact := half / 2
	if distance < exact {
		return start + distance
	}
	far := math.Log(float64(distance)/float64(exact)) / math.Log(float64(c.RelativeAttentionMaxDistance)/float64(exact))
	return start + min(exact+int(far*float64(half-exact)), half-1)
}
