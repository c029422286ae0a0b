package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"drift/internal/npz"
	"drift/internal/refuse"
	"drift/models/ort"
	"drift/schedules"
)

// graphFile is the ONNX file that a name stands for: the file itself, the model.onnx of a folder, or that of the denoiser
// of a folder with several; "" if it is something else.
func graphFile(name string) string {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return ""
	case !info.IsDir():
		if strings.EqualFold(filepath.Ext(name), ".onnx") {
			return name
		}
		return ""
	}
	for _, part := range []string{"", "unet", "transformer"} {
		if path := filepath.Join(name, part, "model.onnx"); exists(path) {
			return path
		}
	}
	return ""
}

// onnxInfo says what an ONNX file is. It needs no library.
func (a *app) onnxInfo(path string) error {
	f, err := ort.ReadFile(path)
	if err != nil {
		return err
	}
	hash, err := f.Hash()
	if errors.Is(err, os.ErrNotExist) {
		a.warn("%v", err)
	} else if err != nil {
		return err
	}
	s, err := ort.FindSidecar(f, hash)
	var missing *ort.SidecarMissingError
	if err != nil && !errors.As(err, &missing) {
		return err
	}
	var process []byte
	if s != nil && s.Process != nil {
		if process, err = schedules.MarshalProcess(s.Process); err != nil {
			return err
		}
	}
	ports := func(list []ort.Port) (out []string) {
		for _, p := range list {
			out = append(out, p.String())
		}
		return out
	}
	if a.json {
		e := map[string]any{"name": path, "hash": hash, "producer": f.Producer, "opset": f.Opsets[""], "nodes": f.Nodes, "parameters": f.Params,
			"inputs": ports(f.Inputs), "outputs": ports(f.Outputs), "external": f.External, "metadata": f.Metadata}
		if s != nil {
			e["type"], e["sidecar"] = s.Type, s.Path
		} else {
			e["template"] = missing.Template
		}
		if process != nil {
			e["process"], e["prediction"] = string(process), s.Prediction.String()
		}
		a.emit(e)
		return nil
	}
	line := func(key, format string, args ...any) {
		fmt.Fprintf(a.out, "%-12s %s\n", key, oneLine(fmt.Sprintf(format, args...)))
	}
	line("name", "%s", path)
	line("hash", "%s", hash)
	line("graph", "%d nodes, operators of version %d, written by %s", f.Nodes, f.Opsets[""], f.Producer)
	line("parameters", "%d", f.Params)
	for _, p := range f.Inputs {
		line("input", "%s", p)
	}
	for _, p := range f.Outputs {
		line("output", "%s", p)
	}
	for _, name := range f.External {
		line("weights in", "%s", name)
	}
	if s == nil {
		line("sidecar", "none: a denoiser wants %s, such as %s", missing.Path, missing.Template)
		return nil
	}
	line("sidecar", "%s: a %s", s.Path, s.Type)
	if process != nil {
		line("process", "%s", process)
		line("prediction", "%s", s.Prediction)
	}
	if s.Sampler != "" {
		line("sampler", "%s, %d steps", s.Sampler, s.Steps)
	}
	return nil
}

// onnxVerify reads all of an ONNX file, and opens it where there is a library.
func (a *app) onnxVerify(ctx context.Context, path string) (string, error) {
	f, err := ort.ReadFile(path)
	if err != nil {
		return "", err
	}
	what := fmt.Sprintf("ONNX network of %d nodes with %d parameters, operators of version %d", f.Nodes, f.Params, f.Opsets[""])
	hash, err := f.Hash()
	if errors.Is(err, os.ErrNotExist) {
		return "", refuse.Errorf(path, "its weights lie in %s, which is not there", strings.Join(f.External, ", "))
	} else if err != nil {
		return "", err
	}
	s, err := ort.FindSidecar(f, hash)
	var none *ort.SidecarMissingError
	if err != nil && !errors.As(err, &none) {
		return "", err
	}
	lib, err := a.ort()
	var missing *ort.MissingError
	if errors.As(err, &missing) {
		return what + "; not opened: ONNX Runtime is not there", nil
	} else if err != nil {
		return "", err
	}
	if s == nil {
		session, err := lib.Open(ctx, path, ort.Options{})
		if err != nil {
			return "", err
		}
		session.Close()
		return what + ", without a sidecar", nil
	}
	net, err := lib.OpenNet(ctx, path, s, ort.Options{})
	if err != nil {
		return "", err
	}
	defer net.Close()
	return what + "; " + net.Describe(), nil
}

