package samplers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// The test problems: MIX = 0.4 N(-1, 0.25^2) + 0.6 N(1.5, 0.5^2) and GAU = N(0.5, 0.5^2), whose scores are exact.

func mustTarget(t testing.TB, kind, process, prediction string) models.Denoiser {
	t.Helper()
	body := `"weights":[0.4,0.6],"means":[[-1],[1.5]],"vars":[[0.0625],[0.25]]`
	if kind == "gau" {
		body = `"weights":[1],"means":[[0.5]],"vars":[[0.25]]`
	}
	m, err := analytic.Parse(fmt.Appendf(nil, `{"type":"mixture",%s,"process":%s,"prediction":%q}`, body, process, prediction))
	if err != nil {
		t.Fatal(err)
	}
	return models.Metered(m)
}

func mustParse(t testing.TB, s string) samplers.Sampler {
	t.Helper()
	m, err := samplers.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func gauss(d models.Denoiser) schedules.Gaussian { return d.Process().(schedules.Gaussian) }

// end samples one row from x over the grid, without noise.
func end(t testing.TB, s samplers.Sampler, d models.Denoiser, g schedules.Grid, x float64) (float64, samplers.Stats) {
	t.Helper()
	res, err := samplers.Sample(context.Background(), s, &samplers.Problem{Model: d, Grid: g, Rows: make([]models.Row, 1),
		Start: models.Wrap([]float64{x}, 1, 1), Noise: samplers.Zero{}})
	if err != nil {
		t.Fatal(err)
	}
	return models.Data(res.X)[0], res.Stats
}

func ratios(t testing.TB, d models.Denoiser, sb []float64) schedules.Grid {
	t.Helper()
	g, err := schedules.FromRatios(gauss(d), sb)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func times(t testing.TB, d models.Denoiser, ts []float64) schedules.Grid {
	t.Helper()
	g, err := schedules.FromTimes(gauss(d), ts)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// pvp is P-VP: the linear VP process from t = 1 to 0.001 in n equal steps of time, from x = -0.4.
func pvp(t testing.TB, d models.Denoiser, n int) schedules.Grid {
	ts := make([]float64, n+1)
	for i := range ts {
		ts[i] = 1 + (0.001-1)*float64(i)/float64(n)
	}
	return times(t, d, ts)
}

// pedm is P-EDM: ten Karras nodes from 80 to 0.002, then 0.
func pedm(t testing.TB, d models.Denoiser) schedules.Grid {
	sb := make([]float64, 11)
	hi, lo := math.Pow(80, 1./7), math.Pow(0.002, 1./7)
	for i := range 10 {
		sb[i] = math.Pow(hi+float64(i)/9*(lo-hi), 7)
	}
	return ratios(t, d, sb)
}

// TestTables holds the reference values of the problems P-VP, P-EDM and P-FLOW, to 1e-9.
func TestTables(t *testing.T) {
	vp := mustTarget(t, "mix", `{"type":"vp-linear"}`, "eps")
	edm := mustTarget(t, "mix", `{"type":"edm"}`, "x0")
	flow := mustTarget(t, "mix", `{"type":"flow"}`, "velocity")
	flowGrid := func(n int) schedules.Grid {
		ts := make([]float64, n+1)
		for i := range ts {
			ts[i] = 1 - float64(i)/float64(n)
		}
		return times(t, flow, ts)
	}
	nearGrid := func(n int) schedules.Grid { // start sigma 1 - 1e-6
		g := flowGrid(n)
		g[0] = gauss(flow).At(1 - 1e-6)
		return g
	}
	for _, c := range []struct {
		d       models.Denoiser
		g       schedules.Grid
		x       float64
		sampler string
		want    float64
		nfe     int
	}{
		{vp, pvp(t, vp, 10), -0.4, "ddim", -0.5934680448, 10},
		{vp, pvp(t, vp, 10), -0.4, "dpm-solver-2", -0.6572419166, 20},
		{vp, pvp(t, vp, 10), -0.4, "dpm-solver-3", -0.7348145599, 30},
		{vp, pvp(t, vp, 10), -0.4, "dpmpp-2s", -0.7683583439, 20},
		{vp, pvp(t, vp, 10), -0.4, "dpmpp-3s", -0.7333903065, 30},
		{vp, pvp(t, vp, 10), -0.4, "dpm-solver-2m:lower-order-final=false", -1.3445334709, 10},
		{vp, pvp(t, vp, 10), -0.4, "dpmpp-2m:lower-order-final=false", -1.6460630516, 10},
		{vp, pvp(t, vp, 10), -0.4, "dpmpp-2m", -0.7889163343, 10},
		{vp, pvp(t, vp, 10), -0.4, "dpmpp-2m:solver=heun,lower-order-final=false", -2.0867635830, 10},
		{vp, pvp(t, vp, 10), -0.4, "dpmpp-2m:solver=heun", -0.8035087396, 10},
		{vp, pvp(t, vp, 10), -0.4, "dpmpp-3m:kappa=1,lower-order-final=false", -0.8529627211, 10},
		{vp, pvp(t, vp, 10), -0.4, "dpmpp-3m:kappa=1", -0.8169964056, 10},
		{vp, pvp(t, vp, 10), -0.4, "dpmpp-3m:lower-order-final=false", 0.0574688270, 10},
		{vp, pvp(t, vp, 10), -0.4, "unipc:order=3,corrector=false,lower-order-final=false", 0.0574688270, 10}, // UniP-3 = 3M with kappa 2
		{vp, pvp(t, vp, 10), -0.4, "unipc:order=1,variant=bh1", -0.7230055571, 10},
		{vp, pvp(t, vp, 10), -0.4, "unipc:order=1", -0.6984020497, 10},
		{vp, pvp(t, vp, 10), -0.4, "unipc:order=2,variant=bh1", -0.8510907957, 10},
		{vp, pvp(t, vp, 10), -0.4, "unipc", -0.8152043120, 10},
		{vp, pvp(t, vp, 10), -0.4, "unipc:lower-order-final=false", -1.6452020293, 10},
		{vp, pvp(t, vp, 10), -0.4, "unipc:order=3", -0.8319578959, 10},
		{vp, pvp(t, vp, 10), -0.4, "unipc:order=3,predict=eps", -0.7850791002, 10},
		{vp, pvp(t, vp, 10), -0.4, "unipc:order=3,corrector=false", -0.8225685134, 10},
		{vp, pvp(t, vp, 10), -0.4, "unipc:order=3,variant=bh1", -0.8579398622, 10},
		{vp, pvp(t, vp, 10), -0.4, "sa:predictor=3,corrector=4,tau=0", -0.8579398622, 10}, // = UniPC-3 bh1
		{vp, pvp(t, vp, 10), -0.4, "deis:order=2,lower-order-final=false", -1.0680996955, 10},
		{vp, pvp(t, vp, 10), -0.4, "deis:order=3,lower-order-final=false", -0.9415510655, 10},
		{vp, pvp(t, vp, 10), -0.4, "deis:order=2", -0.7607165838, 10},
		{vp, pvp(t, vp, 10), -0.4, "deis:order=3", -0.7861712379, 10},
		{vp, pvp(t, vp, 10), -0.4, "plms", -0.8552339711, 10},
		{vp, pvp(t, vp, 10), -0.4, "ghvb:order=4", -0.8552339711, 10}, // beta = 1 is PLMS
		{vp, pvp(t, vp, 10), -0.4, "lms", -0.9307174350, 10},
		{vp, pvp(t, vp, 10), -0.4, "deis:order=4,basis=sigma", -0.9307174350, 10},
		{vp, pvp(t, vp, 10), -0.4, "ipndm-v:order=3,parity=true", -0.9310888748, 10},
		{vp, pvp(t, vp, 10), -0.4, "ipndm-v:order=4,parity=true", -0.9293774205, 10},
		{vp, pvp(t, vp, 10), -0.4, "ghvb:order=0.8", -0.4033427706, 10},
		{vp, pvp(t, vp, 10), -0.4, "ghvb:order=1.5", -0.8032192074, 10},
		{vp, pvp(t, vp, 10), -0.4, "ghvb:order=1.8", -0.8622669530, 10},
		{vp, pvp(t, vp, 10), -0.4, "ghvb:order=2.8", -0.9264617421, 10},
		{vp, pvp(t, vp, 10), -0.4, "ghvb:order=3.8", -0.8753952493, 10},
		{vp, pvp(t, vp, 10), -0.4, "ghvb:order=3.9", -0.8656628831, 10},
		{vp, pvp(t, vp, 10), -0.4, "ghvb:order=4.8", -0.7697133753, 10},
		{vp, pvp(t, vp, 10), -0.4, "nesterov:order=4,beta=0.8", -0.8645916360, 10},
		{vp, pvp(t, vp, 10), -0.4, "sa:predictor=2,corrector=2,tau=0", -0.8674437381, 10},
		{vp, pvp(t, vp, 10), -0.4, "sa:predictor=3,corrector=3,tau=0", -0.8589720511, 10},
		{vp, pvp(t, vp, 10), -0.4, "sa:predictor=2,corrector=2,tau=1", 1.4719311568, 10},
		{vp, pvp(t, vp, 10), -0.4, "sa:predictor=3,corrector=3,tau=1", 1.4639970559, 10},
		{vp, pvp(t, vp, 10), -0.4, "heun", -0.7300398080, 20},
		{vp, pvp(t, vp, 10), -0.4, "rk4", -0.7344878331, 40},
		{vp, pvp(t, vp, 20), -0.4, "ddim", -0.7014024656, 20},
		{vp, pvp(t, vp, 20), -0.4, "dpmpp-2m:lower-below=21", -0.8125887573, 20},
		{vp, pvp(t, vp, 20), -0.4, "unipc", -0.8035774409, 20},
		{vp, pvp(t, vp, 20), -0.4, "plms", -0.7489957246, 20},
		{vp, pvp(t, vp, 20), -0.4, "ghvb:order=3.8", -0.7447343348, 20},
		{edm, pedm(t, edm), -32, "euler", -0.1897395101, 10},
		{edm, pedm(t, edm), -32, "edm", -0.8691844399, 19},
		{edm, pedm(t, edm), -32, "dpm-2", -0.7355327264, 19},
		{edm, pedm(t, edm), -32, "lms", -0.4514189748, 10},
		{edm, pedm(t, edm), -32, "dpmpp-2m", -0.8968662042, 10},
		{edm, pedm(t, edm), -32, "dpmpp-2s-ancestral:eta=0", -0.6464965336, 19},
		{edm, pedm(t, edm), -32, "dpmpp-3m-sde:eta=0,kappa=1", -0.9120164604, 10},
		{edm, pedm(t, edm), -32, "unipc:order=3", -1.2718976457, 10},
		{edm, pedm(t, edm), -32, "ipndm", -0.7849855579, 10},
		{edm, pedm(t, edm), -32, "ghvb:order=1.8", -0.5379406596, 10},
		{edm, pedm(t, edm), -32, "ghvb:order=3.8", -0.7803762344, 10},
		{flow, flowGrid(4), -0.4, "euler", -0.0976012183, 4},
		{flow, flowGrid(10), -0.4, "euler", -0.6235307930, 10},
		{flow, flowGrid(20), -0.4, "euler", -0.6836895480, 20},
		{flow, flowGrid(4), -0.4, "heun", -0.8163010973, 7},
		{flow, flowGrid(10), -0.4, "heun", -0.7430403748, 19},
		{flow, flowGrid(20), -0.4, "heun", -0.7315479027, 39},
		{flow, flowGrid(4), -0.4, "midpoint", -0.7045559807, 8},
		{flow, flowGrid(10), -0.4, "midpoint", -0.7251927943, 20},
		{flow, flowGrid(20), -0.4, "midpoint", -0.7272943009, 40},
		{flow, nearGrid(10), -0.4, "dpmpp-2m", -0.7805561499, 10},
		{flow, nearGrid(10), -0.4, "unipc", -0.7806367530, 10},
		{flow, nearGrid(10), -0.4, "unipc:order=3", -0.7697743090, 10},
	} {
		have, stats := end(t, mustParse(t, c.sampler), c.d, c.g, c.x)
		if !(math.Abs(have-c.want) < 1e-9) {
			t.Errorf("%s on %s, %d steps: %.10f, want %.10f", c.sampler, c.d.Process().Name(), len(c.g)-1, have, c.want)
		}
		if stats.NFE != float64(c.nfe) {
			t.Errorf("%s on %s, %d steps: %g evaluations, want %d", c.sampler, c.d.Process().Name(), len(c.g)-1, stats.NFE, c.nfe)
		}
		if n := samplers.NFE(mustParse(t, c.sampler), c.g); n != c.nfe {
			t.Errorf("%s says it takes %d evaluations for %d steps, it takes %d", c.sampler, n, len(c.g)-1, c.nfe)
		}
	}
}

// TestOrders measures the order of convergence on P-ORD (VE from 5 to 0.2, x = 3) from the solver's own start.
func TestOrders(t *testing.T) {
	ve := mustTarget(t, "mix", `{"type":"ve"}`, "x0")
	const exact = 1.467467064724
	grid := func(kind string, n int) schedules.Grid {
		sb := make([]float64, n+1)
		for i := range sb {
			u := float64(i) / float64(n)
			switch kind {
			case "lambda":
				sb[i] = 5 * math.Pow(0.2/5, u)
			case "sigma":
				sb[i] = 5 + (0.2-5)*u
			case "rho7":
				sb[i] = math.Pow(math.Pow(5, 1./7)+(math.Pow(0.2, 1./7)-math.Pow(5, 1./7))*u, 7)
			}
		}
		return ratios(t, ve, sb)
	}
	for _, c := range []struct {
		sampler, grid string
		want          float64
	}{
		{"ddim", "lambda", 1}, {"ddim", "sigma", 1}, {"ddim", "rho7", 1},
		{"dpm-solver-2", "lambda", 2}, {"dpmpp-2s", "rho7", 2}, {"heun", "lambda", 2}, {"midpoint", "rho7", 2}, {"dpm-2", "lambda", 2},
		{"dpm-solver-3", "lambda", 3}, {"dpmpp-3s", "lambda", 3}, {"rk4", "rho7", 4}, {"rk4-38", "lambda", 4},
		{"dpmpp-2m:lower-order-final=false", "lambda", 2}, {"dpmpp-2m:solver=heun,lower-order-final=false", "rho7", 2},
		{"dpm-solver-2m:lower-order-final=false", "lambda", 2},
		{"unipc:order=1,lower-order-final=false", "lambda", 2}, {"unipc:order=2,lower-order-final=false", "lambda", 2.99},
		{"unipc:order=3,lower-order-final=false", "lambda", 2.96},
		{"plms", "lambda", 2}, {"plms", "rho7", 2}, {"deis:order=3,lower-order-final=false", "lambda", 2}, {"lms:order=4", "lambda", 2},
		{"ghvb:order=2.8", "lambda", 2}, {"ghvb:order=3.8", "rho7", 2}, {"nesterov", "lambda", 1},
		{"sa:predictor=2,corrector=2,tau=0,lower-order-final=false", "lambda", 2}, {"sa:predictor=3,corrector=3,tau=0,lower-order-final=false", "lambda", 3},
	} {
		var err []float64
		for _, n := range []int{160, 320, 640} {
			x, _ := end(t, mustParse(t, c.sampler), ve, grid(c.grid, n), 3)
			err = append(err, math.Abs(x-exact))
		}
		order := (math.Log2(err[0]/err[1]) + math.Log2(err[1]/err[2])) / 2
		if math.Abs(order-c.want) > 0.15 {
			t.Errorf("%s on %s: order %.2f, want %.2f (errors %.3g)", c.sampler, c.grid, order, c.want, err)
		}
	}
}

// TestExactStart is kappa: with exact values at the first three nodes, 3M has order 3 with the consistent weight of the
// second difference (kappa = 2) and order 2 with the references' (kappa = 1).
func TestExactStart(t *testing.T) {
	gau := mustTarget(t, "gau", `{"type":"ve"}`, "x0")
	exact := func(x, from, to float64) float64 { return 0.5 + (x-0.5)*math.Sqrt((0.25+to*to)/(0.25+from*from)) }
	for _, c := range []struct {
		kappa string
		want  float64
	}{{"1", 2}, {"2", 3}} {
		var errs []float64
		for _, n := range []int{80, 160, 320} {
			sb := make([]float64, n+1)
			for i := range sb {
				sb[i] = 5 * math.Pow(0.2/5, float64(i)/float64(n))
			}
			// Exact values at nodes 0, 1 and 2 are put in by way of the model: the first two states are replaced.
			p := &samplers.Problem{Model: gau, Grid: ratios(t, gau, sb), Rows: make([]models.Row, 1), Start: models.Wrap([]float64{3}, 1, 1), Noise: samplers.Zero{}}
			p.Observe = func(s *samplers.State) error {
				if s.I <= 2 {
					models.Data(s.X)[0] = exact(3, 5, sb[s.I])
				}
				return nil
			}
			res, err := samplers.Sample(context.Background(), mustParse(t, "dpmpp-3m:lower-order-final=false,kappa="+c.kappa), p)
			if err != nil {
				t.Fatal(err)
			}
			errs = append(errs, math.Abs(models.Data(res.X)[0]-exact(3, 5, 0.2)))
		}
		order := math.Log2(errs[1] / errs[2])
		if math.Abs(order-c.want) > 0.15 {
			t.Errorf("kappa %s: order %.2f, want %.0f (errors %.3g)", c.kappa, order, c.want, errs)
		}
	}
}

// affine is a number c + SUM_j a_j z_j in independent unit normals z_j, as rows of a batch: row 0 is c, row j the
// coefficient a_j. A stochastic solver on an affine model keeps the form, so that the mean and variance of its result
// come out exactly.
type affine struct{ models.Denoiser }

func (a affine) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if err := a.Denoiser.Predict(ctx, q, p); err != nil {
		return err
	}
	zero := *q
	zero.X = models.New(q.X.Shape()...)
	var base models.Pred
	if err := a.Denoiser.Predict(ctx, &zero, &base); err != nil {
		return err
	}
	out, c := models.Data(p.Out), models.Data(base.Out)
	for i := 1; i < len(out); i++ { // the linear part only
		out[i] -= c[i]
	}
	return nil
}

// units gives draw k of a run to row 1+k as 1, all other rows 0.
type units struct{ k map[samplers.Draw]int }

func (u units) Normal(dst []float64, d samplers.Draw) {
	slot := d.Slot
	d.Slot, d.Row = 0, models.Row{}
	if _, ok := u.k[d]; !ok {
		u.k[d] = len(u.k)
	}
	dst[0] = 0
	if slot == 2+u.k[d] {
		dst[0] = 1
	}
}

// TestVariances holds the exact mean and variance after a run on GAU from N(0.5, 0.25 + sigma^2).
func TestVariances(t *testing.T) {
	ve := mustTarget(t, "gau", `{"type":"ve"}`, "x0")
	vp := mustTarget(t, "gau", `{"type":"vp-linear"}`, "eps")
	lambda := func(n int) schedules.Grid {
		sb := make([]float64, n+1)
		for i := range sb {
			sb[i] = 10 * math.Pow(0.01/10, float64(i)/float64(n))
		}
		return ratios(t, ve, sb)
	}
	for _, c := range []struct {
		sampler string
		d       models.Denoiser
		grid    func(int) schedules.Grid
		want    [4]float64 // n = 10, 20, 40, 80
	}{
		{"euler", ve, lambda, [4]float64{.17722714, .21053708, .22946790, .23956199}},
		{"euler-ancestral", ve, lambda, [4]float64{.13558365, .18062118, .21149448, .22970373}},
		{"sa:predictor=1,corrector=0,tau=1", ve, lambda, [4]float64{.13558365, .18062118, .21149448, .22970373}},
		{"sa:predictor=1,corrector=1,tau=1", ve, lambda, [4]float64{.18396, .25943, .27466, .26742}},
		{"dpmpp-2s-ancestral", ve, lambda, [4]float64{.20955580, .23742596, .24662614, .24919755}},
		{"dpmpp-sde", ve, lambda, [4]float64{.22782902, .24438235, .24880817, .24981297}},
		{"dpmpp-2m-sde", ve, lambda, [4]float64{.27318829, .25916115, .25253547, .25071718}},
		{"dpmpp-2m-sde:solver=heun", ve, lambda, [4]float64{.33956706, .27250613, .25537871, .25137865}},
		{"dpmpp-3m-sde:kappa=1", ve, lambda, [4]float64{.30910632, .25887278, .25191790, .25052833}},
		{"dpmpp-3m-sde:kappa=1,variant=diffusers", ve, lambda, [4]float64{.34791511, .29453514, .26882198, .25842193}},
		{"sa:predictor=2,corrector=2,tau=1", ve, lambda, [4]float64{.70021618, .29455838, .25750869, .25162366}},
		{"sa:predictor=3,corrector=3,tau=1", ve, lambda, [4]float64{.32736920, .25388417, .25088240, .25029982}},
		{"edm", ve, lambda, [4]float64{.28707409, .25828131, .25204234, .25057425}},
		{"edm:churn=40", ve, lambda, [4]float64{.32277088, .27290383, .25893538, .25397928}},
		{"ddim:eta=1", vp, func(n int) schedules.Grid { return pvp(t, vp, n) }, [4]float64{.11119412, .15342711, .18827068, .21337584}},
		{"ddim:eta=0.5", vp, func(n int) schedules.Grid { return pvp(t, vp, n) }, [4]float64{.13493644, .18138973, .21115360, .22887502}},
	} {
		for i, n := range []int{10, 20, 40, 80} {
			g := c.grid(n)
			rows := 2 + 3*n // constant, start, noises
			x := make([]float64, rows)
			x[0] = g[0].Alpha * 0.5
			x[1] = math.Sqrt(g[0].Alpha*g[0].Alpha*0.25 + g[0].Sigma*g[0].Sigma)
			res, err := samplers.Sample(context.Background(), mustParse(t, c.sampler), &samplers.Problem{Model: affine{c.d}, Grid: g,
				Rows: make([]models.Row, rows), Start: models.Wrap(x, rows, 1), Noise: units{map[samplers.Draw]int{}}})
			if err != nil {
				t.Fatal(err)
			}
			out, v := models.Data(res.X), 0.0
			for _, a := range out[1:] {
				v += a * a
			}
			tol := 1e-7
			if strings.Contains(c.sampler, "corrector=1") { // printed to five digits
				tol = 6e-6
			}
			if math.Abs(out[0]-0.5*g[n].Alpha) > 1e-7 || math.Abs(v-c.want[i]) > tol {
				t.Errorf("%s, %d steps: mean %.8f, variance %.8f; want %.8f, %.8f", c.sampler, n, out[0], v, 0.5*g[n].Alpha, c.want[i])
			}
		}
	}
}

// TestGaussianMap compares with the exact solution map of the probability-flow ODE of a Gaussian on every process.
func TestGaussianMap(t *testing.T) {
	for process, prediction := range map[string]string{`{"type":"vp-linear"}`: "v", `{"type":"edm"}`: "eps", `{"type":"flow"}`: "velocity", `{"type":"cosine"}`: "x0", `{"type":"vp-discrete"}`: "score"} {
		d := mustTarget(t, "gau", process, prediction)
		sb := make([]float64, 401)
		for i := range sb {
			sb[i] = 50 * math.Pow(0.01/50, float64(i)/400)
		}
		g := ratios(t, d, sb)
		a, b := g[0], g[len(g)-1]
		want := b.Alpha*0.5 + (1.2-a.Alpha*0.5)*math.Sqrt((sq(b.Alpha)*0.25+sq(b.Sigma))/(sq(a.Alpha)*0.25+sq(a.Sigma)))
		for s, tol := range map[string]float64{"ddim": 1e-2, "dpmpp-2m": 1e-4, "unipc:order=3": 2e-5, "dpm-solver-3": 1e-6, "rk4": 1e-8, "lms": 1e-4, "sa:tau=0": 1e-4} {
			if have, _ := end(t, mustParse(t, s), d, g, 1.2); !(math.Abs(have-want) < tol) {
				t.Errorf("%s on %s: %.8f, exact %.8f", s, d.Process().Name(), have, want)
			}
		}
	}
}

func sq(x float64) float64 { return x * x }

// TestStability is the exact real-axis stability limit of d xb = -xb d sb: |z| at which the root -1 appears.
func TestStability(t *testing.T) {
	// eps = xb: a model whose noise prediction is the state itself, on VE.
	linear := identity{mustTarget(t, "gau", `{"type":"ve"}`, "eps")}
	grows := func(s string, z float64) bool {
		const n = 4000
		sb := make([]float64, n+1)
		for i := range sb {
			sb[i] = z * float64(n-i)
		}
		sb[n] = z / 1e6
		x, _ := end(t, mustParse(t, s), linear, ratios(t, linear, sb), 1)
		return math.Abs(x) > 1
	}
	// dxb/dsb = xb integrated downwards decays like exp(-z) per step.
	for s, limit := range map[string]float64{
		"plms:order=1": 2, "plms:order=2": 1, "plms:order=3": 6. / 11, "plms:order=4": 0.3, "plms:order=5": 0.1633,
		"ghvb:order=1,beta=0.8": 3, "ghvb:order=2,beta=0.8": 1.2, "ghvb:order=3,beta=0.8": 0.6429, "ghvb:order=4,beta=0.8": 0.3529, "ghvb:order=5,beta=0.8": 0.1926,
		"ghvb:order=2,beta=0.5": 1.5, "ghvb:order=4,beta=0.9": 0.3267, "nesterov:order=4,beta=0.8": 0.3214, "nesterov:order=4,beta=0.5": 0.45,
	} {
		if grows(s, limit*0.97) || !grows(s, limit*1.03) {
			t.Errorf("%s: the stability limit is not %g (at 0.97 of it grows: %v, at 1.03: %v)", s, limit, grows(s, limit*0.97), grows(s, limit*1.03))
		}
	}
}

type identity struct{ models.Denoiser }

func (identity) Predict(_ context.Context, q *models.Query, p *models.Pred) error {
	x, out := p.Fit(q.X, schedules.Eps)
	copy(out, x)
	return nil
}

// TestOrdersRecorded compares measured convergence with the recorded slopes of the executed references.
func TestOrdersRecorded(t *testing.T) {
	folder := os.Getenv("DRIFT_FIXTURES")
	if folder == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	data, err := os.ReadFile(filepath.Join(folder, "solvers", "orders.json"))
	if err != nil {
		t.Fatal(err)
	}
	var o struct {
		SelfStart map[string]map[string]struct{ Errors []float64 } `json:"self_start"`
	}
	if err := json.Unmarshal(data, &o); err != nil {
		t.Fatal(err)
	}
	ve := mustTarget(t, "mix", `{"type":"ve"}`, "x0")
	compared := 0
	for name, s := range map[string]string{"euler": "euler", "heun": "heun", "midpoint": "midpoint", "rk4 (3/8 rule)": "rk4-38", "dpm-2": "dpm-2"} {
		for grid, want := range o.SelfStart[name] {
			for k, n := range []int{40, 80, 160} {
				sb := make([]float64, n+1)
				for i := range sb {
					u := float64(i) / float64(n)
					switch grid {
					case "A":
						sb[i] = 5 * math.Pow(0.2/5, u)
					case "B":
						sb[i] = 5 + (0.2-5)*u
					case "C":
						sb[i] = math.Pow(math.Pow(5, 1./7)+(math.Pow(0.2, 1./7)-math.Pow(5, 1./7))*u, 7)
					}
				}
				x, _ := end(t, mustParse(t, s), ve, ratios(t, ve, sb), 3)
				if e := math.Abs(x - 1.467467064724343); math.Abs(e-want.Errors[k]) > 1e-11+1e-6*want.Errors[k] {
					t.Errorf("%s on grid %s, %d steps: error %.10g, recorded %.10g", s, grid, n, e, want.Errors[k])
				}
				compared++
			}
		}
	}
	if compared < 30 {
		t.Errorf("only %d errors compared", compared)
	}
}

func parseTarget(text string) (models.Denoiser, error) {
	m, err := analytic.Parse([]byte(text))
	return m, err
}
