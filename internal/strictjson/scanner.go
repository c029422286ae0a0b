// Package strictjson reads JSON (RFC 8259) from files that nobody vouches for.
// It is stricter than encoding/json: a key that stands twice in one object is
// refused (also when one of the two is spelled with escapes), as are invalid
// UTF-8, lone surrogates, a byte order mark, NaN and Infinity, comments, deep
// nesting and anything after the value. Objects keep the order of the file.
//
// A Scanner pulls values from a stream with bounded memory; Parse and ReadFile
// build a whole tree. Malformed text is reported as a *refuse.Error; errors of
// the underlying reader are passed on.
package strictjson

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"unicode/utf8"

	"drift/internal/refuse"
)

// Limits bound what one text may ask for; zero fields take the defaults.
type Limits struct {
	Depth  int // nesting of arrays and objects, default 64
	Keys   int // keys of one object and elements of one array, default 200,000
	String int // bytes of one string or number after unescaping, default 1 MiB

	// Infinity accepts Infinity and -Infinity as numbers. They are not JSON,
	// but Python writes them.
	Infinity bool
}

func (l Limits) withDefaults() Limits {
	if l.Depth == 0 {
		l.Depth = 64
	}
	if l.Keys == 0 {
		l.Keys = 200_000
	}
	if l.String == 0 {
		l.String = 1 << 20
	}
	return l
}

// A Number is a JSON number as it was written.
type Number string

// Int returns the number if it is a whole number that an int64 holds; 2.0 and
// 1e3 are whole numbers.
func (n Number) Int() (int64, bool) {
	if i, err := strconv.ParseInt(string(n), 10, 64); err == nil {
		return i, true
	}
	f, err := strconv.ParseFloat(string(n), 64)
	if err != nil || f < -1<<53 || f > 1<<53 || f != float64(int64(f)) {
		return 0, false
	}
	return int64(f), true
}

// Float returns the nearest float64; false when it overflows. Infinity is a
// Number only where Limits allow it.
func (n Number) Float() (float64, bool) {
	f, err := strconv.ParseFloat(string(n), 64)
	return f, err == nil
}

// A Scanner reads one JSON text from a stream, value by value. Each method
// consumes one value of its kind and fails on any other. After an error the
// scanner must not be used.
type Scanner struct {
	path   string
	r      *bufio.Reader
	limits Limits
	line   int
	depth  int
	buf    []byte
}

// NewScanner returns a scanner over r; path names the file in errors.
func NewScanner(path string, r io.Reader, limits Limits) *Scanner {
	return &Scanner{path: path, r: bufio.NewReader(r), limits: limits.withDefaults(), line: 1}
}

// Line returns the line that the scanner stands on, counted from 1, for errors about what a value means.
func (s *Scanner) Line() int { return s.line }

func (s *Scanner) errorf(format string, args ...any) error {
	return refuse.Errorf(s.path, "line %d: %s", s.line, fmt.Sprintf(format, args...))
}

// next returns the next byte; the end of the text is a refusal.
func (s *Scanner) next() (byte, error) {
	c, err := s.r.ReadByte()
	if err == io.EOF {
		return 0, s.errorf("not JSON: the text ends early")
	}
	if c == '\n' {
		s.line++
	}
	return c, err
}

// peek skips white space and returns the next byte without consuming it.
// At the end of the text it returns io.EOF.
func (s *Scanner) peek() (byte, error) {
	for {
		c, err := s.r.ReadByte()
		if err != nil {
			return 0, err
		}
		switch c {
		case '\n':
			s.line++
		case ' ', '\t', '\r':
		default:
			return c, s.r.UnreadByte()
		}
	}
}

// Peek returns the first byte of the next value without consuming it: one of
// `{["tfn-0123456789`, or whatever wrong byte stands there.
func (s *Scanner) Peek() (byte, error) {
	c, err := s.peek()
	if err == io.EOF {
		return 0, s.errorf("not JSON: the text ends early")
	}
	return c, err
}

// begin skips white space and consumes the byte that opens a value.
func (s *Scanner) begin(want byte, what string) error {
	c, err := s.Peek()
	if err != nil {
		return err
	}
	if c != want {
		return s.unexpected(c, what)
	}
	_, err = s.next()
	return err
}

func (s *Scanner) unexpected(c byte, what string) error {
	switch {
	case c == 0xef:
		return s.errorf("expected %s, found a byte order mark or another non-ASCII character", what)
	case c == '/' || c == '#':
		return s.errorf("expected %s, found %q: JSON has no comments", what, c)
	case c == '\'':
		return s.errorf("expected %s, found ': JSON strings stand in double quotes", what)
	case c == 'N' || c == 'I':
		return s.errorf("expected %s, found %q: NaN and Infinity are not JSON", what, c)
	}
	return s.errorf("expected %s, found %q", what, c)
}

