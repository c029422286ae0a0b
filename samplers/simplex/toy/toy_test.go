package toy_test

import (
	"context"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"drift/models"
	"drift/samplers"
	"drift/samplers/simplex"
	"drift/samplers/simplex/toy"
	"drift/schedules"
)

// divergence samples n sequences by 19 Euler steps and returns the mean over the positions of KL(empirical || target).
func divergence(t *testing.T, net models.Denoiser, path schedules.Field, target [][]float64, n int) float64 {
	t.Helper()
	g, err := schedules.NewGrid(path, "time", 19, schedules.Ends{})
	if err != nil {
		t.Fatal(err)
	}
	count := make([][]float64, len(target))
	for l := range count {
		count[l] = make([]float64, len(target[l]))
	}
	for from := 0; from < n; from += 500 {
		p := &samplers.Problem{Model: net, Grid: g, Shape: []int{len(target), path.Categories()}}
		for i := range 500 {
			p.Rows = append(p.Rows, models.Row{Seed: uint64(from + i), Particle: 1})
		}
		res, err := samplers.Sample(context.Background(), samplers.Euler{}, p)
		if err != nil {
			t.Fatal(err)
		}
		tokens, err := simplex.Tokens(res.Run.State())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range tokens {
			for l, k := range s {
				count[l][k]++
			}
		}
	}
	sum := 0.0
	for l, c := range count {
		for i, v := range c {
			if v > 0 {
				sum += v / float64(n) * math.Log(v/float64(n)/target[l][i]) / float64(len(count))
			}
		}
	}
	return sum
}

// TestNoise: the first coordinate under category 0 has the mean of Beta(1+t, K-1), and of the linear path.
func TestNoise(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	x := make([]float64, 5)
	for _, c := range []struct {
		path schedules.Field
		t    float64
		mean float64
	}{{schedules.Dirichlet{K: 5}, 3, 4. / 8}, {schedules.Dirichlet{K: 5}, 0, 1. / 5}, {schedules.SimplexLinear{K: 5}, 0.4, 0.6/5 + 0.4}} {
		const n = 20000
		sum := 0.0
		for range n {
			toy.Noise(r, x, c.path, 0, c.path.At(c.t))
			sum += x[0]
		}
		if math.Abs(sum/n-c.mean) > 0.006 {
			t.Errorf("%s at t=%g: mean %.4f, want %.4f", c.path.Name(), c.t, sum/n, c.mean)
		}
	}
}

// TestTrain: the loss falls from log K, the same seed gives the same network, and what it answers at t = 0, where the state
// says nothing, favours what the target favours.
func TestTrain(t *testing.T) {
	path := schedules.Dirichlet{K: 4}
	target := [][]float64{{0.7, 0.1, 0.1, 0.1}, {0.1, 0.1, 0.1, 0.7}}
	var losses []float64
	train := func(steps int) *toy.Net {
		losses = nil
		n := toy.NewNet(path, 2, 24, 1)
		if err := n.Train(context.Background(), target, toy.Options{Steps: steps, Batch: 128, Rate: 5e-3, Seed: 3, Progress: func(_ int, l float64) { losses = append(losses, l) }}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	a, b := train(20), train(20)
	for l := range a.W {
		for i := range a.W[l] {
			if a.W[l][i] != b.W[l][i] {
				t.Fatalf("weight %d of layer %d differs between two runs", i, l)
			}
		}
	}
	a = train(200)
	last := 0.0
	for _, l := range losses[180:] {
		last += l / 20
	}
	if math.Abs(losses[0]-math.Log(4)) > 1e-9 || last > 0.8 {
		t.Errorf("the loss goes from %.4f (log 4 = %.4f) to %.4f", losses[0], math.Log(4), last)
	}
	var p models.Pred
	x := models.Wrap([]float64{0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25}, 1, 2, 4)
	if err := a.Predict(context.Background(), &models.Query{X: x, At: []schedules.Node{path.At(0)}, Rows: []models.Row{{}}}, &p); err != nil {
		t.Fatal(err)
	}
	for i, v := range models.Data(p.Out) {
		if (v > 0.5) != (target[i/4][i%4] > 0.5) { // 200 steps are few
			t.Errorf("at t = 0: probability %d is %.3f, the target's %.1f", i, v, target[i/4][i%4])
		}
	}
}

// TestToyTrained is the experiment with trained networks: above the noise of counting, at K = 40 the Dirichlet path has less than
// 0.6 of the divergence of the linear one.
func TestToyTrained(t *testing.T) {
	if os.Getenv("DRIFT_SLOW") == "" {
		t.Skip("slow: DRIFT_SLOW=1")
	}
	const n = 5000
	for _, k := range []int{20, 40} {
		target := toy.Target(4, k, 5)
		var kl [2]float64
		for i, path := range []schedules.Field{schedules.Dirichlet{K: k}, schedules.SimplexLinear{K: k}} {
			net := toy.NewNet(path, 4, 64, 1)
			if err := net.Train(context.Background(), target, toy.Options{Steps: 1500, Seed: 2}); err != nil {
				t.Fatal(err)
			}
			kl[i] = divergence(t, net, path, target, n)
		}
		uniform := 0.0
		for _, q := range target {
			for _, v := range q {
				uniform -= math.Log(v*float64(k)) / float64(4*k)
			}
		}
		t.Logf("K=%d: dirichlet %.4f, linear %.4f, uniform guess %.4f, floor %.4f", k, kl[0], kl[1], uniform, float64(k-1)/(2*n))
		floor := float64(k-1) / (2 * n) // what counting n exact samples gives
		if k == 40 && !(kl[0]-floor < 0.6*(kl[1]-floor)) {
			t.Errorf("K=%d: dirichlet %.4f, linear %.4f", k, kl[0], kl[1])
		}
	}
}
