// Package job runs a sampling job: many images, in batches, from one plan. It turns the description of a run into
// Problems so that no result depends on the batch size, and hands every finished batch on at once.
package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/manifest"
	"drift/models"
	"drift/models/open"
	"drift/samplers"
	"drift/schedules"
)

// Item is one image of a job.
type Item struct {
	Set   int // which condition
	Place int // among the images of its set, and among the rows of recorded starts and noise
	Seed  uint64
	Part  int // particle + 1, where every particle of a group is an image; else 0
}

// Items lists the images of a run: every set has all seeds.
func Items(sets int, seeds []uint64, offset int) []Item {
	out := make([]Item, 0, sets*len(seeds))
	for s := range sets {
		for k, seed := range seeds {
			out = append(out, Item{Set: s, Place: offset + k, Seed: seed})
		}
	}
	return out
}

// Plan is everything that a run needs, opened and checked.
type Plan struct {
	Model   models.Denoiser // a leaf model
	Wrap    Wrap            // puts the guiders around it, anew for every batch (they may remember); nil: none
	Shape   []int           // of one row
	Sampler samplers.Sampler
	Grid    schedules.Grid
	First   int
	Last    int // 0 = to the end
	Sets    []manifest.Set
	Offset  int // places count from here in Classes
	Codec   samplers.Codec
	Space   samplers.Space // nil: the usual one
	Text    bool           // the model takes prompts
	// Particles is the number of rows of every item: 0 = 1. An item then is a group of particles, all on its condition.
	Particles int

	// NewNoise makes the noise of one batch; nil = samplers.Streams{}.
	NewNoise func() samplers.Noise
	// Start has one row per place, scaled to node First; nil draws the prior.
	Start *tensor.Dense
	Image *Image // the picture that an image-to-image run starts from; nil: none
}

// ModelSchedule names the schedule of a model's own scheduler.
const ModelSchedule = "model"

// Space is where a run starts, nil for the usual: the own sampler of some models, on their own schedule, starts from noise of
// the first sigma (open.Defaults.SigmaStart).
func Space(m *open.Model, sampler, schedule string) samplers.Space {
	if own, _, err := samplers.Resolve(m.Defaults.Sampler); err == nil && own == sampler && m.Defaults.SigmaStart && schedule == ModelSchedule {
		return samplers.Euclid{Sigma: true}
	}
	return nil
}

// Batch is a part of a job under way.
type Batch struct {
	Items []Item
	Index int     // of the first item in the job
	NFE   float64 // evaluations per row so far
}

// Hooks are told about a job. Every one may be nil.
type Hooks struct {
	// Step is called after Begin and after every step.
	Step func(b Batch, s *samplers.State) error
	// Done takes the results of a batch: x as it stands at the last node, and the pictures made of it (the same
	// tensor without a Codec).
	Done func(b Batch, x, pictures *tensor.Dense, stats samplers.Stats) error
	// Resume may return what Save wrote of this batch, or nil.
	Resume func(b Batch) (io.ReadCloser, error)
	// Save is called when the job stops in the middle of a batch that can be gone on with.
	Save func(b Batch, s samplers.Saver) error
}

// ErrStopped says that the job ended early because Stop was closed.
var ErrStopped = errors.New("interrupted")

