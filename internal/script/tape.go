package script

import (
	"fmt"
	"math"
	"slices"
)

// tape records what was computed from the picture, so that the gradient can be read backwards (reverse-mode automatic
// differentiation). Its memory is used again by the next picture.
type tape struct {
	nodes []*Tensor
	free  map[int][][]float64
	used  [][]float64
	total int // numbers handed out
}

// mostNumbers bounds the memory of one evaluation: 512 MiB.
const mostNumbers = 1 << 26

// Tensor is an array of numbers that a script computes with. One that depends on the picture is on the tape.
type Tensor struct {
	shape []int
	v     []float64
	g     []float64 // gradient of the energy by v, while going backwards
	tape  *tape     // nil: a constant
	back  func(g []float64)
}

func size(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

func (t *tape) alloc(n int) []float64 {
	t.total += n
	if t.total > mostNumbers {
		panic(failure{fmt.Errorf("an energy may not hold more than %d numbers", mostNumbers)})
	}
	var v []float64
	if f := t.free[n]; len(f) > 0 {
		v, t.free[n] = f[len(f)-1], f[:len(f)-1]
		clear(v)
	} else {
		v = make([]float64, n)
	}
	t.used = append(t.used, v)
	return v
}

// reset makes the tape empty.
func (t *tape) reset() {
	if t.free == nil {
		t.free = map[int][][]float64{}
	}
	for _, v := range t.used {
		t.free[len(v)] = append(t.free[len(v)], v)
	}
	t.nodes, t.used, t.total = t.nodes[:0], t.used[:0], 0
}

// failure carries an error out of the arithmetic.
type failure struct{ error }

func fail(format string, a ...any) { panic(failure{fmt.Errorf(format, a...)}) }

// make returns a new tensor that is computed from the given ones. back adds to their gradients, given its own.
func (t *tape) make(shape []int, back func(g []float64), from ...*Tensor) *Tensor {
	out := &Tensor{shape: slices.Clone(shape), v: t.alloc(size(shape))}
	for _, f := range from {
		if f.tape != nil {
			out.tape, out.back = t, back
			t.nodes = append(t.nodes, out)
			break
		}
	}
	return out
}

// grad returns where the gradient of a tensor is summed up, nil for a constant.
func (x *Tensor) grad() []float64 {
	if x.tape != nil && x.g == nil {
		x.g = x.tape.alloc(len(x.v))
	}
	return x.g
}

// backward fills the gradients of all that the scalar y was computed from.
func (t *tape) backward(y *Tensor) {
	if y.tape == nil {
		return
	}
	y.grad()[0] = 1
	for i := len(t.nodes) - 1; i >= 0; i-- {
		if n := t.nodes[i]; n.g != nil && n.back != nil {
			n.back(n.g)
		}
	}
}

// each makes f(x) element by element; d is its derivative by (x, f(x)).
func (t *tape) each(x *Tensor, f func(float64) float64, d func(x, y float64) float64) *Tensor {
	var out *Tensor
	out = t.make(x.shape, func(g []float64) {
		gx := x.grad()
		for i, v := range x.v {
			gx[i] += float64(g[i] * d(v, out.v[i]))
		}
	}, x)
	for i, v := range x.v {
		out.v[i] = f(v)
	}
	return out
}

// strides returns how far x, which fits to shape, moves with each of its axes: 0 along axes that it is repeated on.
func strides(x, shape []int) []int {
	s := make([]int, len(shape))
	step := 1
	for i := 1; i <= len(x); i++ {
		d := x[len(x)-i]
		if d != 1 {
			s[len(shape)-i] = step
		}
		step *= d
	}
	return s
}

// joint is the shape that two are spread to, aligned at the last axis.
func joint(a, b []int) (shape []int, ok bool) {
	if len(a) < len(b) {
		a, b = b, a
	}
	out := slices.Clone(a)
	for i := 1; i <= len(b); i++ {
		k := len(a) - i
		switch d := b[len(b)-i]; {
		case out[k] == 1:
			out[k] = d
		case d != 1 && d != out[k]:
			return nil, false
		}
	}
	return out, true
}

// walk calls f with the places in the result and in both operands, for every element.
func walk(shape, sa, sb []int, f func(i, a, b int)) {
	n := size(shape)
	if da, ok := even(shape, sa); ok {
		if db, ok := even(shape, sb); ok {
			for i := range n {
				f(i, i*da, i*db)
			}
			return
		}
	}
	at := make([]int, len(shape))
	a, b := 0, 0
	for i := range n {
		f(i, a, b)
		for k := len(shape) - 1; k >= 0; k-- {
			at[k]++
			a, b = a+sa[k], b+sb[k]
			if at[k] < shape[k] {
				break
			}
			a, b, at[k] = a-at[k]*sa[k], b-at[k]*sb[k], 0
		}
	}
}

// even tells whether an operand moves by d with every element: 1 for one of the result's shape, 0 for a single number.
func even(shape, s []int) (d int, ok bool) {
	one, none, step := true, true, 1
	for k := len(shape) - 1; k >= 0; k-- {
		if shape[k] != 1 {
			one, none = one && s[k] == step, none && s[k] == 0
		}
		step *= shape[k]
	}
	if none {
		return 0, true
	}
	return 1, one
}

// both makes f(a, b) element by element, repeating axes of length 1 as numpy does.
func (t *tape) both(what string, a, b *Tensor, f func(a, b float64) float64, d func(a, b, y float64) (da, db float64)) *Tensor {
	shape, ok := joint(a.shape, b.shape)
	if !ok {
		fail("%s of shapes %v and %v", what, a.shape, b.shape)
	}
	sa, sb := strides(a.shape, shape), strides(b.shape, shape)
	var out *Tensor
	out = t.make(shape, func(g []float64) {
		ga, gb := a.grad(), b.grad()
		walk(shape, sa, sb, func(i, j, k int) {
			da, db := d(a.v[j], b.v[k], out.v[i])
			if ga != nil {
				ga[j] += float64(g[i] * da)
			}
			if gb != nil {
				gb[k] += float64(g[i] * db)
			}
		})
	}, a, b)
	walk(shape, sa, sb, func(i, j, k int) { out.v[i] = f(a.v[j], b.v[k]) })
	return out
}

// linear makes a linear map of x: out[to[k]] += w[k] x[from[k]], one call of visit per k.
func (t *tape) linear(x *Tensor, shape []int, visit func(f func(to, from int, w float64))) *Tensor {
	out := t.make(shape, func(g []float64) {
		gx := x.grad()
		visit(func(to, from int, w float64) { gx[from] += float64(w * g[to]) })
	}, x)
	visit(func(to, from int, w float64) { out.v[to] += float64(w * x.v[from]) })
	return out
}

func (t *tape) sum(x *Tensor, scale float64) *Tensor {
	out := t.make(nil, func(g []float64) {
		gx := x.grad()
		for i := range gx {
			gx[i] += float64(scale * g[0])
		}
	}, x)
	s := 0.0
	for _, v := range x.v {
		s += v
	}
	out.v[0] = s * scale
	return out
}

// norm is the Euclidean norm; its gradient at 0 is 0.
func (t *tape) norm(x *Tensor) *Tensor {
	var out *Tensor
	out = t.make(nil, func(g []float64) {
		if gx := x.grad(); out.v[0] > 0 {
			for i, v := range x.v {
				gx[i] += float64(g[0] * v / out.v[0])
			}
		}
	}, x)
	s := 0.0
	for _, v := range x.v {
		s += float64(v * v)
	}
	out.v[0] = math.Sqrt(s)
	return out
}

// most is the largest element (sign 1) or the smallest (sign -1); the first of equals has the gradient.
func (t *tape) most(x *Tensor, sign float64) *Tensor {
	if len(x.v) == 0 {
		fail("the largest or smallest of nothing")
	}
	k := 0
	for i, v := range x.v {
		if sign*v > sign*x.v[k] {
			k = i
		}
	}
	return t.linear(x, nil, func(f func(to, from int, w float64)) { f(0, k, 1) })
}

// plane visits every (channel, row, column) of an image with its place.
func plane(shape []int, f func(base, y, x, h, w int)) {
	h, w := shape[len(shape)-2], shape[len(shape)-1]
	for c := range size(shape) / max(1, h*w) {
		for y := range h {
			for x := range w {
				f(c*h*w, y, x, h, w)
			}
		}
	}
}

func needPlane(what string, x *Tensor) {
	if len(x.shape) < 2 {
		fail("%s of shape %v: want an image (..., height, width)", what, x.shape)
	}
}

// diff is the difference to the next element along the last axis (dx) or the one before (dy); the result is one shorter.
func (t *tape) diff(what string, x *Tensor, dy, dx int) *Tensor {
	needPlane(what, x)
	shape := slices.Clone(x.shape)
	k := len(shape)
	shape[k-2], shape[k-1] = shape[k-2]-dy, shape[k-1]-dx
	if shape[k-2] < 0 || shape[k-1] < 0 {
		fail("%s of shape %v: too small", what, x.shape)
	}
	H, W := x.shape[k-2], x.shape[k-1]
	return t.linear(x, shape, func(f func(to, from int, w float64)) {
		plane(shape, func(base, r, c, h, w int) {
			from := base/max(1, h*w)*H*W + r*W + c
			f(base+r*w+c, from+dy*W+dx, 1)
			f(base+r*w+c, from, -1)
		})
	})
}

// conv is the correlation of every channel with a kernel of odd sides, the picture being zero outside.
func (t *tape) conv(x *Tensor, kernel []float64, kh, kw int) *Tensor {
	needPlane("conv", x)
	return t.linear(x, x.shape, func(f func(to, from int, w float64)) {
		plane(x.shape, func(base, r, c, h, w int) {
			for i := range kh {
				for j := range kw {
					if y, z := r+i-kh/2, c+j-kw/2; y >= 0 && y < h && z >= 0 && z < w {
						f(base+r*w+c, base+y*w+z, kernel[i*kw+j])
					}
				}
			}
		})
	})
}

// blur is a Gaussian blur, the edges repeated, cut off at 3 standard deviations.
func (t *tape) blur(x *Tensor, sd float64) *Tensor {
	needPlane("blur", x)
	n := int(math.Ceil(3 * sd))
	taps, total := make([]float64, 2*n+1), 0.0
	for i := range taps {
		z := float64(i-n) / sd
		taps[i] = math.Exp(-z * z / 2)
		total += taps[i]
	}
	along := func(x *Tensor, dy, dx int) *Tensor {
		return t.linear(x, x.shape, func(f func(to, from int, w float64)) {
			plane(x.shape, func(base, r, c, h, w int) {
				for i, tap := range taps {
					y, z := min(h-1, max(0, r+(i-n)*dy)), min(w-1, max(0, c+(i-n)*dx))
					f(base+r*w+c, base+y*w+z, tap/total)
				}
			})
		})
	}
	return along(along(x, 0, 1), 1, 0)
}

// fft is the real and the imaginary part of the two-dimensional discrete Fourier transform of every channel, normalised by
// 1/sqrt(height width).
func (t *tape) fft(x *Tensor) (re, im *Tensor) {
	needPlane("fft", x)
	h, w := x.shape[len(x.shape)-2], x.shape[len(x.shape)-1]
	row := func(n int) (c, s []float64) {
		c, s = make([]float64, n), make([]float64, n)
		for i := range n {
			s[i], c[i] = math.Sincos(-2 * math.Pi * float64(i) / float64(n))
			c[i], s[i] = c[i]/math.Sqrt(float64(n)), s[i]/math.Sqrt(float64(n))
		}
		return c, s
	}
	along := func(x *Tensor, table []float64, byRow bool) *Tensor {
		return t.linear(x, x.shape, func(f func(to, from int, w float64)) {
			plane(x.shape, func(base, r, c, h, w int) {
				if byRow {
					for k := range w {
						f(base+r*w+c, base+r*w+k, table[c*k%w])
					}
					return
				}
				for k := range h {
					f(base+r*w+c, base+k*w+c, table[r*k%h])
				}
			})
		})
	}
	cw, sw := row(w)
	ch, sh := row(h)
	a, b := along(x, cw, true), along(x, sw, true)
	sub := func(a, b *Tensor, sign float64) *Tensor {
		return t.both("fft", a, b, func(a, b float64) float64 { return a + float64(sign*b) }, func(_, _, _ float64) (float64, float64) { return 1, sign })
	}
	return sub(along(a, ch, false), along(b, sh, false), -1), sub(along(a, sh, false), along(b, ch, false), 1)
}

// matmul is the product of two matrices.
func (t *tape) matmul(a, b *Tensor) *Tensor {
	if len(a.shape) != 2 || len(b.shape) != 2 || a.shape[1] != b.shape[0] {
		fail("matmul of shapes %v and %v", a.shape, b.shape)
	}
	n, m, p := a.shape[0], a.shape[1], b.shape[1]
	out := t.make([]int{n, p}, func(g []float64) {
		ga, gb := a.grad(), b.grad()
		for i := range n {
			for k := range m {
				for j := range p {
					if ga != nil {
						ga[i*m+k] += float64(g[i*p+j] * b.v[k*p+j])
					}
					if gb != nil {
						gb[k*p+j] += float64(g[i*p+j] * a.v[i*m+k])
					}
				}
			}
		}
	}, a, b)
	for i := range n {
		for k := range m {
			for j := range p {
				out.v[i*p+j] += float64(a.v[i*m+k] * b.v[k*p+j])
			}
		}
	}
	return out
}

// cut is one axis of an index: a single place (drops the axis) or start:stop:step.
type cut struct {
	one               bool
	start, step, size int
}

func (t *tape) index(x *Tensor, cuts []cut) *Tensor {
	var shape []int
	for _, c := range cuts {
		if !c.one {
			shape = append(shape, c.size)
		}
	}
	return t.linear(x, shape, func(f func(to, from int, w float64)) {
		n, at := 0, make([]int, len(cuts))
		for k := range cuts {
			if cuts[k].size == 0 {
				return
			}
		}
		for {
			from := 0
			for k, c := range cuts {
				from = from*x.shape[k] + c.start + at[k]*c.step
			}
			f(n, from, 1)
			n++
			k := len(cuts) - 1
			for ; k >= 0; k-- {
				if at[k]++; at[k] < cuts[k].size {
					break
				}
				at[k] = 0
			}
			if k < 0 {
				return
			}
		}
	})
}

func (t *tape) reshape(x *Tensor, shape []int) *Tensor {
	if size(shape) != len(x.v) {
		fail("reshape of %v to %v", x.shape, shape)
	}
	return t.linear(x, shape, func(f func(to, from int, w float64)) {
		for i := range x.v {
			f(i, i, 1)
		}
	})
}
