package smc

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math"

	"gorgonia.org/tensor"

	"drift/internal/rng"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// SVDD is soft value-based decoding (Li et al. 2024, arXiv 2408.08252): every step is made M times with fresh noise,
// and one of the candidates goes on: the one with the largest value, or with a Temperature a draw with weights
// exp(value/Temperature). The samples of a batch know nothing of each other.
//
// With Value nil the value of a candidate is the Reward of its clean-data estimate (the PM form): M evaluations per
// step, the winner's is reused by the next step. With Value it is what that says of the noisy candidates (the MC
// form): one evaluation per step.
//
// Choosing the largest is not sampling: values grow without limit, like the square root of the number of steps. With
// a Temperature a and exact values a log E[exp(r/a)|x], many steps sample p exp((1-1/M) r/a). M = 1 is the base
// sampler bit for bit.
type SVDD struct {
	Base        samplers.Sampler
	M           int // candidates; 0 = 1
	Temperature float64
	Reward      Reward
	// Value scores noisy candidates in x (not to be changed or kept) at Look.At; at the last step x is the sample.
	Value  Reward
	Latent bool // rewards see the state's own space, without Problem.Codec

	// Observe is called after every choice: Rewards are the values of the M candidates of every row, row by row, and
	// Parents those that go on.
	Observe func(*Check) error
}

// Needs implements samplers.Sampler.
func (s SVDD) Needs() samplers.Needs {
	if s.Base == nil {
		return samplers.Needs{}
	}
	return s.Base.Needs()
}

type svddRun struct {
	s       SVDD
	p       *samplers.Problem
	base    samplers.Run
	process schedules.Gaussian
	last    int
	x0      *tensor.Dense
	rewards []float64
	pending bool // candidates are made and not chosen from
	cost    Cost
}

// Begin implements samplers.Sampler.
func (s SVDD) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	r, err := s.newRun(p)
	if err != nil {
		return nil, err
	}
	if r.base, err = s.Base.Begin(ctx, p); err != nil {
		return nil, err
	}
	return r, r.able()
}

func (s SVDD) newRun(p *samplers.Problem) (*svddRun, error) {
	fail := func(format string, a ...any) (*svddRun, error) { return nil, fmt.Errorf("smc: svdd: "+format, a...) }
	s.M = max(s.M, 1)
	switch {
	case s.Base == nil:
		return fail("no base sampler")
	case !(s.Temperature >= 0) || math.IsInf(s.Temperature, 1):
		return fail("temperature %g: want a number of 0 or more", s.Temperature)
	case s.M > 1 && (s.Reward == nil) == (s.Value == nil):
		return fail("want a reward or a value function, not both")
	}
	den, ok := p.Model.(models.Denoiser)
	if !ok {
		return fail("needs a model that denoises, have %T", p.Model)
	}
	process, ok := den.Process().(schedules.Gaussian)
	if !ok {
		return fail("needs a Gaussian process, the model's is %s", den.Process().Name())
	}
	return &svddRun{s: s, p: p, process: process, last: p.Last}, nil
}

func (r *svddRun) able() error {
	if r.last == 0 {
		r.last = r.base.State().N
	}
	if r.s.M == 1 {
		return nil
	}
	fail := func(what string) error {
		return fmt.Errorf("smc: %T cannot choose between candidates: %s", r.s.Base, what)
	}
	if !r.s.Base.Needs().Noise {
		return fail("it draws no step noise, so they would be equal; use its stochastic form (ddim:eta=1, ddpm, dpmpp-2m-sde ...)")
	}
	if r.last == 0 {
		return fail("it places its steps as it goes, image by image")
	}
	if _, ok := r.base.(samplers.Selector); !ok {
		return fail("its runs cannot be re-indexed")
	}
	if _, ok := r.base.(samplers.Peeker); !ok {
		return fail("its runs cannot be asked for the next prediction")
	}
	return nil
}

// Next implements samplers.Run. After an error of the reward it may be called again, or the run saved.
func (r *svddRun) Next(ctx context.Context) (bool, error) {
	m := r.s.M
	if m == 1 {
		return r.base.Next(ctx)
	}
	if !r.pending {
		st := r.base.State()
		if st.I >= r.last {
			return r.base.Next(ctx)
		}
		if st.X.Shape()[0] == len(r.p.Rows) { // else an interrupted step has made the candidates
			if st.At.Sigma > 0 { // one evaluation for all of them
				if _, err := r.base.(samplers.Peeker).Peek(ctx); err != nil {
					return false, err
				}
			}
			parents := make([]int, 0, m*len(r.p.Rows))
			for k := range r.p.Rows {
				for range m {
					parents = append(parents, k)
				}
			}
			if err := r.base.(samplers.Selector).Select(parents, r.candidates()); err != nil {
				return false, err
			}
		}
		if done, err := r.base.Next(ctx); done || err != nil {
			return done, err
		}
		r.pending = true
	}
	return false, r.choose(ctx)
}

// candidates names the rows of the candidates: those of row {s, j} are particles j M ... j M + M-1.
func (r *svddRun) candidates() []models.Row {
	rows := make([]models.Row, 0, r.s.M*len(r.p.Rows))
	for _, row := range r.p.Rows {
		for c := range r.s.M {
			rows = append(rows, models.Row{Seed: row.Seed, Particle: row.Particle*r.s.M + c})
		}
	}
	return rows
}