// onnxRun makes one forward pass: arrays by the names of the graph's inputs. The first output is out, too.
func (a *app) onnxRun(c *cli.Context, path, in, out string, args map[string]*npz.Array) error {
	lib, err := a.ort()
	if err != nil {
		return err
	}
	s, err := lib.Open(c.Context, path, ort.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	feed := map[string]ort.Tensor{}
	for _, p := range s.File.Inputs {
		x := args[p.Name]
		if x == nil {
			return refuse.Errorf(in, "has no array for the input %s", p)
		}
		v, err := x.Float64()
		if err != nil {
			return refuse.Errorf(in, "%s: %v", p.Name, err)
		}
		shape := x.Shape
		if p.Ranks && len(p.Dims) == 0 && len(v) == 1 {
			shape = nil
		}
		if feed[p.Name], err = ort.NewTensor(p.Type, shape, v); err != nil {
			return refuse.Errorf(in, "%s: %s", p.Name, trimPackage(err.Error()))
		}
	}
	var names []string
	for _, p := range s.File.Outputs {
		names = append(names, p.Name)
	}
	results, err := s.Run(c.Context, feed, names...)
	if err != nil {
		if c.Context.Err() != nil {
			return err
		}
		return refuse.Errorf(in, "%s", trimPackage(err.Error()))
	}
	var arrays []npz.Array
	for i, x := range results {
		v := x.Float64()
		array := npz.Array{Name: names[i], Shape: x.Shape, Data: single(v)}
		if x.Type == ort.Float64 {
			array.Data = v
		}
		if i == 0 && !slices.Contains(names, "out") {
			first := array
			first.Name = "out"
			arrays = append(arrays, first)
		}
		arrays = append(arrays, array)
	}
	if err := npz.Write(out, arrays...); err != nil {
		return err
	}
	a.say("drift: %s", out)
	return nil
}

// onnxBench times the forward pass of a graph on made-up inputs: free sizes are those of the sidecar or --batch.
func (a *app) onnxBench(c *cli.Context, path string, batch, rounds int) error {
	for _, f := range []string{"vjp", "profile", "dtype"} {
		if c.IsSet(f) {
			return usagef("--%s: ONNX Runtime runs %s: it has no gradients, and its layers and types are its own", f, path)
		}
	}
	lib, err := a.ort()
	if err != nil {
		return err
	}
	s, err := lib.Open(c.Context, path, ort.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	var shape []int
	if hash, err := s.File.Hash(); err == nil {
		if side, err := ort.FindSidecar(s.File, hash); err == nil {
			shape = side.Shape
		}
	}
	feed, err := s.Example(batch, shape)
	if err != nil {
		return usagef("model bench %s: %s", path, trimPackage(err.Error()))
	}
	out := s.File.Outputs[0].Name
	var times []time.Duration
	for i := range rounds + 1 {
		start := time.Now()
		if _, err := s.Run(c.Context, feed, out); err != nil {
			return err
		}
		if i > 0 { // the first call lays out its memory
			times = append(times, time.Since(start))
		}
	}
	slices.Sort(times)
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	minimum, median := ms(times[0]), ms(times[len(times)/2])
	runs := "onnxruntime " + lib.Version()
	if a.json {
		a.emit(map[string]any{"model": path, "batch": batch, "runtime": runs, "threads": runtime.GOMAXPROCS(0), "rounds": rounds, "min_ms": minimum, "median_ms": median, "parameters": s.File.Params})
		return nil
	}
	fmt.Fprintf(a.out, "batch %d, %s, %d threads: min %.3f ms, median %.3f ms\n", batch, runs, runtime.GOMAXPROCS(0), minimum, median)
	return nil
}
