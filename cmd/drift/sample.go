package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/internal/script"
	"drift/models/open"
)

func sampleVerb(a *app) *cli.Command {
	return &cli.Command{
		Name: "sample", Usage: "draw images (or arrays) from a model",
		Description: "With no flag at all it draws a sheet of 64 images from the embedded model. Image k of a run with --seed N uses stream N+k: the start is torch's CPU generator, the same on every machine. " +
			"A folder gets DIR/000000/000123.png by seed and a manifest.json; running the same line again makes what is missing, a folder with another manifest is refused. A .png gets one sheet, a .npz the arrays.",
		Flags: append(slices.Concat(composeFlags(), logFlags(), scaleFlags("images", 64)), []cli.Flag{
			&cli.StringFlag{Name: "model", Usage: "name from drift list models, a diffusers folder, a .onnx file, or a .json analytic target (`X`)"},
			&cli.StringFlag{Name: "out", Usage: "folder of PNGs, .png (one sheet; logos of the motifs for sequences), .npz or .fasta (`PATH`)"},
			&cli.StringFlag{Name: "sheet", Usage: "columns and rows of a .png sheet, such as 8x8 (`CxR`)"},
			&cli.Uint64Flag{Name: "seed", Usage: "stream of the first image; image k uses stream N+k (`N`)"},
			&cli.StringFlag{Name: "seeds", Usage: "streams, such as 0-49,60 (`LIST`); excludes --seed and --count"},
			&cli.IntFlag{Name: "count", Usage: "number of images (`N`)"},
			&cli.IntFlag{Name: "length", Usage: "letters of a sequence (`L`); 500 for dna"},
			&cli.IntFlag{Name: "batch", Usage: "images at a time (`B`); never changes a result"},
			&cli.StringFlag{Name: "dtype", Usage: "arithmetic of the network: f32, bf16, f64 (`T`)"},
			&cli.StringFlag{Name: "tier", Usage: "kernel tier (`TIER`); default: the best this CPU has"},
			&cli.StringFlag{Name: "sampler", Usage: "name:key=value,... (`S`); see drift list samplers"},
			&cli.StringFlag{Name: "schedule", Usage: "name:key=value,... (`G`); model = what its scheduler file says; see drift list schedules"},
			&cli.IntFlag{Name: "steps", Usage: "number of steps (`N`); 20, or what the model says"},
			&cli.IntFlag{Name: "nfe", Usage: "budget instead of --steps: the most steps whose model evaluations per image do not exceed it, guidance counted (`N`)"},
			&cli.Float64Flag{Name: "eta", Usage: "option eta of the sampler (`X`)"},
			&cli.Float64Flag{Name: "s-churn", Usage: "option churn of the edm sampler (`X`)"},
			&cli.Float64Flag{Name: "s-min", Usage: "option s-tmin (`X`)"},
			&cli.Float64Flag{Name: "s-max", Usage: "option s-tmax (`X`)"},
			&cli.Float64Flag{Name: "s-noise", Usage: "option s-noise (`X`)"},
			&cli.Float64Flag{Name: "rho", Usage: "option rho of the schedule (`X`)"},
			&cli.Float64Flag{Name: "t-start", Usage: "noise end of the grid, in the process's own time (`T`)"},
			&cli.Float64Flag{Name: "t-end", Usage: "data end (`T`)"},
			&cli.Float64Flag{Name: "sigma-max", Usage: "noise end as sigma/alpha (`S`)"},
			&cli.Float64Flag{Name: "sigma-min", Usage: "data end as sigma/alpha (`S`)"},
			&cli.StringFlag{Name: "final", Usage: "zero: go on to the clean end; min: stop at the last noise level (`WHERE`)"},
			&cli.StringFlag{Name: "grid", Usage: "explicit nodes, {\"sigmas\":[...]} or {\"times\":[...]} (`FILE.json`)"},
			&cli.StringFlag{Name: "sigmas", Usage: "explicit sigma/alpha, noise to data (`a,b,c`)"},
			&cli.StringFlag{Name: "timesteps", Usage: "explicit times of the process (`a,b,c`)"},
			&cli.StringFlag{Name: "class", Usage: "class by number or name, or none (`K`)"},
			&cli.StringFlag{Name: "classes", Usage: "classes of the images in turn (`0,3,5`)"},
			&cli.StringFlag{Name: "prompt", Usage: "text (`P`)"},
			&cli.StringFlag{Name: "negative-prompt", Usage: "text to move away from (`P`)"},
			&cli.IntFlag{Name: "width", Aliases: []string{"W"}, Usage: "width of the pictures, for models that take any (`PIXELS`)"},
			&cli.IntFlag{Name: "height", Aliases: []string{"H"}, Usage: "height of the pictures (`PIXELS`)"},
			&cli.StringFlag{Name: "vae", Usage: "another autoencoder, a folder in the diffusers layout or one file (`X`)"},
			&cli.StringFlag{Name: "tokenizer", Usage: "of a model in one file: `FOLDER` with vocab.json and merges.txt, or with tokenizer and tokenizer_2; default: CLIP's"},
			&cli.StringFlag{Name: "config", Usage: "of a model in one file: `FOLDER` in the diffusers layout whose configurations are taken, instead of what the tensors' shapes say"},
			&cli.StringFlag{Name: "prediction", Usage: "of a model in one file: what the network predicts, eps or v (`P`), where the file does not say it"},
			&cli.StringSliceFlag{Name: "lora", Usage: "low-rank changes of the weights, by diffusers or kohya, with their scale (`FILE:0.8`); repeatable"},
			&cli.IntFlag{Name: "clip-skip", Usage: "layers of the text encoder left out at the end (`N`)"},
			&cli.IntFlag{Name: "text-tokens", Usage: "tokens that T5 sees of a prompt; default: the pipeline's own number (`N`)"},
			&cli.Float64Flag{Name: "guidance", Usage: "scale that a distilled network takes as an input: Flux dev (3.5), latent consistency models (7.5) (`G`)"},
			&cli.IntFlag{Name: "tile", Usage: "decode latents larger than this in squares of this side (`N`), default 128"},
			&cli.StringFlag{Name: "prompts", Usage: "one prompt or class per line: one image set each (`FILE`)"},
			&cli.Float64Flag{Name: "cfg-scale", Usage: "classifier-free guidance, --guider cfg:w=W (`W`); 1 = off (default 1; 2 when no --model is named)"},
			&cli.StringSliceFlag{Name: "guider", Usage: "name:key=value,... (`SPEC`); repeatable, chained left to right, then what the model's scheduler asks for, such as clip (none drops that); see drift list guiders"},
			&cli.StringFlag{Name: "switch", Usage: "another model for the first steps: MODEL:k=1,steps=20,sampler=ddim,guider=cfg:w=7 takes over at step k of this run (`SPEC`)"},
			&cli.StringFlag{Name: "dt", Usage: "draw what each step already decides: the predicted data, one row per image (`FILE.png`)"},
			&cli.StringFlag{Name: "guide-model", Usage: "second network of autoguidance (`M`)"},
			&cli.StringFlag{Name: "init-image", Usage: "start from this picture with noise on it, SDEdit (`IMG`)"},
			&cli.Float64Flag{Name: "strength", Usage: "part of the run that --init-image goes through, 0 to 1, default 0.75 (`S`)"},
			&cli.StringFlag{Name: "mask", Usage: "paint only the white parts of this picture into --init-image, and keep the rest (`IMG`); --strength then is 1 by default"},
			&cli.StringFlag{Name: "init", Usage: "start from array x, scaled to the first node (`FILE.npz`)"},
			&cli.IntFlag{Name: "start-step", Usage: "first step to run (`K`)"},
			&cli.IntFlag{Name: "end-step", Usage: "stop at this node, with the noise left in (`K`)"},
			&cli.StringFlag{Name: "noise", Usage: "step noise: philox, torch, brownian, zero, or a .npz with array noise (steps, batch, ...) (`KIND`)"},
			&cli.StringFlag{Name: "rng", Usage: "generator of the noise that a run starts from, and of --noise torch: torch (the CPU's) or torch-cuda, torch-cuda:threads=221184 (`KIND`)"},
			&cli.StringFlag{Name: "rounding", Usage: "to 8 bit: floor = clamp(floor(127.5 x + 128)), or diffusers = round half to even (`RULE`)"},
			&cli.BoolFlag{Name: "float", Usage: "store the unrounded array x in a .npz of images too"},
			&cli.StringFlag{Name: "trajectory", Usage: "write x, t, sigma, alpha, x0 of every step (`FILE.npz`)"},
			&cli.BoolFlag{Name: "print-schedule", Usage: "print t, alpha, sigma, lambda of every node, and stop"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print what the run would cost, and stop"},
			&cli.StringFlag{Name: "control", Usage: "script called after every step: may set cfg_scale, eta and stop; images run one at a time (`FILE.star`)"},
			&cli.StringFlag{Name: "preview", Usage: "draw the predicted pictures in the terminal every so many steps (`N`); or sixel, kitty, iterm, block, ascii, auto, json (pictures in events of --json), MODE:N; NAME.png saves them"},
			&cli.StringFlag{Name: "preview-vae", Usage: "previews of latents by this autoencoder, such as a TAESD, in place of colours linear in the channels (`FOLDER`)"},
			&cli.StringFlag{Name: "from", Usage: "rerun what a picture's metadata say (`IMG.png`); other flags override"},
			&cli.BoolFlag{Name: "resume", Usage: "go on with the run in --out, with its settings"},
			&cli.BoolFlag{Name: "no-metadata", Usage: "write no text into PNG files"},
		}...),
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			s := &sampling{app: a, c: c}
			defer s.close()
			if err := s.resolve(c.Context); err != nil {
				return err
			}
			switch {
			case c.Bool("print-schedule"):
				s.printSchedule()
				return nil
			case c.Bool("dry-run"):
				return s.dryRun(c.Context)
			}
			return s.run(c.Context)
		},
	}
}

