package schedules

import (
	"fmt"
	"math"
	"sort"
)

// Betas describes a table of noise variances as diffusers' scheduler files do. The zero value is diffusers' own
// default: linear from 0.0001 to 0.02 in 1000 steps.
type Betas struct {
	// Schedule is linear (or empty), scaled_linear (linear in sqrt(beta), Stable Diffusion), sigmoid (GeoDiff), or one
	// of those that take no Start and End: squaredcos_cap_v2, also called cosine (Nichol and Dhariwal 2021), laplace,
	// exp; the last three keep beta <= 0.999.
	Schedule   string
	Start, End float64 // both 0: 0.0001 and 0.02
	Steps      int     // 0: 1000, or len(Trained)
	Trained    []float64
	// ZeroSNR rescales the table so that its last entry has no signal left (Lin et al. 2024, "Common Diffusion Noise
	// Schedules and Sample Steps are Flawed", algorithm 1).
	ZeroSNR bool
}

func (b Betas) withDefaults() Betas {
	switch b.Schedule {
	case "":
		b.Schedule = "linear"
	case "cosine":
		b.Schedule = "squaredcos_cap_v2"
	}
	if b.Start == 0 && b.End == 0 {
		b.Start, b.End = 0.0001, 0.02
	}
	if b.Steps == 0 {
		b.Steps = 1000
		if len(b.Trained) > 0 {
			b.Steps = len(b.Trained)
		}
	}
	return b
}

// MaxTableSteps is the longest table that NewVPDiscrete makes.
const MaxTableSteps = 1 << 20

// Table returns the betas. Errors: an unknown schedule, fewer than 2 or too many steps, a beta outside (0, 1).
func (b Betas) Table() ([]float64, error) { return prefixed(b.table()) }

func (b Betas) table() ([]float64, error) {
	b = b.withDefaults()
	if b.Steps < 2 || b.Steps > MaxTableSteps {
		return nil, fmt.Errorf("a beta table of %d steps; want 2 to %d", b.Steps, MaxTableSteps)
	}
	out := make([]float64, b.Steps)
	if len(b.Trained) > 0 {
		if len(b.Trained) != b.Steps {
			return nil, fmt.Errorf("%d trained betas for %d steps", len(b.Trained), b.Steps)
		}
		copy(out, b.Trained)
		return out, checkBetas(out)
	}
	line := func(i int, lo, hi float64) float64 { return lo + (hi-lo)*float64(i)/float64(b.Steps-1) }
	for i := range out {
		switch b.Schedule {
		case "linear":
			out[i] = line(i, b.Start, b.End)
		case "scaled_linear":
			r := line(i, math.Sqrt(b.Start), math.Sqrt(b.End))
			out[i] = r * r
		case "sigmoid":
			out[i] = b.Start + (b.End-b.Start)/(1+math.Exp(-line(i, -6, 6)))
		case "squaredcos_cap_v2":
			out[i] = betaFromBar(i, b.Steps, func(t float64) float64 {
				c := math.Cos((t + 0.008) * cosineRate)
				return c * c
			})
		case "laplace":
			out[i] = betaFromBar(i, b.Steps, func(t float64) float64 {
				snr := math.Exp(-0.5 * math.Copysign(1, 0.5-t) * math.Log(1-2*math.Abs(0.5-t)+1e-6))
				return math.Sqrt(snr / (1 + snr))
			})
		case "exp":
			out[i] = betaFromBar(i, b.Steps, func(t float64) float64 { return math.Exp(-12 * t) })
		default:
			return nil, fmt.Errorf("unknown beta schedule %q; known: linear, scaled_linear, squaredcos_cap_v2, cosine, sigmoid, laplace, exp", b.Schedule)
		}
	}
	return out, checkBetas(out)
}

// betaFromBar is the variance of step i of n whose product of 1-beta follows bar, capped at 0.999.
func betaFromBar(i, n int, bar func(t float64) float64) float64 {
	return min(1-bar(float64(i+1)/float64(n))/bar(float64(i)/float64(n)), 0.999)
}

func checkBetas(betas []float64) error {
	for i, b := range betas {
		if !(b > 0 && b < 1) {
			return fmt.Errorf("beta %d is %g; want a number between 0 and 1", i, b)
		}
	}
	return nil
}

// VPDiscrete is a variance preserving process that is known at the whole times 0..T-1 of a table, 0 the cleanest:
// alpha_t^2 is the product of 1 - beta_0 ... 1 - beta_t. Between two entries log(sigma/alpha) is linear in t (as in
// k-diffusion and diffusers); before an entry without signal, alpha/sigma is. The clean end is t = -1; between -1 and
// 0, and beyond T-1, At answers with the nearest entry, and its node says so by its T. AtRatio keeps alpha and sigma
// exact for every ratio and clamps only T.
type VPDiscrete struct {
	betas               Betas
	alpha, sigma, logSB []float64
}

