package npz

import (
	"archive/zip"
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"drift/internal/atomicfile"
	"drift/internal/half"
)

// A Writer writes a .npz file, array by array. Members are stored without
// compression, with the date 1980-01-01, so equal arrays give equal bytes. The
// file appears under its name only with Commit.
type Writer struct {
	path  string
	file  *atomicfile.File
	buf   *bufio.Writer
	zip   *zip.Writer
	names map[string]bool
	open  *Member
}

// Create starts a .npz file.
func Create(path string) (*Writer, error) {
	f, err := atomicfile.Create(path)
	if err != nil {
		return nil, err
	}
	buf := bufio.NewWriterSize(f, 64<<10)
	return &Writer{path: path, file: f, buf: buf, zip: zip.NewWriter(buf), names: map[string]bool{}}, nil
}

// Array starts an array of known shape whose values follow in pieces. The
// array before it must be complete.
func (w *Writer) Array(x Info) (*Member, error) {
	if err := w.finish(); err != nil {
		return nil, err
	}
	if w.names[x.Name] || !utf8.ValidString(x.Name) || len(x.Name) > 1<<15 {
		return nil, fmt.Errorf("%s: writing npz: the name %.100q stands twice, is not UTF-8 or too long", w.path, x.Name)
	}
	w.names[x.Name] = true
	// One fixed date, so that equal arrays give equal bytes.
	date := time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	out, err := w.zip.CreateHeader(&zip.FileHeader{Name: x.Name + ".npy", Method: zip.Store, Modified: date})
	if err != nil {
		return nil, fmt.Errorf("%s: writing npz: %w", w.path, err)
	}
	m, err := newMember(out, x)
	if err != nil {
		return nil, fmt.Errorf("%s: writing npz: %w", w.path, err)
	}
	w.open = m
	return m, nil
}

// Add writes a whole array.
func (w *Writer) Add(a Array) error {
	m, err := w.Array(a.Info())
	if err != nil {
		return err
	}
	if err := m.Write(a.Data); err != nil {
		return err
	}
	return w.finish()
}

func (w *Writer) finish() error {
	if w.open == nil {
		return nil
	}
	m := w.open
	w.open = nil
	if m.left != 0 {
		return fmt.Errorf("%s: writing npz: array %q lacks %d values of the shape %v", w.path, m.Name, m.left, m.Shape)
	}
	return nil
}

// Commit finishes the file; the last array must be complete.
func (w *Writer) Commit() error {
	err := w.finish()
	if err == nil {
		err = w.zip.Close()
	}
	if err == nil {
		err = w.buf.Flush()
	}
	if err != nil {
		_ = w.file.Discard()
		return fmt.Errorf("%s: writing npz: %w", w.path, err)
	}
	return w.file.Commit()
}

// Discard removes what was written; after Commit it does nothing.
func (w *Writer) Discard() error { return w.file.Discard() }

// A Member is an array being written.
type Member struct {
	Info
	w    io.Writer
	left int64
}

func newMember(w io.Writer, x Info) (*Member, error) {
	n, _, err := x.size()
	if err != nil {
		return nil, fmt.Errorf("array %q: %w", x.Name, err)
	}
	if _, err := w.Write(encodeHeader(x)); err != nil {
		return nil, err
	}
	return &Member{Info: x, w: w, left: n}, nil
}

// encodeHeader returns magic, version 1.0, length and text, padded with spaces
// to a multiple of 64 as numpy does.
func encodeHeader(x Info) []byte {
	order := "<"
	if x.DType.width() == 1 {
		order = "|"
	}
	dims := strings.Trim(strings.ReplaceAll(fmt.Sprint(x.Shape), " ", ", "), "[]")
	if len(x.Shape) == 1 {
		dims += ","
	}
	text := fmt.Sprintf("{'descr': '%s%s', 'fortran_order': False, 'shape': (%s), }", order, x.DType, dims)
	const before = len(magic) + 4
	text += strings.Repeat(" ", (64-(before+len(text)+1)%64)%64) + "\n"
	b := append([]byte(magic), 1, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(text)))
	return append(b, text...)
}

