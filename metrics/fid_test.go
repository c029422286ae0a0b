package metrics

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"testing"
	"time"

	"gonum.org/v1/gonum/mat"
)

func stats(mean []float64, cov ...float64) Stats {
	return Stats{N: 1 << 20, Mean: mean, Cov: mat.NewSymDense(len(mean), cov)}
}

func ar(d int, rho, slope float64) Stats {
	s := Stats{N: 1 << 20, Mean: make([]float64, d), Cov: mat.NewSymDense(d, nil)}
	for i := range d {
		s.Mean[i] = slope * float64(i)
		for j := i; j < d; j++ {
			s.Cov.SetSym(i, j, math.Pow(rho, float64(j-i)))
		}
	}
	return s
}

func TestFrechetClosedForms(t *testing.T) {
	id3, ones3 := stats(make([]float64, 3), 1, 0, 0, 0, 1, 0, 0, 0, 0), stats(make([]float64, 3), 2, 1, 1, 1, 2, 1, 1, 1, 2)
	for _, c := range []struct {
		name string
		a, b Stats
		want float64
	}{
		{"diagonal", stats([]float64{0, 0}, 1, 0, 0, 1), stats([]float64{3, 4}, 4, 0, 0, 9), 30},
		{"2x2", stats([]float64{0, 0}, 2, 1, 1, 2), stats([]float64{-1, 1}, 3, -1, -1, 2), 3.0637624298626662},
		{"singular", id3, ones3, 6 - 2*math.Sqrt(3)},
		{"AR(1) d=5", ar(5, .5, 0), ar(5, .9, .1), 1.3196059353315448},
		{"AR(1) d=8", ar(8, .5, 0), ar(8, -.5, 0), 3.3805096932100795},
		{"d=1", stats([]float64{1}, 4), stats([]float64{3}, 9), 5},
		{"rank one against rank one, orthogonal", stats([]float64{0, 0}, 1, 0, 0, 0), stats([]float64{0, 0}, 0, 0, 0, 4), 5},
		{"tiny", stats([]float64{0}, 1e-300), stats([]float64{0}, 1e-300), 0},
	} {
		for range 2 {
			f, err := FrechetDistance(c.a, c.b)
			if err != nil {
				t.Fatal(c.name, err)
			}
			near(t, c.name, f.Distance, c.want, 1e-13)
			c.a, c.b = c.b, c.a // symmetric
		}
	}
}

func TestFrechetInvariances(t *testing.T) {
	x, y := normals(1, 60, 6), normals(2, 50, 6)
	base, err := FrechetDistance(mustStats(t, x), mustStats(t, y))
	if err != nil {
		t.Fatal(err)
	}
	// a rotation from the QR of a random matrix, and a common shift
	var qr mat.QR
	qr.Factorize(mat.NewDense(6, 6, normals(3, 6, 6).X))
	var q mat.Dense
	qr.QTo(&q)
	turn := func(m Matrix) Matrix {
		out := Matrix{m.N, m.D, make([]float64, m.N*m.D)}
		mat.NewDense(m.N, m.D, out.X).Mul(mat.NewDense(m.N, m.D, m.X), &q)
		for i := range out.X {
			out.X[i] += 3
		}
		return out
	}
	f, err := FrechetDistance(mustStats(t, turn(x)), mustStats(t, turn(y)))
	if err != nil {
		t.Fatal(err)
	}
	near(t, "after rotation and shift", f.Distance, base.Distance, 1e-13)
	f, err = FrechetDistance(mustStats(t, x), mustStats(t, x))
	if err != nil {
		t.Fatal(err)
	}
	near(t, "of a set and itself", f.Distance, 0, 1e-13)
}

// E FID of N(0,I_d) at N samples against its exact moments: d/N + d(d+1)/(4N).
func TestFrechetBias(t *testing.T) {
	exact := ar(4, 0, 0)
	sum, runs := 0.0, 200
	for k := range runs {
		f, err := FrechetDistance(exact, mustStats(t, normals(uint64(1000+k), 200, 4)))
		if err != nil {
			t.Fatal(err)
		}
		sum += f.Distance
	}
	if got := sum / float64(runs); math.Abs(got-0.045) > 4*0.0012 {
		t.Errorf("mean FID at N=200, d=4 is %.4f, want 0.0450 +- 0.0048", got)
	}
}

