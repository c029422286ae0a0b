package samplers_test

import (
	"context"
	"slices"
	"testing"

	"drift/guidance"
	"drift/internal/kernels"
	"drift/models"
	"drift/models/open"
	"drift/models/zoo"
	"drift/samplers"
	"drift/schedules"
)

// TestTranslate encodes sneakers to noise along the flow of their class and decodes the noise as ankle boots: the
// classifier sees sneakers before and boots after, and the way back under the first class makes the sneakers again.
func TestTranslate(t *testing.T) {
	ctx := context.Background()
	m, err := open.Open(ctx, "fashion-flow", open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	pool := kernels.NewPool(kernels.Tiers()[0], 1)
	defer pool.Close()
	c, err := zoo.OpenClassifier(pool)
	if err != nil {
		t.Fatal(err)
	}
	const n, steps = 6, 12
	sneaker, boot := slices.Index(c.Labels, "sneaker"), slices.Index(c.Labels, "ankle-boot")
	if sneaker < 0 || boot < 0 {
		t.Fatal(c.Labels)
	}
	var down schedules.Grid
	for i := range steps + 1 {
		down = append(down, schedules.Flow{}.At(1-float64(i)/steps))
	}
	up := slices.Clone(down)
	slices.Reverse(up)
	run := func(model models.Denoiser, g schedules.Grid, x []float64, class int) []float64 {
		p := &samplers.Problem{Model: model, Grid: g, Shape: m.Info.Shape, Cond: &models.Cond{Classes: slices.Repeat([]int{class}, n)}}
		for k := range n {
			p.Rows = append(p.Rows, models.Row{Seed: uint64(k)})
		}
		if x != nil {
			p.Start = models.Wrap(slices.Clone(x), n, 1, 28, 28)
		}
		res, err := samplers.Sample(ctx, samplers.Interpolant{Rule: samplers.StochasticHeun}, p)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Clone(models.Data(res.X))
	}
	named := func(x []float64, class int) int {
		logits := make([]float64, n*len(c.Labels))
		if err := c.Run(ctx, x, nil, logits); err != nil {
			t.Fatal(err)
		}
		right := 0
		for k := range n {
			row := logits[k*len(c.Labels) : (k+1)*len(c.Labels)]
			if slices.Index(row, slices.Max(row)) == class {
				right++
			}
		}
		return right
	}
	cfg, err := guidance.Parse("cfg:w=2")
	if err != nil {
		t.Fatal(err)
	}
	sneakers := run(cfg.Guide(m.Denoiser), down, nil, sneaker)
	z := run(m.Denoiser, up, sneakers, sneaker)
	boots, again := run(cfg.Guide(m.Denoiser), down, z, boot), run(m.Denoiser, down, z, sneaker)
	if a, b := named(sneakers, sneaker), named(boots, boot); a < n-1 || b < n-1 {
		t.Errorf("%d of %d are sneakers before, %d boots after", a, n, b)
	}
	worst := 0.0
	for i, v := range again {
		worst += (v - sneakers[i]) * (v - sneakers[i]) / float64(len(again))
	}
	if worst > 0.02 {
		t.Errorf("there and back: mean square error %g", worst)
	}
	t.Logf("mean square error there and back %.2g", worst)
}
