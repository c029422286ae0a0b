package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/internal/atomicfile"
	"drift/internal/pixels"
	"drift/metrics"
	"drift/metrics/features"
	"drift/models"
	"drift/samplers"
	"drift/samplers/search"
	"drift/schedules"
)

func searchVerb(a *app) *cli.Command {
	model := []cli.Flag{
		&cli.StringFlag{Name: "model", Usage: "model to search for (`X`)"},
		&cli.StringFlag{Name: "dtype", Usage: "arithmetic of the network (`T`)"},
		&cli.StringFlag{Name: "tier", Usage: "kernel tier (`TIER`)"},
		&cli.Uint64Flag{Name: "seed", Usage: "stream of the first start (`N`); search on one range, compare on another"},
		&cli.IntFlag{Name: "count", Value: 64, Usage: "starts to search on (`N`), default 64"},
		&cli.StringFlag{Name: "class", Usage: "class of all (`K`)"},
		&cli.StringFlag{Name: "classes", Usage: "classes in turn (`0,3,5`)"},
		&cli.Float64Flag{Name: "cfg-scale", Usage: "classifier-free guidance (`W`)"},
		&cli.StringSliceFlag{Name: "guider", Usage: "name:key=value,... (`SPEC`)"},
		&cli.IntFlag{Name: "fine", Value: 100, Usage: "steps of the fine trajectory (`N`), default 100"},
		&cli.StringFlag{Name: "fine-schedule", Usage: "its grid (`G`); default: time on a flow, else the process's own"},
		&cli.Float64Flag{Name: "t-start", Usage: "noise end of the grid (`T`)"},
		&cli.Float64Flag{Name: "t-end", Usage: "data end (`T`)"},
		&cli.Float64Flag{Name: "sigma-max", Usage: "noise end as sigma/alpha (`S`)"},
		&cli.Float64Flag{Name: "sigma-min", Usage: "data end as sigma/alpha (`S`)"},
		&cli.StringFlag{Name: "final", Usage: "zero or min (`WHERE`)"},
	}
	for _, f := range sampleVerb(a).Flags {
		if slices.Contains(slices.Concat(textFlags, aroundFlags), f.Names()[0]) {
			model = append(model, f)
		}
	}
	steps := &cli.IntFlag{Name: "steps", Aliases: []string{"nfe"}, Value: 5, Usage: "steps, one evaluation each (`N`), default 5"}
	out := &cli.StringFlag{Name: "out", Usage: "file to write (`FILE.json`)"}
	resume := &cli.BoolFlag{Name: "resume", Usage: "go on with the search that was writing --out"}
	teacher := &cli.StringFlag{Name: "teacher", Value: "unipc", Usage: "solver of the fine trajectory (`S`), default unipc"}
	workers, size := scaleFlags("starts", 64)[0], scaleFlags("starts", 64)[1]
	grid := append([]cli.Flag{steps, workers, out, resume, &cli.IntFlag{Name: "batch", Value: 16, Usage: "starts at a time (`B`), default 16; what is saved when interrupted"}}, model...)
	evolve := append([]cli.Flag{steps, workers, size, out, resume, teacher,
		&cli.DurationFlag{Name: "budget", Usage: "time to spend, such as 10m (`TIME`)"},
		&cli.IntFlag{Name: "evaluations", Usage: "schedules to try (`N`); 300 without --budget"},
		&cli.StringFlag{Name: "objective", Value: "distance", Usage: "what to make small: distance from the teacher's end points, features = distance in features of the pictures, or fid of the pictures, of 512 starts unless --count says (`WHAT`)"},
		&cli.Float64Flag{Name: "ball", Usage: "s4s by distance: let every start move by `R` standard deviations of its noise per dimension, such as 0.01; needs a model with gradients"},
		&cli.StringFlag{Name: "extractor", Value: "fashion", Usage: "features of --objective features and fid (`NAME`)"},
		&cli.StringFlag{Name: "reference", Usage: "what fid compares with: fashion (of embedded models), a folder or .npz (`REF`)"},
		&cli.IntFlag{Name: "finalists", Value: 1, Usage: "write the `N` best, the others to OUT-2.json, OUT-3.json, ..., to be scored on other seeds by bench"},
		&cli.IntFlag{Name: "order", Value: 3, Usage: "highest order of a step, 1 to 4 (`P`), default 3"},
		&cli.Uint64Flag{Name: "search-seed", Usage: "stream of the search's own draws (`N`)"},
	}, model...)
	noise := &cli.BoolFlag{Name: "noise", Usage: "choose also how much fresh noise every step adds; with --objective fid"}
	start := &cli.StringFlag{Name: "start", Usage: "go on from a schedule that s4s found, by another objective for instance, or from one that it knows, such as dpmpp-2m/time, with --noise dpmpp-2m-sde/karras (`FILE.json`)"}
	verb := func(name, usage, text string, flags []cli.Flag, do func(*searching, context.Context) error) *cli.Command {
		return &cli.Command{Name: name, Usage: usage, Description: text, Flags: slices.Clone(flags), Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			s := &searching{sampling: sampling{app: a, c: c}}
			defer s.close()
			defer func() {
				if s.ex != nil {
					s.ex.Close()
				}
			}()
			ctx, cancel := context.WithCancel(c.Context)
			defer cancel()
			go func() { // the first interrupt ends the search; all evaluations are on disk
				select {
				case <-a.stop:
					cancel()
				case <-ctx.Done():
				}
			}()
			if err := s.resolve(ctx); err != nil {
				return err
			}
			err := do(s, ctx)
			if s.crew != nil {
				err = errors.Join(err, s.crew.end(err == nil))
			}
			s.bar.Close()
			s.bar = nil
			if (errors.Is(err, context.Canceled) || errors.Is(err, job.ErrStopped)) && c.String("out") != "" {
				return &hint{fmt.Errorf("%w: what was evaluated is saved", job.ErrStopped), "go on with the same line and --resume"}
			}
			return err
		}}
	}
	return &cli.Command{
		Name: "search", Usage: "find grids and solver schedules for few steps: boss, gits, s3, s4s, compare",
		Description: "boss and gits write grids for --schedule @FILE; s3 and s4s write solver schedules for --sampler @FILE. Scores are mean squared distances from the end points of a fine trajectory on the same starts, or for s3 and s4s distances in features, or the FID of pictures. Every evaluation is logged before the next: however a search was stopped, --resume goes on.",
		Subcommands: []*cli.Command{
			verb("boss", "the grid of least Euler error over a fine trajectory (dynamic programme)", "Prints the cost for every number of steps and writes the grid of --steps.", grid,
				func(s *searching, ctx context.Context) error { return s.grid(ctx, search.Squared, 1) }),
			verb("gits", "a grid from the geometry of trajectories (dynamic programme)", "As boss, with the deviation from the chord of the trajectory (on a flow: the distance in the scale of the data) and early errors discounted by 1.15.", grid,
				func(s *searching, ctx context.Context) error { return s.grid(ctx, search.Deviation, 1.15) }),
			verb("s3", "a solver schedule, by evolution with a learned ranking", "Nodes, orders, predictions, derivatives and correctors of every step are chosen.", evolve,
				func(s *searching, ctx context.Context) error { return s.evolve(ctx, "s3") }),
			verb("s4s", "nodes and coefficients of a multistep method, by CMA-ES", "Starts from dpmpp-2m, or with --noise from the best of some solvers with noise, on the best of the usual grids, or from --start.", append([]cli.Flag{start, noise}, evolve...),
				func(s *searching, ctx context.Context) error { return s.evolve(ctx, "s4s") }),
			verb("compare", "rank fixed solvers and searched ones at equal evaluations", "Every line gives the mean squared distance from the fine end points, and the paired 95 % interval of its ratio to the best fixed one's. Choose a --seed range that no search has seen.",
				append([]cli.Flag{teacher, workers, size,
					&cli.StringFlag{Name: "nfe", Value: "5,8,10", Usage: "evaluations, guidance not counted (`5,8,10`)"},
					&cli.StringFlag{Name: "samplers", Usage: "fixed solvers, separated by ; (`a;b`)"},
					&cli.StringFlag{Name: "schedules", Usage: "their grids, separated by ; (`a;b`)"},
					&cli.StringSliceFlag{Name: "with", Usage: "a searched schedule or grid (`FILE.json`); repeatable"},
				}, model...),
				func(s *searching, ctx context.Context) error { return s.compare(ctx) }),
		},
	}
}

