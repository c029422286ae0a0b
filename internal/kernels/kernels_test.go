package kernels

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"drift/internal/half"
)

func rng(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 17)) }

func randoms(r *rand.Rand, n int) []float32 {
	s := make([]float32, n)
	for i := range s {
		s[i] = float32(r.NormFloat64())
	}
	return s
}

// relErr is the relative L2 distance of got from want.
func relErr(got []float32, want []float64) float64 {
	var d, w float64
	for i, v := range want {
		e := float64(got[i]) - v
		d += e * e
		w += v * v
	}
	if w == 0 {
		return math.Sqrt(d)
	}
	return math.Sqrt(d / w)
}

func wide(s []float32) []float64 {
	o := make([]float64, len(s))
	for i, v := range s {
		o[i] = float64(v)
	}
	return o
}

func sameBits(t *testing.T, what string, a, b []float32) {
	t.Helper()
	for i := range a {
		if math.Float32bits(a[i]) != math.Float32bits(b[i]) {
			t.Fatalf("%s: value %d is %v and %v", what, i, a[i], b[i])
		}
	}
}

// within fails unless the relative L2 error is at most tol and all is finite.
func within(t *testing.T, what string, got []float32, want []float64, tol float64) {
	t.Helper()
	if e := relErr(got, want); !(e <= tol) {
		t.Fatalf("%s: relative L2 error %.3g, allowed %.3g", what, e, tol)
	}
}

// refInput materialises an Input in float64 by definition.
func refInput(in *Input, n, h, w int) ([]float64, int, int) {
	hi, wi := in.size(h, w)
	c := in.channels()
	out := make([]float64, n*hi*wi*c)
	for b := range n {
		for y := range hi {
			for x := range wi {
				sy, sx := y, x
				if in.Upsample {
					sy, sx = y/2, x/2
				} else if in.stuff > 1 {
					if y%in.stuff != 0 || x%in.stuff != 0 {
						continue
					}
					sy, sx = y/in.stuff, x/in.stuff
				}
				for ch := range c {
					var v float64
					if ch < in.C {
						v = float64(in.X[((b*h+sy)*w+sx)*in.C+ch])
					} else {
						v = float64(in.X2[((b*h+sy)*w+sx)*in.C2+ch-in.C])
					}
					if in.Scale != nil {
						v = v*float64(in.Scale[b*c+ch]) + float64(in.Shift[b*c+ch])
					}
					out[((b*hi+y)*wi+x)*c+ch] = refAct(in.Act, v)
				}
			}
		}
	}
	return out, hi, wi
}

func refAct(a Activation, x float64) float64 {
	switch a {
	case SiLU:
		return x / (1 + math.Exp(-x))
	case GELU:
		return x / 2 * math.Erfc(-x/math.Sqrt2)
	case GELUTanh:
		return x / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
	case QuickGELU:
		return x / (1 + math.Exp(-1.702*x))
	case ReLU:
		return max(x, 0)
	}
	return x
}

// refConv is the definition in float64.
func refConv(s ConvSpec, in *Input, n, h, w int, weight, bias []float32, ep Epilogue, round bool) []float64 {
	s = s.normal()
	x, hi, wi := refInput(in, n, h, w)
	wt := wide(weight)
	if round {
		for i := range x {
			x[i] = float64(roundBF16(float32(x[i])))
		}
		for i, v := range weight {
			wt[i] = float64(roundBF16(v))
		}
	}
	ho, wo := s.OutSize(hi, wi)
	out := make([]float64, n*ho*wo*s.Cout)
	for b := range n {
		for y := range ho {
			for xx := range wo {
				for o := range s.Cout {
					var sum float64
					for ky := range s.KH {
						iy := y*s.Stride + ky*s.Dilation - s.Pad.Top
						if iy < 0 || iy >= hi {
							continue
						}
						for kx := range s.KW {
							ix := xx*s.Stride + kx*s.Dilation - s.Pad.Left
							if ix < 0 || ix >= wi {
								continue
							}
							for c := range s.Cin {
								sum += x[((b*hi+iy)*wi+ix)*s.Cin+c] * wt[((o*s.Cin+c)*s.KH+ky)*s.KW+kx]
							}
						}
					}
					i := ((b*ho+y)*wo+xx)*s.Cout + o
					if bias != nil {
						sum += float64(bias[o])
					}
					if ep.RowBias != nil {
						sum += float64(ep.RowBias[b*s.Cout+o])
					}
					if ep.Residual != nil {
						sum += float64(ep.Residual[i])
					}
					if ep.Scale != 0 {
						sum *= float64(ep.Scale)
					}
					out[i] = refAct(ep.Act, sum)
				}
			}
		}
	}
	return out
}

