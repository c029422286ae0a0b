package schedules

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// goldens is schedules.json: grids and tables of the executed references.
type goldens struct {
	Abar       map[string][]float64 `json:"abar"`
	AbarStride int                  `json:"abar_stride"` // 0 in the whole file
	Processes  map[string]struct {
		T, Alpha, Sigma, Lambda []float64
	} `json:"processes"`
	FluxMu    map[string]float64 `json:"flux_mu"`
	Grids     []gridGolden       `json:"grids"`
	Diffusers []diffusersGolden  `json:"diffusers"`
}

type gridGolden struct {
	Key, Reference, Note string
	Params               map[string]any
	N                    int
	Sigmas, Times        []float64
}

type diffusersGolden struct {
	Key, Class   string
	Config       json.RawMessage
	SetTimesteps struct {
		Mu     *float64
		Sigmas []float64
	} `json:"set_timesteps"`
	N                 *int
	Sigmas, Timesteps []float64
}

// loadGoldens reads the whole file where the fixtures are, else the subset in testdata.
func loadGoldens(t *testing.T) goldens {
	t.Helper()
	path := filepath.Join("testdata", "schedules.json")
	if dir := os.Getenv("DRIFT_FIXTURES"); dir != "" {
		path = filepath.Join(dir, "solvers", "schedules.json")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var g goldens
	if err := json.Unmarshal(text, &g); err != nil {
		t.Fatal(err)
	}
	if len(g.Grids) < 100 || len(g.Diffusers) < 100 {
		t.Fatalf("%s holds %d grids and %d diffusers entries", path, len(g.Grids), len(g.Diffusers))
	}
	return g
}

// worst returns the largest relative difference, with an absolute part of the same size below 1 for timesteps.
func worst(got, want []float64) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	w := 0.0
	for i := range got {
		if got[i] == want[i] {
			continue
		}
		d := math.Abs(got[i]-want[i]) / math.Abs(want[i])
		if math.IsNaN(d) {
			return math.Inf(1)
		}
		w = max(w, d)
	}
	return w
}

func TestDiffusersGoldens(t *testing.T) {
	seen := map[string]int{}
	for _, g := range loadGoldens(t).Diffusers {
		c, err := DiffusersDefaults(g.Class)
		if err != nil {
			t.Fatal(err)
		}
		dec := json.NewDecoder(bytes.NewReader(g.Config))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&c); err != nil {
			t.Fatal(err)
		}
		run := DiffusersRun{Mu: g.SetTimesteps.Mu, Sigmas: g.SetTimesteps.Sigmas}
		if g.N != nil {
			run.Steps = *g.N
		}
		grid, timesteps, err := c.Grid(run)
		if err != nil {
			t.Errorf("%s %s %s: %v", g.Key, g.Class, g.Config, err)
			continue
		}
		sigmas := grid.Ratios()
		if strings.HasPrefix(g.Key, "flow") {
			for i, n := range grid {
				sigmas[i] = n.Sigma
			}
		}
		if len(g.Sigmas) == len(sigmas)-1 { // DDIM, LCM and TCD keep no sigmas: the last node is not recorded
			sigmas = sigmas[:len(g.Sigmas)]
		}
		if strings.Contains(g.Class, "Heun") { // two calls on every inner node
			twice := timesteps[:1:1]
			for _, v := range timesteps[1:] {
				twice = append(twice, v, v)
			}
			timesteps = twice
		}
		if w := worst(sigmas, g.Sigmas); w > 1e-12 {
			t.Errorf("%s %s %s n=%d: sigmas differ by %.2g\n got %v\nwant %v", g.Key, g.Class, g.Config, len(timesteps), w, sigmas, g.Sigmas)
		}
		for i, v := range timesteps {
			if len(timesteps) != len(g.Timesteps) || math.Abs(v-g.Timesteps[i]) > 1e-12*max(1, math.Abs(v)) {
				t.Errorf("%s %s %s: timesteps\n got %v\nwant %v", g.Key, g.Class, g.Config, timesteps, g.Timesteps)
				break
			}
		}
		seen[g.Class]++
	}
	if len(seen) != 12 {
		t.Errorf("goldens of %d classes, want 12: %v", len(seen), seen)
	}
}

