package samplers

import (
	"context"
	"io"
	"math"

	"drift/internal/spec"
	"drift/schedules"
)

// DPMpp2M is DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): the exponential integrator of the
// data prediction with a second-order multistep correction. With m the data prediction at s, h = lambda_t - lambda_s,
// r = h_prev/h and D1 = (m - m_prev)/r:
//
//	midpoint: x_t = (sigma_t/sigma_s) x_s - alpha_t (e^-h - 1) (m + D1/2)
//	heun:     x_t = (sigma_t/sigma_s) x_s - alpha_t (e^-h - 1) m + alpha_t ((e^-h - 1)/h + 1) D1
//
// The first step, and a step onto sigma = 0, are first order. Order 2, one evaluation per step.
type DPMpp2M struct {
	Heun     bool // the second form (dpm-solver's "taylor")
	KeepLast bool // do not lower the last step to first order (lower-order-final=false)
}

func init() {
	register(Info{
		Name: "dpmpp-2m", Order: "2", NFE: "1",
		Summary: "multistep exponential integrator on the data prediction; a good default from 10 steps on",
		Source:  "DPM-Solver++, arXiv 2211.01095, algorithm 2",
		Aliases: []string{"DPM++ 2M", "dpmpp_2m", "dpm++2m", "DPMSolverMultistepScheduler"},
		Options: []Option{
			{"solver", "midpoint", "midpoint or heun"},
			{"lower-order-final", "true", "first order on the last step"},
		},
		New: func(o *spec.Options) (Sampler, error) {
			return DPMpp2M{Heun: o.Choice("solver", "midpoint", "heun") == "heun", KeepLast: !o.Bool("lower-order-final", true)}, nil
		},
	})
}

func (m DPMpp2M) step(ctx context.Context, r *run, s, t schedules.Node) error {
	m0, err := r.predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	h := t.Lambda() - s.Lambda()
	k := -t.Alpha * math.Expm1(-h)
	first := len(r.hist) == 0 || t.Sigma == 0 || (r.stepsLeft() == 1 && !m.KeepLast)
	if first {
		lin(r.y, term{t.Sigma / s.Sigma, r.x}, term{k, m0})
	} else {
		prev := r.hist[0]
		w := h / (s.Lambda() - prev.At.Lambda()) // D1 = w (m0 - m1); 0 after a step from alpha = 0
		if m.Heun {
			w *= t.Alpha * (math.Expm1(-h)/h + 1)
		} else {
			w *= k / 2
		}
		lin(r.y, term{t.Sigma / s.Sigma, r.x}, term{k + w, m0}, term{-w, prev.V})
	}
	r.keep(m0, s, 1)
	return nil
}

// Begin implements Sampler.
func (m DPMpp2M) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Resume implements Resumer.
func (m DPMpp2M) Resume(ctx context.Context, p *Problem, rd io.Reader) (Run, error) {
	return resume(ctx, p, m, rd)
}

// Needs implements Sampler.
func (DPMpp2M) Needs() Needs { return Needs{} }

// NFE implements Counter.
func (DPMpp2M) NFE(n int, _ bool) int { return n }

func (DPMpp2M) label() string { return "dpmpp-2m" }
