package dit

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"drift/models/diffusers"
)

// TestPromptsGolden: gates and additions to the fixture's (case dmp-add of the steering goldens; float32 weights).
func TestPromptsGolden(t *testing.T) {
	raw, err := os.ReadFile("../../guidance/testdata/systems.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	flat := func(rows [][]float64) (out []float32) {
		for _, r := range rows {
			for _, v := range r {
				out = append(out, float32(v))
			}
		}
		return out
	}
	ran := false
	for _, text := range all {
		if !strings.Contains(string(text), `"name":"dmp-add"`) {
			continue
		}
		ran = true
		var c struct {
			Inputs struct {
				Weight [][]float64   `json:"gate_weight"`
				Bias   []float64     `json:"gate_bias"`
				Add    [][][]float64 `json:"prompt_embeddings"`
				C      []float64
				X      [][]float64
			}
			Expected struct {
				Gates [][]float64
				X     [][][]float64 `json:"x_after_add"`
			}
		}
		if err := json.Unmarshal(text, &c); err != nil {
			t.Fatal(err)
		}
		in := c.Inputs
		p := prompts{blocks: len(in.Add), tokens: len(in.X), width: len(in.C), weight: flat(in.Weight), bias: flat([][]float64{in.Bias}), add: slices.Concat(flat(in.Add[0]), flat(in.Add[1]))}
		cond, g := flat([][]float64{in.C}), make([]float64, p.tokens)
		for l := range in.Add {
			x := flat(in.X)
			p.step(x, cond, l, g)
			for k, want := range c.Expected.Gates[l] {
				if math.Abs(g[k]-want) > 1e-6 { // of weights rounded to float32
					t.Errorf("block %d: gate %d is %.9g, want %.9g", l, k, g[k], want)
				}
			}
			for k, want := range flat(c.Expected.X[l]) {
				if math.Abs(float64(x[k]-want)) > 1e-6 {
					t.Errorf("block %d: value %d is %.9g, want %.9g", l, k, x[k], want)
				}
			}
		}
	}
	if !ran {
		t.Error("no case")
	}
}

// patched is a set of weights with more tensors, and others replaced.
type patched struct {
	diffusers.Weights
	shape map[string][]int
	data  map[string][]float32
}

func (p patched) Names() []string {
	names := slices.Clone(p.Weights.Names())
	for name := range p.shape {
		names = append(names, name)
	}
	return names
}

func (p patched) Shape(name string) ([]int, bool) {
	if s, ok := p.shape[name]; ok {
		return s, true
	}
	return p.Weights.Shape(name)
}

func (p patched) Float32(name string) ([]float32, error) {
	if v, ok := p.data[name]; ok {
		return slices.Clone(v), nil
	}
	return p.Weights.Float32(name)
}

// TestPrompts: prompts of zeros leave every bit; prompts that undo their gates, which are worked out here from the weights,
// are a shift of the tokens, as another bias of the patches makes it; gradients go through; other sizes are refused.
func TestPrompts(t *testing.T) {
	f := formula(t, tiny())
	d := 36
	const tokens, blocks = 16, 2
	base := newNet(t, tiny(), f, Options{Threads: 1})
	x, b := images(base, 1, 8)
	shift := diffusers.FormulaValues("shift", d, 0.5, 0)
	p := patched{Weights: f, shape: map[string][]int{diffusers.DiTPrompts: {blocks, tokens, d}, "gate.weight": {tokens, d + 1}, "gate.bias": {tokens}},
		data: map[string][]float32{diffusers.DiTPrompts: make([]float32, blocks*tokens*d),
			"gate.weight": diffusers.FormulaValues("gate.weight", tokens*(d+1), 0.3, 0), "gate.bias": diffusers.FormulaValues("gate.bias", tokens, 0.3, 0)}}
	want := forwardOf(t, base, x, b)
	if have := forwardOf(t, newNet(t, tiny(), p, Options{Threads: 1}), x, b); !slices.Equal(have, want) {
		t.Error("prompts of zeros change the output")
	}

	// c = W2 silu(W1 sinusoid + b1) + b2 + table[class]
	read := func(name string) []float32 {
		v, err := f.Float32("transformer_blocks.0.norm1.emb." + name)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	layer := func(name string, in []float64) []float64 {
		w, bias := read(name+".weight"), read(name+".bias")
		out := make([]float64, len(bias))
		for k := range out {
			out[k] = float64(bias[k])
			for j, v := range in {
				out[k] += float64(w[k*len(in)+j]) * v
			}
		}
		return out
	}
	row := make([]float32, sinusoidWidth)
	sinusoid(row, b.T[0])
	var code []float64
	for _, v := range row {
		code = append(code, float64(v))
	}
	hidden := layer("timestep_embedder.linear_1", code)
	for k, v := range hidden {
		hidden[k] = v / (1 + math.Exp(-v))
	}
	c := layer("timestep_embedder.linear_2", hidden)
	for k := range c {
		c[k] += float64(read("class_embedder.embedding_table.weight")[b.Class[0]*d+k])
	}
	for l := range blocks {
		gate, sum := make([]float64, tokens), 0.0
		for k := range gate {
			w := p.data["gate.weight"][k*(d+1):]
			v := float64(p.data["gate.bias"][k]) + float64(l)*float64(w[d])
			for j := range d {
				v += float64(w[j]) * c[j]
			}
			gate[k] = math.Exp(v)
			sum += gate[k]
		}
		add := make([]float32, blocks*tokens*d)
		for k, v := range gate {
			for j := range d {
				add[(l*tokens+k)*d+j] = float32(float64(shift[j]) * sum / v)
			}
		}
		p.data[diffusers.DiTPrompts] = add
		bias, err := f.Float32("pos_embed.proj.bias")
		if err != nil {
			t.Fatal(err)
		}
		for j := range bias {
			bias[j] += shift[j]
		}
		one, two := newNet(t, tiny(), p, Options{Threads: 1}), newNet(t, tiny(), patched{Weights: f, data: map[string][]float32{"pos_embed.proj.bias": bias}}, Options{Threads: 1})
		q := *b
		if l == 1 { // nothing happens before block 1
			q.SkipLayers = []string{"transformer_blocks.0"}
		}
		cot := wave(len(want), 0.7)
		have, slope := gradOf(t, one, x, cot, &q)
		ref, refSlope := gradOf(t, two, x, cot, &q)
		if e := relL2(have, ref); e > 2e-6 {
			t.Errorf("block %d: prompts are off by %g", l, e)
		}
		if e := relL2(slope, refSlope); e > 2e-5 {
			t.Errorf("block %d: the gradient is off by %g", l, e)
		}
		if plain := forwardOf(t, base, x, &q); relL2(have, plain) < 1e-3 {
			t.Errorf("block %d: the prompts do nothing", l)
		}
		large, lb := images(one, 1, 16)
		if err := one.Forward(t.Context(), make([]float64, 2*len(large)), large, lb); err == nil || !strings.Contains(err.Error(), "prompts are for 16") {
			t.Errorf("another size: %v", err)
		}
	}
	p.shape[diffusers.DiTPrompts] = []int{9, tokens, d}
	if _, err := New(tiny(), p, Options{}); err == nil || !strings.Contains(err.Error(), "at most 3 blocks") {
		t.Errorf("prompts for 9 blocks: %v", err)
	}
}
