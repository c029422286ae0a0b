// Package torchfile reads the tensors of files that torch.save wrote: .bin,
// .pt, .pth and .ckpt, in the zip form of today (an archive of NAME/data.pkl
// and NAME/data/KEY) and in the legacy form (five pickles, then the storages).
//
// Such files hold pickles, which are programs. Here they are data: a machine
// of a few opcodes builds numbers, texts, tuples, lists and dictionaries, and
// the only names a file may mention are torch's storages, _rebuild_tensor_v2,
// _rebuild_parameter and OrderedDict. Nothing is imported, called or run.
// Another name refuses the file where it stands, and so does whatever the file
// says that its bytes do not bear out: sizes are held against the members of
// the archive before anything is allocated, checksums against their bytes,
// shapes, strides and offsets against their storage. What breaks a rule is
// reported as a *refuse.Error.
//
// Big-endian files, TorchScript, compressed members, quantised and complex
// tensors and views of storages (torch before 0.4) are refused.
package torchfile

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"drift/internal/refuse"
	"drift/internal/safetensors"
)

// Limits of a file, beside those of its pickles.
const (
	maxDirectory = 4 << 20 // bytes of the directory of a zip
	maxMembers   = 1<<16 - 2
	maxNodes     = 1 << 20 // entries of nested dictionaries and lists
	maxNesting   = 16
	maxTensors   = 1 << 16
	maxText      = 8 << 20 // bytes of all names
	maxRepeat    = 16      // bytes of all tensors for a byte of the file
)

// A Tensor is one tensor of a file. Its elements lie somewhere in a storage,
// which it may share with others.
type Tensor struct {
	Path  []string // the keys that lead to it, from the outermost dictionary
	DType safetensors.DType
	Shape []int // empty for a scalar

	storage int     // index into File.storages
	offset  int64   // in elements
	stride  []int64 // in elements
}

// Name is the path, joined by dots.
func (t Tensor) Name() string { return strings.Join(t.Path, ".") }

// Storage numbers the storage of the tensor within its file: tensors with
// equal numbers share memory.
func (t Tensor) Storage() int { return t.storage }

