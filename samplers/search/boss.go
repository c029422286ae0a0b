// Package search finds grids and solver schedules for few-step sampling: dynamic programmes over a fine trajectory (Boss,
// GITS), evolution of solver schedules with a learned ranking (S3), and direct optimisation of nodes and coefficients
// (S4S). Models come in as Denoisers, scores as Objective functions; the results are grids and samplers.USF schedules.
//
// Every search is deterministic in its seed, goes on where a log of its evaluations ends, and stops when its context does.
package search

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"gorgonia.org/tensor"

	"drift/models"
	"drift/samplers"
	"drift/schedules"
)

// Metric is what CostMatrix adds up for a coarse step over a stretch of the fine trajectory.
type Metric string

// The metrics. With e the difference between the coarse step's end and the fine trajectory there:
const (
	Squared   Metric = "squared"   // |e|^2 (BOSS)
	Norm      Metric = "norm"      // |e| in the scale of the data, e/alpha (GITS, metric l2)
	Deviation Metric = "deviation" // distance of the step's end from the chord of the whole trajectory, less that of the fine trajectory (GITS, metric dev)
)

// CostMatrix is the cost of replacing stretches of a fine trajectory by one first-order step each. From node i, with the
// prediction made there, the step to node j > i ends at
//
//	x_ij = alpha_j x0_i + sigma_j eps_i
//
// which on a flow is the Euler step x_i + (u_j - u_i) v_i of BOSS (Nguyen et al. 2024, arXiv 2312.16414, eq. 6), and on
// every Gaussian process the DDIM step. Cost(i, j) is the mean over samples of the Metric, summed over dimensions.
// Samples are streamed in batches with Add; the matrix can be saved between them as JSON.
//
// The costs are summed as they stand and not from Gram products: both take O(K^2 dim) per sample, far below the K
// evaluations, and the differences of products lose the small costs near the diagonal.
type CostMatrix struct {
	Grid   schedules.Grid
	Metric Metric // "" = Squared

	Samples int
	Sum     []float64 // row i, column j, of len(Grid)^2
}

// Add runs the fine trajectory (one first-order step per interval) of the rows of p from its start, and adds the costs of
// all pairs of nodes. p needs no grid. An error leaves the matrix as it was.
func (c *CostMatrix) Add(ctx context.Context, p *samplers.Problem) error {
	k := len(c.Grid) - 1
	if k < 1 {
		return fmt.Errorf("search: the fine grid has no step")
	}
	switch c.Metric {
	case "", Squared, Norm:
	case Deviation:
		if c.Grid[0].Alpha == 0 {
			return fmt.Errorf("search: metric deviation needs a grid with signal at its first node")
		}
	default:
		return fmt.Errorf("search: unknown metric %q", c.Metric)
	}
	xs := make([][]float64, 0, k+1)
	x0s, es := make([][]float64, 0, k), make([][]float64, 0, k)
	own := *p
	own.Grid, own.Noise = c.Grid, p.Noise
	var buf *tensor.Dense
	own.Observe = func(s *samplers.State) error {
		xs = append(xs, slices.Clone(models.Data(s.X)))
		if s.I == 0 {
			return nil
		}
		var err error
		if buf, err = s.X0(buf); err != nil {
			return err
		}
		x0 := slices.Clone(models.Data(buf))
		n, x := c.Grid[s.I-1], xs[s.I-1]
		e := make([]float64, len(x))
		for j := range e {
			e[j] = (x[j] - n.Alpha*x0[j]) / n.Sigma
		}
		x0s, es = append(x0s, x0), append(es, e)
		return nil
	}
	if _, err := samplers.Sample(ctx, samplers.Euler{}, &own); err != nil {
		return fmt.Errorf("search: fine trajectory: %w", err)
	}
	rows := len(p.Rows)
	sum := make([]float64, (k+1)*(k+1))
	w := len(xs[0]) / rows
	for r := range rows {
		line := c.chord(xs, r*w, w)
		for i := range k {
			if err := ctx.Err(); err != nil {
				return err
			}
			x0, e := x0s[i][r*w:(r+1)*w], es[i][r*w:(r+1)*w]
			for j := i + 2; j <= k; j++ { // the fine step itself costs nothing
				sum[i*(k+1)+j] += c.cost(c.Grid[j], x0, e, xs[j][r*w:(r+1)*w], line)
			}
		}
	}
	if len(c.Sum) != len(sum) {
		c.Sum, c.Samples = make([]float64, len(sum)), 0
	}
	for i, v := range sum {
		c.Sum[i] += v
	}
	c.Samples += rows
	return nil
}

