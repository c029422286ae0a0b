package kernels

import (
	"math"
	"unsafe"

	"drift/internal/half"
)

const (
	portableMR = 4
	portableNR = 8
)

var portableOps = ops{
	tier: Portable, mr: portableMR, nr: portableNR, kc: 384,
	affineRows:   affineRowsGo,
	act:          actGo,
	chanSums:     chanSumsGo,
	actVJP:       actVJPGo,
	expRow:       expRowGo,
	maxRow:       maxRowGo,
	softmaxRows:  softmaxRowsGo,
	softmaxPairs: softmaxPairsGo,
	transpose8:   transpose8Go,
	add:          addGo,
	scale:        scaleGo,
	mulAddRows:   mulAddRowsGo,
	moments:      momentsGo,
	sumSq:        sumSqGo,
	normRow:      normRowGo,
	winoIn:       winoInGo,
	winoWeights:  winoWeightsGo,
	roundBF16:    roundRowGo,
	toBF16:       toBF16Go,
	toBF16Rows:   toBF16RowsGo,
	winoOut:      winoOutGo,
	dgemm:        dgemmGo,
	widenBF16:    widenBF16Go,
	widenF16:     widenF16Go,
	toF16:        toF16Go,
	pairRows:     pairRowsGo,
	depthwise:    depthwiseGo,
}

func affineRowsGo(dst, src *float32, dstStride, srcStride, n, c int, scale, shift *float32, act Activation) {
	var sc, sh []float32
	if scale != nil {
		sc, sh = unsafe.Slice(scale, c), unsafe.Slice(shift, c)
	}
	for i := range n {
		d := f32At(unsafe.Add(unsafe.Pointer(dst), i*dstStride*4), c)
		s := f32At(unsafe.Add(unsafe.Pointer(src), i*srcStride*4), c)
		for j, v := range s {
			if sc != nil {
				v = float32(v*sc[j]) + sh[j]
			}
			d[j] = act.eval(v)
		}
	}
}

func actGo(dst, src []float32, act Activation) {
	for i, v := range src {
		dst[i] = act.eval(v)
	}
}

func actVJPGo(dst, dy, x []float32, act Activation) {
	for i, v := range x {
		dst[i] = dy[i] * act.derive(v)
	}
}

func chanSumsGo(sum, sq, src, shift *float32, stride, n, c int) {
	s, q, k := unsafe.Slice(sum, c), unsafe.Slice(sq, c), unsafe.Slice(shift, c)
	clear(s)
	clear(q)
	for i := range n {
		for j, v := range f32At(unsafe.Add(unsafe.Pointer(src), i*stride*4), c) {
			v -= k[j]
			s[j] += v
			q[j] += float32(v * v)
		}
	}
}

func expRowGo(x []float32, scale, m float32) float32 {
	var sum float64
	for i, v := range x {
		e := float32(math.Exp(float64(float32(v*scale) - m)))
		x[i] = e
		sum += float64(e)
	}
	return float32(sum)
}

func maxRowGo(x []float32) float32 {
	m := float32(math.Inf(-1))
	for _, v := range x {
		m = max(m, v)
	}
	return m
}

func addGo(dst, a, b []float32, scale float32) {
	for i, v := range a {
		dst[i] = (v + b[i]) * scale
	}
}

func scaleGo(dst []float32, s float32) {
	for i := range dst {
		dst[i] *= s
	}
}

func mulAddRowsGo(dst, x, y, g *float32, ldDst, ldX, ldY, ldG, rows, c int) {
	row := func(p *float32, at int) []float32 { return f32At(unsafe.Add(unsafe.Pointer(p), at), c) }
	for i := range rows {
		d, gate := row(dst, i*ldDst), row(g, i*ldG)
		if x == nil {
			for j, v := range row(y, i*ldY) {
				d[j] = v * gate[j]
			}
			continue
		}
		old := row(x, i*ldX)
		for j, v := range row(y, i*ldY) {
			d[j] = old[j] + float32(v*gate[j])
		}
	}
}

func momentsGo(x []float32) (mean, m2 float32) {
	var s float64
	for _, v := range x {
		s += float64(v)
	}
	mu := s / float64(len(x))
	var q float64
	for _, v := range x {
		d := float64(v) - mu
		q += d * d
	}
	return float32(mu), float32(q)
}

