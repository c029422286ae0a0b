package metrics

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// pathOf splits a (times, samples, dims) array.
func pathOf(t []float64, a array) Path {
	p := Path{T: t}
	n, d := a.shape[1], a.shape[2]
	for k := range t {
		p.X = append(p.X, Matrix{n, d, a.f64[k*n*d : (k+1)*n*d]})
	}
	return p
}

func TestStraightnessGoldens(t *testing.T) {
	var g struct {
		Straightness struct {
			Uniform     float64              `json:"uniform_N20"`
			UniformMean float64              `json:"uniform_N20_unweighted_mean"`
			Weighted    float64              `json:"nonuniform_weighted"`
			Unweighted  float64              `json:"nonuniform_unweighted"`
			PerSample   []float64            `json:"per_sample_uniform"`
			Cosines     [][]float64          `json:"cosines_of_consecutive_velocities"`
			Change      [][]float64          `json:"velocity_change_over_h"`
			Arc         []float64            `json:"path_length_over_chord"`
			Gaussian    []map[string]float64 // keys s and S differ in case only
		}
	}
	loadJSON(t, "diagnostics.json", &g)
	arr := loadNPZ(t, "diagnostics.npz")
	uniform := make([]float64, 21)
	for k := range uniform {
		uniform[k] = float64(k) / 20
	}
	s, err := Straight(pathOf(uniform, arr["straight_uniform"]))
	if err != nil {
		t.Fatal(err)
	}
	want := g.Straightness
	near(t, "S, equal times", s.S, want.Uniform, 1e-13)
	near(t, "S, equal times, plain mean", s.S, want.UniformMean, 1e-13)
	for i, v := range want.PerSample {
		near(t, "S of a sample", s.PerSample[i], v, 1e-13)
		near(t, "arc over chord", s.ArcChord[i], want.Arc[i], 1e-13)
	}
	for k, row := range want.Cosines {
		for i, v := range row {
			near(t, "cosine", s.Cosine[k][i], v, 1e-12)
			near(t, "velocity change", s.Change[k][i], want.Change[k][i], 1e-11)
		}
	}
	p := pathOf(arr["straight_times"].f64, arr["straight_nonuniform"])
	if s, err = Straight(p); err != nil {
		t.Fatal(err)
	}
	near(t, "S, unequal times", s.S, want.Weighted, 1e-13)
	if math.Abs(want.Unweighted-want.Weighted) < 1e-3 {
		t.Error("the fixture does not tell weighted from unweighted")
	}
	// Backward in time, as samplers run: the same number.
	back := Path{slices.Clone(p.T), slices.Clone(p.X)}
	slices.Reverse(back.T)
	slices.Reverse(back.X)
	if b, err := Straight(back); err != nil || math.Abs(b.S-s.S) > 1e-13 {
		t.Errorf("backward: %v, %v, want %v", b.S, err, s.S)
	}
	for _, w := range want.Gaussian {
		c := struct {
			S, Limit, Discrete float64
			N                  int
		}{w["s"], w["S"], w["discrete"], int(w["N"])}
		// One sample x(0) = 1 follows √((1-t)²+s²t²), so S is the mean over N(0,1).
		p := Path{}
		for k := 0; k <= c.N; k++ {
			u := float64(k) / float64(c.N)
			p.T = append(p.T, u)
			p.X = append(p.X, Matrix{1, 1, []float64{math.Sqrt((1-u)*(1-u) + c.S*c.S*u*u)}})
		}
		s, err := Straight(p)
		if err != nil {
			t.Fatal(err)
		}
		near(t, fmt.Sprintf("Gaussian s=%v N=%d", c.S, c.N), s.S, c.Discrete, 1e-12)
		if c.N == 100 {
			near(t, "limit s(2-π/2)", s.S, c.Limit, 2e-4)
			near(t, "limit s(2-π/2)", c.S*(2-math.Pi/2), c.Limit, 1e-14)
		}
	}
	for n, v := range map[int]float64{2: .3431457505, 4: .4066174493, 10: .4255759716, 100: .4291673718} {
		p := Path{}
		for k := 0; k <= n; k++ {
			u := float64(k) / float64(n)
			p.T, p.X = append(p.T, u), append(p.X, Matrix{1, 1, []float64{math.Hypot(1-u, u)}})
		}
		s, err := Straight(p)
		if err != nil {
			t.Fatal(err)
		}
		near(t, fmt.Sprintf("s=1 N=%d", n), s.S, v, 1e-10)
	}
}

