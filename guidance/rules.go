package guidance

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"

	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// APG is adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416). With d = c - u and a running sum over steps,
//
//	m   = d + Beta m_previous
//	m'  = m min(1, Tau/|m|)
//	g   = m' - (1 - Eta) (m'.c/|c|^2) c    the part along c kept with weight Eta
//	guided = c + (W - 1) g                 (FromUncond: u + W g, as diffusers has it)
//
// per row, over all its elements, in Space (default Data). W = 1 is off; Eta = 1, Beta = 0, Tau = 0 is CFG. The sum
// moves on once per step, at its first call: further calls of the step add to the same past, and asking again for the
// step changes nothing. Two evaluations.
type APG struct {
	W          float64
	Scale      Scale   // in place of W; nil = W
	Eta        float64 // share of the part along c
	Beta       float64 // momentum, usually negative; 0 = off
	Tau        float64 // largest norm; 0 = no limit
	FromUncond bool
	Space      Space
	Negative   int
	Span       Span
}

func init() {
	register(Info{Name: "apg", NFE: "2", Class: true, Summary: "adaptive projected guidance: momentum, norm limit, and less of what lies along the prediction", Source: "arXiv 2410.02416, algorithm 1",
		Options: guideOptions("4", "scale; 1 = off", Option{"eta", "0", "share of the part along the conditional prediction"}, Option{"beta", "-0.5", "momentum over steps; 0 = off"},
			Option{"tau", "15", "largest norm of the difference; 0 = no limit"}, Option{"form", "paper", "paper: cond + (w-1) g, or diffusers: uncond + w g"},
			Option{"space", "x0", "x0, eps, v, velocity, or raw: what the model predicts"}),
		New: func(o *spec.Options) (Guider, error) {
			w, of, err := readScale(o, "w", 4, math.Inf(-1), math.Inf(1))
			return APG{W: w, Scale: of, Eta: o.Float("eta", 0), Beta: o.FloatIn("beta", -0.5, -1, 1), Tau: o.FloatIn("tau", 15, 0, math.MaxFloat64),
				FromUncond: o.Choice("form", "paper", "diffusers") == "diffusers", Space: readSpace(o, Data), Negative: negative(o), Span: span(o)}, err
		}})
}

// Guide implements Guider.
func (g APG) Guide(d models.Denoiser) models.Denoiser {
	a := apg{pair: pair{link: link{d, "apg"}, w: g.W, of: g.Scale, off: 1, negative: g.Negative, span: g.Span}, g: g}
	if g.Beta == 0 {
		return &a
	}
	return &apgMemory{a}
}

type apg struct {
	pair
	g     APG
	sum   []float64 // m of the step under way
	past  []float64 // m of the step before it
	step  int
	width int
	slots []models.Row
	diff  []float64
}

// recall makes the memory ready for the query, and forgets that of another run.
func (a *apg) recall(q *models.Query, total int) {
	n := total / len(q.At)
	same := len(a.sum) == total && a.width == n && (a.slots == nil || slices.Equal(a.slots, q.Rows))
	if !same || (q.Step.Stage == 0 && q.Step.I < a.step) {
		a.sum, a.past, a.step, a.width = make([]float64, total), make([]float64, total), q.Step.I, n
	}
	a.slots = append(a.slots[:0:0], q.Rows...)
	if q.Step.Stage == 0 && q.Step.I > a.step {
		copy(a.past, a.sum)
		a.step = q.Step.I
	}
}

func (a *apg) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	on, err := a.ask(ctx, q, p)
	if err != nil || !on {
		return err
	}
	g := a.g
	if g.Beta != 0 {
		a.recall(q, len(models.Data(p.Out)))
	}
	return a.rows(q, p, g.Space.or(Data), func(i int, w float64, c, u []float64) error {
		n := len(c)
		a.diff = append(a.diff[:0], c...)
		d := a.diff
		for j, v := range u {
			d[j] -= v
		}
		if g.Beta != 0 {
			for j, v := range a.past[i*n : (i+1)*n] {
				d[j] += float64(g.Beta * v)
			}
			if q.Step.Stage == 0 {
				copy(a.sum[i*n:], d)
			}
		}
		f := 1.0
		if size := norm(d); g.Tau > 0 && size > g.Tau {
			f = g.Tau / size
		}
		along := 0.0
		if cc := dot(c, c); cc > 0 {
			along = (1 - g.Eta) * f * dot(d, c) / cc
		}
		for j, v := range d {
			step := float64(f*v) - float64(along*c[j])
			if g.FromUncond {
				c[j] = u[j] + float64(w*step)
			} else {
				c[j] += float64((w - 1) * step)
			}
		}
		return nil
	})
}

// apgMemory is an apg whose running sum belongs to the run. Guiders below it may have a memory too.
type apgMemory struct{ apg }