// searching is a search under way.
type searching struct {
	sampling
	ex      features.Extractor // of --objective fid, or nil
	crew    *crew              // makes the runs, or nil
	size    int                // starts of its shards
	ids     int                // of its shards so far
	process schedules.Gaussian
	fine    schedules.Grid
}

func (s *searching) resolve(ctx context.Context) error {
	s.desc = manifest.Run{Format: manifest.Format, Version: release, Verb: "search"}
	s.plan = &job.Plan{}
	for _, step := range []func(context.Context, *manifest.Run) error{s.resolveModel, s.resolveSeeds, s.resolveSets, s.resolveGuiders} {
		if err := step(ctx, nil); err != nil {
			return err
		}
	}
	p, ok := s.model.Denoiser.Process().(schedules.Gaussian)
	if !ok {
		return fmt.Errorf("%s: the process %s is not Gaussian", s.desc.Model.Path, s.model.Denoiser.Process().Name())
	}
	s.process = p
	name := s.c.String("fine-schedule")
	if name == "" {
		name = schedules.DefaultGrid(p)
		if _, flow := p.(schedules.Flow); flow {
			name = "time"
		}
	}
	n := s.c.Int("fine")
	if n < 2 || n > 10_000 {
		return usagef("--fine %d: want 2 to 10000", n)
	}
	ends, asked := s.ends(nil)
	g, err := schedules.NewGrid(p, name, n, ends)
	if err != nil {
		return badUse("fine-schedule", err)
	}
	s.desc.Schedule, s.desc.Ends, s.fine = name, asked, g
	return nil
}

