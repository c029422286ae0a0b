package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"drift/internal/npz"
)

// FuzzArgs runs command lines of any kind: whatever they say, they end with a known exit code and without a panic. One
// argument per line; paths stay inside a temporary folder.
func FuzzArgs(f *testing.F) {
	for _, s := range []string{
		"sample\n--model\nt.json\n--steps\n3\n--out\no.npz", "sample\n-m\nt.json\n--sigmas=3,1,0\n--sampler\neuler-ancestral:eta=0.3\n--print-schedule",
		"sample\n--model=l.json\n--class\n1\n--cfg\n2\n--guider\nclip", "list\nsamplers\n--json", "model\ninfo\nt.json", "model\nverify\nl.json",
		"metadata\nt.json", "completion\nfish", "--help", "sample\n--help", "version", "sample\n--model\nt.json\n--nfe\n7\n--sampler\nheun\n--dry-run",
		"sample\n--model\nt.json\n--seeds\n0-3,9\n--batch\n2\n--trajectory\nx.npz\n--log\ny.csv", "--\n--", "-\n-1\n--=", "sample\n--model\nt.json\n--t-start\n0.5\n--final\nmin\n--schedule\nlambda",
		"sample\n--model\nt.json\n--start-step\n2\n--end-step\n3\n--steps\n4", "sample\n--model\nt.json\n--preview\nsixel:2", "sample\n--model\nt.json\n--noise\ntorch\n--rho\n3\n--resume\n--out\no.npz",
	} {
		f.Add(s)
	}
	fuzzWorld(f)
	f.Fuzz(func(t *testing.T, line string) {
		if strings.ContainsAny(line, "/\x00") || strings.Contains(line, "..") {
			return
		}
		fuzzLine(t, strings.Split(line, "\n")...)
	})
}

// fuzzWorld makes a folder with two targets the working folder.
func fuzzWorld(f *testing.F) {
	f.Chdir(f.TempDir())
	for name, text := range map[string]string{
		"t.json": `{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "process": {"type": "vp-linear"}, "prediction": "eps"}`,
		"l.json": `{"type": "mixture", "weights": [0.5, 0.5], "means": [[-1, 0], [0.5, 1]], "vars": [[0.05, 0.05], [0.1, 0.02]], "labels": [0, 1], "process": {"type": "edm"}, "prediction": "x0"}`,
	} {
		if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
			f.Fatal(err)
		}
	}
}

// fuzzLine runs a command line and checks how it ends. Without --model it draws from t.json, never with a network: an
// input takes milliseconds.
func fuzzLine(t *testing.T, args ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	var out, err bytes.Buffer
	env := func(name string) string {
		if name == "DRIFT_MODEL" {
			return "t.json"
		}
		return ""
	}
	a := &app{in: strings.NewReader(""), out: &out, err: &err, getenv: env, stop: make(chan struct{})}
	code := a.main(ctx, args)
	if !slices.Contains([]int{exitOK, exitFailed, exitUsage, exitRefused, exitNotFinite, exitInterrupted}, code) {
		t.Errorf("exit code %d", code)
	}
	if strings.Contains(err.String(), "internal error") {
		t.Errorf("%q: %s", args, err.String())
	}
	if code != 0 && strings.Count(err.String(), "drift: error: ") != 1 && code != exitInterrupted && ctx.Err() == nil {
		t.Errorf("%q: exit code %d, but it says %q", args, code, err.String())
	}
}

// fuzzFile fuzzes what a flag reads: the line is run on files of any content under that name.
func fuzzFile(f *testing.F, name string, seeds []string, line ...string) {
	fuzzWorld(f)
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(name, b, 0o666); err != nil {
			t.Fatal(err)
		}
		fuzzLine(t, line...)
	})
}

// arrays is the text of an npz file with one array.
func arrays(f *testing.F, name string, shape ...int) []string {
	path := filepath.Join(f.TempDir(), "a.npz")
	n := 1
	for _, d := range shape {
		n *= d
	}
	if err := npz.Write(path, npz.Array{Name: name, Shape: shape, Data: make([]float64, n)}); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	return []string{string(b), "PK"}
}

