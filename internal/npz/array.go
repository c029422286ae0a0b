// Package npz reads and writes numpy's array files: .npy (one array) and .npz
// (a zip archive of them), as the numpy.lib.format documentation describes
// them (versions 1.0, 2.0 and 3.0).
//
// Files are not trusted. Only plain numbers and booleans are read; objects
// (pickles), structures, strings, dates and complex numbers are refused by
// name. Declared sizes are compared with what the file holds before anything
// is allocated, checksums are verified, and whatever does not add up (data too
// short or too long, two members of one name, members that overlap) is
// reported as a *refuse.Error. Member names are never used as paths.
package npz

import (
	"fmt"
	"math"
	"math/bits"
)

// A DType is an element type as numpy spells it, without byte order: a kind
// (f float, i signed, u unsigned, b boolean) and a number of bytes.
type DType string

// The types that are read and written, and the Go type of Array.Data.
const (
	F2 DType = "f2" // []float32
	F4 DType = "f4" // []float32
	F8 DType = "f8" // []float64
	I1 DType = "i1" // []int8
	I2 DType = "i2" // []int16
	I4 DType = "i4" // []int32
	I8 DType = "i8" // []int64
	U1 DType = "u1" // []uint8
	U2 DType = "u2" // []uint16
	U4 DType = "u4" // []uint32
	U8 DType = "u8" // []uint64
	B1 DType = "b1" // []bool
)

// width returns the bytes of one element, 0 for an unknown type.
func (d DType) width() int {
	switch d {
	case F2, F4, F8, I1, I2, I4, I8, U1, U2, U4, U8, B1:
		return int(d[1] - '0')
	}
	return 0
}

// Info describes an array without its values.
type Info struct {
	Name  string // member name without ".npy"
	DType DType
	Shape []int // empty for a scalar
}

// size returns the number of elements and of bytes. The product of the
// non-zero dimensions must fit in 63 bits even when another one is zero.
func (x Info) size() (elements, bytes int64, err error) {
	if len(x.Shape) > 32 {
		return 0, 0, fmt.Errorf("rank %d, at most 32 is read", len(x.Shape))
	}
	product, empty := uint64(x.DType.width()), false
	if product == 0 {
		return 0, 0, fmt.Errorf("unknown element type %q", x.DType)
	}
	for _, d := range x.Shape {
		if d < 0 {
			return 0, 0, fmt.Errorf("negative dimension in the shape %v", x.Shape)
		}
		if d == 0 {
			empty = true
			continue
		}
		hi, lo := bits.Mul64(product, uint64(d))
		if hi != 0 || lo > math.MaxInt64 {
			return 0, 0, fmt.Errorf("the size of the shape %v overflows", x.Shape)
		}
		product = lo
	}
	if empty {
		return 0, 0, nil
	}
	return int64(product) / int64(x.DType.width()), int64(product), nil
}

// An Array is a named array with its values in row-major (C) order. For
// writing, DType may be left empty: it follows from Data.
type Array struct {
	Name  string
	Shape []int
	DType DType
	Data  any // a slice, see the DType constants
}

// Info returns the description of the array.
func (a *Array) Info() Info {
	d := a.DType
	if d == "" {
		d = dtypeOf(a.Data)
	}
	return Info{Name: a.Name, DType: d, Shape: a.Shape}
}

// Len returns the number of elements that the shape asks for.
func (a *Array) Len() int {
	n := 1
	for _, d := range a.Shape {
		n *= d
	}
	return n
}

func dtypeOf(data any) DType {
	switch data.(type) {
	case []float32:
		return F4
	case []float64:
		return F8
	case []int8:
		return I1
	case []int16:
		return I2
	case []int32:
		return I4
	case []int64:
		return I8
	case []uint8:
		return U1
	case []uint16:
		return U2
	case []uint32:
		return U4
	case []uint64:
		return U8
	case []bool:
		return B1
	}
	return ""
}

// Float64 returns the values as float64; a 64-bit integer that float64 cannot
// hold exactly is an error. When Data already is a []float64 it is returned
// itself, not copied; likewise below.
func (a *Array) Float64() ([]float64, error) { return convert[float64](a) }

// Float32 returns the values as float32: float64 is rounded; an integer that
// float32 cannot hold exactly, or a finite value that overflows, is an error.
func (a *Array) Float32() ([]float32, error) { return convert[float32](a) }

// Int64 returns the values as int64; a fraction, or a value out of range, is
// an error.
func (a *Array) Int64() ([]int64, error) { return convert[int64](a) }

// Uint8 returns the values as uint8; a fraction, or a value out of range, is
// an error.
func (a *Array) Uint8() ([]uint8, error) { return convert[uint8](a) }

type target interface {
	float32 | float64 | int64 | uint8
}

type source interface {
	float32 | float64 | int8 | int16 | int32 | int64 | uint8 | uint16 | uint32 | uint64
}

func convert[T target](a *Array) ([]T, error) {
	switch data := a.Data.(type) {
	case []T:
		return data, nil
	case []float32:
		return convertFrom[T](a, data)
	case []float64:
		return convertFrom[T](a, data)
	case []int8:
		return convertFrom[T](a, data)
	case []int16:
		return convertFrom[T](a, data)
	case []int32:
		return convertFrom[T](a, data)
	case []int64:
		return convertFrom[T](a, data)
	case []uint8:
		return convertFrom[T](a, data)
	case []uint16:
		return convertFrom[T](a, data)
	case []uint32:
		return convertFrom[T](a, data)
	case []uint64:
		return convertFrom[T](a, data)
	case []bool:
		out := make([]T, len(data))
		for i, v := range data {
			if v {
				out[i] = 1
			}
		}
		return out, nil
	}
	return nil, fmt.Errorf("array %q: no values of a known type, but %T", a.Name, a.Data)
}

// convertFrom converts value by value and fails on the first that does not fit.
func convertFrom[T target, S source](a *Array, data []S) ([]T, error) {
	out := make([]T, len(data))
	for i, v := range data {
		t, ok := one[T](v)
		if !ok {
			return nil, fmt.Errorf("array %q: element %d, %v, does not fit in %T", a.Name, i, v, t)
		}
		out[i] = t
	}
	return out, nil
}

// one converts one value. Out of range Go leaves the result of a conversion
// open, so the range is checked first.
func one[T target, S source](v S) (T, bool) {
	t := T(v)
	var half, zero S = 1, 0
	half /= 2 // zero for integers
	var mantissa int
	switch any(t).(type) {
	case int64:
		f := float64(v)
		return t, f >= -1<<63 && (f < 1<<63 || half == 0 && uint64(v) <= math.MaxInt64) && S(t) == v
	case uint8:
		return t, v >= zero && float64(v) < 256 && S(t) == v
	case float32:
		mantissa = 24
	case float64:
		mantissa = 53
	}
	if half != 0 { // float to float: rounded
		return t, !math.IsInf(float64(t), 0) || math.IsInf(float64(v), 0)
	}
	magnitude := uint64(v)
	if v < zero {
		magnitude = -magnitude
	}
	return t, bits.Len64(magnitude)-bits.TrailingZeros64(magnitude) <= mantissa
}
