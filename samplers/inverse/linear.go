package inverse

import (
	"context"
	"io"
	"math"

	"drift/internal/operators"
	"drift/internal/spec"
	"drift/samplers"
	"drift/schedules"
)

// linear is what the methods share that know the singular values of A.
type linear struct {
	a    operators.Linear
	s    []float64 // singular values
	ybar []float64 // U^T y
	m    operators.Measurement
}

func newLinear(m operators.Measurement) linear {
	l := linear{a: m.A.(operators.Linear), m: m}
	l.s = l.a.Singular()
	l.ybar = make([]float64, len(l.s))
	l.a.ToU(l.ybar, m.Y)
	return l
}

// spectral moves every row's vectors into the basis V, has f combine coefficient i, and moves the result back into y.
func (l linear) spectral(y []float64, rows int, f func(i int, c []float64) float64, vs ...[]float64) {
	n := len(l.s)
	in, c, out := make([][]float64, len(vs)), make([]float64, len(vs)), make([]float64, n)
	for k := range in {
		in[k] = make([]float64, n)
	}
	for row := range rows {
		lo, hi := row*n, (row+1)*n
		for k, v := range vs {
			l.a.ToV(in[k], v[lo:hi])
		}
		for i := range out {
			for k := range in {
				c[k] = in[k][i]
			}
			out[i] = f(i, c)
		}
		l.a.FromV(y[lo:hi], out)
	}
}

// DDRM is the denoising diffusion restoration model (Kawar et al. 2022, arXiv 2201.11793, eq. 7-8). Along every singular
// vector, y' = U^T y and predictions taken in the basis V,
//
//	S = 0:         x_u/b = x0 + sqrt(1 - Eta^2) rho_u eps + Eta rho_u n
//	S rho_u > s_y: x_u/b = EtaB y'/S + (1 - EtaB) x0 + sqrt(rho_u^2 - EtaB^2 s_y^2/S^2) n
//	else:          x_u/b = x0 + sqrt(1 - Eta^2) rho_u (y' - S x0)/s_y + Eta rho_u n   (x0 alone where s_y = 0)
//
// No gradients.
type DDRM struct {
	Of        operators.Measurement // of a linear operator
	Eta, EtaB float64
}

func init() {
	Register(Info{Name: "ddrm", NFE: "1", Linear: true, Summary: "denoising diffusion restoration: mixes measurement and prediction along every singular vector", Source: "arXiv 2201.11793, eq. 7-8",
		Options: []Option{{"eta", "0.85", "fresh noise where nothing is measured or the measurement's noise is larger"}, {"eta-b", "1", "weight of the measurement where its noise is smaller"}},
		New: func(o *spec.Options) (Method, error) {
			d := DDRM{Eta: o.FloatIn("eta", 0.85, 0, 1), EtaB: o.FloatIn("eta-b", 1, 0, 1)}
			return func(m operators.Measurement) (samplers.Sampler, error) {
				d := d
				d.Of = m
				return d, nil
			}, nil
		}})
}

// Step implements samplers.Stepper.
func (d DDRM) Step(ctx context.Context, m *samplers.Move) error {
	x0, err := m.Predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	eps, err := m.Predict(ctx, schedules.Eps)
	if err != nil {
		return err
	}
	l, sy, b, rho := newLinear(d.Of), d.Of.Sigma, m.To.Alpha, m.To.Ratio()
	old := math.Sqrt(1-d.Eta*d.Eta) * rho
	l.spectral(m.Y, m.Rows, func(i int, c []float64) float64 {
		x0, eps, n := c[0], c[1], c[2]
		switch s := l.s[i]; {
		case s == 0:
			return b * (x0 + old*eps + d.Eta*rho*n)
		case s*rho > sy:
			return b * (d.EtaB*l.ybar[i]/s + (1-d.EtaB)*x0 + math.Sqrt(max(0, rho*rho-sq(d.EtaB*sy/s)))*n)
		case sy > 0:
			return b * (x0 + old*(l.ybar[i]-s*x0)/sy + d.Eta*rho*n)
		}
		return b * x0
	}, x0, eps, m.Noise(samplers.DrawStep))
	return nil
}

func sq(x float64) float64 { return x * x }

// Begin implements samplers.Sampler.
func (d DDRM) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	return begin(ctx, p, d, d.Of)
}

// Needs implements samplers.Sampler.
func (DDRM) Needs() samplers.Needs { return samplers.Needs{Noise: true} }

// Label implements samplers.Stepper.
func (DDRM) Label() string { return "ddrm" }

