package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"drift/internal/npz"
	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/models/diffusers"
)

const corpus = "../../internal/testdata/files"

func verify(path string) (Report, error) {
	return Verify(context.Background(), path, diffusers.Options{})
}

// Every file of the corpora: the invalid ones are refused within a second and
// without large allocations, the valid ones are told what they are.
func TestCorpus(t *testing.T) {
	for _, folder := range []string{"safetensors", "npy", "configs"} {
		text, err := os.ReadFile(filepath.Join(corpus, folder, "index.json"))
		if err != nil {
			t.Fatal(err)
		}
		var index struct {
			Files map[string]struct {
				Valid  bool
				Expect any
			}
		}
		if err := json.Unmarshal(text, &index); err != nil {
			t.Fatal(err)
		}
		if len(index.Files) < 50 {
			t.Errorf("%s: %d files", folder, len(index.Files))
		}
		for name, want := range index.Files {
			valid := want.Valid
			if expect, ok := want.Expect.(string); ok {
				valid = !strings.HasPrefix(expect, "refuse")
			}
			if name == "valid-optional-native-prefix.npy" { // '=' does not say which order
				valid = false
			}
			t.Run(folder+"/"+name, func(t *testing.T) {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				start := time.Now()
				report, err := verify(filepath.Join(corpus, folder, name))
				if took := time.Since(start); took > 10*time.Second { // hangs are looked for, not speed
					t.Errorf("took %v", took)
				}
				runtime.ReadMemStats(&after)
				if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
					t.Errorf("allocated %d bytes", n)
				}
				var refused *refuse.Error
				if valid && err != nil || !valid && !errors.As(err, &refused) {
					t.Errorf("%v, valid: %t", err, valid)
				}
				if err == nil && (len(report.Items) != 1 || report.Kind == "" || report.Items[0].Detail == "") {
					t.Errorf("%+v", report)
				}
			})
		}
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("model.onnx", "x")
	write("model.bin", "x")
	write("model.txt", "x")
	write("scheduler_config.json", `{"_class_name":"EulerDiscreteScheduler","clip_sample":false}`)
	write("model_index.json", `{"_class_name":"DDPMPipeline","unet":["diffusers","UNet2DModel"]}`)
	write("clip.json", `{"model_type":"bert"}`)
	write("target.json", `{"process":3}`)
	write("other.json", `{"a":1}`)
	write("list.json", `[1]`)
	if err := npz.Write(filepath.Join(dir, "a.npz"), npz.Array{Name: "x", Shape: []int{3}, Data: []float32{1, float32(math.NaN()), float32(math.Inf(1))}},
		npz.Array{Name: "y", Data: []float64{math.Inf(-1)}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string // part of the report, or
		refused    string // of a refusal, or
		fails      string // of another error
	}{
		{"model.onnx", "", "not a sound ONNX file", ""},
		{"model.bin", "", "convert it once with `drift model convert`", ""},
		{"model.txt", "", "not a kind of file that drift reads", ""},
		{"scheduler_config.json", "scheduler EulerDiscreteScheduler, 1000 training steps, predicts epsilon", "", ""},
		{"model_index.json", "pipeline DDPMPipeline: unet (UNet2DModel)", "", ""},
		{"clip.json", "configurations of transformers are not judged", "", ""},
		{"target.json", "", "target.json: type is missing", ""},
		{"other.json", "", "has no _class_name", ""},
		{"list.json", "", "expected an object", ""},
		{"a.npz", "npz x f4 [3], y f8 [] [3 values are not finite]", "", ""},
		{"nothing.npz", "", "", "no such file"},
	} {
		report, err := verify(filepath.Join(dir, c.name))
		var refused *refuse.Error
		switch {
		case c.refused != "":
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: %v, want a refusal with %q", c.name, err, c.refused)
			}
		case c.fails != "":
			if err == nil || errors.As(err, &refused) || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: %v, want an error with %q", c.name, err, c.fails)
			}
		case err != nil || len(report.Items) != 1:
			t.Errorf("%s: %+v %v", c.name, report, err)
		default:
			x := report.Items[0]
			if got := fmt.Sprint(report.Kind, " ", x.Detail, " ", x.Notes); !strings.Contains(got, c.want) {
				t.Errorf("%s: %s, want %q", c.name, got, c.want)
			}
		}
	}
}

