package operators

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"drift/internal/rng"
)

// normals draws n unit normals of a stream.
func normals(n int, seed uint64) []float64 {
	x := make([]float64, n)
	rng.Normal(x, rng.Key{Seed: seed})
	return x
}

func dot(a, b []float64) float64 {
	s := 0.0
	for i, v := range a {
		s += v * b[i]
	}
	return s
}

func apart(a, b []float64) float64 {
	d := 0.0
	for i, v := range a {
		d = math.Max(d, math.Abs(v-b[i]))
	}
	return d
}

func mustParse(t testing.TB, text string, in []int, known []bool) Operator {
	t.Helper()
	a, err := Parse(text, in, known)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

var shapes = [][]int{{1, 8, 8}, {3, 8, 8}, {1, 1, 8}, {8}, {1, 12, 8}, {2, 16, 24}}

var specs = []string{"inpaint:box=half", "inpaint:random=0.4,seed=3", "superres:factor=4", "superres:factor=2,kernel=bicubic", "superres:factor=1", "deblur:std=0.8,cutoff=0", "deblur:std=2",
	"motion-deblur:length=4,angle=20,cutoff=0", "motion-deblur:length=5,angle=90", "motion-deblur:length=3,angle=0,cutoff=0.2", "nonlinear-deblur", "nonlinear-deblur:gain=0.5,std=1", "colorize", "compressed:ratio=0.3", "compressed:ratio=1,seed=9",
	"phase", "phase:oversample=1", "hdr", "jpeg:quality=30", "denoise"}

// each calls f on every operator that fits every shape.
func each(t *testing.T, f func(t *testing.T, a Operator)) {
	seen := map[string]bool{}
	for _, in := range shapes {
		for _, s := range specs {
			if strings.HasPrefix(s, "colorize") && (len(in) == 1 || in[0] == 1) {
				continue
			}
			a := mustParse(t, s, in, nil)
			seen[strings.SplitN(a.Name(), ":", 2)[0]] = true
			t.Run(fmt.Sprint(s, in), func(t *testing.T) { f(t, a) })
		}
	}
	a := mustParse(t, "matrix:rows=1 0.5 0;0 1 -1", []int{3}, nil)
	t.Run(a.Name(), func(t *testing.T) { f(t, a) })
	tall := mustParse(t, "matrix:rows=1 0.5;0 1;2 2;1 0.5", []int{2}, nil)
	t.Run(tall.Name(), func(t *testing.T) { f(t, tall) })
	for _, i := range List() {
		if i.Name != "matrix" && !seen[i.Name] {
			t.Errorf("%s is not tested", i.Name)
		}
	}
}

// TestAdjoint holds <A x, y> = <x, A^T y>.
func TestAdjoint(t *testing.T) {
	each(t, func(t *testing.T, a Operator) {
		l, ok := a.(Linear)
		if !ok {
			return
		}
		x, y := normals(Size(a.In()), 1), normals(Size(a.Out()), 2)
		ax, aty, g := make([]float64, len(y)), make([]float64, len(x)), make([]float64, len(x))
		l.Apply(ax, x)
		l.Adjoint(aty, y)
		if p, q := dot(ax, y), dot(x, aty); math.Abs(p-q) > 1e-12*(1+math.Sqrt(dot(ax, ax)*dot(y, y))) {
			t.Errorf("<Ax,y> = %.15g, <x,A'y> = %.15g", p, q)
		}
		a.VJP(g, nil, y)
		if d := apart(g, aty); d != 0 {
			t.Errorf("VJP and Adjoint differ by %g", d)
		}
	})
}

// TestSVD holds that V is orthogonal, U^T A = S V^T where S > 0, A^T = V S U^T, and |A v| = 0 where S = 0 without a
// cutoff; and that the pseudo-inverse is one: A A^+ A x = A x.
func TestSVD(t *testing.T) {
	each(t, func(t *testing.T, a Operator) {
		l, ok := a.(Linear)
		if !ok {
			return
		}
		n, m := Size(a.In()), Size(a.Out())
		s := l.Singular()
		if len(s) != n {
			t.Fatalf("%d singular values for %d elements", len(s), n)
		}
		x, z, y := normals(n, 1), normals(n, 2), normals(m, 3)
		cx, cz, back := make([]float64, n), make([]float64, n), make([]float64, n)
		l.ToV(cx, x)
		l.ToV(cz, z)
		l.FromV(back, cx)
		if d := apart(back, x); d > 1e-11 {
			t.Errorf("V V^T x is off by %g", d)
		}
		if p, q := dot(cx, cz), dot(x, z); math.Abs(p-q) > 1e-11*float64(n) {
			t.Errorf("V does not keep angles: %g and %g", p, q)
		}
		ax, c := make([]float64, m), make([]float64, n)
		l.Apply(ax, x)
		l.ToU(c, ax)
		cutoff := strings.HasPrefix(a.Name(), "deblur:std=2") || strings.Contains(a.Name(), "angle=90") || strings.Contains(a.Name(), "cutoff=0.2")
		seen := 0.0
		for i, v := range s {
			if want := v * cx[i]; math.Abs(c[i]-want) > 1e-11 {
				t.Fatalf("coefficient %d of A x is %g, want %g", i, c[i], want)
			}
			seen += c[i] * c[i]
		}
		// with no cutoff nothing of A x lies elsewhere
		if all := dot(ax, ax); !cutoff && math.Abs(all-seen) > 1e-10*(1+all) {
			t.Errorf("|A x|^2 = %g, in coefficients %g", all, seen)
		} else if cutoff && all < seen*(1-1e-12) {
			t.Errorf("|A x|^2 = %g is less than its coefficients' %g", all, seen)
		}
		if !cutoff {
			aty, filt := make([]float64, n), make([]float64, n)
			l.Adjoint(aty, y)
			Filter(l, func(s float64) float64 { return s }, filt, y)
			if d := apart(aty, filt); d > 1e-11 {
				t.Errorf("A^T y and V S U^T y differ by %g", d)
			}
			pin, again := make([]float64, n), make([]float64, m)
			Pinv(l, pin, ax)
			l.Apply(again, pin)
			if d := apart(again, ax); d > 1e-9 {
				t.Errorf("A A+ A x is off by %g", d)
			}
		}
	})
}

// TestVJP compares the vector-Jacobian product with central differences along a random direction. The derivative of
// rounding is not one: jpeg is compared without its rounding, which is the identity.
func TestVJP(t *testing.T) {
	each(t, func(t *testing.T, a Operator) {
		n, m := Size(a.In()), Size(a.Out())
		x, d, u := normals(n, 1), normals(n, 2), normals(m, 3)
		for i := range x {
			x[i] *= 0.4
			if _, ok := a.(*clip); ok && math.Abs(math.Abs(2*x[i])-1) < 1e-3 {
				x[i] = 0 // away from the corners
			}
		}
		g := make([]float64, n)
		a.VJP(g, x, u)
		if _, ok := a.(*jpeg); ok {
			if apart(g, u) != 0 {
				t.Error("the straight-through gradient is not the identity")
			}
			return
		}
		const h = 1e-5
		lo, hi, p := make([]float64, m), make([]float64, m), make([]float64, n)
		for i := range p {
			p[i] = x[i] + h*d[i]
		}
		a.Apply(hi, p)
		for i := range p {
			p[i] = x[i] - h*d[i]
		}
		a.Apply(lo, p)
		want := (dot(hi, u) - dot(lo, u)) / (2 * h)
		if got := dot(g, d); math.Abs(got-want) > 1e-6*(1+math.Abs(want)) {
			t.Errorf("<J^T u, d> = %.10g, differences give %.10g", got, want)
		}
	})
}

// TestKnownValues holds operators to values worked out by hand.
func TestKnownValues(t *testing.T) {
	ramp := make([]float64, 16)
	for i := range ramp {
		ramp[i] = float64(i)
	}
	for _, c := range []struct {
		spec string
		in   []int
		x    []float64
		want []float64
	}{
		{"superres:factor=2", []int{1, 4, 4}, ramp, []float64{2.5, 4.5, 10.5, 12.5}},
		{"inpaint:box=0+0+2x1", []int{1, 2, 2}, []float64{1, 2, 3, 4}, []float64{3, 4}},
		{"inpaint:box=half", []int{1, 1, 4}, []float64{1, 2, 3, 4}, []float64{1, 2}},
		{"colorize", []int{3, 1, 1}, []float64{1, 2, 6}, []float64{3}},
		{"hdr", []int{1, 1, 4}, []float64{-0.9, -0.3, 0.2, 0.7}, []float64{-1, -0.6, 0.4, 1}},
		{"phase:oversample=1", []int{1, 1, 4}, []float64{1, 1, 1, 1}, []float64{2, 0, 0, 0}},
		{"phase", []int{1, 1, 2}, []float64{1, 0}, []float64{0.5, 0.5, 0.5, 0.5}},
		{"motion-deblur:length=2,angle=0,cutoff=0", []int{1, 1, 4}, []float64{0, 1, 0, 0}, []float64{0.25, 0.5, 0.25, 0}},
		{"denoise", []int{3}, []float64{1, 2, 3}, []float64{1, 2, 3}},
		{"matrix:rows=1 0.5 0;0 1 -1", []int{3}, []float64{1, 2, 3}, []float64{2, -1}},
	} {
		a := mustParse(t, c.spec, c.in, nil)
		y := make([]float64, Size(a.Out()))
		a.Apply(y, c.x)
		if len(y) != len(c.want) || apart(y, c.want) > 1e-12 {
			t.Errorf("%s gives %v, want %v", c.spec, y, c.want)
		}
	}
	// blurs, averages and cosine blocks leave what is constant
	for _, s := range []string{"deblur", "motion-deblur", "nonlinear-deblur", "superres:kernel=bicubic", "jpeg:quality=100"} {
		a := mustParse(t, s, []int{1, 8, 8}, nil)
		x, y := make([]float64, 64), make([]float64, Size(a.Out()))
		for i := range x {
			x[i] = 0.5
		}
		a.Apply(y, x)
		for _, v := range y {
			if math.Abs(v-0.5) > 1e-2/2.5 { // jpeg: half a step of its mean, 1 of 8*127.5
				t.Errorf("%s turns 0.5 into %g", s, v)
			}
		}
	}
	// a small gain is a linear blur
	x, lin, non := normals(64, 5), make([]float64, 64), make([]float64, 64)
	mustParse(t, "deblur", []int{1, 8, 8}, nil).Apply(lin, x)
	mustParse(t, "nonlinear-deblur:gain=0.001", []int{1, 8, 8}, nil).Apply(non, x)
	if d := apart(lin, non); d > 2e-3 {
		t.Errorf("the nonlinear blur with a small gain is off the linear one by %g", d)
	}
	// jpeg: projects, so that a second pass changes nothing where the sides are multiples of 8
	j := mustParse(t, "jpeg:quality=20", []int{1, 8, 16}, nil)
	y1, y2 := make([]float64, 128), make([]float64, 128)
	j.Apply(y1, normals(128, 6))
	j.Apply(y2, y1)
	if d := apart(y1, y2); d > 1e-12 {
		t.Errorf("jpeg is not idempotent: %g", d)
	}
}

// TestMeasure holds the noise: its size, and that it depends on seed and image alone.
func TestMeasure(t *testing.T) {
	a := mustParse(t, "denoise", []int{1, 64, 64}, nil)
	x := normals(64*64, 1)
	m, again, other := Measure(a, x, 0.1, 7, 0), Measure(a, x, 0.1, 7, 0), Measure(a, x, 0.1, 7, 1)
	if apart(m.Y, again.Y) != 0 || apart(m.Y, other.Y) == 0 {
		t.Error("noise does not follow its stream")
	}
	r := m.Residual(x)
	if v := dot(r, r) / float64(len(r)); math.Abs(v-0.01) > 0.001 {
		t.Errorf("noise has variance %g, want 0.01", v)
	}
	if q := Measure(a, x, 0, 7, 0); apart(q.Y, x) != 0 {
		t.Error("without noise A = I changes the image")
	}
}

// TestPicture holds what a measurement is shown as.
func TestPicture(t *testing.T) {
	a := mustParse(t, "inpaint:box=0+0+1x1", []int{1, 2, 2}, nil)
	pix, shape := a.(Pictured).Picture([]float64{2, 3, 4})
	if apart(pix, []float64{0, 2, 3, 4}) != 0 || fmt.Sprint(shape) != "[1 2 2]" {
		t.Errorf("got %v %v", pix, shape)
	}
	p := mustParse(t, "phase", []int{1, 4, 4}, nil)
	y := make([]float64, 64)
	p.Apply(y, normals(16, 1))
	pix, shape = p.(Pictured).Picture(y)
	if fmt.Sprint(shape) != "[1 8 8]" || len(pix) != 64 {
		t.Errorf("got %v", shape)
	}
}

func TestParseErrors(t *testing.T) {
	img := []int{1, 8, 8}
	for _, c := range []struct {
		spec  string
		in    []int
		known []bool
		want  string
	}{
		{"superes", img, nil, "did you mean superres"},
		{"nonsense", img, nil, "known: inpaint, superres"},
		{"superres:factr=2", img, nil, `unknown option "factr"; did you mean factor?`},
		{"superres:factor=3", img, nil, "factor 3 does not divide the side of 8 pixels"},
		{"colorize", img, nil, "one channel"},
		{"inpaint", img, nil, "say what is not known"},
		{"inpaint:box=half,random=0.5", img, nil, "in one way"},
		{"inpaint:box=7+7+2x2", img, nil, "does not lie inside"},
		{"inpaint:box=1+1+2x2junk", img, nil, "want X+Y+WxH"},
		{"inpaint:random=1", img, nil, "no pixel known"},
		{"inpaint", img, make([]bool, 9), "the mask has 9 pixels"},
		{"deblur", img, make([]bool, 64), "takes no mask"},
		{"deblur:std=0", img, nil, "std=0"},
		{"jpeg:quality=0", img, nil, "quality"},
		{"matrix", []int{2}, nil, "want rows"},
		{"matrix:rows=1 2 3", []int{2}, nil, "row 1 has 3 numbers, the images have 2"},
		{"matrix:rows=1 nan", []int{2}, nil, "no finite number"},
		{"denoise", []int{2, 3}, nil, "want images of shape"},
		{"", img, nil, "empty name"},
	} {
		_, err := Parse(c.spec, c.in, c.known)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.spec, err, c.want)
		}
	}
	if a := mustParse(t, "sr:factor=2", img, nil); a.Name() != "superres:factor=2" {
		t.Errorf("alias keeps the name %s", a.Name())
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range specs {
		f.Add(s, 1, 8, 8)
	}
	f.Add("matrix:rows=1 0 0 0 0 0 0 1", 1, 1, 8)
	f.Fuzz(func(t *testing.T, s string, c, h, w int) {
		if c < 0 || h < 0 || w < 0 || c > 3 || h > 16 || w > 16 {
			return
		}
		a, err := Parse(s, []int{c, h, w}, nil)
		if err != nil {
			return
		}
		x, y := make([]float64, Size(a.In())), make([]float64, Size(a.Out()))
		a.Apply(y, x)
		a.VJP(x, x, y)
		if _, err := Parse(a.Name(), []int{c, h, w}, nil); err != nil {
			t.Errorf("%q does not read its own name %q: %v", s, a.Name(), err)
		}
	})
}
