package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/internal/half"
	"drift/internal/npz"
	"drift/internal/safetensors"
	"drift/models/diffusers"
)

// A row of names.json.gz: the original name, the third of it or -1, and whether it is transposed.
type originalName struct {
	name       string
	third      int
	transposed bool
}

func (o *originalName) UnmarshalJSON(text []byte) error {
	return json.Unmarshal(text, &[]any{&o.name, &o.third, &o.transposed})
}

// tinyPipelines are the published structures of SD 1, 2 and XL in small widths, so that the reference's table of names
// holds for them.
var tinyPipelines = map[string]map[string]string{
	"sd1": {
		"unet": `{"_class_name": "UNet2DConditionModel", "block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 64, "attention_head_dim": 8, "sample_size": 8}`,
		"text_encoder": `{"architectures": ["CLIPTextModel"], "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1, "num_hidden_layers": 12,
			"vocab_size": 49408, "eos_token_id": 2}`,
		"scheduler": `{"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1}`,
	},
	"sd2": {
		"unet": `{"_class_name": "UNet2DConditionModel", "block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 64, "attention_head_dim": [1, 1, 1, 1],
			"use_linear_projection": true, "upcast_attention": true, "sample_size": 8}`,
		"text_encoder": `{"architectures": ["CLIPTextModel"], "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1, "num_hidden_layers": 23,
			"vocab_size": 55, "hidden_act": "gelu", "eos_token_id": 2}`,
		"scheduler": `{"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": false, "clip_sample": false,
			"prediction_type": "v_prediction", "steps_offset": 1}`,
	},
	"sdxl": {
		"unet": `{"_class_name": "UNet2DConditionModel", "block_out_channels": [32, 32, 64], "cross_attention_dim": 128, "attention_head_dim": [1, 1, 1],
			"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
			"transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 88,
			"use_linear_projection": true, "sample_size": 128}`,
		"text_encoder": `{"architectures": ["CLIPTextModel"], "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1, "num_hidden_layers": 12,
			"vocab_size": 55, "eos_token_id": 2}`,
		"text_encoder_2": `{"architectures": ["CLIPTextModelWithProjection"], "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1, "num_hidden_layers": 32,
			"vocab_size": 55, "hidden_act": "gelu", "eos_token_id": 2, "projection_dim": 64}`,
		"scheduler": `{"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading", "steps_offset": 1}`,
	},
}

var published = map[string]string{"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL"}

