// Package script runs energies written in Starlark and gives their gradients: what a script computes from the picture is
// recorded on a tape and read backwards. A script is hermetic: it sees the picture and the moment of the run, no files, no
// network, no clock, and stops after a number of steps.
//
// A script defines energy(x0, ctx), x0 the predicted data of one image (channels, height, width), and returns one number:
//
//	def energy(x0, ctx):
//	    top, bottom = x0[0, :14], x0[0, 14:]
//	    return sum((top - bottom - 0.4) ** 2) * ctx.sigma / (1 + ctx.sigma)
//
// Tensors take + - * / // (whole part) % no; ** by a number; numbers and arrays of axes of length 1 are repeated as in numpy.
// They are indexed x[2], x[0, :14], x[:, 3:5], negative places counting from the end. Functions, which also are methods of
// tensors (x.mean()):
//
//	sum mean std norm min max        of a tensor, one number (std divides by n); min and max of two, element by element
//	abs exp log sqrt tanh sigmoid relu sin cos pow   of tensors and numbers, element by element
//	clip(x, lo, hi)
//	dx(x) dy(x)                      difference to the next column, row
//	blur(x, sd) conv(x, rows)        Gaussian blur with repeated edges; correlation with a kernel of odd sides, zero outside
//	fft(x)                           real and imaginary part of the unitary discrete Fourier transform
//	matmul(a, b) dot(a, b) reshape(x, shape) tensor(lists)
//	pi
//
// and, in energies and rewards that are given a World, logp, prob and feat of networks, load and log (see Rewards).
//
// ctx has step, steps, t, sigma (noise level sigma/alpha), alpha, log_snr, progress, seed, particle and class (-1 = none).
package script

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"sync"
	"unicode/utf8"

	"go.starlark.net/resolve"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// Moment is what ctx shows to a script.
type Moment struct {
	Step, Steps     int
	T, Sigma, Alpha float64 // Sigma is sigma/alpha
	Progress        float64
	Seed            uint64
	Particle, Class int
}

// Energy is a script that was read without a mistake. It may be used by several goroutines.
type Energy struct {
	// Steps is the largest number of Starlark steps that one image may take; 0 = 1,000,000.
	Steps uint64
	// Print is told what the script prints; nil drops it.
	Print func(text string)

	file  string
	src   string // as the user wrote it
	out   string // as Starlark read it
	from  []int
	above int  // lines of a wrapper above the user's text
	whole bool // places are not told: the text is an expression inside a wrapper
	fn    *starlark.Function
	pool  sync.Pool // *tape
}

const defaultSteps = 1_000_000

// Parse reads a script that reaches nothing beyond the picture; file names it in errors, which have the form
// file:line:column: what.
func Parse(file, src string) (*Energy, error) { return ParseIn(file, src, World{}) }

// ParseExpr reads an energy that is one expression of x0 and ctx.
func ParseExpr(src string, w World) (*Energy, error) {
	const file = "energy"
	out, _ := translate(src)
	var parse syntax.Error
	if _, err := (&syntax.FileOptions{}).ParseExpr(file, out, 0); errors.As(err, &parse) {
		return nil, fmt.Errorf("%s:%d:%d: %s in %q", file, parse.Pos.Line, parse.Pos.Col, parse.Msg, src)
	} else if err != nil {
		return nil, err
	}
	e := &Energy{above: 1}
	globals, err := e.load(file, "def energy(x0, ctx): return (\n"+src+"\n)\n", names(w))
	if err != nil {
		return nil, err
	}
	e.fn, err = e.function(globals, "energy(x0, ctx)")
	return e, err
}

// ParseIn is Parse with functions that reach the world: logp, prob, feat (also called features) of networks with gradients,
// load of arrays, log(name, value), as rewards have them.
func ParseIn(file, src string, w World) (*Energy, error) {
	e := &Energy{}
	globals, err := e.load(file, src, names(w))
	if err != nil {
		return nil, err
	}
	fn, err := e.function(globals, "energy(x0, ctx)")
	if fn == nil && err == nil {
		err = fmt.Errorf("%s:1:1: the script defines no function energy(x0, ctx)", file)
	}
	e.fn = fn
	return e, err
}

