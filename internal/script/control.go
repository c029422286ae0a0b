package script

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"drift/internal/spec"
)

// Control is a script that sets strengths while a run is under way:
//
//	def start(ctx): return {"best": -1e9}      # optional: the state before the first step
//	def step(state, ctx): return {"lambda": 1 + 3 * ctx.progress, "stop": ctx.reward_max > 2}
//
// step is called after every step and may change state, a dict that a saved run keeps. It returns a dict with some of
// lambda, cfg_scale, eta, ess, resample (True: at the next check, False: not there) and stop, or None. ctx has what rewards
// see, and reward_mean, reward_max, reward_std, ess, roots, log_z of the group (None before the first check) and x0_mean,
// x0_std.
type Control struct {
	e           Energy
	start, step *starlark.Function
}

// ControlNames are what a step may set.
var ControlNames = []string{"lambda", "cfg_scale", "eta", "ess", "resample", "stop"}

// View is what ctx shows to a control script.
type View struct {
	Point
	RewardMean, RewardMax, RewardStd, ESS, LogZ float64 // NaN: None
	Roots                                       int
	X0Mean, X0Std                               float64
}

// State is a control script's own, of one group.
type State struct{ v starlark.Value }

// ParseControl reads a script.
func ParseControl(file, src string) (*Control, error) {
	c := &Control{}
	more := starlark.StringDict{"log": starlark.NewBuiltin("log", func(th *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		columns, inside := th.Local("local").(map[string]float64)
		if len(args) != 2 || !inside {
			return call(th, b, args, kwargs)
		}
		name, ok := starlark.AsString(args[0])
		v, isNumber := starlark.AsFloat(args[1])
		if !ok || !isNumber {
			return nil, fmt.Errorf("log: want log(name, value)")
		}
		columns[name] = v
		return starlark.None, nil
	})}
	globals, err := c.e.load(file, src, more)
	if err != nil {
		return nil, err
	}
	if c.start, err = c.e.function(globals, "start(ctx)"); err != nil {
		return nil, err
	}
	if c.step, err = c.e.function(globals, "step(state, ctx)"); err == nil && c.step == nil {
		err = fmt.Errorf("%s:1:1: the script defines no function step(state, ctx)", file)
	}
	return c, err
}

// Text returns the script as it was given.
func (c *Control) Text() string { return c.e.src }

// Print sets what is told what the script prints.
func (c *Control) Print(f func(text string)) { c.e.Print = f }

// Start makes the state of a group.
func (c *Control) Start(ctx context.Context, at View) (State, error) {
	if c.start == nil {
		return State{starlark.NewDict(0)}, nil
	}
	t := &tape{}
	t.reset()
	v, err := starlark.Call(c.e.thread(ctx, t), c.start, starlark.Tuple{seen{point{at.Point, &pictured{key: keyOf(at.Point)}}, at}}, nil)
	if err != nil {
		return State{}, c.e.explain(err)
	}
	return State{v}, nil
}

// Settings is what a step asks for: numbers by name (lambda, cfg_scale, eta, ess; resample 1 or 0; stop 1), and columns of
// the log.
type Settings struct {
	Values  map[string]float64
	Columns map[string]float64
}

// Step calls step.
func (c *Control) Step(ctx context.Context, s State, at View) (Settings, error) {
	out := Settings{Values: map[string]float64{}, Columns: map[string]float64{}}
	t := &tape{}
	t.reset()
	th := c.e.thread(ctx, t)
	th.SetLocal("local", out.Columns)
	v, err := starlark.Call(th, c.step, starlark.Tuple{s.v, seen{point{at.Point, &pictured{key: keyOf(at.Point)}}, at}}, nil)
	if err != nil {
		return out, c.e.explain(err)
	}
	where := c.e.place(c.step.Position())
	if v == starlark.None {
		return out, nil
	}
	d, ok := v.(*starlark.Dict)
	if !ok {
		return out, fmt.Errorf("%s: step returned %s, want a dict or None", where, v.Type())
	}
	for _, item := range d.Items() {
		name, _ := starlark.AsString(item[0])
		if !slices.Contains(ControlNames, name) {
			return out, fmt.Errorf("%s: step set %v%s; known: %s", where, item[0], spec.Suggest(name, ControlNames), strings.Join(ControlNames, ", "))
		}
		f, ok := starlark.AsFloat(item[1])
		if b, isBool := item[1].(starlark.Bool); isBool && (name == "stop" || name == "resample") {
			ok, f = true, 0
			if b {
				f = 1
			}
		}
		if !ok || math.IsNaN(f) || math.IsInf(f, 0) {
			return out, fmt.Errorf("%s: step set %s to %v, want a finite number", where, name, item[1])
		}
		out.Values[name] = f
	}
	return out, nil
}

// Save writes a state as text. It may hold None, booleans, numbers, texts, lists, tuples and dicts.
func (c *Control) Save(s State) (string, error) {
	if s.v == nil {
		return "", nil
	}
	text := s.v.String()
	if _, err := c.Load(text); err != nil {
		return "", fmt.Errorf("%s: the state %s cannot be saved: keep numbers, texts, lists and dicts in it", c.e.file, text)
	}
	return text, nil
}

// Load reads what Save wrote.
func (c *Control) Load(text string) (State, error) {
	if text == "" {
		return State{}, nil
	}
	env := starlark.StringDict{"inf": starlark.Float(math.Inf(1)), "nan": starlark.Float(math.NaN())}
	v, err := starlark.EvalOptions(&syntax.FileOptions{}, &starlark.Thread{}, "state", text, env)
	return State{v}, err
}

// seen is ctx of a control script.
type seen struct {
	point
	v View
}

// Attr implements starlark.HasAttrs.
func (s seen) Attr(name string) (starlark.Value, error) {
	number := func(v float64) (starlark.Value, error) {
		if math.IsNaN(v) {
			return starlark.None, nil
		}
		return starlark.Float(v), nil
	}
	switch name {
	case "reward_mean":
		return number(s.v.RewardMean)
	case "reward_max":
		return number(s.v.RewardMax)
	case "reward_std":
		return number(s.v.RewardStd)
	case "ess":
		return number(s.v.ESS)
	case "log_z":
		return number(s.v.LogZ)
	case "roots":
		return starlark.MakeInt(s.v.Roots), nil
	case "x0_mean":
		return number(s.v.X0Mean)
	case "x0_std":
		return number(s.v.X0Std)
	}
	return s.point.Attr(name)
}

// AttrNames implements starlark.HasAttrs.
func (s seen) AttrNames() []string {
	return append([]string{"ess", "log_z", "reward_max", "reward_mean", "reward_std", "roots", "x0_mean", "x0_std"}, s.point.AttrNames()...)
}
