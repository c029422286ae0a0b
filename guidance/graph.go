package guidance

import (
	"context"
	"fmt"
	"sync"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"drift/models"
)

// Graph is an Energy written as a gorgonia graph, which gorgonia differentiates. Build adds nodes to g that compute, from x0
// of shape (rows, ...), one energy per row (a vector of rows, or a matrix of one column). The energy of a row must not
// depend on other rows. A graph has fixed shapes, so one is built and compiled per number of rows, when it first comes.
//
// Some operations of gorgonia v0.9.18 are wrong, and Build should keep away from them: Sum, Max and Min over axis 2 of four
// (reshape to two axes first: SumRows), AveragePool2D (divides by the input's width), LogSumExp over an axis of a matrix.
//
// One Graph may be used by several goroutines, one after another.
type Graph struct {
	Build func(g *gorgonia.ExprGraph, x0 *gorgonia.Node) (*gorgonia.Node, error)

	mu       sync.Mutex
	compiled map[string]*compiledGraph
}

type compiledGraph struct {
	x      *gorgonia.Node
	energy *gorgonia.Node
	slope  *gorgonia.Node
	value  *tensor.Dense // of x
	vm     gorgonia.VM
	e, g   gorgonia.Value
}

// SumRows adds up everything but the rows of a node of shape (rows, ...): the safe way to reduce pictures.
func SumRows(x *gorgonia.Node) (*gorgonia.Node, error) {
	shape := x.Shape()
	if len(shape) < 2 {
		return nil, fmt.Errorf("guidance: graph: rows of shape %v", shape)
	}
	flat, err := gorgonia.Reshape(x, tensor.Shape{shape[0], shape.TotalSize() / shape[0]})
	if err != nil {
		return nil, err
	}
	return gorgonia.Sum(flat, 1)
}

// Energy implements the interface Energy.
func (f *Graph) Energy(ctx context.Context, q *models.Query, x0 *tensor.Dense, e []float64, grad *tensor.Dense) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.compile(x0.Shape())
	if err != nil {
		return fmt.Errorf("guidance: graph of shape %v: %w", x0.Shape(), err)
	}
	// Values go in by copying: Let with another shape would fail and leave the old value in place.
	copy(models.Data(c.value), models.Data(x0))
	if err := gorgonia.Let(c.x, c.value); err != nil {
		return fmt.Errorf("guidance: graph of shape %v: %w", x0.Shape(), err)
	}
	if err := c.vm.RunAll(); err != nil {
		c.vm.Reset()
		return fmt.Errorf("guidance: graph of shape %v: %w", x0.Shape(), err)
	}
	defer c.vm.Reset()
	if err := numbers(e, c.e); err != nil {
		return fmt.Errorf("guidance: graph: the energy: %w", err)
	}
	if err := numbers(models.Data(grad), c.g); err != nil {
		return fmt.Errorf("guidance: graph: the gradient: %w", err)
	}
	return nil
}

// numbers copies a value of gorgonia.
func numbers(dst []float64, v gorgonia.Value) error {
	switch d := v.Data().(type) {
	case float64: // what a shape of one number gives
		if len(dst) == 1 {
			dst[0] = d
			return nil
		}
	case []float64:
		if t, ok := v.(tensor.Tensor); ok && t.RequiresIterator() { // a view: its backing has gaps
			if m, ok := t.(tensor.View); ok {
				d, _ = m.Materialize().Data().([]float64)
			}
		}
		if len(d) == len(dst) {
			copy(dst, d)
			return nil
		}
	}
	return fmt.Errorf("a %T of shape %v, want %d numbers of float64", v.Data(), v.Shape(), len(dst))
}

func (f *Graph) compile(shape tensor.Shape) (*compiledGraph, error) {
	key := fmt.Sprint(shape)
	if c, ok := f.compiled[key]; ok {
		return c, nil
	}
	if f.Build == nil {
		return nil, fmt.Errorf("there is no graph to build")
	}
	g := gorgonia.NewGraph()
	c := &compiledGraph{value: models.New(shape...)}
	c.x = gorgonia.NewTensor(g, tensor.Float64, len(shape), gorgonia.WithShape(shape...), gorgonia.WithName("x0"), gorgonia.WithValue(c.value))
	var err error
	if c.energy, err = f.Build(g, c.x); err != nil {
		return nil, err
	}
	if s := c.energy.Shape(); s.TotalSize() != shape[0] {
		return nil, fmt.Errorf("the energy has shape %v, want one number per row (%d)", s, shape[0])
	}
	total := c.energy
	if len(c.energy.Shape()) > 0 {
		if total, err = gorgonia.Sum(c.energy); err != nil {
			return nil, err
		}
	}
	slopes, err := gorgonia.Grad(total, c.x)
	if err != nil {
		return nil, err
	}
	c.slope = slopes[0]
	gorgonia.Read(c.energy, &c.e)
	gorgonia.Read(c.slope, &c.g)
	c.vm = gorgonia.NewTapeMachine(g)
	if f.compiled == nil {
		f.compiled = map[string]*compiledGraph{}
	}
	f.compiled[key] = c
	return c, nil
}

// Close gives the compiled graphs back.
func (f *Graph) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.compiled {
		if err := c.vm.Close(); err != nil {
			return err
		}
	}
	f.compiled = nil
	return nil
}
