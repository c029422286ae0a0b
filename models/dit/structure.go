package dit

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"drift/internal/kernels"
	"drift/models/diffusers"
)

// linear is a fully connected layer. Several tensors stand for layers that
// read the same input and are run as one, their outputs side by side (to_q,
// to_k, to_v).
type linear struct {
	name    string
	parts   []string // names of the tensors without .weight and .bias
	in, out int
	bias    bool
	exact   bool // stays in float32 whatever the data type
	image   bool // the image passes through it: a gradient needs it

	layer *kernels.Linear
	grad  *kernels.Linear // packed when a gradient is first asked for
}

// block is a transformer block with its own copy of the embedders.
type block struct {
	name          string
	time          [2]*linear
	class         string    // embedding table
	table         []float32 // (classes + 1, width)
	modulation    *linear   // (shift, scale, gate) of attention, then of the feed-forward part
	qkv, out      *linear
	inner, outer  *linear // of the feed-forward part
	attn, forward string  // names for hooks
}

type tree struct {
	cfg           diffusers.DiTConfig
	width         int // channels of a token
	channels      int // output channels
	base          int // tokens on a side at sample_size
	act           kernels.Activation
	patch         *linear
	blocks        []*block
	modulationOut *linear
	proj          *linear

	linears []*linear
	tensors []diffusers.Tensor
}

func newTree(cfg diffusers.DiTConfig) (*tree, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("dit: %w", err)
	}
	t := &tree{
		cfg: cfg, width: cfg.NumAttentionHeads * cfg.AttentionHeadDim, channels: cfg.OutChannels,
		base: cfg.SampleSize / cfg.PatchSize, act: kernels.GELUTanh, tensors: cfg.Tensors(),
	}
	if t.channels == 0 {
		t.channels = cfg.InChannels
	}
	if cfg.ActivationFn == "gelu" {
		t.act = kernels.GELU
	}
	d, pixels := t.width, cfg.PatchSize*cfg.PatchSize
	add := func(l linear) *linear {
		if l.parts == nil {
			l.parts = []string{l.name}
		}
		t.linears = append(t.linears, &l)
		return &l
	}
	t.patch = add(linear{name: "pos_embed.proj", in: pixels * cfg.InChannels, out: d, bias: true, exact: true, image: true})
	for i := range cfg.NumLayers {
		name := fmt.Sprintf("transformer_blocks.%d", i)
		emb, attn, ff := name+".norm1.emb", name+".attn1", name+".ff"
		t.blocks = append(t.blocks, &block{
			name: name, attn: attn, forward: ff, class: emb + ".class_embedder.embedding_table.weight",
			time: [2]*linear{
				add(linear{name: emb + ".timestep_embedder.linear_1", in: sinusoidWidth, out: d, bias: true, exact: true}),
				add(linear{name: emb + ".timestep_embedder.linear_2", in: d, out: d, bias: true, exact: true}),
			},
			modulation: add(linear{name: name + ".norm1.linear", in: d, out: 6 * d, bias: true}),
			qkv: add(linear{name: attn + ".to_qkv", parts: []string{attn + ".to_q", attn + ".to_k", attn + ".to_v"},
				in: d, out: 3 * d, bias: cfg.AttentionBias, image: true}),
			out:   add(linear{name: attn + ".to_out.0", in: d, out: d, bias: true, image: true}),
			inner: add(linear{name: ff + ".net.0.proj", in: d, out: 4 * d, bias: true, image: true}),
			outer: add(linear{name: ff + ".net.2", in: 4 * d, out: d, bias: true, image: true}),
		})
	}
	t.modulationOut = add(linear{name: "proj_out_1", in: d, out: 2 * d, bias: true, exact: true})
	t.proj = add(linear{name: "proj_out_2", in: d, out: pixels * t.channels, bias: true, exact: true, image: true})
	return t, nil
}

func product(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

// checkTensors compares what there is with what the configuration asks for.
func checkTensors(want []diffusers.Tensor, w diffusers.Weights) error {
	faults := map[string][]string{}
	fault := func(kind, format string, args ...any) {
		faults[kind] = append(faults[kind], fmt.Sprintf(format, args...))
	}
	known := map[string]bool{}
	for _, t := range want {
		known[t.Name] = true
		switch shape, ok := w.Shape(t.Name); {
		case !ok:
			fault("missing", "%s", t.Name)
		case !slices.Equal(shape, t.Shape):
			fault("of a wrong shape", "%s is %v, the configuration asks for %v", t.Name, shape, t.Shape)
		}
	}
	for _, name := range w.Names() {
		if !known[name] {
			fault("unknown", "%s", name)
		}
	}
	var errs []error
	for _, kind := range []string{"missing", "of a wrong shape", "unknown"} {
		if list := faults[kind]; len(list) > 0 {
			errs = append(errs, fmt.Errorf("dit: tensors %s: %d: %s", kind, len(list), strings.Join(list, "; ")))
		}
	}
	return errors.Join(errs...)
}
