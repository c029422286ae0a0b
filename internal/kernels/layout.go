package kernels

// NCHWToNHWC changes the order of n images of c channels and hw pixels and
// narrows float64 to float32.
func NCHWToNHWC[T float32 | float64](dst []float32, src []T, n, c, hw int) {
	need("dst", dst, n*c*hw)
	for b := range n {
		d := dst[b*c*hw : (b+1)*c*hw]
		for x0 := 0; x0 < hw; x0 += layoutTile {
			x1 := min(x0+layoutTile, hw)
			for ch := range c {
				for i, v := range src[(b*c+ch)*hw+x0 : (b*c+ch)*hw+x1] {
					d[(x0+i)*c+ch] = float32(v)
				}
			}
		}
	}
}

// NHWCToNCHW is the inverse of NCHWToNHWC; float32 widens to float64 exactly.
func NHWCToNCHW[T float32 | float64](dst []T, src []float32, n, c, hw int) {
	need("src", src, n*c*hw)
	for b := range n {
		s := src[b*c*hw : (b+1)*c*hw]
		for x0 := 0; x0 < hw; x0 += layoutTile {
			x1 := min(x0+layoutTile, hw)
			for ch := range c {
				d := dst[(b*c+ch)*hw+x0 : (b*c+ch)*hw+x1]
				for i := range d {
					d[i] = T(s[(x0+i)*c+ch])
				}
			}
		}
	}
}

const layoutTile = 16
