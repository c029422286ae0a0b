package main

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
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
	dir := f.TempDir()
	for name, text := range map[string]string{
		"t.json": `{"type": "mixture", "weights": [1], "means": [[0]], "vars": [[1]], "process": {"type": "vp-linear"}, "prediction": "eps"}`,
		"l.json": `{"type": "mixture", "weights": [0.5, 0.5], "means": [[-1, 0], [0.5, 1]], "vars": [[0.05, 0.05], [0.1, 0.02]], "labels": [0, 1], "process": {"type": "edm"}, "prediction": "x0"}`,
	} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o666); err != nil {
			f.Fatal(err)
		}
	}
	f.Chdir(dir)
	codes := []int{exitOK, exitFailed, exitUsage, exitRefused, exitNotFinite, exitInterrupted}
	env := func(name string) string { // no line draws with the embedded network: an input takes milliseconds
		if name == "DRIFT_MODEL" {
			return "t.json"
		}
		return ""
	}
	f.Fuzz(func(t *testing.T, line string) {
		if strings.ContainsAny(line, "/\x00") || strings.Contains(line, "..") {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		var out, err bytes.Buffer
		a := &app{in: strings.NewReader(""), out: &out, err: &err, getenv: env, stop: make(chan struct{})}
		code := a.main(ctx, strings.Split(line, "\n"))
		if !slices.Contains(codes, code) {
			t.Errorf("exit code %d", code)
		}
		if strings.Contains(err.String(), "internal error") {
			t.Errorf("%q: %s", line, err.String())
		}
		if code != 0 && strings.Count(err.String(), "drift: error: ") != 1 && code != exitInterrupted && ctx.Err() == nil {
			t.Errorf("%q: exit code %d, but it says %q", line, code, err.String())
		}
	})
}
