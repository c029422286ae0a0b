package torchfile

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"drift/internal/refuse"
	"drift/internal/safetensors"
)

// Wrappers are the keys under which training programs keep the weights of a
// network, beside an optimiser's state and counters.
var wrappers = []string{"state_dict", "model", "ema"}

// StateDict picks the tensors of one network and returns them with their names
// below the keys that lead there, which it returns too, joined by dots.
//
// A key names them ("ema", "model.state_dict"). Without one it begins at the
// outermost dictionary: one that holds a tensor itself is taken whole, as is
// one without the keys state_dict, model and ema, or with none that has
// tensors below it. With one such key it goes on below it; with several it is
// for the caller to choose, and an error lists them.
func (f *File) StateDict(key string) ([]Tensor, string, error) {
	if key != "" {
		parts := f.below(key)
		if parts == 0 {
			return nil, "", fmt.Errorf("%s: no tensor stands under the key %q; the outermost keys are %s", f.path, key, f.keyList())
		}
		return f.strip(key, parts), key, nil
	}
	var at []string
	for {
		var inner []string
		for _, w := range wrappers {
			prefix := append(slices.Clone(at), w)
			if slices.ContainsFunc(f.tensors, func(t Tensor) bool { return len(t.Path) > len(prefix) && slices.Equal(t.Path[:len(prefix)], prefix) }) {
				inner = append(inner, w)
			}
		}
		direct := slices.ContainsFunc(f.tensors, func(t Tensor) bool { return len(t.Path) == len(at)+1 && slices.Equal(t.Path[:len(at)], at) })
		switch {
		case direct || len(inner) == 0:
			key := strings.Join(at, ".")
			return f.strip(key, len(at)), key, nil
		case len(inner) > 1:
			for i := range inner {
				inner[i] = strings.Join(append(slices.Clone(at), inner[i]), ".")
			}
			return nil, "", fmt.Errorf("%s: holds several sets of tensors: choose the key %s", f.path, strings.Join(inner, " or "))
		}
		at = append(at, inner[0])
	}
}

// below returns how many keys of a path the name key stands for, 0 if no
// tensor is below it.
func (f *File) below(key string) int {
	for _, t := range f.tensors {
		for i := 1; i < len(t.Path); i++ {
			if strings.Join(t.Path[:i], ".") == key {
				return i
			}
		}
	}
	return 0
}

// strip returns the tensors below a key of that many parts.
func (f *File) strip(key string, parts int) []Tensor {
	var list []Tensor
	for _, t := range f.tensors {
		if len(t.Path) > parts && strings.Join(t.Path[:parts], ".") == key {
			t.Path = t.Path[parts:]
			list = append(list, t)
		}
	}
	return list
}

func (f *File) keyList() string {
	const most = 20
	list := make([]string, 0, most+1)
	for _, k := range f.keys[:min(len(f.keys), most)] {
		list = append(list, fmt.Sprintf("%q", k))
	}
	if len(f.keys) > most {
		list = append(list, "...")
	}
	return strings.Join(list, ", ")
}

// Tied lists the names of tensors that share a storage, in groups of two or
// more, in the order of the list.
func Tied(tensors []Tensor) [][]string {
	where := map[int][]string{}
	for _, t := range tensors {
		where[t.storage] = append(where[t.storage], t.Name())
	}
	var groups [][]string
	for _, t := range tensors {
		if g := where[t.storage]; len(g) > 1 {
			groups = append(groups, g)
			delete(where, t.storage)
		}
	}
	return groups
}

// WriteSafetensors writes tensors of the file, row-major and of the types they
// have (or floating-point ones in dtype, unless that is empty), as a safetensors
// file: all of it, or nothing. Tensors that share memory are written once for
// every name.
func (f *File) WriteSafetensors(ctx context.Context, path string, tensors []Tensor, dtype safetensors.DType, metadata map[string]string) error {
	list := make([]safetensors.Tensor, len(tensors))
	named := map[string]Tensor{}
	for i, t := range tensors {
		name := t.Name()
		if name == "__metadata__" {
			return refuse.Errorf(f.path, "a tensor is called %s, which safetensors reserves", name)
		}
		list[i] = safetensors.Tensor{Name: name, DType: dtype.Of(t.DType), Shape: t.Shape}
		named[name] = t
	}
	safetensors.Sort(list)
	w, err := safetensors.Create(path, metadata, list)
	if err != nil {
		return err
	}
	defer w.Discard()
	for _, t := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := f.Bytes(named[t.Name])
		if err != nil {
			return err
		}
		if old := named[t.Name].DType; old != t.DType {
			v, err := safetensors.Widen(old, data)
			if err != nil {
				return refuse.Errorf(f.path, "tensor %q: %v", t.Name, err)
			}
			if err := w.Float32(v); err != nil {
				return err
			}
			continue
		}
		if err := w.Raw(bytes.NewReader(data)); err != nil {
			return err
		}
	}
	return w.Commit()
}
