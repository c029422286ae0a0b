package rng

import (
	"encoding/json"
	"math"
	"path/filepath"
	"slices"
	"testing"
)

// ulps counts the float64 values between a and b.
func ulps(a, b float64) uint64 {
	order := func(x float64) int64 {
		i := int64(math.Float64bits(x))
		if i < 0 {
			return math.MinInt64 - i
		}
		return i
	}
	d := order(a) - order(b)
	return uint64(max(d, -d))
}

// tally compares arrays with goldens and says how well each kind agrees.
type tally map[string]*struct{ arrays, values, off, worst int }

func (y tally) add(kind string, values, off, worst int) {
	if y[kind] == nil {
		y[kind] = new(struct{ arrays, values, off, worst int })
	}
	e := y[kind]
	e.arrays++
	e.values += values
	e.off += off
	e.worst = max(e.worst, worst)
}

func (y tally) log(t *testing.T) {
	t.Helper()
	if len(y) == 0 {
		t.Error("nothing was compared")
	}
	kinds := make([]string, 0, len(y))
	for k := range y {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	for _, k := range kinds {
		e := y[k]
		t.Logf("%-24s %4d arrays, %6d values, %d not equal, worst %d ulp", k, e.arrays, e.values, e.off, e.worst)
	}
}

func exact[T comparable](t *testing.T, y tally, kind, key string, got, want []T) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", key, len(got), len(want))
	}
	off := 0
	for i := range got {
		if got[i] != want[i] {
			if off++; off == 1 {
				t.Errorf("%s[%d] = %v, want %v", key, i, got[i], want[i])
			}
		}
	}
	y.add(kind, len(got), off, 0)
}

func near(t *testing.T, y tally, kind, key string, got, want []float64, most uint64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", key, len(got), len(want))
	}
	off, worst := 0, uint64(0)
	for i := range got {
		d := ulps(got[i], want[i])
		if worst = max(worst, d); d > 0 {
			off++
		}
		if d > most {
			t.Errorf("%s[%d] = %v, want %v: %d ulp", key, i, got[i], want[i], d)
		}
	}
	y.add(kind, len(got), off, int(worst))
}

// TestTorch replays every case of the goldens, each a sequence of calls on one
// generator.
func TestTorch(t *testing.T) {
	for _, folder := range folders() {
		t.Run(filepath.Base(filepath.Dir(folder)), func(t *testing.T) {
			y := tally{}
			files := map[string]map[string]array{}
			for _, c := range readIndex(t, folder).Torch {
				z := files[c.File]
				if z == nil {
					z = readNPZ(t, filepath.Join(folder, c.File))
					files[c.File] = z
				}
				g := NewTorch(c.Seed)
				for i, op := range c.Ops {
					var name string
					var arg struct {
						N      int
						Dtype  string
						Lo, Hi int64
						P      float64
						Seed   uint64
					}
					if err := json.Unmarshal(op[0], &name); err != nil {
						t.Fatal(err)
					}
					if err := json.Unmarshal(op[1], &arg); err != nil {
						t.Fatal(err)
					}
					want, has := z[c.Keys[i]]
					if !has && name != "manual_seed" {
						t.Fatalf("no array %s in %s", c.Keys[i], c.File)
					}
					replay(t, y, g, c.File+":"+c.Keys[i], name, arg.Dtype, arg.N, arg.Lo, arg.Hi, arg.P, arg.Seed, want)
				}
			}
			y.log(t)
		})
	}
}

func replay(t *testing.T, y tally, g *Torch, key, name, dtype string, n int, lo, hi int64, p float64, seed uint64, want array) {
	t.Helper()
	f32, f64, u16 := make([]float32, n), make([]float64, n), make([]uint16, n)
	short := ""
	if n < 16 {
		short = " short"
	}
	kind := name + " " + dtype
	switch kind {
	case "randn float32":
		g.Randn32(f32)
		exact(t, y, kind+short, key, f32, want.f32(t))
	case "randn float64":
		g.Randn64(f64)
		near(t, y, kind+short, key, f64, want.f64(t), 2)
	case "randn float16":
		g.RandnF16(u16)
		exact(t, y, kind+short, key, u16, want.u16(t))
	case "randn bfloat16":
		g.RandnBF16(u16)
		exact(t, y, kind+short, key, u16, want.u16(t))
	case "rand float32":
		g.Rand32(f32)
		exact(t, y, kind, key, f32, want.f32(t))
	case "rand float64":
		g.Rand64(f64)
		exact(t, y, kind, key, f64, want.f64(t))
	case "rand float16":
		g.RandF16(u16)
		exact(t, y, kind, key, u16, want.u16(t))
	case "rand bfloat16":
		g.RandBF16(u16)
		exact(t, y, kind, key, u16, want.u16(t))
	case "randint ":
		i64 := make([]int64, n)
		g.RandInt(i64, lo, hi)
		exact(t, y, kind, key, i64, want.i64(t))
	case "randperm ":
		exact(t, y, kind, key, wide(g.Perm(n)), want.i64(t))
	case "bernoulli_tensor float32":
		for i := range f32 {
			f32[i] = float32(float64(i%10) / 10)
		}
		g.Bernoulli32(f32, f32)
		exact(t, y, kind, key, f32, want.f32(t))
	case "bernoulli_tensor float64":
		for i := range f64 {
			f64[i] = float64(i%10) / 10
		}
		g.Bernoulli64(f64, f64)
		exact(t, y, kind, key, f64, want.f64(t))
	case "bernoulli_scalar ":
		g.BernoulliScalar(f32, p)
		exact(t, y, kind, key, f32, want.f32(t))
	case "manual_seed ":
		g.Seed(seed)
	default:
		t.Fatalf("%s: unknown call %q", key, kind)
	}
}

