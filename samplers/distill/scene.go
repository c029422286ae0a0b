package distill

import (
	"fmt"
	"math"
)

// Scene is what an image is made from: a differentiable map from parameters to an image z. Particles are optimised in
// their parameters, the model sees the image, and its residual is pulled back.
type Scene interface {
	// Params returns the shape of one particle's parameters for images of the given shape.
	Params(image []int) ([]int, error)
	// Render writes the image of the parameters into z.
	Render(z, theta []float64, image []int)
	// Pull writes (dz/dtheta)^T cot into grad.
	Pull(grad, theta, cot []float64, image []int)
}

// LowRes is an image of 1/Factor the resolution, whose pixels are repeated: distillation looks for an image whose
// enlargement the model finds real. Factor must divide height and width.
type LowRes struct{ Factor int }

// Params implements Scene.
func (s LowRes) Params(image []int) ([]int, error) {
	if len(image) != 3 || s.Factor < 1 || image[1]%s.Factor != 0 || image[2]%s.Factor != 0 {
		return nil, fmt.Errorf("scene lowres:%d does not fit images of shape %v", s.Factor, image)
	}
	return []int{image[0], image[1] / s.Factor, image[2] / s.Factor}, nil
}

// Render implements Scene.
func (s LowRes) Render(z, theta []float64, image []int) {
	repeat(z, theta, image[0], image[1], image[2], s.Factor, 1)
}

// Pull implements Scene.
func (s LowRes) Pull(grad, _, cot []float64, image []int) {
	shrink(grad, cot, image[0], image[1], image[2], s.Factor, 1)
}

// Fourier is an image by its cosine coefficients, z = C^T (s theta) C in every channel with C the orthonormal cosine
// transform and the scale
//
//	s(i, j) = (1 + sqrt(i^2 + j^2))^-Decay
//
// of frequency (i, j). With Decay = 1 equal steps in theta move coarse structure more than fine, as the spectra of
// pictures ask for; with 0 the map is a rotation of pixel space.
type Fourier struct{ Decay float64 }

// Params implements Scene.
func (s Fourier) Params(image []int) ([]int, error) {
	if len(image) != 3 {
		return nil, fmt.Errorf("scene fourier does not fit images of shape %v", image)
	}
	return image, nil
}

// Render implements Scene.
func (s Fourier) Render(z, theta []float64, image []int) {
	s.scaled(z, theta, image)
	cosine(z, image, true)
}

// Pull implements Scene.
func (s Fourier) Pull(grad, _, cot []float64, image []int) {
	copy(grad, cot)
	cosine(grad, image, false)
	s.scaled(grad, grad, image)
}

func (s Fourier) scaled(dst, src []float64, image []int) {
	h, w := image[1], image[2]
	for k, v := range src {
		dst[k] = v * math.Pow(1+math.Hypot(float64(k/w%h), float64(k%w)), -s.Decay)
	}
}

// cosine transforms every channel in place, or back: DCT-II with orthonormal rows, as two small matrix products.
func cosine(x []float64, image []int, back bool) {
	h, w := image[1], image[2]
	rows, cols := basis(w), basis(h)
	in, out := make([]float64, max(h, w)), make([]float64, max(h, w))
	for c := range image[0] {
		plane := x[c*h*w : (c+1)*h*w]
		for y := range h {
			transform(plane[y*w:], rows, in[:w], out[:w], 1, back)
		}
		for i := range w {
			transform(plane[i:], cols, in[:h], out[:h], w, back)
		}
	}
}

// basis is the n x n matrix of the transform.
func basis(n int) []float64 {
	m := make([]float64, n*n)
	for k := range n {
		scale := math.Sqrt(2 / float64(n))
		if k == 0 {
			scale = rsqrt(n)
		}
		for i := range n {
			m[k*n+i] = scale * math.Cos(math.Pi*float64(k)*(float64(i)+0.5)/float64(n))
		}
	}
	return m
}

// transform is the one-dimensional transform of len(in) numbers that lie stride apart.
func transform(x, m, in, out []float64, stride int, back bool) {
	n := len(in)
	for i := range in {
		in[i] = x[i*stride]
	}
	clear(out)
	for k := range n {
		row := m[k*n : (k+1)*n]
		if !back {
			out[k] = dot(row, in)
			continue
		}
		for i, a := range row {
			out[i] += a * in[k]
		}
	}
	for i, v := range out {
		x[i*stride] = v
	}
}

func rsqrt(n int) float64 { return 1 / math.Sqrt(float64(n)) }

func dot(a, b []float64) float64 {
	sum := 0.0
	for i, v := range a {
		sum += v * b[i]
	}
	return sum
}
