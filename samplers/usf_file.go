package samplers

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/internal/strictjson"
	"drift/schedules"
)

// relaxNames maps the names of relaxations in files, those of the reference included, to ours.
var relaxNames = map[string]string{"": "", "no_relaxation": "", "bh1": "bh1", "unipc-bh1": "bh1", "bh2": "bh2", "unipc-bh2": "bh2", "dpmsolver-2": "bh2",
	"0.5exp": "0.5exp", "-0.5exp": "-0.5exp", "linear": "linear"}

var afsNames = map[string]string{"": "", "none": "", "no_afs": "", "zero": "zero", "zero_x0": "zero", "mean": "mean", "average_x0": "mean"}

// ParseUSF reads a solver schedule; path names it in errors, which are of kind refuse.Error and name the line at fault.
//
//	{"schedule": {"timesteps": [1, 0.4, 0.001], "afs": "none",
//	              "steps": [{"order": 1, "pred": "x0", "start": -1, "derivs": [], "corrector": null},
//	                        {"order": 2, "pred": "eps", "start": -1, "derivs": [{"k": 1, "points": [-2], "relax": "bh2", "coef": 0}],
//	                         "corrector": null}]},
//	 "process": {"type": "vp-linear"}, "provenance": {...}}
//
// or the schedule alone. A corrector is {"order", "start", "derivs", "implicit"}; "weights" may stand for "derivs" and
// "noise" may be added (see SolverStep); afs "mean" takes "mean": [...]. Provenance may hold anything. Absent start, derivs, corrector, relax, coef
// and afs have the values shown. Unknown keys are refused.
func ParseUSF(path string, text []byte) (USF, error) {
	r := usfReader{Scanner: strictjson.NewScanner(path, bytes.NewReader(text), strictjson.Limits{Depth: 32, Keys: 20_000}), path: path}
	var m USF
	wrapped, bare := false, false
	s := &m.Schedule
	if err := r.Object(func(key string) error {
		switch key {
		case "schedule":
			wrapped = true
			return r.Object(func(key string) error { return r.schedule(s, key) })
		case "process":
			v, err := r.Value()
			if err != nil {
				return err
			}
			o, ok := v.(*strictjson.Object)
			if !ok {
				return r.failf("process: want an object")
			}
			if m.Process, err = schedules.ProcessOf(path, o); err != nil {
				var bad *refuse.Error
				if errors.As(err, &bad) {
					return r.failf("%s", bad.Reason)
				}
				return err
			}
			return nil
		case "provenance":
			_, err := r.Value()
			return err
		case "timesteps", "steps", "afs", "mean":
			bare = true
			return r.schedule(s, key)
		}
		return r.failf("unknown key %q%s", key, spec.Suggest(key, []string{"schedule", "process", "provenance", "timesteps", "steps", "afs"}))
	}); err != nil {
		return USF{}, err
	}
	if err := r.End(); err != nil {
		return USF{}, err
	}
	if wrapped && bare {
		return USF{}, refuse.Errorf(path, "has a schedule beside the keys of one")
	}
	fault := func(e *scheduleError) error {
		switch {
		case e.step >= 0 && e.step < len(r.steps):
			return refuse.Errorf(path, "line %d: %v", r.steps[e.step], e)
		case e.time >= 0 && e.time < len(r.times):
			return refuse.Errorf(path, "line %d: %v", r.times[e.time], e)
		}
		return refuse.Errorf(path, "%v", e)
	}
	if e := s.check(); e != nil {
		return USF{}, fault(e)
	}
	if m.Process != nil {
		if _, err := m.Grid(m.Process); err != nil {
			var e *scheduleError
			if errors.As(err, &e) {
				return USF{}, fault(e)
			}
			return USF{}, refuse.Errorf(path, "%s", strings.TrimPrefix(err.Error(), "samplers: usf: "))
		}
	}
	return m, nil
}

type usfReader struct {
	*strictjson.Scanner
	path         string
	steps, times []int // their lines
}

