// Package straighten is the second stage of BOSS (Nguyen et al. 2024, arXiv 2312.16414, section 4): a velocity network is
// trained on until its K Euler steps over a searched grid end where its many fine steps do. It trains small networks on
// low-dimensional flows, with gorgonia's derivatives, to show the method and to check it; networks of image size are not
// trained here.
package straighten

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// features of the time: t, and sine and cosine of pi t and 2 pi t.
const features = 5

// Net is a velocity network on a flow: two hidden layers of tanh over the state and features of the time. It is a
// models.Denoiser.
type Net struct {
	Dim, Hidden int
	// W and B are the weights, row by row (in, out), and the biases of the three layers.
	W, B [3][]float64
}

// NewNet draws a network, weights N(0, 1/in), biases 0.
func NewNet(dim, hidden int, seed uint64) *Net {
	n := &Net{Dim: dim, Hidden: hidden}
	r := rand.New(rand.NewPCG(seed, 0))
	for l := range n.W {
		in, out := n.shape(l)
		n.W[l], n.B[l] = make([]float64, in*out), make([]float64, out)
		for i := range n.W[l] {
			n.W[l][i] = r.NormFloat64() / math.Sqrt(float64(in))
		}
	}
	return n
}

func (n *Net) shape(layer int) (in, out int) {
	return []int{n.Dim + features, n.Hidden, n.Hidden}[layer], []int{n.Hidden, n.Hidden, n.Dim}[layer]
}

// Clone returns a network of its own with the same weights.
func (n *Net) Clone() *Net {
	c := *n
	for l := range n.W {
		c.W[l], c.B[l] = slices.Clone(n.W[l]), slices.Clone(n.B[l])
	}
	return &c
}

// Process implements models.Denoiser.
func (*Net) Process() schedules.Process { return schedules.Flow{} }

// input writes the network's input for a state at time t.
func input(dst, x []float64, t float64) {
	k := copy(dst, x)
	dst[k] = t
	dst[k+1], dst[k+2] = math.Sincos(math.Pi * t)
	dst[k+3], dst[k+4] = math.Sincos(2 * math.Pi * t)
}

// Predict implements models.Denoiser: the velocity eps - x0, row by row.
func (n *Net) Predict(_ context.Context, q *models.Query, p *models.Pred) error {
	x, out := p.Fit(q.X, schedules.Velocity)
	if len(x) != n.Dim*len(q.At) {
		return fmt.Errorf("straighten: rows of %d numbers, the network takes %d", len(x)/max(1, len(q.At)), n.Dim)
	}
	width := max(n.Hidden, n.Dim+features)
	a, b := make([]float64, width), make([]float64, width)
	for i, node := range q.At {
		input(a, x[i*n.Dim:(i+1)*n.Dim], node.T)
		for l := range n.W {
			in, m := n.shape(l)
			copy(b, n.B[l])
			for j := range in {
				for k, w := range n.W[l][j*m : (j+1)*m] {
					b[k] += a[j] * w
				}
			}
			if l < 2 {
				for k := range m {
					b[k] = math.Tanh(b[k])
				}
			}
			a, b = b, a
		}
		copy(out[i*n.Dim:(i+1)*n.Dim], a)
	}
	return nil
}

// Pairs are what a velocity is trained on: at state X[i] and time T[i] it should be V[i].
type Pairs struct {
	Dim  int
	X, V []float64
	T    []float64
}

// Along runs the fine Euler trajectories of the rows of p and returns, for every stretch of the path (indices of nodes of
// the grid), the straight velocity from its start to its end,
//
//	V = (x_{k+1} - x_k)/(t_{k+1} - t_k) at (x_k, t_k).
//
// With all nodes as the path, V is the model's own velocity on its trajectories.
func Along(ctx context.Context, p *samplers.Problem, fine schedules.Grid, path []int) (*Pairs, error) {
	own := *p
	own.Grid = fine
	var xs [][]float64
	own.Observe = func(s *samplers.State) error {
		xs = append(xs, slices.Clone(models.Data(s.X)))
		return nil
	}
	if _, err := samplers.Sample(ctx, samplers.Euler{}, &own); err != nil {
		return nil, fmt.Errorf("straighten: %w", err)
	}
	rows := len(p.Rows)
	out := &Pairs{Dim: len(xs[0]) / rows}
	for k := range len(path) - 1 {
		i, j := path[k], path[k+1]
		if i < 0 || j <= i || j >= len(fine) {
			return nil, fmt.Errorf("straighten: a step from node %d to %d of %d", i, j, len(fine)-1)
		}
		out.X = append(out.X, xs[i]...)
		for d := range xs[i] {
			out.V = append(out.V, (xs[j][d]-xs[i][d])/(fine[j].T-fine[i].T))
		}
		out.T = append(out.T, slices.Repeat([]float64{fine[i].T}, rows)...)
	}
	return out, nil
}

// Options of Train. The zero value has the defaults.
type Options struct {
	Steps  int     // 0 = 1000
	Batch  int     // 0 = 128
	Rate   float64 // of Adam (0.9, 0.999); 0 = 2e-3
	WarmUp int     // steps over which the rate rises from 0
	Clip   float64 // largest norm of the gradient; 0 = 1
	Decay  float64 // of the average of the weights that Train leaves in the network, capped by (1+n)/(10+n) at step n; 0 = 0.999
	Seed   uint64  // of the batches
	// Progress is called after every step with the loss on its batch.
	Progress func(step int, loss float64)
}

func (o Options) withDefaults() Options {
	def := func(v *float64, d float64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.Rate, 2e-3)
	def(&o.Clip, 1)
	def(&o.Decay, 0.999)
	if o.Steps == 0 {
		o.Steps = 1000
	}
	if o.Batch == 0 {
		o.Batch = 128
	}
	return o
}