func TestStraightEdges(t *testing.T) {
	at := func(v float64) Matrix { return Matrix{1, 2, []float64{v, -v}} }
	s, err := Straight(Path{[]float64{1, .3, 0}, []Matrix{at(5), at(1.5), at(0)}})
	if err != nil || math.Abs(s.S) > 1e-28 || math.Abs(s.ArcChord[0]-1) > 1e-15 || math.Abs(s.Cosine[0][0]-1) > 1e-15 {
		t.Errorf("a straight line: %+v, %v", s, err)
	}
	if s, err = Straight(Path{[]float64{0, 1}, []Matrix{at(0), at(2)}}); err != nil || s.S != 0 || len(s.Cosine) != 0 {
		t.Errorf("one step: %+v, %v", s, err)
	}
	for what, p := range map[string]Path{
		"one point":   {[]float64{0}, []Matrix{at(0)}},
		"times":       {[]float64{0, 1, 1}, []Matrix{at(0), at(1), at(2)}},
		"turn back":   {[]float64{0, 2, 1}, []Matrix{at(0), at(1), at(2)}},
		"states":      {[]float64{0, 1}, []Matrix{at(0)}},
		"other shape": {[]float64{0, 1}, []Matrix{at(0), {1, 1, []float64{0}}}},
		"NaN":         {[]float64{0, 1}, []Matrix{at(0), at(math.NaN())}},
	} {
		if _, err := Straight(p); err == nil {
			t.Errorf("a path with bad %s was accepted", what)
		}
	}
}

func TestCurvature(t *testing.T) {
	var g struct {
		Curvature struct {
			Helix struct{ Curvature, Torsion float64 }
			Cubic []struct{ T, Curvature, Torsion float64 } `json:"twisted_cubic"`
		}
	}
	loadJSON(t, "diagnostics.json", &g)
	helix := loadNPZ(t, "diagnostics.npz")["helix"].matrix()
	// The same helix turned into seven dimensions.
	var qr mat.QR
	qr.Factorize(mat.NewDense(7, 7, normals(3, 7, 7).X))
	var q mat.Dense
	qr.QTo(&q)
	wide := Matrix{helix.N, 7, make([]float64, helix.N*7)}
	mat.NewDense(helix.N, 7, wide.X).Mul(mat.NewDense(helix.N, 3, helix.X), q.Slice(0, 3, 0, 7))
	for _, points := range []Matrix{helix, wide} {
		b, err := Curvature(points, 9)
		if err != nil {
			t.Fatal(err)
		}
		for i := 10; i < points.N-10; i++ {
			near(t, "helix curvature", b[i].Curvature, g.Curvature.Helix.Curvature, 1e-4)
			near(t, "helix torsion", math.Abs(b[i].Torsion), g.Curvature.Helix.Torsion, 1e-4)
			if points.D == 3 && b[i].Torsion < 0 {
				t.Fatal("a right-handed helix has positive torsion")
			}
		}
		near(t, "arc length", b[points.N-1].Arc, 3*math.Hypot(1.5, .4), 1e-4)
	}
	for _, c := range g.Curvature.Cubic {
		m := Matrix{41, 3, nil}
		for k := range m.N {
			u := c.T + float64(k-20)*0.002
			m.X = append(m.X, u, u*u, u*u*u)
		}
		b, err := Curvature(m, 15)
		if err != nil {
			t.Fatal(err)
		}
		rel(t, "twisted cubic curvature", b[20].Curvature, c.Curvature, 1e-3)
		rel(t, "twisted cubic torsion", b[20].Torsion, c.Torsion, 3e-3)
	}
	// A circle of radius 2 in the plane, default window.
	circle := Matrix{200, 2, nil}
	for k := range circle.N {
		u := float64(k) * 0.002
		circle.X = append(circle.X, 2*math.Cos(u), 2*math.Sin(u))
	}
	b, err := Curvature(circle, 0)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "circle", b[100].Curvature, .5, 5e-4) // the window spans 0.2 rad
	if b[100].Torsion != 0 {
		t.Errorf("torsion of a plane curve: %v", b[100].Torsion)
	}
	if _, err := Curvature(dense(circle, 0, 4), 0); !errors.Is(err, ErrTooFew) {
		t.Errorf("four points: %v", err)
	}
	if _, err := Curvature(circle, 4); err == nil {
		t.Error("a window of 4 was accepted")
	}
	circle.X[4], circle.X[5] = circle.X[2], circle.X[3]
	if _, err := Curvature(circle, 9); err == nil {
		t.Error("repeated points were accepted")
	}
}

