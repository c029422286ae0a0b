package job

import (
	"context"
	"fmt"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// Wrap puts the guiders around a leaf model.
type Wrap func(leaf models.Denoiser) (models.Denoiser, error)

// Cost is what a run asks of the leaf models, per image.
type Cost struct{ NFE, VJPs float64 }

// CountNFE finds the cost of a run by making it on a blank model: one row, no network. Guiders count too; where they ask
// for more than a blank model has (layers, an exact posterior), the run is made on the model itself. It is exact for
// samplers that take the same steps whatever the model answers.
func CountNFE(ctx context.Context, s samplers.Sampler, wrap Wrap, like models.Denoiser, shape []int, classes bool, g schedules.Grid, first, last int) (Cost, error) {
	var empty models.Denoiser = models.Metered(blank{like.Process()})
	if _, ok := models.As[models.Decoder](like); ok {
		if d, ok := models.As[models.Described](like); ok {
			empty = models.Metered(blankLatent{blank{like.Process()}, d.Info()})
		}
	}
	if m, ok := like.(interface{ Evaluations() int }); ok {
		empty = several{empty.(models.VJP), empty, m.Evaluations()}
	}
	c, err := countOn(ctx, s, wrap, empty, shape, classes, g, first, last)
	if err != nil && wrap != nil && ctx.Err() == nil {
		return countOn(ctx, s, wrap, like, shape, classes, g, first, last)
	}
	return c, err
}

func countOn(ctx context.Context, s samplers.Sampler, wrap Wrap, d models.Denoiser, shape []int, classes bool, g schedules.Grid, first, last int) (Cost, error) {
	if wrap != nil {
		var err error
		if d, err = wrap(d); err != nil {
			return Cost{}, err
		}
	}
	p := &samplers.Problem{Model: d, Grid: g, First: first, Last: last, Shape: shape, Rows: []models.Row{{}}, Meter: &models.Meter{}}
	if classes {
		p.Cond = &models.Cond{Classes: []int{0}}
	}
	if _, err := samplers.Sample(ctx, s, p); err != nil {
		return Cost{}, err
	}
	return Cost{NFE: float64(p.Meter.Evals()), VJPs: float64(p.Meter.VJPs())}, nil
}

// blank is a model that has seen nothing: it answers a tenth of the state as v, which turns into anything at any node.
type blank struct{ process schedules.Process }

// Process implements models.Denoiser.
func (b blank) Process() schedules.Process { return b.process }

// Predict implements models.Denoiser.
func (b blank) Predict(_ context.Context, q *models.Query, p *models.Pred) error {
	kind := schedules.V
	if _, ok := b.process.(schedules.Field); ok {
		kind = schedules.X0
	}
	in, out := p.Fit(q.X, kind)
	for j, x := range in {
		out[j] = 0.1 * x
	}
	if _, ok := b.process.(schedules.Bridge); ok {
		p.Kind, p.Extra, p.ExtraKind = schedules.Velocity, p.Out, schedules.Score
	}
	return nil
}

// Source implements models.Sourced, for runs on a bridge.
func (blank) Source(dst, z []float64) error {
	copy(dst, z)
	return nil
}

// VJP implements models.VJP.
func (b blank) VJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	g := models.Data(grad)
	for j, c := range models.Data(cotangent) {
		g[j] = 0.1 * c
	}
	return b.Predict(ctx, q, p)
}

// blankLatent is a blank model of latents, whose pictures are grey.
type blankLatent struct {
	blank
	info models.Info
}

// Info implements models.Described.
func (b blankLatent) Info() models.Info { return b.info }

// DecodeLate implements models.Decoder.
func (b blankLatent) DecodeLate(_ context.Context, z *tensor.Dense, cotangent func(x *tensor.Dense) (*tensor.Dense, error), grad *tensor.Dense) error {
	clear(models.Data(grad))
	_, err := cotangent(models.New(append([]int{z.Shape()[0]}, b.info.Image()...)...))
	return err
}

// several asks a model several times, as a composition asks each of its models.
type several struct {
	vjp models.VJP
	models.Denoiser
	n int
}

// Predict implements models.Denoiser.
func (s several) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	for range s.n {
		if err := s.Denoiser.Predict(ctx, q, p); err != nil {
			return err
		}
	}
	return nil
}

// VJP implements models.VJP.
func (s several) VJP(ctx context.Context, q *models.Query, p *models.Pred, cotangent, grad *tensor.Dense) error {
	for range s.n {
		if err := s.vjp.VJP(ctx, q, p, cotangent, grad); err != nil {
			return err
		}
	}
	return nil
}

// Fit returns the largest number of steps whose cost does not exceed the budget of evaluations per image, with its
// grid. grid makes the grid of n steps, count its evaluations. Costs grow about in proportion to n, so from a number that
// costs too much it goes down to where the budget should reach, and some steps above that.
func Fit(budget int, grid func(n int) (schedules.Grid, error), count func(schedules.Grid) (float64, error)) (schedules.Grid, error) {
	const above = 16
	var first error
	for n := budget; n >= 1; n-- {
		g, err := grid(n)
		var nfe float64
		if err == nil {
			nfe, err = count(g)
		}
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		if nfe <= float64(budget) {
			return g, nil
		}
		n = min(n, int(float64(n)*float64(budget)/nfe)+above+1)
	}
	if first != nil {
		return nil, first
	}
	return nil, fmt.Errorf("%d evaluations are not enough for one step", budget)
}
