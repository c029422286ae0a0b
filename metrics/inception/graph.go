package inception

import (
	"math"

	"drift/internal/kernels"
)

// Tensor is a tensor that the network is made of.
type Tensor struct {
	Name  string
	Shape []int
}

// layer is a convolution without bias, a batch norm and a ReLU.
type layer struct {
	name              string
	cin, cout         int
	kh, kw            int
	stride, padH, pad int // pad is that of the width
	side              int // of the input
}

// plan is the graph as data: a stage has one layer or none (a max pool), a
// block has branches.
type plan struct {
	name     string
	layer    *layer
	branches []planBranch
}

type planBranch struct {
	pool         pooling
	chain, split []*layer
}

// graph lists the network, in the order of the file and of the run.
func graph() []plan {
	side, c := Side, 3
	var all []plan
	conv := func(name string, cin, cout, kh, kw, stride, padH, pad int) *layer {
		return &layer{name, cin, cout, kh, kw, stride, padH, pad, side}
	}
	stage := func(name string, cout, k, stride, pad int) {
		all = append(all, plan{name: name, layer: conv(name, c, cout, k, k, stride, pad, pad)})
		side, c = (side+2*pad-k)/stride+1, cout
	}
	maxStage := func(name string) {
		all = append(all, plan{name: name})
		side = (side-3)/2 + 1
	}
	stage("Conv2d_1a_3x3", 32, 3, 2, 0)
	stage("Conv2d_2a_3x3", 32, 3, 1, 0)
	stage("Conv2d_2b_3x3", 64, 3, 1, 1)
	maxStage("MaxPool_1")
	stage("Conv2d_3b_1x1", 80, 1, 1, 0)
	stage("Conv2d_4a_3x3", 192, 3, 1, 0)
	maxStage("MaxPool_2")

	var block string
	// same keeps the size of the picture, half halves it.
	same := func(name string, cin, cout, kh, kw int) *layer {
		return conv(block+"."+name, cin, cout, kh, kw, 1, kh/2, kw/2)
	}
	half := func(name string, cin, cout int) *layer { return conv(block+"."+name, cin, cout, 3, 3, 2, 0, 0) }
	chain := func(l ...*layer) planBranch { return planBranch{chain: l} }
	pooled := func(p pooling, cout int) planBranch {
		return planBranch{pool: p, chain: []*layer{same("branch_pool", c, cout, 1, 1)}}
	}
	join := func(cout int, b ...planBranch) {
		all = append(all, plan{name: block, branches: b})
		c = cout
	}
	for i, width := range []int{32, 64, 64} {
		block = "Mixed_5" + string(rune('b'+i))
		join(224+width,
			chain(same("branch1x1", c, 64, 1, 1)),
			chain(same("branch5x5_1", c, 48, 1, 1), same("branch5x5_2", 48, 64, 5, 5)),
			chain(same("branch3x3dbl_1", c, 64, 1, 1), same("branch3x3dbl_2", 64, 96, 3, 3), same("branch3x3dbl_3", 96, 96, 3, 3)),
			pooled(avgPool, width))
	}
	block = "Mixed_6a"
	join(480+c,
		chain(half("branch3x3", c, 384)),
		chain(same("branch3x3dbl_1", c, 64, 1, 1), same("branch3x3dbl_2", 64, 96, 3, 3), half("branch3x3dbl_3", 96, 96)),
		planBranch{pool: maxPool2})
	side = (side-3)/2 + 1
	for i, m := range []int{128, 160, 160, 192} {
		block = "Mixed_6" + string(rune('b'+i))
		join(768,
			chain(same("branch1x1", c, 192, 1, 1)),
			chain(same("branch7x7_1", c, m, 1, 1), same("branch7x7_2", m, m, 1, 7), same("branch7x7_3", m, 192, 7, 1)),
			chain(same("branch7x7dbl_1", c, m, 1, 1), same("branch7x7dbl_2", m, m, 7, 1), same("branch7x7dbl_3", m, m, 1, 7),
				same("branch7x7dbl_4", m, m, 7, 1), same("branch7x7dbl_5", m, 192, 1, 7)),
			pooled(avgPool, 192))
	}
	block = "Mixed_7a"
	join(512+c,
		chain(same("branch3x3_1", c, 192, 1, 1), half("branch3x3_2", 192, 320)),
		chain(same("branch7x7x3_1", c, 192, 1, 1), same("branch7x7x3_2", 192, 192, 1, 7), same("branch7x7x3_3", 192, 192, 7, 1), half("branch7x7x3_4", 192, 192)),
		planBranch{pool: maxPool2})
	side = (side-3)/2 + 1
	for i, p := range []pooling{avgPool, maxPool} {
		block = "Mixed_7" + string(rune('b'+i))
		join(2048,
			chain(same("branch1x1", c, 320, 1, 1)),
			planBranch{chain: []*layer{same("branch3x3_1", c, 384, 1, 1)},
				split: []*layer{same("branch3x3_2a", 384, 384, 1, 3), same("branch3x3_2b", 384, 384, 3, 1)}},
			planBranch{chain: []*layer{same("branch3x3dbl_1", c, 448, 1, 1), same("branch3x3dbl_2", 448, 384, 3, 3)},
				split: []*layer{same("branch3x3dbl_3a", 384, 384, 1, 3), same("branch3x3dbl_3b", 384, 384, 3, 1)}},
			pooled(p, 192))
	}
	return all
}

