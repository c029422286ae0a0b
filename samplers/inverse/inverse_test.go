package inverse

import (
	"bytes"
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"drift/guidance"
	"drift/internal/operators"
	"drift/internal/rng"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// scene is a mixture of pictures of 1 x 4 x 4 pixels.
func scene(t testing.TB, p schedules.Gaussian, kind schedules.Kind) models.Denoiser {
	t.Helper()
	var tg analytic.Target
	tg.Process, tg.Prediction = p, kind
	for k := range 3 {
		m, v := make([]float64, 16), make([]float64, 16)
		rng.Normal(m, rng.Key{Seed: uint64(k), Image: 77})
		for i := range m {
			m[i] *= 0.5
			v[i] = 0.05 + 0.02*float64((i+k)%4)
		}
		tg.Weights, tg.Means, tg.Vars = append(tg.Weights, []float64{0.5, 0.3, 0.2}[k]), append(tg.Means, m), append(tg.Vars, v)
	}
	m, err := analytic.New(tg)
	if err != nil {
		t.Fatal(err)
	}
	return models.Metered(m)
}

func vp() schedules.Gaussian { return schedules.VPLinear{} }

func task(t testing.TB, text string) operators.Operator {
	t.Helper()
	a, err := operators.Parse(text, []int{1, 4, 4}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// degraded is a measurement of one fixed picture.
func degraded(t testing.TB, text string, sigma float64) operators.Measurement {
	x := make([]float64, 16)
	rng.Normal(x, rng.Key{Seed: 5, Image: 5})
	for i := range x {
		x[i] *= 0.4
	}
	return operators.Measure(task(t, text), x, sigma, 1, 0)
}

func problem(d models.Denoiser, steps, rows int) *samplers.Problem {
	p := d.Process().(schedules.Gaussian)
	g, err := schedules.NewGrid(p, schedules.DefaultGrid(p), steps, schedules.Ends{})
	if err != nil {
		panic(err)
	}
	out := &samplers.Problem{Model: d, Grid: g, Shape: []int{16}, Meter: &models.Meter{}}
	for k := range rows {
		out.Rows = append(out.Rows, models.Row{Seed: uint64(k) + 1})
	}
	return out
}

func sample(t testing.TB, s samplers.Sampler, p *samplers.Problem) []float64 {
	t.Helper()
	res, err := samplers.Sample(context.Background(), s, p)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(models.Data(res.X))
}

// every is each method of this package with the tasks that it takes.
func every(t *testing.T, f func(t *testing.T, text string, m operators.Measurement)) {
	texts := []string{"dps:form=gaussian", "stsl:start=inversion,form=square,lambda=0.05"}
	for _, i := range List() {
		texts = append(texts, i.Name)
	}
	for _, text := range texts {
		for _, a := range []string{"superres:factor=2", "inpaint:box=half", "deblur:std=0.7", "phase", "denoise"} {
			m := degraded(t, a, 0.1)
			mk, info, err := Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			_, linear := m.A.(operators.Linear)
			if _, err := mk(m); err != nil {
				if (info.Linear || strings.HasPrefix(text, "stsl")) && !linear && strings.Contains(err.Error(), "linear operator") {
					continue
				}
				t.Fatal(err)
			}
			t.Run(text+" "+a, func(t *testing.T) { f(t, text, m) })
		}
	}
}

// TestBatch: four rows at once are four rows one by one, bit for bit; runs of 1, 2 and 3 steps are finite on every
// process.
func TestBatch(t *testing.T) {
	every(t, func(t *testing.T, text string, m operators.Measurement) {
		s := method(t, text, m)
		for _, d := range []models.Denoiser{scene(t, vp(), schedules.Eps), scene(t, schedules.Flow{}, schedules.Velocity), scene(t, schedules.VE{SigmaMin: 0.01, SigmaMax: 20}, schedules.X0)} {
			for steps := 1; steps <= 3; steps++ {
				all := sample(t, s, problem(d, steps, 4))
				for k := range 4 {
					p := problem(d, steps, 4)
					p.Rows = p.Rows[k : k+1]
					if one := sample(t, s, p); !slices.Equal(one, all[16*k:16*(k+1)]) {
						t.Fatalf("%s, %d steps: row %d alone differs", d.Process().Name(), steps, k)
					}
				}
			}
		}
	})
}

// TestResume: a run saved after any step goes on to the same bits; a cancelled one stops.
func TestResume(t *testing.T) {
	every(t, func(t *testing.T, text string, m operators.Measurement) {
		s, d := method(t, text, m), scene(t, vp(), schedules.Eps)
		want := sample(t, s, problem(d, 4, 2))
		for stop := range 4 {
			p := problem(d, 4, 2)
			run, err := s.Begin(context.Background(), p)
			if err != nil {
				t.Fatal(err)
			}
			for range stop {
				if _, err := run.Next(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			var b bytes.Buffer
			if err := run.(samplers.Saver).Save(&b); err != nil {
				t.Fatal(err)
			}
			if run, err = samplers.Resume(context.Background(), s, problem(d, 4, 2), &b); err != nil {
				t.Fatal(err)
			}
			res, err := samplers.Drive(context.Background(), run, p)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(models.Data(res.X), want) {
				t.Fatalf("saved after %d steps it comes to something else", stop)
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		p := problem(d, 50, 2)
		p.Observe = func(st *samplers.State) error {
			if st.I == 2 {
				cancel()
			}
			return nil
		}
		if _, err := samplers.Sample(ctx, s, p); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled run ends with %v", err)
		}
	})
}

// TestCost counts evaluations and gradients per image.
func TestCost(t *testing.T) {
	const n = 6
	d := scene(t, vp(), schedules.Eps)
	for _, c := range []struct {
		text       string
		evals, vjp int64
	}{
		{"dps", n, n}, {"dps:form=gaussian", n, n}, {"dps:grad=fd", 2 * n, 0}, {"dps:grad=scalar", n, 0}, {"dps:zeta=0", n, 0}, {"pigdm", n, n}, {"pigdm:grad=fd", 2 * n, 0}, {"mcg", n, n},
		{"tmpd:iterations=2", 3 * n, 3 * n}, {"mpgd", n, 0}, {"ddrm", n, 0}, {"ddnm", n, 0}, {"ddnm+:length=2,repeat=3", 3 * n, 0}, {"repaint:length=3,repeat=2", 2 * n, 0},
		{"diffpir", n, 0}, {"resample", n, 0}, {"stsl:start=inversion", (4+1)*n + n - 1, 4 * n}, {"stsl:second=0", (2 + 1) * n, 2 * n},
	} {
		p := problem(d, n, 3)
		sample(t, method(t, c.text, degraded(t, "superres:factor=2", 0.1)), p)
		if p.Meter.Evals() != 3*c.evals || p.Meter.VJPs() != 3*c.vjp {
			t.Errorf("%s: %d evaluations and %d gradients of 3 rows, want %d and %d", c.text, p.Meter.Evals(), p.Meter.VJPs(), 3*c.evals, 3*c.vjp)
		}
	}
}

func far(a, b []float64) float64 {
	d := 0.0
	for i, v := range a {
		d = math.Max(d, math.Abs(v-b[i]))
	}
	return d
}

// within is how well a method keeps what was measured without noise: pigdm takes r^2 for the covariance of the data, which
// is right up to sigma^2 of the last node.
func within(text string) float64 {
	if text == "pigdm" {
		return 1e-4
	}
	return 1e-9
}

// TestLimits holds methods to what they must become.
func TestLimits(t *testing.T) {
	d := scene(t, vp(), schedules.Eps)
	plain := func(eta float64) []float64 { return sample(t, samplers.DDIM{Eta: eta}, problem(d, 20, 3)) }
	// No guidance and noise without end are plain sampling, bit for bit.
	for _, text := range []string{"pigdm", "dps:form=gaussian", "tmpd"} {
		for _, eta := range []string{"0", "1"} {
			want := plain(map[string]float64{"0": 0, "1": 1}[eta])
			sep := ":"
			if strings.Contains(text, ":") {
				sep = ","
			}
			deaf := degraded(t, "superres:factor=2", 0.1)
			deaf.Sigma = math.Inf(1)
			if got := sample(t, method(t, text+sep+"eta="+eta, deaf), problem(d, 20, 3)); !slices.Equal(got, want) {
				t.Errorf("%s with infinite noise is not plain sampling", text)
			}
			if got := sample(t, method(t, text+sep+"w=0,eta="+eta, degraded(t, "superres:factor=2", 0.1)), problem(d, 20, 3)); !slices.Equal(got, want) {
				t.Errorf("%s with w=0 is not plain sampling", text)
			}
		}
	}
	for _, text := range []string{"dps:zeta=0", "mpgd:c=0"} {
		if got := sample(t, method(t, text, degraded(t, "superres:factor=2", 0.1)), problem(d, 20, 3)); far(got, plain(1)) > 1e-13 {
			t.Errorf("%s is not plain sampling: off by %g", text, far(got, plain(1)))
		}
	}
	// What was measured without noise is kept to the last bit or nearly.
	for _, text := range []string{"ddnm", "ddnm+", "repaint", "mcg", "diffpir", "resample", "pigdm", "tmpd:iterations=30"} {
		for _, a := range []string{"superres:factor=2", "inpaint:box=half", "compressed:ratio=0.5"} {
			m := degraded(t, a, 0)
			x := sample(t, method(t, text, m), problem(d, 30, 3))
			for k := range 3 {
				if r := norm(m.Residual(x[16*k : 16*(k+1)])); !(r < within(text)) {
					t.Errorf("%s, %s: |y - A x| = %g", text, a, r)
				}
			}
		}
	}
	// A = I without noise gives the measurement back, whatever the model says.
	for _, text := range []string{"ddnm", "ddnm+", "repaint", "mcg", "diffpir", "resample", "pigdm", "tmpd:iterations=30"} {
		m := degraded(t, "denoise", 0)
		if x := sample(t, method(t, text, m), problem(d, 30, 1)); far(x, m.Y) > within(text) {
			t.Errorf("%s does not give y back where A = I: off by %g", text, far(x, m.Y))
		}
	}
	// Differences in place of the exact gradient.
	for _, text := range []string{"dps:zeta=0.3", "pigdm:w=1", "mcg:w=0.2"} {
		m := degraded(t, "superres:factor=2", 0.1)
		a, b := sample(t, method(t, text, m), problem(d, 50, 20)), sample(t, method(t, text+",grad=fd,fd-step=1e-6", m), problem(d, 50, 20))
		if far(a, b) > 1e-3 {
			t.Errorf("%s by differences is off by %g", text, far(a, b))
		}
	}
	// Resampling that trusts the step alone is DDIM, but for the last step.
	m := degraded(t, "superres:factor=2", 0.1)
	p := problem(d, 20, 3)
	p.Last = 19
	want := sample(t, samplers.DDIM{}, p)
	p.Meter = &models.Meter{}
	if got := sample(t, method(t, "resample:gamma=0,every=1,from=0", m), p); far(got, want) > 1e-13 {
		t.Errorf("resample with gamma=0 is off DDIM by %g", far(got, want))
	}
	// Curvature does nothing to Gaussian data.
	one, err := analytic.New(analytic.Target{Weights: []float64{1}, Means: [][]float64{make([]float64, 16)}, Vars: [][]float64{slices.Repeat([]float64{0.3}, 16)}, Process: vp(), Prediction: schedules.Eps})
	if err != nil {
		t.Fatal(err)
	}
	a := sample(t, method(t, "stsl:second=0.02", m), problem(models.Metered(one), 10, 2))
	b := sample(t, method(t, "stsl:second=0", m), problem(models.Metered(one), 10, 2))
	if far(a, b) > 1e-10 {
		t.Errorf("curvature moves Gaussian data by %g", far(a, b))
	}
}

// blind hides that an operator is linear.
type blind struct{ operators.Operator }

// TestProx: the inner minimisation of operators that are not linear finds what the closed form says.
func TestProx(t *testing.T) {
	for _, a := range []string{"superres:factor=2", "deblur:std=0.7,cutoff=0", "inpaint:box=half"} {
		m := degraded(t, a, 0.1)
		for _, rho := range []float64{1e-2, 1, 100} {
			x, z, w := make([]float64, 16), make([]float64, 16), make([]float64, 16)
			rng.Normal(x, rng.Key{Seed: 3})
			if err := prox(z, m, x, rho); err != nil {
				t.Fatal(err)
			}
			m2 := m
			m2.A = blind{m.A}
			if err := prox(w, m2, x, rho); err != nil {
				t.Fatal(err)
			}
			if far(z, w) > 1e-5 {
				t.Errorf("%s, rho %g: off by %g", a, rho, far(z, w))
			}
			// the closed form is stationary: A^T (A z - y) + rho (z - x) = 0
			g := make([]float64, 16)
			m.A.VJP(g, nil, m.Residual(z))
			for i := range g {
				if v := rho*(z[i]-x[i]) - g[i]; math.Abs(v) > 1e-9 {
					t.Errorf("%s, rho %g: gradient %g", a, rho, v)
				}
			}
		}
	}
}

// half is a codec whose latents are half the picture.
type half struct{}

func (half) times(x *tensor.Dense, f float64) *tensor.Dense {
	v := slices.Clone(models.Data(x))
	for i := range v {
		v[i] *= f
	}
	return models.Wrap(v, x.Shape()...)
}

func (c half) Decode(_ context.Context, z *tensor.Dense) (*tensor.Dense, error) {
	return c.times(z, 2), nil
}
func (c half) Encode(_ context.Context, x *tensor.Dense) (*tensor.Dense, error) {
	return c.times(x, 0.5), nil
}

// TestLatent: resample asks decoder and encoder around its data step, so that the decoded result agrees with what was
// measured of the picture.
func TestLatent(t *testing.T) {
	m := degraded(t, "inpaint:box=half", 0)
	p := problem(scene(t, vp(), schedules.Eps), 20, 2)
	p.Codec = half{}
	z := sample(t, method(t, "resample", m), p)
	for k := range 2 {
		x := slices.Clone(z[16*k : 16*(k+1)])
		for i := range x {
			x[i] *= 2
		}
		if r := norm(m.Residual(x)); !(r < 1e-9) {
			t.Errorf("|y - A D(z)| = %g", r)
		}
	}
}

// TestTravel holds the order of repeated steps.
func TestTravel(t *testing.T) {
	g := schedules.Grid{{T: 5}, {T: 4}, {T: 3}, {T: 2}}
	var got []float64
	for _, n := range Travel(g, 2, 2) {
		got = append(got, n.T)
	}
	if want := []float64{5, 4, 3, 5, 4, 3, 2, 3, 2}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if len(Travel(g, 3, 1)) != 4 || len(Travel(g, 10, 3)) != 4+2*4 {
		t.Error("wrong lengths")
	}
}

func TestRefusals(t *testing.T) {
	phase := degraded(t, "phase", 0.1)
	for _, c := range []struct {
		text string
		m    operators.Measurement
		want string
	}{
		{"ddrm", phase, "needs a linear operator"},
		{"stsl:start=inversion", phase, "use start=noise"},
		{"dps:form=gaussian", degraded(t, "denoise", 0), "divides by the noise"},
	} {
		f, _, err := Parse(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f(c.m); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}
	for text, want := range map[string]string{"dsp": "did you mean dps", "xyzzy": "known: ddnm, ddnm+", "dps:zeat=1": "did you mean zeta", "dps:grad=no": "want one of auto, exact, fd, scalar", "": "empty name"} {
		if _, _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	// a model without gradients
	none := struct{ models.Denoiser }{scene(t, vp(), schedules.Eps)}
	for _, text := range []string{"dps:grad=exact", "pigdm:grad=exact", "mcg:grad=exact"} {
		if _, err := method(t, text, degraded(t, "denoise", 0.1)).Begin(context.Background(), problem(none, 3, 1)); err == nil || !strings.Contains(err.Error(), "needs a model with gradients") {
			t.Errorf("%s on a model without gradients: %v", text, err)
		}
	}
	if w := guidance.WayAuto.For(none); w != guidance.WayDifferences {
		t.Errorf("the best way without gradients is %v", w)
	}
	p := problem(scene(t, vp(), schedules.Eps), 3, 1)
	p.Shape = []int{9}
	if _, err := method(t, "ddrm", degraded(t, "denoise", 0.1)).Begin(context.Background(), p); err == nil || !strings.Contains(err.Error(), "the operator takes") {
		t.Errorf("rows of another size: %v", err)
	}
}
