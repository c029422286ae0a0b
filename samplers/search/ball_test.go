package search

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

func plane(t *testing.T, process, kind string) (*Distance, Space) {
	t.Helper()
	m, err := analytic.Parse(fmt.Appendf(nil, `{"type":"mixture","weights":[0.4,0.6],"means":[[-1,0.3],[1.5,-0.5]],"vars":[[0.06,0.1],[0.25,0.2]],"process":%s,"prediction":%q}`, process, kind))
	if err != nil {
		t.Fatal(err)
	}
	d := models.Metered(m)
	g, err := schedules.NewGrid(m.Process().(schedules.Gaussian), "time", 60, schedules.Ends{Final: "zero"})
	if err != nil {
		t.Fatal(err)
	}
	p := &samplers.Problem{Model: d, Shape: []int{2}, Rows: make([]models.Row, 12)}
	for k := range p.Rows {
		p.Rows[k].Seed = uint64(k)
	}
	s, err := samplers.Parse("rk4")
	if err != nil {
		t.Fatal(err)
	}
	dist, err := NewDistance(context.Background(), p, s, g)
	if err != nil {
		t.Fatal(err)
	}
	return dist, Space{Process: m.Process().(schedules.Gaussian), From: g[0], To: g[len(g)-1], Steps: 4, Order: 3}
}

// TestBallGradient holds the adjoint of the student to finite differences of the samplers' own runs.
func TestBallGradient(t *testing.T) {
	ctx := context.Background()
	for process, kind := range map[string]string{`{"type":"flow"}`: "velocity", `{"type":"vp-linear"}`: "eps", `{"type":"edm"}`: "x0"} {
		d, space := plane(t, process, kind)
		lam, err := space.grid("lambda")
		if err != nil {
			t.Fatal(err)
		}
		delta := []float64{0.05, -0.04, 0.02, 0.03, 0.01, -0.02, 0.04, -0.03, 0.02, 0, 0, 0}
		s, err := space.multistep(student{lam: lam, delta: delta})
		if err != nil {
			t.Fatal(err)
		}
		grad, sigma, err := d.gradient(ctx, s)
		if err != nil {
			t.Fatalf("%s: %v", process, err)
		}
		if sigma != space.From.Sigma {
			t.Errorf("%s: noise %g at the start", process, sigma)
		}
		h := 1e-4 * sigma
		for j := range grad {
			at := func(by float64) float64 {
				moved := *d
				x := slices.Clone(models.Data(d.Problem.Start))
				x[j] += by
				moved.Problem.Start = models.Wrap(x, d.Problem.Start.Shape()...)
				rows, err := moved.Rows(ctx, samplers.USF{Schedule: s}, nil)
				if err != nil {
					t.Fatal(err)
				}
				return rows[j/2]
			}
			if want := (at(h) - at(-h)) / (2 * h); math.Abs(grad[j]-want) > 1e-5*(1e-3/sigma+math.Abs(want)) {
				t.Errorf("%s: derivative %d is %.10g, by differences %.10g", process, j, grad[j], want)
			}
		}
	}
}

// TestRelaxed: radius 0 is the plain distance, and a larger ball never has a larger minimum by much; a search on it finds
// a student.
func TestRelaxed(t *testing.T) {
	ctx := context.Background()
	d, space := plane(t, `{"type":"flow"}`, "velocity")
	lam, err := space.grid("time")
	if err != nil {
		t.Fatal(err)
	}
	s, err := space.multistep(student{lam: lam, delta: make([]float64, 12)})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := d.Score(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := (Relaxed{Distance: d}).Score(ctx, s); err != nil || v != plain {
		t.Errorf("radius 0 scores %g, %v; the distance is %g", v, err, plain)
	}
	last := plain
	for _, r := range []float64{1e-3, 3e-3, 1e-2} {
		v, err := Relaxed{d, r}.Score(ctx, s)
		if err != nil || !(v < last) {
			t.Errorf("radius %g scores %g, %v; before %g", r, v, err, last)
		}
		last = v
	}
	var log Log
	if err := (S4S{Space: space, Objective: Relaxed{d, 0.01}.Score, Seed: 1}).Run(ctx, &log, Budget{Evaluations: 150}); err != nil {
		t.Fatal(err)
	}
	best := log.Best(1)[0]
	if end, err := d.Score(ctx, best.Schedule); err != nil || !(best.Score < last) || !(end < plain) {
		t.Errorf("the search scores %g with the ball and %g without (%v); it began at %g and %g", best.Score, end, err, last, plain)
	}
	s.Steps[1].Weights, s.Steps[1].Order = nil, 1
	s.Steps[1].Pred = schedules.Eps
	if _, err := (Relaxed{d, 0.01}).Score(ctx, s); err == nil || !strings.Contains(err.Error(), "data predictions, step 1") {
		t.Errorf("a schedule of another form: %v", err)
	}
}
