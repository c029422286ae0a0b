package samplers_test

import (
	"bytes"
	"context"
	"math"
	"math/cmplx"
	"slices"
	"strings"
	"testing"

	"drift/guidance"
	"drift/models"
	"drift/samplers"
)

// TestStabilityTable holds the exact stability limits of the table of section 1 of the notes on momentum, and that they
// are limits: just below no root of the characteristic equation lies outside the unit circle, just above one does.
func TestStabilityTable(t *testing.T) {
	for _, row := range []struct {
		beta float64
		want [8]float64 // GHVB 1 to 5, HB 2, HB 4, Nesterov 4
	}{
		{1.0, [8]float64{2.0000, 1.0000, 0.5455, 0.3000, 0.1633, 1.0000, 0.3000, 0.3000}},
		{0.9, [8]float64{2.4444, 1.1000, 0.5946, 0.3267, 0.1781, 1.2222, 0.3667, 0.3056}},
		{0.8, [8]float64{3.0000, 1.2000, 0.6429, 0.3529, 0.1926, 1.5000, 0.4500, 0.3214}},
		{0.5, [8]float64{6.0000, 1.5000, 0.7826, 0.4286, 0.2346, 3.0000, 0.9000, 0.4500}},
	} {
		b := row.beta
		for i, m := range []samplers.Recurrent{
			samplers.GHVB{Order: 1, Beta: b}, samplers.GHVB{Order: 2, Beta: b}, samplers.GHVB{Order: 3, Beta: b}, samplers.GHVB{Order: 4, Beta: b}, samplers.GHVB{Order: 5, Beta: b},
			samplers.HeavyBall{Order: 2, Beta: b}, samplers.HeavyBall{Order: 4, Beta: b}, samplers.HeavyBall{Order: 4, Beta: b, Nesterov: true},
		} {
			limit := samplers.Stability(m)
			if math.Abs(limit-row.want[i]) > 1e-4 { // printed to four digits
				t.Errorf("%+v: limit %.5f, want %.4f", m, limit, row.want[i])
			}
			if in, out := growth(m, 0.999*limit), growth(m, 1.001*limit); in > 1+1e-9 || out <= 1 {
				t.Errorf("%+v: the largest growth factor is %.6f just below the limit and %.6f just above", m, in, out)
			}
		}
	}
	for k, want := range []float64{2, 1, 6. / 11, 0.3, 90. / 551} {
		if have := samplers.Stability(samplers.PLMS{Order: k + 1}); math.Abs(have-want) > 1e-12 {
			t.Errorf("Adams-Bashforth %d: limit %.6f, want %.6f", k+1, have, want)
		}
	}
}

// growth returns the largest root in modulus of rho = -z tau, by Durand and Kerner's iteration.
func growth(m samplers.Recurrent, z float64) float64 {
	rho, tau := m.Characteristic()
	p := make([]complex128, len(rho))
	for i := range p {
		p[i] = complex((rho[i]+z*tau[i])/(rho[0]+z*tau[0]), 0)
	}
	roots := make([]complex128, len(p)-1)
	for i := range roots {
		roots[i] = cmplx.Pow(0.4+0.9i, complex(float64(i), 0))
	}
	for range 2000 {
		for i, x := range roots {
			v, d := complex(1, 0), complex(1, 0)
			for _, c := range p[1:] {
				v = v*x + c
			}
			for j, y := range roots {
				if j != i {
					d *= x - y
				}
			}
			roots[i] = x - v/d
		}
	}
	worst := 0.0
	for _, x := range roots {
		worst = max(worst, cmplx.Abs(x))
	}
	return worst
}

// TestHeavyBallTable holds the reference values of the problem P-VP for momentum on every base, to 1e-9.
func TestHeavyBallTable(t *testing.T) {
	vp := mustTarget(t, "mix", `{"type":"vp-linear"}`, "eps")
	for _, c := range []struct {
		sampler string
		steps   int
		want    float64
	}{
		{"hb:base=plms2", 10, -0.7474747932},
		{"hb:base=plms4", 10, -0.8596045180},
		{"hb:base=dpmpp-2m", 10, -0.7093511976},
		{"hb:base=dpmpp-2m,lower-order-final=false", 10, -1.3446130464},
		{"hb:base=dpmpp-2m,init=model", 9, -0.6642839775},
		{"hb:base=dpmpp-2m,init=model,lower-order-final=false", 10, -1.3445866666},
	} {
		have, stats := end(t, mustParse(t, c.sampler), vp, pvp(t, vp, c.steps), -0.4)
		if !(math.Abs(have-c.want) < 1e-9) || stats.NFE != float64(c.steps) {
			t.Errorf("%s: %.10f in %g evaluations, want %.10f in %d", c.sampler, have, stats.NFE, c.want, c.steps)
		}
	}
	// The trace of GHVB 3.8.
	p := &samplers.Problem{Model: vp, Grid: pvp(t, vp, 10), Rows: make([]models.Row, 1), Start: models.Wrap([]float64{-0.4}, 1, 1), Noise: samplers.Zero{}}
	var trace []float64
	p.Observe = func(s *samplers.State) error { trace = append(trace, models.Data(s.X)[0]); return nil }
	if _, err := samplers.Sample(context.Background(), mustParse(t, "ghvb"), p); err != nil {
		t.Fatal(err)
	}
	for i, want := range []float64{-0.3947919050, -0.3834798884, -0.3617975457, -0.3254423544, -0.2726376446} {
		if math.Abs(trace[i+1]-want) > 1e-9 {
			t.Errorf("ghvb after step %d: %.10f, want %.10f", i+1, trace[i+1], want)
		}
	}
}

