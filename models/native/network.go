package native

import (
	"context"
	"errors"
	"fmt"
	"time"

	"drift/internal/graph"
	"drift/internal/kernels"
	"drift/models"
	"drift/models/diffusers"
	"drift/models/dit"
	"drift/models/edm"
	"drift/models/engine"
	"drift/models/mmdit"
	"drift/models/pixart"
	"drift/models/unet2d"
	"drift/models/unetcond"
)

// Network is a network of the engine, whatever its class. Images are (N, C, H, W).
type Network interface {
	Channels() (in, out int)
	SampleSize() (h, w int) // of the images that it was made for, 0 where its configuration does not say
	Classes() int           // labels that it takes, the one of NoClass included; 0 = none
	NoClass() int           // the label of "no class", models.NoClass where the class has none by itself
	Parameters() int
	MACs(h, w int) (int, error) // multiply-adds of a Forward of one image
	// Example makes up the inputs besides images, times and labels that n images need; nil for none.
	Example(n int) map[string]engine.Array
	Memory() Memory // what is held now
	// Need is what a Forward of so many images of h by w holds, with the usual inputs. It runs nothing.
	Need(h, w, images int) (Memory, error)
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
	// Inputs are what else the network takes, by the reference's argument names (see Network.Example).
	Inputs map[string]engine.Array

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
	Weights     int // as packed
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
	case *diffusers.UNet2DConfig, *diffusers.DiTConfig, *diffusers.UNet2DConditionConfig, *diffusers.SD3Config, *diffusers.FluxConfig,
		*diffusers.PixArtConfig, *diffusers.SanaConfig, *diffusers.SongUNetConfig, *diffusers.DhariwalUNetConfig, *diffusers.ADMConfig:
		return nil
	}
	return fmt.Errorf("a %s, which this engine does not run as a denoiser; it runs UNet2DModel, UNet2DConditionModel, DiT, SD3, Flux, PixArt and Sana transformers, SongUNet, DhariwalUNet and ADMUNet", cfg.ClassName())
}

// New makes the network of a configuration. Without weights they are made up from the tensors' names, at full size.
func New(cfg diffusers.Config, w diffusers.Weights, opt Options) (Network, error) {
	if err := Runs(cfg); err != nil {
		return nil, fmt.Errorf("native: %w", err)
	}
	if w == nil {
		f, err := diffusers.NewFormula(cfg)
		if err != nil {
			return nil, err
		}
		w = f
	}
	eo := engine.Options{Pool: opt.Pool, DType: opt.DType}
	switch c := cfg.(type) {
	case *diffusers.UNet2DConfig:
		return wrap(unet2d.New(*c, w, unet2d.Options{Pool: opt.Pool, DType: opt.DType}))(func(n *unet2d.Net) Network { return unet2dNet{n} })
	case *diffusers.DiTConfig:
		return wrap(dit.New(*c, w, dit.Options{Pool: opt.Pool, DType: opt.DType}))(func(n *dit.Net) Network { return ditNet{n} })
	case *diffusers.UNet2DConditionConfig:
		classes := 0
		if c.ClassEmbedType == "" || c.ClassEmbedType == "timestep" {
			classes = c.NumClassEmbeds
		}
		return wrap(unetcond.New(c, w, eo))(func(n *engine.Net) Network { return engineNet{n, classes, models.NoClass} })
	case *diffusers.SongUNetConfig, *diffusers.DhariwalUNetConfig, *diffusers.ADMConfig:
		classes, none := edm.Labels(cfg)
		if none < 0 {
			none = models.NoClass
		}
		return wrap(edm.New(cfg, w, eo))(func(n *engine.Net) Network { return engineNet{n, classes, none} })
	case *diffusers.SD3Config:
		return wrap(mmdit.NewSD3(c, w, eo))(newEngineNet)
	case *diffusers.FluxConfig:
		return wrap(mmdit.NewFlux(c, w, eo))(newEngineNet)
	case *diffusers.PixArtConfig:
		return wrap(pixart.NewPixArt(c, w, eo))(newEngineNet)
	default:
		return wrap(pixart.NewSana(c.(*diffusers.SanaConfig), w, eo))(newEngineNet)
	}
}