// origin says where a result came from; as settings it tells searches apart.
func (s *searching) origin(method string, more ...any) map[string]any {
	o := map[string]any{"method": method, "drift": release, "model": s.desc.Model.Path, "model_hash": s.desc.Model.Hash, "dtype": s.desc.Model.DType, "tier": s.desc.Model.Tier,
		"guiders": s.desc.Guiders, "sets": s.desc.Sets, "seeds": s.desc.Seeds, "fine": len(s.fine) - 1, "fine_schedule": s.desc.Schedule, "t": []float64{s.fine[0].T, s.fine[len(s.fine)-1].T}}
	for i := 0; i+1 < len(more); i += 2 {
		o[more[i].(string)] = more[i+1]
	}
	return o
}

// output is the name of the file to write.
func (s *searching) output() (string, error) {
	name := s.c.String("out")
	if name == "" {
		return "", usagef("search needs --out FILE.json")
	}
	return name, nil
}

// unfinished refuses to write over an unfinished search.
func (s *searching) unfinished(name string) error {
	_, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && s.c.Bool("resume"):
		return usagef("--resume: there is no %s", name)
	case err == nil && !s.c.Bool("resume"):
		return &hint{usagef("%s holds an earlier search", name), "go on with --resume, or remove it"}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return nil
}

func store(name string, text []byte) error {
	f, err := atomicfile.Create(name)
	if err != nil {
		return err
	}
	defer f.Discard()
	if _, err := f.Write(text); err != nil {
		return err
	}
	return f.Commit()
}

