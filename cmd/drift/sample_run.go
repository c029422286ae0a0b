package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/cmd/drift/internal/output"
	"drift/cmd/drift/internal/preview"
	"drift/internal/atomicfile"
	"drift/internal/pixels"
	"drift/internal/pngmeta"
	"drift/models"
	"drift/models/open"
	"drift/models/pipeline"
	"drift/samplers"
	"drift/schedules"
)

// ownKeyword is the keyword of drift's description in a PNG.
const ownKeyword = "drift"

// picture is the shape of the pictures that the run gives, nil for none: one of latents that ends early ends in latents.
func (s *sampling) picture() []int {
	if image := s.info.Image(); pixels.Picture(image) && (s.plan.Codec == nil || s.plan.Last == 0) {
		return image
	}
	return nil
}

// run makes the images and stores them.
func (s *sampling) run(ctx context.Context) error {
	if err := s.memory(); err != nil {
		return err
	}
	var work *sampleWork
	if s.wantsCrew(s.c) {
		var err error
		if work, err = s.work(); err != nil {
			return err
		}
	}
	hash := s.desc.Hash()
	o := output.Options{
		Path: s.path, Run: s.desc, Items: s.items, Shape: s.info.Shape, Rounding: pixels.Rounding(s.desc.Rounding),
		KeepX: s.c.Bool("float") || s.plan.Last != 0, Cols: s.cols, Rows: s.rows,
	}
	o.Picture = s.picture()
	if _, ok := s.model.Denoiser.Process().(schedules.Field); ok && s.plan.Last == 0 {
		o.Tokens, o.Letters, o.Labels = true, s.model.Letters, s.info.Labels
	}
	if !s.c.Bool("no-metadata") {
		o.Texts = func(it *job.Item) []pngmeta.Text { return s.texts(it, hash) }
	}
	var observers []observer
	if name := s.c.String("trajectory"); name != "" {
		if err := output.Check(name); err != nil {
			return err
		}
		if output.Kind(name) != "npz" {
			return usagef("--trajectory %s: want a name that ends in .npz", name)
		}
		observers = append(observers, newTrajectory(name))
	}
	if l, err := newStepLog(ctx, s); err != nil {
		return err
	} else if l != nil {
		observers = append(observers, l)
	}
	if s.c.IsSet("dt") {
		d, err := newDecided(s)
		if err != nil {
			return err
		}
		observers = append(observers, d)
	}
	if s.c.IsSet("preview") {
		p, err := s.newPreview()
		if err != nil {
			return err
		}
		if p != nil {
			observers = append(observers, p)
		}
	}
	whole := slices.ContainsFunc(observers, func(o observer) bool { return o.whole() })
	target, err := output.Open(o)
	var d *manifest.Different
	if errors.As(err, &d) {
		return &hint{err, "choose another --out, or remove " + d.Dir}
	}
	if err != nil {
		return err
	}
	missing := target.Missing()
	stored := len(s.items) - len(missing)
	if whole {
		missing, stored = s.items, 0
	}
	if s.json {
		s.emit(map[string]any{"event": "start", "hash": hash, "model": s.desc.Model.Path, "sampler": s.desc.Sampler, "schedule": s.desc.Schedule,
			"steps": s.steps(), "nfe": s.desc.NFE, "images": len(s.items), "stored": stored, "out": s.path})
	}
	if stored > 0 {
		s.say("drift: %d of %d images are there already", stored, len(s.items))
	}
	began := time.Now()
	bar := s.start("drift")
	var stats samplers.Stats
	if work != nil {
		stats, err = s.runShards(ctx, work, target, missing)
	} else {
		stats, err = s.plan.Run(ctx, s.stop, missing, s.batch(), s.hooks(target, observers, len(missing), stored, whole))
	}
	bar.Close()
	s.bar = nil
	if err == nil {
		err = s.finish(target)
	}
	for _, o := range observers {
		err = errors.Join(err, o.close(err == nil))
	}
	if err != nil {
		return s.stopped(err, target, whole)
	}
	s.summary(stats, len(missing), time.Since(began))
	return nil
}

