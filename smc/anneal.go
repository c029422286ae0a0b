package smc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"drift/internal/rng"
)

// Block is a part of a stochastic normalising flow (Wu, Koehler and Noe 2020, arXiv 2002.06707): it moves a particle and
// returns dS, the log of the probability of the way back over that of the way there. A chain of blocks that starts from
// exp(-u_0) has weights
//
//	lw = log gamma(x_L) + u_0(x_0) + sum dS,
//
// whose exponentials have mean int gamma / int exp(-u_0), whatever the blocks leave invariant.
type Block interface {
	// Apply moves x in place. level is the tempered density that moves are about, draw gives unit normals and uniforms.
	Apply(x []float64, level Density, draw *Draws) (dS float64)
}

// Draws hands out the random numbers of one particle and block.
type Draws struct {
	key  rng.Key
	used int
}

// Normal fills z.
func (d *Draws) Normal(z []float64) {
	k := d.key
	k.Step = k.Step<<10 + d.used
	rng.Normal(z, k)
	d.used++
}

// Uniform returns a number on [0, 1).
func (d *Draws) Uniform() float64 {
	k := d.key
	k.Step, k.Purpose = k.Step<<10+d.used, rng.PurposeAccept
	var u [1]float64
	rng.Uniform(u[:], k)
	d.used++
	return u[0]
}

// Flow is an invertible map: it moves x and returns log |det J|.
type Flow func(x []float64) (logDet float64)

// Apply implements Block.
func (f Flow) Apply(x []float64, _ Density, _ *Draws) float64 { return f(x) }

// Langevin is the overdamped step y = x + Step grad log gamma + sqrt(2 Step) z with its exact dS = (|z|^2 - |z~|^2)/2, z~ the
// noise that would lead back. With Biased dS is that of a move that left the density invariant, which it is not: AIS with
// unadjusted moves, for comparison.
type Langevin struct {
	Step   float64
	Biased bool
}

// Apply implements Block.
func (l Langevin) Apply(x []float64, g Density, draw *Draws) float64 {
	z := make([]float64, len(x))
	draw.Normal(z)
	y, back, from, to := l.propose(x, z, g)
	dS := 0.0
	for i := range z {
		dS += 0.5 * (float64(z[i]*z[i]) - float64(back[i]*back[i]))
	}
	copy(x, y)
	if l.Biased {
		return from - to
	}
	return dS
}

// propose makes a step from x with noise z; back is the noise of the way back, from and to the log densities.
func (l Langevin) propose(x, z []float64, g Density) (y, back []float64, from, to float64) {
	d := len(x)
	gx, gy := make([]float64, d), make([]float64, d)
	y, back = make([]float64, d), make([]float64, d)
	from = g.Log(x, gx)
	root := math.Sqrt(2 * l.Step)
	for i := range x {
		y[i] = x[i] + float64(l.Step*gx[i]) + float64(root*z[i])
	}
	to = g.Log(y, gy)
	for i := range x {
		back[i] = (x[i] - y[i] - float64(l.Step*gy[i])) / root
	}
	return y, back, from, to
}

// Underdamped is a step of Langevin dynamics with momenta, which are drawn anew at its start, by the splitting BAOAB with
// friction Gamma and unit masses; its dS is that of the refreshed momenta and of the noise in its middle.
type Underdamped struct{ Step, Gamma float64 }

// Apply implements Block.
func (l Underdamped) Apply(x []float64, g Density, draw *Draws) float64 {
	d := len(x)
	v, z, grad := make([]float64, d), make([]float64, d), make([]float64, d)
	draw.Normal(v)
	draw.Normal(z)
	h := l.Step
	c := math.Exp(-l.Gamma * h)
	s := math.Sqrt(1 - c*c)
	dS := 0.0
	for i := range v {
		dS += 0.5 * float64(v[i]*v[i]) // log density of the momenta that were drawn, taken away
	}
	g.Log(x, grad)
	for i := range x {
		v[i] += 0.5 * h * grad[i]
		x[i] += 0.5 * h * v[i]
		w := c*v[i] + s*z[i]
		back := (v[i] - c*w) / s // the noise that turns -w into -v
		dS += 0.5 * (float64(z[i]*z[i]) - float64(back*back))
		v[i] = w
		x[i] += 0.5 * h * w
	}
	g.Log(x, grad)
	for i := range x {
		v[i] += 0.5 * h * grad[i]
		dS -= 0.5 * float64(v[i]*v[i])
	}
	return dS
}

