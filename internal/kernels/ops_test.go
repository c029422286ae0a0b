package kernels

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"
)

// forTiers runs f on pools of 1 and 3 workers of every tier and compares
// their results bit for bit.
func forTiers(t *testing.T, f func(t *testing.T, p *Pool) []float32) {
	for _, tier := range Tiers() {
		t.Run(tier.String(), func(t *testing.T) {
			var got [2][]float32
			for i, w := range []int{1, 3} {
				p := NewPool(tier, w)
				defer p.Close()
				got[i] = f(t, p)
			}
			sameBits(t, "1 worker against 3", got[0], got[1])
		})
	}
}

func TestLinear(t *testing.T) {
	for _, c := range []struct{ m, in, out int }{{1, 1, 1}, {1, 128, 512}, {7, 33, 17}, {61, 64, 48}, {500, 40, 160}, {3, 1000, 24}, {13, 800, 64}} {
		forTiers(t, func(t *testing.T, p *Pool) []float32 {
			r := rng(uint64(c.m))
			w, b, x, res := randoms(r, c.in*c.out), randoms(r, c.out), randoms(r, c.m*c.in), randoms(r, c.m*c.out)
			want := make([]float64, c.m*c.out)
			for i := range c.m {
				for o := range c.out {
					s := float64(b[o]) + float64(res[i*c.out+o])
					for k := range c.in {
						s += float64(x[i*c.in+k]) * float64(w[o*c.in+k])
					}
					want[i*c.out+o] = refAct(GELU, s)
				}
			}
			l := NewLinear(p.Tier(), F32, c.in, c.out, w, b)
			got := poisoned(c.m * c.out)
			l.Run(p, got, x, c.m, poisoned(l.Scratch(p.Workers(), c.m)), Epilogue{Residual: res, Act: GELU})
			within(t, fmt.Sprintf("%+v", c), got, want, 2e-6)
			over := append([]float32{}, res...)
			l.Run(p, over, x, c.m, poisoned(l.Scratch(p.Workers(), c.m)), Epilogue{Residual: over, Act: GELU})
			sameBits(t, "the residual's place as output", over, got)

			g := NewLinearGrad(p.Tier(), F32, c.in, c.out, w)
			dx := poisoned(c.m * c.in)
			g.Run(p, dx, res, c.m, poisoned(g.Scratch(p.Workers(), c.m)), Epilogue{})
			back := make([]float64, c.m*c.in)
			for i := range c.m {
				for o := range c.out {
					for k := range c.in {
						back[i*c.in+k] += float64(res[i*c.out+o]) * float64(w[o*c.in+k])
					}
				}
			}
			within(t, "gradient", dx, back, 2e-6)
			return got
		})
	}
}

// TestFused compares what reads and writes rows on its way with the functions
// of their own, bit for bit.
func TestFused(t *testing.T) {
	for i, c := range []struct{ n, m, in, mid, out int }{{1, 1, 5, 9, 5}, {2, 31, 64, 200, 64}, {2, 300, 24, 96, 24}, {1, 50, 40, 1300, 40}, {3, 7, 96, 64, 8}, {1, 70, 33, 47, 35}} {
		for _, dt := range []DType{F32, BF16} {
			forTiers(t, func(t *testing.T, p *Pool) []float32 {
				r := rng(uint64(i))
				first := NewLinear(p.Tier(), dt, c.in, c.mid, randoms(r, c.in*c.mid), randoms(r, c.mid))
				second := NewLinear(p.Tier(), dt, c.mid, c.out, randoms(r, c.mid*c.out), randoms(r, c.out))
				x, gamma, beta, gate := randoms(r, c.n*c.m*c.in), randoms(r, c.n*c.in), randoms(r, c.n*c.in), randoms(r, c.n*c.out)
				res, bias := randoms(r, c.n*c.m*c.out), randoms(r, c.n*c.out)
				scratch := func(l *Linear) []float32 { return poisoned(l.ScratchInput(p.Workers(), c.n, c.m)) }
				work := poisoned(FeedForwardScratch(p.Workers(), c.m, first, second))
				var all []float32
				for _, norm := range []*RowNorm{{Eps: 1e-5, Gamma: gamma, Beta: beta}, {RMS: true, Eps: 1e-6, Gamma: gamma[:c.in]}, nil} {
					h, mid, y, want := append([]float32{}, x...), poisoned(c.n*c.m*c.mid), poisoned(c.n*c.m*c.out), poisoned(c.n*c.m*c.out)
					if norm != nil && norm.RMS {
						RMSNorm(p, h, x, c.n, c.m, c.in, norm.Eps, norm.Gamma)
					} else if norm != nil {
						LayerNorm(p, h, x, c.n, c.m, c.in, norm.Eps, norm.Gamma, norm.Beta)
					}
					first.RunInput(p, mid, Input{X: h, C: c.in}, c.n, c.m, scratch(first), Epilogue{})
					Activate(p, mid, mid, GELUTanh)
					second.RunInput(p, y, Input{X: mid, C: c.mid}, c.n, c.m, scratch(second), Epilogue{})
					Gate(p, want, res, y, gate, c.n, c.m, c.out)

					in := Input{X: x, C: c.in, Norm: norm}
					got := poisoned(len(mid))
					first.RunInput(p, got, in, c.n, c.m, scratch(first), Epilogue{Act: GELUTanh})
					sameBits(t, fmt.Sprintf("%+v %v: a norm and an activation", c, dt), got, mid)
					over := append([]float32{}, res...)
					second.RunInput(p, over, Input{X: mid, C: c.mid}, c.n, c.m, scratch(second), Epilogue{Residual: over, Gate: gate})
					sameBits(t, fmt.Sprintf("%+v %v: a gate", c, dt), over, want)
					copy(over, res)
					FeedForward(p, over, in, c.n, c.m, first, second, GELUTanh, work, Epilogue{Residual: over, Gate: gate})
					sameBits(t, fmt.Sprintf("%+v %v: feed forward", c, dt), over, want)

					ep := Epilogue{RowBias: bias, Residual: res, Scale: 0.5, Act: SiLU}
					second.RunInput(p, want, Input{X: mid, C: c.mid}, c.n, c.m, scratch(second), ep)
					FeedForward(p, over, in, c.n, c.m, first, second, GELUTanh, work, ep)
					sameBits(t, fmt.Sprintf("%+v %v: feed forward with the rest", c, dt), over, want)
					all = append(all, over...)
				}
				return all
			})
		}
	}
}

