package ort

import (
	"fmt"
	"math"

	"drift/internal/half"
)

// Type is the type of a tensor's elements, in the numbering of ONNX.
type Type int

// The types that tensors of this package have. Others are known by name only.
const (
	Float32 Type = 1
	Uint8   Type = 2
	Int32   Type = 6
	Int64   Type = 7
	Bool    Type = 9
	Float16 Type = 10
	Float64 Type = 11
)

var typeNames = map[Type]string{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
	10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16"}

func (t Type) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	return fmt.Sprintf("type %d", int(t))
}

// size is the number of bytes of an element, 0 for types that are not taken.
func (t Type) size() int {
	switch t {
	case Uint8, Bool:
		return 1
	case Float16:
		return 2
	case Float32, Int32:
		return 4
	case Float64, Int64:
		return 8
	}
	return 0
}

// whole tells the types of whole numbers.
func (t Type) whole() bool { return t == Uint8 || t == Int32 || t == Int64 || t == Bool }

// Tensor is an array at a session's door: values in C order, in the bytes of their type.
type Tensor struct {
	Type  Type
	Shape []int
	bytes []byte
}

// NewTensor makes a tensor of values, which are rounded to the type. It fails where the number of values is not that of
// the shape, where the type is none of those above, and where a value is no number of a whole type.
func NewTensor(t Type, shape []int, values []float64) (Tensor, error) {
	x := Tensor{Type: t, Shape: shape}
	if n := elements(shape); n != len(values) {
		return x, fmt.Errorf("ort: %d values for shape %v", len(values), shape)
	}
	if t.size() == 0 {
		return x, fmt.Errorf("ort: tensors of %v are not supported", t)
	}
	x.bytes = make([]byte, t.size()*len(values))
	return x, x.set(values)
}

// set writes all values.
func (x *Tensor) set(values []float64) error {
	switch x.Type {
	case Float32:
		out := view[float32](x.bytes)
		for i, v := range values {
			out[i] = float32(v)
		}
		return nil
	case Float64:
		copy(view[float64](x.bytes), values)
		return nil
	case Float16:
		out := view[uint16](x.bytes)
		for i, v := range values {
			out[i] = half.ToFloat16(float32(v))
		}
		return nil
	}
	for i, v := range values {
		r := math.RoundToEven(v)
		if math.IsNaN(r) || r < -1<<62 || r > 1<<62 {
			return fmt.Errorf("ort: %g is no %v", v, x.Type)
		}
		n := int64(r)
		switch x.Type {
		case Int64:
			view[int64](x.bytes)[i] = n
		case Int32:
			view[int32](x.bytes)[i] = int32(n)
		case Uint8, Bool:
			x.bytes[i] = byte(n)
		}
	}
	return nil
}

// Float64 gives the values.
func (x Tensor) Float64() []float64 { return x.append(nil) }

func (x Tensor) append(out []float64) []float64 {
	switch x.Type {
	case Float32:
		for _, v := range view[float32](x.bytes) {
			out = append(out, float64(v))
		}
	case Float64:
		out = append(out, view[float64](x.bytes)...)
	case Float16:
		for _, v := range view[uint16](x.bytes) {
			out = append(out, float64(half.Float16(v)))
		}
	case Int64:
		for _, v := range view[int64](x.bytes) {
			out = append(out, float64(v))
		}
	case Int32:
		for _, v := range view[int32](x.bytes) {
			out = append(out, float64(v))
		}
	case Uint8, Bool:
		for _, v := range x.bytes {
			out = append(out, float64(v))
		}
	}
	return out
}

// elements is the product of a shape.
func elements(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}
