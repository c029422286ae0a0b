package guidance

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"gorgonia.org/tensor"

	"drift/internal/rng"
	"drift/models"
	"drift/schedules"
)

// Rule says what density several models stand for together.
type Rule string

// The rules. q_i are the models' densities at one noise level and w_i their weights:
//
//	Product   prod_i q_i^{w_i}             score  sum_i w_i s_i; weights below 0 negate
//	Average   prod_i q_i^{w_i}, sum w = 1  the geometric average: weights are divided by their sum
//	Anneal    q^w                          of one model
//	Mixture   sum_i w_i q_i, sum w = 1     score  sum_i p(i|x) s_i, p(i|x) = w_i q_i(x)/sum_j w_j q_j(x)
//
// A sampler that follows the score of one of the first three does not end at that density of the data: the noisy version of
// a product is not the product of noisy versions. That naive sum is what every solver here makes; package smc corrects it
// (FKC). A mixture is exact.
const (
	Product Rule = "product"
	Average Rule = "average"
	Anneal  Rule = "anneal"
	Mixture Rule = "mixture"
)

// Rules lists the rules.
func Rules() []Rule { return []Rule{Product, Average, Anneal, Mixture} }

// Expert is one model of a composition.
type Expert struct {
	Name  string
	Model models.Denoiser
	// Class is the class that this expert is always asked with; nil = that of the row.
	Class *int
	// Weight is the expert's exponent, or its share of a mixture. 0 leaves it out: it is not asked at all.
	Weight float64
}

// Sources tells how likely it is that a noisy state comes from each of several sources.
type Sources interface {
	// LogProb writes log p(source | x_t), up to a constant of the row, of every row and source: out has rows x n numbers.
	LogProb(ctx context.Context, q *models.Query, n int, out []float64) error
}

// Classified takes a classifier whose classes are the sources, in order. It must know noisy states.
type Classified struct{ Of ClassGradient }

// LogProb implements Sources.
func (c Classified) LogProb(ctx context.Context, q *models.Query, n int, out []float64) error {
	classes, logp := make([]int, len(q.At)), make([]float64, len(q.At))
	for k := range n {
		for i := range classes {
			classes[i] = k
		}
		if err := c.Of.LogProb(ctx, q.X, q.At, classes, logp, nil); err != nil {
			return err
		}
		for i, l := range logp {
			out[i*n+k] = l
		}
	}
	return nil
}

// Choice says how the experts of a mixture share a row.
type Choice string

// The choices: Blend takes the sum with the posterior weights, exact; Top asks only the likeliest expert and Draw one
// drawn by its posterior weight (by the row's seed, its particle and the step), both for one evaluation.
const (
	Blend Choice = ""
	Top   Choice = "top1"
	Draw  Choice = "draw"
)

// Composition makes one model of several (compositional generation: Liu et al. 2022, arXiv 2206.01714; Du et al. 2023, arXiv
// 2302.11552; compartmentalised diffusion, Golatkar et al. 2023, arXiv 2308.01937). The result is a models.Denoiser, so
// every sampler takes it and every guider goes around it.
//
// All experts must have the same process and shape. The answer has the first expert's kind of prediction; its Parts are the
// experts with their weights, which correctors need, where all rows share the weights (they hold until the next question).
// One expert of weight 1 is that model, bit for bit. An answer costs one evaluation of each expert with a weight.
//
// Rows that are asked without a class, in a query that names classes, are asked so of every expert (that is how guidance
// around a composition finds its unconditional branch, in which the weights of a mixture are those of that branch). A query
// that says nothing of classes asks experts with their own ones.
type Composition struct {
	Experts []Expert
	Rule    Rule // "" = Product

	// What follows belongs to mixtures.

	// Of tells where a row comes from; its prior must be the weights. nil = the exact posterior, for models that know their
	// log density (analytic targets); others are refused.
	Of Sources
	// Constant takes the weights for the posterior, whatever the state: known to be bad, samples land between the sources.
	Constant bool
	Choice   Choice
	// Report is told the posterior weights, rows x experts; may be nil. The slice holds until it returns.
	Report func(q *models.Query, weights []float64)
}

