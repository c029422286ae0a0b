package dit

import "math"

// sinusoidWidth is the length of the vector that a time is turned into.
const sinusoidWidth = 256

// sinusoid writes [cos(t w) | sin(t w)], w_k = 10000^(-k/127), to dst.
func sinusoid(dst []float32, t float64) {
	const half = sinusoidWidth / 2
	for k := range half {
		sin, cos := math.Sincos(t * math.Exp(-math.Log(10000)*float64(k)/(half-1)))
		dst[k], dst[half+k] = float32(cos), float32(sin)
	}
}

// positions is the fixed position table (side*side, width) of a grid that
// spans base tokens at every resolution. The first half of a row belongs to
// the column, the second to the row, each half as [sin(u w) | cos(u w)] with
// w_k = 10000^(-k/(width/4)) and u = i*base/side.
func positions(side, base, width int) []float32 {
	quarter := width / 4
	table := make([]float32, side*side*width)
	axis := make([]float32, side*2*quarter)
	for i := range side {
		row := axis[i*2*quarter : (i+1)*2*quarter]
		u := float64(i) * float64(base) / float64(side)
		for k := range quarter {
			sin, cos := math.Sincos(u * math.Exp(-math.Log(10000)*float64(k)/float64(quarter)))
			row[k], row[quarter+k] = float32(sin), float32(cos)
		}
	}
	for y := range side {
		for x := range side {
			row := table[(y*side+x)*width:][:width]
			copy(row, axis[x*2*quarter:(x+1)*2*quarter])
			copy(row[2*quarter:], axis[y*2*quarter:(y+1)*2*quarter])
		}
	}
	return table
}

// patchOrder is how the side*side patches of p by p pixels and c channels lie
// in an image (N, C, S, S) and their values in a token.
type patchOrder struct{ c, side, p, stepC, stepP int }

// channelsFirst is the order (c, y, x) of the first layer's input.
func channelsFirst(c, side, p int) patchOrder { return patchOrder{c, side, p, p * p, 1} }

// pixelsFirst is the order (y, x, c) of the last layer's output.
func pixelsFirst(c, side, p int) patchOrder { return patchOrder{c, side, p, 1, c} }

// patchify cuts images into tokens.
func patchify[T float32 | float64](tokens []float32, images []T, o patchOrder) {
	size := o.p * o.side
	for r := range len(images) / size { // rows of all channels of all images
		i, c, y := r/(size*o.c), r/size%o.c, r%size
		row := images[r*size : (r+1)*size]
		to := tokens[(i*o.side+y/o.p)*o.side*o.p*o.p*o.c+c*o.stepC+y%o.p*o.p*o.stepP:]
		for x, v := range row {
			to[x/o.p*o.p*o.p*o.c+x%o.p*o.stepP] = float32(v)
		}
	}
}

// unpatchify is the inverse of patchify.
func unpatchify[T float32 | float64](images []T, tokens []float32, o patchOrder) {
	size := o.p * o.side
	for r := range len(images) / size {
		i, c, y := r/(size*o.c), r/size%o.c, r%size
		row := images[r*size : (r+1)*size]
		from := tokens[(i*o.side+y/o.p)*o.side*o.p*o.p*o.c+c*o.stepC+y%o.p*o.p*o.stepP:]
		for x := range row {
			row[x] = T(from[x/o.p*o.p*o.p*o.c+x%o.p*o.stepP])
		}
	}
}
