// Package toy is the toy experiment of Dirichlet flow matching (Stark et al. 2024, arXiv 2402.05841, section 4.1): sequences of
// a few independent positions with target distributions of their own, a small network trained by cross-entropy with
// gorgonia's derivatives, and the divergence of what it samples from the target, by the number of categories. On the Dirichlet
// path it stays low; on the linear one it grows.
package toy

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"drift/models"
	"drift/models/dna"
	"drift/schedules"
)

// features of the time: u = alpha of the node, u^2, log(1+t).
const features = 3

// Net is a denoiser on a path of the simplex whose positions do not see each other: a multilayer perceptron of two hidden
// layers of tanh over K x, the position (one of Positions) and features of the time, to the logits of the categories. It is a
// models.Denoiser; its answer, of kind X0, is the softmax.
type Net struct {
	Path      schedules.Field
	Positions int
	Hidden    int
	// W and B are the weights, row by row (in, out), and the biases of the three layers.
	W, B [3][]float64
}

// NewNet draws a network, weights N(0, 1/in), biases 0, and the last layer 0.
func NewNet(path schedules.Field, positions, hidden int, seed uint64) *Net {
	n := &Net{Path: path, Positions: positions, Hidden: hidden}
	r := rand.New(rand.NewPCG(seed, 0))
	for l := range n.W {
		in, out := n.shape(l)
		n.W[l], n.B[l] = make([]float64, in*out), make([]float64, out)
		for i := range n.W[l] {
			if l < 2 {
				n.W[l][i] = r.NormFloat64() / math.Sqrt(float64(in))
			}
		}
	}
	return n
}

func (n *Net) inputs() int { return n.Path.Categories() + n.Positions + features }

func (n *Net) shape(layer int) (in, out int) {
	return []int{n.inputs(), n.Hidden, n.Hidden}[layer], []int{n.Hidden, n.Hidden, n.Path.Categories()}[layer]
}

// input writes the network's input at position l.
func (n *Net) input(dst, x []float64, l int, node schedules.Node) {
	k := len(x)
	for i, v := range x {
		dst[i] = float64(k)*v - 1
	}
	clear(dst[k:])
	dst[k+l] = 1
	dst[k+n.Positions], dst[k+n.Positions+1], dst[k+n.Positions+2] = node.Alpha, node.Alpha*node.Alpha, math.Log1p(node.T)
}

// Process implements models.Denoiser.
func (n *Net) Process() schedules.Process { return n.Path }

// Predict implements models.Denoiser.
func (n *Net) Predict(ctx context.Context, q *models.Query, p *models.Pred) error {
	k := n.Path.Categories()
	if s := q.X.Shape(); len(s) != 3 || s[1] != n.Positions || s[2] != k {
		return fmt.Errorf("toy: states of shape %v, the network takes (rows, %d, %d)", s, n.Positions, k)
	}
	x, out := p.Fit(q.X, schedules.X0)
	a, b := make([]float64, max(n.inputs(), n.Hidden)), make([]float64, max(n.Hidden, k))
	for i, node := range q.At {
		if err := ctx.Err(); err != nil {
			return err
		}
		for l := range n.Positions {
			at := (i*n.Positions + l) * k
			n.logits(out[at:at+k], x[at:at+k], l, node, a, b)
			softmax(out[at : at+k])
		}
	}
	return nil
}

func (n *Net) logits(dst, x []float64, l int, node schedules.Node, a, b []float64) {
	n.input(a, x, l, node)
	for layer := range n.W {
		in, m := n.shape(layer)
		copy(b, n.B[layer])
		for j := range in {
			for o, w := range n.W[layer][j*m : (j+1)*m] {
				b[o] += a[j] * w
			}
		}
		if layer < 2 {
			for o := range m {
				a[o] = math.Tanh(b[o])
			}
		}
	}
	copy(dst, b)
}

func softmax(v []float64) {
	top, sum := math.Inf(-1), 0.0
	for _, x := range v {
		top = max(top, x)
	}
	for j, x := range v {
		v[j] = math.Exp(x - top)
		sum += v[j]
	}
	for j := range v {
		v[j] /= sum
	}
}

// Noise draws a state of the path under category i at a node: Dir(1 + t e_i), or (1-t) x0 + t e_i.
func Noise(r *rand.Rand, dst []float64, path schedules.Field, i int, n schedules.Node) {
	if _, ok := path.(schedules.SimplexLinear); ok {
		sum := 0.0
		for j := range dst {
			dst[j] = r.ExpFloat64()
			sum += dst[j]
		}
		for j := range dst {
			dst[j] *= (1 - n.T) / sum
		}
		dst[i] += n.T
		return
	}
	dna.Noise(r, dst, []int{i}, len(dst), n.T)
}

// Options of Train. The zero value has the defaults.
type Options struct {
	Steps int     // 0 = 1000
	Batch int     // positions of a step; 0 = 512
	Rate  float64 // of Adam (0.9, 0.999), falling with a cosine; 0 = 2e-3
	Seed  uint64
	// Progress is called after every step with the loss on its batch, in nats.
	Progress func(step int, loss float64)
}

