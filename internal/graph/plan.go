package graph

import (
	"slices"
	"sort"

	"drift/internal/kernels"
)

// ref names a buffer of a plan; 0 is none.
type ref int

// Value is an activation: H by W pixels of C channels per image. The zero
// Value is none.
type Value struct {
	r       ref
	H, W, C int
}

// Some tells whether there is a value.
func (v Value) Some() bool { return v.r != 0 }

// Rows is the number of pixels or tokens of an image.
func (v Value) Rows() int { return v.H * v.W }

// Size is the number of float32 of an image.
func (v Value) Size() int { return v.H * v.W * v.C }

// Tokens is the same memory as a sequence of tokens.
func (v Value) Tokens() Value { return Value{v.r, 1, v.H * v.W, v.C} }

// As is the same memory seen as h by w pixels of c channels.
func (v Value) As(h, w, c int) Value {
	if h*w*c != v.Size() {
		panic("graph: a value is seen in another size")
	}
	return Value{v.r, h, w, c}
}

// Cols are the channels At to At+C of a value.
type Cols struct {
	V     Value
	At, C int
}

// All are all channels.
func (v Value) All() Cols { return Cols{v, 0, v.C} }

// Cols are the channels at to at+c.
func (v Value) Cols(at, c int) Cols { return Cols{v, at, c} }

// node is one kernel call of a plan. What it reads and writes decides how long
// buffers live.
type node struct {
	name, kind string
	out        Value
	macs       int // multiply-adds per image
	reads      []ref
	writes     []ref
	// over are buffers that writes[0] may be laid over when this node is
	// their last reader: the kernel allows it.
	over    []ref
	scratch func(n int) int // float32 it needs for n images, nil for none
	run     func(e *Env)
}

// Plan is a network for one size as a list of kernel calls, with a place in
// the arena for every buffer.
type Plan struct {
	nodes    []node
	forward  int   // nodes of the forward pass; the rest are its gradient
	size     []int // by ref
	off      []int
	perImage int // float32 of the arena per image

	in, out   Value
	fed       map[string]Value // filled by the caller before the first node
	kept      map[string]Value // read by the caller after the forward pass
	dOut, dIn Value            // gradients, in a plan with save
	scratches map[int]int
}

const alignFloats = 16

func roundUp(a, b int) int { return (a + b - 1) / b * b }

func (p *Plan) buf(size int) ref {
	if p.size == nil {
		p.size = []int{0}
	}
	p.size = append(p.size, size)
	return ref(len(p.size) - 1)
}

// MACs are the multiply-adds of the forward pass of one image.
func (p *Plan) MACs() int {
	sum := 0
	for i := range p.nodes[:p.forward] {
		sum += p.nodes[i].macs
	}
	return sum
}

// PerImage is the activation memory of one image, in float32.
func (p *Plan) PerImage() int { return p.perImage }

// In and Out are the values that a run begins from and ends with.
func (p *Plan) In() Value  { return p.in }
func (p *Plan) Out() Value { return p.out }

// Grad is the gradient with respect to the input, and the cotangent of the
// output, of a plan with gradients.
func (p *Plan) Grad() (dIn, dOut Value) { return p.dIn, p.dOut }

type life struct{ first, last int }

// lives finds the first and last node at which every buffer is in use.
func (p *Plan) lives() []life {
	lives := make([]life, len(p.size))
	for i := range lives {
		lives[i] = life{-1, -1}
	}
	use := func(r ref, i int) {
		if r == 0 {
			return
		}
		if lives[r].first < 0 {
			lives[r].first = i
		}
		lives[r].last = max(lives[r].last, i)
	}
	for i := range p.nodes {
		for _, r := range p.nodes[i].reads {
			use(r, i)
		}
		for _, r := range p.nodes[i].writes {
			use(r, i)
		}
	}
	for _, v := range p.fed {
		lives[v.r].first = 0
		lives[v.r].last = max(lives[v.r].last, 0)
	}
	lives[p.out.r].last = max(lives[p.out.r].last, p.forward)
	for _, v := range p.kept {
		lives[v.r].last = max(lives[v.r].last, p.forward)
	}
	if r := p.dOut.r; r != 0 {
		// The caller reads the output after the forward pass and writes its
		// cotangent before the backward pass: both between two nodes.
		lives[r].first = p.forward - 1
	}
	// What the way back reads stays, so that it can be gone again.
	for i := range lives {
		if l := &lives[i]; ref(i) != p.dOut.r && l.first < p.forward && l.last >= p.forward {
			l.last = len(p.nodes)
		}
	}
	return lives
}

