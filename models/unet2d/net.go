package unet2d

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	DType   kernels.DType // type of weights and layer inputs
}

// Net is a UNet2DModel with packed weights. Calls of several goroutines wait
// for each other.
type Net struct {
	tree    *tree
	weights diffusers.Weights
	pool    *kernels.Pool
	ownPool bool
	dtype   kernels.DType
	chunk   int // images that pass through at once, 0 = by together

	times      *timeEncoding
	classTable []float32

	mu    sync.Mutex
	plans []*plan
	env   env
	saved *plan     // plan whose forward pass lies in the arena for VJP
	saveT []float64 // its times
	trace func(Layer)
	peak  int // float32 of arena and scratch
}

// New checks the configuration and packs the weights. A configuration that
// this engine cannot run is refused before any tensor is read; tensors that
// are missing, unknown or of a wrong shape are listed in the error.
//
// w must stay usable: the first VJP reads the weights again.
func New(cfg diffusers.UNet2DConfig, w diffusers.Weights, opt Options) (*Net, error) {
	t, err := newTree(cfg)
	if err != nil {
		return nil, err
	}
	if err := checkTensors(t.tensors, w); err != nil {
		return nil, err
	}
	n := &Net{tree: t, weights: w, pool: opt.Pool, dtype: opt.DType}
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
func (n *Net) Config() diffusers.UNet2DConfig { return n.tree.cfg }

// Tier gives the instruction set that the network computes with.
func (n *Net) Tier() kernels.Tier { return n.pool.Tier() }

// DType gives the type of weights and layer inputs.
func (n *Net) DType() kernels.DType { return n.dtype }

// Parameters counts the values of all tensors.
func (n *Net) Parameters() int {
	sum := 0
	for _, t := range n.tree.tensors {
		sum += product(t.Shape)
	}
	return sum
}

func product(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

func checkTensors(want []diffusers.Tensor, w diffusers.Weights) error {
	var missing, wrong, unknown []string
	known := map[string]bool{}
	for _, t := range want {
		known[t.Name] = true
		shape, ok := w.Shape(t.Name)
		switch {
		case !ok:
			missing = append(missing, t.Name)
		case !slices.Equal(shape, t.Shape):
			wrong = append(wrong, fmt.Sprintf("%s is %v, the configuration asks for %v", t.Name, shape, t.Shape))
		}
	}
	for _, name := range w.Names() {
		if !known[name] {
			unknown = append(unknown, name)
		}
	}
	var errs []error
	if len(missing) > 0 {
		errs = append(errs, fmt.Errorf("unet2d: %d tensors are missing: %s", len(missing), strings.Join(missing, ", ")))
	}
	if len(wrong) > 0 {
		errs = append(errs, fmt.Errorf("unet2d: %d tensors have a wrong shape: %s", len(wrong), strings.Join(wrong, "; ")))
	}
	if len(unknown) > 0 {
		errs = append(errs, fmt.Errorf("unet2d: %d tensors are unknown: %s", len(unknown), strings.Join(unknown, ", ")))
	}
	return errors.Join(errs...)
}

// read gives the tensors that a layer's name.suffix stands for, one behind
// the other.
func (n *Net) read(suffix string, parts ...string) ([]float32, error) {
	var all []float32
	for _, p := range parts {
		v, err := n.weights.Float32(p + suffix)
		if err != nil {
			return nil, fmt.Errorf("unet2d: reading %s: %w", p+suffix, err)
		}
		shape, _ := n.weights.Shape(p + suffix)
		if len(v) != product(shape) {
			return nil, fmt.Errorf("unet2d: reading %s: %d values for shape %v", p+suffix, len(v), shape)
		}
		if len(parts) == 1 {
			return v, nil
		}
		all = append(all, v...)
	}
	return all, nil
}

// pack reads the tensors of layers one by one and packs them side by side.
func (n *Net) pack(layers []*conv, pack func(c *conv, w, b []float32)) error {
	var work sync.WaitGroup
	defer work.Wait()
	slots := make(chan struct{}, n.pool.Workers())
	for _, c := range layers {
		slots <- struct{}{} // before reading: no more tensors in memory than workers
		w, err := n.read(".weight", c.parts...)
		if err != nil {
			return err
		}
		b, err := n.read(".bias", c.parts...)
		if err != nil {
			return err
		}
		work.Go(func() {
			pack(c, w, b)
			<-slots
		})
	}
	return nil
}

func (n *Net) load() error {
	t := n.tree
	if err := n.pack(t.convs, func(c *conv, w, b []float32) {
		c.layer = kernels.NewConv(n.pool.Tier(), n.layerType(c), c.spec, w, b)
	}); err != nil {
		return err
	}
	for _, l := range t.norms {
		var err error
		if l.gamma, err = n.read(".weight", l.name); err != nil {
			return err
		}
		if l.beta, err = n.read(".bias", l.name); err != nil {
			return err
		}
	}
	var table []float32
	if t.timeTable != "" {
		var err error
		if table, err = n.read("", t.timeTable); err != nil {
			return err
		}
	}
	n.times = newTimeEncoding(&t.cfg, t.timeIn, table)
	if t.classes != "" {
		var err error
		if n.classTable, err = n.read("", t.classes); err != nil {
			return err
		}
	}
	return nil
}

func (n *Net) layerType(c *conv) kernels.DType {
	if c.exact {
		return kernels.F32
	}
	return n.dtype
}

// loadGrads packs what the way back needs. The time embedding does not depend
// on the image.
func (n *Net) loadGrads() error {
	var todo []*conv
	for _, c := range n.tree.convs {
		if c.grad == nil && !(c.token && c.exact) {
			todo = append(todo, c)
		}
	}
	return n.pack(todo, func(c *conv, w, _ []float32) {
		c.grad = kernels.NewConvGrad(n.pool.Tier(), n.layerType(c), c.spec, w)
	})
}

// takesClass tells whether a class vector is added to the time embedding as
// it is.
func (t *tree) takesClass() bool { return t.classes != "" || t.cfg.ClassEmbedType == "identity" }

// AttentionLayers lists the names that Batch.IdentityAttention knows, in the
// order of computation.
func (n *Net) AttentionLayers() []string {
	var names []string
	add := func(list ...*attention) {
		for _, a := range list {
			names = append(names, a.name)
		}
	}
	for _, b := range n.tree.downs {
		add(b.attns...)
	}
	if n.tree.midAttn != nil {
		add(n.tree.midAttn)
	}
	for _, b := range n.tree.ups {
		add(b.attns...)
	}
	return names
}

// Classes gives the number of rows of the class embedding table, 0 without
// one.
func (n *Net) Classes() int { return len(n.classTable) / max(n.tree.timeDim, 1) }

// Batch is what a Forward is about besides the images.
type Batch struct {
	H, W int       // size of the images
	T    []float64 // one time per image; its length is the batch size
	// Class is one label per image for a network with a class embedding.
	Class []int
	// ClassVector is one vector per image for class_embed_type identity, as
	// wide as the time embedding.
	ClassVector []float32

	// IdentityAttention names attention layers whose map becomes the identity
	// (Ahn et al. 2024, arXiv:2403.17377), e.g. "mid_block.attentions.0", or
	// blocks, e.g. "mid_block", for all attention in them.
	IdentityAttention []string
	// SkipLayers names attention and residual layers that pass their input
	// through. A residual layer that changes the shape cannot be skipped.
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
	Kind     string // conv, linear, norm, attention, ...
	N        int    // images
	H, W, C  int    // output size
	MACs     int    // multiply-adds, all images
	Duration time.Duration
}

// InputError is the error of a Forward whose arguments do not fit the network.
type InputError struct{ Reason string }

func (e *InputError) Error() string { return "unet2d: " + e.Reason }

func badInput(format string, args ...any) error { return &InputError{fmt.Sprintf(format, args...)} }

func (n *Net) check(b *Batch, dst, x int) error {
	t, cfg := n.tree, &n.tree.cfg
	images := len(b.T)
	step := 1 << (t.levels - 1)
	switch {
	case images == 0:
		return badInput("no times given, one per image is needed")
	case b.H < step || b.W < step || b.H%step != 0 || b.W%step != 0:
		return badInput("images of %dx%d: height and width must be multiples of %d for %d levels", b.H, b.W, step, t.levels)
	case b.H > 1<<20 || b.W > 1<<20:
		return badInput("images of %dx%d are too large", b.H, b.W)
	case x != images*cfg.InChannels*b.H*b.W:
		return badInput("%d input values for shape (%d, %d, %d, %d)", x, images, cfg.InChannels, b.H, b.W)
	case dst != images*cfg.OutChannels*b.H*b.W:
		return badInput("%d output values for shape (%d, %d, %d, %d)", dst, images, cfg.OutChannels, b.H, b.W)
	}
	for _, v := range b.T {
		if err := n.times.check(v); err != nil {
			return badInput("%v", err)
		}
	}
	return n.checkClass(b)
}

func (n *Net) checkClass(b *Batch) error {
	t, images := n.tree, len(b.T)
	labels := t.classes != "" || t.class[0] != nil
	switch {
	case labels && len(b.Class) != images:
		return badInput("%d class labels for %d images", len(b.Class), images)
	case !labels && len(b.Class) > 0:
		return badInput("class labels given, the network has no class embedding for them")
	case t.cfg.ClassEmbedType == "identity" && len(b.ClassVector) != images*t.timeDim:
		return badInput("%d class vector values for %d images of %d", len(b.ClassVector), images, t.timeDim)
	case t.cfg.ClassEmbedType != "identity" && len(b.ClassVector) > 0:
		return badInput("class vectors given, class_embed_type is not identity")
	}
	for _, c := range b.Class {
		if t.classes != "" && (c < 0 || c >= n.Classes()) {
			return badInput("class %d is not in [0, %d)", c, n.Classes())
		}
		if t.class[0] != nil {
			if err := n.times.check(float64(c)); err != nil {
				return badInput("class as a time: %v", err)
			}
		}
	}
	return nil
}

// Forward predicts dst from the images x at the times of b, both (N, C, H, W).
// Nothing is allocated from the second call of a shape on.
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

func (n *Net) plan(b *Batch) (*plan, error) {
	for _, p := range n.plans {
		if p.matches(b) {
			return p, nil
		}
	}
	if b.Save {
		if err := n.loadGrads(); err != nil {
			return nil, err
		}
	}
	p, err := n.build(b)
	if err != nil {
		return nil, err
	}
	n.plans = append(n.plans, p)
	return p, nil
}

// enter makes the arena large enough for a plan and a batch.
func (n *Net) enter(p *plan, images int) {
	e := &n.env
	e.pool, e.plan, e.n = n.pool, p, images
	if need := p.perImage * images; len(e.arena) < need {
		e.arena = nil // let the old one go first
		e.arena = aligned(need)
	}
	if need := p.scratch(images); len(e.scratch) < need {
		e.scratch = nil
		e.scratch = aligned(need)
	}
	n.peak = max(n.peak, len(e.arena)+len(e.scratch))
}

func forward[T float32 | float64](ctx context.Context, n *Net, dst, x []T, b *Batch) error {
	if err := n.check(b, len(dst), len(x)); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.saved = nil
	p, err := n.plan(b)
	if err != nil {
		return err
	}
	count := len(b.T)
	step := count
	if !b.Save {
		step = n.together(p, count)
	}
	ins, outs := p.in.size(), p.out.size()
	for lo := 0; lo < count; lo += step {
		hi := min(lo+step, count)
		n.enter(p, hi-lo)
		e := &n.env
		in := e.at(p.in.r)
		kernels.NCHWToNHWC(in, x[lo*ins:hi*ins], hi-lo, p.in.c, p.in.h*p.in.w)
		if n.tree.cfg.CenterInputSample {
			for i, v := range in {
				in[i] = 2*v - 1
			}
		}
		n.encode(b, lo, hi)
		if err := n.run(ctx, p.nodes[:p.forward], b.Trace); err != nil {
			return err
		}
		out := dst[lo*outs : hi*outs]
		kernels.NHWCToNCHW(out, e.at(p.out.r), hi-lo, p.out.c, p.out.h*p.out.w)
		divideByTime(n, out, b.T[lo:hi])
	}
	if b.Save {
		n.saved = p
		n.saveT = append(n.saveT[:0], b.T...)
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
		most = max(1, max(minTogether, n.Parameters())/max(p.perImage, 1))
	}
	groups := (count + most - 1) / most
	return (count + groups - 1) / groups
}

// divideByTime: a network with a Fourier embedding predicts t times its
// output.
func divideByTime[T float32 | float64](n *Net, dst []T, times []float64) {
	if n.tree.cfg.TimeEmbeddingType != "fourier" {
		return
	}
	size := len(dst) / len(times)
	for i, t := range times {
		for j, v := range dst[i*size : (i+1)*size] {
			dst[i*size+j] = T(float64(v) / t)
		}
	}
}

// encode fills the rows that the time embedding starts from.
func (n *Net) encode(b *Batch, lo, hi int) {
	e, t := &n.env, n.tree
	rows := e.at(e.plan.time)
	for i, v := range b.T[lo:hi] {
		row := rows[i*t.timeIn : (i+1)*t.timeIn]
		if i > 0 && v == b.T[lo+i-1] {
			copy(row, rows[(i-1)*t.timeIn:])
			continue
		}
		n.times.put(row, v)
	}
	rows = e.at(e.plan.class)
	switch {
	case t.class[0] != nil:
		for i, c := range b.Class[lo:hi] {
			n.times.put(rows[i*t.timeIn:(i+1)*t.timeIn], float64(c))
		}
	case t.classes != "":
		for i, c := range b.Class[lo:hi] {
			copy(rows[i*t.timeDim:(i+1)*t.timeDim], n.classTable[c*t.timeDim:])
		}
	case t.cfg.ClassEmbedType == "identity":
		copy(rows, b.ClassVector[lo*t.timeDim:hi*t.timeDim])
	}
}

func (n *Net) run(ctx context.Context, nodes []node, trace func(Layer)) error {
	e := &n.env
	for i := range nodes {
		v := &nodes[i]
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("unet2d: stopped before %s: %w", v.name, err)
		}
		if trace == nil {
			v.run(e)
			continue
		}
		start := time.Now()
		v.run(e)
		trace(Layer{v.name, v.kind, e.n, v.out.h, v.out.w, v.out.c, e.n * v.macs, time.Since(start)})
	}
	return nil
}

// ErrNotSaved is the error of a VJP that no Forward with Save came before.
var ErrNotSaved = errors.New("unet2d: no Forward with Save came before this VJP")

func vjp[T float32 | float64](ctx context.Context, n *Net, grad, cotangent []T) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, e := n.saved, &n.env
	if p == nil {
		return ErrNotSaved
	}
	if want := e.n * p.out.size(); len(cotangent) != want {
		return badInput("%d cotangent values for an output of %d", len(cotangent), want)
	}
	if want := e.n * p.in.size(); len(grad) != want {
		return badInput("%d gradient values for an input of %d", len(grad), want)
	}
	d := e.at(p.dOut.r)
	kernels.NCHWToNHWC(d, cotangent, e.n, p.out.c, p.out.h*p.out.w)
	divideByTime(n, d, n.saveT)
	if err := n.run(ctx, p.nodes[p.forward:], n.trace); err != nil {
		return err
	}
	d = e.at(p.dIn.r)
	if n.tree.cfg.CenterInputSample {
		for i, v := range d {
			d[i] = 2 * v
		}
	}
	kernels.NHWCToNCHW(grad, d, e.n, p.in.c, p.in.h*p.in.w)
	return nil
}

