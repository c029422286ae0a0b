package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/models/diffusers"
)

// inOneFile tells whether a name is a file of weights that holds networks of a pipeline.
func inOneFile(name string) (bool, error) {
	if embedded(name) || !diffusers.SingleFile(name) {
		return false, nil
	}
	return diffusers.Holds(name)
}

// fileFlags say what a file of weights does not say itself.
func fileFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "of a model in one file: `FOLDER` in the diffusers layout whose configurations are taken, instead of what the tensors' shapes say"},
		&cli.StringFlag{Name: "prediction", Usage: "of a model in one file: what the network predicts, eps or v (`P`), where the file does not say it"},
	}
}

func fileOptions(c *cli.Context) diffusers.Options {
	return diffusers.Options{Config: c.String("config"), Prediction: c.String("prediction")}
}

// A fileNetwork is what is said of one network of a file.
type fileNetwork struct {
	Component  string         `json:"component"`
	Class      string         `json:"class"`
	Parameters int64          `json:"parameters"`
	DTypes     map[string]int `json:"dtypes"` // tensors of each type
}

// networksOf opens every network of a file, without its values.
func networksOf(r *diffusers.Repository) (list []fileNetwork, notes []string, err error) {
	for _, name := range r.Components() {
		n, err := r.Network(name)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, fileNetwork{name, n.Config.ClassName(), diffusers.Parameters(n.Config), n.Weights.DTypes()})
		for _, note := range n.Notes {
			notes = append(notes, name+": "+note)
		}
		if err := n.Close(); err != nil {
			return nil, nil, err
		}
	}
	return list, notes, nil
}

// typesOf prints how many tensors are of each type.
func (n fileNetwork) types() string {
	var list []string
	for t, k := range n.DTypes {
		list = append(list, fmt.Sprintf("%d %s", k, t))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// fileInfo says what a file of weights holds, without loading it.
func (a *app) fileInfo(c *cli.Context, name string) error {
	r, err := diffusers.OpenRepository(name, fileOptions(c))
	if err != nil {
		return err
	}
	list, notes, err := networksOf(r)
	if err != nil {
		return err
	}
	notes = append(slices.Clone(r.Notes()), notes...)
	scheduler := ""
	s, err := r.Scheduler()
	var ask *diffusers.PredictionError
	switch {
	case errors.As(err, &ask):
		scheduler = "not known: " + strings.TrimPrefix(ask.Reason, name+" ")
	case err == nil:
		scheduler = s.ClassName + ", predicts " + s.PredictionType
	case r.Index != nil:
		return err
	}
	if a.json {
		a.emit(map[string]any{"name": name, "networks": list, "scheduler": scheduler, "notes": notes})
		return nil
	}
	line := func(key, format string, args ...any) {
		fmt.Fprintf(a.out, "%-14s "+format+"\n", append([]any{key}, args...)...)
	}
	line("name", "%s", name)
	for _, n := range list {
		line(n.Component, "%s, %d parameters (%s)", n.Class, n.Parameters, n.types())
	}
	if scheduler != "" {
		line("scheduler", "%s", scheduler)
	}
	if r.Index != nil {
		line("tokenizer", "CLIP's, which drift carries; --tokenizer FOLDER names another")
	}
	for _, n := range notes {
		line("note", "%s", oneLine(n))
	}
	return nil
}

// verifyFile matches the networks of a file with their configurations; pipeline tells whether it holds more than one.
func verifyFile(c *cli.Context, name string) (text string, pipeline bool, err error) {
	r, err := diffusers.OpenRepository(name, fileOptions(c))
	if err != nil {
		return "", false, err
	}
	pipeline = r.Index != nil
	list, _, err := networksOf(r)
	if err != nil {
		return "", pipeline, err
	}
	var what []string
	for _, n := range list {
		what = append(what, fmt.Sprintf("%s with %d parameters", n.Class, n.Parameters))
	}
	return strings.Join(what, ", "), pipeline, nil
}
