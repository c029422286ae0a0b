// Package logo draws sequence logos (Schneider and Stephens 1990): a stack of letters at every position, as high as the
// information there, in which each letter has the share of its frequency,
//
//	R = log2 K - H - (K-1)/(2 n log 2) bits,  H the entropy of the n letters at the position.
package logo

import (
	"cmp"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"math"
	"slices"

	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/sfnt"
	"golang.org/x/image/math/fixed"
	"golang.org/x/image/vector"

	"drift/models/dna"
)

// Logo is one row of stacks.
type Logo struct {
	Title string
	First int         // number of the first position
	Freq  [][]float64 // (position, letter), each summing to 1
	N     int         // sequences it was made of
}

// Of counts letters of sequences of one length.
func Of(title string, first int, seqs [][]int, k int) Logo {
	l := Logo{Title: title, First: first, N: len(seqs)}
	if len(seqs) == 0 {
		return l
	}
	for p := range seqs[0] {
		f := make([]float64, k)
		for _, s := range seqs {
			f[s[p]] += 1 / float64(len(seqs))
		}
		l.Freq = append(l.Freq, f)
	}
	return l
}

// Bits is the information of position p, 0 at least.
func (l Logo) Bits(p int) float64 {
	f := l.Freq[p]
	r := math.Log2(float64(len(f))) - float64(len(f)-1)/(2*math.Ln2*float64(l.N))
	for _, v := range f {
		if v > 0 {
			r += v * math.Log2(v)
		}
	}
	return max(r, 0)
}

// The part of a sequence around a motif that a logo shows.
const (
	ahead, behind = 5, 50
	widest        = 120 // positions of a logo that is not aligned
)

// Sheet draws the logos of sequences: for every class of the DNA grammar its first motif with what comes after it, where
// the sequences hold it (a letter may differ); position by position, where they hold none.
func Sheet(seqs [][]int, letters string) (image.Image, error) {
	var all []Logo
	if letters == dna.Letters {
		for _, c := range dna.Classes() {
			m := c.First()
			var sites [][]int
			for _, s := range seqs {
				for p := ahead; p+behind <= len(s); p++ {
					if m.Mismatches(s[p:]) <= 1 {
						sites = append(sites, s[p-ahead:p+behind])
					}
				}
			}
			if len(sites) > 1 {
				all = append(all, Of(fmt.Sprintf("%s: aligned at %s (%s), %d sites", c.Name, m.Name, m.Consensus, len(sites)), -ahead, sites, len(letters)))
			}
		}
	}
	if len(all) == 0 {
		short := math.MaxInt
		for _, s := range seqs {
			short = min(short, len(s), widest)
		}
		cut := make([][]int, len(seqs))
		for i, s := range seqs {
			cut[i] = s[:short]
		}
		all = append(all, Of(fmt.Sprintf("%d sequences", len(seqs)), 1, cut, len(letters)))
	}
	return Draw(all, letters)
}

const (
	column, high    = 14, 110 // pixels of a position, and of log2 K bits
	left, over, gap = 46, 24, 26
)

var colours = map[byte]color.RGBA{'A': {0x10, 0x96, 0x18, 255}, 'C': {0x25, 0x5c, 0xd6, 255}, 'G': {0xf0, 0xa0, 0x10, 255}, 'T': {0xd6, 0x26, 0x1c, 255}}

// Draw draws logos below each other.
func Draw(all []Logo, letters string) (image.Image, error) {
	f, err := sfnt.Parse(gobold.TTF)
	if err != nil {
		return nil, fmt.Errorf("logo: %w", err)
	}
	wide := 0
	for _, l := range all {
		wide = max(wide, len(l.Freq), (7*len(l.Title))/column+1)
	}
	m := image.NewRGBA(image.Rect(0, 0, left+wide*column+10, len(all)*(over+high+gap)))
	draw.Draw(m, m.Rect, image.White, image.Point{}, draw.Src)
	grey := color.RGBA{0x60, 0x60, 0x60, 255}
	for i, l := range all {
		top := i*(over+high+gap) + over
		write(m, left, top-8, l.Title, color.Black)
		most := math.Log2(float64(len(letters)))
		for b := 0.0; b <= most; b++ {
			y := top + high - int(b/most*high)
			write(m, left-24, y+4, fmt.Sprint(b), grey)
			for x := left - 5; x < left; x++ {
				m.Set(x, y, grey)
			}
		}
		write(m, 4, top+high/4+4, "bits", grey)
		for x := left; x < left+len(l.Freq)*column; x++ {
			m.Set(x, top+high, grey)
		}
		for p, freq := range l.Freq {
			if n := l.First + p; n%10 == 0 {
				write(m, left+p*column, top+high+15, fmt.Sprint(n), grey)
			}
			order := make([]int, len(freq))
			for k := range order {
				order[k] = k
			}
			slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(freq[a], freq[b]) })
			y := float64(top + high)
			for _, k := range order { // the commonest on top
				h := freq[k] * l.Bits(p) / most * high
				if h >= 0.5 {
					if err := letter(m, f, letters[k], float64(left+p*column), y-h, column-1, h); err != nil {
						return nil, err
					}
				}
				y -= h
			}
		}
	}
	return m, nil
}

func write(m *image.RGBA, x, y int, text string, c color.Color) {
	d := font.Drawer{Dst: m, Src: image.NewUniform(c), Face: basicfont.Face7x13, Dot: fixed.P(x, y)}
	d.DrawString(text)
}

// letter fills a box with a letter, stretched.
func letter(m *image.RGBA, f *sfnt.Font, r byte, x, y, w, h float64) error {
	var b sfnt.Buffer
	g, err := f.GlyphIndex(&b, rune(r))
	if err != nil {
		return fmt.Errorf("logo: %w", err)
	}
	segs, err := f.LoadGlyph(&b, g, fixed.I(1000), nil)
	if err != nil {
		return fmt.Errorf("logo: %w", err)
	}
	box := segs.Bounds()
	sx := w / float64(box.Max.X-box.Min.X)
	sy := h / float64(box.Max.Y-box.Min.Y)
	at := func(p fixed.Point26_6) (float32, float32) {
		return float32(float64(p.X-box.Min.X) * sx), float32(float64(p.Y-box.Min.Y)*sy + y - math.Floor(y))
	}
	z := vector.NewRasterizer(int(w)+1, int(h)+2)
	for _, s := range segs {
		ax, ay := at(s.Args[0])
		bx, by := at(s.Args[1])
		cx, cy := at(s.Args[2])
		switch s.Op {
		case sfnt.SegmentOpMoveTo:
			z.MoveTo(ax, ay)
		case sfnt.SegmentOpLineTo:
			z.LineTo(ax, ay)
		case sfnt.SegmentOpQuadTo:
			z.QuadTo(ax, ay, bx, by)
		case sfnt.SegmentOpCubeTo:
			z.CubeTo(ax, ay, bx, by, cx, cy)
		}
	}
	z.ClosePath()
	c, ok := colours[r]
	if !ok {
		c = color.RGBA{uint8(37 * r), uint8(91 * r), uint8(53 * r), 255}
	}
	x0, y0 := int(x), int(math.Floor(y))
	z.Draw(m, image.Rect(x0, y0, x0+int(w)+1, y0+int(h)+2), image.NewUniform(c), image.Point{})
	return nil
}
