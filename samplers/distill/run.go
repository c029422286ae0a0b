package distill

import (
	"context"
	"encoding/gob"
	"fmt"
	"io"
	"math"
	"slices"

	"gorgonia.org/tensor"

	"drift/internal/rng"
	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// run is a distillation under way.
type run struct {
	m     RSD
	p     *samplers.Problem
	den   models.Denoiser
	gau   schedules.Gaussian
	total int // iterations of the whole run
	last  int // iteration to stop before
	noise samplers.Noise
	sets  [][2]int // rows of each set

	rows, dim, size int   // dim numbers in an image, size in its parameters
	image           []int // shape of an image
	width           int   // numbers in a measurement

	memory
	theta *tensor.Dense // memory.Theta
	z     *tensor.Dense // the images; theta itself without a scene
	at    *tensor.Dense // noised
	eps   []float64
	grad  *tensor.Dense // by z
	pull  []float64     // by theta
	force []float64     // R
	y     []float64     // of one measurement
	tmp   []float64     // one image
	pred  models.Pred
	query models.Query
	asked bool
	state samplers.State
}

// memory is what a saved run holds.
type memory struct {
	K           int // iterations done
	Rows        []models.Row
	Theta       []float64
	X           []float64 // the measured images
	M, MX       moments
	Gamma, Rate float64 // as changed by Set
}

func (m moments) row(i, n int) moments { return moments{m.M[i*n : (i+1)*n], m.V[i*n : (i+1)*n]} }

func newRun(m RSD, p *samplers.Problem) (*run, error) {
	fail := func(format string, a ...any) (*run, error) {
		return nil, fmt.Errorf("distill: "+format, a...)
	}
	if err := m.check(); err != nil {
		return fail("%w", err)
	}
	if p.Known != nil {
		return fail("keeps no part of the state as it is given (Problem.Known)")
	}
	den, ok := p.Model.(models.Denoiser)
	if !ok {
		return fail("needs a model that denoises, have %T", p.Model)
	}
	gau, ok := den.Process().(schedules.Gaussian)
	if !ok {
		return fail("needs a Gaussian process, the model's is %s", den.Process().Name())
	}
	if len(p.Grid) < 2 {
		return fail("needs a grid of at least one step, have %d nodes", len(p.Grid))
	}
	r := &run{m: m, p: p, den: den, gau: gau, total: len(p.Grid) - 1, last: p.Last, rows: len(p.Rows)}
	if r.last == 0 {
		r.last = r.total
	}
	if p.First < 0 || p.First >= r.last || r.last > r.total {
		return fail("cannot run from iteration %d to %d of %d", p.First, r.last, r.total)
	}
	for i, n := range p.Grid[:r.total] {
		if !(n.Ratio() > 0) {
			return fail("node %d of the grid has sigma/alpha = %g: there is nothing to distil without noise", i, n.Ratio())
		}
	}
	if err := r.group(); err != nil {
		return nil, err
	}
	if m.Kernel.Parity {
		for _, s := range r.sets {
			if s[1]-s[0] == 1 {
				return fail("the published kernel fails for one particle; leave parity out")
			}
		}
	}
	if len(p.Shape) == 0 || tensor.Shape(p.Shape).TotalSize() <= 0 {
		return fail("the shape of an image is not known")
	}
	r.image, r.dim = p.Shape, tensor.Shape(p.Shape).TotalSize()
	params := p.Shape
	if m.Scene != nil {
		var err error
		if params, err = m.Scene.Params(p.Shape); err != nil {
			return fail("%w", err)
		}
	}
	r.size = tensor.Shape(params).TotalSize()
	if m.Measure != nil {
		if m.Scene != nil {
			return fail("a measurement of a scene is not made; leave one of them out")
		}
		var err error
		if r.width, err = m.Measure.check(r.rows, r.dim); err != nil {
			return fail("%w", err)
		}
	}
	if r.noise = p.Noise; r.noise == nil {
		r.noise = samplers.Streams{}
	}
	all, whole := append([]int{r.rows}, params...), append([]int{r.rows}, p.Shape...)
	r.theta = models.New(all...)
	r.z = r.theta
	if m.Scene != nil {
		r.z = models.New(whole...)
		r.pull = make([]float64, r.rows*r.size)
	}
	r.at, r.grad = models.New(whole...), models.New(whole...)
	r.eps, r.force, r.tmp, r.y = make([]float64, r.rows*r.dim), make([]float64, r.rows*r.dim), make([]float64, r.dim), make([]float64, r.width)
	r.memory = memory{K: p.First, Rows: slices.Clone(p.Rows), Theta: models.Data(r.theta), M: newMoments(r.rows * r.size), Gamma: m.Gamma}
	if r.augmented() {
		r.X, r.MX = make([]float64, r.rows*r.dim), newMoments(r.rows*r.dim)
	}
	r.query = models.Query{X: r.at, At: make([]schedules.Node, r.rows), Cond: p.Cond, Rows: r.Rows, Meter: p.Meter}
	return r, nil
}

// augmented tells whether an image x stands beside every particle.
func (r *run) augmented() bool { return r.m.Measure != nil && !r.m.Measure.Direct }

// group finds the sets: rows of one seed, which must stand together.
func (r *run) group() error {
	if r.rows == 0 {
		return fmt.Errorf("distill: no rows to sample")
	}
	seen := map[uint64]bool{}
	for i, row := range r.p.Rows {
		if n := len(r.sets); n > 0 && r.p.Rows[i-1].Seed == row.Seed {
			for _, other := range r.p.Rows[r.sets[n-1][0]:i] {
				if other == row {
					return fmt.Errorf("distill: particle %d of seed %d stands in the batch twice", row.Particle, row.Seed)
				}
			}
			r.sets[n-1][1]++
			continue
		}
		if seen[row.Seed] {
			return fmt.Errorf("distill: the particles of seed %d do not stand together", row.Seed)
		}
		seen[row.Seed] = true
		r.sets = append(r.sets, [2]int{i, i + 1})
	}
	return nil
}

// start draws the particles.
func (r *run) start() error {
	if s := r.p.Start; s != nil {
		if s.Dtype() != tensor.Float64 || !s.Shape().Eq(r.theta.Shape()) {
			return fmt.Errorf("distill: the start has type %v and shape %v, want float64 of shape %v", s.Dtype(), s.Shape(), r.theta.Shape())
		}
		copy(r.Theta, models.Data(s))
	} else {
		space := r.p.Space
		if space == nil {
			space = samplers.Euclid{}
		}
		clean := schedules.Node{Alpha: 1}
		for i, row := range r.Rows {
			space.Prior(r.Theta[i*r.size:(i+1)*r.size], clean, i, row, r.noise)
		}
	}
	if m := r.m.Measure; m != nil {
		dst := r.X
		if m.Direct {
			dst = r.Theta
		}
		for i := range r.rows {
			x := dst[i*r.dim : (i+1)*r.dim]
			copy(x, r.Theta[i*r.dim:(i+1)*r.dim])
			if m.Start != nil {
				m.Start(i, x)
			}
		}
	}
	r.render(0, r.rows)
	return nil
}

// render makes the images of rows lo..hi.
func (r *run) render(lo, hi int) {
	if r.m.Scene == nil {
		return
	}
	for i := lo; i < hi; i++ {
		r.m.Scene.Render(models.Data(r.z)[i*r.dim:(i+1)*r.dim], r.Theta[i*r.size:(i+1)*r.size], r.image)
	}
}

// level is the node of iteration k for a set.
func (r *run) level(seed uint64, k int) schedules.Node {
	if reach := r.m.Spread * float64(r.total); reach >= 1 {
		lo, hi := max(0, k-int(reach)), min(r.total-1, k+int(reach))
		if r.m.Spread == 1 {
			lo, hi = 0, r.total-1
		}
		var u [1]float64
		rng.Uniform(u[:], rng.Key{Seed: seed, Step: k, Purpose: rng.PurposeSubset})
		k = lo + int(u[0]*float64(hi-lo+1))
	}
	return r.p.Grid[k]
}

// Next implements samplers.Run: one iteration.
func (r *run) Next(ctx context.Context) (bool, error) {
	if r.K >= r.last {
		return true, nil
	}
	if err := r.iterate(ctx); err != nil {
		return false, fmt.Errorf("distill: iteration %d at sigma/alpha %.4g: %w", r.K, r.query.At[0].Ratio(), err)
	}
	r.K++
	return false, nil
}

func (r *run) iterate(ctx context.Context) error {
	if err := r.ask(ctx); err != nil {
		return err
	}
	q := models.Data(r.grad)
	if err := r.residual(q); err != nil {
		return err
	}
	if err := r.repel(ctx, q); err != nil {
		return err
	}
	weight := r.m.Weight
	if weight == nil {
		if weight = weights[0].Of; r.m.Measure != nil {
			weight = weights[1].Of
		}
	}
	for i, n := range r.query.At {
		w := weight(n, r.gau)
		if n.Alpha == 0 { // x holds nothing of z
			w = 0
		}
		if w-w != 0 {
			return fmt.Errorf("the weight is %g", w)
		}
		for j := i * r.dim; j < (i+1)*r.dim; j++ {
			q[j] *= w
		}
	}
	for _, s := range r.sets {
		if r.m.Measure != nil {
			r.measured(q, s[0], s[1], r.K)
			continue
		}
		r.move(s[0], s[1], r.K)
		r.render(s[0], s[1])
	}
	return nil
}

// ask noises the particles and asks the model.
func (r *run) ask(ctx context.Context) error {
	for _, s := range r.sets {
		n := r.level(r.Rows[s[0]].Seed, r.K)
		for i := s[0]; i < s[1]; i++ {
			r.query.At[i] = n
		}
	}
	z, x := models.Data(r.z), models.Data(r.at)
	for i, n := range r.query.At {
		e := r.eps[i*r.dim : (i+1)*r.dim]
		r.noise.Normal(e, samplers.Draw{Row: r.Rows[i], Slot: i, Step: r.K, Purpose: samplers.DrawForward, To: n.Ratio()})
		for j, v := range e {
			x[i*r.dim+j] = float64(n.Alpha*z[i*r.dim+j]) + float64(n.Sigma*v)
		}
	}
	r.query.Step = models.Step{I: r.K, N: r.total, From: r.query.At[0], To: r.query.At[0], Progress: float64(r.K) / float64(r.total)}
	if err := r.den.Predict(ctx, &r.query, &r.pred); err != nil {
		return err
	}
	if r.pred.Renoise != nil {
		return fmt.Errorf("distillation puts no noise back: a guider that chooses it (cfg++, clipping without re-derived noise) has no meaning here")
	}
	r.asked = true
	return nil
}

// residual writes the residual before repulsion into q.
func (r *run) residual(q []float64) error {
	x, out := models.Data(r.at), models.Data(r.pred.Out)
	for i, n := range r.query.At {
		cx, co, err := schedules.Convert(r.gau, r.pred.Kind, schedules.Eps, n)
		if err != nil {
			return err
		}
		for j := i * r.dim; j < (i+1)*r.dim; j++ {
			q[j] = float64(cx*x[j]) + float64(co*out[j]) - r.eps[j]
		}
	}
	if r.m.Residual == VSD {
		for _, s := range r.sets {
			r.particles(q, s[0], s[1])
		}
	}
	return nil
}

// particles turns eps_hat - eps into eps_hat - eps_phi. With eps = (x_i - alpha z_i)/sigma,
// eps_phi - eps = (alpha/sigma) (z_i - sum_j r_j z_j).
func (r *run) particles(q []float64, lo, hi int) {
	z, x := models.Data(r.z), models.Data(r.at)
	post := make([]float64, hi-lo)
	for i := lo; i < hi; i++ {
		n, most := r.query.At[i], math.Inf(-1)
		for k := range post {
			sum := 0.0
			for j := range r.dim {
				sum += sq(x[i*r.dim+j] - n.Alpha*z[(lo+k)*r.dim+j])
			}
			post[k] = -sum / (2 * n.Sigma * n.Sigma)
			most = max(most, post[k])
		}
		sum := 0.0
		for k, v := range post {
			post[k] = math.Exp(v - most)
			sum += post[k]
		}
		for k, v := range post {
			c := n.Alpha / n.Sigma * v / sum
			for j := range r.dim {
				q[i*r.dim+j] -= c * (z[i*r.dim+j] - z[(lo+k)*r.dim+j])
			}
		}
	}
}

// repel subtracts gamma sigma R from the residual q.
func (r *run) repel(ctx context.Context, q []float64) error {
	acts := false
	for _, s := range r.sets {
		acts = acts || s[1]-s[0] > 1 && r.m.gamma(r.Gamma, r.K, r.total, r.query.At[s[0]]) != 0
	}
	if !acts {
		return nil
	}
	seen := r.z
	if r.m.Noisy {
		seen = r.at
	}
	f, pull, err := r.features(ctx, seen)
	if err != nil {
		return err
	}
	fd := models.Data(f)
	d := len(fd) / r.rows
	cot := models.New(f.Shape()...)
	for _, s := range r.sets {
		r.m.Kernel.Repel(models.Data(cot)[s[0]*d:s[1]*d], fd[s[0]*d:s[1]*d], s[1]-s[0])
	}
	force := models.Wrap(r.force, r.grad.Shape()...)
	if err := pull(force, cot); err != nil {
		return err
	}
	for i, n := range r.query.At {
		c := r.m.gamma(r.Gamma, r.K, r.total, n)
		qi, R := q[i*r.dim:(i+1)*r.dim], r.force[i*r.dim:(i+1)*r.dim]
		share := 0.0 // of R that is as long as the residual
		if size := math.Sqrt(dot(R, R)); size > 0 {
			share = math.Sqrt(dot(qi, qi)) / size
		}
		if r.m.Relative {
			c *= share
		} else {
			c *= n.Sigma
		}
		if most := r.m.Limit * share; r.m.Limit > 0 && math.Abs(c) > most {
			c = math.Copysign(most, c)
		}
		if c == 0 {
			continue
		}
		for j, v := range R {
			qi[j] -= c * v
		}
	}
	return nil
}

func (r *run) features(ctx context.Context, x *tensor.Dense) (*tensor.Dense, func(grad, cot *tensor.Dense) error, error) {
	if r.m.Features == nil {
		return x, func(grad, cot *tensor.Dense) error {
			copy(models.Data(grad), models.Data(cot))
			return nil
		}, nil
	}
	f, pull, err := r.m.Features.Map(ctx, x)
	if err != nil {
		return nil, nil, fmt.Errorf("features: %w", err)
	}
	return f, pull, nil
}

// move pulls the gradient of rows lo..hi back to the parameters and lets the optimizer step.
func (r *run) move(lo, hi, k int) {
	g := models.Data(r.grad)
	for i := lo; i < hi; i++ {
		gi, theta := g[i*r.dim:(i+1)*r.dim], r.Theta[i*r.size:(i+1)*r.size]
		if r.m.Scene != nil {
			gi = r.pull[i*r.size : (i+1)*r.size]
			r.m.Scene.Pull(gi, theta, g[i*r.dim:(i+1)*r.dim], r.image)
		}
		r.m.step(theta, gi, r.M.row(i, r.size), r.Rate, k+1, r.total)
	}
}

// State implements samplers.Run. X is the images as they are; Pred was made at PredX, the same with noise on them.
func (r *run) State() *samplers.State {
	r.state = samplers.State{X: r.z, At: r.p.Grid[r.total], I: r.K, N: r.total, Done: float64(r.K) / float64(r.total), Process: r.gau}
	if r.augmented() {
		r.state.X = models.Wrap(r.X, r.z.Shape()...)
	}
	if r.asked {
		r.state.Pred, r.state.PredX, r.state.PredAt = &r.pred, r.at, r.query.At[0]
	}
	return &r.state
}

// Set implements samplers.Setter: gamma, and rate (the optimizer's; 0 = as it was).
func (r *run) Set(name string, value float64) error {
	if value-value != 0 {
		return fmt.Errorf("distill: %s = %g is not finite", name, value)
	}
	switch name {
	case "gamma":
		r.Gamma = value
	case "rate":
		if value < 0 {
			return fmt.Errorf("distill: rate = %g: want a positive number", value)
		}
		r.Rate = value
	default:
		return fmt.Errorf("distill: no option %q to set during a run; known: gamma, rate", name)
	}
	return nil
}

// Save implements samplers.Saver.
func (r *run) Save(w io.Writer) error {
	if err := gob.NewEncoder(w).Encode(&r.memory); err != nil {
		return fmt.Errorf("distill: saving a run: %w", err)
	}
	if k, ok := models.As[models.Keeper](r.den); ok {
		return k.Save(w)
	}
	return nil
}

func (r *run) load(rd io.Reader) error {
	var s memory
	if err := gob.NewDecoder(rd).Decode(&s); err != nil {
		return fmt.Errorf("distill: reading a saved run: %w", err)
	}
	fits := func(a moments, b moments) bool { return len(a.M) == len(b.M) && len(a.V) == len(b.V) }
	if s.K < r.K || s.K > r.last || !slices.Equal(s.Rows, r.Rows) || len(s.Theta) != len(r.Theta) || len(s.X) != len(r.X) || !fits(s.M, r.M) || !fits(s.MX, r.MX) {
		return fmt.Errorf("distill: the saved run does not fit the problem")
	}
	copy(r.Theta, s.Theta)
	s.Theta, s.Rows = r.Theta, r.Rows
	r.memory = s
	r.render(0, r.rows)
	if k, ok := models.As[models.Keeper](r.den); ok {
		return k.Load(rd)
	}
	return nil
}

var (
	_ samplers.Saver  = (*run)(nil)
	_ samplers.Setter = (*run)(nil)
)
