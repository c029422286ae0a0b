package search_test

import (
	"context"
	"fmt"
	"log"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/samplers/search"
	"drift/schedules"
)

const exampleTarget = `{"type":"mixture","weights":[0.4,0.6],"means":[[-1],[1.5]],"vars":[[0.0625],[0.25]],"process":{"type":"flow"},"prediction":"velocity"}`

// The best grids of few Euler steps out of 40, for every number of steps at once.
func ExampleCostMatrix() {
	model, err := analytic.Parse([]byte(exampleTarget))
	if err != nil {
		log.Fatal(err)
	}
	fine, err := schedules.NewGrid(schedules.Flow{}, "time", 40, schedules.Ends{Final: "zero"})
	if err != nil {
		log.Fatal(err)
	}
	p := &samplers.Problem{Model: model, Shape: []int{1}}
	for seed := range uint64(64) {
		p.Rows = append(p.Rows, models.Row{Seed: seed})
	}
	costs := search.CostMatrix{Grid: fine}
	if err := costs.Add(context.Background(), p); err != nil {
		log.Fatal(err)
	}
	paths, err := costs.Boss(6, 1)
	if err != nil {
		log.Fatal(err)
	}
	for _, path := range paths[2:] {
		fmt.Println(len(path.Nodes)-1, "steps:", path.Nodes)
	}
	// Output:
	// 3 steps: [0 13 23 40]
	// 4 steps: [0 10 18 25 40]
	// 5 steps: [0 9 16 23 32 40]
	// 6 steps: [0 8 14 20 26 34 40]
}

// A search for a solver of four evaluations whose results end where 100 steps of another do.
func ExampleS3() {
	model, err := analytic.Parse([]byte(exampleTarget))
	if err != nil {
		log.Fatal(err)
	}
	fine, err := schedules.NewGrid(schedules.Flow{}, "time", 100, schedules.Ends{Final: "zero"})
	if err != nil {
		log.Fatal(err)
	}
	p := &samplers.Problem{Model: model, Shape: []int{1}}
	for seed := range uint64(32) {
		p.Rows = append(p.Rows, models.Row{Seed: seed})
	}
	ctx := context.Background()
	teacher, err := search.NewDistance(ctx, p, samplers.UniPC{Kind: schedules.X0}, fine)
	if err != nil {
		log.Fatal(err)
	}
	var records search.Log
	s := search.S3{Space: search.Space{Process: schedules.Flow{}, From: fine[0], To: fine[100], Steps: 4}, Objective: teacher.Score}
	if err := s.Run(ctx, &records, search.Budget{Evaluations: 120}); err != nil {
		log.Fatal(err)
	}
	fixed := records.Records[0].Score // the solvers that everybody has come first
	for _, r := range records.Records[:36] {
		fixed = min(fixed, r.Score)
	}
	fmt.Println("nearer than every fixed solver:", records.Best(1)[0].Score < 0.9*fixed)
	// Output: nearer than every fixed solver: true
}
