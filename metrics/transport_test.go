package metrics

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"testing"
	"time"
)

func uniformCost(seed uint64, n, m int) Matrix {
	c := Matrix{n, m, make([]float64, n*m)}
	for k := range c.X {
		c.X[k] = u53(seed, k)
	}
	return c
}

func TestWasserstein1D(t *testing.T) {
	for _, c := range []struct {
		x, y, wx, wy []float64
		p, want      float64
	}{
		{[]float64{3, 0, 1}, []float64{8, 5, 6}, nil, nil, 1, 5},
		{[]float64{3, 0, 1}, []float64{8, 5, 6}, nil, nil, 2, 25},
		{[]float64{3, 0, 1}, []float64{8, 5, 6}, nil, nil, 3, 125},
		{[]float64{0, 1, 2, 3}, []float64{.5, 2.5, 4.5}, nil, nil, 1, 13.0 / 12},
		{[]float64{0, 1, 2, 3}, []float64{.5, 2.5, 4.5}, nil, nil, 2, 19.0 / 12},
		{[]float64{0, 1, 2}, []float64{0, 1, 2}, []float64{.5, .25, .25}, []float64{.2, .3, .5}, 1, .55},
		{[]float64{2, 0, 1}, []float64{1, 0, 2}, []float64{1, 2, 1}, []float64{3, 2, 5}, 2, .55},
		{[]float64{7}, []float64{4}, nil, nil, 2, 9},
		{[]float64{1, 2}, []float64{1, 9, 2}, nil, []float64{1, 0, 1}, 1, 0},
		{[]float64{1, 2}, []float64{1, 2, 9}, nil, []float64{1, 1, 0}, 1, 0},
	} {
		got, err := Wasserstein1D(c.x, c.y, c.wx, c.wy, c.p)
		if err != nil {
			t.Fatal(err)
		}
		near(t, fmt.Sprintf("W%v of %v and %v", c.p, c.x, c.y), got, c.want, 1e-15)
	}
	// Equal sizes: mean |x_(i)-y_(i)|^p, for many sizes.
	for n := 1; n < 40; n++ {
		x, y := normals(uint64(n), n, 1).X, normals(uint64(n+100), n, 1).X
		a, b, want := slices.Clone(x), slices.Clone(y), 0.0
		slices.Sort(a)
		slices.Sort(b)
		for i := range a {
			want += (a[i] - b[i]) * (a[i] - b[i]) / float64(n)
		}
		got, err := Wasserstein1D(x, y, nil, nil, 2)
		if err != nil {
			t.Fatal(err)
		}
		near(t, fmt.Sprintf("n=%d", n), got, want, 1e-14)
	}
	for what, f := range map[string]func() (float64, error){
		"order":    func() (float64, error) { return Wasserstein1D([]float64{1}, []float64{1}, nil, nil, .5) },
		"empty":    func() (float64, error) { return Wasserstein1D(nil, []float64{1}, nil, nil, 1) },
		"NaN":      func() (float64, error) { return Wasserstein1D([]float64{math.NaN()}, []float64{1}, nil, nil, 1) },
		"weights":  func() (float64, error) { return Wasserstein1D([]float64{1}, []float64{1}, []float64{1, 2}, nil, 1) },
		"negative": func() (float64, error) { return Wasserstein1D([]float64{1, 2}, []float64{1}, []float64{1, -2}, nil, 1) },
		"zero":     func() (float64, error) { return Wasserstein1D([]float64{1, 2}, []float64{1}, []float64{0, 0}, nil, 1) },
	} {
		if _, err := f(); err == nil {
			t.Errorf("bad %s was accepted", what)
		}
	}
}

