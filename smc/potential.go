package smc

import (
	"context"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/schedules"
)

// Potential is how FK spends the reward over the checks. With r_k the reward of the clean-data estimate at check k,
// lambda_k the strength there, and r_{-1} = Init, the log weight of check k is
//
//	difference  lambda_k (r_k - Init) - (what was paid so far);  lambda (r_k - r_{k-1}) for constant lambda
//	max         lambda_k max(r_0 ... r_k, Init)
//	sum         lambda_k (r_0 + ... + r_k + Init)
//	immediate   lambda_k r_k
//	none        0: importance sampling, the reward counts at the end only
//
// and at the last check, where r is the reward of the sample itself, the last four divide by all they paid: lambda r
// - (what was paid). So the product of the weights of a path is exp(lambda r(x_0)) for all of them (difference:
// exp(lambda (r - Init))), which is the tilt that FK samples from; they differ in variance. (Singhal et al. 2025,
// arXiv 2501.06848, section 3.)
type Potential int

// The potentials.
const (
	Difference Potential = iota
	Max
	Sum
	Immediate
	None
)

var potentialNames = []string{"difference", "max", "sum", "immediate", "none"}

func (p Potential) String() string { return nameOf(potentialNames, int(p)) }

// ParsePotential reads a potential's name, or that of the public reference: diff, add, rt, is.
func ParsePotential(s string) (Potential, error) {
	switch s {
	case "diff":
		return Difference, nil
	case "add":
		return Sum, nil
	case "rt":
		return Immediate, nil
	case "is":
		return None, nil
	}
	i, err := find("potential", potentialNames, s)
	return Potential(i), err
}

// start is the statistic before the first check when the user names none.
func (p Potential) start() float64 {
	if p == Max {
		return math.Inf(-1)
	}
	return 0
}

// pay returns the log weight of a check and the new statistic. stat is the statistic so far, init its first value, paid
// the sum of the log weights so far, lr lambda times the reward r. A path of weight zero stays so.
func (p Potential) pay(r, lambda, stat, init, paid float64, last, published bool) (d, next float64) {
	switch p {
	case Max:
		next = max(r, stat)
	case Sum:
		next = r + stat
	default:
		next = r
	}
	if math.IsInf(paid, -1) {
		return math.Inf(-1), next
	}
	switch {
	case p == Difference:
		return times(lambda, r-init) - paid, next
	case last && published && (p == Max || p == Sum):
		return times(lambda, next) - paid, next
	case last:
		return times(lambda, r) - paid, next
	case p == None:
		return 0, next
	}
	return times(lambda, next), next
}

// times is lambda v where a strength of zero asks for nothing, infinite rewards included.
func times(lambda, v float64) float64 {
	if lambda == 0 {
		return 0
	}
	return lambda * v
}

// Reward scores clean data. x0 holds one row per particle: the estimate of the clean image at a check, the sample
// itself at the last one. It must not be changed or kept. The result is one number per row, in nats at strength 1;
// -Inf rules a row out, NaN and +Inf are errors. It must depend on nothing but its arguments, or runs cannot be
// repeated.
type Reward func(ctx context.Context, x0 *tensor.Dense, at *Look) ([]float64, error)

// Look is where a reward is asked.
type Look struct {
	Rows     []models.Row // the particles
	Groups   []Group      // the populations that they belong to, as they stood before this check
	Cond     *models.Cond // what each row is conditioned on, may be nil
	At       schedules.Node
	Step     int     // steps made
	Steps    int     // in all, 0 where a sampler does not know
	Progress float64 // in [0, 1]
	Lambda   float64 // strength of this check
	Last     bool    // x0 is the sample, not an estimate
	Previous []float64
	// Previous are the rewards of the last check, each row's own past; nil at the first.
}

// RewardError says which reward is not a number to steer by.
type RewardError struct {
	Row   models.Row
	Step  int // steps made
	Value float64
}

func (e *RewardError) Error() string {
	return fmt.Sprintf("smc: the reward of particle %d of seed %d is %g after step %d", e.Row.Particle, e.Row.Seed, e.Value, e.Step)
}
