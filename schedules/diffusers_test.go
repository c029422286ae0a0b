package schedules

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
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
