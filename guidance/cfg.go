package guidance

import (
	"context"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// CFG is classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598):
//
//	guided = u + W (c - u)
//
// W = 1 is off: only the conditional prediction is made, bit for bit the unguided run. Rows without a class are left
// alone. A guided step costs two evaluations. The answer's Parts are "cond" with weight W and "uncond" with weight 1-W;
// they hold until the next question (there are none with Rescale, or where rows have different scales). Where the answers
// below have parts (a Composition), those stand in the places of the two, their weights multiplied.
//
// Rescale (Lin et al. 2023, arXiv 2305.08891, eq. 15 and 16; phi) draws the spread of every row back to the conditional
// one's, in the model's own kind of prediction, with standard deviations over the row (n - 1):
//
//	p = phi std(c)/std(guided) guided + (1 - phi) guided
type CFG struct {
	W        float64
	Scale    Scale   // in place of W; nil = W
	Rescale  float64 // phi in [0, 1]; 0 = off
	Negative int     // class in place of "no class", plus 1; 0 = none
	Span     Span
}

func init() {
	register(Info{Name: "cfg", NFE: "2", Class: true, Summary: "classifier-free guidance: uncond + w (cond - uncond)", Source: "arXiv 2207.12598, eq. 6; rescale: arXiv 2305.08891, eq. 16",
		Options: guideOptions("2", "scale; 1 = off", Option{"rescale", "0", "share of the guided prediction whose spread is drawn back to the conditional one's; 0.7 is usual"}),
		New: func(o *spec.Options) (Guider, error) {
			w, of, err := readScale(o, "w", 2, math.Inf(-1), math.Inf(1))
			return CFG{W: w, Scale: of, Rescale: o.FloatIn("rescale", 0, 0, 1), Negative: negative(o), Span: span(o)}, err
		}})
}

// Guide implements Guider.
func (g CFG) Guide(d models.Denoiser) models.Denoiser {
	return &cfg{pair: pair{link: link{d, "cfg"}, w: g.W, of: g.Scale, off: 1, negative: g.Negative, span: g.Span}, rescale: g.Rescale}
}

type cfg struct {
	pair
	rescale float64
	with    *tensor.Dense // copy of the conditional prediction
	parts   []models.Part
}

func (g *cfg) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	on, err := g.ask(ctx, q, p)
	if err != nil || !on {
		return err
	}
	return g.combine(q, p)
}

// VJP implements models.VJP: the gradient of the guided prediction. With Rescale there is none.
func (g *cfg) VJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	if g.rescale != 0 {
		return fmt.Errorf("guidance: cfg with rescale: there is no gradient through this guider")
	}
	on, err := g.askVJP(ctx, q, p, cotangent, grad)
	if err != nil || !on {
		return err
	}
	return g.combine(q, p)
}

func (g *cfg) combine(q *models.Query, p *models.Pred) error {
	g.with = clone(g.with, p.Out)
	p.Parts = nil
	if w, ok := g.uniform(q); ok && g.rescale == 0 {
		g.parts = spreadParts(g.parts[:0], w, "cond", g.with, p.Kind, g.inner)
		g.parts = spreadParts(g.parts, 1-w, "uncond", g.u.Out, g.u.Kind, g.u.Parts)
		p.Parts = g.parts
	}
	out, u, c := models.Data(p.Out), models.Data(g.u.Out), models.Data(g.with)
	n := len(out) / len(q.At)
	for i, w := range g.scales {
		if w == 1 {
			continue
		}
		lo, hi := i*n, (i+1)*n
		mix(out[lo:hi], u[lo:hi], w)
		if g.rescale == 0 {
			continue
		}
		if n < 2 {
			return fmt.Errorf("guidance: cfg: rescale needs rows of two numbers or more")
		}
		if s := spread(out[lo:hi]); s > 0 {
			f := g.rescale*spread(c[lo:hi])/s + (1 - g.rescale)
			for j := lo; j < hi; j++ {
				out[j] *= f
			}
		}
	}
	if p.Extra != nil && g.u.Extra != nil {
		e, eu := models.Data(p.Extra), models.Data(g.u.Extra)
		n := len(e) / len(q.At)
		for i, w := range g.scales {
			if w != 1 {
				mix(e[i*n:(i+1)*n], eu[i*n:(i+1)*n], w)
			}
		}
	}
	return nil
}

