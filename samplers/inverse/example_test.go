package inverse_test

import (
	"context"
	"fmt"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/samplers/inverse"
	"drift/schedules"
)

// Two correlated numbers, of which the first is measured without noise: what is the other?
func Example() {
	target, err := analytic.New(analytic.Target{Weights: []float64{1}, Means: [][]float64{{0, 0}}, Covs: [][][]float64{{{1, 0.9}, {0.9, 1}}},
		Process: schedules.VPLinear{}, Prediction: schedules.Eps})
	if err != nil {
		fmt.Println(err)
		return
	}
	a, err := inverse.Degradation("matrix:rows=1 0", []int{2}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	y := inverse.Measurement{A: a, Y: []float64{1.5}, Sigma: 0.3}
	method, info, err := inverse.Parse("tmpd")
	if err != nil {
		fmt.Println(err)
		return
	}
	s, err := method(y)
	if err != nil {
		fmt.Println(err)
		return
	}
	grid, err := schedules.NewGrid(target.Process().(schedules.Gaussian), "lambda", 100, schedules.Ends{})
	if err != nil {
		fmt.Println(err)
		return
	}
	p := &samplers.Problem{Model: models.Metered(target), Grid: grid, Shape: []int{2}}
	for seed := range 1000 {
		p.Rows = append(p.Rows, models.Row{Seed: uint64(seed)})
	}
	res, err := samplers.Sample(context.Background(), s, p)
	if err != nil {
		fmt.Println(err)
		return
	}
	mean := [2]float64{}
	for i, v := range models.Data(res.X) {
		mean[i%2] += v / 1000
	}
	post, err := target.Given(y)
	if err != nil {
		fmt.Println(err)
		return
	}
	exact, _ := post.Moments()
	fmt.Printf("%s: mean %.1f, exactly %.1f; %g evaluations, %g gradients each\n", info.Name, mean, exact, res.Stats.NFE, res.Stats.VJPs)
	// Output:
	// tmpd: mean [1.4 1.2], exactly [1.4 1.2]; 200 evaluations, 200 gradients each
}
