package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/internal/npz"
	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/internal/strictjson"
	"drift/models/analytic"
	"drift/models/diffusers"
	"drift/models/native"
	"drift/schedules"
)

func modelVerb(a *app) *cli.Command {
	model := func(more ...cli.Flag) []cli.Flag {
		return append([]cli.Flag{
			&cli.StringFlag{Name: "dtype", Usage: "arithmetic of the network: f32, bf16 (`T`)"},
			&cli.StringFlag{Name: "tier", Usage: "kernel tier (`TIER`); default: the best this CPU has"},
		}, more...)
	}
	return &cli.Command{
		Name: "model", Usage: "look into, check, run and time models", UsageText: "VERB [flags] X",
		Subcommands: []*cli.Command{
			{
				Name: "info", Usage: "say what a model is", UsageText: "X",
				Description: "The memory line is what a forward pass of --batch images holds: packed weights, and activations with what the kernels need.",
				Flags:       model(append(fileFlags(), &cli.IntFlag{Name: "batch", Usage: "images at a time, for the memory line (`B`)", Value: 1})...),
				Action:      func(c *cli.Context) error { return a.modelInfo(c) },
			},
			{
				Name: "verify", Usage: "read all of a file or folder with every check", UsageText: "X",
				Description: "X is an embedded model, a folder, a repository in the cache, or a .safetensors, .gguf, torch, .onnx, .npy, .npz or .json file (target, network or scheduler configuration). Exit code 3 when it is refused.",
				Flags:       fileFlags(),
				Action:      func(c *cli.Context) error { return a.modelVerify(c) },
			},
			{
				Name: "run", Usage: "make one forward pass", UsageText: "X --in IN.npz --out OUT.npz",
				Description: "IN.npz holds the arguments under the reference's names: sample, timestep, class_labels. OUT.npz gets out, and vjp with --vjp. For an analytic target timestep is the process's own time. The arrays of an ONNX file have the names of its inputs, and every output is written.",
				Flags: model(append(fileFlags(),
					&cli.StringFlag{Name: "in", Usage: "arguments (`IN.npz`)"},
					&cli.StringFlag{Name: "out", Usage: "result (`OUT.npz`)"},
					&cli.StringFlag{Name: "vjp", Usage: "also the gradient of sum(out * cotangent) with respect to sample (`COTANGENT`): an array of IN.npz, or a .npz that holds cotangent"},
					&cli.StringFlag{Name: "part", Usage: "of an autoencoder: encode or decode; of a pipeline in one file also text or text_2 (`PART`)"},
				)...),
				Action: func(c *cli.Context) error { return a.modelRun(c) },
			},
			{
				Name: "bench", Usage: "time the forward pass", UsageText: "X",
				Description: "X is a model, or a network's config.json (weights of the true size are made up); of an autoencoder the decoder is timed. Prints the time of loading, the shortest and the median time, multiply-adds per second of the shortest, and what share of the registers' peak that is (more than 100 % where Winograd saves multiplications).",
				Flags: model(
					&cli.IntFlag{Name: "batch", Usage: "images at a time (`B`)", Value: 1},
					&cli.IntFlag{Name: "rounds", Usage: "forward passes to time (`N`)", Value: 10},
					&cli.BoolFlag{Name: "vjp", Usage: "time the gradient with respect to the image too"},
					&cli.BoolFlag{Name: "profile", Usage: "print a table of the layers: output, time, rate"},
				),
				Action: func(c *cli.Context) error { return a.modelBench(c) },
			},
			modelConvertVerb(a),
			modelRandomVerb(a),
		},
	}
}

