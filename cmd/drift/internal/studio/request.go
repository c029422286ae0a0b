package studio

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"drift/cmd/drift/internal/manifest"
	"drift/internal/spec"
)

// Limits of a job.
const (
	maxQueue     = 32   // jobs waiting
	maxSamplers  = 6    // of one request
	maxSteps     = 1000 //
	maxPictures  = 256  // of a job
	maxParticles = 64
	maxRows      = 4096 // pictures x particles
	maxBudgets   = 8    // of a bench
	maxBench     = 5000 // pictures per point of a bench
	maxBudget    = 500
	maxSide      = 2048 // pixels
	maxText      = 2000 // bytes of a prompt or reward
)

// Catalog is what can be chosen. Everything that a request names must stand in it, so no request reaches a file.
type Catalog struct {
	Version   string  `json:"version"`
	Models    []Model `json:"models"`
	Samplers  []Name  `json:"samplers"`
	Schedules []Name  `json:"schedules"`
	Guiders   []Name  `json:"guiders"` // those with a scale w
}

// Model is one that can be asked for.
type Model struct {
	Name     string   `json:"name"`
	Summary  string   `json:"summary"`
	Hash     string   `json:"hash"`
	Shape    []int    `json:"shape"` // of a picture: channels, height, width
	Classes  int      `json:"classes"`
	Labels   []string `json:"labels,omitempty"`
	Text     bool     `json:"text"`
	AnySize  bool     `json:"any_size"`
	Sampler  string   `json:"sampler"`
	Schedule string   `json:"schedule"`
	Steps    int      `json:"steps"`
	Scale    float64  `json:"guidance"`              // good scale, 1 = off
	Guiders  []string `json:"guiders,omitempty"`     // its own, put after those of a request
	Own      []string `json:"own_guiders,omitempty"` // the same where no sampler is named; nil: no difference
	Rounding string   `json:"rounding,omitempty"`
	DType    string   `json:"dtype,omitempty"`
	Tier     string   `json:"tier,omitempty"`
	Bench    bool     `json:"bench"` // has a reference set
}

// Name is a sampler, schedule or guider.
type Name struct {
	Name    string   `json:"name"`
	Summary string   `json:"summary"`
	Source  string   `json:"source,omitempty"`
	Order   string   `json:"order,omitempty"`
	NFE     string   `json:"nfe_per_step,omitempty"`
	Options []Option `json:"options,omitempty"`
	OwnGrid bool     `json:"own_grid,omitempty"` // places its own steps
}

// Option is an option of a Name.
type Option struct {
	Name    string `json:"name"`
	Default string `json:"default"`
	Help    string `json:"help"`
}

// Request is what the page asks for. A list of samplers makes a job of each, on the same seeds; of a bench, one job.
type Request struct {
	Verb     string   `json:"verb"` // sample, steer or bench
	Model    string   `json:"model"`
	Samplers []string `json:"samplers,omitempty"` // name:key=value,...; "" = the model's own
	Schedule string   `json:"schedule,omitempty"`
	Steps    int      `json:"steps,omitempty"`
	Scale    float64  `json:"guidance,omitempty"` // 0 = not said
	Guider   string   `json:"guider,omitempty"`   // "" = cfg
	Class    string   `json:"class,omitempty"`
	Prompt   string   `json:"prompt,omitempty"`
	Negative string   `json:"negative,omitempty"`
	Width    int      `json:"width,omitempty"`
	Height   int      `json:"height,omitempty"`
	Seed     uint64   `json:"seed,omitempty"`
	Count    int      `json:"count,omitempty"`
	Seeds    string   `json:"seeds,omitempty"` // in place of Seed and Count

	// Of steer.
	Particles int    `json:"particles,omitempty"`
	Reward    string `json:"reward,omitempty"`
	Lambda    string `json:"lambda,omitempty"`

	// Of bench.
	NFE []int `json:"nfe,omitempty"`
}

// Line is a command line, without its --out.
type Line struct {
	Title    string
	Args     []string
	Pictures int
}

