// Package genealogy draws who descends from whom in a population of particles: a still picture, or one that grows check by
// check (an animated PNG).
package genealogy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	vgdraw "gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"

	"drift/internal/pixels"
)

// Family is a population over its checks.
type Family struct {
	Title     string
	Particles int
	Shape     []int // of a picture, nil where particles are none
	Checks    []Check
}

// Check is a weighting of the particles, and what followed.
type Check struct {
	Step       int
	Parents    []int     // the particle that each goes on from
	LogWeights []float64 // before that; nil: equal
	Rewards    []float64
	X0         []float32 // the estimates that were scored, before; nil: none
	ESS        float64
}

const (
	left, top, bottom = 40, 26, 30
	mostFrames        = 40
)

// layout is where things stand, in pixels.
type layout struct {
	f          Family
	row, col   float64
	thumb      int
	w, h       int
	rootsAfter [][]int // start particle of every slot after check i; first: before all
}

func newLayout(f Family) layout {
	l := layout{f: f}
	n := len(f.Checks)
	l.row = min(18, max(2, 560/float64(f.Particles)))
	if f.Shape != nil && f.Particles <= 24 {
		l.thumb = 28
		l.row = 30
	}
	l.col = min(36, max(3, 640/float64(n+1)))
	l.w = left + int(l.col*float64(n)) + 24 + l.thumb
	l.w = max(l.w, 240)
	l.h = top + bottom + int(l.row*float64(f.Particles))
	roots := make([]int, f.Particles)
	for j := range roots {
		roots[j] = j
	}
	l.rootsAfter = append(l.rootsAfter, roots)
	for _, c := range f.Checks {
		next := make([]int, f.Particles)
		for j := range next {
			next[j] = roots[c.Parents[j]]
		}
		roots = next
		l.rootsAfter = append(l.rootsAfter, roots)
	}
	return l
}

func (l layout) x(i int) float64 { return left + l.col*float64(i) }
func (l layout) y(j int) float64 { return top + l.row*(float64(j)+0.5) }

// hue is colour k of n.
func hue(k, n int) color.NRGBA {
	h := 6 * float64(k) / float64(max(n, 1))
	v := []float64{0.82, 0.6}[k%2]
	f := h - math.Floor(h)
	at := func(x float64) uint8 { return uint8(255 * x) }
	m, q, t := at(v), at(v*(1-f)), at(v*f)
	switch int(h) % 6 {
	case 0:
		return color.NRGBA{m, t, 0, 255}
	case 1:
		return color.NRGBA{q, m, 0, 255}
	case 2:
		return color.NRGBA{0, m, t, 255}
	case 3:
		return color.NRGBA{0, q, m, 255}
	case 4:
		return color.NRGBA{t, 0, m, 255}
	}
	return color.NRGBA{m, 0, q, 255}
}

// Draw draws the whole genealogy: what lives on in colours, by start particle, what died out in grey.
func Draw(f Family) image.Image { return newLayout(f).draw(len(f.Checks)) }

// draw draws the first n checks.
func (l layout) draw(n int) image.Image {
	f := l.f
	const dpi = 96
	size := func(v float64) vg.Length { return vg.Length(v) * vg.Inch / dpi }
	c := vgimg.NewWith(vgimg.UseWH(size(float64(l.w)), size(float64(l.h))), vgimg.UseDPI(dpi))
	at := func(x, y float64) vg.Point { return vg.Point{X: size(x), Y: size(float64(l.h) - y)} }
	stroke := func(col color.Color, width float64, p ...vg.Point) {
		var path vg.Path
		path.Move(p[0])
		for _, q := range p[1:] {
			path.Line(q)
		}
		c.SetColor(col)
		c.SetLineWidth(size(width))
		c.Stroke(path)
	}
	alive := make([][]bool, n+1) // has a descendant after check n
	alive[n] = make([]bool, f.Particles)
	for j := range alive[n] {
		alive[n][j] = true
	}
	for i := n - 1; i >= 0; i-- {
		alive[i] = make([]bool, f.Particles)
		for j, a := range f.Checks[i].Parents {
			alive[i][a] = alive[i][a] || alive[i+1][j]
		}
	}
	grey := color.NRGBA{205, 205, 205, 255}
	thick := min(2, max(0.8, l.row/6))
	for pass := range 2 { // the living on top
		for i := range n {
			for j, a := range f.Checks[i].Parents {
				col := color.Color(grey)
				if alive[i+1][j] {
					col = hue(l.rootsAfter[i][a], f.Particles)
				}
				if alive[i+1][j] == (pass == 1) {
					mid := l.x(i) + l.col*0.2
					stroke(col, thick, at(l.x(i), l.y(a)), at(mid, l.y(a)), at(l.x(i+1)-l.col*0.2, l.y(j)), at(l.x(i+1), l.y(j)))
				}
			}
		}
	}
	if l.row >= 5 {
		for i := range n {
			lw := f.Checks[i].LogWeights
			best := math.Inf(-1)
			for _, v := range lw {
				best = max(best, v)
			}
			for j := range f.Particles {
				r := l.row / 6
				if lw != nil && !math.IsInf(best, -1) {
					r = l.row / 3 * math.Sqrt(math.Exp(lw[j]-best))
				}
				if r < 0.5 {
					continue
				}
				r = min(r, l.col/2.5)
				var path vg.Path
				path.Move(at(l.x(i)+r, l.y(j)))
				path.Arc(at(l.x(i), l.y(j)), size(r), 0, 2*math.Pi)
				c.SetColor(hue(l.rootsAfter[i][j], f.Particles))
				c.Fill(path)
			}
		}
	}
	write := func(x, y float64, s string) {
		sty := text.Style{Color: color.Black, Font: font.From(plot.DefaultFont, 9), Handler: plot.DefaultTextHandler}
		canvas := vgdraw.New(c)
		canvas.FillText(sty, at(x, y), s)
	}
	title := f.Title
	if n > 0 {
		ch := f.Checks[n-1]
		seen := map[int]bool{}
		for _, r := range l.rootsAfter[n] {
			seen[r] = true
		}
		title += fmt.Sprintf("   step %d   ESS %.3g of %d   roots %d", ch.Step, ch.ESS, f.Particles, len(seen))
	}
	write(8, 16, title)
	write(left, float64(l.h)-8, "checks")
	every := max(1, int(math.Ceil(48/l.col)))
	for i := 0; i < len(f.Checks); i += every {
		if i > 0 || every*int(l.col) > 60 {
			write(l.x(i), float64(l.h)-18, fmt.Sprint(f.Checks[i].Step))
		}
	}
	out := image.NewNRGBA(image.Rect(0, 0, l.w, l.h))
	draw.Draw(out, out.Bounds(), image.White, image.Point{}, draw.Src)
	draw.Draw(out, out.Bounds(), c.Image(), image.Point{}, draw.Over)
	if l.thumb > 0 && n > 0 && f.Checks[n-1].X0 != nil {
		x0, w := f.Checks[n-1].X0, 1
		for _, d := range f.Shape {
			w *= d
		}
		parents := f.Checks[n-1].Parents
		for j := range f.Particles {
			v := make([]float64, w)
			for k := range v {
				v[k] = float64(x0[parents[j]*w+k])
			}
			b := make([]byte, w)
			pixels.Bytes(b, v, f.Shape, pixels.Floor)
			put(out, pixels.Image(b, f.Shape), int(l.x(n))+8, int(l.y(j))-l.thumb/2, l.thumb)
		}
	}
	return out
}

