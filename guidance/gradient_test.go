package guidance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drift/guidance"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

func as(t testing.TB, m *analytic.Mixture, kind schedules.Kind, p schedules.Gaussian) *analytic.Mixture {
	t.Helper()
	target := m.Target()
	target.Prediction, target.Process = kind, p
	out, err := analytic.New(target)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var kinds = []schedules.Kind{schedules.Eps, schedules.X0, schedules.V, schedules.Velocity, schedules.Score}

func question(p schedules.Process) *models.Query {
	g := p.(schedules.Gaussian)
	return &models.Query{X: models.Wrap([]float64{0.3, -0.2, -0.7, 0.9, 1.1, 0.4}, 3, 2), At: []schedules.Node{g.AtRatio(0.8), g.AtRatio(0.8), g.AtRatio(2)}, Cond: &models.Cond{Classes: []int{0, 1, models.NoClass}}}
}

func predict(t testing.TB, d models.Denoiser, q *models.Query) []float64 {
	t.Helper()
	var p models.Pred
	if err := d.Predict(context.Background(), q, &p); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(models.Data(p.Out))
}

// TestVJP: the gradients through guiders are those of finite differences, and guiders without one say so by name
// (the gradient of the model below them would be wrong).
func TestVJP(t *testing.T) {
	cot := models.Wrap([]float64{0.5, -1, 2, 0.3, -0.7, 1.5}, 3, 2)
	for _, kind := range kinds {
		for _, p := range []schedules.Gaussian{schedules.VPLinear{}, schedules.Flow{}, schedules.EDM{}} {
			for _, specs := range [][]string{{"cfg:w=3"}, {"cfg:w=0"}, {"cfg:w=3,interval=0-1"}, {"auto:w=2.5"}, {"auto:w=0"}, {"clip:range=0.6"}, {"cfg:w=2", "auto:w=2"}, {"auto", "cfg:w=2", "clip"}, {"apg:to=0"}} {
				var d models.Denoiser = models.Metered(as(t, target(t), kind, p))
				for _, s := range specs {
					g, err := guidance.Parse(s)
					if err != nil {
						t.Fatal(err)
					}
					if n, ok := g.(guidance.Needer); ok {
						g = n.With(models.Metered(as(t, weak(t), schedules.X0, p)))
					}
					d = g.Guide(d)
				}
				q := question(p)
				v, ok := models.As[models.VJP](d)
				if !ok {
					t.Fatalf("%v: no gradient", specs)
				}
				grad := models.New(3, 2)
				var pred models.Pred
				if err := v.VJP(context.Background(), q, &pred, cot, grad); err != nil {
					t.Fatalf("%v: %v", specs, err)
				}
				if want := predict(t, d, q); maxGap(models.Data(pred.Out), want) > 1e-12 {
					t.Errorf("%v, %v: the gradient's answer %v is not Predict's %v", specs, kind, models.Data(pred.Out), want)
				}
				for i, have := range models.Data(grad) {
					const h = 1e-5
					diff := 0.0
					for _, side := range []float64{h, -h} {
						x := slices.Clone(models.Data(q.X))
						x[i] += side
						moved := *q
						moved.X = models.Wrap(x, 3, 2)
						for j, o := range predict(t, d, &moved) {
							diff += o * models.Data(cot)[j] / (2 * side)
						}
					}
					if math.Abs(have-diff) > 1e-6*max(1, math.Abs(diff)) {
						t.Errorf("%v on %s as %v: gradient %d is %.9g, by differences %.9g", specs, p.Name(), kind, i, have, diff)
					}
				}
			}
		}
	}
	m := models.Metered(target(t))
	for _, s := range []string{"cfg:rescale=0.7", "cfg++", "apg", "cfg-zero", "tcfg", "mambo", "threshold", "classifier", "energy", "pag"} {
		v, ok := models.As[models.VJP](guide(t, m, s))
		if !ok {
			t.Fatalf("%s: no VJP", s)
		}
		name, _, _ := strings.Cut(s, ":")
		if err := v.VJP(context.Background(), question(m.Process()), &models.Pred{}, cot, models.New(3, 2)); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "no gradient through this guider") {
			t.Errorf("%s: %v", s, err)
		}
	}
	bare := models.Metered(&stub{c: []float64{1, 2}, u: []float64{1, 2}})
	if err := guide(t, bare, "cfg").(models.VJP).VJP(context.Background(), question(schedules.VPLinear{}), &models.Pred{}, cot, models.New(3, 2)); err == nil || !strings.Contains(err.Error(), "the model has none") {
		t.Errorf("a model without gradients: %v", err)
	}
}

