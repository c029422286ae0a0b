package bench

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"drift/cmd/drift/internal/job"
	"drift/cmd/drift/internal/manifest"
	"drift/guidance"
	"drift/internal/spec"
	"drift/models"
	"drift/models/open"
	"drift/samplers"
	"drift/schedules"
)

// Matrix is what a bench runs over: every combination of its axes.
type Matrix struct {
	Models    []string `json:"models"`
	Samplers  []string `json:"samplers"`
	Schedules []string `json:"schedules"` // "" = what sampler or model imply
	Guiders   []string `json:"guiders"`   // chains "a+b"; "" = the model's own only, "none" = not even those
	NFE       []int    `json:"nfe,omitempty"`
	Steps     []int    `json:"steps,omitempty"` // in place of NFE
	Metrics   []string `json:"metrics"`
	Count     int      `json:"count"`
	Seed      uint64   `json:"seed"`
	Rounding  string   `json:"rounding,omitempty"` // "" = the model's
	Guide     string   `json:"guide_model,omitempty"`
	Limit     string   `json:"limit,omitempty"` // "sampler/schedule@steps": what all come to with many steps

	Verb     string `json:"verb,omitempty"` // "" = sample, by the axes above; else those below, see VerbCells
	Fixed    Args   `json:"fixed,omitempty"`
	Axes     []Axis `json:"axes,omitempty"`
	Baseline string `json:"baseline,omitempty"`
}

// Cell is one combination.
type Cell struct {
	Model    string
	Sampler  string
	Schedule string
	Guiders  string
	Budget   int     // the budget asked for, 0 when steps were, or when the sampler takes none
	Steps    int     // 0 where the sampler places its own
	NFE      float64 // evaluations per picture, 0 where only the run tells
	Key      string  // hash of all that decides the pictures
	Run      manifest.Run
	Reason   string // why the cell cannot run, or failed; empty = fine
	Note     string // what a reader should know
	Limit    bool   // the cell of Matrix.Limit

	VJPs, Rewards float64 // per picture or seed

	// Of cells of a verb.
	Settings Args   // values of the axes that have no field above
	Baseline string // which baseline this is
	pick     Args   // values of all axes

	plan    *job.Plan
	subject *Subject
	of      *Cell // whose baseline
	facts   Facts
	open    func(context.Context) (Runner, error) // nil: by plan
}

// Name is the cell's name in reports: model/sampler/schedule/guiders.
func (c *Cell) Name() string {
	parts := []string{c.Model, c.Sampler}
	if c.Schedule != "" {
		parts = append(parts, c.Schedule)
	}
	if c.Guiders != "" {
		parts = append(parts, c.Guiders)
	}
	if len(c.Settings) > 0 {
		parts = append(parts, c.Settings.String())
	}
	if c.Baseline != "" {
		parts = append(parts, c.Baseline)
	}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "/")
}

// At is the budget or number of steps of the cell: "nfe=10" or "steps=20"; "adaptive" where there is none.
func (c *Cell) At() string {
	switch {
	case c.Budget > 0:
		return "nfe=" + strconv.Itoa(c.Budget)
	case c.Steps > 0:
		return "steps=" + strconv.Itoa(c.Steps)
	}
	return "adaptive"
}

// Split takes a list of names with options apart: at semicolons where there
// are any, else at commas; a piece like key=value then belongs to the name
// before it.
func Split(text string) []string {
	var out []string
	if strings.Contains(text, ";") {
		for p := range strings.SplitSeq(text, ";") {
			out = append(out, strings.TrimSpace(p))
		}
		return out
	}
	for p := range strings.SplitSeq(text, ",") {
		p = strings.TrimSpace(p)
		name, _, ok := strings.Cut(p, "=")
		if ok && !strings.Contains(name, ":") && len(out) > 0 {
			out[len(out)-1] += "," + p
			continue
		}
		out = append(out, p)
	}
	return out
}

// chain takes a chain of guiders apart, "a+b"; a plus inside a number stays.
func chain(text string) []string {
	var out []string
	from := 0
	for i := range len(text) {
		if text[i] == '+' && i+1 < len(text) && (text[i+1] >= 'a' && text[i+1] <= 'z') {
			out = append(out, text[from:i])
			from = i + 1
		}
	}
	return append(out, text[from:])
}

