package schedules

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Path is a Process with nodes: what a grid asks for. Gaussian processes are paths, and so are those of the simplex.
type Path interface {
	Process
	// At returns the node at the process's own time t.
	At(t float64) Node
	// AtRatio returns the node whose sigma/alpha is sb, the inverse of At; below the least ratio of the process it is
	// the data end.
	AtRatio(sb float64) Node
}

// Field is a Path that is not Gaussian, whose velocity dx/dt follows from the data prediction p = E[x0|x] by a formula of
// its own, in place of Convert's affine map. States and predictions are rows of positions of Categories numbers each, the
// positions being points of the simplex (x >= 0, SUM x = 1) and the data its vertices, so that p holds the probabilities
// of the categories.
//
// The two coefficients of a node are those of the path's mean, E[x|x0] = alpha x0 + sigma/K.
type Field interface {
	Path
	Categories() int
	// Velocity writes dx/dt at (x, n) for the prediction p into dst. A prediction off the simplex, as guidance makes it,
	// is projected first.
	Velocity(dst, x, p []float64, n Node) error
	// Tilt adds w times the gradient h of a function of x to the score that p stands for, and leaves the new prediction
	// in p, off the simplex where w is large.
	Tilt(p, x, h []float64, w float64, n Node) error
}

// Dirichlet is the path of Dirichlet flow matching (Stark et al. 2024, arXiv 2402.05841, eq. 9): per position
//
//	p_t(x | e_i) = Dir(1 + t e_i),  t from 0 (uniform on the simplex) to End
//
// and the conditional field u_t(x | e_i) = C(x_i, t) (e_i - x) of equation 14, with the marginal one
//
//	dx_k/dt = p_k C(x_k, t) - x_k SUM_i p_i C(x_i, t)
//
// E[x | e_i] = (t e_i + 1)/(K + t), so that a node has alpha = t/(K+t), sigma = K/(K+t) and the ratio K/t.
type Dirichlet struct {
	K   int     // categories, 2 or more
	End float64 // last time of a run; 0 = 7
}

// Name implements Process.
func (Dirichlet) Name() string { return "dirichlet" }

// Ends implements Process.
func (d Dirichlet) Ends() (noise, data float64) {
	if d.End == 0 {
		return 0, 7
	}
	return 0, d.End
}

// Categories implements Field.
func (d Dirichlet) Categories() int { return d.K }

// At implements Path.
func (d Dirichlet) At(t float64) Node {
	k := float64(d.K)
	return Node{T: t, Alpha: t / (k + t), Sigma: k / (k + t)}
}

// AtRatio implements Path.
func (d Dirichlet) AtRatio(sb float64) Node {
	_, end := d.Ends()
	return d.At(min(float64(d.K)/sb, end))
}

// Velocity implements Field.
func (d Dirichlet) Velocity(dst, x, p []float64, n Node) error {
	if d.K < 2 || !(n.T >= 0) || math.IsInf(n.T, 1) {
		return fmt.Errorf("schedules: dirichlet: no field with %d categories at t=%g", d.K, n.T)
	}
	c := NewDirichletCoefficient(d.K, n.T)
	var own [64]float64
	q := own[:]
	if d.K > len(own) {
		q = make([]float64, d.K)
	}
	q = q[:d.K]
	for at := 0; at < len(x); at += d.K {
		copy(q, p[at:at+d.K])
		ProjectSimplex(q)
		row, out, sum := x[at:at+d.K], dst[at:at+d.K], 0.0
		for k, v := range row {
			w := 0.0
			if q[k] > 0 {
				w = float64(q[k] * c.near(v))
			}
			out[k] = w
			sum += w
		}
		for k, v := range row {
			out[k] -= float64(v * sum)
		}
	}
	return nil
}

