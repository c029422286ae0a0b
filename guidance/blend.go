package guidance

import (
	"context"
	"encoding/gob"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"drift/internal/spec"
	"drift/models"
	"drift/models/analytic"
	"drift/schedules"
)

// OptionPrice is the Black-Scholes price of a call at spot s, with strike k, rate, volatility and time tau,
//
//	C = s Phi(d1) - k exp(-rate tau) Phi(d2),  d1 = (ln(s/k) + (rate + vol^2/2) tau)/(vol sqrt(tau)),  d2 = d1 - vol sqrt(tau)
//
// Phi being the normal distribution function. (The code published with Black-Scholes diffusion puts exp(-d^2/2) in its place,
// which makes the score zero for any input.)
func OptionPrice(s, k, rate, vol, tau float64) (price, d1, d2 float64) {
	w := vol * math.Sqrt(tau)
	d1 = (math.Log(s/k) + (rate+vol*vol/2)*tau) / w
	d2 = d1 - w
	return s*cdf(d1) - k*math.Exp(-rate*tau)*cdf(d2), d1, d2
}

func cdf(x float64) float64 { return math.Erfc(-x/math.Sqrt2) / 2 }

// Between asks a conditional model with one of two classes in every step, so that samples have something of both (Black-Scholes
// diffusion, Kothandaraman et al. 2024, arXiv 2405.13685). After every step each class has a spot, 100 times its probability
// at the predicted data, and the next step is made with the class that is behind:
//
//	alternate       the classes take turns
//	stepwise        the first up to step At, then the second
//	lerp            both, (1 - Share) of the first one's prediction and Share of the second's: two evaluations
//	clip-min        the smaller spot
//	black-scholes   the smaller option price, with a strike of its own for each class; rate 1/N, tau N - i, volatility
//	                that of the ancestral step. With one strike for both this is clip-min: the price rises with the spot.
//
// It begins with the first class. Rows without a class are left alone, so cfg goes around it. One evaluation, but for lerp. The
// choices of clip-min and black-scholes are remembered from step to step.
type Between struct {
	A, B    int
	Rule    string     // "" = black-scholes
	At      int        // of stepwise
	Share   float64    // of the second class in lerp, 0 to 1
	Strikes [2]float64 // of black-scholes; 0 = 100
	Of      ClassGradient
	Span    Span // outside of it rows keep the class they have
}

var blendRules = []string{"black-scholes", "clip-min", "alternate", "stepwise", "lerp"}

func init() {
	register(Info{Name: "blend", NFE: "1; 2 with rule=lerp", Summary: "one of two classes in every step, the one that is behind: black-scholes, clip-min, alternate, stepwise; or lerp: both", Source: "arXiv 2405.13685",
		Options: []Option{{"classes", "0+1", "the two classes, by number"}, {"rule", "black-scholes", strings.Join(blendRules, ", ")}, {"at", "7", "step of stepwise at which the second takes over"}, {"share", "0.5", "of the second class in lerp"}, {"strikes", "100+100", "of black-scholes, one per class"}},
		New: func(o *spec.Options) (Guider, error) {
			g := Between{Rule: o.Choice("rule", blendRules...), At: o.Int("at", 7, 0, 1<<30), Share: o.FloatIn("share", 0.5, 0, 1), Span: span(o)}
			two := func(key, def string) (v [2]float64, err error) {
				a, b, ok := strings.Cut(o.Text(key, def), "+")
				x, e1 := strconv.ParseFloat(a, 64)
				y, e2 := strconv.ParseFloat(b, 64)
				if !ok || e1 != nil || e2 != nil {
					err = fmt.Errorf("option %s=%s: want two numbers with + between them", key, o.Text(key, def))
				}
				return [2]float64{x, y}, err
			}
			c, err := two("classes", "0+1")
			g.A, g.B = int(c[0]), int(c[1])
			if err == nil && (float64(g.A) != c[0] || float64(g.B) != c[1] || g.A < 0 || g.B < 0) {
				err = fmt.Errorf("option classes: want two classes by number")
			}
			if err == nil {
				if g.Strikes, err = two("strikes", "100+100"); err == nil && !(g.Strikes[0] > 0 && g.Strikes[1] > 0) {
					err = fmt.Errorf("option strikes: want two numbers above 0")
				}
			}
			return g, err
		}})
}

