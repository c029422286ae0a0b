package metrics

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"testing"

	"drift/internal/kernels"
)

// Exact means and covariances of 10^5 x 16 sets, integer arithmetic.
func TestMomentsExact(t *testing.T) {
	var g struct {
		N, D int
		Sets map[string]struct {
			Seed  uint64
			First []float64 `json:"first_values"`
			Mean  []float64
			Cov   [][]float64
			Raw   float64 `json:"relative_error_raw_sums_f64"`
		}
	}
	loadJSON(t, "stream.json", &g)
	sqrt3 := 1.7320508075688772
	for name, f := range map[string]func(e float64) float64{
		"plain":            func(e float64) float64 { return e },
		"feature_like_f32": func(e float64) float64 { return math.RoundToEven(float64(float32(0.4+0.5*e))*0x1p30) * 0x1p-30 },
		"ill_conditioned":  func(e float64) float64 { p := sqrt3 * e; return 1e6 + float64(p) },
		"tiny_spread":      func(e float64) float64 { p := 0.01 * e; return 1e4 + float64(p) },
	} {
		s := g.Sets[name]
		x := Matrix{g.N, g.D, make([]float64, g.N*g.D)}
		for k := range x.X {
			x.X[k] = f(2*u53(s.Seed, k) - 1)
		}
		for k, v := range s.First {
			if x.X[k] != v {
				t.Fatalf("%s: value %d is %v, want %v", name, k, x.X[k], v)
			}
		}
		whole := &Moments{}
		var shards []*Moments
		for lo := 0; lo < g.N; lo += 7001 {
			hi := min(lo+7001, g.N)
			part := dense(x, lo, hi)
			if err := whole.Add(part); err != nil {
				t.Fatal(err)
			}
			shard := &Moments{}
			if err := shard.Add(part); err != nil {
				t.Fatal(err)
			}
			shard, err := FromState(shard.State()) // through the stored form
			if err != nil {
				t.Fatal(err)
			}
			shards = append(shards, shard)
		}
		merged, err := MergeAll(shards)
		if err != nil {
			t.Fatal(err)
		}
		for what, m := range map[string]*Moments{"one pass": whole, "merged": merged} {
			st, err := m.Stats()
			if err != nil {
				t.Fatal(err)
			}
			if st.N != g.N {
				t.Errorf("%s %s: N = %d", name, what, st.N)
			}
			big, worst, off, bigMean := 0.0, 0.0, 0.0, 0.0
			for i := range g.D {
				off, bigMean = max(off, math.Abs(st.Mean[i]-s.Mean[i])), max(bigMean, math.Abs(s.Mean[i]))
				for j := range g.D {
					big = max(big, math.Abs(s.Cov[i][j]))
					worst = max(worst, math.Abs(st.Cov.At(i, j)-s.Cov[i][j]))
				}
			}
			t.Logf("%s, %s: covariance off by %.1e of the largest entry, mean by %.1e (raw sums: %.1e)", name, what, worst/big, off/bigMean, s.Raw)
			if worst > 1e-12*big {
				t.Errorf("%s, %s: covariance off by %.2g of the largest entry", name, what, worst/big)
			}
			if off > 1e-12*bigMean {
				t.Errorf("%s, %s: mean off by %.2g", name, what, off/bigMean)
			}
		}
	}
}

// Bits must not depend on the batching, on the number of threads or on a look
// in between.
func TestMomentsSameBits(t *testing.T) {
	x := formulaFeatures(5, 1000, 150, 1, 0.2)
	run := func(batch, threads int, peek bool) Stats {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(threads))
		m := &Moments{}
		for lo := 0; lo < x.N; lo += batch {
			hi := min(lo+batch, x.N)
			if err := m.Add(Matrix32{hi - lo, x.D, x.X[lo*x.D : hi*x.D]}); err != nil {
				t.Fatal(err)
			}
			if peek && m.N() > 1 {
				if _, err := m.Stats(); err != nil {
					t.Fatal(err)
				}
			}
		}
		st, err := m.Stats()
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	want := run(1000, 1, false)
	for _, c := range []struct {
		batch, threads int
		peek           bool
	}{{1, 1, false}, {8, 2, false}, {256, 2, false}, {257, 4, true}, {1000, 4, false}} {
		got := run(c.batch, c.threads, c.peek)
		for i := range x.D {
			if got.Mean[i] != want.Mean[i] {
				t.Fatalf("%+v: mean %d differs", c, i)
			}
			for j := range x.D {
				if got.Cov.At(i, j) != want.Cov.At(i, j) {
					t.Fatalf("%+v: covariance %d,%d differs", c, i, j)
				}
			}
		}
	}
}

