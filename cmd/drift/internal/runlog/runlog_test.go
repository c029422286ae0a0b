package runlog_test

import (
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"drift/cmd/drift/internal/runlog"
)

var known = []runlog.Column{{Name: "seed", Unit: true}, {Name: "step"}, {Name: "x_mean"}, {Name: "knn", Unit: true, Hide: true}}

// fill puts values in out of order.
func fill(l *runlog.Log) {
	for _, u := range []int{2, 0, 1} {
		for _, s := range []int{1, 0} {
			l.Put(u, s, map[string]any{"step": s, "x_mean": float64(u) + float64(s)/10})
		}
		l.Put(u, runlog.Whole, map[string]any{"seed": uint64(10 + u), "knn": []float64{0.5, math.NaN(), 0.25}[u]})
	}
	l.Put(1, 1, map[string]any{"mine": math.Inf(1)})
}

func TestTable(t *testing.T) {
	for _, c := range []struct {
		name, columns, sort, want string
	}{
		{"all.csv", "", "", "seed,step,x_mean,mine\n10,0,0,\n10,1,0.1,\n11,0,1,\n11,1,1.1,inf\n12,0,2,\n12,1,2.1,\n"},
		{"units.csv", "seed,knn", "knn", "seed,knn\n12,0.25\n10,0.5\n11,nan\n"},
		{"down.csv", "seed", "-seed", "seed\n12\n11\n10\n"},
		{"steps.jsonl", "seed,mine", "-step", `{"seed":10}` + "\n" + `{"mine":"inf","seed":11}` + "\n" + `{"seed":12}` + "\n" + `{"seed":10}` + "\n" + `{"seed":11}` + "\n" + `{"seed":12}` + "\n"},
		{"missing.csv", "step,mine", "mine", "step,mine\n1,inf\n0,\n1,\n0,\n0,\n1,\n"},
	} {
		path := filepath.Join(t.TempDir(), c.name)
		l, err := runlog.New(path, known, runlog.Choice{Columns: c.columns, Sort: c.sort, Free: true})
		if err != nil {
			t.Fatal(err)
		}
		fill(l)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(have) != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, have, c.want)
		}
	}
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		path string
		runlog.Choice
		want string
	}{
		{"log.txt", runlog.Choice{}, "ends in .csv or .jsonl"},
		{"a.csv", runlog.Choice{Columns: "sed"}, "did you mean seed"},
		{"a.csv", runlog.Choice{Columns: "seed,"}, "without a name"},
		{"a.csv", runlog.Choice{Sort: "-knm"}, "did you mean knn"},
	} {
		if _, err := runlog.New(filepath.Join(dir, c.path), known, c.Choice); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c, err, c.want)
		}
	}
	l, err := runlog.New(filepath.Join(dir, "b.csv"), known, runlog.Choice{Columns: "seed,mime", Free: true})
	if err != nil {
		t.Fatal(err)
	}
	fill(l)
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), `no script logged a column "mime"; did you mean mine`) {
		t.Errorf("%v", err)
	}
}

func TestWants(t *testing.T) {
	l, err := runlog.New("", known, runlog.Choice{})
	if err != nil || l.Wants("knn") || !l.Wants("seed") || !l.Wants("free") {
		t.Errorf("%v: the columns that show by default", err)
	}
	l, err = runlog.New("", known, runlog.Choice{Columns: "seed", Sort: "-knn"})
	if err != nil || !l.Wants("knn") || l.Wants("step") {
		t.Errorf("%v: the columns that are asked for", err)
	}
}

func TestDraw(t *testing.T) {
	l, err := runlog.New("", known, runlog.Choice{})
	if err != nil {
		t.Fatal(err)
	}
	fill(l)
	dir := t.TempDir()
	for _, name := range []string{"a.png", "a.svg"} {
		if err := l.Draw(filepath.Join(dir, name), []string{"x_mean", "knn", "seed"}); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(filepath.Join(dir, "a.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if m, err := png.Decode(f); err != nil || m.Bounds().Dx() < 600 {
		t.Errorf("%v", err)
	}
	if err := l.Draw(filepath.Join(dir, "b.png"), []string{"x_maen"}); err == nil || !strings.Contains(err.Error(), "did you mean x_mean") {
		t.Errorf("%v", err)
	}
	if err := l.Draw(filepath.Join(dir, "b.pdf"), []string{"x_mean"}); err == nil {
		t.Error("a .pdf")
	}
}