// TestMomentumOff: beta = 1 is the base, for every base; heavy ball on Euler is GHVB of order 1; Nesterov with beta = 1
// is PLMS.
func TestMomentumOff(t *testing.T) {
	for name, d := range targets(t) {
		for a, b := range map[string]string{
			"hb:base=plms1,beta=1": "euler", "hb:base=plms2,beta=1": "plms:order=2", "hb:base=plms4,beta=1": "plms", "hb:base=plms5,beta=1": "plms:order=5",
			"hb:base=dpmpp-2m,beta=1": "dpmpp-2m", "hb:base=dpmpp-2m,beta=1,init=model,lower-order-final=false": "dpmpp-2m:lower-order-final=false",
			"hb:base=unipc1-bh1,beta=1": "unipc:order=1,variant=bh1", "hb:base=unipc2-bh2,beta=1": "unipc", "hb:base=unipc3,beta=1": "unipc:order=3",
			"hb:base=unipc3-bh1,beta=1,variant=parity": "unipc:order=3,variant=bh1",
			"hb:base=plms1,beta=0.7":                   "ghvb:order=1,beta=0.7", "hb:base=ddim,beta=0.3": "hb:base=euler,beta=0.3", "nesterov:beta=1": "plms", "hb": "hb:base=plms4,beta=0.8",
			"hb:order=1.7": "hb:base=plms2,beta=0.7", "hb:order=3,beta=0.4": "hb:base=plms3,beta=0.4",
		} {
			for _, n := range []int{1, 2, 3, 12} {
				p := problem(t, d, n, 3)
				x, _, err := sample(t, a, p)
				if err != nil {
					t.Fatal(a, err)
				}
				y, _, err := sample(t, b, p)
				if err != nil {
					t.Fatal(b, err)
				}
				if g := gap(x, y, 1e-11, 1e-11); g > 1 {
					t.Errorf("%s on %s, %d steps: differs from %s by %.3g of 1e-11: %v, %v", a, name, n, b, g, x, y)
				}
			}
		}
	}
}

// TestMomentumCalms is what momentum is for. On d xb = -xb, an Adams method of order 4 at z = 0.32 diverges and GHVB 3.8
// decays; at z = 0.4 that diverges too and PLMS4 with heavy ball 0.8 decays.
func TestMomentumCalms(t *testing.T) {
	linear := identity{mustTarget(t, "gau", `{"type":"ve"}`, "eps")}
	after := func(s string, z float64) float64 {
		const n = 400
		sb := make([]float64, n+1)
		for i := range sb {
			sb[i] = z * float64(n-i)
		}
		x, _ := end(t, mustParse(t, s), linear, ratios(t, linear, sb), 1)
		return math.Abs(x)
	}
	for _, c := range []struct {
		sampler   string
		z, lo, hi float64
	}{
		{"plms", 0.32, 3.6e5, 4.0e5}, {"ghvb", 0.32, 1e-17, 5e-15}, {"ghvb", 0.40, 1.3e14, 1.7e14}, {"hb", 0.40, 1e-19, 2e-17},
	} {
		if have := after(c.sampler, c.z); have < c.lo || have > c.hi {
			t.Errorf("%s at z = %g: |x| = %.3g after 400 steps, want %.2g to %.2g", c.sampler, c.z, have, c.lo, c.hi)
		}
	}
}

