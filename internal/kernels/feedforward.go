package kernels

import (
	"fmt"
	"unsafe"
)

// FeedForward computes two linear layers in a row,
//
//	dst = ep(second(act(first(in))))
//
// for n groups of m rows, a block of rows at a time, so that the rows between
// the layers stay in the second level cache. The result has the same bits as
// the layers run one after the other. Both have the same tier and data type,
// F32 or BF16. dst may be in.X or ep.Residual. in.Upsample is not for rows.
func FeedForward(p *Pool, dst []float32, in Input, n, m int, first, second *Linear, act Activation, scratch []float32, ep Epilogue) {
	a, b := first.conv, second.conv
	if a.spec.Cout != b.spec.Cin || a.tier != b.tier || a.dtype != b.dtype || a.dtype.widened() {
		panic(fmt.Sprintf("kernels: feed forward of %d to %d in %v and %d to %d in %v",
			a.spec.Cin, a.spec.Cout, a.dtype, b.spec.Cin, b.spec.Cout, b.dtype))
	}
	if p.tier != a.tier {
		panic(fmt.Sprintf("kernels: a layer packed for %v runs on a pool of %v", a.tier, p.tier))
	}
	if in.Upsample || in.stuff > 1 {
		panic("kernels: a feed forward reads rows")
	}
	in.check(n, 1, m, a.spec.Cin)
	need("dst", dst, n*m*b.spec.Cout)
	ep.check(n, b.spec.Cout, n*m*b.spec.Cout)
	if n < 1 || m < 1 {
		return
	}
	need("scratch", scratch, FeedForwardScratch(p.workers, m, first, second))
	p.mu.Lock()
	defer p.mu.Unlock()
	j := &p.ffn
	*j = ffnJob{a: a, b: b, in: in, n: n, m: m, act: act, ep: ep, dst: dst, s: ffnSizesOf(m, a, b)}
	cv := carve(scratch)
	j.work = cv.take(p.workers * j.s.work)
	rows := j.s.rows + maxMR
	offsets := func(c *Conv, pitch int) (rowAt, segs []int64) {
		rowAt = int64s(cv.take(2*rows), rows)
		for i := range rowAt {
			rowAt[i] = int64(min(i, j.s.rows-1)*pitch) * slotBytes
		}
		segs = int64s(cv.take(4*len(c.pieces)), 2*len(c.pieces))
		for i, q := range c.pieces {
			segs[2*i], segs[2*i+1] = int64(q.c0)*slotBytes, int64(q.len)
		}
		return
	}
	j.rowsA, j.segsA = offsets(a, a.slots)
	j.rowsB, j.segsB = offsets(b, b.slots)
	p.run(n*ceilDiv(m, j.s.rows), j)
	*j = ffnJob{}
}

// FeedForwardScratch gives the float32 that FeedForward needs for groups of m
// rows.
func FeedForwardScratch(workers, m int, first, second *Linear) int {
	a, b := first.conv, second.conv
	s := ffnSizesOf(m, a, b)
	rows := s.rows + maxMR
	return alignSlack + workers*s.work + 2*roundUp(2*rows, 16) + roundUp(4*len(a.pieces), 16) + roundUp(4*len(b.pieces), 16)
}

// ffnSlots is about how many slots of the rows between the layers an item has.
const ffnSlots = 144 << 10

type ffnSizes struct {
	rows             int // of an item
	input, tmp, tail int // float32 of a worker
	amx, bias        int
	work             int
}

func ffnSizesOf(m int, a, b *Conv) (s ffnSizes) {
	o := a.ops
	s.rows = min(max(ffnSlots/b.slots, 2*o.mr), blockPixels)
	s.rows = ceilDiv(m, ceilDiv(m, min(s.rows, m)))
	s.input = roundUp(s.rows*a.slots, 16)
	if o.pairs > 0 {
		s.tmp = roundUp(s.rows*a.spec.Cin, 16)
		s.amx = roundUp(amxWork(1, s.rows), 16)
	}
	s.tail, s.bias = roundUp(s.rows*max(o.nr, b.ops.nr), 16), roundUp(b.panels*b.ops.nr, 16)
	s.work = s.input + s.tmp + s.tail + s.amx + s.bias + roundUp(s.rows*b.slots, 16)
	return s
}

