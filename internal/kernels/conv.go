package kernels

import (
	"fmt"
	"unsafe"
)

// Pad is the number of zero rows and columns around an image.
type Pad struct{ Top, Left, Bottom, Right int }

// Same is the padding of p on every side.
func Same(p int) Pad { return Pad{p, p, p, p} }

// ConvSpec is the shape of a convolution. Stride and Dilation hold for both
// axes and 0 means 1. A convolution of a sequence has KH = 1 and H = 1.
type ConvSpec struct {
	Cin, Cout int
	KH, KW    int
	Stride    int
	Dilation  int
	Pad       Pad

	// H and W are the size of the images (as read, after any upsampling)
	// that the layer is meant for, 0 if unknown. The fastest method depends
	// on it; a layer runs at any other size too.
	H, W int
}

func (s ConvSpec) normal() ConvSpec {
	s.Stride = max(s.Stride, 1)
	s.Dilation = max(s.Dilation, 1)
	return s
}

// OutSize gives the height and width of the output for an input (after
// upsampling, if any) of h by w:
// floor((h + pad - dilation*(k-1) - 1)/stride) + 1, and 0 if the kernel does
// not fit.
func (s ConvSpec) OutSize(h, w int) (int, int) {
	s = s.normal()
	return outLen(h+s.Pad.Top+s.Pad.Bottom, s.KH, s.Stride, s.Dilation),
		outLen(w+s.Pad.Left+s.Pad.Right, s.KW, s.Stride, s.Dilation)
}

func outLen(n, k, stride, dil int) int {
	if n -= dil*(k-1) + 1; n >= 0 {
		return n/stride + 1
	}
	return 0
}

// Input is what a convolution or a norm reads: one NHWC tensor, or two that
// are taken as concatenated along the channels, seen through a function.
// The value read is
//
//	Act(x*Scale[n][c] + Shift[n][c])
//
// which is a group norm and its activation when Scale and Shift come from
// [GroupNorm]. With Upsample every pixel is read as a 2 by 2 block.
// Zero padding is applied after the function. With Norm every pixel's channels
// are normalised instead, as by [LayerNorm] or [RMSNorm] and to the same bits,
// without a pass of its own.
type Input struct {
	X  []float32 // (N, H, W, C)
	C  int
	X2 []float32 // (N, H, W, C2), nil for none
	C2 int

	Scale, Shift []float32 // (N, C+C2), nil for the identity
	Act          Activation
	Upsample     bool // nearest, factor 2

	Norm *RowNorm // with X alone: no X2, Scale, Act or Upsample

	stuff int // zeros between pixels: factor of a transposed convolution, 0 = 1
}

func (in *Input) channels() int { return in.C + in.C2 }

func (in *Input) plain() bool {
	return in.X2 == nil && in.Scale == nil && in.Norm == nil && in.Act == Identity && !in.Upsample && in.stuff <= 1
}

// factor is the growth of the image when it is read.
func (in *Input) size(h, w int) (int, int) {
	if in.Upsample {
		return 2 * h, 2 * w
	}
	if in.stuff > 1 {
		return (h-1)*in.stuff + 1, (w-1)*in.stuff + 1
	}
	return h, w
}

// Epilogue is applied to the output of a layer before it is stored:
//
//	dst = Act((y + bias + RowBias[n] + Residual) * Scale)
//
// or, with a Gate, which goes with Residual alone,
//
//	dst = Residual + (y + bias)*Gate[n]
//
// to the same bits as [Gate]. The zero value stores y + bias.
type Epilogue struct {
	Residual []float32 // laid out like dst; may be dst itself
	RowBias  []float32 // (N, Cout): one vector per image, for time embeddings
	Scale    float32   // 0 means 1
	Act      Activation
	Gate     []float32 // (Cout), or (N, Cout) for one vector per image; linear layers only
}

func (e *Epilogue) after() bool { return e.Act != Identity || e.Scale != 0 && e.Scale != 1 }

