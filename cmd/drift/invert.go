package main

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/output"
	"drift/cmd/drift/internal/runlog"
	"drift/internal/npz"
	"drift/internal/pixels"
	"drift/internal/refuse"
	"drift/internal/rng"
	"drift/metrics/features"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers/inversion"
)

// flowFlags are the flags of sample that the flow's verbs take too.
var flowFlags = append([]string{"model", "compose", "rule", "weights", "classifier", "batch", "dtype", "tier", "schedule", "steps", "rho", "t-start", "t-end", "sigma-max", "sigma-min",
	"final", "grid", "sigmas", "timesteps", "class", "classes", "prompt", "negative-prompt", "cfg-scale", "guider", "guide-model"}, aroundFlags...)

func flowVerb(a *app, c *cli.Command, act func(*flowing) error, own ...cli.Flag) *cli.Command {
	c.Flags = append(own, &cli.StringFlag{Name: "input", Usage: "pictures or arrays: a .png, a folder of them, or a .npz with images or x (`PATH`)"},
		&cli.IntFlag{Name: "count", Usage: "how many of the input (`N`); all by default"})
	for _, f := range sampleVerb(a).Flags {
		if slices.Contains(flowFlags, f.Names()[0]) {
			c.Flags = append(c.Flags, f)
		}
	}
	c.Action = func(ctx *cli.Context) error {
		if err := noArgs(ctx); err != nil {
			return err
		}
		f := &flowing{sampling: &sampling{app: a, c: ctx, verb: c.Name, bare: true, ownGrid: true}}
		defer f.close()
		if err := f.open(ctx.Context); err != nil {
			return err
		}
		return act(f)
	}
	return c
}

func invertVerb(a *app) *cli.Command {
	return flowVerb(a, &cli.Command{
		Name: "invert", Usage: "find the noise that a deterministic sampler would have made pictures from",
		Description: "Writes x, the state at the first node of the grid, one row per picture: drift sample --init FILE --sampler euler with the same steps makes the pictures again. " +
			"The method exact inverts the steps of the sampler euler one by one; rk4, heun and euler follow the probability flow with that order. " +
			"The condition counts: no class, no text and no guidance unless they are given. Pictures of latent models go through the autoencoder (its mean), and x is of latents. With --round-trip the way back is made too and its error told.",
	}, (*flowing).invert,
		&cli.StringFlag{Name: "out", Usage: "array x of the noise (`FILE.npz`)"},
		&cli.StringFlag{Name: "method", Usage: "exact (default), rk4, heun or euler (`M`)", Value: string(inversion.Exact)},
		&cli.BoolFlag{Name: "round-trip", Usage: "make the pictures again and tell how far off they are"})
}

func likelihoodVerb(a *app) *cli.Command {
	return flowVerb(a, &cli.Command{
		Name: "likelihood", Usage: "log density of pictures under a model's probability flow, in bits per dimension",
		Description: "Follows every picture to the noise and integrates the divergence on the way: exactly on analytic targets, by Hutchinson's estimate with --probes random vectors on networks. " +
			"Pictures of bytes get uniform noise inside their rounding (dequantisation), so that bits per dimension compare with published ones; arrays x are scored as they are, and so are the latents of pictures.",
	}, (*flowing).likelihood,
		&cli.StringFlag{Name: "method", Usage: "rk4 (default), heun or euler (`M`)", Value: string(inversion.RK4)},
		&cli.IntFlag{Name: "probes", Usage: "random vectors of the divergence; 0 = exact (default: 0 on targets, 1 on networks) (`N`)"},
		&cli.Uint64Flag{Name: "seed", Usage: "of the probes and of the dequantisation (`N`)"},
		&cli.BoolFlag{Name: "no-dequantize", Usage: "score the middle of every byte's interval"},
		&cli.StringFlag{Name: "log", Usage: "one row per picture: .csv or .jsonl (`FILE`)"},
		&cli.StringFlag{Name: "columns", Usage: "columns of --log (`a,b,c`)"},
		&cli.StringFlag{Name: "sort", Usage: "column that rows are sorted by, -COLUMN downwards (`COLUMN`)"})
}