// Sweep multiplies samplers by options, "eta=0,0.5,1 order=2,3": every sampler
// is taken with every combination of the options that it has.
func Sweep(list []string, text string) ([]string, error) {
	for axis := range strings.FieldsSeq(text) {
		key, values, ok := strings.Cut(axis, "=")
		if !ok || values == "" {
			return nil, fmt.Errorf("bench: sweep %q: want key=value,value", axis)
		}
		var out []string
		used := false
		for _, s := range list {
			var with []string
			name, schedule := placed(s)
			for v := range strings.SplitSeq(values, ",") {
				t, err := withOption(name, key, v)
				if err == nil {
					_, err = samplers.Parse(t)
				}
				if err == nil {
					with = append(with, strings.TrimSuffix(t+"/"+schedule, "/"))
				}
			}
			if with == nil {
				with = []string{s}
			} else {
				used = true
			}
			out = append(out, with...)
		}
		if !used {
			return nil, fmt.Errorf("bench: sweep: no sampler here takes %s=%s", key, values)
		}
		list = out
	}
	return list, nil
}

func withOption(text, key, value string) (string, error) {
	sp, err := spec.Parse(text)
	if err != nil {
		return "", err
	}
	if slices.ContainsFunc(sp.Args, func(a spec.Arg) bool { return a.Key == key }) {
		return "", fmt.Errorf("%s is given in %q already", key, text)
	}
	sp.Args = append(sp.Args, spec.Arg{Key: key, Value: value})
	return sp.String(), nil
}

// Subject is an opened model with what measures its samples.
type Subject struct {
	Name      string
	Model     *open.Model
	Guide     *open.Model // second network of autoguidance, or nil
	GuideName string
	Measure   Measurer
	Reference Reference
}

// Cells lists the cells of m in order: by model, guiders, sampler, schedule and
// budget. What cannot be run has a Reason. Names that stand for nothing are
// errors.
func (m *Matrix) Cells(ctx context.Context, version string, subjects []*Subject) ([]*Cell, error) {
	if (len(m.NFE) == 0) == (len(m.Steps) == 0) {
		return nil, errors.New("bench: a matrix has budgets, or numbers of steps")
	}
	var out []*Cell
	seen := map[string]bool{}
	for _, s := range subjects {
		for _, g := range m.Guiders {
			if m.Limit != "" {
				c, err := m.limit(ctx, version, s, g)
				if err != nil {
					return nil, err
				}
				out = append(out, c)
			}
			for _, sampler := range m.Samplers {
				list := m.Schedules
				if name, schedule := placed(sampler); schedule != "" {
					sampler, list = name, []string{schedule}
				}
				for _, schedule := range list {
					for _, n := range append(slices.Clone(m.NFE), m.Steps...) {
						if err := ctx.Err(); err != nil {
							return nil, err
						}
						c, err := m.cell(ctx, version, s, g, sampler, schedule, n)
						if err != nil {
							return nil, err
						}
						if c == nil {
							continue
						}
						id := c.Name() + " " + c.At()
						if !seen[id] {
							seen[id] = true
							out = append(out, c)
						}
					}
				}
			}
		}
	}
	return out, nil
}

// placed takes sampler/schedule apart: a sampler that stands on a schedule of its own; schedule "": on those of the matrix.
func placed(text string) (sampler, schedule string) {
	i := strings.LastIndexByte(text, '/')
	if i < 0 {
		return text, ""
	}
	on, err := spec.Parse(text[i+1:])
	if err != nil {
		return text, ""
	}
	if _, err := schedules.Lookup(on.Name); err != nil && text[i+1:] != modelSchedule {
		return text, ""
	}
	return text[:i], text[i+1:]
}

// limit makes the cell of m.Limit.
func (m *Matrix) limit(ctx context.Context, version string, s *Subject, guiders string) (*Cell, error) {
	name, count, ok := strings.Cut(m.Limit, "@")
	steps, err := strconv.Atoi(count)
	if !ok || err != nil || steps < 1 {
		return nil, fmt.Errorf("bench: limit %q: want sampler@steps or sampler/schedule@steps", m.Limit)
	}
	sampler, schedule, _ := strings.Cut(name, "/")
	own := *m
	own.NFE, own.Steps = nil, []int{steps}
	c, err := own.cell(ctx, version, s, guiders, sampler, schedule, steps)
	if err != nil {
		return nil, err
	}
	if c == nil || c.Reason != "" {
		return nil, fmt.Errorf("bench: limit %q on %s: %s", m.Limit, s.Name, or(c.Reason, "has another number of steps"))
	}
	c.Limit = true
	return c, nil
}

