package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/shard"
	"drift/metrics"
	"drift/models"
	"drift/samplers"
)

// Piece is some finished pictures of a cell, or seeds of a verb's: their records, the bytes of those that are shown, and
// what they took.
type Piece struct {
	N                     int
	Rows                  []float64 // N records
	Pix                   []byte    // whole pictures, from the first of the piece
	Evals, Seconds, Model float64
}

// Want is a block of a cell: N places from At, made in batches of Batch.
type Want struct {
	Cell         *Cell
	At, N, Batch int
}

// Remote makes blocks elsewhere.
type Remote interface {
	Submit([]Want) error                             // tells all that will be asked for
	Take(ctx context.Context, w Want) (Piece, error) // waits for a block
	Kept(w Want) error                               // the block is stored here
}

// Maker makes the pieces of a cell.
type Maker struct {
	c   *Cell
	run Runner // of a verb, or nil
}

// Maker opens the cell.
func (c *Cell) Maker(ctx context.Context) (*Maker, error) {
	m := &Maker{c: c}
	var err error
	if c.open != nil {
		m.run, err = c.open(ctx)
	}
	return m, err
}

// Close gives back what the cell holds.
func (m *Maker) Close() error {
	if m.run == nil {
		return nil
	}
	return m.run.Close()
}

// Shown is the number of places whose pictures are kept, when pictures are.
func (c *Cell) Shown(pictures, count int) int {
	if _, ok := c.picture(); !ok || pictures == 0 {
		return 0
	}
	m := c.pictures()
	return min(count, (pictures+m-1)/m)
}

// Make makes n places from at on, in batches, and hands every piece over as soon as it is there. Pictures of the first
// shown places come as bytes too. Closing stop ends it with job.ErrStopped; step is told the places done, in parts.
func (m *Maker) Make(ctx context.Context, stop <-chan struct{}, seed uint64, at, n, batch, shown int, step func(float64), take func(at int, p Piece) error) error {
	if m.run != nil {
		return m.seeds(ctx, stop, seed, at, n, batch, shown, step, take)
	}
	c := m.c
	seeds := make([]uint64, n)
	for k := range seeds {
		seeds[k] = seed + uint64(at+k)
	}
	_, err := c.plan.Run(ctx, stop, job.Items(1, seeds, at), batch, job.Hooks{
		Step: func(b job.Batch, s *samplers.State) error {
			step(float64(b.Index) + s.Done*float64(len(b.Items)))
			return nil
		},
		Done: func(b job.Batch, _, out *tensor.Dense, st samplers.Stats) error {
			rows := len(b.Items)
			v, pix, err := c.subject.Measure.Measure(ctx, models.Data(out), rows, c.Run.Rounding)
			if err != nil {
				return storing{err}
			}
			p := Piece{N: rows, Rows: make([]float64, 0, rows*c.width()), Evals: st.NFE * float64(rows), Seconds: st.Wall.Seconds(), Model: st.Model.Seconds()}
			for i := range rows {
				p.Rows = append(p.Rows, st.NFE)
				for _, x := range []metrics.Matrix{v.Features, v.Logits} {
					p.Rows = append(p.Rows, x.X[i*x.D:(i+1)*x.D]...)
				}
			}
			if k := min(shown-at-b.Index, rows); k > 0 {
				p.Pix = pix[:k*(len(pix)/rows)]
			}
			return take(at+b.Index, p)
		},
	})
	return err
}

// seeds is Make of a verb's cell.
func (m *Maker) seeds(ctx context.Context, stop <-chan struct{}, seed uint64, at, n, batch, shown int, step func(float64), take func(int, Piece) error) error {
	for from := at; from < at+n; from += batch {
		t := Task{First: from, Stop: stop}
		for k := from; k < min(from+batch, at+n); k++ {
			t.Seeds = append(t.Seeds, seed+uint64(k))
		}
		t.Step = func(done float64) { step(float64(from-at) + done*float64(len(t.Seeds))) }
		place, began := from, time.Now()
		t.Done = func(res Result) error {
			p, err := m.c.piece(ctx, res, place < shown)
			if err != nil {
				return err
			}
			p.Seconds = time.Since(began).Seconds()
			p.Model, began = p.Seconds, time.Now()
			place++
			return take(place-1, p)
		}
		t.Step(0)
		if err := m.run.Run(ctx, t); err != nil {
			return err
		}
		if place != from+len(t.Seeds) {
			return fmt.Errorf("bench: %T gave %d results for %d seeds", m.run, place-from, len(t.Seeds))
		}
	}
	return nil
}

