package diffusers

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"drift/internal/refuse"
	"drift/internal/safetensors"
)

// LoRA is a file of low-rank changes of weights (Hu et al. 2021,
// arXiv:2106.09685):
//
//	W' = W + scale alpha/rank up down
//
// under the names of diffusers and peft (unet.MODULE.lora_A.weight) or of kohya
// (lora_unet_MODULE.lora_down.weight, with dots as underscores, and .alpha).
type LoRA struct {
	reader *safetensors.Reader
	path   string
	parts  map[string]map[string]*lowRank // component, then module as the file writes it
}

// lowRank names the tensors of one module.
type lowRank struct {
	up, down, alpha string
	flat            bool // the module's dots are underscores
}

// loraPrefixes are how files name the components of a pipeline.
var loraPrefixes = []struct {
	prefix, component string
	flat              bool
}{
	{"lora_unet_", "unet", true}, {"lora_transformer_", "transformer", true},
	{"lora_te1_", "text_encoder", true}, {"lora_te2_", "text_encoder_2", true}, {"lora_te_", "text_encoder", true},
	{"unet.", "unet", false}, {"transformer.", "transformer", false},
	{"text_encoder.", "text_encoder", false}, {"text_encoder_2.", "text_encoder_2", false},
}

// loraSuffixes are how files end the names of a module's matrices.
var loraSuffixes = []struct {
	suffix string
	of     func(*lowRank) *string
}{
	{".lora_A.weight", func(l *lowRank) *string { return &l.down }}, {".lora_B.weight", func(l *lowRank) *string { return &l.up }},
	{".lora_A.default.weight", func(l *lowRank) *string { return &l.down }}, {".lora_B.default.weight", func(l *lowRank) *string { return &l.up }},
	{".lora_down.weight", func(l *lowRank) *string { return &l.down }}, {".lora_up.weight", func(l *lowRank) *string { return &l.up }},
	{".lora.down.weight", func(l *lowRank) *string { return &l.down }}, {".lora.up.weight", func(l *lowRank) *string { return &l.up }},
	{".lora_linear_layer.down.weight", func(l *lowRank) *string { return &l.down }}, {".lora_linear_layer.up.weight", func(l *lowRank) *string { return &l.up }},
	{".alpha", func(l *lowRank) *string { return &l.alpha }},
}

// OpenLoRA reads the names of a LoRA file. A tensor that is no part of a
// low-rank change of a known component is refused by name.
func OpenLoRA(path string) (*LoRA, error) {
	r, err := safetensors.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening a LoRA: %w", err)
	}
	l := &LoRA{reader: r, path: path, parts: map[string]map[string]*lowRank{}}
	for _, t := range r.Tensors() {
		if !l.note(t.Name) {
			_ = r.Close() // the refusal says enough
			return nil, refuse.Errorf(path, "the tensor %.120q is no part of a LoRA that is read here", t.Name)
		}
	}
	for component, modules := range l.parts {
		for module, m := range modules {
			if m.up == "" || m.down == "" {
				_ = r.Close()
				return nil, refuse.Errorf(path, "the module %s of %s has only one of its two matrices", module, component)
			}
		}
	}
	return l, nil
}

func (l *LoRA) note(name string) bool {
	for _, p := range loraPrefixes {
		rest, ok := strings.CutPrefix(name, p.prefix)
		if !ok {
			continue
		}
		for _, s := range loraSuffixes {
			module, ok := strings.CutSuffix(rest, s.suffix)
			if !ok || module == "" {
				continue
			}
			if l.parts[p.component] == nil {
				l.parts[p.component] = map[string]*lowRank{}
			}
			m := l.parts[p.component][module]
			if m == nil {
				m = &lowRank{flat: p.flat}
				l.parts[p.component][module] = m
			}
			*s.of(m) = name
			return true
		}
	}
	return false
}

// Path is the file that was opened.
func (l *LoRA) Path() string { return l.path }

// Close closes the file.
func (l *LoRA) Close() error { return l.reader.Close() }

// Components lists the parts of a pipeline that the file changes.
func (l *LoRA) Components() []string {
	var names []string
	for c := range l.parts {
		names = append(names, c)
	}
	slices.Sort(names)
	return names
}

