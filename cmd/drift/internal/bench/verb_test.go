package bench

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/job"
)

// toy is a verb whose seeds give x = seed * a + b in two pictures of one number, and the columns value and odd.
type toy struct {
	a, b  float64
	calls *int
	fail  int // call that ends with an error, 0 = none
}

func (toy) Close() error { return nil }

func (r toy) Facts() Facts {
	return Facts{Settings: map[string]float64{"a": r.a, "b": r.b}, Columns: []Column{{Name: "value", Better: 1}, {Name: "odd", Better: -1}}, Shape: []int{1}, Pictures: 2, Cost: Cost{NFE: 3 * r.a}}
}

func (r toy) Run(_ context.Context, t Task) error {
	for _, seed := range t.Seeds {
		select {
		case <-t.Stop:
			return job.ErrStopped
		default:
		}
		if *r.calls++; *r.calls == r.fail {
			return errors.New("killed")
		}
		v := r.a*float64(seed%7) + r.b*float64(seed%3)
		odd := float64(seed % 2)
		if seed%5 == 0 {
			odd = math.NaN()
		}
		t.Step(0.5)
		if err := t.Done(Result{Cost{3 * r.a, 1, 2}, []float64{v, odd}, []float64{v, -v}}); err != nil {
			return err
		}
	}
	return nil
}

func toyVerb(calls *int, fail int) Verb {
	return Verb{
		Command: func() *cli.Command {
			return &cli.Command{Name: "toy", Flags: []cli.Flag{&cli.Float64Flag{Name: "a"}, &cli.Float64Flag{Name: "b"}, &cli.StringFlag{Name: "model"}, &cli.IntFlag{Name: "count"},
				&cli.StringSliceFlag{Name: "guider"}}}
		},
		Open: func(c *cli.Context) (Runner, error) {
			if c.Float64("b") < 0 {
				return nil, fmt.Errorf("b is %g", c.Float64("b"))
			}
			if got := c.StringSlice("guider"); c.IsSet("guider") && !slices.Equal(got, []string{"cfg:w=2,from=0.1", "clip"}) {
				return nil, fmt.Errorf("guiders are %q", got)
			}
			return toy{c.Float64("a"), c.Float64("b"), calls, fail}, nil
		},
		Baseline: map[string]Baseline{"plain": func(cell Facts, args Args) (Args, error) {
			if cell.Cost.NFE == 0 {
				return nil, errors.New("no cost")
			}
			return args.Set("b", "0"), nil
		}},
	}
}

// verbBench makes a whole bench of toy in dir.
func verbBench(t *testing.T, dir string, v Verb, count, batch int, baseline string, axes ...Axis) (Report, []Row, error) {
	t.Helper()
	ctx := context.Background()
	s := subject(t, normal)
	m := Matrix{Metrics: []string{"value", "odd", "fid"}, Count: count, Seed: 3}
	cells, err := m.VerbCells(ctx, v, Args{{"guider", "cfg:w=2,from=0.1+clip"}}, axes, baseline, func(string, []int) (*Subject, error) { return s, nil })
	if err != nil {
		t.Fatal(err)
	}
	b := &Bench{Version: "test", Dir: dir, Matrix: m, Cells: cells, Batch: batch}
	rows, err := b.Run(ctx, nil)
	if err != nil {
		return Report{}, nil, err
	}
	r := NewReport("test", m, rows)
	if err := Write(dir, r, rows); err != nil {
		t.Fatal(err)
	}
	return r, rows, nil
}