// NewVPDiscrete makes the process of a table of betas.
func NewVPDiscrete(b Betas) (*VPDiscrete, error) { return prefixed(newVPDiscrete(b)) }

func newVPDiscrete(b Betas) (*VPDiscrete, error) {
	betas, err := b.table()
	if err != nil {
		return nil, err
	}
	n := len(betas)
	b = b.withDefaults()
	b.Trained = append([]float64(nil), b.Trained...)
	p := &VPDiscrete{betas: b, alpha: make([]float64, n), sigma: make([]float64, n), logSB: make([]float64, n)}
	la := p.logSB // log alpha for now
	sum := 0.0
	for i, beta := range betas {
		sum += 0.5 * math.Log1p(-beta)
		la[i] = sum
	}
	first, last := la[0], la[n-1]
	scale := 1 / -math.Expm1(last-first) // alpha_0/(alpha_0 - alpha_T)
	for i, l := range la {
		p.alpha[i], p.sigma[i] = math.Exp(l), math.Sqrt(-math.Expm1(2*l))
		if b.ZeroSNR { // alpha <- (alpha - alpha_T) scale, 1 - alpha without cancellation
			a := math.Exp(last) * math.Expm1(l-last) * scale
			rest := -math.Expm1(first) - math.Exp(first)*math.Expm1(l-first)*scale
			p.alpha[i], p.sigma[i] = a, math.Sqrt(rest*(1+a))
		}
		p.logSB[i] = math.Log(p.sigma[i] / p.alpha[i])
	}
	return p, nil
}

// Betas returns the description of the table, with its defaults filled in.
func (p *VPDiscrete) Betas() Betas {
	b := p.betas
	b.Trained = append([]float64(nil), b.Trained...)
	return b
}

// Len returns T, the number of entries.
func (p *VPDiscrete) Len() int { return len(p.alpha) }

// AlphasCumprod returns alpha_t^2 for every entry.
func (p *VPDiscrete) AlphasCumprod() []float64 {
	out := make([]float64, len(p.alpha))
	for i, a := range p.alpha {
		out[i] = a * a
	}
	return out
}

// Name returns "vp-discrete".
func (*VPDiscrete) Name() string { return "vp-discrete" }

// Ends returns T-1 and -1.
func (p *VPDiscrete) Ends() (noise, data float64) { return float64(len(p.alpha) - 1), -1 }

// Range returns T-1 and 0.
func (p *VPDiscrete) Range() (noise, data float64) { return float64(len(p.alpha) - 1), 0 }

// At returns the node at time t, T clamped as said above.
func (p *VPDiscrete) At(t float64) Node {
	if t <= -1 {
		return Node{-1, 1, 0}
	}
	last := len(p.alpha) - 1
	t = min(max(t, 0), float64(last))
	if math.IsNaN(t) {
		return Node{t, t, t}
	}
	k := int(t)
	f := t - float64(k)
	if f == 0 {
		return Node{t, p.alpha[k], p.sigma[k]}
	}
	if p.alpha[k+1] == 0 {
		return vpNode(t, math.Exp(p.logSB[k])/(1-f))
	}
	return vpNode(t, math.Exp(p.logSB[k]+f*(p.logSB[k+1]-p.logSB[k])))
}

// AtRatio returns the node whose sigma/alpha is sb.
func (p *VPDiscrete) AtRatio(sb float64) Node {
	if sb == 0 {
		return Node{-1, 1, 0}
	}
	l, last := math.Log(sb), len(p.alpha)-1
	k := sort.SearchFloat64s(p.logSB, l) // first entry with at least this noise
	switch {
	case k == 0:
		return vpNode(0, sb)
	case k > last:
		return vpNode(float64(last), sb)
	case p.logSB[k] == l:
		return vpNode(float64(k), sb)
	}
	t := float64(k - 1)
	if p.alpha[k] == 0 {
		return vpNode(t-math.Expm1(p.logSB[k-1]-l), sb)
	}
	return vpNode(t+(l-p.logSB[k-1])/(p.logSB[k]-p.logSB[k-1]), sb)
}

// Rates returns d alpha/dt and d sigma/dt of the interpolation, at an entry those of the piece towards noise (at the
// last entry, of the piece before it). At the clean end and beyond the table they are 0.
func (p *VPDiscrete) Rates(t float64) (dAlpha, dSigma float64) {
	last := len(p.alpha) - 1
	if !(t >= 0 && t <= float64(last)) {
		return 0, 0
	}
	k := min(int(t), last-1)
	n := p.At(t)
	if p.alpha[k+1] == 0 { // sb = sb_k/(1-f), d log sb/dt = 1/(1-f) = sb/sb_k
		g := n.Sigma / math.Exp(p.logSB[k]) // alpha d log sb/dt
		return -n.Sigma * n.Sigma * g, n.Sigma * n.Alpha * g
	}
	g := p.logSB[k+1] - p.logSB[k]
	return -n.Alpha * n.Sigma * n.Sigma * g, n.Sigma * n.Alpha * n.Alpha * g
}
