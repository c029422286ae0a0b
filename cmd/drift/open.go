package main

import (
	"context"
	"path/filepath"
	"strings"

	"drift/models"
	"drift/models/analytic"
)

// opened is a model ready to be asked.
type opened struct {
	models.Denoiser
	info     models.Info
	analytic bool // exact target: a row without a class is the whole mixture
}

type modelInfo = models.Info

// openModel opens what --model names.
func (a *app) openModel(_ context.Context, name, dtype, tier string) (*opened, error) {
	if strings.EqualFold(filepath.Ext(name), ".json") {
		if dtype != "" && dtype != "f64" {
			return nil, usagef("--dtype %s: an analytic target computes in f64", dtype)
		}
		if tier != "" {
			return nil, usagef("--tier %s: an analytic target uses no kernels", tier)
		}
		m, err := analytic.Open(name)
		if err != nil {
			return nil, err
		}
		return &opened{Denoiser: models.Metered(m), info: m.Info(), analytic: true}, nil
	}
	return nil, usagef("--model %s: no such model; see drift list models", name)
}
