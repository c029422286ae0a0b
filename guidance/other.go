package guidance

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"gorgonia.org/tensor"

	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// Auto is autoguidance (Karras et al. 2024, arXiv 2406.02507, eq. 5): away from a weaker model of the same data, asked with
// the same condition,
//
//	guided = weak + W (main - weak)
//
// W = 1 is off. Rows without a class are guided too. The two models must have the same process; a guided step costs an
// evaluation of each. The answer's Parts are "main" with weight W and "weak" with weight 1-W where all rows share W.
type Auto struct {
	W     float64
	Scale Scale // in place of W; nil = W
	Weak  models.Denoiser
	Span  Span
}

func init() {
	register(Info{Name: "auto", NFE: "1 + 1 of the weak model", Model: true, Class: true, Summary: "autoguidance: weak + w (main - weak), weak being a second, weaker model", Source: "arXiv 2406.02507, eq. 5",
		Options: []Option{{"w", "2", "scale; 1 = off, or an expression of " + momentNames}},
		New: func(o *spec.Options) (Guider, error) {
			w, of, err := readScale(o, "w", 2, math.Inf(-1), math.Inf(1))
			return Auto{W: w, Scale: of, Span: span(o)}, err
		}})
}

// With implements Needer.
func (g Auto) With(weak models.Denoiser) Guider {
	g.Weak = weak
	return g
}

// Guide implements Guider.
func (g Auto) Guide(d models.Denoiser) models.Denoiser { return &auto{link: link{d, "auto"}, g: g} }

type auto struct {
	link
	g        Auto
	weak     models.Pred
	main     *tensor.Dense
	scales   []float64
	factors  []float64
	cot, add *tensor.Dense
	parts    []models.Part
}

func anyRow(int) bool { return true }

func (g *auto) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	return g.answer(ctx, q, p, nil, nil)
}

// VJP implements models.VJP; it needs the gradients of both models.
func (g *auto) VJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	return g.answer(ctx, q, p, cotangent, grad)
}

func (g *auto) answer(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	if g.g.Weak == nil {
		return fmt.Errorf("guidance: auto: there is no second model")
	}
	var on bool
	var err error
	if g.scales, on, err = weights(g.scales, g.name, q, g.g.W, g.g.Scale, g.g.Span, 1, anyRow); err != nil {
		return err
	}
	if !on {
		return predict(ctx, g.Denoiser, q, p, cotangent, grad)
	}
	if a, b := g.Process(), g.g.Weak.Process(); !schedules.Same(a, b) {
		return fmt.Errorf("guidance: auto: the second model's process %s is not the model's %s", b.Name(), a.Name())
	}
	gau, err := g.gaussian()
	if err != nil {
		return err
	}
	var share *tensor.Dense
	if cotangent != nil {
		g.cot = scaled(g.cot, cotangent, g.scales)
		share = g.cot
	}
	if err := predict(ctx, g.Denoiser, q, p, share, grad); err != nil {
		return err
	}
	if err := g.own(p); err != nil {
		return err
	}
	if err := g.g.Weak.Predict(ctx, q, &g.weak); err != nil {
		return fmt.Errorf("guidance: auto: second model: %w", err)
	}
	if cotangent != nil {
		if err := g.pull(ctx, gau, q, p.Kind, cotangent, grad); err != nil {
			return fmt.Errorf("guidance: auto: second model: %w", err)
		}
	}
	x, out, weak := models.Data(q.X), models.Data(p.Out), models.Data(g.weak.Out)
	n := len(out) / len(q.At)
	g.main = clone(g.main, p.Out)
	below := p.Parts
	p.Parts = nil
	same := true
	for i, w := range g.scales {
		lo, hi := i*n, (i+1)*n
		if same = same && w == g.scales[0]; g.weak.Kind != p.Kind {
			if err := convert(gau, g.weak.Kind, p.Kind, q.At[i], x[lo:hi], weak[lo:hi]); err != nil {
				return fmt.Errorf("guidance: auto: %s: %w", where(q, i), err)
			}
		}
		if w != 1 {
			mix(out[lo:hi], weak[lo:hi], w)
		}
	}
	g.weak.Kind = p.Kind
	if same {
		g.parts = spreadParts(g.parts[:0], g.scales[0], "main", g.main, p.Kind, below)
		g.parts = spreadParts(g.parts, 1-g.scales[0], "weak", g.weak.Out, p.Kind, g.weak.Parts)
		p.Parts = g.parts
	}
	return nil
}

