// Package verify reads everything of a file or folder that drift can read,
// with every check, and says what it is.
package verify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"drift/internal/npz"
	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/internal/strictjson"
	"drift/models/analytic"
	"drift/models/diffusers"
	"drift/models/ort"
)

// A Report says what a file or folder is.
type Report struct {
	Path  string
	Kind  string // e.g. "safetensors", "network", "pipeline"
	Items []Item // what was read, in reading order
	// Skipped lists the files of a folder that were not read: pickles, texts,
	// pictures.
	Skipped []string
}

// An Item is one thing that was read.
type Item struct {
	Path       string   // file, or folder of a network
	Kind       string   // as Report.Kind
	Detail     string   // one line for people
	Class      string   // class of a configuration, network or pipeline
	Tensors    int      // or arrays
	Parameters int64    // elements of all tensors or arrays
	NonFinite  int64    // how many of them are NaN or infinite
	Notes      []string // how it was read, and what is unusual
}

// Verify reads the thing at path: a folder in the layout of diffusers, a
// .safetensors file or an index of shards, a .npy or .npz file, or the
// configuration of a network, scheduler or pipeline. Values are read, too, and
// those that are not finite are counted. Whatever is wrong is a *refuse.Error.
// Files of kinds that are not read (pickles) are errors that say so.
func Verify(ctx context.Context, path string, opt diffusers.Options) (Report, error) {
	v := &verifier{ctx: ctx, opt: opt, done: map[string]bool{}}
	v.report.Path = path
	info, err := os.Stat(path)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return v.report, err
	case err != nil || info.IsDir():
		err = v.folder(path)
	default:
		err = v.file(path)
		if len(v.report.Items) > 0 {
			v.report.Kind = v.report.Items[0].Kind
		}
	}
	return v.report, err // names the file
}

type verifier struct {
	ctx    context.Context
	opt    diffusers.Options
	report Report
	done   map[string]bool // files that were read
}

func (v *verifier) add(x Item) { v.report.Items = append(v.report.Items, x) }

// file verifies one file by the end of its name.
func (v *verifier) file(path string) error {
	if err := v.ctx.Err(); err != nil {
		return err
	}
	v.done[filepath.Clean(path)] = true
	name := strings.ToLower(filepath.Base(path))
	switch ext := filepath.Ext(name); ext {
	case ".safetensors":
		return v.tensors(path, safetensors.Open)
	case ".npy", ".npz":
		return v.arrays(path, ext)
	case ".json":
		return v.json(path)
	case ".onnx":
		return v.graph(path)
	case ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle":
		return refuse.Errorf(path, "a pickle is never loaded: convert it once with `drift model convert`")
	}
	return refuse.Errorf(path, "not a kind of file that drift reads: .safetensors, .onnx, .npy, .npz, .json")
}

// graph reads an ONNX file, and sees that the files with its weights are there.
func (v *verifier) graph(path string) error {
	f, err := ort.ReadFile(path)
	if err != nil {
		return err
	}
	if err := f.CheckExternal(); err != nil {
		return err
	}
	v.add(Item{Path: path, Kind: "onnx", Detail: fmt.Sprintf("%d nodes, %d values, operators of version %d", f.Nodes, f.Params, f.Opsets[""]), Parameters: f.Params})
	return nil
}

// tensors reads all values of a safetensors file or of shards.
func (v *verifier) tensors(path string, open func(string) (*safetensors.Reader, error)) error {
	r, err := open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	x := Item{Path: path, Kind: "safetensors"}
	types := map[string]int{}
	for _, t := range r.Tensors() {
		if err := v.ctx.Err(); err != nil {
			return err
		}
		types[string(t.DType)]++
		x.Tensors++
		x.Parameters += int64(t.Len())
		switch t.DType {
		case safetensors.F16, safetensors.BF16, safetensors.F32:
			values, err := r.Float32(t.Name)
			if err != nil {
				return err
			}
			x.NonFinite += nonFinite(values)
		case safetensors.F64:
			values, err := r.Float64(t.Name)
			if err != nil {
				return err
			}
			x.NonFinite += nonFinite(values)
		default:
			if _, err := r.Bytes(t.Name); err != nil {
				return err
			}
		}
	}
	x.Detail = fmt.Sprintf("%d tensors (%s), %d values", x.Tensors, counts(types), x.Parameters)
	if n := len(r.Files()); n > 1 {
		x.Detail += fmt.Sprintf(", %d shards", n)
	}
	for _, f := range r.Files() {
		v.done[filepath.Clean(f)] = true
	}
	v.warnNonFinite(&x)
	v.add(x)
	return nil
}

