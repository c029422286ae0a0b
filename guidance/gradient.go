package guidance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"gorgonia.org/tensor"

	"drift/internal/rng"
	"drift/internal/script"
	"drift/internal/spec"
	"drift/models"
	"drift/models/analytic"
	"drift/schedules"
)

// ClassGradient is a classifier that can be differentiated, noise-aware where it is asked at noisy states.
type ClassGradient interface {
	// LogProb writes log p(class | x) of every row at its node into logp and, where grad is not nil, its gradient by x
	// into grad (x's shape). Rows of models.NoClass get zeros.
	LogProb(ctx context.Context, x *tensor.Dense, at []schedules.Node, classes []int, logp []float64, grad *tensor.Dense) error
}

// Posterior is the exact classifier of an analytic target: log p(class | x) = log p(class) + log p(x | class) - log p(x).
type Posterior struct{ Target *analytic.Mixture }

// LogProb implements ClassGradient.
func (c Posterior) LogProb(ctx context.Context, x *tensor.Dense, at []schedules.Node, classes []int, logp []float64, grad *tensor.Dense) error {
	d := models.Data(x)
	n := len(d) / len(at)
	all, free := make([]float64, c.Target.Classes()), make([]float64, n)
	for i, node := range at {
		row, class := d[i*n:(i+1)*n], classes[i]
		var g []float64
		if grad != nil {
			g = models.Data(grad)[i*n : (i+1)*n]
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if class == models.NoClass {
			logp[i] = 0
			clear(g)
			continue
		}
		if class < 0 || class >= len(all) {
			return fmt.Errorf("guidance: no class %d; the target has %d", class, len(all))
		}
		if err := c.Target.LogPosterior(all, row, node); err != nil {
			return err
		}
		logp[i] = all[class]
		if g == nil {
			continue
		}
		if err := errors.Join(c.Target.Score(g, row, node, class), c.Target.Score(free, row, node, models.NoClass)); err != nil {
			return err
		}
		for j, v := range free {
			g[j] -= v
		}
	}
	return nil
}

// Classifier is classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233, algorithm 2) with a noise-aware
// classifier, in the form that suits every solver,
//
//	eps' = eps - W sigma grad_x log p(class | x)
//
// W = 0 is off. The model is asked with the class, if it takes one; Uncond asks it without, which makes W, with the exact
// classifier, the scale of CFG. One evaluation, and one gradient of the classifier.
type Classifier struct {
	W       float64
	Scale   Scale         // in place of W; nil = W
	Of      ClassGradient // nil = the model's own: the exact posterior of an analytic target, a classifier that comes with it; others are refused
	Uncond  bool
	MaxNorm float64 // largest norm of a row's gradient; 0 = no limit
	Span    Span
}

func init() {
	register(Info{Name: "classifier", NFE: "1 + 1 gradient of the classifier", Class: true, Summary: "classifier guidance: w times the score of the class is added to the model's", Source: "arXiv 2105.05233, algorithm 2",
		Options: []Option{{"w", "2", "scale; 0 = off, or an expression of " + momentNames}, {"uncond", "false", "true asks the model without the class"}, {"clip", "0", "largest norm of a row's gradient; 0 = no limit"}},
		New: func(o *spec.Options) (Guider, error) {
			w, of, err := readScale(o, "w", 2, math.Inf(-1), math.Inf(1))
			return Classifier{W: w, Scale: of, Uncond: o.Bool("uncond", false), MaxNorm: o.FloatIn("clip", 0, 0, math.MaxFloat64), Span: span(o)}, err
		}})
}

// Guide implements Guider.
func (g Classifier) Guide(d models.Denoiser) models.Denoiser {
	c := &classifier{pair: pair{link: link{d, "classifier"}, w: g.W, of: g.Scale, span: g.Span}, g: g}
	if c.g.Of == nil {
		if m, ok := models.As[*analytic.Mixture](d); ok {
			c.g.Of = Posterior{m}
		} else if own, ok := models.As[ClassGradient](d); ok {
			c.g.Of = own
		}
	}
	return c
}

type classifier struct {
	pair
	g       Classifier
	classes []int
	logp    []float64
	grad    *tensor.Dense
}

func (g *classifier) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	on, err := g.prepare(q)
	if err != nil {
		return err
	}
	if !on {
		return g.Denoiser.Predict(ctx, q, p)
	}
	if g.g.Of == nil {
		return fmt.Errorf("guidance: classifier: there is no classifier, and the model brings none")
	}
	g.classes = g.classes[:0]
	for i, w := range g.scales {
		k := models.NoClass
		if w != 0 {
			k = q.Cond.Class(i)
		}
		g.classes = append(g.classes, k)
	}
	ask := q
	if g.g.Uncond {
		ask = g.without(q)
		for i, w := range g.scales {
			if w == 0 {
				ask.Cond.Classes[i] = q.Cond.Class(i)
			}
		}
	}
	if err := g.Denoiser.Predict(ctx, ask, p); err != nil {
		return err
	}
	g.logp = append(g.logp[:0], g.scales...)
	g.grad = models.Reuse(g.grad, q.X.Shape())
	if err := g.g.Of.LogProb(ctx, q.X, q.At, g.classes, g.logp, g.grad); err != nil {
		return fmt.Errorf("guidance: classifier: %w", err)
	}
	if err := finite(g.name, "the classifier's gradient", q, models.Data(g.grad)); err != nil {
		return err
	}
	return g.shift(q, p, models.Data(g.grad), g.scales, g.g.MaxNorm)
}

