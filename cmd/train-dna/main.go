// Command train-dna trains the networks of package models/dna on sequences of its grammar and writes their weights:
//
//	go run ./cmd/train-dna --out models/dna/data             # all four, as they are embedded
//	go run ./cmd/train-dna --out /tmp/w --net dna --steps 200
//
// Nothing but the flags decides the result: two runs on one kernel tier give the same bits, with any number of threads.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"drift/internal/kernels"
	"drift/internal/safetensors"
	"drift/models"
	"drift/models/dna"
	"drift/samplers"
	"drift/samplers/simplex"
	"drift/schedules"
)

// recipe is how one network is trained.
type recipe struct {
	name    string
	shape   dna.Shape
	steps   int
	parts   int
	rows    int // of a part
	length  int
	rate    float64
	seed    uint64
	summary string
}

var recipes = []recipe{
	{"dna", dna.Shape{Categories: 4, Inputs: 8, Hidden: 64, Stacks: 1, Classes: 4}, 2400, 4, 16, 192, 3e-3, 1, "denoiser of Dirichlet flow matching"},
	{"dna-classifier", dna.Shape{Categories: 4, Hidden: 32, Stacks: 1, Classes: 4, Head: true}, 500, 4, 16, 192, 3e-3, 2, "classifier of clean sequences: the embedding of FBD"},
	{"dna-guide", dna.Shape{Categories: 4, Inputs: 8, Hidden: 32, Stacks: 1, Classes: 4, Head: true}, 500, 4, 16, 192, 3e-3, 3, "classifier of noisy sequences: classifier guidance"},
	{"dna-onestep", dna.Shape{Categories: 4, Inputs: 4, Hidden: 64, Stacks: 1, Classes: 4}, 300, 4, 8, 128, 1e-3, 4, "student of dna: one evaluation"},
}

// teacherSteps is how many Euler steps the teacher of dna-onestep makes.
const teacherSteps = 8

func main() {
	out := flag.String("out", "", "folder for the weights")
	which := flag.String("net", "", "networks to train, separated by commas (default: all)")
	steps := flag.Int("steps", 0, "steps of each (default: the recipe's)")
	threads := flag.Int("threads", runtime.GOMAXPROCS(0), "threads; they change nothing")
	tier := flag.String("tier", "", "kernel tier (default: the best of this machine)")
	flag.Parse()
	log.SetFlags(log.Ltime)
	t := kernels.Detect()
	if *tier != "" {
		var err error
		if t, err = kernels.ParseTier(*tier); err != nil || !t.Supported() {
			log.Fatalf("train-dna: --tier %s: this machine has %v", *tier, kernels.Tiers())
		}
	}
	if *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(context.Background(), *out, *which, *steps, *threads, t); err != nil {
		log.Fatalf("train-dna: %v", err)
	}
}

