package diffusers

import (
	"errors"
	"io"
	"slices"
	"strings"

	"drift/internal/refuse"
	"drift/internal/safetensors"
)

// A view shows the tensors of one component of a file under the names of
// diffusers. Tensors of the component that no name stands for keep theirs, so
// that they are refused and not passed over.
type view struct {
	Source
	bound map[string]piece
	rest  []safetensors.Tensor
	done  func() error
}

// Close closes the file with the last view of it.
func (v *view) Close() error { return v.done() }

// newView finds the tensors of a configuration. own tells which names belong
// to the component, and spare which of those may be left over.
func newView(src Source, c Config, f naming, own, spare func(name string) bool) *view {
	v := &view{Source: src, bound: map[string]piece{}}
	used := map[string]bool{}
	for _, t := range c.Tensors() {
		p := f(t.Name)
		if _, ok := src.Tensor(p.name); ok && p.name != "" {
			v.bound[t.Name] = p
			used[p.name] = true
		}
	}
	for _, t := range src.Tensors() {
		if own(t.Name) && !used[t.Name] && !spare(t.Name) {
			v.rest = append(v.rest, t)
		}
	}
	return v
}

// Stored is the type in which the file holds a tensor.
func (v *view) Stored(name string) string {
	if p, ok := v.bound[name]; ok {
		return storedType(v.Source, p.name)
	}
	return storedType(v.Source, name)
}

func (v *view) Tensor(name string) (safetensors.Tensor, bool) {
	p, ok := v.bound[name]
	if !ok {
		i := slices.IndexFunc(v.rest, func(t safetensors.Tensor) bool { return t.Name == name })
		if i < 0 {
			return safetensors.Tensor{}, false
		}
		return v.rest[i], true
	}
	t, _ := v.Source.Tensor(p.name)
	t.Name, t.Shape = name, p.shape(t.Shape)
	return t, true
}

// shape is that of the piece of a tensor.
func (p piece) shape(whole []int) []int {
	s := slices.Clone(whole)
	if p.parts > 0 && len(s) > 0 && s[0]%p.parts == 0 {
		s[0] /= p.parts
	}
	if p.transposed && len(s) == 2 {
		s[0], s[1] = s[1], s[0]
	}
	return s
}

func (v *view) Tensors() []safetensors.Tensor {
	var out []safetensors.Tensor
	for name := range v.bound {
		t, _ := v.Tensor(name)
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b safetensors.Tensor) int { return strings.Compare(a.Name, b.Name) })
	return append(out, v.rest...)
}

func (v *view) Bytes(name string) ([]byte, error) {
	p, ok := v.bound[name]
	if !ok {
		return v.Source.Bytes(name)
	}
	b, err := v.Source.Bytes(p.name)
	if err != nil {
		return nil, err
	}
	t, _ := v.Source.Tensor(p.name)
	return cut(v, p, t, b, max(len(b)/max(t.Len(), 1), 1))
}

// Section gives a tensor that lies in the file in one piece.
func (v *view) Section(name string) (*io.SectionReader, error) {
	s, ok := v.Source.(sections)
	p, bound := v.bound[name]
	switch {
	case !ok || bound && p.transposed:
		return nil, errors.ErrUnsupported
	case !bound:
		return s.Section(name)
	}
	t, _ := v.Source.Tensor(p.name)
	r, err := s.Section(p.name)
	if err != nil || p.parts == 0 {
		return r, err
	}
	if len(t.Shape) == 0 || t.Shape[0]%p.parts != 0 {
		return nil, errors.ErrUnsupported
	}
	n := r.Size() / int64(p.parts)
	return io.NewSectionReader(r, int64(p.part-1)*n, n), nil
}

func (v *view) Float32(name string) ([]float32, error) {
	p, ok := v.bound[name]
	if !ok {
		return v.Source.Float32(name)
	}
	x, err := v.Source.Float32(p.name)
	if err != nil {
		return nil, err
	}
	t, _ := v.Source.Tensor(p.name)
	return cut(v, p, t, x, 1)
}

// cut takes a piece of the elements of a tensor, each of width values of T.
func cut[T byte | float32](v *view, p piece, t safetensors.Tensor, x []T, width int) ([]T, error) {
	if p.parts > 0 {
		if len(t.Shape) == 0 || t.Shape[0]%p.parts != 0 {
			return nil, refuse.Errorf(v.Path(), "tensor %s of shape %v is not made of %d parts", p.name, t.Shape, p.parts)
		}
		n := len(x) / p.parts
		x = x[(p.part-1)*n : p.part*n : p.part*n]
	}
	if p.transposed {
		if len(t.Shape) != 2 {
			return nil, refuse.Errorf(v.Path(), "tensor %s of shape %v is no matrix", p.name, t.Shape)
		}
		rows, cols := t.Shape[0], t.Shape[1]
		out := make([]T, 0, len(x))
		for c := range cols {
			for r := range rows {
				at := (r*cols + c) * width
				out = append(out, x[at:at+width]...)
			}
		}
		x = out
	}
	return x, nil
}
