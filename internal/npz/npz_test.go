package npz

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"drift/internal/refuse"
)

const corpus = "../testdata/files/npy"

type expectedArray struct {
	Shape  []int
	Values []float64 `json:"c_order_values"` // the first 64
}

type expected struct {
	Valid    bool
	Optional bool
	Why      string
	expectedArray
	Members map[string]expectedArray
}

func readCorpus(t testing.TB) map[string]expected {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(corpus, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct{ Files map[string]expected }
	if err := json.Unmarshal(text, &index); err != nil {
		t.Fatal(err)
	}
	return index.Files
}

// load reads a file of either kind; a single array gets the name "".
func load(path string) (map[string]*Array, error) {
	if strings.HasSuffix(path, ".npz") {
		return ReadAll(path)
	}
	a, err := ReadArray(path)
	if err != nil {
		return nil, err
	}
	return map[string]*Array{"": a}, nil
}

func TestCorpus(t *testing.T) {
	files := readCorpus(t)
	if len(files) != 70 {
		t.Errorf("%d files in the index", len(files))
	}
	refusedOptional := []string{"valid-optional-native-prefix.npy"}
	for name, want := range files {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(corpus, name)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			got, err := load(path)
			if took := time.Since(start); took > 10*time.Second { // hangs are looked for, not speed
				t.Errorf("took %v", took)
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
				t.Errorf("allocated %d bytes", n)
			}
			if !want.Valid || slices.Contains(refusedOptional, name) {
				var refused *refuse.Error
				if !errors.As(err, &refused) || refused.Path != path || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v, want a refusal because: %s", err, want.Why)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			members := want.Members
			if members == nil {
				members = map[string]expectedArray{"": want.expectedArray}
			}
			if len(got) != len(members) {
				t.Errorf("%d arrays, want %d", len(got), len(members))
			}
			for name, w := range members {
				a, ok := got[name]
				if !ok {
					t.Errorf("no array %q", name)
					continue
				}
				v, err := a.Float64()
				if err != nil {
					t.Error(err)
				}
				if !slices.Equal(a.Shape, w.Shape) || !slices.Equal(v[:min(len(v), 64)], w.Values) || len(v) != a.Len() {
					t.Errorf("%q: %v %v, want %v %v", name, a.Shape, v, w.Shape, w.Values)
				}
			}
		})
	}
}

func TestRefusalsSayWhy(t *testing.T) {
	for name, why := range map[string]string{
		"invalid-object.npy":                             "pickled objects cannot be read",
		"invalid-structured.npy":                         "structured element types",
		"invalid-complex.npy":                            "complex numbers",
		"invalid-string.npy":                             "strings",
		"invalid-datetime.npy":                           "dates",
		"invalid-crc.npz":                                `member "x": its checksum is`,
		"invalid-encrypted-flag.npz":                     `member "x.npy": it is encrypted`,
		"invalid-method-99.npz":                          "compression method 99",
		"invalid-duplicate-member.npz":                   `two members are called "x.npy"`,
		"invalid-inflates-64MiB-past-its-shape.npz":      "takes 24 bytes, the data has",
		"invalid-header-length-huge.npy":                 "header of 2147483648 bytes",
		"invalid-shape-huge.npy":                         "takes 4398046511104 bytes, the data has 24",
		"valid-optional-native-prefix.npy":               "does not say its byte order",
		"invalid-not-npy-member.npz":                     `member "x": not an array file`,
		"invalid-truncated.npy":                          "takes 24 bytes, the data has 20",
		"invalid-version-4.npy":                          "version 4.0",
		"invalid-central-size-lies.npz":                  "stored in 152 bytes and said to have",
		"invalid-header-code.npy":                        "array header:",
		"invalid-declares-1GiB.npz":                      "takes 1073741824 bytes",
		"invalid-header-deep.npy":                        "whole numbers",
		"invalid-header-extra-key.npy":                   `unknown key "x"`,
		"invalid-header-missing-key.npy":                 "it must have descr, fortran_order and shape",
		"invalid-fortran-not-bool.npy":                   "must be True or False",
		"invalid-not-zip.npz":                            "not a zip archive",
		"invalid-header-not-dict.npy":                    "expected '{'",
		"../safetensors/valid-dtypes.safetensors":        "not a numpy array",
		"../safetensors/valid-metadata.safetensors":      "not a numpy array",
		"../safetensors/invalid-seven-bytes.safetensors": "ends in its header",
	} {
		if _, err := load(filepath.Join(corpus, name)); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", name, err, why)
		}
	}
}

