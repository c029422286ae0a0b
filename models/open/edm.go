package open

import (
	"fmt"

	"drift/internal/kernels"
	"drift/models"
	"drift/models/diffusers"
	"drift/models/native"
	"drift/schedules"
)

// edmOf is what is said of a network of EDM, nil of another one.
func edmOf(cfg diffusers.Config) *diffusers.EDMConfig {
	switch c := cfg.(type) {
	case *diffusers.SongUNetConfig:
		return &c.EDMConfig
	case *diffusers.DhariwalUNetConfig:
		return &c.EDMConfig
	}
	return nil
}

// openEDM opens a network that is preconditioned as EDM's programs do it, in the process alpha = 1, sigma = t. Its
// defaults are those of EDM: Heun's method from sigma 80 (100 for ve) on 18 levels.
func (p *parts) openEDM(c *diffusers.EDMConfig, opt Options) (*Model, error) {
	if rest := opt.Pipeline; true {
		if rest.Config = ""; rest != (Pipeline{}) {
			return nil, &AskedError{p.name + " has one size and no text: sizes, LoRAs, clip skip and the like are not for it"}
		}
	}
	dtype, ok := map[string]kernels.DType{"": kernels.F32, "f32": kernels.F32, "bf16": kernels.BF16}[opt.DType]
	if !ok {
		return nil, fmt.Errorf("models: a network computes in f32 or bf16, not %s", opt.DType)
	}
	pool, err := newPool(opt)
	if err != nil {
		return nil, err
	}
	net, err := native.New(p.config, p.weights, native.Options{Pool: pool, DType: dtype})
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("models: %s: %w", p.name, err)
	}
	hash, err := p.identity(nil)
	if err != nil {
		net.Close()
		pool.Close()
		return nil, err
	}
	of := map[string]schedules.Precondition{
		"edm": schedules.PreconditionEDM(c.SigmaData), "vp": schedules.PreconditionEps(schedules.VPLinear{}, 999), "ve": schedules.PreconditionVE(),
	}[c.Precond]
	in, _ := net.Channels()
	h, w := net.SampleSize()
	about := models.Info{Name: p.name, Hash: hash, Shape: []int{in, h, w}, Classes: c.LabelDim, Labels: p.labels.Labels,
		DType: map[kernels.DType]string{kernels.F32: "f32", kernels.BF16: "bf16"}[dtype], Tier: pool.Tier().String(), Params: int64(net.Parameters())}
	u := &native.Preconditioned{Net: net, Proc: schedules.EDM{SigmaMin: c.SigmaMin, SigmaMax: c.SigmaMax}, Of: of, NullClass: net.NoClass(), Conditional: c.LabelDim > 0, About: about}
	return &Model{Denoiser: models.Metered(u), Info: about, Net: net, Notes: p.notes,
		Defaults: Defaults{Sampler: "heun", Schedule: "edm", Steps: 18, CFGScale: 1},
		close: func() {
			net.Close()
			pool.Close()
			if p.done != nil {
				_ = p.done() // files that were only read
			}
		},
	}, nil
}
