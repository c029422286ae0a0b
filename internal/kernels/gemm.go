package kernels

import "unsafe"

// All matrix work goes through one kernel shape: a tile of mr rows by nr
// columns of the output keeps its sums in registers and walks K in segments.
// A row of the left operand is any address, and a segment is an offset that
// holds for all rows of the call, so the same kernel is a matrix product
// (one segment), a direct convolution (a row is an output pixel's first input
// pixel in the padded NHWC image, a segment is one kernel row) and every
// strided or dilated form of it. The right operand is packed in panels of nr
// columns: [column panel][k][nr].

// segment is a run of consecutive k.
type segment struct {
	off int64 // bytes from a row's address
	len int64 // elements (pairs of elements for bf16 kernels)
}

// gemmArgs is what a kernel call needs. The assembly knows its layout.
type gemmArgs struct {
	c     unsafe.Pointer // first output row: nr float32 are written per row
	ldc   int64          // bytes between output rows
	a     unsafe.Pointer // base of the row offsets
	rows  *int64         // row offsets in bytes, tiles*mr of them
	tiles int64          // tiles of mr rows, one below the other
	b     unsafe.Pointer // packed panel at this call's first k
	segs  *segment
	nseg  int64
	bias  *float32       // nr values added at the end, or nil
	res   unsafe.Pointer // added at the end, laid out like c, or nil
	acc   int64          // 1: the sums start from c
	ahead int64          // bytes from b to the panel that the next call reads
}

// ops holds the primitives of a tier. Everything above them is shared.
type ops struct {
	tier   Tier // of the matrix kernels, see gemmTiles
	mr, nr int
	pairs  int // bfloat16 kernels: what channels are padded to; 0 for float32
	// kc is the number of k that one pass over a panel covers, so that the
	// panel's part stays in the first-level cache.
	kc int

	// affineRows writes n rows of c values: dst = act(src*scale + shift),
	// rows apart by dstStride and srcStride values.
	affineRows func(dst, src *float32, dstStride, srcStride, n, c int, scale, shift *float32, act Activation)
	// act is dst[i] = act(src[i]).
	act func(dst, src []float32, act Activation)
	// actVJP is dst[i] = dy[i] * act'(x[i]).
	actVJP func(dst, dy, x []float32, act Activation)
	// chanSums adds over n rows of c values, rows apart by stride:
	// sum[j] = sum of (x - shift[j]), sq[j] = sum of (x - shift[j])^2.
	chanSums func(sum, sq, src, shift *float32, stride, n, c int)
	// expRow replaces x by exp(x*scale - m) and gives the sum.
	expRow func(x []float32, scale, m float32) float32
	// maxRow gives the largest of x, -Inf for none.
	maxRow func(x []float32) float32
	// softmaxRows treats rows of n values, a multiple of 32 and pitch bytes
	// apart: top = max(top, largest*scale), x = exp(x*scale - top) and sum =
	// the sum of x. The new top must be finite.
	softmaxRows func(x *float32, pitch, rows, n int, scale float32, top, sum *float32)
	// softmaxPairs is softmaxRows that leaves n bfloat16 at the row's begin.
	softmaxPairs func(x *float32, pitch, rows, n int, scale float32, top, sum *float32)
	// transpose8 writes 8 rows of n values, a multiple of 8, as n rows of 8.
	// Strides are in bytes.
	transpose8 func(dst, src *float32, dstStride, srcStride, n int)
	// add is dst = (a + b) * scale.
	add func(dst, a, b []float32, scale float32)
	// scale is dst *= s.
	scale func(dst []float32, s float32)
	// mulAddRows writes rows of c values: dst = x + y*g, or y*g where x is nil.
	// Row lengths are in bytes.
	mulAddRows func(dst, x, y, g *float32, ldDst, ldX, ldY, ldG, rows, c int)
	// moments gives the mean of x and the sum of squared distances from it.
	moments func(x []float32) (mean, m2 float32)
	// sumSq gives the sum of squares.
	sumSq func(x []float32) float32
	// normRow is dst = (x - mean)*rstd*gamma + beta; gamma, beta may be nil.
	normRow func(dst, x []float32, mean, rstd float32, gamma, beta []float32)
	// winoIn and winoOut are the transforms of F(m by m, 3 by 3).
	winoIn  func(m int, dst, src *float32, dstStep, rowStep, pixStep, tileStep, c, tiles, skip int)
	winoOut func(m int, dst, src, bias, res *float32, mStep, rowStep, pixStep, rows, cols, c int)
	// winoWeights transforms 3 by 3 kernels for n columns, a multiple of 8, by
	// two rows of G: for rows = 0 the first and the last, else 2*rows-1 and
	// 2*rows. src has 9 rows of n taps; value k of the 2(m+2) goes to
	// dst + k*step bytes.
	winoWeights func(m, rows int, dst *float32, step int, src *float32, n int)
	// roundBF16 rounds in place, toBF16 to half the width; toBF16Rows rounds
	// rows of c values, row lengths in bytes.
	roundBF16  func(x []float32)
	toBF16     func(dst []uint16, src []float32)
	toBF16Rows func(dst *uint16, src *float32, ldDst, ldSrc, rows, c int)
	// widenBF16 and widenF16 widen 16-bit values, a multiple of 8 of them.
	widenBF16, widenF16 func(dst []float32, src []uint16)
	// toF16 rounds to IEEE half precision.
	toF16 func(dst []uint16, src []float32)
	// pairRows writes rows of n slots, a multiple of 8, with a row of x in the
	// lower halves and the next one, ld bytes further, in the upper ones.
	pairRows func(dst *uint32, x *float32, ld, rows, n int)
	// depthwise computes one pixel of a depthwise convolution: see its twin.
	depthwise func(dst, src, w, bias *float32, taps *tapAt, n, c int)
	// dgemm adds the product of an mr-by-k and a k-by-nr float64 tile.
	dgemm func(c *float64, ldc int, a *float64, lda int, b *float64, k int)
}

