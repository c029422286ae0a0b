package samplers

import (
	"context"
	"errors"

	"drift/internal/spec"
	"drift/models"
	"drift/schedules"
)

// LTSP splits the guided ODE after Lie and Trotter (Wizadwongsa and Suwajanakorn 2023, arXiv 2301.11558) and puts
// momentum on the guidance alone (arXiv 2307.11118, appendix). With the guided noise e_u + w (e_c - e_u), step n is
//
//	x'      = x_n + alpha_n (sb_{n+1} - sb_n) GHVB_k of w (e_c - e_u)(x_n)
//	x_{n+1} = (alpha_{n+1}/alpha_n) x' + alpha_{n+1} (sb_{n+1} - sb_n) PLMS4 of e_u(x')
//
// Both parts are made at node n. The model must be guided and say what it is made of (models.Pred.Parts: "cond" and
// "uncond"). Two guided evaluations per step.
type LTSP struct {
	Order int     // k of GHVB, 1 to 5; 0 = 4
	Beta  float64 // in (0, 1]; 0 = 0.8
	Lower Lowering
}

func init() {
	register(Info{
		Name: "ltsp-ghvb", Order: "1", NFE: "2",
		Summary: "Lie-Trotter splitting of a guided model: generalized heavy ball on the guidance, PLMS4 on the unguided part",
		Source:  "arXiv 2301.11558; arXiv 2307.11118, appendix",
		Options: ghvbOptions,
		New: func(o *spec.Options) (Sampler, error) {
			k, beta, err := readGHVB(o)
			return LTSP{Order: k, Beta: beta, Lower: lowerIfAsked(o)}, err
		},
	})
}

var errUnguided = errors.New("needs a guided model that tells its conditional from its unconditional part (classifier-free guidance that is on at every step)")

// split writes w (e_c - e_u) and e_u of a prediction made at (x, n) into g and u, as noise.
func (LTSP) split(r *run, a *answer, g, u []float64) error {
	var cond, uncond *models.Part
	for i := range a.pred.Parts {
		switch p := &a.pred.Parts[i]; p.Name {
		case "cond":
			cond = p
		case "uncond":
			uncond = p
		}
	}
	if cond == nil || uncond == nil {
		return errUnguided
	}
	cx, co, err := schedules.Convert(r.gau, uncond.Kind, schedules.Eps, a.at)
	if err != nil {
		return err
	}
	dx, do, err := schedules.Convert(r.gau, cond.Kind, schedules.Eps, a.at)
	if err != nil {
		return err
	}
	c, e := models.Data(cond.Out), models.Data(uncond.Out)
	w := cond.Weight
	for j, x := range a.x {
		base := float64(cx*x) + float64(co*e[j])
		g[j] = float64(w * (float64(dx*x) + float64(do*c[j]) - base))
		u[j] = base
	}
	return nil
}

func (m LTSP) step(ctx context.Context, r *run, s, t schedules.Node) error {
	if s.Alpha == 0 {
		return r.firstOrder(ctx, t)
	}
	k, beta := GHVB(m).values()
	if err := r.evaluate(ctx); err != nil {
		return err
	}
	g, u := r.temp(), r.temp()
	if err := m.split(r, &r.cur, g, u); err != nil {
		return err
	}
	v, old := r.vec("v")
	if !old {
		copy(v, g)
	}
	lin(v, term{1 - beta, v}, term{beta, g})
	copy(g, v)

	// The history holds velocities and noises in turn, newest first: noise, velocity, noise, ...
	n := min(len(r.hist)/2+1, m.Lower.cap(5, r, 1))
	d := t.Ratio() - s.Ratio()
	b := ghvbWeights(min(k, n), beta)
	var terms [6]term
	terms[0], terms[1] = term{1, r.x}, term{s.Alpha * d * b[0] / beta, g}
	for i := 1; i < min(k, n); i++ {
		terms[1+i] = term{s.Alpha * d * b[i] / beta, r.hist[2*i-1].V}
	}
	lin(r.u, terms[:1+min(k, n)]...)

	if err := r.ask(ctx, &r.stage, r.uT, r.u, s, 1); err != nil {
		return err
	}
	e := r.temp()
	if err := m.split(r, &r.stage, r.y, e); err != nil { // y: the guidance at the moved state is not used
		return err
	}
	a := adams[min(4, n)-1]
	terms[0], terms[1] = term{t.Alpha / s.Alpha, r.u}, term{t.Alpha * d * a[0], e}
	for i := 1; i < len(a); i++ {
		terms[1+i] = term{t.Alpha * d * a[i], r.hist[2*i-2].V}
	}
	lin(r.y, terms[:1+len(a)]...)
	depth := 2 * (max(k, 4) - 1)
	r.keep(g, s, depth+1)
	r.keep(e, s, depth)
	return nil
}

// Cost implements Counter: two evaluations, one at a start without signal.
func (LTSP) Cost(g schedules.Grid, i int) int {
	if g[i].Alpha == 0 {
		return 1
	}
	return 2
}

// Begin implements Sampler.
func (m LTSP) Begin(ctx context.Context, p *Problem) (Run, error) { return begin(ctx, p, m) }

// Needs implements Sampler.
func (LTSP) Needs() Needs { return Needs{Parts: true} }

func (LTSP) label() string { return "ltsp-ghvb" }
