//go:build amd64 && !noasm

package kernels

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
func actSiLUAVX512(dst, src *float32, n int)

//go:noescape
func actGELUAVX512(dst, src *float32, n int)

//go:noescape
func actGELUTanhAVX512(dst, src *float32, n int)

//go:noescape
func actQuickGELUAVX512(dst, src *float32, n int)

//go:noescape
func affineSiLUAVX512(dst, src *float32, dstStride, srcStride, n, c int, scale, shift *float32)

//go:noescape
func rowsSiLUAVX512(dst, src *float32, dstStride, srcStride, n, c int, scale, shift *float32)

//go:noescape
func softmaxRowsAVX512(x *float32, pitch, rows, n int, scale float32, top, sum *float32)

//go:noescape
func toBF16BF16(dst *uint16, src *float32, n int)

func affineRows512(dst, src *float32, dstStride, srcStride, n, c int, scale, shift *float32, act Activation) {
	switch {
	case n < 1 || c < 1:
	case act != SiLU:
		affineRowsSIMD(dst, src, dstStride, srcStride, n, c, scale, shift, act)
	case scale != nil:
		affineSiLUAVX512(dst, src, dstStride, srcStride, n, c, scale, shift)
	default:
		rowsSiLUAVX512(dst, src, dstStride, srcStride, n, c, nil, nil)
	}
}

func act512(dst, src []float32, act Activation) {
	n := len(src)
	if n == 0 {
		return
	}
	_ = dst[n-1]
	switch act {
	case SiLU:
		actSiLUAVX512(&dst[0], &src[0], n)
	case GELU:
		actGELUAVX512(&dst[0], &src[0], n)
	case GELUTanh:
		actGELUTanhAVX512(&dst[0], &src[0], n)
	case QuickGELU:
		actQuickGELUAVX512(&dst[0], &src[0], n)
	default:
		actSIMD(dst, src, act)
	}
}

func toBF16On512(dst []uint16, src []float32) {
	n := len(src) &^ 31
	if n > 0 {
		_ = dst[n-1]
		toBF16BF16(&dst[0], &src[0], n)
	}
	toBF16SIMD(dst[n:], src[n:])
}

// avx512Ops has the matrix kernels and the expensive functions of AVX-512.
// What is bound by memory or by short rows stays as in AVX2.
var avx512Ops = func() ops {
	o := avx2Ops
	o.tier, o.mr, o.nr, o.kc = AVX512, 12, 32, 256
	o.affineRows, o.act, o.softmaxRows = affineRows512, act512, softmaxRowsAVX512
	return o
}()

// avx512BF16Ops multiplies pairs of bfloat16.
var avx512BF16Ops = func() ops {
	o := avx512Ops
	o.tier, o.pairs, o.toBF16 = AVX512BF16, 2, toBF16On512
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
