package guidance_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"drift/guidance"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

const labelled = `{"type":"mixture","weights":[0.5,0.5],"means":[[-1,0],[1,0]],"vars":[[0.25,0.25],[0.25,0.25]],"labels":[0,1],"process":{"type":"vp-linear"},"prediction":"eps"}`

func target(t testing.TB) *analytic.Mixture {
	m, err := analytic.Parse([]byte(labelled))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func run(t testing.TB, d models.Denoiser, sampler string, rows, steps int, class int) (*samplers.Result, []float64) {
	t.Helper()
	s, err := samplers.Parse(sampler)
	if err != nil {
		t.Fatal(err)
	}
	g, err := schedules.NewGrid(schedules.VPLinear{}, "lambda", steps, schedules.Ends{Final: "zero"})
	if err != nil {
		t.Fatal(err)
	}
	p := &samplers.Problem{Model: d, Grid: g, Shape: []int{2}, Cond: &models.Cond{}}
	for k := range rows {
		p.Rows = append(p.Rows, models.Row{Seed: uint64(k)})
		p.Cond.Classes = append(p.Cond.Classes, class)
	}
	res, err := samplers.Sample(context.Background(), s, p)
	if err != nil {
		t.Fatal(err)
	}
	return res, slices.Clone(models.Data(res.X))
}

func guide(t testing.TB, d models.Denoiser, specs ...string) models.Denoiser {
	for _, s := range specs {
		g, err := guidance.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if n, ok := g.(guidance.Needer); ok {
			g = n.With(models.Metered(weak(t)))
		}
		d = g.Guide(d)
	}
	return d
}

// broad is the same target as a weaker model sees it.
const broad = `{"type":"mixture","weights":[0.5,0.5],"means":[[-0.8,0],[0.8,0]],"vars":[[0.6,0.6],[0.6,0.6]],"labels":[0,1],"process":{"type":"vp-linear"},"prediction":"x0"}`

func weak(t testing.TB) *analytic.Mixture {
	m, err := analytic.Parse([]byte(broad))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// layered is a target that a disturbed network sees as broad.
type layered struct {
	*analytic.Mixture
	bad *analytic.Mixture
}

func layers(t testing.TB) models.Denoiser {
	wide := weak(t).Target()
	wide.Prediction = schedules.Eps
	bad, err := analytic.New(wide)
	if err != nil {
		t.Fatal(err)
	}
	return models.Metered(layered{target(t), bad})
}

func (m layered) Unwrap() models.Denoiser { return m.Mixture }

func (m layered) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if q.Hooks == nil {
		return m.Mixture.Predict(ctx, q, p)
	}
	plain := *q
	plain.Hooks = nil
	return m.bad.Predict(ctx, &plain, p)
}

// TestOff: scale 1, weight 0, an empty span and rows without a class give the unguided run bit for bit and cost nothing.
func TestOff(t *testing.T) {
	specs := []string{"cfg:w=1", "cfg:w=3,from=0.5,to=0.5", "cfg:w=3,interval=1-1", "cfg:w=sigma>1e9?3:1", "cfg:w=1,rescale=0.7", "apg:w=1", "cfg-zero:w=1", "tcfg:w=1", "mambo:w=1", "auto:w=1", "pag:w=0",
		"slg:w=0", "classifier:w=0", "classifier:w=0,uncond", "energy:scale=0", "energy:scale=0,through=model"}
	for _, i := range guidance.List() {
		specs = append(specs, i.Name+":to=0", i.Name+":interval=0-0", i.Name+":interval=1e4-inf")
	}
	m := models.Metered(target(t))
	for _, s := range []string{"euler", "dpmpp-2m", "unipc", "dpmpp-2m-sde"} {
		plain, want := run(t, m, s, 8, 10, 1)
		_, free := run(t, m, s, 8, 10, models.NoClass)
		for _, g := range specs {
			res, have := run(t, guide(t, m, g), s, 8, 10, 1)
			if !slices.Equal(have, want) || res.Stats.NFE != plain.Stats.NFE || res.Stats.VJPs != 0 {
				t.Errorf("%s with %s differs from the unguided run (%g evaluations against %g)", s, g, res.Stats.NFE, plain.Stats.NFE)
			}
		}
		for _, g := range []string{"cfg:w=4", "cfg++", "apg", "cfg-zero", "tcfg", "mambo", "classifier"} {
			if res, have := run(t, guide(t, m, g), s, 8, 10, models.NoClass); !slices.Equal(have, free) || res.Stats.NFE != plain.Stats.NFE {
				t.Errorf("%s with %s: guidance changed rows without a class", s, g)
			}
		}
	}
	// CFG++ with lambda = 0 is the unconditional run, with one evaluation a step.
	plain, free := run(t, m, "ddim:eta=0.5", 8, 10, models.NoClass)
	if res, have := run(t, guide(t, m, "cfg++:lambda=0"), "ddim:eta=0.5", 8, 10, 1); !slices.Equal(have, free) || res.Stats.NFE != plain.Stats.NFE {
		t.Error("cfg++ with lambda = 0 is not the unconditional run")
	}
}

// TestCost: evaluations and gradients of a run of 10 steps.
func TestCost(t *testing.T) {
	for _, c := range []struct {
		guiders   string
		nfe, vjps float64
	}{
		{"cfg", 20, 0}, {"cfg++", 20, 0}, {"apg", 20, 0}, {"tcfg", 20, 0}, {"mambo", 20, 0}, {"auto", 20, 0}, {"cfg-zero", 18, 0}, {"cfg-zero:zero=0", 20, 0},
		{"cfg:from=0.5", 15, 0}, {"cfg:w=step<3?2:1", 13, 0}, {"pag", 20, 0}, {"slg", 20, 0}, {"cfg;pag", 30, 0}, {"apg;pag", 40, 0}, {"cfg;auto", 30, 0}, {"clip", 10, 0}, {"threshold", 10, 0},
		{"classifier", 10, 0}, {"energy", 10, 0}, {"energy:samples=4", 10, 0}, {"energy:through=model", 20, 10}, {"cfg;energy:through=model", 40, 20},
	} {
		res, _ := run(t, guide(t, layers(t), strings.Split(c.guiders, ";")...), "euler", 2, 10, 1)
		if res.Stats.NFE != c.nfe || res.Stats.VJPs != c.vjps {
			t.Errorf("%s: %g evaluations and %g gradients, want %g and %g", c.guiders, res.Stats.NFE, res.Stats.VJPs, c.nfe, c.vjps)
		}
	}
}

// TestCFG: the guided prediction is uncond + w (cond - uncond), a guided step costs two evaluations, and guidance raises
// log p(class | x).
func TestCFG(t *testing.T) {
	m := target(t)
	d := guide(t, models.Metered(m), "cfg:w=2.5")
	x := models.Wrap([]float64{0.3, -0.2, -0.7, 0.9}, 2, 2)
	n := schedules.VPLinear{}.At(0.4)
	ask := func(d models.Denoiser, classes ...int) []float64 {
		var p models.Pred
		if err := d.Predict(context.Background(), &models.Query{X: x, At: []schedules.Node{n, n}, Cond: &models.Cond{Classes: classes}}, &p); err != nil {
			t.Fatal(err)
		}
		return slices.Clone(models.Data(p.Out))
	}
	guided, cond, uncond := ask(d, 0, 1), ask(m, 0, 1), ask(m, models.NoClass, models.NoClass)
	for i := range guided {
		if want := uncond[i] + 2.5*(cond[i]-uncond[i]); math.Abs(guided[i]-want) > 1e-14 {
			t.Errorf("element %d: %g, want %g", i, guided[i], want)
		}
	}
	negative := ask(guide(t, models.Metered(m), "cfg:w=2.5,negative=0"), 1, 1)
	for i, u := range ask(m, 0, 0) {
		if want := u + 2.5*(ask(m, 1, 1)[i]-u); math.Abs(negative[i]-want) > 1e-14 {
			t.Errorf("negative class, element %d: %g, want %g", i, negative[i], want)
		}
	}

	mean := func(d models.Denoiser) (float64, float64) {
		res, xs := run(t, d, "dpmpp-2m", 512, 10, 1)
		sum, clean := 0.0, schedules.VPLinear{}.AtRatio(0.01)
		logs := make([]float64, 2)
		for k := range 512 {
			if err := m.LogPosterior(logs, xs[2*k:2*k+2], clean); err != nil {
				t.Fatal(err)
			}
			sum += logs[1] / 512
		}
		return sum, res.Stats.NFE
	}
	plain, one := mean(models.Metered(m))
	strong, two := mean(d)
	if two != 2*one {
		t.Errorf("%g evaluations guided, %g plain", two, one)
	}
	if !(strong > plain+0.01) {
		t.Errorf("mean log p(class | x): %.4f guided, %.4f plain", strong, plain)
	}
}

// TestClip: predicted data stays inside the range; without re-derived noise the model's own is put back, which methods
// without a form for it refuse by name.
func TestClip(t *testing.T) {
	m := models.Metered(target(t))
	d := guide(t, m, "clip:range=0.5")
	_, x := run(t, d, "dpmpp-2m", 32, 10, 1)
	for _, v := range x {
		if math.Abs(v) > 0.5+1e-12 {
			t.Fatalf("%g lies outside the clipped range", v)
		}
	}
	_, plain := run(t, m, "euler", 8, 10, 1)
	if _, wide := run(t, guide(t, m, "clip:range=1000"), "euler", 8, 10, 1); maxGap(plain, wide) > 1e-9 {
		t.Error("a clip that never acts changes the run")
	}
	if _, keep := run(t, guide(t, m, "clip:range=1000,rederive=false"), "ddim:eta=0.5", 8, 10, 1); keep == nil {
		t.Error("no result")
	}
	s, err := samplers.Parse("unipc")
	if err != nil {
		t.Fatal(err)
	}
	g, err := schedules.NewGrid(schedules.VPLinear{}, "lambda", 5, schedules.Ends{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = samplers.Sample(context.Background(), s, &samplers.Problem{Model: guide(t, m, "clip:rederive=false"), Grid: g, Shape: []int{2}, Rows: make([]models.Row, 1)})
	if err == nil || !strings.Contains(err.Error(), "unipc has no form") {
		t.Errorf("unipc with separate noise: %v", err)
	}
}

func maxGap(a, b []float64) float64 {
	worst := 0.0
	for i := range a {
		worst = max(worst, math.Abs(a[i]-b[i]))
	}
	return worst
}

func TestParse(t *testing.T) {
	for in, want := range map[string]string{"cgf:w=2": "did you mean cfg", "cfg:scale=2": "unknown option", "cfg:from=0.9,to=0.1": "beyond to=0.1", "cfg:w=x": "finite number", "clip:range=0": "from", "": "empty",
		"cfg:interval=3-1": "want lo-hi", "cfg:interval=3": "want lo-hi", "apg:interval=inf-inf": "want lo-hi", "cfg:w=nan": "finite number", "cfg:w=1+": "unexpected token", "cfg:w=now()": "unknown name now",
		"cfg:w=sigma>1": "expected float64", "cfg++:lambda=1.5": "from 0 to 1", "threshold:max=0.5": "from 1", "energy:through=net": "one of x0, model", "apg:space=rgb": "one of x0, raw"} {
		if _, err := guidance.Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): %v, want %q", in, err, want)
		}
	}
	for _, i := range guidance.List() {
		if i.Summary == "" || i.Source == "" || i.NFE == "" || len(i.Options) == 0 {
			t.Errorf("%s: the table says too little", i.Name)
		}
	}
}

// Guiders are chained; the first is nearest to the model.
func ExampleParse() {
	m, err := analytic.Parse([]byte(labelled))
	if err != nil {
		fmt.Println(err)
		return
	}
	var d models.Denoiser = models.Metered(m)
	for _, s := range []string{"cfg:w=3", "clip:range=2"} {
		g, err := guidance.Parse(s)
		if err != nil {
			fmt.Println(err)
			return
		}
		d = g.Guide(d)
	}
	var meter models.Meter
	var p models.Pred
	q := &models.Query{X: models.New(1, 2), At: []schedules.Node{schedules.VPLinear{}.At(0.5)}, Cond: &models.Cond{Classes: []int{1}}, Meter: &meter}
	err = d.Predict(context.Background(), q, &p)
	fmt.Println(p.Kind, meter.Evals(), err)
	// Output: x0 2 <nil>
}

// TestParts: a guided answer says what it is made of, and the weighted parts sum up to it; without guidance there are
// none.
func TestParts(t *testing.T) {
	m := models.Metered(target(t))
	q := &models.Query{X: models.Wrap([]float64{0.3, -0.2, -1, 0.5}, 2, 2), At: []schedules.Node{schedules.VPLinear{}.At(0.4), schedules.VPLinear{}.At(0.4)}, Cond: &models.Cond{Classes: []int{0, 1}}}
	var guided, cond models.Pred
	if err := guide(t, m, "cfg:w=3").Predict(context.Background(), q, &guided); err != nil {
		t.Fatal(err)
	}
	if err := guide(t, m, "cfg:w=1").Predict(context.Background(), q, &cond); err != nil {
		t.Fatal(err)
	}
	if len(cond.Parts) != 0 || len(guided.Parts) != 2 || guided.Parts[0].Name != "cond" || guided.Parts[1].Name != "uncond" {
		t.Fatalf("parts %+v and %+v", guided.Parts, cond.Parts)
	}
	if !slices.Equal(models.Data(guided.Parts[0].Out), models.Data(cond.Out)) {
		t.Error("the part cond is not the conditional prediction")
	}
	for i, have := range models.Data(guided.Out) {
		sum := 0.0
		for _, p := range guided.Parts {
			sum += p.Weight * models.Data(p.Out)[i]
		}
		if math.Abs(sum-have) > 1e-12 {
			t.Errorf("element %d: the parts sum to %g, the prediction is %g", i, sum, have)
		}
	}
}
