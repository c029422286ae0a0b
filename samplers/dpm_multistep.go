package samplers

import (
	"context"
	"math"

	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// DPMMultistep is the family DPM-Solver-kM (noise form), DPM-Solver++(kM) (data form) and their SDE variants, k = 2
// or 3. With q the prediction at s, the last gaps r0 h and r1 h in lambda, and
//
//	D10 = (q - q_1)/r0,  D11 = (q_1 - q_2)/r1
//	D1  = D10                              (2M)
//	D1  = D10 + r0/(r0+r1) (D10 - D11),  D2 = kappa (D10 - D11)/(r0+r1)   (3M)
//
// a step of the ODE is (see expint.go for the two forms)
//
//	x_t = ratio x_s - a [ e1 q + w2 D1 + w3 D2 ],  e1 = z phi_1(z), w2 = z phi_2(z), w3 = z phi_3(z)
//
// where 2M's midpoint variant puts e1/2 for w2. The SDE variants of the data form use z = -(1+eta) h, multiply ratio
// by e^(-eta h) and add sigma_t sqrt(1 - e^(-2 eta h)) of noise; the noise form's SDE (eta = 1) doubles the bracket and
// adds sigma_t sqrt(e^2h - 1).
//
// Sources: arXiv 2206.00927, arXiv 2211.01095 (algorithm 2 and appendix), k-diffusion sample_dpmpp_2m_sde and
// sample_dpmpp_3m_sde. All references use kappa = 1, which halves the second derivative and leaves 3M at order 2; kappa
// = 2 (the default) is the consistent weight, order 3, and equals UniP-3. Variant diffusers of 3M-SDE reproduces that
// library's sign of w3, which drops the method to order 1: parity only.
//
// The first step, a step onto sigma = 0 and a lowered last step are first order. One evaluation per step.
type DPMMultistep struct {
	Order     int            // 2 or 3; 0 = 2
	Kind      schedules.Kind // X0 or Eps: the form
	Heun      bool           // 2M: w2 as it stands (dpm-solver's "taylor") instead of e1/2
	Kappa     float64        // 3M; 0 = 2
	SDE       bool
	Eta       float64 // of the SDE: 1 is the reverse SDE, 0 the ODE
	SNoise    float64 // multiplies the noise; 0 = 1
	Diffusers bool    // 3M-SDE as diffusers writes it
	EulerLast bool    // the last step is first order (diffusers' euler_at_final)
	Lower     Lowering

	momentum momentum // of hb:base=dpmpp-2m
}

func init() {
	for _, row := range []struct {
		name, summary string
		m             DPMMultistep
		aliases       []string
	}{
		{"dpmpp-2m", "second-order multistep on the data prediction; a good default from 10 steps on", DPMMultistep{Order: 2, Kind: schedules.X0},
			[]string{"DPM++ 2M", "dpm++2m", "DPMSolverMultistepScheduler", "DPMSolverMultistep"}},
		{"dpmpp-3m", "third-order multistep on the data prediction", DPMMultistep{Order: 3, Kind: schedules.X0}, []string{"DPM++ 3M"}},
		{"dpm-solver-2m", "second-order multistep on the noise prediction", DPMMultistep{Order: 2, Kind: schedules.Eps}, nil},
		{"dpm-solver-3m", "third-order multistep on the noise prediction", DPMMultistep{Order: 3, Kind: schedules.Eps}, nil},
		{"dpmpp-2m-sde", "second-order multistep of the reverse SDE, data prediction", DPMMultistep{Order: 2, Kind: schedules.X0, SDE: true, Eta: 1},
			[]string{"DPM++ 2M SDE", "dpm++2m_sde", "dpmpp_2m_sde_gpu", "DPM++ 2M SDE Heun:solver=heun"}},
		{"dpmpp-3m-sde", "third-order multistep of the reverse SDE, data prediction", DPMMultistep{Order: 3, Kind: schedules.X0, SDE: true, Eta: 1},
			[]string{"DPM++ 3M SDE", "dpmpp_3m_sde_gpu"}},
		{"dpm-solver-2m-sde", "second-order multistep of the reverse SDE, noise prediction", DPMMultistep{Order: 2, Kind: schedules.Eps, SDE: true, Eta: 1}, nil},
	} {
		options := []Option{
			{"lower-order-final", map[bool]string{false: "true", true: "false"}[row.m.SDE], "lower orders at the end of grids with fewer than lower-below steps"},
			{"lower-below", "15", "as diffusers; dpm-solver uses 10"},
			{"euler-at-final", "false", "first order on the last step of any grid"},
		}
		if row.m.Order == 2 || row.m.SDE {
			options = append(options, Option{"solver", "midpoint", "midpoint or heun: weight of the first difference (3m-sde: of its second step, default heun)"})
		}
		if row.m.Order == 3 {
			options = append(options, Option{"kappa", "2", "weight of the second difference; 1 = the references' (order 2)"})
		}
		if row.m.SDE && row.m.Kind == schedules.X0 {
			options = append(options, Option{"eta", "1", "0 = the ODE"}, Option{"s-noise", "1", "multiplies the noise"})
		}
		if row.m.SDE && row.m.Order == 3 {
			options = append(options, Option{"variant", "exact", "exact, or diffusers: that library's sign (order 1), parity only"})
		}
		register(Info{Name: row.name, Summary: row.summary, Order: string(rune('0' + row.m.Order)), NFE: "1", Aliases: row.aliases, Options: options,
			Source: "DPM-Solver, arXiv 2206.00927; DPM-Solver++, arXiv 2211.01095; k-diffusion",
			New: func(o *spec.Options) (Sampler, error) {
				m := row.m
				m.Lower = lowering(o, !m.SDE)
				m.EulerLast = o.Bool("euler-at-final", false)
				if m.Order == 2 || m.SDE {
					m.Heun = o.Choice("solver", "midpoint", "heun") == "heun"
					if m.Order == 3 && !o.Has("solver") {
						m.Heun = true
					}
				}
				if m.Order == 3 {
					m.Kappa = o.FloatIn("kappa", 2, 0.1, 10)
				}
				if m.SDE && m.Kind == schedules.X0 {
					m.Eta = o.FloatIn("eta", 1, 0, 100)
					m.SNoise = o.FloatIn("s-noise", 1, 0, 100)
				}
				if m.SDE && m.Order == 3 {
					m.Diffusers = o.Choice("variant", "exact", "diffusers") == "diffusers"
				}
				return m, nil
			}})
	}
}

func (m DPMMultistep) step(ctx context.Context, r *run, s, t schedules.Node) error {
	if m.Kind == schedules.Eps && s.Alpha == 0 {
		return errNoiseForm
	}
	q, err := r.predict(ctx, m.Kind)
	if err != nil {
		return err
	}
	order := min(max(m.Order, 2), len(r.hist)+1, m.Lower.cap(3, r, 15))
	if t.Sigma == 0 || (m.EulerLast && r.stepsLeft() == 1) {
		order = 1
	}
	f := newForm(m.Kind, s, t)
	std := 0.0
	if m.SDE {
		f, std = m.noisy(r, f, t)
	}
	if t.Sigma == 0 { // both forms end in the data prediction
		m0, err := r.convert(schedules.X0)
		if err != nil {
			return err
		}
		lin(r.y, term{t.Alpha, m0})
	} else if e := r.recent.pred.Renoise; e != nil {
		q = m.renoised(r, f, s, t, q, models.Data(e), order)
	} else if m.momentum.on() {
		w := m.weights(r, f, s, order)
		m.momentum.multistep(r, f, q, w, order)
	} else {
		w := m.weights(r, f, s, order)
		terms := [4]term{{f.ratio, r.x}, {-f.a * w[0], q}}
		n := 2
		for k := 1; k < order; k++ {
			terms[n] = term{-f.a * w[k], r.hist[k-1].V}
			n++
		}
		lin(r.y, terms[:n]...)
		r.addNoise(std, DrawStep, s.Ratio(), t.Ratio())
	}
	r.keep(q, s, max(m.Order, 2)-1)
	return nil
}

// renoises implements renoiser: the ODE of the data form at order 2 has a form for CFG++.
func (m DPMMultistep) renoises() bool {
	return max(m.Order, 2) == 2 && m.Kind == schedules.X0 && !m.SDE && !m.momentum.on()
}

// renoised writes the step of CFG++ (Chung et al. 2024, arXiv 2406.08070, its 2M form) into y and returns what the
// history is to keep: the data prediction u that goes with the noise e put back. The first-order part is alpha_t x0 +
// sigma_t e with the guided x0; the difference of second order is that of u.
func (m DPMMultistep) renoised(r *run, f form, s, t schedules.Node, x0, e []float64, order int) []float64 {
	u := r.temp()
	if s.Alpha == 0 { // no data can be told from noise there, and the gap to the next node is infinite
		copy(u, x0)
	} else {
		lin(u, term{1 / s.Alpha, r.x}, term{-s.Sigma / s.Alpha, e})
	}
	terms := []term{{t.Alpha, x0}, {t.Sigma, e}}
	if order == 2 {
		w := f.a * m.weights(r, f, s, order)[1]
		terms = append(terms, term{w, u}, term{-w, r.hist[0].V})
	}
	lin(r.y, terms...)
	return u
}

// noisy turns the coefficients of the ODE step into those of the SDE step, and returns the noise to add.
func (m DPMMultistep) noisy(r *run, f form, t schedules.Node) (form, float64) {
	scale := orOne(m.SNoise)
	if m.Kind == schedules.Eps {
		f.a *= 2
		return f, scale * t.Sigma * math.Sqrt(math.Expm1(2*f.h))
	}
	eta := r.opt("eta", m.Eta)
	f.z *= 1 + eta
	if eta > 0 {
		f.ratio *= math.Exp(-eta * f.h)
	}
	return f, scale * t.Sigma * math.Sqrt(-math.Expm1(-2*eta*f.h))
}

// weights returns what multiplies q, q_1 and q_2 in the bracket.
func (m DPMMultistep) weights(r *run, f form, s schedules.Node, order int) (w [3]float64) {
	z := f.z
	w[0] = math.Expm1(z)
	if order == 1 {
		return w
	}
	// 1/r0 and 1/r1; a gap that starts at alpha = 0 is infinite and its difference vanishes.
	gap0 := s.Lambda() - r.hist[0].At.Lambda()
	i0 := f.h / gap0
	if order == 2 {
		half := w[0] / 2
		if m.Heun && !m.Diffusers {
			half = z * phi(2, z)
		}
		w[0] += half * i0
		w[1] = -half * i0
		return w
	}
	gap1 := r.hist[0].At.Lambda() - r.hist[1].At.Lambda()
	i1 := f.h / gap1
	kappa := m.Kappa
	if kappa == 0 {
		kappa = 2
	}
	w2, w3 := z*phi(2, z), z*phi(3, z)
	if m.Diffusers {
		w3 = -(-w[0]+z)/(z*z) + 0.5 // its bracket has (1 - e^-H - H)/H^2 - 1/2 with the other sign in front
	}
	// D1 = D10 + u (D10 - D11), D2 = v (D10 - D11)
	u, v := gap0/(gap0+gap1), kappa*f.h/(gap0+gap1)
	d10 := w2*(1+u) + w3*v
	d11 := -(w2*u + w3*v)
	w[0] += d10 * i0
	w[1] = -d10*i0 + d11*i1
	w[2] = -d11 * i1
	return w
}

// Begin implements Sampler.
func (m DPMMultistep) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (m DPMMultistep) Needs() Needs { return Needs{Noise: m.SDE} }

func (m DPMMultistep) settable() []string {
	if m.SDE && m.Kind == schedules.X0 {
		return []string{"eta"}
	}
	return nil
}

func (m DPMMultistep) label() string {
	if m.momentum.on() {
		return "hb:base=dpmpp-2m"
	}
	name := "dpm-solver-"
	if m.Kind == schedules.X0 {
		name = "dpmpp-"
	}
	name += string(rune('0'+max(m.Order, 2))) + "m"
	if m.SDE {
		name += "-sde"
	}
	return name
}
