package diffusers

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/internal/strictjson"
)

// Options say where to look and what to take. The zero value takes what is
// there.
type Options struct {
	// CacheDir is a Hugging Face hub cache (the folder that holds
	// models--org--name). With it, "org/name" finds what was downloaded
	// before; nothing is ever fetched.
	CacheDir string
	// Revision of a cached repository, default "main".
	Revision string
	// Variant of the weights, e.g. "fp16". When empty, the plain files are
	// taken, or the only variant if there are no plain files.
	Variant string

	// Of a pipeline in one file: Config is a folder of diffusers whose
	// configurations are taken instead of what the shapes say, Tokenizer a folder
	// that holds the tokenizer, or tokenizer and tokenizer_2, and Prediction what
	// the network predicts (eps, v) where the file does not say it.
	Config, Tokenizer, Prediction string
}

// A Repository is a folder that holds a pipeline, or one network.
type Repository struct {
	Dir   string
	Index *Index // nil when there is no model_index.json

	opt    Options
	single *single // nil for a folder
}

// An Index is a model_index.json.
type Index struct {
	Class      string // _class_name, e.g. "StableDiffusionPipeline"
	Version    string // _diffusers_version
	Components []Component
	Labels     map[int]string // id2label, where class names stand with the pipeline
	Extra      []string       // other keys

	flags map[string]bool
}

// Flag is a setting of the pipeline that is true or false, false where it is
// not set.
func (x *Index) Flag(key string) bool { return x.flags[key] }

// A Component is one entry of an Index.
type Component struct {
	Name, Library, Class string
}

// Component returns a component by name and whether it is there; components
// that are null are not.
func (x *Index) Component(name string) (Component, bool) {
	i := slices.IndexFunc(x.Components, func(c Component) bool { return c.Name == name })
	if i < 0 {
		return Component{}, false
	}
	return x.Components[i], true
}

