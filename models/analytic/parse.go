package analytic

import (
	"errors"
	"fmt"
	"slices"

	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/internal/strictjson"
	"drift/schedules"
)

// mostBytes is the largest target file.
const mostBytes = 32 << 20

var keys = []string{"type", "weights", "means", "vars", "covs", "labels", "process", "prediction"}

// Parse reads a target:
//
//	{"type": "mixture", "weights": [0.4, 0.6], "means": [[-1], [1.5]], "vars": [[0.0625], [0.25]],
//	 "labels": [0, 1], "process": {"type": "vp-linear"}, "prediction": "eps"}
//
// with "covs" (full matrices) instead of "vars" where wanted; "labels" may be left out. The process is what
// schedules.ParseProcess reads, the prediction one of eps, x0, v, velocity and score. What New refuses, unknown keys,
// keys given twice and anything that is not JSON are errors of kind refuse.Error, one line each.
func Parse(data []byte) (*Mixture, error) {
	o, err := strictjson.Parse("", data, strictjson.Limits{})
	if err != nil {
		return nil, err
	}
	return fromObject("", o)
}

// Open reads the target in the file at path (see Parse), at most 32 MiB.
func Open(path string) (*Mixture, error) {
	o, err := strictjson.ReadFile(path, mostBytes, strictjson.Limits{})
	if err != nil {
		return nil, err
	}
	return fromObject(path, o)
}

func fromObject(path string, o *strictjson.Object) (*Mixture, error) {
	for _, k := range o.Keys() {
		if !slices.Contains(keys, k) {
			return nil, refuse.Errorf(path, "a target has no key %q%s", k, spec.Suggest(k, keys))
		}
	}
	r := reader{path: path, o: o}
	if kind, ok := r.need("type").(string); r.err == nil && (!ok || kind != "mixture") {
		r.fail("type: want \"mixture\"")
	}
	t := Target{
		Weights: read(&r, "weights", true, number),
		Means:   read(&r, "means", true, vector),
		Vars:    read(&r, "vars", false, vector),
		Covs:    read(&r, "covs", false, matrix),
		Labels:  read(&r, "labels", false, class),
	}
	process, ok := r.need("process").(*strictjson.Object)
	if !ok {
		r.fail("process: want an object")
	}
	prediction, ok := r.need("prediction").(string)
	if !ok {
		r.fail("prediction: want a text")
	}
	if r.err != nil {
		return nil, r.err
	}
	var err error
	if t.Process, err = schedules.ProcessOf(path, process); err != nil {
		return nil, err
	}
	if t.Prediction, err = schedules.ParseKind(prediction); err != nil {
		return nil, refuse.Errorf(path, "%v", err)
	}
	m, err := newMixture(t)
	if err != nil {
		return nil, refuse.Errorf(path, "%v", err)
	}
	m.name = path
	return m, nil
}

// reader keeps the first thing that is wrong.
type reader struct {
	path string
	o    *strictjson.Object
	err  error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = refuse.Errorf(r.path, format, args...)
	}
}

func (r *reader) need(key string) any {
	v, ok := r.o.Get(key)
	if !ok {
		r.fail("%s is missing", key)
	}
	return v
}

// read reads the list under key; where the key is not needed and not there, the result is nil.
func read[T any](r *reader, key string, needed bool, f func(any) (T, error)) []T {
	v, ok := r.o.Get(key)
	if !ok {
		if needed {
			r.fail("%s is missing", key)
		}
		return nil
	}
	out, err := list(v, f)
	if err != nil {
		r.fail("%s%v", key, err)
	}
	return out
}

// list reads an array whose elements f reads. Errors start with the place in the array: "[2][0]: want a number".
func list[T any](v any, f func(any) (T, error)) ([]T, error) {
	a, ok := v.([]any)
	if !ok {
		return nil, errors.New(": want a list")
	}
	out := make([]T, len(a))
	for i, e := range a {
		var err error
		if out[i], err = f(e); err != nil {
			return nil, fmt.Errorf("[%d]%w", i, err)
		}
	}
	return out, nil
}

func vector(v any) ([]float64, error) { return list(v, number) }

func matrix(v any) ([][]float64, error) { return list(v, vector) }

func number(v any) (float64, error) {
	n, ok := v.(strictjson.Number)
	if !ok {
		return 0, errors.New(": want a number")
	}
	f, ok := n.Float()
	if !ok {
		return 0, fmt.Errorf(": %s is beyond float64", n)
	}
	return f, nil
}

func class(v any) (int, error) {
	n, _ := v.(strictjson.Number)
	i, ok := n.Int()
	if !ok || int64(int(i)) != i {
		return 0, errors.New(": want a whole number")
	}
	return int(i), nil
}
