package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"drift/internal/refuse"
	"drift/models/ort"
)

// ort loads ONNX Runtime: from --ort-lib, beside the program, or from the system.
func (a *app) ort() (*ort.Library, error) {
	p := ort.Places{Named: a.ortLib}
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		p.Beside = filepath.Dir(exe)
	}
	return ort.Load(p)
}

// onnxError sorts the errors of package ort: a sidecar that is not there comes with a template, a library that is not there
// is no fault of the file. nil for others.
func onnxError(err error) error {
	var missing *ort.MissingError
	var sidecar *ort.SidecarMissingError
	switch {
	case errors.As(err, &missing):
		return err
	case errors.As(err, &sidecar):
		return &hint{refuse.Errorf(sidecar.File.Path, "%s", trimFile(sidecar)), "a sidecar to fill in, " + sidecar.Path + ": " + sidecar.Template}
	}
	return nil
}

// trimFile is the error without the file's name, which refuse says again.
func trimFile(e *ort.SidecarMissingError) string {
	return trimPackage(e.Error())[len(e.File.Path)+1:]
}

// openJudge opens a classifier, a scorer or an extractor in an ONNX file.
func (a *app) openJudge(ctx context.Context, path string) (*ort.Judge, error) {
	sorted := func(err error) error {
		if e := onnxError(err); e != nil {
			return e
		}
		return err
	}
	lib, err := a.ort()
	if err != nil {
		return nil, sorted(err)
	}
	net, err := lib.OpenNet(ctx, path, nil, ort.Options{})
	if err != nil {
		return nil, sorted(err)
	}
	j, err := net.Judge(ctx)
	if err != nil {
		net.Close()
		return nil, err
	}
	return j, nil
}

// companions are the files beside an ONNX file that belong to it, by their names: its sidecar, its weights, tables of
// embeddings, the graph of its gradient. None for other files.
func companions(path string) []string {
	if !strings.EqualFold(filepath.Ext(path), ".onnx") {
		return nil
	}
	f, err := ort.ReadFile(path)
	if err != nil {
		return nil // whoever opens it says what is wrong
	}
	out := f.External
	for _, side := range ort.SidecarPaths(path) {
		s, err := ort.ReadSidecar(side)
		if err != nil {
			continue
		}
		out = append(out, filepath.Base(side))
		for _, i := range s.Inputs {
			if i.Table != "" {
				out = append(out, i.Table)
			}
		}
		if s.VJP != nil {
			out = append(out, s.VJP.File)
		}
		break
	}
	return out
}
