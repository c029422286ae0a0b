package rng

import "math/bits"

// block is a counter of Philox, or what it is turned into.
type block struct{ w0, w1, w2, w3 uint32 }

// philox is Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel Random
// Numbers: As Easy as 1, 2, 3", SC 2011. The low half of the key is its first word.
func philox(c block, key uint64) block {
	k0, k1 := uint32(key), uint32(key>>32)
	for range 10 {
		hi0, lo0 := bits.Mul32(0xd2511f53, c.w0)
		hi1, lo1 := bits.Mul32(0xcd9e8d57, c.w2)
		c = block{hi1 ^ c.w1 ^ k0, lo1, hi0 ^ c.w3 ^ k1, lo0}
		k0 += 0x9e3779b9
		k1 += 0xbb67ae85
	}
	return c
}

// uniforms returns the two 53-bit uniforms on [0, 1) of a block, first words
// first and low halves first.
func (b block) uniforms() (u, v float64) {
	return float64((uint64(b.w1)<<32|uint64(b.w0))>>11) * (1.0 / (1 << 53)),
		float64((uint64(b.w3)<<32|uint64(b.w2))>>11) * (1.0 / (1 << 53))
}

// normals returns the two standard normals of a block: u of Box and Muller is the
// first uniform plus 2^-53, in (0, 1], and v the second.
func (b block) normals() (x, y float64) {
	u, v := b.uniforms()
	return boxMuller(u+1.0/(1<<53), v)
}

// Purpose tells draws of one step apart. Its values never change meaning: they
// are part of what a seed means. Values from 1<<16 on are free for callers.
type Purpose uint32

const (
	PurposeStart    Purpose = 0 // the noise that a run starts from
	PurposeStep     Purpose = 1 // the noise of a step
	PurposeStage    Purpose = 2 // a second draw of the same step
	PurposeForward  Purpose = 3 // noise put back by a hop towards noise (churn, restart, repaint)
	PurposeProbe    Purpose = 4 // probe vectors: traces, directional derivatives
	PurposeResample Purpose = 5 // which particles live on
	PurposeAccept   Purpose = 6 // whether a proposal is taken
	PurposeToken    Purpose = 7 // discrete states
	PurposeSubset   Purpose = 8 // which data or features are used
	PurposeEncode   Purpose = 9 // what an autoencoder's distribution gives
)

// Key names a row of random numbers. Rows of different keys are independent; a
// row of the same key is the same row, however long it is asked for.
//
// Element i of a row belongs to block i/2, which is
//
//	Philox(counter (i/2, step, d2, d3), key (d0, d1)),
//	d = Philox(counter (image low, image high, purpose, kind), key (seed low, seed high)),
//
// low words first, Philox being Philox4x32-10, step its low 32 bits, and kind 0
// for Normal, 1 for Uniform and 2 for Brownian, so that no two rows of one seed
// share a block. A block gives two uniforms of 53 bits and two normals by Box
// and Muller from them, for elements i even and odd.
type Key struct {
	Seed    uint64
	Image   uint64 // image of a run, particle of an image, or whatever is counted
	Step    int
	Purpose Purpose
}

// kinds of rows
const (
	kindNormal = iota
	kindUniform
	kindBrownian
)

// stream returns d of Key as a key and the two words left over.
func (k Key) stream(kind uint32) (key uint64, d2, d3 uint32) {
	d := philox(block{uint32(k.Image), uint32(k.Image >> 32), uint32(k.Purpose), kind}, k.Seed)
	return uint64(d.w1)<<32 | uint64(d.w0), d.w2, d.w3
}

// Normal fills dst with the standard normals of key: dst[i] depends on key and i
// alone. It does not allocate.
func Normal(dst []float64, key Key) {
	k, d2, d3 := key.stream(kindNormal)
	c := block{0, uint32(key.Step), d2, d3}
	for ; len(dst) > 1; dst = dst[2:] {
		dst[0], dst[1] = philox(c, k).normals()
		c.w0++
	}
	if len(dst) == 1 {
		dst[0], _ = philox(c, k).normals()
	}
}

// Uniform fills dst with the uniforms of key on [0, 1), multiples of 2^-53:
// dst[i] depends on key and i alone. It does not allocate.
func Uniform(dst []float64, key Key) {
	k, d2, d3 := key.stream(kindUniform)
	c := block{0, uint32(key.Step), d2, d3}
	for ; len(dst) > 1; dst = dst[2:] {
		dst[0], dst[1] = philox(c, k).uniforms()
		c.w0++
	}
	if len(dst) == 1 {
		dst[0], _ = philox(c, k).uniforms()
	}
}
