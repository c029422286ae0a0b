package samplers

import (
	"context"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// LCM is multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1; latent consistency models, Luo
// et al., arXiv 2310.04378): the model's data estimate, with the boundary scalings
//
//	f = c_skip x + c_out x0,  c_skip = sd^2/((k t)^2 + sd^2),  c_out = k t/sqrt((k t)^2 + sd^2),  sd = 0.5
//
// in the process's own time t (k = Scaling), is noised to the next node: x_t = alpha_t f + sigma_t z, and the last step
// returns f. Scaling < 0 leaves the boundary scalings out (flow-stochastic: x_t = (1-t) x0 + t z).
type LCM struct{ Scaling float64 } // 0 = 10

func init() {
	register(Info{
		Name: "lcm", Order: "-", NFE: "1", Summary: "consistency sampling: data estimate, then fresh noise", Source: "arXiv 2303.01469, algorithm 1; arXiv 2310.04378",
		Aliases: []string{"LCMScheduler"}, Options: []Option{{"timestep-scaling", "10", "of the boundary condition"}},
		New: func(o *spec.Options) (Sampler, error) {
			return LCM{Scaling: o.FloatIn("timestep-scaling", 10, 1e-9, math.MaxFloat64)}, nil
		},
	})
	register(Info{
		Name: "flow-stochastic", Order: "-", NFE: "1", Summary: "data estimate, then fresh noise at the next level, without boundary scalings", Source: "diffusers FlowMatchEulerDiscreteScheduler, stochastic_sampling",
		New: func(*spec.Options) (Sampler, error) { return LCM{Scaling: -1}, nil },
	})
}

func (m LCM) step(ctx context.Context, r *run, s, t schedules.Node) error {
	x0, err := r.predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	skip, out := 0.0, 1.0
	if m.Scaling >= 0 {
		k := m.Scaling
		if k == 0 {
			k = 10
		}
		const sd = 0.5
		v := k * s.T
		skip, out = sd*sd/(v*v+sd*sd), v/math.Sqrt(v*v+sd*sd)
	}
	if r.stepsLeft() == 1 && m.Scaling >= 0 {
		lin(r.y, term{skip, r.x}, term{out, x0})
		return nil
	}
	lin(r.y, term{t.Alpha * skip, r.x}, term{t.Alpha * out, x0})
	r.addNoise(t.Sigma, DrawStep, s.Ratio(), t.Ratio())
	return nil
}

// Begin implements Sampler.
func (m LCM) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (LCM) Needs() Needs { return Needs{Noise: true} }

func (m LCM) label() string {
	if m.Scaling < 0 {
		return "flow-stochastic"
	}
	return "lcm"
}

// TCD is trajectory consistency sampling (Zheng et al. 2024, arXiv 2402.19159, algorithm 4): the prediction is moved to
// the inner time s' = (1 - eta) t, rounded down on a discrete process, and noised from there to t:
//
//	x_{s'} = alpha_{s'} x0 + sigma_{s'} eps
//	x_t = (alpha_t/alpha_{s'}) x_{s'} + sqrt(sigma_t^2 - (alpha_t sigma_{s'}/alpha_{s'})^2) z
//
// eta is the paper's gamma; 0 is DDIM. No noise on the last step.
type TCD struct{ Eta float64 }

func init() {
	register(Info{
		Name: "tcd", Order: "-", NFE: "1", Summary: "trajectory consistency sampling with strategic stochasticity eta", Source: "arXiv 2402.19159, algorithm 4",
		Aliases: []string{"TCDScheduler"}, Options: []Option{{"eta", "0.3", "the paper's gamma, 0 to 1"}},
		New: func(o *spec.Options) (Sampler, error) { return TCD{Eta: o.FloatIn("eta", 0.3, 0, 1)}, nil },
	})
}

func (m TCD) step(ctx context.Context, r *run, s, t schedules.Node) error {
	x0, err := r.predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	eta := r.opt("eta", m.Eta)
	inner := t
	if eta > 0 && t.Sigma > 0 {
		at := (1 - eta) * t.T
		if _, discrete := r.gau.(interface{ Len() int }); discrete {
			at = math.Floor(at)
		}
		inner = r.gau.At(at)
	}
	if r.stepsLeft() == 1 || inner == t {
		return r.finishFirst(inner, x0, inner.Sigma)
	}
	c := t.Alpha / inner.Alpha
	up := schedules.Node{Alpha: t.Alpha} // alpha_t/alpha_s' x_s' has the data coefficient alpha_t
	if err := r.finishFirst(up, x0, c*inner.Sigma); err != nil {
		return err
	}
	r.addNoise(math.Sqrt(max(0, t.Sigma*t.Sigma-sq(c*inner.Sigma))), DrawStep, s.Ratio(), t.Ratio())
	return nil
}

func (TCD) settable() []string { return []string{"eta"} }

// Begin implements Sampler.
func (m TCD) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (m TCD) Needs() Needs { return Needs{Noise: m.Eta > 0} }

func (TCD) label() string { return "tcd" }
