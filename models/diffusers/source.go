package diffusers

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"drift/internal/gguf"
	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/internal/torchfile"
)

// A Source is a file, or the shards, that tensors are read from. Its methods
// may be called from several goroutines.
type Source interface {
	Path() string    // as it was opened
	Files() []string // the files behind it
	Tensors() []safetensors.Tensor
	Tensor(name string) (safetensors.Tensor, bool)
	// Bytes reads the elements of a tensor as they are, row-major and
	// little-endian.
	Bytes(name string) ([]byte, error)
	Float32(name string) ([]float32, error)
	Close() error
}

// storedType is the type in which a file holds a tensor, which may be one that
// is read as float32.
func storedType(src Source, name string) string {
	if s, ok := src.(interface{ Stored(name string) string }); ok {
		if t := s.Stored(name); t != "" {
			return t
		}
	}
	t, _ := src.Tensor(name)
	return string(t.DType)
}

// SourceFormats are the ends of the names of files that OpenSource reads.
var SourceFormats = []string{".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin"}

// OpenSource opens a file of tensors by the end of its name. Of a torch file
// the tensors of one network are taken, as `drift model convert` does; it is
// read as data, and nothing in it runs.
func OpenSource(path string) (Source, error) {
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".safetensors":
		r, err := safetensors.Open(path)
		if err != nil {
			return nil, fmt.Errorf("opening weights: %w", err)
		}
		return r, nil
	case ".gguf":
		r, err := gguf.Open(path)
		if err != nil {
			return nil, fmt.Errorf("opening weights: %w", err)
		}
		return r, nil
	case ".ckpt", ".pt", ".pth", ".bin":
		return openTorch(path)
	}
	return nil, refuse.Errorf(path, "not a file of weights: want a name that ends in %s", strings.Join(SourceFormats, ", "))
}

// torchSource is the tensors of one network in a torch file.
type torchSource struct {
	file    *torchfile.File
	tensors []safetensors.Tensor
	index   map[string]torchfile.Tensor
	reading sync.Mutex
}

func openTorch(path string) (Source, error) {
	f, err := torchfile.Open(path)
	if err != nil {
		return nil, err
	}
	list, _, err := f.StateDict("")
	if err != nil {
		_ = f.Close() // it was only read
		return nil, refuse.Errorf(path, "%s: `drift model convert --key` takes one of them", strings.TrimPrefix(err.Error(), path+": "))
	}
	s := &torchSource{file: f, index: map[string]torchfile.Tensor{}}
	for _, t := range list {
		s.tensors = append(s.tensors, safetensors.Tensor{Name: t.Name(), DType: t.DType, Shape: t.Shape})
		s.index[t.Name()] = t
	}
	return s, nil
}

func (s *torchSource) Path() string                  { return s.file.Path() }
func (s *torchSource) Files() []string               { return []string{s.file.Path()} }
func (s *torchSource) Tensors() []safetensors.Tensor { return slices.Clone(s.tensors) }
func (s *torchSource) Close() error                  { return s.file.Close() }

func (s *torchSource) Tensor(name string) (safetensors.Tensor, bool) {
	t, ok := s.index[name]
	return safetensors.Tensor{Name: name, DType: t.DType, Shape: t.Shape}, ok
}

func (s *torchSource) Bytes(name string) ([]byte, error) {
	t, ok := s.index[name]
	if !ok {
		return nil, refuse.Errorf(s.Path(), "has no tensor %q", name)
	}
	s.reading.Lock() // the file keeps which storages it checked
	defer s.reading.Unlock()
	return s.file.Bytes(t)
}

func (s *torchSource) Float32(name string) ([]float32, error) {
	b, err := s.Bytes(name)
	if err != nil {
		return nil, err
	}
	v, err := safetensors.Widen(s.index[name].DType, b)
	if err != nil {
		return nil, refuse.Errorf(s.Path(), "tensor %q: %v", name, err)
	}
	return v, nil
}