type ffnJob struct {
	a, b         *Conv
	in           Input
	n, m         int
	act          Activation
	ep           Epilogue
	dst          []float32
	s            ffnSizes
	work         []float32
	rowsA, rowsB []int64
	segsA, segsB []int64
}

func (j *ffnJob) do(worker, item int) {
	a, b, o, s := j.a, j.b, j.a.ops, &j.s
	per := ceilDiv(j.m, s.rows)
	n, r0 := item/per, item%per*s.rows
	m := min(s.rows, j.m-r0)
	cv := carver{s: j.work[worker*s.work : (worker+1)*s.work]}
	between, tail := cv.take(s.rows*b.slots), cv.take(s.tail)
	var base unsafe.Pointer
	switch {
	case o.pairs > 0:
		buf := cv.take(s.input)
		fillPairs(o, buf, a.slots, cv.take(s.tmp), &j.in, n, 1, j.m, Pad{}, a.spec.Cin, 0, 1, r0, r0+m, m)
		base = ptr(buf)
	case j.in.plain() && a.dtype == F32:
		base = unsafe.Pointer(&j.in.X[(n*j.m+r0)*a.spec.Cin])
	default:
		buf := cv.take(s.input)
		fillInput(o, buf, &j.in, n, 1, j.m, Pad{}, a.spec.Cin, 0, 1, r0, r0+m, m, a.dtype)
		base = ptr(buf)
	}
	t := tilePass{o: o, m: m, base: base, rows: &j.rowsA[0], segs: j.segsA, blocks: a.blocks,
		w: a.w, k: a.k, cols: a.spec.Cout, tail: tail, act: j.act}
	if a.hasB {
		t.bias = a.bias
	}
	if o.pairs > 0 {
		t.half, t.halfLd = bfloats(between), 2*b.slots
		for i := range m { // slots beyond the channels
			clear(t.half[i*t.halfLd+b.spec.Cin : (i+1)*t.halfLd])
		}
		t.amx = amxLayout{th: 1, tw: m, pix: a.slots * slotBytes, work: cv.take(s.amx)}
	} else {
		t.dst = between
	}
	t.run(0, a.panels)
	if o.pairs == 0 && a.dtype == BF16 {
		o.roundBF16(between[:m*b.spec.Cin])
	}

	amx := t.amx
	amx.pix = b.slots * slotBytes
	out := (n*j.m + r0) * b.spec.Cout
	t = tilePass{o: b.ops, m: m, base: ptr(between), rows: &j.rowsB[0], segs: j.segsB, blocks: b.blocks,
		w: b.w, k: b.k, cols: b.spec.Cout, dst: j.dst[out:], tail: tail, amx: amx}
	if b.hasB {
		t.bias = b.bias
	}
	if j.ep.RowBias != nil {
		bias := cv.take(s.bias)
		copy(bias, b.bias)
		for i, v := range j.ep.RowBias[n*b.spec.Cout : (n+1)*b.spec.Cout] {
			bias[i] += v
		}
		t.bias = bias
	}
	if j.ep.Residual != nil {
		t.res = j.ep.Residual[out:]
	}
	if j.ep.Gate != nil {
		t.gate = vectorRow(j.ep.Gate, n, b.spec.Cout)
	}
	if !j.ep.scaled() {
		t.act = j.ep.Act
	}
	t.run(0, b.panels)
	if j.ep.scaled() {
		finish(b.ops, &j.ep, j.dst[out:], m, b.spec.Cout, 0, b.spec.Cout)
	}
}