// put draws a picture in a square of the given size, nearest neighbours.
func put(dst *image.NRGBA, src image.Image, x, y, size int) {
	b := src.Bounds()
	for v := range size {
		for u := range size {
			dst.Set(x+u, y+v, src.At(b.Min.X+u*b.Dx()/size, b.Min.Y+v*b.Dy()/size))
		}
	}
}

// Animate writes an animated PNG (PNG third edition, section 11.3.4) of the genealogy growing; viewers without
// animation show the whole.
func Animate(w io.Writer, f Family) error {
	l := newLayout(f)
	n := len(f.Checks)
	var at []int
	for k := range min(n, mostFrames) {
		at = append(at, (k+1)*n/min(n, mostFrames))
	}
	if len(at) == 0 {
		return png.Encode(w, l.draw(0))
	}
	// The whole stands first, outside the animation, for viewers that know none.
	var frames [][]byte
	for _, k := range append([]int{n}, at...) {
		var b bytes.Buffer
		e := png.Encoder{CompressionLevel: png.BestSpeed}
		if err := e.Encode(&b, l.draw(k)); err != nil {
			return err
		}
		frames = append(frames, b.Bytes())
	}
	return join(w, frames, l.w, l.h)
}

// chunk writes one chunk.
func chunk(w io.Writer, kind string, data []byte) error {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	body := append([]byte(kind), data...)
	sum := binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(body))
	_, err := w.Write(append(append(head, body...), sum...))
	return err
}

// join makes one file of PNG files of equal size and colour type: the first is the still picture, the others are frames.
func join(w io.Writer, files [][]byte, width, height int) error {
	const signature = "\x89PNG\r\n\x1a\n"
	if _, err := io.WriteString(w, signature); err != nil {
		return err
	}
	sequence := uint32(0)
	var head []byte
	for i, f := range files {
		if i > 0 {
			c := binary.BigEndian.AppendUint32(nil, sequence)
			sequence++
			c = binary.BigEndian.AppendUint32(c, uint32(width))
			c = binary.BigEndian.AppendUint32(c, uint32(height))
			c = append(c, make([]byte, 8)...) // at 0, 0
			delay := uint16(120)
			if i == len(files)-1 {
				delay = 3000
			}
			c = binary.BigEndian.AppendUint16(c, delay)
			c = binary.BigEndian.AppendUint16(c, 1000)
			c = append(c, 0, 0) // leave it, replace
			if err := chunk(w, "fcTL", c); err != nil {
				return err
			}
		}
		for off := len(signature); off+12 <= len(f); {
			size := int(binary.BigEndian.Uint32(f[off:]))
			kind, data := string(f[off+4:off+8]), f[off+8:off+8+size]
			off += 12 + size
			var err error
			switch {
			case kind == "IHDR" && i == 0:
				head = data
				if err = chunk(w, kind, data); err == nil {
					c := binary.BigEndian.AppendUint32(nil, uint32(len(files)-1))
					err = chunk(w, "acTL", binary.BigEndian.AppendUint32(c, 0)) // for ever
				}
			case kind == "IHDR":
				if !bytes.Equal(head, data) {
					err = errors.New("genealogy: frames of different kinds")
				}
			case kind == "IDAT" && i == 0:
				err = chunk(w, kind, data)
			case kind == "IDAT":
				err = chunk(w, "fdAT", append(binary.BigEndian.AppendUint32(nil, sequence), data...))
				sequence++
			}
			if err != nil {
				return err
			}
		}
	}
	return chunk(w, "IEND", nil)
}
