package bench

import (
	"fmt"
	"image/color"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/palette/moreland"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// settings are the axes that cells have no field for, in the order of the matrix.
func (r Report) settings() []string {
	var out []string
	for _, a := range r.Matrix.Axes {
		if !slices.Contains([]string{"model", "sampler", "schedule", "guider", "nfe", "steps"}, a.Flag) {
			out = append(out, a.Flag)
		}
	}
	return out
}

// setting is the value of any axis in a cell.
func (c ReportCell) setting(flag string) string {
	switch flag {
	case "model":
		return c.Model
	case "sampler":
		return c.Sampler
	case "schedule":
		return c.Schedule
	case "guider":
		return c.Guiders
	case "nfe":
		return strconv.Itoa(c.Budget)
	case "steps":
		return strconv.Itoa(c.Steps)
	}
	v, _ := c.Settings.Get(flag)
	return v
}

// base is the cell's baseline, empty where it has none.
func (c ReportCell) base() ReportCell {
	if c.Baseline == nil {
		return ReportCell{}
	}
	return *c.Baseline
}

// better is the direction of a column of this report.
func (r Report) better(col string) int {
	for _, c := range r.Cells {
		if s, ok := c.Score(col); ok {
			return s.direction(col)
		}
	}
	return better(col)
}

// swept are the axes with more than one value.
func (r Report) swept() []Axis {
	return slices.DeleteFunc(slices.Clone(r.Matrix.Axes), func(a Axis) bool { return len(a.Values) < 2 })
}

// verbTables writes one table per model: a line per cell, with its axes, its cost and its scores, and beside every score
// that of the baseline and the difference in pairs of seeds.
func (r Report) verbTables(b *strings.Builder) {
	base := r.Matrix.Baseline
	axes := r.swept()
	axes = slices.DeleteFunc(axes, func(a Axis) bool { return a.Flag == "model" })
	var models []string
	for _, c := range r.Cells {
		if !slices.Contains(models, c.Model) {
			models = append(models, c.Model)
		}
	}
	for _, model := range models {
		fmt.Fprintf(b, "## %s: drift %s", model, r.Matrix.Verb)
		for _, a := range r.Matrix.Fixed {
			if a.Flag != "model" {
				fmt.Fprintf(b, " --%s %s", a.Flag, a.Value)
			}
		}
		b.WriteString("\n\n|")
		columns := 0
		head := func(s string) { fmt.Fprintf(b, " %s |", s); columns++ }
		for _, a := range axes {
			head(a.Flag)
		}
		head("NFE")
		cost := r.costs()
		for _, c := range cost {
			head(c.name)
		}
		for _, col := range r.Columns() {
			head(fmt.Sprintf("%s (%s is better)", col, map[int]string{-1: "smaller", 1: "larger"}[r.better(col)]))
			if base != "" {
				head(base)
				head("difference")
			}
		}
		b.WriteString("\n|" + strings.Repeat("---|", columns) + "\n")
		for _, c := range r.Cells {
			if c.Model != model {
				continue
			}
			b.WriteString("|")
			for _, a := range axes {
				fmt.Fprintf(b, " %s |", c.setting(a.Flag))
			}
			fmt.Fprintf(b, " %s |", strconv.FormatFloat(c.NFE, 'f', -1, 64))
			for _, x := range cost {
				fmt.Fprintf(b, " %s |", short(x.of(c)))
			}
			for _, col := range r.Columns() {
				fmt.Fprintf(b, " %s |", valueText(c, col))
				if base == "" {
					continue
				}
				fmt.Fprintf(b, " %s |", valueText(c.base(), col))
				was, ok := c.base().Score(col)
				now, too := c.Score(col)
				if d := change(c.base(), c, col, was, now); ok && too && d.Paired {
					fmt.Fprintf(b, " %+.3g ± %.2g |", d.New-d.Old, d.Err)
				} else {
					b.WriteString(" - |")
				}
			}
			b.WriteString("\n")
		}
		b.WriteString("\n")
	}
}

// cost is a column of what seeds cost besides evaluations.
type cost struct {
	name string
	of   func(ReportCell) float64
}

// costs are those that some cell has.
func (r Report) costs() []cost {
	return slices.DeleteFunc([]cost{
		{"VJPs", func(c ReportCell) float64 { return c.VJPs }},
		{"rewards", func(c ReportCell) float64 { return c.Rewards }},
	}, func(x cost) bool {
		return !slices.ContainsFunc(r.Cells, func(c ReportCell) bool { return x.of(c) != 0 || x.of(c.base()) != 0 })
	})
}

// valueText is a number with its standard error.
func valueText(c ReportCell, col string) string {
	s, ok := c.Score(col)
	if !ok {
		return "-"
	}
	text := short(s.Number(col))
	if len(s.Interval) == 2 {
		return text + fmt.Sprintf(" [%s, %s]", short(s.Interval[0]), short(s.Interval[1]))
	}
	if e := stderrOf(s, col, func(v float64) string { return strconv.FormatFloat(v, 'g', 2, 64) }); e != "" {
		text += " ± " + e
	}
	return text
}

// sweepPlots writes heat.png and heat.svg of the first column over the first two axes, heat-NAME of the others, and
// pareto.png and pareto.svg of the first two columns.
func sweepPlots(dir string, r Report) error {
	columns := r.Columns()
	each := func(name string, fill func(w io.Writer, ext string) error) error {
		for _, ext := range []string{".png", ".svg"} {
			if err := write(filepath.Join(dir, name+ext), func(w io.Writer) error { return fill(w, ext) }); err != nil {
				return fmt.Errorf("bench: %s: %w", name, err)
			}
		}
		return nil
	}
	for i, col := range columns {
		name := "heat"
		if i > 0 {
			name += "-" + col
		}
		if !r.mapped(col) {
			continue
		}
		if err := each(name, func(w io.Writer, ext string) error { return r.heat(w, col, ext) }); err != nil {
			return err
		}
	}
	if !r.faced(columns) {
		return nil
	}
	return each("pareto", func(w io.Writer, ext string) error { return r.pareto(w, columns[0], columns[1], ext) })
}

// mapped tells whether there is a heat map of a column.
func (r Report) mapped(col string) bool {
	return len(r.swept()) > 0 && slices.ContainsFunc(r.Cells, func(c ReportCell) bool { _, ok := c.Score(col); return ok })
}

// faced tells whether there is a plot of the first two columns against each other.
func (r Report) faced(columns []string) bool {
	return len(columns) > 1 && slices.ContainsFunc(r.Cells, func(c ReportCell) bool {
		_, a := c.Score(columns[0])
		_, b := c.Score(columns[1])
		return a && b
	})
}

// canvas makes a drawing of a size in points and writes it.
func canvas(w io.Writer, wide, high vg.Length, ext string, paint func(draw.Canvas)) error {
	var size vg.CanvasSizer
	var out io.WriterTo
	if ext == ".svg" {
		c := vgsvg.New(wide, high)
		size, out = c, c
	} else {
		c := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(wide, high), vgimg.UseDPI(120))}
		size, out = c, c
	}
	paint(draw.NewCanvas(size, wide, high))
	_, err := out.WriteTo(w)
	return err
}

