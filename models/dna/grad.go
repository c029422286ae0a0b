package dna

import (
	"context"
	"fmt"
	"math"
	"strconv"

	"drift/internal/kernels"
)

func (n *Net) packGradients() {
	n.once.Do(func() {
		g := func(name string, spec kernels.ConvSpec) *kernels.ConvGrad {
			return kernels.NewConvGrad(n.pool.Tier(), kernels.F32, spec, n.w[name+".weight"])
		}
		if n.first != nil {
			n.firstT = g("linear", n.first.Spec())
		}
		for i, c := range n.convs {
			n.convsT = append(n.convsT, g("convs."+strconv.Itoa(i), c.Spec()))
		}
		for i, c := range n.final {
			n.finalT[i] = g([]string{"final_conv.0", "final_conv.2"}[i], c.Spec())
		}
	})
}

func (n *Net) convT(g *kernels.ConvGrad, dx, dy []float32) {
	s := grow(&n.scratch, g.Scratch(n.pool.Workers(), n.tape.in.Rows, 1, n.tape.in.L))
	g.Run(n.pool, dx, dy, n.tape.in.Rows, 1, n.tape.in.L, s, kernels.Epilogue{})
}

// gradients is the memory of a backward pass.
type gradients struct {
	a, b, c    []float32
	cols, prod []float32
}

// back takes the gradient of a loss by the output (the logits of categories or of classes) back to the input: into dx (nil:
// not wanted) and, added, into grads (nil: not wanted). run with keep comes first.
func (n *Net) back(g *gradients, dout []float32, grads Weights, dx []float32) {
	n.packGradients()
	t, h := &n.tape, n.Hidden
	m := t.in.Rows * t.in.L
	if n.Head {
		dout = n.headBack(g, dout, grads)
	}
	layers := n.layers()
	df, dr, tmp := grow(&g.a, m*h), grow(&g.b, m*h), grow(&g.c, m*h)
	n.weightGrad(g, "final_conv.2", dout, t.hidden, n.outputs(), h, 0, grads)
	n.convT(n.finalT[1], dr, dout)
	mask(dr, t.hidden)
	n.weightGrad(g, "final_conv.0", dr, t.feat[layers], h, h, 0, grads)
	n.convT(n.finalT[0], df, dr)
	shift := make([]float32, t.in.Rows*h)
	for i := layers - 1; i >= 0; i-- {
		name := strconv.Itoa(i)
		copy(dr, df)
		mask(dr, t.relu[i])
		n.weightGrad(g, "convs."+name, dr, t.norm[i], h, h, n.dilation(i), grads)
		n.convT(n.convsT[i], tmp, dr)
		var ownShift []float32
		if n.Inputs > 0 || n.conditional() {
			ownShift = t.shift[i*t.in.Rows*h : (i+1)*t.in.Rows*h]
		}
		clear(shift)
		n.normBack(tmp, t.feat[i], ownShift, "norms."+name, grads, shift)
		for j, v := range tmp {
			df[j] += v
		}
		if grads != nil && ownShift != nil {
			n.shiftBack(name, i, shift, grads)
		}
	}
	if n.first == nil {
		if grads != nil {
			e := grads["linear.weight"]
			for i, k := range t.in.Tokens {
				for j, v := range df[i*h : (i+1)*h] {
					e[k*h+j] += v
				}
			}
		}
		return
	}
	mask(df, t.feat[0])
	n.weightGrad(g, "linear", df, t.in.X, h, n.Inputs, 1, grads)
	if dx != nil {
		n.convT(n.firstT, dx, df)
	}
}

// mask is the gradient of a ReLU whose output is y.
func mask(d, y []float32) {
	for i, v := range y[:len(d)] {
		if !(v > 0) {
			d[i] = 0
		}
	}
}

// weightGrad adds the gradients of a convolution with output gradient dy and input x; dilation 0 is a kernel of 1.
func (n *Net) weightGrad(g *gradients, name string, dy, x []float32, out, in, dilation int, grads Weights) {
	if grads == nil {
		return
	}
	rows, l := n.tape.in.Rows, n.tape.in.L
	m, taps, cols := rows*l, 1, x
	if dilation > 0 {
		taps = kernel
		cols = grow(&g.cols, m*taps*in)
		for r := range rows {
			for p := range l {
				row := cols[(r*l+p)*taps*in : (r*l+p+1)*taps*in]
				for k := range taps {
					if q := p + (k-taps/2)*dilation; q >= 0 && q < l {
						copy(row[k*in:(k+1)*in], x[(r*l+q)*in:])
					} else {
						clear(row[k*in : (k+1)*in])
					}
				}
			}
		}
	}
	spec := kernels.MatMulSpec{Batch: 1, M: out, N: taps * in, K: m, TransA: true}
	prod := grow(&g.prod, out*taps*in)
	kernels.MatMul(n.pool, prod, dy, cols, spec, grow(&n.scratch, kernels.MatMulScratch(n.pool, spec)))
	dw, db := grads[name+".weight"], grads[name+".bias"]
	for o := range out {
		for k := range taps {
			for i, v := range prod[(o*taps+k)*in : (o*taps+k+1)*in] {
				dw[(o*in+i)*taps+k] += v
			}
		}
	}
	for p := range m {
		for o, v := range dy[p*out : (p+1)*out] {
			db[o] += v
		}
	}
}