func diffusersGrid(t *testing.T, class string, change func(c *DiffusersConfig), run DiffusersRun) (Grid, []float64) {
	t.Helper()
	c, err := DiffusersDefaults(class)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&c)
	}
	g, timesteps, err := c.Grid(run)
	if err != nil {
		t.Fatal(err)
	}
	if len(timesteps) != len(g)-1 {
		t.Fatalf("%s: %d nodes, %d timesteps", class, len(g), len(timesteps))
	}
	return g, timesteps
}

// The classes that no golden has share their rule with one that has.
func TestDiffusersKin(t *testing.T) {
	for _, c := range []struct {
		a, b   string
		change func(c *DiffusersConfig)
		last   bool // also the last node
	}{
		{"DDPMScheduler", "DDIMScheduler", nil, true},
		{"PNDMScheduler", "DDIMScheduler", nil, false},
		{"EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", nil, true},
		{"LMSDiscreteScheduler", "EulerDiscreteScheduler", func(c *DiffusersConfig) { c.UseKarrasSigmas = true }, true},
		{"DPMSolverSinglestepScheduler", "DPMSolverMultistepScheduler", nil, true},
		{"SASolverScheduler", "DEISMultistepScheduler", nil, true},
		{"SASolverScheduler", "DEISMultistepScheduler", func(c *DiffusersConfig) { c.UseExponentialSigmas = true }, true},
	} {
		for _, n := range []int{1, 2, 3, 10} {
			g, ts := diffusersGrid(t, c.a, c.change, DiffusersRun{Steps: n})
			h, us := diffusersGrid(t, c.b, c.change, DiffusersRun{Steps: n})
			if !slices.Equal(ts, us) || !slices.Equal(g[:n], h[:n]) || c.last != (g[n] == h[n]) {
				t.Errorf("%s and %s, n=%d: %v and %v", c.a, c.b, n, g, h)
			}
		}
	}
	g, _ := diffusersGrid(t, "PNDMScheduler", nil, DiffusersRun{Steps: 4})
	if !near(g[4].Alpha*g[4].Alpha, 0.9999, 1e-15) {
		t.Errorf("PNDM ends at %v", g[4])
	}
}

