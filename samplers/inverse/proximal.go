package inverse

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/optimize"

	"drift/internal/operators"
	"drift/internal/spec"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// mostProx bounds the iterations of a nonlinear data step.
const mostProx = 30

// prox writes argmin_z |y - A(z)|^2 + rho |z - x|^2 into z: with the singular values of a linear operator
// z = x + V S/(S^2 + rho) U^T (y - A x), for rho = 0 the nearest z that fits best; else by L-BFGS from x.
func prox(z []float64, m operators.Measurement, x []float64, rho float64) error {
	if a, ok := m.A.(operators.Linear); ok {
		operators.Filter(a, func(s float64) float64 { return s / (s*s + rho) }, z, m.Residual(x))
		for i, v := range x {
			z[i] += v
		}
		return nil
	}
	u := make([]float64, len(x))
	misfit := func(z, grad []float64) float64 {
		r := m.Residual(z)
		f := sq(norm(r))
		if grad != nil {
			m.A.VJP(u, z, r)
		}
		for i := range z {
			d := z[i] - x[i]
			f += float64(rho * d * d)
			if grad != nil {
				grad[i] = 2*float64(rho*d) - 2*u[i]
			}
		}
		return f
	}
	res, err := optimize.Minimize(optimize.Problem{
		Func: func(z []float64) float64 { return misfit(z, nil) },
		Grad: func(grad, z []float64) { misfit(z, grad) },
	}, x, &optimize.Settings{MajorIterations: mostProx, GradientThreshold: 1e-8, Concurrent: 0}, &optimize.LBFGS{})
	if res == nil {
		return fmt.Errorf("the data step failed: %w", err)
	}
	copy(z, res.X) // a line search that finds no way down has ended at the best point it knows
	return nil
}

// DiffPIR is plug-and-play restoration (Zhu et al. 2023, arXiv 2305.08995, algorithm 1): a proximal step towards the
// measurement on the predicted data,
//
//	x0' = argmin_z |y - A(z)|^2 + p |z - x0|^2,  p = Lambda s_y^2/rho^2
//	eps' = (x - a x0')/s,  x_u = b x0' + r (sqrt(1 - Zeta) eps' + sqrt(Zeta) n)
//
// A is any operator; one that is not linear takes an inner minimisation (L-BFGS, at most 30 iterations). No gradients
// through the model.
type DiffPIR struct {
	Of     operators.Measurement
	Lambda float64
	Zeta   float64
}

func init() {
	Register(Info{Name: "diffpir", NFE: "1", Summary: "plug-and-play: a proximal step towards the measurement on the predicted data; any operator", Source: "arXiv 2305.08995, algorithm 1",
		Options: []Option{{"lambda", "7", "weight of the prediction against the measurement"}, {"zeta", "0.3", "share of fresh noise"}},
		New: func(o *spec.Options) (Method, error) {
			d := DiffPIR{Lambda: o.FloatIn("lambda", 7, 0, math.MaxFloat64), Zeta: o.FloatIn("zeta", 0.3, 0, 1)}
			return func(m operators.Measurement) (samplers.Sampler, error) {
				d := d
				d.Of = m
				return d, nil
			}, nil
		}})
}

// Step implements samplers.Stepper.
func (d DiffPIR) Step(ctx context.Context, m *samplers.Move) error {
	x0, err := m.Predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	rho := d.Lambda * sq(d.Of.Sigma/m.From.Ratio())
	z, n := m.Temp(), len(m.X)/m.Rows
	for i := range m.Rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := prox(z[i*n:(i+1)*n], d.Of, x0[i*n:(i+1)*n], rho); err != nil {
			return err
		}
	}
	noise := m.Noise(samplers.DrawStep)
	down, up := m.To.Sigma*math.Sqrt(1-d.Zeta), m.To.Sigma*math.Sqrt(d.Zeta)
	for i, x := range m.X {
		eps := (x - float64(m.From.Alpha*z[i])) / m.From.Sigma
		m.Y[i] = float64(m.To.Alpha*z[i]) + float64(down*eps) + float64(up*noise[i])
	}
	return nil
}

// Begin implements samplers.Sampler.
func (d DiffPIR) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	return begin(ctx, p, d, d.Of)
}

// Needs implements samplers.Sampler.
func (DiffPIR) Needs() samplers.Needs { return samplers.Needs{Noise: true} }

// Label implements samplers.Stepper.
func (DiffPIR) Label() string { return "diffpir" }