var componentName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_]*$`)

// ReadIndex reads a model_index.json.
func ReadIndex(path string) (*Index, error) {
	o, err := strictjson.ReadFile(path, maxConfig, strictjson.Limits{})
	if err != nil {
		return nil, fmt.Errorf("reading a pipeline: %w", err)
	}
	x := &Index{}
	if x.Class, err = className(path, o); err != nil {
		return nil, err
	}
	x.Version, _ = getString(o, "_diffusers_version")
	for _, key := range o.Keys() {
		value, _ := o.Get(key)
		list, isList := value.([]any)
		switch {
		case strings.HasPrefix(key, "_"):
		case key == "id2label":
			if x.Labels, err = readLabels(path, value); err != nil {
				return nil, err
			}
		case isList && len(list) == 2 && list[0] == nil && list[1] == nil:
		case isList:
			c := Component{Name: key}
			ok := len(list) == 2 && componentName.MatchString(key)
			if ok {
				var a, b bool
				c.Library, a = list[0].(string)
				c.Class, b = list[1].(string)
				ok = a && b && c.Library != "" && c.Class != ""
			}
			if !ok {
				return nil, refuse.Errorf(path, "component %q is %v: it must name a library and a class", key, show(value))
			}
			x.Components = append(x.Components, c)
		default:
			x.Extra = append(x.Extra, key)
			if on, ok := value.(bool); ok && on {
				if x.flags == nil {
					x.flags = map[string]bool{}
				}
				x.flags[key] = true
			}
		}
	}
	return x, nil
}

func readLabels(path string, value any) (map[int]string, error) {
	o, ok := value.(*strictjson.Object)
	if !ok {
		return nil, refuse.Errorf(path, "id2label is %v, not an object", show(value))
	}
	labels := map[int]string{}
	for _, key := range o.Keys() {
		v, _ := o.Get(key)
		label, ok := v.(string)
		id, err := strconv.Atoi(key)
		if err != nil || !ok || id < 0 {
			return nil, refuse.Errorf(path, "id2label maps %q to %v: it must map numbers to names", key, show(v))
		}
		labels[id] = label
	}
	return labels, nil
}

// OpenRepository finds a folder by its path, or a repository "org/name" in the
// cache of Options, and reads its model_index.json if there is one.
//
// A path may also be one file that holds the networks of a pipeline (.safetensors, .ckpt), in the layout of the programs that trained
// Stable Diffusion or under the names of diffusers; then Dir is that file.
func OpenRepository(path string, opt Options) (*Repository, error) {
	if SingleFile(path) {
		return openSingle(path, opt)
	}
	dir, err := find(path, opt)
	if err != nil {
		return nil, err
	}
	r := &Repository{Dir: dir, opt: opt}
	index := filepath.Join(dir, "model_index.json")
	if isFile(index) {
		if r.Index, err = ReadIndex(index); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

var (
	repositoryName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?$`)
	revisionName   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$`)
	commitName     = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

// Locate returns the folder of a repository: path itself, or where the cache has its snapshot.
func Locate(path string, opt Options) (string, error) { return find(path, opt) }

// find returns the folder of a repository. The layout of the cache is
// models--org--name/refs/REVISION, which holds a commit, and
// models--org--name/snapshots/COMMIT, which holds (links to) the files.
func find(path string, opt Options) (string, error) {
	info, err := os.Stat(path)
	if err == nil {
		if !info.IsDir() {
			return "", refuse.Errorf(path, "not a folder in the layout of diffusers")
		}
		return path, nil
	}
	if !errors.Is(err, fs.ErrNotExist) || opt.CacheDir == "" || !repositoryName.MatchString(path) {
		return "", err
	}
	revision := opt.Revision
	if revision == "" {
		revision = "main"
	}
	if !revisionName.MatchString(revision) {
		return "", fmt.Errorf("%q is not a revision", revision)
	}
	repo := filepath.Join(opt.CacheDir, "models--"+strings.ReplaceAll(path, "/", "--"))
	if _, err := os.Stat(repo); err != nil {
		return "", fmt.Errorf("%s is neither a folder nor in the cache %s: %w", path, opt.CacheDir, fs.ErrNotExist)
	}
	commit := revision
	if !commitName.MatchString(commit) {
		ref := filepath.Join(repo, "refs", filepath.FromSlash(revision))
		text, err := readSmall(ref, 1<<10)
		if err != nil {
			return "", fmt.Errorf("%s: looking up revision %s in the cache: %w", path, revision, err)
		}
		commit = strings.TrimSpace(string(text))
		if !commitName.MatchString(commit) {
			return "", refuse.Errorf(ref, "does not name a commit: %.60q", commit)
		}
	}
	dir := filepath.Join(repo, "snapshots", commit)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return "", fmt.Errorf("%s: the cache %s has no snapshot of revision %s: %w", path, opt.CacheDir, revision, fs.ErrNotExist)
	}
	return dir, nil
}

// readSmall reads a regular file of at most most bytes.
func readSmall(path string, most int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, refuse.Errorf(path, "not a file of at most %d bytes", most)
	}
	return os.ReadFile(path)
}

// Denoiser returns the name of the component that denoises, "unet" or
// "transformer"; it is empty when the repository is one network.
func (r *Repository) Denoiser() string {
	if r.single != nil && r.Index == nil {
		for _, name := range []string{"unet", "vae", "text_encoder", "text_encoder_2"} {
			if r.single.parts[name] != nil {
				return name // the only network, whatever it is
			}
		}
	}
	for _, name := range []string{"unet", "transformer"} {
		if r.Index != nil {
			if _, ok := r.Index.Component(name); ok {
				return name
			}
		} else if !isFile(filepath.Join(r.Dir, "config.json")) && isFile(filepath.Join(r.Dir, name, "config.json")) {
			return name
		}
	}
	return ""
}

// file finds a configuration file of a component: in the component's folder
// or, in old repositories, in the root.
func (r *Repository) file(component, name string) (path string, err error) {
	path = filepath.Join(r.Dir, component, name)
	if isFile(path) {
		return path, nil
	}
	if root := filepath.Join(r.Dir, name); component != "" && isFile(root) {
		return root, nil
	}
	return "", refuse.Errorf(r.Dir, "has no %s", filepath.Join(component, name))
}

// A Model is a network of a repository: what it is and its weights.
type Model struct {
	Component string // its name in the pipeline; empty for a repository of one network
	Dir       string // the folder of its config.json
	File      string // the weights, or the index of their shards
	Config    Config
	Weights   *Checkpoint
	Notes     []string // how the files were read, worth logging
}

// Close closes the files of the weights.
func (m *Model) Close() error { return m.Weights.Close() }

// Config reads the configuration of a network of the repository; component is
// its name in the pipeline, empty for the denoiser.
func (r *Repository) Config(component string) (Config, string, error) {
	if component == "" {
		component = r.Denoiser()
	}
	if component != "" && !componentName.MatchString(component) {
		return nil, "", fmt.Errorf("%q is not the name of a component", component)
	}
	if r.single != nil {
		if p := r.single.parts[component]; p != nil {
			return p.config, r.Dir, nil
		}
		if r.single.borrows(component) {
			return r.single.given.Config(component)
		}
		return nil, "", refuse.Errorf(r.Dir, "has no %s", cmp.Or(component, "unet"))
	}
	if r.Index != nil && component == "" {
		return nil, "", refuse.Errorf(r.Dir, "%s has neither a unet nor a transformer", r.Index.Class)
	}
	path, err := r.file(component, "config.json")
	if err != nil {
		return nil, "", err
	}
	c, err := ReadConfig(path)
	if err != nil {
		return nil, "", err
	}
	if r.Index != nil {
		entry, ok := r.Index.Component(component)
		if !ok {
			return nil, "", refuse.Errorf(r.Dir, "%s has no component %q", r.Index.Class, component)
		}
		class := entry.Class
		if now, old := currentName[class]; old {
			class = now
		}
		if class != c.ClassName() && class != c.FileInfo().Class && !exported(entry) {
			return nil, "", refuse.Errorf(path, "is a %s, but model_index.json says that %s is a %s", c.ClassName(), component, entry.Class)
		}
	}
	return c, path, nil
}

// exported tells the components that are ONNX graphs: diffusers' OnnxRuntimeModel
// and the classes of optimum, whatever network they hold.
func exported(c Component) bool {
	return c.Class == "OnnxRuntimeModel" || strings.HasPrefix(c.Class, "ORT") || strings.HasPrefix(c.Library, "optimum")
}

// Network opens a network of the repository with its weights; component is its
// name in the pipeline, empty for the denoiser.
func (r *Repository) Network(component string) (*Model, error) {
	if component == "" {
		component = r.Denoiser()
	}
	if r.single != nil {
		return r.single.network(component)
	}
	c, path, err := r.Config(component)
	if err != nil {
		return nil, err
	}
	m := &Model{Component: component, Dir: filepath.Dir(path), Config: c}
	if component != "" && filepath.Clean(m.Dir) == filepath.Clean(r.Dir) {
		m.Notes = append(m.Notes, fmt.Sprintf("there is no folder %s: read from the root of the repository", component))
	}
	file, err := findWeights(m.Dir, WeightsStem(c), r.opt.Variant)
	if err != nil {
		return nil, err
	}
	m.File = file.path
	if file.variant != r.opt.Variant {
		m.Notes = append(m.Notes, fmt.Sprintf("only the variant %s of the weights is there", file.variant))
	}
	open := safetensors.Open
	if file.sharded {
		open = safetensors.OpenIndex
	}
	reader, err := open(file.path)
	if err != nil {
		return nil, fmt.Errorf("opening weights: %w", err)
	}
	if m.Weights, err = NewCheckpoint(c, reader); err != nil {
		return nil, errors.Join(err, reader.Close())
	}
	info := c.FileInfo()
	if len(info.Renamed) > 0 {
		m.Notes = append(m.Notes, "legacy names: "+strings.Join(info.Renamed, ", "))
	}
	if len(info.Defaulted) > 0 {
		m.Notes = append(m.Notes, "defaults of "+c.ClassName()+" taken for "+strings.Join(info.Defaulted, ", "))
	}
	m.Notes = append(append(m.Notes, info.Warnings...), m.Weights.Notes...)
	return m, nil
}

// Scheduler reads the scheduler_config.json of the repository.
func (r *Repository) Scheduler() (*SchedulerConfig, error) {
	if r.single != nil {
		if r.single.unsaid != nil {
			return nil, r.single.unsaid
		}
		if r.single.sched == nil {
			return nil, refuse.Errorf(r.Dir, "holds no pipeline that can be sampled: a U-Net with its text encoder is needed; `drift model run` runs single networks")
		}
		return r.single.sched, nil
	}
	path, err := r.file("scheduler", "scheduler_config.json")
	if err != nil {
		return nil, err
	}
	c, err := ReadScheduler(path)
	if err != nil {
		return nil, err
	}
	if r.Index != nil {
		if entry, ok := r.Index.Component("scheduler"); ok && entry.Class != c.ClassName {
			return nil, refuse.Errorf(path, "is a %s, but model_index.json says %s", c.ClassName, entry.Class)
		}
	}
	return c, nil
}

// Components lists the networks of the repository.
func (r *Repository) Components() []string {
	var names []string
	for _, name := range []string{"unet", "vae", "text_encoder", "text_encoder_2"} {
		if r.single != nil && (r.single.parts[name] != nil || r.single.borrows(name)) {
			names = append(names, name)
		}
	}
	if r.single == nil && r.Index != nil {
		for _, c := range r.Index.Components {
			if networks[c.Class] != nil || currentName[c.Class] != "" {
				names = append(names, c.Name)
			}
		}
	}
	return names
}

// Single gives the scheduler_config.json of a pipeline in one file; ok is false
// for anything else.
func (r *Repository) Single() (scheduler []byte, ok bool) {
	if r.single == nil || r.Index == nil {
		return nil, false
	}
	return r.single.said, true
}

// Notes says how the networks of a single file were told; empty for a folder.
func (r *Repository) Notes() []string {
	if r.single == nil {
		return nil
	}
	return r.single.notes
}

// Tokenizer finds the folder of a component such as tokenizer_2. own is false
// where it stands for every tokenizer of the pipeline, whose special tokens
// may then be others. Of a single file dir is empty unless one was named.
func (r *Repository) Tokenizer(component string) (dir string, own bool, err error) {
	if r.single == nil {
		return filepath.Join(r.Dir, component), true, nil
	}
	root := r.single.tokenizer
	if root == "" {
		return "", false, nil
	}
	if dir := filepath.Join(root, component); isFile(filepath.Join(dir, "vocab.json")) {
		return dir, true, nil
	}
	for _, dir := range []string{root, filepath.Join(root, "tokenizer")} {
		if isFile(filepath.Join(dir, "vocab.json")) {
			return dir, false, nil
		}
	}
	return "", false, refuse.Errorf(root, "has no vocab.json, and no %s with one", component)
}

// Open opens the denoiser of a folder or of a cached repository "org/name".
func Open(path string, opt Options) (*Model, error) {
	r, err := OpenRepository(path, opt)
	if err != nil {
		return nil, err
	}
	return r.Network("")
}

// weightsFile is a choice among the weights files of a folder.
type weightsFile struct {
	path    string
	variant string
	sharded bool // path is an index
}

// FindWeights returns the safetensors file, or the index of shards, that a
// folder holds under a stem such as "diffusion_pytorch_model" or "model". As
// in diffusers an index wins over a single file.
func FindWeights(dir, stem, variant string) (path string, sharded bool, err error) {
	f, err := findWeights(dir, stem, variant)
	return f.path, f.sharded, err
}

func findWeights(dir, stem, variant string) (weightsFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return weightsFile{}, fmt.Errorf("looking for weights: %w", err)
	}
	quoted := regexp.QuoteMeta(stem)
	single := regexp.MustCompile(`^` + quoted + `(?:\.([A-Za-z0-9_]+))?\.safetensors$`)
	index := regexp.MustCompile(`^` + quoted + `\.safetensors\.index(?:\.([A-Za-z0-9_]+))?\.json$`)
	pickle := regexp.MustCompile(`\.(bin|ckpt|pt|pth)$`)
	found := map[string]weightsFile{}
	var pickles, graphs []string
	for _, e := range entries {
		name := e.Name()
		path := filepath.Join(dir, name)
		if m := single.FindStringSubmatch(name); m != nil {
			if _, ok := found[m[1]]; !ok {
				found[m[1]] = weightsFile{path, m[1], false}
			}
		} else if m := index.FindStringSubmatch(name); m != nil {
			found[m[1]] = weightsFile{path, m[1], true}
		} else if pickle.MatchString(name) {
			pickles = append(pickles, name)
		} else if strings.HasSuffix(name, ".onnx") {
			graphs = append(graphs, name)
		}
	}
	if f, ok := found[variant]; ok {
		return f, nil
	}
	var variants []string
	for v := range found {
		variants = append(variants, v)
	}
	slices.Sort(variants)
	switch {
	case variant == "" && len(variants) == 1:
		return found[variants[0]], nil
	case variant == "" && len(variants) > 1:
		return weightsFile{}, refuse.Errorf(dir, "has no plain %s.safetensors, but the variants %s: choose one", stem, strings.Join(variants, ", "))
	case len(variants) > 0:
		return weightsFile{}, refuse.Errorf(dir, "has no variant %s of %s.safetensors; it has %q", variant, stem, variants)
	case len(graphs) > 0:
		return weightsFile{}, fmt.Errorf("%s: holds its network as %s, an ONNX graph without weights to load", dir, strings.Join(graphs, ", "))
	case len(pickles) > 0:
		return weightsFile{}, refuse.Errorf(dir, "holds its weights only as %s, a pickle, which is never loaded: convert it once with `drift model convert`", strings.Join(pickles, ", "))
	}
	return weightsFile{}, refuse.Errorf(dir, "has no %s.safetensors", stem)
}
