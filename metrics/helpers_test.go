package metrics

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// The closed formulas behind the golden inputs (splitmix64 streams).

func splitmix(seed uint64, k int) uint64 {
	z := seed + uint64(k+1)*0x9E3779B97F4A7C15
	z ^= z >> 30
	z *= 0xBF58476D1CE4E5B9
	z ^= z >> 27
	z *= 0x94D049BB133111EB
	return z ^ z>>31
}

func u24(seed uint64, k int) float64 { return float64(splitmix(seed, k)>>40) * 0x1p-24 }
func u53(seed uint64, k int) float64 { return float64(splitmix(seed, k)>>11) * 0x1p-53 }

// formulaFeatures: three uniforms per entry, first-order correlation along
// the row.
func formulaFeatures(seed uint64, n, d int, scale, shift float64) Matrix32 {
	m := Matrix32{n, d, make([]float32, n*d)}
	for i := range n {
		x := 0.0
		for j := range d {
			k := 3 * (i*d + j)
			e := 2 * ((u24(seed, k) + u24(seed, k+1) + u24(seed, k+2)) - 1.5)
			if j == 0 {
				x = e
			} else {
				x = 0.5*x + e
			}
			amp := 1 + float64(j%5)*0.25
			m.X[i*d+j] = float32(x*amp*scale + shift*(float64(j%3)-0.5))
		}
	}
	return m
}

func flatFeatures(seed uint64, n, d int, scale, shift float64) Matrix32 {
	m := Matrix32{n, d, make([]float32, n*d)}
	for k := range m.X {
		m.X[k] = float32(scale*(2*u24(seed, k)-1) + shift)
	}
	return m
}

func loadJSON(t testing.TB, name string, into any) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

type array struct {
	shape []int
	f64   []float64
	f32   []float32 // only for '<f4'
}

func (a array) matrix() Matrix {
	return Matrix{a.shape[0], len(a.f64) / a.shape[0], a.f64}
}

func (a array) matrix32() Matrix32 {
	return Matrix32{a.shape[0], len(a.f32) / a.shape[0], a.f32}
}

func (a array) ints() []int {
	out := make([]int, len(a.f64))
	for i, v := range a.f64 {
		out[i] = int(v)
	}
	return out
}

var npyHeader = regexp.MustCompile(`'descr': '([^']+)', 'fortran_order': False, 'shape': \(([^)]*)\)`)

func loadNPZ(t testing.TB, name string) map[string]array {
	t.Helper()
	z, err := zip.OpenReader(filepath.Join("testdata", name))
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
		if err != nil {
			t.Fatal(err)
		}
		n := 10 + int(binary.LittleEndian.Uint16(b[8:]))
		h := npyHeader.FindSubmatch(b[:n])
		if h == nil || !bytes.HasPrefix(b, []byte("\x93NUMPY\x01")) {
			t.Fatalf("%s: header %q", f.Name, b[:n])
		}
		var a array
		size := 1
		for _, s := range strings.Split(string(h[2]), ",") {
			if s = strings.TrimSpace(s); s != "" {
				v, err := strconv.Atoi(s)
				if err != nil {
					t.Fatal(err)
				}
				a.shape = append(a.shape, v)
				size *= v
			}
		}
		a.f64 = make([]float64, size)
		b = b[n:]
		for i := range size {
			switch string(h[1]) {
			case "<f8":
				a.f64[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
			case "<f4":
				v := math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
				a.f32 = append(a.f32, v)
				a.f64[i] = float64(v)
			case "|u1":
				a.f64[i] = float64(b[i])
			case "<i4":
				a.f64[i] = float64(int32(binary.LittleEndian.Uint32(b[4*i:])))
			case "<i8":
				a.f64[i] = float64(int64(binary.LittleEndian.Uint64(b[8*i:])))
			default:
				t.Fatalf("%s: type %s", f.Name, h[1])
			}
		}
		out[strings.TrimSuffix(f.Name, ".npy")] = a
	}
	return out
}

// near fails unless |got-want| <= tol*max(1,|want|).
func near(t testing.TB, what string, got, want, tol float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tol*math.Max(1, math.Abs(want))) {
		t.Errorf("%s = %.17g, want %.17g: off by %.2g, allowed %.2g", what, got, want, math.Abs(got-want), tol*math.Max(1, math.Abs(want)))
	}
}

// rel fails unless |got-want| <= tol*|want|.
func rel(t testing.TB, what string, got, want, tol float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tol*math.Abs(want)) {
		t.Errorf("%s = %.17g, want %.17g: relative %.2g, allowed %.2g", what, got, want, math.Abs(got/want-1), tol)
	}
}