func (r *usfReader) failf(format string, args ...any) error {
	return refuse.Errorf(r.path, "line %d: %s", r.Line(), fmt.Sprintf(format, args...))
}

func (r *usfReader) schedule(s *SolverSchedule, key string) error {
	switch key {
	case "timesteps":
		return r.Array(func(int) error {
			var t float64
			err := r.float(&t)
			s.Times, r.times = append(s.Times, t), append(r.times, r.Line())
			return err
		})
	case "mean":
		return r.floats(&s.Mean)
	case "afs":
		v, err := r.Value()
		if err != nil || v == nil {
			return err
		}
		name, _ := v.(string)
		known := false
		if s.First, known = afsNames[name]; !known || name == "" {
			return r.failf("unknown afs %v: want none, zero or mean", v)
		}
		return nil
	case "steps":
		return r.Array(func(i int) error {
			if _, err := r.Peek(); err != nil {
				return err
			}
			r.steps = append(r.steps, r.Line())
			st := SolverStep{Start: -1, Pred: -1}
			if err := r.Object(func(key string) error { return r.step(&st, key) }); err != nil {
				return err
			}
			if st.Pred < 0 {
				return r.failf("step %d has no pred", i)
			}
			s.Steps = append(s.Steps, st)
			return nil
		})
	}
	return r.failf("unknown key %q in the schedule%s", key, spec.Suggest(key, []string{"timesteps", "steps", "afs", "mean"}))
}

func (r *usfReader) step(st *SolverStep, key string) error {
	switch key {
	case "order":
		return r.int(&st.Order)
	case "start":
		return r.int(&st.Start)
	case "pred":
		name, err := r.String()
		if err != nil {
			return err
		}
		switch name {
		case "x0":
			st.Pred = schedules.X0
		case "eps":
			st.Pred = schedules.Eps
		default:
			return r.failf("unknown prediction %q: want x0 or eps", name)
		}
		return nil
	case "derivs":
		return r.derivs(&st.Derivs)
	case "weights":
		return r.floats(&st.Weights)
	case "noise":
		return r.float(&st.Noise)
	case "corrector":
		c, err := r.Peek()
		if err != nil {
			return err
		}
		if c == 'n' {
			_, err := r.Value()
			return err
		}
		k := &SolverCorrector{Start: -2}
		st.Corrector = k
		return r.Object(func(key string) error {
			switch key {
			case "order":
				return r.int(&k.Order)
			case "start":
				return r.int(&k.Start)
			case "derivs":
				return r.derivs(&k.Derivs)
			case "implicit":
				v, err := r.Value()
				if err != nil {
					return err
				}
				ok := false
				if k.Implicit, ok = v.(bool); !ok {
					return r.failf("implicit: want true or false")
				}
				return nil
			}
			return r.failf("unknown key %q in a corrector%s", key, spec.Suggest(key, []string{"order", "start", "derivs", "implicit"}))
		})
	}
	return r.failf("unknown key %q in a step%s", key, spec.Suggest(key, []string{"order", "pred", "start", "derivs", "weights", "noise", "corrector"}))
}

func (r *usfReader) derivs(out *[]Derivative) error {
	return r.Array(func(i int) error {
		var d Derivative
		k := i + 1
		err := r.Object(func(key string) error {
			switch key {
			case "k":
				return r.int(&k)
			case "points":
				return r.Array(func(int) error {
					var p int
					err := r.int(&p)
					d.Points = append(d.Points, p)
					return err
				})
			case "relax":
				v, err := r.Value()
				if err != nil || v == nil {
					return err
				}
				name, _ := v.(string)
				known := false
				if d.Relax, known = relaxNames[name]; !known || name == "" {
					return r.failf("unknown relaxation %v: want null, bh1, bh2, 0.5exp, -0.5exp or linear", v)
				}
				return nil
			case "coef":
				return r.float(&d.Coef)
			}
			return r.failf("unknown key %q in a derivative%s", key, spec.Suggest(key, []string{"k", "points", "relax", "coef"}))
		})
		if err == nil && k != i+1 {
			err = r.failf("derivative k = %d at place %d", k, i+1)
		}
		*out = append(*out, d)
		return err
	})
}

