package kernels

import (
	"fmt"
	"math"
	"unsafe"
)

// AttentionSpec is the shape of softmax(Q K^T Scale + mask) V. Query token t
// of batch row b, head h begins at ((b*Tq+t)*LdQ + h*D), so that q, k and v
// may lie in one buffer of joined projections. An Ld of 0 means Heads*D.
type AttentionSpec struct {
	Batch, Heads       int
	Tq, Tk             int // query and key tokens
	D                  int // values per head
	LdQ, LdK, LdV, LdO int
	Scale              float32 // 0 means 1/sqrt(D)
	Causal             bool    // query t sees keys 0..t
	// KeyBias (Batch, Tk) is added to the scaled scores, nil for none: a mask
	// of the keys. -Inf hides a key. A query that sees no key gives zeros.
	KeyBias []float32
	// Bias (Heads, Tq, Tk) is added to the scaled scores of every batch row,
	// nil for none: relative positions. -Inf hides.
	Bias []float32
	// With BF16, tiers that multiply bfloat16 take both products on q, k, v
	// and softmax rounded to it; sums and the softmax stay float32. The
	// gradient is float32 always.
	DType DType
}

func (s AttentionSpec) normal() AttentionSpec {
	for _, ld := range []*int{&s.LdQ, &s.LdK, &s.LdV, &s.LdO} {
		if *ld == 0 {
			*ld = s.Heads * s.D
		}
	}
	if s.Scale == 0 {
		s.Scale = float32(1 / math.Sqrt(float64(s.D)))
	}
	return s
}

const (
	attnKeys   = 256     // keys per block; a multiple of every nr
	attnScores = 48 << 8 // about as many scores are worked on at a time
	attnRows   = 96      // most queries of an item
)

// hidden is the score of a key that is not seen. It is finite, so that the
// distance of two of them is no NaN, and far below every true score.
const hidden = -1e30

// attnAlign is what the number of keys of a block is rounded up to, with
// hidden ones, for whole vectors in the softmax.
const attnAlign = 32

var hiddenKeys = func() (h [attnAlign]float32) {
	for i := range h {
		h[i] = hidden
	}
	return
}()

// onePass covers all of K by one segment.
var onePass = []kblock{{n: 1}}

// attnOps gives the matrix kernels of both products.
func attnOps(p *Pool, d DType) *ops {
	if d == BF16 && p.tier >= AVX512BF16 {
		return pairOps()
	}
	return p.ops
}

// attnSizes counts float32. A slot is what the matrix kernels multiply: a
// value, or a pair of bfloat16 in the same room.
type attnSizes struct {
	dSlots, kSlots int // of a vector, of all keys
	kStep, vStep   int // packed keys and values of a head
	dPad           int
	qRows, pitch   int // queries and row length of a block of scores
	work           int // of a worker
}

// slots gives the number of slots of n values.
func (o *ops) slots(n int) int {
	if o.pairs > 0 {
		return ceilDiv(n, 2)
	}
	return n
}

func attnSizesOf(o *ops, s *AttentionSpec) attnSizes {
	keys := roundUp(min(s.Tk, attnKeys), attnAlign)
	z := attnSizes{dSlots: o.slots(s.D), kSlots: o.slots(s.Tk), dPad: roundUp(s.D, o.nr), pitch: keys + 16}
	z.qRows = roundUp(min(max(attnScores/keys, 24), attnRows), o.mr)
	z.kStep = roundUp(s.Tk, o.nr) * z.dSlots
	z.vStep = z.dPad * z.kSlots
	z.work = roundUp(z.qRows*z.pitch, 16) + roundUp(z.qRows*z.dPad, 16) + roundUp(4*z.qRows, 16) + 16
	if o.pairs > 0 {
		z.work += roundUp(z.qRows*z.dSlots, 16)
		z.work = max(z.work, roundUp(z.dSlots*o.nr, 16), 2*o.nr)
	}
	return z
}