// field is a table of numbers as a plotter.GridXYZ.
type field struct {
	cols, rows int
	z          []float64
}

func (f field) Dims() (c, r int)   { return f.cols, f.rows }
func (f field) X(c int) float64    { return float64(c) }
func (f field) Y(r int) float64    { return float64(r) }
func (f field) Z(c, r int) float64 { return f.z[r*f.cols+c] }

// heat draws one map of numbers per combination of the axes after the first two; a missing second axis is one line.
func (r Report) heat(w io.Writer, col, ext string) error {
	axes := r.swept()
	y := axes[0]
	x := Axis{"", []string{""}}
	if len(axes) > 1 {
		x = axes[1]
	} else {
		x, y = y, x
	}
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, c := range r.Cells {
		if s, ok := c.Score(col); ok {
			lo, hi = min(lo, s.Number(col)), max(hi, s.Number(col))
		}
	}
	if hi < lo {
		lo, hi = 0, 1
	}
	if hi == lo {
		lo, hi = lo-0.5, hi+0.5
	}
	var plots []*plot.Plot
	for _, rest := range product(axes[min(2, len(axes)):]) {
		p := plot.New()
		p.Title.Text = strings.TrimSpace(col + "  " + rest.String())
		p.X.Label.Text, p.Y.Label.Text = x.Flag, y.Flag
		f := field{cols: len(x.Values), rows: len(y.Values), z: make([]float64, len(x.Values)*len(y.Values))}
		var at plotter.XYs
		var labels []string
		for j, yv := range y.Values {
			for i, xv := range x.Values {
				f.z[j*f.cols+i] = math.NaN()
				k := slices.IndexFunc(r.Cells, func(c ReportCell) bool {
					return (y.Flag == "" || c.setting(y.Flag) == yv) && c.setting(x.Flag) == xv &&
						!slices.ContainsFunc(rest, func(a Arg) bool { return c.setting(a.Flag) != a.Value })
				})
				if k < 0 {
					continue
				}
				text := "-"
				if s, ok := r.Cells[k].Score(col); ok {
					f.z[j*f.cols+i] = s.Number(col)
					text = short(s.Number(col))
				}
				at = append(at, plotter.XY{X: float64(i), Y: float64(j)})
				labels = append(labels, text)
			}
		}
		colors := moreland.SmoothBlueRed().Palette(255)
		h := plotter.NewHeatMap(f, colors)
		h.Min, h.Max, h.NaN = lo, hi, color.Gray{200}
		h.Rasterized = false
		p.Add(h)
		words, err := plotter.NewLabels(plotter.XYLabels{XYs: at, Labels: labels})
		if err != nil {
			return err
		}
		for i := range words.TextStyle {
			words.TextStyle[i].XAlign, words.TextStyle[i].YAlign = draw.XCenter, draw.YCenter
		}
		p.Add(words)
		p.NominalX(x.Values...)
		p.NominalY(y.Values...)
		p.X.Padding, p.Y.Padding = 0, 0
		p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = -0.5, float64(f.cols)-0.5, -0.5, float64(f.rows)-0.5
		plots = append(plots, p)
	}
	across := min(3, len(plots))
	down := (len(plots) + across - 1) / across
	wide := vg.Length(90 + 60*len(x.Values))
	high := vg.Length(80 + 40*len(y.Values))
	wide = max(wide, 220)
	return canvas(w, wide*vg.Length(across), high*vg.Length(down), ext, func(c draw.Canvas) {
		for k, p := range plots {
			left, top := wide*vg.Length(k%across), high*vg.Length(k/across)
			p.Draw(draw.Crop(c, left+4, -(wide*vg.Length(across) - left - wide + 4), high*vg.Length(down)-top-high+4, -top-4))
		}
	})
}

