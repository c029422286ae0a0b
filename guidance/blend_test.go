package guidance_test

import (
	"bytes"
	"context"
	"math"
	"slices"
	"testing"

	"drift/guidance"
	"drift/models"
	"drift/schedules"
)

// TestOptionPrice: the fixtures, put-call parity, and the price rising with the spot.
func TestOptionPrice(t *testing.T) {
	for _, c := range systems(t, "black-scholes") {
		type row struct{ S, K, Rate, Volatility, Tau, D1, D2, Price, Put float64 }
		in, want := get[[]row](t, c.Inputs, "rows"), get[[]row](t, c.Expected, "rows")
		for i, r := range in {
			price, d1, d2 := guidance.OptionPrice(r.S, r.K, r.Rate, r.Volatility, r.Tau)
			c.near(t, "d1", d1, want[i].D1)
			c.near(t, "d2", d2, want[i].D2)
			c.near(t, "price", price, want[i].Price)
			c.near(t, "put", price-r.S+r.K*math.Exp(-r.Rate*r.Tau), want[i].Put)
			if up, _, _ := guidance.OptionPrice(r.S*1.01, r.K, r.Rate, r.Volatility, r.Tau); up < price {
				t.Errorf("the price falls from %g to %g", price, up)
			}
			code := math.Exp(-d1*d1/2)*r.S - math.Exp(-d2*d2/2)*r.K*math.Exp(-r.Rate*r.Tau)
			if math.Abs(code) > 1e-9*r.S {
				t.Errorf("the published score is %g, which is not zero", code)
			}
		}
	}
}