func TestEnergy1D(t *testing.T) {
	e, err := Energy1D([]float64{3, 0, 1}, []float64{5, 8, 6})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "{0,1,3}, {5,6,8}", e, 22.0/3, 1e-15)
	e, err = Energy1D([]float64{1, 1, 2}, []float64{2, 1, 1})
	if err != nil || e != 0 {
		t.Errorf("of equal sets: %v, %v", e, err)
	}
	// Quantile grids of normals: N(0,1)/N(1,1), N(0,1)/N(.5,1), N(0,1)/N(0,4).
	const n = 20000
	grid := func(m, s float64) []float64 {
		x := make([]float64, n)
		for i := range x {
			x[i] = m + s*math.Sqrt2*math.Erfinv(2*(float64(i)+.5)/n-1)
		}
		return x
	}
	for _, c := range []struct{ m, s, want float64 }{{1, 1, .5418065793}, {.5, 1, .1395963147}, {0, 2, .1831107310}} {
		e, err := Energy1D(grid(0, 1), grid(c.m, c.s))
		if err != nil {
			t.Fatal(err)
		}
		near(t, fmt.Sprintf("N(0,1) and N(%v,%v²)", c.m, c.s), e, c.want, 1e-6) // the grid cuts the tails
	}
}

func TestSlicedGoldens(t *testing.T) {
	sets, data, arr := loadScores(t)
	for name, s := range sets {
		if !s.Stored {
			continue
		}
		x, y := data[name][0], data[name][1]
		theta := arr[name+".theta"].matrix()
		for kind, want := range map[SlicedKind][]float64{SlicedW1: s.Sliced.W1, SlicedW2: s.Sliced.W2, SlicedEnergy: s.Sliced.Energy} {
			vals, _, err := Sliced{Kind: kind, Theta: theta}.each(ctx, x, y, 0)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range vals {
				near(t, setKey(name, kind.String()), v, want[k], 1e-12)
			}
		}
		for kind, want := range map[SlicedKind]float64{SlicedW1: s.Sliced.SW1, SlicedW2: s.Sliced.SW2, SlicedEnergy: meanOf(s.Sliced.Energy)} {
			r, err := Sliced{Kind: kind, Theta: theta}.Compare(ctx, x, y)
			if err != nil {
				t.Fatal(err)
			}
			near(t, setKey(name, kind.String()), r.Value, want, 1e-12)
		}
		if s.N1 == s.N2 {
			r, err := Sliced{Kind: MIND, Theta: theta}.Compare(ctx, x, y)
			if err != nil {
				t.Fatal(err)
			}
			near(t, setKey(name, "mind"), r.Value, s.Sliced.MIND, 1e-12)
		} else if _, err := (Sliced{Kind: MIND, Theta: theta}).Compare(ctx, x, y); err == nil {
			t.Errorf("set %s: MIND of unequal sizes without a source", name)
		}
	}
}

func TestSlicedClosedForms(t *testing.T) {
	for _, c := range []struct {
		d    int
		want float64
	}{{2, math.Pi / 2}, {3, 2}, {64, 9.9874250154}, {3072, 69.4600675}} {
		near(t, fmt.Sprintf("c_%d", c.d), SlicedEnergyFactor(c.d), c.want, 5e-9)
	}
	// Moved by a: SW2² = |a|²/d along uniform directions.
	x := normals(1, 400, 6)
	y := Matrix{x.N, x.D, slices.Clone(x.X)}
	for i := range y.X {
		y.X[i] += 2
	}
	for _, orthogonal := range []bool{false, true} {
		r, err := Sliced{Source: NewSource(7), Directions: 1200, Orthogonal: orthogonal}.Compare(ctx, x, y)
		if err != nil {
			t.Fatal(err)
		}
		tol := 6 * r.Parts[monteCarlo]
		if orthogonal { // full blocks of d sum to |a|² exactly
			tol = 1e-12
		}
		if math.Abs(r.Value-2) > tol || r.Parts[monteCarlo] == 0 {
			t.Errorf("orthogonal=%t: SW2 of a shift %v +- %v, want 2", orthogonal, r.Value, r.Parts[monteCarlo])
		}
	}
	// c_d times the sliced energy distance is the energy distance.
	z := normals(2, 300, 6)
	for i := range z.X {
		z.X[i] = 1.3*z.X[i] + 0.4
	}
	s, err := Sliced{Kind: SlicedEnergy, Source: NewSource(3), Directions: 3000}.Compare(ctx, x, z)
	if err != nil {
		t.Fatal(err)
	}
	e, err := EnergyDistance{}.Compare(ctx, x, z)
	if err != nil {
		t.Fatal(err)
	}
	f := SlicedEnergyFactor(6)
	if math.Abs(f*s.Value-e.Value) > 5*f*s.Parts[monteCarlo] {
		t.Errorf("c_6 x sliced energy = %v +- %v, energy = %v", f*s.Value, f*s.Parts[monteCarlo], e.Value)
	}
	m, err := Sliced{Kind: MIND, Source: NewSource(3), Directions: 10}.Compare(ctx, x, z)
	if err != nil || m.N != 300 || m.NRef != 400 {
		t.Errorf("mind of unequal sizes: %+v, %v", m, err)
	}
	if _, err := (Sliced{}).Compare(ctx, x, z); err == nil {
		t.Error("sliced distance without a source was accepted")
	}
}

