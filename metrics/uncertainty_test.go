package metrics

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
)

func TestBootstrapAndJackknife(t *testing.T) {
	x := normals(1, 80, 1).X
	mean := func(idx []int) (float64, error) {
		s := 0.0
		for _, i := range idx {
			s += x[i] / float64(len(idx))
		}
		return s, nil
	}
	exact := math.Sqrt(variance(x, 1) / 80)
	// The jackknife of a mean is exactly its standard error, without bias.
	j, err := Jackknife(ctx, 80, mean)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "jackknife of the mean", j.StdErr, exact, 1e-13)
	near(t, "jackknife value", j.Value, meanOf(x), 1e-13)
	// Of the biased variance it is the unbiased one.
	biased := func(idx []int) (float64, error) {
		v := make([]float64, len(idx))
		for k, i := range idx {
			v[k] = x[i]
		}
		return variance(v, 0), nil
	}
	if j, err = Jackknife(ctx, 80, biased); err != nil {
		t.Fatal(err)
	}
	near(t, "jackknife of the biased variance", j.Value, variance(x, 1), 1e-12)
	b, err := Bootstrap(ctx, 80, 4000, 0, NewSource(3), mean)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "bootstrap value", b.Value, meanOf(x), 1e-15)
	if math.Abs(b.StdErr/exact-1) > .06 || math.Abs((b.CI.High-b.CI.Low)/(2*1.96*exact)-1) > .08 || b.CI.Low > b.Value || b.CI.High < b.Value {
		t.Errorf("bootstrap of the mean: %+v, standard error %v", b, exact)
	}
	again, err := Bootstrap(ctx, 80, 4000, 0, NewSource(3), mean)
	if err != nil || again != b {
		t.Errorf("the same seed gave %+v, then %+v", b, again)
	}
	bad := func([]int) (float64, error) { return 0, errors.New("broken") }
	if _, err := Bootstrap(ctx, 3, 5, 0, NewSource(1), bad); err == nil {
		t.Error("a failing statistic was ignored")
	}
	for _, f := range []func() error{
		func() error { _, err := Bootstrap(ctx, 3, 5, 0, nil, mean); return err },
		func() error { _, err := Bootstrap(ctx, 0, 5, 0, NewSource(1), mean); return err },
		func() error { _, err := Bootstrap(ctx, 3, 1, 0, NewSource(1), mean); return err },
		func() error { _, err := Bootstrap(ctx, 3, 5, 1.2, NewSource(1), mean); return err },
		func() error { _, err := Jackknife(ctx, 1, mean); return err },
	} {
		if f() == nil {
			t.Error("bad arguments were accepted")
		}
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Jackknife(gone, 3, mean); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if got := percentiles([]float64{4, 1, 3, 2, 5}, .5, 3); got != (Interval{2, 4}) {
		t.Errorf("quartiles of 1..5: %+v", got)
	}
	if got := percentiles([]float64{4, 1, 3, 2, 5}, .5, 2); got != (Interval{1, 3}) { // resampling moved the mean by one
		t.Errorf("quartiles of 1..5 about 2: %+v", got)
	}
	if got := percentiles([]float64{7}, .9, 7); got != (Interval{7, 7}) {
		t.Errorf("percentiles of one value: %+v", got)
	}
}

func TestShardFID(t *testing.T) {
	ref := ar(3, 0, 0)
	var shards []*Moments
	for k := range 10 {
		m := &Moments{}
		if err := m.Add(normals(uint64(50+k), 100, 3)); err != nil {
			t.Fatal(err)
		}
		shards = append(shards, m)
	}
	j, err := Jackknife(ctx, 10, ShardFID(ref, shards))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := MergeAll(shards)
	if err != nil {
		t.Fatal(err)
	}
	s, err := whole.Stats()
	if err != nil {
		t.Fatal(err)
	}
	f, err := FrechetDistance(ref, s)
	if err != nil {
		t.Fatal(err)
	}
	known := ref
	known.ID = Identity{"a", "b"}
	shards[3].ID = Identity{"other", "b"}
	if _, err := ShardFID(known, shards[3:4])([]int{0}); !errors.Is(err, ErrIdentity) {
		t.Errorf("shards of another extractor: %v", err)
	}
	// The jackknife takes away the bias d/N + d(d+1)/(4N) = 0.006.
	if !(j.Value < f.Distance) || j.StdErr <= 0 || math.Abs(j.Value) > 4*j.StdErr {
		t.Errorf("jackknifed FID %+v, plain %v", j, f.Distance)
	}
}

