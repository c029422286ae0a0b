package ort

import (
	"context"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"drift/internal/npz"
	"drift/models"
	"drift/schedules"
)

// TestTerrain runs a network that others made and trained, a consistency model of heightmaps (package
// adaptive-terrain-diffusion 0.4.2, see docs/onnx.md), against what Python's ONNX Runtime gave for the same input
// (testdata/terrain.npz by testdata/terrain.py), and against that itself where Python has it. DRIFT_TERRAIN names the
// network.
func TestTerrain(t *testing.T) {
	path := os.Getenv("DRIFT_TERRAIN")
	if path == "" {
		t.Skip("no terrain network (DRIFT_TERRAIN): skipped")
	}
	ctx := context.Background()
	n, err := library(t).OpenNet(ctx, path, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if n.Sidecar.Path != "adaptive-terrain-diffusion.drift.json" {
		t.Errorf("the sidecar is %s, want the one that drift carries", n.Sidecar.Path)
	}
	d, err := n.Denoiser("terrain")
	if err != nil {
		t.Fatal(err)
	}
	gold, err := npz.ReadAll("testdata/terrain.npz")
	if err != nil {
		t.Fatal(err)
	}
	get := func(name string) []float64 {
		v, err := gold[name].Float64()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	const w = 128 * 128
	q := &models.Query{X: models.New(2, 1, 128, 128), Cond: &models.Cond{Classes: []int{59, 10}}}
	for i, s := range get("sigma") {
		q.At = append(q.At, schedules.EDM{}.AtRatio(s))
		for k := range w {
			u := float64((1103515245*int64(i*w+k)+12345)%(1<<31))/(1<<30) - 1
			models.Data(q.X)[i*w+k] = float64(float32(u * s * math.Sqrt(3)))
		}
	}
	var p models.Pred
	if err := d.Predict(ctx, q, &p); err != nil {
		t.Fatal(err)
	}
	out := models.Data(p.Out)
	part, norm := get("part"), 0.0
	for _, v := range out {
		norm += v * v
	}
	if want := get("norm")[0]; math.Abs(math.Sqrt(norm)-want) > 1e-5*want {
		t.Errorf("norm %g, want %g", math.Sqrt(norm), want)
	}
	var worst float64
	for i := range 2 {
		for y := range 32 {
			for x := range 32 {
				worst = max(worst, math.Abs(out[i*w+4*y*128+4*x]-part[(i*32+y)*32+x]))
			}
		}
	}
	if worst > 1e-5 { // data in [-1, 1]; another version of the library, another machine
		t.Errorf("%g from Python's ONNX Runtime", worst)
	}

	python := os.Getenv("DRIFT_PYTHON")
	if python == "" {
		python = "python3"
	}
	if exec.Command(python, "-c", "import onnxruntime, numpy").Run() != nil {
		t.Log("Python has no onnxruntime (DRIFT_PYTHON): compared with its recorded answer only")
		return
	}
	dir := t.TempDir()
	in, answer := filepath.Join(dir, "in.npz"), filepath.Join(dir, "out.npz")
	narrow := make([]float32, 2*w)
	for i, v := range models.Data(q.X) {
		narrow[i] = float32(v)
	}
	if err := npz.Write(in, npz.Array{Name: "noisy", Shape: []int{2, 1, 128, 128}, Data: narrow}, npz.Array{Name: "sigma", Shape: []int{2}, Data: []float32{80, 1.5}},
		npz.Array{Name: "difficulty", Shape: []int{2}, Data: []float32{59. / 99, 10. / 99}}); err != nil {
		t.Fatal(err)
	}
	if msg, err := exec.Command(python, filepath.Join("testdata", "terrain.py"), path, in, answer).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, msg)
	}
	there, err := npz.ReadAll(answer)
	if err != nil {
		t.Fatal(err)
	}
	v, err := there["denoised"].Float64()
	if err != nil {
		t.Fatal(err)
	}
	gap := 0.0
	for i := range v {
		gap = max(gap, math.Abs(v[i]-out[i]))
	}
	t.Logf("largest difference from Python's ONNX Runtime: %.2g", gap)
	if gap > 1e-5 {
		t.Errorf("%g from Python's ONNX Runtime", gap)
	}
}
