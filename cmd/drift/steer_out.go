package main

import (
	"context"
	"fmt"
	"image"
	"image/png"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"drift/cmd/drift/internal/genealogy"
	"drift/cmd/drift/internal/output"
	"drift/cmd/drift/internal/runlog"
	"drift/internal/npz"
	"drift/internal/pixels"
	"drift/internal/spec"
	"drift/samplers"
)

func encodePNG(w io.Writer, m image.Image) error { return png.Encode(w, m) }

// steerPlots are the names of --plot.
var steerPlots = []string{"ess", "reward", "ancestry", "weights", "log_z", "genealogy"}

// steerColumns are the columns of the log, before those of the reward's terms and of scripts.
var steerColumns = []runlog.Column{
	{Name: "seed", Unit: true}, {Name: "set", Unit: true}, {Name: "class", Unit: true}, {Name: "check"}, {Name: "step"}, {Name: "t"}, {Name: "sigma"}, {Name: "progress"}, {Name: "lambda"},
	{Name: "cfg_scale", Hide: true}, {Name: "nfe"}, {Name: "ess"}, {Name: "roots"}, {Name: "resampled"}, {Name: "log_z"}, {Name: "log_z_var"}, {Name: "diversity"},
	{Name: "reward_mean"}, {Name: "reward_std"}, {Name: "reward_max"}, {Name: "reward_weighted"},
	{Name: "winner", Unit: true, Hide: true}, {Name: "final_reward", Unit: true, Hide: true},
}

// steerFiles are the files of a run beside the pictures.
type steerFiles struct {
	weights, trace string
	log            *runlog.Log // nil: none
	plots          map[string]string
}

