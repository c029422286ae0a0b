package main

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/reward"
	"drift/guidance"
	"drift/internal/refuse"
	"drift/internal/script"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
	"drift/smc"
)

// openControl reads the script of --control.
func openControl(name string, print func(string)) (*script.Control, error) {
	text, err := job.ReadSmall(name)
	if err != nil {
		return nil, err
	}
	c, err := script.ParseControl(name, string(text))
	if err != nil {
		return nil, refuse.Errorf(name, "%s", strings.TrimPrefix(err.Error(), name+":"))
	}
	c.Print(print)
	return c, nil
}

// guideLive is guide with the scale of the first cfg guider in the caller's hands: live is what it is now. Without one
// there is nothing to set, and live is nil.
func guideLive(d, second models.Denoiser, specs []string, grid schedules.Grid, say tell) (out models.Denoiser, live *float64, err error) {
	for i, text := range specs {
		g, err := guidance.Parse(text)
		if err != nil {
			return nil, nil, err
		}
		c, ok := g.(guidance.CFG)
		if !ok {
			continue
		}
		if out, err = guide(d, second, specs[:i], grid, say); err != nil {
			return nil, nil, err
		}
		scale, set := c.Scale, c.W
		live, first := &set, c.W
		c.Scale = func(n schedules.Node, s models.Step) float64 {
			if scale != nil && *live == first { // nothing was set yet
				return scale(n, s)
			}
			return *live
		}
		out, err = guide(c.Guide(out), second, specs[i+1:], grid, say)
		return out, live, err
	}
	out, err = guide(d, second, specs, grid, say)
	return out, nil, err
}

// controlled is a sampler with a control script, for runs of one image (what a script sets is for its image alone).
type controlled struct {
	samplers.Sampler
	s *sampling
}

var _ samplers.Resumer = controlled{}

// controlledRun is a run of controlled.
type controlledRun struct {
	samplers.Run
	c       *script.Control
	p       *samplers.Problem
	scale   *float64
	state   script.State
	started bool
	settled int
	final   *tensor.Dense // of a run that was stopped
}

// Begin implements samplers.Sampler.
func (c controlled) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	run, err := c.Sampler.Begin(ctx, p)
	if err != nil {
		return nil, err
	}
	return &controlledRun{Run: run, c: c.s.script, p: p, scale: c.s.live, settled: run.State().I}, nil
}

// savedControlled is the form of a run on disk.
type savedControlled struct {
	State   string
	Started bool
	Settled int
	Scale   float64
	Final   []float64
	Inner   []byte
}

// Save implements samplers.Saver.
func (r *controlledRun) Save(w io.Writer) error {
	inner, ok := r.Run.(samplers.Saver)
	if !ok {
		return errors.New("runs of this sampler cannot be saved")
	}
	v := savedControlled{Started: r.started, Settled: r.settled}
	if r.scale != nil {
		v.Scale = *r.scale
	}
	if r.final != nil {
		v.Final = models.Data(r.final)
	}
	var err error
	if v.State, err = r.c.Save(r.state); err != nil {
		return err
	}
	var b bytes.Buffer
	if err := inner.Save(&b); err != nil {
		return err
	}
	v.Inner = b.Bytes()
	return gob.NewEncoder(w).Encode(&v)
}

// Resume implements samplers.Resumer.
func (c controlled) Resume(ctx context.Context, p *samplers.Problem, rd io.Reader) (samplers.Run, error) {
	var v savedControlled
	if err := gob.NewDecoder(rd).Decode(&v); err != nil {
		return nil, fmt.Errorf("reading a saved run: %w", err)
	}
	run, err := samplers.Resume(ctx, c.Sampler, p, bytes.NewReader(v.Inner))
	if err != nil {
		return nil, err
	}
	r := &controlledRun{Run: run, c: c.s.script, p: p, scale: c.s.live, started: v.Started, settled: v.Settled}
	if r.scale != nil {
		*r.scale = v.Scale
	}
	if v.Final != nil {
		r.final = models.Wrap(v.Final, run.State().X.Shape()...)
	}
	r.state, err = c.s.script.Load(v.State)
	return r, err
}

// State implements samplers.Run.
func (r *controlledRun) State() *samplers.State {
	st := r.Run.State()
	if r.final != nil {
		own := *st
		own.X, own.Done = r.final, 1
		return &own
	}
	return st
}

