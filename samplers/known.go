package samplers

import (
	"fmt"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/schedules"
)

// Known keeps a part of every row as it is given, by blending (inpainting without a network made for it; Avrahami et al. 2022, arXiv 2206.02779,
// algorithm 2, and diffusers' inpainting pipelines): after every step to a node n
//
//	x = m x + (1-m) (alpha_n x0 + sigma_n z)
//
// and at the end of the grid x = m x + (1-m) x0. z is one draw per row for the whole run. It holds for every solver on given nodes.
type Known struct {
	X0, Z *tensor.Dense // (rows, ...), in the order of the Problem's rows
	Mask  []float64     // m of one row's elements: 0 is kept, 1 is drawn
}

// check tells what is wrong with k in a problem of so many rows.
func (k *Known) check(rows int, m method, gaussian bool) error {
	switch {
	case !gaussian:
		return fmt.Errorf("keeping a part of the state needs a Gaussian process")
	case m.Needs().OwnGrid:
		return fmt.Errorf("keeping a part of the state needs a sampler on given nodes: this one places its own")
	}
	for _, t := range []*tensor.Dense{k.X0, k.Z} {
		if t == nil || t.Shape().Dims() < 2 || t.Shape()[0] != rows || t.Shape().TotalSize() != rows*len(k.Mask) {
			return fmt.Errorf("what is kept does not fit %d rows of %d elements", rows, len(k.Mask))
		}
	}
	return nil
}

// keepKnown puts what is known into y, which lives at node t.
func (r *run) keepKnown(y []float64, t schedules.Node) {
	k := r.p.Known
	if k == nil {
		return
	}
	alpha, sigma := t.Alpha, t.Sigma
	if r.i+1 == len(r.grid)-1 {
		alpha, sigma = 1, 0
	}
	x0, z := models.Data(k.X0), models.Data(k.Z)
	for row := range r.rows {
		from := row
		if r.from != nil {
			from = r.from[row]
		}
		y, x0, z := y[row*r.dim:(row+1)*r.dim], x0[from*r.dim:], z[from*r.dim:]
		for j, m := range k.Mask {
			if m != 1 {
				known := float64(alpha*x0[j]) + float64(sigma*z[j])
				y[j] = float64(m*y[j]) + float64((1-m)*known)
			}
		}
	}
}
