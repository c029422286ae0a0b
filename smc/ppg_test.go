package smc

import (
	"bytes"
	"context"
	"math"
	"slices"
	"testing"

	"drift/models"
	"drift/samplers"
)

// TestPPG: the first sweep's normaliser is unbiased for the tilt of DDPM's own law; sweeps bring the mean of few particles
// to it; saved runs go on.
func TestPPG(t *testing.T) {
	ctx := context.Background()
	m := normal01(t)
	const n, lambda, groups = 40, 1.0, 300
	grid := world(n)
	// DDPM's small variance on N(0, 1): the law is N(0, v), and the tilt N(lambda v, v) with log Z = lambda^2 v/2.
	v := 1.0
	for k := range n {
		s, u := grid[k], grid[k+1]
		rho := s.Alpha * u.Sigma / (u.Alpha * s.Sigma)
		rho *= rho
		c := u.Alpha*(1-rho)*s.Alpha + s.Alpha/u.Alpha*u.Sigma*u.Sigma/(s.Sigma*s.Sigma)
		v = c*c*v + u.Sigma*u.Sigma*(1-rho)
	}
	p := &samplers.Problem{Model: m, Grid: grid, Rows: Rows(seeds(groups), 6), Shape: []int{1}}
	got := tally{}
	g := PPG{Sweeps: 8, Reward: linear(1), Lambda: lambda}
	g.Observe = func(c *Check) error {
		for k := range groups {
			w, err := Weigh(c.Before[6*k : 6*k+6])
			if err != nil {
				return err
			}
			mean := 0.0
			for j, u := range w.W {
				mean += u * models.Data(c.X0)[6*k+j]
			}
			switch {
			case c.Step == 1:
				got.add("first", mean)
			case c.Last:
				got.add("last", mean)
			}
		}
		return nil
	}
	res := sample(t, g, p)
	for _, k := range res.Run.(*PPGRun).Groups() {
		got.add("Z", math.Exp(k.LogZ-lambda*lambda*v/2))
	}
	got.near(t, "Z", 1)
	got.near(t, "last", lambda*v)
	if first, _ := got.mean("first"); first > lambda*v-0.1 {
		t.Errorf("one pass of 6 particles has mean %.3f, no bias against %.3f: the test has no power", first, lambda*v)
	}
	small := &samplers.Problem{Model: m, Grid: world(6), Rows: Rows([]uint64{4, 9}, 3), Shape: []int{1}}
	g = PPG{Sweeps: 4, Reward: linear(1), Lambda: 1}
	whole := sample(t, g, small)
	for at := range 4 {
		run, err := g.Begin(ctx, small)
		if err != nil {
			t.Fatal(err)
		}
		for range at {
			if _, err := run.Next(ctx); err != nil {
				t.Fatal(err)
			}
		}
		var b bytes.Buffer
		if err := run.(samplers.Saver).Save(&b); err != nil {
			t.Fatal(err)
		}
		if run, err = samplers.Resume(ctx, g, small, &b); err != nil {
			t.Fatal(err)
		}
		rest, err := samplers.Drive(ctx, run, small)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(models.Data(rest.X), models.Data(whole.X)) {
			t.Errorf("saved after %d sweeps: another result", at)
		}
	}
	one := sample(t, g, &samplers.Problem{Model: m, Grid: world(6), Rows: Rows([]uint64{9}, 3), Shape: []int{1}})
	if !slices.Equal(models.Data(one.X), models.Data(whole.X)[3:]) {
		t.Error("a group depends on the others of its batch")
	}
	if _, err := g.Begin(ctx, &samplers.Problem{Model: m, Grid: world(6), Rows: Rows(seeds(2), 1), Shape: []int{1}}); err == nil {
		t.Error("one particle")
	}
}

func TestDGFS(t *testing.T) {
	b := Bridge{Sigma: 1.5, T: 1, Steps: 60}
	d := DGFS{Bridge: b, Density: func(int) (Density, Control, error) {
		return gaussian(1.5, 0.3, 1), b.GaussianControl([]float64{1.5}, []float64{0.3}), nil
	}}
	res := sample(t, d, &samplers.Problem{Grid: world(1), Rows: Rows(seeds(3), 200), Shape: []int{1}})
	for k, g := range res.Run.(*DGFSRun).Groups() {
		if math.Abs(g.LogZ-1) > 0.03 || res.Run.(*DGFSRun).ELBO()[k] > g.LogZ || g.ESS < 150 {
			t.Errorf("%+v, ELBO %g", g, res.Run.(*DGFSRun).ELBO()[k])
		}
	}
}
