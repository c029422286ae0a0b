package reward

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/internal/npz"
)

func TestSplit(t *testing.T) {
	for in, want := range map[string][]string{
		"python3 score.py":        {"python3", "score.py"},
		` a  "b c" 'd "e"' f''g `: {"a", "b c", `d "e"`, "fg"},
		"''":                      {""},
		"":                        nil,
	} {
		if got, err := split(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	if _, err := split("a 'b"); err == nil {
		t.Error("an open quote")
	}
}

func TestParse(t *testing.T) {
	for line, want := range map[string]float64{
		`{"id": 3, "reward": 0.5}`:       0.5,
		`{"id": 3, "reward": -Infinity}`: math.Inf(-1),
		`{"id": 3, "reward": NaN}`:       math.NaN(),
		`{"id": 3, "reward": null}`:      math.NaN(),
		`{"id": 3, "reward": Infinity}`:  math.Inf(1),
		`{"id": 3, "reward": 1e2}`:       100,
	} {
		if a := parse([]byte(line)); a.err != nil || a.id != 3 || a.reward != want && !(math.IsNaN(a.reward) && math.IsNaN(want)) {
			t.Errorf("%s: %+v", line, a)
		}
	}
	for _, line := range []string{`{}`, `{"reward": 1}`, `hello`, `{"id": 1, "reward": "x"}`, `{"id": 1, "reward": [1]}`, `{"id": 1, "error": "no"}`, ``} {
		if a := parse([]byte(line)); a.err == nil {
			t.Errorf("%s: %+v", line, a)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{`{"id": 3, "reward": 0.5}`, `{"id": 3, "reward": NaN}`, `{"id"`, `NaN`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) { parse(line) })
}

func TestOpen(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	refs := filepath.Join(dir, "refs.npz")
	if err := npz.Write(refs, npz.Array{Name: "other", Shape: []int{1}, Data: []float64{1}}, npz.Array{Name: "x", Shape: []int{2, 2}, Data: []float64{1, 2, 3, 4}}); err != nil {
		t.Fatal(err)
	}
	r, err := Open("sum(load('"+refs+"')) + sum(x0)", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out, err := r.Score(ctx, make([]Point, 1), []float64{1, 1}, []int{2}, nil)
	if err != nil || out.Reward[0] != 12 {
		t.Errorf("%+v, %v", out, err)
	}
	if r.Files["refs.npz"] == "" {
		t.Errorf("the file's hash is not known: %v", r.Files)
	}
	c, err := Open("classifier:fashion:sneaker", Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	x := make([]float64, 28*28)
	s, err := c.Score(ctx, make([]Point, 1), x, []int{1, 28, 28}, nil)
	if err != nil || !(s.Reward[0] < 0) {
		t.Errorf("%+v, %v", s, err)
	}
	grad := make([]float64, len(x))
	if err := c.Gradient(ctx, make([]Point, 1), x, []int{1, 28, 28}, grad); err != nil || slices.Max(grad) == 0 {
		t.Errorf("gradient of the classifier: largest %g, %v", slices.Max(grad), err)
	}
	for text, want := range map[string]string{
		"":                         "needs an expression",
		"scorer.onnx":              "no such file",
		"classifier:sneaker":       "want classifier:NET:CLASS",
		"classifier:x.onnx:1":      "no such file",
		"exec:":                    "needs a command",
		"exec:no-such-program-xyz": "not found",
		"/no/such/file.star":       "no such file",
	} {
		r, err := Open(text, Options{})
		if err == nil {
			err = r.Check(ctx, []int{1, 28, 28}, 1)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
