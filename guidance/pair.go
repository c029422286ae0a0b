package guidance

import (
	"context"
	"fmt"

	"gorgonia.org/tensor"

	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// pair asks a model twice, with the condition and without it (or with a negative class), and knows the rows to guide.
type pair struct {
	link
	w        float64
	of       Scale
	off      float64 // the scale that does nothing
	negative int     // class plus 1
	span     Span

	cond     models.Cond
	u        models.Pred
	inner    []models.Part // those of the conditional answer, copied: the model below may use its memory again
	scales   []float64
	factors  []float64
	cot, add *tensor.Dense
}

// conditional tells which rows have a class or a text.
func conditional(q *models.Query) func(int) bool { return q.Cond.Given }

// prepare finds the scale of every row.
func (g *pair) prepare(q *models.Query) (on bool, err error) {
	g.scales, on, err = weights(g.scales, g.name, q, g.w, g.of, g.span, g.off, conditional(q))
	return on, err
}

// without is the same question without the condition.
func (g *pair) without(q *models.Query) *models.Query {
	g.cond.Classes = g.cond.Classes[:0]
	for i := range q.At {
		class := models.NoClass
		if q.Cond.Class(i) != models.NoClass {
			class = g.negative - 1
		}
		g.cond.Classes = append(g.cond.Classes, class)
	}
	g.cond.Prompts, g.cond.Tensors = nil, nil
	if q.Cond != nil {
		g.cond.Prompts = q.Cond.Negative
	}
	w := *q
	w.Cond = &g.cond
	return &w
}

// ask answers the conditional prediction in p, and the other one in g.u where some row is guided.
func (g *pair) ask(ctx context.Context, q *models.Query, p *models.Pred) (on bool, err error) {
	if on, err = g.prepare(q); err != nil {
		return false, err
	}
	if err := g.Denoiser.Predict(ctx, q, p); err != nil || !on {
		return false, err
	}
	g.keep(p)
	if err := g.Denoiser.Predict(ctx, g.without(q), &g.u); err != nil {
		return false, err
	}
	return true, g.agree(p)
}

// keep copies the parts of the conditional answer.
func (g *pair) keep(p *models.Pred) {
	old := g.inner
	g.inner = g.inner[:0:cap(g.inner)]
	for i, part := range p.Parts {
		var into *tensor.Dense
		if i < len(old) {
			into = old[i].Out
		}
		part.Out = clone(into, part.Out)
		g.inner = append(g.inner, part)
	}
}

// spreadParts returns the experts of w a + (1 - w) b, answers that may have parts themselves; whole names one that has none.
func spreadParts(dst []models.Part, w float64, name string, whole *tensor.Dense, kind schedules.Kind, parts []models.Part) []models.Part {
	if len(parts) == 0 {
		return append(dst, models.Part{Name: name, Weight: w, Out: whole, Kind: kind})
	}
	for _, p := range parts {
		p.Name, p.Weight = name+" "+p.Name, w*p.Weight
		dst = append(dst, p)
	}
	return dst
}

// VJP implements models.VJP where no row is guided: there is no gradient through the rule.
func (g *pair) VJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	on, err := g.prepare(q)
	if err != nil {
		return err
	}
	if on {
		return g.link.VJP(ctx, q, p, cotangent, grad)
	}
	return predict(ctx, g.Denoiser, q, p, cotangent, grad)
}

func (g *pair) agree(p *models.Pred) error {
	if g.u.Kind != p.Kind {
		return fmt.Errorf("guidance: %s: the model answered with %v and with %v", g.name, p.Kind, g.u.Kind)
	}
	if err := g.own(p); err != nil {
		return err
	}
	return g.own(&g.u)
}

