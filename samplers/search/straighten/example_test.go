package straighten_test

import (
	"context"
	"fmt"
	"log"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/samplers/search"
	"drift/samplers/search/straighten"
	"drift/schedules"
)

// Four Euler steps that end where forty do: learn a flow, find the best four of its forty steps, and train the network on
// along them.
func Example() {
	ctx := context.Background()
	target, err := analytic.Parse([]byte(`{"type":"mixture","weights":[0.5,0.5],"means":[[-1,0],[1,0.5]],"vars":[[0.05,0.05],[0.05,0.05]],"process":{"type":"flow"},"prediction":"velocity"}`))
	if err != nil {
		log.Fatal(err)
	}
	fine, err := schedules.NewGrid(schedules.Flow{}, "time", 40, schedules.Ends{Final: "zero"})
	if err != nil {
		log.Fatal(err)
	}
	starts := func(m models.Denoiser, first, n uint64) *samplers.Problem {
		p := &samplers.Problem{Model: m, Shape: []int{2}}
		for k := range n {
			p.Rows = append(p.Rows, models.Row{Seed: first + k})
		}
		return p
	}
	train := func(net *straighten.Net, from models.Denoiser, path []int) {
		pairs, err := straighten.Along(ctx, starts(from, 0, 200), fine, path)
		if err != nil {
			log.Fatal(err)
		}
		if err := net.Train(ctx, pairs, straighten.Options{Steps: 500, Rate: 5e-3, Decay: 0.99}); err != nil {
			log.Fatal(err)
		}
	}
	var all []int
	for i := range fine {
		all = append(all, i)
	}
	teacher := straighten.NewNet(2, 32, 1)
	train(teacher, target, all)

	costs := search.CostMatrix{Grid: fine}
	if err := costs.Add(ctx, starts(teacher, 0, 64)); err != nil {
		log.Fatal(err)
	}
	paths, err := costs.Boss(4, 1)
	if err != nil {
		log.Fatal(err)
	}
	path := paths[3]
	student := teacher.Clone()
	train(student, teacher, path.Nodes)

	end := func(m models.Denoiser, g schedules.Grid) []float64 {
		p := starts(m, 10_000, 200) // starts that nothing has seen
		p.Grid = g
		res, err := samplers.Sample(ctx, samplers.Euler{}, p)
		if err != nil {
			log.Fatal(err)
		}
		return models.Data(res.X)
	}
	goal := end(teacher, fine)
	gap := func(x []float64) (sum float64) {
		for i, v := range x {
			sum += (v - goal[i]) * (v - goal[i]) / float64(len(x))
		}
		return sum
	}
	few := path.Take(fine)
	before, after := gap(end(teacher, few)), gap(end(student, few))
	fmt.Println("straightened, four steps end ten times nearer to forty:", after < before/10)
	// Output:
	// straightened, four steps end ten times nearer to forty: true
}
