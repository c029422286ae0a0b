package script_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"drift/internal/script"
)

var at = script.Moment{Step: 3, Steps: 10, T: 0.5, Sigma: 0.8, Alpha: 0.7, Progress: 0.3, Seed: 5, Particle: 2, Class: 4}

func picture(n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = 0.8 * math.Sin(1+2.4*float64(i))
	}
	return x
}

// TestGradient: every function, operator and kind of index against central differences in every element, and the energy
// itself where it is easy to say.
func TestGradient(t *testing.T) {
	for body, want := range map[string]func(x []float64) float64{
		"sum(x0)":              func(x []float64) float64 { return fold(x, func(v float64) float64 { return v }) },
		"mean(x0 * x0)":        func(x []float64) float64 { return fold(x, func(v float64) float64 { return v * v }) / float64(len(x)) },
		"sum((x0 - 0.4) ** 2)": func(x []float64) float64 { return fold(x, func(v float64) float64 { return (v - 0.4) * (v - 0.4) }) },
		"sum(2 ** x0)":         func(x []float64) float64 { return fold(x, func(v float64) float64 { return math.Pow(2, v) }) },
		"sum(abs(x0) ** 1.5)": func(x []float64) float64 {
			return fold(x, func(v float64) float64 { return math.Pow(math.Abs(v), 1.5) })
		},
		"sum(-x0 ** 3 / 2 + 1)": func(x []float64) float64 { return fold(x, func(v float64) float64 { return -v*v*v/2 + 1 }) },
		"sum(2 * x0 ** 2 ** 1)": func(x []float64) float64 { return fold(x, func(v float64) float64 { return 2 * v * v }) },
		"norm(x0)": func(x []float64) float64 {
			return math.Sqrt(fold(x, func(v float64) float64 { return v * v }))
		},
		"x0.max() + 2 * x0.min()":   func(x []float64) float64 { return slices.Max(x) + 2*slices.Min(x) },
		"x0[1, 2, 3]":               func(x []float64) float64 { return x[20+2*5+3] },
		"x0[-1][0][-2]":             func(x []float64) float64 { return x[20+3] },
		"dot(x0[0, :2], x0[0, 2:])": func(x []float64) float64 { return fold(x[:10], nil, x[10:20]...) },
		"sum(x0[:, 1:4:2, ::3])":    func(x []float64) float64 { return x[5] + x[8] + x[15] + x[18] + x[25] + x[28] + x[35] + x[38] },
		"sum(x0[0][1:3])":           func(x []float64) float64 { return fold(x[5:15], func(v float64) float64 { return v }) },
		"sum(x0[::-1][0] * x0[0])":  func(x []float64) float64 { return fold(x[20:], nil, x[:20]...) },
		"ctx.sigma * x0.mean()":     func(x []float64) float64 { return 0.8 * fold(x, func(v float64) float64 { return v }) / 40 },
		"x0.std()":                  nil,
		"sum(exp(x0) + log(x0 * x0 + 1) + sqrt(x0 * x0 + 0.1))":                nil,
		"sum(tanh(x0) * sigmoid(x0) + relu(x0) - abs(x0) + sin(x0) * cos(x0))": nil,
		"sum(clip(x0, -0.3, 0.5) * x0)":                                        nil,
		"sum(max(x0, 0.1) * min(x0, -0.2))":                                    nil,
		"sum(x0 / (2 + x0) + 1 / (3 + x0))":                                    nil,
		"sum(pow(x0 * x0 + 1, x0))":                                            nil,
		"sum((dx(x0) * dx(x0))[:, 1:]) + sum(dy(x0) ** 2)":                     nil,
		"sum(blur(x0, 1.3) * x0)":                                              nil,
		"sum(conv(x0, [[1, 2, 0], [0, -4, 1], [3, 1, 0]]) ** 2)":               nil,
		"sum(conv(x0, [[1, 0, -2]]) * x0)":                                     nil,
		"sum(fft(x0)[0] ** 2 * 2 + fft(x0)[1] ** 2)":                           nil,
		"sum(matmul(x0[0], reshape(x0[1], (5, 4))) ** 2)":                      nil,
		"sum((x0 - x0[:, :1]) * (x0 * x0[:1]))":                                nil, // axes of length 1 are repeated
		"sum((x0 * tensor([[1], [2]]).reshape([2, 1, 1])) ** 2)":               nil,
		"sum([sum(x0[k] ** (k + 1)) for k in range(2)][1])":                    nil,
	} {
		e, err := script.Parse("e.star", "def energy(x0, ctx):\n    return "+body+"\n")
		if err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		shape := []int{2, 4, 5}
		x := picture(40)
		ev := func() float64 {
			v, err := e.Eval(context.Background(), at, x, shape, make([]float64, 40))
			if err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			return v
		}
		grad := make([]float64, 40)
		for range 2 { // the tape's memory is used again
			v, err := e.Eval(context.Background(), at, x, shape, grad)
			if err != nil {
				t.Errorf("%s: %v", body, err)
			}
			if want != nil && math.Abs(v-want(x)) > 1e-12 {
				t.Errorf("%s is %.15g, want %.15g", body, v, want(x))
			}
		}
		moved := false
		for i := range x {
			const h = 1e-6
			was := x[i]
			x[i] = was + h
			up := ev()
			x[i] = was - h
			down := ev()
			x[i] = was
			if d := (up - down) / (2 * h); math.Abs(d-grad[i]) > 1e-7*max(1, math.Abs(d)) {
				t.Errorf("%s: gradient %d is %.9g, by differences %.9g", body, i, grad[i], d)
			}
			moved = moved || grad[i] != 0
		}
		if !moved {
			t.Errorf("%s: no gradient at all", body)
		}
		if worst, err := e.Check(context.Background(), at, shape); err != nil || worst > 1e-6 {
			t.Errorf("%s: Check says %g, %v", body, worst, err)
		}
	}
}