// scaled tells whether the output is multiplied at the end.
func (e *Epilogue) scaled() bool { return e.Scale != 0 && e.Scale != 1 }

// perImage tells whether images have parameters of their own.
func (e *Epilogue) perImage(cout int) bool { return e.RowBias != nil || len(e.Gate) > cout }

func (e *Epilogue) check(n, cout, size int) {
	if e.Residual != nil {
		need("residual", e.Residual, size)
	}
	if e.RowBias != nil {
		need("row bias", e.RowBias, n*cout)
	}
	if vector("gate", e.Gate, n, cout) != nil && (e.Residual == nil || e.RowBias != nil || e.after()) {
		panic("kernels: a gate goes with a residual alone")
	}
}

// Conv is a convolution layer with packed weights. It is immutable and may be
// run by many pools at once. Its weight is kept once: as it is packed for the
// method, in the layer's data type.
type Conv struct {
	spec   ConvSpec
	tier   Tier
	dtype  DType
	ops    *ops
	w      []float32 // [panel][k][nr], for Winograd [panel][channel][tap][nr]
	w16    []uint16  // the same of a widened type, and for Winograd in bfloat16
	u      []float32 // instead of both: all weights as Winograd transforms them
	bias   []float32 // padded to whole panels
	pieces []piece
	blocks []kblock
	k      int
	panels int
	slots  int // 4-byte values of a pixel in the buffer that is read
	hasB   bool
	method method
}

// piece is one segment of K: slots c0.. of the run of kernel taps that
// begins at (ky, kx).
type piece struct{ ky, kx, c0, len int }

// kblock is the pieces that one pass over a panel covers.
type kblock struct{ first, n, k0 int }

// NewConv packs a layer. weight is (Cout, Cin, KH, KW); bias is (Cout) or nil.
// It panics if the sizes do not agree.
func NewConv(tier Tier, dtype DType, spec ConvSpec, weight, bias []float32) *Conv {
	spec = spec.normal()
	return newConv(tier, dtype, spec, weight, bias, methodOf(tier, dtype, spec))
}

func newConv(tier Tier, dtype DType, spec ConvSpec, weight, bias []float32, how method) *Conv {
	o := opsOf(tier)
	if how == direct {
		o = layerOps(tier, dtype, spec.Cout)
	}
	return newConvOn(o, tier, dtype, spec, weight, bias, how)
}

func newConvOn(o *ops, tier Tier, dtype DType, spec ConvSpec, weight, bias []float32, how method) *Conv {
	width := spec.Cin * spec.KH * spec.KW
	if len(weight) != spec.Cout*width {
		panic(fmt.Sprintf("kernels: convolution weight has %d values, shape (%d,%d,%d,%d) needs %d",
			len(weight), spec.Cout, spec.Cin, spec.KH, spec.KW, spec.Cout*width))
	}
	c, _ := packConvOn(o, tier, dtype, spec, rowsOf(weight, width), bias, how) // memory is always there
	return c
}

// cut divides K into segments and passes. Neighbouring taps of a kernel row
// are neighbours in NHWC memory, so without dilation they are one segment.
func (c *Conv) cut() {
	s := c.spec
	runs, length := s.KW, c.slots
	if s.Dilation == 1 {
		runs, length = 1, s.KW*c.slots
	}
	parts := ceilDiv(length, c.ops.kc)
	step := ceilDiv(length, parts)
	k0, room := 0, 0
	for ky := range s.KH {
		for kx := range runs {
			for c0 := 0; c0 < length; c0 += step {
				n := min(step, length-c0)
				if n > room {
					c.blocks = append(c.blocks, kblock{first: len(c.pieces), k0: k0})
					room = c.ops.kc
				}
				c.pieces = append(c.pieces, piece{ky, kx, c0, n})
				c.blocks[len(c.blocks)-1].n++
				k0 += n
				room -= n
			}
		}
	}
}