// writePipeline writes a folder of a tiny pipeline with made-up weights, and the same weights in one file under their
// original names.
func writePipeline(t *testing.T, kind, dir, file string) {
	t.Helper()
	f, err := os.Open("../../models/diffusers/testdata/single/names.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]map[string]json.RawMessage
	if err := json.NewDecoder(z).Decode(&all); err != nil {
		t.Fatal(err)
	}
	scaling := map[string]string{"sdxl": "0.13025"}[kind]
	if scaling == "" {
		scaling = "0.18215"
	}
	quads := func(s string) string { return strings.Repeat(`"`+s+`", `, 3) + `"` + s + `"` }
	configs := maps.Clone(tinyPipelines[kind])
	configs["vae"] = `{"_class_name": "AutoencoderKL", "block_out_channels": [32, 32, 32, 32], "layers_per_block": 2, "sample_size": 64, "scaling_factor": ` + scaling + `,
		"down_block_types": [` + quads("DownEncoderBlock2D") + `], "up_block_types": [` + quads("UpDecoderBlock2D") + `]}`
	index := map[string]any{"_class_name": "StableDiffusionPipeline", "tokenizer": []string{"transformers", "CLIPTokenizer"}}
	if kind == "sdxl" {
		index["_class_name"], index["force_zeros_for_empty_prompt"] = "StableDiffusionXLPipeline", true
	}
	values, list := map[string][]float32{}, []safetensors.Tensor{}
	write := func(path string, text []byte) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for component, text := range configs {
		if component == "scheduler" {
			write(filepath.Join(dir, component, "scheduler_config.json"), []byte(text))
			index[component] = []string{"diffusers", text[len(`{"_class_name": "`):][:strings.IndexByte(text[len(`{"_class_name": "`):], '"')]}
			continue
		}
		write(filepath.Join(dir, component, "config.json"), []byte(text))
		cfg, err := diffusers.ParseConfig(component, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		library, stem := "diffusers", "diffusion_pytorch_model"
		if strings.HasPrefix(component, "text") {
			library, stem = "transformers", "model"
		}
		index[component] = []string{library, cfg.ClassName()}
		w, err := diffusers.NewFormula(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var names map[string]originalName
		if err := json.Unmarshal(all[kind][component], &names); err != nil {
			t.Fatal(err)
		}
		own, of := []safetensors.Tensor{}, map[string][]float32{}
		for _, x := range cfg.Tensors() {
			v, err := w.Float32(x.Name)
			if err != nil {
				t.Fatal(err)
			}
			own, of[x.Name] = append(own, safetensors.Tensor{Name: x.Name, DType: safetensors.F32, Shape: x.Shape}), v
			o, ok := names[x.Name]
			if !ok {
				t.Fatalf("%s: no original name of %s", component, x.Name)
			}
			shape := slices.Clone(x.Shape)
			if component == "vae" && len(shape) == 2 {
				shape = append(shape, 1, 1) // its attention is made of convolutions
			}
			if o.transposed {
				turned := make([]float32, len(v))
				for i, f := range v {
					turned[i%shape[1]*shape[0]+i/shape[1]] = f
				}
				v, shape = turned, []int{shape[1], shape[0]}
			}
			switch {
			case o.third < 0:
				values[o.name] = v
			default:
				if values[o.name] == nil {
					values[o.name] = make([]float32, 3*len(v))
				}
				copy(values[o.name][o.third*len(v):], v)
				if shape[0] *= 3; o.third > 0 {
					continue
				}
			}
			list = append(list, safetensors.Tensor{Name: o.name, DType: safetensors.F32, Shape: shape})
		}
		writeTensors(t, filepath.Join(dir, component, stem+".safetensors"), own, of)
	}
	var tensors map[string][]int
	if err := json.Unmarshal(all[kind]["tensors"], &tensors); err != nil {
		t.Fatal(err)
	}
	tensors["model_ema.decay"], tensors["alphas_cumprod"] = nil, nil
	for name := range tensors { // the last layer of SD 2, logit_scale, position_ids
		if values[name] == nil && !strings.HasPrefix(name, "model.diffusion_model.") && !strings.HasPrefix(name, "first_stage_model.") {
			list, values[name] = append(list, safetensors.Tensor{Name: name, DType: safetensors.F32, Shape: []int{1}}), []float32{1}
		}
	}
	writeTensors(t, file, list, values)
	writeGGUF(t, strings.TrimSuffix(file, ".safetensors")+".gguf", list, values, false)
	writeGGUF(t, strings.TrimSuffix(file, ".safetensors")+"-q8.gguf", list, values, true)
	var alone []safetensors.Tensor
	for _, x := range list {
		if name, ok := strings.CutPrefix(x.Name, "first_stage_model."); ok {
			values[name], x.Name = values[x.Name], name
			alone = append(alone, x)
		}
	}
	writeTensors(t, filepath.Join(filepath.Dir(file), "vae.safetensors"), alone, values)
	alone = nil
	for _, x := range list {
		if name, ok := strings.CutPrefix(x.Name, "model.diffusion_model."); ok {
			values[name], x.Name = values[x.Name], name
			alone = append(alone, x)
		}
	}
	writeTensors(t, filepath.Join(filepath.Dir(file), "unet.safetensors"), alone, values)
	// Letters, each by itself; number 0 is what the second encoders are padded with.
	vocab := map[string]int{"!": 0, "<|startoftext|>": 53, "<|endoftext|>": 54}
	for i := range 26 {
		vocab[string(rune('a'+i))], vocab[string(rune('a'+i))+"</w>"] = 1+i, 27+i
	}
	text, err := json.Marshal(vocab)
	if err != nil {
		t.Fatal(err)
	}
	tokenizer := func(name, pad string) {
		write(filepath.Join(dir, name, "vocab.json"), text)
		write(filepath.Join(dir, name, "merges.txt"), []byte("#version: 0.2\n"))
		write(filepath.Join(dir, name, "special_tokens_map.json"), []byte(`{"pad_token": "`+pad+`"}`))
	}
	first := "<|endoftext|>"
	if kind == "sd2" {
		first = "!"
	}
	tokenizer("tokenizer", first)
	if kind == "sdxl" {
		tokenizer("tokenizer_2", "!")
		index["tokenizer_2"] = []string{"transformers", "CLIPTokenizer"}
	}
	text, err = json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(dir, "model_index.json"), text)
}

func writeTensors(t *testing.T, path string, list []safetensors.Tensor, values map[string][]float32) {
	t.Helper()
	safetensors.Sort(list)
	w, err := safetensors.Create(path, nil, list)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		if err := w.Float32(values[x.Name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// writeGGUF writes the same tensors as GGUF; with quantised, matrices whose rows are whole blocks in Q8_0.
func writeGGUF(t *testing.T, path string, list []safetensors.Tensor, values map[string][]float32, quantised bool) {
	t.Helper()
	le := binary.LittleEndian
	text := func(b []byte, s string) []byte { return append(le.AppendUint64(b, uint64(len(s))), s...) }
	b := le.AppendUint64(le.AppendUint64(le.AppendUint32([]byte("GGUF"), 3), uint64(len(list))), 0)
	var data []byte
	for _, x := range list {
		b = le.AppendUint32(text(b, x.Name), uint32(len(x.Shape)))
		for _, d := range slices.Backward(x.Shape) {
			b = le.AppendUint64(b, uint64(d))
		}
		for len(data)%32 != 0 {
			data = append(data, 0)
		}
		q8 := quantised && len(x.Shape) == 2 && x.Shape[1]%32 == 0
		b = le.AppendUint64(le.AppendUint32(b, map[bool]uint32{true: 8}[q8]), uint64(len(data)))
		v := values[x.Name]
		for ; q8 && len(v) > 0; v = v[32:] {
			most := 0.0
			for _, f := range v[:32] {
				most = max(most, math.Abs(float64(f)))
			}
			h := half.ToFloat16(float32(most / 127))
			d := float64(half.Float16(h))
			data = le.AppendUint16(data, h)
			for _, f := range v[:32] {
				data = append(data, byte(int8(max(-127, min(127, math.RoundToEven(float64(f)/d))))))
			}
		}
		for _, f := range v {
			data = le.AppendUint32(data, math.Float32bits(f))
		}
	}
	for len(b)%32 != 0 {
		b = append(b, 0)
	}
	if err := os.WriteFile(path, append(b, data...), 0o644); err != nil {
		t.Fatal(err)
	}
}

// alike tells whether two pictures are the same but for single steps of the rounding to 8 bits: a configuration that is
// told from the shapes is of the usual size, and the method of a convolution, and with it the last bits, depends on that.
func alike(a, b []byte) bool {
	other := 0
	for i, v := range a {
		if d := int(v) - int(b[i]); d < -1 || d > 1 {
			return false
		} else if d != 0 {
			other++
		}
	}
	return len(a) == len(b) && other*1000 <= len(a)
}

// A pipeline in one file gives the bits of the folder that holds the same weights, with nothing but a tokenizer named.
func TestSingleFilePipelines(t *testing.T) {
	for kind := range tinyPipelines {
		t.Run(kind, func(t *testing.T) {
			root := t.TempDir()
			dir, file, plain := filepath.Join(root, "folder"), filepath.Join(root, "model.safetensors"), filepath.Join(root, "plain")
			writePipeline(t, kind, dir, file)
			if err := os.CopyFS(plain, os.DirFS(filepath.Join(dir, "tokenizer"))); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(plain, "special_tokens_map.json")); err != nil {
				t.Fatal(err)
			}
			run := func(want int, args ...string) (string, string) {
				t.Helper()
				code, stdout, stderr := world(nil, args...)
				if code != want {
					t.Fatalf("%q: exit code %d, want %d: %s", args, code, want, stderr)
				}
				return stdout, stderr
			}
			draw := func(args ...string) []byte {
				t.Helper()
				out := filepath.Join(root, "out.npz")
				os.Remove(out)
				run(0, append([]string{"sample", "--prompt", "a red fox!", "--negative-prompt", "fog", "--seed", "3", "--steps", "2", "-W", "64", "-H", "64", "--quiet", "--out", out}, args...)...)
				return bytesOf(t, out, "images")
			}
			var more []string
			if kind == "sd2" {
				more = []string{"--prediction", "v"}
				if _, msg := run(2, "sample", "--model", file, "--prompt", "x", "--tokenizer", plain); !strings.Contains(msg, "add --prediction v") {
					t.Error(msg)
				}
			}
			want := draw("--model", dir)
			for _, tokenizer := range []string{dir, plain} {
				if got := draw(append(more, "--model", file, "--tokenizer", tokenizer)...); !alike(got, want) {
					t.Errorf("with the tokenizer of %s: another picture than the folder's", filepath.Base(tokenizer))
				}
			}
			if got := draw("--model", file, "--config", dir); !bytes.Equal(got, want) {
				t.Error("with the folder's configurations: another picture")
			}
			gguf := filepath.Join(root, "model.gguf")
			if got := draw(append(more, "--model", gguf, "--tokenizer", plain)...); !alike(got, want) {
				t.Error("from GGUF: another picture")
			}
			near, sum := draw(append(more, "--model", filepath.Join(root, "model-q8.gguf"), "--tokenizer", plain)...), 0.0
			for i, v := range near {
				sum += math.Abs(float64(v) - float64(want[i]))
			}
			if sum /= float64(len(want)); sum == 0 || sum > 2 {
				t.Errorf("from Q8_0: a picture that differs by %.3g of 255", sum)
			}
			stdout, _ := run(0, append([]string{"model", "info", filepath.Join(root, "model-q8.gguf")}, more...)...)
			if !strings.Contains(stdout, " Q8_0, ") || !strings.Contains(stdout, " F32)") {
				t.Error(stdout)
			}
			if stdout, _ := run(0, "model", "verify", gguf); !strings.Contains(stdout, "GGUF, ") {
				t.Error(stdout)
			}
			folder := filepath.Join(root, "unpacked")
			run(0, append([]string{"model", "convert", file, folder, "--config", dir}, more...)...)
			if got := draw("--model", folder); !bytes.Equal(got, want) {
				t.Error("from the folder that model convert makes: another picture")
			}
			vae := filepath.Join(root, "vae.safetensors")
			for _, other := range []string{vae, gguf} {
				if got := draw("--model", dir, "--vae", other); !bytes.Equal(got, want) {
					t.Errorf("with the autoencoder of %s: another picture", filepath.Base(other))
				}
			}
			stdout, _ = run(0, append([]string{"model", "info", file}, more...)...)
			for _, line := range []string{"unet           UNet2DConditionModel, ", "vae            AutoencoderKL, ", "text_encoder   CLIPTextModel, ", "tokenizer      CLIP's, which drift carries",
				"note           " + published[kind] + ", told from"} {
				if !strings.Contains(stdout, line) {
					t.Errorf("no %q in\n%s", line, stdout)
				}
			}
			if stdout, _ := run(0, "model", "info", vae); !strings.Contains(stdout, "the scaling factor of latents") {
				t.Error(stdout)
			}
			if stdout, _ := run(0, "model", "verify", file); !strings.Contains(stdout, "UNet2DConditionModel with ") || !strings.Contains(stdout, "values in 1 files") {
				t.Error(stdout)
			}
			// One network of the file, and the same of the folder.
			in := filepath.Join(root, "in.npz")
			latent := npz.Array{Name: "latent", Shape: []int{1, 4, 2, 2}, Data: make([]float32, 16)}
			ids := npz.Array{Name: "input_ids", Shape: []int{1, 4}, Data: []int64{53, 3, 30, 54}}
			if err := npz.Write(in, latent, ids); err != nil {
				t.Fatal(err)
			}
			results := map[string][]byte{}
			for name, args := range map[string][]string{
				"vae/file": {file, "--part", "decode"}, "vae/folder": {filepath.Join(dir, "vae"), "--part", "decode"}, "vae/alone": {vae, "--part", "decode"},
				"text/file": {file, "--part", "text"}, "text/folder": {filepath.Join(dir, "text_encoder")},
			} {
				out := filepath.Join(root, "part.npz")
				os.Remove(out)
				run(0, append([]string{"model", "run", "--in", in, "--out", out}, args...)...)
				b, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err)
				}
				results[name] = b
			}
			if !bytes.Equal(results["vae/file"], results["vae/folder"]) || !bytes.Equal(results["vae/file"], results["vae/alone"]) || !bytes.Equal(results["text/file"], results["text/folder"]) {
				t.Error("parts of the file give other numbers than those of the folder")
			}
			unet := filepath.Join(root, "unet.safetensors") // the U-Net alone, everything else from the folder
			if got := draw("--model", unet, "--config", dir); !bytes.Equal(got, want) {
				t.Error("with the folder's other networks: another picture")
			}
			if _, msg := run(3, "sample", "--model", unet, "--prompt", "x"); !strings.Contains(msg, "a U-Net with its text encoder is needed") {
				t.Error(msg)
			}
			if kind == "sd1" { // it has CLIP's vocabulary, which drift carries
				if got := draw("--model", file); bytes.Equal(got, want) {
					t.Error("CLIP's own vocabulary gives the picture of another one")
				}
				told := filepath.Join(root, "told")
				run(0, "model", "convert", gguf, told, "--dtype", "f32")
				if got, own := draw("--model", told), draw("--model", file); !bytes.Equal(got, own) {
					t.Error("from the folder made without a configuration: another picture than from the file")
				}
				return
			}
			if _, msg := run(2, append([]string{"sample", "--model", file, "--prompt", "x"}, more...)...); !strings.Contains(msg, "add --tokenizer") {
				t.Error(msg)
			}
		})
	}
}