// TestHeavyBallRefusals: what cannot be is refused by name.
func TestHeavyBallRefusals(t *testing.T) {
	for in, want := range map[string]string{
		"hb:base=plms6": "unknown base", "hb:base=heun": "unknown base", "hb:base=unipc7-bh2": "unknown base", "hb:base=unipc2-bh3": "unknown base", "hb:base=unipc": "unknown base",
		"hb:beta=0": "number from", "hb:beta=1.5": "number from", "hb:base=plms4,init=model": "init", "hb:order=1.5,beta=0.2": "with beta", "hb:base=dpmpp-2m,variant=parity": "variant",
		"hb:base=dpmpp-2m,init=zero": "one of", "ghvb:order=3.8,beta=0.5": "with beta", "ltsp-ghvb:order=6": "number from", "ltsp-ghvb:order=2.5,beta=0.1": "with beta",
	} {
		if _, err := samplers.Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): %v, want %q", in, err, want)
		}
	}
	if _, err := samplers.HeavyBallOn("plms4", math.NaN()); err == nil {
		t.Error("beta NaN went through")
	}
}

func guidedProblem(t testing.TB, w float64, steps, rows int) *samplers.Problem {
	m, err := parseTarget(`{"type":"mixture","weights":[0.25,0.25,0.5],"labels":[0,1,1],"means":[[1,0,0.5],[0,1,-0.5],[-1,0,0]],"vars":[[0.05,0.1,0.2],[0.05,0.1,0.1],[0.1,0.1,0.1]],"process":{"type":"vp-linear"},"prediction":"v"}`)
	if err != nil {
		t.Fatal(err)
	}
	p := problem(t, models.Metered(m), steps, rows)
	p.Model = guidance.CFG{W: w}.Guide(models.Metered(m))
	p.Cond = &models.Cond{}
	for k := range rows {
		p.Cond.Classes = append(p.Cond.Classes, k%2)
	}
	return p
}

// TestSplitting runs the Lie-Trotter splitting on a guided model through what every sampler must hold: counts, batches,
// saving, selecting and peeking. Without a guided model it is refused.
func TestSplitting(t *testing.T) {
	const name = "ltsp-ghvb"
	ctx := context.Background()
	for _, steps := range []int{1, 2, 3, 7} {
		p := guidedProblem(t, 3, steps, 4)
		want, res, err := sample(t, name, p)
		if err != nil {
			t.Fatal(err)
		}
		if n := samplers.NFE(mustParse(t, name), p.Grid); n != 2*steps || res.Stats.NFE != float64(2*n) {
			t.Errorf("%d steps: %g evaluations, announced %d guided ones", steps, res.Stats.NFE, n)
		}
		for k := range 4 {
			one := guidedProblem(t, 3, steps, 4)
			one.Rows, one.Cond = one.Rows[k:k+1], one.Cond.Select([]int{k})
			if x, _, err := sample(t, name, one); err != nil || !slices.Equal(x, want[3*k:3*k+3]) {
				t.Errorf("%d steps: row %d alone gives %v, in the batch %v (%v)", steps, k, x, want[3*k:3*k+3], err)
			}
		}
		for at := range steps {
			for _, peek := range []bool{false, true} {
				p := guidedProblem(t, 3, steps, 4)
				run, err := mustParse(t, name).Begin(ctx, p)
				if err != nil {
					t.Fatal(err)
				}
				drive(t, run, at)
				if peek {
					if _, err := run.(samplers.Peeker).Peek(ctx); err != nil {
						t.Fatal(err)
					}
				}
				var buf bytes.Buffer
				if err := run.(samplers.Saver).Save(&buf); err != nil {
					t.Fatal(err)
				}
				again, err := samplers.Resume(ctx, mustParse(t, name), guidedProblem(t, 3, steps, 4), &buf)
				if err != nil {
					t.Fatal(err)
				}
				drive(t, again, steps-at)
				if x := models.Data(again.State().X); !slices.Equal(x, want) {
					t.Errorf("resumed at step %d (peeked: %v): %v, want %v", at, peek, x, want)
				}
				if err := run.(samplers.Selector).Select([]int{2, 0, 0, 1}, nil); err != nil {
					t.Fatal(err)
				}
				drive(t, run, steps-at)
				for j, k := range []int{2, 0, 0, 1} {
					if x := models.Data(run.State().X); !slices.Equal(x[3*j:3*j+3], want[3*k:3*k+3]) {
						t.Errorf("selected at step %d (peeked: %v): row %d is %v, its parent ends at %v", at, peek, j, x[3*j:3*j+3], want[3*k:3*k+3])
					}
				}
			}
		}
	}
	for what, p := range map[string]*samplers.Problem{"a scale of 1": guidedProblem(t, 1, 4, 2), "no guidance": problem(t, targets(t)["flow"], 4, 2)} {
		if _, _, err := sample(t, name, p); err == nil || !strings.Contains(err.Error(), "guided model") {
			t.Errorf("with %s: %v", what, err)
		}
	}
}
