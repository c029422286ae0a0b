package bench

import (
	"fmt"
	"image/color"
	"io"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// plots writes plot.png and plot.svg of the first column, and plot-NAME.png and .svg of the others.
func plots(dir string, r Report) error {
	for i, col := range r.Columns() {
		name := "plot"
		if i > 0 {
			name += "-" + col
		}
		for _, ext := range []string{".png", ".svg"} {
			if err := write(filepath.Join(dir, name+ext), func(w io.Writer) error { return drawPlot(w, r, col, ext) }); err != nil {
				return fmt.Errorf("bench: plot of %s: %w", col, err)
			}
		}
	}
	return nil
}

// point is a cell in a plot.
type point struct{ x, y, low, high float64 }

// points of a lane, by true evaluations; band is 95 %.
func (l lane) points(col string, at []string) []point {
	var out []point
	for _, a := range at {
		c, ok := l.cells[a]
		if !ok {
			continue
		}
		s, ok := c.Score(col)
		if !ok || c.NFE <= 0 {
			continue
		}
		p := point{x: c.NFE, y: s.Number(col)}
		p.low, p.high = p.y, p.y
		if e := s.Error(col); e > 0 {
			p.low, p.high = p.y-1.96*e, p.y+1.96*e
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b point) int {
		switch {
		case a.x < b.x:
			return -1
		case a.x > b.x:
			return 1
		}
		return 0
	})
	return out
}

// panel is the plot of one model, with its legend.
type panel struct {
	plot   *plot.Plot
	legend plot.Legend
	lines  int
}

func newPanel(r Report, model, col string) (*panel, error) {
	lanes, at := r.lanes(model)
	p := plot.New()
	p.Title.Text = model
	p.X.Label.Text = "evaluations per sample"
	p.Y.Label.Text = col
	p.Add(plotter.NewGrid())
	out := &panel{plot: p, legend: plot.NewLegend()}
	out.legend.Top, out.legend.Left = true, true
	out.legend.ThumbnailWidth = 18
	out.legend.TextStyle.Font.Size = 8
	out.legend.Padding = 1
	var all []point
	for _, l := range lanes {
		all = append(all, l.points(col, at)...)
	}
	if len(all) == 0 {
		p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = 0, 1, 0, 1
		return out, nil
	}
	log := r.better(col) < 0 && !slices.ContainsFunc(all, func(q point) bool { return q.y <= 0 })
	floor := math.Inf(1) // of bands on a log axis
	for _, q := range all {
		floor = min(floor, q.y)
	}
	for k, l := range lanes {
		pts := l.points(col, at)
		if len(pts) == 0 {
			continue
		}
		c := hue(k, len(lanes))
		if log {
			for i := range pts {
				pts[i].low = max(pts[i].low, floor/4)
			}
		}
		if slices.ContainsFunc(pts, func(q point) bool { return q.high > q.low }) {
			var ring plotter.XYs
			for _, q := range pts {
				ring = append(ring, plotter.XY{X: q.x, Y: q.high})
			}
			for i := len(pts) - 1; i >= 0; i-- {
				ring = append(ring, plotter.XY{X: pts[i].x, Y: pts[i].low})
			}
			if len(pts) > 1 {
				band, err := plotter.NewPolygon(ring)
				if err != nil {
					return nil, err
				}
				band.LineStyle.Width = 0
				band.Color = color.NRGBA{c.R, c.G, c.B, uint8(max(6, 160/max(len(lanes), 5)))} // many bands lie on each other
				p.Add(band)
			} else {
				bar, err := plotter.NewLine(ring)
				if err != nil {
					return nil, err
				}
				bar.Color = c
				p.Add(bar)
			}
		}
		xy := make(plotter.XYs, len(pts))
		for i, q := range pts {
			xy[i] = plotter.XY{X: q.x, Y: q.y}
		}
		line, dots, err := plotter.NewLinePoints(xy)
		if err != nil {
			return nil, err
		}
		line.Color, dots.Color = c, c
		line.Width = 1.2
		line.Dashes = [][]vg.Length{nil, {4, 2}, {1, 2}}[k%3]
		dots.Shape = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}, draw.CrossGlyph{}}[k%4]
		dots.Radius = 2.2
		p.Add(line, dots)
		out.legend.Add(strings.TrimPrefix(l.name, model+"/"), line, dots)
		out.lines++
	}
	widen := func(lo, hi *float64, log bool) {
		switch {
		case log && *hi <= *lo*1.2:
			*lo, *hi = *lo/1.3, *hi*1.3
		case log:
			pad := math.Pow(*hi / *lo, 0.05)
			*lo, *hi = *lo/pad, *hi*pad
		case *hi <= *lo:
			*lo, *hi = *lo-1, *hi+1
		}
	}
	widen(&p.X.Min, &p.X.Max, true)
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = plot.ConstantTicks(costTicks(all, p.X.Min, p.X.Max))
	widen(&p.Y.Min, &p.Y.Max, log)
	if log {
		p.Y.Scale = plot.LogScale{}
		p.Y.Tick.Marker = plot.ConstantTicks(logTicks(p.Y.Min, p.Y.Max))
	}
	return out, nil
}