func TestFIDGoldens(t *testing.T) {
	sets, data, arr := loadScores(t)
	for name, s := range sets {
		x, y := data[name][0], data[name][1]
		start := time.Now()
		f, err := FrechetDistance(mustStats(t, x), mustStats(t, y))
		if err != nil {
			t.Fatal(name, err)
		}
		t.Logf("set %s, d=%d: %v", name, s.D, time.Since(start))
		rel(t, setKey(name, "FID against the dual route"), f.Distance, s.FID["dual"].(float64), 2e-12)
		rel(t, setKey(name, "mean term"), f.MeanTerm, s.FID["mean_term"].(float64), 1e-12)
		rel(t, setKey(name, "trace 1"), f.Trace1, s.FID["trace1"].(float64), 1e-13)
		rel(t, setKey(name, "FID as torch-fidelity computes it"), f.Distance, s.FID["torch_fidelity_as_is"].(float64), 2e-6)
		if v, ok := s.FID["60_digits"].(string); ok {
			rel(t, setKey(name, "FID in 60 digits"), f.Distance, parseFloat(t, v), 1e-13)
		}
		if want := min(s.D, s.N1-1); f.Rank1 != want {
			t.Errorf("set %s: rank %d, want %d", name, f.Rank1, want)
		}
	}
	var raw struct {
		SFID map[string]any `json:"sfid_like"`
	}
	loadJSON(t, "scores.json", &raw)
	flat := func(key string) Matrix32 {
		a := arr[key]
		m, err := Spatial(a.f32, a.shape[0], a.shape[1], a.shape[2], a.shape[3], 7)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	f, err := FrechetDistance(mustStats(t, flat("spatial.x")), mustStats(t, flat("spatial.y")))
	if err != nil {
		t.Fatal(err)
	}
	rel(t, "sFID-like", f.Distance, raw.SFID["dual"].(float64), 2e-12)
}

// N = 300 and 280 samples of 2048 features: both covariances singular.
func TestFIDSingular2048(t *testing.T) {
	var g struct {
		D          int
		Set1, Set2 formula
		First      []float64 `json:"first_values_set1"`
		Want       float64   `json:"fid_exact"`
		Root       float64   `json:"trace_root"`
	}
	loadJSON(t, "fid_singular.json", &g)
	x := flatFeatures(g.Set1.Seed, g.Set1.N, g.D, g.Set1.Scale, g.Set1.Shift)
	y := flatFeatures(g.Set2.Seed, g.Set2.N, g.D, g.Set2.Scale, g.Set2.Shift)
	for k, v := range g.First {
		if float64(x.X[k]) != v {
			t.Fatalf("the formula does not rebuild value %d", k)
		}
	}
	f := FID{Reference: mustStats(t, x)}
	if err := f.Add(y); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	r, err := f.Value(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("singular d=2048: %v", time.Since(start))
	rel(t, "FID", r.Value, g.Want, 1e-12)
	rel(t, "trace root", r.Parts["trace_root"], g.Root, 1e-12)
	if !r.Warned(WarnFewSamples) || len(r.Warnings) != 3 {
		t.Errorf("warnings: %v", r.Warnings)
	}
}

func TestFID2048(t *testing.T) {
	if os.Getenv("DRIFT_SLOW") == "" {
		t.Skip("a full-rank 2048-d distance takes about 10 s: set DRIFT_SLOW=1")
	}
	// Identity covariances, means 0 and 1: exactly 2048 (pytorch-fid's own test).
	a, b := ar(2048, 0, 0), ar(2048, 0, 0)
	for i := range b.Mean {
		b.Mean[i] = 1
	}
	f, err := FrechetDistance(a, b)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "identity covariances", f.Distance, 2048, 1e-14)
	// Full rank: N samples of a fixed linear map.
	sa, sb := mustStats(t, flatFeatures(1, 2500, 2048, 1, 0)), mustStats(t, flatFeatures(2, 2500, 2048, 1, 0))
	start := time.Now()
	f, err = FrechetDistance(sa, sb)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	t.Logf("d=2048, full rank: %v, FID %.10g, ranks %d %d", took, f.Distance, f.Rank1, f.Rank2)
	if took > 40*time.Second {
		t.Errorf("took %v, allowed 40 s", took)
	}
	g, err := FrechetDistance(sb, sa)
	if err != nil {
		t.Fatal(err)
	}
	rel(t, "swapped", g.Distance, f.Distance, 1e-12)
}

func TestFrechetRefuses(t *testing.T) {
	good := stats([]float64{0, 0}, 1, 0, 0, 1)
	nan := stats([]float64{0, 0}, 1, math.NaN(), math.NaN(), 1)
	for name, c := range map[string]struct {
		s    Stats
		want error
	}{
		"NaN in the covariance":  {nan, ErrNaN},
		"NaN in the mean":        {stats([]float64{math.NaN(), 0}, 1, 0, 0, 1), ErrNaN},
		"other dimension":        {stats([]float64{0}, 1), ErrDims},
		"mean does not fit":      {Stats{Mean: []float64{0}, Cov: mat.NewSymDense(2, nil)}, ErrDims},
		"no covariance":          {Stats{Mean: []float64{0}}, ErrDims},
		"negative variance":      {stats([]float64{0, 0}, 1, 0, 0, -1), ErrIndefinite},
		"indefinite":             {stats([]float64{0, 0}, 1, 2, 2, 1), ErrIndefinite},
		"indefinite, zero trace": {stats([]float64{0, 0}, 0, 1, 1, 0), ErrConstant},
		"constant":               {stats([]float64{0, 0}, 0, 0, 0, 0), ErrConstant},
		"overflow":               {stats([]float64{0, 0}, 1e308, 0, 0, 1e308), nil},
	} {
		_, err := FrechetDistance(good, c.s)
		if c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if c.want == nil && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFIDIdentity(t *testing.T) {
	ctx := context.Background()
	x, y := formulaFeatures(1, 50, 4, 1, 0), formulaFeatures(2, 40, 4, 1, 0)
	a, b := Identity{"sha256:aa/pool3", "tf1 299"}, Identity{"sha256:aa/pool3", "pil bicubic 299"}
	ref, err := StatsOf(x, a)
	if err != nil {
		t.Fatal(err)
	}
	if got := ref.Identity(); got != "extractor=sha256:aa/pool3 resize=tf1_299 n=50" {
		t.Errorf("identity line %q", got)
	}
	value := func(id Identity, force bool) (Result, error) {
		f := FID{Reference: ref, Force: force, Moments: Moments{ID: id}}
		if err := f.Add(y); err != nil {
			t.Fatal(err)
		}
		return f.Value(ctx)
	}
	if r, err := value(a, false); err != nil || len(r.Warnings) != 0 || r.N != 40 || r.NRef != 50 || r.D != 4 {
		t.Errorf("equal identities: %+v, %v", r, err)
	}
	if _, err := value(b, false); !errors.Is(err, ErrIdentity) {
		t.Errorf("other resize: %v", err)
	}
	if r, err := value(b, true); err != nil || !r.Warned(WarnForcedIdentity) {
		t.Errorf("forced: %+v, %v", r, err)
	}
	if r, err := value(Identity{}, false); err != nil || !r.Warned(WarnUnknownIdentity) {
		t.Errorf("unknown: %+v, %v", r, err)
	}
}

// BenchmarkFrechet is the distance once the moments are there: 10,000 against 60,000 rows of 64 features, and full rank
// in 2048 dimensions.
func BenchmarkFrechet(b *testing.B) {
	for _, c := range []struct{ d, n1, n2 int }{{64, 60_000, 10_000}, {2048, 2500, 2500}} {
		b.Run(fmt.Sprint(c.d), func(b *testing.B) {
			x, y := mustStats(b, flatFeatures(1, c.n1, c.d, 1, 0)), mustStats(b, flatFeatures(2, c.n2, c.d, 1, 0.1))
			for b.Loop() {
				if _, err := FrechetDistance(x, y); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