// density is a model that knows its log density at every noise level (analytic.Mixture).
type density interface {
	LogP(x []float64, n schedules.Node, class int) (float64, error)
}

// Model checks the composition and makes the model, which serves one run at a time.
func (c Composition) Model() (models.Denoiser, error) {
	m, err := c.model()
	if err != nil {
		return nil, fmt.Errorf("guidance: compose: %w", err)
	}
	return m, nil
}

func (c Composition) model() (*composed, error) {
	if c.Rule == "" {
		c.Rule = Product
	}
	if !slices.Contains(Rules(), c.Rule) {
		return nil, fmt.Errorf("unknown rule %q: want one of %v", c.Rule, Rules())
	}
	if len(c.Experts) == 0 {
		return nil, errors.New("there is no model")
	}
	first := c.Experts[0]
	out := &composed{rule: c.Rule, of: c.Of, constant: c.Constant, choice: c.Choice, report: c.Report, process: first.Model.Process()}
	var ok bool
	if out.gau, ok = out.process.(schedules.Gaussian); !ok {
		return nil, fmt.Errorf("needs a Gaussian process, that of %s is %s", first.name(0), out.process.Name())
	}
	classes := -1
	sum := 0.0
	var shape []int
	for i, e := range c.Experts {
		if e.Weight-e.Weight != 0 {
			return nil, fmt.Errorf("the weight of %s is %g", e.name(i), e.Weight)
		}
		if c.Rule == Mixture && e.Weight < 0 {
			return nil, fmt.Errorf("the weight of %s is %g: the shares of a mixture are not negative", e.name(i), e.Weight)
		}
		if p := e.Model.Process(); !schedules.Same(p, out.process) {
			return nil, fmt.Errorf("%s has another noise schedule (%s) than %s (%s)", e.name(i), describe(p), first.name(0), describe(out.process))
		}
		var info models.Info
		if d, ok := models.As[models.Described](e.Model); ok {
			info = d.Info()
			if shape == nil {
				shape = info.Shape
			}
			if !slices.Equal(shape, info.Shape) {
				return nil, fmt.Errorf("%s gives arrays of shape %v, %s of shape %v", e.name(i), info.Shape, first.name(0), shape)
			}
			if e.Class == nil {
				if classes < 0 {
					classes = info.Classes
				} else if classes != info.Classes {
					return nil, fmt.Errorf("%s has %d classes, the models before it %d: give each its own class", e.name(i), info.Classes, classes)
				}
			}
			if e.Class != nil && (*e.Class < 0 || *e.Class >= info.Classes) && *e.Class != models.NoClass {
				return nil, fmt.Errorf("%s: no class %d; the model has %d", e.name(i), *e.Class, info.Classes)
			}
		}
		if _, memory := models.As[models.Selector](e.Model); memory {
			return nil, fmt.Errorf("%s remembers earlier answers: put its guider around the composition", e.name(i))
		}
		sum += e.Weight
		if e.Weight != 0 {
			e.Name = e.name(i)
			out.experts = append(out.experts, e)
		}
	}
	if classes < 0 { // every expert has its own: the composition is the one class that it has
		classes = 1
	}
	if !(sum > 0) {
		return nil, fmt.Errorf("the weights sum to %g: no density has that score", sum)
	}
	switch {
	case c.Rule == Anneal && len(c.Experts) != 1:
		return nil, fmt.Errorf("anneal takes one model, not %d: use product, whose weights are powers too", len(c.Experts))
	case c.Rule != Mixture && (c.Of != nil || c.Constant || c.Choice != Blend):
		return nil, fmt.Errorf("posterior weights belong to the rule mixture, not to %s", c.Rule)
	case c.Of != nil && c.Constant:
		return nil, errors.New("weights cannot be constant and come from a classifier")
	case !slices.Contains([]Choice{Blend, Top, Draw}, c.Choice):
		return nil, fmt.Errorf("unknown choice %q: want top1, draw or none", c.Choice)
	}
	if c.Rule == Mixture || c.Rule == Average {
		for i := range out.experts {
			out.experts[i].Weight /= sum
		}
	}
	n := len(out.experts)
	out.preds, out.parts, out.conds, out.density = make([]models.Pred, n), make([]models.Part, n), make([]models.Cond, n), make([]density, n)
	if c.Rule == Mixture && c.Of == nil && !c.Constant && n > 1 {
		for i, e := range out.experts {
			if out.density[i], ok = models.As[density](e.Model); !ok {
				return nil, fmt.Errorf("%s does not know its density: a mixture needs that of every model (analytic targets), a noise-aware classifier of the sources, or constant weights", e.Name)
			}
			if _, guided := e.Model.(interface{ guided() }); guided {
				return nil, fmt.Errorf("%s is guided: the density of a guided model is not known; put the guider around the mixture", e.Name)
			}
		}
	}
	out.info = models.Info{Shape: shape, Classes: classes}
	return out, nil
}