// Merge gives the weights of a component with the changes in them, scale times
// as strong as the file says. A module of the file that the weights do not have
// is refused by name. l must stay open as long as the result is read.
//
// Files of Stable Diffusion by kohya's scripts name modules as diffusers does or
// as the original layout does (input_blocks_4_1_...); cfg, the component's
// configuration, says how the latter are called here.
func (l *LoRA) Merge(component string, cfg Config, w Weights, scale float64) (Weights, error) {
	modules := l.parts[component]
	if len(modules) == 0 {
		return w, nil
	}
	m := &merged{Weights: w, of: map[string]*lowRank{}, lora: l, scale: scale}
	flat := map[string]string{}
	var original naming
	if c, ok := cfg.(*UNet2DConditionConfig); ok {
		original = unetNaming(c)
	}
	for _, name := range w.Names() {
		module, ok := strings.CutSuffix(name, ".weight")
		if !ok {
			continue
		}
		flat[strings.ReplaceAll(module, ".", "_")] = name
		if original != nil {
			if module, ok := strings.CutSuffix(original(name).name, ".weight"); ok {
				flat[strings.ReplaceAll(module, ".", "_")] = name
			}
		}
	}
	for module, part := range modules {
		name, ok := "", false
		for _, short := range []string{module, strings.TrimPrefix(strings.TrimPrefix(module, clipPrefix), "text_model_")} {
			if part.flat {
				name, ok = flat[short]
			} else {
				name = short + ".weight"
				_, ok = w.Shape(name)
			}
			if ok {
				break
			}
		}
		if !ok {
			return nil, refuse.Errorf(l.path, "changes the module %s, which the %s does not have", module, component)
		}
		if err := l.fits(part, name, w); err != nil {
			return nil, err
		}
		m.of[name] = part
	}
	return m, nil
}

// fits checks the shapes: down (rank, in, ...), up (out, rank, ...).
func (l *LoRA) fits(part *lowRank, name string, w Weights) error {
	shape, _ := w.Shape(name)
	up, _ := l.reader.Tensor(part.up)
	down, _ := l.reader.Tensor(part.down)
	rank := 0
	if len(down.Shape) > 0 {
		rank = down.Shape[0]
	}
	out := 1
	for _, d := range up.Shape {
		out *= d
	}
	in := 1
	for _, d := range down.Shape {
		in *= d
	}
	if rank < 1 || len(shape) < 2 || len(up.Shape) < 2 || up.Shape[0] != shape[0] || out != shape[0]*rank || int64(in) != int64(rank)*count(shape[1:]) {
		return refuse.Errorf(l.path, "%s has shape %v and %s %v: they do not fit %s of shape %v", part.down, down.Shape, part.up, up.Shape, name, shape)
	}
	return nil
}

// merged is weights with changes.
type merged struct {
	Weights
	of    map[string]*lowRank
	lora  *LoRA
	scale float64
}

// Stored gives a tensor that no change touches as it lies in its file.
func (m *merged) Stored(name string) (io.ReaderAt, safetensors.DType) {
	if w, ok := m.Weights.(interface {
		Stored(name string) (io.ReaderAt, safetensors.DType)
	}); ok && m.of[name] == nil {
		return w.Stored(name)
	}
	return nil, ""
}

// Float32 implements Weights.
func (m *merged) Float32(name string) ([]float32, error) {
	v, err := m.Weights.Float32(name)
	part := m.of[name]
	if err != nil || part == nil {
		return v, err
	}
	up, err := m.lora.reader.Float32(part.up)
	if err != nil {
		return nil, err
	}
	down, err := m.lora.reader.Float32(part.down)
	if err != nil {
		return nil, err
	}
	t, _ := m.lora.reader.Tensor(part.down)
	rank := t.Shape[0]
	scale := m.scale
	if part.alpha != "" {
		alpha, err := m.lora.reader.Float32(part.alpha)
		if err != nil {
			return nil, err
		}
		if len(alpha) != 1 {
			return nil, refuse.Errorf(m.lora.path, "%s has %d values", part.alpha, len(alpha))
		}
		scale *= float64(alpha[0]) / float64(rank)
	}
	in := len(down) / rank
	sum := make([]float64, in)
	for o := range len(up) / rank {
		clear(sum)
		for r, u := range up[o*rank : (o+1)*rank] {
			f := scale * float64(u)
			for i, d := range down[r*in : (r+1)*in] {
				sum[i] += f * float64(d)
			}
		}
		row := v[o*in : (o+1)*in]
		for i, d := range sum {
			row[i] = float32(float64(row[i]) + d)
		}
	}
	return v, nil
}
