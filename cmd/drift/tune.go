package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/reward"
	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/models"
	"drift/samplers"
	"drift/samplers/implicit"
)

func tuneVerb(a *app) *cli.Command {
	own := []cli.Flag{
		&cli.StringFlag{Name: "param", Usage: "what to tune, numbers of the guiders in --guider: cfg.w, or cfg.w,cfg.rescale (`GUIDER.OPTION,...`)"},
		&cli.StringFlag{Name: "reward", Usage: "what to make large on average, as in drift steer; see drift list rewards (`R`)"},
		&cli.IntFlag{Name: "iterations", Value: 30, Usage: "steps of the optimiser, two runs of all seeds each (`K`)"},
		&cli.IntFlag{Name: "count", Value: 64, Usage: "samples of every run (`N`), default 64"},
		&cli.Float64Flag{Name: "rate", Value: 1, Usage: "length of its steps: parameter per slope of the reward (`A`)"},
		&cli.Float64Flag{Name: "width", Value: 0.2, Usage: "how far to both sides it looks (`C`)"},
		&cli.StringFlag{Name: "out", Usage: "file to write: the values, the guiders with them, and every iteration (`FILE.json`)"},
		&cli.DurationFlag{Name: "reward-timeout", Usage: "longest wait for an answer of an exec: reward (`D`)", Value: time.Minute},
	}
	have := map[string]bool{}
	for _, f := range own {
		have[f.Names()[0]] = true
	}
	leave := []string{"trajectory", "prompts", "from", "resume", "switch", "dt", "log", "columns", "plot", "sort", "sheet", "preview", "control", "init", "init-image", "strength", "start-step",
		"end-step", "rounding", "float", "print-schedule", "dry-run", "no-metadata", "shard"}
	for _, f := range sampleVerb(a).Flags {
		if n := f.Names()[0]; !have[n] && !slices.Contains(leave, n) {
			own = append(own, f)
		}
	}
	return &cli.Command{
		Name: "tune", Usage: "tune parameters of guidance for a reward, through sampling",
		Description: "Simultaneous perturbation (SPSA): every iteration samples at both sides of the values with the same seeds and steps up the difference of the mean rewards; iteration k uses --count seeds of its own. " +
			"--out is written after every iteration: the same line again goes on where it was stopped.",
		Flags: own,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			t := &tuning{sampling: &sampling{app: a, c: c, verb: "tune"}}
			defer t.close()
			return t.run(c.Context)
		},
	}
}

// tuning is one run of the verb.
type tuning struct {
	*sampling
	reward *reward.Reward
	specs  []string
	params []param
}

// param is an option of a guider.
type param struct {
	name   string
	at     int // among the guiders
	option string
}

// tuned is the file that is written.
type tuned struct {
	Run    json.RawMessage    `json:"run"`
	Values map[string]float64 `json:"values"`
	Guider []string           `json:"guiders"`
	Before *float64           `json:"reward_before,omitempty"` // means on seeds of their own
	After  *float64           `json:"reward_after,omitempty"`
	Trace  []turn             `json:"trace"`
}

// turn is one iteration.
type turn struct {
	Iteration int       `json:"iteration"`
	Values    []float64 `json:"values"`
	Rewards   []float64 `json:"rewards"` // mean rewards at the two sides
}

func (t *tuning) close() {
	if t.reward != nil {
		t.reward.Close()
	}
	t.sampling.close()
}