type convCase struct {
	spec ConvSpec
	n    int
	h, w int
	up   bool
	cat  int // channels of the second input
	act  Activation
	aff  bool
	res  bool
	rowB bool
	out  Activation
}

// methods lists the ways a spec can be computed.
func methods(s ConvSpec) []method {
	s = s.normal()
	if s.KH == 3 && s.KW == 3 && s.Stride == 1 && s.Dilation == 1 && s.Cin%8 == 0 && s.Cout%8 == 0 {
		return []method{direct, wino2, wino4}
	}
	return []method{direct}
}

func convCases(r *rand.Rand, count int) []convCase {
	cs := []convCase{
		{spec: ConvSpec{Cin: 3, Cout: 32, KH: 3, KW: 3, Pad: Same(1)}, n: 2, h: 9, w: 8},
		{spec: ConvSpec{Cin: 32, Cout: 3, KH: 3, KW: 3, Pad: Same(1)}, n: 2, h: 8, w: 8},
		{spec: ConvSpec{Cin: 32, Cout: 48, KH: 3, KW: 3, Pad: Same(1)}, n: 1, h: 16, w: 16, aff: true, act: SiLU, res: true},
		{spec: ConvSpec{Cin: 16, Cout: 16, KH: 3, KW: 3, Stride: 2, Pad: Pad{0, 0, 1, 1}}, n: 2, h: 8, w: 8},
		{spec: ConvSpec{Cin: 24, Cout: 32, KH: 1, KW: 1}, n: 3, h: 5, w: 7, cat: 8, rowB: true},
		{spec: ConvSpec{Cin: 24, Cout: 32, KH: 1, KW: 1}, n: 1, h: 1, w: 700},
		{spec: ConvSpec{Cin: 8, Cout: 8, KH: 1, KW: 5, Dilation: 3, Pad: Pad{0, 6, 0, 6}}, n: 2, h: 1, w: 64},
		{spec: ConvSpec{Cin: 8, Cout: 20, KH: 3, KW: 3, Pad: Same(1)}, n: 1, h: 5, w: 6, up: true},
		{spec: ConvSpec{Cin: 4, Cout: 4, KH: 4, KW: 4, Stride: 4}, n: 1, h: 16, w: 16},
		{spec: ConvSpec{Cin: 16, Cout: 16, KH: 3, KW: 3, Pad: Same(1)}, n: 5, h: 4, w: 4, aff: true, act: SiLU},
	}
	for len(cs) < count {
		s := ConvSpec{Cin: 1 + r.IntN(40), Cout: 1 + r.IntN(70), KH: 1 + r.IntN(4), KW: 1 + r.IntN(4),
			Stride: 1 + r.IntN(3), Dilation: 1 + r.IntN(2), Pad: Pad{r.IntN(3), r.IntN(3), r.IntN(3), r.IntN(3)}}
		if r.IntN(3) == 0 {
			s.KH, s.KW, s.Stride, s.Dilation, s.Pad = 3, 3, 1, 1, Same(1)
			s.Cin, s.Cout = roundUp(s.Cin, 8), roundUp(s.Cout, 8)
		}
		c := convCase{spec: s, n: 1 + r.IntN(3), h: 1 + r.IntN(8), w: 1 + r.IntN(67), up: r.IntN(4) == 0,
			aff: r.IntN(2) == 0, res: r.IntN(2) == 0, rowB: r.IntN(2) == 0,
			act: Activation(r.IntN(6)), out: []Activation{Identity, Identity, SiLU, GELU}[r.IntN(4)]}
		if s.Cin > 2 && r.IntN(3) == 0 {
			c.cat = 1 + r.IntN(s.Cin-1)
		}
		ho, wo := s.OutSize(c.h, c.w)
		if ho < 1 || wo < 1 {
			continue
		}
		cs = append(cs, c)
	}
	return cs
}