func TestMomentsMerge(t *testing.T) {
	x := formulaFeatures(6, 700, 5, 1, 0)
	parts := func(cuts ...int) []*Moments {
		var out []*Moments
		for k := 1; k < len(cuts); k++ {
			m := &Moments{}
			if err := m.Add(Matrix32{cuts[k] - cuts[k-1], 5, x.X[cuts[k-1]*5 : cuts[k]*5]}); err != nil {
				t.Fatal(err)
			}
			out = append(out, m)
		}
		return out
	}
	want := mustStats(t, x)
	for _, cuts := range [][]int{{0, 700}, {0, 1, 700}, {0, 1, 2, 3, 700}, {0, 256, 512, 700}, {0, 300, 300, 700}} {
		shards := parts(cuts...)
		m, err := MergeAll(shards)
		if err != nil {
			t.Fatal(err)
		}
		if m.N() != 700 || m.Dim() != 5 {
			t.Fatalf("%v: %d x %d", cuts, m.N(), m.Dim())
		}
		st, err := m.Stats()
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			near(t, "mean", st.Mean[i], want.Mean[i], 1e-14)
			for j := range 5 {
				near(t, "covariance", st.Cov.At(i, j), want.Cov.At(i, j), 1e-13)
			}
		}
		if n := shards[0].N(); n != cuts[1] {
			t.Errorf("%v: the first shard now has %d rows", cuts, n)
		}
		// and a shard can grow after a merge
		if err := m.Add(Matrix32{1, 5, x.X[:5]}); err != nil || m.N() != 701 {
			t.Errorf("add after merge: %v, %d rows", err, m.N())
		}
	}
}

func TestMomentsEdges(t *testing.T) {
	m := &Moments{}
	if _, err := m.Stats(); !errors.Is(err, ErrTooFew) {
		t.Errorf("empty: %v", err)
	}
	if err := m.Add(Matrix{1, 3, []float64{1, 2, 3}}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Stats(); !errors.Is(err, ErrTooFew) {
		t.Errorf("one row: %v", err)
	}
	if s := m.State(); s.N != 1 || s.Origin[2]+s.Mean[2] != 3 || s.M2[0] != 0 {
		t.Errorf("state of one row: %+v", s)
	}
	if err := m.Add(Matrix{2, 3, []float64{1, 2, 3, 1, 2, 3}}); err != nil {
		t.Fatal(err)
	}
	for _, v := range m.State().M2 {
		if v != 0 {
			t.Errorf("constant features: M2 has %v, want exact zeros", v)
		}
	}
	if _, err := m.Stats(); !errors.Is(err, ErrConstant) {
		t.Errorf("constant features: %v", err)
	}
	if err := m.Add(Matrix{1, 2, []float64{1, 2}}); !errors.Is(err, ErrDims) {
		t.Errorf("other dimension: %v", err)
	}
	if err := m.Add(Matrix{2, 3, []float64{1, 2, 4, 1, math.NaN(), 3}}); !errors.Is(err, ErrNaN) || m.N() != 3 {
		t.Errorf("NaN: %v, %d rows", err, m.N())
	}
	if err := m.Add(Matrix{1, 3, []float64{1, math.Inf(1), 3}}); !errors.Is(err, ErrNaN) {
		t.Errorf("infinity: %v", err)
	}
	o := &Moments{ID: Identity{Extractor: "other"}}
	if err := o.Add(Matrix{1, 3, []float64{4, 5, 6}}); err != nil {
		t.Fatal(err)
	}
	if err := m.Merge(o); !errors.Is(err, ErrIdentity) {
		t.Errorf("other identity: %v", err)
	}
	if err := m.Add(Matrix{1, 3, []float64{4, 5, 6}}); err != nil {
		t.Fatal(err)
	}
	st, err := m.Stats() // 3 x (1,2,3), 1 x (4,5,6)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "variance", st.Cov.At(0, 0), 9*3.0/16*4/3, 1e-15)
	for what, bad := range map[string]State{
		"size":     {N: 2, Mean: []float64{1}, M2: []float64{1, 2}},
		"origin":   {N: 2, Mean: []float64{1}, M2: []float64{1}, Origin: []float64{1, 2}},
		"count":    {N: 0, Mean: []float64{1}, M2: []float64{1}},
		"NaN":      {N: 2, Mean: []float64{math.NaN()}, M2: []float64{1}},
		"negative": {N: 2, Mean: []float64{1}, M2: []float64{-1}},
	} {
		if _, err := FromState(bad); err == nil {
			t.Errorf("state with wrong %s was accepted", what)
		}
	}
}

func TestMomentsShift(t *testing.T) {
	x := normals(3, 500, 4)
	y := Matrix{x.N, x.D, append([]float64(nil), x.X...)}
	for i := range y.X {
		y.X[i] += 1e6
	}
	a, b := mustStats(t, x), mustStats(t, y)
	for i := range 4 {
		for j := range 4 {
			near(t, "covariance after a shift by 1e6", b.Cov.At(i, j), a.Cov.At(i, j), 1e-8)
		}
	}
}

func BenchmarkMoments2048(b *testing.B) {
	x := flatFeatures(1, 4096, 2048, 1, 0)
	for _, workers := range []int{1, 0} {
		name := fmt.Sprintf("workers=%d", workers)
		if workers == 0 {
			name = "workers=all"
		}
		b.Run(name, func(b *testing.B) {
			p := kernels.NewPool(kernels.Detect(), workers)
			defer p.Close()
			for b.Loop() {
				m := &Moments{Pool: p}
				if err := m.Add(x); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*4096/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
