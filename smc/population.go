package smc

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"drift/internal/rng"
	"drift/models"
)

// When says at which checks a group resamples.
type When int

// The choices: where the effective sample size is below the threshold, at every check, or never.
const (
	Adaptive When = iota
	Always
	Never
)

var whenNames = []string{"ess", "every", "never"}

func (w When) String() string { return nameOf(whenNames, int(w)) }

// ParseWhen reads ess, every or never.
func ParseWhen(s string) (When, error) {
	i, err := find("resampling policy", whenNames, s)
	return When(i), err
}

// Policy is when and how groups resample. The zero value resamples systematically where the effective sample size is
// below half the particles. A group whose weights are all equal is left as it is, whatever the policy.
type Policy struct {
	When      When
	ESS       float64 // threshold of Adaptive as a fraction of K; 0 = 0.5
	Resampler Resampler
	Temper    Temper

	uniforms func(rng.Key) Uniforms // nil: the streams of the key
}

func (p *Policy) check() error {
	if p.When < Adaptive || p.When > Never {
		return fmt.Errorf("smc: unknown resampling policy %d", int(p.When))
	}
	if p.Resampler < Systematic || p.Resampler > Killing {
		return fmt.Errorf("smc: unknown resampler %d", int(p.Resampler))
	}
	if !(p.ESS >= 0 && p.ESS <= 1) {
		return fmt.Errorf("smc: the threshold of the effective sample size is %g of the particles, want a number in [0, 1]", p.ESS)
	}
	return p.Temper.check()
}

// Rows names the particles of groups: row {seed, j} for every seed and j = 0 ... k-1, group by group.
func Rows(seeds []uint64, k int) []models.Row {
	rows := make([]models.Row, 0, len(seeds)*k)
	for _, s := range seeds {
		for j := range k {
			rows = append(rows, models.Row{Seed: s, Particle: j})
		}
	}
	return rows
}

// Repeat gives every particle the condition of its group: cond has one entry per group, and the result k of each.
func Repeat(cond *models.Cond, groups, k int) *models.Cond {
	parents := make([]int, 0, groups*k)
	for g := range groups {
		for range k {
			parents = append(parents, g)
		}
	}
	return cond.Select(parents)
}

// Group is what is known of one population: rows From ... To-1 of the batch.
type Group struct {
	Seed     uint64
	From, To int
	// LogZ estimates the log of the normaliser; exp(LogZ) is unbiased.
	LogZ float64
	// Variance estimates Var(Z)/Z^2, about the variance of LogZ, from who descends from whom (Lee and Whiteley 2018,
	// arXiv 1509.00394, eq. 2, m resamplings so far, S_e the weight of all descendants of start particle e):
	//
	//	1 - (K/(K-1))^(m+1) (1 - sum_e S_e^2)
	//
	// It holds for multinomial resampling and errs on the large side for the others; with one root left it says 1,
	// that is nothing. NaN for K = 1.
	Variance  float64
	ESS       float64 // of the weights as they are
	Roots     int     // start particles with descendants
	Diversity float64 // effective number of roots, 1/sum_e S_e^2
	Resampled int     // how often
}

// population is the weights and the ancestry of all groups of a batch.
type population struct {
	Seeds  []uint64
	Ends   []int     // group g is rows Ends[g-1] ... Ends[g]-1
	LW     []float64 // carried log weights, one per row
	Roots  []int     // start particle of each row, counted within its group
	Banked []float64 // log Z of the resamplings so far, one per group
	Times  []int     // resamplings so far, one per group
}

func newPopulation(rows []models.Row) (*population, error) {
	p := &population{LW: make([]float64, len(rows)), Roots: make([]int, len(rows))}
	seen := map[models.Row]bool{}
	for i, r := range rows {
		if seen[r] {
			return nil, fmt.Errorf("smc: particle %d of seed %d stands in the batch twice", r.Particle, r.Seed)
		}
		seen[r] = true
		if n := len(p.Seeds); n > 0 && p.Seeds[n-1] == r.Seed {
			p.Ends[n-1]++
		} else {
			if slices.Contains(p.Seeds, r.Seed) {
				return nil, fmt.Errorf("smc: the particles of seed %d do not stand together", r.Seed)
			}
			p.Seeds, p.Ends = append(p.Seeds, r.Seed), append(p.Ends, i+1)
		}
		from, _ := p.span(len(p.Seeds) - 1)
		p.Roots[i] = i - from
	}
	p.Banked, p.Times = make([]float64, len(p.Seeds)), make([]int, len(p.Seeds))
	return p, nil
}

func (p *population) span(g int) (from, to int) {
	if g > 0 {
		from = p.Ends[g-1]
	}
	return from, p.Ends[g]
}

// single tells whether every group has one particle.
func (p *population) single() bool { return len(p.Ends) == len(p.LW) }

// fits tells whether a population that was read back belongs to the rows of other.
func (p *population) fits(other *population) bool {
	g := len(other.Seeds)
	return slices.Equal(p.Seeds, other.Seeds) && slices.Equal(p.Ends, other.Ends) && len(p.LW) == len(other.LW) &&
		len(p.Roots) == len(other.LW) && len(p.Banked) == g && len(p.Times) == g
}

// resample lets every group resample that should, after step number step (from 0) of the run and at the given
// progress. It updates weights, normalisers and roots, and returns the row that each row goes on from (nil: no group
// resampled) and the temperature of each group. With deadPass a group without weight is left as it is.
func (p *population) resample(pol Policy, step int, progress float64, deadPass bool) (parents []int, temps []float64, err error) {
	return p.ahead(pol, step, progress, deadPass, nil)
}

