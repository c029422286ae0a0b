package rng

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func increment(b Brownian, d int, from, to float64) []float64 {
	w := make([]float64, d)
	b.Increment(w, from, to)
	return w
}

// far says by how much two increments differ, in units of the root of the
// largest time involved.
func far(a, b []float64, top float64) float64 {
	d := 0.0
	for i := range a {
		d = max(d, math.Abs(a[i]-b[i]))
	}
	return d / math.Sqrt(top)
}

// TestBrownianAdds: W(c)-W(a) = W(b)-W(a) + W(c)-W(b) whatever the order of the
// times, on both sides of 0, and over many magnitudes.
func TestBrownianAdds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	time := func() float64 {
		switch r.IntN(4) {
		case 0:
			return 0
		case 1:
			return r.Float64()*20 - 10
		case 2:
			return math.Ldexp(float64(r.IntN(33)-16), -r.IntN(10))
		}
		return math.Ldexp(r.Float64()-0.5, r.IntN(200)-150)
	}
	worst := 0.0
	for _, depth := range []int{0, 1, 5, 52} {
		p := Brownian{Key{Seed: 9, Image: 3}, depth}
		for range 300 {
			a, b, c := time(), time(), time()
			whole, first, second := increment(p, 3, a, c), increment(p, 3, a, b), increment(p, 3, b, c)
			for i := range first {
				first[i] += second[i]
			}
			top := max(math.Abs(a), math.Abs(b), math.Abs(c), 1e-300)
			d := far(whole, first, top)
			if worst = max(worst, d); d > 1e-14 {
				t.Errorf("depth %d: from %v over %v to %v is off by %g", depth, a, b, c, d)
			}
			back := increment(p, 3, c, a)
			for i := range back {
				if back[i] != -whole[i] {
					t.Fatalf("from %v to %v and back: %v and %v", a, c, whole[i], back[i])
				}
			}
		}
	}
	t.Logf("worst %g", worst)
}

// TestBrownianSamePath: runs of 20 and 40 steps, asked in different orders, see
// one path.
func TestBrownianSamePath(t *testing.T) {
	sigma := func(i, n int) float64 { // a Karras grid, noise to data, ending at 0
		if i == n {
			return 0
		}
		f := float64(i) / float64(n-1)
		return math.Pow(math.Pow(80, 1.0/7)+f*(math.Pow(0.002, 1.0/7)-math.Pow(80, 1.0/7)), 7)
	}
	lambda := func(i, n int) float64 { return -5 + 11*float64(i)/float64(n) }
	p := Brownian{Key: Key{Seed: 1, Image: 2}}
	const d = 5
	for name, grid := range map[string]func(i, n int) float64{"sigma": sigma, "lambda": lambda} {
		nodes := map[int][]float64{}
		for _, n := range []int{20, 40} {
			order := rand.New(rand.NewPCG(uint64(n), 0)).Perm(n)
			parts := make([][]float64, n)
			for _, i := range order {
				parts[i] = increment(p, d, grid(i, n), grid(i+1, n))
			}
			for i := range parts { // the same again, in turn
				if !slices.Equal(parts[i], increment(p, d, grid(i, n), grid(i+1, n))) {
					t.Fatalf("%s: step %d of %d changed when asked again", name, i, n)
				}
			}
			sum := make([]float64, d)
			for i := range parts {
				for k := range sum {
					sum[k] += parts[i][k]
				}
				if n == 20 {
					nodes[i+1] = slices.Clone(sum)
				} else if name == "lambda" && i%2 == 1 { // shared nodes, up to rounding of the times
					if e := far(sum, nodes[(i+1)/2], 10); e > 1e-7 {
						t.Errorf("%s: node %d differs by %g", name, i, e)
					}
				}
			}
			if e := far(sum, nodes[20], 80); e > 1e-13 {
				t.Errorf("%s: the ends of 20 and %d steps differ by %g", name, n, e)
			}
			if e := far(sum, increment(p, d, grid(0, n), grid(n, n)), 80); e > 1e-13 {
				t.Errorf("%s: %d steps differ from one by %g", name, n, e)
			}
		}
	}
}

