// Package safetensors reads and writes the safetensors format: an 8-byte
// little-endian header length n, n bytes of JSON that maps each tensor name to
// its dtype, shape and byte range, and one buffer of row-major little-endian
// data, as the safetensors library of Hugging Face defines it.
//
// Nothing in a file is trusted: the header is parsed token by token, sizes are
// checked with overflow before anything is allocated, and the byte ranges must
// cover the buffer exactly, without hole or overlap. Beyond the reference
// library, it refuses names that stand twice, unknown fields of an entry, a
// header that does not start with "{", a rank above 8, shapes whose non-zero
// dimensions overflow, and more than 100,000 tensors. A file that breaks a
// rule is reported as a *refuse.Error. Tensor names are never used as paths.
package safetensors

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"drift/internal/refuse"
	"drift/internal/strictjson"
)

// Limits of a file.
const (
	MaxHeader  = 100_000_000 // bytes of JSON
	MaxTensors = 100_000
	MaxRank    = 8

	maxText = 16 << 20 // bytes of all names and metadata together
)

// A DType names the type of the elements as the format spells it.
type DType string

// The types that Float32, Float64 and Int64 can read. Others (8-bit and
// smaller floats, complex) are recognised, and their bytes can be read.
const (
	Bool DType = "BOOL"
	U8   DType = "U8"
	I8   DType = "I8"
	I16  DType = "I16"
	U16  DType = "U16"
	I32  DType = "I32"
	U32  DType = "U32"
	I64  DType = "I64"
	U64  DType = "U64"
	F16  DType = "F16"
	BF16 DType = "BF16"
	F32  DType = "F32"
	F64  DType = "F64"
)

// Bits returns the bits of one element, 0 for an unknown type.
func (d DType) Bits() int {
	switch d {
	case "F4":
		return 4
	case "F6_E2M3", "F6_E3M2":
		return 6
	case Bool, U8, I8, "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ":
		return 8
	case I16, U16, F16, BF16:
		return 16
	case I32, U32, F32:
		return 32
	case I64, U64, F64, "C64":
		return 64
	}
	return 0
}

// Of is the type in which a tensor of type old is written where its file is to
// be in type d: floating-point numbers change, integers do not. An empty d
// changes nothing.
func (d DType) Of(old DType) DType {
	switch old {
	case F16, BF16, F32, F64:
		if d != "" {
			return d
		}
	}
	return old
}

// A Tensor describes one tensor of a file.
type Tensor struct {
	Name  string
	DType DType
	Shape []int // empty for a scalar
}

// size returns the number of elements and of bytes. The product of the
// non-zero dimensions must fit in 63 bits even when another one is zero.
func (t Tensor) size() (elements, bytes int64, err error) {
	if len(t.Shape) > MaxRank {
		return 0, 0, fmt.Errorf("rank %d, at most %d is read", len(t.Shape), MaxRank)
	}
	width := t.DType.Bits()
	if width == 0 {
		return 0, 0, fmt.Errorf("unknown dtype %q", t.DType)
	}
	product, empty := uint64(width), false
	for _, d := range t.Shape {
		if d < 0 {
			return 0, 0, fmt.Errorf("negative dimension in the shape %v", t.Shape)
		}
		if d == 0 {
			empty = true
			continue
		}
		hi, lo := bits.Mul64(product, uint64(d))
		if hi != 0 || lo > math.MaxInt64 {
			return 0, 0, fmt.Errorf("the size of the shape %v overflows", t.Shape)
		}
		product = lo
	}
	if empty {
		return 0, 0, nil
	}
	if product%8 != 0 {
		return 0, 0, fmt.Errorf("%v elements of %s do not end on a byte", t.Shape, t.DType)
	}
	return int64(product) / int64(width), int64(product) / 8, nil
}

