// Package manifest holds the description of a run: everything that decides its results, and nothing else. It is
// written beside a set of images, into each picture, and compared before a run goes on: two runs with equal hashes
// make equal bits.
package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"drift/internal/atomicfile"
	"drift/internal/refuse"
	"drift/models/open"
	"drift/schedules"
)

// Format is the version of the form of Run and Picture.
const Format = 1

// Run describes a run. Fields that a run does not use are left out of the JSON.
type Run struct {
	Format  int    `json:"format"`
	Version string `json:"version"` // of the tool
	Verb    string `json:"verb"`
	Model   Model  `json:"model"`
	Guide   *Model `json:"guide_model,omitempty"` // second network of autoguidance

	Compose *Compose `json:"compose,omitempty"` // of which Model is made
	Switch  *Switch  `json:"switch,omitempty"`  // the model of the first steps

	Pipeline *open.Pipeline `json:"pipeline,omitempty"` // what stands around the network of Model, where it was asked for

	Sampler   string   `json:"sampler"`                // name:options, in the table's spelling
	SamplerID string   `json:"sampler_hash,omitempty"` // of a sampler that a file describes
	Schedule  string   `json:"schedule,omitempty"`     // empty for explicit nodes
	Ends      *Ends    `json:"ends,omitempty"`         // as asked for
	Grid      Grid     `json:"grid"`
	First     int      `json:"start_step,omitempty"`
	Last      int      `json:"end_step,omitempty"` // 0 = to the end
	NFE       int      `json:"nfe,omitempty"`      // evaluations per image, 0 where the sampler decides on its way
	Guiders   []string `json:"guiders,omitempty"`
	Scripts   []Script `json:"scripts,omitempty"` // the files that guiders name

	Seeds   string `json:"seeds"`            // "0-49,60"
	Offset  int    `json:"offset,omitempty"` // place of the first seed among the rows of Init and Noise
	Sets    []Set  `json:"sets"`             // every set has all seeds
	Noise   string `json:"noise,omitempty"`  // zero, torch, brownian, or a file; empty is philox
	NoiseID string `json:"noise_hash,omitempty"`
	RNG     string `json:"rng,omitempty"` // generator of the start; empty is torch

	Init      string  `json:"init,omitempty"` // file with the start
	InitImage string  `json:"init_image,omitempty"`
	InitID    string  `json:"init_hash,omitempty"`
	Strength  float64 `json:"strength,omitempty"`
	Mask      string  `json:"mask,omitempty"` // picture of what is drawn and what stays
	MaskID    string  `json:"mask_hash,omitempty"`

	Rounding string `json:"rounding,omitempty"` // rule to 8 bit, of pictures

	Control string `json:"control_script,omitempty"` // of verb sample

	Steer *Steer `json:"steer,omitempty"` // of verb steer
}

// Steer describes how particles are steered.
type Steer struct {
	Method    string   `json:"method"`
	Particles int      `json:"particles"`
	Keep      string   `json:"keep"`
	Potential string   `json:"potential,omitempty"`
	Lambda    *float64 `json:"lambda,omitempty"` // absent: auto
	Schedule  string   `json:"lambda_schedule,omitempty"`
	Init      *float64 `json:"reward_init,omitempty"`
	When      string   `json:"when,omitempty"` // ess, every, never
	ESS       float64  `json:"ess,omitempty"`
	Checks    []int    `json:"checks,omitempty"`
	Every     int      `json:"resample_every,omitempty"`
	Resampler string   `json:"resampler,omitempty"`
	Options   string   `json:"options,omitempty"` // of the method
	Churn     float64  `json:"churn,omitempty"`

	Reward    string            `json:"reward,omitempty"`        // as it was given
	Script    string            `json:"reward_script,omitempty"` // its text
	ScriptID  string            `json:"reward_hash,omitempty"`
	Files     map[string]string `json:"reward_files,omitempty"` // hashes of what it reads
	Control   string            `json:"control_script,omitempty"`
	ControlID string            `json:"control_hash,omitempty"`
}

