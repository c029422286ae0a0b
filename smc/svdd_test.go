package smc

import (
	"bytes"
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/samplers"
)

func TestPickGoldens(t *testing.T) {
	n := 0
	for _, g := range goldens(t, "svdd.json") {
		if g.Kind != "golden" {
			continue
		}
		in := decode[struct {
			U           []float64
			Temperature float64
		}](t, g.Inputs)
		want := decode[struct {
			Values       [][]float64
			Argmax, Soft []int
		}](t, g.Expected)
		for b, v := range want.Values {
			n++
			i, err := pick(v, 0, nil)
			if err != nil || i != want.Argmax[b] {
				t.Errorf("%s: largest of row %d is %d, want %d (%v)", g.Name, b, i, want.Argmax[b], err)
			}
			if i, err = pick(v, in.Temperature, given(in.U[b:b+1])); err != nil || i != want.Soft[b] {
				t.Errorf("%s: draw of row %d is %d, want %d (%v)", g.Name, b, i, want.Soft[b], err)
			}
		}
	}
	if n < 8 {
		t.Errorf("only %d rows", n)
	}
	for _, temperature := range []float64{0, 1} {
		if _, err := pick([]float64{math.Inf(-1), math.Inf(-1)}, temperature, given(nil)); !errors.Is(err, ErrDead) {
			t.Errorf("no candidate left: %v", err)
		}
	}
}

// TestSVDDFixtures: the exact recursion of the largest of M, and soft selection's limit.
func TestSVDDFixtures(t *testing.T) {
	budget := 100_000.
	if isSlow() {
		budget = 2e7
	}
	n := 0
	for _, g := range goldens(t, "svdd.json") {
		if g.Kind != "statistical" {
			continue
		}
		o := decode[struct {
			Steps, Candidates int
			Kernel, Selection string
			Temperature       float64
		}](t, g.Options)
		runs := min(g.Runs, int(budget/float64(o.Steps*o.Candidates)))
		if runs < 100 {
			continue
		}
		n++
		t.Run(g.Name, func(t *testing.T) {
			s := SVDD{Base: samplers.DDPM{Variance: samplers.FixedLarge}, M: o.Candidates, Reward: linear(1), Temperature: o.Temperature}
			if o.Kernel == "ddim1" {
				s.Base = samplers.DDIM{Eta: 1}
			}
			if o.Selection == "argmax" {
				s.Temperature = 0
			}
			res := sample(t, s, &samplers.Problem{Model: normal01(t), Grid: world(o.Steps), Rows: Rows(seeds(runs), 1), Shape: []int{1}})
			a := tally{"x": models.Data(res.X)}
			mean, sd := a.mean("x")
			g.Stats[0].hold(t, mean, runs)
			g.Stats[1].hold(t, sd*sd*float64(runs-1)/float64(runs), runs)
		})
	}
	if n < 6 {
		t.Errorf("only %d cases", n)
	}
}

func TestSVDD(t *testing.T) {
	m := targets(t)[1]
	problem := func(rows []models.Row) *samplers.Problem {
		return &samplers.Problem{Model: models.Metered(m), Grid: world(12), Rows: rows, Shape: []int{2}}
	}
	rows := Rows([]uint64{3, 4, 5}, 2)
	for _, name := range []string{"ddim:eta=1", "dpmpp-2m-sde", "euler:churn=4"} {
		base, err := samplers.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		plain := sample(t, base, problem(rows))
		one := sample(t, SVDD{Base: base, M: 1, Reward: linear(1, 1)}, problem(rows))
		if !slices.Equal(models.Data(one.X), models.Data(plain.X)) || one.Stats.NFE != plain.Stats.NFE {
			t.Errorf("%s: one candidate changes the samples", name)
		}
		pm := SVDD{Base: base, M: 4, Reward: linear(1, 1), Temperature: 0.5}
		res := sample(t, pm, problem(rows))
		if name != "euler:churn=4" && res.Stats.NFE != 1+11*4 {
			t.Errorf("%s: %g evaluations, want %d", name, res.Stats.NFE, 1+11*4)
		}
		up := func(x []float64) (s float64) {
			for _, v := range x {
				s += v
			}
			return s
		}
		if up(models.Data(res.X)) <= up(models.Data(plain.X)) {
			t.Errorf("%s: values did not grow", name)
		}
		for k := range rows { // samples know nothing of each other
			alone := sample(t, pm, problem(rows[k:k+1]))
			if !slices.Equal(models.Data(alone.X), models.Data(res.X)[2*k:2*k+2]) {
				t.Errorf("%s: row %d alone differs", name, k)
			}
		}
		mc := sample(t, SVDD{Base: base, M: 4, Value: linear(1, 1)}, problem(rows))
		if name != "euler:churn=4" && mc.Stats.NFE != 12 {
			t.Errorf("%s: %g evaluations with a value function, want 12", name, mc.Stats.NFE)
		}
		// Interrupted at every step, by hand and by a reward that fails.
		broken := errors.New("no answer")
		for stop := 0; stop <= 12; stop++ {
			for _, fails := range []bool{false, true} {
				calls := 0
				s := pm
				s.Reward = func(ctx context.Context, x *tensor.Dense, l *Look) ([]float64, error) {
					if calls++; fails && calls == stop+1 {
						return nil, broken
					}
					return pm.Reward(ctx, x, l)
				}
				p := problem(rows)
				run, err := s.Begin(context.Background(), p)
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; fails || i < stop; i++ {
					done, err := run.Next(context.Background())
					if err != nil && !(fails && errors.Is(err, broken)) {
						t.Fatal(err)
					}
					if done || err != nil {
						break
					}
				}
				var buf bytes.Buffer
				if err := run.(samplers.Saver).Save(&buf); err != nil {
					t.Fatal(err)
				}
				again, err := samplers.Resume(context.Background(), pm, p, &buf)
				if err != nil {
					t.Fatal(err)
				}
				got, err := samplers.Drive(context.Background(), again, p)
				if err != nil || !slices.Equal(models.Data(got.X), models.Data(res.X)) {
					t.Errorf("%s: stopped after %d steps (failing reward: %v), the end differs: %v", name, stop, fails, err)
				}
			}
		}
	}
	for want, s := range map[string]SVDD{
		"no step noise": {Base: samplers.UniPC{}, M: 2, Reward: linear(1)},
		"no base":       {M: 2, Reward: linear(1)},
		"not both":      {Base: samplers.DDPM{}, M: 2},
		"temperature":   {Base: samplers.DDPM{}, M: 2, Reward: linear(1), Temperature: math.NaN()},
		"image by":      {Base: samplers.DPMAdaptive{Eta: 1}, M: 2, Reward: linear(1)},
	} {
		if _, err := s.Begin(context.Background(), problem(rows)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	nan := func(_ context.Context, x *tensor.Dense, _ *Look) ([]float64, error) {
		return slices.Repeat([]float64{math.NaN()}, x.Shape()[0]), nil
	}
	_, err := samplers.Sample(context.Background(), SVDD{Base: samplers.DDPM{}, M: 2, Reward: nan}, problem(rows))
	var re *RewardError
	if !errors.As(err, &re) || re.Row.Seed != 3 {
		t.Errorf("NaN: %v", err)
	}
}
