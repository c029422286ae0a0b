// Package inverse restores images: every method draws x0 given a degraded measurement y = A(x0) + sigma_y n and a
// diffusion or flow model of the data. A method is a samplers.Sampler on an ordinary Problem; the rows of the problem are
// samples of one posterior, each from its own streams.
//
// In the formulas a step goes from a node with (alpha, sigma) = (a, s) to one with (b, r); rho = sigma/alpha; x0 and eps
// are the model's predictions at x, J = d x0/d x, r_y = y - A(x0), n fresh noise, A+ the pseudo-inverse and S, V the
// singular values and vectors of A.
package inverse

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"drift/guidance"
	"drift/internal/operators"
	"drift/internal/spec"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// Method makes the sampler that restores a measurement. It fails where the operator does not suit (not linear, no mask).
// A sampler of groups (samplers.Needs.Couples) has a method Particles() int: how many rows belong to one seed.
type Method func(m operators.Measurement) (samplers.Sampler, error)

// Info is one row of the table of methods.
type Info struct {
	Name, Summary, Source string
	NFE                   string // evaluations and gradients per step
	VJP                   bool   // takes gradients through the model; see option grad
	Linear                bool   // needs a linear operator
	Options               []Option
	New                   func(o *spec.Options) (Method, error)
}

// Option describes one option of a method.
type Option struct{ Name, Default, Help string }

var table = map[string]Info{} // written by Register in init functions only

// Register adds a method; call it in init.
func Register(i Info) {
	if _, twice := table[i.Name]; twice {
		panic("inverse: registered twice: " + i.Name)
	}
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

// Parse reads a text like "dps:zeta=0.5".
func Parse(text string) (Method, Info, error) {
	sp, err := spec.Parse(text)
	if err != nil {
		return nil, Info{}, fmt.Errorf("inverse: %w", err)
	}
	row, ok := table[sp.Name]
	if !ok {
		var names []string
		for _, i := range List() {
			names = append(names, i.Name)
		}
		hint := spec.Suggest(sp.Name, names)
		if hint == "" {
			hint = "; known: " + strings.Join(names, ", ")
		}
		return nil, Info{}, fmt.Errorf("inverse: unknown method %q%s", sp.Name, hint)
	}
	o := sp.Options()
	m, err := row.New(o)
	if e := o.Err(); e != nil { // a bad option says more than what came of it
		err = e
	}
	if err != nil {
		return nil, row, fmt.Errorf("inverse: %w", err)
	}
	return func(y operators.Measurement) (samplers.Sampler, error) {
		if _, linear := y.A.(operators.Linear); row.Linear && !linear {
			return nil, fmt.Errorf("inverse: %s needs a linear operator with known singular values, and %s is not linear", row.Name, y.A.Name())
		}
		s, err := m(y)
		if err != nil {
			return nil, fmt.Errorf("inverse: %s: %w", row.Name, err)
		}
		return s, nil
	}, row, nil
}

// gradOptions are the options of methods that take gradients through the model.
func gradOptions(more ...Option) []Option {
	return append(more, Option{"grad", "auto", "gradient through the model: exact, fd (one more evaluation in place of a backward pass), scalar, or auto: exact where the model has it, else fd"},
		Option{"fd-step", "0.001", "of fd, in units of |x|/|u|"})
}

func readWay(o *spec.Options) (guidance.Way, float64) {
	w := slices.Index(guidance.Ways, o.Choice("grad", guidance.Ways...))
	return guidance.Way(w), o.FloatIn("fd-step", 1e-3, 1e-12, 1)
}

func etaOption(def string) Option {
	return Option{"eta", def, "fresh noise in a step: 0 = none, 1 = ancestral"}
}

// Guided draws samples with a Guider around the model: DDIM with Eta (samplers.DDIM). It is how the guiders of a
// measurement (guidance.Measured, guidance.Gradient with guidance.Misfit) become restorers; they work with any solver.
type Guided struct {
	Name   string
	Guider guidance.Guider
	Way    guidance.Way
	Eta    float64
}

// Begin implements samplers.Sampler.
func (g Guided) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	own, err := g.problem(p)
	if err != nil {
		return nil, err
	}
	return samplers.DDIM{Eta: g.Eta}.Begin(ctx, own)
}

// Resume implements samplers.Resumer.
func (g Guided) Resume(ctx context.Context, p *samplers.Problem, r io.Reader) (samplers.Run, error) {
	own, err := g.problem(p)
	if err != nil {
		return nil, err
	}
	return samplers.Resume(ctx, samplers.DDIM{Eta: g.Eta}, own, r)
}

