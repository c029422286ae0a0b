package guidance_test

import (
	"math"
	"slices"
	"testing"

	"drift/guidance"
	"drift/models"
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
	for _, bad := range []string{"blend:classes=1", "blend:classes=0+0.5", "blend:strikes=0+1", "blend:rule=lerp"} {
		if _, err := guidance.Parse(bad); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