// bowl is an energy with a gradient that is neither constant nor the same in every direction.
func bowl(x0, grad []float64) float64 {
	e := 0.0
	for j, v := range x0 {
		a := float64(j + 1)
		e += a*v*v/2 + math.Sin(v)
		grad[j] = a*v + math.Cos(v)
	}
	return e
}

// TestEnergy: through=x0 moves the data by the gradient there, through=model moves the score by the gradient of
// E(x0(x)), which is checked against finite differences; both in every kind of prediction.
func TestEnergy(t *testing.T) {
	const w = 0.3
	for _, kind := range kinds {
		for _, p := range []schedules.Gaussian{schedules.VPLinear{}, schedules.Flow{}, schedules.EDM{}} {
			m := models.Metered(as(t, target(t), kind, p))
			q := question(p)
			x := models.Data(q.X)
			data := func(kind schedules.Kind, x, out []float64, n schedules.Node) []float64 {
				cx, co, err := schedules.Convert(p, kind, schedules.X0, n)
				if err != nil {
					t.Fatal(err)
				}
				x0 := make([]float64, len(out))
				for j := range out {
					x0[j] = cx*x[j] + co*out[j]
				}
				return x0
			}
			plain := predict(t, m, q)
			var told []float64
			free := predict(t, guidance.Gradient{W: w, Of: guidance.EnergyFunc(bowl), Report: func(_ *models.Query, e, norm []float64, _ []map[string]float64) { told = slices.Concat(e, norm) }}.Guide(m), q)
			through := predict(t, guidance.Gradient{W: w, Of: guidance.EnergyFunc(bowl), Through: guidance.ThroughModel}.Guide(m), q)
			short := predict(t, guidance.Gradient{W: w, Of: guidance.EnergyFunc(bowl), MaxNorm: 0.5}.Guide(m), q)
			for i, n := range q.At {
				row := func(v []float64) []float64 { return v[2*i : 2*i+2] }
				x0, g := data(kind, row(x), row(plain), n), make([]float64, 2)
				e := bowl(x0, g)
				if size := math.Hypot(g[0], g[1]); math.Abs(told[i]-e) > 1e-12 || math.Abs(told[3+i]-size) > 1e-12 {
					t.Errorf("row %d: told energy %g and norm %g, want %g and %g", i, told[i], told[3+i], e, size)
				}
				moved, less, model := data(kind, row(x), row(free), n), data(kind, row(x), row(short), n), data(kind, row(x), row(through), n)
				size := 0.0
				for j := range x0 {
					if want := x0[j] - w*g[j]; math.Abs(moved[j]-want) > 1e-11 {
						t.Errorf("%s as %v: x0 = %.15g, want %.15g", p.Name(), kind, moved[j], want)
					}
					size += (less[j] - x0[j]) * (less[j] - x0[j])
					const h = 1e-5
					diff := 0.0
					for _, side := range []float64{h, -h} {
						y := slices.Clone(x)
						y[2*i+j] += side
						other := *q
						other.X = models.Wrap(y, 3, 2)
						diff += bowl(data(kind, row(y), row(predict(t, m, &other)), n), make([]float64, 2)) / (2 * side)
					}
					// eps + w sigma d is x0 - w sigma^2/alpha d
					if want := x0[j] - w*n.Sigma*n.Sigma/n.Alpha*diff; math.Abs(model[j]-want) > 1e-8 {
						t.Errorf("%s as %v: through the model x0 = %.12g, by differences %.12g", p.Name(), kind, model[j], want)
					}
				}
				if math.Abs(math.Sqrt(size)-0.5*w) > 1e-11 {
					t.Errorf("a clipped gradient moved the data by %g, want %g", math.Sqrt(size), 0.5*w)
				}
			}
		}
	}
}