func (c *convCase) build(r *rand.Rand) (in Input, weight, bias []float32, ep Epilogue, size int) {
	s := c.spec.normal()
	in = Input{C: s.Cin - c.cat, C2: c.cat, Upsample: c.up, Act: c.act}
	in.X = randoms(r, c.n*c.h*c.w*in.C)
	if c.cat > 0 {
		in.X2 = randoms(r, c.n*c.h*c.w*c.cat)
	}
	if c.aff {
		in.Scale, in.Shift = randoms(r, c.n*s.Cin), randoms(r, c.n*s.Cin)
	}
	weight, bias = randoms(r, s.Cout*s.Cin*s.KH*s.KW), randoms(r, s.Cout)
	hi, wi := in.size(c.h, c.w)
	ho, wo := s.OutSize(hi, wi)
	size = c.n * ho * wo * s.Cout
	if c.res {
		ep.Residual = randoms(r, size)
		ep.Scale = 0.7
	}
	if c.rowB {
		ep.RowBias = randoms(r, c.n*s.Cout)
	}
	ep.Act = c.out
	return
}

func poisoned(n int) []float32 {
	s := make([]float32, n)
	for i := range s {
		s[i] = float32(math.NaN())
	}
	return s
}

func TestConv(t *testing.T) {
	pools := map[Tier][2]*Pool{}
	for _, tier := range Tiers() {
		pools[tier] = [2]*Pool{NewPool(tier, 1), NewPool(tier, 3)}
		defer pools[tier][0].Close()
		defer pools[tier][1].Close()
	}
	for _, dt := range []DType{F32, BF16, F32OnF16, F32OnBF16} {
		r := rng(5)
		count := 44
		if dt != F32 {
			count = 24
		}
		for i, c := range convCases(r, count) {
			in, weight, bias, ep, _ := c.build(r)
			switch dt {
			case F32OnBF16:
				roundRowGo(weight)
			case F32OnF16:
				for i, v := range weight {
					weight[i] = half.Float16(half.ToFloat16(v))
				}
			}
			want := refConv(c.spec, &in, c.n, c.h, c.w, weight, bias, ep, dt == BF16)
			for _, tier := range Tiers() {
				for _, how := range methods(c.spec) {
					t.Run(fmt.Sprintf("%v/%v/%d/%d", tier, dt, i, how), func(t *testing.T) {
						layer := newConv(tier, dt, c.spec.normal(), weight, bias, how)
						c.check(t, layer, pools[tier], in, ep, want, dt)
					})
				}
			}
		}
	}
}

// check compares a layer with the definition, one worker with three and a
// batch with its images.
func (c *convCase) check(t *testing.T, layer *Conv, pools [2]*Pool, in Input, ep Epilogue, want []float64, dt DType) {
	tol := 3e-6
	if dt == BF16 && (c.aff || c.act != Identity) {
		tol = 3e-3 // a rounded input may fall to the other neighbour
	}
	one, three := poisoned(len(want)), poisoned(len(want))
	layer.Run(pools[0], one, in, c.n, c.h, c.w, poisoned(layer.Scratch(1, c.n, c.h, c.w, c.up)), ep)
	within(t, fmt.Sprintf("%+v", c), one, want, tol)
	layer.Run(pools[1], three, in, c.n, c.h, c.w, poisoned(layer.Scratch(3, c.n, c.h, c.w, c.up)), ep)
	sameBits(t, "1 worker against 3", one, three)
	per := len(want) / c.n
	for b := range c.n {
		img, e := in, ep
		img.X = in.X[b*c.h*c.w*in.C:]
		if c.cat > 0 {
			img.X2 = in.X2[b*c.h*c.w*c.cat:]
		}
		if c.aff {
			img.Scale, img.Shift = in.Scale[b*c.spec.Cin:], in.Shift[b*c.spec.Cin:]
		}
		if c.res {
			e.Residual = ep.Residual[b*per:]
		}
		if c.rowB {
			e.RowBias = ep.RowBias[b*c.spec.Cout:]
		}
		got := poisoned(per)
		layer.Run(pools[1], got, img, 1, c.h, c.w, poisoned(layer.Scratch(3, 1, c.h, c.w, c.up)), e)
		sameBits(t, fmt.Sprintf("image %d alone", b), got, one[b*per:(b+1)*per])
	}
}

