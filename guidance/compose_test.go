package guidance_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"drift/guidance"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// systems reads the fixtures of whole methods (testdata/systems.json: cases of the steering goldens, made by
// guidance.py of that set from closed forms and, the statistics, simulation).
func systems(t *testing.T, prefix string) []golden {
	t.Helper()
	raw, err := os.ReadFile("testdata/systems.json")
	if err != nil {
		t.Fatal(err)
	}
	var all, out []golden
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if strings.HasPrefix(c.Name, prefix) {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		t.Fatalf("no case of %s", prefix)
	}
	return out
}

func (c *golden) mixtures(t *testing.T) []*analytic.Mixture {
	t.Helper()
	var list []json.RawMessage
	if err := json.Unmarshal(c.Target, &list); err != nil {
		t.Fatal(err)
	}
	var out []*analytic.Mixture
	for _, text := range list {
		m, err := analytic.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func compose(t testing.TB, c guidance.Composition) models.Denoiser {
	t.Helper()
	d, err := c.Model()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func experts(m []*analytic.Mixture, weights ...float64) (out []guidance.Expert) {
	for i, w := range weights {
		out = append(out, guidance.Expert{Model: models.Metered(m[i]), Weight: w})
	}
	return out
}

func simple(t testing.TB, process, kind string, mean, variance float64) *analytic.Mixture {
	t.Helper()
	m, err := analytic.Parse(fmt.Appendf(nil, `{"type":"mixture","weights":[1],"means":[[%g,0.3]],"vars":[[%g,0.5]],"process":{"type":%q},"prediction":%q}`, mean, variance, process, kind))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestComposeGolden holds mixtures of experts to the joint mixture: posterior weights, the exact noise, the naive one, the
// likeliest expert, and what is left when a source is forgotten.
func TestComposeGolden(t *testing.T) {
	for _, c := range systems(t, "compose-") {
		m := c.mixtures(t)
		if c.Inputs == nil {
			c.composedRuns(t, m)
			continue
		}
		x, prior := get[[][]float64](t, c.Inputs, "x"), get[[]float64](t, c.Inputs, "prior")
		node := m[0].Process().(schedules.Gaussian).At(get[float64](t, c.Inputs, "t"))
		c.near(t, "alpha", node.Alpha, get[float64](t, c.Inputs, "alpha"))
		q := &models.Query{X: models.Wrap(slices.Concat(x...), len(x), m[0].Dim()), Step: models.Step{I: 3}}
		for k := range x {
			q.At, q.Rows = append(q.At, node), append(q.Rows, models.Row{Seed: uint64(k)})
		}
		flat := func(key string) []float64 { return slices.Concat(get[[][]float64](t, c.Expected, key)...) }
		var weights []float64
		report := func(_ *models.Query, w []float64) { weights = slices.Clone(w) }
		e := experts(m, prior...)
		c.all(t, "exact noise", predict(t, compose(t, guidance.Composition{Experts: e, Rule: guidance.Mixture, Report: report}), q), flat("eps_exact"))
		c.all(t, "weights", weights, flat("weights"))
		c.all(t, "naive noise", predict(t, compose(t, guidance.Composition{Experts: e, Rule: guidance.Mixture, Constant: true}), q), flat("eps_naive"))
		forget := slices.Clone(e)
		forget[0].Weight = 0
		c.all(t, "noise without the first", predict(t, compose(t, guidance.Composition{Experts: forget, Rule: guidance.Mixture}), q), flat("eps_forget_first"))
		sources := get[[][][]float64](t, c.Expected, "eps_sources")
		top := predict(t, compose(t, guidance.Composition{Experts: e, Rule: guidance.Mixture, Choice: guidance.Top}), q)
		n := m[0].Dim()
		drawn := predict(t, compose(t, guidance.Composition{Experts: e, Rule: guidance.Mixture, Choice: guidance.Draw}), q)
		for k, i := range get[[]int](t, c.Expected, "top1") {
			c.all(t, "top1", top[k*n:(k+1)*n], sources[k][i])
			if d := drawn[k*n : (k+1)*n]; maxGap(d, sources[k][0]) > 1e-9 && maxGap(d, sources[k][1]) > 1e-9 {
				t.Errorf("%s: row %d is no expert's", c.Name, k)
			}
		}
	}
}

// composedRuns samples a mixture of two sources three ways; averaging lands between them.
func (c *golden) composedRuns(t *testing.T, m []*analytic.Mixture) {
	var stats []struct {
		Stat     string
		Value    float64
		SE       float64 `json:"value_se"`
		SD       float64 `json:"run_sd"`
		Tol, NSE float64
		N        float64 `json:"n_se"`
	}
	c.read(t, "Stats", &stats)
	comp := guidance.Composition{Experts: experts(m, 0.7, 0.3), Rule: guidance.Mixture}
	switch c.Name {
	case "compose-naive":
		comp.Constant = true
	case "compose-top1":
		comp.Choice = guidance.Top
	}
	var times []float64
	for i := 50; i > 0; i-- {
		times = append(times, math.RoundToEven(999*float64(i)/50))
	}
	s, err := samplers.Parse("ddim:eta=1")
	if err != nil {
		t.Fatal(err)
	}
	const runs = 8000 // any number will do: the tolerance knows it
	p := &samplers.Problem{Model: compose(t, comp), Grid: nodes(t, m[0].Process(), times), Shape: []int{1}}
	for k := range runs {
		p.Rows = append(p.Rows, models.Row{Seed: uint64(k)})
	}
	res, err := samplers.Sample(context.Background(), s, p)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[bool]float64{true: 50, false: 100}[c.Name == "compose-top1"]; res.Stats.NFE != want {
		t.Errorf("%s: %g evaluations per image, want %g", c.Name, res.Stats.NFE, want)
	}
	for _, st := range stats {
		got := 0.0
		for _, x := range models.Data(res.X) {
			switch st.Stat {
			case "mean":
				got += x / runs
			case "fraction within 0.9 of -2":
				if math.Abs(x+2) < 0.9 {
					got += 1. / runs
				}
			case "fraction within 0.9 of 2":
				if math.Abs(x-2) < 0.9 {
					got += 1. / runs
				}
			default:
				t.Fatalf("unknown statistic %q", st.Stat)
			}
		}
		if gap := st.Tol + st.N*math.Sqrt(st.SD*st.SD/runs+st.SE*st.SE); math.Abs(got-st.Value) > gap {
			t.Errorf("%s: %s is %.4f, want %.4f within %.4f", c.Name, st.Stat, got, st.Value, gap)
		}
	}
}

// read takes a field of a case that the type golden does not have.
func (c *golden) read(t *testing.T, key string, into any) {
	t.Helper()
	raw, err := os.ReadFile("testdata/systems.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		var name string
		if err := json.Unmarshal(m["name"], &name); err != nil {
			t.Fatal(err)
		}
		if name == c.Name {
			if err := json.Unmarshal(m[strings.ToLower(key)], into); err != nil {
				t.Fatalf("%s: %s: %v", c.Name, key, err)
			}
		}
	}
}

// TestComposeAlgebra: a composition's score is the weighted sum of the experts' scores, whatever they predict and on every
// process; its parts add up; the average of two Gaussians N(m_i, v) at one noise level is the Gaussian about the weighted
// mean; a power of a Gaussian has its variance divided.
func TestComposeAlgebra(t *testing.T) {
	for _, process := range []string{"vp-linear", "flow", "edm", "cosine"} {
		for _, kind := range []string{"eps", "x0", "v", "velocity", "score"} {
			if process == "edm" && kind == "v" {
				continue
			}
			a, b := simple(t, process, kind, 1, 0.4), simple(t, process, "eps", -2, 0.9)
			gau := a.Process().(schedules.Gaussian)
			q := &models.Query{X: models.Wrap([]float64{0.3, -0.2, -0.7, 0.9}, 2, 2), At: []schedules.Node{gau.AtRatio(0.8), gau.AtRatio(2)}}
			score := func(p *models.Pred, k int) []float64 {
				out := slices.Clone(models.Data(p.Out)[2*k : 2*k+2])
				cx, co, err := schedules.Convert(gau, p.Kind, schedules.Score, q.At[k])
				if err != nil {
					t.Fatal(err)
				}
				for j := range out {
					out[j] = cx*models.Data(q.X)[2*k+j] + co*out[j]
				}
				return out
			}
			for _, w := range [][]float64{{1, 1}, {2, -0.5}, {0.25, 0.75}, {1.5, 0}} {
				for _, rule := range []guidance.Rule{guidance.Product, guidance.Average} {
					d := compose(t, guidance.Composition{Experts: experts([]*analytic.Mixture{a, b}, w...), Rule: rule})
					var p models.Pred
					if err := d.Predict(context.Background(), q, &p); err != nil {
						t.Fatal(err)
					}
					sum := 1.0
					if rule == guidance.Average {
						sum = w[0] + w[1]
					}
					for k, node := range q.At {
						sa, sb := make([]float64, 2), make([]float64, 2)
						row := models.Data(q.X)[2*k : 2*k+2]
						if err := a.Score(sa, row, node, models.NoClass); err != nil {
							t.Fatal(err)
						}
						if err := b.Score(sb, row, node, models.NoClass); err != nil {
							t.Fatal(err)
						}
						for j, v := range score(&p, k) {
							if want := (w[0]*sa[j] + w[1]*sb[j]) / sum; math.Abs(v-want) > 1e-12*(1+math.Abs(want)) {
								t.Errorf("%s of %v on %s, %s: score %g, want %g", rule, w, process, kind, v, want)
							}
						}
					}
					if len(p.Parts) == 0 && !(w[1] == 0 && rule == guidance.Average) {
						t.Errorf("%s of %v: no parts", rule, w)
					}
					total := 0.0
					for _, part := range p.Parts {
						total += part.Weight
						if part.Kind != p.Kind {
							t.Errorf("a part of kind %v in an answer of kind %v", part.Kind, p.Kind)
						}
					}
					if want := (w[0] + w[1]) / sum; len(p.Parts) > 0 && math.Abs(total-want) > 1e-15 {
						t.Errorf("%s of %v: parts weigh %g, want %g", rule, w, total, want)
					}
				}
			}
			// A power: the data's variance divided, where the noise is small.
			d := compose(t, guidance.Composition{Experts: experts([]*analytic.Mixture{a}, 2.5), Rule: guidance.Anneal})
			q.At = []schedules.Node{gau.AtRatio(1e-5), gau.AtRatio(1e-5)}
			var p models.Pred
			if err := d.Predict(context.Background(), q, &p); err != nil {
				t.Fatal(err)
			}
			for j, s := range score(&p, 0) {
				x, mean, v := models.Data(q.X)[j]/q.At[0].Alpha, []float64{1, 0.3}[j], []float64{0.4, 0.5}[j]
				if want := -(x - mean) / (v / 2.5) / q.At[0].Alpha; math.Abs(s-want) > 2e-3*math.Abs(want) && kind != "x0" && kind != "v" && kind != "velocity" {
					t.Errorf("annealed on %s, %s: score %g, want about %g", process, kind, s, want)
				}
			}
		}
	}
}

// TestComposeSame: what must change nothing changes no bit; identical experts in any mixture are that expert; a mixture of
// the classes of a target is the target.
func TestComposeSame(t *testing.T) {
	m := target(t)
	q := question(m.Process())
	alone := predict(t, m, q)
	other := models.Metered(weak(t))
	for _, c := range []guidance.Composition{
		{Experts: []guidance.Expert{{Model: m, Weight: 1}}},
		{Experts: []guidance.Expert{{Model: m, Weight: 1}, {Model: other}}},
		{Experts: []guidance.Expert{{Model: m, Weight: 7}}, Rule: guidance.Average},
		{Experts: []guidance.Expert{{Model: m, Weight: 0.3}, {Model: other}}, Rule: guidance.Mixture},
		{Experts: []guidance.Expert{{Model: m, Weight: 1}}, Rule: guidance.Anneal},
	} {
		if !slices.Equal(predict(t, compose(t, c), q), alone) {
			t.Errorf("%s of one expert is not that expert", c.Rule)
		}
	}
	for _, c := range []guidance.Composition{
		{Experts: []guidance.Expert{{Model: m, Weight: 0.25}, {Model: target(t), Weight: 0.75}}, Rule: guidance.Mixture},
		{Experts: []guidance.Expert{{Model: m, Weight: 0.25}, {Model: target(t), Weight: 0.75}}, Rule: guidance.Average},
	} {
		if gap := maxGap(predict(t, compose(t, c), q), alone); gap > 1e-14 {
			t.Errorf("%s of equal experts: off by %g", c.Rule, gap)
		}
	}
	zero, one := 0, 1
	d := compose(t, guidance.Composition{Rule: guidance.Mixture, Experts: []guidance.Expert{{Model: m, Class: &zero, Weight: 0.5}, {Model: m, Class: &one, Weight: 0.5}}})
	q.Cond = nil
	if gap := maxGap(predict(t, d, q), predict(t, m, q)); gap > 1e-14 {
		t.Errorf("the mixture of the classes is off the whole by %g", gap)
	}
	// Asked without a class, every expert answers without.
	q.Cond = &models.Cond{Classes: []int{0, models.NoClass, 0}}
	have, all := predict(t, d, q), predict(t, m, &models.Query{X: q.X, At: q.At})
	if gap := maxGap(have[2:4], all[2:4]); gap > 1e-14 {
		t.Errorf("the unconditional row is off by %g", gap)
	}
}

// TestComposeGuided: classifier-free guidance around a product of two classes is the product of the guided experts, and its
// parts are all four experts with their exponents.
func TestComposeGuided(t *testing.T) {
	m := target(t)
	zero, one := 0, 1
	product := guidance.Composition{Experts: []guidance.Expert{{Name: "a", Model: m, Class: &zero, Weight: 1}, {Name: "b", Model: m, Class: &one, Weight: 0.5}}}
	q := question(m.Process())
	q.Cond = &models.Cond{Classes: []int{0, 0, 0}}
	d := guidance.CFG{W: 3}.Guide(compose(t, product))
	var p models.Pred
	if err := d.Predict(context.Background(), q, &p); err != nil {
		t.Fatal(err)
	}
	have := slices.Clone(models.Data(p.Out))
	if len(p.Parts) != 4 {
		t.Fatalf("%d parts, want 4", len(p.Parts))
	}
	sum := make([]float64, len(have))
	for i, part := range p.Parts {
		if want := []float64{3, 1.5, -2, -1}[i]; part.Weight != want {
			t.Errorf("part %s has weight %g, want %g", part.Name, part.Weight, want)
		}
		for j, v := range models.Data(part.Out) {
			sum[j] += part.Weight * v
		}
	}
	if gap := maxGap(sum, have); gap > 1e-12 {
		t.Errorf("the parts add up to something off by %g", gap)
	}
	want := make([]float64, len(have))
	for i, class := range []int{0, 1} {
		q.Cond = &models.Cond{Classes: []int{class, class, class}}
		for j, v := range predict(t, guidance.CFG{W: 3}.Guide(m), q) {
			want[j] += []float64{1, 0.5}[i] * v
		}
	}
	if gap := maxGap(have, want); gap > 1e-12 {
		t.Errorf("guidance around the product is off the product of the guided by %g", gap)
	}
}

// TestComposeVJP: gradients against finite differences, experts of unlike predictions included.
func TestComposeVJP(t *testing.T) {
	cot := models.Wrap([]float64{0.5, -1, 2, 0.3, -0.7, 1.5}, 3, 2)
	for _, process := range []schedules.Gaussian{schedules.VPLinear{}, schedules.Flow{}} {
		for i, kind := range kinds {
			a, b := as(t, target(t), kind, process), as(t, weak(t), kinds[(i+2)%len(kinds)], process)
			for _, c := range []guidance.Composition{
				{Experts: []guidance.Expert{{Model: models.Metered(a), Weight: 1.5}, {Model: models.Metered(b), Weight: -0.3}}},
				{Experts: []guidance.Expert{{Model: models.Metered(a), Weight: 2}}, Rule: guidance.Anneal},
				{Experts: []guidance.Expert{{Model: models.Metered(a), Weight: 0.4}, {Model: models.Metered(b), Weight: 0.6}}, Rule: guidance.Mixture},
				{Experts: []guidance.Expert{{Model: models.Metered(a), Weight: 0.4}, {Model: models.Metered(b), Weight: 0.6}}, Rule: guidance.Mixture, Constant: true},
			} {
				d := compose(t, c)
				q := question(process)
				var p models.Pred
				grad := models.New(3, 2)
				for range 2 { // asked twice: the second time in used memory
					if err := d.(models.VJP).VJP(context.Background(), q, &p, cot, grad); err != nil {
						t.Fatal(err)
					}
				}
				if gap := maxGap(models.Data(p.Out), predict(t, d, q)); gap > 1e-13 {
					t.Errorf("%s, %v: the answer beside the gradient is off by %g", c.Rule, kind, gap)
				}
				x := models.Data(q.X)
				for j := range x {
					const h = 1e-5
					was, side := x[j], [2]float64{}
					for s, step := range []float64{h, -h} {
						x[j] = was + step
						for k, v := range predict(t, d, q) {
							side[s] += v * models.Data(cot)[k]
						}
					}
					x[j] = was
					if want, have := (side[0]-side[1])/(2*h), models.Data(grad)[j]; math.Abs(have-want) > 1e-6*(1+math.Abs(want)) {
						t.Errorf("%s of %v on %s: gradient %d is %g, finite difference %g", c.Rule, kind, process.Name(), j, have, want)
					}
				}
			}
		}
	}
}

// TestComposeRefused: what cannot be composed is named.
func TestComposeRefused(t *testing.T) {
	m := target(t)
	three, ten := 3, 10
	flow := as(t, m, schedules.Velocity, schedules.Flow{})
	for want, c := range map[string]guidance.Composition{
		"there is no model":                {},
		"unknown rule":                     {Rule: "sum", Experts: []guidance.Expert{{Model: m, Weight: 1}}},
		"another noise schedule":           {Experts: []guidance.Expert{{Name: "a", Model: m, Weight: 1}, {Name: "b", Model: flow, Weight: 1}}},
		"arrays of shape":                  {Experts: []guidance.Expert{{Model: m, Weight: 1}, {Model: mono(t), Weight: 1}}},
		"no class 3":                       {Experts: []guidance.Expert{{Model: m, Class: &three, Weight: 1}}},
		"no class 10":                      {Experts: []guidance.Expert{{Model: m, Class: &ten, Weight: 1}}},
		"sum to 0":                         {Experts: []guidance.Expert{{Model: m, Weight: 1}, {Model: m, Weight: -1}}},
		"anneal takes one model":           {Rule: guidance.Anneal, Experts: []guidance.Expert{{Model: m, Weight: 1}, {Model: m, Weight: 1}}},
		"shares of a mixture":              {Rule: guidance.Mixture, Experts: []guidance.Expert{{Model: m, Weight: 1}, {Model: m, Weight: -0.1}}},
		"does not know its density":        {Rule: guidance.Mixture, Experts: []guidance.Expert{{Model: m, Weight: 1}, {Name: "stub", Model: &stub{}, Weight: 1}}},
		"is guided":                        {Rule: guidance.Mixture, Experts: []guidance.Expert{{Model: guidance.CFG{W: 2}.Guide(m), Weight: 1}, {Model: m, Weight: 1}}},
		"belong to the rule mixture":       {Constant: true, Experts: []guidance.Expert{{Model: m, Weight: 1}}},
		"remembers earlier answers":        {Experts: []guidance.Expert{{Model: guidance.APG{W: 2, Beta: -0.5}.Guide(m), Weight: 1}}},
		"the weight of model 0 is NaN":     {Experts: []guidance.Expert{{Model: m, Weight: math.NaN()}}},
		"cannot be constant and come from": {Rule: guidance.Mixture, Constant: true, Of: sourceless{}, Experts: []guidance.Expert{{Model: m, Weight: 1}}},
	} {
		if _, err := c.Model(); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "guidance: compose: ") {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
	q := question(m.Process())
	q.Cond.Classes[1] = 2
	var p models.Pred
	if err := compose(t, guidance.Composition{Experts: []guidance.Expert{{Model: m, Weight: 2}}}).Predict(context.Background(), q, &p); err == nil || !strings.Contains(err.Error(), "no class 2") {
		t.Errorf("%v", err)
	}
}

type sourceless struct{}

func (sourceless) LogProb(context.Context, *models.Query, int, []float64) error { return nil }

func TestParseTerms(t *testing.T) {
	type terms = []guidance.Term
	for _, c := range []struct {
		texts   []string
		weights string
		want    terms
	}{
		{[]string{"a:fashion:sneaker,b:fashion:bag"}, "", terms{{"a", "fashion", "sneaker", 1}, {"b", "fashion", "bag", 1}}},
		{[]string{"a:fashion-flow , b:x/y.json:3"}, "1, -0.5", terms{{"a", "fashion-flow", "", 1}, {"b", "x/y.json", "3", -0.5}}},
		{[]string{"a:one.json,b:two.json", "0.7*a + 0.3*b"}, "", terms{{"a", "one.json", "", 0.7}, {"b", "two.json", "", 0.3}}},
		{[]string{"0.7*b - .5*a", "a:one.json:1,b:two.json"}, "", terms{{"b", "two.json", "", 0.7}, {"a", "one.json", "1", -0.5}}},
		{[]string{"-0.5*fashion-flow:bag+1e-3*fashion-flow:shirt"}, "", terms{{"fashion-flow:bag", "fashion-flow", "bag", -0.5}, {"fashion-flow:shirt", "fashion-flow", "shirt", 1e-3}}},
		{[]string{"fashion"}, "2", terms{{"fashion", "fashion", "", 2}}},
		{[]string{"2*fashion"}, "", terms{{"fashion", "fashion", "", 2}}},
		{[]string{"toy-1e-5.json + b.json"}, "", terms{{"toy-1e-5.json", "toy-1e-5.json", "", 1}, {"b.json", "b.json", "", 1}}},
	} {
		have, err := guidance.ParseTerms(c.texts, c.weights)
		if err != nil || !slices.Equal(have, c.want) {
			t.Errorf("%q: %v, %v; want %v", c.texts, have, err, c.want)
		}
	}
	for _, c := range []struct {
		text, weights, want string
	}{
		{"", "", "empty text"}, {"a:b:c:d", "", "want NAME:MODEL"}, {"a:,b:c", "", "want NAME:MODEL"}, {"a:x,a:y", "", "twice"}, {"a:x,b:y", "1", "1 weights for 2 models"},
		{"a:x,b:y", "1,inf", "not a finite number"}, {"0.7*a + ", "", "at the end"}, {"2*a + 2*a", "", "twice"}, {"x*a", "", "not a finite number"}, {"2*a", "1", "beside a sum"},
		{"a + + b", "", "before place 5"}, {"2*3*a", "", "want WEIGHT*NAME"}, {"2*a b", "", "want WEIGHT*NAME"}, {"a: + b", "", "want MODEL"},
	} {
		if have, err := guidance.ParseTerms([]string{c.text}, c.weights); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q %q: %v, %v; want an error with %q", c.text, c.weights, have, err, c.want)
		}
	}
	for _, texts := range [][]string{{"ab:x,b:y", "ac + b"}, {"a:x,b:y", "a"}, {"a + b", "a - b"}, nil} {
		if have, err := guidance.ParseTerms(texts, ""); err == nil {
			t.Errorf("%q: %v", texts, have)
		}
	}
}

func FuzzParseTerms(f *testing.F) {
	for _, s := range []string{"a:fashion:sneaker,b:fashion:bag", "0.7*a + 0.3*b", "-1e-3*x.json - 2*fashion-flow:3", "a:", "*", "+-"} {
		f.Add(s, "1,2")
		f.Add(s, "")
	}
	f.Fuzz(func(t *testing.T, text, weights string) {
		terms, err := guidance.ParseTerms([]string{text}, weights)
		if err != nil {
			return
		}
		for _, m := range terms {
			if m.Model == "" || m.Weight-m.Weight != 0 {
				t.Errorf("%q: %v", text, m)
			}
		}
	})
}

// A product of two classes of one target, and the mixture of the same two.
func ExampleComposition() {
	m, err := analytic.Parse([]byte(labelled))
	if err != nil {
		panic(err)
	}
	left, right := 0, 1
	x := models.Wrap([]float64{0.4, 0}, 1, 2)
	q := &models.Query{X: x, At: []schedules.Node{m.Process().(schedules.Gaussian).AtRatio(0.5)}}
	for _, rule := range []guidance.Rule{guidance.Product, guidance.Mixture} {
		d, err := guidance.Composition{Rule: rule, Experts: []guidance.Expert{
			{Name: "left", Model: m, Class: &left, Weight: 1}, {Name: "right", Model: m, Class: &right, Weight: 1},
		}}.Model()
		if err != nil {
			panic(err)
		}
		var p models.Pred
		if err := d.Predict(context.Background(), q, &p); err != nil {
			panic(err)
		}
		fmt.Printf("%s: eps %.3f, %d parts\n", rule, models.Data(p.Out)[0], len(p.Parts))
	}
	// Output:
	// product: eps 0.894, 2 parts
	// mixture: eps -0.266, 0 parts
}
