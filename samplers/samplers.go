// Package samplers draws samples from a model: it holds the one Sampler interface, the driver that runs it, and the
// ODE and SDE solvers.
//
// A Sampler is a generator of steps. It owns its mathematics only; the driver (Sample) owns what every long job
// needs: progress, cancelling, observers, counting and the check that the state stays finite. The state and every
// coefficient are float64; a network computes in its own type behind its Denoiser.
package samplers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/schedules"
)

// Sampler begins a Run on a Problem. It is immutable: its fields are options, and the zero value of an option is its
// documented default.
type Sampler interface {
	Begin(ctx context.Context, p *Problem) (Run, error)
	Needs() Needs
}

// Needs is what a Sampler asks of its Problem. Begin refuses by name what is missing.
type Needs struct {
	OwnGrid bool // places its own nodes between the two ends of the grid (adaptive methods)
	Noise   bool // draws step noise
	VJP     bool // needs a model with gradients
	Parts   bool // needs a guided model that says what it is made of (models.Pred.Parts)
	Couples bool // rows of a group belong together and must not be split over batches
}

// Run is a sampling run under way.
type Run interface {
	// Next makes one step of the method. It reports done when no step is left.
	Next(ctx context.Context) (done bool, err error)
	// State shows where the run stands; it belongs to the run and changes with Next.
	State() *State
}

// Optional abilities of a Run, found by type assertion.
type (
	// Selector re-indexes a run between two steps: row j goes on from what row parents[j] was (state, history,
	// velocity, cached prediction, guider memory). len(parents) may differ from the number of rows; rows then names
	// the new ones (nil keeps the old: step noise belongs to the slot, not to the ancestor).
	Selector interface {
		Select(parents []int, rows []models.Row) error
	}
	// Peeker evaluates the model at the current state once; Next reuses the answer and Select gathers it.
	Peeker interface {
		Peek(ctx context.Context) (*models.Pred, error)
	}
	// Setter changes an option of a run under way ("eta", "stop", ...).
	Setter interface {
		Set(name string, value float64) error
	}
	// Saver writes everything a Resumer needs to go on.
	Saver interface{ Save(w io.Writer) error }
	// Transitioner gives the Gaussian that the last step was drawn from: the mean, and one standard deviation.
	Transitioner interface {
		Transition() (mean *tensor.Dense, std float64, err error)
	}
)

// Resumer is a Sampler that can go on from a saved Run, without a Begin.
type Resumer interface {
	Resume(ctx context.Context, p *Problem, r io.Reader) (Run, error)
}

// Resume goes on with a run of s that was saved: p must be the problem it was begun on.
func Resume(ctx context.Context, s Sampler, p *Problem, rd io.Reader) (Run, error) {
	if _, ok := rd.(io.ByteReader); !ok {
		rd = bufio.NewReader(rd) // a decoder would read ahead, past what a guider has saved
	}
	switch s := s.(type) {
	case Resumer:
		return s.Resume(ctx, p, rd)
	case method:
		return resume(p, s, rd)
	case Stepper:
		return resume(p, outside{s}, rd)
	}
	return nil, fmt.Errorf("samplers: runs of %T cannot be saved and resumed", s)
}

// Counter is a Sampler whose steps do not take one evaluation each: Cost is the number of evaluations of step i of the
// grid.
type Counter interface {
	Cost(g schedules.Grid, i int) int
}

// NFE returns the evaluations per image that a run of s on g takes, guidance not counted. Steps of length zero and
// forward hops take none.
func NFE(s Sampler, g schedules.Grid) int {
	sum := 0
	for i := range len(g) - 1 {
		a, b := g[i].Ratio(), g[i+1].Ratio()
		_, both := s.(reverser)
		if _, late := s.(corrector); b > a && !both || (a == b && !late) {
			continue
		}
		if c, ok := s.(Counter); ok {
			sum += c.Cost(g, i)
		} else {
			sum++
		}
	}
	return sum
}

// Model is what a Problem samples from: most Samplers need a models.Denoiser, and ask for it in Begin.
type Model any

