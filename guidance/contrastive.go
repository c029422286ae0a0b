package guidance

import (
	"context"
	"errors"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/models"
	"drift/models/analytic"
)

// Contrastive is the energy that draws the predicted data towards examples and away from others (the contrast of Contrastive
// Diffuser, Shan et al. 2024, arXiv 2402.02772, as guidance),
//
//	E(x0)    = -log SUM_{p in P} exp(<f, p>/Tau) + log SUM_{q in P and N} exp(<f, q>/Tau),  f = Phi x0
//	grad E   = -1/Tau Phi^T (SUM_P a_p p - SUM_{P and N} b_q q),  a and b the two softmaxes
//
// E is 0 or more, and 0 everywhere without negatives. The examples are rows in the space of the features f.
type Contrastive struct {
	Positive, Negative [][]float64
	Phi                [][]float64 // one row per feature; nil = the data itself
	Tau                float64     // 0 = 1
}

// Energy implements the interface Energy.
func (c Contrastive) Energy(ctx context.Context, _ *models.Query, x0 *tensor.Dense, e []float64, grad *tensor.Dense) error {
	if len(c.Positive) == 0 {
		return errors.New("contrastive: there are no positive examples")
	}
	x, g := models.Data(x0), models.Data(grad)
	n := len(x) / len(e)
	width := n
	if c.Phi != nil {
		width = len(c.Phi)
	}
	for _, v := range c.Phi {
		if len(v) != n {
			return fmt.Errorf("contrastive: features of %d numbers, the data has %d", len(v), n)
		}
	}
	all := append(append([][]float64(nil), c.Positive...), c.Negative...)
	for _, v := range all {
		if len(v) != width {
			return fmt.Errorf("contrastive: an example has %d numbers, want %d", len(v), width)
		}
	}
	return eachRow(ctx, len(e), func(i int) error {
		e[i] = c.row(all, x[i*n:(i+1)*n], g[i*n:(i+1)*n])
		return nil
	})
}

func (c Contrastive) row(all [][]float64, x, g []float64) float64 {
	tau := c.Tau
	if tau == 0 {
		tau = 1
	}
	f := x
	if c.Phi != nil {
		f = make([]float64, len(c.Phi))
		for k, v := range c.Phi {
			f[k] = dot(v, x)
		}
	}
	a := make([]float64, len(all))
	for k, v := range all {
		a[k] = dot(f, v) / tau
	}
	b := append([]float64(nil), a...)
	p := len(c.Positive)
	energy := shares(b) - shares(a[:p])
	clear(a[p:])
	slope := make([]float64, len(f))
	for k, v := range all {
		for j, y := range v {
			slope[j] -= (a[k] - b[k]) * y / tau
		}
	}
	if c.Phi == nil {
		copy(g, slope)
		return energy
	}
	clear(g)
	for k, v := range c.Phi {
		for j, y := range v {
			g[j] += slope[k] * y
		}
	}
	return energy
}

// shares turns a into weights, in place, and returns log SUM exp(a).
func shares(a []float64) float64 {
	top, sum := math.Inf(-1), 0.0
	for _, v := range a {
		top = max(top, v)
	}
	for k, v := range a {
		a[k] = math.Exp(v - top)
		sum += a[k]
	}
	for k := range a {
		a[k] /= sum
	}
	return top + math.Log(sum)
}

// ownMeans is Contrastive on an analytic target without examples: the means of the row's class against those of the others.
type ownMeans struct {
	target *analytic.Mixture
	tau    float64
}

// Energy implements the interface Energy. Rows without a class have none.
func (o ownMeans) Energy(ctx context.Context, q *models.Query, x0 *tensor.Dense, e []float64, grad *tensor.Dense) error {
	if o.target == nil {
		return errors.New("contrastive: wants positive examples; only an analytic target brings its own")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	t := o.target.Target()
	x, g := models.Data(x0), models.Data(grad)
	n := len(x) / len(e)
	for i := range e {
		k := q.Cond.Class(i)
		c := Contrastive{Tau: o.tau}
		for j, mean := range t.Means {
			if j < len(t.Labels) && t.Labels[j] == k {
				c.Positive = append(c.Positive, mean)
			} else {
				c.Negative = append(c.Negative, mean)
			}
		}
		if e[i] = 0; k == models.NoClass || len(c.Positive) == 0 {
			clear(g[i*n : (i+1)*n])
			continue
		}
		e[i] = c.row(append(append([][]float64(nil), c.Positive...), c.Negative...), x[i*n:(i+1)*n], g[i*n:(i+1)*n])
	}
	return nil
}

// examples reads the rows of an array of a .npz file: features, x or the first.
func examples(path string) ([][]float64, error) {
	v, shape, err := loadArray(path, "")
	if err != nil {
		return nil, err
	}
	if len(shape) < 2 || shape[0] == 0 || len(v) == 0 {
		return nil, refuse.Errorf(path, "has an array of shape %v: want examples as rows, in an array x or features (drift sample --float keeps x)", shape)
	}
	var rows [][]float64
	for n := len(v) / shape[0]; len(v) > 0; v = v[n:] {
		rows = append(rows, v[:n:n])
	}
	for k, row := range rows {
		for _, x := range row {
			if x-x != 0 {
				return nil, refuse.Errorf(path, "example %d has a value %g", k, x)
			}
		}
	}
	return rows, nil
}

func init() {
	register(Info{Name: "contrastive", NFE: "1; 2 and 1 VJP with through=model", Class: true, Summary: "towards examples and away from others, by a softmax of scalar products with the predicted data; without files, the means of an analytic target by class", Source: "after Contrastive Diffuser, arXiv 2402.02772",
		Options: []Option{{"positive", "", "examples to come near: rows of features, x or the first array of FILE.npz"}, {"negative", "", "examples to avoid, likewise"}, {"phi", "", "FILE.npz with a matrix that makes features of the data, one row each; the examples are in features then"},
			{"tau", "1", "temperature of the softmax, in units of the scalar products"}, {"scale", "1", "strength; 0 = off, or an expression of " + momentNames}, {"through", "x0", "x0: move the predicted data, or model: gradient through the network (needs a VJP)"}, {"clip", "0", "largest norm of a row's gradient; 0 = no limit"}},
		New: func(o *spec.Options) (Guider, error) {
			w, of, err := readScale(o, "scale", 1, math.Inf(-1), math.Inf(1))
			g := Gradient{W: w, Scale: of, MaxNorm: o.FloatIn("clip", 0, 0, math.MaxFloat64), Span: span(o), State: true, name: "contrastive"}
			if o.Choice("through", "x0", "model") == "model" {
				g.Through = ThroughModel
			}
			c := Contrastive{Tau: o.FloatIn("tau", 1, 1e-9, 1e9)}
			files := map[string]*[][]float64{"positive": &c.Positive, "negative": &c.Negative, "phi": &c.Phi}
			for _, key := range []string{"positive", "negative", "phi"} {
				if path := o.Text(key, ""); path != "" && err == nil {
					*files[key], err = examples(path)
				}
			}
			switch {
			case err != nil:
			case c.Positive == nil && (c.Negative != nil || c.Phi != nil):
				err = errors.New("contrastive: negative and phi want positive too")
			case c.Positive == nil:
				g.Of = ownMeans{tau: c.Tau}
			default:
				g.Of = c
			}
			return g, err
		}})
}
