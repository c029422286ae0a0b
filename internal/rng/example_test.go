package rng_test

import (
	"fmt"

	"drift/internal/rng"
)

// The noise that a float32 pipeline starts image 2 of a run with seed 40 from.
func ExampleTorch() {
	x := make([]float64, 16)
	rng.NewTorch(40 + 2).NormalF64From32(x)
	fmt.Printf("%.4f\n", x[:4])
	// Output: [1.9269 1.4873 0.9007 -2.1055]
}

// The noise of step 3 of one image does not depend on what else is drawn.
func ExampleNormal() {
	z := make([]float64, 4)
	rng.Normal(z, rng.Key{Seed: 42, Image: 7, Step: 3, Purpose: rng.PurposeStep})
	fmt.Printf("%.4f\n", z)
	// Output: [0.4695 -1.9665 0.8476 0.5655]
}

// Two half steps see the path that one whole step sees.
func ExampleBrownian() {
	path := rng.Brownian{Key: rng.Key{Seed: 42}}
	whole, first, second := make([]float64, 1), make([]float64, 1), make([]float64, 1)
	path.Increment(second, 5, 2.5)
	path.Increment(whole, 10, 2.5)
	path.Increment(first, 10, 5)
	fmt.Printf("%.6f %.6f\n", whole[0], first[0]+second[0])
	// Output: -0.237975 -0.237975
}

// The subset that a kernel score draws.
func ExampleRandomState_Choice() {
	fmt.Println(rng.NewRandomState(0).Choice(10, 4))
	// Output: [2 8 4 9]
}
