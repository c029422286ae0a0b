package safetensors

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"drift/internal/atomicfile"
	"drift/internal/half"
)

// A Writer writes one file, tensor by tensor, in the order announced to
// Create. The file appears under its name only with Commit.
type Writer struct {
	file    *atomicfile.File
	buf     *bufio.Writer
	path    string
	tensors []Tensor
	next    int
}

// Sort brings tensors into the order the reference library writes: wider types
// first, then by name. This keeps every tensor aligned to its type.
func Sort(tensors []Tensor) {
	slices.SortStableFunc(tensors, func(a, b Tensor) int {
		if a.DType.Bits() != b.DType.Bits() {
			return b.DType.Bits() - a.DType.Bits()
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// Create starts a file that will hold these tensors in this order. The header
// is padded with spaces so that the data starts at a multiple of 8; metadata
// is written in the order of its keys, so equal input gives equal bytes.
func Create(path string, metadata map[string]string, tensors []Tensor) (*Writer, error) {
	header, err := encodeHeader(metadata, tensors)
	if err != nil {
		return nil, fmt.Errorf("%s: writing safetensors: %w", path, err)
	}
	f, err := atomicfile.Create(path)
	if err != nil {
		return nil, err
	}
	w := &Writer{file: f, buf: bufio.NewWriterSize(f, 64<<10), path: path, tensors: slices.Clone(tensors)}
	if _, err := w.buf.Write(header); err != nil {
		_ = f.Discard()
		return nil, err
	}
	return w, nil
}

// encodeHeader returns the length and the JSON.
func encodeHeader(metadata map[string]string, tensors []Tensor) ([]byte, error) {
	if len(tensors) > MaxTensors {
		return nil, fmt.Errorf("%d tensors, at most %d can be written", len(tensors), MaxTensors)
	}
	var b bytes.Buffer
	b.Write(make([]byte, 8))
	b.WriteByte('{')
	if metadata != nil {
		b.WriteString(`"__metadata__":{`)
		for i, key := range slices.Sorted(maps.Keys(metadata)) {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := writeString(&b, key); err != nil {
				return nil, err
			}
			b.WriteByte(':')
			if err := writeString(&b, metadata[key]); err != nil {
				return nil, err
			}
		}
		b.WriteByte('}')
	}
	seen := map[string]bool{"__metadata__": true}
	var at int64
	for i, t := range tensors {
		if seen[t.Name] {
			return nil, fmt.Errorf("the name %q stands twice or is reserved", t.Name)
		}
		seen[t.Name] = true
		_, size, err := t.size()
		if err != nil {
			return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		if i > 0 || metadata != nil {
			b.WriteByte(',')
		}
		if err := writeString(&b, t.Name); err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, `:{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}`,
			t.DType, strings.Trim(strings.ReplaceAll(fmt.Sprint(t.Shape), " ", ","), "[]"), at, at+size)
		if at += size; at < 0 {
			return nil, fmt.Errorf("tensor %q: the size of the file overflows", t.Name)
		}
	}
	b.WriteByte('}')
	for b.Len()%8 != 0 {
		b.WriteByte(' ')
	}
	if b.Len()-8 > MaxHeader {
		return nil, fmt.Errorf("a header of %d bytes, at most %d can be read", b.Len()-8, MaxHeader)
	}
	header := b.Bytes()
	binary.LittleEndian.PutUint64(header, uint64(len(header)-8))
	return header, nil
}

func writeString(b *bytes.Buffer, s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("%q is not valid UTF-8", s)
	}
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1) // the encoder ends with a newline
	return nil
}

// begin takes the next tensor and checks how many elements it gets.
func (w *Writer) begin(n int) (Tensor, error) {
	if w.next == len(w.tensors) {
		return Tensor{}, fmt.Errorf("%s: writing safetensors: all %d tensors are written", w.path, w.next)
	}
	t := w.tensors[w.next]
	w.next++
	if n >= 0 && n != t.Len() {
		return t, w.errorf(t, "%d values for the shape %v", n, t.Shape)
	}
	return t, nil
}

func (w *Writer) errorf(t Tensor, format string, args ...any) error {
	return fmt.Errorf("%s: writing tensor %q: %w", w.path, t.Name, fmt.Errorf(format, args...))
}

// Float32 writes the next tensor, whose dtype is F32, F64, or F16 or BF16,
// to which values are rounded to nearest even; a finite value that becomes
// infinite is an error.
func (w *Writer) Float32(values []float32) error {
	t, err := w.begin(len(values))
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	var put func(b []byte, v float32) []byte
	switch t.DType {
	case F32:
		put = func(b []byte, v float32) []byte { return le.AppendUint32(b, math.Float32bits(v)) }
	case F64:
		put = func(b []byte, v float32) []byte { return le.AppendUint64(b, math.Float64bits(float64(v))) }
	case F16, BF16:
		narrow, widen := half.ToFloat16, half.Float16
		if t.DType == BF16 {
			narrow, widen = half.ToBFloat16, half.BFloat16
		}
		put = func(b []byte, v float32) []byte {
			h := narrow(v)
			if math.IsInf(float64(widen(h)), 0) && !math.IsInf(float64(v), 0) {
				err = w.errorf(t, "%g overflows %s", v, t.DType)
			}
			return le.AppendUint16(b, h)
		}
	default:
		return w.errorf(t, "float32 values for %s", t.DType)
	}
	return write(w, t, values, put, &err)
}

// Float64 writes the next tensor, whose dtype is F64.
func (w *Writer) Float64(values []float64) error {
	t, err := w.begin(len(values))
	if err != nil {
		return err
	}
	if t.DType != F64 {
		return w.errorf(t, "float64 values for %s", t.DType)
	}
	return write(w, t, values, func(b []byte, v float64) []byte {
		return binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	}, &err)
}

// Int64 writes the next tensor, whose dtype is I64.
func (w *Writer) Int64(values []int64) error {
	t, err := w.begin(len(values))
	if err != nil {
		return err
	}
	if t.DType != I64 {
		return w.errorf(t, "int64 values for %s", t.DType)
	}
	return write(w, t, values, func(b []byte, v int64) []byte {
		return binary.LittleEndian.AppendUint64(b, uint64(v))
	}, &err)
}

func write[T number](w *Writer, t Tensor, values []T, put func([]byte, T) []byte, failed *error) error {
	var space [4096]byte
	for len(values) > 0 {
		b, n := space[:0], min(len(values), len(space)/8)
		for _, v := range values[:n] {
			b = put(b, v)
		}
		if *failed != nil {
			return *failed
		}
		if _, err := w.buf.Write(b); err != nil {
			return w.errorf(t, "%w", err)
		}
		values = values[n:]
	}
	return nil
}

// Raw writes the bytes of the next tensor, of any dtype, from src, which must
// hold exactly as many as its shape takes.
func (w *Writer) Raw(src io.Reader) error {
	t, err := w.begin(-1)
	if err != nil {
		return err
	}
	_, size, err := t.size()
	if err != nil {
		return w.errorf(t, "%w", err)
	}
	n, err := io.Copy(w.buf, io.LimitReader(src, size+1))
	if err != nil {
		return w.errorf(t, "%w", err)
	}
	if n != size {
		return w.errorf(t, "the source has not the %d bytes that %s of shape %v takes", size, t.DType, t.Shape)
	}
	return nil
}

// Commit finishes the file; every announced tensor must have been written.
func (w *Writer) Commit() error {
	if w.next != len(w.tensors) {
		_ = w.file.Discard()
		return fmt.Errorf("%s: writing safetensors: %d of %d tensors were written", w.path, w.next, len(w.tensors))
	}
	if err := w.buf.Flush(); err != nil {
		_ = w.file.Discard()
		return fmt.Errorf("%s: writing safetensors: %w", w.path, err)
	}
	return w.file.Commit()
}

// Discard removes what was written; after Commit it does nothing.
func (w *Writer) Discard() error { return w.file.Discard() }