func wide(p []int) []int64 {
	w := make([]int64, len(p))
	for i, v := range p {
		w[i] = int64(v)
	}
	return w
}

// TestImageList holds drift's way of seeding a batch, one generator for each
// image, against diffusers' list of generators, and the other ways of filling a
// batch beside it.
func TestImageList(t *testing.T) {
	for _, folder := range folders() {
		c := readIndex(t, folder).ImageList
		z := readNPZ(t, filepath.Join(folder, c.File))
		y := tally{}
		size := func(shape []int) int { return shape[1] * shape[2] * shape[3] }
		list := func(key string, shape []int, seeds []uint64) {
			gens := make([]*Torch, len(seeds))
			for k, s := range seeds {
				gens[k] = NewTorch(s)
			}
			for call := 0; ; call++ {
				want, ok := z[key+string(rune('0'+call))]
				if !ok {
					if call == 0 {
						t.Fatalf("no array %s0", key)
					}
					return
				}
				var got []float32
				for _, g := range gens {
					x := make([]float32, size(shape)*shape[0]/len(gens))
					g.Randn32(x)
					got = append(got, x...)
				}
				exact(t, y, key, key, got, want.f32(t))
			}
		}
		list("list.", c.Shape, c.Seeds)
		list("small.", c.SmallShape, c.Seeds)
		list("single.", c.Shape, []uint64{c.SingleSeed})
		list("list_of_one.", c.Shape, []uint64{c.SingleSeed})

		b, ch, h, w := c.Shape[0], c.Shape[1], c.Shape[2], c.Shape[3]
		mem := make([]float32, b*size(c.Shape)) // N, H, W, C
		NewTorch(c.SingleSeed).Randn32Strided(mem)
		got := make([]float32, len(mem)) // N, C, H, W
		for n := range b {
			for p := range h * w {
				for k := range ch {
					got[(n*ch+k)*h*w+p] = mem[(n*h*w+p)*ch+k]
				}
			}
		}
		exact(t, y, "channels_last.", "channels_last.0", got, z["channels_last.0"].f32(t))
		y.log(t)
	}
}

func TestNormalF64From32(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 15, 16, 17, 31, 32, 100, 3072} {
		a, b := NewTorch(7), NewTorch(7)
		for call := range 2 {
			narrow, widened := make([]float32, n), make([]float64, n)
			a.Randn32(narrow)
			b.NormalF64From32(widened)
			for i := range narrow {
				if float64(narrow[i]) != widened[i] {
					t.Fatalf("n %d, call %d: element %d is %v, want %v", n, call, i, widened[i], narrow[i])
				}
			}
		}
	}
}

// TestTorchPrinted holds the values that torch prints for a few seeds.
func TestTorchPrinted(t *testing.T) {
	for _, c := range []struct {
		seed uint64
		n    int
		want []float64
	}{
		{0, 5, []float64{1.5410, -0.2934, -2.1788, 0.5684, -1.0845}},
		{42, 3, []float64{0.3367, 0.1288, 0.2345}},
		{0, 16, []float64{-1.1258, -1.1524, -0.2506, -0.4339, 0.8487, 0.6920, -0.3160, -2.1152, 0.3223, -1.2633, 0.3500, 0.3081, 0.1198, 1.2377, 1.1168, -0.2473}},
	} {
		got := make([]float64, c.n)
		NewTorch(c.seed).NormalF64From32(got)
		for i, w := range c.want {
			if math.Abs(got[i]-w) > 5.1e-5 {
				t.Errorf("seed %d, n %d: element %d is %v, want %v", c.seed, c.n, i, got[i], w)
			}
		}
	}
	// The zero value is seed 0; only 32 bits of a seed count.
	var zero Torch
	var a, b [20]float32
	zero.Randn32(a[:])
	NewTorch(1 << 32).Randn32(b[:])
	if a != b {
		t.Error("the zero Torch is not NewTorch(0)")
	}
}

func TestTorchPanics(t *testing.T) {
	g := NewTorch(0)
	for name, f := range map[string]func(){
		"RandInt":     func() { g.RandInt(make([]int64, 1), 3, 3) },
		"Perm":        func() { g.Perm(-1) },
		"Bernoulli32": func() { g.Bernoulli32(make([]float32, 2), make([]float32, 1)) },
		"Bernoulli64": func() { g.Bernoulli64(make([]float64, 2), make([]float64, 3)) },
	} {
		if !panics(f) {
			t.Errorf("%s does not panic", name)
		}
	}
}

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return
}