// cell resolves one combination; nil where the nodes of a file make a cell at another budget.
func (m *Matrix) cell(ctx context.Context, version string, s *Subject, guiders, sampler, schedule string, n int) (*Cell, error) {
	canonical, implied, err := samplers.Resolve(sampler)
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	smp, err := samplers.Parse(canonical)
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	c := &Cell{Model: s.Name, Sampler: canonical, Schedule: schedule, Guiders: guiders, subject: s}
	if len(m.NFE) > 0 {
		c.Budget = n
	}
	specs, wrap, err := guide(s, guiders)
	if err != nil {
		return nil, fmt.Errorf("bench: guiders %q: %w", guiders, err)
	}
	info := s.Model.Info
	set := manifest.Set{}
	if s.Model.TakesClasses() {
		for k := range info.Classes {
			set.Classes = append(set.Classes, k)
		}
	}
	p, ok := s.Model.Denoiser.Process().(schedules.Path)
	if !ok {
		return nil, fmt.Errorf("bench: %s: no solver here runs on the process %s", s.Name, s.Model.Denoiser.Process().Name())
	}
	own := smp.Needs().OwnGrid
	var refused error // of a run of some number of steps
	count := func(g schedules.Grid) (job.Cost, error) {
		return job.CountNFE(ctx, smp, wrap, s.Model.Denoiser, info.Shape, info.Text || len(set.Classes) > 0, g, 0, 0)
	}
	if own {
		if smp, canonical, err = budgeted(ctx, c, n, smp, canonical, wrap, s, info.Text || len(set.Classes) > 0, p); err != nil {
			return nil, fmt.Errorf("bench: %w", err)
		}
	}
	if c.Schedule == "" {
		c.Schedule = orDefault(implied, s.Model, p)
	}
	var g schedules.Grid // where a file has it
	if fixed, ok := smp.(samplers.Gridded); ok {
		c.Schedule = ownNodes
		gau, ok := p.(schedules.Gaussian)
		if !ok {
			return nil, fmt.Errorf("bench: %s needs a Gaussian process, that of %s is %s", sampler, s.Name, p.Name())
		}
		if g, err = fixed.Grid(gau); err != nil {
			return nil, fmt.Errorf("bench: %s: %w", sampler, err)
		}
	} else if path, ok := strings.CutPrefix(c.Schedule, "@"); ok {
		text, err := job.ReadSmall(path)
		if err == nil {
			g, err = job.ParseGrid(p, text)
		}
		if err != nil {
			return nil, fmt.Errorf("bench: schedule %s: %w", c.Schedule, err)
		}
	}
	var make func(int) (schedules.Grid, error)
	if g == nil {
		if make, err = gridMaker(s.Model, p, &c.Schedule, own); err != nil {
			return nil, fmt.Errorf("bench: %w", err)
		}
	}
	if g != nil {
		// A file's nodes are one cell: at the budget that they take.
		cost, e := count(g)
		at, list := len(g)-1, m.Steps
		if len(m.NFE) > 0 {
			at, list = int(math.Round(cost.NFE)), m.NFE
		}
		if err = e; e == nil && n != at {
			if slices.Contains(list, at) {
				return nil, nil
			}
			err = fmt.Errorf("its nodes take %g evaluations in %d steps", cost.NFE, len(g)-1)
		}
	} else if c.Budget > 0 && !own {
		g, err = job.Fit(c.Budget, make, func(g schedules.Grid) (float64, error) {
			cost, err := count(g)
			if err != nil {
				refused = err
			}
			return cost.NFE, err
		})
		if err == nil && refused != nil && len(g) == 2 { // a single step may hide what the sampler lacks
			err = refused
		}
	} else if own {
		if g, err = make(max(n, 2)); err == nil && len(g) > 2 {
			g = schedules.Grid{g[0], g[len(g)-1]}
		}
	} else {
		g, err = make(n)
	}
	if err == nil {
		err = g.Check()
	}
	if err == nil && !own {
		var cost job.Cost
		if cost, err = count(g); err == nil {
			c.Steps, c.NFE, c.VJPs = len(g)-1, cost.NFE, cost.VJPs
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		c.Reason = "cannot run: " + err.Error()
		if c.Budget == 0 && !own {
			c.Steps = n
		}
		return c, nil
	}
	rounding := m.Rounding
	if rounding == "" {
		rounding = s.Model.Defaults.Rounding
	}
	c.Note = equivalent(specs, g)
	c.plan = &job.Plan{Model: s.Model.Denoiser, Wrap: guided(s, specs, g), Shape: info.Shape, Sampler: smp, Grid: g, Sets: []manifest.Set{set}, Text: info.Text}
	if s.Model.Codec != nil {
		c.plan.Codec = s.Model.Codec
	}
	c.plan.Space = job.Space(s.Model, canonical, c.Schedule)
	c.Run = manifest.Run{
		Format: manifest.Format, Version: version, Verb: "bench",
		Model:   manifest.Model{Path: s.Name, Hash: info.Hash, DType: info.DType, Tier: info.Tier, Runtime: info.Runtime, Shape: info.Shape},
		Sampler: canonical, SamplerID: hashOf(smp), Schedule: c.Schedule, Grid: manifest.NewGrid(g), NFE: int(math.Round(c.NFE)), Guiders: specs,
		Seeds: strconv.FormatUint(m.Seed, 10) + "-", Sets: []manifest.Set{set}, Rounding: s.Measure.Rounding(rounding),
	}
	if c.Run.Scripts, err = job.Scripts(specs); err != nil {
		return nil, err
	}
	if g := s.Guide; g != nil && slices.ContainsFunc(specs, needsGuide) { // a cell that does not ask for it is the same without
		c.Run.Guide = &manifest.Model{Path: s.GuideName, Hash: g.Info.Hash, DType: g.Info.DType, Tier: g.Info.Tier, Runtime: g.Info.Runtime, Shape: g.Info.Shape}
	}
	id := s.Measure.Identity()
	sum := sha256.Sum256([]byte(c.Run.Hash() + "\x00" + id.Extractor + "\x00" + id.Resize))
	c.Key = hex.EncodeToString(sum[:])[:24]
	return c, nil
}

// guide reads a chain of guiders, before those that the model asks for itself, as sample has them.
func guide(s *Subject, text string) ([]string, job.Wrap, error) {
	var specs []string
	own := s.Model.Defaults.Guiders
	if text != "" {
		for _, g := range chain(text) {
			if g == "none" {
				own = nil
				continue
			}
			specs = append(specs, g)
		}
	}
	specs = slices.Concat(specs, own)
	for _, text := range specs {
		if g, err := guidance.Parse(text); err != nil {
			return nil, nil, err
		} else if m, ok := g.(guidance.Gradient); ok && m.Recur > 1 {
			return nil, nil, fmt.Errorf("%s: a bench of samplers makes no step again; a flag of drift sample, as --class, makes it one of its runs", text)
		}
	}
	wrap := guided(s, specs, nil)
	if wrap == nil {
		return nil, nil, nil
	}
	_, err := wrap(s.Model.Denoiser)
	return specs, wrap, err
}

// guided puts a chain of guiders around the model, on the nodes of a run where they are known; nil for none.
func guided(s *Subject, specs []string, grid schedules.Grid) job.Wrap {
	if len(specs) == 0 {
		return nil
	}
	return func(d models.Denoiser) (models.Denoiser, error) {
		for _, text := range specs {
			g, err := guidance.Parse(text)
			if err != nil {
				return nil, err
			}
			if n, ok := g.(guidance.Needer); ok {
				if s.Guide == nil {
					return nil, fmt.Errorf("%s needs a second network: --guide-model", text)
				}
				g = n.With(s.Guide.Denoiser)
			}
			if n, ok := g.(guidance.Gridder); ok && grid != nil {
				g = n.On(grid)
			}
			d = g.Guide(d)
		}
		return d, nil
	}
}

// equivalent says what CFG++ comes to on these nodes, because its strength depends on their number.
func equivalent(specs []string, g schedules.Grid) string {
	for _, text := range specs {
		p, err := guidance.Parse(text)
		if err != nil {
			continue
		}
		pp, ok := p.(guidance.CFGPP)
		if !ok || g[0].Alpha == 0 && len(g) < 3 {
			continue
		}
		var w []float64
		for i := range len(g) - 1 {
			if g[i].Alpha > 0 {
				w = append(w, pp.Equivalent(g[i], g[i+1]))
			}
		}
		slices.Sort(w)
		return fmt.Sprintf("%s over these %d steps is as strong as cfg with w from %.3g to %.3g, median %.3g", text, len(g)-1, w[0], w[len(w)-1], w[len(w)/2])
	}
	return ""
}

func needsGuide(text string) bool {
	g, err := guidance.Parse(text)
	if err != nil {
		return false
	}
	_, ok := g.(guidance.Needer)
	return ok
}

// Guiders takes a list of chains of guiders apart, at semicolons, and multiplies out options with several values:
// "cfg:w=1,2,interval=0.3-3" is two chains.
func Guiders(text string) []string {
	var out []string
	for g := range strings.SplitSeq(text, ";") {
		chains := []string{""}
		for i, link := range chain(strings.TrimSpace(g)) {
			var next []string
			for _, head := range chains {
				for _, one := range values(link) {
					if i > 0 {
						one = head + "+" + one
					}
					next = append(next, one)
				}
			}
			chains = next
		}
		out = append(out, chains...)
	}
	return out
}

// values multiplies out a guider's options: a piece without a key is another value of the option before it, if that is
// a number too.
func values(text string) []string {
	name, rest, ok := strings.Cut(text, ":")
	if !ok {
		return []string{text}
	}
	var options [][]string // the pieces that each may be
	for _, part := range spec.Split(rest) {
		part = strings.TrimSpace(part)
		if k := len(options) - 1; k >= 0 && numeric(part) {
			if key, value, ok := strings.Cut(options[k][0], "="); ok && numeric(value) {
				options[k] = append(options[k], key+"="+part)
				continue
			}
		}
		options = append(options, []string{part})
	}
	out, sep := []string{name}, ":"
	for _, o := range options {
		var next []string
		for _, head := range out {
			for _, piece := range o {
				next = append(next, head+sep+piece)
			}
		}
		out, sep = next, ","
	}
	return out
}

func numeric(s string) bool {
	_, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	return err == nil
}

// budgeted hands n to a sampler that places its own steps: in its option nfe where it has one (a budget less what
// guidance multiplies, or a number of steps as it stands), else not at all.
func budgeted(ctx context.Context, c *Cell, n int, smp samplers.Sampler, text string, wrap job.Wrap, s *Subject, classes bool, p schedules.Path) (samplers.Sampler, string, error) {
	budget := c.Budget
	c.Budget = 0
	with, err := withOption(text, "nfe", strconv.Itoa(n))
	if err == nil {
		_, err = samplers.Parse(with)
	}
	if err != nil { // no such option, or given already
		return smp, text, nil
	}
	if budget == 0 {
		c.Steps = n
	} else {
		c.Budget = budget
		g, err := schedules.NewGrid(p, schedules.DefaultGrid(p), 1, schedules.Ends{})
		if err != nil {
			return nil, "", err
		}
		one, err := job.CountNFE(ctx, samplers.Euler{}, wrap, s.Model.Denoiser, s.Model.Info.Shape, classes, g, 0, 0)
		if err != nil {
			return nil, "", err
		}
		if with, err = withOption(text, "nfe", strconv.Itoa(max(1, int(float64(n)/max(one.NFE, 1))))); err != nil {
			return nil, "", err
		}
	}
	smp, err = samplers.Parse(with)
	return smp, with, err
}

const (
	modelSchedule = job.ModelSchedule
	ownNodes      = "own nodes"
)

// hashOf tells samplers apart that files describe.
func hashOf(s samplers.Sampler) string {
	if h, ok := s.(interface{ Hash() string }); ok {
		return h.Hash()
	}
	return ""
}

func orDefault(implied string, m *open.Model, p schedules.Path) string {
	switch {
	case implied != "":
		return implied
	case m.Defaults.Schedule != "":
		return m.Defaults.Schedule
	case m.Defaults.Grid != nil:
		return modelSchedule
	}
	return schedules.DefaultGrid(p)
}

// gridMaker makes grids by number of steps; it spells the schedule's name out.
func gridMaker(m *open.Model, p schedules.Path, name *string, own bool) (func(int) (schedules.Grid, error), error) {
	if *name == modelSchedule {
		if m.Defaults.Grid == nil {
			return func(int) (schedules.Grid, error) {
				return nil, fmt.Errorf("the model has no scheduler configuration")
			}, nil
		}
		return m.Defaults.Grid, nil
	}
	sp, err := spec.Parse(*name)
	if err != nil {
		return nil, err
	}
	info, err := schedules.Lookup(sp.Name)
	if err != nil {
		return nil, err
	}
	sp.Name = info.Name
	*name = sp.String()
	ends := schedules.Ends{}
	if own {
		ends.Final = "min"
	}
	return func(n int) (schedules.Grid, error) { return schedules.NewGrid(p, *name, n, ends) }, nil
}
