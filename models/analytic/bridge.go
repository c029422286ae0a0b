package analytic

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
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

// Side is the density at one end of a bridge: a mixture of Gaussians with diagonal covariances.
type Side struct {
	Weights []float64   `json:"weights"`
	Means   [][]float64 `json:"means"`
	Vars    [][]float64 `json:"vars"`
}

// Ends is a bridge between two mixtures, x0 ~ From and x1 ~ To independent of each other (on a mirror From is not looked
// at: x0 is x1). Every pair of components is a Gaussian at every time, so all its fields have closed forms: for a pair of
// weight w_k w_l,
//
//	mu = A m_k + B m_l,  V = A^2 C_k + B^2 C_l + gamma^2,  e = (x - mu)/V
//	E[x0|x] = m_k + A C_k e,  E[x1|x] = m_l + B C_l e,  score = -e,  E[z|x] = gamma e
//
// averaged over the pairs by their posterior at x. Nothing is divided by gamma, so both ends are exact.
//
// It answers two fields, First into Pred.Out and Second into Pred.Extra, as an estimator that was trained on such a pair
// would.
type Ends struct {
	From, To      Side
	Bridge        schedules.Bridge
	First, Second schedules.Kind // see NewEnds
	mirror        bool
	dim           int
	name          string
	text          []byte
}

var (
	_ models.Denoiser  = (*Ends)(nil)
	_ models.Sourced   = (*Ends)(nil)
	_ models.Described = (*Ends)(nil)
)

// NewEnds checks e and makes it ready. First is Velocity, Transport, X0 or Source, Second Score, Eps or X0 (the last of a
// first Source only). On a bridge of kind mirror From may be left out. Errors: as New's for each side, sides of unequal
// length, pairs that do not tell all fields.
func NewEnds(e Ends) (*Ends, error) {
	if e.Bridge.A == nil || e.Bridge.B == nil || e.Bridge.Square == nil {
		return nil, fmt.Errorf("analytic: a bridge without coefficients")
	}
	kind, gamma, scale, err := e.Bridge.Text()
	e.mirror = err == nil && kind == "mirror"
	if e.mirror && e.From.Weights == nil {
		e.From = e.To
	}
	for _, s := range []struct {
		name string
		side Side
	}{{"from", e.From}, {"to", e.To}} {
		t := Target{Weights: s.side.Weights, Means: s.side.Means, Vars: s.side.Vars, Process: schedules.Flow{}}
		if _, err := newMixture(t); err != nil {
			return nil, fmt.Errorf("analytic: %s: %w", s.name, err)
		}
	}
	e.dim = len(e.To.Means[0])
	if len(e.From.Means[0]) != e.dim {
		return nil, fmt.Errorf("analytic: from has %d dimensions, to has %d", len(e.From.Means[0]), e.dim)
	}
	if e.First == e.Second {
		return nil, fmt.Errorf("analytic: the fields %v and %v are one", e.First, e.Second)
	}
	for _, k := range []schedules.Kind{schedules.Velocity, schedules.Score} {
		if _, _, _, err := e.Bridge.Convert(e.First, e.Second, k, 0.3); err != nil {
			return nil, fmt.Errorf("analytic: %w", err)
		}
	}
	if err == nil {
		if e.text, err = json.Marshal(struct {
			Type    string          `json:"type"`
			From    Side            `json:"from"`
			To      Side            `json:"to"`
			Process json.RawMessage `json:"process"`
			Predict []string        `json:"prediction"`
		}{"bridge", e.From, e.To, fmt.Appendf(nil, `{"kind":%q,"gamma":%q,"scale":%v}`, kind, gamma, scale), []string{e.First.String(), e.Second.String()}}); err != nil {
			return nil, fmt.Errorf("analytic: writing the target: %w", err)
		}
	}
	return &e, nil
}

