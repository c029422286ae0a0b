package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"
	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/output"
	"drift/internal/pixels"
	"drift/internal/pngmeta"
	"drift/internal/spec"
	"drift/models"
	"drift/samplers"
	"drift/samplers/distill"
)

// distillTakes are the flags of drift sample that drift distill has too.
var distillTakes = slices.Concat([]string{"model", "out", "sheet", "seed", "seeds", "count", "batch", "dtype", "tier", "schedule", "steps", "nfe", "rho", "t-start", "t-end", "sigma-max", "sigma-min", "grid",
	"sigmas", "timesteps", "class", "classes", "cfg-scale", "guider", "guide-model", "compose", "rule", "weights", "classifier", "rounding", "float", "print-schedule", "dry-run", "preview", "resume",
	"no-metadata"}, textFlags, aroundFlags)

func distillVerb(a *app) *cli.Command {
	flags := []cli.Flag{&cli.IntFlag{Name: "particles", Usage: "images of every set, which are kept apart (`N`)", Value: 8}}
	for _, o := range distill.Options() {
		flags = append(flags, &cli.StringFlag{Name: o.Name, Usage: fmt.Sprintf("%s (`X`, default %s)", o.Help, o.Default)})
	}
	for _, f := range sampleVerb(a).Flags {
		if slices.Contains(distillTakes, f.Names()[0]) {
			flags = append(flags, f)
		}
	}
	return &cli.Command{
		Name: "distill", Usage: "draw sets of images that differ, by repulsive score distillation",
		Description: "Every seed is a set of --particles images that are optimised together: pulled to what the model finds likely, and pushed apart, so that a set shows more of what the model knows than as many separate samples of little noise would. " +
			"--seeds 0-3 makes four sets; particle j of set s uses stream (s, j). One step is one iteration, at one noise level, with one evaluation per particle (two with guidance). --gamma 0 is plain score distillation. " +
			"A folder gets SEED-PARTICLE.png and manifest.json, a sheet one row per set.",
		Flags: flags,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			s := newDistilling(a, c)
			defer s.close()
			if err := s.resolve(c.Context); err != nil {
				return err
			}
			switch {
			case c.Bool("print-schedule"):
				s.printSchedule()
				return nil
			case c.Bool("dry-run"):
				return s.dryRun(c.Context)
			}
			return s.run(c.Context)
		},
	}
}

func newDistilling(a *app, c *cli.Context) *distilling {
	return &distilling{sampling: &sampling{app: a, c: c, verb: "distill", standIn: "euler", bare: true, usual: &usualGrid{"time", 100, 0.98, 0.02}}}
}

// distilling is one run of the verb.
type distilling struct {
	*sampling
	n      int        // particles of a set
	sets   []job.Item // one per set
	apart  float64    // sum over the sets made of the distance of two images
	counts int
}

// resolve turns the flags into a plan.
func (s *distilling) resolve(ctx context.Context) error {
	if !s.c.IsSet("count") && !s.c.IsSet("seed") && !s.c.IsSet("seeds") && !s.c.IsSet("sheet") && !s.c.Bool("resume") {
		if err := s.c.Set("count", "4"); err != nil {
			return err
		}
	}
	if err := s.sampling.resolve(ctx); err != nil {
		return err
	}
	canonical, err := s.method()
	if err != nil {
		return err
	}
	s.desc.Sampler = canonical
	s.plan.Particles = s.n
	s.sets, s.items = s.items, nil
	for _, it := range s.sets {
		for j := range s.n {
			it.Part = j + 1
			s.items = append(s.items, it)
		}
	}
	if !s.c.IsSet("sheet") {
		s.cols, s.rows = s.n, len(s.sets)
	}
	if output.Kind(s.path) == "png" && s.cols*s.rows < len(s.items) {
		return usagef("%d images do not fit on a sheet of %dx%d", len(s.items), s.cols, s.rows)
	}
	p, err := s.plan.Problem(s.sets[:1])
	if err != nil {
		return err
	}
	_, err = s.plan.Sampler.Begin(ctx, p) // what cannot be done is refused before anything is written
	return badUse("particles", err)
}

// method reads the options of the flags, over those of the run that is gone on with, and returns them as one text.
func (s *distilling) method() (string, error) {
	sp := spec.Spec{Name: "rsd"}
	if s.before != nil {
		old, err := spec.Parse(s.before.Sampler)
		if err != nil || old.Name != sp.Name {
			return "", usagef("the run in %s is not one of drift distill", s.path)
		}
		sp = old
	}
	set := func(key, value string) {
		if i := slices.IndexFunc(sp.Args, func(a spec.Arg) bool { return a.Key == key }); i >= 0 {
			sp.Args[i].Value = value
			return
		}
		sp.Args = append(sp.Args, spec.Arg{Key: key, Value: value})
	}
	if s.before == nil || s.c.IsSet("particles") {
		set("n", strconv.Itoa(s.c.Int("particles")))
	}
	for _, o := range distill.Options() {
		if s.c.IsSet(o.Name) {
			set(o.Name, s.c.String(o.Name))
		}
	}
	o := sp.Options()
	s.n = o.Int("n", 1, 1, 1<<16)
	m, err := distill.Read(o)
	if e := o.Err(); e != nil {
		err = e
	}
	if err != nil {
		return "", usagef("%s", trimPackage(err.Error()))
	}
	s.plan.Sampler = m
	return sp.String(), nil
}

