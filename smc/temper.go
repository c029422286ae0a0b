package smc

import (
	"fmt"
	"math"
)

// TemperRule is how entropic particle filtering chooses a temperature.
type TemperRule int

// The rules; see Temper.
const (
	TemperOff TemperRule = iota
	TemperESS
	TemperEntropy
	TemperProgress
)

var temperNames = []string{"off", "ess", "entropy", "base"}

func (t TemperRule) String() string { return nameOf(temperNames, int(t)) }

// ParseTemperRule reads off, ess, entropy or base.
func ParseTemperRule(s string) (TemperRule, error) {
	i, err := find("tempering rule", temperNames, s)
	return TemperRule(i), err
}

// Temper flattens the weights that ancestors are drawn from while a run is young and its weights look overconfident
// (entropic particle filtering). Where ESS/K < Threshold and the progress u < Phase the draw is from softmax(lw/T), with
// H the normalised entropy of the weights and
//
//	ess:     T = max(1, (1-u)/(ESS/K))
//	entropy: T = max(1, 1/(H + (1-H) u))
//	base:    T = max(1, 2-u)
//
// and T = 1 elsewhere. The target does not change: log Z gains logmeanexp(lw/T) and particle i of ancestor a carries on
// lw[a] (1 - 1/T). With Drop the carried part is lost, as published.
type Temper struct {
	Rule      TemperRule
	Threshold float64 // 0 = 0.5
	Phase     float64 // 0 = 0.5
	Drop      bool
}

func (t Temper) check() error {
	if t.Rule < TemperOff || t.Rule > TemperProgress {
		return fmt.Errorf("smc: unknown tempering rule %d", int(t.Rule))
	}
	if !(t.Threshold >= 0 && t.Threshold <= 1 && t.Phase >= 0 && t.Phase <= 1) {
		return fmt.Errorf("smc: tempering below ESS/K = %g until progress %g: want numbers in [0, 1]", t.Threshold, t.Phase)
	}
	return nil
}

// Temperature returns T >= 1 for weights at a progress in [0, 1].
func (t Temper) Temperature(w Weights, progress float64) float64 {
	half := func(v float64) float64 {
		if v == 0 {
			return 0.5
		}
		return v
	}
	share := w.ESS / float64(max(1, len(w.W)))
	if t.Rule == TemperOff || share >= half(t.Threshold) || progress >= half(t.Phase) {
		return 1
	}
	return t.Rule.temperature(share, w.Entropy, progress)
}

func (t TemperRule) temperature(share, entropy, progress float64) float64 {
	temp := 2 - progress
	switch t {
	case TemperESS:
		temp = (1 - progress) / share
	case TemperEntropy:
		temp = 1 / (entropy + (1-entropy)*progress)
	}
	return min(max(1, temp), math.MaxFloat64) // no entropy at progress 0 would be infinite
}
