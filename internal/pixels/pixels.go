// Package pixels turns network arrays (C, H, W in [-1, 1]) into 8-bit pictures and back.
package pixels

import (
	"fmt"
	"image"
	"image/color"
	"math"

	"github.com/disintegration/imaging"
)

// Rounding is a rule from x in [-1, 1] to 0..255.
type Rounding string

// The rules.
const (
	Floor     Rounding = "floor"     // clamp(floor(127.5 x + 128)), as EDM does; the default ("" is the same)
	Diffusers Rounding = "diffusers" // round(255 clamp(x/2 + 1/2)), half to even
)

// ParseRounding reads the name of a rule.
func ParseRounding(s string) (Rounding, error) {
	switch r := Rounding(s); r {
	case "", "edm":
		return Floor, nil
	case Floor, Diffusers:
		return r, nil
	}
	return "", fmt.Errorf("unknown rounding %q; known: %s, %s", s, Floor, Diffusers)
}

// Byte rounds one value. What is not a number becomes 0.
func (r Rounding) Byte(x float64) byte {
	if r == Diffusers {
		x = math.RoundToEven(255 * min(max(x/2+0.5, 0), 1))
	} else {
		x = math.Floor(float64(127.5*x) + 128)
	}
	if !(x > 0) {
		return 0
	}
	return byte(min(x, 255))
}

// Picture tells whether rows of the given shape are pictures: (1 or 3, H, W).
func Picture(shape []int) bool {
	return len(shape) == 3 && (shape[0] == 1 || shape[0] == 3) && shape[1] > 0 && shape[2] > 0
}

// Bytes writes the picture x of shape (C, H, W) into dst as (H, W, C).
func Bytes(dst []byte, x []float64, shape []int, r Rounding) {
	c, n := shape[0], shape[1]*shape[2]
	for k := range c {
		for j, v := range x[k*n : (k+1)*n] {
			dst[j*c+k] = r.Byte(v)
		}
	}
}

// Image makes a picture of bytes in (H, W, C): *image.Gray for one channel, *image.NRGBA for three.
func Image(b []byte, shape []int) image.Image {
	c, h, w := shape[0], shape[1], shape[2]
	if c == 1 {
		return &image.Gray{Pix: b, Stride: w, Rect: image.Rect(0, 0, w, h)}
	}
	m := image.NewNRGBA(image.Rect(0, 0, w, h))
	for j := range h * w {
		m.Pix[4*j], m.Pix[4*j+1], m.Pix[4*j+2], m.Pix[4*j+3] = b[3*j], b[3*j+1], b[3*j+2], 255
	}
	return m
}

// Array turns a picture into x = v/127.5 - 1 of shape (C, H, W), resized to H x W where it has another size (Lanczos,
// the middle cut out where the sides differ in proportion). It returns whether it was resized. Transparent parts lie
// on black.
func Array(m image.Image, shape []int) (x []float64, resized bool) {
	c, h, w := shape[0], shape[1], shape[2]
	if b := m.Bounds(); b.Dx() != w || b.Dy() != h {
		m, resized = imaging.Fill(m, w, h, imaging.Center, imaging.Lanczos), true
	}
	x = make([]float64, c*h*w)
	b := m.Bounds()
	for i := range h {
		for j := range w {
			at, k := m.At(b.Min.X+j, b.Min.Y+i), i*w+j
			if c == 1 {
				x[k] = float64(color.GrayModel.Convert(at).(color.Gray).Y)/127.5 - 1
				continue
			}
			r, g, bl, _ := at.RGBA()
			for n, v := range [3]uint32{r, g, bl} {
				x[n*h*w+k] = float64(v>>8)/127.5 - 1
			}
		}
	}
	return x, resized
}

// Mask turns a picture into a mask of h by w, 1 where it is light and 0 where it is dark (a grey of 128 is light), resized
// as Array does.
func Mask(m image.Image, h, w int) []float64 {
	if b := m.Bounds(); b.Dx() != w || b.Dy() != h {
		m = imaging.Fill(m, w, h, imaging.Center, imaging.Lanczos)
	}
	out := make([]float64, h*w)
	b := m.Bounds()
	for i := range out {
		if color.GrayModel.Convert(m.At(b.Min.X+i%w, b.Min.Y+i/w)).(color.Gray).Y >= 128 {
			out[i] = 1
		}
	}
	return out
}

// Sheet lays pictures of one shape, each as bytes in (H, W, C), out in rows of cols pictures. Cells without a picture
// are black.
func Sheet(pictures [][]byte, shape []int, cols, rows int) image.Image {
	c, h, w := shape[0], shape[1], shape[2]
	all := make([]byte, rows*h*cols*w*c)
	for i, p := range pictures {
		top, left := i/cols*h, i%cols*w
		for y := range h {
			copy(all[((top+y)*cols*w+left)*c:], p[y*w*c:(y+1)*w*c])
		}
	}
	return Image(all, []int{c, rows * h, cols * w})
}

// Middle is the inverse of Bytes as far as there is one: dst becomes values that every rule rounds to the bytes b, in the
// middle of those that Floor does.
func Middle(dst []float64, b []byte, shape []int) {
	c, n := shape[0], shape[1]*shape[2]
	for k := range c {
		for j := range n {
			dst[k*n+j] = (float64(b[j*c+k]) - 127.5) / 127.5
		}
	}
}
