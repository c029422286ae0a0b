package guidance

import (
	"context"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/internal/rng"
	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// Minority is self-guided minority sampling (Um and Ye 2024, arXiv 2407.11555): it pushes samples to where the model itself
// finds them unusual. What is rare changes when it is noised far and predicted again, so with x0 the prediction at the state
// and x0' the prediction at alpha_p x0 + sigma_p eps,
//
//	g  = grad_x dist(x0(x), x0'),  x0' held fixed
//	mu = mu + Scale Var g/max|g|
//
// mu and Var being mean and variance of the ancestral step that the run is about to make; the model's noise is moved by as
// much as moves mu so. (Solvers of other kinds take the same move of the noise.) It acts in every Every-th step. Scale = 0
// is off. Large scales leave the support of the data: look at the share that does.
//
// Var of the step from (alpha, sigma) to (b, r) is c1^2 = (r/sigma)^2 (sigma^2 - alpha^2 r^2/b^2), on every process. The step onto sigma = 0 has none,
// and is left alone. A guided step costs two further evaluations (one with a vector-Jacobian product) and one more for every
// further one of Draws.
type Minority struct {
	Scale   float64
	Every   int            // 0 = 5
	P       float64        // how far x0 is noised, as a share of the grid (0 clean, 1 noise); 0 = 0.8
	Grid    schedules.Grid // of the run: the far node is its floor(P n)-th from the end; nil = at share P of the process's time
	Draws   int            // Monte Carlo draws of eps; 0 = 1
	Square  bool           // dist = |a-b|^2 in place of |a-b|
	Fixed   bool           // leave Var out
	Span    Span
	Probe   func(dst []float64, q *models.Query, row, draw int) // eps; nil = by the row's seed, its particle and the step
	Measure func(q *models.Query, dist []float64)               // is told dist of every row; may be nil
}

func init() {
	register(Info{Name: "minority", NFE: "1; every 5th step 3 and 1 VJP", VJP: true, Summary: "self-guided minority sampling: towards what the model itself finds unusual", Source: "arXiv 2407.11555",
		Options: []Option{{"scale", "1", "strength; 0 = off"}, {"every", "5", "acts in every so many steps"}, {"p", "0.8", "how far the prediction is noised, as a share of the grid"}, {"draws", "1", "draws of that noise"},
			{"metric", "l2", "l2 or l2-squared"}, {"type", "var", "var: times the variance of the ancestral step, or fixed"}},
		New: func(o *spec.Options) (Guider, error) {
			return Minority{Scale: o.Float("scale", 1), Every: o.Int("every", 5, 1, 1<<30), P: o.FloatIn("p", 0.8, 1e-9, 1), Draws: o.Int("draws", 1, 1, 1<<16),
				Square: o.Choice("metric", "l2", "l2-squared") == "l2-squared", Fixed: o.Choice("type", "var", "fixed") == "fixed", Span: span(o)}, nil
		}})
}

// On implements Gridder.
func (g Minority) On(grid schedules.Grid) Guider {
	g.Grid = grid
	return g
}

// Gridder is a Guider that wants to know the grid of the run.
type Gridder interface {
	Guider
	On(grid schedules.Grid) Guider
}

// Guide implements Guider.
func (g Minority) Guide(d models.Denoiser) models.Denoiser {
	if g.Every == 0 {
		g.Every = 5
	}
	if g.P == 0 {
		g.P = 0.8
	}
	if g.Draws == 0 {
		g.Draws = 1
	}
	return &minority{link: link{d, "minority"}, g: g}
}

type minority struct {
	link
	g              Minority
	scales         []float64
	x0, far, slope *tensor.Dense
	cot            *tensor.Dense
	again          models.Pred
	dist           []float64
}

// node is where the prediction is noised to.
func (g *minority) node(gau schedules.Gaussian) schedules.Node {
	if n := len(g.g.Grid); n > 1 { // node i counts down from the noise end: index n-2-k has k steps to go before the last
		return g.g.Grid[max(0, n-2-int(math.Floor(g.g.P*float64(n-1))))]
	}
	noise, data := gau.Ends()
	return gau.At(data + g.g.P*(noise-data))
}

func (g *minority) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	var on bool
	var err error
	if g.scales, on, err = weights(g.scales, g.name, q, g.g.Scale, nil, g.g.Span, 0, anyRow); err != nil {
		return err
	}
	left := q.Step.N - 1 - q.Step.I // steps after this one
	c1, move, err := ancestral(q.Step.From, q.Step.To)
	if on = on && left%g.g.Every == 0 && c1 > 0; on && err != nil {
		return fmt.Errorf("guidance: minority: step %d: %w", q.Step.I, err)
	}
	if err := g.Denoiser.Predict(ctx, q, p); err != nil || !on {
		return err
	}
	gau, err := g.gaussian()
	if err != nil {
		return err
	}
	if err := g.rarity(ctx, gau, q, p); err != nil {
		return err
	}
	// eps' = eps + scale Var g/move moves the mean of the ancestral step by scale Var g.
	out, slope := models.Data(p.Out), models.Data(g.slope)
	n := len(out) / len(q.At)
	f := c1 * c1 / move
	if g.g.Fixed {
		f = 1 / move
	}
	for i, s := range g.scales {
		row := slope[i*n : (i+1)*n]
		most := 0.0
		for _, v := range row {
			most = max(most, math.Abs(v))
		}
		if s == 0 || most == 0 { // at a point of symmetry there is nowhere to go
			continue
		}
		_, co, err := schedules.Convert(gau, schedules.Eps, p.Kind, q.At[i])
		if err != nil {
			return fmt.Errorf("guidance: minority: %s: %w", where(q, i), err)
		}
		for j, v := range row {
			out[i*n+j] += float64(s * f * co * v / most)
		}
	}
	p.Parts = nil
	return nil
}

