package zoo

import (
	"context"
	"fmt"

	"drift/internal/kernels"
)

// backward is what the gradient needs beside the forward layers.
type backward struct {
	conv    [4]*kernels.ConvGrad
	fc      [2]*kernels.Linear
	acts    [4][]float32 // after every convolution and its ReLU
	pooled  [2][]float32
	in      []float32
	feat    []float32
	logit   []float32
	a, b    []float32
	scratch []float32
}

// VJP writes the gradient by the images of sum(features*dFeatures) + sum(logits*dLogits) into grad (n x 784); either cotangent
// may be nil. ReLU has derivative 0 at 0; of equal maxima the first has the gradient.
func (c *Classifier) VJP(ctx context.Context, x, dFeatures, dLogits, grad []float64) error {
	const px = 28 * 28
	n, classes := len(x)/px, len(c.Labels)
	if len(x)%px != 0 || len(grad) != len(x) || (dFeatures != nil && len(dFeatures) != n*Features) || (dLogits != nil && len(dLogits) != n*classes) {
		return fmt.Errorf("zoo: classifier: %d values for images of 28x28, gradient %d, cotangents %d and %d", len(x), len(grad), len(dFeatures), len(dLogits))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.back == nil {
		c.back = c.newBackward()
	}
	for lo := 0; lo < n; lo += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		hi := min(n, lo+chunk)
		c.gradient(x[lo*px:hi*px], part(dFeatures, lo*Features, hi*Features), part(dLogits, lo*classes, hi*classes), grad[lo*px:hi*px], hi-lo)
	}
	return nil
}

func part(v []float64, lo, hi int) []float64 {
	if v == nil {
		return nil
	}
	return v[lo:hi]
}

func (c *Classifier) newBackward() *backward {
	b := &backward{}
	tier := c.pool.Tier()
	for i, conv := range c.conv {
		b.conv[i] = kernels.NewConvGrad(tier, kernels.F32, conv.Spec(), c.weights[i])
	}
	b.fc[0] = kernels.NewLinearGrad(tier, kernels.F32, c.fc[0].In(), Features, c.weights[4])
	b.fc[1] = kernels.NewLinearGrad(tier, kernels.F32, Features, len(c.Labels), c.weights[5])
	for i, conv := range c.conv {
		size := 28 >> (i / 2)
		b.acts[i] = make([]float32, chunk*size*size*conv.Spec().Cout)
		if i%2 == 1 {
			b.pooled[i/2] = make([]float32, chunk*size*size/4*conv.Spec().Cout)
		}
	}
	b.in, b.feat, b.logit = make([]float32, chunk*28*28), make([]float32, chunk*Features), make([]float32, chunk*len(c.Labels))
	b.a, b.b = make([]float32, chunk*28*28*32), make([]float32, chunk*28*28*32)
	return b
}

func (b *backward) grow(n int) []float32 {
	if len(b.scratch) < n {
		b.scratch = make([]float32, n)
	}
	return b.scratch
}

func (c *Classifier) gradient(x, dFeatures, dLogits, grad []float64, n int) {
	b := c.back
	kernels.NCHWToNHWC(b.in, x, n, 1, 28*28)
	src := b.in
	for i, conv := range c.conv {
		size, s := 28>>(i/2), conv.Spec()
		conv.Run(c.pool, b.acts[i][:n*size*size*s.Cout], kernels.Input{X: src[:n*size*size*s.Cin], C: s.Cin}, n, size, size, b.grow(conv.Scratch(c.pool.Workers(), n, size, size, false)), kernels.Epilogue{Act: kernels.ReLU})
		if src = b.acts[i]; i%2 == 1 {
			src = b.pooled[i/2]
			maxPool(src, b.acts[i], n, size, s.Cout)
		}
	}
	feat := b.feat[:n*Features]
	c.fc[0].Run(c.pool, feat, src[:n*c.fc[0].In()], n, b.grow(c.fc[0].Scratch(c.pool.Workers(), n)), kernels.Epilogue{Act: kernels.ReLU})
	df := b.a[:n*Features]
	clear(df)
	if dLogits != nil {
		dl := b.logit[:n*len(c.Labels)]
		for j, v := range dLogits {
			dl[j] = float32(v)
		}
		b.fc[1].Run(c.pool, df, dl, n, b.grow(b.fc[1].Scratch(c.pool.Workers(), n)), kernels.Epilogue{})
	}
	for j, v := range dFeatures {
		df[j] += float32(v)
	}
	mask(df, feat)
	from, to := b.b, b.a
	b.fc[0].Run(c.pool, from[:n*c.fc[0].In()], df, n, b.grow(b.fc[0].Scratch(c.pool.Workers(), n)), kernels.Epilogue{})
	for i := 3; i >= 0; i-- {
		size, s := 28>>(i/2), c.conv[i].Spec()
		dy := from[:n*size*size*s.Cout]
		if i%2 == 1 { // back through the pool
			dy = to[:n*size*size*s.Cout]
			unpool(dy, from, b.acts[i], n, size, s.Cout)
			from, to = to, from
		}
		mask(dy, b.acts[i][:len(dy)])
		b.conv[i].Run(c.pool, to[:n*size*size*s.Cin], dy, n, size, size, b.grow(b.conv[i].Scratch(c.pool.Workers(), n, size, size)), kernels.Epilogue{})
		from, to = to, from
	}
	for j := range grad {
		grad[j] = float64(from[j])
	}
}

// mask clears the gradient where a ReLU gave 0.
func mask(d, out []float32) {
	for j, v := range out {
		if v <= 0 {
			d[j] = 0
		}
	}
}

// unpool gives the gradient of every 2x2 maximum to the first pixel that has it.
func unpool(dx, dy, x []float32, n, size, ch int) {
	clear(dx)
	half := size / 2
	for i := range n {
		for y := range half {
			for col := range half {
				at := ((i*size+2*y)*size + 2*col) * ch
				to := ((i*half+y)*half + col) * ch
				for k := range ch {
					best := at + k
					for _, j := range [3]int{at + ch + k, at + size*ch + k, at + size*ch + ch + k} {
						if x[j] > x[best] {
							best = j
						}
					}
					dx[best] = dy[to+k]
				}
			}
		}
	}
}
