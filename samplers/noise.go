package samplers

import (
	"fmt"
	"sync"

	"gorgonia.org/tensor"

	"drift/internal/rng"
	"drift/models"
)

// Purpose separates the draws of one step.
type Purpose = rng.Purpose

// The purposes of draws.
const (
	DrawStart   = rng.PurposeStart   // start of the run
	DrawStep    = rng.PurposeStep    // the noise of a step
	DrawStage   = rng.PurposeStage   // the second draw of a step with an inner node
	DrawForward = rng.PurposeForward // noise put in: churn, rising hops
	DrawEncode  = rng.PurposeEncode  // which latents an autoencoder's distribution gives of a picture
)

// Draw says what a row of noise is for. From and To are the ratios sigma/alpha of the interval it belongs to (a
// Brownian path needs them); Slot is the row's place in the batch, which only recorded noise looks at.
type Draw struct {
	Row      models.Row
	Slot     int
	Step     int // -1 for the start
	Purpose  Purpose
	From, To float64
}

// Noise is where a run gets its unit normals. dst is one row, and what it gets depends on the Draw alone, so that
// results do not depend on batch size, thread count or order.
type Noise interface {
	Normal(dst []float64, d Draw)
}

// Streams is the default noise. A run starts from torch's CPU stream of the row's seed (particles j > 0 from a Philox
// stream keyed by (seed, j)), so that pictures can be compared with diffusers; step noise is Philox keyed by (seed,
// particle, step, purpose).
type Streams struct {
	// Brownian takes step noise from one path per row in place of independent draws: the same seed sees the same path
	// at 20 and at 40 steps. Its clock is sb/(1+sb).
	Brownian bool
}

// Normal implements Noise.
func (n Streams) Normal(dst []float64, d Draw) {
	if d.Purpose == DrawStart && d.Row.Particle == 0 {
		rng.NewTorch(d.Row.Seed).NormalF64From32(dst)
		return
	}
	key := rng.Key{Seed: d.Row.Seed, Image: uint64(d.Row.Particle), Step: d.Step, Purpose: d.Purpose}
	if n.Brownian && (d.Purpose == DrawStep || d.Purpose == DrawStage) {
		key.Step, key.Purpose = 0, DrawStep
		rng.Brownian{Key: key}.Normal(dst, clock(d.From), clock(d.To))
		return
	}
	rng.Normal(dst, key)
}

// clock maps [0, Inf] to [0, 1].
func clock(sb float64) float64 {
	if 1/sb == 0 {
		return 1
	}
	return sb / (1 + sb)
}

// Torch draws everything of a row from one torch generator, the start first (after the latents of a picture, if there is
// one) and then every draw in the order of the run, as diffusers does with one generator per image. It remembers where
// each row stands, so use one per run, and it cannot go on from a saved run.
type Torch struct {
	CUDA    bool // the generator of a CUDA device in place of the CPU's
	Threads int  // of the device, see rng.TorchCUDA

	mu   sync.Mutex
	rows map[models.Row]*torchRow
}

// torchRow is the generator of a row.
type torchRow struct {
	normal  func(dst []float64)
	started bool
}

// Normal implements Noise.
func (n *Torch) Normal(dst []float64, d Draw) {
	n.mu.Lock()
	defer n.mu.Unlock()
	g := n.rows[d.Row]
	if g == nil || d.Purpose == DrawStart && g.started {
		if n.rows == nil {
			n.rows = map[models.Row]*torchRow{}
		}
		g = &torchRow{normal: rng.NewTorch(d.Row.Seed).NormalF64From32}
		if n.CUDA {
			g.normal = rng.NewTorchCUDA(d.Row.Seed, n.Threads).NormalF64From32
		}
		n.rows[d.Row] = g
	}
	g.started = g.started || d.Purpose != DrawEncode
	g.normal(dst)
}

// Start takes the start of a run from one Noise and everything else from another.
type Start struct{ Start, Steps Noise }

// Normal implements Noise.
func (n Start) Normal(dst []float64, d Draw) {
	if d.Purpose == DrawStart {
		n.Start.Normal(dst, d)
		return
	}
	n.Steps.Normal(dst, d)
}

// Zero is no noise at all: every draw is 0, the start too.
type Zero struct{}

// Normal implements Noise.
func (Zero) Normal(dst []float64, _ Draw) { clear(dst) }

// Recorded replays step noise from an array (steps, batch, ...), or (2 steps, batch, ...) for methods that draw twice in
// a step. A start is drawn from Start (nil: Streams).
type Recorded struct {
	Start Noise
	steps int
	batch int
	data  []float64
	per   int
}

// NewRecorded takes the noise of a run of n steps.
func NewRecorded(noise *tensor.Dense, n int) (*Recorded, error) {
	s := noise.Shape()
	if len(s) < 2 || (s[0] != n && s[0] != 2*n) {
		return nil, fmt.Errorf("samplers: recorded noise has shape %v, want %d or %d steps first", s, n, 2*n)
	}
	return &Recorded{steps: n, batch: s[1], data: models.Data(noise), per: s[0] / n}, nil
}

// Fits tells whether the noise has the given batch and row size.
func (n *Recorded) Fits(batch, dim int) bool {
	return batch <= n.batch && len(n.data) == n.steps*n.per*n.batch*dim
}

// Normal implements Noise.
func (n *Recorded) Normal(dst []float64, d Draw) {
	if d.Purpose == DrawStart {
		start := n.Start
		if start == nil {
			start = Streams{}
		}
		start.Normal(dst, d)
		return
	}
	i := d.Step * n.per
	if d.Purpose == DrawStage {
		i += n.per - 1
	}
	copy(dst, n.data[(i*n.batch+d.Slot)*len(dst):])
}