// TestPosteriorSampling follows mean and variance of guidance by E = (x0 - y)^2/(2 s^2) through the network on a Gaussian
// prior N(0, v), a run of S ancestral steps: the exact recursion of diffusion posterior sampling, which is not the exact
// posterior.
func TestPosteriorSampling(t *testing.T) {
	p, err := schedules.NewVPDiscrete(schedules.Betas{})
	if err != nil {
		t.Fatal(err)
	}
	const y, s = 1.5, 0.5
	for _, c := range []struct{ v, mean, variance float64 }{{1, 1.4730, 0.1216}, {0.25, 0.9490, 0.1054}, {4, 1.5000, 0.1215}} {
		m, err := analytic.New(analytic.Target{Weights: []float64{1}, Means: [][]float64{{0}}, Vars: [][]float64{{c.v}}, Process: p})
		if err != nil {
			t.Fatal(err)
		}
		d := guidance.Gradient{W: 1, Through: guidance.ThroughModel, Of: guidance.EnergyFunc(func(x0, g []float64) float64 {
			g[0] = (x0[0] - y) / (s * s)
			return (x0[0] - y) * (x0[0] - y) / (2 * s * s)
		})}.Guide(models.Metered(m))
		var times []float64
		for i := 1000; i > 0; i-- {
			times = append(times, math.RoundToEven(999*float64(i)/1000))
		}
		grid := nodes(t, p, times)
		mean, variance := 0.0, 1.0
		q := &models.Query{X: models.Wrap([]float64{0, 1}, 2, 1)}
		for k, n := range grid[:1000] {
			q.At = []schedules.Node{n, n}
			e := predict(t, d, q)
			to := grid[k+1]
			c1 := to.Sigma / n.Sigma * math.Sqrt(1-n.Alpha*n.Alpha/(to.Alpha*to.Alpha))
			f := math.Sqrt(to.Sigma*to.Sigma-c1*c1) - to.Alpha*n.Sigma/n.Alpha
			a := to.Alpha/n.Alpha + f*(e[1]-e[0])
			mean, variance = a*mean+f*e[0], a*a*variance+c1*c1
		}
		if math.Abs(mean-c.mean) > 6e-5 || math.Abs(variance-c.variance) > 6e-5 {
			t.Errorf("v=%g: mean %.5f variance %.5f, want %.4f %.4f", c.v, mean, variance, c.mean, c.variance)
		}
	}
}

// TestMonteCarlo: of a quadratic energy k x^2/2 the smoothed gradient is k x/(1 + w k r^2), of a linear one the gradient
// itself.
func TestMonteCarlo(t *testing.T) {
	const w, k = 0.5, 3
	n := schedules.EDM{}.At(1.5)
	r := 1.5 / math.Hypot(1, 1.5)
	quad := guidance.EnergyFunc(func(x0, g []float64) float64 { g[0] = k * x0[0]; return k * x0[0] * x0[0] / 2 })
	line := guidance.EnergyFunc(func(x0, g []float64) float64 { g[0] = k; return k * x0[0] })
	m := &stub{u: []float64{0.8}, c: []float64{0.8}, kind: schedules.X0, process: schedules.EDM{}}
	var e []float64
	report := func(_ *models.Query, energy, _ []float64, _ []map[string]float64) { e = slices.Clone(energy) }
	x0, _ := guided(t, guidance.Gradient{W: w, Of: quad, Samples: 20000, Report: report}.Guide(m), models.Step{}, []float64{0}, n)
	if have, want := (0.8-x0[0])/w, k*0.8/(1+w*k*r*r); math.Abs(have-want) > 0.03 {
		t.Errorf("gradient %g, want %g", have, want)
	}
	if want := math.Log(1+w*k*r*r)/(2*w) + k*0.64/2/(1+w*k*r*r); math.Abs(e[0]-want) > 0.03 {
		t.Errorf("energy %g, want %g", e[0], want)
	}
	if x0, _ = guided(t, guidance.Gradient{W: w, Of: line, Samples: 16}.Guide(m), models.Step{}, []float64{0}, n); math.Abs(x0[0]-(0.8-w*k)) > 1e-12 {
		t.Errorf("a linear energy: %g, want %g", x0[0], 0.8-w*k)
	}
}

