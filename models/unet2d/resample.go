package unet2d

// resampleRow writes row y of the image src, of h by w pixels of c channels,
// after resampling, times scale.
//
// The filter is that of NCSN++ (Song et al. 2021, arXiv:2011.13456), [1,3,3,1]
// along both axes with zeros around the image. Down: sum 8, every second
// pixel. Up: between zeros, sum 4, so that an even pixel is (x[m-1] + 3 x[m])/4
// and an odd one (3 x[m] + x[m+1])/4.
func resampleRow(dst, src []float32, y, h, w, c int, r resample, scale float32) {
	switch r {
	case up:
		row := src[y/2*w*c : (y/2+1)*w*c]
		for x := range 2 * w {
			d := dst[x*c : (x+1)*c]
			for i, v := range row[x/2*c : (x/2+1)*c] {
				d[i] = v * scale
			}
		}
	case firDown:
		clear(dst)
		for i, ky := range [4]float32{1, 3, 3, 1} {
			iy := 2*y - 1 + i
			if iy < 0 || iy >= h {
				continue
			}
			row := src[iy*w*c : (iy+1)*w*c]
			for j, kx := range [4]float32{1, 3, 3, 1} {
				k := ky * kx / 64 * scale
				for x := range w / 2 {
					if ix := 2*x - 1 + j; ix >= 0 && ix < w {
						axpy(dst[x*c:(x+1)*c], row[ix*c:(ix+1)*c], k)
					}
				}
			}
		}
	case firUp:
		clear(dst)
		for _, fy := range upTaps(y) {
			if fy.at < 0 || fy.at >= h {
				continue
			}
			row := src[fy.at*w*c : (fy.at+1)*w*c]
			for x := range 2 * w {
				for _, fx := range upTaps(x) {
					if fx.at >= 0 && fx.at < w {
						axpy(dst[x*c:(x+1)*c], row[fx.at*c:(fx.at+1)*c], fy.k*fx.k/16*scale)
					}
				}
			}
		}
	}
}

type tap struct {
	at int
	k  float32
}

func upTaps(y int) [2]tap {
	m := y / 2
	if y%2 == 0 {
		return [2]tap{{m - 1, 1}, {m, 3}}
	}
	return [2]tap{{m, 3}, {m + 1, 1}}
}

func axpy(dst, x []float32, a float32) {
	x = x[:len(dst)]
	for i := range dst {
		dst[i] += float32(x[i] * a)
	}
}
