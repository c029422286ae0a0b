package script

import (
	"fmt"
	"math"
	"slices"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// constant makes a number a tensor.
func constant(v float64) *Tensor { return &Tensor{v: []float64{v}} }

// operand reads a number or a tensor.
func operand(v starlark.Value) (*Tensor, bool) {
	if t, ok := v.(*Tensor); ok {
		return t, true
	}
	if f, ok := starlark.AsFloat(v); ok {
		if _, no := v.(starlark.Bool); !no {
			return constant(f), true
		}
	}
	return nil, false
}

func add(a, b float64) float64 { return a + b }
func sub(a, b float64) float64 { return a - b }
func mul(a, b float64) float64 { return a * b }
func div(a, b float64) float64 { return a / b }

func (t *tape) add(a, b *Tensor) *Tensor {
	return t.both("a sum", a, b, add, func(_, _, _ float64) (float64, float64) { return 1, 1 })
}

func (t *tape) sub(a, b *Tensor) *Tensor {
	return t.both("a difference", a, b, sub, func(_, _, _ float64) (float64, float64) { return 1, -1 })
}

func (t *tape) mul(a, b *Tensor) *Tensor {
	return t.both("a product", a, b, mul, func(a, b, _ float64) (float64, float64) { return b, a })
}

func (t *tape) div(a, b *Tensor) *Tensor {
	return t.both("a quotient", a, b, div, func(_, b, y float64) (float64, float64) { return 1 / b, -y / b })
}

// pow is a^b; of a negative number it exists for whole b, and where b is not constant there is no gradient by it then.
func (t *tape) pow(a, b *Tensor) *Tensor {
	byExponent := b.tape != nil
	return t.both("a power", a, b, func(a, b float64) float64 {
		if b == 2 {
			return a * a
		}
		return math.Pow(a, b)
	}, func(a, b, y float64) (da, db float64) {
		switch {
		case b == 2:
			da = 2 * a
		case b != 0:
			da = b * math.Pow(a, b-1)
		}
		if byExponent && a > 0 {
			db = y * math.Log(a)
		}
		return da, db
	})
}

// Binary implements starlark.HasBinary.
func (x *Tensor) Binary(op syntax.Token, y starlark.Value, side starlark.Side) (out starlark.Value, err error) {
	defer caught(&err)
	o, ok := operand(y)
	if !ok {
		return nil, nil
	}
	a, b := x, o
	if side == starlark.Right {
		a, b = o, x
	}
	t := x.tape
	if t == nil {
		t = o.tape
	}
	if t == nil { // two constants
		t = &tape{}
		t.reset()
	}
	switch op {
	case syntax.PLUS:
		return t.add(a, b), nil
	case syntax.MINUS:
		return t.sub(a, b), nil
	case syntax.STAR:
		return t.mul(a, b), nil
	case syntax.SLASH:
		return t.div(a, b), nil
	}
	return nil, nil
}

// Unary implements starlark.HasUnary.
func (x *Tensor) Unary(op syntax.Token) (out starlark.Value, err error) {
	switch op {
	case syntax.PLUS:
		return x, nil
	case syntax.MINUS:
		return x.Binary(syntax.STAR, starlark.MakeInt(-1), starlark.Left)
	}
	return nil, nil
}

// Len implements starlark.Indexable: the length of the first axis.
func (x *Tensor) Len() int {
	if len(x.shape) == 0 {
		return 0
	}
	return x.shape[0]
}

// Index implements starlark.Indexable.
func (x *Tensor) Index(i int) starlark.Value { return x.at([]cut{{one: true, start: i, size: 1}}) }

// Slice implements starlark.Sliceable.
func (x *Tensor) Slice(start, end, step int) starlark.Value {
	n := 0
	switch {
	case step > 0 && end > start:
		n = (end - start + step - 1) / step
	case step < 0 && end < start:
		n = (start - end - step - 1) / -step
	}
	return x.at([]cut{{start: start, step: step, size: n}})
}

// at cuts the first axes and leaves the others whole.
func (x *Tensor) at(cuts []cut) *Tensor {
	if len(cuts) > len(x.shape) {
		fail("an index of %d axes for shape %v", len(cuts), x.shape)
	}
	for _, n := range x.shape[len(cuts):] {
		cuts = append(cuts, cut{step: 1, size: n})
	}
	return x.space().index(x, cuts)
}

// space is the tape that x is on, or one of its own for a constant.
func (x *Tensor) space() *tape {
	if x.tape != nil {
		return x.tape
	}
	t := &tape{}
	t.reset()
	return t
}

// Get implements starlark.Mapping: x[i], and x[i, a:b, ...], which scripts may write.
func (x *Tensor) Get(key starlark.Value) (out starlark.Value, found bool, err error) {
	defer caught(&err)
	keys, ok := key.(starlark.Tuple)
	if !ok {
		keys = starlark.Tuple{key}
	}
	if len(keys) > len(x.shape) {
		return nil, false, fmt.Errorf("an index of %d axes for shape %v", len(keys), x.shape)
	}
	var cuts []cut
	for k, v := range keys {
		n := x.shape[k]
		if a, ok := v.(axis); ok {
			c, err := a.cut(n)
			if err != nil {
				return nil, false, err
			}
			cuts = append(cuts, c)
			continue
		}
		i, err := starlark.AsInt32(v)
		if err != nil {
			return nil, false, fmt.Errorf("index of axis %d: %w", k, err)
		}
		if i < 0 {
			i += n
		}
		if i < 0 || i >= n {
			return nil, false, fmt.Errorf("index %v is outside axis %d of shape %v", v, k, x.shape)
		}
		cuts = append(cuts, cut{one: true, start: i, size: 1})
	}
	return x.at(cuts), true, nil
}

// Attr implements starlark.HasAttrs: shape, and the functions as methods.
func (x *Tensor) Attr(name string) (starlark.Value, error) {
	if name == "shape" {
		var out starlark.Tuple
		for _, n := range x.shape {
			out = append(out, starlark.MakeInt(n))
		}
		return out, nil
	}
	if _, ok := functions[name]; ok && name != "tensor" {
		return starlark.NewBuiltin(name, call).BindReceiver(x), nil
	}
	return nil, nil
}

// AttrNames implements starlark.HasAttrs.
func (x *Tensor) AttrNames() []string {
	names := []string{"shape"}
	for name := range functions {
		if name != "tensor" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// function is a function of scripts.
type function struct {
	most int // arguments
	f    func(t *tape, a []starlark.Value) (starlark.Value, error)
}

var functions = map[string]function{
	"abs": elementwise(math.Abs, func(x, _ float64) float64 {
		switch {
		case x > 0:
			return 1
		case x < 0:
			return -1
		}
		return 0
	}),
	"exp":     elementwise(math.Exp, func(_, y float64) float64 { return y }),
	"log":     elementwise(math.Log, func(x, _ float64) float64 { return 1 / x }),
	"sqrt":    elementwise(math.Sqrt, func(_, y float64) float64 { return 1 / (2 * y) }),
	"tanh":    elementwise(math.Tanh, func(_, y float64) float64 { return 1 - y*y }),
	"sigmoid": elementwise(func(x float64) float64 { return 1 / (1 + math.Exp(-x)) }, func(_, y float64) float64 { return y * (1 - y) }),
	"sin":     elementwise(math.Sin, func(x, _ float64) float64 { return math.Cos(x) }),
	"cos":     elementwise(math.Cos, func(x, _ float64) float64 { return -math.Sin(x) }),
	"relu": elementwise(func(x float64) float64 { return max(0, x) }, func(x, _ float64) float64 {
		if x > 0 {
			return 1
		}
		return 0
	}),
	"pow": {most: 2, f: func(t *tape, a []starlark.Value) (starlark.Value, error) {
		x, y, err := twoOf(a)
		if err != nil {
			return nil, err
		}
		return number(t.pow(x, y), a), nil
	}},
	"sum": {most: 1, f: reduction(func(t *tape, x *Tensor) *Tensor { return t.sum(x, 1) })},
	"mean": {most: 1, f: reduction(func(t *tape, x *Tensor) *Tensor {
		if len(x.v) == 0 {
			fail("the mean of nothing")
		}
		return t.sum(x, 1/float64(len(x.v)))
	})},
	"norm": {most: 1, f: reduction((*tape).norm)},
	"std": {most: 1, f: reduction(func(t *tape, x *Tensor) *Tensor {
		n := float64(len(x.v))
		if n == 0 {
			fail("the spread of nothing")
		}
		d := t.norm(t.sub(x, t.sum(x, 1/n)))
		return t.mul(d, constant(1/math.Sqrt(n)))
	})},
	"max": extreme(1),
	"min": extreme(-1),
	"clip": {most: 3, f: func(t *tape, a []starlark.Value) (starlark.Value, error) {
		if len(a) != 3 {
			return nil, fmt.Errorf("want clip(x, lo, hi)")
		}
		x, ok := operand(a[0])
		lo, ok1 := starlark.AsFloat(a[1])
		hi, ok2 := starlark.AsFloat(a[2])
		if !ok || !ok1 || !ok2 || !(lo <= hi) {
			return nil, fmt.Errorf("want clip(x, lo, hi) with numbers lo <= hi")
		}
		return number(t.each(x, func(v float64) float64 { return min(hi, max(lo, v)) }, func(v, _ float64) float64 {
			if v >= lo && v <= hi {
				return 1
			}
			return 0
		}), a), nil
	}},
	"dx": {most: 1, f: reduction(func(t *tape, x *Tensor) *Tensor { return t.diff("dx", x, 0, 1) })},
	"dy": {most: 1, f: reduction(func(t *tape, x *Tensor) *Tensor { return t.diff("dy", x, 1, 0) })},
	"blur": {most: 2, f: func(t *tape, a []starlark.Value) (starlark.Value, error) {
		x, ok := tensorAt(a, 0)
		sd, ok2 := 0.0, false
		if len(a) == 2 {
			sd, ok2 = starlark.AsFloat(a[1])
		}
		if !ok || !ok2 || !(sd > 0 && sd <= 64) {
			return nil, fmt.Errorf("want blur(x, sd) with sd above 0 and at most 64")
		}
		return t.blur(x, sd), nil
	}},
	"conv": {most: 2, f: func(t *tape, a []starlark.Value) (starlark.Value, error) {
		x, ok := tensorAt(a, 0)
		if !ok || len(a) != 2 {
			return nil, fmt.Errorf("want conv(x, rows of numbers)")
		}
		k, err := literal(a[1])
		if err != nil {
			return nil, err
		}
		if len(k.shape) != 2 || k.tape != nil || k.shape[0]%2 == 0 || k.shape[1]%2 == 0 {
			return nil, fmt.Errorf("a kernel of shape %v: want a constant one of two axes with odd sides", k.shape)
		}
		return t.conv(x, k.v, k.shape[0], k.shape[1]), nil
	}},
	"fft": {most: 1, f: func(t *tape, a []starlark.Value) (starlark.Value, error) {
		x, ok := tensorAt(a, 0)
		if !ok {
			return nil, fmt.Errorf("want fft(x)")
		}
		re, im := t.fft(x)
		return starlark.Tuple{re, im}, nil
	}},
	"matmul": {most: 2, f: func(t *tape, a []starlark.Value) (starlark.Value, error) {
		x, y, err := twoOf(a)
		if err != nil {
			return nil, err
		}
		return t.matmul(x, y), nil
	}},
	"dot": {most: 2, f: func(t *tape, a []starlark.Value) (starlark.Value, error) {
		x, y, err := twoOf(a)
		if err != nil {
			return nil, err
		}
		if !slices.Equal(x.shape, y.shape) {
			return nil, fmt.Errorf("dot of shapes %v and %v", x.shape, y.shape)
		}
		return t.sum(t.mul(x, y), 1), nil
	}},
	"reshape": {most: 2, f: func(t *tape, a []starlark.Value) (starlark.Value, error) {
		x, ok := tensorAt(a, 0)
		if !ok || len(a) != 2 {
			return nil, fmt.Errorf("want reshape(x, shape)")
		}
		var shape []int
		list, ok := a[1].(starlark.Indexable)
		if !ok {
			return nil, fmt.Errorf("want reshape(x, shape) with a list of lengths")
		}
		for i := range list.Len() {
			n, err := starlark.AsInt32(list.Index(i))
			if err != nil || n < 0 {
				return nil, fmt.Errorf("want reshape(x, shape) with a list of lengths")
			}
			shape = append(shape, n)
		}
		return t.reshape(x, shape), nil
	}},
	"tensor": {most: 1, f: func(_ *tape, a []starlark.Value) (starlark.Value, error) {
		if len(a) != 1 {
			return nil, fmt.Errorf("want tensor(lists of numbers)")
		}
		return literal(a[0])
	}},
}

func tensorAt(a []starlark.Value, i int) (*Tensor, bool) {
	if i >= len(a) {
		return nil, false
	}
	t, ok := a[i].(*Tensor)
	return t, ok
}

func twoOf(a []starlark.Value) (x, y *Tensor, err error) {
	if len(a) == 2 {
		x, okx := operand(a[0])
		y, oky := operand(a[1])
		if okx && oky {
			return x, y, nil
		}
	}
	return nil, nil, fmt.Errorf("want two tensors or numbers")
}

// number gives a result back as a plain number where no argument was a tensor.
func number(out *Tensor, a []starlark.Value) starlark.Value {
	for _, v := range a {
		if _, ok := v.(*Tensor); ok {
			return out
		}
	}
	return starlark.Float(out.v[0])
}

func elementwise(f func(float64) float64, d func(x, y float64) float64) function {
	return function{most: 1, f: func(t *tape, a []starlark.Value) (starlark.Value, error) {
		if len(a) == 1 {
			if x, ok := operand(a[0]); ok {
				return number(t.each(x, f, d), a), nil
			}
		}
		return nil, fmt.Errorf("want one tensor or number")
	}}
}

func reduction(f func(t *tape, x *Tensor) *Tensor) func(*tape, []starlark.Value) (starlark.Value, error) {
	return func(t *tape, a []starlark.Value) (starlark.Value, error) {
		if len(a) == 1 {
			if x, ok := a[0].(*Tensor); ok {
				return f(t, x), nil
			}
		}
		return nil, fmt.Errorf("want one tensor")
	}
}

// extreme is max (sign 1) or min (sign -1): of a tensor, or of two operands element by element. Of equals the first has
// the gradient.
func extreme(sign float64) function {
	return function{most: 2, f: func(t *tape, a []starlark.Value) (starlark.Value, error) {
		if x, ok := tensorAt(a, 0); ok && len(a) == 1 {
			return t.most(x, sign), nil
		}
		x, y, err := twoOf(a)
		if err != nil {
			return nil, fmt.Errorf("want one tensor, or two tensors or numbers")
		}
		first := func(a, b float64) bool { return sign*a >= sign*b }
		return number(t.both("max or min", x, y, func(a, b float64) float64 {
			if first(a, b) {
				return a
			}
			return b
		}, func(a, b, _ float64) (float64, float64) {
			if first(a, b) {
				return 1, 0
			}
			return 0, 1
		}), a), nil
	}}
}

// literal makes nested lists of numbers a constant.
func literal(v starlark.Value) (*Tensor, error) {
	if t, ok := operand(v); ok {
		return t, nil
	}
	list, ok := v.(starlark.Indexable)
	if !ok {
		return nil, fmt.Errorf("%s where a number or a list of numbers should be", v.Type())
	}
	if _, text := v.(starlark.String); text {
		return nil, fmt.Errorf("a text where a number or a list of numbers should be")
	}
	out := &Tensor{shape: []int{list.Len()}}
	for i := range list.Len() {
		row, err := literal(list.Index(i))
		if err != nil {
			return nil, err
		}
		if row.tape != nil {
			return nil, fmt.Errorf("a list holds a tensor: want numbers")
		}
		if i == 0 {
			out.shape = append(out.shape, row.shape...)
		} else if !slices.Equal(out.shape[1:], row.shape) {
			return nil, fmt.Errorf("rows of shapes %v and %v in one list", out.shape[1:], row.shape)
		}
		out.v = append(out.v, row.v...)
	}
	return out, nil
}

// call runs a function of scripts, as a function or as a method.
func call(th *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (out starlark.Value, err error) {
	defer caught(&err)
	f := functions[b.Name()]
	if len(kwargs) > 0 {
		return nil, fmt.Errorf("%s takes no named arguments", b.Name())
	}
	if r := b.Receiver(); r != nil {
		args = append(starlark.Tuple{r}, args...)
	}
	if len(args) > f.most {
		return nil, fmt.Errorf("%s takes at most %d arguments, not %d", b.Name(), f.most, len(args))
	}
	run := th.Local("running").(*running)
	if err := run.ctx.Err(); err != nil {
		return nil, err
	}
	if out, err = f.f(run.tape, args); err != nil {
		return nil, fmt.Errorf("%s: %w", b.Name(), err)
	}
	return out, nil
}