// flowing is one run of a verb that follows the flow.
type flowing struct {
	*sampling
	names []string
	x     []float64 // all rows
	bytes bool      // they are pictures of bytes
}

// open reads the input and resolves model, condition and grid.
func (f *flowing) open(ctx context.Context) error {
	if !f.c.IsSet("input") {
		return usagef("--input says what: a .png, a folder of them, or a .npz with images or x")
	}
	arrays, set, err := f.read()
	if err != nil {
		return err
	}
	n := f.c.Int("count")
	switch {
	case f.c.IsSet("count") && (n < 1 || n > len(f.names)):
		return usagef("--count %d: the input has %d", n, len(f.names))
	case n == 0:
		n = len(f.names)
	}
	f.names = f.names[:n]
	if err := f.c.Set("count", strconv.Itoa(n)); err != nil {
		return err
	}
	for _, d := range []struct{ flag, value string }{{"cfg-scale", "1"}, {"class", "none"}} { // nothing is guided or named unless asked for
		if !f.c.IsSet(d.flag) && !(d.flag == "class" && (f.c.IsSet("classes") || f.c.IsSet("prompt"))) && !(d.flag == "cfg-scale" && f.c.IsSet("guider")) {
			if err := f.c.Set(d.flag, d.value); err != nil {
				return err
			}
		}
	}
	f.sampler = "euler"
	if err := f.resolve(ctx); err != nil {
		return err
	}
	shape := f.info.Shape
	w := tensor.Shape(shape).TotalSize()
	if arrays != nil {
		if len(arrays.Shape) != len(shape)+1 || !slices.Equal(arrays.Shape[1:], shape) {
			return refuse.Errorf(f.c.String("input"), "x has shape %v, the model wants rows of shape %v", arrays.Shape, shape)
		}
		all, err := arrays.Float64()
		if err != nil {
			return refuse.Errorf(f.c.String("input"), "%v", err)
		}
		f.x = all[:n*w]
		for j, v := range f.x {
			if v-v != 0 {
				return refuse.Errorf(f.c.String("input"), "x is not finite at element %d", j)
			}
		}
	} else {
		image := f.info.Image()
		if !pixels.Picture(image) {
			return usagef("--input: the model takes arrays of shape %v, not pictures: give a .npz with x", shape)
		}
		f.bytes = f.plan.Codec == nil
		for k := range n {
			m, err := set.Picture(k)
			if err != nil {
				return err
			}
			if m.C != image[0] || m.H != image[1] || m.W != image[2] {
				return refuse.Errorf(f.c.String("input"), "%s is a picture of %dx%dx%d, the model wants %dx%dx%d", f.names[k], m.C, m.H, m.W, image[0], image[1], image[2])
			}
			row := make([]float64, len(m.Pix))
			for j, v := range m.Pix { // the middle of what floor rounds to v
				row[j%m.C*m.H*m.W+j/m.C] = (float64(v) - 127.5) / 127.5
			}
			if row, _, err = f.latents(f.names[k], row); err != nil {
				return err
			}
			f.x = append(f.x, row...)
		}
	}
	return nil
}

// read opens the input: an array x, or a set of pictures.
func (f *flowing) read() (*npz.Array, *features.Set, error) {
	name := f.c.String("input")
	if strings.EqualFold(filepath.Ext(name), ".npz") {
		a, err := npz.Read(name)
		if err != nil {
			return nil, nil, err
		}
		info, ok := a.Info("x")
		if err := a.Close(); err != nil {
			return nil, nil, err
		}
		if ok {
			if len(info.Shape) < 2 || info.Shape[0] < 1 {
				return nil, nil, refuse.Errorf(name, "x has shape %v, want rows", info.Shape)
			}
			all, err := npz.ReadAll(name, "x")
			if err != nil {
				return nil, nil, err
			}
			for k := range info.Shape[0] {
				f.names = append(f.names, strconv.Itoa(k))
			}
			return all["x"], nil, nil
		}
	}
	set, err := features.OpenSet(name)
	if err != nil {
		return nil, nil, err
	}
	if set.Kind != features.Pictures {
		return nil, nil, refuse.Errorf(name, "has no pictures and no array x")
	}
	f.names = set.Names()
	return nil, set, nil
}

