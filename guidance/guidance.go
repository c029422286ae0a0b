// Package guidance changes what a model predicts: every Guider decorates a models.Denoiser and gives another one, so
// that any guidance works with any solver. Guiders are chained; the first is nearest to the model.
//
// In the formulas c is the prediction with the condition, u the one without (or with a negative class), w the scale and
// sb = sigma/alpha the noise level. A guider that has nothing to do (scale 1 or weight 0, outside its Span, rows without
// a class) makes no further evaluation and leaves every bit as it is.
package guidance

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"gorgonia.org/tensor"

	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// Guider makes a guided model from a model. The result serves one run at a time.
type Guider interface {
	Guide(d models.Denoiser) models.Denoiser
}

// Span is the part of a run in which a guider acts: step fractions From <= progress < To (0 is the start of the run, 1
// its end) and noise levels Lo < sigma/alpha <= Hi of the state that the model is asked at (Kynkäänniemi et al. 2024,
// arXiv 2404.07724). To = 0 with From = 0 stands for the whole run, Hi = 0 for no upper bound.
type Span struct{ From, To, Lo, Hi float64 }

// Holds tells whether the guider acts on a row of the query.
func (s Span) Holds(q *models.Query, row int) bool {
	if p := q.Step.Progress; (s.From != 0 || s.To != 0) && !(p >= s.From && p < s.To) {
		return false
	}
	if s.Lo == 0 && s.Hi == 0 {
		return true
	}
	sb := q.At[row].Ratio()
	return sb > s.Lo && (s.Hi == 0 || sb <= s.Hi)
}

// any tells whether the guider acts on some row.
func (s Span) any(q *models.Query) bool {
	for i := range q.At {
		if s.Holds(q, i) {
			return true
		}
	}
	return false
}

// Info is one row of the table of guiders.
type Info struct {
	Name, Summary, Source string
	NFE                   string // evaluations in place of one
	VJP                   bool   // needs a model with gradients
	Model                 bool   // needs a second model (see Needer)
	Hooks                 bool   // needs a network whose layers can be changed
	Renoise               bool   // changes the noise put back: only first-order solvers and dpmpp-2m have a form for that
	Class                 bool   // draws samples towards their class: raises the mean of log p(class | x)
	Options               []Option
	New                   func(o *spec.Options) (Guider, error)
}

// Option describes one option of a guider.
type Option struct{ Name, Default, Help string }

var table = map[string]Info{} // written by register in init functions only

func register(i Info) {
	i.Options = append(i.Options, Option{"from", "0", "step fraction from which it acts"}, Option{"to", "1", "step fraction up to which it acts"},
		Option{"interval", "0-inf", "noise levels lo-hi, lo < sigma/alpha <= hi, in which it acts"})
	if _, twice := table[i.Name]; twice {
		panic("guidance: registered twice: " + i.Name)
	}
	table[i.Name] = i
}

// List returns the table, sorted by name.
func List() []Info {
	out := make([]Info, 0, len(table))
	for _, i := range table {
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Needer is a Guider that works with a second model, which the text of an option cannot hold.
type Needer interface {
	Guider
	// With returns the guider with its second model.
	With(second models.Denoiser) Guider
}

// Parse makes the guider that a string like "cfg:w=2" names. A Needer comes without its second model.
func Parse(s string) (Guider, error) {
	sp, err := spec.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("guidance: %w", err)
	}
	row, ok := table[sp.Name]
	if !ok {
		var names []string
		for _, i := range List() {
			names = append(names, i.Name)
		}
		return nil, fmt.Errorf("guidance: unknown guider %q%s", sp.Name, spec.Suggest(sp.Name, names))
	}
	o := sp.Options()
	_, bad := readSpan(o)
	g, err := row.New(o)
	if err == nil {
		err = bad
	}
	if e := o.Err(); e != nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("guidance: %w", err)
	}
	return g, nil
}

// never is a Span that holds nowhere.
var never = Span{From: 2, To: 2}

func span(o *spec.Options) Span {
	s, _ := readSpan(o) // Parse reports the error
	return s
}