func (a *app) modelInfo(c *cli.Context) error {
	name, err := oneArg(c, "a model")
	if err != nil {
		return err
	}
	if path := graphFile(name); path != "" && !exists(filepath.Join(name, "model_index.json")) {
		return a.onnxInfo(path)
	}
	if known, err := inOneFile(name); err != nil {
		return err
	} else if known {
		return a.fileInfo(c, name)
	}
	if exists(filepath.Join(name, "config.json")) { // a network without a process around it
		what, err := verifyRepository(name)
		if err != nil {
			return err
		}
		a.printVerified(name, what)
		return nil
	}
	m, err := a.openModel(c.Context, name, c.String("dtype"), c.String("tier"))
	if err != nil {
		return err
	}
	defer m.Close()
	i, d := m.Info, m.Defaults
	var process json.RawMessage
	if b, err := schedules.MarshalProcess(m.Denoiser.Process()); err == nil {
		process = b
	}
	batch := c.Int("batch")
	if batch < 1 || batch > 1<<16 {
		return usagef("--batch wants 1 or more")
	}
	macs, memory := 0, native.Memory{}
	if m.Net != nil && len(i.Shape) == 3 {
		if macs, err = m.Net.MACs(i.Shape[1], i.Shape[2]); err != nil {
			return err
		}
		if memory, err = m.Net.Need(i.Shape[1], i.Shape[2], batch); err != nil {
			return err
		}
	}
	if a.json {
		a.emit(map[string]any{"name": name, "hash": i.Hash, "shape": i.Shape, "classes": i.Classes, "labels": i.Labels, "dtype": i.DType, "tier": i.Tier, "runtime": i.Runtime,
			"parameters": i.Params, "macs": macs, "batch": batch, "memory": memory, "process": process, "sampler": d.Sampler, "schedule": d.Schedule, "steps": d.Steps, "guiders": d.Guiders})
		return nil
	}
	line := func(key, format string, args ...any) {
		fmt.Fprintf(a.out, "%-12s "+format+"\n", append([]any{key}, args...)...)
	}
	line("name", "%s", name)
	line("hash", "%s", i.Hash)
	line("shape", "%v", i.Shape)
	if i.Classes > 0 {
		line("classes", "%d: %s", i.Classes, oneLine(strings.Join(i.Labels, ", ")))
	}
	line("arithmetic", "%s %s", i.DType, i.Tier)
	if i.Runtime != "" {
		line("runtime", "%s", i.Runtime)
	}
	line("parameters", "%d", i.Params)
	if macs > 0 {
		line("multiply-adds", "%.4g million per image", float64(macs)/1e6)
		line("memory", "%.1f MB at batch %d: packed weights %.1f, activations %.1f", float64(memory.Weights+memory.Activations)/1e6, batch,
			float64(memory.Weights)/1e6, float64(memory.Activations)/1e6)
	}
	line("process", "%s", string(process))
	line("sampler", "%s, %d steps", d.Sampler, d.Steps)
	if d.Schedule != "" {
		line("schedule", "%s", d.Schedule)
	}
	for _, g := range d.Guiders {
		line("guider", "%s", g)
	}
	return nil
}

func (a *app) modelVerify(c *cli.Context) error {
	name, err := oneArg(c, "a file or folder")
	if err != nil {
		return err
	}
	var what string
	if embedded(name) {
		what, err = a.verifyModel(c.Context, name)
	} else {
		what, err = a.verify(c.Context, name)
		if known, e := inOneFile(name); err == nil && e == nil && known {
			of, pipeline, wrong := verifyFile(c, name)
			switch {
			case wrong == nil:
				what = of + "; " + what
			case pipeline || c.IsSet("config"):
				err = wrong
			default: // weights of one network, whose configuration is elsewhere
				a.warn("not compared with a configuration: %s", oneLine(wrong.Error()))
			}
		}
	}
	if err != nil {
		return err
	}
	a.printVerified(name, what)
	return nil
}

func (a *app) printVerified(name, what string) {
	if a.json {
		a.emit(map[string]any{"path": name, "ok": true, "what": what})
		return
	}
	fmt.Fprintf(a.out, "%s: %s\n", name, what)
}