func (s *Scanner) enter() error {
	if s.depth++; s.depth > s.limits.Depth {
		return s.errorf("nested deeper than %d", s.limits.Depth)
	}
	return nil
}

// Object reads an object and calls f for each key; f must consume the value.
func (s *Scanner) Object(f func(key string) error) error {
	if err := s.begin('{', "an object"); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer func() { s.depth-- }()
	var seen keySet
	for {
		c, err := s.Peek()
		if err != nil {
			return err
		}
		if c == '}' && seen.n == 0 {
			_, err = s.next()
			return err
		}
		key, err := s.String()
		if err != nil {
			return err
		}
		if seen.n == s.limits.Keys {
			return s.errorf("more than %d keys in one object", s.limits.Keys)
		}
		if !seen.add(key) {
			return s.errorf("the key %q stands twice", key)
		}
		if err := s.begin(':', "':' after a key"); err != nil {
			return err
		}
		if err := f(key); err != nil {
			return err
		}
		done, err := s.separator('}')
		if done || err != nil {
			return err
		}
	}
}

// keySet holds the keys of one object, the first few without a map: a header
// may have a hundred thousand objects of three keys.
type keySet struct {
	n    int
	few  [4]string
	many map[string]struct{}
}

// add reports whether the key is new.
func (k *keySet) add(key string) bool {
	if slices.Contains(k.few[:min(k.n, len(k.few))], key) {
		return false
	}
	if k.n < len(k.few) {
		k.few[k.n] = key
		k.n++
		return true
	}
	if _, twice := k.many[key]; twice {
		return false
	}
	if k.many == nil {
		k.many = map[string]struct{}{}
	}
	k.many[key] = struct{}{}
	k.n++
	return true
}

// Array reads an array and calls f for each element; f must consume it.
func (s *Scanner) Array(f func(i int) error) error {
	if err := s.begin('[', "an array"); err != nil {
		return err
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer func() { s.depth-- }()
	for i := 0; ; i++ {
		c, err := s.Peek()
		if err != nil {
			return err
		}
		if c == ']' && i == 0 {
			_, err = s.next()
			return err
		}
		if i == s.limits.Keys {
			return s.errorf("more than %d elements in one array", s.limits.Keys)
		}
		if err := f(i); err != nil {
			return err
		}
		done, err := s.separator(']')
		if done || err != nil {
			return err
		}
	}
}

// separator consumes a comma, or the closing byte and reports true.
func (s *Scanner) separator(end byte) (bool, error) {
	c, err := s.Peek()
	if err != nil {
		return false, err
	}
	if c != ',' && c != end {
		return false, s.unexpected(c, fmt.Sprintf("',' or %q", end))
	}
	_, err = s.next()
	return c == end, err
}

// String reads a string.
func (s *Scanner) String() (string, error) {
	if err := s.begin('"', "a string in double quotes"); err != nil {
		return "", err
	}
	s.buf = s.buf[:0]
	for {
		c, err := s.next()
		if err != nil {
			return "", err
		}
		switch {
		case c == '"':
			if !utf8.Valid(s.buf) {
				return "", s.errorf("a string is not valid UTF-8")
			}
			return string(s.buf), nil
		case c < ' ':
			return "", s.errorf("a control character stands in a string")
		case c == '\\':
			if err := s.escape(); err != nil {
				return "", err
			}
		default:
			s.buf = append(s.buf, c)
		}
		if len(s.buf) > s.limits.String {
			return "", s.errorf("a string is longer than %d bytes", s.limits.String)
		}
	}
}

func (s *Scanner) escape() error {
	c, err := s.next()
	if err != nil {
		return err
	}
	switch c {
	case '"', '\\', '/':
		s.buf = append(s.buf, c)
	case 'b':
		s.buf = append(s.buf, '\b')
	case 'f':
		s.buf = append(s.buf, '\f')
	case 'n':
		s.buf = append(s.buf, '\n')
	case 'r':
		s.buf = append(s.buf, '\r')
	case 't':
		s.buf = append(s.buf, '\t')
	case 'u':
		r, err := s.hex4()
		if err != nil {
			return err
		}
		if r >= 0xd800 && r < 0xe000 {
			r, err = s.surrogate(r)
			if err != nil {
				return err
			}
		}
		s.buf = utf8.AppendRune(s.buf, r)
	default:
		return s.errorf("\\%c is not an escape", c)
	}
	return nil
}

// surrogate reads the second half of a pair.
func (s *Scanner) surrogate(high rune) (rune, error) {
	for _, want := range []byte(`\u`) {
		c, err := s.next()
		if err != nil {
			return 0, err
		}
		if c != want {
			return 0, s.errorf("a surrogate stands alone")
		}
	}
	low, err := s.hex4()
	if err != nil {
		return 0, err
	}
	if high >= 0xdc00 || low < 0xdc00 || low > 0xdfff {
		return 0, s.errorf("a surrogate stands alone")
	}
	return 0x10000 + (high-0xd800)<<10 + (low - 0xdc00), nil
}

func (s *Scanner) hex4() (rune, error) {
	var r rune
	for range 4 {
		c, err := s.next()
		if err != nil {
			return 0, err
		}
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, s.errorf("\\u needs four hexadecimal digits")
		}
	}
	return r, nil
}

