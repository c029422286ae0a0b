package diffusers

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"drift/internal/safetensors"
)

// names.json.gz was made by testdata/single/make_single.py with the conversion of the reference.
type nameTable struct {
	Tensors map[string][]int
	Parts   map[string]map[string]pieceRow
}

type pieceRow struct {
	name       string
	third      int
	transposed bool
}

func readNames(t testing.TB) map[string]nameTable {
	t.Helper()
	f, err := os.Open("testdata/single/names.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var raw map[string]map[string]map[string]any
	if err := json.NewDecoder(z).Decode(&raw); err != nil {
		t.Fatal(err)
	}
	out := map[string]nameTable{}
	for kind, parts := range raw {
		n := nameTable{Tensors: map[string][]int{}, Parts: map[string]map[string]pieceRow{}}
		for part, rows := range parts {
			for name, v := range rows {
				list := v.([]any)
				if part == "tensors" {
					shape := []int{}
					for _, d := range list {
						shape = append(shape, int(d.(float64)))
					}
					n.Tensors[name] = shape
					continue
				}
				if n.Parts[part] == nil {
					n.Parts[part] = map[string]pieceRow{}
				}
				n.Parts[part][name] = pieceRow{list[0].(string), int(list[1].(float64)), list[2].(bool)}
			}
		}
		out[kind] = n
	}
	return out
}

// shapes is a source without values.
type shapes map[string][]int

func (s shapes) Path() string    { return "model.safetensors" }
func (s shapes) Files() []string { return nil }
func (s shapes) Close() error    { return nil }
func (s shapes) Tensors() (out []safetensors.Tensor) {
	for _, name := range slices.Sorted(maps.Keys(s)) {
		out = append(out, safetensors.Tensor{Name: name, DType: safetensors.F16, Shape: s[name]})
	}
	return out
}
func (s shapes) Tensor(name string) (safetensors.Tensor, bool) {
	shape, ok := s[name]
	return safetensors.Tensor{Name: name, DType: safetensors.F16, Shape: shape}, ok
}
func (s shapes) Bytes(string) ([]byte, error)      { return nil, errors.New("no values") }
func (s shapes) Float32(string) ([]float32, error) { return nil, errors.New("no values") }

// The names, thirds and transpositions are those of the reference's conversion, for the published sizes, and the
// configurations told from the shapes are the published ones.
func TestSingleFileNames(t *testing.T) {
	for kind, n := range readNames(t) {
		s := &single{path: "model.safetensors", parts: map[string]*singlePart{}}
		if err := s.read(shapes(n.Tensors), Options{Prediction: "eps"}); err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if len(s.parts) != len(n.Parts) {
			t.Errorf("%s: %d networks, want %d", kind, len(s.parts), len(n.Parts))
		}
		for component, rows := range n.Parts {
			part := s.parts[component]
			if part == nil {
				t.Errorf("%s has no %s", kind, component)
				continue
			}
			tensors := part.config.Tensors()
			if len(tensors) != len(rows) {
				t.Errorf("%s %s: %d tensors, want %d", kind, component, len(tensors), len(rows))
			}
			for _, x := range tensors {
				want, p := rows[x.Name], part.name(x.Name)
				if got := (pieceRow{p.name, p.part - 1, p.transposed}); got != want {
					t.Errorf("%s %s: %s is %+v, want %+v", kind, component, x.Name, got, want)
				}
			}
			v := newView(shapes(n.Tensors), part.config, part.name, part.own, part.spare)
			if _, err := NewCheckpoint(part.config, v); err != nil {
				t.Errorf("%s %s: %v", kind, component, err)
			}
		}
	}
}

// stable-diffusion.cpp can rename tensors as it converts: to one numbering of the text encoders, and to the names of
// transformers, with OpenCLIP's fused projections as they are. From a folder of diffusers it takes names with the prefixes
// unet, vae, te and te.1.
func TestSingleFileRenamed(t *testing.T) {
	n := readNames(t)["sdxl"]
	inner := strings.NewReplacer("transformer.resblocks.", "encoder.layers.", "attn.in_proj_", "self_attn.in_proj.", "attn.out_proj", "self_attn.out_proj", "ln_1", "layer_norm1", "ln_2", "layer_norm2",
		"mlp.c_fc", "mlp.fc1", "mlp.c_proj", "mlp.fc2", "ln_final", "final_layer_norm", "positional_embedding", "embeddings.position_embedding.weight", "token_embedding.weight", "embeddings.token_embedding.weight")
	renamed, folder := shapes{}, shapes{}
	of := map[string]string{} // new name to old
	for name, shape := range n.Tensors {
		to := strings.Replace(name, "conditioner.embedders.0.", "cond_stage_model.", 1)
		if rest, ok := strings.CutPrefix(name, "conditioner.embedders.1.model."); ok {
			to = "cond_stage_model.1.transformer.text_model." + inner.Replace(rest)
		}
		renamed[to], of[to] = shape, name
	}
	for component, prefix := range map[string]string{"unet": "unet.", "vae": "vae.", "text_encoder": "te.text_model.", "text_encoder_2": "te.1.text_model."} {
		s := &single{path: "m.gguf", parts: map[string]*singlePart{}}
		if err := s.read(shapes(n.Tensors), Options{}); err != nil {
			t.Fatal(err)
		}
		for _, x := range s.parts[component].config.Tensors() {
			at := prefix + x.Name
			if x.Name == "text_projection.weight" {
				at = "te.1.text_projection.weight"
			}
			folder[at] = x.Shape
		}
	}
	for what, src := range map[string]shapes{"renamed": renamed, "folder": folder} {
		s := &single{path: "m.gguf", parts: map[string]*singlePart{}}
		if err := s.read(src, Options{}); err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for component, rows := range n.Parts {
			part := s.parts[component]
			if part == nil {
				t.Errorf("%s: no %s", what, component)
				continue
			}
			for _, x := range part.config.Tensors() {
				p := part.name(x.Name)
				if got := (pieceRow{of[p.name], p.part - 1, p.transposed}); what == "renamed" && got != rows[x.Name] {
					t.Errorf("%s %s: %s is %+v, want %+v", what, component, x.Name, got, rows[x.Name])
				}
			}
			if _, err := NewCheckpoint(part.config, newView(src, part.config, part.name, part.own, part.spare)); err != nil {
				t.Errorf("%s %s: %v", what, component, err)
			}
		}
	}
}

// The configurations are those of the published folders, but for what does not show in the shapes and does not change
// the result in float32.
func TestSingleFileConfigurations(t *testing.T) {
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	names := readNames(t)
	for kind, files := range map[string]map[string]string{
		"sd1": {"unet": "sd15-unet", "vae": "sd15-vae"}, "sd2": {"unet": "sd21-unet", "vae": "sd21-vae"}, "sdxl": {"unet": "sdxl-unet", "vae": "sdxl-vae"},
	} {
		s := &single{path: "model.safetensors", parts: map[string]*singlePart{}}
		if err := s.read(shapes(names[kind].Tensors), Options{Prediction: "v"}); err != nil {
			t.Fatal(err)
		}
		for component, file := range files {
			want, err := ReadConfig(filepath.Join(root, "files", "configs", file+".model.json"))
			if err != nil {
				t.Fatal(err)
			}
			got := s.parts[component].config
			*got.FileInfo(), *want.FileInfo() = Info{}, Info{}
			for _, c := range []Config{got, want} {
				switch c := c.(type) {
				case *UNet2DConditionConfig:
					c.UpcastAttention, c.SampleSize = false, Size{}
				case *AutoencoderKLConfig:
					c.SampleSize = Size{}
				}
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s %s:\n%+v\nwant\n%+v", kind, component, got, want)
			}
		}
	}
}

func TestSingleFileNeedsPrediction(t *testing.T) {
	n := readNames(t)["sd2"].Tensors
	read := func(prediction string) (*single, error) {
		s := &single{path: "m.safetensors", parts: map[string]*singlePart{}}
		err := s.read(shapes(n), Options{Prediction: prediction})
		return s, errors.Join(err, s.unsaid)
	}
	var p *PredictionError
	if _, err := read(""); !errors.As(err, &p) || !strings.Contains(err.Error(), "--prediction v") {
		t.Errorf("%v", err)
	}
	if _, err := read("x0"); !errors.As(err, &p) {
		t.Errorf("%v", err)
	}
	for word, want := range map[string]string{"v": "v_prediction", "eps": "epsilon"} {
		s, err := read(word)
		if err != nil || s.sched.PredictionType != want {
			t.Errorf("%s: %v %v", word, err, s.sched)
		}
	}
	n["v_pred"], n["ztsnr"] = []int{}, []int{}
	s, err := read("")
	if err != nil || s.sched.PredictionType != "v_prediction" || !s.sched.RescaleBetasZeroSNR {
		t.Errorf("%v %+v", err, s.sched)
	}
}

// What no tensor says can stand beside the file; what is asked for wins.
func TestSingleFileSidecar(t *testing.T) {
	n := readNames(t)["sd2"].Tensors
	dir := t.TempDir()
	say := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "m.drift.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(opt Options) (*single, error) {
		s := &single{path: filepath.Join(dir, "m.safetensors"), parts: map[string]*singlePart{}}
		err := s.read(shapes(n), opt)
		return s, errors.Join(err, s.unsaid)
	}
	say(`{"prediction": "v", "tokenizer": "words"}`)
	s, err := read(Options{})
	if err != nil || s.sched.PredictionType != "v_prediction" || s.tokenizer != filepath.Join(dir, "words") {
		t.Errorf("%v %+v %q", err, s.sched, s.tokenizer)
	}
	if s, err = read(Options{Prediction: "eps", Tokenizer: "other"}); err != nil || s.sched.PredictionType != "epsilon" || s.tokenizer != "other" {
		t.Errorf("%v %+v %q", err, s.sched, s.tokenizer)
	}
	for _, text := range []string{`{"precond": "vp"}`, `{"prediction": 1}`, `{"prediction": ""}`, `[]`, `{"prediction": "x0"}`} {
		say(text)
		if _, err := read(Options{}); err == nil {
			t.Errorf("%s is read", text)
		}
	}
}

