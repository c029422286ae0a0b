package kernels

import (
	"fmt"
	"math"
)

func f32bits(f float32) uint32     { return math.Float32bits(f) }
func f32frombits(u uint32) float32 { return math.Float32frombits(u) }

// Activation is an elementwise function.
type Activation uint8

// The activations.
const (
	Identity  Activation = iota
	SiLU                 // x / (1 + exp(-x))
	GELU                 // x/2 (1 + erf(x/sqrt 2))
	GELUTanh             // x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
	QuickGELU            // x / (1 + exp(-1.702 x))
	ReLU                 // max(x, 0)
)

// String gives the usual name.
func (a Activation) String() string {
	switch a {
	case Identity:
		return "identity"
	case SiLU:
		return "silu"
	case GELU:
		return "gelu"
	case GELUTanh:
		return "gelu_tanh"
	case QuickGELU:
		return "quick_gelu"
	case ReLU:
		return "relu"
	}
	return fmt.Sprintf("Activation(%d)", uint8(a))
}

const (
	sqrt2OverPi = 0.7978845608028654
	geluCubic   = 0.044715
	quickGELU   = 1.702
)

// eval is the function itself.
func (a Activation) eval(v float32) float32 {
	x := float64(v)
	switch a {
	case SiLU:
		return float32(x / (1 + math.Exp(-x)))
	case GELU:
		return float32(0.5 * x * math.Erfc(-x/math.Sqrt2))
	case GELUTanh:
		return float32(0.5 * x * (1 + math.Tanh(sqrt2OverPi*(x+geluCubic*x*x*x))))
	case QuickGELU:
		return float32(x / (1 + math.Exp(-quickGELU*x)))
	case ReLU:
		return max(v, 0)
	}
	return v
}

// derive is the derivative.
func (a Activation) derive(v float32) float32 {
	x := float64(v)
	switch a {
	case SiLU:
		s := 1 / (1 + math.Exp(-x))
		return float32(s * (1 + x*(1-s)))
	case GELU:
		return float32(0.5*math.Erfc(-x/math.Sqrt2) + x*math.Exp(-x*x/2)/math.Sqrt(2*math.Pi))
	case GELUTanh:
		t := math.Tanh(sqrt2OverPi * (x + geluCubic*x*x*x))
		return float32(0.5*(1+t) + 0.5*x*(1-t*t)*sqrt2OverPi*(1+3*geluCubic*x*x))
	case QuickGELU:
		s := 1 / (1 + math.Exp(-quickGELU*x))
		return float32(s * (1 + quickGELU*x*(1-s)))
	case ReLU:
		if v > 0 {
			return 1
		}
		return 0
	}
	return 1
}