// NotFinite says that something a guider works with stopped being finite.
type NotFinite struct{ Name, What, Where string }

func (e *NotFinite) Error() string {
	return fmt.Sprintf("guidance: %s: %s at %s", e.Name, e.What, e.Where)
}

// finite refuses a row that is not, by name and place.
func finite(name, what string, q *models.Query, v []float64) error {
	n := len(v) / len(q.At)
	for j, x := range v {
		if x-x != 0 {
			return &NotFinite{name, fmt.Sprintf("%s is %g", what, x), where(q, j/n)}
		}
	}
	return nil
}

// limit scales rows of v down to a norm of at most most.
func limit(v []float64, rows int, most float64) {
	if most == 0 {
		return
	}
	n := len(v) / rows
	for i := range rows {
		row := v[i*n : (i+1)*n]
		if s := norm(row); s > most {
			for j := range row {
				row[j] *= most / s
			}
		}
	}
}

// shift adds w_i g to the score that the prediction stands for.
func (l *link) shift(q *models.Query, p *models.Pred, g, w []float64, most float64) error {
	if flow, ok := l.Process().(schedules.Field); ok {
		return l.tilt(flow, q, p, g, w, most)
	}
	gau, err := l.gaussian()
	if err != nil {
		return err
	}
	limit(g, len(q.At), most)
	out := models.Data(p.Out)
	n := len(out) / len(q.At)
	for i, s := range w {
		if s == 0 {
			continue
		}
		node := q.At[i]
		var co float64 // d prediction / d score, from eps = -sigma score, which exists at both ends
		if p.Kind == schedules.Score {
			co = 1
		} else if p.Kind == schedules.X0 { // x0 = (x + sigma^2 score)/alpha
			co = node.Sigma * node.Sigma / node.Alpha
		} else if _, co, err = schedules.Convert(gau, schedules.Eps, p.Kind, node); err == nil {
			co *= -node.Sigma
		}
		if err == nil && co-co != 0 {
			err = fmt.Errorf("a score cannot be added to %v at alpha=%g, sigma=%g", p.Kind, node.Alpha, node.Sigma)
		}
		if err != nil {
			return fmt.Errorf("guidance: %s: %s: %w", l.name, where(q, i), err)
		}
		for j := i * n; j < (i+1)*n; j++ {
			out[j] += float64(s * co * g[j])
		}
	}
	p.Parts = nil
	return nil
}

