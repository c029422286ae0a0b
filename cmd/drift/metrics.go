package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"gonum.org/v1/gonum/mat"

	"drift/cmd/drift/internal/bench"
	"drift/cmd/drift/internal/output"
	"drift/cmd/drift/internal/progress"
	"drift/internal/refuse"
	"drift/internal/spec"
	"drift/metrics"
	"drift/metrics/features"
	"drift/models/dna"
)

func metricsVerb(a *app) *cli.Command {
	verb := &cli.Command{
		Name: "metrics", Usage: "score sets of pictures: folders, arrays, statistics",
		UsageText: "SCORE A B [flags] | SCORE B --reference fashion | stats A --out REF.npz",
		Description: "A set is a folder of PNGs, a PNG, or a .npz with images (bytes N, H, W, C), features (N, D), or mu and sigma. A is the reference where the score is not symmetric. " +
			"Every score is printed with the extractor's hash, the resize rule and the numbers of samples; sets of different extractors are refused.",
	}
	for _, s := range bench.Scorers() {
		verb.Subcommands = append(verb.Subcommands, a.scoreVerb(s))
	}
	for _, p := range pairScores {
		verb.Subcommands = append(verb.Subcommands, &cli.Command{
			Name: p.name, Usage: p.doc, UsageText: "A B [flags]",
			Description: "Pictures are paired by name in folders, by place in arrays. The value is the mean over pairs.",
			Flags:       []cli.Flag{strictFlag()},
			Action:      a.stoppable(func(c *cli.Context) error { return a.pairs(c, p) }),
		})
	}
	verb.Subcommands = append(verb.Subcommands, &cli.Command{
		Name: "motifs", Usage: "motif statistics of DNA sequences: matches per kb, pairs at their distances, words", UsageText: "A B [flags]",
		Description: "The value is the mean over the motifs of |log2(B per kb/A per kb)|: 0 is as often as in the reference A. Sets are .fasta files, .npz files with tokens, or the names dna (the grammar's sequences of all classes) and dna:CLASS.",
		Action:      a.stoppable(a.motifs),
	})
	verb.Subcommands = append(verb.Subcommands, &cli.Command{
		Name: "stats", Usage: "make a statistics file: mu, sigma, n and the extractor's identity", UsageText: "A --out REF.npz [flags]",
		Flags: append([]cli.Flag{&cli.StringFlag{Name: "out", Usage: "`REF.npz` to write"}}, append(scaleFlags("pictures", 256), setFlags()...)...),
		Action: func(c *cli.Context) error {
			if c.IsSet("workers") { // which it stops itself
				return a.stats(c)
			}
			return a.stoppable(a.stats)(c)
		},
	})
	return verb
}

func strictFlag() cli.Flag {
	return &cli.BoolFlag{Name: "strict", Usage: "fail on a file that cannot be read; else it is named, counted and left out"}
}

func setFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "extractor", Usage: "what turns pictures into features: " + strings.Join(features.Names(), ", ") + ", inception:FILE or FILE.onnx (`NAME`); fashion, for sequences dna"},
		&cli.StringFlag{Name: "resize", Usage: "bring pictures of another size to the extractor's by `RULE` " + metrics.ResizePIL + ", " + metrics.ResizeTF1 + " or " + metrics.ResizeTorch + "; without it they are refused"},
		&cli.StringFlag{Name: "tier", Usage: "kernel `TIER` (default: the best this CPU has)"},
		strictFlag(),
	}
}

func (a *app) scoreVerb(s bench.Scorer) *cli.Command {
	flags := setFlags()
	text := "B [flags]"
	if s.NeedsReference() {
		text = "A B [flags]"
		flags = append(flags,
			&cli.StringFlag{Name: "reference", Usage: "set to compare with in place of A: fashion (embedded), dna or dna:CLASS (2,000 sequences of the grammar), a folder or `REF.npz`"},
			&cli.BoolFlag{Name: "force", Usage: "compare although the extractors differ"})
	}
	seed := &cli.UintFlag{Name: "seed", Value: bench.DefaultSeed, Usage: "of the random choices (`N`)"}
	switch s.Name {
	case "kid":
		flags = append(flags, seed, &cli.IntFlag{Name: "subsets", Usage: "`N`umber of subsets (100)"}, &cli.IntFlag{Name: "subset-size", Usage: "rows of a subset (the smallest of 1000 and the sets) (`N`)"})
	case "prdc":
		flags = append(flags, &cli.IntFlag{Name: "k", Usage: "neighbours (3) (`K`)"})
	case "is":
		flags = append(flags, seed, &cli.IntFlag{Name: "splits", Usage: "`N`umber of splits (10)"})
	case "swd", "mind":
		flags = append(flags, seed, &cli.IntFlag{Name: "directions", Usage: "`N`umber of directions (1000)"})
	case "vendi":
		flags = append(flags, &cli.Float64Flag{Name: "order", Usage: "of the score (1) (`Q`)"})
	}
	return &cli.Command{Name: s.Name, Usage: s.Doc, UsageText: text, Flags: flags, Action: a.stoppable(func(c *cli.Context) error { return a.score(c, s) })}
}

