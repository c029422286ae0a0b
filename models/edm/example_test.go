package edm_test

import (
	"context"
	"fmt"

	"drift/models/diffusers"
	"drift/models/edm"
	"drift/models/engine"
)

// A small DDPM++ with made-up weights, asked at ln(sigma)/4 for a picture of 8 by 8 pixels.
func ExampleNew() {
	cfg, err := diffusers.ParseConfig("config.json", []byte(`{"_class_name": "SongUNet", "img_resolution": 8, "in_channels": 1, "out_channels": 1,
		"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "label_dim": 3}`))
	if err != nil {
		panic(err)
	}
	w, err := diffusers.NewFormula(cfg)
	if err != nil {
		panic(err)
	}
	net, err := edm.New(cfg, w, engine.Options{Threads: 1})
	if err != nil {
		panic(err)
	}
	defer net.Close()
	labels, none := edm.Labels(cfg)
	out := make([]float64, 64)
	b := &engine.Batch{H: 8, W: 8, T: []float64{-0.5}, Class: []int{none}}
	if err := net.Forward(context.Background(), out, make([]float64, 64), b); err != nil {
		panic(err)
	}
	fmt.Println(labels, "labels,", net.Parameters(), "parameters,", len(out), "values")
	// Output: 4 labels, 48017 parameters, 64 values
}