// Brute force over permutations.
func TestAssignmentSmall(t *testing.T) {
	for n := 1; n <= 6; n++ {
		for seed := range 30 {
			c := uniformCost(uint64(seed+100*n), n, n)
			if seed%3 == 0 { // many ties, and negative costs
				for k := range c.X {
					c.X[k] = math.Floor(4*c.X[k]) - 1
				}
			}
			best := math.Inf(1)
			perm := make([]int, n)
			for i := range perm {
				perm[i] = i
			}
			var try func(k int, sum float64)
			try = func(k int, sum float64) {
				if k == n {
					best = min(best, sum)
					return
				}
				for i := k; i < n; i++ {
					perm[k], perm[i] = perm[i], perm[k]
					try(k+1, sum+c.At(k, perm[k]))
					perm[k], perm[i] = perm[i], perm[k]
				}
			}
			try(0, 0)
			got, cost, err := Assignment(ctx, c)
			if err != nil {
				t.Fatal(err)
			}
			near(t, fmt.Sprintf("n=%d seed=%d", n, seed), cost, best, 1e-14)
			slices.Sort(got)
			for i, j := range got {
				if i != j {
					t.Fatalf("n=%d: not a permutation", n)
				}
			}
			_, tc, err := Transport(ctx, c, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			near(t, fmt.Sprintf("transport n=%d seed=%d", n, seed), tc*float64(n), best, 1e-13)
		}
	}
}

func TestTransportGoldens(t *testing.T) {
	sets, data, arr := loadScores(t)
	for _, name := range []string{"a", "d"} {
		s := sets[name]
		head := func(m Matrix32, n int) Samples { return Matrix32{n, m.D, m.X[:n*m.D]} }
		x, y := head(data[name][0], s.Rows[0]), head(data[name][1], s.Rows[1])
		wa, wb := arr[name+".ot_a"].f64, arr[name+".ot_b"].f64
		for p, want := range map[int][2]float64{1: {s.Transport.W1Uniform, s.Transport.W1Weighted}, 2: {s.Transport.W2Uniform, s.Transport.W2Weighted}} {
			c, err := CostMatrix(ctx, x, y, p)
			if err != nil {
				t.Fatal(err)
			}
			if p == 2 {
				for k, v := range arr[name+".ot_C2"].f64 {
					near(t, "cost", c.X[k], v, 1e-13)
				}
			}
			_, cost, err := Transport(ctx, c, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			near(t, setKey(name, "uniform"), cost, want[0], 1e-13)
			plan, cost, err := Transport(ctx, c, wa, wb)
			if err != nil {
				t.Fatal(err)
			}
			near(t, setKey(name, "weighted"), cost, want[1], 1e-13)
			for i := range c.N {
				near(t, "row sum", total(plan.row(i)), wa[i], 1e-14)
			}
			for j := range c.D {
				sum := 0.0
				for i := range c.N {
					if plan.At(i, j) < 0 {
						t.Fatal("negative plan")
					}
					sum += plan.At(i, j)
				}
				near(t, "column sum", sum, wb[j], 1e-14)
			}
			r, err := Wasserstein{P: p}.Compare(ctx, y, x)
			if err != nil {
				t.Fatal(err)
			}
			near(t, setKey(name, "Wasserstein"), r.Parts["cost"], want[0], 1e-13)
			near(t, setKey(name, "Wasserstein root"), math.Pow(r.Value, float64(p)), want[0], 1e-13)
		}
		c, err := CostMatrix(ctx, x, y, 2)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "largest cost", slices.Max(c.X), s.Transport.CostMax, 1e-14)
		for k := range c.X {
			c.X[k] /= s.Transport.CostMax
		}
		for _, g := range s.Transport.Sinkhorn {
			var a, b []float64
			if g.Weights == "weighted" {
				a, b = wa, wb
			}
			tol := 1e-9
			if g.Log.Error > 1e-12 {
				t.Logf("set %s reg %v %s: reference itself is %.1e off", name, g.Reg, g.Weights, g.Log.Error)
				tol = 10 * g.Log.Error
			}
			for what, solve := range map[string]func() (*Plan, error){
				"Sinkhorn": func() (*Plan, error) {
					return Sinkhorn{Eta: 1 / g.Reg, Tol: 1e-12, MaxIter: 200000}.Solve(ctx, c, a, b)
				},
				"sparse Newton": func() (*Plan, error) { return SparseNewton{Eta: 1 / g.Reg, Tol: 1e-12}.Solve(ctx, c, a, b) },
			} {
				p, err := solve()
				if err != nil {
					t.Fatal(err)
				}
				if !p.Converged {
					t.Errorf("set %s, %s: not converged: residual %.3g", name, what, p.Residual)
				}
				near(t, setKey(name, what+" cost"), p.Cost, g.Log.Cost, tol)
			}
		}
	}
}

func TestWassersteinGaussianShift(t *testing.T) {
	x := normals(5, 60, 3)
	y := Matrix{x.N, x.D, slices.Clone(x.X)}
	for i := range y.X {
		y.X[i] += 2
	}
	r, err := Wasserstein{}.Compare(ctx, x, y)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "W2 of a shift", r.Value, 2*math.Sqrt(3), 1e-14)
	d, err := Sinkhorn{Eta: 0.3, Tol: 1e-12}.Divergence(ctx, x, y, 2)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "Sinkhorn divergence of a shift", d, 12, 1e-10) // |a|² for squared costs, any eta
	if d, err = (Sinkhorn{Eta: 2, Tol: 1e-12}).Divergence(ctx, x, x, 1); err != nil || math.Abs(d) > 1e-13 {
		t.Errorf("Sinkhorn divergence of a set and itself: %v, %v", d, err)
	}
}

