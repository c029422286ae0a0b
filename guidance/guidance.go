// Package guidance changes what a model predicts: every Guider decorates a models.Denoiser and gives another one, so
// that any guidance works with any solver. Guiders are chained; the first is nearest to the model.
package guidance

import (
	"context"
	"fmt"
	"slices"
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

// Span is the part of a run in which a guider acts, in step fractions: 0 is the start of the run, 1 its end. The zero
// value is the whole run.
type Span struct{ From, To float64 }

// Holds tells whether the guider acts at progress p: From <= p < To.
func (s Span) Holds(p float64) bool {
	if s == (Span{}) {
		return true
	}
	return p >= s.From && p < s.To
}

// Info is one row of the table of guiders.
type Info struct {
	Name, Summary, Source string
	NFE                   string // evaluations in place of one
	VJP                   bool   // needs a model with gradients
	Options               []Option
	New                   func(o *spec.Options) (Guider, error)
}

// Option describes one option of a guider.
type Option struct{ Name, Default, Help string }

var table = map[string]Info{} // written by register in init functions only

func register(i Info) {
	i.Options = append(i.Options, Option{"from", "0", "step fraction from which it acts"}, Option{"to", "1", "step fraction up to which it acts"})
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

// Parse makes the guider that a string like "cfg:w=2" names.
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
	g, err := row.New(o)
	if e := o.Err(); e != nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("guidance: %w", err)
	}
	return g, nil
}

func readSpan(o *spec.Options) Span {
	return Span{o.FloatIn("from", 0, 0, 1), o.FloatIn("to", 2, 0, 2)}
}

// CFG is classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598):
//
//	guided = uncond + W (cond - uncond)
//
// W = 1 is off: only the conditional prediction is made, bit for bit the unguided run. Rows without a class are left
// alone. A guided step costs two evaluations. The answer's Parts are "cond" with weight W and "uncond" with weight 1-W;
// they hold until the next question.
type CFG struct {
	W        float64
	Negative int // class in place of "no class", plus 1; 0 = none
	Span     Span
}

func init() {
	register(Info{Name: "cfg", NFE: "2", Summary: "classifier-free guidance: uncond + w (cond - uncond)", Source: "arXiv 2207.12598, eq. 6",
		Options: []Option{{"w", "2", "scale; 1 = off"}, {"negative", "", "class to move away from, in place of no class"}},
		New: func(o *spec.Options) (Guider, error) {
			return CFG{W: o.Float("w", 2), Negative: o.Int("negative", -1, 0, 1<<30) + 1, Span: readSpan(o)}, nil
		}})
}

// Guide implements Guider.
func (g CFG) Guide(d models.Denoiser) models.Denoiser { return &cfg{Denoiser: d, g: g} }

type cfg struct {
	models.Denoiser
	g      CFG
	cond   models.Cond
	uncond models.Pred
	with   *tensor.Dense // copy of the conditional prediction
	parts  [2]models.Part
}

func (c *cfg) Unwrap() models.Denoiser { return c.Denoiser }

func (c *cfg) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if err := c.Denoiser.Predict(ctx, q, p); err != nil {
		return err
	}
	if c.g.W == 1 || !c.g.Span.Holds(q.Step.Progress) || !conditional(q) {
		return nil
	}
	n := len(q.At)
	c.cond.Classes = c.cond.Classes[:0]
	for i := range n {
		class := models.NoClass
		if q.Cond.Class(i) != models.NoClass {
			class = c.g.Negative - 1
		}
		c.cond.Classes = append(c.cond.Classes, class)
	}
	c.cond.Prompts, c.cond.Tensors = nil, nil
	without := *q
	without.Cond = &c.cond
	if err := c.Denoiser.Predict(ctx, &without, &c.uncond); err != nil {
		return err
	}
	if c.uncond.Kind != p.Kind {
		return fmt.Errorf("guidance: cfg: the model answered with %v and with %v", p.Kind, c.uncond.Kind)
	}
	c.with = models.Reuse(c.with, p.Out.Shape())
	copy(models.Data(c.with), models.Data(p.Out))
	c.parts = [2]models.Part{{Name: "cond", Weight: c.g.W, Out: c.with, Kind: p.Kind}, {Name: "uncond", Weight: 1 - c.g.W, Out: c.uncond.Out, Kind: p.Kind}}
	p.Parts = c.parts[:]
	mix(models.Data(p.Out), models.Data(c.uncond.Out), c.g.W)
	if p.Extra != nil && c.uncond.Extra != nil {
		mix(models.Data(p.Extra), models.Data(c.uncond.Extra), c.g.W)
	}
	return nil
}

