package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"image"
	_ "image/jpeg" // for --init-image
	_ "image/png"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/internal/npz"
	"drift/internal/pixels"
	"drift/internal/refuse"
	"drift/models"
	"drift/samplers"
)

// resolveStart finds where the run starts and ends, and from what.
func (s *sampling) resolveStart(_ context.Context, base *manifest.Run) error {
	n := len(s.plan.Grid) - 1
	own := s.plan.Sampler.Needs().OwnGrid
	first, last := s.c.Int("start-step"), s.c.Int("end-step")
	initFile, initImage, strength := s.c.String("init"), s.c.String("init-image"), defaultStrength
	if base != nil {
		if !s.c.IsSet("start-step") && !s.c.IsSet("strength") {
			first = min(base.First, n-1)
		}
		if !s.c.IsSet("end-step") {
			last = base.Last
		}
		if initFile == "" && initImage == "" {
			initFile, initImage = base.Init, base.InitImage
			if base.Strength > 0 {
				strength = base.Strength
			}
		}
	}
	if s.c.IsSet("strength") {
		if initImage == "" {
			return usagef("--strength needs --init-image")
		}
		strength = s.c.Float64("strength")
		if !(strength > 0 && strength <= 1) {
			return usagef("--strength %g: want more than 0, at most 1", strength)
		}
	}
	if initImage != "" && !s.c.IsSet("start-step") {
		if own {
			return usagef("--strength: %s places its own steps: name a start by --sigma-max or --t-start and use --start-step 0", s.desc.Sampler)
		}
		first = job.StartAt(n, strength)
		if first >= n {
			return usagef("--strength %g leaves no step of %d", strength, n)
		}
		s.desc.Strength = strength
	}
	if s.c.IsSet("start-step") && (first < 0 || first >= n) {
		return usagef("--start-step %d: want 0 to %d", first, n-1)
	}
	if s.c.IsSet("end-step") && (last <= first || last > n) {
		return usagef("--end-step %d: want %d to %d", last, first+1, n)
	}
	if last == n {
		last = 0
	}
	s.plan.First, s.plan.Last = first, last
	s.desc.First, s.desc.Last = first, last
	if initFile != "" {
		if err := s.readInit(initFile); err != nil {
			return err
		}
	}
	if initImage != "" {
		if err := s.readImage(initImage); err != nil {
			return err
		}
	}
	return nil
}

// hashFile is the SHA-256 of a file, hex.
func hashFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (s *sampling) readInit(name string) error {
	arrays, err := npz.ReadAll(name, "x")
	if err != nil {
		return err
	}
	x := arrays["x"]
	d, err := x.Float64()
	if err != nil {
		return refuse.Errorf(name, "%v", err)
	}
	if len(x.Shape) != len(s.info.Shape)+1 || !slices.Equal(x.Shape[1:], s.info.Shape) {
		return refuse.Errorf(name, "x has shape %v, the model wants rows of shape %v", x.Shape, s.info.Shape)
	}
	if have, want := x.Shape[0], s.plan.Offset+len(s.seeds); have < want {
		return usagef("--init %s has %d rows for %d images", name, have, want)
	}
	for i, v := range d {
		if v-v != 0 {
			return refuse.Errorf(name, "x is not finite at element %d", i)
		}
	}
	s.plan.Start = models.Wrap(d, x.Shape...)
	s.desc.Init = name
	s.desc.InitID, err = hashFile(name)
	return err
}

func (s *sampling) readImage(name string) error {
	if !pixels.Picture(s.info.Image()) {
		return usagef("--init-image: the model gives arrays of shape %v, not pictures", s.info.Shape)
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	cfg, _, err := image.DecodeConfig(bufio.NewReader(f))
	if err != nil {
		return refuse.Errorf(name, "not a picture that can be read: %v", err)
	}
	if cfg.Width > 1<<14 || cfg.Height > 1<<14 {
		return refuse.Errorf(name, "%dx%d pixels are more than are read", cfg.Width, cfg.Height)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	m, _, err := image.Decode(bufio.NewReader(f))
	if err != nil {
		return refuse.Errorf(name, "not a picture that can be read: %v", err)
	}
	shape := s.info.Image()
	x, resized := pixels.Array(m, shape)
	if resized {
		s.say("drift: %s is resized to %dx%d", name, shape[2], shape[1])
	}
	if s.plan.Codec != nil {
		z, err := s.plan.Codec.Encode(s.c.Context, models.Wrap(x, append([]int{1}, shape...)...))
		if err != nil {
			return refuse.Errorf(name, "encoding: %v", err)
		}
		x = models.Data(z)
	}
	s.plan.Image, s.desc.InitImage = x, name
	s.desc.InitID, err = hashFile(name)
	return err
}

func (s *sampling) resolveNoise(_ context.Context, base *manifest.Run) error {
	name := s.text("noise", base, func(r *manifest.Run) string { return r.Noise }, "")
	switch name {
	case "", "philox":
		return nil
	case "torch":
		s.plan.NewNoise = func() samplers.Noise { return &samplers.Torch{} }
	case "brownian":
		s.plan.NewNoise = func() samplers.Noise { return samplers.Streams{Brownian: true} }
	case "zero":
		s.plan.NewNoise = func() samplers.Noise { return job.StepsZero{} }
	default:
		if !strings.EqualFold(filepath.Ext(name), ".npz") {
			return usagef("--noise %s: want zero, torch, philox, brownian or a .npz file", name)
		}
		arrays, err := npz.ReadAll(name, "noise")
		if err != nil {
			return err
		}
		d, err := arrays["noise"].Float64()
		if err != nil {
			return refuse.Errorf(name, "%v", err)
		}
		shape := arrays["noise"].Shape
		n := len(s.plan.Grid) - 1
		if s.plan.Sampler.Needs().OwnGrid && len(shape) > 0 {
			n = shape[0]
		}
		dim := 1
		for _, k := range s.info.Shape {
			dim *= k
		}
		if len(shape) < 2 || slices.Min(shape) < 1 {
			return refuse.Errorf(name, "noise has shape %v, want (steps, batch, ...)", shape)
		}
		rec, err := samplers.NewRecorded(models.Wrap(d, shape...), n)
		if err != nil {
			return refuse.Errorf(name, "%s", trimPackage(err.Error()))
		}
		if !rec.Fits(s.plan.Offset+len(s.seeds), dim) {
			return refuse.Errorf(name, "noise of shape %v does not fit %d images of shape %v", shape, s.plan.Offset+len(s.seeds), s.info.Shape)
		}
		s.plan.NewNoise = func() samplers.Noise { return rec }
		if s.desc.NoiseID, err = hashFile(name); err != nil {
			return err
		}
	}
	s.desc.Noise = name
	return nil
}
