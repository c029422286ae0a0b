package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/internal/strictjson"
	"drift/models/diffusers"
)

func modelRandomVerb(a *app) *cli.Command {
	return &cli.Command{
		Name: "random", Usage: "write made-up weights of the true size, for benchmarks and tests", UsageText: "CONFIG|FOLDER OUT [--dtype f32|f16|bf16] [--seed N] [--force]",
		Description: "CONFIG is a network's config.json and OUT a .safetensors file, or a folder that gets both; or CONFIG is a folder of a pipeline (its JSON files and tokenizers are enough) and OUT a new one " +
			"with weights for each of its networks. The values follow from the tensors' names and the seed: those of matrices and convolutions are uniform with the variance 1/fan-in, so that activations stay finite, " +
			"norms are near the identity. They are written a few at a time, whatever the size.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "dtype", Usage: "type of the weights: f32, f16, bf16 (`T`)", Value: "f32"},
			&cli.IntFlag{Name: "seed", Usage: "other weights (`N`)"},
			&cli.BoolFlag{Name: "force", Usage: "write over files that are there"},
		},
		Action: func(c *cli.Context) error { return a.modelRandom(c) },
	}
}

// weightTypes are the types in which weights are written, by the word for them.
var weightTypes = map[string]safetensors.DType{"f32": safetensors.F32, "f16": safetensors.F16, "bf16": safetensors.BF16}

// A randomFile is a file of made-up weights.
type randomFile struct {
	path    string
	config  diffusers.Config
	formula *diffusers.Formula
	tensors []safetensors.Tensor
	bytes   int64
}

func (a *app) modelRandom(c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef("model random: want two names, CONFIG or FOLDER, and OUT")
	}
	in, out := c.Args().Get(0), c.Args().Get(1)
	dtype, ok := weightTypes[c.String("dtype")]
	if !ok {
		return usagef("--dtype %s: want f32, f16 or bf16", c.String("dtype"))
	}
	info, err := os.Stat(in)
	if err != nil {
		return err
	}
	var files []randomFile
	var copies [][2]string
	switch single := strings.EqualFold(filepath.Ext(out), ".safetensors"); {
	case info.IsDir() && single:
		return usagef("%s is a folder: want the name of a folder for its copy with weights", in)
	case info.IsDir():
		if inside, err := within(in, out); err != nil || inside {
			return errors.Join(err, usagef("%s lies in %s", out, in))
		}
		if files, copies, err = a.randomFolder(in, out); err != nil {
			return err
		}
	default:
		cfg, err := diffusers.ReadConfig(in)
		if err != nil {
			return err
		}
		path := out
		if !single {
			path = filepath.Join(out, diffusers.WeightsStem(cfg)+".safetensors")
			copies = [][2]string{{in, filepath.Join(out, "config.json")}}
		}
		files = []randomFile{{path: path, config: cfg}}
	}
	total := int64(0)
	for i := range files {
		f := &files[i]
		if f.formula, err = diffusers.NewFormula(f.config); err != nil {
			return err
		}
		f.formula.Seed = c.Int("seed")
		for _, t := range f.config.Tensors() {
			f.tensors = append(f.tensors, safetensors.Tensor{Name: t.Name, DType: dtype, Shape: t.Shape})
		}
		safetensors.Sort(f.tensors)
		f.bytes = diffusers.Parameters(f.config) * int64(dtype.Bits()/8)
		total += f.bytes
	}
	if !c.Bool("force") {
		for _, path := range append(pathsOf(files), secondOf(copies)...) {
			if exists(path) {
				return usagef("%s is there already: --force writes over it", path)
			}
		}
	}
	if err := enoughSpace(out, total); err != nil {
		return err
	}
	return a.writeRandom(c.Context, files, copies, total)
}

func pathsOf(files []randomFile) (out []string) {
	for _, f := range files {
		out = append(out, f.path)
	}
	return out
}

func secondOf(pairs [][2]string) (out []string) {
	for _, p := range pairs {
		out = append(out, p[1])
	}
	return out
}

// enoughSpace refuses to fill a disk, where the system says how much is free on it.
func enoughSpace(out string, need int64) error {
	dir := filepath.Dir(filepath.Clean(out))
	for !exists(dir) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
	}
	const spare = 64 << 20
	if free, ok := freeSpace(dir); ok && need > free-spare {
		return fmt.Errorf("%s: %.1f GB of weights, and %.1f GB are free on that disk", out, float64(need)/1e9, float64(free)/1e9)
	}
	return nil
}

