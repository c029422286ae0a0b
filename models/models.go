// Package models holds what a sampler can ask: a Denoiser answers "what is under this noise" at (x, t, condition).
// Sub-packages bring exact analytic targets, weight folders and networks; guidance wraps Denoisers into Denoisers.
//
// Arrays are gorgonia tensors of float64, contiguous, batch first (N, C, H, W for images, values in [-1, 1]); a
// network computes in its own type and converts at this door.
package models

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"gorgonia.org/tensor"

	"drift/schedules"
)

// Denoiser is a model that can be asked for a prediction at a noisy state. One call of Predict is one network
// evaluation per row; a guided Denoiser makes several calls of the models below it.
type Denoiser interface {
	// Process is the noise process that the model was made for.
	Process() schedules.Process
	// Predict answers q into p. It must not change q.X nor keep it, and writes into p.Out where that has the right
	// shape (see Pred.Fit).
	Predict(ctx context.Context, q *Query, p *Pred) error
}

// Row names one row of the batch: the seed of its streams and, in particle methods, the particle's number.
type Row struct {
	Seed     uint64
	Particle int
}

// NoClass is the class of an unconditional row.
const NoClass = -1

// Cond is what the rows are conditioned on; nil means nothing. Every field has one entry per row, or is empty.
type Cond struct {
	Classes []int    // NoClass = unconditional
	Prompts []string // text as the user wrote it
	// Negative is the text that takes the prompt's place in the unconditional question of a guider; none is the empty text.
	Negative []string
	Tensors  map[string]*tensor.Dense // prepared inputs by the reference's argument name, batch first
}

// Class returns the class of row i, NoClass when there is none.
func (c *Cond) Class(i int) int {
	if c == nil || len(c.Classes) == 0 {
		return NoClass
	}
	return c.Classes[i]
}

// Given tells whether row i is conditioned on a class or a text.
func (c *Cond) Given(i int) bool { return c != nil && (c.Class(i) != NoClass || len(c.Prompts) > 0) }

// Select returns the condition of the rows parents[0], parents[1], ...
func (c *Cond) Select(parents []int) *Cond {
	if c == nil {
		return nil
	}
	out := &Cond{}
	if len(c.Classes) > 0 {
		for _, k := range parents {
			out.Classes = append(out.Classes, c.Classes[k])
		}
	}
	if len(c.Prompts) > 0 {
		for _, k := range parents {
			out.Prompts = append(out.Prompts, c.Prompts[k])
		}
	}
	if len(c.Negative) > 0 {
		for _, k := range parents {
			out.Negative = append(out.Negative, c.Negative[k])
		}
	}
	if c.Tensors != nil {
		out.Tensors = make(map[string]*tensor.Dense, len(c.Tensors))
		for name, t := range c.Tensors {
			d, shape := Data(t), t.Shape().Clone()
			w := len(d) / shape[0]
			shape[0] = len(parents)
			g := New(shape...)
			for j, k := range parents {
				copy(Data(g)[j*w:(j+1)*w], d[k*w:(k+1)*w])
			}
			out.Tensors[name] = g
		}
	}
	return out
}

// Step tells where a run stands when it asks: step I of N, the Stage-th call of that step, the nodes that the step
// goes From and To, and the Progress of the run in [0, 1].
type Step struct {
	I, N, Stage int
	From, To    schedules.Node
	Progress    float64
}

// Query is one question: the state X (rows, ...), the node where each row lives, and who asks.
type Query struct {
	X     *tensor.Dense
	At    []schedules.Node // one per row
	Cond  *Cond
	Rows  []Row
	Step  Step
	Hooks *Hooks // nil: none
	Meter *Meter // counts the evaluations of leaf models; may be nil
}

// Hooks asks a network to change some of its layers (perturbed-attention and skip-layer guidance).
type Hooks struct {
	IdentityAttention []string // attention layers whose map becomes the identity
	SkipLayers        []string // blocks that pass their input through
}

// Pred is the answer to a Query.
type Pred struct {
	Out  *tensor.Dense  // shape of Query.X
	Kind schedules.Kind // what Out is
	// Renoise is the noise that a solver puts back instead of the one implied by Out, nil = the same. CFG++ and
	// clipping without re-derived noise (diffusers' default) use it.
	Renoise *tensor.Dense
	// Extra is what a network gives beyond the prediction: the variance channels of a learned-variance network; on a
	// schedules.Bridge, which takes two fields, the second, of kind ExtraKind.
	Extra     *tensor.Dense
	ExtraKind schedules.Kind
	// Parts are the experts that were combined, with their weights (Feynman-Kac correctors need them).
	Parts []Part
}