// cost is the metric of one step that ends at node n, where the fine trajectory is at x.
func (c *CostMatrix) cost(n schedules.Node, x0, e, x []float64, line chord) float64 {
	sum := 0.0
	switch c.Metric {
	case Norm:
		for d, v := range x {
			sum += sq((n.Alpha*x0[d] + n.Sigma*e[d] - v) / n.Alpha)
		}
		return math.Sqrt(sum)
	case Deviation:
		return line.distance(func(d int) float64 { return x0[d] + n.Ratio()*e[d] }) - line.distance(func(d int) float64 { return x[d] / n.Alpha })
	}
	for d, v := range x {
		sum += sq(n.Alpha*x0[d] + n.Sigma*e[d] - v)
	}
	return sum
}

// chord is the straight line from the start of a trajectory to its end, in the scale of the data.
type chord struct{ from, dir []float64 }

func (c *CostMatrix) chord(xs [][]float64, at, w int) chord {
	if c.Metric != Deviation {
		return chord{}
	}
	a, b := c.Grid[0], c.Grid[len(c.Grid)-1]
	l := chord{make([]float64, w), make([]float64, w)}
	norm := 0.0
	for d := range w {
		l.from[d] = xs[0][at+d] / a.Alpha
		l.dir[d] = xs[len(xs)-1][at+d]/b.Alpha - l.from[d]
		norm += sq(l.dir[d])
	}
	for d := range w {
		l.dir[d] /= math.Sqrt(norm)
	}
	return l
}

// distance of a point from the chord.
func (l chord) distance(x func(d int) float64) float64 {
	dot, all := 0.0, 0.0
	for d, f := range l.from {
		dot += (x(d) - f) * l.dir[d]
	}
	for d, f := range l.from {
		all += sq(x(d) - f - dot*l.dir[d])
	}
	return math.Sqrt(all)
}

func sq(x float64) float64 { return x * x }

// Cost returns the mean cost of the step from node i to node j > i.
func (c *CostMatrix) Cost(i, j int) float64 { return c.Sum[i*len(c.Grid)+j] / float64(c.Samples) }

// Path is a choice of nodes of the fine grid.
type Path struct {
	Nodes []int
	Cost  float64 // sum of the costs of its steps
}

// Boss returns the cheapest paths of 1, 2, ... most steps through the whole grid, by Bellman's recursion
//
//	D[i][1] = c_{i,K},  D[i][k] = min_{i<j<K} c_ij + discount D[j][k-1]
//
// with the smallest j at ties. discount 1 is BOSS; GITS (Chen et al. 2024, arXiv 2405.11326) uses 1.15 and so makes early
// errors cheaper. Cost counts the steps of a path undiscounted. O(most K^2).
func (c *CostMatrix) Boss(most int, discount float64) ([]Path, error) {
	n := len(c.Grid) - 1
	if c.Samples == 0 {
		return nil, fmt.Errorf("search: the cost matrix has no samples")
	}
	if most < 1 || most > n {
		return nil, fmt.Errorf("search: paths of %d steps on a grid of %d", most, n)
	}
	if !(discount > 0) {
		return nil, fmt.Errorf("search: discount %g", discount)
	}
	d := make([]float64, n) // D[.][k-1]
	for i := range d {
		d[i] = c.Cost(i, n)
	}
	next := [][]int{slices.Repeat([]int{n}, n)} // next[k-1][i]: where the best path of k steps goes from i
	var out []Path
	for k := 1; ; k++ {
		p := Path{Nodes: []int{0}}
		for at, left := 0, k; left > 0; left-- {
			j := next[left-1][at]
			p.Cost += c.Cost(at, j)
			p.Nodes = append(p.Nodes, j)
			at = j
		}
		out = append(out, p)
		if k == most {
			return out, nil
		}
		e, arg := make([]float64, n), make([]int, n)
		for i := range e {
			e[i] = math.Inf(1)
			for j := i + 1; j < n; j++ {
				if v := c.Cost(i, j) + discount*d[j]; v < e[i] {
					e[i], arg[i] = v, j
				}
			}
		}
		d, next = e, append(next, arg)
	}
}

// Take returns the nodes of the path.
func (p Path) Take(g schedules.Grid) schedules.Grid {
	var out schedules.Grid
	for _, i := range p.Nodes {
		out = append(out, g[i])
	}
	return out
}

// GridFile writes a grid as --schedule @FILE reads it, with the process that it was made for and where it came from.
func GridFile(p schedules.Process, g schedules.Grid, provenance any) ([]byte, error) {
	process, err := schedules.MarshalProcess(p)
	if err != nil {
		return nil, fmt.Errorf("search: %w", err)
	}
	times := make([]float64, len(g))
	for i, n := range g {
		times[i] = n.T
	}
	text, err := json.MarshalIndent(struct {
		Times      []float64       `json:"times"`
		Process    json.RawMessage `json:"process"`
		Provenance any             `json:"provenance,omitempty"`
	}{times, process, provenance}, "", " ")
	if err != nil {
		return nil, fmt.Errorf("search: %w", err)
	}
	return append(text, '\n'), nil
}