// pull adds the weak model's share of the gradient: its prediction counts as cx x + co weak of the main one's kind, with
// weight 1 - w.
func (g *auto) pull(ctx context.Context, gau schedules.Gaussian, q *models.Query, kind schedules.Kind, cotangent, grad *tensor.Dense) error {
	g.factors = g.factors[:0]
	c, d := models.Data(cotangent), models.Data(grad)
	n := len(c) / len(q.At)
	for i, w := range g.scales {
		cx, co, err := schedules.Convert(gau, g.weak.Kind, kind, q.At[i])
		if err != nil {
			return err
		}
		for j := i * n; j < (i+1)*n; j++ {
			d[j] += float64((1 - w) * cx * c[j])
		}
		g.factors = append(g.factors, (1-w)*co)
	}
	g.cot = scaled(g.cot, cotangent, g.factors)
	g.add = models.Reuse(g.add, grad.Shape())
	if err := predict(ctx, g.g.Weak, q, &g.weak, g.cot, g.add); err != nil {
		return err
	}
	for j, v := range models.Data(g.add) {
		d[j] += v
	}
	return nil
}

// Perturbed moves away from the same network with some of its layers disturbed: perturbed-attention guidance (Ahn et al.
// 2024, arXiv 2403.17377, eq. 12) makes attention maps the identity, skip-layer guidance passes by whole layers,
//
//	guided = base + Scale (c - c_disturbed)
//
// base being the prediction of the model below, with its guiders, and c the bare network's own: put it after cfg for the
// usual CFG + s (c - c_disturbed), 3 evaluations. W = 0 is off. Rows without a class are guided too.
type Perturbed struct {
	W     float64
	Scale Scale // in place of W; nil = W
	Hooks models.Hooks
	Span  Span
}

func init() {
	layers := func(o *spec.Options) []string {
		return slices.DeleteFunc(strings.Split(o.Text("layers", "mid_block"), "+"), func(s string) bool { return s == "" })
	}
	options := []Option{{"w", "3", "scale; 0 = off, or an expression of " + momentNames}, {"layers", "mid_block", "names of layers or blocks, with + between them"}}
	register(Info{Name: "pag", NFE: "2; after another guider 2 more than its own, after cfg 1 more", Hooks: true, Summary: "perturbed-attention guidance: away from the network with its attention maps made identities", Source: "arXiv 2403.17377, eq. 12",
		Options: options,
		New: func(o *spec.Options) (Guider, error) {
			w, of, err := readScale(o, "w", 3, math.Inf(-1), math.Inf(1))
			return Perturbed{W: w, Scale: of, Hooks: models.Hooks{IdentityAttention: layers(o)}, Span: span(o)}, err
		}})
	skip := slices.Clone(options)
	skip[0].Default = "2.8"
	register(Info{Name: "slg", NFE: "2; after another guider 2 more than its own, after cfg 1 more", Hooks: true, Summary: "skip-layer guidance: away from the network without some of its layers", Source: "diffusers' SkipLayerGuidance (Stable Diffusion 3.5); arXiv 2411.18664",
		Options: skip,
		New: func(o *spec.Options) (Guider, error) {
			w, of, err := readScale(o, "w", 2.8, math.Inf(-1), math.Inf(1))
			return Perturbed{W: w, Scale: of, Hooks: models.Hooks{SkipLayers: layers(o)}, Span: span(o)}, err
		}})
}

// Guide implements Guider.
func (g Perturbed) Guide(d models.Denoiser) models.Denoiser {
	name := "pag"
	if len(g.Hooks.SkipLayers) > 0 {
		name = "slg"
	}
	_, chained := d.(interface{ guided() })
	return &perturbed{link: link{d, name}, g: g, bare: bare(d), chained: chained}
}

type perturbed struct {
	link
	g          Perturbed
	bare       models.Denoiser
	chained    bool // there are guiders below
	scales     []float64
	clean, bad models.Pred
}

