package samplers

import (
	"context"
	"errors"
	"math"

	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// DDPM is ancestral sampling of the posterior q(x_t | x_s, x0) (Ho et al. 2020, arXiv 2006.11239, eq. 6-7): with the
// variance b = sigma_s^2 - (alpha_s/alpha_t)^2 sigma_t^2 of the forward step,
//
//	x_t = (alpha_t b/sigma_s^2) x0 + (alpha_s/alpha_t)(sigma_t^2/sigma_s^2) x_s + sqrt(var) z
//	fixed-small: var = b sigma_t^2/sigma_s^2 (floored at 1e-20), fixed-large: var = b
//	learned: var is a second output of the network; learned-range: it interpolates log var between small and large
//
// (Nichol and Dhariwal, arXiv 2102.09672, eq. 15). No noise is added on the last step, except that a discrete process adds
// it to every step that starts above time 0, as diffusers does (with a trailing grid that is the last step too). Order 1.
type DDPM struct{ Variance Variance }

// Variance is the choice of DDPM's variance.
type Variance int

// The variances.
const (
	FixedSmall Variance = iota
	FixedLarge
	Learned
	LearnedRange
)

func init() {
	register(Info{
		Name: "ddpm", Order: "1", NFE: "1", Summary: "ancestral sampling of the DDPM posterior; for many steps", Source: "DDPM, arXiv 2006.11239, eq. 6",
		Aliases: []string{"DDPMScheduler"},
		Options: []Option{{"variance", "fixed_small", "fixed_small, fixed_small_log (the same), fixed_large, learned, learned_range"}},
		New: func(o *spec.Options) (Sampler, error) {
			switch o.Choice("variance", "fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range") {
			case "fixed_large":
				return DDPM{FixedLarge}, nil
			case "learned":
				return DDPM{Learned}, nil
			case "learned_range":
				return DDPM{LearnedRange}, nil
			}
			return DDPM{FixedSmall}, nil
		},
	})
}

func (m DDPM) step(ctx context.Context, r *run, s, t schedules.Node) error {
	x0, err := r.predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	q := t.Ratio() / s.Ratio()
	b := s.Sigma * s.Sigma * (1 - q) * (1 + q)
	back := 0.0 // (alpha_s/alpha_t) (sigma_t/sigma_s)^2, written so that alpha_s = 0 is no trouble
	if t.Sigma > 0 {
		back = q * t.Sigma / s.Sigma
	}
	lin(r.y, term{t.Alpha * b / (s.Sigma * s.Sigma), x0}, term{back, r.x})
	_, discrete := r.gau.(interface{ Len() int })
	if (discrete && s.T < 0.5) || (!discrete && r.stepsLeft() == 1) {
		return nil
	}
	small := max(b*sq(t.Sigma/s.Sigma), 1e-20)
	switch m.Variance {
	case FixedSmall, FixedLarge:
		if m.Variance == FixedLarge {
			small = b
		}
		r.addNoise(math.Sqrt(small), DrawStep, s.Ratio(), t.Ratio())
	default:
		if r.cur.pred.Extra == nil {
			return errors.New("the model gives no variance; use variance=fixed_small or fixed_large")
		}
		z := r.normal(nil, DrawStep, s.Ratio(), t.Ratio())
		for j, v := range models.Data(r.cur.pred.Extra) {
			if m.Variance == LearnedRange {
				f := (v + 1) / 2
				v = math.Exp(f*math.Log(b) + (1-f)*math.Log(small))
			}
			r.y[j] += math.Sqrt(v) * z[j]
		}
	}
	return nil
}

// Begin implements Sampler.
func (m DDPM) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (DDPM) Needs() Needs { return Needs{Noise: true} }

func (DDPM) label() string { return "ddpm" }