// each calls do with the flow and the rows of every batch.
func (f *flowing) each(ctx context.Context, do func(flow inversion.Flow, from int, x *tensor.Dense) error) error {
	method := inversion.Method(f.c.String("method"))
	if !slices.Contains(inversion.Methods(), method) {
		return usagef("--method %s: want one of %v", method, inversion.Methods())
	}
	grid := f.plan.Grid
	_, target := models.As[*analytic.Mixture](f.plan.Model)
	if !target && grid[len(grid)-1].Sigma == 0 && len(grid) > 2 {
		grid = grid[:len(grid)-1] // a network is not asked at clean data, and its last step, onto the data it predicts, cannot be undone
	}
	w := len(f.x) / len(f.items)
	size := f.batch()
	bar := f.start("drift " + f.verb)
	defer func() {
		bar.Close()
		f.bar = nil
	}()
	for from := 0; from < len(f.items); from += size {
		to := min(from+size, len(f.items))
		p, err := f.plan.Problem(f.items[from:to])
		if err != nil {
			return err
		}
		d, ok := p.Model.(models.Denoiser)
		if !ok {
			panic("invert: a plan without a denoiser")
		}
		flow := inversion.Flow{Model: d, Grid: grid, Cond: p.Cond, Rows: p.Rows, Meter: p.Meter, Method: method}
		if !target { // what float32 resolves
			flow.Tolerance = 1e-6
		}
		flow.Observe = func(done, steps int) {
			bar.Set((float64(from)+float64(to-from)*float64(done)/float64(steps))/float64(len(f.items)), fmt.Sprintf("step %d/%d", done, steps))
		}
		select {
		case <-f.stop:
			return fmt.Errorf("%w: %d of %d are done", job.ErrStopped, from, len(f.items))
		default:
		}
		x := models.Wrap(f.x[from*w:to*w], append([]int{to - from}, f.info.Shape...)...)
		if err := do(flow, from, x); err != nil {
			return err
		}
	}
	return nil
}

func (f *flowing) invert() error {
	out := f.c.String("out")
	if out == "" || output.Kind(out) != "npz" {
		return usagef("--out: want a name that ends in .npz")
	}
	if sameFile(out, f.c.String("input")) {
		return usagef("--out %s is the input: it would be overwritten", out)
	}
	if err := output.Check(out); err != nil {
		return err
	}
	began := time.Now()
	z := make([]float64, 0, len(f.x))
	var evals int64
	worst, sum := 0.0, 0.0
	err := f.each(f.c.Context, func(flow inversion.Flow, from int, x *tensor.Dense) error {
		noise, err := flow.Invert(f.c.Context, x)
		if err != nil {
			return err
		}
		z = append(z, models.Data(noise)...)
		evals += flow.Meter.Evals()
		if !f.c.Bool("round-trip") {
			return nil
		}
		back, err := flow.Generate(f.c.Context, noise)
		if err != nil {
			return err
		}
		last := flow.Grid[len(flow.Grid)-1] // the state there has no noise of its own
		for j, v := range models.Data(back) {
			d := v/last.Alpha - models.Data(x)[j]
			worst, sum = max(worst, math.Abs(d)), sum+d*d
		}
		return nil
	})
	if err != nil {
		return err
	}
	w, err := npz.Create(out)
	if err != nil {
		return err
	}
	defer w.Discard()
	first := f.plan.Grid[0]
	if err := w.Add(npz.Array{Name: "x", Shape: append([]int{len(f.items)}, f.info.Shape...), Data: z}); err != nil {
		return err
	}
	for name, v := range map[string]float64{"t": first.T, "alpha": first.Alpha, "sigma": first.Sigma} {
		if err := w.Add(npz.Array{Name: name, Shape: []int{1}, Data: []float64{v}}); err != nil {
			return err
		}
	}
	if err := w.Commit(); err != nil {
		return err
	}
	nfe := float64(evals) / float64(len(f.items))
	mean, std := moments(z)
	if f.json {
		event := map[string]any{"event": "done", "out": out, "images": len(f.items), "nfe": nfe, "steps": len(f.plan.Grid) - 1, "mean": mean, "std": std, "seconds": time.Since(began).Seconds()}
		if f.c.Bool("round-trip") {
			event["rms"], event["worst"] = math.Sqrt(sum/float64(len(f.x))), worst
		}
		f.emit(event)
	}
	f.say("drift: the noise of %d, %d steps (%.4g evaluations each) in %v, mean %.3f, spread %.3f: %s", len(f.items), len(f.plan.Grid)-1, nfe, time.Since(began).Round(time.Millisecond), mean, std, out)
	if !f.c.IsSet("schedule") && f.desc.Schedule != "" {
		f.say("drift: make them again with: --init %s --sampler euler --schedule %s --steps %d", quote(out), f.desc.Schedule, len(f.plan.Grid)-1)
	}
	if f.c.Bool("round-trip") {
		f.say("drift: and back: off by %.3g (root mean square), at most %.3g", math.Sqrt(sum/float64(len(f.x))), worst)
	}
	return nil
}

