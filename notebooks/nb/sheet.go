package nb

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"math"
	"sync"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gomono"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
	"gorgonia.org/tensor"

	"drift/internal/pixels"
	"drift/models"
)

// Strip is a row of pictures with a label before it.
type Strip struct {
	Label string
	X     *tensor.Dense // (n, C, H, W) with values in [-1, 1], C 1 or 3
}

const (
	gap   = 2
	glyph = 8 // width of a letter
)

// Sheet draws strips below each other, on white, enlarged to about the width of a page. All strips hold pictures of one
// shape.
func Sheet(strips ...Strip) image.Image {
	if len(strips) == 0 {
		panic("nb: a sheet of nothing")
	}
	first := strips[0].X.Shape()
	if len(first) != 4 || !pixels.Picture(first[1:]) {
		panic(fmt.Sprintf("nb: shape %v is not one of pictures", first))
	}
	h, w := first[2], first[3]
	left, most := 0, 0
	for _, s := range strips {
		shape := s.X.Shape()
		if len(shape) != 4 || !pixels.Picture(shape[1:]) || shape[2] != h || shape[3] != w {
			panic(fmt.Sprintf("nb: pictures of shape %v beside those of %v", shape, first))
		}
		left, most = max(left, glyph*len(s.Label)), max(most, shape[0])
	}
	if left > 0 {
		left += 2 * glyph
	}
	zoom := max(1, min(3, (1020-left)/(most*(w+1))))
	m := image.NewRGBA(image.Rect(0, 0, left+most*(zoom*w+gap)+gap, len(strips)*(zoom*h+gap)+gap))
	draw.Draw(m, m.Rect, image.White, image.Point{}, draw.Src)
	for i, s := range strips {
		y := gap + i*(zoom*h+gap)
		write(m, glyph, y+zoom*h/2+4, s.Label)
		c := s.X.Shape()[1]
		x, size := s.X.Data().([]float64), c*h*w
		b := make([]byte, size)
		for j := range s.X.Shape()[0] {
			pixels.Bytes(b, x[j*size:(j+1)*size], []int{c, h, w}, "")
			paste(m, left+gap+j*(zoom*w+gap), y, pixels.Image(b, []int{c, h, w}), zoom)
		}
	}
	return m
}

// paste copies a picture, every pixel as a square of zoom.
func paste(m *image.RGBA, x, y int, p image.Image, zoom int) {
	for j := range p.Bounds().Dy() {
		for i := range p.Bounds().Dx() {
			r := image.Rect(x+i*zoom, y+j*zoom, x+(i+1)*zoom, y+(j+1)*zoom)
			draw.Draw(m, r, image.NewUniform(p.At(i, j)), image.Point{}, draw.Src)
		}
	}
}

// face is a font in which every letter is glyph wide.
var face = sync.OnceValue(func() font.Face {
	f := Must(opentype.Parse(gomono.TTF))
	return Must(opentype.NewFace(f, &opentype.FaceOptions{Size: 13, DPI: 72, Hinting: font.HintingFull}))
})

func write(m *image.RGBA, x, y int, text string) {
	d := font.Drawer{Dst: m, Src: image.NewUniform(color.Black), Face: face(), Dot: fixed.P(x, y)}
	d.DrawString(text)
}

// Beside puts pictures side by side on white.
func Beside(pictures ...image.Image) image.Image {
	if len(pictures) == 1 {
		return pictures[0]
	}
	w, h := 0, 0
	for _, p := range pictures {
		w, h = w+p.Bounds().Dx(), max(h, p.Bounds().Dy())
	}
	m := image.NewRGBA(image.Rect(0, 0, w, h))
	draw.Draw(m, m.Rect, image.White, image.Point{}, draw.Src)
	x := 0
	for _, p := range pictures {
		draw.Draw(m, image.Rect(x, 0, x+p.Bounds().Dx(), p.Bounds().Dy()), p, p.Bounds().Min, draw.Src)
		x += p.Bounds().Dx()
	}
	return m
}

// Film collects one row of a batch at several moments.
type Film struct {
	frames []float64
	shape  tensor.Shape
}

// Add copies a row of x, which may change afterwards.
func (f *Film) Add(x *tensor.Dense, row int) {
	d, n := models.Data(x), x.Shape()[0]
	size := len(d) / n
	f.frames = append(f.frames, d[row*size:(row+1)*size]...)
	f.shape = x.Shape().Clone()
}

// Frames is a batch of all that was added, nil before the first.
func (f *Film) Frames() *tensor.Dense {
	if f.shape == nil {
		return nil
	}
	shape := append([]int{}, f.shape...)
	shape[0] = len(f.frames) / tensor.Shape(f.shape[1:]).TotalSize()
	return models.Wrap(f.frames, shape...)
}

// RMS is the root mean square of the differences of two batches of one shape.
func RMS(a, b *tensor.Dense) float64 {
	x, y := models.Data(a), models.Data(b)
	if len(x) != len(y) {
		panic(fmt.Sprintf("nb: shapes %v and %v", a.Shape(), b.Shape()))
	}
	sum := 0.0
	for i := range x {
		sum += (x[i] - y[i]) * (x[i] - y[i])
	}
	return math.Sqrt(sum / float64(len(x)))
}

// Enlarge repeats every pixel of pictures k times in both directions, to show small ones beside larger ones.
func Enlarge(x *tensor.Dense, k int) *tensor.Dense {
	s := x.Shape()
	h, w := s[2], s[3]
	out := models.New(s[0], s[1], k*h, k*w)
	for i, d := 0, models.Data(out); i < len(d); i++ {
		p, y, x0 := i/(k*h*k*w), i/(k*w)%(k*h)/k, i%(k*w)/k
		d[i] = models.Data(x)[(p*h+y)*w+x0]
	}
	return out
}
