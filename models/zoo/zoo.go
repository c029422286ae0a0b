// Package zoo holds the networks that drift carries with it: small diffusion models of clothes, and a classifier that
// names and measures what they draw. They were trained for this project on Fashion-MNIST (Zalando Research, MIT
// licence); the weights are stored in 16 bits.
package zoo

import (
	"embed"
	"io/fs"
)

//go:embed data
var data embed.FS

// Entry is one embedded model.
type Entry struct{ Name, Summary string }

// Models lists the embedded diffusion models; the first is the default.
func Models() []Entry {
	return []Entry{
		{"fashion-flow", "28x28 clothes, 10 classes: rectified flow (velocity), the default"},
		{"fashion", "the same network trained as noise predictor (DDPM betas)"},
		{"fashion-early", "an early checkpoint of fashion: the weak model of autoguidance"},
	}
}

// Folder returns the files of an embedded model in the diffusers layout, or of fashion-classifier.
func Folder(name string) (fs.FS, error) { return fs.Sub(data, "data/"+name) }
