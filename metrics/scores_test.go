package metrics

import (
	"context"
	"errors"
	"math"
	"testing"

	"gonum.org/v1/gonum/mat"
)

var ctx = context.Background()

var (
	_ = []Metric{&FID{}, &Collector{}}
	_ = []Score{MMD{}, KID{}, CMMD{}, EnergyDistance{}, PRDC{}, InceptionScore{}, Vendi{}, Sliced{}, Wasserstein{}}
)

// chosen hands out given index sets in turn.
type chosen struct {
	Source
	sets [][]int
}

func (c *chosen) Choice(n, k int) []int {
	s := c.sets[0]
	c.sets = c.sets[1:]
	if len(s) != k {
		panic("wrong subset size")
	}
	return s
}

func TestMMDClosedForms(t *testing.T) {
	x, y := Matrix{3, 2, []float64{1, 0, 0, 1, 1, 1}}, Matrix{3, 2, []float64{0, 0, 1, 0, 0, 2}}
	for _, c := range []struct {
		k    Kernel
		e    Estimator
		want float64
	}{
		{Polynomial{}, Biased, 1.3472222}, {Polynomial{}, Unbiased, -2.5833333}, {Polynomial{}, Paired, -2.3333333},
		{Gaussian{1}, Biased, .1762324}, {Gaussian{1}, Unbiased, -.2232241}, {Gaussian{1}, Paired, -.2882216},
	} {
		r, err := MMD{Kernel: c.k, Estimator: c.e}.Compare(ctx, x, y)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(r.Value-c.want) > 5.1e-8 {
			t.Errorf("%v %v: %.9f, want %.7f", c.k, c.e, r.Value, c.want)
		}
	}
	// The same set twice: unbiased is never positive, biased is zero.
	z := normals(4, 50, 3)
	r, err := MMD{}.Compare(ctx, z, z)
	if err != nil || r.Value > 0 {
		t.Errorf("unbiased MMD² of a set and itself is %v, %v", r.Value, err)
	}
	r, err = MMD{Kernel: Gaussian{2}, Estimator: Biased}.Compare(ctx, z, z)
	if err != nil || math.Abs(r.Value) > 1e-16 {
		t.Errorf("biased MMD² of a set and itself is %v, %v", r.Value, err)
	}
	// Linear kernel (degree 1): biased MMD² = γ |difference of means|².
	w := formulaFeatures(1, 40, 30, 1, 2)
	v := formulaFeatures(2, 37, 30, 1, 0)
	r, err = MMD{Kernel: Polynomial{Degree: 1, Gamma: 1}, Estimator: Biased}.Compare(ctx, w, v)
	if err != nil {
		t.Fatal(err)
	}
	a, b, want := mustStats(t, w).Mean, mustStats(t, v).Mean, 0.0
	for i := range a {
		want += (a[i] - b[i]) * (a[i] - b[i])
	}
	rel(t, "linear kernel", r.Value, want, 1e-12)
}

