package search

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/mat"
	"gonum.org/v1/gonum/stat/distuv"

	"drift/samplers"
)

// S3 is the multi-stage search of solver schedules (Liu et al. 2023, arXiv 2312.07243, section 4). Stage 0 evaluates the
// fixed solvers of the space on the usual grids, and random schedules. Every later stage trains a predictor on all that
// was evaluated, evolves schedules against it from the best ones, and evaluates those that it ranks first.
//
// The paper's predictor is an LSTM with a ranking loss, for schedules of any length and thousands of records. Here the
// length is fixed and there are hundreds of records, so schedules are vectors of fixed size, and kernel ridge regression
// on normal scores of their ranks does the same job: it depends on ranks only, has nothing to train but one linear
// system, and is deterministic.
type S3 struct {
	Space     Space
	Objective Objective
	Seed      uint64
	Random    int  // random schedules of stage 0; 0 = 30
	Stage     int  // evaluations of a stage; 0 = 20
	NoLearn   bool // evolve without a predictor: every offspring is evaluated
	Progress  Progress
	Ahead     Ahead // told every generation before it is evaluated; nil: nobody
}

// Run searches until the budget is spent, into log. On cancellation it returns the context's error; the log has all that
// was evaluated.
func (s S3) Run(ctx context.Context, log *Log, limit Budget) error {
	space, err := s.Space.check()
	if err != nil {
		return err
	}
	b, err := limit.begin()
	if err != nil {
		return err
	}
	if len(log.Records) > 0 {
		return errors.New("search: the log has records of a search that is over")
	}
	random, stage := s.Random, s.Stage
	if random == 0 {
		random = 30
	}
	if stage == 0 {
		stage = 20
	}
	var plans []plan
	seen := map[string]bool{}
	best := Record{Score: math.Inf(1)}
	try := func(origin string, p plan) error {
		schedule := space.schedule(p)
		text, err := schedule.MarshalJSON()
		if err != nil {
			return err
		}
		if seen[string(text)] {
			return nil
		}
		score, err := log.evaluate(ctx, s.Objective, origin, schedule)
		if err != nil {
			return err
		}
		seen[string(text)] = true
		plans = append(plans, p)
		if score < best.Score {
			best = log.Records[len(log.Records)-1]
		}
		if s.Progress != nil {
			s.Progress(len(log.Records), best)
		}
		return nil
	}
	// generation evaluates plans that do not depend on each other's scores; false says that the budget is spent.
	generation := func(origins []string, ps []plan) (bool, error) {
		var next []samplers.SolverSchedule
		fresh := map[string]bool{}
		for _, p := range ps {
			schedule := space.schedule(p)
			text, err := schedule.MarshalJSON()
			if err != nil {
				return false, err
			}
			if !seen[string(text)] && !fresh[string(text)] {
				fresh[string(text)] = true
				next = append(next, schedule)
			}
		}
		if err := log.ahead(s.Ahead, b, next); err != nil {
			return false, err
		}
		for i, p := range ps {
			if b.spent(log) {
				return false, nil
			}
			if err := try(origins[min(i, len(origins)-1)], p); err != nil {
				return false, err
			}
		}
		return true, nil
	}
	base, err := space.baselines()
	if err != nil {
		return err
	}
	var origins []string
	var first []plan
	for _, p := range base {
		origins, first = append(origins, p.name), append(first, p.plan)
	}
	draw := rand.New(rand.NewPCG(s.Seed, 0))
	for range random {
		origins, first = append(origins, "random"), append(first, space.random(draw))
	}
	if more, err := generation(origins, first); err != nil || !more {
		return err
	}
	for n := uint64(1); !b.spent(log); n++ {
		before := len(plans)
		draw := rand.New(rand.NewPCG(s.Seed, n))
		if more, err := generation([]string{"evolved"}, s.propose(space, log, plans, stage, draw)); err != nil || !more {
			return err
		}
		if len(plans) == before { // all proposals were known: the space may be that small
			if err := try("random", space.random(draw)); err != nil {
				return err
			}
			if len(plans) == before && n > 10_000 {
				return nil
			}
		}
	}
	return nil
}

// propose returns the next schedules to evaluate.
func (s S3) propose(space Space, log *Log, plans []plan, stage int, draw *rand.Rand) []plan {
	const parents, most = 15, 200
	order := make([]int, len(plans))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return cmp(log.Records[i].Score, log.Records[j].Score) })
	type candidate struct {
		plan
		score float64
	}
	child := func(pool []plan) plan {
		pick := func() plan { // better parents more often
			u := draw.Float64()
			return pool[int(u*u*float64(min(parents, len(pool))))]
		}
		p := pick()
		if draw.Float64() < 0.4 {
			p = space.cross(p, pick(), draw)
		}
		return space.mutate(p, draw)
	}
	var pool []plan
	for _, i := range order {
		pool = append(pool, plans[i])
	}
	var out []plan
	if s.NoLearn {
		for range stage {
			out = append(out, child(pool))
		}
		return out
	}
	train := order[:min(most, len(order))]
	var fs [][]float64
	for _, i := range train {
		fs = append(fs, space.features(plans[i]))
	}
	model, ok := fit(fs)
	if !ok {
		for range stage {
			out = append(out, child(pool))
		}
		return out
	}
	// Evolve against the predictor, then take the first ranked, and a few that it has not chosen.
	var cs []candidate
	for range 8 * stage {
		p := child(pool)
		cs = append(cs, candidate{p, model.predict(space.features(p))})
	}
	slices.SortStableFunc(cs, func(a, b candidate) int { return cmp(a.score, b.score) })
	free := stage / 2
	for _, c := range cs[:stage-free] {
		out = append(out, c.plan)
	}
	for range free {
		out = append(out, child(pool))
	}
	return out
}

// ranker predicts the normal score of a schedule's rank from its features: kernel ridge regression with a Gaussian
// kernel as wide as the median distance.
type ranker struct {
	at    [][]float64
	coef  []float64
	width float64
}

// fit learns from features in the order of their rank, best first.
func fit(at [][]float64) (ranker, bool) {
	n := len(at)
	if n < 3 {
		return ranker{}, false
	}
	k := mat.NewSymDense(n, nil)
	var all []float64
	for i := range n {
		for j := range i {
			d := distance(at[i], at[j])
			k.SetSym(i, j, d)
			all = append(all, d)
		}
	}
	slices.Sort(all)
	m := ranker{at: at, width: all[len(all)/2]}
	if m.width == 0 {
		return ranker{}, false
	}
	y := mat.NewVecDense(n, nil)
	for i := range n {
		y.SetVec(i, distuv.UnitNormal.Quantile((float64(i)+0.5)/float64(n)))
		for j := range i {
			k.SetSym(i, j, math.Exp(-k.At(i, j)/m.width))
		}
		k.SetSym(i, i, 1+0.05)
	}
	var chol mat.Cholesky
	if !chol.Factorize(k) {
		return ranker{}, false
	}
	var c mat.VecDense
	if err := chol.SolveVecTo(&c, y); err != nil {
		return ranker{}, false
	}
	m.coef = c.RawVector().Data
	return m, true
}

func (m ranker) predict(f []float64) float64 {
	sum := 0.0
	for i, a := range m.at {
		sum += m.coef[i] * math.Exp(-distance(a, f)/m.width)
	}
	return sum
}

// distance is the squared Euclidean distance.
func distance(a, b []float64) float64 {
	sum := 0.0
	for i, v := range a {
		sum += sq(v - b[i])
	}
	return sum
}