// Problem is one batch to sample.
type Problem struct {
	Model Model
	Grid  schedules.Grid // nodes, noise to data; a rising hop is forward noise, at which history is dropped
	Rows  []models.Row   // one per image: whose streams it uses
	Shape []int          // of one row, e.g. {3, 32, 32}; not needed with Start
	Start *tensor.Dense  // state at Grid[First], already scaled; nil draws it from the prior
	First int            // first step to run (the state before it is Start)
	Last  int            // run to node Last; 0 = to the end of the grid
	Cond  *models.Cond
	Noise Noise  // nil = Streams{}
	Known *Known // part of every row that stays as it is given; nil = none
	Space Space  // nil = Simplex on a schedules.Field, else Euclid{}
	Codec Codec  // nil = the state is the image
	Meter *models.Meter

	// Observe is called after Begin and after every step.
	Observe func(*State) error
	// Control is called after every step and may Set options of the run.
	Control func(ctx context.Context, s *State, set Setter) error
}

// State is what a run shows of itself.
type State struct {
	X    *tensor.Dense  // (rows, ...)
	At   schedules.Node // where X lives (the noisiest row, where they differ)
	I, N int            // steps done, steps in all
	Done float64        // progress in [0, 1] (adaptive methods have no step count)

	Pred   *models.Pred   // last first-stage prediction, nil before the first
	PredX  *tensor.Dense  // the state it was made at
	PredAt schedules.Node // the node it was made at

	Each []schedules.Node // where each row lives, while adaptive steps of their own hold the rows at different nodes; else nil

	LogWeights []float64         // of particle methods
	Process    schedules.Process // that Pred is converted by
}

// X0 writes the last prediction as clean data into dst (reused where it fits) and returns it; nil before the first
// prediction. It fails where the data cannot be had from the prediction (noise at alpha = 0).
func (s *State) X0(dst *tensor.Dense) (*tensor.Dense, error) {
	if s.Pred == nil {
		return nil, nil
	}
	dst = models.Reuse(dst, s.PredX.Shape())
	if b, ok := s.Process.(schedules.Bridge); ok {
		return dst, onBridge(b, models.Data(dst), models.Data(s.PredX), s.Pred, schedules.X0, s.PredAt)
	}
	if _, ok := s.Process.(schedules.Field); ok && s.Pred.Kind == schedules.X0 {
		copy(models.Data(dst), models.Data(s.Pred.Out))
		return dst, nil
	}
	gau, ok := s.Process.(schedules.Gaussian)
	if !ok {
		return nil, fmt.Errorf("samplers: no data can be had from a prediction on %T", s.Process)
	}
	cx, co, err := schedules.Convert(gau, s.Pred.Kind, schedules.X0, s.PredAt)
	if err != nil {
		return nil, err
	}
	lin(models.Data(dst), term{cx, models.Data(s.PredX)}, term{co, models.Data(s.Pred.Out)})
	return dst, nil
}

// Space owns the prior and the projection of the state. Euclid is the default of Gaussian processes, Simplex that of a
// schedules.Field.
type Space interface {
	// Prior draws a row at node n.
	Prior(dst []float64, n schedules.Node, slot int, row models.Row, noise Noise)
	// Project puts a row back onto the space after a step.
	Project(x []float64)
}

// Euclid is R^d with the Gaussian prior N(0, s^2): s = 1 where alpha^2+sigma^2 = 1 (variance-preserving processes and
// a flow at t = 1), else sigma.
type Euclid struct {
	// Sigma takes s = sigma everywhere, as diffusers' schedulers on sigmas (Euler and its kin) do with all grids but the
	// leading one: their starts have no room for the data.
	Sigma bool
}

// Prior implements Space.
func (e Euclid) Prior(dst []float64, n schedules.Node, slot int, row models.Row, noise Noise) {
	noise.Normal(dst, Draw{Row: row, Slot: slot, Step: -1, Purpose: DrawStart, From: math.Inf(1), To: n.Ratio()})
	if s := e.Scale(n); s != 1 {
		for i := range dst {
			dst[i] *= s
		}
	}
}

// Scale is the prior's standard deviation at node n.
func (e Euclid) Scale(n schedules.Node) float64 {
	if e.Sigma {
		return n.Sigma
	}
	return PriorScale(n)
}

// Project implements Space: nothing to do.
func (Euclid) Project([]float64) {}