// grid runs boss and gits.
func (s *searching) grid(ctx context.Context, metric search.Metric, discount float64) error {
	out, err := s.output()
	if err != nil {
		return err
	}
	if s.fine[0].Alpha == 0 && metric == search.Deviation {
		metric = search.Norm
	}
	k := s.c.Int("steps")
	if k < 1 || k >= len(s.fine) {
		return usagef("--steps %d: want 1 to %d, the steps of the fine grid", k, len(s.fine)-1)
	}
	method := s.c.Command.Name
	settings := s.origin(method, "metric", metric, "discount", discount)
	type state struct {
		Search json.RawMessage    `json:"search"`
		Costs  *search.CostMatrix `json:"costs"`
	}
	key, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	saved := out + ".costs.json"
	if err := s.unfinished(saved); err != nil {
		return err
	}
	st := state{key, &search.CostMatrix{Grid: s.fine, Metric: metric}}
	if s.c.Bool("resume") {
		text, err := os.ReadFile(saved)
		if err != nil {
			return err
		}
		var old state
		if err := json.Unmarshal(text, &old); err != nil || string(old.Search) != string(key) || old.Costs == nil || old.Costs.Samples > len(s.items) || len(old.Costs.Sum) != len(s.fine)*len(s.fine) {
			return usagef("%s is of another search", saved)
		}
		st = old
	}
	if err := s.call(ctx); err != nil {
		return err
	}
	if s.crew != nil {
		if err := s.submitCosts(st.Costs); err != nil {
			return err
		}
	}
	s.start("drift search " + method)
	for st.Costs.Samples < len(s.items) {
		if err := s.addCosts(ctx, st.Costs); err != nil {
			return err
		}
		text, err := json.Marshal(st)
		if err != nil {
			return err
		}
		if err := store(saved, text); err != nil {
			return err
		}
		s.bar.Set(float64(st.Costs.Samples)/float64(len(s.items)), fmt.Sprintf("%d of %d trajectories", st.Costs.Samples, len(s.items)))
	}
	paths, err := st.Costs.Boss(max(k, min(len(s.fine)-1, 20)), discount)
	if err != nil {
		return err
	}
	for i, p := range paths {
		if s.json {
			s.emit(map[string]any{"steps": i + 1, "cost": p.Cost, "nodes": p.Nodes})
		} else {
			fmt.Fprintf(s.out, "%3d steps  cost %-12.6g nodes %s\n", i+1, p.Cost, strings.Trim(fmt.Sprint(p.Nodes), "[]"))
		}
	}
	settings["steps"], settings["cost"], settings["nodes"] = k, paths[k-1].Cost, paths[k-1].Nodes
	text, err := search.GridFile(s.process, paths[k-1].Take(s.fine), settings)
	if err != nil {
		return err
	}
	if err := store(out, text); err != nil {
		return err
	}
	s.say("drift: wrote %s, for --schedule @%s", out, out)
	return os.Remove(saved)
}

// distance runs the teacher.
func (s *searching) distance(ctx context.Context) (*search.Distance, error) {
	teacher, err := samplers.Parse(s.c.String("teacher"))
	if err != nil {
		return nil, badUse("teacher", err)
	}
	p, err := s.plan.Problem(s.items)
	if err != nil {
		return nil, err
	}
	if s.crew != nil {
		return s.farDistance(ctx, p, teacher)
	}
	d, err := search.NewDistance(ctx, p, teacher, s.fine)
	if err != nil {
		return nil, err
	}
	if s.plan.Wrap != nil {
		d.NewModel = func() (samplers.Model, error) { return s.plan.Wrap(s.plan.Model) }
	}
	return d, nil
}

// objective is what --objective names; it adds to the settings what decides its scores.
func (s *searching) objective(ctx context.Context, settings map[string]any) (search.Objective, error) {
	ball := s.c.Float64("ball")
	if s.c.IsSet("ball") && (!(ball > 0 && ball <= 1) || s.c.String("objective") != "distance" || s.c.Command.Name != "s4s") {
		return nil, usagef("--ball %g: want more than 0, at most 1, with s4s and --objective distance", ball)
	}
	if ball > 0 && s.crew != nil {
		return nil, usagef("--ball wants gradients of whole runs, which shards do not give: leave it or --workers out")
	}
	switch name := s.c.String("objective"); name {
	case "distance":
		for _, f := range []string{"extractor", "reference"} {
			if s.c.IsSet(f) {
				return nil, usagef("--%s is for other objectives", f)
			}
		}
		d, err := s.distance(ctx)
		if err != nil {
			return nil, err
		}
		if ball > 0 {
			settings["ball"] = ball
			return search.Relaxed{Distance: d, Radius: ball}.Score, nil
		}
		return d.Score, nil
	case "fid":
		return s.fid(ctx, settings)
	case "features":
		return s.features(ctx, settings)
	default:
		return nil, usagef("--objective %s: want distance, features or fid", name)
	}
}

// measurer opens what measures pictures.
func (s *searching) measurer(ctx context.Context, settings map[string]any) (bench.Measurer, error) {
	if !pixels.Picture(s.info.Image()) {
		return nil, usagef("--objective %s: the model gives arrays of shape %v, not pictures", s.c.String("objective"), s.info.Shape)
	}
	if s.ex != nil {
		s.ex.Close()
	}
	ex, err := s.openExtractor(s.c.String("extractor"), "", s.c.String("tier"))
	if err != nil {
		return nil, err
	}
	s.ex = ex
	m, err := bench.PictureMeasurer(ctx, ex, s.info.Image())
	if err != nil {
		return nil, err
	}
	id := m.Identity()
	settings["objective"], settings["extractor"], settings["resize"], settings["rounding"] = s.c.String("objective"), id.Extractor, id.Resize, m.Rounding(s.model.Defaults.Rounding)
	return m, nil
}

