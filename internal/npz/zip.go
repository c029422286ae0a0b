package npz

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"unicode/utf8"
)

// The part of the zip format (PKWARE APPNOTE 6.3) that numpy writes: stored
// and deflated members, with or without zip64, in one file without gaps
// before its directory ends.

const (
	maxMembers   = 65_536
	maxDirectory = 16 << 20
	maxRatio     = 1032 // the most that deflate can expand
)

// zipMember is one entry of the central directory.
type zipMember struct {
	name                 string
	flags, method        uint16
	crc                  uint32
	packed, size, offset int64
	start                int64 // of the packed data
}

// readDirectory reads and checks the central directory of a zip of that size.
func readDirectory(f io.ReaderAt, size int64) ([]zipMember, error) {
	count, at, end, err := findDirectory(f, size)
	if err != nil {
		return nil, err
	}
	if count > maxMembers || end-at > maxDirectory {
		return nil, badf("%d members in a directory of %d bytes, at most %d in %d are read", count, end-at, maxMembers, maxDirectory)
	}
	text := make([]byte, end-at)
	if err := readAt(f, text, at); err != nil {
		return nil, err
	}
	var members []zipMember
	for range count {
		var m zipMember
		if text, err = m.parse(text); err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	if len(text) > 0 {
		return nil, badf("the zip directory has %d bytes after its last member", len(text))
	}
	seen := map[string]bool{}
	byOffset := make([]*zipMember, len(members))
	for i := range members {
		m := &members[i]
		if seen[m.name] {
			return nil, badf("two members are called %q", m.name)
		}
		seen[m.name] = true
		if err := m.locate(f, at); err != nil {
			return nil, fmt.Errorf("member %q: %w", m.name, err)
		}
		byOffset[i] = m
	}
	slices.SortFunc(byOffset, func(a, b *zipMember) int { return int(min(max(a.offset-b.offset, -1), 1)) })
	for i := 1; i < len(byOffset); i++ {
		if a, b := byOffset[i-1], byOffset[i]; a.start+a.packed > b.offset {
			return nil, badf("the members %q and %q overlap", a.name, b.name)
		}
	}
	return members, nil
}

func readAt(f io.ReaderAt, b []byte, at int64) error {
	n, err := f.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	return err
}

// findDirectory finds the end records and returns the number of members and
// the place of the central directory.
func findDirectory(f io.ReaderAt, size int64) (count uint64, at, end int64, err error) {
	le := binary.LittleEndian
	const record = 22
	tail := make([]byte, min(size, record+math.MaxUint16))
	if err := readAt(f, tail, size-int64(len(tail))); err != nil {
		return 0, 0, 0, err
	}
	i := len(tail) - record
	for ; i >= 0; i-- {
		if bytes.HasPrefix(tail[i:], []byte("PK\x05\x06")) && int(le.Uint16(tail[i+20:])) == len(tail)-i-record {
			break
		}
	}
	if i < 0 {
		return 0, 0, 0, badf("not a zip archive, or cut: it has no end record")
	}
	e := tail[i:]
	end = size - int64(len(e))
	if le.Uint16(e[4:]) != 0 && le.Uint16(e[4:]) != math.MaxUint16 || le.Uint16(e[6:]) != le.Uint16(e[4:]) || le.Uint16(e[8:]) != le.Uint16(e[10:]) {
		return 0, 0, 0, badf("zip archives of several parts are not read")
	}
	count, length, offset := uint64(le.Uint16(e[10:])), uint64(le.Uint32(e[12:])), uint64(le.Uint32(e[16:]))
	if count == math.MaxUint16 || length == math.MaxUint32 || offset == math.MaxUint32 {
		if count, length, offset, end, err = findZip64(f, end); err != nil {
			return 0, 0, 0, err
		}
	}
	if offset > uint64(end) || length != uint64(end)-offset {
		return 0, 0, 0, badf("the zip directory is said to have %d bytes at %d, but ends at %d", length, offset, end)
	}
	return count, int64(offset), end, nil
}

// findZip64 reads the locator before the end record, and the record it names.
func findZip64(f io.ReaderAt, end int64) (count, length, offset uint64, at int64, err error) {
	le := binary.LittleEndian
	var b [56]byte
	if end < 20+56 {
		return 0, 0, 0, 0, badf("the zip64 end record is missing")
	}
	if err := readAt(f, b[:20], end-20); err != nil {
		return 0, 0, 0, 0, err
	}
	at = int64(le.Uint64(b[8:]))
	if string(b[:4]) != "PK\x06\x07" || at != end-20-56 {
		return 0, 0, 0, 0, badf("the zip64 end record is missing")
	}
	if err := readAt(f, b[:], at); err != nil {
		return 0, 0, 0, 0, err
	}
	if string(b[:4]) != "PK\x06\x06" || le.Uint64(b[4:]) != 44 || le.Uint32(b[16:]) != 0 || le.Uint32(b[20:]) != 0 || le.Uint64(b[24:]) != le.Uint64(b[32:]) {
		return 0, 0, 0, 0, badf("the zip64 end record is damaged")
	}
	return le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint64(b[48:]), at, nil
}

// parse reads one directory entry and returns the text after it.
func (m *zipMember) parse(b []byte) ([]byte, error) {
	le := binary.LittleEndian
	const fixed = 46
	if len(b) < fixed || string(b[:4]) != "PK\x01\x02" {
		return nil, badf("the zip directory is damaged")
	}
	n, x, c := int(le.Uint16(b[28:])), int(le.Uint16(b[30:])), int(le.Uint16(b[32:]))
	if len(b) < fixed+n+x+c {
		return nil, badf("the zip directory is cut")
	}
	m.name = string(b[fixed : fixed+n])
	if !utf8.ValidString(m.name) {
		return nil, badf("a member name is not valid UTF-8")
	}
	m.flags, m.method, m.crc = le.Uint16(b[8:]), le.Uint16(b[10:]), le.Uint32(b[16:])
	wide, err := zip64Extra(b[fixed+n : fixed+n+x])
	if err != nil {
		return nil, fmt.Errorf("member %q: %w", m.name, err)
	}
	for _, v := range []struct {
		to   *int64
		from uint32
	}{{&m.size, le.Uint32(b[24:])}, {&m.packed, le.Uint32(b[20:])}, {&m.offset, le.Uint32(b[42:])}} {
		*v.to = int64(v.from)
		if v.from == math.MaxUint32 {
			if len(wide) < 8 || le.Uint64(wide) > math.MaxInt64 {
				return nil, badf("member %q: its zip64 sizes are missing or too large", m.name)
			}
			*v.to, wide = int64(le.Uint64(wide)), wide[8:]
		}
	}
	if le.Uint16(b[34:]) != 0 {
		return nil, badf("zip archives of several parts are not read")
	}
	return b[fixed+n+x+c:], nil
}

// zip64Extra returns the zip64 field of the extra data, nil if there is none.
func zip64Extra(b []byte) ([]byte, error) {
	var wide []byte
	for len(b) > 0 {
		if len(b) < 4 || len(b) < 4+int(binary.LittleEndian.Uint16(b[2:])) {
			return nil, badf("its zip extra field is damaged")
		}
		n := 4 + int(binary.LittleEndian.Uint16(b[2:]))
		if binary.LittleEndian.Uint16(b) == 1 {
			wide = b[4:n]
		}
		b = b[n:]
	}
	return wide, nil
}

// locate reads the header before the member's data, which must agree with the
// directory, and finds where the data starts; it must end before end.
func (m *zipMember) locate(f io.ReaderAt, end int64) error {
	le := binary.LittleEndian
	switch {
	case m.flags&(1|1<<6|1<<13) != 0:
		return badf("it is encrypted")
	case m.flags&(1<<5) != 0:
		return badf("it is a patch")
	case m.method != 0 && m.method != 8:
		return badf("compression method %d is not read, only stored and deflated", m.method)
	case m.method == 0 && m.size != m.packed:
		return badf("it is stored in %d bytes and said to have %d", m.packed, m.size)
	case m.size/maxRatio > m.packed+1:
		return badf("%d bytes cannot come out of %d", m.size, m.packed)
	}
	const fixed = 30
	var b [fixed]byte
	if m.offset > end-fixed {
		return badf("it begins beyond the members")
	}
	if err := readAt(f, b[:], m.offset); err != nil {
		return err
	}
	if string(b[:4]) != "PK\x03\x04" {
		return badf("no member stands where the directory says")
	}
	n, x := int64(le.Uint16(b[26:])), int64(le.Uint16(b[28:]))
	m.start = m.offset + fixed + n + x
	if m.start > end || m.packed > end-m.start {
		return badf("its data runs into the directory")
	}
	rest := make([]byte, n+x)
	if err := readAt(f, rest, m.offset+fixed); err != nil {
		return err
	}
	wide, err := zip64Extra(rest[n:])
	if err != nil {
		return err
	}
	if string(rest[:n]) != m.name || le.Uint16(b[8:]) != m.method || le.Uint16(b[6:])&1 != 0 {
		return badf("its header and the directory disagree")
	}
	if m.flags&(1<<3) != 0 { // sizes and checksum stand after the data
		return nil
	}
	packed, size := int64(le.Uint32(b[18:])), int64(le.Uint32(b[22:]))
	if packed == math.MaxUint32 && size == math.MaxUint32 && len(wide) >= 16 {
		size, packed = int64(le.Uint64(wide)), int64(le.Uint64(wide[8:]))
	}
	if packed != m.packed || size != m.size || le.Uint32(b[14:]) != m.crc {
		return badf("its header and the directory disagree")
	}
	return nil
}