// Script is the text of a file that decides results.
type Script struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Switch is another model for the first steps, as the user wrote it.
type Switch struct {
	Text  string `json:"text"`
	Model Model  `json:"model"`
}

// Compose says of which models a composition is made, as the user wrote it. It does not count in the hash: that of the
// Model is made of the rule, the weights, the classes and the models' hashes.
type Compose struct {
	Models     []string `json:"models"`
	Rule       string   `json:"rule"`
	Weights    string   `json:"weights,omitempty"`
	Classifier string   `json:"classifier,omitempty"`
}

// Model names a model. Path is where it was found and does not count in the hash.
type Model struct {
	Path  string `json:"path"`
	Hash  string `json:"hash"`
	DType string `json:"dtype,omitempty"`
	Tier  string `json:"tier,omitempty"`
	// Runtime is the library and version that computes in place of drift's engine.
	Runtime string `json:"runtime,omitempty"`
	Shape   []int  `json:"shape"`
}

// Set is one condition that all seeds are run on. Image k of the set has class Classes[k mod len].
type Set struct {
	Classes  []int  `json:"classes,omitempty"` // -1 = unconditional
	Prompt   string `json:"prompt,omitempty"`
	Negative string `json:"negative_prompt,omitempty"`
}

// Class returns the class of the image at place k, -1 for none.
func (s Set) Class(k int) int {
	if len(s.Classes) == 0 {
		return -1
	}
	return s.Classes[k%len(s.Classes)]
}

// Ends are the ends of a grid as asked for.
type Ends struct {
	TStart   *float64 `json:"t_start,omitempty"`
	TEnd     *float64 `json:"t_end,omitempty"`
	SigmaMin *float64 `json:"sigma_min,omitempty"`
	SigmaMax *float64 `json:"sigma_max,omitempty"`
	Final    string   `json:"final,omitempty"`
}

// Grid is the nodes of a run, noise to data.
type Grid struct {
	T     []float64 `json:"t"`
	Alpha []float64 `json:"alpha"`
	Sigma []float64 `json:"sigma"`
}

// NewGrid copies g.
func NewGrid(g schedules.Grid) Grid {
	var out Grid
	for _, n := range g {
		out.T, out.Alpha, out.Sigma = append(out.T, n.T), append(out.Alpha, n.Alpha), append(out.Sigma, n.Sigma)
	}
	return out
}

// Nodes returns the grid.
func (g Grid) Nodes() schedules.Grid {
	out := make(schedules.Grid, len(g.T))
	for i := range out {
		out[i] = schedules.Node{T: g.T[i], Alpha: g.Alpha[i], Sigma: g.Sigma[i]}
	}
	return out
}

// Canonical returns the run as canonical JSON: one line, fields in the order of the type, shortest numbers, paths left
// out (files count by their hashes).
func (r Run) Canonical() []byte {
	r.Model.Path, r.Compose = "", nil
	if r.Guide != nil {
		g := *r.Guide
		g.Path = ""
		r.Guide = &g
	}
	if r.SamplerID != "" {
		r.Sampler, _, _ = strings.Cut(r.Sampler, ":")
	}
	if r.NoiseID != "" {
		r.Noise = "file"
	}
	if r.InitID != "" {
		r.Init, r.InitImage = file(r.Init), file(r.InitImage)
	}
	if r.MaskID != "" {
		r.Mask = file(r.Mask)
	}
	b, err := json.Marshal(r)
	if err != nil {
		panic("manifest: " + err.Error()) // a number that is not finite: a programmer's error, grids are checked
	}
	return b
}

func file(path string) string {
	if path == "" {
		return ""
	}
	return "file"
}

// Hash returns the SHA-256 of the canonical JSON, hex.
func (r Run) Hash() string {
	s := sha256.Sum256(r.Canonical())
	return hex.EncodeToString(s[:])
}

// Picture is what a PNG says about itself: the run, narrowed to this picture, and which run it was part of.
type Picture struct {
	Run  Run    `json:"run"`
	Of   string `json:"of"` // hash of the whole run
	Seed uint64 `json:"seed"`
}