func TestMongeGap(t *testing.T) {
	var g struct {
		Monge []struct {
			N, D       int
			Mean       float64 `json:"mean_cost"`
			OT         float64 `json:"ot_cost"`
			Gap        float64
			Assignment []int
			Population float64 `json:"population_gap"`
			Entropic   []struct {
				Eta  float64
				Cost float64 `json:"plan_cost"`
				Gap  float64
			}
		}
	}
	loadJSON(t, "diagnostics.json", &g)
	arr := loadNPZ(t, "diagnostics.npz")
	for _, c := range g.Monge {
		z, a := arr[fmt.Sprintf("monge%d_z", c.N)].matrix(), arr[fmt.Sprintf("monge%d_A", c.N)].matrix()
		image := Matrix{c.N, c.D, make([]float64, c.N*c.D)}
		for i := range c.N {
			for j := range c.D {
				image.X[i*c.D+j] = dot(a.row(j), z.row(i))
			}
		}
		got, err := ExactMongeGap(ctx, z, image)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "mean cost", got.MeanCost, c.Mean, 1e-13)
		near(t, "optimal cost", got.Transport, c.OT, 1e-13)
		near(t, "gap", got.Gap, c.Gap, 1e-12)
		cost, err := CostMatrix(ctx, z, image, 2)
		if err != nil {
			t.Fatal(err)
		}
		perm, _, err := Assignment(ctx, cost)
		if err != nil || !slices.Equal(perm, c.Assignment) {
			t.Errorf("n=%d: assignment %v, %v", c.N, perm, err)
		}
		pop, err := LinearMongeGap(a)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "population gap", pop, c.Population, 1e-13)
		for _, e := range c.Entropic {
			// The reference stops after 20000 Sinkhorn iterations. At eta 50
			// that is 1e-5 short in the marginals, so the number is that of
			// the unfinished plan; the finished one is checked below.
			half := Matrix{c.N, c.N, slices.Clone(cost.X)}
			for i := range half.X {
				half.X[i] /= 2
			}
			capped, err := Sinkhorn{Eta: e.Eta, Tol: 1e-13, MaxIter: 20000}.Solve(ctx, half, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			near(t, "entropic cost of the reference", capped.Cost, e.Cost, 1e-10)
			near(t, "entropic gap of the reference", c.Mean-capped.Cost, e.Gap, 1e-10)
			got, err := EntropicMongeGap(ctx, z, image, SparseNewton{Eta: e.Eta, Tol: 1e-12})
			if err != nil {
				t.Fatal(err)
			}
			near(t, "entropic cost", got.Transport, e.Cost, 1e-10+capped.Residual)
			near(t, "entropic gap", got.Gap, c.Mean-got.Transport, 1e-13)
			if got.Transport < c.OT {
				t.Errorf("entropic cost %v below the optimum %v", got.Transport, c.OT)
			}
			// Its own certificate: primal objective equals dual one.
			p, err := SparseNewton{Eta: e.Eta, Tol: 1e-12}.Solve(ctx, half, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			primal := p.Cost
			for _, v := range p.P.X {
				if v > 0 {
					primal += v * math.Log(v) / e.Eta
				}
			}
			near(t, "duality gap", primal, p.F, 1e-12)
			if p.F < capped.F-1e-14 {
				t.Errorf("dual value %v below that of the capped run %v", p.F, capped.F)
			}
		}
	}
	psd, err := LinearMongeGap(Matrix{2, 2, []float64{2, .3, .3, .5}})
	if err != nil || math.Abs(psd) > 1e-15 {
		t.Errorf("gap of a symmetric positive map: %v, %v", psd, err)
	}
	c, s := math.Cos(math.Pi/3), math.Sin(math.Pi/3)
	turn, err := LinearMongeGap(Matrix{2, 2, []float64{c, -s, s, c}})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "gap of a turn by 60 degrees", turn, 1, 1e-15)
	z := normals(8, 30, 2)
	got, err := ExactMongeGap(ctx, z, z)
	if err != nil || got.Gap != 0 {
		t.Errorf("gap of the identity: %+v, %v", got, err)
	}
	if _, err := ExactMongeGap(ctx, z, normals(1, 29, 2)); !errors.Is(err, ErrDims) {
		t.Errorf("other size: %v", err)
	}
	if _, err := EntropicMongeGap(ctx, z, z, SparseNewton{}); err == nil {
		t.Error("eta = 0 was accepted")
	}
}