// DDNM is the denoising diffusion null-space model (Wang et al. 2022, arXiv 2212.00490, eq. 13): the predicted data are
// made to agree with the measurement,
//
//	x0' = x0 - A+ (A x0 - y),  x_u = b x0' + r (Eta n + sqrt(1 - Eta^2) eps)
//
// with the eps of the old x0. Plus is DDNM+ (eq. 17-19), for s_y > 0: along every singular vector
//
//	S = 0:         x_u = b x0 + r (Eta n + sqrt(1 - Eta^2) eps)
//	S rho_u < s_y: x_u = b (x0 + L (y'/S - x0)) + r Eta n,  L = S r sqrt(1 - Eta^2)/(b s_y)
//	else:          x_u = b y'/S + sqrt(r^2 - b^2 s_y^2/S^2) n
//
// DDIM uses that method's split of the noise, with Eta, in place of the paper's. Length and Repeat are its time travel
// (see Travel); Repeat 0 and 1 are none. No gradients.
type DDNM struct {
	Of             operators.Measurement // of a linear operator
	Eta            float64
	Plus, DDIM     bool
	Length, Repeat int
}

func init() {
	options := []Option{{"eta", "0.85", "fresh noise in a step, 1 = all"}, {"length", "1", "steps that are repeated together"}, {"repeat", "1", "times that they are made"}}
	make := func(plus bool, noise Option) func(o *spec.Options) (Method, error) {
		return func(o *spec.Options) (Method, error) {
			d := DDNM{Plus: plus, Eta: o.FloatIn("eta", 0.85, 0, 1), Length: o.Int("length", 1, 1, 1<<20), Repeat: o.Int("repeat", 1, 1, 1<<10)}
			if !plus {
				d.DDIM = o.Choice(noise.Name, "ddnm", "ddim") == "ddim"
			}
			return func(m operators.Measurement) (samplers.Sampler, error) {
				d := d
				d.Of = m
				return d, nil
			}, nil
		}
	}
	noise := Option{"noise", "ddnm", "how a step's noise is split: ddnm, or ddim"}
	Register(Info{Name: "ddnm", NFE: "1, repeat times", Linear: true, Summary: "null-space model: replaces what was measured in the predicted data; for measurements without noise", Source: "arXiv 2212.00490, eq. 13",
		Options: append([]Option{noise}, options...), New: make(false, noise)})
	Register(Info{Name: "ddnm+", NFE: "1, repeat times", Linear: true, Summary: "null-space model that knows the measurement's noise", Source: "arXiv 2212.00490, eq. 17-19",
		Options: options, New: make(true, noise)})
}

// ddnm is DDNM on the grid that it is given.
type ddnm DDNM

// Begin implements samplers.Sampler.
func (d DDNM) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	return ddnm(d).Begin(ctx, travelled(p, d.Length, d.Repeat))
}

// Resume implements samplers.Resumer.
func (d DDNM) Resume(ctx context.Context, p *samplers.Problem, r io.Reader) (samplers.Run, error) {
	return samplers.Resume(ctx, ddnm(d), travelled(p, d.Length, d.Repeat), r)
}

// travelled is the problem on the grid with time travel.
func travelled(p *samplers.Problem, length, repeat int) *samplers.Problem {
	own := *p
	own.Grid = Travel(p.Grid, length, repeat)
	return &own
}

// Needs implements samplers.Sampler.
func (DDNM) Needs() samplers.Needs { return samplers.Needs{Noise: true} }

// Label implements samplers.Stepper.
func (d ddnm) Label() string {
	if d.Plus {
		return "ddnm+"
	}
	return "ddnm"
}

// Begin implements samplers.Sampler.
func (d ddnm) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	return begin(ctx, p, d, d.Of)
}

// Needs implements samplers.Sampler.
func (d ddnm) Needs() samplers.Needs { return DDNM(d).Needs() }

// Step implements samplers.Stepper.
func (d ddnm) Step(ctx context.Context, m *samplers.Move) error {
	x0, err := m.Predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	eps, err := m.Predict(ctx, schedules.Eps)
	if err != nil {
		return err
	}
	b, r, sy := m.To.Alpha, m.To.Sigma, d.Of.Sigma
	down, up := r*math.Sqrt(1-d.Eta*d.Eta), r*d.Eta
	if d.DDIM {
		down, up = samplers.Ancestral(m.From, m.To, d.Eta)
	}
	l := newLinear(d.Of)
	l.spectral(m.Y, m.Rows, func(i int, c []float64) float64 {
		x0, eps, n := c[0], c[1], c[2]
		switch s := l.s[i]; {
		case s == 0:
			return b*x0 + down*eps + up*n
		case !d.Plus:
			return b*l.ybar[i]/s + down*eps + up*n
		case s*r < b*sy:
			return b*(x0+s*down/(b*sy)*(l.ybar[i]/s-x0)) + up*n
		default:
			return b*l.ybar[i]/s + math.Sqrt(max(0, r*r-sq(b*sy/s)))*n
		}
	}, x0, eps, m.Noise(samplers.DrawStep))
	return nil
}

