package npz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"drift/internal/half"
	"drift/internal/refuse"
)

const (
	magic     = "\x93NUMPY"
	maxHeader = 64 << 10
)

// header is what stands before the data of an array.
type header struct {
	Info
	big     bool // most significant byte first
	fortran bool // first index fastest
	bytes   int64
}

// badArray is the reason to refuse an array, before the file's name is known.
type badArray string

func (b badArray) Error() string { return string(b) }

func badf(format string, args ...any) error { return badArray(fmt.Sprintf(format, args...)) }

// named turns a badArray, and a source that ends early, into a refusal of the
// file; other errors are of the system.
func named(path, member string, err error) error {
	if err == nil {
		return nil
	}
	at := ""
	if member != "" {
		at = fmt.Sprintf("member %q: ", member)
	}
	var bad badArray
	var refused *refuse.Error
	switch {
	case errors.As(err, &refused):
		return err
	case errors.As(err, &bad):
		return refuse.Errorf(path, "%s%v", at, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return refuse.Errorf(path, "%sthe file is cut", at)
	}
	return fmt.Errorf("%s: %sreading: %w", path, at, err)
}

// readHeader reads the header of an array that takes size bytes in all and
// checks that its data takes the rest exactly.
func readHeader(r io.Reader, size int64) (header, error) {
	var h header
	var b [12]byte
	read := func(n int) error {
		if size < h.bytes+int64(n) {
			return badf("not an array file: it ends in its header")
		}
		h.bytes += int64(n)
		_, err := io.ReadFull(r, b[:n])
		return err
	}
	if err := read(8); err != nil {
		return h, err
	}
	if string(b[:6]) != magic {
		return h, badf("not a numpy array: it does not start with \\x93NUMPY")
	}
	var n int64
	switch major, minor := b[6], b[7]; {
	case major == 1 && minor == 0:
		if err := read(2); err != nil {
			return h, err
		}
		n = int64(binary.LittleEndian.Uint16(b[:]))
	case (major == 2 || major == 3) && minor == 0:
		if err := read(4); err != nil {
			return h, err
		}
		n = int64(binary.LittleEndian.Uint32(b[:]))
	default:
		return h, badf("array format version %d.%d is unknown", major, minor)
	}
	if n > maxHeader {
		return h, badf("an array header of %d bytes, at most %d are read", n, maxHeader)
	}
	if n > size-h.bytes {
		return h, badf("an array header of %d bytes where %d are left", n, size-h.bytes)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return h, err
	}
	h.bytes += n
	if err := h.parse(text); err != nil {
		return h, err
	}
	_, bytes, err := h.size()
	if err != nil {
		return h, badArray(err.Error())
	}
	if bytes != size-h.bytes {
		return h, badf("the shape %v of %s takes %d bytes, the data has %d", h.Shape, h.DType, bytes, size-h.bytes)
	}
	return h, nil
}

// parse reads the header's text, a Python dict of three literals.
func (h *header) parse(text []byte) error {
	p := &literal{text: text}
	p.expect('{')
	seen := map[string]bool{}
	for !p.accept('}') {
		key := p.str()
		p.expect(':')
		if p.err == nil && seen[key] {
			p.fail("the key %q stands twice", key)
		}
		seen[key] = true
		switch key {
		case "descr":
			if c := p.peek(); c == '[' || c == '(' {
				p.fail("structured element types are not read")
			}
			h.descr(p)
		case "fortran_order":
			h.fortran = p.boolean()
		case "shape":
			h.Shape = p.tuple()
		default:
			p.fail("unknown key %q", key)
		}
		if !p.accept(',') && p.peek() != '}' {
			p.fail("expected ',' or '}'")
		}
		if p.err != nil {
			return badf("array header: %v", p.err)
		}
	}
	if p.peek() != 0 || p.at < len(text) {
		p.fail("something stands after the dict")
	}
	if p.err == nil && len(seen) != 3 {
		p.fail("it must have descr, fortran_order and shape")
	}
	if p.err != nil {
		return badf("array header: %v", p.err)
	}
	return nil
}

// descr reads an element type such as '<f4'.
func (h *header) descr(p *literal) {
	s := p.str()
	if p.err != nil {
		return
	}
	if len(s) < 2 {
		p.fail("unknown element type %q", s)
		return
	}
	order, d := s[0], DType(s[1:])
	if d.width() == 0 {
		what := map[byte]string{'O': "pickled objects", 'c': "complex numbers", 'U': "strings", 'S': "byte strings", 'a': "byte strings",
			'M': "dates", 'm': "time spans", 'V': "raw bytes", 'f': "floats of this size"}[s[1]]
		if what == "" {
			what = "it"
		}
		p.fail("element type %q: %s cannot be read", s, what)
		return
	}
	switch {
	case order == '<', order == '>', order == '|' && d.width() == 1:
		h.DType, h.big = d, order == '>'
	default: // '=' means the order of the machine that wrote the file
		p.fail("element type %q does not say its byte order", s)
	}
}

// literal is a cursor over the header. After the first failure all methods
// return zero values.
type literal struct {
	text []byte
	at   int
	err  error
}

func (p *literal) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

// peek returns the next byte after white space, 0 at the end or after a failure.
func (p *literal) peek() byte {
	for p.err == nil && p.at < len(p.text) {
		switch c := p.text[p.at]; c {
		case ' ', '\t', '\n', '\r', '\f':
			p.at++
		default:
			return c
		}
	}
	return 0
}

func (p *literal) accept(c byte) bool {
	if p.peek() != c {
		return false
	}
	p.at++
	return true
}

func (p *literal) expect(c byte) {
	if !p.accept(c) {
		p.fail("expected %q", c)
	}
}

func (p *literal) str() string {
	quote := p.peek()
	if quote != '\'' && quote != '"' {
		p.fail("expected a string")
		return ""
	}
	rest := p.text[p.at+1:]
	end := slices.Index(rest, quote)
	if end < 0 || slices.Contains(rest[:end], '\\') || slices.Contains(rest[:end], '\n') {
		p.fail("expected a plain string")
		return ""
	}
	p.at += end + 2
	return string(rest[:end])
}

func (p *literal) word(chars string) string {
	p.peek()
	start := p.at
	for p.err == nil && p.at < len(p.text) && strings.IndexByte(chars, p.text[p.at]) >= 0 {
		p.at++
	}
	return string(p.text[start:p.at])
}

func (p *literal) boolean() bool {
	w := p.word("TrueFalse")
	if w != "True" && w != "False" {
		p.fail("fortran_order must be True or False")
	}
	return w == "True"
}

// tuple reads whole numbers; Python 2 wrote them with an L.
func (p *literal) tuple() []int {
	shape := []int{}
	if !p.accept('(') {
		p.fail("shape must be a tuple")
		return nil
	}
	for !p.accept(')') {
		w := strings.TrimSuffix(p.word("-0123456789.eEL"), "L")
		d, err := strconv.ParseUint(w, 10, strconv.IntSize-1)
		if err != nil || w[0] == '0' && len(w) > 1 {
			p.fail("shape must hold whole numbers from 0 on")
			return nil
		}
		shape = append(shape, int(d))
		if len(shape) > 32 {
			p.fail("more than 32 dimensions")
			return nil
		}
		if p.accept(',') {
			continue
		}
		if p.peek() != ')' || len(shape) == 1 { // (3) is a number in Python
			p.fail("expected ',' in the shape")
			return nil
		}
	}
	return shape
}

// readData reads the values after a header into C order. When present is
// false the bytes may turn out not to be there, and memory grows with what
// really comes.
func (h *header) readData(r io.Reader, present bool) (any, error) {
	le := binary.LittleEndian
	switch h.DType {
	case F2:
		return values(h, r, present, func(b []byte) float32 { return half.Float16(le.Uint16(b)) })
	case F4:
		return values(h, r, present, func(b []byte) float32 { return math.Float32frombits(le.Uint32(b)) })
	case F8:
		return values(h, r, present, func(b []byte) float64 { return math.Float64frombits(le.Uint64(b)) })
	case I1:
		return values(h, r, present, func(b []byte) int8 { return int8(b[0]) })
	case I2:
		return values(h, r, present, func(b []byte) int16 { return int16(le.Uint16(b)) })
	case I4:
		return values(h, r, present, func(b []byte) int32 { return int32(le.Uint32(b)) })
	case I8:
		return values(h, r, present, func(b []byte) int64 { return int64(le.Uint64(b)) })
	case U1:
		if present && !h.fortran { // pictures: the bytes are the values
			n, _, err := h.size()
			if err != nil {
				return nil, badArray(err.Error())
			}
			data := make([]uint8, n)
			_, err = io.ReadFull(r, data)
			return data, err
		}
		return values(h, r, present, func(b []byte) uint8 { return b[0] })
	case U2:
		return values(h, r, present, le.Uint16)
	case U4:
		return values(h, r, present, le.Uint32)
	case U8:
		return values(h, r, present, le.Uint64)
	case B1:
		bad := false
		v, err := values(h, r, present, func(b []byte) bool { bad = bad || b[0] > 1; return b[0] != 0 })
		if err == nil && bad {
			err = badf("a boolean is neither 0 nor 1")
		}
		return v, err
	}
	return nil, badf("unknown element type %q", h.DType)
}

func values[T any](h *header, r io.Reader, present bool, decode func([]byte) T) ([]T, error) {
	n, _, err := h.size()
	if err != nil {
		return nil, badArray(err.Error())
	}
	const block = 64 << 10
	width := h.DType.width()
	first := n
	if !present {
		first = min(n, 1<<20)
	}
	data := make([]T, 0, first)
	buf := make([]byte, min(n*int64(width), block))
	for done := int64(0); done < n; {
		k := min(n-done, int64(block/width))
		raw := buf[:k*int64(width)]
		if _, err := io.ReadFull(r, raw); err != nil {
			return nil, err
		}
		if h.big {
			for i := 0; i < len(raw); i += width {
				slices.Reverse(raw[i : i+width])
			}
		}
		for i := 0; i < len(raw); i += width {
			data = append(data, decode(raw[i:i+width:i+width]))
		}
		done += k
	}
	if h.fortran && len(h.Shape) > 1 {
		data = fromFortran(data, h.Shape)
	}
	return data, nil
}

// fromFortran copies data with the first index fastest into C order.
func fromFortran[T any](data []T, shape []int) []T {
	out := make([]T, len(data))
	strides := make([]int, len(shape)) // of the source
	step := 1
	for i, d := range shape {
		strides[i] = step
		step *= d
	}
	index := make([]int, len(shape))
	at := 0
	for i := range out {
		out[i] = data[at]
		for axis := len(shape) - 1; axis >= 0; axis-- {
			index[axis]++
			at += strides[axis]
			if index[axis] < shape[axis] {
				break
			}
			at -= strides[axis] * shape[axis]
			index[axis] = 0
		}
	}
	return out
}

// open opens a regular file and returns its size.
func open(path string) (*os.File, int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, refuse.Errorf(path, "not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// ReadArray reads a .npy file; the array's name is empty.
func ReadArray(path string) (*Array, error) {
	f, size, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, err := readHeader(f, size)
	if err != nil {
		return nil, named(path, "", err)
	}
	data, err := h.readData(f, true)
	if err != nil {
		return nil, named(path, "", err)
	}
	return &Array{Shape: h.Shape, DType: h.DType, Data: data}, nil
}
