package search_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"drift/samplers"
	"drift/samplers/search"
	"drift/schedules"
)

// toy is the published toy problem: the mixture on a linear VP process from t = 1 to 0.001, 5 evaluations, 32 starts at
// quantiles, scored by the squared distance from the exact end points. shift 1/2 is the search set, others are fresh.
func toy(t testing.TB, shift float64) (*search.Distance, search.Space) {
	t.Helper()
	d := target(t, mix, `{"type":"vp-linear"}`, "eps")
	p := gauss(d)
	a, b := p.At(1), p.At(1e-3)
	const n = 300
	sb := make([]float64, n+1)
	for i := range sb {
		sb[i] = a.Ratio() * math.Pow(b.Ratio()/a.Ratio(), float64(i)/n)
	}
	fine, err := schedules.FromRatios(p, sb)
	if err != nil {
		t.Fatal(err)
	}
	dist, err := search.NewDistance(context.Background(), from(d, quantiles(32, shift), 1), parse(t, "rk4"), fine)
	if err != nil {
		t.Fatal(err)
	}
	return dist, search.Space{Process: p, From: a, To: b, Steps: 5}
}

func parse(t testing.TB, s string) samplers.Sampler {
	t.Helper()
	m, err := samplers.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestToy: on the toy problem the best fixed solver scores about 0.018, and every search finds a schedule below 0.005 in a
// fraction of the 1000 evaluations that the publication's evolution takes; on starts that it has not seen the schedule
// still beats the best fixed one four times over.
func TestToy(t *testing.T) {
	ctx := context.Background()
	dist, space := toy(t, 0.5)
	fresh, _ := toy(t, 0.25)
	var log search.Log
	best, calls := 0.0, 0
	if err := (search.S3{Space: space, Objective: dist.Score, Seed: 1, Progress: func(n int, b search.Record) { calls, best = n, b.Score }}).Run(ctx, &log, search.Budget{Evaluations: 300}); err != nil {
		t.Fatal(err)
	}
	if len(log.Records) != 300 || calls != 300 || best != log.Best(1)[0].Score {
		t.Errorf("%d evaluations, %d calls, best %g", len(log.Records), calls, best)
	}
	fixed := math.Inf(1)
	for _, r := range log.Records {
		if strings.Contains(r.Origin, " on ") {
			fixed = min(fixed, r.Score)
			if again, err := dist.Score(ctx, r.Schedule); err != nil || again != r.Score {
				t.Errorf("%s scored %g and then %g (%v)", r.Origin, r.Score, again, err)
			}
		}
	}
	if fixed < 0.0165 || fixed > 0.0195 { // published: 0.01862, UniPC-3 on quadratic; 0.01763 here
		t.Errorf("the best fixed solver scores %.5f", fixed)
	}
	var tuned search.Log
	if err := (search.S4S{Space: space, Objective: dist.Score, Seed: 1}).Run(ctx, &tuned, search.Budget{Evaluations: 600}); err != nil {
		t.Fatal(err)
	}
	var on search.Log
	found := tuned.Best(1)[0]
	if err := (search.S4S{Space: space, Objective: dist.Score, Seed: 2, Start: &found.Schedule}).Run(ctx, &on, search.Budget{Evaluations: 100}); err != nil {
		t.Fatal(err)
	}
	if r := on.Records[0]; r.Origin != "start" || math.Abs(r.Score-found.Score) > 1e-9*found.Score {
		t.Errorf("%s scores %g, want the start's %g", r.Origin, r.Score, found.Score)
	}
	for name, l := range map[string]*search.Log{"s3": &log, "s4s": &tuned, "on": &on} {
		b := l.Best(1)[0]
		over, err := fresh.Score(ctx, b.Schedule)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %.5f, on fresh starts %.5f, best fixed %.5f", name, b.Score, over, fixed)
		if b.Score > 0.005 || over > fixed/4 {
			t.Errorf("%s: the best of %d scores %.5f, on fresh starts %.5f; best fixed solver %.5f", name, len(l.Records), b.Score, over, fixed)
		}
	}
}

// TestSpaces searches on every kind of process, from no signal and onto clean data, for 1, 2, 3 and 6 steps: all that is
// proposed runs, ends with the announced count of evaluations, and passes through a file.
func TestSpaces(t *testing.T) {
	ctx := context.Background()
	for process, ends := range map[string][2]float64{`{"type":"flow"}`: {1, 0}, `{"type":"vp-linear"}`: {1, 0.001}, `{"type":"edm"}`: {80, 0}, `{"type":"vp-discrete"}`: {999, 0}, `{"type": "vp-discrete"}`: {999, -1}} { // time -1 is clean
		d := target(t, mix, process, "velocity")
		if strings.Contains(process, "discrete") {
			d = target(t, mix, process, "eps")
		}
		p := gauss(d)
		a, b := p.At(ends[0]), p.At(ends[1])
		fine := uniform(t, p, ends[0], ends[1], 60)
		x := quantiles(6, 0.5)
		for i := range x {
			x[i] *= samplers.PriorScale(a)
		}
		dist, err := search.NewDistance(ctx, from(d, x, 1), parse(t, "ddim"), fine)
		if err != nil {
			t.Fatal(err)
		}
		for _, steps := range []int{1, 2, 3, 5} {
			space := search.Space{Process: p, From: a, To: b, Steps: steps}
			for name, run := range map[string]func(*search.Log, search.Budget) error{
				"s3": func(l *search.Log, b search.Budget) error {
					return search.S3{Space: space, Objective: dist.Score, Seed: 3, Random: 30, Stage: 6}.Run(ctx, l, b)
				},
				"plain": func(l *search.Log, b search.Budget) error {
					return search.S3{Space: space, Objective: dist.Score, Seed: 3, NoLearn: true, Random: 4, Stage: 6}.Run(ctx, l, b)
				},
				"s4s": func(l *search.Log, b search.Budget) error {
					return search.S4S{Space: space, Objective: dist.Score, Seed: 3}.Run(ctx, l, b)
				},
			} {
				var l search.Log
				if err := run(&l, search.Budget{Evaluations: 80}); err != nil {
					t.Fatalf("%s on %s, %d steps: %v", name, process, steps, err)
				}
				for _, r := range l.Records {
					if r.Schedule.NFE() != steps || r.Schedule.Times[0] != a.T || r.Schedule.Times[steps] != b.T {
						t.Fatalf("%s on %s: %d evaluations from %g to %g", name, process, r.Schedule.NFE(), r.Schedule.Times[0], r.Schedule.Times[steps])
					}
				}
				text, err := samplers.USF{Schedule: l.Best(1)[0].Schedule, Process: p}.File(map[string]any{"score": l.Best(1)[0].Score})
				if err != nil {
					t.Fatal(err)
				}
				m, err := samplers.ParseUSF("best.json", text)
				if err != nil {
					t.Fatalf("%s on %s: %v\n%s", name, process, err, text)
				}
				if v, err := dist.Score(ctx, m.Schedule); err != nil || v != l.Best(1)[0].Score {
					t.Errorf("%s on %s, %d steps: from the file it scores %g, it was %g (%v)", name, process, steps, v, l.Best(1)[0].Score, err)
				}
			}
		}
	}
}

// TestNoise: s4s finds the noise of every step that an objective asks for, goes on from what it found, and refuses noise
// where the space has none.
func TestNoise(t *testing.T) {
	ctx := context.Background()
	_, space := toy(t, 0.5)
	space.Noise = true
	want := []float64{0, 0.2, 0.5, 1}
	objective := func(_ context.Context, s samplers.SolverSchedule) (float64, error) {
		sum := s.Steps[len(want)].Noise // the last step adds none
		for i, w := range want {
			sum += math.Abs(s.Steps[i].Noise - w)
		}
		return sum, s.Check()
	}
	var log search.Log
	if err := (search.S4S{Space: space, Objective: objective, Seed: 1}).Run(ctx, &log, search.Budget{Evaluations: 1500}); err != nil {
		t.Fatal(err)
	}
	if origin := log.Records[1].Origin; origin != "dpmpp-2m-sde on karras" {
		t.Errorf("the second record is %s", origin)
	}
	best := log.Best(1)[0]
	if best.Score > 0.02 {
		t.Errorf("score %g after %d evaluations", best.Score, len(log.Records))
	}
	var again search.Log
	if err := (search.S4S{Space: space, Objective: objective, Start: &best.Schedule}).Run(ctx, &again, search.Budget{Evaluations: 1}); err != nil {
		t.Fatal(err)
	}
	if first := again.Records[0]; first.Origin != "start" || math.Abs(first.Score-best.Score) > 1e-12 {
		t.Errorf("going on from %g begins with %s at %g", best.Score, first.Origin, first.Score)
	}
	space.Noise = false
	if err := (search.S4S{Space: space, Objective: objective, Start: &best.Schedule}).Run(ctx, &search.Log{}, search.Budget{Evaluations: 1}); !errors.Is(err, search.ErrStart) || !strings.Contains(err.Error(), "adds noise") {
		t.Errorf("noise in a space without: %v", err)
	}
}

// TestResume kills searches in their middle, a line of the log half written, and goes on: all evaluations are there, and
// none is made twice.
func TestResume(t *testing.T) {
	dist, space := toy(t, 0.5)
	type runner interface {
		Run(context.Context, *search.Log, search.Budget) error
	}
	for name, make := range map[string]func(search.Objective) runner{
		"s3":  func(f search.Objective) runner { return search.S3{Space: space, Objective: f, Seed: 7} },
		"s4s": func(f search.Objective) runner { return search.S4S{Space: space, Objective: f, Seed: 7} },
		"s4s --noise": func(f search.Objective) runner {
			noisy := space
			noisy.Noise = true
			return search.S4S{Space: noisy, Objective: f, Seed: 7}
		},
	} {
		ctx := context.Background()
		var want search.Log
		if err := make(dist.Score).Run(ctx, &want, search.Budget{Evaluations: 120}); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "log.jsonl")
		calls := 0
		stop := errors.New("stop")
		counted := func(ctx context.Context, s samplers.SolverSchedule) (float64, error) {
			if calls++; calls == 83 {
				return 0, stop
			}
			return dist.Score(ctx, s)
		}
		l, err := search.OpenLog(path, "toy "+name)
		if err != nil {
			t.Fatal(err)
		}
		if err := make(counted).Run(ctx, l, search.Budget{Evaluations: 120}); !errors.Is(err, stop) {
			t.Fatal(err)
		}
		l.Close()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(text, `{"score":0.1,"orig`...), 0o666); err != nil {
			t.Fatal(err)
		}
		if l, err = search.OpenLog(path, "toy "+name); err != nil {
			t.Fatal(err)
		}
		if l.Known() != 82 {
			t.Errorf("%s: the log holds %d evaluations, want 82", name, l.Known())
		}
		if err := make(counted).Run(ctx, l, search.Budget{Evaluations: 120}); err != nil {
			t.Fatal(err)
		}
		l.Close()
		if calls != 83+120-82 {
			t.Errorf("%s: %d calls in all", name, calls)
		}
		if !reflect.DeepEqual(l.Records, want.Records) {
			t.Errorf("%s: the resumed search differs from an undisturbed one", name)
		}
		if _, err := search.OpenLog(path, "another"); err == nil || !strings.Contains(err.Error(), "another search") {
			t.Errorf("another search's log: %v", err)
		}
		text, _ = os.ReadFile(path)
		if n := bytes.Count(text, []byte("\n")); n != 121 {
			t.Errorf("%s: %d lines", name, n)
		}
		edited := bytes.Replace(text, []byte(`"order":1`), []byte(`"order":2`), 1)
		if name != "s3" {
			edited = bytes.Replace(text, []byte(`"weights":[1`), []byte(`"weights":[1.5`), 1)
		}
		if err := os.WriteFile(path, edited, 0o666); err != nil {
			t.Fatal(err)
		}
		if l, err = search.OpenLog(path, "toy "+name); err != nil {
			t.Fatal(err)
		}
		if err := make(counted).Run(ctx, l, search.Budget{Evaluations: 120}); err == nil || !strings.Contains(err.Error(), "another schedule") {
			t.Errorf("%s: on an edited log: %v", name, err)
		}
		l.Close()
	}
}

