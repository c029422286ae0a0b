package pixart_test

import (
	"testing"

	"drift/models/diffusers"
	"drift/models/engine"
	"drift/models/engine/enginetest"
	"drift/models/pixart"
)

func open(cfg diffusers.Config, w diffusers.Weights, opt engine.Options) (*engine.Net, error) {
	if c, ok := cfg.(*diffusers.SanaConfig); ok {
		return pixart.NewSana(c, w, opt)
	}
	return pixart.NewPixArt(cfg.(*diffusers.PixArtConfig), w, opt)
}

func TestFixtures(t *testing.T) {
	enginetest.Check(t, open, "hidden_states", []enginetest.Ask{
		{Name: "pixart", F32: 1e-6, BF16: 1.2e-2},
		{Name: "sana", F32: 1e-6, BF16: 1.1e-2},
	})
}
