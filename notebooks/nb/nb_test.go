package nb

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"drift/models"
)

// TestDisplay plays the kernel: it gets the picture, then the request for a sync, and answers.
func TestDisplay(t *testing.T) {
	to, from := filepath.Join(t.TempDir(), "to"), filepath.Join(t.TempDir(), "from")
	for _, p := range []string{to, from} {
		if err := syscall.Mkfifo(p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GONB_PIPE", to)
	t.Setenv("GONB_PIPE_BACK", from)
	got := make(chan []byte, 2)
	done := make(chan error, 1)
	go func() {
		r, err := os.Open(to)
		if err != nil {
			done <- err
			return
		}
		w, err := os.OpenFile(from, os.O_WRONLY, 0)
		if err != nil {
			done <- err
			return
		}
		dec, enc := gob.NewDecoder(r), gob.NewEncoder(w)
		for range 2 {
			var d, s displayData
			if err := dec.Decode(&d); err != nil {
				done <- err
				return
			}
			got <- d.Data["image/png"].([]byte)
			if err := dec.Decode(&s); err != nil {
				done <- err
				return
			}
			v := s.Data["gonb/comm_value"].(commValue)
			for _, answer := range []commValue{{Address: "#gonbui/sync_ack", Value: -1}, {Address: "#gonbui/sync_ack", Value: v.Value}} {
				if err := enc.Encode(answer); err != nil {
					done <- err
					return
				}
			}
		}
		done <- nil
	}()
	Show(image.NewGray(image.Rect(0, 0, 3, 2)), image.NewGray(image.Rect(0, 0, 4, 1)))
	f := Plot("a", "b", "c")
	f.Line("l", []float64{0, 1}, []float64{1, 2})
	Show(f)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	m, err := png.Decode(bytes.NewReader(<-got))
	if err != nil || m.Bounds() != image.Rect(0, 0, 7, 2) {
		t.Fatalf("two pictures side by side: %v, %v", m, err)
	}
	if r, _, _, _ := m.At(5, 1).RGBA(); r != 0xffff {
		t.Error("the ground is not white")
	}
	if m, err = png.Decode(bytes.NewReader(<-got)); err != nil || m.Bounds().Dx() < 400 {
		t.Errorf("a plot: %v, %v", m.Bounds(), err)
	}
}

// TestEncode: grey pictures keep every value, pictures of few colours too, others come near.
func TestEncode(t *testing.T) {
	grey, few, many := image.NewRGBA(image.Rect(2, 3, 18, 19)), image.NewRGBA(image.Rect(0, 0, 16, 16)), image.NewRGBA(image.Rect(0, 0, 32, 32))
	for i := range 256 {
		grey.Set(2+i%16, 3+i/16, color.Gray{uint8(i)})
		few.Set(i%16, i/16, color.RGBA{uint8(i % 7 * 30), 0, uint8(i % 3 * 90), 255})
	}
	for i := range 1024 {
		many.Set(i%32, i/32, color.RGBA{uint8(i % 32 * 8), uint8(i / 32 * 8), 100, 255})
	}
	for name, c := range map[string]struct {
		m   image.Image
		tol int
	}{"grey": {grey, 0}, "few": {few, 0}, "many": {many, 32}} {
		b, err := Encode(c.m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := png.Decode(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if _, isGrey := got.(*image.Gray); isGrey != (name == "grey") {
			t.Errorf("%s became %T", name, got)
		}
		lo := c.m.Bounds().Min
		for y := range c.m.Bounds().Dy() {
			for x := range c.m.Bounds().Dx() {
				a, b := color.RGBAModel.Convert(c.m.At(lo.X+x, lo.Y+y)).(color.RGBA), color.RGBAModel.Convert(got.At(x, y)).(color.RGBA)
				if d := max(abs(int(a.R)-int(b.R)), abs(int(a.G)-int(b.G)), abs(int(a.B)-int(b.B))); d > c.tol {
					t.Fatalf("%s: (%d,%d) is %v, was %v", name, x, y, b, a)
				}
			}
		}
	}
}

func abs(i int) int { return max(i, -i) }

func TestSheet(t *testing.T) {
	x := models.New(3, 1, 4, 5) // grey, in the middle of [-1, 1]
	models.Data(x)[0] = 1
	m := Sheet(Strip{X: x}, Strip{X: x})
	if got, want := m.Bounds(), image.Rect(0, 0, 3*17+2, 2*14+2); got != want {
		t.Fatalf("bounds %v, want %v", got, want)
	}
	for _, c := range []struct {
		x, y int
		want uint8
	}{{0, 0, 255}, {2, 2, 255}, {4, 4, 255}, {5, 2, 128}, {16, 13, 128}, {17, 2, 255}, {2, 16, 255}, {5, 16, 128}} {
		if got := color.GrayModel.Convert(m.At(c.x, c.y)).(color.Gray).Y; got != c.want {
			t.Errorf("(%d,%d) is %d, want %d", c.x, c.y, got, c.want)
		}
	}
	if wide := Sheet(Strip{Label: "abc", X: x}).Bounds().Dx(); wide != 3*17+2+5*glyph {
		t.Errorf("with a label %d wide", wide)
	}
	for _, bad := range [][]Strip{nil, {{X: models.New(3, 4)}}, {{X: x}, {X: models.New(1, 1, 4, 4)}}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v was drawn", bad)
				}
			}()
			Sheet(bad...)
		}()
	}
}

func TestFilm(t *testing.T) {
	var f Film
	if f.Frames() != nil {
		t.Error("frames of nothing")
	}
	x := models.Wrap([]float64{1, 2, 3, 4}, 2, 2)
	f.Add(x, 1)
	models.Data(x)[2] = 7
	f.Add(x, 1)
	if got := f.Frames(); got.Shape()[0] != 2 || models.Data(got)[0] != 3 || models.Data(got)[2] != 7 {
		t.Errorf("frames %v", got)
	}
	if got := RMS(x, models.Wrap([]float64{1, 2, 7, 6}, 2, 2)); got != 1 {
		t.Errorf("rms %g, want 1", got)
	}
	e := Enlarge(models.Wrap([]float64{1, 2, 3, 4, 5, 6, 7, 8}, 2, 1, 2, 2), 2)
	if got, want := fmt.Sprint(e.Shape(), models.Data(e)[16:]), "(2, 1, 4, 4) [5 5 6 6 5 5 6 6 7 7 8 8 7 7 8 8]"; got != want {
		t.Errorf("enlarged %s, want %s", got, want)
	}
	if r := Rows(5, 3); len(r) != 3 || r[2].Seed != 7 || r[2].Particle != 0 {
		t.Errorf("rows %v", r)
	}
}

// TestFigure: every curve has its colour, and a density has the mass of what lies between its ends.
func TestFigure(t *testing.T) {
	f := Plot("all", "x", "y")
	f.Line("", []float64{1, 10}, []float64{1, 100})
	f.Steps("steps", []float64{1, 10}, []float64{2, 50})
	f.Dots("dots", []float64{3}, []float64{4})
	f.Curve("curve", 1, 10, func(x float64) float64 { return x })
	f.Log(true, true)
	f.Image()
	if f.n != 4 {
		t.Errorf("%d colours used", f.n)
	}
	f = Plot("square", "", "")
	f.Dots("", []float64{0, 4}, []float64{1, 2})
	f.Square()
	if b := f.Image().Bounds(); f.Y.Min != -0.5 || f.Y.Max != 3.5 || b.Dx() != b.Dy() {
		t.Errorf("a square of %v, y from %g to %g", b, f.Y.Min, f.Y.Max)
	}
	if f.n != 1 {
		t.Errorf("%d colours used", f.n)
	}
	for _, tick := range decades(0.4, 30) {
		if tick.Value < 0.4*(1-1e-9) || tick.Value > 30 {
			t.Errorf("a tick at %g", tick.Value)
		}
	}
	for _, c := range []struct {
		lo, hi float64
		want   string
	}{{0, 1, "0 0.2 0.4 0.6 0.8 1"}, {-5, 5, "-4 -2 0 2 4"}, {0.31, 0.42, "0.32 0.34 0.36 0.38 0.4 0.42"}, {1, 15, "2 4 6 8 10 12 14"}} {
		var got []string
		for _, tick := range linear(c.lo, c.hi) {
			got = append(got, tick.Label)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("ticks of %g to %g: %v, want %s", c.lo, c.hi, got, c.want)
		}
	}
	if h := histogram([]float64{0.1, 0.2, 0.9, 2}, []float64{1, 1, 1, 1}, 0, 1, 2); h[0] != 1 || h[1] != 0.5 {
		t.Errorf("densities %v, want 1 and 0.5", h)
	}
	if h := histogram([]float64{0.1, 0.9}, nil, 0, 1, 2); math.Abs(h[0]-1) > 1e-15 || h[0] != h[1] {
		t.Errorf("densities %v, want 1 and 1", h)
	}
}
