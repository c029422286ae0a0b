package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"drift/internal/kernels"
	"drift/internal/refuse"
	"drift/models"
	"drift/models/open"
	"drift/models/zoo"
)

// modelInfo is what a model says of itself.
type modelInfo = models.Info

// openModel opens what --model names. A name that stands for nothing is wrong usage, a file that does not hold a model
// is refused.
func (a *app) openModel(ctx context.Context, name, dtype, tier string) (*open.Model, error) {
	return a.openPipeline(ctx, name, dtype, tier, open.Pipeline{})
}

// openPipeline is openModel with what is asked of the parts around a network.
func (a *app) openPipeline(ctx context.Context, name, dtype, tier string, around open.Pipeline) (*open.Model, error) {
	if name == "" {
		return nil, usagef("--model needs a name; see drift list models")
	}
	if dtype != "" && !slices.Contains([]string{"f32", "bf16", "f64", "f16"}, dtype) {
		return nil, usagef("--dtype %s: want f32, bf16 or f64 (or f16 of an ONNX file)", dtype)
	}
	if tier != "" {
		t, err := kernels.ParseTier(tier)
		if err != nil {
			return nil, badUse("tier", err)
		}
		if !t.Supported() {
			return nil, usagef("--tier %s: this machine has %v", t, kernels.Tiers())
		}
	}
	m, err := open.Open(ctx, name, open.Options{DType: dtype, Threads: a.threads(), Tier: tier, Hub: a.hub(), ORT: a.ort, Pipeline: around})
	if err == nil {
		for _, n := range m.Notes {
			a.say("drift: %s: %s", name, n)
		}
		return m, nil
	}
	var path *fs.PathError
	var refused *refuse.Error
	if errors.As(err, &path) || errors.As(err, &refused) || ctx.Err() != nil {
		return nil, err
	}
	if e := onnxError(err); e != nil {
		return nil, e
	}
	var asked *open.AskedError
	if errors.As(err, &asked) {
		return nil, usagef("%s", asked.Reason)
	}
	if embedded(name) {
		return nil, badUse("model", err)
	}
	switch _, e := os.Stat(name); {
	case e == nil && strings.EqualFold(filepath.Ext(name), ".json"):
		return nil, badUse("model", err) // the target is fine, what was asked of it is not
	case e == nil:
		return nil, refuse.Errorf(name, "%s", trimPackage(err.Error()))
	case !errors.Is(e, fs.ErrNotExist), filepath.Ext(name) == ".json", filepath.Ext(name) == ".onnx":
		return nil, e
	}
	return nil, badUse("model", err)
}

func embedded(name string) bool {
	return slices.ContainsFunc(open.Embedded(), func(e zoo.Entry) bool { return e.Name == name })
}

// hub is the folder in which diffusers keeps what it downloaded; only read.
func (a *app) hub() string {
	if v := a.getenv("HF_HUB_CACHE"); v != "" {
		return v
	}
	if v := a.getenv("HF_HOME"); v != "" {
		return filepath.Join(v, "hub")
	}
	if v := a.getenv("HOME"); v != "" {
		return filepath.Join(v, ".cache", "huggingface", "hub")
	}
	return ""
}

// defaultModel is the embedded model that runs when none is named.
func defaultModel() string { return zoo.Models()[0].Name }

// modelEntries lists the embedded models.
func (a *app) modelEntries() []entry {
	var out []entry
	for _, e := range open.Embedded() {
		out = append(out, entry{Name: e.Name, Summary: e.Summary})
	}
	return out
}