func (v *verifier) warnNonFinite(x *Item) {
	if x.NonFinite > 0 {
		x.Notes = append(x.Notes, fmt.Sprintf("%d values are not finite", x.NonFinite))
	}
}

func nonFinite[T float32 | float64](values []T) (n int64) {
	for _, f := range values {
		if f-f != 0 { // the difference is NaN
			n++
		}
	}
	return n
}

// counts prints how often each name occurs.
func counts(n map[string]int) string {
	var parts []string
	for name, k := range n {
		parts = append(parts, fmt.Sprintf("%d %s", k, name))
	}
	slices.Sort(parts)
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}

// arrays reads all values of a numpy file.
func (v *verifier) arrays(path, ext string) error {
	x := Item{Path: path, Kind: ext[1:]}
	var parts []string
	take := func(a *npz.Array) {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%s %s %v", a.Name, a.DType, a.Shape)))
		x.Tensors++
		x.Parameters += int64(a.Len())
		switch data := a.Data.(type) {
		case []float32:
			x.NonFinite += nonFinite(data)
		case []float64:
			x.NonFinite += nonFinite(data)
		}
	}
	if ext == ".npy" {
		a, err := npz.ReadArray(path)
		if err != nil {
			return err
		}
		take(a)
	} else {
		archive, err := npz.Read(path)
		if err != nil {
			return err
		}
		defer archive.Close()
		for _, name := range archive.Names() {
			if err := v.ctx.Err(); err != nil {
				return err
			}
			a, err := archive.Array(name)
			if err != nil {
				return err
			}
			take(a)
		}
	}
	if len(parts) > 20 {
		parts = append(parts[:20], fmt.Sprintf("and %d more", x.Tensors-20))
	}
	x.Detail = strings.Join(parts, ", ")
	if len(parts) == 0 {
		x.Detail = "no arrays"
	}
	v.warnNonFinite(&x)
	v.add(x)
	return nil
}

// json finds out what a JSON file is and verifies it as such.
func (v *verifier) json(path string) error {
	if strings.Contains(filepath.Base(path), ".safetensors.index.") {
		return v.tensors(path, safetensors.OpenIndex)
	}
	keys, name, err := topLevel(path)
	if err != nil {
		return err
	}
	switch {
	case name != "" && (strings.HasSuffix(name, "Scheduler") || strings.Contains(filepath.Base(path), "scheduler")):
		c, err := diffusers.ReadScheduler(path)
		if err != nil {
			return err
		}
		v.add(schedulerItem(path, c))
		return nil
	case strings.HasSuffix(name, "Pipeline"):
		x, err := diffusers.ReadIndex(path)
		if err != nil {
			return err
		}
		v.add(indexItem(path, x))
		return nil
	case name != "": // a network
	case keys["weight_map"]:
		return v.tensors(path, safetensors.OpenIndex)
	case keys["model_type"]:
		v.add(Item{Path: path, Kind: "configuration", Detail: "a configuration of transformers",
			Notes: []string{"read as JSON only: configurations of transformers are not judged"}})
		return nil
	case keys["process"]:
		m, err := analytic.OpenTarget(path)
		if err != nil {
			return err
		}
		v.add(Item{Path: path, Kind: "analytic target", Detail: fmt.Sprintf("pictures of shape %v under the process %s", m.Info().Shape, m.Process().Name())})
		return nil
	}
	c, err := diffusers.ReadConfig(path)
	if err != nil {
		return err
	}
	x := configItem(path, c)
	x.Kind = "configuration"
	v.add(x)
	return nil
}

func schedulerItem(path string, c *diffusers.SchedulerConfig) Item {
	x := Item{Path: path, Kind: "scheduler", Class: c.ClassName, Detail: fmt.Sprintf("%s, %d training steps", c.ClassName, c.NumTrainTimesteps)}
	if c.PredictionType != "" {
		x.Detail += ", predicts " + c.PredictionType
	}
	x.Notes = infoNotes(&c.Info)
	return x
}

func indexItem(path string, index *diffusers.Index) Item {
	var names []string
	for _, c := range index.Components {
		names = append(names, fmt.Sprintf("%s (%s)", c.Name, c.Class))
	}
	return Item{Path: path, Kind: "pipeline", Class: index.Class, Detail: index.Class + ": " + strings.Join(names, ", ")}
}