// ancestral returns the standard deviation of the ancestral step from s to t, and how far its mean moves with the noise:
// d mu/d eps = sqrt(r^2 - c1^2) - b sigma/alpha.
func ancestral(s, t schedules.Node) (c1, move float64, err error) {
	if !(t.Sigma > 0) || !(s.Sigma > 0) || !(t.Ratio() < s.Ratio()) {
		return 0, 0, nil
	}
	if s.Alpha == 0 {
		return t.Sigma, 0, fmt.Errorf("a step from pure noise (alpha = 0) has no mean to move")
	}
	c1 = t.Sigma / s.Ratio() * math.Sqrt(s.Ratio()*s.Ratio()-t.Ratio()*t.Ratio())
	return c1, math.Sqrt(max(0, t.Sigma*t.Sigma-c1*c1)) - t.Alpha*s.Sigma/s.Alpha, nil
}

// rarity fills dist and its gradient by the state.
func (g *minority) rarity(ctx context.Context, gau schedules.Gaussian, q *models.Query, p *models.Pred) error {
	rows := len(q.At)
	g.x0, g.far, g.cot = clone(g.x0, p.Out), models.Reuse(g.far, q.X.Shape()), models.Reuse(g.cot, q.X.Shape())
	x, x0, far, cot := models.Data(q.X), models.Data(g.x0), models.Data(g.far), models.Data(g.cot)
	n := len(x) / rows
	for i, node := range q.At {
		if err := convert2(gau, p.Kind, schedules.X0, node, x[i*n:(i+1)*n], x0[i*n:(i+1)*n]); err != nil {
			return fmt.Errorf("guidance: minority: %s: %w", where(q, i), err)
		}
	}
	g.dist = append(g.dist[:0], make([]float64, rows)...)
	clear(cot)
	node := g.node(gau)
	there := *q
	there.X, there.At = g.far, make([]schedules.Node, rows)
	for i := range there.At {
		there.At[i] = node
	}
	for k := range g.g.Draws {
		for i := range rows {
			d := far[i*n : (i+1)*n]
			g.probe(d, q, i, k)
			for j, e := range d {
				d[j] = float64(node.Alpha*x0[i*n+j]) + float64(node.Sigma*e)
			}
		}
		if err := g.Denoiser.Predict(ctx, &there, &g.again); err != nil {
			return err
		}
		twice := models.Data(g.again.Out)
		for i := range rows {
			lo, hi := i*n, (i+1)*n
			if err := convert2(gau, g.again.Kind, schedules.X0, node, far[lo:hi], twice[lo:hi]); err != nil {
				return fmt.Errorf("guidance: minority: at sigma/alpha %.4g: %w", node.Ratio(), err)
			}
			sq := 0.0
			for j := lo; j < hi; j++ {
				d := x0[j] - twice[j]
				sq += float64(d * d)
			}
			f := 2.0
			if !g.g.Square {
				if sq = math.Sqrt(sq); sq > 0 {
					f = 1 / sq
				} else {
					f = 0
				}
			}
			g.dist[i] += sq / float64(g.g.Draws)
			for j := lo; j < hi; j++ {
				cot[j] += f / float64(g.g.Draws) * (x0[j] - twice[j])
			}
		}
	}
	if g.g.Measure != nil {
		g.g.Measure(q, g.dist)
	}
	var err error
	if g.slope, err = pullX0(ctx, g.Denoiser, gau, q, p.Kind, g.cot, &g.again, g.slope); err != nil {
		return fmt.Errorf("guidance: minority: %w", err)
	}
	return finite(g.name, "the gradient of the distance", q, models.Data(g.slope))
}

func (g *minority) probe(dst []float64, q *models.Query, row, draw int) {
	if g.g.Probe != nil {
		g.g.Probe(dst, q, row, draw)
		return
	}
	key := rng.Key{Step: q.Step.I*g.g.Draws + draw, Purpose: rng.PurposeProbe}
	if len(q.Rows) > 0 {
		key.Seed, key.Image = q.Rows[row].Seed, uint64(q.Rows[row].Particle)
	}
	rng.Normal(dst, key)
}

// pullX0 turns a gradient by x0 (a cotangent, which is changed) into one by the state, into dst: with x0 = cx x + co out,
// cx u + co J_out^T u. kind is that of the model's answer.
func pullX0(ctx context.Context, d models.Denoiser, gau schedules.Gaussian, q *models.Query, kind schedules.Kind, cotangent *tensor.Dense, answer *models.Pred, dst *tensor.Dense) (*tensor.Dense, error) {
	u := models.Data(cotangent)
	n := len(u) / len(q.At)
	straight := make([]float64, len(u))
	for i, node := range q.At {
		cx, co, err := schedules.Convert(gau, kind, schedules.X0, node)
		if err != nil {
			return dst, err
		}
		for j := i * n; j < (i+1)*n; j++ {
			straight[j], u[j] = cx*u[j], co*u[j]
		}
	}
	dst = models.Reuse(dst, q.X.Shape())
	if err := predict(ctx, d, q, answer, cotangent, dst); err != nil {
		return dst, err
	}
	for j, v := range models.Data(dst) {
		models.Data(dst)[j] = straight[j] + v
	}
	return dst, nil
}