func TestMatMul(t *testing.T) {
	for i, s := range []MatMulSpec{
		{Batch: 1, M: 1, N: 1, K: 1},
		{Batch: 3, M: 7, N: 19, K: 11},
		{Batch: 2, M: 100, N: 33, K: 400, Scale: 0.5},
		{Batch: 2, M: 13, N: 40, K: 9, TransA: true},
		{Batch: 2, M: 17, N: 23, K: 31, TransB: true},
		{Batch: 2, M: 24, N: 32, K: 16, TransA: true, TransB: true},
		{Batch: 2, M: 5, N: 6, K: 7, LdA: 20, LdB: 11, LdC: 9},
		{Batch: 2, M: 25, N: 37, K: 500, Add: true},
	} {
		forTiers(t, func(t *testing.T, p *Pool) []float32 {
			n := s.normal()
			r := rng(uint64(i))
			a, b := randoms(r, n.Batch*n.StepA), randoms(r, n.Batch*n.StepB)
			got := make([]float32, n.Batch*n.StepC)
			want := make([]float64, len(got))
			for bt := range n.Batch {
				for y := range n.M {
					for x := range n.N {
						var sum float64
						for k := range n.K {
							ia, ib := y*n.LdA+k, k*n.LdB+x
							if n.TransA {
								ia = k*n.LdA + y
							}
							if n.TransB {
								ib = x*n.LdB + k
							}
							sum += float64(a[bt*n.StepA+ia]) * float64(b[bt*n.StepB+ib])
						}
						if n.Scale != 0 {
							sum *= float64(n.Scale)
						}
						want[bt*n.StepC+y*n.LdC+x] = sum
					}
				}
			}
			if s.Add {
				got = randoms(r, len(got))
				for i, v := range got {
					want[i] += float64(v)
				}
			}
			MatMul(p, got, a, b, s, poisoned(MatMulScratch(p, s)))
			within(t, fmt.Sprintf("%+v", s), got, want, 2e-6)
			return got
		})
	}
}

// refAttention gives the output and, for a gradient dout, those of q, k, v.
func refAttention(s AttentionSpec, q, k, v, dout []float32) (out, dq, dk, dv []float64) {
	s = s.normal()
	out, dq, dk, dv = make([]float64, len(dout)), make([]float64, len(q)), make([]float64, len(k)), make([]float64, len(v))
	for b := range s.Batch {
		for h := range s.Heads {
			for t := range s.Tq {
				p := make([]float64, s.Tk)
				top := math.Inf(-1)
				qi, oi := (b*s.Tq+t)*s.LdQ+h*s.D, (b*s.Tq+t)*s.LdO+h*s.D
				for i := range p {
					ki := (b*s.Tk+i)*s.LdK + h*s.D
					for d := range s.D {
						p[i] += float64(q[qi+d]) * float64(k[ki+d])
					}
					p[i] *= float64(s.Scale)
					if s.KeyBias != nil {
						p[i] += float64(s.KeyBias[b*s.Tk+i])
					}
					if s.Bias != nil {
						p[i] += float64(s.Bias[(h*s.Tq+t)*s.Tk+i])
					}
					if s.Causal && i > t {
						p[i] = math.Inf(-1)
					}
					top = max(top, p[i])
				}
				if math.IsInf(top, -1) {
					continue
				}
				var sum, mean float64
				for i := range p {
					p[i] = math.Exp(p[i] - top)
					sum += p[i]
				}
				dp := make([]float64, s.Tk)
				for i := range p {
					p[i] /= sum
					vi := (b*s.Tk+i)*s.LdV + h*s.D
					for d := range s.D {
						out[oi+d] += p[i] * float64(v[vi+d])
						dv[vi+d] += p[i] * float64(dout[oi+d])
						dp[i] += float64(dout[oi+d]) * float64(v[vi+d])
					}
					mean += p[i] * dp[i]
				}
				for i := range p {
					ds := p[i] * (dp[i] - mean) * float64(s.Scale)
					ki := (b*s.Tk+i)*s.LdK + h*s.D
					for d := range s.D {
						dq[qi+d] += ds * float64(k[ki+d])
						dk[ki+d] += ds * float64(q[qi+d])
					}
				}
			}
		}
	}
	return
}

