package metrics

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/mat"

	"drift/internal/kernels"
)

// Stats are the first two moments of a feature set: what FID compares and what
// statistics files hold.
type Stats struct {
	N    int           // samples; 0 where a file does not say
	Mean []float64     // d
	Cov  *mat.SymDense // d x d, unbiased (divided by N-1)
	ID   Identity
}

// Identity is the line that stands next to every number made from these
// statistics: "extractor=... resize=... n=...".
func (s Stats) Identity() string { return s.ID.With(s.N) }

// Moments accumulates count, mean and centred second moment
//
//	n,  m = (1/n) Σ x,  M2 = Σ (x-m)(x-m)ᵀ
//
// in float64. Batches and other accumulators join by the update of Chan,
// Golub and LeVeque (1979): with δ = m_b - m_a and n = n_a + n_b,
//
//	m = m_a + δ n_b/n,   M2 = M2_a + M2_b + δδᵀ n_a n_b/n
//
// which stays accurate where Σxxᵀ - n m mᵀ cancels. Memory is d² + 257 d
// numbers, whatever n is. Rows enter M2 in blocks of 256 counted from the
// first row, so the result depends on the order of the rows and on nothing
// else: neither on how they were batched nor on the number of threads.
//
// The zero value is an empty accumulator.
type Moments struct {
	ID Identity // of the extractor, carried into Stats
	// Pool is the workers and the kernel tier of the updates of M2; nil is one
	// worker of the best tier. The bits depend on the tier.
	Pool *kernels.Pool

	core momentCore
	buf  []float64 // block of pending rows minus shift, plus one row for δ
	fill int
}

// momentCore holds the mean as shift+off, shift being the first row ever seen:
// the differences of means stay exact for data far from zero.
type momentCore struct {
	n          int
	shift, off []float64
	m2         []float64 // upper triangle of d x d

	pool    *kernels.Pool
	scratch []float64
}

const (
	blockRows = 256
)

// N is the number of rows so far.
func (m *Moments) N() int { return m.core.n + m.fill }

// Dim is the number of features, 0 while empty.
func (m *Moments) Dim() int { return len(m.core.shift) }

// Add takes a batch. A batch with a NaN or another dimension is refused whole.
func (m *Moments) Add(batch Samples) error {
	n, d := batch.Dims()
	if n == 0 {
		return nil
	}
	if err := check("batch", batch, 1); err != nil {
		return err
	}
	row := make([]float64, d)
	if m.core.shift == nil {
		batch.Row(row, 0)
		m.core.start(append([]float64(nil), row...))
	}
	if d != m.Dim() {
		return fmt.Errorf("metrics: batch: %w: %d, before it %d", ErrDims, d, m.Dim())
	}
	if m.buf == nil {
		m.buf = make([]float64, d*(blockRows+1))
	}
	m.core.pool = m.Pool
	for i := range n {
		batch.Row(row, i)
		pending := m.buf[m.fill*d : (m.fill+1)*d]
		for j, v := range row {
			pending[j] = v - m.core.shift[j]
		}
		if m.fill++; m.fill == blockRows {
			m.core.block(m.buf, m.fill)
			m.fill = 0
		}
	}
	return nil
}

func (c *momentCore) start(shift []float64) {
	c.shift = shift
	c.off = make([]float64, len(shift))
	c.m2 = make([]float64, len(shift)*len(shift))
}

// block joins k pending rows, overwriting buf.
func (c *momentCore) block(buf []float64, k int) {
	d := len(c.shift)
	n := float64(c.n + k)
	w := math.Sqrt(float64(c.n) * float64(k) / n)
	mean := c.centre(buf[:k*d], k)
	// A second pass takes the rounding of the mean out of the centred rows.
	for j, rest := range c.centre(buf[:k*d], k) {
		mean[j] += rest
	}
	last := buf[k*d : (k+1)*d] // the row that adds δδᵀ n_a n_b/n
	for j, v := range mean {
		delta := v - c.off[j]
		last[j] = w * delta
		c.off[j] += delta * float64(k) / n
	}
	if c.pool == nil {
		c.pool = kernels.NewPool(kernels.Detect(), 1)
	}
	if need := kernels.SyrkScratch(c.pool); len(c.scratch) < need {
		c.scratch = make([]float64, need)
	}
	kernels.Syrk(c.pool, c.m2, buf, k+1, d, c.scratch)
	c.n += k
}

// centre takes the mean out of k rows and returns it.
func (c *momentCore) centre(rows []float64, k int) []float64 {
	d := len(c.shift)
	mean := make([]float64, d)
	for i := range k {
		for j, v := range rows[i*d : (i+1)*d] {
			mean[j] += v
		}
	}
	for j := range mean {
		mean[j] /= float64(k)
	}
	for i := range k {
		row := rows[i*d : (i+1)*d]
		for j, v := range mean {
			row[j] -= v
		}
	}
	return mean
}

// join is the pairwise update with another core.
func (c *momentCore) join(o momentCore) {
	if o.n == 0 {
		return
	}
	if c.n == 0 {
		*c = momentCore{n: o.n, shift: o.shift, off: append([]float64(nil), o.off...), m2: append([]float64(nil), o.m2...)}
		return
	}
	d := len(c.shift)
	n := float64(c.n + o.n)
	delta := make([]float64, d)
	for j := range delta {
		delta[j] = (o.shift[j] - c.shift[j]) + (o.off[j] - c.off[j])
		c.off[j] += delta[j] * float64(o.n) / n
	}
	w := float64(c.n) * float64(o.n) / n
	for i := range d {
		wi := w * delta[i]
		for j := i; j < d; j++ {
			c.m2[i*d+j] += o.m2[i*d+j] + wi*delta[j]
		}
	}
	c.n += o.n
}

