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
		d = g.Guide(d)
	}
	return d
}

// TestOff: scale 1, an empty span and rows without a class give the unguided run bit for bit and cost nothing.
func TestOff(t *testing.T) {
	m := models.Metered(target(t))
	for _, s := range []string{"euler", "dpmpp-2m", "unipc", "dpmpp-2m-sde"} {
		plain, want := run(t, m, s, 8, 10, 1)
		for _, g := range []string{"cfg:w=1", "cfg:w=3,from=0.5,to=0.5"} {
			res, have := run(t, guide(t, m, g), s, 8, 10, 1)
			if !slices.Equal(have, want) || res.Stats.NFE != plain.Stats.NFE {
				t.Errorf("%s with %s differs from the unguided run (%g evaluations against %g)", s, g, res.Stats.NFE, plain.Stats.NFE)
			}
		}
		_, free := run(t, m, s, 8, 10, models.NoClass)
		if _, have := run(t, guide(t, m, "cfg:w=4"), s, 8, 10, models.NoClass); !slices.Equal(have, free) {
			t.Errorf("%s: guidance changed rows without a class", s)
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
	for in, want := range map[string]string{"cgf:w=2": "did you mean cfg", "cfg:scale=2": "unknown option", "cfg:w=x": "finite number", "clip:range=0": "from", "": "empty"} {
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
