package schedules

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
)

func ptr(v float64) *float64 { return &v }

// goldenCase says how NewGrid is asked for the grid of a golden, and what of it is to be compared.
type goldenCase struct {
	p             Gaussian
	name          string
	n             int
	e             Ends
	ratios, times bool
	flowSigma     bool                    // the golden holds the flow sigma
	rounding      float64                 // of the golden's sigma^2 itself, which was taken as exp(u) - 1
	ownTime       func(t float64) float64 // from the golden's time to ours
}

func (g gridGolden) asked(t *testing.T, sd *VPDiscrete) (goldenCase, error) {
	t.Helper()
	num := func(key string) float64 { v, _ := g.Params[key].(float64); return v }
	c := goldenCase{p: EDM{}, name: g.Key, n: g.N, ratios: true, times: len(g.Times) > 0, ownTime: func(t float64) float64 { return t }}
	ref, _, _ := strings.Cut(g.Reference, " ")
	switch {
	case ref == "k-diffusion" && g.Key == "time":
		c.p, c.e = VPLinear{num("beta_min"), num("beta_min") + num("beta_d")}, Ends{TStart: ptr(1), TEnd: ptr(num("eps_s")), Final: "zero"}
	case ref == "k-diffusion":
		c.e = Ends{SigmaMax: ptr(num("sigma_max")), SigmaMin: ptr(num("sigma_min"))}
		if rho := num("rho"); rho != 0 {
			c.name = fmt.Sprintf("%s:rho=%g", g.Key, rho)
		}
	case ref == "dpm-solver" && g.Params["process"] == "vp-linear":
		c.p, c.e = VPLinear{}, Ends{TStart: ptr(num("t_start")), TEnd: ptr(num("t_end"))}
	case ref == "dpm-solver" && g.Params["process"] == "vp-discrete sd":
		// Its time is (index+1)/1000, and between entries it interpolates log alpha, not log(sigma/alpha): only what
		// does not depend on that is compared.
		c.p, c.e = sd, Ends{TStart: ptr(999), TEnd: ptr(0)}
		c.ownTime = func(t float64) float64 { return 1000*t - 1 }
		c.ratios, c.times = g.Key == "lambda", g.Key != "lambda"
	case ref == "diff-sampler":
		lo, hi, rho := num("sigma_min"), num("sigma_max"), num("rho")
		c.n, c.e = g.N-1, Ends{SigmaMax: &hi, SigmaMin: &lo, Final: "min"}
		if g.Params["schedule_type"] == "time_uniform" { // VP betas fitted to the two sigmas at times 1 and 0.001
			eps := 1e-3
			d := 2 * (math.Log(lo*lo+1)/eps - math.Log(hi*hi+1)) / (eps - 1) // with the reference's own rounding
			b := math.Log(hi*hi+1) - 0.5*d
			c.rounding = 0x1p-52
			c.p, c.e = VPLinear{b, b + d}, Ends{TStart: ptr(1), TEnd: &eps}
			if rho != 1 {
				c.name = fmt.Sprintf("quadratic:power=%g", rho)
			}
		}
	case g.Key == "linear-quadratic":
		c.p, c.name, c.flowSigma = Flow{}, fmt.Sprintf("linear-quadratic:threshold=%g", num("threshold")), true
	case strings.HasPrefix(g.Key, "ays"):
		c.times = false // the published timesteps were rounded by their authors
	case g.Params["process"] == "sd":
		c.p = sd
	case g.Key == "quadratic" && g.Params["process"] == "vp-linear":
		c.p, c.e = VPLinear{}, Ends{TStart: ptr(num("t_start")), TEnd: ptr(num("t_end"))}
	default:
		return c, errors.New("no rule for this golden")
	}
	return c, nil
}

func TestNamedGoldens(t *testing.T) {
	sd := mustDiscrete(t, sd)
	compared := map[string]int{}
	for _, g := range loadGoldens(t).Grids {
		at := fmt.Sprintf("%s (%s, %v, n=%d)", g.Key, g.Reference, g.Params, g.N)
		c, err := g.asked(t, sd)
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		grid, err := NewGrid(c.p, c.name, c.n, c.e)
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		got := grid.Ratios()
		if c.flowSigma {
			for i, n := range grid {
				got[i] = n.Sigma
			}
		}
		for i, want := range g.Sigmas {
			if c.ratios && (len(got) != len(g.Sigmas) || !near(got[i], want, 1e-12+c.rounding/(want*want))) {
				t.Errorf("%s: sigmas\n got %v\nwant %v", at, got, g.Sigmas)
				break
			}
		}
		for i, v := range g.Times {
			if want := c.ownTime(v); c.times && math.Abs(grid[i].T-want) > 1e-12*max(1, math.Abs(want)) {
				t.Errorf("%s: time %d is %v, want %v", at, i, grid[i].T, want)
			}
		}
		compared[g.Key]++
	}
	if len(compared) != 12 {
		t.Errorf("compared %d schedules, want 12: %v", len(compared), compared)
	}
}

// The whole-timestep schedules have their goldens in the diffusers entries of the classes that use them plainly.
func TestTimestepGoldens(t *testing.T) {
	sd := mustDiscrete(t, sd)
	compared := 0
	for _, g := range loadGoldens(t).Diffusers {
		name := g.Key
		switch {
		case g.Class != "DDIMScheduler", *g.N == 1 && name == "linspace": // one timestep: diffusers takes 0, we start at the noise end
			continue
		case name == "leading":
			name = "leading:offset=1"
		}
		grid, err := NewGrid(sd, name, *g.N, Ends{})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range g.Timesteps {
			if grid[i].T != want {
				t.Errorf("%s n=%d: timestep %d is %v, want %v", name, *g.N, i, grid[i].T, want)
			}
		}
		if w := worst(grid.Ratios()[:len(g.Sigmas)], g.Sigmas); w > 1e-12 {
			t.Errorf("%s n=%d: sigmas differ by %.2g", name, *g.N, w)
		}
		compared++
	}
	if compared < 6 {
		t.Errorf("compared %d grids", compared)
	}
}

func TestFlowGoldens(t *testing.T) {
	compared := 0
	for _, g := range loadGoldens(t).Diffusers {
		if g.N != nil || g.Class != "FlowMatchEulerDiscreteScheduler" {
			continue // with given sigmas the shift is applied once, as our schedules do
		}
		name := "flow:shift=3"
		if mu := g.SetTimesteps.Mu; mu != nil {
			name = fmt.Sprintf("flow-dynamic:mu=%g", *mu)
		}
		grid, err := NewGrid(Flow{}, name, len(g.Sigmas)-1, Ends{})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]float64, len(grid))
		for i, n := range grid {
			got[i] = n.Sigma
		}
		if w := worst(got, g.Sigmas); w > 1e-12 {
			t.Errorf("%s n=%d: differ by %.2g\n got %v\nwant %v", name, len(g.Sigmas)-1, w, got, g.Sigmas)
		}
		compared++
	}
	if compared < 10 {
		t.Errorf("compared %d grids", compared)
	}
	for tokens, want := range map[int]float64{256: 0.5, 1024: 0.63, 4096: 1.15, 4608: 1.2366666666666666} {
		if got := FluxMu(tokens); !near(got, want, 1e-15) {
			t.Errorf("FluxMu(%d) = %v, want %v", tokens, got, want)
		}
	}
}
