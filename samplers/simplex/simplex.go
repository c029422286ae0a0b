// Package simplex is what flows on the simplex have beyond the solvers of package samplers, which run on every
// schedules.Field: reading tokens from a run, and distillation to one step.
//
// Dirichlet flow matching (Stark et al. 2024, arXiv 2402.05841) is a models.Denoiser whose process is
// schedules.Dirichlet, whose prediction is E[x0|x], the probabilities of the categories at every position, and a solver in
// time: euler, heun, midpoint, rk4, rk4-38 or rk45. Guiders mix predictions as anywhere else: with scores
// s_i = t p_i/x_i + const of the path, classifier-free guidance of the score is guidance of p (section 3.3), and the
// solver projects what leaves the simplex.
package simplex

import (
	"context"
	"fmt"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/samplers"
)

// Tokens reads the categories of a run: those of the largest probability in the last prediction, which is where a
// sequence is read from, and not from the state (whose coordinates are still mixed at a finite end). Before the first
// prediction it reads the state. The result has one slice of positions per row.
func Tokens(s *samplers.State) ([][]int, error) {
	p, err := s.X0(nil)
	if err != nil {
		return nil, err
	}
	if p == nil {
		p = s.X
	}
	return Argmax(p), nil
}

// Argmax returns the largest category of every position of p (rows, ..., K).
func Argmax(p *tensor.Dense) [][]int {
	shape := p.Shape()
	k, rows := shape[len(shape)-1], shape[0]
	d := models.Data(p)
	n := len(d) / rows / k
	out := make([][]int, rows)
	for i := range out {
		out[i] = make([]int, n)
		for l := range out[i] {
			row := d[(i*n+l)*k : (i*n+l+1)*k]
			for j, v := range row {
				if v > row[out[i][l]] {
					out[i][l] = j
				}
			}
		}
	}
	return out
}

// Pairs are what a one-step student is trained on (arXiv 2402.05841, section 3.4): the start of every row and the tokens
// where the teacher's run ends. The student answers p(token | start) at t = 0 in cross-entropy, and one Euler step samples
// it: Tokens reads the one prediction there is.
type Pairs struct {
	Start  *tensor.Dense
	Tokens [][]int
}

// Teach runs the teacher from the prior of every row to its tokens.
func Teach(ctx context.Context, s samplers.Sampler, p *samplers.Problem) (*Pairs, error) {
	own := *p
	out := &Pairs{}
	own.Observe = func(st *samplers.State) error {
		if out.Start == nil {
			out.Start = st.X.Clone().(*tensor.Dense)
		}
		if p.Observe != nil {
			return p.Observe(st)
		}
		return nil
	}
	res, err := samplers.Sample(ctx, s, &own)
	if err != nil {
		return nil, fmt.Errorf("simplex: teacher: %w", err)
	}
	out.Tokens, err = Tokens(res.Run.State())
	return out, err
}
