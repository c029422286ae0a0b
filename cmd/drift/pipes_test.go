package main

import (
	"encoding/json"
	"errors"
	"image"
	"image/color"
	"image/png"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"drift/internal/npz"
	"drift/internal/pixels"
	"drift/internal/rng"
	"drift/internal/safetensors"
	"drift/models/diffusers"
)

// pipes is the folder of small pipelines, made by its make.py.
const pipes = "testdata/pipelines"

// pipe writes the folder of a small pipeline, with weights that follow from the tensors' names, and gives its path.
func pipe(t testing.TB, name string) string {
	t.Helper()
	return pipeWith(t, name, "", nil)
}

// pipeWith is pipe with another scheduler class in place of the folder's own.
func pipeWith(t testing.TB, name, other string, config map[string]any) string {
	t.Helper()
	dir, from := filepath.Join(t.TempDir(), name), filepath.Join(pipes, "models", name)
	copyTree(t, dir, from)
	var tokens map[string]string
	readJSON(t, filepath.Join(from, "tokenizers.json"), &tokens)
	for part, kind := range tokens {
		src := filepath.Join(pipes, "tokenizers", kind)
		if kind == "t5" {
			src = "../../models/text/testdata/t5"
		}
		copyTree(t, filepath.Join(dir, part), src)
	}
	configs, err := filepath.Glob(filepath.Join(dir, "*", "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range configs {
		cfg, err := diffusers.ReadConfig(path)
		if err != nil {
			t.Fatal(err)
		}
		stem := "diffusion_pytorch_model"
		if strings.Contains(path, "text_encoder") {
			stem = "model"
		}
		writeFormula(t, filepath.Join(filepath.Dir(path), stem+".safetensors"), cfg)
	}
	if other != "" {
		settings := map[string]any{"_class_name": other}
		maps.Copy(settings, config)
		text, err := json.Marshal(settings)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "scheduler", "scheduler_config.json"), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		index := filepath.Join(dir, "model_index.json")
		var m map[string]any
		readJSON(t, index, &m)
		m["scheduler"] = []string{"diffusers", other}
		b, err := json.Marshal(m)
		if err == nil {
			err = os.WriteFile(index, b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// writeFormula writes the formula weights of a configuration.
func writeFormula(t testing.TB, path string, cfg diffusers.Config) {
	t.Helper()
	f, err := diffusers.NewFormula(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var list []safetensors.Tensor
	for _, name := range f.Names() {
		shape, _ := f.Shape(name)
		list = append(list, safetensors.Tensor{Name: name, DType: safetensors.F32, Shape: shape})
	}
	w, err := safetensors.Create(path, nil, list)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range f.Names() {
		v, err := f.Float32(name)
		if err == nil {
			err = w.Float32(v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

func copyTree(t testing.TB, dst, src string) {
	t.Helper()
	if err := os.CopyFS(dst, os.DirFS(src)); err != nil {
		t.Fatal(err)
	}
}

func readJSON(t testing.TB, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestPipelines draws what diffusers drew with the same folders: latents within 5e-6 (1e-5 where they were asked for that
// before), bytes with at most one of a thousand off by one.
func TestPipelines(t *testing.T) {
	var cases []struct {
		Name, Model, Scheduler, Prompt, Flags string
		Config                                map[string]any
	}
	readJSON(t, filepath.Join(pipes, "cases.json"), &cases)
	if len(cases) < 25 {
		t.Fatalf("%d cases", len(cases))
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			dir := pipeWith(t, c.Model, c.Scheduler, c.Config)
			out := filepath.Join(t.TempDir(), "out.npz")
			args := []string{"sample", "--model", dir, "--out", out, "--quiet", "--float", "--seed", "5"}
			if c.Prompt != "" {
				args = append(args, "--prompt", c.Prompt)
			}
			args = append(args, strings.Split(strings.ReplaceAll(c.Flags, "FILE:", pipes+"/"), " ")...)
			code, _, stderr := world(nil, args...)
			if code != 0 {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			compare(t, out, filepath.Join(pipes, c.Name+".npz"))
		})
	}
}

// compare compares latents and pictures of two files.
func compare(t *testing.T, got, want string) {
	t.Helper()
	a, err := npz.ReadAll(got)
	if err != nil {
		t.Fatal(err)
	}
	b, err := npz.ReadAll(want)
	if err != nil {
		t.Fatal(err)
	}
	if l := b["latents"]; l != nil {
		x, _ := a["x"].Float64()
		y, _ := l.Float64()
		if len(x) != len(y) {
			t.Fatalf("latents of shape %v, want %v", a["x"].Shape, l.Shape)
		}
		var gap, size float64
		for i, v := range y {
			gap, size = gap+(x[i]-v)*(x[i]-v), size+v*v
		}
		if e := math.Sqrt(gap / size); !(e <= 5e-6) {
			t.Errorf("latents differ by %.2g", e)
		} else {
			t.Logf("latents differ by %.2g", e)
		}
	}
	if b["images"] == nil {
		return
	}
	x, y := a["images"].Data.([]byte), b["images"].Data.([]byte)
	if len(x) != len(y) {
		t.Fatalf("pictures of shape %v, want %v", a["images"].Shape, b["images"].Shape)
	}
	off, worst := 0, 0
	for i := range x {
		d := int(x[i]) - int(y[i])
		worst = max(worst, d, -d)
		if d != 0 {
			off++
		}
	}
	if worst > 1 || off > max(1, len(x)/1000) {
		t.Errorf("%d of %d bytes differ, by up to %d", off, len(x), worst)
	}
}

// TestMask holds inpainting to its limits: a mask that draws everything is plain image to image, one that keeps everything
// gives the input back, and between them the kept part is the input's, whatever the sampler, on pixels and on latents.
func TestMask(t *testing.T) {
	dir := t.TempDir()
	sd := pipe(t, "sd1")
	file := func(name string) string { return filepath.Join(dir, name) }
	save := func(name string, w, h int, at func(x, y int) color.Color) {
		m := image.NewNRGBA(image.Rect(0, 0, w, h))
		for i := range w * h {
			m.Set(i%w, i/w, at(i%w, i/w))
		}
		f, err := os.Create(file(name))
		if err == nil {
			err = errors.Join(png.Encode(f, m), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	grey := func(v uint8) func(x, y int) color.Color { return func(int, int) color.Color { return color.Gray{v} } }
	left := func(x, y int) color.Color { return color.Gray{map[bool]uint8{true: 255}[x < 13]} }
	save("all.png", 28, 28, grey(255))
	save("none.png", 28, 28, grey(127))
	save("left.png", 28, 28, left)
	save("shoe.png", 28, 28, func(x, y int) color.Color { return color.Gray{uint8(9 * (x*y%28 + x%3))} })
	save("wide.png", 28, 14, grey(255))
	draw := func(want int, args ...string) map[string]*npz.Array {
		t.Helper()
		out := file("out.npz")
		code, _, stderr := world(nil, append([]string{"sample", "--quiet", "--float", "--out", out}, args...)...)
		if code != want {
			t.Fatalf("%q: exit code %d, want %d: %s", args, code, want, stderr)
		}
		if want != 0 {
			return nil
		}
		all, err := npz.ReadAll(out)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	numbers := func(a map[string]*npz.Array) []float64 {
		x, err := a["x"].Float64()
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	for _, sampler := range []string{"euler", "ddim:eta=1", "heun", "dpmpp-2m", "unipc", "sa", "pndm", "lcm"} {
		pixel := []string{"--model", "fashion", "--classes", "7", "--seeds", "3,4", "--steps", "5", "--sampler", sampler, "--init-image", file("shoe.png"), "--strength", "0.6"}
		plain := numbers(draw(0, pixel...))
		if got := numbers(draw(0, append(pixel, "--mask", file("all.png"))...)); !slices.Equal(got, plain) {
			t.Errorf("%s: a mask that draws everything is not image to image", sampler)
		}
		for name, keeps := range map[string]func(i int) bool{"none.png": func(int) bool { return true }, "left.png": func(i int) bool { return i%28 >= 13 }} {
			got, differ := numbers(draw(0, append(pixel, "--mask", file(name))...)), false
			for i, v := range got {
				x, y := i%28, i/28%28
				if want := float64(uint8(9*(x*y%28+x%3)))/127.5 - 1; keeps(i) && math.Abs(v-want) > 1e-12 {
					t.Fatalf("%s: %s: element %d is %g, kept was %g", sampler, name, i, v, want)
				} else if !keeps(i) {
					differ = differ || math.Abs(v-want) > 0.05
				}
			}
			if name == "left.png" && !differ {
				t.Errorf("%s: nothing was drawn", sampler)
			}
		}
	}
	// latents: what is kept is what the autoencoder makes of the picture
	latent := []string{"--model", sd, "--prompt", "a cat", "--steps", "4", "--init-image", pipes + "/inputs/picture.png", "--strength", "0.7"}
	plain := draw(0, latent...)
	if got := draw(0, append(latent, "--mask", file("all.png"))...); !slices.Equal(numbers(got), numbers(plain)) {
		t.Error("a mask that draws everything is not image to image, on latents")
	}
	kept := draw(0, append(latent, "--mask", file("none.png"), "--seed", "8")...)
	again := draw(0, append(latent, "--mask", file("none.png"), "--seed", "9", "--strength", "1", "--sampler", "euler-ancestral")...)
	if !slices.Equal(numbers(kept), numbers(again)) {
		t.Error("a mask that keeps everything gives latents that depend on the run")
	}
	half := numbers(draw(0, append(latent, "--mask", file("left.png"))...))
	for i, v := range numbers(kept) { // 16 columns: 13/28 of 32 pixels are 14.9, so that seven columns of two pixels are drawn, and the eighth by its first
		if i%16 >= 8 && half[i] != v {
			t.Fatalf("latent %d is %g, kept was %g", i, half[i], v)
		}
	}
	// a run with a mask goes on from its picture's text
	code, _, stderr := world(nil, append([]string{"sample", "--quiet", "--out", file("a.png")}, append(latent, "--mask", file("left.png"))...)...)
	if code != 0 {
		t.Fatal(stderr)
	}
	code, _, stderr = world(nil, "sample", "--quiet", "--from", file("a.png"), "--out", file("b.png"))
	a, _ := os.ReadFile(file("a.png"))
	if b, err := os.ReadFile(file("b.png")); code != 0 || err != nil || !slices.Equal(a, b) {
		t.Errorf("a masked picture drawn again from its text is another one: %s", stderr)
	}
	// steering by resampling keeps it too, correctors refuse
	mask := []string{"steer", "--quiet", "--model", "fashion", "--classes", "7", "--particles", "3", "--steps", "4", "--seeds", "1", "--init-image", file("shoe.png"), "--mask", file("none.png"), "--out"}
	if code, _, stderr := world(nil, append(mask, file("fk"), "--reward", "mean(x0)")...); code != 0 {
		t.Fatal(stderr)
	}
	m, err := readPicture(file("fk/000000/000001.png"))
	if err != nil {
		t.Fatal(err)
	}
	steered, _ := pixels.Array(m, []int{1, 28, 28})
	for i, v := range steered {
		if want := float64(uint8(9*(i%28*(i/28)%28+i%28%3)))/127.5 - 1; math.Abs(v-want) > 2.0/255+1e-9 {
			t.Fatalf("steering: pixel %d is %g, kept was %g", i, v, want)
		}
	}
	if code, _, stderr := world(nil, append(mask, file("fkc"), "--method", "fkc", "--cfg-scale", "2")...); code == 0 || !strings.Contains(stderr, "keeps no part of the state") {
		t.Errorf("a corrector with a mask: exit code %d: %s", code, stderr)
	}
	// so does image to image with a consistency model, whose grid depends on the strength
	lcm := []string{"--model", pipe(t, "lcm"), "--prompt", "a cat", "--steps", "3", "--init-image", pipes + "/inputs/picture.png", "--strength", "0.5"}
	if code, _, stderr := world(nil, append([]string{"sample", "--quiet", "--out", file("c.png")}, lcm...)...); code != 0 {
		t.Fatal(stderr)
	}
	if code, _, stderr := world(nil, "sample", "--quiet", "--from", file("c.png"), "--out", file("d.png")); code != 0 {
		t.Fatal(stderr)
	}
	if code, _, stderr := world(nil, append([]string{"sample", "--quiet", "--from", file("c.png"), "--out", file("e.png")}, "--strength", "0.9")...); code != 0 {
		t.Fatal(stderr)
	}
	c, _ := os.ReadFile(file("c.png"))
	d, _ := os.ReadFile(file("d.png"))
	if e, _ := os.ReadFile(file("e.png")); len(c) == 0 || !slices.Equal(c, d) || slices.Equal(c, e) {
		t.Error("a picture of a consistency model drawn again from its text is another one, or its strength does nothing")
	}
	paint := pipe(t, "sd1-paint")
	for _, c := range []struct{ args, want string }{
		{"--model|fashion|--mask|" + file("all.png"), "--mask needs --init-image"},
		{"--model|" + paint + "|--prompt|x", "it needs --init-image and --mask"},
		{"--model|fashion|--sampler|rk45|--init-image|" + file("shoe.png") + "|--mask|" + file("all.png"), "places its own steps"},
		{"--model|fashion|--init-image|" + file("shoe.png") + "|--mask|" + file("wide.png"), "give a mask of the picture's proportions"},
		{"--model|fashion|--rng|mersenne", "want torch or torch-cuda"},
		{"--model|fashion|--rng|torch-cuda:threads=0", "threads=N"},
	} {
		code, _, stderr := world(nil, append([]string{"sample", "--out", file("z.npz"), "--steps", "2"}, strings.Split(c.args, "|")...)...)
		if code != 2 || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") > 2 {
			t.Errorf("%s: exit code %d: %s", c.args, code, stderr)
		}
	}
}

// TestRNG: the start of image k is the stream of seed N+k, torch's or that of a CUDA device, and --noise torch goes on in
// the same stream.
func TestRNG(t *testing.T) {
	target := filepath.Join(t.TempDir(), "t.json")
	text := `{"type": "mixture", "weights": [1], "means": [[0, 0, 0, 0]], "vars": [[1, 1, 1, 1]], "process": {"type": "vp-discrete"}, "prediction": "eps"}`
	if err := os.WriteFile(target, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	start := func(args ...string) []float64 {
		out := filepath.Join(t.TempDir(), "x.npz")
		code, _, stderr := world(nil, append([]string{"sample", "--model", target, "--seed", "5", "--count", "2", "--steps", "3", "--trajectory", out, "--out", out + "2.npz", "--quiet"}, args...)...)
		if code != 0 {
			t.Fatal(stderr)
		}
		all, err := npz.ReadAll(out, "x")
		if err != nil {
			t.Fatal(err)
		}
		x, _ := all["x"].Float64()
		return x
	}
	cpu, cuda := start(), start("--rng", "torch-cuda")
	want := make([]float64, 8)
	for k := range 2 {
		rng.NewTorch(5 + uint64(k)).NormalF64From32(want[4*k : 4*k+4])
	}
	if !slices.Equal(cpu[:8], want) {
		t.Errorf("starts %v, want %v", cpu[:8], want)
	}
	for k := range 2 {
		rng.NewTorchCUDA(5+uint64(k), 0).NormalF64From32(want[4*k : 4*k+4])
	}
	if !slices.Equal(cuda[:8], want) {
		t.Errorf("starts %v of a device, want %v", cuda[:8], want)
	}
	noisy := []string{"--sampler", "euler-ancestral", "--noise", "torch"}
	a, b := start(noisy...), start(append(noisy, "--rng", "torch-cuda")...)
	if slices.Equal(a[8:], b[8:]) || !slices.Equal(b[:8], want) {
		t.Error("--noise torch does not follow --rng")
	}
	c := start("--sampler", "euler-ancestral", "--rng", "torch-cuda", "--batch", "1")
	if d := start("--sampler", "euler-ancestral", "--rng", "torch-cuda"); !slices.Equal(c, d) || slices.Equal(c[8:], b[8:]) {
		t.Error("step noise depends on the batch, or is the device's without being asked for")
	}
}

// TestPreview: previews of latents are pictures of the final one's colours; with the model's own autoencoder they are the
// final picture at the end.
func TestPreview(t *testing.T) {
	dir, sd := t.TempDir(), pipe(t, "sd1")
	out, name := filepath.Join(dir, "a.png"), filepath.Join(dir, "p.png")
	run := func(want int, args ...string) string {
		t.Helper()
		code, _, stderr := world(nil, append([]string{"sample", "--model", sd, "--prompt", "a cat", "--steps", "4", "--quiet", "--out", out}, args...)...)
		if code != want {
			t.Fatalf("%q: exit code %d, want %d: %s", args, code, want, stderr)
		}
		return stderr
	}
	load := func(name string) image.Image {
		t.Helper()
		m, err := readPicture(name)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	run(0, "--preview", name+":2", "--init-image", pipes+"/inputs/picture.png", "--strength", "0.5", "--cfg-scale", "1", "--steps", "8")
	if list, _ := filepath.Glob(filepath.Join(dir, "p-*.png")); len(list) != 2 {
		t.Errorf("previews %v, want those of steps 6 and 8", list)
	}
	small, final := load(filepath.Join(dir, "p-0000-0008.png")), load(out)
	if b := small.Bounds(); b.Dx() != 16 || b.Dy() != 16 {
		t.Errorf("a linear preview of %v", b)
	}
	// correlation of the preview with the picture's squares: a random decoder is far from linear, and still they belong together
	x, _ := pixels.Array(small, []int{3, 16, 16})
	y, _ := pixels.Array(final, []int{3, 32, 32})
	var sx, sy, xx, yy, xy float64
	for i, v := range x {
		c, r, q := i/256, i/16%16, i%16
		w := (y[c*1024+2*r*32+2*q] + y[c*1024+2*r*32+2*q+1] + y[c*1024+(2*r+1)*32+2*q] + y[c*1024+(2*r+1)*32+2*q+1]) / 4
		sx, sy, xx, yy, xy = sx+v, sy+w, xx+v*v, yy+w*w, xy+v*w
	}
	n := float64(len(x))
	if r := (xy - sx*sy/n) / math.Sqrt((xx-sx*sx/n)*(yy-sy*sy/n)); r < 0.4 {
		t.Errorf("preview and picture correlate by %.2f", r)
	} else {
		t.Logf("preview and picture correlate by %.2f", r)
	}
	run(0, "--preview", name, "--preview-vae", filepath.Join(sd, "vae"))
	a, _ := pixels.Array(load(filepath.Join(dir, "p-0000-0004.png")), []int{3, 32, 32})
	y, _ = pixels.Array(load(out), []int{3, 32, 32})
	off := 0.0
	for i, v := range a { // the last prediction is the last state of DDIM, but for a final alpha below 1
		off = max(off, math.Abs(v-y[i]))
	}
	if off > 0.1 {
		t.Errorf("the last preview by the autoencoder differs from the picture by %g", off)
	}
	if msg := run(2, "--preview", "sepia"); !strings.Contains(msg, "ends in .png") {
		t.Error(msg)
	}
	if msg := run(2, "--preview", name, "--preview-vae", filepath.Join(pipe(t, "sd3"), "vae")); !strings.Contains(msg, "of 16 channels, the model of 4") {
		t.Error(msg)
	}
	if code, _, stderr := world(nil, "sample", "--model", "fashion", "--steps", "2", "--count", "1", "--quiet", "--preview", "ascii", "--preview-vae", sd, "--out", out); code != 2 || !strings.Contains(stderr, "without an autoencoder") {
		t.Errorf("%d %s", code, stderr)
	}
}

// TestMeasureText: bench, contact sheets and searches see the pictures of latent models under their texts, whatever the batches.
func TestMeasureText(t *testing.T) {
	dir, sd := t.TempDir(), pipe(t, "sd1")
	file := func(name string) string { return filepath.Join(dir, name) }
	run := func(args ...string) string {
		t.Helper()
		code, out, talk := world(nil, append(args, "--quiet")...)
		if code != 0 {
			t.Fatalf("%q: exit code %d: %s", args, code, talk)
		}
		return out
	}
	if err := os.WriteFile(file("texts"), []byte("a cat\na dog\nan owl\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ bench, sample []string }{
		"a text":      {[]string{"--prompt", "a cat", "--cfg-scale", "3"}, []string{"--prompt", "a cat", "--cfg-scale", "3"}},
		"three texts": {[]string{"--prompts", file("texts"), "--cfg-scale", "3"}, []string{"--prompts", file("texts"), "--cfg-scale", "3"}},
		"batches":     {[]string{"--prompts", file("texts"), "--cfg-scale", "3", "--batch", "2"}, []string{"--prompts", file("texts"), "--cfg-scale", "3"}},
		"no text":     {nil, []string{"--cfg-scale", "1"}},
	} {
		folder := filepath.Join(dir, name)
		run(append([]string{"sample", "--model", sd, "--sampler", "euler", "--steps", "3", "--count", "4", "--out", folder + "/"}, c.sample...)...)
		var want struct{ Value float64 }
		if err := json.Unmarshal([]byte(run("metrics", "vendi", folder, "--extractor", "pixels", "--json")), &want); err != nil || !(want.Value > 1) {
			t.Fatal(err, want)
		}
		run(append([]string{"bench", "--model", sd, "--samplers", "euler", "--steps", "3", "--count", "4", "--metric", "vendi", "--extractor", "pixels", "--out", folder + ".bench"}, c.bench...)...)
		var got struct {
			Cells []struct{ Scores []struct{ Value float64 } }
		}
		readJSON(t, filepath.Join(folder+".bench", "results.json"), &got)
		if len(got.Cells) != 1 || len(got.Cells[0].Scores) != 1 || math.Abs(got.Cells[0].Scores[0].Value-want.Value) > 1e-9 {
			t.Errorf("%s: the bench says %+v, the pictures %g", name, got, want.Value)
		}
	}
	run("contact", "--model", sd, "--prompt", "a cat", "--steps", "2", "--seeds", "0-2", "--guiders", "none;cfg:w=5", "--out", file("sheet.png"))
	m, err := readPicture(file("sheet.png"))
	if err != nil || m.Bounds().Dx() < 3*32 || m.Bounds().Dy() < 2*32 {
		t.Errorf("the sheet: %v %v", err, m.Bounds())
	}
	out := run("search", "s4s", "--model", sd, "--prompts", file("texts"), "--cfg-scale", "2", "--steps", "2", "--fine", "4", "--count", "2", "--evaluations", "3", "--objective", "features", "--extractor", "pixels", "--json", "--out", file("s.json"))
	if !strings.Contains(out, `"event":"found"`) {
		t.Error(out)
	}
	run("search", "s4s", "--model", sd, "--prompts", file("texts"), "--cfg-scale", "2", "--steps", "2", "--fine", "4", "--count", "2", "--evaluations", "3", "--objective", "features", "--extractor", "pixels", "--workers", "2", "--shard", "2", "--out", file("w.json"))
	one, _ := os.ReadFile(file("s.json"))
	if two, err := os.ReadFile(file("w.json")); err != nil || !slices.Equal(one, two) {
		t.Errorf("two workers find another schedule: %v\n%s\n%s", err, one, two)
	}
	run("distill", "--model", sd, "--prompt", "a cat", "--cfg-scale", "2", "--steps", "3", "--particles", "2", "--seeds", "0,1", "--out", file("sets.png"))
	run("distill", "--model", sd, "--prompt", "a cat", "--cfg-scale", "2", "--steps", "3", "--particles", "2", "--seeds", "0,1", "--out", file("sets/"))
	if list, err := filepath.Glob(file("sets/*/*.png")); err != nil || len(list) != 4 {
		t.Errorf("%v %v", list, err)
	} else if m, err := readPicture(list[0]); err != nil || m.Bounds().Dx() != 32 {
		t.Errorf("%v %v", m.Bounds(), err)
	}
	run("bench", "--verb", "distill", "--model", sd, "--prompt", "a cat", "--steps", "3", "--particles", "2", "--seeds", "0-1", "--sweep", "gamma=0,50", "--metric", "apart,vendi", "--extractor", "pixels", "--out", file("sets.bench"))
	run("search", "gits", "--model", sd, "--prompt", "a cat", "--cfg-scale", "2", "--steps", "2", "--fine", "4", "--count", "2", "--out", file("g.json"))
}

// TestInvertText: pictures of a text model are inverted as latents under their text, and the text counts.
func TestInvertText(t *testing.T) {
	dir, sd := t.TempDir(), pipe(t, "sd1")
	file := func(name string) string { return filepath.Join(dir, name) }
	run := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		code, out, talk := world(nil, args...)
		if code != want {
			t.Fatalf("%q: exit code %d, want %d: %s", args, code, want, talk)
		}
		return out, talk
	}
	numbers := func(name string) []float64 {
		t.Helper()
		a, err := npz.ReadAll(file(name), "x")
		if err != nil {
			t.Fatal(err)
		}
		v, err := a["x"].Float64()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	steps := []string{"--model", sd, "--steps", "30", "--schedule", "lambda", "--prompt"}
	run(0, append([]string{"sample", "--quiet", "--sampler", "euler", "--cfg-scale", "1", "--count", "2", "--out", file("cats/")}, append(steps, "a cat")...)...)
	out, _ := run(0, append([]string{"invert", "--input", file("cats/"), "--round-trip", "--json", "--out", file("cat.npz")}, append(steps, "a cat")...)...)
	var done struct{ RMS, Worst float64 }
	if err := json.Unmarshal([]byte(strings.TrimSpace(out)), &done); err != nil || !(done.RMS < 1e-3) || done.RMS == 0 {
		t.Errorf("there and back: %v %s", err, out)
	}
	cat := numbers("cat.npz")
	if len(cat) != 2*4*16*16 {
		t.Fatalf("%d numbers", len(cat))
	}
	// the sampler makes the latents of the pictures again
	run(0, append([]string{"sample", "--quiet", "--sampler", "euler", "--cfg-scale", "1", "--count", "2", "--float", "--init", file("cat.npz"), "--end-step", "29", "--out", file("again.npz")}, append(steps, "a cat")...)...)
	run(0, append([]string{"invert", "--quiet", "--input", file("again.npz"), "--out", file("cat2.npz")}, append(steps, "a cat")...)...)
	for i, v := range numbers("cat2.npz") {
		if d := v - cat[i]; max(d, -d) > 0.02 {
			t.Fatalf("noise %d of the latents is %g, of the pictures %g", i, v, cat[i])
		}
	}
	run(0, append([]string{"invert", "--quiet", "--input", file("cats/"), "--out", file("dog.npz")}, append(steps, "a dog")...)...)
	run(0, "invert", "--quiet", "--input", file("cats/"), "--out", file("none.npz"), "--model", sd, "--steps", "30", "--schedule", "lambda")
	if dog, none := numbers("dog.npz"), numbers("none.npz"); slices.Equal(dog, cat) || slices.Equal(none, cat) || slices.Equal(none, dog) {
		t.Error("the text does not count")
	}
	if _, talk := run(3, append([]string{"invert", "--input", file("cats/"), "-W", "48", "--out", file("x.npz")}, append(steps, "a cat")...)...); !strings.Contains(talk, "the model wants 3x32x48") {
		t.Error(talk)
	}
	if _, talk := run(1, append([]string{"sample", "--end-step", "9", "--out", file("x.png")}, append(steps, "a cat")...)...); !strings.Contains(talk, "a name that ends in .npz") {
		t.Error(talk)
	}
	if out, _ := run(0, append([]string{"likelihood", "--input", file("cats/"), "--count", "1"}, append(steps, "a cat")...)...); !strings.Contains(out, "bits/dim") {
		t.Error(out)
	}
}

// TestPictureEnergy: an energy of pictures is lowered through the decoder, by the predicted data and through the network,
// and rewards see pictures too.
func TestPictureEnergy(t *testing.T) {
	dir, sd := t.TempDir(), pipe(t, "sd1")
	out := filepath.Join(dir, "o.npz")
	light := func(args ...string) float64 {
		t.Helper()
		code, _, stderr := world(nil, append([]string{"sample", "--model", sd, "--prompt", "a cat", "--steps", "4", "--seeds", "1,2", "--quiet", "--float", "--out", out}, args...)...)
		if code != 0 {
			t.Fatalf("%q: exit code %d: %s", args, code, stderr)
		}
		sum := 0.0
		b := bytesOf(t, out, "images")
		for _, v := range b {
			sum += float64(v)
		}
		return sum / float64(len(b))
	}
	plain := light("--guider", "cfg:w=2")
	for _, way := range []string{"through=x0,scale=4000", "through=model,scale=400,clip=8"} {
		dark, bright := light("--guider", "cfg:w=2", "--guider", "energy:expr=mean(x0),"+way), light("--guider", "cfg:w=2", "--guider", "energy:expr=-mean(x0),"+way)
		t.Logf("%s: mean of the bytes %.1f, %.1f plain, %.1f", way, dark, plain, bright)
		if dark > plain-3 || bright < plain+3 {
			t.Errorf("%s: the energy moves the mean of the bytes from %.1f to %.1f and %.1f", way, plain, dark, bright)
		}
	}
	// a script that asks for three colours, and one that sees latents of four channels
	file := filepath.Join(dir, "red.star")
	for _, c := range []struct {
		on   string
		size int
		code int
	}{{"picture", 32, 0}, {"state", 16, 0}, {"picture", 16, 2}, {"state", 32, 2}} {
		text := "def energy(x0, ctx):\n    if x0.shape[1] != " + strconv.Itoa(c.size) + ": fail(\"not that size\")\n    return mean(x0)\n"
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := world(nil, "sample", "--model", sd, "--prompt", "a cat", "--steps", "2", "--quiet", "--guider", "energy:file="+file+",on="+c.on, "--out", out)
		if (code == 0) != (c.code == 0) || code != 0 && !strings.Contains(stderr, "not that size") {
			t.Errorf("%s of %d: exit code %d, want %d: %s", c.on, c.size, code, c.code, stderr)
		}
	}
	code, stdout, stderr := world(nil, "steer", "--model", sd, "--prompt", "a cat", "--steps", "4", "--particles", "3", "--seeds", "1", "--reward", "mean(x0)", "--json", "--quiet", "--out", filepath.Join(dir, "st"))
	if code != 0 {
		t.Fatal(stderr)
	}
	_, text, _ := strings.Cut(stdout, `"reward_winner":`)
	won, err := strconv.ParseFloat(text[:max(0, strings.IndexAny(text, ",}"))], 64)
	m, err2 := readPicture(filepath.Join(dir, "st", "000000", "000001.png"))
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err, stdout)
	}
	x, _ := pixels.Array(m, []int{3, 32, 32})
	sum := 0.0
	for _, v := range x {
		sum += v / float64(len(x))
	}
	if math.Abs(sum-won) > 0.05 { // the picture is rounded, and clipped where the reward is not
		t.Errorf("the winner's reward is %g, the mean of its picture %g", won, sum)
	}
}

// TestPrompts: sizes and prompts at their edges, and several prompts in one run whatever the batch.
func TestPrompts(t *testing.T) {
	dir := t.TempDir()
	folders := map[string]string{}
	for _, name := range []string{"sd1", "sd3", "pixart"} {
		folders[name] = pipe(t, name)
	}
	out := filepath.Join(dir, "o.npz")
	for _, c := range []struct {
		model string
		code  int
		args  string
		want  string
	}{
		{"sd1", 2, "-W|33", "a width of 33: want a multiple of 2"},
		{"sd1", 2, "-W|0", "--width 0: want a number of pixels"},
		{"sd1", 2, "-H|-8", "--height -8"},
		{"sd1", 2, "-W|2|-H|2", "too small for 2 levels"},
		{"sd1", 0, "-W|30|-H|26", ""}, // 15 by 13: odd at every level
		{"sd3", 2, "-W|34|-H|32", "multiple of the patches' 2"},
		{"sd3", 2, "-W|64|-H|32", "at most 24"},
		{"sd1", 0, "--prompt|", ""},
		{"sd1", 0, "--prompt|" + strings.Repeat("cat ", 120), "has 120 tokens, of which the text encoder reads 75"},
		{"sd1", 0, "--prompt|x|--negative-prompt|" + strings.Repeat("dog ", 80), "tokens, of which the text encoder reads 75"},
		{"pixart", 0, "--text-tokens|8|--prompt|a red fox in the rain", "of which the text encoder reads 7"},
		{"sd1", 0, "--prompt|a ((cat:1.2):0.5) (:1.2) ()|--negative-prompt|(rain:0)", ""},
	} {
		args := []string{"sample", "--model", folders[c.model], "--steps", "1", "--out", out}
		if !strings.Contains(c.args, "--prompt") {
			args = append(args, "--prompt", "x")
		}
		code, _, stderr := world(nil, append(args, strings.Split(c.args, "|")...)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%s %s: exit code %d, want %d with %q: %s", c.model, c.args, code, c.code, c.want, stderr)
		}
	}
	list := filepath.Join(dir, "prompts.txt")
	if err := os.WriteFile(list, []byte("a cat\n(red:1.3) dog\n\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	draw := func(args ...string) []byte {
		code, _, stderr := world(nil, append([]string{"sample", "--model", folders["sd1"], "--steps", "2", "--quiet", "--out", out}, args...)...)
		if code != 0 {
			t.Fatal(stderr)
		}
		return bytesOf(t, out, "images")
	}
	both := draw("--prompts", list, "--negative-prompt", "(rain:0.5)", "--count", "2", "--batch", "3")
	if !slices.Equal(both, draw("--prompts", list, "--negative-prompt", "(rain:0.5)", "--count", "2", "--batch", "1")) {
		t.Error("pictures of several prompts depend on the batch")
	}
	if !slices.Equal(both[len(both)/2:], draw("--prompt", "(red:1.3) dog", "--negative-prompt", "(rain:0.5)", "--count", "2")) {
		t.Error("the second line is not its prompt")
	}
	if slices.Equal(draw("--prompt", "x"), draw("--prompt", "x", "--cfg-scale", "1")) || !slices.Equal(draw("--prompt", "x"), draw("--prompt", "x", "--cfg-scale", "7.5")) {
		t.Error("a text is not guided by its pipeline's usual scale")
	}
}

// TestPipelinesDoc runs every command line of docs/pipelines.md.
func TestPipelinesDoc(t *testing.T) {
	all := blocks(t, "../../docs/pipelines.md")
	dir := t.TempDir()
	for from, to := range map[string]string{"sd1": "sd1", "sd1-paint": "sd1-inpaint", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux", "pixart": "pixart", "lcm": "lcm", "turbo": "turbo"} {
		if err := os.Rename(pipe(t, from), filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string, text []byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, text, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"inputs/picture.png": "photo.png", "inputs/mask.png": "mask.png", "lora/unet.safetensors": "style.safetensors", "lora/text.safetensors": "light.safetensors"} {
		text, err := os.ReadFile(filepath.Join(pipes, from))
		if err != nil {
			t.Fatal(err)
		}
		file(to, text)
	}
	for _, name := range []string{"shoe.png", "shoe-mask.png"} {
		text, err := os.ReadFile(filepath.Join(dir, "mask.png"))
		if err != nil {
			t.Fatal(err)
		}
		file(name, text)
	}
	file("prompts.txt", []byte("a fox\na cat\n"))
	tiny := `{"_class_name": "AutoencoderTiny", "encoder_block_out_channels": [4, 4], "decoder_block_out_channels": [4, 4], "num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1], "latent_channels": 4, "block_out_channels": [4, 4]}`
	file("taesd/config.json", []byte(tiny))
	cfg, err := diffusers.ReadConfig(filepath.Join(dir, "taesd", "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	writeFormula(t, filepath.Join(dir, "taesd", "diffusion_pytorch_model.safetensors"), cfg)
	t.Chdir(dir)
	n := 0
	for _, b := range all {
		for _, line := range strings.Split(strings.TrimSpace(b[1]), "\n") {
			n++
			if code, _, stderr := world(nil, words(quick(line))[1:]...); code != 0 {
				t.Errorf("%s\nexit code %d: %s", line, code, stderr)
			}
		}
	}
	if n < 25 {
		t.Errorf("%d command lines", n)
	}
}
