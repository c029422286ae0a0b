package diffusers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"drift/internal/refuse"
	"drift/internal/strictjson"
)

// A single is a pipeline whose networks stand in one file, in the layout of
// the programs that trained them or under the names of diffusers.
type single struct {
	path   string
	parts  map[string]*singlePart
	index  *Index
	sched  *SchedulerConfig // nil: the file has no text encoder, or unsaid
	said   []byte           // sched as a scheduler_config.json
	unsaid error            // why there is none: what the network predicts must be said
	notes  []string
	// tokenizer is a folder with tokenizers; empty: none was named.
	tokenizer string
	// given is the folder of Options.Config, whose networks take the place of
	// those that the file does not hold.
	given *Repository

	mu   sync.Mutex
	src  Source // while a network of it is open
	open int
}

type singlePart struct {
	config     Config
	name       naming
	own, spare func(string) bool
}

// SingleFile reports whether a path is a file of weights rather than a folder.
func SingleFile(path string) bool {
	if !slices.Contains(SourceFormats, strings.ToLower(filepath.Ext(path))) {
		return false
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// A place is where a component may stand in a file: the prefix of its names
// and how they are made from those of diffusers.
type place struct {
	prefix   string
	original bool // not the names of diffusers
}

// places lists where components are looked for, the first one that is there
// wins. A text encoder's original names are OpenCLIP's.
var places = map[string][]place{
	"unet": {{"model.diffusion_model.", true}, {"", true}, {"unet.", false}, {"", false}, {"model.diffusion_model.", false}},
	"vae":  {{"first_stage_model.", true}, {"vae.", true}, {"", true}, {"vae.", false}, {"first_stage_model.", false}, {"", false}},
	"text_encoder": {
		{"cond_stage_model.transformer.text_model.", false}, {"cond_stage_model.transformer.", false}, {"cond_stage_model.model.", true},
		{"conditioner.embedders.0.transformer.text_model.", false}, {"text_encoder.text_model.", false}, {"text_encoder.", false},
		{"te.text_model.", false}, {"te1.text_model.", false},
	},
	"text_encoder_2": {
		{"conditioner.embedders.1.model.", true}, {"cond_stage_model.1.model.", true}, {"cond_stage_model.1.transformer.text_model.", false},
		{"conditioner.embedders.1.transformer.text_model.", false}, {"text_encoder_2.text_model.", false}, {"text_encoder_2.", false},
		{"te.1.text_model.", false}, {"te2.text_model.", false},
	},
}

// marks tell a component in its original names and in those of diffusers.
var marks = map[string][2]string{
	"unet":           {"middle_block.1.proj_in.weight", "mid_block.attentions.0.proj_in.weight"},
	"vae":            {"encoder.mid.block_1.conv1.weight", "encoder.mid_block.resnets.0.conv1.weight"},
	"text_encoder":   {"positional_embedding", "embeddings.position_embedding.weight"},
	"text_encoder_2": {"positional_embedding", "embeddings.position_embedding.weight"},
}

func (s *single) find(src Source, component string) (place, bool) {
	for _, p := range places[component] {
		mark := marks[component][1]
		if p.original {
			mark = marks[component][0]
		}
		if _, ok := src.Tensor(p.prefix + mark); ok {
			return p, true
		}
	}
	return place{}, false
}

// foreign are layouts that are recognised to be refused by name: a tensor, and
// what it is a sign of.
var foreign = [][2]string{
	{"joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3 in its original layout"},
	{"double_blocks.0.img_attn.qkv.weight", "Flux in its original layout"},
	{"transformer_blocks.0.attn.to_q.weight", "a transformer under the names of diffusers"},
}

// Holds reports whether a file of weights holds something that OpenRepository
// knows, if only to refuse it by name.
func Holds(path string) (bool, error) {
	src, err := OpenSource(path)
	if err != nil {
		return false, err
	}
	defer src.Close()
	if _, edm := isEDM(src); edm || isADM(src) || foreignTo(src) != "" {
		return true, nil
	}
	s := &single{path: path}
	for c := range places {
		if _, ok := s.find(src, c); ok {
			return true, nil
		}
	}
	return false, nil
}

// foreignTo names a layout that is recognised to be refused.
func foreignTo(src Source) string {
	for _, prefix := range []string{"", "model.diffusion_model."} {
		for _, f := range foreign {
			if _, ok := src.Tensor(prefix + f[0]); ok {
				return f[1]
			}
		}
	}
	return ""
}

// openSingle finds out what a file holds. The weights stay in the file, which
// is opened again for every network.
func openSingle(path string, opt Options) (*Repository, error) {
	src, err := OpenSource(path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	s := &single{path: path, parts: map[string]*singlePart{}}
	r := &Repository{Dir: path, opt: opt, single: s}
	if err := s.read(src, opt); err != nil {
		return nil, err
	}
	r.Index = s.index
	return r, nil
}

func (s *single) read(src Source, opt Options) error {
	if what := foreignTo(src); what != "" {
		return refuse.Errorf(s.path, "holds %s, which is read from a folder of diffusers only", what)
	}
	if is, err := s.readScore(src, opt); is || err != nil {
		return err
	}
	if err := beside(s.path, &opt); err != nil {
		return err
	}
	found := map[string]place{}
	for _, c := range []string{"unet", "vae", "text_encoder", "text_encoder_2"} {
		if p, ok := s.find(src, c); ok {
			found[c] = p
		}
	}
	if len(found) == 0 {
		return refuse.Errorf(s.path, "its %d tensors%s are of no layout that is read: Stable Diffusion 1, 2 or XL in one file, or one of its networks", len(src.Tensors()), firstNames(src))
	}
	var given *Repository
	if opt.Config != "" {
		var err error
		if given, err = OpenRepository(opt.Config, Options{CacheDir: opt.CacheDir}); err != nil {
			return fmt.Errorf("reading the configuration of %s: %w", s.path, err)
		}
	}
	s.given = given
	in := &inferred{src: src, found: found}
	for _, c := range []string{"unet", "vae", "text_encoder", "text_encoder_2"} {
		p, ok := found[c]
		if !ok {
			continue
		}
		var cfg Config
		var err error
		if given != nil {
			cfg, _, err = given.Config(c)
		} else {
			cfg, err = in.config(c, p)
		}
		if err != nil {
			return fmt.Errorf("%s: its %s: %w", s.path, c, err)
		}
		part, err := s.part(src, c, cfg, p)
		if err != nil {
			return err
		}
		s.parts[c] = part
	}
	return s.around(src, given, in, opt)
}

// beside takes from NAME.drift.json what was not asked for otherwise:
// prediction, config and tokenizer, the last two as paths from its folder.
func beside(path string, opt *Options) error {
	name := sidecarOf(path)
	if !isFile(name) {
		return nil
	}
	o, err := strictjson.ReadFile(name, maxConfig, strictjson.Limits{})
	if err != nil {
		return fmt.Errorf("reading what is said of %s: %w", path, err)
	}
	for _, key := range o.Keys() {
		v, _ := o.Get(key)
		text, ok := v.(string)
		dst := map[string]*string{"prediction": &opt.Prediction, "config": &opt.Config, "tokenizer": &opt.Tokenizer}[key]
		switch {
		case dst == nil || !ok || text == "":
			return refuse.Errorf(name, "%s is %s: of Stable Diffusion in one file prediction (eps, v), config and tokenizer (folders) can be said", key, show(v))
		case *dst != "":
		case key == "prediction":
			*dst = text
		case filepath.IsAbs(text):
			*dst = text
		default:
			*dst = filepath.Join(filepath.Dir(name), text)
		}
	}
	return nil
}

func firstNames(src Source) string {
	var names []string
	for _, t := range src.Tensors() {
		if names = append(names, t.Name); len(names) == 3 {
			break
		}
	}
	if len(names) == 0 {
		return ""
	}
	return " (" + strings.Join(names, ", ") + ", ...)"
}

// part says how a component's names are made.
func (s *single) part(src Source, component string, cfg Config, p place) (*singlePart, error) {
	part := &singlePart{config: cfg, name: whole, spare: func(string) bool { return false }}
	wrong := func() error {
		return refuse.Errorf(s.path, "its %s does not go with the configuration of a %s", component, cfg.ClassName())
	}
	switch c := cfg.(type) {
	case *UNet2DConditionConfig:
		if component != "unet" {
			return nil, wrong()
		}
		if p.original {
			part.name = unetNaming(c)
		}
	case *AutoencoderKLConfig:
		if component != "vae" {
			return nil, wrong()
		}
		if p.original {
			part.name = vaeNaming(c)
		}
		part.spare = func(name string) bool {
			return strings.HasPrefix(name, "loss.") || strings.HasPrefix(name, "model_ema.")
		}
	case *CLIPTextConfig:
		if !strings.HasPrefix(component, "text_encoder") {
			return nil, wrong()
		}
		beyond := []string{fmt.Sprintf("transformer.resblocks.%d.", c.NumHiddenLayers), fmt.Sprintf("encoder.layers.%d.", c.NumHiddenLayers)}
		switch {
		case p.original:
			part.name = openCLIPNaming
		default: // stable-diffusion.cpp keeps what OpenCLIP has in one piece, under names like those of transformers
			part.name = func(name string) piece {
				open := openCLIPNaming(name)
				switch {
				case name == "text_projection.weight":
					if _, ok := src.Tensor(p.prefix + "text_projection"); ok {
						return open
					}
				case open.parts > 0:
					at := fusedProjection.ReplaceAllString(name, "in_proj.")
					if _, ok := src.Tensor(p.prefix + at); ok {
						open.name = at
						return open
					}
				}
				return whole(name)
			}
		}
		part.spare = func(name string) bool {
			return name == "logit_scale" || name == "embeddings.position_ids" || name == "attn_mask" ||
				!c.Projected && strings.HasPrefix(name, "text_projection") ||
				strings.HasPrefix(name, beyond[0]) || strings.HasPrefix(name, beyond[1])
		}
	default:
		return nil, wrong()
	}
	part.name = under(p.prefix, part.name)
	spare := part.spare
	if beside := strings.TrimSuffix(p.prefix, "text_model.") + "text_projection.weight"; !p.original && strings.HasSuffix(p.prefix, "text_model.") {
		if _, ok := src.Tensor(beside); ok {
			inner := part.name
			part.name = func(name string) piece {
				if name == "text_projection.weight" {
					return whole(beside)
				}
				return inner(name)
			}
		}
	}
	part.own = func(name string) bool { return strings.HasPrefix(name, p.prefix) }
	part.spare = func(name string) bool { return spare(strings.TrimPrefix(name, p.prefix)) }
	if p.prefix == "" { // one network, or nothing else would be told apart
		part.own = func(string) bool { return len(s.parts) == 1 }
	}
	return part, nil
}

// around makes what a folder has beside its networks.
func (s *single) around(src Source, given *Repository, in *inferred, opt Options) error {
	unet, _ := s.parts["unet"].get().(*UNet2DConditionConfig)
	if unet == nil || s.parts["text_encoder"] == nil && (given == nil || given.Index == nil) {
		return nil // single networks
	}
	s.index = &Index{Class: "StableDiffusionPipeline"}
	if unet.AdditionEmbedType == "text_time" {
		s.index.Class, s.index.flags = "StableDiffusionXLPipeline", map[string]bool{"force_zeros_for_empty_prompt": true}
	}
	if unet.InChannels > unet.OutChannels { // a mask and what is around it, too
		s.index.Class = strings.Replace(s.index.Class, "Pipeline", "InpaintPipeline", 1)
	}
	if given != nil && given.Index != nil {
		s.index.Class, s.index.flags = given.Index.Class, given.Index.flags
	}
	for _, name := range []string{"unet", "vae", "text_encoder", "text_encoder_2"} {
		if p := s.parts[name]; p != nil {
			library := "diffusers"
			if _, ok := p.config.(*CLIPTextConfig); ok {
				library = "transformers"
			}
			s.index.Components = append(s.index.Components, Component{name, library, p.config.ClassName()})
		}
	}
	if given != nil && given.Index != nil {
		for _, c := range given.Index.Components {
			if _, ok := s.index.Component(c.Name); !ok && places[c.Name] != nil {
				s.index.Components = append(s.index.Components, c)
				s.notes = append(s.notes, "the "+c.Name+" is that of "+given.Dir)
			}
		}
	}
	if opt.Tokenizer != "" {
		s.tokenizer = opt.Tokenizer
	} else if given != nil && isFile(filepath.Join(given.Dir, "tokenizer", "vocab.json")) {
		s.tokenizer = given.Dir
	}
	var err error
	if given != nil {
		if s.sched, err = given.Scheduler(); err == nil {
			var path string
			if path, err = given.file("scheduler", "scheduler_config.json"); err == nil {
				s.said, err = readSmall(path, maxConfig)
			}
		}
	} else {
		s.sched, s.said, err = in.scheduler(s.path, src, unet, opt.Prediction)
		s.notes = append(s.notes, in.kind+", told from the tensors' names and shapes")
	}
	var ask *PredictionError
	if errors.As(err, &ask) {
		s.unsaid, err = err, nil
	}
	if err != nil {
		return err
	}
	left := 0
	for _, t := range src.Tensors() {
		owned := false
		for _, p := range s.parts {
			owned = owned || p.own(t.Name)
		}
		if !owned {
			left++
		}
	}
	if left > 0 {
		s.notes = append(s.notes, fmt.Sprintf("%d tensors outside the networks are left out", left))
	}
	return nil
}

func (p *singlePart) get() Config {
	if p == nil {
		return nil
	}
	return p.config
}

// borrows tells whether a network stands in the folder of the configuration.
func (s *single) borrows(component string) bool {
	if s.index == nil || s.given == nil {
		return false
	}
	_, ok := s.index.Component(component)
	return ok
}

// network opens one component; the file stays open until the last one is
// closed.
func (s *single) network(component string) (*Model, error) {
	part := s.parts[component]
	if part == nil && s.borrows(component) {
		return s.given.Network(component)
	}
	if part == nil {
		return nil, refuse.Errorf(s.path, "has no %s", component)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == 0 {
		src, err := OpenSource(s.path)
		if err != nil {
			return nil, err
		}
		s.src = src
	}
	s.open++
	v := newView(s.src, part.config, part.name, part.own, part.spare)
	v.done = s.closeOne
	w, err := NewCheckpoint(part.config, v)
	if err != nil {
		s.open--
		if s.open == 0 {
			_ = s.src.Close() // it was only read
		}
		return nil, err
	}
	m := &Model{Component: component, Dir: s.path, File: s.path, Config: part.config, Weights: w}
	m.Notes = append(slices.Clone(part.config.FileInfo().Warnings), w.Notes...)
	return m, nil
}

func (s *single) closeOne() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open--; s.open == 0 {
		return s.src.Close()
	}
	return nil
}