// Train minimises the cross-entropy of the categories drawn from target (one distribution per position), seen through the
// path at times t = 2 Exp(1) (Dirichlet, as the reference has it) or uniform (linear).
func (n *Net) Train(ctx context.Context, target [][]float64, o Options) error {
	if o.Steps == 0 {
		o.Steps = 1000
	}
	if o.Batch == 0 {
		o.Batch = 512
	}
	if o.Rate == 0 {
		o.Rate = 2e-3
	}
	k, in := n.Path.Categories(), n.inputs()
	if len(target) != n.Positions || len(target[0]) != k {
		return fmt.Errorf("toy: %d targets for %d positions", len(target), n.Positions)
	}
	g := gorgonia.NewGraph()
	matrix := func(name string, rows, cols int, v []float64) *gorgonia.Node {
		return gorgonia.NewMatrix(g, tensor.Float64, gorgonia.WithShape(rows, cols), gorgonia.WithName(name), gorgonia.WithValue(tensor.New(tensor.WithShape(rows, cols), tensor.WithBacking(v))))
	}
	xv, yv := make([]float64, o.Batch*in), make([]float64, o.Batch*k)
	x, y := matrix("x", o.Batch, in, xv), matrix("y", o.Batch, k, yv)
	var params gorgonia.Nodes
	var values [][]float64
	h := x
	for l := range n.W {
		rows, cols := n.shape(l)
		w, b := matrix(fmt.Sprintf("w%d", l), rows, cols, n.W[l]), matrix(fmt.Sprintf("b%d", l), 1, cols, n.B[l])
		params, values = append(params, w, b), append(values, n.W[l], n.B[l])
		m, err := gorgonia.Mul(h, w)
		if err == nil {
			h, err = gorgonia.BroadcastAdd(m, b, nil, []byte{0})
		}
		if err == nil && l < 2 {
			h, err = gorgonia.Tanh(h)
		}
		if err != nil {
			return fmt.Errorf("toy: layer %d: %w", l, err)
		}
	}
	loss, err := crossEntropy(h, y, float64(k))
	if err != nil {
		return fmt.Errorf("toy: loss: %w", err)
	}
	var value gorgonia.Value
	gorgonia.Read(loss, &value)
	if _, err := gorgonia.Grad(loss, params...); err != nil {
		return fmt.Errorf("toy: gradient: %w", err)
	}
	vm := gorgonia.NewTapeMachine(g, gorgonia.BindDualValues(params...))
	defer vm.Close()
	first, second := make([][]float64, len(values)), make([][]float64, len(values))
	for i, v := range values {
		first[i], second[i] = make([]float64, len(v)), make([]float64, len(v))
	}
	r := rand.New(rand.NewPCG(o.Seed, 1))
	state := make([]float64, k)
	_, linear := n.Path.(schedules.SimplexLinear)
	for step := 1; step <= o.Steps; step++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		clear(yv)
		for i := range o.Batch {
			t := 2 * r.ExpFloat64()
			if linear {
				t = r.Float64()
			}
			l, node := r.IntN(n.Positions), n.Path.At(t)
			class := draw(r, target[l])
			Noise(r, state, n.Path, class, node)
			n.input(xv[i*in:(i+1)*in], state, l, node)
			yv[i*k+class] = 1
		}
		if err := vm.RunAll(); err != nil {
			return fmt.Errorf("toy: step %d: %w", step, err)
		}
		ce, ok := value.Data().(float64)
		if !ok || ce-ce != 0 {
			return fmt.Errorf("toy: step %d: the loss is %v", step, value)
		}
		rate := o.Rate * (1 + math.Cos(math.Pi*float64(step)/float64(o.Steps))) / 2
		c1, c2 := 1-math.Pow(0.9, float64(step)), 1-math.Pow(0.999, float64(step))
		for i, p := range params {
			d, err := p.Grad()
			if err != nil {
				return fmt.Errorf("toy: step %d: %w", step, err)
			}
			grad := d.Data().([]float64)
			for j, v := range grad {
				first[i][j] = 0.9*first[i][j] + 0.1*v
				second[i][j] = 0.999*second[i][j] + 0.001*v*v
				values[i][j] -= rate * (first[i][j] / c1) / (math.Sqrt(second[i][j]/c2) + 1e-8)
			}
			clear(grad)
		}
		vm.Reset()
		if o.Progress != nil {
			o.Progress(step, ce)
		}
	}
	return nil
}

// crossEntropy is the mean over the rows of -SUM_k y_k log softmax(h)_k.
func crossEntropy(h, y *gorgonia.Node, k float64) (*gorgonia.Node, error) {
	p, err := gorgonia.LogSoftMax(h, 1)
	if err != nil {
		return nil, err
	}
	if p, err = gorgonia.HadamardProd(p, y); err != nil {
		return nil, err
	}
	if p, err = gorgonia.Mean(p); err != nil { // over rows and categories
		return nil, err
	}
	return gorgonia.Mul(p, gorgonia.NewConstant(-k))
}

// draw draws from a distribution.
func draw(r *rand.Rand, q []float64) int {
	u := r.Float64()
	for i, v := range q {
		if u -= v; u < 0 {
			return i
		}
	}
	return len(q) - 1
}

// Target is the experiment's: for every position the softmax of K uniform numbers.
func Target(positions, k int, seed uint64) [][]float64 {
	r := rand.New(rand.NewPCG(seed, 2))
	out := make([][]float64, positions)
	for l := range out {
		out[l] = make([]float64, k)
		for i := range out[l] {
			out[l][i] = r.Float64()
		}
		softmax(out[l])
	}
	return out
}