func TestDiffusersOptions(t *testing.T) {
	// lambda_min_clipped drops the noisy end of the cosine table.
	cosine := mustDiscrete(t, Betas{Schedule: "cosine"})
	clip := func(c *DiffusersConfig) { c.BetaSchedule, c.LambdaMinClipped = "squaredcos_cap_v2", -5.1 }
	g, ts := diffusersGrid(t, "DPMSolverMultistepScheduler", clip, DiffusersRun{Steps: 4})
	if k := int(ts[0]); cosine.At(float64(k)).Lambda() < -5.1 || cosine.At(float64(k+1)).Lambda() >= -5.1 {
		t.Errorf("clipped at lambda -5.1: first timestep %v, lambda %v", ts[0], g[0].Lambda())
	}
	// log_linear: n+1 sigmas from the noisy to the clean entry of the table.
	g, _ = diffusersGrid(t, "EulerDiscreteScheduler", func(c *DiffusersConfig) { c.InterpolationType = "log_linear" }, DiffusersRun{Steps: 4})
	for i, n := range g {
		if want := mix(float64(i)/4, g[0].Lambda(), g[4].Lambda()); math.Abs(n.Lambda()-want) > 1e-12 || g[4].Sigma == 0 {
			t.Errorf("log_linear: node %d has lambda %v, want %v", i, n.Lambda(), want)
		}
	}
	// sigma_min and sigma_max of one's own.
	g, _ = diffusersGrid(t, "EulerDiscreteScheduler", func(c *DiffusersConfig) {
		c.UseKarrasSigmas, c.SigmaMin, c.SigmaMax = true, ptr(0.002), ptr(700)
	}, DiffusersRun{Steps: 25})
	if !near(g[0].Ratio(), 700, 1e-13) || !near(g[24].Ratio(), 0.002, 1e-13) || g[0].T != 999 || g[24].T != 0 {
		t.Errorf("own ends: %v ... %v", g[0], g[24])
	}
	// Video diffusion's timesteps are log(sigma)/4.
	g, ts = diffusersGrid(t, "EulerDiscreteScheduler", func(c *DiffusersConfig) {
		c.UseKarrasSigmas, c.TimestepType, c.PredictionType = true, "continuous", "v_prediction"
	}, DiffusersRun{Steps: 5})
	if !near(ts[2], 0.25*math.Log(g[2].Ratio()), 1e-13) {
		t.Errorf("continuous timesteps %v", ts)
	}
	// A table without terminal signal: DDIM keeps alpha = 0, Euler takes 2^-24 in its place.
	zero := func(c *DiffusersConfig) { c.RescaleBetasZeroSNR, c.TimestepSpacing = true, "trailing" }
	if g, _ = diffusersGrid(t, "DDIMScheduler", zero, DiffusersRun{Steps: 3}); g[0].Alpha != 0 {
		t.Errorf("DDIM starts at %v", g[0])
	}
	if g, _ = diffusersGrid(t, "EulerDiscreteScheduler", zero, DiffusersRun{Steps: 3}); !near(g[0].Alpha*g[0].Alpha, 0x1p-24, 1e-13) {
		t.Errorf("Euler starts at %v", g[0])
	}
	// UniPC: the last sigma twice; a dynamic shift; a terminal.
	g, _ = diffusersGrid(t, "UniPCMultistepScheduler", func(c *DiffusersConfig) { c.UseKarrasSigmas, c.FinalSigmasType = true, "sigma_min" }, DiffusersRun{Steps: 3})
	if !near(g[3].Ratio(), g[2].Ratio(), 1e-15) {
		t.Errorf("sigma_min: %v", g)
	}
	g, ts = diffusersGrid(t, "UniPCMultistepScheduler", func(c *DiffusersConfig) {
		c.UseFlowSigmas, c.UseDynamicShifting, c.ShiftTerminal = true, true, 0.2
	}, DiffusersRun{Steps: 4, Mu: ptr(math.Log(3))})
	if !near(g[0].T, 0.999999, 1e-12) || !near(g[3].T, 0.2, 1e-12) || ts[0] != 999 || g[4].T != 0 {
		t.Errorf("dynamic shift with terminal: %v, %v", g, ts)
	}
	// DPM with a dynamic shift is DPM with flow_shift = exp(mu).
	a, _ := diffusersGrid(t, "DPMSolverMultistepScheduler", func(c *DiffusersConfig) { c.UseFlowSigmas, c.UseDynamicShifting = true, true }, DiffusersRun{Steps: 4, Mu: ptr(0.7)})
	b, _ := diffusersGrid(t, "DPMSolverMultistepScheduler", func(c *DiffusersConfig) { c.UseFlowSigmas, c.FlowShift = true, math.Exp(0.7) }, DiffusersRun{Steps: 4})
	if !slices.Equal(a, b) {
		t.Errorf("%v and %v", a, b)
	}
	// numpy's arange has one entry too many here.
	if g, _ = diffusersGrid(t, "DDIMScheduler", func(c *DiffusersConfig) { c.TimestepSpacing = "trailing" }, DiffusersRun{Steps: 61}); len(g) != 62 || g[60].T != 15 {
		t.Errorf("trailing, 61 steps: %d nodes, last %v", len(g), g[60])
	}
}

