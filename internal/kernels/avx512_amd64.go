//go:build amd64 && !noasm

package kernels

import "unsafe"

//go:noescape
func gemmAVX512_1(args *gemmArgs)

//go:noescape
func gemmAVX512_2(args *gemmArgs)

//go:noescape
func gemmAVX512_3(args *gemmArgs)

//go:noescape
func gemmAVX512_4(args *gemmArgs)

//go:noescape
func gemmAVX512_5(args *gemmArgs)

//go:noescape
func gemmAVX512_6(args *gemmArgs)

//go:noescape
func gemmAVX512_7(args *gemmArgs)

//go:noescape
func gemmAVX512_8(args *gemmArgs)

//go:noescape
func gemmAVX512_9(args *gemmArgs)

//go:noescape
func gemmAVX512_10(args *gemmArgs)

//go:noescape
func gemmAVX512_11(args *gemmArgs)

//go:noescape
func gemmAVX512_12(args *gemmArgs)

func gemmAVX512(m int, g *gemmArgs) {
	switch m {
	case 1:
		gemmAVX512_1(g)
	case 2:
		gemmAVX512_2(g)
	case 3:
		gemmAVX512_3(g)
	case 4:
		gemmAVX512_4(g)
	case 5:
		gemmAVX512_5(g)
	case 6:
		gemmAVX512_6(g)
	case 7:
		gemmAVX512_7(g)
	case 8:
		gemmAVX512_8(g)
	case 9:
		gemmAVX512_9(g)
	case 10:
		gemmAVX512_10(g)
	case 11:
		gemmAVX512_11(g)
	case 12:
		gemmAVX512_12(g)
	}
}

//go:noescape
func gemmBF16_1(args *gemmArgs)

//go:noescape
func gemmBF16_2(args *gemmArgs)

//go:noescape
func gemmBF16_3(args *gemmArgs)

//go:noescape
func gemmBF16_4(args *gemmArgs)

//go:noescape
func gemmBF16_5(args *gemmArgs)

//go:noescape
func gemmBF16_6(args *gemmArgs)

//go:noescape
func gemmBF16_7(args *gemmArgs)

//go:noescape
func gemmBF16_8(args *gemmArgs)

//go:noescape
func gemmBF16_9(args *gemmArgs)

//go:noescape
func gemmBF16_10(args *gemmArgs)

//go:noescape
func gemmBF16_11(args *gemmArgs)

//go:noescape
func gemmBF16_12(args *gemmArgs)

func gemmBF16(m int, g *gemmArgs) {
	switch m {
	case 1:
		gemmBF16_1(g)
	case 2:
		gemmBF16_2(g)
	case 3:
		gemmBF16_3(g)
	case 4:
		gemmBF16_4(g)
	case 5:
		gemmBF16_5(g)
	case 6:
		gemmBF16_6(g)
	case 7:
		gemmBF16_7(g)
	case 8:
		gemmBF16_8(g)
	case 9:
		gemmBF16_9(g)
	case 10:
		gemmBF16_10(g)
	case 11:
		gemmBF16_11(g)
	case 12:
		gemmBF16_12(g)
	}
}

//go:noescape
func fmaPeakAVX512(n int)

//go:noescape
func fmaPeakBF16(n int)

//go:noescape
func rowsSiLUAVX512(dst, src *float32, dstStride, srcStride, n, c int)

//go:noescape
func rowsGELUAVX512(dst, src *float32, dstStride, srcStride, n, c int)

//go:noescape
func rowsGELUTanhAVX512(dst, src *float32, dstStride, srcStride, n, c int)

//go:noescape
func rowsQuickGELUAVX512(dst, src *float32, dstStride, srcStride, n, c int)

//go:noescape
func affineSiLUAVX512(dst, src *float32, dstStride, srcStride, n, c int, scale, shift *float32)

//go:noescape
func softmaxRowsAVX512(x *float32, pitch, rows, n int, scale float32, top, sum *float32)

//go:noescape
func softmaxRowsBF16(x *float32, pitch, rows, n int, scale float32, top, sum *float32)

//go:noescape
func toBF16RowsBF16(dst *uint16, src *float32, ldDst, ldSrc, rows, c int)

//go:noescape
func winoIn2AVX512(dst, src *float32, dstStep, rowStep, pixStep, tileStep, c, tiles, skip int)

//go:noescape
func winoIn4AVX512(dst, src *float32, dstStep, rowStep, pixStep, tileStep, c, tiles, skip int)

//go:noescape
func winoOut2AVX512(dst, m, bias, res *float32, mStep, rowStep, pixStep, rows, cols, c int)

//go:noescape
func winoOut4AVX512(dst, m, bias, res *float32, mStep, rowStep, pixStep, rows, cols, c int)

// past is p plus n values, nil for nil.
func past(p *float32, n int) *float32 {
	if p == nil {
		return nil
	}
	return (*float32)(unsafe.Add(unsafe.Pointer(p), 4*n))
}

func winoInOn512(m int, dst, src *float32, dstStep, rowStep, pixStep, tileStep, c, tiles, skip int) {
	n := c &^ 15
	switch {
	case n == 0:
	case m == 2:
		winoIn2AVX512(dst, src, dstStep, rowStep, pixStep, tileStep, n, tiles, skip+4*(c-n))
	default:
		winoIn4AVX512(dst, src, dstStep, rowStep, pixStep, tileStep, n, tiles, skip+4*(c-n))
	}
	if n < c {
		winoInSIMD(m, past(dst, n), past(src, n), dstStep, rowStep, pixStep, tileStep, c-n, tiles, skip+4*n)
	}
}

