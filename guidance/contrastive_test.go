package guidance_test

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/guidance"
	"drift/internal/npz"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// TestContrastive holds the energy to the fixture, to finite differences, and to its limits: none without negatives or with
// the same examples on both sides.
func TestContrastive(t *testing.T) {
	ctx := context.Background()
	at := &models.Query{At: []schedules.Node{{Alpha: 1}}}
	for _, c := range systems(t, "contrastive") {
		in := guidance.Contrastive{Positive: get[[][]float64](t, c.Inputs, "positive"), Negative: get[[][]float64](t, c.Inputs, "negative"),
			Phi: get[[][]float64](t, c.Inputs, "phi"), Tau: get[float64](t, c.Inputs, "tau")}
		x, grad, e := models.New(1, 3), models.New(1, 3), make([]float64, 1)
		copy(models.Data(x), get[[]float64](t, c.Inputs, "x0"))
		if err := in.Energy(ctx, at, x, e, grad); err != nil {
			t.Fatal(err)
		}
		c.near(t, "energy", e[0], get[float64](t, c.Expected, "energy"))
		for j, want := range get[[]float64](t, c.Expected, "gradient") {
			c.near(t, "gradient", models.Data(grad)[j], want)
		}
		if _, worst, err := guidance.CheckEnergy(ctx, in, at, x); err != nil || worst > 1e-6 {
			t.Errorf("finite differences are off by %g, %v", worst, err)
		}
		for _, none := range []guidance.Contrastive{{Positive: in.Positive, Phi: in.Phi}, {Positive: in.Positive, Negative: in.Positive, Phi: in.Phi}} {
			if err := none.Energy(ctx, at, x, e, grad); err != nil {
				t.Fatal(err)
			}
			for _, g := range models.Data(grad) {
				if math.Abs(g) > 1e-12 {
					t.Errorf("%d negatives that change nothing: gradient %g", len(none.Negative), g)
				}
			}
			if want := math.Log(float64(1 + len(none.Negative)/2)); math.Abs(e[0]-want) > 1e-12 {
				t.Errorf("%d negatives that change nothing: energy %g, want %g", len(none.Negative), e[0], want)
			}
		}
		in.Phi = nil
		if err := in.Energy(ctx, at, x, e, grad); err == nil || !strings.Contains(err.Error(), "has 2 numbers, want 3") {
			t.Errorf("examples of another width: %v", err)
		}
	}
}

// TestContrastiveGuides: scale 0 leaves every bit, the examples of a file draw samples to them, and a run without examples on
// something that brings none is refused.
func TestContrastiveGuides(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.npz"), filepath.Join(dir, "bad.npz")
	for path, v := range map[string][]float64{good: {1, 0}, bad: {-1, 0}} {
		if err := npz.Write(path, npz.Array{Name: "x", Shape: []int{1, 2}, Data: v}); err != nil {
			t.Fatal(err)
		}
	}
	m := target(t)
	gau := m.Process().(schedules.Gaussian)
	grid, err := schedules.NewGrid(gau, schedules.DefaultGrid(gau), 12, schedules.Ends{})
	if err != nil {
		t.Fatal(err)
	}
	run := func(d models.Denoiser) ([]float64, error) {
		p := &samplers.Problem{Model: d, Grid: grid, Shape: []int{2}}
		for k := range 256 {
			p.Rows = append(p.Rows, models.Row{Seed: uint64(k)})
		}
		res, err := samplers.Sample(context.Background(), samplers.Euler{}, p)
		if err != nil {
			return nil, err
		}
		return models.Data(res.X), nil
	}
	first := func(spec string) float64 {
		x, err := run(guide(t, m, spec))
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for k := range 256 {
			sum += x[2*k] / 256
		}
		return sum
	}
	plain, err := run(m)
	if err != nil {
		t.Fatal(err)
	}
	off, err := run(guide(t, m, "contrastive:scale=0,positive="+good+",negative="+bad))
	if err != nil || !slices.Equal(plain, off) {
		t.Errorf("scale 0 is not the unguided run: %v", err)
	}
	a, b := first("contrastive:positive="+good+",negative="+bad), first("contrastive:positive="+bad+",negative="+good)
	if !(a > b+0.3) {
		t.Errorf("the mean is %.3f towards (1, 0) and %.3f towards (-1, 0)", a, b)
	}
	if _, err := guidance.Parse("contrastive:negative=" + bad); err == nil || !strings.Contains(err.Error(), "want positive") {
		t.Errorf("negatives alone: %v", err)
	}
	if _, err := run(guide(t, blind{m}, "contrastive")); err == nil || !strings.Contains(err.Error(), "wants positive examples") {
		t.Errorf("no examples: %v", err)
	}
}

// blind hides what is below it.
type blind struct{ models.Denoiser }
