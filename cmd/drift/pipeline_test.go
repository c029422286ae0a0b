package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/internal/npz"
)

// TestGoldenPipelines draws text-to-image and class-conditional pictures from folders and compares the bytes with
// diffusers': at most one value of a thousand off by one.
func TestGoldenPipelines(t *testing.T) {
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	for _, c := range []struct {
		name       string
		row, steps int
		args       string
	}{
		{"pipe-sd1", 0, 8, "--prompt|A photograph of an astronaut riding a horse|--seed|3|--steps|8|--cfg-scale|5"},
		{"pipe-sd1", 1, 8, "--prompt|a cat's portrait, oil on canvas|--seed|4|--steps|8|--cfg-scale|5"},
		{"pipe-dit", 1, 6, "--class|9|--seed|12|--steps|6|--cfg-scale|4"},
		{"pipe-sd3", 0, 6, "--prompt|A red cube on top of a blue sphere|--negative-prompt|rain|--seed|21|--steps|6|--cfg-scale|3|-W|32|-H|32|--text-tokens|16"},
	} {
		dir := filepath.Join(root, "models", c.name)
		out := filepath.Join(t.TempDir(), "out.npz")
		args := append([]string{"sample", "--model", dir, "--out", out, "--quiet", "--json"}, strings.Split(c.args, "|")...)
		code, stdout, stderr := world(nil, args...)
		if code != 0 {
			t.Fatalf("%s: exit code %d: %s", c.name, code, stderr)
		}
		if want := fmt.Sprintf(`"nfe":%d,`, 2*c.steps); !strings.Contains(stdout, want) {
			t.Errorf("%s: no %s in %s", c.name, want, stdout)
		}
		got := bytesOf(t, out, "images")
		all, err := npz.ReadAll(filepath.Join(dir, "expected.npz"), "images_uint8")
		if err != nil {
			t.Fatal(err)
		}
		want := all["images_uint8"].Data.([]byte)[c.row*len(got):][:len(got)]
		off := 0
		for i := range got {
			if d := int(got[i]) - int(want[i]); d < -1 || d > 1 {
				t.Fatalf("%s: byte %d is %d, want %d", c.name, i, got[i], want[i])
			} else if d != 0 {
				off++
			}
		}
		if off > len(got)/1000 {
			t.Errorf("%s: %d of %d bytes are off by one", c.name, off, len(got))
		}
	}
}

// TestGoldenGraphs draws the pictures of pipe-sd1 from the same networks as ONNX graphs, and those of pipe-sd3 where
// DRIFT_ONNX_EXPORTS names what models/open/testdata/export.py made.
func TestGoldenGraphs(t *testing.T) {
	lib := os.Getenv("DRIFT_ORT_LIB")
	if lib == "" {
		t.Skip("no ONNX Runtime (DRIFT_ORT_LIB): skipped")
	}
	sd1, sd3 := filepath.Join("..", "..", "models", "open", "testdata", "onnx-sd1"), filepath.Join(os.Getenv("DRIFT_ONNX_EXPORTS"), "onnx-sd3")
	for _, c := range []struct {
		dir      string
		row, nfe int
		args     string
	}{
		{sd1, 0, 16, "--prompt|A photograph of an astronaut riding a horse|--seed|3|--steps|8|--cfg-scale|5"},
		{sd1, 1, 16, "--prompt|a cat's portrait, oil on canvas|--seed|4|--steps|8|--cfg-scale|5"},
		{sd3, 0, 12, "--prompt|A red cube on top of a blue sphere|--negative-prompt|rain|--seed|21|--steps|6|--cfg-scale|3|-W|32|-H|32|--text-tokens|16"},
	} {
		if c.dir == sd3 && os.Getenv("DRIFT_ONNX_EXPORTS") == "" {
			continue
		}
		all, err := npz.ReadAll(filepath.Join(c.dir, "expected.npz"), "images_uint8")
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "out.npz")
		line := append([]string{"sample", "--model", c.dir, "--ort-lib", lib, "--out", out, "--quiet", "--json"}, strings.Split(c.args, "|")...)
		code, stdout, stderr := world(nil, line...)
		if code != 0 || !strings.Contains(stdout, fmt.Sprintf(`"nfe":%d,`, c.nfe)) {
			t.Fatalf("exit code %d: %s %s", code, stdout, stderr)
		}
		got := bytesOf(t, out, "images")
		want := all["images_uint8"].Data.([]byte)[c.row*len(got):][:len(got)]
		off := 0
		for i := range got {
			if d := int(got[i]) - int(want[i]); d < -1 || d > 1 {
				t.Fatalf("%s, row %d: byte %d is %d, want %d", c.dir, c.row, i, got[i], want[i])
			} else if d != 0 {
				off++
			}
		}
		if off > len(got)/1000 {
			t.Errorf("%s, row %d: %d of %d bytes are off by one", c.dir, c.row, off, len(got))
		}
	}
}

