package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/internal/atomicfile"
	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/internal/strictjson"
	"drift/internal/torchfile"
	"drift/models/diffusers"
)

func modelConvertVerb(a *app) *cli.Command {
	return &cli.Command{
		Name: "convert", Usage: "make safetensors of a torch file, or of the torch files of a folder", UsageText: "IN OUT [--key K] [--dtype f32|f16|bf16] [--config FOLDER] [--prediction P]",
		Description: "IN is a .pt, .pth, .bin or .ckpt file and OUT a .safetensors file; or IN is a diffusers folder and OUT a new one. Pickles in IN are read as data, nothing in them runs; " +
			"a file that names anything but tensors is refused (exit code 3) and nothing is written.\n\n" +
			"Of nested dictionaries the weights of one network are taken: a dictionary that holds a tensor itself is taken whole; otherwise the one under state_dict, model or ema, " +
			"again and again. Where several of these hold tensors, or for any other key, --key says which (dots between keys: --key model.state_dict). " +
			"Tensors keep their types; those that share memory are written once for every name. The file's metadata says what it was made of.\n\n" +
			"Of a folder, diffusion_pytorch_model*.bin becomes diffusion_pytorch_model*.safetensors and pytorch_model*.bin model*.safetensors, with their indices of shards; " +
			"other pickles are left out, all other files are copied.\n\n" +
			"Where IN is a pipeline in one file (.safetensors, .ckpt, .gguf) and OUT has not the name of a .safetensors file, OUT becomes a folder in the layout of diffusers.\n\n" +
			"With --dtype all floating-point tensors are written in that type; then IN may be a .safetensors or .gguf file, too, and the .safetensors files of a folder are written anew.",
		Flags: append(fileFlags(),
			&cli.StringFlag{Name: "dtype", Usage: "type of floating-point tensors: f32, f16, bf16 (`T`); default: the types they have"},
			&cli.StringFlag{Name: "key", Usage: "take the tensors under this key of nested dictionaries (`K`)"},
		),
		Action: a.stoppable(a.modelConvert),
	}
}

func (a *app) modelConvert(c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef("model convert: want two names, IN and OUT")
	}
	in, out := c.Args().Get(0), c.Args().Get(1)
	info, err := os.Stat(in)
	if err != nil {
		return err
	}
	if sameFile(in, out) {
		return usagef("%s is the input: it would be overwritten", out)
	}
	dtype, ok := weightTypes[c.String("dtype")]
	if c.IsSet("dtype") && !ok {
		return usagef("--dtype %s: want f32, f16 or bf16", c.String("dtype"))
	}
	noFile := func() error { // flags of a model in one file
		for _, flag := range []string{"config", "prediction"} {
			if c.IsSet(flag) {
				return usagef("--%s is for a model in one file that becomes a folder", flag)
			}
		}
		return nil
	}
	if info.IsDir() {
		if err := noFile(); err != nil {
			return err
		}
		if c.IsSet("key") {
			return usagef("--key: the files of a folder hold one network each")
		}
		return a.convertFolder(c.Context, in, out, dtype)
	}
	if !slices.Contains([]string{".safetensors", ".npz", ".json", ".bin", ".pt"}, strings.ToLower(filepath.Ext(out))) {
		known, err := inOneFile(in)
		if err != nil {
			return err
		}
		if known {
			if c.IsSet("key") {
				return usagef("--key: %s is taken apart whole; a name that ends in .safetensors takes one of its dictionaries", in)
			}
			return a.unpack(c.Context, in, out, dtype, fileOptions(c))
		}
	}
	if err := noFile(); err != nil {
		return err
	}
	if strings.EqualFold(filepath.Ext(in), ".safetensors") && dtype == "" {
		return usagef("%s is safetensors already; --dtype writes it in another type", in)
	}
	if !strings.EqualFold(filepath.Ext(out), ".safetensors") {
		return usagef("%s: want a name that ends in .safetensors", out)
	}
	if ext := strings.ToLower(filepath.Ext(in)); ext == ".safetensors" || ext == ".gguf" {
		if c.IsSet("key") {
			return usagef("--key is for torch files")
		}
		return a.retype(c.Context, in, out, out, dtype)
	}
	return a.convertFile(c.Context, in, out, out, c.String("key"), dtype)
}