type snsGolden struct {
	N        int
	Eta      float64
	Seed     uint64 `json:"cost_seed"`
	R, C     []float64
	FStar    string `json:"F_star"`
	CostStar string `json:"cost_star"`
	Iters    int    `json:"sinkhorn_iterations_to_1e-12"`
	After    struct {
		X, Y []float64
		F    float64
	} `json:"after_one_sinkhorn"`
	Runs []struct {
		K         string
		N1        int
		Steps     int `json:"newton_steps"`
		Converged bool
		F         []float64
		Residual  []float64
		Line      []float64 `json:"line_search"`
	}
}

func TestSinkhornGoldens(t *testing.T) {
	var g struct{ SNS []snsGolden }
	loadJSON(t, "diagnostics.json", &g)
	arr := loadNPZ(t, "diagnostics.npz")
	for _, s := range g.SNS {
		name := fmt.Sprintf("n=%d eta=%g", s.N, s.Eta)
		c := uniformCost(s.Seed, s.N, s.N)
		one, err := Sinkhorn{Eta: s.Eta, Tol: 1e-12, MaxIter: 1}.Solve(ctx, c, s.R, s.C)
		if err != nil {
			t.Fatal(err)
		}
		near(t, name+": F after one iteration", one.F, s.After.F, 1e-13)
		for i := range s.N {
			near(t, name+": x after one iteration", one.X[i], s.After.X[i], 1e-13)
			near(t, name+": y after one iteration", one.Y[i], s.After.Y[i], 1e-13)
		}
		fStar, costStar := parseFloat(t, s.FStar), parseFloat(t, s.CostStar)
		if s.Iters < 100000 {
			p, err := Sinkhorn{Eta: s.Eta, Tol: 1e-12}.Solve(ctx, c, s.R, s.C)
			if err != nil {
				t.Fatal(err)
			}
			if !p.Converged || math.Abs(float64(p.SinkhornSteps-s.Iters)) > 2 {
				t.Errorf("%s: Sinkhorn took %d iterations, reference %d, converged %t", name, p.SinkhornSteps, s.Iters, p.Converged)
			}
			near(t, name+": Sinkhorn F", p.F, fStar, 1e-12)
		}
		p, err := SparseNewton{Eta: s.Eta, Tol: 1e-12, MaxIter: -1}.Solve(ctx, c, s.R, s.C)
		if err != nil {
			t.Fatal(err)
		}
		if !p.Converged {
			t.Errorf("%s, default K: residual %.3g after %d steps", name, p.Residual, p.NewtonSteps)
		}
		near(t, name+", default K: F", p.F, fStar, 1e-12)
		for _, run := range s.Runs {
			var keep int
			if run.K == "n^2" {
				keep = s.N * s.N
			} else if _, err := fmt.Sscanf(run.K, "%dn", &keep); err != nil {
				t.Fatal(err)
			} else {
				keep *= s.N
			}
			var log []Dual
			p, err := SparseNewton{Eta: s.Eta, Tol: 1e-12, WarmUp: run.N1, Keep: keep, MaxIter: -1, Observe: func(d Dual) { log = append(log, d) }}.Solve(ctx, c, s.R, s.C)
			if err != nil {
				t.Fatal(err)
			}
			what := fmt.Sprintf("%s K=%s N1=%d", name, run.K, run.N1)
			// With 2n entries at eta 600 the plan falls into parts joined by less
			// mass than H̃ drops inside them: the balance between the parts
			// stands still at 4.5e-12. The default, which adds entries, goes on.
			if !p.Converged && !(run.K == "2n" && s.Eta == 600 && p.Residual < 5e-12) {
				t.Errorf("%s: residual %.3g after %d steps", what, p.Residual, p.NewtonSteps)
			}
			near(t, what+": F", p.F, fStar, 1e-12)
			near(t, what+": cost", p.Cost, costStar, 1e-11)
			slack := 2.0
			if run.K == "2n" || run.K == "15n" {
				slack = max(2, 0.5*float64(run.Steps))
			}
			if math.Abs(float64(p.NewtonSteps-run.Steps)) > slack {
				t.Errorf("%s: %d Newton steps, reference %d", what, p.NewtonSteps, run.Steps)
			}
			for k, d := range log {
				if k < run.N1 {
					near(t, fmt.Sprintf("%s: F of Sinkhorn iteration %d", what, k), d.F, run.F[k], 1e-12)
				} else if run.K == "n^2" && k < len(run.F) {
					near(t, fmt.Sprintf("%s: F of Newton step %d", what, k-run.N1), d.F, run.F[k], 1e-9)
				}
			}
			if plan := arr[fmt.Sprintf("sns_%d_%g_plan", s.N, s.Eta)]; run.K == "n^2" {
				for k, v := range plan.f64 {
					if math.Abs(p.P.X[k]-v) > 1e-12 {
						t.Fatalf("%s: plan entry %d is %v, want %v", what, k, p.P.X[k], v)
					}
				}
			}
		}
	}
}

