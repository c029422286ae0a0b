package diffusers

import (
	"fmt"
	"strings"
)

// CLIPTextConfig is the configuration of CLIPTextModel and of
// CLIPTextModelWithProjection (transformers), the text encoders of Stable
// Diffusion. Keys that say nothing about the network are passed over.
type CLIPTextConfig struct {
	VocabSize             int     `key:"vocab_size"`
	HiddenSize            int     `key:"hidden_size"`
	IntermediateSize      int     `key:"intermediate_size"`
	ProjectionDim         int     `key:"projection_dim"`
	NumHiddenLayers       int     `key:"num_hidden_layers"`
	NumAttentionHeads     int     `key:"num_attention_heads"`
	MaxPositionEmbeddings int     `key:"max_position_embeddings"`
	HiddenAct             string  `key:"hidden_act"`
	LayerNormEps          float64 `key:"layer_norm_eps"`
	EOSTokenID            *int    `key:"eos_token_id"`

	Projected bool `key:"-"` // the class with text_projection

	Info `key:"-"`
}

func newCLIPText(projected bool) *CLIPTextConfig {
	eos := 49407
	return &CLIPTextConfig{
		VocabSize: 49408, HiddenSize: 512, IntermediateSize: 2048, ProjectionDim: 512, NumHiddenLayers: 12,
		NumAttentionHeads: 8, MaxPositionEmbeddings: 77, HiddenAct: "quick_gelu", LayerNormEps: 1e-5,
		EOSTokenID: &eos, Projected: projected,
	}
}

// ClassName implements Config.
func (c *CLIPTextConfig) ClassName() string {
	if c.Projected {
		return "CLIPTextModelWithProjection"
	}
	return "CLIPTextModel"
}

// Validate implements Config.
func (c *CLIPTextConfig) Validate() error {
	return check(
		between("vocab_size", c.VocabSize, 1, 1<<20),
		between("hidden_size", c.HiddenSize, 1, maxWidth),
		between("intermediate_size", c.IntermediateSize, 1, maxWidth),
		between("projection_dim", c.ProjectionDim, 1, maxWidth),
		between("num_hidden_layers", c.NumHiddenLayers, 1, maxDepth),
		between("max_position_embeddings", c.MaxPositionEmbeddings, 1, maxWidth),
		rule{c.NumAttentionHeads >= 1 && c.HiddenSize%max(c.NumAttentionHeads, 1) == 0, "num_attention_heads", c.NumAttentionHeads, "a divisor of hidden_size"},
		oneOf("hidden_act", c.HiddenAct, "quick_gelu", "gelu"),
		positive("layer_norm_eps", c.LayerNormEps),
	)
}

// Tensors implements Config, under the names without text_model.
func (c *CLIPTextConfig) Tensors() []Tensor {
	l := &layout{}
	d := c.HiddenSize
	l.add("embeddings.token_embedding.weight", c.VocabSize, d)
	l.add("embeddings.position_embedding.weight", c.MaxPositionEmbeddings, d)
	for i := range c.NumHiddenLayers {
		name := fmt.Sprintf("encoder.layers.%d", i)
		for _, p := range []string{"q", "k", "v", "out"} {
			l.linear(name+".self_attn."+p+"_proj", d, d, true)
		}
		l.norm(name+".layer_norm1", d)
		l.linear(name+".mlp.fc1", d, c.IntermediateSize, true)
		l.linear(name+".mlp.fc2", c.IntermediateSize, d, true)
		l.norm(name+".layer_norm2", d)
	}
	l.norm("final_layer_norm", d)
	if c.Projected {
		l.linear("text_projection", d, c.ProjectionDim, false)
	}
	return l.tensors
}

const clipPrefix = "text_model."

// stem, aliases and ignores say how transformers stores the network.
func (c *CLIPTextConfig) stem() string { return "model" }

func (c *CLIPTextConfig) aliases(name string) []string { return []string{clipPrefix + name} }

func (c *CLIPTextConfig) ignores(name string) bool {
	name = strings.TrimPrefix(name, clipPrefix)
	return name == "embeddings.position_ids" || name == "text_projection.weight" && !c.Projected
}

