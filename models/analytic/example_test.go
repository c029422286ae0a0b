package analytic_test

import (
	"context"
	"fmt"

	"drift/models"
	"drift/models/analytic"
	"drift/schedules"
)

// A mixture of two Gaussians in the variance exploding process, asked like a network, and its exact answers.
func Example() {
	m, err := analytic.Parse([]byte(`{
		"type": "mixture", "weights": [0.4, 0.6], "means": [[-1], [1.5]], "vars": [[0.0625], [0.25]],
		"labels": [0, 1], "process": {"type": "ve"}, "prediction": "x0"}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	node := schedules.VE{}.At(2)
	q := &models.Query{
		X:    models.Wrap([]float64{1, 1}, 2, 1),
		At:   []schedules.Node{node, node},
		Cond: &models.Cond{Classes: []int{models.NoClass, 0}},
	}
	var p models.Pred
	if err := m.Predict(context.Background(), q, &p); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("E[x0|x] = %.6f, of class 0 alone %.6f\n", models.Data(p.Out)[0], models.Data(p.Out)[1])

	posterior, end := make([]float64, 2), make([]float64, 1)
	if err := m.LogPosterior(posterior, []float64{1}, node); err != nil {
		fmt.Println(err)
		return
	}
	if err := m.Transport(end, []float64{1}, node, schedules.VE{}.At(0), models.NoClass); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("log p(class|x) = %.4f, the ODE ends at %.6f\n", posterior, end[0])
	// Output:
	// E[x0|x] = 0.737875, of class 0 alone -0.969231
	// log p(class|x) = [-1.2029 -0.3571], the ODE ends at 1.233710
}
