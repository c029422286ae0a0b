package inverse

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"gorgonia.org/tensor"

	"drift/guidance"
	"drift/internal/operators"
	"drift/internal/spec"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

func denoiser(name string, p *samplers.Problem) (models.Denoiser, error) {
	d, ok := p.Model.(models.Denoiser)
	if !ok {
		return nil, fmt.Errorf("inverse: %s needs a model that denoises, have %T", name, p.Model)
	}
	return d, nil
}

// pull asks the model at (m.X, m.From) for its prediction and J^T u.
func pull(ctx context.Context, m *samplers.Move, j *guidance.Jacobian, u func(row int, x0, u []float64)) (g []float64, err error) {
	n := len(m.X) / m.Rows
	err = m.Ask(ctx, func(d models.Denoiser, q *models.Query, p *models.Pred) error {
		_, g, err = j.Pull(ctx, d, q, p, func(x0, c []float64) error {
			for i := range m.Rows {
				u(i, x0[i*n:(i+1)*n], c[i*n:(i+1)*n])
			}
			return nil
		})
		return err
	})
	return g, err
}

// DPS is diffusion posterior sampling (Chung et al. 2022, arXiv 2209.14687, algorithm 1) as its authors run it: a step of
// ancestral sampling (DDIM with Eta), then one down the gradient of the misfit's norm,
//
//	x_u = step(x) - Zeta grad_x |y - A(x0)|
//
// with no factor for the noise of the measurement. The last step has it too. A is any operator. One evaluation and one
// vector-Jacobian product. The gradient at a misfit of 0 is 0.
type DPS struct {
	Of   operators.Measurement
	Zeta float64
	Eta  float64
	Way  guidance.Way
	H    float64 // see guidance.Jacobian
}

func init() {
	Register(Info{Name: "dps", NFE: "1 + 1 VJP", VJP: true, Summary: "diffusion posterior sampling: after a step, zeta down the gradient of the misfit's norm; any operator", Source: "arXiv 2209.14687, algorithm 1",
		Options: gradOptions(Option{"zeta", "2", "length of the step down the gradient (form=norm): about 200 over the number of steps, 0.3 to 1 at 1000"}, Option{"form", "norm", "norm, or gaussian: the gradient of log N(y; A(x0), sigma_y^2 I) is added to the score"}, etaOption("1"),
			Option{"w", "1", "strength (form=gaussian)"}, Option{"clip", "0", "largest norm of a row's gradient (form=gaussian); 0 = no limit"}),
		New: func(o *spec.Options) (Method, error) {
			way, h := readWay(o)
			eta := o.FloatIn("eta", 1, 0, 1)
			if o.Choice("form", "norm", "gaussian") == "gaussian" {
				g := guidance.Measured{Way: way, H: h, W: o.Float("w", 1), MaxNorm: o.FloatIn("clip", 0, 0, math.MaxFloat64)}
				return func(m operators.Measurement) (samplers.Sampler, error) {
					if m.Sigma == 0 {
						return nil, fmt.Errorf("form=gaussian divides by the noise of the measurement, which is 0: give it a noise, or use form=norm")
					}
					g := g
					g.Of = m
					return Guided{Name: "dps", Guider: g, Way: way, Eta: eta}, nil
				}, nil
			}
			d := DPS{Zeta: o.FloatIn("zeta", 2, 0, math.MaxFloat64), Eta: eta, Way: way, H: h}
			return func(m operators.Measurement) (samplers.Sampler, error) {
				d := d
				d.Of = m
				return d, nil
			}, nil
		}})
}

// Step implements samplers.Stepper.
func (d DPS) Step(ctx context.Context, m *samplers.Move) error {
	n := m.Noise(samplers.DrawStep)
	if d.Zeta == 0 {
		return ddim(ctx, m, d.Eta, n)
	}
	j := &guidance.Jacobian{Way: d.Way, H: d.H}
	g, err := pull(ctx, m, j, func(_ int, x0, u []float64) {
		r := d.Of.Residual(x0)
		size := norm(r)
		if size == 0 {
			clear(u)
			return
		}
		d.Of.A.VJP(u, x0, r)
		for i := range u {
			u[i] /= -size
		}
	})
	if err != nil {
		return err
	}
	if err := ddim(ctx, m, d.Eta, n); err != nil {
		return err
	}
	for i := range m.Y {
		m.Y[i] -= float64(d.Zeta * g[i])
	}
	return nil
}

