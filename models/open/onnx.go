package open

import (
	"context"
	"errors"
	"fmt"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/models/ort"
	"drift/schedules"
)

// library loads ONNX Runtime.
func (o Options) library() (*ort.Library, error) {
	if o.ORT == nil {
		return ort.Load(ort.Places{})
	}
	return o.ORT()
}

// onnx opens a single ONNX file with the sidecar that says what its inputs mean.
func onnx(ctx context.Context, name string, opt Options) (*Model, error) {
	if opt.Pipeline != (Pipeline{}) {
		return nil, &AskedError{name + " is one network: LoRAs, sizes, clip skip and the like are not for it"}
	}
	lib, err := opt.library()
	var missing *ort.MissingError
	if errors.As(err, &missing) { // what is wrong with the file and its sidecar comes first: it stays when the library is there
		if e := check(name); e != nil {
			return nil, e
		}
	}
	if err != nil {
		return nil, err
	}
	net, err := lib.OpenNet(ctx, name, nil, ort.Options{Threads: opt.Threads})
	if err != nil {
		return nil, err
	}
	d, err := net.Denoiser(name)
	if err != nil {
		net.Close()
		return nil, err
	}
	if opt.DType != "" && opt.DType != net.DType() {
		net.Close()
		return nil, &AskedError{fmt.Sprintf("%s computes in %s: the arithmetic of an ONNX file is in the file, not %s", name, net.DType(), opt.DType)}
	}
	s := net.Sidecar
	m := &Model{Denoiser: models.Metered(d.Denoised()), Info: d.About, Notes: net.Notes, close: net.Close,
		Defaults: Defaults{Sampler: s.Sampler, Schedule: s.Schedule, Steps: orInt(s.Steps, 20), CFGScale: 1}}
	m.Defaults.Sampler = orText(s.Sampler, "dpmpp-2m")
	m.Defaults.Schedule = orText(s.Schedule, schedules.DefaultGrid(s.Process))
	if scale := net.Scale(); scale != nil {
		d.About.Picture = d.About.Shape
		m.Codec, m.Info, m.Denoiser = scale, d.About, models.Metered(scaled{d, scale})
		if v, ok := d.Denoised().(models.VJP); ok {
			m.Denoiser = models.Metered(scaledVJP{scaled{d, scale}, v})
		}
	}
	return m, nil
}

// scaled is a network whose data has another range than pictures (models.Decoder).
type scaled struct {
	*ort.Denoiser
	scale *ort.Scale
}

// scaledVJP is scaled with the gradient of the network.
type scaledVJP struct {
	scaled
	models.VJP
}

// DecodeLate implements models.Decoder.
func (s scaled) DecodeLate(ctx context.Context, z *tensor.Dense, cotangent func(x *tensor.Dense) (*tensor.Dense, error), grad *tensor.Dense) error {
	x, err := s.scale.Decode(ctx, z)
	if err != nil {
		return err
	}
	c, err := cotangent(x)
	if err != nil {
		return err
	}
	for i, v := range models.Data(c) {
		models.Data(grad)[i] = 2 / (s.scale.Hi - s.scale.Lo) * v
	}
	return nil
}

// check looks at a file and its sidecar without the library.
func check(name string) error {
	f, err := ort.ReadFile(name)
	if err != nil {
		return err
	}
	hash, err := f.Hash()
	if err != nil {
		return err
	}
	_, err = ort.FindSidecar(f, hash)
	return err
}