// close gives the models back.
func (s *sampling) close() {
	if s.closeAll != nil {
		s.closeAll()
		s.model = nil
	}
	for _, m := range []*open.Model{s.model, s.second, s.third} {
		if m != nil {
			m.Close()
		}
	}
}

// printSchedule prints every node, 17 digits, so that they can be fed back.
func (s *sampling) printSchedule() {
	if !s.json {
		fmt.Fprintf(s.out, "# %s, %s, %d steps, %s evaluations per image\n", s.desc.Sampler, s.gridName(), len(s.plan.Grid)-1, s.nfeText())
		fmt.Fprintf(s.out, "%5s %24s %24s %24s %24s\n", "i", "t", "alpha", "sigma", "lambda")
	}
	for i, n := range s.plan.Grid {
		if s.json {
			s.emit(struct {
				I      int `json:"i"`
				T      any `json:"t"`
				Alpha  any `json:"alpha"`
				Sigma  any `json:"sigma"`
				Ratio  any `json:"ratio"`
				Lambda any `json:"lambda"`
			}{i, finite(n.T), finite(n.Alpha), finite(n.Sigma), finite(n.Ratio()), finite(n.Lambda())})
			continue
		}
		fmt.Fprintf(s.out, "%5d %24.17g %24.17g %24.17g %24.17g\n", i, n.T, n.Alpha, n.Sigma, n.Lambda())
	}
}

