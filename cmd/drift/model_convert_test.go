package main

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"drift/internal/npz"
	"drift/internal/safetensors"
)

const pickles = "../../internal/testdata/files/pickle"

// TestConvertScripts runs the binary on the scripts in testdata/convert, with the torch files of the corpus at hand.
func TestConvertScripts(t *testing.T) {
	corpus, err := filepath.Abs(pickles)
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/convert",
		Setup: func(e *testscript.Env) error {
			e.Setenv("NO_COLOR", "1")
			e.Setenv("CORPUS", corpus)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"rc": rc},
	})
}

// TestConvertCorpus converts every file of the corpus: exit code 0 and a file that opens, or 3 and nothing.
func TestConvertCorpus(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(pickles, "*valid-*"))
	if err != nil || len(files) != 39 {
		t.Fatal(len(files), err)
	}
	for _, in := range files {
		dir := t.TempDir()
		out := filepath.Join(dir, "x.safetensors")
		want := 0
		if strings.HasPrefix(filepath.Base(in), "invalid-") {
			want = exitRefused
		}
		if code, _, stderr := world(nil, "model", "convert", in, out); code != want {
			t.Errorf("%s: exit code %d, want %d: %s", in, code, want, stderr)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != map[int]int{0: 1, exitRefused: 0}[want] {
			t.Errorf("%s: left %v, %v", in, left, err)
		}
		if want == 0 {
			if code, _, stderr := world(nil, "model", "verify", out); code != 0 {
				t.Errorf("%s: the result: %s", in, stderr)
			}
		}
	}
}

// TestConvertFolders converts networks of the fixtures that came as torch files; they must hold the very bytes of the
// safetensors that they were made of, and compute what torch computed.
func TestConvertFolders(t *testing.T) {
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	source, err := safetensors.Open(filepath.Join(root, "models", "unet2d-plain", "diffusion_pytorch_model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	for _, name := range []string{"variant-bin", "variant-bin-legacy"} {
		out := filepath.Join(t.TempDir(), "out")
		if code, _, stderr := world(nil, "model", "convert", filepath.Join(root, "models", name), out); code != 0 {
			t.Fatal(name, stderr)
		}
		r, err := safetensors.Open(filepath.Join(out, "diffusion_pytorch_model.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Tensors()) != len(source.Tensors()) {
			t.Errorf("%s: %d tensors of %d", name, len(r.Tensors()), len(source.Tensors()))
		}
		for _, x := range source.Tensors() {
			a, err := source.Bytes(x.Name)
			if err != nil {
				t.Fatal(err)
			}
			b, err := r.Bytes(x.Name)
			if y, _ := r.Tensor(x.Name); err != nil || y.DType != x.DType || !bytes.Equal(a, b) {
				t.Errorf("%s: %s differs: %v", name, x.Name, err)
			}
		}
		_ = r.Close()
		io, result := filepath.Join(out, "io.npz"), filepath.Join(out, "out.npz")
		if code, _, stderr := world(nil, "model", "run", out, "--quiet", "--in", io, "--out", result); code != 0 {
			t.Fatal(name, stderr)
		}
		var a, b []float64
		for file, to := range map[string]*[]float64{io: &a, result: &b} {
			all, err := npz.ReadAll(file, "out")
			if err != nil {
				t.Fatal(err)
			}
			if *to, err = all["out"].Float64(); err != nil {
				t.Fatal(err)
			}
		}
		var d, n float64
		for i := range a {
			d += (a[i] - b[i]) * (a[i] - b[i])
			n += a[i] * a[i]
		}
		if e := math.Sqrt(d / n); !(e <= 2e-6) || len(a) != len(b) {
			t.Errorf("%s: out is off by %.2g", name, e)
		}
	}
}
