package native

import (
	"context"
	"fmt"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/schedules"
)

// Preconditioned is a network F as a denoiser in the scaled space x/alpha (Karras et al. 2022, arXiv:2206.00364, eq. 7):
//
//	E[x0|x] = Skip x/alpha + Out F(In x/alpha; Noise)
//
// with coefficients at sigma/alpha. Where sigma is 0 it is x/alpha itself.
type Preconditioned struct {
	Net  Network
	Proc schedules.Gaussian
	Of   schedules.Precondition
	// Labels of the network, as in Denoiser.
	NullClass   int
	Conditional bool
	About       models.Info

	inner Denoiser // for its labels
	x, f  []float64
	at    []schedules.Coefficients
}

// Process implements models.Denoiser.
func (m *Preconditioned) Process() schedules.Process { return m.Proc }

// Info implements models.Described.
func (m *Preconditioned) Info() models.Info { return m.About }

// batch scales the images and finds the network's times.
func (m *Preconditioned) batch(ctx context.Context, q *models.Query) (*Batch, error) {
	m.inner = Denoiser{Net: m.Net, Proc: m.Proc, NullClass: m.NullClass, Conditional: m.Conditional, About: m.About, classes: m.inner.classes, times: m.inner.times}
	b, err := m.inner.batch(ctx, q)
	if err != nil {
		return nil, err
	}
	data := models.Data(q.X)
	if len(m.x) != len(data) {
		m.x, m.f = make([]float64, len(data)), make([]float64, len(data))
	}
	m.at = m.at[:0]
	w := len(data) / len(q.At)
	for i, n := range q.At {
		c := schedules.Coefficients{Skip: 1, In: 1}
		if sb := n.Ratio(); sb > 0 {
			c = m.Of(sb)
		}
		c.Skip, c.In = c.Skip/n.Alpha, c.In/n.Alpha
		m.at = append(m.at, c)
		b.T[i] = c.Noise
		for j, v := range data[i*w : (i+1)*w] {
			m.x[i*w+j] = c.In * v
		}
	}
	return b, nil
}

func (m *Preconditioned) forward(ctx context.Context, q *models.Query, p *models.Pred, b *Batch) error {
	x, out := p.Fit(q.X, schedules.X0)
	if in, channels := m.Net.Channels(); in != channels {
		return fmt.Errorf("native: %d output channels for %d input channels", channels, in)
	}
	if err := m.Net.Forward(ctx, m.f, m.x, b); err != nil {
		return err
	}
	w := len(x) / len(q.At)
	for i, c := range m.at {
		for j := i * w; j < (i+1)*w; j++ {
			out[j] = c.Skip*x[j] + c.Out*m.f[j]
		}
	}
	return nil
}

// Predict implements models.Denoiser.
func (m *Preconditioned) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	b, err := m.batch(ctx, q)
	if err != nil {
		return err
	}
	return m.forward(ctx, q, p, b)
}

// VJP implements models.VJP.
func (m *Preconditioned) VJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	return m.LateVJP(ctx, q, p, func(*models.Pred) (*tensor.Dense, error) { return cotangent, nil }, grad)
}

// LateVJP implements models.LateVJP.
func (m *Preconditioned) LateVJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent func(*models.Pred) (*tensor.Dense, error), grad *tensor.Dense) error {
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
	c, g := models.Data(t), models.Data(grad)
	w := len(c) / len(q.At)
	for i, k := range m.at {
		for j := i * w; j < (i+1)*w; j++ {
			m.f[j] = k.Out * c[j]
		}
	}
	if err := m.Net.VJP(ctx, g, m.f); err != nil {
		return err
	}
	for i, k := range m.at {
		for j := i * w; j < (i+1)*w; j++ {
			g[j] = k.In*g[j] + k.Skip*c[j]
		}
	}
	return nil
}
