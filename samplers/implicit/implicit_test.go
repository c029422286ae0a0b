package implicit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"drift/guidance"
	"drift/internal/rng"
	"drift/models"
	"drift/models/analytic"
	"drift/samplers"
	"drift/samplers/implicit"
	"drift/schedules"
)

// bowl is V = (x - theta)^2/2 with the loss (x - 1)^2/2, whose gradient by theta is theta - 1.
func bowl() implicit.Langevin {
	return implicit.Langevin{Dim: 1, Step: 0.1, Rate: 0.05,
		GradX:     func(x, theta, dst []float64) { dst[0] = x[0] - theta[0] },
		GradTheta: func(x, theta, dst []float64) { dst[0] = theta[0] - x[0] },
		Loss:      func(x []float64) float64 { return (x[0] - 1) * (x[0] - 1) / 2 }}
}

// TestGolden: one iteration to the fixture's (case implicit-step of the steering goldens).
func TestGolden(t *testing.T) {
	raw, err := os.ReadFile("../../guidance/testdata/systems.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	ran := false
	for _, text := range all {
		if !strings.Contains(string(text), `"name":"implicit-step"`) {
			continue
		}
		ran = true
		var c struct {
			Inputs struct {
				X, Noise          []float64
				Theta, Gamma, Eta float64
			}
			Expected struct {
				Gamma float64
				Theta float64   `json:"theta_next"`
				X     []float64 `json:"X_next"`
			}
		}
		if err := json.Unmarshal(text, &c); err != nil {
			t.Fatal(err)
		}
		l := bowl()
		l.Step, l.Rate = c.Inputs.Gamma, c.Inputs.Eta
		l.Noise = func(dst []float64, _, i int) { dst[0] = -c.Inputs.Noise[i] } // the fixture subtracts its noise, which is the same in law
		theta := []float64{c.Inputs.Theta}
		var gamma float64
		if err := l.Run(context.Background(), c.Inputs.X, theta, 1, func(_ int, g []float64) { gamma = g[0] }); err != nil {
			t.Fatal(err)
		}
		if math.Abs(gamma-c.Expected.Gamma) > 1e-10 || math.Abs(theta[0]-c.Expected.Theta) > 1e-10 {
			t.Errorf("gradient %.12g and theta %.12g, want %.12g and %.12g", gamma, theta[0], c.Expected.Gamma, c.Expected.Theta)
		}
		for i, v := range c.Expected.X {
			if math.Abs(c.Inputs.X[i]-v) > 1e-10 {
				t.Errorf("particle %d is %.12g, want %.12g", i, c.Inputs.X[i], v)
			}
		}
	}
	if !ran {
		t.Error("no case")
	}
}

// TestCovariance: at stationarity the estimate is theta - 1; the single loop finds theta = 1; the step's bias is known.
func TestCovariance(t *testing.T) {
	const n = 100000
	x := make([]float64, n)
	rng.Normal(x, rng.Key{Seed: 4})
	for i := range x {
		x[i] -= 2
	}
	if g := bowl().Gradient(x, []float64{-2})[0]; math.Abs(g+3) > 5*math.Sqrt(20./n) {
		t.Errorf("the gradient at -2 is %.4f, want -3", g)
	}
	l, theta := bowl(), []float64{-2}
	x = x[:4096]
	if err := l.Run(context.Background(), x, theta, 300, nil); err != nil {
		t.Fatal(err)
	}
	if math.Abs(theta[0]-1) > 0.15 {
		t.Errorf("theta ends at %.3f, want 1", theta[0])
	}
	l.Rate = 0
	if err := l.Run(context.Background(), x, theta, 100, nil); err != nil {
		t.Fatal(err)
	}
	v := 0.0
	for _, p := range x {
		v += (p - theta[0]) * (p - theta[0]) / float64(len(x))
	}
	if want := 1 / (1 - l.Step/2); math.Abs(v-want) > 5*want*math.Sqrt(2./4096) {
		t.Errorf("stationary variance %.4f, want %.4f", v, want)
	}
	for _, bad := range []implicit.Langevin{{}, {Dim: 1}} {
		if err := bad.Run(context.Background(), x, theta, 1, nil); err == nil {
			t.Error("a loop of nothing runs")
		}
	}
	l.Step = 1e200
	if err := l.Run(context.Background(), x, theta, 5, nil); err == nil || !strings.Contains(err.Error(), "smaller step") {
		t.Errorf("%v", err)
	}
}

// A guidance scale tuned through sampling: the one at which guided samples have the mean 1.3 (of conditional data N(1, 1/4)
// and all data as in the target).
func ExampleSPSA() {
	m, err := analytic.Parse([]byte(`{"type":"mixture","weights":[0.5,0.5],"means":[[-1],[1]],"vars":[[0.25],[0.25]],"labels":[0,1],"process":{"type":"vp-linear"},"prediction":"eps"}`))
	if err != nil {
		panic(err)
	}
	grid, err := schedules.NewGrid(schedules.VPLinear{}, "karras", 12, schedules.Ends{Final: "zero"})
	if err != nil {
		panic(err)
	}
	mean := func(ctx context.Context, w float64, seed uint64) (float64, error) {
		p := &samplers.Problem{Model: guidance.CFG{W: w}.Guide(m), Grid: grid, Shape: []int{1}, Cond: &models.Cond{}}
		for k := range 200 {
			p.Rows, p.Cond.Classes = append(p.Rows, models.Row{Seed: 1000*seed + uint64(k)}), append(p.Cond.Classes, 1)
		}
		res, err := samplers.Sample(ctx, samplers.Euler{}, p)
		if err != nil {
			return 0, err
		}
		sum := 0.0
		for _, x := range models.Data(res.X) {
			sum += x / 200
		}
		return sum, nil
	}
	theta := []float64{1}
	err = implicit.SPSA{Rate: 40, Width: 0.3, Seed: 7}.Run(context.Background(), theta, 30, func(ctx context.Context, theta []float64, seed uint64) (float64, error) {
		x, err := mean(ctx, theta[0], seed)
		return (x - 1.3) * (x - 1.3), err
	})
	if err != nil {
		panic(err)
	}
	x, err := mean(context.Background(), theta[0], 99)
	if err != nil {
		panic(err)
	}
	fmt.Println(theta[0] > 1.1, math.Abs(x-1.3) < 0.05)
	// Output: true true
}
