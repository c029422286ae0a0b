package safetensors

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"

	"drift/internal/half"
	"drift/internal/refuse"
)

// Float32 reads a tensor as float32, row-major. Float16, bfloat16 and small
// integers widen exactly, float64 is rounded; a finite value that overflows or
// an integer that float32 cannot hold is an error.
func (r *Reader) Float32(name string) ([]float32, error) {
	return read[float32](r, name)
}

// Float64 reads a tensor as float64, row-major. Everything widens exactly; a
// 64-bit integer that float64 cannot hold is an error.
func (r *Reader) Float64(name string) ([]float64, error) {
	return read[float64](r, name)
}

// Int64 reads a tensor of integers (or BOOL as 0 and 1). A U64 value beyond
// 2^63-1 is an error.
func (r *Reader) Int64(name string) ([]int64, error) {
	return read[int64](r, name)
}

// Bytes reads the raw bytes of a tensor of any dtype.
func (r *Reader) Bytes(name string) ([]byte, error) {
	e, err := r.entry(name)
	if err != nil {
		return nil, err
	}
	data := make([]byte, e.end-e.begin)
	if err := r.readAt(e, data, e.begin); err != nil {
		return nil, err
	}
	return data, nil
}

// Section returns a reader over the raw bytes of a tensor.
func (r *Reader) Section(name string) (*io.SectionReader, error) {
	e, err := r.entry(name)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(r.files[e.file], e.begin, e.end-e.begin), nil
}

func (r *Reader) entry(name string) (*entry, error) {
	i, ok := r.index[name]
	if !ok {
		return nil, refuse.Errorf(r.path, "has no tensor %q", name)
	}
	return &r.entries[i], nil
}

func (r *Reader) readAt(e *entry, p []byte, at int64) error {
	if len(p) == 0 {
		return nil
	}
	if r.files == nil {
		return fmt.Errorf("%s: reading tensor %q: the file is closed", r.path, e.Name)
	}
	if _, err := r.files[e.file].ReadAt(p, at); err != nil {
		return fmt.Errorf("%s: reading tensor %q: %w", r.files[e.file].Name(), e.Name, err)
	}
	return nil
}

// number is what a tensor can be read as.
type number interface{ float32 | float64 | int64 }

func read[T number](r *Reader, name string) ([]T, error) {
	e, err := r.entry(name)
	if err != nil {
		return nil, err
	}
	decode := decoder[T](e.DType)
	if decode == nil {
		return nil, refuse.Errorf(r.path, "tensor %q: reading %s as %T is not supported", name, e.DType, *new(T))
	}
	width := int64(e.DType.Bits() / 8)
	values := make([]T, (e.end-e.begin)/width)
	const block = 8 << 10 // elements
	buf := make([]byte, min(e.end-e.begin, block*width))
	for i := 0; i < len(values); i += block {
		part := values[i:min(i+block, len(values))]
		raw := buf[:int64(len(part))*width]
		if err := r.readAt(e, raw, e.begin+int64(i)*width); err != nil {
			return nil, err
		}
		if bad := decode(part, raw); bad >= 0 {
			return nil, refuse.Errorf(r.path, "tensor %q: element %d does not fit in %T", name, i+bad, *new(T))
		}
	}
	return values, nil
}

// Widen is what Float32 reads, of the raw bytes of a tensor of type d.
func Widen(d DType, raw []byte) ([]float32, error) {
	decode := decoder[float32](d)
	if decode == nil {
		return nil, fmt.Errorf("reading %s as float32 is not supported", d)
	}
	values := make([]float32, len(raw)/(d.Bits()/8))
	if bad := decode(values, raw); bad >= 0 {
		return nil, fmt.Errorf("element %d does not fit in float32", bad)
	}
	return values, nil
}

// decoder returns a function that converts little-endian elements and returns
// the position of the first that does not fit, or -1.
func decoder[T number](d DType) func(dst []T, raw []byte) int {
	var zero T
	_, integer := any(zero).(int64)
	le := binary.LittleEndian
	switch d {
	case U8:
		return each(1, func(b []byte) T { return T(b[0]) })
	case Bool:
		return eachChecked(1, func(b []byte) (T, bool) { return T(b[0]), b[0] <= 1 })
	case I8:
		return each(1, func(b []byte) T { return T(int8(b[0])) })
	case U16:
		return each(2, func(b []byte) T { return T(le.Uint16(b)) })
	case I16:
		return each(2, func(b []byte) T { return T(int16(le.Uint16(b))) })
	case U32:
		return eachChecked(4, func(b []byte) (T, bool) { v := le.Uint32(b); return T(v), fits[T](uint64(v), false) })
	case I32:
		return eachChecked(4, func(b []byte) (T, bool) { return signed[T](int64(int32(le.Uint32(b)))) })
	case U64:
		return eachChecked(8, func(b []byte) (T, bool) { v := le.Uint64(b); return T(v), fits[T](v, false) })
	case I64:
		return eachChecked(8, func(b []byte) (T, bool) { return signed[T](int64(le.Uint64(b))) })
	}
	if integer {
		return nil
	}
	switch d {
	case F16: // the usual types of weights have loops of their own
		return func(dst []T, raw []byte) int {
			for i := range dst {
				dst[i] = T(half.Float16(le.Uint16(raw[2*i:])))
			}
			return -1
		}
	case BF16:
		return func(dst []T, raw []byte) int {
			for i := range dst {
				dst[i] = T(half.BFloat16(le.Uint16(raw[2*i:])))
			}
			return -1
		}
	case F32:
		return func(dst []T, raw []byte) int {
			for i := range dst {
				dst[i] = T(math.Float32frombits(le.Uint32(raw[4*i:])))
			}
			return -1
		}
	case F64:
		return eachChecked(8, func(b []byte) (T, bool) {
			v := math.Float64frombits(le.Uint64(b))
			t := T(v)
			return t, !math.IsInf(float64(t), 0) || math.IsInf(v, 0)
		})
	}
	return nil
}

func each[T number](width int, f func([]byte) T) func([]T, []byte) int {
	return func(dst []T, raw []byte) int {
		for i := range dst {
			dst[i] = f(raw[i*width:])
		}
		return -1
	}
}

func eachChecked[T number](width int, f func([]byte) (T, bool)) func([]T, []byte) int {
	return func(dst []T, raw []byte) int {
		for i := range dst {
			v, ok := f(raw[i*width:])
			if !ok {
				return i
			}
			dst[i] = v
		}
		return -1
	}
}

func signed[T number](v int64) (T, bool) {
	if v < 0 {
		return T(v), fits[T](-uint64(v), true)
	}
	return T(v), fits[T](uint64(v), false)
}

// fits reports whether T holds the integer of this magnitude exactly.
func fits[T number](magnitude uint64, negative bool) bool {
	var zero T
	width := bits.Len64(magnitude) - bits.TrailingZeros64(magnitude)
	switch any(zero).(type) {
	case float32:
		return width <= 24
	case float64:
		return width <= 53
	}
	return magnitude <= math.MaxInt64 || negative && magnitude == 1<<63
}