// Two normals on a grid: the entropic plan's cost in closed form.
func TestSinkhornGaussian(t *testing.T) {
	for _, c := range []struct{ h, m1, s1, m2, s2, eta float64 }{{.25, 0, 1, .5, .8, 1}, {.25, -.3, .9, .4, 1.1, 2}} {
		var g, r, q []float64
		for x := -10.0; x < 10+c.h/2; x += c.h {
			g = append(g, x)
			r = append(r, math.Exp(-(x-c.m1)*(x-c.m1)/(2*c.s1*c.s1)))
			q = append(q, math.Exp(-(x-c.m2)*(x-c.m2)/(2*c.s2*c.s2)))
		}
		pts := Matrix{len(g), 1, g}
		cost, err := CostMatrix(ctx, pts, pts, 2)
		if err != nil {
			t.Fatal(err)
		}
		e := 1 / (2 * c.eta)
		cross := (math.Sqrt(4*c.s1*c.s1*c.s2*c.s2+e*e) - e) / 2
		want := (c.m1-c.m2)*(c.m1-c.m2) + c.s1*c.s1 + c.s2*c.s2 - 2*cross
		for what, solve := range map[string]func() (*Plan, error){
			"Sinkhorn":      func() (*Plan, error) { return Sinkhorn{Eta: c.eta, Tol: 1e-13}.Solve(ctx, cost, r, q) },
			"sparse Newton": func() (*Plan, error) { return SparseNewton{Eta: c.eta, Tol: 1e-13}.Solve(ctx, cost, r, q) },
		} {
			p, err := solve()
			if err != nil {
				t.Fatal(err)
			}
			if !p.Converged {
				t.Errorf("%s did not converge: %.3g", what, p.Residual)
			}
			near(t, what, p.Cost, want, 1e-11)
		}
	}
}