// TestBrownianLaw: increments have mean 0, variance b-a, normal law, and are
// independent where they do not overlap.
func TestBrownianLaw(t *testing.T) {
	const n = 20000
	times := []float64{-3, -2, -0.7, 0, 0.001, 0.3, 1, 1.5, 1.6, 1.6001, 4, 80}
	for _, depth := range []int{0, 12, 52} {
		z := make([][]float64, len(times)-1)
		for j := range z {
			z[j] = make([]float64, n)
			Brownian{Key{Seed: 77}, depth}.Normal(z[j], times[j], times[j+1])
			checkNormal(t, "increment", z[j])
			for i := range j {
				c := 0.0
				for k := range n {
					c += z[i][k] * z[j][k] / n
				}
				if math.Abs(c) > 4.5/math.Sqrt(n) {
					t.Errorf("depth %d: increments %d and %d correlate by %v", depth, i, j, c)
				}
			}
		}
	}
	// Across images, over an interval of about a leaf.
	z := make([]float64, n)
	for i := range z {
		Brownian{Key: Key{Seed: 8, Image: uint64(i), Step: i % 3}}.Normal(z[i:i+1], 0.25, 0.2500001)
	}
	checkNormal(t, "across images", z)
	Brownian{Key{Seed: 8}, 52}.Normal(z, 0.7, math.Nextafter(0.7, 1))
	checkNormal(t, "neighbouring float64", z)
}

// TestBrownianRefines: inside a leaf the path is continuous and normal, and a
// deeper tree keeps what a shallower one gave at ends and middles of leaves.
func TestBrownianRefines(t *testing.T) {
	const d = 8
	shallow, deep := Brownian{Key{Seed: 4}, 3}, Brownian{Key{Seed: 4}, 30}
	for k := range 17 {
		at := 1 + float64(k)/16 // leaves of [1, 2) are 1/8 wide
		if e := far(increment(shallow, d, 0, at), increment(deep, d, 0, at), 2); e > 1e-14 {
			t.Errorf("depths 3 and 30 differ by %g at %v", e, at)
		}
	}
	const n = 20000
	z := make([]float64, n)
	shallow.Normal(z, 1.5, 1.5301)
	checkNormal(t, "into a leaf", z)
	// Leaf edges, from inside.
	for _, at := range []float64{1.125, 1.5, 2, 4} {
		for _, p := range []Brownian{shallow, deep} {
			if e := far(increment(p, d, math.Nextafter(at, 0), at), make([]float64, d), 1); e > 1e-6 {
				t.Errorf("depth %d: the path jumps by %g at %v", p.Depth, e, at)
			}
		}
	}
}

func TestBrownianEdges(t *testing.T) {
	p := Brownian{}
	w := []float64{1, 2, 3}
	p.Normal(w, 0.3, 0.3)
	if !slices.Equal(w, []float64{0, 0, 0}) {
		t.Errorf("no time, but %v", w)
	}
	for _, at := range []float64{math.SmallestNonzeroFloat64, math.MaxFloat64, -math.MaxFloat64, 0x1p-64, 0x1p-65} {
		p.Increment(w, 0, at)
		for _, v := range w {
			if e := math.Abs(v) / math.Sqrt(math.Abs(at)); e == 0 || e > 6 || e != e {
				t.Errorf("W(%v) = %v", at, v)
			}
		}
	}
	for _, f := range []func(){
		func() { p.Increment(w, 0, math.NaN()) },
		func() { p.Increment(w, math.Inf(-1), 0) },
		func() { p.Normal(w, math.MaxFloat64, -math.MaxFloat64) },
		func() { Brownian{Depth: -1}.Increment(w, 0, 1) },
		func() { Brownian{Depth: 53}.Normal(w, 0, 1) },
	} {
		if !panics(f) {
			t.Error("no panic")
		}
	}
}