// ahead is resample with ancestors drawn from softmax(lw + eta): an auxiliary particle filter, for any eta. What a draw from
// other weights than lw left out stays on the particles: draw from softmax(d), log Z += logmeanexp(d), lw <- (lw - d)[A].
func (p *population) ahead(pol Policy, step int, progress float64, deadPass bool, eta []float64) (parents []int, temps []float64, err error) {
	temps = make([]float64, len(p.Seeds))
	for g, seed := range p.Seeds {
		from, to := p.span(g)
		temps[g] = 1
		lw, k := p.LW[from:to], to-from
		d := lw
		if eta != nil {
			d = slices.Clone(lw)
			for i := range d {
				d[i] += eta[from+i]
			}
		}
		fail := func(err error) ([]int, []float64, error) {
			return nil, nil, &WeightError{Seed: seed, Step: step + 1, Err: err}
		}
		w, err := Weigh(d)
		if deadPass && errors.Is(err, ErrDead) {
			continue
		}
		if err == nil && w.NaN > 0 {
			err = fmt.Errorf("smc: %d log weights are NaN", w.NaN)
		}
		if err != nil {
			return fail(err)
		}
		threshold := pol.ESS
		if threshold == 0 {
			threshold = 0.5
		}
		if pol.When == Never || slices.Min(d) == slices.Max(d) || (pol.When == Adaptive && w.ESS >= threshold*float64(k)) {
			continue
		}
		draw, keep := w, eta != nil
		if t := pol.Temper.Temperature(w, progress); t != 1 {
			flat := make([]float64, k)
			for i, v := range d {
				flat[i] = v / t
			}
			if draw, err = Weigh(flat); err != nil {
				return fail(err)
			}
			temps[g] = t
			if !pol.Temper.Drop { // what the draw did not use stays on the particles
				keep, w, d = true, draw, flat
			}
		}
		source := pol.uniforms
		if source == nil {
			source = uniforms
		}
		a, err := pol.Resampler.Ancestors(draw.W, k, source(rng.Key{Seed: seed, Step: step, Purpose: rng.PurposeResample}))
		if err != nil {
			return fail(err)
		}
		if parents == nil {
			parents = identity(len(p.LW))
		}
		p.Banked[g] += w.LogMean
		oldLW, oldRoots := slices.Clone(lw), slices.Clone(p.Roots[from:to])
		for j, i := range a {
			parents[from+j] = from + i
			p.Roots[from+j] = oldRoots[i]
			p.LW[from+j] = 0
			if keep {
				p.LW[from+j] = oldLW[i] - d[i]
			}
		}
		p.Times[g]++
	}
	return parents, temps, nil
}

func (p *population) clone() *population {
	c := *p
	c.LW, c.Roots, c.Banked, c.Times = slices.Clone(p.LW), slices.Clone(p.Roots), slices.Clone(p.Banked), slices.Clone(p.Times)
	return &c
}

// group reports on group g.
func (p *population) group(g int) Group {
	from, to := p.span(g)
	k := to - from
	out := Group{Seed: p.Seeds[g], From: from, To: to, Resampled: p.Times[g]}
	w, _ := Weigh(p.LW[from:to])
	out.LogZ, out.ESS = p.Banked[g]+w.LogMean, w.ESS
	shares := make([]float64, k)
	alive := make([]bool, k)
	for i := range k {
		alive[p.Roots[from+i]] = true
		if w.W != nil {
			shares[p.Roots[from+i]] += w.W[i]
		}
	}
	squares := 0.0
	for e, s := range shares {
		if alive[e] {
			out.Roots++
		}
		squares += float64(s * s)
	}
	out.Variance = math.NaN()
	if w.W != nil {
		out.Diversity = 1 / squares
		if k > 1 {
			out.Variance = max(0, 1-math.Pow(float64(k)/float64(k-1), float64(p.Times[g]+1))*max(0, 1-squares))
		}
	}
	return out
}

func (p *population) all() []Group {
	out := make([]Group, len(p.Seeds))
	for g := range out {
		out[g] = p.group(g)
	}
	return out
}

// uniforms reads the uniforms of a key in order.
func uniforms(key rng.Key) Uniforms {
	used := 0
	return func(n int) []float64 {
		u := make([]float64, used+n)
		rng.Uniform(u, key)
		u = u[used:]
		used += n
		return u
	}
}

func identity(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func gather(v []float64, parents []int) []float64 {
	out := make([]float64, len(parents))
	for j, i := range parents {
		out[j] = v[i]
	}
	return out
}

// gatherRows re-indexes the rows of x in place.
func gatherRows(x []float64, parents []int) {
	old, w := slices.Clone(x), len(x)/len(parents)
	for j, i := range parents {
		copy(x[j*w:(j+1)*w], old[i*w:(i+1)*w])
	}
}

// Resample draws as many ancestors as there are log weights, from their softmax: what makes weighted particles equally
// weighted ones. The draw belongs to (seed, step). Equal weights keep every particle in its place.
func Resample(lw []float64, r Resampler, seed uint64, step int) ([]int, error) {
	w, err := Weigh(lw)
	if err != nil {
		return nil, err
	}
	if slices.Min(lw) == slices.Max(lw) {
		return identity(len(lw)), nil
	}
	return r.Ancestors(w.W, len(lw), uniforms(rng.Key{Seed: seed, Step: step, Purpose: rng.PurposeResample}))
}