// Guide implements Guider.
func (g Between) Guide(d models.Denoiser) models.Denoiser {
	if g.Rule == "" {
		g.Rule = blendRules[0]
	}
	for i, k := range g.Strikes {
		if k == 0 {
			g.Strikes[i] = 100
		}
	}
	if g.Of == nil {
		if m, ok := models.As[*analytic.Mixture](d); ok {
			g.Of = Posterior{m}
		} else {
			g.Of = Network{"fashion-classifier"}
		}
	}
	b := blend{link: link{d, "blend"}, g: g}
	if g.Rule == "clip-min" || g.Rule == "black-scholes" {
		return &blendMemory{b}
	}
	return &b
}

type blend struct {
	link
	g    Between
	cond models.Cond
	step int
	now  []bool // is it the second class's turn, per row
	next []bool
	both models.Pred // lerp's second answer
}

func (b *blend) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	rows := len(q.At)
	any := false
	for i := range rows {
		any = any || q.Cond.Class(i) != models.NoClass && b.g.Span.Holds(q, i)
	}
	if !any {
		return b.Denoiser.Predict(ctx, q, p)
	}
	memory := b.g.Rule == "clip-min" || b.g.Rule == "black-scholes"
	if len(b.now) != rows || q.Step.Stage == 0 && q.Step.I < b.step || q.Step.I == 0 && q.Step.Stage == 0 {
		b.now, b.next, b.step = make([]bool, rows), make([]bool, rows), q.Step.I
	}
	if memory && q.Step.Stage == 0 && q.Step.I > b.step {
		copy(b.now, b.next)
		b.step = q.Step.I
	}
	b.cond = models.Cond{}
	if q.Cond != nil {
		b.cond.Prompts, b.cond.Tensors = q.Cond.Prompts, q.Cond.Tensors
	}
	for i := range rows {
		k := q.Cond.Class(i)
		if k != models.NoClass && b.g.Span.Holds(q, i) {
			second := b.now[i]
			switch b.g.Rule {
			case "alternate":
				second = q.Step.I%2 == 1
			case "stepwise":
				second = q.Step.I >= b.g.At
			case "lerp":
				second = b.g.Share == 1
			}
			if k = b.g.A; second {
				k = b.g.B
			}
		}
		b.cond.Classes = append(b.cond.Classes, k)
	}
	own := *q
	own.Cond = &b.cond
	if b.g.Rule == "lerp" && b.g.Share != 0 && b.g.Share != 1 {
		return b.lerp(ctx, q, &own, p)
	}
	if err := b.Denoiser.Predict(ctx, &own, p); err != nil || !memory || q.Step.Stage != 0 {
		return err
	}
	return b.choose(ctx, q, p)
}

// lerp answers own, asked with the first class, mixed with the answer for the second.
func (b *blend) lerp(ctx context.Context, q, own *models.Query, p *models.Pred) error {
	if err := b.Denoiser.Predict(ctx, own, p); err != nil {
		return err
	}
	first := append([]float64(nil), models.Data(p.Out)...) // the model below may use its memory again
	kind := p.Kind
	if err := b.link.own(p); err != nil {
		return err
	}
	on := make([]bool, len(q.At))
	for i := range on {
		if on[i] = q.Cond.Class(i) != models.NoClass && b.g.Span.Holds(q, i); on[i] {
			b.cond.Classes[i] = b.g.B
		}
	}
	if err := b.Denoiser.Predict(ctx, own, &b.both); err != nil {
		return err
	}
	if b.both.Kind != kind {
		return fmt.Errorf("guidance: blend: the model answered with %v and with %v", kind, b.both.Kind)
	}
	out, second := models.Data(p.Out), models.Data(b.both.Out)
	n := len(first) / len(on)
	for j, v := range first {
		if out[j] = v; on[j/n] {
			out[j] = float64((1-b.g.Share)*v) + float64(b.g.Share*second[j])
		}
	}
	p.Parts = nil
	return nil
}