// askVJP is ask with the gradient of w c + (1 - w) u.
func (g *pair) askVJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) (on bool, err error) {
	if on, err = g.prepare(q); err != nil {
		return false, err
	}
	if !on {
		return false, predict(ctx, g.Denoiser, q, p, cotangent, grad)
	}
	g.cot = scaled(g.cot, cotangent, g.scales)
	if err := predict(ctx, g.Denoiser, q, p, g.cot, grad); err != nil {
		return false, err
	}
	g.keep(p)
	g.factors = g.factors[:0]
	for _, w := range g.scales {
		g.factors = append(g.factors, 1-w)
	}
	g.cot = scaled(g.cot, cotangent, g.factors)
	g.add = models.Reuse(g.add, grad.Shape())
	if err := predict(ctx, g.Denoiser, g.without(q), &g.u, g.cot, g.add); err != nil {
		return false, err
	}
	d := models.Data(grad)
	for i, v := range models.Data(g.add) {
		d[i] += v
	}
	return true, g.agree(p)
}

// uniform returns the scale that all guided rows share; rows without a class fit to any.
func (g *pair) uniform(q *models.Query) (float64, bool) {
	first, have := g.off, false
	for i, w := range g.scales {
		if !q.Cond.Given(i) {
			continue
		}
		if have && w != first {
			return 0, false
		}
		first, have = w, true
	}
	return first, have
}

// rows calls f with the conditional and unconditional prediction of every guided row, in the given space; what f leaves
// in c becomes the answer.
func (g *pair) rows(q *models.Query, p *models.Pred, space Space, f func(row int, w float64, c, u []float64) error) error {
	gau, err := g.gaussian()
	if err != nil {
		return err
	}
	kind := space.kind(p.Kind)
	x, c, u := models.Data(q.X), models.Data(p.Out), models.Data(g.u.Out)
	n := len(c) / len(q.At)
	for i, w := range g.scales {
		if w == g.off {
			continue
		}
		lo, hi := i*n, (i+1)*n
		if kind != p.Kind {
			if err := convert(gau, p.Kind, kind, q.At[i], x[lo:hi], c[lo:hi], u[lo:hi]); err != nil {
				return fmt.Errorf("guidance: %s: %s: %w", g.name, where(q, i), err)
			}
		}
		if err := f(i, w, c[lo:hi], u[lo:hi]); err != nil {
			return fmt.Errorf("guidance: %s: %s: %w", g.name, where(q, i), err)
		}
		if kind != p.Kind {
			if err := convert(gau, kind, p.Kind, q.At[i], x[lo:hi], c[lo:hi]); err != nil {
				return fmt.Errorf("guidance: %s: %s: %w", g.name, where(q, i), err)
			}
		}
	}
	p.Parts = nil
	return nil
}

// convert turns predictions at (x, n) into another kind, in place.
func convert(gau schedules.Gaussian, from, to schedules.Kind, n schedules.Node, x []float64, preds ...[]float64) error {
	cx, co, err := schedules.Convert(gau, from, to, n)
	if err != nil {
		return err
	}
	for _, p := range preds {
		for j, v := range p {
			p[j] = float64(cx*x[j]) + float64(co*v)
		}
	}
	return nil
}

// Space is the kind of prediction in which a rule that is not linear works. The zero value is the rule's own default,
// which its documentation names.
type Space string

// The spaces: Raw is whatever the model answers, the others are kinds of package schedules.
const (
	Raw      Space = "raw"
	Data     Space = "x0"
	Noise    Space = "eps"
	V        Space = "v"
	Velocity Space = "velocity"
)

func (s Space) or(def Space) Space {
	if s == "" {
		return def
	}
	return s
}

func (s Space) kind(raw schedules.Kind) schedules.Kind {
	switch s {
	case Data:
		return schedules.X0
	case Noise:
		return schedules.Eps
	case V:
		return schedules.V
	case Velocity:
		return schedules.Velocity
	}
	return raw
}

// readSpace reads the option space, def first.
func readSpace(o *spec.Options, def Space) Space {
	words := []string{string(def)}
	for _, s := range []Space{Raw, Data, Noise, V, Velocity} {
		if s != def {
			words = append(words, string(s))
		}
	}
	return Space(o.Choice("space", words...))
}

// guideOptions are those of every rule on a pair.
func guideOptions(w, help string, more ...Option) []Option {
	return append([]Option{{"w", w, help + ", or an expression of " + momentNames}, {"negative", "", "class to move away from, in place of no class"}}, more...)
}

func negative(o *spec.Options) int { return o.Int("negative", -1, 0, 1<<30) + 1 }