// tilt is shift on a process that is not Gaussian.
func (l *link) tilt(flow schedules.Field, q *models.Query, p *models.Pred, g, w []float64, most float64) error {
	if p.Kind != schedules.X0 {
		return fmt.Errorf("guidance: %s: a score cannot be added to %v on the path %s", l.name, p.Kind, flow.Name())
	}
	limit(g, len(q.At), most)
	x, out := models.Data(q.X), models.Data(p.Out)
	n := len(out) / len(q.At)
	for i, s := range w {
		if s == 0 {
			continue
		}
		if err := flow.Tilt(out[i*n:(i+1)*n], x[i*n:(i+1)*n], g[i*n:(i+1)*n], s, q.At[i]); err != nil {
			return fmt.Errorf("guidance: %s: %s: %w", l.name, where(q, i), err)
		}
	}
	p.Parts = nil
	return nil
}

// Energy is a function of the data that guidance lowers.
type Energy interface {
	// Energy writes the energy of every row of the data x0 into e and its gradient by x0 into grad (x0's shape). q is
	// the question under way: step, noise levels, classes, rows.
	Energy(ctx context.Context, q *models.Query, x0 *tensor.Dense, e []float64, grad *tensor.Dense) error
}

// EnergyFunc is an Energy made of a function of one row: it returns the energy and writes the gradient.
type EnergyFunc func(x0, grad []float64) float64

// Energy implements the interface Energy.
func (f EnergyFunc) Energy(ctx context.Context, q *models.Query, x0 *tensor.Dense, e []float64, grad *tensor.Dense) error {
	x, g := models.Data(x0), models.Data(grad)
	n := len(x) / len(e)
	for i := range e {
		if err := ctx.Err(); err != nil {
			return err
		}
		e[i] = f(x[i*n:(i+1)*n], g[i*n:(i+1)*n])
	}
	return nil
}

// ClassEnergy is -log p(class | x0), the classifier being asked at clean data. Rows without a class have none.
type ClassEnergy struct{ Of ClassGradient }

// Energy implements the interface Energy.
func (c ClassEnergy) Energy(ctx context.Context, q *models.Query, x0 *tensor.Dense, e []float64, grad *tensor.Dense) error {
	classes, at := make([]int, len(e)), make([]schedules.Node, len(e))
	for i := range e {
		classes[i], at[i] = q.Cond.Class(i), schedules.Node{Alpha: 1}
	}
	if err := c.Of.LogProb(ctx, x0, at, classes, e, grad); err != nil {
		return err
	}
	for i := range e {
		e[i] = -e[i]
	}
	g := models.Data(grad)
	for i := range g {
		g[i] = -g[i]
	}
	return nil
}

// Script reads an energy written in Starlark (see package script for what scripts may say); file names it in errors,
// which have the form file:line:column: what. The energy is asked one image at a time, in float64.
//
// logp(net, class=K), prob and feat ask the embedded networks (see Networks) about the predicted picture; load(name) reads an
// array of a .npz file in the script's own folder, once.
func Script(file, src string) (Energy, error) {
	e, err := script.ParseIn(file, src, world(filepath.Dir(file)))
	if err != nil {
		return nil, err
	}
	return &scripted{program: e}, nil
}

// Expr reads an energy that is one expression of x0 and ctx, in the words of scripts: mean((x0 - 0.5)**2).
func Expr(text string) (Energy, error) {
	e, err := script.ParseExpr(text, world("."))
	if err != nil {
		return nil, err
	}
	return &scripted{program: e}, nil
}

type scripted struct {
	program *script.Energy
	columns []map[string]float64 // logged by the rows of the last question
}

// moment is what the script may know of a row.
func (s *scripted) moment(q *models.Query, i int) script.Moment {
	n := q.At[i]
	m := script.Moment{Step: q.Step.I, Steps: q.Step.N, T: n.T, Sigma: n.Ratio(), Alpha: n.Alpha, Progress: q.Step.Progress, Class: q.Cond.Class(i)}
	if len(q.Rows) > 0 {
		m.Seed, m.Particle = q.Rows[i].Seed, q.Rows[i].Particle
	}
	return m
}

// Energy implements the interface Energy.
func (s *scripted) Energy(ctx context.Context, q *models.Query, x0 *tensor.Dense, e []float64, grad *tensor.Dense) error {
	x, g := models.Data(x0), models.Data(grad)
	n := len(x) / len(e)
	s.columns = make([]map[string]float64, len(e))
	return eachRow(ctx, len(e), func(i int) error {
		var err error
		if e[i], s.columns[i], err = s.program.EvalLog(ctx, s.moment(q, i), x[i*n:(i+1)*n], x0.Shape()[1:], g[i*n:(i+1)*n]); err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
		return nil
	})
}