// score prints one score.
func (a *app) score(c *cli.Context, s bench.Scorer) error {
	args := c.Args().Slice()
	ref := c.String("reference")
	switch want := 1; {
	case s.NeedsReference() && !c.IsSet("reference"):
		if want = 2; len(args) != want {
			return usagef("metrics %s: want two sets, A (the reference) and B; or one and --reference", s.Name)
		}
		ref, args = args[0], args[1:]
	case len(args) != want:
		return usagef("metrics %s: want one set", s.Name)
	}
	o := bench.Options{Seed: bench.DefaultSeed, Force: c.Bool("force")}
	if c.IsSet("seed") {
		o.Seed = uint32(c.Uint("seed"))
	}
	for flag, into := range map[string]*int{"subsets": &o.Subsets, "subset-size": &o.Size, "k": &o.K, "splits": &o.Splits, "directions": &o.Directions} {
		if c.IsSet(flag) {
			if *into = c.Int(flag); *into < 1 {
				return usagef("--%s %d: want 1 or more", flag, *into)
			}
		}
	}
	if c.Uint("seed") > math.MaxUint32 {
		return usagef("--seed %d: want less than 2^32", c.Uint("seed"))
	}
	if o.Q = c.Float64("order"); math.IsNaN(o.Q) || o.Q < 0 || o.Q == 0 && c.IsSet("order") {
		return usagef("--order %g: want more than 0", o.Q)
	}
	gen, err := openSet(args[0], 0, 0)
	if err != nil {
		return err
	}
	ex, err := a.openExtractor(extractorFor(c, gen), c.String("resize"), c.String("tier"))
	if err != nil {
		return err
	}
	defer ex.Close()
	sets := []*features.Set{gen}
	var base bench.Reference
	switch {
	case !s.NeedsReference():
	case ref == "fashion":
		if base, err = fashionReference(ex); err != nil {
			return err
		}
	default:
		set, err := openSet(ref, gen.Length(), 1)
		if err != nil {
			return err
		}
		sets = append(sets, set)
		base = bench.ReferenceOf(set, ex, c.Bool("strict"))
	}
	bar := a.start("drift metrics " + s.Name)
	watch(bar, sets...)
	result, err := s.Compute(c.Context, base, bench.SetSide(gen, ex, c.Bool("strict")), o)
	bar.Close()
	a.bar = nil
	if err != nil {
		return scoreError(err)
	}
	a.printScore(result, sets)
	return nil
}

// watch shows how many pictures of the sets are through.
func watch(bar *progress.Meter, sets ...*features.Set) {
	total, done := 0, make([]int, len(sets))
	for _, s := range sets {
		if s.Kind == features.Pictures {
			total += s.N
		}
	}
	for i, s := range sets {
		s.Observe = func(n int) {
			done[i] = n
			sum := 0
			for _, n := range done {
				sum += n
			}
			bar.Set(float64(sum)/float64(total), fmt.Sprintf("%d/%d samples", sum, total))
		}
	}
}

// extractorFor is the extractor that was asked for, or the one that suits the set.
func extractorFor(c *cli.Context, set *features.Set) string {
	switch {
	case c.IsSet("extractor"):
		return c.String("extractor")
	case set.Length() > 0:
		return "dna"
	}
	return "fashion"
}

// grammarSequences is how many sequences stand for the grammar.
const grammarSequences = 2000

// openSet opens a set of files, or sequences of the grammar by the name dna or dna:CLASS: of that length (0: the model's
// own). The streams of side 0 and 1 are apart.
func openSet(name string, length int, side uint64) (*features.Set, error) {
	class, of := "", name == "dna"
	if !of {
		class, of = strings.CutPrefix(name, "dna:")
	}
	if !of || exists(name) {
		return features.OpenSet(name)
	}
	if length == 0 {
		length = dna.Length
	}
	k := -1
	if class != "" {
		if k = slices.Index(dna.Names(), class); k < 0 {
			return nil, usagef("%s: no class %q of the DNA grammar%s", name, class, spec.Suggest(class, dna.Names()))
		}
	}
	return features.Grammar(grammarSequences, length, k, 0xd4a+side), nil
}

