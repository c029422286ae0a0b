package samplers

import (
	"math"
	"slices"
	"testing"
)

// TestStepControl holds the step sizes after a series of errors. k-diffusion's are those of its controller written out
// with a list of errors; an overflow shortens the step and leaves no trace.
func TestStepControl(t *testing.T) {
	errs := []float64{1, 0.5, 0.9, 1.1, 8, 0.7, 0.6, 0}
	for _, c := range []struct {
		m    DPMAdaptive
		h    float64
		want []float64
		ok   []bool
	}{
		{DPMAdaptive{P: 0.2, I: 0.6, D: 0.1}, 0.05,
			[]float64{0.0499999999, 0.06135775115659, 0.0577418741117, 0.0566249031663, 0.03242940422771, 0.03665794088107, 0.04060000342218, 0.104202638706},
			[]bool{true, true, true, true, false, true, true, true}},
		{DPMAdaptive{}, 0.05,
			[]float64{0.04999999983333, 0.06271470470331, 0.06495543548308, 0.06292489544202, 0.03374991811321, 0.03798835035567, 0.04496080465176, 0.1154879973419},
			[]bool{true, true, true, true, false, true, true, true}},
		{DPMAdaptive{P: 0.2, I: 0.6, D: 0.1, Eta: 1, Safety: 0.7}, 0.05, // order 1.5
			[]float64{0.0499999998, 0.07380708223208, 0.06539151681896, 0.06288700758514, 0.02433882987748, 0.03097155318875, 0.03790141512356, 0.09743614658387},
			[]bool{true, true, true, true, false, true, true, true}},
		{DPMAdaptive{Order: 2, P: 0.1, I: 0.7, D: 0.2, Safety: 0.9}, 0.1,
			[]float64{0.09999999965, 0.1392699066564, 0.1235139940269, 0.09934236324735, 0.0384917328957, 0.03868663218881, 0.0487304950224, 0.1252708341727},
			[]bool{true, true, false, false, false, true, true, true}},
	} {
		r := &adaptiveRun{run: &run{}, ctl: []float64{c.h, 0, 0}, at: []float64{0}, next: []float64{0}}
		var h []float64
		var ok []bool
		for _, e := range errs {
			ok = append(ok, c.m.judge(r, 0, e, false))
			h = append(h, r.ctl[0])
		}
		if !slices.Equal(ok, c.ok) {
			t.Errorf("%+v: taken %v, want %v", c.m, ok, c.ok)
		}
		for i := range h {
			if math.Abs(h[i]-c.want[i]) > 1e-12 {
				t.Errorf("%+v: step size %.13g after error %d, want %.13g", c.m, h[i], i, c.want[i])
			}
		}
		before := slices.Clone(r.ctl)
		if c.m.judge(r, 0, math.Inf(1), false) || !(r.ctl[0] < before[0]/4) || !slices.Equal(r.ctl[1:], before[1:]) {
			t.Errorf("%+v: an overflow turned %g into %g", c.m, before, r.ctl)
		}
	}
	// Dormand and Prince: h 0.9 e^(-1/5), at most 10 times, not longer after a refusal, a fifth at least. DPM-Solver: h 0.9
	// e^(-1/k) without limits.
	for _, c := range []struct {
		s     stepper
		e     float64
		again bool
		want  float64
		ok    bool
	}{
		{RK45{}, 0.5, false, 2 * 0.9 * math.Pow(0.5, -0.2), true},
		{RK45{}, 0, false, 20, true},
		{RK45{}, 1e-9, true, 2, true},
		{RK45{}, 1, false, 1.8, false},
		{RK45{}, 1e9, true, 0.4, false},
		{RK45{}, math.Inf(1), false, 0.4, false},
		{DPMAdaptive{Plain: true}, 1, false, 1.8, true},
		{DPMAdaptive{Plain: true}, 8, false, 0.9, false},
		{DPMAdaptive{Plain: true, Order: 2, Safety: 0.8}, 0.01, true, 16, true},
		{DPMAdaptive{Plain: true}, math.Inf(1), false, 0.4, false},
	} {
		r := &adaptiveRun{run: &run{}, ctl: []float64{7, 0, 0}, at: []float64{-1}, next: []float64{1}}
		if ok := c.s.judge(r, 0, c.e, c.again); ok != c.ok || math.Abs(r.ctl[0]-c.want) > 1e-12 {
			t.Errorf("%+v: error %g (again %v): taken %v, next %g; want %v, %g", c.s, c.e, c.again, ok, r.ctl[0], c.ok, c.want)
		}
	}
}