func TestAttention(t *testing.T) {
	inf := float32(math.Inf(-1))
	mask := func(batch, tk int) []float32 {
		m := make([]float32, batch*tk)
		for i := range m {
			switch i % 3 {
			case 0:
				m[i] = inf
			case 1:
				m[i] = float32(i) / 50
			}
		}
		return m
	}
	gone := make([]float32, 2*600)
	for i := range 600 {
		gone[i] = inf // the first row of the batch sees nothing
	}
	late := make([]float32, 2*600)
	for i := range late {
		if i%600 < 300 {
			late[i] = inf // a whole block of hidden keys first
		}
	}
	for i, s := range []AttentionSpec{
		{Batch: 1, Heads: 1, Tq: 1, Tk: 1, D: 1},
		{Batch: 2, Heads: 3, Tq: 49, Tk: 49, D: 8},
		{Batch: 2, Heads: 2, Tq: 33, Tk: 77, D: 40},
		{Batch: 1, Heads: 2, Tq: 100, Tk: 300, D: 17},
		{Batch: 1, Heads: 1, Tq: 31, Tk: 1000, D: 64, Scale: 0.3},
		{Batch: 1, Heads: 4, Tq: 77, Tk: 77, D: 16, Causal: true},
		{Batch: 1, Heads: 1, Tq: 300, Tk: 300, D: 8, Causal: true},
		{Batch: 2, Heads: 2, Tq: 20, Tk: 35, D: 24, KeyBias: mask(2, 35)},
		{Batch: 2, Heads: 1, Tq: 5, Tk: 600, D: 8, KeyBias: gone},
		{Batch: 2, Heads: 1, Tq: 5, Tk: 600, D: 8, KeyBias: late},
		{Batch: 2, Heads: 2, Tq: 10, Tk: 10, D: 12, LdQ: 72, LdK: 72, LdV: 72},
		{Batch: 2, Heads: 3, Tq: 9, Tk: 11, D: 7, Bias: mask(3, 9*11)},
		{Batch: 2, Heads: 2, Tq: 20, Tk: 300, D: 16, Bias: mask(2, 20*300), KeyBias: mask(2, 300), Causal: true},
	} {
		forTiers(t, func(t *testing.T, p *Pool) []float32 {
			n := s.normal()
			r := rng(uint64(i))
			q, k, v := randoms(r, n.Batch*n.Tq*n.LdQ), randoms(r, n.Batch*n.Tk*n.LdK), randoms(r, n.Batch*n.Tk*n.LdV)
			do := randoms(r, n.Batch*n.Tq*n.LdO)
			out, dq, dk, dv := refAttention(s, q, k, v, do)
			got := make([]float32, len(do))
			Attention(p, got, q, k, v, s, poisoned(AttentionScratch(p, s)))
			within(t, fmt.Sprintf("%+v", s), got, out, 3e-6)
			gq, gk, gv := make([]float32, len(q)), make([]float32, len(k)), make([]float32, len(v))
			AttentionVJP(p, gq, gk, gv, do, q, k, v, s, poisoned(AttentionVJPScratch(p, s)))
			within(t, "dq", gq, dq, 5e-6)
			within(t, "dk", gk, dk, 5e-6)
			within(t, "dv", gv, dv, 5e-6)
			attentionVJP(p, gq, gk, gv, do, q, k, v, &n, min(7, s.Tq), poisoned(AttentionVJPScratch(p, s)))
			within(t, "dq in blocks", gq, dq, 5e-6)
			within(t, "dk in blocks", gk, dk, 5e-6)
			within(t, "dv in blocks", gv, dv, 5e-6)
			// Large scores must not overflow.
			for i := range q {
				q[i] *= 100
			}
			Attention(p, got, q, k, v, s, poisoned(AttentionScratch(p, s)))
			out, _, _, _ = refAttention(s, q, k, v, do)
			within(t, "large scores", got, out, 3e-4)
			return got
		})
		// bfloat16: by the tiers that have it, and by the twin of their kernel.
		r := rng(uint64(100 + i))
		n := s.normal()
		s.DType = BF16
		round := func(x []float32) []float32 { roundRowGo(x); return x }
		q, k, v := round(randoms(r, n.Batch*n.Tq*n.LdQ)), round(randoms(r, n.Batch*n.Tk*n.LdK)), round(randoms(r, n.Batch*n.Tk*n.LdV))
		out, _, _, _ := refAttention(s, q, k, v, make([]float32, n.Batch*n.Tq*n.LdO))
		forTiers(t, func(t *testing.T, p *Pool) []float32 {
			got := make([]float32, len(out))
			Attention(p, got, q, k, v, s, poisoned(AttentionScratch(p, s)))
			within(t, fmt.Sprintf("bf16 %+v", s), got, out, 3e-3) // the softmax is rounded
			return got
		})
		twin := portableOps
		twin.tier, twin.pairs, twin.mr, twin.nr = twinBF16, 2, 12, 32
		p := NewPool(Portable, 2)
		got := make([]float32, len(out))
		attend(p, &twin, got, q, k, v, s, poisoned(attentionScratch(p, &twin, s)))
		p.Close()
		within(t, fmt.Sprintf("bf16 twin %+v", s), got, out, 3e-3)
	}
}