// PriorScale returns the standard deviation of the start noise at node n (see Euclid).
func PriorScale(n schedules.Node) float64 {
	if math.Abs(n.Alpha*n.Alpha+n.Sigma*n.Sigma-1) < 1e-9 {
		return 1
	}
	return n.Sigma
}

// Codec turns states into images and back (an autoencoder).
type Codec interface {
	Decode(ctx context.Context, z *tensor.Dense) (*tensor.Dense, error)
	Encode(ctx context.Context, x *tensor.Dense) (*tensor.Dense, error)
}

// Stats is what a run cost.
type Stats struct {
	Steps int
	NFE   float64 // evaluations per image, guidance included
	VJPs  float64 // per image
	Wall  time.Duration
	Model time.Duration // part of Wall inside leaf models
}

// Result is what Sample returns. After an error it holds what there is so far.
type Result struct {
	X          *tensor.Dense
	At         schedules.Node
	Stats      Stats
	LogWeights []float64
	Run        Run // for Save after an interruption
}

// NotFinite says that the state stopped being finite.
type NotFinite struct {
	Step   int
	At     schedules.Node
	Row    int
	Answer bool // not the state itself but what the model answered at it
}

func (e *NotFinite) Error() string {
	if e.Answer {
		return fmt.Sprintf("samplers: the model's answer is not finite at step %d, sigma/alpha %.6g (t=%.6g), row %d", e.Step, e.At.Ratio(), e.At.T, e.Row)
	}
	return fmt.Sprintf("samplers: the state is not finite after step %d at sigma/alpha %.6g (t=%.6g), row %d", e.Step, e.At.Ratio(), e.At.T, e.Row)
}

// ErrStop may be returned by Control or Observe to end a run early without an error.
var ErrStop = errors.New("samplers: stop")

// Sample drives s on p to its end. On cancellation it returns the state after the step under way together with
// ctx's error.
func Sample(ctx context.Context, s Sampler, p *Problem) (*Result, error) {
	own := *p
	if own.Meter == nil {
		own.Meter = &models.Meter{}
	}
	p = &own
	run, err := s.Begin(ctx, p)
	if err != nil {
		return nil, err
	}
	return Drive(ctx, run, p)
}

// Drive takes a run that has begun (or was resumed) to its end. p is the Problem it was begun on; without p.Meter the
// result's evaluations are not counted.
func Drive(ctx context.Context, run Run, p *Problem) (*Result, error) {
	start := time.Now()
	meter := p.Meter
	if meter == nil {
		meter = &models.Meter{}
	}
	evals, vjps, inside := meter.Evals(), meter.VJPs(), meter.Time()
	first := run.State().I
	finish := func(err error) (*Result, error) {
		st := run.State()
		rows := float64(max(1, st.X.Shape()[0]))
		return &Result{X: st.X, At: st.At, LogWeights: st.LogWeights, Run: run, Stats: Stats{
			Steps: st.I - first,
			NFE:   float64(meter.Evals()-evals) / rows,
			VJPs:  float64(meter.VJPs()-vjps) / rows,
			Wall:  time.Since(start),
			Model: meter.Time() - inside,
		}}, err
	}
	if p.Observe != nil {
		if err := p.Observe(run.State()); err != nil {
			return finish(ended(err))
		}
	}
	for {
		if err := ctx.Err(); err != nil {
			return finish(err)
		}
		done, err := run.Next(ctx)
		if err != nil {
			return finish(err)
		}
		if done {
			return finish(nil)
		}
		st := run.State()
		if row := notFinite(st.X); row >= 0 {
			return finish(&NotFinite{Step: st.I, At: st.At, Row: row})
		}
		if p.Observe != nil {
			if err := p.Observe(st); err != nil {
				return finish(ended(err))
			}
		}
		if p.Control != nil {
			set, _ := run.(Setter)
			if err := p.Control(ctx, st, set); err != nil {
				return finish(ended(err))
			}
		}
	}
}

func ended(err error) error {
	if errors.Is(err, ErrStop) {
		return nil
	}
	return err
}

// notFinite returns the first row that holds a NaN or an infinity, or -1.
func notFinite(x *tensor.Dense) int {
	d := models.Data(x)
	width := max(1, len(d)/max(1, x.Shape()[0]))
	for i, v := range d {
		if v-v != 0 {
			return i / width
		}
	}
	return -1
}