// load reads a script, with names beyond the functions of tensors.
func (e *Energy) load(file, src string, more starlark.StringDict) (starlark.StringDict, error) {
	e.file, e.src = file, src
	e.pool.New = func() any { return &tape{} }
	e.out, e.from = translate(src)
	names := starlark.StringDict{"pi": starlark.Float(math.Pi), "slice": starlark.NewBuiltin("slice", sliceOf)}
	for name := range functions {
		names[name] = starlark.NewBuiltin(name, call)
	}
	maps.Copy(names, more)
	thread := e.thread(context.Background(), &tape{})
	globals, err := starlark.ExecFileOptions(&syntax.FileOptions{}, thread, file, e.out, names)
	if err != nil {
		return nil, e.explain(err)
	}
	return globals, nil
}

// function finds a function of the script by its form, such as energy(x0, ctx); nil where there is none.
func (e *Energy) function(globals starlark.StringDict, form string) (*starlark.Function, error) {
	name, _, _ := strings.Cut(form, "(")
	fn, ok := globals[name].(*starlark.Function)
	if !ok {
		return nil, nil
	}
	if want := strings.Count(form, ",") + 1; fn.NumParams() != want || fn.HasKwargs() || fn.HasVarargs() {
		return nil, fmt.Errorf("%s: %s takes %d parameters, want %s", e.place(fn.Position()), name, fn.NumParams(), form)
	}
	return fn, nil
}

// Text returns the script as it was given.
func (e *Energy) Text() string { return e.src }

type running struct {
	ctx  context.Context
	tape *tape
}

func (e *Energy) thread(ctx context.Context, t *tape) *starlark.Thread {
	th := &starlark.Thread{Name: e.file, Print: func(_ *starlark.Thread, text string) {
		if e.Print != nil {
			e.Print(text)
		}
	}}
	limit := e.Steps
	if limit == 0 {
		limit = defaultSteps
	}
	th.SetMaxExecutionSteps(limit)
	th.OnMaxSteps = func(th *starlark.Thread) { th.Cancel(fmt.Sprintf("more than %d steps", limit)) }
	th.SetLocal("running", &running{ctx, t})
	return th
}

// Eval returns the energy of one image of the given shape and writes its gradient. The result depends on the arguments
// alone.
func (e *Energy) Eval(ctx context.Context, at Moment, x []float64, shape []int, grad []float64) (energy float64, err error) {
	energy, _, err = e.EvalLog(ctx, at, x, shape, grad)
	return energy, err
}

// EvalLog is Eval that returns what the script logged too, by name; nil where it logged nothing.
func (e *Energy) EvalLog(ctx context.Context, at Moment, x []float64, shape []int, grad []float64) (energy float64, columns map[string]float64, err error) {
	p := &pictured{check: &check{ctx: ctx, x: x, n: 1, shape: shape, nets: map[string]*answers{}}}
	energy, err = e.eval(ctx, e.fn, moment(at), x, shape, grad, p)
	return energy, p.columns, err
}

// eval runs a function of the script on one image; local is what its own functions find on the thread. Without grad
// nothing is recorded.
func (e *Energy) eval(ctx context.Context, fn *starlark.Function, at starlark.Value, x []float64, shape []int, grad []float64, local any) (energy float64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	t := e.pool.Get().(*tape)
	defer e.pool.Put(t)
	defer func() { // where Starlark asks for an element, there is no way to return an error
		if r := recover(); r != nil {
			bad, ok := r.(failure)
			if !ok {
				panic(r)
			}
			err = fmt.Errorf("%s: %w", e.place(fn.Position()), bad.error)
		}
	}()
	t.reset()
	x0 := &Tensor{shape: shape, v: x}
	if grad != nil {
		x0.tape = t
	}
	th := e.thread(ctx, t)
	th.SetLocal("local", local)
	th.SetLocal("picture", x0)
	out, err := starlark.Call(th, fn, starlark.Tuple{x0, at}, nil)
	if err != nil {
		return 0, e.explain(err)
	}
	clear(grad)
	switch v := out.(type) {
	case starlark.Float:
		return float64(v), nil
	case starlark.Int:
		f, _ := starlark.AsFloat(v)
		return f, nil
	case *Tensor:
		if len(v.v) != 1 {
			return 0, fmt.Errorf("%s: %s returned a tensor of shape %v, want one number (its sum or mean, say)", e.place(fn.Position()), fn.Name(), v.shape)
		}
		if grad != nil {
			t.backward(v)
			if x0.g != nil {
				copy(grad, x0.g)
			}
		}
		return v.v[0], nil
	}
	return 0, fmt.Errorf("%s: %s returned %s, want one number", e.place(fn.Position()), fn.Name(), out.Type())
}