func TestKIDGoldens(t *testing.T) {
	sets, data, arr := loadScores(t)
	for name, s := range sets {
		x, y := data[name][0], data[name][1]
		if s.Stored {
			var c chosen
			i1, i2 := arr[name+".kid_idx1"], arr[name+".kid_idx2"]
			for k := range s.KID.Subsets {
				c.sets = append(c.sets, i1.ints()[k*s.KID.Size:(k+1)*s.KID.Size], i2.ints()[k*s.KID.Size:(k+1)*s.KID.Size])
			}
			vals, err := KID{Subsets: s.KID.Subsets, Size: s.KID.Size, Source: &c}.subsets(ctx, y, x)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range vals {
				near(t, setKey(name, "subset from stored indices"), v, s.KID.PerSubset[k], 1e-12)
			}
		}
		r, err := KID{Subsets: s.KID.Subsets, Size: s.KID.Size, Source: NewSource(2020)}.Compare(ctx, y, x)
		if err != nil {
			t.Fatal(err)
		}
		near(t, setKey(name, "KID"), r.Value, s.KID.Mean, 1e-12)
		near(t, setKey(name, "KID std"), r.Std, s.KID.Std, 1e-12)
		near(t, setKey(name, "KID of torch-fidelity"), r.Value, s.KID.TorchMean, 1e-6)
		near(t, setKey(name, "KID std of torch-fidelity"), r.Std, s.KID.TorchStd, 2e-6)
		rel(t, setKey(name, "Monte-Carlo error"), r.Parts[monteCarlo], s.KID.Std/math.Sqrt(float64(s.KID.Subsets-1)), 1e-12)
		if !r.Warned(WarnOverlap) {
			t.Errorf("set %s: no warning about overlapping subsets", name)
		}
		for k, want := range map[Kernel]map[string]float64{Polynomial{}: s.KID.Full, Gaussian{10}: s.KID.FullRBF} {
			sums, err := kernelSums(ctx, k, x, y, false, false)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range []Estimator{Biased, Unbiased} {
				v, err := sums.mmd(e)
				if err != nil {
					t.Fatal(err)
				}
				near(t, setKey(name, k.String()+" "+e.String()), v, want[e.String()], 1e-12)
			}
		}
		if name == "c" {
			continue
		}
		full, err := KID{Full: true}.Compare(ctx, x, y)
		if err != nil {
			t.Fatal(err)
		}
		near(t, setKey(name, "full KID"), full.Value, s.KID.Full["unbiased"], 1e-12)
	}
}

func TestKIDRefuses(t *testing.T) {
	x, y := normals(1, 20, 3), normals(2, 10, 3)
	if _, err := (KID{}).Compare(ctx, x, y); err == nil {
		t.Error("KID without a source was accepted")
	}
	if _, err := (KID{Size: 11, Source: NewSource(1)}).Compare(ctx, x, y); !errors.Is(err, ErrTooFew) {
		t.Errorf("subset above the set: %v", err)
	}
	r, err := KID{Source: NewSource(1)}.Compare(ctx, x, y)
	if err != nil || r.Settings != "subsets=100 size=10" {
		t.Errorf("defaults: %q, %v", r.Settings, err)
	}
	bad := normals(3, 10, 3)
	bad.X[7] = math.NaN()
	same := Matrix{5, 3, make([]float64, 15)}
	for what, c := range map[string]struct {
		x, y Samples
		want error
	}{
		"NaN": {x, bad, ErrNaN}, "constant": {same, y, ErrConstant}, "dimensions": {x, normals(1, 9, 2), ErrDims},
		"one row": {x, normals(1, 1, 3), ErrTooFew}, "no reference": {nil, y, ErrTooFew},
	} {
		for _, s := range []Score{KID{Full: true}, KID{Source: NewSource(1)}, MMD{}, CMMD{}, EnergyDistance{}, PRDC{K: 1}} {
			if _, err := s.Compare(ctx, c.x, c.y); !errors.Is(err, c.want) {
				t.Errorf("%T, %s: %v", s, what, err)
			}
		}
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := (MMD{}).Compare(gone, x, y); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// The jackknife error must match the spread of the estimate over new data.
func TestMMDStandardError(t *testing.T) {
	var vals, errs []float64
	for k := range 200 {
		x, y := normals(uint64(100+2*k), 60, 2), normals(uint64(101+2*k), 50, 2)
		for i := range y.X {
			y.X[i] += 0.5
		}
		r, err := MMD{Kernel: Gaussian{1}}.Compare(ctx, x, y)
		if err != nil {
			t.Fatal(err)
		}
		vals, errs = append(vals, r.Value), append(errs, r.StdErr)
	}
	spread, claimed := math.Sqrt(variance(vals, 1)), meanOf(errs)
	if claimed < 0.85*spread || claimed > 1.25*spread {
		t.Errorf("spread over 200 repeats %.4g, jackknife says %.4g", spread, claimed)
	}
}

func TestCMMD(t *testing.T) {
	sets, data, _ := loadScores(t)
	for name, s := range sets {
		if !s.Stored {
			continue
		}
		r, err := CMMD{}.Compare(ctx, data[name][0], data[name][1])
		if err != nil {
			t.Fatal(err)
		}
		near(t, setKey(name, "CMMD"), r.Value, s.CMMD.Value, 1e-12)
		if math.Abs(r.Value/s.CMMD.MeanShift-1) > 0.05 {
			t.Errorf("set %s: CMMD %v is far from 10 |mean shift|² = %v", name, r.Value, s.CMMD.MeanShift)
		}
	}
	r, err := CMMD{}.Compare(ctx, Matrix{3, 2, []float64{1, 0, 0, 2, 1, 1}}, Matrix{3, 2, []float64{1, 0, -1, 0, 0, 3}})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "CMMD of three points", r.Value, 3.7613739451, 5e-11)
}

func TestEnergyDistance(t *testing.T) {
	sets, data, _ := loadScores(t)
	for name, s := range sets {
		if !s.Stored {
			continue
		}
		v, err := EnergyDistance{}.Compare(ctx, data[name][0], data[name][1])
		if err != nil {
			t.Fatal(err)
		}
		near(t, setKey(name, "energy V"), v.Value, s.Energy["v_statistic"], 1e-12)
		u, err := EnergyDistance{Unbiased: true}.Compare(ctx, data[name][0], data[name][1])
		if err != nil {
			t.Fatal(err)
		}
		near(t, setKey(name, "energy U"), u.Value, s.Energy["u_statistic"], 1e-12)
	}
	r, err := EnergyDistance{}.Compare(ctx, Matrix{3, 1, []float64{0, 1, 3}}, Matrix{3, 1, []float64{5, 6, 8}})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "energy of {0,1,3} and {5,6,8}", r.Value, 22.0/3, 1e-15)
}

