package analytic

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"gorgonia.org/tensor"

	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/internal/strictjson"
	"drift/models"
	"drift/schedules"
)

// Categorical is a target on sequences: with weight w_c the component c is chosen, and then every position l draws its
// category i with probability Probs[c][l][i], each for itself. On a path of the simplex its data prediction is
//
//	p_l(i | x, t) = SUM_c r_c q_cl(i) f_t(x_li)/Z_cl,  Z_cl = SUM_j q_cl(j) f_t(x_lj),  r_c ∝ w_c PROD_l Z_cl
//
// f_t(x) = x^t on the Dirichlet path (arXiv 2402.05841, eq. 9) and 1[x >= t] on the linear one. A linear state that no
// category explains, which a finite step can reach, is taken for its largest coordinate.
//
// It is a models.Denoiser and models.Described, and a classifier with gradients (guidance.ClassGradient). States have rows
// of shape (positions, categories).
type Categorical struct {
	Weights []float64     // of the components, positive, summing to 1
	Probs   [][][]float64 // (component, position, category), every position summing to 1
	Labels  []int         // class of each component, without gaps; nil = no classes
	Process schedules.Field
}

// Sequences is a Categorical made ready.
type Sequences struct {
	t       Categorical
	l, k    int
	classes int
	name    string
	text    []byte
}

// NewSequences checks t. It keeps its slices.
func NewSequences(t Categorical) (*Sequences, error) {
	s, err := newSequences(t)
	if err != nil {
		return nil, fmt.Errorf("analytic: %w", err)
	}
	return s, nil
}

func newSequences(t Categorical) (*Sequences, error) {
	if t.Process == nil {
		return nil, fmt.Errorf("there is no process")
	}
	if len(t.Weights) == 0 || len(t.Probs) != len(t.Weights) || len(t.Probs[0]) == 0 {
		return nil, fmt.Errorf("%d weights and %d components of probs; want as many, each of one position or more", len(t.Weights), len(t.Probs))
	}
	if t.Labels != nil && len(t.Labels) != len(t.Weights) {
		return nil, fmt.Errorf("%d labels for %d components", len(t.Labels), len(t.Weights))
	}
	s := &Sequences{t: t, l: len(t.Probs[0]), k: t.Process.Categories()}
	if s.k < 2 {
		return nil, fmt.Errorf("%d categories; want 2 or more", s.k)
	}
	distribution := func(what string, p []float64) error {
		sum := 0.0
		for _, v := range p {
			if !(v >= 0 && v <= 1+weightSlack) {
				return fmt.Errorf("%s: %g is no probability", what, v)
			}
			sum += v
		}
		if !(math.Abs(sum-1) <= weightSlack) {
			return fmt.Errorf("%s sum to %.9g; want 1", what, sum)
		}
		return nil
	}
	if err := distribution("weights", t.Weights); err != nil {
		return nil, err
	}
	for c, rows := range t.Probs {
		if t.Weights[c] == 0 {
			return nil, fmt.Errorf("weights[%d] is 0; want a positive number", c)
		}
		if len(rows) != s.l {
			return nil, fmt.Errorf("probs[%d] has %d positions, probs[0] has %d", c, len(rows), s.l)
		}
		for l, p := range rows {
			if len(p) != s.k {
				return nil, fmt.Errorf("probs[%d][%d] has %d categories, the process has %d", c, l, len(p), s.k)
			}
			if err := distribution(fmt.Sprintf("probs[%d][%d]", c, l), p); err != nil {
				return nil, err
			}
		}
	}
	for _, k := range t.Labels {
		s.classes = max(s.classes, k+1)
	}
	for k := range s.classes {
		if !slices.Contains(t.Labels, k) {
			return nil, fmt.Errorf("labels: class %d has no component", k)
		}
	}
	if slices.ContainsFunc(t.Labels, func(k int) bool { return k < 0 }) {
		return nil, fmt.Errorf("labels: a class below 0")
	}
	_, end := t.Process.Ends()
	var err error
	s.text, err = json.Marshal(struct {
		Type    string        `json:"type"`
		Weights []float64     `json:"weights"`
		Probs   [][][]float64 `json:"probs"`
		Labels  []int         `json:"labels,omitempty"`
		Process any           `json:"process"`
	}{"categorical", t.Weights, t.Probs, t.Labels, map[string]any{"type": t.Process.Name(), "end": end}})
	return s, err
}

// Process implements models.Denoiser.
func (s *Sequences) Process() schedules.Process { return s.t.Process }

// Classes returns the number of classes.
func (s *Sequences) Classes() int { return s.classes }

// Target returns what the target was made from. Do not change it.
func (s *Sequences) Target() Categorical { return s.t }

