package smc

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
)

// ar1 is x' = phi x + N(0, q), observed with noise r, from the stationary law.
type ar1 struct {
	phi, q, r float64
	y         []float64
}

func (a ar1) Dim() int { return 1 }
func (a ar1) Len() int { return len(a.y) }
func (a ar1) Start(_ context.Context, x []float64, _ int) error {
	for i := range x {
		x[i] *= math.Sqrt(a.q / (1 - a.phi*a.phi))
	}
	return nil
}

func (a ar1) Move(_ context.Context, _ int, mean, x []float64, _ int) (float64, error) {
	for i, v := range x {
		mean[i] = a.phi * v
	}
	return math.Sqrt(a.q), nil
}

func (a ar1) Weigh(_ context.Context, t int, logG, v, x []float64, _ int) error {
	clear(v)
	for i, s := range x {
		logG[i] = -0.5*math.Log(2*math.Pi*a.r) - 0.5*(a.y[t]-s)*(a.y[t]-s)/a.r
	}
	return nil
}

// kalman is the exact filter and smoother of ar1: log likelihood, E sum x_t, E sum x_t x_{t+1}.
func (a ar1) kalman() (logL, sumX, sumXX float64, mean, variance []float64) {
	n := len(a.y)
	fm, fv := make([]float64, n), make([]float64, n)
	m, v := 0.0, a.q/(1-a.phi*a.phi)
	for t, y := range a.y {
		if t > 0 {
			m, v = a.phi*m, a.phi*a.phi*v+a.q
		}
		s := v + a.r
		logL += -0.5*math.Log(2*math.Pi*s) - 0.5*(y-m)*(y-m)/s
		g := v / s
		m, v = m+g*(y-m), v*(1-g)
		fm[t], fv[t] = m, v
	}
	mean, variance = make([]float64, n), make([]float64, n)
	mean[n-1], variance[n-1] = fm[n-1], fv[n-1]
	for t := n - 2; t >= 0; t-- {
		p := a.phi*a.phi*fv[t] + a.q
		g := fv[t] * a.phi / p
		mean[t] = fm[t] + g*(mean[t+1]-a.phi*fm[t])
		variance[t] = fv[t] + g*g*(variance[t+1]-p)
		sumXX += g*variance[t+1] + mean[t]*mean[t+1]
	}
	for _, v := range mean {
		sumX += v
	}
	return logL, sumX, sumXX, mean, variance
}

func TestKalmanGoldens(t *testing.T) {
	n := 0
	for _, g := range goldens(t, "paris.json") {
		if g.Method != "linear-gaussian" {
			continue
		}
		n++
		in := decode[struct {
			Phi, Q, R float64
			Y         []float64
		}](t, g.Inputs)
		want := decode[struct {
			LogL   float64   `json:"log_likelihood"`
			SumX   float64   `json:"E_sum_x"`
			SumXX  float64   `json:"E_sum_xx"`
			Smooth []float64 `json:"smoothed_mean"`
			Var    []float64 `json:"smoothed_variance"`
		}](t, g.Expected)
		l, x, xx, m, v := ar1{in.Phi, in.Q, in.R, in.Y}.kalman()
		g.close(t, "numbers", []float64{l, x, xx}, []float64{want.LogL, want.SumX, want.SumXX})
		g.close(t, "means", m, want.Smooth)
		g.close(t, "variances", v, want.Var)
	}
	if n != 3 {
		t.Errorf("%d cases", n)
	}
}

func TestBackwardGoldens(t *testing.T) {
	n := 0
	for _, g := range goldens(t, "paris.json") {
		if g.Kind != "golden" || g.Method != "paris" {
			continue
		}
		n++
		in := decode[struct {
			Phi, Q  float64
			U       [][]float64
			X       []float64
			XNext   []float64 `json:"x_next"`
			LW      []float64 `json:"log_weights"`
			Beta    []float64
			Unknown any `json:"-"`
		}](t, g.Inputs)
		want := decode[struct {
			Backward [][]float64
			J        [][]int
			Next     []float64 `json:"beta_next"`
			Full     []float64 `json:"beta_next_rao_blackwell"`
		}](t, g.Expected)
		mean := make([]float64, len(in.X))
		for i, x := range in.X {
			mean[i] = in.Phi * x
		}
		s := Smoother{H: func(_ int, x, next []float64) float64 { return x[0] * next[0] }}
		for k, x := range in.XNext {
			kernel := make([]float64, len(in.X))
			if err := backward(kernel, in.LW, nil, mean, math.Sqrt(in.Q), []float64{x}); err != nil {
				t.Fatal(err)
			}
			g.close(t, "kernel", kernel, want.Backward[k])
			j := invert(kernel, in.U[k])
			for i := range j {
				if j[i] != want.J[k][i] {
					t.Errorf("%s: ancestors %v, want %v", g.Name, j, want.J[k])
				}
			}
			g.close(t, "beta", []float64{s.step(0, in.Beta, in.X, j, []float64{x})}, want.Next[k:k+1])
			full := 0.0
			for i, p := range kernel {
				full += p * (in.Beta[i] + in.X[i]*x)
			}
			g.close(t, "full beta", []float64{full}, want.Full[k:k+1])
		}
	}
	if n != 2 {
		t.Errorf("%d cases", n)
	}
}