func TestPRDCGoldens(t *testing.T) {
	sets, data, _ := loadScores(t)
	for name, s := range sets {
		if !s.Stored {
			continue
		}
		for k, key := range map[int]string{1: "k=1", 3: "k=3", 5: "k=5"} {
			want := s.KNN[key]
			got, err := PRDC{K: k}.Score(ctx, data[name][0], data[name][1])
			if err != nil {
				t.Fatal(err)
			}
			what := setKey(name, key)
			near(t, what+" precision", got.Precision, want["precision"], 1e-15)
			near(t, what+" recall", got.Recall, want["recall"], 1e-15)
			near(t, what+" density", got.Density, want["density"], 1e-15)
			near(t, what+" coverage", got.Coverage, want["coverage"], 1e-15)
			in, err := PRDC{K: k, Inclusive: true}.Score(ctx, data[name][0], data[name][1])
			if err != nil {
				t.Fatal(err)
			}
			near(t, what+" torch-fidelity precision", in.Precision, want["torch_fidelity_precision"], 1e-7)
			near(t, what+" torch-fidelity recall", in.Recall, want["torch_fidelity_recall"], 1e-7)
			near(t, what+" torch-fidelity F", in.F, want["torch_fidelity_f_score"], 1e-6)
		}
	}
}