// memory refuses a run that keeps more than the machine has.
func (s *sampling) memory() error {
	n, dim := float64(len(s.items)), 1.0
	for _, d := range s.info.Shape {
		dim *= float64(d)
	}
	if s.c.String("trajectory") != "" {
		steps := float64(s.steps())
		if err := enoughMemory(8*n*dim*(4*steps+2), "--trajectory"); err != nil { // x and x0, while they grow
			return &hint{err, "take fewer images or steps"}
		}
	}
	if output.Kind(s.path) == "folder" {
		return nil
	}
	return enoughMemory(n*(8*dim+100), "--out "+s.path)
}

// finish completes the output.
func (s *sampling) finish(target output.Target) error {
	files, err := target.Close()
	if err != nil {
		return err
	}
	s.stored(files)
	return nil
}

func (s *sampling) stored(files []string) {
	if s.json {
		for _, f := range files {
			s.emit(map[string]any{"event": "file", "path": f})
		}
	}
}

func (s *sampling) summary(stats samplers.Stats, made int, wall time.Duration) {
	if s.json {
		s.emit(map[string]any{"event": "done", "out": s.path, "images": len(s.items), "made": made, "steps": stats.Steps, "nfe": stats.NFE, "vjps": stats.VJPs,
			"seconds": wall.Seconds(), "model_seconds": stats.Model.Seconds(), "hash": s.desc.Hash()})
	}
	if made == 0 {
		s.say("drift: nothing to do, %s is complete", s.path)
		return
	}
	what := "images"
	if !pixels.Picture(s.info.Image()) {
		what = "samples"
	}
	nfe, steps := float64(s.desc.NFE), s.steps()
	if nfe == 0 { // the sampler decided on its way
		nfe, steps = math.Round(10*stats.NFE)/10, stats.Steps
	}
	if made == 1 {
		what = strings.TrimSuffix(what, "s")
	}
	s.say("drift: %d %s by %s, %d steps (%g evaluations each) in %v: %s", made, what, s.desc.Sampler, steps, nfe, wall.Round(time.Millisecond), s.path)
}

// stopped words an error of the run: what is kept, and how to go on.
func (s *sampling) stopped(err error, target output.Target, whole bool) error {
	if !s.unstored {
		if e := target.Keep(); e != nil {
			err = errors.Join(err, e)
		}
	}
	kept := len(s.items) - len(target.Missing())
	if whole && output.Kind(s.path) != "folder" {
		kept = 0
	}
	var n *samplers.NotFinite
	switch {
	case exitCode(err) == exitInterrupted:
		err = fmt.Errorf("%w: %d of %d images are finished and kept%s", job.ErrStopped, kept, len(s.items), s.saved)
		return &hint{err, "go on with: " + s.again()}
	case errors.As(err, &n):
		text := "try more steps, a lower guidance scale, or --dtype f32"
		if kept > 0 {
			text += fmt.Sprintf("; %d finished images are kept", kept)
		}
		return &hint{err, text}
	case kept > 0:
		return &hint{err, fmt.Sprintf("%d of %d images are finished and kept; go on with: %s", kept, len(s.items), s.again())}
	}
	return err
}

// again is the command line that goes on with this run.
func (s *sampling) again() string {
	words := []string{"drift"}
	resume, out := false, false
	for _, w := range s.args {
		resume = resume || w == "--resume"
		words = append(words, quote(w))
	}
	out = s.c.IsSet("out")
	if !out {
		words = append(words, "--out", quote(s.path))
	}
	if !resume {
		words = append(words, "--resume")
	}
	return strings.Join(words, " ")
}

// quote writes a word so that a shell reads it back.
func quote(w string) string {
	if w != "" && strings.IndexFunc(w, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=,+@%", r))
	}) < 0 {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}