// TestConvPairs runs the layers of the bfloat16 tiers on the portable twins
// of their kernels.
func TestConvPairs(t *testing.T) {
	for _, twin := range []struct {
		tier          Tier
		pairs, mr, kc int
	}{{twinBF16, 2, 12, 256}, {twinAMX, 2 * tileRows, tileRows, 1 << 30}} {
		o := portableOps
		o.tier, o.pairs, o.mr, o.nr, o.kc = twin.tier, twin.pairs, twin.mr, 32, twin.kc
		one, three := NewPool(Portable, 1), NewPool(Portable, 3)
		defer one.Close()
		defer three.Close()
		r := rng(9)
		for i, c := range convCases(r, 40) {
			in, weight, bias, ep, size := c.build(r)
			layer := newConvOn(&o, Portable, BF16, c.spec.normal(), weight, bias, direct)
			want := refConv(c.spec, &in, c.n, c.h, c.w, weight, bias, ep, true)
			got, other := poisoned(size), poisoned(size)
			layer.Run(one, got, in, c.n, c.h, c.w, poisoned(layer.Scratch(1, c.n, c.h, c.w, c.up)), ep)
			tol := 3e-6
			if c.aff || c.act != Identity {
				tol = 3e-3
			}
			within(t, fmt.Sprintf("%v %d %+v", twin, i, c), got, want, tol)
			layer.Run(three, other, in, c.n, c.h, c.w, poisoned(layer.Scratch(3, c.n, c.h, c.w, c.up)), ep)
			sameBits(t, "1 worker against 3", got, other)
		}

		// Two layers at a time against one after the other.
		const n, m, in, mid = 2, 37, 40, 70
		layer := func(cin, cout int) *Linear {
			spec := ConvSpec{Cin: cin, Cout: cout, KH: 1, KW: 1}.normal()
			return &Linear{newConvOn(&o, Portable, BF16, spec, randoms(r, cin*cout), randoms(r, cout), direct)}
		}
		first, second := layer(in, mid), layer(mid, in)
		x, gate := randoms(r, n*m*in), randoms(r, n*in)
		src := Input{X: x, C: in, Norm: &RowNorm{Eps: 1e-5}}
		ep := Epilogue{Residual: x, Gate: gate}
		hidden, want, got := poisoned(n*m*mid), poisoned(len(x)), poisoned(len(x))
		first.RunInput(three, hidden, src, n, m, poisoned(first.ScratchInput(3, n, m)), Epilogue{Act: GELU})
		second.RunInput(three, want, Input{X: hidden, C: mid}, n, m, poisoned(second.ScratchInput(3, n, m)), ep)
		FeedForward(three, got, src, n, m, first, second, GELU, poisoned(FeedForwardScratch(3, m, first, second)), ep)
		sameBits(t, "feed forward", got, want)
	}
}

// TestMethodAccuracy holds the error of each method on the shapes that it is
// chosen for: activations after SiLU, against float64.
func TestMethodAccuracy(t *testing.T) {
	bounds := map[method]map[int]float64{
		direct: {32: 5e-7, 128: 9e-7, 256: 1.2e-6, 512: 1.6e-6},
		wino2:  {32: 3e-7, 128: 5e-7, 256: 7e-7, 512: 1e-6},
		wino4:  {32: 8e-7, 128: 1.2e-6, 256: 1.7e-6, 512: 2.3e-6},
	}
	for _, tier := range Tiers() {
		p := NewPool(tier, 1)
		defer p.Close()
		for _, c := range []int{32, 128, 256, 512} {
			r := rng(uint64(c))
			spec := ConvSpec{Cin: c, Cout: 16, KH: 3, KW: 3, Pad: Same(1)}.normal()
			const h = 6
			x := randoms(r, h*h*c)
			for i, v := range x {
				x[i] = SiLU.eval(v)
			}
			weight := randoms(r, 16*c*9)
			in := Input{X: x, C: c}
			want := refConv(spec, &in, 1, h, h, weight, nil, Epilogue{}, false)
			for _, how := range []method{direct, wino2, wino4} {
				l := newConv(tier, F32, spec, weight, nil, how)
				got := poisoned(len(want))
				l.Run(p, got, in, 1, h, h, poisoned(l.Scratch(1, 1, h, h, false)), Epilogue{})
				e := relErr(got, want)
				t.Logf("%v method %d, %d channels: %.2g", tier, how, c, e)
				if !(e <= bounds[how][c]) {
					t.Errorf("%v method %d, %d channels: error %.3g, allowed %.3g", tier, how, c, e, bounds[how][c])
				}
			}
		}
	}
}