func (r *usfReader) int(out *int) error {
	n, err := r.Number()
	if err != nil {
		return err
	}
	v, ok := n.Int()
	if !ok || v < -1_000_000 || v > 1_000_000 {
		return r.failf("%s is not an integer that makes sense here", n)
	}
	*out = int(v)
	return nil
}

func (r *usfReader) float(out *float64) error {
	n, err := r.Number()
	if err != nil {
		return err
	}
	v, ok := n.Float()
	if !ok || !isFinite(v) {
		return r.failf("%s is not a finite number", n)
	}
	*out = v
	return nil
}

func (r *usfReader) floats(out *[]float64) error {
	*out = (*out)[:0]
	return r.Array(func(int) error {
		var v float64
		err := r.float(&v)
		*out = append(*out, v)
		return err
	})
}

// MarshalJSON writes the schedule as ParseUSF reads it.
func (s SolverSchedule) MarshalJSON() ([]byte, error) {
	type deriv struct {
		K      int     `json:"k"`
		Points []int   `json:"points"`
		Relax  *string `json:"relax"`
		Coef   float64 `json:"coef"`
	}
	type corrector struct {
		Order    int     `json:"order"`
		Start    int     `json:"start"`
		Derivs   []deriv `json:"derivs"`
		Implicit bool    `json:"implicit,omitempty"`
	}
	type step struct {
		Order     int        `json:"order"`
		Pred      string     `json:"pred"`
		Start     int        `json:"start"`
		Derivs    []deriv    `json:"derivs"`
		Weights   []float64  `json:"weights,omitempty"`
		Noise     float64    `json:"noise,omitempty"`
		Corrector *corrector `json:"corrector"`
	}
	derivs := func(ds []Derivative) []deriv {
		out := []deriv{}
		for i, d := range ds {
			e := deriv{K: i + 1, Points: d.Points, Coef: d.Coef}
			if d.Relax != "" {
				e.Relax = &d.Relax
			}
			out = append(out, e)
		}
		return out
	}
	v := struct {
		Times []float64 `json:"timesteps"`
		Steps []step    `json:"steps"`
		AFS   string    `json:"afs"`
		Mean  []float64 `json:"mean,omitempty"`
	}{s.Times, []step{}, s.First, s.Mean}
	if s.First == "" {
		v.AFS = "none"
	}
	for _, st := range s.Steps {
		o := step{Order: st.Order, Pred: st.Pred.String(), Start: st.Start, Derivs: derivs(st.Derivs), Weights: st.Weights, Noise: st.Noise}
		if c := st.Corrector; c != nil {
			o.Corrector = &corrector{c.Order, c.Start, derivs(c.Derivs), c.Implicit}
		}
		v.Steps = append(v.Steps, o)
	}
	return json.Marshal(v)
}

// UnmarshalJSON reads a schedule.
func (s *SolverSchedule) UnmarshalJSON(text []byte) error {
	m, err := ParseUSF("", text)
	*s = m.Schedule
	return err
}