// eachRow calls f for every row, on all cores; of several errors the first row's counts.
func eachRow(ctx context.Context, rows int, f func(row int) error) error {
	errs := make([]error, rows)
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(rows, runtime.GOMAXPROCS(0)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := int(next.Add(1)) - 1
				if i >= rows || ctx.Err() != nil {
					return
				}
				errs[i] = f(i)
			}
		}()
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Text is the script or expression as it was given.
func (s *scripted) Text() string { return s.program.Text() }

// check runs the script once, so that its mistakes stop a run before the network is asked.
func (s *scripted) check(ctx context.Context, q *models.Query, shape []int) error {
	_, err := s.program.Check(ctx, s.moment(q, 0), shape)
	return err
}

// Through says which way an energy's gradient goes back to the state.
type Through int

// The ways. ThroughX0 takes the predicted data as free and moves it (as in manifold-preserving guidance, arXiv
// 2311.16424), ThroughModel goes through the network (J the Jacobian of x0 by x; diffusion posterior sampling, arXiv
// 2209.14687; universal guidance, arXiv 2302.07121):
//
//	ThroughX0:     x0'  = x0 - W grad E(x0)
//	ThroughModel:  eps' = eps + W sigma J^T grad E(x0)
//
// A network that predicts noise has 1/alpha in J, and what it errs in its derivative is multiplied by that: at high noise
// ThroughModel needs a limit (MaxNorm) or an interval without the first steps (Span.Hi).
const (
	ThroughX0 Through = iota
	ThroughModel
)

// Gradient guides by the gradient of an energy of the predicted data (see Through). W = 0 is off.
//
// With Samples = n > 0 the energy is averaged over a cloud around x0 (loss-guided diffusion with Monte Carlo, Song et al.
// 2023, algorithm 1),
//
//	E(x0) = -log 1/n SUM_j exp(-W e(x0 + r z_j))/W,  r = Spread sb/sqrt(1 + sb^2)
//
// z_j drawn by the row's seed, its particle and the step. ThroughX0 costs one evaluation, ThroughModel a second one and a
// vector-Jacobian product.
type Gradient struct {
	W       float64
	Scale   Scale  // in place of W; nil = W
	Of      Energy // nil = ClassEnergy of the exact posterior of an analytic target; other models are refused
	Through Through
	MaxNorm float64 // largest norm of a row's gradient, after J^T; 0 = no limit
	Samples int
	Spread  float64 // 0 = 1
	// State asks for the energy of the state itself where the model denoises latents; else it is that of their pictures, and
	// the gradient goes through the decoder (models.Decoder).
	State bool
	Span  Span
	// Recur repeats every step of the grid so often, with forward noise between (see the function Recur); the run's grid must
	// be made so by whoever makes it. 0 and 1 change nothing.
	Recur int
	// Report is told the energies and the norms of the gradients (before MaxNorm) of every row, and what a script logged of
	// each (nil where nothing was); may be nil. The slices hold until it returns.
	Report func(q *models.Query, energy, norm []float64, logged []map[string]float64)

	name string // in errors; "" = energy
}