func winoOutOn512(m int, dst, src, bias, res *float32, mStep, rowStep, pixStep, rows, cols, c int) {
	n := c &^ 15
	switch {
	case n == 0:
	case m == 2:
		winoOut2AVX512(dst, src, bias, res, mStep, rowStep, pixStep, rows, cols, n)
	default:
		winoOut4AVX512(dst, src, bias, res, mStep, rowStep, pixStep, rows, cols, n)
	}
	if n < c {
		winoOutSIMD(m, past(dst, n), past(src, n), past(bias, n), past(res, n), mStep, rowStep, pixStep, rows, cols, c-n)
	}
}

//go:noescape
func winoWeights2PairAVX512(dst *float32, step int, src *float32, n int, matrix, pair *float64)

//go:noescape
func winoWeights2EndsAVX512(dst *float32, step int, src *float32, n int, matrix, pair *float64)

//go:noescape
func winoWeights4PairAVX512(dst *float32, step int, src *float32, n int, matrix, pair *float64)

//go:noescape
func winoWeights4EndsAVX512(dst *float32, step int, src *float32, n int, matrix, pair *float64)

func winoWeightsOn512(m, rows int, dst *float32, step int, src *float32, n int) {
	t := &winoTables[m/4]
	pair := &t.g[max(2*rows-1, 0)][0]
	switch {
	case m == 2 && rows == 0:
		winoWeights2EndsAVX512(dst, step, src, n, &t.g[0][0], pair)
	case m == 2:
		winoWeights2PairAVX512(dst, step, src, n, &t.g[0][0], pair)
	case rows == 0:
		winoWeights4EndsAVX512(dst, step, src, n, &t.g[0][0], pair)
	default:
		winoWeights4PairAVX512(dst, step, src, n, &t.g[0][0], pair)
	}
}

func affineRows512(dst, src *float32, dstStride, srcStride, n, c int, scale, shift *float32, act Activation) {
	switch {
	case n < 1 || c < 1:
	case scale != nil && act == SiLU:
		affineSiLUAVX512(dst, src, dstStride, srcStride, n, c, scale, shift)
	case scale == nil && act == SiLU:
		rowsSiLUAVX512(dst, src, dstStride, srcStride, n, c)
	case scale == nil && act == GELU:
		rowsGELUAVX512(dst, src, dstStride, srcStride, n, c)
	case scale == nil && act == GELUTanh:
		rowsGELUTanhAVX512(dst, src, dstStride, srcStride, n, c)
	case scale == nil && act == QuickGELU:
		rowsQuickGELUAVX512(dst, src, dstStride, srcStride, n, c)
	default:
		affineRowsSIMD(dst, src, dstStride, srcStride, n, c, scale, shift, act)
	}
}

func act512(dst, src []float32, act Activation) {
	switch n := len(src); {
	case n == 0:
	case act == Identity || act == ReLU:
		actSIMD(dst, src, act)
	default:
		_ = dst[n-1]
		affineRows512(&dst[0], &src[0], 0, 0, 1, n, nil, nil, act)
	}
}

func toBF16On512(dst []uint16, src []float32) {
	if len(src) > 0 {
		_ = dst[len(src)-1]
		toBF16RowsOn512(&dst[0], &src[0], 0, 0, 1, len(src))
	}
}

func toBF16RowsOn512(dst *uint16, src *float32, ldDst, ldSrc, rows, c int) {
	n := c &^ 31
	if n > 0 && rows > 0 {
		toBF16RowsBF16(dst, src, ldDst, ldSrc, rows, n)
	}
	if n < c {
		toBF16RowsSIMD((*uint16)(unsafe.Add(unsafe.Pointer(dst), 2*n)), (*float32)(unsafe.Add(unsafe.Pointer(src), 4*n)), ldDst, ldSrc, rows, c-n)
	}
}

// avx512Ops has the matrix kernels and the expensive functions of AVX-512.
// What is bound by memory or by short rows stays as in AVX2.
var avx512Ops = func() ops {
	o := avx2Ops
	o.tier, o.mr, o.nr, o.kc = AVX512, 12, 32, 256
	o.affineRows, o.act, o.softmaxRows = affineRows512, act512, softmaxRowsAVX512
	o.winoIn, o.winoOut, o.winoWeights = winoInOn512, winoOutOn512, winoWeightsOn512
	return o
}()

// avx512BF16Ops multiplies pairs of bfloat16.
var avx512BF16Ops = func() ops {
	o := avx512Ops
	o.tier, o.pairs, o.toBF16, o.toBF16Rows = AVX512BF16, 2, toBF16On512, toBF16RowsOn512
	o.softmaxPairs = softmaxRowsBF16
	return o
}()

//go:noescape
func gemmAMX(args *amxArgs)

// amxOps multiplies tiles: 16 pixels by 16 slots by 16 columns. One pass
// covers all of K, since reloading sums costs more than streaming weights.
var amxOps = func() ops {
	o := avx512BF16Ops
	o.tier, o.pairs, o.mr, o.kc = AMX, 2*tileRows, tileRows, 1<<30
	return o
}()