func TestPRDCClosedForms(t *testing.T) {
	real1, fake1 := Matrix{5, 1, []float64{0, 1, 2, 3, 9}}, Matrix{5, 1, []float64{.5, 1, 1.4, 4.5, 30}}
	// The same points along a line in 20 dimensions take the other code path.
	line := func(m Matrix) Matrix {
		out := Matrix{m.N, 20, make([]float64, m.N*20)}
		for i := range m.N {
			for j := range 20 {
				out.X[i*20+j] = 100 + m.X[i]*float64(1+j%3)
			}
		}
		return out
	}
	for _, dim := range []func(Matrix) Matrix{func(m Matrix) Matrix { return m }, line} {
		r, f := dim(real1), dim(fake1)
		for _, c := range []struct {
			k                      int
			inclusive              bool
			p, rec, density, cover float64
		}{{1, false, .8, .8, 1.2, .8}, {2, false, .8, 1, 1, 1}} {
			got, err := PRDC{K: c.k, Inclusive: c.inclusive}.Score(ctx, r, f)
			if err != nil {
				t.Fatal(err)
			}
			if d := math.Abs(got.Precision-c.p) + math.Abs(got.Recall-c.rec) + math.Abs(got.Density-c.density) + math.Abs(got.Coverage-c.cover); d > 1e-15 {
				t.Errorf("k=%d: %+v, want %+v", c.k, got, c)
			}
		}
		got, err := PRDC{K: 1, Inclusive: true}.Score(ctx, r, f)
		if err != nil || got.Precision != .8 || got.Recall != 1 {
			t.Errorf("inclusive: %+v, %v", got, err)
		}
	}
	// A set against itself: every point is in its own ball, on both paths.
	for _, d := range []int{2, 40} {
		x := normals(9, 130, d)
		got, err := PRDC{K: 3}.Score(ctx, x, x)
		if err != nil || got.Precision != 1 || got.Recall != 1 || got.Coverage != 1 {
			t.Errorf("a set and itself in %d-d: %+v, %v", d, got, err)
		}
		// Each ball holds its centre and, strictly, its k-1 nearer neighbours.
		near(t, "density of a set and itself", got.Density, 1, 1e-15)
		in, err := PRDC{K: 3, Inclusive: true}.Score(ctx, x, x)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "inclusive density of a set and itself", in.Density, 4.0/3, 1e-15)
	}
	// Duplicates: radius zero, nothing strictly inside.
	dup := Matrix{4, 1, []float64{0, 0, 5, 5}}
	got, err := PRDC{K: 1}.Score(ctx, dup, dup)
	if err != nil || got.Precision != 0 || got.Coverage != 0 {
		t.Errorf("duplicates, strict: %+v, %v", got, err)
	}
	got, err = PRDC{K: 1, Inclusive: true}.Score(ctx, dup, dup)
	if err != nil || got.Precision != 1 || got.Recall != 1 {
		t.Errorf("duplicates, inclusive: %+v, %v", got, err)
	}
	if _, err := (PRDC{K: 4}).Score(ctx, dup, dup); !errors.Is(err, ErrTooFew) {
		t.Errorf("k = n: %v", err)
	}
}

// Equal distributions: E density = 1, E coverage = 1 - Π (N-i)/(M+N-i).
func TestCoverageExpectation(t *testing.T) {
	for _, c := range []struct {
		n, m, k int
		want    float64
	}{{150, 150, 5, .9703}, {150, 75, 3, .7077}} {
		want := 1.0
		for i := 1; i <= c.k; i++ {
			want *= float64(c.n-i) / float64(c.m+c.n-i)
		}
		near(t, "formula", 1-want, c.want, 5e-5)
		cover, density := 0.0, 0.0
		const runs = 40
		for r := range runs {
			got, err := PRDC{K: c.k}.Score(ctx, normals(uint64(2*r+500), c.n, 4), normals(uint64(2*r+501), c.m, 4))
			if err != nil {
				t.Fatal(err)
			}
			cover += got.Coverage / runs
			density += got.Density / runs
		}
		if math.Abs(cover-c.want) > 0.02 || math.Abs(density-1) > 0.1 {
			t.Errorf("N=%d M=%d k=%d: coverage %.4f (want %.4f), density %.3f (want 1)", c.n, c.m, c.k, cover, c.want, density)
		}
	}
}

func TestMedianDistance(t *testing.T) {
	m, err := MedianDistance(ctx, Matrix{3, 1, []float64{0, 1, 3}}, nil)
	if err != nil || m != 2 {
		t.Errorf("median of 1, 2, 3 is %v, %v", m, err)
	}
	m, err = MedianDistance(ctx, Matrix{2, 1, []float64{0, 1}}, Matrix{2, 1, []float64{3, 7}})
	if err != nil || m != 3.5 { // 1 2 3 4 6 7
		t.Errorf("median of 1 2 3 4 6 7 is %v, %v", m, err)
	}
}