// Info implements models.Described.
func (s *Sequences) Info() models.Info {
	sum := sha256.Sum256(s.text)
	return models.Info{Name: s.name, Hash: hex.EncodeToString(sum[:]), Shape: []int{s.l, s.k}, Classes: s.classes, DType: "f64"}
}

// Predict implements models.Denoiser; the answer is of kind X0.
func (s *Sequences) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if err := s.check(q.X, len(q.At)); err != nil {
		return err
	}
	x, out := p.Fit(q.X, schedules.X0)
	w := s.l * s.k
	for i, n := range q.At {
		if err := ctx.Err(); err != nil {
			return err
		}
		class := q.Cond.Class(i)
		if class != models.NoClass && (class < 0 || class >= s.classes) {
			return fmt.Errorf("analytic: no class %d; the target has %d", class, s.classes)
		}
		terms, post, _ := s.explain(x[i*w:(i+1)*w], n, class)
		row := out[i*w : (i+1)*w]
		clear(row)
		for c, r := range post {
			if r == 0 {
				continue
			}
			for j, v := range terms[c] {
				row[j] += float64(r * v)
			}
		}
	}
	return nil
}

func (s *Sequences) check(x *tensor.Dense, rows int) error {
	if d := x.Shape(); len(d) != 3 || d[0] != rows || d[1] != s.l || d[2] != s.k {
		return fmt.Errorf("analytic: states of shape %v, the target wants (%d, %d, %d)", d, rows, s.l, s.k)
	}
	return nil
}

// explain returns the posterior of every position under every component, the posterior of the components of the class
// (all with NoClass), and the log of their weighted likelihood.
func (s *Sequences) explain(x []float64, n schedules.Node, class int) (terms [][]float64, post []float64, logp float64) {
	_, linear := s.t.Process.(schedules.SimplexLinear)
	f := make([]float64, len(x)) // log f_t, up to a constant of the position
	for at := 0; at < len(x); at += s.k {
		top := at
		for j := at; j < at+s.k; j++ {
			if x[j] > x[top] {
				top = j
			}
		}
		for j := at; j < at+s.k; j++ {
			switch {
			case n.T == 0:
			case linear && (x[j] >= n.T || j == top && x[top] < n.T):
			case linear, x[j] <= 0:
				f[j] = math.Inf(-1)
			default:
				f[j] = n.T * (math.Log(x[j]) - math.Log(x[top]))
			}
		}
	}
	terms, post = make([][]float64, len(s.t.Weights)), make([]float64, len(s.t.Weights))
	best := math.Inf(-1)
	for c, w := range s.t.Weights {
		if class != models.NoClass && s.t.Labels[c] != class {
			post[c] = math.Inf(-1)
			continue
		}
		terms[c] = make([]float64, len(x))
		post[c] = math.Log(w)
		for l, q := range s.t.Probs[c] {
			z := 0.0
			row := terms[c][l*s.k : (l+1)*s.k]
			for j, v := range q {
				row[j] = float64(v * math.Exp(f[l*s.k+j]))
				z += row[j]
			}
			post[c] += math.Log(z)
			for j := range row {
				if z > 0 {
					row[j] /= z
				} else { // impossible under this component
					row[j] = q[j]
				}
			}
		}
		best = max(best, post[c])
	}
	if math.IsInf(best, -1) { // no component explains the state: what is left are the weights
		for c, w := range s.t.Weights {
			if terms[c] != nil {
				post[c], best = math.Log(w), 0
			}
		}
	}
	sum := 0.0
	for c := range post {
		post[c] = math.Exp(post[c] - best)
		sum += post[c]
	}
	for c := range post {
		post[c] /= sum
	}
	return terms, post, best + math.Log(sum)
}

// LogProb is the exact noisy classifier, log p(class | x) with its gradient by x: d log Z_cl/dx_lj = t p_cl(j)/x_lj. On the
// linear path likelihoods have no gradient.
func (s *Sequences) LogProb(ctx context.Context, x *tensor.Dense, at []schedules.Node, classes []int, logp []float64, grad *tensor.Dense) error {
	if err := s.check(x, len(at)); err != nil {
		return err
	}
	if _, ok := s.t.Process.(schedules.Dirichlet); !ok {
		return fmt.Errorf("analytic: there is no classifier with gradients on the path %s", s.t.Process.Name())
	}
	d := models.Data(x)
	w := s.l * s.k
	for i, n := range at {
		if err := ctx.Err(); err != nil {
			return err
		}
		row := d[i*w : (i+1)*w]
		var g []float64
		if grad != nil {
			g = models.Data(grad)[i*w : (i+1)*w]
			clear(g)
		}
		logp[i] = 0
		if classes[i] == models.NoClass {
			continue
		}
		if classes[i] < 0 || classes[i] >= s.classes {
			return fmt.Errorf("analytic: no class %d; the target has %d", classes[i], s.classes)
		}
		terms, all, lAll := s.explain(row, n, models.NoClass)
		_, own, lOwn := s.explain(row, n, classes[i])
		logp[i] = lOwn - lAll
		for c := range all {
			for j := range g {
				if row[j] > 0 {
					g[j] += float64((own[c] - all[c]) * n.T * terms[c][j] / row[j])
				}
			}
		}
	}
	return nil
}

