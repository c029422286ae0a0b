package schedules

import (
	"encoding/json"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// spaces reads a file of the goldens for other spaces (see testdata/README of the fixtures: mpmath at 40 digits).
func spaces(t *testing.T, name string, into any) {
	t.Helper()
	dir := os.Getenv("DRIFT_FIXTURES")
	if dir == "" {
		t.Skip("DRIFT_FIXTURES names no folder")
	}
	b, err := os.ReadFile(filepath.Join(dir, "spaces", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

func number(t *testing.T, s string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestDirichletCoefficientGolden compares C with 17-digit quadratures of its defining integral.
func TestDirichletCoefficientGolden(t *testing.T) {
	var f struct {
		C []struct {
			K    int
			T, X float64
			C    string
		}
		Limit []struct {
			K  int
			T  float64
			C1 string `json:"C_at_1"`
		} `json:"C_limit_at_x_1"`
	}
	spaces(t, "dirichlet.json", &f)
	worst := map[int]float64{}
	for _, r := range f.C {
		want := number(t, r.C)
		got := NewDirichletCoefficient(r.K, r.T).At(r.X)
		e := math.Abs(got/want - 1)
		worst[r.K] = max(worst[r.K], e)
		if e > 1e-12 {
			t.Errorf("K=%d t=%g x=%g: C = %.17g, want %.17g (relative error %.1e)", r.K, r.T, r.X, got, want, e)
		}
	}
	t.Logf("%d values, worst relative error by K: %v", len(f.C), worst)
	if len(f.C) < 500 || len(f.Limit) < 40 {
		t.Fatalf("the fixture has only %d and %d values", len(f.C), len(f.Limit))
	}
	for _, r := range f.Limit {
		if got, want := NewDirichletCoefficient(r.K, r.T).At(1), number(t, r.C1); math.Abs(got/want-1) > 1e-14 {
			t.Errorf("K=%d t=%g: C(1) = %.17g, want %.17g", r.K, r.T, got, want)
		}
	}
}

// exactC is the positive series of C, valid where log x > -H (and elsewhere, with cancellation), in big arithmetic: log x
// comes in as a float64 sum of two parts would, from log1p of the exact 1-x.
func exactC(k int, t, x float64) float64 {
	const prec = 700
	F := func(v float64) *big.Float { return new(big.Float).SetPrec(prec).SetFloat64(v) }
	a, b := F(1+t), F(float64(k-1))
	add := func(p, q *big.Float) *big.Float { return new(big.Float).SetPrec(prec).Add(p, q) }
	mul := func(p, q *big.Float) *big.Float { return new(big.Float).SetPrec(prec).Mul(p, q) }
	quo := func(p, q *big.Float) *big.Float { return new(big.Float).SetPrec(prec).Quo(p, q) }
	bx := F(x)
	y := new(big.Float).SetPrec(prec).Sub(F(1), bx)
	// -log x = 2 atanh((1-x)/(1+x)) after pulling out powers of two.
	m, e := new(big.Float).SetPrec(prec), 0
	e = bx.MantExp(m) // m in [0.5, 1)
	atanh := func(z *big.Float) *big.Float {
		s, p, z2 := F(0), new(big.Float).SetPrec(prec).Set(z), mul(z, z)
		for n := 1; n < 1600; n += 2 {
			s = add(s, quo(p, F(float64(n))))
			p = mul(p, z2)
		}
		return s
	}
	one := F(1)
	lm := mul(F(-2), atanh(quo(new(big.Float).SetPrec(prec).Sub(one, m), add(one, m))))
	ln2 := mul(F(2), atanh(quo(one, F(3))))
	l := add(lm, mul(F(float64(e)), ln2))
	h := F(0)
	for j := range k - 1 {
		h = add(h, quo(one, add(a, F(float64(j)))))
	}
	ab := add(a, b)
	sum, term := F(0), F(1)
	for n := range 60000 {
		d := mul(term, add(l, h))
		sum = add(sum, d)
		h = add(h, quo(one, add(ab, F(float64(n)))))
		r := mul(quo(add(ab, F(float64(n))), add(b, F(float64(n+1)))), y)
		term = mul(term, r)
		if n > 50 && sum.Sign() > 0 && term.Sign() > 0 {
			q, _ := quo(mul(term, h), sum).Float64()
			if rr, _ := r.Float64(); rr < 1 && math.Abs(q) < 1e-20*(1-rr) {
				break
			}
		}
	}
	v, _ := quo(mul(bx, sum), b).Float64()
	return v
}

// TestDirichletCoefficientDomain compares C with the series in 700-bit arithmetic where the fixtures do not go: K from 2 to
// 1000, t up to 1000, x near both ends and on both sides of every switch between the two sums.
func TestDirichletCoefficientDomain(t *testing.T) {
	worst := 0.0
	ks, ts := []int{2, 4, 64, 160}, []float64{0, 0.3, 7, 100}
	if os.Getenv("DRIFT_SLOW") != "" {
		ks, ts = append(ks, 3, 5, 257, 512, 1000), append(ts, 1e-9, 2.5, 31, 1000)
	}
	for _, k := range ks {
		for _, tt := range ts {
			c := NewDirichletCoefficient(k, tt)
			edge := math.Exp(-c.sum)
			for _, x := range []float64{0.02, edge * 0.999999, edge * 1.000001, 0.3, 0.6999999, 0.7000001, 0.95, 1 - 1e-9, 1 - 1e-15} {
				if x < 0.004 || x >= 1 || x < edge/2 && tt > 100 {
					continue // the big series converges too slowly, or cancels too much
				}
				want := exactC(k, tt, x)
				e := math.Abs(c.At(x)/want - 1)
				worst = max(worst, e)
				if e > 1e-12 {
					t.Errorf("K=%d t=%g x=%.17g: C = %.17g, want %.17g (relative error %.1e)", k, tt, x, c.At(x), want, e)
				}
			}
		}
	}
	t.Logf("worst relative error %.1e", worst)
}

// TestDirichletCoefficientLimits holds C to its limits and to the closed form of K = 2, where C rises.
func TestDirichletCoefficientLimits(t *testing.T) {
	for _, tt := range []float64{0, 0.01, 1, 7, 99} {
		c := NewDirichletCoefficient(2, tt)
		for _, x := range []float64{1e-300, 1e-8, 0.2, 0.5, 0.9, 1 - 1e-12} {
			if want := -x * math.Log(x) / ((1 + tt) * (1 - x)); math.Abs(c.At(x)/want-1) > 1e-14 {
				t.Errorf("K=2 t=%g x=%g: %.17g, want %.17g", tt, x, c.At(x), want)
			}
		}
	}
	for _, k := range []int{2, 3, 4, 20, 160, 1000} {
		for _, tt := range []float64{0, 0.5, 7, 100} {
			c := NewDirichletCoefficient(k, tt)
			if c.At(0) != 0 || c.At(-1e-18) != 0 || c.At(1) != c.At(1+1e-15) || !math.IsNaN(c.At(math.NaN())) {
				t.Errorf("K=%d t=%g: the ends are wrong", k, tt)
			}
			if x := 1e-200; math.Abs(c.At(x)/(-x/(1+tt)*(math.Log(x)+float64(0)))-1) > 0.03*math.Log(float64(k)+1) {
				t.Errorf("K=%d t=%g: C(%g) = %g is not near -(x/a) log x", k, tt, x, c.At(x))
			}
			if e := math.Abs(c.At(math.Nextafter(1, 0))/c.At(1) - 1); e > 1e-12 {
				t.Errorf("K=%d t=%g: C jumps by %.1e at x = 1", k, tt, e)
			}
			last := 0.0
			for i := 1; i <= 2000; i++ {
				v := c.At(float64(i) / 2000)
				if !(v > last*(1-1e-13)) {
					t.Fatalf("K=%d t=%g: C falls at %g", k, tt, float64(i)/2000)
				}
				last = v
			}
		}
	}
}

// TestDirichletConditional compares exact trajectories with the fixtures' quantiles and the specification's values.
func TestDirichletConditional(t *testing.T) {
	for _, r := range []struct {
		k     int
		x, t  float64
		reach float64
	}{
		{3, 0.3, 2, 0.61998749470498}, {4, 0.3, 7, 0.7931387588692}, {4, 0.05, 7, 0.58384292198175}, {20, 0.05, 7, 0.31924055092032},
		{4, 0, 7, 0}, {4, 1, 7, 1}, {4, 0.3, 0, 0.3},
	} {
		x, got := make([]float64, r.k), make([]float64, r.k)
		for j := range x {
			x[j] = (1 - r.x) / float64(r.k-1)
		}
		x[1] = r.x
		d := Dirichlet{K: r.k}
		d.Conditional(got, x, 1, d.At(r.t))
		if math.Abs(got[1]-r.reach) > 2e-14 {
			t.Errorf("K=%d: %g reaches %.15g at t=%g, want %.15g", r.k, r.x, got[1], r.t, r.reach)
		}
	}
	var f struct {
		OneHot []struct {
			K      int
			Target int
			X0     []float64 `json:"x0"`
			Path   []struct {
				T float64
				X []float64
			}
		} `json:"one_hot"`
	}
	spaces(t, "dirichlet.json", &f)
	n, worst := 0, 0.0
	for _, r := range f.OneHot {
		got := make([]float64, r.K)
		d := Dirichlet{K: r.K}
		for _, p := range r.Path {
			d.Conditional(got, r.X0, r.Target, d.At(p.T))
			for k, v := range p.X {
				worst = max(worst, math.Abs(got[k]-v))
				n++
			}
		}
	}
	t.Logf("%d coordinates, worst error %.1e", n, worst)
	if n == 0 || worst > 1e-13 {
		t.Errorf("%d coordinates, worst error %.1e", n, worst)
	}
}

// TestDirichletFieldPoint is the specification's point at K = 3, and the sum of the field.
func TestDirichletFieldPoint(t *testing.T) {
	d := Dirichlet{K: 3}
	x, u := []float64{0.2, 0.15, 0.65}, make([]float64, 3)
	for _, c := range []struct{ p, want []float64 }{
		{[]float64{1, 0, 0}, []float64{0.14102244051, -0.02644170760, -0.11458073292}},
		{[]float64{4. / 11, 9. / 55, 26. / 55}, []float64{0.01447557293, -0.01302914561, -0.00144642732}},
	} {
		if err := d.Velocity(u, x, c.p, d.At(1)); err != nil {
			t.Fatal(err)
		}
		for k := range u {
			if math.Abs(u[k]-c.want[k]) > 6e-12 {
				t.Errorf("velocity %d is %.12g, want %.12g", k, u[k], c.want[k])
			}
		}
		if s := u[0] + u[1] + u[2]; math.Abs(s) > 1e-16 {
			t.Errorf("the field sums to %g", s)
		}
	}
	if err := (SimplexLinear{3}).Velocity(u, x, x, SimplexLinear{3}.At(1)); err == nil {
		t.Error("the linear path has a field at its end")
	}
}

// TestDirichletContinuity holds the marginal field of q = (0.5, 0.3, 0.2) to the continuity equation by central
// differences: dp/dt + div(p u) = 0 on the plane SUM x = 1.
func TestDirichletContinuity(t *testing.T) {
	d, q := Dirichlet{K: 3}, []float64{0.5, 0.3, 0.2}
	density := func(x []float64, t float64) (p float64, post []float64) {
		post = make([]float64, 3)
		for k, v := range x {
			post[k] = q[k] * math.Pow(v, t)
			p += post[k]
		}
		for k := range post {
			post[k] /= p
		}
		return p * (1 + t) * (2 + t), post // Gamma(3+t)/Gamma(1+t)
	}
	flux := func(x0, x1, t float64) (float64, float64) {
		x := []float64{x0, x1, 1 - x0 - x1}
		p, post := density(x, t)
		u := make([]float64, 3)
		if err := d.Velocity(u, x, post, d.At(t)); err != nil {
			panic(err)
		}
		return p * u[0], p * u[1]
	}
	const h = 1e-4
	worst := 0.0
	for _, tt := range []float64{0.3, 1, 3} {
		for _, x := range [][2]float64{{0.2, 0.15}, {0.33, 0.33}, {0.7, 0.2}, {0.1, 0.6}} {
			at := []float64{x[0], x[1], 1 - x[0] - x[1]}
			up, _ := density(at, tt+h)
			down, _ := density(at, tt-h)
			a1, _ := flux(x[0]+h, x[1], tt)
			a0, _ := flux(x[0]-h, x[1], tt)
			_, b1 := flux(x[0], x[1]+h, tt)
			_, b0 := flux(x[0], x[1]-h, tt)
			rate := (up - down) / (2 * h)
			worst = max(worst, math.Abs(rate+(a1-a0+b1-b0)/(2*h))/max(math.Abs(rate), 1))
		}
	}
	if worst > 1e-6 {
		t.Errorf("the continuity equation is off by %.1e", worst)
	}
}

func TestProjectSimplex(t *testing.T) {
	x := []float64{0.9, 0.4, -0.2, -0.1}
	ProjectSimplex(x)
	for k, want := range []float64{0.75, 0.25, 0, 0} {
		if math.Abs(x[k]-want) > 1e-15 {
			t.Errorf("coordinate %d is %g, want %g", k, x[k], want)
		}
	}
	for _, x := range [][]float64{{5}, {-3, -3}, {0, 0, 0}, {1e9, -1e9, 3}, {0.5, 0.5 + 1e-13}, {0.2, 0.3, 0.5}, {1, 0}} {
		ProjectSimplex(x)
		sum := 0.0
		for _, v := range x {
			if v < 0 {
				t.Errorf("%v is not on the simplex", x)
			}
			sum += v
		}
		if math.Abs(sum-1) > 1e-15 {
			t.Errorf("%v sums to 1 %+.1e", x, sum-1)
		}
	}
	bad := []float64{math.NaN(), 1}
	if ProjectSimplex(bad); !math.IsNaN(bad[0]) {
		t.Error("NaN was hidden")
	}
}

// TestSimplexGrids: every named schedule makes a grid on the simplex's paths, falling in ratio; nothing goes on to a clean end
// that a path does not have.
func TestSimplexGrids(t *testing.T) {
	for _, p := range []Path{Dirichlet{K: 4}, Dirichlet{K: 2, End: 30}, SimplexLinear{K: 20}} {
		_, end := p.Ends()
		for _, s := range Schedules() {
			g, err := NewGrid(p, s.Name, 5, Ends{})
			if err != nil {
				t.Errorf("%s on %s: %v", s.Name, p.Name(), err)
				continue
			}
			if len(g) != 6 || g[5].T > end {
				t.Errorf("%s on %s: %d nodes, the last at %g", s.Name, p.Name(), len(g), g[5].T)
			}
			for i := range 5 {
				if r := g[i+1].Ratio(); !(r < g[i].Ratio()) && !(r == g[5].Ratio() && strings.HasPrefix(s.Name, "ays")) { // their sigmas reach below
					t.Errorf("%s on %s does not fall at node %d: %v", s.Name, p.Name(), i, g)
				}
			}
		}
		g, err := NewGrid(p, DefaultGrid(p), 7, Ends{})
		if err != nil || g[0].T != 0 || g[7].T != end || math.Abs(g[1].T-end/7) > 1e-15 {
			t.Errorf("the default grid of %s is %v (%v)", p.Name(), g, err)
		}
	}
	if _, err := NewGrid(Dirichlet{K: 4}, "time", 5, Ends{Final: "zero"}); err == nil {
		t.Error("the Dirichlet path was taken to a clean end")
	}
	far := 20.0
	if g, err := NewGrid(Dirichlet{K: 4}, "time", 2, Ends{TEnd: &far}); err != nil || g[2].T != 20 {
		t.Errorf("a later end: %v, %v", g, err)
	}
}

// TestDirichletInterpolation: what the field takes for C is C.
func TestDirichletInterpolation(t *testing.T) {
	worst := 0.0
	for _, k := range []int{2, 4, 9, 10, 20, 160} {
		for _, tt := range []float64{0, 0.37, 7, 100, 1000} {
			c := NewDirichletCoefficient(k, tt)
			for i := range 800 {
				x := math.Exp(-30 * float64(i+1) / 800)
				if i%2 == 1 {
					x = 1 - x
				}
				e := math.Abs(c.near(x)/c.At(x) - 1)
				if worst = max(worst, e); e > 1e-12 {
					t.Fatalf("K=%d t=%g x=%g: relative error %.1e", k, tt, x, e)
				}
			}
		}
	}
	t.Logf("worst relative error %.1e", worst)
}

func BenchmarkDirichletVelocity(b *testing.B) {
	for _, k := range []int{4, 20, 160} {
		b.Run("K="+strconv.Itoa(k), func(b *testing.B) {
			d := Dirichlet{K: k}
			x, p, u := make([]float64, 500*k), make([]float64, 500*k), make([]float64, 500*k)
			for i := range x {
				x[i] = 0.01 + math.Abs(math.Sin(float64(i)))
			}
			for at := 0; at < len(x); at += k {
				sum := 0.0
				for _, v := range x[at : at+k] {
					sum += v
				}
				for j := at; j < at+k; j++ {
					x[j] /= sum
				}
			}
			copy(p, x)
			for b.Loop() {
				if err := d.Velocity(u, x, p, d.At(1.5)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(x)), "ns/coordinate")
		})
	}
}