// ReSample makes steps of DDIM, and after some of them hard data consistency with stochastic resampling (after Song et
// al. 2023, arXiv 2307.08123, algorithm 1 and eq. 12). On those steps, x'_u being DDIM's,
//
//	x0' = argmin_z |y - A(z)|^2 + p |z - x0|^2,  p = Lambda s_y^2/rho^2
//	x_u ~ N((v b x0' + r^2 x'_u)/(v + r^2), v r^2/(v + r^2)),  v = Gamma r^2/a^2 (1 - a^2/b^2)
//
// They are every Every-th step counted from the end, the last one included, once From of the run is over. In a
// latent model (Problem.Codec) x0 is decoded, the argmin is taken in pixels, and its result is encoded again, which is
// the paper's optimisation in pixels: no gradient of the decoder is needed.
type ReSample struct {
	Of     operators.Measurement
	Gamma  float64
	Lambda float64
	Every  int     // 0 = 1
	From   float64 // part of the run, 0 to 1
}

func init() {
	Register(Info{Name: "resample", NFE: "1", Summary: "hard data consistency every few steps, resampled; latent models decode and encode for it; any operator", Source: "after arXiv 2307.08123, algorithm 1",
		Options: []Option{{"gamma", "40", "trust in the step against the data"}, {"lambda", "1", "weight of the prediction in the data step"}, {"every", "5", "steps"}, {"from", "0.3", "part of the run without"}},
		New: func(o *spec.Options) (Method, error) {
			d := ReSample{Gamma: o.FloatIn("gamma", 40, 0, math.MaxFloat64), Lambda: o.FloatIn("lambda", 1, 0, math.MaxFloat64), Every: o.Int("every", 5, 1, 1<<20), From: o.FloatIn("from", 0.3, 0, 1)}
			return func(m operators.Measurement) (samplers.Sampler, error) {
				d := d
				d.Of = m
				return d, nil
			}, nil
		}})
}

// Step implements samplers.Stepper.
func (d ReSample) Step(ctx context.Context, m *samplers.Move) error {
	noise := m.Noise(samplers.DrawStep)
	if err := ddim(ctx, m, 0, noise); err != nil {
		return err
	}
	i, n := m.Step()
	if (n-1-i)%max(d.Every, 1) != 0 || float64(i) < d.From*float64(n) {
		return nil
	}
	x0, err := m.Predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	z, err := d.consistent(ctx, m, x0)
	if err != nil {
		return err
	}
	a, b, r := m.From.Alpha, m.To.Alpha, m.To.Sigma
	if r == 0 {
		for i := range m.Y {
			m.Y[i] = b * z[i]
		}
		return nil
	}
	q := m.To.Ratio() / m.From.Ratio()
	v := d.Gamma * sq(r/a) * (1 - q) * (1 + q)
	std := math.Sqrt(v * r * r / (v + r*r))
	for i := range m.Y {
		m.Y[i] = (float64(v*b*z[i])+float64(r*r*m.Y[i]))/(v+r*r) + float64(std*noise[i])
	}
	return nil
}

// consistent gives the data nearest to x0 that fit the measurement.
func (d ReSample) consistent(ctx context.Context, m *samplers.Move, x0 []float64) ([]float64, error) {
	rho := d.Lambda * sq(d.Of.Sigma/m.From.Ratio())
	shape := append([]int{m.Rows}, m.Shape()...)
	x := models.Wrap(x0, shape...)
	codec := m.Codec()
	if codec != nil {
		var err error
		if x, err = codec.Decode(ctx, x); err != nil {
			return nil, fmt.Errorf("decoding: %w", err)
		}
	}
	in := models.Data(x)
	z := make([]float64, len(in))
	n := len(in) / m.Rows
	for i := range m.Rows {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := prox(z[i*n:(i+1)*n], d.Of, in[i*n:(i+1)*n], rho); err != nil {
			return nil, err
		}
	}
	if codec == nil {
		return z, nil
	}
	enc, err := codec.Encode(ctx, models.Wrap(z, x.Shape()...))
	if err != nil {
		return nil, fmt.Errorf("encoding: %w", err)
	}
	return models.Data(enc), nil
}

// Begin implements samplers.Sampler.
func (d ReSample) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	return begin(ctx, p, d, d.Of)
}

// Needs implements samplers.Sampler.
func (ReSample) Needs() samplers.Needs { return samplers.Needs{Noise: true} }

// Label implements samplers.Stepper.
func (ReSample) Label() string { return "resample" }
