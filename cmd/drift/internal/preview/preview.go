// Package preview draws pictures in a terminal: as sixels, by the protocols of kitty and iTerm2, as coloured half
// blocks, or as plain characters.
package preview

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"slices"
	"strings"

	"github.com/disintegration/imaging"
	"github.com/mattn/go-sixel"
	"github.com/soniakeys/quant/median"
)

var modes = []string{"sixel", "kitty", "iterm", "block", "ascii"}

// Modes returns the names of the ways to draw.
func Modes() []string { return slices.Clone(modes) }

// Detect guesses what a terminal can draw from its environment.
func Detect(env func(string) string) string {
	term := env("TERM")
	switch {
	case term == "dumb" || env("NO_COLOR") != "":
		return "ascii"
	case env("KITTY_WINDOW_ID") != "" || strings.Contains(term, "kitty") || strings.Contains(term, "ghostty"):
		return "kitty"
	case env("TERM_PROGRAM") == "iTerm.app" || env("TERM_PROGRAM") == "WezTerm":
		return "iterm"
	case strings.Contains(term, "sixel") || term == "foot" || term == "mlterm":
		return "sixel"
	}
	return "block"
}

// Draw draws m, followed by a line end. The modes of characters use at most columns columns (0 = 80); the others enlarge
// small pictures to about 256 pixels.
func Draw(w io.Writer, m image.Image, mode string, columns int) error {
	if columns <= 0 {
		columns = 80
	}
	b := m.Bounds()
	if b.Empty() {
		return nil
	}
	var out bytes.Buffer
	switch mode {
	case "sixel":
		p := quantise(enlarge(m))
		e := sixel.NewEncoder(&out)
		e.Colors = len(p.Palette) + 1 // more would name colours that are not defined
		if err := e.Encode(p); err != nil {
			return fmt.Errorf("preview: %w", err)
		}
	case "kitty":
		data, err := encode(m)
		if err != nil {
			return err
		}
		kitty(&out, data)
	case "iterm":
		data, err := encode(m)
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "\x1b]1337;File=inline=1;size=%d:%s\a", len(data), base64.StdEncoding.EncodeToString(data))
	case "block":
		blocks(&out, fit(m, columns, 1))
	case "ascii":
		ascii(&out, fit(m, columns, 0.5))
	default:
		return fmt.Errorf("preview: unknown way to draw %q; known: %s", mode, strings.Join(modes, ", "))
	}
	if mode != "block" && mode != "ascii" {
		out.WriteByte('\n')
	}
	_, err := w.Write(out.Bytes())
	return err
}

func enlarge(m image.Image) image.Image {
	b := m.Bounds()
	if k := 256 / max(b.Dx(), b.Dy()); k > 1 {
		return imaging.Resize(m, k*b.Dx(), k*b.Dy(), imaging.NearestNeighbor)
	}
	return m
}

// quantise reduces a picture to at most 254 colours.
func quantise(m image.Image) *image.Paletted {
	p := median.Quantizer(254).Paletted(m)
	draw.Draw(p, p.Bounds(), m, m.Bounds().Min, draw.Src)
	return p
}

func encode(m image.Image) ([]byte, error) {
	var b bytes.Buffer
	if err := png.Encode(&b, enlarge(m)); err != nil {
		return nil, fmt.Errorf("preview: %w", err)
	}
	return b.Bytes(), nil
}

// kitty sends a PNG (f=100) to be shown (a=T) in base64 chunks of 4096 bytes; m=1 says that more follows.
func kitty(out *bytes.Buffer, data []byte) {
	text := base64.StdEncoding.EncodeToString(data)
	for first := true; first || text != ""; first = false {
		n := min(4096, len(text))
		more := 0
		if n < len(text) {
			more = 1
		}
		if first {
			fmt.Fprintf(out, "\x1b_Ga=T,f=100,m=%d;%s\x1b\\", more, text[:n])
		} else {
			fmt.Fprintf(out, "\x1b_Gm=%d;%s\x1b\\", more, text[:n])
		}
		text = text[n:]
	}
}

// fit shrinks m to at most columns pixels wide, and its height by the factor tall on top.
func fit(m image.Image, columns int, tall float64) image.Image {
	b := m.Bounds()
	w := min(b.Dx(), columns)
	h := max(1, int(float64(b.Dy()*w)/float64(b.Dx())*tall+0.5))
	if w == b.Dx() && h == b.Dy() {
		return m
	}
	return imaging.Resize(m, w, h, imaging.Box)
}

// blocks draws two pixels in a cell: the upper as the colour of a half block, the lower as its background.
func blocks(out *bytes.Buffer, m image.Image) {
	b := m.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y += 2 {
		for x := b.Min.X; x < b.Max.X; x++ {
			up := color.NRGBAModel.Convert(m.At(x, y)).(color.NRGBA)
			fmt.Fprintf(out, "\x1b[38;2;%d;%d;%d", up.R, up.G, up.B)
			if y+1 < b.Max.Y {
				low := color.NRGBAModel.Convert(m.At(x, y+1)).(color.NRGBA)
				fmt.Fprintf(out, ";48;2;%d;%d;%d", low.R, low.G, low.B)
			}
			out.WriteString("m▀")
		}
		out.WriteString("\x1b[0m\n")
	}
}

// ascii draws darker pixels as thinner characters.
func ascii(out *bytes.Buffer, m image.Image) {
	const ramp = " .:-=+*#%@"
	b := m.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			g := color.GrayModel.Convert(m.At(x, y)).(color.Gray).Y
			out.WriteByte(ramp[int(g)*len(ramp)/256])
		}
		out.WriteByte('\n')
	}
}
