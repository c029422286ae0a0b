package kernels

import "fmt"

// Linear is y = x W^T + b with packed weights.
type Linear struct{ conv *Conv }

// NewLinear packs a layer. weight is (out, in) as in the checkpoints; bias is
// (out) or nil.
func NewLinear(tier Tier, dtype DType, in, out int, weight, bias []float32) *Linear {
	return &Linear{NewConv(tier, dtype, ConvSpec{Cin: in, Cout: out, KH: 1, KW: 1}, weight, bias)}
}

// NewLinearGrad packs the layer that maps the gradient of the output of
// NewLinear(tier, dtype, in, out, weight, ...) to the gradient of its input.
func NewLinearGrad(tier Tier, dtype DType, in, out int, weight []float32) *Linear {
	if len(weight) != in*out {
		panic(fmt.Sprintf("kernels: linear weight has %d values, shape (%d,%d) needs %d", len(weight), out, in, in*out))
	}
	t := make([]float32, in*out)
	for o := range out {
		for i := range in {
			t[i*out+o] = weight[o*in+i]
		}
	}
	return NewLinear(tier, dtype, out, in, t, nil)
}

// In and Out give the row lengths.
func (l *Linear) In() int  { return l.conv.spec.Cin }
func (l *Linear) Out() int { return l.conv.spec.Cout }

// Bytes gives the size of the packed weights.
func (l *Linear) Bytes() int { return l.conv.Bytes() }

// Scratch gives the float32 that Run needs for m rows.
func (l *Linear) Scratch(workers, m int) int { return l.conv.Scratch(workers, 1, 1, m, false) }

// Run computes m rows: dst (m, out) from src (m, in). The epilogue's RowBias
// is not per row here but one vector (out) for all.
func (l *Linear) Run(p *Pool, dst, src []float32, m int, scratch []float32, ep Epilogue) {
	l.conv.Run(p, dst, Input{X: src, C: l.conv.spec.Cin}, 1, 1, m, scratch, ep)
}

// RunInput is Run for an input seen through a function or two concatenated
// inputs: n groups of m rows, in.Scale, in.Shift and ep.RowBias being per
// group.
func (l *Linear) RunInput(p *Pool, dst []float32, in Input, n, m int, scratch []float32, ep Epilogue) {
	l.conv.Run(p, dst, in, n, 1, m, scratch, ep)
}

// ScratchInput gives the float32 that RunInput needs.
func (l *Linear) ScratchInput(workers, n, m int) int {
	return l.conv.Scratch(workers, n, 1, m, false)
}
