package ort

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"drift/models"
	"drift/schedules"
)

func open(t testing.TB, name string) *Net {
	t.Helper()
	n, err := library(t).OpenNet(context.Background(), filepath.Join("testdata", name+".onnx"), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func denoiser(t testing.TB, name string) *Denoiser {
	t.Helper()
	d, err := open(t, name).Denoiser(name)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// query asks for rows of a shape at noise levels.
func query(p schedules.Gaussian, shape []int, sb []float64, classes []int) *models.Query {
	q := &models.Query{X: models.Wrap(normals(len(sb)*elements(shape), 5), append([]int{len(sb)}, shape...)...)}
	for _, v := range sb {
		q.At = append(q.At, p.(schedules.Path).AtRatio(v))
		q.Rows = append(q.Rows, models.Row{})
	}
	if classes != nil {
		q.Cond = &models.Cond{Classes: classes}
	}
	return q
}

// Every way to be told a condition and a time gives the closed form.
func TestDenoiser(t *testing.T) {
	ctx := context.Background()
	sb, classes := []float64{0.01, 3, 3, 70}, []int{2, models.NoClass, 0, 1}
	for _, c := range []struct {
		name  string
		shape []int
		mean  func(class int) float64
		kind  schedules.Kind
		dtype string
		tol   float64
	}{
		{"gauss64", []int{1, 4, 4}, func(k int) float64 { return means[(k+4)%4] }, schedules.X0, "f64", 1e-13},
		{"gauss", []int{1, 4, 4}, func(k int) float64 { return means[(k+4)%4] }, schedules.X0, "f32", 1e-6},
		{"external", []int{1, 4, 4}, func(k int) float64 { return means[(k+4)%4] }, schedules.X0, "f64", 1e-13},
		{"half", []int{1, 4, 4}, func(k int) float64 { return means[(k+4)%4] }, schedules.X0, "f16", 3e-3},
		{"scalar", []int{1, 4, 4}, func(k int) float64 { return map[bool]float64{true: 0.5, false: float64(k) / 10}[k < 0] }, schedules.X0, "f64", 1e-13},
		{"two", []int{1, 4, 4}, func(int) float64 { return 0.25 }, schedules.X0, "f64", 1e-13},
		{"vector", []int{2}, func(k int) float64 { return []float64{0, -0.5, 0.25}[k+1] }, schedules.X0, "f64", 1e-13},
	} {
		d := denoiser(t, c.name)
		cl := slices.Clone(classes)
		if c.name == "vector" {
			cl[0] = 0 // it has two classes
		}
		var p models.Pred
		q := query(d.Net.Sidecar.Process, c.shape, sb, cl)
		if c.name == "half" {
			q = query(d.Net.Sidecar.Process, c.shape, []float64{0.01, 3, 3, 5}, cl)
		}
		if err := d.Predict(ctx, q, &p); err != nil {
			t.Fatal(c.name, err)
		}
		if p.Kind != c.kind || d.Net.DType() != c.dtype || !slices.Equal(d.Info().Shape, c.shape) {
			t.Errorf("%s: %v, %s, %+v", c.name, p.Kind, d.Net.DType(), d.Info())
		}
		w := elements(c.shape)
		for i, v := range models.Data(p.Out) {
			x, node := models.Data(q.X)[i], q.At[i/w]
			if want := posterior(x, node.Sigma, c.mean(cl[i/w])); math.Abs(v-want) > c.tol {
				t.Fatalf("%s: row %d: %g, want %g", c.name, i/w, v, want)
			}
		}
		// row by row and all at once: the same bits
		for i := range sb {
			var one models.Pred
			s := &models.Query{X: models.Wrap(models.Data(q.X)[i*w:(i+1)*w], append([]int{1}, c.shape...)...), At: q.At[i : i+1], Cond: q.Cond.Select([]int{i})}
			if err := d.Predict(ctx, s, &one); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(models.Data(one.Out), models.Data(p.Out)[i*w:(i+1)*w]) {
				t.Errorf("%s: row %d alone has other bits", c.name, i)
			}
		}
	}
}

// One number for the time of all rows: rows at several times are several calls. Timesteps are whole numbers.
func TestOneTime(t *testing.T) {
	d := denoiser(t, "eps")
	p := d.Net.Sidecar.Process.(*schedules.VPDiscrete)
	q := query(p, []int{1, 4, 4}, []float64{p.At(10).Ratio(), p.At(10).Ratio(), p.At(999).Ratio(), p.At(0).Ratio()}, nil)
	var out models.Pred
	if err := d.Predict(context.Background(), q, &out); err != nil {
		t.Fatal(err)
	}
	for i, v := range models.Data(out.Out) {
		x, n := models.Data(q.X)[i], q.At[i/16]
		if want := (x - n.Alpha*0.5) * n.Sigma / (0.25*n.Alpha*n.Alpha + n.Sigma*n.Sigma); math.Abs(v-want) > 1e-12 {
			t.Fatalf("row %d: %g, want %g", i/16, v, want)
		}
	}
	if len(d.Net.Notes) != 2 {
		t.Errorf("notes: %q", d.Net.Notes)
	}
}

// The inner network of EDM: with F = gauss, E[x0|x] is put together as the paper says.
func TestPrecondition(t *testing.T) {
	n, err := library(t).OpenNet(context.Background(), "testdata/gauss64.onnx", mustParse(t, strings.Replace(gaussText, `"x0"`, `"edm", "sigma_data": 0.7`, 1)), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	d, err := n.Denoiser("")
	if err != nil {
		t.Fatal(err)
	}
	q := query(schedules.EDM{}, []int{1, 4, 4}, []float64{2}, []int{1})
	var p models.Pred
	if err := d.Predict(context.Background(), q, &p); err != nil {
		t.Fatal(err)
	}
	r := math.Hypot(2, 0.7)
	for i, x := range models.Data(q.X) {
		want := 0.49/(r*r)*x + 2*0.7/r*posterior(x/r, 2, 0.25)
		if got := models.Data(p.Out)[i]; math.Abs(got-want) > 1e-13 || p.Kind != schedules.X0 {
			t.Fatalf("%g, want %g", got, want)
		}
	}
}

const gaussText = `{"type": "denoiser", "process": {"type": "edm"}, "prediction": "x0",
 "inputs": {"noisy": {"is": "state"}, "sigma": {"is": "sigma"}, "label": {"is": "class", "classes": 3, "null": 3}}, "output": "denoised"}`

func mustParse(t testing.TB, text string) *Sidecar {
	t.Helper()
	s, err := ParseSidecar("x.drift.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDenoiserRefuses(t *testing.T) {
	d := denoiser(t, "gauss64")
	ctx := context.Background()
	var p models.Pred
	q := query(schedules.EDM{}, []int{1, 4, 4}, []float64{1}, []int{3})
	if err := d.Predict(ctx, q, &p); err == nil || !strings.Contains(err.Error(), "no class 3; classes run from 0 to 2") {
		t.Error(err)
	}
	q.Cond = nil
	q.Hooks = &models.Hooks{SkipLayers: []string{"mid"}}
	if err := d.Predict(ctx, q, &p); err == nil || !strings.Contains(err.Error(), "layers of an ONNX network") {
		t.Error(err)
	}
	if err := d.Predict(ctx, query(schedules.EDM{}, []int{1, 4, 5}, []float64{1}, nil), &p); err == nil || !strings.Contains(err.Error(), "takes [1 4 4]") {
		t.Error(err)
	}
	if _, ok := models.As[models.VJP](models.Metered(d)); ok {
		t.Error("it has gradients")
	}
	v := denoiser(t, "vector")
	if err := v.Predict(ctx, query(schedules.EDM{}, []int{2}, []float64{0}, nil), &p); err == nil || !strings.Contains(err.Error(), "--final min") {
		t.Error(err)
	}
	if _, err := d.Net.Judge(ctx); err == nil || !strings.Contains(err.Error(), "is a denoiser") {
		t.Error(err)
	}
}

// What a sidecar and its file disagree about is named.
func TestSidecarFits(t *testing.T) {
	l := library(t)
	for _, c := range []struct{ from, to, want string }{
		{`"sigma": {"is": "sigma"}, `, ``, "the input sigma float64 [batch] is not described"},
		{`"noisy"`, `"nosy"`, `is not described`},
		{`"inputs": {`, `"inputs": {"sigmas": {"is": "constant", "value": 1}, `, `there is no input "sigmas"; did you mean sigma?`},
		{`"output": "denoised"`, `"output": "out"`, `there is no output "out"; there is denoised`},
		{`"prediction": "x0"`, `"prediction": "x0", "shape": [1, 4, 5]`, "rows have the shape [1 4 5]"},
		{`{"is": "class", "classes": 3, "null": 3}`, `{"is": "one-hot", "classes": 3}`, "there are 3 classes"},
		{`{"is": "class", "classes": 3, "null": 3}`, `{"is": "scalar", "classes": 3, "range": [0, 1]}`, "it takes whole numbers"},
	} {
		text := strings.Replace(gaussText, c.from, c.to, 1)
		_, err := l.OpenNet(context.Background(), "testdata/gauss64.onnx", mustParse(t, text), Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.to, err, c.want)
		}
	}
}

func TestJudge(t *testing.T) {
	ctx := context.Background()
	j, err := open(t, "classifier").Judge(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(j.Labels(), []string{"sandal", "sneaker", "boot"}) || j.Features() != 5 || j.Noisy() {
		t.Errorf("%v, %d", j.Labels(), j.Features())
	}
	x := normals(32, 3)
	f, l := make([]float64, 10), make([]float64, 6)
	if err := j.Run(ctx, x, f, l); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if s := math.Exp(l[3*i]) + math.Exp(l[3*i+1]) + math.Exp(l[3*i+2]); math.Abs(s-1) > 1e-6 || slices.Min(f) < 0 || slices.Max(f) == 0 {
			t.Errorf("%v %v", l, f)
		}
	}
	if err := j.Run(ctx, x[:5], nil, nil); err == nil {
		t.Error("5 pixels")
	}

	s, err := open(t, "score").Judge(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v := make([]float64, 2)
	if err := s.Run(ctx, x, v, nil); err != nil {
		t.Fatal(err)
	}
	mean := 0.0
	for _, p := range x[:16] {
		mean += (p + 1) / 2 / 16
	}
	if math.Abs(v[0]-mean) > 1e-6 { // the range of the network is [0, 1]
		t.Errorf("score %g, the mean is %g", v[0], mean)
	}
}

// A classifier that knows noise gives the exact posterior of its classes.
func TestNoisyJudge(t *testing.T) {
	ctx := context.Background()
	j, err := open(t, "noisy").Judge(ctx)
	if err != nil {
		t.Fatal(err)
	}
	q := query(schedules.EDM{}, []int{1, 4, 4}, []float64{0.3, 2}, nil)
	out := make([]float64, 6)
	if err := j.LogProb(ctx, q, 3, out); err != nil {
		t.Fatal(err)
	}
	for i, n := range q.At {
		var l [3]float64
		sum := 0.0
		for k := range l {
			for _, x := range models.Data(q.X)[16*i : 16*i+16] {
				l[k] -= (x - means[k]) * (x - means[k]) / 2 / (0.25 + n.Sigma*n.Sigma)
			}
			sum += math.Exp(l[k])
		}
		for k := range l {
			if want := l[k] - math.Log(sum); math.Abs(out[3*i+k]-want) > 1e-10 {
				t.Errorf("row %d, class %d: %g, want %g", i, k, out[3*i+k], want)
			}
		}
	}
	if err := j.Run(ctx, make([]float64, 16), nil, nil); err == nil || !strings.Contains(err.Error(), "is told a time") {
		t.Error(err)
	}
	if err := j.LogProb(ctx, q, 2, out); err == nil {
		t.Error("three classes for two models")
	}
}

func TestParseSidecarRefuses(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{`"denoiser"`, `"denoise"`, `type: unknown "denoise"; did you mean denoiser?`},
		{`"type": "denoiser", `, ``, "type is missing"},
		{`"process": {"type": "edm"}, `, ``, "process is missing"},
		{`"edm"`, `"edn"`, `unknown process "edn"`},
		{`"x0"`, `"y0"`, `prediction: unknown "y0"`},
		{`"prediction": "x0",`, ``, "prediction is missing"},
		{`"output": "denoised"`, `"outputs": "denoised"`, "output is missing"},
		{`"prediction"`, `"colour": 1, "prediction"`, `there is no "colour" here`},
		{`"is": "state"`, `"is": "stat"`, `inputs: "noisy": is: unknown "stat"; did you mean state?`},
		{`{"is": "state"}`, `"state"`, `inputs: "noisy": want an object`},
		{`"is": "state"`, `"is": "constant", "value": 0`, `one of them must be the state`},
		{`"is": "sigma"`, `"is": "state"`, `one of them must be the state`},
		{`"is": "sigma"`, `"is": "sigma", "range": [0, 1]`, `inputs: "sigma": there is no "range" here`},
		{`"is": "sigma"`, `"is": "class", "classes": 2`, "more than one of them stands for the class"},
		{`"classes": 3`, `"classes": 0`, "classes: want their number"},
		{`"classes": 3`, `"classes": 3, "labels": ["a"]`, "1 labels for 3 classes"},
		{`"null": 3`, `"null": 3.5`, "null: want a whole number"},
		{`"prediction"`, `"shape": [1, 0], "prediction"`, "is no shape of a row"},
		{`"prediction"`, `"range": [1, 1], "prediction"`, "range: want two numbers"},
		{`"prediction"`, `"sha256": "12", "prediction"`, "64 hexadecimal digits"},
		{`"prediction"`, `"steps": 1.5, "prediction"`, "steps: want a whole number"},
		{`"prediction": "x0",`, "\"prediction\": \"x0\",\n\n,", "line 3"},
		{`"inputs": {`, `"inputs": {"t": {"is": "embedding", "table": "../x.npz"}, `, "table: want the name of a .npz file beside the sidecar"},
	} {
		text := strings.Replace(gaussText, c.from, c.to, 1)
		if text == gaussText {
			t.Fatalf("%q is not in the text", c.from)
		}
		_, err := ParseSidecar("x.drift.json", []byte(text))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "x.drift.json: ") {
			t.Errorf("%s: %v, want %q", c.to, err, c.want)
		}
	}
	for _, text := range []string{
		`{"type": "classifier", "inputs": {"x": {"is": "state"}}, "output": "y"}`,
		`{"type": "classifier", "inputs": {"x": {"is": "picture"}, "t": {"is": "sigma"}}, "output": "y"}`,
		`{"type": "scorer", "inputs": {"x": {"is": "picture"}}, "output": "y", "mean": [1, 2], "std": [1]}`,
		`{"type": "scorer", "inputs": {"x": {"is": "picture"}}, "output": "y", "mean": 1, "std": 0}`,
	} {
		if _, err := ParseSidecar("x", []byte(text)); err == nil {
			t.Error(text)
		}
	}
}

// The template of every file of the tests is a sidecar that parses.
func TestTemplate(t *testing.T) {
	files, err := filepath.Glob("testdata/*.onnx")
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		f, err := ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s := mustParse(t, f.Template())
		for _, i := range s.Inputs {
			if _, ok := f.Input(i.Name); !ok {
				t.Errorf("%s: %s", name, i.Name)
			}
		}
	}
	f, err := ReadFile("testdata/gauss64.onnx")
	if err != nil {
		t.Fatal(err)
	}
	f.Path = "testdata/other.onnx"
	_, err = FindSidecar(f, "")
	m, ok := err.(*SidecarMissingError)
	if !ok || !strings.Contains(err.Error(), "other.drift.json; its inputs: noisy float64 [batch, 1, 4, 4]; sigma float64 [batch]; label int64 [batch]; its outputs: denoised") {
		t.Fatal(err)
	}
	want := `{"type": "denoiser", "process": {"type": "vp-discrete"}, "prediction": "eps", "shape": [1, 4, 4], "range": [-1, 1], "inputs": {"noisy": {"is": "state"}, "sigma": {"is": "sigma"}, "label": {"is": "class", "classes": 10}}, "output": "denoised"}`
	if m.Template != want {
		t.Errorf("template %s", m.Template)
	}
}

func TestKnown(t *testing.T) {
	if len(knownSidecars()) != 1 {
		t.Errorf("%d known networks", len(knownSidecars()))
	}
	for hash, s := range knownSidecars() {
		if len(hash) != 64 || known(hash) != s {
			t.Error(hash)
		}
	}
}

func TestScale(t *testing.T) {
	s := denoiser(t, "scalar").Net.Scale()
	x := models.Wrap([]float64{0, 1, 0.25}, 3)
	p, err := s.Decode(context.Background(), x)
	if err != nil || !slices.Equal(models.Data(p), []float64{-1, 1, -0.5}) {
		t.Error(models.Data(p), err)
	}
	if back, err := s.Encode(context.Background(), p); err != nil || !slices.Equal(models.Data(back), models.Data(x)) {
		t.Error(models.Data(back), err)
	}
	if denoiser(t, "gauss64").Net.Scale() != nil {
		t.Error("a scale for [-1, 1]")
	}
}

func FuzzSidecar(f *testing.F) {
	f.Add([]byte(gaussText))
	f.Add([]byte(`{"type": "classifier", "inputs": {"x": {"is": "picture"}, "c": {"is": "constant", "value": [1, 2]}}, "output": "y", "labels": ["a"], "mean": 1, "std": [2]}`))
	f.Add([]byte(`{"type": "denoiser", "inputs": {"x": {"is": "scalar", "classes": 3, "range": [0, 1]}}, "output": "y"`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseSidecar("x", text)
		if (err == nil) != (s != nil) || err != nil && strings.ContainsAny(err.Error(), "\n\r") {
			t.Errorf("%v, %v", s, err)
		}
	})
}

// Several goroutines may ask one session; sessions are apart.
func TestConcurrent(t *testing.T) {
	d := denoiser(t, "gauss")
	q := query(schedules.EDM{}, []int{1, 4, 4}, []float64{1, 2, 3}, []int{0, 1, 2})
	var want models.Pred
	if err := d.Predict(context.Background(), q, &want); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				var p models.Pred
				if err := d.Predict(context.Background(), q, &p); err != nil || !slices.Equal(models.Data(p.Out), models.Data(want.Out)) {
					t.Errorf("another answer, %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// The gradient by a second graph is the closed form, with and without EDM's preconditioning; hash and refusals.
func TestVJP(t *testing.T) {
	ctx := context.Background()
	l := library(t)
	plain, graded := denoiser(t, "gauss64"), denoiser(t, "graded")
	if _, ok := plain.Denoised().(models.VJP); ok || plain.Net.Hash == graded.Net.Hash {
		t.Error("a gradient without a graph, or no trace of it in the hash")
	}
	for _, sigmaData := range []float64{0, 0.7} {
		d := graded
		if sigmaData > 0 {
			s := *graded.Net.Sidecar
			s.SigmaData = sigmaData
			n, err := l.OpenNet(ctx, "testdata/graded.onnx", &s, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			if d, err = n.Denoiser(""); err != nil {
				t.Fatal(err)
			}
		}
		q := query(schedules.EDM{}, []int{1, 4, 4}, []float64{0.2, 4}, []int{1, 2})
		v, ok := models.As[models.VJP](models.Metered(d.Denoised()))
		if !ok {
			t.Fatal("no gradient")
		}
		var p, want models.Pred
		cot, grad := models.Wrap(normals(32, 9), 2, 1, 4, 4), models.New(2, 1, 4, 4)
		if err := v.VJP(ctx, q, &p, cot, grad); err != nil {
			t.Fatal(err)
		}
		if err := d.Predict(ctx, q, &want); err != nil || !slices.Equal(models.Data(p.Out), models.Data(want.Out)) {
			t.Error("another answer than Predict's", err)
		}
		for i, c := range models.Data(cot) {
			s := q.At[i/16].Sigma
			slope := 0.25 / (0.25 + s*s)
			if r := math.Hypot(s, sigmaData); sigmaData > 0 {
				slope = sigmaData*sigmaData/(r*r) + s*sigmaData/r/r*slope
			}
			if got := models.Data(grad)[i]; math.Abs(got-c*slope) > 1e-13 {
				t.Fatalf("sigma_data %g: %g, want %g", sigmaData, got, c*slope)
			}
		}
	}
	for _, c := range []struct{ vjp, want string }{
		{`{"file": "gauss64.vjp.onnx", "cotangent": "c", "output": "grad"}`, "its input cotangent float64 [batch, 1, 4, 4] is none of"},
		{`{"file": "gauss64.vjp.onnx", "cotangent": "cotangent", "output": "g"}`, "has no output g"},
		{`{"file": "away.onnx", "cotangent": "cotangent", "output": "grad"}`, "no such file"},
		{`{"file": "../x.onnx", "cotangent": "cotangent", "output": "grad"}`, "vjp: want file"},
		{`{"file": "x.onnx", "output": "grad"}`, "vjp: want file"},
	} {
		s, err := ParseSidecar("testdata/x.drift.json", []byte(strings.Replace(gaussText, `"prediction"`, `"vjp": `+c.vjp+`, "prediction"`, 1)))
		if err == nil {
			_, err = l.OpenNet(ctx, "testdata/gauss64.onnx", s, Options{})
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.vjp, err, c.want)
		}
	}
}