func TestGroupNorm(t *testing.T) {
	for i, c := range []struct {
		n, hw, c, c2, groups int
		mean                 float32
		perImage             bool
	}{
		{1, 1, 8, 0, 2, 0, false}, {2, 49, 96, 0, 32, 0, false}, {3, 100, 30, 0, 5, 100, true}, {2, 65, 24, 12, 4, 3, false}, {1, 200, 64, 32, 32, 0, true},
	} {
		forTiers(t, func(t *testing.T, p *Pool) []float32 {
			r := rng(uint64(i))
			ch := c.c + c.c2
			in := Input{X: randoms(r, c.n*c.hw*c.c), C: c.c, C2: c.c2}
			if c.c2 > 0 {
				in.X2 = randoms(r, c.n*c.hw*c.c2)
			}
			for i := range in.X {
				in.X[i] += c.mean
			}
			gl := ch
			if c.perImage {
				gl = c.n * ch
			}
			gamma, beta := randoms(r, gl), randoms(r, gl)
			scale, shift := make([]float32, c.n*ch), make([]float32, c.n*ch)
			GroupNorm(p, scale, shift, in, c.n, c.hw, c.groups, 1e-5, gamma, beta, poisoned(GroupNormScratch(c.n, c.hw, ch)))
			in.Scale, in.Shift, in.Act = scale, shift, SiLU
			got := poisoned(c.n * c.hw * ch)
			Apply(p, got, in, c.n, 1, c.hw)

			plain := in
			plain.Scale, plain.Act = nil, Identity
			x, _, _ := refInput(&plain, c.n, 1, c.hw)
			want := make([]float64, len(x))
			dy := randoms(r, len(x))
			wantDx := make([]float64, len(x))
			per := ch / c.groups
			for n := range c.n {
				for g := range c.groups {
					var sum, sq, s1, s2 float64
					each := func(f func(i, ch int)) {
						for y := range c.hw {
							for q := range per {
								f((n*c.hw+y)*ch+g*per+q, g*per+q)
							}
						}
					}
					count := float64(c.hw * per)
					each(func(i, _ int) { sum += x[i] })
					mean := sum / count
					each(func(i, _ int) { sq += (x[i] - mean) * (x[i] - mean) })
					rstd := 1 / math.Sqrt(sq/count+1e-5)
					grad := func(i, k int) (xh, gr float64) {
						k = vectorAt(gl, n, k, ch)
						xh = (x[i] - mean) * rstd
						z := xh*float64(gamma[k]) + float64(beta[k])
						want[i] = refAct(SiLU, z)
						sg := 1 / (1 + math.Exp(-z))
						return xh, float64(dy[i]) * sg * (1 + z*(1-sg)) * float64(gamma[k])
					}
					each(func(i, k int) { xh, gr := grad(i, k); s1 += gr / count; s2 += gr * xh / count })
					each(func(i, k int) { xh, gr := grad(i, k); wantDx[i] = rstd * (gr - s1 - xh*s2) })
				}
			}
			tol := 1e-6 * (1 + float64(c.mean))
			within(t, fmt.Sprintf("%+v", c), got, want, tol)
			if c.c2 == 0 && c.hw > 1 {
				dx := poisoned(len(x))
				GroupNormVJP(p, dx, dy, in.X, c.n, c.hw, ch, c.groups, 1e-5, gamma, beta, SiLU)
				within(t, "gradient", dx, wantDx, tol)
			}
			return got
		})
	}
}

func TestRowNorms(t *testing.T) {
	for i, c := range []struct{ n, m, c int }{{1, 1, 1}, {2, 3, 5}, {2, 30, 64}, {1, 17, 1153}} {
		for _, perImage := range []bool{false, true} {
			forTiers(t, func(t *testing.T, p *Pool) []float32 {
				r := rng(uint64(i))
				x := randoms(r, c.n*c.m*c.c)
				for i := range x {
					x[i] += 5
				}
				gl := c.c
				if perImage {
					gl *= c.n
				}
				gamma, beta, dy := randoms(r, gl), randoms(r, gl), randoms(r, len(x))
				ln, rms, dln, drms := make([]float64, len(x)), make([]float64, len(x)), make([]float64, len(x)), make([]float64, len(x))
				for row := range c.n * c.m {
					at := row * c.c
					var sum, sq, ss float64
					for k := range c.c {
						sum += float64(x[at+k])
						ss += float64(x[at+k]) * float64(x[at+k])
					}
					cnt := float64(c.c)
					mean := sum / cnt
					for k := range c.c {
						d := float64(x[at+k]) - mean
						sq += d * d
					}
					rstd, rr := 1/math.Sqrt(sq/cnt+1e-5), 1/math.Sqrt(ss/cnt+1e-6)
					var g1, g2, g3 float64
					for k := range c.c {
						gi := vectorAt(gl, row/c.m, k, c.c)
						xh, xr := (float64(x[at+k])-mean)*rstd, float64(x[at+k])*rr
						ln[at+k] = xh*float64(gamma[gi]) + float64(beta[gi])
						rms[at+k] = xr * float64(gamma[gi])
						g := float64(dy[at+k]) * float64(gamma[gi])
						g1 += g / cnt
						g2 += g * xh / cnt
						g3 += g * xr / cnt
					}
					for k := range c.c {
						gi := vectorAt(gl, row/c.m, k, c.c)
						g := float64(dy[at+k]) * float64(gamma[gi])
						dln[at+k] = rstd * (g - g1 - (float64(x[at+k])-mean)*rstd*g2)
						drms[at+k] = rr * (g - float64(x[at+k])*rr*g3)
					}
				}
				got := poisoned(len(x))
				LayerNorm(p, got, x, c.n, c.m, c.c, 1e-5, gamma, beta)
				within(t, "layer norm", got, ln, 4e-6)
				all := append([]float32{}, got...)
				RMSNorm(p, got, x, c.n, c.m, c.c, 1e-6, gamma)
				within(t, "rms norm", got, rms, 1e-6)
				all = append(all, got...)
				if c.c > 1 {
					LayerNormVJP(p, got, dy, x, c.n, c.m, c.c, 1e-5, gamma)
					within(t, "layer norm gradient", got, dln, 1e-5)
					RMSNormVJP(p, got, dy, x, c.n, c.m, c.c, 1e-6, gamma)
					within(t, "rms norm gradient", got, drms, 1e-5)
				}
				LayerNorm(p, got, x, c.n, c.m, c.c, 1e-5, nil, nil)
				return append(all, got...)
			})
		}
	}
}

