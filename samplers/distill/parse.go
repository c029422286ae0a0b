package distill

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"drift/internal/kernels"
	"drift/internal/spec"
	"drift/models/zoo"
)

// Option describes one option that Read knows.
type Option struct{ Name, Default, Help string }

// Options lists the options of Read.
func Options() []Option {
	var names []string
	for _, w := range weights {
		names = append(names, w.Name)
	}
	return []Option{
		{"gamma", "150", "strength of the repulsion; 0 = plain score distillation"},
		{"relative", "false", "gamma as a share of the residual's size, whatever the dimension, in place of the published gamma sigma R"},
		{"limit", "0.4", "largest size of the repulsion as a share of the residual's; 0 = no limit"},
		{"off", "0.3", "last fraction of the run without repulsion"},
		{"decay", "false", "gamma falls linearly to 0 where off begins"},
		{"break", "0", "no repulsion at sigma/alpha up to this"},
		{"noisy", "false", "the kernel sees the noised particles, as published, in place of the clean ones"},
		{"features", "none", "what the kernel compares: none (the pixels), pool:SIZE, project:DIM, fashion (the embedded classifier of clothes)"},
		{"global", "false", "one bandwidth for all particles"},
		{"bandwidth", "median", "of the kernel, a number in place of the median's"},
		{"parity", "false", "the published bandwidth, whose repulsion vanishes for two particles"},
		{"residual", "sds", "what is subtracted from the model's noise: sds (the noise put in) or vsd (the exact prediction for the particles)"},
		{"weight", "rho", "of the levels: " + strings.Join(names, ", ")},
		{"levels", "annealed", "order of the noise levels: annealed, random, or a number between 0 and 1, how far they stray from their order as a share of the run"},
		{"scene", "none", "what images are made from: none (pixels), lowres:FACTOR, fourier:DECAY"},
		{"optimizer", "sgd", "sgd or adam"},
		{"rate", "0.2", "of the optimizer; 0.05 for adam"},
		{"cool", "1", "share of the rate at the end, along a cosine"},
		{"beta1", "0.9", "of adam"}, {"beta2", "0.99", "of adam"}, {"eps", "1e-8", "of adam"},
		{"momentum", "0", "of sgd"},
	}
}

// Read takes the options of RSD from o, as Options lists them. Defaults are those that suit images.
func Read(o *spec.Options) (RSD, error) {
	m := RSD{
		Gamma: o.Float("gamma", 150), Relative: o.Bool("relative", false), Limit: o.FloatIn("limit", 0.4, 0, math.MaxFloat64), Off: o.FloatIn("off", 0.3, 0, 1), Decay: o.Bool("decay", false),
		Break: o.FloatIn("break", 0, 0, math.MaxFloat64), Noisy: o.Bool("noisy", false),
		Kernel: Kernel{Global: o.Bool("global", false), Parity: o.Bool("parity", false)},
		Optimizer: Optimizer{
			SGD: o.Choice("optimizer", "sgd", "adam") == "sgd", Final: o.FloatIn("cool", 1, 1e-9, 1),
			Beta1: o.FloatIn("beta1", 0.9, 1e-9, 1), Beta2: o.FloatIn("beta2", 0.99, 1e-9, 1), Eps: o.FloatIn("eps", 1e-8, 1e-300, 1e12), Momentum: o.FloatIn("momentum", 0, 0, 1),
		},
	}
	rate := 0.05
	if m.SGD {
		rate = 0.2
	}
	m.Rate = o.FloatIn("rate", rate, 1e-12, 1e12)
	switch o.Text("levels", "annealed") {
	case "annealed":
	case "random":
		m.Spread = 1
	default:
		m.Spread = o.FloatIn("levels", 0, 0, 1)
	}
	if o.Text("bandwidth", "median") != "median" {
		m.Kernel.Bandwidth = o.FloatIn("bandwidth", 1, 1e-12, math.MaxFloat64)
	}
	if o.Choice("residual", "sds", "vsd") == "vsd" {
		m.Residual = VSD
	}
	var err error
	if m.Weight, err = ParseWeight(o.Text("weight", "rho")); err != nil {
		return m, err
	}
	if m.Features, err = ParseFeatures(o.Text("features", "none")); err != nil {
		return m, err
	}
	if m.Scene, err = ParseScene(o.Text("scene", "none")); err != nil {
		return m, err
	}
	return m, m.check()
}

// ParseFeatures reads none (nil), pool:SIZE, project:DIM or fashion (the embedded classifier).
func ParseFeatures(text string) (Features, error) {
	name, n, err := named("features", text, 1, "none", "pool", "project", "fashion")
	switch {
	case err != nil:
		return nil, err
	case name == "pool":
		return Pool{int(n)}, whole("features", text, n)
	case name == "fashion":
		c, err := zoo.OpenClassifier(kernels.NewPool(kernels.Tiers()[0], 1))
		return Network{c, zoo.Features}, err
	case name == "project":
		return Project{Dim: int(n)}, whole("features", text, n)
	}
	return nil, nil
}

// ParseScene reads none (nil), lowres:FACTOR or fourier:DECAY.
func ParseScene(text string) (Scene, error) {
	name, n, err := named("scene", text, 1, "none", "lowres", "fourier")
	switch {
	case err != nil:
		return nil, err
	case name == "lowres":
		return LowRes{int(n)}, whole("scene", text, n)
	case name == "fourier":
		return Fourier{n}, nil
	}
	return nil, nil
}

// named reads NAME or NAME:NUMBER.
func named(what, text string, def float64, names ...string) (name string, n float64, err error) {
	name, rest, more := strings.Cut(text, ":")
	known := false
	for _, k := range names {
		known = known || k == name
	}
	if !known {
		return "", 0, fmt.Errorf("distill: unknown %s %q%s", what, name, spec.Suggest(name, names))
	}
	n = def
	if more {
		if n, err = strconv.ParseFloat(rest, 64); err != nil || !(n >= 0 && n <= 1<<20) || name == "none" {
			return "", 0, fmt.Errorf("distill: %s %s: want %s and a number from 0", what, text, name)
		}
	}
	return name, n, nil
}

func whole(what, text string, n float64) error {
	if n != math.Trunc(n) || n < 1 {
		return fmt.Errorf("distill: %s %s: want a whole number, 1 or more", what, text)
	}
	return nil
}