func init() {
	register(Info{Name: "energy", NFE: "1; 2 and 1 VJP with through=model", Class: true, Summary: "lowers an energy of the predicted data by its gradient; without a file, -log p(class | x0) of an analytic target", Source: "through=x0: arXiv 2311.16424; through=model: arXiv 2302.07121",
		Options: []Option{{"file", "", "Starlark file that defines energy(x0, ctx)"}, {"expr", "", "one expression of x0 and ctx in place of a file, such as mean((x0-0.5)**2)"}, {"net", "", "embedded classifier whose -log p(class | x0) is the energy: fashion-classifier"}, {"scale", "1", "strength; 0 = off, or an expression of " + momentNames}, {"through", "x0", "x0: move the predicted data, or model: gradient through the network (needs a VJP)"},
			{"clip", "0", "largest norm of a row's gradient; 0 = no limit"}, {"samples", "0", "Monte Carlo samples around the predicted data; 0 = the data itself"}, {"spread", "1", "of the samples, in units of sb/sqrt(1 + sb^2)"},
			{"on", "picture", "what the energy is of, where the model denoises latents: picture (gradient through the decoder), or state"}, {"recur", "1", "repeats every step so often with noise between (universal guidance)"}},
		New: func(o *spec.Options) (Guider, error) {
			w, of, err := readScale(o, "scale", 1, math.Inf(-1), math.Inf(1))
			g := Gradient{W: w, Scale: of, MaxNorm: o.FloatIn("clip", 0, 0, math.MaxFloat64), Samples: o.Int("samples", 0, 0, 1<<16), Spread: o.FloatIn("spread", 1, 1e-9, 1e9), Recur: o.Int("recur", 1, 1, 1000), Span: span(o)}
			g.State = o.Choice("on", "picture", "state") == "state"
			if o.Choice("through", "x0", "model") == "model" {
				g.Through = ThroughModel
			}
			file, text, net := o.Text("file", ""), o.Text("expr", ""), o.Text("net", "")
			switch {
			case err != nil:
			case file != "" && text != "" || file != "" && net != "" || text != "" && net != "":
				err = errors.New("energy: file, expr and net exclude each other")
			case file != "":
				var src []byte
				if src, err = os.ReadFile(file); err == nil {
					g.Of, err = Script(file, string(src))
				}
			case text != "":
				g.Of, err = Expr(text)
			case net != "":
				if _, err = openNet(net); err == nil {
					g.Of = ClassEnergy{Network{net}}
				}
			}
			return g, err
		}})
}

// Guide implements Guider.
func (g Gradient) Guide(d models.Denoiser) models.Denoiser {
	if g.Of == nil {
		if m, ok := models.As[*analytic.Mixture](d); ok {
			g.Of = ClassEnergy{Posterior{m}}
		}
	}
	if o, ok := g.Of.(ownMeans); ok {
		o.target, _ = models.As[*analytic.Mixture](d)
		g.Of = o
	}
	made := &gradient{link: link{d, cmp.Or(g.name, "energy")}, g: g}
	if !g.State {
		made.decoder, _ = models.As[models.Decoder](d)
	}
	return made
}

// of is the energy and its gradient by x0, through the decoder where it is one of pictures.
func (g *gradient) of(ctx context.Context, q *models.Query, x0 *tensor.Dense, e []float64, grad *tensor.Dense) error {
	if g.decoder == nil {
		return g.g.Of.Energy(ctx, q, x0, e, grad)
	}
	return g.decoder.DecodeLate(ctx, x0, func(x *tensor.Dense) (*tensor.Dense, error) {
		slope := models.New(x.Shape()...)
		return slope, g.g.Of.Energy(ctx, q, x, e, slope)
	}, grad)
}

// shape is that of what the energy is of.
func (g *gradient) shape(q *models.Query) []int {
	if d, ok := models.As[models.Described](g.Denoiser); ok && g.decoder != nil {
		return d.Info().Image()
	}
	return q.X.Shape()[1:]
}

type gradient struct {
	link
	g        Gradient
	scales   []float64
	x0, grad *tensor.Dense
	back     *tensor.Dense
	again    models.Pred
	e, norms []float64
	checked  bool

	cloud, slope *tensor.Dense
	es, logs     []float64
	decoder      models.Decoder // nil: the energy is one of the state
}