// motifs prints the motif statistics of two sets of sequences.
func (a *app) motifs(c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef("metrics motifs: want two sets of sequences, A (the reference) and B")
	}
	gen, err := openSet(c.Args().Get(1), 0, 0)
	if err != nil {
		return err
	}
	ref, err := openSet(c.Args().Get(0), gen.Length(), 1)
	if err != nil {
		return err
	}
	sides := make([][][]int, 2)
	for i, s := range []*features.Set{ref, gen} {
		if sides[i], err = s.Tokens(); err != nil {
			return err
		}
	}
	r, err := metrics.CompareSequences(sides[0], sides[1])
	if err != nil {
		return err
	}
	a.printScore(bench.Score{Metric: r.Metric, Value: r.Value, N: []int{r.NRef, r.N}, Reference: ref.Name, Settings: r.Settings, Parts: r.Parts, Extractor: "motifs", Resize: "none"}, []*features.Set{ref, gen})
	return nil
}

// scoreError sorts the errors of scores. Files of numbers that are not finite are refused before.
func scoreError(err error) error {
	switch {
	case errors.Is(err, metrics.ErrIdentity):
		return &hint{err, "make both sets with one extractor and resize rule; --force compares anyway"}
	case errors.Is(err, metrics.ErrNaN):
		return &hint{&bench.NotFinite{Err: err}, "numbers so large that their squares overflow, or an extractor whose answers are not finite"}
	}
	return err
}

// printScore writes a score with all that is needed to read it.
func (a *app) printScore(s bench.Score, sets []*features.Set) {
	var missing []string
	for _, set := range sets {
		missing = append(missing, set.Unreadable...)
	}
	if a.json {
		a.emit(struct {
			bench.Score
			Value      any      `json:"value"` // a number, or "inf"
			Unreadable []string `json:"unreadable,omitempty"`
		}{s, finite(s.Value), missing})
	} else {
		fmt.Fprintf(a.out, "%s %.8g", s.Metric, s.Value)
		if s.StdErr > 0 {
			fmt.Fprintf(a.out, " ± %.2g", s.StdErr)
		}
		fmt.Fprintln(a.out)
		for _, k := range sortedKeys(s.Parts) {
			fmt.Fprintf(a.out, "  %s %.8g", k, s.Parts[k])
			if e := s.PartErr[k]; e > 0 {
				fmt.Fprintf(a.out, " ± %.2g", e)
			}
			fmt.Fprintln(a.out)
		}
		fmt.Fprintf(a.out, "  %s\n", strings.TrimPrefix(s.About(), s.Metric+": "))
	}
	for _, w := range s.Warnings {
		fmt.Fprintf(a.err, "drift: warning: %s\n", w)
	}
	if len(missing) > 0 {
		fmt.Fprintf(a.err, "drift: warning: %d files cannot be read and are left out: %s%s\n", len(missing), strings.Join(missing[:min(10, len(missing))], ", "), map[bool]string{true: ", ..."}[len(missing) > 10])
	}
}

func sortedKeys(m map[string]float64) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// stats writes a statistics file.
func (a *app) stats(c *cli.Context) error {
	name, err := oneArg(c, "one set")
	if err != nil {
		return err
	}
	out := c.String("out")
	if output.Kind(out) != "npz" {
		return usagef("--out: want a name that ends in .npz")
	}
	if sameFile(out, name) {
		return usagef("%s is the input: it would be overwritten", out)
	}
	set, err := features.OpenSet(name)
	if err != nil {
		return err
	}
	if set.Kind == features.Statistics {
		return usagef("%s is a statistics file already", name)
	}
	if err := output.Check(out); err != nil {
		return err
	}
	ex, err := a.openExtractor(extractorFor(c, set), c.String("resize"), c.String("tier"))
	if err != nil {
		return err
	}
	defer ex.Close()
	var st metrics.Stats
	if a.wantsCrew(c) && set.Kind == features.Pictures {
		st, err = a.statsShards(c, set, ex)
	} else {
		bar := a.start("drift metrics stats")
		watch(bar, set)
		st, err = set.Stats(c.Context, ex, c.Bool("strict"))
		bar.Close()
		a.bar = nil
	}
	if err != nil {
		return scoreError(err)
	}
	if v := mat.Sum(st.Cov); v-v != 0 {
		return &bench.NotFinite{Err: fmt.Errorf("%s: the covariance is not finite", name)}
	}
	if err := features.WriteStats(out, st); err != nil {
		return err
	}
	if n := len(set.Unreadable); n > 0 {
		a.warn("%d files cannot be read and are left out: %s", n, strings.Join(set.Unreadable[:min(10, n)], ", "))
	}
	if a.json {
		a.emit(map[string]any{"event": "file", "path": out, "n": st.N, "d": len(st.Mean), "extractor": st.ID.Extractor, "resize": st.ID.Resize})
	}
	a.say("drift: statistics of %d samples, %s: %s", st.N, st.ID.With(st.N), out)
	return nil
}

