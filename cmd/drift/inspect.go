package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/urfave/cli/v2"

	"drift/cmd/drift/internal/output"
	"drift/cmd/drift/internal/preview"
	"drift/internal/npz"
	"drift/internal/pixels"
	"drift/internal/refuse"
	"drift/smc"
)

func inspectVerb(a *app) *cli.Command {
	return &cli.Command{
		Name: "inspect", Usage: "what happened to one particle of a steered run", UsageText: "TRACE.npz [--step K] [--particle J] [--seed S]",
		Description: "Reads a file that drift steer --trace wrote: the lineage of a particle up to a step, what its estimate looked like, its reward with its terms, and its weight before and after resampling.",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "step", Usage: "step, counted as steps made (`K`); default: the last check"},
			&cli.IntFlag{Name: "particle", Usage: "slot before that step's resampling (`J`); default: the one of the largest weight"},
			&cli.Uint64Flag{Name: "seed", Usage: "group (`S`); default: the first"},
			&cli.StringFlag{Name: "out", Usage: "write the estimate as a picture (`FILE.png`)"},
		},
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "a trace")
			if err != nil {
				return err
			}
			return a.inspect(c.Context, c, name)
		},
	}
}

// traced is a trace that was read.
type traced struct {
	name  string
	all   map[string]*npz.Array
	shape []int // groups, checks, particles
}

func (t *traced) floats(member string) ([]float64, error) {
	a := t.all[member]
	if a == nil {
		return nil, refuse.Errorf(t.name, "no array %q: not a trace of drift steer", member)
	}
	v, err := a.Float64()
	if err != nil {
		return nil, refuse.Errorf(t.name, "%s: %v", member, err)
	}
	want := 1
	for _, n := range t.shape[:len(a.Shape)] {
		want *= n
	}
	if len(a.Shape) > 3 || len(v) != want || !slices.Equal(a.Shape, t.shape[:len(a.Shape)]) {
		return nil, refuse.Errorf(t.name, "%s has shape %v, want %v", member, a.Shape, t.shape)
	}
	return v, nil
}

func readTrace(name string) (*traced, error) {
	all, err := npz.ReadAll(name)
	if err != nil {
		return nil, err
	}
	t := &traced{name: name, all: all}
	a := all["ancestors"]
	if a == nil || len(a.Shape) != 3 || slices.Min(a.Shape) < 1 {
		return nil, refuse.Errorf(name, "no array ancestors (groups, checks, particles): not a trace of drift steer")
	}
	t.shape = a.Shape
	v, err := a.Int64()
	if err != nil {
		return nil, refuse.Errorf(name, "ancestors: %v", err)
	}
	for _, k := range v {
		if k < 0 || k >= int64(a.Shape[2]) {
			return nil, refuse.Errorf(name, "ancestor %d of %d particles", k, a.Shape[2])
		}
	}
	return t, nil
}

