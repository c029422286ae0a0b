package unet2d

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"drift/internal/npz"
	"drift/models/diffusers"
)

// array is a member of an npz file, widened to float64.
type array struct {
	shape []int
	data  []float64
}

func readNPZ(t testing.TB, path string) map[string]array {
	t.Helper()
	all, err := npz.ReadAll(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]array{}
	for name, a := range all {
		v, err := a.Float64()
		if err != nil {
			t.Fatal(err)
		}
		out[name] = array{a.Shape, v}
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

// classDefaults is the configuration of a file that says nothing.
func classDefaults() diffusers.UNet2DConfig {
	c, err := diffusers.ParseConfig("defaults", []byte(`{"_class_name": "UNet2DModel"}`))
	if err != nil {
		panic(err)
	}
	return *c.(*diffusers.UNet2DConfig)
}

// open opens a folder with a network.
func open(t testing.TB, dir string) (diffusers.UNet2DConfig, diffusers.Weights) {
	t.Helper()
	m, err := diffusers.Open(dir, diffusers.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return *m.Config.(*diffusers.UNet2DConfig), m.Weights
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
