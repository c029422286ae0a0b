// Package diffusers reads networks and schedulers as the diffusers library
// lays them out on disk: a folder or a repository with model_index.json,
// config.json, scheduler_config.json and safetensors files. Whatever a file
// says that is wrong, contradictory or not supported is reported as a
// *refuse.Error that names the key or tensor; nothing is silently skipped.
package diffusers

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"

	"drift/internal/refuse"
	"drift/internal/safetensors"
)

// Weights gives the tensors of one network by name.
type Weights interface {
	// Names lists the tensors the configuration asks for (legacy names are
	// already translated), in module order.
	Names() []string
	// Shape returns the shape of a tensor, and whether there is one.
	Shape(name string) ([]int, bool)
	// Float32 reads one tensor, row-major, widened or narrowed to float32.
	// The slice belongs to the caller.
	Float32(name string) ([]float32, error)
}

// A Checkpoint is the Weights of a configuration in safetensors files. It
// holds exactly the tensors that the configuration asks for.
type Checkpoint struct {
	// Notes says which tensors stand under legacy names, and which were left
	// out.
	Notes []string

	reader Source
	stored stored // nil for what diffusers writes
	names  []string
	bound  map[string]boundTensor
}

type boundTensor struct {
	stored string // its name in the file
	shape  []int
}

// NewCheckpoint matches the tensors of a file, or of the shards of an index,
// with those of a configuration. Attention weights named query, key, value and
// proj_attn stand for to_q, to_k, to_v and to_out.0, in matrices or 1x1
// convolutions. Tensors that are missing, unexpected, of another shape or not
// floating-point are counted and named in one refusal. The checkpoint keeps r.
func NewCheckpoint(c Config, r Source) (*Checkpoint, error) {
	w := &Checkpoint{reader: r, bound: map[string]boundTensor{}}
	used := map[string]bool{}
	faults := map[string][]string{}
	renamed, squeezed := 0, 0
	how, _ := c.(stored)
	w.stored = how
	tensors := c.Tensors()
	patched := false
	if d, ok := c.(*DiTConfig); ok {
		if x, have := r.Tensor(DiTPrompts); have {
			patched = true
			more, err := d.Prompts(x.Shape)
			if err != nil {
				return nil, refuse.Errorf(r.Path(), "%v", err)
			}
			tensors = append(tensors, more...)
		}
	}
	for _, want := range tensors {
		stored, copies := w.find(want.Name)
		if stored == "" {
			faults["missing"] = append(faults["missing"], want.Name)
			continue
		}
		used[stored] = true
		for _, other := range copies {
			used[other] = true
			same, err := w.equal(stored, other)
			if err != nil {
				return nil, err
			}
			if !same {
				faults["given twice with different values"] = append(faults["given twice with different values"], stored+" and "+other)
			}
		}
		x, _ := r.Tensor(stored)
		flat := len(x.Shape) == 4 && len(want.Shape) == 2 && x.Shape[2] == 1 && x.Shape[3] == 1 && slices.Equal(x.Shape[:2], want.Shape) && attention.MatchString(want.Name)
		switch {
		case !flat && !slices.Equal(x.Shape, want.Shape):
			faults["of another shape"] = append(faults["of another shape"], fmt.Sprintf("%s has %v and should have %v", stored, x.Shape, want.Shape))
		case x.DType != safetensors.F16 && x.DType != safetensors.BF16 && x.DType != safetensors.F32 && x.DType != safetensors.F64:
			faults["of a type that is not read"] = append(faults["of a type that is not read"], fmt.Sprintf("%s is %s", stored, x.DType))
		}
		if stored != want.Name {
			renamed++
		}
		if flat {
			squeezed++
		}
		w.names = append(w.names, want.Name)
		w.bound[want.Name] = boundTensor{stored, want.Shape}
	}
	for _, x := range r.Tensors() {
		switch {
		case used[x.Name], how != nil && how.ignores(x.Name):
		case patched && x.Name == "w_noise":
			w.Notes = append(w.Notes, "w_noise is left out: it belongs to training")
		case c.ClassName() == "DiTTransformer2DModel" && x.Name == "pos_embed.pos_embed":
			w.Notes = append(w.Notes, "pos_embed.pos_embed is left out: the position table is computed")
		default:
			faults["unexpected"] = append(faults["unexpected"], x.Name)
		}
	}
	if len(faults) > 0 {
		var parts []string
		for _, kind := range []string{"missing", "unexpected", "of another shape", "of a type that is not read", "given twice with different values"} {
			if list := faults[kind]; len(list) > 0 {
				names := strings.Join(list[:min(len(list), maxNamed)], ", ")
				if len(list) > maxNamed {
					names += ", ..."
				}
				parts = append(parts, fmt.Sprintf("%d %s: %s", len(list), kind, names))
			}
		}
		return nil, refuse.Errorf(r.Path(), "the tensors are not those of the %s that the configuration describes; %s", c.ClassName(), strings.Join(parts, "; "))
	}
	if renamed > 0 {
		w.Notes = append(w.Notes, fmt.Sprintf("%d tensors stand under legacy names", renamed))
	}
	if squeezed > 0 {
		w.Notes = append(w.Notes, fmt.Sprintf("%d attention matrices are stored as 1x1 convolutions", squeezed))
	}
	return w, nil
}

