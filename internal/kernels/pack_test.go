package kernels

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"drift/internal/half"
)

// Weights that are transformed in blocks of channels, and all at once, give
// the same bits, and so do weights that lie in 16 bits.
func TestWinogradBlocks(t *testing.T) {
	r := rng(11)
	for _, c := range []struct {
		convCase
		how method
	}{
		{convCase{spec: ConvSpec{Cin: 272, Cout: 16, KH: 3, KW: 3, Pad: Same(1)}, n: 4, h: 24, w: 104, res: true}, wino4},
		{convCase{spec: ConvSpec{Cin: 392, Cout: 16, KH: 3, KW: 3, Pad: Same(1)}, n: 3, h: 16, w: 72, aff: true, act: SiLU}, wino2},
	} {
		in, weight, bias, ep, _ := c.build(r)
		for i, v := range weight {
			weight[i] = half.Float16(half.ToFloat16(v))
		}
		want := refConv(c.spec, &in, c.n, c.h, c.w, weight, bias, ep, false)
		for _, tier := range Tiers() {
			if tier == Portable || tier == AVX512BF16 || tier == AMX {
				continue // slow, and the same kernels as AVX-512
			}
			pools := [2]*Pool{NewPool(tier, 1), NewPool(tier, 3)}
			defer pools[0].Close()
			defer pools[1].Close()
			full := newConv(tier, F32, c.spec.normal(), weight, bias, c.how)
			few := winoPlanOf(full, 1, 1, c.h, c.w, c.spec.Pad, &in)
			all := winoPlanOf(full, 1, c.n, c.h, c.w, c.spec.Pad, &in)
			if few.whole || few.blocks < 2 || !all.whole {
				t.Fatalf("%v: plans of one image %+v and of all %+v", tier, few, all)
			}
			c.check(t, full, pools, in, ep, want, F32)
			narrow := newConv(tier, F32OnF16, c.spec.normal(), weight, bias, c.how)
			if 2*narrow.Bytes() != full.Bytes() {
				t.Errorf("%v: %d bytes in 16 bits, %d in 32", tier, narrow.Bytes(), full.Bytes())
			}
			for n := range 2 {
				n = 1 + n*(c.n-1)
				a, b := poisoned(len(want)/c.n*n), poisoned(len(want)/c.n*n)
				full.Run(pools[1], a, in, n, c.h, c.w, poisoned(full.Scratch(3, n, c.h, c.w, false)), ep)
				narrow.Run(pools[1], b, in, n, c.h, c.w, poisoned(narrow.Scratch(3, n, c.h, c.w, false)), ep)
				sameBits(t, fmt.Sprintf("%v: 16 bits against 32, %d images", tier, n), a, b)
			}
		}
	}
}

// A layer on 16 bits has the bits of the layer on the widened weights,
// whatever the shape.
func TestWidenedBits(t *testing.T) {
	r := rng(12)
	for i, c := range convCases(r, 20) {
		in, weight, bias, ep, size := c.build(r)
		for dt, round := range map[DType]func(float32) float32{
			F32OnBF16: roundBF16,
			F32OnF16:  func(v float32) float32 { return half.Float16(half.ToFloat16(v)) },
		} {
			w := make([]float32, len(weight))
			for i, v := range weight {
				w[i] = round(v)
			}
			for _, tier := range Tiers() {
				p := NewPool(tier, 2)
				defer p.Close()
				for _, how := range methods(c.spec) {
					var out [2][]float32
					for k, d := range []DType{F32, dt} {
						l := newConv(tier, d, c.spec.normal(), w, bias, how)
						out[k] = poisoned(size)
						l.Run(p, out[k], in, c.n, c.h, c.w, poisoned(l.Scratch(2, c.n, c.h, c.w, c.up)), ep)
					}
					sameBits(t, fmt.Sprintf("case %d, %v, %v, method %d", i, tier, dt, how), out[0], out[1])
				}
			}
		}
	}
}

// A weight that cannot be read is an error, whichever row it is.
func TestPackFails(t *testing.T) {
	bad := errors.New("gone")
	spec := ConvSpec{Cin: 16, Cout: 80, KH: 3, KW: 3, Pad: Same(1)}
	for _, tier := range Tiers() {
		for _, dt := range []DType{F32, BF16, F32OnF16} {
			_, err := PackConv(tier, dt, spec, func(_ []float32, first int) error {
				if first > 0 {
					return bad
				}
				return nil
			}, nil)
			if !errors.Is(err, bad) {
				t.Errorf("%v %v: %v", tier, dt, err)
			}
		}
	}
}

// The ways to and from 16 bits agree with the definition, for every pattern
// and in place.
func TestHalves(t *testing.T) {
	for _, tier := range Tiers() {
		p := NewPool(tier, 1)
		defer p.Close()
		for _, n := range []int{1, 7, 8, 9, 16, 31, 1 << 16} {
			for _, f16 := range []bool{true, false} {
				widen := half.BFloat16
				if f16 {
					widen = half.Float16
				}
				dst := make([]float32, n)
				src := bfloats(dst)[n:]
				for i := range src {
					src[i] = uint16(i * 40503)
				}
				p.Widen(dst, src, f16)
				for i, v := range dst {
					h := uint16(i * 40503)
					if want := widen(h); v != want && v == v {
						t.Fatalf("%v, %d values, f16 %v: %#04x became %g, not %g", tier, n, f16, h, v, want)
					}
				}
				if !f16 {
					continue
				}
				back := make([]uint16, n)
				p.ops.toF16(back, dst)
				for i, v := range dst {
					if v == v && back[i] != uint16(i*40503) {
						t.Fatalf("%v: %g became %#04x, not %#04x", tier, v, back[i], uint16(i*40503))
					}
					dst[i] *= 1.0003
				}
				p.ops.toF16(back, dst)
				for i, v := range dst {
					if want := half.ToFloat16(v); v == v && back[i] != want {
						t.Fatalf("%v: %g became %#04x, not %#04x", tier, v, back[i], want)
					}
				}
			}
		}
	}
}