// picture is the text of a PNG that drift made, with its description.
func picture(f *testing.F, args ...string) []string {
	path := filepath.Join(f.TempDir(), "p.png")
	if code, _, err := world(nil, append([]string{"sample", "--quiet", "--seed", "1", "--steps", "1", "--out", path}, args...)...); code != 0 {
		f.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	return []string{string(b), "GIF89a", "\xff\xd8\xff"}
}

func FuzzModelFile(f *testing.F) {
	fuzzFile(f, "m.json", []string{`{"type": "mixture", "weights": [0.5, 0.5], "means": [[-1, 0], [0.5, 1]], "covs": [[[0.05, 0], [0, 0.05]], [[0.1, 0], [0, 0.02]]], "labels": [0, 1], "process": {"type": "flow"}, "prediction": "velocity"}`},
		"sample", "--model", "m.json", "--steps", "2", "--out", "o.npz")
}

func FuzzGridFile(f *testing.F) {
	fuzzFile(f, "g.json", []string{`{"sigmas": [3, 1, 0]}`, `{"times": [1, 0.5, 0]}`, `{"sigmas": ["inf", 1]}`}, "sample", "--grid", "g.json", "--out", "o.npz")
}

func FuzzSamplerFile(f *testing.F) {
	fuzzFile(f, "s.json", []string{`{"timesteps":[1,0.5,0.1],"steps":[{"order":1,"pred":"x0"},{"order":2,"pred":"x0","weights":[1.5,-0.5]}],"afs":"mean","mean":[0]}`},
		"sample", "--sampler", "@s.json", "--out", "o.npz")
}

func FuzzInitFile(f *testing.F) {
	fuzzFile(f, "i.npz", arrays(f, "x", 2, 1), "sample", "--init", "i.npz", "--steps", "2", "--out", "o.npz")
}

func FuzzNoiseFile(f *testing.F) {
	fuzzFile(f, "n.npz", arrays(f, "noise", 2, 1, 1), "sample", "--noise", "n.npz", "--sampler", "euler-ancestral", "--steps", "2", "--out", "o.npz")
}

func FuzzPromptsFile(f *testing.F) {
	fuzzFile(f, "p.txt", []string{"0\n1\nnone\n"}, "sample", "--model", "l.json", "--prompts", "p.txt", "--steps", "1", "--out", "o.npz")
}

func FuzzFromFile(f *testing.F) {
	fuzzFile(f, "f.png", picture(f), "sample", "--from", "f.png", "--model", "t.json", "--out", "o.npz")
}

func FuzzImageFile(f *testing.F) {
	fuzzFile(f, "i.png", picture(f, "--no-metadata"), "sample", "--model", "fashion-flow", "--init-image", "i.png", "--print-schedule")
}

func FuzzResumeFile(f *testing.F) {
	fuzzWorld(f)
	stop := make(chan struct{})
	stopped := &app{in: strings.NewReader(""), out: &watcher{text: `"step":2`, seen: stop}, err: &bytes.Buffer{}, getenv: func(string) string { return "" }, stop: stop}
	if code := stopped.main(context.Background(), strings.Fields("sample --json --model t.json --count 4 --batch 2 --steps 3 --sampler euler --out o.npz")); code != exitInterrupted {
		f.Fatal(code)
	}
	manifest, err := os.ReadFile("o.npz.part/manifest.json")
	if err != nil {
		f.Fatal(err)
	}
	state, err := os.ReadFile("o.npz.part/state.run")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(manifest, state)
	f.Add([]byte("{}"), []byte("PK"))
	f.Fuzz(func(t *testing.T, manifest, state []byte) {
		for _, old := range []string{"o.npz", "o.npz.part"} {
			if err := os.RemoveAll(old); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.MkdirAll("o.npz.part", 0o777); err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{"manifest.json": manifest, "state.run": state, "0000-00000000.npz": state} {
			if err := os.WriteFile(filepath.Join("o.npz.part", name), b, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		fuzzLine(t, "sample", "--resume", "--out", "o.npz")
	})
}

// watcher closes seen when text is written.
type watcher struct {
	text string
	seen chan struct{}
}

func (w *watcher) Write(p []byte) (int, error) {
	if w.text != "" && bytes.Contains(p, []byte(w.text)) {
		close(w.seen)
		w.text = ""
	}
	return len(p), nil
}

func FuzzVerifyFile(f *testing.F) {
	fuzzWorld(f)
	f.Add(uint8(0), []byte("\x02\x00\x00\x00\x00\x00\x00\x00{}"))
	f.Add(uint8(1), []byte(arrays(f, "x", 2)[0]))
	f.Add(uint8(2), []byte("\x93NUMPY\x01\x00"))
	f.Add(uint8(3), []byte(`{"_class_name": "UNet2DModel"}`))
	f.Add(uint8(4), []byte(`{"_class_name": "PNDMScheduler"}`))
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		names := []string{"v.safetensors", "v.npz", "v.npy", "v.json", "scheduler.json", "v.safetensors.index.json", "v.onnx"}
		name := names[int(kind)%len(names)]
		if err := os.WriteFile(name, b, 0o666); err != nil {
			t.Fatal(err)
		}
		fuzzLine(t, "model", "verify", name)
	})
}