func (g *perturbed) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	var on bool
	var err error
	if g.scales, on, err = weights(g.scales, g.name, q, g.g.W, g.g.Scale, g.g.Span, 0, anyRow); err != nil {
		return err
	}
	if err := g.Denoiser.Predict(ctx, q, p); err != nil || !on {
		return err
	}
	gau, err := g.gaussian()
	if err != nil {
		return err
	}
	if len(g.g.Hooks.IdentityAttention)+len(g.g.Hooks.SkipLayers) == 0 {
		return fmt.Errorf("guidance: %s: no layers are named", g.name)
	}
	hooks := g.g.Hooks
	if q.Hooks != nil {
		hooks.IdentityAttention = slices.Concat(q.Hooks.IdentityAttention, hooks.IdentityAttention)
		hooks.SkipLayers = slices.Concat(q.Hooks.SkipLayers, hooks.SkipLayers)
	}
	disturbed := *q
	disturbed.Hooks = &hooks
	if err := g.bare.Predict(ctx, &disturbed, &g.bad); err != nil {
		return fmt.Errorf("guidance: %s: %w", g.name, err)
	}
	c, kind := p.Out, p.Kind
	if g.chained {
		part := slices.IndexFunc(p.Parts, func(p models.Part) bool { return p.Name == "cond" })
		if part >= 0 {
			c, kind = p.Parts[part].Out, p.Parts[part].Kind
		} else {
			if err := g.bare.Predict(ctx, q, &g.clean); err != nil {
				return err
			}
			c, kind = g.clean.Out, g.clean.Kind
		}
	}
	if kind != g.bad.Kind {
		return fmt.Errorf("guidance: %s: the model answered with %v and with %v", g.name, kind, g.bad.Kind)
	}
	out, cd, bad := models.Data(p.Out), models.Data(c), models.Data(g.bad.Out)
	n := len(out) / len(q.At)
	for i, s := range g.scales {
		if s == 0 {
			continue
		}
		if kind != p.Kind { // a difference of predictions is linear: x drops out
			_, co, err := schedules.Convert(gau, kind, p.Kind, q.At[i])
			if err != nil {
				return fmt.Errorf("guidance: %s: %s: %w", g.name, where(q, i), err)
			}
			s *= co
		}
		for j := i * n; j < (i+1)*n; j++ {
			out[j] += float64(s * (cd[j] - bad[j]))
		}
	}
	p.Parts = nil
	return nil
}

// Clip keeps the predicted data inside [-Range, Range]. The noise that belongs to the clipped data is derived anew,
// unless Keep puts the model's own noise back, which is diffusers' default (and breaks pictures at high guidance). Noise
// that a guider below puts back (CFG++) stays.
type Clip struct {
	Range float64 // 0 = 1
	Keep  bool
	Span  Span
}

func init() {
	register(Info{Name: "clip", NFE: "1", Summary: "clip the predicted data, re-deriving the noise (rederive=false: diffusers' clip_sample)", Source: "DDPM, arXiv 2006.11239, section 3.2",
		Options: []Option{{"range", "1", "largest absolute value"}, {"rederive", "true", "false puts the model's own noise back (first-order solvers only)"}},
		New: func(o *spec.Options) (Guider, error) {
			return Clip{Range: o.FloatIn("range", 1, 1e-9, 1e9), Keep: !o.Bool("rederive", true), Span: span(o)}, nil
		}})
}

// Guide implements Guider.
func (g Clip) Guide(d models.Denoiser) models.Denoiser {
	limit := g.Range
	if limit == 0 {
		limit = 1
	}
	return &onData{link: link{d, "clip"}, span: g.Span, keep: g.Keep, limit: limit, f: func(x0 []float64) {
		for j, v := range x0 {
			x0[j] = min(limit, max(-limit, v))
		}
	}}
}

// Threshold is dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3): with s the Quantile of a row's
// |x0|, held between 1 and Max,
//
//	x0' = clip(x0, -s, s)/s
//
// It belongs to models of pixels in [-1, 1]. The quantile interpolates linearly between order statistics. Max = 1 is
// clipping to [-1, 1], diffusers' default.
type Threshold struct {
	Quantile float64 // 0 = 0.995
	Max      float64 // 0 = no limit
	Keep     bool    // the noise put back stays the model's own (see Clip)
	Span     Span
}

func init() {
	register(Info{Name: "threshold", NFE: "1", Summary: "dynamic thresholding: clip the predicted data at a quantile of the row and scale it back", Source: "arXiv 2205.11487, section 2.3",
		Options: []Option{{"quantile", "0.995", "share of the row that is not clipped"}, {"max", "inf", "largest value to clip at; 1 = plain clipping"}, {"rederive", "true", "false puts the model's own noise back (first-order solvers only)"}},
		New: func(o *spec.Options) (Guider, error) {
			t := Threshold{Quantile: o.FloatIn("quantile", 0.995, 1e-9, 1), Keep: !o.Bool("rederive", true), Span: span(o)}
			if o.Text("max", "inf") != "inf" {
				t.Max = o.FloatIn("max", 1, 1, math.MaxFloat64)
			}
			return t, nil
		}})
}

