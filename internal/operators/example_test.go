package operators_test

import (
	"fmt"

	"drift/internal/operators"
)

func ExampleParse() {
	a, err := operators.Parse("superres:factor=2", []int{1, 2, 4}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	m := operators.Measure(a, []float64{1, 0, 0.5, 0.5, 0, 0, 0.5, 0.5}, 0, 0, 0)
	back := make([]float64, 8)
	operators.Pinv(a.(operators.Linear), back, m.Y)
	fmt.Printf("%v %.3f\n", a.Out(), m.Y)
	fmt.Printf("%.3f\n", back)
	// Output:
	// [1 1 2] [0.250 0.500]
	// [0.250 0.250 0.500 0.500 0.250 0.250 0.500 0.500]
}
