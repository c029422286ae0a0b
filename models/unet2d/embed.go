package unet2d

import (
	"fmt"
	"math"

	"drift/models/diffusers"
)

// timeEncoding turns a time (or the class of class_embed_type timestep) into
// the vector that the time embedding's first layer reads. It computes in
// float64 and rounds once.
type timeEncoding struct {
	kind  string
	width int
	freqs []float64 // positional: w_k; fourier: 2 pi W_k
	flip  bool
	table []float32 // learned: one row per time step
}

// newTimeEncoding: table is the tensor time_proj.weight where there is one.
//
//	positional: w_k = 10000^(-k/(half - freq_shift)), [sin(t w) | cos(t w)],
//	            halves exchanged by flip_sin_to_cos, a 0 behind an odd width
//	fourier:    [sin | cos] of 2 pi W ln t
//	learned:    row t of a table
func newTimeEncoding(cfg *diffusers.UNet2DConfig, width int, table []float32) *timeEncoding {
	e := &timeEncoding{kind: cfg.TimeEmbeddingType, width: width}
	switch e.kind {
	case "fourier":
		for _, w := range table {
			e.freqs = append(e.freqs, 2*math.Pi*float64(w))
		}
	case "learned":
		e.table = table
	default:
		half := width / 2
		for k := range half {
			e.freqs = append(e.freqs, math.Exp(-math.Log(10000)*float64(k)/(float64(half)-cfg.FreqShift)))
		}
		e.flip = cfg.FlipSinToCos
	}
	return e
}

// check tells whether the encoding exists for t.
func (e *timeEncoding) check(t float64) error {
	switch {
	case math.IsNaN(t) || math.IsInf(t, 0):
		return fmt.Errorf("time %v is not finite", t)
	case e.kind == "fourier" && !(t > 0):
		return fmt.Errorf("time %v: the Fourier embedding takes ln t, t must be positive", t)
	case e.kind == "learned":
		if rows := len(e.table) / e.width; t != math.Trunc(t) || t < 0 || t >= float64(rows) {
			return fmt.Errorf("time %v: the learned embedding has rows 0 to %d", t, rows-1)
		}
	}
	return nil
}

// put writes the encoding of t, which has passed check, to dst.
func (e *timeEncoding) put(dst []float32, t float64) {
	switch e.kind {
	case "learned":
		copy(dst, e.table[int(t)*e.width:int(t+1)*e.width])
		return
	case "fourier":
		t = math.Log(t)
	}
	half := len(e.freqs)
	for k, w := range e.freqs {
		sin, cos := math.Sincos(t * w)
		if e.flip {
			sin, cos = cos, sin
		}
		dst[k], dst[half+k] = float32(sin), float32(cos)
	}
	clear(dst[2*half:])
}
