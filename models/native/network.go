package native

import (
	"context"
	"errors"
	"fmt"
	"time"

	"drift/internal/kernels"
	"drift/models"
	"drift/models/diffusers"
	"drift/models/dit"
	"drift/models/unet2d"
)

// Network is a network of the engine, whatever its class. Images are (N, C, H, W).
type Network interface {
	Channels() (in, out int)
	SampleSize() (h, w int) // of the images that it was made for, 0 where its configuration does not say
	Classes() int           // labels that it takes, the one of NoClass included; 0 = none
	NoClass() int           // the label of "no class", models.NoClass where the class has none by itself
	Parameters() int
	MACs(h, w int) (int, error) // multiply-adds of a Forward of one image
	Memory() Memory
	Tier() kernels.Tier
	DType() kernels.DType

	Forward(ctx context.Context, dst, x []float64, b *Batch) error
	Forward32(ctx context.Context, dst, x []float32, b *Batch) error
	// VJP gives the gradient by the input of the last Forward, which must have had Save.
	VJP(ctx context.Context, grad, cotangent []float64) error
	VJP32(ctx context.Context, grad, cotangent []float32) error
	Close()
}

// Batch is what a Forward is about besides the images.
type Batch struct {
	H, W  int       // size of the images
	T     []float64 // one time per image
	Class []int     // one label per image for a network with classes

	IdentityAttention, SkipLayers []string // see models.Hooks

	Save  bool        // keep what VJP needs until the next Forward
	Trace func(Layer) // called after every layer; may be nil
}

// Layer is one step of a Forward, as Batch.Trace sees it.
type Layer struct {
	Name     string        `json:"name"`
	Kind     string        `json:"kind"` // conv, linear, norm, attention, ...
	N        int           `json:"n"`    // images
	H        int           `json:"h"`    // of the output; a transformer's tokens are rows of width 1
	W        int           `json:"w"`
	C        int           `json:"c"`
	MACs     int           `json:"macs"` // multiply-adds, all images
	Duration time.Duration `json:"ns"`
}

// Memory is what a network holds, in bytes.
type Memory struct {
	Weights     int // as float32
	Activations int
}

// Options says how a network computes. The zero value is float32 on an own pool of the best tier.
type Options struct {
	Pool  *kernels.Pool
	DType kernels.DType
}

// Runs tells whether the engine runs networks of this class, and else which.
func Runs(cfg diffusers.Config) error {
	switch cfg.(type) {
	case *diffusers.UNet2DConfig, *diffusers.DiTConfig:
		return nil
	}
	return fmt.Errorf("a %s, which this engine does not run; it runs UNet2DModel and DiTTransformer2DModel", cfg.ClassName())
}

// New makes the network of a configuration. Without weights they are made up from the tensors' names, at full size.
func New(cfg diffusers.Config, w diffusers.Weights, opt Options) (Network, error) {
	var err error
	switch c := cfg.(type) {
	case *diffusers.UNet2DConfig:
		if w == nil {
			if w, err = unet2d.NewFormula(*c); err != nil {
				return nil, err
			}
		}
		n, err := unet2d.New(*c, w, unet2d.Options{Pool: opt.Pool, DType: opt.DType})
		if err != nil {
			return nil, err
		}
		return unet2dNet{n}, nil
	case *diffusers.DiTConfig:
		if w == nil {
			if w, err = dit.NewFormula(*c); err != nil {
				return nil, err
			}
		}
		n, err := dit.New(*c, w, dit.Options{Pool: opt.Pool, DType: opt.DType})
		if err != nil {
			return nil, err
		}
		return ditNet{n}, nil
	}
	return nil, fmt.Errorf("native: %w", Runs(cfg))
}

// BadInput tells whether a Forward failed because its arguments do not fit the network, and why they do not.
func BadInput(err error) (reason string, ok bool) {
	var u *unet2d.InputError
	var d *dit.InputError
	switch {
	case errors.As(err, &u):
		return u.Reason, true
	case errors.As(err, &d):
		return d.Reason, true
	}
	return "", false
}

type unet2dNet struct{ *unet2d.Net }

func (n unet2dNet) Channels() (in, out int) {
	c := n.Config()
	return c.InChannels, c.OutChannels
}

func (n unet2dNet) SampleSize() (h, w int) {
	c := n.Config()
	return c.SampleSize.H, c.SampleSize.W
}

func (n unet2dNet) NoClass() int { return models.NoClass }

func (n unet2dNet) Memory() Memory { return Memory(n.Net.Memory()) }

func (n unet2dNet) Forward(ctx context.Context, dst, x []float64, b *Batch) error {
	return n.Net.Forward(ctx, dst, x, n.batch(b))
}

func (n unet2dNet) Forward32(ctx context.Context, dst, x []float32, b *Batch) error {
	return n.Net.Forward32(ctx, dst, x, n.batch(b))
}

func (unet2dNet) batch(b *Batch) *unet2d.Batch {
	out := &unet2d.Batch{H: b.H, W: b.W, T: b.T, Class: b.Class, IdentityAttention: b.IdentityAttention, SkipLayers: b.SkipLayers, Save: b.Save}
	if b.Trace != nil {
		out.Trace = func(l unet2d.Layer) { b.Trace(Layer(l)) }
	}
	return out
}

type ditNet struct{ *dit.Net }

func (n ditNet) Channels() (in, out int) { return n.Config().InChannels, n.OutChannels() }

func (n ditNet) SampleSize() (h, w int) { return n.Config().SampleSize, n.Config().SampleSize }

func (n ditNet) NoClass() int { return n.Classes() - 1 }

func (n ditNet) Memory() Memory { return Memory(n.Net.Memory()) }

func (n ditNet) Forward(ctx context.Context, dst, x []float64, b *Batch) error {
	return n.Net.Forward(ctx, dst, x, n.batch(b))
}

func (n ditNet) Forward32(ctx context.Context, dst, x []float32, b *Batch) error {
	return n.Net.Forward32(ctx, dst, x, n.batch(b))
}

func (ditNet) batch(b *Batch) *dit.Batch {
	out := &dit.Batch{H: b.H, W: b.W, T: b.T, Class: b.Class, IdentityAttention: b.IdentityAttention, SkipLayers: b.SkipLayers, Save: b.Save}
	if b.Trace != nil {
		out.Trace = func(l dit.Layer) {
			b.Trace(Layer{Name: l.Name, Kind: l.Kind, N: l.N, H: l.Tokens, W: 1, C: l.C, MACs: l.MACs, Duration: l.Duration})
		}
	}
	return out
}
