package bench

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/internal/spec"
)

// Verb is how bench measures a verb of the command line. A cell of such a bench is one line that a user could have
// typed, "drift VERB --flag=value ...": what bench was given of the verb's flags, and one value of every axis. So any
// flag of the verb can be an axis, and the verb reads its flags here as it does elsewhere.
//
// To plug a verb in, add its Verb to the table (*app).benchVerbs:
//
//	bench.Verb{
//		Command: func() *cli.Command { return steerVerb(a) },                    // for its flags; its Action is not run
//		Open:    func(c *cli.Context) (bench.Runner, error) { return openSteering(a, c) }, // resolve c, draw nothing yet
//		Baseline: map[string]bench.Baseline{"best-of-n": bestOfN},              // for --repeat-baseline; may be nil
//		Count:   16,                                                             // seeds when neither --seeds nor --count say
//	}
//
// bench then does the rest: the product of the axes, the same seeds in every cell, one checksummed row on the disk per
// seed and a cell that goes on after the last of them however it was stopped, time left, means with standard errors,
// scores of the pictures (fid, vendi, class-acc, ...), results.*, seeds.csv with one row per (cell, seed), a heat map
// over the first two axes, a Pareto plot of the first two scores, and the page.
type Verb struct {
	Command  func() *cli.Command
	Open     func(c *cli.Context) (Runner, error)
	Baseline map[string]Baseline
	Count    int
}

// Baseline rewrites a cell's arguments into those of a plain run of the same cost: for steering by K particles, the
// best of as many plain samples as the evaluations pay for. Cells whose baselines are equal share one.
type Baseline func(cell Facts, args Args) (Args, error)

// Runner is a cell that is open: settings that do not change any more, run on one seed after the other.
type Runner interface {
	Facts() Facts
	Run(ctx context.Context, t Task) error
	Close() error
}

// Facts are what is known about a cell before it runs.
type Facts struct {
	// Settings are all that decides the results of a seed (hashes of models and files, not their paths): they are
	// hashed into the name of the cell's file, and stand in results.json. They are marshalled to JSON; where they have a
	// method Canonical() []byte, that is hashed in place of it.
	Settings any
	Columns  []Column // numbers that every seed gives
	Shape    []int    // of one picture or state
	Pictures int      // of a seed, the same number for every seed; 0 = none
	Rounding string   // rule to 8 bit, of pictures; "" = floor
	// Class is what picture k of the seed at a place should show; nil = unknown. Places count the seeds of the bench.
	Class func(place, k int) int
	Cost  Cost // per seed; zero where only the run tells
	Batch int  // seeds that are best run at a time; 0 = 1
}

// Column is a number that a seed gives: "reward", "psnr".
type Column struct {
	Name   string
	Better int  // -1: smaller is better, 1: larger
	Share  bool // 0 or 1 per seed: the mean gets a 95 % interval that is honest at 0 and 1
}

// Cost is what a seed asked of the networks: evaluations of the model by one row, products with its Jacobian, and
// evaluations of a reward (or of another network that is not the model).
type Cost struct {
	NFE     float64 `json:"nfe"`
	VJPs    float64 `json:"vjps,omitempty"`
	Rewards float64 `json:"rewards,omitempty"`
}

// Task is some of a cell's seeds.
type Task struct {
	First int // place of Seeds[0] among the seeds of the bench
	Seeds []uint64
	Stop  <-chan struct{}    // closed when the run should end soon, with job.ErrStopped
	Step  func(done float64) // how much of this task is done, in [0, 1]
	Done  func(Result) error // takes the result of every seed, in the order of Seeds
}

// Result is what came of one seed. It must not depend on which seeds it was run with.
type Result struct {
	Cost
	Values []float64 // by Facts.Columns; NaN = this seed has none
	X      []float64 // Facts.Pictures rows of Facts.Shape, pictures in [-1, 1]
}

// Arg is a flag of a verb with its value.
type Arg struct {
	Flag  string `json:"flag"`
	Value string `json:"value"`
}

// Args are the flags of a line. A flag that is repeatable may stand several times.
type Args []Arg

// Get returns the last value of a flag.
func (a Args) Get(flag string) (string, bool) {
	for _, x := range slices.Backward(a) {
		if x.Flag == flag {
			return x.Value, true
		}
	}
	return "", false
}

// Set returns args with one value of a flag, in place of all it had.
func (a Args) Set(flag, value string) Args { return append(a.Drop(flag), Arg{flag, value}) }

// Drop returns args without some flags.
func (a Args) Drop(flags ...string) Args {
	return slices.DeleteFunc(slices.Clone(a), func(x Arg) bool { return slices.Contains(flags, x.Flag) })
}

// String is the line, for messages and tables.
func (a Args) String() string {
	var parts []string
	for _, x := range a {
		parts = append(parts, x.Flag+"="+x.Value)
	}
	return strings.Join(parts, " ")
}

// Axis is a flag with the values that it takes.
type Axis struct {
	Flag   string   `json:"flag"`
	Values []string `json:"values"`
}

