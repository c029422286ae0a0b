package metrics

import (
	"fmt"
	"math"
	"testing"
)

// Every score that knows its blocks says what comparing again without them says.
func TestJackknifedBlocks(t *testing.T) {
	ref, gen := normals(1, 90, 5), normals(2, 47, 5) // 47 rows in 6 blocks: of 8 and 7
	for i := range gen.X {
		gen.X[i] = 1.2*gen.X[i] + 0.3
	}
	src := func() Source { return NewSource(5) }
	for _, s := range []Score{
		MMD{}, MMD{Kernel: Gaussian{2}, Estimator: Biased, Scale: 3}, KID{Full: true}, CMMD{Sigma: 1}, EnergyDistance{}, EnergyDistance{Unbiased: true},
		PRDC{}, PRDC{K: 1, Inclusive: true}, Sliced{Directions: 40, Source: src()}, Sliced{Kind: SlicedW1, Directions: 70, Source: src()},
		Sliced{Kind: SlicedEnergy, Directions: 33, Source: src()},
	} {
		name := fmt.Sprintf("%T%+v", s, s)
		r, without, err := Jackknifed(ctx, s, ref, gen, 6)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		plain, want, err := again(ctx, s, ref, gen, 6)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		near(t, name, r.Value, plain.Value, 1e-13)
		for k := range want {
			near(t, fmt.Sprintf("%s without block %d", name, k), without[k], want[k].Value, 1e-11)
		}
		if r.StdErr <= 0 || r.Settings != plain.Settings || r.N != 47 || r.NRef != 90 || r.D != 5 || r.Metric != plain.Metric {
			t.Errorf("%s: %+v", name, r)
		}
		for part, v := range plain.Parts {
			near(t, name+" "+part, r.Parts[part], v, 1e-13)
		}
	}
	// By hand: without one of its two near points the precision falls from 1/3.
	r, without, err := Jackknifed(ctx, PRDC{K: 1}, Matrix{3, 1, []float64{0, 1, 3}}, Matrix{6, 1, []float64{.5, .75, 20, 30, 40, 55}}, 6)
	if err != nil || r.Parts["precision"] != 2./6 || r.Parts["coverage"] != 2./3 {
		t.Fatalf("%+v %v", r, err)
	}
	near(t, "error of the precision", r.PartErr["precision"], math.Sqrt(5./6*(2*math.Pow(1./5-1./3, 2)+4*math.Pow(2./5-1./3, 2))), 1e-14)
	if len(without) != 6 || r.PartErr["coverage"] != 0 {
		t.Errorf("%+v %v", r, without)
	}
	for _, b := range []int{1, 7, 64} {
		if _, _, err := Jackknifed(ctx, MMD{}, ref, Matrix{6, 5, gen.X[:30]}, b); err == nil {
			t.Errorf("%d blocks of 6 rows were accepted", b)
		}
	}
}

// The error of a score must match its spread over new generated sets, the reference staying.
func TestJackknifedSpread(t *testing.T) {
	src := func() Source { return NewSource(3) }
	ref := normals(1, 300, 3)
	for _, c := range []struct {
		s        Score
		low, top float64 // of claimed over seen
	}{
		{MMD{Kernel: Gaussian{1}}, .85, 1.2},
		{KID{Subsets: 60, Size: 80, Source: src()}, .8, 1.2},
		{CMMD{}, .8, 1.2},
		{EnergyDistance{}, .8, 1.2},
		{Sliced{Directions: 100, Source: src()}, .8, 1.25},
		{Sliced{Kind: MIND, Directions: 100, Source: src()}, .75, 1.3},
		{Wasserstein{}, .75, 1.25},
		{SinkhornDivergence{Eta: 1}, .8, 1.25},
		{PRDC{}, .75, 1.45},
		{InceptionScore{Splits: 1}, .8, 1.25},
		{Vendi{}, .8, 1.25},
	} {
		var vals, errs []float64
		for k := range 80 {
			gen := normals(uint64(100+k), 150, 3)
			for i := range gen.X {
				gen.X[i] = 1.1*gen.X[i] + 0.4
			}
			r, _, err := Jackknifed(ctx, c.s, ref, gen, 20)
			if err != nil {
				t.Fatalf("%T: %v", c.s, err)
			}
			vals, errs = append(vals, r.Value), append(errs, r.StdErr)
		}
		if ratio := meanOf(errs) / math.Sqrt(variance(vals, 1)); ratio < c.low || ratio > c.top {
			t.Errorf("%T: spread over 80 sets %.4g, claimed %.4g (%.2f of it)", c.s, math.Sqrt(variance(vals, 1)), meanOf(errs), ratio)
		} else {
			t.Logf("%T: %.2f", c.s, ratio)
		}
	}
}

// KID's subsets may be all rows: then their average is exact for these rows and its Monte-Carlo error nothing, while the
// rows themselves have an error still.
func TestKIDOfAllRows(t *testing.T) {
	ref, gen := normals(1, 60, 3), normals(2, 60, 3)
	r, _, err := Jackknifed(ctx, KID{Subsets: 5, Source: NewSource(1)}, ref, gen, 20)
	if err != nil || r.Parts[monteCarlo] > 1e-12 {
		t.Fatalf("%+v %v", r, err)
	}
	full, _, err := Jackknifed(ctx, KID{Full: true}, ref, gen, 20)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "value", r.Value, full.Value, 1e-12)
	near(t, "error", r.StdErr, full.StdErr, 1e-9)
}

// Thousands of rows are thinned for the error of KID, which grows with the root of their share.
func TestThin(t *testing.T) {
	s := thin(normals(1, 25, 1), 10)
	n, _ := s.Dims()
	if p, ok := s.(picked); !ok || n != 10 || p.idx[0] != 0 || p.idx[9] != 22 {
		t.Errorf("%+v", s)
	}
}

// Asking again gives the same number, and the next batch goes on from there.
func TestScoresRepeat(t *testing.T) {
	ref, gen := normals(1, 60, 3), normals(2, 80, 3)
	src := NewSource(4)
	for _, s := range []Score{KID{Subsets: 3, Size: 20, Source: src}, Sliced{Directions: 5, Source: src}, Sliced{Kind: MIND, Directions: 5, Source: src}, InceptionScore{Source: src}} {
		c := Collector{Score: s, Reference: ref}
		if err := c.Add(gen); err != nil {
			t.Fatal(err)
		}
		a, err := c.Value(ctx)
		if err != nil {
			t.Fatal(err)
		}
		b, err := c.Value(ctx)
		if err != nil || a.Value != b.Value {
			t.Errorf("%T: %v and %v, %v", s, a.Value, b.Value, err)
		}
	}
}
