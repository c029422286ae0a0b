// Package engine runs networks that are written for internal/graph: it holds
// what they have in common, whatever their class. A network of images says how
// its plan is built and fed (Network); Net does the rest.
package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"drift/internal/graph"
	"drift/internal/kernels"
	"drift/models/diffusers"
)

// Options says how a network computes. The zero value is float32 on the best
// tier and all cores.
type Options struct {
	Pool    *kernels.Pool // workers and tier; nil: an own pool of the best tier
	Threads int           // workers of an own pool, 0 = GOMAXPROCS
	DType   kernels.DType // type of weights and layer inputs
	Lazy    bool          // pack the weights when they are first needed
}

// Array is an input of a network besides the images: rows of one shape, one
// per image.
type Array struct {
	Shape []int // of the whole, batch first
	Data  []float32
}

// Row is the values of image i.
func (a Array) Row(i int) []float32 {
	w := len(a.Data) / a.Shape[0]
	return a.Data[i*w : (i+1)*w]
}

// Batch is what a Forward is about besides the images.
type Batch struct {
	H, W  int       // size of the images
	T     []float64 // one time per image; its length is the batch size
	Class []int     // one label per image for a network with classes
	// Inputs are the prepared inputs of the network by the reference's argument
	// name: encoder_hidden_states (N, tokens, width), pooled_projections, ...
	Inputs map[string]Array

	IdentityAttention []string // attention layers whose map becomes the identity (arXiv:2403.17377), or blocks around them
	SkipLayers        []string // layers that pass their input through

	Save  bool             // keep what VJP needs until the next Forward
	Trace func(graph.Step) // called after every layer, for every group of images that goes through together; may be nil
}

// Network is a network of images, as its package writes it.
type Network interface {
	Config() diffusers.Config
	Channels() (in, out int)
	// Output gives the size of the output images for input images of h by w,
	// or why the network does not take those.
	Output(h, w int) (oh, ow int, err error)
	// Usual gives the size of the images that the network was made for, and the
	// shape of every input that it needs, of one image.
	Usual() (h, w int, inputs map[string][]int)
	// Check looks at everything but the images.
	Check(b *Batch) error
	// Key names what the plan depends on besides the images' size and the hooks.
	Key(b *Batch) string
	// Build writes the network down for images like those of b.
	Build(g *graph.Graph, b *Batch)
	// Fill puts the images lo to hi of b's other inputs into the feeds.
	Fill(e *graph.Env, b *Batch, lo, hi int)
}

// Net is a Network with packed weights. Calls of several goroutines wait for
// each other.
type Net struct {
	Network
	eng     *graph.Engine
	pool    *kernels.Pool
	ownPool bool
	dtype   kernels.DType
	params  int
}

// InputError is the error of a Forward whose arguments do not fit the network.
type InputError struct{ Reason string }

func (e *InputError) Error() string { return e.Reason }

// BadInput makes an InputError.
func BadInput(format string, args ...any) error { return &InputError{fmt.Sprintf(format, args...)} }

// New packs the weights of a network: the plan for images of the usual size
// says which layers there are. Tensors that are missing or of a wrong shape are
// listed in the error.
//
// w must stay usable: the first VJP reads the weights again, and a network
// that is Lazy reads them for its first plan.
func New(n Network, w diffusers.Weights, opt Options) (*Net, error) {
	cfg := n.Config()
	if err := CheckTensors(cfg, w); err != nil {
		return nil, err
	}
	net := &Net{Network: n, pool: opt.Pool, dtype: opt.DType, params: int(diffusers.Parameters(cfg))}
	if net.pool == nil {
		net.pool = kernels.NewPool(kernels.Detect(), opt.Threads)
		net.ownPool = true
	}
	net.eng = graph.NewEngine(net.pool, opt.DType, w)
	net.eng.Weights = net.params
	if opt.Lazy {
		return net, nil
	}
	if _, err := net.plan(net.Example(1)); err != nil {
		net.Close()
		return nil, err
	}
	return net, nil
}

// Example is a batch of n images of the usual size, with made-up inputs.
func (n *Net) Example(images int) *Batch {
	h, w, inputs := n.Usual()
	b := &Batch{H: h, W: w, T: make([]float64, images), Inputs: map[string]Array{}}
	for i := range b.T {
		b.T[i] = 1
	}
	for name, shape := range inputs {
		a := Array{Shape: append([]int{images}, shape...)}
		count := images
		for _, d := range shape {
			count *= d
		}
		a.Data = diffusers.FormulaValues(name, count, 1, 0)
		b.Inputs[name] = a
	}
	return b
}