// observer follows a run.
type observer interface {
	step(b job.Batch, st *samplers.State) error
	done(b job.Batch, x []float64, stats samplers.Stats) error
	// whole tells that it needs every step of every image: nothing that is stored may be left out.
	whole() bool
	// close ends it; ok tells that the run is complete.
	close(ok bool) error
}

func (s *sampling) hooks(target output.Target, observers []observer, todo, stored int, whole bool) job.Hooks {
	h := job.Hooks{
		Step: func(b job.Batch, st *samplers.State) error {
			done := (float64(b.Index) + st.Done*float64(len(b.Items))) / float64(todo)
			where := fmt.Sprintf("step %d", st.I)
			if st.N > 0 && !s.plan.Sampler.Needs().OwnGrid {
				where += fmt.Sprintf("/%d", st.N)
			}
			if todo > len(b.Items) {
				n := stored + b.Index
				if st.Done >= 1 {
					n += len(b.Items)
				}
				where += fmt.Sprintf(", %d/%d images", n, stored+todo)
			}
			s.bar.Set(done, where)
			if s.json {
				s.emit(map[string]any{"event": "step", "image": b.Index, "images": len(b.Items), "step": st.I, "steps": st.N, "t": finite(st.At.T), "sigma": finite(st.At.Sigma), "alpha": finite(st.At.Alpha), "nfe": b.NFE, "progress": done})
			}
			for _, o := range observers {
				if err := o.step(b, st); err != nil {
					return err
				}
			}
			return nil
		},
		Done: func(b job.Batch, x, pictures *tensor.Dense, stats samplers.Stats) error {
			files, err := target.Put(b.Items, models.Data(x), models.Data(pictures))
			s.stored(files)
			if err != nil {
				s.unstored = true
				return err
			}
			for _, o := range observers {
				if err := o.done(b, models.Data(pictures), stats); err != nil {
					return err
				}
			}
			return nil
		},
	}
	if _, torch := s.noise().(*samplers.Torch); !whole && !torch { // torch's generator cannot go on in the middle
		h.Save = func(b job.Batch, r samplers.Saver) error {
			if err := output.SaveState(target, s.desc, b.Items, r.Save); err != nil {
				return err
			}
			s.saved = fmt.Sprintf(", the batch of %d under way is saved", len(b.Items))
			return nil
		}
		h.Resume = func(b job.Batch) (io.ReadCloser, error) { return output.LoadState(target, b.Items) }
	}
	return h
}

func (s *sampling) noise() samplers.Noise {
	if s.plan.NewNoise == nil {
		return samplers.Streams{}
	}
	return s.plan.NewNoise()
}

// texts describes one picture, or the sheet of all (it nil), for other tools and for drift itself.
func (s *sampling) texts(it *job.Item, hash string) []pngmeta.Text {
	p := manifest.Picture{Run: s.desc, Of: hash, Seed: s.seeds[0]}
	set := s.desc.Sets[0]
	if it != nil {
		set = s.desc.Sets[it.Set]
		if k := set.Class(it.Place - s.plan.Offset); len(set.Classes) > 0 {
			set.Classes = []int{k}
		}
		p.Seed = it.Seed
		p.Run.Seeds, p.Run.Offset, p.Run.Sets = strconv.FormatUint(it.Seed, 10), it.Place, []manifest.Set{set}
		if s.desc.InitID == "" && s.desc.NoiseID == "" {
			p.Run.Offset = 0
		}
	}
	own, err := json.Marshal(p)
	if err != nil {
		panic("sample: " + err.Error()) // only numbers that are not finite fail, and grids are checked
	}
	return []pngmeta.Text{{Keyword: "parameters", Text: s.infotext(set, p.Seed)}, {Keyword: ownKeyword, Text: string(own)}}
}