// AttentionScratch gives the float32 that Attention needs.
func AttentionScratch(p *Pool, s AttentionSpec) int {
	return attentionScratch(p, attnOps(p, s.DType), s)
}

func attentionScratch(p *Pool, o *ops, s AttentionSpec) int {
	z := attnSizesOf(o, &s)
	bh := s.Batch * s.Heads
	n := alignSlack + roundUp(bh*z.kStep, 16) + roundUp(bh*z.vStep, 16) + p.workers*z.work + 2*roundUp(2*z.qRows, 16)
	if s.KeyBias != nil {
		n += roundUp(s.Batch*s.Tk, 16)
	}
	return n
}

// Attention computes dst = softmax(Q K^T Scale + mask) V per batch row and
// head, in blocks of keys with a running maximum, so that no full score
// matrix exists (Dao et al. 2022, arXiv:2205.14135, algorithm 1). Queries and
// keys may be of different sequences (cross attention): keys and values are
// packed on every call, which costs little next to the products.
func Attention(p *Pool, dst, q, k, v []float32, spec AttentionSpec, scratch []float32) {
	attend(p, attnOps(p, spec.DType), dst, q, k, v, spec, scratch)
}

func attend(p *Pool, o *ops, dst, q, k, v []float32, spec AttentionSpec, scratch []float32) {
	s := spec.normal()
	if s.Batch < 1 || s.Heads < 1 || s.Tq < 1 {
		return
	}
	s.check(dst, q, k, v)
	need("scratch", scratch, attentionScratch(p, o, spec))
	p.mu.Lock()
	defer p.mu.Unlock()
	j := &p.attn
	*j = attnJob{o: o, s: s, z: attnSizesOf(o, &s), dst: dst, q: q, k: k, v: v}
	cv := carve(scratch)
	bh := s.Batch * s.Heads
	j.kp, j.vp = cv.take(bh*j.z.kStep), cv.take(bh*j.z.vStep)
	j.work = cv.take(p.workers * j.z.work)
	j.qRows = int64s(cv.take(2*j.z.qRows), j.z.qRows)
	j.sRows = int64s(cv.take(2*j.z.qRows), j.z.qRows)
	ld := s.LdQ
	if o.pairs > 0 {
		ld = j.z.dSlots
	}
	for i := range j.z.qRows {
		j.qRows[i] = int64(i) * int64(ld) * 4
		j.sRows[i] = int64(i*j.z.pitch) * 4
	}
	if s.KeyBias != nil {
		j.keyBias = cv.take(s.Batch * s.Tk)
		for i, v := range s.KeyBias[:s.Batch*s.Tk] {
			j.keyBias[i] = max(v, hidden)
		}
	}
	j.packing = true
	p.run(bh*ceilDiv(s.Tk, attnKeys), j)
	j.packing = false
	p.run(bh*ceilDiv(s.Tq, j.z.qRows), j)
	*j = attnJob{}
}

func (s *AttentionSpec) check(dst, q, k, v []float32) {
	if s.Scale < 0 {
		panic("kernels: negative attention scale")
	}
	if s.D < 1 || s.Tk < 1 {
		panic(fmt.Sprintf("kernels: attention over %d keys of %d values", s.Tk, s.D))
	}
	row := s.Heads * s.D
	need("attention output", dst, (s.Batch*s.Tq-1)*s.LdO+row)
	need("queries", q, (s.Batch*s.Tq-1)*s.LdQ+row)
	need("keys", k, (s.Batch*s.Tk-1)*s.LdK+row)
	need("values", v, (s.Batch*s.Tk-1)*s.LdV+row)
	if s.KeyBias != nil {
		need("key bias", s.KeyBias, s.Batch*s.Tk)
	}
	if s.Bias != nil {
		need("bias", s.Bias, s.Heads*s.Tq*s.Tk)
	}
}

