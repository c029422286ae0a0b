package studio

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/manifest"
	"drift/internal/pngmeta"
)

// Limits of what is read of the gallery.
const (
	maxRuns     = 1000
	maxFiles    = 4096 // pictures of a run
	maxManifest = 4 << 20
	maxResults  = 32 << 20
	maxTrace    = 32 << 20
)

var (
	runName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$`)
	pictureIs = regexp.MustCompile(`^(set-[0-9]{4,8}/)?[0-9]{6,20}/[0-9]{6,20}(-[0-9]{4,8})?\.png$`)
	// extras are the files of a run beside its pictures that the page shows.
	extras = regexp.MustCompile(`^(particles/(set-[0-9]{4,8}/)?[0-9]{6,20}|ess|reward|ancestry|genealogy|weights|log_z|plot)\.png$`)
)

// gallery is the output folder. It is read through an os.Root, so nothing outside can be reached, and no link is
// followed inside either: every part of a path must be a folder, its end a regular file.
type gallery struct {
	root    *os.Root
	catalog *Catalog

	mu    sync.Mutex
	cache map[string]cached // by run

	// The list, for a moment: many pages ask for it at once. version counts what jobs change.
	version func() int
	listing sync.Mutex
	listed  []Run
	at      time.Time
	of      int
}

// fresh is how long a list is handed out again, if no job has changed anything.
const fresh = 250 * time.Millisecond

type cached struct {
	stamp string
	run   Run
}

// Run is an entry of the gallery.
type Run struct {
	Name     string   `json:"name"`
	Kind     string   `json:"kind"` // sample, steer, bench, sheet, or another verb
	Model    string   `json:"model,omitempty"`
	Sampler  string   `json:"sampler,omitempty"`
	Schedule string   `json:"schedule,omitempty"`
	Steps    int      `json:"steps,omitempty"`
	NFE      int      `json:"nfe,omitempty"`
	Guiders  []string `json:"guiders,omitempty"`
	Seeds    string   `json:"seeds,omitempty"`
	Class    string   `json:"class,omitempty"`
	Prompt   string   `json:"prompt,omitempty"`
	Reward   string   `json:"reward,omitempty"`
	Method   string   `json:"method,omitempty"`
	Hash     string   `json:"hash,omitempty"`
	Version  string   `json:"version,omitempty"`
	Wanted   int      `json:"wanted,omitempty"` // pictures, when it is complete
	Pictures []string `json:"pictures"`         // paths within the run; in a list, the first few
	Count    int      `json:"count"`
	Changed  int64    `json:"changed"` // Unix time in milliseconds

	Command string   `json:"command,omitempty"` // makes the run again, bit for bit
	Why     string   `json:"why,omitempty"`     // there is none
	Plots   []string `json:"plots,omitempty"`
	Checks  []Check  `json:"checks,omitempty"`
	Scores  []Point  `json:"scores,omitempty"`

	Particles int    `json:"particles,omitempty"`
	Lambda    string `json:"lambda,omitempty"`
}

// Point is a score of a bench's cell.
type Point struct {
	Name   string  `json:"name"` // sampler/schedule/guiders
	Metric string  `json:"metric"`
	NFE    float64 `json:"nfe"`
	Steps  int     `json:"steps"`
	N      int     `json:"n"`
	Value  float64 `json:"value"`
	Stderr float64 `json:"stderr,omitempty"`
}

// open opens a regular file below the root; no part of its path may be a link.
func (g *gallery) open(name string) (*os.File, os.FileInfo, error) {
	if !fs.ValidPath(name) || strings.ContainsAny(name, "\\:\x00") {
		return nil, nil, fs.ErrNotExist
	}
	var last os.FileInfo
	parts := strings.Split(name, "/")
	for i := range parts {
		info, err := g.root.Lstat(path.Join(parts[:i+1]...))
		if err != nil {
			return nil, nil, fs.ErrNotExist
		}
		if i < len(parts)-1 && !info.IsDir() || i == len(parts)-1 && !info.Mode().IsRegular() {
			return nil, nil, fs.ErrNotExist
		}
		last = info
	}
	f, err := g.root.Open(name)
	if err != nil {
		return nil, nil, fs.ErrNotExist
	}
	info, err := f.Stat()
	if err != nil || !os.SameFile(info, last) { // it was exchanged meanwhile
		return nil, nil, errors.Join(fs.ErrNotExist, f.Close())
	}
	return f, info, nil
}

// read reads a small file.
func (g *gallery) read(name string, most int64) ([]byte, error) {
	f, info, err := g.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info.Size() > most {
		return nil, fmt.Errorf("%s: %d bytes are more than are read", name, info.Size())
	}
	return io.ReadAll(io.LimitReader(f, most))
}

// list reads a folder; a link is none.
func (g *gallery) list(name string) []fs.DirEntry {
	if name != "." {
		if info, err := g.root.Lstat(name); err != nil || !info.IsDir() {
			return nil
		}
	}
	f, err := g.root.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	list, err := f.ReadDir(4 * maxFiles)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list
}

// runs lists the gallery, the newest first.
func (g *gallery) runs() []Run {
	g.listing.Lock()
	defer g.listing.Unlock()
	v := g.version()
	if g.listed != nil && g.of == v && time.Since(g.at) < fresh {
		return g.listed
	}
	out := []Run{}
	list := g.list(".")
	slices.Reverse(list)
	for _, e := range list {
		if len(out) == maxRuns {
			break
		}
		if !runName.MatchString(e.Name()) {
			continue
		}
		if r, err := g.run(e.Name(), false); err == nil {
			r.Pictures = r.Pictures[:min(len(r.Pictures), 12)]
			r.Checks, r.Scores, r.Command = nil, nil, ""
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b Run) int {
		switch {
		case a.Changed > b.Changed:
			return -1
		case a.Changed < b.Changed:
			return 1
		}
		return 0
	})
	g.listed, g.at, g.of = out, time.Now(), v
	return out
}

// run reads one entry; whole adds plots, checks and scores.
func (g *gallery) run(name string, whole bool) (Run, error) {
	if !runName.MatchString(name) {
		return Run{}, fs.ErrNotExist
	}
	info, err := g.root.Lstat(name)
	if err != nil {
		return Run{}, fs.ErrNotExist
	}
	if info.Mode().IsRegular() && strings.HasSuffix(name, ".png") {
		r := Run{Name: name, Kind: "sheet", Pictures: []string{""}, Count: 1, Changed: info.ModTime().UnixMilli()}
		if texts, err := g.texts(name); err == nil {
			if own, ok := pngmeta.Find(texts, ownKeyword); ok {
				if m, err := manifest.Parse(name, []byte(own)); err == nil {
					g.describe(&r, m)
				}
			}
		}
		return r, nil
	}
	if !info.IsDir() {
		return Run{}, fs.ErrNotExist
	}
	if f, info, err := g.open(name + "/results.json"); err == nil {
		f.Close()
		return g.bench(name, info.ModTime().UnixMilli(), whole)
	}
	f, info, err := g.open(name + "/" + manifest.Name)
	if err != nil {
		return Run{}, fs.ErrNotExist
	}
	f.Close()
	r, err := g.manifested(name, fmt.Sprint(info.ModTime().UnixNano(), info.Size()))
	if err != nil {
		return Run{}, err
	}
	r.Changed = info.ModTime().UnixMilli()
	r.Pictures = g.pictures(name)
	r.Count = len(r.Pictures)
	if whole {
		for _, e := range g.list(name) {
			if extras.MatchString(e.Name()) && e.Type().IsRegular() {
				r.Plots = append(r.Plots, e.Name())
			}
		}
		for _, e := range g.list(name + "/particles") {
			if n := "particles/" + e.Name(); extras.MatchString(n) && e.Type().IsRegular() {
				r.Plots = append(r.Plots, n)
			}
		}
		if r.Kind == "steer" {
			r.Checks = g.checks(name)
		}
	}
	return r, nil
}

// manifested describes the run of a folder by its manifest, once.
func (g *gallery) manifested(name, stamp string) (Run, error) {
	g.mu.Lock()
	c, ok := g.cache[name]
	g.mu.Unlock()
	if ok && c.stamp == stamp {
		return c.run, nil
	}
	b, err := g.read(name+"/"+manifest.Name, maxManifest)
	if err != nil {
		return Run{}, err
	}
	m, err := manifest.Parse(name+"/"+manifest.Name, b)
	if err != nil {
		return Run{}, err
	}
	r := Run{Name: name}
	g.describe(&r, m)
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.cache) > 4*maxRuns {
		clear(g.cache)
	}
	g.cache[name] = cached{stamp, r}
	return r, nil
}

// describe fills in what a description says.
func (g *gallery) describe(r *Run, m manifest.Run) {
	if r.Kind == "" {
		r.Kind = m.Verb
	}
	r.Model, r.Sampler, r.Schedule, r.NFE, r.Guiders, r.Seeds = m.Model.Path, m.Sampler, m.Schedule, m.NFE, m.Guiders, m.Seeds
	r.Steps = len(m.Grid.T) - 1
	r.Hash, r.Version = m.Hash(), m.Version
	if seeds, err := countSeeds(m.Seeds); err == nil {
		r.Wanted = seeds * len(m.Sets)
	}
	if len(m.Sets) > 0 {
		set := m.Sets[0]
		r.Prompt = set.Prompt
		if len(set.Classes) == 1 {
			r.Class = g.catalog.label(m.Model.Path, set.Classes[0])
		}
	}
	if m.Steer != nil {
		r.Reward, r.Method, r.Particles = m.Steer.Reward, m.Steer.Method, m.Steer.Particles
		if m.Steer.Keep != "best" {
			r.Wanted *= m.Steer.Particles
		}
		if r.Lambda = m.Steer.Schedule; r.Lambda == "" && m.Steer.Lambda != nil {
			r.Lambda = number(*m.Steer.Lambda)
		}
	}
	line, err := g.catalog.Again(m)
	if err != nil {
		r.Why = err.Error()
		return
	}
	r.Command = strings.Join(line, "\x00") // quoted where it is shown
}

// countSeeds counts a list of seeds without listing it.
func countSeeds(s string) (int, error) {
	n := 0
	for part := range strings.SplitSeq(s, ",") {
		a, b, span := strings.Cut(part, "-")
		lo, err := strconv.ParseUint(strings.TrimSpace(a), 10, 64)
		if err != nil {
			return 0, err
		}
		hi := lo
		if span {
			if hi, err = strconv.ParseUint(strings.TrimSpace(b), 10, 64); err != nil {
				return 0, err
			}
		}
		if hi < lo || hi-lo >= manifest.MaxImages {
			return 0, errors.New("not a range")
		}
		n += int(hi-lo) + 1
	}
	return n, nil
}

// pictures lists the pictures of a run: DIR/000000/000123.png, below set-0001 where there are several conditions.
func (g *gallery) pictures(name string) []string {
	out := []string{}
	var walk func(dir string, depth int)
	walk = func(dir string, depth int) {
		for _, e := range g.list(path.Join(name, dir)) {
			p := path.Join(dir, e.Name())
			switch {
			case len(out) >= maxFiles:
				return
			case e.IsDir() && depth < 2 && (pictureIs.MatchString(p+"/000000.png") || pictureIs.MatchString(p+"/000000/000000.png")):
				walk(p, depth+1)
			case e.Type().IsRegular() && pictureIs.MatchString(p):
				out = append(out, p)
			}
		}
	}
	walk("", 0)
	return out
}

// ownKeyword is the keyword of drift's description in a PNG.
const ownKeyword = "drift"

// texts reads what a PNG says about itself.
func (g *gallery) texts(name string) ([]pngmeta.Text, error) {
	f, _, err := g.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return pngmeta.Read(path.Base(name), bufio.NewReader(f))
}

// checks reads the table of a steered run, as means over its groups.
func (g *gallery) checks(name string) []Check {
	b, err := g.read(name+"/trace.csv", maxTrace)
	if err != nil {
		return nil
	}
	rows, err := csv.NewReader(bytes.NewReader(b)).ReadAll()
	if err != nil || len(rows) < 2 {
		return nil
	}
	col := map[string]int{}
	for i, n := range rows[0] {
		col[n] = i
	}
	type sum struct{ n, ess, roots, mean, most, rewards float64 }
	sums := map[int]*sum{}
	var steps []int
	num := func(row []string, name string) (float64, bool) {
		i, ok := col[name]
		if !ok || i >= len(row) {
			return 0, false
		}
		v, err := strconv.ParseFloat(row[i], 64)
		return v, err == nil && v-v == 0
	}
	for _, row := range rows[1:] {
		step, ok := num(row, "step")
		ess, ok2 := num(row, "ess")
		if !ok || !ok2 {
			continue
		}
		s := sums[int(step)]
		if s == nil {
			s = &sum{most: -1e308}
			sums[int(step)] = s
			steps = append(steps, int(step))
		}
		roots, _ := num(row, "roots")
		s.n, s.ess, s.roots = s.n+1, s.ess+ess, s.roots+roots
		mean, ok := num(row, "reward_mean")
		most, ok2 := num(row, "reward_max")
		if ok && ok2 {
			s.rewards, s.mean, s.most = s.rewards+1, s.mean+mean, max(s.most, most)
		}
	}
	slices.Sort(steps)
	var out []Check
	for _, k := range steps {
		s := sums[k]
		c := Check{Step: k, ESS: s.ess / s.n, Roots: s.roots / s.n}
		if s.rewards > 0 {
			mean, most := s.mean/s.rewards, s.most
			c.Mean, c.Most = &mean, &most
		}
		out = append(out, c)
	}
	return out
}

// bench reads the results of a bench.
func (g *gallery) bench(name string, changed int64, whole bool) (Run, error) {
	stamp := fmt.Sprint("bench ", changed)
	g.mu.Lock()
	c, ok := g.cache[name]
	g.mu.Unlock()
	if !ok || c.stamp != stamp {
		b, err := g.read(name+"/results.json", maxResults)
		if err != nil {
			return Run{}, err
		}
		var rep bench.Report
		if err := json.Unmarshal(b, &rep); err != nil {
			return Run{}, err
		}
		r := Run{Name: name, Kind: "bench", Changed: changed, Pictures: []string{}, Count: rep.Matrix.Count, Version: rep.Version}
		r.Model = strings.Join(rep.Matrix.Models, ", ")
		r.Sampler = strings.Join(rep.Matrix.Samplers, ", ")
		for _, cell := range rep.Cells {
			parts := []string{cell.Sampler, cell.Schedule, cell.Guiders}
			if len(rep.Matrix.Models) > 1 {
				parts = append([]string{cell.Model}, parts...)
			}
			if len(cell.Settings) > 0 {
				parts = append(parts, cell.Settings.String())
			}
			parts = slices.DeleteFunc(parts, func(s string) bool { return s == "" })
			for _, s := range cell.Scores {
				if len(r.Scores) < 20_000 && s.Value-s.Value == 0 {
					r.Scores = append(r.Scores, Point{strings.Join(parts, "/"), s.Metric, cell.NFE, cell.Steps, cell.N, s.Value, s.StdErr})
				}
			}
		}
		if line, err := benchAgain(rep.Matrix); err == nil {
			r.Command = strings.Join(line, "\x00")
		} else {
			r.Why = err.Error()
		}
		c = cached{stamp, r}
		g.mu.Lock()
		g.cache[name] = c
		g.mu.Unlock()
	}
	r := c.run
	if f, _, err := g.open(name + "/plot.png"); whole && err == nil {
		f.Close()
		r.Plots = []string{"plot.png"}
	}
	return r, nil
}

// readSmall reads a file of at most that many bytes.
func readSmall(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s: more than %d bytes", name, most)
	}
	return b, err
}
