package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"
	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/output"
	"drift/cmd/drift/internal/queue"
	"drift/cmd/drift/internal/shard"
	"drift/internal/pixels"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// sampleWork makes images of a run in shards of consecutive ones.
type sampleWork struct {
	*sampling
	size int
}

// sampleShard is some images, drawn in batches of one size: that matters to samplers alone whose steps depend on all of a
// batch (norm=batch).
type sampleShard struct {
	shard.Range
	Batch int `json:"batch"`
}

func openSampleWork(a *app, c *cli.Context) (queue.Doer, error) {
	s := &sampling{app: a, c: c}
	if err := s.resolve(c.Context); err != nil {
		s.close()
		return nil, err
	}
	return s.work()
}

func (s *sampling) work() (*sampleWork, error) {
	for _, f := range []string{"log", "plot", "trajectory", "dt", "preview", "dry-run", "print-schedule"} {
		if s.c.IsSet(f) {
			return nil, usagef("--%s shows the steps of a run, which shards do not tell: leave it or --workers out", f)
		}
	}
	size, err := shardSize(s.c, 64)
	if b := s.batch(); s.plan.Sampler.Needs().OwnGrid { // whole batches, for those whose steps depend on all of one
		size = (size + b - 1) / b * b
	}
	return &sampleWork{s, size}, err
}

// Close implements queue.Doer.
func (w *sampleWork) Close() { w.close() }

func (w *sampleWork) lends() {}

// Config implements queue.Doer.
func (w *sampleWork) Config() string {
	return configOf("sample", w.desc.Hash(), tierOf(w.c), w.forms())
}

// forms are the arrays that the output needs: states, pictures as bytes, predictions of sequences.
func (w *sampleWork) forms() (out []string) {
	kind := output.Kind(w.path)
	picture := pixels.Picture(w.info.Image())
	if picture && (w.plan.Codec == nil || w.plan.Last == 0) {
		out = append(out, "pix")
	}
	if _, ok := w.model.Denoiser.Process().(schedules.Field); ok && w.plan.Last == 0 {
		out = append(out, "p")
	}
	if !picture || kind == "npz" && (w.c.Bool("float") || w.plan.Last != 0) {
		out = append(out, "x")
	}
	return out
}