type attnJob struct {
	o            *ops
	s            AttentionSpec
	z            attnSizes
	dst, q, k, v []float32
	packing      bool
	kp, vp, work []float32
	keyBias      []float32 // without infinities
	qRows, sRows []int64
}

func (j *attnJob) do(worker, item int) {
	if j.packing {
		per := ceilDiv(j.s.Tk, attnKeys)
		j.pack(worker, item/per, item%per*attnKeys)
		return
	}
	per := ceilDiv(j.s.Tq, j.z.qRows)
	j.attend(worker, item/per, item%per*j.z.qRows)
}

// pack packs attnKeys keys and values of one head from key t0 on.
func (j *attnJob) pack(worker, bh, t0 int) {
	s, o, z := &j.s, j.o, &j.z
	nr := o.nr
	b, h := bh/s.Heads, bh%s.Heads
	t1 := min(t0+attnKeys, s.Tk)
	k, v := j.k[(b*s.Tk)*s.LdK+h*s.D:], j.v[(b*s.Tk+t0)*s.LdV+h*s.D:]
	kp, vp := j.kp[bh*z.kStep:], j.vp[bh*z.vStep:]
	if o.pairs == 0 {
		for t := t0; t < t1; t += nr {
			packPanel(o, kp[t*s.D:], k, s.D, s.Tk, t, s.LdK, true)
		}
		for d0 := 0; d0 < s.D; d0 += nr {
			packPanel(o, vp[d0*s.Tk+t0*nr:], v, t1-t0, s.D, d0, s.LdV, false)
		}
		return
	}
	tmp := j.work[worker*z.work : (worker+1)*z.work]
	for t := t0; t < t1; t += nr {
		// Rows of slots, and then their transpose.
		n := min(nr, t1-t)
		if s.D%2 != 0 {
			clear(tmp[:n*z.dSlots])
		}
		o.toBF16Rows(&bfloats(tmp)[0], &k[t*s.LdK], z.dSlots*4, s.LdK*4, n, s.D)
		packPanel(o, kp[t*z.dSlots:], tmp, z.dSlots, n, 0, z.dSlots, true)
	}
	for d0 := 0; d0 < s.D; d0 += nr {
		panel := unsafe.Slice((*uint32)(unsafe.Pointer(&vp[d0*z.kSlots+t0/2*nr])), ceilDiv(t1-t0, 2)*nr)
		done := 0
		if d0+nr <= s.D {
			if done = (t1 - t0) &^ 1; done > 0 {
				o.pairRows(&panel[0], &v[d0], s.LdV*4, done/2, nr)
			}
		}
		for t := done; t < t1-t0; t += 2 { // with zeros beyond the last key and value
			clear(tmp[:2*nr])
			for i := t; i < min(t+2, t1-t0); i++ {
				copy(tmp[(i-t)*nr:(i-t+1)*nr], v[i*s.LdV+d0:i*s.LdV+min(d0+nr, s.D)])
			}
			o.pairRows(&panel[t/2*nr], &tmp[0], nr*4, 1, nr)
		}
	}
}

// bfloats views a row of slots as bfloat16.
func bfloats(row []float32) []uint16 { return unsafe.Slice((*uint16)(ptr(row)), 2*len(row)) }

