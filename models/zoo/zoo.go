// Package zoo holds the networks that drift carries with it: small diffusion models of clothes, and a classifier that
// names and measures what they draw. They were trained for this project on Fashion-MNIST (Zalando Research, MIT
// licence); the weights are stored in 16 bits.
package zoo

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"

	"drift/internal/npz"
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

// TestImages returns 100 test pictures of Fashion-MNIST, 28 x 28 bytes each, which no embedded network was trained on.
func TestImages() ([][]byte, error) {
	const name = "data/fashion-classifier/real-test-100.npz"
	raw, err := data.ReadFile(name)
	if err != nil {
		return nil, err
	}
	a, err := npz.ReadFrom(name, bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return nil, err
	}
	defer a.Close()
	x, err := a.Array("images")
	if err != nil {
		return nil, err
	}
	all, ok := x.Data.([]byte)
	if n := 28 * 28; !ok || len(all)%n != 0 {
		return nil, fmt.Errorf("zoo: %s: images of type %s and shape %v", name, x.DType, x.Shape)
	}
	var out [][]byte
	for len(all) > 0 {
		out, all = append(out, all[:28*28]), all[28*28:]
	}
	return out, nil
}