// wrap makes a Network of a net unless there was an error.
func wrap[N any](n N, err error) func(func(N) Network) (Network, error) {
	return func(f func(N) Network) (Network, error) {
		if err != nil {
			return nil, err
		}
		return f(n), nil
	}
}

// BadInput tells whether a Forward failed because its arguments do not fit the network, and why they do not.
func BadInput(err error) (reason string, ok bool) {
	var u *unet2d.InputError
	var d *dit.InputError
	var e *engine.InputError
	switch {
	case errors.As(err, &e):
		return e.Reason, true
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

func (n unet2dNet) Need(h, w, images int) (Memory, error) {
	m, err := n.Net.Need(h, w, images)
	return Memory(m), err
}

func (n unet2dNet) Forward(ctx context.Context, dst, x []float64, b *Batch) error {
	return n.Net.Forward(ctx, dst, x, n.batch(b))
}

func (n unet2dNet) Forward32(ctx context.Context, dst, x []float32, b *Batch) error {
	return n.Net.Forward32(ctx, dst, x, n.batch(b))
}

func (unet2dNet) Example(int) map[string]engine.Array { return nil }

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

func (n ditNet) Need(h, w, images int) (Memory, error) {
	m, err := n.Net.Need(h, w, images)
	return Memory(m), err
}

func (n ditNet) Forward(ctx context.Context, dst, x []float64, b *Batch) error {
	return n.Net.Forward(ctx, dst, x, n.batch(b))
}

func (n ditNet) Forward32(ctx context.Context, dst, x []float32, b *Batch) error {
	return n.Net.Forward32(ctx, dst, x, n.batch(b))
}

func (ditNet) Example(int) map[string]engine.Array { return nil }

func (ditNet) batch(b *Batch) *dit.Batch {
	out := &dit.Batch{H: b.H, W: b.W, T: b.T, Class: b.Class, IdentityAttention: b.IdentityAttention, SkipLayers: b.SkipLayers, Save: b.Save}
	if b.Trace != nil {
		out.Trace = func(l dit.Layer) {
			b.Trace(Layer{Name: l.Name, Kind: l.Kind, N: l.N, H: l.Tokens, W: 1, C: l.C, MACs: l.MACs, Duration: l.Duration})
		}
	}
	return out
}

// engineNet is a network that package engine runs.
type engineNet struct {
	*engine.Net
	classes, none int
}

func newEngineNet(n *engine.Net) Network { return engineNet{n, 0, models.NoClass} }

// Wrap makes a Network of one that package engine runs, such as the decoder of
// an autoencoder.
func Wrap(n *engine.Net) Network { return newEngineNet(n) }

func (n engineNet) SampleSize() (h, w int) {
	h, w, _ = n.Usual()
	return h, w
}

func (n engineNet) Classes() int { return n.classes }

func (n engineNet) NoClass() int { return n.none }

func (n engineNet) Memory() Memory {
	return Memory{Weights: n.Weights(), Activations: n.Activations()}
}

func (n engineNet) Need(h, w, images int) (Memory, error) {
	weights, activations, err := n.Net.Need(h, w, images)
	return Memory{Weights: weights, Activations: activations}, err
}

func (n engineNet) Example(images int) map[string]engine.Array { return n.Net.Example(images).Inputs }

func (n engineNet) Forward(ctx context.Context, dst, x []float64, b *Batch) error {
	return n.Net.Forward(ctx, dst, x, n.batch(b))
}

func (n engineNet) Forward32(ctx context.Context, dst, x []float32, b *Batch) error {
	return n.Net.Forward32(ctx, dst, x, n.batch(b))
}

func (engineNet) batch(b *Batch) *engine.Batch {
	out := &engine.Batch{H: b.H, W: b.W, T: b.T, Class: b.Class, Inputs: b.Inputs, IdentityAttention: b.IdentityAttention, SkipLayers: b.SkipLayers, Save: b.Save}
	if b.Trace != nil {
		out.Trace = func(l graph.Step) { b.Trace(Layer(l)) }
	}
	return out
}