// TestMethodOf holds which method a shape takes.
func TestMethodOf(t *testing.T) {
	s := func(cin, cout, h int) ConvSpec {
		return ConvSpec{Cin: cin, Cout: cout, KH: 3, KW: 3, Pad: Same(1), H: h, W: h}.normal()
	}
	for _, c := range []struct {
		tier  Tier
		dtype DType
		spec  ConvSpec
		want  method
	}{
		{AVX2, F32, s(128, 128, 32), wino4},
		{AVX2, F32, s(128, 128, 0), wino4},
		{AVX2, F32, s(256, 256, 8), wino2},
		{AVX2, F32, s(512, 256, 8), direct},
		{AVX2, F32, s(256, 256, 4), direct},
		{AVX2, F32, s(128, 128, 4), wino2},
		{AVX512, F32OnF16, s(128, 128, 32), wino4},
		{AVX2, F32, s(256, 256, 2), direct},
		{AVX2, F32, s(96, 96, 7), wino4},
		{AVX2, F32, s(1280, 1280, 16), wino4},
		{AVX2, F32, s(1280, 1280, 8), direct},
		{AVX512BF16, BF16, s(1280, 1280, 16), wino4},
		{AVX2, F32, s(3, 128, 32), direct},
		{AVX2, F32, s(20, 128, 32), direct},
		{AVX2, BF16, s(128, 128, 32), wino4},
		{AVX512BF16, BF16, s(128, 128, 32), wino4},
		{AVX512BF16, BF16, s(256, 256, 8), direct},
		{AMX, BF16, s(128, 128, 32), direct},
		{AMX, F32, s(128, 128, 32), wino4},
		{AVX2, F32, ConvSpec{Cin: 64, Cout: 64, KH: 3, KW: 3, Stride: 2, Dilation: 1, H: 32, W: 32}, direct},
	} {
		if got := methodOf(c.tier, c.dtype, c.spec); got != c.want {
			t.Errorf("%v %v %+v: method %d, want %d", c.tier, c.dtype, c.spec, got, c.want)
		}
	}
}

func TestConvGrad(t *testing.T) {
	r := rng(7)
	specs := []struct {
		s    ConvSpec
		h, w int
	}{
		{ConvSpec{Cin: 5, Cout: 7, KH: 3, KW: 3, Pad: Same(1)}, 6, 9},
		{ConvSpec{Cin: 16, Cout: 16, KH: 3, KW: 3, Pad: Same(1)}, 8, 8},
		{ConvSpec{Cin: 5, Cout: 7, KH: 3, KW: 3, Stride: 2, Pad: Same(1)}, 8, 8},
		{ConvSpec{Cin: 5, Cout: 7, KH: 3, KW: 3, Stride: 2, Pad: Pad{0, 0, 1, 1}}, 8, 8},
		{ConvSpec{Cin: 6, Cout: 4, KH: 1, KW: 1}, 3, 5},
		{ConvSpec{Cin: 4, Cout: 4, KH: 1, KW: 5, Dilation: 2, Pad: Pad{0, 4, 0, 4}}, 1, 20},
		{ConvSpec{Cin: 4, Cout: 4, KH: 4, KW: 4, Stride: 4}, 8, 8},
		{ConvSpec{Cin: 3, Cout: 4, KH: 3, KW: 3, Stride: 2}, 9, 10},
	}
	const n = 2
	for _, tier := range Tiers() {
		pool := NewPool(tier, 2)
		defer pool.Close()
		for _, c := range specs {
			s := c.s.normal()
			ho, wo := s.OutSize(c.h, c.w)
			weight, dy := randoms(r, s.Cout*s.Cin*s.KH*s.KW), randoms(r, n*ho*wo*s.Cout)
			other := randoms(r, n*c.h*c.w*s.Cin)
			want := wide(other)
			for b := range n {
				for y := range ho {
					for x := range wo {
						for o := range s.Cout {
							g := float64(dy[((b*ho+y)*wo+x)*s.Cout+o])
							for ky := range s.KH {
								for kx := range s.KW {
									iy, ix := y*s.Stride+ky*s.Dilation-s.Pad.Top, x*s.Stride+kx*s.Dilation-s.Pad.Left
									if iy < 0 || iy >= c.h || ix < 0 || ix >= c.w {
										continue
									}
									for ch := range s.Cin {
										want[((b*c.h+iy)*c.w+ix)*s.Cin+ch] += g * float64(weight[((o*s.Cin+ch)*s.KH+ky)*s.KW+kx])
									}
								}
							}
						}
					}
				}
			}
			g := NewConvGrad(tier, F32, c.s, weight)
			dx := poisoned(n * c.h * c.w * s.Cin)
			g.Run(pool, dx, dy, n, c.h, c.w, poisoned(g.Scratch(2, n, c.h, c.w)), Epilogue{Residual: other})
			within(t, fmt.Sprintf("%v %+v", tier, c), dx, want, 3e-6)
		}
	}
}