// bad is an error that the client made.
type bad struct{ text string }

func (b bad) Error() string { return b.text }

func badf(format string, a ...any) error { return bad{fmt.Sprintf(format, a...)} }

// Lines checks a request and turns it into command lines.
func (c *Catalog) Lines(q Request) ([]Line, error) {
	k := slices.IndexFunc(c.Models, func(m Model) bool { return m.Name == q.Model })
	if k < 0 {
		return nil, badf("unknown model %.60q: it was not named when the studio was started", q.Model)
	}
	m := c.Models[k]
	if !slices.Contains([]string{"sample", "steer", "bench"}, q.Verb) {
		return nil, badf("verb %.20q: want sample, steer or bench", q.Verb)
	}
	for _, t := range []string{q.Schedule, q.Guider, q.Class, q.Prompt, q.Negative, q.Seeds, q.Reward, q.Lambda} {
		if err := text(t); err != nil {
			return nil, err
		}
	}
	if len(q.Samplers) == 0 {
		q.Samplers = []string{""}
	}
	if len(q.Samplers) > maxSamplers {
		return nil, badf("%d samplers: at most %d", len(q.Samplers), maxSamplers)
	}
	for i, s := range q.Samplers {
		if slices.Contains(q.Samplers[:i], s) {
			return nil, badf("sampler %q is named twice", s)
		}
		if s != "" {
			if err := named("sampler", s, c.Samplers); err != nil {
				return nil, err
			}
		}
	}
	if q.Schedule != "" && q.Schedule != "model" {
		if err := named("schedule", q.Schedule, c.Schedules); err != nil {
			return nil, err
		}
	}
	switch {
	case q.Steps < 0 || q.Steps > maxSteps:
		return nil, badf("%d steps: want 1 to %d", q.Steps, maxSteps)
	case math.Abs(q.Scale) > 1000:
		return nil, badf("guidance %g: want at most 1000", q.Scale)
	case q.Width < 0 || q.Width > maxSide || q.Height < 0 || q.Height > maxSide:
		return nil, badf("%d x %d pixels: want at most %d", q.Width, q.Height, maxSide)
	case (q.Width > 0 || q.Height > 0) && !m.AnySize:
		return nil, badf("%s makes pictures of one size", m.Name)
	case q.Verb != "steer" && (q.Particles != 0 || q.Reward != "" || q.Lambda != ""):
		return nil, badf("particles, reward and lambda belong to steering")
	case q.Verb != "bench" && len(q.NFE) > 0:
		return nil, badf("budgets belong to the bench")
	}
	if q.Verb == "bench" {
		return c.bench(m, q)
	}
	condition, err := condition(m, q)
	if err != nil {
		return nil, err
	}
	seeds, err := seeds(q)
	if err != nil {
		return nil, err
	}
	n := len(seeds)
	if n > maxPictures {
		return nil, badf("%d pictures: at most %d in a job", n, maxPictures)
	}
	var out []Line
	for _, s := range q.Samplers {
		args := []string{q.Verb, "--model", m.Name}
		if q.Verb == "steer" {
			more, err := steer(q, n)
			if err != nil {
				return nil, err
			}
			args = append(args, more...)
		}
		name := s
		switch {
		case s != "":
			args = append(args, "--sampler", s)
		case q.Verb == "steer": // both are not named: a model may have a form of its own for its own sampler
			name = "ddim:eta=1"
		default:
			name = m.Sampler
		}
		if q.Schedule != "" {
			args = append(args, "--schedule", q.Schedule)
		}
		if q.Steps > 0 {
			args = append(args, "--steps", strconv.Itoa(q.Steps))
		}
		guiders, err := c.guider(m, q)
		if err != nil {
			return nil, err
		}
		args = append(append(args, guiders...), condition...)
		if q.Width > 0 {
			args = append(args, "--width", strconv.Itoa(q.Width))
		}
		if q.Height > 0 {
			args = append(args, "--height", strconv.Itoa(q.Height))
		}
		args = append(args, "--seeds", manifest.FormatSeeds(seeds))
		out = append(out, Line{Title: strings.Join([]string{m.Name, name}, " "), Args: args, Pictures: n})
	}
	return out, nil
}

