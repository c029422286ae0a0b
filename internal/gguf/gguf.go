// Package gguf reads the tensors of GGUF files, as stable-diffusion.cpp and
// other programs on ggml write them: a header of keys and values, a list of
// tensors, and their data in blocks of quantised numbers, which are turned into
// float32 when they are read.
//
// Nothing in a file is trusted: counts and sizes are compared with the bytes
// that are there before anything is allocated, and tensors must lie in the
// file, aligned, without overlap. A file that breaks a rule is reported as a
// *refuse.Error. Tensor names are never used as paths.
//
// Versions 2 and 3, little-endian. The layout of the file and of its blocks is
// that of ggml (https://github.com/ggml-org/ggml, docs/gguf.md, src/ggml-common.h).
package gguf

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"
	"os"
	"slices"
	"strings"

	"drift/internal/refuse"
	"drift/internal/safetensors"
)

// Limits of a file.
const (
	maxTensors = 100_000
	maxValues  = 1_000_000 // keys
	maxRank    = 4
	maxText    = 16 << 20  // bytes of all names together
	maxHeader  = 512 << 20 // bytes before the data, vocabularies included
	maxKept    = 1 << 10   // bytes of a text value that is kept
	alignment  = 32        // unless general.alignment says another
)

// A Type is the type of a tensor's elements, numbered as in the file.
type Type uint32

// form says how a type is stored: so many elements in so many bytes.
type form struct {
	name         string
	block, bytes int
	plain        safetensors.DType // of elements that stand by themselves
	decode       func(dst []float32, raw []byte)
}

var forms = map[Type]form{
	0:  {name: "F32", block: 1, bytes: 4, plain: safetensors.F32},
	1:  {name: "F16", block: 1, bytes: 2, plain: safetensors.F16},
	2:  {name: "Q4_0", block: 32, bytes: 18, decode: q4_0},
	3:  {name: "Q4_1", block: 32, bytes: 20, decode: q4_1},
	6:  {name: "Q5_0", block: 32, bytes: 22, decode: q5_0},
	7:  {name: "Q5_1", block: 32, bytes: 24, decode: q5_1},
	8:  {name: "Q8_0", block: 32, bytes: 34, decode: q8_0},
	10: {name: "Q2_K", block: 256, bytes: 84, decode: q2K},
	11: {name: "Q3_K", block: 256, bytes: 110, decode: q3K},
	12: {name: "Q4_K", block: 256, bytes: 144, decode: q4K},
	13: {name: "Q5_K", block: 256, bytes: 176, decode: q5K},
	14: {name: "Q6_K", block: 256, bytes: 210, decode: q6K},
	24: {name: "I8", block: 1, bytes: 1, plain: safetensors.I8},
	25: {name: "I16", block: 1, bytes: 2, plain: safetensors.I16},
	26: {name: "I32", block: 1, bytes: 4, plain: safetensors.I32},
	27: {name: "I64", block: 1, bytes: 8, plain: safetensors.I64},
	28: {name: "F64", block: 1, bytes: 8, plain: safetensors.F64},
	30: {name: "BF16", block: 1, bytes: 2, plain: safetensors.BF16},
}

// Types lists the names of the types that are read.
func Types() []string {
	var names []string
	for _, f := range forms {
		names = append(names, f.name)
	}
	slices.Sort(names)
	return names
}

type entry struct {
	name  string
	shape []int // row-major, as elsewhere: the file lists the dimensions the other way round
	form  form
	at    int64 // in the file
	size  int64
}

func (e *entry) tensor() safetensors.Tensor {
	d := e.form.plain
	if d == "" {
		d = safetensors.F32
	}
	return safetensors.Tensor{Name: e.name, DType: d, Shape: e.shape}
}

// A Reader gives the tensors of one file. Its methods may be called from
// several goroutines.
type Reader struct {
	path    string
	data    io.ReaderAt
	close   func() error
	entries []entry
	index   map[string]int
	values  map[string]string
}

// Open opens a file and checks all but the tensors' values.
func Open(path string) (*Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = refuse.Errorf(path, "not a regular file")
	}
	var r *Reader
	if err == nil {
		r, err = NewReader(path, f, info.Size())
	}
	if err != nil {
		_ = f.Close() // it was only read
		return nil, err
	}
	r.close = f.Close
	return r, nil
}

