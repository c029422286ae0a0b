package dna

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"

	"drift/internal/kernels"
	"drift/internal/refuse"
	"drift/internal/safetensors"
	"drift/models"
	"drift/schedules"
)

//go:embed data/*.safetensors
var data embed.FS

// Length is the usual length of a sequence.
const Length = 500

// Embedded lists the denoisers that drift carries with it, with a line each.
func Embedded() [][2]string {
	return [][2]string{
		{"dna", "promoter-like DNA of 4 classes, 500 letters: Dirichlet flow matching on the simplex"},
		{"dna-onestep", "dna distilled to one evaluation"},
	}
}

// read reads an embedded network.
func read(name string) (Shape, Weights, *safetensors.Reader, string, error) {
	raw, err := data.ReadFile("data/" + name + ".safetensors")
	if err != nil {
		return Shape{}, nil, nil, "", fmt.Errorf("dna: there is no embedded network %s", name)
	}
	f, err := safetensors.NewReader(name, raw)
	if err != nil {
		return Shape{}, nil, nil, "", err
	}
	s, w, err := Read(f)
	sum := sha256.Sum256(raw)
	return s, w, f, hex.EncodeToString(sum[:]), err
}

// Open opens an embedded denoiser on a pool; dna comes with its classifier of noisy states.
func Open(name string, pool *kernels.Pool) (*Denoiser, error) {
	s, w, f, hash, err := read(name)
	if err != nil {
		return nil, err
	}
	d := build(name, s, w, f, hash, pool)
	if name == "dna" {
		gs, gw, _, _, err := read("dna-guide")
		if err != nil {
			return nil, err
		}
		d.Guide = NewNet(gs, gw, pool)
	}
	return d, nil
}

// OpenFile opens a denoiser in the reference's layout from a safetensors file. What the file's metadata do not say is taken
// as the reference has it: the Dirichlet path to t = 7, or, for numbers as they are, the same path in one step.
func OpenFile(path string, pool *kernels.Pool) (*Denoiser, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := safetensors.NewReader(path, raw)
	if err != nil {
		return nil, err
	}
	s, w, err := Read(f)
	if err != nil {
		return nil, err
	}
	if s.Head || s.Inputs == 0 {
		return nil, refuse.Errorf(path, "is a classifier, not a denoiser")
	}
	sum := sha256.Sum256(raw)
	return build(path, s, w, f, hex.EncodeToString(sum[:]), pool), nil
}

func build(name string, s Shape, w Weights, f *safetensors.Reader, hash string, pool *kernels.Pool) *Denoiser {
	d := &Denoiser{Net: NewNet(s, w, pool), Path: schedules.Dirichlet{K: s.Categories}}
	d.About = models.Info{Name: name, Hash: hash, Shape: []int{Length, s.Categories}, Classes: s.Classes, DType: "f32", Tier: pool.Tier().String(), Params: int64(d.Net.Parameters())}
	if names := f.Metadata()["classes"]; names != "" && strings.Count(names, ",") == s.Classes-1 {
		d.About.Labels = strings.Split(names, ",")
	}
	return d
}

// Classifier is the embedded classifier of clean sequences, whose embeddings the Frechet biological distance compares.
type Classifier struct {
	Net      *Net
	Labels   []string
	Hash     string
	Accuracy float64 // share of unseen sequences of the grammar whose class it names
}

// OpenClassifier opens it on a pool.
func OpenClassifier(pool *kernels.Pool) (*Classifier, error) {
	s, w, f, hash, err := read("dna-classifier")
	if err != nil {
		return nil, err
	}
	c := &Classifier{Net: NewNet(s, w, pool), Labels: Names(), Hash: hash}
	c.Accuracy, err = strconv.ParseFloat(f.Metadata()["accuracy"], 64)
	if err != nil {
		return nil, fmt.Errorf("dna: the classifier's accuracy does not read: %w", err)
	}
	return c, nil
}
