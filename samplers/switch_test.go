package samplers

import (
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"drift/models"
	"drift/models/analytic"
	"drift/schedules"
)

func switchTarget(t *testing.T, text string) *analytic.Mixture {
	t.Helper()
	m, err := analytic.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const switchBase = `{"type":"mixture","weights":[0.5,0.5],"means":[[-2,0],[2,1]],"vars":[[0.1,0.2],[0.1,0.2]],"process":{"type":"vp-discrete"},"prediction":"eps"}`

func switchRun(t *testing.T, s Sampler, m models.Denoiser, g schedules.Grid) *Result {
	t.Helper()
	p := &Problem{Model: m, Grid: g, Shape: []int{2}, Rows: []models.Row{{Seed: 1}, {Seed: 2}, {Seed: 3}}}
	res, err := Sample(context.Background(), s, p)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// TestSwitch: the base being the main model, nothing changes bit for bit; the main run alone at K = 0; evaluations are those
// of both; the state crosses unchanged, or at the other process's scale.
func TestSwitch(t *testing.T) {
	m := switchTarget(t, switchBase)
	g := schedules.Grid{}
	for _, at := range []float64{999, 749, 499, 249} {
		g = append(g, m.Process().(schedules.Gaussian).At(at))
	}
	g = append(g, schedules.Node{T: -1, Alpha: 1})
	for _, name := range []string{"euler", "ddim:eta=1", "heun", "euler-ancestral"} {
		s, err := Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		plain := switchRun(t, s, models.Metered(m), g)
		for k := range 4 {
			for _, grid := range []schedules.Grid{nil, g} {
				got := switchRun(t, Switch{Base: models.Metered(m), Main: s, K: k, Grid: grid}, models.Metered(m), g)
				if !slices.Equal(models.Data(got.X), models.Data(plain.X)) || got.Stats.NFE != plain.Stats.NFE || got.Stats.Steps != plain.Stats.Steps {
					t.Errorf("%s: a switch to itself at %d changes the run (%g evaluations, %d steps)", name, k, got.Stats.NFE, got.Stats.Steps)
				}
			}
		}
	}
	// Another base, at 20 steps: 4 of them, then the three left of the main grid.
	base := switchTarget(t, strings.Replace(switchBase, `[[-2,0],[2,1]]`, `[[-3,0],[3,1]]`, 1))
	fine := schedules.Grid{}
	for i := range 20 {
		fine = append(fine, m.Process().(schedules.Gaussian).At(951-50*float64(i)))
	}
	var crossed []float64
	sw := Switch{Base: models.Metered(base), Main: Euler{}, K: 1, Grid: fine, Handing: func(x []float64, from, to schedules.Node) {
		crossed = slices.Clone(x)
		if from.T != 751 || to.T != 749 {
			t.Errorf("handed over from time %g to %g", from.T, to.T)
		}
	}}
	got := switchRun(t, sw, models.Metered(m), g)
	if got.Stats.NFE != 4+3 || got.Stats.Steps != 7 {
		t.Errorf("%g evaluations in %d steps, want 7", got.Stats.NFE, got.Stats.Steps)
	}
	alone, err := Sample(context.Background(), Euler{}, &Problem{Model: models.Metered(base), Grid: fine, Last: 4, Shape: []int{2}, Rows: []models.Row{{Seed: 1}, {Seed: 2}, {Seed: 3}}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(crossed, models.Data(alone.X)) {
		t.Error("the state changes on its way between models of one process")
	}
	// A base of another process: the state is brought to the main one's scale.
	ve := switchTarget(t, strings.Replace(strings.Replace(switchBase, "vp-discrete", "edm", 1), `"prediction":"eps"`, `"prediction":"x0"`, 1))
	levels := schedules.Grid{}
	for _, n := range g[:3] {
		levels = append(levels, ve.Process().(schedules.Gaussian).AtRatio(n.Ratio()))
	}
	crossed = nil
	sw = Switch{Base: models.Metered(ve), Main: Euler{}, K: 1, Grid: levels, Handing: func(x []float64, from, to schedules.Node) { crossed = slices.Clone(x) }}
	switchRun(t, sw, models.Metered(m), g)
	given := crossed
	sw.Grid = nil
	if switchRun(t, sw, models.Metered(m), g); !slices.Equal(crossed, given) {
		t.Error("without a grid of its own the base does not take the main one's noise levels")
	}
	alone, err = Sample(context.Background(), Euler{}, &Problem{Model: models.Metered(ve), Grid: levels, Last: 1, Shape: []int{2}, Rows: []models.Row{{Seed: 1}, {Seed: 2}, {Seed: 3}}})
	if err != nil {
		t.Fatal(err)
	}
	for j, v := range models.Data(alone.X) {
		if want := v * g[1].Alpha; crossed[j] != want {
			t.Errorf("handed over %g, want %g", crossed[j], want)
		}
	}
	for want, s := range map[string]Switch{"cannot take over": {Base: m, Main: Euler{}, K: 4}, "wants a base": {Main: Euler{}, K: 1}, "no step": {Base: m, Main: Euler{}, K: 1, Grid: fine[5:]}} {
		if _, err := s.Begin(context.Background(), &Problem{Model: m, Grid: g, Shape: []int{2}, Rows: make([]models.Row, 1)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestSwitchAt holds the hand-over to the fixtures (cases switch-index of the steering goldens).
func TestSwitchAt(t *testing.T) {
	raw, err := os.ReadFile("../guidance/testdata/systems.json")
	if err != nil {
		t.Fatal(err)
	}
	type switchCase struct {
		Name   string
		Inputs struct {
			Base      []float64 `json:"base_times"`
			Distilled []float64 `json:"distilled_times"`
			K         int
		}
		Expected struct {
			Steps int `json:"base_steps"`
		}
	}
	var cases []switchCase
	var all []json.RawMessage // other cases have inputs of other types
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	for _, text := range all {
		var c switchCase
		if !strings.Contains(string(text), `"name":"switch-index`) {
			continue
		}
		if err := json.Unmarshal(text, &c); err != nil {
			t.Fatal(err)
		}
		cases = append(cases, c)
	}
	if len(cases) != 2 {
		t.Fatalf("%d cases", len(cases))
	}
	for _, c := range cases {
		var g schedules.Grid
		for _, at := range c.Inputs.Base {
			g = append(g, schedules.Node{T: at})
		}
		if have := SwitchAt(g, c.Inputs.Distilled[c.Inputs.K]); have != c.Expected.Steps {
			t.Errorf("%s: the base makes %d steps, want %d", c.Name, have, c.Expected.Steps)
		}
	}
}