// dryRun prints what the run would cost.
func (s *distilling) dryRun(ctx context.Context) error {
	s.items = s.sets
	return s.sampling.dryRun(ctx)
}

// missing lists the sets of which an image is missing.
func (s *distilling) missing(t output.Target) []job.Item {
	var out []job.Item
	for _, it := range t.Missing() {
		it.Part = 0
		if len(out) == 0 || out[len(out)-1] != it {
			out = append(out, it)
		}
	}
	return out
}

// run makes the images and stores them.
func (s *distilling) run(ctx context.Context) error {
	if err := s.memory(); err != nil {
		return err
	}
	hash := s.desc.Hash()
	o := output.Options{Path: s.path, Run: s.desc, Items: s.items, Shape: s.info.Shape, Rounding: pixels.Rounding(s.desc.Rounding), KeepX: s.c.Bool("float"), Cols: s.cols, Rows: s.rows}
	o.Picture = s.picture()
	if !s.c.Bool("no-metadata") {
		o.Texts = func(it *job.Item) []pngmeta.Text { return s.texts(it, hash) }
	}
	var observers []observer
	if s.c.IsSet("preview") {
		p, err := s.newPreview()
		if err != nil {
			return err
		}
		if p != nil {
			observers = append(observers, p)
		}
	}
	target, err := output.Open(o)
	var d *manifest.Different
	if errors.As(err, &d) {
		return &hint{err, "choose another --out, or remove " + d.Dir}
	}
	if err != nil {
		return err
	}
	todo := s.missing(target)
	stored := len(s.sets) - len(todo)
	if s.json {
		s.emit(map[string]any{"event": "start", "hash": hash, "model": s.desc.Model.Path, "sampler": s.desc.Sampler, "schedule": s.desc.Schedule, "particles": s.n,
			"steps": s.steps(), "nfe": s.desc.NFE, "sets": len(s.sets), "stored": stored, "out": s.path})
	}
	if stored > 0 {
		s.say("drift: %d of %d sets are there already", stored, len(s.sets))
	}
	size := s.plan.Batch()
	if n := s.c.Int("batch"); n > 0 {
		size = max(1, n/s.n)
	}
	began := time.Now()
	bar := s.start("drift")
	hooks := s.hooks(target, observers, len(todo), stored, false)
	hooks.Done = func(b job.Batch, x, pictures *tensor.Dense, stats samplers.Stats) error {
		var images []job.Item
		for _, it := range b.Items {
			for j := range s.n {
				it.Part = j + 1
				images = append(images, it)
			}
		}
		files, err := target.Put(images, models.Data(x), models.Data(pictures))
		s.stored(files)
		if err != nil {
			s.unstored = true
			return err
		}
		p := models.Data(pictures)
		for g, size := 0, len(p)/len(b.Items); g < len(b.Items); g++ {
			s.apart += apart(p[g*size:(g+1)*size], s.n)
			s.counts++
		}
		return nil
	}
	stats, err := s.plan.Run(ctx, s.stop, todo, size, hooks)
	bar.Close()
	s.bar = nil
	if err == nil {
		err = s.finish(target)
	}
	if err != nil {
		return s.stopped(err, target, false)
	}
	s.tell(stats, len(todo), time.Since(began))
	return nil
}

// apart is how far apart the images of a set of n are: the mean over pairs of the root mean square difference, 0 for one.
func apart(x []float64, n int) float64 {
	if n < 2 {
		return 0
	}
	w, sum := len(x)/n, 0.0
	for i := range n {
		for j := range i {
			d := 0.0
			for k := range w {
				e := x[i*w+k] - x[j*w+k]
				d += e * e
			}
			sum += math.Sqrt(d / float64(w))
		}
	}
	return sum / float64(n*(n-1)/2)
}

func (s *distilling) tell(stats samplers.Stats, made int, wall time.Duration) {
	apart := s.apart / float64(max(1, s.counts))
	if s.json {
		s.emit(map[string]any{"event": "done", "out": s.path, "sets": len(s.sets), "made": made, "images": len(s.items), "particles": s.n, "steps": stats.Steps, "nfe": stats.NFE, "vjps": stats.VJPs,
			"apart": apart, "seconds": wall.Seconds(), "model_seconds": stats.Model.Seconds(), "hash": s.desc.Hash()})
	}
	if made == 0 {
		s.say("drift: nothing to do, %s is complete", s.path)
		return
	}
	what := "sets"
	if made == 1 {
		what = "set"
	}
	s.say("drift: %d %s of %d by %s, %d steps (%g evaluations per image) in %v: %s", made, what, s.n, s.desc.Sampler, s.steps(), stats.NFE, wall.Round(time.Millisecond), s.path)
	if s.counts > 0 && s.n > 1 {
		s.say("drift: two images of a set are %.3g apart (root mean square over pixels)", apart)
	}
}