// choose decides the next step's classes by the predicted data.
func (b *blend) choose(ctx context.Context, q *models.Query, p *models.Pred) error {
	gau, err := b.gaussian()
	if err != nil {
		return err
	}
	rows := len(q.At)
	x0 := clone(nil, p.Out)
	x, d := models.Data(q.X), models.Data(x0)
	n := len(d) / rows
	at := make([]schedules.Node, rows)
	for i, node := range q.At {
		at[i] = schedules.Node{Alpha: 1}
		if err := convert2(gau, p.Kind, schedules.X0, node, x[i*n:(i+1)*n], d[i*n:(i+1)*n]); err != nil {
			return fmt.Errorf("guidance: blend: %s: %w", where(q, i), err)
		}
	}
	var spots [2][]float64
	for j, k := range []int{b.g.A, b.g.B} {
		spots[j] = make([]float64, rows)
		if err := b.g.Of.LogProb(ctx, x0, at, slices.Repeat([]int{k}, rows), spots[j], nil); err != nil {
			return fmt.Errorf("guidance: blend: %w", err)
		}
	}
	vol, _, err := ancestral(q.Step.From, q.Step.To)
	steps, tau := float64(max(q.Step.N, 1)), float64(q.Step.N-q.Step.I)
	for i := range rows {
		a, c := 100*math.Exp(spots[0][i]), 100*math.Exp(spots[1][i])
		b.next[i] = spots[1][i] <= spots[0][i]
		if b.g.Rule == "black-scholes" && b.g.Strikes[0] != b.g.Strikes[1] && vol > 0 && tau > 0 && err == nil {
			pa, da, _ := OptionPrice(a, b.g.Strikes[0], 1/steps, vol, tau)
			pb, db, _ := OptionPrice(c, b.g.Strikes[1], 1/steps, vol, tau)
			if b.next[i] = pb <= pa; pa == pb { // both too small for a float64: their order is that of d1
				b.next[i] = db <= da
			}
		}
	}
	return nil
}

// blendMemory is a blend whose choice belongs to the run.
type blendMemory struct{ blend }

// Select implements models.Selector.
func (b *blendMemory) Select(parents []int) error {
	if s, ok := models.As[models.Selector](b.Denoiser); ok {
		if err := s.Select(parents); err != nil {
			return err
		}
	}
	var now, next []bool
	for _, k := range parents {
		if k < 0 || k >= len(b.now) {
			if len(b.now) == 0 {
				return nil
			}
			return fmt.Errorf("guidance: blend: select: no row %d in a batch of %d", k, len(b.now))
		}
		now, next = append(now, b.now[k]), append(next, b.next[k])
	}
	b.now, b.next = now, next
	return nil
}

type savedBlend struct {
	Step      int
	Now, Next []bool
}

// Save implements models.Keeper.
func (b *blendMemory) Save(w io.Writer) error {
	if err := gob.NewEncoder(w).Encode(savedBlend{b.step, b.now, b.next}); err != nil {
		return fmt.Errorf("guidance: blend: saving: %w", err)
	}
	if k, ok := models.As[models.Keeper](b.Denoiser); ok {
		return k.Save(w)
	}
	return nil
}

// Load implements models.Keeper.
func (b *blendMemory) Load(r io.Reader) error {
	var s savedBlend
	if err := gob.NewDecoder(r).Decode(&s); err != nil || len(s.Now) != len(s.Next) {
		return fmt.Errorf("guidance: blend: reading a saved run: %d and %d choices, %v", len(s.Now), len(s.Next), err)
	}
	b.step, b.now, b.next = s.Step, s.Now, s.Next
	if k, ok := models.As[models.Keeper](b.Denoiser); ok {
		return k.Load(r)
	}
	return nil
}
