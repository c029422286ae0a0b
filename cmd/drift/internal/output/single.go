package output

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/internal/npz"
	"drift/internal/pixels"
	"drift/internal/refuse"
)

// single stores all images in one file. Until the last one is there, finished batches wait in the folder FILE.part,
// which is made only when there is more than one batch.
type single struct {
	o      Options
	kind   string
	start  time.Time
	part   bool      // the folder is there
	done   []bool    // per item
	left   int       // items that are not done
	x      []float64 // (items, ...) where x is kept
	images []byte    // (items, H, W, C) of pictures, (items, L) of tokens

	pending []int         // rows that are in no part yet
	kept    time.Time     // when the last part was written ...
	cost    time.Duration // ... and how long that took
}

func openSingle(o Options, kind string) (Target, error) {
	if kind == "png" && !o.Tokens && o.Cols*o.Rows < len(o.Items) {
		return nil, fmt.Errorf("%d images do not fit on a sheet of %dx%d", len(o.Items), o.Cols, o.Rows)
	}
	if err := Check(o.Path); err != nil {
		return nil, err
	}
	t := &single{o: o, kind: kind, start: time.Now(), done: make([]bool, len(o.Items)), left: len(o.Items)}
	if t.keepX() {
		t.x = make([]float64, len(o.Items)*size(o.Shape))
	}
	if w := t.width(); w > 0 {
		t.images = make([]byte, len(o.Items)*w)
	}
	return t, t.load()
}

// row is the place of an item in the arrays, -1 for an item that is not of this run. Items come set by set, each with
// all places, each of these with all particles.
func (t *single) row(set, place, part int) int {
	items := t.o.Items
	per := len(items) / len(t.o.Run.Sets)
	i := set*per + (place-items[0].Place)*t.parts() + max(0, part-1)
	if i < 0 || i >= len(items) || items[i].Set != set || items[i].Place != place || items[i].Part != part {
		return -1
	}
	return i
}

// parts is the number of images that every place has.
func (t *single) parts() int { return max(1, t.o.Items[len(t.o.Items)-1].Part) }

// width is the number of bytes of an item, 0 where it has none.
func (t *single) width() int {
	switch {
	case t.o.Tokens:
		return t.o.Shape[0]
	case t.o.Picture != nil:
		return size(t.o.Picture)
	}
	return 0
}

// image is one picture in (H, W, C), or the tokens of a sequence.
func (t *single) image(i int) []byte {
	w := t.width()
	return t.images[i*w : (i+1)*w]
}

func (t *single) Room() string { return t.o.Path + ".part" }

func (t *single) keepX() bool { return t.width() == 0 || (t.o.KeepX || t.o.Tokens) && t.kind == "npz" }

