package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"drift/internal/spec"
	"drift/metrics"
	"drift/metrics/features"
)

// Side is one of the two sets that a score compares.
type Side struct {
	Name   string
	Digest string // short hash of a reference's numbers
	ID     metrics.Identity
	N      int
	Exact  bool // moments of a distribution itself, not of samples
	Stats  func(ctx context.Context) (metrics.Stats, error)
	Rows   func(ctx context.Context) (rows, logits metrics.Samples, err error)
	Class  func(i int) int // what row i should show; nil = unknown

	// Blocks are the moments of all rows, and those of blocks of them for a jackknife (nil where there are too few rows or
	// too many features). Nil where there are no rows.
	Blocks func(ctx context.Context) (all *metrics.Moments, parts []*metrics.Moments, err error)
}

// Reference is what samples are compared with: moments, and rows for the
// scores that need them. Either may be nil.
type Reference struct{ Moments, Rows *Side }

// SetSide is a set of files as a side.
func SetSide(s *features.Set, ex features.Extractor, strict bool) *Side {
	side := &Side{Name: s.Name, ID: s.ID, N: s.N}
	if s.Kind == features.Pictures {
		side.ID = ex.Identity()
	} else {
		side.Digest = s.Digest()
	}
	side.Stats = func(ctx context.Context) (metrics.Stats, error) {
		st, err := s.Stats(ctx, ex, strict)
		side.N = s.N
		return st, err
	}
	side.Rows = func(ctx context.Context) (metrics.Samples, metrics.Samples, error) {
		rows, logits, _, err := s.Rows(ctx, ex, strict)
		side.N = s.N
		return rows, logits, err
	}
	if s.Kind != features.Statistics {
		side.Blocks = func(ctx context.Context) (*metrics.Moments, []*metrics.Moments, error) {
			blocks := func(n, d int) int {
				if d > 512 { // every block costs as much as the score
					return 0
				}
				return blocks(n, d)
			}
			all, parts, err := momentsOf(s.N, side.ID, blocks, func(f func(metrics.Samples) error) error { return s.Stream(ctx, ex, strict, f) })
			side.N = s.N // without the files that do not read
			return all, parts, err
		}
	}
	if len(s.Labels) == s.N {
		side.Class = func(i int) int { return s.Labels[i] }
	}
	return side
}

// ReferenceOf makes a reference of one set.
func ReferenceOf(s *features.Set, ex features.Extractor, strict bool) Reference {
	side := SetSide(s, ex, strict)
	side.Digest = s.Digest()
	r := Reference{Moments: side}
	if s.Kind != features.Statistics {
		r.Rows = side
	}
	return r
}

// Score is a number with everything that is needed to read it.
type Score struct {
	Metric    string             `json:"metric"`
	Value     float64            `json:"value"`
	StdErr    float64            `json:"stderr,omitempty"` // of the generated samples, the reference taken as it is
	Std       float64            `json:"std,omitempty"`
	N         []int              `json:"n"` // reference, generated; only generated where there is no reference
	D         int                `json:"d,omitempty"`
	Extractor string             `json:"extractor,omitempty"`
	Resize    string             `json:"resize,omitempty"`
	Reference string             `json:"reference,omitempty"`
	RefHash   string             `json:"reference_hash,omitempty"`
	Settings  string             `json:"settings,omitempty"`
	Parts     map[string]float64 `json:"parts,omitempty"`
	PartErr   map[string]float64 `json:"parts_stderr,omitempty"`
	Warnings  []string           `json:"warnings,omitempty"`
	Jackknife []float64          `json:"jackknife,omitempty"` // the score without block b of the pictures
	Better    int                `json:"better,omitempty"`    // of columns of a verb: -1 smaller, 1 larger
	Interval  []float64          `json:"interval,omitempty"`  // 95 %, of shares
}

// Options of scores; zero values are the defaults of package metrics.
type Options struct {
	Subsets    int     // of kid
	Size       int     // of kid's subsets
	K          int     // neighbours of prdc
	Splits     int     // of is
	Directions int     // of swd and mind
	Q          float64 // order of vendi
	Seed       uint32  // of every random choice; in a Bench 0 means DefaultSeed
	Force      bool    // compare although identities differ
}

// DefaultSeed is the field's.
const DefaultSeed = 2020

// need says what a scorer looks at.
type need int

const (
	needMoments  need = iota
	needInfinity      // moments of the reference, rows of the generated side
	needRows          // of both sides
	needAlone         // rows of the generated side
	needLogits
	needClasses
)

