package output

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"drift/internal/job"
	"drift/internal/manifest"
	"drift/internal/npz"
	"drift/internal/pixels"
	"drift/internal/refuse"
)

// single stores all images in one file. Until the last one is there, finished batches wait in the folder FILE.part,
// which is made only when there is more than one batch.
type single struct {
	o     Options
	kind  string
	start time.Time
	index map[[2]int]int // set and place -> row
	rows  []row
	part  bool // the folder is there
}

// row is one stored result.
type row struct {
	done  bool
	x     []float64
	image []byte
}

func openSingle(o Options, kind string) (Target, error) {
	if kind == "png" && o.Cols*o.Rows < len(o.Items) {
		return nil, fmt.Errorf("%d images do not fit on a sheet of %dx%d", len(o.Items), o.Cols, o.Rows)
	}
	if err := Check(o.Path); err != nil {
		return nil, err
	}
	t := &single{o: o, kind: kind, start: time.Now(), index: map[[2]int]int{}, rows: make([]row, len(o.Items))}
	for i, it := range o.Items {
		t.index[[2]int{it.Set, it.Place}] = i
	}
	return t, t.load()
}

func (t *single) Room() string { return t.o.Path + ".part" }

func (t *single) keepX() bool { return t.o.Picture == nil || t.o.KeepX && t.kind == "npz" }

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
	xa, ia := arrays["x"], arrays["images"]
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
	if t.o.Picture != nil {
		if ia == nil {
			return refuse.Errorf(path, "has no images")
		}
		if b, err = ia.Uint8(); err != nil || len(b) != n*size(t.o.Picture) {
			return refuse.Errorf(path, "the images do not fit the run")
		}
	}
	for k := range n {
		i, ok := t.index[[2]int{int(id[2*k]), int(id[2*k+1])}]
		if !ok {
			return refuse.Errorf(path, "holds an image that is not of this run")
		}
		r := row{done: true}
		if x != nil {
			r.x = x[k*size(t.o.Shape) : (k+1)*size(t.o.Shape)]
		}
		if b != nil {
			r.image = b[k*size(t.o.Picture) : (k+1)*size(t.o.Picture)]
		}
		t.rows[i] = r
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
		if !t.rows[i].done {
			out = append(out, it)
		}
	}
	return out
}

func (t *single) Put(items []job.Item, x, p []float64) ([]string, error) {
	ids := make([]int64, 0, 2*len(items))
	var xs []float64
	var images []byte
	for k, it := range items {
		r := row{done: true}
		if t.keepX() {
			w := size(t.o.Shape)
			r.x = slices.Clone(x[k*w : (k+1)*w])
			xs = append(xs, r.x...)
		}
		if t.o.Picture != nil {
			w := size(t.o.Picture)
			r.image = make([]byte, w)
			pixels.Bytes(r.image, p[k*w:(k+1)*w], t.o.Picture, t.o.Rounding)
			images = append(images, r.image...)
		}
		t.rows[t.index[[2]int{it.Set, it.Place}]] = r
		ids = append(ids, int64(it.Set), int64(it.Place))
	}
	if !slices.ContainsFunc(t.rows, func(r row) bool { return !r.done }) {
		return nil, nil // Close follows
	}
	if !t.part {
		if err := os.MkdirAll(t.Room(), 0o777); err != nil {
			return nil, err
		}
		if _, err := manifest.Claim(t.Room(), t.o.Run); err != nil {
			return nil, err
		}
		t.part = true
	}
	arrays := []npz.Array{{Name: "items", Shape: []int{len(items), 2}, Data: ids}}
	if xs != nil {
		arrays = append(arrays, npz.Array{Name: "x", Shape: append([]int{len(items)}, t.o.Shape...), Data: xs})
	}
	if images != nil {
		arrays = append(arrays, npz.Array{Name: "images", Shape: t.imageShape(len(items)), Data: images})
	}
	name := fmt.Sprintf("%04d-%08d.npz", items[0].Set, items[0].Place)
	return nil, npz.Write(filepath.Join(t.Room(), name), arrays...)
}

// imageShape is (N, H, W, C).
func (t *single) imageShape(n int) []int {
	return []int{n, t.o.Picture[1], t.o.Picture[2], t.o.Picture[0]}
}

func (t *single) Close() ([]string, error) {
	var err error
	if t.kind == "png" {
		var images [][]byte
		for _, r := range t.rows {
			images = append(images, r.image)
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

// writeNPZ writes images (N, H, W, C) of pictures, x (N, ...) of everything else or when asked for, seeds, and classes
// where the run has any.
func (t *single) writeNPZ() error {
	n := len(t.rows)
	w, err := npz.Create(t.o.Path)
	if err != nil {
		return err
	}
	defer w.Discard()
	if t.o.Picture != nil {
		m, err := w.Array(npz.Info{Name: "images", DType: npz.U1, Shape: t.imageShape(n)})
		for i := 0; err == nil && i < n; i++ {
			err = m.Write(t.rows[i].image)
		}
		if err != nil {
			return err
		}
	}
	if t.keepX() {
		m, err := w.Array(npz.Info{Name: "x", DType: npz.F8, Shape: append([]int{n}, t.o.Shape...)})
		for i := 0; err == nil && i < n; i++ {
			err = m.Write(t.rows[i].x)
		}
		if err != nil {
			return err
		}
	}
	if err := w.Add(seeds(t.o.Items)); err != nil {
		return err
	}
	if classes, ok := Classes(t.o.Run, t.o.Items); ok {
		if err := w.Add(npz.Array{Name: "classes", Shape: []int{n}, Data: classes}); err != nil {
			return err
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