// finite makes a number that JSON can hold: infinities become "inf" and "-inf".
func finite(x float64) any {
	switch {
	case math.IsNaN(x):
		return "nan"
	case math.IsInf(x, 1):
		return "inf"
	case math.IsInf(x, -1):
		return "-inf"
	}
	return x
}

func (s *sampling) gridName() string {
	if s.desc.Schedule == "" {
		return "explicit nodes"
	}
	return s.desc.Schedule
}

func (s *sampling) nfeText() string {
	if s.desc.NFE == 0 {
		return "an unknown number of"
	}
	return strconv.Itoa(s.desc.NFE)
}

// dryRun prints what the run would cost. The time is that of one step on one batch, multiplied.
func (s *sampling) dryRun(ctx context.Context) error {
	n := len(s.items)
	rows := min(n, s.batch())
	per, err := s.plan.Rate(ctx, s.items[:rows])
	if err != nil {
		return err
	}
	dim := 1
	for _, d := range s.info.Shape {
		dim *= d
	}
	decodes := 0
	if s.plan.Codec != nil {
		decodes = n + s.rewards
	}
	parts := max(1, s.plan.Particles)
	n *= parts
	state := int64(8 * dim * rows * parts * 12) // state, stages, history and predictions of a run, about
	evals, vjps := float64(n*s.desc.NFE), float64(n)*s.cost.VJPs
	if s.whole.NFE > 0 {
		evals, vjps = s.whole.NFE, s.whole.VJPs
	}
	total := time.Duration(float64(per) * evals)
	cost := struct {
		Event   string  `json:"event"`
		Images  int     `json:"images"`
		Steps   int     `json:"steps"`
		NFE     int     `json:"nfe_per_image"`
		Evals   int     `json:"evaluations"`
		VJPs    float64 `json:"vjps"`
		Decodes int     `json:"decodes"`
		Rewards int     `json:"rewards"`
		State   int64   `json:"state_bytes"`
		Params  int64   `json:"parameters"`
		Seconds float64 `json:"seconds"`
	}{"estimate", n, s.steps(), s.desc.NFE, int(math.Round(evals)), vjps, decodes, s.rewards, state, s.info.Params, total.Seconds()}
	if s.json {
		s.emit(cost)
		return nil
	}
	fmt.Fprintf(s.out, "images        %d in batches of %d\nsteps         %d\nNFE per image %s\nevaluations   %d\nVJPs          %g\ndecoder calls %d\nreward calls  %d\n",
		n, rows, cost.Steps, s.nfeText(), cost.Evals, cost.VJPs, decodes, s.rewards)
	fmt.Fprintf(s.out, "memory        about %.1f MB of state; %d parameters\n", float64(state)/1e6, s.info.Params)
	if s.desc.NFE > 0 {
		fmt.Fprintf(s.out, "time          about %v (measured on one step)\n", total.Round(time.Millisecond))
	} else {
		fmt.Fprintf(s.out, "time          %v per evaluation; the sampler decides how many\n", per)
	}
	return nil
}

