// Package half converts the two 16-bit floating-point formats: IEEE 754
// binary16 (float16: 5 bits of exponent, 10 of fraction) and bfloat16 (the
// upper half of a float32). Widening is exact; narrowing rounds to nearest,
// ties to even, and keeps NaN a NaN.
package half

import "math"

// Float16 widens a binary16.
func Float16(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	if h&0x7c00 == 0x7c00 { // infinite or NaN
		return math.Float32frombits(sign | 0xff<<23 | uint32(h&0x3ff)<<13)
	}
	// With its bits shifted into place the value is off by the difference of
	// the two exponent biases, 127 - 15, subnormals included.
	x := math.Float32frombits(uint32(h&0x7fff)<<13) * 0x1p112
	return math.Float32frombits(sign | math.Float32bits(x))
}

// ToFloat16 narrows to binary16; values beyond 65519.99 become infinite.
func ToFloat16(f float32) uint16 {
	b := math.Float32bits(f)
	sign := uint16(b>>16) & 0x8000
	b &= 0x7fffffff
	switch {
	case b > 0x7f800000: // NaN: keep the upper fraction bits, and one for sure
		return sign | 0x7e00 | uint16(b>>13)&0x3ff
	case b >= 0x477ff000: // 65520 and more
		return sign | 0x7c00
	case b < 0x38800000: // below 2^-14: a multiple of 2^-24
		return sign | uint16(math.RoundToEven(float64(math.Float32frombits(b))*0x1p24))
	}
	b -= (127 - 15) << 23
	b += 0xfff + b>>13&1
	return sign | uint16(b>>13)
}

// BFloat16 widens a bfloat16.
func BFloat16(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// ToBFloat16 narrows to bfloat16.
func ToBFloat16(f float32) uint16 {
	b := math.Float32bits(f)
	if b&0x7fffffff > 0x7f800000 {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}