func TestActivations(t *testing.T) {
	// Every size of tail, and values where careless forms overflow.
	edge := []float32{0, 1, -1, 88, -88, 89, -89, 1000, -1000, 3e38, -3e38, 1e-30, -1e-30, 5, -5, -12, 12}
	for act := Identity; act <= ReLU; act++ {
		for n := range 18 {
			forTiers(t, func(t *testing.T, p *Pool) []float32 {
				x := randoms(rng(uint64(n)), n)
				for i := range x {
					x[i] *= 3
				}
				x = append(x, edge...)
				want, dwant := make([]float64, len(x)), make([]float64, len(x))
				for i, v := range x {
					want[i] = refAct(act, float64(v))
					h := 1e-5 * max(1, math.Abs(float64(v)))
					dwant[i] = (refAct(act, float64(v)+h) - refAct(act, float64(v)-h)) / (2 * h)
				}
				got := poisoned(len(x))
				Activate(p, got, x, act)
				for i, v := range got {
					if e := math.Abs(float64(v) - want[i]); !(e <= 6e-7*max(1, math.Abs(want[i]))) {
						t.Fatalf("%v(%v) = %v, want %v", act, x[i], v, want[i])
					}
				}
				within(t, act.String(), got[:n], want[:n], 4e-7)
				one := poisoned(len(x))
				for i := range one {
					one[i] = 1
				}
				ActivateVJP(p, one, one, x, act)
				for i, v := range one {
					if math.Abs(float64(x[i])) < 1e-3 || math.Abs(float64(x[i])) > 1e4 {
						continue
					}
					if math.Abs(float64(v)-dwant[i]) > 1e-4 {
						t.Fatalf("%v'(%v) = %v, want %v", act, x[i], v, dwant[i])
					}
				}
				return got
			})
		}
	}
}

// TestNaN holds that no kernel hides a NaN.
func TestNaN(t *testing.T) {
	nan := float32(math.NaN())
	for _, tier := range Tiers() {
		p := NewPool(tier, 1)
		defer p.Close()
		for act := Identity; act <= ReLU; act++ {
			x := make([]float32, 11)
			x[3], x[9] = nan, nan
			Activate(p, x, x, act)
			if x[3] == x[3] || x[9] == x[9] || x[0] != 0 {
				t.Errorf("%v: %v of NaN is %v, of 0 is %v", tier, act, x[3], x[0])
			}
		}
		x := make([]float32, 20)
		x[5] = nan
		Softmax(p, x, x, 1, 20, 1)
		if x[0] == x[0] {
			t.Errorf("%v: softmax hides NaN", tier)
		}
		q := make([]float32, 16*8)
		k := make([]float32, 16*8)
		q[0] = nan
		out := make([]float32, 16*8)
		s := AttentionSpec{Batch: 1, Heads: 1, Tq: 16, Tk: 16, D: 8}
		Attention(p, out, q, k, k, s, make([]float32, AttentionScratch(p, s)))
		if out[0] == out[0] || out[8] != 0 {
			t.Errorf("%v: attention over NaN gives %v, next token %v", tier, out[0], out[8])
		}
	}
}

func TestElementwise(t *testing.T) {
	for _, n := range []int{1, 7, 8, 9, 63, 40000} {
		forTiers(t, func(t *testing.T, p *Pool) []float32 {
			r := rng(uint64(n))
			a, b := randoms(r, n), randoms(r, n)
			want := make([]float64, n)
			for i := range want {
				want[i] = (float64(a[i]) + float64(b[i])) * 0.5
			}
			got := poisoned(n)
			Add(p, got, a, b, 0.5)
			within(t, "add", got, want, 1e-7)
			return got
		})
	}
	for _, c := range []struct{ m, d int }{{1, 1}, {3, 7}, {50, 64}, {2, 1025}} {
		forTiers(t, func(t *testing.T, p *Pool) []float32 {
			r := rng(uint64(c.d))
			x, dy := randoms(r, 2*c.m*c.d), randoms(r, c.m*c.d)
			soft := make([]float64, c.m*c.d)
			for i := range c.m {
				var sum float64
				for k := range c.d {
					soft[i*c.d+k] = math.Exp(2 * float64(dy[i*c.d+k]))
					sum += soft[i*c.d+k]
				}
				for k := range c.d {
					soft[i*c.d+k] /= sum
				}
			}
			var all []float32
			for act := Identity; act <= ReLU; act++ {
				want, dx := make([]float64, c.m*c.d), make([]float64, 2*c.m*c.d)
				for i := range c.m {
					for k := range c.d {
						a, b := float64(x[2*i*c.d+k]), float64(x[(2*i+1)*c.d+k])
						want[i*c.d+k] = a * refAct(act, b)
						g := float64(dy[i*c.d+k])
						dx[2*i*c.d+k] = g * refAct(act, b)
						dx[(2*i+1)*c.d+k] = g * a * (refAct(act, b+1e-6) - refAct(act, b-1e-6)) / 2e-6
					}
				}
				got, back := poisoned(c.m*c.d), poisoned(2*c.m*c.d)
				GLU(p, got, x, c.m, c.d, act)
				within(t, act.String()+" unit", got, want, 5e-7)
				GLUVJP(p, back, dy, x, c.m, c.d, act)
				within(t, act.String()+" unit's gradient", back, dx, 1e-6)
				all = append(all, got...)
			}
			got := poisoned(c.m * c.d)
			Softmax(p, got, dy, c.m, c.d, 2)
			within(t, "softmax", got, soft, 2e-6)
			return append(all, got...)
		})
	}
}

