// Package operators holds the forward operators of inverse problems,
//
//	y = A(x) + Sigma n,  n ~ N(0, I),
//
// x an image of shape (C, H, W) as a flat float64 slice with values in [-1, 1], y a flat measurement. Operators are
// immutable, and their methods may be called from several goroutines. Slices that are written may not overlap those read.
package operators

import (
	"fmt"
	"math"

	"drift/internal/rng"
)

// Operator is a forward operator A.
type Operator interface {
	// Name is the text that Parse reads.
	Name() string
	// In is the shape of images, (C, H, W), and Out that of measurements.
	In() []int
	Out() []int
	// Apply writes A(x) into y.
	Apply(y, x []float64)
	// VJP writes J(x)^T u into g, J the Jacobian of A at x. Linear operators do not look at x.
	VJP(g, x, u []float64)
}

// Linear is an operator that is a matrix, known by its singular value decomposition A = U S V^T with an orthogonal V
// of size n x n. Coefficients along the columns of V have length n; S is padded with zeros to that length.
type Linear interface {
	Operator
	// Adjoint writes A^T y into x.
	Adjoint(x, y []float64)
	// Singular gives the n singular values, in no particular order; zeros span what A does not see. Callers must not
	// change it. Values below an operator's cutoff stand as zeros (see deblur).
	Singular() []float64
	// ToV writes V^T x into c, and FromV V c into x.
	ToV(c, x []float64)
	FromV(x, c []float64)
	// ToU writes U^T y into c, zeros where the singular value is zero.
	ToU(c, y []float64)
}

// Pictured is an operator whose measurement is shown as a picture of another shape than Out.
type Pictured interface {
	// Picture turns a measurement into an image of shape (C, H, W), values about in [-1, 1].
	Picture(y []float64) (pixels []float64, shape []int)
}

// Measurement is a degraded image: what the restorers are given.
type Measurement struct {
	A     Operator
	Y     []float64
	Sigma float64 // standard deviation of the noise in Y, in units of [-1, 1] images
}

// purposeNoise separates the noise of measurements from all other draws.
const purposeNoise rng.Purpose = 1<<16 + 0x0b5

// Measure degrades the image x: y = A(x) + sigma n, n drawn from the stream (seed, image).
func Measure(a Operator, x []float64, sigma float64, seed, image uint64) Measurement {
	m := Measurement{A: a, Y: make([]float64, Size(a.Out())), Sigma: sigma}
	a.Apply(m.Y, x)
	if sigma != 0 {
		n := make([]float64, len(m.Y))
		rng.Normal(n, rng.Key{Seed: seed, Image: image, Purpose: purposeNoise})
		for i, z := range n {
			m.Y[i] += float64(sigma * z)
		}
	}
	return m
}

// Residual returns y - A(x), for one image.
func (m Measurement) Residual(x []float64) []float64 {
	r := make([]float64, len(m.Y))
	m.A.Apply(r, x)
	for i, y := range m.Y {
		r[i] = y - r[i]
	}
	return r
}

// Filter writes V f(S) U^T y into x: f is asked for every singular value above zero, and what A does not see stays 0.
// f(s) = s is the adjoint (of an operator without a cutoff), 1/s the pseudo-inverse, s/(s^2 + t) the ridge solution.
func Filter(a Linear, f func(s float64) float64, x, y []float64) {
	c := make([]float64, Size(a.In()))
	a.ToU(c, y)
	for i, s := range a.Singular() {
		if s > 0 {
			c[i] *= f(s)
		} else {
			c[i] = 0
		}
	}
	a.FromV(x, c)
}

// Pinv writes the pseudo-inverse's image A^+ y into x.
func Pinv(a Linear, x, y []float64) { Filter(a, func(s float64) float64 { return 1 / s }, x, y) }

// Size is the number of elements of a shape.
func Size(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

// base is what all operators carry.
type base struct {
	name    string
	in, out []int
}

func (b base) Name() string { return b.name }
func (b base) In() []int    { return b.in }
func (b base) Out() []int   { return b.out }

// image checks that a shape is one of images and takes it apart.
func image(shape []int) (c, h, w int, err error) {
	if len(shape) != 3 || shape[0] < 1 || shape[1] < 1 || shape[2] < 1 {
		return 0, 0, 0, fmt.Errorf("want images of shape (C, H, W), have %v", shape)
	}
	return shape[0], shape[1], shape[2], nil
}

// cut sets singular values below share times the largest to zero.
func cut(s []float64, share float64) []float64 {
	top := 0.0
	for _, v := range s {
		top = math.Max(top, v)
	}
	for i, v := range s {
		if v <= share*top {
			s[i] = 0
		}
	}
	return s
}

// rounding is the share of the largest singular value below which one is rounding.
const rounding = 1e-12