// resolve turns the flags into a plan, and finds the starting values.
func (t *tuning) resolve(ctx context.Context) ([]float64, error) {
	t.desc = manifest.Run{Format: manifest.Format, Version: release, Verb: "tune"}
	t.plan = &job.Plan{}
	for _, name := range []string{"param", "reward", "out"} {
		if t.c.String(name) == "" {
			return nil, usagef("tune needs --param GUIDER.OPTION, --reward and --out FILE.json")
		}
	}
	if n := t.c.Int("iterations"); n < 1 || n > 1<<20 {
		return nil, usagef("--iterations %d: want 1 to %d", n, 1<<20)
	}
	for _, name := range []string{"rate", "width"} {
		if v := t.c.Float64(name); !(v > 0 && v <= math.MaxFloat64) {
			return nil, usagef("--%s %g: want a number above 0", name, v)
		}
	}
	for _, step := range []func(context.Context, *manifest.Run) error{t.resolveModel, t.resolveSeeds, t.resolveSets, t.resolveGuiders, t.resolveGrid, t.resolveNoise, t.count} {
		if err := step(ctx, nil); err != nil {
			return nil, err
		}
	}
	t.specs = slices.Clone(t.desc.Guiders)
	var start []float64
	for word := range strings.SplitSeq(t.c.String("param"), ",") {
		guider, option, ok := strings.Cut(word, ".")
		p := param{name: word, at: -1, option: option}
		for i, text := range t.specs {
			sp, err := spec.Parse(text)
			if err != nil {
				return nil, badUse("guider", err)
			}
			if sp.Name != guider {
				continue
			}
			for _, arg := range sp.Args {
				if arg.Key == option {
					v, err := strconv.ParseFloat(arg.Value, 64)
					if err != nil || v-v != 0 {
						return nil, usagef("--param %s: it starts from %s, want a number", word, arg.Value)
					}
					p.at, start = i, append(start, v)
				}
			}
		}
		if !ok || p.at < 0 {
			return nil, &hint{usagef("--param %s: no guider of this run gives it a value to start from", word), "add one, as in --guider cfg:w=1 --param cfg.w"}
		}
		t.params = append(t.params, p)
	}
	r, err := reward.Open(t.c.String("reward"), reward.Options{Timeout: t.c.Duration("reward-timeout"), Stderr: t.err, ORT: t.ort,
		Print: func(text string) { t.say("drift: reward: %s", text) }, Gone: func(why error) { t.warn("%v", why) }})
	if e := onnxError(err); e != nil {
		return nil, e
	} else if err != nil {
		return nil, badUse("reward", err)
	}
	t.reward = r
	return start, badUse("reward", r.Check(ctx, t.seen(), len(t.items)))
}

// seen is the shape of what the reward sees.
func (t *tuning) seen() []int {
	if t.reward.Latent() {
		return t.info.Shape
	}
	return t.info.Image()
}

// with gives the guiders these values.
func (t *tuning) with(theta []float64) ([]string, error) {
	out := slices.Clone(t.specs)
	for k, p := range t.params {
		sp, err := spec.Parse(out[p.at])
		if err != nil {
			return nil, err
		}
		for i, arg := range sp.Args {
			if arg.Key == p.option {
				sp.Args[i].Value = strconv.FormatFloat(theta[k], 'g', -1, 64)
			}
		}
		out[p.at] = sp.String()
	}
	return out, nil
}

// mean samples with these values, on the seeds of a block, and returns the mean reward.
func (t *tuning) mean(ctx context.Context, theta []float64, block uint64) (float64, error) {
	specs, err := t.with(theta)
	if err != nil {
		return 0, err
	}
	var second models.Denoiser
	if t.second != nil {
		second = t.second.Denoiser
	}
	plan := *t.plan
	plan.Wrap = func(d models.Denoiser) (models.Denoiser, error) { return guide(d, second, specs, plan.Grid, nil) }
	items := slices.Clone(t.items)
	for i := range items {
		items[i].Seed += block * uint64(len(t.seeds))
	}
	var at []reward.Point
	var seen []float64
	n := t.steps()
	_, err = plan.Run(ctx, t.stop, items, t.batch(), job.Hooks{Done: func(b job.Batch, x, pictures *tensor.Dense, stats samplers.Stats) error {
		if t.reward.Latent() {
			pictures = x
		}
		seen = append(seen, models.Data(pictures)...)
		for k, it := range b.Items {
			p := reward.Point{Previous: math.NaN(), Last: true, NFE: float64(t.desc.NFE)}
			p.Step, p.Steps, p.Alpha, p.Progress, p.Seed, p.Class = n-1, n, 1, 1, it.Seed, models.NoClass
			set := t.desc.Sets[it.Set]
			if len(set.Classes) > 0 {
				p.Class = set.Classes[(b.Index+k)%len(set.Classes)]
			}
			p.Prompt = set.Prompt
			at = append(at, p)
		}
		return nil
	}})
	if err != nil {
		return 0, err
	}
	scores, err := t.reward.Score(ctx, at, seen, t.seen(), [][2]int{{0, len(at)}})
	if err != nil {
		return 0, fmt.Errorf("reward: %w", err)
	}
	sum := 0.0
	for i, v := range scores.Reward {
		if v-v != 0 {
			return 0, fmt.Errorf("the reward of seed %d is %g", at[i].Seed, v)
		}
		sum += v
	}
	return sum / float64(len(at)), nil
}

