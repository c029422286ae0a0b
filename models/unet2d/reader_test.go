package unet2d

import (
	"archive/zip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"drift/models/diffusers"
)

// Readers of the test files only: they trust what they read.

// array is a member of an npz file, widened to float64.
type array struct {
	shape []int
	data  []float64
}

func readNPZ(t testing.TB, path string) map[string]array {
	t.Helper()
	z, err := zip.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	out := map[string]array{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		n := int(binary.LittleEndian.Uint16(b[8:]))
		head, body := string(b[10:10+n]), b[10+n:]
		between := func(key, left, right string) string {
			s := head[strings.Index(head, key)+len(key):]
			s = s[strings.Index(s, left)+1:]
			return s[:strings.Index(s, right)]
		}
		var a array
		size := 1
		for _, d := range strings.Split(between("'shape':", "(", ")"), ",") {
			if d = strings.TrimSpace(d); d != "" {
				v, err := strconv.Atoi(d)
				if err != nil {
					t.Fatal(err)
				}
				a.shape = append(a.shape, v)
				size *= v
			}
		}
		descr := between("'descr':", "'", "'")
		for i := range size {
			var v float64
			switch descr {
			case "<f4":
				v = float64(math.Float32frombits(binary.LittleEndian.Uint32(body[4*i:])))
			case "<f8":
				v = math.Float64frombits(binary.LittleEndian.Uint64(body[8*i:]))
			case "<i8":
				v = float64(int64(binary.LittleEndian.Uint64(body[8*i:])))
			default:
				t.Fatalf("%s: %s has type %s", path, f.Name, descr)
			}
			a.data = append(a.data, v)
		}
		out[strings.TrimSuffix(f.Name, ".npy")] = a
	}
	return out
}

// memory is a set of weights held in memory.
type memory struct {
	names  []string
	shapes map[string][]int
	data   map[string][]float32
}

func (m *memory) Names() []string { return m.names }

func (m *memory) Shape(name string) ([]int, bool) {
	s, ok := m.shapes[name]
	return s, ok
}

func (m *memory) Float32(name string) ([]float32, error) {
	v, ok := m.data[name]
	if !ok {
		return nil, fmt.Errorf("no tensor %s", name)
	}
	return append([]float32(nil), v...), nil
}

func (m *memory) put(name string, shape []int, v []float32) {
	if m.data == nil {
		m.data, m.shapes = map[string][]float32{}, map[string][]int{}
	}
	m.names = append(m.names, name)
	m.shapes[name], m.data[name] = shape, v
}

func readSafetensors(t testing.TB, path string) *memory {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(b)
	var head map[string]struct {
		Dtype   string
		Shape   []int
		Offsets [2]int `json:"data_offsets"`
	}
	if err := json.Unmarshal(b[8:8+n], &head); err != nil {
		t.Fatal(err)
	}
	body := b[8+n:]
	m := &memory{}
	for name, h := range head {
		if name == "__metadata__" {
			continue
		}
		v := make([]float32, product(h.Shape))
		raw := body[h.Offsets[0]:h.Offsets[1]]
		for i := range v {
			switch h.Dtype {
			case "F32":
				v[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
			case "BF16":
				v[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(raw[2*i:])) << 16)
			case "F16":
				v[i] = half(binary.LittleEndian.Uint16(raw[2*i:]))
			default:
				t.Fatalf("%s: %s has type %s", path, name, h.Dtype)
			}
		}
		m.put(name, h.Shape, v)
	}
	return m
}

func half(u uint16) float32 {
	exp, frac := int(u>>10&31), float64(u&1023)
	v := math.Ldexp(1+frac/1024, exp-15)
	if exp == 0 {
		v = math.Ldexp(frac/1024, -14)
	}
	if u>>15 == 1 {
		v = -v
	}
	return float32(v)
}

// classDefaults is the configuration of a file that says nothing.
func classDefaults() diffusers.UNet2DConfig {
	c, err := diffusers.ParseConfig("defaults", []byte(`{"_class_name": "UNet2DModel"}`))
	if err != nil {
		panic(err)
	}
	return *c.(*diffusers.UNet2DConfig)
}

func readConfig(t testing.TB, path string) diffusers.UNet2DConfig {
	t.Helper()
	c, err := diffusers.ReadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	return *c.(*diffusers.UNet2DConfig)
}

// fixture finds a folder of the fixtures: under testdata, or where
// DRIFT_FIXTURES says.
func fixture(t testing.TB, elem ...string) string {
	t.Helper()
	if p := filepath.Join("testdata", elem[len(elem)-1]); elem[0] == "models" {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	return filepath.Join(append([]string{root}, elem...)...)
}
