package features

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/gonum/mat"

	"drift/internal/kernels"
	"drift/internal/npz"
	"drift/internal/refuse"
	"drift/metrics"
	"drift/models/zoo"
)

// Kind says what a set is kept as.
type Kind int

// The kinds. Folders and arrays of pictures are both Pictures.
const (
	Pictures Kind = iota
	FeatureRows
	Statistics
)

// Set is a set of pictures, features or statistics in a file or folder. It is
// opened without reading all of it; Each and Features stream it.
type Set struct {
	Name string
	Kind Kind
	N    int // pictures or rows; 0 where statistics do not say
	ID   metrics.Identity

	Labels     []int    // classes of the rows, where a .npz has classes, class_labels or labels
	Unreadable []string // files that were left out because they could not be read

	// Observe is told by Each how many pictures are through; may be nil.
	Observe func(done int)

	tokens bool // the pictures are sequences
	files  []string
	from   int // place of the first of pix in the array
	pix    Images
	rows   metrics.Samples
	logits metrics.Samples
	stats  metrics.Stats
	digest string
}

// Limits of the pictures that are read, and of a batch of them: many small
// files may hold much.
const (
	maxSide   = 1 << 14
	maxPixels = 1 << 26
	maxBatch  = 1 << 26 // bytes, unless one picture has more
)

// OpenSet opens a folder of PNG files (also in folders below it), one PNG, or
// a .npz with images (or arr_0), tokens, features, or mu and sigma, or a FASTA
// file of sequences.
func OpenSet(path string) (*Set, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case info.IsDir():
		return openFolder(path)
	case strings.EqualFold(filepath.Ext(path), ".npz"):
		return readSet(path, func() (*npz.Archive, error) { return npz.Read(path) })
	case strings.EqualFold(filepath.Ext(path), ".png"):
		return &Set{Name: path, Kind: Pictures, N: 1, files: []string{path}}, nil
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".fasta", ".fa":
		return openFASTA(path)
	}
	return nil, refuse.Errorf(path, "not a folder, a .png, a .npz or a .fasta file")
}