func TestGaussianChains(t *testing.T) {
	var g struct {
		Chains []struct {
			Alpha, Bias float64
			Excess      float64 `json:"relative_excess_variance"`
			T           int
			Rows        []struct {
				T                    int
				Mean, Var            float64
				Cumulative           float64 `json:"cumulative_kl"`
				Modular              float64 `json:"modular_kl"`
				MMD2                 float64 `json:"mmd2_rbf1"`
				Ratio, Amplification *float64
			}
		}
	}
	loadJSON(t, "diagnostics.json", &g)
	for _, c := range g.Chains {
		rows, err := GaussianChain{c.Alpha, c.Bias, c.Excess, c.T}.Rows()
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range c.Rows {
			r := rows[c.T-1-w.T]
			what := fmt.Sprintf("α=%v t=%d ", c.Alpha, w.T)
			if r.T != w.T {
				t.Fatalf("%s: row of t=%d", what, r.T)
			}
			rel(t, what+"mean", r.Mean, w.Mean, 1e-13)
			rel(t, what+"variance", r.Var, w.Var, 1e-13)
			// The reference forms small differences of numbers near one: 2e-16
			// of those is what it knows.
			for name, v := range map[string][2]float64{"cumulative": {r.Cumulative, w.Cumulative}, "modular": {r.Modular, w.Modular}, "MMD²": {r.MMD2, w.MMD2}} {
				if d := math.Abs(v[0] - v[1]); d > 1e-10*math.Abs(v[1]) && d > 5e-16 {
					t.Errorf("%s%s = %.17g, want %.17g", what, name, v[0], v[1])
				}
			}
			if w.Ratio != nil {
				rel(t, what+"ratio", r.Ratio, *w.Ratio, 1e-10)
				near(t, what+"amplification", r.Amplification, *w.Amplification, 1e-10)
			}
			if r.Amplification > 1 {
				t.Errorf("%samplification %v above 1", what, r.Amplification)
			}
		}
	}
	rows, err := GaussianChain{Alpha: .98, Bias: 1e-3, T: 100}.Rows()
	if err != nil {
		t.Fatal(err)
	}
	near(t, "modular KL", rows[5].Modular, 2.5e-5, 1e-17)
	near(t, "bias at the end", rows[99].Mean, .063263511158252946, 1e-15)
	near(t, "cumulative KL at the end", rows[99].Cumulative, .0020011359, 1e-10)
	near(t, "MMD² at the end", rows[99].MMD2, 7.69981e-4, 1e-9)
	near(t, "MMD² at 98", rows[1].MMD2, 7.6208e-7, 1e-11)
	near(t, "KL at 98", rows[1].Cumulative, 1.98e-6, 5e-9)
	near(t, "amplification at the end", rows[99].Amplification, 0.9991, 5e-5)
	exact, err := GaussianChain{Alpha: .9, T: 3}.Rows()
	if err != nil || exact[2].Cumulative != 0 || exact[2].MMD2 != 0 || !math.IsNaN(exact[2].Ratio) {
		t.Errorf("a chain without error: %+v, %v", exact, err)
	}
	for _, bad := range []GaussianChain{{}, {Alpha: 1, T: 2}, {Alpha: .5, Excess: -1, T: 2}, {Alpha: .5, Bias: math.NaN(), T: 2}} {
		if _, err := bad.Rows(); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
	for _, x := range []float64{-.0099, -1e-3, 1e-5, .0099} {
		w := x - math.Log1p(x)
		if d := math.Abs(minusLog1p(x) - w); d > 1e-18+1e-15*math.Abs(x) {
			t.Errorf("x - log(1+x) at %v off by %v", x, d)
		}
	}
}

func TestTwoSampleGoldens(t *testing.T) {
	var g struct {
		Two struct {
			Median float64   `json:"median_distance"`
			MMD    float64   `json:"mmd2_u"`
			Sliced float64   `json:"sliced_energy_distance"`
			Energy float64   `json:"energy_distance"`
			Boot   []float64 `json:"bootstrap_mmd2_u"`
		} `json:"two_sample"`
	}
	loadJSON(t, "diagnostics.json", &g)
	arr := loadNPZ(t, "diagnostics.npz")
	x, y := arr["mmd_x"].matrix(), arr["mmd_y"].matrix()
	h, err := MedianDistance(ctx, x, y)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "median distance", h, g.Two.Median, 1e-15)
	r, err := MMD{Kernel: Gaussian{h}}.Compare(ctx, x, y)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "MMD²", r.Value, g.Two.MMD, 1e-14)
	e, err := EnergyDistance{}.Compare(ctx, x, y)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "energy distance", e.Value, g.Two.Energy, 1e-14)
	s, err := Sliced{Kind: SlicedEnergy, Theta: arr["mmd_theta"].matrix()}.Compare(ctx, x, y)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "sliced energy distance", s.Value, g.Two.Sliced, 1e-14)
	k, err := newGram(ctx, Gaussian{h}, x, y)
	if err != nil {
		t.Fatal(err)
	}
	bi, bj := arr["boot_x"].ints(), arr["boot_y"].ints()
	for b, want := range g.Two.Boot {
		near(t, "bootstrap", k.mmd(bi[b*12:(b+1)*12], bj[b*15:(b+1)*15]), want, 1e-14)
	}
}

