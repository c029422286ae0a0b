package guidance_test

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"drift/guidance"
	"drift/internal/npz"
	"drift/models"
	"drift/schedules"
)

// shirts are made-up pictures of clothes' size, without ties.
func shirts(rows int) (*models.Query, []float64) {
	q := &models.Query{X: models.New(rows, 1, 28, 28), Cond: &models.Cond{}}
	x := models.Data(q.X)
	for i := range x {
		x[i] = 0.7 * math.Sin(1+2.4*float64(i))
	}
	for k := range rows {
		q.At = append(q.At, schedules.VPLinear{}.AtRatio(0.7))
		q.Cond.Classes = append(q.Cond.Classes, 7)
		q.Rows = append(q.Rows, models.Row{Seed: uint64(k)})
	}
	return q, x
}

// alike compares the gradients of two energies of the classifier (float32, so only to its precision).
func alike(t *testing.T, what string, a, b guidance.Energy) {
	t.Helper()
	q, _ := shirts(3)
	var e, g [2][]float64
	for i, of := range []guidance.Energy{a, b} {
		grad := models.New(3, 1, 28, 28)
		e[i] = make([]float64, 3)
		if err := of.Energy(context.Background(), q, q.X, e[i], grad); err != nil {
			t.Fatal(err)
		}
		g[i] = models.Data(grad)
	}
	size := 0.0
	for _, v := range g[1] {
		size = max(size, math.Abs(v))
	}
	if gap := maxGap(e[0], e[1]); gap > 1e-6 {
		t.Errorf("%s: energies differ by %g", what, gap)
	}
	if gap := maxGap(g[0], g[1]); gap > 1e-6*size || size == 0 {
		t.Errorf("%s: gradients differ by %g of %g", what, gap, size)
	}
}