// Next implements samplers.Run: a step, and what the script makes of it.
func (r *controlledRun) Next(ctx context.Context) (bool, error) {
	if r.final != nil {
		return true, nil
	}
	if !r.started {
		var err error
		if r.state, err = r.c.Start(ctx, r.view()); err != nil {
			return false, err
		}
		r.started = true
	}
	done, err := r.Run.Next(ctx)
	if err != nil || done {
		return done, err
	}
	st := r.Run.State()
	if st.I == r.settled || st.Done >= 1 {
		return false, nil
	}
	r.settled = st.I
	out, err := r.c.Step(ctx, r.state, r.view())
	if err != nil {
		return false, err
	}
	for _, name := range script.ControlNames {
		v, ok := out.Values[name]
		if !ok {
			continue
		}
		switch name {
		case "stop":
			if v != 0 {
				return false, r.stop(ctx)
			}
		case "cfg_scale":
			if r.scale == nil {
				return false, errors.New("--control sets cfg_scale, but the run has no cfg guider: add --cfg-scale")
			}
			*r.scale = v
		case "eta":
			set, ok := r.Run.(samplers.Setter)
			if !ok {
				return false, errors.New("--control sets eta, which this sampler does not take during a run")
			}
			if err := set.Set(name, v); err != nil {
				return false, fmt.Errorf("--control sets eta: %w", err)
			}
		default:
			return false, fmt.Errorf("--control sets %s, which is for drift steer", name)
		}
	}
	return false, nil
}

// stop makes the estimate of the clean data at the state the result.
func (r *controlledRun) stop(ctx context.Context) error {
	if p, ok := r.Run.(samplers.Peeker); ok && r.Run.State().At.Sigma > 0 {
		if _, err := p.Peek(ctx); err != nil {
			return err
		}
	}
	x0, err := r.Run.State().X0(nil)
	if err != nil || x0 == nil {
		return errors.Join(errors.New("--control: the run cannot be stopped here: it shows no estimate of the data"), err)
	}
	r.final = x0
	return nil
}

// view is what the script sees: nothing of rewards.
func (r *controlledRun) view() script.View {
	st := r.Run.State()
	nan := math.NaN()
	v := script.View{RewardMean: nan, RewardMax: nan, RewardStd: nan, ESS: nan, LogZ: nan, X0Mean: nan, X0Std: nan, Roots: 1}
	v.Point = reward.Points(&smc.Look{Rows: r.p.Rows[:1], Cond: r.p.Cond, At: st.At, Step: st.I, Progress: st.Done}, st.N, 0, float64(r.p.Meter.Evals()))[0]
	if st.Pred != nil {
		if x0, err := st.X0(nil); err == nil && x0 != nil {
			v.X0Mean, v.X0Std = moments(models.Data(x0))
		}
	}
	return v
}

// resolveControl puts the script of --control, or of the earlier run, around the sampler and its guiders.
func (s *sampling) resolveControl(_ context.Context, base *manifest.Run) error {
	if s.verb == "steer" { // which has its own way with it
		return nil
	}
	text := ""
	switch {
	case s.c.IsSet("control"):
		b, err := job.ReadSmall(s.c.String("control"))
		if err != nil {
			return err
		}
		text = string(b)
	case base != nil:
		text = base.Control
	}
	if text == "" {
		return nil
	}
	if s.c.IsSet("switch") { // which changes the model on the way
		return usagef("--control and --switch exclude each other")
	}
	name := s.c.String("control")
	if name == "" {
		name = "control"
	}
	c, err := script.ParseControl(name, text)
	if err != nil {
		return refuse.Errorf(name, "%s", strings.TrimPrefix(err.Error(), name+":"))
	}
	c.Print(func(t string) { s.say("drift: control: %s", t) })
	s.script, s.desc.Control = c, text
	s.plan.Sampler = controlled{s.plan.Sampler, s}
	var second models.Denoiser
	if s.second != nil {
		second = s.second.Denoiser
	}
	specs := s.desc.Guiders
	s.plan.Wrap = func(d models.Denoiser) (out models.Denoiser, err error) {
		out, s.live, err = guideLive(d, second, specs, s.plan.Grid, s.tell)
		return out, err
	}
	return nil
}
