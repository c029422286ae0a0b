package inverse

import (
	"fmt"

	"drift/internal/operators"
)

// Operator is a forward operator A; Degradation makes one.
type Operator = operators.Operator

// Measurement is a degraded image, y = A(x) + Sigma n: what a Method is given.
type Measurement = operators.Measurement

// Degradation makes the operator that a text like "superres:factor=4" names, for images of shape (C, H, W), or (D) for
// vectors; the names are those of `drift restore --task`. known marks the H*W pixels that inpainting is given, nil where the
// text says them ("inpaint:box=centre").
func Degradation(text string, shape []int, known []bool) (Operator, error) {
	a, err := operators.Parse(text, shape, known)
	if err != nil {
		return nil, fmt.Errorf("inverse: %w", err)
	}
	return a, nil
}

// Measure degrades the image x: y = A(x) + sigma n, n drawn from the stream (seed, image). It panics where x has another size
// than the images of a.
func Measure(a Operator, x []float64, sigma float64, seed, image uint64) Measurement {
	if n := operators.Size(a.In()); len(x) != n {
		panic(fmt.Sprintf("inverse: an image of %d values for %s, which takes %d", len(x), a.Name(), n))
	}
	return operators.Measure(a, x, sigma, seed, image)
}

// Picture turns a measurement into an image of shape (C, H, W) with values about in [-1, 1]; ok is false where none shows it.
func Picture(y Measurement) (x []float64, shape []int, ok bool) {
	if p, is := y.A.(operators.Pictured); is {
		x, shape = p.Picture(y.Y)
		return x, shape, true
	}
	shape = y.A.Out()
	return y.Y, shape, len(shape) == 3 && (shape[0] == 1 || shape[0] == 3)
}