// RePaint is ancestral sampling in which what was measured is drawn from the forward process and all else from the
// model, and every Length steps are made Repeat times with forward noise between (Lugmayr et al. 2022, arXiv 2201.09865,
// algorithm 1 and its jumps). With P = A+ A, the projection onto what is measured,
//
//	x_u = P (b A+ y + r' n) + (I - P)(DDIM step with Eta),  r'^2 = r^2 - b^2 s_y^2/S^2, at least 0
//
// which is RePaint for a mask, and serves any linear A. Noise in the measurement counts as part of the noise that
// belongs to the level (the paper has s_y = 0). No gradients.
type RePaint struct {
	Of             operators.Measurement // of a linear operator
	Eta            float64
	Length, Repeat int
}

func init() {
	Register(Info{Name: "repaint", NFE: "1, repeat times", Linear: true, Summary: "draws what was measured from the forward process and the rest from the model, going back and forth", Source: "arXiv 2201.09865, algorithm 1",
		Options: []Option{etaOption("1"), {"length", "10", "steps of a jump"}, {"repeat", "4", "times that they are made (the paper: 10)"}},
		New: func(o *spec.Options) (Method, error) {
			d := RePaint{Eta: o.FloatIn("eta", 1, 0, 1), Length: o.Int("length", 10, 1, 1<<20), Repeat: o.Int("repeat", 4, 1, 1<<10)}
			return func(m operators.Measurement) (samplers.Sampler, error) {
				d := d
				d.Of = m
				return d, nil
			}, nil
		}})
}

// repaint is RePaint on the grid that it is given.
type repaint RePaint

// Begin implements samplers.Sampler.
func (d RePaint) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	return repaint(d).Begin(ctx, travelled(p, d.Length, d.Repeat))
}

// Resume implements samplers.Resumer.
func (d RePaint) Resume(ctx context.Context, p *samplers.Problem, r io.Reader) (samplers.Run, error) {
	return samplers.Resume(ctx, repaint(d), travelled(p, d.Length, d.Repeat), r)
}

// Needs implements samplers.Sampler.
func (RePaint) Needs() samplers.Needs { return samplers.Needs{Noise: true} }

// Label implements samplers.Stepper.
func (repaint) Label() string { return "repaint" }

// Begin implements samplers.Sampler.
func (d repaint) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	return begin(ctx, p, d, d.Of)
}

// Needs implements samplers.Sampler.
func (d repaint) Needs() samplers.Needs { return RePaint(d).Needs() }

// Step implements samplers.Stepper.
func (d repaint) Step(ctx context.Context, m *samplers.Move) error {
	if err := ddim(ctx, m, d.Eta, m.Noise(samplers.DrawStep)); err != nil {
		return err
	}
	replace(m, newLinear(d.Of), m.Noise(samplers.DrawForward))
	return nil
}

// replace overwrites what was measured in m.Y by a draw of the forward process at m.To.
func replace(m *samplers.Move, l linear, n []float64) {
	b, r := m.To.Alpha, m.To.Sigma
	l.spectral(m.Y, m.Rows, func(i int, c []float64) float64 {
		s := l.s[i]
		if s == 0 {
			return c[0]
		}
		return b*l.ybar[i]/s + math.Sqrt(max(0, r*r-sq(b*l.m.Sigma/s)))*c[1]
	}, m.Y, n)
}

// ddim writes a step of DDIM with eta into m.Y, n being its fresh noise.
func ddim(ctx context.Context, m *samplers.Move, eta float64, n []float64) error {
	x0, err := m.Predict(ctx, schedules.X0)
	if err != nil {
		return err
	}
	eps, err := m.Predict(ctx, schedules.Eps)
	if err != nil {
		return err
	}
	down, up := samplers.Ancestral(m.From, m.To, eta)
	for i := range m.Y {
		m.Y[i] = float64(m.To.Alpha*x0[i]) + float64(down*eps[i]) + float64(up*n[i])
	}
	return nil
}
