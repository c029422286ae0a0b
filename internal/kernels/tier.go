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

// DType is how a layer keeps its weights and rounds its input. Sums and
// outputs are always float32.
type DType uint8

// The data types.
const (
	F32  DType = iota
	BF16       // weights and input bfloat16: 8 bits of mantissa, round to nearest even
	// Float32 arithmetic on weights that stay in 16 bits in memory and are
	// widened, a panel at a time, where they are used: exact for the weights
	// of a 16-bit checkpoint, at half the memory and nearly the speed of F32,
	// and to the same bits.
	F32OnF16
	F32OnBF16
)

// String gives "fp32", "bf16", "fp32-on-fp16" or "fp32-on-bf16".
func (d DType) String() string {
	switch d {
	case F32:
		return "fp32"
	case BF16:
		return "bf16"
	case F32OnF16:
		return "fp32-on-fp16"
	case F32OnBF16:
		return "fp32-on-bf16"
	}
	return fmt.Sprintf("DType(%d)", uint8(d))
}

// widened tells whether the weights lie in 16 bits and are widened.
func (d DType) widened() bool { return d == F32OnF16 || d == F32OnBF16 }

// ParseDType is the inverse of String.
func ParseDType(s string) (DType, error) {
	for d := F32; d <= F32OnBF16; d++ {
		if d.String() == s {
			return d, nil
		}
	}
	return 0, fmt.Errorf("kernels: unknown data type %q (fp32, bf16, fp32-on-fp16, fp32-on-bf16)", s)
}
