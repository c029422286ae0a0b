package main

import (
	"context"
	"fmt"
	"image/png"
	"io"
	"slices"
	"strings"

	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/output"
	"drift/internal/pixels"
	"drift/internal/spec"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// resolveSwitch reads --switch MODEL:k=K,steps=N,sampler=S,schedule=G,guider=X: another model for the first steps.
func (s *sampling) resolveSwitch(ctx context.Context, base *manifest.Run) error {
	text := s.text("switch", base, func(r *manifest.Run) string {
		if r.Switch == nil {
			return ""
		}
		return r.Switch.Text
	}, "")
	if text == "" {
		return nil
	}
	fail := func(format string, a ...any) error {
		return badUse("switch", fmt.Errorf(text+": "+format, a...))
	}
	sp, err := spec.Parse(text)
	if err != nil {
		return badUse("switch", err)
	}
	o := sp.Options()
	k, steps := o.Int("k", 1, 0, len(s.plan.Grid)-2), o.Int("steps", 0, 0, mostSteps)
	name, schedule, guider := o.Text("sampler", ""), o.Text("schedule", ""), o.Text("guider", "")
	if err := o.Err(); err != nil {
		return badUse("switch", err)
	}
	m, err := s.openModel(ctx, sp.Name, s.c.String("dtype"), s.c.String("tier"))
	if err != nil {
		return err
	}
	s.third = m
	if !slices.Equal(m.Info.Shape, s.info.Shape) {
		return fail("gives arrays of shape %v, the model of shape %v", m.Info.Shape, s.info.Shape)
	}
	sw := samplers.Switch{Main: s.plan.Sampler, K: k}
	if name != "" {
		if sw.First, err = samplers.Parse(name); err != nil {
			return badUse("switch", err)
		}
	}
	if steps == 0 && schedule != "" {
		return fail("schedule needs steps")
	}
	if steps > 0 {
		p, ok := m.Denoiser.Process().(schedules.Gaussian)
		if !ok {
			return fail("the process %s is not Gaussian", m.Denoiser.Process().Name())
		}
		if schedule == "" && m.Defaults.Grid != nil {
			sw.Grid, err = m.Defaults.Grid(steps)
		} else {
			if schedule == "" {
				schedule = schedules.DefaultGrid(p)
			}
			sw.Grid, err = schedules.NewGrid(p, schedule, steps, schedules.Ends{})
		}
		if err != nil {
			return badUse("switch", err)
		}
	}
	var guiders []string
	if guider != "" {
		guiders = append(guiders, guider)
	}
	if _, err := guide(m.Denoiser, nil, guiders, nil, nil); err != nil {
		return badUse("switch", err)
	}
	if k == 0 {
		return nil
	}
	s.plan.Sampler = switching{sw, func() (models.Denoiser, error) { return guide(m.Denoiser, nil, guiders, sw.Grid, nil) }}
	i := m.Info
	s.desc.Switch = &manifest.Switch{Text: text, Model: manifest.Model{Path: sp.Name, Hash: i.Hash, DType: i.DType, Tier: i.Tier, Runtime: i.Runtime, Shape: i.Shape}}
	return nil
}

// switching is a Switch whose base has guiders with memory: they are put around it anew for every batch.
type switching struct {
	samplers.Switch
	base func() (models.Denoiser, error)
}

// Begin implements samplers.Sampler.
func (s switching) Begin(ctx context.Context, p *samplers.Problem) (samplers.Run, error) {
	var err error
	if s.Base, err = s.base(); err != nil {
		return nil, err
	}
	return s.Switch.Begin(ctx, p)
}

// decided draws what each step already decides: the data predicted at every step, one row per image, the sample at the end
// (the DT visualisation of Gandikota and Bau 2025, arXiv 2503.10637). It costs no evaluation.
type decided struct {
	s     *sampling
	path  string
	rows  [][][]byte // per image: pictures by step
	final [][]byte
	x0    *tensor.Dense
}

// most images of a picture of decided.
const mostDecided = 12

func newDecided(s *sampling) (*decided, error) {
	path := s.c.String("dt")
	if output.Kind(path) != "png" {
		return nil, usagef("--dt %s: want a name that ends in .png", path)
	}
	if !pixels.Picture(s.info.Shape) {
		return nil, usagef("--dt: the model gives arrays of shape %v, not pictures", s.info.Shape)
	}
	return &decided{s: s, path: path}, output.Check(path)
}

func (d *decided) whole() bool { return true }

func (d *decided) picture(x []float64, k int) []byte {
	shape := d.s.info.Shape
	w := shape[0] * shape[1] * shape[2]
	p := make([]byte, w)
	pixels.Bytes(p, x[k*w:(k+1)*w], shape, pixels.Rounding(d.s.desc.Rounding))
	return p
}

func (d *decided) step(b job.Batch, st *samplers.State) error {
	if st.Pred == nil || b.Index >= mostDecided {
		return nil
	}
	x0, err := st.X0(d.x0)
	if err != nil {
		return fmt.Errorf("--dt: step %d: %w", st.I-1, err)
	}
	d.x0 = x0
	for k := range b.Items {
		i := b.Index + k
		if i >= mostDecided {
			break
		}
		if i == len(d.rows) {
			d.rows = append(d.rows, nil)
		}
		if len(d.rows[i]) < st.I {
			d.rows[i] = append(d.rows[i], d.picture(models.Data(x0), k))
		}
	}
	return nil
}

func (d *decided) done(b job.Batch, x []float64, _ samplers.Stats) error {
	for k := range b.Items {
		if b.Index+k < mostDecided {
			d.final = append(d.final, d.picture(x, k))
		}
	}
	return nil
}

func (d *decided) close(ok bool) error {
	if !ok || len(d.rows) == 0 {
		return nil
	}
	cols := len(d.rows[0])
	for _, r := range d.rows {
		cols = min(cols, len(r))
	}
	const most = 16 // columns; of more steps an even choice
	var at []int
	for j := range min(cols, most) {
		at = append(at, j*(cols-1)/max(1, min(cols, most)-1))
	}
	var all [][]byte
	for i, r := range d.rows {
		for _, j := range at {
			all = append(all, r[j])
		}
		all = append(all, d.final[i])
	}
	sheet := pixels.Sheet(all, d.s.info.Shape, len(at)+1, len(d.rows))
	if err := output.Write(d.path, func(w io.Writer) error { return png.Encode(w, sheet) }); err != nil {
		return err
	}
	var names []string
	for _, j := range at {
		names = append(names, fmt.Sprint(j))
	}
	d.s.say("drift: the data predicted at steps %s, and the samples: %s", strings.Join(names, " "), d.path)
	d.s.stored([]string{d.path})
	return nil
}