func (g *gradient) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	var on bool
	var err error
	if g.scales, on, err = weights(g.scales, g.name, q, g.g.W, g.g.Scale, g.g.Span, 0, anyRow); err != nil {
		return err
	}
	if c, ok := g.g.Of.(interface {
		check(context.Context, *models.Query, []int) error
	}); on && ok && !g.checked {
		if err := c.check(ctx, q, g.shape(q)); err != nil {
			return fmt.Errorf("guidance: %s: %w", g.name, err)
		}
		g.checked = true
	}
	if err := g.Denoiser.Predict(ctx, q, p); err != nil || !on {
		return err
	}
	if g.g.Of == nil {
		return fmt.Errorf("guidance: energy: there is no energy, and the model is no analytic target with an exact classifier")
	}
	gau, err := g.gaussian()
	if err != nil {
		return err
	}
	g.x0 = clone(g.x0, p.Out)
	x, x0 := models.Data(q.X), models.Data(g.x0)
	n := len(x) / len(q.At)
	for i, node := range q.At {
		if err := convert(gau, p.Kind, schedules.X0, node, x[i*n:(i+1)*n], x0[i*n:(i+1)*n]); err != nil {
			return fmt.Errorf("guidance: %s: %s: %w", g.name, where(q, i), err)
		}
	}
	if err := g.energy(ctx, q); err != nil {
		return fmt.Errorf("guidance: %s: step %d, sigma/alpha %.4g: %w", g.name, q.Step.I, q.At[0].Ratio(), err)
	}
	if err := finite(g.name, "the energy", q, g.e); err != nil {
		return err
	}
	slope := models.Data(g.grad)
	if err := finite(g.name, "the energy's gradient", q, slope); err != nil {
		return err
	}
	if g.g.Through == ThroughModel {
		if err := g.pull(ctx, gau, q, p.Kind); err != nil {
			return err
		}
		if err := finite(g.name, "the gradient through the model", q, slope); err != nil {
			return err
		}
	}
	if g.g.Report != nil {
		g.norms = g.norms[:0]
		for i := range q.At {
			g.norms = append(g.norms, norm(slope[i*n:(i+1)*n]))
		}
		var logged []map[string]float64
		if s, ok := g.g.Of.(*scripted); ok {
			logged = s.columns
		}
		g.g.Report(q, g.e, g.norms, logged)
	}
	for j := range slope {
		slope[j] = -slope[j]
	}
	if g.g.Through == ThroughModel {
		return g.shift(q, p, slope, g.scales, g.g.MaxNorm)
	}
	limit(slope, len(q.At), g.g.MaxNorm)
	out := models.Data(p.Out)
	for i, w := range g.scales {
		if w == 0 {
			continue
		}
		_, co, err := schedules.Convert(gau, schedules.X0, p.Kind, q.At[i])
		if err != nil {
			return fmt.Errorf("guidance: %s: %s: %w", g.name, where(q, i), err)
		}
		for j := i * n; j < (i+1)*n; j++ {
			out[j] += float64(w * co * slope[j])
		}
	}
	p.Parts = nil
	return nil
}

// pull turns the gradient by x0 into one by x: with x0 = cx x + co out, cx g + co J_out^T g.
func (g *gradient) pull(ctx context.Context, gau schedules.Gaussian, q *models.Query, kind schedules.Kind) error {
	slope := models.Data(g.grad)
	n := len(slope) / len(q.At)
	g.x0 = clone(g.x0, g.grad) // x0 is done with
	cot := models.Data(g.x0)
	for i, node := range q.At {
		cx, co, err := schedules.Convert(gau, kind, schedules.X0, node)
		if err != nil {
			return err
		}
		for j := i * n; j < (i+1)*n; j++ {
			cot[j], slope[j] = co*slope[j], cx*slope[j]
		}
	}
	g.back = models.Reuse(g.back, q.X.Shape())
	if err := predict(ctx, g.Denoiser, q, &g.again, g.x0, g.back); err != nil {
		return fmt.Errorf("guidance: %s: through=model: %w", g.name, err)
	}
	for j, v := range models.Data(g.back) {
		slope[j] += v
	}
	return nil
}

