package main

import (
	"context"
	"fmt"
	"image/png"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/output"
	"drift/internal/pixels"
	"drift/models"
	"drift/samplers"
)

// contactOmits are those of sample that a contact sheet leaves out.
var contactOmits = []string{"sheet", "guider", "cfg-scale", "init", "init-image", "strength", "noise", "float", "trajectory", "print-schedule", "dry-run", "log", "columns", "sort", "plot", "preview",
	"from", "resume", "no-metadata", "prompts", "dt", "switch", "start-step", "end-step", "control", "trace"}

func contactVerb(a *app) *cli.Command {
	c := &cli.Command{
		Name: "contact", Usage: "draw one sheet of several guiders: a row per method, a column per seed, the same noise in every column",
		Description: "--guiders takes methods separated by semicolons, each a chain a+b; none is the unguided model. What each row is and costs goes to stdout.",
		Flags:       []cli.Flag{&cli.StringFlag{Name: "guiders", Usage: "methods, `\"none;cfg:w=2;clip+apg:w=4\"`"}},
	}
	for _, f := range sampleVerb(a).Flags {
		if !slices.Contains(contactOmits, f.Names()[0]) {
			c.Flags = append(c.Flags, f)
		}
	}
	c.Action = func(ctx *cli.Context) error {
		if err := noArgs(ctx); err != nil {
			return err
		}
		s := &sampling{app: a, c: ctx, verb: "contact"}
		defer s.close()
		return s.contact(ctx.Context)
	}
	return c
}

// chains takes "none;cfg:w=2;clip+apg:w=4" apart.
func chains(text string) [][]string {
	var out [][]string
	for part := range strings.SplitSeq(text, ";") {
		var chain []string
		from := 0
		part = strings.TrimSpace(part)
		for i := range len(part) { // a plus before a letter begins the next guider; cfg++ and numbers keep theirs
			if part[i] == '+' && i+1 < len(part) && part[i+1] >= 'a' && part[i+1] <= 'z' {
				chain, from = append(chain, part[from:i]), i+1
			}
		}
		if part != "none" {
			chain = append(chain, part[from:])
		}
		out = append(out, chain)
	}
	return out
}

func (s *sampling) contact(ctx context.Context) error {
	if !s.c.IsSet("guiders") || s.c.String("guiders") == "" {
		return usagef("--guiders says what the rows are, such as \"none;cfg:w=2;apg:w=4\"")
	}
	if err := s.resolve(ctx); err != nil {
		return err
	}
	if !pixels.Picture(s.info.Image()) || output.Kind(s.path) != "png" {
		return usagef("--out %s: a contact sheet is a .png of pictures", s.path)
	}
	var second models.Denoiser
	if s.second != nil {
		second = s.second.Denoiser
	}
	rows := chains(s.c.String("guiders"))
	own := s.model.Defaults.Guiders
	for i, chain := range rows { // what the model's scheduler asks for goes around every row
		rows[i] = append(chain, own...)
		if _, err := guide(s.model.Denoiser, second, rows[i], nil, nil); err != nil {
			return badUse("guiders", err)
		}
	}
	if err := output.Check(s.path); err != nil {
		return err
	}
	image := s.info.Image()
	w := tensor.Shape(image).TotalSize()
	var all [][]byte
	bar := s.start("drift contact")
	defer func() {
		bar.Close()
		s.bar = nil
	}()
	for i, chain := range rows {
		p := *s.plan
		p.Wrap = func(d models.Denoiser) (models.Denoiser, error) { return guide(d, second, chain, p.Grid, nil) }
		bar.Set(float64(i)/float64(len(rows)), strings.Join(chain, " + "))
		stats, err := p.Run(ctx, s.stop, s.items, s.batch(), job.Hooks{Done: func(_ job.Batch, _, pictures *tensor.Dense, _ samplers.Stats) error {
			x := models.Data(pictures)
			for k := range len(x) / w {
				b := make([]byte, w)
				pixels.Bytes(b, x[k*w:(k+1)*w], image, pixels.Rounding(s.desc.Rounding))
				all = append(all, b)
			}
			return nil
		}})
		if err != nil {
			return fmt.Errorf("row %d, %s: %w", i+1, s.c.String("guiders"), err)
		}
		name := strings.Join(chain, " + ")
		if name == "" {
			name = "none"
		}
		if s.json {
			s.emit(map[string]any{"event": "row", "row": i + 1, "guiders": chain, "nfe": stats.NFE, "vjps": stats.VJPs})
		} else {
			fmt.Fprintf(s.out, "row %d: %s, %g evaluations per picture\n", i+1, name, stats.NFE)
		}
	}
	sheet := pixels.Sheet(all, image, len(s.items), len(rows))
	if err := output.Write(s.path, func(w io.Writer) error { return png.Encode(w, sheet) }); err != nil {
		return err
	}
	s.say("drift: %d methods by %d seeds: %s", len(rows), len(s.items), s.path)
	s.stored([]string{s.path})
	return nil
}
