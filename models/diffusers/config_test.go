package diffusers

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/internal/strictjson"
)

const corpus = "../../internal/testdata/files/configs"

// expected is one row of the corpus' index.
type expected struct {
	Expect    string
	Diffusers struct {
		Parameters   int64
		Tensors      int
		FirstTensors []json.RawMessage `json:"first_tensors"`
		UnknownKeys  []string          `json:"unknown_keys"`
		Defaults     map[string]any    `json:"defaults_used"`
	}
}

func readCorpus(t testing.TB) map[string]expected {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(corpus, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct{ Files map[string]expected }
	if err := json.Unmarshal(text, &index); err != nil {
		t.Fatal(err)
	}
	return index.Files
}

// bounded runs f, which must not hang, and allocate little.
func bounded(t *testing.T, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	f()
	if took := time.Since(start); took > 10*time.Second { // hangs are looked for, not speed
		t.Errorf("took %v", took)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("allocated %d bytes", n)
	}
}

func mustRefuse(t *testing.T, path string, err error, why string) {
	t.Helper()
	var refused *refuse.Error
	if !errors.As(err, &refused) || refused.Path != path || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v, want: %s", err, why)
	}
}

// checkDefaults compares the keys that took a default, and their values, with
// those diffusers reports.
func checkDefaults(t *testing.T, c any, got []string, want map[string]any) {
	t.Helper()
	v := reflect.ValueOf(c).Elem()
	values := map[string]string{}
	for i := range v.NumField() {
		key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("key"), ",")
		if key == "" || key == "-" {
			continue
		}
		if s, ok := v.Field(i).Interface().(PerLevel); ok && len(s) > 0 && len(slices.Compact(slices.Clone(s))) == 1 {
			values[key] = fmt.Sprint(s[0])
			continue
		}
		values[key] = fmt.Sprint(v.Field(i).Interface())
	}
	if len(got) != len(want) {
		t.Errorf("%d defaults %q, want %d", len(got), got, len(want))
	}
	for _, key := range got {
		w, ok := want[key]
		s := fmt.Sprint(w)
		if w == nil && ok {
			s = values[key]
			if s != "" && s != "0" && s != "[]" && s != "false" && s != "{0 0}" && s != "<nil>" {
				t.Errorf("%s: %s, want null", key, s)
			}
		}
		if !ok || s != values[key] {
			t.Errorf("default of %s: %q, want %q", key, values[key], s)
		}
	}
}

func TestNetworkCorpus(t *testing.T) {
	n := 0
	for name, want := range readCorpus(t) {
		if !strings.HasSuffix(name, ".model.json") {
			continue
		}
		n++
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(corpus, name)
			var c Config
			var err error
			bounded(t, func() { c, err = ReadConfig(path) })
			if strings.HasPrefix(want.Expect, "refuse") {
				mustRefuse(t, path, err, want.Expect)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if name == "unet-deprecated-names.model.json" {
				return // TestLegacyNames
			}
			d := want.Diffusers
			tensors := c.Tensors()
			if len(tensors) != d.Tensors || Parameters(c) != d.Parameters {
				t.Errorf("%d tensors, %d parameters, want %d and %d", len(tensors), Parameters(c), d.Tensors, d.Parameters)
			}
			for i, w := range d.FirstTensors {
				var got bytes.Buffer
				if err := json.NewEncoder(&got).Encode([]any{tensors[i].Name, tensors[i].Shape}); err != nil {
					t.Fatal(err)
				}
				var compact bytes.Buffer
				if err := json.Compact(&compact, w); err != nil {
					t.Fatal(err)
				}
				if strings.TrimSpace(got.String()) != compact.String() {
					t.Errorf("tensor %d: %s, want %s", i, got.String(), compact.String())
				}
			}
			if ignored := c.FileInfo().Ignored; !slices.Equal(ignored, d.UnknownKeys) {
				t.Errorf("ignored %q, want %q", ignored, d.UnknownKeys)
			}
			checkDefaults(t, c, c.FileInfo().Defaulted, d.Defaults)
		})
	}
	if n != 16 {
		t.Errorf("%d model configurations in the corpus", n)
	}
}