// mix writes u + w (a - u) into a.
func mix(a, u []float64, w float64) {
	for i, v := range u {
		a[i] = v + float64(w*(a[i]-v))
	}
}

func conditional(q *models.Query) bool {
	for i := range q.At {
		if q.Cond.Class(i) != models.NoClass {
			return true
		}
	}
	return false
}

// Clip keeps the predicted data inside [-Range, Range]. The noise that belongs to the clipped data is derived anew,
// unless Keep puts the model's own noise back, which is diffusers' default (and breaks pictures at high guidance).
type Clip struct {
	Range float64 // 0 = 1
	Keep  bool
	Span  Span
}

func init() {
	register(Info{Name: "clip", NFE: "1", Summary: "clip the predicted data, re-deriving the noise (rederive=false: diffusers' clip_sample)", Source: "DDPM, arXiv 2006.11239, section 3.2",
		Options: []Option{{"range", "1", "largest absolute value"}, {"rederive", "true", "false puts the model's own noise back"}},
		New: func(o *spec.Options) (Guider, error) {
			return Clip{Range: o.FloatIn("range", 1, 1e-9, 1e9), Keep: !o.Bool("rederive", true), Span: readSpan(o)}, nil
		}})
}

// Guide implements Guider.
func (g Clip) Guide(d models.Denoiser) models.Denoiser { return &clip{Denoiser: d, g: g} }

type clip struct {
	models.Denoiser
	g       Clip
	inner   models.Pred
	renoise *tensor.Dense
}

func (c *clip) Unwrap() models.Denoiser { return c.Denoiser }

func (c *clip) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if !c.g.Span.Holds(q.Step.Progress) {
		return c.Denoiser.Predict(ctx, q, p)
	}
	if err := c.Denoiser.Predict(ctx, q, &c.inner); err != nil {
		return err
	}
	gau, ok := c.Process().(schedules.Gaussian)
	if !ok {
		return fmt.Errorf("guidance: clip needs a Gaussian process, the model's is %s", c.Process().Name())
	}
	limit := c.g.Range
	if limit == 0 {
		limit = 1
	}
	x, out := p.Fit(q.X, schedules.X0)
	raw := models.Data(c.inner.Out)
	p.Extra, p.Parts = c.inner.Extra, c.inner.Parts
	var noise []float64
	if c.g.Keep {
		c.renoise = models.Reuse(c.renoise, q.X.Shape())
		p.Renoise = c.renoise
		noise = models.Data(p.Renoise)
	}
	w := len(out) / len(q.At)
	for i, n := range q.At {
		cx, co, err := schedules.Convert(gau, c.inner.Kind, schedules.X0, n)
		if err != nil {
			return err
		}
		for j := i * w; j < (i+1)*w; j++ {
			out[j] = min(limit, max(-limit, float64(cx*x[j])+float64(co*raw[j])))
		}
		if noise == nil {
			continue
		}
		if cx, co, err = schedules.Convert(gau, c.inner.Kind, schedules.Eps, n); err != nil {
			return err
		}
		for j := i * w; j < (i+1)*w; j++ {
			noise[j] = float64(cx*x[j]) + float64(co*raw[j])
		}
	}
	return nil
}