func arrays() []Array {
	return []Array{
		{"f2", []int{2, 2}, F2, []float32{1, -0.5, 65504, float32(math.Inf(-1))}},
		{"f4", []int{3}, "", []float32{0, -1, 0.1}},
		{"f8", nil, F8, []float64{0.1}},
		{"i1", []int{2}, "", []int8{-128, 127}},
		{"i2", []int{2}, "", []int16{-32768, 32767}},
		{"i4", []int{2}, "", []int32{math.MinInt32, math.MaxInt32}},
		{"i8", []int{2}, "", []int64{math.MinInt64, math.MaxInt64}},
		{"u1", []int{1, 3, 1}, "", []uint8{0, 1, 255}},
		{"u2", []int{1}, "", []uint16{65535}},
		{"u4", []int{1}, "", []uint32{math.MaxUint32}},
		{"u8", []int{1}, "", []uint64{math.MaxUint64}},
		{"b1", []int{2}, "", []bool{true, false}},
		{"leer é/../x", []int{4, 0}, "", []float32{}},
		{"", []int{1}, "", []float32{7}},
	}
}

func TestWriteAndRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.npz")
	var first []byte
	for range 2 {
		if err := Write(path, arrays()...); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if first != nil && !bytes.Equal(first, b) {
			t.Error("two runs differ")
		}
		first = b
	}
	a, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if a.Path() != path || len(a.Names()) != len(arrays()) {
		t.Error(a.Path(), a.Names())
	}
	for i, want := range arrays() {
		want.DType = want.Info().DType
		if want.Shape == nil {
			want.Shape = []int{}
		}
		got, err := a.Array(want.Name)
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%q: %v %v, want %v", want.Name, got, err, want)
		}
		if x, ok := a.Info(want.Name); !ok || !reflect.DeepEqual(x, want.Info()) || !reflect.DeepEqual(x, a.Arrays()[i]) {
			t.Errorf("info %v, want %v", x, want.Info())
		}
		one := filepath.Join(filepath.Dir(path), "one.npy")
		if err := WriteArray(one, want); err != nil {
			t.Error(err)
			continue
		}
		want.Name = ""
		if got, err := ReadArray(one); err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("npy: %v %v, want %v", got, err, want)
		}
	}
	var refused *refuse.Error
	if _, err := a.Array("none"); !errors.As(err, &refused) {
		t.Error(err)
	}
	a.Limit = 130
	if _, err := a.Array("f4"); !errors.As(err, &refused) || !strings.Contains(err.Error(), "more than the limit of 130") {
		t.Error(err)
	}
	// The standard library must agree about the archive.
	z, err := zip.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	for _, f := range z.File {
		if y := f.Modified.UTC(); y.Year() != 1980 || f.Method != zip.Store {
			t.Errorf("%s: %v, method %d", f.Name, y, f.Method)
		}
	}
}

