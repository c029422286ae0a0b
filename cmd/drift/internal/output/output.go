// Package output stores the results of a sampling job: a folder with one PNG per image, one PNG sheet, or one .npz.
// Finished images are stored at once and under temporary names until they are whole, so a job that is stopped, in
// whatever way, goes on where it was.
package output

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/internal/atomicfile"
	"drift/internal/npz"
	"drift/internal/pixels"
	"drift/internal/pngmeta"
)

// Options says what is stored and where.
type Options struct {
	Path  string // a folder, or a file whose name ends in .png or .npz
	Run   manifest.Run
	Items []job.Item // all images of the run

	Shape    []int    // of one row of x
	Picture  []int    // of one picture (C, H, W); nil: the rows are no pictures
	Tokens   bool     // the rows are sequences of positions of probabilities: what is stored is the largest of each ...
	Letters  string   // ... by its letter, where they have letters
	Labels   []string // names of the classes, for FASTA
	Rounding pixels.Rounding
	KeepX    bool // .npz: store x as well as images
	Cols     int  // of a sheet
	Rows     int

	// Texts makes the metadata of the picture of one item, or of the whole sheet (it nil); nil: none.
	Texts func(it *job.Item) []pngmeta.Text
	// Extra makes arrays that a .npz holds too, once all items are stored; nil: none.
	Extra func() []npz.Array
}

// Target stores results.
type Target interface {
	// Missing lists the items that are not stored yet, in order.
	Missing() []job.Item
	// Put stores rows: their states x and, for pictures, p in [-1, 1]. It returns the files that are whole now.
	Put(items []job.Item, x, p []float64) ([]string, error)
	// Keep stores everything that was Put, for a job that ends early.
	Keep() error
	// Close finishes the output when all items are stored, and returns the files that are whole now.
	Close() ([]string, error)
	// Room is the folder for what a stopped job leaves behind; it may not be there yet.
	Room() string
}

// Kind tells what a path asks for: "folder", "png", "npz" or "fasta".
func Kind(path string) string {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".png":
		return "png"
	case ".npz":
		return "npz"
	case ".fasta", ".fa":
		return "fasta"
	}
	return "folder"
}

// Open checks that the output can be written and finds what an earlier run of the same manifest left there. Another
// run's output is refused with *manifest.Different.
func Open(o Options) (Target, error) {
	kind := Kind(o.Path)
	if o.Picture == nil && kind != "npz" && !(o.Letters != "" && kind != "folder") {
		return nil, fmt.Errorf("%s: the model gives arrays of shape %v, not pictures: use a name that ends in .npz", o.Path, o.Shape)
	}
	if kind == "folder" {
		return openFolder(o)
	}
	return openSingle(o, kind)
}

// regular refuses to replace anything but a regular file.
func regular(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return &fs.PathError{Op: "write", Path: path, Err: errors.New("is not a regular file")}
	}
	return nil
}

// Check fails when a file cannot be written at path; nothing is left behind.
func Check(path string) error {
	if err := regular(path); err != nil {
		return err
	}
	f, err := atomicfile.Create(path)
	if err != nil {
		return err
	}
	return f.Discard()
}

// writePNG writes a picture with its texts.
func writePNG(path string, m image.Image, texts []pngmeta.Text) error {
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return Write(path, func(w io.Writer) error { return pngmeta.Insert(w, &b, texts...) })
}