// T5Config is the configuration of T5EncoderModel (transformers).
type T5Config struct {
	VocabSize                    int     `key:"vocab_size"`
	DModel                       int     `key:"d_model"`
	DKV                          int     `key:"d_kv"`
	DFF                          int     `key:"d_ff"`
	NumLayers                    int     `key:"num_layers"`
	NumHeads                     int     `key:"num_heads"`
	RelativeAttentionNumBuckets  int     `key:"relative_attention_num_buckets"`
	RelativeAttentionMaxDistance int     `key:"relative_attention_max_distance"`
	LayerNormEpsilon             float64 `key:"layer_norm_epsilon"`
	FeedForwardProj              string  `key:"feed_forward_proj"`

	Info `key:"-"`
}

func newT5() *T5Config {
	return &T5Config{
		VocabSize: 32128, DModel: 512, DKV: 64, DFF: 2048, NumLayers: 6, NumHeads: 8, RelativeAttentionNumBuckets: 32,
		RelativeAttentionMaxDistance: 128, LayerNormEpsilon: 1e-6, FeedForwardProj: "relu",
	}
}

// ClassName implements Config.
func (c *T5Config) ClassName() string { return "T5EncoderModel" }

// Gated tells whether the feed-forward part has a gate.
func (c *T5Config) Gated() bool { return strings.HasPrefix(c.FeedForwardProj, "gated-") }

// Validate implements Config.
func (c *T5Config) Validate() error {
	return check(
		between("vocab_size", c.VocabSize, 1, 1<<20),
		between("d_model", c.DModel, 1, maxWidth),
		between("d_kv", c.DKV, 1, maxWidth),
		between("d_ff", c.DFF, 1, maxWidth),
		between("num_layers", c.NumLayers, 1, maxDepth),
		between("num_heads", c.NumHeads, 1, maxWidth),
		between("relative_attention_num_buckets", c.RelativeAttentionNumBuckets, 4, maxWidth),
		rule{c.RelativeAttentionMaxDistance > c.RelativeAttentionNumBuckets/4, "relative_attention_max_distance", c.RelativeAttentionMaxDistance, "more than a quarter of the buckets"},
		oneOf("feed_forward_proj", c.FeedForwardProj, "relu", "gated-gelu"),
		positive("layer_norm_epsilon", c.LayerNormEpsilon),
	)
}

// Tensors implements Config.
func (c *T5Config) Tensors() []Tensor {
	l := &layout{}
	inner := c.NumHeads * c.DKV
	l.add("shared.weight", c.VocabSize, c.DModel)
	for i := range c.NumLayers {
		name := fmt.Sprintf("encoder.block.%d", i)
		for _, p := range []string{"q", "k", "v"} {
			l.linear(name+".layer.0.SelfAttention."+p, c.DModel, inner, false)
		}
		l.linear(name+".layer.0.SelfAttention.o", inner, c.DModel, false)
		if i == 0 {
			l.add(name+".layer.0.SelfAttention.relative_attention_bias.weight", c.RelativeAttentionNumBuckets, c.NumHeads)
		}
		l.add(name+".layer.0.layer_norm.weight", c.DModel)
		in := []string{"wi"}
		if c.Gated() {
			in = []string{"wi_0", "wi_1"}
		}
		for _, p := range in {
			l.linear(name+".layer.1.DenseReluDense."+p, c.DModel, c.DFF, false)
		}
		l.linear(name+".layer.1.DenseReluDense.wo", c.DFF, c.DModel, false)
		l.add(name+".layer.1.layer_norm.weight", c.DModel)
	}
	l.add("encoder.final_layer_norm.weight", c.DModel)
	return l.tensors
}

func (c *T5Config) stem() string { return "model" }

func (c *T5Config) aliases(name string) []string {
	if name == "shared.weight" {
		return []string{"encoder.embed_tokens.weight"}
	}
	return nil
}

// ignores: files of the whole model hold the decoder, too.
func (c *T5Config) ignores(name string) bool {
	return strings.HasPrefix(name, "decoder.") || name == "lm_head.weight"
}
