package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// blocks are the code blocks of a document: language with what follows it, and text.
func blocks(t *testing.T, path string) [][2]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out [][2]string
	for i, part := range strings.Split(string(text), "\n```") {
		if i%2 == 1 {
			head, body, _ := strings.Cut(part, "\n")
			out = append(out, [2]string{head, body + "\n"})
		}
	}
	return out
}

// words splits a command line as a shell does, as far as the document needs it.
func words(line string) []string {
	var out []string
	for _, m := range regexp.MustCompile(`"([^"]*)"|\S+`).FindAllStringSubmatch(line, -1) {
		if strings.HasPrefix(m[0], `"`) {
			out = append(out, m[1])
		} else {
			out = append(out, m[0])
		}
	}
	return out
}

// quick makes a command line of the document cheap: fewer pictures, steps and particles.
func quick(line string) string {
	if strings.Contains(line, "noise.npz") { // large steps cannot be undone
		return line
	}
	for pattern, with := range map[string]string{
		`--budget \d+m`: "--evaluations 5", `--nfe 5,8,10`: "--nfe 5",
		`--count (\d{2,})`: "--count 6", `--steps (20|50|100|400)`: "--steps 3", `--seeds 0-(63|7|3)`: "--seeds 0-1", `--particles 64`: "--particles 4", `--nfe 10`: "--nfe 4",
	} {
		line = regexp.MustCompile(pattern).ReplaceAllString(line, with)
	}
	if strings.Contains(line, "minority") && !strings.Contains(line, "--steps") {
		line += " --steps 6"
	}
	return line
}

// TestGuide runs every command line of docs/guide.md and docs/few-steps.md, with the files that stand between them, and finds
// every piece of Go in the examples of the packages, which are run.
func TestGuide(t *testing.T) {
	for name, least := range map[string]map[string]int{"guide": {"sh": 10, "star": 5, "go": 5}, "few-steps": {"sh": 6, "json": 1, "go": 3}} {
		t.Run(name, func(t *testing.T) { runDocument(t, name, least) })
	}
}

func runDocument(t *testing.T, name string, least map[string]int) {
	dir := t.TempDir()
	code := ""
	for _, pattern := range []string{"../../guidance/*_test.go", "../../samplers/*_test.go", "../../samplers/search/*_test.go", "../../samplers/search/straighten/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			code += string(text)
		}
	}
	all := blocks(t, "../../docs/"+name+".md")
	t.Chdir(dir)
	for name, text := range map[string]string{
		"left.json":  `{"type":"mixture","weights":[1],"means":[[-2,0]],"vars":[[0.09,0.2]],"process":{"type":"vp-linear"},"prediction":"eps"}`,
		"right.json": `{"type":"mixture","weights":[1],"means":[[2,0]],"vars":[[0.09,0.2]],"process":{"type":"vp-linear"},"prediction":"eps"}`,
		"rare.json":  `{"type":"mixture","weights":[0.9,0.1],"means":[[-1.5],[1.5]],"vars":[[0.16],[0.16]],"process":{"type":"vp-discrete"},"prediction":"eps"}`,
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ran := map[string]int{}
	run := func(line string) {
		if os.Getenv("DRIFT_SLOW") == "" {
			line = quick(line)
		}
		var out, talk bytes.Buffer
		a := &app{in: strings.NewReader(""), out: &out, err: &talk, getenv: func(string) string { return "" }, stop: make(chan struct{})}
		if code := a.main(context.Background(), words(line)[1:]); code != 0 {
			t.Errorf("%s\nexit code %d: %s", line, code, talk.String())
		}
		t.Logf("%s\n%s%s", line, out.String(), talk.String())
	}
	for _, b := range all {
		lang, rest, _ := strings.Cut(b[0], " ")
		ran[lang]++
		switch lang {
		case "star", "json":
			if err := os.WriteFile(strings.TrimPrefix(rest, "file="), []byte(b[1]), 0o644); err != nil {
				t.Fatal(err)
			}
		case "sh":
			for _, line := range strings.Split(strings.TrimSpace(b[1]), "\n") {
				run(line)
			}
		case "go":
			for _, line := range strings.Split(strings.TrimSpace(b[1]), "\n") {
				if !strings.Contains(code, strings.TrimSpace(line)) {
					t.Errorf("no example has the line %q", line)
				}
			}
		default:
			t.Errorf("a block of %q", lang)
		}
	}
	for lang, n := range least {
		if ran[lang] < n {
			t.Errorf("%d blocks of %s, want %d", ran[lang], lang, n)
		}
	}
}
