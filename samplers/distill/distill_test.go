package distill

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"drift/guidance"
	"drift/internal/spec"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// two is a lopsided mixture of two round components in two dimensions.
func two(t testing.TB, process schedules.Gaussian, kind schedules.Kind) *analytic.Mixture {
	t.Helper()
	m, err := analytic.New(analytic.Target{Weights: []float64{0.8, 0.2}, Means: [][]float64{{-3, 0}, {3, 0}}, Vars: [][]float64{{0.25, 0.25}, {0.25, 0.25}},
		Labels: []int{0, 1}, Process: process, Prediction: kind})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func problem(t testing.TB, m models.Denoiser, steps int, rows []models.Row) *samplers.Problem {
	t.Helper()
	p := m.Process().(schedules.Gaussian)
	g, err := schedules.NewGrid(p, "time", steps, schedules.Ends{})
	if err != nil {
		t.Fatal(err)
	}
	return &samplers.Problem{Model: m, Grid: g, Rows: rows, Shape: []int{2}}
}

func sample(t testing.TB, m RSD, p *samplers.Problem) []float64 {
	t.Helper()
	res, err := samplers.Sample(context.Background(), m, p)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(models.Data(res.X))
}

var processes = []schedules.Gaussian{schedules.VPLinear{}, schedules.Flow{}, schedules.EDM{}, schedules.Cosine{}}

// TestRowsAlone holds that without repulsion, and with one particle whatever the strength, every particle is distilled as
// if it were alone, bit for bit; and that sets do not see each other with it.
func TestRowsAlone(t *testing.T) {
	for _, process := range processes {
		target := two(t, process, schedules.Eps)
		rows := Rows([]uint64{3, 7}, 3)
		base := sample(t, RSD{}, problem(t, target, 30, rows))
		for i := range rows {
			one := sample(t, RSD{Gamma: 5, Spread: 0}, problem(t, target, 30, rows[i:i+1]))
			if !slices.Equal(one, base[2*i:2*i+2]) {
				t.Errorf("%s: particle %d alone ends at %v, in a set at %v", process.Name(), i, one, base[2*i:2*i+2])
			}
		}
		for _, m := range []RSD{{Gamma: 5}, {Gamma: 5, Noisy: true, Spread: 1}, {Gamma: 0.5, Relative: true, Kernel: Kernel{Global: true}}, {Residual: VSD, Spread: 0.2}} {
			both := sample(t, m, problem(t, target, 30, rows))
			if slices.Equal(both[:6], base[:6]) {
				t.Errorf("%s: %+v changes nothing", process.Name(), m)
			}
			for s := range 2 {
				one := sample(t, m, problem(t, target, 30, rows[3*s:3*s+3]))
				if !slices.Equal(one, both[6*s:6*s+6]) {
					t.Errorf("%s: set %d alone differs from the set beside another", process.Name(), s)
				}
			}
		}
	}
}

// TestSmallSets holds the particular numbers of particles: 1 and 2, and what the published kernel makes of them.
func TestSmallSets(t *testing.T) {
	target := two(t, schedules.VPLinear{}, schedules.X0)
	for _, n := range []int{1, 2, 3} {
		rows := Rows([]uint64{5}, n)
		sds, rsd := sample(t, RSD{}, problem(t, target, 50, rows)), sample(t, RSD{Gamma: 5}, problem(t, target, 50, rows))
		if same := slices.Equal(sds, rsd); same != (n == 1) {
			t.Errorf("n = %d: repulsion changes nothing: %v", n, same)
		}
		published := RSD{Gamma: 5, Kernel: Kernel{Parity: true}}
		if n == 1 {
			if _, err := samplers.Sample(context.Background(), published, problem(t, target, 50, rows)); err == nil || !strings.Contains(err.Error(), "one particle") {
				t.Errorf("parity with one particle: %v", err)
			}
			continue
		}
		if same := slices.Equal(sds, sample(t, published, problem(t, target, 50, rows))); same != (n == 2) {
			t.Errorf("n = %d: the published repulsion changes nothing: %v", n, same)
		}
	}
	R := []float64{1, 1, 1, 1}
	if (Kernel{Parity: true}).Repel(R, []float64{2, 2, 2, 2}, 2); !slices.Equal(R, make([]float64, 4)) {
		t.Errorf("two published particles at one place: R = %v", R)
	}
	// far apart every kernel value underflows: the nearest neighbour is what is left
	if (Kernel{Bandwidth: 1}).Repel(R, []float64{0, 0, 1e3, 0}, 2); !(math.Abs(R[0]+2e3) < 1e-9) {
		t.Errorf("two particles 1000 apart, h = 1: R = %v, want -2000", R)
	}
}

// TestRepulsionIsGradient compares R with differences of -log sum k at fixed bandwidth.
func TestRepulsionIsGradient(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const n, d = 5, 3
	f := make([]float64, n*d)
	for i := range f {
		f[i] = r.NormFloat64()
	}
	R := make([]float64, n*d)
	for _, k := range []Kernel{{}, {Global: true}, {Bandwidth: 0.7}} {
		h := k.Repel(R, f, n)
		value := func(i int) float64 {
			sum := 0.0
			for j := range n {
				if j == i {
					continue
				}
				d2 := 0.0
				for c := range d {
					d2 += sq(f[i*d+c] - f[j*d+c])
				}
				sum += math.Exp(-d2 / h[i])
			}
			return -math.Log(sum)
		}
		for i := range n {
			for c := range d {
				const e = 1e-5
				keep := f[i*d+c]
				f[i*d+c] = keep + e
				up := value(i)
				f[i*d+c] = keep - e
				down := value(i)
				f[i*d+c] = keep
				if want := (up - down) / (2 * e); math.Abs(R[i*d+c]-want) > 1e-8*(1+math.Abs(want)) {
					t.Errorf("%+v: R[%d][%d] = %g, differences give %g", k, i, c, R[i*d+c], want)
				}
			}
		}
	}
}

// TestPermutation holds that particles have no order, and that with a global bandwidth forces before normalising sum to 0.
func TestPermutation(t *testing.T) {
	target := two(t, schedules.Flow{}, schedules.Velocity)
	rows := Rows([]uint64{9}, 4)
	order := []int{2, 0, 3, 1}
	var mixed []models.Row
	for _, k := range order {
		mixed = append(mixed, rows[k])
	}
	m := RSD{Gamma: 5, Spread: 0.5}
	a, b := sample(t, m, problem(t, target, 40, rows)), sample(t, m, problem(t, target, 40, mixed))
	for i, k := range order {
		for c := range 2 {
			if math.Abs(b[2*i+c]-a[2*k+c]) > 1e-9 {
				t.Errorf("particle %d ends at %v, in another place of the set at %v", k, a[2*k:2*k+2], b[2*i:2*i+2])
			}
		}
	}
}

// TestGradientDescent holds SGD on a Gaussian without noise against its closed form: q = a s (z - mu)/(a^2 v + s^2), so
// every iteration multiplies z - mu by 1 - rate w a s/(a^2 v + s^2).
func TestGradientDescent(t *testing.T) {
	const mu, v = 1.5, 0.3
	for _, process := range processes {
		for _, kind := range []schedules.Kind{schedules.Eps, schedules.X0, schedules.Velocity} {
			target, err := analytic.New(analytic.Target{Weights: []float64{1}, Means: [][]float64{{mu}}, Vars: [][]float64{{v}}, Process: process, Prediction: kind})
			if err != nil {
				t.Fatal(err)
			}
			p := problem(t, target, 25, Rows([]uint64{0}, 2))
			if p.Grid[0].Alpha == 0 { // velocity and data say nothing of the residual times an infinite rho
				p.Grid = p.Grid[1:]
			}
			p.Shape, p.Noise = []int{1}, samplers.Zero{}
			want := -mu // of z - mu, from z = 0
			rho, _ := ParseWeight("rho")
			for _, n := range p.Grid[:len(p.Grid)-1] {
				want *= 1 - 0.1*n.Ratio()*n.Alpha*n.Sigma/(n.Alpha*n.Alpha*v+n.Sigma*n.Sigma)
			}
			got := sample(t, RSD{Weight: rho, Optimizer: Optimizer{SGD: true, Rate: 0.1}}, p)
			for _, z := range got {
				if math.Abs(z-mu-want) > 1e-10*(1+math.Abs(want)) {
					t.Errorf("%s, %v: z = %.12g, want %.12g", process.Name(), kind, z, mu+want)
				}
			}
		}
	}
}

// TestOptimizers holds single steps against their formulas.
func TestOptimizers(t *testing.T) {
	z, g := []float64{1, 2}, []float64{0.5, -4}
	mem := newMoments(2)
	o := Optimizer{Rate: 0.1, Momentum: 0.5, SGD: true, Final: 0.5}
	o.step(z, g, mem, 0, 1, 3)
	o.step(z, g, mem, 0, 2, 3) // half way along the cosine: 0.75 of the rate
	if want := 1 - 0.1*0.5 - 0.075*0.75; math.Abs(z[0]-want) > 1e-15 {
		t.Errorf("momentum: %g, want %g", z[0], want)
	}
	z, mem = []float64{1, 2}, newMoments(2)
	Optimizer{Rate: 0.1}.step(z, g, mem, 0, 1, 3)
	for i, v := range []float64{1, 2} {
		if want := v - 0.1*g[i]/(math.Abs(g[i])+1e-8); math.Abs(z[i]-want) > 1e-15 {
			t.Errorf("Adam's first step: %g, want %g", z[i], want)
		}
	}
	Optimizer{}.step(z, g, mem, 0.25, 2, 3)
	m, v := 0.1*0.5*(1+0.9), 0.01*0.25*(1+0.99)
	if want := 1 - 0.1 - 0.25*(m/(1-0.81))/math.Sqrt(v/(1-0.99*0.99)); math.Abs(z[0]-want) > 1e-8 {
		t.Errorf("Adam's second step: %g, want %g", z[0], want)
	}
}

// TestVSD holds the particles' own prediction against an exact mixture of points of vanishing width.
func TestVSD(t *testing.T) {
	target := two(t, schedules.VPLinear{}, schedules.Eps)
	rows := Rows([]uint64{2}, 3)
	p := problem(t, target, 20, rows)
	b, err := RSD{Residual: VSD}.Begin(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	r := b.(*run)
	for range 12 {
		z := slices.Clone(r.Theta)
		if _, err := b.Next(context.Background()); err != nil {
			t.Fatal(err)
		}
		var tg analytic.Target
		for i := range 3 {
			tg.Weights, tg.Means, tg.Vars = append(tg.Weights, 1./3), append(tg.Means, z[2*i:2*i+2]), append(tg.Vars, []float64{1e-20, 1e-20})
		}
		tg.Process, tg.Prediction = schedules.VPLinear{}, schedules.Eps
		points, err := analytic.New(tg)
		if err != nil {
			t.Fatal(err)
		}
		phi := make([]float64, 2)
		for i, n := range r.query.At {
			if err := points.Evaluate(phi, models.Data(r.at)[2*i:2*i+2], n, models.NoClass, schedules.Eps); err != nil {
				t.Fatal(err)
			}
			for c := range 2 {
				if want := models.Data(r.pred.Out)[2*i+c] - phi[c]; math.Abs(models.Data(r.grad)[2*i+c]-want) > 1e-9*(1+math.Abs(want)) {
					t.Fatalf("residual %g, want %g", models.Data(r.grad)[2*i+c], want)
				}
			}
		}
	}
	one := rows[:1]
	if !slices.Equal(sample(t, RSD{Residual: VSD}, problem(t, target, 20, one)), sample(t, RSD{}, problem(t, target, 20, one))) {
		t.Error("VSD of one particle is not SDS")
	}
}

// TestResume saves and goes on after every iteration, with a guider that remembers, and gets the same bits.
func TestResume(t *testing.T) {
	ctx := context.Background()
	target := two(t, schedules.VPLinear{}, schedules.Eps)
	for _, m := range []RSD{{Gamma: 5, Spread: 0.3, Off: 0.5, Decay: true, Optimizer: Optimizer{Final: 0.1}}, {Gamma: 2, Measure: &Measure{Op: first{2}, Y: []float64{0.5}}}} {
		make := func() *samplers.Problem {
			g, err := guidance.Parse("apg:w=2,beta=-0.5")
			if err != nil {
				t.Fatal(err)
			}
			p := problem(t, target, 8, Rows([]uint64{4, 6}, 3))
			p.Model = g.Guide(target)
			p.Cond = &models.Cond{Classes: []int{0, 1, 0, 1, 0, 1}}
			return p
		}
		want := sample(t, m, make())
		run, err := m.Begin(ctx, make())
		if err != nil {
			t.Fatal(err)
		}
		for k := range 9 {
			var b bytes.Buffer
			if err := run.(samplers.Saver).Save(&b); err != nil {
				t.Fatal(err)
			}
			if run, err = samplers.Resume(ctx, m, make(), &b); err != nil {
				t.Fatal(err)
			}
			if run.State().I != k {
				t.Fatalf("resumed at %d, want %d", run.State().I, k)
			}
			if _, err := run.Next(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(models.Data(run.State().X), want) {
			t.Error("a run that was saved and resumed ends elsewhere")
		}
		var b bytes.Buffer
		if err := run.(samplers.Saver).Save(&b); err != nil {
			t.Fatal(err)
		}
		other := make()
		other.Rows = Rows([]uint64{4, 7}, 3)
		if _, err := samplers.Resume(ctx, m, other, bytes.NewReader(b.Bytes())); err == nil || !strings.Contains(err.Error(), "does not fit") {
			t.Errorf("another problem: %v", err)
		}
		if _, err := samplers.Resume(ctx, m, make(), strings.NewReader("x")); err == nil {
			t.Error("rubbish is read")
		}
	}
}

// TestDriver holds what the driver is promised: counts, observers, cancelling, options under way, predictions to look at.
func TestDriver(t *testing.T) {
	target := two(t, schedules.Flow{}, schedules.Velocity)
	p := problem(t, models.Metered(target), 10, Rows([]uint64{1}, 4))
	cfg, err := guidance.Parse("cfg:w=2")
	if err != nil {
		t.Fatal(err)
	}
	p.Model = cfg.Guide(p.Model.(models.Denoiser))
	p.Cond = &models.Cond{Classes: []int{0, 0, 1, 1}}
	seen := 0
	p.Observe = func(s *samplers.State) error {
		if s.I != seen || s.N != 10 || s.Done != float64(seen)/10 || s.At.Sigma != 0 {
			t.Errorf("state %d: %+v", seen, s)
		}
		if x0, err := s.X0(nil); err != nil || (x0 == nil) != (seen == 0) {
			t.Errorf("x0 %v at %d: %v", x0, seen, err)
		}
		seen++
		return nil
	}
	p.Control = func(_ context.Context, s *samplers.State, set samplers.Setter) error {
		return errors.Join(set.Set("gamma", 1), set.Set("rate", 0.01))
	}
	res, err := samplers.Sample(context.Background(), RSD{Gamma: 3}, p)
	if err != nil {
		t.Fatal(err)
	}
	if seen != 11 || res.Stats.NFE != 20 || res.Stats.VJPs != 0 || res.Stats.Steps != 10 || samplers.NFE(RSD{}, p.Grid) != 10 {
		t.Errorf("%d states, %+v", seen, res.Stats)
	}
	run := res.Run.(samplers.Setter)
	for _, bad := range []error{run.Set("eta", 1), run.Set("gamma", math.NaN()), run.Set("rate", -1)} {
		if bad == nil {
			t.Error("a wrong option is taken")
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.Control = nil
	p.Observe = func(s *samplers.State) error {
		if s.I == 3 {
			cancel()
		}
		return nil
	}
	if res, err := samplers.Sample(ctx, RSD{}, p); !errors.Is(err, context.Canceled) || res.Run.State().I != 3 {
		t.Errorf("cancelled: %v at %d", err, res.Run.State().I)
	}
}

// TestRefused holds that what cannot be done is refused by name.
func TestRefused(t *testing.T) {
	target := two(t, schedules.VPLinear{}, schedules.Eps)
	plus, err := guidance.Parse("cfg++:lambda=0.5")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		m    RSD
		edit func(*samplers.Problem)
		want string
	}{
		{"gamma", RSD{Gamma: math.NaN()}, nil, "gamma = NaN"},
		{"off", RSD{Off: 2}, nil, "off = 2"},
		{"residual", RSD{Residual: 7}, nil, "unknown residual"},
		{"rate", RSD{Optimizer: Optimizer{Rate: -1}}, nil, "rate = -1"},
		{"beta", RSD{Optimizer: Optimizer{Beta1: 1}}, nil, "beta1 = 1"},
		{"model", RSD{}, func(p *samplers.Problem) { p.Model = 3 }, "needs a model that denoises"},
		{"grid", RSD{}, func(p *samplers.Problem) { p.Grid = p.Grid[:1] }, "at least one step"},
		{"clean", RSD{}, func(p *samplers.Problem) { p.Grid = append(p.Grid, p.Grid[len(p.Grid)-1]) }, "nothing to distil"},
		{"apart", RSD{}, func(p *samplers.Problem) { p.Rows = append(Rows([]uint64{1, 2}, 1), models.Row{Seed: 1, Particle: 1}) }, "do not stand together"},
		{"twice", RSD{}, func(p *samplers.Problem) { p.Rows = append(p.Rows, p.Rows[0]) }, "stands in the batch twice"},
		{"rows", RSD{}, func(p *samplers.Problem) { p.Rows = nil }, "no rows"},
		{"shape", RSD{}, func(p *samplers.Problem) { p.Shape = nil }, "shape of an image"},
		{"start", RSD{}, func(p *samplers.Problem) { p.Start = models.New(3, 2) }, "the start has"},
		{"first", RSD{}, func(p *samplers.Problem) { p.First = 99 }, "cannot run from iteration"},
		{"scene", RSD{Scene: LowRes{2}}, nil, "lowres:2 does not fit"},
		{"features", RSD{Gamma: 1, Features: Pool{2}}, nil, "pool:2 do not fit"},
		{"cfg++", RSD{}, func(p *samplers.Problem) {
			p.Model = plus.Guide(target)
			p.Cond = &models.Cond{Classes: []int{0, 0}}
		}, "puts no noise back"},
		{"operator", RSD{Measure: &Measure{Y: []float64{1}}}, nil, "without an operator"},
		{"measure", RSD{Measure: &Measure{Op: first{2}}}, nil, "without values"},
		{"measured", RSD{Measure: &Measure{Op: first{2}, Y: make([]float64, 3)}}, nil, "3 measured values"},
		{"measure scene", RSD{Scene: same{}, Measure: &Measure{Op: first{2}, Y: make([]float64, 1)}}, nil, "leave one of them out"},
	} {
		p := problem(t, target, 4, Rows([]uint64{1}, 2))
		if c.edit != nil {
			c.edit(p)
		}
		if _, err := samplers.Sample(context.Background(), c.m, p); err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "distill: ") {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// same is the scene that is the image itself.
type same struct{}

func (same) Params(image []int) ([]int, error)        { return image, nil }
func (same) Render(z, theta []float64, _ []int)       { copy(z, theta) }
func (same) Pull(grad, _, cot []float64, image []int) { copy(grad, cot) }

// TestScenes holds the adjoints, <J u, c> = <u, J^T c>, and that the identity changes no bit.
func TestScenes(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	normal := func(n int) []float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = r.NormFloat64()
		}
		return v
	}
	for _, image := range [][]int{{1, 8, 8}, {3, 4, 12}, {2, 4, 4}} {
		for _, s := range []Scene{LowRes{2}, LowRes{4}, Fourier{}, Fourier{1}} {
			params, err := s.Params(image)
			if err != nil {
				t.Fatal(err)
			}
			n, dim := tensor.Shape(params).TotalSize(), tensor.Shape(image).TotalSize()
			u, c := normal(n), normal(dim)
			z, g := make([]float64, dim), make([]float64, n)
			s.Render(z, u, image)
			s.Pull(g, u, c, image)
			if a, b := dot(z, c), dot(u, g); math.Abs(a-b) > 1e-10 {
				t.Errorf("%+v on %v: <Ju,c> = %g, <u,J'c> = %g", s, image, a, b)
			}
			if f, ok := s.(Fourier); ok && f.Decay == 0 && math.Abs(dot(z, z)-dot(u, u)) > 1e-10 {
				t.Errorf("the cosine transform of %v keeps no lengths", image)
			}
		}
	}
	target := two(t, schedules.Flow{}, schedules.Velocity)
	p := problem(t, target, 20, Rows([]uint64{1}, 3))
	if !slices.Equal(sample(t, RSD{Gamma: 4}, p), sample(t, RSD{Gamma: 4, Scene: same{}}, p)) {
		t.Error("the image as its own parameters ends elsewhere than without a scene")
	}
}

// TestFeatures holds the pull-backs against the maps, and the projection's distances.
func TestFeatures(t *testing.T) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(5, 6))
	x, cotX := models.New(3, 2, 4, 4), models.New(3, 2, 4, 4)
	for i := range models.Data(x) {
		models.Data(x)[i], models.Data(cotX)[i] = r.NormFloat64(), r.NormFloat64()
	}
	for _, f := range []Features{Pool{2}, Pool{4}, Project{Dim: 5, Seed: 1}} {
		// all these maps are linear: <F u, c> = <u, F^T c>
		fx, pull, err := f.Map(ctx, x)
		if err != nil {
			t.Fatal(err)
		}
		cot := models.New(fx.Shape()...)
		for i := range models.Data(cot) {
			models.Data(cot)[i] = r.NormFloat64()
		}
		if err := pull(cotX, cot); err != nil {
			t.Fatal(err)
		}
		if a, b := dot(models.Data(fx), models.Data(cot)), dot(models.Data(x), models.Data(cotX)); math.Abs(a-b) > 1e-10 {
			t.Errorf("%+v: %g and %g", f, a, b)
		}
		one, _, err := f.Map(ctx, models.Wrap(models.Data(x)[32:64], 1, 2, 4, 4))
		if err != nil || !slices.Equal(models.Data(one), models.Data(fx)[fx.Shape()[1]:2*fx.Shape()[1]]) {
			t.Errorf("%+v: a row's features depend on the rows beside it (%v)", f, err)
		}
	}
	fx, _, err := Project{Dim: 4000, Seed: 2}.Map(ctx, x)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := dot(models.Data(fx), models.Data(fx)), dot(models.Data(x), models.Data(x)); math.Abs(a/b-1) > 0.1 {
		t.Errorf("projection: |f|^2 = %g, |x|^2 = %g", a, b)
	}
	if _, _, err := (Project{}).Map(ctx, x); err == nil {
		t.Error("a projection to no dimension is made")
	}
}

// TestWeights holds the table of weights at one node, and its errors.
func TestWeights(t *testing.T) {
	n := schedules.Node{T: 0.3, Alpha: 0.8, Sigma: 0.6}
	want := map[string]float64{"one": 1, "rho": 0.75, "sqrt": math.Sqrt(0.75), "cbrt2": math.Cbrt(0.75 * 0.75), "square": 0.5625, "log": math.Log(1.75), "clip": 0.75,
		"sigma2": 0.36, "dreamtime": math.Exp(-2)}
	for _, w := range Weights() {
		v, ok := want[w.Name]
		if got := w.Of(n, schedules.VPLinear{}); !ok || math.Abs(got-v) > 1e-14 {
			t.Errorf("%s = %g, want %g", w.Name, got, v)
		}
		delete(want, w.Name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	for _, c := range []struct{ t, v float64 }{{0.6, 1}, {0.95, math.Exp(-0.125)}} {
		if got := dreamtime(schedules.Node{T: c.t}, schedules.Flow{}); math.Abs(got-c.v) > 1e-12 {
			t.Errorf("dreamtime(%g) = %g, want %g", c.t, got, c.v)
		}
	}
	if _, err := ParseWeight("rhoo"); err == nil || !strings.Contains(err.Error(), "rho") {
		t.Errorf("unknown weight: %v", err)
	}
	if w, err := ParseWeight("1"); err != nil || w(n, nil) != 1 {
		t.Errorf("weight 1: %v", err)
	}
}

// TestREDdiff holds that the direct form without repulsion on a Gaussian settles where the posterior is largest: with
// Strength that makes both terms speak of the same density, at the prior's and the likelihood's balance.
func TestREDdiff(t *testing.T) {
	// prior N(0, 1) in one dimension, y = x + noise of variance 1/4. With w = sigma/alpha, E[w q] = E[z - x0_hat] =
	// z (1 - alpha^2) = z sigma^2 on a VP process; at a fixed level the stationary point solves (z - y) + Strength sigma^2 z = 0.
	target, err := analytic.New(analytic.Target{Weights: []float64{1}, Means: [][]float64{{0}}, Vars: [][]float64{{1}}, Process: schedules.VPLinear{}, Prediction: schedules.Eps})
	if err != nil {
		t.Fatal(err)
	}
	n := schedules.VPLinear{}.At(0.5)
	g := slices.Repeat(schedules.Grid{n}, 4000)
	p := &samplers.Problem{Model: target, Grid: append(g, schedules.Node{Alpha: 1}), Rows: Rows([]uint64{1}, 1), Shape: []int{1}, Noise: samplers.Zero{}}
	m := RSD{Optimizer: Optimizer{SGD: true, Rate: 0.05}, Measure: &Measure{Op: first{1}, Y: []float64{2}, Strength: 0.25, Direct: true}}
	if got, want := sample(t, m, p)[0], 2/(1+0.25*n.Sigma*n.Sigma); math.Abs(got-want) > 1e-9 {
		t.Errorf("settles at %.9g, want %.9g", got, want)
	}
	// the augmented form settles at the fixed point of its two gradients: (z - x) + c s^2 z = 0 with c = Strength/Tie,
	// (x - y) + Tie (x - z) = 0
	m.Measure = &Measure{Op: first{1}, Y: []float64{2}, Strength: 0.25, Tie: 0.5}
	c := 0.5 * n.Sigma * n.Sigma
	if got, want := sample(t, m, p)[0], 2/(1+0.5*(1-1/(1+c))); math.Abs(got-want) > 1e-9 {
		t.Errorf("augmented: settles at %.9g, want %.9g", got, want)
	}
}

// TestRead holds the options by name.
func TestRead(t *testing.T) {
	read := func(text string) (RSD, error) {
		sp, err := spec.Parse("rsd:" + text)
		if err != nil {
			t.Fatal(err)
		}
		o := sp.Options()
		m, err := Read(o)
		return m, errors.Join(err, o.Err())
	}
	m, err := read("gamma=3,limit=0,relative=true,off=0.1,decay=true,break=0.2,noisy=true,features=project:8,global=true,bandwidth=2,parity=true,residual=vsd,weight=sqrt,levels=0.2,scene=lowres:2,optimizer=adam,cool=0.5,beta1=0.8,beta2=0.7,eps=0.1,momentum=0.3")
	if err != nil {
		t.Fatal(err)
	}
	w := m.Weight(schedules.Node{Alpha: 1, Sigma: 4}, nil)
	m.Weight = nil
	want := RSD{Gamma: 3, Relative: true, Off: 0.1, Decay: true, Break: 0.2, Noisy: true, Features: Project{Dim: 8}, Kernel: Kernel{Global: true, Bandwidth: 2, Parity: true}, Residual: VSD, Spread: 0.2, Scene: LowRes{2},
		Optimizer: Optimizer{Rate: 0.05, Final: 0.5, Beta1: 0.8, Beta2: 0.7, Eps: 0.1, Momentum: 0.3}}
	if w != 2 || !reflect.DeepEqual(m, want) {
		t.Errorf("%+v, want %+v", m, want)
	}
	if m, err = read("levels=random,features=pool:4,scene=fourier:0.5"); err != nil || m.Spread != 1 || !m.SGD || m.Rate != 0.2 || m.Features != (Pool{4}) || m.Scene != (Fourier{0.5}) {
		t.Errorf("%+v, %v", m, err)
	}
	names := map[string]bool{}
	for _, o := range Options() {
		names[o.Name] = true
		if o.Help == "" || o.Default == "" {
			t.Errorf("%+v is not told of", o)
		}
		if _, err := read(o.Name + "=?"); err == nil {
			t.Errorf("%s=? is read", o.Name)
		}
	}
	if len(names) != 22 {
		t.Errorf("%d options", len(names))
	}
	for _, bad := range []string{"features=pool:0.5", "features=pool:x", "features=none:2", "scene=lowres:0", "scene=cube", "gama=1", "levels=2"} {
		if _, err := read(bad); err == nil {
			t.Errorf("%s is read", bad)
		}
	}
}

// TestLimit holds that a repulsion is cut to a share of the residual and no further.
func TestLimit(t *testing.T) {
	target := two(t, schedules.VPLinear{}, schedules.Eps)
	rows := Rows([]uint64{3}, 4)
	step := func(m RSD) ([]float64, []float64) {
		b, err := m.Begin(context.Background(), problem(t, target, 10, rows))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Next(context.Background()); err != nil {
			t.Fatal(err)
		}
		r := b.(*run)
		return slices.Clone(models.Data(r.grad)), r.force
	}
	bare, _ := step(RSD{})
	for _, c := range []struct {
		m    RSD
		want func(i int, R []float64) float64 // length of the repulsion by that of the residual
	}{
		{RSD{Gamma: 1e6, Limit: 0.4}, func(int, []float64) float64 { return 0.4 }},
		{RSD{Gamma: 1e-6, Limit: 0.4}, func(i int, R []float64) float64 {
			return 1e-6 * problem(t, target, 10, rows).Grid[0].Sigma * math.Hypot(R[2*i], R[2*i+1]) / math.Hypot(bare[2*i], bare[2*i+1])
		}},
		{RSD{Gamma: 0.7, Relative: true}, func(int, []float64) float64 { return 0.7 }},
		{RSD{Gamma: 0.7, Relative: true, Limit: 0.2}, func(int, []float64) float64 { return 0.2 }},
		{RSD{Gamma: -0.7, Relative: true, Limit: 0.2}, func(int, []float64) float64 { return 0.2 }},
	} {
		q, R := step(c.m)
		for i := range rows {
			got := math.Hypot(q[2*i]-bare[2*i], q[2*i+1]-bare[2*i+1]) / math.Hypot(bare[2*i], bare[2*i+1])
			if want := c.want(i, R); math.Abs(got-want) > 1e-9 {
				t.Errorf("%+v: particle %d is pushed by %g of its residual, want %g", c.m, i, got, want)
			}
		}
	}
}

// TestNetworkFeatures holds the pull-back of the embedded classifier's features against differences, and draws with them.
func TestNetworkFeatures(t *testing.T) {
	ctx := context.Background()
	f, err := ParseFeatures("fashion")
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 8))
	x, grad := models.New(2, 1, 28, 28), models.New(2, 1, 28, 28)
	for i := range models.Data(x) {
		models.Data(x)[i] = 0.3 * r.NormFloat64()
	}
	fx, pull, err := f.Map(ctx, x)
	if err != nil {
		t.Fatal(err)
	}
	cot := models.New(fx.Shape()...)
	for i := range models.Data(cot) {
		models.Data(cot)[i] = r.NormFloat64()
	}
	if err := pull(grad, cot); err != nil {
		t.Fatal(err)
	}
	along, h := 0.0, 3e-4
	y := [2]*tensor.Dense{models.New(x.Shape()...), models.New(x.Shape()...)}
	for i, v := range models.Data(x) {
		d := models.Data(grad)[i]
		along += d * d
		models.Data(y[0])[i], models.Data(y[1])[i] = v+h*d, v-h*d
	}
	var value [2]float64
	for k := range y {
		f, _, err := f.Map(ctx, y[k])
		if err != nil {
			t.Fatal(err)
		}
		value[k] = dot(models.Data(f), models.Data(cot))
	}
	if got := (value[0] - value[1]) / (2 * h); math.Abs(got/along-1) > 0.05 {
		t.Errorf("along the gradient the features rise by %g, want %g", got, along)
	}
	if _, _, err := f.Map(ctx, models.New(1, 3)); err == nil {
		t.Error("rows of 3 numbers are classified")
	}
}
