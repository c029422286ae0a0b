//go:build amd64 && !noasm

package kernels

import "unsafe"

//go:noescape
func gemmAVX2_1(args *gemmArgs)

//go:noescape
func gemmAVX2_2(args *gemmArgs)

//go:noescape
func gemmAVX2_3(args *gemmArgs)

//go:noescape
func gemmAVX2_4(args *gemmArgs)

//go:noescape
func gemmAVX2_5(args *gemmArgs)

//go:noescape
func gemmAVX2_6(args *gemmArgs)

//go:noescape
func dgemmAVX2(c *float64, ldc int, a *float64, lda int, b *float64, k int)

//go:noescape
func actSiLUAVX2(dst, src *float32, n int)

//go:noescape
func vjpSiLUAVX2(dst, dy, x *float32, n int)

//go:noescape
func vjpQuickGELUAVX2(dst, dy, x *float32, n int)

//go:noescape
func vjpGELUTanhAVX2(dst, dy, x *float32, n int)

//go:noescape
func actQuickGELUAVX2(dst, src *float32, n int)

//go:noescape
func actGELUTanhAVX2(dst, src *float32, n int)

//go:noescape
func actGELUAVX2(dst, src *float32, n int)

//go:noescape
func actReLUAVX2(dst, src *float32, n int)

//go:noescape
func affineAVX2(dst, src *float32, dstStride, srcStride, n, c int, scale, shift *float32)

//go:noescape
func affineSiLUAVX2(dst, src *float32, dstStride, srcStride, n, c int, scale, shift *float32)

//go:noescape
func rowsSiLUAVX2(dst, src *float32, dstStride, srcStride, n, c int, scale, shift *float32)

//go:noescape
func chanSumsAVX2(sum, sq, src, shift *float32, stride, n, c int)

//go:noescape
func expRowAVX2(x *float32, n int, scale, m float32) float32

//go:noescape
func softmaxRowsAVX2(x *float32, pitch, rows, n int, scale float32, top, sum *float32)

//go:noescape
func transpose8AVX2(dst, src *float32, dstStride, srcStride, n int)

//go:noescape
func maxRowAVX2(x *float32, n int) float32

//go:noescape
func addAVX2(dst, a, b *float32, n int, scale float32)

//go:noescape
func scaleAVX2(dst *float32, n int, s float32)

//go:noescape
func mulAddRowsAVX2(dst, x, y, gate *float32, ldDst, ldX, ldY, ldGate, rows, c int)

//go:noescape
func depthwiseAVX2(dst, src, w, bias *float32, taps *tapAt, n, c int)

//go:noescape
func widenBF16AVX2(dst *float32, src *uint16, n int)

//go:noescape
func widenF16AVX2(dst *float32, src *uint16, n int)

//go:noescape
func toF16AVX2(dst *uint16, src *float32, n int)

//go:noescape
func pairRowsAVX2(dst *uint32, x *float32, ld, rows, n int)

//go:noescape
func momentsAVX2(x *float32, n int, k float32) (sum, sq float32)

//go:noescape
func normRowAVX2(dst, x, gamma, beta *float32, n int, mean, rstd float32)

//go:noescape
func toBF16AVX2(dst *uint16, src *float32, n int)

//go:noescape
func roundBF16AVX2(x *float32, n int)

func gemmAVX2(m int, g *gemmArgs) {
	switch m {
	case 1:
		gemmAVX2_1(g)
	case 2:
		gemmAVX2_2(g)
	case 3:
		gemmAVX2_3(g)
	case 4:
		gemmAVX2_4(g)
	case 5:
		gemmAVX2_5(g)
	case 6:
		gemmAVX2_6(g)
	}
}

//go:noescape
func winoIn2AVX2(dst, src *float32, dstStep, rowStep, pixStep, tileStep, c, tiles, skip int)

//go:noescape
func winoIn4AVX2(dst, src *float32, dstStep, rowStep, pixStep, tileStep, c, tiles, skip int)

//go:noescape
func winoOut2AVX2(dst, m, bias, res *float32, mStep, rowStep, pixStep, rows, cols, c int)

//go:noescape
func winoOut4AVX2(dst, m, bias, res *float32, mStep, rowStep, pixStep, rows, cols, c int)

//go:noescape
func winoWeights2PairAVX2(dst *float32, step int, src *float32, n int, matrix, pair *float64)

//go:noescape
func winoWeights2EndsAVX2(dst *float32, step int, src *float32, n int, matrix, pair *float64)

