package samplers

import (
	"errors"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// The exponential integrators write the exact solution of the probability-flow ODE over a step of h = lambda_t -
// lambda_s in one of two forms, with the prediction q expanded around s:
//
//	data  (q = x0):  x_t = (sigma_t/sigma_s) x_s - alpha_t SUM_k z phi_{k+1}(z) q^(k) h^k,  z = -h
//	noise (q = eps): x_t = (alpha_t/alpha_s) x_s - sigma_t SUM_k z phi_{k+1}(z) q^(k) h^k,  z = +h
//
// (spec of DPM-Solver, arXiv 2206.00927, and DPM-Solver++, arXiv 2211.01095). Every solver of the family below differs
// only in how it estimates the derivatives, so all of them are written once for both forms.

var errNoiseForm = errors.New("the noise form cannot start from a node without signal (alpha = 0): start later (--t-start), or use a data form")

// form holds the coefficients of one step in the form that belongs to a kind of prediction.
type form struct {
	z     float64 // -h or h
	ratio float64 // what multiplies x_s
	a     float64 // what multiplies the bracket, with a minus sign
	h     float64
}

func newForm(kind schedules.Kind, s, t schedules.Node) form {
	h := t.Lambda() - s.Lambda()
	if kind == schedules.Eps {
		return form{z: h, ratio: t.Alpha / s.Alpha, a: t.Sigma, h: h}
	}
	return form{z: -h, ratio: t.Sigma / s.Sigma, a: t.Alpha, h: h}
}

// phi returns phi_k(z): phi_0 = e^z, phi_{k+1}(z) = (phi_k(z) - 1/k!)/z, phi_k(0) = 1/k!. Below |z| = 1/2 the
// recursion cancels, and the series SUM_j z^j/(j+k)! is summed instead.
func phi(k int, z float64) float64 {
	if k == 0 {
		return math.Exp(z)
	}
	if math.Abs(z) < 0.5 {
		term := 1.0
		for i := 2; i <= k; i++ {
			term /= float64(i)
		}
		sum := term
		for j := 1; math.Abs(term) > 1e-18*math.Abs(sum); j++ {
			term *= z / float64(j+k)
			sum += term
		}
		return sum
	}
	p := math.Expm1(z) / z
	if math.IsInf(z, -1) {
		return 0
	}
	fact := 1.0 // 1/i!
	for i := 1; i < k; i++ {
		fact /= float64(i)
		p = (p - fact) / z
	}
	return p
}

// Lowering says when a multistep method goes down in order at the end of a grid (option lower-order-final). Grids of
// few steps end with a large jump in lambda, where high orders overshoot.
type Lowering struct {
	Off   bool // never
	Below int  // only on grids with fewer steps; 0 = the method's default
}

// cap returns min(order, steps left) where lowering is on.
func (l Lowering) cap(order int, r *run, below int) int {
	if l.Below != 0 {
		below = l.Below
	}
	if l.Off || len(r.grid)-1 >= below {
		return order
	}
	return min(order, r.stepsLeft())
}

// always is a Below that no grid reaches.
const always = math.MaxInt

// lowering reads the options that every multistep method has.
func lowering(o *spec.Options, def bool) Lowering {
	return Lowering{Off: !o.Bool("lower-order-final", def), Below: o.Int("lower-below", 0, 0, always)}
}

// lowerOptions are those options on a method that does not lower unless it is asked to.
var lowerOptions = []Option{{"lower-order-final", "false", "order at most the steps left"}, {"lower-below", "", "only on grids with fewer steps"}}

// lowerIfAsked reads lowerOptions.
func lowerIfAsked(o *spec.Options) Lowering {
	l := lowering(o, false)
	if l.Below == 0 {
		l.Below = always
	}
	return l
}

// orderNow is the order of a step: it rises with the history, and goes down at the end where that is asked for.
func (r *run) orderNow(order int, l Lowering) int {
	return min(order, len(r.hist)+1, l.cap(order, r, 1))
}
