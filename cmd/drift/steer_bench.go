package main

import (
	"context"
	"errors"
	"math"
	"strconv"

	"github.com/urfave/cli/v2"
	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/internal/pixels"
	"drift/models"
	"drift/samplers"
	"drift/smc"
)

// steerBench is drift steer as a verb of bench: a seed is a group of particles.
func (a *app) steerBench() bench.Verb {
	return bench.Verb{
		Command:  func() *cli.Command { return steerVerb(a) },
		Open:     a.openSteering,
		Baseline: map[string]bench.Baseline{"best-of-n": bestOfN},
		Count:    16,
	}
}

// bestOfN is plain sampling of the same cost: as many samples as the evaluations pay for, of which the best is kept.
func bestOfN(cell bench.Facts, args bench.Args) (bench.Args, error) {
	set, ok := cell.Settings.(steerSettings)
	if !ok || set.NFE == 0 {
		return nil, errors.New("the evaluations of a plain sample are not known")
	}
	n := max(1, int(math.Floor(cell.Cost.NFE/float64(set.NFE)+1e-9)))
	args = args.Drop("checks", "check-every", "resample-every", "ess", "resampler", "temper", "temper-drop", "skip-dead", "samples", "sample-steps", "ahead", "through", "sweeps", "path-sigma",
		"churn", "control", "reward-init", "terminal", "wiring", "keep")
	return args.Set("method", "fk").Set("potential", "none").Set("lambda", "1").Set("particles", strconv.Itoa(n)), nil
}

// steerSettings are what decides a cell's results.
type steerSettings struct {
	manifest.Run
}

// steerScores are the numbers of a group.
var steerScores = []bench.Column{{Name: "reward_max", Better: 1}, {Name: "reward", Better: 1}, {Name: "diversity", Better: 1}, {Name: "ess", Better: 1}, {Name: "roots", Better: 1}, {Name: "log_z", Better: 1}}

func (a *app) openSteering(c *cli.Context) (bench.Runner, error) {
	s := &steering{sampling: &sampling{app: a, c: c, verb: "steer", sampler: "ddim:eta=1", targetSteps: 100}}
	if err := s.resolve(c.Context); err != nil {
		s.close()
		return nil, err
	}
	if len(s.desc.Sets) > 1 {
		s.close()
		return nil, usagef("a bench of steer has one class or prompt; use --sweep class=...")
	}
	return &steerRunner{s}, nil
}

type steerRunner struct{ *steering }

// Close implements bench.Runner.
func (r *steerRunner) Close() error { r.steering.close(); return nil }

// perGroup is what a group asks of the model and of the reward.
func (s *steering) perGroup() bench.Cost {
	n, k := float64(s.desc.NFE), float64(s.conf.Particles)
	steps := float64(s.steps())
	c := bench.Cost{NFE: n * k, VJPs: s.cost.VJPs * k, Rewards: float64(s.points) * k}
	each, grads := 1.0, 0.0 // evaluations and gradients of an answer, guidance included
	if steps > 0 {
		each, grads = n/steps, s.cost.VJPs/steps
	}
	more := func(answers float64) { c.NFE, c.VJPs = c.NFE+each*answers, c.VJPs+grads*answers }
	switch s.conf.Method {
	case "svdd":
		c.NFE, c.VJPs = 0, 0
		more(k*(steps-1) + 1)
		c.Rewards = steps * k
	case "tds":
		if s.c.String("through") == "model" {
			more(k * (steps - 1))
			c.VJPs += each * k * (steps - 1)
		}
		c.Rewards = (steps + 1) * k
	case "ppg":
		sweeps := float64(s.c.Int("sweeps"))
		c.NFE, c.VJPs, c.Rewards = c.NFE*sweeps, c.VJPs*sweeps, (steps+1)*k*sweeps
	case "dgfs":
		c.NFE, c.VJPs = 0, 0
	case "fk", "epf":
		if m := float64(s.fk.Samples); m > 0 {
			more(k * m * float64(s.fk.SampleSteps) * float64(s.points-1))
			c.Rewards += k * (m - 1) * float64(s.points-1)
		}
		if s.fk.Ahead {
			more(k * float64(s.points-1))
			c.Rewards += k * float64(s.points-1)
		}
	}
	if s.reward == nil {
		c.Rewards = 0
	}
	return c
}