// pictures runs a solver over the starts, a batch at a time; false says that it blew up. A nil grid is the solver's own.
func (s *searching) pictures(ctx context.Context, m bench.Measurer, solver samplers.Sampler, g schedules.Grid, take func(metrics.Matrix) error) (bool, error) {
	if s.crew != nil {
		return s.farPictures(m, solver, g, take)
	}
	size := s.plan.Batch()
	for from := 0; from < len(s.items); from += size {
		items := s.items[from:min(from+size, len(s.items))]
		p, err := s.plan.Problem(items)
		if err != nil {
			return false, err
		}
		p.Grid = g
		res, err := samplers.Sample(ctx, solver, p)
		var blown *samplers.NotFinite
		if errors.As(err, &blown) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		f, err := s.measured(ctx, m, res.X)
		if err != nil {
			return false, err
		}
		if err := take(f); err != nil {
			return false, err
		}
	}
	return true, nil
}

// measured is the features of the pictures that rows of the state are.
func (s *searching) measured(ctx context.Context, m bench.Measurer, x *tensor.Dense) (metrics.Matrix, error) {
	if s.plan.Codec != nil {
		var err error
		if x, err = s.plan.Codec.Decode(ctx, x); err != nil {
			return metrics.Matrix{}, fmt.Errorf("decoding: %w", err)
		}
	}
	v, _, err := m.Measure(ctx, models.Data(x), x.Shape()[0], m.Rounding(s.model.Defaults.Rounding))
	return v.Features, err
}

// features scores by the mean squared distance, over pictures, of their features from those of the teacher's pictures
// on the same starts.
func (s *searching) features(ctx context.Context, settings map[string]any) (search.Objective, error) {
	if s.c.IsSet("reference") {
		return nil, usagef("--reference is for --objective fid")
	}
	m, err := s.measurer(ctx, settings)
	if err != nil {
		return nil, err
	}
	teacher, err := samplers.Parse(s.c.String("teacher"))
	if err != nil {
		return nil, badUse("teacher", err)
	}
	var want []float64
	ok, err := s.pictures(ctx, m, plain(named{teacher, s.c.String("teacher")}, s.crew == nil), s.fine, func(f metrics.Matrix) error { want = append(want, f.X...); return nil })
	if err == nil && !ok {
		err = fmt.Errorf("the teacher %s blew up", s.c.String("teacher"))
	}
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, schedule samplers.SolverSchedule) (float64, error) {
		sum, at := 0.0, 0
		ok, err := s.pictures(ctx, m, samplers.USF{Schedule: schedule}, nil, func(f metrics.Matrix) error {
			for _, v := range f.X {
				sum += (v - want[at]) * (v - want[at])
				at++
			}
			return nil
		})
		if err != nil || !ok {
			return math.Inf(1), err
		}
		return sum / float64(len(s.items)), nil
	}, nil
}

// fidStarts takes 512 starts unless --count says another number.
func (s *searching) fidStarts(settings map[string]any) error {
	if !s.c.IsSet("count") {
		first := s.seeds[0]
		if first > math.MaxUint64-512 {
			return usagef("--seed %d: 512 starts need streams beyond the last", first)
		}
		s.seeds = s.seeds[:0]
		for k := range uint64(512) {
			s.seeds = append(s.seeds, first+k)
		}
		s.items = job.Items(len(s.desc.Sets), s.seeds, 0)
		settings["seeds"] = manifest.FormatSeeds(s.seeds)
	}
	return nil
}

