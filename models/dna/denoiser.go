package dna

import (
	"context"
	"fmt"
	"math"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/schedules"
)

// Denoiser is a network as a models.Denoiser on a path of the simplex: states have rows of shape (positions, categories), and
// the answer, of kind X0, is the softmax of its logits. With a Guide it is a classifier with gradients too
// (guidance.ClassGradient).
type Denoiser struct {
	Net   *Net
	Path  schedules.Field
	Guide *Net // classifier of noisy states; nil = none
	About models.Info

	in Input
	x  []float32
}

// Process implements models.Denoiser.
func (d *Denoiser) Process() schedules.Process { return d.Path }

// Info implements models.Described.
func (d *Denoiser) Info() models.Info { return d.About }

// input puts states into a network's form.
func (d *Denoiser) input(n *Net, x *tensor.Dense, at []schedules.Node) (Input, error) {
	s := x.Shape()
	if len(s) != 3 || s[2] != n.Categories || s[0] != len(at) {
		return Input{}, fmt.Errorf("dna: states of shape %v, the network takes (%d, positions, %d)", s, len(at), n.Categories)
	}
	in := Input{Rows: s[0], L: s[1], X: grow(&d.x, s[0]*s[1]*n.Inputs), Alpha: d.in.Alpha[:0]}
	data, w := models.Data(x), s[1]*s[2]
	for i, node := range at {
		row := data[i*w : (i+1)*w]
		if n.Inputs == 2*n.Categories {
			Expand(in.X[2*i*w:2*(i+1)*w], row, n.Categories, node.T)
		} else {
			for j, v := range row {
				in.X[i*w+j] = float32(v)
			}
		}
		in.Alpha = append(in.Alpha, 1+node.T)
	}
	d.in.Alpha = in.Alpha
	return in, nil
}

// Predict implements models.Denoiser.
func (d *Denoiser) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	in, err := d.input(d.Net, q.X, q.At)
	if err != nil {
		return err
	}
	if d.Net.conditional() {
		in.Class = d.in.Class[:0]
		for i := range q.At {
			c := q.Cond.Class(i)
			if c == models.NoClass {
				c = d.Net.Classes
			} else if c < 0 || c >= d.Net.Classes {
				return fmt.Errorf("dna: no class %d; classes run from 0 to %d", c, d.Net.Classes-1)
			}
			in.Class = append(in.Class, c)
		}
		d.in.Class = in.Class
	}
	_, out := p.Fit(q.X, schedules.X0)
	if err := d.Net.Logits(ctx, out, in); err != nil {
		return err
	}
	for at := 0; at < len(out); at += d.Net.Categories {
		row, top, sum := out[at:at+d.Net.Categories], math.Inf(-1), 0.0
		for _, v := range row {
			top = max(top, v)
		}
		for j, v := range row {
			row[j] = math.Exp(v - top)
			sum += row[j]
		}
		for j := range row {
			row[j] /= sum
		}
	}
	return nil
}

// LogProb implements guidance.ClassGradient by the Guide.
func (d *Denoiser) LogProb(ctx context.Context, x *tensor.Dense, at []schedules.Node, classes []int, logp []float64, grad *tensor.Dense) error {
	if d.Guide == nil {
		return fmt.Errorf("dna: this network comes without a classifier of noisy states")
	}
	in, err := d.input(d.Guide, x, at)
	if err != nil {
		return err
	}
	for _, c := range classes {
		if c >= d.Guide.Classes {
			return fmt.Errorf("dna: no class %d; the classifier has %d", c, d.Guide.Classes)
		}
	}
	var g []float32
	if grad != nil {
		g = make([]float32, len(in.X))
	}
	if err := d.Guide.LogProb(ctx, logp, g, in, classes); err != nil || grad == nil {
		return err
	}
	out, k, w := models.Data(grad), d.Guide.Categories, in.L*d.Guide.Categories
	for i, node := range at {
		for j := i * w; j < (i+1)*w; j++ {
			if d.Guide.Inputs == k {
				out[j] = float64(g[j])
				continue
			}
			share := 2 / (node.T + 2)
			pos, c := j/k, j%k
			out[j] = (1-share)*float64(g[2*pos*k+c]) + share*float64(g[(2*pos+1)*k+c])
		}
	}
	return nil
}
