package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
	"gonum.org/v1/gonum/mat"
	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/internal/kernels"
	"drift/internal/pixels"
	"drift/metrics"
	"drift/metrics/features"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
)

func benchVerb(a *app) *cli.Command {
	verbs := a.benchVerbs()
	return &cli.Command{
		Name: "bench", Usage: "measure samplers against each other: quality by evaluations",
		Description: "Draws the same seeds through every combination of models, samplers, schedules, guiders and budgets, and scores the pictures. " +
			"--nfe counts true evaluations per picture, guidance included, so at one budget all samplers cost the same. " +
			"The folder gets results.json, .csv, .md and .bench (for benchstat), plot.png and plot.svg, report.html, which needs no other file, and times.csv. " +
			"The same line again goes on where it was, however it was stopped; a larger matrix or more pictures reuse what is there. The table goes to stdout. " +
			"With --verb a cell is a line of that verb: its flags can be given here, and every one of them can be an axis of --sweep. Then seeds.csv has one row per cell and seed, heat.png and pareto.png show the sweep.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "verb", Value: "sample", Usage: "`VERB` to measure: sample" + verbNames(verbs)},
			&cli.StringSliceFlag{Name: "model", Usage: "model `X`, as of sample; repeatable, or a list a,b"},
			&cli.StringFlag{Name: "samplers", Aliases: []string{"sampler"}, Usage: "samplers `a,b:key=value` (euler,heun,dpmpp-2m,unipc), or all (those that need no gradient); sampler/schedule puts one on a schedule of its own"},
			&cli.StringFlag{Name: "schedules", Aliases: []string{"schedule"}, Usage: "schedules `a,b`; default: what the model or the sampler's name implies"},
			&cli.StringFlag{Name: "guiders", Aliases: []string{"guider"}, Usage: "guiders `a;b`, each a chain x+y; an option with several numbers (cfg:w=1,1.5,2) is several guiders; default = only the model's own, none = not even those"},
			&cli.StringFlag{Name: "cfg-scale", Usage: "shorthand of --guiders: classifier-free guidance by `W,W`; 1 = off"},
			&cli.StringFlag{Name: "sweep", Usage: "more axes, `\"eta=0,0.5,1 t-end=0.01,0.02\"`: options of samplers, each where the sampler has it, and any flag of the verb; values with commas in them are set apart by semicolons"},
			&cli.StringFlag{Name: "repeat-baseline", Usage: "run this plain method beside every cell at equal cost (`NAME`, such as best-of-n)"},
			&cli.StringFlag{Name: "guide-model", Usage: "second network of autoguidance (`M`)"},
			&cli.StringFlag{Name: "nfe", Usage: "budgets in evaluations per picture (5,10,20) (`N,N`)"},
			&cli.StringFlag{Name: "steps", Usage: "numbers of steps in place of budgets (`N,N`)"},
			&cli.StringFlag{Name: "metric", Aliases: []string{"metrics"}, Usage: "scores `a,b` (fid,class-acc for the embedded models, fid,energy for targets); see drift list metrics"},
			&cli.IntFlag{Name: "count", Usage: "`N`umber of pictures, or of a verb's seeds, per cell (1000; 16 seeds of a verb)"},
			&cli.Uint64Flag{Name: "seed", Usage: "stream of the first picture; picture k uses stream `N`+k in every cell"},
			&cli.StringFlag{Name: "seeds", Usage: "the same as one range, `A-B`"},
			&cli.StringFlag{Name: "reference", Usage: "set to compare with: fashion (the embedded statistics), exact (of analytic targets), or a folder or .npz (`REF`)"},
			&cli.StringFlag{Name: "extractor", Value: "fashion", Usage: "what turns pictures into features: " + strings.Join(features.Names(), ", ") + ", inception:FILE or FILE.onnx (`NAME`)"},
			&cli.StringFlag{Name: "out", Value: "bench", Usage: "`DIR` of the results (bench)"},
			&cli.StringFlag{Name: "limit", Usage: "what all come to with many steps, such as euler@200 or ddim/time@200: its score is taken off the others, and the rest compared with that of the best fixed solver (`S@N`)"},
			&cli.StringFlag{Name: "compare", Usage: "compare with `OLD/results.json`"},
			&cli.IntFlag{Name: "samples", Value: 24, Usage: "pictures per cell shown in the report (24) (`N`)"},
			&cli.IntFlag{Name: "batch", Usage: "pictures at a time, `B`; never changes a result"},
			&cli.StringFlag{Name: "dtype", Usage: "arithmetic of the network: f32, bf16, f64 (`T`)"},
			&cli.StringFlag{Name: "tier", Usage: "kernel `TIER` (default: the best this CPU has)"},
			&cli.StringFlag{Name: "rounding", Usage: "to 8 bit by `RULE` floor or diffusers"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print the cells with their steps and evaluations, and stop"},
		}, append(scaleFlags("pictures or seeds", 64), passed(verbs)...)...),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			b := &benching{app: a, c: c}
			defer b.close()
			return b.run(c.Context)
		},
	}
}

