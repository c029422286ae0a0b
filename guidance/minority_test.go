package guidance_test

import (
	"context"
	"math"
	"slices"
	"testing"

	"drift/guidance"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// TestMinorityGolden: one guided step to the reference's, everything on the way included.
func TestMinorityGolden(t *testing.T) {
	for _, c := range systems(t, "minority-step") {
		m := c.mixture(t)
		var o struct {
			Metric    string
			P         float64
			Steps     int
			StepIndex int `json:"step_index"`
		}
		c.read(t, "Options", &o)
		num := func(key string) float64 { return get[float64](t, c.Inputs, key) }
		x, eps, noise := get[[][]float64](t, c.Inputs, "x"), get[[][]float64](t, c.Inputs, "eps"), get[[][]float64](t, c.Inputs, "noise")
		var grid schedules.Grid // the whole grid, whose step of that index is made
		for i := o.Steps - 1; i >= 0; i-- {
			grid = append(grid, m.Process().(schedules.Gaussian).At(math.RoundToEven(999*float64(i)/float64(o.Steps-1))))
		}
		grid = append(grid, schedules.Node{T: -1, Alpha: 1})
		first := o.Steps - 1 - o.StepIndex
		c.near(t, "alpha", grid[first].Alpha, num("alpha"))
		c.near(t, "sigma_next", grid[first+1].Sigma, num("sigma_next"))
		var dist []float64
		g := guidance.Minority{Scale: num("scale"), Every: 1, P: o.P, Grid: grid, Square: o.Metric == "l2-squared",
			Probe:   func(dst []float64, _ *models.Query, row, _ int) { copy(dst, eps[row]) },
			Measure: func(q *models.Query, d []float64) { dist = slices.Clone(d) }}
		s, err := samplers.Parse("ddim:eta=1")
		if err != nil {
			t.Fatal(err)
		}
		p := &samplers.Problem{Model: g.Guide(models.Metered(m)), Grid: grid, First: first, Last: first + 1, Start: models.Wrap(slices.Concat(x...), len(x), m.Dim()), Rows: make([]models.Row, len(x)), Noise: fixedNoise(noise)}
		res, err := samplers.Sample(context.Background(), s, p)
		if err != nil {
			t.Fatal(err)
		}
		c.all(t, "distance", dist, get[[]float64](t, c.Expected, "distance"))
		c.all(t, "next state", models.Data(res.X), slices.Concat(get[[][]float64](t, c.Expected, "x_next")...))
		if res.Stats.NFE != 3 || res.Stats.VJPs != 1 {
			t.Errorf("%s: %g evaluations and %g gradients, want 3 and 1", c.Name, res.Stats.NFE, res.Stats.VJPs)
		}
	}
}

type fixedNoise [][]float64

func (f fixedNoise) Normal(dst []float64, d samplers.Draw) { copy(dst, f[d.Slot]) }

// TestMinorityShares: the share of the rare mode grows with the scale, and at large scales samples leave the support, as
// in the reference's runs.
func TestMinorityShares(t *testing.T) {
	const runs = 4000
	last := -1.0
	for _, c := range systems(t, "minority-scale") {
		m := c.mixture(t)
		var o struct{ Scale float64 }
		c.read(t, "Options", &o)
		var grid schedules.Grid
		for i := 99; i >= 0; i-- {
			grid = append(grid, m.Process().(schedules.Gaussian).At(math.RoundToEven(999*float64(i)/99)))
		}
		grid = append(grid, schedules.Node{T: -1, Alpha: 1})
		s, err := samplers.Parse("ddim:eta=1")
		if err != nil {
			t.Fatal(err)
		}
		p := &samplers.Problem{Model: guidance.Minority{Scale: o.Scale, Grid: grid}.Guide(models.Metered(m)), Grid: grid, Shape: []int{1}}
		for k := range runs {
			p.Rows = append(p.Rows, models.Row{Seed: uint64(k)})
		}
		res, err := samplers.Sample(context.Background(), s, p)
		if err != nil {
			t.Fatal(err)
		}
		want := 100.0
		if o.Scale != 0 {
			want = 100 + 2*19 // 20 of 100 steps, of which the last has no variance
		}
		if res.Stats.NFE != want {
			t.Errorf("%s: %g evaluations, want %g", c.Name, res.Stats.NFE, want)
		}
		rare, beyond := 0.0, 0.0
		for _, x := range models.Data(res.X) {
			if x > 0 {
				rare += 1. / runs
			}
			if math.Abs(math.Abs(x)-1.5) > 3*0.4 {
				beyond += 1. / runs
			}
		}
		var stats []struct {
			Stat  string
			Value float64
			SE    float64 `json:"value_se"`
			SD    float64 `json:"run_sd"`
			Tol   float64
			N     float64 `json:"n_se"`
		}
		c.read(t, "Stats", &stats)
		for i, st := range stats {
			if got, gap := []float64{rare, beyond}[i], st.Tol+st.N*math.Sqrt(st.SD*st.SD/runs+st.SE*st.SE); math.Abs(got-st.Value) > gap {
				t.Errorf("%s: %s is %.4f, want %.4f within %.4f", c.Name, st.Stat, got, st.Value, gap)
			}
		}
		if !(rare > last) {
			t.Errorf("%s: the rare share %.3f does not grow (%.3f before)", c.Name, rare, last)
		}
		last = rare
	}
}

// TestMinorityOff: scale 0 is the unguided run bit for bit; on every process and kind the model's noise moves the ancestral
// mean by exactly scale Var g/max|g|.
func TestMinorityOff(t *testing.T) {
	plain, x := run(t, models.Metered(target(t)), "ddim:eta=1", 16, 12, 1)
	off, y := run(t, guide(t, models.Metered(target(t)), "minority:scale=0"), "ddim:eta=1", 16, 12, 1)
	if !slices.Equal(x, y) || plain.Stats.NFE != off.Stats.NFE {
		t.Errorf("scale 0 changes something (%g and %g evaluations)", plain.Stats.NFE, off.Stats.NFE)
	}
	for _, process := range []schedules.Gaussian{schedules.VPLinear{}, schedules.Flow{}, schedules.EDM{}} {
		for _, kind := range kinds {
			m := as(t, target(t), kind, process)
			if kind == schedules.V && process.Name() == "edm" {
				continue
			}
			from, to := process.AtRatio(2), process.AtRatio(1)
			var moved [2][]float64
			var c1 float64
			for i, scale := range []float64{0, 0.7} {
				s, err := samplers.Parse("ddim:eta=1")
				if err != nil {
					t.Fatal(err)
				}
				q := question(process)
				p := &samplers.Problem{Model: guidance.Minority{Scale: scale, Every: 1}.Guide(models.Metered(m)), Grid: schedules.Grid{from, to, process.AtRatio(0)}, Last: 1, Start: q.X, Rows: make([]models.Row, 3), Noise: fixedNoise(make([][]float64, 3))}
				res, err := samplers.Sample(context.Background(), s, p)
				if err != nil {
					t.Fatal(err)
				}
				moved[i] = models.Data(res.X)
				c1 = to.Alpha * to.Ratio() / from.Ratio() * math.Sqrt(from.Ratio()*from.Ratio()-to.Ratio()*to.Ratio())
			}
			for k := range 3 {
				most := max(math.Abs(moved[1][2*k]-moved[0][2*k]), math.Abs(moved[1][2*k+1]-moved[0][2*k+1]))
				if want := 0.7 * c1 * c1; math.Abs(most-want) > 1e-9*want {
					t.Errorf("%s, %v: the mean moves by %g, want %g", process.Name(), kind, most, want)
				}
			}
		}
	}
}
