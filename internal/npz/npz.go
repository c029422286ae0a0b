package npz

import (
	"bufio"
	"compress/flate"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"drift/internal/refuse"
)

// DefaultLimit is the most bytes that one array may take, unless
// Archive.Limit says otherwise: compression can promise a thousand times what
// is there. An array of which the file itself has a sixteenth may take more,
// up to MaxLimit.
const (
	DefaultLimit = 4 << 30
	MaxLimit     = 16 << 30
)

// An Archive is an open .npz file. The headers of its members were read, their
// values are read when asked for. Its methods may be called from several
// goroutines.
type Archive struct {
	// Limit is the most bytes that one array may take; 0 means DefaultLimit,
	// or MaxLimit.
	Limit int64

	path    string
	file    io.ReaderAt
	close   func() error // may be nil
	members []member
	index   map[string]int
}

type member struct {
	zipMember
	header
}

// Read opens a .npz file and reads its directory and the headers of all its
// arrays. The archive keeps the file open until Close.
func Read(path string) (*Archive, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, err
	}
	a, err := ReadFrom(path, f, size)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	a.close = f.Close
	return a, nil
}

// ReadFrom is Read for an archive that lies in f, size bytes long; path names
// it in errors. f must stay readable as long as the archive is used.
func ReadFrom(path string, f io.ReaderAt, size int64) (*Archive, error) {
	a := &Archive{path: path, file: f}
	if err := a.readMembers(size); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Archive) readMembers(size int64) error {
	list, err := readDirectory(a.file, size)
	if err != nil {
		return named(a.path, "", err)
	}
	a.index = make(map[string]int, len(list))
	var inflate inflater
	for _, z := range list {
		name, ok := strings.CutSuffix(z.name, ".npy")
		if !ok {
			return refuse.Errorf(a.path, "member %q is not an array (.npy)", z.name)
		}
		h, err := readHeader(inflate.reader(a.file, &z), z.size)
		if err != nil {
			return named(a.path, name, zipError(err))
		}
		h.Name = name
		a.index[name] = len(a.members)
		a.members = append(a.members, member{z, h})
	}
	return nil
}

// inflater reuses one decompressor for many members.
type inflater struct {
	packed *bufio.Reader
	flate  io.ReadCloser
}

func (f *inflater) reader(file io.ReaderAt, z *zipMember) io.Reader {
	raw := io.NewSectionReader(file, z.start, z.packed)
	if f.packed == nil {
		f.packed = bufio.NewReader(raw)
	}
	f.packed.Reset(raw)
	if z.method == 0 {
		return f.packed
	}
	if f.flate == nil {
		f.flate = flate.NewReader(f.packed)
	} else if err := f.flate.(flate.Resetter).Reset(f.packed, nil); err != nil {
		panic("npz: resetting a decompressor: " + err.Error()) // only a bad dictionary fails
	}
	return f.flate
}

// zipError turns the errors of the decompressor into refusals.
func zipError(err error) error {
	var corrupt flate.CorruptInputError
	if errors.As(err, &corrupt) {
		return badf("the compressed data is damaged")
	}
	return err
}

// Close closes the file.
func (a *Archive) Close() error {
	if a.close == nil {
		return nil
	}
	return a.close()
}

// Path returns the path the archive was read from.
func (a *Archive) Path() string { return a.path }

// Arrays describes the arrays in the order of the archive.
func (a *Archive) Arrays() []Info {
	list := make([]Info, len(a.members))
	for i := range a.members {
		list[i] = a.members[i].Info
	}
	return list
}

// Names lists the names of the arrays in the order of the archive.
func (a *Archive) Names() []string {
	list := make([]string, len(a.members))
	for i := range a.members {
		list[i] = a.members[i].Name
	}
	return list
}

// Info returns the description of one array and whether it is there.
func (a *Archive) Info(name string) (Info, bool) {
	i, ok := a.index[name]
	if !ok {
		return Info{}, false
	}
	return a.members[i].Info, true
}

// Array reads one array.
func (a *Archive) Array(name string) (*Array, error) {
	i, ok := a.index[name]
	if !ok {
		return nil, refuse.Errorf(a.path, "has no array %q; it has %q", name, a.Names())
	}
	m := &a.members[i]
	limit := a.Limit
	if limit == 0 {
		limit = m.limit()
	}
	if m.zipMember.size > limit {
		return nil, refuse.Errorf(a.path, "array %q takes %d bytes, more than the limit of %d", name, m.zipMember.size, limit)
	}
	data, err := m.read(a.file)
	if err != nil {
		return nil, named(a.path, name, zipError(err))
	}
	return &Array{Name: name, Shape: m.Shape, DType: m.DType, Data: data}, nil
}

// limit is the most bytes that the member may take.
func (m *zipMember) limit() int64 {
	return min(max(DefaultLimit, 16*min(m.packed, MaxLimit)), MaxLimit)
}

// read reads the whole member: header again, values, end and checksum.
func (m *member) read(file io.ReaderAt) (any, error) {
	var inflate inflater
	sum := crc32.NewIEEE()
	r := io.TeeReader(inflate.reader(file, &m.zipMember), sum)
	if _, err := io.CopyN(io.Discard, r, m.header.bytes); err != nil {
		return nil, err
	}
	data, err := m.readData(r, m.method == 0)
	if err != nil {
		return nil, err
	}
	var one [1]byte
	if n, err := io.ReadFull(r, one[:]); n > 0 {
		return nil, badf("it holds more than its %d bytes", m.zipMember.size)
	} else if !errors.Is(err, io.EOF) {
		return nil, err
	}
	if n, err := inflate.packed.Read(one[:]); n > 0 {
		return nil, badf("bytes follow its compressed data")
	} else if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if sum.Sum32() != m.crc {
		return nil, badf("its checksum is %08x and should be %08x: the data is damaged", sum.Sum32(), m.crc)
	}
	return data, nil
}

// ReadAll reads several arrays of a .npz file at once: those named, or all
// when no name is given.
func ReadAll(path string, names ...string) (map[string]*Array, error) {
	a, err := Read(path)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	if len(names) == 0 {
		names = a.Names()
	}
	arrays := make(map[string]*Array, len(names))
	for _, name := range names {
		if arrays[name], err = a.Array(name); err != nil {
			return nil, fmt.Errorf("reading arrays: %w", err)
		}
	}
	return arrays, nil
}