// fid scores by the Fréchet distance of the pictures' features from a reference.
func (s *searching) fid(ctx context.Context, settings map[string]any) (search.Objective, error) {
	if err := s.fidStarts(settings); err != nil {
		return nil, err
	}
	m, err := s.measurer(ctx, settings)
	if err != nil {
		return nil, err
	}
	var ref bench.Reference
	switch name := s.c.String("reference"); {
	case name == "" && embedded(s.desc.Model.Path), name == "fashion":
		ref, err = fashionReference(s.ex)
	case name == "":
		return nil, usagef("--objective fid needs --reference")
	default:
		var set *features.Set
		if set, err = features.OpenSet(name); err == nil {
			ref = bench.ReferenceOf(set, s.ex, true)
		}
	}
	if err != nil {
		return nil, err
	}
	base, err := ref.Moments.Stats(ctx)
	if err != nil {
		return nil, err
	}
	settings["reference"], settings["reference_hash"] = ref.Moments.Name, ref.Moments.Digest
	return func(ctx context.Context, schedule samplers.SolverSchedule) (float64, error) {
		all := metrics.Moments{ID: m.Identity()}
		ok, err := s.pictures(ctx, m, samplers.USF{Schedule: schedule}, nil, func(f metrics.Matrix) error { return all.Add(f) })
		if err != nil || !ok {
			return math.Inf(1), err
		}
		st, err := all.Stats()
		if err != nil {
			return 0, err
		}
		r, err := metrics.CompareStats(base, st, false)
		return r.Value, err
	}, nil
}

// evolve runs s3 and s4s.
func (s *searching) evolve(ctx context.Context, method string) error {
	out, err := s.output()
	if err != nil {
		return err
	}
	limit := search.Budget{Evaluations: s.c.Int("evaluations"), Time: s.c.Duration("budget")}
	if limit.Evaluations < 0 || limit.Time < 0 {
		return usagef("--budget and --evaluations want more than 0")
	}
	if limit == (search.Budget{}) {
		limit.Evaluations = 300
	}
	space := search.Space{Process: s.process, From: s.fine[0], To: s.fine[len(s.fine)-1], Steps: s.c.Int("steps"), Order: s.c.Int("order")}
	if space.Steps < 1 || space.Order < 1 {
		return usagef("--steps and --order want 1 or more")
	}
	settings := s.origin(method, "steps", space.Steps, "order", space.Order, "teacher", s.c.String("teacher"), "search_seed", s.c.Uint64("search-seed"))
	if n := s.c.Int("finalists"); n < 1 || n > 1000 {
		return usagef("--finalists %d: want 1 to 1000", n)
	}
	if s.c.Bool("noise") {
		if what := s.c.String("objective"); what != "fid" {
			return usagef("--noise wants --objective fid: the %s from a teacher without noise never asks for any", what)
		}
		space.Noise, settings["noise"] = true, true
	}
	name := out + ".log.jsonl"
	if err := s.unfinished(name); err != nil {
		return err
	}
	var start *samplers.SolverSchedule
	if file := s.c.String("start"); file != "" {
		var u samplers.USF
		method, grid, named := strings.Cut(file, "/")
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) && named && filepath.Ext(file) == "" {
			if u.Schedule, err = space.Known(method, grid); err != nil {
				return badUse("start", err)
			}
		} else {
			from, err := samplers.Parse("@" + file)
			if err != nil {
				return badUse("start", err)
			}
			u = from.(samplers.USF) // what @FILE means
		}
		start, settings["start"] = &u.Schedule, u.Hash()
	}
	if err := s.call(ctx); err != nil {
		return err
	}
	objective, err := s.objective(ctx, settings)
	if err != nil {
		return err
	}
	key, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	log, err := search.OpenLog(name, string(key))
	if err != nil {
		return &usage{err.Error(), err}
	}
	defer log.Close()
	began := time.Now()
	bar := s.start("drift search " + method)
	progress := func(n int, best search.Record) {
		part := 0.0
		if limit.Evaluations > 0 {
			part = float64(n) / float64(limit.Evaluations)
		}
		if limit.Time > 0 {
			part = max(part, float64(time.Since(began))/float64(limit.Time))
		}
		bar.Set(part, fmt.Sprintf("%d evaluations, best %.4g (%s)", n, best.Score, best.Origin))
	}
	var run interface {
		Run(context.Context, *search.Log, search.Budget) error
	} = search.S3{Space: space, Objective: objective, Seed: s.c.Uint64("search-seed"), Progress: progress, Ahead: s.ahead()}
	if method == "s4s" {
		run = search.S4S{Space: space, Objective: objective, Seed: s.c.Uint64("search-seed"), Start: start, Progress: progress, Ahead: s.ahead()}
	}
	if err := run.Run(ctx, log, limit); err != nil {
		if len(log.Records) == 0 { // nothing was evaluated: leave no log
			err = errors.Join(err, os.Remove(name))
		}
		if errors.Is(err, search.ErrStart) {
			return badUse("start", err)
		}
		return err
	}
	best := log.Best(s.c.Int("finalists"))
	if len(best) == 0 || math.IsInf(best[0].Score, 1) {
		return errors.New("search: no schedule gave a finite result")
	}
	fixed := search.Record{Score: math.Inf(1)}
	for _, r := range log.Records {
		if strings.Contains(r.Origin, " on ") && r.Score < fixed.Score {
			fixed = r
		}
	}
	settings["evaluations"], settings["best_fixed"] = len(log.Records), map[string]any{"solver": fixed.Origin, "score": finite(fixed.Score)}
	for k, r := range best {
		if math.IsInf(r.Score, 1) {
			break
		}
		file := out
		if k > 0 {
			file = fmt.Sprintf("%s-%d%s", strings.TrimSuffix(out, filepath.Ext(out)), k+1, filepath.Ext(out))
		}
		settings["score"], settings["rank"] = r.Score, k+1
		text, err := samplers.USF{Schedule: r.Schedule, Process: s.process}.File(settings)
		if err != nil {
			return err
		}
		if err := store(file, text); err != nil {
			return err
		}
	}
	if err := plotSearch(out+".png", log.Records, method, s.c.String("objective")); err != nil {
		return err
	}
	if s.json {
		s.emit(map[string]any{"event": "found", "score": best[0].Score, "origin": best[0].Origin, "evaluations": len(log.Records), "best_fixed": fixed.Origin, "best_fixed_score": finite(fixed.Score), "out": out})
	} else {
		fmt.Fprintf(s.out, "best %.6g (%s) of %d; best fixed solver %.6g (%s)\n", best[0].Score, best[0].Origin, len(log.Records), fixed.Score, fixed.Origin)
	}
	s.say("drift: wrote %s, for --sampler @%s; all evaluations are in %s and %s.png", out, out, name, out)
	return nil
}

