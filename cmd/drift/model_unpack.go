package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"

	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/models/diffusers"
	"drift/models/text"
)

// unpack writes the networks of one file as a folder in the layout of diffusers: under a temporary name first.
func (a *app) unpack(ctx context.Context, in, out string, dtype safetensors.DType, opt diffusers.Options) error {
	r, err := diffusers.OpenRepository(in, opt)
	if err != nil {
		return err
	}
	if r.Index == nil && opt.Prediction != "" {
		return usagef("--prediction: %s is one network, which has no scheduler", in)
	}
	if _, err := r.Scheduler(); r.Index != nil && err != nil {
		return badUse("prediction", err)
	}
	if entries, err := os.ReadDir(out); err == nil && len(entries) > 0 {
		return usagef("%s is there already: want the name of a new folder", out)
	}
	temporary, err := os.MkdirTemp(filepath.Dir(filepath.Clean(out)), filepath.Base(filepath.Clean(out))+".tmp")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if err := os.Chmod(temporary, 0o755); err != nil {
		return err
	}
	u := unpacking{app: a, r: r, from: in, to: temporary, dtype: dtype}
	if err := u.run(ctx); err != nil {
		return err
	}
	if err := os.Remove(out); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.Rename(temporary, out); err != nil {
		return err
	}
	if a.json {
		a.emit(map[string]any{"event": "folder", "path": out, "networks": u.r.Components(), "tensors": u.tensors})
	}
	a.say("drift: %d networks with %d tensors: %s", len(u.r.Components()), u.tensors, out)
	return nil
}

type unpacking struct {
	*app
	r        *diffusers.Repository
	from, to string
	dtype    safetensors.DType
	tensors  int
}

func (u *unpacking) run(ctx context.Context) error {
	index := map[string]any{}
	scheduler, pipeline := u.r.Single()
	for _, name := range u.r.Components() {
		m, err := u.r.Network(name)
		if err != nil {
			return err
		}
		dir := u.to
		if pipeline {
			dir = filepath.Join(u.to, name)
		}
		err = u.network(ctx, m, dir)
		if e := m.Close(); err == nil {
			err = e
		}
		if err != nil {
			return err
		}
		library := "diffusers"
		if c, ok := m.Config.(*diffusers.CLIPTextConfig); ok {
			library = "transformers"
			if err := u.tokenizer("tokenizer"+name[len("text_encoder"):], c); err != nil {
				return err
			}
			index["tokenizer"+name[len("text_encoder"):]] = []string{library, "CLIPTokenizer"}
		}
		index[name] = []string{library, m.Config.ClassName()}
	}
	if !pipeline {
		return nil
	}
	s, err := u.r.Scheduler()
	if err != nil {
		return err
	}
	index["scheduler"], index["_class_name"] = []string{"diffusers", s.ClassName}, u.r.Index.Class
	if u.r.Index.Flag("force_zeros_for_empty_prompt") {
		index["force_zeros_for_empty_prompt"] = true
	}
	text, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(u.to, "model_index.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(u.to, "scheduler"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(u.to, "scheduler", "scheduler_config.json"), append(scheduler, '\n'), 0o644)
}

// network writes a configuration and its weights.
func (u *unpacking) network(ctx context.Context, m *diffusers.Model, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := diffusers.MarshalConfig(m.Config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644); err != nil {
		return err
	}
	var list []safetensors.Tensor
	for _, name := range m.Weights.Names() {
		shape, _ := m.Weights.Shape(name)
		stored := safetensors.F32
		if data, d := m.Weights.Stored(name); data != nil {
			stored = d
		}
		list = append(list, safetensors.Tensor{Name: name, DType: u.dtype.Of(stored), Shape: shape})
	}
	safetensors.Sort(list)
	w, err := safetensors.Create(filepath.Join(dir, diffusers.WeightsStem(m.Config)+".safetensors"), map[string]string{"format": "pt", "drift.source": filepath.Base(u.from)}, list)
	if err != nil {
		return err
	}
	defer w.Discard()
	for _, t := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		if data, d := m.Weights.Stored(t.Name); data != nil && d == t.DType {
			if err := w.Raw(io.NewSectionReader(data, 0, int64(t.Len())*int64(d.Bits()/8))); err != nil {
				return err
			}
			continue
		}
		v, err := m.Weights.Float32(t.Name)
		if err != nil {
			return err
		}
		if err := w.Float32(v); err != nil {
			return err
		}
	}
	u.tensors += len(list)
	return w.Commit()
}

// tokenizer writes the one that was named, or CLIP's.
func (u *unpacking) tokenizer(name string, c *diffusers.CLIPTextConfig) error {
	from, own, err := u.r.Tokenizer(name)
	if err != nil {
		return err
	}
	var t *text.CLIPTokenizer
	switch {
	case from != "":
		t, err = text.OpenCLIPTokenizer(from)
	case c.VocabSize == text.CLIPVocabulary:
		t, err = text.NewCLIPTokenizer()
	default:
		return refuse.Errorf(u.from, "has a text encoder of %d tokens, not CLIP's %d: --config names a folder with its tokenizer", c.VocabSize, text.CLIPVocabulary)
	}
	if err == nil && !own && c.HiddenAct == "gelu" {
		err = t.PadWith("!")
	}
	if err != nil {
		return err
	}
	files, err := t.Files()
	if err != nil {
		return err
	}
	dir := filepath.Join(u.to, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for file, content := range files {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