// A few megabytes may promise gigabytes, but they are not taken at their word.
func TestPromises(t *testing.T) {
	const size, packed = 5 << 30, 6 << 20
	head := fmt.Sprintf("{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }\n", size)
	head = magic + "\x01\x00" + string([]byte{byte(len(head)), 0}) + head
	var b bytes.Buffer
	f, err := flate.NewWriter(&b, flate.BestCompression)
	if err == nil {
		_, err = f.Write(append([]byte(head), make([]byte, 1<<20)...))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	b.Write(make([]byte, packed-b.Len()))
	path := filepath.Join(t.TempDir(), "promise.npz")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(out)
	w, err := z.CreateRaw(&zip.FileHeader{Name: "x.npy", Method: zip.Deflate, Flags: 1 << 3, CompressedSize64: packed, UncompressedSize64: size + uint64(len(head))})
	if err == nil {
		_, err = w.Write(b.Bytes())
	}
	if err = errors.Join(err, z.Close(), out.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = ReadAll(path)
	var refused *refuse.Error
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "more than the limit of 4294967296") {
		t.Error(err)
	}
	for packed, want := range map[int64]int64{0: DefaultLimit, 16 << 20: DefaultLimit, 512 << 20: 8 << 30, 9 << 30: MaxLimit, math.MaxInt64: MaxLimit} {
		if got := (&zipMember{packed: packed}).limit(); got != want {
			t.Errorf("%d bytes: %d, want %d", packed, got, want)
		}
	}
}

// The bytes of a small file, as numpy.save writes them.
func TestWriteArrayBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.npy")
	if err := WriteArray(path, Array{Shape: []int{2, 3}, Data: []float32{-0.5, -0.25, 0, 0.25, 0.5, 0.75}}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(corpus, "valid-v1.npy"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestStreaming(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.npz")
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := w.Array(Info{"images", U1, []int{3, 2}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := m.Write([]uint8{uint8(i), uint8(10 * i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Write([]uint8{1}); err == nil {
		t.Error("one value too many")
	}
	if err := m.Write([]int8{}); err == nil {
		t.Error("wrong type")
	}
	if err := w.Add(Array{Name: "labels", Shape: []int{3}, Data: []int64{1, 2, 3}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	got, err := ReadAll(path, "images")
	if err != nil || !slices.Equal(got["images"].Data.([]uint8), []uint8{0, 0, 1, 10, 2, 20}) {
		t.Error(got, err)
	}

	for name, bad := range map[string]Array{
		"too few":  {Name: "a", Shape: []int{3}, Data: []float32{1}},
		"too many": {Name: "a", Shape: []int{1}, Data: []float32{1, 2}},
		"type":     {Name: "a", Shape: []int{1}, Data: []string{"x"}},
		"no data":  {Name: "a", Shape: []int{1}},
		"dtype":    {Name: "a", Shape: []int{1}, DType: F8, Data: []float32{1}},
		"overflow": {Name: "a", Shape: []int{1}, DType: F2, Data: []float32{65520}},
		"negative": {Name: "a", Shape: []int{-1}, Data: []float32{}},
		"utf-8":    {Name: "\xff", Shape: []int{1}, Data: []float32{1}},
	} {
		if err := Write(path+"x", bad); err == nil {
			t.Errorf("npz %s: written", name)
		}
		if name == "utf-8" { // a .npy file has no name
			continue
		}
		if err := WriteArray(path+"x", bad); err == nil {
			t.Errorf("npy %s: written", name)
		}
	}
	if err := Write(path+"x", Array{Name: "a", Data: []float32{1}}, Array{Name: "a", Data: []float32{1}}); err == nil {
		t.Error("one name twice")
	}
	w, err = Create(path + "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Array(Info{"a", F4, []int{2}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err == nil {
		t.Error("committed an array without values")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Error("left behind:", left, err)
	}
}

func TestConversions(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, c := range []struct {
		data              any
		f64, f32, i64, u8 bool // whether the conversion succeeds
	}{
		{[]float32{1, 0, 255}, true, true, true, true},
		{[]float32{0.5}, true, true, false, false},
		{[]float32{256}, true, true, true, false},
		{[]float32{-1}, true, true, true, false},
		{[]float32{float32(inf)}, true, true, false, false},
		{[]float64{nan}, true, true, false, false},
		{[]float64{0.1}, true, true, false, false},
		{[]float64{1e300}, true, false, false, false},
		{[]float64{1 << 63}, true, true, false, false},
		{[]float64{-1 << 63}, true, true, true, false},
		{[]int64{1<<24 + 1}, true, false, true, false},
		{[]int64{1<<53 + 1}, false, false, true, false},
		{[]int64{math.MaxInt64}, false, false, true, false},
		{[]int64{math.MinInt64}, true, true, true, false},
		{[]uint64{math.MaxUint64}, false, false, false, false},
		{[]uint64{math.MaxInt64}, false, false, true, false},
		{[]uint64{1 << 63}, true, true, false, false},
		{[]int8{-1}, true, true, true, false},
		{[]uint16{255}, true, true, true, true},
		{[]uint16{256}, true, true, true, false},
		{[]bool{true, false}, true, true, true, true},
		{[]uint8{9}, true, true, true, true},
		{[]int32{3}, true, true, true, true},
		{[]uint32{1 << 31}, true, true, true, false},
		{[]int16{-3}, true, true, true, false},
		{"no slice", false, false, false, false},
	} {
		a := Array{Name: "a", Data: c.data}
		check := func(what string, want bool, got any, err error) {
			t.Helper()
			if (err == nil) != want {
				t.Errorf("%v to %s: %v %v", c.data, what, got, err)
			}
			if err == nil && want && fmt.Sprint(got) != fmt.Sprint(c.data) && reflect.TypeOf(c.data).Elem().Kind() != reflect.Bool && !strings.Contains(fmt.Sprint(got), "e+") && !strings.Contains(fmt.Sprint(c.data), "e+") && what != "f32" {
				t.Errorf("%v to %s: %v", c.data, what, got)
			}
		}
		f64, err := a.Float64()
		check("f64", c.f64, f64, err)
		f32, err := a.Float32()
		check("f32", c.f32, f32, err)
		i64, err := a.Int64()
		check("i64", c.i64, i64, err)
		u8, err := a.Uint8()
		check("u8", c.u8, u8, err)
	}
}

func TestFortranOrder(t *testing.T) {
	shape := []int{2, 3, 4}
	n := 24
	fortran, want := make([]int, n), make([]int, n)
	for i := range 2 {
		for j := range 3 {
			for k := range 4 {
				want[i*12+j*4+k] = 100*i + 10*j + k
				fortran[i+2*j+6*k] = 100*i + 10*j + k
			}
		}
	}
	if got := fromFortran(fortran, shape); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := fromFortran([]int{}, []int{2, 0, 3}); len(got) != 0 {
		t.Error(got)
	}
}

// change patches a copy of a corpus file.
func change(t *testing.T, name string, patch func(b []byte) []byte) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(corpus, name))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, patch(b), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHostileZips(t *testing.T) {
	le := binary.LittleEndian
	directory := func(b []byte) int { return int(le.Uint32(b[len(b)-6:])) }
	for name, c := range map[string]struct {
		file, why string
		patch     func(b []byte) []byte
	}{
		"overlap": {"valid-stored.npz", "overlap", func(b []byte) []byte { // the first member claims the second's bytes, too
			d := directory(b)
			for _, at := range []int{18, 22} {
				le.PutUint32(b[at:], uint32(d-36))
			}
			le.PutUint32(b[d+20:], uint32(d-36))
			le.PutUint32(b[d+24:], uint32(d-36))
			return b
		}},
		"same offset": {"valid-stored.npz", "disagree", func(b []byte) []byte {
			le.PutUint32(b[directory(b)+52+42:], 0)
			return b
		}},
		"offset beyond": {"valid-stored.npz", "begins beyond", func(b []byte) []byte {
			le.PutUint32(b[directory(b)+42:], 1<<30)
			return b
		}},
		"ratio": {"valid-deflated.npz", "cannot come out", func(b []byte) []byte {
			le.PutUint32(b[directory(b)+24:], 1<<30)
			return b
		}},
		"directory size": {"valid-stored.npz", "zip directory", func(b []byte) []byte {
			le.PutUint32(b[len(b)-10:], 10)
			return b
		}},
		"count": {"valid-stored.npz", "after its last member", func(b []byte) []byte {
			b[len(b)-12], b[len(b)-14] = 1, 1
			return b
		}},
		"count more": {"valid-stored.npz", "zip directory is damaged", func(b []byte) []byte {
			b[len(b)-12], b[len(b)-14] = 3, 3
			return b
		}},
		"bytes in front": {"valid-stored.npz", "zip directory", func(b []byte) []byte { return append([]byte("#!/bin/sh\n"), b...) }},
		"zip64 missing": {"valid-stored.npz", "zip64 end record is missing", func(b []byte) []byte {
			le.PutUint32(b[len(b)-6:], math.MaxUint32)
			return b
		}},
		"zip64 sizes missing": {"valid-stored.npz", "zip64 sizes are missing", func(b []byte) []byte {
			le.PutUint32(b[directory(b)+24:], math.MaxUint32)
			return b
		}},
		"deflate damaged": {"valid-deflated.npz", "compressed data is damaged", func(b []byte) []byte { b[36] = 0xff; return b }},
		"deflate cut": {"valid-deflated.npz", "the file is cut", func(b []byte) []byte {
			d := directory(b)
			le.PutUint32(b[18:], 40)
			le.PutUint32(b[d+20:], 40)
			return b
		}},
		"deflate longer": {"valid-deflated.npz", "overlap", func(b []byte) []byte {
			d := directory(b)
			le.PutUint32(b[18:], 82)
			le.PutUint32(b[d+20:], 82)
			return b
		}},
	} {
		_, err := load(change(t, c.file, c.patch))
		var refused *refuse.Error
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want a refusal with %q", name, err, c.why)
		}
	}
}

// rawZip writes a zip of one member with the given compressed bytes.
func rawZip(t *testing.T, h *zip.FileHeader, packed []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "r.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	w, err := z.CreateRaw(h)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(packed)
	if err := errors.Join(err, z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCompressedDataEndsWithTheArray(t *testing.T) {
	text := append(encodeHeader(Info{"x", F4, []int{2}}), 0, 0, 0x80, 0x3f, 0, 0, 0, 0x40)
	for _, c := range []struct {
		more int    // bytes of content beyond the array
		junk string // after the compressed stream
		why  string // empty: accepted
	}{{0, "", ""}, {0, "junk", "follow its compressed data"}, {1, "", "more than its"}} {
		content := append(slices.Clone(text), make([]byte, c.more)...)
		var packed bytes.Buffer
		w, err := flate.NewWriter(&packed, 9)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write(content)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		packed.WriteString(c.junk)
		got, err := load(rawZip(t, &zip.FileHeader{
			Name: "x.npy", Method: zip.Deflate, CRC32: crc32.ChecksumIEEE(content),
			UncompressedSize64: uint64(len(text)), CompressedSize64: uint64(packed.Len()),
		}, packed.Bytes()))
		if c.why == "" && (err != nil || !slices.Equal(got["x"].Data.([]float32), []float32{1, 2})) || c.why != "" && (err == nil || !strings.Contains(err.Error(), c.why)) {
			t.Errorf("%+v: %v %v", c, got, err)
		}
	}
}

// A zip of a great many members must not cost memory for each.
func TestManyMembers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := zip.NewWriter(f)
	for i := range 70_000 {
		if _, err := w.CreateHeader(&zip.FileHeader{Name: fmt.Sprintf("%d.npy", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err = Read(path)
	runtime.ReadMemStats(&after)
	var refused *refuse.Error
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "70000 members") {
		t.Error(err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("allocated %d bytes", n)
	}
}

func TestNotARegularFile(t *testing.T) {
	var refused *refuse.Error
	if _, err := Read(t.TempDir()); !errors.As(err, &refused) {
		t.Error(err)
	}
	if _, err := ReadArray("no such file"); !errors.Is(err, os.ErrNotExist) || errors.As(err, &refused) {
		t.Error(err)
	}
}

// fuzz writes the input to a file, reads it and writes what was read again.
func fuzz(f *testing.F, ext string) {
	seeds, err := filepath.Glob(filepath.Join(corpus, "*"+ext))
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
		path := filepath.Join(t.TempDir(), "f"+ext)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := load(path)
		if err != nil {
			var refused *refuse.Error
			if !errors.As(err, &refused) {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		for name, a := range got {
			if err := WriteArray(path, *a); err != nil {
				t.Fatal(err)
			}
			again, err := ReadArray(path)
			if err != nil {
				t.Fatal(err)
			}
			if a.Name != name || fmt.Sprint(again.Data) != fmt.Sprint(a.Data) || !slices.Equal(again.Shape, a.Shape) {
				t.Fatalf("%v became %v", a, again)
			}
		}
	})
}

func FuzzReadArray(f *testing.F) { fuzz(f, ".npy") }
func FuzzRead(f *testing.F)      { fuzz(f, ".npz") }

func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "stats.npz")
	err = Write(path, Array{Name: "mu", Shape: []int{3}, Data: []float64{1, 2, 3}}, Array{Name: "n", Data: []int64{50000}})
	if err != nil {
		fmt.Println(err)
		return
	}

	a, err := Read(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer a.Close()
	mu, err := a.Array("mu")
	if err != nil {
		fmt.Println(err)
		return
	}
	values, err := mu.Float32()
	fmt.Println(a.Names(), mu.Shape, values, err)
	// Output: [mu n] [3] [1 2 3] <nil>
}
