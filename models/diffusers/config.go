package diffusers

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"drift/internal/refuse"
	"drift/internal/strictjson"
)

// A Config is the typed configuration of one network class, such as a pointer
// to UNet2DConfig.
type Config interface {
	// ClassName is the name of the class in diffusers, e.g. "UNet2DModel".
	ClassName() string
	// Validate says what is wrong or not supported, naming the key.
	Validate() error
	// Tensors lists every tensor of a valid configuration in module order:
	// what a weights file must hold, no more and no less.
	Tensors() []Tensor
	// FileInfo says how the configuration was read.
	FileInfo() *Info
}

// A Tensor is a name and a shape that a configuration asks for.
type Tensor struct {
	Name  string
	Shape []int
}

// Parameters counts the elements of all tensors of a configuration.
func Parameters(c Config) int64 {
	var n int64
	for _, t := range c.Tensors() {
		n += count(t.Shape)
	}
	return n
}

func count(shape []int) int64 {
	n := int64(1)
	for _, d := range shape {
		n *= int64(d)
	}
	return n
}

// Info says how a configuration file was read.
type Info struct {
	Class     string   // _class_name as the file has it (legacy names included)
	Version   string   // _diffusers_version, empty when absent
	Defaulted []string // keys absent from the file: the class default was taken
	Ignored   []string // keys that mean nothing to the class, and ask for nothing it would have to know
	Renamed   []string // legacy names that were translated, as "old -> new"
	Warnings  []string // legal but unusual settings
}

// FileInfo returns the Info itself; configurations embed it.
func (i *Info) FileInfo() *Info { return i }

// A Size is a height and a width; a single number in the file means both.
type Size struct{ H, W int }

// maxConfig is the most bytes of a configuration or model_index.json.
const maxConfig = 256 << 10

// networks makes a configuration with the defaults of each class.
var networks = map[string]func() Config{
	"UNet2DModel":           func() Config { return newUNet2D() },
	"UNet2DConditionModel":  func() Config { return newUNet2DCondition() },
	"AutoencoderKL":         func() Config { return newAutoencoderKL() },
	"AutoencoderTiny":       func() Config { return newAutoencoderTiny() },
	"VQModel":               func() Config { return newVQ() },
	"DiTTransformer2DModel": func() Config { return newDiT() },

	"SD3Transformer2DModel":    func() Config { return newSD3() },
	"FluxTransformer2DModel":   func() Config { return newFlux() },
	"PixArtTransformer2DModel": func() Config { return newPixArt() },
	"SanaTransformer2DModel":   func() Config { return newSana() },

	"CLIPTextModel":               func() Config { return newCLIPText(false) },
	"CLIPTextModelWithProjection": func() Config { return newCLIPText(true) },
	"T5EncoderModel":              func() Config { return newT5() },

	"SongUNet":     func() Config { return newSongUNet() },
	"DhariwalUNet": func() Config { return newDhariwalUNet() },
	"ADMUNet":      func() Config { return newADM() },
}

// currentName maps class names of the first releases to today's.
var currentName = map[string]string{
	"UNetModel":              "UNet2DModel",
	"UNetUnconditionalModel": "UNet2DModel",
}

// Classes lists the network classes that ReadConfig knows.
func Classes() []string { return slices.Sorted(maps.Keys(networks)) }

// ReadConfig reads and validates a config.json. Absent keys take the defaults
// of diffusers 0.42, legacy names of classes, keys and blocks are translated,
// and unknown keys are refused unless their value is null or false.
func ReadConfig(path string) (Config, error) {
	o, err := strictjson.ReadFile(path, maxConfig, strictjson.Limits{})
	if err != nil {
		return nil, fmt.Errorf("reading a network configuration: %w", err)
	}
	return parseConfig(path, o)
}

// ParseConfig is ReadConfig for text in memory; path names it in errors.
func ParseConfig(path string, text []byte) (Config, error) {
	if len(text) > maxConfig {
		return nil, refuse.Errorf(path, "%d bytes, more than the %d allowed for such a file", len(text), maxConfig)
	}
	o, err := strictjson.Parse(path, text, strictjson.Limits{})
	if err != nil {
		return nil, err
	}
	return parseConfig(path, o)
}

func parseConfig(path string, o *strictjson.Object) (Config, error) {
	written, err := className(path, o)
	if err != nil {
		return nil, err
	}
	name := written
	if now, ok := currentName[name]; ok {
		name = now
	}
	if norm, _ := o.Get("norm_type"); name == "Transformer2DModel" && norm == "ada_norm_zero" {
		name = "DiTTransformer2DModel"
	}
	make, ok := networks[name]
	if !ok {
		return nil, refuse.Errorf(path, "network class %q is not supported; supported: %s", written, strings.Join(Classes(), ", "))
	}
	c := make()
	d := decoder{path: path, object: o, dst: c, info: c.FileInfo()}
	if name == "UNet2DModel" {
		d.legacy = legacyUNet2D
	}
	d.unknown = func(key string, value any) error {
		if _, ok := c.(stored); ok { // transformers: hundreds of keys that say nothing about the network
			c.FileInfo().Ignored = append(c.FileInfo().Ignored, key)
			return nil
		}
		if value != nil && value != false {
			return refuse.Errorf(path, "unknown key %q of %s with the value %v", key, name, show(value))
		}
		c.FileInfo().Ignored = append(c.FileInfo().Ignored, key)
		return nil
	}
	if err := d.decode(); err != nil {
		return nil, err
	}
	if written != name {
		c.FileInfo().Renamed = append(c.FileInfo().Renamed, written+" -> "+name)
	}
	if f, ok := c.(interface{ finish() }); ok {
		f.finish()
	}
	if err := c.Validate(); err != nil {
		return nil, refuse.Errorf(path, "%v", err)
	}
	return c, nil
}

// A stored configuration says how its network's file differs from what
// diffusers writes: the stem of its name, other names of a tensor, and tensors
// that are no part of it.
type stored interface {
	stem() string
	aliases(name string) []string
	ignores(name string) bool
}

// className returns _class_name, or what transformers has in its place; one of
// them must be there.
func className(path string, o *strictjson.Object) (string, error) {
	v, ok := o.Get("_class_name")
	if !ok {
		if list, _ := o.Get("architectures"); list != nil {
			if names, ok := list.([]any); ok && len(names) == 1 {
				if name, ok := names[0].(string); ok && name != "" {
					return name, nil
				}
			}
			return "", refuse.Errorf(path, "architectures is %v, not a list of one name", show(list))
		}
		return "", refuse.Errorf(path, "has no _class_name: not a configuration of diffusers")
	}
	name, ok := v.(string)
	if !ok || name == "" {
		return "", refuse.Errorf(path, "_class_name is %v, not a name", show(v))
	}
	return name, nil
}

// renameBlocks strips the prefix that block types had in the first releases.
func renameBlocks(info *Info, blocks []string) {
	for i, b := range blocks {
		if short, old := strings.CutPrefix(b, "UNetRes"); old {
			blocks[i] = short
			if note := b + " -> " + short; !slices.Contains(info.Renamed, note) {
				info.Renamed = append(info.Renamed, note)
			}
		}
	}
}
