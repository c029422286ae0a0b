package smc

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"testing"

	"gorgonia.org/tensor"

	"drift/internal/rng"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/schedules"
)

// oracle samples a mixture exactly at every node of a grid, however coarse: a step draws x0 from p(x0 | x_s), then x_t from
// q(x_t | x_s, x0). So its results have the mixture's law, and tilts of it have closed forms.
type oracle struct{ mix *analytic.Mixture }

func (oracle) Needs() samplers.Needs { return samplers.Needs{Noise: true} }

func (o oracle) Begin(_ context.Context, p *samplers.Problem) (samplers.Run, error) {
	r := &oracleRun{oracle: o, p: p, x: models.New(len(p.Rows), o.mix.Dim())}
	for k, row := range p.Rows {
		samplers.Euclid{}.Prior(r.row(k), p.Grid[0], k, row, samplers.Streams{})
	}
	return r, nil
}

type oracleRun struct {
	oracle
	p    *samplers.Problem
	x    *tensor.Dense
	i    int
	pred models.Pred
}

func (r *oracleRun) row(k int) []float64 {
	d := r.mix.Dim()
	return models.Data(r.x)[k*d : (k+1)*d]
}

func (r *oracleRun) State() *samplers.State {
	return &samplers.State{X: r.x, At: r.p.Grid[r.i], I: r.i, N: len(r.p.Grid) - 1, Done: float64(r.i) / float64(len(r.p.Grid)-1)}
}

func (r *oracleRun) Next(context.Context) (bool, error) {
	if r.i == len(r.p.Grid)-1 {
		return true, nil
	}
	s, t := r.p.Grid[r.i], r.p.Grid[r.i+1]
	target := r.mix.Target()
	d := r.mix.Dim()
	z := make([]float64, 2*d)
	var u [1]float64
	for k, row := range r.p.Rows {
		x := r.row(k)
		key := rng.Key{Seed: row.Seed, Image: uint64(row.Particle), Step: r.i, Purpose: rng.PurposeStep}
		rng.Normal(z, key)
		rng.Uniform(u[:], key)
		lw := make([]float64, len(target.Weights))
		for c := range lw {
			lw[c] = math.Log(target.Weights[c])
			for j := range d {
				v := s.Alpha*s.Alpha*target.Vars[c][j] + s.Sigma*s.Sigma
				e := x[j] - s.Alpha*target.Means[c][j]
				lw[c] -= 0.5*math.Log(v) + 0.5*e*e/v
			}
		}
		w, _ := Weigh(lw)
		c := invert(w.W, u[:])[0]
		q := t.Ratio() / s.Ratio()
		b := s.Sigma * s.Sigma * (1 - q) * (1 + q)
		for j := range d {
			m, v := target.Means[c][j], target.Vars[c][j]
			all := s.Alpha*s.Alpha*v + s.Sigma*s.Sigma
			x0 := m + s.Alpha*v/all*(x[j]-s.Alpha*m) + math.Sqrt(v*s.Sigma*s.Sigma/all)*z[j]
			x[j] = t.Alpha*b/(s.Sigma*s.Sigma)*x0 + q*t.Sigma/s.Sigma*x[j] + math.Sqrt(b)*t.Sigma/s.Sigma*z[d+j]
		}
	}
	r.i++
	return false, nil
}

func (r *oracleRun) Peek(ctx context.Context) (*models.Pred, error) {
	at := make([]schedules.Node, len(r.p.Rows))
	for i := range at {
		at[i] = r.p.Grid[r.i]
	}
	return &r.pred, r.mix.Predict(ctx, &models.Query{X: r.x, At: at, Rows: r.p.Rows}, &r.pred)
}

func (r *oracleRun) Select(parents []int, _ []models.Row) error {
	old := slices.Clone(models.Data(r.x))
	d := r.mix.Dim()
	for j, k := range parents {
		copy(r.row(j), old[k*d:(k+1)*d])
	}
	return nil
}

// world is the grid of the one-Gaussian problems: alpha_k = cos(0.995 (1 - k/n) pi/2).
func world(n int) schedules.Grid {
	g := make(schedules.Grid, n+1)
	for k := range g {
		a := math.Cos(math.Pi / 2 * 0.995 * (1 - float64(k)/float64(n)))
		g[k] = schedules.Node{T: float64(1000 * (n - k) / n), Alpha: a, Sigma: math.Sqrt(1 - a*a)}
	}
	g[n].Alpha, g[n].Sigma = 1, 0
	return g
}