var likelihoodColumns = []runlog.Column{{Name: "name", Unit: true}, {Name: "class", Unit: true}, {Name: "logp", Unit: true}, {Name: "bits_per_dim", Unit: true}, {Name: "nfe", Unit: true}, {Name: "vjps", Unit: true}}

func (f *flowing) likelihood() error {
	if f.c.String("method") == string(inversion.Exact) {
		return usagef("--method exact is for invert: want rk4, heun or euler")
	}
	l, _, _, err := newLog(f.c, "", likelihoodColumns, false)
	if err != nil {
		return err
	}
	probes := f.c.Int("probes")
	_, target := models.As[*analytic.Mixture](f.plan.Model)
	if !f.c.IsSet("probes") && !target {
		probes = 1
	}
	if probes < 0 || probes > 1<<16 {
		return usagef("--probes %d: want 0 to %d", probes, 1<<16)
	}
	w := len(f.x) / len(f.items)
	offset := 0.0 // bits of a unit of x against one byte
	if f.bytes {
		offset = math.Log2(127.5)
		if !f.c.Bool("no-dequantize") {
			u := make([]float64, w)
			for k, it := range f.items {
				rng.Uniform(u, rng.Key{Seed: f.c.Uint64("seed"), Image: it.Seed, Purpose: rng.PurposeSubset})
				for j := range u {
					f.x[k*w+j] += (u[j] - 0.5) / 127.5
				}
			}
		}
	}
	all := make([]float64, len(f.items))
	began := time.Now()
	err = f.each(f.c.Context, func(flow inversion.Flow, from int, x *tensor.Dense) error {
		rows := x.Shape()[0]
		if _, err := flow.LogP(f.c.Context, x, inversion.Divergence{Probes: probes, Seed: f.c.Uint64("seed")}, all[from:from+rows]); err != nil {
			return err
		}
		for k := from; k < from+rows; k++ {
			it := f.items[k]
			bits := -all[k]/(float64(w)*math.Ln2) + offset
			row := map[string]any{"name": f.names[k], "class": f.desc.Sets[it.Set].Class(it.Place - f.plan.Offset), "logp": all[k], "bits_per_dim": bits,
				"nfe": float64(flow.Meter.Evals()) / float64(rows), "vjps": float64(flow.Meter.VJPs()) / float64(rows)}
			if l != nil {
				l.Put(k, runlog.Whole, row)
			}
			if f.json {
				row["event"] = "likelihood"
				f.emit(row)
			} else {
				fmt.Fprintf(f.out, "%-24s log p %14.6f  bits/dim %9.5f\n", f.names[k], all[k], bits)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if l != nil {
		if err := l.Close(); err != nil {
			return err
		}
	}
	mean, sd := moments(all)
	n := float64(len(all))
	bits, se := -mean/(float64(w)*math.Ln2)+offset, sd/math.Sqrt(max(1, n-1))/(float64(w)*math.Ln2)
	if f.json {
		f.emit(map[string]any{"event": "done", "images": len(all), "logp": mean, "bits_per_dim": bits, "bits_per_dim_se": se, "seconds": time.Since(began).Seconds()})
	} else {
		fmt.Fprintf(f.out, "mean of %d: log p %.6f, %.5f bits per dimension (standard error %.5f)\n", len(all), mean, bits, se)
	}
	return nil
}