// TestBlend: blended samples lie between the classes; with one strike black-scholes is clip-min bit for bit, with a strike far
// above the other's one class is asked more; stepwise at 0 is the second class.
func TestBlend(t *testing.T) {
	m := models.Metered(target(t))
	draw := func(spec string) []float64 {
		res, x := run(t, guide(t, m, spec), "euler", 64, 20, 1)
		if res.Stats.NFE != 20 {
			t.Errorf("%s: %g evaluations, want 20", spec, res.Stats.NFE)
		}
		return x
	}
	_, second := run(t, m, "euler", 64, 20, 1)
	if !slices.Equal(draw("blend:rule=stepwise,at=0"), second) {
		t.Error("stepwise at 0 is not the second class")
	}
	low := draw("blend:rule=clip-min")
	if !slices.Equal(low, draw("blend")) {
		t.Error("with one strike black-scholes is not clip-min")
	}
	mean := func(x []float64) (m float64) {
		for j := 0; j < len(x); j += 2 {
			m += x[j] / float64(len(x)/2)
		}
		return m
	}
	if a := mean(low); math.Abs(a) > 0.5 || math.Abs(mean(draw("blend:rule=alternate"))) > 0.5 {
		t.Errorf("a blend of classes at -1 and 1 has the mean %.3f", a)
	}
	if a, b := mean(draw("blend:strikes=100+1000")), mean(draw("blend:strikes=1000+100")); !(a > b) {
		t.Errorf("the class with the higher strike is behind: means %.3f and %.3f", a, b)
	}
	for _, bad := range []string{"blend:classes=1", "blend:classes=0+0.5", "blend:strikes=0+1", "blend:rule=lerp,share=2"} {
		if _, err := guidance.Parse(bad); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

// TestLerp: shares of 0 and 1 are the two classes bit for bit with one evaluation; a half is the mean of the two predictions
// with two; rows without a class stay.
func TestLerp(t *testing.T) {
	m := models.Metered(target(t))
	for class, spec := range []string{"blend:rule=lerp,share=0", "blend:rule=lerp,share=1"} {
		_, want := run(t, m, "euler", 64, 20, class)
		res, have := run(t, guide(t, m, spec), "euler", 64, 20, 1)
		if !slices.Equal(have, want) || res.Stats.NFE != 20 {
			t.Errorf("%s is not class %d, or %g evaluations are not 20", spec, class, res.Stats.NFE)
		}
	}
	if res, _ := run(t, guide(t, m, "blend:rule=lerp"), "euler", 8, 20, 1); res.Stats.NFE != 40 {
		t.Errorf("%g evaluations, want 40", res.Stats.NFE)
	}
	x := models.New(3, 2)
	copy(models.Data(x), []float64{0.3, -0.2, 0.3, -0.2, 0.3, -0.2})
	at := schedules.Node{Alpha: 0.8, Sigma: 0.6, T: 0.5}
	ask := func(d models.Denoiser, classes ...int) []float64 {
		var p models.Pred
		if err := d.Predict(context.Background(), &models.Query{X: x, At: []schedules.Node{at, at, at}, Cond: &models.Cond{Classes: classes}}, &p); err != nil {
			t.Fatal(err)
		}
		return slices.Clone(models.Data(p.Out))
	}
	plain := ask(m, 0, 1, models.NoClass)
	have := ask(guide(t, m, "blend:rule=lerp,share=0.25"), 1, 0, models.NoClass)
	for j := range 2 {
		for row := range 2 {
			if want := 0.75*plain[j] + 0.25*plain[2+j]; math.Abs(have[2*row+j]-want) > 1e-14 {
				t.Errorf("row %d: %g, want %g", row, have[2*row+j], want)
			}
		}
		if have[4+j] != plain[4+j] {
			t.Errorf("a row without a class changes: %g, was %g", have[4+j], plain[4+j])
		}
	}
}

// TestBlendMemory: choices move with their rows under Select and come back with Load.
func TestBlendMemory(t *testing.T) {
	m := target(t)
	x := models.New(3, 2)
	copy(models.Data(x), []float64{-1.5, 0, 1.5, 0, -1.4, 0})
	at := schedules.Node{Alpha: 0.9, Sigma: math.Sqrt(1 - 0.81), T: 0.5}
	ask := func(d models.Denoiser, step int) []float64 {
		q := &models.Query{X: x, At: []schedules.Node{at, at, at}, Cond: &models.Cond{Classes: []int{1, 1, 1}}, Step: models.Step{I: step, N: 5, From: at, To: at}}
		var p models.Pred
		if err := d.Predict(context.Background(), q, &p); err != nil {
			t.Fatal(err)
		}
		return slices.Clone(models.Data(p.Out))
	}
	one := guide(t, m, "blend:rule=clip-min")
	ask(one, 0) // every row's choice for step 1: the class that is behind
	var saved bytes.Buffer
	keeper, _ := models.As[models.Keeper](one)
	if err := keeper.Save(&saved); err != nil {
		t.Fatal(err)
	}
	want := ask(one, 1)
	two := guide(t, m, "blend:rule=clip-min")
	back, _ := models.As[models.Keeper](two)
	if err := back.Load(bytes.NewReader(saved.Bytes())); err != nil {
		t.Fatal(err)
	}
	if have := ask(two, 1); !slices.Equal(have, want) {
		t.Errorf("after Load %v, want %v", have, want)
	}
	fresh := guide(t, m, "blend:rule=clip-min")
	if have := ask(fresh, 1); slices.Equal(have, want) {
		t.Error("a run that was not loaded answers the same: the test shows nothing")
	}
	three := guide(t, m, "blend:rule=clip-min")
	third, _ := models.As[models.Keeper](three)
	if err := third.Load(bytes.NewReader(saved.Bytes())); err != nil {
		t.Fatal(err)
	}
	sel, _ := models.As[models.Selector](three)
	if err := sel.Select([]int{1, 0, 2}); err != nil {
		t.Fatal(err)
	}
	d := models.Data(x)
	copy(d, []float64{1.5, 0, -1.5, 0, -1.4, 0})
	if have := ask(three, 1); !slices.Equal(have, slices.Concat(want[2:4], want[:2], want[4:])) {
		t.Errorf("after Select %v, want the rows of %v changed", have, want)
	}
	if err := sel.Select([]int{7, 0, 0}); err == nil {
		t.Error("row 7 of 3 is taken")
	}
	if err := third.Load(bytes.NewReader([]byte("no"))); err == nil {
		t.Error("a broken file is read")
	}
}
