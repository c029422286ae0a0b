package samplers_test

import (
	"context"
	"fmt"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// A Gaussian has an exact score, and its probability-flow ODE an exact solution: 1.098 from 1.2 here.
func ExampleSample() {
	target, err := analytic.Parse([]byte(`{"type": "mixture", "weights": [1], "means": [[0.5]], "vars": [[0.25]],
		"process": {"type": "vp-linear"}, "prediction": "eps"}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	t0, t1 := 1.0, 0.001
	grid, err := schedules.NewGrid(schedules.VPLinear{}, "lambda", 40, schedules.Ends{TStart: &t0, TEnd: &t1})
	if err != nil {
		fmt.Println(err)
		return
	}
	res, err := samplers.Sample(context.Background(), samplers.DPMMultistep{Kind: schedules.X0}, &samplers.Problem{
		Model: models.Metered(target),
		Grid:  grid,
		Rows:  []models.Row{{Seed: 1}},
		Start: models.Wrap([]float64{1.2}, 1, 1),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("x = %.2f after %d steps and %g evaluations\n", models.Data(res.X)[0], res.Stats.Steps, res.Stats.NFE)
	// Output: x = 1.10 after 40 steps and 40 evaluations
}

// Samplers are named as on the command line, and as other tools name them.
func ExampleParse() {
	for _, name := range []string{"unipc:order=3", "DPM++ 2M Karras", "euler_a"} {
		canonical, schedule, err := samplers.Resolve(name)
		if err != nil {
			fmt.Println(err)
			continue
		}
		s, err := samplers.Parse(canonical)
		fmt.Printf("%s: %s %q %T %v\n", name, canonical, schedule, s, err)
	}
	// Output:
	// unipc:order=3: unipc:order=3 "" samplers.UniPC <nil>
	// DPM++ 2M Karras: dpmpp-2m "karras" samplers.DPMMultistep <nil>
	// euler_a: euler-ancestral "" samplers.DDIM <nil>
}

// A run can be driven by hand: select rows between two steps, peek at the next prediction, save.
func ExampleRun() {
	target, err := analytic.Parse([]byte(`{"type": "mixture", "weights": [0.5, 0.5], "means": [[-1], [1]], "vars": [[0.01], [0.01]],
		"process": {"type": "edm"}, "prediction": "x0"}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	grid, err := schedules.NewGrid(schedules.EDM{}, "karras", 12, schedules.Ends{})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	run, err := samplers.Heun{}.Begin(ctx, &samplers.Problem{Model: models.Metered(target), Grid: grid, Shape: []int{1}, Rows: []models.Row{{Seed: 1}, {Seed: 4}}})
	if err != nil {
		fmt.Println(err)
		return
	}
	for done := false; !done; {
		if done, err = run.Next(ctx); err != nil {
			fmt.Println(err)
			return
		}
		if run.State().I == 6 { // both rows go on from what row 1 is now
			if err := run.(samplers.Selector).Select([]int{1, 1}, nil); err != nil {
				fmt.Println(err)
				return
			}
		}
	}
	x := models.Data(run.State().X)
	fmt.Println(x[0] == x[1])
	// Output: true
}

// The momentum methods trade accuracy for a larger stability region; their limits are exact.
func ExampleStability() {
	for _, beta := range []float64{1, 0.8, 0.5} {
		fmt.Printf("beta %.1f: GHVB-4 %.4f, PLMS4 with heavy ball %.4f\n", beta,
			samplers.Stability(samplers.GHVB{Order: 4, Beta: beta}), samplers.Stability(samplers.HeavyBall{Order: 4, Beta: beta}))
	}
	// Output:
	// beta 1.0: GHVB-4 0.3000, PLMS4 with heavy ball 0.3000
	// beta 0.8: GHVB-4 0.3529, PLMS4 with heavy ball 0.4500
	// beta 0.5: GHVB-4 0.4286, PLMS4 with heavy ball 0.9000
}

// A solver schedule chooses anew at every step; here a first-order step, then a second-order one in the noise.
func ExampleParseUSF() {
	m, err := samplers.ParseUSF("two.json", []byte(`{"schedule": {"timesteps": [1, 0.4, 0.001], "steps": [
		{"order": 1, "pred": "x0"},
		{"order": 2, "pred": "eps", "derivs": [{"points": [-2], "relax": "bh2"}]}]}, "process": {"type": "vp-linear"}}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	grid, err := m.Grid(schedules.VPLinear{})
	fmt.Println(len(grid), "nodes,", m.Schedule.NFE(), "evaluations", err)
	_, err = samplers.ParseUSF("bad.json", []byte(`{"timesteps": [1, 0.4],
		"steps": [{"order": 2, "pred": "x0", "derivs": [{"points": [-2]}]}]}`))
	fmt.Println(err)
	// Output:
	// 3 nodes, 2 evaluations <nil>
	// bad.json: line 2: step 0: order 2 is above the history: 1 nodes are known
}

// A diffusion chosen at sampling time: one model, the ODE, the reverse SDE, and a bridge between two densities.
func ExampleInterpolant() {
	b, err := schedules.NewBridge("linear", "brownian", 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	gauss := func(m, v float64) analytic.Side {
		return analytic.Side{Weights: []float64{1}, Means: [][]float64{{m}}, Vars: [][]float64{{v}}}
	}
	e, err := analytic.NewEnds(analytic.Ends{From: gauss(-1, 0.5), To: gauss(2, 0.25), Bridge: b, First: schedules.Velocity, Second: schedules.Score})
	if err != nil {
		fmt.Println(err)
		return
	}
	var grid schedules.Grid
	for i := range 401 {
		grid = append(grid, b.At(float64(i)/400))
	}
	for _, epsilon := range []float64{0, 0.5} {
		p := &samplers.Problem{Model: e, Grid: grid, Shape: []int{1}}
		for s := range 2000 {
			p.Rows = append(p.Rows, models.Row{Seed: uint64(s)})
		}
		res, err := samplers.Sample(context.Background(), samplers.Interpolant{Epsilon: epsilon}, p)
		if err != nil {
			fmt.Println(err)
			return
		}
		mean := 0.0
		for _, v := range models.Data(res.X) {
			mean += v / 2000
		}
		fmt.Printf("epsilon %g: mean %.1f at the end\n", epsilon, mean)
	}
	// Output:
	// epsilon 0: mean 2.0 at the end
	// epsilon 0.5: mean 2.0 at the end
}