// Write appends values in C order. Their type must be that of the array's
// DType; float32 values are rounded to f2, where overflow is an error.
func (m *Member) Write(values any) error {
	d := dtypeOf(values)
	if d == "" || d != m.DType && !(d == F4 && m.DType == F2) {
		return fmt.Errorf("array %q of %s: writing %T is not supported", m.Name, m.DType, values)
	}
	n := int64(reflect.ValueOf(values).Len())
	if n > m.left {
		return fmt.Errorf("array %q of shape %v: %d values too many", m.Name, m.Shape, n-m.left)
	}
	m.left -= n
	le := binary.LittleEndian
	switch v := values.(type) {
	case []uint8:
		_, err := m.w.Write(v)
		return err
	case []int8:
		return put(m.w, v, func(b []byte, x int8) []byte { return append(b, byte(x)) })
	case []bool:
		return put(m.w, v, func(b []byte, x bool) []byte {
			if x {
				return append(b, 1)
			}
			return append(b, 0)
		})
	case []int16:
		return put(m.w, v, func(b []byte, x int16) []byte { return le.AppendUint16(b, uint16(x)) })
	case []uint16:
		return put(m.w, v, le.AppendUint16)
	case []int32:
		return put(m.w, v, func(b []byte, x int32) []byte { return le.AppendUint32(b, uint32(x)) })
	case []uint32:
		return put(m.w, v, le.AppendUint32)
	case []int64:
		return put(m.w, v, func(b []byte, x int64) []byte { return le.AppendUint64(b, uint64(x)) })
	case []uint64:
		return put(m.w, v, le.AppendUint64)
	case []float64:
		return put(m.w, v, func(b []byte, x float64) []byte { return le.AppendUint64(b, math.Float64bits(x)) })
	case []float32:
		if m.DType == F4 {
			return put(m.w, v, func(b []byte, x float32) []byte { return le.AppendUint32(b, math.Float32bits(x)) })
		}
		for _, x := range v {
			if math.Abs(float64(x)) >= 65520 && !math.IsInf(float64(x), 0) {
				return fmt.Errorf("array %q: %g overflows f2", m.Name, x)
			}
		}
		return put(m.w, v, func(b []byte, x float32) []byte { return le.AppendUint16(b, half.ToFloat16(x)) })
	}
	panic("npz: a type of dtypeOf is missing here")
}

func put[T any](w io.Writer, values []T, encode func([]byte, T) []byte) error {
	const block = 4 << 10
	var buf []byte
	for len(values) > 0 {
		n := min(len(values), block)
		buf = buf[:0]
		for _, v := range values[:n] {
			buf = encode(buf, v)
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
		values = values[n:]
	}
	return nil
}

// Write writes a .npz file of these arrays in this order.
func Write(path string, arrays ...Array) error {
	w, err := Create(path)
	if err != nil {
		return err
	}
	for _, a := range arrays {
		if err := w.Add(a); err != nil {
			_ = w.Discard()
			return fmt.Errorf("%s: writing npz: %w", path, err)
		}
	}
	return w.Commit()
}

// WriteArray writes a .npy file; the array's name is not stored.
func WriteArray(path string, a Array) error {
	f, err := atomicfile.Create(path)
	if err != nil {
		return err
	}
	buf := bufio.NewWriterSize(f, 64<<10)
	m, err := newMember(buf, a.Info())
	if err == nil {
		err = m.Write(a.Data)
	}
	if err == nil && m.left != 0 {
		err = fmt.Errorf("%d values are missing for the shape %v", m.left, a.Shape)
	}
	if err == nil {
		err = buf.Flush()
	}
	if err != nil {
		_ = f.Discard()
		return fmt.Errorf("%s: writing npy: %w", path, err)
	}
	return f.Commit()
}
