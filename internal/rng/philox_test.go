package rng

import (
	"hash/fnv"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

func words(t *testing.T, hex []string) []uint32 {
	t.Helper()
	w := make([]uint32, len(hex))
	for i, s := range hex {
		v, err := strconv.ParseUint(s, 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		w[i] = uint32(v)
	}
	return w
}

// TestPhilox holds the known answers of Random123 (kat_vectors) and two more.
func TestPhilox(t *testing.T) {
	vectors := readIndex(t, filepath.Join("testdata", "rng")).Philox
	if len(vectors) < 5 {
		t.Fatalf("%d vectors", len(vectors))
	}
	for _, v := range vectors {
		c, k, want := words(t, v.Counter), words(t, v.Key), words(t, v.Out)
		got := philox(block{c[0], c[1], c[2], c[3]}, uint64(k[1])<<32|uint64(k[0]))
		if got != (block{want[0], want[1], want[2], want[3]}) {
			t.Errorf("philox(%08x, %08x) = %08x, want %08x", c, k, got, want)
		}
	}
}

var someKeys = []Key{
	{},
	{Seed: 1},
	{Image: 1},
	{Step: 1},
	{Purpose: PurposeStep},
	{Seed: 1 << 40, Image: 1 << 35, Step: -1, Purpose: 1 << 16},
}

// TestKeyLayout follows the description at Key word by word, with the functions
// of package math.
func TestKeyLayout(t *testing.T) {
	for _, key := range someKeys {
		normal, uniform := make([]float64, 9), make([]float64, 9)
		Normal(normal, key)
		Uniform(uniform, key)
		for i := range normal {
			for kind, got := range []float64{normal[i], uniform[i]} {
				d := philox(block{uint32(key.Image), uint32(key.Image >> 32), uint32(key.Purpose), uint32(kind)}, key.Seed)
				b := philox(block{uint32(i / 2), uint32(key.Step), d.w2, d.w3}, uint64(d.w0)+uint64(d.w1)<<32)
				u := math.Ldexp(float64((uint64(b.w0)+uint64(b.w1)<<32)/2048), -53)
				v := math.Ldexp(float64((uint64(b.w2)+uint64(b.w3)<<32)/2048), -53)
				want := []float64{u, v}[i%2]
				if kind == 0 {
					r := math.Sqrt(-2 * math.Log(u+math.Ldexp(1, -53)))
					want = []float64{r * math.Cos(2*math.Pi*v), r * math.Sin(2*math.Pi*v)}[i%2]
				}
				if math.Abs(got-want) > float64(1-kind)*1e-14 {
					t.Errorf("%+v: element %d of kind %d is %v, want %v", key, i, kind, got, want)
				}
			}
		}
	}
}

// TestRowPrefix: a row is the same however long it is asked for, and rows of
// different keys, and of normals and uniforms, differ.
func TestRowPrefix(t *testing.T) {
	seen := map[float64]string{}
	for _, key := range someKeys {
		for name, draw := range map[string]func([]float64, Key){
			"normal": Normal, "uniform": Uniform,
			"path": func(d []float64, k Key) { Brownian{Key: k}.Increment(d, 0.1, 0.7) },
		} {
			long := make([]float64, 100)
			draw(long, key)
			for _, n := range []int{0, 1, 2, 3, 99} {
				row := make([]float64, n)
				draw(row, key)
				if !slices.Equal(row, long[:n]) {
					t.Errorf("%s %+v: a row of %d is no start of a row of 100", name, key, n)
				}
			}
			for _, v := range long {
				if other, dup := seen[v]; dup {
					t.Fatalf("%s %+v shares %v with %s", name, key, v, other)
				}
				seen[v] = name
			}
		}
	}
}

// digest hashes the bits of every value of a stream.
func digest(rows ...[]float64) uint64 {
	h := fnv.New64a()
	var b [8]byte
	for _, row := range rows {
		for _, v := range row {
			u := math.Float64bits(v)
			for i := range b {
				b[i] = byte(u >> (8 * i))
			}
			h.Write(b[:])
		}
	}
	return h.Sum64()
}

// TestFrozen holds the bits of every stream, on every architecture: what a seed
// means must not change.
func TestFrozen(t *testing.T) {
	row := func(n int, f func([]float64)) []float64 {
		d := make([]float64, n)
		f(d)
		return d
	}
	var normal, uniform, path [][]float64
	for _, k := range someKeys {
		normal = append(normal, row(20001, func(d []float64) { Normal(d, k) }))
		uniform = append(uniform, row(2001, func(d []float64) { Uniform(d, k) }))
		for _, b := range []Brownian{{k, 0}, {k, 1}, {k, 52}} {
			path = append(path, row(51, func(d []float64) { b.Increment(d, 0.3, 0.8) }),
				row(51, func(d []float64) { b.Normal(d, 80, -0.002) }), row(51, func(d []float64) { b.Normal(d, -1e-30, -7e5) }))
		}
	}
	for _, c := range []struct {
		name string
		got  uint64
		want uint64
	}{
		{"Normal", digest(normal...), 0x369ca358be83e4cd},
		{"Uniform", digest(uniform...), 0x506c9223d7b004c9},
		{"Brownian", digest(path...), 0x32a00c287c993276},
		{"Torch.NormalF64From32", digest(row(400007, NewTorch(3).NormalF64From32)), 0xc6a80b1168fc3631},
		{"Torch.Randn64", digest(row(100007, NewTorch(3).Randn64)), 0xf965fda323eafff6},
		{"Torch.Randn64Strided", digest(row(20007, NewTorch(3).Randn64Strided)), 0x9bdea21003d46542},
		{"RandomState.Randn", digest(row(20007, NewRandomState(3).Randn)), 0xbedfb2cf7c5dc459},
	} {
		if c.got != c.want {
			t.Errorf("%s: digest %#016x, want %#016x", c.name, c.got, c.want)
		}
	}
	first := row(4, func(d []float64) { Normal(d, Key{Seed: 42, Image: 7, Step: 3, Purpose: PurposeStep}) })
	want := []float64{0.46949957286025745, -1.966509174707086, 0.8475527152271501, 0.5655360499149809}
	if !slices.Equal(first, want) {
		t.Errorf("first normals %v, want %v", first, want)
	}
}

// moments returns the first four moments of x.
func moments(x []float64) (m [4]float64) {
	for _, v := range x {
		p := 1.0
		for k := range m {
			p *= v
			m[k] += p / float64(len(x))
		}
	}
	return m
}

// ks is the Kolmogorov-Smirnov distance of x from a distribution function, times
// the root of the sample size. 1.95 is passed by one true sample in a thousand.
func ks(x []float64, cdf func(float64) float64) float64 {
	x = slices.Sorted(slices.Values(x))
	n, d := float64(len(x)), 0.0
	for i, v := range x {
		d = max(d, float64(i+1)/n-cdf(v), cdf(v)-float64(i)/n)
	}
	return d * math.Sqrt(n)
}

func normalCDF(x float64) float64 { return math.Erfc(-x/math.Sqrt2) / 2 }

func checkNormal(t *testing.T, name string, x []float64) {
	t.Helper()
	n := math.Sqrt(float64(len(x)))
	m := moments(x)
	for k, want := range [4]float64{0, 1, 0, 3} {
		sd := [4]float64{1, math.Sqrt2, math.Sqrt(15), math.Sqrt(96)}[k] / n
		if math.Abs(m[k]-want) > 4*sd {
			t.Errorf("%s: moment %d is %v, want %v within %v", name, k+1, m[k], want, 4*sd)
		}
	}
	if d := ks(x, normalCDF); d > 1.95 {
		t.Errorf("%s: Kolmogorov-Smirnov %v", name, d)
	}
}

func TestNormalLaw(t *testing.T) {
	const n = 200000
	x := make([]float64, n)
	Normal(x, Key{Seed: 5})
	checkNormal(t, "along a row", x)
	corr := 0.0
	for i := 0; i < n; i += 2 {
		corr += x[i] * x[i+1] / (n / 2)
	}
	if math.Abs(corr) > 4/math.Sqrt(n/2) {
		t.Errorf("elements of one block correlate by %v", corr)
	}
	for i := range x[:50000] { // one element each, of many keys
		Normal(x[i:i+1], Key{Seed: 5, Image: uint64(i)})
	}
	checkNormal(t, "across images", x[:50000])
	for i := range x[:50000] {
		Normal(x[i:i+1], Key{Seed: 5, Step: i})
	}
	checkNormal(t, "across steps", x[:50000])
	Uniform(x, Key{Seed: 5})
	if d := ks(x, func(v float64) float64 { return v }); d > 1.95 {
		t.Errorf("uniforms: Kolmogorov-Smirnov %v", d)
	}
	NewTorch(5).NormalF64From32(x)
	checkNormal(t, "torch", x)
}

func TestNoAllocation(t *testing.T) {
	g, cuda, state := NewTorch(1), NewTorchCUDA(1, 0), NewRandomState(1)
	f32, f64, u16, i64 := make([]float32, 33), make([]float64, 33), make([]uint16, 33), make([]int64, 33)
	for name, f := range map[string]func(){
		"Normal":              func() { Normal(f64, Key{Step: 3}) },
		"Uniform":             func() { Uniform(f64, Key{Step: 3}) },
		"Brownian.Increment":  func() { Brownian{}.Increment(f64, -1, 2) },
		"Brownian.Normal":     func() { Brownian{Depth: 52}.Normal(f64, 0.1, 0.7) },
		"Torch.Seed":          func() { g.Seed(2) },
		"Torch.Randn32":       func() { g.Randn32(f32) },
		"Torch.Randn64":       func() { g.Randn64(f64) },
		"NormalF64From32":     func() { g.NormalF64From32(f64) },
		"Torch.RandnF16":      func() { g.RandnF16(u16) },
		"Torch.RandBF16":      func() { g.RandBF16(u16) },
		"Torch.RandInt":       func() { g.RandInt(i64, 0, 1<<40) },
		"Torch.Bernoulli32":   func() { g.Bernoulli32(f32, f32) },
		"TorchCUDA.Randn32":   func() { cuda.Randn32(f32) },
		"RandomState.Randn":   func() { state.Randn(f64) },
		"RandomState.RandInt": func() { state.RandInt(i64, 0, 9) },
	} {
		if n := testing.AllocsPerRun(20, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}