// Spec gives the layer's shape.
func (c *Conv) Spec() ConvSpec { return c.spec }

// widen is how the layer's 16-bit weights become float32.
func (c *Conv) widen() func(dst []float32, src []uint16) {
	if c.dtype == F32OnF16 {
		return c.ops.widenF16
	}
	return c.ops.widenBF16
}

// Bytes gives the size of the packed weights: what the layer keeps in memory.
func (c *Conv) Bytes() int {
	return 4*(len(c.w)+len(c.u)) + 2*len(c.w16)
}

// MACs gives the multiply-adds of a run by definition, whatever the method.
func (c *Conv) MACs(n, h, w int) int {
	ho, wo := c.spec.OutSize(h, w)
	return n * ho * wo * c.spec.Cout * c.spec.Cin * c.spec.KH * c.spec.KW
}

// convPlan is how a run is divided. It depends on the number of workers only
// in what is shared, never in what is computed.
type convPlan struct {
	n, hi, wi   int // images and their size as read
	pad         Pad
	ho, wo      int
	th, tw      int // output rectangle of a block
	bh, bw      int // its input rectangle, padding included
	yb, xb      int // blocks per image
	direct      bool
	local       bool
	pitch       int // pixels between rows of the buffer that is read
	groups      int // column groups that a block is divided into
	shared      int // float32 of the shared padded input
	perWorker   int
	rowN        int // rows of a block
	tmp, amx    int // float32 per worker for rows before rounding and for tiles
	wide        int // float32 per worker for a part of a panel, widened
	stride, dil int
}

// A block is about blockPixels of output, fewer where their input would not
// stay in the second level cache while the panels pass by.
const (
	blockPixels = 240
	blockSlots  = 64 << 10
)

func (c *Conv) plan(workers, n, h, w int, pad Pad, in *Input, perImage bool) convPlan {
	s := c.spec
	s.Pad = pad
	if s.KH == 1 && s.KW == 1 && s.Stride == 1 && s.Pad == (Pad{}) && !in.Upsample && in.stuff <= 1 {
		// Pixels are rows of a matrix: forget the picture.
		h, w = 1, h*w
		if in.Scale == nil && !perImage && (in.Norm == nil || !in.Norm.perImage(s.Cin)) {
			n, w = 1, n*w
		}
	}
	p := convPlan{n: n, pad: pad}
	p.hi, p.wi = in.size(h, w)
	p.ho, p.wo = s.OutSize(p.hi, p.wi)
	p.stride, p.dil = s.Stride, s.Dilation
	hp, wp := p.hi+s.Pad.Top+s.Pad.Bottom, p.wi+s.Pad.Left+s.Pad.Right
	spanH, spanW := s.Dilation*(s.KH-1)+1, s.Dilation*(s.KW-1)+1

	p.th, p.tw = 1, p.wo
	most := min(blockPixels, max(blockSlots/c.slots, 4*c.ops.mr))
	if p.wo > most*3/2 {
		p.tw = roundUp(ceilDiv(p.wo, ceilDiv(p.wo, most)), c.ops.mr)
	} else {
		p.th = min(max(most*5/4/p.wo, 1), p.ho)
		p.th = ceilDiv(p.ho, ceilDiv(p.ho, p.th))
	}
	p.yb, p.xb = ceilDiv(p.ho, p.th), ceilDiv(p.wo, p.tw)
	p.bh, p.bw = (p.th-1)*s.Stride+spanH, (p.tw-1)*s.Stride+spanW
	blocks := p.n * p.yb * p.xb

	p.direct = in.plain() && s.Pad == (Pad{}) && c.dtype != BF16
	padded := hp * wp * c.slots
	fill := p.bh * p.bw * p.yb * p.xb * c.slots
	p.local = !p.direct && blocks >= 4*workers && fill*2 <= padded*3
	p.groups = 1
	if blocks < 4*workers && workers > 1 {
		p.groups = min(c.panels, ceilDiv(4*workers, blocks))
	}
	switch {
	case p.direct:
		p.pitch = p.wi
	case p.local:
		p.pitch = p.bw
		p.perWorker = p.bh * p.bw * c.slots
	default:
		p.pitch = wp
		p.shared = p.n * padded
	}
	p.rowN = p.th * p.tw
	if c.ops.pairs > 0 {
		p.tmp = roundUp(p.pitch*s.Cin, 16)
		p.amx = roundUp(amxWork(p.th, p.tw), 16)
	}
	if c.w16 != nil {
		p.wide = roundUp(min(c.ops.kc, c.k)*c.ops.nr, 16)
	}
	return p
}