// A pipeline's other files, which are copied; an index of shards would name files that are not there.
var (
	companion  = regexp.MustCompile(`(?i)\.(json|txt|model)$`)
	shardIndex = regexp.MustCompile(`(?i)\.(safetensors|bin)\.index(\..*)?\.json$`)
)

// randomFolder lists the networks of a folder, and the other files that go with them.
func (a *app) randomFolder(in, out string) (files []randomFile, copies [][2]string, err error) {
	const most = 64 << 20 // bytes of a file that is copied: vocabularies are smaller
	err = filepath.WalkDir(in, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(in, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			if rel != "." && strings.HasPrefix(e.Name(), ".") {
				return filepath.SkipDir
			}
			return nil
		}
		info, err := os.Stat(path) // caches link to files elsewhere
		if err != nil {
			return err
		}
		if !companion.MatchString(e.Name()) || shardIndex.MatchString(e.Name()) || strings.HasPrefix(e.Name(), ".") || !info.Mode().IsRegular() || info.Size() > most {
			return nil
		}
		copies = append(copies, [2]string{path, filepath.Join(out, rel)})
		if e.Name() != "config.json" {
			return nil
		}
		class, err := classIn(path)
		if err != nil {
			return err
		}
		if !slices.Contains(diffusers.Classes(), class) {
			a.warn("%s: no weights are made up for a %s", path, oneLine(class))
			return nil
		}
		cfg, err := diffusers.ReadConfig(path)
		if err != nil {
			return err
		}
		files = append(files, randomFile{path: filepath.Join(out, filepath.Dir(rel), diffusers.WeightsStem(cfg)+".safetensors"), config: cfg})
		return nil
	})
	if err == nil && len(files) == 0 {
		err = refuse.Errorf(in, "has no config.json of a network")
	}
	return files, copies, err
}

// classIn is the class that a config.json names, in the way of diffusers or of transformers.
func classIn(path string) (string, error) {
	o, err := strictjson.ReadFile(path, 1<<20, strictjson.Limits{})
	if err != nil {
		return "", err
	}
	if v, ok := o.Get("_class_name"); ok {
		class, _ := v.(string)
		return class, nil
	}
	v, _ := o.Get("architectures")
	if list, ok := v.([]any); ok && len(list) == 1 {
		class, _ := list[0].(string)
		return class, nil
	}
	return "network without a class", nil
}

// progressReader says how much has been read.
type progressReader struct {
	io.Reader
	ctx  context.Context
	done *int64
	each func()
}

func (r progressReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.Reader.Read(p)
	*r.done += int64(n)
	r.each()
	return n, err
}

func (a *app) writeRandom(ctx context.Context, files []randomFile, copies [][2]string, total int64) error {
	bar := a.start("drift model random")
	defer func() {
		bar.Close()
		a.bar = nil
	}()
	done, values := int64(0), int64(0)
	for _, f := range files {
		if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
			return err
		}
		w, err := safetensors.Create(f.path, map[string]string{"format": "pt", "drift.made_up": fmt.Sprintf("seed %d", f.formula.Seed)}, f.tensors)
		if err != nil {
			return err
		}
		for _, t := range f.tensors {
			r, err := f.formula.Read(t.Name, t.DType)
			if err == nil {
				err = w.Raw(progressReader{r, ctx, &done, func() {
					bar.Set(float64(done)/float64(max(total, 1)), fmt.Sprintf("%.2f of %.2f GB", float64(done)/1e9, float64(total)/1e9))
				}})
			}
			if err != nil {
				return errors.Join(err, w.Discard())
			}
			values += int64(t.Len())
		}
		if err := w.Commit(); err != nil {
			return err
		}
		if a.json {
			a.emit(map[string]any{"event": "file", "path": f.path, "class": f.config.ClassName(), "parameters": diffusers.Parameters(f.config), "bytes": f.bytes})
		}
	}
	for _, c := range copies {
		if err := os.MkdirAll(filepath.Dir(c[1]), 0o755); err != nil {
			return err
		}
		if err := copyFile(c[0], c[1]); err != nil {
			return err
		}
	}
	a.say("drift: %d values in %d files of %.1f MB", values, len(files), float64(total)/1e6)
	return nil
}
