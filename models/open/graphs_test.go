package open

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"drift/internal/npz"
	"drift/models"
	"drift/models/diffusers"
	"drift/models/engine"
	"drift/models/native"
	"drift/models/ort"
)

// runtimeLibrary loads ONNX Runtime from DRIFT_ORT_LIB or the system, or skips the test.
func runtimeLibrary(t testing.TB) *ort.Library {
	t.Helper()
	l, err := ort.Load(ort.Places{Named: os.Getenv("DRIFT_ORT_LIB")})
	var missing *ort.MissingError
	if errors.As(err, &missing) && os.Getenv("DRIFT_ORT_LIB") == "" {
		t.Skip("no ONNX Runtime (DRIFT_ORT_LIB): skipped")
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// question reads io.npz into a forward pass.
func question(t testing.TB, path string) (x []float64, b *native.Batch, want []float64) {
	t.Helper()
	all, err := npz.ReadAll(path)
	if err != nil {
		t.Fatal(err)
	}
	b = &native.Batch{Inputs: map[string]engine.Array{}}
	var shape []int
	for name, a := range all {
		v, err := a.Float64()
		if err != nil {
			t.Fatal(err)
		}
		switch name {
		case "sample", "hidden_states":
			x, shape = v, a.Shape
		case "timestep":
			b.T = v
		case "class_labels":
			for _, k := range v {
				b.Class = append(b.Class, int(k))
			}
		case "out":
			want = v
		case "out_onnxruntime", "cotangent", "vjp", "img_ids", "txt_ids":
		default:
			s := engine.Array{Shape: a.Shape}
			for _, f := range v {
				s.Data = append(s.Data, float32(f))
			}
			b.Inputs[name] = s
		}
	}
	if len(b.T) == 1 {
		b.T = slices.Repeat(b.T, shape[0])
	}
	if len(shape) == 3 { // Flux's tokens, in a grid of 4 x 6
		shape = []int{shape[0], shape[2] / 4, 8, 12}
	}
	b.H, b.W = shape[2], shape[3]
	return x, b, want
}

func relative(a, b []float64) float64 {
	d, n := 0.0, 0.0
	for i := range a {
		d += (a[i] - b[i]) * (a[i] - b[i])
		n += b[i] * b[i]
	}
	return math.Sqrt(d / n)
}

// graphOf opens the denoiser of a folder of graphs.
func graphOf(t testing.TB, dir string) *graphNet {
	t.Helper()
	part := "unet"
	if exists(filepath.Join(dir, "transformer")) {
		part = "transformer"
	}
	cfg, err := diffusers.ReadConfig(filepath.Join(dir, part, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	g := &graphs{dir: dir, ctx: context.Background(), lib: runtimeLibrary(t)}
	n, err := g.network(part, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// The graphs of the fixtures give what a float64 run of their source gives, to the fixtures' 5e-6, and so what the engine
// gives on the weights themselves; one by one they give the same bits as together.
func TestGraphsAgainstEngine(t *testing.T) {
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	ctx := context.Background()
	for name, source := range map[string]string{"onnx-unet2d-plain": "unet2d-plain", "onnx-unet2dcond-sd1": "unet2dcond-sd1",
		"onnx-unet2dcond-lcm-mask": "unet2dcond-lcm-mask", "onnx-unet2d-modern-dynamo": "unet2d-modern"} {
		dir := filepath.Join(root, "models", name)
		x, b, want := question(t, filepath.Join(dir, "io.npz"))
		net := graphOf(t, dir)
		got := make([]float64, len(want))
		if err := net.Forward(ctx, got, x, b); err != nil {
			t.Fatal(name, err)
		}
		if e := relative(got, want); !(e < 5e-6) {
			t.Errorf("%s: %g from the float64 run", name, e)
		}
		m, err := diffusers.Open(filepath.Join(root, "models", source), diffusers.Options{})
		if err != nil {
			t.Fatal(err)
		}
		own, err := native.New(m.Config, m.Weights, native.Options{})
		if err != nil {
			t.Fatal(err)
		}
		ours := make([]float64, len(want))
		if err := own.Forward(ctx, ours, x, b); err != nil {
			t.Fatal(name, err)
		}
		if e := relative(got, ours); !(e < 5e-6) {
			t.Errorf("%s: %g from the engine", name, e)
		}
		own.Close()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		rows := len(b.T)
		for i := range rows {
			one := native.Batch{H: b.H, W: b.W, T: b.T[i : i+1], Inputs: map[string]engine.Array{}}
			if b.Class != nil {
				one.Class = b.Class[i : i+1]
			}
			for name, a := range b.Inputs {
				one.Inputs[name] = engine.Array{Shape: append([]int{1}, a.Shape[1:]...), Data: a.Row(i)}
			}
			alone := make([]float64, len(want)/rows)
			if err := net.Forward(ctx, alone, x[i*len(x)/rows:(i+1)*len(x)/rows], &one); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(alone, got[i*len(alone):(i+1)*len(alone)]) {
				t.Errorf("%s: image %d alone has other bits", name, i)
			}
		}
	}
}

// The same for what testdata/export.py made of other classes: SDXL, SD3, DiT, Flux.
func TestExports(t *testing.T) {
	root := os.Getenv("DRIFT_ONNX_EXPORTS")
	if root == "" {
		t.Skip("DRIFT_ONNX_EXPORTS is not set")
	}
	for _, name := range []string{"unet2d-modern", "unet2dcond-sdxl", "sd3", "dit", "flux"} {
		x, b, want := question(t, filepath.Join(root, name, "io.npz"))
		net := graphOf(t, filepath.Join(root, name))
		got := make([]float64, len(want))
		if name == "flux" { // the answer is tokens, the interface's are images
			if err := net.Forward(context.Background(), got, unpacked(x, len(b.T)), b); err != nil {
				t.Fatal(name, err)
			}
			want = unpacked(want, len(b.T))
		} else if err := net.Forward(context.Background(), got, x, b); err != nil {
			t.Fatal(name, err)
		}
		most := 5e-6
		if name == "flux" {
			most = 2.4e-5 // its sinusoids of 1000 t are float32 in the graph, as in torch, which is 1.2e-5 away itself
		}
		if e := relative(got, want); !(e < most) {
			t.Errorf("%s: %g from the float64 run", name, e)
		} else {
			t.Logf("%s: %.2g", name, e)
		}
	}
}

// A whole pipeline of graphs opens as the native folder does; what cannot be is said.
func TestGraphPipeline(t *testing.T) {
	lib := runtimeLibrary(t)
	ctx := context.Background()
	opt := Options{ORT: func() (*ort.Library, error) { return lib, nil }}
	m, err := Open(ctx, "testdata/onnx-sd1", opt)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !m.Info.Text || !slices.Equal(m.Info.Shape, []int{4, 16, 16}) || !slices.Equal(m.Info.Picture, []int{3, 32, 32}) || !strings.HasPrefix(m.Info.Runtime, "onnxruntime ") || m.Net != nil {
		t.Errorf("%+v", m.Info)
	}
	if _, ok := models.As[models.VJP](m.Denoiser); ok {
		t.Error("it offers gradients")
	}
	x := models.New(1, 3, 32, 32)
	z, err := m.Codec.Encode(ctx, x)
	if err != nil || !slices.Equal([]int(z.Shape()), []int{1, 4, 16, 16}) {
		t.Error(z, err)
	}
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{DType: "bf16"}, "computes in f32: the arithmetic of an ONNX graph is inside, not bf16"}, {Options{Pipeline: Pipeline{LoRA: "x"}}, "no LoRA can be merged"},
	} {
		c.o.ORT = opt.ORT
		var asked *AskedError
		if _, err := Open(ctx, "testdata/onnx-sd1", c.o); !errors.As(err, &asked) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// The first exports have no configurations beside their graphs, and one name for all of them.
func TestOldGraphs(t *testing.T) {
	lib := runtimeLibrary(t)
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/onnx-sd1")); err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile(filepath.Join(dir, "model_index.json"))
	if err != nil {
		t.Fatal(err)
	}
	index = []byte(strings.NewReplacer("optimum.onnxruntime.modeling_diffusion", "diffusers", "ORTUnet", "OnnxRuntimeModel", "ORTVaeDecoder", "OnnxRuntimeModel",
		"ORTVaeEncoder", "OnnxRuntimeModel", "ORTTextEncoder", "OnnxRuntimeModel").Replace(string(index)))
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "model_index.json"), index, 0o644), os.Remove(filepath.Join(dir, "unet", "config.json"))); err != nil {
		t.Fatal(err)
	}
	m, err := Open(context.Background(), dir, Options{ORT: func() (*ort.Library, error) { return lib, nil }, Pipeline: Pipeline{Width: 32, Height: 32}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !slices.Equal(m.Info.Shape, []int{4, 16, 16}) || m.Info.DType != "f32" || !strings.Contains(strings.Join(m.Notes, ";"), "its unet has no config.json") {
		t.Errorf("%+v %q", m.Info, m.Notes)
	}
}

// A graph that takes one time for all images is asked image by image where they have several.
func TestScalarTime(t *testing.T) {
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" {
		t.Skip("DRIFT_FIXTURES is not set")
	}
	ctx := context.Background()
	dir := filepath.Join(root, "models", "onnx-unet2dcond-lcm-mask")
	x, b, want := question(t, filepath.Join(dir, "io.npz"))
	net := graphOf(t, dir)
	out := make([]float64, len(want))
	b.T = []float64{b.T[0], 3}
	if err := net.Forward(ctx, out, x, b); err != nil {
		t.Fatal(err)
	}
	half := len(want) / 2
	if e := relative(out[:half], want[:half]); !(e < 5e-6) {
		t.Errorf("the first image is %g from its own time's", e)
	}
	if e := relative(out[half:], want[half:]); e < 1e-3 {
		t.Errorf("the second image does not see its time: %g", e)
	}
}

// Of a network whose data is in [0, 1] rewards and energies see pictures in [-1, 1], and gradients go through that.
func TestScaled(t *testing.T) {
	lib := runtimeLibrary(t)
	ctx := context.Background()
	m, err := Open(ctx, "../ort/testdata/scalar.onnx", Options{ORT: func() (*ort.Library, error) { return lib, nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	dec, ok := models.As[models.Decoder](m.Denoiser)
	if !ok || !slices.Equal(m.Info.Picture, []int{1, 4, 4}) {
		t.Fatalf("%+v", m.Info)
	}
	z, g := models.Wrap([]float64{0, 0.25, 1}, 3), models.New(3)
	if err := dec.DecodeLate(ctx, z, func(x *tensor.Dense) (*tensor.Dense, error) {
		if !slices.Equal(models.Data(x), []float64{-1, -0.5, 1}) {
			t.Errorf("pictures %v", models.Data(x))
		}
		return models.Wrap([]float64{1, 2, 3}, 3), nil
	}, g); err != nil || !slices.Equal(models.Data(g), []float64{2, 4, 6}) {
		t.Error(models.Data(g), err)
	}
}

// unpacked turns tokens of a grid of 4 x 6 into images.
func unpacked(tokens []float64, n int) []float64 {
	c := len(tokens) / n / 24 / 4
	out := make([]float64, len(tokens))
	for i := range n {
		for h := range 4 {
			for w := range 6 {
				for k := range c {
					for p := range 4 {
						out[((i*c+k)*8+2*h+p/2)*12+2*w+p%2] = tokens[((i*24+h*6+w)*c+k)*4+p]
					}
				}
			}
		}
	}
	return out
}

// BenchmarkGraph and BenchmarkEngine run one network of the fixtures both ways.
func BenchmarkGraph(b *testing.B) {
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" {
		b.Skip("DRIFT_FIXTURES is not set")
	}
	net := graphOf(b, filepath.Join(root, "models", "onnx-unet2d-plain"))
	x, q, want := question(b, filepath.Join(root, "models", "onnx-unet2d-plain", "io.npz"))
	bench(b, net, x, q, want)
}

func BenchmarkEngine(b *testing.B) {
	root := os.Getenv("DRIFT_FIXTURES")
	if root == "" {
		b.Skip("DRIFT_FIXTURES is not set")
	}
	m, err := diffusers.Open(filepath.Join(root, "models", "unet2d-plain"), diffusers.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	net, err := native.New(m.Config, m.Weights, native.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer net.Close()
	x, q, want := question(b, filepath.Join(root, "models", "onnx-unet2d-plain", "io.npz"))
	bench(b, net, x, q, want)
}

func bench(b *testing.B, net native.Network, x []float64, q *native.Batch, want []float64) {
	out := make([]float64, len(want))
	for b.Loop() {
		if err := net.Forward(context.Background(), out, x, q); err != nil {
			b.Fatal(err)
		}
	}
}