func configItem(path string, c diffusers.Config) Item {
	n := diffusers.Parameters(c)
	tensors := len(c.Tensors())
	return Item{Path: path, Kind: "network", Class: c.ClassName(), Tensors: tensors, Parameters: n,
		Detail: fmt.Sprintf("%s, %d parameters in %d tensors", c.ClassName(), n, tensors), Notes: infoNotes(c.FileInfo())}
}

func infoNotes(i *diffusers.Info) []string {
	var notes []string
	for _, n := range []struct {
		what string
		list []string
	}{{"keys without meaning here: ", i.Ignored}, {"defaults taken for ", i.Defaulted}, {"legacy names: ", i.Renamed}} {
		if len(n.list) > 0 {
			notes = append(notes, n.what+strings.Join(n.list, ", "))
		}
	}
	return append(notes, i.Warnings...)
}

// folder verifies a repository, and then every other file in it that drift
// can read.
func (v *verifier) folder(path string) error {
	r, err := diffusers.OpenRepository(path, v.opt)
	if err != nil {
		return err
	}
	switch {
	case r.Index != nil:
		v.report.Kind = "pipeline"
		index := filepath.Join(r.Dir, "model_index.json")
		v.done[filepath.Clean(index)] = true
		v.add(indexItem(index, r.Index))
		for _, c := range r.Index.Components {
			if err := v.component(r, c); err != nil {
				return err
			}
		}
	case isFile(filepath.Join(r.Dir, "config.json")) || r.Denoiser() != "":
		v.report.Kind = "network"
		if err := v.single(r); err != nil {
			return err
		}
	default:
		v.report.Kind = "folder"
	}
	n, err := v.rest(r.Dir)
	if err != nil {
		return err
	}
	if len(v.report.Items) == 0 && n == 0 {
		return refuse.Errorf(r.Dir, "holds nothing that drift reads")
	}
	return nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// single verifies a repository of one network.
func (v *verifier) single(r *diffusers.Repository) error {
	config := filepath.Join(r.Dir, "config.json")
	if !isFile(config) {
		return v.network(r, "")
	}
	keys, class, err := topLevel(config)
	switch {
	case err != nil:
		return err
	case !judged(class) && keys["model_type"]:
		v.done[filepath.Clean(config)] = true
		return v.unjudged(r.Dir, "a model of transformers")
	case class != "" && !judged(class):
		v.done[filepath.Clean(config)] = true
		return v.unjudged(r.Dir, class)
	}
	return v.network(r, "")
}

// judged reports whether configurations of a class are known here, if only to
// be refused.
func judged(class string) bool {
	return slices.Contains(diffusers.Classes(), class) || class == "Transformer2DModel" || strings.HasPrefix(class, "UNet")
}

// topLevel returns the keys of a JSON object, and its _class_name, or the one
// name in its architectures, if that is a string.
func topLevel(path string) (keys map[string]bool, class string, err error) {
	keys = map[string]bool{}
	_, err = readJSON(path, func(s *strictjson.Scanner) error {
		return s.Object(func(key string) error {
			keys[key] = true
			if key != "_class_name" && key != "architectures" {
				return s.Skip()
			}
			value, err := s.Value()
			if list, ok := value.([]any); ok && len(list) == 1 && class == "" {
				value = list[0]
			}
			if name, ok := value.(string); ok {
				class = name
			}
			return err
		})
	})
	return keys, class, err
}

// readJSON reads a JSON file of any kind and returns its size. Vocabularies
// have a few hundred thousand entries.
func readJSON(path string, read func(*strictjson.Scanner) error) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	const most = 64 << 20
	if !info.Mode().IsRegular() || info.Size() > most {
		return 0, refuse.Errorf(path, "not a JSON file of at most %d bytes", most)
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	s := strictjson.NewScanner(path, f, strictjson.Limits{Keys: 2_000_000, Infinity: true})
	if err := read(s); err != nil {
		return 0, err
	}
	return info.Size(), s.End()
}

// component verifies one entry of a model_index.json.
func (v *verifier) component(r *diffusers.Repository, c diffusers.Component) error {
	switch {
	case c.Name == "scheduler":
		s, err := r.Scheduler()
		if err != nil {
			return err
		}
		path := filepath.Join(r.Dir, "scheduler", "scheduler_config.json")
		if !isFile(path) {
			path = filepath.Join(r.Dir, "scheduler_config.json")
		}
		v.done[filepath.Clean(path)] = true
		v.add(schedulerItem(path, s))
		return nil
	case (c.Library == "diffusers" || c.Library == "transformers") && judged(c.Class):
		return v.network(r, c.Name)
	}
	dir := filepath.Join(r.Dir, c.Name)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return refuse.Errorf(r.Dir, "model_index.json names the component %s, which has no folder", c.Name)
	}
	if strings.Contains(c.Class, "Tokenizer") || strings.Contains(c.Class, "Processor") || strings.Contains(c.Class, "FeatureExtractor") {
		return nil // its files are read with the rest of the folder
	}
	if config := filepath.Join(dir, "config.json"); isFile(config) {
		v.done[filepath.Clean(config)] = true
		if _, _, err := topLevel(config); err != nil {
			return err
		}
	}
	return v.unjudged(dir, c.Class)
}

