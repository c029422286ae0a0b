package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/job"
	"drift/internal/pixels"
	"drift/internal/spec"
	"drift/metrics"
	"drift/models"
	"drift/samplers"
)

// benchVerbs are the verbs that bench can measure, in any setting of their flags. See bench.Verb.
func (a *app) benchVerbs() []bench.Verb {
	return []bench.Verb{
		{Command: func() *cli.Command { return sampleVerb(a) }, Open: a.openSampling, Count: 1000},
		a.steerBench(),
		a.distillBench(),
		{Command: func() *cli.Command { return restoreVerb(a) }, Open: a.openRestoring, Count: 100},
	}
}

func verbNames(verbs []bench.Verb) string {
	text := ""
	for _, v := range verbs[1:] {
		text += ", " + v.Name()
	}
	return text
}

// benchOwn are bench's own flags: what they say goes to a verb's line by the axes.
var benchOwn = []string{"verb", "model", "samplers", "sampler", "schedules", "schedule", "guiders", "guider", "cfg-scale", "sweep", "repeat-baseline", "guide-model", "nfe", "steps",
	"metric", "metrics", "count", "seed", "seeds", "reference", "extractor", "out", "compare", "samples", "batch", "dtype", "tier", "rounding", "dry-run", "limit", "workers", "shard"}

// passed are the flags of verbs that bench hands on, as text.
func passed(verbs []bench.Verb) []cli.Flag {
	var out []cli.Flag
	seen := map[string]bool{}
	for _, v := range verbs {
		for _, f := range v.Flags() {
			name := f.Names()[0]
			if seen[name] || slices.Contains(benchOwn, name) {
				continue
			}
			seen[name] = true
			switch f.(type) {
			case *cli.BoolFlag:
				out = append(out, &cli.BoolFlag{Name: name, Hidden: true})
			case *cli.StringSliceFlag:
				out = append(out, &cli.StringSliceFlag{Name: name, Hidden: true})
			default:
				out = append(out, &cli.StringFlag{Name: name, Hidden: true})
			}
		}
	}
	return out
}

// given are the flags of verbs on this command line.
func (b *benching) given() bench.Args {
	var out bench.Args
	for _, f := range passed(b.benchVerbs()) {
		name := f.Names()[0]
		if !b.c.IsSet(name) {
			continue
		}
		if _, ok := f.(*cli.StringSliceFlag); ok {
			for _, v := range b.c.StringSlice(name) {
				out = append(out, bench.Arg{Flag: name, Value: v})
			}
			continue
		}
		value := b.c.String(name)
		if _, ok := f.(*cli.BoolFlag); ok {
			value = strconv.FormatBool(b.c.Bool(name))
		}
		out = append(out, bench.Arg{Flag: name, Value: value})
	}
	return out
}

// resolveVerb finds what is measured: a verb in settings of its flags, or, with no flag that only verbs have, samplers
// by the matrix's own axes.
func (b *benching) resolveVerb() error {
	c := b.c
	verbs := b.benchVerbs()
	name := c.String("verb")
	if c.IsSet("task") && !c.IsSet("verb") {
		name = "restore"
	}
	var names []string
	for _, v := range verbs {
		names = append(names, v.Name())
	}
	k := slices.Index(names, name)
	if k < 0 {
		return usagef("--verb %s: unknown%s", name, spec.Suggest(name, names))
	}
	v := verbs[k]
	axes, err := bench.Axes(c.String("sweep"))
	if err != nil {
		return badUse("sweep", err)
	}
	samplerNames := []string{"euler", "heun", "dpmpp-2m", "unipc"}
	if text := c.String("samplers"); text != "" && text != "all" {
		samplerNames = bench.Split(text)
	} else if text == "all" {
		samplerNames = names[:0:0]
		for _, i := range samplers.List() {
			samplerNames = append(samplerNames, i.Name)
		}
	}
	for _, axis := range axes {
		text := axis.Flag + "=" + strings.Join(axis.Values, ",")
		_, e := bench.Sweep(samplerNames, text)
		switch {
		case e == nil && (name == "sample" || c.IsSet("samplers") && !v.Has(axis.Flag)):
			b.options = append(b.options, text)
		case v.Has(axis.Flag):
			b.axes = append(b.axes, axis)
		case slices.Contains(v.FlagNames(), axis.Flag) || e == nil:
			return usagef("--sweep %s: name the samplers with --samplers", axis.Flag)
		default:
			return usagef("--sweep %s: neither a flag of %s%s, nor an option of its samplers", axis.Flag, name, spec.Suggest(axis.Flag, v.FlagNames()))
		}
	}
	ofSample := slices.ContainsFunc(strings.Split(c.String("metric"), ","), func(m string) bool {
		return slices.ContainsFunc(artifactColumns, func(col bench.Column) bool { return col.Name == strings.TrimSpace(m) })
	})
	if name != "sample" || len(b.axes) > 0 || len(b.given()) > 0 || ofSample {
		b.verb = &v
	}
	if c.IsSet("limit") && b.verb != nil {
		return usagef("--limit is for samplers on their own: leave the flags of a verb out")
	}
	if c.IsSet("repeat-baseline") && (b.verb == nil || len(v.Baseline) == 0) {
		return usagef("--repeat-baseline: %s has no baselines", name)
	}
	return nil
}

