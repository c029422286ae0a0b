package output

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/internal/npz"
	"drift/internal/pngmeta"
	"drift/schedules"
)

func options(path string, seeds ...uint64) Options {
	o := Options{Path: path, Shape: []int{1, 2, 2}, Picture: []int{1, 2, 2}, Cols: 2, Rows: 2, Items: job.Items(1, seeds, 0)}
	o.Run = manifest.Run{Format: manifest.Format, Verb: "sample", Sampler: "euler", Seeds: manifest.FormatSeeds(seeds), Sets: []manifest.Set{{Classes: []int{0, 1}}},
		Grid: manifest.NewGrid(schedules.Grid{{T: 1, Alpha: 1, Sigma: 1}, {T: 0, Alpha: 1, Sigma: 0}})}
	o.Texts = func(it *job.Item) []pngmeta.Text {
		if it == nil {
			return []pngmeta.Text{{Keyword: "k", Text: "sheet"}}
		}
		return []pngmeta.Text{{Keyword: "k", Text: fmt.Sprint(it.Seed)}}
	}
	return o
}

// rows makes a grey picture of each seed.
func rows(items []job.Item) []float64 {
	var x []float64
	for _, it := range items {
		for range 4 {
			x = append(x, float64(it.Seed%256)/127.5-1)
		}
	}
	return x
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(dir, p)
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func open(t *testing.T, o Options) Target {
	t.Helper()
	target, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func put(t *testing.T, target Target, items []job.Item) {
	t.Helper()
	if _, err := target.Put(items, rows(items), rows(items)); err != nil {
		t.Fatal(err)
	}
}

func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "set")
	o := options(dir, 998, 1003, 1_234_567)
	target := open(t, o)
	put(t, target, o.Items[:2])
	stale := filepath.Join(dir, "000000", "000998.png.tmp0")
	other := filepath.Join(dir, "000000", "mine.tmp0")
	for _, name := range []string{stale, other} {
		if err := os.WriteFile(name, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	target = open(t, o)
	if m := target.Missing(); !slices.Equal(m, o.Items[2:]) {
		t.Fatalf("missing %v", m)
	}
	put(t, target, o.Items[2:])
	if _, err := target.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{"000000/000998.png", "000000/mine.tmp0", "001000/001003.png", "1234000/1234567.png", "manifest.json"}
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
	f, err := os.Open(filepath.Join(dir, "001000", "001003.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	texts, err := pngmeta.Read("x", f)
	if err != nil || len(texts) != 1 || texts[0].Text != "1003" {
		t.Errorf("texts %v, %v", texts, err)
	}
	o.Run.Sampler = "heun"
	var d *manifest.Different
	if _, err := Open(o); !errors.As(err, &d) {
		t.Errorf("another run: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, manifest.Name)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("pictures without a manifest: %v", err)
	}
}

func TestSheetAndArrays(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"sheet.png", "all.npz"} {
		o := options(filepath.Join(dir, name), 10, 20, 30)
		target := open(t, o)
		put(t, target, o.Items[1:2])
		if got := files(t, dir); !slices.Contains(got, name+".part/0000-00000001.npz") || slices.Contains(got, name) {
			t.Errorf("after one of three: %v", got)
		}
		target = open(t, o) // as after a kill
		if m := target.Missing(); len(m) != 2 || m[0].Seed != 10 || m[1].Seed != 30 {
			t.Fatalf("missing %v", m)
		}
		put(t, target, target.Missing())
		if done, err := target.Close(); err != nil || !slices.Equal(done, []string{o.Path}) {
			t.Fatalf("%v, %v", done, err)
		}
	}
	if got, want := files(t, dir), []string{"all.npz", "sheet.png"}; !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
	b, err := os.ReadFile(filepath.Join(dir, "sheet.png"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if want := []byte{10, 10, 20, 20, 10, 10, 20, 20, 30, 30, 0, 0, 30, 30, 0, 0}; m.Bounds() != image.Rect(0, 0, 4, 4) || !near(m.(*image.Gray).Pix, want) {
		t.Errorf("sheet %v", m)
	}
	arrays, err := npz.ReadAll(filepath.Join(dir, "all.npz"))
	if err != nil {
		t.Fatal(err)
	}
	if a := arrays["images"]; !slices.Equal(a.Shape, []int{3, 2, 2, 1}) || !near(a.Data.([]byte)[8:], []byte{30, 30, 30, 30}) {
		t.Errorf("images %v", a)
	}
	if s, c := arrays["seeds"].Data.([]int64), arrays["classes"].Data.([]int64); !slices.Equal(s, []int64{10, 20, 30}) || !slices.Equal(c, []int64{0, 1, 0}) {
		t.Errorf("seeds %v, classes %v", s, c)
	}
	if arrays["x"] != nil {
		t.Error("x was stored without being asked for")
	}
}

// near allows for the rounding rule: level v is the middle of an interval.
func near(got, want []byte) bool {
	return slices.EqualFunc(got, want, func(a, b byte) bool { return a == b || a == b+1 && b > 0 })
}

// TestKeep: parts that wait for each other are stored when the job ends early.
func TestKeep(t *testing.T) {
	o := options(filepath.Join(t.TempDir(), "x.npz"), 1, 2, 3, 4)
	target := open(t, o)
	target.(*single).cost, target.(*single).kept = time.Hour, time.Now()
	put(t, target, o.Items[:1])
	put(t, target, o.Items[2:3])
	if again := open(t, o).Missing(); len(again) != 4 {
		t.Fatalf("stored too early: missing %v", again)
	}
	if err := errors.Join(target.Keep(), target.Keep()); err != nil {
		t.Fatal(err)
	}
	if again := open(t, o).Missing(); len(again) != 2 || again[0].Seed != 2 || again[1].Seed != 4 {
		t.Errorf("missing %v", again)
	}
}

func TestState(t *testing.T) {
	o := options(filepath.Join(t.TempDir(), "x.npz"), 1, 2, 3)
	target := open(t, o)
	save := func(w io.Writer) error { _, err := io.WriteString(w, "the state"); return err }
	if err := SaveState(target, o.Run, o.Items[:2], save); err != nil {
		t.Fatal(err)
	}
	r, err := LoadState(target, o.Items[:2])
	if err != nil || r == nil {
		t.Fatalf("%v, %v", r, err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "the state" {
		t.Errorf("%q, %v", b, err)
	}
	if r, err := LoadState(target, o.Items[:1]); r != nil || err != nil {
		t.Errorf("the state of other items: %v, %v", r, err)
	}
	if err := os.WriteFile(filepath.Join(target.Room(), stateName), []byte("broken"), 0o666); err != nil {
		t.Fatal(err)
	}
	if r, err := LoadState(target, o.Items[:2]); r != nil || err != nil {
		t.Errorf("a broken state: %v, %v", r, err)
	}
	if err := errors.Join(DropState(target), DropState(target)); err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{plain, filepath.Join(dir, "gone", "x.npz"), filepath.Join(dir, "gone", "x.png"), dir + "/plain/x.png"} {
		if _, err := Open(options(path, 1)); err == nil {
			t.Errorf("%s was opened", path)
		}
	}
	o := options(filepath.Join(dir, "few.png"), 1, 2, 3, 4, 5)
	if _, err := Open(o); err == nil {
		t.Error("five pictures on four cells")
	}
	o = options(filepath.Join(dir, "vectors"), 1)
	o.Picture = nil
	if _, err := Open(o); err == nil {
		t.Error("vectors as PNGs")
	}
	broken := errors.New("broken")
	if err := Write(filepath.Join(dir, "w"), func(io.Writer) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	if got := files(t, dir); !slices.Equal(got, []string{"plain"}) {
		t.Errorf("left %v", got)
	}
}
