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
	"strconv"
	"strings"

	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/internal/npz"
	"drift/internal/pixels"
	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/models"
	"drift/samplers"
)

// resolveStart finds where the run starts and ends, and from what.
func (s *sampling) resolveStart(_ context.Context, base *manifest.Run) error {
	n := len(s.plan.Grid) - 1
	own := s.plan.Sampler.Needs().OwnGrid
	first, last := s.c.Int("start-step"), s.c.Int("end-step")
	initFile, initImage, mask, strength := s.c.String("init"), s.c.String("init-image"), s.c.String("mask"), defaultStrength
	if base != nil {
		if !s.c.IsSet("start-step") && !s.c.IsSet("strength") {
			first = min(base.First, n-1)
		}
		if !s.c.IsSet("end-step") {
			last = base.Last
		}
		if initFile == "" && initImage == "" {
			initFile, initImage = base.Init, base.InitImage
			if mask == "" {
				mask = base.Mask
			}
			if base.Strength > 0 {
				strength = base.Strength
			}
		}
	}
	switch {
	case mask != "" && initImage == "":
		return usagef("--mask needs --init-image, the picture to paint into")
	case mask == "" && s.model.Paint != nil && !s.c.Bool("print-schedule"):
		return usagef("%s paints into a picture: it needs --init-image and --mask", s.desc.Model.Path)
	case mask != "" && own:
		return usagef("--mask: %s places its own steps: use another sampler", s.desc.Sampler)
	case mask != "" && (base == nil || base.Strength == 0):
		strength = 1
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
		first = job.StartAt(n, strength, s.model.Defaults.PartStep)
		if first >= n {
			return usagef("--strength %g leaves no step of %d", strength, n)
		}
		s.desc.Strength = strength
		part := s.model.Defaults.Part
		switch {
		case part == nil || s.desc.Schedule != modelSchedule:
		case base != nil && !s.c.IsSet("strength") && slices.Equal(base.Grid.T, s.desc.Grid.T): // it is that part already
			first = base.First
		default:
			g, err := part(n, strength)
			if err != nil {
				return usagef("--strength %g: %s", strength, trimPackage(err.Error()))
			}
			s.plan.Grid, s.desc.Grid, first = g, manifest.NewGrid(g), 0
		}
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
	s.plan.Space = job.Space(s.model, s.desc.Sampler, s.desc.Schedule)
	s.plan.First, s.plan.Last = first, last
	s.desc.First, s.desc.Last = first, last
	if initFile != "" {
		if err := s.readInit(initFile); err != nil {
			return err
		}
	}
	if initImage != "" {
		if err := s.readImage(initImage, mask); err != nil {
			return err
		}
		s.plan.Image.Pure = mask != "" && s.desc.Strength == 1
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

// readPicture reads a picture from a file.
func readPicture(name string) (image.Image, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cfg, _, err := image.DecodeConfig(bufio.NewReader(f))
	if err != nil {
		return nil, refuse.Errorf(name, "not a picture that can be read: %v", err)
	}
	if cfg.Width > 1<<14 || cfg.Height > 1<<14 {
		return nil, refuse.Errorf(name, "%dx%d pixels are more than are read", cfg.Width, cfg.Height)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	m, _, err := image.Decode(bufio.NewReader(f))
	if err != nil {
		return nil, refuse.Errorf(name, "not a picture that can be read: %v", err)
	}
	return m, nil
}

// readImage reads the picture to start from, and the mask of what is drawn if there is one.
func (s *sampling) readImage(name, mask string) error {
	if !pixels.Picture(s.info.Image()) {
		return usagef("--init-image: the model gives arrays of shape %v, not pictures", s.info.Shape)
	}
	m, err := readPicture(name)
	if err != nil {
		return err
	}
	shape := s.info.Image()
	x, resized := pixels.Array(m, shape)
	if resized {
		s.say("drift: %s is resized to %dx%d", name, shape[2], shape[1])
	}
	im := &job.Image{Paint: s.model.Paint}
	if im.Mean, im.Std, err = s.latents(name, x); err != nil {
		return err
	}
	s.plan.Image, s.desc.InitImage = im, name
	if s.desc.InitID, err = hashFile(name); err != nil || mask == "" {
		return err
	}
	k, err := readPicture(mask)
	if err != nil {
		return err
	}
	if a, b := m.Bounds(), k.Bounds(); a.Dx()*b.Dy() != a.Dy()*b.Dx() {
		return usagef("--mask %s has %dx%d pixels, --init-image %dx%d: give a mask of the picture's proportions", mask, b.Dx(), b.Dy(), a.Dx(), a.Dy())
	}
	on := pixels.Mask(k, shape[1], shape[2])
	f := shape[1] / s.info.Shape[1]
	for y := range s.info.Shape[1] {
		for x := range s.info.Shape[2] { // the nearest pixel of a latent's square is its first
			im.Mask = append(im.Mask, on[y*f*shape[2]+x*f])
		}
	}
	if s.plan.Codec != nil {
		for i := range x {
			x[i] *= 1 - on[i%len(on)]
		}
		if im.Masked, im.MaskedStd, err = s.latents(name, x); err != nil {
			return err
		}
	}
	s.desc.Mask = mask
	s.desc.MaskID, err = hashFile(mask)
	return err
}

// latents is the state that the model makes of a picture, and the standard deviation of it where an autoencoder gives one.
func (s *sampling) latents(name string, x []float64) (mean, std []float64, err error) {
	if s.plan.Codec == nil {
		return x, nil, nil
	}
	t := models.Wrap(slices.Clone(x), append([]int{1}, s.info.Image()...)...)
	if c, ok := s.plan.Codec.(interface {
		Posterior(context.Context, *tensor.Dense) (mean, std *tensor.Dense, err error)
	}); ok {
		z, spread, err := c.Posterior(s.c.Context, t)
		if err != nil {
			return nil, nil, refuse.Errorf(name, "encoding: %v", err)
		}
		if spread != nil {
			std = models.Data(spread)
		}
		return models.Data(z), std, nil
	}
	z, err := s.plan.Codec.Encode(s.c.Context, t)
	if err != nil {
		return nil, nil, refuse.Errorf(name, "encoding: %v", err)
	}
	return models.Data(z), nil, nil
}

// resolveRNG finds the generator of the start: nil is torch's on the CPU.
func (s *sampling) resolveRNG(base *manifest.Run) (*samplers.Torch, error) {
	text := s.text("rng", base, func(r *manifest.Run) string { return r.RNG }, "")
	sp, err := spec.Parse(text)
	if text == "" || err == nil && sp.Name == "torch" && len(sp.Args) == 0 {
		return nil, nil
	}
	if err != nil || sp.Name != "torch-cuda" {
		return nil, usagef("--rng %s: want torch or torch-cuda", text)
	}
	g := &samplers.Torch{CUDA: true}
	for _, a := range sp.Args {
		if g.Threads, err = strconv.Atoi(a.Value); a.Key != "threads" || err != nil || g.Threads < 1 {
			return nil, usagef("--rng %s: want torch-cuda or torch-cuda:threads=N", text)
		}
	}
	s.desc.RNG = sp.String()
	return g, nil
}

func (s *sampling) resolveNoise(_ context.Context, base *manifest.Run) error {
	cuda, err := s.resolveRNG(base)
	if err != nil {
		return err
	}
	// steps is noise whose start is that of --rng
	steps := func(n samplers.Noise) func() samplers.Noise {
		if cuda == nil {
			return func() samplers.Noise { return n }
		}
		return func() samplers.Noise {
			return samplers.Start{Start: &samplers.Torch{CUDA: true, Threads: cuda.Threads}, Steps: n}
		}
	}
	name := s.text("noise", base, func(r *manifest.Run) string { return r.Noise }, "")
	switch name {
	case "", "philox":
		s.plan.NewNoise = steps(samplers.Streams{})
		return nil
	case "torch":
		s.plan.NewNoise = func() samplers.Noise {
			if cuda != nil {
				return &samplers.Torch{CUDA: true, Threads: cuda.Threads}
			}
			return &samplers.Torch{}
		}
		if s.plan.Image != nil {
			s.plan.Image.Sample = true
		}
	case "brownian":
		s.plan.NewNoise = steps(samplers.Streams{Brownian: true})
	case "zero":
		s.plan.NewNoise = steps(job.StepsZero{})
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
		s.plan.NewNoise = steps(rec)
		if s.desc.NoiseID, err = hashFile(name); err != nil {
			return err
		}
	}
	s.desc.Noise = name
	return nil
}
