package ort

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"drift/internal/refuse"
)

// library loads ONNX Runtime from DRIFT_ORT_LIB or the system, or skips the test.
func library(t testing.TB) *Library {
	t.Helper()
	if !supported {
		t.Skip("no ONNX Runtime in this build: skipped")
	}
	l, err := Load(Places{Named: os.Getenv("DRIFT_ORT_LIB")})
	var missing *MissingError
	if errors.As(err, &missing) && os.Getenv("DRIFT_ORT_LIB") == "" {
		t.Skip("no ONNX Runtime (DRIFT_ORT_LIB): skipped")
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func session(t testing.TB, name string) *Session {
	t.Helper()
	s, err := library(t).Open(context.Background(), filepath.Join("testdata", name+".onnx"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func tensorOf(t testing.TB, typ Type, shape []int, v ...float64) Tensor {
	t.Helper()
	x, err := NewTensor(typ, shape, v)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// normals are n values of a stream.
func normals(n int, seed uint64) []float64 {
	r := rand.New(rand.NewPCG(seed, 1))
	out := make([]float64, n)
	for i := range out {
		out[i] = r.NormFloat64()
	}
	return out
}

// The table's places as ONNX Runtime 1.17 to 1.30 have them, found by trying.
func TestTable(t *testing.T) {
	for name, c := range map[string][2]int{
		"CreateStatus": {apiCreateStatus, 0}, "GetErrorMessage": {apiGetErrorMessage, 2}, "CreateEnv": {apiCreateEnv, 3}, "CreateSession": {apiCreateSession, 7},
		"Run": {apiRun, 9}, "CreateSessionOptions": {apiCreateSessionOptions, 10}, "SetIntraOpNumThreads": {apiSetIntraOpNumThreads, 24},
		"CreateTensorWithDataAsOrtValue": {apiCreateTensorWithDataAsOrtValue, 49}, "CreateCpuMemoryInfo": {apiCreateCpuMemoryInfo, 69},
	} {
		if c[0] != c[1] {
			t.Errorf("%s stands at %d, the library has it at %d", name, c[0], c[1])
		}
	}
}

var means = []float64{-0.5, 0.25, 0.75, 0}

// posterior is E[x0|x] of N(m, 0.25).
func posterior(x, sigma, m float64) float64 { return (0.25*x + sigma*sigma*m) / (0.25 + sigma*sigma) }

func TestRun(t *testing.T) {
	x := normals(48, 1)
	sigma, label := []float64{0.1, 1, 80}, []float64{0, 3, 2}
	for _, c := range []struct {
		name, state, out string
		typ, sig, lab    Type
		tol              float64
	}{
		{"gauss64", "noisy", "denoised", Float64, Float64, Int64, 1e-14},
		{"external", "noisy", "denoised", Float64, Float64, Int64, 1e-14},
		{"gauss", "noisy", "denoised", Float32, Float32, Int64, 3e-7},
		{"half", "noisy16", "denoised16", Float16, Float32, Int32, 2e-3},
	} {
		s := session(t, c.name)
		out, err := s.Run(context.Background(), map[string]Tensor{
			c.state: tensorOf(t, c.typ, []int{3, 1, 4, 4}, x...), "sigma": tensorOf(t, c.sig, []int{3}, sigma...), "label": tensorOf(t, c.lab, []int{3}, label...),
		}, c.out)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(out[0].Shape, []int{3, 1, 4, 4}) || out[0].Type != c.typ {
			t.Errorf("%s: %v %v", c.name, out[0].Type, out[0].Shape)
		}
		for i, v := range out[0].Float64() {
			if want := posterior(x[i], sigma[i/16], means[int(label[i/16])]); math.Abs(v-want) > c.tol {
				t.Errorf("%s: %d: %g, want %g", c.name, i, v, want)
			}
		}
	}
}

func TestRunRefuses(t *testing.T) {
	s := session(t, "gauss64")
	good := map[string]Tensor{"noisy": tensorOf(t, Float64, []int{1, 1, 4, 4}, make([]float64, 16)...), "sigma": tensorOf(t, Float64, []int{1}, 1), "label": tensorOf(t, Int64, []int{1}, 0)}
	with := func(name string, x Tensor) map[string]Tensor {
		out := map[string]Tensor{}
		for k, v := range good {
			out[k] = v
		}
		if out[name] = x; x.bytes == nil {
			delete(out, name)
		}
		return out
	}
	for _, c := range []struct {
		in   map[string]Tensor
		out  string
		want string
	}{
		{with("sigma", Tensor{}), "denoised", "no value for its input sigma float64 [batch]"},
		{with("sigma", tensorOf(t, Float32, []int{1}, 1)), "denoised", "input sigma: a tensor of float32 for float64"},
		{with("noisy", tensorOf(t, Float64, []int{1, 4, 4}, make([]float64, 16)...)), "denoised", "shape [1 4 4] for noisy float64 [batch, 1, 4, 4]"},
		{with("noisy", tensorOf(t, Float64, []int{1, 1, 4, 5}, make([]float64, 20)...)), "denoised", "shape [1 1 4 5] for noisy"},
		{with("more", tensorOf(t, Float64, []int{1}, 1)), "denoised", `no input "more"; it has noisy float64`},
		{good, "noised", `no output "noised"; it has denoised float64 [batch, 1, 4, 4]`},
		{with("sigma", tensorOf(t, Float64, []int{2}, 1, 2)), "denoised", "makes batch 2, it is 1 in another input"},
		{with("label", tensorOf(t, Int64, []int{1}, 9)), "denoised", "idx=9 must be within the inclusive range"},
	} {
		_, err := s.Run(context.Background(), c.in, c.out)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	if _, err := NewTensor(Int64, []int{1}, []float64{math.NaN()}); err == nil {
		t.Error("NaN as a whole number")
	}
	if _, err := NewTensor(Float32, []int{2}, []float64{1}); err == nil {
		t.Error("one value for two")
	}
}

func TestCancel(t *testing.T) {
	s := session(t, "slow")
	in := map[string]Tensor{"x": tensorOf(t, Float32, nil, 0.01), "times": tensorOf(t, Int64, nil, 1e9)}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if _, err := s.Run(ctx, in, "out"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	in["times"] = tensorOf(t, Int64, nil, 2)
	if _, err := s.Run(context.Background(), in, "out"); err != nil {
		t.Errorf("after a cancelled call: %v", err)
	}
	if _, err := s.Run(ctx, in, "out"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a context that has ended: %v", err)
	}
	s.Close()
	s.Close()
	if _, err := s.Run(context.Background(), in, "out"); err == nil {
		t.Error("a closed session runs")
	}
}

// Nothing stays in the library, whatever way a call ends, and memory does not grow.
func TestNoLeaks(t *testing.T) {
	l := library(t)
	before := l.Live()
	round := func() {
		s, err := l.Open(context.Background(), filepath.Join("testdata", "gauss.onnx"), Options{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		in := map[string]Tensor{"noisy": tensorOf(t, Float32, []int{64, 1, 4, 4}, make([]float64, 1024)...), "sigma": tensorOf(t, Float32, []int{64}, make([]float64, 64)...), "label": tensorOf(t, Int64, []int{64}, make([]float64, 64)...)}
		for range 20 {
			if _, err := s.Run(context.Background(), in, "denoised"); err != nil {
				t.Fatal(err)
			}
		}
		in["label"] = tensorOf(t, Int64, []int{64}, slices.Repeat([]float64{99}, 64)...)
		if _, err := s.Run(context.Background(), in, "denoised"); err == nil {
			t.Fatal("label 99")
		}
		s.Close()
		if _, err := l.Open(context.Background(), filepath.Join("testdata", "make.py"), Options{}); err == nil {
			t.Fatal("a Python file opens")
		}
	}
	for range 20 {
		round()
	}
	start := resident(t)
	for range 100 {
		round()
	}
	if grown := resident(t) - start; grown > 16<<20 {
		t.Errorf("100 rounds took %d bytes", grown)
	}
	if l.Live() != before {
		t.Errorf("%d things of the library are left, %d before", l.Live(), before)
	}
}

// resident is the memory of the process, 0 where the system does not tell.
func resident(t *testing.T) int {
	runtime.GC()
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	n := 0
	for _, c := range strings.Fields(string(raw))[1] {
		n = 10*n + int(c-'0')
	}
	return n * os.Getpagesize()
}

// Broken files are refused in one line, by whoever sees it first.
func TestHostile(t *testing.T) {
	l := library(t)
	dir := t.TempDir()
	raw, err := os.ReadFile("testdata/gauss.onnx")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "x.onnx")
	try := func(what string, data []byte) {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := l.Open(context.Background(), path, Options{Threads: 1})
		var refused *refuse.Error
		switch {
		case err == nil: // a change that does no harm
			s.Close()
		case !errors.As(err, &refused) || strings.ContainsAny(err.Error(), "\n\r") || len(err.Error()) > 1000:
			t.Errorf("%s: %q", what, err)
		}
	}
	for n := range raw {
		if n%3 == 0 {
			try("cut", raw[:n])
		}
	}
	r := rand.New(rand.NewPCG(3, 3))
	for range 300 {
		b := slices.Clone(raw)
		for range 1 + r.IntN(6) {
			b[r.IntN(len(b))] = byte(r.Uint32())
		}
		try("flipped", b)
	}
	for range 50 {
		b := make([]byte, r.IntN(400))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		try("random", b)
	}
	for name, want := range map[string]string{"away.onnx": "no such file", "external.onnx": "external.bin beside it, which is not there"} {
		path := filepath.Join(dir, name)
		if name != "away.onnx" {
			b, err := os.ReadFile(filepath.Join("testdata", name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Open(context.Background(), path, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "external.bin"), []byte("short"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Open(context.Background(), filepath.Join(dir, "external.onnx"), Options{}); err == nil || !strings.Contains(err.Error(), "bytes of external.bin, which has 5") {
		t.Error(err)
	}
}

// Graphs that are none are refused when they are opened, one that wants more memory than there is when it runs.
func TestHostileGraphs(t *testing.T) {
	l := library(t)
	for name, want := range map[string]string{"cycle": "not acyclic", "unknown": "No Op registered for NoSuchOp", "negative": "non-negative", "dangling": "nowhere"} {
		_, err := l.Open(context.Background(), filepath.Join("testdata", "hostile", name+".onnx"), Options{})
		var refused *refuse.Error
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	s := session(t, filepath.Join("hostile", "enormous"))
	if _, err := s.Run(context.Background(), map[string]Tensor{"x": tensorOf(t, Float32, []int{1}, 1)}, "y"); err == nil || !strings.Contains(err.Error(), "overflow") {
		t.Error(err)
	}
}

// What is not the library says so, with the way to get it.
func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "libjunk.so")
	if err := os.WriteFile(junk, []byte("not a library"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, named := range []string{junk, filepath.Join(dir, "away.so"), dir} {
		_, err := Load(Places{Named: named})
		var missing *MissingError
		if !errors.As(err, &missing) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", named, err)
			continue
		}
		if supported && !strings.Contains(err.Error(), "onnxruntime-node@"+Release) {
			t.Errorf("%s: no way to get it: %v", named, err)
		}
	}
}
