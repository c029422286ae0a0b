package search_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/internal/npz"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/samplers/search"
	"drift/schedules"
)

const mix = `"weights":[0.4,0.6],"means":[[-1],[1.5]],"vars":[[0.0625],[0.25]]`

func target(t testing.TB, body, process, prediction string) models.Denoiser {
	t.Helper()
	m, err := analytic.Parse(fmt.Appendf(nil, `{"type":"mixture",%s,"process":%s,"prediction":%q}`, body, process, prediction))
	if err != nil {
		t.Fatal(err)
	}
	return models.Metered(m)
}

func gauss(d models.Denoiser) schedules.Gaussian { return d.Process().(schedules.Gaussian) }

func uniform(t testing.TB, p schedules.Gaussian, from, to float64, n int) schedules.Grid {
	t.Helper()
	ts := make([]float64, n+1)
	for i := range ts {
		ts[i] = from + (to-from)*float64(i)/float64(n)
	}
	g, err := schedules.FromTimes(p, ts)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// quantiles are the normal quantiles (i + shift)/n.
func quantiles(n int, shift float64) []float64 {
	z := make([]float64, n)
	for i := range z {
		z[i] = math.Sqrt2 * math.Erfinv(2*(float64(i)+shift)/float64(n)-1)
	}
	return z
}

func from(d models.Denoiser, x []float64, dim int) *samplers.Problem {
	rows := len(x) / dim
	return &samplers.Problem{Model: d, Rows: make([]models.Row, rows), Start: models.Wrap(x, rows, dim), Noise: samplers.Zero{}}
}

func matrix(t testing.TB, d models.Denoiser, x []float64, dim, k int) *search.CostMatrix {
	t.Helper()
	c := &search.CostMatrix{Grid: uniform(t, gauss(d), 1, 0, k)}
	if err := c.Add(context.Background(), from(d, x, dim)); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestBossTable is the published measurement on the mixture flow: costs, paths, and end point errors.
func TestBossTable(t *testing.T) {
	d := target(t, mix, `{"type":"flow"}`, "velocity")
	z := quantiles(64, 0.5)
	c := matrix(t, d, z, 1, 100)
	for _, w := range []struct {
		i, j int
		want float64
	}{{0, 1, 0}, {0, 50, 0.0998814096129}, {0, 100, 1.64434149552}, {50, 100, 0.07500139335}, {90, 100, 0.00019146207411}} {
		if have := c.Cost(w.i, w.j); math.Abs(have-w.want) > 1e-11*max(1, w.want) {
			t.Errorf("cost of %d to %d is %.13g, want %.13g", w.i, w.j, have, w.want)
		}
	}
	paths, err := c.Boss(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	end := func(g schedules.Grid) []float64 {
		p := from(d, z, 1)
		p.Grid = g
		res, err := samplers.Sample(context.Background(), samplers.Euler{}, p)
		if err != nil {
			t.Fatal(err)
		}
		return models.Data(res.X)
	}
	fine := end(c.Grid)
	mse := func(g schedules.Grid) float64 {
		sum := 0.0
		for i, v := range end(g) {
			sum += (v - fine[i]) * (v - fine[i])
		}
		return sum / float64(len(fine))
	}
	for _, row := range []struct {
		path          string
		cost, uniform float64
		mse, mseU     float64
	}{
		{"0 50 100", 0.1748828030, 0.17488280, .28156, .28156},
		{"0 34 60 100", 0.0553946522, 0.07266880, .10654, .12418},
		{"0 27 47 66 100", 0.0282239119, 0.03334489, .05923, .07924},
		{"0 21 37 51 65 85 100", 0.0090566231, 0.01030641, .03449, .03756},
		{"0 15 28 39 50 60 72 87 100", 0.0037795668, 0.00414948, .01942, .02206},
		{"0 13 24 34 43 51 60 69 80 90 100", 0.0019151172, 0.00208926, .01344, .01474},
	} {
		k := strings.Count(row.path, " ")
		p := paths[k-1]
		if have := strings.Trim(fmt.Sprint(p.Nodes), "[]"); have != row.path || math.Abs(p.Cost-row.cost) > 1e-10 {
			t.Errorf("K = %d: %s at %.10f, want %s at %.10f", k, have, p.Cost, row.path, row.cost)
		}
		even := 0.0
		for i, last := 1, 0; i <= k; i++ {
			at := int(math.RoundToEven(100 * float64(i) / float64(k)))
			even += c.Cost(last, at)
			last = at
		}
		if math.Abs(even-row.uniform) > 1e-8 {
			t.Errorf("K = %d: uniform cost %.8f, want %.8f", k, even, row.uniform)
		}
		if a, b := mse(p.Take(c.Grid)), mse(uniform(t, schedules.Flow{}, 1, 0, k)); math.Abs(a-row.mse) > 6e-6 || math.Abs(b-row.mseU) > 6e-6 {
			t.Errorf("K = %d: end point errors %.5f and %.5f, want %.5f and %.5f", k, a, b, row.mse, row.mseU)
		}
	}
	// All paths: falling costs, none at K = 100, all nodes at K = 100.
	for k := 1; k < 100; k++ {
		if paths[k].Cost > paths[k-1].Cost {
			t.Errorf("%d steps cost %g, %d steps %g", k+1, paths[k].Cost, k, paths[k-1].Cost)
		}
	}
	if p := paths[99]; p.Cost != 0 || len(p.Nodes) != 101 {
		t.Errorf("all 100 steps cost %g over %d nodes", p.Cost, len(p.Nodes))
	}
	if p := paths[0]; !slices.Equal(p.Nodes, []int{0, 100}) {
		t.Errorf("one step: %v", p.Nodes)
	}
}

// TestBossGoldens replays the reference's cost matrices and paths.
func TestBossGoldens(t *testing.T) {
	folder, index := filepath.Join("testdata", "boss"), "index.json"
	targets := folder
	if f := os.Getenv("DRIFT_FIXTURES"); f != "" {
		folder, targets = filepath.Join(f, "solvers", "trajectories"), filepath.Join(f, "solvers", "targets")
	}
	text, err := os.ReadFile(filepath.Join(folder, index))
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Runs []struct {
			ID, File, Target, Name string
			Options                struct {
				K int `json:"K_max"`
			}
			Paths map[int]struct {
				Path []int
				Cost float64
			}
		}
	}
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, r := range all.Runs {
		if r.Name != "boss" {
			continue
		}
		count++
		d, err := analytic.Open(filepath.Join(targets, filepath.Base(r.Target)))
		if err != nil {
			t.Fatal(err)
		}
		arrays, err := npz.ReadAll(filepath.Join(folder, r.File))
		if err != nil {
			t.Fatal(err)
		}
		z, err := arrays["z"].Float64()
		if err != nil {
			t.Fatal(err)
		}
		want, err := arrays["cost_matrix"].Float64()
		if err != nil {
			t.Fatal(err)
		}
		dim := arrays["z"].Info().Shape[1]
		// In batches of five, by way of a saved matrix: streaming changes nothing but the last bits.
		c := &search.CostMatrix{Grid: uniform(t, schedules.Flow{}, 1, 0, r.Options.K)}
		for len(z) > 0 {
			n := min(len(z), 5*dim)
			if err := c.Add(context.Background(), from(models.Metered(d), z[:n], dim)); err != nil {
				t.Fatal(err)
			}
			z = z[n:]
			saved, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			c = &search.CostMatrix{}
			if err := json.Unmarshal(saved, c); err != nil {
				t.Fatal(err)
			}
		}
		k := r.Options.K
		for i := range k {
			for j := i + 1; j <= k; j++ {
				if have, w := c.Cost(i, j), want[i*(k+1)+j]; math.Abs(have-w) > 1e-12+1e-9*w {
					t.Fatalf("%s: cost of %d to %d is %.12g, want %.12g", r.ID, i, j, have, w)
				}
			}
		}
		paths, err := c.Boss(k, 1)
		if err != nil {
			t.Fatal(err)
		}
		for n, w := range r.Paths {
			if p := paths[n-1]; !slices.Equal(p.Nodes, w.Path) || math.Abs(p.Cost-w.Cost) > 1e-12+1e-9*w.Cost {
				t.Errorf("%s, %d steps: %v at %.12g, want %v at %.12g", r.ID, n, p.Nodes, p.Cost, w.Path, w.Cost)
			}
		}
	}
	if count < 3 {
		t.Errorf("only %d records", count)
	}
}

// TestBossBruteForce: no path of two or three steps is cheaper, on every kind of process.
func TestBossBruteForce(t *testing.T) {
	ring := `"weights":[0.5,0.5],"means":[[1,0],[-1,0.5]],"vars":[[0.05,0.1],[0.05,0.2]]`
	for process, ends := range map[string][2]float64{`{"type":"flow"}`: {1, 0}, `{"type":"vp-linear"}`: {1, 0.01}, `{"type":"edm"}`: {20, 0.01}} {
		for _, metric := range []search.Metric{search.Squared, search.Norm, search.Deviation} {
			d := target(t, ring, process, "velocity")
			c := &search.CostMatrix{Grid: uniform(t, gauss(d), ends[0], ends[1], 12), Metric: metric}
			x := quantiles(12, 0.4)
			for i := range x {
				x[i] *= samplers.PriorScale(c.Grid[0])
			}
			err := c.Add(context.Background(), from(d, x, 2))
			if metric == search.Deviation && c.Grid[0].Alpha == 0 {
				if err == nil || !strings.Contains(err.Error(), "signal") {
					t.Errorf("deviation from alpha = 0: %v", err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			for i := range 12 {
				if v := c.Cost(i, i+1); math.Abs(v) > 1e-9 {
					t.Errorf("%s, %s: the fine step from %d costs %g", process, metric, i, v)
				}
			}
			for _, discount := range []float64{1, 1.15} {
				paths, err := c.Boss(3, discount)
				if err != nil {
					t.Fatal(err)
				}
				two, three := math.Inf(1), math.Inf(1)
				for i := 1; i < 12; i++ {
					two = min(two, c.Cost(0, i)+discount*c.Cost(i, 12))
					for j := i + 1; j < 12; j++ {
						three = min(three, c.Cost(0, i)+discount*(c.Cost(i, j)+discount*c.Cost(j, 12)))
					}
				}
				value := func(p search.Path) (v float64) {
					for k := len(p.Nodes) - 1; k > 0; k-- {
						v = c.Cost(p.Nodes[k-1], p.Nodes[k]) + discount*v
					}
					return v
				}
				if a, b := value(paths[1]), value(paths[2]); math.Abs(a-two) > 1e-12 || math.Abs(b-three) > 1e-12 {
					t.Errorf("%s, %s, discount %g: %g and %g, brute force %g and %g", process, metric, discount, a, b, two, three)
				}
			}
		}
	}
}

// TestBossStraight: on a model whose paths are straight (all data at one point) every path is free.
func TestBossStraight(t *testing.T) {
	d := target(t, `"weights":[1],"means":[[0.5]],"vars":[[1e-18]]`, `{"type":"flow"}`, "velocity")
	c := matrix(t, d, quantiles(16, 0.5), 1, 20)
	for i := range 20 {
		for j := i + 1; j <= 20; j++ {
			if v := c.Cost(i, j); v > 1e-20 {
				t.Errorf("cost of %d to %d is %g", i, j, v)
			}
		}
	}
}

func TestBossRefusals(t *testing.T) {
	d := target(t, mix, `{"type":"flow"}`, "velocity")
	c := &search.CostMatrix{Grid: uniform(t, schedules.Flow{}, 1, 0, 4)}
	if _, err := c.Boss(2, 1); err == nil || !strings.Contains(err.Error(), "no samples") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Add(ctx, from(d, quantiles(4, 0.5), 1)); err == nil || c.Samples != 0 {
		t.Errorf("cancelled: %v, %d samples", err, c.Samples)
	}
	if err := c.Add(context.Background(), from(d, quantiles(4, 0.5), 1)); err != nil {
		t.Fatal(err)
	}
	for _, k := range []int{0, 5} {
		if _, err := c.Boss(k, 1); err == nil {
			t.Errorf("paths of %d steps", k)
		}
	}
	if _, err := c.Boss(2, math.NaN()); err == nil {
		t.Error("discount NaN")
	}
	c.Metric = "l7"
	if err := c.Add(context.Background(), from(d, quantiles(4, 0.5), 1)); err == nil || !strings.Contains(err.Error(), "l7") {
		t.Error(err)
	}
	paths, _ := c.Boss(2, 1)
	text, err := search.GridFile(schedules.Flow{}, paths[1].Take(c.Grid), map[string]int{"samples": 4})
	if err != nil || !bytes.Contains(text, []byte(`"times"`)) {
		t.Errorf("%v: %s", err, text)
	}
}
