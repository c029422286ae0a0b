package kernels

import (
	"fmt"
	"math"
)

// normBlock is the number of pixels whose sums are kept in float32. Larger
// sums are taken in float64.
const normBlock = 64

// GroupNormScratch gives the float32 that GroupNorm needs.
func GroupNormScratch(n, hw, c int) int {
	return alignSlack + n*ceilDiv(hw, normBlock)*2*c + 16
}

// GroupNorm finds for every image and channel the scale and shift (both
// (N, C)) that normalise groups of channels:
//
//	y = x*scale + shift = (x - mean)/sqrt(var + eps)*gamma + beta
//
// with mean and biased variance over the group's channels and pixels (Wu and
// He 2018, arXiv:1803.08494). Put scale and shift into an [Input] to have the
// norm applied where the tensor is read, or use [Apply]. in.X and in.X2 are
// read as one tensor, the rest of in is ignored. gamma and beta are (C), or
// (N, C) for a norm modulated per image, or nil for 1 and 0.
func GroupNorm(p *Pool, scale, shift []float32, in Input, n, hw, groups int, eps float64, gamma, beta []float32, scratch []float32) {
	c := in.channels()
	if groups < 1 || c%groups != 0 {
		panic(fmt.Sprintf("kernels: %d channels in %d groups", c, groups))
	}
	in = Input{X: in.X, C: in.C, X2: in.X2, C2: in.C2}
	in.check(n, hw, 1, c)
	need("scale", scale, n*c)
	need("shift", shift, n*c)
	need("scratch", scratch, GroupNormScratch(n, hw, c))
	p.mu.Lock()
	defer p.mu.Unlock()
	j := &p.norm
	*j = normJob{o: p.ops, in: in, hw: hw, groups: groups, eps: eps, gamma: gamma, beta: beta, scale: scale, shift: shift}
	cv := carve(scratch)
	j.blocks = ceilDiv(hw, normBlock)
	j.part = cv.take(n * j.blocks * 2 * c)
	j.summing = true
	p.run(n*j.blocks, j)
	j.summing = false
	p.run(n*groups, j)
	*j = normJob{}
}

type normJob struct {
	o            *ops
	in           Input
	hw, groups   int
	blocks       int
	eps          float64
	gamma, beta  []float32
	scale, shift []float32
	part         []float32 // [n][block][sum, sq][c]
	summing      bool
}

func (j *normJob) do(_, item int) {
	c := j.in.channels()
	if j.summing {
		n, b := item/j.blocks, item%j.blocks
		px := min(normBlock, j.hw-b*normBlock)
		part := j.part[item*2*c : (item+1)*2*c]
		first := n*j.hw + b*normBlock
		x := j.in.X[first*j.in.C:]
		j.o.chanSums(&part[0], &part[c], &x[0], &x[0], j.in.C, px, j.in.C)
		if j.in.C2 > 0 {
			x = j.in.X2[first*j.in.C2:]
			j.o.chanSums(&part[j.in.C], &part[c+j.in.C], &x[0], &x[0], j.in.C2, px, j.in.C2)
		}
		return
	}
	n, g := item/j.groups, item%j.groups
	mean, rstd := j.stats(n, g)
	per := c / j.groups
	for ch := g * per; ch < (g+1)*per; ch++ {
		ga, be := 1.0, 0.0
		if j.gamma != nil {
			ga = float64(j.gamma[vectorAt(len(j.gamma), n, ch, c)])
		}
		if j.beta != nil {
			be = float64(j.beta[vectorAt(len(j.beta), n, ch, c)])
		}
		s := ga * rstd
		j.scale[n*c+ch] = float32(s)
		j.shift[n*c+ch] = float32(be - mean*s)
	}
}

// vectorAt indexes a (C) or (N, C) parameter.
func vectorAt(length, n, ch, c int) int {
	if length == c {
		return ch
	}
	return n*c + ch
}

// stats joins the blocks' sums, which are taken from the block's first pixel
// so that a mean far from zero costs no digits.
func (j *normJob) stats(n, g int) (mean, rstd float64) {
	c := j.in.channels()
	per := c / j.groups
	count := float64(j.hw * per)
	for pass := range 2 {
		var acc float64
		for b := range j.blocks {
			px := float64(min(normBlock, j.hw-b*normBlock))
			part := j.part[(n*j.blocks+b)*2*c:]
			pixel := n*j.hw + b*normBlock
			for ch := g * per; ch < (g+1)*per; ch++ {
				x := j.first(pixel, ch)
				sum := float64(part[ch])
				if pass == 0 {
					acc += px*x + sum
				} else {
					d := x - mean
					acc += float64(part[c+ch]) + d*(2*sum+px*d)
				}
			}
		}
		if pass == 0 {
			mean = acc / count
		} else {
			rstd = 1 / math.Sqrt(max(acc/count, 0)+j.eps)
		}
	}
	return mean, rstd
}

func (j *normJob) first(pixel, ch int) float64 {
	if ch < j.in.C {
		return float64(j.in.X[pixel*j.in.C+ch])
	}
	return float64(j.in.X2[pixel*j.in.C2+ch-j.in.C])
}
