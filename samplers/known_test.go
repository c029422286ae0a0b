package samplers_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// TestKnown: what is kept is kept at every node, through Select and Save too, and refused where it does not fit.
func TestKnown(t *testing.T) {
	ctx := context.Background()
	m, err := analytic.Parse([]byte(`{"type": "mixture", "weights": [1], "means": [[0.5, -0.5, 0]], "vars": [[1, 0.2, 0.5]], "process": {"type": "flow"}, "prediction": "velocity"}`))
	if err != nil {
		t.Fatal(err)
	}
	grid, err := schedules.NewGrid(schedules.Flow{}, "time", 5, schedules.Ends{})
	if err != nil {
		t.Fatal(err)
	}
	known := &samplers.Known{
		X0:   models.Wrap([]float64{1, 2, 3, 4, 5, 6}, 2, 3),
		Z:    models.Wrap([]float64{0.1, -0.2, 0.3, -0.4, 0.5, -0.6}, 2, 3),
		Mask: []float64{0, 1, 0.5},
	}
	problem := &samplers.Problem{Model: m, Grid: grid, Rows: []models.Row{{Seed: 1}, {Seed: 2}}, Shape: []int{3}, Known: known}
	s, err := samplers.Parse("dpmpp-2m")
	if err != nil {
		t.Fatal(err)
	}
	run, err := s.Begin(ctx, problem)
	if err != nil {
		t.Fatal(err)
	}
	first := func(from ...int) {
		t.Helper()
		st := run.State()
		for row, k := range from {
			alpha, sigma := st.At.Alpha, st.At.Sigma
			want := alpha*models.Data(known.X0)[3*k] + sigma*models.Data(known.Z)[3*k]
			if got := models.Data(st.X)[3*row]; got != want {
				t.Errorf("node %d, row %d: %g, want %g", st.I, row, got, want)
			}
		}
	}
	for range 2 {
		if _, err := run.Next(ctx); err != nil {
			t.Fatal(err)
		}
		first(0, 1)
	}
	if err := run.(samplers.Selector).Select([]int{1, 1, 0}, []models.Row{{Seed: 3}, {Seed: 4}, {Seed: 5}}); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Next(ctx); err != nil {
		t.Fatal(err)
	}
	first(1, 1, 0)
	var file bytes.Buffer
	if err := run.(samplers.Saver).Save(&file); err != nil {
		t.Fatal(err)
	}
	again, err := samplers.Resume(ctx, s, problem, &file)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2][]float64
	for i, r := range []samplers.Run{run, again} {
		for done := false; !done; {
			if done, err = r.Next(ctx); err != nil {
				t.Fatal(err)
			}
		}
		ends[i] = slices.Clone(models.Data(r.State().X))
	}
	if !slices.Equal(ends[0], ends[1]) {
		t.Errorf("a run that goes on ends at %v, not at %v", ends[1], ends[0])
	}
	if ends[0][0] != 4 || ends[0][3] != 4 || ends[0][6] != 1 {
		t.Errorf("the end is %v", ends[0])
	}
	for want, p := range map[string]samplers.Problem{
		"places its own": {Model: m, Grid: grid[:2], Rows: problem.Rows, Shape: []int{3}, Known: known},
		"does not fit":   {Model: m, Grid: grid, Rows: problem.Rows[:1], Shape: []int{3}, Known: known},
	} {
		name := "euler"
		if want == "places its own" {
			name = "rk45"
		}
		s, err := samplers.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Begin(ctx, &p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error that says %q", err, want)
		}
	}
}