func (p *convPlan) total(c *Conv, workers int) int {
	perWorker := roundUp(p.perWorker, 16) + p.tmp + p.amx + p.wide + roundUp(p.rowN*c.ops.nr, 16) + roundUp(c.panels*c.ops.nr, 16)
	return alignSlack + roundUp(p.shared, 16) + workers*perWorker +
		roundUp(2*roundUp(p.rowN, c.ops.mr), 16) + roundUp(4*len(c.pieces), 16)
}

// Scratch gives the float32 that Run needs as scratch for n images of h by w
// (before upsampling) on a pool of that many workers. It covers every Input
// and Epilogue with that value of Upsample.
func (c *Conv) Scratch(workers, n, h, w int, upsample bool) int {
	return c.scratch(workers, n, h, w, c.spec.Pad, Input{Upsample: upsample})
}

func (c *Conv) scratch(workers, n, h, w int, pad Pad, in Input) int {
	if c.method != direct {
		p := winoPlanOf(c, workers, n, h, w, pad, &in)
		return p.total(c, workers)
	}
	worst := 0
	for _, act := range []Activation{Identity, SiLU} {
		for _, rowBias := range []bool{false, true} {
			in.Act = act
			in.Scale = nil
			if rowBias {
				in.Scale = []float32{}
			}
			p := c.plan(workers, n, h, w, pad, &in, rowBias)
			worst = max(worst, p.total(c, workers))
		}
	}
	return worst
}

// Run computes the layer for n images of h by w (the size of in.X, before
// upsampling) into dst (N, Ho, Wo, Cout). dst may not overlap the input.
// scratch holds at least c.Scratch float32 and is garbage afterwards.
// It panics if sizes or tiers do not agree.
func (c *Conv) Run(p *Pool, dst []float32, in Input, n, h, w int, scratch []float32, ep Epilogue) {
	c.run(p, dst, in, n, h, w, c.spec.Pad, scratch, ep)
}

