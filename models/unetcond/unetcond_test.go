package unetcond_test

import (
	"testing"

	"drift/models/diffusers"
	"drift/models/engine"
	"drift/models/engine/enginetest"
	"drift/models/unetcond"
)

func open(cfg diffusers.Config, w diffusers.Weights, opt engine.Options) (*engine.Net, error) {
	return unetcond.New(cfg.(*diffusers.UNet2DConditionConfig), w, opt)
}

func TestFixtures(t *testing.T) {
	enginetest.Check(t, open, "sample", []enginetest.Ask{
		{Name: "unet2dcond-sd1", F32: 2e-6, BF16: 2.9e-2, VJP: 1e-5},
		{Name: "unet2dcond-sd2", F32: 3e-6, BF16: 3.6e-2},
		{Name: "unet2dcond-sdxl", F32: 5e-6, BF16: 4.5e-2},
		{Name: "unet2dcond-lcm-mask", F32: 2e-6, BF16: 2.1e-2},
		{Name: "unet2dcond-odd-size", F32: 2e-6, BF16: 2.2e-2},
	})
}