// MALA is a Langevin step that is accepted or not so that the density stays (Metropolis-adjusted); dS is the difference of
// log gamma, for the step kept.
type MALA struct{ Step float64 }

// Apply implements Block.
func (m MALA) Apply(x []float64, g Density, draw *Draws) float64 {
	z := make([]float64, len(x))
	draw.Normal(z)
	y, back, from, to := Langevin{Step: m.Step}.propose(x, z, g)
	log := to - from
	for i := range z {
		log += 0.5 * (float64(z[i]*z[i]) - float64(back[i]*back[i]))
	}
	return accept(x, y, from, to, log, draw)
}

// accept takes the proposal y with probability exp(log).
func accept(x, y []float64, from, to, log float64, draw *Draws) float64 {
	if math.Log(draw.Uniform()) < log {
		copy(x, y)
		return from - to
	}
	return 0
}

// Metropolis is a random walk of standard deviation SD.
type Metropolis struct{ SD float64 }

// Apply implements Block.
func (m Metropolis) Apply(x []float64, g Density, draw *Draws) float64 {
	y := make([]float64, len(x))
	draw.Normal(y)
	for i := range y {
		y[i] = x[i] + float64(m.SD*y[i])
	}
	from, to := g.Log(x, nil), g.Log(y, nil)
	return accept(x, y, from, to, to-from, draw)
}

// HMC is Hamiltonian Monte Carlo: Leaps leapfrog steps of size Step with fresh momenta, accepted or not.
type HMC struct {
	Step  float64
	Leaps int // 0 = 1
}

// Apply implements Block.
func (m HMC) Apply(x []float64, g Density, draw *Draws) float64 {
	d := len(x)
	v, grad, y := make([]float64, d), make([]float64, d), slices.Clone(x)
	draw.Normal(v)
	h0 := 0.0
	for _, p := range v {
		h0 += 0.5 * float64(p*p)
	}
	from := g.Log(y, grad)
	to := from
	for range max(1, m.Leaps) {
		for i := range y {
			v[i] += 0.5 * m.Step * grad[i]
			y[i] += m.Step * v[i]
		}
		to = g.Log(y, grad)
		for i := range v {
			v[i] += 0.5 * m.Step * grad[i]
		}
	}
	h1 := 0.0
	for _, p := range v {
		h1 += 0.5 * float64(p*p)
	}
	return accept(x, y, from, to, to-from+h0-h1, draw)
}

// Anneal carries particles from an easy density to a hard one through the levels gamma_b = gamma_0^(1-b) gamma_1^b: annealed
// importance sampling (Neal 2001), with resampling a sequential Monte Carlo sampler (Del Moral, Doucet and Jasra 2006),
// with flows and unadjusted moves among the blocks a stochastic normalising flow.
type Anneal struct {
	From  Density
	Start func(x []float64, draw *Draws) // draws from the normalised From
	To    Density

	Levels []float64 // b of every level, rising to 1; nil: chosen so that the conditional effective sample size halves
	Blocks []Block   // applied at every level, in order
	Policy Policy    // of resampling after a level; Never is AIS
	First  []Block   // applied before the first level, about From
}

// Annealed is the result of a run of Anneal.
type Annealed struct {
	Paths
	Levels []float64
	Sizes  []float64 // effective sample size after every level, before resampling
	Group  Group
}

// mix is the density of level b.
func (a *Anneal) mix(b float64) Density {
	return Density{Dim: a.From.Dim, Log: func(x, grad []float64) float64 {
		if grad == nil {
			return (1-b)*a.From.Log(x, nil) + b*a.To.Log(x, nil)
		}
		other := make([]float64, len(x))
		l0, l1 := a.From.Log(x, other), a.To.Log(x, grad)
		for i := range grad {
			grad[i] = (1-b)*other[i] + b*grad[i]
		}
		return (1-b)*l0 + b*l1
	}}
}

