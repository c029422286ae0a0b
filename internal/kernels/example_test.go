package kernels_test

import (
	"fmt"

	"drift/internal/kernels"
)

// A 3 by 3 layer that adds up its neighbourhood, on an image of ones: the
// corners see four pixels.
func ExampleConv() {
	pool := kernels.NewPool(kernels.Portable, 1)
	defer pool.Close()
	weight := []float32{1, 1, 1, 1, 1, 1, 1, 1, 1}
	conv := kernels.NewConv(pool.Tier(), kernels.F32,
		kernels.ConvSpec{Cin: 1, Cout: 1, KH: 3, KW: 3, Pad: kernels.Same(1)}, weight, []float32{0.5})
	x := []float32{1, 1, 1, 1, 1, 1, 1, 1, 1}
	y := make([]float32, 9)
	scratch := make([]float32, conv.Scratch(pool.Workers(), 1, 3, 3, false))
	conv.Run(pool, y, kernels.Input{X: x, C: 1}, 1, 3, 3, scratch, kernels.Epilogue{})
	fmt.Println(y)
	// Output: [4.5 6.5 4.5 6.5 9.5 6.5 4.5 6.5 4.5]
}

// The gradient of the sum of a layer's outputs by its input: how often each
// pixel is used.
func ExampleConvGrad() {
	pool := kernels.NewPool(kernels.Portable, 1)
	defer pool.Close()
	weight := []float32{1, 1, 1, 1, 1, 1, 1, 1, 1}
	grad := kernels.NewConvGrad(pool.Tier(), kernels.F32,
		kernels.ConvSpec{Cin: 1, Cout: 1, KH: 3, KW: 3, Stride: 2, Pad: kernels.Same(1)}, weight)
	dy := []float32{1, 1, 1, 1} // the output of a 4 by 4 image is 2 by 2
	dx := make([]float32, 16)
	grad.Run(pool, dx, dy, 1, 4, 4, make([]float32, grad.Scratch(pool.Workers(), 1, 4, 4)), kernels.Epilogue{})
	for y := range 4 {
		fmt.Println(dx[4*y : 4*y+4])
	}
	// Output:
	// [1 2 1 1]
	// [2 4 2 2]
	// [1 2 1 1]
	// [1 2 1 1]
}

// A group norm is two vectors; whoever reads the tensor applies them.
func ExampleGroupNorm() {
	pool := kernels.NewPool(kernels.Portable, 1)
	defer pool.Close()
	x := []float32{1, 10, 3, 30} // two pixels of two channels, each a group
	scale, shift := make([]float32, 2), make([]float32, 2)
	in := kernels.Input{X: x, C: 2}
	kernels.GroupNorm(pool, scale, shift, in, 1, 2, 2, 0, nil, nil, make([]float32, kernels.GroupNormScratch(1, 2, 2)))
	in.Scale, in.Shift = scale, shift
	y := make([]float32, 4)
	kernels.Apply(pool, y, in, 1, 1, 2)
	fmt.Println(y)
	// Output: [-1 -1 1 1]
}

func ExampleAttention() {
	pool := kernels.NewPool(kernels.Portable, 1)
	defer pool.Close()
	spec := kernels.AttentionSpec{Batch: 1, Heads: 1, Tq: 2, Tk: 2, D: 1, Causal: true}
	q, k, v := []float32{0, 0}, []float32{0, 0}, []float32{2, 4}
	out := make([]float32, 2)
	kernels.Attention(pool, out, q, k, v, spec, make([]float32, kernels.AttentionScratch(pool, spec)))
	fmt.Println(out)
	// Output: [2 3]
}

func ExampleLinear() {
	pool := kernels.NewPool(kernels.Portable, 1)
	defer pool.Close()
	l := kernels.NewLinear(pool.Tier(), kernels.F32, 2, 1, []float32{1, -1}, []float32{10})
	y := make([]float32, 2)
	l.Run(pool, y, []float32{3, 1, 1, 3}, 2, make([]float32, l.Scratch(pool.Workers(), 2)), kernels.Epilogue{})
	fmt.Println(y)
	// Output: [12 8]
}

func ExamplePool_Do() {
	pool := kernels.NewPool(kernels.Portable, 2)
	defer pool.Close()
	squares := make([]int, 5)
	pool.Do(len(squares), func(_, i int) { squares[i] = i * i })
	fmt.Println(squares)
	// Output: [0 1 4 9 16]
}