// mulAdd is mulAddRows for one row.
func (o *ops) mulAdd(dst, x, y, g []float32) {
	n := len(dst)
	if n == 0 {
		return
	}
	_, _ = y[n-1], g[n-1]
	var first *float32
	if x != nil {
		first = &x[:n][0]
	}
	o.mulAddRows(&dst[0], first, &y[0], &g[0], 0, 0, 0, 0, 1, n)
}

func opsOf(t Tier) *ops {
	if t == Portable {
		return &portableOps
	}
	return tierOps(t)
}

// layerOps is opsOf for a layer's matrix kernels.
func layerOps(t Tier, d DType, cout int) *ops {
	if t >= AVX2 && cout <= 8 && (d != BF16 || t < AVX512BF16) {
		return fewOps()
	}
	if d == BF16 && t >= AVX512BF16 {
		return bf16Ops(t)
	}
	return opsOf(t)
}

// Sets of kernels that are no tier. The twins are run by the tests in place of
// those the machine lacks.
const (
	narrow Tier = numTiers + iota
	twinBF16
	twinAMX
)

// maxMR is the most rows that a tile of any set has.
const maxMR = 16

func ceilDiv(a, b int) int { return (a + b - 1) / b }

func roundUp(a, b int) int { return ceilDiv(a, b) * b }

// f32At views n float32 at p.
func f32At(p unsafe.Pointer, n int) []float32 { return unsafe.Slice((*float32)(p), n) }

func ptr(s []float32) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(s)) }

