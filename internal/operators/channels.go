package operators

import "gonum.org/v1/gonum/mat"

// channels mixes the channels of every pixel by a matrix of size k x C.
type channels struct {
	base
	f factor
	s []float64
}

func newChannels(name string, in []int, m *mat.Dense) (*channels, error) {
	c, h, w, err := image(in)
	if err != nil {
		return nil, err
	}
	f, s, err := newFactor(m)
	if err != nil {
		return nil, err
	}
	k, _ := m.Dims()
	o := &channels{base: base{name, in, []int{k, h, w}}, f: f, s: make([]float64, c*h*w)}
	cut(s, rounding)
	for i := range o.s {
		o.s[i] = s[i/(h*w)]
	}
	return o, nil
}

// pixels writes M x into dst for every pixel.
func (o *channels) pixels(dst []float64, m *mat.Dense, x []float64) {
	_, k := m.Dims()
	n := len(x) / k
	var out mat.Dense
	out.Mul(m, mat.NewDense(k, n, x))
	copy(dst, out.RawMatrix().Data)
}

func (o *channels) Apply(y, x []float64)   { o.pixels(y, o.f.b, x) }
func (o *channels) Adjoint(x, y []float64) { o.pixels(x, o.f.bt, y) }
func (o *channels) VJP(g, _, u []float64)  { o.Adjoint(g, u) }
func (o *channels) Singular() []float64    { return o.s }
func (o *channels) ToV(c, x []float64)     { o.pixels(c, o.f.vt, x) }
func (o *channels) FromV(x, c []float64)   { o.pixels(x, o.f.v, c) }

func (o *channels) ToU(c, y []float64) {
	clear(c)
	o.pixels(c, o.f.ut, y)
}

// dense is any matrix, of size m x n with n the number of elements of an image.
type dense struct {
	base
	f factor
	s []float64
}

func newDense(name string, in []int, m *mat.Dense) (*dense, error) {
	f, s, err := newFactor(m)
	if err != nil {
		return nil, err
	}
	k, _ := m.Dims()
	return &dense{base: base{name, in, []int{k}}, f: f, s: cut(s, rounding)}, nil
}

// times writes M x into dst.
func times(dst []float64, m *mat.Dense, x []float64) {
	raw := m.RawMatrix()
	for i := range raw.Rows {
		sum := 0.0
		for j, v := range raw.Data[i*raw.Stride : i*raw.Stride+raw.Cols] {
			sum += float64(v * x[j])
		}
		dst[i] = sum
	}
}

func (o *dense) Apply(y, x []float64)   { times(y, o.f.b, x) }
func (o *dense) Adjoint(x, y []float64) { times(x, o.f.bt, y) }
func (o *dense) VJP(g, _, u []float64)  { o.Adjoint(g, u) }
func (o *dense) Singular() []float64    { return o.s }
func (o *dense) ToV(c, x []float64)     { times(c, o.f.vt, x) }
func (o *dense) FromV(x, c []float64)   { times(x, o.f.v, c) }

func (o *dense) ToU(c, y []float64) {
	clear(c)
	all := make([]float64, len(y))
	times(all, o.f.ut, y)
	copy(c, all)
	for i, s := range o.s {
		if s == 0 {
			c[i] = 0
		}
	}
}