// Select implements models.Selector.
func (a *apgMemory) Select(parents []int) error {
	if s, ok := models.As[models.Selector](a.Denoiser); ok {
		if err := s.Select(parents); err != nil {
			return err
		}
	}
	if len(a.sum) == 0 {
		return nil
	}
	gather := func(v []float64) ([]float64, error) {
		out := make([]float64, 0, len(parents)*a.width)
		for _, k := range parents {
			if k < 0 || (k+1)*a.width > len(v) {
				return nil, fmt.Errorf("guidance: apg: select: no row %d in a batch of %d", k, len(v)/a.width)
			}
			out = append(out, v[k*a.width:(k+1)*a.width]...)
		}
		return out, nil
	}
	sum, err := gather(a.sum)
	if err != nil {
		return err
	}
	past, err := gather(a.past)
	if err != nil {
		return err
	}
	a.sum, a.past, a.slots = sum, past, nil
	return nil
}

// Save implements models.Keeper: step, row width, length and the two sums, little endian, then what is below.
func (a *apgMemory) Save(w io.Writer) error {
	var b bytes.Buffer
	for _, n := range []int{a.step, a.width, len(a.sum)} {
		binary.Write(&b, binary.LittleEndian, int64(n))
	}
	binary.Write(&b, binary.LittleEndian, a.sum)
	binary.Write(&b, binary.LittleEndian, a.past)
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("guidance: apg: saving: %w", err)
	}
	if k, ok := models.As[models.Keeper](a.Denoiser); ok {
		return k.Save(w)
	}
	return nil
}

// mostSaved bounds what Load takes into memory on the word of a file.
const mostSaved = 1 << 30

// Load implements models.Keeper.
func (a *apgMemory) Load(r io.Reader) error {
	var head [3]int64
	if err := binary.Read(r, binary.LittleEndian, &head); err != nil {
		return fmt.Errorf("guidance: apg: reading a saved run: %w", err)
	}
	step, width, n := head[0], head[1], head[2]
	if n < 0 || n > mostSaved || width < 0 || (n > 0 && (width == 0 || n%width != 0)) || step < 0 || step > math.MaxInt32 {
		return fmt.Errorf("guidance: apg: the saved run does not make sense (%d numbers in rows of %d at step %d)", n, width, step)
	}
	raw, err := io.ReadAll(io.LimitReader(r, 16*n)) // grows with what is there
	if err == nil && int64(len(raw)) != 16*n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("guidance: apg: reading a saved run: %w", err)
	}
	a.step, a.width, a.slots = int(step), int(width), nil
	a.sum, a.past = make([]float64, n), make([]float64, n)
	for i := range a.sum {
		a.sum[i] = math.Float64frombits(binary.LittleEndian.Uint64(raw[8*i:]))
		a.past[i] = math.Float64frombits(binary.LittleEndian.Uint64(raw[8*(int(n)+i):]))
	}
	if k, ok := models.As[models.Keeper](a.Denoiser); ok {
		return k.Load(r)
	}
	return nil
}

// CFGZero is CFG-Zero* (Fan et al. 2025, arXiv 2503.18886), for flows: the unconditional prediction is scaled to fit the
// conditional one best, and the first steps stand still,
//
//	s* = c.u/(|u|^2 + 1e-8),  guided = s* u + W (c - s* u),  guided = 0 in the first Zero steps
//
// per row, in Space (default Velocity). W = 1 is off, the still steps too. Two evaluations, none in a still step.
type CFGZero struct {
	W        float64
	Scale    Scale // in place of W; nil = W
	Zero     int   // first steps that stand still
	Space    Space
	Negative int
	Span     Span
}

func init() {
	register(Info{Name: "cfg-zero", NFE: "2", Class: true, Summary: "CFG-Zero*: unconditional part scaled to fit, first step stands still; for flows", Source: "arXiv 2503.18886, algorithm 1",
		Options: guideOptions("2", "scale; 1 = off", Option{"zero", "1", "first steps that stand still"}, Option{"space", "velocity", "velocity, x0, eps, v, or raw: what the model predicts"}),
		New: func(o *spec.Options) (Guider, error) {
			w, of, err := readScale(o, "w", 2, math.Inf(-1), math.Inf(1))
			return CFGZero{W: w, Scale: of, Zero: o.Int("zero", 1, 0, 1<<30), Space: readSpace(o, Velocity), Negative: negative(o), Span: span(o)}, err
		}})
}

// Guide implements Guider.
func (g CFGZero) Guide(d models.Denoiser) models.Denoiser {
	return &cfgZero{pair: pair{link: link{d, "cfg-zero"}, w: g.W, of: g.Scale, off: 1, negative: g.Negative, span: g.Span}, g: g}
}

type cfgZero struct {
	pair
	g CFGZero
}

func (g *cfgZero) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	still := q.Step.I < g.g.Zero
	space := g.g.Space.or(Velocity)
	if still {
		on, err := g.prepare(q)
		if err != nil {
			return err
		}
		if on && space != Raw && !slices.Contains(g.scales, g.off) { // nothing to ask for
			p.Fit(q.X, space.kind(schedules.Velocity))
			p.Out.Zero()
			return nil
		}
	}
	on, err := g.ask(ctx, q, p)
	if err != nil || !on {
		return err
	}
	return g.rows(q, p, space, func(_ int, w float64, c, u []float64) error {
		if still {
			clear(c)
			return nil
		}
		s := dot(c, u) / (dot(u, u) + 1e-8)
		for j, v := range u {
			v *= s
			c[j] = v + float64(w*(c[j]-v))
		}
		return nil
	})
}