func (e Expert) name(i int) string {
	if e.Name != "" {
		return e.Name
	}
	return fmt.Sprintf("model %d", i)
}

// describe writes a process with its parameters, so that two of one name are told apart.
func describe(p schedules.Process) string {
	if b, err := schedules.MarshalProcess(p); err == nil {
		return string(b)
	}
	return p.Name()
}

// composed is the model of a Composition.
type composed struct {
	rule     Rule
	experts  []Expert
	of       Sources
	constant bool
	choice   Choice
	report   func(q *models.Query, weights []float64)
	process  schedules.Process
	gau      schedules.Gaussian
	info     models.Info
	density  []density

	preds    []models.Pred
	parts    []models.Part
	conds    []models.Cond
	weights  []float64 // of a mixture, rows x experts
	cot, add *tensor.Dense
	scores   []float64
	factors  []float64
}

// Process implements models.Denoiser.
func (c *composed) Process() schedules.Process { return c.process }

// Info implements models.Described.
func (c *composed) Info() models.Info { return c.info }

// Evaluations returns how many models' evaluations one answer costs per row.
func (c *composed) Evaluations() int {
	if c.choice != Blend {
		return 1
	}
	return len(c.experts)
}

// question is what expert i is asked.
func (c *composed) question(i int, q *models.Query) (*models.Query, error) {
	e := c.experts[i]
	if q.Cond != nil {
		for _, k := range q.Cond.Classes {
			if k != models.NoClass && k >= max(c.info.Classes, 1) {
				return nil, fmt.Errorf("guidance: compose: no class %d; the composition has %d", k, c.info.Classes)
			}
		}
	}
	if e.Class == nil {
		return q, nil
	}
	cond := &c.conds[i]
	cond.Classes = cond.Classes[:0]
	said := q.Cond != nil && len(q.Cond.Classes) > 0
	for row := range q.At {
		class := *e.Class
		if said && q.Cond.Classes[row] == models.NoClass {
			class = models.NoClass
		}
		cond.Classes = append(cond.Classes, class)
	}
	if q.Cond != nil {
		cond.Prompts, cond.Tensors = q.Cond.Prompts, q.Cond.Tensors
	}
	own := *q
	own.Cond = cond
	return &own, nil
}

// Predict implements models.Denoiser.
func (c *composed) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	return c.answer(ctx, q, p, nil, nil)
}

// VJP implements models.VJP; it needs the gradients of all experts. A mixture has it with exact or constant weights.
func (c *composed) VJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	if c.rule == Mixture && (c.of != nil || c.choice != Blend) && len(c.experts) > 1 {
		return errors.New("guidance: compose: a mixture has a gradient only with exact or constant weights and without a choice")
	}
	return c.answer(ctx, q, p, cotangent, grad)
}