// steer makes the flags of particles and reward.
func steer(q Request, pictures int) ([]string, error) {
	switch {
	case q.Particles < 1 || q.Particles > maxParticles:
		return nil, badf("%d particles: want 1 to %d", q.Particles, maxParticles)
	case q.Particles*pictures > maxRows:
		return nil, badf("%d pictures of %d particles: at most %d rows in a job", pictures, q.Particles, maxRows)
	case strings.TrimSpace(q.Reward) == "":
		return nil, badf("steering needs a reward, such as mean(x0)")
	}
	out := []string{"--particles", strconv.Itoa(q.Particles), "--reward", q.Reward}
	if q.Lambda != "" {
		if len(q.Lambda) > 100 {
			return nil, badf("lambda of %d characters", len(q.Lambda))
		}
		out = append(out, "--lambda", q.Lambda)
	}
	return out, nil
}

// bench makes the one line of a bench.
func (c *Catalog) bench(m Model, q Request) ([]Line, error) {
	switch {
	case !m.Bench:
		return nil, badf("%s has no reference set here: drift bench --reference REF measures it", m.Name)
	case len(q.NFE) == 0 || len(q.NFE) > maxBudgets:
		return nil, badf("%d budgets: want 1 to %d", len(q.NFE), maxBudgets)
	case q.Seeds != "" || q.Class != "" || q.Prompt != "" || q.Negative != "" || q.Steps != 0:
		return nil, badf("a bench draws all classes, by budgets: leave class, steps and the list of seeds out")
	case q.Count < 2 || q.Count > maxBench:
		return nil, badf("%d pictures: want 2 to %d per point", q.Count, maxBench)
	case q.Seed > math.MaxUint64-maxBench:
		return nil, badf("seed %d is beyond the last", q.Seed)
	}
	var budgets []string
	for i, n := range q.NFE {
		if n < 1 || n > maxBudget {
			return nil, badf("a budget of %d: want 1 to %d evaluations", n, maxBudget)
		}
		if slices.Contains(q.NFE[:i], n) {
			return nil, badf("the budget %d is named twice", n)
		}
		budgets = append(budgets, strconv.Itoa(n))
	}
	names := slices.Clone(q.Samplers)
	for i, s := range names {
		if s == "" {
			names[i] = m.Sampler
		}
	}
	args := []string{"bench", "--model", m.Name, "--samplers", strings.Join(names, ";")}
	if q.Schedule != "" {
		args = append(args, "--schedules", q.Schedule)
	}
	if q.Guider != "" && q.Guider != "cfg" && q.Scale != 0 {
		g, err := c.guider(m, q)
		if err != nil {
			return nil, err
		}
		args = append(args, "--guiders", g[1])
	} else if q.Scale != 0 {
		args = append(args, "--cfg-scale", number(q.Scale))
	}
	args = append(args, "--nfe", strings.Join(budgets, ","), "--metric", "fid,class-acc", "--count", strconv.Itoa(q.Count), "--seed", strconv.FormatUint(q.Seed, 10))
	return []Line{{Title: m.Name + " bench", Args: args, Pictures: q.Count * len(names) * len(budgets)}}, nil
}

// guider makes the flag of guidance.
func (c *Catalog) guider(m Model, q Request) ([]string, error) {
	if q.Guider != "" && !slices.ContainsFunc(c.Guiders, func(n Name) bool { return n.Name == q.Guider }) {
		return nil, badf("unknown guidance %.40q", q.Guider)
	}
	if q.Scale == 0 || m.Classes == 0 && !m.Text {
		return nil, nil
	}
	if q.Guider == "" || q.Guider == "cfg" {
		return []string{"--cfg-scale", number(q.Scale)}, nil
	}
	return []string{"--guider", q.Guider + ":w=" + number(q.Scale)}, nil
}

func number(x float64) string { return strconv.FormatFloat(x, 'g', -1, 64) }

