package samplers

import (
	"context"
	"fmt"
	"math"
	"strings"

	"drift/internal/spec"
	"drift/schedules"
)

// GHVB is the generalized heavy-ball method of real order q (Wizadwongsa et al. 2023, "Diffusion Sampling with Momentum
// for Mitigating Divergence Artifacts", arXiv 2307.11118): with k = ceil(q) and beta = q - k + 1, in (xb, sb),
//
//	v_n = (1 - beta) v_{n-1} + beta eps_n,  xb_{n+1} = xb_n + (sb_{n+1} - sb_n) SUM_{i<k} (b_i/beta) v_{n-i}
//	b = beta a^(k) + (1 - beta) [a^(k-1) - a^(k-1) shifted by one],  a^(k) the Adams-Bashforth weights
//
// starting from v_{-1} = eps_0, the order rising over the first steps. It interpolates between the orders: beta = 1 is
// PLMS-k, beta -> 0 PLMS-(k-1). A larger stability region than PLMS's keeps pictures clean at few steps and high
// guidance, for some accuracy. One evaluation per step; order 2 (k with exact starts on a uniform sb grid).
type GHVB struct {
	Order int     // k, 1 to 5; 0 = 4
	Beta  float64 // in (0, 1]; 0 = 0.8
	Lower Lowering
}

var ghvbOptions = append([]Option{{"order", "3.8", "real, in (0, 5]: q = 3.8 is k = 4, beta = 0.8; or an integer k with beta"}, {"beta", "", "in (0, 1], with an integer order"}}, lowerOptions...)

func init() {
	register(Info{
		Name: "ghvb", Order: "2", NFE: "1",
		Summary: "generalized heavy ball: momentum that trades accuracy for fewer divergence artifacts at high guidance",
		Source:  "arXiv 2307.11118, section 4.2",
		Options: ghvbOptions,
		New: func(o *spec.Options) (Sampler, error) {
			k, beta, err := readGHVB(o)
			return GHVB{Order: k, Beta: beta, Lower: lowerIfAsked(o)}, err
		},
	})
}

// readGHVB reads a real order, or an integer order with beta.
func readGHVB(o *spec.Options) (k int, beta float64, err error) {
	q := o.FloatIn("order", 3.8, 1e-3, 5)
	up := math.Ceil(q - 1e-9)
	beta = q - up + 1
	if o.Has("beta") {
		if q != up {
			return 0, 0, fmt.Errorf("give a real order, or an integer order with beta, not order=%g with beta", q)
		}
		beta = o.FloatIn("beta", 1, 1e-6, 1)
	}
	return int(up), beta, nil
}

func (m GHVB) values() (k int, beta float64) {
	k, beta = m.Order, m.Beta
	if k == 0 {
		k = 4
	}
	if beta == 0 {
		beta = 0.8
	}
	return k, beta
}

// ghvbWeights returns b of the doc comment.
func ghvbWeights(k int, beta float64) (b [5]float64) {
	for i, a := range adams[k-1] {
		b[i] = beta * a
	}
	if k > 1 {
		for i, a := range adams[k-2] {
			b[i] += (1 - beta) * a
			b[i+1] -= (1 - beta) * a
		}
	}
	return b
}

func (m GHVB) step(ctx context.Context, r *run, s, t schedules.Node) error {
	if s.Alpha == 0 {
		return r.firstOrder(ctx, t)
	}
	order, beta := m.values()
	v, err := r.predict(ctx, schedules.Eps)
	if err != nil {
		return err
	}
	last, old := r.vec("v")
	if !old {
		copy(last, v)
	}
	lin(v, term{1 - beta, last}, term{beta, v})
	copy(last, v)
	k := r.orderNow(order, m.Lower)
	c := ghvbWeights(k, beta)
	for i := range k {
		c[i] *= (t.Ratio() - s.Ratio()) / beta
	}
	r.barStep(s, t, v, c[:k])
	r.keep(v, s, order-1)
	return nil
}

// Begin implements Sampler.
func (m GHVB) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (GHVB) Needs() Needs { return Needs{} }

func (GHVB) label() string { return "ghvb" }