func TestGate(t *testing.T) {
	for _, c := range []struct{ n, m, c int }{{1, 1, 1}, {2, 3, 5}, {2, 30, 64}, {3, 7, 1153}} {
		forTiers(t, func(t *testing.T, p *Pool) []float32 {
			r := rng(uint64(c.c))
			x, y := randoms(r, c.n*c.m*c.c), randoms(r, c.n*c.m*c.c)
			var all []float32
			for _, size := range []int{c.c, c.n * c.c} {
				gate := randoms(r, size)
				sum, product := make([]float64, len(x)), make([]float64, len(x))
				for i := range x {
					product[i] = float64(y[i]) * float64(gate[vectorAt(size, i/c.c/c.m, i%c.c, c.c)])
					sum[i] = float64(x[i]) + product[i]
				}
				got := poisoned(len(x))
				Gate(p, got, x, y, gate, c.n, c.m, c.c)
				within(t, "gated sum", got, sum, 1e-7)
				Gate(p, got, nil, y, gate, c.n, c.m, c.c)
				within(t, "gated", got, product, 1e-7)
				copy(got, x)
				Gate(p, got, got, y, gate, c.n, c.m, c.c)
				within(t, "in place", got, sum, 1e-7)
				all = append(all, got...)
			}
			return all
		})
	}
}

// TestHeads norms and turns q and k inside joined projections.
func TestHeads(t *testing.T) {
	for _, s := range []HeadSpec{{N: 1, Tokens: 1, Heads: 1, D: 2}, {N: 2, Tokens: 5, Heads: 3, D: 10}, {N: 2, Tokens: 7, Heads: 2, D: 64, Ld: 400}, {N: 1, Tokens: 300, Heads: 2, D: 40, Ld: 240}} {
		forTiers(t, func(t *testing.T, p *Pool) []float32 {
			r := rng(uint64(s.D))
			ld := max(s.Ld, s.Heads*s.D)
			x, dy, gamma := randoms(r, s.N*s.Tokens*ld), randoms(r, s.N*s.Tokens*ld), randoms(r, s.D)
			cos, sin, back := make([]float32, s.Tokens*s.D/2), make([]float32, s.Tokens*s.D/2), make([]float32, s.Tokens*s.D/2)
			for i := range cos {
				a := r.Float64() * 7
				cos[i], sin[i], back[i] = float32(math.Cos(a)), float32(math.Sin(a)), -float32(math.Sin(a))
			}
			norm, grad := wide(x), wide(dy)
			turned := [2][]float64{wide(x), wide(x)}
			for v := range s.N * s.Tokens * s.Heads {
				token := v / s.Heads
				at := token*ld + v%s.Heads*s.D
				var ss, dot float64
				for k := range s.D {
					ss += float64(x[at+k]) * float64(x[at+k]) / float64(s.D)
				}
				rms := 1 / math.Sqrt(ss+1e-6)
				for k := range s.D {
					norm[at+k] = float64(x[at+k]) * rms * float64(gamma[k])
					dot += float64(dy[at+k]) * float64(gamma[k]) * float64(x[at+k]) * rms / float64(s.D)
				}
				for k := range s.D {
					grad[at+k] = rms * (float64(dy[at+k])*float64(gamma[k]) - float64(x[at+k])*rms*dot)
				}
				for i := range s.D / 2 {
					c, sn := float64(cos[token%s.Tokens*s.D/2+i]), float64(sin[token%s.Tokens*s.D/2+i])
					for pairing, at := range [2][2]int{{at + 2*i, at + 2*i + 1}, {at + i, at + i + s.D/2}} {
						a, b := float64(x[at[0]]), float64(x[at[1]])
						turned[pairing][at[0]], turned[pairing][at[1]] = a*c-b*sn, a*sn+b*c
					}
				}
			}
			got := append([]float32{}, x...)
			HeadRMSNorm(p, got, s, 1e-6, gamma)
			within(t, "norm", got, norm, 3e-7)
			all := append([]float32{}, got...)
			got = append([]float32{}, dy...)
			HeadRMSNormVJP(p, got, got, x, s, 1e-6, gamma)
			within(t, "norm's gradient", got, grad, 1e-6)
			for pairing, want := range turned {
				got := append([]float32{}, x...)
				Rotary(p, got, s, cos, sin, Pairing(pairing))
				within(t, "turned", got, want, 2e-7)
				all = append(all, got...)
				Rotary(p, got, s, cos, back, Pairing(pairing))
				within(t, "turned back", got, wide(x), 4e-7)
			}
			return all
		})
	}
}

func TestDepthwise(t *testing.T) {
	r := rng(21)
	for i := range 12 {
		c, kh, kw := 1+r.IntN(80), 1+r.IntN(5), 1+r.IntN(5)
		pad := Pad{r.IntN(kh), r.IntN(kw), r.IntN(kh), r.IntN(kw)}
		n, h, w := 1+r.IntN(2), kh+r.IntN(9), kw+r.IntN(20)
		weight, bias, x := randoms(r, c*kh*kw), randoms(r, c), randoms(r, n*h*w*c)
		ho, wo := h+pad.Top+pad.Bottom-kh+1, w+pad.Left+pad.Right-kw+1
		dy := randoms(r, n*ho*wo*c)
		want, back := make([]float64, len(dy)), make([]float64, len(x))
		for b := range n {
			for y := range ho {
				for xx := range wo {
					for ch := range c {
						o := ((b*ho+y)*wo+xx)*c + ch
						want[o] = float64(bias[ch])
						for ky := range kh {
							for kx := range kw {
								iy, ix := y+ky-pad.Top, xx+kx-pad.Left
								if iy < 0 || iy >= h || ix < 0 || ix >= w {
									continue
								}
								q, v := ((b*h+iy)*w+ix)*c+ch, float64(weight[(ch*kh+ky)*kw+kx])
								want[o] += v * float64(x[q])
								back[q] += v * float64(dy[o])
							}
						}
						want[o] = refAct(SiLU, want[o])
					}
				}
			}
		}
		forTiers(t, func(t *testing.T, p *Pool) []float32 {
			got, dx := poisoned(len(dy)), poisoned(len(x))
			d := NewDepthwise(c, kh, kw, pad, weight, bias)
			d.Run(p, got, x, n, h, w, SiLU)
			within(t, fmt.Sprintf("%d: %d channels by %dx%d, %+v", i, c, kh, kw, pad), got, want, 1e-6)
			NewDepthwiseGrad(c, kh, kw, pad, weight).Run(p, dx, dy, n, ho, wo, Identity)
			within(t, "gradient", dx, back, 1e-6)
			return append(got, dx...)
		})
	}
}

