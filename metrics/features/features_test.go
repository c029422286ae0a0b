package features_test

import (
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"

	"drift/internal/kernels"
	"drift/internal/npz"
	"drift/internal/refuse"
	"drift/metrics"
	"drift/metrics/features"
)

func open(t testing.TB, name, resize string) features.Extractor {
	t.Helper()
	ex, err := features.Open(name, features.Options{Threads: 2, Tier: kernels.Detect(), Resize: resize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ex.Close)
	return ex
}

func embedded(t testing.TB, ex features.Extractor, name string) *features.Set {
	t.Helper()
	s, err := features.Embedded(ex, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// real100 is the first 100 test pictures of Fashion-MNIST.
func real100(t testing.TB) *features.Set {
	t.Helper()
	s, err := features.OpenSet("testdata/real-test-100.npz")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestRealPictures: bytes of real pictures give the features that torch computed of them (stored in 16 bits), and the
// classifier names them as well as it should.
func TestRealPictures(t *testing.T) {
	ctx := context.Background()
	ex := open(t, "fashion", "")
	rows, logits, id, err := real100(t).Rows(ctx, ex, true)
	if err != nil {
		t.Fatal(err)
	}
	want, _, _, err := embedded(t, ex, "test-10000").Rows(ctx, ex, true)
	if err != nil {
		t.Fatal(err)
	}
	n, d := rows.Dims()
	if n != 100 || d != 64 {
		t.Fatalf("%d rows of %d features", n, d)
	}
	a, b := make([]float64, d), make([]float64, d)
	for i := range n {
		rows.Row(a, i)
		want.Row(b, i)
		for j := range a {
			if math.Abs(a[j]-b[j]) > 1e-5+1e-3*math.Abs(b[j]) { // 16 bits have 11 of mantissa
				t.Fatalf("picture %d, feature %d: %g, torch %g", i, j, a[j], b[j])
			}
		}
	}
	right := 0
	l := make([]float64, 10)
	labels := real100(t).Labels
	for i := range n {
		logits.Row(l, i)
		best := 0
		for k := range l {
			if l[k] > l[best] {
				best = k
			}
		}
		if best == labels[i] {
			right++
		}
	}
	if right < 85 || right > 97 { // 0.9166 on all 10,000
		t.Errorf("%d of 100 pictures are named rightly", right)
	}
	if !strings.HasPrefix(id.Extractor, "fashion/sha256:") || id.Resize != "none v/127.5-1" {
		t.Errorf("identity %+v", id)
	}
}

// TestEmbeddedDistance: the test pictures against the training pictures, as torch and numpy computed it.
func TestEmbeddedDistance(t *testing.T) {
	ctx := context.Background()
	ex := open(t, "fashion", "")
	train, err := embedded(t, ex, "train-60000").Stats(ctx, ex, true)
	if err != nil {
		t.Fatal(err)
	}
	test, err := embedded(t, ex, "test-10000").Stats(ctx, ex, true)
	if err != nil {
		t.Fatal(err)
	}
	if train.N != 60000 || test.N != 10000 {
		t.Errorf("%d and %d samples", train.N, test.N)
	}
	r, err := metrics.CompareStats(train, test, false)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(r.Value-0.04595073240329839) > 2e-5 { // features in 16 bits
		t.Errorf("distance %v, want 0.045950732", r.Value)
	}
	if _, err := features.Embedded(ex, "nonesuch"); err == nil {
		t.Error("a reference that does not exist")
	}
	if _, err := features.Embedded(open(t, "pixels", ""), "train-60000"); err == nil {
		t.Error("the pixels have no embedded reference")
	}
}

func grey(w, h int, f func(x, y int) uint8) *image.Gray {
	m := image.NewGray(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			m.SetGray(x, y, color.Gray{Y: f(x, y)})
		}
	}
	return m
}

func save(t testing.TB, path string, m image.Image) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
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

// pattern is a picture that differs for every k.
func pattern(k int) *image.Gray {
	return grey(28, 28, func(x, y int) uint8 { return uint8(x*y*k + 7*x + 3*k) })
}

// TestFolder: grey, colour with equal channels and paletted files of the same picture are the same picture; a file that
// does not read is named and left out; strict makes it an error.
func TestFolder(t *testing.T) {
	ctx := context.Background()
	ex := open(t, "fashion", "")
	dir := t.TempDir()
	for k := range 5 {
		save(t, filepath.Join(dir, "000000", fmt.Sprintf("%06d.png", k)), pattern(k))
	}
	rgb := image.NewNRGBA(image.Rect(0, 0, 28, 28))
	var shades color.Palette
	for v := range 256 {
		shades = append(shades, color.Gray{Y: uint8(v)})
	}
	flat := image.NewPaletted(rgb.Rect, shades)
	for y := range 28 {
		for x := range 28 {
			rgb.Set(x, y, pattern(3).At(x, y))
			flat.SetColorIndex(x, y, pattern(3).GrayAt(x, y).Y)
		}
	}
	save(t, filepath.Join(dir, "a.png"), rgb)
	save(t, filepath.Join(dir, "b.png"), flat)
	s, err := features.OpenSet(dir)
	if err != nil {
		t.Fatal(err)
	}
	rows, _, _, err := s.Rows(ctx, ex, true)
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := rows.Dims(); n != 7 || s.N != 7 {
		t.Fatalf("%d rows, N %d", n, s.N)
	}
	want, got := make([]float64, 64), make([]float64, 64)
	names := s.Names()
	for i, name := range names {
		rows.Row(got, i)
		if strings.HasSuffix(name, "000003.png") {
			rows.Row(want, i)
		}
	}
	for i, name := range names {
		rows.Row(got, i)
		same := fmt.Sprint(got) == fmt.Sprint(want)
		if is := name == "a.png" || name == "b.png" || strings.HasSuffix(name, "000003.png"); same != is {
			t.Errorf("%s: features like those of picture 3: %v", name, same)
		}
	}

	bad := filepath.Join(dir, "000000", "bad.png")
	if err := os.WriteFile(bad, []byte("\x89PNG\r\n\x1a\nno"), 0o666); err != nil {
		t.Fatal(err)
	}
	if s, err = features.OpenSet(dir); err != nil {
		t.Fatal(err)
	}
	st, err := s.Stats(ctx, ex, false)
	if err != nil || st.N != 7 || s.N != 7 || len(s.Unreadable) != 1 || s.Unreadable[0] != bad {
		t.Errorf("N %d, unreadable %v, %v", st.N, s.Unreadable, err)
	}
	var refused *refuse.Error
	if _, err := s.Stats(ctx, ex, true); !errors.As(err, &refused) || refused.Path != bad {
		t.Errorf("strict: %v", err)
	}
}

// TestBatches: the features of a picture do not depend on the pictures beside it.
func TestBatches(t *testing.T) {
	ctx := context.Background()
	for _, name := range []string{"fashion", "pixels"} {
		ex := open(t, name, "")
		var whole features.Vectors
		var im features.Images
		if err := real100(t).Each(ctx, 100, true, func(b features.Images) error {
			var err error
			im = b
			whole, err = ex.Extract(ctx, b)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for _, i := range []int{0, 1, 63, 64, 99} {
			one, err := ex.Extract(ctx, features.Images{N: 1, H: 28, W: 28, C: 1, Pix: im.At(i).Pix})
			if err != nil {
				t.Fatal(err)
			}
			d := one.Features.D
			for j, v := range one.Features.X {
				if v != whole.Features.X[i*d+j] {
					t.Fatalf("%s: picture %d alone has another feature %d", name, i, j)
				}
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	ctx := context.Background()
	ex := open(t, "fashion", "")
	colours := features.Images{N: 1, H: 28, W: 28, C: 3, Pix: make([]uint8, 28*28*3)}
	colours.Pix[4] = 9
	for _, c := range []struct {
		im   features.Images
		want string
	}{
		{colours, "has colours"},
		{features.Images{N: 1, H: 32, W: 32, C: 1, Pix: make([]uint8, 1024)}, "is 32x32"},
	} {
		if _, err := ex.Extract(ctx, c.im); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	for _, rule := range []string{metrics.ResizePIL, metrics.ResizeTF1, metrics.ResizeTorch} {
		ex := open(t, "fashion", rule)
		v, err := ex.Extract(ctx, features.Images{N: 1, H: 32, W: 32, C: 1, Pix: make([]uint8, 1024)})
		if err != nil || v.Features.N != 1 || !strings.HasPrefix(ex.Identity().Resize, rule+"-28") {
			t.Errorf("%s: %v, identity %+v", rule, err, ex.Identity())
		}
	}
	px := open(t, "pixels", "")
	for i, side := range []int{4, 5} {
		_, err := px.Extract(ctx, features.Images{N: 1, H: side, W: side, C: 1, Pix: make([]uint8, side*side)})
		if (err == nil) != (i == 0) {
			t.Errorf("side %d: %v", side, err)
		}
	}
	for _, o := range [][2]string{{"nonesuch", ""}, {"fashion", "nearest"}, {"pixels", metrics.ResizePIL}} {
		if _, err := features.Open(o[0], features.Options{Resize: o[1]}); err == nil {
			t.Errorf("%v opened", o)
		}
	}
	cancelled, stop := context.WithCancel(ctx)
	stop()
	if _, err := real100(t).Stats(cancelled, ex, true); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestFiles: every kind of array file, and what is wrong with it.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, arrays ...npz.Array) string {
		path := filepath.Join(dir, name)
		if err := npz.Write(path, arrays...); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mu := npz.Array{Name: "mu", Shape: []int{2}, Data: []float64{0, 1}}
	sigma := func(v ...float64) npz.Array { return npz.Array{Name: "sigma", Shape: []int{2, 2}, Data: v} }
	for _, c := range []struct {
		path, want string
	}{
		{file("ok.npz", mu, sigma(1, 0, 0, 1)), ""},
		{file("n.npz", mu, sigma(1, 0, 0, 1), npz.Array{Name: "n", Shape: []int{}, Data: []int64{7}}), ""},
		{file("neg.npz", mu, sigma(1, 0, 0, 1), npz.Array{Name: "n", Shape: []int{}, Data: []int64{-7}}), "n is not a count"},
		{file("skew.npz", mu, sigma(1, 0.5, 0, 1)), "not symmetric"},
		{file("nan.npz", mu, sigma(1, 0, 0, math.NaN())), "not finite"},
		{file("shape.npz", mu, npz.Array{Name: "sigma", Shape: []int{4}, Data: make([]float64, 4)}), "sigma [4]"},
		{file("logits.npz", npz.Array{Name: "features", Shape: []int{4, 2}, Data: make([]float32, 8)}, npz.Array{Name: "logits", Shape: []int{8, 3}, Data: make([]float32, 24)}), "4 rows of features and 8 of logits"},
		{file("empty.npz", npz.Array{Name: "y", Shape: []int{1}, Data: []float64{1}}), "no array images, tokens, features, or mu and sigma, but y"},
		{file("chw.npz", npz.Array{Name: "images", Shape: []int{2, 1, 4, 4}, Data: make([]uint8, 32)}), "shape [2 1 4 4]"},
		{file("float.npz", npz.Array{Name: "images", Shape: []int{2, 4, 4, 1}, Data: make([]float32, 32)}), "is f4"},
		{file("adm.npz", npz.Array{Name: "arr_0", Shape: []int{2, 4, 4, 3}, Data: make([]uint8, 96)}), ""},
		{file("flat.npz", npz.Array{Name: "features", Shape: []int{4}, Data: make([]float64, 4)}), "want (N, D)"},
		{file("rows.npz", npz.Array{Name: "features", Shape: []int{2, 2}, Data: make([]float32, 4)}), ""},
		{file("id.npz", npz.Array{Name: "features", Shape: []int{2, 2}, Data: make([]float32, 4)}, npz.Array{Name: "identity", Shape: []int{3}, Data: []uint8("{}]")}), "identity does not read"},
		{file("lab.npz", npz.Array{Name: "features", Shape: []int{2, 2}, Data: make([]float32, 4)}, npz.Array{Name: "labels", Shape: []int{2}, Data: []float64{0, 0.5}}), "labels"},
	} {
		_, err := features.OpenSet(c.path)
		var refused *refuse.Error
		if c.want == "" && err != nil || c.want != "" && (!errors.As(err, &refused) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", filepath.Base(c.path), err, c.want)
		}
	}
	text := filepath.Join(dir, "a.txt")
	if err := os.WriteFile(text, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	var refused *refuse.Error
	if _, err := features.OpenSet(text); !errors.As(err, &refused) {
		t.Errorf("text: %v", err)
	}
	if _, err := features.OpenSet(t.TempDir()); !errors.As(err, &refused) {
		t.Errorf("empty folder: %v", err)
	}
	if _, err := features.OpenSet(filepath.Join(dir, "gone")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("gone: %v", err)
	}
	if s, err := features.OpenSet(filepath.Join(dir, "rows.npz")); err != nil {
		t.Error(err)
	} else if _, err := s.Stats(context.Background(), nil, true); !errors.Is(err, metrics.ErrConstant) {
		t.Errorf("constant features: %v", err)
	}
	if s, err := features.OpenSet(filepath.Join(dir, "n.npz")); err != nil {
		t.Error(err)
	} else if _, _, _, err := s.Rows(context.Background(), nil, true); !errors.As(err, &refused) {
		t.Errorf("rows of statistics: %v", err)
	}
}

// TestStatsFile: what is written is read back, identity and all, in the form that numpy's users know.
func TestStatsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.npz")
	cov := mat.NewSymDense(3, []float64{2, 0.1, 0.2, 0.1, 3, 0.3, 0.2, 0.3, 4})
	in := metrics.Stats{N: 12, Mean: []float64{1, 2, 3}, Cov: cov, ID: metrics.Identity{Extractor: "e", Resize: "r \"x\""}}
	if err := features.WriteStats(path, in); err != nil {
		t.Fatal(err)
	}
	s, err := features.OpenSet(path)
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Stats(context.Background(), nil, true)
	if err != nil || out.N != 12 || out.ID != in.ID || !mat.Equal(out.Cov, cov) || fmt.Sprint(out.Mean) != "[1 2 3]" {
		t.Errorf("%+v %v", out, err)
	}
	all, err := npz.ReadAll(path, "mu", "sigma", "n")
	if err != nil || fmt.Sprint(all["sigma"].Shape) != "[3 3]" || len(all["n"].Shape) != 0 {
		t.Errorf("%+v %v", all, err)
	}
	other, err := features.OpenSet(path)
	if err != nil || other.Digest() != s.Digest() || len(s.Digest()) != 16 {
		t.Errorf("digests %q and %q, %v", s.Digest(), other.Digest(), err)
	}
}

func ExampleOpen() {
	ex, err := features.Open("fashion", features.Options{})
	if err != nil {
		panic(err)
	}
	defer ex.Close()
	set, err := features.OpenSet("testdata/real-test-100.npz")
	if err != nil {
		panic(err)
	}
	train, err := features.Embedded(ex, "train-60000")
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	a, err := train.Stats(ctx, ex, true)
	if err != nil {
		panic(err)
	}
	b, err := set.Stats(ctx, ex, true)
	if err != nil {
		panic(err)
	}
	r, err := metrics.CompareStats(a, b, false)
	if err != nil {
		panic(err)
	}
	fmt.Printf("fid %.2f of %d pictures against %d\n", r.Value, r.N, r.NRef)
	// Output: fid 6.59 of 100 pictures against 60000
}

func BenchmarkFashion(b *testing.B) {
	ex := open(b, "fashion", "")
	var im features.Images
	s, err := features.OpenSet("testdata/real-test-100.npz")
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Each(context.Background(), 64, true, func(x features.Images) error {
		if im.N == 0 {
			im = x
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := ex.Extract(context.Background(), im); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*im.N), "µs/picture")
}