func TestVerb(t *testing.T) {
	calls := 0
	dir := t.TempDir()
	axes := []Axis{{"a", []string{"1", "2"}}, {"b", []string{"0", "1", "-1"}}}
	r, rows, err := verbBench(t, dir, toyVerb(&calls, 0), 30, 7, "plain", axes...)
	if err != nil {
		t.Fatal(err)
	}
	if calls != 4*30 { // b=0 is the baseline of both cells of its a
		t.Errorf("%d runs", calls)
	}
	if len(r.Cells) != 6 || r.Cells[2].Status == statusDone || !strings.Contains(r.Cells[2].Status, "b is -1") {
		t.Fatalf("%d cells, %s", len(r.Cells), r.Cells[2].Status)
	}
	c := r.Cells[4] // a=2, b=1
	var sum, sq float64
	for k := 3; k < 33; k++ {
		v := 2*float64(k%7) + float64(k%3)
		sum += v
		sq += v * v
	}
	mean := sum / 30
	se := math.Sqrt((sq - sum*mean) / 29 / 30)
	s, ok := c.Score("value")
	if !ok || math.Abs(s.Value-mean) > 1e-12 || math.Abs(s.StdErr-se) > 1e-12 || s.Better != 1 {
		t.Errorf("value %+v, want %g with error %g", s, mean, se)
	}
	if s, _ := c.Score("odd"); s.N[0] != 24 || s.StdErr == 0 || s.Jackknife != nil {
		t.Errorf("odd of 24 seeds: %+v", s)
	}
	if s, ok := c.Score("fid"); !ok || s.N[1] != 60 || s.Value <= 0 {
		t.Errorf("fid of 60 pictures: %+v", s)
	}
	if c.NFE != 6 || c.VJPs != 1 || c.Rewards != 2 {
		t.Errorf("cost %+v", c)
	}
	base, ok := c.base().Score("value")
	if d := change(c.base(), c, "value", base, s); !ok || !d.Paired || math.Abs(d.New-d.Old-1) > 1e-12 {
		t.Errorf("difference to the baseline %+v", d) // seeds 3 to 32: ten of each remainder by 3
	}
	if _, ok := r.Cells[0].base().Score("value"); !ok {
		t.Error("a cell that is its own baseline has none")
	}
	text, err := os.ReadFile(filepath.Join(dir, "seeds.csv"))
	if err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(bytes.NewReader(text)).ReadAll()
	if err != nil || !slices.Equal(lines[0], []string{"model", "a", "b", "baseline", "seed", "nfe", "vjps", "rewards", "value", "odd"}) || len(lines) != 1+8*30 {
		t.Fatalf("%v, %d lines, %v", err, len(lines), lines[0])
	}
	for _, l := range lines[1:] {
		a, _ := strconv.ParseFloat(l[1], 64)
		b, _ := strconv.ParseFloat(l[2], 64)
		seed, _ := strconv.ParseUint(l[4], 10, 64)
		if l[3] == "plain" {
			b = 0
		}
		if want := number(a*float64(seed%7) + b*float64(seed%3)); l[8] != want {
			t.Errorf("%v: want %s", l, want)
		}
	}
	for _, name := range []string{"heat.png", "heat.svg", "heat-odd.png", "pareto.png", "pareto.svg", "plot.png", "report.html", "results.md"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() < 500 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(rows) != 10 {
		t.Errorf("%d rows", len(rows))
	}
	one := []Axis{{"a", []string{"1"}}}
	if _, _, err := verbBench(t, t.TempDir(), toyVerb(&calls, 0), 5, 1, "", one...); err != nil {
		t.Error(err)
	}
	m := Matrix{Count: 5}
	s1 := subject(t, normal)
	for want, axes := range map[string][]Axis{"no flag \"c\"": {{"c", []string{"1"}}}, "no flag \"count\"": {{"count", []string{"1"}}}, "b is -1": {{"b", []string{"-1"}}}} {
		_, err := m.VerbCells(context.Background(), toyVerb(&calls, 0), nil, axes, "", func(string, []int) (*Subject, error) { return s1, nil })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestVerbGoesOn ends a bench of a verb after every number of seeds, and gets the bytes of the undisturbed one.
func TestVerbGoesOn(t *testing.T) {
	calls := 0
	axes := []Axis{{"a", []string{"1", "2"}}, {"b", []string{"0", "1"}}}
	whole := t.TempDir()
	if _, _, err := verbBench(t, whole, toyVerb(&calls, 0), 6, 1, "plain", axes...); err != nil {
		t.Fatal(err)
	}
	total := calls
	dir := t.TempDir()
	made := 0
	for fail := 3; ; fail-- { // a cell that fails is told, and gone on with by the next bench
		calls = 0
		if _, _, err := verbBench(t, dir, toyVerb(&calls, max(fail, 0)), 6, 1, "plain", axes...); err != nil {
			t.Fatal(err)
		}
		if made += calls; fail <= 0 {
			break
		}
	}
	if made != total+3 { // the three that failed were made twice
		t.Errorf("%d seeds made, %d in a bench that nothing disturbed", made, total)
	}
	for _, name := range []string{"results.json", "results.csv", "results.md", "seeds.csv", "heat.svg", "pareto.svg", "plot.svg"} {
		a, e1 := os.ReadFile(filepath.Join(whole, name))
		b, e2 := os.ReadFile(filepath.Join(dir, name))
		if e1 != nil || e2 != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs: %v %v", name, e1, e2)
		}
	}
}

func TestAxes(t *testing.T) {
	got, err := Axes("lambda=0.5,1 --methods=dps:zeta=0.5,rho=1;pigdm resampler=systematic")
	want := []Axis{{"lambda", []string{"0.5", "1"}}, {"methods", []string{"dps:zeta=0.5,rho=1", "pigdm"}}, {"resampler", []string{"systematic"}}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v %v", got, err)
	}
	for _, text := range []string{"lambda", "lambda=", "=3", "a=1 a=2"} {
		if _, err := Axes(text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func TestGuiders(t *testing.T) {
	for text, want := range map[string]string{
		"cfg:w=1,1.5,2":                    "cfg:w=1 cfg:w=1.5 cfg:w=2",
		"cfg:w=1,2,interval=0.3-3;default": "cfg:w=1,interval=0.3-3 cfg:w=2,interval=0.3-3 default",
		"apg:w=4,eta=0,beta=-0.5,-0.75":    "apg:w=4,eta=0,beta=-0.5 apg:w=4,eta=0,beta=-0.75",
		"cfg:w=1,2+clip:at=1,2":            "cfg:w=1+clip:at=1 cfg:w=1+clip:at=2 cfg:w=2+clip:at=1 cfg:w=2+clip:at=2",
		"cfg:w=max(1,2)":                   "cfg:w=max(1,2)",
		"none":                             "none",
	} {
		if got := strings.Join(Guiders(text), " "); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}
