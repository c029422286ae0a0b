package guidance

import (
	"fmt"
	"math"
	"strconv"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"

	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// Scale is a strength that changes over a run: a function of the node that a row is asked at and of the step under way.
type Scale func(n schedules.Node, s models.Step) float64

// moment is what the expression of a Scale can see.
type moment struct {
	T        float64 `expr:"t"`        // the process's own time
	Alpha    float64 `expr:"alpha"`    // signal
	Sigma    float64 `expr:"sigma"`    // noise level sigma/alpha
	LogSNR   float64 `expr:"log_snr"`  // 2 log(alpha/sigma)
	Step     float64 `expr:"step"`     // step under way, from 0
	Steps    float64 `expr:"steps"`    // steps in all; 0 where a solver does not know
	Progress float64 `expr:"progress"` // 0 at the start, 1 at the end
}

const momentNames = "t, alpha, sigma (= sigma/alpha), log_snr, step, steps, progress"

// ParseScale reads an expression (expr-lang: + - * / **, comparisons, a ? b : c, abs, min, max, floor, ceil, round, exp,
// log, sqrt, sin, cos) of t, alpha, sigma (the noise level sigma/alpha), log_snr, step, steps and progress.
func ParseScale(text string) (Scale, error) {
	options := []expr.Option{expr.Env(moment{}), expr.AsFloat64(), expr.DisableAllBuiltins()}
	for _, name := range []string{"abs", "min", "max", "floor", "ceil", "round"} {
		options = append(options, expr.EnableBuiltin(name))
	}
	for name, f := range map[string]func(float64) float64{"exp": math.Exp, "log": math.Log, "sqrt": math.Sqrt, "sin": math.Sin, "cos": math.Cos} {
		options = append(options, expr.Function(name, func(a ...any) (any, error) {
			switch v := a[0].(type) {
			case float64:
				return f(v), nil
			case int:
				return f(float64(v)), nil
			}
			return nil, fmt.Errorf("%s of %T", name, a[0])
		}, new(func(float64) float64), new(func(int) float64)))
	}
	program, err := expr.Compile(text, options...)
	if err != nil {
		return nil, fmt.Errorf("guidance: expression of %s: %w", momentNames, err)
	}
	return func(n schedules.Node, s models.Step) float64 {
		v, err := vm.Run(program, moment{n.T, n.Alpha, n.Ratio(), 2 * n.Lambda(), float64(s.I), float64(s.N), s.Progress})
		if f, ok := v.(float64); ok && err == nil {
			return f
		}
		return math.NaN() // the guider names the step
	}, nil
}

// readScale reads an option that is a number in [lo, hi] or an expression.
func readScale(o *spec.Options, key string, def, lo, hi float64) (float64, Scale, error) {
	text := o.Text(key, "")
	if _, err := strconv.ParseFloat(text, 64); text == "" || err == nil {
		return o.FloatIn(key, def, lo, hi), nil, nil
	}
	f, err := ParseScale(text)
	if err != nil {
		return 0, nil, fmt.Errorf("option %s=%s: want a finite number or an %w", key, text, unprefixed{err})
	}
	return def, f, nil
}

// unprefixed leaves out the package's name in the middle of a sentence.
type unprefixed struct{ error }

func (u unprefixed) Error() string { return u.error.Error()[len("guidance: "):] }
func (u unprefixed) Unwrap() error { return u.error }

// weights gives every row its strength: w, or the schedule's value, where the row is to be guided, else off. It tells
// whether some row is on.
func weights(dst []float64, name string, q *models.Query, w float64, of Scale, s Span, off float64, guides func(row int) bool) ([]float64, bool, error) {
	dst, on := dst[:0], false
	for i, n := range q.At {
		v := off
		if s.Holds(q, i) && guides(i) {
			if v = w; of != nil {
				v = of(n, q.Step)
			}
			if v-v != 0 {
				return dst, false, fmt.Errorf("guidance: %s: the scale is %g at %s", name, v, where(q, i))
			}
		}
		on = on || v != off
		dst = append(dst, v)
	}
	return dst, on, nil
}