// bridgeFrom reads a target of type bridge (see OpenTarget).
func bridgeFrom(path string, o *strictjson.Object) (*Ends, error) {
	only := func(o *strictjson.Object, what string, known ...string) error {
		for _, k := range o.Keys() {
			if !slices.Contains(known, k) {
				return refuse.Errorf(path, "%s has no key %q%s", what, k, spec.Suggest(k, known))
			}
		}
		return nil
	}
	if err := only(o, "a bridge", "type", "from", "to", "process", "prediction"); err != nil {
		return nil, err
	}
	object := func(key string, needed bool) (*strictjson.Object, error) {
		v, ok := o.Get(key)
		if !ok && !needed {
			return nil, nil
		}
		inner, is := v.(*strictjson.Object)
		if !is {
			return nil, refuse.Errorf(path, "%s: want an object", key)
		}
		return inner, nil
	}
	e := Ends{First: schedules.Velocity, Second: schedules.Score}
	process, err := object("process", true)
	if err == nil {
		err = only(process, "the process of a bridge", "kind", "gamma", "scale")
	}
	if err != nil {
		return nil, err
	}
	text := func(key string) string {
		v, _ := process.Get(key)
		s, _ := v.(string)
		return s
	}
	scale := 1.0
	if v, ok := process.Get("scale"); ok {
		if scale, err = number(v); err != nil {
			return nil, refuse.Errorf(path, "scale%v", err)
		}
	}
	if e.Bridge, err = schedules.NewBridge(text("kind"), text("gamma"), scale); err != nil {
		return nil, refuse.Errorf(path, "%v", err)
	}
	for _, s := range []struct {
		key    string
		needed bool
		into   *Side
	}{{"from", text("kind") != "mirror", &e.From}, {"to", true, &e.To}} {
		side, err := object(s.key, s.needed)
		if err != nil {
			return nil, err
		}
		if side == nil {
			continue
		}
		if err := only(side, s.key, "weights", "means", "vars"); err != nil {
			return nil, err
		}
		r := reader{path: path, o: side}
		*s.into = Side{Weights: read(&r, "weights", true, number), Means: read(&r, "means", true, vector), Vars: read(&r, "vars", true, vector)}
		if r.err != nil {
			return nil, r.err
		}
	}
	if v, ok := o.Get("prediction"); ok {
		pair, err := list(v, func(v any) (schedules.Kind, error) {
			s, ok := v.(string)
			if !ok {
				return 0, errors.New(": want a text")
			}
			return schedules.ParseKind(s)
		})
		if err != nil || len(pair) != 2 {
			return nil, refuse.Errorf(path, "prediction: want two of x0, source, eps, score, transport, velocity")
		}
		e.First, e.Second = pair[0], pair[1]
	}
	made, err := NewEnds(e)
	if err != nil {
		return nil, refuse.Errorf(path, "%v", err)
	}
	made.name = path
	return made, nil
}

// Process returns the bridge.
func (e *Ends) Process() schedules.Process { return e.Bridge }

// Dim returns the number of dimensions.
func (e *Ends) Dim() int { return e.dim }

// Info describes the target.
func (e *Ends) Info() models.Info {
	out := models.Info{Name: e.name, Shape: []int{e.dim}, DType: "f64"}
	if e.text != nil {
		sum := sha256.Sum256(e.text)
		out.Hash = hex.EncodeToString(sum[:])
	}
	for _, s := range []Side{e.From, e.To} {
		out.Params += int64(len(s.Weights)) * int64(1+2*e.dim)
	}
	return out
}

// Source implements models.Sourced: a row of From (of To on a mirror) from dim+1 unit normals.
func (e *Ends) Source(dst, z []float64) error {
	side := e.From
	if e.mirror {
		side = e.To
	}
	if len(dst) != e.dim || len(z) != e.dim+1 {
		return fmt.Errorf("analytic: a row of %d from %d normals; want %d and %d", len(dst), len(z), e.dim, e.dim+1)
	}
	u, k := math.Erfc(-z[e.dim]/math.Sqrt2)/2, 0
	for sum := side.Weights[0]; u > sum && k < len(side.Weights)-1; sum += side.Weights[k] {
		k++
	}
	for i := range dst {
		dst[i] = side.Means[k][i] + math.Sqrt(side.Vars[k][i])*z[i]
	}
	return nil
}