// costTicks labels the costs that were measured, or round ones where those are many or close to each other.
func costTicks(all []point, lo, hi float64) []plot.Tick {
	var xs []float64
	for _, q := range all {
		xs = append(xs, q.x)
	}
	slices.Sort(xs)
	xs = slices.Compact(xs)
	room := math.Pow(hi/lo, 1.0/25) // a label's width
	var out []plot.Tick
	for i, x := range xs {
		if len(xs) > 12 || i > 0 && x < xs[i-1]*room {
			return logTicks(lo, hi)
		}
		out = append(out, plot.Tick{Value: x, Label: strconv.FormatFloat(x, 'g', 4, 64)})
	}
	return out
}

// logTicks labels 1, 2, 5 of every decade, and more where the range is short; package plot's own label decades only.
func logTicks(lo, hi float64) []plot.Tick {
	for _, steps := range [][]float64{{1, 2, 5}, {1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9}, nil} {
		var out []plot.Tick
		if steps == nil { // round numbers at equal distances
			unit := math.Pow(10, math.Floor(math.Log10((hi-lo)/4)))
			step := unit
			for _, s := range []float64{2, 5} {
				if (hi-lo)/(s*unit) >= 4 {
					step = s * unit
				}
			}
			for k := math.Ceil(lo / step); k*step <= hi; k++ {
				out = append(out, plot.Tick{Value: k * step, Label: strconv.FormatFloat(k*step, 'g', 4, 64)})
			}
			return out
		}
		for e := math.Floor(math.Log10(lo)); e <= math.Ceil(math.Log10(hi)); e++ {
			for _, s := range steps {
				v, err := strconv.ParseFloat(fmt.Sprintf("%ge%d", s, int(e)), 64)
				if err == nil && v >= lo && v <= hi {
					out = append(out, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'g', -1, 64)})
				}
			}
		}
		if len(out) >= 4 {
			return out
		}
	}
	return nil
}

// hue is colour k of n, spread over the wheel, in turn darker and lighter.
func hue(k, n int) color.NRGBA {
	h := 6 * float64(k) / float64(max(n, 1))
	v := []float64{0.85, 0.62}[k%2]
	f := h - math.Floor(h)
	at := func(x float64) uint8 { return uint8(255 * x) }
	q, t, z := at(v*(1-f)), at(v*f), at(0)
	m := at(v)
	switch int(h) % 6 {
	case 0:
		return color.NRGBA{m, t, z, 255}
	case 1:
		return color.NRGBA{q, m, z, 255}
	case 2:
		return color.NRGBA{z, m, t, 255}
	case 3:
		return color.NRGBA{z, q, m, 255}
	case 4:
		return color.NRGBA{t, z, m, 255}
	}
	return color.NRGBA{m, z, q, 255}
}

// drawPlot draws the panels of all models side by side, each with its legend to the right, as .png or .svg.
func drawPlot(w io.Writer, r Report, col, ext string) error {
	const width, legend = 400, 190
	var panels []*panel
	most := 0
	for _, model := range r.Matrix.Models {
		p, err := newPanel(r, model, col)
		if err != nil {
			return err
		}
		panels = append(panels, p)
		most = max(most, p.lines)
	}
	wide, high := vg.Length(len(panels)*(width+legend)), vg.Length(max(320, 40+11*most))
	return canvas(w, wide, high, ext, func(c draw.Canvas) {
		for k, p := range panels {
			left := vg.Length(k * (width + legend))
			p.plot.Draw(draw.Crop(c, left+4, -(wide - left - width), 4, -4))
			p.legend.Draw(draw.Crop(c, left+width+4, -(wide - left - width - legend), 4, -24))
		}
	})
}

var namespaces = regexp.MustCompile(`\s+xmlns(:\w+)?="[^"]*"`)

// inlineSVG is a drawing as an element of a page: no prologue, no names of other places.
func inlineSVG(s string) string {
	if i := strings.Index(s, "<svg"); i >= 0 {
		s = s[i:]
	}
	return namespaces.ReplaceAllString(s, "")
}