// outputs names the files and checks that they can be written.
func (s *steering) outputs() (steerFiles, error) {
	var f steerFiles
	beside := func(name string) string {
		if output.Kind(s.path) == "folder" {
			return filepath.Join(s.path, name)
		}
		return strings.TrimSuffix(s.path, filepath.Ext(s.path)) + "-" + name
	}
	f.weights = beside("weights.npz")
	f.trace = s.c.String("trace")
	if f.trace != "" && output.Kind(f.trace) != "npz" {
		return f, usagef("--trace %s: want a name that ends in .npz", f.trace)
	}
	f.plots = map[string]string{}
	log, names := s.c.String("log"), []string{}
	if s.c.IsSet("plot") {
		for name := range strings.SplitSeq(s.c.String("plot"), ",") {
			name = strings.TrimSpace(name)
			if !slices.Contains(steerPlots, name) {
				return f, usagef("--plot: unknown plot %q%s; known: %s", name, spec.Suggest(name, steerPlots), strings.Join(steerPlots, ", "))
			}
			names = append(names, name)
		}
	}
	if output.Kind(s.path) == "folder" {
		if log == "" {
			log = beside("trace.csv")
			if err := os.MkdirAll(s.path, 0o777); err != nil {
				return f, err
			}
		}
		for _, name := range []string{"ess", "reward", "ancestry", "genealogy"} {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	for _, name := range names {
		f.plots[name] = beside(name + ".png")
	}
	for _, r := range strings.Split(s.c.String("report"), ",") {
		if r = strings.TrimSpace(r); r != "winner" && r != "all" {
			return f, usagef("--report %s: want winner, all or both", r)
		}
	}
	if (s.c.IsSet("columns") || s.c.IsSet("sort")) && s.c.String("log") == "" {
		return f, usagef("--columns and --sort need --log")
	}
	if log != "" {
		known := slices.Clone(steerColumns)
		for _, t := range s.termNames() {
			known = append(known, runlog.Column{Name: t})
		}
		free := s.control != nil || s.reward != nil && strings.HasSuffix(s.conf.Reward, ".star")
		l, err := runlog.New(log, known, runlog.Choice{Columns: s.c.String("columns"), Sort: s.c.String("sort"), Free: free})
		if err != nil {
			return f, badUse("log", err)
		}
		f.log = l
	}
	for _, name := range append([]string{f.trace}, slices.Collect(maps.Values(f.plots))...) {
		if name == "" || output.Kind(s.path) == "folder" && strings.HasPrefix(name, s.path) {
			continue
		}
		if err := output.Check(name); err != nil {
			return f, err
		}
	}
	if output.Kind(s.path) != "folder" {
		return f, output.Check(f.weights)
	}
	return f, nil
}

// keepsPictures tells that every check's pictures are kept.
func (s *steering) keepsPictures() bool {
	return s.c.String("trace") != "" || strings.Contains(s.c.String("plot"), "genealogy") || output.Kind(s.path) == "folder"
}

// enough refuses a run that keeps more than the machine has.
func (s *steering) enough() error {
	dim := 1.0
	for _, d := range s.info.Shape {
		dim *= float64(d)
	}
	k, g := float64(s.conf.Particles), float64(len(s.groups))
	need := g * k * 120 * float64(s.points)
	if s.c.String("trace") != "" {
		need += 8 * g * k * dim * float64(s.points)
	} else if s.keepsPictures() {
		need += 8 * k * dim * float64(s.points) * float64(s.plan.Batch())
	}
	if err := enoughMemory(need, "--trace and the record of the run"); err != nil {
		return &hint{err, "take fewer particles or checks (--check-every N)"}
	}
	return s.memory()
}

// termNames are the columns of the reward's terms.
func (s *steering) termNames() []string {
	if s.reward == nil {
		return nil
	}
	return s.reward.Terms()
}

// extra are the arrays of a .npz output beside the samples.
func (s *steering) extra(all []outcome) []npz.Array {
	var particle []int64
	var lw, r []float64
	for _, o := range all {
		for _, j := range o.Chosen {
			particle = append(particle, int64(j))
			v := 0.0
			if s.conf.Keep == "weighted" {
				v = o.LogWeights[j]
			}
			lw = append(lw, v)
			if o.Rewards != nil {
				r = append(r, o.Rewards[j])
			}
		}
	}
	n := []int{len(particle)}
	out := []npz.Array{{Name: "particles", Shape: n, Data: particle}}
	if s.conf.Keep == "weighted" {
		out = append(out, npz.Array{Name: "log_weights", Shape: n, Data: lw})
	}
	if len(r) == len(particle) {
		out = append(out, npz.Array{Name: "rewards", Shape: n, Data: r})
	}
	return out
}

// write stores weights, log, trace and plots.
func (s *steering) write(f steerFiles, all []outcome) error {
	if err := s.writeWeights(f.weights, all); err != nil {
		return err
	}
	if f.log != nil {
		for i := range all {
			o := &all[i]
			whole := map[string]any{"seed": o.Seed, "set": o.Set, "class": o.Class}
			if o.Rewards != nil {
				k := best(*o, *s.conf.Lambda, s.conf.Method)
				whole["winner"], whole["final_reward"] = k, o.Rewards[k]
			}
			f.log.Put(i, runlog.Whole, whole)
			for k := range o.Log {
				f.log.Put(i, k, s.row(o, k))
			}
		}
		if err := f.log.Close(); err != nil {
			return err
		}
	}
	if f.trace != "" {
		if err := s.writeTrace(f.trace, all); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.plots)) {
		if err := s.plot(name, f.plots[name], all); err != nil {
			return fmt.Errorf("--plot %s: %w", name, err)
		}
	}
	return nil
}

// table lays values of (group, check) out, and of (group, check, particle).
type table struct {
	groups, checks, parts int
	all                   []outcome
}

func (s *steering) table(all []outcome) table {
	t := table{groups: len(all), parts: s.width(), all: all}
	for _, o := range all {
		t.checks = max(t.checks, len(o.Log))
	}
	return t
}

// each makes an array (groups, checks): NaN where a group ended early.
func (t table) each(name string, f func(c *record) float64) npz.Array {
	out := make([]float64, 0, t.groups*t.checks)
	for _, o := range t.all {
		for i := range t.checks {
			v := math.NaN()
			if i < len(o.Log) {
				v = f(&o.Log[i])
			}
			out = append(out, v)
		}
	}
	return npz.Array{Name: name, Shape: []int{t.groups, t.checks}, Data: out}
}

// every makes an array (groups, checks, particles).
func (t table) every(name string, f func(c *record) []float64) npz.Array {
	out := make([]float64, 0, t.groups*t.checks*t.parts)
	for _, o := range t.all {
		for i := range t.checks {
			var v []float64
			if i < len(o.Log) {
				v = f(&o.Log[i])
			}
			if v == nil {
				v = slices.Repeat([]float64{math.NaN()}, t.parts)
			}
			out = append(out, v...)
		}
	}
	return npz.Array{Name: name, Shape: []int{t.groups, t.checks, t.parts}, Data: out}
}

// ancestors makes the array (groups, checks, particles) of the particle that each goes on from.
func (t table) ancestors() npz.Array {
	out := make([]int64, 0, t.groups*t.checks*t.parts)
	for _, o := range t.all {
		for i := range t.checks {
			for j := range t.parts {
				a := j
				if i < len(o.Log) {
					a = o.Log[i].Parents[j]
				}
				out = append(out, int64(a))
			}
		}
	}
	return npz.Array{Name: "ancestors", Shape: []int{t.groups, t.checks, t.parts}, Data: out}
}

func perGroup(name string, all []outcome, f func(o *outcome) float64) npz.Array {
	out := make([]float64, len(all))
	for i := range all {
		out[i] = f(&all[i])
	}
	return npz.Array{Name: name, Shape: []int{len(all)}, Data: out}
}

// common are the arrays that weights.npz and a trace share.
func (s *steering) common(all []outcome) []npz.Array {
	t := s.table(all)
	g, k := len(all), s.plan.Particles
	var seeds, classes, roots []int64
	var lw, rewards []float64
	for _, o := range all {
		seeds, classes = append(seeds, int64(o.Seed)), append(classes, int64(o.Class))
		for _, r := range o.Roots {
			roots = append(roots, int64(r))
		}
		lw = append(lw, o.LogWeights...)
		if o.Rewards != nil {
			rewards = append(rewards, o.Rewards...)
		}
	}
	out := []npz.Array{
		{Name: "seeds", Shape: []int{g}, Data: seeds}, {Name: "classes", Shape: []int{g}, Data: classes},
		{Name: "log_weights", Shape: []int{g, k}, Data: lw}, {Name: "roots", Shape: []int{g, k}, Data: roots},
		perGroup("log_z", all, func(o *outcome) float64 { return o.LogZ }), perGroup("log_z_var", all, func(o *outcome) float64 { return o.Variance }),
		perGroup("ess", all, func(o *outcome) float64 { return o.ESS }), perGroup("diversity", all, func(o *outcome) float64 { return o.Diversity }),
	}
	if len(rewards) == g*k {
		out = append(out, npz.Array{Name: "rewards", Shape: []int{g, k}, Data: rewards})
	}
	if t.checks > 0 {
		out = append(out, t.ancestors(),
			t.each("step", func(c *record) float64 { return float64(c.Step) }), t.each("sigma", func(c *record) float64 { return c.Sigma }),
			t.each("lambda", func(c *record) float64 { return c.Lambda }),
			t.each("ess_trace", func(c *record) float64 { return c.ESS[0] }), t.each("log_z_trace", func(c *record) float64 { return c.LogZ[0] }),
			t.each("roots_trace", func(c *record) float64 { return float64(c.Roots[0]) }))
	}
	return out
}

func (s *steering) writeWeights(name string, all []outcome) error {
	return npz.Write(name, s.common(all)...)
}

// writeTrace stores everything that is known of every check.
func (s *steering) writeTrace(name string, all []outcome) error {
	t := s.table(all)
	arrays := s.common(all)
	if t.checks > 0 {
		arrays = append(arrays,
			t.every("reward_trace", func(c *record) []float64 { return c.Rewards }), t.every("before", func(c *record) []float64 { return c.Before }), t.every("after", func(c *record) []float64 { return c.After }),
			t.each("nfe", func(c *record) float64 { return c.NFE }), t.each("progress", func(c *record) float64 { return c.Progress }), t.each("resampled", func(c *record) float64 { return float64(c.Resampled[0]) }))
		for i, term := range s.termNames() {
			arrays = append(arrays, t.every("term "+term, func(c *record) []float64 {
				if c.Terms == nil {
					return nil
				}
				out := make([]float64, len(c.Terms))
				for k := range out {
					out[k] = c.Terms[k][i]
				}
				return out
			}))
		}
		w := 1
		for _, d := range s.seen() {
			w *= d
		}
		x0 := make([]float32, t.groups*t.checks*t.parts*w)
		for g, o := range all {
			for i, c := range o.Log {
				copy(x0[(g*t.checks+i)*t.parts*w:], c.X0)
			}
		}
		arrays = append(arrays, npz.Array{Name: "x0", Shape: append([]int{t.groups, t.checks, t.parts}, s.seen()...), Data: x0})
	}
	return npz.Write(name, arrays...)
}

// row is one line of the log.
func (s *steering) row(o *outcome, i int) map[string]any {
	c := &o.Log[i]
	row := map[string]any{"check": i, "step": c.Step, "t": c.T, "sigma": c.Sigma, "progress": c.Progress, "lambda": c.Lambda,
		"nfe": c.NFE, "ess": c.ESS[0], "roots": c.Roots[0], "resampled": c.Resampled[0], "log_z": c.LogZ[0], "log_z_var": c.Variance[0], "diversity": c.Diversity[0]}
	if !math.IsNaN(c.CFG) {
		row["cfg_scale"] = c.CFG
	}
	if c.Rewards != nil {
		mean, std := moments(c.Rewards)
		row["reward_mean"], row["reward_std"], row["reward_max"], row["reward_weighted"] = mean, std, slices.Max(c.Rewards), weightedMean(c.Rewards, c.Before)
	}
	for k, name := range s.termNames() {
		sum := 0.0
		for _, t := range c.Terms {
			sum += t[k] / float64(len(c.Terms))
		}
		if c.Terms != nil {
			row[name] = sum
		}
	}
	for name, v := range c.Columns {
		row[name], _ = moments(v)
	}
	return row
}

// plot draws one picture of the run.
func (s *steering) plot(name, path string, all []outcome) error {
	draw := func(w io.Writer) error {
		switch name {
		case "genealogy":
			return genealogy.Animate(w, s.family(&all[0]))
		case "ancestry":
			return encodePNG(w, genealogy.Draw(s.family(&all[0])))
		}
		return s.curves(w, name, all)
	}
	return output.Write(path, draw)
}

// family is the genealogy of a group.
func (s *steering) family(o *outcome) genealogy.Family {
	f := genealogy.Family{Particles: s.width(), Title: fmt.Sprintf("seed %d", o.Seed)}
	if pixels.Picture(s.seen()) && slices.Equal(s.seen(), s.info.Image()) {
		f.Shape = s.seen()
	}
	for i := range o.Log {
		c := &o.Log[i]
		f.Checks = append(f.Checks, genealogy.Check{Step: c.Step, Parents: c.Parents, LogWeights: c.Before, Rewards: c.Rewards, X0: c.X0, ESS: c.ESS[0]})
	}
	return f
}

// tell sums up the run.
func (s *steering) tell(ctx context.Context, all []outcome, stats samplers.Stats, made int, wall time.Duration) {
	var nfe, ess, roots []float64
	var winner, mean []float64
	for i := range all {
		o := &all[i]
		nfe, ess = append(nfe, o.NFE), append(ess, o.ESS)
		seen := map[int]bool{}
		for _, r := range o.Roots {
			seen[r] = true
		}
		roots = append(roots, float64(len(seen)))
		if o.Rewards != nil {
			winner = append(winner, o.Rewards[best(*o, *s.conf.Lambda, s.conf.Method)])
			mean = append(mean, weightedMean(o.Rewards, o.LogWeights))
		}
	}
	pm := func(v []float64) string {
		m, sd := moments(v)
		if len(v) < 2 {
			return strconv.FormatFloat(m, 'g', 5, 64)
		}
		return fmt.Sprintf("%.5g ± %.2g", m, sd/math.Sqrt(float64(len(v)-1)))
	}
	report := s.c.String("report")
	summary := map[string]any{"event": "done", "out": s.path, "groups": len(all), "made": made, "method": s.conf.Method, "particles": s.conf.Particles, "nfe": stats.NFE, "vjps": stats.VJPs,
		"seconds": wall.Seconds(), "model_seconds": stats.Model.Seconds(), "hash": s.desc.Hash()}
	what := "groups"
	if len(all) == 1 {
		what = "group"
	}
	meanNFE, _ := moments(nfe)
	s.say("drift: %d %s of %d particles by %s on %s, %d steps (%.4g evaluations per particle) in %v: %s", len(all), what, s.conf.Particles, s.conf.Method, s.desc.Sampler, s.steps(), meanNFE, wall.Round(time.Millisecond), s.path)
	if winner != nil {
		if strings.Contains(report, "winner") {
			m, _ := moments(winner)
			summary["reward_winner"] = finite(m)
			s.say("drift: reward of the winners %s", pm(winner))
		}
		if strings.Contains(report, "all") {
			m, _ := moments(mean)
			summary["reward_all"] = finite(m)
			s.say("drift: reward of all particles by weight %s", pm(mean))
		}
	}
	if s.plan.Particles > 1 {
		var z []float64
		for _, o := range all {
			z = append(z, o.LogZ)
		}
		m, _ := moments(z)
		summary["log_z"] = finite(m)
		e, _ := moments(ess)
		r, _ := moments(roots)
		summary["ess"], summary["roots"] = e, r
		s.say("drift: log Z %s; effective sample size %.4g of %d, %.3g roots", pm(z), e, s.plan.Particles, r)
		for _, o := range all {
			if n := collapsed(&o); n >= 20 {
				s.warn("group of seed %d: the effective sample size was below 1.5 for %d checks: lower lambda or take more particles", o.Seed, n)
				break
			}
		}
	}
	s.exact(ctx, all, summary)
	if s.json {
		s.emit(summary)
	}
}

// collapsed is the longest row of checks at which one particle had all the weight.
func collapsed(o *outcome) int {
	most, now := 0, 0
	for i := range o.Log {
		if now++; o.Log[i].ESS[0] >= 1.5 {
			now = 0
		}
		most = max(most, now)
	}
	return most
}