// maxNamed is the most tensors that one refusal names of a kind.
const maxNamed = 20

// attention matches the weights of an attention layer that is a child of a
// block itself; those inside transformer blocks never had other names.
var attention = regexp.MustCompile(`\.attentions\.\d+\.(to_q|to_k|to_v|to_out\.0)\.(weight|bias)$`)

// legacyAttention are the names of the first releases.
var legacyAttention = map[string]string{"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

// find returns the name under which a file holds a tensor, and names of
// copies of it. Old files have the convolution of a resampler twice, and the
// frequencies of the Fourier embedding.
func (w *Checkpoint) find(name string) (stored string, copies []string) {
	candidates := []string{name}
	if w.stored != nil {
		candidates = append(candidates, w.stored.aliases(name)...)
	}
	if m := attention.FindStringSubmatchIndex(name); m != nil {
		candidates = append(candidates, name[:m[2]]+legacyAttention[name[m[2]:m[3]]]+name[m[3]:])
	}
	if strings.Contains(name, "samplers.0.conv.") {
		candidates = append(candidates, strings.Replace(name, "samplers.0.conv.", "samplers.0.Conv2d_0.", 1))
	}
	if name == "time_proj.weight" {
		candidates = append(candidates, "time_proj.W")
	}
	for _, c := range candidates {
		if _, ok := w.reader.Tensor(c); !ok {
			continue
		}
		if stored == "" {
			stored = c
		} else {
			copies = append(copies, c)
		}
	}
	return stored, copies
}

func (w *Checkpoint) equal(a, b string) (bool, error) {
	x, _ := w.reader.Tensor(a)
	y, _ := w.reader.Tensor(b)
	if x.DType != y.DType || !slices.Equal(x.Shape, y.Shape) {
		return false, nil
	}
	p, err := w.reader.Bytes(a)
	if err != nil {
		return false, err
	}
	q, err := w.reader.Bytes(b)
	return bytes.Equal(p, q), err
}

// Names implements Weights.
func (w *Checkpoint) Names() []string { return slices.Clone(w.names) }

// Shape implements Weights.
func (w *Checkpoint) Shape(name string) ([]int, bool) {
	b, ok := w.bound[name]
	return slices.Clone(b.shape), ok
}

// Float32 implements Weights.
func (w *Checkpoint) Float32(name string) ([]float32, error) {
	b, ok := w.bound[name]
	if !ok {
		return nil, refuse.Errorf(w.reader.Path(), "the configuration has no tensor %q", name)
	}
	return w.reader.Float32(b.stored)
}

// Stored gives a tensor as it lies in its file, row-major and little-endian,
// if that is in float32, float16 or bfloat16, and else nil.
func (w *Checkpoint) Stored(name string) (io.ReaderAt, safetensors.DType) {
	b, ok := w.bound[name]
	if !ok {
		return nil, ""
	}
	x, _ := w.reader.Tensor(b.stored)
	if x.DType != safetensors.F32 && x.DType != safetensors.F16 && x.DType != safetensors.BF16 {
		return nil, ""
	}
	if s, ok := w.reader.(sections); ok {
		if r, err := s.Section(b.stored); err == nil {
			return r, x.DType
		}
	}
	return &inOne{read: sync.OnceValues(func() ([]byte, error) { return w.reader.Bytes(b.stored) })}, x.DType
}

// sections is a Source whose tensors can be read a part at a time; the error
// is that of one that cannot.
type sections interface {
	Section(name string) (*io.SectionReader, error)
}

// inOne is a tensor that is read as a whole, when it is needed.
type inOne struct{ read func() ([]byte, error) }

// ReadAt implements io.ReaderAt.
func (w *inOne) ReadAt(p []byte, at int64) (int, error) {
	b, err := w.read()
	if err != nil {
		return 0, err
	}
	return bytes.NewReader(b).ReadAt(p, at)
}

// DTypes counts the tensors of each element type.
func (w *Checkpoint) DTypes() map[string]int {
	n := map[string]int{}
	for _, b := range w.bound {
		n[storedType(w.reader, b.stored)]++
	}
	return n
}

// Files lists the paths of the file, or of the shards.
func (w *Checkpoint) Files() []string { return w.reader.Files() }

// Close closes the files.
func (w *Checkpoint) Close() error { return w.reader.Close() }