// load takes over what an earlier run left.
func (t *single) load() error {
	list, err := os.ReadDir(t.Room())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := manifest.Claim(t.Room(), t.o.Run); err != nil {
		return err
	}
	t.part = true
	for _, e := range list {
		if filepath.Ext(e.Name()) != ".npz" {
			continue
		}
		if err := t.loadPart(filepath.Join(t.Room(), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (t *single) loadPart(path string) error {
	arrays, err := npz.ReadAll(path)
	if err != nil {
		return err
	}
	ids, ok := arrays["items"]
	if !ok || ids.DType != npz.I8 || len(ids.Shape) != 2 || ids.Shape[1] != 2 {
		return refuse.Errorf(path, "not a part of a run")
	}
	id := ids.Data.([]int64)
	n := ids.Shape[0]
	xa, ia := arrays["x"], arrays[t.bytesName()]
	if t.keepX() && xa == nil {
		return nil // made without x: make it again
	}
	var x []float64
	if t.keepX() {
		if x, err = xa.Float64(); err != nil || len(x) != n*size(t.o.Shape) {
			return refuse.Errorf(path, "x does not fit the run")
		}
	}
	var b []byte
	if t.width() > 0 {
		if ia == nil {
			return refuse.Errorf(path, "has no %s", t.bytesName())
		}
		if b, err = ia.Uint8(); err != nil || len(b) != n*t.width() {
			return refuse.Errorf(path, "the %s do not fit the run", t.bytesName())
		}
	}
	for k := range n {
		place, part := int(id[2*k+1]), 0
		if n := t.parts(); t.o.Items[0].Part > 0 {
			place, part = place/n, place%n+1
		}
		i := t.row(int(id[2*k]), place, part)
		if i < 0 {
			return refuse.Errorf(path, "holds an image that is not of this run")
		}
		if !t.done[i] {
			t.done[i] = true
			t.left--
		}
		if w := size(t.o.Shape); x != nil {
			copy(t.x[i*w:(i+1)*w], x[k*w:])
		}
		if w := t.width(); b != nil {
			copy(t.image(i), b[k*w:(k+1)*w])
		}
	}
	return nil
}

func size(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

func (t *single) Missing() []job.Item {
	var out []job.Item
	for i, it := range t.o.Items {
		if !t.done[i] {
			out = append(out, it)
		}
	}
	return out
}

func (t *single) Put(items []job.Item, x, p []float64) ([]string, error) {
	for k, it := range items {
		i := t.row(it.Set, it.Place, it.Part)
		if !t.done[i] {
			t.done[i] = true
			t.left--
		}
		if w := size(t.o.Shape); t.x != nil {
			copy(t.x[i*w:(i+1)*w], x[k*w:])
		}
		if w := size(t.o.Picture); t.o.Tokens {
			largest(t.image(i), p[k*size(t.o.Shape):(k+1)*size(t.o.Shape)])
		} else if t.images != nil {
			pixels.Bytes(t.image(i), p[k*w:(k+1)*w], t.o.Picture, t.o.Rounding)
		}
		t.pending = append(t.pending, i)
	}
	if t.left == 0 {
		return nil, nil // Close follows
	}
	if time.Since(t.kept) < 5*t.cost { // small batches wait for each other, so that keeping takes little of the time
		return nil, nil
	}
	return nil, t.Keep()
}

func (t *single) Keep() error {
	n := len(t.pending)
	if n == 0 {
		return nil
	}
	start := time.Now()
	if !t.part {
		if err := os.MkdirAll(t.Room(), 0o777); err != nil {
			return err
		}
		if _, err := manifest.Claim(t.Room(), t.o.Run); err != nil {
			return err
		}
		t.part = true
	}
	var ids []int64
	var x []float64
	var images []byte
	for _, i := range t.pending {
		it := t.o.Items[i]
		ids = append(ids, int64(it.Set), int64(it.Place*t.parts()+max(0, it.Part-1)))
		if w := size(t.o.Shape); t.x != nil {
			x = append(x, t.x[i*w:(i+1)*w]...)
		}
		if t.images != nil {
			images = append(images, t.image(i)...)
		}
	}
	arrays := []npz.Array{{Name: "items", Shape: []int{n, 2}, Data: ids}}
	if t.x != nil {
		arrays = append(arrays, npz.Array{Name: "x", Shape: append([]int{n}, t.o.Shape...), Data: x})
	}
	if t.images != nil {
		arrays = append(arrays, npz.Array{Name: t.bytesName(), Shape: t.imageShape(n), Data: images})
	}
	name := fmt.Sprintf("%04d-%08d.npz", ids[0], ids[1])
	if err := npz.Write(filepath.Join(t.Room(), name), arrays...); err != nil {
		return err
	}
	t.pending = t.pending[:0]
	t.kept = time.Now()
	t.cost = t.kept.Sub(start)
	return nil
}

// bytesName names the array of the items' bytes.
func (t *single) bytesName() string {
	if t.o.Tokens {
		return "tokens"
	}
	return "images"
}

// largest writes the largest category of every position.
func largest(dst []byte, p []float64) {
	k := len(p) / len(dst)
	for l := range dst {
		best := 0
		for j, v := range p[l*k : (l+1)*k] {
			if v > p[l*k+best] {
				best = j
			}
		}
		dst[l] = byte(best)
	}
}

// writeFASTA writes one record per item: its name is the seed (with several sets SET/SEED), its comment the class.
func (t *single) writeFASTA() error {
	classes, classed := Classes(t.o.Run, t.o.Items)
	return Write(t.o.Path, func(w io.Writer) error {
		for i, it := range t.o.Items {
			name := strconv.FormatUint(it.Seed, 10)
			if len(t.o.Run.Sets) > 1 {
				name = fmt.Sprintf("%d/%s", it.Set, name)
			}
			if k := classes[i]; classed && k >= 0 {
				label := strconv.FormatInt(k, 10)
				if int(k) < len(t.o.Labels) {
					label = t.o.Labels[k]
				}
				name += " class=" + label
			}
			text := make([]byte, t.width())
			for l, k := range t.image(i) {
				text[l] = t.o.Letters[k]
			}
			if _, err := fmt.Fprintf(w, ">%s\n", name); err != nil {
				return err
			}
			for len(text) > 0 {
				n := min(80, len(text))
				if _, err := fmt.Fprintf(w, "%s\n", text[:n]); err != nil {
					return err
				}
				text = text[n:]
			}
		}
		return nil
	})
}

// imageShape is (N, H, W, C), or (N, L) of tokens.
func (t *single) imageShape(n int) []int {
	if t.o.Tokens {
		return []int{n, t.width()}
	}
	return []int{n, t.o.Picture[1], t.o.Picture[2], t.o.Picture[0]}
}

func (t *single) Close() ([]string, error) {
	var err error
	if t.kind == "fasta" {
		err = t.writeFASTA()
	} else if t.kind == "png" && t.o.Tokens {
		err = t.writeLogos()
	} else if t.kind == "png" {
		var images [][]byte
		for i := range t.o.Items {
			images = append(images, t.image(i))
		}
		err = writePNG(t.o.Path, pixels.Sheet(images, t.o.Picture, t.o.Cols, t.o.Rows), t.o.texts(nil))
	} else {
		err = t.writeNPZ()
	}
	if err != nil {
		return nil, err
	}
	if t.part {
		err = os.RemoveAll(t.Room())
	}
	return []string{t.o.Path}, errors.Join(err, sweep(filepath.Dir(t.o.Path), regexp.QuoteMeta(filepath.Base(t.o.Path)), t.start))
}

// writeNPZ writes images (N, H, W, C) of pictures, tokens (N, L) of sequences, x (N, ...) of everything else or when asked for, seeds, and classes
// where the run has any.
func (t *single) writeNPZ() error {
	n := len(t.o.Items)
	w, err := npz.Create(t.o.Path)
	if err != nil {
		return err
	}
	defer w.Discard()
	if t.images != nil {
		err = w.Add(npz.Array{Name: t.bytesName(), Shape: t.imageShape(n), Data: t.images})
	}
	if err == nil && t.x != nil {
		err = w.Add(npz.Array{Name: "x", Shape: append([]int{n}, t.o.Shape...), Data: t.x})
	}
	if err != nil {
		return err
	}
	if err := w.Add(seeds(t.o.Items)); err != nil {
		return err
	}
	if classes, ok := Classes(t.o.Run, t.o.Items); ok {
		if err := w.Add(npz.Array{Name: "classes", Shape: []int{n}, Data: classes}); err != nil {
			return err
		}
	}
	if t.o.Extra != nil {
		for _, a := range t.o.Extra() {
			if err := w.Add(a); err != nil {
				return err
			}
		}
	}
	return w.Commit()
}

func seeds(items []job.Item) npz.Array {
	a := npz.Array{Name: "seeds", Shape: []int{len(items)}}
	var signed []int64
	var whole []uint64
	for _, it := range items {
		signed, whole = append(signed, int64(it.Seed)), append(whole, it.Seed)
	}
	a.Data = signed
	if slices.Max(whole) > math.MaxInt64 {
		a.Data = whole
	}
	return a
}

// Classes lists the class of every item, -1 for none, and whether the run has classes at all.
func Classes(r manifest.Run, items []job.Item) ([]int64, bool) {
	out, any := make([]int64, len(items)), false
	for i, it := range items {
		set := r.Sets[it.Set]
		any = any || len(set.Classes) > 0
		out[i] = int64(set.Class(it.Place - r.Offset))
	}
	return out, any
}