func norm(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += float64(x * x)
	}
	return math.Sqrt(sum)
}

// Begin implements samplers.Sampler.
func (d DPS) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	return begin(ctx, p, d, d.Of)
}

// Needs implements samplers.Sampler.
func (d DPS) Needs() samplers.Needs {
	return samplers.Needs{Noise: d.Eta > 0, VJP: d.Way == guidance.WayExact}
}

// Label implements samplers.Stepper.
func (DPS) Label() string { return "dps" }

// Gradient is the way that gradients through the model are taken.
func (d DPS) Gradient() guidance.Way { return d.Way }

// MCG is the manifold-constrained gradient (Chung et al. 2022, arXiv 2206.00941, eq. 14-15): a step down the gradient of
// the misfit, then what was measured is drawn from the forward process (see RePaint),
//
//	x' = step(x) - W a grad_x |A+ (y - A x0)|^2
//	x_u = P (b A+ y + r' n) + (I - P) x',  P = A+ A
//
// Step is DDIM with Eta. One evaluation and one vector-Jacobian product.
type MCG struct {
	Of  operators.Measurement // of a linear operator
	W   float64
	Eta float64
	Way guidance.Way
	H   float64
}

func init() {
	Register(Info{Name: "mcg", NFE: "1 + 1 VJP", VJP: true, Linear: true, Summary: "manifold-constrained gradient: down the misfit, then what was measured is drawn from the forward process", Source: "arXiv 2206.00941, eq. 14-15",
		Options: gradOptions(Option{"w", "1", "length of the step down the gradient"}, etaOption("1")),
		New: func(o *spec.Options) (Method, error) {
			way, h := readWay(o)
			d := MCG{W: o.FloatIn("w", 1, 0, math.MaxFloat64), Eta: o.FloatIn("eta", 1, 0, 1), Way: way, H: h}
			return func(m operators.Measurement) (samplers.Sampler, error) {
				d := d
				d.Of = m
				return d, nil
			}, nil
		}})
}

// Step implements samplers.Stepper.
func (d MCG) Step(ctx context.Context, m *samplers.Move) error {
	l := newLinear(d.Of)
	g, err := pull(ctx, m, &guidance.Jacobian{Way: d.Way, H: d.H}, func(_ int, x0, u []float64) {
		operators.Pinv(l.a, u, d.Of.Residual(x0)) // A+ r lies in the range of P
		for i := range u {
			u[i] *= -2
		}
	})
	if err != nil {
		return err
	}
	if err := ddim(ctx, m, d.Eta, m.Noise(samplers.DrawStep)); err != nil {
		return err
	}
	for i := range m.Y {
		m.Y[i] -= float64(d.W * m.From.Alpha * g[i])
	}
	replace(m, l, m.Noise(samplers.DrawForward))
	return nil
}

// Begin implements samplers.Sampler.
func (d MCG) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	return begin(ctx, p, d, d.Of)
}

// Needs implements samplers.Sampler.
func (d MCG) Needs() samplers.Needs {
	return samplers.Needs{Noise: true, VJP: d.Way == guidance.WayExact}
}

// Label implements samplers.Stepper.
func (MCG) Label() string { return "mcg" }

// Gradient is the way that gradients through the model are taken.
func (d MCG) Gradient() guidance.Way { return d.Way }

// STSL is sampling with a second-order Tweedie surrogate (Rout et al. 2023, CVPR 2024). Before every step of DDIM with
// Eta, Inner times with fresh e ~ N(0, I),
//
//	x <- x - grad_x [ Lambda |y - A(x0)|^2 + Second/d e.(score(x + Delta e) - score(x))/Delta ]
//
// d the number of elements; with Norm the misfit is not squared (as in PSLD, arXiv 2307.00619). The second term estimates
// the trace of the Hessian of log p, smoothed by noise of size Delta; on Gaussian data its gradient is zero. The start is
// the flow's inversion of A+ y (the paper's A^T y, scaled right), unless FromNoise. Each inner turn takes two evaluations and two vector-Jacobian products, each step one
// evaluation, and the inversion as many as there are steps.
type STSL struct {
	Of        operators.Measurement // of a linear operator, unless FromNoise
	Lambda    float64
	Second    float64
	Delta     float64 // 0 = 1
	Inner     int
	Eta       float64
	Norm      bool // Lambda |y - A(x0)| in place of its square
	FromNoise bool
	Way       guidance.Way
	H         float64
}