// CheckTensors tells which tensors of a configuration the weights do not have
// as they should be.
func CheckTensors(cfg diffusers.Config, w diffusers.Weights) error {
	var faults []string
	for _, t := range cfg.Tensors() {
		switch shape, ok := w.Shape(t.Name); {
		case !ok:
			faults = append(faults, t.Name+" is missing")
		case !slices.Equal(shape, t.Shape):
			faults = append(faults, fmt.Sprintf("%s is %v, the configuration asks for %v", t.Name, shape, t.Shape))
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %d tensors do not fit: %s", cfg.ClassName(), len(faults), strings.Join(faults, "; "))
}

// Close stops the workers of a network's own pool.
func (n *Net) Close() {
	if n.ownPool {
		n.pool.Close()
	}
}

// Tier gives the instruction set that the network computes with.
func (n *Net) Tier() kernels.Tier { return n.pool.Tier() }

// DType gives the type of weights and layer inputs.
func (n *Net) DType() kernels.DType { return n.dtype }

// Parameters counts the values of all tensors.
func (n *Net) Parameters() int { return n.params }

// Activations is the most activation memory so far, in bytes.
func (n *Net) Activations() int { return n.eng.Activations() }

// ReleaseOver is Release if more than so many bytes are held and nothing is
// kept for a VJP.
func (n *Net) ReleaseOver(bytes int) { n.eng.ReleaseOver(bytes) }

// Release gives the activation memory back until the next Forward.
func (n *Net) Release() { n.eng.Release() }

func (n *Net) plan(b *Batch) (*graph.Plan, error) {
	s := graph.Setting{
		Key:   fmt.Sprintf("%dx%d %s", b.H, b.W, n.Key(b)),
		Grad:  b.Save,
		Hooks: graph.Hooks{IdentityAttention: b.IdentityAttention, SkipLayers: b.SkipLayers},
	}
	p, err := n.eng.Plan(s, func(g *graph.Graph) { n.Build(g, b) })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.Config().ClassName(), err)
	}
	return p, nil
}

// Need gives what a Forward of images of h by w, with the usual inputs, holds
// in bytes: packed weights and activations.
func (n *Net) Need(h, w, images int) (weights, activations int, err error) {
	if _, _, err := n.Output(h, w); err != nil {
		return 0, 0, err
	}
	b := n.Example(images)
	b.H, b.W = h, w
	p, err := n.plan(b)
	if err != nil {
		return 0, 0, err
	}
	return n.Weights(), n.eng.Need(p, images), nil
}

// Weights is the size of the packed weights in bytes.
func (n *Net) Weights() int { return n.eng.Layers.Bytes() }

// MACs gives the multiply-adds of a Forward of one image of h by w, with the
// usual inputs.
func (n *Net) MACs(h, w int) (int, error) {
	if _, _, err := n.Output(h, w); err != nil {
		return 0, err
	}
	b := n.Example(1)
	b.H, b.W = h, w
	p, err := n.plan(b)
	if err != nil {
		return 0, err
	}
	return p.MACs(), nil
}

func (n *Net) check(b *Batch, dst, x int) error {
	images := len(b.T)
	if images == 0 {
		return BadInput("no times given, one per image is needed")
	}
	if b.H < 1 || b.W < 1 || b.H > 1<<20 || b.W > 1<<20 {
		return BadInput("images of %dx%d", b.H, b.W)
	}
	oh, ow, err := n.Output(b.H, b.W)
	if err != nil {
		return err
	}
	in, out := n.Channels()
	switch {
	case x != images*in*b.H*b.W:
		return BadInput("%d input values for shape (%d, %d, %d, %d)", x, images, in, b.H, b.W)
	case dst != images*out*oh*ow:
		return BadInput("%d output values for shape (%d, %d, %d, %d)", dst, images, out, oh, ow)
	}
	for _, t := range b.T {
		if math.IsNaN(t) || math.IsInf(t, 0) {
			return BadInput("time %v is not finite", t)
		}
	}
	return n.Check(b)
}

