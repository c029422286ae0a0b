package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/queue"
	"drift/cmd/drift/internal/shard"
)

// benchWork makes blocks of the cells of a bench.
type benchWork struct {
	*benching
	cells []*bench.Cell
	size  int

	maker *bench.Maker // of the last cell
	of    *bench.Cell
}

// benchShard is places of a cell.
type benchShard struct {
	Cell string `json:"cell"`
	shard.Range
	Batch int `json:"batch"`
	Shown int `json:"shown"` // places whose pictures are kept
}

func openBenchWork(a *app, c *cli.Context) (queue.Doer, error) {
	b := &benching{app: a, c: c}
	err := b.resolve(c.Context)
	if err == nil {
		var cells []*bench.Cell
		if cells, err = b.cells(c.Context); err == nil {
			return b.work(cells)
		}
	}
	b.close()
	return nil, err
}

func (b *benching) work(cells []*bench.Cell) (*benchWork, error) {
	if b.c.Bool("dry-run") {
		return nil, usagef("--dry-run makes nothing: leave it out")
	}
	size, err := shardSize(b.c, 64)
	return &benchWork{benching: b, cells: cells, size: size}, err
}

// Close implements queue.Doer.
func (w *benchWork) Close() {
	if w.maker != nil {
		_ = w.maker.Close() // all that it made is handed over
	}
	w.close()
}

// Config implements queue.Doer.
func (w *benchWork) Config() string {
	parts := []any{"bench", tierOf(w.c), w.matrix.Seed, w.matrix.Count, w.c.Int("samples"), w.size}
	for _, c := range w.cells {
		parts = append(parts, c.Key)
	}
	return configOf(parts...)
}

// Do implements queue.Doer.
func (w *benchWork) Do(ctx context.Context, sp shard.Spec, step func(float64)) (*shard.Result, error) {
	var r benchShard
	if err := json.Unmarshal(sp.Text, &r); err != nil || !r.In(w.matrix.Count) || r.Batch < 1 {
		return nil, fmt.Errorf("shard %s is not of this bench", sp.Text)
	}
	if w.of == nil || w.of.Key != r.Cell {
		if w.maker != nil {
			if err := w.maker.Close(); err != nil {
				return nil, err
			}
			w.maker, w.of = nil, nil
		}
		for _, c := range w.cells {
			if c.Key != r.Cell || c.Reason != "" {
				continue
			}
			m, err := c.Maker(ctx)
			if err != nil {
				return nil, err
			}
			w.maker, w.of = m, c
			break
		}
		if w.of == nil {
			return nil, fmt.Errorf("shard %s is of no cell of this bench", sp.Text)
		}
	}
	all := bench.Piece{}
	err := w.maker.Make(ctx, nil, w.matrix.Seed, r.From, r.N, r.Batch, r.Shown, func(done float64) { step(done / float64(r.N)) }, func(_ int, p bench.Piece) error {
		all.Rows, all.Pix = append(all.Rows, p.Rows...), append(all.Pix, p.Pix...)
		all.Evals += p.Evals
		all.Seconds += p.Seconds
		all.Model += p.Model
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &shard.Result{Model: all.Model, Arrays: []shard.Array{
		{Name: "rows", Floats: all.Rows}, {Name: "pix", Bytes: append([]byte{}, all.Pix...)}, {Name: "cost", Floats: []float64{all.Evals, all.Seconds, all.Model}},
	}}, nil
}

// benchRemote is the bench's end of a crew.
type benchRemote struct {
	crew *crew
	w    *benchWork
	ids  map[string]int
}

func (r *benchRemote) spec(w bench.Want) shard.Spec {
	s := shard.New(0, benchShard{w.Cell.Key, shard.Range{From: w.At, N: w.N}, w.Batch, w.Cell.Shown(r.w.c.Int("samples"), r.w.matrix.Count)})
	s.ID = r.ids[string(s.Text)]
	return s
}

// Submit implements bench.Remote.
func (r *benchRemote) Submit(wants []bench.Want) error {
	var out []shard.Spec
	for i, w := range wants {
		s := r.spec(w)
		s.ID = i
		r.ids[string(s.Text)] = i
		out = append(out, s)
	}
	return r.crew.submit(out)
}

// Take implements bench.Remote.
func (r *benchRemote) Take(_ context.Context, w bench.Want) (bench.Piece, error) {
	var p bench.Piece
	_, err := r.crew.result(r.spec(w), func(res *shard.Result) (err error) {
		p, err = r.w.piece(res, w)
		return err
	})
	return p, err
}

// piece reads a result and holds it to the block that was asked for.
func (w *benchWork) piece(res *shard.Result, want bench.Want) (bench.Piece, error) {
	rows, err := res.Numbers("rows", -1)
	if err != nil {
		return bench.Piece{}, err
	}
	pix, err := res.Raw("pix", -1)
	if err != nil {
		return bench.Piece{}, err
	}
	cost, err := res.Floats("cost", 3)
	if err != nil {
		return bench.Piece{}, err
	}
	if min(cost[0], cost[1], cost[2]) < 0 {
		return bench.Piece{}, errors.New("negative costs")
	}
	p := bench.Piece{N: want.N, Rows: rows, Pix: pix, Evals: cost[0], Seconds: cost[1], Model: cost[2]}
	return p, want.Check(p, w.c.Int("samples"), w.matrix.Count)
}

// Kept implements bench.Remote.
func (r *benchRemote) Kept(w bench.Want) error { return r.crew.forget(r.spec(w)) }