// Check runs the script once on an image of the given shape, so that its mistakes are found before any work is done, and
// returns the largest difference of its gradient from central differences at some elements, relative to the largest
// gradient among them (or to 1e-6 of the energy, where that is more: no difference can see less).
func (e *Energy) Check(ctx context.Context, at Moment, shape []int) (worst float64, err error) {
	x := make([]float64, size(shape))
	for i := range x {
		x[i] = 0.8 * math.Sin(1+2.4*float64(i)) // anything without ties
	}
	grad, rest := make([]float64, len(x)), make([]float64, len(x))
	energy, err := e.Eval(ctx, at, x, shape, grad)
	if err != nil {
		return 0, err
	}
	most := 1e-6 * max(1, math.Abs(energy))
	for k := range min(8, len(x)) {
		i := k * len(x) / min(8, len(x))
		const h = 1e-5
		was := x[i]
		var side [2]float64
		for j, d := range []float64{h, -h} {
			x[i] = was + d
			if side[j], err = e.Eval(ctx, at, x, shape, rest); err != nil {
				return 0, err
			}
		}
		x[i] = was
		worst, most = max(worst, math.Abs((side[0]-side[1])/(2*h)-grad[i])), max(most, math.Abs(grad[i]))
	}
	return worst / most, nil
}

// place writes a position of the translated text as one of the user's.
func (e *Energy) place(p syntax.Position) string {
	if e.whole {
		return e.file
	}
	if p.Filename() != e.file || p.Line < 1 {
		return p.String()
	}
	at := e.from[min(offset(e.out, p), len(e.from)-1)]
	start := strings.LastIndexByte(e.src[:at], '\n') + 1
	return fmt.Sprintf("%s:%d:%d", e.file, strings.Count(e.src[:at], "\n")+1-e.above, utf8.RuneCountInString(e.src[start:at])+1)
}

// explain writes an error of Starlark with the innermost place in the script.
func (e *Energy) explain(err error) error {
	var parse syntax.Error
	var names resolve.ErrorList
	var run *starlark.EvalError
	switch {
	case errors.As(err, &parse):
		return fmt.Errorf("%s: %s", e.place(parse.Pos), parse.Msg)
	case errors.As(err, &names) && len(names) > 0:
		return fmt.Errorf("%s: %s", e.place(names[0].Pos), names[0].Msg)
	case errors.As(err, &run):
		for i := len(run.CallStack) - 1; i >= 0; i-- {
			if p := run.CallStack[i].Pos; p.Filename() == e.file {
				if cause := errors.Unwrap(run); cause != nil {
					return fmt.Errorf("%s: %w", e.place(p), cause)
				}
				return fmt.Errorf("%s: %s", e.place(p), run.Msg)
			}
		}
	}
	return fmt.Errorf("%s: %w", e.file, err)
}

// moment is ctx.
type moment Moment

func (m moment) String() string        { return "ctx" }
func (m moment) Type() string          { return "ctx" }
func (m moment) Freeze()               {}
func (m moment) Truth() starlark.Bool  { return true }
func (m moment) Hash() (uint32, error) { return 0, fmt.Errorf("ctx is no key") }

