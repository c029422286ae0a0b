package open_test

import (
	"context"
	"math"
	"os"
	"testing"

	"drift/guidance"
	"drift/internal/npz"
	"drift/models"
	"drift/models/open"
	"drift/samplers"
	"drift/schedules"
)

func arrays(t testing.TB, path string) map[string][]float64 {
	all, err := npz.ReadAll(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]float64{}
	for name, a := range all {
		if out[name], err = a.Float64(); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestZooEndToEnd samples with the embedded networks and compares with torch's pictures: 99.9 % of the pixels within
// 2e-3, all within 2e-2 (float32 against float32 over 20 steps).
func TestZooEndToEnd(t *testing.T) {
	seeds := []int{0, 7}
	if os.Getenv("DRIFT_SLOW") != "" {
		seeds = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	}
	for _, c := range []struct {
		model, golden, sampler string
		guiders                []string
	}{
		{"fashion-flow", "../zoo/testdata/euler20.npz", "euler", nil},
		{"fashion", "../zoo/testdata/ddim20.npz", "ddim", []string{"clip:rederive=false"}},
	} {
		g := arrays(t, c.golden)
		m, err := open.Open(context.Background(), c.model, open.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		for name, w := range map[string]string{"x_cfg1": "cfg:w=1", "x_cfg3": "cfg:w=3"} {
			want, ok := g[name]
			if !ok {
				if name == "x_cfg1" {
					t.Fatalf("no %s in %s", name, c.golden)
				}
				continue // fashion-flow has cfg 1 only
			}
			den := m.Denoiser
			for _, spec := range append([]string{w}, c.guiders...) {
				gd, err := guidance.Parse(spec)
				if err != nil {
					t.Fatal(err)
				}
				den = gd.Guide(den)
			}
			s, err := samplers.Parse(c.sampler)
			if err != nil {
				t.Fatal(err)
			}
			p := &samplers.Problem{Model: den, Shape: m.Info.Shape, Cond: &models.Cond{}}
			if c.model == "fashion" {
				p.Grid, err = m.Defaults.Grid(20)
			} else {
				p.Grid, err = schedules.NewGrid(m.Denoiser.Process().(schedules.Gaussian), "time", 20, schedules.Ends{})
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range seeds {
				p.Rows = append(p.Rows, models.Row{Seed: uint64(k)})
				p.Cond.Classes = append(p.Cond.Classes, k%10)
			}
			res, err := samplers.Sample(context.Background(), s, p)
			if err != nil {
				t.Fatal(err)
			}
			x := models.Data(res.X)
			off, worst := 0, 0.0
			for j, k := range seeds {
				for i := range 784 {
					d := math.Abs(x[j*784+i] - want[k*784+i])
					worst = max(worst, d)
					if d > 2e-3 {
						off++
					}
				}
			}
			t.Logf("%s %s: worst %.2g, %d of %d beyond 2e-3", c.model, name, worst, off, len(seeds)*784)
			if worst > 2e-2 || float64(off) > 0.001*float64(len(seeds)*784) {
				t.Errorf("%s %s: worst %.3g, %d pixels beyond 2e-3", c.model, name, worst, off)
			}
		}
	}
}