//go:noescape
func winoWeights4PairAVX2(dst *float32, step int, src *float32, n int, matrix, pair *float64)

//go:noescape
func winoWeights4EndsAVX2(dst *float32, step int, src *float32, n int, matrix, pair *float64)

func winoWeightsSIMD(m, rows int, dst *float32, step int, src *float32, n int) {
	t := &winoTables[m/4]
	pair := &t.g[max(2*rows-1, 0)][0]
	switch {
	case m == 2 && rows == 0:
		winoWeights2EndsAVX2(dst, step, src, n, &t.g[0][0], pair)
	case m == 2:
		winoWeights2PairAVX2(dst, step, src, n, &t.g[0][0], pair)
	case rows == 0:
		winoWeights4EndsAVX2(dst, step, src, n, &t.g[0][0], pair)
	default:
		winoWeights4PairAVX2(dst, step, src, n, &t.g[0][0], pair)
	}
}

func winoInSIMD(m int, dst, src *float32, dstStep, rowStep, pixStep, tileStep, c, tiles, skip int) {
	if m == 2 {
		winoIn2AVX2(dst, src, dstStep, rowStep, pixStep, tileStep, c, tiles, skip)
	} else {
		winoIn4AVX2(dst, src, dstStep, rowStep, pixStep, tileStep, c, tiles, skip)
	}
}

func winoOutSIMD(m int, dst, src, bias, res *float32, mStep, rowStep, pixStep, rows, cols, c int) {
	if m == 2 {
		winoOut2AVX2(dst, src, bias, res, mStep, rowStep, pixStep, rows, cols, c)
	} else {
		winoOut4AVX2(dst, src, bias, res, mStep, rowStep, pixStep, rows, cols, c)
	}
}

//go:noescape
func gemmNarrow_1(args *gemmArgs)

//go:noescape
func gemmNarrow_2(args *gemmArgs)

//go:noescape
func gemmNarrow_3(args *gemmArgs)

//go:noescape
func gemmNarrow_4(args *gemmArgs)

//go:noescape
func gemmNarrow_5(args *gemmArgs)

//go:noescape
func gemmNarrow_6(args *gemmArgs)

//go:noescape
func gemmNarrow_7(args *gemmArgs)

//go:noescape
func gemmNarrow_8(args *gemmArgs)

//go:noescape
func gemmNarrow_9(args *gemmArgs)

//go:noescape
func gemmNarrow_10(args *gemmArgs)

//go:noescape
func gemmNarrow_11(args *gemmArgs)

//go:noescape
func gemmNarrow_12(args *gemmArgs)

func gemmNarrow(m int, g *gemmArgs) {
	switch m {
	case 1:
		gemmNarrow_1(g)
	case 2:
		gemmNarrow_2(g)
	case 3:
		gemmNarrow_3(g)
	case 4:
		gemmNarrow_4(g)
	case 5:
		gemmNarrow_5(g)
	case 6:
		gemmNarrow_6(g)
	case 7:
		gemmNarrow_7(g)
	case 8:
		gemmNarrow_8(g)
	case 9:
		gemmNarrow_9(g)
	case 10:
		gemmNarrow_10(g)
	case 11:
		gemmNarrow_11(g)
	case 12:
		gemmNarrow_12(g)
	}
}

//go:noescape
func fmaPeakAVX2(n int)

var avx2Ops = ops{
	tier: AVX2, mr: 6, nr: 16, kc: 384,

	affineRows:  affineRowsSIMD,
	act:         actSIMD,
	chanSums:    chanSumsAVX2,
	actVJP:      actVJPSIMD,
	expRow:      expRowSIMD,
	maxRow:      maxRowSIMD,
	softmaxRows: softmaxRowsAVX2,
	transpose8:  transpose8AVX2,
	add:         addSIMD,
	scale:       scaleSIMD,
	mulAddRows:  mulAddRowsSIMD,
	moments:     momentsSIMD,
	sumSq:       sumSqSIMD,
	normRow:     normRowSIMD,
	winoIn:      winoInSIMD,
	winoWeights: winoWeightsSIMD,
	roundBF16:   roundBF16SIMD,
	toBF16:      toBF16SIMD,
	toBF16Rows:  toBF16RowsSIMD,
	winoOut:     winoOutSIMD,
	dgemm:       dgemmAVX2,
	widenBF16:   widenBF16SIMD,
	widenF16:    widenF16SIMD,
	toF16:       toF16SIMD,
	pairRows:    pairRowsAVX2,
	depthwise:   depthwiseSIMD,
}