// Do implements queue.Doer.
func (w *sampleWork) Do(ctx context.Context, sp shard.Spec, step func(float64)) (*shard.Result, error) {
	var r sampleShard
	if err := json.Unmarshal(sp.Text, &r); err != nil || !r.In(len(w.items)) || r.Batch < 1 {
		return nil, fmt.Errorf("shard %s is not of a run of %d images", sp.Text, len(w.items))
	}
	forms := w.forms()
	var x, p []float64
	var pix []byte
	st, err := w.plan.Run(ctx, nil, w.items[r.From:r.From+r.N], r.Batch, job.Hooks{
		Step: func(b job.Batch, s *samplers.State) error {
			step((float64(b.Index) + s.Done*float64(len(b.Items))) / float64(r.N))
			return nil
		},
		Done: func(b job.Batch, states, pictures *tensor.Dense, _ samplers.Stats) error {
			if slices.Contains(forms, "x") {
				x = append(x, models.Data(states)...)
			}
			d := models.Data(pictures)
			if slices.Contains(forms, "p") {
				p = append(p, d...)
			}
			if slices.Contains(forms, "pix") {
				size := len(d) / len(b.Items)
				at := len(pix)
				pix = append(pix, make([]byte, len(d))...)
				for k := range b.Items {
					pixels.Bytes(pix[at+k*size:at+(k+1)*size], d[k*size:(k+1)*size], w.info.Image(), pixels.Rounding(w.desc.Rounding))
				}
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	res := &shard.Result{Model: st.Model.Seconds(), Arrays: []shard.Array{{Name: "stats", Floats: []float64{st.NFE, st.VJPs, float64(st.Steps)}}}}
	for _, f := range forms {
		a := shard.Array{Name: f}
		switch f {
		case "x":
			a.Floats = x
		case "p":
			a.Floats = p
		case "pix":
			a.Bytes = pix
		}
		res.Arrays = append(res.Arrays, a)
	}
	return res, nil
}

// check holds a result to the shapes of its images.
func (w *sampleWork) check(n int) func(*shard.Result) error {
	dim := tensor.Shape(w.info.Shape).TotalSize()
	return func(r *shard.Result) error {
		st, err := r.Floats("stats", 3)
		if err == nil && (st[0] < 0 || st[1] < 0 || st[2] < 0) {
			err = errors.New("negative counts")
		}
		for _, f := range w.forms() {
			if err != nil {
				return err
			}
			if f == "pix" {
				_, err = r.Raw(f, n*tensor.Shape(w.info.Image()).TotalSize())
			} else {
				_, err = r.Floats(f, n*dim)
			}
		}
		return err
	}
}

// runShards makes the missing images in shards and stores them in order.
func (s *sampling) runShards(ctx context.Context, w *sampleWork, target output.Target, missing []job.Item) (all samplers.Stats, err error) {
	if s.hiring != nil && !s.c.IsSet("out") {
		return all, usagef("a served run needs --out: going on finds it by its name")
	}
	lacking := map[job.Item]bool{}
	for _, it := range missing {
		lacking[it] = true
	}
	crew, err := s.hire(ctx, s.c, w)
	if err != nil {
		return all, err
	}
	defer func() { err = errors.Join(err, crew.end(err == nil)) }()
	s.crewBar = true
	var todo []shard.Spec
	var ranges []shard.Range
	for id, r := range shard.Cut(len(s.items), w.size) {
		if slices.ContainsFunc(s.items[r.From:r.From+r.N], func(it job.Item) bool { return lacking[it] }) {
			todo, ranges = append(todo, shard.New(id, sampleShard{r, s.batch()})), append(ranges, r)
		}
	}
	if err := crew.submit(todo); err != nil {
		return all, err
	}
	weight := 0.0
	var merged []shard.Spec
	for i, sp := range todo {
		r := ranges[i]
		res, err := crew.result(sp, w.check(r.N))
		if err != nil {
			return all, errors.Join(err, target.Keep())
		}
		st, _ := res.Floats("stats", 3) // checked
		n := float64(r.N)
		all.NFE, all.VJPs, all.Steps = (all.NFE*weight+st[0]*n)/(weight+n), (all.VJPs*weight+st[1]*n)/(weight+n), int(st[2])
		all.Model += time.Duration(res.Model * float64(time.Second))
		weight += n
		if err := s.putShard(target, w, r, res, lacking); err != nil {
			s.unstored = true
			return all, err
		}
		if merged = append(merged, sp); len(merged) == 16 || i == len(todo)-1 {
			if i < len(todo)-1 {
				if err := target.Keep(); err != nil {
					return all, err
				}
			}
			if err := crew.forget(merged...); err != nil {
				return all, err
			}
			merged = merged[:0]
		}
	}
	return all, nil
}

// putShard stores the images of a shard that are lacking.
func (s *sampling) putShard(target output.Target, w *sampleWork, r shard.Range, res *shard.Result, lacking map[job.Item]bool) error {
	dim, image := tensor.Shape(s.info.Shape).TotalSize(), tensor.Shape(s.info.Image()).TotalSize()
	var items []job.Item
	var x, p []float64
	for k, it := range s.items[r.From : r.From+r.N] {
		if !lacking[it] {
			continue
		}
		items = append(items, it)
		for _, a := range res.Arrays {
			switch a.Name {
			case "x":
				x = append(x, a.Floats[k*dim:(k+1)*dim]...)
			case "p":
				p = append(p, a.Floats[k*dim:(k+1)*dim]...)
			case "pix":
				v := make([]float64, image)
				pixels.Middle(v, a.Bytes[k*image:(k+1)*image], s.info.Image())
				p = append(p, v...)
			}
		}
	}
	if len(items) == 0 {
		return nil
	}
	files, err := target.Put(items, x, p)
	s.stored(files)
	return err
}
