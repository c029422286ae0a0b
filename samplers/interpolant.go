package samplers

import (
	"context"
	"fmt"
	"math"
	"strconv"

	"drift/guidance"
	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// Interpolant samples a stochastic interpolant with a diffusion epsilon >= 0 that is chosen at sampling time (Albergo,
// Boffi and Vanden-Eijnden 2023, arXiv 2303.08797, eq. 2.33 and 2.34): along the run, whichever way it goes,
//
//	dx = (b + epsilon s) dt + sqrt(2 epsilon) dW,  b the velocity along the run, s the score, dt > 0
//
// has the interpolant's densities at every time for every epsilon(t). It runs on every Gaussian process (one-sided
// interpolants: flows, VP, VE and any schedules.Interpolant) and on a schedules.Bridge between two densities, from its
// data to its source too.
//
// Epsilon = 0 is the probability-flow ODE. On a Gaussian process with rates a' and s' the classical reverse SDE has
// epsilon = g^2/2 = sigma (alpha sigma' - sigma alpha')/alpha, and Relative counts in its units. There the rule Exact is
// the solution for a data prediction that stays constant over the step: the noise in x is an Ornstein-Uhlenbeck process,
//
//	x_t = alpha_t x0 + sigma_t (kappa eps + sqrt(1 - kappa^2) z),  kappa = exp(-INT epsilon/sigma^2 dt)
//
// and, with Relative, kappa = (sb_t/sb_s)^epsilon: 0 gives euler (DDIM), 1 ancestral sampling (ddim with eta 1), tau^2
// the SA-Solver of order 1, and +Inf flow-stochastic, which draws all noise afresh.
//
// A rising hop of the grid is integrated too, towards noise, not noised: so a run from data to noise and back under
// another condition translates between classes.
type Interpolant struct {
	Epsilon  float64        // 0 = the ODE; +Inf with Relative
	Scale    guidance.Scale // in place of Epsilon; nil = Epsilon
	Relative bool           // in units of the reverse SDE's g^2/2; Gaussian processes only
	Rule     Rule
}

// Rule is how Interpolant makes a step.
type Rule int

const (
	// AutoRule is Exact on a Gaussian process and EulerMaruyama on a bridge.
	AutoRule Rule = iota
	// Exact is exact for a constant data prediction. Order 1 in that; Gaussian processes only.
	Exact
	// EulerMaruyama takes drift and epsilon at the start of the step; the noise of a last step stays in. Weak order 1.
	EulerMaruyama
	// StochasticHeun averages drift and epsilon over both ends, the second after an Euler step with the same noise: weak
	// order 2 (the noise does not depend on x), two evaluations. Onto clean data of a Gaussian process it steps by Exact.
	StochasticHeun
)

var ruleNames = []string{"auto", "exact", "euler", "heun"}

func init() {
	register(Info{
		Name: "interpolant", Order: "1; heun 2", NFE: "1; heun 2", Summary: "stochastic interpolant, with a diffusion chosen at sampling time: ODE, reverse SDE and all between; on bridges, and towards noise too",
		Source: "arXiv 2303.08797, eq. 2.33",
		Options: []Option{{"epsilon", "0", "diffusion: 0 = ODE; a number, inf (with relative), or an expression of t, alpha, sigma (= sigma/alpha), log_snr, step, steps, progress"},
			{"relative", "false", "epsilon in units of g^2/2: 1 is the reverse SDE"}, {"rule", "auto", "exact, euler (Euler-Maruyama) or heun; auto: exact, on a bridge euler"}},
		New: func(o *spec.Options) (Sampler, error) {
			m := Interpolant{Relative: o.Bool("relative", false)}
			rule := o.Choice("rule", ruleNames...)
			for i, name := range ruleNames {
				if name == rule {
					m.Rule = Rule(i)
				}
			}
			text := o.Text("epsilon", "0")
			v, err := strconv.ParseFloat(text, 64)
			if err != nil {
				if m.Scale, err = guidance.ParseScale(text); err != nil {
					return nil, fmt.Errorf("option epsilon=%s: %w", text, err)
				}
				return m, nil
			}
			m.Epsilon = v
			return m, m.check(v)
		},
	})
}

func (m Interpolant) check(epsilon float64) error {
	switch {
	case !(epsilon >= 0):
		return fmt.Errorf("epsilon = %g: want 0 or more", epsilon)
	case math.IsInf(epsilon, 1) && !(m.Relative && m.Rule <= Exact):
		return fmt.Errorf("epsilon = inf needs relative=true and rule exact")
	}
	return nil
}

// at is epsilon at a node of the process, in its own time.
func (m Interpolant) at(r *run, n schedules.Node) (float64, error) {
	e := r.opt("epsilon", m.Epsilon)
	if m.Scale != nil {
		e = m.Scale(n, r.query.Step)
	}
	if err := m.check(e); err != nil {
		return 0, fmt.Errorf("at t=%g: %w", n.T, err)
	}
	if m.Relative && e > 0 {
		da, ds := r.gau.Rates(n.T)
		e *= math.Abs(n.Sigma * (ds - n.Ratio()*da))
	}
	return e, nil
}

// kappa is the share of the predicted noise that a step from s to t keeps.
func (m Interpolant) kappa(r *run, s, t schedules.Node) (float64, error) {
	constant := m.Scale == nil
	e := r.opt("epsilon", m.Epsilon)
	lo, hi := s.Ratio(), t.Ratio()
	if lo > hi {
		lo, hi = hi, lo
	}
	switch {
	case constant && e == 0:
		return 1, nil
	case constant && m.Relative:
		if err := m.check(e); err != nil {
			return 0, err
		}
		return math.Pow(lo/hi, e), nil
	}
	// INT epsilon/sigma^2 dt over the step, by Gauss and Legendre: in lambda, where epsilon/sigma^2 dt = epsilon/(g^2/2)
	// dlambda, or in time where a node has no signal.
	sum := 0.0
	if math.IsInf(hi, 1) || lo == 0 {
		for i, x := range legendreX {
			at := r.gau.At(s.T + (1+x)/2*(t.T-s.T))
			v, err := m.at(r, at)
			if err != nil {
				return 0, err
			}
			sum += legendreW[i] / 2 * math.Abs(t.T-s.T) * v / (at.Sigma * at.Sigma)
		}
		return math.Exp(-sum), nil
	}
	from, to := math.Log(lo), math.Log(hi)
	for i, x := range legendreX {
		at := r.gau.AtRatio(math.Exp(from + (1+x)/2*(to-from)))
		v, err := m.at(r, at)
		if err != nil {
			return 0, err
		}
		da, ds := r.gau.Rates(at.T)
		sum += legendreW[i] / 2 * (to - from) * v / math.Abs(at.Sigma*(ds-at.Ratio()*da))
	}
	return math.Exp(-sum), nil
}

// The nodes and weights of Gauss and Legendre's rule with ten points on [-1, 1].
var (
	legendreX = [...]float64{-0.9739065285171717, -0.8650633666889845, -0.6794095682990244, -0.4333953941292472, -0.1488743389816312,
		0.1488743389816312, 0.4333953941292472, 0.6794095682990244, 0.8650633666889845, 0.9739065285171717}
	legendreW = [...]float64{0.0666713443086881, 0.1494513491505806, 0.2190863625159820, 0.2692667193099964, 0.2955242247147529,
		0.2955242247147529, 0.2692667193099964, 0.2190863625159820, 0.1494513491505806, 0.0666713443086881}
)

func (m Interpolant) step(ctx context.Context, r *run, s, t schedules.Node) error {
	switch rule := m.rule(r); {
	case rule == Exact, rule == StochasticHeun && r.gau != nil && t.Sigma == 0:
		return m.exact(ctx, r, s, t)
	default:
		return m.walk(ctx, r, s, t, rule == StochasticHeun)
	}
}

func (m Interpolant) rule(r *run) Rule {
	switch {
	case m.Rule != AutoRule:
		return m.Rule
	case r.gau == nil:
		return EulerMaruyama
	}
	return Exact
}

func (m Interpolant) exact(ctx context.Context, r *run, s, t schedules.Node) error {
	x0, err := r.predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	kappa, err := m.kappa(r, s, t)
	if err != nil {
		return err
	}
	if err := r.finishFirst(t, x0, t.Sigma*kappa); err != nil {
		return err
	}
	r.addNoise(t.Sigma*math.Sqrt((1-kappa)*(1+kappa)), DrawStep, s.Ratio(), t.Ratio())
	return nil
}

// walk is Euler's and Heun's step: x_t = x_s + h drift + sqrt(2 h epsilon) z.
func (m Interpolant) walk(ctx context.Context, r *run, s, t schedules.Node, heun bool) error {
	h := math.Abs(t.T - s.T)
	if err := r.evaluate(ctx); err != nil {
		return err
	}
	e, err := m.at(r, s)
	if err != nil {
		return err
	}
	drift, err := m.drift(r, &r.cur, e, t.T-s.T)
	if err != nil {
		return err
	}
	var z []float64
	if heun {
		et, err := m.at(r, t)
		if err != nil {
			return err
		}
		mean := (e + et) / 2
		if mean > 0 {
			z = r.normal(nil, DrawStep, s.Ratio(), t.Ratio())
		}
		lin(r.u, term{1, r.x}, term{h, drift}, term{math.Sqrt(2 * h * mean), z})
		if err := r.ask(ctx, &r.stage, r.uT, r.u, t, 1); err != nil {
			return err
		}
		late, err := m.drift(r, &r.stage, et, t.T-s.T)
		if err != nil {
			return err
		}
		e = mean
		lin(drift, term{0.5, drift}, term{0.5, late})
	}
	lin(r.y, term{1, r.x}, term{h, drift})
	if z == nil {
		r.addNoise(math.Sqrt(2*h*e), DrawStep, s.Ratio(), t.Ratio())
		return nil
	}
	r.std = math.Sqrt(2 * h * e)
	lin(r.y, term{1, r.y}, term{r.std, z})
	return nil
}

// drift is b + epsilon s along a run whose time changes in the direction of sign.
func (m Interpolant) drift(r *run, a *answer, epsilon, sign float64) ([]float64, error) {
	r.recent = a
	b, err := r.convert(schedules.Velocity)
	if err != nil {
		return nil, err
	}
	sign = math.Copysign(1, sign)
	if epsilon == 0 {
		lin(b, term{sign, b})
		return b, nil
	}
	s, err := r.convert(schedules.Score)
	if err != nil {
		return nil, err
	}
	lin(b, term{sign, b}, term{epsilon, s})
	return b, nil
}

// onBridge writes a field at (x, n) of a bridge into dst.
func onBridge(b schedules.Bridge, dst, x []float64, p *models.Pred, kind schedules.Kind, n schedules.Node) error {
	if p.Kind == kind {
		copy(dst, models.Data(p.Out))
		return nil
	}
	if p.Extra == nil {
		return fmt.Errorf("the model gives %v alone, and %v is needed", p.Kind, kind)
	}
	cx, c1, c2, err := b.Convert(p.Kind, p.ExtraKind, kind, n.T)
	if err != nil {
		return err
	}
	lin(dst, term{cx, x}, term{c1, models.Data(p.Out)}, term{c2, models.Data(p.Extra)})
	return nil
}

// bridges marks the methods that run on a schedules.Bridge.
func (Interpolant) bridges() {}

// reverses marks the methods that integrate rising hops.
func (Interpolant) reverses() {}

func (Interpolant) settable() []string { return []string{"epsilon"} }

// Cost implements Counter.
func (m Interpolant) Cost(g schedules.Grid, i int) int {
	if m.Rule == StochasticHeun && g[i+1].Sigma > 0 {
		return 2
	}
	return 1
}

// Begin implements Sampler.
func (m Interpolant) Begin(ctx context.Context, p *Problem) (Run, error) {
	if err := m.check(m.Epsilon); err != nil && m.Scale == nil {
		return nil, fmt.Errorf("samplers: interpolant: %w", err)
	}
	b, err := begin(ctx, p, m)
	if err != nil {
		return nil, err
	}
	if b.(*run).gau == nil && (m.Relative || m.Rule == Exact) {
		return nil, fmt.Errorf("samplers: interpolant: relative and rule exact are for Gaussian processes, not for %s", b.(*run).bridge.Name())
	}
	return b, nil
}

// Needs implements Sampler.
func (m Interpolant) Needs() Needs { return Needs{Noise: m.Epsilon > 0 || m.Scale != nil} }

func (Interpolant) label() string { return "interpolant" }