// A simulated chain with a bias must show growing error, and one without must
// stay near zero.
func TestPropagation(t *testing.T) {
	const n, steps = 400, 6
	chain := func(bias float64) ([]float64, []Samples, []Samples, []Samples) {
		g := &gauss{seed: 77}
		alpha := .8
		var times []float64
		var gen, fwd, one []Samples
		x, y := make([]float64, n), make([]float64, n)
		for i := range x {
			x[i], y[i] = g.NormFloat64(), g.NormFloat64()
		}
		for k := range steps {
			z, nx, ny := make([]float64, n), make([]float64, n), make([]float64, n)
			for i := range z {
				nx[i] = math.Sqrt(alpha)*x[i] + bias + math.Sqrt(1-alpha)*g.NormFloat64()
				z[i] = math.Sqrt(alpha)*y[i] + bias + math.Sqrt(1-alpha)*g.NormFloat64()
				ny[i] = g.NormFloat64()
			}
			x, y = nx, ny
			times = append(times, float64(steps-1-k))
			gen, fwd, one = append(gen, Matrix{n, 1, nx}), append(fwd, Matrix{n, 1, ny}), append(one, Matrix{n, 1, z})
		}
		return times, gen, fwd, one
	}
	for _, sliced := range []bool{false, true} {
		p := Propagation{Sliced: sliced, Directions: 5, Resamples: 60, Source: NewSource(1)}
		times, gen, fwd, one := chain(.3)
		rows, err := p.Run(ctx, times, gen, fwd, one)
		if err != nil {
			t.Fatal(err)
		}
		last := rows[steps-1]
		if !(last.Cumulative > 3*last.Modular) || last.CumulativeCI.Low <= 0 || !(last.CumulativeCI.Low < last.Cumulative && last.Cumulative < last.CumulativeCI.High+.05) {
			t.Errorf("sliced=%t, biased chain: %+v", sliced, last)
		}
		if !math.IsNaN(rows[0].Ratio) || math.Abs(rows[1].Ratio-rows[1].Cumulative/rows[0].Cumulative) > 1e-15 {
			t.Errorf("ratios %v %v", rows[0].Ratio, rows[1].Ratio)
		}
		p.Source, p.Scales = NewSource(1), []float64{1, 1, 1, 1, 1, 2}
		times, gen, fwd, one = chain(0)
		if rows, err = p.Run(ctx, times, gen, fwd, one); err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if math.Abs(r.Cumulative) > .02 || math.Abs(r.Modular) > .02 {
				t.Errorf("sliced=%t, exact chain: %+v", sliced, r)
			}
		}
		if !sliced && math.Abs(rows[5].Bandwidth-2*rows[0].Bandwidth) > 1e-15 {
			t.Errorf("scaled bandwidth %v, first %v", rows[5].Bandwidth, rows[0].Bandwidth)
		}
	}
	times, gen, fwd, one := chain(0)
	if _, err := (Propagation{}).Run(ctx, times, gen, fwd, one); err == nil {
		t.Error("no source was accepted")
	}
	if _, err := (Propagation{Resamples: -1}).Run(ctx, times, gen, fwd[1:], one); !errors.Is(err, ErrDims) {
		t.Errorf("missing sets: %v", err)
	}
	if rows, err := (Propagation{Resamples: -1}).Run(ctx, times, gen, fwd, one); err != nil || rows[2].CumulativeCI.Low != rows[2].Cumulative {
		t.Errorf("without resamples: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := (Propagation{Resamples: -1}).Run(gone, times, gen, fwd, one); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func normalQuantiles(n int) []float64 {
	z := make([]float64, n)
	for i := range z {
		z[i] = math.Sqrt2 * math.Erfinv(2*(float64(i)+.5)/float64(n)-1)
	}
	return z
}

// t3Quantiles inverts F(t) = ½ + (x/(1+x²) + atan x)/π, x = t/√3.
func t3Quantiles(n int) []float64 {
	z := make([]float64, n)
	for i := range z {
		p := (float64(i) + .5) / float64(n)
		lo, hi := -1e4, 1e4
		for range 200 {
			mid := (lo + hi) / 2
			x := mid / math.Sqrt(3)
			var f float64
			if mid < 0 { // 1-atan form keeps the tail's digits
				f = (x/(1+x*x) + math.Atan(-1/x)) / math.Pi
			} else {
				f = .5 + (x/(1+x*x)+math.Atan(x))/math.Pi
			}
			if f < p {
				lo = mid
			} else {
				hi = mid
			}
		}
		z[i] = (lo + hi) / 2
	}
	return z
}

func TestConcentrationGoldens(t *testing.T) {
	var g struct {
		C struct {
			Sample    float64 `json:"psi2_sample"`
			Normal    float64 `json:"psi2_normal"`
			T3        float64 `json:"psi2_t3"`
			TwoPoints float64 `json:"psi2_two_points"`
			ByN       []struct {
				N          int
				Normal, T3 float64
			} `json:"psi2_by_n"`
			Hill []struct {
				K          int
				Normal, T3 float64
				Pareto     float64 `json:"pareto_2.5"`
			}
			Ratio      struct{ Normal, T3 float64 } `json:"ratio_max"`
			Covariance struct {
				Eigenvalues []float64
				Condition   float64
				Mean        float64 `json:"mean_norm"`
				Std         float64 `json:"std_norm_unbiased"`
			}
			Ridge struct {
				Lambda float64
				Beta   []float64
				Error  float64 `json:"test_error"`
			}
		} `json:"concentration"`
	}
	loadJSON(t, "diagnostics.json", &g)
	arr := loadNPZ(t, "diagnostics.npz")
	psi := func(z []float64) float64 {
		t.Helper()
		v, err := Psi2(z)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	near(t, "psi2 of the sample", psi(arr["psi2_sample"].f64), g.C.Sample, 1e-12)
	near(t, "psi2 of two points", psi([]float64{-1, 1}), g.C.TwoPoints, 1e-14)
	near(t, "psi2 of normal quantiles", psi(normalQuantiles(2000)), g.C.Normal, 1e-9)
	near(t, "psi2 of t(3) quantiles", psi(t3Quantiles(2000)), g.C.T3, 1e-9)
	for _, c := range g.C.ByN {
		near(t, fmt.Sprintf("psi2 of %d normal quantiles", c.N), psi(normalQuantiles(c.N)), c.Normal, 1e-9)
		near(t, fmt.Sprintf("psi2 of %d t(3) quantiles", c.N), psi(t3Quantiles(c.N)), c.T3, 1e-9)
	}
	abs := func(z []float64) []float64 {
		for i, v := range z {
			z[i] = math.Abs(v)
		}
		return z
	}
	pareto := make([]float64, 2000)
	for i := range pareto {
		pareto[i] = math.Pow((float64(i)+.5)/2000, -1/2.5)
	}
	for _, c := range g.C.Hill {
		for what, v := range map[string]struct {
			x    []float64
			want float64
		}{"normal": {abs(normalQuantiles(2000)), c.Normal}, "t3": {abs(t3Quantiles(2000)), c.T3}, "Pareto": {pareto, c.Pareto}} {
			h, err := HillIndex(v.x, c.K)
			if err != nil {
				t.Fatal(err)
			}
			near(t, fmt.Sprintf("Hill index of %s, k=%d", what, c.K), h, v.want, 1e-9)
		}
	}
	x := arr["cov_x"].matrix()
	c, err := Concentrate(ctx, x, 50, []float64{.05, .001}, NewSource(1))
	if err != nil {
		t.Fatal(err)
	}
	near(t, "mean norm", c.NormMean, g.C.Covariance.Mean, 1e-13)
	near(t, "std of norms", c.NormStd, g.C.Covariance.Std, 1e-13)
	spectrum, err := SpectrumOf(mustStats(t, x))
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range g.C.Covariance.Eigenvalues {
		near(t, "eigenvalue", spectrum.Eigenvalues[i], w, 1e-13)
	}
	rel(t, "condition", spectrum.Condition, g.C.Covariance.Condition, 1e-9)
	if len(c.Psi2) != 50 || c.Psi2Max != slices.Max(c.Psi2) || math.IsNaN(c.Hill[.05]) || !math.IsNaN(c.Hill[.001]) {
		t.Errorf("report: %d directions, max %v, Hill %v", len(c.Psi2), c.Psi2Max, c.Hill)
	}
	// max|z|/(ψ2 √log n) on the line, where every direction is ±1.
	for what, v := range map[string]struct {
		z    []float64
		want float64
	}{"normal": {normalQuantiles(2000), g.C.Ratio.Normal}, "t3": {t3Quantiles(2000), g.C.Ratio.T3}} {
		c, err := Concentrate(ctx, Matrix{2000, 1, v.z}, 2, []float64{.01}, NewSource(1))
		if err != nil {
			t.Fatal(err)
		}
		near(t, "max ratio of "+what, c.MaxRatio[0], v.want, 1e-9)
	}
	labels, testLabels := arr["ridge_labels"].ints(), arr["ridge_test_labels"].ints()
	r := Ridge{Lambda: g.C.Ridge.Lambda}
	if err := r.Fit(arr["ridge_x"].matrix(), labels); err != nil {
		t.Fatal(err)
	}
	for j, w := range g.C.Ridge.Beta {
		near(t, "ridge coefficient", r.beta[0][j], w, 1e-12)
	}
	e, err := r.Error(arr["ridge_test_x"].matrix(), testLabels)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "ridge test error", e, g.C.Ridge.Error, 1e-15)
}

func TestConcentrationClosedForms(t *testing.T) {
	// ψ2 of N(0,1) is √(8/3): quantile grids approach it from below.
	var before float64
	for _, n := range []int{100, 1000, 10000, 100000} {
		v, err := Psi2(normalQuantiles(n))
		if err != nil {
			t.Fatal(err)
		}
		if v <= before || v >= math.Sqrt(8./3) {
			t.Errorf("n=%d: %v", n, v)
		}
		before = v
	}
	near(t, "√(8/3)", math.Sqrt(8./3), 1.6329931619, 1e-10)
	if math.Abs(before-math.Sqrt(8./3)) > .02 {
		t.Errorf("psi2 of 10^5 quantiles is %v", before)
	}
	if v, err := Psi2([]float64{4, 4, 4}); err != nil || v != 0 {
		t.Errorf("psi2 of a constant: %v, %v", v, err)
	}
	if _, err := Psi2([]float64{1}); !errors.Is(err, ErrTooFew) {
		t.Errorf("psi2 of one value: %v", err)
	}
	if _, err := HillIndex([]float64{1, 2}, 2); !errors.Is(err, ErrTooFew) {
		t.Errorf("Hill index of all values: %v", err)
	}
	if _, err := HillIndex([]float64{-1, 0, 2}, 1); err == nil {
		t.Error("Hill index over zero was accepted")
	}
	// |x| of N(0,I_3072).
	c, err := Concentrate(ctx, normals(5, 300, 3072), 3, nil, NewSource(1))
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(c.NormMean-55.4211154768) > 4*.7070780/math.Sqrt(300) || math.Abs(c.NormStd-.7070780) > 4*.7070780/math.Sqrt(600) {
		t.Errorf("norms of N(0,I_3072): %v +- %v", c.NormMean, c.NormStd)
	}
}

func TestUniversality(t *testing.T) {
	// Three normal classes: training on them or on their twins is the same.
	make3 := func(seed uint64, per int) (Matrix, []int) {
		x := normals(seed, 3*per, 4)
		labels := make([]int, 3*per)
		for i := range labels {
			labels[i] = i % 3
			x.X[i*4+labels[i]] += 2
		}
		return x, labels
	}
	x, lx := make3(1, 300)
	y, ly := make3(2, 1000)
	u, err := UniversalityGap(x, lx, y, ly, 1, NewSource(5))
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(u.Gap) > .02 || u.OnSamples < .05 || u.OnSamples > .4 {
		t.Errorf("normal classes: %+v", u)
	}
	var r Ridge
	for what, labels := range map[string][]int{"one class": make([]int, 900), "missing class": append(slices.Repeat([]int{0}, 899), 2), "negative": append(slices.Repeat([]int{0, 1}, 449), 0, -1), "count": {0, 1}} {
		if err := r.Fit(x, labels); err == nil {
			t.Errorf("labels with %s were accepted", what)
		}
	}
	bad := Matrix{y.N, y.D, slices.Clone(y.X)}
	bad.X[7] = math.NaN()
	if _, err := UniversalityGap(x, lx, bad, ly, 1, NewSource(5)); !errors.Is(err, ErrNaN) {
		t.Errorf("held-out NaN: %v", err)
	}
	for _, l := range []int{-1, 3} {
		if _, err := UniversalityGap(x, lx, y, append(slices.Clone(ly[:len(ly)-1]), l), 1, NewSource(5)); err == nil {
			t.Errorf("held-out label %d of 3 classes was accepted", l)
		}
	}
	if _, err := r.Error(x, lx); !errors.Is(err, ErrDims) {
		t.Errorf("error before a fit: %v", err)
	}
	twice := Matrix{4, 2, []float64{1, 1, 2, 2, 3, 3, 5, 5}}
	if err := r.Fit(twice, []int{0, 1, 0, 1}); err == nil {
		t.Error("singular normal equations were accepted")
	}
}

func TestModeCoverage(t *testing.T) {
	centres := Matrix{4, 2, []float64{0, 0, 10, 0, 0, 10, 10, 10}}
	std := []float64{1, 1, 1, 1}
	// 40 samples: 20 on mode 0, 18 on mode 1, 1 on mode 2, 1 far from mode 3.
	x := Matrix{40, 2, nil}
	for range 20 {
		x.X = append(x.X, .1, -.1)
	}
	for range 18 {
		x.X = append(x.X, 10, 2.9)
	}
	x.X = append(x.X, 0, 10, 14, 14)
	m, err := ModeCoverage(x, centres, std, nil)
	if err != nil {
		t.Fatal(err)
	}
	// ⌈0.1·40/4⌉ = 1 sample covers a mode.
	if m.Covered != 3 || !slices.Equal(m.Counts, []int{20, 18, 1, 0}) || m.Outside != 1./40 {
		t.Errorf("%+v", m)
	}
	kl := 0.
	for _, h := range []float64{.5, .45, .025, .025} {
		kl += h * math.Log(h*4)
	}
	near(t, "KL", m.KL, kl, 1e-14)
	if m, err = ModeCoverage(Pick(x, []int{0, 20}), centres, std, []float64{1, 1, 0, 0}); err != nil || m.KL != 0 || m.Covered != 2 {
		t.Errorf("two samples: %+v, %v", m, err)
	}
	if m, err = ModeCoverage(x, centres, std, []float64{1, 1, 0, 0}); err != nil || !math.IsInf(m.KL, 1) {
		t.Errorf("samples on a mode of weight zero: %+v, %v", m, err)
	}
	if _, err := ModeCoverage(x, centres, std[:3], nil); !errors.Is(err, ErrDims) {
		t.Errorf("deviations: %v", err)
	}
	f, r, err := CategoricalKL([]int{2, 0, 2}, []float64{.5, .25, .25}, 0)
	if err != nil || math.Abs(f-.5*math.Ln2) > 1e-15 || !math.IsInf(r, 1) {
		t.Errorf("categorical KL: %v, %v, %v", f, r, err)
	}
	if f, r, err = CategoricalKL([]int{2, 1, 1}, []float64{2, 1, 1}, 0); err != nil || f != 0 || r != 0 {
		t.Errorf("equal distributions: %v, %v, %v", f, r, err)
	}
	if _, r, err = CategoricalKL([]int{2, 0, 2}, []float64{.5, .25, .25}, .25); err != nil || math.IsInf(r, 1) {
		t.Errorf("smoothed: %v, %v", r, err)
	}
	if _, _, err = CategoricalKL([]int{2, -1}, []float64{1, 1}, 0); err == nil {
		t.Error("a negative count was accepted")
	}
}

// What is flat but for rounding is flat.
func TestFlatButForRounding(t *testing.T) {
	z := make([]float64, 1000)
	for i := range z {
		if z[i] = 0.3; i%2 == 1 {
			z[i] = math.Nextafter(0.3, 1)
		}
	}
	if p, err := Psi2(z); err != nil || p != 0 || z[0] == z[1] {
		t.Errorf("psi2 of %v and %v: %v, %v", z[0], z[1], p, err)
	}
	// A covariance of rank two of six: whatever the eigenvalues of rounding are.
	x := normals(3, 200, 6)
	for i := range x.N {
		r := x.row(i)
		for j := 2; j < 6; j++ {
			r[j] = float64(j)*r[0] - r[1]/3
		}
	}
	s, err := StatsOf(x, Identity{})
	if err != nil {
		t.Fatal(err)
	}
	if sp, err := SpectrumOf(s); err != nil || !math.IsInf(sp.Condition, 1) {
		t.Errorf("condition %v of %v, %v", sp.Condition, sp.Eigenvalues, err)
	}
	// Three different rows among 40 have Vendi score 3 at order 0, and hardly more at small ones.
	few := Matrix{40, 6, nil}
	for i := range few.N {
		few.X = append(few.X, x.row(i % 3)[0], x.row(i % 3)[1], 1, 2, 0.1, 0.3)
	}
	for _, q := range []float64{1e-9, 0.01} {
		r, err := Vendi{Q: q}.Compare(ctx, nil, few)
		if err != nil || r.Value < 2.8 || r.Value > 3.000001 {
			t.Errorf("vendi of order %g: %v, %v", q, r.Value, err)
		}
	}
	if _, err := ModeCoverage(x, Matrix{1, 6, make([]float64, 6)}, []float64{math.NaN()}, nil); err == nil {
		t.Error("a mode of standard deviation NaN was accepted")
	}
	if _, err := (Wasserstein{}).Compare(ctx, normals(1, 8193, 6), x); err == nil {
		t.Error("transport between 8193 points was accepted")
	}
}

// Rows that repeat in a resample are nearer to each other than rows are: the interval must be about the value still.
func TestPropagationIntervalsHoldTheirValue(t *testing.T) {
	held := 0
	for k := range 20 {
		p := Propagation{Resamples: 200, Level: .9, Source: NewSource(uint32(k))}
		v, ci, err := p.distance(ctx, normals(uint64(2*k), 60, 1), normals(uint64(2*k+1), 60, 1), Matrix{}, .3)
		if err != nil {
			t.Fatal(err)
		}
		if ci.Low <= v && v <= ci.High {
			held++
		}
	}
	if held < 20 {
		t.Errorf("%d of 20 intervals hold their value", held)
	}
}