func sumSqGo(x []float32) float32 {
	var q float64
	for _, v := range x {
		q += float64(v) * float64(v)
	}
	return float32(q)
}

func normRowGo(dst, x []float32, mean, rstd float32, gamma, beta []float32) {
	for i, v := range x {
		v = (v - mean) * rstd
		if gamma != nil {
			v *= gamma[i]
		}
		if beta != nil {
			v += beta[i]
		}
		dst[i] = v
	}
}

// Tile of the float64 kernel: 6 rows of 8.
const (
	dgemmMR = 6
	dgemmNR = 8
)

// dgemmGo adds a^T b, where a is k rows of 6 (row length lda) and b is k rows
// of 8 packed tight, to the 6-by-8 tile c.
func dgemmGo(c *float64, ldc int, a *float64, lda int, b *float64, k int) {
	var s [dgemmMR * dgemmNR]float64
	av := unsafe.Slice(a, (k-1)*lda+dgemmMR)
	bv := unsafe.Slice(b, k*dgemmNR)
	for p := range k {
		br := bv[p*dgemmNR : p*dgemmNR+dgemmNR]
		for i, x := range av[p*lda : p*lda+dgemmMR] {
			for j, y := range br {
				s[i*dgemmNR+j] += float64(x * y)
			}
		}
	}
	for i := range dgemmMR {
		row := unsafe.Slice((*float64)(unsafe.Add(unsafe.Pointer(c), i*ldc*8)), dgemmNR)
		for j := range row {
			row[j] += s[i*dgemmNR+j]
		}
	}
}

func softmaxRowsGo(x *float32, pitch, rows, n int, scale float32, top, sum *float32) {
	t, s := unsafe.Slice(top, rows), unsafe.Slice(sum, rows)
	for i := range rows {
		row := f32At(unsafe.Add(unsafe.Pointer(x), i*pitch), n)
		t[i] = max(t[i], maxRowGo(row)*scale)
		s[i] = expRowGo(row, scale, t[i])
	}
}

func transpose8Go(dst, src *float32, dstStride, srcStride, n int) {
	for i := range 8 {
		for j, v := range f32At(unsafe.Add(unsafe.Pointer(src), i*srcStride), n) {
			*(*float32)(unsafe.Add(unsafe.Pointer(dst), j*dstStride+i*4)) = v
		}
	}
}

func roundRowGo(x []float32) {
	for i, v := range x {
		x[i] = roundBF16(v)
	}
}

func toBF16Go(dst []uint16, src []float32) {
	for i, v := range src {
		dst[i] = uint16(f32bits(roundBF16(v)) >> 16)
	}
}

func widenBF16Go(dst []float32, src []uint16) {
	for i, v := range src {
		dst[i] = f32frombits(uint32(v) << 16)
	}
}

func widenF16Go(dst []float32, src []uint16) {
	for i, v := range src {
		dst[i] = half.Float16(v)
	}
}

func toF16Go(dst []uint16, src []float32) {
	for i, v := range src {
		dst[i] = half.ToFloat16(v)
	}
}

func pairRowsGo(dst *uint32, x *float32, ld, rows, n int) {
	for i, d := 0, unsafe.Slice(dst, rows*n); i < rows; i++ {
		low := f32At(unsafe.Add(unsafe.Pointer(x), 2*i*ld), n)
		high := f32At(unsafe.Add(unsafe.Pointer(x), (2*i+1)*ld), n)
		for j, v := range low {
			d[i*n+j] = f32bits(roundBF16(v))>>16 | f32bits(roundBF16(high[j]))
		}
	}
}

func softmaxPairsGo(x *float32, pitch, rows, n int, scale float32, top, sum *float32) {
	softmaxRowsGo(x, pitch, rows, n, scale, top, sum)
	for i := range rows {
		// In place: a row only shrinks.
		row := f32At(unsafe.Add(unsafe.Pointer(x), i*pitch), n)
		toBF16Go(bfloats(row), row)
	}
}

func toBF16RowsGo(dst *uint16, src *float32, ldDst, ldSrc, rows, c int) {
	for i := range rows {
		d := unsafe.Slice((*uint16)(unsafe.Add(unsafe.Pointer(dst), i*ldDst)), c)
		toBF16Go(d, f32At(unsafe.Add(unsafe.Pointer(src), i*ldSrc), c))
	}
}
