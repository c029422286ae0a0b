package search

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// Relaxed is the objective of S4S with a ball around every start (Frankel et al. 2025, arXiv 2502.17423, section 4): a
// student of few steps need not end where its teacher does from the very same start, but from one nearby,
//
//	mean over rows of min over |d| <= Radius sigma_T sqrt(D) of |student(x_T + d) - teacher(x_T)|^2 / D.
//
// The minimum is taken between d = 0 and the step onto the sphere against the gradient, which the adjoint of the student
// gives: one product with the model's Jacobian per step. So the score is a bound from above, and a search that uses it
// stays a function of the schedule. Schedules are those of S4S: weights of data predictions, no correctors.
type Relaxed struct {
	Distance *Distance
	Radius   float64 // per dimension, in standard deviations of the noise at the first node
}

// Score is the Objective.
func (r Relaxed) Score(ctx context.Context, s samplers.SolverSchedule) (float64, error) {
	d := r.Distance
	if !(r.Radius > 0) {
		return d.Score(ctx, s)
	}
	own := *d
	if d.NewModel != nil { // guiders may remember: one model for this score
		m, err := d.NewModel()
		if err != nil {
			return 0, fmt.Errorf("search: %w", err)
		}
		own.Problem.Model, own.NewModel = m, nil
	}
	plain, err := own.Rows(ctx, samplers.USF{Schedule: s}, nil)
	if err != nil || math.IsInf(plain[0], 1) {
		return math.Inf(1), err
	}
	grad, sigma, err := own.gradient(ctx, s)
	var blown *samplers.NotFinite
	if errors.As(err, &blown) {
		return mean(plain), nil
	}
	if err != nil {
		return 0, err
	}
	start := slices.Clone(models.Data(own.Problem.Start))
	w := len(start) / len(plain)
	for k := range plain {
		g := grad[k*w : (k+1)*w]
		norm := 0.0
		for _, v := range g {
			norm += v * v
		}
		if norm = math.Sqrt(norm); norm > 0 && !math.IsInf(norm, 0) {
			step := r.Radius * sigma * math.Sqrt(float64(w)) / norm
			for j, v := range g {
				start[k*w+j] -= step * v
			}
		}
	}
	moved := own
	moved.Problem.Start = models.Wrap(start, own.Problem.Start.Shape()...)
	near, err := moved.Rows(ctx, samplers.USF{Schedule: s}, nil)
	if err != nil {
		return 0, err
	}
	for k := range near {
		near[k] = min(near[k], plain[k])
	}
	return mean(near), nil
}

// gradient is that of every row's squared distance with respect to its start, and the noise at the first node. The
// student is, with data predictions m_i = cx x_i + co out_i at node i,
//
//	x_{i+1} = (sigma_{i+1}/sigma_i) x_i + b_i SUM_j w_ij m_{i-j},  b_i = alpha_{i+1} (1 - e^{-h_i})
//
// and the adjoint runs it backwards: what x_{i+1} is worth goes to x_i and to the predictions that the step used, and a
// prediction's worth goes through the model's Jacobian to its own x.
func (d *Distance) gradient(ctx context.Context, s samplers.SolverSchedule) ([]float64, float64, error) {
	p := d.Problem
	model, ok := p.Model.(models.Denoiser)
	if !ok {
		return nil, 0, errors.New("search: the ball needs a denoiser")
	}
	gau, ok := model.Process().(schedules.Gaussian)
	if !ok {
		return nil, 0, errors.New("search: the adjoint needs a Gaussian process")
	}
	vjp, ok := models.As[models.VJP](model)
	if !ok {
		return nil, 0, errors.New("search: the ball needs a model with gradients")
	}
	g, err := samplers.USF{Schedule: s}.Grid(gau)
	if err != nil {
		return nil, 0, err
	}
	rows, shape := len(p.Rows), p.Start.Shape()
	n := len(g) - 1
	xs, ms := make([][]float64, n+1), make([][]float64, n)
	cx, co := make([]float64, n), make([]float64, n)
	b, ratio := make([]float64, n), make([]float64, n)
	weights := make([][]float64, n)
	query := func(i int) *models.Query {
		at := make([]schedules.Node, rows)
		for k := range at {
			at[k] = g[i]
		}
		return &models.Query{X: models.Wrap(xs[i], shape...), At: at, Cond: p.Cond, Rows: p.Rows, Meter: p.Meter, Step: models.Step{I: i, N: n, From: g[i], To: g[i+1], Progress: float64(i) / float64(n)}}
	}
	xs[0] = slices.Clone(models.Data(p.Start))
	for i, st := range s.Steps {
		if st.Pred != schedules.X0 || st.Corrector != nil || len(st.Weights) == 0 && st.Order != 1 || s.First != "" {
			return nil, 0, fmt.Errorf("search: the ball is for schedules of weights on data predictions, step %d is another", i)
		}
		weights[i] = st.Weights
		if len(st.Weights) == 0 {
			weights[i] = []float64{1}
		}
		var pred models.Pred
		if err := model.Predict(ctx, query(i), &pred); err != nil {
			return nil, 0, fmt.Errorf("search: step %d: %w", i, err)
		}
		if cx[i], co[i], err = schedules.Convert(gau, pred.Kind, schedules.X0, g[i]); err != nil {
			return nil, 0, err
		}
		ms[i] = make([]float64, len(xs[i]))
		for j, v := range models.Data(pred.Out) {
			ms[i][j] = cx[i]*xs[i][j] + co[i]*v
		}
		ratio[i] = g[i+1].Sigma / g[i].Sigma
		b[i] = g[i+1].Alpha - ratio[i]*g[i].Alpha // alpha_{i+1} (1 - e^{-h}), at both singular ends too
		next := make([]float64, len(xs[i]))
		for j := range next {
			next[j] = ratio[i] * xs[i][j]
			for k, w := range weights[i] {
				next[j] += b[i] * w * ms[i-k][j]
			}
			if next[j]-next[j] != 0 {
				return nil, 0, &samplers.NotFinite{Step: i, At: g[i+1], Row: j * rows / len(next)}
			}
		}
		xs[i+1] = next
	}
	w := len(xs[0]) / rows
	worth := make([]float64, len(xs[0])) // of the state at node i+1
	for j, v := range xs[n] {
		worth[j] = 2 * (v - d.Target[j]) / float64(w)
	}
	of := make([][]float64, n) // of the prediction at every node
	for i := range of {
		of[i] = make([]float64, len(worth))
	}
	for i := n - 1; i >= 0; i-- {
		for k, wk := range weights[i] {
			for j, v := range worth {
				of[i-k][j] += b[i] * wk * v
			}
		}
		cot, grad := make([]float64, len(worth)), models.New(shape...)
		for j, v := range of[i] {
			cot[j] = co[i] * v
		}
		var pred models.Pred
		if err := vjp.VJP(ctx, query(i), &pred, models.Wrap(cot, shape...), grad); err != nil {
			return nil, 0, fmt.Errorf("search: adjoint of step %d: %w", i, err)
		}
		for j, v := range models.Data(grad) {
			worth[j] = ratio[i]*worth[j] + cx[i]*of[i][j] + v
		}
	}
	return worth, g[0].Sigma, nil
}