// Tilt implements Field: the score is s_i = t p_i/x_i up to a constant, so p_i += w x_i (h_i - SUM_j x_j h_j)/t. At t = 0
// the state says nothing and p stays.
func (d Dirichlet) Tilt(p, x, h []float64, w float64, n Node) error {
	if n.T == 0 {
		return nil
	}
	for at := 0; at < len(x); at += d.K {
		row, g := x[at:at+d.K], h[at:at+d.K]
		mean := 0.0
		for k, v := range row {
			mean += float64(v * g[k])
		}
		for k, v := range row {
			p[at+k] += float64(w * v * (g[k] - mean) / n.T)
		}
	}
	return nil
}

// Conditional writes the point at time n.T of the path that starts at x at time 0 (one position) and runs to vertex i
// alone: I_{x_i}(1+t, K-1) keeps its value and the other coordinates their ratios. Nothing is integrated.
func (d Dirichlet) Conditional(dst, x []float64, i int, n Node) {
	v := d.quantile(x[i], n.T)
	scale := 0.0
	if x[i] < 1 {
		scale = (1 - v) / (1 - x[i])
	}
	for k, u := range x {
		dst[k] = scale * u
	}
	dst[i] = v
}

// quantile returns the y with I_y(1+t, K-1) = I_x(1, K-1), to full precision, by bisection of the logit in whichever tail is smaller.
func (d Dirichlet) quantile(x, t float64) float64 {
	if x <= 0 || x >= 1 || t == 0 {
		return min(max(x, 0), 1)
	}
	b := float64(d.K - 1)
	upper := b * math.Log1p(-x) // log(1 - I_x(1, b))
	lower := math.Log(-math.Expm1(upper))
	tail, want := true, upper
	if lower < upper {
		tail, want = false, lower
	}
	lo, hi := math.Log(x)-math.Log1p(-x), 0.0
	for hi = max(lo, 0) + 1; ; hi += hi - lo { // y grows with t
		if d.level(hi, t, tail) > want == !tail || hi > 700 {
			break
		}
	}
	for range 200 {
		mid := lo + (hi-lo)/2
		if mid == lo || mid == hi {
			break
		}
		if d.level(mid, t, tail) > want == !tail {
			hi = mid
		} else {
			lo = mid
		}
	}
	return 1 / (1 + math.Exp(-hi))
}

// level returns log I_y(1+t, K-1), or log of 1 - I_y in the upper tail, at logit l.
func (d Dirichlet) level(l, t float64, upper bool) float64 {
	a, b := 1+t, d.K-1
	logx, logy := -math.Log1p(math.Exp(-l)), -math.Log1p(math.Exp(l))
	y := math.Exp(logy)
	if !upper { // x^a SUM_{j<b} (a)_j/j! y^j
		sum, term := 1.0, 1.0
		for j := 1; j < b; j++ {
			term *= (a + float64(j-1)) / float64(j) * y
			sum += term
		}
		return a*logx + math.Log(sum)
	}
	// x^a y^b/(b B(a,b)) SUM_n (a+b)_n/(b+1)_n y^n
	logB := 0.0 // of 1/(b B) = (a)_b/b!
	for j := range b {
		logB += math.Log((a + float64(j)) / float64(j+1))
	}
	sum, term := 1.0, 1.0
	for n := 0; ; n++ {
		r := (a + float64(b+n)) / float64(b+1+n) * y
		term *= r
		sum += term
		if r < 1 && term*r < 1e-18*sum*(1-r) {
			return a*logx + float64(b)*logy + logB + math.Log(sum)
		}
	}
}

// SimplexLinear is the straight path to the vertices, the baseline that Dirichlet flow matching is measured against
// (arXiv 2402.05841, section 3.1):
//
//	x_t = (1-t) x_0 + t e_i,  x_0 uniform on the simplex,  dx/dt = (p - x)/(1-t)
//
// Its exact posterior is piecewise constant: only classes with x_i >= t are possible, so that all decisions fall into a
// window of times about log(K)/K wide, which a fixed number of steps misses where K is large.
type SimplexLinear struct{ K int }

// Name implements Process.
func (SimplexLinear) Name() string { return "simplex-linear" }

// Ends implements Process.
func (SimplexLinear) Ends() (noise, data float64) { return 0, 1 }

