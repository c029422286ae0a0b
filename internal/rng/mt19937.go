package rng

const (
	mtN = 624 // words of state
	mtM = 397 // distance of the middle word
)

// mt19937 is the 32-bit Mersenne twister with the initialisation of 2002
// (init_genrand). Source: Matsumoto and Nishimura, "Mersenne Twister", ACM
// TOMACS 8 (1998). The zero value is a generator seeded with 0.
type mt19937 struct {
	state  [mtN]uint32
	left   int // words of state not yet given out
	seeded bool
}

func (m *mt19937) seed(s uint32) {
	m.state[0] = s
	for j := 1; j < mtN; j++ {
		s = 1812433253*(s^s>>30) + uint32(j)
		m.state[j] = s
	}
	m.left, m.seeded = 0, true
}

func (m *mt19937) refill() {
	if !m.seeded {
		m.seed(0)
	}
	s := &m.state
	for k := 0; k < mtN-mtM; k++ {
		s[k] = s[k+mtM] ^ mtTwist(s[k], s[k+1])
	}
	for k := mtN - mtM; k < mtN-1; k++ {
		s[k] = s[k+mtM-mtN] ^ mtTwist(s[k], s[k+1])
	}
	s[mtN-1] = s[mtM-1] ^ mtTwist(s[mtN-1], s[0])
	m.left = mtN
}

func mtTwist(a, b uint32) uint32 {
	y := a&0x80000000 | b&0x7fffffff
	return y>>1 ^ 0x9908b0df&-(b&1)
}

func (m *mt19937) u32() uint32 {
	if m.left == 0 {
		m.refill()
	}
	y := m.state[mtN-m.left]
	m.left--
	y ^= y >> 11
	y ^= y << 7 & 0x9d2c5680
	y ^= y << 15 & 0xefc60000
	return y ^ y>>18
}

// u64 joins two draws; the first is the high half.
func (m *mt19937) u64() uint64 {
	hi := uint64(m.u32())
	return hi<<32 | uint64(m.u32())
}
