package unet2d

import (
	"slices"
	"sort"
)

// ref names a buffer of a plan; 0 is none.
type ref int

// tensor is an activation: h by w pixels of c channels per image.
type tensor struct {
	r       ref
	h, w, c int
}

func (t tensor) size() int { return t.h * t.w * t.c }

// node is one kernel call of a plan. What it reads and writes decides how long
// buffers live.
type node struct {
	name, kind string
	out        tensor
	macs       int // multiply-adds per image
	reads      []ref
	writes     []ref
	// over are buffers that writes[0] may be laid over when this node is
	// their last reader: the kernel allows it.
	over    []ref
	scratch func(n int) int // float32 it needs for n images, nil for none
	run     func(e *env)
}

// plan is the network for one image size as a list of kernel calls, with a
// place in the arena for every buffer. Places are counted in float32 per
// image, so that one plan serves every batch.
type plan struct {
	h, w     int
	save     bool
	identity []string
	skip     []string

	nodes    []node
	forward  int   // nodes of the forward pass; the rest are its gradient
	size     []int // by ref
	off      []int
	perImage int // float32 of the arena per image

	// Buffers that the caller fills before the first node.
	in    tensor
	time  ref // encoding of t
	class ref // encoding or embedding of the class, 0 for none

	out       tensor
	dIn, dOut tensor // gradients, in a plan with save

	scratches map[int]int // float32 of scratch by batch
}

const alignFloats = 16

func roundUp(a, b int) int { return (a + b - 1) / b * b }

// buf makes a buffer of size float32 per image.
func (p *plan) buf(size int) ref {
	if p.size == nil {
		p.size = []int{0}
	}
	p.size = append(p.size, size)
	return ref(len(p.size) - 1)
}

func (p *plan) tensor(h, w, c int) tensor { return tensor{p.buf(h * w * c), h, w, c} }

func (p *plan) add(n node) { p.nodes = append(p.nodes, n) }

type life struct{ first, last int }

// layout gives every buffer its place: buffers whose lives overlap get
// disjoint places, largest buffers first, each as low as it fits.
func (p *plan) layout() {
	lives := make([]life, len(p.size))
	for i := range lives {
		lives[i] = life{-1, -1}
	}
	for i := range p.nodes {
		n := &p.nodes[i]
		for _, list := range [2][]ref{n.reads, n.writes} {
			for _, r := range list {
				if r == 0 {
					continue
				}
				if lives[r].first < 0 {
					lives[r].first = i
				}
				lives[r].last = i
			}
		}
	}
	for _, r := range []ref{p.in.r, p.time, p.class} {
		lives[r].first = 0
	}
	if p.dOut.r != 0 {
		// The caller reads out after the forward pass and writes dOut before
		// the backward pass; both happen between two nodes.
		lives[p.dOut.r].first = p.forward - 1
	}

	// What the way back reads stays, so that it can be gone again.
	for i := range lives {
		if l := &lives[i]; ref(i) != p.dOut.r && l.first < p.forward && l.last >= p.forward {
			l.last = len(p.nodes)
		}
	}

	// Lay outputs over inputs that die where that is allowed.
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

// scratch gives the float32 that the nodes need at most for n images.
func (p *plan) scratch(n int) int {
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

// matches tells whether the plan was made for these questions.
func (p *plan) matches(b *Batch) bool {
	return p.h == b.H && p.w == b.W && p.save == b.Save &&
		slices.Equal(p.identity, b.IdentityAttention) && slices.Equal(p.skip, b.SkipLayers)
}