// infotext is the line that A1111 and its kin read.
func (s *sampling) infotext(set manifest.Set, seed uint64) string {
	var b strings.Builder
	if set.Prompt != "" {
		b.WriteString(set.Prompt + "\n")
	}
	if set.Negative != "" {
		b.WriteString("Negative prompt: " + set.Negative + "\n")
	}
	sampler := s.desc.Sampler
	if s.desc.Schedule != "" {
		sampler += " " + s.desc.Schedule
	}
	fmt.Fprintf(&b, "Steps: %d, Sampler: %s, ", s.steps(), quoteText(sampler))
	for _, g := range s.desc.Guiders {
		if w, ok := strings.CutPrefix(g, "cfg:w="); ok {
			fmt.Fprintf(&b, "CFG scale: %s, ", quoteText(w))
		}
	}
	fmt.Fprintf(&b, "Seed: %d, ", seed)
	if len(set.Classes) == 1 {
		fmt.Fprintf(&b, "Class: %s, ", quoteText(s.className(set.Classes[0])))
	}
	if shape := s.info.Image(); pixels.Picture(shape) {
		fmt.Fprintf(&b, "Size: %dx%d, ", shape[2], shape[1])
	}
	kind := "CPU"
	if s.desc.RNG != "" {
		kind = "NV" // what tools call their imitation of a device
	}
	fmt.Fprintf(&b, "Model hash: %.10s, Model: %s, RNG: %s, NFE: %d, Version: drift %s", s.info.Hash, quoteText(s.desc.Model.Path), kind, s.desc.NFE, release)
	return b.String()
}

func (s *sampling) className(k int) string {
	if k >= 0 && k < len(s.info.Labels) {
		return s.info.Labels[k]
	}
	if k < 0 {
		return "none"
	}
	return strconv.Itoa(k)
}

// quoteText quotes a value that has a comma or a colon in it, as A1111 does.
func quoteText(v string) string {
	if strings.ContainsAny(v, ",:\n\"") {
		b, err := json.Marshal(v)
		if err == nil {
			return string(b)
		}
	}
	return v
}

// drawing is --preview: the predicted data of a batch's first pictures, in the terminal.
type drawing struct {
	s       *sampling
	mode    string
	every   int
	most    int // pictures
	x0      *tensor.Dense
	last    time.Time                                    // of an event
	show    func(z *tensor.Dense) (*tensor.Dense, error) // pictures of latents; nil: the states are pictures
	release func()
}

// asEvents is the mode of --preview that puts the pictures into events of --json, at most ten a second.
const asEvents = "json"

func (s *sampling) newPreview() (*drawing, error) {
	d := &drawing{s: s, mode: "auto", every: 1, most: 8}
	v := s.c.String("preview")
	mode, n, both := strings.Cut(v, ":")
	if k, err := strconv.Atoi(v); err == nil {
		d.every = k
	} else {
		d.mode = mode
		if both {
			if d.every, err = strconv.Atoi(n); err != nil {
				return nil, usagef("--preview %s: want MODE:N", v)
			}
		}
	}
	if d.mode == "none" || d.every == 0 {
		return nil, nil
	}
	if d.mode == "auto" {
		d.mode = preview.Detect(s.getenv)
	}
	if d.mode == asEvents && !s.json {
		return nil, usagef("--preview %s: the pictures are events of --json", v)
	}
	saves := strings.EqualFold(filepath.Ext(d.mode), ".png")
	if d.mode != asEvents && !saves && !slices.Contains(preview.Modes(), d.mode) || d.every < 0 {
		return nil, usagef("--preview %s: want a number of steps, or one of auto, none, %s, or a name that ends in .png", v, strings.Join(preview.Modes(), ", "))
	}
	if d.mode == asEvents {
		d.most = 16
	}
	if !pixels.Picture(s.info.Shape) && s.info.Picture == nil {
		return nil, usagef("--preview: the model gives arrays of shape %v, not pictures", s.info.Shape)
	}
	return d, s.previewLatents(d)
}