// TestStops: budgets of time end a search, as does the context, with all evaluations kept; a blown up schedule scores
// +Inf, which the log survives.
func TestStops(t *testing.T) {
	dist, space := toy(t, 0.5)
	var l search.Log
	slow := func(ctx context.Context, s samplers.SolverSchedule) (float64, error) {
		time.Sleep(2 * time.Millisecond)
		return dist.Score(ctx, s)
	}
	if err := (search.S3{Space: space, Objective: slow}).Run(context.Background(), &l, search.Budget{Time: 60 * time.Millisecond}); err != nil || len(l.Records) == 0 || len(l.Records) > 60 {
		t.Errorf("%v after %d evaluations", err, len(l.Records))
	}
	ctx, cancel := context.WithCancel(context.Background())
	var c search.Log
	err := (search.S3{Space: space, Objective: dist.Score, Progress: func(n int, _ search.Record) {
		if n == 25 {
			cancel()
		}
	}}).Run(ctx, &c, search.Budget{Evaluations: 100})
	if !errors.Is(err, context.Canceled) || len(c.Records) != 25 {
		t.Errorf("cancelled: %v, %d records", err, len(c.Records))
	}
	path := filepath.Join(t.TempDir(), "log.jsonl")
	nan := func(_ context.Context, s samplers.SolverSchedule) (float64, error) {
		if s.Steps[1].Corrector != nil {
			return math.NaN(), nil
		}
		return math.Inf(1), nil
	}
	for range 2 {
		f, err := search.OpenLog(path, "x")
		if err != nil {
			t.Fatal(err)
		}
		if err := (search.S3{Space: space, Objective: nan}).Run(context.Background(), f, search.Budget{Evaluations: 70}); err != nil {
			t.Fatal(err)
		}
		f.Close()
		for _, r := range f.Records {
			if !math.IsInf(r.Score, 1) {
				t.Fatalf("score %g", r.Score)
			}
		}
	}
	wild := samplers.UnifiedMultistep{Order: 1, Pred: schedules.X0}.Schedule([]float64{1, 0.5, 0.001})
	wild.Steps[1] = samplers.SolverStep{Order: 1, Pred: schedules.X0, Start: -1, Weights: []float64{1e308}}
	wild.Steps[0].Weights = []float64{1e200}
	if v, err := dist.Score(context.Background(), wild); err != nil || !math.IsInf(v, 1) {
		t.Errorf("a schedule that blows up scores %g, %v", v, err)
	}
	for what, s := range map[string]search.S3{
		"no process": {Objective: dist.Score},
		"steps":      {Space: search.Space{Process: space.Process, From: space.From, To: space.To}, Objective: dist.Score},
		"order 9":    {Space: search.Space{Process: space.Process, From: space.From, To: space.To, Steps: 3, Order: 9}, Objective: dist.Score},
		"must fall":  {Space: search.Space{Process: space.Process, From: space.To, To: space.From, Steps: 3}, Objective: dist.Score},
	} {
		if err := s.Run(context.Background(), &search.Log{}, search.Budget{Evaluations: 3}); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
	if err := (search.S3{Space: space, Objective: dist.Score}).Run(context.Background(), &search.Log{}, search.Budget{}); err == nil || !strings.Contains(err.Error(), "budget") {
		t.Error(err)
	}
	if _, err := json.Marshal(l.Best(3)[0].Schedule); err != nil {
		t.Error(err)
	}
}