// HeavyBall adds Polyak's momentum to PLMS-k (arXiv 2307.11118, section 4.1): with p_n = SUM_i a_i eps_{n-i},
//
//	v_n = (1 - beta) v_{n-1} + beta p_n,  v_{-1} = eps_0
//	heavy ball: xb_{n+1} = xb_n + (sb_{n+1} - sb_n) v_n
//	Nesterov:   xb_{n+1} = xb_n + (sb_{n+1} - sb_n) [(1 - beta) v_n + beta p_n]
//
// beta = 1 is PLMS-k. Order 1; the stability region grows without bound as beta -> 0.
//
// The sampler "hb" also has bases that are not PLMS (see HeavyBallOn).
type HeavyBall struct {
	Order    int     // of the base, 1 to 5; 0 = 4
	Beta     float64 // in (0, 1]; 0 = 0.8
	Nesterov bool
	Lower    Lowering
}

// momentum is the heavy ball on the bracket of an exponential integrator. A step of the data form is
//
//	x_t = ratio x_s - a (e^z - 1) D,  D the average of the data over the step
//
// (DPM-Solver++(2M): D = m_0 + (m_0 - m_1)/(2 r_0)), and momentum puts v_n = (1 - beta) v_{n-1} + beta D_n for D.
type momentum struct {
	beta   float64 // 0 = no momentum
	model  bool    // 2M: v starts as the first prediction, not as the first bracket
	parity bool    // UniPC as the paper's repository runs it
}

func (m momentum) on() bool { return m.beta != 0 }

// multistep writes a step of DPM-Solver++(2M) with weights w into r.y. Only second-order steps carry momentum; the first
// step and a lowered last one go around it.
func (m momentum) multistep(r *run, f form, q []float64, w [3]float64, order int) {
	if order == 1 {
		if m.model && len(r.hist) == 0 {
			v, _ := r.vec("v")
			copy(v, q)
		}
		lin(r.y, term{f.ratio, r.x}, term{-f.a * w[0], q})
		return
	}
	k := math.Expm1(f.z)
	v, old := r.vec("v")
	keep := 1 - m.beta
	if !old {
		keep = 0
	}
	lin(v, term{keep, v}, term{(1 - keep) * w[0] / k, q}, term{(1 - keep) * w[1] / k, r.hist[0].V})
	lin(r.y, term{f.ratio, r.x}, term{-f.a * k, v})
}

// unipc returns the averaged bracket of a step of UniPC. Predictor and corrector have a velocity each. The repository
// averages in the corrector only, and there D/sigma_t (of the process scaled to alpha^2 + sigma^2 = 1) in place of D;
// its predictor computes a velocity and then overwrites it.
func (m momentum) unipc(r *run, d []term, correct bool) []float64 {
	name := "predictor v"
	scale := 1.0
	if correct {
		name = "corrector v"
		if m.parity { // the corrected step ends at the node where the run stands
			sb := r.grid[r.i].Ratio()
			scale = math.Hypot(1, sb) / sb
		}
	} else if m.parity {
		v := r.temp()
		lin(v, d...)
		return v
	}
	v, old := r.vec(name)
	keep := 1 - m.beta
	if !old {
		keep = 0
	}
	b := r.temp()
	lin(b, d...)
	lin(v, term{keep, v}, term{(1 - keep) * scale, b})
	lin(b, term{1 / scale, v})
	return b
}

// HeavyBallOn returns the heavy ball on a base that is named as on the command line: plmsK (K = 1 to 5; euler and ddim
// are plms1), dpmpp-2m, or unipcP-bhV (P = 1 to 6, V = 1 or 2). beta = 1 is the base.
func HeavyBallOn(base string, beta float64) (Sampler, error) {
	if !(beta > 0 && beta <= 1) {
		return nil, fmt.Errorf("samplers: hb: beta = %g, want a number in (0, 1]", beta)
	}
	if base == "euler" || base == "ddim" {
		base = "plms1"
	}
	if k, ok := strings.CutPrefix(base, "plms"); ok && len(k) == 1 && k >= "1" && k <= "5" {
		return HeavyBall{Order: int(k[0] - '0'), Beta: beta}, nil
	}
	if base == "dpmpp-2m" {
		return DPMMultistep{Order: 2, Kind: schedules.X0, momentum: momentum{beta: beta}}, nil
	}
	if p, ok := strings.CutPrefix(base, "unipc"); ok && p != "" && p[0] >= '1' && p[0] <= '6' && (p[1:] == "" || p[1:] == "-bh1" || p[1:] == "-bh2") {
		return UniPC{Order: int(p[0] - '0'), BH1: p[1:] == "-bh1", Kind: schedules.X0, momentum: momentum{beta: beta}}, nil
	}
	return nil, fmt.Errorf("samplers: hb: unknown base %q: want plms1 to plms5, dpmpp-2m, or unipc1-bh1 to unipc6-bh2", base)
}