func (c *composed) answer(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	if c.rule == Mixture && len(c.experts) > 1 {
		if err := c.posterior(ctx, q); err != nil {
			return err
		}
		if c.choice != Blend {
			return c.chosen(ctx, q, p)
		}
	}
	if len(c.experts) == 1 && c.experts[0].Weight == 1 {
		own, err := c.question(0, q)
		if err != nil {
			return err
		}
		return predict(ctx, c.experts[0].Model, own, p, cotangent, grad)
	}
	rows := len(q.At)
	n := q.X.Size() / rows
	if cotangent != nil {
		grad.Zero()
		c.add = models.Reuse(c.add, grad.Shape())
	}
	for i, e := range c.experts {
		own, err := c.question(i, q)
		if err != nil {
			return err
		}
		if cotangent == nil {
			err = e.Model.Predict(ctx, own, &c.preds[i])
		} else {
			// The cotangent belongs to the first expert's kind; which it is shows in the answer. Kinds of prediction do not
			// change during a run, so it is asked for once.
			if c.preds[i].Out == nil {
				err = e.Model.Predict(ctx, own, &c.preds[i])
			}
			if err == nil {
				err = c.pull(ctx, own, i, cotangent, grad)
			}
		}
		if err != nil {
			return fmt.Errorf("guidance: compose: %s: %w", e.Name, err)
		}
		if c.preds[i].Renoise != nil {
			return fmt.Errorf("guidance: compose: %s sets the noise put back (cfg++, clipping without re-derived noise): put that guider around the composition", e.Name)
		}
	}
	kind := c.preds[0].Kind
	x, out := p.Fit(q.X, kind)
	clear(out)
	for i := range c.experts {
		pred := models.Data(c.preds[i].Out)
		for row, node := range q.At {
			lo, hi := row*n, (row+1)*n
			if err := convert2(c.gau, c.preds[i].Kind, kind, node, x[lo:hi], pred[lo:hi]); err != nil {
				return fmt.Errorf("guidance: compose: %s: %s: %w", c.experts[i].Name, where(q, row), err)
			}
			w := c.weight(row, i)
			for j := lo; j < hi; j++ {
				if i == 0 {
					out[j] = w * pred[j]
				} else {
					out[j] += float64(w * pred[j])
				}
			}
		}
		c.parts[i] = models.Part{Name: c.experts[i].Name, Weight: c.experts[i].Weight, Out: c.preds[i].Out, Kind: kind}
	}
	if err := c.offset(q, kind, x, out, cotangent, grad); err != nil {
		return err
	}
	if c.rule == Mixture && !c.constant {
		if cotangent != nil {
			return c.slope(q, kind, x, cotangent, grad)
		}
		return nil
	}
	p.Parts = c.parts
	return nil
}

// convert2 is convert that leaves the bits alone where there is nothing to convert.
func convert2(gau schedules.Gaussian, from, to schedules.Kind, n schedules.Node, x, pred []float64) error {
	if from == to {
		return nil
	}
	return convert(gau, from, to, n, x, pred)
}

// weight is the factor of expert i in a row.
func (c *composed) weight(row, i int) float64 {
	if c.rule == Mixture {
		return c.weights[row*len(c.experts)+i]
	}
	return c.experts[i].Weight
}

// total is the sum of the weights in every row.
func (c *composed) total() float64 {
	if c.rule == Mixture || c.rule == Average {
		return 1
	}
	sum := 0.0
	for _, e := range c.experts {
		sum += e.Weight
	}
	return sum
}