func TestFIDInfinity(t *testing.T) {
	// N(0,I_6) against itself: FID_n = 0 + (d + d(d+1)/4)/n.
	ref := ar(6, 0, 0)
	var value, slope []float64
	for k := range 12 {
		f, err := FIDInfinity(ctx, ref, normals(uint64(300+k), 3000, 6), 0, NewSource(uint32(k)))
		if err != nil {
			t.Fatal(err)
		}
		if len(f.N) != 15 || f.N[0] != 300 || f.N[14] != 3000 || !slices.IsSorted(f.N) {
			t.Fatalf("sizes %v", f.N)
		}
		value, slope = append(value, f.Value), append(slope, f.Slope)
	}
	v, s := meanOf(value), meanOf(slope)
	if math.Abs(v) > 4*math.Sqrt(variance(value, 1)/12) {
		t.Errorf("intercept %v +- %v, want 0", v, math.Sqrt(variance(value, 1)/12))
	}
	if want := 6 + 6*7/4.; math.Abs(s-want) > 4*math.Sqrt(variance(slope, 1)/12)+1 {
		t.Errorf("slope %v, want about %v", s, want)
	}
	for rows, warned := range map[int]bool{60: true, 69: true, 70: false} { // subsets from 6 and 7 rows of 6 features
		f, err := FIDInfinity(ctx, ref, normals(1, rows, 6), 0, NewSource(1))
		if err != nil || (Result{Warnings: f.Warnings}).Warned(WarnFewSamples) != warned {
			t.Errorf("%d rows: %v, %v", rows, f.Warnings, err)
		}
	}
	for what, f := range map[string]func() error{
		"no source":  func() error { _, err := FIDInfinity(ctx, ref, normals(1, 300, 6), 0, nil); return err },
		"few rows":   func() error { _, err := FIDInfinity(ctx, ref, normals(1, 12, 6), 0, NewSource(1)); return err },
		"dimensions": func() error { _, err := FIDInfinity(ctx, ref, normals(1, 300, 5), 0, NewSource(1)); return err },
		"two points": func() error { _, err := FIDInfinity(ctx, ref, normals(1, 300, 6), 2, NewSource(1)); return err },
	} {
		if f() == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

func TestFBD(t *testing.T) {
	// An embedding of sequences over four letters: letter counts and a pair count.
	embed := func(_ context.Context, seqs [][]int) (Samples, error) {
		m := Matrix{len(seqs), 3, nil}
		for _, s := range seqs {
			if len(s) == 0 {
				return nil, fmt.Errorf("empty sequence")
			}
			f := make([]float64, 3)
			for i, c := range s {
				if c < 2 {
					f[c]++
				}
				if i > 0 && s[i-1] == c {
					f[2]++
				}
			}
			m.X = append(m.X, f...)
		}
		return m, nil
	}
	a, b := RandomSequences(NewSource(1), 500, 40, 4), RandomSequences(NewSource(2), 500, 40, 4)
	skew := RandomSequences(NewSource(3), 500, 40, 4)
	for _, s := range skew {
		for i, c := range s {
			if c == 3 {
				s[i] = 0
			}
		}
	}
	same, err := FBD(ctx, embed, a, b, Identity{"cnn", "none"})
	if err != nil {
		t.Fatal(err)
	}
	far, err := FBD(ctx, embed, a, skew, Identity{"cnn", "none"})
	if err != nil {
		t.Fatal(err)
	}
	if same.Metric != "fbd" || same.N != 500 || same.Value > 1 || far.Value < 50 || len(same.Warnings) != 0 {
		t.Errorf("equal sources %+v, different %v", same, far.Value)
	}
	if _, err := FBD(ctx, embed, a, [][]int{{}}, Identity{}); err == nil {
		t.Error("an embedding error was ignored")
	}
	for _, s := range a {
		for _, c := range s {
			if c < 0 || c > 3 {
				t.Fatalf("token %d", c)
			}
		}
	}
}