// Run carries n particles of the streams of seed.
func (a Anneal) Run(ctx context.Context, seed uint64, n int) (*Annealed, error) {
	if n < 1 || a.From.Dim < 1 || a.From.Dim != a.To.Dim || a.From.Log == nil || a.To.Log == nil || a.Start == nil {
		return nil, errors.New("smc: annealing: want particles, a start, and two densities of one dimension")
	}
	if err := a.Policy.check(); err != nil {
		return nil, err
	}
	for i, b := range a.Levels {
		if !(b >= 0 && b <= 1) || i > 0 && b < a.Levels[i-1] || i == len(a.Levels)-1 && b != 1 {
			return nil, fmt.Errorf("smc: annealing: level %d is %g: want numbers that rise to 1", i, b)
		}
	}
	d := a.From.Dim
	out := &Annealed{}
	out.X = make([]float64, n*d)
	pop, err := newPopulation(Rows([]uint64{seed}, n))
	if err != nil {
		return nil, err
	}
	row := func(j int) []float64 { return out.X[j*d : (j+1)*d] }
	draws := func(j, block int) *Draws {
		return &Draws{key: rng.Key{Seed: seed, Image: uint64(j), Step: block, Purpose: rng.PurposeStep}}
	}
	acc := make([]float64, n) // u_0(x_0) + sum dS, since the last resampling
	for j := range n {
		a.Start(row(j), draws(j, 0))
		acc[j] = -a.From.Log(row(j), nil)
	}
	block := 1
	move := func(blocks []Block, g Density) {
		for _, b := range blocks {
			for j := range n {
				acc[j] += b.Apply(row(j), g, draws(j, block))
			}
			block++
		}
	}
	move(a.First, a.From)
	old := 0.0
	for k := 0; old < 1; k++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := 1.0
		switch {
		case a.Levels != nil:
			b = a.Levels[k]
		default:
			b = a.next(old, out.X, pop.LW)
		}
		move(a.Blocks, a.mix(b))
		level := a.mix(b)
		for j := range n {
			pop.LW[j] = acc[j] + level.Log(row(j), nil)
		}
		w, err := Weigh(pop.LW)
		if err == nil && w.NaN > 0 {
			err = fmt.Errorf("smc: %d log weights are NaN", w.NaN)
		}
		if err != nil {
			return nil, fmt.Errorf("smc: annealing: level %g: %w", b, err)
		}
		out.Levels, out.Sizes = append(out.Levels, b), append(out.Sizes, w.ESS)
		policy := a.Policy
		if b == 1 {
			policy.When = Never
		}
		parents, _, err := pop.resample(policy, k, b, false)
		if err != nil {
			return nil, err
		}
		if parents != nil {
			gatherRows(out.X, parents)
			for j := range n { // what tempering left on the particle stays
				acc[j] = pop.LW[j] - level.Log(row(j), nil)
			}
		}
		if old = b; a.Levels != nil && k == len(a.Levels)-1 {
			break
		}
	}
	out.LogWeights = pop.LW
	g := pop.group(0)
	out.Group = g
	out.LogZ, out.ESS = g.LogZ, g.ESS
	for _, v := range pop.LW {
		out.ELBO += v / float64(n)
	}
	out.ELBO += pop.Banked[0]
	return out, nil
}

// next finds the level at which the incremental weights of the particles have a conditional effective sample size of half
// their number (Zhou, Johansen and Aston 2016), or 1.
func (a *Anneal) next(b float64, x, lw []float64) float64 {
	n := len(lw)
	d := len(x) / n
	diff := make([]float64, n)
	for j := range n {
		diff[j] = a.To.Log(x[j*d:(j+1)*d], nil) - a.From.Log(x[j*d:(j+1)*d], nil)
	}
	w, err := Weigh(lw)
	if err != nil {
		return 1
	}
	size := func(c float64) float64 {
		top := math.Inf(-1)
		for _, v := range diff {
			top = max(top, (c-b)*v)
		}
		one, two := 0.0, 0.0
		for j, v := range diff {
			e := math.Exp((c-b)*v - top)
			one += w.W[j] * e
			two += w.W[j] * e * e
		}
		return one * one / two
	}
	if size(1) >= 0.5 {
		return 1
	}
	lo, hi := b, 1.0
	for range 60 {
		if mid := (lo + hi) / 2; size(mid) >= 0.5 {
			lo = mid
		} else {
			hi = mid
		}
	}
	if lo-b < 1e-9 { // no progress to be made gently
		return min(1, b+1e-6)
	}
	return lo
}