// convertFile writes the tensors of one torch file to out, which the user knows as name.
func (a *app) convertFile(ctx context.Context, in, out, name, key string, dtype safetensors.DType) error {
	f, err := torchfile.Open(in)
	if err != nil {
		return err
	}
	defer f.Close()
	tensors, under, err := f.StateDict(key)
	if err != nil {
		return &hint{usagef("%w", err), "--key K takes the tensors under the key K"}
	}
	sum, err := f.SHA256(ctx)
	if err != nil {
		return err
	}
	form := "zip"
	if f.Legacy() {
		form = "legacy"
	}
	notes := map[string]string{"format": "pt", "drift.source": filepath.Base(in), "drift.source_sha256": sum, "drift.source_form": form}
	if under != "" {
		notes["drift.key"] = under
	}
	left := len(f.Tensors()) - len(tensors)
	if left > 0 {
		notes["drift.left_out"] = fmt.Sprintf("%d tensors outside %s", left, under)
	}
	var tied []string
	for _, names := range torchfile.Tied(tensors) {
		tied = append(tied, strings.Join(names, " = "))
	}
	if len(tied) > 0 {
		notes["drift.shared_memory"] = strings.Join(tied, "; ")
	}
	if err := f.WriteSafetensors(ctx, out, tensors, dtype, notes); err != nil {
		return err
	}
	if a.json {
		a.emit(map[string]any{"event": "file", "path": name, "tensors": len(tensors), "left_out": left, "key": under, "source_sha256": sum})
	}
	if len(tensors) == 0 {
		a.warn("%s holds no tensors", in)
	}
	what := fmt.Sprintf("drift: %d tensors", len(tensors))
	if under != "" {
		what += " under " + under
	}
	if left > 0 {
		what += fmt.Sprintf(" (%d others left out)", left)
	}
	a.say("%s: %s", what, name)
	return nil
}

// retype writes the tensors of a .safetensors or .gguf file in another type; without one, those of GGUF as they are read.
func (a *app) retype(ctx context.Context, in, out, name string, dtype safetensors.DType) error {
	src, err := diffusers.OpenSource(in)
	if err != nil {
		return err
	}
	defer src.Close()
	list := src.Tensors()
	for i := range list {
		list[i].DType = dtype.Of(list[i].DType)
	}
	safetensors.Sort(list)
	w, err := safetensors.Create(out, map[string]string{"format": "pt", "drift.source": filepath.Base(in)}, list)
	if err != nil {
		return err
	}
	defer w.Discard()
	for _, t := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		if old, _ := src.Tensor(t.Name); old.DType == t.DType {
			b, err := src.Bytes(t.Name)
			if err != nil {
				return err
			}
			if err := w.Raw(bytes.NewReader(b)); err != nil {
				return err
			}
			continue
		}
		v, err := src.Float32(t.Name)
		if err != nil {
			return err
		}
		if err := w.Float32(v); err != nil {
			return err
		}
	}
	if err := w.Commit(); err != nil {
		return err
	}
	if a.json {
		a.emit(map[string]any{"event": "file", "path": name, "tensors": len(list)})
	}
	a.say("drift: %d tensors: %s", len(list), name)
	return nil
}

// The torch files of a diffusers folder, and what they are called as safetensors. transformers' stem differs.
var (
	torchWeights = regexp.MustCompile(`^(diffusion_|)(pytorch_model)(.*)\.bin$`)
	torchIndex   = regexp.MustCompile(`^(diffusion_|)(pytorch_model)\.bin\.index(.*\.json)$`)
	otherPickle  = regexp.MustCompile(`(?i)\.(bin|pt|pth|ckpt|pkl|pickle)$`)
)

func safetensorsName(m []string, middle string) string {
	if m[1] == "" {
		return "model" + middle + m[3]
	}
	return m[1] + m[2] + middle + m[3]
}

// convertFolder makes a folder with the same files, but safetensors for torch's: under another name first.
func (a *app) convertFolder(ctx context.Context, in, out string, dtype safetensors.DType) error {
	if entries, err := os.ReadDir(out); err == nil && len(entries) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		return usagef("%s is there already: want the name of a new folder", out)
	}
	if inside, err := within(in, out); err != nil || inside {
		return errors.Join(err, usagef("%s lies in %s", out, in))
	}
	temporary, err := os.MkdirTemp(filepath.Dir(filepath.Clean(out)), filepath.Base(filepath.Clean(out))+".tmp")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if err := os.Chmod(temporary, 0o755); err != nil {
		return err
	}
	f := folderConversion{app: a, in: in, out: temporary, final: out, dtype: dtype}
	if err := f.run(ctx, "."); err != nil {
		return err
	}
	if f.converted == 0 {
		return refuse.Errorf(in, "has no diffusion_pytorch_model*.bin and no pytorch_model*.bin that is not there as safetensors, too")
	}
	for _, name := range f.indices { // the shards must be what the index says
		r, err := safetensors.OpenIndex(name)
		if err == nil {
			err = r.Close()
		}
		var bad *refuse.Error
		if errors.As(err, &bad) {
			return refuse.Errorf(in, "after conversion %s", strings.TrimPrefix(bad.Error(), temporary+string(filepath.Separator)))
		}
		if err != nil {
			return err
		}
	}
	if err := os.Remove(out); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(temporary, out); err != nil {
		return err
	}
	if len(f.leftOut) > 0 {
		a.warn("left out: %s", oneLine(strings.Join(f.leftOut, ", ")))
	}
	if a.json {
		a.emit(map[string]any{"event": "folder", "path": out, "converted": f.converted, "copied": f.copied, "left_out": f.leftOut})
	}
	a.say("drift: %d files of weights converted, %d files copied: %s", f.converted, f.copied, out)
	return nil
}

