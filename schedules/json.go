package schedules

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/internal/strictjson"
)

// ParseProcess reads a process as the files of analytic targets and the manifests write it: an object with a "type"
// and that type's parameters, all of them optional,
//
//	{"type": "vp-linear", "beta_min": 0.1, "beta_max": 20}
//	{"type": "sub-vp", ...}                       as vp-linear
//	{"type": "vp-discrete", "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02,
//	 "num_train_timesteps": 1000, "rescale_betas_zero_snr": false, "trained_betas": [...]}
//	{"type": "cosine"}
//	{"type": "ve", "sigma_min": 0.01, "sigma_max": 50}
//	{"type": "ve-geometric", ...}                 as ve
//	{"type": "edm", "sigma_min": 0.002, "sigma_max": 80}
//	{"type": "flow"}
//	{"type": "trig"}
//
// Unknown types and keys, keys given twice and parameters out of range are errors (of kind refuse.Error).
func ParseProcess(text []byte) (Gaussian, error) {
	o, err := strictjson.Parse("process", text, strictjson.Limits{})
	if err != nil {
		return nil, err
	}
	return ProcessOf("process", o)
}

// ProcessTypes are the types that ParseProcess knows.
func ProcessTypes() []string {
	return []string{"vp-linear", "vp-discrete", "cosine", "ve", "edm", "flow", "sub-vp", "trig", "ve-geometric"}
}

