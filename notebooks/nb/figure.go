package nb

import (
	"fmt"
	"image"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// colours are those of Okabe and Ito, which colour-blind readers can tell apart.
var colours = []color.NRGBA{
	{0x00, 0x72, 0xb2, 255}, {0xd5, 0x5e, 0x00, 255}, {0x00, 0x9e, 0x73, 255}, {0xcc, 0x79, 0xa7, 255},
	{0x56, 0xb4, 0xe9, 255}, {0xe6, 0x9f, 0x00, 255}, {0x40, 0x40, 0x40, 255},
}

// Figure is a plot of gonum, whose curves have colours one after the other.
type Figure struct {
	*plot.Plot
	n      int
	square bool
}

// Plot begins a figure.
func Plot(title, x, y string) *Figure {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.TextStyle.Font.Size, p.Title.Padding = vg.Points(11), vg.Points(5)
	p.X.Label.TextStyle.Font.Size, p.Y.Label.TextStyle.Font.Size = vg.Points(10), vg.Points(10)
	p.X.Tick.Label.Font.Size, p.Y.Tick.Label.Font.Size = vg.Points(9), vg.Points(9)
	p.Legend.TextStyle.Font.Size, p.Legend.Top = vg.Points(9), true
	p.Legend.Padding = vg.Points(1)
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.TickerFunc(linear), plot.TickerFunc(linear)
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{0xe4}, color.Gray{0xe4}
	p.Add(grid)
	return &Figure{Plot: p}
}

func (f *Figure) colour() color.NRGBA {
	f.n++
	return colours[(f.n-1)%len(colours)]
}

func points(x, y []float64) plotter.XYs {
	if len(x) != len(y) {
		panic(fmt.Sprintf("nb: %d x and %d y", len(x), len(y)))
	}
	out := make(plotter.XYs, len(x))
	for i := range x {
		out[i] = plotter.XY{X: x[i], Y: y[i]}
	}
	return out
}

func (f *Figure) add(name string, p plot.Plotter) {
	f.Add(p)
	if t, ok := p.(plot.Thumbnailer); ok && name != "" {
		f.Legend.Add(name, t)
	}
}

// Line draws a line through the points.
func (f *Figure) Line(name string, x, y []float64) {
	l := Must(plotter.NewLine(points(x, y)))
	l.Color, l.Width = f.colour(), vg.Points(1.6)
	f.add(name, l)
}

// Steps draws a line with its points marked.
func (f *Figure) Steps(name string, x, y []float64) {
	c := f.colour()
	l, s, err := plotter.NewLinePoints(points(x, y))
	Check(err)
	l.Color, l.Width = c, vg.Points(1.2)
	s.Color, s.Shape, s.Radius = c, draw.CircleGlyph{}, vg.Points(2.2)
	f.Add(l, s)
	if name != "" {
		f.Legend.Add(name, l, s)
	}
}

// Dots draws points.
func (f *Figure) Dots(name string, x, y []float64) {
	s := Must(plotter.NewScatter(points(x, y)))
	c := f.colour()
	c.A = 150
	s.Color, s.Shape, s.Radius = c, draw.CircleGlyph{}, vg.Points(1.4)
	f.Add(s)
	if name != "" { // a dot of the size of the others would hardly be seen
		key := *s
		key.Radius = vg.Points(3)
		f.Legend.Add(name, &key)
	}
}

// Curve draws a function between two ends.
func (f *Figure) Curve(name string, lo, hi float64, y func(x float64) float64) {
	const n = 300
	xs, ys := make([]float64, n+1), make([]float64, n+1)
	for i := range xs {
		xs[i] = lo + (hi-lo)*float64(i)/n
		ys[i] = y(xs[i])
	}
	f.Line(name, xs, ys)
}

// Density draws a histogram of weighted values (nil: equal weights) as a density, in bins between two ends; values outside
// count in the total.
func (f *Figure) Density(name string, x, w []float64, lo, hi float64, bins int) {
	width := (hi - lo) / float64(bins)
	outline := plotter.XYs{{X: lo, Y: 0}}
	for b, y := range histogram(x, w, lo, hi, bins) {
		outline = append(outline, plotter.XY{X: lo + float64(b)*width, Y: y}, plotter.XY{X: lo + float64(b+1)*width, Y: y})
	}
	p := Must(plotter.NewPolygon(append(outline, plotter.XY{X: hi, Y: 0})))
	c := f.colour()
	p.LineStyle = draw.LineStyle{Color: c, Width: vg.Points(0.8)}
	c.A = 70
	p.Color = c
	f.add(name, p)
}

func histogram(x, w []float64, lo, hi float64, bins int) []float64 {
	h, total := make([]float64, bins), 0.0
	for i, v := range x {
		weight := 1.0
		if w != nil {
			weight = w[i]
		}
		total += weight
		if b := int(math.Floor((v - lo) / (hi - lo) * float64(bins))); b >= 0 && b < bins {
			h[b] += weight
		}
	}
	for b := range h {
		h[b] /= total * (hi - lo) / float64(bins)
	}
	return h
}

// Log makes the axes logarithmic, with ticks at 1, 2 and 5 in every decade.
func (f *Figure) Log(x, y bool) {
	if x {
		f.X.Scale, f.X.Tick.Marker = plot.LogScale{}, plot.TickerFunc(decades)
	}
	if y {
		f.Y.Scale, f.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(decades)
	}
}

// linear has five to nine ticks in steps of 1, 2 or 5.
func linear(lo, hi float64) []plot.Tick {
	unit := math.Pow(10, math.Floor(math.Log10((hi-lo)/5)))
	step := unit
	for _, m := range []float64{1, 2, 5} {
		if (hi-lo)/(m*unit) >= 4 {
			step = m * unit
		}
	}
	var out []plot.Tick
	for k := math.Ceil(lo/step - 1e-9); k*step <= hi+1e-9*step; k++ {
		v := k*step + 0 // not -0
		out = append(out, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'g', 6, 64)})
	}
	return out
}

func decades(lo, hi float64) []plot.Tick {
	var out []plot.Tick
	wide := math.Log10(hi/lo) > 2.5
	for e := math.Floor(math.Log10(lo)); e <= math.Ceil(math.Log10(hi)); e++ {
		for d := 1.0; d < 10; d++ {
			v := d * math.Pow(10, e)
			if v < lo*(1-1e-9) || v > hi*(1+1e-9) {
				continue
			}
			label := ""
			if d == 1 || !wide && (d == 2 || d == 5) {
				label = fmt.Sprintf("%.6g", v)
			}
			out = append(out, plot.Tick{Value: v, Label: label})
		}
	}
	return out
}

// Square gives both axes one scale and the figure the form of a square, of which three fit side by side.
func (f *Figure) Square() {
	r := max(f.X.Max-f.X.Min, f.Y.Max-f.Y.Min) / 2
	x, y := (f.X.Max+f.X.Min)/2, (f.Y.Max+f.Y.Min)/2
	f.X.Min, f.X.Max, f.Y.Min, f.Y.Max, f.square = x-r, x+r, y-r, y+r, true
}

// Image draws the figure.
func (f *Figure) Image() image.Image {
	w := 13 * vg.Centimeter
	if f.square {
		w = 8.6 * vg.Centimeter
	}
	c := vgimg.NewWith(vgimg.UseWH(w, 8.6*vg.Centimeter), vgimg.UseDPI(100))
	f.Draw(draw.Crop(draw.New(c), 5, -10, 5, -5))
	return c.Image()
}
