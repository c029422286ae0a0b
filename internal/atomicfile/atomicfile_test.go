package atomicfile

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCommitAndDiscard(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.txt")
	write := func(text string) *File {
		t.Helper()
		f, err := Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		return f
	}
	content := func() string {
		b, _ := os.ReadFile(path)
		return string(b)
	}
	first := write("one")
	if content() != "" {
		t.Error("visible before Commit")
	}
	second := write("two") // two writers at once do not disturb each other
	if err := first.Commit(); err != nil || content() != "one" {
		t.Error(err, content())
	}
	if err := first.Discard(); err != nil || content() != "one" {
		t.Error("Discard after Commit:", err, content())
	}
	if err := second.Discard(); err != nil || content() != "one" {
		t.Error(err, content())
	}
	if err := second.Commit(); err == nil {
		t.Error("Commit after Discard")
	}
	third := write("three")
	if err := third.Commit(); err != nil || content() != "three" {
		t.Error(err, content())
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Error("left behind:", left, err)
	}
	if _, err := Create(dir); err == nil {
		t.Error("created over a folder")
	}
	if _, err := Create(filepath.Join(dir, "no", "a")); err == nil {
		t.Error("created in a folder that does not exist")
	}
}
