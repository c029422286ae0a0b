package main

import (
	"fmt"
	"image/color"
	"math"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"drift/internal/atomicfile"
	"drift/samplers/search"
)

// plotSearch draws all evaluations of a search: score by number, the fixed solvers apart, and the best so far.
func plotSearch(name string, records []search.Record, method, objective string) error {
	p := plot.New()
	p.Title.Text = fmt.Sprintf("%s: %d evaluations", method, len(records))
	p.X.Label.Text, p.Y.Label.Text = "evaluation", objective
	p.Add(plotter.NewGrid())
	var fixed, tried, best plotter.XYs
	low := math.Inf(1)
	log := true
	for i, r := range records {
		if math.IsInf(r.Score, 0) {
			continue
		}
		log = log && r.Score > 0
		at := plotter.XY{X: float64(i + 1), Y: r.Score}
		if strings.Contains(r.Origin, " on ") {
			fixed = append(fixed, at)
		} else {
			tried = append(tried, at)
		}
		if r.Score < low {
			if len(best) > 0 {
				best = append(best, plotter.XY{X: at.X, Y: low})
			}
			low = r.Score
			best = append(best, at)
		}
	}
	if len(best) == 0 {
		return nil
	}
	best = append(best, plotter.XY{X: float64(len(records)), Y: low})
	for _, s := range []struct {
		name  string
		xy    plotter.XYs
		color color.Color
		shape draw.GlyphDrawer
	}{{"fixed solvers", fixed, color.NRGBA{R: 200, G: 90, B: 20, A: 255}, draw.SquareGlyph{}}, {"tried", tried, color.NRGBA{R: 60, G: 110, B: 190, A: 160}, draw.CircleGlyph{}}} {
		if len(s.xy) == 0 {
			continue
		}
		dots, err := plotter.NewScatter(s.xy)
		if err != nil {
			return err
		}
		dots.Color, dots.Shape, dots.Radius = s.color, s.shape, 1.6
		p.Add(dots)
		p.Legend.Add(s.name, dots)
	}
	line, err := plotter.NewLine(best)
	if err != nil {
		return err
	}
	line.Width = 1.5
	p.Add(line)
	p.Legend.Add("best so far", line)
	p.Legend.Top = true
	if log && p.Y.Min < p.Y.Max {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: 3}
	}
	if p.X.Max <= p.X.Min {
		p.X.Max = p.X.Min + 1
	}
	if p.Y.Max <= p.Y.Min {
		p.Y.Min, p.Y.Max = p.Y.Min*0.9-1e-12, p.Y.Max*1.1+1e-12
	}
	c := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(14*vg.Centimeter, 9*vg.Centimeter), vgimg.UseDPI(120))}
	p.Draw(draw.Crop(draw.New(c), 4, -8, 4, -4))
	f, err := atomicfile.Create(name)
	if err != nil {
		return err
	}
	defer f.Discard()
	if _, err := c.WriteTo(f); err != nil {
		return err
	}
	return f.Commit()
}