// Axes reads "lambda=0.5,1 particles=4,16 methods=dps:zeta=0.5,rho=1;pigdm": fields apart by blanks, values apart by
// commas, or by semicolons where there are any; a piece like key=value belongs to the value before it.
func Axes(text string) ([]Axis, error) {
	var out []Axis
	for field := range strings.FieldsSeq(text) {
		key, values, ok := strings.Cut(field, "=")
		key = strings.TrimLeft(key, "-")
		if !ok || values == "" || key == "" {
			return nil, fmt.Errorf("bench: sweep %q: want flag=value,value", field)
		}
		if slices.ContainsFunc(out, func(a Axis) bool { return a.Flag == key }) {
			return nil, fmt.Errorf("bench: sweep: %s stands there twice", key)
		}
		out = append(out, Axis{key, Split(values)})
	}
	return out, nil
}

// Name is the verb's name.
func (v Verb) Name() string { return v.Command().Name }

// notSwept are flags about where results go and how a run is shown, which bench decides itself.
var notSwept = []string{"out", "sheet", "seed", "seeds", "count", "batch", "json", "quiet", "threads", "help", "dry-run", "resume", "log", "columns", "sort",
	"plot", "trace", "trajectory", "preview", "from", "no-metadata", "float", "print-schedule", "workers", "shard"}

// Flags are the flags of the verb that a cell may set.
func (v Verb) Flags() []cli.Flag {
	return slices.DeleteFunc(slices.Clone(v.Command().Flags), func(f cli.Flag) bool { return slices.Contains(notSwept, f.Names()[0]) })
}

// Has tells whether the verb has a flag that a cell may set, by its first name.
func (v Verb) Has(flag string) bool {
	return slices.ContainsFunc(v.Flags(), func(f cli.Flag) bool { return f.Names()[0] == flag })
}

// FlagNames lists the flags that a cell may set.
func (v Verb) FlagNames() []string {
	var out []string
	for _, f := range v.Flags() {
		out = append(out, f.Names()[0])
	}
	return out
}

// open reads a line as the command line does, and opens it.
func (v Verb) open(ctx context.Context, args Args) (Runner, error) {
	cmd := v.Command()
	var out Runner
	cmd.Before, cmd.Subcommands, cmd.HideHelp = nil, nil, true // the flag of help is a variable that all share
	cmd.Action = func(c *cli.Context) (err error) {
		out, err = v.Open(c)
		return err
	}
	cmd.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return err }
	root := &cli.App{
		Name: "drift", Writer: io.Discard, ErrWriter: io.Discard, HideVersion: true, HideHelp: true, DisableSliceFlagSeparator: true,
		ExitErrHandler: func(*cli.Context, error) {}, OnUsageError: cmd.OnUsageError, Commands: []*cli.Command{cmd},
	}
	line := []string{"drift", cmd.Name}
	for _, a := range args {
		values := []string{a.Value}
		if a.Flag == "guider" {
			values = chain(a.Value) // "" is no guider but the model's own
		}
		for _, v := range values {
			if v != "" || a.Flag != "guider" && a.Flag != "schedule" { // none: what the verb itself takes
				line = append(line, "--"+a.Flag+"="+v)
			}
		}
	}
	if err := root.RunContext(ctx, line); err != nil {
		return nil, err
	}
	if out == nil {
		return nil, errors.New("bench: " + cmd.Name + " opened nothing")
	}
	return out, nil
}

// VerbCells lists the cells of a bench of a verb: every combination of the axes, the last changing fastest, each with
// its baseline where one is asked for. fixed stands on every line. subject finds what measures the pictures of a
// model; the model's name is that of the line, or empty. A combination that cannot be opened has a Reason.
func (m *Matrix) VerbCells(ctx context.Context, v Verb, fixed Args, axes []Axis, baseline string, subject func(model string, shape []int) (*Subject, error)) ([]*Cell, error) {
	axes, picks := place(axes)
	names := v.FlagNames()
	for _, a := range append(slices.Clone(fixed), heads(axes)...) {
		if !slices.Contains(names, a.Flag) {
			return nil, fmt.Errorf("bench: %s has no flag %q to set%s", v.Name(), a.Flag, spec.Suggest(a.Flag, names))
		}
	}
	base := v.Baseline[baseline]
	if baseline != "" && base == nil {
		var known []string
		for name := range v.Baseline {
			known = append(known, name)
		}
		slices.Sort(known)
		return nil, fmt.Errorf("bench: %s has no baseline %q; it has: %s", v.Name(), baseline, or(strings.Join(known, ", "), "none"))
	}
	m.Verb, m.Fixed, m.Axes, m.Baseline, m.Models = v.Name(), fixed, axes, baseline, nil
	var out []*Cell
	var first error
	fine := 0
	for _, pick := range picks {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		args := slices.Concat(fixed, pick)
		c, err := v.cell(ctx, m.Seed, args, subject)
		c.settle(pick)
		if !slices.Contains(m.Models, c.Model) && c.Model != "" {
			m.Models = append(m.Models, c.Model)
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			first = errors.Join(first, err)
			c.Reason = "cannot run: " + err.Error()
		} else {
			fine++
		}
		out = append(out, c)
		if base == nil || c.Reason != "" {
			continue
		}
		line, err := base(c.facts, args)
		var b *Cell
		if err == nil {
			b, err = v.cell(ctx, m.Seed, line, subject)
		}
		if err != nil {
			return nil, fmt.Errorf("bench: %s of %s: %w", baseline, args, err)
		}
		b.settle(pick)
		b.Baseline, b.of = baseline, c
		out = append(out, b)
	}
	if fine == 0 && first != nil {
		if list, ok := first.(interface{ Unwrap() []error }); ok {
			first = list.Unwrap()[0]
		}
		return nil, first
	}
	return out, nil
}

