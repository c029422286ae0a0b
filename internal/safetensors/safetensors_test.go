package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"drift/internal/refuse"
)

const corpus = "../testdata/files/safetensors"

// expected is one row of the corpus' index.
type expected struct {
	Valid    bool
	Why      string
	Expect   map[string][]any
	Shape    map[string][]int
	Metadata map[string]string
	Names    any  `json:"library_names"`
	Tensors  *int `json:"tensors"`
}

func readCorpus(t testing.TB) map[string]expected {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(corpus, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct{ Files map[string]expected }
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&index); err != nil {
		t.Fatal(err)
	}
	return index.Files
}

// bounded runs f and fails when it hangs or allocates over most
// bytes in total.
func bounded(t *testing.T, most uint64, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	f()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	if took > 10*time.Second { // hangs are looked for, not speed
		t.Errorf("took %v", took)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > most {
		t.Errorf("allocated %d bytes", n)
	}
}

// readAll opens a file and reads all of its supported tensors.
func readAll(path string) (*Reader, error) {
	r, err := Open(path)
	if err != nil {
		return nil, err
	}
	for _, x := range r.Tensors() {
		if _, err := r.Bytes(x.Name); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return r, nil
}

func TestCorpus(t *testing.T) {
	files := readCorpus(t)
	if len(files) != 69 {
		t.Errorf("%d files in the index", len(files))
	}
	for name, want := range files {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(corpus, name)
			var r *Reader
			var err error
			bounded(t, 4<<20, func() { r, err = readAll(path) })
			if !want.Valid {
				var refused *refuse.Error
				if !errors.As(err, &refused) || refused.Path != path || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v, want a refusal because: %s", err, want.Why)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if want.Metadata != nil && !reflect.DeepEqual(r.Metadata(), want.Metadata) {
				t.Errorf("metadata %q", r.Metadata())
			}
			var names []string
			for _, x := range r.Tensors() {
				names = append(names, x.Name)
			}
			slices.Sort(names)
			switch list := want.Names.(type) {
			case []any:
				if got := fmt.Sprintf("%q", names); got != fmt.Sprintf("%q", list) {
					t.Errorf("names %s, want %q", got, list)
				}
			case json.Number:
				if n, _ := list.Int64(); int(n) != len(names) {
					t.Errorf("%d names, want %s", len(names), list)
				}
			}
			for name, shape := range want.Shape {
				if x, ok := r.Tensor(name); !ok || !slices.Equal(x.Shape, shape) {
					t.Errorf("%s: shape %v, want %v", name, x.Shape, shape)
				}
			}
			for name, values := range want.Expect {
				checkValues(t, r, name, values)
			}
		})
	}
}

func checkValues(t *testing.T, r *Reader, name string, want []any) {
	t.Helper()
	x, _ := r.Tensor(name)
	if x.Len() != len(want) {
		t.Errorf("%s: shape %v for %d values", name, x.Shape, len(want))
		return
	}
	f64, err := r.Float64(name)
	if x.DType == U64 { // 2^64-1 fits neither
		if err == nil {
			t.Errorf("%s: 2^64-1 as float64: %v", name, f64)
		}
		if _, err = r.Int64(name); err == nil {
			t.Errorf("%s: 2^64-1 as int64", name)
		}
		return
	}
	if err != nil {
		t.Error(err)
		return
	}
	for i, w := range want {
		s := fmt.Sprint(w)
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatal(err)
		}
		if math.Float64bits(f64[i]) != math.Float64bits(v) {
			t.Errorf("%s[%d] = %g, want %s", name, i, f64[i], s)
		}
	}
	if strings.HasPrefix(string(x.DType), "I") {
		i64, err := r.Int64(name)
		if err != nil {
			t.Error(err)
			return
		}
		for i, w := range want {
			if got := fmt.Sprint(i64[i]); got != fmt.Sprint(w) {
				t.Errorf("%s[%d] = %s, want %v", name, i, got, w)
			}
		}
	}
	if x.DType == F32 || x.DType == F16 || x.DType == BF16 {
		f32, err := r.Float32(name)
		if err != nil {
			t.Error(err)
			return
		}
		for i := range f32 {
			if math.Float64bits(float64(f32[i])) != math.Float64bits(f64[i]) {
				t.Errorf("%s[%d]: float32 %g, float64 %g", name, i, f32[i], f64[i])
			}
		}
	}
}

