package rng

import (
	"archive/zip"
	"encoding/binary"
	"encoding/json"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// folders returns where the goldens are: the subset kept with the package, and
// the full set where there is one.
func folders() []string {
	f := []string{filepath.Join("testdata", "rng")}
	if d := os.Getenv("DRIFT_FIXTURES"); d != "" {
		f = append(f, filepath.Join(d, "rng"))
	}
	return f
}

type goldenIndex struct {
	Torch []struct {
		File string
		Seed uint64
		Tag  string
		Ops  [][]json.RawMessage
		Keys []string
	}
	ImageList struct {
		File       string
		Shape      []int
		SmallShape []int `json:"small_shape"`
		Seeds      []uint64
		SingleSeed uint64 `json:"single_seed"`
	} `json:"image_list"`
	Numpy struct {
		File  string
		Cases []struct {
			Seed   uint64
			N      int
			Suffix string
		}
	}
	Philox []struct{ Counter, Key, Out []string } `json:"philox4x32_10"`
	Cuda   []struct {
		File string
		Seed uint64
		N    []int
		Keys []string
	} `json:"cuda_unverified"`
}

func readIndex(t *testing.T, folder string) (idx goldenIndex) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(folder, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &idx); err != nil {
		t.Fatal(err)
	}
	return idx
}

// array is one array of an npz file: little-endian elements of the type in descr.
type array struct {
	descr string
	data  []byte
}

var npyDescr = regexp.MustCompile(`'descr': '([^']+)', 'fortran_order': False`)

func readNPZ(t *testing.T, path string) map[string]array {
	t.Helper()
	z, err := zip.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	m := make(map[string]array)
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if string(b[:8]) != "\x93NUMPY\x01\x00" {
			t.Fatalf("%s: %s is no npy of version 1", path, f.Name)
		}
		n := 10 + int(binary.LittleEndian.Uint16(b[8:]))
		d := npyDescr.FindSubmatch(b[:n])
		if d == nil {
			t.Fatalf("%s: %s: header %q", path, f.Name, b[:n])
		}
		m[strings.TrimSuffix(f.Name, ".npy")] = array{string(d[1]), b[n:]}
	}
	return m
}

func elements[T any](t *testing.T, a array, descr string, size int, get func([]byte) T) []T {
	t.Helper()
	if a.descr != descr {
		t.Fatalf("array of type %q, want %q", a.descr, descr)
	}
	v := make([]T, len(a.data)/size)
	for i := range v {
		v[i] = get(a.data[i*size:])
	}
	return v
}

func (a array) f32(t *testing.T) []float32 {
	t.Helper()
	return elements(t, a, "<f4", 4, func(b []byte) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(b)) })
}

func (a array) f64(t *testing.T) []float64 {
	t.Helper()
	return elements(t, a, "<f8", 8, func(b []byte) float64 { return math.Float64frombits(binary.LittleEndian.Uint64(b)) })
}

func (a array) i64(t *testing.T) []int64 {
	t.Helper()
	return elements(t, a, "<i8", 8, func(b []byte) int64 { return int64(binary.LittleEndian.Uint64(b)) })
}

func (a array) u16(t *testing.T) []uint16 {
	t.Helper()
	return elements(t, a, "<u2", 2, binary.LittleEndian.Uint16)
}
