package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/queue"
	"drift/cmd/drift/internal/shard"
	"drift/metrics"
	"drift/metrics/features"
)

// statsWork turns pictures of a set into features, in shards of consecutive ones. The features travel and not their
// moments: added in order they come to the bits of one process.
type statsWork struct {
	set    *features.Set
	ex     features.Extractor
	tier   string
	strict bool
	size   int
	names  []string
	owns   bool // the extractor
}

func openStatsWork(a *app, c *cli.Context) (queue.Doer, error) {
	name, err := oneArg(c, "one set")
	if err != nil {
		return nil, err
	}
	set, err := features.OpenSet(name)
	if err != nil {
		return nil, err
	}
	ex, err := a.openExtractor(extractorFor(c, set), c.String("resize"), c.String("tier"))
	if err != nil {
		return nil, err
	}
	w, err := newStatsWork(c, set, ex)
	if err != nil {
		ex.Close()
		return nil, err
	}
	w.owns = true
	return w, nil
}

func newStatsWork(c *cli.Context, set *features.Set, ex features.Extractor) (*statsWork, error) {
	size, err := shardSize(c, 256)
	return &statsWork{set: set, ex: ex, tier: tierOf(c), strict: c.Bool("strict"), size: size, names: set.Names()}, err
}

// Close implements queue.Doer.
func (w *statsWork) Close() {
	if w.owns {
		w.ex.Close()
	}
}

func (w *statsWork) lends() {}

// Config implements queue.Doer.
func (w *statsWork) Config() string {
	id := w.ex.Identity()
	return configOf("stats", id.Extractor, id.Resize, w.tier, w.strict, w.size, strings.Join(w.names, "\n"))
}

// Do implements queue.Doer.
func (w *statsWork) Do(ctx context.Context, sp shard.Spec, step func(float64)) (*shard.Result, error) {
	var r shard.Range
	if err := json.Unmarshal(sp.Text, &r); err != nil || !r.In(len(w.names)) {
		return nil, fmt.Errorf("shard %s is not of a set of %d pictures", sp.Text, len(w.names))
	}
	part := w.set.Part(r.From, r.From+r.N)
	var x []float64
	done := 0
	err := part.Each(ctx, 64, w.strict, func(im features.Images) error {
		v, err := w.ex.Extract(ctx, im)
		if err != nil {
			return err
		}
		x = append(x, v.Features.X...)
		done += im.N
		step(float64(done) / float64(r.N))
		return nil
	})
	if err != nil {
		return nil, err
	}
	bad := []float64{}
	for _, i := range part.Unread() {
		bad = append(bad, float64(r.From+i))
	}
	return &shard.Result{Arrays: []shard.Array{{Name: "features", Floats: x}, {Name: "unreadable", Floats: bad}}}, nil
}

// statsShards is features.Set.Stats in shards.
func (a *app) statsShards(c *cli.Context, set *features.Set, ex features.Extractor) (st metrics.Stats, err error) {
	w, err := newStatsWork(c, set, ex)
	if err != nil {
		return st, err
	}
	crew, err := a.hire(c.Context, c, w)
	if err != nil {
		return st, err
	}
	a.start("drift metrics stats")
	a.crewBar = true
	defer func() {
		err = errors.Join(err, crew.end(err == nil))
		a.bar.Close()
		a.bar = nil
	}()
	ranges := shard.Cut(len(w.names), w.size)
	specs := make([]shard.Spec, len(ranges))
	for i, r := range ranges {
		specs[i] = shard.New(i, r)
	}
	if err := crew.submit(specs); err != nil {
		return st, err
	}
	m := metrics.Moments{ID: ex.Identity()}
	d, _ := ex.Dims()
	set.Unreadable = nil
	for i, sp := range specs {
		r := ranges[i]
		var x, bad []float64
		if _, err := crew.result(sp, func(res *shard.Result) (err error) {
			if bad, err = res.Floats("unreadable", -1); err != nil {
				return err
			}
			last := -1.0
			for _, k := range bad {
				if k != float64(int(k)) || k < float64(r.From) || k >= float64(r.From+r.N) || k <= last {
					return fmt.Errorf("unreadable picture %g of %v", k, r)
				}
				last = k
			}
			if x, err = res.Floats("features", -1); err == nil && len(x) != (r.N-len(bad))*d {
				err = fmt.Errorf("%d features of %d pictures, want %d of each", len(x), r.N-len(bad), d)
			}
			return err
		}); err != nil {
			return st, err
		}
		for _, k := range bad {
			set.Unreadable = append(set.Unreadable, filepath.Join(set.Name, w.names[int(k)]))
		}
		if err := m.Add(metrics.Matrix{N: r.N - len(bad), D: d, X: x}); err != nil {
			return st, fmt.Errorf("%s: %w", set.Name, err)
		}
		if err := crew.forget(sp); err != nil {
			return st, err
		}
	}
	return m.Stats()
}