// Part is one expert of a combined prediction.
type Part struct {
	Name   string
	Weight float64
	Out    *tensor.Dense
	Kind   schedules.Kind
}

// Fit makes p.Out a float64 tensor of x's shape, reusing the old one where it fits, clears the optional answers, and
// returns the backing slices of x and of p.Out.
func (p *Pred) Fit(x *tensor.Dense, kind schedules.Kind) (in, out []float64) {
	p.Out = Reuse(p.Out, x.Shape())
	p.Kind, p.Renoise, p.Extra, p.Parts = kind, nil, nil, nil
	return Data(x), Data(p.Out)
}

// Data returns the backing of a contiguous float64 tensor.
func Data(t *tensor.Dense) []float64 { return t.Float64s() } // Data() would allocate

// Reuse returns t when it is a float64 tensor of the given shape, else a new one.
func Reuse(t *tensor.Dense, shape tensor.Shape) *tensor.Dense {
	if t != nil && t.Dtype() == tensor.Float64 && t.Shape().Eq(shape) {
		return t
	}
	return New(shape...)
}

// New returns a zero float64 tensor.
func New(shape ...int) *tensor.Dense {
	return Wrap(make([]float64, tensor.Shape(shape).TotalSize()), shape...)
}

// Wrap returns a tensor over d, without a copy.
func Wrap(d []float64, shape ...int) *tensor.Dense {
	return tensor.New(tensor.WithShape(append([]int(nil), shape...)...), tensor.WithBacking(d))
}

// Optional abilities, found with As.

// VJP is a Denoiser that can also give the vector-Jacobian product of its output: grad = d sum(Out * cotangent) / d X.
// It answers p like Predict does.
type VJP interface {
	VJP(ctx context.Context, q *Query, p *Pred, cotangent, grad *tensor.Dense) error
}

// LateVJP is a VJP whose cotangent depends on the answer: one evaluation of the network in place of two. cotangent is
// called once, when p is answered. A decorator that has a VJP and no LateVJP hides that of the model below (see Late).
type LateVJP interface {
	LateVJP(ctx context.Context, q *Query, p *Pred, cotangent func(p *Pred) (*tensor.Dense, error), grad *tensor.Dense) error
}

// Late gives the vector-Jacobian product of d with a cotangent that depends on the answer: by LateVJP where the outermost
// model with gradients has it, else by Predict and VJP.
func Late(ctx context.Context, d Denoiser, q *Query, p *Pred, cotangent func(p *Pred) (*tensor.Dense, error), grad *tensor.Dense) error {
	v, ok := As[VJP](d)
	if !ok {
		return fmt.Errorf("models: a gradient is needed, and the model has none")
	}
	if l, ok := v.(LateVJP); ok {
		return l.LateVJP(ctx, q, p, cotangent, grad)
	}
	if err := d.Predict(ctx, q, p); err != nil {
		return err
	}
	c, err := cotangent(p)
	if err != nil {
		return err
	}
	var again Pred
	return v.VJP(ctx, q, &again, c, grad)
}

// Decoder is a Denoiser of latents that can show the pictures of some and take gradients through that: grad = d sum(x *
// cotangent) / d z with x the pictures of the latents z. cotangent is called once, with x.
type Decoder interface {
	DecodeLate(ctx context.Context, z *tensor.Dense, cotangent func(x *tensor.Dense) (*tensor.Dense, error), grad *tensor.Dense) error
}

// Sourced is a Denoiser that knows what runs start from, where that is not plain noise: Source writes one row of it into
// dst, from len(dst)+1 unit normals.
type Sourced interface{ Source(dst, z []float64) error }

// Selector is a Denoiser with memory per row (a guider with momentum): row j goes on from row parents[j].
type Selector interface{ Select(parents []int) error }

// Keeper is a Denoiser with memory that a saved run must hold.
type Keeper interface {
	Save(w io.Writer) error
	Load(r io.Reader) error
}

// Described is a Denoiser that says what it is.
type Described interface{ Info() Info }

