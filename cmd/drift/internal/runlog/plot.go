package runlog

import (
	"fmt"
	"image/color"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"

	"drift/cmd/drift/internal/output"
	"drift/internal/spec"
)

// Draw draws columns, one panel each, into a .png or .svg: values of steps as the median over the units with a band from
// the 10th to the 90th percentile and thin lines of the first few units, values of whole units as a histogram.
func (l *Log) Draw(path string, names []string) error {
	ext := strings.ToLower(filepath.Ext(path))
	if ext != ".png" && ext != ".svg" {
		return fmt.Errorf("%s: want a name that ends in .png or .svg", path)
	}
	if len(names) == 0 {
		return fmt.Errorf("%s: no column to draw", path)
	}
	var panels []*plot.Plot
	for _, name := range names {
		p, err := l.panel(name)
		if err != nil {
			return fmt.Errorf("plot: %w", err)
		}
		panels = append(panels, p)
	}
	cols := min(len(panels), 2)
	rows := (len(panels) + cols - 1) / cols
	w, h := vg.Length(cols)*5*vg.Inch, vg.Length(rows)*3.2*vg.Inch
	grid := make([][]*plot.Plot, rows)
	for i := range grid {
		grid[i] = make([]*plot.Plot, cols)
		for j := range cols {
			if k := i*cols + j; k < len(panels) {
				grid[i][j] = panels[k]
			}
		}
	}
	var canvas vg.CanvasSizer
	if ext == ".svg" {
		canvas = vgsvg.New(w, h)
	} else {
		canvas = vgimg.NewWith(vgimg.UseWH(w, h), vgimg.UseDPI(110))
	}
	places := plot.Align(grid, draw.Tiles{Rows: rows, Cols: cols, PadX: 10, PadY: 10, PadTop: 6, PadBottom: 6, PadLeft: 6, PadRight: 6}, draw.New(canvas))
	for i := range grid {
		for j, p := range grid[i] {
			if p != nil {
				p.Draw(places[i][j])
			}
		}
	}
	return output.Write(path, func(w io.Writer) error {
		var err error
		switch c := canvas.(type) {
		case *vgsvg.Canvas:
			_, err = c.WriteTo(w)
		case *vgimg.Canvas:
			_, err = vgimg.PngCanvas{Canvas: c}.WriteTo(w)
		}
		return err
	})
}

// most is the number of units whose own lines are drawn.
const most = 12

func (l *Log) panel(name string) (*plot.Plot, error) {
	p := plot.New()
	p.Add(plotter.NewGrid())
	blue := color.NRGBA{31, 87, 164, 255}
	if !l.perStep(name) {
		var v plotter.Values
		for _, k := range slices.Sorted(maps.Keys(l.units)) {
			if f, ok := number(l.units[k].whole[name]); ok && f-f == 0 {
				v = append(v, f)
			}
		}
		if len(v) == 0 {
			return nil, fmt.Errorf("no numbers under %q%s", name, spec.Suggest(name, l.names()))
		}
		h, err := plotter.NewHist(v, min(40, max(4, len(v)/6)))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		h.FillColor = color.NRGBA{31, 87, 164, 90}
		p.Add(h)
		p.X.Label.Text, p.Y.Label.Text = name, "units"
		return p, nil
	}
	at := map[int][]float64{}
	var own []plotter.XYs
	for i, k := range slices.Sorted(maps.Keys(l.units)) {
		var line plotter.XYs
		for _, s := range slices.Sorted(maps.Keys(l.units[k].steps)) {
			if f, ok := number(l.units[k].steps[s][name]); ok && f-f == 0 {
				at[s] = append(at[s], f)
				line = append(line, plotter.XY{X: float64(s), Y: f})
			}
		}
		if i < most && len(line) > 0 {
			own = append(own, line)
		}
	}
	if len(at) == 0 {
		return nil, fmt.Errorf("no numbers under %q%s", name, spec.Suggest(name, l.names()))
	}
	var mid, up, down plotter.XYs
	for _, s := range slices.Sorted(maps.Keys(at)) {
		v := at[s]
		slices.Sort(v)
		mid = append(mid, plotter.XY{X: float64(s), Y: quantile(v, 0.5)})
		up = append(up, plotter.XY{X: float64(s), Y: quantile(v, 0.9)})
		down = append(down, plotter.XY{X: float64(s), Y: quantile(v, 0.1)})
	}
	slices.Reverse(down)
	if len(l.units) > 1 && len(mid) > 1 {
		band, err := plotter.NewPolygon(append(up, down...))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		band.Color, band.LineStyle.Width = color.NRGBA{31, 87, 164, 50}, 0
		p.Add(band)
	}
	for _, xy := range own {
		line, err := plotter.NewLine(xy)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		line.Color, line.Width = color.NRGBA{90, 90, 90, 110}, 0.5
		p.Add(line)
	}
	line, points, err := plotter.NewLinePoints(mid)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	line.Color, line.Width = blue, 1.6
	points.Color, points.Radius, points.Shape = blue, 1.4, draw.CircleGlyph{}
	p.Add(line)
	if len(mid) <= 60 {
		p.Add(points)
	}
	p.X.Label.Text, p.Y.Label.Text = "step", name
	return p, nil
}

// names are all that have values.
func (l *Log) names() []string {
	seen := map[string]bool{}
	for _, u := range l.units {
		for n := range u.whole {
			seen[n] = true
		}
		for _, s := range u.steps {
			for n := range s {
				seen[n] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	k := min(int(at), len(sorted)-1)
	return sorted[k] + (at-float64(k))*(sorted[min(k+1, len(sorted)-1)]-sorted[k])
}
