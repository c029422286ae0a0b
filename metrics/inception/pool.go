package inception

// The pools and the join write channels at.. of a tensor of ld channels, so
// that branches meet without another copy. Work is split by rows of pictures.

// maxInto is the largest of 3 by 3 pixels: with stride 2 of those within the
// picture, with stride 1 around every pixel.
func (n *Net) maxInto(dst []float32, ld, at int, src []float32, images, h, w, c, stride int) {
	pad := 2 - stride
	ho, wo := (h+2*pad-3)/stride+1, (w+2*pad-3)/stride+1
	n.pool.Do(images*ho, func(worker, i int) {
		image, y := i/ho, i%ho
		line := size(&n.row[worker], w*c)
		top, end := max(y*stride-pad, 0), min(y*stride-pad+3, h)
		rows := src[image*h*w*c:]
		copy(line, rows[top*w*c:(top+1)*w*c])
		for r := top + 1; r < end; r++ {
			maxOf(line, rows[r*w*c:(r+1)*w*c])
		}
		for x := range wo {
			out := dst[(i*wo+x)*ld+at:][:c]
			left, right := max(x*stride-pad, 0), min(x*stride-pad+3, w)
			copy(out, line[left*c:])
			for k := left + 1; k < right; k++ {
				maxOf(out, line[k*c:(k+1)*c])
			}
		}
	})
}

func maxOf(dst, src []float32) {
	src = src[:len(dst)]
	for i, v := range src {
		dst[i] = max(dst[i], v)
	}
}

// avgInto is the mean of those of the 3 by 3 pixels around every pixel that lie
// in the picture, and then a ReLU. Mean and 1 by 1 convolution (which keeps
// constants) may change places: the convolution went first, on fewer values.
func (n *Net) avgInto(dst []float32, ld, at int, src []float32, images, h, w, c int) {
	n.pool.Do(images*h, func(worker, i int) {
		image, y := i/h, i%h
		line := size(&n.row[worker], w*c)
		top, end := max(y-1, 0), min(y+2, h)
		rows := src[image*h*w*c:]
		copy(line, rows[top*w*c:(top+1)*w*c])
		for r := top + 1; r < end; r++ {
			addTo(line, rows[r*w*c:(r+1)*w*c])
		}
		for x := range w {
			out := dst[(i*w+x)*ld+at:][:c]
			left, right := max(x-1, 0), min(x+2, w)
			copy(out, line[left*c:])
			for k := left + 1; k < right; k++ {
				addTo(out, line[k*c:(k+1)*c])
			}
			area := float32((end - top) * (right - left))
			for k, v := range out {
				out[k] = max(v/area, 0)
			}
		}
	})
}

func addTo(dst, src []float32) {
	src = src[:len(dst)]
	for i, v := range src {
		dst[i] += v
	}
}

// join copies c channels of some pixels.
func (n *Net) join(dst []float32, ld, at int, src []float32, pixels, c int) {
	const each = 64
	n.pool.Do((pixels+each-1)/each, func(_, i int) {
		for p := i * each; p < min((i+1)*each, pixels); p++ {
			copy(dst[p*ld+at:][:c], src[p*c:])
		}
	})
}