// The transform of the weights agrees with its twin.
func TestWinogradWeights(t *testing.T) {
	r := rng(13)
	for _, tier := range Tiers() {
		o := opsOf(tier)
		for m := 2; m <= 4; m += 2 {
			const n, step = 24, 40
			taps := randoms(r, 9*n)
			for pair := range (m + 2) / 2 {
				size := 2*(m+2)*step + n
				got, want := poisoned(size), poisoned(size)
				o.winoWeights(m, pair, &got[0], step*4, &taps[0], n)
				winoWeightsGo(m, pair, &want[0], step*4, &taps[0], n)
				for k := range 2 * (m + 2) {
					for i := k * step; i < k*step+n; i++ {
						if d := got[i] - want[i]; !(max(d, -d) <= 1e-7) {
							t.Fatalf("%v, F(%dx%d), pair %d, value %d, column %d: %g, want %g", tier, m, m, pair, k, i-k*step, got[i], want[i])
						}
					}
				}
			}
		}
	}
}

// The transforms of tiles agree with their twins, and all tiers with vectors have the same bits.
func TestWinogradTiles(t *testing.T) {
	r := rng(17)
	for m := 2; m <= 4; m += 2 {
		al := m + 2
		for _, c := range []int{8, 16, 24, 48, 56} {
			const tiles, skip = 3, 8
			pitch := (tiles*m + 2) * c
			step := tiles * (c + skip)
			src, products := randoms(r, al*pitch), randoms(r, al*al*c)
			bias, residual := randoms(r, c), randoms(r, m*m*c)
			var in, out [][]float32
			for _, tier := range Tiers() {
				o := opsOf(tier)
				v := poisoned(al * al * step)
				o.winoIn(m, &v[0], &src[0], step*4, pitch*4, c*4, m*c*4, c, tiles, skip*4)
				in = append(in, v)
				var all []float32
				for rows := 1; rows <= m; rows++ {
					for cols := 1; cols <= m; cols++ {
						for _, res := range []*float32{nil, &residual[0]} {
							d := poisoned(m * m * c)
							o.winoOut(m, &d[0], &products[0], &bias[0], res, c*4, m*c*4, c*4, rows, cols, c)
							all = append(all, d...)
						}
					}
				}
				out = append(out, all)
			}
			for which, sets := range map[string][][]float32{"in": in, "out": out} {
				for k, tier := range Tiers() {
					for i, v := range sets[k] {
						want, first := sets[0][i], math.Float32bits(sets[min(1, k)][i])
						if d := v - want; math.IsNaN(float64(v)) != math.IsNaN(float64(want)) || max(d, -d) > 1e-4 {
							t.Fatalf("%v, %s of F(%dx%d), %d channels: value %d is %g, want %g", tier, which, m, m, c, i, v, want)
						}
						if tier != Portable && math.Float32bits(v) != first {
							t.Fatalf("%v, %s of F(%dx%d), %d channels: value %d has other bits than of %v", tier, which, m, m, c, i, Tiers()[1])
						}
					}
				}
			}
		}
	}
}

// A small layer keeps its transformed weights, with the bits of the layer that
// transforms them in every run; a large one and one on 16 bits do not.
func TestKeptWeights(t *testing.T) {
	r := rng(14)
	spec := ConvSpec{Cin: 136, Cout: 72, KH: 3, KW: 3, Pad: Same(1)}
	small := spec
	small.H, small.W = 16, 16
	weight, bias := randoms(r, 72*136*9), randoms(r, 72)
	in := Input{X: randoms(r, 16*16*136), C: 136}
	for _, tier := range Tiers() {
		p := NewPool(tier, 2)
		defer p.Close()
		for _, how := range []method{wino2, wino4} {
			for _, dt := range []DType{F32, BF16} {
				kept, plain := newConv(tier, dt, small.normal(), weight, bias, how), newConv(tier, dt, spec.normal(), weight, bias, how)
				if kept.u == nil || kept.w != nil || kept.w16 != nil || plain.u != nil || kept.Bytes() <= plain.Bytes() {
					t.Fatalf("%v %v: %d and %d bytes", tier, dt, kept.Bytes(), plain.Bytes())
				}
				var out [2][]float32
				for k, l := range []*Conv{kept, plain} {
					out[k] = poisoned(16 * 16 * 72)
					l.Run(p, out[k], in, 1, 16, 16, poisoned(l.Scratch(2, 1, 16, 16, false)), Epilogue{})
				}
				sameBits(t, fmt.Sprintf("%v %v method %d", tier, dt, how), out[0], out[1])
			}
			if c := newConv(tier, F32OnF16, small.normal(), weight, bias, how); c.u != nil {
				t.Errorf("%v: 16-bit weights were transformed", tier)
			}
		}
	}
}
