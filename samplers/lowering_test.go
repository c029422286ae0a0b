package samplers_test

import (
	"math"
	"testing"

	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// TestLowerOrderFinal: every multistep method takes the option, and it does something. With it the last step of the
// methods on (xb, sb) is Euler's; without, it is not.
func TestLowerOrderFinal(t *testing.T) {
	vp := targets(t)["vp-linear"]
	g, err := schedules.NewGrid(gauss(vp), "lambda", 6, schedules.Ends{Final: "min"})
	if err != nil {
		t.Fatal(err)
	}
	run := func(s string) (states [][]float64) {
		p := problem(t, vp, 6, 2)
		p.Grid = g
		p.Observe = func(s *samplers.State) error {
			states = append(states, append([]float64(nil), models.Data(s.X)...))
			return nil
		}
		if _, _, err := sample(t, s, p); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		return states
	}
	euler := func(x []float64) []float64 {
		p := problem(t, vp, 1, 2)
		p.Grid, p.Start = g[5:], models.Wrap(append([]float64(nil), x...), 2, 3)
		y, _, err := sample(t, "euler", p)
		if err != nil {
			t.Fatal(err)
		}
		return y
	}
	far := func(a, b []float64) (d float64) {
		for i := range a {
			d = max(d, math.Abs(a[i]-b[i]))
		}
		return d
	}
	for _, s := range []string{"plms:", "plms:order=5,", "ipndm:", "pndm:", "pndm:skip-prk=false,", "lms:", "ipndm-v:", "ipndm-v:parity=true,", "deis:", "deis:basis=sigma,", "deis:basis=time,",
		"dpm-solver-2m:", "dpm-solver-3m:", "dpmpp-2m:", "dpmpp-3m:", "ghvb:order=4,beta=1,", "nesterov:beta=1,", "hb:base=plms3,beta=1,"} {
		low, high := run(s+"lower-order-final=true"), run(s+"lower-order-final=false")
		if d := far(low[6], euler(low[5])); d > 1e-12 {
			t.Errorf("%s: the last step is off Euler's by %.2g", s, d)
		}
		if d := far(high[6], euler(high[5])); d < 1e-6 {
			t.Errorf("%s: the last step is Euler's without the option", s)
		}
	}
	for _, s := range []string{"ghvb:", "nesterov:", "hb:", "hb:base=dpmpp-2m,", "hb:base=unipc2,", "unipc:", "sa:tau=0,", "dpmpp-2m-sde:", "dpmpp-3m-sde:", "dpm-solver-2m-sde:"} {
		if low, high := run(s+"lower-order-final=true"), run(s+"lower-order-final=false"); far(low[6], high[6]) < 1e-6 {
			t.Errorf("%s: the option does nothing", s)
		}
	}
	for _, s := range []string{"plms:", "ghvb:", "lms:"} {
		if a, b := run(s+"lower-order-final=true,lower-below=6"), run(s+"lower-order-final=false"); far(a[6], b[6]) != 0 {
			t.Errorf("%s: lowered on a grid of lower-below steps", s)
		}
	}
}