// verify reads a file or folder and says what it is.
func (a *app) verify(ctx context.Context, name string) (string, error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) && strings.Count(name, "/") == 1 {
		if r, e := diffusers.OpenRepository(name, diffusers.Options{CacheDir: a.hub()}); e == nil {
			return a.verifyFolder(ctx, r.Dir)
		}
	}
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		return a.verifyFolder(ctx, name)
	}
	switch strings.ToLower(filepath.Ext(name)) {
	case ".safetensors":
		r, err := safetensors.Open(name)
		return a.verifySource(r, err, "safetensors")
	case ".ckpt", ".pt", ".pth", ".bin", ".gguf":
		src, err := diffusers.OpenSource(name)
		return a.verifySource(src, err, map[bool]string{true: "GGUF", false: "torch file"}[strings.EqualFold(filepath.Ext(name), ".gguf")])
	case ".onnx":
		return a.onnxVerify(ctx, name)
	case ".npz":
		return verifyArrays(name)
	case ".npy":
		x, err := npz.ReadArray(name)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("array %s %v", x.DType, x.Shape), nil
	case ".json":
		return a.verifyJSON(name)
	}
	return "", usagef("model verify %s: want a folder, .safetensors, .gguf, .onnx, .ckpt, .pt, .npz, .npy or .json", name)
}

// verifySource reads every value of a file of this form. Those that are not finite are legal in the file, and the end of every network.
func (a *app) verifySource(r diffusers.Source, err error, form string) (string, error) {
	if err != nil {
		return "", err
	}
	defer r.Close()
	values, wrong, where := 0, 0, ""
	for _, t := range r.Tensors() {
		values += t.Len()
		v, err := r.Float32(t.Name)
		var refused *refuse.Error
		if errors.As(err, &refused) { // 64-bit values, or a type without numbers
			_, err = r.Bytes(t.Name)
		}
		if err != nil {
			return "", err
		}
		for _, x := range v {
			if x-x != 0 {
				if wrong++; where == "" {
					where = t.Name
				}
			}
		}
	}
	if wrong > 0 {
		a.warn("%s: %d values are not finite, the first in tensor %s", r.Path(), wrong, oneLine(where))
	}
	return fmt.Sprintf("%s, %d tensors, %d values in %d files", form, len(r.Tensors()), values, len(r.Files())), nil
}

func verifyArrays(name string) (string, error) {
	z, err := npz.Read(name)
	if err != nil {
		return "", err
	}
	defer z.Close()
	var list []string
	for _, i := range z.Arrays() {
		if _, err := z.Array(i.Name); err != nil {
			return "", err
		}
		list = append(list, fmt.Sprintf("%s %s %v", i.Name, i.DType, i.Shape))
	}
	return fmt.Sprintf("npz, %d arrays: %s", len(list), oneLine(strings.Join(list, ", "))), nil
}

// verifyJSON reads a target, a scheduler's or a network's configuration, or an index of shards.
func (a *app) verifyJSON(name string) (string, error) {
	base := strings.ToLower(filepath.Base(name))
	if strings.HasSuffix(base, ".safetensors.index.json") {
		r, err := safetensors.OpenIndex(name)
		return a.verifySource(r, err, "safetensors")
	}
	o, err := strictjson.ReadFile(name, 32<<20, strictjson.Limits{})
	if err != nil {
		return "", err
	}
	class := ""
	if v, ok := o.Get("_class_name"); ok {
		class, _ = v.(string)
	}
	_, typed := o.Get("type")
	switch {
	case typed && class == "":
		m, err := analytic.OpenTarget(name)
		if err != nil {
			return "", err
		}
		if s, ok := m.(*analytic.Sequences); ok {
			return fmt.Sprintf("analytic target on sequences of shape %v, process %s", s.Info().Shape, m.Process().Name()), nil
		}
		return fmt.Sprintf("analytic target in %d dimensions, process %s", m.Info().Shape[0], m.Process().Name()), nil
	case strings.HasSuffix(class, "Scheduler"), strings.Contains(base, "scheduler"):
		s, err := diffusers.ReadScheduler(name)
		if err != nil {
			return "", err
		}
		a.remark(name, s.FileInfo())
		return "scheduler configuration of " + s.ClassName, nil
	}
	cfg, err := diffusers.ReadConfig(name)
	if err != nil {
		return "", err
	}
	a.remark(name, cfg.FileInfo())
	return fmt.Sprintf("network configuration of %s, %d parameters", cfg.ClassName(), diffusers.Parameters(cfg)), nil
}

