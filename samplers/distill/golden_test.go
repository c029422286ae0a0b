package distill

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

type golden struct {
	Name, Kind string
	Target     json.RawMessage
	Options    struct {
		Particles, Iterations int
		Gamma, LR             float64
		Features, Weight      string
		Off                   *float64 `json:"off_last_fraction"`
		Bandwidth, Times      string
		Rho                   float64 `json:"rho_reg"`
		W                     float64
		LRX                   float64 `json:"lr_x"`
		LRZ                   float64 `json:"lr_z"`
	}
	Inputs   json.RawMessage
	Expected json.RawMessage
	Tol      struct{ Abs, Rel float64 }
	Stats    []struct {
		Stat  string
		Value float64
		SE    float64 `json:"value_se"`
		SD    float64 `json:"run_sd"`
		Tol   float64
		NSE   float64 `json:"n_se"`
	}
}

func goldens(t *testing.T) []golden {
	t.Helper()
	path := filepath.Join("testdata", "rsd.json")
	if dir := os.Getenv("DRIFT_FIXTURES"); dir != "" {
		path = filepath.Join(dir, "steering", "rsd.json")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []golden
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	if len(out) != 26 {
		t.Fatalf("%d cases, want 26", len(out))
	}
	return out
}

func (g *golden) close(t *testing.T, what string, got []float64, want ...[]float64) {
	t.Helper()
	var flat []float64
	for _, w := range want {
		flat = append(flat, w...)
	}
	if len(got) != len(flat) {
		t.Fatalf("%s: %d numbers, want %d", what, len(got), len(flat))
	}
	for i, w := range flat {
		if d := math.Abs(got[i] - w); !(d <= g.Tol.Abs+g.Tol.Rel*math.Abs(w)) {
			t.Fatalf("%s[%d] = %.12g, want %.12g", what, i, got[i], w)
		}
	}
}

func read(t *testing.T, text json.RawMessage, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

func flat(rows [][]float64) []float64 {
	var out []float64
	for _, r := range rows {
		out = append(out, r...)
	}
	return out
}

// TestRepulsion holds the kernel against the fixtures.
func TestRepulsion(t *testing.T) {
	n := 0
	for _, g := range goldens(t) {
		if !strings.HasPrefix(g.Name, "repulsion-") {
			continue
		}
		n++
		t.Run(g.Name, func(t *testing.T) {
			var in struct{ Features [][]float64 }
			var want struct {
				R [][]float64
				H []float64
			}
			read(t, g.Inputs, &in)
			read(t, g.Expected, &want)
			f := flat(in.Features)
			R := make([]float64, len(f))
			h := Kernel{Global: g.Options.Bandwidth == "global"}.Repel(R, f, len(in.Features))
			g.close(t, "R", R, want.R...)
			g.close(t, "h", h, want.H)
		})
	}
	if n != 7 {
		t.Errorf("%d cases, want 7", n)
	}
}

func (g *golden) rsd(t *testing.T) RSD {
	t.Helper()
	m := RSD{Gamma: g.Options.Gamma, Noisy: g.Options.Features == "x_t", Optimizer: Optimizer{Rate: g.Options.LR}, Kernel: Kernel{Global: g.Options.Bandwidth == "global"}}
	if g.Options.Off != nil {
		m.Off = *g.Options.Off
	}
	var err error
	if m.Weight, err = ParseWeight(g.Options.Weight); err != nil {
		t.Fatal(err)
	}
	return m
}

func (g *golden) target(t *testing.T) *analytic.Mixture {
	t.Helper()
	m, err := analytic.Parse(g.Target)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// gridAt is a grid of these times and the clean end.
func gridAt(p schedules.Gaussian, times ...float64) schedules.Grid {
	var out schedules.Grid
	for _, t := range times {
		out = append(out, p.At(t))
	}
	return append(out, p.AtRatio(0))
}

// TestIterations holds every intermediate of full iterations against the fixtures.
func TestIterations(t *testing.T) {
	n := 0
	for _, g := range goldens(t) {
		if !strings.HasPrefix(g.Name, "iterations-") {
			continue
		}
		n++
		t.Run(g.Name, func(t *testing.T) {
			var in struct {
				Z     [][]float64 `json:"z_init"`
				Eps   [][][]float64
				Times []float64
			}
			var want struct {
				Iterations []struct {
					Alpha, Sigma float64
					Q, Z         [][]float64
					Eps          [][]float64 `json:"eps_hat"`
					R            [][]float64
					On           bool `json:"repulsion_on"`
					Weight       float64
				}
			}
			read(t, g.Inputs, &in)
			read(t, g.Expected, &want)
			target := g.target(t)
			var eps []float64
			for _, e := range in.Eps {
				eps = append(eps, flat(e)...)
			}
			rows := len(in.Z)
			noise, err := samplers.NewRecorded(models.Wrap(eps, len(in.Times), rows, 2), len(in.Times))
			if err != nil {
				t.Fatal(err)
			}
			p := &samplers.Problem{Model: target, Grid: gridAt(target.Target().Process, in.Times...), Rows: Rows([]uint64{1}, rows), Shape: []int{2},
				Start: models.Wrap(flat(in.Z), rows, 2), Noise: noise}
			m := g.rsd(t)
			b, err := m.Begin(context.Background(), p)
			if err != nil {
				t.Fatal(err)
			}
			r := b.(*run)
			for k, w := range want.Iterations {
				if done, err := r.Next(context.Background()); done || err != nil {
					t.Fatal(done, err)
				}
				node := r.query.At[0]
				g.close(t, "alpha", []float64{node.Alpha, node.Sigma}, []float64{w.Alpha, w.Sigma})
				g.close(t, "eps", models.Data(r.pred.Out), w.Eps...)
				wq := flat(w.Q)
				for i := range wq {
					wq[i] *= w.Weight
				}
				g.close(t, "w q", models.Data(r.grad), wq)
				if on := m.gamma(1, k, len(in.Times), node) != 0; on != w.On {
					t.Fatalf("iteration %d: repulsion on: %v, want %v", k, on, w.On)
				}
				if w.On && m.Gamma != 0 {
					g.close(t, "R", r.force, w.R...)
				}
				g.close(t, "z", models.Data(r.State().X), w.Z...)
			}
			if done, err := r.Next(context.Background()); !done || err != nil {
				t.Fatal("not done:", err)
			}
		})
	}
	if n != 5 {
		t.Errorf("%d cases, want 5", n)
	}
}

// first is the operator that sees the first coordinate.
type first struct{ n int }

func (first) Name() string               { return "first" }
func (first) Out() []int                 { return []int{1} }
func (f first) In() []int                { return []int{max(1, f.n)} }
func (first) Apply(y, x []float64)       { y[0] = x[0] }
func (first) VJP(grad, _, cot []float64) { clear(grad); grad[0] = cot[0] }

// TestInverseIteration holds the first iteration of the augmented form against the fixture.
func TestInverseIteration(t *testing.T) {
	for _, g := range goldens(t) {
		if g.Name != "inverse-first-iteration" {
			continue
		}
		var in struct {
			Z, X, Eps, Y [][]float64
			T            float64
		}
		var want struct {
			Q, Z, X [][]float64
			ZN      [][]float64 `json:"z_next"`
			XN      [][]float64 `json:"x_next"`
		}
		read(t, g.Inputs, &in)
		read(t, g.Expected, &want)
		target := g.target(t)
		n := len(in.Z)
		noise, err := samplers.NewRecorded(models.Wrap(flat(in.Eps), 1, n, 2), 1)
		if err != nil {
			t.Fatal(err)
		}
		m := RSD{Gamma: g.Options.Gamma, Noisy: true, Optimizer: Optimizer{Rate: g.Options.LRZ},
			Measure: &Measure{Op: first{2}, Y: flat(in.Y), Strength: g.Options.W, Tie: g.Options.Rho, RateX: g.Options.LRX, Start: func(i int, x []float64) { copy(x, in.X[i]) }}}
		p := &samplers.Problem{Model: target, Grid: gridAt(target.Target().Process, in.T), Rows: Rows([]uint64{1}, n), Shape: []int{2}, Start: models.Wrap(flat(in.Z), n, 2), Noise: noise}
		b, err := m.Begin(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Next(context.Background()); err != nil {
			t.Fatal(err)
		}
		g.close(t, "z", models.Data(b.(*run).z), want.ZN...)
		g.close(t, "x", models.Data(b.State().X), want.XN...)
		return
	}
	t.Error("the case is missing")
}

// TestCoverage holds the statistics of mode coverage against the fixtures.
func TestCoverage(t *testing.T) {
	const runs = 200
	n := 0
	for _, g := range goldens(t) {
		if !strings.HasPrefix(g.Name, "coverage-") {
			continue
		}
		n++
		t.Run(g.Name, func(t *testing.T) {
			t.Parallel()
			target := g.target(t)
			k := g.Options.Iterations
			var times []float64
			m := g.rsd(t)
			for i := range k {
				if strings.HasPrefix(g.Options.Times, "uniform") {
					m.Spread = 1
					times = append(times, 979-math.RoundToEven(959*float64(i)/float64(k-1)))
				} else {
					times = append(times, math.RoundToEven(980-960*float64(i)/float64(k-1)))
				}
			}
			var seeds []uint64
			for s := range runs {
				seeds = append(seeds, uint64(s))
			}
			particles := g.Options.Particles
			p := &samplers.Problem{Model: target, Grid: gridAt(target.Target().Process, times...), Rows: Rows(seeds, particles), Shape: []int{2}}
			res, err := samplers.Sample(context.Background(), m, p)
			if err != nil {
				t.Fatal(err)
			}
			got := statistics(t, target, models.Data(res.X), particles)
			for i, s := range g.Stats {
				slack := s.Tol + s.NSE*math.Sqrt(s.SD*s.SD/runs+s.SE*s.SE)
				t.Logf("%-60.60s %8.4f, want %8.4f +- %.4f", s.Stat, got[i], s.Value, slack)
				if !(math.Abs(got[i]-s.Value) <= slack) {
					t.Errorf("%s = %g, want %g +- %g", s.Stat, got[i], s.Value, slack)
				}
			}
		})
	}
	if n != 13 {
		t.Errorf("%d cases, want 13", n)
	}
}

// statistics of sets of particles of a two-dimensional mixture with round components, in the fixtures' order: sets in
// which every mode has a particle, particles within three standard deviations, mean log p, mean square deviation per
// coordinate of those (a mean over sets), particles nearest the last mode.
func statistics(t *testing.T, target *analytic.Mixture, x []float64, particles int) [5]float64 {
	t.Helper()
	tg := target.Target()
	var out [5]float64
	sets, with := len(x)/2/particles, 0
	for s := range sets {
		hit := map[int]bool{}
		in, square := 0, 0.0
		for i := s * particles; i < (s+1)*particles; i++ {
			row := x[2*i : 2*i+2]
			mode, best := 0, math.Inf(1)
			for c, m := range tg.Means {
				if d := math.Hypot(row[0]-m[0], row[1]-m[1]); d < best {
					mode, best = c, d
				}
			}
			hit[mode] = true
			if best < 3*math.Sqrt(tg.Vars[mode][0]) {
				in++
				square += best * best / 2
			}
			lp, err := target.LogP(row, schedules.Node{Alpha: 1}, models.NoClass)
			if err != nil {
				t.Fatal(err)
			}
			out[2] += lp / float64(sets*particles)
			if mode == len(tg.Means)-1 {
				out[4] += 1 / float64(sets*particles)
			}
		}
		if len(hit) == len(tg.Means) {
			out[0] += 1 / float64(sets)
		}
		out[1] += float64(in) / float64(sets*particles)
		if in > 0 {
			out[3] += square / float64(in)
			with++
		}
	}
	out[3] /= float64(with)
	return out
}