func product(_ int, x, next []float64) float64 { return x[0] * next[0] }

func TestSmootherFixtures(t *testing.T) {
	ctx := context.Background()
	n := 0
	for _, g := range goldens(t, "paris.json") {
		if g.Kind != "statistical" {
			continue
		}
		n++
		opt := decode[struct {
			Phi, Q, R        float64
			Y                []float64
			Draws, Particles int
			Iterations       int
		}](t, g.Options)
		chain := ar1{opt.Phi, opt.Q, opt.R, opt.Y}
		logL, _, _, _, _ := chain.kalman()
		s := Smoother{Particles: opt.Particles, Draws: opt.Draws, H: product}
		runs := g.Runs
		if !isSlow() {
			runs = max(60, min(g.Runs, 4000/opt.Particles)) / max(1, opt.Iterations/3)
		}
		got := tally{}
		for r := range runs {
			if g.Method == "ppg" {
				late := 0.0
				err := s.Gibbs(ctx, chain, uint64(r), opt.Iterations, func(pass int, r *Smoothed, _ []float64) error {
					if pass < 2 {
						got.add(fmt.Sprintf("mean estimate of iteration %d", pass), r.Estimate)
					}
					if pass >= 5 {
						late += r.Estimate / float64(opt.Iterations-5)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				got.add("mean over iterations 5-9", late)
				continue
			}
			out, err := s.Filter(ctx, chain, uint64(r), 0)
			if err != nil {
				t.Fatal(err)
			}
			got.add("mean estimate", out.Estimate)
			got.add("mean genealogy-tracking estimate", out.Genealogy)
			got.add("mean of exp(log_L - exact)", math.Exp(out.LogZ-logL))
		}
		t.Run(g.Name, func(t *testing.T) {
			for _, st := range g.Stats {
				if strings.HasPrefix(st.Stat, "sd ratio") {
					_, a := got.mean("mean estimate")
					_, b := got.mean("mean genealogy-tracking estimate")
					st.hold(t, a/b, runs)
					continue
				}
				if got[st.Stat] == nil {
					t.Fatalf("no statistic %q", st.Stat)
				}
				m, _ := got.mean(st.Stat)
				st.hold(t, m, runs)
			}
		})
	}
	if n != 4 {
		t.Errorf("%d cases", n)
	}
}

// TestSmootherEdges: one particle, one state, transitions without noise, mistakes.
func TestSmootherEdges(t *testing.T) {
	ctx := context.Background()
	chain := ar1{0.9, 1, 1, []float64{0.7}}
	out, err := Smoother{Particles: 1}.Filter(ctx, chain, 1, 0)
	if err != nil || out.Estimate != 0 || len(out.Paths[0]) != 1 {
		t.Errorf("%+v, %v", out, err)
	}
	a, err := Smoother{Particles: 5, H: product}.Filter(ctx, ar1{0.9, 1, 1, []float64{1, 2, 3}}, 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Smoother{Particles: 5, H: product}.Filter(ctx, ar1{0.9, 1, 1, []float64{1, 2, 3}}, 3, 0)
	if err != nil || a.Estimate != b.Estimate || a.LogZ != b.LogZ {
		t.Errorf("a pass cannot be repeated: %v, %v", a.Estimate, b.Estimate)
	}
	if _, err := (Smoother{}).Filter(ctx, chain, 1, 0); err == nil {
		t.Error("no particles")
	}
	if err := (Smoother{Particles: 1}).Gibbs(ctx, chain, 1, 1, nil); err == nil {
		t.Error("Gibbs with one particle")
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := (Smoother{Particles: 3}).Filter(stopped, ar1{0.9, 1, 1, []float64{1, 2}}, 1, 0); err == nil {
		t.Error("cancelled")
	}
}