func (c *Conv) run(p *Pool, dst []float32, in Input, n, h, w int, pad Pad, scratch []float32, ep Epilogue) {
	if p.tier != c.tier {
		panic(fmt.Sprintf("kernels: a layer packed for %v runs on a pool of %v", c.tier, p.tier))
	}
	in.check(n, h, w, c.spec.Cin)
	hi, wi := in.size(h, w)
	spec := c.spec
	spec.Pad = pad
	ho, wo := spec.OutSize(hi, wi)
	if ho < 1 || wo < 1 {
		panic(fmt.Sprintf("kernels: input %dx%d is smaller than the kernel of %+v", hi, wi, c.spec))
	}
	need("dst", dst, n*ho*wo*c.spec.Cout)
	ep.check(n, c.spec.Cout, n*ho*wo*c.spec.Cout)
	if ep.Gate != nil && c.method != direct {
		panic("kernels: a gate goes with a linear layer")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.method != direct {
		p.wino.run(p, c, dst, &in, n, h, w, pad, scratch, &ep)
		p.wino = winoJob{}
		return
	}
	j := &p.conv
	j.c, j.in, j.ep, j.dst = c, in, ep, dst
	j.plan = c.plan(p.workers, n, h, w, pad, &in, ep.perImage(c.spec.Cout))
	j.setup(p, scratch)
	if j.plan.shared > 0 {
		j.filling = true
		p.run(j.plan.n*j.fillBlocks(), j)
	}
	j.filling = false
	p.run(j.plan.n*j.plan.yb*j.plan.xb*j.plan.groups, j)
	*j = convJob{}
}

func (in *Input) check(n, h, w, c int) {
	if in.channels() != c {
		panic(fmt.Sprintf("kernels: input has %d+%d channels, layer needs %d", in.C, in.C2, c))
	}
	need("input", in.X, n*h*w*in.C)
	if in.C2 > 0 {
		need("second input", in.X2, n*h*w*in.C2)
	}
	if in.Scale != nil {
		need("input scale", in.Scale, n*c)
		need("input shift", in.Shift, n*c)
	}
	if in.Norm != nil {
		if in.X2 != nil || in.Scale != nil || in.Act != Identity || in.Upsample {
			panic("kernels: a row norm reads one tensor as it is")
		}
		in.Norm.check(n, c)
	}
}

func need(what string, s []float32, n int) {
	if len(s) < n {
		panic(fmt.Sprintf("kernels: %s has %d values, needs %d", what, len(s), n))
	}
}

type convJob struct {
	c    *Conv
	in   Input
	ep   Epilogue
	dst  []float32
	plan convPlan

	filling bool
	shared  []float32
	local   []float32
	tmp     []float32
	amx     []float32
	wide    []float32
	tail    []float32
	biases  []float32
	rows    []int64
	segs    []int64
}

func (j *convJob) setup(p *Pool, scratch []float32) {
	c, pl := j.c, &j.plan
	need("scratch", scratch, pl.total(c, p.workers))
	cv := carve(scratch)
	j.shared = cv.take(pl.shared)
	j.local = cv.take(p.workers * roundUp(pl.perWorker, 16))
	j.tmp, j.amx, j.wide = cv.take(p.workers*pl.tmp), cv.take(p.workers*pl.amx), cv.take(p.workers*pl.wide)
	j.tail = cv.take(p.workers * roundUp(pl.rowN*c.ops.nr, 16))
	j.biases = cv.take(p.workers * roundUp(c.panels*c.ops.nr, 16))
	nRows := roundUp(pl.rowN, c.ops.mr)
	j.rows = int64s(cv.take(2*nRows), nRows)
	j.segs = int64s(cv.take(4*len(c.pieces)), 2*len(c.pieces))
	px := int64(c.slots) * 4
	for i := range j.rows {
		m := min(i, pl.rowN-1)
		y, x := m/pl.tw, m%pl.tw
		j.rows[i] = int64((y*pl.pitch+x)*pl.stride) * px
	}
	for i, q := range c.pieces {
		j.segs[2*i] = int64((q.ky*pl.pitch+q.kx)*pl.dil)*px + int64(q.c0)*4
		j.segs[2*i+1] = int64(q.len)
	}
}

// fillRowsPerItem balances the fill of the shared padded input.
const fillRowsPerItem = 4

func (j *convJob) paddedHeight() int {
	return j.plan.hi + j.plan.pad.Top + j.plan.pad.Bottom
}

func (j *convJob) fillBlocks() int { return ceilDiv(j.paddedHeight(), fillRowsPerItem) }

func (j *convJob) do(worker, item int) {
	c, pl := j.c, &j.plan
	s := &c.spec
	if j.filling {
		hp, per := j.paddedHeight(), j.fillBlocks()
		n, y := item/per, item%per*fillRowsPerItem
		j.fill(worker, j.shared[(n*hp+y)*pl.pitch*c.slots:], n, y, min(y+fillRowsPerItem, hp), 0, pl.pitch)
		return
	}
	group := item % pl.groups
	item /= pl.groups
	xb := item % pl.xb
	item /= pl.xb
	yb, n := item%pl.yb, item/pl.yb
	y0, x0 := yb*pl.th, xb*pl.tw
	th, tw := min(pl.th, pl.ho-y0), min(pl.tw, pl.wo-x0)

	var base unsafe.Pointer
	switch {
	case pl.direct:
		base = unsafe.Pointer(&j.in.X[((n*pl.hi+y0*pl.stride)*pl.wi+x0*pl.stride)*s.Cin])
	case pl.local:
		size := roundUp(pl.perWorker, 16)
		buf := j.local[worker*size : (worker+1)*size]
		bh := (th-1)*pl.stride + pl.dil*(s.KH-1) + 1
		bw := (tw-1)*pl.stride + pl.dil*(s.KW-1) + 1
		j.fill(worker, buf, n, y0*pl.stride, y0*pl.stride+bh, x0*pl.stride, x0*pl.stride+bw)
		base = ptr(buf)
	default:
		hp := j.paddedHeight()
		base = unsafe.Pointer(&j.shared[((n*hp+y0*pl.stride)*pl.pitch+x0*pl.stride)*c.slots])
	}
	bias := c.bias
	hasBias := c.hasB
	if j.ep.RowBias != nil {
		size := roundUp(c.panels*c.ops.nr, 16)
		bias = j.biases[worker*size : (worker+1)*size]
		copy(bias, c.bias)
		for i, v := range j.ep.RowBias[n*s.Cout : (n+1)*s.Cout] {
			bias[i] += v
		}
		hasBias = true
	}
	first, last := group*c.panels/pl.groups, (group+1)*c.panels/pl.groups
	out := ((n*pl.ho+y0)*pl.wo + x0) * s.Cout
	size := roundUp(pl.rowN*c.ops.nr, 16)
	t := tilePass{
		o: c.ops, m: th * tw, base: base, rows: &j.rows[0], segs: j.segs, blocks: c.blocks,
		w: c.w, k: c.k, cols: s.Cout, dst: j.dst[out:], tail: j.tail[worker*size : (worker+1)*size],
	}
	if c.w16 != nil {
		t.w16, t.wide, t.widen = c.w16, j.wide[worker*pl.wide:(worker+1)*pl.wide], c.widen()
	}
	if c.ops.pairs > 0 {
		px := c.slots * slotBytes * pl.stride
		t.amx = amxLayout{th: th, tw: tw, row: pl.pitch * px, pix: px, work: j.amx[worker*pl.amx : (worker+1)*pl.amx]}
	}
	if hasBias {
		t.bias = bias
	}
	if j.ep.Residual != nil {
		t.res = j.ep.Residual[out:]
	}
	if j.ep.Gate != nil {
		t.gate = vectorRow(j.ep.Gate, n, s.Cout)
	}
	if !j.ep.scaled() {
		t.act = j.ep.Act
	}
	t.run(first, last)
	if j.ep.scaled() {
		finish(c.ops, &j.ep, j.dst[out:], th*tw, s.Cout, first*c.ops.nr, min(last*c.ops.nr, s.Cout))
	}
}

// fill writes the rectangle [y0,y1) by [x0,x1) of image n of the padded input.
func (j *convJob) fill(worker int, dst []float32, n, y0, y1, x0, x1 int) {
	c, pl := j.c, &j.plan
	if c.ops.pairs > 0 {
		fillPairs(c.ops, dst, c.slots, j.tmp[worker*pl.tmp:(worker+1)*pl.tmp], &j.in, n, pl.hi, pl.wi, pl.pad, c.spec.Cin,
			y0, y1, x0, x1, pl.pitch)
		return
	}
	fillInput(c.ops, dst, &j.in, n, pl.hi, pl.wi, pl.pad, c.spec.Cin, y0, y1, x0, x1, pl.pitch, c.dtype)
}

// tilePass is m rows of output times a range of column panels.
type tilePass struct {
	o      *ops
	m      int
	base   unsafe.Pointer
	rows   *int64
	segs   []int64
	blocks []kblock
	w      []float32
	k      int
	cols   int // columns of dst, its row length
	dst    []float32
	tail   []float32 // m*nr, for the last panel when cols is no multiple of nr
	bias   []float32
	res    []float32
	gate   []float32  // of the columns: dst = res + sum*gate
	act    Activation // at the end
	half   []uint16   // m rows of halfLd bfloat16 are written instead of dst
	halfLd int
	acc    bool // dst holds the start of the sums
	amx    amxLayout

	// Weights in 16 bits instead of w, widened into wide by widen.
	w16   []uint16
	wide  []float32
	widen func(dst []float32, src []uint16)
}

func (t *tilePass) run(first, last int) {
	if t.o.pairs == 2*tileRows {
		t.runAMX(first, last)
		return
	}
	nr := t.o.nr
	for pn := first; pn < last; pn++ {
		j0 := pn * nr
		inPlace := j0+nr <= t.cols && t.gate == nil && t.half == nil
		var g gemmArgs
		if inPlace {
			g.c, g.ldc = unsafe.Pointer(&t.dst[j0]), int64(t.cols)*4
		} else {
			g.c, g.ldc = ptr(t.tail), int64(nr)*4
		}
		g.a, g.rows = t.base, t.rows
		if t.acc {
			g.acc = 1
		}
		for bi, b := range t.blocks {
			if t.w16 == nil {
				g.b = unsafe.Pointer(&t.w[(pn*t.k+b.k0)*nr])
			} else {
				to := t.k
				if bi+1 < len(t.blocks) {
					to = t.blocks[bi+1].k0
				}
				t.widen(t.wide, t.w16[(pn*t.k+b.k0)*nr:(pn*t.k+to)*nr])
				g.b = ptr(t.wide)
			}
			g.segs = (*segment)(unsafe.Pointer(&t.segs[2*b.first]))
			g.nseg = int64(b.n)
			g.res = nil
			if bi == 0 && t.res != nil && inPlace {
				// In the first pass: res may be dst.
				g.res = unsafe.Pointer(&t.res[j0])
			}
			if bi > 0 {
				// A sum of its own, added at the end: errors grow with the length
				// of a block, not of all of K.
				g.res, g.acc = g.c, 0
			}
			if bi == len(t.blocks)-1 && t.bias != nil {
				g.bias = &t.bias[j0]
			}
			t.o.gemmRows(&g, t.m)
		}
		t.finish(j0, inPlace)
	}
}

// finish brings a panel from where the kernel left it to where it belongs.
func (t *tilePass) finish(j0 int, inPlace bool) {
	o, nr := t.o, t.o.nr
	n := min(nr, t.cols-j0)
	switch {
	case t.half != nil:
		if t.act != Identity {
			o.affineRows(&t.tail[0], &t.tail[0], nr, nr, t.m, n, nil, nil, t.act)
		}
		o.toBF16Rows(&t.half[j0], &t.tail[0], t.halfLd*2, nr*4, t.m, n)
		return
	case t.gate != nil:
		o.mulAddRows(&t.dst[j0], &t.res[j0], &t.tail[0], &t.gate[j0], t.cols*4, t.cols*4, nr*4, 0, t.m, n)
		return
	case !inPlace:
		for i := range t.m {
			src := t.tail[i*nr : i*nr+n]
			out := t.dst[i*t.cols+j0 : i*t.cols+j0+n]
			if t.res != nil {
				for q, v := range t.res[i*t.cols+j0 : i*t.cols+j0+n] {
					out[q] = src[q] + v
				}
			} else {
				copy(out, src)
			}
		}
	}
	if t.act != Identity {
		o.affineRows(&t.dst[j0], &t.dst[j0], t.cols, t.cols, t.m, n, nil, nil, t.act)
	}
}

// finish applies the part of an epilogue that the kernel does not.
func finish(o *ops, ep *Epilogue, dst []float32, m, cols, j0, j1 int) {
	if !ep.after() {
		return
	}
	if j0 == 0 && j1 == cols {
		m, j1 = 1, m*cols
	}
	for i := range m {
		row := dst[i*cols+j0 : i*cols+j1]
		if ep.Scale != 0 && ep.Scale != 1 {
			o.scale(row, ep.Scale)
		}
		if ep.Act != Identity {
			o.act(row, row, ep.Act)
		}
	}
}

// fillInput writes the rectangle [y0,y1) by [x0,x1) of image n of the padded
// input to dst, rows apart by pitch pixels of c values.
func fillInput(o *ops, dst []float32, in *Input, n, hi, wi int, pad Pad, c, y0, y1, x0, x1, pitch int, dtype DType) {
	step := max(in.stuff, 1)
	hs, ws := (hi-1)/step+1, (wi-1)/step+1
	if in.Upsample {
		hs, ws = hi/2, wi/2
	}
	from, to := max(x0, pad.Left), min(x1, pad.Left+wi)
	to = max(from, to)
	for y := y0; y < y1; y++ {
		row := dst[(y-y0)*pitch*c : ((y-y0)*pitch+x1-x0)*c]
		iy := y - pad.Top
		if iy < 0 || iy >= hi || iy%step != 0 || from >= x1 || to <= x0 {
			clear(row)
			continue
		}
		clear(row[:(from-x0)*c])
		clear(row[(to-x0)*c:])
		mid := row[(from-x0)*c : (to-x0)*c]
		ix := from - pad.Left
		sy, scale := iy/step, 1
		if in.Upsample {
			sy, scale = iy/2, 2
		}
		if step > 1 {
			clear(mid)
		}
		if in.Norm != nil {
			for px := range to - from {
				at := ((n*hs+sy)*ws + ix + px) * c
				in.Norm.row(o, mid[px*c:(px+1)*c], in.X[at:at+c], n)
			}
			if dtype == BF16 {
				o.roundBF16(mid)
			}
			continue
		}
		ch := 0
		for part := range 2 {
			x, pc := in.X, in.C
			if part == 1 {
				x, pc = in.X2, in.C2
			}
			if pc == 0 {
				continue
			}
			src := x[(n*hs+sy)*ws*pc : (n*hs+sy+1)*ws*pc]
			var sc, sh *float32
			if in.Scale != nil {
				sc, sh = &in.Scale[n*c+ch], &in.Shift[n*c+ch]
			}
			switch {
			case in.Upsample:
				for odd := range 2 {
					// First position of this parity at or after ix.
					q := ix + (ix+odd)&1
					cnt := (ix + (to - from) - q + 1) / scale
					if cnt > 0 {
						copyRows(o, mid[(q-ix)*c+ch:], src[q/2*pc:], 2*c, pc, cnt, pc, sc, sh, in.Act)
					}
				}
			case step > 1:
				q := ceilDiv(ix, step)
				cnt := (ix+(to-from)-1)/step - q + 1
				if cnt > 0 {
					copyRows(o, mid[(q*step-ix)*c+ch:], src[q*pc:], step*c, pc, cnt, pc, sc, sh, in.Act)
				}
			default:
				copyRows(o, mid[ch:], src[ix*pc:], c, pc, to-from, pc, sc, sh, in.Act)
			}
			ch += pc
		}
		if dtype == BF16 {
			o.roundBF16(mid)
		}
	}
}

func copyRows(o *ops, dst, src []float32, dstStride, srcStride, n, c int, scale, shift *float32, act Activation) {
	if n <= 0 {
		return
	}
	if scale == nil && act == Identity {
		if dstStride == c && srcStride == c {
			copy(dst[:n*c], src)
			return
		}
		for i := range n {
			copy(dst[i*dstStride:i*dstStride+c], src[i*srcStride:])
		}
		return
	}
	_, _ = dst[(n-1)*dstStride+c-1], src[(n-1)*srcStride+c-1]
	o.affineRows(&dst[0], &src[0], dstStride, srcStride, n, c, scale, shift, act)
}