// offset adds what belongs to x: a prediction is o x + (a multiple of the score), so that weights with the sum B make the
// sum of scores when (1 - B) o x is added to the sum of predictions. o is the prediction of a model whose score is zero.
func (c *composed) offset(q *models.Query, kind schedules.Kind, x, out []float64, cotangent, grad *tensor.Dense) error {
	b := c.total()
	if b == 1 || kind == schedules.Eps || kind == schedules.Score {
		return nil
	}
	n := len(out) / len(q.At)
	for row, node := range q.At {
		o, _, err := schedules.Convert(c.gau, schedules.Eps, kind, node)
		if err != nil {
			return fmt.Errorf("guidance: compose: %s: weights that sum to %g: %w", where(q, row), b, err)
		}
		f := (1 - b) * o
		for j := row * n; j < (row+1)*n; j++ {
			out[j] += float64(f * x[j])
			if grad != nil {
				models.Data(grad)[j] += float64(f * models.Data(cotangent)[j])
			}
		}
	}
	return nil
}

// pull adds expert i's share of the gradient: its answer counts as cx x + co out of the first one's kind.
func (c *composed) pull(ctx context.Context, q *models.Query, i int, cotangent, grad *tensor.Dense) error {
	kind := c.preds[0].Kind
	c.factors = c.factors[:0]
	g, u := models.Data(grad), models.Data(cotangent)
	n := len(g) / len(q.At)
	for row, node := range q.At {
		cx, co := 0.0, 1.0
		if from := c.preds[i].Kind; from != kind {
			var err error
			if cx, co, err = schedules.Convert(c.gau, from, kind, node); err != nil {
				return err
			}
		}
		w := c.weight(row, i)
		for j := row * n; cx != 0 && j < (row+1)*n; j++ {
			g[j] += float64(w * cx * u[j])
		}
		c.factors = append(c.factors, w*co)
	}
	c.cot = scaled(c.cot, cotangent, c.factors)
	if err := predict(ctx, c.experts[i].Model, q, &c.preds[i], c.cot, c.add); err != nil {
		return err
	}
	for j, v := range models.Data(c.add) {
		g[j] += v
	}
	return nil
}

// posterior fills the weights of a mixture, p(i | x).
func (c *composed) posterior(ctx context.Context, q *models.Query) error {
	k := len(c.experts)
	c.weights = append(c.weights[:0], make([]float64, len(q.At)*k)...)
	switch {
	case c.constant:
		for row := range q.At {
			for i, e := range c.experts {
				c.weights[row*k+i] = e.Weight
			}
		}
	case c.of != nil:
		if err := c.of.LogProb(ctx, q, k, c.weights); err != nil {
			return fmt.Errorf("guidance: compose: the classifier of the sources: %w", err)
		}
	default:
		x := models.Data(q.X)
		n := len(x) / len(q.At)
		for i, e := range c.experts {
			own, err := c.question(i, q)
			if err != nil {
				return err
			}
			for row, node := range q.At {
				l, err := c.density[i].LogP(x[row*n:(row+1)*n], node, own.Cond.Class(row))
				if err != nil {
					return fmt.Errorf("guidance: compose: %s: %w", e.Name, err)
				}
				c.weights[row*k+i] = math.Log(e.Weight) + l
			}
		}
	}
	for row := range q.At {
		if w := c.weights[row*k : (row+1)*k]; !c.constant {
			if err := softmax(w); err != nil {
				return fmt.Errorf("guidance: compose: %s: %w", where(q, row), err)
			}
		}
	}
	if c.report != nil {
		c.report(q, c.weights)
	}
	return nil
}

// softmax turns logarithms into weights that sum to 1.
func softmax(w []float64) error {
	top, sum := slices.Max(w), 0.0
	for i, l := range w {
		w[i] = math.Exp(l - top)
		sum += w[i]
	}
	if !(sum > 0) || math.IsInf(top, 0) {
		return errors.New("the weights of the sources are not finite")
	}
	for i := range w {
		w[i] /= sum
	}
	return nil
}