func fold(x []float64, f func(float64) float64, y ...float64) float64 {
	sum := 0.0
	for i, v := range x {
		if f != nil {
			sum += f(v)
		} else {
			sum += v * y[i]
		}
	}
	return sum
}

// TestFourier: the transform is unitary, and of a constant picture only its first number differs from 0.
func TestFourier(t *testing.T) {
	x := picture(12)
	for body, want := range map[string]float64{
		"sum(fft(x0)[0] ** 2 + fft(x0)[1] ** 2)":             fold(x, func(v float64) float64 { return v * v }),
		"fft(x0)[0][0, 0, 0]":                                fold(x, func(v float64) float64 { return v }) / math.Sqrt(12),
		"sum(abs(fft(x0 * 0 + 1)[0])) + fft(x0)[1][0, 0, 0]": math.Sqrt(12),
	} {
		e, err := script.Parse("f.star", "def energy(x0, ctx): return "+body)
		if err != nil {
			t.Fatal(err)
		}
		have, err := e.Eval(context.Background(), at, x, []int{1, 3, 4}, make([]float64, 12))
		if err != nil || math.Abs(have-want) > 1e-12 {
			t.Errorf("%s is %.15g, want %.15g (%v)", body, have, want, err)
		}
	}
}

// TestNumbers: functions of plain numbers, ctx, constants, branches and state that cannot be kept.
func TestNumbers(t *testing.T) {
	const src = `
K = [[0, 1, 0]] * 3
def weight(ctx):
    """a ** b in a text, and x[0, 1:2]"""
    if ctx.class == 4 and ctx.seed == 5 and ctx.particle == 2: # ** [1, 2:3]
        return exp(log(ctx.alpha)) + max(ctx.step, 1) - clip(7, 0, 3) + pi * 0
    return "**"
def energy(x0, ctx):
    if ctx.progress > 0.5:
        return 0
    total = 0
    for row in range(x0.shape[1]):
        total += sum(x0[0, row]) * {"a": 2 ** 3}["a"]
    opts = dict(**{"k": 1})
    return weight(ctx) * total * opts["k"] + sum(conv(x0, K)) * 0 + ctx.steps * ctx.t * 0
`
	e, err := script.Parse("n.star", src)
	if err != nil {
		t.Fatal(err)
	}
	x, grad := picture(6), make([]float64, 6)
	v, err := e.Eval(context.Background(), at, x, []int{1, 2, 3}, grad)
	if want := 8 * 0.7 * fold(x, func(v float64) float64 { return v }); err != nil || math.Abs(v-want) > 1e-12 || math.Abs(grad[5]-5.6) > 1e-12 {
		t.Errorf("%g and %v, want %g and 5.6 (%v)", v, grad, want, err)
	}
	late := at
	late.Progress = 0.9
	if v, err = e.Eval(context.Background(), late, x, []int{1, 2, 3}, grad); v != 0 || err != nil || grad[0] != 0 {
		t.Errorf("%g, %v (%v)", v, grad, err)
	}
}

