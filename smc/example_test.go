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

// The twisted sampler puts the gradient of a log likelihood into the proposal: x is observed as 1.5 with noise of variance 0.1.
func ExampleTDS() {
	m, grid := target()
	twist := func(_ context.Context, x0 *tensor.Dense, at *smc.Look, grad *tensor.Dense) ([]float64, error) {
		v := 0.1
		if !at.Last { // the estimate may be off by about this much
			s := at.At.Ratio() * at.At.Ratio()
			v += 1.2 * s / (1.2 + s)
		}
		out := make([]float64, len(at.Rows))
		for i, x := range models.Data(x0) {
			out[i] = -0.5*math.Log(2*math.Pi*v) - 0.5*(x-1.5)*(x-1.5)/v
			if grad != nil {
				models.Data(grad)[i] = (1.5 - x) / v
			}
		}
		return out, nil
	}
	res, err := samplers.Sample(context.Background(), smc.TDS{Twist: twist}, &samplers.Problem{Model: models.Metered(m), Grid: grid, Rows: smc.Rows([]uint64{1, 2, 3, 4}, 64), Shape: []int{1}})
	if err != nil {
		fmt.Println(err)
		return
	}
	evidence := 0.0
	for _, g := range res.Run.(*smc.TDSRun).Groups() {
		evidence += math.Exp(g.LogZ) / 4
	}
	exact := 0.0
	for _, mu := range []float64{-1, 1} {
		exact += 0.5 * math.Exp(-0.5*(1.5-mu)*(1.5-mu)/0.3) / math.Sqrt(2*math.Pi*0.3)
	}
	fmt.Printf("evidence within 15 %% of the exact one: %v\n", math.Abs(evidence/exact-1) < 0.15)
	// Output: evidence within 15 % of the exact one: true
}

// Annealing from N(0, 9) to two modes estimates the integral of an unnormalised density.
func ExampleAnneal() {
	from := smc.Density{Dim: 1, Log: func(x, grad []float64) float64 {
		if grad != nil {
			grad[0] = -x[0] / 9
		}
		return -0.5*math.Log(2*math.Pi*9) - x[0]*x[0]/18
	}}
	well := smc.Density{Dim: 1, Log: func(x, grad []float64) float64 { // a double well
		if grad != nil {
			grad[0] = -4*x[0]*x[0]*x[0] + 12*x[0] + 0.5
		}
		return -x[0]*x[0]*x[0]*x[0] + 6*x[0]*x[0] + x[0]/2
	}}
	start := func(x []float64, d *smc.Draws) {
		d.Normal(x)
		x[0] *= 3
	}
	out, err := smc.Anneal{From: from, To: well, Start: start, Blocks: []smc.Block{smc.MALA{Step: 0.01}, smc.MALA{Step: 0.01}}}.Run(context.Background(), 1, 2000)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("log Z %.1f, exact %.1f\n", out.LogZ, math.Log(11784.50927))
	// Output: log Z 9.4, exact 9.4
}

// A controlled Brownian path samples 3 N(1, 0.5); its weights are nearly equal.
func ExampleBridge() {
	b := smc.Bridge{Sigma: 1.2, T: 1, Steps: 100}
	b.Control = b.GaussianControl([]float64{1}, []float64{0.5})
	g := smc.Density{Dim: 1, Log: func(x, _ []float64) float64 {
		return math.Log(3) - 0.5*math.Log(2*math.Pi*0.5) - (x[0]-1)*(x[0]-1)
	}}
	out, err := b.Sample(context.Background(), g, 1, 500)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("Z %.1f, most particles count: %v\n", math.Exp(out.LogZ), out.ESS > 450)
	// Output: Z 3.0, most particles count: true
}

// walk is a Gaussian random walk that is observed with noise.
type walk struct{ y []float64 }

func (w walk) Dim() int                                    { return 1 }
func (w walk) Len() int                                    { return len(w.y) }
func (w walk) Start(context.Context, []float64, int) error { return nil }
func (w walk) Move(_ context.Context, _ int, mean, x []float64, _ int) (float64, error) {
	copy(mean, x)
	return 1, nil
}

func (w walk) Weigh(_ context.Context, t int, logG, v, x []float64, _ int) error {
	clear(v)
	for i := range x {
		logG[i] = -0.5 * (w.y[t] - x[i]) * (w.y[t] - x[i])
	}
	return nil
}

// The expected sum of x_t x_{t+1} over the paths that an observed random walk may have taken.
func ExampleSmoother() {
	s := smc.Smoother{Particles: 400, H: func(_ int, x, next []float64) float64 { return x[0] * next[0] }}
	out, err := s.Filter(context.Background(), walk{[]float64{1, 2, 3}}, 1, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("between 5 and 7: %v\n", out.Estimate > 5 && out.Estimate < 7)
	// Output: between 5 and 7: true
}