// Scorer is a named score.
type Scorer struct {
	Name   string
	Doc    string
	Better int // -1: smaller is better, 1: larger
	Parts  []string
	need   need
	make   func(o Options) metrics.Score
}

// NeedsReference tells whether the score compares with a reference.
func (s Scorer) NeedsReference() bool { return s.need <= needRows }

// scorers is the table of scores of sets.
var scorers = []Scorer{
	{"fid", "Fréchet distance of normal distributions fitted to the features", -1, nil, needMoments, nil},
	{"fbd", "Fréchet biological distance: fid on the embeddings of the classifier of DNA sequences", -1, nil, needMoments, nil},
	{"fid-inf", "Fréchet distance extrapolated to infinitely many samples, for a thousand samples or more", -1, nil, needInfinity, nil},
	{"kid", "kernel inception distance: unbiased, for few samples", -1, nil, needRows, func(o Options) metrics.Score {
		return metrics.KID{Subsets: o.Subsets, Size: o.Size, Source: metrics.NewSource(o.Seed)}
	}},
	{"prdc", "precision, recall, density and coverage by nearest neighbours; its value is the F score of the first two", 1, []string{"precision", "recall", "density", "coverage"}, needRows, func(o Options) metrics.Score {
		return metrics.PRDC{K: o.K}
	}},
	{"is", "Inception score of the classifier's logits", 1, nil, needLogits, func(o Options) metrics.Score {
		return metrics.InceptionScore{Splits: o.Splits, Source: metrics.NewSource(o.Seed)}
	}},
	{"vendi", "effective number of different samples", 1, nil, needAlone, func(o Options) metrics.Score { return metrics.Vendi{Q: o.Q} }},
	{"swd", "sliced 2-Wasserstein distance", -1, nil, needRows, func(o Options) metrics.Score {
		return metrics.Sliced{Directions: o.Directions, Source: metrics.NewSource(o.Seed)}
	}},
	{"mind", "sliced distance scaled by the dimension, of equal numbers of samples", -1, nil, needRows, func(o Options) metrics.Score {
		return metrics.Sliced{Kind: metrics.MIND, Directions: o.Directions, Source: metrics.NewSource(o.Seed)}
	}},
	{"energy", "energy distance", -1, nil, needRows, func(Options) metrics.Score { return metrics.EnergyDistance{} }},
	{"mmd", "squared maximum mean discrepancy with KID's kernel, over all samples", -1, nil, needRows, func(Options) metrics.Score { return metrics.MMD{} }},
	{"cmmd", "maximum mean discrepancy of rows of unit length with a wide Gaussian kernel, times 1000", -1, nil, needRows, func(Options) metrics.Score { return metrics.CMMD{} }},
	{"w2", "exact 2-Wasserstein distance, for up to about 2000 samples", -1, nil, needRows, func(Options) metrics.Score { return metrics.Wasserstein{} }},
	{"sinkhorn", "debiased entropic transport cost, regularised by a twentieth of the median squared distance, for up to about 2000 samples", -1, nil, needRows, func(Options) metrics.Score { return metrics.SinkhornDivergence{} }},
	{"class-acc", "share of pictures that the classifier names as they were asked for", 1, nil, needClasses, nil},
}

// Scorers lists the scores of sets.
func Scorers() []Scorer { return slices.Clone(scorers) }