// benching is one run of the verb.
type benching struct {
	*app
	c *cli.Context

	verb     *bench.Verb  // nil: sample, by the matrix's own axes
	axes     []bench.Axis // of --sweep, flags of the verb
	options  []string     // of --sweep, options of samplers
	matrix   bench.Matrix
	subjects []*bench.Subject
	shapes   map[*bench.Subject][]int // of a verb's pictures
	ex       features.Extractor
	closers  []func()
}

func (b *benching) close() {
	for _, f := range slices.Backward(b.closers) {
		f()
	}
}

func (b *benching) run(ctx context.Context) error {
	if err := b.resolve(ctx); err != nil {
		return err
	}
	var old *bench.Report
	if name := b.c.String("compare"); name != "" {
		r, err := readReport(name)
		if err != nil {
			return err
		}
		old = &r
	}
	cells, err := b.cells(ctx)
	if err != nil {
		return err
	}
	if b.c.Bool("dry-run") {
		b.listCells(cells)
		return nil
	}
	dir := b.c.String("out")
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return usagef("--out %s is a file; bench wants a folder", dir)
	}
	var crew *crew
	var work *benchWork
	if b.wantsCrew(b.c) {
		if work, err = b.work(cells); err != nil {
			return err
		}
		if crew, err = b.hire(ctx, b.c, work); err != nil {
			return err
		}
	}
	bar := b.start("drift bench")
	run := &bench.Bench{
		Version: release, Dir: dir, Matrix: b.matrix, Subjects: b.subjects, Cells: cells, Pictures: b.c.Int("samples"), Batch: b.c.Int("batch"),
		Observe: bar.Set, Finished: b.finished,
	}
	if b.json {
		run.Observe = func(done float64, where string) {
			bar.Set(done, where)
			b.emit(map[string]any{"event": "progress", "progress": done, "where": where})
		}
	}
	if crew != nil {
		b.crewBar = true
		run.Observe, run.Block, run.Remote = nil, work.size, &benchRemote{crew: crew, w: work, ids: map[string]int{}}
	}
	rows, err := run.Run(ctx, b.stop)
	if crew != nil {
		err = errors.Join(err, crew.end(err == nil))
	}
	bar.Close()
	b.bar = nil
	if err != nil {
		if exitCode(err) == exitInterrupted {
			return &hint{fmt.Errorf("%w: %d of %d cells are finished and kept, and the batches of the next", job.ErrStopped, len(rows), len(cells)), "go on with the same line again"}
		}
		return &hint{err, "what is finished is kept; the same line again goes on"}
	}
	report := bench.NewReport(release, b.matrix, rows)
	if err := bench.Write(dir, report, rows); err != nil {
		return err
	}
	switch {
	case old != nil:
		lines, err := bench.Compare(*old, report)
		if err != nil {
			return err
		}
		if b.json {
			for _, l := range lines {
				b.emit(l)
			}
		} else if err := bench.WriteComparison(b.out, lines); err != nil {
			return err
		}
	case !b.json:
		if err := report.Markdown(b.out); err != nil {
			return err
		}
	}
	if b.json {
		b.emit(map[string]any{"event": "done", "out": dir, "cells": len(rows)})
	}
	b.say("drift: %d cells: %s", len(rows), filepath.Join(dir, "report.html"))
	if !slices.ContainsFunc(rows, func(r bench.Row) bool { return r.Reason == "" }) {
		return &hint{errors.New("no cell of the matrix has a result"), rows[0].Name() + " " + rows[0].At() + ": " + rows[0].Reason}
	}
	return nil
}