// gemmPortable is the twin of the assembly kernels for any tile shape.
func gemmPortable(g *gemmArgs, mr, nr int) {
	var sums [14 * 64]float32
	rows := unsafe.Slice(g.rows, int(g.tiles)*mr)
	segs := unsafe.Slice(g.segs, int(g.nseg))
	for t := range int(g.tiles) {
		for i := range mr {
			off := int64(t*mr+i) * g.ldc
			acc := sums[i*nr : (i+1)*nr]
			clear(acc)
			if g.acc != 0 {
				copy(acc, f32At(unsafe.Add(g.c, off), nr))
			}
			row := rows[t*mr+i]
			at := 0
			for _, s := range segs {
				a := f32At(unsafe.Add(g.a, row+s.off), int(s.len))
				bs := f32At(unsafe.Add(g.b, at), int(s.len)*nr)
				for k, av := range a {
					for j, bv := range bs[k*nr : k*nr+nr] {
						acc[j] += float32(av * bv)
					}
				}
				at += int(s.len) * nr * 4
			}
			if g.bias != nil {
				for j, v := range unsafe.Slice(g.bias, nr) {
					acc[j] += v
				}
			}
			if g.res != nil {
				for j, v := range f32At(unsafe.Add(g.res, off), nr) {
					acc[j] += v
				}
			}
			copy(f32At(unsafe.Add(g.c, off), nr), acc)
		}
	}
}

// gemmRows runs one panel over m rows, divided into tiles of two sizes as
// equal as can be: a tile of one or two rows has too few sums to keep the
// multipliers busy.
func (o *ops) gemmRows(g *gemmArgs, m int) {
	n := ceilDiv(m, o.mr)
	small := m / n
	large := m - small*n // tiles of small+1 rows
	t := *g
	for _, s := range unsafe.Slice(g.segs, int(g.nseg)) {
		t.ahead += s.len * int64(o.nr) * 4
	}
	if large > 0 {
		t.tiles = int64(large)
		gemmTiles(o.tier, small+1, &t)
		done := large * (small + 1)
		t.c = unsafe.Add(g.c, int64(done)*g.ldc)
		if g.res != nil {
			t.res = unsafe.Add(g.res, int64(done)*g.ldc)
		}
		t.rows = (*int64)(unsafe.Add(unsafe.Pointer(g.rows), done*8))
	}
	t.tiles = int64(n - large)
	gemmTiles(o.tier, small, &t)
}

// alignedFloats allocates n float32 at a 64-byte boundary with slack behind.
func alignedFloats(n int) []float32 {
	s := make([]float32, n+32)
	return align64(s)[:n]
}

// align64 drops the values in front of the next 64-byte boundary.
func align64(s []float32) []float32 {
	if len(s) == 0 {
		return s
	}
	off := int(-uintptr(ptr(s))&63) / 4
	return s[min(off, len(s)):]
}

// carver cuts scratch into aligned pieces.
type carver struct {
	s []float32
	n int
}

const alignSlack = 16

func (c *carver) take(n int) []float32 {
	n16 := roundUp(n, 16)
	if c.n+n16 > len(c.s) {
		panic("kernels: scratch is too small, size it with the matching Scratch function")
	}
	s := c.s[c.n : c.n+n16 : c.n+n16]
	c.n += n16
	return s[:n]
}

func carve(scratch []float32) carver { return carver{s: align64(scratch)} }

// uint32At is the place of value i, as the assembly takes it.
func uint32At(s []float32, i int) *uint32 { return (*uint32)(unsafe.Pointer(&s[i])) }

// int64s views float32 scratch as n int64; n*2 values are used.
func int64s(s []float32, n int) []int64 {
	if n == 0 {
		return nil
	}
	_ = s[2*n-1]
	return unsafe.Slice((*int64)(ptr(s)), n)
}

// roundBF16 rounds to the nearest bfloat16, ties to even.
func roundBF16(f float32) float32 {
	u := f32bits(f)
	if f != f {
		return f32frombits(0x7fc00000)
	}
	u += 0x7fff + u>>16&1
	return f32frombits(u &^ 0xffff)
}
