package mmdit

import "fmt"

// Unpack turns n sequences of tokens as Flux's pipelines hand them over, of
// two by two pixels of c channels each (the four of a channel side by side),
// into latents (n, c, 2h, 2w). The tokens run row by row over a grid of h by w.
func Unpack(tokens []float64, n, h, w, c int) []float64 {
	out := make([]float64, len(tokens))
	each(n, h, w, c, func(pixel, token int) { out[pixel] = tokens[token] })
	return out
}

// Pack is the inverse of Unpack.
func Pack(latents []float64, n, h, w, c int) []float64 {
	out := make([]float64, len(latents))
	each(n, h, w, c, func(pixel, token int) { out[token] = latents[pixel] })
	return out
}

func each(n, h, w, c int, move func(pixel, token int)) {
	for i := range n {
		for k := range c {
			for y := range pack * h {
				for x := range pack * w {
					token := ((i*h+y/pack)*w + x/pack) * pack * pack * c
					move(((i*c+k)*pack*h+y)*pack*w+x, token+(k*pack+y%pack)*pack+x%pack)
				}
			}
		}
	}
}

// Grid reads the size of the grid of tokens from their positions (tokens, 3),
// which must run row by row from (0, 0, 0).
func Grid(ids []float64) (h, w int, err error) {
	n := len(ids) / 3
	if n == 0 || len(ids)%3 != 0 {
		return 0, 0, fmt.Errorf("mmdit: %d numbers are no positions", len(ids))
	}
	h, w = int(ids[3*n-2])+1, int(ids[3*n-1])+1
	if h < 1 || w < 1 || h*w != n {
		return 0, 0, fmt.Errorf("mmdit: %d tokens do not fill a grid of %dx%d", n, h, w)
	}
	for i := range n {
		if ids[3*i] != 0 || ids[3*i+1] != float64(i/w) || ids[3*i+2] != float64(i%w) {
			return 0, 0, fmt.Errorf("mmdit: token %d has the position %v: only grids that run row by row are supported", i, ids[3*i:3*i+3])
		}
	}
	return h, w, nil
}
