package kernels

import "unsafe"

// MatMulSpec describes Batch products C = op(A) op(B) * Scale, or with Add
// C += op(A) op(B). Row lengths (Ld) and batch strides are in values; 0 means
// tight.
type MatMulSpec struct {
	Batch, M, N, K int
	TransA         bool // A is (K, M) in memory
	TransB         bool // B is (N, K) in memory
	LdA, LdB, LdC  int
	StepA          int // values between the matrices of a batch
	StepB          int
	StepC          int
	Scale          float32 // 0 means 1
	Add            bool    // without Scale
}

func (s MatMulSpec) normal() MatMulSpec {
	ra, ca, rb, cb := s.M, s.K, s.K, s.N
	if s.TransA {
		ra, ca = ca, ra
	}
	if s.TransB {
		rb, cb = cb, rb
	}
	if s.LdA == 0 {
		s.LdA = ca
	}
	if s.LdB == 0 {
		s.LdB = cb
	}
	if s.LdC == 0 {
		s.LdC = s.N
	}
	if s.StepA == 0 {
		s.StepA = ra * s.LdA
	}
	if s.StepB == 0 {
		s.StepB = rb * s.LdB
	}
	if s.StepC == 0 {
		s.StepC = s.M * s.LdC
	}
	return s
}

const (
	matmulRows   = 96
	matmulPanels = 8 // panels packed per item
)

// MatMulScratch gives the float32 that MatMul needs.
func MatMulScratch(p *Pool, s MatMulSpec) int {
	o := p.ops
	n := alignSlack + s.Batch*roundUp(roundUp(s.N, o.nr)*s.K, 16)
	if s.TransA {
		n += s.Batch * roundUp(s.M*s.K, 16)
	}
	return n + p.workers*roundUp(matmulRows*o.nr, 16) + roundUp(2*roundUp(matmulRows, o.mr), 16) +
		roundUp(4*ceilDiv(s.K, o.kc), 16) + 16
}

// MatMul computes a batch of products of two activations. B is packed on
// every call: a constant right side belongs in a [Linear].
func MatMul(p *Pool, dst, a, b []float32, spec MatMulSpec, scratch []float32) {
	s := spec.normal()
	if s.Add && s.Scale != 0 && s.Scale != 1 {
		panic("kernels: a product that is added cannot be scaled")
	}
	if s.Batch < 1 || s.M < 1 || s.N < 1 || s.K < 1 {
		return
	}
	need("scratch", scratch, MatMulScratch(p, spec))
	need("dst", dst, (s.Batch-1)*s.StepC+(s.M-1)*s.LdC+s.N)
	p.mu.Lock()
	defer p.mu.Unlock()
	j := &p.matmul
	o := p.ops
	*j = matmulJob{o: o, s: s, dst: dst, a: a, b: b}
	cv := carve(scratch)
	j.bStep = roundUp(roundUp(s.N, o.nr)*s.K, 16)
	j.packed = cv.take(s.Batch * j.bStep)
	lda := s.LdA
	if s.TransA {
		j.aStep, lda = roundUp(s.M*s.K, 16), s.K
		j.at = cv.take(s.Batch * j.aStep)
	}
	j.tail = cv.take(p.workers * roundUp(matmulRows*o.nr, 16))
	rn := roundUp(matmulRows, o.mr)
	j.rows = int64s(cv.take(2*rn), rn)
	for i := range j.rows {
		j.rows[i] = int64(min(i, matmulRows-1)) * int64(lda) * 4
	}
	nb := ceilDiv(s.K, o.kc)
	j.segs = int64s(cv.take(4*nb), 2*nb)
	for i := range nb {
		j.segs[2*i], j.segs[2*i+1] = int64(i*o.kc*4), int64(min(o.kc, s.K-i*o.kc))
	}
	j.lda = lda
	j.packing = true
	p.run(s.Batch*j.packItems(), j)
	j.packing = false
	p.run(s.Batch*ceilDiv(s.M, matmulRows), j)
	*j = matmulJob{}
}

type matmulJob struct {
	o         *ops
	s         MatMulSpec
	dst, a, b []float32

	packing      bool
	packed, at   []float32
	bStep, aStep int
	tail         []float32
	rows, segs   []int64
	lda          int
}

func (j *matmulJob) packItems() int {
	n := ceilDiv(j.s.N, j.o.nr*matmulPanels)
	if j.s.TransA {
		n++
	}
	return n
}

