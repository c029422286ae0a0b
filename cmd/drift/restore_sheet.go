package main

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"os"
	"path/filepath"

	"github.com/disintegration/imaging"
	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"

	"drift/cmd/drift/internal/output"
	"drift/internal/operators"
	"drift/internal/pixels"
)

// savePicture writes x of shape (C, H, W) as a PNG in the run's folder.
func (r *restoring) savePicture(name string, x []float64, shape []int) error {
	name = filepath.Join(r.path, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return err
	}
	return output.Write(name, func(w io.Writer) error { return png.Encode(w, r.image(x, shape)) })
}

func (r *restoring) image(x []float64, shape []int) image.Image {
	b := make([]byte, len(x))
	pixels.Bytes(b, x, shape, pixels.Rounding(r.desc.Rounding))
	return pixels.Image(b, shape)
}

// measured is what was measured as a picture, or nil.
func (r *restoring) measured(in *subject) (pix []float64, shape []int) {
	if p, ok := r.op.(operators.Pictured); ok {
		return p.Picture(in.y.Y)
	}
	if pixels.Picture(r.op.Out()) {
		return in.y.Y, r.op.Out()
	}
	return nil, nil
}

const (
	cellSide = 96 // of a contact sheet, at least
	gap      = 4
	lineText = 16 // height of a line of text
)

// sheets draws, for every input, a contact sheet and the spread of every method.
func (r *restoring) sheets(all [][]*drawn, spreads [][][]float64) error {
	for k, in := range r.inputs {
		top := 0.0
		for i := range r.methods {
			for _, v := range spreads[i][k] {
				top = max(top, v)
			}
		}
		suffix := ""
		if len(r.inputs) > 1 {
			suffix = fmt.Sprintf("-%04d", in.place)
		}
		var spread []image.Image
		for i, m := range r.methods {
			v := make([]float64, len(spreads[i][k]))
			for j, s := range spreads[i][k] {
				v[j] = 2*s/max(top, 1e-12) - 1 // white is the largest of all methods
			}
			spread = append(spread, r.image(v, r.info.Shape))
			if err := r.savePicture(filepath.Join("spread", m.slug+suffix+".png"), v, r.info.Shape); err != nil {
				return err
			}
		}
		sheet := r.contact(in, k, all, spread, top)
		name := filepath.Join(r.path, "sheet"+suffix+".png")
		if err := output.Write(name, func(w io.Writer) error { return png.Encode(w, sheet) }); err != nil {
			return err
		}
		r.stored([]string{name})
	}
	return nil
}

// contact is one line per method (one per particle, where a seed has several), one column per seed; left what is true
// and what was measured, right the spread over the samples.
func (r *restoring) contact(in *subject, k int, all [][]*drawn, spread []image.Image, top float64) image.Image {
	shape := r.info.Shape
	n := operators.Size(shape)
	scale := max(1, (cellSide+max(shape[1], shape[2])-1)/max(shape[1], shape[2]))
	cw, ch := shape[2]*scale, shape[1]*scale
	lines := 0
	for _, m := range r.methods {
		lines += m.group
	}
	cols := len(r.seeds) + 3
	w, h := cols*(cw+gap)+gap+2*gap, lineText+lines*(ch+gap+lineText)+gap
	out := image.NewNRGBA(image.Rect(0, 0, w, h))
	draw.Draw(out, out.Bounds(), image.NewUniform(color.Gray{32}), image.Point{}, draw.Src)
	left := func(col int) int {
		x := gap + col*(cw+gap)
		if col >= 2 {
			x += gap
		}
		if col >= cols-1 {
			x += gap
		}
		return x
	}
	cell := func(col, y int, m image.Image) {
		b := m.Bounds()
		tw, th := cw, ch
		if b.Dx()*ch > b.Dy()*cw { // fit, sides in proportion
			th = max(1, b.Dy()*cw/b.Dx())
		} else {
			tw = max(1, b.Dx()*ch/b.Dy())
		}
		m = imaging.Resize(m, tw, th, imaging.NearestNeighbor)
		at := image.Pt(left(col)+(cw-tw)/2, y+(ch-th)/2)
		draw.Draw(out, image.Rectangle{at, at.Add(image.Pt(tw, th))}, m, image.Point{}, draw.Src)
	}
	write(out, left(0), lineText-4, cw, "truth")
	write(out, left(1), lineText-4, cw, "measured")
	for c, s := range r.seeds {
		write(out, left(2+c), lineText-4, cw, fmt.Sprintf("seed %d", s))
	}
	write(out, left(cols-1), lineText-4, cw, fmt.Sprintf("sd, white %.2f", top))
	y := lineText
	for i, m := range r.methods {
		for j := range m.group {
			text := m.text
			if m.group > 1 {
				text += fmt.Sprintf(", particle %d", j)
			}
			write(out, left(0), y+lineText-4, w, text)
			y += lineText
			if in.truth != nil {
				cell(0, y, r.image(in.truth, shape))
			}
			if pix, s := r.measured(in); pix != nil {
				cell(1, y, r.image(pix, s))
			}
			for c := range r.seeds {
				row := c*m.group + j
				cell(2+c, y, r.image(all[i][k].x[row*n:(row+1)*n], shape))
			}
			if j == 0 {
				cell(cols-1, y, spread[i])
			}
			y += ch + gap
		}
	}
	return out
}

// write draws a text in white, cut to a width.
func write(dst draw.Image, x, y, width int, text string) {
	if most := width / basicfont.Face7x13.Advance; len(text) > most {
		text = text[:most]
	}
	d := font.Drawer{Dst: dst, Src: image.White, Face: basicfont.Face7x13, Dot: fixed.P(x, y)}
	d.DrawString(text)
}
