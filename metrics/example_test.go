package metrics_test

import (
	"context"
	"fmt"
	"math"

	"gonum.org/v1/gonum/mat"

	"drift/metrics"
)

// grid is a small set in the plane, moved by (dx, dy).
func grid(dx, dy float64) metrics.Matrix {
	m := metrics.Matrix{N: 16, D: 2}
	for i := range m.N {
		m.X = append(m.X, float64(i%4)+dx, float64(i/4)+dy)
	}
	return m
}

func ExampleFID() {
	id := metrics.Identity{Extractor: "sha256:6726825d/pool3", Resize: metrics.ResizeTF1 + "-299"}
	reference, err := metrics.StatsOf(grid(0, 0), id)
	if err != nil {
		fmt.Println(err)
		return
	}
	fid := metrics.FID{Reference: reference, Moments: metrics.Moments{ID: id}}
	generated := grid(3, 4) // the same shape elsewhere: 3² + 4²
	for lo := 0; lo < 16; lo += 8 {
		batch := metrics.Matrix{N: 8, D: 2, X: generated.X[lo*2 : (lo+8)*2]}
		if err := fid.Add(batch); err != nil {
			fmt.Println(err)
			return
		}
	}
	r, err := fid.Value(context.Background())
	fmt.Printf("%.6f %v\n%s\n", r.Value, err, r.Identity)
	// Output:
	// 25.000000 <nil>
	// extractor=sha256:6726825d/pool3 resize=tf1-bilinear-299 n=16
}

func ExampleFrechetDistance() {
	a := metrics.Stats{Mean: []float64{0, 0}, Cov: mat.NewSymDense(2, []float64{1, 0, 0, 1})}
	b := metrics.Stats{Mean: []float64{3, 4}, Cov: mat.NewSymDense(2, []float64{4, 0, 0, 9})}
	f, err := metrics.FrechetDistance(a, b)
	fmt.Println(f.Distance, f.MeanTerm, f.TraceRoot, err)
	// Output: 30 25 5 <nil>
}

func ExampleMergeAll() {
	var shards []*metrics.Moments
	for _, x := range [][]float64{{1, 2}, {3}, {4, 5, 6}} {
		m := &metrics.Moments{}
		if err := m.Add(metrics.Matrix{N: len(x), D: 1, X: x}); err != nil {
			fmt.Println(err)
			return
		}
		shards = append(shards, m)
	}
	m, err := metrics.MergeAll(shards)
	if err != nil {
		fmt.Println(err)
		return
	}
	s, err := m.Stats()
	fmt.Println(s.N, s.Mean, s.Cov.At(0, 0), err)
	// Output: 6 [3.5] 3.5 <nil>
}

func ExampleCollector() {
	c := metrics.Collector{Score: metrics.PRDC{K: 3}, Reference: grid(0, 0)}
	if err := c.Add(grid(0.25, 0)); err != nil {
		fmt.Println(err)
		return
	}
	r, err := c.Value(context.Background())
	fmt.Println(r.Parts["precision"], r.Parts["recall"], r.Warned(metrics.WarnUnknownIdentity), err)
	// Output: 1 1 true <nil>
}

func ExampleKID() {
	r, err := metrics.KID{Subsets: 10, Size: 8, Source: metrics.NewSource(2020)}.Compare(context.Background(), grid(0, 0), grid(2, 0))
	fmt.Println(r.Value > 0, r.Settings, err)
	// Output: true subsets=10 size=8 <nil>
}

func ExampleVendi() {
	// Three directions, each twice.
	x := metrics.Matrix{N: 6, D: 3, X: []float64{1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0, 0, 2, 0, 0, 0, 2}}
	r, err := metrics.Vendi{}.Compare(context.Background(), nil, x)
	fmt.Printf("%.4f %v\n", r.Value, err)
	// Output: 3.0000 <nil>
}

func ExampleSliced() {
	r, err := metrics.Sliced{Directions: 100, Orthogonal: true, Source: metrics.NewSource(1)}.Compare(context.Background(), grid(0, 0), grid(3, 4))
	fmt.Printf("%.4f %v\n", r.Value, err) // |shift|/√d
	// Output: 3.5355 <nil>
}

func ExampleWasserstein() {
	r, err := metrics.Wasserstein{P: 2}.Compare(context.Background(), grid(0, 0), grid(3, 4))
	fmt.Println(r.Value, r.Parts["cost"], err)
	// Output: 5 25 <nil>
}