// piece measures the pictures of a seed.
func (c *Cell) piece(ctx context.Context, res Result, shown bool) (Piece, error) {
	m, dim := c.pictures(), tensor.Shape(c.facts.Shape).TotalSize()
	if len(res.Values) != len(c.facts.Columns) || len(res.X) != m*dim {
		return Piece{}, fmt.Errorf("bench: a seed gave %d values and %d numbers of pictures, want %d and %d", len(res.Values), len(res.X), len(c.facts.Columns), m*dim)
	}
	for i, v := range res.X {
		if v-v != 0 {
			return Piece{}, &samplers.NotFinite{Row: i / max(1, dim)}
		}
	}
	p := Piece{N: 1, Rows: make([]float64, 0, c.width()), Evals: max(1, res.NFE)}
	p.Rows = append(append(p.Rows, res.NFE, res.VJPs, res.Rewards), res.Values...)
	if m == 0 {
		return p, nil
	}
	v, bytes, err := c.subject.Measure.Measure(ctx, res.X, m, c.rounding())
	if err != nil {
		return p, storing{err}
	}
	for i := range m {
		for _, x := range []metrics.Matrix{v.Features, v.Logits} {
			p.Rows = append(p.Rows, x.X[i*x.D:(i+1)*x.D]...)
		}
	}
	if shown {
		p.Pix = bytes
	}
	return p, nil
}

// Check holds a piece that came from elsewhere to the block that was asked for. Only columns of a verb may be no numbers.
func (w Want) Check(p Piece, pictures, count int) error {
	c := w.Cell
	size, _ := c.picture()
	pix := max(0, min(c.Shown(pictures, count)-w.At, w.N)) * c.pictures() * size
	switch {
	case p.N != w.N || len(p.Rows) != w.N*c.width():
		return fmt.Errorf("bench: %d rows of %d numbers in all, want %d of %d", p.N, len(p.Rows), w.N, c.width())
	case len(p.Pix) != pix:
		return fmt.Errorf("bench: %d bytes of pictures, want %d", len(p.Pix), pix)
	}
	from, to := 1, 1 // the columns
	if c.open != nil {
		from, to = 3, c.head()
	}
	for i, v := range p.Rows {
		if k := i % c.width(); v-v != 0 && (k < from || k >= to) || k < from && v < 0 {
			return fmt.Errorf("bench: number %d of row %d is %g", k, i/c.width(), v)
		}
	}
	return nil
}

// batch is the number of places that are made at a time. It is the same here and elsewhere where the sampler decides about
// its steps on the way: their number is kept as the mean of a batch.
func (b *Bench) batch(c *Cell) int {
	n := b.Batch
	switch {
	case n > 0:
	case c.open != nil:
		n = max(1, c.facts.Batch)
	default:
		n = c.plan.Batch()
	}
	if b.Remote != nil && b.Block > 0 && c.NFE > 0 {
		n = min(n, b.Block)
	}
	return n
}

// block is the number of places of a block, in whole batches.
func (b *Bench) block(c *Cell) int {
	batch := b.batch(c)
	if b.Remote == nil {
		return batch
	}
	return (max(b.Block, 1) + batch - 1) / batch * batch
}

// span is the places that a cell lacks: records, or pictures that an earlier bench did not keep. It begins at a whole
// block, so that batches are the same whatever happened.
func (b *Bench) span(c *Cell, have, kept int) (first, last int) {
	n, size := b.Matrix.Count, b.block(c)
	if c.open != nil && b.Remote == nil {
		size = 1 // seeds do not know with which others they are made
	}
	first, last = n, n
	if have < n {
		first = have / size * size
	}
	if shown := c.Shown(b.Pictures, n); kept < min(shown, have) {
		if have >= n {
			last = shown
		}
		first = min(first, kept/size*size)
	}
	return first, last
}

