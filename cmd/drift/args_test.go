package main

import (
	"bytes"
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/internal/npz"
)

func TestArrange(t *testing.T) {
	env := map[string]string{}
	a := &app{getenv: func(k string) string { return env[k] }}
	for _, c := range []struct{ in, want string }{
		{"sample", "sample"},
		{"--quiet sample", "sample --quiet=true"},
		{"sample --steps 10 -o x.npz", "sample --steps=10 --out=x.npz"},
		{"sample -m a.json -s 3 -n 4 -t 2", "sample --model=a.json --seed=3 --count=4 --threads=2"},
		{"sample --num_steps 7 --sigma_min=0.1 --S_churn 3", "sample --steps=7 --sigma-min=0.1 --s-churn=3"},
		{"sample --t-end -3 --cfg -1.5", "sample --t-end=-3 --cfg-scale=-1.5"},
		{"sample --steps 3 --num-inference-steps 5", "sample --steps=5"},
		{"sample --guider a --guider b:x=1,y=2", "sample --guider=a --guider=b:x=1,y=2"},
		{"sample --resume=false --float", "sample --resume=false --float=true"},
		{"list samplers --json", "list --json=true -- samplers"},
		{"list --json samplers", "list --json=true -- samplers"},
		{"model run x --in a --out b", "model run --in=a --out=b -- x"},
		{"model --json info x", "model info --json=true -- x"},
		{"metadata -- --odd.png", "metadata -- --odd.png"},
		{"metadata -5", "metadata -- -5"},
		{"sample --sampling-method heun --scheduler karras", "sample --sampler=heun --schedule=karras"},
		{"--version", "version"},
		{"sample -h", "sample --help=true"},
	} {
		got, err := arrange(a.cli(), strings.Fields(c.in), a.getenv)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%q became %q, %v; want %q", c.in, got, err, c.want)
		}
	}
	for _, bad := range []string{"sample --step", "smaple", "sample --steps", "model nothing", "sample -x", "sample ---steps 3", "--steps 3 sample"} {
		if got, err := arrange(a.cli(), strings.Fields(bad), a.getenv); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
	env["DRIFT_MODEL"], env["DRIFT_THREADS"] = "fashion", "3"
	if got, err := arrange(a.cli(), []string{"sample", "-t", "1"}, a.getenv); err != nil || strings.Join(got, " ") != "sample --threads=1 --model=fashion" {
		t.Errorf("with an environment: %q, %v", got, err)
	}
}

// TestAliases: every alias stands for a flag that some verb has, and is no flag itself there.
func TestAliases(t *testing.T) {
	a := &app{getenv: func(string) string { return "" }}
	words, _ := a.words()
	for alias, flag := range aliases {
		if !slices.ContainsFunc(sorted(words), func(path string) bool { return slices.Contains(words[path], "--"+flag) }) {
			t.Errorf("alias %s: no verb has --%s", alias, flag)
		}
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{"a.npz": "a.npz", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "cfg:w=2,x=3": "cfg:w=2,x=3", "DPM++ 2M": "'DPM++ 2M'", "$x": "'$x'"} {
		if got := quote(in); got != want {
			t.Errorf("quote(%q) = %s, want %s", in, got, want)
		}
	}
}

// TestNotFiniteKeepsWhatIsFinished: the second batch breaks down; the first is kept, and the message says what to do.
func TestNotFiniteKeepsWhatIsFinished(t *testing.T) {
	t.Chdir(t.TempDir())
	target := `{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "process": {"type": "vp-linear"}, "prediction": "eps"}`
	if err := os.WriteFile("t.json", []byte(target), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := npz.Write("init.npz", npz.Array{Name: "x", Shape: []int{4, 1}, Data: []float64{0.5, -0.5, 1.7e308, 0}}); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := world(nil, "sample", "--model", "t.json", "--init", "init.npz", "--steps", "5", "--sampler", "ddim:eta=1", "--batch", "2", "--out", "x.npz")
	if code != exitNotFinite || !strings.Contains(stderr, "not finite after step") || !strings.Contains(stderr, "the image of seed 2") || !strings.Contains(stderr, "2 finished images are kept") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	parts, err := filepath.Glob("x.npz.part/*.npz")
	if err != nil || len(parts) != 1 {
		t.Errorf("parts %v, %v", parts, err)
	}
	if exists("x.npz") {
		t.Error("an unfinished file has the final name")
	}
}

// An event that has no JSON is no success.
func TestLostEvent(t *testing.T) {
	var out, talk bytes.Buffer
	a := &app{out: &out, err: &talk, getenv: func(string) string { return "" }}
	a.emit(math.Inf(1))
	if code := a.main(context.Background(), []string{"--version"}); code != exitFailed || !strings.Contains(talk.String(), "an event cannot be written: json: unsupported value: +Inf") {
		t.Errorf("code %d, %q, %q", code, out.String(), talk.String())
	}
}
