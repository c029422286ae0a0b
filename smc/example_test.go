package smc_test

import (
	"context"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
	"drift/smc"
)

func target() (*analytic.Mixture, schedules.Grid) {
	process := schedules.VPLinear{}
	m, err := analytic.New(analytic.Target{Weights: []float64{0.5, 0.5}, Means: [][]float64{{-1}, {1}}, Vars: [][]float64{{0.2}, {0.2}}, Process: process})
	if err != nil {
		panic(err)
	}
	grid, err := schedules.NewGrid(process, "lambda", 60, schedules.Ends{})
	if err != nil {
		panic(err)
	}
	return m, grid
}

// first is the reward x[0] of every row.
func first(_ context.Context, x0 *tensor.Dense, _ *smc.Look) ([]float64, error) {
	d := models.Data(x0)
	width := len(d) / x0.Shape()[0]
	out := make([]float64, x0.Shape()[0])
	for i := range out {
		out[i] = d[i*width]
	}
	return out, nil
}

// A mixture with equal halves at -1 and 1 is steered by exp(x): the right half then has exp(2) times the weight of the left.
func ExampleFK() {
	m, grid := target()
	fk := smc.FK{Base: samplers.DDIM{Eta: 1}, Reward: first, Lambda: 1}
	res, err := samplers.Sample(context.Background(), fk, &samplers.Problem{Model: models.Metered(m), Grid: grid, Rows: smc.Rows([]uint64{1, 2, 3, 4}, 256), Shape: []int{1}})
	if err != nil {
		fmt.Println(err)
		return
	}
	right := 0.0
	for _, g := range res.Run.(*smc.Run).Groups() {
		w, err := smc.Weigh(res.LogWeights[g.From:g.To])
		if err != nil {
			fmt.Println(err)
			return
		}
		for i, v := range w.W {
			if models.Data(res.X)[g.From+i] > 0 {
				right += v / 4
			}
		}
	}
	fmt.Printf("right half: %.1f, exact %.1f; %g evaluations per particle\n", right, 1/(1+math.Exp(-2)), res.Stats.NFE)
	// Output: right half: 0.9, exact 0.9; 60 evaluations per particle
}

// The best of four candidates at every step, with a temperature.
func ExampleSVDD() {
	m, grid := target()
	res, err := samplers.Sample(context.Background(), smc.SVDD{Base: samplers.DDIM{Eta: 1}, M: 4, Reward: first, Temperature: 0.5},
		&samplers.Problem{Model: models.Metered(m), Grid: grid, Rows: smc.Rows([]uint64{1, 2, 3}, 1), Shape: []int{1}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("all on the right: %v\n", min(models.Data(res.X)[0], models.Data(res.X)[1], models.Data(res.X)[2]) > 0)
	// Output: all on the right: true
}

// The square of a density: Power = 2 sharpens the halves, the weights keep them right.
func ExampleFKC() {
	m, _ := target()
	process := m.Process().(schedules.Gaussian)
	var grid schedules.Grid
	for k := range 201 {
		grid = append(grid, process.AtRatio(20*math.Pow(0.01/20, float64(k)/200)))
	}
	res, err := samplers.Sample(context.Background(), smc.FKC{Power: 2}, &samplers.Problem{Model: models.Metered(m), Grid: grid, Rows: smc.Rows([]uint64{1}, 500), Shape: []int{1}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("spread within a half below that of one: %v\n", spread(models.Data(res.X)) < math.Sqrt(0.2))
	// Output: spread within a half below that of one: true
}

// spread is the standard deviation of |x|.
func spread(x []float64) float64 {
	mean, sq := 0.0, 0.0
	for _, v := range x {
		mean += math.Abs(v) / float64(len(x))
		sq += v * v / float64(len(x))
	}
	return math.Sqrt(sq - mean*mean)
}

// Weights in logarithms, and four ancestors drawn by them.
func ExampleResampler() {
	w, err := smc.Weigh([]float64{0, -1, -2, -3})
	if err != nil {
		fmt.Println(err)
		return
	}
	a, err := smc.Systematic.Ancestors(w.W, 4, func(n int) []float64 { return []float64{0.5} })
	fmt.Printf("ESS %.3f, log mean %.3f, ancestors %v %v\n", w.ESS, w.LogMean, a, err)
	// Output: ESS 2.086, log mean -0.946, ancestors [0 0 0 1] <nil>
}
