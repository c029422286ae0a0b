package ort_test

import (
	"context"
	"fmt"

	"drift/models"
	"drift/models/ort"
	"drift/schedules"
)

// What a file takes and gives can be read without the library.
func ExampleReadFile() {
	f, err := ort.ReadFile("testdata/gauss.onnx")
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, p := range f.Inputs {
		fmt.Println("input ", p)
	}
	fmt.Println("output", f.Outputs[0])
	// Output:
	// input  noisy float32 [batch, 1, 4, 4]
	// input  sigma float32 [batch]
	// input  label int64 [batch]
	// output denoised float32 [batch, 1, 4, 4]
}

// A sidecar says what the inputs mean.
func ExampleParseSidecar() {
	s, err := ort.ParseSidecar("net.drift.json", []byte(`{"type": "denoiser", "process": {"type": "flow"}, "prediction": "velocity",
		"inputs": {"x": {"is": "state"}, "t": {"is": "time", "scale": 1000}}, "output": "v"}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(s.Type, s.Prediction, "on", s.Process.Name())
	_, err = ort.ParseSidecar("net.drift.json", []byte(`{"type": "denoiser", "process": {"type": "flow"}, "prediction": "speed"}`))
	fmt.Println(err)
	// Output:
	// denoiser velocity on flow
	// net.drift.json: output is missing: the name of the graph's output
}

// A network is a Denoiser that every sampler takes.
func ExampleLibrary_OpenNet() {
	ctx := context.Background()
	lib, err := ort.Load(ort.Places{Named: "libonnxruntime.so"})
	if err != nil {
		fmt.Println(err) // says how to get it
		return
	}
	net, err := lib.OpenNet(ctx, "testdata/gauss.onnx", nil, ort.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer net.Close()
	d, err := net.Denoiser("gauss")
	if err != nil {
		fmt.Println(err)
		return
	}
	q := &models.Query{X: models.New(1, 1, 4, 4), At: []schedules.Node{schedules.EDM{}.AtRatio(2)}, Cond: &models.Cond{Classes: []int{1}}}
	var p models.Pred
	if err := d.Predict(ctx, q, &p); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Kind, models.Data(p.Out)[0])
}
