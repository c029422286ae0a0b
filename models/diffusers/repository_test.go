package diffusers

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/internal/refuse"
	"drift/internal/safetensors"
)

const tinyUNet = `{"_class_name":"UNet2DModel","block_out_channels":[4,8],"down_block_types":["DownBlock2D","AttnDownBlock2D"],
	"up_block_types":["AttnUpBlock2D","UpBlock2D"],"layers_per_block":1,"norm_num_groups":4,"attention_head_dim":8,"sample_size":8}`

// value is the i-th element of a tensor of the tests: exact in every format.
func value(name string, i int) float32 {
	return float32((len(name)*31+i*7)%64) - 32
}

// store writes weights for a configuration; rename may change names.
func store(t *testing.T, path string, dtype safetensors.DType, tensors []Tensor, rename func(Tensor) (string, []int)) {
	t.Helper()
	var list []safetensors.Tensor
	original := map[string]string{}
	for _, x := range tensors {
		name, shape := x.Name, x.Shape
		if rename != nil {
			name, shape = rename(x)
		}
		list = append(list, safetensors.Tensor{Name: name, DType: dtype, Shape: shape})
		original[name] = x.Name
	}
	safetensors.Sort(list)
	w, err := safetensors.Create(path, nil, list)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		v := make([]float32, x.Len())
		for i := range v {
			v[i] = value(original[x.Name], i)
		}
		if err := w.Float32(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// checkWeights compares all values with those that store wrote.
func checkWeights(t *testing.T, w Weights, tensors []Tensor) {
	t.Helper()
	if len(w.Names()) != len(tensors) {
		t.Errorf("%d tensors, want %d", len(w.Names()), len(tensors))
	}
	for i, x := range tensors {
		if w.Names()[i] != x.Name {
			t.Errorf("tensor %d is %s, want %s", i, w.Names()[i], x.Name)
		}
		shape, ok := w.Shape(x.Name)
		v, err := w.Float32(x.Name)
		if err != nil || !ok || !slices.Equal(shape, x.Shape) || int64(len(v)) != count(x.Shape) {
			t.Errorf("%s: %v %v %d values, %v", x.Name, shape, ok, len(v), err)
			continue
		}
		for i := range v {
			if v[i] != value(x.Name, i) {
				t.Errorf("%s[%d] = %g, want %g", x.Name, i, v[i], value(x.Name, i))
				break
			}
		}
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func tiny(t *testing.T) []Tensor {
	t.Helper()
	c, err := ParseConfig("config.json", []byte(tinyUNet))
	if err != nil {
		t.Fatal(err)
	}
	return c.Tensors()
}

const stem = "diffusion_pytorch_model"

func TestOpenFolder(t *testing.T) {
	for _, file := range []struct{ name, ask, note string }{
		{stem + ".safetensors", "", ""},
		{stem + ".fp16.safetensors", "fp16", ""},
		{stem + ".fp16.safetensors", "", "only the variant fp16"},
	} {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "config.json"), tinyUNet)
		store(t, filepath.Join(dir, file.name), safetensors.F16, tiny(t), nil)
		m, err := Open(dir, Options{Variant: file.ask})
		if err != nil {
			t.Fatal(err)
		}
		checkWeights(t, m.Weights, tiny(t))
		if m.Component != "" || m.Dir != dir || m.Config.ClassName() != "UNet2DModel" || !maps.Equal(m.Weights.DTypes(), map[string]int{"F16": len(tiny(t))}) {
			t.Errorf("%+v %v", m, m.Weights.DTypes())
		}
		notes := strings.Join(m.Notes, "; ")
		if !strings.Contains(notes, file.note) || !strings.Contains(notes, "defaults of UNet2DModel taken for in_channels, out_channels") {
			t.Errorf("notes %q", notes)
		}
		if _, err := m.Weights.Float32("nothing"); err == nil {
			t.Error("read a tensor that is not there")
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenShards(t *testing.T) {
	for _, names := range [][3]string{
		{stem + "-00001-of-00002.safetensors", stem + "-00002-of-00002.safetensors", stem + ".safetensors.index.json"},
		{stem + ".fp16-00001-of-00002.safetensors", stem + ".fp16-00002-of-00002.safetensors", stem + ".safetensors.index.fp16.json"},
		{stem + "-00001-of-00002.fp16.safetensors", stem + "-00002-of-00002.fp16.safetensors", stem + ".safetensors.index.fp16.json"},
	} {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "config.json"), tinyUNet)
		all := tiny(t)
		half := len(all) / 2
		store(t, filepath.Join(dir, names[0]), safetensors.F32, all[:half], nil)
		store(t, filepath.Join(dir, names[1]), safetensors.F32, all[half:], nil)
		var rows []string
		for i, x := range all {
			rows = append(rows, fmt.Sprintf("%q: %q", x.Name, names[min(i/half, 1)]))
		}
		writeFile(t, filepath.Join(dir, names[2]), `{"metadata": {}, "weight_map": {`+strings.Join(rows, ",")+`}}`)
		m, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		checkWeights(t, m.Weights, all)
		if len(m.Weights.Files()) != 2 {
			t.Error(m.Weights.Files())
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestLegacyTensorNames(t *testing.T) {
	old := func(x Tensor) (string, []int) {
		for _, r := range [][2]string{{".to_q.", ".query."}, {".to_k.", ".key."}, {".to_v.", ".value."}, {".to_out.0.", ".proj_attn."}} {
			if strings.Contains(x.Name, r[0]) {
				shape := x.Shape
				if len(shape) == 2 {
					shape = append(slices.Clone(shape), 1, 1)
				}
				return strings.Replace(x.Name, r[0], r[1], 1), shape
			}
		}
		return strings.Replace(x.Name, "downsamplers.0.conv.", "downsamplers.0.Conv2d_0.", 1), x.Shape
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "config.json"), tinyUNet)
	store(t, filepath.Join(dir, stem+".safetensors"), safetensors.F32, tiny(t), old)
	m, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	checkWeights(t, m.Weights, tiny(t))
	// 4 attentions of 8 tensors, and one convolution.
	if notes := strings.Join(m.Notes, "; "); !strings.Contains(notes, "34 tensors stand under legacy names") || !strings.Contains(notes, "16 attention matrices") {
		t.Errorf("notes %q", notes)
	}
}

func TestWrongTensors(t *testing.T) {
	all := tiny(t)
	extra := append(slices.Clone(all), Tensor{"extra.weight", []int{2}}, Tensor{"mid_block.attentions.0.norm", []int{1}})
	double := append(slices.Clone(all), Tensor{"down_blocks.0.downsamplers.0.Conv2d_0.weight", []int{4, 4, 3, 3}})
	shape := slices.Clone(all)
	shape[0].Shape = []int{4, 3, 1, 1}
	for name, c := range map[string]struct {
		tensors []Tensor
		dtype   safetensors.DType
		why     []string
	}{
		"missing":    {all[2:], "F32", []string{"2 missing: conv_in.weight, conv_in.bias"}},
		"unexpected": {extra, "F32", []string{"2 unexpected: extra.weight, mid_block.attentions.0.norm"}},
		"shape":      {shape, "F32", []string{"1 of another shape: conv_in.weight has [4 3 1 1] and should have [4 3 3 3]"}},
		"copy":       {double, "F32", []string{"1 given twice with different values: down_blocks.0.downsamplers.0.conv.weight and down_blocks.0.downsamplers.0.Conv2d_0.weight"}},
		"all":        {append(slices.Clone(extra[2:]), Tensor{"x", []int{1}}), "F32", []string{"2 missing", "3 unexpected: "}},
	} {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "config.json"), tinyUNet)
		file := filepath.Join(dir, stem+".safetensors")
		store(t, file, c.dtype, c.tensors, nil)
		_, err := Open(dir, Options{})
		mustRefuse(t, file, err, name)
		for _, why := range c.why {
			if err == nil || !strings.Contains(err.Error(), why) {
				t.Errorf("%s: %v, want %q", name, err, why)
			}
		}
	}
}

func TestEqualCopiesAreAccepted(t *testing.T) {
	const name = "down_blocks.0.downsamplers.0.conv.weight"
	copied := append(tiny(t), Tensor{name, []int{4, 4, 3, 3}})
	first := true
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "config.json"), tinyUNet)
	store(t, filepath.Join(dir, stem+".safetensors"), safetensors.F32, copied, func(x Tensor) (string, []int) {
		if x.Name == name && first {
			first = false
			return strings.Replace(name, ".conv.", ".Conv2d_0.", 1), x.Shape
		}
		return x.Name, x.Shape
	})
	m, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	checkWeights(t, m.Weights, tiny(t))
}

func TestIntegerWeightsAreRefused(t *testing.T) {
	c, err := ParseConfig("config.json", []byte(tinyUNet))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "w.safetensors")
	var list []safetensors.Tensor
	for _, x := range c.Tensors() {
		list = append(list, safetensors.Tensor{Name: x.Name, DType: safetensors.I64, Shape: x.Shape})
	}
	w, err := safetensors.Create(path, nil, list)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		if err := w.Int64(make([]int64, x.Len())); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	r, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = NewCheckpoint(c, r)
	mustRefuse(t, path, err, "integers")
	if err == nil || !strings.Contains(err.Error(), "conv_in.weight is I64") {
		t.Error(err)
	}
}