// steps is the number of steps that run.
func (s *sampling) steps() int {
	last := s.plan.Last
	if last == 0 {
		last = len(s.plan.Grid) - 1
	}
	return last - s.plan.First
}

// batch is the number of images at a time.
func (s *sampling) batch() int {
	if s.script != nil {
		return 1 // what a script sets is for its image alone
	}
	if n := s.c.Int("batch"); n > 0 {
		return n
	}
	return s.plan.Batch()
}

// aroundFlags are the flags of sample for what surrounds a network, textFlags those for texts, which other verbs take too.
var (
	aroundFlags = []string{"width", "height", "vae", "tile", "lora", "guidance", "clip-skip", "text-tokens"}
	textFlags   = []string{"prompt", "prompts", "negative-prompt"}
)

// sampling is one run of the verb.
type sampling struct {
	*app
	c *cli.Context

	model  *open.Model
	second *open.Model // of --guide-model
	third  *open.Model // of --switch

	closeAll func() // gives back the models of a composition
	tell     tell   // what guiders report to; nil without a log
	info     modelInfo
	plan     *job.Plan
	cost     job.Cost
	whole    job.Cost     // of all, for --dry-run; NFE 0: cost, times images
	desc     manifest.Run // the description of the run
	seeds    []uint64
	items    []job.Item
	path     string // of the output
	cols     int    // of a sheet
	rows     int
	saved    string // what an interrupt saved beside finished images

	unstored bool // the output failed

	script *script.Control // of --control
	live   *float64        // scale of classifier-free guidance that it sets

	verb        string // of the description; empty = sample
	sampler     string // default in place of the model's
	ownGrid     bool   // the process's grid in place of the one that the model's scheduler asks for
	targetSteps int    // default of targets in place of the model's
	bare        bool   // without the guiders that the model's scheduler asks for
	rewards     int    // reward evaluations in all, for --dry-run

	standIn string        // sampler that stands for one of the verb's own while the grid is made
	usual   *usualGrid    // grid where no flag says one
	before  *manifest.Run // that --resume or --from goes on with, or nil
}