func TestTorchCUDA(t *testing.T) {
	for _, folder := range folders() {
		worst := 0.0
		for _, c := range readIndex(t, folder).Cuda {
			z := readNPZ(t, filepath.Join(folder, c.File))
			g := NewTorchCUDA(c.Seed, 0)
			for i, n := range c.N {
				got := make([]float32, n)
				g.Randn32(got)
				want := z[c.Keys[i]].f32(t)
				if len(want) != n {
					t.Fatalf("%s: %d values, want %d", c.Keys[i], len(want), n)
				}
				for j := range got {
					d := math.Abs(float64(got[j]) - float64(want[j]))
					worst = max(worst, d)
					if d > 2e-6 {
						t.Errorf("%s[%d] = %v, want %v", c.Keys[i], j, got[j], want[j])
					}
				}
			}
		}
		t.Logf("worst difference %g", worst)
	}
}

// TestTorchCUDAStride: a device with fewer threads than elements gives every thread's four normals in turn. The first T
// elements are those of a device with room for all, the next T their partners of Box and Muller.
func TestTorchCUDAStride(t *testing.T) {
	const threads, n = 8, 70
	small, wide := make([]float64, n), make([]float64, threads)
	g := NewTorchCUDA(3, threads)
	g.NormalF64From32(small)
	free := NewTorchCUDA(3, 0)
	free.NormalF64From32(wide)
	for i, v := range wide {
		if small[i] != v {
			t.Errorf("element %d is %v, want %v", i, small[i], v)
		}
		x := philox(block{0, 0, uint32(i), 0}, 3)
		for pair, w := range [][2]uint32{{x.w0, x.w1}, {x.w2, x.w3}} {
			u, turn := (float64(w[0])+0.5)/(1<<32), 2*math.Pi*(float64(w[1])+0.5)/(1<<32)
			r := math.Sqrt(-2 * math.Log(u))
			for k, want := range []float64{r * math.Sin(turn), r * math.Cos(turn)} {
				if got := small[(2*pair+k)*threads+i]; math.Abs(got-want) > 2e-6 {
					t.Errorf("normal %d of thread %d is %v, want %v", 2*pair+k, i, got, want)
				}
			}
		}
	}
	// 70 elements are three rounds of 32: the second round is the next block of every thread, the next call the fourth
	if free.NormalF64From32(wide); small[4*threads] != wide[0] {
		t.Errorf("the second round begins with %v, want %v", small[4*threads], wide[0])
	}
	free.NormalF64From32(wide)
	free.NormalF64From32(wide)
	if g.NormalF64From32(small); small[0] != wide[0] {
		t.Errorf("the next call begins with %v, want %v", small[0], wide[0])
	}
}

func TestRandomState(t *testing.T) {
	for _, folder := range folders() {
		idx := readIndex(t, folder).Numpy
		z := readNPZ(t, filepath.Join(folder, idx.File))
		y := tally{}
		for _, c := range idx.Cases {
			want, ok := z["rs_randn."+c.Suffix]
			if !ok {
				if c.Seed < 1<<32 {
					t.Fatalf("no array rs_randn.%s", c.Suffix)
				}
				continue // default_rng alone takes such seeds
			}
			g := NewRandomState(uint32(c.Seed))
			f, i := make([]float64, c.N), make([]int64, c.N)
			g.Randn(f)
			near(t, y, "randn", "randn."+c.Suffix, f, want.f64(t), 0)
			g.Rand(f)
			near(t, y, "rand", "rand."+c.Suffix, f, z["rs_rand."+c.Suffix].f64(t), 0)
			g.RandInt(i, 0, 1000)
			exact(t, y, "randint", "randint."+c.Suffix, i, z["rs_randint."+c.Suffix].i64(t))
			exact(t, y, "permutation", "perm."+c.Suffix, wide(g.Permutation(c.N)), z["rs_perm."+c.Suffix].i64(t))
			exact(t, y, "choice", "choice."+c.Suffix, wide(g.Choice(c.N, (c.N+1)/2)), z["rs_choice_norepl."+c.Suffix].i64(t))
		}
		y.log(t)
	}
	var zero RandomState
	var f [1]float64
	zero.Randn(f[:])
	if math.Abs(f[0]-1.76405235) > 5e-9 {
		t.Errorf("first normal of the zero RandomState is %v, want 1.76405235", f[0])
	}
	for name, f := range map[string]func(){
		"RandInt":     func() { zero.RandInt(make([]int64, 1), 0, 1<<32+1) },
		"Permutation": func() { zero.Permutation(-1) },
		"Choice":      func() { zero.Choice(3, 4) },
	} {
		if !panics(f) {
			t.Errorf("%s does not panic", name)
		}
	}
}
