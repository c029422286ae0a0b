package inverse

import (
	"fmt"

	"drift/internal/operators"
	"drift/internal/spec"
	"drift/samplers"
	"drift/samplers/distill"
)

// RSD restores by repulsive score distillation (distill.RSD with a distill.Measure): N images at a time that fit the
// measurement, kept apart. Rows of one seed are one set.
type RSD struct {
	distill.RSD
	N int // images of a set
}

// Particles is the number of rows that belong to one seed.
func (r RSD) Particles() int { return r.N }

func init() {
	options := []Option{{"n", "4", "images of a set"}, {"strength", "2", "of the model against the measurement; 0.5 with rate 0.5 for phase"},
		{"tie", "1", "of direct=false: how firmly an image is tied to its particle, the paper's rho"}, {"rate-x", "rate", "of the measured images"},
		{"direct", "true", "one variable; with gamma 0 RED-diff. false = the published two (there with adam, rates 0.4, tie 0.07, strength 0.15 and 500 steps)"}, {"from", "pinv", "where images start: pinv (noise that is made to fit the measurement, of a linear operator) or noise"}}
	for _, o := range distill.Options() {
		if o.Name != "scene" {
			options = append(options, Option(o))
		}
	}
	Register(Info{Name: "rsd", NFE: "1", Summary: "repulsive score distillation: a set of images that fit the measurement and differ; no gradient through the model; any operator",
		Source: "arXiv 2406.16683", Options: options, New: newRSD})
}

func newRSD(o *spec.Options) (Method, error) {
	n := o.Int("n", 4, 1, 1<<16)
	m, err := distill.Read(o)
	if err != nil {
		return nil, err
	}
	if m.Scene != nil {
		return nil, fmt.Errorf("rsd: a scene cannot be measured")
	}
	me := distill.Measure{Strength: o.FloatIn("strength", 2, 1e-12, 1e12), Tie: o.FloatIn("tie", 1, 1e-12, 1e12), RateX: m.Rate, Direct: o.Bool("direct", true)}
	if o.Has("rate-x") {
		me.RateX = o.FloatIn("rate-x", 1, 1e-12, 1e12)
	}
	pinv := o.Choice("from", "pinv", "noise") == "pinv"
	return func(y operators.Measurement) (samplers.Sampler, error) {
		me, r := me, m
		me.Op, me.Y = y.A, y.Y
		if a, linear := y.A.(operators.Linear); linear && pinv {
			me.Start = func(_ int, x []float64) { // x + A+ (y - A x): fits, and is noise where A does not see
				fit, miss := make([]float64, operators.Size(a.In())), make([]float64, len(y.Y))
				a.Apply(miss, x)
				for i, v := range y.Y {
					miss[i] = v - miss[i]
				}
				operators.Pinv(a, fit, miss)
				for i, v := range fit {
					x[i] += v
				}
			}
		}
		r.Measure = &me
		return RSD{r, n}, nil
	}, nil
}
