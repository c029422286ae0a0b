package straighten_test

import (
	"context"
	"errors"
	"math"
	"testing"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/samplers/search"
	"drift/samplers/search/straighten"
	"drift/schedules"
)

const moons = `{"type":"mixture","weights":[0.3,0.3,0.4],"means":[[-1.5,0.5],[1.5,0.5],[0,-1.5]],"vars":[[0.04,0.1],[0.1,0.04],[0.2,0.02]],"process":{"type":"flow"},"prediction":"velocity"}`

func starts(d models.Denoiser, rows int, seed uint64) *samplers.Problem {
	p := &samplers.Problem{Model: d, Shape: []int{2}, Noise: samplers.Streams{}}
	for k := range rows {
		p.Rows = append(p.Rows, models.Row{Seed: seed + uint64(k)})
	}
	return p
}

func grid(t testing.TB, n int) schedules.Grid {
	ts := make([]float64, n+1)
	for i := range ts {
		ts[i] = 1 - float64(i)/float64(n)
	}
	g, err := schedules.FromTimes(schedules.Flow{}, ts)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func end(t testing.TB, d models.Denoiser, g schedules.Grid) []float64 {
	p := starts(d, 200, 9000)
	p.Grid = g
	res, err := samplers.Sample(context.Background(), samplers.Euler{}, p)
	if err != nil {
		t.Fatal(err)
	}
	return models.Data(res.X)
}

func gap(a, b []float64) float64 {
	sum := 0.0
	for i, v := range a {
		sum += (v - b[i]) * (v - b[i])
	}
	return sum / float64(len(a))
}

// TestStraighten learns a flow, finds the best 4 Euler steps of the network, and trains it on along them. On fresh starts
// the straightened network's 4 steps end at least five times nearer to its teacher's 40 fine steps than the teacher's own
// 4 do (mean squared distance).
func TestStraighten(t *testing.T) {
	ctx := context.Background()
	target, err := analytic.Parse([]byte(moons))
	if err != nil {
		t.Fatal(err)
	}
	fine := grid(t, 40)
	all := make([]int, 41)
	for i := range all {
		all[i] = i
	}
	field, err := straighten.Along(ctx, starts(target, 300, 0), fine, all)
	if err != nil {
		t.Fatal(err)
	}
	teacher := straighten.NewNet(2, 48, 1)
	first, last := 0.0, 0.0
	if err := teacher.Train(ctx, field, straighten.Options{Steps: 1000, Rate: 4e-3, Decay: 0.99, Progress: func(step int, loss float64) {
		if step <= 20 {
			first += loss / 20
		}
		if step > 980 {
			last += loss / 20
		}
	}}); err != nil {
		t.Fatal(err)
	}
	if !(last < first/20) {
		t.Errorf("learning the flow took the loss from %.3g to %.3g", first, last)
	}
	if d := gap(end(t, teacher, fine), end(t, target, fine)); d > 0.05 {
		t.Errorf("the network's samples are %.3g from the flow's", d)
	}

	costs := search.CostMatrix{Grid: fine}
	if err := costs.Add(ctx, starts(teacher, 64, 0)); err != nil {
		t.Fatal(err)
	}
	paths, err := costs.Boss(4, 1)
	if err != nil {
		t.Fatal(err)
	}
	path := paths[3]
	few := path.Take(fine)
	pairs, err := straighten.Along(ctx, starts(teacher, 1000, 0), fine, path.Nodes)
	if err != nil {
		t.Fatal(err)
	}
	student := teacher.Clone()
	if err := student.Train(ctx, pairs, straighten.Options{Steps: 1000, Rate: 4e-3, WarmUp: 50, Decay: 0.99}); err != nil {
		t.Fatal(err)
	}
	goal := end(t, teacher, fine)
	before, even, after := gap(end(t, teacher, few), goal), gap(end(t, teacher, grid(t, 4)), goal), gap(end(t, student, few), goal)
	t.Logf("4 steps to 40: uniform %.4g, Bellman %.4g, straightened %.4g", even, before, after)
	if !(after < min(before, even)/10) {
		t.Errorf("mean squared distances of 4 steps from 40: uniform %.4g, Bellman %.4g, straightened %.4g", even, before, after)
	}
}

// TestGradient compares one small Adam-free step with finite differences: Adam's first step moves every weight by the rate
// against the sign of its derivative.
func TestGradient(t *testing.T) {
	ctx := context.Background()
	data := &straighten.Pairs{Dim: 1, X: []float64{0.3}, V: []float64{-0.8}, T: []float64{0.4}}
	n := straighten.NewNet(1, 3, 5)
	loss := func(n *straighten.Net) float64 {
		var p models.Pred
		if err := n.Predict(ctx, &models.Query{X: models.Wrap([]float64{0.3}, 1, 1), At: []schedules.Node{schedules.Flow{}.At(0.4)}}, &p); err != nil {
			t.Fatal(err)
		}
		return (models.Data(p.Out)[0] + 0.8) * (models.Data(p.Out)[0] + 0.8)
	}
	var seen float64
	moved := n.Clone()
	if err := moved.Train(ctx, data, straighten.Options{Steps: 1, Batch: 4, Rate: 1e-3, Clip: 1e9, Decay: 1e-12, Progress: func(_ int, l float64) { seen = l }}); err != nil {
		t.Fatal(err)
	}
	if want := loss(n); math.Abs(seen-want) > 1e-12 {
		t.Errorf("the graph's loss is %.15g, the network's %.15g", seen, want)
	}
	for l := range n.W {
		for _, pair := range [][2][]float64{{n.W[l], moved.W[l]}, {n.B[l], moved.B[l]}} {
			for i := range pair[0] {
				const h = 1e-6
				old := pair[0][i]
				pair[0][i] = old + h
				up := loss(n)
				pair[0][i] = old - h
				down := loss(n)
				pair[0][i] = old
				slope := (up - down) / (2 * h)
				want := -1e-3 * slope / (math.Abs(slope) + 1e-8)
				if have := pair[1][i] - old; math.Abs(slope) > 1e-6 && math.Abs(have-want) > 1e-6 {
					t.Errorf("layer %d, weight %d: moved by %.3g, the slope is %.3g", l, i, have, slope)
				}
			}
		}
	}
}

func TestTrainRefusals(t *testing.T) {
	n := straighten.NewNet(2, 4, 1)
	if err := n.Train(context.Background(), &straighten.Pairs{Dim: 3, X: make([]float64, 3), V: make([]float64, 3), T: make([]float64, 1)}, straighten.Options{}); err == nil {
		t.Error("data of another dimension")
	}
	if err := n.Train(context.Background(), &straighten.Pairs{Dim: 2}, straighten.Options{}); err == nil {
		t.Error("no data")
	}
	nan := &straighten.Pairs{Dim: 2, X: make([]float64, 2), V: []float64{math.NaN(), 0}, T: []float64{0.5}}
	if err := n.Train(context.Background(), nan, straighten.Options{}); err == nil {
		t.Error("a loss that is not finite")
	}
	ctx, cancel := context.WithCancel(context.Background())
	good := &straighten.Pairs{Dim: 2, X: make([]float64, 2), V: make([]float64, 2), T: []float64{0.5}}
	err := n.Train(ctx, good, straighten.Options{Progress: func(step int, _ float64) {
		if step == 3 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	p := starts(n, 2, 0)
	for _, path := range [][]int{{0, 5}, {0, 0, 4}, {-1, 4}} {
		if _, err := straighten.Along(context.Background(), p, grid(t, 4), path); err == nil {
			t.Errorf("path %v", path)
		}
	}
}
