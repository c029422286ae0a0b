package logo

import (
	"image"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"drift/models/dna"
)

func TestBits(t *testing.T) {
	l := Logo{N: 1e9, Freq: [][]float64{{1, 0, 0, 0}, {0.25, 0.25, 0.25, 0.25}, {0.5, 0.5, 0, 0}}}
	for p, want := range []float64{2, 0, 1} {
		if got := l.Bits(p); math.Abs(got-want) > 1e-8 {
			t.Errorf("position %d has %g bits, want %g", p, got, want)
		}
	}
	l.N = 10
	if got, want := l.Bits(0), 2-3/(20*math.Ln2); math.Abs(got-want) > 1e-12 {
		t.Errorf("ten letters: %g bits, want %g", got, want)
	}
}

// TestSheet: sequences of the grammar give a logo per class whose first motif stands out, and the colour of its letters is
// there; sequences without motifs give one logo, position by position.
func TestSheet(t *testing.T) {
	var seqs [][]int
	for i := range 60 {
		seqs = append(seqs, dna.Generate(rand.New(rand.NewPCG(1, uint64(i))), i%4, 500))
	}
	m, err := Sheet(seqs, dna.Letters)
	if err != nil {
		t.Fatal(err)
	}
	if name := os.Getenv("DRIFT_LOGO"); name != "" { // to look at it
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := png.Encode(f, m); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := m.Bounds().Dy(), 4*(over+high+gap); got != want {
		t.Errorf("the sheet is %d high, want %d: four logos", got, want)
	}
	// The middle of the first column of TATAWAWR, aligned at position 0, is a high T.
	x, y := left+ahead*column+column/2, over+high/2
	if r, g, b, _ := m.At(x, y).RGBA(); r>>8 < 0xc0 || g>>8 > 0x60 || b>>8 > 0x60 {
		t.Errorf("the T of TATA is missing: colour %x %x %x", r>>8, g>>8, b>>8)
	}
	plain, err := Sheet([][]int{{0, 1, 2, 3}, {0, 1, 1, 3}, {0, 2, 2, 3}}, dna.Letters)
	if err != nil || plain.Bounds().Dy() != over+high+gap {
		t.Errorf("short sequences: %v, %v", plain.Bounds(), err)
	}
	if _, err := Sheet([][]int{{0, 1}}, "AB"); err != nil {
		t.Error(err)
	}
	var _ image.Image = plain
}