func TestCollector(t *testing.T) {
	x, y := formulaFeatures(1, 80, 3, 1, 0), formulaFeatures(2, 70, 3, 1, .1)
	want, err := PRDC{}.Compare(ctx, x, y)
	if err != nil {
		t.Fatal(err)
	}
	c := Collector{Score: PRDC{}, Reference: x, ReferenceID: Identity{"e", "r"}, ID: Identity{"e", "r"}}
	d := Collector{Score: PRDC{}, Reference: x, ReferenceID: Identity{"e", "r"}, ID: Identity{"e", "s"}}
	for lo := 0; lo < 70; lo += 14 {
		if err := c.Add(Matrix32{14, 3, y.X[lo*3 : (lo+14)*3]}); err != nil {
			t.Fatal(err)
		}
		var part Samples = Matrix32{14, 3, y.X[lo*3 : (lo+14)*3]}
		if lo == 28 {
			part = dense(part, 0, 14) // float64 in the middle
		}
		if err := d.Add(part); err != nil {
			t.Fatal(err)
		}
	}
	got, err := c.Value(ctx)
	if err != nil || got.Value != want.Value || got.Identity != "extractor=e resize=r n=70" {
		t.Errorf("collected %+v, %v, want %v", got, err, want.Value)
	}
	if _, err := d.Value(ctx); !errors.Is(err, ErrIdentity) {
		t.Errorf("other identity: %v", err)
	}
	d.Force = true
	if got, err = d.Value(ctx); err != nil || got.Value != want.Value || !got.Warned(WarnForcedIdentity) {
		t.Errorf("forced: %+v, %v", got, err)
	}
	if err := c.Add(Matrix{1, 3, []float64{0, math.NaN(), 0}}); !errors.Is(err, ErrNaN) {
		t.Errorf("NaN: %v", err)
	}
	if err := c.Add(Matrix{1, 2, []float64{0, 0}}); !errors.Is(err, ErrDims) {
		t.Errorf("dimension: %v", err)
	}
}

func TestInceptionScore(t *testing.T) {
	var raw struct {
		IS map[string]map[string]any `json:"inception_score"`
	}
	loadJSON(t, "scores.json", &raw)
	arr := loadNPZ(t, "features.npz")
	for name, g := range raw.IS {
		x := arr[name].matrix32()
		for i, v := range g["permutation_first8_seed2020"].([]any) {
			if got := NewSource(2020).Choice(x.N, x.N)[i]; got != int(v.(float64)) {
				t.Fatalf("%s: permutation entry %d is %d, want %v", name, i, got, v)
			}
		}
		for key, c := range map[string]InceptionScore{
			"splits=1,shuffle=False": {Splits: 1}, "splits=1,shuffle=True": {Splits: 1, Source: NewSource(2020)},
			"splits=10,shuffle=False": {}, "splits=10,shuffle=True": {Source: NewSource(2020)},
		} {
			want := g[key].([]any)
			r, err := c.Compare(ctx, nil, x)
			if err != nil {
				t.Fatal(err)
			}
			near(t, name+" "+key, r.Value, want[0].(float64), 1e-12)
			near(t, name+" "+key+" std", r.Std, want[1].(float64), 1e-12)
		}
	}
	logits := func(rows ...[]float64) Matrix {
		m := Matrix{len(rows), len(rows[0]), nil}
		for _, r := range rows {
			for _, p := range r {
				m.X = append(m.X, math.Log(p))
			}
		}
		return m
	}
	for what, c := range map[string]struct {
		x    Matrix
		want float64
	}{
		"three rows":     {logits([]float64{.7, .2, .1}, []float64{.1, .8, .1}, []float64{.2, .2, .6}), 1.3339551094},
		"constant rows":  {logits([]float64{.7, .2, .1}, []float64{.7, .2, .1}), 1},
		"one row":        {logits([]float64{.7, .2, .1}), 1},
		"one-hot over 4": {Matrix{4, 4, []float64{900, 0, 0, 0, 0, 900, 0, 0, 0, 0, 900, 0, 0, 0, 0, 900}}, 4},
	} {
		r, err := InceptionScore{Splits: 1}.Compare(ctx, nil, c.x)
		if err != nil {
			t.Fatal(err)
		}
		near(t, what, r.Value, c.want, 5e-11)
	}
	if _, err := (InceptionScore{}).Compare(ctx, nil, logits([]float64{1, 1})); !errors.Is(err, ErrTooFew) {
		t.Errorf("ten splits of one row: %v", err)
	}
}