func TestWhichWeights(t *testing.T) {
	for name, c := range map[string]struct {
		files   []string
		variant string
		want    string // file, or
		why     string // refusal
	}{
		"plain before variant":  {[]string{stem + ".fp16.safetensors", stem + ".safetensors"}, "", stem + ".safetensors", ""},
		"variant":               {[]string{stem + ".fp16.safetensors", stem + ".safetensors"}, "fp16", stem + ".fp16.safetensors", ""},
		"index before single":   {[]string{stem + ".safetensors.index.json", stem + ".safetensors"}, "", stem + ".safetensors.index.json", ""},
		"safetensors, not bin":  {[]string{stem + ".bin", stem + ".safetensors"}, "", stem + ".safetensors", ""},
		"two variants":          {[]string{stem + ".fp16.safetensors", stem + ".ema.safetensors"}, "", "", "variants ema, fp16: choose one"},
		"no such variant":       {[]string{stem + ".safetensors"}, "fp16", "", "no variant fp16"},
		"bin":                   {[]string{stem + ".bin"}, "", "", "convert it once with `drift model convert`"},
		"variant of bin":        {[]string{stem + ".fp16.bin"}, "", "", "convert it once with `drift model convert`"},
		"ckpt":                  {[]string{"model.ckpt"}, "", "", "convert it once with `drift model convert`"},
		"none":                  {[]string{"readme.md"}, "", "", "has no " + stem + ".safetensors"},
		"shards without index":  {[]string{stem + "-00001-of-00002.safetensors"}, "", "", "has no " + stem + ".safetensors"},
		"another stem":          {[]string{"model.safetensors"}, "", "", "has no " + stem + ".safetensors"},
		"dots are not any byte": {[]string{stem + "_safetensors"}, "", "", "has no " + stem + ".safetensors"},
	} {
		dir := t.TempDir()
		for _, f := range c.files {
			writeFile(t, filepath.Join(dir, f), "x")
		}
		path, sharded, err := FindWeights(dir, stem, c.variant)
		if c.why != "" {
			mustRefuse(t, dir, err, name)
			if err == nil || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%s: %v, want %q", name, err, c.why)
			}
			continue
		}
		if err != nil || filepath.Base(path) != c.want || sharded != strings.Contains(c.want, "index") {
			t.Errorf("%s: %s %t %v, want %s", name, path, sharded, err, c.want)
		}
	}
}

