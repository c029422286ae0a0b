package inception_test

import (
	"fmt"

	"drift/metrics"
	"drift/metrics/inception"
)

// One picture of the input of the network, by the rule of torch-fidelity.
func ExamplePrepare() {
	black := metrics.Image[uint8]{H: 32, W: 32, C: 3, Pix: make([]uint8, 32*32*3)}
	x := make([]float32, inception.Side*inception.Side*3)
	if err := inception.Prepare(x, black, metrics.ResizeTF1); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(x[0], inception.Scale(metrics.ResizeTF1), len(inception.Tensors()), "tensors")
	// Output: -1 (v-128)/128 472 tensors
}
