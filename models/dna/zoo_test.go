package dna

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"drift/internal/kernels"
	"drift/models"
	"drift/schedules"
)

// TestGrammar: sequences have their length, the composition of their class and its motifs at their distances, and depend on
// the stream alone.
func TestGrammar(t *testing.T) {
	for class, c := range Classes() {
		strong, letters, first, both := 0.0, 0.0, 0, 0
		for i := range 60 {
			s := Generate(rand.New(rand.NewPCG(4, uint64(i))), class, 400)
			if len(s) != 400 || Text(s) != Text(Generate(rand.New(rand.NewPCG(4, uint64(i))), class, 400)) {
				t.Fatalf("%s: %d letters, or not the same twice", c.Name, len(s))
			}
			back, err := Tokens(strings.ToLower(Text(s)))
			if err != nil || Text(back) != Text(s) {
				t.Fatalf("%s: letters do not read back: %v", c.Name, err)
			}
			for p, k := range s {
				letters++
				if k == 1 || k == 2 {
					strong++
				}
				r := c.Pairs()[0]
				if p+r.Most+8 <= len(s) && r.First.Matches(s[p:]) {
					first++
					for d := r.Least; d <= r.Most; d++ {
						if r.Second.Matches(s[p+d:]) {
							both++
							break
						}
					}
				}
			}
		}
		if share := float64(both) / float64(first); first < 50 || share < 0.5 {
			t.Errorf("%s: %d first motifs, %d of them with the second", c.Name, first, both)
		}
		if gc := strong / letters; gc < c.GC-0.05 || gc > c.GC+0.12 {
			t.Errorf("%s: GC %.3f, the background has %.2f", c.Name, gc, c.GC)
		}
	}
	for _, l := range []int{1, 2, 10000} {
		if s := Generate(rand.New(rand.NewPCG(1, 1)), 0, l); len(s) != l {
			t.Errorf("%d letters, want %d", len(s), l)
		}
	}
	if _, err := Tokens("ACGN"); err == nil {
		t.Error("N was taken for a letter")
	}
}

// TestEmbedded: the embedded networks open, the denoiser uses state and class, the classifier names the classes of the
// grammar as well as it says, and the classifier of noisy states has the gradient of what it says.
func TestEmbedded(t *testing.T) {
	ctx := context.Background()
	pool := kernels.NewPool(kernels.Detect(), 2)
	defer pool.Close()
	c, err := OpenClassifier(pool)
	if err != nil {
		t.Fatal(err)
	}
	b := Clean(80, 500, 77, 0, 0)
	logits := make([]float64, 80*4)
	if err := c.Net.Classify(ctx, nil, logits, b.Input); err != nil {
		t.Fatal(err)
	}
	right := 0
	for i, want := range b.Want {
		best := 0
		for k := range 4 {
			if logits[4*i+k] > logits[4*i+best] {
				best = k
			}
		}
		if best == want {
			right++
		}
	}
	if float64(right)/80 < c.Accuracy-0.05 || c.Accuracy < 0.9 {
		t.Errorf("%d of 80 are named, the accuracy is said to be %g", right, c.Accuracy)
	}
	for _, e := range Embedded() {
		d, err := Open(e[0], pool)
		if err != nil {
			t.Fatal(err)
		}
		if i := d.Info(); i.Shape[0] != Length || i.Classes != 4 || len(i.Labels) != 4 || len(i.Hash) != 64 {
			t.Errorf("%s: %+v", e[0], i)
		}
		// A state that holds a TATA box, clear at t = 7: the network names its letters.
		seq, err := Tokens("GCGCGGCATATAAAAGGCGCATTGCAGCCAGG")
		if err != nil {
			t.Fatal(err)
		}
		x := make([]float64, 4*len(seq))
		Noise(rand.New(rand.NewPCG(9, 9)), x, seq, 4, 30)
		var p models.Pred
		q := &models.Query{X: models.Wrap(x, 1, len(seq), 4), At: []schedules.Node{d.Path.At(7)}, Cond: &models.Cond{Classes: []int{0}}, Rows: []models.Row{{}}}
		if err := d.Predict(ctx, q, &p); err != nil {
			t.Fatal(err)
		}
		hit := 0
		for l, k := range seq {
			if models.Data(p.Out)[4*l+k] > 0.5 {
				hit++
			}
		}
		if e[0] == "dna" && hit < len(seq)-2 {
			t.Errorf("%s names %d of %d clear letters", e[0], hit, len(seq))
		}
		q.Cond.Classes[0] = 9
		if err := d.Predict(ctx, q, &p); err == nil {
			t.Errorf("%s takes class 9", e[0])
		}
		if e[0] != "dna" {
			continue
		}
		logp, grad := make([]float64, 1), models.New(1, len(seq), 4)
		at := []schedules.Node{d.Path.At(3)}
		if err := d.LogProb(ctx, q.X, at, []int{2}, logp, grad); err != nil {
			t.Fatal(err)
		}
		// Along its own gradient, log p rises by the square of its norm.
		norm := 0.0
		for _, v := range models.Data(grad) {
			norm += v * v
		}
		const h = 1e-3
		values := make([]float64, 2)
		for i, sign := range []float64{1, -1} {
			y := append([]float64(nil), x...)
			for j, v := range models.Data(grad) {
				y[j] += sign * h * v
			}
			if err := d.LogProb(ctx, models.Wrap(y, 1, len(seq), 4), at, []int{2}, values[i:i+1], nil); err != nil {
				t.Fatal(err)
			}
		}
		if rise := (values[0] - values[1]) / (2 * h); rise < 0.9*norm || rise > 1.1*norm {
			t.Errorf("log p rises by %g along its gradient, the norm squared is %g", rise, norm)
		}
	}
}

// Sequences of the grammar depend on the stream alone; motifs are found in them.
func ExampleGenerate() {
	s := Generate(rand.New(rand.NewPCG(1, 2)), 0, 200)
	n := 0
	for p := range s {
		if TATA.Matches(s[p:]) {
			n++
		}
	}
	fmt.Println(len(s), "letters of class", Names()[0]+",", n, "TATA boxes")
	// Output: 200 letters of class tata, 2 TATA boxes
}
