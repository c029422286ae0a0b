package job

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"testing"

	"gorgonia.org/tensor"

	"drift/cmd/drift/internal/manifest"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// bowl answers E[x0|x] of data N(class, 0.09) in every dimension.
type bowl struct{ p schedules.Gaussian }

func (b bowl) Process() schedules.Process { return b.p }

func (b bowl) Predict(_ context.Context, q *models.Query, p *models.Pred) error {
	in, out := p.Fit(q.X, schedules.X0)
	w := len(in) / len(q.At)
	for i, n := range q.At {
		m := float64(max(q.Cond.Class(i), 0))
		k := n.Alpha * 0.09 / (n.Alpha*n.Alpha*0.09 + n.Sigma*n.Sigma)
		for j := i * w; j < (i+1)*w; j++ {
			out[j] = m + float64(k*(in[j]-float64(n.Alpha*m)))
		}
	}
	return nil
}

func plan(t testing.TB, sampler string, steps int) *Plan {
	t.Helper()
	p := schedules.VPLinear{}
	g, err := schedules.NewGrid(p, "karras", steps, schedules.Ends{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := samplers.Parse(sampler)
	if err != nil {
		t.Fatal(err)
	}
	return &Plan{Model: models.Metered(bowl{p}), Shape: []int{1, 2, 3}, Sampler: s, Grid: g, Sets: []manifest.Set{{Classes: []int{0, 1, 2}}}}
}

// collect runs a plan and returns all rows in order.
func collect(t testing.TB, p *Plan, items []Item, batch int) []float64 {
	t.Helper()
	var out []float64
	_, err := p.Run(context.Background(), nil, items, batch, Hooks{Done: func(_ Batch, x, _ *tensor.Dense, _ samplers.Stats) error {
		out = append(out, models.Data(x)...)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var seeds = []uint64{5, 6, 7, 100, 3, 8, 9}

func TestBatchesDoNotMatter(t *testing.T) {
	for _, sampler := range []string{"euler", "dpmpp-2m", "euler-ancestral", "dpmpp-sde"} {
		p := plan(t, sampler, 6)
		p.Sets = append(p.Sets, manifest.Set{Classes: []int{-1}})
		items := Items(2, seeds, 0)
		want := collect(t, p, items, len(items))
		for _, n := range []int{1, 2, 3, 5, 0} {
			if got := collect(t, p, items, n); !slices.Equal(got, want) {
				t.Errorf("%s: batches of %d change the result", sampler, n)
			}
		}
		if part := collect(t, p, items[4:9], 2); !slices.Equal(part, want[4*6:9*6]) {
			t.Errorf("%s: some of the items give other results than all", sampler)
		}
		if slices.Equal(want[:6*7], want[6*7:]) {
			t.Errorf("%s: the class does nothing", sampler)
		}
	}
}

func TestStartAndNoiseFollowThePlace(t *testing.T) {
	items := Items(1, seeds, 0)
	p := plan(t, "euler-ancestral", 4)
	start, noise := models.New(len(seeds), 1, 2, 3), models.New(4, len(seeds), 1, 2, 3)
	for i := range models.Data(start) {
		models.Data(start)[i] = math.Sin(float64(i))
	}
	for i := range models.Data(noise) {
		models.Data(noise)[i] = math.Cos(3 * float64(i))
	}
	rec, err := samplers.NewRecorded(noise, 4)
	if err != nil {
		t.Fatal(err)
	}
	p.Start, p.NewNoise = start, func() samplers.Noise { return rec }
	want := collect(t, p, items, len(items))
	if got := collect(t, p, items, 3); !slices.Equal(got, want) {
		t.Error("recorded rows depend on the batch")
	}
	if got := collect(t, p, Items(1, seeds[3:5], 3), 1); !slices.Equal(got, want[3*6:5*6]) {
		t.Error("an offset does not find its rows")
	}
	if _, err := p.Problem([]Item{{Place: 99}}); err == nil {
		t.Error("a place without a row was taken")
	}
}

func TestImageStart(t *testing.T) {
	p := plan(t, "euler", 10)
	p.Image = &Image{Mean: []float64{1, 0.5, 0, -0.5, -1, 0.25}}
	p.First = StartAt(10, 0.3, false)
	if p.First != 7 {
		t.Fatalf("strength 0.3 of 10 steps starts at %d, want 7", p.First)
	}
	problem, err := p.Problem(Items(1, []uint64{9}, 0))
	if err != nil {
		t.Fatal(err)
	}
	z := make([]float64, 6)
	samplers.Streams{}.Normal(z, samplers.Draw{Row: models.Row{Seed: 9}, Step: -1, Purpose: samplers.DrawStart})
	n := p.Grid[7]
	for j, x := range models.Data(problem.Start) {
		if want := n.Alpha*p.Image.Mean[j] + n.Sigma*z[j]; math.Abs(x-want) > 1e-15 {
			t.Errorf("start %d is %g, want %g", j, x, want)
		}
	}
	for _, c := range []struct {
		n    int
		s    float64
		want int
		up   int
	}{{10, 1, 0, 0}, {10, 0, 10, 10}, {50, 0.75, 13, 12}, {1, 0.5, 1, 0}, {3, 0.99, 1, 0}} {
		if got, up := StartAt(c.n, c.s, false), StartAt(c.n, c.s, true); got != c.want || up != c.up {
			t.Errorf("StartAt(%d, %g) = %d and %d, want %d and %d", c.n, c.s, got, up, c.want, c.up)
		}
	}
}

// TestStopAndGoOn stops after every step in turn, saves, and goes on: the bits are those of the run without a stop.
func TestStopAndGoOn(t *testing.T) {
	for _, sampler := range []string{"dpmpp-2m", "euler-ancestral", "unipc:order=3", "dpmpp-2m-sde"} {
		p := plan(t, sampler, 5)
		items := Items(1, seeds[:4], 0)
		want := collect(t, p, items, 2)
		for stopAt := range 10 { // five steps in each of two batches
			var out []float64
			var saved bytes.Buffer
			var of []Item
			stop := make(chan struct{})
			steps := 0
			h := Hooks{
				Step: func(_ Batch, s *samplers.State) error {
					if s.I > 0 {
						steps++
					}
					if steps == stopAt && s.I < s.N {
						select {
						case <-stop:
						default:
							close(stop)
						}
					}
					return nil
				},
				Done: func(_ Batch, x, _ *tensor.Dense, _ samplers.Stats) error {
					out = append(out, models.Data(x)...)
					return nil
				},
				Save: func(b Batch, s samplers.Saver) error {
					of = b.Items
					return s.Save(&saved)
				},
				Resume: func(b Batch) (io.ReadCloser, error) {
					if !slices.Equal(b.Items, of) {
						return nil, nil
					}
					return io.NopCloser(bytes.NewReader(saved.Bytes())), nil
				},
			}
			_, err := p.Run(context.Background(), stop, items, 2, h)
			if !errors.Is(err, ErrStopped) {
				if stopAt%5 == 0 && stopAt > 0 { // the end of a batch
					continue
				}
				t.Fatalf("%s: stop at %d: %v", sampler, stopAt, err)
			}
			done := len(out) / 6
			steps = -100
			if _, err := p.Run(context.Background(), nil, items[done:], 2, h); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(out, want) {
				t.Errorf("%s: a stop after step %d changes the result", sampler, stopAt)
			}
		}
	}
}

func TestErrorsEndTheJob(t *testing.T) {
	p := plan(t, "euler", 3)
	full := errors.New("disk full")
	batches := 0
	_, err := p.Run(context.Background(), nil, Items(1, seeds, 0), 2, Hooks{Done: func(Batch, *tensor.Dense, *tensor.Dense, samplers.Stats) error {
		batches++
		return full
	}})
	if !errors.Is(err, full) || batches != 1 {
		t.Errorf("%v after %d batches", err, batches)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.Run(ctx, nil, Items(1, seeds, 0), 2, Hooks{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestCount(t *testing.T) {
	ctx := context.Background()
	double := func(d models.Denoiser) (models.Denoiser, error) { return twice{d}, nil }
	for _, c := range []struct {
		sampler string
		wrap    Wrap
		want    float64
	}{{"euler", nil, 7}, {"heun", nil, 13}, {"heun", double, 26}, {"dpmpp-2m", double, 14}} {
		p := plan(t, c.sampler, 7)
		cost, err := CountNFE(ctx, p.Sampler, c.wrap, p.Model, p.Shape, true, p.Grid, 0, 0)
		if err != nil || cost.NFE != c.want || cost.VJPs != 0 {
			t.Errorf("%s: %+v, %v; want %g", c.sampler, cost, err, c.want)
		}
	}
	// heun takes 2n-1 evaluations when the grid ends at 0
	p := plan(t, "heun", 1)
	grid := func(n int) (schedules.Grid, error) {
		return schedules.NewGrid(schedules.VPLinear{}, "karras", n, schedules.Ends{})
	}
	count := func(g schedules.Grid) (float64, error) {
		c, err := CountNFE(ctx, p.Sampler, nil, p.Model, p.Shape, false, g, 0, 0)
		return c.NFE, err
	}
	for budget, want := range map[int]int{1: 1, 2: 1, 3: 2, 4: 2, 9: 5, 10: 5} {
		if g, err := Fit(budget, grid, count); err != nil || g.Steps() != want {
			t.Errorf("budget %d gives %d steps, %v; want %d", budget, g.Steps(), err, want)
		}
	}
	// a large budget is found in few tries, also where costs jump a little from one number of steps to the next
	line := func(n int) (schedules.Grid, error) { return make(schedules.Grid, n+1), nil }
	tries := 0
	jumpy := func(g schedules.Grid) (float64, error) {
		tries++
		return float64(4*g.Steps() - 5*(g.Steps()%2)), nil
	}
	if g, err := Fit(100_002, line, jumpy); err != nil || g.Steps() != 25_001 || tries > 40 {
		t.Errorf("%d steps after %d tries, %v; want 25001", g.Steps(), tries, err)
	}
	if _, err := Fit(1, grid, func(schedules.Grid) (float64, error) { return 2, nil }); err == nil {
		t.Error("a budget below one step was accepted")
	}
}

// twice asks its model two times.
type twice struct{ models.Denoiser }

func (w twice) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	if err := w.Denoiser.Predict(ctx, q, p); err != nil {
		return err
	}
	return w.Denoiser.Predict(ctx, q, p)
}