// pareto draws the cells by two scores, with one standard error, and joins those that no other cell beats in both.
func (r Report) pareto(w io.Writer, xcol, ycol, ext string) error {
	p := plot.New()
	p.Title.Text = ycol + " against " + xcol
	p.X.Label.Text, p.Y.Label.Text = xcol, ycol
	p.Add(plotter.NewGrid())
	type dot struct{ x, y, ex, ey float64 }
	collect := func(of func(ReportCell) ReportCell) (dots []dot, names []string) {
		for _, c := range r.Cells {
			a, ok := of(c).Score(xcol)
			b, too := of(c).Score(ycol)
			if !ok || !too {
				continue
			}
			d := dot{x: a.Number(xcol), y: b.Number(ycol), ex: a.Error(xcol), ey: b.Error(ycol)}
			dots = append(dots, d)
			var name []string
			for _, axis := range r.swept() {
				name = append(name, axis.Flag+" "+c.setting(axis.Flag))
			}
			names = append(names, strings.Join(name, ", "))
		}
		return dots, names
	}
	paint := func(dots []dot, c color.Color, shape draw.GlyphDrawer) error {
		var xy plotter.XYs
		for _, d := range dots {
			xy = append(xy, plotter.XY{X: d.x, Y: d.y})
			for _, bar := range [][2]plotter.XY{{{X: d.x - d.ex, Y: d.y}, {X: d.x + d.ex, Y: d.y}}, {{X: d.x, Y: d.y - d.ey}, {X: d.x, Y: d.y + d.ey}}} {
				l, err := plotter.NewLine(plotter.XYs{bar[0], bar[1]})
				if err != nil {
					return err
				}
				l.Color = color.Gray{170}
				p.Add(l)
			}
		}
		if len(xy) == 0 {
			return nil
		}
		s, err := plotter.NewScatter(xy)
		if err != nil {
			return err
		}
		s.Color, s.Shape, s.Radius = c, shape, 3
		p.Add(s)
		return nil
	}
	dots, names := collect(func(c ReportCell) ReportCell { return c })
	if r.Matrix.Baseline != "" {
		base, _ := collect(ReportCell.base)
		if err := paint(base, color.Gray{130}, draw.CrossGlyph{}); err != nil {
			return err
		}
		p.Title.Text += "; crosses: " + r.Matrix.Baseline
	}
	if err := paint(dots, color.NRGBA{R: 30, G: 80, B: 180, A: 255}, draw.CircleGlyph{}); err != nil {
		return err
	}
	sx, sy := float64(r.better(xcol)), float64(r.better(ycol))
	var front plotter.XYs
	for i, d := range dots {
		if !slices.ContainsFunc(dots, func(o dot) bool {
			return sx*o.x >= sx*d.x && sy*o.y >= sy*d.y && (o.x != d.x || o.y != d.y)
		}) {
			front = append(front, plotter.XY{X: d.x, Y: d.y})
			word, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: d.x, Y: d.y}}, Labels: []string{names[i]}})
			if err != nil {
				return err
			}
			word.Offset = vg.Point{X: 5, Y: 3}
			word.TextStyle[0].Font.Size = 7
			p.Add(word)
		}
	}
	slices.SortFunc(front, func(a, b plotter.XY) int {
		switch {
		case a.X < b.X || a.X == b.X && a.Y < b.Y:
			return -1
		case a.X == b.X && a.Y == b.Y:
			return 0
		}
		return 1
	})
	line, err := plotter.NewLine(front)
	if err != nil {
		return err
	}
	line.Color = color.NRGBA{R: 190, G: 40, B: 40, A: 255}
	p.Add(line)
	if p.X.Max <= p.X.Min {
		p.X.Min, p.X.Max = p.X.Min-1, p.X.Max+1
	}
	if p.Y.Max <= p.Y.Min {
		p.Y.Min, p.Y.Max = p.Y.Min-1, p.Y.Max+1
	}
	p.X.Max += 0.15 * (p.X.Max - p.X.Min) // for the names
	return canvas(w, 480, 340, ext, func(c draw.Canvas) { p.Draw(draw.Crop(c, 4, -8, 4, -4)) })
}
