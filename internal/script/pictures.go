package script

import (
	"fmt"
	"math"
	"slices"

	"go.starlark.net/starlark"
)

// Functions of pictures, beside those in functions.go.
func init() {
	cosine := functions["cos"]
	functions["cos"] = function{most: 2, f: func(t *tape, a []starlark.Value) (starlark.Value, error) {
		if len(a) != 2 {
			return cosine.f(t, a)
		}
		x, y, err := twoOf(a)
		if err != nil {
			return nil, err
		}
		return t.angle(x, y)
	}}
	functions["quantile"] = function{most: 2, f: func(_ *tape, a []starlark.Value) (starlark.Value, error) {
		x, ok := tensorAt(a, 0)
		q, isNumber := 0.0, false
		if len(a) == 2 {
			q, isNumber = starlark.AsFloat(a[1])
		}
		if !ok || !isNumber || !(q >= 0 && q <= 1) || len(x.v) == 0 {
			return nil, fmt.Errorf("want quantile(x, q) with q from 0 to 1")
		}
		if x.tape != nil {
			return nil, errNoGradient
		}
		v := slices.Clone(x.v)
		slices.Sort(v)
		at := q * float64(len(v)-1)
		k := min(int(at), len(v)-1)
		f := at - float64(k)
		return constant(v[k] + f*(v[min(k+1, len(v)-1)]-v[k])), nil
	}}
	functions["edges"] = function{most: 1, f: reduction(func(t *tape, x *Tensor) *Tensor {
		if len(x.shape) < 2 || x.shape[len(x.shape)-1] < 2 || x.shape[len(x.shape)-2] < 2 {
			fail("edges of shape %v: want a picture of two rows and columns or more", x.shape)
		}
		h, w := x.shape[len(x.shape)-2], x.shape[len(x.shape)-1]
		var lead []cut
		for _, n := range x.shape[:len(x.shape)-2] {
			lead = append(lead, cut{step: 1, size: n})
		}
		dx := t.index(t.diff("dx", x, 0, 1), append(slices.Clone(lead), cut{step: 1, size: h - 1}, cut{step: 1, size: w - 1}))
		dy := t.index(t.diff("dy", x, 1, 0), append(slices.Clone(lead), cut{step: 1, size: h - 1}, cut{step: 1, size: w - 1}))
		sq := t.add(t.add(t.mul(dx, dx), t.mul(dy, dy)), constant(1e-12)) // the root has a gradient at 0
		return t.each(sq, math.Sqrt, func(_, y float64) float64 { return 1 / (2 * y) })
	})}
	functions["rgb"] = function{most: 1, f: reduction(func(t *tape, x *Tensor) *Tensor { return t.colours(x) })}
	functions["hsv"] = function{most: 1, f: func(t *tape, a []starlark.Value) (starlark.Value, error) {
		x, ok := tensorAt(a, 0)
		if !ok || len(a) != 1 {
			return nil, fmt.Errorf("want one tensor")
		}
		if x.tape != nil {
			return nil, errNoGradient
		}
		return hsv(t.colours(x)), nil
	}}
}

// colours makes a picture (C, H, W) in [-1, 1], C 1 or 3, one of (3, H, W) in [0, 1].
func (t *tape) colours(x *Tensor) *Tensor {
	if len(x.shape) != 3 || (x.shape[0] != 1 && x.shape[0] != 3) {
		fail("colours of shape %v: want (1, H, W) or (3, H, W)", x.shape)
	}
	unit := t.mul(t.add(x, constant(1)), constant(0.5))
	if x.shape[0] == 3 {
		return unit
	}
	return t.add(unit, &Tensor{shape: []int{3, 1, 1}, v: make([]float64, 3)})
}

// hsv turns (3, H, W) of red, green and blue in [0, 1] into hue (in turns), saturation and value.
func hsv(x *Tensor) *Tensor {
	n := len(x.v) / 3
	out := &Tensor{shape: slices.Clone(x.shape), v: make([]float64, len(x.v))}
	for i := range n {
		r, g, b := x.v[i], x.v[n+i], x.v[2*n+i]
		hi, lo := max(r, g, b), min(r, g, b)
		d := hi - lo
		h := 0.0
		switch {
		case d == 0:
		case hi == r:
			h = math.Mod((g-b)/d+6, 6)
		case hi == g:
			h = (b-r)/d + 2
		default:
			h = (r-g)/d + 4
		}
		out.v[i], out.v[2*n+i] = h/6, hi
		if hi > 0 {
			out.v[n+i] = d / hi
		}
	}
	return out
}

// angle is the cosine of the angle between a and b; where b has one axis more, the mean over its rows.
func (t *tape) angle(a, b *Tensor) (starlark.Value, error) {
	one := func(a, b *Tensor) *Tensor {
		return t.div(t.sum(t.mul(a, b), 1), t.mul(t.norm(a), t.norm(b)))
	}
	if slices.Equal(a.shape, b.shape) {
		return one(a, b), nil
	}
	if len(b.shape) != len(a.shape)+1 || !slices.Equal(b.shape[1:], a.shape) || b.shape[0] == 0 {
		return nil, fmt.Errorf("the angle between shapes %v and %v: want equal ones, or rows of the first in the second", a.shape, b.shape)
	}
	var sum *Tensor
	for i := range b.shape[0] {
		cuts := []cut{{one: true, start: i, size: 1}}
		for _, n := range a.shape {
			cuts = append(cuts, cut{step: 1, size: n})
		}
		c := one(a, b.space().index(b, cuts))
		if sum == nil {
			sum = c
		} else {
			sum = t.add(sum, c)
		}
	}
	return t.mul(sum, constant(1/float64(b.shape[0]))), nil
}