// Facts implements bench.Runner.
func (r *steerRunner) Facts() bench.Facts {
	desc, set := r.desc, r.desc.Sets[0]
	desc.Seeds = ""
	f := bench.Facts{Settings: steerSettings{desc}, Columns: steerScores, Shape: r.info.Image(), Rounding: desc.Rounding, Batch: max(1, r.plan.Batch()), Cost: r.perGroup(),
		Class: func(place, _ int) int { return set.Class(place) }}
	if r.control != nil {
		f.Batch = 1
	}
	if pixels.Picture(r.info.Image()) {
		f.Pictures = 1
		if r.conf.Keep != "best" {
			f.Pictures = r.plan.Particles
		}
	}
	return f
}

// Run implements bench.Runner.
func (r *steerRunner) Run(ctx context.Context, t bench.Task) error {
	var items []job.Item
	for i, seed := range t.Seeds {
		items = append(items, job.Item{Place: t.First + i, Seed: seed})
	}
	k := r.plan.Particles
	_, err := r.plan.Run(ctx, t.Stop, items, len(items), job.Hooks{
		Step: func(_ job.Batch, s *samplers.State) error { t.Step(s.Done); return nil },
		Done: func(b job.Batch, x, pictures *tensor.Dense, st samplers.Stats) error {
			all, err := r.outcomes(b, r.now.run.State())
			if err != nil {
				return err
			}
			p := models.Data(pictures)
			w := len(p) / (len(items) * k)
			rewards := 0
			if c, ok := r.now.run.(interface{ Cost() smc.Cost }); ok {
				rewards = c.Cost().Rewards
			}
			for g := range items {
				o := &all[g]
				res := bench.Result{Cost: bench.Cost{NFE: st.NFE * float64(k), VJPs: st.VJPs * float64(k), Rewards: float64(rewards) / float64(len(items))}}
				nan := math.NaN()
				values := map[string]float64{"reward": nan, "reward_max": nan, "diversity": spreadOf(p[g*k*w:(g+1)*k*w], o.LogWeights), "ess": o.ESS, "log_z": o.LogZ}
				if o.Rewards != nil {
					values["reward"], values["reward_max"] = weightedMean(o.Rewards, o.LogWeights), o.Rewards[best(*o, *r.conf.Lambda, r.conf.Method)]
				}
				seen := map[int]bool{}
				for _, root := range o.Roots {
					seen[root] = true
				}
				values["roots"] = float64(len(seen))
				for _, c := range steerScores {
					res.Values = append(res.Values, values[c.Name])
				}
				if pixels.Picture(r.info.Image()) {
					for _, j := range o.Chosen {
						i := g*k + j
						res.X = append(res.X, p[i*w:(i+1)*w]...)
					}
				}
				if err := t.Done(res); err != nil {
					return err
				}
			}
			return nil
		},
	})
	return err
}

// spreadOf is the root mean square difference, per element, of two particles drawn by weight.
func spreadOf(x, lw []float64) float64 {
	k := len(lw)
	w := len(x) / k
	g, err := smc.Weigh(lw)
	if err != nil {
		return math.NaN()
	}
	sum := 0.0
	for i := range w {
		m, sq := 0.0, 0.0
		for j, p := range g.W {
			v := x[j*w+i]
			m += p * v
			sq += p * v * v
		}
		sum += max(0, sq-m*m)
	}
	return math.Sqrt(2 * sum / float64(w))
}