func heads(axes []Axis) Args {
	var out Args
	for _, a := range axes {
		out = append(out, Arg{Flag: a.Flag})
	}
	return out
}

// product is every combination of the axes' values, the last axis changing fastest.
func product(axes []Axis) []Args {
	out := []Args{nil}
	for _, a := range axes {
		var next []Args
		for _, head := range out {
			for _, v := range a.Values {
				next = append(next, append(slices.Clone(head), Arg{a.Flag, v}))
			}
		}
		out = next
	}
	return out
}

// place is product; a sampler/schedule in it stands on that schedule and not on those of the axis, which gets it.
func place(axes []Axis) ([]Axis, []Args) {
	at := func(flag string) int { return slices.IndexFunc(axes, func(a Axis) bool { return a.Flag == flag }) }
	k := at("sampler")
	if k < 0 || !slices.ContainsFunc(axes[k].Values, func(s string) bool { _, on := placed(s); return on != "" }) {
		return axes, product(axes)
	}
	axes = slices.Clone(axes)
	if at("schedule") < 0 {
		axes = slices.Insert(axes, k+1, Axis{"schedule", []string{""}})
	}
	i, j := at("sampler"), at("schedule")
	var out []Args
	var names, schedules []string
	seen := map[string]bool{}
	for _, p := range product(axes) {
		if name, on := placed(p[i].Value); on != "" {
			p[i].Value, p[j].Value = name, on
		}
		if id := p.String(); !seen[id] {
			seen[id] = true
			out, names, schedules = append(out, p), append(names, p[i].Value), append(schedules, p[j].Value)
		}
	}
	axes[i].Values, axes[j].Values = distinct(names), distinct(schedules)
	return axes, out
}

// distinct drops what stands in a list before.
func distinct(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// cell opens a line to see what it is, and closes it again: a bench of many cells has one of them open.
func (v Verb) cell(ctx context.Context, seed uint64, args Args, subject func(string, []int) (*Subject, error)) (*Cell, error) {
	c := &Cell{}
	c.Model, _ = args.Get("model")
	r, err := v.open(ctx, args)
	if err != nil {
		return c, err
	}
	c.facts = r.Facts()
	if err := r.Close(); err != nil {
		return c, err
	}
	if c.subject, err = subject(c.Model, c.facts.Shape); err != nil {
		return c, err
	}
	c.Model = c.subject.Name
	c.NFE, c.VJPs, c.Rewards = c.facts.Cost.NFE, c.facts.Cost.VJPs, c.facts.Cost.Rewards
	c.open = func(ctx context.Context) (Runner, error) { return v.open(ctx, args) }
	var text []byte
	if s, ok := c.facts.Settings.(interface{ Canonical() []byte }); ok {
		text = s.Canonical()
	} else if text, err = json.Marshal(c.facts.Settings); err != nil {
		return c, fmt.Errorf("bench: settings of %s: %w", args, err)
	}
	id := c.subject.Measure.Identity()
	sum := sha256.New()
	fmt.Fprintf(sum, "%d %s\x00%s\x00%s\x00%s\x00%s\x00%d %v\x00%v", seed, v.Name(), text, id.Extractor, id.Resize, c.rounding(), c.facts.Pictures, c.facts.Shape, c.facts.Columns)
	c.Key = hex.EncodeToString(sum.Sum(nil))[:24]
	return c, nil
}

// Columns are the numbers that a seed of a verb's cell gives.
func (c *Cell) Columns() []string {
	var out []string
	for _, col := range c.facts.Columns {
		out = append(out, col.Name)
	}
	return out
}

// rounding is the rule to 8 bit of a verb's pictures.
func (c *Cell) rounding() string { return c.subject.Measure.Rounding(c.facts.Rounding) }

// settle writes the axes' values into the fields that reports know, and the others into Settings.
func (c *Cell) settle(pick Args) {
	c.pick = pick
	for _, a := range pick {
		number, _ := strconv.Atoi(a.Value)
		switch a.Flag {
		case "model":
		case "sampler":
			c.Sampler = a.Value
		case "schedule":
			c.Schedule = a.Value
		case "guider":
			c.Guiders = a.Value
		case "nfe":
			c.Budget = number
		case "steps":
			c.Steps = number
		default:
			c.Settings = append(c.Settings, a)
		}
	}
}
