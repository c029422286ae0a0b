package smc

import (
	"context"
	"runtime"
	"testing"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/models/open"
	"drift/samplers"
)

// TestOverhead steers 16 groups of 64 on the embedded network: what is neither the model nor the reward takes less
// than 3 % of the time, and memory does not grow with steps.
func TestOverhead(t *testing.T) {
	if !isSlow() {
		t.Skip("takes long: set DRIFT_SLOW=1")
	}
	ctx := context.Background()
	m, err := open.Open(ctx, "fashion", open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	grid, err := m.Defaults.Grid(6)
	if err != nil {
		t.Fatal(err)
	}
	const groups, k = 16, 64
	classes := make([]int, groups)
	for i := range classes {
		classes[i] = i % 10
	}
	bright := func(_ context.Context, x0 *tensor.Dense, _ *Look) ([]float64, error) {
		d := models.Data(x0)
		out := make([]float64, groups*k)
		for i, v := range d {
			out[i/(len(d)/len(out))] += v / 784
		}
		return out, nil
	}
	var heap []uint64
	fk := FK{Base: samplers.DDIM{Eta: 1}, Reward: bright, Lambda: 40, Policy: Policy{When: Always}, Observe: func(c *Check) error {
		if c.Step != 2 && c.Step != 5 {
			return nil
		}
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		heap = append(heap, s.HeapAlloc)
		return nil
	}}
	p := &samplers.Problem{Model: m.Denoiser, Grid: grid, Rows: Rows(seeds(groups), k), Shape: m.Info.Shape, Cond: Repeat(&models.Cond{Classes: classes}, groups, k)}
	res := sample(t, fk, p)
	run := res.Run.(*Run)
	wall := res.Stats.Wall
	over := float64(wall-res.Stats.Model-run.Cost().Outside) / float64(wall)
	t.Logf("wall %v, model %v, reward %v: overhead %.2f %%; heap at the checks %v; %g evaluations per particle", wall, res.Stats.Model, run.Cost().Outside, 100*over, heap, res.Stats.NFE)
	if over > 0.03 {
		t.Errorf("overhead %.2f %%, want less than 3 %%", 100*over)
	}
	if first, last := heap[0], heap[1]; float64(last) > 1.05*float64(first) {
		t.Errorf("the heap grows from %d to %d bytes", first, last)
	}
	if g := run.Groups()[0]; g.Resampled == 0 || res.Stats.NFE != float64(grid.Steps()) {
		t.Errorf("group %+v after %g evaluations", g, res.Stats.NFE)
	}
}