// ProcessOf is ParseProcess for an object that has been read already; path names its file in errors.
func ProcessOf(path string, o *strictjson.Object) (Gaussian, error) {
	r := fields{path: path, o: o, used: []string{"type"}}
	kind := r.text("type", "")
	var p Gaussian
	switch kind {
	case "vp-linear":
		p = r.vpLinear()
	case "sub-vp":
		p = SubVP(r.vpLinear())
	case "vp-discrete":
		p = r.vpDiscrete()
	case "cosine":
		p = Cosine{}
	case "ve":
		p = VE(r.sigmas(0.01, 50))
	case "ve-geometric":
		p = GeometricVE(r.sigmas(0.01, 50))
	case "edm":
		p = EDM(r.sigmas(0.002, 80))
	case "flow":
		p = Flow{}
	case "trig":
		p = Trig{}
	case "":
		r.fail("a process wants a type: one of %s", strings.Join(ProcessTypes(), ", "))
	default:
		r.fail("unknown process %q%s", kind, spec.Suggest(kind, ProcessTypes()))
	}
	if r.err == nil {
		for _, k := range o.Keys() {
			if !slices.Contains(r.used, k) {
				r.fail("process %s has no parameter %q%s", kind, k, spec.Suggest(k, r.used))
			}
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	return p, nil
}

// fields reads the parameters of a process and keeps the first thing that is wrong.
type fields struct {
	path string
	o    *strictjson.Object
	used []string
	err  error
}

func (r *fields) fail(format string, args ...any) {
	if r.err == nil {
		r.err = refuse.Errorf(r.path, format, args...)
	}
}

func field[T any](r *fields, key, want string, def T) T {
	r.used = append(r.used, key)
	v, ok := r.o.Get(key)
	if !ok {
		return def
	}
	t, ok := v.(T)
	if !ok {
		r.fail("%s: want %s", key, want)
		return def
	}
	return t
}

func (r *fields) text(key, def string) string { return field(r, key, "a text", def) }

func (r *fields) number(key string, def, lo, hi float64) float64 {
	n := field(r, key, "a number", strictjson.Number(""))
	if n == "" {
		return def
	}
	v, ok := n.Float()
	if !ok || v < lo || v > hi {
		r.fail("%s is %s; want a number from %g to %g", key, n, lo, hi)
		return def
	}
	return v
}

func (r *fields) vpLinear() VPLinear {
	p := VPLinear{r.number("beta_min", 0.1, 0, 1e6), r.number("beta_max", 20, 0, 1e6)}
	if p.BetaMax < p.BetaMin || p.BetaMax == 0 {
		r.fail("beta_min %g and beta_max %g; want beta_min <= beta_max, beta_max > 0", p.BetaMin, p.BetaMax)
	}
	return p
}

func (r *fields) sigmas(lo, hi float64) VE {
	p := VE{r.number("sigma_min", lo, 0, 1e12), r.number("sigma_max", hi, 0, 1e12)}
	if !(p.SigmaMin > 0 && p.SigmaMin < p.SigmaMax) {
		r.fail("sigma_min %g and sigma_max %g; want 0 < sigma_min < sigma_max", p.SigmaMin, p.SigmaMax)
	}
	return p
}

func (r *fields) vpDiscrete() Gaussian {
	b := Betas{
		Schedule: r.text("beta_schedule", "linear"),
		Start:    r.number("beta_start", 0.0001, 0, 1),
		End:      r.number("beta_end", 0.02, 0, 1),
		ZeroSNR:  field(r, "rescale_betas_zero_snr", "true or false", false),
	}
	for i, v := range field(r, "trained_betas", "a list of numbers", []any(nil)) {
		n, ok := v.(strictjson.Number)
		f, finite := n.Float()
		if !ok || !finite {
			r.fail("trained_betas[%d]: want a number", i)
			return nil
		}
		b.Trained = append(b.Trained, f)
	}
	steps := r.number("num_train_timesteps", 0, 2, MaxTableSteps)
	if b.Steps = int(steps); float64(b.Steps) != steps {
		r.fail("num_train_timesteps is %g; want a whole number", steps)
	}
	if r.err != nil {
		return nil
	}
	p, err := newVPDiscrete(b)
	if err != nil {
		r.fail("%v", err)
		return nil
	}
	return p
}

// MarshalProcess writes p in the form that ParseProcess reads, every parameter spelled out, keys in a fixed order, so
// that equal processes have equal text. An Interpolant has none: it is made of functions.
func MarshalProcess(p Process) ([]byte, error) {
	type beta struct {
		Type    string  `json:"type"`
		BetaMin float64 `json:"beta_min"`
		BetaMax float64 `json:"beta_max"`
	}
	type sigma struct {
		Type     string  `json:"type"`
		SigmaMin float64 `json:"sigma_min"`
		SigmaMax float64 `json:"sigma_max"`
	}
	type table struct {
		Type     string    `json:"type"`
		Schedule string    `json:"beta_schedule,omitempty"`
		Start    *float64  `json:"beta_start,omitempty"`
		End      *float64  `json:"beta_end,omitempty"`
		Trained  []float64 `json:"trained_betas,omitempty"`
		Steps    int       `json:"num_train_timesteps"`
		ZeroSNR  bool      `json:"rescale_betas_zero_snr"`
	}
	type plain struct {
		Type string `json:"type"`
	}
	var v any
	switch p := p.(type) {
	case Dirichlet:
		_, end := p.Ends()
		v = simplexText{p.Name(), p.K, end}
	case SimplexLinear:
		v = simplexText{p.Name(), p.K, 1}
	case VPLinear:
		lo, hi := p.betas()
		v = beta{p.Name(), lo, hi}
	case SubVP:
		lo, hi := VPLinear(p).betas()
		v = beta{p.Name(), lo, hi}
	case VE:
		lo, hi := p.sigmas()
		v = sigma{p.Name(), lo, hi}
	case GeometricVE:
		lo, hi := VE(p).sigmas()
		v = sigma{p.Name(), lo, hi}
	case EDM:
		lo, hi := p.sigmas()
		v = sigma{p.Name(), lo, hi}
	case Cosine, Flow, Trig:
		v = plain{p.Name()}
	case *VPDiscrete:
		b := p.betas
		t := table{Type: p.Name(), Steps: b.Steps, ZeroSNR: b.ZeroSNR, Trained: b.Trained}
		if len(b.Trained) == 0 {
			t.Schedule = b.Schedule
			if slices.Contains([]string{"linear", "scaled_linear", "sigmoid"}, b.Schedule) {
				t.Start, t.End = &b.Start, &b.End
			}
		}
		v = t
	default:
		return nil, fmt.Errorf("schedules: process %s cannot be written down", p.Name())
	}
	out, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("schedules: writing process %s: %w", p.Name(), err)
	}
	return out, nil
}

// Same tells whether p and q are the same process: of the same kind with the same parameters. Interpolants are never
// the same.
func Same(p, q Process) bool {
	a, err := MarshalProcess(p)
	b, err2 := MarshalProcess(q)
	return err == nil && err2 == nil && string(a) == string(b)
}

// simplexText is how a path of the simplex is written down.
type simplexText struct {
	Type string  `json:"type"`
	K    int     `json:"categories"`
	End  float64 `json:"end"`
}