func openFolder(dir string) (*Set, error) {
	s := &Set{Name: dir, Kind: Pictures}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !strings.EqualFold(filepath.Ext(path), ".png") {
			return nil
		}
		mode := d.Type()
		if mode&fs.ModeSymlink != 0 {
			mode = 0 // one that leads nowhere is a picture that does not read
			if info, err := os.Stat(path); err == nil {
				mode = info.Mode()
			}
		}
		if mode.IsRegular() {
			s.files = append(s.files, path)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(s.files) == 0 {
		return nil, refuse.Errorf(dir, "has no PNG file")
	}
	slices.Sort(s.files)
	s.N = len(s.files)
	return s, nil
}

func readSet(path string, open func() (*npz.Archive, error)) (*Set, error) {
	a, err := open()
	if err != nil {
		return nil, err
	}
	defer a.Close()
	has := func(name string) bool { _, ok := a.Info(name); return ok }
	s := &Set{Name: path}
	if has("identity") {
		if s.ID, err = readIdentity(a); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"classes", "class_labels", "labels"} {
		if s.Labels == nil && has(name) {
			if s.Labels, err = readLabels(a, name); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case has("images"), has("arr_0") && !has("mu"):
		name := "images"
		if !has(name) {
			name = "arr_0"
		}
		x, err := a.Array(name)
		if err != nil {
			return nil, err
		}
		if len(x.Shape) != 4 || (x.Shape[3] != 1 && x.Shape[3] != 3) || x.DType != npz.U1 || x.Len() == 0 {
			return nil, refuse.Errorf(path, "%s is %s of shape %v, want bytes (N, H, W, 1 or 3)", name, x.DType, x.Shape)
		}
		pix, err := x.Uint8()
		if err != nil {
			return nil, refuse.Errorf(path, "%v", err)
		}
		s.Kind, s.N = Pictures, x.Shape[0]
		s.pix = Images{N: x.Shape[0], H: x.Shape[1], W: x.Shape[2], C: x.Shape[3], Pix: pix}
		s.ID = metrics.Identity{}
		return s, nil
	case has("tokens"):
		x, err := a.Array("tokens")
		if err != nil {
			return nil, err
		}
		if len(x.Shape) != 2 || x.DType != npz.U1 || x.Len() == 0 {
			return nil, refuse.Errorf(path, "tokens is %s of shape %v, want bytes (N, L)", x.DType, x.Shape)
		}
		pix, err := x.Uint8()
		if err != nil {
			return nil, refuse.Errorf(path, "%v", err)
		}
		s.Kind, s.N, s.tokens = Pictures, x.Shape[0], true
		s.pix = Images{N: x.Shape[0], H: 1, W: x.Shape[1], C: 1, Pix: pix}
		s.ID = metrics.Identity{}
		return s, nil
	case has("features"):
		if s.rows, err = readRows(a, "features"); err != nil {
			return nil, err
		}
		s.Kind = FeatureRows
		s.N, _ = s.rows.Dims()
		if has("logits") {
			if s.logits, err = readRows(a, "logits"); err != nil {
				return nil, err
			}
			if n, _ := s.logits.Dims(); n != s.N {
				return nil, refuse.Errorf(path, "%d rows of features and %d of logits", s.N, n)
			}
		}
		return s, nil
	case has("mu") && has("sigma"):
		s.Kind = Statistics
		s.stats, err = readStats(a, s.ID)
		s.N = s.stats.N
		return s, err
	}
	return nil, refuse.Errorf(path, "has no array images, tokens, features, or mu and sigma, but %s", strings.Join(a.Names(), ", "))
}

func readRows(a *npz.Archive, name string) (metrics.Samples, error) {
	x, err := a.Array(name)
	if err != nil {
		return nil, err
	}
	if len(x.Shape) != 2 || x.Shape[1] < 1 {
		return nil, refuse.Errorf(a.Path(), "%s has shape %v, want (N, D)", name, x.Shape)
	}
	if x.DType == npz.F4 || x.DType == npz.F2 {
		d, err := x.Float32()
		if err != nil {
			return nil, refuse.Errorf(a.Path(), "%v", err)
		}
		if i := slices.IndexFunc(d, func(v float32) bool { return v-v != 0 }); i >= 0 {
			return nil, notFinite(a, name, i, x.Shape)
		}
		return metrics.Matrix32{N: x.Shape[0], D: x.Shape[1], X: d}, nil
	}
	d, err := x.Float64()
	if err != nil {
		return nil, refuse.Errorf(a.Path(), "%v", err)
	}
	if i := slices.IndexFunc(d, func(v float64) bool { return v-v != 0 }); i >= 0 {
		return nil, notFinite(a, name, i, x.Shape)
	}
	return metrics.Matrix{N: x.Shape[0], D: x.Shape[1], X: d}, nil
}

func notFinite(a *npz.Archive, name string, i int, shape []int) error {
	return refuse.Errorf(a.Path(), "%s is not finite (row %d, column %d)", name, i/shape[1], i%shape[1])
}

func readLabels(a *npz.Archive, name string) ([]int, error) {
	x, err := a.Array(name)
	if err != nil {
		return nil, err
	}
	v, err := x.Int64()
	if err != nil || len(x.Shape) != 1 {
		return nil, refuse.Errorf(a.Path(), "%s is %s of shape %v, want one whole number per row", name, x.DType, x.Shape)
	}
	out := make([]int, len(v))
	for i, k := range v {
		out[i] = int(k)
	}
	return out, nil
}

func readStats(a *npz.Archive, id metrics.Identity) (metrics.Stats, error) {
	mu, err := a.Array("mu")
	if err != nil {
		return metrics.Stats{}, err
	}
	sigma, err := a.Array("sigma")
	if err != nil {
		return metrics.Stats{}, err
	}
	d := mu.Len()
	if len(mu.Shape) != 1 || d == 0 || !slices.Equal(sigma.Shape, []int{d, d}) {
		return metrics.Stats{}, refuse.Errorf(a.Path(), "mu has shape %v and sigma %v, want (D) and (D, D)", mu.Shape, sigma.Shape)
	}
	m, err := mu.Float64()
	if err != nil {
		return metrics.Stats{}, refuse.Errorf(a.Path(), "%v", err)
	}
	c, err := sigma.Float64()
	if err != nil {
		return metrics.Stats{}, refuse.Errorf(a.Path(), "%v", err)
	}
	scale := 0.0
	for i, v := range append(slices.Clone(m), c...) {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return metrics.Stats{}, refuse.Errorf(a.Path(), "mu or sigma is not finite (entry %d)", i)
		}
		scale = max(scale, math.Abs(v))
	}
	s := metrics.Stats{Mean: m, Cov: mat.NewSymDense(d, nil), ID: id}
	for i := range d {
		for j := i; j < d; j++ {
			if math.Abs(c[i*d+j]-c[j*d+i]) > 1e-6*scale {
				return metrics.Stats{}, refuse.Errorf(a.Path(), "sigma is not symmetric at (%d, %d)", i, j)
			}
			s.Cov.SetSym(i, j, (c[i*d+j]+c[j*d+i])/2)
		}
	}
	if _, ok := a.Info("n"); ok {
		n, err := a.Array("n")
		if err != nil {
			return metrics.Stats{}, err
		}
		v, err := n.Int64()
		if err != nil || len(v) != 1 || v[0] < 0 || v[0] > math.MaxInt32 {
			return metrics.Stats{}, refuse.Errorf(a.Path(), "n is not a count")
		}
		s.N = int(v[0])
	}
	return s, nil
}

// The array identity of our files is the text of this, in bytes: npz has no
// plain text.
type identity struct {
	Extractor string `json:"extractor"`
	Resize    string `json:"resize"`
}

func readIdentity(a *npz.Archive) (metrics.Identity, error) {
	x, err := a.Array("identity")
	if err != nil {
		return metrics.Identity{}, err
	}
	b, err := x.Uint8()
	var id identity
	if err != nil || len(b) > 1<<16 || json.Unmarshal(b, &id) != nil {
		return metrics.Identity{}, refuse.Errorf(a.Path(), "identity does not read")
	}
	return metrics.Identity(id), nil
}

func identityArray(id metrics.Identity) (npz.Array, error) {
	b, err := json.Marshal(identity(id))
	return npz.Array{Name: "identity", Shape: []int{len(b)}, Data: b}, err
}

// WriteStats writes a statistics file: mu, sigma and n as the field's tools
// read them, and the identity of the extractor.
func WriteStats(path string, s metrics.Stats) error {
	d := len(s.Mean)
	full := make([]float64, d*d)
	for i := range d {
		for j := range d {
			full[i*d+j] = s.Cov.At(i, j)
		}
	}
	id, err := identityArray(s.ID)
	if err != nil {
		return err
	}
	return npz.Write(path,
		npz.Array{Name: "mu", Shape: []int{d}, Data: s.Mean},
		npz.Array{Name: "sigma", Shape: []int{d, d}, Data: full},
		npz.Array{Name: "n", Shape: []int{}, Data: []int64{int64(s.N)}}, id)
}

// Names lists the pictures of a set: paths below its folder, or places in its array.
func (s *Set) Names() []string {
	out := make([]string, 0, s.N)
	for _, f := range s.files {
		out = append(out, s.below(f))
	}
	for i := range s.pix.N {
		out = append(out, strconv.Itoa(i))
	}
	return out
}

// below is the path of a file below the folder of the set.
func (s *Set) below(file string) string {
	name, err := filepath.Rel(s.Name, file)
	if err != nil || name == "." {
		name = filepath.Base(file)
	}
	return filepath.ToSlash(name)
}

// Picture reads picture i of Names. A file that does not read is a *refuse.Error.
func (s *Set) Picture(i int) (metrics.Image[uint8], error) {
	if s.files == nil {
		return s.pix.At(i), nil
	}
	return readPNG(s.files[i])
}

// Each hands the pictures over in batches of one size each, at most size of
// them. A file that does not read is named in Unreadable and left out; when
// strict it is an error.
func (s *Set) Each(ctx context.Context, size int, strict bool, f func(Images) error) error {
	if s.Kind != Pictures {
		return fmt.Errorf("features: %s has no pictures", s.Name)
	}
	hand := func(im Images, name func(i int) string, through int) error {
		err := f(im)
		var bad *pictureError
		if errors.As(err, &bad) {
			return fmt.Errorf("picture %s: %w", name(bad.i), bad.err)
		}
		if err == nil && s.Observe != nil {
			s.Observe(through)
		}
		return err
	}
	if s.files == nil {
		w := s.pix.H * s.pix.W * s.pix.C
		for lo := 0; lo < s.pix.N; lo += size {
			if err := ctx.Err(); err != nil {
				return err
			}
			hi := min(lo+size, s.pix.N)
			im := Images{N: hi - lo, H: s.pix.H, W: s.pix.W, C: s.pix.C, Pix: s.pix.Pix[lo*w : hi*w]}
			if err := hand(im, func(i int) string { return strconv.Itoa(s.from + lo + i) }, hi); err != nil {
				return err
			}
		}
		return nil
	}
	s.Unreadable = nil
	var b Images
	var names []string // of b
	flush := func(read int) error {
		if b.N == 0 {
			return nil
		}
		err := hand(b, func(i int) string { return s.below(names[i]) }, read)
		b, names = Images{}, nil
		return err
	}
	for i, path := range s.files {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, err := readPNG(path)
		var bad *refuse.Error
		if errors.As(err, &bad) && !strict {
			s.Unreadable = append(s.Unreadable, path)
			continue
		}
		if err != nil {
			return err
		}
		if b.N > 0 && (b.H != m.H || b.W != m.W || b.C != m.C || b.N == size || len(b.Pix)+len(m.Pix) > maxBatch) {
			if err := flush(i); err != nil {
				return err
			}
		}
		b.N, b.H, b.W, b.C, b.Pix = b.N+1, m.H, m.W, m.C, append(b.Pix, m.Pix...)
		names = append(names, path)
	}
	s.N = len(s.files) - len(s.Unreadable)
	return flush(len(s.files))
}

// Part is the pictures lo to hi of Names, without what is known of them.
func (s *Set) Part(lo, hi int) *Set {
	p := &Set{Name: s.Name, Kind: s.Kind, N: hi - lo, ID: s.ID, tokens: s.tokens}
	if s.files != nil {
		p.files = s.files[lo:hi]
		return p
	}
	w := s.pix.H * s.pix.W * s.pix.C
	p.from = s.from + lo
	p.pix = Images{N: hi - lo, H: s.pix.H, W: s.pix.W, C: s.pix.C, Pix: s.pix.Pix[lo*w : hi*w]}
	return p
}

// Unread lists the places of Unreadable among the files.
func (s *Set) Unread() (out []int) {
	for i, f := range s.files {
		if slices.Contains(s.Unreadable, f) {
			out = append(out, i)
		}
	}
	return out
}

func readPNG(path string) (metrics.Image[uint8], error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return metrics.Image[uint8]{}, refuse.Errorf(path, "cannot be opened: %v", err)
	}
	if err != nil {
		return metrics.Image[uint8]{}, err
	}
	defer f.Close()
	bad := func(err error) (metrics.Image[uint8], error) {
		return metrics.Image[uint8]{}, refuse.Errorf(path, "not a picture that can be read: %v", err)
	}
	cfg, err := png.DecodeConfig(bufio.NewReader(f))
	if err != nil {
		return bad(err)
	}
	if cfg.Width > maxSide || cfg.Height > maxSide || cfg.Width*cfg.Height > maxPixels {
		return bad(fmt.Errorf("%dx%d pixels are more than are read", cfg.Width, cfg.Height))
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return metrics.Image[uint8]{}, err
	}
	m, err := png.Decode(bufio.NewReader(f))
	if err != nil {
		return bad(err)
	}
	return fromImage(m), nil
}