func TestVendi(t *testing.T) {
	sets, data, _ := loadScores(t)
	for name, s := range sets {
		if !s.Stored {
			continue
		}
		for key, c := range map[string]struct{ q, tol float64 }{
			"K_q=0.5": {.5, 1e-6}, "K_q=1": {1, 1e-10}, "K_q=2": {2, 1e-10}, "K_q=inf": {math.Inf(1), 1e-10},
			"dual_q=1": {0, 1e-10}, "recomputed_q=1": {1, 1e-10}, "recomputed_q=2": {2, 1e-10},
		} {
			r, err := Vendi{Q: c.q}.Compare(ctx, nil, data[name][0])
			if err != nil {
				t.Fatal(err)
			}
			rel(t, setKey(name, key), r.Value, s.Vendi[key], c.tol)
		}
		u := all(unit{data[name][0]})
		k := mat.NewSymDense(u.N, nil)
		for i := range u.N {
			for j := i; j < u.N; j++ {
				k.SetSym(i, j, math.Exp(-sqDist(u.row(i), u.row(j))))
			}
		}
		v, err := Vendi{}.Kernel(k, u.N)
		if err != nil {
			t.Fatal(err)
		}
		rel(t, setKey(name, "RBF kernel"), v, s.Vendi["rbf_exp(-|a-b|^2)_q=1"], 1e-10)
	}
	kernel := func(n int, f func(i, j int) float64) *mat.SymDense {
		k := mat.NewSymDense(n, nil)
		for i := range n {
			for j := i; j < n; j++ {
				k.SetSym(i, j, f(i, j))
			}
		}
		return k
	}
	pairs := func(i, j int) float64 { return math.Exp(-10 * math.Abs(float64(i/2-j/2))) }
	half := func(i, j int) float64 {
		if i == j {
			return 1
		}
		return .5
	}
	for _, c := range []struct {
		n    int
		f    func(i, j int) float64
		q    float64
		want float64
	}{
		{6, pairs, 1, 2.9999999959}, {6, pairs, 2, 2.9999999918}, {6, pairs, math.Inf(1), 2.9998073937},
		{2, half, 1, 1.7547653506}, {2, half, 2, 1.6}, {2, half, math.Inf(1), 4.0 / 3}, {3, half, 1, 2.3811015780},
		{4, func(i, j int) float64 { return 1 }, 1, 1}, {1, half, 2, 1},
	} {
		v, err := Vendi{Q: c.q}.Kernel(kernel(c.n, c.f), c.n)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "closed form", v, c.want, 6e-11)
	}
	eye := Matrix{3, 5, []float64{2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7, 0}}
	for _, m := range []Matrix{eye, {6, 5, append(append([]float64(nil), eye.X...), eye.X...)}} {
		r, err := Vendi{}.Compare(ctx, nil, m)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "orthogonal features", r.Value, 3, 1e-13) // duplicates do not count
	}
	if _, err := (Vendi{}).Compare(ctx, nil, Matrix{2, 2, []float64{1, 0, 0, 0}}); err == nil {
		t.Error("a zero row was accepted")
	}
	if _, err := (Vendi{Q: -1}).Kernel(kernel(2, half), 2); err == nil {
		t.Error("a negative order was accepted")
	}
	if _, err := (Vendi{}).Kernel(mat.NewSymDense(1, []float64{math.NaN()}), 1); !errors.Is(err, ErrNaN) {
		t.Errorf("NaN kernel: %v", err)
	}
}

func BenchmarkKIDSubset(b *testing.B) {
	x, y := flatFeatures(1, 1000, 2048, 1, 0), flatFeatures(2, 1000, 2048, 1, .1)
	for b.Loop() {
		if _, err := kernelSums(ctx, Polynomial{}, x, y, false, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPRDC(b *testing.B) {
	x, y := flatFeatures(1, 2000, 2048, 1, 0), flatFeatures(2, 2000, 2048, 1, .1)
	for b.Loop() {
		if _, err := (PRDC{}).Score(ctx, x, y); err != nil {
			b.Fatal(err)
		}
	}
}