// Number reads a number.
func (s *Scanner) Number() (Number, error) {
	c, err := s.Peek()
	if err != nil {
		return "", err
	}
	if c == 'I' && s.limits.Infinity {
		return "Infinity", s.word("Infinity")
	}
	if c != '-' && (c < '0' || c > '9') {
		return "", s.unexpected(c, "a number")
	}
	s.buf = s.buf[:0]
	for {
		c, err := s.r.ReadByte()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
		if (c < '0' || c > '9') && c != '-' && c != '+' && c != '.' && c|0x20 != 'e' {
			if err := s.r.UnreadByte(); err != nil {
				return "", err
			}
			break
		}
		if len(s.buf) == min(s.limits.String, 400) {
			return "", s.errorf("a number is longer than %d digits", len(s.buf))
		}
		s.buf = append(s.buf, c)
	}
	if string(s.buf) == "-" && s.limits.Infinity {
		return "-Infinity", s.word("Infinity")
	}
	if !isNumber(s.buf) {
		return "", s.errorf("%q is not a JSON number", s.buf)
	}
	return Number(s.buf), nil
}

// isNumber checks the grammar -? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?
func isNumber(b []byte) bool {
	digits := func() int {
		n := 0
		for n < len(b) && b[n] >= '0' && b[n] <= '9' {
			n++
		}
		b = b[n:]
		return n
	}
	if len(b) > 0 && b[0] == '-' {
		b = b[1:]
	}
	zero := len(b) > 0 && b[0] == '0'
	if n := digits(); n == 0 || zero && n > 1 {
		return false
	}
	if len(b) > 0 && b[0] == '.' {
		b = b[1:]
		if digits() == 0 {
			return false
		}
	}
	if len(b) > 0 && b[0]|0x20 == 'e' {
		b = b[1:]
		if len(b) > 0 && (b[0] == '+' || b[0] == '-') {
			b = b[1:]
		}
		if digits() == 0 {
			return false
		}
	}
	return len(b) == 0
}

// word reads one of the literals.
func (s *Scanner) word(want string) error {
	for i := range len(want) {
		c, err := s.next()
		if err != nil {
			return err
		}
		if c != want[i] {
			return s.errorf("expected %s", want)
		}
	}
	return nil
}

// Value reads any value: nil, bool, Number, string, []any or *Object.
func (s *Scanner) Value() (any, error) {
	c, err := s.Peek()
	if err != nil {
		return nil, err
	}
	switch c {
	case '{':
		return s.object()
	case '[':
		list := []any{}
		err := s.Array(func(int) error {
			v, err := s.Value()
			list = append(list, v)
			return err
		})
		return list, err
	case '"':
		return s.String()
	case 't':
		return true, s.word("true")
	case 'f':
		return false, s.word("false")
	case 'n':
		return nil, s.word("null")
	}
	if c == '-' || c >= '0' && c <= '9' || c == 'I' && s.limits.Infinity {
		return s.Number()
	}
	return nil, s.unexpected(c, "a value")
}

func (s *Scanner) object() (*Object, error) {
	o := &Object{values: map[string]any{}}
	err := s.Object(func(key string) error {
		v, err := s.Value()
		o.keys = append(o.keys, key)
		o.values[key] = v
		return err
	})
	return o, err
}

// End fails unless only white space is left.
func (s *Scanner) End() error {
	c, err := s.peek()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.unexpected(c, "the end of the text")
}

// Skip reads any value and drops it.
func (s *Scanner) Skip() error {
	c, err := s.Peek()
	if err != nil {
		return err
	}
	switch c {
	case '{':
		return s.Object(func(string) error { return s.Skip() })
	case '[':
		return s.Array(func(int) error { return s.Skip() })
	}
	_, err = s.Value()
	return err
}
