package main

import (
	"context"
	"os"
	"path/filepath"

	"drift/internal/kernels"
	"drift/internal/npz"
	"drift/internal/refuse"
	"drift/models/autoencoder"
	"drift/models/diffusers"
	"drift/models/engine"
	"drift/models/text"
)

// part is a network of a pipeline that is no denoiser.
type part interface {
	Run(ctx context.Context, file string, args map[string]*npz.Array) ([]npz.Array, error)
	Close()
}

// componentOf are the networks of a pipeline in one file, as --part names what they do.
var componentOf = map[string]string{"encode": "vae", "decode": "vae", "text": "text_encoder", "text_2": "text_encoder_2"}

// openPart opens an autoencoder or a text encoder; nil if name is something else.
func (a *app) openPart(name, dtype, tier, which string, opt diffusers.Options) (part, error) {
	known, err := inOneFile(name)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(name)
	if err != nil || !info.IsDir() && !known {
		return nil, nil
	}
	var cfg diffusers.Config
	var r *diffusers.Repository
	component := ""
	if known {
		if r, err = diffusers.OpenRepository(name, opt); err != nil {
			return nil, err
		}
		if component = r.Denoiser(); which != "" {
			if component = componentOf[which]; component == "" {
				return nil, usagef("--part %s: want encode, decode, text or text_2", which)
			}
		}
		cfg, _, err = r.Config(component)
	} else {
		cfg, err = diffusers.ReadConfig(filepath.Join(name, "config.json"))
	}
	if err != nil && known {
		return nil, err
	}
	if err != nil {
		return nil, nil // whatever it is, model run says what is wrong with it
	}
	switch cfg.(type) {
	case *diffusers.AutoencoderKLConfig, *diffusers.AutoencoderTinyConfig, *diffusers.VQConfig:
		if which != "encode" && which != "decode" {
			return nil, usagef("%s is an autoencoder: say --part encode or --part decode", name)
		}
	case *diffusers.CLIPTextConfig, *diffusers.T5Config:
		if which != "" && !known {
			return nil, usagef("--part is for autoencoders, %s is a text encoder", name)
		}
	default:
		return nil, nil
	}
	t, kind, err := tierAndType(dtype, tier)
	if err != nil {
		return nil, err
	}
	if r == nil {
		if r, err = diffusers.OpenRepository(name, diffusers.Options{}); err != nil {
			return nil, err
		}
	}
	m, err := r.Network(component)
	if err != nil {
		return nil, err
	}
	eo := engine.Options{Pool: kernels.NewPool(t, 0), DType: kind}
	switch cfg.(type) {
	case *diffusers.CLIPTextConfig, *diffusers.T5Config:
		e, err := text.New(m.Config, m.Weights, eo)
		if err != nil {
			return nil, refuse.Errorf(name, "%s", trimPackage(err.Error()))
		}
		return textPart{e}, nil
	}
	e, err := autoencoder.New(m.Config, m.Weights, eo)
	if err != nil {
		return nil, refuse.Errorf(name, "%s", trimPackage(err.Error()))
	}
	return codecPart{e, which}, nil
}

type codecPart struct {
	*autoencoder.Autoencoder
	which string
}

// Run implements part: sample to moments or latents, latent (or sample) to decoded. The result is out, too.
func (p codecPart) Run(ctx context.Context, file string, args map[string]*npz.Array) ([]npz.Array, error) {
	in, result, call := args["sample"], "latents", p.Encode
	if p.which == "decode" {
		if in = args["latent"]; in == nil {
			in = args["sample"]
		}
		result, call = "decoded", p.Decode
	} else if p.Moments() {
		result = "moments"
	}
	if in == nil || len(in.Shape) != 4 {
		return nil, refuse.Errorf(file, "wants an array sample (to encode) or latent (to decode) of shape (batch, channels, height, width)")
	}
	x, err := in.Float64()
	if err != nil {
		return nil, refuse.Errorf(file, "%v", err)
	}
	net := p.Encoder
	if p.which == "decode" {
		net = p.Decoder
	}
	channels, outs := net.Channels()
	s := in.Shape
	if s[1] != channels || s[0] < 1 {
		return nil, refuse.Errorf(file, "the array has shape %v, the network takes (batch, %d, height, width)", s, channels)
	}
	h, w, err := net.Output(s[2], s[3])
	if err != nil {
		return nil, refuse.Errorf(file, "%v", err)
	}
	shape := []int{s[0], outs, h, w}
	out := make([]float64, s[0]*outs*h*w)
	if err := call(ctx, out, x, s[0], s[2], s[3]); err != nil {
		return nil, err
	}
	v := single(out)
	return []npz.Array{{Name: "out", Shape: shape, Data: v}, {Name: result, Shape: shape, Data: v}}, nil
}

type textPart struct{ *text.Encoder }

// Run implements part: input_ids (and attention_mask) to last_hidden_state, which is out, too.
func (p textPart) Run(ctx context.Context, file string, args map[string]*npz.Array) ([]npz.Array, error) {
	ids, err := idRows(file, args, "input_ids")
	if err != nil {
		return nil, err
	}
	if ids == nil {
		return nil, refuse.Errorf(file, "wants an array input_ids of shape (batch, tokens)")
	}
	mask, err := idRows(file, args, "attention_mask")
	if err != nil {
		return nil, err
	}
	o, err := p.Encode(ctx, ids, mask)
	if err != nil {
		return nil, refuse.Errorf(file, "%s", trimPackage(err.Error()))
	}
	shape := []int{o.N, o.Tokens, o.Width}
	out := []npz.Array{{Name: "out", Shape: shape, Data: o.Last}, {Name: "last_hidden_state", Shape: shape, Data: o.Last}}
	if o.Pooled != nil {
		out = append(out, npz.Array{Name: "pooler_output", Shape: []int{o.N, o.Width}, Data: o.Pooled})
	}
	if o.Projected != nil {
		out = append(out, npz.Array{Name: "text_embeds", Shape: []int{o.N, len(o.Projected) / o.N}, Data: o.Projected})
	}
	return out, nil
}

func idRows(file string, args map[string]*npz.Array, name string) ([][]int, error) {
	a := args[name]
	if a == nil {
		return nil, nil
	}
	v, err := a.Int64()
	if err != nil || len(a.Shape) != 2 {
		return nil, refuse.Errorf(file, "%s has shape %v and type %s, wants whole numbers (batch, tokens)", name, a.Shape, a.DType)
	}
	rows := make([][]int, a.Shape[0])
	for i := range rows {
		for _, id := range v[i*a.Shape[1] : (i+1)*a.Shape[1]] {
			rows[i] = append(rows[i], int(id))
		}
	}
	return rows, nil
}
