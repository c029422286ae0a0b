package distill

import (
	"context"
	"fmt"

	"gorgonia.org/tensor"

	"drift/internal/rng"
	"drift/models"
)

// Features turns particles into the vectors that a Kernel compares. Map writes nothing into x and returns the features,
// (rows, D), with the function that pulls a cotangent of them back to x: grad = (df/dx)^T cot, of x's shape. The pull is
// used before the next Map. Features of a row do not depend on the other rows.
//
// Any network that can be differentiated serves; Pool and Project need none.
type Features interface {
	Map(ctx context.Context, x *tensor.Dense) (f *tensor.Dense, pull func(grad, cot *tensor.Dense) error, err error)
}

// Pool averages images (rows, C, H, W) over squares of Size x Size pixels: what they are at low resolution. Size must
// divide H and W.
type Pool struct{ Size int }

// Map implements Features.
func (p Pool) Map(_ context.Context, x *tensor.Dense) (*tensor.Dense, func(grad, cot *tensor.Dense) error, error) {
	s := x.Shape()
	if len(s) != 4 || p.Size < 1 || s[2]%p.Size != 0 || s[3]%p.Size != 0 {
		return nil, nil, fmt.Errorf("distill: features pool:%d do not fit images of shape %v", p.Size, s[1:])
	}
	planes, h, w := s[0]*s[1], s[2], s[3]
	f := models.New(s[0], s[1]*(h/p.Size)*(w/p.Size))
	shrink(models.Data(f), models.Data(x), planes, h, w, p.Size, 1/float64(p.Size*p.Size))
	return f, func(grad, cot *tensor.Dense) error {
		repeat(models.Data(grad), models.Data(cot), planes, h, w, p.Size, 1/float64(p.Size*p.Size))
		return nil
	}, nil
}

// shrink writes scale times the sum of every size x size square of planes of h x w into dst.
func shrink(dst, src []float64, planes, h, w, size int, scale float64) {
	clear(dst)
	lw := w / size
	for i, v := range src[:planes*h*w] {
		p, y, x := i/(h*w), i/w%h, i%w
		dst[(p*(h/size)+y/size)*lw+x/size] += scale * v
	}
}

// repeat is the adjoint of shrink: every pixel of a square becomes scale times the square's value.
func repeat(dst, src []float64, planes, h, w, size int, scale float64) {
	lw := w / size
	for i := range dst[:planes*h*w] {
		p, y, x := i/(h*w), i/w%h, i%w
		dst[i] = scale * src[(p*(h/size)+y/size)*lw+x/size]
	}
}

// Extractor is a network that tells features of images and can be differentiated, such as zoo.Classifier: Run writes the
// features of every image of x, VJP the gradient of sum(features * cot) by x. What it writes of logits is not asked for.
type Extractor interface {
	Run(ctx context.Context, x, features, logits []float64) error
	VJP(ctx context.Context, x, cotFeatures, cotLogits, grad []float64) error
}

// Network compares images by the Dim features of a network, as the published code does with DINO.
type Network struct {
	Of  Extractor
	Dim int
}

// Map implements Features.
func (n Network) Map(ctx context.Context, x *tensor.Dense) (*tensor.Dense, func(grad, cot *tensor.Dense) error, error) {
	f := models.New(x.Shape()[0], n.Dim)
	if err := n.Of.Run(ctx, models.Data(x), models.Data(f), nil); err != nil {
		return nil, nil, err
	}
	return f, func(grad, cot *tensor.Dense) error {
		return n.Of.VJP(ctx, models.Data(x), models.Data(cot), nil, models.Data(grad))
	}, nil
}

// Project is a random projection to Dim numbers, f = P x with P's entries N(0, 1/Dim) from the seed: it keeps distances
// to about 1/sqrt(Dim).
type Project struct {
	Dim  int
	Seed uint64
}

// Map implements Features.
func (p Project) Map(_ context.Context, x *tensor.Dense) (*tensor.Dense, func(grad, cot *tensor.Dense) error, error) {
	rows := x.Shape()[0]
	n := len(models.Data(x)) / rows
	if p.Dim < 1 || p.Dim > 1<<20 {
		return nil, nil, fmt.Errorf("distill: features project:%d: want 1 or more dimensions", p.Dim)
	}
	f := models.New(rows, p.Dim)
	row := make([]float64, n) // P is drawn anew, row by row: it would be large
	scale := rsqrt(p.Dim)
	each := func(do func(k int, P []float64)) {
		for k := range p.Dim {
			rng.Normal(row, rng.Key{Seed: p.Seed, Image: uint64(k), Purpose: rng.PurposeProbe})
			for j := range row {
				row[j] *= scale
			}
			do(k, row)
		}
	}
	xd, fd := models.Data(x), models.Data(f)
	each(func(k int, P []float64) {
		for i := range rows {
			fd[i*p.Dim+k] = dot(P, xd[i*n:])
		}
	})
	return f, func(grad, cot *tensor.Dense) error {
		g, c := models.Data(grad), models.Data(cot)
		clear(g)
		each(func(k int, P []float64) {
			for i := range rows {
				v := c[i*p.Dim+k]
				for j, a := range P {
					g[i*n+j] += a * v
				}
			}
		})
		return nil
	}, nil
}