// fromImage takes the bytes of a picture: grey files have one channel, all
// others three. Transparency is left out of account.
func fromImage(m image.Image) metrics.Image[uint8] {
	b := m.Bounds()
	h, w := b.Dy(), b.Dx()
	switch m := m.(type) {
	case *image.Gray:
		out := metrics.Image[uint8]{H: h, W: w, C: 1, Pix: make([]uint8, h*w)}
		for y := range h {
			copy(out.Pix[y*w:(y+1)*w], m.Pix[y*m.Stride:])
		}
		return out
	case *image.Gray16:
		out := metrics.Image[uint8]{H: h, W: w, C: 1, Pix: make([]uint8, h*w)}
		for y := range h {
			for x := range w {
				out.Pix[y*w+x] = uint8(m.Gray16At(b.Min.X+x, b.Min.Y+y).Y >> 8)
			}
		}
		return out
	case *image.NRGBA64: // color.NRGBAModel would go through values times alpha
		out := metrics.Image[uint8]{H: h, W: w, C: 3, Pix: make([]uint8, 0, 3*h*w)}
		for y := range h {
			for x := range w {
				c := m.NRGBA64At(b.Min.X+x, b.Min.Y+y)
				out.Pix = append(out.Pix, uint8(c.R>>8), uint8(c.G>>8), uint8(c.B>>8))
			}
		}
		return out
	}
	out := metrics.Image[uint8]{H: h, W: w, C: 3, Pix: make([]uint8, 3*h*w)}
	for y := range h {
		for x := range w {
			c := color.NRGBAModel.Convert(m.At(b.Min.X+x, b.Min.Y+y)).(color.NRGBA)
			copy(out.Pix[3*(y*w+x):], []uint8{c.R, c.G, c.B})
		}
	}
	return out
}

