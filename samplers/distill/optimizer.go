package distill

import (
	"fmt"
	"math"
)

// Optimizer moves the particles. The zero value is Adam (Kingma and Ba 2015, arXiv 1412.6980) with rate 0.05, beta1 0.9,
// beta2 0.99 and eps 1e-8, the setting of the published code:
//
//	m <- beta1 m + (1-beta1) g,  v <- beta2 v + (1-beta2) g^2
//	z <- z - rate (m/(1-beta1^k)) / (sqrt(v/(1-beta2^k)) + eps)
//
// SGD has z <- z - rate m with m <- Momentum m + g.
//
// (gorgonia's solvers would serve but for their memory: it is private to them and indexed by position, so a run could
// neither be saved and resumed nor leave particles out.)
type Optimizer struct {
	SGD          bool
	Rate         float64 // 0 = 0.05
	Beta1, Beta2 float64 // 0 = 0.9 and 0.99
	Eps          float64 // 0 = 1e-8
	Momentum     float64 // of SGD
	Final        float64 // the rate falls to this share of it along a cosine; 0 = stays
}

func (o Optimizer) check() error {
	switch {
	case !(o.Rate >= 0 && o.Rate <= math.MaxFloat64):
		return fmt.Errorf("rate = %g: want a positive number", o.Rate)
	case !(o.Beta1 >= 0 && o.Beta1 < 1 && o.Beta2 >= 0 && o.Beta2 < 1 && o.Momentum >= 0 && o.Momentum < 1):
		return fmt.Errorf("beta1 = %g, beta2 = %g, momentum = %g: want numbers from 0 to below 1", o.Beta1, o.Beta2, o.Momentum)
	case !(o.Eps >= 0 && o.Eps <= math.MaxFloat64):
		return fmt.Errorf("eps = %g: want a positive number", o.Eps)
	case !(o.Final >= 0 && o.Final <= 1):
		return fmt.Errorf("final rate = %g of the first: want a number from 0 to 1", o.Final)
	}
	return nil
}

// moments is what an optimizer remembers of one array.
type moments struct{ M, V []float64 }

func newMoments(n int) moments { return moments{make([]float64, n), make([]float64, n)} }

// step moves z against g, the k-th time (from 1) of total.
func (o Optimizer) step(z, g []float64, mem moments, rate float64, k, total int) {
	rate = or(rate, or(o.Rate, 0.05))
	if o.Final > 0 {
		rate *= o.Final + (1-o.Final)*(1+math.Cos(math.Pi*float64(k-1)/float64(max(1, total-1))))/2
	}
	if o.SGD {
		for i, v := range g {
			mem.M[i] = o.Momentum*mem.M[i] + v
			z[i] -= rate * mem.M[i]
		}
		return
	}
	b1, b2, eps := or(o.Beta1, 0.9), or(o.Beta2, 0.99), or(o.Eps, 1e-8)
	c1, c2 := 1-math.Pow(b1, float64(k)), 1-math.Pow(b2, float64(k))
	for i, v := range g {
		mem.M[i] = b1*mem.M[i] + (1-b1)*v
		mem.V[i] = b2*mem.V[i] + (1-b2)*v*v
		z[i] -= rate * (mem.M[i] / c1) / (math.Sqrt(mem.V[i]/c2) + eps)
	}
}

func or(v, def float64) float64 {
	if v == 0 {
		return def
	}
	return v
}
