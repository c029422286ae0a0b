package graph

// Filter halves or doubles the sides of an image with a filter along both
// axes, n = len(taps) even and zeros around the image (Karras et al. 2022,
// EDM; Song et al. 2021 have [1, 3, 3, 1]). taps are scaled to the sum 1:
//
//	down  y[i] = sum_k taps[k] x[2i + k - (n-2)/2]
//	up    y[j] = sum_i 2 taps[j + (n-2)/2 - 2i] x[i]
//
// so that [1, 1] is the mean of four pixels and nearest neighbours. Each is
// the other's transpose, times 4.
func (g *Graph) Filter(name string, x Value, taps []float64, up bool) Value {
	sum := 0.0
	for _, t := range taps {
		sum += t
	}
	scaled := make([]float32, len(taps))
	for i, t := range taps {
		scaled[i] = float32(t / sum)
		if up {
			scaled[i] *= 2
		}
	}
	switch {
	case len(taps) == 0 || len(taps)%2 != 0 || sum == 0:
		g.Fail(failf("%s: a filter of %v: want an even number of values whose sum is not 0", name, taps))
		return x
	case !up && (x.H%2 != 0 || x.W%2 != 0):
		g.Fail(failf("%s: sides of %d and %d cannot be halved", name, x.H, x.W))
		return x
	}
	return g.filter(name, x, scaled, up, x.H, x.W)
}

func (g *Graph) filter(name string, x Value, taps []float32, up bool, h, w int) Value {
	ho, wo := h/2, w/2
	if up {
		ho, wo = 2*h, 2*w
	}
	out := g.value(ho, wo, x.C)
	env := g.env
	row := func(_, i int) {
		n, y := i/ho, i%ho
		src, dst := env.at(x.r)[n*h*w*x.C:][:h*w*x.C], env.at(out.r)[i*wo*x.C:][:wo*x.C]
		clear(dst)
		reach(taps, up, y, h, func(iy int, ky float32) {
			line := src[iy*w*x.C:][:w*x.C]
			for j := range wo {
				to := dst[j*x.C:][:x.C]
				reach(taps, up, j, w, func(ix int, kx float32) {
					f := ky * kx
					for c, v := range line[ix*x.C:][:x.C] {
						to[c] += float32(f * v)
					}
				})
			}
		})
	}
	g.add(node{
		name: name, kind: "resample", out: out, reads: []ref{x.r}, writes: []ref{out.r},
		run: func(e *Env) { e.Pool.Do(e.N*ho, row) },
	})
	g.record(out, func(dy Value) { g.addGrad(x, g.filter(name+" gradient", dy, taps, !up, ho, wo)) })
	return out
}

// reach calls f with the pixels that pixel i of the result reads along an axis
// of n pixels.
func reach(taps []float32, up bool, i, n int, f func(at int, k float32)) {
	pad := (len(taps) - 2) / 2
	for k, t := range taps {
		at := 2*i + k - pad
		if up {
			at = i + pad - k
			if at%2 != 0 {
				continue
			}
			at /= 2
		}
		if at >= 0 && at < n {
			f(at, t)
		}
	}
}