// Len is the number of elements.
func (t Tensor) Len() int {
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// storage is a checked storage and the place of its bytes.
type storage struct {
	storageID
	size, at int64  // bytes, and their place in the file
	sum      uint32 // CRC-32
	summed   bool   // the legacy form has no sums
	checked  bool   // all its bytes were
}

// A File is an open file. Its structure and sizes were checked; the bytes of a
// storage are read, and checked, when a tensor wants them.
type File struct {
	path     string
	source   io.ReaderAt
	size     int64
	close    func() error // may be nil
	legacy   bool
	tensors  []Tensor
	storages []storage
	index    map[string]int // storages by key
	keys     []string       // of the outermost dictionary
}

// Open opens a file and reads all but the storages.
func Open(path string) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, refuse.Errorf(path, "not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	t, err := Read(path, f, info.Size())
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	t.close = f.Close
	return t, nil
}

// Read is Open for a file that lies in r, size bytes long; path names it in
// errors. r must stay readable as long as the File is used.
func Read(path string, r io.ReaderAt, size int64) (*File, error) {
	f := &File{path: path, source: r, size: size, index: map[string]int{}}
	err := f.read()
	var b bad
	if errors.As(err, &b) {
		return nil, refuse.Errorf(path, "%v", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: reading a torch file: %w", path, err)
	}
	return f, nil
}

// Close closes the file.
func (f *File) Close() error {
	if f.close == nil {
		return nil
	}
	return f.close()
}

// Path returns the path the file was opened with.
func (f *File) Path() string { return f.path }

// Legacy tells whether the file has the form that torch wrote before 1.6.
func (f *File) Legacy() bool { return f.legacy }

// SHA256 is the hash of the whole file, in hexadecimal digits.
func (f *File) SHA256(ctx context.Context) (string, error) {
	h := sha256.New()
	for r := io.NewSectionReader(f.source, 0, f.size); ; {
		_, err := io.CopyN(h, r, 1<<20)
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return "", fmt.Errorf("%s: hashing: %w", f.path, err)
		}
	}
}

// Tensors lists the tensors in the order of the file.
func (f *File) Tensors() []Tensor { return slices.Clone(f.tensors) }

// Keys lists the keys of the outermost dictionary.
func (f *File) Keys() []string { return slices.Clone(f.keys) }

func (f *File) read() error {
	head := make([]byte, min(f.size, 4))
	if err := f.readAt(head, 0); err != nil {
		return err
	}
	f.legacy = string(head) != "PK\x03\x04"
	read := f.readZip
	if f.legacy {
		read = f.readLegacy
	}
	root, err := read()
	if err != nil {
		return err
	}
	d, ok := root.(*dict)
	if !ok {
		return badf("its outermost value is no dictionary of tensors")
	}
	w := walker{file: f, seen: map[string]bool{}}
	if err := w.walk(nil, d); err != nil {
		return err
	}
	for _, e := range d.items {
		if key, ok := keyText(e.key); ok {
			f.keys = append(f.keys, key)
		}
	}
	return nil
}

func (f *File) readAt(b []byte, at int64) error {
	n, err := f.source.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	return err
}

// readZip reads an archive of NAME/data.pkl and NAME/data/KEY.
func (f *File) readZip() (any, error) {
	if err := f.checkDirectory(); err != nil {
		return nil, err
	}
	z, err := zip.NewReader(f.source, f.size)
	if err != nil {
		return nil, badf("the zip archive is damaged: %v", err)
	}
	members := map[string]*zip.File{}
	folder := ""
	for i, m := range z.File {
		if i == 0 {
			folder, _, _ = strings.Cut(m.Name, "/")
		}
		rest, ok := strings.CutPrefix(m.Name, folder+"/")
		switch {
		case !ok:
			return nil, badf("the member %q is not in the folder %q of the others", m.Name, folder)
		case members[rest] != nil:
			return nil, badf("two members are called %q", m.Name)
		case rest == "constants.pkl" || strings.HasPrefix(rest, "code/"):
			return nil, badf("it is TorchScript, which carries code; save its state_dict() instead")
		}
		members[rest] = m
	}
	if m := members["byteorder"]; m != nil {
		order, err := f.member(m, 16)
		if err != nil {
			return nil, err
		}
		if s := strings.TrimSpace(string(order)); s != "little" {
			return nil, badf("its byte order is %q; only little is read", s)
		}
	}
	m := members["data.pkl"]
	if m == nil {
		return nil, badf("not a torch file: the archive has no data.pkl")
	}
	text, err := f.member(m, maxPickle)
	if err != nil {
		return nil, err
	}
	p, err := unpickle(text)
	if err != nil {
		return nil, err
	}
	if p.length != len(text) {
		return nil, badf("%d bytes follow the pickle", len(text)-p.length)
	}
	total := int64(0)
	for _, id := range p.storages {
		s, err := newStorage(id)
		if err != nil {
			return nil, err
		}
		m := members["data/"+s.key]
		if m == nil {
			return nil, badf("storage %q is not in the archive", s.key)
		}
		if m.UncompressedSize64 != uint64(s.size) {
			return nil, badf("storage %q has %d bytes, its pickle says %d", s.key, m.UncompressedSize64, s.size)
		}
		if s.at, err = f.place(m); err != nil {
			return nil, err
		}
		s.sum, s.summed = m.CRC32, true
		if total += s.size; total > f.size {
			return nil, badf("its storages take more bytes than the file has: they overlap")
		}
		f.add(s)
	}
	return p.value, nil
}

// checkDirectory bounds the directory of an archive before archive/zip reads
// it. The end record must be the last of the file, as torch writes it.
func (f *File) checkDirectory() error {
	le := binary.LittleEndian
	const record, locator, record64 = 22, 20, 56
	tail := make([]byte, min(f.size, record64+locator+record))
	if err := f.readAt(tail, f.size-int64(len(tail))); err != nil {
		return err
	}
	if len(tail) < record || string(tail[len(tail)-record:][:4]) != "PK\x05\x06" {
		return badf("the zip archive is cut, or something follows it")
	}
	end := tail[len(tail)-record:]
	count, size, at := uint64(le.Uint16(end[10:])), uint64(le.Uint32(end[12:])), uint64(le.Uint32(end[16:]))
	// torch writes the long form of the record too where the short one says it all.
	long := len(tail) == record64+locator+record && string(tail[:4]) == "PK\x06\x06" && string(tail[record64:][:4]) == "PK\x06\x07" &&
		le.Uint64(tail[record64+8:]) == uint64(f.size)-uint64(len(tail))
	if count == math.MaxUint16 || size == math.MaxUint16 || size == math.MaxUint32 || at == math.MaxUint32 {
		if !long {
			return badf("the zip archive has a damaged end record")
		}
		count, size, at = le.Uint64(tail[32:]), le.Uint64(tail[40:]), le.Uint64(tail[48:])
	}
	if count > maxMembers || size > maxDirectory {
		return badf("a zip archive of %d members with a directory of %d bytes; at most %d in %d are read", count, size, maxMembers, maxDirectory)
	}
	below := uint64(f.size) - record // where the directory ends
	if long {
		below -= locator + record64
	}
	if at > below || size != below-at { // archive/zip counts the members modulo 65536, and reads on to the end record
		return badf("the zip archive has a directory of another size than its end record says")
	}
	return nil
}

// place checks a member and returns where its bytes begin.
func (f *File) place(m *zip.File) (int64, error) {
	if m.Method != zip.Store || m.CompressedSize64 != m.UncompressedSize64 || m.Flags&1 != 0 {
		return 0, badf("the member %q is compressed or encrypted, which torch does not do", m.Name)
	}
	at, err := m.DataOffset()
	if err != nil {
		return 0, badf("the member %q is not where the directory says: %v", m.Name, err)
	}
	if at > f.size || m.UncompressedSize64 > uint64(f.size-at) {
		return 0, badf("the member %q is said to have %d bytes, more than the file", m.Name, m.UncompressedSize64)
	}
	return at, nil
}

// member reads a member of at most that many bytes.
func (f *File) member(m *zip.File, most uint64) ([]byte, error) {
	at, err := f.place(m)
	if err != nil {
		return nil, err
	}
	if m.UncompressedSize64 > most {
		return nil, badf("the member %q has %d bytes, at most %d are read", m.Name, m.UncompressedSize64, most)
	}
	data := make([]byte, m.UncompressedSize64)
	if err := f.readAt(data, at); err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(data) != m.CRC32 {
		return nil, badf("the member %q does not have the checksum that the archive says", m.Name)
	}
	return data, nil
}

// The legacy form begins with this number, and this version.
const (
	legacyMagic   = long("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")
	legacyVersion = 1001
)

// readLegacy reads five pickles (magic number, version, machine, object, keys
// of the storages); the storages follow in the order of the keys, each after
// its number of elements.
func (f *File) readLegacy() (any, error) {
	text := make([]byte, min(f.size, maxPickle))
	if err := f.readAt(text, 0); err != nil {
		return nil, err
	}
	at := 0
	next := func() (*pickle, error) {
		p, err := unpickle(text[at:])
		if err == nil {
			at += p.length
		}
		return p, err
	}
	if len(text) == 0 || text[0] != 0x80 {
		return nil, badf("not a torch file: neither a zip archive nor a pickle")
	}
	if bytes.Contains(text, []byte("torch_utils.persistence")) {
		return nil, badf("a snapshot of EDM or StyleGAN, whose pickle carries programs, which are never run here: load it with its own code, in a container of its own, and write safetensors.torch.save_file({k: v.float().contiguous() for k, v in data['ema'].state_dict().items()}, \"net.safetensors\")")
	}
	magic, err := next()
	if err != nil {
		return nil, err
	}
	if magic.value != legacyMagic {
		return nil, badf("not a torch file: a pickle, but not with torch's number at its beginning")
	}
	version, err := next()
	if err != nil {
		return nil, err
	}
	if version.value != int64(legacyVersion) {
		if v, ok := version.value.(int64); ok {
			return nil, badf("version %d of the legacy form, only %d is read", v, legacyVersion)
		}
		return nil, badf("the version of the legacy form is no number") // whose text may have no bounds
	}
	machine, err := next()
	if err != nil {
		return nil, err
	}
	if d, ok := machine.value.(*dict); !ok || d.get("little_endian") != true {
		return nil, badf("it was not written on a little-endian machine")
	}
	object, err := next()
	if err != nil {
		return nil, err
	}
	keys, err := next()
	if err != nil {
		return nil, err
	}
	order, ok := keys.value.(*list)
	if !ok || len(order.items) != len(object.storages) {
		return nil, badf("the list of storages does not have the %d that the tensors want", len(object.storages))
	}
	known := map[string]storageID{}
	for _, id := range object.storages {
		known[id.key] = id
	}
	place := int64(at)
	for _, v := range order.items {
		key, _ := v.(string)
		id, ok := known[key]
		if _, twice := f.index[key]; !ok || twice {
			return nil, badf("the list of storages has %q, which no tensor wants, or has it twice", key)
		}
		s, err := newStorage(id)
		if err != nil {
			return nil, err
		}
		var count [8]byte
		if f.size-place < 8 || f.size-place-8 < s.size {
			return nil, badf("storage %q takes %d bytes, the file is cut", s.key, s.size)
		}
		if err := f.readAt(count[:], place); err != nil {
			return nil, err
		}
		if n := binary.LittleEndian.Uint64(count[:]); n != uint64(s.numel) {
			return nil, badf("storage %q has %d elements, its pickle says %d", s.key, n, s.numel)
		}
		s.at = place + 8
		place = s.at + s.size
		f.add(s)
	}
	if place != f.size {
		return nil, badf("%d bytes follow the last storage", f.size-place)
	}
	return object.value, nil
}

// width is the number of bytes of an element of a storage, 0 for other names.
func width(n name) int64 { return int64(safetensors.DType(n).Bits() / 8) }

func newStorage(id storageID) (storage, error) {
	if id.numel > math.MaxInt64/width(id.class) {
		return storage{}, badf("storage %q declares %d elements", id.key, id.numel)
	}
	return storage{storageID: id, size: id.numel * width(id.class)}, nil
}

func (f *File) add(s storage) {
	f.index[s.key] = len(f.storages)
	f.storages = append(f.storages, s)
}

// walker finds the tensors of nested dictionaries, lists and tuples.
type walker struct {
	file        *File
	seen        map[string]bool
	nodes, text int
	bytes       int64
}

func keyText(key any) (string, bool) {
	switch k := key.(type) {
	case string:
		return k, true
	case int64:
		return strconv.FormatInt(k, 10), true
	}
	return "", false
}

func (w *walker) walk(path []string, v any) error {
	if len(path) > maxNesting {
		return badf("its dictionaries are nested more than %d deep", maxNesting)
	}
	each := func(key, item any) error {
		if w.nodes++; w.nodes > maxNodes {
			return badf("its dictionaries hold more than %d entries", maxNodes)
		}
		switch item.(type) {
		case *view, *dict, *list, tuple:
		default:
			return nil
		}
		text, ok := keyText(key)
		if !ok {
			return badf("a dictionary has a key that is neither text nor an integer")
		}
		return w.walk(append(path[:len(path):len(path)], text), item)
	}
	numbered := func(items []any) error {
		for i, item := range items {
			if err := each(int64(i), item); err != nil {
				return err
			}
		}
		return nil
	}
	switch v := v.(type) {
	case *view:
		return w.tensor(path, v)
	case *list:
		return numbered(v.items)
	case tuple:
		return numbered(v)
	case *dict:
		for _, e := range v.items {
			if err := each(e.key, e.value); err != nil {
				return err
			}
		}
	}
	return nil
}

// tensor checks a tensor against its storage.
func (w *walker) tensor(path []string, v *view) error {
	f := w.file
	at := f.index[v.storage.key]
	s := f.storages[at]
	t := Tensor{Path: path, DType: safetensors.DType(s.class), Shape: make([]int, len(v.shape)), storage: at, offset: v.offset, stride: v.stride}
	name := t.Name()
	if w.text += len(name); w.text > maxText || len(f.tensors) == maxTensors {
		return badf("more than %d tensors, or more than %d bytes of names", maxTensors, maxText)
	}
	if w.seen[name] {
		return badf("two tensors are called %q", name)
	}
	w.seen[name] = true
	if len(v.shape) != len(v.stride) {
		return badf("tensor %q: a shape of %d and strides of %d dimensions", name, len(v.shape), len(v.stride))
	}
	empty := slices.Contains(v.shape, 0)
	n, last, fits := int64(1), v.offset, v.offset >= 0 && v.offset <= s.numel && (empty || v.offset < s.numel)
	for i, d := range v.shape { // all products and sums stay below 2^63
		if d < 0 || v.stride[i] < 0 {
			return badf("tensor %q: shape %v and strides %v, none may be negative", name, v.shape, v.stride)
		}
		t.Shape[i] = int(d)
		if d > 1 && fits {
			fits = n <= maxRepeat*f.size/d && (empty || v.stride[i] <= (s.numel-1-last)/(d-1))
			if n *= d; !empty {
				last += (d - 1) * v.stride[i]
			}
		}
	}
	if !fits {
		return badf("tensor %q: shape %v with strides %v from element %d does not fit in its storage of %d", name, v.shape, v.stride, v.offset, s.numel)
	}
	if empty {
		n = 0
	}
	if w.bytes += n * width(s.class); w.bytes > maxRepeat*f.size {
		return badf("its tensors take more than %d times the bytes of the file", maxRepeat)
	}
	f.tensors = append(f.tensors, t)
	return nil
}

// sparse is from how many bytes of a storage for a byte of a tensor on the
// elements are read one by one.
const sparse = 16

// Bytes returns the elements of a tensor of this file, row-major and
// little-endian. The first tensor of a storage has all of the storage checked,
// others read no more of it than they want.
func (f *File) Bytes(t Tensor) ([]byte, error) {
	s := &f.storages[t.storage]
	w := width(s.class)
	n, dense, span := int64(t.Len()), int64(1), int64(1)
	contiguous := true
	for i := len(t.Shape) - 1; i >= 0 && n > 0; i-- {
		contiguous = contiguous && (t.Shape[i] == 1 || t.stride[i] == dense)
		dense *= int64(t.Shape[i])
		span += int64(t.Shape[i]-1) * t.stride[i] // from the first to the last element
	}
	if n == 0 {
		return nil, f.check(s, nil)
	}
	read := func(b []byte, from int64) error {
		if err := f.readAt(b, s.at+from*w); err != nil {
			return fmt.Errorf("%s: reading storage %q: %w", f.path, s.key, err)
		}
		return nil
	}
	var data []byte
	if span/sparse <= n {
		data = make([]byte, span*w)
		if err := read(data, t.offset); err != nil {
			return nil, err
		}
	}
	if err := f.check(s, data); err != nil || contiguous {
		return data, err
	}
	out := make([]byte, n*w)
	at, index := int64(0), make([]int, len(t.Shape))
	for k := range n {
		if to := out[k*w:][:w]; data != nil {
			copy(to, data[at*w:])
		} else if err := read(to, t.offset+at); err != nil {
			return nil, err
		}
		for i := len(index) - 1; i >= 0; i-- {
			index[i]++
			at += t.stride[i]
			if index[i] < t.Shape[i] {
				break
			}
			at -= int64(t.Shape[i]) * t.stride[i]
			index[i] = 0
		}
	}
	return out, nil
}

// check reads a storage, unless data is all of it, and holds it to its
// checksum and its type: once.
func (f *File) check(s *storage, data []byte) error {
	if s.checked || !s.summed && s.class != name(safetensors.Bool) {
		return nil
	}
	piece := data
	if int64(len(data)) != s.size {
		piece = make([]byte, min(s.size, 1<<20))
	}
	sum := uint32(0)
	for at := int64(0); at < s.size; at += int64(len(piece)) {
		piece = piece[:min(int64(len(piece)), s.size-at)]
		if int64(len(data)) != s.size {
			if err := f.readAt(piece, s.at+at); err != nil {
				return fmt.Errorf("%s: reading storage %q: %w", f.path, s.key, err)
			}
		}
		sum = crc32.Update(sum, crc32.IEEETable, piece)
		for k, v := range piece {
			if s.class == name(safetensors.Bool) && v > 1 {
				return refuse.Errorf(f.path, "storage %q: element %d is %d, no truth value", s.key, at+int64(k), v)
			}
		}
	}
	if s.summed && sum != s.sum {
		return refuse.Errorf(f.path, "storage %q does not have the checksum that the archive says", s.key)
	}
	s.checked = true
	return nil
}