// condition makes the flags of class or prompt.
func condition(m Model, q Request) ([]string, error) {
	var out []string
	if q.Class != "" {
		k, err := strconv.Atoi(q.Class)
		if !(q.Class == "none" || slices.Contains(m.Labels, q.Class) || err == nil && k >= 0 && k < m.Classes) || m.Classes == 0 {
			return nil, badf("unknown class %.40q of %s", q.Class, m.Name)
		}
		out = append(out, "--class", q.Class)
	}
	if (q.Prompt != "" || q.Negative != "") && !m.Text {
		return nil, badf("%s takes no text", m.Name)
	}
	if q.Prompt != "" {
		out = append(out, "--prompt", q.Prompt)
	}
	if q.Negative != "" {
		out = append(out, "--negative-prompt", q.Negative)
	}
	return out, nil
}

// seeds lists the seeds of a request.
func seeds(q Request) ([]uint64, error) {
	if q.Seeds != "" {
		if q.Count != 0 || q.Seed != 0 {
			return nil, badf("a list of seeds, or a first seed and a count: not both")
		}
		// Counted before they are listed: a range may have more seeds than there is memory.
		n := 0
		for part := range strings.SplitSeq(q.Seeds, ",") {
			a, b, span := strings.Cut(part, "-")
			lo, e1 := strconv.ParseUint(strings.TrimSpace(a), 10, 64)
			hi := lo
			var e2 error
			if span {
				hi, e2 = strconv.ParseUint(strings.TrimSpace(b), 10, 64)
			}
			if e1 != nil || e2 != nil || hi < lo {
				return nil, badf("seeds %.60q: want numbers and ranges, such as 0-15,60", q.Seeds)
			}
			if hi-lo >= maxPictures {
				return nil, badf("seeds %.60q: at most %d pictures in a job", q.Seeds, maxPictures)
			}
			if n += int(hi-lo) + 1; n > maxPictures {
				return nil, badf("seeds %.60q: at most %d pictures in a job", q.Seeds, maxPictures)
			}
		}
		list, err := manifest.ParseSeeds(q.Seeds)
		if err != nil {
			return nil, badf("%v", err)
		}
		return list, nil
	}
	if q.Count < 1 || q.Count > maxPictures {
		return nil, badf("%d pictures: want 1 to %d", q.Count, maxPictures)
	}
	if q.Seed > math.MaxUint64-maxPictures {
		return nil, badf("seed %d is beyond the last", q.Seed)
	}
	var out []uint64
	for k := range q.Count {
		out = append(out, q.Seed+uint64(k))
	}
	return out, nil
}

// text refuses what belongs in no command line.
func text(s string) error {
	switch {
	case len(s) > maxText:
		return badf("a text of %d bytes: at most %d", len(s), maxText)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
		return badf("a text with characters that cannot be shown")
	}
	return nil
}

var plainValue = regexp.MustCompile(`^[A-Za-z0-9.+-]{0,40}$`)

// named checks a name with options against a list. Values are plain: none names a file.
func named(what, s string, list []Name) error {
	if err := text(s); err != nil {
		return err
	}
	sp, err := spec.Parse(s)
	if err != nil {
		return badf("%s: %v", what, err)
	}
	var names []string
	for _, n := range list {
		names = append(names, n.Name)
	}
	k := slices.Index(names, sp.Name)
	if k < 0 {
		return badf("unknown %s %.60q%s", what, sp.Name, spec.Suggest(sp.Name, names))
	}
	for _, a := range sp.Args {
		if !slices.ContainsFunc(list[k].Options, func(o Option) bool { return o.Name == a.Key }) {
			return badf("%s %s has no option %.40q", what, sp.Name, a.Key)
		}
		if !plainValue.MatchString(a.Value) {
			return badf("%s %s: %s=%.40q is no plain value", what, sp.Name, a.Key, a.Value)
		}
	}
	return nil
}

// isBad tells an error of the client.
func isBad(err error) bool {
	var b bad
	return errors.As(err, &b)
}
