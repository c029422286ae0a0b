package mmdit_test

import (
	"slices"
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

// unpack turns a fixture's tokens into the latents that the network takes.
func unpack(t *testing.T, io map[string]enginetest.Array) {
	t.Helper()
	h, w, err := mmdit.Grid(io["img_ids"].Data)
	if err != nil {
		t.Fatal(err)
	}
	delete(io, "img_ids")
	delete(io, "txt_ids")
	for _, name := range []string{"hidden_states", "out"} {
		a := io[name]
		n, c := a.Shape[0], a.Shape[2]/4
		latents := mmdit.Unpack(a.Data, n, h, w, c)
		if !slices.Equal(mmdit.Pack(latents, n, h, w, c), a.Data) {
			t.Fatal("packing does not undo unpacking")
		}
		io[name] = enginetest.Array{Shape: []int{n, c, 2 * h, 2 * w}, Data: latents}
	}
}

func TestFlux(t *testing.T) {
	enginetest.Check(t, open, "hidden_states", []enginetest.Ask{
		{Name: "flux", F32: 1e-6, BF16: 1.2e-2, Prepare: unpack},
		{Name: "flux-schnell", F32: 1e-6, BF16: 1.2e-2, Prepare: unpack},
	})
}