// pairScore compares two pictures.
type pairScore struct {
	name, doc, settings string
	compare             func(a, b metrics.Image[uint8]) (float64, error)
}

var pairScores = []pairScore{
	{"psnr", "peak signal-to-noise ratio of pairs of pictures, in dB", "peak=255", func(a, b metrics.Image[uint8]) (float64, error) { return metrics.PSNR(a, b, 255) }},
	{"ssim", "structural similarity of pairs of pictures", "gaussian 11x11 sigma=1.5 peak=255", func(a, b metrics.Image[uint8]) (float64, error) { return metrics.SSIM(a, b, 255) }},
	{"ms-ssim", "structural similarity at five scales; sides of 176 pixels at least", "gaussian 11x11 sigma=1.5 peak=255 scales=5", func(a, b metrics.Image[uint8]) (float64, error) { return metrics.MSSSIM(a, b, 255, nil) }},
}

// pairs prints the mean of a score over pairs.
func (a *app) pairs(c *cli.Context, p pairScore) error {
	if c.NArg() != 2 {
		return usagef("metrics %s: want two sets of pictures", p.name)
	}
	var sets []*features.Set
	for _, name := range c.Args().Slice() {
		s, err := features.OpenSet(name)
		if err != nil {
			return err
		}
		if s.Kind != features.Pictures {
			return refuse.Errorf(name, "has no pictures")
		}
		sets = append(sets, s)
	}
	x, y := sets[0].Names(), sets[1].Names()
	if len(x) != len(y) {
		return fmt.Errorf("%s has %d pictures and %s has %d: they cannot be paired", sets[0].Name, len(x), sets[1].Name, len(y))
	}
	out := bench.Score{Metric: p.name, Settings: p.settings, Resize: "none", Extractor: "pixels", Reference: sets[0].Name}
	sum, lo, hi, n := 0.0, math.Inf(1), math.Inf(-1), 0
	bar := a.start("drift metrics " + p.name)
	end := func() { bar.Close(); a.bar = nil }
	defer end()
	for i := range x {
		if err := c.Context.Err(); err != nil {
			return err
		}
		if x[i] != y[i] && len(x) > 1 {
			return fmt.Errorf("%s has %s where %s has %s: they cannot be paired", sets[0].Name, x[i], sets[1].Name, y[i])
		}
		v, err := comparePair(sets, i, p, c.Bool("strict"))
		bar.Set(float64(i+1)/float64(len(x)), fmt.Sprintf("%d/%d pairs", i+1, len(x)))
		if err != nil {
			return fmt.Errorf("%s of %s: %w", p.name, x[i], err)
		}
		if math.IsNaN(v) {
			continue // left out, and named in Unreadable
		}
		sum, lo, hi, n = sum+v, min(lo, v), max(hi, v), n+1
	}
	if n == 0 {
		return refuse.Errorf(sets[0].Name, "no pair can be read")
	}
	out.Value, out.N = sum/float64(n), []int{n, n}
	if !math.IsInf(hi, 0) {
		out.Parts = map[string]float64{"min": lo, "max": hi}
	}
	end()
	a.printScore(out, sets)
	return nil
}

// comparePair is NaN for a pair of which a picture does not read.
func comparePair(sets []*features.Set, i int, p pairScore, strict bool) (float64, error) {
	var pics [2]metrics.Image[uint8]
	for k, s := range sets {
		m, err := s.Picture(i)
		var bad *refuse.Error
		if errors.As(err, &bad) && !strict {
			s.Unreadable = append(s.Unreadable, bad.Path)
			return math.NaN(), nil
		}
		if err != nil {
			return 0, err
		}
		pics[k] = m
	}
	if pics[0].H != pics[1].H || pics[0].W != pics[1].W || pics[0].C != pics[1].C {
		return 0, fmt.Errorf("%dx%dx%d against %dx%dx%d", pics[0].W, pics[0].H, pics[0].C, pics[1].W, pics[1].H, pics[1].C)
	}
	return p.compare(pics[0], pics[1])
}

// metricEntries lists the scores.
func metricEntries(*app) []entry {
	var out []entry
	for _, s := range bench.Scorers() {
		out = append(out, entry{Name: s.Name, Summary: s.Doc})
	}
	for _, p := range pairScores {
		out = append(out, entry{Name: p.name, Summary: p.doc})
	}
	out = append(out, entry{Name: "motifs", Summary: "motif statistics of DNA sequences: matches per kb, pairs, words"})
	return out
}
