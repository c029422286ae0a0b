// Package native makes Denoisers of networks that run on drift's own engine.
package native

import (
	"context"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/models/unet2d"
	"drift/schedules"
)

// UNet2D is a UNet2DModel as a Denoiser. It converts the float64 state at the network's door; a batch of any size gives
// every image the same bits.
type UNet2D struct {
	Net  *unet2d.Net
	Proc schedules.Gaussian
	Kind schedules.Kind // what the network predicts
	// TimeScale multiplies the process's time to give the network's (1000 for a flow in [0, 1]); 0 = 1.
	TimeScale float64
	// NullClass is the label of unconditional rows of a class-conditional network, or NoClass where there is none.
	NullClass   int
	Conditional bool // the network takes labels
	About       models.Info

	classes []int
	times   []float64
	extra   []float64
}

// Process implements models.Denoiser.
func (m *UNet2D) Process() schedules.Process { return m.Proc }

// Info implements models.Described.
func (m *UNet2D) Info() models.Info { return m.About }

// batch puts the query into the network's form.
func (m *UNet2D) batch(q *models.Query) (*unet2d.Batch, error) {
	s := q.X.Shape()
	if len(s) != 4 || s[1] != m.Net.Config().InChannels {
		return nil, fmt.Errorf("native: images of shape %v, the network takes (batch, %d, height, width)", s, m.Net.Config().InChannels)
	}
	b := &unet2d.Batch{H: s[2], W: s[3]}
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
	if q.Hooks != nil {
		b.IdentityAttention, b.SkipLayers = q.Hooks.IdentityAttention, q.Hooks.SkipLayers
	}
	return b, nil
}

// Predict implements models.Denoiser.
func (m *UNet2D) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	b, err := m.batch(q)
	if err != nil {
		return err
	}
	return m.forward(ctx, q, p, b)
}

func (m *UNet2D) forward(ctx context.Context, q *models.Query, p *models.Pred, b *unet2d.Batch) error {
	x, out := p.Fit(q.X, m.Kind)
	cfg := m.Net.Config()
	if cfg.OutChannels == cfg.InChannels {
		return m.Net.Forward(ctx, out, x, b)
	}
	if cfg.OutChannels != 2*cfg.InChannels {
		return fmt.Errorf("native: %d output channels for %d input channels", cfg.OutChannels, cfg.InChannels)
	}
	// A learned-variance network: the first half is the prediction.
	if len(m.extra) != 2*len(out) {
		m.extra = make([]float64, 2*len(out))
	}
	if err := m.Net.Forward(ctx, m.extra, x, b); err != nil {
		return err
	}
	p.Extra = models.New(q.X.Shape()...)
	w := len(out) / len(q.At)
	for i := range q.At {
		copy(out[i*w:(i+1)*w], m.extra[2*i*w:])
		copy(models.Data(p.Extra)[i*w:(i+1)*w], m.extra[(2*i+1)*w:])
	}
	return nil
}

// VJP implements models.VJP.
func (m *UNet2D) VJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	if cfg := m.Net.Config(); cfg.OutChannels != cfg.InChannels {
		return fmt.Errorf("native: no gradient of a network with %d output channels for %d input channels", cfg.OutChannels, cfg.InChannels)
	}
	b, err := m.batch(q)
	if err != nil {
		return err
	}
	b.Save = true
	if err := m.forward(ctx, q, p, b); err != nil {
		return err
	}
	return m.Net.VJP(ctx, models.Data(grad), models.Data(cotangent))
}
