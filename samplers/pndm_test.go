package samplers_test

import (
	"context"
	"math"
	"slices"
	"testing"

	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// TestPNDMCalls: what every step asks, on short grids too, and after a hop up in noise.
func TestPNDMCalls(t *testing.T) {
	edm := targets(t)["edm"]
	for _, c := range []struct {
		sampler string
		sb      []float64
		want    []int
	}{
		{"pndm", []float64{10, 0}, []int{1}},
		{"pndm", []float64{10, 1}, []int{2}},
		{"pndm", []float64{10, 1, 0}, []int{2, 1}},
		{"pndm", []float64{10, 4, 1, 0}, []int{2, 1, 1}},
		{"pndm", []float64{10, 4, 1, 5, 2, 1, 0}, []int{2, 1, 0, 2, 1, 1}},
		{"pndm:skip-prk=false", []float64{10, 0}, []int{1}},
		{"pndm:skip-prk=false", []float64{10, 1}, []int{4}},
		{"pndm:skip-prk=false", []float64{10, 1, 0}, []int{4, 1}},
		{"pndm:skip-prk=false", []float64{10, 4, 1, 0}, []int{4, 4, 1}},
		{"pndm:skip-prk=false", []float64{10, 6, 4, 2, 1, 0}, []int{4, 4, 4, 1, 1}},
		{"pndm:skip-prk=false", []float64{10, 6, 6, 4, 9, 5, 3, 2, 1}, []int{4, 0, 4, 0, 4, 4, 4, 1}},
	} {
		var calls []int
		p := problem(t, edm, 3, 1)
		p.Model, p.Grid = counting{edm, &calls}, ratios(t, edm, c.sb)
		_, res, err := sample(t, c.sampler, p)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(calls, c.want) {
			t.Errorf("%s on %g: calls %v, want %v", c.sampler, c.sb, calls, c.want)
		}
		if n := samplers.NFE(mustParse(t, c.sampler), p.Grid); float64(n) != res.Stats.NFE {
			t.Errorf("%s on %g: %g evaluations, announced %d", c.sampler, c.sb, res.Stats.NFE, n)
		}
	}
}

// TestPNDMOrder measures the order on MIX from sigma 1 to 0.2, where the error of the start shows: on a grid uniform in
// sigma it is that of the start (3 for the trapezoid, as much as the method has with Runge-Kutta steps, 2 for PLMS without
// one), elsewhere 2 for the fixed weights.
func TestPNDMOrder(t *testing.T) {
	ve := mustTarget(t, "mix", `{"type":"ve"}`, "x0")
	exact, _ := end(t, mustParse(t, "rk45:rtol=1e-13,atol=1e-13"), ve, ratios(t, ve, []float64{1, 0.2}), 0.3)
	for _, c := range []struct {
		sampler string
		uniform bool
		want    float64
	}{{"plms", true, 2}, {"pndm", true, 3}, {"pndm:skip-prk=false", true, 4}, {"pndm", false, 2}, {"pndm:skip-prk=false", false, 2}} {
		var errs []float64
		for _, n := range []int{80, 160, 320} {
			sb := make([]float64, n+1)
			for i := range sb {
				u := float64(i) / float64(n)
				sb[i] = math.Pow(0.2, u)
				if c.uniform {
					sb[i] = 1 + (0.2-1)*u
				}
			}
			x, _ := end(t, mustParse(t, c.sampler), ve, ratios(t, ve, sb), 0.3)
			errs = append(errs, math.Abs(x-exact))
		}
		if order := math.Log2(errs[1] / errs[2]); math.Abs(order-c.want) > 0.15 {
			t.Errorf("%s, uniform in sigma %v: order %.2f, want %g (errors %.3g)", c.sampler, c.uniform, order, c.want, errs)
		}
	}
}

// TestPNDMMiddle: the Runge-Kutta start of a discrete process asks at whole timesteps.
func TestPNDMMiddle(t *testing.T) {
	d := targets(t)["vp-discrete"]
	g := times(t, d, []float64{900, 817, 734, 651, 650, 1})
	var asked []float64
	p := problem(t, d, 3, 1)
	p.Model, p.Grid = noting{d, &asked}, g
	if _, _, err := sample(t, "pndm:skip-prk=false", p); err != nil {
		t.Fatal(err)
	}
	if want := []float64{900, 859, 859, 817, 817, 776, 776, 734, 734, 693, 693, 651, 651, 650}; !slices.Equal(asked, want) {
		t.Errorf("asked at %g, want %g", asked, want)
	}
	asked = nil
	p.Grid = schedules.Grid{gauss(d).At(651), gauss(d).At(650)} // no timestep lies between
	if _, _, err := sample(t, "pndm:skip-prk=false", p); err != nil || !slices.Equal(asked, []float64{651, 650.5, 650.5, 650}) {
		t.Errorf("asked at %g (%v)", asked, err)
	}
}

// noting notes the times of the first row's calls.
type noting struct {
	models.Denoiser
	asked *[]float64
}

func (n noting) Unwrap() models.Denoiser { return n.Denoiser }

func (n noting) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	*n.asked = append(*n.asked, q.At[0].T)
	return n.Denoiser.Predict(ctx, q, p)
}