// NewReader is Open for a file that lies in data, size bytes long; path names
// it in errors.
func NewReader(path string, data io.ReaderAt, size int64) (*Reader, error) {
	h := &header{in: bufio.NewReaderSize(io.NewSectionReader(data, 0, size), 64<<10), left: size, align: alignment}
	r := &Reader{path: path, data: data, index: map[string]int{}, values: map[string]string{}, close: func() error { return nil }}
	if err := r.read(h, size); err != nil {
		if _, ok := err.(*refuse.Error); ok {
			return nil, err
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil, refuse.Errorf(path, "the file ends in the middle of its header")
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// header is what is left of the header.
type header struct {
	in    *bufio.Reader
	left  int64 // bytes of the file behind what was read
	read  int64
	align uint64
	buf   [8]byte
}

func (h *header) bytes(n int) ([]byte, error) {
	if int64(n) > h.left {
		return nil, io.ErrUnexpectedEOF
	}
	h.left -= int64(n)
	h.read += int64(n)
	b := h.buf[:min(n, len(h.buf))]
	if n > len(b) {
		b = make([]byte, n)
	}
	_, err := io.ReadFull(h.in, b)
	return b, err
}

func (h *header) u32() (uint32, error) {
	b, err := h.bytes(4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (h *header) u64() (uint64, error) {
	b, err := h.bytes(8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// skip passes over n elements of width bytes.
func (h *header) skip(n uint64, width int) error {
	hi, total := bits.Mul64(n, uint64(width))
	if hi != 0 || total > uint64(h.left) {
		return io.ErrUnexpectedEOF
	}
	h.left -= int64(total)
	h.read += int64(total)
	for total > 0 {
		step, err := h.in.Discard(int(min(total, 1<<30)))
		if err != nil {
			return err
		}
		total -= uint64(step)
	}
	return nil
}

// text reads a text of at most most bytes; of a longer one it reads nothing
// and says so.
func (h *header) text(most int) (s string, kept bool, err error) {
	n, err := h.u64()
	if err != nil {
		return "", false, err
	}
	if n > uint64(h.left) {
		return "", false, io.ErrUnexpectedEOF
	}
	if n > uint64(most) {
		return "", false, h.skip(n, 1)
	}
	b, err := h.bytes(int(n))
	return string(b), true, err
}

// Types of values.
const (
	kindU8 = iota
	kindI8
	kindU16
	kindI16
	kindU32
	kindI32
	kindF32
	kindBool
	kindText
	kindArray
	kindU64
	kindI64
	kindF64
)

var kindWidth = map[uint32]int{
	kindU8: 1, kindI8: 1, kindU16: 2, kindI16: 2, kindU32: 4, kindI32: 4, kindF32: 4, kindBool: 1, kindU64: 8, kindI64: 8, kindF64: 8,
}

func (r *Reader) read(h *header, size int64) error {
	bad := func(format string, args ...any) error { return refuse.Errorf(r.path, format, args...) }
	magic, err := h.bytes(4)
	if err != nil || string(magic) != "GGUF" {
		return bad("does not begin with GGUF")
	}
	version, err := h.u32()
	if err != nil {
		return err
	}
	if version != 2 && version != 3 {
		return bad("version %d of GGUF: 2 and 3 (little-endian) are read", version)
	}
	tensors, err := h.u64()
	if err != nil {
		return err
	}
	values, err := h.u64()
	if err != nil {
		return err
	}
	if tensors > maxTensors || values > maxValues {
		return bad("says it has %d tensors and %d values: at most %d and %d are read", tensors, values, maxTensors, maxValues)
	}
	seen, text := map[string]bool{}, 0
	shapes := map[string][]int{}
	for range values {
		key, kept, err := h.text(maxKept)
		if err != nil {
			return err
		}
		if text += len(key); !kept || text > maxText {
			return bad("a key of more than %d bytes, or more than %d bytes of keys", maxKept, maxText)
		}
		if seen[key] {
			return bad("the key %q stands twice", key)
		}
		seen[key] = true
		if err := r.value(h, key, shapes); err != nil {
			return err
		}
		if h.read > maxHeader {
			return bad("a header of more than %d bytes", maxHeader)
		}
	}
	if a := h.align; a == 0 || a&(a-1) != 0 || a > 1<<20 {
		return bad("general.alignment is %d: want a power of two", h.align)
	}
	offsets := make([]uint64, 0, min(tensors, 1024))
	for range tensors {
		e, offset, err := r.entry(h)
		if err != nil {
			return err
		}
		if text += len(e.name); text > maxText {
			return bad("more than %d bytes of names", maxText)
		}
		if _, ok := r.index[e.name]; ok {
			return bad("two tensors are called %q", e.name)
		}
		if shape := shapes[e.name]; shape != nil {
			e.shape = shape
		}
		r.index[e.name] = len(r.entries)
		r.entries, offsets = append(r.entries, e), append(offsets, offset)
	}
	start := (h.read + int64(h.align) - 1) / int64(h.align) * int64(h.align)
	return r.place(offsets, start, size, int64(h.align), shapes)
}

// value reads one value; those that say something about the tensors are kept.
func (r *Reader) value(h *header, key string, shapes map[string][]int) error {
	kind, err := h.u32()
	if err != nil {
		return err
	}
	switch {
	case kind == kindText:
		s, kept, err := h.text(maxKept)
		if kept && len(r.values) < 1024 {
			r.values[key] = s
		}
		return err
	case kind == kindArray:
		return r.array(h, key, shapes)
	case key == "general.alignment" && kind == kindU32:
		n, err := h.u32()
		h.align = uint64(n)
		return err
	case kindWidth[kind] == 0:
		return refuse.Errorf(r.path, "the value of %q has the unknown type %d", key, kind)
	}
	return h.skip(1, kindWidth[kind])
}

// shapeKey stands before the name of a tensor whose blocks did not fit its
// shape: the value is the shape it had.
const shapeKey = "comfy.gguf.orig_shape."

func (r *Reader) array(h *header, key string, shapes map[string][]int) error {
	kind, err := h.u32()
	if err != nil {
		return err
	}
	n, err := h.u64()
	if err != nil {
		return err
	}
	name, isShape := strings.CutPrefix(key, shapeKey)
	switch {
	case kind == kindText:
		if n > uint64(h.left)/8 {
			return io.ErrUnexpectedEOF
		}
		for range n {
			if _, _, err := h.text(0); err != nil {
				return err
			}
		}
		return nil
	case isShape && kind == kindI32 && n <= maxRank+1:
		shape := make([]int, n)
		for i := range shape {
			d, err := h.u32()
			if err != nil {
				return err
			}
			shape[i] = int(int32(d))
		}
		shapes[name] = shape
		return nil
	case kindWidth[kind] == 0:
		return refuse.Errorf(r.path, "the array %q has the unknown type %d", key, kind)
	}
	return h.skip(n, kindWidth[kind])
}

// entry reads the description of one tensor.
func (r *Reader) entry(h *header) (e entry, offset uint64, err error) {
	bad := func(format string, args ...any) error { return refuse.Errorf(r.path, format, args...) }
	name, kept, err := h.text(maxKept)
	if err != nil {
		return e, 0, err
	}
	if !kept {
		return e, 0, bad("a tensor's name has more than %d bytes", maxKept)
	}
	e.name = name
	rank, err := h.u32()
	if err != nil {
		return e, 0, err
	}
	if rank > maxRank {
		return e, 0, bad("tensor %q has %d dimensions, at most %d are read", name, rank, maxRank)
	}
	count := uint64(1)
	dims := make([]uint64, rank)
	for i := range dims {
		if dims[i], err = h.u64(); err != nil {
			return e, 0, err
		}
		hi, lo := bits.Mul64(count, dims[i])
		if hi != 0 || lo > math.MaxInt64/8 || dims[i] == 0 {
			return e, 0, bad("tensor %q: a dimension is 0, or the size of the shape overflows", name)
		}
		count = lo
	}
	t, err := h.u32()
	if err != nil {
		return e, 0, err
	}
	f, ok := forms[Type(t)]
	if !ok {
		return e, 0, bad("tensor %q has the type number %d; those that are read: %s", name, t, strings.Join(Types(), ", "))
	}
	row := uint64(1)
	if rank > 0 {
		row = dims[0]
	}
	if row%uint64(f.block) != 0 {
		return e, 0, bad("tensor %q: rows of %d elements are no whole blocks of %s, which have %d", name, row, f.name, f.block)
	}
	for i := range dims {
		e.shape = append(e.shape, int(dims[rank-1-uint32(i)]))
	}
	e.form, e.size = f, int64(count/uint64(f.block))*int64(f.bytes)
	offset, err = h.u64()
	return e, offset, err
}

// place checks where the data of the tensors lie.
func (r *Reader) place(offsets []uint64, start, size, align int64, shapes map[string][]int) error {
	for i := range r.entries {
		e := &r.entries[i]
		if offsets[i]%uint64(align) != 0 {
			return refuse.Errorf(r.path, "tensor %q begins at %d, which is no multiple of %d", e.name, offsets[i], align)
		}
		if start > size || offsets[i] > uint64(size-start) || e.size > size-start-int64(offsets[i]) {
			return refuse.Errorf(r.path, "tensor %q of %d bytes at %d reaches beyond the end of the file", e.name, e.size, offsets[i])
		}
		e.at = start + int64(offsets[i])
	}
	order := make([]int, len(r.entries))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		x, y := &r.entries[a], &r.entries[b]
		switch {
		case x.at != y.at:
			return map[bool]int{true: -1, false: 1}[x.at < y.at]
		case x.size != y.size:
			return map[bool]int{true: -1, false: 1}[x.size < y.size]
		}
		return a - b
	})
	for k := 1; k < len(order); k++ {
		a, b := &r.entries[order[k-1]], &r.entries[order[k]]
		if a.at+a.size > b.at {
			return refuse.Errorf(r.path, "the tensors %q and %q overlap", a.name, b.name)
		}
	}
	for name, shape := range shapes {
		i, ok := r.index[name]
		if !ok {
			continue
		}
		e := &r.entries[i]
		n := int64(1)
		for _, d := range shape {
			if d < 1 || n > math.MaxInt64/8/int64(d) {
				return refuse.Errorf(r.path, "tensor %q: its original shape is %v", name, shape)
			}
			n *= int64(d)
		}
		if n != e.size/int64(e.form.bytes)*int64(e.form.block) {
			return refuse.Errorf(r.path, "tensor %q: its original shape %v has %d elements, the file %d", name, shape, n, e.size/int64(e.form.bytes)*int64(e.form.block))
		}
	}
	return nil
}

// Path returns the path the reader was opened with.
func (r *Reader) Path() string { return r.path }

// Files returns the file.
func (r *Reader) Files() []string { return []string{r.path} }

// Value returns a text of the header, such as general.architecture.
func (r *Reader) Value(key string) string { return r.values[key] }

// Tensors lists the tensors in the order of the file, quantised ones as F32.
func (r *Reader) Tensors() []safetensors.Tensor {
	list := make([]safetensors.Tensor, len(r.entries))
	for i := range r.entries {
		list[i] = r.entries[i].tensor()
	}
	return list
}

// Tensor returns the description of one tensor.
func (r *Reader) Tensor(name string) (safetensors.Tensor, bool) {
	i, ok := r.index[name]
	if !ok {
		return safetensors.Tensor{}, false
	}
	return r.entries[i].tensor(), true
}

// Stored names the type in which the file holds a tensor, such as Q4_0.
func (r *Reader) Stored(name string) string {
	i, ok := r.index[name]
	if !ok {
		return ""
	}
	return r.entries[i].form.name
}

func (r *Reader) entryOf(name string) (*entry, error) {
	i, ok := r.index[name]
	if !ok {
		return nil, refuse.Errorf(r.path, "has no tensor %q", name)
	}
	return &r.entries[i], nil
}

// Float32 reads a tensor, row-major, as float32: of quantised ones the numbers
// that the blocks stand for.
func (r *Reader) Float32(name string) ([]float32, error) {
	e, err := r.entryOf(name)
	if err != nil {
		return nil, err
	}
	if e.form.plain != "" {
		raw, err := r.Bytes(name)
		if err != nil {
			return nil, err
		}
		v, err := safetensors.Widen(e.form.plain, raw)
		if err != nil {
			return nil, refuse.Errorf(r.path, "tensor %q: %v", name, err)
		}
		return v, nil
	}
	blocks := e.size / int64(e.form.bytes)
	out := make([]float32, blocks*int64(e.form.block))
	const many = 1024
	buf := make([]byte, min(blocks, many)*int64(e.form.bytes))
	for at := int64(0); at < blocks; at += many {
		raw := buf[:min(many, blocks-at)*int64(e.form.bytes)]
		if _, err := r.data.ReadAt(raw, e.at+at*int64(e.form.bytes)); err != nil {
			return nil, fmt.Errorf("%s: reading tensor %q: %w", r.path, name, err)
		}
		for i := 0; len(raw) > 0; i++ {
			e.form.decode(out[(at+int64(i))*int64(e.form.block):][:e.form.block], raw[:e.form.bytes])
			raw = raw[e.form.bytes:]
		}
	}
	return out, nil
}

// Bytes reads the elements of a tensor, little-endian: of quantised ones the
// bytes of their Float32.
func (r *Reader) Bytes(name string) ([]byte, error) {
	e, err := r.entryOf(name)
	if err != nil {
		return nil, err
	}
	if e.form.plain == "" {
		v, err := r.Float32(name)
		if err != nil {
			return nil, err
		}
		b := make([]byte, 0, 4*len(v))
		for _, x := range v {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
		}
		return b, nil
	}
	b := make([]byte, e.size)
	if _, err := r.data.ReadAt(b, e.at); err != nil {
		return nil, fmt.Errorf("%s: reading tensor %q: %w", r.path, name, err)
	}
	return b, nil
}

// Section reads the elements of a tensor that is not quantised in parts.
func (r *Reader) Section(name string) (*io.SectionReader, error) {
	e, err := r.entryOf(name)
	if err != nil {
		return nil, err
	}
	if e.form.plain == "" {
		return nil, refuse.Errorf(r.path, "tensor %q is quantised", name)
	}
	return io.NewSectionReader(r.data, e.at, e.size), nil
}

// Close closes the file.
func (r *Reader) Close() error { return r.close() }
