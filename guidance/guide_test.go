package guidance_test

import (
	"context"
	"fmt"

	"drift/guidance"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// The examples of docs/guide.md, whose lines a test of the command line looks for here.

func labelledTarget() (*analytic.Mixture, *models.Query) {
	m, err := analytic.Parse([]byte(labelled))
	if err != nil {
		panic(err)
	}
	x := models.Wrap([]float64{0.4, 0.2}, 1, 2)
	return m, &models.Query{X: x, At: []schedules.Node{m.Process().(schedules.Gaussian).AtRatio(0.5)}, Cond: &models.Cond{Classes: []int{1}}}
}

// Guiders are chained: the first is nearest to the model.
func ExampleAPG() {
	m, q := labelledTarget()
	d := guidance.APG{W: 4, Beta: -0.5, Tau: 5}.Guide(guidance.Clip{}.Guide(m))
	var p models.Pred
	if err := d.Predict(context.Background(), q, &p); err != nil {
		panic(err)
	}
	fmt.Printf("%v %.3f\n", p.Kind, models.Data(p.Out))
	// Output: x0 [0.734 0.047]
}

// Posterior sampling: half the squared distance of one coordinate to 0.5, with the gradient through the model.
func ExampleEnergyFunc() {
	m, q := labelledTarget()
	g := guidance.Gradient{W: 1, Through: guidance.ThroughModel, Of: guidance.EnergyFunc(func(x0, grad []float64) float64 {
		grad[0], grad[1] = x0[0]-0.5, 0
		return grad[0] * grad[0] / 2
	})}
	var plain, p models.Pred
	if err := m.Predict(context.Background(), q, &plain); err != nil {
		panic(err)
	}
	if err := g.Guide(m).Predict(context.Background(), q, &p); err != nil {
		panic(err)
	}
	fmt.Printf("%.3f %.3f\n", models.Data(plain.Out), models.Data(p.Out))
	// Output: [-0.553 0.224] [-0.497 0.224]
}

// A rare component of a mixture becomes frequent.
func ExampleMinority() {
	m, err := analytic.Parse([]byte(`{"type":"mixture","weights":[0.9,0.1],"means":[[-1.5],[1.5]],"vars":[[0.16],[0.16]],"process":{"type":"vp-discrete"},"prediction":"eps"}`))
	if err != nil {
		panic(err)
	}
	grid, err := schedules.NewGrid(m.Process().(schedules.Gaussian), "time", 50, schedules.Ends{Final: "zero"})
	if err != nil {
		panic(err)
	}
	s, err := samplers.Parse("ddim:eta=1")
	if err != nil {
		panic(err)
	}
	g := guidance.Minority{Scale: 5, Every: 5, P: 0.8, Grid: grid}
	for _, d := range []models.Denoiser{m, g.Guide(m)} {
		p := &samplers.Problem{Model: d, Grid: grid, Shape: []int{1}}
		for k := range 400 {
			p.Rows = append(p.Rows, models.Row{Seed: uint64(k)})
		}
		res, err := samplers.Sample(context.Background(), s, p)
		if err != nil {
			panic(err)
		}
		rare := 0
		for _, x := range models.Data(res.X) {
			if x > 0 {
				rare++
			}
		}
		fmt.Println(rare > 80)
	}
	// Output:
	// false
	// true
}