// The published setting: uniform random costs, n = 100, eta = 300.
func TestSparseNewtonTable(t *testing.T) {
	c := uniformCost(1, 100, 100)
	for _, run := range []struct {
		keep, warm, steps int
		share             float64
	}{{500, 20, 7, 0}, {300, 20, 12, 0}, {200, 20, 63, .5}, {1500, 20, 6, .5}, {500, 5, 8, 0}, {500, 100, 5, 0}, {0, 20, 7, 0}} {
		p, err := SparseNewton{Eta: 300, Tol: 1e-12, Keep: run.keep, WarmUp: run.warm}.Solve(ctx, c, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !p.Converged || p.FellBack {
			t.Errorf("K=%d: %+v", run.keep, p.Residual)
		}
		near(t, "F", p.F, -6.64287812e-4, 1e-12)
		near(t, "cost", p.Cost, .0170360259, 1e-10)
		if math.Abs(float64(p.NewtonSteps-run.steps)) > max(2, run.share*float64(run.steps)) {
			t.Errorf("K=%d N1=%d: %d Newton steps, want about %d", run.keep, run.warm, p.NewtonSteps, run.steps)
		}
	}
	p, err := Sinkhorn{Eta: 300, Tol: 1e-12}.Solve(ctx, c, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "Sinkhorn F", p.F, -6.64287812e-4, 1e-12)
	if math.Abs(float64(p.SinkhornSteps-3421)) > 3 {
		t.Errorf("Sinkhorn took %d iterations, reference 3421", p.SinkhornSteps)
	}
}

func TestSparseNewton500(t *testing.T) {
	if os.Getenv("DRIFT_SLOW") == "" {
		t.Skip("n = 500 takes several seconds: set DRIFT_SLOW=1")
	}
	c := uniformCost(1, 500, 500)
	for _, keep := range []int{0, 1500, 2500, 7500} {
		start := time.Now()
		p, err := SparseNewton{Eta: 1200, Tol: 1e-12, Keep: keep}.Solve(ctx, c, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("n=500 eta=1200 K=%d: %d Newton steps, residual %.2g, %v", keep, p.NewtonSteps, p.Residual, time.Since(start))
		if !p.Converged || p.FellBack {
			t.Errorf("K=%d: residual %.3g", keep, p.Residual)
		}
		near(t, "F", p.F, -2.254103432e-3, 1e-12)
		near(t, "cost", p.Cost, .0035793184, 1e-10)
	}
	start := time.Now()
	p, err := Sinkhorn{Eta: 1200, Tol: 1e-12}.Solve(ctx, c, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Sinkhorn: %d iterations, %v", p.SinkhornSteps, time.Since(start))
	near(t, "Sinkhorn F", p.F, -2.254103432e-3, 1e-12)
	start = time.Now()
	_, cost, err := Assignment(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("assignment n=500: %v", time.Since(start))
	if cost/500 > p.Cost {
		t.Errorf("exact cost %v above the entropic plan's %v", cost/500, p.Cost)
	}
}

func TestEntropicEdges(t *testing.T) {
	one := Matrix{1, 1, []float64{3}}
	for what, solve := range map[string]func(c Matrix, r, q []float64) (*Plan, error){
		"Sinkhorn":      func(c Matrix, r, q []float64) (*Plan, error) { return Sinkhorn{Eta: 2}.Solve(ctx, c, r, q) },
		"sparse Newton": func(c Matrix, r, q []float64) (*Plan, error) { return SparseNewton{Eta: 2}.Solve(ctx, c, r, q) },
	} {
		p, err := solve(one, nil, nil)
		if err != nil || math.Abs(p.Cost-3) > 1e-9 || !p.Converged {
			t.Errorf("%s of one point: %+v, %v", what, p, err)
		}
		// One row: the plan is the column weights.
		p, err = solve(Matrix{1, 3, []float64{1, 2, 3}}, nil, []float64{.5, .25, .25})
		if err != nil || math.Abs(p.Cost-1.75) > 1e-9 {
			t.Errorf("%s of one row: %+v, %v", what, p, err)
		}
		for bad, f := range map[string]func() error{
			"zero weight":     func() error { _, err := solve(Matrix{1, 2, []float64{1, 2}}, nil, []float64{1, 0}); return err },
			"negative weight": func() error { _, err := solve(Matrix{1, 2, []float64{1, 2}}, nil, []float64{1, -1}); return err },
			"NaN":             func() error { _, err := solve(Matrix{1, 1, []float64{math.NaN()}}, nil, nil); return err },
			"size":            func() error { _, err := solve(Matrix{2, 2, []float64{1}}, nil, nil); return err },
		} {
			if f() == nil {
				t.Errorf("%s accepted a bad %s", what, bad)
			}
		}
	}
	if _, err := (Sinkhorn{}).Solve(ctx, one, nil, nil); err == nil {
		t.Error("eta = 0 was accepted")
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	c := uniformCost(1, 9, 9)
	if _, err := (Sinkhorn{Eta: 1}).Solve(gone, c, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Sinkhorn: %v", err)
	}
	if _, _, err := Assignment(gone, c); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled assignment: %v", err)
	}
	if _, _, err := Transport(gone, c, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled transport: %v", err)
	}
	if _, _, err := Assignment(ctx, uniformCost(1, 2, 3)); !errors.Is(err, ErrDims) {
		t.Errorf("assignment of 2 x 3: %v", err)
	}
	// A plan that is not sparse: Newton stalls, Sinkhorn takes over, and says so.
	n := 200
	line := Matrix{n, 1, make([]float64, n)}
	other := Matrix{n, 1, make([]float64, n)}
	for i := range n {
		line.X[i], other.X[i] = float64(i)/float64(n), math.Pow(float64(i)/float64(n), 1.5)
	}
	c, err := CostMatrix(ctx, line, other, 2)
	if err != nil {
		t.Fatal(err)
	}
	p, err := SparseNewton{Eta: 200, Tol: 1e-11, Keep: 15 * n, MaxNewton: 40}.Solve(ctx, c, nil, nil)
	if err != nil || !p.Converged || !p.FellBack {
		t.Errorf("dense plan: converged %t, fell back %t, %v", p.Converged, p.FellBack, err)
	}
	q, err := Sinkhorn{Eta: 200, Tol: 1e-11}.Solve(ctx, c, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "dense plan, cost", p.Cost, q.Cost, 1e-10)
}

func TestKthLargest(t *testing.T) {
	for n := 1; n < 30; n++ {
		x := make([]float64, n)
		for i := range x {
			x[i] = math.Floor(6 * u53(uint64(n), i))
		}
		s := slices.Clone(x)
		slices.Sort(s)
		for k := 1; k <= n; k++ {
			if got := kthLargest(slices.Clone(x), k); got != s[n-k] {
				t.Fatalf("n=%d k=%d: %v, want %v", n, k, got, s[n-k])
			}
		}
	}
}

// Any size, weight and regularisation: the answer is finite and says truly
// whether it converged. At eta 30000, a temperature of 3e-5 of the costs, it
// often does not.
func TestSparseNewtonRobust(t *testing.T) {
	stuck := 0
	for seed := range 60 {
		n, m := 1+seed%11, 1+(seed*7)%13
		eta := []float64{1, 30, 300, 1000, 30000}[seed%5]
		c := uniformCost(uint64(1000+seed), n, m)
		r, q := make([]float64, n), make([]float64, m)
		for i := range r {
			r[i] = 1e-3 + u53(uint64(2000+seed), i)
		}
		for j := range q {
			q[j] = 1e-3 + u53(uint64(3000+seed), j)
		}
		p, err := SparseNewton{Eta: eta, Tol: 1e-9, MaxIter: 2000}.Solve(ctx, c, r, q)
		if err != nil {
			t.Fatal(err)
		}
		a, b := 0.0, 0.0
		for i := range n {
			a += math.Abs(total(p.P.row(i)) - r[i]/total(r))
		}
		for j := range m {
			sum := 0.0
			for i := range n {
				sum += p.P.At(i, j)
			}
			b += math.Abs(sum - q[j]/total(q))
		}
		if math.IsNaN(p.Cost+p.F) || math.Abs(a+b-p.Residual) > 1e-12 || p.Converged != (p.Residual < 1e-9) {
			t.Errorf("seed %d: cost %v, residual %v against %v, converged %t", seed, p.Cost, p.Residual, a+b, p.Converged)
		}
		if !p.Converged {
			if eta <= 1000 {
				t.Errorf("seed %d: n=%d m=%d eta=%v: residual %.3g", seed, n, m, eta, p.Residual)
			}
			stuck++
			continue
		}
		_, exact, err := Transport(ctx, c, r, q)
		if err != nil {
			t.Fatal(err)
		}
		// <C,P> - exact lies between 0 and log(nm)/η, up to the residual.
		if gap := p.Cost - exact; gap < -1e-8 || gap > math.Log(float64(n*m)+1)/eta+1e-8 {
			t.Errorf("seed %d: entropic cost %v, exact %v", seed, p.Cost, exact)
		}
	}
	t.Logf("%d of 60 not converged", stuck)
}

// TestSinkhornSymmetric: the solver of a set against itself ends where the general one does, in few iterations.
func TestSinkhornSymmetric(t *testing.T) {
	ctx := context.Background()
	x := flatFeatures(5, 60, 4, 1, 0)
	cost, err := CostMatrix(ctx, x, x, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, eta := range []float64{0.5, 5} {
		plan, err := Sinkhorn{Eta: eta}.Solve(ctx, cost, nil, nil)
		if err != nil || !plan.Converged {
			t.Fatalf("eta %g: %v", eta, err)
		}
		f, err := Sinkhorn{Eta: eta, MaxIter: 400}.symmetric(ctx, cost)
		if err != nil {
			t.Fatalf("eta %g: %v", eta, err)
		}
		near(t, "symmetric optimum", f.dual(), plan.F, 1e-9)
	}
	if _, err := (Sinkhorn{Eta: 40, MaxIter: 3}).symmetric(ctx, cost); err == nil {
		t.Error("three iterations were enough")
	}
}
