package kernels

import "fmt"

// Tier is an instruction set that kernels are written for.
type Tier uint8

// The tiers, slowest first. Their order is not a promise that a machine which
// runs one runs all before it.
const (
	Portable   Tier = iota // Go code, any machine
	AVX2                   // AVX2 and FMA, float32
	AVX512                 // AVX-512 F, BW, DQ and VL, float32
	AVX512BF16             // AVX512, and VDPBF16PS for BF16 layers
	AMX                    // AVX512, and TDPBF16PS tiles for BF16 layers
	numTiers
)

var tierNames = [numTiers]string{"portable", "avx2", "avx512", "avx512bf16", "amx"}

// String gives the name that [ParseTier] reads.
func (t Tier) String() string {
	if t < numTiers {
		return tierNames[t]
	}
	return fmt.Sprintf("Tier(%d)", uint8(t))
}

// ParseTier is the inverse of String.
func ParseTier(s string) (Tier, error) {
	for i, n := range tierNames {
		if n == s {
			return Tier(i), nil
		}
	}
	return 0, fmt.Errorf("kernels: unknown tier %q (portable, avx2, avx512, avx512bf16, amx)", s)
}

// Tiers lists the tiers that this machine and this build run, slowest first.
func Tiers() []Tier {
	ts := []Tier{Portable}
	for t := Portable + 1; t < numTiers; t++ {
		if t.Supported() {
			ts = append(ts, t)
		}
	}
	return ts
}

// Detect gives the best tier that this machine and this build run.
func Detect() Tier {
	ts := Tiers()
	return ts[len(ts)-1]
}

// Supported tells whether this machine and this build run the tier.
func (t Tier) Supported() bool { return t == Portable || t < numTiers && tierSupported(t) }

// DType is the type that a layer's weights are kept in and its input is
// rounded to. Sums and outputs are always float32.
type DType uint8

// The data types.
const (
	F32  DType = iota
	BF16       // bfloat16: 8 bits of mantissa, round to nearest even
)

// String gives "fp32" or "bf16".
func (d DType) String() string {
	switch d {
	case F32:
		return "fp32"
	case BF16:
		return "bf16"
	}
	return fmt.Sprintf("DType(%d)", uint8(d))
}

// ParseDType is the inverse of String.
func ParseDType(s string) (DType, error) {
	switch s {
	case "fp32":
		return F32, nil
	case "bf16":
		return BF16, nil
	}
	return 0, fmt.Errorf("kernels: unknown data type %q (fp32, bf16)", s)
}