// slope adds what the weights of an exact mixture contribute to the gradient, with predictions out_i and scores s_i:
//
//	d/dx sum_i p(i|x) u.out_i  =  sum_i p(i|x) J_i^T u  +  sum_i p(i|x) (u.out_i) (s_i - sum_j p(j|x) s_j)
func (c *composed) slope(q *models.Query, kind schedules.Kind, x []float64, cotangent, grad *tensor.Dense) error {
	g, u := models.Data(grad), models.Data(cotangent)
	rows, k := len(q.At), len(c.experts)
	n := len(g) / rows
	c.scores = append(c.scores[:0], make([]float64, n)...)
	for row, node := range q.At {
		cx, co, err := schedules.Convert(c.gau, kind, schedules.Score, node)
		if err != nil {
			return fmt.Errorf("guidance: compose: %s: %w", where(q, row), err)
		}
		clear(c.scores) // the mixture's
		lo := row * n
		mean := 0.0
		for i := range k {
			w, out := c.weights[row*k+i], models.Data(c.preds[i].Out)[lo:lo+n]
			for j, v := range out {
				c.scores[j] += w * (cx*x[lo+j] + co*v)
			}
			mean += w * dot(u[lo:lo+n], out)
		}
		for i := range k {
			w, out := c.weights[row*k+i], models.Data(c.preds[i].Out)[lo:lo+n]
			f := w * (dot(u[lo:lo+n], out) - mean)
			for j, v := range out {
				g[lo+j] += f * (cx*x[lo+j] + co*v - c.scores[j])
			}
		}
	}
	return nil
}

// chosen asks one expert per row.
func (c *composed) chosen(ctx context.Context, q *models.Query, p *models.Pred) error {
	k, rows := len(c.experts), len(q.At)
	x := models.Data(q.X)
	n := len(x) / rows
	of := make([][]int, k) // rows of every expert
	for row := range q.At {
		w := c.weights[row*k : (row+1)*k]
		pick := 0
		if c.choice == Top {
			for i, v := range w {
				if v > w[pick] {
					pick = i
				}
			}
		} else {
			key := rng.Key{Step: q.Step.I, Purpose: rng.PurposeSubset}
			if len(q.Rows) > 0 {
				key.Seed, key.Image = q.Rows[row].Seed, uint64(q.Rows[row].Particle)
			}
			var u [1]float64
			rng.Uniform(u[:], key)
			for sum := w[0]; pick < k-1 && u[0] >= sum; sum += w[pick] {
				pick++
			}
		}
		of[pick] = append(of[pick], row)
	}
	kind, have := schedules.Kind(0), false
	var out []float64
	for i, mine := range of {
		if len(mine) == 0 {
			continue
		}
		own, err := c.question(i, q)
		if err != nil {
			return err
		}
		part := *own
		part.X = models.New(append([]int{len(mine)}, q.X.Shape()[1:]...)...)
		part.At, part.Rows, part.Cond = nil, nil, own.Cond.Select(mine)
		for j, row := range mine {
			copy(models.Data(part.X)[j*n:], x[row*n:(row+1)*n])
			part.At = append(part.At, q.At[row])
			if len(q.Rows) > 0 {
				part.Rows = append(part.Rows, q.Rows[row])
			}
		}
		if err := c.experts[i].Model.Predict(ctx, &part, &c.preds[i]); err != nil {
			return fmt.Errorf("guidance: compose: %s: %w", c.experts[i].Name, err)
		}
		if c.preds[i].Renoise != nil {
			return fmt.Errorf("guidance: compose: %s sets the noise put back: put that guider around the composition", c.experts[i].Name)
		}
		if !have {
			kind, have = c.preds[i].Kind, true
			_, out = p.Fit(q.X, kind)
		}
		for j, row := range mine {
			pred := models.Data(c.preds[i].Out)[j*n : (j+1)*n]
			if err := convert2(c.gau, c.preds[i].Kind, kind, q.At[row], x[row*n:(row+1)*n], pred); err != nil {
				return fmt.Errorf("guidance: compose: %s: %s: %w", c.experts[i].Name, where(q, row), err)
			}
			copy(out[row*n:], pred)
		}
	}
	return nil
}
