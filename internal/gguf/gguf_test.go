package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"drift/internal/npz"
	"drift/internal/refuse"
)

// Every type gives the numbers of the gguf package, bit for bit (testdata/make_gguf.py).
func TestGolden(t *testing.T) {
	r, err := Open("testdata/quants.gguf")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want, err := npz.ReadAll("testdata/quants.npz")
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Tensors()) != len(want) || r.Value("general.architecture") != "test" {
		t.Errorf("%d tensors of %d, architecture %q", len(r.Tensors()), len(want), r.Value("general.architecture"))
	}
	for _, x := range r.Tensors() {
		got, err := r.Float32(x.Name)
		if err != nil {
			t.Fatal(err)
		}
		a := want[x.Name]
		if a == nil || !slices.Equal(x.Shape, a.Shape) {
			t.Errorf("%s has shape %v, want %v", x.Name, x.Shape, a)
			continue
		}
		v := a.Data.([]float32)
		for i := range got {
			if math.Float32bits(got[i]) != math.Float32bits(v[i]) && got[i] != v[i] {
				t.Errorf("%s[%d] = %g, want %g", x.Name, i, got[i], v[i])
				break
			}
		}
		if r.Stored(x.Name) != x.Name {
			t.Errorf("%s is stored as %s", x.Name, r.Stored(x.Name))
		}
		b, err := r.Bytes(x.Name)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(b); n != x.Len()*x.DType.Bits()/8 {
			t.Errorf("%s: %d bytes for %d elements of %s", x.Name, n, x.Len(), x.DType)
		}
	}
	if _, err := r.Float32("none"); err == nil {
		t.Error("a tensor that is not there")
	}
}

// file makes a file: sections of numbers and texts.
func file(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch v := p.(type) {
		case uint32:
			b = binary.LittleEndian.AppendUint32(b, v)
		case uint64:
			b = binary.LittleEndian.AppendUint64(b, v)
		case string:
			b = binary.LittleEndian.AppendUint64(b, uint64(len(v)))
			b = append(b, v...)
		case []byte:
			b = append(b, v...)
		case pad:
			for len(b)%int(v) != 0 {
				b = append(b, 0)
			}
		default:
			panic(p)
		}
	}
	return b
}

type pad int

var magic = []byte("GGUF")

func head(tensors, values uint64) []byte { return file(magic, uint32(3), tensors, values) }

// tensor describes one of n float32.
func tensor(name string, n uint64, kind uint32, offset uint64) []byte {
	return file(name, uint32(1), n, kind, offset)
}

func TestRefused(t *testing.T) {
	data := make([]byte, 64)
	huge := uint64(1)<<63 - 1
	for name, c := range map[string]struct {
		text []byte
		want string
	}{
		"empty":                  {nil, "does not begin with GGUF"},
		"magic":                  {[]byte("GGML0000"), "does not begin with GGUF"},
		"version":                {file(magic, uint32(1), uint32(0)), "version 1"},
		"big-endian":             {file(magic, uint32(3<<24), uint64(0)), "version"},
		"truncated counts":       {file(magic, uint32(3), uint64(1)), "ends in the middle"},
		"many tensors":           {head(huge, 0), "at most"},
		"many values":            {head(0, huge), "at most"},
		"key length":             {file(head(0, 1), huge), "ends in the middle"},
		"key too long":           {file(head(0, 1), strings.Repeat("k", 2000), uint32(0)), "a key of more than"},
		"text length":            {file(head(0, 1), "k", uint32(kindText), huge), "ends in the middle"},
		"unknown value":          {file(head(0, 1), "k", uint32(99), data), "unknown type 99"},
		"array length":           {file(head(0, 1), "k", uint32(kindArray), uint32(kindF64), huge), "ends in the middle"},
		"array overflows":        {file(head(0, 1), "k", uint32(kindArray), uint32(kindF64), uint64(1)<<61), "ends in the middle"},
		"array of texts":         {file(head(0, 1), "k", uint32(kindArray), uint32(kindText), uint64(1)<<40), "ends in the middle"},
		"array of arrays":        {file(head(0, 1), "k", uint32(kindArray), uint32(kindArray), uint64(1), data), "unknown type 9"},
		"key twice":              {file(head(0, 2), "k", uint32(kindU32), uint32(1), "k", uint32(kindU32), uint32(1)), "stands twice"},
		"alignment":              {file(head(0, 1), "general.alignment", uint32(kindU32), uint32(24)), "general.alignment is 24"},
		"no alignment":           {file(head(0, 1), "general.alignment", uint32(kindU32), uint32(0)), "general.alignment is 0"},
		"rank":                   {file(head(1, 0), "a", uint32(5)), "5 dimensions"},
		"dimension 0":            {file(head(1, 0), tensor("a", 0, 0, 0), pad(32), data), "a dimension is 0"},
		"dimension huge":         {file(head(1, 0), tensor("a", huge, 0, 0), pad(32), data), "overflows"},
		"dimensions overflow":    {file(head(1, 0), "a", uint32(4), uint64(1)<<16, uint64(1)<<16, uint64(1)<<16, uint64(1)<<16, uint32(0), uint64(0)), "overflows"},
		"type":                   {file(head(1, 0), tensor("a", 32, 16, 0), pad(32), data), "type number 16"},
		"half a block":           {file(head(1, 0), tensor("a", 33, 8, 0), pad(32), data), "no whole blocks of Q8_0"},
		"offset not aligned":     {file(head(1, 0), tensor("a", 1, 0, 4), pad(32), data), "no multiple of 32"},
		"offset beyond":          {file(head(1, 0), tensor("a", 1, 0, 96), pad(32), data), "beyond the end"},
		"offset huge":            {file(head(1, 0), tensor("a", 1, 0, 1<<63), pad(32), data), "beyond the end"},
		"size beyond":            {file(head(1, 0), tensor("a", 17, 0, 0), pad(32), data), "beyond the end"},
		"no data":                {file(head(1, 0), tensor("a", 1, 0, 0)), "beyond the end"},
		"overlap":                {file(head(2, 0), tensor("a", 9, 0, 0), tensor("b", 1, 0, 32), pad(32), data), "overlap"},
		"same place":             {file(head(2, 0), tensor("a", 1, 0, 0), tensor("b", 1, 0, 0), pad(32), data), "overlap"},
		"name twice":             {file(head(2, 0), tensor("a", 1, 0, 0), tensor("a", 1, 0, 32), pad(32), data), "two tensors are called"},
		"original shape":         {file(head(1, 1), shapeKey+"a", uint32(kindArray), uint32(kindI32), uint64(2), uint32(3), uint32(3), tensor("a", 8, 0, 0), pad(32), data), "has 9 elements, the file 8"},
		"original shape below 0": {file(head(1, 1), shapeKey+"a", uint32(kindArray), uint32(kindI32), uint64(2), uint32(1<<32-8), uint32(1<<32-1), tensor("a", 8, 0, 0), pad(32), data), "original shape is"},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := NewReader(name, bytes.NewReader(c.text), int64(len(c.text)))
		runtime.ReadMemStats(&after)
		var r *refuse.Error
		if !errors.As(err, &r) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want a refusal with %q", name, err, c.want)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 2<<20 {
			t.Errorf("%s: %d bytes allocated", name, n)
		}
	}
}

