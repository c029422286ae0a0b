// Package native makes Denoisers of networks that run on drift's own engine.
package native

import (
	"context"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/models/engine"
	"drift/schedules"
)

// Denoiser is a network as a models.Denoiser. It converts the float64 state at the network's door; a batch of any size
// gives every image the same bits. Of a network that learned its variance too (twice as many output channels as input
// channels) the first half is the prediction, the rest Pred.Extra.
type Denoiser struct {
	Net  Network
	Proc schedules.Gaussian
	Kind schedules.Kind // what the network predicts
	// TimeScale multiplies the process's time to give the network's (1000 for a flow in [0, 1]); 0 = 1.
	TimeScale float64
	// NullClass is the label of unconditional rows of a class-conditional network, or NoClass where there is none.
	NullClass   int
	Conditional bool // the network takes labels
	// Inputs makes what else the network takes of a question: the encoded text; nil for nothing. What it returns is read
	// until the next call.
	Inputs func(ctx context.Context, q *models.Query) (map[string]engine.Array, error)
	// State is how many of the network's input channels are the state, 0 = all. Beside gives the others of a row: the mask
	// and the latents of the masked picture, of a network that paints into a picture.
	State  int
	Beside func(r models.Row) []float64
	About  models.Info

	classes []int
	times   []float64
	extra   []float64
	wide    []float64
}

// state is the number of channels of the state.
func (m *Denoiser) state() int {
	if m.State > 0 {
		return m.State
	}
	in, _ := m.Net.Channels()
	return in
}

// Process implements models.Denoiser.
func (m *Denoiser) Process() schedules.Process { return m.Proc }

// Info implements models.Described.
func (m *Denoiser) Info() models.Info { return m.About }

// batch puts the query into the network's form.
func (m *Denoiser) batch(ctx context.Context, q *models.Query) (*Batch, error) {
	s := q.X.Shape()
	if in := m.state(); len(s) != 4 || s[1] != in {
		return nil, fmt.Errorf("native: images of shape %v, the network takes (batch, %d, height, width)", s, in)
	}
	b := &Batch{H: s[2], W: s[3]}
	scale := m.TimeScale
	if scale == 0 {
		scale = 1
	}
	m.times = m.times[:0]
	for _, n := range q.At {
		t := n.T
		if _, discrete := m.Proc.(interface{ Len() int }); discrete && math.Abs(t-math.Round(t)) < 1e-9 {
			t = math.Round(t) // a listed timestep that came back from its noise level
		}
		m.times = append(m.times, t*scale)
	}
	b.T = m.times
	if m.Conditional {
		m.classes = m.classes[:0]
		for i := range q.At {
			c := q.Cond.Class(i)
			switch {
			case c == models.NoClass && m.NullClass != models.NoClass:
				c = m.NullClass
			case c == models.NoClass:
				return nil, fmt.Errorf("native: this network has no label for \"no class\": give a class from 0 to %d", m.About.Classes-1)
			case c < 0 || c >= m.About.Classes:
				return nil, fmt.Errorf("native: no class %d; classes run from 0 to %d", c, m.About.Classes-1)
			}
			m.classes = append(m.classes, c)
		}
		b.Class = m.classes
	}
	if m.Inputs != nil {
		var err error
		if b.Inputs, err = m.Inputs(ctx, q); err != nil {
			return nil, err
		}
	}
	if q.Hooks != nil {
		b.IdentityAttention, b.SkipLayers = q.Hooks.IdentityAttention, q.Hooks.SkipLayers
	}
	return b, nil
}

// Predict implements models.Denoiser.
func (m *Denoiser) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	b, err := m.batch(ctx, q)
	if err != nil {
		return err
	}
	return m.forward(ctx, q, p, b)
}

func (m *Denoiser) forward(ctx context.Context, q *models.Query, p *models.Pred, b *Batch) error {
	x, out := p.Fit(q.X, m.Kind)
	in, channels := m.Net.Channels()
	if state := m.state(); state != in {
		var err error
		if x, err = m.widen(q, x, state, in); err != nil {
			return err
		}
		in = state
	}
	if channels == in {
		return m.Net.Forward(ctx, out, x, b)
	}
	if channels != 2*in {
		return fmt.Errorf("native: %d output channels for %d input channels", channels, in)
	}
	all := m.both(len(out))
	if err := m.Net.Forward(ctx, all, x, b); err != nil {
		return err
	}
	p.Extra = models.New(q.X.Shape()...)
	w := len(out) / len(q.At)
	for i := range q.At {
		copy(out[i*w:(i+1)*w], all[2*i*w:])
		copy(models.Data(p.Extra)[i*w:(i+1)*w], all[(2*i+1)*w:])
	}
	return nil
}

// widen puts the channels that go beside the state behind those of every row.
func (m *Denoiser) widen(q *models.Query, x []float64, state, in int) ([]float64, error) {
	if m.Beside == nil {
		return nil, fmt.Errorf("native: the network paints into a picture and was given none")
	}
	n := len(q.At)
	size := len(x) / n / state
	if len(m.wide) != n*in*size {
		m.wide = make([]float64, n*in*size)
	}
	for i := range n {
		var r models.Row
		if i < len(q.Rows) {
			r = q.Rows[i]
		}
		beside := m.Beside(r)
		if len(beside) != (in-state)*size {
			return nil, fmt.Errorf("native: %d values beside a state of %d channels of %d, the network takes %d", len(beside), state, size, (in-state)*size)
		}
		row := m.wide[i*in*size:]
		copy(row[copy(row, x[i*state*size:(i+1)*state*size]):], beside)
	}
	return m.wide, nil
}

// both is memory for prediction and variance of n values each.
func (m *Denoiser) both(n int) []float64 {
	if len(m.extra) != 2*n {
		m.extra = make([]float64, 2*n)
	}
	return m.extra
}

// VJP implements models.VJP: the gradient of the prediction, without the variance.
func (m *Denoiser) VJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	return m.LateVJP(ctx, q, p, func(*models.Pred) (*tensor.Dense, error) { return cotangent, nil }, grad)
}

// LateVJP implements models.LateVJP.
func (m *Denoiser) LateVJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent func(*models.Pred) (*tensor.Dense, error), grad *tensor.Dense) error {
	b, err := m.batch(ctx, q)
	if err != nil {
		return err
	}
	b.Save = true
	if err := m.forward(ctx, q, p, b); err != nil {
		return err
	}
	t, err := cotangent(p)
	if err != nil {
		return err
	}
	c := models.Data(t)
	if p.Extra != nil {
		all, w := m.both(len(c)), len(c)/len(q.At)
		clear(all)
		for i := range q.At {
			copy(all[2*i*w:], c[i*w:(i+1)*w])
		}
		c = all
	}
	in, _ := m.Net.Channels()
	state := m.state()
	if state == in {
		return m.Net.VJP(ctx, models.Data(grad), c)
	}
	g := models.Data(grad)
	wide, w := make([]float64, len(g)/state*in), len(g)/len(q.At)
	if err := m.Net.VJP(ctx, wide, c); err != nil {
		return err
	}
	for i := range q.At {
		copy(g[i*w:(i+1)*w], wide[i*w/state*in:])
	}
	return nil
}