// cells lists the cells of the bench, and finds the scores.
func (b *benching) cells(ctx context.Context) ([]*bench.Cell, error) {
	plain := func(err error) error {
		var u *usage
		if err == nil || errors.As(err, &u) || ctx.Err() != nil {
			return err
		}
		return badUse("verb", err)
	}
	if b.verb == nil {
		cells, err := b.matrix.Cells(ctx, release, b.subjects)
		if err != nil {
			err = &usage{strings.TrimPrefix(err.Error(), "bench: "), err}
		}
		return cells, err
	}
	c, m := b.c, &b.matrix
	fixed := b.given()
	for _, flag := range []string{"dtype", "tier", "rounding", "guide-model"} {
		if c.IsSet(flag) {
			fixed = append(fixed, bench.Arg{Flag: flag, Value: c.String(flag)})
		}
	}
	var axes []bench.Axis
	if text, ok := fixed.Get("methods"); ok { // a list, of which a cell takes one
		fixed, axes = fixed.Drop("methods"), append(axes, bench.Axis{Flag: "methods", Values: bench.Split(text)})
	}
	axis := func(flag string, set bool, values []string) {
		if set {
			axes = append(axes, bench.Axis{Flag: flag, Values: values})
		}
	}
	axis("model", c.IsSet("model"), m.Models)
	axis("guider", c.IsSet("guiders") || c.IsSet("cfg-scale"), m.Guiders)
	names := bench.Split(c.String("samplers"))
	if c.String("samplers") == "all" {
		names = allSamplers()
	}
	for _, o := range b.options {
		var err error
		if names, err = bench.Sweep(names, o); err != nil {
			return nil, badUse("sweep", err)
		}
	}
	axis("sampler", c.IsSet("samplers"), names)
	axis("schedule", c.IsSet("schedules"), m.Schedules)
	axes = append(axes, b.axes...)
	counted := slices.ContainsFunc(axes, func(a bench.Axis) bool { return a.Flag == "nfe" || a.Flag == "steps" }) ||
		slices.ContainsFunc(fixed, func(a bench.Arg) bool { return slices.Contains([]string{"grid", "sigmas", "timesteps"}, a.Flag) })
	if !c.IsSet("nfe") && !c.IsSet("steps") && (counted || b.verb.Name() != "sample") {
		m.NFE, m.Steps = nil, nil
	}
	text := func(list []int) (out []string) {
		for _, n := range list {
			out = append(out, strconv.Itoa(n))
		}
		return out
	}
	axis("nfe", len(m.NFE) > 0, text(m.NFE))
	axis("steps", len(m.Steps) > 0, text(m.Steps))
	for i, a := range axes {
		for _, other := range axes[:i] {
			if other.Flag == a.Flag {
				return nil, usagef("--sweep %s: given by its own flag too", a.Flag)
			}
		}
	}
	cells, err := m.VerbCells(ctx, *b.verb, fixed, axes, c.String("repeat-baseline"), func(model string, shape []int) (*bench.Subject, error) {
		return b.subject(ctx, model, shape)
	})
	if err != nil {
		return nil, plain(err)
	}
	return cells, b.verbMetrics(cells)
}

// subject opens what measures the pictures of a verb's cells on a model.
func (b *benching) subject(ctx context.Context, model string, shape []int) (*bench.Subject, error) {
	if model == "" {
		model = defaultModel()
	}
	for _, s := range b.subjects {
		if s.Name == model && slices.Equal(b.shapes[s], shape) {
			return s, nil
		}
	}
	m, err := b.openModel(ctx, model, b.c.String("dtype"), b.c.String("tier"))
	if err != nil {
		return nil, err
	}
	b.closers = append(b.closers, func() { m.Close() })
	s := &bench.Subject{Name: model, Model: m}
	if err := b.measure(ctx, s, shape); err != nil {
		return nil, err
	}
	if b.shapes == nil {
		b.shapes = map[*bench.Subject][]int{}
	}
	b.shapes[s] = shape
	b.subjects = append(b.subjects, s)
	return s, nil
}