func TestDiffusersRefuses(t *testing.T) {
	if _, err := DiffusersDefaults("DDIMSheduler"); err == nil || !strings.Contains(err.Error(), "did you mean DDIMScheduler") {
		t.Error(err)
	}
	if _, err := (DiffusersConfig{}).Process(); err == nil {
		t.Error("a class without a name has a process")
	}
	for _, c := range []struct {
		class  string
		change func(c *DiffusersConfig)
		run    DiffusersRun
		want   string
	}{
		{"DDIMScheduler", nil, DiffusersRun{}, "0 steps; want 1"},
		{"DDIMScheduler", nil, DiffusersRun{Steps: 1001}, "1001 steps, but only 1000 timesteps"},
		{"DDIMScheduler", nil, DiffusersRun{Sigmas: []float64{1}}, "flow schedulers only"},
		{"DDIMScheduler", nil, DiffusersRun{Steps: 5, Mu: ptr(1)}, "use_dynamic_shifting is off"},
		{"DDIMScheduler", func(c *DiffusersConfig) { c.BetaSchedule = "quadratic" }, DiffusersRun{Steps: 5}, "unknown beta schedule"},
		{"DDIMScheduler", func(c *DiffusersConfig) { c.StepsOffset = 500 }, DiffusersRun{Steps: 2}, "timestep 1000 is not in the table of 1000 (steps_offset 500)"},
		{"DDIMScheduler", func(c *DiffusersConfig) { c.TimestepSpacing = "even" }, DiffusersRun{Steps: 2}, `timestep_spacing "even"`},
		{"DDIMScheduler", func(c *DiffusersConfig) { c.UseFlowSigmas = true }, DiffusersRun{Steps: 2}, "not an option of this class"},
		{"LCMScheduler", nil, DiffusersRun{Steps: 51}, "51 steps of original_inference_steps 50"},
		{"EulerDiscreteScheduler", func(c *DiffusersConfig) { c.UseKarrasSigmas, c.UseBetaSigmas = true, true }, DiffusersRun{Steps: 2}, "only one of"},
		{"EulerDiscreteScheduler", func(c *DiffusersConfig) { c.FinalSigmasType = "none" }, DiffusersRun{Steps: 2}, `final_sigmas_type "none"`},
		{"EulerDiscreteScheduler", func(c *DiffusersConfig) { c.InterpolationType = "cubic" }, DiffusersRun{Steps: 2}, `interpolation_type "cubic"`},
		{"DPMSolverMultistepScheduler", func(c *DiffusersConfig) { c.LambdaMinClipped = 100 }, DiffusersRun{Steps: 2}, "leaves no timestep"},
		{"DPMSolverMultistepScheduler", func(c *DiffusersConfig) { c.UseFlowSigmas, c.UseKarrasSigmas = true, true }, DiffusersRun{Steps: 2}, "not supported"},
		{"DPMSolverMultistepScheduler", func(c *DiffusersConfig) { c.UseFlowSigmas = true }, DiffusersRun{Sigmas: []float64{1, 0.5}}, "cannot be given to this class"},
		{"UniPCMultistepScheduler", func(c *DiffusersConfig) { c.UseFlowSigmas, c.UseDynamicShifting = true, true }, DiffusersRun{Steps: 2}, "wants a mu"},
		{"EDMEulerScheduler", func(c *DiffusersConfig) { c.SigmaMin = ptr(100) }, DiffusersRun{Steps: 2}, "0 < sigma_min < sigma_max"},
		{"EDMEulerScheduler", func(c *DiffusersConfig) { c.SigmaSchedule = "linear" }, DiffusersRun{Steps: 2}, `sigma_schedule "linear"`},
		{"FlowMatchEulerDiscreteScheduler", func(c *DiffusersConfig) { c.InvertSigmas = true }, DiffusersRun{Steps: 2}, "invert_sigmas"},
		{"FlowMatchEulerDiscreteScheduler", func(c *DiffusersConfig) { c.Shift = 0 }, DiffusersRun{Steps: 2}, "shift 0"},
		{"FlowMatchEulerDiscreteScheduler", func(c *DiffusersConfig) { c.ShiftTerminal = 0.1 }, DiffusersRun{Steps: 1}, "divides by zero"},
		{"FlowMatchEulerDiscreteScheduler", nil, DiffusersRun{Steps: 3, Sigmas: []float64{1, 0.5}}, "3 steps, but 2 sigmas"},
		{"FlowMatchEulerDiscreteScheduler", nil, DiffusersRun{Sigmas: []float64{1, math.NaN()}}, "time 1"},
	} {
		config, err := DiffusersDefaults(c.class)
		if err != nil {
			t.Fatal(err)
		}
		if c.change != nil {
			c.change(&config)
		}
		g, _, err := config.Grid(c.run)
		if err == nil || !strings.Contains(err.Error(), c.want) || g != nil {
			t.Errorf("%s: %v, %v, want %q", c.class, g, err, c.want)
		}
	}
}