func (j *matmulJob) do(worker, item int) {
	s, o := &j.s, j.o
	if j.packing {
		per := j.packItems()
		bt, i := item/per, item%per
		if s.TransA {
			if i == 0 {
				transpose(o, j.at[bt*j.aStep:], j.a[bt*s.StepA:], s.K, s.M, s.LdA, s.K)
				return
			}
			i--
		}
		for pn := i * matmulPanels; pn < min((i+1)*matmulPanels, ceilDiv(s.N, o.nr)); pn++ {
			packPanel(o, j.packed[bt*j.bStep+pn*s.K*o.nr:], j.b[bt*s.StepB:], s.K, s.N, pn*o.nr, s.LdB, s.TransB)
		}
		return
	}
	per := ceilDiv(s.M, matmulRows)
	bt, m0 := item/per, item%per*matmulRows
	a := j.a[bt*s.StepA:]
	if s.TransA {
		a = j.at[bt*j.aStep:]
	}
	size := roundUp(matmulRows*o.nr, 16)
	dst := j.dst[bt*s.StepC+m0*s.LdC:]
	m := min(matmulRows, s.M-m0)
	t := strided{o: o, m: m, a: unsafe.Pointer(&a[m0*j.lda]), rows: &j.rows[0], segs: j.segs,
		w: j.packed[bt*j.bStep:], k: s.K, n: s.N, dst: dst, ld: s.LdC, tail: j.tail[worker*size:], add: s.Add}
	t.run()
	if s.Scale != 0 && s.Scale != 1 {
		for i := range m {
			o.scale(dst[i*s.LdC:i*s.LdC+s.N], s.Scale)
		}
	}
}

// strided is a product whose output rows are ld apart.
type strided struct {
	o    *ops
	m    int
	a    unsafe.Pointer
	rows *int64
	segs []int64 // one pass each
	w    []float32
	k, n int
	dst  []float32
	ld   int
	tail []float32
	add  bool
}

func (t *strided) run() {
	nr := t.o.nr
	for pn := range ceilDiv(t.n, nr) {
		j0 := pn * nr
		whole := j0+nr <= t.n
		g := gemmArgs{c: ptr(t.tail), ldc: int64(nr) * 4, a: t.a, rows: t.rows, nseg: 1}
		if whole {
			g.c, g.ldc = unsafe.Pointer(&t.dst[j0]), int64(t.ld)*4
		}
		if t.add {
			g.acc = 1
			if !whole {
				for i := range t.m {
					copy(t.tail[i*nr:], t.dst[i*t.ld+j0:i*t.ld+t.n])
				}
			}
		}
		at := pn * t.k * nr
		for i := 0; i < len(t.segs); i += 2 {
			g.b = unsafe.Pointer(&t.w[at])
			g.segs = (*segment)(unsafe.Pointer(&t.segs[i]))
			t.o.gemmRows(&g, t.m)
			g.acc = 1
			at += int(t.segs[i+1]) * nr
		}
		if !whole {
			for i := range t.m {
				copy(t.dst[i*t.ld+j0:i*t.ld+t.n], t.tail[i*nr:])
			}
		}
	}
}

// packPanel packs columns j0.. of the k-by-n matrix b (row length ld, or
// n-by-k when trans) into one panel of nr columns.
func packPanel(o *ops, dst, b []float32, k, n, j0, ld int, trans bool) {
	nr := o.nr
	cols := min(nr, n-j0)
	if !trans {
		for i := range k {
			row := dst[i*nr : i*nr+nr]
			clear(row[copy(row[:cols], b[i*ld+j0:i*ld+j0+cols]):])
		}
		return
	}
	k8, c8 := k&^7, cols&^7
	if k8 > 0 {
		for j := 0; j < c8; j += 8 {
			_ = b[(j0+j+7)*ld+k8-1]
			o.transpose8(&dst[j], &b[(j0+j)*ld], nr*4, ld*4, k8)
		}
	}
	for j := range nr {
		from := 0
		if j < c8 {
			from = k8
		}
		if j >= cols {
			for i := range k {
				dst[i*nr+j] = 0
			}
			continue
		}
		for i, v := range b[(j0+j)*ld+from : (j0+j)*ld+k] {
			dst[(from+i)*nr+j] = v
		}
	}
}

// transpose writes the rows-by-cols matrix src to dst as cols-by-rows.
func transpose(o *ops, dst, src []float32, rows, cols, ldSrc, ldDst int) {
	r8, c8 := rows&^7, cols&^7
	if c8 > 0 {
		for i := 0; i < r8; i += 8 {
			_, _ = src[(i+7)*ldSrc+c8-1], dst[(c8-1)*ldDst+i+7]
			o.transpose8(&dst[i], &src[i*ldSrc], ldDst*4, ldSrc*4, c8)
		}
	}
	for i := range rows {
		from := 0
		if i < r8 {
			from = c8
		}
		for j, v := range src[i*ldSrc+from : i*ldSrc+cols] {
			dst[(from+j)*ldDst+i] = v
		}
	}
}