func TestUnsupportedDTypeIsNamed(t *testing.T) {
	r, err := Open(filepath.Join(corpus, "valid-f8.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = r.Float32("a")
	var refused *refuse.Error
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), `tensor "a": reading F8_E`) {
		t.Error(err)
	}
	if b, err := r.Bytes("a"); err != nil || len(b) != 2 {
		t.Error(b, err)
	}
	if _, err := r.Float32("zz"); !errors.As(err, &refused) {
		t.Error(err)
	}
	r32, err := Open(filepath.Join(corpus, "valid-dtypes.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer r32.Close()
	if _, err := r32.Int64("f32"); err == nil || !strings.Contains(err.Error(), "reading F32 as int64") {
		t.Error(err)
	}
}

// raw writes a file from its header's text and its data.
func raw(t testing.TB, header string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.safetensors")
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	if err := os.WriteFile(path, append(append(b, header...), data...), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// many returns a header of n one-byte tensors.
func many(n int) string {
	var b strings.Builder
	b.WriteByte('{')
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"t%06d":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}`, i, i, i+1)
	}
	b.WriteByte('}')
	return b.String()
}

func TestManyTensors(t *testing.T) {
	for n, ok := range map[int]bool{MaxTensors: true, MaxTensors + 1: false, 300_000: false} {
		path := raw(t, many(n), make([]byte, n))
		bounded(t, 64<<20, func() {
			r, err := Open(path)
			if (err == nil) != ok {
				t.Errorf("%d tensors: %v", n, err)
			}
			if err != nil {
				if !strings.Contains(err.Error(), "more than 100000 tensors") {
					t.Error(err)
				}
				return
			}
			if len(r.Tensors()) != n {
				t.Errorf("%d tensors of %d", len(r.Tensors()), n)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Large files that say little must be refused without reading them into memory.
func TestLargeHeaders(t *testing.T) {
	sparse := func(header string, n int64) string {
		path := raw(t, header, nil)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(n))
		_, err1 := f.WriteAt(b[:], 0)
		if err := errors.Join(err1, f.Truncate(8+n), f.Close()); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, path := range map[string]string{
		"zeros":        sparse("", MaxHeader),
		"brace, zeros": sparse("{}", MaxHeader),
		"spaces":       raw(t, "{"+strings.Repeat(" ", 20_000_000), nil),
		"long string":  raw(t, `{"`+strings.Repeat("a", 20_000_000), nil),
		"metadata":     raw(t, `{"__metadata__":{"`+strings.Repeat(strings.Repeat("a", 1<<20)+`":"","b`, 30), nil),
	} {
		bounded(t, 64<<20, func() {
			var refused *refuse.Error
			if _, err := Open(path); !errors.As(err, &refused) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

func TestNotARegularFile(t *testing.T) {
	var refused *refuse.Error
	if _, err := Open(t.TempDir()); !errors.As(err, &refused) {
		t.Error(err)
	}
	if _, err := Open("no such file"); !errors.Is(err, os.ErrNotExist) || errors.As(err, &refused) {
		t.Error(err)
	}
	if _, err := OpenIndex(t.TempDir()); !errors.As(err, &refused) {
		t.Error(err)
	}
}

func TestInexactNumbers(t *testing.T) {
	le := binary.LittleEndian
	data := le.AppendUint64(nil, 1<<53+1)
	data = le.AppendUint64(data, math.Float64bits(1e300))
	data = le.AppendUint32(data, 1<<24+1)
	data = append(data, 2)
	r, err := Open(raw(t, `{"i":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"f":{"dtype":"F64","shape":[1],"data_offsets":[8,16]},`+
		`"j":{"dtype":"I32","shape":[1],"data_offsets":[16,20]},"b":{"dtype":"BOOL","shape":[1],"data_offsets":[20,21]}}`, data))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, name := range []string{"i", "f", "j", "b"} {
		if v, err := r.Float32(name); err == nil {
			t.Errorf("float32 of %s: %v", name, v)
		}
	}
	if v, err := r.Float64("i"); err == nil {
		t.Error("float64 of 2^53+1:", v)
	}
	if v, err := r.Int64("i"); err != nil || v[0] != 1<<53+1 {
		t.Error(v, err)
	}
	if v, err := r.Float64("j"); err != nil || v[0] != 1<<24+1 {
		t.Error(v, err)
	}
}

func TestWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.safetensors")
	tensors := []Tensor{
		{"half", F16, []int{2, 2}}, {"b", BF16, []int{4}}, {"<single>\x00é", F32, []int{4}}, {"double", F64, []int{4}},
		{"wide", F64, []int{1}}, {"int", I64, nil}, {"raw", U8, []int{3}}, {"empty", F32, []int{3, 0}},
	}
	Sort(tensors)
	if tensors[0].Name != "double" || tensors[7].Name != "raw" {
		t.Errorf("order %v", tensors)
	}
	write := func() []byte {
		w, err := Create(path, map[string]string{"format": "pt", "a": "<é>"}, tensors)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range tensors {
			switch x.Name {
			case "int":
				err = w.Int64([]int64{-7})
			case "raw":
				err = w.Raw(strings.NewReader("xyz"))
			case "wide":
				err = w.Float64([]float64{0.1})
			case "empty":
				err = w.Float32(nil)
			default:
				err = w.Float32([]float32{1, -0.5, 0.333251953125, float32(math.Inf(1))})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := w.Discard(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	one := write()
	if !bytes.Equal(one, write()) {
		t.Error("two runs differ")
	}
	if n := binary.LittleEndian.Uint64(one); n%8 != 0 {
		t.Errorf("header of %d bytes", n)
	}
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := r.Tensors(); len(got) != 8 {
		t.Errorf("tensors %v", got)
	}
	for i, x := range r.Tensors() {
		if x.Name != tensors[i].Name || x.DType != tensors[i].DType || !slices.Equal(x.Shape, tensors[i].Shape) {
			t.Errorf("%d: %v, want %v", i, x, tensors[i])
		}
	}
	if m := r.Metadata(); m["a"] != "<é>" || len(m) != 2 {
		t.Errorf("metadata %q", m)
	}
	for _, name := range []string{"half", "<single>\x00é", "double"} {
		v, err := r.Float32(name)
		if err != nil || v[1] != -0.5 || v[2] != 0.333251953125 || !math.IsInf(float64(v[3]), 1) {
			t.Error(name, v, err)
		}
	}
	if v, err := r.Float64("wide"); err != nil || v[0] != 0.1 {
		t.Error(v, err)
	}
	if v, err := r.Float32("wide"); err != nil || v[0] != 0.1 { // rounded
		t.Error(v, err)
	}
	if v, err := r.Int64("int"); err != nil || v[0] != -7 {
		t.Error(v, err)
	}
	s, err := r.Section("raw")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(s); err != nil || string(b) != "xyz" {
		t.Error(b, err)
	}
}

func TestWriterErrors(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "w.safetensors")
	for name, tensors := range map[string][]Tensor{
		"twice":    {{"a", F32, nil}, {"a", F32, nil}},
		"reserved": {{"__metadata__", F32, nil}},
		"dtype":    {{"a", "F31", nil}},
		"rank":     {{"a", F32, make([]int, 9)}},
		"negative": {{"a", F32, []int{-1}}},
		"utf-8":    {{"\xff", F32, nil}},
		"overflow": {{"a", F32, []int{1 << 40, 1 << 40}}},
	} {
		if _, err := Create(path, nil, tensors); err == nil {
			t.Error(name, "accepted")
		}
	}
	for name, f := range map[string]func(*Writer) error{
		"too few":      func(w *Writer) error { return w.Float32([]float32{1}) },
		"overflow":     func(w *Writer) error { return w.Float32([]float32{1e6, 0}) },
		"wrong type":   func(w *Writer) error { return w.Float64([]float64{1, 2}) },
		"raw short":    func(w *Writer) error { return w.Raw(strings.NewReader("abc")) },
		"raw long":     func(w *Writer) error { return w.Raw(strings.NewReader("abcde")) },
		"not all":      func(w *Writer) error { return nil },
		"one too many": func(w *Writer) error { return errors.Join(w.Float32([]float32{1, 2}), w.Float32(nil)) },
	} {
		w, err := Create(path, nil, []Tensor{{"a", F16, []int{2}}})
		if err != nil {
			t.Fatal(err)
		}
		err = f(w)
		if err == nil && name != "not all" {
			t.Error(name, "accepted")
		}
		if name == "not all" {
			if err := w.Commit(); err == nil {
				t.Error("committed without all tensors")
			}
		}
		if err := w.Discard(); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Error("left behind:", left, err)
	}
}

// writeShards writes two shards of one tensor each and an index.
func writeShards(t *testing.T, index string) string {
	t.Helper()
	dir := t.TempDir()
	for i, name := range []string{"a", "b"} {
		w, err := Create(filepath.Join(dir, fmt.Sprintf("m-%d.safetensors", i)), nil, []Tensor{{name, F32, []int{1}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Float32([]float32{float32(i) + 1}), w.Commit()); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "m.safetensors.index.json")
	if err := os.WriteFile(path, []byte(index), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestShards(t *testing.T) {
	r, err := OpenIndex(writeShards(t, `{"metadata":{"total_size":8},"weight_map":{"b":"m-1.safetensors","a":"m-0.safetensors"}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := r.Tensors(); len(got) != 2 || got[0].Name != "a" || len(r.Files()) != 2 {
		t.Error(got, r.Files())
	}
	for name, want := range map[string]float32{"a": 1, "b": 2} {
		if v, err := r.Float32(name); err != nil || v[0] != want {
			t.Error(name, v, err)
		}
	}
	for _, c := range []struct{ index, why string }{
		{`{}`, "no weight_map"},
		{`{"weight_map":[]}`, "expected an object"},
		{`{"weight_map":{"a":"m-0.safetensors"}}{}`, "end of the text"},
		{`{"weight_map":{"a":"../m-0.safetensors"}}`, "plain .safetensors file name"},
		{`{"weight_map":{"a":"/etc/x.safetensors"}}`, "plain .safetensors file name"},
		{`{"weight_map":{"a":"c\\x.safetensors"}}`, "plain .safetensors file name"},
		{`{"weight_map":{"a":".safetensors"}}`, "plain .safetensors file name"},
		{`{"weight_map":{"a":"m-0.bin"}}`, "plain .safetensors file name"},
		{`{"weight_map":{"a":"m-0.safetensors","a":"m-1.safetensors"}}`, "stands twice"},
		{`{"weight_map":{"a":"m-0.safetensors","c":"m-0.safetensors"}}`, `"c" is not in m-0.safetensors`},
		{`{"weight_map":{"a":"m-1.safetensors","b":"m-1.safetensors"}}`, `"a" is not in m-1.safetensors`},
		{`{"weight_map":{"a":"m-0.safetensors","c":"m-1.safetensors"}}`, `"b" of m-1.safetensors is not in the index`},
		{`{"weight_map":{"a":"m-1.safetensors","b":"m-0.safetensors"}}`, `"a" stands in m-0.safetensors, not in m-1.safetensors`},
	} {
		var refused *refuse.Error
		if _, err := OpenIndex(writeShards(t, c.index)); !errors.As(err, &refused) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want a refusal with %q", c.index, err, c.why)
		}
	}
	if _, err := OpenIndex(writeShards(t, `{"weight_map":{"a":"m-9.safetensors"}}`)); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// FuzzOpen: no input may crash, everything refused is a refusal, and what is
// read can be written again with the same tensors.
func FuzzOpen(f *testing.F) {
	seeds, err := filepath.Glob(filepath.Join(corpus, "*.safetensors"))
	if err != nil || len(seeds) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, path := range seeds {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "f")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := Open(path)
		if err != nil {
			var refused *refuse.Error
			if !errors.As(err, &refused) {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		defer r.Close()
		tensors := r.Tensors()
		w, err := Create(filepath.Join(dir, "g"), r.Metadata(), tensors)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range tensors {
			data, err := r.Bytes(x.Name)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Raw(bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			if v, err := r.Float64(x.Name); err == nil && len(v) != x.Len() {
				t.Fatalf("%d values for %v", len(v), x)
			}
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		again, err := Open(filepath.Join(dir, "g"))
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if !reflect.DeepEqual(again.Tensors(), tensors) {
			t.Fatalf("%v became %v", tensors, again.Tensors())
		}
	})
}

func FuzzOpenIndex(f *testing.F) {
	for _, text := range []string{`{"metadata":{"total_size":8},"weight_map":{"b":"m-1.safetensors","a":"m-0.safetensors"}}`, `{"weight_map":{}}`, `{"weight_map":{"a":"../m.safetensors"}}`, `{}`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := OpenIndex(writeShards(t, text))
		if err != nil {
			var refused *refuse.Error
			if !errors.As(err, &refused) && !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("neither refused nor absent: %v", err)
			}
			return
		}
		defer r.Close()
		for _, x := range r.Tensors() {
			if _, err := r.Float32(x.Name); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "model.safetensors")

	w, err := Create(path, nil, []Tensor{{Name: "bias", DType: F16, Shape: []int{3}}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer w.Discard()
	if err := errors.Join(w.Float32([]float32{1, 0.5, -2}), w.Commit()); err != nil {
		fmt.Println(err)
		return
	}

	r, err := Open(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()
	for _, t := range r.Tensors() {
		values, err := r.Float32(t.Name)
		fmt.Println(t.Name, t.DType, t.Shape, values, err)
	}
	// Output: bias F16 [3] [1 0.5 -2] <nil>
}

func BenchmarkFloat32(b *testing.B) {
	for _, d := range []DType{F32, F16, BF16} {
		b.Run(string(d), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "x.safetensors")
			w, err := Create(path, nil, []Tensor{{"x", d, []int{1 << 20}}})
			if err != nil {
				b.Fatal(err)
			}
			if err := errors.Join(w.Float32(make([]float32, 1<<20)), w.Commit()); err != nil {
				b.Fatal(err)
			}
			r, err := Open(path)
			if err != nil {
				b.Fatal(err)
			}
			defer r.Close()
			for b.Loop() {
				if _, err := r.Float32("x"); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(1<<20), "ns/elem")
		})
	}
}
