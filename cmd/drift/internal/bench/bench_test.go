package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gonum.org/v1/gonum/mat"

	"drift/cmd/drift/internal/job"
	"drift/internal/kernels"
	"drift/internal/npz"
	"drift/metrics"
	"drift/metrics/features"
	"drift/models"
	"drift/models/analytic"
	"drift/models/open"
)

// normal is N(0.5, 0.25) in one dimension, with variance-exploding noise: every solver's answer is linear in its start.
const normal = `{"type": "mixture", "weights": [1], "means": [[0.5]], "vars": [[0.25]], "process": {"type": "edm"}, "prediction": "x0"}`

const classes = `{"type": "mixture", "weights": [0.4, 0.6], "means": [[-1, 0], [1.5, 1]], "vars": [[0.06, 0.1], [0.25, 0.2]], "labels": [0, 1], "process": {"type": "vp-linear"}, "prediction": "eps"}`

// subject opens a target and compares its samples with exact moments and samples.
func subject(t testing.TB, text string) *Subject {
	t.Helper()
	path := filepath.Join(t.TempDir(), "target.json")
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	m, err := open.Open(context.Background(), path, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	mix, ok := models.As[*analytic.Mixture](m.Denoiser)
	if !ok {
		t.Fatal("no mixture")
	}
	d := mix.Dim()
	x := make([]float64, 400*d)
	if err := mix.Sample(x, models.NoClass, 99); err != nil {
		t.Fatal(err)
	}
	rows := metrics.Matrix{N: 400, D: d, X: x}
	id := States{}.Identity()
	st, err := metrics.StatsOf(rows, id)
	if err != nil {
		t.Fatal(err)
	}
	if d == 1 {
		st.Mean, st.Cov = []float64{0.5}, mat.NewSymDense(1, []float64{0.25})
	}
	return &Subject{Name: "target", Model: m, Measure: States{Dim: d}, Reference: Reference{
		Moments: &Side{Name: "exact", Digest: "m", ID: id, Exact: true, Stats: func(context.Context) (metrics.Stats, error) { return st, nil }},
		Rows: &Side{Name: "exact", Digest: "r", ID: id, N: 400, Rows: func(context.Context) (metrics.Samples, metrics.Samples, error) {
			return rows, nil, nil
		}},
	}}
}

func matrix() Matrix {
	return Matrix{Models: []string{"target"}, Samplers: []string{"euler", "heun", "euler-ancestral"}, Schedules: []string{""}, Guiders: []string{""},
		NFE: []int{4, 9}, Metrics: []string{"fid", "energy"}, Count: 90}
}

// run makes a whole bench in dir and returns its report.
func run(t testing.TB, dir string, m Matrix, batch int, subjects ...*Subject) (Report, []Row) {
	t.Helper()
	ctx := context.Background()
	cells, err := m.Cells(ctx, "test", subjects)
	if err != nil {
		t.Fatal(err)
	}
	b := &Bench{Dir: dir, Matrix: m, Subjects: subjects, Cells: cells, Pictures: 12, Batch: batch}
	rows, err := b.Run(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	return NewReport("test", m, rows), rows
}

// full is run with all files written.
func full(t testing.TB, dir string, m Matrix, batch int, subjects ...*Subject) (Report, []Row) {
	t.Helper()
	r, rows := run(t, dir, m, batch, subjects...)
	if err := Write(dir, r, rows); err != nil {
		t.Fatal(err)
	}
	return r, rows
}

// deterministic are the files that must not depend on what happened on the way.
var deterministic = []string{"results.json", "results.csv", "results.md", "results.bench", "plot.png", "plot.svg", "plot-energy.svg"}

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	for _, name := range deterministic {
		x, err := os.ReadFile(filepath.Join(a, name))
		if err != nil {
			t.Fatal(err)
		}
		y, err := os.ReadFile(filepath.Join(b, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(x, y) {
			t.Errorf("%s differs", name)
		}
	}
}

// TestInterrupted stops a bench after every few batches, tears its files, changes the batch size, and gets the bytes of
// the bench that nothing disturbed.
func TestInterrupted(t *testing.T) {
	s := subject(t, classes)
	m := matrix()
	whole := t.TempDir()
	full(t, whole, m, 30, s)

	dir := t.TempDir()
	ctx := context.Background()
	for round := range 8 {
		cells, err := m.Cells(ctx, "test", []*Subject{s})
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		steps := 0
		b := &Bench{Dir: dir, Matrix: m, Subjects: []*Subject{s}, Cells: cells, Batch: []int{7, 30, 13}[round%3], Observe: func(float64, string) {
			if steps++; steps == 15+7*round {
				close(stop)
			}
		}}
		if _, err := b.Run(ctx, stop); err != nil && !errors.Is(err, job.ErrStopped) {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(dir, "cells", "*.rec"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%v %v", files, err)
		}
		last := files[round%len(files)]
		text, err := os.ReadFile(last)
		if err != nil {
			t.Fatal(err)
		}
		switch round % 3 {
		case 0: // a torn row
			text = text[:max(0, len(text)-5)]
		case 1: // a row with a flipped bit
			text[len(text)-9] ^= 4
		case 2: // rows that were never written
			text = append(text, make([]byte, 100)...)
		}
		if err := os.WriteFile(last, text, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	full(t, dir, m, 64, s)
	sameFiles(t, whole, dir)
}

// TestLarger: more samples and more cells in the same folder equal a bench that began with them.
func TestLarger(t *testing.T) {
	s := subject(t, classes)
	m := matrix()
	a, b := t.TempDir(), t.TempDir()
	full(t, a, m, 32, s)
	info := func() (n int64) {
		files, err := filepath.Glob(filepath.Join(a, "cells", "*.rec"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			i, err := os.Stat(f)
			if err != nil {
				t.Fatal(err)
			}
			n += i.Size()
		}
		return n
	}
	before := info()
	m.Count, m.NFE, m.Samplers = 120, []int{4, 9, 12}, append(m.Samplers, "dpmpp-2m")
	r, _ := full(t, a, m, 32, s)
	if info() <= before || len(r.Cells) != 12 {
		t.Errorf("%d cells, %d bytes before, %d now", len(r.Cells), before, info())
	}
	full(t, b, m, 50, s)
	sameFiles(t, a, b)
	m.Count = 90 // fewer again: the files keep their rows
	kept := info()
	r, _ = run(t, a, m, 50, s)
	if info() != kept || r.Cells[0].N != 90 {
		t.Errorf("%d bytes, had %d; N %d", info(), kept, r.Cells[0].N)
	}
}

// TestBudgets: budgets are true evaluations, guidance counted, and never exceeded.
func TestBudgets(t *testing.T) {
	s := subject(t, classes)
	m := matrix()
	m.Samplers = []string{"euler", "heun", "rk4", "dpmpp-2m", "DPM++ 2M Karras"}
	m.Guiders = []string{"", "cfg:w=2"}
	m.NFE = []int{1, 8, 9}
	cells, err := m.Cells(context.Background(), "test", []*Subject{s})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range cells {
		if c.NFE > float64(c.Budget) {
			t.Errorf("%s %s takes %g", c.Name(), c.At(), c.NFE)
		}
		got[c.Sampler+" "+c.Guiders+" "+c.At()] = fmt.Sprintf("%d/%g %s", c.Steps, c.NFE, c.Reason)
	}
	if len(cells) != 24 { // the last sampler is another name of the one before: this target's grid is karras
		t.Errorf("%d cells", len(cells))
	}
	for id, want := range map[string]string{
		"euler  nfe=8": "8/8 ", "euler  nfe=1": "1/1 ", "heun  nfe=8": "4/7 ", "heun  nfe=9": "5/9 ", "dpmpp-2m  nfe=9": "9/9 ",
	} {
		if got[id] != want {
			t.Errorf("%s: %q, want %q", id, got[id], want)
		}
	}
	// Guidance on a class costs two evaluations; this target's rows have no class in a bench, so it costs none.
	if got["euler cfg:w=2 nfe=8"] != "8/8 " {
		t.Errorf("euler with guidance: %q", got["euler cfg:w=2 nfe=8"])
	}
	// Samplers that place their own steps take a budget where they have an option for it, else they stand once.
	m = matrix()
	m.Samplers, m.NFE = []string{"dpm-fast", "rk45"}, []int{6, 9}
	r, _ := run(t, t.TempDir(), m, 90, s)
	var lines []string
	for _, c := range r.Cells {
		lines = append(lines, c.Sampler+" "+c.At())
		if c.Status != statusDone || c.Budget > 0 && c.NFE > float64(c.Budget) || c.Budget == 0 && c.NFE < 10 {
			t.Errorf("%s %s: %g evaluations, %s", c.Name(), c.At(), c.NFE, c.Status)
		}
	}
	if want := []string{"dpm-fast nfe=6", "dpm-fast nfe=9", "rk45 adaptive"}; !slices.Equal(lines, want) {
		t.Errorf("%q, want %q", lines, want)
	}
	for _, bad := range []func(*Matrix){
		func(m *Matrix) { m.Samplers = []string{"nonesuch"} },
		func(m *Matrix) { m.Guiders = []string{"nonesuch"} },
		func(m *Matrix) { m.Schedules = []string{"nonesuch"} },
		func(m *Matrix) { m.Steps = []int{3} },
		func(m *Matrix) { m.NFE = nil },
	} {
		m := matrix()
		bad(&m)
		if _, err := m.Cells(context.Background(), "test", []*Subject{s}); err == nil {
			t.Errorf("%+v went through", m)
		}
	}
}

// TestExactTarget: on a normal target every sampler converges to the sampling noise of the distance, d/N + d(d+1)/4N
// times the variance for exact samples, and euler's error falls with the budget.
func TestExactTarget(t *testing.T) {
	s := subject(t, normal)
	m := matrix()
	m.Samplers, m.NFE, m.Count, m.Metrics = []string{"euler", "heun"}, []int{5, 11, 41}, 3000, []string{"fid"}
	r, _ := run(t, t.TempDir(), m, 500, s)
	v := map[string]float64{}
	for _, c := range r.Cells {
		sc, ok := c.Score("fid")
		if !ok || c.Status != statusDone {
			t.Fatalf("%s %s: %s", c.Name(), c.At(), c.Status)
		}
		v[c.Sampler+" "+c.At()] = sc.Value
		if len(sc.Jackknife) != 20 || sc.StdErr <= 0 {
			t.Errorf("%s: spread %v of %v", c.Name(), sc.StdErr, sc.Jackknife)
		}
	}
	if !(v["euler nfe=5"] > 2*v["euler nfe=11"] && v["euler nfe=11"] > 2*v["euler nfe=41"]) {
		t.Errorf("euler: %v", v)
	}
	if noise := 1.5 * 0.25 / 3000; v["heun nfe=41"] > 10*noise {
		t.Errorf("heun: %g with exact noise %g", v["heun nfe=41"], noise)
	}
}

// TestPaired: with common random numbers the difference of two solvers is known far better than either score.
func TestPaired(t *testing.T) {
	s := subject(t, normal)
	m := matrix()
	m.Samplers, m.NFE, m.Count, m.Metrics = []string{"heun"}, []int{39, 41}, 500, []string{"fid"}
	r, _ := run(t, t.TempDir(), m, 500, s)
	a, b := r.Cells[0], r.Cells[1]
	sa, _ := a.Score("fid")
	sb, _ := b.Score("fid")
	c := change(a, b, "fid", sa, sb)
	if !c.Paired || !(c.Err < sa.StdErr/3) {
		t.Errorf("error of the difference %g, of the scores %g", c.Err, sa.StdErr)
	}
}

// TestSpread: the jackknife's standard error is that of independent repeats.
func TestSpread(t *testing.T) {
	s := subject(t, normal)
	m := matrix()
	m.Samplers, m.NFE, m.Count, m.Metrics = []string{"euler"}, []int{6}, 400, []string{"fid"}
	var values, errs []float64
	dir := t.TempDir()
	for k := range 25 {
		m.Seed = uint64(1000 * k)
		r, _ := run(t, filepath.Join(dir, fmt.Sprint(k)), m, 400, s)
		sc, _ := r.Cells[0].Score("fid")
		values, errs = append(values, sc.Value), append(errs, sc.StdErr)
	}
	mean, sum, avg := 0.0, 0.0, 0.0
	for i := range values {
		mean += values[i] / 25
		avg += errs[i] / 25
	}
	for _, v := range values {
		sum += (v - mean) * (v - mean)
	}
	if std := math.Sqrt(sum / 24); avg < 0.7*std || avg > 1.4*std {
		t.Errorf("jackknife %g, repeats %g", avg, std)
	}
}

func TestSplit(t *testing.T) {
	for text, want := range map[string][]string{
		"euler":                                {"euler"},
		"euler, heun":                          {"euler", "heun"},
		"unipc:order=3,variant=bh1,euler":      {"unipc:order=3,variant=bh1", "euler"},
		"unipc:order=3,variant=bh1,ddim:eta=1": {"unipc:order=3,variant=bh1", "ddim:eta=1"},
		"unipc:order=3,variant=bh1; heun":      {"unipc:order=3,variant=bh1", "heun"},
	} {
		if got := Split(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q", text, got)
		}
	}
	if got := chain("cfg:w=1e+2+clip:range=1"); !slices.Equal(got, []string{"cfg:w=1e+2", "clip:range=1"}) {
		t.Errorf("chain: %q", got)
	}
	got, err := Sweep([]string{"euler", "ddim"}, "eta=0,0.5")
	if err != nil || !slices.Equal(got, []string{"euler", "ddim:eta=0", "ddim:eta=0.5"}) {
		t.Errorf("sweep: %q %v", got, err)
	}
	if got, err := Sweep([]string{"ddim/karras:rho=5"}, "eta=0,1"); err != nil || !slices.Equal(got, []string{"ddim:eta=0/karras:rho=5", "ddim:eta=1/karras:rho=5"}) {
		t.Errorf("sweep: %q %v", got, err)
	}
	for text, want := range map[string][2]string{
		"unipc": {"unipc", ""}, "unipc:order=3/time": {"unipc:order=3", "time"}, "heun/model": {"heun", "model"}, "@s/five.json": {"@s/five.json", ""},
		"usf:schedule=a/b.json": {"usf:schedule=a/b.json", ""}, "euler/nonesuch": {"euler/nonesuch", ""}, "DPM++ 2M/karras:rho=5": {"DPM++ 2M", "karras:rho=5"},
	} {
		if a, b := placed(text); a != want[0] || b != want[1] {
			t.Errorf("%q: %q on %q, want %q", text, a, b, want)
		}
	}
	for _, bad := range []string{"eta", "nonesuch=1", "eta="} {
		if _, err := Sweep([]string{"ddim"}, bad); err == nil {
			t.Errorf("sweep %q went through", bad)
		}
	}
}

func TestCompare(t *testing.T) {
	s := subject(t, classes)
	m := matrix()
	m.Samplers = []string{"euler", "heun"}
	old, _ := run(t, t.TempDir(), m, 90, s)
	lines, err := Compare(old, old)
	if err != nil || len(lines) != 8 {
		t.Fatalf("%d lines, %v", len(lines), err)
	}
	for _, l := range lines {
		if l.New != l.Old || l.Significant() || l.Refuse != "" {
			t.Errorf("%+v", l)
		}
	}
	text, err := json.Marshal(old)
	if err != nil {
		t.Fatal(err)
	}
	now, err := ParseReport("x", text)
	if err != nil {
		t.Fatal(err)
	}
	sc := &now.Cells[0].Scores[0]
	sc.Value += 10 * sc.StdErr // every sample is worse
	for k := range sc.Jackknife {
		sc.Jackknife[k] += 10*sc.StdErr + 0.01*sc.StdErr*float64(k)
	}
	now.Cells[1].Scores[0].RefHash = "other"
	now.Cells[2].N = 80
	lines, err = Compare(old, now)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := WriteComparison(&b, lines); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`euler.*nfe=4 .*\+[0-9.]+% \(p=0.000 paired\) worse`, `not comparable: other reference`, `not comparable: 90 and 80 samples`, `nfe=9 .*equal`} {
		if !regexp.MustCompile(want).MatchString(b.String()) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	now.Cells = nil
	if _, err := Compare(old, now); err == nil {
		t.Error("nothing in common went through")
	}
	for _, bad := range []string{"", "[]", `{"format":9}`, `{"format":"x"}`} {
		if _, err := ParseReport("x", []byte(bad)); err == nil {
			t.Errorf("%q read as a report", bad)
		}
	}
}

func FuzzParseReport(f *testing.F) {
	f.Add([]byte(`{"format":1,"matrix":{"models":["a"],"metrics":["fid"],"nfe":[4]},"cells":[{"model":"a","sampler":"b","status":"done","n":2,"scores":[{"metric":"fid","value":1,"n":[1,2]}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ParseReport("x", text)
		if err != nil {
			return
		}
		if lines, err := Compare(r, r); err == nil {
			if err := WriteComparison(&bytes.Buffer{}, lines); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzRecords: whatever stands in a file of rows, it opens to rows that were written whole, or to none.
func FuzzRecords(f *testing.F) {
	path := filepath.Join(f.TempDir(), "r")
	r, err := openRecords(path, "key", 8)
	if err != nil {
		f.Fatal(err)
	}
	if err := r.add([]byte("abcdefghijklmnop")); err != nil {
		f.Fatal(err)
	}
	if err := r.close(); err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(text[:70])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "r")
		if err := os.WriteFile(path, b, 0o666); err != nil {
			t.Fatal(err)
		}
		r, err := openRecords(path, "key", 8)
		if err != nil {
			t.Fatal(err)
		}
		had := r.n
		if err := r.add([]byte("12345678")); err != nil {
			t.Fatal(err)
		}
		if err := r.close(); err != nil {
			t.Fatal(err)
		}
		again, err := openRecords(path, "key", 8)
		if err != nil || again.n != had+1 {
			t.Fatalf("%d rows after %d and one: %v", again.n, had, err)
		}
		if row, err := again.at(had); err != nil || string(row) != "12345678" {
			t.Fatalf("%q %v", row, err)
		}
		if err := again.close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	r, err := openRecords(path, "key", 16)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.add(slices.Concat([]byte(strings.Repeat("a", 16)), []byte(strings.Repeat("b", 16)))); err != nil {
		t.Fatal(err)
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key   string
		width int
		n     int
	}{{"key", 16, 2}, {"other", 16, 0}, {"key", 16, 0}} { // another key begins anew
		r, err := openRecords(path, c.key, c.width)
		if err != nil || r.n != c.n {
			t.Errorf("%+v: %d rows, %v", c, r.n, err)
		}
		if err := r.close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := openRecords(filepath.Join(path, "x"), "key", 8); err == nil {
		t.Error("a folder that is a file")
	}
}

// TestLock: one process at a time.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "cells"), 0o777); err != nil {
		t.Fatal(err)
	}
	l, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(dir); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second lock: %v", err)
	}
	l.release()
	if l, err = lockDir(dir); err != nil {
		t.Errorf("after the release: %v", err)
	}
	l.release()
}

// zoo is a small bench of an embedded model.
func zoo(t testing.TB) (string, Report, []Row) {
	t.Helper()
	ctx := context.Background()
	m, err := open.Open(ctx, "fashion-flow", open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	ex, err := features.Open("fashion", features.Options{Threads: 2, Tier: kernels.Detect()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ex.Close)
	pm, err := PictureMeasurer(ctx, ex, m.Info.Shape)
	if err != nil {
		t.Fatal(err)
	}
	train, err := features.Embedded(ex, "train-60000")
	if err != nil {
		t.Fatal(err)
	}
	s := &Subject{Name: "fashion-flow", Model: m, Measure: pm, Reference: ReferenceOf(train, ex, true)}
	mx := Matrix{Models: []string{"fashion-flow"}, Samplers: []string{"euler"}, Schedules: []string{"time"}, Guiders: []string{"", "cfg:w=2"},
		NFE: []int{2, 6}, Metrics: []string{"fid", "class-acc"}, Count: 32}
	dir := t.TempDir()
	r, rows := full(t, dir, mx, 16, s)
	return dir, r, rows
}

// TestZoo: guidance costs two evaluations, a second batch goes on where the first ended, more evaluations draw better
// pictures, and the page stands alone.
func TestZoo(t *testing.T) {
	dir, r, rows := zoo(t)
	v := map[string]Score{}
	for _, c := range r.Cells {
		sc, ok := c.Score("fid")
		if !ok {
			t.Fatalf("%s %s: %s", c.Name(), c.At(), c.Status)
		}
		v[c.Name()+" "+c.At()] = sc
		if c.Guiders != "" && (c.Steps != c.Budget/2 || c.NFE != float64(c.Budget)) {
			t.Errorf("%s %s: %d steps, %g evaluations", c.Name(), c.At(), c.Steps, c.NFE)
		}
		if acc, _ := c.Score("class-acc"); c.Budget == 6 && acc.Value < 0.6 {
			t.Errorf("%s: class accuracy %g", c.Name(), acc.Value)
		}
	}
	if a, b := v["fashion-flow/euler/time nfe=2"].Value, v["fashion-flow/euler/time nfe=6"].Value; !(a > b+5) {
		t.Errorf("distance %g with 2 evaluations, %g with 6", a, b)
	}
	if !slices.ContainsFunc(v["fashion-flow/euler/time nfe=2"].Warnings, func(w string) bool { return strings.HasPrefix(w, metrics.WarnFewSamples) }) {
		t.Error("32 samples of 64 features without a warning")
	}
	if len(rows[0].Sheet) != 12*784 {
		t.Errorf("a sheet of %d bytes", len(rows[0].Sheet))
	}
	// The same pictures, measured through a file, have the same distance.
	page, err := os.ReadFile(filepath.Join(dir, "report.html"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	if m := regexp.MustCompile(`(?i)https?:|src="[^d]|<link|@import|url\(`).FindString(text); m != "" {
		t.Errorf("the page refers to something: %q", m)
	}
	if n := strings.Count(text, `<img src="data:image/png;base64,`); n != len(r.Cells) {
		t.Errorf("%d pictures for %d cells", n, len(r.Cells))
	}
	t.Run("chromium", func(t *testing.T) { chromium(t, filepath.Join(dir, "report.html"), len(r.Cells)) })
}

// chromium opens the page from the disk in a headless browser: it sorts itself by the address and by clicks, all its
// pictures show, nothing goes wrong in its script, and nothing is asked of any other place.
func chromium(t *testing.T, path string, cells int) {
	bin := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell"} {
		if p, err := exec.LookPath(name); err == nil {
			bin = p
			break
		}
	}
	if bin == "" {
		t.Skip("no Chromium here: the page was not opened in a browser")
	}
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// A copy of the page that tells what it sees, and clicks on the head of fid.
	probe := `<p id="probe"></p><script>
window.addEventListener("load",function(){
 var ok=[].filter.call(document.images,function(i){return i.complete&&i.naturalWidth>0}).length;
 var asked=performance.getEntriesByType("resource").filter(function(e){return!/^data:/.test(e.name)}).length;
 var svg=[].filter.call(document.querySelectorAll("svg"),function(s){return s.getBoundingClientRect().width>100}).length;
 [].forEach.call(document.querySelectorAll("th button"),function(b){if(b.textContent==="fid"){b.click();b.click()}});
 document.getElementById("probe").textContent="probe "+ok+" "+document.images.length+" "+asked+" "+svg+" "+(window.failed||0);
});</script></body>`
	head := `<head><script>window.onerror=function(m){window.failed=m}</script>`
	copied := strings.Replace(strings.Replace(string(page), "</body>", probe, 1), "<head>", head, 1)
	clicked := filepath.Join(t.TempDir(), "clicked.html")
	if err := os.WriteFile(clicked, []byte(copied), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		address string
		down    bool
	}{{path + "#sort=fid", false}, {path + "#sort=-fid", true}, {clicked, true}} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		cmd := exec.CommandContext(ctx, bin, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
			"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--user-data-dir="+t.TempDir(), "--dump-dom", "file://"+c.address)
		out, err := cmd.Output()
		cancel()
		if err != nil {
			t.Fatalf("%s: %v", bin, err)
		}
		var v []float64
		for _, row := range regexp.MustCompile(`(?s)<tr>.*?</tr>`).FindAllString(string(out), -1) {
			cells := regexp.MustCompile(`data-v="([-0-9.e+]+)"`).FindAllStringSubmatch(row, -1)
			if len(cells) > 1 {
				var x float64
				if _, err := fmt.Sscan(cells[1][1], &x); err != nil {
					t.Fatal(err)
				}
				v = append(v, x)
			}
		}
		if c.down {
			slices.Reverse(v)
		}
		if len(v) != cells || !slices.IsSorted(v) {
			t.Errorf("%s: %v", c.address, v)
		}
		if c.address == clicked {
			want := fmt.Sprintf("probe %d %d 0 2 0", cells, cells) // two plots
			if got := regexp.MustCompile(`probe [^<]*`).FindString(string(out)); got != want {
				t.Errorf("the browser sees %q, want %q", got, want)
			}
		}
	}
}

// TestScorers: what cannot be scored is refused in words, never by a number.
func TestScorers(t *testing.T) {
	ctx := context.Background()
	rows := func(n, d int, f func(i, j int) float64) metrics.Matrix {
		m := metrics.Matrix{N: n, D: d, X: make([]float64, n*d)}
		for i := range n {
			for j := range d {
				m.X[i*d+j] = f(i, j)
			}
		}
		return m
	}
	side := func(id string, m metrics.Matrix) *Side {
		path := filepath.Join(t.TempDir(), "x.npz")
		if err := npz.Write(path, npz.Array{Name: "features", Shape: []int{m.N, m.D}, Data: m.X}); err != nil {
			t.Fatal(err)
		}
		s, err := features.OpenSet(path)
		if err != nil {
			t.Fatal(err)
		}
		s.ID.Extractor, s.ID.Resize = id, "none"
		return SetSide(s, nil, true)
	}
	wave := func(i, j int) float64 { return math.Sin(float64(i*7+j*3)) + 0.1*float64(i%5)*float64(j) }
	good, two := side("a", rows(40, 3, wave)), side("a", rows(40, 2, wave))
	other := side("b", rows(40, 3, wave))
	constant := side("a", rows(40, 3, func(int, int) float64 { return 1 }))
	broken := rows(40, 3, func(i, j int) float64 {
		if i == 30 {
			return math.NaN()
		}
		return wave(i, j)
	})
	nan := side("a", rows(40, 3, wave)) // of an extractor: a file of them is refused
	nan.Rows = func(context.Context) (metrics.Samples, metrics.Samples, error) { return broken, nil, nil }
	nan.Stats = func(context.Context) (metrics.Stats, error) { return metrics.StatsOf(broken, nan.ID) }
	nan.Blocks = func(ctx context.Context) (*metrics.Moments, []*metrics.Moments, error) {
		return blocksOf(ctx, broken, nan.ID)
	}
	for _, s := range Scorers() {
		if s.need == needLogits || s.need == needClasses {
			if _, err := s.Compute(ctx, Reference{}, good, Options{}); err == nil {
				t.Errorf("%s of features alone", s.Name)
			}
			continue
		}
		ref := Reference{Moments: good, Rows: good}
		sc, err := s.Compute(ctx, ref, good, Options{Seed: DefaultSeed})
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
		if s.NeedsReference() && s.Better < 0 && sc.Value > 1e-6 {
			t.Errorf("%s of a set with itself is %g", s.Name, sc.Value)
		}
		if !strings.Contains(sc.About(), "40 samples") || !strings.Contains(sc.About(), "extractor a, resize none") {
			t.Errorf("%s: %s", s.Name, sc.About())
		}
		if !s.NeedsReference() {
			continue
		}
		for _, c := range []struct {
			name string
			gen  *Side
			want error
		}{{"nan", nan, metrics.ErrNaN}, {"dims", two, metrics.ErrDims}, {"constant", constant, metrics.ErrConstant}, {"identity", other, metrics.ErrIdentity}} {
			v, err := s.Compute(ctx, ref, c.gen, Options{})
			if !errors.Is(err, c.want) {
				t.Errorf("%s, %s: %v with error %v", s.Name, c.name, v.Value, err)
			}
		}
		if sc, err := s.Compute(ctx, ref, other, Options{Force: true}); err != nil || !slices.ContainsFunc(sc.Warnings, func(w string) bool { return strings.Contains(w, "identity-forced") }) {
			t.Errorf("%s forced: %v %v", s.Name, sc.Warnings, err)
		}
		if _, err := s.Compute(ctx, Reference{}, good, Options{}); err == nil {
			t.Errorf("%s without a reference", s.Name)
		}
	}
}

// Half-written files of a bench go, files of the user that are called alike stay.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	m := matrix()
	m.Samplers, m.NFE = []string{"euler"}, []int{4}
	s := subject(t, classes)
	run(t, dir, m, 90, s)
	for name, kept := range map[string]bool{"notes.tmp2024.txt": true, "notes.tmp2024": true, "results.json.tmp1": false, "plot-energy.svg.tmp12": false, "cells/x.rec.tmp3": false} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o666); err != nil {
			t.Fatal(err)
		}
		run(t, dir, m, 90, s)
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != kept {
			t.Errorf("%s: kept %v, want %v", name, err == nil, kept)
		}
	}
}

// TestEveryScoreHasAnError: sets in files, of every score that compares with a reference or stands alone.
func TestEveryScoreHasAnError(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	write := func(name string, n int, scale float64) *features.Set {
		src := metrics.NewSource(uint32(n))
		x, l := make([]float64, n*4), make([]float64, n*3)
		src.Randn(x)
		src.Randn(l)
		for i := range x {
			x[i] = scale * x[i]
		}
		path := filepath.Join(dir, name)
		labels := make([]int64, n)
		if err := npz.Write(path, npz.Array{Name: "features", Shape: []int{n, 4}, Data: x}, npz.Array{Name: "logits", Shape: []int{n, 3}, Data: l}, npz.Array{Name: "labels", Shape: []int{n}, Data: labels}); err != nil {
			t.Fatal(err)
		}
		s, err := features.OpenSet(path)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ref := ReferenceOf(write("a.npz", 260, 1), nil, false)
	gen := SetSide(write("b.npz", 250, 1.3), nil, false)
	for _, s := range Scorers() {
		v, err := s.Compute(ctx, ref, gen, Options{Subsets: 3, Directions: 20, Size: 50, Splits: 1})
		if err != nil {
			t.Fatal(err)
		}
		if !(v.StdErr > 0) || len(v.Jackknife) != 20 || !(v.StdErr < v.Value) {
			t.Errorf("%s: %v +- %v, %d blocks", s.Name, v.Value, v.StdErr, len(v.Jackknife))
		}
		for _, col := range v.Columns() {
			if !(v.Error(col) > 0) {
				t.Errorf("%s has no error", col)
			}
		}
	}
	few := SetSide(write("c.npz", 3, 1), nil, false)
	if s, err := FindScorer("energy"); err != nil {
		t.Fatal(err)
	} else if v, err := s.Compute(ctx, ref, few, Options{}); err != nil || v.StdErr != 0 || v.Jackknife != nil {
		t.Errorf("three rows: %+v, %v", v, err)
	}
	// Fewer rows than features and constant ones are told of the extrapolation too.
	s, err := FindScorer("fid-inf")
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Compute(ctx, ref, SetSide(write("d.npz", 39, 1), nil, false), Options{})
	if err != nil || !strings.Contains(strings.Join(v.Warnings, "|"), metrics.WarnFewSamples+": subsets from 3 rows for 4 features") {
		t.Errorf("%v, %v", v.Warnings, err)
	}
}