func must(t *testing.T, text string) guidance.Energy {
	t.Helper()
	e, err := guidance.Expr(text)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestNetworkEnergies: the classifier in Go, in an expression and in a script is one energy, with one gradient; features and
// log probabilities go together as the chain rule says. (The classifier's own gradient is held to finite differences where
// it lies.)
func TestNetworkEnergies(t *testing.T) {
	g, err := guidance.Parse("energy:net=fashion-classifier")
	if err != nil {
		t.Fatal(err)
	}
	alike(t, "a class", g.(guidance.Gradient).Of, must(t, "-logp('fashion-classifier', class='sneaker')"))
	alike(t, "a number", must(t, "-logp('fashion-classifier', class=7)"), must(t, "-log(prob('fashion-classifier', class='sneaker'))"))
	alike(t, "of another picture", must(t, "2*logp('fashion-classifier', class=3, of=x0*0.5)"), must(t, "logp('fashion-classifier', class=3, of=x0*0.5) + logp('fashion-classifier', class=3, of=x0 - x0*0.5)"))
	alike(t, "features", must(t, "sum(feat('fashion-classifier')**2)"), must(t, "dot(features('fashion-classifier'), feat('fashion-classifier', of=x0))"))
	alike(t, "an angle", must(t, "cos(feat('fashion-classifier'), feat('fashion-classifier')*2) + 0*norm(x0) + mean(x0)"), must(t, "1 + mean(x0)"))
}

// TestCheckEnergy: every word of the vocabulary against finite differences; a wrong gradient is seen.
func TestCheckEnergy(t *testing.T) {
	q, _ := shirts(2)
	for _, text := range []string{
		"sum(x0**2)", "mean(abs(x0))", "std(x0)", "norm(x0)", "sum(dx(x0)**2) + sum(dy(x0)**2)", "sum(blur(x0, 1.2)**3)", "sum(conv(x0, [[0,1,0],[1,-4,1],[0,1,0]])**2)",
		"sum(fft(x0)[0]**2) + 0.5*sum(fft(x0)[1]**4)", "sum(clip(x0, -0.31, 0.33)**2)", "max(x0) - min(x0)", "sum(exp(x0*0.3)) + sum(log(x0 + 2)) + sum(sqrt(x0 + 2))", "sum(tanh(x0) + sigmoid(x0)*relu(x0 - 0.011))",
		"sum(sin(x0)*cos(x0))", "dot(x0[0, 3], x0[0, 4])", "sum(matmul(x0[0], x0[0]))", "sum(reshape(x0, [4, 196])[2]**3)", "sum(edges(x0))", "mean(rgb(x0)**2)", "cos(x0[0, 1], x0[0, 2])",
		"sum((x0[0, :14] - x0[0, 14:] - 0.4)**2) * ctx.sigma/(1 + ctx.sigma)", "sum(pow(x0 + 2, 1.5)/(x0 + 3))", "sum(max(x0, x0*0.5)) + sum(min(x0, 0.123))",
	} {
		e := must(t, text)
		if _, worst, err := guidance.CheckEnergy(context.Background(), e, q, q.X); err != nil || !(worst < 3e-5) {
			t.Errorf("%s: off finite differences by %.3g, %v", text, worst, err)
		}
	}
	wrong := guidance.EnergyFunc(func(x0, grad []float64) float64 {
		sum := 0.0
		for j, v := range x0 {
			sum += v * v
			grad[j] = v // half of it
		}
		return sum
	})
	if _, worst, err := guidance.CheckEnergy(context.Background(), wrong, q, q.X); err != nil || !(worst > 0.4) {
		t.Errorf("a wrong gradient passes: %.3g, %v", worst, err)
	}
}

// TestWorld: a script reads arrays of its own folder only, and says where it went wrong.
func TestWorld(t *testing.T) {
	dir := t.TempDir()
	w, err := npz.Create(filepath.Join(dir, "refs.npz"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(npz.Array{Name: "x", Shape: []int{2, 2}, Data: []float64{1, 2, 3, 4}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "e.star")
	e, err := guidance.Script(path, "refs = load('refs.npz')\ndef energy(x0, ctx):\n    log('first', refs[0, 1])\n    return sum((x0 - refs)**2)\n")
	if err != nil {
		t.Fatal(err)
	}
	x := models.Wrap([]float64{1, 2, 3, 5}, 1, 2, 2)
	grad, energy := models.New(1, 2, 2), make([]float64, 1)
	q := &models.Query{X: x, At: []schedules.Node{{Alpha: 1}}}
	if err := e.Energy(context.Background(), q, x, energy, grad); err != nil || energy[0] != 1 || models.Data(grad)[3] != 2 {
		t.Errorf("%v: energy %g, gradient %v", err, energy[0], models.Data(grad))
	}
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for src, want := range map[string]string{
		"a = load('../refs.npz')\ndef energy(x0, ctx): return sum(x0)\n":                                            ":1:9: load(\"../refs.npz\"): want a .npz file in the script's folder",
		"a = load('/etc/passwd')\ndef energy(x0, ctx): return sum(x0)\n":                                            "want a .npz file",
		"a = load('secret')\ndef energy(x0, ctx): return sum(x0)\n":                                                 "want a .npz file",
		"load('refs.npz', 'x')\ndef energy(x0, ctx): return sum(x0)\n":                                              "load not implemented",
		"a = load('refs.npz', 'y')\ndef energy(x0, ctx): return sum(x0)\n":                                          "no array \"y\"",
		"def energy(x0, ctx):\n    return open('f')\n":                                                              ":2:12: undefined: open",
		"def energy(x0, ctx):\n  while True:\n    pass\n":                                                           "while",
		"def f(n):\n    return [i for i in range(n) for j in range(n)]\nf(100000)\ndef energy(x0, ctx): return 0\n": "more than 1000000 steps",
	} {
		if _, err := guidance.Script(path, src); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant %q", err, want)
		}
	}
	for text, want := range map[string]string{
		"mean(x0": "energy:1:", "mean(y)": "energy:1:6: undefined: y", "x0": "want one number", "sum(dx(x0)) + x0.foo": "energy:1:17", "logp('clip', class=1)": "unknown network",
		"logp('fashion-classifier', class='hat')": "unknown class", "feat('fashion-classifier', of=x0[0])": "want a picture", "quantile(x0, 0.5)": "has no gradient",
	} {
		e, err := guidance.Expr(text)
		if err == nil {
			err = e.Energy(context.Background(), q, x, energy, grad)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