// finished tells about a cell.
func (b *benching) finished(r bench.Row) {
	if r.Reason != "" {
		b.warn("%s %s: %s", r.Name(), r.At(), r.Reason)
		return
	}
	if b.json {
		for _, s := range r.Scores {
			b.emit(struct {
				Event    string  `json:"event"`
				Model    string  `json:"model"`
				Sampler  string  `json:"sampler"`
				Schedule string  `json:"schedule"`
				Guiders  string  `json:"guiders,omitempty"`
				Budget   int     `json:"budget,omitempty"`
				Steps    int     `json:"steps,omitempty"`
				NFE      float64 `json:"nfe"`
				bench.Score
			}{"score", r.Model, r.Sampler, r.Schedule, r.Guiders, r.Budget, r.Steps, r.NFE, s})
		}
	}
	var text []string
	for _, s := range r.Scores {
		for _, col := range s.Columns() {
			text = append(text, fmt.Sprintf("%s %.4g", col, s.Number(col)))
		}
	}
	cost := fmt.Sprintf("%g evaluations", r.NFE)
	if r.Steps > 0 {
		cost = fmt.Sprintf("%d steps, %s", r.Steps, cost)
	}
	b.say("drift: %s %s (%s): %s", r.Name(), r.At(), cost, strings.Join(text, ", "))
}

func (b *benching) listCells(cells []*bench.Cell) {
	for _, c := range cells {
		if b.json {
			b.emit(map[string]any{"model": c.Model, "sampler": c.Sampler, "schedule": c.Schedule, "guiders": c.Guiders, "budget": c.Budget, "steps": c.Steps, "nfe": c.NFE, "vjps": c.VJPs, "rewards": c.Rewards, "reason": c.Reason})
			continue
		}
		text := fmt.Sprintf("%g evaluations", c.NFE)
		if c.Steps > 0 {
			text = fmt.Sprintf("%d steps, %s", c.Steps, text)
		}
		if c.VJPs > 0 {
			text += fmt.Sprintf(", %g VJPs", c.VJPs)
		}
		if c.Rewards > 0 {
			text += fmt.Sprintf(", %g reward calls", c.Rewards)
		}
		switch {
		case c.Reason != "":
			text = c.Reason
		case c.NFE == 0:
			text = "the sampler decides how many evaluations"
		}
		if c.Note != "" {
			text += "; " + c.Note
		}
		fmt.Fprintf(b.out, "%-60s %-10s %s\n", c.Name(), c.At(), text)
	}
}

