package shard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"drift/internal/atomicfile"
	"drift/internal/refuse"
)

// Plan is a job that is written down, for a cluster's own scheduler to run its shards.
type Plan struct {
	Format  int      `json:"format"`
	Config  string   `json:"config"`
	Version string   `json:"version"`
	Tier    string   `json:"tier"`
	Arch    string   `json:"arch"`
	Args    []string `json:"args"` // the line
	Shards  []Spec   `json:"shards"`
}

const (
	planFormat = 1
	planName   = "plan.json"
	maxPlan    = 256 << 20
)

// ParsePlan reads a plan; name is the file for errors. Shards are numbered from 0 on.
func ParsePlan(name string, text []byte) (*Plan, error) {
	var p Plan
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return nil, refuse.Errorf(name, "not a plan of drift: %v", err)
	}
	if p.Format != planFormat {
		return nil, refuse.Errorf(name, "a plan of format %d, this version knows %d", p.Format, planFormat)
	}
	if p.Config == "" || len(p.Args) == 0 {
		return nil, refuse.Errorf(name, "the plan is incomplete")
	}
	for i, s := range p.Shards {
		var b bytes.Buffer
		if err := json.Compact(&b, s.Text); err != nil { // keys know no blanks
			return nil, refuse.Errorf(name, "shard %d: %v", s.ID, err)
		}
		p.Shards[i].Text = b.Bytes()
		if s.ID < 0 || i > 0 && s.ID <= p.Shards[i-1].ID {
			return nil, refuse.Errorf(name, "shard %d is out of order", s.ID)
		}
	}
	return &p, nil
}

// ReadPlan reads the plan of a folder.
func ReadPlan(dir string) (*Plan, error) {
	name := filepath.Join(dir, planName)
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPlan+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxPlan {
		return nil, refuse.Errorf(name, "more than %d bytes", maxPlan)
	}
	return ParsePlan(name, text)
}

// Find returns the shard of a number.
func (p *Plan) Find(id int) (Spec, error) {
	for _, s := range p.Shards {
		if s.ID == id {
			return s, nil
		}
	}
	return Spec{}, fmt.Errorf("the plan has no shard %d", id)
}

// IDs lists the numbers of the shards.
func (p *Plan) IDs() []int {
	var out []int
	for _, s := range p.Shards {
		out = append(out, s.ID)
	}
	return out
}

// file is where the result of a shard lies.
func file(dir, config string, s Spec) string {
	return filepath.Join(dir, fmt.Sprintf("%06d-%s.shard", s.ID, s.Key(config)))
}

// Stored tells whether the result of a shard is there.
func Stored(dir, config string, s Spec) bool {
	info, err := os.Stat(file(dir, config, s))
	return err == nil && info.Mode().IsRegular()
}

// Store puts the result of a shard into a folder unless one is there; first tells whether it was put.
func Store(dir string, p *Plan, s Spec, r *Result) (first bool, err error) {
	r.Key = s.Key(p.Config)
	b, err := r.Encode()
	if err != nil {
		return false, err
	}
	name := file(dir, p.Config, s)
	f, err := atomicfile.Create(name + ".own") // linked to its name below, which fails where there is one
	if err != nil {
		return false, err
	}
	defer f.Discard()
	if _, err := f.Write(b); err != nil {
		return false, err
	}
	temp := f.Name()
	if err := f.Sync(); err != nil {
		return false, err
	}
	err = os.Link(temp, name)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrExist):
		return false, nil
	case Stored(dir, p.Config, s):
		return false, nil
	}
	return true, os.Rename(temp, name) // a file system without links: both writers wrote the same
}

// ErrPlanned is what a Planner answers to Submit: the plan is written, nothing is made.
var ErrPlanned = errors.New("the plan is written")

// Planner writes the plan of the job that is submitted to it.
type Planner struct {
	Dir  string
	Plan Plan
}

// Submit implements the coordinator's side.
func (p *Planner) Submit(_ context.Context, specs []Spec) error {
	p.Plan.Format, p.Plan.Shards = planFormat, specs
	text, err := json.Marshal(p.Plan)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.Dir, 0o777); err != nil {
		return err
	}
	name := filepath.Join(p.Dir, planName)
	if old, err := ReadPlan(p.Dir); err == nil && old.Config != p.Plan.Config {
		return fmt.Errorf("%s is the plan of another job", name)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := atomicfile.Create(name)
	if err != nil {
		return err
	}
	defer f.Discard()
	if _, err := f.Write(append(text, '\n')); err != nil {
		return err
	}
	if err := f.Commit(); err != nil {
		return err
	}
	return ErrPlanned
}

// Result is not reached.
func (p *Planner) Result(context.Context, Spec, func(*Result) error) (*Result, error) {
	return nil, ErrPlanned
}

// Forget does nothing.
func (p *Planner) Forget(context.Context, ...Spec) error { return nil }

// Missing says which shards a folder lacks.
type Missing struct {
	IDs []int
	Of  int
}

func (m *Missing) Error() string {
	return fmt.Sprintf("%d of %d shards are missing: %s", len(m.IDs), m.Of, FormatIDs(m.IDs))
}

// Folder takes results from the files of a folder.
type Folder struct {
	Dir    string
	Config string
}

// Submit implements the coordinator's side: it fails with *Missing where results are missing.
func (f *Folder) Submit(_ context.Context, specs []Spec) error {
	m := &Missing{Of: len(specs)}
	for _, s := range specs {
		if !Stored(f.Dir, f.Config, s) {
			m.IDs = append(m.IDs, s.ID)
		}
	}
	if len(m.IDs) > 0 {
		return m
	}
	return nil
}

// Result implements the coordinator's side. What is refused is set aside, so that it is missing and made again.
func (f *Folder) Result(_ context.Context, s Spec, check func(*Result) error) (*Result, error) {
	name := file(f.Dir, f.Config, s)
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	r, err := Decode(b, s.Key(f.Config))
	if err == nil && r.Fail != nil {
		return nil, r.Fail
	}
	if err == nil {
		err = check(r)
	}
	if err != nil {
		aside := strings.TrimSuffix(name, ".shard") + ".refused"
		return nil, errors.Join(refuse.Errorf(name, "%v (it is now %s; make shard %d again)", err, filepath.Base(aside), s.ID), os.Rename(name, aside))
	}
	return r, nil
}

// Forget keeps the files: they are the user's.
func (f *Folder) Forget(context.Context, ...Spec) error { return nil }

// FormatIDs writes numbers in order as Slurm's --array takes them: 0-3,7.
func FormatIDs(ids []int) string {
	var b strings.Builder
	for i := 0; i < len(ids); {
		j := i
		for j+1 < len(ids) && ids[j+1] == ids[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(ids[i]))
		if j > i {
			b.WriteString("-" + strconv.Itoa(ids[j]))
		}
		i = j + 1
	}
	return b.String()
}