// lacking lists the blocks that are missing of all cells.
func (b *Bench) lacking() ([]Want, error) {
	var out []Want
	seen := map[string]bool{}
	for _, c := range b.Cells {
		if c.Reason != "" || seen[c.Key] {
			continue
		}
		seen[c.Key] = true
		rec, pix, err := b.records(c)
		if err != nil {
			return nil, err
		}
		have, kept := rec.n, 0
		err = rec.close()
		if pix != nil {
			kept = pix.n / max(1, c.pictures())
			err = errors.Join(err, pix.close())
		}
		if err != nil {
			return nil, err
		}
		first, last := b.span(c, have, kept)
		out = append(out, b.wants(c, first, last)...)
	}
	return out, nil
}

// wants cuts a span into blocks. A block always has the same places, whatever is there of them.
func (b *Bench) wants(c *Cell, first, last int) []Want {
	var out []Want
	size, n := b.block(c), b.Matrix.Count
	for at := first; at < last; at += size {
		out = append(out, Want{c, at, min(size, n-at), b.batch(c)})
	}
	return out
}

// records opens the files of a cell; pix is nil where it has none.
func (b *Bench) records(c *Cell) (rec, pix *records, err error) {
	if rec, err = openRecords(b.path(c, ".rec"), c.Key, 8*c.width()); err != nil {
		return nil, nil, err
	}
	if size, ok := c.picture(); ok && b.Pictures > 0 {
		if pix, err = openRecords(b.path(c, ".pix"), c.Key, size); err != nil {
			return nil, nil, errors.Join(err, rec.close())
		}
	}
	return rec, pix, nil
}

// draw makes what is missing of a cell, here or elsewhere, and stores it piece by piece.
func (b *Bench) draw(ctx context.Context, stop <-chan struct{}, c *Cell, rec, pix *records, where string) (err error) {
	n, m := b.Matrix.Count, c.pictures()
	if rec.n < n && c.open == nil { // begin at a whole block
		if err := rec.cut(rec.n / b.block(c) * b.block(c)); err != nil {
			return storing{err}
		}
	}
	kept := 0
	if pix != nil {
		kept = pix.n / max(1, m)
	}
	first, last := b.span(c, rec.n, kept)
	b.left[c] = float64(last-first) * c.evals()
	if first >= last {
		return nil
	}
	if err := b.writeRun(c); err != nil {
		return storing{err}
	}
	spent, err := b.times(c)
	if err != nil {
		return storing{err}
	}
	r := b.rate[c.Model]
	take := func(at int, p Piece) error {
		if pix != nil && len(p.Pix) > 0 && pix.n >= at*m && pix.n < at*m+len(p.Pix)/pix.width {
			if err := pix.add(p.Pix[(pix.n-at*m)*pix.width:]); err != nil {
				return storing{err}
			}
		}
		if k := rec.n - at; k >= 0 && k < p.N {
			line := make([]byte, 0, (p.N-k)*rec.width)
			for _, v := range p.Rows[k*c.width():] {
				line = binary.LittleEndian.AppendUint64(line, math.Float64bits(v))
			}
			if err := rec.add(line); err != nil {
				return storing{err}
			}
			spent.Images += p.N
			spent.Seconds += p.Seconds
			spent.Model += p.Model
			if err := b.writeTimes(c, spent); err != nil {
				return storing{err}
			}
		}
		r.evals += p.Evals
		r.seconds += p.Seconds
		b.left[c] = max(0, b.left[c]-c.evals()*float64(p.N))
		return nil
	}
	if b.Remote != nil {
		for _, w := range b.wants(c, first, last) {
			p, err := b.Remote.Take(ctx, w)
			var far *shard.Failure
			if err == nil {
				if err = take(w.At, p); err == nil {
					err = b.Remote.Kept(w)
				}
			}
			if err != nil && !errors.As(err, &far) {
				return storing{err}
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	maker, err := c.Maker(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if e := maker.Close(); e != nil && err == nil {
			err = e
		}
	}()
	what := "images"
	if c.open != nil {
		what = "seeds"
	}
	stored := 0
	return maker.Make(ctx, stop, b.Matrix.Seed, first, last-first, b.batch(c), c.Shown(b.Pictures, n), func(done float64) {
		b.progress(c, max(0, done-float64(stored))*c.evals(), fmt.Sprintf("%s, %d/%d %s", where, first+int(done), n, what))
	}, func(at int, p Piece) error {
		stored = at + p.N - first
		return take(at, p)
	})
}