// layout gives every buffer its place: buffers whose lives overlap get
// disjoint places, largest buffers first, each as low as it fits.
func (p *Plan) layout() {
	lives := p.lives()
	root := p.overlay(lives)
	find := func(r ref) ref {
		for root[r] != r {
			r = root[r]
		}
		return r
	}
	var order []ref
	for i := range p.size {
		if r := ref(i); r != 0 && root[r] == r && lives[r].first >= 0 {
			order = append(order, r)
		}
	}
	sort.SliceStable(order, func(i, j int) bool { return p.size[order[i]] > p.size[order[j]] })
	p.off = make([]int, len(p.size))
	var placed []ref
	p.perImage = 0
	for _, r := range order {
		size := roundUp(p.size[r], alignFloats)
		at := 0
		for _, q := range placed { // sorted by place
			if lives[q].last < lives[r].first || lives[r].last < lives[q].first {
				continue
			}
			if p.off[q] >= at+size {
				break
			}
			at = max(at, p.off[q]+roundUp(p.size[q], alignFloats))
		}
		p.off[r] = at
		p.perImage = max(p.perImage, at+size)
		i, _ := slices.BinarySearchFunc(placed, at, func(q ref, at int) int { return p.off[q] - at })
		placed = slices.Insert(placed, i, r)
	}
	for i := range p.size {
		p.off[i] = p.off[find(ref(i))]
	}
}

// overlay lays outputs over inputs that die where that is allowed: root[r] is
// the buffer whose place r takes.
func (p *Plan) overlay(lives []life) []ref {
	root := make([]ref, len(p.size))
	for i := range root {
		root[i] = ref(i)
	}
	find := func(r ref) ref {
		for root[r] != r {
			r = root[r]
		}
		return r
	}
	for i := range p.nodes {
		n := &p.nodes[i]
		if len(n.writes) == 0 {
			continue
		}
		w := n.writes[0]
		if lives[w].first != i || find(w) != w {
			continue
		}
		for _, r := range n.over {
			if r == 0 {
				continue
			}
			q := find(r)
			if q != w && lives[q].last == i && p.size[q] == p.size[w] && lives[q].first < i {
				root[w] = q
				lives[q].last = lives[w].last
				break
			}
		}
	}
	return root
}

// scratch gives the float32 that the nodes need at most for n images.
func (p *Plan) scratch(n int) int {
	if s, ok := p.scratches[n]; ok {
		return s
	}
	s := 0
	for i := range p.nodes {
		if f := p.nodes[i].scratch; f != nil {
			s = max(s, f(n))
		}
	}
	if p.scratches == nil {
		p.scratches = map[int]int{}
	}
	p.scratches[n] = s
	return s
}

// Env is what a node runs in: a plan, its memory, and N images.
type Env struct {
	N    int
	Pool *kernels.Pool

	plan    *Plan
	arena   []float32
	scratch []float32
}

// At gives a value's place for all images of the batch, nil for none.
func (e *Env) At(v Value) []float32 { return e.at(v.r) }

// Fed gives the place of what the caller fills, by the name of the Feed, nil
// where the plan has none.
func (e *Env) Fed(name string) []float32 { return e.at(e.plan.fed[name].r) }

// Kept gives the place of what the caller may read.
func (e *Env) Kept(name string) []float32 { return e.at(e.plan.kept[name].r) }

func (e *Env) at(r ref) []float32 {
	if r == 0 {
		return nil
	}
	off, size := e.plan.off[r]*e.N, e.plan.size[r]*e.N
	return e.arena[off : off+size : off+size]
}