// TestFailures: what cannot be done is refused by name and place.
func TestFailures(t *testing.T) {
	m := models.Metered(target(t))
	bad := func(v float64) guidance.Energy {
		return guidance.EnergyFunc(func(x0, g []float64) float64 { g[0], g[1] = v, 0; return 0 })
	}
	other, err := analytic.Parse([]byte(strings.Replace(broad, "vp-linear", "flow", 1)))
	if err != nil {
		t.Fatal(err)
	}
	plain := &stub{c: []float64{1, 2}, u: []float64{1, 1}, bad: []float64{0, 0}}
	must := func(s string) guidance.Guider {
		g, err := guidance.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	for name, c := range map[string]struct {
		d    models.Denoiser
		want string
	}{
		"no second model":     {must("auto").Guide(m), "auto: there is no second model"},
		"another process":     {guidance.Auto{W: 2, Weak: other}.Guide(m), "auto: the second model's process flow is not"},
		"no layers":           {must("pag").Guide(m), "pag: analytic: an analytic target has no layers"},
		"no layers named":     {must("pag:layers=").Guide(m), "pag: no layers are named"},
		"no classifier":       {must("classifier").Guide(plain), "there is no classifier"},
		"no energy":           {must("energy").Guide(plain), "there is no energy"},
		"no gradient":         {guidance.Gradient{W: 1, Of: bad(1), Through: guidance.ThroughModel}.Guide(plain), "the model has none"},
		"none through apg":    {must("energy:through=model").Guide(must("apg").Guide(m)), "apg: there is no gradient through this guider"},
		"NaN":                 {guidance.Gradient{W: 1, Of: bad(math.NaN())}.Guide(m), "gradient is NaN at step 3, sigma/alpha 0.8, row 0"},
		"schedule":            {must("cfg:w=log(-sigma)").Guide(m), "cfg: the scale is NaN at step 3, sigma/alpha 0.8, row 0"},
		"two noises":          {must("cfg").Guide(must("cfg++").Guide(m)), "put cfg first"},
		"clipped noise below": {must("apg").Guide(must("clip:rederive=false").Guide(m)), "put apg first"},
		"rescale of a number": {must("cfg:rescale=1").Guide(models.Metered(mono(t))), "two numbers or more"},
	} {
		q := question(schedules.VPLinear{})
		q.Step.I = 3
		if strings.HasPrefix(name, "rescale") {
			q.X = models.New(3, 1)
		}
		err := c.d.Predict(context.Background(), q, &models.Pred{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func mono(t testing.TB) *analytic.Mixture {
	m, err := analytic.Parse([]byte(`{"type":"mixture","weights":[0.5,0.5],"means":[[-1],[1]],"vars":[[0.25],[0.25]],"labels":[0,1],"process":{"type":"vp-linear"},"prediction":"eps"}`))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMemory: a run with momentum goes on after an interruption, and after a selection of rows, as if nothing had
// happened; chained memories too.
func TestMemory(t *testing.T) {
	s, err := samplers.Parse("dpmpp-2m")
	if err != nil {
		t.Fatal(err)
	}
	grid, err := schedules.NewGrid(schedules.VPLinear{}, "lambda", 8, schedules.Ends{Final: "zero"})
	if err != nil {
		t.Fatal(err)
	}
	problem := func() *samplers.Problem {
		p := &samplers.Problem{Model: guide(t, models.Metered(target(t)), "apg:w=3,tau=1", "clip:range=3", "apg:w=2,beta=0.3"), Grid: grid, Shape: []int{2}, Cond: &models.Cond{Classes: []int{0, 1, 1}}}
		for k := range 3 {
			p.Rows = append(p.Rows, models.Row{Seed: uint64(k)})
		}
		return p
	}
	ctx := context.Background()
	whole, err := samplers.Sample(ctx, s, problem())
	if err != nil {
		t.Fatal(err)
	}
	half := func() samplers.Run {
		p := problem()
		run, err := s.Begin(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if _, err := run.Next(ctx); err != nil {
				t.Fatal(err)
			}
		}
		return run
	}
	var file bytes.Buffer
	if err := half().(samplers.Saver).Save(&file); err != nil {
		t.Fatal(err)
	}
	saved := file.Bytes()
	p := problem()
	run, err := samplers.Resume(ctx, s, p, io.MultiReader(bytes.NewReader(saved))) // as from a file: no ReadByte
	if err != nil {
		t.Fatal(err)
	}
	res, err := samplers.Drive(ctx, run, p)
	if err != nil || !slices.Equal(models.Data(res.X), models.Data(whole.X)) {
		t.Errorf("a resumed run differs: %v", err)
	}
	if _, err := samplers.Resume(ctx, s, problem(), bytes.NewReader(saved[:len(saved)-1])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file cut short: %v", err)
	}

	run = half()
	if err := run.(samplers.Selector).Select([]int{2, 0, 1}, nil); err != nil {
		t.Fatal(err)
	}
	if res, err = samplers.Drive(ctx, run, problem()); err != nil {
		t.Fatal(err)
	}
	for j, k := range []int{2, 0, 1} {
		if !slices.Equal(models.Data(res.X)[2*j:2*j+2], models.Data(whole.X)[2*k:2*k+2]) {
			t.Errorf("row %d after a selection is not row %d", j, k)
		}
	}
	if err := models.Denoiser(p.Model.(models.Denoiser)).(models.Selector).Select([]int{7}); err == nil || !strings.Contains(err.Error(), "no row 7") {
		t.Errorf("selecting a row that is not there: %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	m := target(f)
	d := guidance.APG{W: 2, Beta: -0.5}.Guide(m)
	predict(f, d, question(m.Process()))
	var b bytes.Buffer
	if err := d.(models.Keeper).Save(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		k := guidance.APG{W: 2, Beta: -0.5}.Guide(m)
		if k.(models.Keeper).Load(bytes.NewReader(raw)) != nil {
			return
		}
		var out bytes.Buffer
		if err := k.(models.Keeper).Save(&out); err != nil || !bytes.Equal(out.Bytes(), raw[:out.Len()]) {
			t.Fatalf("%x came back as %x (%v)", raw, out.Bytes(), err)
		}
		predict(t, k, question(m.Process()))
	})
}

func TestRecur(t *testing.T) {
	g, err := schedules.NewGrid(schedules.VPLinear{}, "lambda", 3, schedules.Ends{Final: "zero"})
	if err != nil {
		t.Fatal(err)
	}
	if r := guidance.Recur(g, 1); len(r) != 4 {
		t.Errorf("%d nodes", len(r))
	}
	r := guidance.Recur(g, 3)
	want := schedules.Grid{g[0], g[1], g[0], g[1], g[0], g[1], g[2], g[1], g[2], g[1], g[2], g[3], g[2], g[3], g[2], g[3]}
	if !slices.Equal(r, want) {
		t.Errorf("%v, want %v", r.Ratios(), want.Ratios())
	}
	if n := samplers.NFE(samplers.Euler{}, r); n != 9 {
		t.Errorf("%d evaluations, want 9", n)
	}
	// The hops are the forward process: recurrence leaves the distribution alone. The standard error of a variance of
	// 1.25 is 0.028 over 4000 samples; the solver's own error is below 0.02.
	p := &samplers.Problem{Model: models.Metered(target(t)), Shape: []int{2}}
	if g, err = schedules.NewGrid(schedules.VPLinear{}, "lambda", 24, schedules.Ends{Final: "zero"}); err != nil {
		t.Fatal(err)
	}
	p.Grid = guidance.Recur(g, 2)
	for k := range 4000 {
		p.Rows = append(p.Rows, models.Row{Seed: uint64(k)})
	}
	s, err := samplers.Parse("heun")
	if err != nil {
		t.Fatal(err)
	}
	res, err := samplers.Sample(context.Background(), s, p)
	if err != nil {
		t.Fatal(err)
	}
	sum, sq := 0.0, 0.0
	for k := range 4000 {
		v := models.Data(res.X)[2*k]
		sum, sq = sum+v, sq+v*v
	}
	if v := sq / 4000; math.Abs(v-1.25) > 0.1 {
		t.Errorf("variance %.3f, want 1.25", v)
	}
}

// TestScript: an energy file guides like the same energy in Go; its mistakes stop the run before the model is asked.
func TestScript(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "bowl.star")
	write := func(src string) {
		if err := os.WriteFile(file, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("def energy(x0, ctx):\n    return (x0[0] ** 2 + 2 * x0[1] ** 2) / 2 + sum(sin(x0))\n")
	m := models.Metered(target(t))
	for _, through := range []string{"x0", "model"} {
		_, script := run(t, guide(t, m, "energy:scale=0.3,file="+file+",through="+through), "dpmpp-2m", 8, 10, 1)
		way := guidance.ThroughX0
		if through == "model" {
			way = guidance.ThroughModel
		}
		_, code := run(t, guidance.Gradient{W: 0.3, Of: guidance.EnergyFunc(bowl), Through: way}.Guide(m), "dpmpp-2m", 8, 10, 1)
		if gap := maxGap(script, code); gap > 1e-12 {
			t.Errorf("through %s: script and Go differ by %g", through, gap)
		}
	}
	for src, want := range map[string]string{
		"def energy(x0, ctx):\n    return x0[0] +":                        "bowl.star:2:",
		"def energy(x0, ctx):\n    return x0 + y":                         "bowl.star:2:17: undefined: y",
		"def energy(x0, ctx):\n    return x0[5]":                          "bowl.star:2:14: index 5",
		"def energy(x0, ctx):\n    return x0":                             "bowl.star:1:1: energy returned a tensor of shape [2], want one number",
		"def energy(x0, ctx):\n    return log(ctx.sigma - ctx.sigma - 1)": "the energy is NaN at step 0, sigma/alpha 152.2, row 0",
	} {
		write(src)
		g, err := guidance.Parse("energy:file=" + file)
		var meter models.Meter
		if err == nil {
			var p models.Pred
			n := schedules.VPLinear{}.AtRatio(152.2)
			err = g.Guide(m).Predict(context.Background(), &models.Query{X: models.New(1, 2), At: []schedules.Node{n}, Meter: &meter}, &p)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", src, err, want)
		}
		if meter.Evals() != 0 && !strings.Contains(want, "NaN") {
			t.Errorf("%q: the model was asked first", src)
		}
	}
	if _, err := guidance.Parse("energy:file=" + filepath.Join(dir, "none.star")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// An energy written in Starlark, and differentiated for the user.
func ExampleScript() {
	m, err := analytic.Parse([]byte(labelled))
	if err != nil {
		fmt.Println(err)
		return
	}
	e, err := guidance.Script("circle.star", "def energy(x0, ctx):\n    return (norm(x0) - 1) ** 2\n")
	if err != nil {
		fmt.Println(err)
		return
	}
	d := guidance.Gradient{W: 0.5, Of: e, Through: guidance.ThroughModel, Report: func(_ *models.Query, energy, norm []float64, _ []map[string]float64) {
		fmt.Printf("energy %.3f, gradient %.3f\n", energy[0], norm[0])
	}}.Guide(models.Metered(m))
	var p models.Pred
	q := &models.Query{X: models.Wrap([]float64{1, 0.5}, 1, 2), At: []schedules.Node{schedules.VPLinear{}.At(0.2)}}
	fmt.Println(d.Predict(context.Background(), q, &p))
	_, err = guidance.Script("circle.star", "def energy(x0, ctx):\n    return (norm(x) - 1) ** 2\n")
	fmt.Println(err)
	// Output:
	// energy 0.002, gradient 0.047
	// <nil>
	// circle.star:2:18: undefined: x
}

// An energy written in Go: pull the mean of every picture to 0.2.
func ExampleGradient() {
	m, err := analytic.Parse([]byte(labelled))
	if err != nil {
		fmt.Println(err)
		return
	}
	pull := guidance.EnergyFunc(func(x0, grad []float64) float64 {
		mean := 0.0
		for _, v := range x0 {
			mean += v / float64(len(x0))
		}
		for j := range grad {
			grad[j] = 2 * (mean - 0.2) / float64(len(x0))
		}
		return (mean - 0.2) * (mean - 0.2)
	})
	d := guidance.Gradient{W: 1, Of: pull}.Guide(models.Metered(m))
	var p models.Pred
	q := &models.Query{X: models.Wrap([]float64{1, 0.5}, 1, 2), At: []schedules.Node{schedules.VPLinear{}.At(0.2)}}
	fmt.Println(d.Predict(context.Background(), q, &p), p.Kind)
	// Output: <nil> eps
}