// table is a discrete process, on which DDPM adds noise on the last step too.
func table(t testing.TB) schedules.Gaussian {
	t.Helper()
	p, err := schedules.NewVPDiscrete(schedules.Betas{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mixture(t testing.TB, target analytic.Target) *analytic.Mixture {
	t.Helper()
	if target.Process == nil {
		target.Process = table(t)
	}
	m, err := analytic.New(target)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func normal01(t testing.TB) *analytic.Mixture {
	return mixture(t, analytic.Target{Weights: []float64{1}, Means: [][]float64{{0}}, Vars: [][]float64{{1}}})
}

// linear is the reward a.x.
func linear(a ...float64) Reward {
	return func(_ context.Context, x *tensor.Dense, _ *Look) ([]float64, error) {
		d, rows := models.Data(x), x.Shape()[0]
		w := len(d) / rows
		out := make([]float64, rows)
		for i := range out {
			for j, c := range a {
				out[i] += c * d[i*w+j]
			}
		}
		return out, nil
	}
}

// quadratic is the reward -|x-c|^2/2.
func quadratic(c ...float64) Reward {
	return func(_ context.Context, x *tensor.Dense, _ *Look) ([]float64, error) {
		d, rows := models.Data(x), x.Shape()[0]
		w := len(d) / rows
		out := make([]float64, rows)
		for i := range out {
			for j := range w {
				out[i] -= 0.5 * (d[i*w+j] - c[j]) * (d[i*w+j] - c[j])
			}
		}
		return out, nil
	}
}

func seeds(n int) []uint64 {
	out := make([]uint64, n)
	for i := range out {
		out[i] = uint64(i + 1)
	}
	return out
}

func sample(t testing.TB, s samplers.Sampler, p *samplers.Problem) *samplers.Result {
	t.Helper()
	res, err := samplers.Sample(context.Background(), s, p)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// tally collects one value per run of named statistics.
type tally map[string][]float64

func (a tally) add(name string, v float64) { a[name] = append(a[name], v) }

func (a tally) mean(name string) (mean, sd float64) {
	v := a[name]
	for _, x := range v {
		mean += x
	}
	mean /= float64(len(v))
	for _, x := range v {
		sd += (x - mean) * (x - mean)
	}
	return mean, math.Sqrt(sd / float64(len(v)-1))
}

// near holds a mean over runs to a closed form: 4.5 standard errors.
func (a tally) near(t *testing.T, name string, want float64) {
	t.Helper()
	m, sd := a.mean(name)
	se := sd / math.Sqrt(float64(len(a[name])))
	if !(math.Abs(m-want) <= 4.5*se+1e-12) {
		t.Errorf("%s: %.5g, want %.5g (standard error %.2g, %.1f of them off)", name, m, want, se, (m-want)/se)
	}
	t.Logf("%s: %.5g, exact %.5g, standard error %.2g", name, m, want, se)
}

// num is a number of the fixtures, where infinities are strings.
type num float64

func (n *num) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case `"-inf"`, `"-Infinity"`:
		*n = num(math.Inf(-1))
	case `"inf"`, `"Infinity"`:
		*n = num(math.Inf(1))
	case `"nan"`, `"NaN"`:
		*n = num(math.NaN())
	default:
		var v float64
		if len(b) > 0 && b[0] == '"' {
			b = b[1 : len(b)-1]
		}
		if err := json.Unmarshal(b, &v); err != nil {
			return err
		}
		*n = num(v)
	}
	return nil
}

func floats(v []num) []float64 {
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = float64(x)
	}
	return out
}

// golden is a case of the steering fixtures.
type golden struct {
	Name, Kind, Method      string
	Options, Inputs, Reward json.RawMessage
	Expected, Target        json.RawMessage
	Tol                     struct{ Abs, Rel float64 }
	Runs                    int
	Stats                   []stat
}

type stat struct {
	Stat            string
	Value, Min, Max *num
	ValueSE         float64 `json:"value_se"`
	RunSD           float64 `json:"run_sd"`
	Tol             float64
	NSE             float64 `json:"n_se"`
	LogZ            float64 `json:"log_Z_true"`
}

func (s stat) hold(t *testing.T, got float64, runs int) {
	t.Helper()
	if s.Value != nil && s.Min == nil && s.Max == nil {
		slack := s.Tol + s.NSE*math.Sqrt(s.RunSD*s.RunSD/float64(runs)+s.ValueSE*s.ValueSE)
		if !(math.Abs(got-float64(*s.Value)) <= slack) {
			t.Errorf("%s: %.6g, want %.6g within %.3g", s.Stat, got, float64(*s.Value), slack)
		}
		t.Logf("%s: %.6g, want %.6g within %.3g", s.Stat, got, float64(*s.Value), slack)
		return
	}
	if s.Min != nil && got < float64(*s.Min) || s.Max != nil && got > float64(*s.Max) {
		t.Errorf("%s: %.6g outside its bounds", s.Stat, got)
	}
}

func goldens(t testing.TB, file string) []golden {
	t.Helper()
	data, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var out []golden
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func decode[T any](t testing.TB, raw json.RawMessage) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func (g golden) close(t testing.TB, what string, got, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %s has %d numbers, want %d", g.Name, what, len(got), len(want))
		return
	}
	for i, w := range want {
		if got[i] == w || (math.IsNaN(w) && math.IsNaN(got[i])) {
			continue
		}
		if !(math.Abs(got[i]-w) <= g.Tol.Abs+g.Tol.Rel*math.Abs(w)) {
			t.Errorf("%s: %s[%d] = %.17g, want %.17g", g.Name, what, i, got[i], w)
			return
		}
	}
}

// isSlow tells whether checks that take long are asked for.
func isSlow() bool { return os.Getenv("DRIFT_SLOW") != "" }

// given hands out listed uniforms.
func given(u []float64) Uniforms {
	return func(n int) []float64 {
		if n > len(u) {
			panic(fmt.Sprintf("%d uniforms asked for, %d left", n, len(u)))
		}
		out := u[:n]
		u = u[n:]
		return out
	}
}
