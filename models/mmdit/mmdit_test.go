package mmdit_test

import (
	"testing"

	"drift/models/diffusers"
	"drift/models/engine"
	"drift/models/engine/enginetest"
	"drift/models/mmdit"
)

func open(cfg diffusers.Config, w diffusers.Weights, opt engine.Options) (*engine.Net, error) {
	if c, ok := cfg.(*diffusers.FluxConfig); ok {
		return mmdit.NewFlux(c, w, opt)
	}
	return mmdit.NewSD3(cfg.(*diffusers.SD3Config), w, opt)
}

func TestSD3(t *testing.T) {
	enginetest.Check(t, open, "hidden_states", []enginetest.Ask{
		{Name: "sd3", F32: 1e-6, BF16: 1.5e-2},
		{Name: "sd35", F32: 1e-6, BF16: 1.2e-2},
	})
}

// unpack turns tokens of two by two pixels (the four of a channel side by
// side) into latents, and checks that the fixture's positions are those of the
// network.
func unpack(t *testing.T, io map[string]enginetest.Array) {
	t.Helper()
	ids := io["img_ids"]
	n := ids.Shape[0]
	h, w := int(ids.Data[(n-1)*3+1])+1, int(ids.Data[(n-1)*3+2])+1
	for i := range n {
		if ids.Data[i*3] != 0 || int(ids.Data[i*3+1]) != i/w || int(ids.Data[i*3+2]) != i%w {
			t.Fatalf("token %d has position %v", i, ids.Data[i*3:i*3+3])
		}
	}
	for _, v := range io["txt_ids"].Data {
		if v != 0 {
			t.Fatal("a text token has another position than 0")
		}
	}
	delete(io, "img_ids")
	delete(io, "txt_ids")
	for _, name := range []string{"hidden_states", "out"} {
		a := io[name]
		c := a.Shape[2] / 4
		out := make([]float64, len(a.Data))
		for i := range a.Shape[0] {
			for y := range 2 * h {
				for x := range 2 * w {
					for k := range c {
						token := ((i*h+y/2)*w + x/2) * 4 * c
						out[((i*c+k)*2*h+y)*2*w+x] = a.Data[token+(k*2+y%2)*2+x%2]
					}
				}
			}
		}
		io[name] = enginetest.Array{Shape: []int{a.Shape[0], c, 2 * h, 2 * w}, Data: out}
	}
}

func TestFlux(t *testing.T) {
	enginetest.Check(t, open, "hidden_states", []enginetest.Ask{
		{Name: "flux", F32: 1e-6, BF16: 1.2e-2, Prepare: unpack},
		{Name: "flux-schnell", F32: 1e-6, BF16: 1.2e-2, Prepare: unpack},
	})
}