// A tail of fewer than 8 values goes through the same instructions in a
// buffer, so that a value never depends on where in a slice it lies.

func affineRowsSIMD(dst, src *float32, dstStride, srcStride, n, c int, scale, shift *float32, act Activation) {
	if n < 1 || c < 1 {
		return
	}
	switch {
	case scale != nil && act == SiLU:
		affineSiLUAVX2(dst, src, dstStride, srcStride, n, c, scale, shift)
	case scale == nil && act == SiLU:
		rowsSiLUAVX2(dst, src, dstStride, srcStride, n, c, nil, nil)
	default:
		for i := range n {
			d := unsafe.Slice((*float32)(unsafe.Add(unsafe.Pointer(dst), i*dstStride*4)), c)
			s := unsafe.Slice((*float32)(unsafe.Add(unsafe.Pointer(src), i*srcStride*4)), c)
			if scale != nil {
				affineAVX2(&d[0], &s[0], 0, 0, 1, c, scale, shift)
				s = d
			}
			if act != Identity || scale == nil {
				actSIMD(d, s, act)
			}
		}
	}
}

func actSIMD(dst, src []float32, act Activation) {
	n := len(src) &^ 7
	if n > 0 {
		actVectors(&dst[0], &src[0], n, act)
	}
	if n < len(src) {
		var t [8]float32
		copy(t[:], src[n:])
		actVectors(&t[0], &t[0], 8, act)
		copy(dst[n:len(src)], t[:])
	}
}

func actVectors(dst, src *float32, n int, act Activation) {
	switch act {
	case SiLU:
		actSiLUAVX2(dst, src, n)
	case GELU:
		actGELUAVX2(dst, src, n)
	case GELUTanh:
		actGELUTanhAVX2(dst, src, n)
	case QuickGELU:
		actQuickGELUAVX2(dst, src, n)
	case ReLU:
		actReLUAVX2(dst, src, n)
	default:
		copy(unsafe.Slice(dst, n), unsafe.Slice(src, n))
	}
}

func actVJPSIMD(dst, dy, x []float32, act Activation) {
	if act != SiLU && act != GELUTanh && act != QuickGELU {
		actVJPGo(dst, dy, x, act)
		return
	}
	n := len(x) &^ 7
	if n > 0 {
		_, _ = dst[n-1], dy[n-1]
		actVJPVectors(&dst[0], &dy[0], &x[0], n, act)
	}
	if n < len(x) {
		var g, v [8]float32
		copy(g[:], dy[n:len(x)])
		copy(v[:], x[n:])
		actVJPVectors(&g[0], &g[0], &v[0], 8, act)
		copy(dst[n:len(x)], g[:])
	}
}

func actVJPVectors(dst, dy, x *float32, n int, act Activation) {
	switch act {
	case SiLU:
		vjpSiLUAVX2(dst, dy, x, n)
	case QuickGELU:
		vjpQuickGELUAVX2(dst, dy, x, n)
	default:
		vjpGELUTanhAVX2(dst, dy, x, n)
	}
}

func expRowSIMD(x []float32, scale, m float32) float32 {
	n := len(x) &^ 7
	var sum float32
	if n > 0 {
		sum = expRowAVX2(&x[0], n, scale, m)
	}
	if n < len(x) {
		var t [8]float32
		copy(t[:], x[n:])
		expRowAVX2(&t[0], 8, scale, m)
		for i := range x[n:] {
			x[n+i] = t[i]
			sum += t[i]
		}
	}
	return sum
}

func maxRowSIMD(x []float32) float32 {
	n := len(x) &^ 7
	m := maxRowGo(x[n:])
	if n > 0 {
		m = max(m, maxRowAVX2(&x[0], n))
	}
	return m
}

func addSIMD(dst, a, b []float32, scale float32) {
	n := len(a) &^ 7
	if n > 0 {
		_, _ = dst[n-1], b[n-1]
		addAVX2(&dst[0], &a[0], &b[0], n, scale)
	}
	addGo(dst[n:], a[n:], b[n:], scale)
}

func scaleSIMD(dst []float32, s float32) {
	n := len(dst) &^ 7
	if n > 0 {
		scaleAVX2(&dst[0], n, s)
	}
	scaleGo(dst[n:], s)
}