func TestDown2AndUpsample(t *testing.T) {
	const n, h, w, c = 2, 6, 10, 5
	forTiers(t, func(t *testing.T, p *Pool) []float32 {
		x := randoms(rng(1), n*h*w*c)
		up, down := poisoned(4*len(x)), poisoned(len(x))
		Apply(p, up, Input{X: x, C: c, Upsample: true}, n, h, w)
		want, _, _ := refInput(&Input{X: x, C: c, Upsample: true}, n, h, w)
		within(t, "upsample", up, want, 0)
		Down2(p, down, up, n, 2*h, 2*w, c, 0.25)
		sameBits(t, "mean of an upsampled image", down, x)
		return down
	})
}

func TestLayout(t *testing.T) {
	const n, c, hw = 2, 5, 37
	x := make([]float64, n*c*hw)
	for i := range x {
		x[i] = float64(i)
	}
	y := make([]float32, len(x))
	NCHWToNHWC(y, x, n, c, hw)
	if got := y[(1*hw+7)*c+3]; got != float32((1*c+3)*hw+7) {
		t.Fatalf("value (1,3,7) is %v", got)
	}
	back := make([]float64, len(x))
	NHWCToNCHW(back, y, n, c, hw)
	for i := range x {
		if back[i] != x[i] {
			t.Fatalf("value %d is %v", i, back[i])
		}
	}
}