func (a *app) inspect(_ context.Context, c *cli.Context, name string) error {
	t, err := readTrace(name)
	if err != nil {
		return err
	}
	read := func(member string) []float64 {
		if err != nil {
			return nil
		}
		var v []float64
		v, err = t.floats(member)
		return v
	}
	steps, sigmas, lambdas, esses, logZ, roots := read("step"), read("sigma"), read("lambda"), read("ess_trace"), read("log_z_trace"), read("roots_trace")
	before, after, rewards := read("before"), read("after"), read("reward_trace")
	seeds := t.all["seeds"]
	if err != nil {
		return err
	}
	if seeds == nil || seeds.Len() != t.shape[0] {
		return refuse.Errorf(name, "no array seeds")
	}
	ids, err := seeds.Int64()
	if err != nil {
		return refuse.Errorf(name, "seeds: %v", err)
	}
	anc, _ := t.all["ancestors"].Int64()
	g := 0
	if c.IsSet("seed") {
		if g = slices.Index(ids, int64(c.Uint64("seed"))); g < 0 {
			return usagef("--seed %d: the trace has %v", c.Uint64("seed"), ids)
		}
	}
	checks, k := t.shape[1], t.shape[2]
	row := func(i int) int { return g*checks + i }
	made := 0
	for made < checks && !math.IsNaN(steps[row(made)]) {
		made++
	}
	if made == 0 {
		return refuse.Errorf(name, "group of seed %d has no checks", ids[g])
	}
	at := made - 1
	if c.IsSet("step") {
		want := float64(c.Int("step"))
		at = -1
		var have []string
		for i := range made {
			if steps[row(i)] == want {
				at = i
			}
			have = append(have, fmt.Sprint(steps[row(i)]))
		}
		if at < 0 {
			return usagef("--step %d: no check follows it; checked are %s", c.Int("step"), strings.Join(have, ", "))
		}
	}
	j := 0
	lw := before[row(at)*k : (row(at)+1)*k]
	if c.IsSet("particle") {
		if j = c.Int("particle"); j < 0 || j >= k {
			return usagef("--particle %d: want 0 to %d", j, k-1)
		}
	} else {
		for i, v := range lw {
			if v > lw[j] {
				j = i
			}
		}
	}
	w, werr := smc.Weigh(lw)
	share := math.NaN()
	if werr == nil {
		share = w.W[j]
	}
	lineage := make([]int, at+1) // slot at every check
	lineage[at] = j
	for i := at - 1; i >= 0; i-- {
		lineage[i] = int(anc[row(i)*k+lineage[i+1]])
	}
	var children []int
	for i := range k {
		if int(anc[row(at)*k+i]) == j {
			children = append(children, i)
		}
	}
	var terms []string
	for m := range t.all {
		if strings.HasPrefix(m, "term ") {
			terms = append(terms, m)
		}
	}
	sort.Strings(terms)
	type term struct {
		Name  string `json:"name"`
		Value any    `json:"value"`
	}
	type moment struct {
		Step     int `json:"step"`
		Particle int `json:"particle"`
		Reward   any `json:"reward"`
		LW       any `json:"log_weight"`
	}
	out := struct {
		Event     string   `json:"event"`
		Seed      int64    `json:"seed"`
		Step      int      `json:"step"`
		Particle  int      `json:"particle"`
		Sigma     any      `json:"sigma"`
		Lambda    any      `json:"lambda"`
		Reward    any      `json:"reward"`
		Terms     []term   `json:"terms,omitempty"`
		Before    any      `json:"log_weight_before"`
		After     any      `json:"log_weight_after"`
		Weight    any      `json:"weight"`
		ESS       any      `json:"ess"`
		LogZ      any      `json:"log_z"`
		Roots     any      `json:"roots"`
		Root      int      `json:"root"`
		Offspring []int    `json:"offspring"`
		Lineage   []moment `json:"lineage"`
		X0        []any    `json:"x0,omitempty"`
	}{Event: "particle", Seed: ids[g], Step: int(steps[row(at)]), Particle: j, Sigma: finite(sigmas[row(at)]), Lambda: finite(lambdas[row(at)]), Reward: finite(rewards[row(at)*k+j]),
		Before: finite(lw[j]), After: finite(after[row(at)*k+j]), Weight: finite(share), ESS: finite(esses[row(at)]), LogZ: finite(logZ[row(at)]), Roots: finite(roots[row(at)]), Root: lineage[0], Offspring: children}
	for _, m := range terms {
		v, err := t.floats(m)
		if err != nil {
			return err
		}
		out.Terms = append(out.Terms, term{strings.TrimPrefix(m, "term "), finite(v[row(at)*k+j])})
	}
	for i, p := range lineage {
		out.Lineage = append(out.Lineage, moment{int(steps[row(i)]), p, finite(rewards[row(i)*k+p]), finite(before[row(i)*k+p])})
	}
	x0, shape, err := t.estimate(row(at)*k + j)
	if err != nil {
		return err
	}
	if len(x0) <= 16 {
		for _, v := range x0 {
			out.X0 = append(out.X0, finite(v))
		}
	}
	if file := c.String("out"); file != "" {
		if !pixels.Picture(shape) || !strings.EqualFold(filepath.Ext(file), ".png") {
			return usagef("--out %s: want a name that ends in .png, and a trace of pictures (this one has arrays of shape %v)", file, shape)
		}
		b := make([]byte, len(x0))
		pixels.Bytes(b, x0, shape, pixels.Floor)
		m := pixels.Image(b, shape)
		if err := output.Write(file, func(w io.Writer) error { return encodePNG(w, m) }); err != nil {
			return err
		}
	}
	if a.json {
		a.emit(out)
		return nil
	}
	fmt.Fprintf(a.out, "group        seed %d, %d particles\nstep         %d (check %d of %d), sigma %.4g, lambda %.4g\nparticle     %d\nreward       %v\n", ids[g], k, out.Step, at+1, made, sigmas[row(at)], lambdas[row(at)], j, out.Reward)
	for _, m := range out.Terms {
		fmt.Fprintf(a.out, "  term       %v  %s\n", m.Value, m.Name)
	}
	fmt.Fprintf(a.out, "log weight   %v before resampling, of slot %d after it %v; weight %.4g of 1\noffspring    %v\n", out.Before, j, out.After, share, children)
	fmt.Fprintf(a.out, "group        ESS %.4g, roots %v, log Z %v\n", esses[row(at)], out.Roots, out.LogZ)
	fmt.Fprintf(a.out, "lineage      root %d\n  %6s %9s %14s %14s\n", lineage[0], "step", "particle", "reward", "log weight")
	for _, m := range out.Lineage {
		fmt.Fprintf(a.out, "  %6d %9d %14v %14v\n", m.Step, m.Particle, m.Reward, m.LW)
	}
	switch {
	case out.X0 != nil:
		fmt.Fprintf(a.out, "x0           %v\n", out.X0)
	case len(x0) > 0:
		mean, std := moments(x0)
		fmt.Fprintf(a.out, "x0           shape %v, mean %.4g, spread %.4g\n", shape, mean, std)
		if pixels.Picture(shape) {
			b := make([]byte, len(x0))
			pixels.Bytes(b, x0, shape, pixels.Floor)
			return preview.Draw(a.out, pixels.Image(b, shape), "ascii", a.columns())
		}
	}
	return nil
}

// estimate is one particle's estimate, and its shape.
func (t *traced) estimate(i int) ([]float64, []int, error) {
	a := t.all["x0"]
	if a == nil {
		return nil, nil, nil
	}
	if len(a.Shape) < 4 || !slices.Equal(a.Shape[:3], t.shape) {
		return nil, nil, refuse.Errorf(t.name, "x0 has shape %v", a.Shape)
	}
	v, err := a.Float64()
	if err != nil {
		return nil, nil, refuse.Errorf(t.name, "x0: %v", err)
	}
	shape := a.Shape[3:]
	w := 1
	for _, n := range shape {
		w *= n
	}
	return v[i*w : (i+1)*w], shape, nil
}