// earlier reads the file of a run that was stopped.
func (t *tuning) earlier(name string, run []byte) (*tuned, error) {
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return &tuned{Run: run}, nil
	}
	if err != nil {
		return nil, err
	}
	var old tuned
	if err := json.Unmarshal(text, &old); err != nil {
		return nil, refuse.Errorf(name, "%v", err)
	}
	var have, want any
	if json.Unmarshal(old.Run, &have) != nil || json.Unmarshal(run, &want) != nil || fmt.Sprint(have) != fmt.Sprint(want) {
		return nil, &hint{usagef("--out %s holds something else than this run", name), "choose another --out, or remove it"}
	}
	for k, turn := range old.Trace {
		if turn.Iteration != k || len(turn.Values) != len(t.params) || k >= t.c.Int("iterations") {
			return nil, refuse.Errorf(name, "iteration %d is not of this run", k)
		}
	}
	old.Run = run
	return &old, nil
}

func (t *tuning) run(ctx context.Context) error {
	theta, err := t.resolve(ctx)
	if err != nil {
		return err
	}
	n, out := t.c.Int("iterations"), t.c.String("out")
	run, err := json.Marshal(map[string]any{"plan": t.desc, "params": t.c.String("param"), "reward": t.reward.Spec, "script": t.reward.Script, "files": t.reward.Files, "iterations": n,
		"rate": t.c.Float64("rate"), "width": t.c.Float64("width")})
	if err != nil {
		return err
	}
	st, err := t.earlier(out, run)
	if err != nil {
		return err
	}
	first, start := len(st.Trace), slices.Clone(theta)
	if first > 0 {
		copy(theta, st.Trace[first-1].Values)
		t.say("drift: %d of %d iterations are there already", first, n)
	}
	save := func() error {
		st.Values = map[string]float64{}
		for k, p := range t.params {
			st.Values[p.name] = theta[k]
		}
		if st.Guider, err = t.with(theta); err != nil {
			return err
		}
		text, err := json.MarshalIndent(st, "", " ")
		if err != nil {
			return err
		}
		return store(out, append(text, '\n'))
	}
	t.start("drift tune")
	opt := implicit.SPSA{Rate: t.c.Float64("rate"), Width: t.c.Float64("width"), First: first, Observe: func(k int, theta []float64, losses [2]float64) error {
		turn := turn{k, slices.Clone(theta), []float64{-losses[0], -losses[1]}}
		st.Trace = append(st.Trace, turn)
		t.bar.Set(float64(k+1)/float64(n), fmt.Sprintf("%s = %.4g", t.c.String("param"), theta))
		if t.json {
			t.emit(map[string]any{"event": "iteration", "iteration": k, "values": turn.Values, "rewards": turn.Rewards})
		}
		return save()
	}}
	err = opt.Run(ctx, theta, n, func(ctx context.Context, theta []float64, block uint64) (float64, error) {
		r, err := t.mean(ctx, theta, block)
		return -r, err
	})
	if err == nil { // the gain, on seeds that were not tuned on
		for _, m := range []struct {
			theta []float64
			dst   **float64
		}{{start, &st.Before}, {theta, &st.After}} {
			r, e := t.mean(ctx, m.theta, uint64(n))
			if err = e; err != nil {
				break
			}
			*m.dst = &r
		}
	}
	t.bar.Close()
	t.bar = nil
	if errors.Is(err, job.ErrStopped) {
		return &hint{fmt.Errorf("%w: %d of %d iterations are in %s", job.ErrStopped, len(st.Trace), n, out), "go on with the same line again"}
	}
	if err != nil {
		return err
	}
	if err := save(); err != nil {
		return err
	}
	if t.json {
		t.emit(map[string]any{"event": "done", "values": st.Values, "guiders": st.Guider, "reward_before": *st.Before, "reward_after": *st.After, "out": out})
		return nil
	}
	for k, p := range t.params {
		fmt.Fprintf(t.out, "%s %.6g\n", p.name, theta[k])
	}
	t.say("drift: mean reward on other seeds %.6g, at the start %.6g: %s", *st.After, *st.Before, out)
	return nil
}
