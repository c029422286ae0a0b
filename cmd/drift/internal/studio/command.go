package studio

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/manifest"
	"drift/internal/spec"
)

// model finds a model by name, nil where the studio does not know it.
func (c *Catalog) model(name string) *Model {
	if k := slices.IndexFunc(c.Models, func(m Model) bool { return m.Name == name }); k >= 0 {
		return &c.Models[k]
	}
	return nil
}

// label names a class.
func (c *Catalog) label(model string, k int) string {
	switch m := c.model(model); {
	case k < 0:
		return "none"
	case m != nil && k < len(m.Labels):
		return m.Labels[k]
	}
	return strconv.Itoa(k)
}

// Again writes the line, without --out, that makes the pictures of a description again, bit for bit on the same kernel
// tier. Everything that decides a picture stands in it; a description that needs more than a line (files, scripts,
// compositions, nodes of its own) is refused.
func (c *Catalog) Again(r manifest.Run) ([]string, error) {
	no := func(what string) ([]string, error) {
		return nil, fmt.Errorf("%s: no short line makes it again; drift sample --from PICTURE does, or the folder's own line", what)
	}
	switch {
	case r.Verb != "sample" && r.Verb != "steer":
		return no("made by drift " + r.Verb)
	case r.Compose != nil:
		return no("a composition of models")
	case r.Switch != nil:
		return no("two models in turn")
	case r.Init != "" || r.InitImage != "" || r.NoiseID != "" || r.SamplerID != "" || r.Offset != 0:
		return no("made of a file")
	case r.Control != "" || len(r.Scripts) > 0:
		return no("made by a script")
	case len(r.Sets) != 1:
		return no("several prompts")
	case r.Schedule == "" || strings.HasPrefix(r.Schedule, "@"):
		return no("steps at nodes of its own")
	case r.Guide != nil:
		return no("guided by a second model")
	}
	known := c.model(r.Model.Path)
	args := []string{r.Verb, "--model", r.Model.Path}
	add := func(flag, value string) { args = append(args, "--"+flag, value) }
	if r.Model.DType != "" && (known == nil || known.DType != r.Model.DType) {
		add("dtype", r.Model.DType)
	}
	if r.Model.Tier != "" && (known == nil || known.Tier != r.Model.Tier) {
		add("tier", r.Model.Tier)
	}
	if p := r.Pipeline; p != nil {
		for _, n := range []struct {
			flag string
			v    int
		}{{"width", p.Width}, {"height", p.Height}, {"clip-skip", p.ClipSkip}, {"text-tokens", p.TextTokens}, {"tile", p.Tile}} {
			if n.v != 0 {
				add(n.flag, strconv.Itoa(n.v))
			}
		}
		if p.VAE != "" {
			add("vae", p.VAE)
		}
		if p.Guidance != 0 {
			add("guidance", number(p.Guidance))
		}
		if p.LoRA != "" {
			for l := range strings.SplitSeq(p.LoRA, ",") {
				add("lora", l)
			}
		}
	}
	if s := r.Steer; s != nil {
		if s.Script != "" && strings.HasSuffix(s.Reward, ".star") || len(s.Files) > 0 && !onlyNetworks(s.Files) || strings.HasPrefix(s.Reward, "exec:") || s.Control != "" || s.Options != "" || s.Checks != nil || s.Every != 0 || s.Init != nil || s.When != "ess" || s.Reward == "" {
			return no("steered by more than a reward, particles and a strength")
		}
		add("method", s.Method)
		add("particles", strconv.Itoa(s.Particles))
		add("reward", s.Reward)
		switch {
		case s.Schedule != "":
			add("lambda", s.Schedule)
		case s.Lambda != nil: // auto has become a number by the time the manifest is written
			add("lambda", number(*s.Lambda))
		}
		for _, f := range [][3]string{{"potential", s.Potential, "difference"}, {"resampler", s.Resampler, "systematic"}, {"keep", s.Keep, "best"}} {
			if f[1] != f[2] && f[1] != "" {
				add(f[0], f[1])
			}
		}
		if s.ESS != 0.5 {
			add("ess", number(s.ESS))
		}
		if s.Churn != 0 {
			add("churn", number(s.Churn))
		}
	}
	var chain []string // of guiders, that the model brings by itself
	if known != nil {
		chain = known.Guiders
		if known.Own != nil && r.Verb == "sample" && r.Sampler == known.Sampler && endsIn(r.Guiders, known.Own) {
			chain = known.Own // what it brings where no sampler is named
		} else {
			add("sampler", r.Sampler)
		}
	} else {
		add("sampler", r.Sampler)
	}
	add("schedule", r.Schedule)
	own := slices.ContainsFunc(c.Samplers, func(n Name) bool { return n.OwnGrid && n.Name == strings.Split(r.Sampler, ":")[0] })
	if !own {
		if r.Steer != nil && r.Steer.Churn != 0 {
			return no("steps up in noise")
		}
		add("steps", strconv.Itoa(len(r.Grid.T)-1))
	}
	if e := r.Ends; e != nil {
		for _, n := range []struct {
			flag string
			v    *float64
		}{{"t-start", e.TStart}, {"t-end", e.TEnd}, {"sigma-max", e.SigmaMax}, {"sigma-min", e.SigmaMin}} {
			if n.v != nil {
				add(n.flag, number(*n.v))
			}
		}
		if e.Final != "" {
			add("final", e.Final)
		}
	}
	if r.First != 0 {
		add("start-step", strconv.Itoa(r.First))
	}
	if r.Last != 0 {
		add("end-step", strconv.Itoa(r.Last))
	}
	guiders, err := guiders(r.Guiders, chain, known != nil)
	if err != nil {
		return no(err.Error())
	}
	args = append(args, guiders...)
	set := r.Sets[0]
	switch n := len(set.Classes); {
	case n == 1 && set.Classes[0] < 0:
		add("class", "none")
	case n == 1:
		add("class", c.label(r.Model.Path, set.Classes[0]))
	case n > 1:
		var all []string
		whole := known != nil && known.Classes == n
		for i, k := range set.Classes {
			whole = whole && k == i
			if k < 0 {
				all = append(all, "none")
			} else {
				all = append(all, strconv.Itoa(k))
			}
		}
		if !whole { // every class in turn is what happens anyway
			add("classes", strings.Join(all, ","))
		}
	}
	if set.Prompt != "" {
		add("prompt", set.Prompt)
	}
	if set.Negative != "" {
		add("negative-prompt", set.Negative)
	}
	if r.Noise != "" {
		add("noise", r.Noise)
	}
	if r.Rounding != "" && (known == nil || known.Rounding != r.Rounding) {
		add("rounding", r.Rounding)
	}
	add("seeds", r.Seeds)
	for _, w := range args { // a description may come from anywhere, and the line is for a shell
		if err := text(w); err != nil {
			return no(err.Error())
		}
	}
	return args, nil
}