// Write writes a file that appears under its name only when it is whole.
func Write(path string, fill func(io.Writer) error) error {
	f, err := atomicfile.Create(path)
	if err != nil {
		return err
	}
	defer f.Discard()
	w := bufio.NewWriter(f)
	if err := fill(w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Commit()
}

// sweep removes the temporary files that a killed run left in a folder: those whose final names match the pattern and
// that are older than start.
func sweep(dir, pattern string, start time.Time) error {
	ours := regexp.MustCompile(`^(` + pattern + `)\.tmp[0-9]+$`)
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range list {
		if !ours.MatchString(e.Name()) {
			continue
		}
		if info, err := e.Info(); err == nil && info.ModTime().Before(start) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

const stateName = "state.run"

// SaveState keeps the state of a batch that was stopped in the middle.
func SaveState(t Target, run manifest.Run, items []job.Item, save func(io.Writer) error) error {
	if err := os.MkdirAll(t.Room(), 0o777); err != nil {
		return err
	}
	if _, err := manifest.Claim(t.Room(), run); err != nil {
		return err
	}
	var b bytes.Buffer
	if err := save(&b); err != nil {
		return err
	}
	return Write(filepath.Join(t.Room(), stateName), func(w io.Writer) error {
		sum := stateSum(items, b.Bytes())
		if _, err := w.Write(sum[:]); err != nil {
			return err
		}
		_, err := w.Write(b.Bytes())
		return err
	})
}

// LoadState returns what SaveState kept of these very items, or nil.
func LoadState(t Target, items []job.Item) (io.ReadCloser, error) {
	b, err := os.ReadFile(filepath.Join(t.Room(), stateName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b) < sha256.Size || stateSum(items, b[sha256.Size:]) != [sha256.Size]byte(b) {
		return nil, nil // of another batch: this one starts from its beginning, with the same result
	}
	return io.NopCloser(bytes.NewReader(b[sha256.Size:])), nil
}

// DropState removes a kept state.
func DropState(t Target) error {
	err := os.Remove(filepath.Join(t.Room(), stateName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func stateSum(items []job.Item, b []byte) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintln(h, items)
	h.Write(b)
	return [sha256.Size]byte(h.Sum(nil))
}

// folder stores one PNG per image.
type folder struct {
	o     Options
	start time.Time
}

func openFolder(o Options) (Target, error) {
	t := &folder{o, time.Now()}
	if info, err := os.Stat(o.Path); err == nil && !info.IsDir() {
		return nil, &fs.PathError{Op: "write", Path: o.Path, Err: errors.New("is not a folder (a file's name ends in .png or .npz)")}
	}
	if err := os.MkdirAll(o.Path, 0o777); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(o.Path, manifest.Name)); errors.Is(err, fs.ErrNotExist) {
		for _, it := range o.Items {
			if _, err := os.Stat(t.file(it)); err == nil {
				return nil, fmt.Errorf("%s exists already, and no %s says which run it is of", t.file(it), manifest.Name)
			}
		}
	}
	_, err := manifest.Claim(o.Path, o.Run)
	return t, err
}

// file is DIR/000000/000123.png, named by the seed, in folders of 1000; with several sets each has its own folder. Particles are 000123-0007.png.
func (t *folder) file(it job.Item) string {
	set := ""
	if len(t.o.Run.Sets) > 1 {
		set = fmt.Sprintf("set-%04d", it.Set)
	}
	part := ""
	if it.Part > 0 {
		part = fmt.Sprintf("-%04d", it.Part-1)
	}
	return filepath.Join(t.o.Path, set, fmt.Sprintf("%06d", it.Seed/1000*1000), fmt.Sprintf("%06d%s.png", it.Seed, part))
}

func (t *folder) Room() string { return t.o.Path }

func (t *folder) Missing() []job.Item {
	var out []job.Item
	for _, it := range t.o.Items {
		if info, err := os.Stat(t.file(it)); err != nil || !info.Mode().IsRegular() {
			out = append(out, it)
		}
	}
	return out
}

func (t *folder) Put(items []job.Item, _, p []float64) ([]string, error) {
	w := len(p) / len(items)
	var files []string
	for k, it := range items {
		name := t.file(it)
		if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			return files, err
		}
		b := make([]byte, w)
		pixels.Bytes(b, p[k*w:(k+1)*w], t.o.Picture, t.o.Rounding)
		if err := writePNG(name, pixels.Image(b, t.o.Picture), t.o.texts(&it)); err != nil {
			return files, err
		}
		files = append(files, name)
	}
	return files, nil
}

func (t *folder) Keep() error { return nil }

func (o *Options) texts(it *job.Item) []pngmeta.Text {
	if o.Texts == nil {
		return nil
	}
	return o.Texts(it)
}

func (t *folder) Close() ([]string, error) {
	if err := DropState(t); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, it := range t.o.Items {
		dir := filepath.Dir(t.file(it))
		if !seen[dir] {
			seen[dir] = true
			if err := sweep(dir, `[0-9]{6,}(-[0-9]{4,})?\.png`, t.start); err != nil {
				return nil, err
			}
		}
	}
	return nil, sweep(t.o.Path, regexp.QuoteMeta(manifest.Name)+"|"+regexp.QuoteMeta(stateName), t.start)
}