// FindScorer looks a score up.
func FindScorer(name string) (Scorer, error) {
	var names []string
	for _, s := range scorers {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Scorer{}, fmt.Errorf("unknown metric %q%s", name, spec.Suggest(name, names))
}

// NotFinite is the error of a score of finite numbers that is none itself.
type NotFinite struct{ Err error }

func (e *NotFinite) Error() string { return e.Err.Error() }
func (e *NotFinite) Unwrap() error { return e.Err }

// blocks is the number of blocks of a jackknife.
func blocks(n, d int) int {
	if d > 512 { // a Fréchet distance costs d³
		return min(n, 8)
	}
	return min(n, 20)
}

// Compute scores a generated side against a reference, whose parts may be nil
// where the score needs none.
func (s Scorer) Compute(ctx context.Context, ref Reference, gen *Side, o Options) (Score, error) {
	out := Score{Metric: s.Name, Extractor: gen.ID.Extractor, Resize: gen.ID.Resize}
	side := ref.Moments
	if s.need == needRows {
		side = ref.Rows
	}
	if s.NeedsReference() {
		if side == nil && ref.Moments != nil {
			return out, fmt.Errorf("%s: the reference %s has statistics only; %s needs pictures or features", s.Name, ref.Moments.Name, s.Name)
		}
		if side == nil {
			return out, fmt.Errorf("%s needs a reference", s.Name)
		}
		out.Reference, out.RefHash = side.Name, side.Digest
	}
	var r metrics.Result
	var err error
	switch s.need {
	case needMoments:
		r, out.Jackknife, err = fid(ctx, side, gen, o.Force)
	case needInfinity:
		r, out.Jackknife, err = infinity(ctx, side, gen, o)
	case needClasses:
		r, out.Jackknife, err = classAccuracy(ctx, gen)
	default:
		r, out.Jackknife, err = s.rows(ctx, side, gen, o)
	}
	if err != nil {
		return out, fmt.Errorf("%s of %s: %w", s.Name, gen.Name, err)
	}
	if v := r.Value + r.StdErr; math.IsNaN(v) || math.IsInf(v, 0) {
		return out, &NotFinite{fmt.Errorf("%s of %s is %v ± %v", s.Name, gen.Name, r.Value, r.StdErr)}
	}
	out.Value, out.StdErr, out.Std, out.D, out.Settings, out.Parts, out.PartErr = r.Value, r.StdErr, r.Std, r.D, r.Settings, r.Parts, r.PartErr
	out.N = []int{r.N}
	if s.NeedsReference() {
		out.N = []int{r.NRef, r.N}
	}
	for _, w := range r.Warnings {
		if w.Name == metrics.WarnUnknownSize && s.NeedsReference() && side.Exact {
			continue // exact moments saw no samples
		}
		out.Warnings = append(out.Warnings, w.Name+": "+w.Text)
	}
	return out, nil
}

// momentsOf are the moments of n streamed rows, and those of their blocks where these are 4 or more.
func momentsOf(n int, id metrics.Identity, blocks func(n, d int) int, stream func(f func(metrics.Samples) error) error) (*metrics.Moments, []*metrics.Moments, error) {
	all, parts, first := &metrics.Moments{ID: id}, []*metrics.Moments(nil), 0
	err := stream(func(rows metrics.Samples) error {
		size, d := rows.Dims()
		if b := blocks(n, d); first == 0 && b >= 4 {
			for range b {
				parts = append(parts, &metrics.Moments{ID: id})
			}
		}
		err := split(all, parts, rows, first, n)
		first += size
		return err
	})
	return all, parts, err
}

// split adds rows first and on, of n, to the moments of all and of their blocks.
func split(all *metrics.Moments, parts []*metrics.Moments, rows metrics.Samples, first, n int) error {
	if err := all.Add(rows); err != nil || parts == nil {
		return err
	}
	size, _ := rows.Dims()
	for lo := 0; lo < size; {
		k := (first + lo) * len(parts) / n
		hi := min(size, ((k+1)*n+len(parts)-1)/len(parts)-first)
		idx := make([]int, hi-lo)
		for i := range idx {
			idx[i] = lo + i
		}
		if err := parts[k].Add(metrics.Pick(rows, idx)); err != nil {
			return err
		}
		lo = hi
	}
	return nil
}

// blocksOf is Side.Blocks of rows at hand.
func blocksOf(ctx context.Context, rows metrics.Samples, id metrics.Identity) (*metrics.Moments, []*metrics.Moments, error) {
	n, _ := rows.Dims()
	return momentsOf(n, id, blocks, func(f func(metrics.Samples) error) error { return each(ctx, rows, f) })
}

// fid compares moments; those of blocks give the error.
func fid(ctx context.Context, ref, gen *Side, force bool) (metrics.Result, []float64, error) {
	base, err := ref.Stats(ctx)
	if err != nil {
		return metrics.Result{}, nil, err
	}
	if gen.Blocks == nil {
		st, err := gen.Stats(ctx)
		if err != nil {
			return metrics.Result{}, nil, err
		}
		r, err := metrics.CompareStats(base, st, force)
		return r, nil, err
	}
	all, parts, err := gen.Blocks(ctx)
	if err != nil {
		return metrics.Result{}, nil, err
	}
	return fidOf(ctx, base, all, parts, force)
}

func fidOf(ctx context.Context, base metrics.Stats, all *metrics.Moments, parts []*metrics.Moments, force bool) (metrics.Result, []float64, error) {
	st, err := all.Stats()
	if err != nil {
		return metrics.Result{}, nil, err
	}
	r, err := metrics.CompareStats(base, st, force)
	if err != nil || parts == nil {
		return r, nil, err
	}
	join := func(a, b *metrics.Moments) *metrics.Moments {
		m := &metrics.Moments{ID: all.ID}
		if err == nil {
			err = errors.Join(m.Merge(a), m.Merge(b))
		}
		return m
	}
	b := len(parts)
	after := make([]*metrics.Moments, b+1) // blocks k and on
	after[b] = &metrics.Moments{ID: all.ID}
	for k := b - 1; k > 0; k-- {
		after[k] = join(parts[k], after[k+1])
	}
	before := &metrics.Moments{ID: all.ID} // blocks up to k
	without := make([]float64, b)
	for k := range parts {
		if err := ctx.Err(); err != nil {
			return r, nil, err
		}
		m := join(before, after[k+1])
		before = join(before, parts[k])
		if err != nil {
			return r, nil, err
		}
		st, err := m.Stats()
		if err != nil {
			return r, nil, nil // too few different rows for a spread
		}
		f, err := metrics.FrechetDistance(base, st)
		if err != nil {
			return r, nil, err
		}
		without[k] = f.Distance
	}
	r.StdErr = metrics.JackknifeError(without)
	return r, without, nil
}

// infinity fits FID_n = a + b/n over subsets of the generated rows. What a lacks of FID_n hardly depends on the rows:
// without a block it changes as that of all rows, beside the error of the fit.
func infinity(ctx context.Context, ref, gen *Side, o Options) (metrics.Result, []float64, error) {
	base, err := ref.Stats(ctx)
	if err != nil {
		return metrics.Result{}, nil, err
	}
	rows, _, err := gen.Rows(ctx)
	if err != nil {
		return metrics.Result{}, nil, err
	}
	all, parts, err := blocksOf(ctx, rows, gen.ID)
	if err != nil {
		return metrics.Result{}, nil, err
	}
	r, without, err := fidOf(ctx, base, all, parts, o.Force)
	if err != nil {
		return metrics.Result{}, nil, err
	}
	f, err := metrics.FIDInfinity(ctx, base, rows, 0, metrics.NewSource(o.Seed))
	if err != nil {
		return metrics.Result{}, nil, err
	}
	for k := range without {
		without[k] += f.Value - r.Value
	}
	r.Metric, r.Value, r.StdErr = "fid-inf", f.Value, math.Hypot(r.StdErr, f.StdErr)
	r.Parts = map[string]float64{"slope": f.Slope, "fit": f.StdErr}
	r.Settings = fmt.Sprintf("points=%d from=%d to=%d", len(f.N), f.N[0], f.N[len(f.N)-1])
	r.Warnings = append(r.Warnings, f.Warnings...)
	return r, without, nil
}

// each hands all rows over in blocks.
func each(ctx context.Context, s metrics.Samples, f func(metrics.Samples) error) error {
	n, d := s.Dims()
	const size = 256
	for lo := 0; lo < n; lo += size {
		if err := ctx.Err(); err != nil {
			return err
		}
		m := metrics.Matrix{N: min(size, n-lo), D: d, X: make([]float64, min(size, n-lo)*d)}
		for i := range m.N {
			s.Row(m.X[i*d:(i+1)*d], lo+i)
		}
		if err := f(m); err != nil {
			return err
		}
	}
	return nil
}

func classAccuracy(ctx context.Context, gen *Side) (metrics.Result, []float64, error) {
	if gen.Class == nil {
		return metrics.Result{}, nil, errors.New("nothing says which class each picture should show")
	}
	_, logits, err := gen.Rows(ctx)
	if err != nil {
		return metrics.Result{}, nil, err
	}
	if logits == nil {
		return metrics.Result{}, nil, errors.New("the extractor names no classes")
	}
	n, k := logits.Dims()
	row := make([]float64, k)
	b := blocks(n, k)
	right, size := make([]int, b), make([]int, b)
	total := 0
	for i := range n {
		logits.Row(row, i)
		for j, v := range row {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return metrics.Result{}, nil, fmt.Errorf("row %d, logit %d: %w", i, j, metrics.ErrNaN)
			}
		}
		best := 0
		for j, v := range row {
			if v > row[best] {
				best = j
			}
		}
		at := i * b / n
		size[at]++
		if best == gen.Class(i) {
			right[at]++
			total++
		}
	}
	without := make([]float64, b)
	for j := range without {
		without[j] = float64(total-right[j]) / float64(max(1, n-size[j]))
	}
	r := metrics.Result{Metric: "class-acc", Value: float64(total) / float64(n), N: n, D: k}
	if b < 4 {
		return r, nil, nil
	}
	r.StdErr = metrics.JackknifeError(without)
	return r, without, nil
}