// onlyNetworks tells that a reward uses nothing but embedded networks.
func onlyNetworks(files map[string]string) bool {
	for name := range files {
		if name != "fashion-classifier" {
			return false
		}
	}
	return true
}

// guiders writes the flags of a chain of guiders. What the model's own scheduler asks for comes last in it, and by itself.
func guiders(specs, own []string, known bool) ([]string, error) {
	for _, g := range specs {
		sp, err := spec.Parse(g)
		if err != nil {
			return nil, err
		}
		for _, a := range sp.Args {
			if a.Key == "recur" || a.Key == "file" || a.Key == "positive" {
				return nil, errors.New("guided by " + g)
			}
		}
	}
	var args []string
	if known && endsIn(specs, own) {
		specs = specs[:len(specs)-len(own)]
		if len(specs) == 0 {
			return nil, nil // a model that is named is not guided unless a flag says so
		}
		if w, ok := strings.CutPrefix(specs[0], "cfg:w="); ok && len(specs) == 1 {
			if _, err := strconv.ParseFloat(w, 64); err == nil {
				return []string{"--cfg-scale", w}, nil
			}
		}
	} else {
		args = append(args, "--guider", "none")
	}
	for _, g := range specs {
		args = append(args, "--guider", g)
	}
	return args, nil
}

func endsIn(list, end []string) bool {
	return len(list) >= len(end) && slices.Equal(list[len(list)-len(end):], end)
}

// benchAgain writes the line of a bench.
func benchAgain(m bench.Matrix) ([]string, error) {
	if m.Verb != "" || m.Limit != "" || m.Guide != "" {
		return nil, errors.New("a bench of a verb, or with a limit: its report has the settings")
	}
	args := []string{"bench", "--model", strings.Join(m.Models, ","), "--samplers", strings.Join(m.Samplers, ";")}
	if !slices.Equal(m.Schedules, []string{""}) {
		args = append(args, "--schedules", strings.Join(m.Schedules, ";"))
	}
	if !slices.Equal(m.Guiders, []string{""}) {
		all := slices.Clone(m.Guiders)
		for i, g := range all {
			if g == "" {
				all[i] = "default"
			}
		}
		args = append(args, "--guiders", strings.Join(all, ";"))
	}
	for _, l := range []struct {
		flag string
		v    []int
	}{{"--nfe", m.NFE}, {"--steps", m.Steps}} {
		var all []string
		for _, n := range l.v {
			all = append(all, strconv.Itoa(n))
		}
		if len(all) > 0 {
			args = append(args, l.flag, strings.Join(all, ","))
		}
	}
	args = append(args, "--metric", strings.Join(m.Metrics, ","), "--count", strconv.Itoa(m.Count), "--seed", strconv.FormatUint(m.Seed, 10))
	if m.Rounding != "" {
		args = append(args, "--rounding", m.Rounding)
	}
	return args, nil
}

// readPicture reads what a PNG says of itself.
func readPicture(name, text string) (manifest.Picture, error) {
	r, err := manifest.Parse(name, []byte(text))
	if err != nil {
		return manifest.Picture{}, err
	}
	p := manifest.Picture{Run: r}
	var seed struct {
		Seed uint64 `json:"seed"`
	}
	err = json.Unmarshal([]byte(text), &seed)
	p.Seed = seed.Seed
	return p, err
}
