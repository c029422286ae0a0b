package dit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"
	"unsafe"

	"drift/internal/kernels"
	"drift/models/diffusers"
)

// Options says how a network computes. The zero value is float32 on the best
// tier and all cores.
type Options struct {
	Pool    *kernels.Pool // workers and tier; nil: an own pool of the best tier
	Threads int           // workers of an own pool, 0 = GOMAXPROCS
	DType   kernels.DType // type of the blocks' weights and layer inputs
}

// Net is a DiTTransformer2DModel with packed weights. Calls of several
// goroutines wait for each other.
type Net struct {
	tree    *tree
	weights diffusers.Weights
	pool    *kernels.Pool
	ownPool bool
	dtype   kernels.DType
	prompts *prompts // of a patched network, or nil
	chunk   int      // images that pass through at once, 0 = by together

	mu    sync.Mutex
	pos   map[int][]float32 // position tables by tokens on a side
	plans []*plan
	env   env
	saved *plan // plan whose forward pass lies in the arena for VJP
	trace func(Layer)
	peak  int // float32 of arena and scratch
}

// New checks the configuration and packs the weights. A configuration that
// this engine cannot run is refused before any tensor is read; tensors that
// are missing, unknown or of a wrong shape are listed in the error.
//
// w must stay usable: the first VJP reads the weights again.
func New(cfg diffusers.DiTConfig, w diffusers.Weights, opt Options) (*Net, error) {
	t, err := newTree(cfg)
	if err != nil {
		return nil, err
	}
	patch, err := promptTensors(cfg, w)
	if err != nil {
		return nil, err
	}
	t.tensors = append(t.tensors, patch...)
	if err := checkTensors(t.tensors, w); err != nil {
		return nil, err
	}
	n := &Net{tree: t, weights: w, pool: opt.Pool, dtype: opt.DType, pos: map[int][]float32{}}
	if n.pool == nil {
		n.pool = kernels.NewPool(kernels.Detect(), opt.Threads)
		n.ownPool = true
	}
	if err := n.load(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Close stops the workers of a network's own pool.
func (n *Net) Close() {
	if n.ownPool {
		n.pool.Close()
	}
}

// Config gives the configuration that the network was made from.
func (n *Net) Config() diffusers.DiTConfig { return n.tree.cfg }

// OutChannels gives the channels of the output, learned variance included.
func (n *Net) OutChannels() int { return n.tree.channels }

// Tier gives the instruction set that the network computes with.
func (n *Net) Tier() kernels.Tier { return n.pool.Tier() }

// DType gives the type of the blocks' weights and layer inputs.
func (n *Net) DType() kernels.DType { return n.dtype }

// Classes gives the number of rows of the class tables; the last one stands
// for no class.
func (n *Net) Classes() int { return n.tree.cfg.NumEmbedsAdaNorm + 1 }

// Parameters counts the values of all tensors.
func (n *Net) Parameters() int {
	sum := 0
	for _, t := range n.tree.tensors {
		sum += product(t.Shape)
	}
	return sum
}

// AttentionLayers lists the names that Batch.IdentityAttention knows, in the
// order of computation.
func (n *Net) AttentionLayers() []string {
	var names []string
	for _, b := range n.tree.blocks {
		names = append(names, b.attn)
	}
	return names
}

// read gives the tensors that a layer stands for, one behind the other.
func (n *Net) read(suffix string, parts []string) ([]float32, error) {
	var all []float32
	for _, p := range parts {
		v, err := n.weights.Float32(p + suffix)
		if err != nil {
			return nil, fmt.Errorf("dit: reading %s: %w", p+suffix, err)
		}
		if shape, _ := n.weights.Shape(p + suffix); len(v) != product(shape) {
			return nil, fmt.Errorf("dit: reading %s: %d values for shape %v", p+suffix, len(v), shape)
		}
		if len(parts) == 1 {
			return v, nil
		}
		all = append(all, v...)
	}
	return all, nil
}

// pack reads the layers' tensors one by one and packs them side by side.
func (n *Net) pack(layers []*linear, pack func(l *linear, dtype kernels.DType, w []float32)) error {
	var work sync.WaitGroup
	defer work.Wait()
	slots := make(chan struct{}, n.pool.Workers())
	for _, l := range layers {
		slots <- struct{}{} // before reading: no more tensors in memory than workers
		w, err := n.read(".weight", l.parts)
		if err != nil {
			return err
		}
		dtype := n.dtype
		if l.exact {
			dtype = kernels.F32
		}
		work.Go(func() {
			pack(l, dtype, w)
			<-slots
		})
	}
	return nil
}

func (n *Net) load() error {
	biases := map[*linear][]float32{}
	for _, l := range n.tree.linears {
		if !l.bias {
			continue
		}
		var err error
		if biases[l], err = n.read(".bias", l.parts); err != nil {
			return err
		}
	}
	for _, b := range n.tree.blocks {
		var err error
		if b.table, err = n.read("", []string{b.class}); err != nil {
			return err
		}
	}
	if err := n.loadPrompts(); err != nil {
		return err
	}
	return n.pack(n.tree.linears, func(l *linear, dtype kernels.DType, w []float32) {
		l.layer = kernels.NewLinear(n.pool.Tier(), dtype, l.in, l.out, w, biases[l])
	})
}

// loadGrads packs what the way back needs.
func (n *Net) loadGrads() error {
	var todo []*linear
	for _, l := range n.tree.linears {
		if l.image && l.grad == nil {
			todo = append(todo, l)
		}
	}
	return n.pack(todo, func(l *linear, dtype kernels.DType, w []float32) {
		l.grad = kernels.NewLinearGrad(n.pool.Tier(), dtype, l.in, l.out, w)
	})
}

// position gives the position table of a grid.
func (n *Net) position(side int) []float32 {
	if n.pos[side] == nil {
		n.pos[side] = positions(side, n.tree.base, n.tree.width)
	}
	return n.pos[side]
}

// Batch is what a Forward is about besides the images.
type Batch struct {
	H, W  int       // size of the images, equal
	T     []float64 // one time per image; its length is the batch size
	Class []int     // one class per image, the number of classes for none

	// IdentityAttention names attention layers whose map becomes the identity
	// (Ahn et al. 2024, arXiv:2403.17377), e.g. "transformer_blocks.3.attn1",
	// or the blocks around them.
	IdentityAttention []string
	// SkipLayers names blocks, or an attn1 or ff in them, that pass their
	// input through.
	SkipLayers []string

	// Save keeps what VJP needs until the next Forward.
	Save bool
	// Trace is called after every layer, for every group of images that goes
	// through together.
	Trace func(Layer)
}

// Layer is one step of a Forward or VJP, as Batch.Trace sees it.
type Layer struct {
	Name     string // tensor name without .weight
	Kind     string // linear, norm, attention, ...
	N        int    // images
	Tokens   int    // rows of the output per image
	C        int    // channels of the output
	MACs     int    // multiply-adds, all images
	Duration time.Duration
}

// InputError is the error of a Forward whose arguments do not fit the network.
type InputError struct{ Reason string }

func (e *InputError) Error() string { return "dit: " + e.Reason }

func badInput(format string, args ...any) error { return &InputError{fmt.Sprintf(format, args...)} }

// maxSide bounds the tokens on a side: attention is over their square.
const maxSide = 1 << 12

// side gives the tokens on a side of an image.
func (n *Net) side(h, w int) (int, error) {
	p := n.tree.cfg.PatchSize
	switch {
	case h != w:
		return 0, badInput("images of %dx%d: this network takes squares", h, w)
	case h < p || h%p != 0:
		return 0, badInput("images of %dx%d: the size must be a multiple of the patches' %d", h, w, p)
	case h/p > maxSide:
		return 0, badInput("images of %dx%d are too large", h, w)
	case n.prompts != nil && h/p*(h/p) != n.prompts.tokens:
		return 0, badInput("images of %dx%d have %d tokens, the network's prompts are for %d", h, w, h/p*(h/p), n.prompts.tokens)
	}
	return h / p, nil
}

// check gives the tokens on a side of an image.
func (n *Net) check(b *Batch, dst, x int) (int, error) {
	images, in, out := len(b.T), n.tree.cfg.InChannels, n.tree.channels
	if images == 0 {
		return 0, badInput("no times given, one per image is needed")
	}
	side, err := n.side(b.H, b.W)
	switch {
	case err != nil:
		return 0, err
	case x != images*in*b.H*b.W:
		return 0, badInput("%d input values for shape (%d, %d, %d, %d)", x, images, in, b.H, b.W)
	case dst != images*out*b.H*b.W:
		return 0, badInput("%d output values for shape (%d, %d, %d, %d)", dst, images, out, b.H, b.W)
	case len(b.Class) != images:
		return 0, badInput("%d class labels for %d images", len(b.Class), images)
	}
	for i, t := range b.T {
		if math.IsNaN(t) || math.IsInf(t, 0) {
			return 0, badInput("time %v is not finite", t)
		}
		if c := b.Class[i]; c < 0 || c >= n.Classes() {
			return 0, badInput("class %d is not in [0, %d)", c, n.Classes())
		}
	}
	return side, nil
}

// Forward predicts dst (N, C_out, S, S) from the images x (N, C, S, S) at the
// times and classes of b. Nothing is allocated from the second call of a shape
// on.
func (n *Net) Forward(ctx context.Context, dst, x []float64, b *Batch) error {
	return forward(ctx, n, dst, x, b)
}

// Forward32 is Forward in float32.
func (n *Net) Forward32(ctx context.Context, dst, x []float32, b *Batch) error {
	return forward(ctx, n, dst, x, b)
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

func (n *Net) plan(side int, b *Batch) (*plan, error) {
	for _, p := range n.plans {
		if p.matches(side, b) {
			return p, nil
		}
	}
	if b.Save {
		if err := n.loadGrads(); err != nil {
			return nil, err
		}
	}
	p, err := n.build(side, b)
	if err != nil {
		return nil, err
	}
	n.plans = append(n.plans, p)
	return p, nil
}

// enter makes the arena large enough for a plan and images lo to hi of b.
func (n *Net) enter(p *plan, b *Batch, lo, hi int) {
	e := &n.env
	e.pool, e.n, e.times, e.class = n.pool, hi-lo, b.T[lo:hi], b.Class[lo:hi]
	if need := p.perImage * e.n; len(e.arena) < need {
		e.arena = nil // let the old one go first
		e.arena = aligned(need)
	}
	if need := p.scratch(e.n); len(e.scratch) < need {
		e.scratch = nil
		e.scratch = aligned(need)
	}
	n.peak = max(n.peak, len(e.arena)+len(e.scratch))
}

func forward[T float32 | float64](ctx context.Context, n *Net, dst, x []T, b *Batch) error {
	side, err := n.check(b, len(dst), len(x))
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.saved = nil
	p, err := n.plan(side, b)
	if err != nil {
		return err
	}
	count := len(b.T)
	step := count
	if !b.Save {
		step = n.together(p, count)
	}
	t, e := n.tree, &n.env
	ins, outs := len(x)/count, len(dst)/count
	defer func() { e.times, e.class = nil, nil }()
	for lo := 0; lo < count; lo += step {
		hi := min(lo+step, count)
		n.enter(p, b, lo, hi)
		patchify(e.at(p.in), x[lo*ins:hi*ins], channelsFirst(t.cfg.InChannels, side, t.cfg.PatchSize))
		if err := n.run(ctx, p.nodes[:p.forward], b.Trace); err != nil {
			return err
		}
		unpatchify(dst[lo*outs:hi*outs], e.at(p.out), pixelsFirst(t.channels, side, t.cfg.PatchSize))
	}
	if b.Save {
		n.saved = p
		n.trace = b.Trace
	}
	return nil
}

// minTogether is the least activation memory worth filling, in float32.
const minTogether = 1 << 20

// together gives the number of images that pass through the network at once:
// as many as make the activations as large as the weights, which keeps a small
// network's activations in the caches and lets a large network's weights be
// read seldom. Groups are of equal size as far as that goes.
func (n *Net) together(p *plan, count int) int {
	most := n.chunk
	if most == 0 {
		most = max(1, max(minTogether, n.Parameters())/p.perImage)
	}
	groups := (count + most - 1) / most
	return (count + groups - 1) / groups
}

func (n *Net) run(ctx context.Context, nodes []node, trace func(Layer)) error {
	e := &n.env
	for i := range nodes {
		v := &nodes[i]
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("dit: stopped before %s: %w", v.name, err)
		}
		if trace == nil {
			v.run(e)
			continue
		}
		start := time.Now()
		v.run(e)
		trace(Layer{v.name, v.kind, e.n, v.tokens, v.c, e.n * v.macs, time.Since(start)})
	}
	return nil
}

// ErrNotSaved is the error of a VJP that no Forward with Save came before.
var ErrNotSaved = errors.New("dit: no Forward with Save came before this VJP")

func vjp[T float32 | float64](ctx context.Context, n *Net, grad, cotangent []T) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, e, t := n.saved, &n.env, n.tree
	if p == nil {
		return ErrNotSaved
	}
	if want := e.n * p.out.size; len(cotangent) != want {
		return badInput("%d cotangent values for an output of %d", len(cotangent), want)
	}
	if want := e.n * p.in.size; len(grad) != want {
		return badInput("%d gradient values for an input of %d", len(grad), want)
	}
	patchify(e.at(p.dOut), cotangent, pixelsFirst(t.channels, p.side, t.cfg.PatchSize))
	if err := n.run(ctx, p.nodes[p.forward:], n.trace); err != nil {
		return err
	}
	unpatchify(grad, e.at(p.dIn), channelsFirst(t.cfg.InChannels, p.side, t.cfg.PatchSize))
	return nil
}

// MACs gives the multiply-adds of a Forward of one image: linear layers and
// attention products.
func (n *Net) MACs(h, w int) (int, error) {
	side, err := n.side(h, w)
	if err != nil {
		return 0, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p, err := n.plan(side, &Batch{})
	if err != nil {
		return 0, err
	}
	sum := 0
	for i := range p.nodes[:p.forward] {
		sum += p.nodes[i].macs
	}
	return sum, nil
}

// Memory is what a network holds, in bytes.
type Memory struct {
	Weights     int // as packed, gradients included once they are asked for
	Activations int // arena and scratch, at their largest so far
}

func (n *Net) packed() int {
	sum := 0
	for _, l := range n.tree.linears {
		sum += l.layer.Bytes()
		if l.grad != nil {
			sum += l.grad.Bytes()
		}
	}
	return sum
}

// Need gives what a Forward of so many images of h by w holds. It runs nothing.
func (n *Net) Need(h, w, images int) (Memory, error) {
	side, err := n.side(h, w)
	if err != nil {
		return Memory{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p, err := n.plan(side, &Batch{})
	if err != nil {
		return Memory{}, err
	}
	step := n.together(p, images)
	return Memory{Weights: n.packed(), Activations: 4 * (p.perImage*step + p.scratch(step))}, nil
}

// Memory reports what the network holds now.
func (n *Net) Memory() Memory {
	n.mu.Lock()
	defer n.mu.Unlock()
	return Memory{Weights: n.packed(), Activations: 4 * n.peak}
}

// aligned makes n float32 that begin at a 64-byte boundary.
func aligned(n int) []float32 {
	s := make([]float32, n+alignFloats)
	skip := int(-uintptr(unsafe.Pointer(&s[0]))&63) / 4
	return s[skip : skip+n]
}