func (m moment) Attr(name string) (starlark.Value, error) {
	switch name {
	case "step":
		return starlark.MakeInt(m.Step), nil
	case "steps":
		return starlark.MakeInt(m.Steps), nil
	case "t":
		return starlark.Float(m.T), nil
	case "sigma":
		return starlark.Float(m.Sigma), nil
	case "alpha":
		return starlark.Float(m.Alpha), nil
	case "log_snr":
		return starlark.Float(-2 * math.Log(m.Sigma)), nil
	case "progress":
		return starlark.Float(m.Progress), nil
	case "seed":
		return starlark.MakeUint64(m.Seed), nil
	case "particle":
		return starlark.MakeInt(m.Particle), nil
	case "label":
		return starlark.MakeInt(m.Class), nil
	}
	return nil, nil
}

func (m moment) AttrNames() []string {
	return []string{"alpha", "label", "log_snr", "particle", "progress", "seed", "sigma", "step", "steps", "t"}
}

// axis is slice(start, stop, step), in an index of several axes.
type axis struct{ start, stop, step starlark.Value }

func (axis) String() string        { return "slice" }
func (axis) Type() string          { return "slice" }
func (axis) Freeze()               {}
func (axis) Truth() starlark.Bool  { return true }
func (axis) Hash() (uint32, error) { return 0, fmt.Errorf("a slice is no key") }

func sliceOf(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	a := axis{starlark.None, starlark.None, starlark.None}
	err := starlark.UnpackPositionalArgs(b.Name(), args, kwargs, 0, &a.start, &a.stop, &a.step)
	return a, err
}

// caught turns a failure of the arithmetic into an error.
func caught(err *error) {
	switch r := recover().(type) {
	case nil:
	case failure:
		*err = r.error
	default:
		panic(r)
	}
}

// cut reads one axis of an index.
func (a axis) cut(n int) (cut, error) {
	get := func(v starlark.Value, def int) (int, error) {
		if v == starlark.None {
			return def, nil
		}
		k, err := starlark.AsInt32(v)
		return k, err
	}
	step, err := get(a.step, 1)
	if err != nil {
		return cut{}, err
	}
	if step < 1 {
		return cut{}, fmt.Errorf("a slice goes by %d: want 1 or more", step)
	}
	lo, err := get(a.start, 0)
	if err != nil {
		return cut{}, err
	}
	hi, err := get(a.stop, n)
	if err != nil {
		return cut{}, err
	}
	bound := func(k int) int {
		if k < 0 {
			k += n
		}
		return min(n, max(0, k))
	}
	lo, hi = bound(lo), bound(hi)
	return cut{start: lo, step: step, size: max(0, (hi-lo+step-1)/step)}, nil
}

// The Starlark side of a Tensor.
var (
	_ starlark.HasBinary = (*Tensor)(nil)
	_ starlark.HasUnary  = (*Tensor)(nil)
	_ starlark.HasAttrs  = (*Tensor)(nil)
	_ starlark.Mapping   = (*Tensor)(nil)
	_ starlark.Sliceable = (*Tensor)(nil)
)

func (x *Tensor) String() string {
	if len(x.v) == 1 {
		return fmt.Sprintf("%g", x.v[0])
	}
	return fmt.Sprintf("tensor%v", x.shape)
}

// Type implements starlark.Value.
func (x *Tensor) Type() string { return "tensor" }

// Freeze implements starlark.Value: tensors do not change.
func (x *Tensor) Freeze() {}

// Truth implements starlark.Value.
func (x *Tensor) Truth() starlark.Bool { return len(x.v) != 1 || x.v[0] != 0 }

// Hash implements starlark.Value.
func (x *Tensor) Hash() (uint32, error) { return 0, fmt.Errorf("a tensor is no key") }

// CompareSameType implements starlark.Comparable for tensors of one number.
func (x *Tensor) CompareSameType(op syntax.Token, y starlark.Value, _ int) (bool, error) {
	o := y.(*Tensor)
	if len(x.v) != 1 || len(o.v) != 1 {
		return false, fmt.Errorf("tensors of shapes %v and %v are compared: only single numbers are", x.shape, o.shape)
	}
	a, b := x.v[0], o.v[0]
	switch op {
	case syntax.EQL:
		return a == b, nil
	case syntax.NEQ:
		return a != b, nil
	case syntax.LT:
		return a < b, nil
	case syntax.LE:
		return a <= b, nil
	case syntax.GT:
		return a > b, nil
	}
	return a >= b, nil
}
