package samplers_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"drift/internal/npz"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// The records of the golden runs: see the README of the fixtures.
type goldenRun struct {
	ID, File, Target, Sampler, Name, Init, Noise, Reference, Kind string
	Steps, Batch, Dim                                             int
	NFE                                                           int
	Grid                                                          struct {
		Sigmas []number
		Times  []number
	}
	Tolerance struct{ Abs, Rel float64 }
	Guidance  *struct {
		Class    int     `json:"class"`
		CFGScale float64 `json:"cfg_scale"`
	}
	Adaptive         bool
	Orders           []int
	ReferenceOptions map[string]any `json:"reference_options"`
	Schedule         json.RawMessage
	Note             string
}

// number is a float64 that may be written "inf".
type number float64

func (n *number) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseFloat(strings.Trim(string(b), `"`), 64)
	*n = number(v)
	return err
}

func floats(v []number) []float64 {
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = float64(x)
	}
	return out
}

// golden folders: the compact one of this package, and the whole when DRIFT_FIXTURES is set.
func goldenFolder() string {
	if f := os.Getenv("DRIFT_FIXTURES"); f != "" {
		return filepath.Join(f, "solvers")
	}
	return filepath.Join("testdata", "solvers")
}

func readRuns(t testing.TB, folder string) []goldenRun {
	data, err := os.ReadFile(filepath.Join(folder, "trajectories", "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index struct{ Runs []goldenRun }
	if err := json.Unmarshal(data, &index); err != nil {
		t.Fatal(err)
	}
	return index.Runs
}

func readArrays(t testing.TB, path string) map[string]*tensor.Dense {
	all, err := npz.ReadAll(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*tensor.Dense{}
	for name, a := range all {
		v, err := a.Float64()
		if err != nil {
			t.Fatal(err)
		}
		out[name] = models.Wrap(v, a.Info().Shape...)
	}
	return out
}

// runGolden samples as the record says and returns the states after every step, the first predictions as data, and the
// result.
func runGolden(t testing.TB, folder string, g goldenRun, arrays map[string]*tensor.Dense) (xs, x0s [][]float64, res *samplers.Result) {
	target, err := analytic.Open(filepath.Join(folder, g.Target))
	if err != nil {
		t.Fatal(err)
	}
	var s samplers.Sampler
	if g.Schedule != nil { // the record's option is a name, its schedule stands in the record
		s, err = samplers.ParseUSF(g.ID, g.Schedule)
	} else {
		s, err = samplers.Parse(parityString(g))
	}
	if err != nil {
		t.Fatal(err)
	}
	proc := target.Process().(schedules.Gaussian)
	var grid schedules.Grid
	if slices.ContainsFunc(floats(g.Grid.Sigmas), func(v float64) bool { return math.IsInf(v, 0) }) {
		grid, err = schedules.FromTimes(proc, floats(g.Grid.Times))
	} else {
		grid, err = schedules.FromRatios(proc, floats(g.Grid.Sigmas))
	}
	if err != nil {
		t.Fatal(err)
	}
	if g.Adaptive {
		grid = schedules.Grid{grid[0], grid[len(grid)-1]}
	}
	init := readArrays(t, filepath.Join(folder, "trajectories", g.Init))["x"]
	var den models.Denoiser = models.Metered(target)
	cond := &models.Cond{}
	if g.Guidance != nil {
		den = cfg{den, g.Guidance.Class, g.Guidance.CFGScale}
	}
	if v := arrays["variance_logit"]; v != nil {
		den = withVariance{den, v}
	}
	p := &samplers.Problem{Model: den, Grid: grid, Start: init, Cond: cond}
	for k := range init.Shape()[0] {
		p.Rows = append(p.Rows, models.Row{Seed: uint64(k)})
	}
	p.Noise = samplers.Zero{}
	if z := arrays["noise"]; z != nil {
		if p.Noise, err = samplers.NewRecorded(z, g.Steps); err != nil {
			t.Fatal(err)
		}
	}
	p.Observe = func(st *samplers.State) error {
		xs = append(xs, slices.Clone(models.Data(st.X)))
		if st.I > 0 {
			x0, err := st.X0(nil)
			if err != nil {
				return err
			}
			if x0 == nil {
				return errors.New("no prediction after a step")
			}
			x0s = append(x0s, models.Data(x0))
		}
		return nil
	}
	res, err = samplers.Sample(context.Background(), s, p)
	if err != nil {
		t.Fatal(err)
	}
	return xs, x0s, res
}

// parityString adds what the record's reference does without saying it in an option: which grids lower their last
// orders.
func parityString(g goldenRun) string {
	s := g.Sampler
	if g.Name == "dpm-adaptive" { // the references have one step size for the batch
		return s + ",norm=batch"
	}
	if !strings.Contains(s, "lower-order-final=true") {
		return s
	}
	switch {
	case strings.HasPrefix(g.Reference, "dpm-solver"):
		return s + ",lower-below=10"
	case strings.HasPrefix(g.Reference, "diff-sampler"):
		return s + ",lower-below=1000000"
	case strings.Contains(g.Reference, "dpm_guided_diffusion"):
		return s + ",lower-below=10"
	}
	return s
}

// cfg is classifier-free guidance written out: uncond + w (cond - uncond).
type cfg struct {
	models.Denoiser
	class int
	w     float64
}

func (c cfg) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	var a, b models.Pred
	qq := *q
	qq.Cond = &models.Cond{Classes: make([]int, len(q.At))}
	for i := range qq.Cond.Classes {
		qq.Cond.Classes[i] = c.class
	}
	if err := c.Denoiser.Predict(ctx, &qq, &a); err != nil {
		return err
	}
	qq.Cond = nil
	if err := c.Denoiser.Predict(ctx, &qq, &b); err != nil {
		return err
	}
	_, out := p.Fit(q.X, a.Kind)
	p.Parts = []models.Part{{Name: "cond", Weight: c.w, Out: a.Out, Kind: a.Kind}, {Name: "uncond", Weight: 1 - c.w, Out: b.Out, Kind: b.Kind}}
	for i := range out {
		u := models.Data(b.Out)[i]
		out[i] = u + c.w*(models.Data(a.Out)[i]-u)
	}
	return nil
}

// withVariance adds the recorded second output of a learned-variance network.
type withVariance struct {
	models.Denoiser
	v *tensor.Dense
}

func (w withVariance) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if err := w.Denoiser.Predict(ctx, q, p); err != nil {
		return err
	}
	n := len(models.Data(p.Out))
	p.Extra = models.Wrap(models.Data(w.v)[q.Step.I*n:(q.Step.I+1)*n], p.Out.Shape()...)
	return nil
}

// gap returns the largest of |a-b| / (abs + rel |b|).
func gap(a, b []float64, abs, rel float64) float64 {
	if len(a) != len(b) {
		return math.Inf(1)
	}
	worst := 0.0
	for i := range a {
		d := math.Abs(a[i]-b[i]) / (abs + rel*math.Abs(b[i]))
		if !(d <= worst) {
			worst = d
			if math.IsNaN(d) {
				return math.Inf(1)
			}
		}
	}
	return worst
}

// TestGolden replays the reference implementations' runs.
func TestGolden(t *testing.T) {
	folder := goldenFolder()
	only := os.Getenv("DRIFT_GOLDEN")
	counts := map[string]int{}
	for _, g := range readRuns(t, folder) {
		if g.Kind != "" || !strings.Contains(g.ID, only) {
			continue
		}
		counts[g.Name]++
		t.Run(g.ID, func(t *testing.T) {
			t.Parallel()
			arrays := readArrays(t, filepath.Join(folder, "trajectories", g.File))
			xs, x0s, res := runGolden(t, folder, g, arrays)
			tol := g.Tolerance
			want := models.Data(arrays["x"])
			n := g.Batch * g.Dim
			repeats := len(g.Grid.Sigmas) > 1 && g.Grid.Sigmas[g.Steps] == g.Grid.Sigmas[g.Steps-1]
			if g.Adaptive { // the nodes are a result
				if d := gap(xs[len(xs)-1], want[len(want)-n:], tol.Abs, tol.Rel); d > 1 {
					t.Errorf("end point: %.3g times the tolerance", d)
				}
			} else {
				if len(xs) != g.Steps+1 {
					t.Fatalf("%d states, want %d", len(xs), g.Steps+1)
				}
				for i, x := range xs {
					if strings.HasPrefix(g.Reference, "diff-sampler") && g.Name == "unipc" && i < g.Steps {
						continue // the reference records corrected states
					}
					if d := gap(x, want[i*n:(i+1)*n], tol.Abs, tol.Rel); d > 1 {
						t.Errorf("state %d of %d: %.3g times the tolerance: have %.12g, want %.12g", i, g.Steps, d, x[0], want[i*n])
						break
					}
				}
				if w := arrays["x0"]; w != nil && tol.Abs < 1e-6 && !(strings.HasPrefix(g.Reference, "diff-sampler") && g.Name == "unipc") {
					if repeats && g.Name == "deis" {
						x0s = x0s[:g.Steps-1]
					}
					want := models.Data(w)
					if g.Sampler == "pndm:skip-prk=true" { // recorded by calls, and step 0 makes two
						want = append(want[:n:n], want[2*n:]...)
						x0s = x0s[:g.Steps-1]
					}
					for i, x := range x0s {
						if d := gap(x, want[i*n:(i+1)*n], tol.Abs, tol.Rel); d > 1 {
							t.Errorf("prediction %d: %.3g times the tolerance: have %.12g, want %.12g", i, d, x[0], want[i*n])
							break
						}
					}
				}
			}
			nfe := float64(g.NFE)
			if g.Guidance != nil {
				nfe *= 2
			}
			if repeats && g.Name == "deis" {
				nfe-- // ours does not ask the model on a step of length zero
			}
			if g.Name == "dpm-adaptive" { // ours does not ask again where a step was refused
				order := 3.0
				if strings.Contains(g.Sampler, "order=2") {
					order = 2
				}
				nfe = nfe/order*(order-1) + float64(res.Stats.Steps)
			}
			if res.Stats.NFE != nfe {
				t.Errorf("NFE %g, want %g", res.Stats.NFE, nfe)
			}
		})
	}
	if only == "" {
		for _, k := range slices.Sorted(maps.Keys(counts)) {
			t.Logf("%-20s %d", k, counts[k])
		}
	}
}