// resolve turns the flags into a matrix and opens what it names.
func (b *benching) resolve(ctx context.Context) error {
	c := b.c
	if err := b.resolveVerb(); err != nil {
		return err
	}
	for _, pair := range [][2]string{{"nfe", "steps"}, {"guiders", "cfg-scale"}, {"seeds", "seed"}, {"seeds", "count"}} {
		if c.IsSet(pair[0]) && c.IsSet(pair[1]) {
			return usagef("--%s and --%s exclude each other", pair[0], pair[1])
		}
	}
	m := &b.matrix
	m.Count, m.Seed = c.Int("count"), c.Uint64("seed")
	if c.IsSet("seeds") {
		list, err := manifest.ParseSeeds(c.String("seeds"))
		if err != nil {
			return badUse("seeds", err)
		}
		m.Seed, m.Count = list[0], len(list)
		for k, s := range list {
			if s != m.Seed+uint64(k) {
				return usagef("--seeds %s: bench wants one range, such as 0-31", c.String("seeds"))
			}
		}
	} else if !c.IsSet("count") {
		if m.Count = 1000; b.verb != nil {
			m.Count = max(2, b.verb.Count)
		}
	}
	if m.Count < 2 || m.Count > manifest.MaxImages {
		return usagef("--count %d: want 2 to %d", m.Count, manifest.MaxImages)
	}
	if m.Seed > math.MaxUint64-uint64(m.Count) {
		return usagef("--seed %d: %d pictures need streams beyond the last", m.Seed, m.Count)
	}
	if n := c.Int("batch"); c.IsSet("batch") && n < 1 {
		return usagef("--batch %d: want 1 or more", n)
	}
	if n := c.Int("samples"); n < 0 || n > 1000 {
		return usagef("--samples %d: want 0 to 1000", n)
	}
	var err error
	if c.IsSet("steps") {
		m.Steps, err = wholes("steps", c.String("steps"), mostSteps)
	} else if b.verb == nil || c.IsSet("nfe") {
		m.NFE, err = wholes("nfe", orText(c.String("nfe"), "5,10,20"), mostSteps)
	}
	if err != nil {
		return err
	}
	for _, x := range c.StringSlice("model") {
		for name := range strings.SplitSeq(x, ",") {
			m.Models = append(m.Models, strings.TrimSpace(name))
		}
	}
	if len(m.Models) == 0 && b.verb == nil {
		m.Models = []string{defaultModel()}
	}
	if c.IsSet("rounding") {
		r, err := pixels.ParseRounding(c.String("rounding"))
		if err != nil {
			return badUse("rounding", err)
		}
		m.Rounding = string(r)
	}
	m.Limit = c.String("limit")
	m.Schedules = []string{""}
	if c.IsSet("schedules") {
		m.Schedules = bench.Split(c.String("schedules"))
	}
	if err := b.guiders(); err != nil {
		return err
	}
	if b.verb != nil {
		return nil
	}
	if err := b.open(ctx); err != nil {
		return err
	}
	switch text := c.String("samplers"); {
	case text == "all":
		m.Samplers = allSamplers()
	case text == "":
		m.Samplers = []string{"euler", "heun", "dpmpp-2m", "unipc"}
	default:
		m.Samplers = bench.Split(text)
	}
	for _, axis := range b.options {
		if m.Samplers, err = bench.Sweep(m.Samplers, axis); err != nil {
			return badUse("sweep", err)
		}
	}
	return b.metrics()
}

// allSamplers is what --samplers all means: those that draw pictures one by one, without gradients.
func allSamplers() (names []string) {
	for _, i := range samplers.List() {
		if s, err := samplers.Parse(i.Name); err == nil && !s.Needs().VJP && !s.Needs().Couples {
			names = append(names, i.Name)
		}
	}
	return names
}

