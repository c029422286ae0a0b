package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/manifest"
	"drift/guidance"
	"drift/models"
	"drift/models/analytic"
	"drift/models/open"
)

// composeFlags are the flags of a run on several models, for every verb that draws.
func composeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "compose", Usage: "several models in place of --model: NAME:MODEL[:CLASS],... or a sum such as \"0.7*a + 0.3*b\" (`MODELS`); repeatable"},
		&cli.StringFlag{Name: "rule", Usage: "how --compose puts them together: product (default), average, anneal, or mixture:weights=exact|constant,choice=blend|top1|draw (`RULE`)"},
		&cli.StringFlag{Name: "weights", Usage: "exponents of the models of --compose, or their shares of a mixture (`W,W`); 1 each"},
		&cli.StringFlag{Name: "classifier", Usage: "of --rule mixture, tells the sources apart: a labelled .json target or a .onnx classifier of noisy states, with one class per model (`FILE`)"},
	}
}

// composition is what the flags of composeFlags say, or an earlier run; nil where there is one model only.
func composition(c *cli.Context, base *manifest.Run) (*manifest.Compose, error) {
	if !c.IsSet("compose") {
		for _, f := range []string{"rule", "weights", "classifier"} {
			if c.IsSet(f) && (base == nil || base.Compose == nil) {
				return nil, usagef("--%s needs --compose", f)
			}
		}
		if base == nil || base.Compose == nil || c.IsSet("model") {
			return nil, nil
		}
	}
	if c.IsSet("model") {
		return nil, usagef("--model and --compose exclude each other")
	}
	var m manifest.Compose
	if base != nil && base.Compose != nil {
		m = *base.Compose
	}
	if c.IsSet("compose") {
		m.Models, m.Weights = c.StringSlice("compose"), ""
	}
	for flag, dst := range map[string]*string{"rule": &m.Rule, "weights": &m.Weights, "classifier": &m.Classifier} {
		if c.IsSet(flag) {
			*dst = c.String(flag)
		}
	}
	if m.Rule == "" {
		m.Rule = string(guidance.Product)
	}
	return &m, nil
}

// openComposition opens the models of a composition and makes one of them. What the first wants of a run (sampler, grid,
// guiders) is what the composition wants. Closing the result closes them all.
func (a *app) openComposition(ctx context.Context, m *manifest.Compose, dtype, tier string) (_ *open.Model, _ func(), err error) {
	terms, err := guidance.ParseTerms(m.Models, m.Weights)
	if err != nil {
		return nil, nil, badCompose("compose", err)
	}
	comp, err := guidance.ParseRule(m.Rule)
	if err != nil {
		return nil, nil, badCompose("rule", err)
	}
	opened := map[string]*open.Model{}
	var closers []func()
	closeAll := func() {
		for _, c := range closers {
			c()
		}
		for _, o := range opened {
			o.Close()
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	var first *open.Model
	hash := sha256.New()
	fmt.Fprintf(hash, "%s\n", m.Rule)
	var labels []string
	own := 0
	for _, t := range terms {
		o, ok := opened[t.Model]
		if !ok {
			if o, err = a.openModel(ctx, t.Model, dtype, tier); err != nil {
				return nil, nil, err
			}
			opened[t.Model] = o
		}
		if first == nil {
			first = o
		}
		e := guidance.Expert{Name: t.Name, Model: o.Denoiser, Weight: t.Weight}
		label := t.Name
		if t.Class != "" {
			k, err := classOf(o.Info, t.Model, t.Class)
			if err != nil {
				return nil, nil, badCompose("compose", err)
			}
			e.Class, label = &k, t.Class
			own++
		}
		labels = append(labels, label)
		fmt.Fprintf(hash, "%s %g", o.Info.Hash, t.Weight)
		if e.Class != nil {
			fmt.Fprintf(hash, " class %d", *e.Class)
		}
		fmt.Fprintln(hash)
		comp.Experts = append(comp.Experts, e)
	}
	if strings.EqualFold(filepath.Ext(m.Classifier), ".onnx") {
		judge, err := a.openJudge(ctx, m.Classifier)
		if err != nil {
			return nil, nil, err
		}
		closers = append(closers, judge.Net.Close)
		if n := len(judge.Labels()); n != len(terms) {
			return nil, nil, usagef("--classifier %s has %d classes for %d models", m.Classifier, n, len(terms))
		}
		comp.Of = judge
		fmt.Fprintf(hash, "classifier %s %s\n", judge.Net.Hash, judge.Net.Runtime())
	} else if m.Classifier != "" {
		target, err := analytic.Open(m.Classifier)
		if err != nil {
			return nil, nil, fmt.Errorf("--classifier: %w", err)
		}
		if target.Classes() != len(terms) {
			return nil, nil, usagef("--classifier %s has %d classes for %d models", m.Classifier, target.Classes(), len(terms))
		}
		comp.Of = guidance.Classified{Of: guidance.Posterior{Target: target}}
		fmt.Fprintf(hash, "classifier %s\n", target.Info().Hash)
	}
	d, err := comp.Model()
	if err != nil {
		return nil, nil, badCompose("compose", err)
	}
	info := first.Info
	described, _ := models.As[models.Described](d)
	info.Name, info.Classes, info.Hash = strings.Join(m.Models, ";"), described.Info().Classes, hex.EncodeToString(hash.Sum(nil))
	info.Params = 0
	for _, o := range opened {
		info.Params += o.Info.Params
	}
	if own == len(terms) {
		info.Labels = []string{strings.Join(labels, " and ")}
	} else if own > 0 {
		info.Labels = nil // class k is not the same to all
	}
	defaults := first.Defaults
	defaults.CFGScale = 1
	return &open.Model{Denoiser: d, Info: info, Defaults: defaults, Net: first.Net}, closeAll, nil
}

// badCompose is badUse without the words that the flag says already.
func badCompose(flag string, err error) error {
	return badUse(flag, errors.New(strings.TrimPrefix(err.Error(), "guidance: compose: ")))
}