func TestSyrk(t *testing.T) {
	for _, s := range []struct{ m, n int }{{1, 1}, {3, 2}, {130, 97}, {300, 200}, {5, 9}} {
		for _, tier := range Tiers() {
			var got [2][]float64
			for i, workers := range []int{1, 3} {
				p := NewPool(tier, workers)
				defer p.Close()
				r := rng(uint64(s.m))
				x := make([]float64, s.m*s.n)
				for i := range x {
					x[i] = r.NormFloat64()
				}
				c := make([]float64, s.n*s.n)
				for i := range c {
					c[i] = 1
				}
				Syrk(p, c, x, s.m, s.n, make([]float64, SyrkScratch(p)))
				for a := range s.n {
					for b := range s.n {
						want := 1.0
						for k := range s.m {
							if b >= a { // the rest is left alone
								want += x[k*s.n+a] * x[k*s.n+b]
							}
						}
						if math.Abs(c[a*s.n+b]-want) > 1e-11*float64(s.m) {
							t.Fatalf("%v %+v: (%d,%d) = %v, want %v", tier, s, a, b, c[a*s.n+b], want)
						}
					}
				}
				got[i] = c
			}
			for i, v := range got[0] {
				if v != got[1][i] {
					t.Fatalf("1 worker against 3 differ")
				}
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	for _, tier := range Tiers() {
		p := NewPool(tier, 2)
		defer p.Close()
		r := rng(1)
		const n, h, c = 2, 8, 32
		x, dst := randoms(r, n*h*h*c), make([]float32, n*h*h*c)
		res := randoms(r, len(x))
		gamma := randoms(r, c)
		scale, shift := make([]float32, n*c), make([]float32, n*c)
		gs := make([]float32, GroupNormScratch(n, h*h, c))
		spec := ConvSpec{Cin: c, Cout: c, KH: 3, KW: 3, Pad: Same(1)}
		var layers []*Conv
		for _, how := range []method{direct, wino2, wino4} {
			layers = append(layers, newConv(tier, F32, spec.normal(), randoms(r, c*c*9), gamma, how))
		}
		lin := NewLinear(tier, F32, c, c, randoms(r, c*c), nil)
		rowNorm := RowNorm{Gamma: gamma}
		depth := NewDepthwise(c, 3, 3, Same(1), randoms(r, 9*c), nil)
		at := AttentionSpec{Batch: n, Heads: 2, Tq: h * h, Tk: h * h, D: c / 2, Causal: true}
		mm := MatMulSpec{Batch: n, M: h * h, N: c, K: c}
		scratch := make([]float32, 1<<18)
		for name, f := range map[string]func(){
			"norm, convolutions": func() {
				GroupNorm(p, scale, shift, Input{X: x, C: c}, n, h*h, 4, 1e-5, gamma, gamma, gs)
				for _, l := range layers {
					l.Run(p, dst, Input{X: x, C: c, Scale: scale, Shift: shift, Act: SiLU}, n, h, h, scratch, Epilogue{Residual: res, RowBias: scale})
				}
			},
			"feed forward": func() {
				FeedForward(p, dst, Input{X: x, C: c, Norm: &rowNorm}, n, h*h, lin, lin, GELU, scratch, Epilogue{Residual: dst, Gate: gamma})
			},
			"linear":    func() { lin.Run(p, dst, x, n*h*h, scratch, Epilogue{Act: GELU}) },
			"attention": func() { Attention(p, dst, x, res, x, at, scratch) },
			"matmul":    func() { MatMul(p, dst, x, res, mm, scratch) },
			"rows": func() {
				LayerNorm(p, dst, x, n, h*h, c, 1e-5, gamma, gamma)
				Softmax(p, dst, x, n*h*h, c, 1)
				Add(p, dst, dst, x, 1)
				Activate(p, dst, x, SiLU)
				GLU(p, dst, x, n*h*h, c/2, GELU)
				Gate(p, dst, x, dst, gamma, n, h*h, c)
				HeadRMSNorm(p, dst, HeadSpec{N: n, Tokens: h * h, Heads: 2, D: c / 2}, 1e-6, nil)
				Rotary(p, dst, HeadSpec{N: n, Tokens: h * h, Heads: 2, D: c / 2}, x, res, Halves)
				depth.Run(p, dst, x, n, h, h, SiLU)
				Apply(p, dst, Input{X: x, C: c, Act: SiLU}, n, h, h)
			},
		} {
			if a := testing.AllocsPerRun(20, f); a != 0 {
				t.Errorf("%v: %s allocates %v times", tier, name, a)
			}
		}
	}
}

func TestPool(t *testing.T) {
	for _, workers := range []int{1, 2, 5} {
		p := NewPool(Portable, workers)
		for _, n := range []int{0, 1, 2, 3, 1000} {
			seen := make([]int32, n)
			busy := make([]bool, workers)
			var mu sync.Mutex
			p.Do(n, func(w, i int) {
				mu.Lock()
				if busy[w] {
					t.Error("two calls with one worker number")
				}
				busy[w] = true
				seen[i]++
				mu.Unlock()
				mu.Lock()
				busy[w] = false
				mu.Unlock()
			})
			for i, s := range seen {
				if s != 1 {
					t.Fatalf("%d workers: item %d of %d ran %d times", workers, i, n, s)
				}
			}
			time.Sleep(spinFor * 2) // the next job wakes sleeping workers
		}
		p.Close()
		p.Close()
	}
	if got := NewPool(Portable, 0).Workers(); got != runtime.GOMAXPROCS(0) {
		t.Fatalf("%d workers", got)
	}
}

func TestTierNames(t *testing.T) {
	for tier := Portable; tier < numTiers; tier++ {
		if got, err := ParseTier(tier.String()); err != nil || got != tier {
			t.Errorf("%v: %v, %v", tier, got, err)
		}
	}
	if _, err := ParseTier("sse"); err == nil {
		t.Error("sse is no tier")
	}
	for _, d := range []DType{F32, BF16, F32OnF16, F32OnBF16} {
		if got, err := ParseDType(d.String()); err != nil || got != d {
			t.Errorf("%v: %v, %v", d, got, err)
		}
	}
	if _, err := ParseDType("int8"); err == nil {
		t.Error("int8 is no data type")
	}
}

func TestRoundBF16(t *testing.T) {
	for _, c := range [][2]float32{{1, 1}, {1.00390625, 1}, {1.01171875, 1.015625}, {-1.0039064, -1.0078125}, {float32(math.Inf(1)), float32(math.Inf(1))}, {0, 0}} {
		if got := roundBF16(c[0]); got != c[1] {
			t.Errorf("bf16(%v) = %v, want %v", c[0], got, c[1])
		}
	}
	if v := roundBF16(float32(math.NaN())); v == v {
		t.Error("NaN became a number")
	}
}

// signals sends signals to the test until the end and counts them, where the
// system has them.
var signals = func(time.Time) int { return 0 }

// TestStress runs layers from many goroutines under constant garbage
// collection and signals: the kernels keep their pointers in registers.
func TestStress(t *testing.T) {
	seconds, goroutines := 300*time.Millisecond, 4
	if os.Getenv("DRIFT_SLOW") != "" {
		seconds, goroutines = 60*time.Second, 64
	}
	defer debug.SetGCPercent(debug.SetGCPercent(1))
	for _, tier := range Tiers() {
		for _, dt := range []DType{F32, BF16} {
			if tier == Portable && dt == BF16 {
				continue
			}
			r := rng(3)
			const n, h, c = 1, 8, 64
			spec := ConvSpec{Cin: c, Cout: c, KH: 3, KW: 3, Pad: Same(1)}
			var layers []*Conv
			for _, how := range []method{direct, wino2, wino4} {
				layers = append(layers, newConv(tier, dt, spec.normal(), randoms(r, c*c*9), nil, how))
			}
			x := randoms(r, n*h*h*c)
			run := func(p *Pool, l *Conv) []float32 {
				dst := make([]float32, n*h*h*c)
				l.Run(p, dst, Input{X: x, C: c, Act: SiLU}, n, h, h, make([]float32, l.Scratch(p.Workers(), n, h, h, false)), Epilogue{})
				return dst
			}
			p := NewPool(tier, 2)
			var want [][]float32
			for _, l := range layers {
				want = append(want, run(p, l))
			}
			p.Close()
			end := time.Now().Add(seconds / time.Duration(2*len(Tiers())))
			var wg sync.WaitGroup
			wg.Go(func() { t.Logf("%v %v: %d signals", tier, dt, signals(end)) })
			for g := range goroutines {
				wg.Go(func() {
					p := NewPool(tier, 1+g%3)
					defer p.Close()
					for i := g; time.Now().Before(end); i++ {
						k := i % len(layers)
						got := run(p, layers[k])
						for q := range got {
							if got[q] != want[k][q] {
								t.Errorf("%v %v: layer %d differs at %d", tier, dt, k, q)
								return
							}
						}
					}
				})
			}
			wg.Wait()
		}
	}
}