// Run makes the images of items, size at a time (0 = a size that suits the model). Closing stop ends the job after the
// step under way, with ErrStopped; cancelling ctx ends it at once.
func (p *Plan) Run(ctx context.Context, stop <-chan struct{}, items []Item, size int, h Hooks) (samplers.Stats, error) {
	var all samplers.Stats
	if size <= 0 {
		size = p.Batch()
	}
	weight := 0
	for from := 0; from < len(items); from += size {
		b := Batch{Items: items[from:min(from+size, len(items))], Index: from}
		st, err := p.one(ctx, stop, b, h)
		n := len(b.Items)
		all.NFE = (all.NFE*float64(weight) + st.NFE*float64(n)) / float64(weight+n)
		all.VJPs = (all.VJPs*float64(weight) + st.VJPs*float64(n)) / float64(weight+n)
		all.Steps, all.Wall, all.Model = st.Steps, all.Wall+st.Wall, all.Model+st.Model
		weight += n
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// Batch is a number of rows that suits the model: about a million numbers in the state, 16 to 1024 rows (networks have large rows).
func (p *Plan) Batch() int {
	dim := tensor.Shape(p.Shape).TotalSize()
	return max(1, min(max(16*runtime.GOMAXPROCS(0), 1<<14/max(dim, 1)), 1024)/max(1, p.Particles))
}

func (p *Plan) one(ctx context.Context, stop <-chan struct{}, b Batch, h Hooks) (samplers.Stats, error) {
	problem, err := p.Problem(b.Items)
	if err != nil {
		return samplers.Stats{}, err
	}
	stopped := func() bool {
		select {
		case <-stop:
			return true
		default:
			return false
		}
	}
	problem.Observe = func(s *samplers.State) error {
		if h.Step != nil {
			b.NFE = float64(problem.Meter.Evals()) / float64(len(problem.Rows))
			if err := h.Step(b, s); err != nil {
				return err
			}
		}
		if stopped() && s.Done < 1 {
			return ErrStopped
		}
		return nil
	}
	if stopped() {
		return samplers.Stats{}, ErrStopped
	}
	run, err := p.begin(ctx, problem, b, h)
	if err != nil {
		return samplers.Stats{}, err
	}
	res, err := samplers.Drive(ctx, run, problem)
	if errors.Is(err, ErrStopped) && h.Save != nil {
		if s, ok := run.(samplers.Saver); ok {
			if e := h.Save(b, s); e != nil {
				return res.Stats, errors.Join(err, e)
			}
		}
	}
	var nan *samplers.NotFinite
	if errors.As(err, &nan) && nan.Row < len(b.Items) {
		return res.Stats, fmt.Errorf("%w, the image of seed %d", err, b.Items[nan.Row].Seed)
	}
	if err != nil {
		return res.Stats, err
	}
	pictures := res.X
	if _, ok := p.Model.Process().(schedules.Field); ok && p.Last == 0 { // sequences are read from the last prediction
		if pictures, err = run.State().X0(nil); err != nil {
			return res.Stats, err
		}
	}
	if p.Codec != nil && p.Last == 0 {
		if pictures, err = p.Codec.Decode(ctx, res.X); err != nil {
			return res.Stats, fmt.Errorf("decoding: %w", err)
		}
		if row := notFinite(pictures); row >= 0 {
			return res.Stats, &samplers.NotFinite{Step: res.Stats.Steps, At: res.At, Row: row}
		}
	}
	if h.Done != nil {
		return res.Stats, h.Done(b, res.X, pictures, res.Stats)
	}
	return res.Stats, nil
}

// begin starts the batch, or goes on where it was saved.
func (p *Plan) begin(ctx context.Context, problem *samplers.Problem, b Batch, h Hooks) (samplers.Run, error) {
	if h.Resume != nil {
		saved, err := h.Resume(b)
		if err != nil {
			return nil, err
		}
		if saved != nil {
			defer saved.Close()
			return samplers.Resume(ctx, p.Sampler, problem, saved)
		}
	}
	return p.Sampler.Begin(ctx, problem)
}

func notFinite(x *tensor.Dense) int {
	d := models.Data(x)
	for i, v := range d {
		if v-v != 0 {
			return i / (len(d) / x.Shape()[0])
		}
	}
	return -1
}

// Problem makes the Problem of some items.
func (p *Plan) Problem(items []Item) (*samplers.Problem, error) {
	model := p.Model
	if p.Wrap != nil {
		var err error
		if model, err = p.Wrap(model); err != nil {
			return nil, err
		}
	}
	problem := &samplers.Problem{Model: model, Grid: p.Grid, Shape: p.Shape, First: p.First, Last: p.Last, Space: p.Space, Codec: p.Codec, Meter: &models.Meter{}}
	classes, prompts, negative := false, p.Text, false
	for _, s := range p.Sets {
		classes = classes || len(s.Classes) > 0
		prompts = prompts || s.Prompt != "" || s.Negative != ""
		negative = negative || s.Negative != ""
	}
	cond := &models.Cond{}
	parts := max(1, p.Particles)
	for _, it := range items {
		for j := range parts {
			problem.Rows = append(problem.Rows, models.Row{Seed: it.Seed, Particle: j})
			set := p.Sets[it.Set]
			if classes {
				cond.Classes = append(cond.Classes, set.Class(it.Place-p.Offset))
			}
			if prompts {
				cond.Prompts = append(cond.Prompts, set.Prompt)
			}
			if negative { // else there is none, which is not the empty text everywhere
				cond.Negative = append(cond.Negative, set.Negative)
			}
		}
	}
	if classes || prompts {
		problem.Cond = cond
	}
	var noise samplers.Noise = samplers.Streams{}
	if p.NewNoise != nil {
		noise = p.NewNoise()
	}
	problem.Noise = placed{noise, items, parts}
	if p.Start != nil {
		rows := p.Start.Shape()[0]
		d := models.Data(p.Start)
		w := len(d) / rows
		start := models.New(append([]int{len(problem.Rows)}, p.Start.Shape()[1:]...)...)
		for k := range problem.Rows {
			it := items[k/parts]
			if it.Place >= rows {
				return nil, fmt.Errorf("image %d has no row in the start array, which has %d", it.Place, rows)
			}
			copy(models.Data(start)[k*w:(k+1)*w], d[it.Place*w:(it.Place+1)*w])
		}
		problem.Start = start
	}
	if p.Image != nil {
		p.start(problem)
	}
	return problem, nil
}

// placed tells recorded noise the place of a row in the job in place of its slot in the batch.
type placed struct {
	samplers.Noise
	items []Item
	parts int
}

func (n placed) Normal(dst []float64, d samplers.Draw) {
	if k := d.Slot / n.parts; k < len(n.items) { // candidates of svdd have slots of their own
		d.Slot = n.items[k].Place*n.parts + d.Slot%n.parts
	}
	n.Noise.Normal(dst, d)
}

// StepsZero is step noise that is all zero, with the usual start.
type StepsZero struct{}

// Normal implements samplers.Noise.
func (StepsZero) Normal(dst []float64, d samplers.Draw) {
	if d.Purpose == samplers.DrawStart {
		samplers.Streams{}.Normal(dst, d)
		return
	}
	clear(dst)
}

// Rate is the time per evaluation of one image, measured by one call on n rows of the plan's own problem.
func (p *Plan) Rate(ctx context.Context, items []Item) (time.Duration, error) {
	problem, err := p.Problem(items)
	if err != nil {
		return 0, err
	}
	run, err := p.Sampler.Begin(ctx, problem)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err := run.Next(ctx); err != nil {
		return 0, err
	}
	return time.Since(start) / time.Duration(max(1, problem.Meter.Evals())), nil
}