// attend computes one block of queries of one head from query t0 on.
func (j *attnJob) attend(worker, bh, t0 int) {
	s, o, z := &j.s, j.o, &j.z
	nr := o.nr
	b, h := bh/s.Heads, bh%s.Heads
	m := min(z.qRows, s.Tq-t0)
	cv := carver{s: j.work[worker*z.work : (worker+1)*z.work]}
	scores := cv.take(z.qRows * z.pitch)
	out := cv.take(z.qRows * z.dPad)
	stat := cv.take(4 * z.qRows)
	segs := int64s(cv.take(4), 2)
	top, sum := stat[:m], stat[z.qRows:z.qRows+m]
	old, part := stat[2*z.qRows:2*z.qRows+m], stat[3*z.qRows:3*z.qRows+m]
	for i := range top {
		top[i], sum[i] = hidden, 0
	}
	qs := j.q[(b*s.Tq+t0)*s.LdQ+h*s.D:]
	q := ptr(qs)
	if o.pairs > 0 {
		rows := cv.take(z.qRows * z.dSlots)
		if s.D%2 != 0 {
			clear(rows)
		}
		o.toBF16Rows(&bfloats(rows)[0], &qs[0], z.dSlots*4, s.LdQ*4, m, s.D)
		q = ptr(rows)
	}
	kp, vp := j.kp[bh*z.kStep:], j.vp[bh*z.vStep:]
	keys := s.Tk
	if s.Causal {
		keys = min(keys, t0+m)
	}
	for k0 := 0; k0 < keys; k0 += attnKeys {
		kn := min(attnKeys, keys-k0)
		segs[0], segs[1] = 0, int64(z.dSlots)
		t := tilePass{o: o, m: m, base: q, rows: &j.qRows[0], segs: segs, blocks: onePass,
			w: kp[k0*z.dSlots:], k: z.dSlots, cols: z.pitch, dst: scores}
		t.run(0, ceilDiv(kn, nr))
		scale := s.Scale
		if s.KeyBias != nil || s.Bias != nil || s.Causal {
			for i := range m {
				j.bias(scores[i*z.pitch:i*z.pitch+kn], b, h, t0+i, k0)
			}
			scale = 1
		}
		whole := roundUp(kn, attnAlign)
		if whole > kn {
			for i := range m {
				copy(scores[i*z.pitch+kn:i*z.pitch+whole], hiddenKeys[:])
			}
		}
		copy(old, top)
		if o.pairs > 0 {
			o.softmaxPairs(&scores[0], z.pitch*4, m, whole, scale, &top[0], &part[0])
		} else {
			o.softmaxRows(&scores[0], z.pitch*4, m, whole, scale, &top[0], &part[0])
		}
		for i := range m {
			if top[i] == hidden && part[i] == part[i] { // no key yet
				clear(scores[i*z.pitch : i*z.pitch+kn])
				part[i] = 0
			}
			if k0 > 0 && top[i] != old[i] {
				f := float32(math.Exp(float64(old[i] - top[i])))
				sum[i] *= f
				o.scale(out[i*z.dPad:(i+1)*z.dPad], f)
			}
			sum[i] += part[i]
		}
		segs[0], segs[1] = 0, int64(o.slots(kn))
		t = tilePass{o: o, m: m, base: ptr(scores), rows: &j.sRows[0], segs: segs, blocks: onePass,
			w: vp[o.slots(k0)*nr:], k: z.kSlots, cols: z.dPad, dst: out, acc: k0 > 0}
		t.run(0, z.dPad/nr)
	}
	for i := range m {
		d := j.dst[(b*s.Tq+t0+i)*s.LdO+h*s.D:][:s.D]
		if sum[i] == 0 {
			clear(d)
			continue
		}
		copy(d, out[i*z.dPad:])
		o.scale(d, 1/sum[i])
	}
}

// bias scales the scores of query t, from key k0 on, and adds what belongs to
// them. All stay finite, unless there is a NaN.
func (j *attnJob) bias(row []float32, b, h, t, k0 int) {
	s, o := &j.s, j.o
	o.scale(row, s.Scale)
	if s.KeyBias != nil {
		o.add(row, row, j.keyBias[b*s.Tk+k0:][:len(row)], 1)
	}
	if s.Bias != nil {
		o.add(row, row, s.Bias[(h*s.Tq+t)*s.Tk+k0:][:len(row)], 1)
		for c, v := range row {
			row[c] = max(v, hidden)
		}
	}
	if s.Causal {
		for c := max(t+1-k0, 0); c < len(row); c++ {
			row[c] = hidden
		}
	}
}