// mix writes u + w (a - u) into a.
func mix(a, u []float64, w float64) {
	for i, v := range u {
		a[i] = v + float64(w*(a[i]-v))
	}
}

// spread is the standard deviation with n - 1.
func spread(v []float64) float64 {
	mean, sum := 0.0, 0.0
	for _, x := range v {
		mean += x
	}
	mean /= float64(len(v))
	for _, x := range v {
		sum += float64((x - mean) * (x - mean))
	}
	return math.Sqrt(sum / float64(len(v)-1))
}

// CFGPP is CFG++ (Chung et al. 2024, arXiv 2406.08070, algorithm 2): the data is that of the guided prediction, the noise
// put back the unconditional one's,
//
//	x_t = alpha_t x0(u + Lambda (c - u)) + sigma_t eps(u)
//
// Lambda lies in [0, 1]: 0 is the unconditional run (one evaluation), 1 the conditional data with unconditional noise.
// First-order solvers and dpmpp-2m have a form for it; others refuse it by name. Its strength depends on the steps, see
// Equivalent. Two evaluations.
type CFGPP struct {
	Lambda   float64
	Scale    Scale // in place of Lambda; nil = Lambda
	Negative int   // class in place of "no class", plus 1; 0 = none
	Span     Span
}

func init() {
	options := guideOptions("", "")
	options[0] = Option{"lambda", "0.6", "0 = unconditional, 1 = conditional data; or an expression of " + momentNames}
	register(Info{Name: "cfg++", NFE: "2", Renoise: true, Class: true, Summary: "CFG++: guided data, unconditional noise put back; first-order solvers and dpmpp-2m", Source: "arXiv 2406.08070, algorithm 2",
		Options: options,
		New: func(o *spec.Options) (Guider, error) {
			l, of, err := readScale(o, "lambda", 0.6, 0, 1)
			return CFGPP{Lambda: l, Scale: of, Negative: negative(o), Span: span(o)}, err
		}})
}

// Equivalent returns the scale of plain classifier-free guidance that does the same in a deterministic first-order step
// from node s to node t: w = Lambda sb_s/(sb_s - sb_t).
func (g CFGPP) Equivalent(s, t schedules.Node) float64 {
	l := g.Lambda
	if g.Scale != nil {
		l = g.Scale(s, models.Step{})
	}
	return l / (1 - t.Ratio()/s.Ratio())
}

// Guide implements Guider.
func (g CFGPP) Guide(d models.Denoiser) models.Denoiser {
	return &cfgpp{pair: pair{link: link{d, "cfg++"}, w: g.Lambda, of: g.Scale, off: math.Inf(1), negative: g.Negative, span: g.Span}}
}

type cfgpp struct {
	pair
	renoise *tensor.Dense
}

func (g *cfgpp) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	on, err := g.prepare(q)
	if err != nil {
		return err
	}
	if on && g.absent(q) {
		if err := g.Denoiser.Predict(ctx, g.without(q), p); err != nil {
			return err
		}
		return g.own(p)
	}
	if on, err = g.ask(ctx, q, p); err != nil || !on {
		return err
	}
	gau, err := g.gaussian()
	if err != nil {
		return err
	}
	g.renoise = models.Reuse(g.renoise, p.Out.Shape())
	x, out, u, r := models.Data(q.X), models.Data(p.Out), models.Data(g.u.Out), models.Data(g.renoise)
	n := len(out) / len(q.At)
	for i, l := range g.scales {
		lo, hi := i*n, (i+1)*n
		if l == g.off {
			copy(r[lo:hi], out[lo:hi])
		} else {
			copy(r[lo:hi], u[lo:hi])
			mix(out[lo:hi], u[lo:hi], l)
		}
		if err := convert(gau, p.Kind, schedules.Eps, q.At[i], x[lo:hi], r[lo:hi]); err != nil {
			return fmt.Errorf("guidance: cfg++: %s: %w", where(q, i), err)
		}
	}
	p.Renoise, p.Parts = g.renoise, nil
	return nil
}

// absent tells whether no row wants the conditional prediction.
func (g *cfgpp) absent(q *models.Query) bool {
	for i, l := range g.scales {
		if l != 0 && q.Cond.Given(i) {
			return false
		}
	}
	return true
}