func (g Guided) problem(p *samplers.Problem) (*samplers.Problem, error) {
	d, err := denoiser(g.Name, p)
	if err != nil {
		return nil, err
	}
	if _, ok := models.As[models.VJP](d); g.Needs().VJP && !ok {
		return nil, fmt.Errorf("inverse: %s: grad=exact needs a model with gradients", g.Name)
	}
	own := *p
	own.Model = g.Guider.Guide(d)
	return &own, nil
}

// Needs implements samplers.Sampler.
func (g Guided) Needs() samplers.Needs {
	return samplers.Needs{Noise: g.Eta > 0, VJP: g.Way == guidance.WayExact}
}

// Gradient is the way that gradients through the model are taken.
func (g Guided) Gradient() guidance.Way { return g.Way }

func init() {
	measured := func(form guidance.Likelihood, name string) func(o *spec.Options) (Method, error) {
		return func(o *spec.Options) (Method, error) {
			way, h := readWay(o)
			g := guidance.Measured{Form: form, Way: way, H: h, W: o.Float("w", 1), MaxNorm: o.FloatIn("clip", 0, 0, math.MaxFloat64)}
			if form == guidance.LikelihoodCovariance {
				g.Most = o.Int("iterations", 1, 1, 1<<16)
			}
			eta := o.FloatIn("eta", 1, 0, 1)
			return func(m operators.Measurement) (samplers.Sampler, error) {
				g := g
				g.Of = m
				return Guided{Name: name, Guider: g, Way: way, Eta: eta}, nil
			}, nil
		}
	}
	w, clip := Option{"w", "1", "strength of the guidance"}, Option{"clip", "0", "largest norm of a row's gradient; 0 = no limit"}
	Register(Info{Name: "pigdm", NFE: "1 + 1 VJP", VJP: true, Linear: true, Summary: "pseudoinverse guidance: the predicted data have the variance s^2/(a^2+s^2)", Source: "Song et al. 2023, ICLR, eq. 8",
		Options: gradOptions(w, clip, etaOption("1")), New: measured(guidance.LikelihoodPiGDM, "pigdm")})
	Register(Info{Name: "tmpd", NFE: "1 + 1 VJP for every iteration and one more", VJP: true, Linear: true, Summary: "guidance with the covariance that Tweedie's formula gives the predicted data; exact for Gaussian data", Source: "arXiv 2310.06721, eq. 9",
		Options: gradOptions(w, clip, etaOption("1"), Option{"iterations", "1", "of conjugate gradients: as many as there are measured numbers are exact, and more than one may go astray on a network, whose Jacobian is not symmetric"}), New: measured(guidance.LikelihoodCovariance, "tmpd")})
	Register(Info{Name: "mpgd", NFE: "1", Summary: "moves the predicted data down the misfit, no gradient through the model; any operator", Source: "arXiv 2311.16424",
		Options: []Option{{"c", "auto", "step: x0' = x0 + c A^T r_y; auto = 1 over the largest squared singular value"}, etaOption("1")},
		New: func(o *spec.Options) (Method, error) {
			auto := o.Text("c", "auto") == "auto"
			c, eta := 1.0, o.FloatIn("eta", 1, 0, 1)
			if !auto {
				c = o.Float("c", 1)
			}
			return func(m operators.Measurement) (samplers.Sampler, error) {
				c := c
				if auto {
					c /= square(m.A)
				}
				return Guided{Name: "mpgd", Guider: guidance.Gradient{W: c, Of: guidance.Misfit{Of: m}, State: true}, Way: guidance.WayScalar, Eta: eta}, nil
			}, nil
		}})
}

// begin starts a run of s, which restores m.
func begin(ctx context.Context, p *samplers.Problem, s samplers.Stepper, m operators.Measurement) (samplers.Run, error) {
	if have, want := operators.Size(p.Shape), operators.Size(m.A.In()); p.Codec == nil && p.Start == nil && have != want {
		return nil, fmt.Errorf("inverse: %s: rows of shape %v, the operator takes %v", s.Label(), p.Shape, m.A.In())
	}
	return samplers.Begin(ctx, p, s)
}

// square is the largest squared singular value of an operator, 1 where it is not linear.
func square(a operators.Operator) float64 {
	l, ok := a.(operators.Linear)
	if !ok {
		return 1
	}
	return sq(slices.Max(l.Singular()))
}

// Travel repeats every length steps of a grid repeat times, with forward noise between (RePaint's resampling, arXiv
// 2201.09865, and DDNM's time travel): nodes 0..L, back to 0, down to L again, and so on for the next L steps.
func Travel(g schedules.Grid, length, repeat int) schedules.Grid {
	if len(g) < 2 || length < 1 || repeat <= 1 {
		return g
	}
	out := schedules.Grid{g[0]}
	for from := 0; from < len(g)-1; from += length {
		to := min(from+length, len(g)-1)
		for k := range repeat {
			if k > 0 {
				out = append(out, g[from])
			}
			out = append(out, g[from+1:to+1]...)
		}
	}
	return out
}