func TestShapes(t *testing.T) {
	values := file(uint32(math.Float32bits(1)), uint32(math.Float32bits(2)), uint32(math.Float32bits(3)), uint32(math.Float32bits(4)), uint32(math.Float32bits(5)), uint32(math.Float32bits(6)))
	text := file(head(2, 2), shapeKey+"b", uint32(kindArray), uint32(kindI32), uint64(3), uint32(1), uint32(2), uint32(3), "general.alignment", uint32(kindU32), uint32(64),
		file("a", uint32(2), uint64(3), uint64(2), uint32(0), uint64(0)), tensor("b", 6, 0, 64), pad(64), values, pad(64), values)
	r, err := NewReader("x", bytes.NewReader(text), int64(len(text)))
	if err != nil {
		t.Fatal(err)
	}
	a, _ := r.Tensor("a")
	b, _ := r.Tensor("b")
	v, err := r.Float32("b")
	if !slices.Equal(a.Shape, []int{2, 3}) || !slices.Equal(b.Shape, []int{1, 2, 3}) || err != nil || !slices.Equal(v, []float32{1, 2, 3, 4, 5, 6}) {
		t.Errorf("%v %v %v %v", a, b, v, err)
	}
}

func TestOpenMissing(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "x.gguf")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("a folder is no file")
	}
}

func FuzzRead(f *testing.F) {
	golden, err := os.ReadFile("testdata/quants.gguf")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add(file(head(1, 1), shapeKey+"a", uint32(kindArray), uint32(kindI32), uint64(2), uint32(2), uint32(4), tensor("a", 8, 0, 0), pad(32), make([]byte, 64)))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := NewReader("x", bytes.NewReader(text), int64(len(text)))
		if err != nil {
			var bad *refuse.Error
			if !errors.As(err, &bad) {
				t.Fatalf("an error that is no refusal: %v", err)
			}
			return
		}
		for _, x := range r.Tensors() {
			v, err := r.Float32(x.Name)
			var bad *refuse.Error
			if err != nil && !errors.As(err, &bad) || err == nil && len(v) != x.Len() {
				t.Fatalf("%s: %d values, %v", x.Name, len(v), err)
			}
		}
	})
}

func BenchmarkFloat32(b *testing.B) {
	r, err := Open("testdata/quants.gguf")
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	for _, name := range []string{"Q4_0", "Q8_0", "Q4_K", "Q6_K"} {
		b.Run(name, func(b *testing.B) {
			e, _ := r.entryOf(name)
			raw, err := os.ReadFile("testdata/quants.gguf")
			if err != nil {
				b.Fatal(err)
			}
			raw = raw[e.at : e.at+int64(e.form.bytes)]
			dst := make([]float32, e.form.block)
			b.SetBytes(int64(4 * len(dst)))
			for b.Loop() {
				e.form.decode(dst, raw)
			}
		})
	}
}