// Info describes a model.
type Info struct {
	Name    string   // as the user asked for it
	Hash    string   // SHA-256 of the weights or of the target, hex
	Shape   []int    // of one row: (C, H, W) for images
	Picture []int    // of the picture that a codec makes of a row; nil: the row is the picture
	Text    bool     // takes prompts
	Classes int      // number of classes, 0 = unconditional
	Labels  []string // names of the classes, may be empty
	DType   string   // arithmetic: f32, bf16, f64
	Tier    string   // kernel tier of a network
	Runtime string   // library and version that computes in place of this engine, "" for its own
	Params  int64
}

// Image is the shape of a picture.
func (i Info) Image() []int {
	if i.Picture != nil {
		return i.Picture
	}
	return i.Shape
}

// Wrapper is a Denoiser around another one.
type Wrapper interface{ Unwrap() Denoiser }

// As finds the first Denoiser of d's chain of wrappers that has ability T.
func As[T any](d Denoiser) (T, bool) {
	for d != nil {
		if t, ok := d.(T); ok {
			return t, true
		}
		w, ok := d.(Wrapper)
		if !ok {
			break
		}
		d = w.Unwrap()
	}
	var zero T
	return zero, false
}

// Meter counts the work of leaf models. It is safe for concurrent use.
type Meter struct {
	evals, vjps, nanos atomic.Int64
}

// Evals returns the number of row evaluations: a call on a batch of 8 counts 8.
func (m *Meter) Evals() int64 { return m.evals.Load() }

// VJPs returns the number of row vector-Jacobian products.
func (m *Meter) VJPs() int64 { return m.vjps.Load() }

// Time returns the time spent inside leaf models.
func (m *Meter) Time() time.Duration { return time.Duration(m.nanos.Load()) }

// Metered wraps a leaf model, once, where it is opened: every call checks the query's form and is counted and timed
// in the query's Meter.
func Metered(d Denoiser) Denoiser {
	if v, ok := d.(VJP); ok {
		return meteredVJP{metered{d}, v}
	}
	return metered{d}
}

type metered struct{ Denoiser }

func (m metered) Unwrap() Denoiser { return m.Denoiser }

func (m metered) Predict(ctx context.Context, q *Query, p *Pred) error {
	if err := q.check(); err != nil {
		return err
	}
	start := time.Now()
	err := m.Denoiser.Predict(ctx, q, p)
	if q.Meter != nil {
		q.Meter.nanos.Add(int64(time.Since(start)))
		q.Meter.evals.Add(int64(len(q.At)))
	}
	return err
}

type meteredVJP struct {
	metered
	vjp VJP
}

func (m meteredVJP) VJP(ctx context.Context, q *Query, p *Pred, cotangent, grad *tensor.Dense) error {
	if err := q.check(); err != nil {
		return err
	}
	start := time.Now()
	err := m.vjp.VJP(ctx, q, p, cotangent, grad)
	if q.Meter != nil {
		q.Meter.nanos.Add(int64(time.Since(start)))
		q.Meter.evals.Add(int64(len(q.At)))
		q.Meter.vjps.Add(int64(len(q.At)))
	}
	return err
}

// LateVJP implements the interface LateVJP. A leaf without it is asked twice at one point, which counts as once.
func (m meteredVJP) LateVJP(ctx context.Context, q *Query, p *Pred, cotangent func(p *Pred) (*tensor.Dense, error), grad *tensor.Dense) error {
	if err := q.check(); err != nil {
		return err
	}
	start := time.Now()
	var outside time.Duration
	err := Late(ctx, m.Denoiser, q, p, func(p *Pred) (*tensor.Dense, error) {
		began := time.Now()
		defer func() { outside = time.Since(began) }()
		return cotangent(p)
	}, grad)
	if q.Meter != nil {
		q.Meter.nanos.Add(int64(time.Since(start) - outside))
		q.Meter.evals.Add(int64(len(q.At)))
		q.Meter.vjps.Add(int64(len(q.At)))
	}
	return err
}

// check refuses a query whose parts disagree about the number of rows.
func (q *Query) check() error {
	n := q.X.Shape()[0]
	if len(q.At) != n {
		return fmt.Errorf("models: %d rows but %d nodes", n, len(q.At))
	}
	if q.Cond != nil {
		if k := len(q.Cond.Classes); k != 0 && k != n {
			return fmt.Errorf("models: %d rows but %d classes", n, k)
		}
		if k := len(q.Cond.Prompts); k != 0 && k != n {
			return fmt.Errorf("models: %d rows but %d prompts", n, k)
		}
	}
	return nil
}
