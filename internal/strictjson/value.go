package strictjson

import (
	"bytes"
	"os"

	"drift/internal/refuse"
)

// An Object is a JSON object in the order of the file. Its values are nil,
// bool, Number, string, []any or *Object.
type Object struct {
	keys   []string
	values map[string]any
}

// Keys returns the keys in the order of the file. Do not modify the slice.
func (o *Object) Keys() []string { return o.keys }

// Get returns the value of a key and whether the key is there.
func (o *Object) Get(key string) (any, bool) {
	v, ok := o.values[key]
	return v, ok
}

// Parse reads a whole text whose value must be an object; path names it in
// errors.
func Parse(path string, text []byte, limits Limits) (*Object, error) {
	if bytes.HasPrefix(text, []byte("\xef\xbb\xbf")) {
		return nil, refuse.Errorf(path, "starts with a byte order mark: save it as UTF-8 without one")
	}
	s := NewScanner(path, bytes.NewReader(text), limits)
	o, err := s.object()
	if err != nil {
		return nil, err
	}
	return o, s.End()
}

// ReadFile parses the file at path, which may have at most maxBytes bytes.
func ReadFile(path string, maxBytes int64, limits Limits) (*Object, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, refuse.Errorf(path, "not a regular file")
	}
	if info.Size() > maxBytes {
		return nil, refuse.Errorf(path, "%d bytes, more than the %d allowed for such a file", info.Size(), maxBytes)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, text, limits)
}