// unjudged verifies the weights of a class whose configuration says nothing
// here. transformers calls them model, diffusers diffusion_pytorch_model.
func (v *verifier) unjudged(dir, class string) error {
	before := len(v.report.Items)
	path, sharded, err := diffusers.FindWeights(dir, "model", v.opt.Variant)
	if err != nil {
		path, sharded, err = diffusers.FindWeights(dir, "diffusion_pytorch_model", v.opt.Variant)
	}
	if err != nil {
		return err
	}
	v.done[filepath.Clean(path)] = true
	open := safetensors.Open
	if sharded {
		open = safetensors.OpenIndex
	}
	if err := v.tensors(path, open); err != nil {
		return err
	}
	for i := before; i < len(v.report.Items); i++ {
		v.report.Items[i].Class = class
		v.report.Items[i].Notes = append(v.report.Items[i].Notes, "the tensors were not compared with a configuration: "+class+" is not judged here")
	}
	return nil
}

// network verifies configuration and weights together.
func (v *verifier) network(r *diffusers.Repository, component string) error {
	m, err := r.Network(component)
	if err != nil {
		return err
	}
	defer m.Close()
	x := configItem(m.Dir, m.Config)
	x.Notes = m.Notes
	if ignored := m.Config.FileInfo().Ignored; len(ignored) > 0 {
		x.Notes = append(x.Notes, "keys without meaning here: "+strings.Join(ignored, ", "))
	}
	for _, name := range m.Weights.Names() {
		if err := v.ctx.Err(); err != nil {
			return err
		}
		values, err := m.Weights.Float32(name)
		if err != nil {
			return err
		}
		x.NonFinite += nonFinite(values)
	}
	x.Detail += fmt.Sprintf(" (%s)", counts(m.Weights.DTypes()))
	if n := len(m.Weights.Files()); n > 1 {
		x.Detail += fmt.Sprintf(" in %d shards", n)
	}
	v.warnNonFinite(&x)
	v.add(x)
	v.done[filepath.Clean(filepath.Join(m.Dir, "config.json"))] = true
	for _, f := range append(m.Weights.Files(), m.File) {
		v.done[filepath.Clean(f)] = true
	}
	return nil
}

// rest verifies the files of a folder that nothing named, and returns how many
// there were.
func (v *verifier) rest(dir string) (int, error) {
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() || v.done[filepath.Clean(path)] {
			return v.ctx.Err()
		}
		name := strings.ToLower(d.Name())
		switch filepath.Ext(name) {
		case ".safetensors", ".npy", ".npz", ".onnx":
			n++
			return v.file(path)
		case ".json":
			n++
			return v.otherJSON(path, name)
		}
		v.report.Skipped = append(v.report.Skipped, path)
		return nil
	})
	return n, err
}

// otherJSON verifies a JSON file that no component names: one that drift knows
// with all checks, others as JSON.
func (v *verifier) otherJSON(path, name string) error {
	switch {
	case name == "config.json" || strings.HasPrefix(name, "model_index") || strings.Contains(name, "scheduler_config") || strings.Contains(name, ".safetensors.index"):
		return v.file(path)
	}
	size, err := readJSON(path, func(s *strictjson.Scanner) error { return s.Skip() })
	if err != nil {
		return err
	}
	v.add(Item{Path: path, Kind: "JSON", Detail: fmt.Sprintf("%d bytes", size)})
	return nil
}
