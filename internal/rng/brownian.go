package rng

import (
	"fmt"
	"math"
)

// Brownian is a Wiener path W on the whole real line with W(0) = 0, one for each
// component of a row, that can be asked for its increments over any intervals in
// any order: increments over neighbouring intervals add up (to rounding), and a
// run with twice the steps sees the same path. Nothing is stored: the path is a
// function of Key and the time.
//
// It is a virtual Brownian tree (Li, Wong, Chen and Duvenaud, "Scalable Gradients
// for Stochastic Differential Equations", AISTATS 2020), one for each octave
// [2^e, 2^(e+1)) of the time's magnitude, e >= -64, and one for [0, 2^-64), each
// sign apart. The increment over an octave is normal with the octave's width as
// variance; the middle of an interval of width w, given its ends, is normal with
// mean their average and variance w/4. Halving stops after Depth levels, at a
// leaf of width w whose ends are known; inside a leaf, at a fraction f of it,
//
//	W = (1-f) W(left) + f W(right) + sqrt(w f (1-f)) z
//
// with one z for the leaf. So W is continuous, has the law of a Wiener path at
// any set of times of which no two lie inside one leaf, and is smooth within a
// leaf. A leaf is 2^-Depth times the magnitude of the time wide. A deeper tree
// refines a shallower one: they agree on the ends and middles of leaves.
//
// Every normal is that of one Philox block for two components: with d and its
// key as for [Key],
//
//	Philox(counter (i/2, node low ^ d2, node high ^ d3, 2 step + side), key (d0, d1)),
//
// side 1 for negative times, node = octave 2^53 + place, octave e+65 or 0, place 0
// for the increment over the octave, 1 for its middle, 2p and 2p+1 for the middles
// of the halves of p. A new Key.Step is a new path, as a second pass over the same
// times needs; its low 31 bits count.
//
// The cost is Depth+2 normals for each component and end of an interval, and one
// more for each octave between them.
type Brownian struct {
	Key   Key
	Depth int // levels of halving, 1 to 52; 0 means 20; 52 tells every two float64 above 2^-64 apart
}

const (
	defaultDepth = 20
	maxDepth     = 52
	lowOctave    = -64 // times below 2^lowOctave share one tree
)

// Increment sets dst[i] to W_i(to) - W_i(from). Times may be given in either
// order; the increment changes its sign with them. It panics where to - from is
// not finite. It does not allocate.
func (b Brownian) Increment(dst []float64, from, to float64) {
	b.fill(dst, from, to, 1)
}

// Normal sets dst[i] to (W_i(to) - W_i(from)) / sqrt(|to - from|), a standard
// normal, or to 0 where the times are equal. Otherwise it is Increment.
func (b Brownian) Normal(dst []float64, from, to float64) {
	span := math.Abs(to - from)
	if span == 0 {
		span = 1
	}
	b.fill(dst, from, to, math.Sqrt(span))
}

func (b Brownian) fill(dst []float64, from, to, unit float64) {
	if d := to - from; d-d != 0 {
		panic(fmt.Sprintf("rng: Brownian increment from %v to %v", from, to))
	}
	p := path{depth: b.Depth}
	if p.depth == 0 {
		p.depth = defaultDepth
	}
	if p.depth < 0 || p.depth > maxDepth {
		panic(fmt.Sprintf("rng: Brownian tree of depth %d", b.Depth))
	}
	p.key, p.mask[0], p.mask[1] = b.Key.stream(kindBrownian)
	p.step = uint32(b.Key.Step) << 1
	for i := 0; i < len(dst); i += 2 {
		w := p.between(from, to)
		dst[i] = w.x / unit
		if i+1 < len(dst) {
			dst[i+1] = w.y / unit
		}
		p.block++
	}
}

// pair is a value for two components of a path.
type pair struct{ x, y float64 }

func (p pair) plus(q pair) pair     { return pair{p.x + q.x, p.y + q.y} }
func (p pair) minus(q pair) pair    { return pair{p.x - q.x, p.y - q.y} }
func (p pair) times(a float64) pair { return pair{float64(a * p.x), float64(a * p.y)} }

// path is two components of a Brownian.
type path struct {
	key   uint64
	mask  [2]uint32
	step  uint32
	block uint32
	depth int
}

// normals returns the normals of a node.
func (p *path) normals(side uint32, octave, place uint64) pair {
	node := octave<<53 | place
	x, y := philox(block{p.block, uint32(node) ^ p.mask[0], uint32(node>>32) ^ p.mask[1], p.step | side}, p.key).normals()
	return pair{x, y}
}

// between returns W(to) - W(from).
func (p *path) between(from, to float64) pair {
	switch {
	case from >= 0 && to >= 0:
		return p.along(0, from, to)
	case from <= 0 && to <= 0:
		return p.along(1, -from, -to)
	case from < 0:
		return p.along(0, 0, to).minus(p.along(1, 0, -from))
	}
	return p.along(1, 0, -to).minus(p.along(0, 0, from))
}

// along returns W(to) - W(from) on one side of 0, where both are counted from 0.
func (p *path) along(side uint32, from, to float64) pair {
	if from > to {
		return p.along(side, to, from).times(-1)
	}
	a, fa := octaveOf(from)
	b, fb := octaveOf(to)
	sum := p.within(side, b, fb).minus(p.within(side, a, fa))
	for ; a < b; a++ {
		sum = sum.plus(p.normals(side, a, 0).times(octaveUnit(a)))
	}
	return sum
}

// octaveOf returns the octave of t >= 0 and how far into it t lies, both exact.
func octaveOf(t float64) (octave uint64, fraction float64) {
	bits := math.Float64bits(math.Abs(t)) // of -0 too
	e := int(bits>>52) - 1023
	if e < lowOctave {
		return 0, math.Ldexp(t, -lowOctave)
	}
	return uint64(e - lowOctave + 1), math.Float64frombits(bits&(1<<52-1)|1023<<52) - 1
}

// octaveUnit is the root of an octave's width.
func octaveUnit(octave uint64) float64 {
	return math.Sqrt(math.Ldexp(1, lowOctave+max(0, int(octave)-1)))
}

// within returns W at a fraction f of an octave less W at its left end.
func (p *path) within(side uint32, octave uint64, f float64) pair {
	if f == 0 {
		return pair{}
	}
	// The octave has width 1 until the end; level l has width 2^-l. Walking
	// down, over is the increment over the interval that holds f, and sum what
	// lies left of it.
	var sum pair
	over := p.normals(side, octave, 0)
	place := uint64(1)
	half, next := 0.5, 0.5*math.Sqrt(0.5) // half the root of the width, here and one level down
	for range p.depth {
		left := over.times(0.5).plus(p.normals(side, octave, place).times(half))
		f *= 2
		place *= 2
		if f < 1 {
			over = left
		} else {
			f--
			place++
			sum, over = sum.plus(left), over.minus(left)
			if f == 0 {
				return sum.times(octaveUnit(octave))
			}
		}
		half, next = next, half/2
	}
	z := p.normals(side, octave, place).times(2 * half * math.Sqrt(float64(f*(1-f))))
	return sum.plus(over.times(f)).plus(z).times(octaveUnit(octave))
}