func mulAddRowsSIMD(dst, x, y, g *float32, ldDst, ldX, ldY, ldG, rows, c int) {
	c8 := c &^ 7
	if c8 > 0 && rows > 0 {
		mulAddRowsAVX2(dst, x, y, g, ldDst, ldX, ldY, ldG, rows, c8)
	}
	if c8 < c {
		at := func(p *float32) *float32 { return (*float32)(unsafe.Add(unsafe.Pointer(p), c8*4)) }
		if x != nil {
			x = at(x)
		}
		mulAddRowsGo(at(dst), x, at(y), at(g), ldDst, ldX, ldY, ldG, rows, c-c8)
	}
}

func toBF16RowsSIMD(dst *uint16, src *float32, ldDst, ldSrc, rows, c int) {
	for i := range rows {
		d := unsafe.Slice((*uint16)(unsafe.Add(unsafe.Pointer(dst), i*ldDst)), c)
		toBF16SIMD(d, f32At(unsafe.Add(unsafe.Pointer(src), i*ldSrc), c))
	}
}

func widenBF16SIMD(dst []float32, src []uint16) {
	if len(src) > 0 {
		_ = dst[len(src)-1]
		widenBF16AVX2(&dst[0], &src[0], len(src))
	}
}

func widenF16SIMD(dst []float32, src []uint16) {
	if len(src) > 0 {
		_ = dst[len(src)-1]
		widenF16AVX2(&dst[0], &src[0], len(src))
	}
}

func toF16SIMD(dst []uint16, src []float32) {
	n := len(src) &^ 7
	if n > 0 {
		_ = dst[n-1]
		toF16AVX2(&dst[0], &src[0], n)
	}
	toF16Go(dst[n:], src[n:])
}

func depthwiseSIMD(dst, src, w, bias *float32, taps *tapAt, n, c int) {
	c8 := c &^ 7
	if c8 > 0 {
		depthwiseAVX2(dst, src, w, bias, taps, n, c8)
	}
	if c8 < c {
		at := func(p *float32) *float32 { return (*float32)(unsafe.Add(unsafe.Pointer(p), c8*4)) }
		depthwiseGo(at(dst), at(src), at(w), at(bias), taps, n, c-c8)
	}
}

func momentsSIMD(x []float32) (mean, m2 float32) {
	if len(x) == 0 {
		return 0, 0
	}
	k := x[0]
	n := len(x) &^ 7
	var s, q float64
	const block = 1024
	for i := 0; i < n; i += block {
		bs, bq := momentsAVX2(&x[i], min(block, n-i), k)
		s += float64(bs)
		q += float64(bq)
	}
	for _, v := range x[n:] {
		d := float64(v - k)
		s += d
		q += d * d
	}
	d := s / float64(len(x))
	return float32(float64(k) + d), float32(max(q-d*s, 0))
}

func sumSqSIMD(x []float32) float32 {
	n := len(x) &^ 7
	var q float64
	const block = 1024
	for i := 0; i < n; i += block {
		_, bq := momentsAVX2(&x[i], min(block, n-i), 0)
		q += float64(bq)
	}
	for _, v := range x[n:] {
		q += float64(v) * float64(v)
	}
	return float32(q)
}

func normRowSIMD(dst, x []float32, mean, rstd float32, gamma, beta []float32) {
	n := len(x) &^ 7
	if n > 0 {
		_ = dst[n-1]
		var g, b *float32
		if gamma != nil {
			g = &gamma[:n][0]
		}
		if beta != nil {
			b = &beta[:n][0]
		}
		normRowAVX2(&dst[0], &x[0], g, b, n, mean, rstd)
	}
	if n < len(x) {
		if gamma != nil {
			gamma = gamma[n:]
		}
		if beta != nil {
			beta = beta[n:]
		}
		normRowGo(dst[n:], x[n:], mean, rstd, gamma, beta)
	}
}

func roundBF16SIMD(x []float32) {
	n := len(x) &^ 7
	if n > 0 {
		roundBF16AVX2(&x[0], n)
	}
	roundRowGo(x[n:])
}

func toBF16SIMD(dst []uint16, src []float32) {
	n := len(src) &^ 15
	if n > 0 {
		_ = dst[n-1]
		toBF16AVX2(&dst[0], &src[0], n)
	}
	toBF16Go(dst[n:], src[n:])
}

// narrowOps has tiles of 12 rows by 8 columns, for layers of at most 8 output
// channels on every tier from AVX2 on.
var narrowOps = func() ops {
	o := avx2Ops
	o.tier, o.mr, o.nr = narrow, 12, 8
	return o
}()
