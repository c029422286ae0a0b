package features

import (
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func savePNG(t *testing.T, path string, m image.Image) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(f, m); err != nil {
		t.Fatal(err)
	}
}

// Batches are bounded in bytes, whatever number of pictures is asked for.
func TestBatchBytes(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		savePNG(t, filepath.Join(dir, fmt.Sprintf("%d.png", i)), image.NewGray(image.Rect(0, 0, 6000, 6000)))
	}
	s, err := OpenSet(dir)
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	if err := s.Each(context.Background(), 64, true, func(m Images) error {
		sizes = append(sizes, m.N)
		return nil
	}); err != nil || !slices.Equal(sizes, []int{1, 1, 1}) {
		t.Errorf("batches of %v, %v", sizes, err)
	}
}

// A folder is known by what its pictures hold; links to pictures are pictures, and what cannot be opened is named.
func TestFolderIdentity(t *testing.T) {
	dir, away := t.TempDir(), filepath.Join(t.TempDir(), "away.png")
	digest := func() string {
		s, err := OpenSet(dir)
		if err != nil {
			t.Fatal(err)
		}
		return s.Digest()
	}
	m := image.NewGray(image.Rect(0, 0, 2, 2))
	savePNG(t, filepath.Join(dir, "a.png"), m)
	before := digest()
	m.Pix[0] = 9
	savePNG(t, away, m)
	if digest() != before {
		t.Error("the digest of the same files changed")
	}
	savePNG(t, filepath.Join(dir, "a.png"), m)
	if digest() == before {
		t.Error("other pictures, the same digest")
	}
	for name, to := range map[string]string{"b.png": away, "c.png": filepath.Join(dir, "nowhere")} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := OpenSet(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := s.Each(context.Background(), 8, false, func(m Images) error { n += m.N; return nil }); err != nil || n != 2 || len(s.Unreadable) != 1 {
		t.Errorf("%d pictures, %q unreadable, %v", n, s.Unreadable, err)
	}
}

// Transparency is left out of account: the colours of eight and sixteen bits
// are the same under any alpha.
func TestTransparent(t *testing.T) {
	dir := t.TempDir()
	eight, sixteen := image.NewNRGBA(image.Rect(0, 0, 3, 1)), image.NewNRGBA64(image.Rect(0, 0, 3, 1))
	for x, a := range []uint8{0, 1, 128} {
		eight.SetNRGBA(x, 0, color.NRGBA{R: 255, G: 128, B: 7, A: a})
		sixteen.SetNRGBA64(x, 0, color.NRGBA64{R: 255 * 257, G: 128 * 257, B: 7 * 257, A: uint16(a) * 257})
	}
	for name, m := range map[string]image.Image{"8.png": eight, "16.png": sixteen} {
		path := filepath.Join(dir, name)
		savePNG(t, path, m)
		got, err := readPNG(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := []uint8{255, 128, 7, 255, 128, 7, 255, 128, 7}; !slices.Equal(got.Pix, want) {
			t.Errorf("%s: %v, want %v", name, got.Pix, want)
		}
	}
}
