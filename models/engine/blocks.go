package engine

import (
	"fmt"

	"drift/internal/graph"
	"drift/internal/kernels"
)

// Blocks writes down the blocks that U-Nets and autoencoders have in common.
type Blocks struct {
	*graph.Graph
	Groups int
	Eps    float64
	Act    kernels.Activation
	H, W   int // usual size of the images, which layers are packed for; the plan's own may be another
	Level  int // halvings of that size at the layers being written
}

// Spec is a k by k convolution that keeps the size, for images of the level.
func (b *Blocks) Spec(in, out, k int) kernels.ConvSpec {
	return kernels.ConvSpec{
		Cin: in, Cout: out, KH: k, KW: k, Stride: 1, Pad: kernels.Same(k / 2),
		H: max(b.H>>b.Level, 1), W: max(b.W>>b.Level, 1),
	}
}

// Conv is a k by k convolution that keeps the size of its source.
func (b *Blocks) Conv(name string, in graph.Source, out, k int, opts ...graph.Option) graph.Value {
	spec := b.Spec(in.X.C+in.X2.C, out, k)
	return b.Graph.Conv(b.Layers.Conv(name, spec, opts...), in, graph.Epilogue{})
}

// Down is a 3 by 3 convolution of stride 2: padded by one on every side, or
// (pad 0) below and on the right alone.
func (b *Blocks) Down(name string, x graph.Value, out, pad int) graph.Value {
	spec := b.Spec(x.C, out, 3)
	spec.Stride = 2
	if pad == 0 {
		spec.Pad = kernels.Pad{Bottom: 1, Right: 1}
	}
	return b.Graph.Conv(b.Layers.Conv(name, spec), graph.From(x), graph.Epilogue{})
}

// Norm is a group norm with the blocks' groups and epsilon.
func (b *Blocks) Norm(name string, x, x2 graph.Value) *graph.Normed {
	return b.GroupNorm(b.Layers.Norm(name), x, x2, b.Groups, b.Eps, graph.Modulation{})
}

// Resnet is what a residual block reads besides x.
type Resnet struct {
	Skip       graph.Value // beside x in an upward half
	Time       graph.Value // row per image, none without
	ScaleShift bool        // the time scales and shifts after norm2 instead of being added
	Scale      float64     // the sum is divided by it; 0 = 1
}

// Resnet is ResnetBlock2D:
//
//	h = conv1(act(norm1 x)) + time_emb_proj(time);  h = conv2(act(norm2 h))
//	out = (shortcut(x) + h) / Scale
func (b *Blocks) Resnet(name string, x graph.Value, out int, r Resnet) graph.Value {
	in := x.C + r.Skip.C
	if b.Skips(name) {
		if in == out && !r.Skip.Some() {
			return x
		}
		b.Fail(fmt.Errorf("layer %s cannot be skipped: its output has another shape than its input", name))
	}
	norm2 := b.Layers.Norm(name + ".norm2")
	var ep graph.Epilogue
	var own graph.Modulation
	if r.Time.Some() {
		width := out
		if r.ScaleShift {
			width = 2 * out
		}
		time := b.Linear(b.Layers.ExactLinear(name+".time_emb_proj", r.Time.C, width), graph.From(r.Time), graph.Epilogue{})
		if r.ScaleShift {
			own = b.ScaleShift(norm2, time.Cols(0, out), time.Cols(out, out))
		} else {
			ep.PerImage = time
		}
	}
	first := graph.Source{X: x, X2: r.Skip, Norm: b.Norm(name+".norm1", x, r.Skip), Act: b.Act}
	h := b.Graph.Conv(b.Layers.Conv(name+".conv1", b.Spec(in, out, 3)), first, ep)
	residual := x
	if in != out || r.Skip.Some() {
		residual = b.Conv(name+".conv_shortcut", graph.Source{X: x, X2: r.Skip}, out, 1)
	}
	second := graph.Source{X: h, Norm: b.GroupNorm(norm2, h, graph.Value{}, b.Groups, b.Eps, own), Act: b.Act}
	ep = graph.Epilogue{Residual: residual}
	if r.Scale != 0 {
		ep.Scale = 1 / r.Scale
	}
	return b.Graph.Conv(b.Layers.Conv(name+".conv2", b.Spec(out, out, 3)), second, ep)
}

// PixelAttention is softmax(q k^T / sqrt(dim)) v among the pixels of an image,
// with a group norm before it:
//
//	out = x + to_out(attention(group_norm x))
func (b *Blocks) PixelAttention(name string, x graph.Value, heads int) graph.Value {
	if b.Skips(name) {
		return x
	}
	c, l := x.C, b.Layers
	in := graph.Source{X: x, Norm: b.Norm(name+".group_norm", x, graph.Value{})}
	qkv := b.Linear(l.Linear(name+".to_qkv", c, 3*c, name+".to_q", name+".to_k", name+".to_v"), in, graph.Epilogue{})
	a := b.SelfAttention(graph.Attention{Name: name, Heads: heads, Dim: c / heads}, qkv.Cols(0, c), qkv.Cols(c, c), qkv.Cols(2*c, c))
	return b.Linear(l.Linear(name+".to_out.0", c, c), graph.From(a), graph.Epilogue{Residual: x})
}