// within tells whether the path b lies in the folder a.
func within(a, b string) (bool, error) {
	x, e1 := filepath.Abs(a)
	y, e2 := filepath.Abs(b)
	rel, e3 := filepath.Rel(x, y)
	return rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)), errors.Join(e1, e2, e3)
}

type folderConversion struct {
	*app
	in, out, final    string // out is the temporary name of final
	dtype             safetensors.DType
	converted, copied int
	leftOut           []string
	indices           []string
}

// run does one folder, named relative to both roots, and those below it.
func (f *folderConversion) run(ctx context.Context, folder string) error {
	entries, err := os.ReadDir(filepath.Join(f.in, folder))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		rel := filepath.Join(folder, e.Name())
		from, to := filepath.Join(f.in, rel), filepath.Join(f.out, folder)
		info, err := os.Stat(from) // caches link to files elsewhere
		if err != nil {
			return err
		}
		weights, index := torchWeights.FindStringSubmatch(e.Name()), torchIndex.FindStringSubmatch(e.Name())
		switch {
		case e.IsDir() && !strings.HasPrefix(e.Name(), "."):
			if err := os.Mkdir(filepath.Join(f.out, rel), 0o755); err != nil {
				return err
			}
			err = f.run(ctx, rel)
		case !info.Mode().IsRegular() || strings.HasPrefix(e.Name(), "."):
			f.leftOut = append(f.leftOut, rel)
		case weights != nil || index != nil:
			var name string
			if weights != nil {
				name = safetensorsName(weights, "") + ".safetensors"
			} else {
				name = safetensorsName(index, ".safetensors.index")
			}
			if exists(filepath.Join(f.in, folder, name)) {
				f.leftOut = append(f.leftOut, rel)
				break
			}
			if weights != nil {
				f.converted++
				err = f.convertFile(ctx, from, filepath.Join(to, name), filepath.Join(f.final, folder, name), "", f.dtype)
				break
			}
			f.indices = append(f.indices, filepath.Join(to, name))
			err = convertIndex(from, filepath.Join(to, name))
		case f.dtype != "" && strings.HasSuffix(e.Name(), ".safetensors"):
			f.converted++
			err = f.retype(ctx, from, filepath.Join(to, e.Name()), filepath.Join(f.final, rel), f.dtype)
		case otherPickle.MatchString(e.Name()):
			f.leftOut = append(f.leftOut, rel)
		default:
			f.copied++
			err = copyFile(from, filepath.Join(to, e.Name()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// convertIndex writes an index of shards with their new names.
func convertIndex(from, to string) error {
	o, err := strictjson.ReadFile(from, safetensors.MaxHeader, strictjson.Limits{})
	if err != nil {
		return err
	}
	v, _ := o.Get("weight_map")
	m, ok := v.(*strictjson.Object)
	if !ok {
		return refuse.Errorf(from, "has no weight_map")
	}
	where := map[string]string{}
	for _, tensor := range m.Keys() {
		v, _ := m.Get(tensor)
		name, _ := v.(string)
		shard := torchWeights.FindStringSubmatch(name)
		if shard == nil {
			return refuse.Errorf(from, "tensor %q lies in %q, which is no torch file of this folder", tensor, name)
		}
		where[tensor] = safetensorsName(shard, "") + ".safetensors"
	}
	text, err := json.MarshalIndent(map[string]any{"metadata": map[string]string{"drift.source": filepath.Base(from)}, "weight_map": where}, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o644)
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := atomicfile.Create(to)
	if err != nil {
		return err
	}
	defer dst.Discard()
	if _, err := io.Copy(dst, src); err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	return dst.Commit()
}