// TestErrors: mistakes are named with file, line and column in the user's own text, also behind what was translated.
func TestErrors(t *testing.T) {
	for src, want := range map[string]string{
		"def energy(x0, ctx):\n    return sum(x0":                                                      "e.star:2:18: ",
		"def energy(x0, ctx):\n    return x0[0, 1:2] ** 2 + y":                                         "e.star:2:30: undefined: y",
		"def energy(x0, ctx):\n    return sum(x0 ** 2 + x0[0, 1:3])":                                   "e.star:2:24: a sum of shapes [1 3 4] and [2 4]",
		"def energy(x0, ctx):\n    return sum(x0.foo)":                                                 "e.star:2:18: tensor has no .foo",
		"def energy(x0, ctx):\n    return ctx.sigmma":                                                  "e.star:2:15: ctx has no .sigmma field or method (did you mean .sigma?)",
		"def energy(x0, ctx):\n    a = 1\n    return x0":                                               "e.star:1:1: energy returned a tensor of shape [1 3 4], want one number",
		"def energy(x0, ctx):\n    return 'red'":                                                       "e.star:1:1: energy returned string",
		"def energy(x0):\n    return sum(x0)":                                                          "e.star:1:1: energy takes 1 parameters",
		"def enrgy(x0, ctx):\n    return sum(x0)":                                                      "e.star:1:1: the script defines no function energy",
		"load('os.star', 'env')\ndef energy(x0, ctx):\n    return sum(x0)":                             "e.star:1:1: load not implemented",
		"open('/etc/passwd')\ndef energy(x0, ctx):\n    return sum(x0)":                                "e.star:1:1: undefined: open",
		"def energy(x0, ctx):\n    return sum([x0[k] for k in range(1 << 60)][0])":                     "e.star:2:",
		"def energy(x0, ctx):\n    n = 0\n    for k in range(10000000):\n        n += k\n    return n": "Starlark computation cancelled: more than 1000000 steps",
		"def f(n):\n    return f(n)\ndef energy(x0, ctx):\n    return f(1)":                            "e.star:2:12: function f called recursively",
		"def energy(x0, ctx):\n    while True: pass":                                                   "e.star:2:5: this Starlark dialect does not support while loops",
		"def energy(x0, ctx):\n    return sum(x0[0, 3, 9])":                                            "e.star:2:18: index 3 is outside axis 1 of shape [1 3 4]",
		"def energy(x0, ctx):\n    return sum(x0[0, 1, 2, 3:4])":                                       "e.star:2:18: an index of 4 axes for shape [1 3 4]",
		"def energy(x0, ctx):\n    return x0[0][0][0][0:1]":                                            "an index of 1 axes for shape []",
		"def energy(x0, ctx):\n    return mean(1, 2)":                                                  "e.star:2:16: mean takes at most 1 arguments, not 2",
		"def energy(x0, ctx):\n    return blur(x0, 0)":                                                 "e.star:2:16: blur: want blur(x, sd)",
		"def energy(x0, ctx):\n    return conv(x0, [[1, 2]])":                                          "e.star:2:16: conv: a kernel of shape [1 2]",
		"def energy(x0, ctx):\n    return x0 + 'a'":                                                    "e.star:2:15: unknown binary op: tensor + string",
		"def energy(x0, ctx):\n    return x0 < x0":                                                     "e.star:2:15: ",
		"def energy(x0, ctx):\n    for i in range(30): x0 = x0.reshape([1, 12 * 1, 1]) * x0.reshape([1, 1, x0.shape[1] * x0.shape[2]])\n    return sum(x0)": "e.star:2:",
		"é = 'ä' ** 2; def": "e.star:1:15: ",
		"x = 2 ** ":         "e.star:1:",
		"x = [1, 2:3]":      "e.star:1:",
		"x = ((((":          "e.star:1:",
		"x = )**( + ]**[":   "e.star:1:",
		"'''":               "e.star:1:1",
	} {
		e, err := script.Parse("e.star", src)
		if err == nil {
			_, err = e.Eval(context.Background(), at, picture(12), []int{1, 3, 4}, make([]float64, 12))
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "e.star:") {
			t.Errorf("%q: %v, want %q", src, err, want)
		}
	}
	e, err := script.Parse("e.star", "def energy(x0, ctx):\n    return sum(x0)")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := e.Eval(ctx, at, picture(1), []int{1}, make([]float64, 1)); err != context.Canceled {
		t.Errorf("a cancelled run: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("def energy(x0, ctx):\n    return sum((x0[0, :14] - 0.4) ** 2) * ctx.class")
	f.Add("a**-b[1,::2]**c.d(**e)**'x'")
	f.Fuzz(func(t *testing.T, src string) {
		e, err := script.Parse("e.star", src)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "e.star") {
				t.Fatalf("%q: %v", src, err)
			}
			return
		}
		e.Steps = 10000
		if _, err := e.Eval(context.Background(), at, picture(12), []int{1, 3, 4}, make([]float64, 12)); err != nil && !strings.HasPrefix(err.Error(), "e.star:") {
			t.Fatalf("%q: %v", src, err)
		}
	})
}

func BenchmarkEnergy(b *testing.B) {
	e, err := script.Parse("red.star", "def energy(x0, ctx):\n    top, bottom = x0[0, :14], x0[0, 14:]\n    return sum((top - bottom - 0.4) ** 2) * ctx.sigma / (1 + ctx.sigma)\n")
	if err != nil {
		b.Fatal(err)
	}
	x, grad := picture(784), make([]float64, 784)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Eval(context.Background(), at, x, []int{1, 28, 28}, grad); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleEnergy() {
	e, err := script.Parse("flat.star", "def energy(x0, ctx):\n    return sum(dx(x0) ** 2)\n")
	if err != nil {
		fmt.Println(err)
		return
	}
	grad := make([]float64, 3)
	energy, err := e.Eval(context.Background(), script.Moment{}, []float64{0, 1, 3}, []int{1, 1, 3}, grad)
	fmt.Println(energy, grad, err)
	// Output: 5 [-2 -2 4] <nil>
}
