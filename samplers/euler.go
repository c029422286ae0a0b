package samplers

import (
	"context"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// Churn is EDM's stochasticity (Karras et al. 2022, arXiv 2206.00364, algorithm 2): before a step at noise level sb in
// [TMin, TMax] of a run of N steps, noise is added to raise the level to (1 + gamma) sb, gamma = min(Churn/N, sqrt 2 - 1).
type Churn struct {
	Churn      float64
	TMin, TMax float64 // TMax 0 = no limit
	SNoise     float64 // multiplies the noise; 0 = 1
}

func churnOptions() []Option {
	return []Option{{"churn", "0", "EDM's S_churn"}, {"s-tmin", "0", "lowest sigma that is churned"}, {"s-tmax", "inf", "highest"}, {"s-noise", "1", "multiplies the noise"}}
}

func readChurn(o *spec.Options) Churn {
	return Churn{Churn: o.FloatIn("churn", 0, 0, math.MaxFloat64), TMin: o.FloatIn("s-tmin", 0, 0, math.MaxFloat64),
		TMax: o.FloatIn("s-tmax", 0, 0, math.MaxFloat64), SNoise: o.FloatIn("s-noise", 1, 0, math.MaxFloat64)}
}

// raise puts the churned state into r.u and returns its node, or reports that this step is not churned.
func (c Churn) raise(r *run, s schedules.Node) (schedules.Node, bool) {
	sb := s.Ratio()
	gamma := min(c.Churn/float64(len(r.grid)-1), math.Sqrt2-1)
	if gamma <= 0 || sb < c.TMin || (c.TMax > 0 && sb > c.TMax) || math.IsInf(sb, 1) {
		return s, false
	}
	up := sb * (1 + gamma)
	n := r.gau.AtRatio(up)
	z := r.normal(nil, DrawForward, sb, up)
	lin(r.u, term{n.Alpha / s.Alpha, r.x}, term{n.Alpha * orOne(c.SNoise) * math.Sqrt(up*up-sb*sb), z})
	return n, true
}

// start is the first call of a step with churn: the state the step starts from, its node, and the prediction there.
func (c Churn) start(ctx context.Context, r *run, s schedules.Node, kind schedules.Kind) (x []float64, n schedules.Node, out []float64, err error) {
	n, churned := c.raise(r, s)
	if !churned {
		out, err = r.predict(ctx, kind)
		return r.x, s, out, err
	}
	x = r.temp()
	copy(x, r.u)
	if err := r.ask(ctx, &r.cur, r.uT, x, n, 0); err != nil {
		return nil, n, nil, err
	}
	r.recent = &r.cur
	out, err = r.convert(kind)
	return x, n, out, err
}

// Euler is the first-order method, x_t = alpha_t x0 + sigma_t eps: DDIM with eta = 0, Euler on d xb/d sb = eps, Euler on
// a flow's velocity, and DPM-Solver-1, which are all the same. On a schedules.Field it is Euler's rule in time. With Churn it is k-diffusion's sample_euler.
type Euler struct{ Churn Churn }

func init() {
	register(Info{
		Name: "euler", Order: "1", NFE: "1", Summary: "first order; the robust reference", Source: "DDIM, arXiv 2010.02502; EDM, arXiv 2206.00364",
		Aliases: []string{"EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "k_euler", "dpm-solver-1", "dpmpp-1"},
		Options: churnOptions(),
		New:     func(o *spec.Options) (Sampler, error) { return Euler{readChurn(o)}, nil },
	})
}

func (m Euler) step(ctx context.Context, r *run, s, t schedules.Node) error {
	if r.gau == nil {
		return r.firstOrder(ctx, t)
	}
	_, _, x0, err := m.Churn.start(ctx, r, s, schedules.X0)
	if err != nil {
		return err
	}
	return r.finishFirst(t, x0, t.Sigma)
}

func (Euler) renoises() bool { return true }

func (m Euler) byField() bool { return m.Churn.Churn == 0 }

// finishFirst writes alpha_t x0 + c eps into y, eps being the noise to put back.
func (r *run) finishFirst(t schedules.Node, x0 []float64, c float64) error {
	if c == 0 {
		lin(r.y, term{t.Alpha, x0})
		return nil
	}
	e, err := r.renoise()
	if err != nil {
		return err
	}
	lin(r.y, term{t.Alpha, x0}, term{c, e})
	return nil
}

// firstOrder writes x_t = alpha_t x0 + sigma_t eps, the step that is exact for a constant prediction and finite at both
// ends (alpha_s = 0 and sigma_t = 0); on a schedules.Field or a bridge x_t = x_s + (t - s) dx/dt.
func (r *run) firstOrder(ctx context.Context, t schedules.Node) error {
	if r.gau == nil {
		u, err := r.predict(ctx, schedules.Velocity)
		if err != nil {
			return err
		}
		lin(r.y, term{1, r.x}, term{t.T - r.grid[r.i].T, u})
		return nil
	}
	x0, err := r.predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	return r.finishFirst(t, x0, t.Sigma)
}

// Begin implements Sampler.
func (m Euler) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (m Euler) Needs() Needs { return Needs{Noise: m.Churn.Churn > 0} }

func (Euler) label() string { return "euler" }

// DDIM is the non-Markovian sampler of Song et al. 2020 (arXiv 2010.02502, eq. 12 and 16), which for eta = 1 is ancestral
// sampling:
//
//	q = eta sigma_t sqrt(1 - sb_t^2/sb_s^2)
//	x_t = alpha_t x0 + sqrt(sigma_t^2 - q^2) eps + q z
//
// In this form it holds for every Gaussian process; with s-noise it is k-diffusion's sample_euler_ancestral. Order 1.
type DDIM struct {
	Eta    float64
	SNoise float64 // multiplies the noise; 0 = 1
}

func init() {
	register(Info{
		Name: "ddim", Order: "1", NFE: "1", Summary: "first order, with eta times the ancestral noise", Source: "DDIM, arXiv 2010.02502, eq. 12",
		Aliases: []string{"DDIMScheduler"}, Options: []Option{{"eta", "0", "0 = deterministic (euler), 1 = ancestral"}},
		New: func(o *spec.Options) (Sampler, error) {
			return DDIM{Eta: o.FloatIn("eta", 0, 0, math.MaxFloat64)}, nil
		},
	})
	register(Info{
		Name: "euler-ancestral", Order: "1", NFE: "1", Summary: "ancestral sampling: first order with fresh noise at every step", Source: "k-diffusion sample_euler_ancestral; DDIM with eta = 1",
		Aliases: []string{"Euler a", "euler_a", "EulerAncestralDiscreteScheduler", "k_euler_a"},
		Options: []Option{{"eta", "1", ""}, {"s-noise", "1", "multiplies the noise"}},
		New: func(o *spec.Options) (Sampler, error) {
			return DDIM{Eta: o.FloatIn("eta", 1, 0, math.MaxFloat64), SNoise: o.FloatIn("s-noise", 1, 0, math.MaxFloat64)}, nil
		},
	})
}

// ancestral splits the noise of a step to t: what is put back of the predicted noise (down) and what is drawn afresh
// (up), down^2 + up^2 = sigma_t^2.
func ancestral(s, t schedules.Node, eta float64) (down, up float64) {
	r := t.Ratio() / s.Ratio()
	up = t.Sigma * min(1, eta*math.Sqrt((1-r)*(1+r)))
	return math.Sqrt((t.Sigma - up) * (t.Sigma + up)), up
}

func (m DDIM) step(ctx context.Context, r *run, s, t schedules.Node) error {
	x0, err := r.predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	down, up := ancestral(s, t, r.opt("eta", m.Eta))
	if err := r.finishFirst(t, x0, down); err != nil {
		return err
	}
	r.addNoise(up*orOne(m.SNoise), DrawStep, s.Ratio(), t.Ratio())
	return nil
}

func orOne(v float64) float64 {
	if v == 0 {
		return 1
	}
	return v
}

func (DDIM) renoises() bool { return true }

func (DDIM) settable() []string { return []string{"eta"} }

// Begin implements Sampler.
func (m DDIM) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (m DDIM) Needs() Needs { return Needs{Noise: m.Eta > 0} }

func (DDIM) label() string { return "ddim" }