func TestLegacyNames(t *testing.T) {
	old, err := ReadConfig(filepath.Join(corpus, "unet-deprecated-names.model.json"))
	if err != nil {
		t.Fatal(err)
	}
	now, err := ReadConfig(filepath.Join(corpus, "ddpm-cifar10.model.json"))
	if err != nil {
		t.Fatal(err)
	}
	got, want := *old.(*UNet2DConfig), *now.(*UNet2DConfig)
	renamed := slices.Sorted(slices.Values(got.Renamed))
	if s := strings.Join(renamed, ", "); s != "UNetUnconditionalModel -> UNet2DModel, block_channels -> block_out_channels, image_size -> sample_size, resnet_eps -> norm_eps" {
		t.Errorf("renamed %s", s)
	}
	got.Info, want.Info = Info{}, Info{}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// parse reads a configuration from text.
func parse(text string) (Config, error) {
	o, err := strictjson.Parse("c.json", []byte(text), strictjson.Limits{})
	if err != nil {
		return nil, err
	}
	return parseConfig("c.json", o)
}

func TestRefusedNetworks(t *testing.T) {
	const unet = `{"_class_name":"UNet2DModel","block_out_channels":[32,64],"down_block_types":["DownBlock2D","AttnDownBlock2D"],"up_block_types":["AttnUpBlock2D","UpBlock2D"]`
	const cond = `{"_class_name":"UNet2DConditionModel","block_out_channels":[32,64],"down_block_types":["CrossAttnDownBlock2D","DownBlock2D"],"up_block_types":["UpBlock2D","CrossAttnUpBlock2D"]`
	const vae = `{"_class_name":"AutoencoderKL"`
	const dit = `{"_class_name":"DiTTransformer2DModel"`
	for _, text := range []string{unet, cond, vae, dit} {
		if _, err := parse(text + "}"); err != nil {
			t.Errorf("%s}: %v", text, err)
		}
	}
	for _, c := range []struct{ text, why string }{
		{`{"in_channels":3}`, "no _class_name"},
		{`{"_class_name":3}`, "not a name"},
		{`{"_class_name":"SuperNet"}`, `"SuperNet" is not supported; supported: ADMUNet, AutoencoderKL`},
		{`{"_class_name":"Transformer2DModel","norm_type":"layer_norm"}`, "not supported"},
		{unet + `,"new_option":1}`, `unknown key "new_option" of UNet2DModel with the value 1`},
		{unet + `,"new_option":true}`, "unknown key"},
		{unet + `,"in_channels":0}`, "in_channels"},
		{unet + `,"in_channels":3.5}`, "in_channels: must be a whole number, not 3.5"},
		{unet + `,"in_channels":"3"}`, `in_channels: must be a whole number, not "3"`},
		{unet + `,"in_channels":null}`, "in_channels: null is not allowed"},
		{unet + `,"center_input_sample":1}`, "must be true or false"},
		{unet + `,"act_fn":"tanh"}`, "act_fn"},
		{unet + `,"act_fn":7}`, "must be a string"},
		{unet + `,"time_embedding_type":"cosine"}`, "time_embedding_type"},
		{unet + `,"time_embedding_type":"learned"}`, "num_train_timesteps"},
		{unet + `,"freq_shift":16}`, "freq_shift"},
		{unet + `,"mid_block_type":"UNetMidBlock2DCrossAttn"}`, "mid_block_type"},
		{unet + `,"attention_head_dim":7}`, "attention_head_dim: 7 does not divide the 64 channels of down_blocks.1.attentions.0"},
		{unet + `,"attention_head_dim":0}`, "must be null or a number other than 0"},
		{unet + `,"norm_num_groups":null}`, "norm_num_groups: 0 groups"},
		{unet + `,"norm_eps":0}`, "norm_eps"},
		{unet + `,"norm_eps":1e999}`, "norm_eps"},
		{unet + `,"downsample_padding":2}`, "downsample_padding"},
		{unet + `,"resnet_time_scale_shift":"spatial"}`, "resnet_time_scale_shift"},
		{unet + `,"class_embed_type":"projection"}`, "class_embed_type"},
		{unet + `,"layers_per_block":[2,2]}`, "layers_per_block: must be a whole number, not [2, 2]"},
		{unet + `,"layers_per_block":100000}`, "layers_per_block"},
		{unet + `,"sample_size":[32,32,32]}`, "sample_size"},
		{unet + `,"sample_size":-1}`, "sample_size"},
		{unet + `,"image_size":32,"sample_size":32}`, "sample_size: the same as image_size"},
		{`{"_class_name":"UNet2DModel","block_out_channels":[]}`, "block_out_channels"},
		{`{"_class_name":"UNet2DModel","block_out_channels":[32],"down_block_types":["SkipDownBlock2D"],"up_block_types":["CrossAttnUpBlock2D"]}`, "up_block_types"},
		{`{"_class_name":"UNet2DModel","in_channels":4,"block_out_channels":[32,32],"down_block_types":["SkipDownBlock2D","SkipDownBlock2D"],"up_block_types":["SkipUpBlock2D","SkipUpBlock2D"]}`, "pictures of 3 channels"},
		{cond + `,"num_attention_heads":8}`, "num_attention_heads"},
		{cond + `,"attention_head_dim":5}`, "5 heads do not divide the 32 channels"},
		{cond + `,"attention_head_dim":[4]}`, ""}, // one number stands for all levels
		{cond + `,"attention_head_dim":[4,4,4]}`, "attention_head_dim: a list of 3"},
		{cond + `,"transformer_layers_per_block":[[1],[2]]}`, "transformer_layers_per_block"},
		{cond + `,"transformer_layers_per_block":1000,"layers_per_block":1000}`, "more than 100000 tensors"},
		{cond + `,"addition_embed_type":"image"}`, "addition_embed_type"},
		{cond + `,"addition_embed_type":"text_time"}`, "addition_time_embed_dim"},
		{cond + `,"class_embed_type":"projection"}`, "projection_class_embeddings_input_dim"},
		{cond + `,"dual_cross_attention":true}`, "only that is implemented"},
		{cond + `,"resnet_out_scale_factor":2}`, "only that is implemented"},
		{cond + `,"encoder_hid_dim":8}`, "only that is implemented"},
		{cond + `,"conv_in_kernel":2}`, "conv_in_kernel"},
		{vae + `,"latents_mean":[1,2]}`, "latents_mean"},
		{vae + `,"scaling_factor":0}`, "scaling_factor"},
		{vae + `,"down_block_types":["AttnDownEncoderBlock2D"]}`, "down_block_types"},
		{vae + `,"norm_num_groups":48}`, "48 groups do not divide the 64 channels"},
		{dit + `,"norm_type":"ada_norm_single"}`, "norm_type"},
		{dit + `,"sample_size":31}`, "sample_size"},
		{dit + `,"patch_size":0}`, "patch_size"},
		{dit + `,"activation_fn":"geglu"}`, "activation_fn"},
		{dit + `,"num_embeds_ada_norm":null}`, "num_embeds_ada_norm"},
	} {
		bounded(t, func() {
			_, err := parse(c.text)
			if c.why == "" {
				if err != nil {
					t.Errorf("%s: %v", c.text, err)
				}
				return
			}
			mustRefuse(t, "c.json", err, c.text)
			if err != nil && !strings.Contains(err.Error(), c.why) {
				t.Errorf("%s: %v, want %q", c.text, err, c.why)
			}
		})
	}
}

// Published DiT files call the class Transformer2DModel and carry keys of it.
func TestDiTUnderItsOldName(t *testing.T) {
	c, err := parse(`{"_class_name":"Transformer2DModel","norm_type":"ada_norm_zero","cross_attention_dim":null,"double_self_attention":false,
		"num_vector_embeds":null,"only_cross_attention":false,"use_linear_projection":false,"out_channels":8}`)
	if err != nil {
		t.Fatal(err)
	}
	if c.ClassName() != "DiTTransformer2DModel" || Parameters(c) != 749826464 || len(c.FileInfo().Ignored) != 5 {
		t.Errorf("%s %d %q", c.ClassName(), Parameters(c), c.FileInfo().Ignored)
	}
}

// fixtures returns the folder of the larger fixtures.
func fixtures(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("DRIFT_FIXTURES")
	if dir == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	return dir
}

// The tensors that a configuration asks for are exactly those of the file the
// reference wrote.
func TestTensorsOfFixtures(t *testing.T) {
	root := filepath.Join(fixtures(t), "models")
	n := 0
	for _, pattern := range []string{"unet2d-*", "unet2dcond-*", "vae-kl*", "dit*", "pipe-*/*"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if strings.Contains(path, "text_encoder") || strings.Contains(path, "pipe-sd3/transformer") {
				continue
			}
			n++
			t.Run(strings.TrimPrefix(filepath.Dir(path), root+"/"), func(t *testing.T) {
				c, err := ReadConfig(path)
				if err != nil {
					t.Fatal(err)
				}
				if w := c.FileInfo().Warnings; len(w) > 0 || len(c.FileInfo().Defaulted) > 0 {
					t.Errorf("warnings %q, defaults %q", w, c.FileInfo().Defaulted)
				}
				r, err := safetensors.Open(filepath.Join(filepath.Dir(path), "diffusion_pytorch_model.safetensors"))
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				var want, got []string
				for _, x := range r.Tensors() {
					want = append(want, fmt.Sprint(x.Name, x.Shape))
				}
				for _, x := range c.Tensors() {
					got = append(got, fmt.Sprint(x.Name, x.Shape))
				}
				slices.Sort(want)
				slices.Sort(got)
				if !slices.Equal(got, want) {
					for _, s := range got {
						if !slices.Contains(want, s) {
							t.Error("not in the file:", s)
						}
					}
					for _, s := range want {
						if !slices.Contains(got, s) {
							t.Error("only in the file:", s)
						}
					}
				}
			})
		}
	}
	if n < 20 {
		t.Errorf("only %d fixtures found", n)
	}
}