// A network that sees a mask belongs to a pipeline that paints in.
func TestSingleFileInpainting(t *testing.T) {
	n := readNames(t)["sd1"].Tensors
	n["model.diffusion_model.input_blocks.0.0.weight"] = []int{320, 9, 3, 3}
	s := &single{path: "m.safetensors", parts: map[string]*singlePart{}}
	if err := s.read(shapes(n), Options{}); err != nil || s.index.Class != "StableDiffusionInpaintPipeline" {
		t.Errorf("%v %+v", err, s.index)
	}
}

func TestSingleFileRefusals(t *testing.T) {
	base := readNames(t)["sd1"].Tensors
	for name, c := range map[string]struct {
		change func(shapes)
		want   string
	}{
		"nothing known":  {func(s shapes) { clear(s); s["a"] = []int{1} }, "of no layout"},
		"sd3":            {func(s shapes) { s["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"] = []int{1} }, "Stable Diffusion 3"},
		"flux":           {func(s shapes) { s["double_blocks.0.img_attn.qkv.weight"] = []int{1} }, "Flux"},
		"missing tensor": {func(s shapes) { delete(s, "model.diffusion_model.middle_block.0.in_layers.0.weight") }, "1 missing"},
		"more tensors":   {func(s shapes) { s["model.diffusion_model.hint.weight"] = []int{1} }, "1 unexpected: model.diffusion_model.hint.weight"},
		"another shape":  {func(s shapes) { s["model.diffusion_model.out.2.weight"] = []int{4, 320, 1, 1} }, "1 of another shape"},
		"no levels":      {func(s shapes) { s["model.diffusion_model.input_blocks.0.0.weight"] = []int{} }, "in_channels"},
		"huge":           {func(s shapes) { s["model.diffusion_model.input_blocks.0.0.weight"] = []int{320, 1 << 40, 3, 3} }, "in_channels"},
	} {
		s := shapes(maps.Clone(base))
		c.change(s)
		f := &single{path: "m.safetensors", parts: map[string]*singlePart{}}
		err := f.read(s, Options{})
		if err == nil {
			part := f.parts["unet"]
			_, err = NewCheckpoint(part.config, newView(s, part.config, part.name, part.own, part.spare))
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// A torch checkpoint under original names, read as data. Its values follow from the names.
func TestCheckpointFile(t *testing.T) {
	dir := t.TempDir()
	config := `{"_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
		"up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"], "norm_num_groups": 4}`
	if err := os.MkdirAll(filepath.Join(dir, "vae"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"vae/config.json": config, "model_index.json": `{"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := OpenRepository("testdata/single/tiny-vae.ckpt", Options{Config: dir})
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Network("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for name, original := range map[string]string{
		"decoder.up_blocks.0.upsamplers.0.conv.weight":     "first_stage_model.decoder.up.1.upsample.conv.weight",
		"encoder.mid_block.attentions.0.to_out.0.bias":     "first_stage_model.encoder.mid.attn_1.proj_out.bias",
		"encoder.mid_block.attentions.0.to_q.weight":       "first_stage_model.encoder.mid.attn_1.q.weight",
		"decoder.up_blocks.1.resnets.0.conv_shortcut.bias": "first_stage_model.decoder.up.0.block.0.nin_shortcut.bias",
	} {
		v, err := m.Weights.Float32(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, x := range v {
			if want := float32((i*7+len(original))%17-8) / 32; x != want {
				t.Fatalf("%s[%d] = %g, want %g", name, i, x, want)
			}
		}
	}
	if _, err := OpenRepository("testdata/single/tiny-vae.ckpt", Options{}); err == nil || !strings.Contains(err.Error(), "32 groups do not divide") {
		t.Errorf("without a configuration: %v", err)
	}
}

// Views cut and turn tensors in bytes as in numbers.
func TestView(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	list := []safetensors.Tensor{{Name: "m", DType: safetensors.F32, Shape: []int{6, 2}}}
	w, err := safetensors.Create(path, nil, list)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Float32([]float32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}), w.Commit()); err != nil {
		t.Fatal(err)
	}
	src, err := OpenSource(path)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	v := &view{Source: src, bound: map[string]piece{"k": {name: "m", part: 2, parts: 3}, "t": {name: "m", transposed: true}, "bad": {name: "m", part: 1, parts: 4}}}
	for name, want := range map[string]string{"k": "[4 5 6 7] [2 2]", "t": "[0 2 4 6 8 10 1 3 5 7 9 11] [2 6]"} {
		x, err := v.Float32(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := v.Bytes(name)
		if err != nil {
			t.Fatal(err)
		}
		y, err := safetensors.Widen(safetensors.F32, b)
		if err != nil || !slices.Equal(x, y) {
			t.Errorf("%s: %v, from bytes %v %v", name, x, y, err)
		}
		if section, err := v.Section(name); (err == nil) != (name == "k") {
			t.Errorf("%s: a section %v", name, err)
		} else if err == nil {
			if c, err := io.ReadAll(section); err != nil || !slices.Equal(b, c) {
				t.Errorf("%s: %v in the section, %v", name, c, err)
			}
		}
		info, _ := v.Tensor(name)
		if got := fmt.Sprint(x, " ", info.Shape); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if _, err := v.Float32("bad"); err == nil {
		t.Error("four parts of six rows")
	}
}

// Whatever shapes a file has, it is read or refused.
func FuzzSingleFile(f *testing.F) {
	tables := readNames(f)
	for _, text := range []string{
		`{"_class_name": "SongUNet", "label_dim": 4, "encoder_type": "residual", "decoder_type": "skip"}`, `{"_class_name": "DhariwalUNet"}`, `{"_class_name": "ADMUNet", "resblock_updown": true}`,
	} {
		c, err := ParseConfig("c", []byte(text))
		if err != nil {
			f.Fatal(err)
		}
		tensors := map[string][]int{}
		for _, x := range c.Tensors() {
			tensors[x.Name] = x.Shape
		}
		tables[text] = nameTable{Tensors: tensors}
	}
	kinds := slices.Sorted(maps.Keys(tables))
	for i := range kinds {
		f.Add(uint8(i), uint16(3), int64(0), uint8(0))
		f.Add(uint8(i), uint16(40), int64(1)<<62, uint8(1))
		f.Add(uint8(i), uint16(500), int64(-1), uint8(2))
		f.Add(uint8(i), uint16(7), int64(7), uint8(3))
	}
	f.Fuzz(func(t *testing.T, kind uint8, at uint16, size int64, how uint8) {
		src := shapes(maps.Clone(tables[kinds[int(kind)%len(kinds)]].Tensors))
		names := slices.Sorted(maps.Keys(src))
		name := names[int(at)%len(names)]
		shape := slices.Clone(src[name])
		switch how % 4 {
		case 0:
			delete(src, name)
		case 1:
			if len(shape) > 0 && size >= 0 { // a reader gives no negative dimensions
				shape[int(at)%len(shape)] = int(size)
			}
			src[name] = shape
		case 2:
			src[name] = shape[:min(len(shape), 1)]
		case 3:
			src[name] = append(shape, 1)
		}
		s := &single{path: "m.safetensors", parts: map[string]*singlePart{}}
		if err := s.read(src, Options{Prediction: "eps"}); err != nil {
			return
		}
		for _, part := range s.parts {
			_, _ = NewCheckpoint(part.config, newView(src, part.config, part.name, part.own, part.spare))
		}
	})
}