// Guide implements Guider.
func (g Threshold) Guide(d models.Denoiser) models.Denoiser {
	at, most := g.Quantile, g.Max
	if at == 0 {
		at = 0.995
	}
	if most == 0 {
		most = math.Inf(1)
	}
	var sorted []float64
	return &onData{link: link{d, "threshold"}, span: g.Span, keep: g.Keep, f: func(x0 []float64) {
		sorted = sorted[:0]
		for _, v := range x0 {
			sorted = append(sorted, math.Abs(v))
		}
		slices.Sort(sorted)
		s := min(most, max(1, quantile(sorted, at)))
		for j, v := range x0 {
			x0[j] = min(s, max(-s, v)) / s
		}
	}}
}

// quantile interpolates between the order statistics at (n-1) q.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	k := min(int(at), len(sorted)-1)
	if k == len(sorted)-1 {
		return sorted[k]
	}
	return sorted[k] + float64((at-float64(k))*(sorted[k+1]-sorted[k]))
}

// onData changes the predicted data row by row.
type onData struct {
	link
	span    Span
	keep    bool
	limit   float64 // of a clip
	f       func(x0 []float64)
	inner   models.Pred
	renoise *tensor.Dense
	cot     *tensor.Dense
}

func (g *onData) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if !g.span.any(q) {
		return g.Denoiser.Predict(ctx, q, p)
	}
	if err := g.Denoiser.Predict(ctx, q, &g.inner); err != nil {
		return err
	}
	return g.change(q, p)
}

func (g *onData) change(q *models.Query, p *models.Pred) error {
	gau, err := g.gaussian()
	if err != nil {
		return err
	}
	x, out := p.Fit(q.X, schedules.X0)
	copy(out, models.Data(g.inner.Out))
	p.Extra, p.Renoise = g.inner.Extra, g.inner.Renoise
	if g.keep && p.Renoise == nil {
		g.renoise = clone(g.renoise, g.inner.Out)
		p.Renoise = g.renoise
		for i, n := range q.At {
			lo, hi := i*q.X.Size()/len(q.At), (i+1)*q.X.Size()/len(q.At)
			if err := convert(gau, g.inner.Kind, schedules.Eps, n, x[lo:hi], models.Data(g.renoise)[lo:hi]); err != nil {
				return fmt.Errorf("guidance: %s: %s: %w", g.name, where(q, i), err)
			}
		}
	}
	w := len(out) / len(q.At)
	for i, n := range q.At {
		lo, hi := i*w, (i+1)*w
		if err := convert(gau, g.inner.Kind, schedules.X0, n, x[lo:hi], out[lo:hi]); err != nil {
			return fmt.Errorf("guidance: %s: %s: %w", g.name, where(q, i), err)
		}
		if g.span.Holds(q, i) {
			g.f(out[lo:hi])
		}
	}
	return nil
}

// VJP implements models.VJP for a clip: the gradient of what is clipped is zero. Dynamic thresholding has none.
func (g *onData) VJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	return g.LateVJP(ctx, q, p, func(*models.Pred) (*tensor.Dense, error) { return cotangent, nil }, grad)
}

// LateVJP implements models.LateVJP.
func (g *onData) LateVJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent func(*models.Pred) (*tensor.Dense, error), grad *tensor.Dense) error {
	if !g.span.any(q) {
		return models.Late(ctx, g.Denoiser, q, p, cotangent, grad)
	}
	if g.limit == 0 {
		return g.link.VJP(ctx, q, p, nil, grad)
	}
	gau, err := g.gaussian()
	if err != nil {
		return err
	}
	var straight []float64
	err = models.Late(ctx, g.Denoiser, q, &g.inner, func(*models.Pred) (*tensor.Dense, error) {
		if err := g.change(q, p); err != nil {
			return nil, err
		}
		c, err := cotangent(p)
		if err != nil {
			return nil, err
		}
		// x0 = cx x + co inner inside the range.
		g.cot = clone(g.cot, c)
		cot, out := models.Data(g.cot), models.Data(p.Out)
		straight = make([]float64, len(cot))
		w := len(cot) / len(q.At)
		for i, n := range q.At {
			cx, co, err := schedules.Convert(gau, g.inner.Kind, schedules.X0, n)
			if err != nil {
				return nil, err
			}
			for j := i * w; j < (i+1)*w; j++ {
				if math.Abs(out[j]) >= g.limit && g.span.Holds(q, i) {
					cot[j] = 0
				}
				straight[j] = cx * cot[j]
				cot[j] *= co
			}
		}
		return g.cot, nil
	}, grad)
	if err != nil {
		return err
	}
	d := models.Data(grad)
	for j, v := range straight {
		d[j] += v
	}
	return nil
}