func init() {
	Register(Info{Name: "stsl", NFE: "(2 + 2 VJP) x inner + 1, and 1 for an inverted start", VJP: true, Summary: "second-order Tweedie: inner steps down misfit and curvature before every step", Source: "Rout et al., CVPR 2024 (arXiv 2312.00852)",
		Options: gradOptions(Option{"lambda", "1", "weight of the misfit"}, Option{"second", "0.02", "weight of the curvature; 0 = first order"}, Option{"delta", "1", "size of the probe"},
			Option{"inner", "2", "turns before every step (the paper: 5)"}, etaOption("1"), Option{"form", "norm", "of the misfit: norm, or square (the paper's; then lambda about 0.05)"}, Option{"start", "noise", "noise, or inversion of the measurement by the flow (the paper's, for latent models)"}),
		New: func(o *spec.Options) (Method, error) {
			way, h := readWay(o)
			d := STSL{Lambda: o.FloatIn("lambda", 1, 0, math.MaxFloat64), Second: o.Float("second", 0.02), Delta: o.FloatIn("delta", 1, 1e-9, 1e9), Inner: o.Int("inner", 2, 0, 1<<10), Eta: o.FloatIn("eta", 1, 0, 1),
				Norm: o.Choice("form", "norm", "square") == "norm", FromNoise: o.Choice("start", "noise", "inversion") == "noise", Way: way, H: h}
			return func(m operators.Measurement) (samplers.Sampler, error) {
				d := d
				d.Of = m
				if _, ok := m.A.(operators.Linear); !ok && !d.FromNoise {
					return nil, fmt.Errorf("start=inversion needs a linear operator, and %s is not: use start=noise", m.A.Name())
				}
				return d, nil
			}, nil
		}})
}

// Step implements samplers.Stepper.
func (d STSL) Step(ctx context.Context, m *samplers.Move) error {
	delta := d.Delta
	if delta == 0 {
		delta = 1
	}
	n := len(m.X) / m.Rows
	x, e, moved := m.Temp(), m.Temp(), m.Temp()
	copy(x, m.X)
	j := &guidance.Jacobian{Way: d.Way, H: d.H}
	stage := 0
	ask := func(at []float64, f func(models.Denoiser, *models.Query, *models.Pred) error) error {
		stage++
		if stage == 1 {
			return m.Ask(ctx, f) // at m.X
		}
		return m.AskAt(ctx, at, m.From, stage-1, f)
	}
	// The score is (a x0 - x)/s^2 and its Hessian along e is (a J e - e)/s^2: the e cancel in the difference of two.
	c := d.Second / float64(n) * m.From.Alpha / sq(m.From.Sigma) / delta
	down := func(at []float64, u func(x0, u []float64) error) error {
		return ask(at, func(den models.Denoiser, q *models.Query, p *models.Pred) error {
			_, g, err := j.Pull(ctx, den, q, p, u)
			if err == nil {
				for i := range x {
					x[i] -= g[i]
				}
			}
			return err
		})
	}
	for k := range d.Inner {
		copy(e, m.Noise(purposeInner+samplers.Purpose(k)))
		for i := range moved {
			moved[i] = x[i] + float64(delta*e[i])
		}
		if err := down(x, func(x0, u []float64) error {
			for i := range m.Rows {
				row := x0[i*n : (i+1)*n]
				r, f := d.Of.Residual(row), 2*d.Lambda
				if d.Norm {
					f = d.Lambda / max(norm(r), math.SmallestNonzeroFloat64)
				}
				d.Of.A.VJP(u[i*n:(i+1)*n], row, r)
				for j := i * n; j < (i+1)*n; j++ {
					u[j] = -f*u[j] - c*e[j]
				}
			}
			return nil
		}); err != nil {
			return err
		}
		if c == 0 {
			continue
		}
		if err := down(moved, func(_, u []float64) error {
			for i := range u {
				u[i] = c * e[i]
			}
			return nil
		}); err != nil {
			return err
		}
	}
	put, up := samplers.Ancestral(m.From, m.To, d.Eta)
	fresh := m.Noise(samplers.DrawStep)
	return ask(x, func(den models.Denoiser, q *models.Query, p *models.Pred) error {
		if err := den.Predict(ctx, q, p); err != nil {
			return err
		}
		x0, eps, err := dataAndNoise(m.Process(), q, p)
		if err != nil {
			return err
		}
		for i := range m.Y {
			m.Y[i] = float64(m.To.Alpha*x0[i]) + float64(put*eps[i]) + float64(up*fresh[i])
		}
		return nil
	})
}