// gauss is a small deterministic source of uniforms and normals for tests.
type gauss struct {
	seed uint64
	k    int
}

func (g *gauss) Float64() float64 { g.k++; return u53(g.seed, g.k) }

func (g *gauss) IntN(n int) int {
	hi, _ := bits.Mul64(splitmix(g.seed, g.k), uint64(n))
	g.k++
	return int(hi)
}

func (g *gauss) NormFloat64() float64 {
	a, b := g.Float64(), g.Float64()
	return math.Sqrt(-2*math.Log(1-a)) * math.Cos(2*math.Pi*b)
}

func normals(seed uint64, n, d int) Matrix {
	g := gauss{seed: seed}
	m := Matrix{n, d, make([]float64, n*d)}
	for i := range m.X {
		m.X[i] = g.NormFloat64()
	}
	return m
}

func mustStats(t testing.TB, s Samples) Stats {
	t.Helper()
	st, err := StatsOf(s, Identity{})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func parseFloat(t testing.TB, s string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// setKey is "what name" for error messages.
func setKey(name, what string) string { return fmt.Sprintf("%s: %s", name, what) }

type scoreSet struct {
	D, N1, N2 int
	Stored    bool
	Set1      formula
	Set2      formula
	First1    []float64 `json:"first_values_set1"`
	First2    []float64 `json:"first_values_set2"`
	FID       map[string]any
	KID       struct {
		Subsets   int
		Size      int                `json:"subset_size"`
		PerSubset []float64          `json:"per_subset_f64"`
		Mean      float64            `json:"mean_f64"`
		Std       float64            `json:"std_f64"`
		TorchMean float64            `json:"torch_fidelity_mean"`
		TorchStd  float64            `json:"torch_fidelity_std"`
		Full      map[string]float64 `json:"full_set_poly3"`
		FullRBF   map[string]float64 `json:"full_set_rbf_sigma10"`
	}
	KNN  map[string]map[string]float64 `json:"knn_real_is_set1"`
	CMMD struct {
		Sigma, Scale, Value float64
		MeanShift           float64 `json:"ten_times_mean_shift"`
	}
	Vendi  map[string]float64 `json:"vendi_set1"`
	Energy map[string]float64
	Sliced struct {
		W1       []float64 `json:"per_projection_w1"`
		W2       []float64 `json:"per_projection_w2_squared"`
		Energy   []float64 `json:"per_projection_energy"`
		SW1, SW2 float64
		MIND     float64 `json:"mind_if_equal_sizes"`
	}
	Rows      []int `json:"transport_first_rows"`
	Transport struct {
		W2Uniform  float64 `json:"w2_squared_uniform"`
		W1Uniform  float64 `json:"w1_uniform"`
		W2Weighted float64 `json:"w2_squared_weighted"`
		W1Weighted float64 `json:"w1_weighted"`
		CostMax    float64 `json:"cost_max"`
		Sinkhorn   []struct {
			Weights string
			Reg     float64
			Log     struct {
				Cost, Objective float64
				Error           float64 `json:"marginal_error_l1"`
			} `json:"sinkhorn_log"`
		}
	}
}

type formula struct {
	Formula      string
	Seed         uint64
	N            int
	Scale, Shift float64
}

// loadScores returns the sets a-e with their samples.
func loadScores(t testing.TB) (map[string]scoreSet, map[string][2]Matrix32, map[string]array) {
	t.Helper()
	var raw map[string]json.RawMessage
	loadJSON(t, "scores.json", &raw)
	arr := loadNPZ(t, "features.npz")
	sets, data := map[string]scoreSet{}, map[string][2]Matrix32{}
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		var s scoreSet
		if err := json.Unmarshal(raw[name], &s); err != nil {
			t.Fatal(err)
		}
		x := formulaFeatures(s.Set1.Seed, s.N1, s.D, s.Set1.Scale, s.Set1.Shift)
		y := formulaFeatures(s.Set2.Seed, s.N2, s.D, s.Set2.Scale, s.Set2.Shift)
		for k, v := range s.First1 {
			if float64(x.X[k]) != v || float64(y.X[k]) != s.First2[k] {
				t.Fatalf("set %s: the formula does not rebuild value %d", name, k)
			}
		}
		if s.Stored {
			for k, v := range arr[name+".x"].f32 {
				if x.X[k] != v {
					t.Fatalf("set %s: value %d is %v, stored %v", name, k, x.X[k], v)
				}
			}
		}
		sets[name], data[name] = s, [2]Matrix32{x, y}
	}
	return sets, data, arr
}