// MACs gives the multiply-adds of a Forward of one image: convolutions, linear
// layers and attention products.
func (n *Net) MACs(h, w int) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, err := n.planFor(h, w)
	if err != nil {
		return 0, err
	}
	sum := 0
	for i := range p.nodes[:p.forward] {
		sum += p.nodes[i].macs
	}
	return sum, nil
}

// planFor is the plan of a plain Forward of images of h by w.
func (n *Net) planFor(h, w int) (*plan, error) {
	step := 1 << (n.tree.levels - 1)
	if h < step || w < step || h%step != 0 || w%step != 0 {
		return nil, badInput("images of %dx%d: height and width must be multiples of %d for %d levels", h, w, step, n.tree.levels)
	}
	return n.plan(&Batch{H: h, W: w, T: []float64{1}})
}

// Memory is what a network holds, in bytes.
type Memory struct {
	Weights     int // as packed, gradients included once they are asked for
	Activations int // arena and scratch, at their largest so far
}

func (n *Net) packed() int {
	sum := 0
	for _, l := range n.tree.convs {
		sum += l.layer.Bytes()
		if l.grad != nil {
			sum += l.grad.Bytes()
		}
	}
	return sum
}

// Need gives what a Forward of so many images of h by w holds. It runs nothing.
func (n *Net) Need(h, w, images int) (Memory, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, err := n.planFor(h, w)
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