// normBack turns d, the gradient by a norm's output, into that by its input feat + shift, and adds the sums of that over the
// positions to dshift.
func (n *Net) normBack(d, feat, shift []float32, name string, grads Weights, dshift []float32) {
	h, l := n.Hidden, n.tape.in.L
	gamma := n.w[name+".weight"]
	var dg, db []float32
	if grads != nil {
		dg, db = grads[name+".weight"], grads[name+".bias"]
	}
	x := make([]float32, h)
	for p := range len(d) / h {
		r := p / l
		copy(x, feat[p*h:(p+1)*h])
		if shift != nil {
			for j, v := range shift[r*h : (r+1)*h] {
				x[j] += v
			}
		}
		var mean, sq float32
		for _, v := range x {
			mean += v
		}
		mean /= float32(h)
		for _, v := range x {
			sq += float32((v - mean) * (v - mean))
		}
		rstd := float32(1 / math.Sqrt(float64(sq)/float64(h)+normEps))
		row := d[p*h : (p+1)*h]
		var s1, s2 float32
		for j, v := range row {
			x[j] = (x[j] - mean) * rstd
			if dg != nil {
				dg[j] += float32(v * x[j])
				db[j] += v
			}
			row[j] = v * gamma[j]
			s1 += row[j]
			s2 += float32(row[j] * x[j])
		}
		s1, s2 = s1/float32(h), s2/float32(h)
		to := dshift[r*h : (r+1)*h]
		for j, v := range row {
			row[j] = rstd * (v - s1 - float32(x[j]*s2))
			to[j] += row[j]
		}
	}
}

// denseBack adds the gradients of y = W x + b and returns that of x in dx (nil: not wanted).
func denseBack(dw, db, dy, x, w, dx []float32) {
	in := len(x)
	for o, g := range dy {
		if dw != nil {
			db[o] += g
			row := dw[o*in : (o+1)*in]
			for i, v := range x {
				row[i] += float32(g * v)
			}
		}
		if dx != nil {
			for i, v := range w[o*in : (o+1)*in] {
				dx[i] += float32(g * v)
			}
		}
	}
}

// shiftBack adds the gradients of the embeddings of time and class through layer i.
func (n *Net) shiftBack(name string, i int, dshift []float32, grads Weights) {
	t, h := &n.tape, n.Hidden
	for r := range t.in.Rows {
		d := dshift[r*h : (r+1)*h]
		if n.Inputs > 0 {
			e := t.emb[r*h : (r+1)*h]
			de := make([]float32, h)
			w := "time_layers." + name + ".dense"
			denseBack(grads[w+".weight"], grads[w+".bias"], d, e, n.w[w+".weight"], de)
			mask(de, e)
			denseBack(grads["time_embedder.1.weight"], grads["time_embedder.1.bias"], de, t.four[r*h:(r+1)*h], nil, nil)
		}
		if n.conditional() {
			k := t.in.Class[r]
			w := "cls_layers." + name + ".dense"
			denseBack(grads[w+".weight"], grads[w+".bias"], d, n.w["cls_embedder.weight"][k*h:(k+1)*h], n.w[w+".weight"], grads["cls_embedder.weight"][k*h:(k+1)*h])
		}
	}
}

// headBack turns the gradient by the logits of the classes into that by the last convolution's output.
func (n *Net) headBack(g *gradients, dlogits []float32, grads Weights) []float32 {
	t, h := &n.tape, n.Hidden
	out := make([]float32, t.in.Rows*t.in.L*h)
	act, dact, dmean := make([]float32, h), make([]float32, h), make([]float32, h)
	of := func(name string) []float32 {
		if grads == nil {
			return nil
		}
		return grads[name]
	}
	for r := range t.in.Rows {
		mid := t.mid[r*h : (r+1)*h]
		for j, v := range mid {
			act[j] = max(v, 0)
		}
		clear(dact)
		clear(dmean)
		denseBack(of("cls_head.2.weight"), of("cls_head.2.bias"), dlogits[r*n.Classes:(r+1)*n.Classes], act, n.w["cls_head.2.weight"], dact)
		mask(dact, mid)
		denseBack(of("cls_head.0.weight"), of("cls_head.0.bias"), dact, t.mean[r*h:(r+1)*h], n.w["cls_head.0.weight"], dmean)
		for l := range t.in.L {
			for j, v := range dmean {
				out[(r*t.in.L+l)*h+j] = v / float32(t.in.L)
			}
		}
	}
	return out
}

// LogProb writes log p(class | input) of every row of a classifier on numbers, and the gradient of it by X into grad
// (Rows, L, Inputs). Classes below 0 give zeros.
func (n *Net) LogProb(ctx context.Context, logp []float64, grad []float32, in Input, classes []int) error {
	if !n.Head || n.Inputs == 0 {
		return fmt.Errorf("dna: a network of shape %+v is no classifier with gradients", n.Shape)
	}
	var g gradients
	return n.chunks(ctx, in, func(part Input, from int) {
		n.run(part, true)
		d := make([]float32, part.Rows*n.Classes)
		for r := range part.Rows {
			k := classes[from+r]
			logp[from+r] = 0
			if k < 0 {
				continue
			}
			row := d[r*n.Classes : (r+1)*n.Classes]
			lse := logSumExp(n.tape.to[r*n.Classes : (r+1)*n.Classes])
			for j, v := range n.tape.to[r*n.Classes : (r+1)*n.Classes] {
				row[j] = -float32(math.Exp(float64(v) - lse))
			}
			row[k]++
			logp[from+r] = float64(n.tape.to[r*n.Classes+k]) - lse
		}
		if grad != nil {
			n.back(&g, d, nil, grad[from*in.L*n.Inputs:(from+part.Rows)*in.L*n.Inputs])
		}
	})
}

func logSumExp(v []float32) float64 {
	top, sum := math.Inf(-1), 0.0
	for _, x := range v {
		top = max(top, float64(x))
	}
	for _, x := range v {
		sum += math.Exp(float64(x) - top)
	}
	return top + math.Log(sum)
}
