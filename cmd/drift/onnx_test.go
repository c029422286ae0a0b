package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"drift/models/ort"
)

// TestONNXDoc runs every command line of docs/onnx.md on the terrain network, and reads every sidecar in it. DRIFT_TERRAIN
// names the network.
func TestONNXDoc(t *testing.T) {
	all := blocks(t, "../../docs/onnx.md")
	net, lib := os.Getenv("DRIFT_TERRAIN"), os.Getenv("DRIFT_ORT_LIB")
	dir := t.TempDir()
	t.Chdir(dir)
	ran := map[string]int{}
	for _, b := range all {
		lang, rest, _ := strings.Cut(b[0], " ")
		ran[lang]++
		switch lang {
		case "json":
			if _, err := ort.ParseSidecar("docs/onnx.md", []byte(b[1])); err != nil {
				t.Error(err)
			}
		case "star":
			if err := os.WriteFile(strings.TrimPrefix(rest, "file="), []byte(b[1]), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if ran["json"] != 2 || ran["star"] != 1 || ran["sh"] != 2 {
		t.Errorf("blocks: %v", ran)
	}
	if net == "" || lib == "" {
		t.Skip("no terrain network or no ONNX Runtime (DRIFT_TERRAIN, DRIFT_ORT_LIB): the command lines are skipped")
	}
	if err := os.Symlink(net, "terrain.onnx"); err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		if b[0] != "sh" {
			continue
		}
		for _, line := range strings.Split(strings.TrimSpace(b[1]), "\n") {
			if os.Getenv("DRIFT_SLOW") == "" {
				line = regexp.MustCompile(`--classes \S+ --count 12 --sheet 6x2`).ReplaceAllString(line, "--classes 0,99 --count 2 --sheet 2x1")
				line = strings.NewReplacer("--seeds 0-3", "--seeds 0", "--particles 4", "--particles 2").Replace(line)
			}
			var out, talk bytes.Buffer
			a := &app{in: strings.NewReader(""), out: &out, err: &talk, getenv: func(k string) string { return map[string]string{"DRIFT_ORT_LIB": lib}[k] }, stop: make(chan struct{})}
			if code := a.main(context.Background(), words(line)[1:]); code != 0 {
				t.Errorf("%s\nexit code %d: %s", line, code, talk.String())
			}
			t.Logf("%s\n%s%s", line, out.String(), talk.String())
		}
	}
}

// What belongs to an ONNX file goes to other machines with it, the library does not.
func TestONNXTravels(t *testing.T) {
	from, err := filepath.Abs("../../models/ort/testdata")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, n := range []string{"vector.onnx", "vector.drift.json", "codes.npz", "external.onnx", "external.drift.json", "external.bin", "graded.onnx", "graded.drift.json", "gauss64.vjp.onnx"} {
		b, err := os.ReadFile(filepath.Join(from, n))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, n), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	a := &app{getenv: func(string) string { return "" }}
	for net, want := range map[string][]string{"vector": {"codes.npz", "vector.drift.json", "vector.onnx"}, "external": {"external.bin", "external.drift.json", "external.onnx"},
		"graded": {"gauss64.vjp.onnx", "graded.drift.json", "graded.onnx"}} {
		line, files, err := a.travel([]string{"sample", "--model=" + net + ".onnx", "--ort-lib=codes.npz", "--steps=3"})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, f := range files {
			names = append(names, f.Path)
		}
		slices.Sort(names)
		if !slices.Equal(names, want) || !slices.Equal(line, []string{"sample", "--model=" + net + ".onnx", "--steps=3"}) {
			t.Errorf("%s: %v, %v", net, names, line)
		}
	}
}