func (r *svddRun) choose(ctx context.Context) error {
	st := r.base.State()
	m := r.s.M
	look := &Look{Rows: r.candidates(), At: st.At, Step: st.I, Steps: r.last, Progress: float64(st.I) / float64(r.last), Lambda: 1, Last: st.I >= r.last}
	repeat := make([]int, len(look.Rows))
	for i := range repeat {
		repeat[i] = i / m
	}
	look.Cond = r.p.Cond.Select(repeat)
	if r.rewards != nil {
		look.Previous = gather(r.rewards, repeat)
	}
	fail := func(err error) error {
		return fmt.Errorf("smc: step %d at sigma/alpha %.4g: %w", st.I-1, st.At.Ratio(), err)
	}
	x, value := st.X, r.s.Value
	if value == nil {
		var err error
		if x, err = cleanData(ctx, r.base, r.process, look.Last, false, &r.x0); err != nil {
			return fail(err)
		}
		value = r.s.Reward
		if r.p.Codec != nil && !r.s.Latent {
			if x, err = r.p.Codec.Decode(ctx, x); err != nil {
				return fail(fmt.Errorf("decoding: %w", err))
			}
			r.cost.Decodes += len(look.Rows)
		}
	}
	v, err := ask(ctx, value, x, look)
	if err != nil {
		return fail(err)
	}
	r.cost.Checks++
	r.cost.Rewards += len(v)
	chosen := make([]int, len(r.p.Rows))
	for k, row := range r.p.Rows {
		i, err := pick(v[k*m:(k+1)*m], r.s.Temperature, uniforms(rng.Key{Seed: row.Seed, Image: uint64(row.Particle), Step: st.I - 1, Purpose: rng.PurposeResample}))
		if err != nil {
			return &WeightError{Seed: row.Seed, Step: st.I, Err: err}
		}
		chosen[k] = k*m + i
	}
	if err := r.base.(samplers.Selector).Select(chosen, r.p.Rows); err != nil {
		return fail(err)
	}
	r.rewards, r.pending = gather(v, chosen), false
	if r.s.Observe != nil {
		return r.s.Observe(&Check{Step: st.I, At: st.At, Progress: look.Progress, Last: look.Last, Lambda: 1, X0: x, Rewards: v, Parents: chosen})
	}
	return nil
}

// pick chooses by value: the largest, or at a temperature a draw from softmax(v/temperature).
func pick(v []float64, temperature float64, u Uniforms) (int, error) {
	if temperature == 0 {
		best := 0
		for i, x := range v {
			if x > v[best] {
				best = i
			}
		}
		if math.IsInf(v[best], -1) {
			return 0, ErrDead
		}
		return best, nil
	}
	lw := make([]float64, len(v))
	for i, x := range v {
		lw[i] = x / temperature
	}
	w, err := Weigh(lw)
	if err != nil {
		return 0, err
	}
	return invert(w.W, u(1))[0], nil
}

// State implements samplers.Run.
func (r *svddRun) State() *samplers.State { return r.base.State() }

// Rewards returns each sample's value at the last step made, nil before.
func (r *svddRun) Rewards() []float64 { return r.rewards }

// Cost returns what choosing took so far.
func (r *svddRun) Cost() Cost { return r.cost }

// Set implements samplers.Setter: options of the base.
func (r *svddRun) Set(name string, value float64) error {
	s, ok := r.base.(samplers.Setter)
	if !ok {
		return fmt.Errorf("smc: %T has no option %q to set during a run", r.s.Base, name)
	}
	return s.Set(name, value)
}

type savedSVDD struct {
	M       int
	Rewards []float64
	Pending bool
	Cost    Cost
	Base    []byte
}

// Save implements samplers.Saver.
func (r *svddRun) Save(w io.Writer) error {
	base, ok := r.base.(samplers.Saver)
	if !ok {
		return fmt.Errorf("smc: runs of %T cannot be saved", r.s.Base)
	}
	var buf bytes.Buffer
	if err := base.Save(&buf); err != nil {
		return err
	}
	if err := gob.NewEncoder(w).Encode(&savedSVDD{r.s.M, r.rewards, r.pending, r.cost, buf.Bytes()}); err != nil {
		return fmt.Errorf("smc: saving a run: %w", err)
	}
	return nil
}

// Resume implements samplers.Resumer: p must be the problem that the run was begun on.
func (s SVDD) Resume(ctx context.Context, p *samplers.Problem, rd io.Reader) (samplers.Run, error) {
	r, err := s.newRun(p)
	if err != nil {
		return nil, err
	}
	var v savedSVDD
	if err := gob.NewDecoder(rd).Decode(&v); err != nil {
		return nil, fmt.Errorf("smc: reading a saved run: %w", err)
	}
	if r.base, err = samplers.Resume(ctx, s.Base, p, bytes.NewReader(v.Base)); err != nil {
		return nil, err
	}
	k, grown := r.base.State().X.Shape()[0], r.s.M*len(p.Rows)
	if v.M != r.s.M || (v.Rewards != nil && len(v.Rewards) != len(p.Rows)) || (k != grown && (v.Pending || k != len(p.Rows))) {
		return nil, errors.New("smc: the saved run does not fit the problem")
	}
	r.rewards, r.pending, r.cost = v.Rewards, v.Pending, v.Cost
	return r, r.able()
}