func (s Scorer) rows(ctx context.Context, ref, gen *Side, o Options) (metrics.Result, []float64, error) {
	rows, logits, err := gen.Rows(ctx)
	if err != nil {
		return metrics.Result{}, nil, err
	}
	var base metrics.Samples
	switch s.need {
	case needLogits:
		if logits == nil {
			return metrics.Result{}, nil, errors.New("the extractor names no classes")
		}
		rows = logits
	case needRows:
		if base, _, err = ref.Rows(ctx); err != nil {
			return metrics.Result{}, nil, err
		}
	}
	var warn []metrics.Warning
	if base != nil {
		if warn, err = sameIdentity(ref.ID, gen.ID, o.Force); err != nil {
			return metrics.Result{}, nil, err
		}
	}
	r, without, err := s.withError(ctx, base, rows, o)
	r.Warnings = append(r.Warnings, warn...)
	return r, without, err
}

// withError is the score with its jackknife, or alone where the rows are too few for one.
func (s Scorer) withError(ctx context.Context, base, rows metrics.Samples, o Options) (metrics.Result, []float64, error) {
	n, d := rows.Dims()
	if b := blocks(n, d); b >= 4 {
		r, without, err := metrics.Jackknifed(ctx, s.make(o), base, rows, b)
		if !errors.Is(err, metrics.ErrTooFew) && !errors.Is(err, metrics.ErrConstant) {
			return r, without, err
		}
	}
	r, err := s.make(o).Compare(ctx, base, rows)
	r.StdErr = 0 // one over both sets is another thing
	return r, nil, err
}