// copyTiny copies testdata of the diffusers package, which may then be damaged.
func copyTiny(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tiny")
	if err := os.CopyFS(dir, os.DirFS("../diffusers/testdata/tiny")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestFolder(t *testing.T) {
	dir := copyTiny(t)
	report, err := verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	x := report.Items[0]
	if report.Kind != "network" || len(report.Items) != 1 || x.Class != "UNet2DModel" || x.Parameters != 11767 || x.Tensors != 144 || x.NonFinite != 0 {
		t.Errorf("%+v", report)
	}
	if want := "UNet2DModel, 11767 parameters in 144 tensors (144 F16)"; x.Detail != want {
		t.Errorf("%s, want %s", x.Detail, want)
	}

	// The rest of the folder is read, too.
	for name, text := range map[string]string{"readme.md": "x", "old.bin": "x", "vocab.json": `{"a":1}`, "sub/scheduler_config.json": `{"_class_name":"DDPMScheduler"}`} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	report, err = verify(dir)
	if err != nil || len(report.Items) != 3 || len(report.Skipped) != 2 {
		t.Errorf("%+v %v", report, err)
	}
	for name, text := range map[string]string{"sub/scheduler_config.json": `{"_class_name":"DDPMScheduler","beta_end":1}`, "vocab.json": `{"a":1,"a":2}`, "x.npy": "x", "config.json": `{"_class_name":"UNet2DModel"}`} {
		broken := copyTiny(t)
		path := filepath.Join(broken, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
		var refused *refuse.Error
		if _, err := verify(broken); !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := verify(t.TempDir()); err == nil || !strings.Contains(err.Error(), "holds nothing that drift reads") {
		t.Error(err)
	}
	if _, err := verify("no/such/folder"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Verify(ctx, dir, diffusers.Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestPipeline(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "unet"), os.DirFS("../diffusers/testdata/tiny")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "text_encoder"), os.DirFS("../diffusers/testdata/tiny")); err != nil {
		t.Fatal(err)
	}
	weights := filepath.Join(dir, "text_encoder", "diffusion_pytorch_model.safetensors")
	if err := os.Rename(weights, filepath.Join(dir, "text_encoder", "model.safetensors")); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"model_index.json": `{"_class_name":"DDPMPipeline","scheduler":["diffusers","DDPMScheduler"],"unet":["diffusers","UNet2DModel"],
			"text_encoder":["transformers","BertModel"],"tokenizer":["transformers","CLIPTokenizer"],"safety_checker":[null,null]}`,
		"scheduler/scheduler_config.json": `{"_class_name":"DDPMScheduler"}`,
		"text_encoder/config.json":        `{"model_type":"bert"}`,
		"tokenizer/vocab.json":            `{"a":0,"b":1}`,
		"tokenizer/merges.txt":            "a b",
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	report, err := verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, x := range report.Items {
		kinds = append(kinds, x.Kind+" "+x.Class)
	}
	if got := strings.Join(kinds, ", "); report.Kind != "pipeline" || got != "pipeline DDPMPipeline, scheduler DDPMScheduler, network UNet2DModel, safetensors BertModel, JSON " {
		t.Errorf("%s: %s", report.Kind, got)
	}
	if notes := strings.Join(report.Items[3].Notes, ""); !strings.Contains(notes, "BertModel is not judged here") {
		t.Error(notes)
	}
	if len(report.Skipped) != 1 || filepath.Base(report.Skipped[0]) != "merges.txt" {
		t.Error(report.Skipped)
	}
	if err := os.RemoveAll(filepath.Join(dir, "tokenizer")); err != nil {
		t.Fatal(err)
	}
	if _, err := verify(dir); err == nil || !strings.Contains(err.Error(), "names the component tokenizer, which has no folder") {
		t.Error(err)
	}
}

func TestUnjudgedClasses(t *testing.T) {
	for config, want := range map[string]string{`{"_class_name":"AutoencoderDC"}`: "AutoencoderDC is not judged", `{"model_type":"t5"}`: "a model of transformers is not judged"} {
		dir := copyTiny(t)
		if strings.Contains(config, "model_type") {
			if err := os.Rename(filepath.Join(dir, "diffusion_pytorch_model.safetensors"), filepath.Join(dir, "model.safetensors")); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		report, err := verify(dir)
		if err != nil || len(report.Items) != 1 || report.Items[0].Tensors != 144 || !strings.Contains(fmt.Sprint(report.Items[0].Notes), want) {
			t.Errorf("%s: %+v %v", config, report, err)
		}
	}
}

func TestNonFiniteWeights(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.safetensors")
	list := []safetensors.Tensor{{Name: "a", DType: safetensors.F32, Shape: []int{2}}, {Name: "b", DType: safetensors.F64, Shape: []int{1}}, {Name: "c", DType: safetensors.I64, Shape: []int{1}}}
	w, err := safetensors.Create(path, nil, list)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Float32([]float32{1, float32(math.NaN())}), w.Float64([]float64{math.Inf(1)}), w.Int64([]int64{5}), w.Commit()); err != nil {
		t.Fatal(err)
	}
	report, err := verify(path)
	if err != nil || report.Items[0].NonFinite != 2 || report.Items[0].Detail != "3 tensors (1 F32, 1 F64, 1 I64), 4 values" {
		t.Errorf("%+v %v", report, err)
	}
}

func TestFixtures(t *testing.T) {
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	root = filepath.Join(root, "models")
	folders, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, d := range folders {
		if !d.IsDir() {
			continue
		}
		n++
		t.Run(d.Name(), func(t *testing.T) {
			report, err := verify(filepath.Join(root, d.Name()))
			var refused *refuse.Error
			switch {
			case strings.HasPrefix(d.Name(), "onnx-"):
				if err == nil || errors.As(err, &refused) || !strings.Contains(err.Error(), "ONNX") {
					t.Error(report, err)
				}
			case strings.HasPrefix(d.Name(), "variant-bin"), strings.HasPrefix(d.Name(), "formula-"): // without safetensors
				if !errors.As(err, &refused) {
					t.Error(report, err)
				}
			case err != nil:
				t.Error(err)
			default:
				for _, x := range report.Items {
					if x.NonFinite > 0 {
						t.Errorf("%+v", x)
					}
					t.Log(x.Kind, "|", x.Detail, "|", x.Notes)
				}
			}
		})
	}
	if n < 40 {
		t.Errorf("%d folders", n)
	}
}

func Example() {
	report, err := Verify(context.Background(), "../diffusers/testdata/tiny", diffusers.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, x := range report.Items {
		fmt.Println(report.Kind+":", x.Detail)
	}
	// Output: network: UNet2DModel, 11767 parameters in 144 tensors (144 F16)
}