func TestONNXIsNotARefusal(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "config.json"), tinyUNet)
	writeFile(t, filepath.Join(dir, "model.onnx"), "x")
	var refused *refuse.Error
	if _, err := Open(dir, Options{}); err == nil || errors.As(err, &refused) || !strings.Contains(err.Error(), "an ONNX graph") {
		t.Error(err)
	}
}

// pipeline writes a repository of a network and a scheduler.
func pipeline(t *testing.T, dir, unet, scheduler string) {
	t.Helper()
	writeFile(t, filepath.Join(dir, "model_index.json"), `{"_class_name":"DDPMPipeline","_diffusers_version":"0.1.1","unet":["diffusers","UNet2DModel"],
		"scheduler":["diffusers","DDPMScheduler"],"safety_checker":[null,null],"id2label":{"0":"cat","1":"dog"},"requires_safety_checker":false}`)
	writeFile(t, filepath.Join(dir, unet, "config.json"), tinyUNet)
	store(t, filepath.Join(dir, unet, stem+".safetensors"), safetensors.F32, tiny(t), nil)
	writeFile(t, filepath.Join(dir, scheduler, "scheduler_config.json"), `{"_class_name":"DDPMScheduler"}`)
}

func TestPipelines(t *testing.T) {
	for _, c := range []struct{ unet, scheduler, note string }{{"unet", "scheduler", ""}, {"", "", "read from the root"}} {
		dir := t.TempDir()
		pipeline(t, dir, c.unet, c.scheduler)
		r, err := OpenRepository(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if x := r.Index; x.Class != "DDPMPipeline" || x.Version != "0.1.1" || len(x.Components) != 2 || x.Labels[1] != "dog" || !slices.Equal(x.Extra, []string{"requires_safety_checker"}) {
			t.Errorf("%+v", x)
		}
		m, err := r.Network("")
		if err != nil {
			t.Fatal(err)
		}
		checkWeights(t, m.Weights, tiny(t))
		if m.Component != "unet" || m.Dir != filepath.Join(dir, c.unet) || !strings.Contains(strings.Join(m.Notes, ";"), c.note) {
			t.Errorf("%+v", m)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if s, err := r.Scheduler(); err != nil || s.ClassName != "DDPMScheduler" {
			t.Error(s, err)
		}
		if _, err := r.Network("vae"); err == nil {
			t.Error("opened a component that is not there")
		}
		if _, err := r.Network("../unet"); err == nil {
			t.Error("a component name was used as a path")
		}
	}
	// Without model_index.json the folders speak for themselves.
	dir := t.TempDir()
	pipeline(t, dir, "unet", "scheduler")
	if err := os.Remove(filepath.Join(dir, "model_index.json")); err != nil {
		t.Fatal(err)
	}
	m, err := Open(dir, Options{})
	if err != nil || m.Component != "unet" {
		t.Fatal(m, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func TestPipelineContradictions(t *testing.T) {
	for name, c := range map[string]struct {
		file, text, why string
	}{
		"class of unet":      {"unet/config.json", `{"_class_name":"AutoencoderKL"}`, "is a AutoencoderKL, but model_index.json says that unet is a UNet2DModel"},
		"class of scheduler": {"scheduler/scheduler_config.json", `{"_class_name":"DDIMScheduler"}`, "is a DDIMScheduler, but model_index.json says DDPMScheduler"},
		"no denoiser":        {"model_index.json", `{"_class_name":"P","vae":["diffusers","AutoencoderKL"]}`, "neither a unet nor a transformer"},
		"path in index":      {"model_index.json", `{"_class_name":"P","../unet":["diffusers","UNet2DModel"]}`, "must name a library and a class"},
		"empty names":        {"model_index.json", `{"_class_name":"P","unet":["",""]}`, "must name a library and a class"},
		"nameless":           {"model_index.json", `{"_class_name":""}`, "not a name"},
		"half null":          {"model_index.json", `{"_class_name":"P","unet":["diffusers",null]}`, "must name a library and a class"},
		"labels":             {"model_index.json", `{"_class_name":"P","id2label":{"a":"b"}}`, "must map numbers to names"},
		"no class":           {"model_index.json", `{"unet":["diffusers","UNet2DModel"]}`, "no _class_name"},
		"not json":           {"model_index.json", `{"unet":`, "ends early"},
	} {
		dir := t.TempDir()
		pipeline(t, dir, "unet", "scheduler")
		writeFile(t, filepath.Join(dir, c.file), c.text)
		r, err := OpenRepository(dir, Options{})
		if err == nil {
			var m *Model
			if m, err = r.Network(""); err == nil {
				err = m.Close()
			}
		}
		if err == nil {
			_, err = r.Scheduler()
		}
		var refused *refuse.Error
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", name, err, c.why)
		}
	}
}

func TestCache(t *testing.T) {
	cache := t.TempDir()
	repo := filepath.Join(cache, "models--org--tiny.model-1")
	commit := strings.Repeat("0123456789abcdef", 3)[:40]
	pipeline(t, filepath.Join(repo, "real"), "unet", "scheduler")
	// As the hub does, the snapshot holds links to blobs.
	snapshot := filepath.Join(repo, "snapshots", commit)
	err := filepath.WalkDir(filepath.Join(repo, "real"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(filepath.Join(repo, "real"), path)
		if err != nil {
			return err
		}
		to := filepath.Join(snapshot, rel)
		return errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.Symlink(path, to))
	})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(repo, "refs", "main"), commit)
	writeFile(t, filepath.Join(repo, "refs", "refs", "pr", "1"), commit+"\n")
	writeFile(t, filepath.Join(repo, "refs", "gone"), strings.Repeat("f", 40))
	writeFile(t, filepath.Join(repo, "refs", "evil"), "../../../etc")
	for _, revision := range []string{"", "main", "refs/pr/1", commit} {
		m, err := Open("org/tiny.model-1", Options{CacheDir: cache, Revision: revision})
		if err != nil {
			t.Errorf("revision %q: %v", revision, err)
			continue
		}
		checkWeights(t, m.Weights, tiny(t))
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	for name, c := range map[string]struct {
		repo string
		opt  Options
		why  string
	}{
		"no cache":       {"org/tiny.model-1", Options{}, "no such file"},
		"not downloaded": {"org/other", Options{CacheDir: cache}, "neither a folder nor in the cache"},
		"no revision":    {"org/tiny.model-1", Options{CacheDir: cache, Revision: "v2"}, "looking up revision v2"},
		"no snapshot":    {"org/tiny.model-1", Options{CacheDir: cache, Revision: "gone"}, "no snapshot"},
		"path as ref":    {"org/tiny.model-1", Options{CacheDir: cache, Revision: "../main"}, "is not a revision"},
		"evil ref":       {"org/tiny.model-1", Options{CacheDir: cache, Revision: "evil"}, "does not name a commit"},
		"path as name":   {"../tiny.model-1", Options{CacheDir: cache}, "no such file"},
	} {
		_, err := Open(c.repo, c.opt)
		if err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", name, err, c.why)
		}
		var refused *refuse.Error
		if errors.As(err, &refused) != (name == "evil ref") || strings.Contains(c.why, "no such file") && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v is of the wrong kind", name, err)
		}
	}
}

// The same weights in other files give the same numbers.
func TestFixturesOfTheSameWeights(t *testing.T) {
	root := filepath.Join(fixtures(t), "models")
	for _, c := range []struct {
		name, source string
		relative     float64 // of the rounding; 0: equal
		note         string
	}{
		{"variant-fp16", "unet2d-plain", 0x1p-11, "only the variant fp16"},
		{"variant-bf16", "unet2d-plain", 0x1p-8, ""},
		{"variant-sharded", "unet2d-plain", 0, ""},
		{"variant-sharded-fp16", "unet2d-plain", 0x1p-11, "only the variant fp16"},
		{"legacy-root", "unet2d-plain", 0, "read from the root"},
		{"legacy-ancient", "unet2d-modern", 0, "legacy names: block_channels -> block_out_channels"},
		{"legacy-absent-head-dim", "unet2d-modern", 0, "attention_head_dim is absent"},
		{"legacy-vae", "vae-kl", 0, "tensors stand under legacy names"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Open(filepath.Join(root, c.name), Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			want, err := Open(filepath.Join(root, c.source), Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer want.Close()
			if notes := strings.Join(got.Notes, "; "); !strings.Contains(notes, c.note) {
				t.Errorf("notes %q", notes)
			}
			for _, name := range want.Weights.Names() {
				a, err := got.Weights.Float32(name)
				if err != nil {
					t.Fatal(err)
				}
				b, err := want.Weights.Float32(name)
				if err != nil {
					t.Fatal(err)
				}
				if len(a) != len(b) {
					t.Fatalf("%s: %d and %d values", name, len(a), len(b))
				}
				for i := range a {
					// float16 has subnormals below 2^-14, 2^-24 apart.
					if d := math.Abs(float64(a[i]) - float64(b[i])); d > c.relative*math.Abs(float64(b[i])) && !(c.relative == 0x1p-11 && d <= 0x1p-25) {
						t.Fatalf("%s[%d]: %g and %g", name, i, a[i], b[i])
					}
				}
			}
			if g, w := fmt.Sprint(typed(got.Config)), fmt.Sprint(typed(want.Config)); g != w {
				t.Errorf("%s, want %s", g, w)
			}
		})
	}
	for name, why := range map[string]string{"variant-bin": "drift model convert", "variant-bin-legacy": "drift model convert"} {
		var refused *refuse.Error
		if _, err := Open(filepath.Join(root, name), Options{}); !errors.As(err, &refused) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", name, err, why)
		}
	}
	for _, name := range []string{"pipe-ddpm", "pipe-dit", "pipe-sd1"} {
		r, err := OpenRepository(filepath.Join(root, name), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Scheduler(); err != nil {
			t.Error(err)
		}
		for _, component := range r.Index.Components {
			if component.Library != "diffusers" || component.Name == "scheduler" {
				continue
			}
			m, err := r.Network(component.Name)
			if err != nil {
				t.Error(err)
				continue
			}
			if len(m.Notes) > 0 {
				t.Errorf("%s %s: notes %q", name, component.Name, m.Notes)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// typed returns a copy of a configuration without the story of its file.
func typed(c Config) any {
	switch c := c.(type) {
	case *UNet2DConfig:
		d := *c
		d.Info = Info{}
		return d
	case *AutoencoderKLConfig:
		d := *c
		d.Info = Info{}
		return d
	}
	return c
}

func FuzzReadIndex(f *testing.F) {
	for _, text := range []string{`{"_class_name":"P","unet":["diffusers","UNet2DModel"],"vae":[null,null],"id2label":{"0":"a"},"x":true}`, `{"_class_name":"P","a/b":["c","d"]}`, `{"_class_name":"P","t":["",""]}`, `{"_class_name":""}`, `{}`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "model_index.json")
		writeFile(t, path, text)
		x, err := ReadIndex(path)
		if err != nil {
			var refused *refuse.Error
			if !errors.As(err, &refused) {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		for _, c := range x.Components {
			if c.Name == "" || strings.ContainsAny(c.Name, `/\.`) || c.Class == "" || c.Library == "" || x.Class == "" {
				t.Fatalf("component %+v", c)
			}
		}
	})
}

func ExampleOpen() {
	m, err := Open("testdata/tiny", Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Close()
	names := m.Weights.Names()
	shape, _ := m.Weights.Shape(names[0])
	fmt.Println(m.Config.ClassName(), Parameters(m.Config), "parameters in", len(names), "tensors")
	fmt.Println(names[0], shape)
	// Output:
	// UNet2DModel 11767 parameters in 144 tensors
	// conv_in.weight [4 3 3 3]
}