// Forward computes dst (N, C_out, H', W') from the images x (N, C, H, W).
// Nothing is allocated from the second call of a shape on.
func (n *Net) Forward(ctx context.Context, dst, x []float64, b *Batch) error {
	return forward(ctx, n, dst, x, b)
}

// Forward32 is Forward in float32.
func (n *Net) Forward32(ctx context.Context, dst, x []float32, b *Batch) error {
	return forward(ctx, n, dst, x, b)
}

func forward[T float32 | float64](ctx context.Context, n *Net, dst, x []T, b *Batch) error {
	if err := n.check(b, len(dst), len(x)); err != nil {
		return err
	}
	p, err := n.plan(b)
	if err != nil {
		return err
	}
	in, out := p.In(), p.Out()
	return n.eng.Run(ctx, p, len(b.T), func(e *graph.Env, lo, hi int) {
		kernels.NCHWToNHWC(e.At(in), x[lo*in.Size():hi*in.Size()], hi-lo, in.C, in.Rows())
		n.Fill(e, b, lo, hi)
	}, func(e *graph.Env, lo, hi int) {
		kernels.NHWCToNCHW(dst[lo*out.Size():hi*out.Size()], e.At(out), hi-lo, out.C, out.Rows())
	}, b.Trace)
}

// VJP multiplies a cotangent of the output of the last Forward, which must
// have had Save, with the Jacobian of that output by the input:
//
//	grad = (d out / d x)^T cotangent
//
// with the shapes of the input and of the output. It can be asked any number of
// times until the next Forward.
func (n *Net) VJP(ctx context.Context, grad, cotangent []float64) error {
	return vjp(ctx, n, grad, cotangent)
}

// VJP32 is VJP in float32.
func (n *Net) VJP32(ctx context.Context, grad, cotangent []float32) error {
	return vjp(ctx, n, grad, cotangent)
}

func vjp[T float32 | float64](ctx context.Context, n *Net, grad, cotangent []T) error {
	var bad error
	err := n.eng.Back(ctx, func(e *graph.Env, p *graph.Plan) {
		dIn, dOut := p.Grad()
		if len(cotangent) != e.N*dOut.Size() || len(grad) != e.N*dIn.Size() {
			bad = BadInput("%d cotangent and %d gradient values, %d and %d are needed", len(cotangent), len(grad), e.N*dOut.Size(), e.N*dIn.Size())
			return
		}
		kernels.NCHWToNHWC(e.At(dOut), cotangent, e.N, dOut.C, dOut.Rows())
	}, func(e *graph.Env, p *graph.Plan) {
		dIn, _ := p.Grad()
		if bad == nil {
			kernels.NHWCToNCHW(grad, e.At(dIn), e.N, dIn.C, dIn.Rows())
		}
	})
	return errors.Join(bad, err)
}

// Want checks an input that every image has: its shape behind the batch, where
// 0 stands for any size.
func (b *Batch) Want(name string, shape ...int) error {
	a, ok := b.Inputs[name]
	if !ok {
		return BadInput("the network needs %s, which is not given", name)
	}
	n := 1
	fits := len(a.Shape) == len(shape)+1 && a.Shape[0] == len(b.T)
	for i, d := range a.Shape {
		n *= d
		fits = fits && d > 0 && (i == 0 || shape[i-1] == 0 || shape[i-1] == d)
	}
	if !fits || n != len(a.Data) {
		return BadInput("%s has shape %v, the network takes (%d%s)", name, a.Shape, len(b.T), dims(shape))
	}
	return nil
}

func dims(shape []int) string {
	var s strings.Builder
	for _, d := range shape {
		if d == 0 {
			s.WriteString(", any")
		} else {
			fmt.Fprintf(&s, ", %d", d)
		}
	}
	return s.String()
}

// Refuse names an input that a network has no use for.
func (b *Batch) Refuse(known ...string) error {
	for name := range b.Inputs {
		if !slices.Contains(known, name) {
			return BadInput("the network takes no %s", name)
		}
	}
	return nil
}

// Fill copies the rows lo to hi of an input to a feed of the same name, if the
// plan has one.
func (b *Batch) Fill(e *graph.Env, name string, lo, hi int) {
	if dst := e.Fed(name); dst != nil {
		a := b.Inputs[name]
		w := len(a.Data) / a.Shape[0]
		copy(dst, a.Data[lo*w:hi*w])
	}
}

// Own makes Close stop the workers of the pool that the network was given.
func (n *Net) Own() { n.ownPool = true }
