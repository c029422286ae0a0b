package dna

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"

	"drift/internal/kernels"
)

// Batch is a part of a step's examples: an input, and the token at every position (or, for a classifier, the class of every
// row) that the network should name.
type Batch struct {
	Input
	Want []int
}

// Training trains a network by cross-entropy with Adam (0.9, 0.999), the norm of the gradient limited to 1 (as the
// reference), the rate rising over WarmUp steps and falling with a cosine to 0. The weights that are left are an average
// over the run. It is reproducible: the parts of a step are the same whatever the number of workers, and their gradients
// are added in one order.
type Training struct {
	Steps  int
	Parts  int // batches of a step, worked on at the same time
	Rate   float64
	WarmUp int
	Decay  float64 // of the average of the weights, capped by (1+n)/(10+n) at step n
	// Part makes part k of step s; it is called from several goroutines, and may depend on (s, k) alone.
	Part func(step, part int) (Batch, error)
	// Progress is called after every step with its mean loss, in nats.
	Progress func(step int, loss float64)
}

// Train trains on from w and leaves the averaged weights there.
func Train(ctx context.Context, s Shape, w Weights, t Training, tier kernels.Tier, workers int) error {
	if t.Steps < 1 || t.Parts < 1 || t.Part == nil || !(t.Rate > 0) {
		return fmt.Errorf("dna: training of %d steps of %d parts at rate %g", t.Steps, t.Parts, t.Rate)
	}
	names := slices.Sorted(maps.Keys(w))
	zero := func() Weights {
		z := Weights{}
		for _, name := range names {
			z[name] = make([]float32, len(w[name]))
		}
		return z
	}
	m, v, mean := zero(), zero(), zero()
	for name := range w {
		copy(mean[name], w[name])
	}
	parts := make([]Weights, t.Parts)
	for k := range parts {
		parts[k] = zero()
	}
	workers = min(max(workers, 1), t.Parts)
	pools, memory := make([]*kernels.Pool, workers), make([]gradients, workers)
	for i := range pools {
		pools[i] = kernels.NewPool(tier, 1)
		defer pools[i].Close()
	}
	losses, errs := make([]float64, t.Parts), make([]error, t.Parts)
	for step := range t.Steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		var group sync.WaitGroup
		for i := range workers {
			group.Go(func() {
				net := NewNet(s, w, pools[i])
				for k := i; k < t.Parts; k += workers {
					losses[k], errs[k] = net.learn(&memory[i], t, step, k, parts[k])
				}
			})
		}
		group.Wait()
		loss, norm := 0.0, 0.0
		for k := range parts {
			if errs[k] != nil {
				return fmt.Errorf("dna: step %d: %w", step, errs[k])
			}
			loss += losses[k] / float64(t.Parts)
		}
		if loss-loss != 0 {
			return fmt.Errorf("dna: step %d: the loss is %g", step, loss)
		}
		for _, name := range names {
			g := parts[0][name]
			for k := 1; k < t.Parts; k++ {
				for j, x := range parts[k][name] {
					g[j] += x
				}
			}
			for j := range g {
				g[j] /= float32(t.Parts)
				norm += float64(g[j]) * float64(g[j])
			}
		}
		clip := min(1, 1/math.Sqrt(norm))
		rate := t.Rate * min(1, float64(step+1)/float64(max(t.WarmUp, 1))) * (1 + math.Cos(math.Pi*float64(step)/float64(t.Steps))) / 2
		c1, c2 := 1-math.Pow(0.9, float64(step+1)), 1-math.Pow(0.999, float64(step+1))
		keep := float32(min(t.Decay, float64(1+step)/float64(10+step)))
		for _, name := range names {
			if name == "time_embedder.0.W" { // fixed
				continue
			}
			x, a, b, avg := w[name], m[name], v[name], mean[name]
			for j, g := range parts[0][name] {
				g *= float32(clip)
				a[j] = 0.9*a[j] + 0.1*g
				b[j] = 0.999*b[j] + 0.001*g*g
				x[j] -= float32(rate * float64(a[j]) / c1 / (math.Sqrt(float64(b[j])/c2) + 1e-8))
				avg[j] = keep*avg[j] + (1-keep)*x[j]
			}
		}
		if t.Progress != nil {
			t.Progress(step, loss)
		}
	}
	for name := range w {
		copy(w[name], mean[name])
	}
	return nil
}

// learn makes the gradients of one part and returns its mean loss.
func (n *Net) learn(g *gradients, t Training, step, part int, grads Weights) (float64, error) {
	b, err := t.Part(step, part)
	if err != nil {
		return 0, err
	}
	if err := n.check(&b.Input); err != nil {
		return 0, err
	}
	for _, v := range grads {
		clear(v)
	}
	n.run(b.Input, true)
	out, k := n.tape.out, n.Categories
	if n.Head {
		out, k = n.tape.to, n.Classes
	}
	rows := len(out) / k
	if len(b.Want) != rows {
		return 0, fmt.Errorf("%d targets for %d rows", len(b.Want), rows)
	}
	d, loss := make([]float32, len(out)), 0.0
	for i, want := range b.Want {
		row := out[i*k : (i+1)*k]
		lse := logSumExp(row)
		loss += lse - float64(row[want])
		for j, v := range row {
			d[i*k+j] = float32(math.Exp(float64(v)-lse) / float64(rows))
		}
		d[i*k+want] -= 1 / float32(rows)
	}
	n.back(g, d, grads, nil)
	return loss / float64(rows), nil
}

// Expand writes the network's input of a state x (positions of k numbers) at time t: (1-w) x, w x with w = c/(alpha+c-1),
// c = 2, alpha = 1 + t.
func Expand[T float32 | float64](dst []float32, x []T, k int, t float64) {
	w := 2 / (t + 2)
	for at := 0; at < len(x); at += k {
		for j, v := range x[at : at+k] {
			dst[2*at+j], dst[2*at+k+j] = float32((1-w)*float64(v)), float32(w*float64(v))
		}
	}
}

// Noise draws x ~ Dir(1 + t e_token) at every position.
func Noise(r *rand.Rand, dst []float64, tokens []int, k int, t float64) {
	for l, i := range tokens {
		x, sum := dst[l*k:(l+1)*k], 0.0
		for j := range x {
			if j == i {
				x[j] = gamma(r, 1+t)
			} else {
				x[j] = r.ExpFloat64()
			}
			sum += x[j]
		}
		for j := range x {
			x[j] /= sum
		}
	}
}

// gamma draws from Gamma(a, 1), a >= 1 (Marsaglia and Tsang 2000).
func gamma(r *rand.Rand, a float64) float64 {
	d := a - 1./3
	c := 1 / math.Sqrt(9*d)
	for {
		z := r.NormFloat64()
		v := 1 + c*z
		if v <= 0 {
			continue
		}
		v *= v * v
		if math.Log(r.Float64()) < z*z/2+d-d*v+d*math.Log(v) {
			return d * v
		}
	}
}
