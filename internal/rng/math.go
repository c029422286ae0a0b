package rng

import "math"

// fma32 returns a*b + c rounded once to float32, where that is no subnormal.
//
// The product of two float32 is exact in float64, so the only danger is that
// the sum is rounded twice, to float64 and then to float32. The second rounding
// can go wrong only where the first has landed on a midpoint of two float32
// values. There the sum is first rounded to odd, after which the second rounding
// is right (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums:
// proved algorithms using rounding to odd", IEEE TC 57, 2008).
func fma32(a, b, c float32) float32 {
	p := float64(float64(a) * float64(b))
	s := p + float64(c)
	if math.Float64bits(s)<<35 == 1<<63 { // of the 29 bits that float32 lacks, only the first is set
		s = sumToOdd(p, float64(c))
	}
	return float32(s)
}

// sumToOdd returns x+y rounded to odd: the exact sum where it is a float64,
// and otherwise that one of its two neighbours whose last bit is set.
//
//go:noinline
func sumToOdd(x, y float64) float64 {
	s := x + y
	t := s - x
	e := (x - (s - t)) + (y - t) // s + e is the exact sum (Knuth)
	bits := math.Float64bits(s)
	if e == 0 || e != e || bits&1 == 1 {
		return s
	}
	if (e > 0) == (s > 0) {
		return math.Float64frombits(bits + 1)
	}
	return math.Float64frombits(bits - 1)
}

// log32 is the natural logarithm of a normal positive float32: the polynomial
// of Cephes (logf) in float32 with the fused operations of torch's vector kernel.
func log32(x float32) float32 {
	b := math.Float32bits(x)
	e := float32(int32(b>>23) - 126)
	m := math.Float32frombits(b&0x007fffff | 0x3f000000) // in [1/2, 1)
	if m < 0.707106781186547524 {
		e--
		m += m
	}
	m-- // exact
	z := float32(m * m)
	y := fma32(7.0376836292e-2, m, -1.1514610310e-1)
	y = fma32(y, m, 1.1676998740e-1)
	y = fma32(y, m, -1.2420140846e-1)
	y = fma32(y, m, 1.4249322787e-1)
	y = fma32(y, m, -1.6668057665e-1)
	y = fma32(y, m, 2.0000714765e-1)
	y = fma32(y, m, -2.4999993993e-1)
	y = fma32(y, m, 3.3333331174e-1)
	y = float32(y * m)
	y = fma32(y, z, float32(e*-2.12194440e-4))
	y = fma32(-z, 0.5, y)
	return fma32(e, 0.693359375, m+y)
}

// sincos32 returns sine and cosine of 0 <= x < 8192: the polynomials of Cephes
// (sinf) in float32 with the fused operations of torch's vector kernel.
func sincos32(x float32) (sin, cos float32) {
	j := (int32(float32(x*1.27323954473516)) + 1) &^ 1
	y := float32(j)
	x = fma32(y, -0.78515625, x)
	x = fma32(y, -2.4187564849853515625e-4, x)
	x = fma32(y, -3.77489497744594108e-8, x)
	z := float32(x * x)
	c := fma32(2.443315711809948e-5, z, -1.388731625493765e-3)
	c = fma32(c, z, 4.166664568298827e-2)
	c = float32(c * z)
	c = fma32(c, z, -float32(z*0.5)) + 1
	s := fma32(-1.9515295891e-4, z, 8.3321608736e-3)
	s = fma32(s, z, -1.6666654611e-1)
	s = float32(s * z)
	s = fma32(s, x, x)
	return quadrant(int(j>>1), s, c)
}

// quadrant turns sine and cosine of x into those of x + q pi/2.
func quadrant[T float32 | float64](q int, s, c T) (sin, cos T) {
	switch q & 3 {
	case 1:
		return c, -s
	case 2:
		return -s, -c
	case 3:
		return -c, s
	}
	return s, c
}

// log64 is the natural logarithm of a normal positive float64, off by less than
// 0.53 units in the last place. With x = 2^k (1+f) and s = f/(2+f),
//
//	log x = k log 2 + 2 s + s R(s^2),
//
// where s and the sum carry their rounding errors along. R is the polynomial of
// fdlibm's e_log.c.
func log64(x float64) float64 {
	const (
		ln2Hi    = 6.93147180369123816490e-01 // its last 20 bits are zero: k ln2Hi is exact
		ln2Lo    = 1.90821492927058770002e-10
		sqrtHalf = 0x3fe6a09e667f3bcd
	)
	b := math.Float64bits(x)
	off := b - sqrtHalf
	k := float64(int64(off) >> 52)
	f := math.Float64frombits(b-off&^(1<<52-1)) - 1 // in [sqrt(1/2)-1, sqrt(2)-1)
	t := 2 + f
	tLo := f - (t - 2)
	inv := 1 / t
	s := float64(f * inv)
	sLo := float64(math.FMA(-s, tLo, math.FMA(-s, t, f)) * inv)
	z := float64(s * s)
	r := math.FMA(z, 1.479819860511658591e-01, 1.531383769920937332e-01)
	r = math.FMA(z, r, 1.818357216161805012e-01)
	r = math.FMA(z, r, 2.222219843214978396e-01)
	r = math.FMA(z, r, 2.857142874366239149e-01)
	r = math.FMA(z, r, 3.999999999940941908e-01)
	r = math.FMA(z, r, 6.666666666666735130e-01)
	lo := math.FMA(s, float64(z*r), 2*sLo)
	hi := 2 * s
	kHi := float64(k * ln2Hi)
	sum := kHi + hi
	return sum + (hi - (sum - kHi) + math.FMA(k, ln2Lo, lo))
}

// sincos64 returns sine and cosine of 0 <= a < 7, each off by less than one unit
// in the last place: pi/2 is taken off in three parts, then the polynomials of
// fdlibm's k_sin.c and k_cos.c with the remainder's tail.
func sincos64(a float64) (sin, cos float64) {
	const (
		pio2Hi  = 0x1.921fb54442d18p+0
		pio2Mid = 0x1.1a62633145c07p-54
		pio2Lo  = -0x1.f1976b7ed8fbcp-110
	)
	q := int(math.FMA(a, 2/math.Pi, 0.5))
	n := float64(q)
	hi := math.FMA(-n, pio2Hi, a) // exact
	tail := math.FMA(-n, pio2Mid, float64(-n*pio2Lo))
	x := hi + tail
	y := tail - (x - hi) // |hi| < |tail| only where hi is 0
	z := float64(x * x)

	r := math.FMA(z, 1.58969099521155010221e-10, -2.50507602534068634195e-08)
	r = math.FMA(z, r, 2.75573137070700676789e-06)
	r = math.FMA(z, r, -1.98412698298579493134e-04)
	r = math.FMA(z, r, 8.33333333332248946124e-03)
	v := float64(z * x)
	// x + y + v (S1 + z r) - z y/2
	s := math.FMA(v, -1.66666666666666324348e-01, math.FMA(z, float64(v*r)-0.5*y, y))
	s = x + s

	r = math.FMA(z, -1.13596475577881948265e-11, 2.08757232129817482790e-09)
	r = math.FMA(z, r, -2.75573143513906633035e-07)
	r = math.FMA(z, r, 2.48015872894767294178e-05)
	r = math.FMA(z, r, -1.38888888888741095749e-03)
	r = math.FMA(z, r, 4.16666666666666019037e-02)
	h := 0.5 * z
	w := 1 - h
	c := w + ((1 - w - h) + math.FMA(z, float64(z*r), -float64(x*y)))
	return quadrant(q, s, c)
}
