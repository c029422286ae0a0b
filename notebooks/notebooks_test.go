// Package notebooks_test holds what must be true of the notebooks without Jupyter: their cells compile against the packages
// beside them, they are committed without outputs, and the pages made of them are whole, small and of these sources.
package notebooks_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"drift/notebooks/internal/cells"
)

func all(t *testing.T) map[string]*cells.Notebook {
	t.Helper()
	names, err := filepath.Glob("*.ipynb")
	if err != nil || len(names) == 0 {
		t.Fatalf("no notebooks: %v", err)
	}
	out := map[string]*cells.Notebook{}
	for _, name := range names {
		n, err := cells.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimSuffix(name, ".ipynb")] = n
	}
	return out
}

// TestCells does what GoNB does in the folder of a notebook's program: the commands of the head cell, then build, and vet
// beside it. So a change of a package that breaks a cell is seen here.
func TestCells(t *testing.T) {
	dir := t.TempDir()
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "GONB_DIR="+here, "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	run("go", "mod", "init", "cells")
	for line := range strings.Lines(head) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "!*"); ok {
			run("sh", "-c", command)
		}
	}
	for name, n := range all(t) {
		src, err := n.Program("cells")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "cells.go"), src, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run("go", "build", "./...")
	run("go", "vet", "./...")
}

// The head of every notebook, without a path of anybody's machine.
const head = `%noautoget
!*cp "$GONB_DIR"/../go.sum . && sed 's/^module .*/module notebook/' "$GONB_DIR"/../go.mod > go.mod
!*go mod edit -require drift@v0.0.0 -replace drift="$GONB_DIR"/..`

// TestCommitted: no outputs, the common head, a title, and nothing imported that a program outside of the module could not
// import.
func TestCommitted(t *testing.T) {
	for name, n := range all(t) {
		if !n.Clear() {
			t.Errorf("%s has outputs: commit it without", name)
		}
		if c := n.Cells; len(c) < 3 || c[0].Type != "markdown" || !strings.HasPrefix(string(c[0].Source), "# "+name[:1]+". ") || string(c[1].Source) != head {
			t.Errorf("%s does not begin with its title and the common head", name)
		}
		imports, err := n.Imports()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, p := range imports {
			if strings.Contains(p, "internal") || strings.HasPrefix(p, "drift/cmd") {
				t.Errorf("%s imports %s", name, p)
			}
		}
	}
}

var (
	remote  = regexp.MustCompile(`(?i)https?:|<script|<link|@import|url\(|src="[^d]|src='[^d]`)
	machine = regexp.MustCompile(`/(tmp|root|home|work|usr|opt|var)/|gonb_|\.go:\d+`)
)

// TestPages: a page for every notebook, made of the cells as they are, that loads nothing and names no machine; 4 MB at most
// in all.
func TestPages(t *testing.T) {
	folder := filepath.Join("..", "docs", "notebooks")
	index, err := os.ReadFile(filepath.Join(folder, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for name, n := range all(t) {
		page, err := os.ReadFile(filepath.Join(folder, name+".html"))
		if err != nil {
			t.Error(err)
			continue
		}
		total += len(page)
		var sources []string
		for _, c := range n.Cells {
			sources = append(sources, string(c.Source))
		}
		if want := fmt.Sprintf("<!-- cells: %x -->", sha256.Sum256([]byte(strings.Join(sources, "\x00")))); !strings.Contains(string(page), want) {
			t.Errorf("%s.html is of other cells than %s.ipynb: notebooks/run --html %s.ipynb", name, name, name)
		}
		for _, bad := range append(remote.FindAllString(string(page), 3), machine.FindAllString(string(page), 3)...) {
			t.Errorf("%s.html has %q", name, bad)
		}
		if !strings.Contains(string(page), "data:image/png") || !strings.Contains(string(page), "</html>") {
			t.Errorf("%s.html has no pictures, or no end", name)
		}
		for _, want := range []string{name + ".html", "notebooks/" + name + ".ipynb"} {
			if !strings.Contains(string(index), want) {
				t.Errorf("the index does not name %s", want)
			}
		}
	}
	if total > 4<<20 {
		t.Errorf("the pages take %d bytes, 4 MB are the limit", total)
	}
}