func run(ctx context.Context, out, which string, steps, threads int, tier kernels.Tier) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, r := range recipes {
		if which != "" && !strings.Contains(","+which+",", ","+r.name+",") {
			continue
		}
		if steps > 0 {
			r.steps = steps
		}
		if err := r.train(ctx, out, threads, tier); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

func (r recipe) train(ctx context.Context, out string, threads int, tier kernels.Tier) error {
	w := dna.NewWeights(r.shape, r.seed, 0.25)
	began := time.Now()
	sum, n := 0.0, 0
	t := dna.Training{Steps: r.steps, Parts: r.parts, Rate: r.rate, WarmUp: min(100, r.steps/5+1), Decay: 0.995,
		Progress: func(step int, loss float64) {
			sum, n = sum+loss, n+1
			if (step+1)%50 == 0 || step+1 == r.steps {
				log.Printf("%s: step %d/%d, loss %.4f, %v", r.name, step+1, r.steps, sum/float64(n), time.Since(began).Round(time.Second))
				sum, n = 0, 0
			}
		}}
	switch {
	case r.shape.Inputs == 0:
		t.Part = func(step, part int) (dna.Batch, error) { return dna.Clean(r.rows, r.length, r.seed, step, part), nil }
	case r.shape.Inputs == 2*r.shape.Categories:
		t.Part = func(step, part int) (dna.Batch, error) {
			return dna.Flow(r.shape, r.rows, r.length, r.seed, step, part), nil
		}
	default:
		teach, closer, err := r.teacher(out, tier, w)
		if err != nil {
			return err
		}
		defer closer()
		t.Part = teach
	}
	if err := dna.Train(ctx, r.shape, w, t, tier, threads); err != nil {
		return err
	}
	meta := map[string]string{"model": r.name, "about": r.summary, "classes": strings.Join(dna.Names(), ","), "alphabet": dna.Letters,
		"steps": strconv.Itoa(r.steps), "seed": strconv.FormatUint(r.seed, 10), "length": strconv.Itoa(r.length)}
	if r.shape.Head {
		a, err := accuracy(ctx, r, w, tier, threads)
		if err != nil {
			return err
		}
		log.Printf("%s: accuracy %.4f on 2,000 sequences of length 500 that it has not seen", r.name, a)
		meta["accuracy"] = strconv.FormatFloat(a, 'f', 4, 64)
	}
	return dna.Write(filepath.Join(out, r.name+".safetensors"), r.shape, w, meta)
}

// accuracy is the share of held-out sequences of length 500 whose class is named. The classifier of noisy sequences is asked at
// t = 7.
func accuracy(ctx context.Context, r recipe, w dna.Weights, tier kernels.Tier, threads int) (float64, error) {
	pool := kernels.NewPool(tier, threads)
	defer pool.Close()
	net := dna.NewNet(r.shape, w, pool)
	right, all := 0, 0
	for part := range 50 {
		const rows, length = 40, 500
		b := dna.Clean(rows, length, r.seed+1000, 0, part)
		if r.shape.Inputs > 0 {
			b = dna.Flow(r.shape, rows, length, r.seed+1000, 0, part)
			for i := range b.Alpha { // all at one time
				x, tokens := make([]float64, length*4), dna.Clean(1, length, r.seed+1000, 1, part*rows+i)
				dna.Noise(dna.Stream(r.seed+1000, 2, part, i), x, tokens.Tokens, 4, 7)
				dna.Expand(b.X[i*length*8:(i+1)*length*8], x, 4, 7)
				b.Alpha[i], b.Want[i] = 8, tokens.Want[0]
			}
		}
		logits := make([]float64, rows*r.shape.Classes)
		if err := net.Classify(ctx, nil, logits, b.Input); err != nil {
			return 0, err
		}
		for i, want := range b.Want {
			best := 0
			for k, v := range logits[i*r.shape.Classes : (i+1)*r.shape.Classes] {
				if v > logits[i*r.shape.Classes+best] {
					best = k
				}
			}
			if best == want {
				right++
			}
			all++
		}
	}
	return float64(right) / float64(all), nil
}

// teacher returns the parts for the one-step student: starts of the prior, and the tokens where the teacher's run from there
// ends, with classes as in training.
// The student starts as the teacher at t = 0, where the expanded input is (0, x): it takes the teacher's weights, and of its
// first convolution the part that reads x.
func (r recipe) teacher(out string, tier kernels.Tier, student dna.Weights) (func(step, part int) (dna.Batch, error), func(), error) {
	f, err := safetensors.Open(filepath.Join(out, "dna.safetensors"))
	if err != nil {
		return nil, nil, fmt.Errorf("the teacher: %w", err)
	}
	defer f.Close()
	s, w, err := dna.Read(f)
	if err != nil {
		return nil, nil, err
	}
	for name, v := range w {
		if name != "linear.weight" {
			copy(student[name], v)
			continue
		}
		const taps = 9
		k := r.shape.Inputs
		for o := range s.Hidden {
			copy(student[name][o*k*taps:(o+1)*k*taps], v[(2*o+1)*k*taps:(2*o+2)*k*taps])
		}
	}
	process := schedules.Dirichlet{K: s.Categories}
	grid, err := schedules.NewGrid(process, "time", teacherSteps, schedules.Ends{})
	if err != nil {
		return nil, nil, err
	}
	pools := make([]*kernels.Pool, r.parts)
	nets := make([]*dna.Denoiser, r.parts)
	for k := range pools { // one each: parts are made at the same time
		pools[k] = kernels.NewPool(tier, 1)
		nets[k] = &dna.Denoiser{Net: dna.NewNet(s, w, pools[k]), Path: process}
	}
	closer := func() {
		for _, p := range pools {
			p.Close()
		}
	}
	return func(step, part int) (dna.Batch, error) {
		p := &samplers.Problem{Model: nets[part], Grid: grid, Shape: []int{r.length, s.Categories}, Cond: &models.Cond{}}
		b := dna.Batch{Input: dna.Input{Rows: r.rows, L: r.length}}
		for i := range r.rows {
			rnd := dna.Stream(r.seed, step, part, i)
			class := rnd.IntN(s.Classes + 1) // the last is "none"
			p.Rows = append(p.Rows, models.Row{Seed: rnd.Uint64(), Particle: 1})
			b.Class, b.Alpha = append(b.Class, class), append(b.Alpha, 1)
			if class == s.Classes {
				class = models.NoClass
			}
			p.Cond.Classes = append(p.Cond.Classes, class)
		}
		pairs, err := simplex.Teach(context.Background(), samplers.Euler{}, p)
		if err != nil {
			return b, err
		}
		for _, v := range models.Data(pairs.Start) {
			b.X = append(b.X, float32(v))
		}
		for _, tokens := range pairs.Tokens {
			b.Want = append(b.Want, tokens...)
		}
		return b, nil
	}, closer, nil
}