// Fields writes the fields of the given kinds at (x, t) into dst, one row of it for each, and returns log p_t(x).
func (e *Ends) Fields(dst [][]float64, x []float64, t float64, kinds ...schedules.Kind) (logP float64, err error) {
	m := e.Bridge.Mix(t)
	if len(x) != e.dim || len(dst) != len(kinds) {
		return 0, fmt.Errorf("analytic: a row of %d numbers; the bridge has %d dimensions", len(x), e.dim)
	}
	froms := len(e.From.Weights)
	if e.mirror {
		froms = 1
	}
	type pair struct {
		k, l int
		log  float64
	}
	pairs, most := make([]pair, 0, froms*len(e.To.Weights)), math.Inf(-1)
	variance := func(p pair, i int) float64 {
		v := m.B*m.B*e.To.Vars[p.l][i] + m.Gamma*m.Gamma
		if !e.mirror {
			v += m.A * m.A * e.From.Vars[p.k][i]
		}
		return v
	}
	mean := func(p pair, i int) float64 {
		if e.mirror {
			return m.B * e.To.Means[p.l][i]
		}
		return m.A*e.From.Means[p.k][i] + m.B*e.To.Means[p.l][i]
	}
	for k := range froms {
		for l, w := range e.To.Weights {
			p := pair{k: k, l: l, log: math.Log(w)}
			if !e.mirror {
				p.log += math.Log(e.From.Weights[k])
			}
			for i, xi := range x {
				v := variance(p, i)
				d := xi - mean(p, i)
				p.log -= (d*d/v + math.Log(2*math.Pi*v)) / 2
			}
			pairs, most = append(pairs, p), max(most, p.log)
		}
	}
	sum := 0.0
	for _, p := range pairs {
		sum += math.Exp(p.log - most)
	}
	for j := range dst {
		clear(dst[j])
	}
	for _, p := range pairs {
		r := math.Exp(p.log-most) / sum
		for i, xi := range x {
			f := (xi - mean(p, i)) / variance(p, i)
			x1 := e.To.Means[p.l][i] + m.B*e.To.Vars[p.l][i]*f
			x0 := x1
			if !e.mirror {
				x0 = e.From.Means[p.k][i] + m.A*e.From.Vars[p.k][i]*f
			}
			for j, kind := range kinds {
				v := math.NaN()
				switch kind {
				case schedules.Source:
					v = x0
				case schedules.X0:
					v = x1
				case schedules.Score:
					v = -f
				case schedules.Eps:
					v = m.Gamma * f
				case schedules.Transport:
					v = m.DA*x0 + m.DB*x1
				case schedules.Velocity:
					v = m.DA*x0 + m.DB*x1 + m.GammaGamma*f
				}
				dst[j][i] += r * v
			}
		}
	}
	return most + math.Log(sum), nil
}

// Predict implements models.Denoiser.
func (e *Ends) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	shape := q.X.Shape()
	if q.X.Dtype() != tensor.Float64 || len(shape) == 0 || shape[0] != len(q.At) || shape.TotalSize() != len(q.At)*e.dim {
		return fmt.Errorf("analytic: a state of %v and shape %v with %d nodes; want float64 of shape (%d, %d)", q.X.Dtype(), shape, len(q.At), len(q.At), e.dim)
	}
	for i := range q.At {
		if q.Cond.Class(i) != models.NoClass {
			return fmt.Errorf("analytic: row %d: class %d: a bridge has no classes", i, q.Cond.Class(i))
		}
	}
	extra := p.Extra
	in, out := p.Fit(q.X, e.First)
	p.Extra, p.ExtraKind = models.Reuse(extra, shape), e.Second
	second := models.Data(p.Extra)
	for i, n := range q.At {
		if err := ctx.Err(); err != nil {
			return err
		}
		lo, hi := i*e.dim, (i+1)*e.dim
		if _, err := e.Fields([][]float64{out[lo:hi], second[lo:hi]}, in[lo:hi], n.T, e.First, e.Second); err != nil {
			return err
		}
	}
	return nil
}
