// Package smc is sequential Monte Carlo over the samplers: populations of particles on the batch axis that are weighted
// while they are sampled, and resampled by their weights. With it a reward steers any stochastic sampler (FK), a set of
// experts is composed exactly (FKC), and candidates are chosen step by step (SVDD).
//
// Particles are rows of a batch: row {Seed: s, Particle: j} is particle j of group s. Groups are independent
// populations, one per output; weights, resampling and normalisers are per group, so that results do not depend on
// which groups share a batch. Everything about weights is in logarithms and float64.
//
// The recursion, for log weights lw and W = softmax(lw): propagate the particles; lw += log G; where a group resamples,
// draw ancestors A ~ W, x <- x[A], log Z += logmeanexp(lw), lw <- 0; otherwise the weights are carried on. At the end
// log Z + logmeanexp(lw) estimates the normaliser, and exp of it is unbiased (Del Moral, Feynman-Kac Formulae, 2004).
package smc

import (
	"errors"
	"fmt"
	"math"
)

// Errors about log weights.
var (
	ErrDead     = errors.New("smc: every weight is zero")
	ErrInfinite = errors.New("smc: a log weight is +Inf")
	ErrEmpty    = errors.New("smc: no weights")
)

// Weights is what a set of log weights says.
type Weights struct {
	W       []float64 // normalised: softmax of the log weights
	LogMean float64   // log of the mean weight
	ESS     float64   // effective sample size (sum w)^2 / sum w^2, in [1, K]
	Entropy float64   // -sum W log W / log K, in [0, 1]; 0 for K = 1
	NaN     int       // weights that were not numbers and count as zero
}

// Weigh normalises log weights in nats. A NaN counts as weight zero. Where every weight is zero it returns ErrDead with
// LogMean = -Inf, ESS 0 and no W; ErrInfinite where one is +Inf; ErrEmpty where there are none.
func Weigh(lw []float64) (Weights, error) {
	if len(lw) == 0 {
		return Weights{}, ErrEmpty
	}
	out := Weights{LogMean: math.Inf(-1)}
	top := math.Inf(-1)
	for _, v := range lw {
		if math.IsNaN(v) {
			out.NaN++
		} else {
			top = max(top, v)
		}
	}
	switch {
	case math.IsInf(top, 1):
		return out, ErrInfinite
	case math.IsInf(top, -1):
		return out, ErrDead
	}
	out.W = make([]float64, len(lw))
	sum, squares, tilt := 0.0, 0.0, 0.0
	for i, v := range lw {
		if math.IsNaN(v) || math.IsInf(v, -1) {
			continue
		}
		w := math.Exp(v - top)
		out.W[i] = w
		sum += w
		squares += float64(w * w)
		tilt += float64(w * (v - top))
	}
	for i := range out.W {
		out.W[i] /= sum
	}
	k := float64(len(lw))
	out.LogMean = top + math.Log(sum/k)
	out.ESS = min(k, sum*sum/squares)
	if len(lw) > 1 { // -sum W log W = log sum - sum W (v - top)
		out.Entropy = min(1, max(0, (math.Log(sum)-tilt/sum)/math.Log(k)))
	}
	return out, nil
}

// Strength returns the lambda at which weights exp(lambda r) have the effective sample size share K, 0 < share < 1: a
// strength to start with, from the rewards of a first check. It fails where no strength does: rewards that are all equal or
// tied for the largest, or not finite (-Inf is: it weighs nothing).
func Strength(rewards []float64, share float64) (float64, error) {
	size := func(lambda float64) (float64, error) {
		lw := make([]float64, len(rewards))
		for i, r := range rewards {
			if math.IsNaN(r) {
				return 0, fmt.Errorf("smc: reward %d is NaN", i)
			}
			lw[i] = lambda * r
		}
		w, err := Weigh(lw)
		return w.ESS / float64(max(1, len(rewards))), err
	}
	if !(share > 0 && share < 1) {
		return 0, fmt.Errorf("smc: share %g of the particles: want a number between 0 and 1", share)
	}
	lo, hi := 0.0, 1.0
	for { // the size falls as lambda grows
		s, err := size(hi)
		if err != nil {
			return 0, err
		}
		if s <= share {
			break
		}
		if lo, hi = hi, 2*hi; hi > 1e30 {
			return 0, fmt.Errorf("smc: no strength brings the effective sample size of %d rewards to %g of them", len(rewards), share)
		}
	}
	for hi-lo > 1e-12*hi {
		mid := lo + (hi-lo)/2
		if s, err := size(mid); err != nil {
			return 0, err
		} else if s > share {
			lo = mid
		} else {
			hi = mid
		}
	}
	return hi, nil
}

// WeightError says which group's weights went wrong, and when.
type WeightError struct {
	Seed uint64
	Step int // steps made
	Err  error
}

func (e *WeightError) Error() string {
	return fmt.Sprintf("%v (group of seed %d, after step %d)", e.Err, e.Seed, e.Step)
}

// Unwrap gives ErrDead, ErrInfinite or what else went wrong.
func (e *WeightError) Unwrap() error { return e.Err }