// flushed is the state with pending rows joined; m itself keeps them pending.
func (m *Moments) flushed() momentCore {
	c := m.core
	if m.fill == 0 {
		return c
	}
	c.off = append([]float64(nil), c.off...)
	c.m2 = append([]float64(nil), c.m2...)
	c.block(append([]float64(nil), m.buf...), m.fill)
	return c
}

// Merge joins another accumulator into m and leaves it unchanged. Both must
// come from the same extractor.
func (m *Moments) Merge(o *Moments) error {
	if o.N() == 0 {
		return nil
	}
	if m.N() == 0 && m.ID == (Identity{}) {
		m.ID = o.ID
	}
	if m.ID != o.ID {
		return fmt.Errorf("metrics: merge: %w: %+v and %+v", ErrIdentity, m.ID, o.ID)
	}
	if m.N() > 0 && m.Dim() != o.Dim() {
		return fmt.Errorf("metrics: merge: %w: %d and %d", ErrDims, m.Dim(), o.Dim())
	}
	c := m.flushed()
	if m.fill == 0 && c.n > 0 { // flushed shares memory when nothing was pending
		c.off = append([]float64(nil), c.off...)
		c.m2 = append([]float64(nil), c.m2...)
	}
	c.join(o.flushed())
	m.core, m.fill, m.buf = c, 0, nil
	return nil
}

// MergeAll joins shards over a fixed binary tree in the order of the slice
// (neighbours first), so the result is the same for any number of workers that
// made them. The shards stay as they are.
func MergeAll(shards []*Moments) (*Moments, error) {
	switch len(shards) {
	case 0:
		return &Moments{}, nil
	case 1:
		out := &Moments{}
		return out, out.Merge(shards[0])
	}
	a, err := MergeAll(shards[:len(shards)/2])
	if err != nil {
		return nil, err
	}
	b, err := MergeAll(shards[len(shards)/2:])
	if err != nil {
		return nil, err
	}
	return a, a.Merge(b)
}

// State is an accumulator as a shard file stores it. The mean of the rows is
// Origin+Mean: kept apart, data far from zero merge without loss. M2 is the
// full symmetric d x d matrix Σ (x-m)(x-m)ᵀ.
type State struct {
	N            int
	Origin, Mean []float64 // d; a nil Origin is zero
	M2           []float64 // d*d
	ID           Identity
}

// State returns a copy of the accumulated state, pending rows included.
func (m *Moments) State() State {
	c := m.flushed()
	d := len(c.shift)
	s := State{c.n, append([]float64(nil), c.shift...), append([]float64(nil), c.off...), make([]float64, d*d), m.ID}
	for i := range d {
		for j := i; j < d; j++ {
			s.M2[i*d+j] = c.m2[i*d+j]
			s.M2[j*d+i] = c.m2[i*d+j]
		}
	}
	return s
}

// FromState rebuilds an accumulator from a stored state. It refuses sizes that
// do not fit, non-finite entries and a negative diagonal.
func FromState(s State) (*Moments, error) {
	d := len(s.Mean)
	switch {
	case s.N < 1 || d < 1:
		return nil, fmt.Errorf("metrics: state: %w: n=%d d=%d", ErrTooFew, s.N, d)
	case len(s.M2) != d*d || s.Origin != nil && len(s.Origin) != d:
		return nil, fmt.Errorf("metrics: state: %w: mean has %d entries, origin %d, M2 %d", ErrDims, d, len(s.Origin), len(s.M2))
	case badEntry(s.Origin) >= 0 || badEntry(s.Mean) >= 0 || badEntry(s.M2) >= 0:
		return nil, fmt.Errorf("metrics: state: %w", ErrNaN)
	}
	for i := range d {
		if v := s.M2[i*d+i]; v < 0 {
			return nil, fmt.Errorf("metrics: state: %w: M2[%d,%d] = %v", ErrIndefinite, i, i, v)
		}
	}
	m := &Moments{ID: s.ID}
	origin := make([]float64, d)
	copy(origin, s.Origin)
	m.core.start(origin)
	m.core.n = s.N
	copy(m.core.off, s.Mean)
	copy(m.core.m2, s.M2)
	return m, nil
}

// Stats returns mean and unbiased covariance M2/(n-1). It refuses fewer than
// two rows and a set whose rows are all equal.
func (m *Moments) Stats() (Stats, error) {
	n := m.N()
	if n < 2 {
		return Stats{}, fmt.Errorf("metrics: covariance: %w: %d, needs at least 2", ErrTooFew, n)
	}
	st := m.State()
	mean, m2, d := st.Mean, st.M2, m.Dim()
	for i := range mean {
		mean[i] += st.Origin[i]
	}
	trace := 0.0
	for i := range d {
		trace += m2[i*d+i]
	}
	if trace == 0 {
		return Stats{}, fmt.Errorf("metrics: covariance: %w (%d rows)", ErrConstant, n)
	}
	for i := range m2 {
		m2[i] /= float64(n - 1)
	}
	return Stats{n, mean, mat.NewSymDense(d, m2), m.ID}, nil
}

// StatsOf is the Stats of a whole set.
func StatsOf(s Samples, id Identity) (Stats, error) {
	m := Moments{ID: id}
	if err := m.Add(s); err != nil {
		return Stats{}, err
	}
	return m.Stats()
}

func meanOf(x []float64) float64 {
	s := 0.0
	for _, v := range x {
		s += v
	}
	return s / float64(len(x))
}