func ExampleSparseNewton() {
	ctx := context.Background()
	cost, err := metrics.CostMatrix(ctx, grid(0, 0), grid(.3, .1), 2)
	if err != nil {
		fmt.Println(err)
		return
	}
	newton, err := metrics.SparseNewton{Eta: 3}.Solve(ctx, cost, nil, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	plain, err := metrics.Sinkhorn{Eta: 3}.Solve(ctx, cost, nil, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(newton.Converged, plain.Converged, math.Abs(newton.Cost-plain.Cost) < 1e-6)
	// Output: true true true
}

func ExampleStraight() {
	// A quarter circle walked at constant speed, in 100 steps.
	p := metrics.Path{}
	for k := range 101 {
		u := float64(k) / 100
		p.T = append(p.T, u)
		p.X = append(p.X, metrics.Matrix{N: 1, D: 2, X: []float64{math.Cos(u * math.Pi / 2), math.Sin(u * math.Pi / 2)}})
	}
	s, err := metrics.Straight(p)
	fmt.Printf("%.3f %.3f %v\n", s.S, s.ArcChord[0], err) // (π²/4 - 2)/2 and π/(2√2)
	// Output: 0.234 1.111 <nil>
}

func ExampleExactMongeGap() {
	z := metrics.Matrix{N: 2, D: 1, X: []float64{0, 1}}
	crossed := metrics.Matrix{N: 2, D: 1, X: []float64{1, 0}}
	g, err := metrics.ExactMongeGap(context.Background(), z, crossed)
	fmt.Println(g.Gap, err)
	// Output: 0.5 <nil>
}

func ExampleGaussianChain() {
	rows, err := metrics.GaussianChain{Alpha: 0.98, Bias: 1e-3, T: 100}.Rows()
	last := rows[99]
	fmt.Printf("t=%d modular %.2e cumulative %.2e amplification %.4f %v\n", last.T, last.Modular, last.Cumulative, last.Amplification, err)
	// Output: t=0 modular 2.50e-05 cumulative 2.00e-03 amplification 0.9991 <nil>
}

func ExamplePsi2() {
	v, err := metrics.Psi2([]float64{-1, 1})
	fmt.Printf("%.4f %v\n", v, err) // 1/√log 2
	// Output: 1.2011 <nil>
}

func ExampleJackknife() {
	x := []float64{1, 2, 3, 4}
	e, err := metrics.Jackknife(context.Background(), len(x), func(idx []int) (float64, error) {
		sum := 0.0
		for _, i := range idx {
			sum += x[i]
		}
		return sum / float64(len(idx)), nil
	})
	fmt.Printf("%.2f +- %.3f %v\n", e.Value, e.StdErr, err)
	// Output: 2.50 +- 0.645 <nil>
}

func ExampleJackknifed() {
	reference := metrics.Matrix{N: 2, D: 1, X: []float64{0, 1}}
	generated := metrics.Matrix{N: 4, D: 1, X: []float64{2, 3, 4, 5}}
	r, without, err := metrics.Jackknifed(context.Background(), metrics.EnergyDistance{}, reference, generated, 4)
	fmt.Printf("%.3f +- %.3f, without each row %.3f %v\n", r.Value, r.StdErr, without, err)
	// Output: 4.250 +- 1.347, without each row [5.611 4.500 3.833 3.611] <nil>
}

func ExampleModeCoverage() {
	centres := metrics.Matrix{N: 2, D: 1, X: []float64{-5, 5}}
	sample := metrics.Matrix{N: 4, D: 1, X: []float64{-5.1, -4.9, -5, -4.8}}
	m, err := metrics.ModeCoverage(sample, centres, []float64{1, 1}, nil)
	fmt.Printf("%d of 2 modes, KL %.4f %v\n", m.Covered, m.KL, err)
	// Output: 1 of 2 modes, KL 0.6931 <nil>
}

func ExampleSSIM() {
	flat := func(v uint8) metrics.Image[uint8] {
		m := metrics.Image[uint8]{H: 16, W: 16, C: 1, Pix: make([]uint8, 256)}
		for i := range m.Pix {
			m.Pix[i] = v
		}
		return m
	}
	s, err := metrics.SSIM(flat(100), flat(120), 255)
	fmt.Printf("%.6f %v\n", s, err)
	// Output: 0.983611 <nil>
}

func ExampleTF1Bilinear() {
	src := metrics.Image[uint8]{H: 1, W: 3, C: 1, Pix: []uint8{0, 100, 200}}
	tf, err := metrics.TF1Bilinear(src, 1, 5)
	if err != nil {
		fmt.Println(err)
		return
	}
	pil, err := metrics.Pillow{Filter: metrics.Bilinear}.Float(src, 1, 5, true)
	fmt.Printf("%.3f %.3f %v\n", tf.Pix, pil.Pix, err)
	// Output: [0.000 60.000 120.000 180.000 200.000] [0.000 40.000 100.000 160.000 200.000] <nil>
}
