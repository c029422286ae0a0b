package rng

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

const prec = 200

func bigOf(x float64) *big.Float { return new(big.Float).SetPrec(prec).SetFloat64(x) }

// exactFMA32 rounds the exact a*b + c once.
func exactFMA32(a, b, c float32) float32 {
	s := new(big.Float).SetPrec(2000).Mul(big.NewFloat(float64(a)).SetPrec(2000), big.NewFloat(float64(b)))
	s.Add(s, big.NewFloat(float64(c)))
	f, _ := s.Float32()
	return f
}

func TestFMA32(t *testing.T) {
	check := func(a, b, c float32) {
		t.Helper()
		if got, want := fma32(a, b, c), exactFMA32(a, b, c); got != want {
			t.Fatalf("fma32(%x, %x, %x) = %x, want %x", a, b, c, got, want)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	mantissa := func() float32 { return float32(1 + float64(r.Uint32()>>9)/(1<<23)) }
	sign := func() float32 { return float32(1 - 2*int(r.Uint32()&1)) }
	for range 100000 {
		a, b := sign()*mantissa(), sign()*mantissa()
		check(a, b, float32(math.Ldexp(float64(sign()*mantissa()), int(r.IntN(120))-60)))
		// Results near the largest value.
		check(float32(math.Ldexp(float64(a), 63)), float32(math.Ldexp(float64(b), 63)), float32(math.Ldexp(float64(c127(r)), 127)))
	}
	// A product of 2 plus a little, of a power of two plus half a unit of c, is
	// next to a midpoint by less than float64 can see: rounding twice goes wrong.
	wrong := 0
	for range 100000 {
		c := sign() * mantissa()
		half := math.Ldexp(1, -24)
		odd := float32(1 + math.Ldexp(float64(1+r.IntN(255)), -23))
		// a*b is half a unit in the last place of c, times (1+k 2^-23)(1-k 2^-23) about.
		a, b := float32(half)*odd, sign()*(2-odd)
		check(a, b, c)
		if float32(float64(a)*float64(b)+float64(c)) != exactFMA32(a, b, c) {
			wrong++
		}
	}
	if wrong < 1000 {
		t.Errorf("only %d of the cases told one rounding from two", wrong)
	}
	for _, v := range [][3]float32{{0, 5, 0}, {1, 1, -1}, {2, 3, -6}, {1 << 30, 1 << 30, 1}, {math.MaxFloat32, 2, 0}, {math.MaxFloat32, 2, -math.MaxFloat32}} {
		check(v[0], v[1], v[2])
	}
}

func c127(r *rand.Rand) float32 { return float32(0.5 + float64(r.Uint32()>>9)/(1<<24)) }

// bigAtanhInv is atanh(x) for |x| <= 0.2 by its series.
func bigAtanh(x *big.Float) *big.Float {
	z := new(big.Float).SetPrec(prec).Mul(x, x)
	p := new(big.Float).SetPrec(prec).Set(x)
	sum := new(big.Float).SetPrec(prec)
	for k := 1.0; k < 90; k += 2 {
		sum.Add(sum, new(big.Float).SetPrec(prec).Quo(p, bigOf(k)))
		p.Mul(p, z)
	}
	return sum
}

func bigLog(x float64) *big.Float {
	m, e := math.Frexp(x)
	if m < math.Sqrt2/2 {
		m, e = 2*m, e-1
	}
	s := new(big.Float).SetPrec(prec).Quo(bigOf(m-1), new(big.Float).Add(bigOf(m), bigOf(1)))
	third := new(big.Float).SetPrec(prec).Quo(bigOf(1), bigOf(3))
	l := new(big.Float).SetPrec(prec).Mul(bigAtanh(third), bigOf(float64(e)))
	return l.Mul(l.Add(l, bigAtanh(s)), bigOf(2))
}

// bigSincos is sine and cosine by their series.
func bigSincos(x float64) (sin, cos *big.Float) {
	sin, cos = bigOf(0), bigOf(0)
	p := bigOf(1) // x^k/k!
	for k := range 100 {
		sum := cos
		if k%2 == 1 {
			sum = sin
		}
		if k/2%2 == 0 {
			sum.Add(sum, p)
		} else {
			sum.Sub(sum, p)
		}
		p.Mul(p, bigOf(x))
		p.Quo(p, bigOf(float64(k+1)))
	}
	return sin, cos
}

// inUlps is the distance of got from want in units of got's last place.
func inUlps(got float64, want *big.Float) float64 {
	d, _ := new(big.Float).Sub(bigOf(got), want).Float64()
	if d == 0 {
		return 0
	}
	_, e := math.Frexp(got)
	return math.Abs(d) / math.Ldexp(1, e-53)
}

func TestLog64(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	if got := log64(1); got != 0 {
		t.Errorf("log64(1) = %v", got)
	}
	worst := 0.0
	try := func(x float64) {
		e := inUlps(log64(x), bigLog(x))
		if worst = max(worst, e); !(e <= 0.53) {
			t.Errorf("log64(%v) = %v is off by %.3f ulp", x, log64(x), e)
		}
	}
	for range 3000 {
		try(r.Float64() + 0x1p-53)
		try(math.Ldexp(1+r.Float64(), r.IntN(2040)-1020))
		try(1 + (r.Float64()-0.5)*math.Ldexp(1, -r.IntN(50)) + 0x1p-52)
	}
	for _, x := range []float64{0x1p-53, 0x1p-24, 0x1p-1022, math.Sqrt2, math.Sqrt2 / 2, math.MaxFloat64, 1 - 0x1p-53, 1 + 0x1p-52} {
		try(x)
	}
	t.Logf("worst error %.4f ulp", worst)
}

func TestSincos64(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	worst := 0.0
	try := func(x float64) {
		s, c := sincos64(x)
		bs, bc := bigSincos(x)
		e := inUlps(c, bc)
		if x != 0 {
			e = max(e, inUlps(s, bs))
		} else if s != 0 {
			t.Errorf("sin 0 = %v", s)
		}
		if worst = max(worst, e); !(e <= 0.8) {
			t.Errorf("sincos64(%v) = %v, %v is off by %.3f ulp", x, s, c, e)
		}
	}
	for range 5000 {
		try(r.Float64() * 6.9)
		try(float64(r.IntN(5))*math.Pi/2 + r.Float64()*math.Ldexp(1, -r.IntN(50)))
	}
	for k := range 9 { // multiples of pi/4 and their neighbours, near which the remainder is a tail only
		x := float64(k) * math.Pi / 4
		try(x)
		try(math.Nextafter(x, 7))
		try(math.Abs(math.Nextafter(x, 0)))
	}
	t.Logf("worst error %.4f ulp", worst)
}

// TestHalf rounds every half to itself and midpoints to even.
func TestHalf(t *testing.T) {
	value := func(h uint16) float32 { // of a non-negative finite half
		e, m := int(h>>10), float64(h&0x3ff)
		if e == 0 {
			return float32(math.Ldexp(m, -24))
		}
		return float32(math.Ldexp(m+1024, e-25))
	}
	for h := uint16(0); h < 0x7bff; h++ {
		a, b := value(h), value(h+1)
		if f16bits(a) != h || f16bits(-a) != h|0x8000 {
			t.Fatalf("f16bits(%v) = %04x, want %04x", a, f16bits(a), h)
		}
		mid := (a + b) / 2
		if got, want := f16bits(mid), h+h&1; got != want {
			t.Fatalf("f16bits(%v) = %04x, want %04x", mid, got, want)
		}
		if f16bits(math.Nextafter32(mid, 0)) != h || f16bits(math.Nextafter32(mid, math.MaxFloat32)) != h+1 {
			t.Fatalf("neighbours of %v round wrong", mid)
		}
	}
	for b := uint32(0); b < 0x7f7f; b++ {
		a := math.Float32frombits(b << 16)
		mid := math.Float32frombits(b<<16 | 0x8000)
		if bf16bits(a) != uint16(b) || bf16bits(-a) != uint16(b)|0x8000 || bf16bits(mid) != uint16(b+b&1) ||
			bf16bits(math.Nextafter32(mid, 0)) != uint16(b) || bf16bits(math.Nextafter32(mid, math.MaxFloat32)) != uint16(b+1) {
			t.Fatalf("bf16bits near %v is wrong", a)
		}
	}
}
