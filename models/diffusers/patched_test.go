package diffusers

import (
	"path/filepath"
	"strings"
	"testing"

	"drift/internal/safetensors"
)

// TestPatchedDiT: a folder of a patched DiT opens with its prompts, what belongs to training left out; prompts for other
// pictures are refused.
func TestPatchedDiT(t *testing.T) {
	const config = `{"_class_name":"DiTTransformer2DModel","num_attention_heads":2,"attention_head_dim":8,"num_layers":2,"sample_size":8,"num_embeds_ada_norm":3}`
	c, err := ParseConfig("config.json", []byte(config))
	if err != nil {
		t.Fatal(err)
	}
	open := func(tokens int) (*Model, error) {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "config.json"), config)
		list := append(c.Tensors(), Tensor{DiTPrompts, []int{1, tokens, 16}}, Tensor{"gate.weight", []int{tokens, 17}}, Tensor{"gate.bias", []int{tokens}}, Tensor{"w_noise", []int{16, tokens}})
		store(t, filepath.Join(dir, stem+".safetensors"), safetensors.F32, list, nil)
		return Open(dir, Options{})
	}
	m, err := open(16)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if shape, ok := m.Weights.Shape(DiTPrompts); !ok || shape[1] != 16 {
		t.Errorf("prompts of shape %v", shape)
	}
	if _, ok := m.Weights.Shape("w_noise"); ok {
		t.Error("w_noise is there")
	}
	if v, err := m.Weights.Float32("gate.weight"); err != nil || len(v) != 16*17 {
		t.Errorf("%d gate weights, %v", len(v), err)
	}
	if _, err := open(9); err == nil || !strings.Contains(err.Error(), "a picture has 16 tokens") {
		t.Errorf("9 tokens: %v", err)
	}
}