// Tensors lists the 472 tensors of the network in the order of the well-known
// file.
func Tensors() []Tensor {
	var list []Tensor
	add := func(layers ...*layer) {
		for _, l := range layers {
			list = append(list, Tensor{l.name + ".conv.weight", []int{l.cout, l.cin, l.kh, l.kw}})
			for _, s := range []string{"weight", "bias", "running_mean", "running_var"} {
				list = append(list, Tensor{l.name + ".bn." + s, []int{l.cout}})
			}
		}
	}
	for _, p := range graph() {
		if p.layer != nil {
			add(p.layer)
		}
		for _, b := range p.branches {
			add(b.chain...)
			add(b.split...)
		}
	}
	return append(list, Tensor{"fc.weight", []int{Classes, Features}}, Tensor{"fc.bias", []int{Classes}})
}

// MACs is the number of multiply-adds for a picture.
func MACs() int {
	n := Classes * Features
	count := func(layers ...*layer) {
		for _, l := range layers {
			h, w := l.spec().OutSize(l.side, l.side)
			n += h * w * l.cout * l.cin * l.kh * l.kw
		}
	}
	for _, p := range graph() {
		if p.layer != nil {
			count(p.layer)
		}
		for _, b := range p.branches {
			count(b.chain...)
			count(b.split...)
		}
	}
	return n
}

func (l *layer) spec() kernels.ConvSpec {
	return kernels.ConvSpec{Cin: l.cin, Cout: l.cout, KH: l.kh, KW: l.kw, Stride: l.stride,
		Pad: kernels.Pad{Top: l.padH, Left: l.pad, Bottom: l.padH, Right: l.pad}, H: l.side, W: l.side}
}

type builder struct {
	net    *Net
	values map[string][]float32
}

func (b *builder) build() {
	for _, p := range graph() {
		if p.branches == nil {
			s := stage{name: p.name}
			if p.layer != nil {
				s.conv = b.conv(p.layer)
			}
			b.net.stem = append(b.net.stem, s)
			continue
		}
		k := block{name: p.name}
		for _, pb := range p.branches {
			br := branch{pool: pb.pool}
			last := pb.chain
			for _, l := range pb.chain {
				br.chain = append(br.chain, b.conv(l))
			}
			for _, l := range pb.split {
				br.split = append(br.split, b.conv(l))
				last = pb.split
			}
			switch {
			case pb.split != nil:
				k.cout += last[0].cout + last[1].cout
			case pb.chain != nil:
				k.cout += last[len(last)-1].cout
			default: // the pool alone keeps the channels
				k.cout += p.branches[0].chain[0].cin
			}
			k.branches = append(k.branches, br)
		}
		b.net.blocks = append(b.net.blocks, k)
	}
	b.net.fc = kernels.NewLinear(b.net.pool.Tier(), kernels.F32, Features, Classes, b.values["fc.weight"], nil)
	b.net.Bias = b.values["fc.bias"]
}

// conv folds the batch norm into the convolution, in float64.
func (b *builder) conv(l *layer) *kernels.Conv {
	const eps = 1e-3
	w, bn := b.values[l.name+".conv.weight"], l.name+".bn."
	gamma, beta, mean, variance := b.values[bn+"weight"], b.values[bn+"bias"], b.values[bn+"running_mean"], b.values[bn+"running_var"]
	folded, bias := make([]float32, len(w)), make([]float32, l.cout)
	per := len(w) / l.cout
	for o := range l.cout {
		s := float64(gamma[o]) / math.Sqrt(float64(variance[o])+eps)
		bias[o] = float32(float64(beta[o]) - float64(mean[o])*s)
		for i := range per {
			folded[o*per+i] = float32(float64(w[o*per+i]) * s)
		}
	}
	return kernels.NewConv(b.net.pool.Tier(), kernels.F32, l.spec(), folded, bias)
}