// OpenTarget reads the target in the file at path: a mixture (see Parse), or
//
//	{"type": "categorical", "weights": [0.5, 0.5], "probs": [[[0.7, 0.1, 0.1, 0.1]], [[0.1, 0.1, 0.1, 0.7]]],
//	 "labels": [0, 1], "process": {"type": "dirichlet", "end": 7}}
//
// with probs (component, position, category); the process is dirichlet (end may be left out) or simplex-linear; or a bridge
// between two mixtures (see Ends),
//
//	{"type": "bridge", "from": {"weights": [1], "means": [[-1]], "vars": [[0.5]]}, "to": {...},
//	 "process": {"kind": "linear", "gamma": "brownian", "scale": 1}, "prediction": ["velocity", "score"]}
//
// whose process is that of schedules.NewBridge (scale 1 and the prediction may be left out, and from on a mirror).
func OpenTarget(path string) (interface {
	models.Denoiser
	models.Described
}, error) {
	o, err := strictjson.ReadFile(path, mostBytes, strictjson.Limits{})
	if err != nil {
		return nil, err
	}
	switch kind, _ := o.Get("type"); kind {
	case "categorical":
		return categorical(path, o)
	case "bridge":
		return bridgeFrom(path, o)
	}
	return fromObject(path, o)
}

// ParseCategorical reads a categorical target (see OpenTarget).
func ParseCategorical(data []byte) (*Sequences, error) {
	o, err := strictjson.Parse("", data, strictjson.Limits{})
	if err != nil {
		return nil, err
	}
	return categorical("", o)
}

func categorical(path string, o *strictjson.Object) (*Sequences, error) {
	known := []string{"type", "weights", "probs", "labels", "process"}
	for _, k := range o.Keys() {
		if !slices.Contains(known, k) {
			return nil, refuse.Errorf(path, "a categorical target has no key %q%s", k, spec.Suggest(k, known))
		}
	}
	r := reader{path: path, o: o}
	if kind, ok := r.need("type").(string); r.err == nil && (!ok || kind != "categorical") {
		r.fail("type: want \"categorical\"")
	}
	t := Categorical{
		Weights: read(&r, "weights", true, number),
		Probs:   read(&r, "probs", true, matrix),
		Labels:  read(&r, "labels", false, class),
	}
	process, ok := r.need("process").(*strictjson.Object)
	if !ok {
		r.fail("process: want an object")
	}
	if r.err != nil {
		return nil, r.err
	}
	k := 0
	if len(t.Probs) > 0 && len(t.Probs[0]) > 0 {
		k = len(t.Probs[0][0])
	}
	var err error
	if t.Process, err = field(path, process, k); err != nil {
		return nil, err
	}
	s, err := newSequences(t)
	if err != nil {
		return nil, refuse.Errorf(path, "%v", err)
	}
	s.name = path
	return s, nil
}

// field reads a process on the simplex of k categories.
func field(path string, o *strictjson.Object, k int) (schedules.Field, error) {
	kind, _ := o.Get("type")
	end := 0.0
	for _, key := range o.Keys() {
		v, _ := o.Get(key)
		switch {
		case key == "type":
		case key == "end" && kind == "dirichlet":
			var err error
			if end, err = number(v); err != nil || !(end > 0 && end <= 1e6) {
				return nil, refuse.Errorf(path, "process: end: want a number above 0, at most 1e6")
			}
		case key == "end" && kind == "simplex-linear":
			if e, err := number(v); err != nil || e != 1 {
				return nil, refuse.Errorf(path, "process: simplex-linear ends at 1")
			}
		default:
			return nil, refuse.Errorf(path, "process %v has no parameter %q", kind, key)
		}
	}
	switch kind {
	case "dirichlet":
		return schedules.Dirichlet{K: k, End: end}, nil
	case "simplex-linear":
		return schedules.SimplexLinear{K: k}, nil
	}
	return nil, refuse.Errorf(path, "process: a categorical target runs on dirichlet or simplex-linear, not %v", kind)
}
