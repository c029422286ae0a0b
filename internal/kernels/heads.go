package kernels

import "fmt"

// HeadSpec tells where the vectors of attention heads lie: that of token t of
// batch row n, head h, is the D values from (n*Tokens+t)*Ld + h*D on, as in
// [AttentionSpec], so that q or k can be treated inside a buffer of joined
// projections. An Ld of 0 means Heads*D.
type HeadSpec struct {
	N, Tokens, Heads, D int
	Ld                  int
}

func (s HeadSpec) normal(what string, x []float32) HeadSpec {
	if s.Ld == 0 {
		s.Ld = s.Heads * s.D
	}
	if s.N > 0 && s.Tokens > 0 {
		need(what, x, (s.N*s.Tokens-1)*s.Ld+s.Heads*s.D)
	}
	return s
}

// heads runs a job over the vectors.
func (p *Pool) heads(j rowJob, s HeadSpec) {
	j.heads, j.ld, j.h = s.Heads, s.Ld, s.Tokens
	p.byRows(j, s.N*s.Tokens*s.Heads, s.D)
}

// vector gives the place of a row's values.
func (j *rowJob) vector(row int) int { return row/j.heads*j.ld + row%j.heads*j.c }

// HeadRMSNorm is RMSNorm of every head's vector in place, gamma being (D) or
// nil: the q and k norms of SD 3.5 and Flux.
func HeadRMSNorm(p *Pool, x []float32, s HeadSpec, eps float64, gamma []float32) {
	s = s.normal("x", x)
	r := RowNorm{RMS: true, Eps: eps, Gamma: gamma}
	r.check(1, s.D)
	p.heads(rowJob{kind: rowRMSNorm, dst: x, a: x, rowNorm: r}, s)
}

// HeadRMSNormVJP is the gradient of HeadRMSNorm's input x from dy, both laid
// out as s says; dx may be dy.
func HeadRMSNormVJP(p *Pool, dx, dy, x []float32, s HeadSpec, eps float64, gamma []float32) {
	s = s.normal("x", x)
	s.normal("dx", dx)
	s.normal("dy", dy)
	p.heads(rowJob{kind: rowRMSNormVJP, dst: dx, a: dy, b: x, eps: eps, gamma: vector("gamma", gamma, 1, s.D)}, s)
}

// Pairing tells which values of a vector a [Rotary] turns together.
type Pairing uint8

// The pairings.
const (
	Neighbours Pairing = iota // 2i and 2i+1, as in Flux
	Halves                    // i and i+D/2, as in Llama
)

// Rotary turns pairs of every head's values by angles of the token, in place
// (Su et al. 2021, arXiv:2104.09864):
//
//	(a, b) = (a cos - b sin, a sin + b cos)
//
// cos and sin are (Tokens, D/2), the same for all batch rows. With -sin it is
// the inverse, which is also the vector-Jacobian product. D must be even.
func Rotary(p *Pool, x []float32, s HeadSpec, cos, sin []float32, pairing Pairing) {
	if s.D%2 != 0 {
		panic(fmt.Sprintf("kernels: rotary embedding of %d values", s.D))
	}
	s = s.normal("x", x)
	need("cos", cos, s.Tokens*s.D/2)
	need("sin", sin, s.Tokens*s.D/2)
	p.heads(rowJob{kind: rowRotary, dst: x, a: cos, b: sin, groups: int(pairing)}, s)
}

func (j *rowJob) rotary(row int) {
	at, n := j.vector(row), j.c/2
	x := j.dst[at : at+j.c]
	token := row / j.heads % j.h
	cos, sin := j.a[token*n:(token+1)*n], j.b[token*n:(token+1)*n]
	step, far := 2, 1
	if Pairing(j.groups) == Halves {
		step, far = 1, n
	}
	for i, c := range cos {
		a, b, s := x[i*step], x[i*step+far], sin[i]
		x[i*step] = float32(a*c) - float32(b*s)
		x[i*step+far] = float32(a*s) + float32(b*c)
	}
}
