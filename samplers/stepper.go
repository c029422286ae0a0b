package samplers

import (
	"context"

	"drift/models"
	"drift/schedules"
)

// Stepper is a solver that lives outside this package: it makes one step of a run at a time and keeps nothing, so that
// cancelling, observers, counting, Select, Peek, Save and Resume come with the run that Begin makes of it.
type Stepper interface {
	Sampler
	// Label names the solver in errors and saved runs.
	Label() string
	// Step writes the state at m.To into m.Y, given the state m.X at m.From, which stays as it is. Rising hops and steps
	// of length zero are made by the run.
	Step(ctx context.Context, m *Move) error
}

// Begin starts a run of s on p.
func Begin(ctx context.Context, p *Problem, s Stepper) (Run, error) { return begin(ctx, p, outside{s}) }

// outside is a Stepper as a method.
type outside struct{ Stepper }

func (m outside) label() string { return m.Label() }

func (m outside) step(ctx context.Context, r *run, s, t schedules.Node) error {
	return m.Step(ctx, &Move{X: r.x, Y: r.y, From: s, To: t, Rows: r.rows, r: r})
}

// Move is one step of a run, as a Stepper sees it. X and Y hold Rows rows one after another.
type Move struct {
	X, Y     []float64
	From, To schedules.Node
	Rows     int
	r        *run
}

// Process is the model's noise process.
func (m *Move) Process() schedules.Gaussian { return m.r.gau }

// Codec turns states into images and back; nil where the state is the image.
func (m *Move) Codec() Codec { return m.r.p.Codec }

// Shape is the shape of one row.
func (m *Move) Shape() []int { return m.r.xT.Shape()[1:] }

// Step tells which step of how many this is.
func (m *Move) Step() (i, n int) { return m.r.i, len(m.r.grid) - 1 }

// Predict asks the model at (X, From), once per step however often it is called, and returns the answer as the given kind. Like Temp's, the vector lives
// until the end of the step.
func (m *Move) Predict(ctx context.Context, kind schedules.Kind) ([]float64, error) {
	return m.r.predict(ctx, kind)
}

// Ask asks the model at (X, From) with f in place of its Predict: f answers p, which becomes the prediction of this step.
func (m *Move) Ask(ctx context.Context, f func(d models.Denoiser, q *models.Query, p *models.Pred) error) error {
	r := m.r
	for k := range r.nodes {
		r.nodes[k] = m.From
	}
	if err := r.askWith(ctx, &r.cur, r.xT, r.x, r.nodes, 0, f); err != nil {
		return err
	}
	r.peeked, r.recent = true, &r.cur
	return nil
}

// AskAt asks the model at another point, the stage-th call of this step (stage > 0), with f.
func (m *Move) AskAt(ctx context.Context, x []float64, n schedules.Node, stage int, f func(d models.Denoiser, q *models.Query, p *models.Pred) error) error {
	r := m.r
	copy(r.u, x)
	for k := range r.nodes {
		r.nodes[k] = n
	}
	return r.askWith(ctx, &r.stage, r.uT, r.u, r.nodes, stage, f)
}

// Temp hands out a vector of the state's size.
func (m *Move) Temp() []float64 { return m.r.temp() }

// Noise returns unit normals for every row: the draw of this step for a purpose.
func (m *Move) Noise(purpose Purpose) []float64 {
	return m.r.normal(m.r.temp(), purpose, m.From.Ratio(), m.To.Ratio())
}

// Keep returns a vector of the state's size that lives on between steps under a name, and whether it was there; a new
// one is zero.
func (m *Move) Keep(name string) (v []float64, old bool) { return m.r.vec(name) }

// Ancestral splits the noise of a step from s to t as DDIM with eta does: what is put back of the predicted noise (down)
// and what is drawn afresh (up), down^2 + up^2 = sigma_t^2.
func Ancestral(s, t schedules.Node, eta float64) (down, up float64) { return ancestral(s, t, eta) }