// batch is the number of pictures that go through an extractor at a time.
const batch = 64

// Stats is the set's mean and covariance; pictures go through the extractor,
// which may be nil for the other kinds. Memory does not depend on N.
func (s *Set) Stats(ctx context.Context, ex Extractor, strict bool) (metrics.Stats, error) {
	switch s.Kind {
	case Statistics:
		return s.stats, nil
	case FeatureRows:
		return metrics.StatsOf(s.rows, s.ID)
	}
	pool := kernels.NewPool(kernels.Detect(), 0)
	defer pool.Close()
	m := metrics.Moments{ID: ex.Identity(), Pool: pool}
	if err := s.Stream(ctx, ex, strict, m.Add); err != nil {
		return metrics.Stats{}, err
	}
	return m.Stats()
}

// Stream hands the rows of features over in batches, in order. Memory does not depend on N. Statistics have none.
func (s *Set) Stream(ctx context.Context, ex Extractor, strict bool, f func(rows metrics.Samples) error) error {
	switch s.Kind {
	case Statistics:
		return refuse.Errorf(s.Name, "has statistics only; this score needs the pictures or features themselves")
	case FeatureRows:
		return f(s.rows)
	}
	if err := s.Each(ctx, batch, strict, func(im Images) error {
		v, err := ex.Extract(ctx, im)
		if err != nil {
			return err
		}
		return f(v.Features)
	}); err != nil {
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	return nil
}

// Rows is every row of features, and of logits where there are any (else nil).
func (s *Set) Rows(ctx context.Context, ex Extractor, strict bool) (rows, logits metrics.Samples, id metrics.Identity, err error) {
	switch s.Kind {
	case Statistics:
		return nil, nil, id, refuse.Errorf(s.Name, "has statistics only; this score needs the pictures or features themselves")
	case FeatureRows:
		return s.rows, s.logits, s.ID, nil
	}
	if s.rows == nil {
		var x, l []float64
		d, k := 0, 0
		if err := s.Each(ctx, batch, strict, func(im Images) error {
			v, err := ex.Extract(ctx, im)
			if err != nil {
				return err
			}
			x, l = append(x, v.Features.X...), append(l, v.Logits.X...)
			d, k = v.Features.D, v.Logits.D
			return nil
		}); err != nil {
			return nil, nil, id, fmt.Errorf("%s: %w", s.Name, err)
		}
		s.rows = metrics.Matrix{N: s.N, D: d, X: x}
		if k > 0 {
			s.logits = metrics.Matrix{N: s.N, D: k, X: l}
		}
	}
	return s.rows, s.logits, ex.Identity(), nil
}

// Digest is a short hash of the numbers of statistics or features, or of the
// bytes of pictures, which names a reference in results.
func (s *Set) Digest() string {
	if s.digest != "" {
		return s.digest
	}
	h := sha256.New()
	write := func(v ...float64) {
		for _, x := range v {
			_, _ = fmt.Fprintf(h, "%x ", math.Float64bits(x)) // a hash never fails
		}
	}
	switch s.Kind {
	case Statistics:
		write(s.stats.Mean...)
		d := len(s.stats.Mean)
		for i := range d {
			for j := i; j < d; j++ {
				write(s.stats.Cov.At(i, j))
			}
		}
	case FeatureRows:
		n, d := s.rows.Dims()
		row := make([]float64, d)
		for i := range n {
			s.rows.Row(row, i)
			write(row...)
		}
	case Pictures:
		h.Write(s.pix.Pix)
		for _, path := range s.files {
			sum := sha256.New()
			f, err := os.Open(path)
			if err == nil {
				_, err = io.Copy(sum, f)
				_ = f.Close() // it was only read
			}
			if err != nil { // Each says what is wrong with it
				sum.Reset()
			}
			h.Write(sum.Sum(nil))
		}
	}
	s.digest = hex.EncodeToString(h.Sum(nil))[:16]
	return s.digest
}

// Embedded opens an embedded reference of the extractor fashion: the moments
// of the 60,000 training pictures of Fashion-MNIST ("train-60000"), or the
// features of its 10,000 test pictures ("test-10000"; stored in 16 bits).
func Embedded(ex Extractor, name string) (*Set, error) {
	f, ok := ex.(*fashion)
	if !ok {
		return nil, fmt.Errorf("features: the embedded references belong to the extractor fashion")
	}
	folder, err := zoo.Folder("fashion-classifier")
	if err != nil {
		return nil, err
	}
	raw, err := fs.ReadFile(folder, "reference-"+name+".npz")
	if err != nil {
		return nil, fmt.Errorf("features: no embedded reference %q", name)
	}
	s, err := readSet(name+".npz", func() (*npz.Archive, error) {
		return npz.ReadFrom(name+".npz", bytes.NewReader(raw), int64(len(raw)))
	})
	if err != nil {
		return nil, err
	}
	s.Name = "fashion " + name
	s.ID = f.Identity() // pictures of 28x28 are the same under every resize rule
	s.stats.ID = s.ID
	return s, nil
}