// energy fills e and grad.
func (g *gradient) energy(ctx context.Context, q *models.Query) error {
	rows := len(q.At)
	g.e = append(g.e[:0], g.scales...)
	g.grad = models.Reuse(g.grad, g.x0.Shape())
	if g.g.Samples == 0 {
		return g.of(ctx, q, g.x0, g.e, g.grad)
	}
	g.cloud, g.slope = models.Reuse(g.cloud, g.x0.Shape()), models.Reuse(g.slope, g.x0.Shape())
	x0, cloud, sum, slope := models.Data(g.x0), models.Data(g.cloud), models.Data(g.grad), models.Data(g.slope)
	n := len(x0) / rows
	most := g.g.Spread
	if most == 0 {
		most = 1
	}
	// A running log-sum-exp of -w e, and the gradient with the weights that belong to it.
	g.es, g.logs = append(g.es[:0], g.scales...), append(g.logs[:0], g.scales...)
	for k := range g.g.Samples {
		for i, node := range q.At {
			row := models.Row{}
			if len(q.Rows) > 0 {
				row = q.Rows[i]
			}
			d := cloud[i*n : (i+1)*n]
			rng.Normal(d, rng.Key{Seed: row.Seed, Image: uint64(row.Particle), Step: q.Step.I*g.g.Samples + k, Purpose: rng.PurposeProbe})
			sb := node.Ratio()
			r := most
			if !math.IsInf(sb, 1) {
				r *= sb / math.Sqrt(1+sb*sb)
			}
			for j, z := range d {
				d[j] = x0[i*n+j] + float64(r*z)
			}
		}
		if err := g.of(ctx, q, g.cloud, g.es, g.slope); err != nil {
			return err
		}
		for i, w := range g.scales {
			l := -w * g.es[i]
			old, share := 0.0, 1.0
			if k > 0 {
				top := max(g.logs[i], l)
				total := top + math.Log(math.Exp(g.logs[i]-top)+math.Exp(l-top))
				old, share = math.Exp(g.logs[i]-total), math.Exp(l-total)
				l = total
			}
			g.logs[i] = l
			for j := i * n; j < (i+1)*n; j++ {
				sum[j] = float64(old*sum[j]) + float64(share*slope[j])
			}
		}
	}
	for i, w := range g.scales {
		if g.e[i] = 0; w != 0 {
			g.e[i] = -(g.logs[i] - math.Log(float64(g.g.Samples))) / w
		}
	}
	return nil
}

// CheckEnergy holds the gradient of an energy to central differences at every row of x0, along coordinates spread over the row
// (at most 32). It returns the energies and the largest difference relative to the largest slope (or to 1e-6 of the energy,
// where that is more: no difference can see less).
func CheckEnergy(ctx context.Context, of Energy, q *models.Query, x0 *tensor.Dense) (energies []float64, worst float64, err error) {
	rows := len(q.At)
	energies = make([]float64, rows)
	grad, rest := models.New(x0.Shape()...), models.New(x0.Shape()...)
	if err := of.Energy(ctx, q, x0, energies, grad); err != nil {
		return nil, 0, err
	}
	x, g := models.Data(x0), models.Data(grad)
	n := len(x) / rows
	most := make([]float64, rows)
	for i, e := range energies {
		most[i] = 1e-6 * max(1, math.Abs(e))
	}
	gap := make([]float64, rows)
	points := min(32, n)
	var side [2][]float64
	for s := range side {
		side[s] = make([]float64, rows)
	}
	for k := range points {
		j := k * n / points
		const h = 1e-5
		for s, d := range []float64{h, -h} {
			for i := range rows {
				x[i*n+j] += d
			}
			err := of.Energy(ctx, q, x0, side[s], rest)
			for i := range rows {
				x[i*n+j] -= d
			}
			if err != nil {
				return nil, 0, err
			}
		}
		for i := range rows {
			slope := g[i*n+j]
			gap[i] = max(gap[i], math.Abs((side[0][i]-side[1][i])/(2*h)-slope))
			most[i] = max(most[i], math.Abs(slope))
		}
	}
	for i := range rows {
		if r := gap[i] / most[i]; r > worst || math.IsNaN(r) {
			worst = r
		}
	}
	return energies, worst, nil
}

// Recur repeats every step of a grid k times with forward noise between (the self-recurrence of universal guidance, arXiv
// 2302.07121, algorithm 1): s t becomes s t s t ... s t. The rising hops cost no evaluation, so a run takes k times as many.
// Nodes at which a step ends without signal to come back from are as good as any: the hop is the process's own.
func Recur(g schedules.Grid, k int) schedules.Grid {
	if len(g) == 0 || k <= 1 {
		return g
	}
	out := schedules.Grid{g[0]}
	for i := 1; i < len(g); i++ {
		out = append(out, g[i])
		for range k - 1 {
			if g[i].Ratio() < g[i-1].Ratio() {
				out = append(out, g[i-1], g[i])
			}
		}
	}
	return out
}