// purposeInner is the first of the purposes of the probes of a step's inner turns.
const purposeInner samplers.Purpose = 1<<16 + 0x1000

// dataAndNoise gives the two forms of a prediction.
func dataAndNoise(g schedules.Gaussian, q *models.Query, p *models.Pred) (x0, eps []float64, err error) {
	form := func(kind schedules.Kind) []float64 {
		cx, co, e := schedules.Convert(g, p.Kind, kind, q.At[0])
		err = errors.Join(err, e)
		v := slices.Clone(models.Data(p.Out))
		for i, x := range models.Data(q.X) {
			v[i] = float64(cx*x) + float64(co*v[i])
		}
		return v
	}
	return form(schedules.X0), form(schedules.Eps), err
}

// invert takes A+ y to the noise end of the grid by the flow: x_s = a x0 + s eps, predictions at the cleaner node.
func (d STSL) invert(ctx context.Context, p *samplers.Problem) (*tensor.Dense, error) {
	den, err := denoiser("stsl", p)
	if err != nil {
		return nil, err
	}
	gau, ok := den.Process().(schedules.Gaussian)
	a, linear := d.Of.A.(operators.Linear)
	if !ok || !linear || p.Codec != nil {
		return nil, fmt.Errorf("inverse: stsl: start=inversion needs a Gaussian process, a linear operator and a model of pixels: use start=noise")
	}
	x := models.New(append([]int{len(p.Rows)}, p.Shape...)...)
	v, n := models.Data(x), operators.Size(a.In())
	for i := range p.Rows {
		operators.Pinv(a, v[i*n:(i+1)*n], d.Of.Y)
	}
	var pred models.Pred
	last := len(p.Grid) - 1
	for i := last; i > 0; i-- {
		to := p.Grid[i-1]
		if p.Grid[i].Sigma == 0 { // no noise is there to be found
			for k := range v {
				v[k] *= to.Alpha / p.Grid[i].Alpha
			}
			continue
		}
		q := &models.Query{X: x, At: slices.Repeat([]schedules.Node{p.Grid[i]}, len(p.Rows)), Cond: p.Cond, Rows: p.Rows, Meter: p.Meter,
			Step: models.Step{I: 0, N: last, From: p.Grid[i], To: to}}
		if err := den.Predict(ctx, q, &pred); err != nil {
			return nil, fmt.Errorf("inverse: stsl: inverting the measurement at sigma/alpha %.4g: %w", p.Grid[i].Ratio(), err)
		}
		x0, eps, err := dataAndNoise(gau, q, &pred)
		if err != nil {
			return nil, fmt.Errorf("inverse: stsl: inverting the measurement: %w", err)
		}
		for k := range v {
			v[k] = float64(to.Alpha*x0[k]) + float64(to.Sigma*eps[k])
		}
	}
	return x, nil
}

// Begin implements samplers.Sampler.
func (d STSL) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	if d.FromNoise || p.Start != nil || p.First != 0 || len(p.Grid) < 2 || len(p.Rows) == 0 || operators.Size(p.Shape) != operators.Size(d.Of.A.In()) {
		return begin(ctx, p, d, d.Of)
	}
	start, err := d.invert(ctx, p)
	if err != nil {
		return nil, err
	}
	own := *p
	own.Start = start
	return samplers.Begin(ctx, &own, d)
}

// Needs implements samplers.Sampler.
func (d STSL) Needs() samplers.Needs {
	return samplers.Needs{Noise: true, VJP: d.Way == guidance.WayExact}
}

// Label implements samplers.Stepper.
func (STSL) Label() string { return "stsl" }

// Gradient is the way that gradients through the model are taken.
func (d STSL) Gradient() guidance.Way { return d.Way }
