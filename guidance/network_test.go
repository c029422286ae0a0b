package guidance_test

import (
	"context"
	"math"
	"strings"
	"testing"
	"time"

	"drift/guidance"
	"drift/models"
	"drift/models/open"
	"drift/samplers"
	"drift/schedules"
)

// red is experiment 6 of a user: brighter above than below.
const red = `
def energy(x0, ctx):
    top, bottom = x0[0, :14], x0[0, 14:]
    return sum((top - bottom - 0.4) ** 2) * ctx.sigma / (1 + ctx.sigma)
`

func network(t testing.TB, name string) *open.Model {
	m, err := open.Open(context.Background(), name, open.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// TestNetwork: guiders that need a network, on the embedded one: disturbed layers change the picture, the weak model is the
// early checkpoint, and a scripted energy falls, by the predicted data and through the network.
func TestNetwork(t *testing.T) {
	m, early := network(t, "fashion"), network(t, "fashion-early")
	script, err := guidance.Script("red.star", red)
	if err != nil {
		t.Fatal(err)
	}
	grid, err := schedules.NewGrid(m.Denoiser.Process().(schedules.Gaussian), "trailing", 4, schedules.Ends{})
	if err != nil {
		t.Fatal(err)
	}
	sample := func(d models.Denoiser) (*samplers.Result, []float64) {
		t.Helper()
		p := &samplers.Problem{Model: d, Grid: grid, Shape: m.Info.Shape, Rows: []models.Row{{Seed: 0}, {Seed: 1}}, Cond: &models.Cond{Classes: []int{3, 7}}}
		res, err := samplers.Sample(context.Background(), samplers.DDIM{}, p)
		if err != nil {
			t.Fatal(err)
		}
		return res, models.Data(res.X)
	}
	parse := func(s string) guidance.Guider {
		g, err := guidance.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	contrast := func(x []float64) float64 { // mean squared distance of top - bottom from 0.4
		sum := 0.0
		for k := range 2 {
			for i := range 14 * 28 {
				d := x[784*k+i] - x[784*k+i+14*28] - 0.4
				sum += d * d / (2 * 14 * 28)
			}
		}
		return sum
	}
	_, plain := sample(m.Denoiser)
	for name, c := range map[string]struct {
		g         guidance.Guider
		nfe, vjps float64
	}{
		"pag":                      {parse("pag"), 8, 0},
		"slg":                      {parse("slg"), 8, 0},
		"auto":                     {guidance.Auto{W: 2, Weak: early.Denoiser}, 8, 0},
		"energy":                   {guidance.Gradient{W: 0.3, Of: script}, 4, 0},
		"energy through the model": {guidance.Gradient{W: 0.05, Of: script, Through: guidance.ThroughModel, Span: guidance.Span{Hi: 8}}, 6, 2},
	} {
		res, x := sample(c.g.Guide(m.Denoiser))
		gap := maxGap(x, plain)
		if !(gap > 0.01) || math.IsNaN(gap) || res.Stats.NFE != c.nfe || res.Stats.VJPs != c.vjps {
			t.Errorf("%s changes the pictures by %g, with %g evaluations and %g gradients; want %g and %g", name, gap, res.Stats.NFE, res.Stats.VJPs, c.nfe, c.vjps)
		}
		t.Logf("%s: contrast %.3f, unguided %.3f", name, contrast(x), contrast(plain))
		if have, was := contrast(x), contrast(plain); strings.HasPrefix(name, "energy") && !(have < 0.9*was) {
			t.Errorf("%s: the energy is %g, unguided %g", name, have, was)
		}
	}
}

// BenchmarkScript compares a scripted energy on 64 pictures of 28x28 with a pass of the embedded network.
func BenchmarkScript(b *testing.B) {
	m := network(b, "fashion")
	script, err := guidance.Script("red.star", red)
	if err != nil {
		b.Fatal(err)
	}
	q := &models.Query{X: models.New(64, 1, 28, 28), Cond: &models.Cond{}}
	for range 64 {
		q.At, q.Cond.Classes = append(q.At, m.Denoiser.Process().(schedules.Gaussian).AtRatio(1)), append(q.Cond.Classes, 3)
	}
	var inside, pass time.Duration
	e, grad := make([]float64, 64), models.New(64, 1, 28, 28)
	var p models.Pred
	for b.Loop() {
		start := time.Now()
		if err := m.Denoiser.Predict(context.Background(), q, &p); err != nil {
			b.Fatal(err)
		}
		pass += time.Since(start)
		start = time.Now()
		if err := script.Energy(context.Background(), q, p.Out, e, grad); err != nil {
			b.Fatal(err)
		}
		inside += time.Since(start)
	}
	b.ReportMetric(float64(inside)/float64(pass), "script/pass")
	b.ReportMetric(float64(inside.Microseconds())/float64(b.N*64), "us/picture")
}
