package graph

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
	"unsafe"

	"drift/internal/kernels"
)

// Engine runs the plans of one network. Calls of several goroutines wait for
// each other.
type Engine struct {
	Layers *Layers
	// Together is the most images that pass through at once, 0 = as many as
	// make the activations as large as Weights float32 (at least four
	// megabytes): that keeps a small network's activations in the caches and
	// lets a large network's weights be read seldom.
	Together int
	Weights  int // parameters of the network

	mu    sync.Mutex
	plans map[string]*Plan
	env   Env
	saved *Plan
	trace func(Step)
	peak  int // float32 of arena and scratch
}

// NewEngine makes an engine for the layers of a network.
func NewEngine(pool *kernels.Pool, dtype kernels.DType, w Weights) *Engine {
	e := &Engine{Layers: NewLayers(pool, dtype, w), plans: map[string]*Plan{}}
	e.env.Pool = pool
	return e
}

// Step is one call of a run, as a trace sees it.
type Step struct {
	Name     string // tensor name without .weight
	Kind     string // conv, linear, norm, attention, ...
	N        int    // images
	H, W, C  int    // output size
	MACs     int    // multiply-adds, all images
	Duration time.Duration
}

// Setting names a plan of a network: everything its shape depends on.
type Setting struct {
	Key   string // sizes
	Grad  bool   // with the gradient
	Hooks Hooks
}

func (s Setting) key() string {
	if len(s.Hooks.IdentityAttention)+len(s.Hooks.SkipLayers) == 0 {
		if s.Grad {
			return s.Key + "\x00grad"
		}
		return s.Key
	}
	return fmt.Sprintf("%s\x00%v\x00%q\x00%q", s.Key, s.Grad, s.Hooks.IdentityAttention, s.Hooks.SkipLayers)
}

// Plan gives the plan of a setting, made by build when it is first asked for.
func (e *Engine) Plan(s Setting, build func(g *Graph)) (*Plan, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := s.key()
	if p, ok := e.plans[key]; ok {
		return p, nil
	}
	g := &Graph{
		Plan: &Plan{fed: map[string]Value{}, kept: map[string]Value{}}, Layers: e.Layers, env: &e.env, save: s.Grad, hooks: s.Hooks,
		used: map[string]bool{}, depends: map[ref]bool{}, grads: map[ref]Value{},
	}
	build(g)
	if err := g.finish(); err != nil {
		return nil, err
	}
	e.plans[key] = g.Plan
	return g.Plan, nil
}

// enter makes the arena large enough for a plan and a batch.
func (e *Engine) enter(p *Plan, images int) {
	v := &e.env
	v.plan, v.N = p, images
	if need := p.perImage * images; len(v.arena) < need {
		drop(&v.arena) // let the old one go first
		v.arena = aligned(need)
	}
	if need := p.scratch(images); len(v.scratch) < need {
		drop(&v.scratch)
		v.scratch = aligned(need)
	}
	e.peak = max(e.peak, len(v.arena)+len(v.scratch))
}

const minTogether = 1 << 20

func (e *Engine) together(p *Plan, count int) int {
	most := e.Together
	if most == 0 {
		most = max(1, max(minTogether, e.Weights)/max(p.perImage, 1))
	}
	groups := (count + most - 1) / most
	return (count + groups - 1) / groups // groups of equal size as far as that goes
}

// Run computes a batch of n images. fill and read see the images lo to hi,
// before and after they pass through. A plan with the gradient takes all
// images at once and keeps what Back needs until the next Run.
func (e *Engine) Run(ctx context.Context, p *Plan, n int, fill, read func(v *Env, lo, hi int), trace func(Step)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.saved = nil
	step := n
	if p.dOut.r == 0 {
		step = e.together(p, n)
	}
	for lo := 0; lo < n; lo += step {
		hi := min(lo+step, n)
		e.enter(p, hi-lo)
		fill(&e.env, lo, hi)
		if err := e.nodes(ctx, p.nodes[:p.forward], trace); err != nil {
			return err
		}
		read(&e.env, lo, hi)
	}
	if p.dOut.r != 0 {
		e.saved, e.trace = p, trace
	}
	return nil
}

// ErrNotSaved is the error of a Back that no Run of a plan with the gradient
// came before.
var ErrNotSaved = errors.New("graph: no forward pass that kept its activations came before this gradient")

// Back computes the gradient of the last Run: fill puts the cotangent of the
// output into Grad's dOut, read takes the gradient from dIn. It can be asked
// any number of times until the next Run.
func (e *Engine) Back(ctx context.Context, fill, read func(v *Env, p *Plan)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.saved
	if p == nil {
		return ErrNotSaved
	}
	fill(&e.env, p)
	if err := e.nodes(ctx, p.nodes[p.forward:], e.trace); err != nil {
		return err
	}
	read(&e.env, p)
	return nil
}

func (e *Engine) nodes(ctx context.Context, nodes []node, trace func(Step)) error {
	v := &e.env
	for i := range nodes {
		n := &nodes[i]
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stopped before %s: %w", n.name, err)
		}
		if trace == nil {
			n.run(v)
			continue
		}
		start := time.Now()
		n.run(v)
		trace(Step{n.name, n.kind, v.N, n.out.H, n.out.W, n.out.C, v.N * n.macs, time.Since(start)})
	}
	return nil
}

// Need gives the memory that a Run of n images holds, in bytes: arena and
// scratch.
func (e *Engine) Need(p *Plan, n int) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.dOut.r == 0 {
		n = e.together(p, n)
	}
	return 4 * (p.perImage*n + p.scratch(n))
}

// Activations is the most memory that arena and scratch had so far, in bytes.
func (e *Engine) Activations() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return 4 * e.peak
}

// ReleaseOver is Release if arena and scratch hold more than so many bytes and
// keep nothing for a Back.
func (e *Engine) ReleaseOver(bytes int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.saved == nil && 4*(len(e.env.arena)+len(e.env.scratch)) > bytes {
		e.release()
	}
}

// Release gives arena and scratch back; the next Run makes them anew.
func (e *Engine) Release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.release()
}

func (e *Engine) release() {
	e.saved = nil
	drop(&e.env.arena)
	drop(&e.env.scratch)
}

// Forget gives everything back, plans and packed layers too; the next Plan
// reads the weights again. Plans made before must not run any more.
func (e *Engine) Forget() {
	e.Release()
	e.mu.Lock()
	defer e.mu.Unlock()
	bytes := e.Layers.Bytes()
	e.Layers = NewLayers(e.Layers.pool, e.Layers.dtype, e.Layers.weights)
	clear(e.plans)
	e.env.plan = nil
	if bytes >= large {
		debug.FreeOSMemory()
	}
}

// large is from how many bytes on memory is given back at once: the collector,
// which lets as much garbage gather as there is in use, would wait for as much
// again.
const large = 64 << 20

func drop(s *[]float32) {
	n := 4 * len(*s)
	*s = nil
	if n >= large {
		debug.FreeOSMemory()
	}
}

// aligned makes n float32 that begin at a 64-byte boundary.
func aligned(n int) []float32 {
	s := make([]float32, n+alignFloats)
	skip := int(-uintptr(unsafe.Pointer(&s[0]))&63) / 4
	return s[skip : skip+n]
}