// Train minimises the mean squared error of the velocity on the pairs. On an error or a cancelled context the network
// keeps the average of the weights so far.
func (n *Net) Train(ctx context.Context, data *Pairs, o Options) error {
	o = o.withDefaults()
	if data.Dim != n.Dim || len(data.T) == 0 || len(data.X) != n.Dim*len(data.T) || len(data.V) != len(data.X) {
		return fmt.Errorf("straighten: %d states and %d velocities at %d times in dimension %d, for a network of dimension %d", len(data.X), len(data.V), len(data.T), data.Dim, n.Dim)
	}
	g := gorgonia.NewGraph()
	dense := func(rows, cols int, v []float64) *tensor.Dense {
		return tensor.New(tensor.WithShape(rows, cols), tensor.WithBacking(v))
	}
	in := n.Dim + features
	xv, yv := make([]float64, o.Batch*in), make([]float64, o.Batch*n.Dim)
	x := gorgonia.NewMatrix(g, tensor.Float64, gorgonia.WithShape(o.Batch, in), gorgonia.WithName("x"), gorgonia.WithValue(dense(o.Batch, in, xv)))
	y := gorgonia.NewMatrix(g, tensor.Float64, gorgonia.WithShape(o.Batch, n.Dim), gorgonia.WithName("v"), gorgonia.WithValue(dense(o.Batch, n.Dim, yv)))
	work := n.Clone() // the weights that move
	var params gorgonia.Nodes
	var values [][]float64
	h := x
	for l := range work.W {
		rows, cols := n.shape(l)
		w := gorgonia.NewMatrix(g, tensor.Float64, gorgonia.WithShape(rows, cols), gorgonia.WithName(fmt.Sprintf("w%d", l)), gorgonia.WithValue(dense(rows, cols, work.W[l])))
		b := gorgonia.NewMatrix(g, tensor.Float64, gorgonia.WithShape(1, cols), gorgonia.WithName(fmt.Sprintf("b%d", l)), gorgonia.WithValue(dense(1, cols, work.B[l])))
		params, values = append(params, w, b), append(values, work.W[l], work.B[l])
		m, err := gorgonia.Mul(h, w)
		if err == nil {
			h, err = gorgonia.BroadcastAdd(m, b, nil, []byte{0})
		}
		if err == nil && l < 2 {
			h, err = gorgonia.Tanh(h)
		}
		if err != nil {
			return fmt.Errorf("straighten: layer %d: %w", l, err)
		}
	}
	loss, err := meanSquare(h, y)
	if err != nil {
		return fmt.Errorf("straighten: loss: %w", err)
	}
	var value gorgonia.Value
	gorgonia.Read(loss, &value)
	if _, err := gorgonia.Grad(loss, params...); err != nil {
		return fmt.Errorf("straighten: gradient: %w", err)
	}
	vm := gorgonia.NewTapeMachine(g, gorgonia.BindDualValues(params...))
	defer vm.Close()

	average := n.Clone()
	targets := [][]float64{}
	for l := range average.W {
		targets = append(targets, average.W[l], average.B[l])
	}
	defer func() { n.W, n.B = average.W, average.B }()
	first, second := make([][]float64, len(values)), make([][]float64, len(values))
	for i, v := range values {
		first[i], second[i] = make([]float64, len(v)), make([]float64, len(v))
	}
	r := rand.New(rand.NewPCG(o.Seed, 1))
	for step := 1; step <= o.Steps; step++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		for k := range o.Batch {
			i := r.IntN(len(data.T))
			input(xv[k*in:(k+1)*in], data.X[i*n.Dim:(i+1)*n.Dim], data.T[i])
			copy(yv[k*n.Dim:(k+1)*n.Dim], data.V[i*n.Dim:(i+1)*n.Dim])
		}
		if err := vm.RunAll(); err != nil {
			return fmt.Errorf("straighten: step %d: %w", step, err)
		}
		l, ok := value.Data().(float64)
		if !ok || l-l != 0 {
			return fmt.Errorf("straighten: step %d: the loss is %v", step, value)
		}
		grads := make([][]float64, len(params))
		norm := 0.0
		for i, p := range params {
			v, err := p.Grad()
			if err != nil {
				return fmt.Errorf("straighten: step %d: %w", step, err)
			}
			grads[i] = v.Data().([]float64)
			for _, d := range grads[i] {
				norm += d * d
			}
		}
		scale := min(1, o.Clip/math.Sqrt(max(norm, 1e-300)))
		rate := o.Rate * min(1, float64(step)/float64(max(1, o.WarmUp)))
		c1, c2 := 1-math.Pow(0.9, float64(step)), 1-math.Pow(0.999, float64(step))
		decay := min(o.Decay, float64(1+step)/float64(10+step))
		for i, v := range values {
			for j := range v {
				d := scale * grads[i][j]
				first[i][j] = 0.9*first[i][j] + 0.1*d
				second[i][j] = 0.999*second[i][j] + 0.001*d*d
				v[j] -= rate * (first[i][j] / c1) / (math.Sqrt(second[i][j]/c2) + 1e-8)
				targets[i][j] = decay*targets[i][j] + (1-decay)*v[j]
			}
			clear(grads[i])
		}
		vm.Reset()
		if o.Progress != nil {
			o.Progress(step, l)
		}
	}
	return nil
}

func meanSquare(a, b *gorgonia.Node) (*gorgonia.Node, error) {
	d, err := gorgonia.Sub(a, b)
	if err != nil {
		return nil, err
	}
	if d, err = gorgonia.Square(d); err != nil {
		return nil, err
	}
	return gorgonia.Mean(d)
}
