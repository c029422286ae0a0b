package kernels

import (
	"fmt"
	"unsafe"
)

// Depthwise is a convolution of stride 1 in which every channel is convolved
// by itself (groups = channels), float32 on every tier.
type Depthwise struct {
	c, kh, kw int
	pad       Pad
	w         []float32 // [tap][c]
	bias      []float32
}

// maxTaps bounds the kernel, and with it the taps that a worker keeps.
const maxTaps = 121

// NewDepthwise packs a layer. weight is (C, 1, KH, KW) as in the checkpoints;
// bias is (C) or nil. It panics if the sizes do not agree or the kernel has
// more than 121 taps.
func NewDepthwise(c, kh, kw int, pad Pad, weight, bias []float32) *Depthwise {
	taps := kh * kw
	if c < 1 || taps < 1 || taps > maxTaps || len(weight) != c*taps || bias != nil && len(bias) != c {
		panic(fmt.Sprintf("kernels: depthwise convolution of %d channels by %dx%d with %d weights and %d biases", c, kh, kw, len(weight), len(bias)))
	}
	d := &Depthwise{c: c, kh: kh, kw: kw, pad: pad, w: alignedFloats(c * taps), bias: alignedFloats(c)}
	for ch := range c {
		for t := range taps {
			d.w[t*c+ch] = weight[ch*taps+t]
		}
	}
	copy(d.bias, bias)
	return d
}

// NewDepthwiseGrad packs the layer that maps the gradient of the output of
// NewDepthwise(c, kh, kw, pad, weight, ...) to the gradient of its input: the
// flipped kernel. It panics for a padding beyond the kernel.
func NewDepthwiseGrad(c, kh, kw int, pad Pad, weight []float32) *Depthwise {
	g := Pad{Top: kh - 1 - pad.Top, Left: kw - 1 - pad.Left, Bottom: kh - 1 - pad.Bottom, Right: kw - 1 - pad.Right}
	if min(g.Top, g.Left, g.Bottom, g.Right) < 0 {
		panic(fmt.Sprintf("kernels: gradient of a %dx%d convolution padded by %+v", kh, kw, pad))
	}
	taps := kh * kw
	flipped := make([]float32, len(weight))
	for i, v := range weight {
		flipped[i/taps*taps+taps-1-i%taps] = v
	}
	return NewDepthwise(c, kh, kw, g, flipped, nil)
}

// OutSize gives the size of the output for images of h by w.
func (d *Depthwise) OutSize(h, w int) (int, int) {
	return outLen(h+d.pad.Top+d.pad.Bottom, d.kh, 1, 1), outLen(w+d.pad.Left+d.pad.Right, d.kw, 1, 1)
}

// MACs gives the multiply-adds of a run.
func (d *Depthwise) MACs(n, h, w int) int {
	ho, wo := d.OutSize(h, w)
	return n * ho * wo * d.c * d.kh * d.kw
}

// Run computes dst (N, Ho, Wo, C) = act(conv(x) + bias) from n images x of h
// by w. It needs no scratch. dst may not overlap x.
func (d *Depthwise) Run(p *Pool, dst, x []float32, n, h, w int, act Activation) {
	ho, wo := d.OutSize(h, w)
	need("dst", dst, n*ho*wo*d.c)
	need("input", x, n*h*w*d.c)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taps == nil {
		p.taps = make([][maxTaps]tapAt, p.workers)
	}
	p.depth = depthJob{d: d, o: p.ops, dst: dst, x: x, h: h, w: w, ho: ho, wo: wo, act: act, taps: p.taps}
	p.run(n*ho, &p.depth)
	p.depth = depthJob{}
}

// tapAt is where a tap finds its input and its weights, in bytes.
type tapAt struct{ in, w int64 }

type depthJob struct {
	d            *Depthwise
	o            *ops
	dst, x       []float32
	h, w, ho, wo int
	act          Activation
	taps         [][maxTaps]tapAt // by worker
}

// do computes one row of the output.
func (j *depthJob) do(worker, item int) {
	d := j.d
	n, y := item/j.ho, item%j.ho
	image := j.x[n*j.h*j.w*d.c : (n+1)*j.h*j.w*d.c]
	row := j.dst[item*j.wo*d.c : (item+1)*j.wo*d.c]
	taps := &j.taps[worker]
	for x := range j.wo {
		used := 0
		for ky := range d.kh {
			iy := y + ky - d.pad.Top
			if iy < 0 || iy >= j.h {
				continue
			}
			for kx := range d.kw {
				ix := x + kx - d.pad.Left
				if ix >= 0 && ix < j.w {
					taps[used] = tapAt{int64((iy*j.w+ix)*d.c) * 4, int64((ky*d.kw+kx)*d.c) * 4}
					used++
				}
			}
		}
		j.o.depthwise(&row[x*d.c], &image[0], &d.w[0], &d.bias[0], &taps[0], used, d.c)
	}
	if j.act != Identity {
		j.o.act(row, row, j.act)
	}
}

// depthwiseGo writes one pixel of c channels: bias plus the sum over n taps of
// input times weight.
func depthwiseGo(dst, src, w, bias *float32, taps *tapAt, n, c int) {
	d := unsafe.Slice(dst, c)
	copy(d, unsafe.Slice(bias, c))
	for _, t := range unsafe.Slice(taps, n) {
		x := f32At(unsafe.Add(unsafe.Pointer(src), t.in), c)
		for i, v := range f32At(unsafe.Add(unsafe.Pointer(w), t.w), c) {
			d[i] += float32(v * x[i])
		}
	}
}