func init() {
	register(Info{
		Name: "hb", Order: "1", NFE: "1",
		Summary: "heavy-ball momentum on PLMS, DPM-Solver++(2M) or UniPC: a larger stability region, for accuracy",
		Source:  "arXiv 2307.11118, section 4.1 and appendix",
		Options: []Option{{"base", "plms4", "plms1 (= euler, ddim) to plms5, dpmpp-2m, unipc1-bh1 to unipc6-bh2"}, {"order", "", "in place of base: 3.8 is plms4 with beta 0.8"}, {"beta", "0.8", "in (0, 1]; 1 = the base"},
			{"init", "first-bracket", "first-bracket or model: start of the velocity of dpmpp-2m"},
			{"variant", "exact", "exact, or parity: the repository's unipc (momentum in the corrector only, in units of 1/sigma)"},
			{"lower-order-final", "true", "dpmpp-2m: first-order last step on grids with fewer than lower-below steps; unipc: on all; default false for plms"}, {"lower-below", "15", ""}},
		New: func(o *spec.Options) (Sampler, error) {
			if !o.Has("base") && o.Has("order") {
				k, beta, err := readGHVB(o)
				return HeavyBall{Order: k, Beta: beta, Lower: lowerIfAsked(o)}, err
			}
			s, err := HeavyBallOn(o.Text("base", "plms4"), o.FloatIn("beta", 0.8, 1e-6, 1))
			if err != nil {
				return nil, err
			}
			switch m := s.(type) {
			case HeavyBall:
				m.Lower = lowerIfAsked(o)
				s = m
			case DPMMultistep:
				m.momentum.model = o.Choice("init", "first-bracket", "model") == "model"
				m.Lower = lowering(o, true)
				s = m
			case UniPC:
				m.momentum.parity = o.Choice("variant", "exact", "parity") == "parity"
				m.Lower = lowering(o, true)
				s = m
			}
			return s, nil
		},
	})
	register(Info{
		Name: "nesterov", Order: "1", NFE: "1", Summary: "PLMS with Nesterov's momentum", Source: "arXiv 2307.11118, appendix",
		Options: append([]Option{{"order", "4", "of the base, 1 to 5"}, {"beta", "0.8", "in (0, 1]"}}, lowerOptions...),
		New: func(o *spec.Options) (Sampler, error) {
			return HeavyBall{Order: o.Int("order", 4, 1, 5), Beta: o.FloatIn("beta", 0.8, 1e-6, 1), Nesterov: true, Lower: lowerIfAsked(o)}, nil
		},
	})
}

func (m HeavyBall) step(ctx context.Context, r *run, s, t schedules.Node) error {
	if s.Alpha == 0 {
		return r.firstOrder(ctx, t)
	}
	order, beta := GHVB{Order: m.Order, Beta: m.Beta}.values()
	e, err := r.predict(ctx, schedules.Eps)
	if err != nil {
		return err
	}
	v, old := r.vec("v")
	if !old {
		copy(v, e)
	}
	p := r.temp()
	a := adams[r.orderNow(order, m.Lower)-1]
	var terms [5]term
	terms[0] = term{a[0], e}
	for i := 1; i < len(a); i++ {
		terms[i] = term{a[i], r.hist[i-1].V}
	}
	lin(p, terms[:len(a)]...)
	lin(v, term{1 - beta, v}, term{beta, p})
	d := t.Alpha * (t.Ratio() - s.Ratio())
	if m.Nesterov {
		lin(r.y, term{t.Alpha / s.Alpha, r.x}, term{d * (1 - beta), v}, term{d * beta, p})
	} else {
		lin(r.y, term{t.Alpha / s.Alpha, r.x}, term{d, v})
	}
	r.keep(e, s, order-1)
	return nil
}

// Begin implements Sampler.
func (m HeavyBall) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (HeavyBall) Needs() Needs { return Needs{} }

func (m HeavyBall) label() string {
	if m.Nesterov {
		return "nesterov"
	}
	return "hb"
}