// sameIdentity refuses sets of different extractors; what is unknown is a warning.
func sameIdentity(a, b metrics.Identity, force bool) ([]metrics.Warning, error) {
	var out []metrics.Warning
	for _, f := range []struct{ what, a, b string }{{"extractor", a.Extractor, b.Extractor}, {"resize", a.Resize, b.Resize}} {
		switch {
		case f.a == "" || f.b == "":
			out = append(out, metrics.Warning{Name: metrics.WarnUnknownIdentity, Text: "a set does not say which " + f.what + " made it"})
		case f.a != f.b && force:
			out = append(out, metrics.Warning{Name: metrics.WarnForcedIdentity, Text: fmt.Sprintf("%s differs: %q and %q", f.what, f.a, f.b)})
		case f.a != f.b:
			return nil, fmt.Errorf("%w: %s %q and %q", metrics.ErrIdentity, f.what, f.a, f.b)
		}
	}
	return out, nil
}

// Columns are the numbers of a score that a table shows: its parts by name
// where it has named ones, else its value.
func (s Score) Columns() []string {
	for _, x := range scorers {
		if x.Name == s.Metric && x.Parts != nil {
			return x.Parts
		}
	}
	return []string{s.Metric}
}

// Number is the value of a column.
func (s Score) Number(column string) float64 {
	if column == s.Metric {
		return s.Value
	}
	return s.Parts[column]
}

// Error is the standard error of a column, 0 where there is none.
func (s Score) Error(column string) float64 {
	if column == s.Metric {
		return s.StdErr
	}
	return s.PartErr[column]
}

// better is the direction of a column.
func better(column string) int {
	for _, s := range scorers {
		if s.Name == column || slices.Contains(s.Parts, column) {
			return s.Better
		}
	}
	return -1
}

// direction is better, of this very score.
func (s Score) direction(column string) int {
	if s.Better != 0 {
		return s.Better
	}
	return better(column)
}

// About is the line that stands below a table: who measured, with what, against what.
func (s Score) About() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: ", s.Metric)
	if len(s.N) == 2 {
		against := strconv.Itoa(s.N[0]) + " of " + s.Reference
		if s.N[0] == 0 {
			against = s.Reference
		}
		fmt.Fprintf(&b, "%d samples against %s", s.N[1], against)
		if s.RefHash != "" {
			fmt.Fprintf(&b, " (%s)", s.RefHash)
		}
	} else if len(s.N) == 1 {
		fmt.Fprintf(&b, "%d samples", s.N[0])
	}
	if s.Better != 0 { // a number of the verb's own
		b.WriteString(", mean over seeds")
	} else {
		fmt.Fprintf(&b, ", extractor %s, resize %s", or(s.Extractor, "unknown"), or(s.Resize, "unknown"))
	}
	if s.Settings != "" {
		fmt.Fprintf(&b, ", %s", s.Settings)
	}
	return b.String()
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