// Parse reads the JSON of a Run or of a Picture's text; name is the file for errors.
func Parse(name string, text []byte) (Run, error) {
	var p Picture
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&p); err != nil {
		return Run{}, refuse.Errorf(name, "the description of the run does not read: %v", err)
	}
	return p.Run, check(name, p.Run)
}

func check(name string, r Run) error {
	if r.Format != Format {
		return refuse.Errorf(name, "the description of the run has format %d, this version knows %d", r.Format, Format)
	}
	g := r.Grid
	if len(g.T) < 2 || len(g.Alpha) != len(g.T) || len(g.Sigma) != len(g.T) || len(r.Sets) == 0 {
		return refuse.Errorf(name, "the description of the run is incomplete")
	}
	if err := g.Nodes().Check(); err != nil {
		return refuse.Errorf(name, "the run's grid: %v", err)
	}
	return nil
}

// Name is the file's name in a folder of images.
const Name = "manifest.json"

// maxSize bounds what Load reads.
const maxSize = 64 << 20

// File is the form on disk.
type File struct {
	Hash string `json:"hash"`
	Run  Run    `json:"run"`
}

// Load reads the manifest of a folder; fs.ErrNotExist says that there is none.
func Load(dir string) (Run, error) {
	path := filepath.Join(dir, Name)
	f, err := os.Open(path)
	if err != nil {
		return Run{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return Run{}, err
	}
	if len(b) > maxSize {
		return Run{}, refuse.Errorf(path, "more than %d bytes", maxSize)
	}
	var m File
	if err := json.Unmarshal(b, &m); err != nil {
		return Run{}, refuse.Errorf(path, "%v", err)
	}
	if err := check(path, m.Run); err != nil {
		return Run{}, err
	}
	if h := m.Run.Hash(); h != m.Hash {
		return Run{}, refuse.Errorf(path, "its hash is %.12s, the one written in it %.12s: it was changed", h, m.Hash)
	}
	return m.Run, nil
}

// Save writes the manifest into a folder.
func Save(dir string, r Run) error {
	f, err := atomicfile.Create(filepath.Join(dir, Name))
	if err != nil {
		return err
	}
	defer f.Discard()
	e := json.NewEncoder(f)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(File{Hash: r.Hash(), Run: r}); err != nil {
		return err
	}
	return f.Commit()
}

// Different says that a folder holds another run.
type Different struct {
	Dir    string
	Fields []string // "steps: 10 there, 20 here"
}

func (e *Different) Error() string {
	return fmt.Sprintf("%s holds images of another run (%s)", e.Dir, strings.Join(e.Fields, "; "))
}

// Claim makes sure that the folder's manifest is r: it writes it where there is none and refuses with *Different where
// another run lives. found tells that the folder held this run before.
func Claim(dir string, r Run) (found bool, err error) {
	old, err := Load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, Save(dir, r)
	}
	if err != nil {
		return false, err
	}
	if fields := Diff(old, r); len(fields) > 0 {
		return false, &Different{Dir: dir, Fields: fields}
	}
	return true, nil
}

// Diff names the fields in which two runs differ, with their values.
func Diff(there, here Run) []string {
	var a, b map[string]json.RawMessage
	if json.Unmarshal(there.Canonical(), &a) != nil || json.Unmarshal(here.Canonical(), &b) != nil {
		panic("manifest: canonical JSON does not read")
	}
	var keys []string
	for k := range a {
		keys = append(keys, k)
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var out []string
	for _, k := range keys {
		if !bytes.Equal(a[k], b[k]) {
			out = append(out, fmt.Sprintf("%s: %s there, %s here", k, brief(a[k]), brief(b[k])))
		}
	}
	return out
}

func brief(b json.RawMessage) string {
	switch {
	case b == nil:
		return "none"
	case len(b) > 60:
		return string(b[:57]) + "..."
	}
	return string(b)
}