func bytesOf(t *testing.T, file, name string) []byte {
	t.Helper()
	all, err := npz.ReadAll(file, name)
	if err != nil {
		t.Fatal(err)
	}
	return all[name].Data.([]byte)
}

// TestPipelineFlags: image to image, sizes, weights of words, and going on from a picture's own text.
func TestPipelineFlags(t *testing.T) {
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	sd, dir := filepath.Join(root, "models", "pipe-sd1"), t.TempDir()
	run := func(want int, args ...string) string {
		t.Helper()
		code, _, stderr := world(nil, append([]string{"sample", "--quiet", "--steps", "3"}, args...)...)
		if code != want {
			t.Fatalf("%q: exit code %d, want %d: %s", args, code, want, stderr)
		}
		return stderr
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	draw := func(name string, args ...string) []byte {
		t.Helper()
		run(0, append([]string{"--model", sd, "--out", file(name)}, args...)...)
		return bytesOf(t, file(name), "images")
	}
	plain := draw("a.npz", "--prompt", "a red cat")
	if slices.Equal(plain, draw("b.npz", "--prompt", "a (red:1.8) cat")) {
		t.Error("the weight of a word changes nothing")
	}
	if !slices.Equal(plain, draw("c.npz", "--prompt", "a (red:1) cat")) {
		t.Error("a weight of 1 changes the picture")
	}
	if slices.Equal(plain, draw("d.npz", "--prompt", "a red cat", "--clip-skip", "1")) {
		t.Error("clip skip changes nothing")
	}
	if wide := draw("e.npz", "--prompt", "a red cat", "-W", "48", "-H", "32"); len(wide) != 48*32*3 {
		t.Errorf("%d bytes for a picture of 48x32", len(wide))
	}
	if tiled := draw("f.npz", "--prompt", "a red cat", "-W", "64", "--tile", "16"); len(tiled) != 64*32*3 {
		t.Errorf("%d bytes for a picture of 64x32", len(tiled))
	}
	run(0, "--model", sd, "--prompt", "x", "--negative-prompt", "y", "--out", file("g.png"))
	run(0, "--from", file("g.png"), "--out", file("h.png"))
	a, err1 := os.ReadFile(file("g.png"))
	b, err2 := os.ReadFile(file("h.png"))
	if err1 != nil || err2 != nil || !slices.Equal(a, b) {
		t.Error("a picture drawn again from its text is another one")
	}
	run(0, "--model", sd, "--prompt", "x", "--init-image", file("g.png"), "--strength", "0.7", "--out", file("i.png"))
	for _, c := range []struct {
		code       int
		args, want string
	}{
		{2, "-W|33", "multiple of 2"}, {3, "--lora|../../models/diffusers/testdata/lora/kohya.safetensors:0.5", "do not fit"}, {1, "--clip-skip|9", "layers cannot be skipped"}, {3, "--vae|" + filepath.Join(root, "models", "vae-kl-no-quant"), "the autoencoder on 16"},
	} {
		if msg := run(c.code, append([]string{"--model", sd, "--prompt", "x", "--out", file("z.png")}, strings.Split(c.args, "|")...)...); !strings.Contains(msg, c.want) {
			t.Errorf("%s: %s", c.args, msg)
		}
	}
}