func readSpan(o *spec.Options) (Span, error) {
	s := Span{From: o.FloatIn("from", 0, 0, 1), To: o.FloatIn("to", 2, 0, 2)}
	if s.From > s.To {
		return s, fmt.Errorf("option from=%g: beyond to=%g", s.From, s.To)
	}
	if s.To == 0 {
		s = never
	}
	text := o.Text("interval", "")
	if text == "" {
		return s, nil
	}
	for i := range len(text) {
		if text[i] != '-' {
			continue
		}
		lo, err1 := strconv.ParseFloat(text[:i], 64)
		hi, err2 := strconv.ParseFloat(text[i+1:], 64)
		if err1 != nil || err2 != nil {
			continue // the minus of an exponent
		}
		if !(lo >= 0 && lo <= hi) || math.IsInf(lo, 1) {
			break
		}
		if s.Lo, s.Hi = lo, hi; hi == 0 {
			s = never
		}
		return s, nil
	}
	return s, fmt.Errorf("option interval=%s: want lo-hi with 0 <= lo <= hi (as in 0.3-3, or 0.3-inf)", text)
}

// link is what all guided models share. Its VJP refuses, so that nobody finds the gradient of the unguided model below.
type link struct {
	models.Denoiser
	name string
}

// Unwrap implements models.Wrapper.
func (l *link) Unwrap() models.Denoiser { return l.Denoiser }

// guided marks the models of this package.
func (l *link) guided() {}

// VJP implements models.VJP: there is no gradient through this guider.
func (l *link) VJP(context.Context, *models.Query, *models.Pred, *tensor.Dense, *tensor.Dense) error {
	return fmt.Errorf("guidance: %s: there is no gradient through this guider", l.name)
}

// bare returns the model below all guiders.
func bare(d models.Denoiser) models.Denoiser {
	for {
		g, ok := d.(interface {
			guided()
			Unwrap() models.Denoiser
		})
		if !ok {
			return d
		}
		d = g.Unwrap()
	}
}

// gaussian returns the model's process, which the guider's conversions need.
func (l *link) gaussian() (schedules.Gaussian, error) {
	g, ok := l.Process().(schedules.Gaussian)
	if !ok {
		return nil, fmt.Errorf("guidance: %s needs a Gaussian process, the model's is %s", l.name, l.Process().Name())
	}
	return g, nil
}

// predict asks d, or, with a cotangent, also for the gradient.
func predict(ctx context.Context, d models.Denoiser, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	if cotangent == nil {
		return d.Predict(ctx, q, p)
	}
	v, ok := models.As[models.VJP](d)
	if !ok {
		return fmt.Errorf("guidance: a gradient is needed, and the model has none")
	}
	return v.VJP(ctx, q, p, cotangent, grad)
}

// own refuses an answer that already chooses the noise to put back: its guider belongs after this one.
func (l *link) own(p *models.Pred) error {
	if p.Renoise != nil {
		return fmt.Errorf("guidance: %s: the guider below it sets the noise put back (cfg++, clipping without re-derived noise): put %s first", l.name, l.name)
	}
	return nil
}

// where writes the place of a failure.
func where(q *models.Query, row int) string {
	return fmt.Sprintf("step %d, sigma/alpha %.4g, row %d", q.Step.I, q.At[row].Ratio(), row)
}

// scaled writes f_i a_i for every row i into dst.
func scaled(dst, a *tensor.Dense, f []float64) *tensor.Dense {
	dst = models.Reuse(dst, a.Shape())
	d, s := models.Data(dst), models.Data(a)
	w := len(s) / len(f)
	for i, v := range s {
		d[i] = f[i/w] * v
	}
	return dst
}

// clone copies a into dst.
func clone(dst, a *tensor.Dense) *tensor.Dense {
	dst = models.Reuse(dst, a.Shape())
	copy(models.Data(dst), models.Data(a))
	return dst
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for i, v := range a {
		sum += float64(v * b[i])
	}
	return sum
}

func norm(a []float64) float64 { return math.Sqrt(dot(a, a)) }
