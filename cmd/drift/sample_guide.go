package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/guidance"
	"drift/models"
	"drift/schedules"
)

func (s *sampling) resolveGuiders(ctx context.Context, base *manifest.Run) error {
	if err := s.resolveGuide(ctx, base); err != nil {
		return err
	}
	var specs []string
	// Clipping, as its scheduler asks, goes around the guided model. A search has solvers of its own.
	own := s.model.Defaults.Guiders
	if d := s.model.Defaults; d.OwnGuiders != nil && !s.c.IsSet("sampler") && s.sampler == "" && s.desc.Verb != "search" {
		own = d.OwnGuiders
	}
	if s.bare {
		own = nil
	}
	switch {
	case s.c.IsSet("guider"):
		for _, g := range s.c.StringSlice("guider") {
			if g == "none" {
				own = nil
				continue
			}
			specs = append(specs, g)
		}
	case s.c.IsSet("cfg-scale"):
		w := s.c.Float64("cfg-scale")
		if math.IsNaN(w) || math.IsInf(w, 0) {
			return usagef("--cfg-scale %g: want a finite number", w)
		}
		specs = cfgSpec(w)
	case base != nil:
		specs, own = base.Guiders, nil
	case (!s.c.IsSet("model") || s.info.Text) && s.desc.Compose == nil:
		specs = cfgSpec(s.model.Defaults.CFGScale)
	}
	specs = slices.Concat(specs, own)
	if s.c.IsSet("guide-model") && s.verb != "contact" && !slices.ContainsFunc(specs, needsSecond) {
		return &hint{usagef("--guide-model %s: no guider here works with a second network", s.c.String("guide-model")), "add --guider auto:w=2"}
	}
	if len(specs) == 0 {
		return nil
	}
	var second models.Denoiser
	if s.second != nil {
		second = s.second.Denoiser
	}
	if _, err := guide(s.model.Denoiser, second, specs, nil, nil); err != nil {
		return badUse("guider", err)
	}
	s.desc.Guiders = specs
	if err := s.readScripts(base); err != nil {
		return err
	}
	s.plan.Wrap = func(d models.Denoiser) (models.Denoiser, error) {
		return guide(d, second, specs, s.plan.Grid, s.tell)
	}
	if !slices.ContainsFunc(s.desc.Sets, func(set manifest.Set) bool {
		return set.Prompt != "" || slices.ContainsFunc(set.Classes, func(k int) bool { return k != models.NoClass })
	}) && slices.ContainsFunc(specs, func(g string) bool { return strings.HasPrefix(g, "cfg") }) {
		s.warn("classifier-free guidance does nothing without a class or a text")
	}
	return nil
}

// needsSecond tells whether a guider works with a second network.
func needsSecond(text string) bool {
	g, err := guidance.Parse(text)
	_, ok := g.(guidance.Needer)
	return err == nil && ok
}

// cfgSpec is the guider of --cfg-scale; 1 is off.
func cfgSpec(w float64) []string {
	if w == 1 {
		return nil
	}
	return []string{"cfg:w=" + strconv.FormatFloat(w, 'g', -1, 64)}
}

// resolveGuide opens the second network.
func (s *sampling) resolveGuide(ctx context.Context, base *manifest.Run) error {
	name := s.text("guide-model", base, func(r *manifest.Run) string {
		if r.Guide == nil || s.c.IsSet("guider") || s.c.IsSet("cfg-scale") {
			return ""
		}
		return r.Guide.Path
	}, "")
	if name == "" {
		return nil
	}
	m, err := s.openModel(ctx, name, s.c.String("dtype"), s.c.String("tier"))
	if err != nil {
		return err
	}
	s.second = m
	i := m.Info
	if !slices.Equal(i.Shape, s.info.Shape) {
		return usagef("--guide-model %s gives arrays of shape %v, the model of shape %v", name, i.Shape, s.info.Shape)
	}
	s.desc.Guide = &manifest.Model{Path: name, Hash: i.Hash, DType: i.DType, Tier: i.Tier, Runtime: i.Runtime, Shape: i.Shape}
	return nil
}

// readScripts keeps the text of the files that guiders name: it decides the result.
func (s *sampling) readScripts(base *manifest.Run) error {
	var err error
	if s.desc.Scripts, err = job.Scripts(s.desc.Guiders); err != nil {
		return err
	}
	if base != nil && !s.c.IsSet("guider") && !slices.Equal(base.Scripts, s.desc.Scripts) {
		s.warn("the guiders' files are not those of that run any more")
	}
	return nil
}

// recurrences is how often guiders want every step of the grid made.
func (s *sampling) recurrences() (int, error) {
	k := 1
	for _, text := range s.desc.Guiders {
		g, err := guidance.Parse(text)
		if err != nil {
			return 0, badUse("guider", err)
		}
		if m, ok := g.(guidance.Gradient); ok && m.Recur > 1 {
			if k > 1 {
				return 0, usagef("--guider: two guiders with recur")
			}
			k = m.Recur
		}
	}
	return k, nil
}

// tell takes what a guider says of the rows of a step: a column of the log.
type tell func(q *models.Query, column string, v []float64)

// guide chains guiders around a model, left to right. second is the other model of those that need one, g the grid of those
// that want it (nil while it is not known), say what they report to (may be nil).
func guide(d, second models.Denoiser, specs []string, g schedules.Grid, say tell) (models.Denoiser, error) {
	energies := 0
	for _, text := range specs {
		made, err := guidance.Parse(text)
		if err != nil {
			return nil, err
		}
		if n, ok := made.(guidance.Needer); ok {
			if second == nil {
				return nil, fmt.Errorf("%s needs a second network: --guide-model", text)
			}
			made = n.With(second)
		}
		if n, ok := made.(guidance.Gridder); ok && g != nil {
			made = n.On(g)
		}
		switch m := made.(type) {
		case guidance.Gradient:
			energies++
			tail := ""
			if energies > 1 {
				tail = "_" + strconv.Itoa(energies)
			}
			if say != nil {
				m.Report = func(q *models.Query, e, norm []float64, logged []map[string]float64) {
					say(q, "energy"+tail, e)
					say(q, "grad_norm"+tail, norm)
					names := map[string]bool{}
					for _, row := range logged {
						for name := range row {
							names[name] = true
						}
					}
					for name := range names {
						v := make([]float64, len(logged))
						for i, row := range logged {
							v[i] = math.NaN()
							if x, ok := row[name]; ok {
								v[i] = x
							}
						}
						say(q, name, v)
					}
				}
				made = m
			}
		case guidance.Minority:
			if say != nil {
				m.Measure = func(q *models.Query, dist []float64) { say(q, "minority", dist) }
				made = m
			}
		}
		d = made.Guide(d)
	}
	return d, nil
}
