package distill_test

import (
	"context"
	"fmt"
	"math"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/samplers/distill"
	"drift/schedules"
)

// A set of four particles finds both modes of a lopsided mixture, of which plain score distillation finds one.
func ExampleRSD() {
	target, err := analytic.New(analytic.Target{Weights: []float64{0.8, 0.2}, Means: [][]float64{{-3, 0}, {3, 0}}, Vars: [][]float64{{0.25, 0.25}, {0.25, 0.25}},
		Process: schedules.VPLinear{}, Prediction: schedules.Eps})
	if err != nil {
		fmt.Println(err)
		return
	}
	grid, err := schedules.NewGrid(schedules.VPLinear{}, "time", 400, schedules.Ends{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, gamma := range []float64{0, 5} {
		res, err := samplers.Sample(context.Background(), distill.RSD{Gamma: gamma, Off: 0.3},
			&samplers.Problem{Model: target, Grid: grid, Rows: distill.Rows([]uint64{7}, 4), Shape: []int{2}})
		if err != nil {
			fmt.Println(err)
			return
		}
		left := 0
		for i := range 4 {
			if models.Data(res.X)[2*i] < 0 {
				left++
			}
		}
		fmt.Printf("gamma %g: %d left, %d right\n", gamma, left, 4-left)
	}
	// Output:
	// gamma 0: 4 left, 0 right
	// gamma 5: 2 left, 2 right
}

// The repulsion of two particles, and the published one, which vanishes for two.
func ExampleKernel() {
	features := []float64{0, 0, 1, 2} // two particles in two dimensions
	R := make([]float64, 4)
	distill.Kernel{}.Repel(R, features, 2)
	fmt.Printf("%.4f\n", R)
	distill.Kernel{Parity: true}.Repel(R, features, 2)
	fmt.Println(math.Abs(R[0]) + math.Abs(R[1]))
	// Output:
	// [-0.2773 -0.5545 0.2773 0.5545]
	// 0
}

// An image by its cosine coefficients: one coefficient is one wave.
func ExampleFourier() {
	image := []int{1, 1, 4}
	z := make([]float64, 4)
	distill.Fourier{}.Render(z, []float64{0, 1, 0, 0}, image)
	fmt.Printf("%.3f\n", z)
	// Output:
	// [0.653 0.271 -0.271 -0.653]
}