// TCFG is tangential classifier-free guidance (Kwon et al. 2025, arXiv 2503.18137): u is projected onto the first right
// singular vector v of the rows [c; u] before the guidance,
//
//	u' = (u.v) v,  guided = u' + W (c - u')
//
// per row, in Space (default Raw). W = 1 is off. Two evaluations.
type TCFG struct {
	W        float64
	Scale    Scale // in place of W; nil = W
	Space    Space
	Negative int
	Span     Span
}

func init() {
	register(Info{Name: "tcfg", NFE: "2", Class: true, Summary: "tangential guidance: the unconditional part without what it does not share with the conditional one", Source: "arXiv 2503.18137; diffusers' TangentialClassifierFreeGuidance",
		Options: guideOptions("2", "scale; 1 = off", Option{"space", "raw", "raw: what the model predicts; x0, eps, v, velocity"}),
		New: func(o *spec.Options) (Guider, error) {
			w, of, err := readScale(o, "w", 2, math.Inf(-1), math.Inf(1))
			return TCFG{W: w, Scale: of, Space: readSpace(o, Raw), Negative: negative(o), Span: span(o)}, err
		}})
}

// Guide implements Guider.
func (g TCFG) Guide(d models.Denoiser) models.Denoiser {
	return &rule{pair{link: link{d, "tcfg"}, w: g.W, of: g.Scale, off: 1, negative: g.Negative, span: g.Span}, g.Space.or(Raw), tangential}
}

// tangential finds v from the Gram matrix of c and u: v is along c cos(a) + u sin(a), tan(2a) = 2 c.u/(c.c - u.u).
func tangential(w float64, c, u []float64) {
	cc, uu, cu := dot(c, c), dot(u, u), dot(c, u)
	a := math.Atan2(2*cu, cc-uu) / 2
	sin, cos := math.Sincos(a)
	var v2, uv float64
	for j, x := range c {
		v := float64(cos*x) + float64(sin*u[j])
		v2 += float64(v * v)
		uv += float64(u[j] * v)
	}
	f := 0.0
	if v2 > 0 {
		f = uv / v2
	}
	for j, x := range c {
		p := f * (float64(cos*x) + float64(sin*u[j]))
		c[j] = p + float64(w*(x-p))
	}
}

// MAMBO is magnitude-aware guidance (MAMBO-G, arXiv 2508.03442): the scale falls where the difference is large,
//
//	w = 1 + (W - 1) exp(-Alpha |c - u|/|u|),  guided = u + w (c - u)
//
// per row, in Space (default Raw). W = 1 is off. Two evaluations.
type MAMBO struct {
	W        float64
	Scale    Scale   // in place of W; nil = W
	Alpha    float64 // 0 = 8
	Space    Space
	Negative int
	Span     Span
}

func init() {
	register(Info{Name: "mambo", NFE: "2", Class: true, Summary: "magnitude-aware guidance: a smaller scale where the difference is large", Source: "arXiv 2508.03442; diffusers' MagnitudeAwareGuidance",
		Options: guideOptions("10", "scale at small differences; 1 = off", Option{"alpha", "8", "how fast the scale falls"}, Option{"space", "raw", "raw: what the model predicts; x0, eps, v, velocity"}),
		New: func(o *spec.Options) (Guider, error) {
			w, of, err := readScale(o, "w", 10, math.Inf(-1), math.Inf(1))
			return MAMBO{W: w, Scale: of, Alpha: o.FloatIn("alpha", 8, 1e-9, 1e9), Space: readSpace(o, Raw), Negative: negative(o), Span: span(o)}, err
		}})
}

// Guide implements Guider.
func (g MAMBO) Guide(d models.Denoiser) models.Denoiser {
	alpha := g.Alpha
	if alpha == 0 {
		alpha = 8
	}
	return &rule{pair{link: link{d, "mambo"}, w: g.W, of: g.Scale, off: 1, negative: g.Negative, span: g.Span}, g.Space.or(Raw), func(w float64, c, u []float64) {
		var dd float64
		for j, v := range u {
			dd += float64((c[j] - v) * (c[j] - v))
		}
		if dd > 0 {
			mix(c, u, 1+(w-1)*math.Exp(-alpha*math.Sqrt(dd)/norm(u)))
		}
	}}
}

// rule is a guided model with a rule per row and no more.
type rule struct {
	pair
	space Space
	f     func(w float64, c, u []float64)
}

func (g *rule) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	on, err := g.ask(ctx, q, p)
	if err != nil || !on {
		return err
	}
	return g.rows(q, p, g.space, func(_ int, w float64, c, u []float64) error {
		g.f(w, c, u)
		return nil
	})
}