// Range implements Ranger: methods that place their own steps ask the model last at t = 0.999.
func (SimplexLinear) Range() (noise, data float64) { return 0, 0.999 }

// Categories implements Field.
func (l SimplexLinear) Categories() int { return l.K }

// At implements Path.
func (SimplexLinear) At(t float64) Node { return Node{T: t, Alpha: t, Sigma: 1 - t} }

// AtRatio implements Path.
func (SimplexLinear) AtRatio(sb float64) Node {
	if math.IsInf(sb, 1) {
		return Node{Sigma: 1}
	}
	return Node{T: 1 / (1 + sb), Alpha: 1 / (1 + sb), Sigma: sb / (1 + sb)}
}

// Velocity implements Field.
func (l SimplexLinear) Velocity(dst, x, p []float64, n Node) error {
	if l.K < 2 || n.Sigma <= 0 {
		return fmt.Errorf("schedules: simplex-linear: no field with %d categories at t=%g", l.K, n.T)
	}
	q := make([]float64, l.K)
	for at := 0; at < len(x); at += l.K {
		copy(q, p[at:at+l.K])
		ProjectSimplex(q)
		for k, v := range x[at : at+l.K] {
			dst[at+k] = (q[k] - v) / n.Sigma
		}
	}
	return nil
}

// Tilt implements Field: densities of the linear path are constant where they are not zero, and have no score.
func (SimplexLinear) Tilt(_, _, _ []float64, _ float64, _ Node) error {
	return errors.New("schedules: simplex-linear: the path has no score to add a gradient to")
}

// ProjectSimplex moves x to the nearest point of the simplex in place: max(x - theta, 0) with the theta that makes the sum
// 1 (Held, Wolfe, Crowder 1974). A point that is on the simplex but for rounding is only scaled; NaN and infinities
// stay, for the driver to find.
func ProjectSimplex(x []float64) {
	sum, least := 0.0, 0.0
	for _, v := range x {
		sum += v
		least = min(least, v)
	}
	if sum-sum != 0 {
		return
	}
	if least >= 0 && math.Abs(sum-1) <= 1e-12 {
		if sum != 1 {
			for k := range x {
				x[k] /= sum
			}
		}
		return
	}
	var own [64]float64
	v := append(own[:0], x...)
	slices.Sort(v)
	theta, total := 0.0, 0.0
	for k := len(v) - 1; k >= 0; k-- {
		total += v[k]
		if t := (total - 1) / float64(len(v)-k); v[k] > t {
			theta = t
		} else {
			break
		}
	}
	sum = 0
	for k, u := range x {
		x[k] = max(u-theta, 0)
		sum += x[k]
	}
	for k := range x {
		x[k] /= sum
	}
}

// DirichletCoefficient is C(x, t) of the conditional field of Dirichlet, at one time:
//
//	C(x, t) = -dI_x(a, b)/da B(a, b)/(x^(a-1) (1-x)^b),  a = 1 + t, b = K - 1
//
// I being the regularised incomplete beta function (arXiv 2402.05841, eq. 15). It rises from C(0) = 0, as -(x/a) log x, to
// C(1) = H/b, H = SUM_{j<b} 1/(a+j). Neither sum below loses digits to cancellation: with y = 1 - x,
//
//	C = -x B(a,b) y^-b SUM_{j<b} (a)_j/j! y^j (log x + h_j),     h_j = SUM_{i<j} 1/(a+i)
//	C = x/b SUM_n (a+b)_n/(b+1)_n y^n (log x + H_n),             H_n = H + SUM_{i<n} 1/(a+b+i)
//
// the first where its terms hardly cancel, the second elsewhere (there log x > -H, and its terms are positive). The
// relative error is below 1e-12 on (0, 1) for t up to 100 and K up to 160.
type DirichletCoefficient struct {
	a, b, sum float64 // sum is H
	h         []float64
	back      []float64 // ratio of the first series' terms j and j+1, times y
	panels    [panels]*[degree]float64
}