// Hash tells schedules apart: SHA-256 of the schedule, hex. A name that is a file does not.
func (m USF) Hash() string {
	text, err := json.Marshal(m.Schedule)
	if err != nil { // a number that is not finite: Check refuses those
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// File writes the sampler as a file that ParseUSF reads, with where it came from.
func (m USF) File(provenance any) ([]byte, error) {
	v := struct {
		Schedule   SolverSchedule  `json:"schedule"`
		Process    json.RawMessage `json:"process,omitempty"`
		Provenance any             `json:"provenance,omitempty"`
	}{Schedule: m.Schedule, Provenance: provenance}
	if m.Process != nil {
		text, err := schedules.MarshalProcess(m.Process)
		if err != nil {
			return nil, fmt.Errorf("samplers: usf: %w", err)
		}
		v.Process = text
	}
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return nil, fmt.Errorf("samplers: usf: %w", err)
	}
	return append(text, '\n'), nil
}

// UnifiedMultistep describes the multistep methods that USF contains.
type UnifiedMultistep struct {
	Pred      schedules.Kind // X0 or Eps
	Order     int
	Relax     string // of second-order steps: "bh2" is midpoint and UniPC-bh2, "bh1" UniPC-bh1, "" heun and DEIS
	Corrector bool   // UniC
	Lower     bool   // order at most the steps left
}

// Schedule writes the method down over the given times: DDIM (order 1), DPM-Solver(++) 2M, UniP-p = 3M with kappa 2, UniPC-p
// and, in the noise form without relaxation, DEIS with a logarithmic basis.
func (m UnifiedMultistep) Schedule(times []float64) SolverSchedule {
	s := SolverSchedule{Times: slices.Clone(times)}
	n := len(times) - 1
	for i := range n {
		order := min(m.Order, i+1)
		if m.Lower {
			order = min(order, n-i)
		}
		st := SolverStep{Order: order, Pred: m.Pred, Start: -1}
		var points []int
		for p := 2; p <= order; p++ {
			points = append(points, -p)
		}
		relax := ""
		if order == 2 {
			relax = m.Relax
		}
		st.Derivs = fullDerivs(points, relax)
		if m.Corrector && i < n-1 {
			st.Corrector = Correct(st)
			if order == 1 && m.Relax != "" { // UniC-1 has the weight 1/2 too
				st.Corrector.Derivs[0].Relax = m.Relax
			}
		}
		s.Steps = append(s.Steps, st)
	}
	return s
}

func fullDerivs(points []int, relax string) []Derivative {
	var out []Derivative
	for k := range points {
		out = append(out, Derivative{Points: slices.Clone(points)})
		if k == 0 {
			out[0].Relax = relax
		}
	}
	return out
}

// Correct returns the usual corrector of a step: from the same start with the end of the step as one more point
// everywhere, one order higher, without relaxation.
func Correct(st SolverStep) *SolverCorrector {
	c := &SolverCorrector{Order: st.Order + 1, Start: st.Start - 1}
	var all []int
	for _, d := range st.Derivs {
		var points []int
		for _, p := range d.Points {
			points = append(points, p-1)
			if !slices.Contains(all, p-1) {
				all = append(all, p-1)
			}
		}
		c.Derivs = append(c.Derivs, Derivative{Points: append(points, -1)})
	}
	c.Derivs = append(c.Derivs, Derivative{Points: append(all, -1)})
	return c
}

// UnifiedSinglestep writes down the singlestep methods over the nodes of all their stages: every block of 1, 2 or 3 steps starts
// at its first node. The last step of a block of two is scaled as relax says ("bh2": DPM-Solver-2, DPM++ 2S); one of
// three has the order third: 2 is DPM-Solver-3 and DPM++ 3S, 3 dpm-solver's "taylor". The nodes inside a block are the
// caller's: at 1/2, or 1/3 and 2/3 of its span in lambda.
func UnifiedSinglestep(pred schedules.Kind, blocks []int, relax string, third int, times []float64) SolverSchedule {
	s := SolverSchedule{Times: slices.Clone(times)}
	for _, n := range blocks {
		for j := range n {
			st := SolverStep{Order: 1, Pred: pred, Start: -1 - j}
			switch {
			case j == 1:
				st.Order = 2
				st.Derivs = fullDerivs([]int{-1}, "")
				if n == 2 {
					st.Derivs[0].Relax = relax
				}
			case j == 2 && third == 3:
				st.Order = 3
				st.Derivs = fullDerivs([]int{-1, -2}, "")
			case j == 2:
				st.Order = 2
				st.Derivs = fullDerivs([]int{-1}, "")
			}
			s.Steps = append(s.Steps, st)
		}
	}
	return s
}