// verbMetrics finds the scores: columns of the cells, or of their pictures.
func (b *benching) verbMetrics(cells []*bench.Cell) error {
	var columns []string
	for _, c := range cells {
		for _, name := range c.Columns() {
			if !slices.Contains(columns, name) {
				columns = append(columns, name)
			}
		}
	}
	m := &b.matrix
	m.Metrics = nil
	if text := b.c.String("metric"); text != "" {
		for name := range strings.SplitSeq(text, ",") {
			name = strings.TrimSpace(name)
			if slices.Contains(m.Metrics, name) {
				continue
			}
			m.Metrics = append(m.Metrics, name)
			if slices.Contains(columns, name) {
				continue
			}
			s, err := bench.FindScorer(name)
			if err != nil {
				return &hint{badUse("metric", err), fmt.Sprintf("%s gives: %s", b.verb.Name(), strings.Join(columns, ", "))}
			}
			for _, sub := range b.subjects {
				if s.NeedsReference() && sub.Reference.Moments == nil {
					return usagef("--metric %s needs --reference for %s", name, sub.Name)
				}
			}
		}
		return nil
	}
	if len(columns) == 0 || b.verb.Name() == "sample" {
		return b.metrics()
	}
	m.Metrics = columns
	return nil
}

// openSampling is drift sample as a bench's verb: a seed is one picture of every set.
func (a *app) openSampling(c *cli.Context) (bench.Runner, error) {
	r := &samplingRunner{sampling{app: a, c: c}}
	if err := r.resolve(c.Context); err != nil {
		r.sampling.close()
		return nil, err
	}
	return r, nil
}

type samplingRunner struct{ sampling }

// Close implements bench.Runner.
func (r *samplingRunner) Close() error { r.sampling.close(); return nil }

// Facts implements bench.Runner.
func (r *samplingRunner) Facts() bench.Facts {
	desc, sets := r.desc, r.desc.Sets
	desc.Seeds = ""
	var columns []bench.Column
	if r.pixels() {
		columns = artifactColumns
	}
	return bench.Facts{
		Columns:  columns,
		Settings: desc, Shape: r.info.Image(), Pictures: len(sets), Rounding: desc.Rounding, Batch: max(1, r.plan.Batch()/len(sets)),
		Class: func(place, k int) int { return sets[k].Class(place) },
		Cost:  bench.Cost{NFE: r.cost.NFE * float64(len(sets)), VJPs: r.cost.VJPs * float64(len(sets))},
	}
}

// pixels tells whether the state is a picture, whose numbers before rounding can be scored.
func (r *samplingRunner) pixels() bool { return r.plan.Codec == nil && pixels.Picture(r.info.Shape) }

// artifactColumns are the score of divergence artifacts of metrics.Magnitude, and whether it is above zero.
var artifactColumns = []bench.Column{{Name: "artifact", Better: -1}, {Name: "artifact-rate", Better: -1, Share: true}}

// artifacts scores the pictures of a seed before they are rounded. Pixels are standardised by the moments of the
// training pictures for the embedded models, by mean 0 and deviation 0.5 for others.
func (r *samplingRunner) artifacts(x []float64) ([]float64, error) {
	m := metrics.Magnitude{Std: []float64{0.5}}
	if embedded(r.desc.Model.Path) {
		m.Mean, m.Std = []float64{-0.4279}, []float64{0.7060}
	}
	size := tensor.Shape(r.info.Shape).TotalSize()
	worst := 0.0
	for k := 0; k < len(x); k += size {
		s, err := m.Score(x[k:k+size], r.info.Shape)
		if err != nil {
			return nil, err
		}
		worst = max(worst, s)
	}
	if worst > 0 {
		return []float64{worst, 1}, nil
	}
	return []float64{0, 0}, nil
}

// Run implements bench.Runner.
func (r *samplingRunner) Run(ctx context.Context, t bench.Task) error {
	m := len(r.desc.Sets)
	var items []job.Item
	for i, seed := range t.Seeds {
		for set := range m {
			items = append(items, job.Item{Set: set, Place: t.First + i, Seed: seed})
		}
	}
	size := min(r.batch(), len(items))
	if size > m {
		size -= size % m
	}
	var x []float64 // pictures of the seeds that are not whole yet, which took nfe and vjps
	nfe, vjps, left := 0.0, 0.0, 0
	_, err := r.plan.Run(ctx, t.Stop, items, size, job.Hooks{
		Step: func(b job.Batch, s *samplers.State) error {
			t.Step((float64(b.Index) + s.Done*float64(len(b.Items))) / float64(len(items)))
			return nil
		},
		Done: func(b job.Batch, _, pictures *tensor.Dense, st samplers.Stats) error {
			n := len(b.Items)
			w := len(models.Data(pictures)) / n * m
			x = append(x, models.Data(pictures)...)
			nfe, vjps, left = nfe+st.NFE*float64(n), vjps+st.VJPs*float64(n), left+n
			for ; left >= m; left -= m {
				part := float64(m) / float64(left)
				res := bench.Result{Cost: bench.Cost{NFE: nfe * part, VJPs: vjps * part}, X: x[:w:w]}
				x, nfe, vjps = x[w:], nfe-res.NFE, vjps-res.VJPs
				if r.pixels() {
					var err error
					if res.Values, err = r.artifacts(res.X); err != nil {
						return err
					}
				}
				if err := t.Done(res); err != nil {
					return err
				}
			}
			return nil
		},
	})
	return err
}