// Len returns the number of elements of the tensor.
func (t Tensor) Len() int {
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// entry is a tensor and the place of its bytes.
type entry struct {
	Tensor
	file       int   // index into Reader.files
	begin, end int64 // in that file's buffer until checked, then in the file
}

// A Reader gives the tensors of one file, or of the shards of an index. Its
// methods may be called from several goroutines.
type Reader struct {
	path     string
	files    []source
	entries  []entry // in the order of the data, file after file
	index    map[string]int
	metadata map[string]string
}

// source is a file the reader holds open.
type source interface {
	io.ReaderAt
	io.Closer
	Name() string
}

// memory is a source in memory.
type memory struct {
	*bytes.Reader
	name string
}

func (m memory) Name() string { return m.name }
func (memory) Close() error   { return nil }

// NewReader reads one safetensors file that lies in memory, with the checks of Open. It keeps data; name stands for the
// path.
func NewReader(name string, data []byte) (*Reader, error) {
	r := &Reader{path: name}
	if err := r.addSource(memory{bytes.NewReader(data), name}, int64(len(data))); err != nil {
		return nil, err
	}
	return r, nil
}

// Open opens one safetensors file and checks its header.
func Open(path string) (*Reader, error) {
	r := &Reader{path: path}
	if err := r.add(path); err != nil {
		return nil, joinClose(err, r)
	}
	return r, nil
}

// joinClose closes r after a failure; the failure is what matters.
func joinClose(err error, r *Reader) error {
	_ = r.Close()
	return err
}

// add opens one file and appends its tensors.
func (r *Reader) add(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return refuse.Errorf(path, "not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return r.addSource(f, info.Size())
}

// addSource appends the tensors of one file, which it keeps.
func (r *Reader) addSource(f source, size int64) error {
	path := f.Name()
	r.files = append(r.files, f)
	entries, metadata, err := readHeader(path, f, size)
	if err != nil {
		return err
	}
	if r.index == nil {
		r.index = make(map[string]int, len(entries))
	}
	r.entries = slices.Grow(r.entries, len(entries))
	for _, e := range entries {
		if _, twice := r.index[e.Name]; twice {
			return refuse.Errorf(path, "the tensor %q stands in an earlier shard, too", e.Name)
		}
		e.file = len(r.files) - 1
		r.index[e.Name] = len(r.entries)
		r.entries = append(r.entries, e)
	}
	if len(r.entries) > MaxTensors {
		return refuse.Errorf(r.path, "more than %d tensors", MaxTensors)
	}
	if r.metadata == nil {
		r.metadata = metadata
	}
	return nil
}

// readHeader parses and checks the header of a file of the given size.
func readHeader(path string, f io.ReaderAt, size int64) ([]entry, map[string]string, error) {
	if size < 8 {
		return nil, nil, refuse.Errorf(path, "not safetensors: %d bytes, the length of the header alone takes 8", size)
	}
	var head [8]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return nil, nil, fmt.Errorf("%s: reading the header length: %w", path, err)
	}
	n := binary.LittleEndian.Uint64(head[:])
	if n > MaxHeader {
		return nil, nil, refuse.Errorf(path, "not safetensors: a header of %d bytes, at most %d are allowed", n, MaxHeader)
	}
	if int64(n) > size-8 {
		return nil, nil, refuse.Errorf(path, "not safetensors: a header of %d bytes in a file of %d", n, size)
	}
	var first [1]byte
	if n > 0 {
		if _, err := f.ReadAt(first[:], 8); err != nil {
			return nil, nil, fmt.Errorf("%s: reading the header: %w", path, err)
		}
	}
	if first[0] != '{' {
		return nil, nil, refuse.Errorf(path, "not safetensors: the header does not start with '{'")
	}
	const least = len(`"":{"dtype":"U8","shape":[],"data_offsets":[0,0]},`)
	h := header{path: path, entries: make([]entry, 0, min(int(n)/least, MaxTensors))}
	h.s = strictjson.NewScanner(path, io.NewSectionReader(f, 8, int64(n)), strictjson.Limits{Depth: 8, String: 8 << 20})
	if err := h.parse(); err != nil {
		return nil, nil, err
	}
	if err := h.check(8+int64(n), size); err != nil {
		return nil, nil, err
	}
	return h.entries, h.metadata, nil
}

// header collects what the JSON says.
type header struct {
	path     string
	s        *strictjson.Scanner
	entries  []entry
	metadata map[string]string
	text     int // bytes of names and metadata so far
}

func (h *header) refuse(format string, args ...any) error {
	return refuse.Errorf(h.path, format, args...)
}

func (h *header) parse() error {
	err := h.s.Object(func(name string) error {
		if h.text += len(name); h.text > maxText {
			return h.refuse("more than %d bytes of names and metadata", maxText)
		}
		if name == "__metadata__" {
			return h.parseMetadata()
		}
		if len(h.entries) == MaxTensors {
			return h.refuse("more than %d tensors", MaxTensors)
		}
		e, err := h.parseEntry(name)
		h.entries = append(h.entries, e)
		return err
	})
	if err != nil {
		return err
	}
	return h.s.End()
}

func (h *header) parseMetadata() error {
	h.metadata = map[string]string{}
	return h.s.Object(func(key string) error {
		value, err := h.s.String()
		if err != nil {
			return err
		}
		if h.text += len(key) + len(value); h.text > maxText {
			return h.refuse("more than %d bytes of names and metadata", maxText)
		}
		h.metadata[key] = value
		return nil
	})
}

func (h *header) parseEntry(name string) (entry, error) {
	e := entry{Tensor: Tensor{Name: name}}
	var dtype, shape, offsets bool
	err := h.s.Object(func(field string) error {
		switch field {
		case "dtype":
			dtype = true
			s, err := h.s.String()
			e.DType = DType(s)
			if err == nil && e.DType.Bits() == 0 {
				err = h.refuse("tensor %q: unknown dtype %q", name, s)
			}
			return err
		case "shape":
			shape = true
			e.Shape = []int{}
			return h.s.Array(func(i int) error {
				d, err := h.count(name, "dimension")
				if err != nil {
					return err
				}
				if i == MaxRank {
					return h.refuse("tensor %q: a rank above %d", name, MaxRank)
				}
				if d > math.MaxInt {
					return h.refuse("tensor %q: the dimension %d is too large", name, d)
				}
				e.Shape = append(e.Shape, int(d))
				return nil
			})
		case "data_offsets":
			offsets = true
			n := 0
			err := h.s.Array(func(i int) error {
				v, err := h.count(name, "offset")
				switch n++; i {
				case 0:
					e.begin = v
				case 1:
					e.end = v
				default:
					return h.refuse("tensor %q: data_offsets needs two numbers", name)
				}
				return err
			})
			if err == nil && n != 2 {
				err = h.refuse("tensor %q: data_offsets needs two numbers", name)
			}
			return err
		}
		return h.refuse("tensor %q: unknown field %q", name, field)
	})
	if err != nil {
		return e, err
	}
	for _, f := range []struct {
		there bool
		name  string
	}{{dtype, "dtype"}, {shape, "shape"}, {offsets, "data_offsets"}} {
		if !f.there {
			return e, h.refuse("tensor %q: the field %s is missing", name, f.name)
		}
	}
	return e, nil
}

// count reads a whole number from 0 to 2^63-1, written without fraction or
// exponent.
func (h *header) count(name, what string) (int64, error) {
	n, err := h.s.Number()
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(string(n), 10, 63)
	if err != nil {
		return 0, h.refuse("tensor %q: the %s %s is not a whole number below 2^63", name, what, n)
	}
	return int64(v), nil
}

// check holds the byte ranges against the shapes, each other and the file.
func (h *header) check(start, size int64) error {
	sort.SliceStable(h.entries, func(i, j int) bool {
		a, b := &h.entries[i], &h.entries[j]
		return a.begin < b.begin || a.begin == b.begin && a.end < b.end
	})
	length := size - start
	var at int64
	for i := range h.entries {
		e := &h.entries[i]
		_, bytes, err := e.size()
		if err != nil {
			return h.refuse("tensor %q: %v", e.Name, err)
		}
		switch {
		case e.end < e.begin:
			return h.refuse("tensor %q: ends at %d before it begins at %d", e.Name, e.end, e.begin)
		case e.begin < at:
			return h.refuse("tensor %q: begins at %d inside another one that ends at %d", e.Name, e.begin, at)
		case e.begin > at:
			return h.refuse("tensor %q: begins at %d, %d bytes after the end of what stands before it", e.Name, e.begin, e.begin-at)
		case e.end-e.begin != bytes:
			return h.refuse("tensor %q: %s of shape %v takes %d bytes, its offsets give %d", e.Name, e.DType, e.Shape, bytes, e.end-e.begin)
		case e.end > length:
			return h.refuse("tensor %q: ends at %d, the data ends at %d: the file is cut", e.Name, e.end, length)
		}
		at = e.end
		e.begin += start
		e.end += start
	}
	if at != length {
		return h.refuse("%d bytes of data belong to no tensor", length-at)
	}
	return nil
}

// Close closes the files.
func (r *Reader) Close() error {
	var first error
	for _, f := range r.files {
		if err := f.Close(); err != nil && first == nil {
			first = err
		}
	}
	r.files = nil
	return first
}

// Path returns the path the reader was opened with.
func (r *Reader) Path() string { return r.path }

// Files returns the paths of the files read: the one file, or the shards.
func (r *Reader) Files() []string {
	paths := make([]string, len(r.files))
	for i, f := range r.files {
		paths[i] = f.Name()
	}
	return paths
}

// Tensors lists the tensors in the order of their data.
func (r *Reader) Tensors() []Tensor {
	list := make([]Tensor, len(r.entries))
	for i := range r.entries {
		list[i] = r.entries[i].Tensor
	}
	return list
}

// Tensor returns the description of one tensor.
func (r *Reader) Tensor(name string) (Tensor, bool) {
	i, ok := r.index[name]
	if !ok {
		return Tensor{}, false
	}
	return r.entries[i].Tensor, true
}

// Metadata returns the text entries of the (first) file's header.
func (r *Reader) Metadata() map[string]string { return r.metadata }

// OpenIndex opens the shards that an index file names, as written for models
// larger than one file: {"metadata": {...}, "weight_map": {tensor: file}}. The
// files stand beside the index; every mapped tensor must be in its file and
// every tensor of the files in the map.
func OpenIndex(path string) (*Reader, error) {
	where, names, err := readIndex(path)
	if err != nil {
		return nil, err
	}
	r := &Reader{path: path}
	for _, name := range names {
		if err := r.add(filepath.Join(filepath.Dir(path), name)); err != nil {
			return nil, joinClose(fmt.Errorf("%s: opening its shards: %w", path, err), r)
		}
	}
	var wrong []string
	for _, e := range r.entries {
		switch file, ok := where[e.Name]; {
		case !ok:
			wrong = append(wrong, fmt.Sprintf("%q of %s is not in the index", e.Name, names[e.file]))
		case file != names[e.file]:
			wrong = append(wrong, fmt.Sprintf("%q stands in %s, not in %s", e.Name, names[e.file], file))
		}
	}
	for name, file := range where {
		if _, ok := r.index[name]; !ok {
			wrong = append(wrong, fmt.Sprintf("%q is not in %s", name, file))
		}
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		return nil, joinClose(refuse.Errorf(path, "the index and its shards disagree: %s", strings.Join(wrong, "; ")), r)
	}
	return r, nil
}

// readIndex returns the file of each tensor and the sorted file names.
func readIndex(path string) (map[string]string, []string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, refuse.Errorf(path, "not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	s := strictjson.NewScanner(path, io.LimitReader(f, MaxHeader), strictjson.Limits{Depth: 8})
	where := map[string]string{}
	files := map[string]string{} // one copy of each name
	there, text := false, 0
	err = s.Object(func(key string) error {
		if key != "weight_map" {
			return s.Skip()
		}
		there = true
		return s.Object(func(name string) error {
			file, err := s.String()
			if err != nil {
				return err
			}
			if one, ok := files[file]; ok {
				file = one
			} else {
				if !isBaseName(file) {
					return refuse.Errorf(path, "the shard of %q is %q, which is not a plain .safetensors file name", name, file)
				}
				if len(files) == 10_000 {
					return refuse.Errorf(path, "more than %d shards", len(files))
				}
				files[file] = file
			}
			if text += len(name); len(where) == MaxTensors || text > maxText {
				return refuse.Errorf(path, "more than %d tensors or %d bytes of names", MaxTensors, maxText)
			}
			where[name] = file
			return nil
		})
	})
	if err == nil {
		err = s.End()
	}
	if err == nil && !there {
		err = refuse.Errorf(path, "not an index of shards: it has no weight_map")
	}
	if err != nil {
		return nil, nil, err
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return where, names, nil
}

// isBaseName reports whether name is a file name that stays in its folder, on
// every operating system.
func isBaseName(name string) bool {
	return strings.HasSuffix(name, ".safetensors") && name[0] != '.' && len(name) <= 255 && !strings.ContainsAny(name, "/\\:\x00")
}