// wholes reads a list of positive whole numbers.
func wholes(flag, text string, most int) ([]int, error) {
	var out []int
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 1 || n > most {
			return nil, usagef("--%s %s: want whole numbers from 1 to %d", flag, text, most)
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

func (b *benching) guiders() error {
	b.matrix.Guiders = []string{""}
	switch {
	case b.c.IsSet("cfg-scale"):
		b.matrix.Guiders = nil
		for part := range strings.SplitSeq(b.c.String("cfg-scale"), ",") {
			w, err := strconv.ParseFloat(strings.TrimSpace(part), 64)
			if err != nil || math.IsNaN(w) || math.IsInf(w, 0) {
				return usagef("--cfg-scale: %q is not a finite number", part)
			}
			g := strings.Join(cfgSpec(w), "+")
			if w == 1 && b.verb != nil { // without a guider it takes its own scale
				g = "cfg:w=1"
			}
			b.matrix.Guiders = append(b.matrix.Guiders, g)
		}
	case b.c.IsSet("guiders"):
		b.matrix.Guiders = bench.Guiders(b.c.String("guiders"))
		for k, g := range b.matrix.Guiders {
			if g == "default" {
				b.matrix.Guiders[k] = ""
			}
		}
	}
	return nil
}

// open opens the models, the extractor and the reference.
func (b *benching) open(ctx context.Context) error {
	for _, name := range b.matrix.Models {
		m, err := b.openModel(ctx, name, b.c.String("dtype"), b.c.String("tier"))
		if err != nil {
			return err
		}
		b.closers = append(b.closers, func() { m.Close() })
		s := &bench.Subject{Name: name, Model: m}
		if g := b.c.String("guide-model"); g != "" {
			if s.Guide, err = b.openModel(ctx, g, b.c.String("dtype"), b.c.String("tier")); err != nil {
				return err
			}
			b.closers = append(b.closers, func() { s.Guide.Close() })
			if s.GuideName = g; !slices.Equal(s.Guide.Info.Shape, m.Info.Shape) {
				return usagef("--guide-model %s gives arrays of shape %v, %s of shape %v", g, s.Guide.Info.Shape, name, m.Info.Shape)
			}
			b.matrix.Guide = g
		}
		if err := b.measure(ctx, s, m.Info.Image()); err != nil {
			return err
		}
		b.subjects = append(b.subjects, s)
	}
	return nil
}

// measure finds what measures samples of a shape, and what they are compared with.
func (b *benching) measure(ctx context.Context, s *bench.Subject, shape []int) (err error) {
	if pixels.Picture(shape) {
		if b.ex == nil {
			if b.ex, err = b.openExtractor(b.c.String("extractor"), "", b.c.String("tier")); err != nil {
				return err
			}
			b.closers = append(b.closers, b.ex.Close)
		}
		if s.Measure, err = bench.PictureMeasurer(ctx, b.ex, shape); err != nil {
			return usagef("%s: %w", s.Name, err)
		}
	} else if s.Model.Letters != "" && s.Model.AnyLength {
		ex, err := b.openExtractor("dna", "", b.c.String("tier"))
		if err != nil {
			return err
		}
		b.closers = append(b.closers, ex.Close)
		m := bench.Sequences{Ex: ex, L: shape[0], K: shape[1]}
		s.Measure = m
		name := b.c.String("reference")
		if name == "" {
			name = "dna"
		}
		set, err := openSet(name, m.L, 1)
		if err != nil {
			return err
		}
		s.Reference = bench.ReferenceOf(set, ex, true)
		return nil
	} else {
		s.Measure = bench.States{Dim: tensor.Shape(shape).TotalSize()}
	}
	s.Reference, err = b.reference(s)
	return err
}

// openExtractor opens what turns pictures into features.
func (a *app) openExtractor(name, resize, tier string) (features.Extractor, error) {
	t := kernels.Detect()
	if tier != "" {
		var err error
		if t, err = kernels.ParseTier(tier); err != nil {
			return nil, badUse("tier", err)
		}
	}
	ex, err := features.Open(name, features.Options{Threads: a.threads(), Tier: t, Resize: resize, ORT: a.ort})
	if e := onnxError(err); e != nil {
		return nil, e
	} else if err != nil {
		return nil, &usage{"--extractor: " + strings.TrimPrefix(err.Error(), "features: "), err}
	}
	return ex, nil
}

// reference finds what a model's samples are compared with.
func (b *benching) reference(s *bench.Subject) (bench.Reference, error) {
	name := b.c.String("reference")
	mix, exact := models.As[*analytic.Mixture](s.Model.Denoiser)
	if name == "" {
		name = "fashion"
		if exact {
			name = "exact"
		} else if !embedded(s.Name) {
			return bench.Reference{}, nil // only scores that need none
		}
	}
	switch name {
	case "exact":
		if !exact {
			return bench.Reference{}, usagef("--reference exact: %s is no analytic target", s.Name)
		}
		return exactReference(mix)
	case "fashion":
		return fashionReference(b.ex)
	}
	set, err := features.OpenSet(name)
	if err != nil {
		return bench.Reference{}, err
	}
	if set.Kind == features.Pictures && b.ex == nil {
		return bench.Reference{}, usagef("--reference %s: pictures, which %s does not draw", name, s.Name)
	}
	return bench.ReferenceOf(set, b.ex, true), nil
}

// fashionReference is the embedded reference: moments of the training pictures, features of the test pictures.
func fashionReference(ex features.Extractor) (bench.Reference, error) {
	if ex == nil {
		return bench.Reference{}, usagef("--reference fashion is for pictures")
	}
	train, err := features.Embedded(ex, "train-60000")
	if err != nil {
		return bench.Reference{}, badUse("reference", err)
	}
	test, err := features.Embedded(ex, "test-10000")
	if err != nil {
		return bench.Reference{}, badUse("reference", err)
	}
	return bench.Reference{Moments: bench.SetSide(train, ex, true), Rows: bench.SetSide(test, ex, true)}, nil
}

// exactReference compares with a target's exact moments, and with 4,000 exact samples.
func exactReference(m *analytic.Mixture) (bench.Reference, error) {
	const n = 4_000
	const stream = 0xd1f7 // of the samples; apart from the seeds of runs by Mixture.Sample itself
	id := bench.States{}.Identity()
	text, err := m.JSON()
	if err != nil {
		return bench.Reference{}, err
	}
	digest := features.Digest(string(text))
	t, d := m.Target(), m.Dim()
	mean, cov := make([]float64, d), mat.NewSymDense(d, nil)
	for k, w := range t.Weights {
		for i := range d {
			mean[i] += w * t.Means[k][i]
		}
	}
	for k, w := range t.Weights {
		for i := range d {
			for j := i; j < d; j++ {
				v := (t.Means[k][i] - mean[i]) * (t.Means[k][j] - mean[j])
				switch {
				case t.Covs != nil:
					v += t.Covs[k][i][j]
				case i == j:
					v += t.Vars[k][i]
				}
				cov.SetSym(i, j, cov.At(i, j)+w*v)
			}
		}
	}
	x := make([]float64, n*d)
	if err := m.Sample(x, models.NoClass, stream); err != nil {
		return bench.Reference{}, err
	}
	return bench.Reference{
		Moments: &bench.Side{Name: "exact moments", Digest: digest, ID: id, Exact: true, Stats: func(context.Context) (metrics.Stats, error) {
			return metrics.Stats{Mean: mean, Cov: cov, ID: id}, nil
		}},
		Rows: &bench.Side{Name: "exact samples", Digest: digest, ID: id, N: n, Rows: func(context.Context) (metrics.Samples, metrics.Samples, error) {
			return metrics.Matrix{N: n, D: d, X: x}, nil, nil
		}},
	}, nil
}

// metrics finds the scores: asked for, or those that suit all models.
func (b *benching) metrics() error {
	if text := b.c.String("metric"); text != "" {
		for name := range strings.SplitSeq(text, ",") {
			s, err := bench.FindScorer(strings.TrimSpace(name))
			if err != nil {
				return badUse("metric", err)
			}
			if !slices.Contains(b.matrix.Metrics, s.Name) {
				b.matrix.Metrics = append(b.matrix.Metrics, s.Name)
			}
		}
	} else {
		b.matrix.Metrics = []string{"fid", "class-acc"}
		for _, s := range b.subjects {
			if _, classes := s.Measure.Dims(); classes == 0 {
				b.matrix.Metrics = []string{"fid", "energy"}
			}
		}
	}
	for _, name := range b.matrix.Metrics {
		sc, err := bench.FindScorer(name)
		if err != nil {
			return err
		}
		for _, s := range b.subjects {
			if sc.NeedsReference() && s.Reference.Moments == nil {
				return usagef("--metric %s needs --reference for %s", name, s.Name)
			}
		}
	}
	return nil
}

func orText(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// readReport reads results.json, or the folder that has one.
func readReport(name string) (bench.Report, error) {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		name = filepath.Join(name, "results.json")
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return bench.Report{}, err
	}
	return bench.ParseReport(name, text)
}