const (
	fixedSamplers  = "ddim;dpmpp-2m;dpmpp-3m;unipc:order=2;unipc:order=3;deis:order=3;ipndm;ghvb;hb;heun"
	fixedSchedules = "karras;lambda;time;quadratic;trailing"
)

// contest is one line of compare.
type contest struct {
	Name  string
	NFE   int
	Fixed bool
	rows  []float64
	mean  float64
}

// entrant is a solver of compare before it has run; err says why it cannot.
type entrant struct {
	name   string
	nfe    int
	fixed  bool
	solver samplers.Sampler
	grid   schedules.Grid
	err    error
}

// compare ranks solvers.
func (s *searching) compare(ctx context.Context) error {
	list := func(flag, def string) []string {
		if v := s.c.String(flag); v != "" {
			def = v
		}
		return strings.Split(def, ";")
	}
	var nfes []int
	for part := range strings.SplitSeq(s.c.String("nfe"), ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 1 || n > 10_000 {
			return usagef("--nfe %s: want numbers of 1 or more", s.c.String("nfe"))
		}
		nfes = append(nfes, n)
	}
	ends, _ := s.ends(nil)
	first, last := s.fine[0].Ratio(), s.fine[len(s.fine)-1].Ratio()
	if !math.IsInf(first, 1) && ends.TStart == nil {
		ends.SigmaMax = &first
	}
	if ends.Final = "min"; last == 0 {
		ends.Final = "zero"
	} else if ends.TEnd == nil {
		ends.SigmaMin = &last
	}
	samplerNames, gridNames := list("samplers", fixedSamplers), list("schedules", fixedSchedules)
	var entries []entrant
	for _, n := range nfes {
		for _, name := range samplerNames {
			smp, err := samplers.Parse(name)
			if err != nil {
				return badUse("samplers", err)
			}
			for _, grid := range gridNames {
				e := entrant{name: name + " on " + grid, nfe: n, fixed: true, solver: named{smp, name}}
				e.grid, e.err = job.Fit(n, func(steps int) (schedules.Grid, error) { return schedules.NewGrid(s.process, grid, steps, ends) },
					func(g schedules.Grid) (float64, error) { return float64(samplers.NFE(smp, g)), nil })
				if g := e.grid; e.err == nil && !s.sameEnds(g) {
					e.err = fmt.Errorf("its grid goes from sigma/alpha %.4g to %.4g, the fine trajectory from %.4g to %.4g", g[0].Ratio(), g[len(g)-1].Ratio(), first, last)
				}
				entries = append(entries, e)
			}
		}
	}
	for _, path := range s.c.StringSlice("with") {
		text, err := job.ReadSmall(path)
		if err != nil {
			return err
		}
		e := entrant{name: path, solver: named{samplers.Euler{}, "euler"}}
		if grid, err := job.ParseGrid(s.process, text); err == nil {
			e.grid, e.nfe = grid, samplers.NFE(samplers.Euler{}, grid)
		} else {
			m, err := samplers.ParseUSF(path, text)
			if err != nil {
				return err
			}
			if e.grid, err = m.Grid(s.process); err != nil {
				return badUse("with", err)
			}
			e.solver, e.nfe = m, samplers.NFE(m, e.grid)
		}
		if g := e.grid; !s.sameEnds(g) {
			return usagef("--with %s: it goes from sigma/alpha %.4g to %.4g, the fine trajectory from %.4g to %.4g", path, g[0].Ratio(), g[len(g)-1].Ratio(), first, last)
		}
		entries = append(entries, e)
	}
	if err := s.call(ctx); err != nil {
		return err
	}
	if s.crew != nil {
		if err := s.submitEntries(entries); err != nil {
			return err
		}
	}
	bar := s.start("drift search compare")
	d, err := s.distance(ctx)
	if err != nil {
		return err
	}
	var all []contest
	for i, e := range entries {
		var rows []float64
		if err = e.err; err == nil {
			rows, err = d.Rows(ctx, plain(e.solver, s.crew == nil), e.grid)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case s.crew != nil && s.crew.ctx.Err() != nil, err != nil && !e.fixed:
			return err
		case err != nil:
			s.say("drift: %s at %d: %s", e.name, e.nfe, trimPackage(err.Error()))
		default:
			all = append(all, contest{e.name, e.nfe, e.fixed, rows, 0})
		}
		bar.Set(float64(i+1)/float64(len(entries)), e.name)
	}
	bar.Close()
	s.bar = nil
	for i := range all {
		for _, v := range all[i].rows {
			all[i].mean += v / float64(len(all[i].rows))
		}
	}
	slices.SortStableFunc(all, func(a, b contest) int { return cmp.Or(cmp.Compare(a.NFE, b.NFE), cmp.Compare(a.mean, b.mean)) })
	for i, c := range all {
		best := slices.IndexFunc(all, func(o contest) bool { return o.NFE == c.NFE && o.Fixed })
		ratio, lo, hi := math.NaN(), math.NaN(), math.NaN()
		if best >= 0 {
			ratio, lo, hi = ratioInterval(c.rows, all[best].rows)
		}
		if s.json {
			s.emit(map[string]any{"nfe": c.NFE, "name": c.Name, "searched": !c.Fixed, "distance": finite(c.mean), "ratio": finite(ratio), "lo": finite(lo), "hi": finite(hi)})
			continue
		}
		if i == 0 || all[i-1].NFE != c.NFE {
			fmt.Fprintf(s.out, "%d evaluations, %d starts: distance, ratio to the best fixed solver with its 95 %% interval\n", c.NFE, len(c.rows))
		}
		mark := " "
		if !c.Fixed {
			mark = "*"
		}
		fmt.Fprintf(s.out, "%s %-12.5g %8.3f [%.3f, %.3f]  %s\n", mark, c.mean, ratio, lo, hi, c.Name)
	}
	return nil
}

// sameEnds tells whether g starts and ends where the fine trajectory does.
func (s *searching) sameEnds(g schedules.Grid) bool {
	near := func(a, b schedules.Node) bool {
		x, y := a.Ratio(), b.Ratio()
		return x == y || math.Abs(x-y) <= 1e-6*y
	}
	return near(g[0], s.fine[0]) && near(g[len(g)-1], s.fine[len(s.fine)-1])
}

// ratioInterval is the ratio of the means of a and b, paired by row, with its 95 % interval by the delta method.
func ratioInterval(a, b []float64) (ratio, lo, hi float64) {
	n := float64(len(a))
	ma, mb := 0.0, 0.0
	for i := range a {
		ma += a[i] / n
		mb += b[i] / n
	}
	ratio = ma / mb
	v := 0.0
	for i := range a {
		d := (a[i] - ratio*b[i]) / mb
		v += d * d
	}
	half := 1.96 * math.Sqrt(v/(n-1)/n)
	return ratio, ratio - half, ratio + half
}