// NewDirichletCoefficient prepares C for K >= 2 categories at time t >= 0.
func NewDirichletCoefficient(k int, t float64) *DirichletCoefficient {
	c := &DirichletCoefficient{a: 1 + t, b: float64(k - 1), h: make([]float64, k-1), back: make([]float64, k-1)}
	for j := range c.h {
		c.h[j] = c.sum
		c.back[j] = float64(j+1) / (c.a + float64(j))
		c.sum += 1 / (c.a + float64(j))
	}
	return c
}

// At returns C(x, t); x is taken into [0, 1].
func (c *DirichletCoefficient) At(x float64) float64 {
	switch {
	case x <= 0:
		return 0
	case x >= 1:
		return c.sum / c.b
	case x != x:
		return x
	}
	y := 1 - x
	l := math.Log(x)
	if v, ok := c.finite(x, y, l); ok {
		return v
	}
	term, h, s := 1.0, l+c.sum, 0.0
	for n := 0.0; ; n++ {
		s += float64(term * h)
		h += 1 / (c.a + c.b + n)
		r := (c.a + c.b + n) / (c.b + 1 + n) * y
		term *= r
		if r < 1 && term*h <= 1e-17*s*(1-r) {
			return x / c.b * s
		}
	}
}

// finite returns the first sum, unless its terms cancel. It goes from the last term down: B (a)_j/j! y^(j-b) is
// 1/((a+b-1) y) at j = b-1.
func (c *DirichletCoefficient) finite(x, y, l float64) (float64, bool) {
	b := len(c.h)
	one := b == 1 || l <= -c.sum // all terms have one sign
	if !one && y <= 0.3 {
		return 0, false
	}
	most := math.Inf(1)
	if !one {
		most = 30 / x // C <= 1: more says that the terms cancel
	}
	term := 1 / ((c.a + c.b - 1) * y)
	s, size := 0.0, 0.0
	for j := b - 1; size <= most; j-- {
		d := float64(term * (l + c.h[j]))
		s -= d
		size += math.Abs(d)
		if j == 0 {
			break
		}
		term *= c.back[j-1] / y
	}
	return x * s, one || size <= min(most, 30*s)
}

// C/x is smooth in log x: near interpolates it by Chebyshev polynomials on octaves of x, where a sum would be long. A
// panel is made when it is first asked for, so that a value depends on (K, t, x) alone.
const (
	panels = 40
	degree = 16
	few    = 8 // terms of a sum that is short
)

// near is At to within 1e-12, for many x.
func (c *DirichletCoefficient) near(x float64) float64 {
	if !(x > 0 && x < 1) {
		return c.At(x)
	}
	l := math.Log(x)
	if len(c.h) <= few {
		if v, ok := c.finite(x, 1-x, l); ok {
			return v
		}
	}
	at := l / -math.Ln2
	i := int(at)
	if i >= panels {
		return c.At(x)
	}
	if c.panels[i] == nil {
		c.panels[i] = c.panel(i)
	}
	u := 2 * (2*(at-float64(i)) - 1) // twice the place in [-1, 1]
	var b1, b2 float64
	p := c.panels[i]
	for j := degree - 1; j > 0; j-- {
		b1, b2 = float64(u*b1)-b2+p[j], b1
	}
	return x * (float64(u/2*b1) - b2 + p[0])
}

// panel returns the Chebyshev coefficients of C/x over x from 2^-(i+1) to 2^-i.
func (c *DirichletCoefficient) panel(i int) *[degree]float64 {
	var f [degree]float64
	for k := range f {
		x := math.Exp2(-(float64(i) + (math.Cos(math.Pi*(float64(k)+0.5)/degree)+1)/2))
		f[k] = c.At(x) / x
	}
	p := new([degree]float64)
	for j := range p {
		for k, v := range f {
			p[j] += v * math.Cos(math.Pi*float64(j)*(float64(k)+0.5)/degree)
		}
		p[j] *= 2.0 / degree
	}
	p[0] /= 2
	return p
}