// remark says what is legal in a configuration but worth knowing.
func (a *app) remark(name string, i *diffusers.Info) {
	for _, w := range i.Warnings {
		a.warn("%s: %s", name, oneLine(w))
	}
	if len(i.Renamed) > 0 {
		a.say("drift: %s: read as: %s", name, oneLine(strings.Join(i.Renamed, ", ")))
	}
	if len(i.Ignored) > 0 {
		a.say("drift: %s: keys of other classes: %s", name, oneLine(strings.Join(i.Ignored, ", ")))
	}
}

// verifyFolder reads every file of a model folder, and opens it as a model where it is one.
func (a *app) verifyFolder(ctx context.Context, dir string) (string, error) {
	files, network := 0, false
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		base := e.Name()
		switch {
		case base == "config.json": // verifyRepository reads it: a text encoder's has another form
			network = true
			return nil
		case base == "scheduler_config.json", strings.HasSuffix(base, ".safetensors"), strings.HasSuffix(base, ".onnx"), strings.HasSuffix(base, ".npz"), strings.HasSuffix(base, ".npy"),
			strings.HasSuffix(base, ".safetensors.index.json"):
		default:
			return nil
		}
		files++
		_, err = a.verify(ctx, path)
		return err
	})
	if err != nil {
		return "", err
	}
	if files == 0 && !network {
		return "", refuse.Errorf(dir, "holds no file of a model")
	}
	if path := graphFile(dir); path != "" {
		what, err := a.onnxVerify(ctx, path)
		return fmt.Sprintf("folder of %d files: %s", files, what), err
	}
	if !network {
		return fmt.Sprintf("folder of %d files", files), nil
	}
	return verifyRepository(dir)
}

// verifyRepository checks every network of a repository against its configuration, and its scheduler.
func verifyRepository(dir string) (string, error) {
	r, err := diffusers.OpenRepository(dir, diffusers.Options{})
	if err != nil {
		return "", err
	}
	networks := []string{""}
	class := "network"
	if r.Index != nil {
		networks, class = nil, r.Index.Class
		for _, c := range r.Index.Components {
			if c.Library == "diffusers" && !strings.HasSuffix(c.Class, "Scheduler") {
				networks = append(networks, c.Name)
			}
		}
		if _, ok := r.Index.Component("scheduler"); ok {
			if _, err := r.Scheduler(); err != nil {
				return "", err
			}
		}
	}
	what := []string{class}
	for _, name := range networks {
		n, err := r.Network(name)
		if err != nil {
			return "", err
		}
		what = append(what, fmt.Sprintf("%s with %d parameters", n.Config.ClassName(), diffusers.Parameters(n.Config)))
		if err := n.Close(); err != nil {
			return "", err
		}
	}
	return strings.Join(what, ", "), nil
}

// verifyModel opens an embedded model.
func (a *app) verifyModel(ctx context.Context, name string) (string, error) {
	m, err := a.openModel(ctx, name, "", "")
	if err != nil {
		return "", err
	}
	defer m.Close()
	return fmt.Sprintf("model with images of shape %v, %d classes, %d parameters, process %s", m.Info.Shape, m.Info.Classes, m.Info.Params, m.Denoiser.Process().Name()), nil
}