// previewLatents finds how latents are shown: by --preview-vae, by the published factors of the autoencoder's family, or
// by factors fitted to its decoder.
func (s *sampling) previewLatents(d *drawing) error {
	if s.info.Picture == nil {
		if s.c.IsSet("preview-vae") {
			return usagef("--preview-vae: %s makes pictures without an autoencoder", s.desc.Model.Path)
		}
		return nil
	}
	ctx := s.c.Context
	if name := s.c.String("preview-vae"); name != "" {
		c, release, err := open.Codec(name, open.Options{DType: s.c.String("dtype"), Tier: s.c.String("tier")})
		if err != nil {
			return err
		}
		if c.Latent() != s.info.Shape[0] {
			release()
			return usagef("--preview-vae %s has latents of %d channels, the model of %d", name, c.Latent(), s.info.Shape[0])
		}
		d.release = release
		d.show = func(z *tensor.Dense) (*tensor.Dense, error) { return c.Decode(ctx, z) }
		return nil
	}
	var linear *pipeline.Linear
	if c, ok := s.model.Codec.(*pipeline.Codec); ok {
		linear = pipeline.KnownLinear(c.Config)
	}
	if linear == nil {
		var err error
		if linear, err = pipeline.FitLinear(ctx, s.model.Codec, s.info.Shape[0]); err != nil {
			return err
		}
	}
	d.show = linear.Preview
	return nil
}

func (d *drawing) step(b job.Batch, st *samplers.State) error {
	if st.I == 0 || st.I%d.every != 0 && st.I != st.N || st.Pred == nil {
		return nil
	}
	if d.mode == asEvents && st.Done < 1 && time.Since(d.last) < 100*time.Millisecond {
		return nil
	}
	x0, err := st.X0(d.x0)
	if err != nil {
		return nil // the data cannot be had from this prediction (alpha = 0)
	}
	d.x0 = x0
	shape := d.s.info.Shape
	if d.show != nil {
		if x0, err = d.show(x0); err != nil {
			return fmt.Errorf("--preview: %w", err)
		}
		shape = []int(x0.Shape()[1:])
	}
	w := shape[0] * shape[1] * shape[2]
	var pictures [][]byte
	for k := range min(x0.Shape()[0], d.most) {
		p := make([]byte, w)
		pixels.Bytes(p, models.Data(x0)[k*w:(k+1)*w], shape, pixels.Floor)
		pictures = append(pictures, p)
	}
	if d.mode == asEvents {
		cols := int(math.Ceil(math.Sqrt(float64(len(pictures)))))
		var file bytes.Buffer
		if err := png.Encode(&file, pixels.Sheet(pictures, shape, cols, (len(pictures)+cols-1)/cols)); err != nil {
			return err
		}
		d.last = time.Now()
		d.s.emit(map[string]any{"event": "preview", "image": b.Index, "step": st.I, "pictures": len(pictures), "columns": cols, "png": file.Bytes()})
		return nil
	}
	sheet := pixels.Sheet(pictures, shape, len(pictures), 1)
	if ext := filepath.Ext(d.mode); strings.EqualFold(ext, ".png") {
		name := fmt.Sprintf("%s-%04d-%04d%s", strings.TrimSuffix(d.mode, ext), b.Index, st.I, ext)
		f, err := atomicfile.Create(name)
		if err != nil {
			return err
		}
		if err := png.Encode(f, sheet); err != nil {
			return errors.Join(err, f.Discard())
		}
		return f.Commit()
	}
	draw := func(w io.Writer) error { return preview.Draw(w, sheet, d.mode, d.s.columns()) }
	if d.s.bar == nil {
		return draw(d.s.err)
	}
	return d.s.bar.Draw(draw)
}

func (d *drawing) done(job.Batch, []float64, samplers.Stats) error { return nil }
func (d *drawing) whole() bool                                     { return false }
func (d *drawing) close(bool) error {
	if d.release != nil {
		d.release()
	}
	return nil
}
